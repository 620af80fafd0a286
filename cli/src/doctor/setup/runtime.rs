//! The OCI runtimes that the node's handlers call.

use std::{collections::BTreeSet, path::Path};

use mooring::runtime::BUILTIN;

use super::{Remark, Setup};

const PART: &str = "oci runtime";

pub fn remarks(setup: &Setup<'_>) -> Vec<Remark> {
    let names: BTreeSet<_> = setup.options.iter().map(|one| &one.runtime.binary).collect();
    let judged = names.into_iter().map(|name| {
        if name == Path::new(BUILTIN) {
            return Remark::good(PART, "the shim's own");
        }
        if let Some(path) = setup.program(name) {
            return Remark::good(PART, path.display().to_string());
        }
        let what = format!("{} is not there, or cannot be executed", name.display());
        Remark::problem(PART, what)
            .remedy("install it, or set BinaryName in /etc/mooring/config.toml")
    });
    judged.collect()
}
