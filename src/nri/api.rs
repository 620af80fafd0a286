//! Messages and services of `protos/nri.proto`, as the build makes them.

#[allow(clippy::all, clippy::pedantic, nonstandard_style, unused)]
pub(super) mod nri {
    include!(concat!(env!("OUT_DIR"), "/protos/nri.rs"));
}

/// What plugins call, and what they serve.
#[allow(clippy::all, clippy::pedantic, unused)]
pub(super) mod services {
    use super::nri;
    include!(concat!(env!("OUT_DIR"), "/protos/nri_ttrpc.rs"));
}

pub(super) use nri::*;
