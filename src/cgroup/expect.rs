//! The wait that moving a process to another control group costs, begun before it is moved.

use std::{fs, path::Path, sync::OnceLock};

use super::{Error, Hierarchies};

/// Says to the kernel that a process is about to be moved to another group, so that it waits for what it has to wait
/// for now. Blocks as long as that takes.
///
/// While a process is moved nobody may fork, exec or end. The lock for that costs those nothing, at the expense of who
/// moves: the first one in a while waits for a grace period of RCU, 10 to 20 ms, and others that follow soon do not. An
/// OCI runtime moves its child some milliseconds after it was started.
///
/// What is written is this process, into a group that it is in: nothing is moved.
///
/// # Errors
/// The groups cannot be read, or the kernel refuses. Either costs the caller no more than time.
pub fn expect_move() -> Result<(), Error> {
    /// Those of a machine do not change, and its mounts are many: every exec comes by here.
    static KNOWN: OnceLock<Hierarchies> = OnceLock::new();
    if KNOWN.get().is_none() {
        let _ = KNOWN.set(Hierarchies::read()?);
    }
    let Some(hierarchies) = KNOWN.get() else { return Ok(()) };
    let own = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(own).map_err(Error::at("read", own))?;
    if let Some((hierarchy, path)) = hierarchies.groups(&text).next() {
        let file = hierarchy.folder(path).join("cgroup.procs");
        fs::write(&file, "0").map_err(Error::at("write", &file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_moved() {
        let groups = || fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = groups();
        expect_move().unwrap();
        assert_eq!(groups(), before);
    }
}
