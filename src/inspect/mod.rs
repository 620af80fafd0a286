//! What an operator's tool and a shim say to each other: the service of `protos/mooring/v1/inspect.proto`, and a client
//! that finds the shim by its record.

mod client;

/// The messages, as the build makes them.
#[allow(clippy::all, clippy::pedantic, nonstandard_style, unused)]
mod inspect {
    include!(concat!(env!("OUT_DIR"), "/protos/inspect.rs"));
}

/// The service.
#[allow(clippy::all, clippy::pedantic, unused)]
mod service {
    include!(concat!(env!("OUT_DIR"), "/protos/inspect_ttrpc.rs"));
}

pub use client::{AskError, Shim, Steps};
pub use inspect::*;
pub use service::{Inspect, InspectClient, create_inspect};
