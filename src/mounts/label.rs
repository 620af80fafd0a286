//! SELinux labels of what a pod's containers share: OCI runtimes label what they mount themselves, but not the source
//! of a bind mount.

use std::{fs, path::Path};

use rustix::{fs::XattrFlags, io::Errno};
use serde_json::Value;

use super::{Error, pod_files::NODE_SHM};

/// The label for a container's mounts, if its specification has one.
pub fn mount_label(spec: &Value) -> Option<&str> {
    let label = spec.pointer("/linux/mountLabel").and_then(Value::as_str);
    label.filter(|label| !label.is_empty())
}

/// Whether SELinux labels anything on this node.
pub fn is_enabled() -> bool {
    // Without a policy every process has the label "kernel".
    Path::new("/sys/fs/selinux/enforce").exists()
        && fs::read("/proc/self/attr/current").is_ok_and(|label| !label.starts_with(b"kernel"))
}

/// Gives the pod's files the label of a container that is to use them; does nothing on a node without SELinux.
/// The node's own shm keeps its label. Blocking, for a moment.
pub fn relabel<P: AsRef<Path>>(files: &[P], label: &str) -> Result<(), Error> {
    if is_enabled() { relabel_all(files, label) } else { Ok(()) }
}

fn relabel_all<P: AsRef<Path>>(files: &[P], label: &str) -> Result<(), Error> {
    // The kernel wants the text with its final zero.
    let text = [label.as_bytes(), b"\0"].concat();
    for path in files.iter().map(AsRef::as_ref).filter(|path| *path != Path::new(NODE_SHM)) {
        match rustix::fs::lsetxattr(path, "security.selinux", &text, XattrFlags::empty()) {
            // This file system has no labels.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(errno) => {
                return Err(Error::at(&format!("set SELinux label {label:?} of"), path, errno));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_label_is_the_mounts_not_the_processs() {
        let spec = json!({"process": {"selinuxLabel": "p"}, "linux": {"mountLabel": "m"}});
        assert_eq!(mount_label(&spec), Some("m"));
        assert_eq!(mount_label(&json!({"linux": {"mountLabel": ""}})), None);
        assert_eq!(mount_label(&json!({})), None);
    }

    #[test]
    fn a_file_gets_its_label_and_the_nodes_shm_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let files = [file.path(), Path::new(NODE_SHM)];
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        if relabel_all(&files, label).is_err() {
            return; // A kernel with SELinux and without a policy that knows this label.
        }
        let mut bytes = [0_u8; 128];
        let name = "security.selinux";
        if let Ok(length) = rustix::fs::lgetxattr(file.path(), name, &mut bytes[..]) {
            assert!(bytes[..length].starts_with(label.as_bytes()));
        }
        let shm = rustix::fs::lgetxattr(NODE_SHM, name, &mut bytes[..]);
        assert!(!shm.is_ok_and(|length| bytes[..length].starts_with(label.as_bytes())));
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = relabel_all(&["/nonexistent/hosts"], "u:r:t:s0").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/hosts"), "{error}");
    }
}
