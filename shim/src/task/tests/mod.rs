//! Real containers, run by the runtimes that `make test` fetches.

mod bad;
mod checkpoint;
mod control;
mod life;
mod signals;
mod speed;
mod stage;
mod streams;
