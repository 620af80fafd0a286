//! systemd's way to name a group.

use super::Error;

/// The path of the group that systemd makes for `slice:prefix:name`: dashes in a slice's name are levels of folders.
/// `pods-a.slice:cri:x` is `/pods.slice/pods-a.slice/cri-x.scope`; without a slice it is `system.slice`.
pub fn from_systemd(name: &str) -> Result<String, Error> {
    let invalid = || Error::InvalidPath { path: name.to_owned() };
    let parts: Vec<&str> = name.split(':').collect();
    let [slice, prefix, unit] = parts[..] else { return Err(invalid()) };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let mut path = expand(slice).ok_or_else(invalid)?;
    if unit.is_empty() || unit.contains('/') || prefix.contains('/') {
        return Err(invalid());
    }
    path.push('/');
    if unit.strip_suffix(".slice").is_some() {
        path.push_str(unit);
    } else {
        if !prefix.is_empty() {
            path.push_str(prefix);
            path.push('-');
        }
        path.push_str(unit);
        path.push_str(".scope");
    }
    Ok(path)
}

/// The path of a slice.
pub(super) fn slice_path(slice: &str) -> Result<String, Error> {
    expand(slice).ok_or_else(|| Error::InvalidPath { path: slice.to_owned() })
}

/// The folders of a slice, from the hierarchy's root.
fn expand(slice: &str) -> Option<String> {
    let name =
        slice.strip_suffix(".slice").filter(|name| !name.is_empty() && !name.contains('/'))?;
    if name == "-" {
        return Some(String::new());
    }
    let (mut path, mut prefix) = (String::new(), String::new());
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path = format!("{path}/{prefix}.slice");
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_are_levels() {
        let path = from_systemd("kubepods-besteffort-pod1.slice:cri-containerd:abc").unwrap();
        assert_eq!(
            path,
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope"
        );
        assert_eq!(from_systemd("::abc").unwrap(), "/system.slice/abc.scope");
        assert_eq!(from_systemd("-.slice::abc").unwrap(), "/abc.scope");
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for name in [
            "",
            "a",
            "a:b",
            "a.slice:b:",
            "a:b:c",
            "a--b.slice:x:y",
            "../x.slice:a:b",
            "a.slice:b:c/d",
        ] {
            assert!(from_systemd(name).is_err(), "{name:?}");
        }
    }
}
