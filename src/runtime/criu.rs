//! criu, which the OCI runtime runs for a checkpoint.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Error, RuntimeSettings,
    launch::{Call, USUAL, find, program},
    runc::Scratch,
};
use crate::{
    process::{Reaper, run},
    sys::mountinfo,
};

/// The name under which runtimes look for it, in PATH alone.
pub const NAME: &str = "criu";
/// The variable that names its configuration. Whatever it starts inherits it.
pub const CONFIG: &str = "CRIU_CONFIG_FILE";

/// How the configuration begins: a comment for criu, for us the folder that criu makes its mounts in.
const WORK: &str = "# work folder: ";

/// What is read of the answer to the runtime's `features`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Features {
    annotations: std::collections::BTreeMap<String, String>,
}

impl RuntimeSettings {
    /// The PATH with which the runtime finds criu; an error that says what is missing where it is not there.
    pub fn path_to_criu(&self, verb: &'static str) -> Result<OsString, Error> {
        let program = find(&self.criu);
        let missing = || Error::NoCriu { verb, program: self.criu.to_string_lossy().into_owned() };
        if !program.is_file() {
            return Err(missing());
        }
        let folder = program.parent().map(Path::to_owned);
        let given = env::var_os("PATH").unwrap_or_default();
        let folders = folder.into_iter().chain(env::split_paths(&given));
        env::join_paths(folders.chain(USUAL.map(PathBuf::from))).map_err(|_| missing())
    }
}

/// Refuses where the runtime says of itself that it was built without checkpoints. One that cannot say is taken at its
/// deeds.
pub(super) async fn check_built_in(
    settings: &RuntimeSettings,
    reaper: &Reaper,
    verb: &'static str,
) -> Result<(), Error> {
    let mut command = program(&settings.binary);
    command.arg("features");
    let deadline = Instant::now().checked_add(settings.timeout);
    let Ok(output) = run(reaper, &mut command, b"", deadline).await else { return Ok(()) };
    if output.exit.status == 0 && says_no(&output.stdout) {
        return Err(Error::NoCheckpoints { verb, binary: settings.binary.clone() });
    }
    Ok(())
}

fn says_no(features: &[u8]) -> bool {
    let features: Features = serde_json::from_slice(features).unwrap_or_default();
    let mut known =
        features.annotations.iter().filter(|(key, _)| key.ends_with(".checkpoint.enabled"));
    known.any(|(_, value)| value == "false")
}

/// Where criu may have left mounts that was killed in the call of configuration `config`.
#[must_use]
pub fn mounts_of(config: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(config).unwrap_or_default();
    let work = text.lines().next().and_then(|line| line.strip_prefix(WORK));
    let entries = work.and_then(|work| fs::read_dir(work).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let own = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".criu."))
    };
    paths.filter(own).collect()
}

/// How long the processes of a killed criu may take to be gone, and how often that is looked at.
const GONE: (u32, Duration) = (40, Duration::from_millis(50));

/// Where criu makes a folder for each restore, and mounts in it, as this or that process has it.
const ROOTS: &str = "/tmp";

/// Where the criu may have mounted something, or made the folder for it, that was killed in the call of configuration
/// `config`: it has one place for all, and says nowhere whose it is. So none while any criu runs, for which the killed one
/// is waited for; and of folders without a mount none that is older than the call. Blocks.
#[must_use]
pub fn roots_of_nobody(config: &Path) -> Vec<PathBuf> {
    let gone = (0..GONE.0).any(|_| {
        runs().is_ok_and(|runs| !runs) || {
            std::thread::sleep(GONE.1);
            false
        }
    });
    if !gone {
        return Vec::new();
    }
    let mounts = mountinfo::read().unwrap_or_default().into_iter().map(|mount| mount.target);
    let is_root = |path: &PathBuf| {
        let name = path.strip_prefix(ROOTS).unwrap_or(path);
        name.to_string_lossy().starts_with(".criu.mntns.")
    };
    mounts.filter(is_root).chain(made_since(config).into_iter().filter(is_root)).collect()
}

/// The folders in [`ROOTS`] that are no older than a file.
fn made_since(file: &Path) -> Vec<PathBuf> {
    let time = |path: &Path| path.symlink_metadata().and_then(|found| found.modified());
    let Ok(since) = time(file) else { return Vec::new() };
    let all = fs::read_dir(ROOTS).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = all.filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()));
    folders.filter(|path| time(path).is_ok_and(|made| made >= since)).collect()
}

/// Whether any criu runs. One that has ended and was not waited for has a name and no program.
fn runs() -> std::io::Result<bool> {
    let one = |pid: fs::DirEntry| {
        let named = fs::read_to_string(pid.path().join("comm"));
        named.is_ok_and(|name| name.trim() == NAME) && pid.path().join("exe").read_link().is_ok()
    };
    Ok(fs::read_dir("/proc")?.any(|entry| entry.is_ok_and(one)))
}

/// Has a call run with criu's configuration in `config`, which is there until the answer is dropped. `work` is criu's
/// folder.
pub(super) fn configure(
    call: &mut Call<'_>,
    settings: &RuntimeSettings,
    config: &Path,
    work: &Path,
    text: &str,
) -> Result<Scratch, Error> {
    let verb = call.verb;
    let failed = |action| {
        let path = config.to_owned();
        move |source| Error::File { verb, action, path, source }
    };
    let work = work.to_string_lossy();
    // A second line would be an instruction to criu.
    if work.chars().any(char::is_control) {
        let reason = std::io::Error::other(format!("{work:?} is no name for a folder"));
        return Err(failed("write")(reason));
    }
    call.command.env("PATH", settings.path_to_criu(verb)?).env(CONFIG, config);
    let scratch = Scratch(config.to_owned());
    let text = format!("{WORK}{work}\n{text}");
    let folder = config.parent().map_or(Ok(()), fs::create_dir_all);
    folder.and_then(|()| fs::write(config, text)).map_err(failed("write"))?;
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_criu_is_named() {
        let settings =
            RuntimeSettings { criu: "/nonexistent/criu".into(), ..RuntimeSettings::default() };
        let error = settings.path_to_criu("checkpoint").unwrap_err().to_string();
        assert!(error.contains("\"/nonexistent/criu\"") && error.contains("CriuPath"), "{error}");
    }

    #[test]
    fn its_folder_comes_first_in_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let criu = folder.path().join(NAME);
        fs::write(&criu, "").unwrap();
        let settings = RuntimeSettings { criu, ..RuntimeSettings::default() };
        let path = settings.path_to_criu("checkpoint").unwrap();
        assert_eq!(env::split_paths(&path).next().as_deref(), Some(folder.path()));
    }

    #[test]
    fn what_criu_may_have_mounted_is_in_its_work_folder() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        assert!(mounts_of(&config).is_empty());
        fs::write(&config, format!("{WORK}{}\nexternal x\n", folder.path().display())).unwrap();
        fs::create_dir(folder.path().join(".criu.cgyard.Ab12")).unwrap();
        assert_eq!(mounts_of(&config), [folder.path().join(".criu.cgyard.Ab12")]);
    }

    #[test]
    fn a_folder_without_a_mount_is_of_a_call_if_it_is_no_older() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        let make = || tempfile::Builder::new().prefix(".criu.mntns.").tempdir_in(ROOTS).unwrap();
        let older = make();
        // Times of files are as fine as the kernel's clock tick.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&config, "").unwrap();
        let of_the_call = make();
        let found = made_since(&config);
        assert!(found.contains(&of_the_call.path().to_owned()));
        assert!(!found.contains(&older.path().to_owned()));
        assert!(made_since(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn a_runtime_that_was_built_without_says_so() {
        let answer = |enabled: &str| {
            format!(r#"{{"annotations":{{"run.oci.crun.checkpoint.enabled":"{enabled}"}}}}"#)
        };
        assert!(says_no(answer("false").as_bytes()));
        assert!(!says_no(answer("true").as_bytes()) && !says_no(b"no features"));
    }
}
