//! TBD by its owner.
