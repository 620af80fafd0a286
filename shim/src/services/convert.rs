//! Messages and the library's types, each in the other's words.

use std::time::SystemTime;

use containerd_shim_protos::{
    protobuf::{
        MessageField,
        well_known_types::{any::Any, timestamp::Timestamp},
    },
    types::mount::Mount as WireMount,
};
use mooring::{mounts::Mount, options::AnyValue};

/// A time as messages carry it.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(at.into())
}

/// A mount of a root file system.
pub fn mount(mount: WireMount) -> Mount {
    Mount {
        kind: mount.type_,
        source: mount.source,
        target: Some(mount.target).filter(|target| !target.is_empty()).map(Into::into),
        options: mount.options,
    }
}

/// A message of any type, as the library takes it.
pub fn value(any: Any) -> AnyValue {
    AnyValue { type_url: any.type_url, value: any.value }
}
