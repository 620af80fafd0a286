//! Waiting for a descriptor without blocking.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor whose becoming ready can be waited for. It must not block when it is used.
pub fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // The successor of this constructor is unsafe for types whose descriptor may change; an `OwnedFd`'s cannot.
    #[expect(deprecated, reason = "the only safe constructor, and sound for OwnedFd")]
    AsyncFd::with_interest(descriptor, interest)
}
