//! containerd's entry to Mooring.
fn main() {}
