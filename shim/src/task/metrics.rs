//! Resource usage of a control group, as containerd's messages.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use mooring::cgroup::Cgroup;

use super::Error;

/// Reads the group's usage: `io.containerd.cgroups.v2.Metrics` on a unified machine, else `…v1.Metrics`.
pub fn read(_group: &Cgroup) -> Result<Any, Error> {
    Err(Error::Unimplemented("stats"))
}
