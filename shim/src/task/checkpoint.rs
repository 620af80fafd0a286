//! Task.Checkpoint.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use mooring::{
    id::Id,
    runtime::{self, Checkpoint, checkpoint::Kept},
};
use rustix::process::Signal;
use tokio::time::sleep;

use super::{
    Error,
    container::{Container, Frozen, lock},
    parties::Parties,
    publish,
};

/// How often a checkpoint is tried that fails because of a process's state at that moment, and how long it goes on between.
const ATTEMPTS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(30);
/// The log that criu leaves in its work folder, and what becomes of it in the bundle when a checkpoint fails.
const LOG: (&str, &str) = ("dump.log", "criu-dump.log");
/// criu's words for what it does with cgroups.
const CGROUP_MODES: [&str; 4] = ["soft", "full", "strict", "ignore"];

/// What a checkpoint is made with, as the client says it.
#[derive(Clone, Debug, Default)]
pub struct CheckpointRequest {
    /// The folder that it goes into, which is made where it is not there.
    pub images: String,
    /// The folder of criu's log and statistics; empty for one in the bundle, which goes afterwards.
    pub work: String,
    /// An earlier checkpoint, relative to `images`; empty for none.
    pub parent: String,
    /// Whether the container ends with it.
    pub exit: bool,
    pub kept: Kept,
    /// What becomes of cgroups; empty for the runtime's own choice.
    pub cgroups_mode: String,
}

impl Container {
    pub(super) async fn checkpoint(
        &self,
        parties: &Parties,
        request: CheckpointRequest,
    ) -> Result<(), Error> {
        let _order = self.order.lock().await;
        self.must_run()?;
        self.record.runtime.path_to_criu("checkpoint")?;
        let images = folder("image path", &request.images, &self.bundle)?;
        let own = request.work.is_empty();
        let work = if own {
            criu_work(&self.bundle, Path::new(""))?
        } else {
            make("work path", &folder("work path", &request.work, &self.bundle)?)?
        };
        let checkpoint = Checkpoint {
            images: make("image path", &images)?,
            work: work.clone(),
            parent: parent(&request.parent)?,
            leave_running: !request.exit,
            kept: kept(request.kept)?,
            cgroups_mode: mode(request.cgroups_mode)?,
            streams: self.streams,
            config: parties.criu_config(&self.id),
        };
        let made = self.dump(&checkpoint).await;
        if let Err(error) = made {
            let kept = self.bundle.join(LOG.1);
            if own && fs::copy(work.join(LOG.0), &kept).is_ok() {
                log::warn!("task {}: criu's log is {}", self.id, kept.display());
            }
            return Err(error.into());
        }
        let noted = tokio::task::spawn_blocking(move || checkpoint.note()).await;
        if own {
            let _ = fs::remove_dir_all(&work);
        }
        if request.exit {
            // Frozen in a v1 freezer, what criu has killed would not die.
            self.thaw_for(Signal::KILL);
        }
        noted?.map_err(Error::at("write the note into", &images))?;
        publish::checkpointed(&*parties.events, &self.id, &images);
        Ok(())
    }
}

impl Container {
    /// Has the runtime write the processes down. A process that was frozen just as it starts another cannot be held by
    /// criu, which gives up after ten seconds; where the client has not frozen it, it may go on for a moment and is tried
    /// again.
    async fn dump(&self, checkpoint: &Checkpoint) -> Result<(), runtime::Error> {
        let going = *lock(&self.frozen) == Frozen::No;
        for attempt in 1.. {
            if going && self.cgroup.v1.contains_key("freezer") {
                // A v1 freezer may hang while a process forks. The runtime knows how to go on then, criu does not.
                self.runtime.pause(&self.id, &self.bundle).await?;
            }
            let made = self.runtime.checkpoint(&self.id, &self.bundle, checkpoint).await;
            if going {
                // Also what was cut off in the middle has left it frozen.
                self.cgroup.thaw();
            }
            match made {
                Err(error) if going && attempt < ATTEMPTS && is_of_the_moment(&error) => {
                    log::warn!("task {}: {error}; it is tried again", self.id);
                    sleep(BETWEEN).await;
                }
                made => return made,
            }
        }
        Ok(())
    }
}

/// What criu says of a process in the middle of starting another, and of one that is the OCI runtime's own still, for the
/// moment until it has become the container's program.
const OF_THE_MOMENT: [&str; 3] = ["Unseizable", "fd=-3 path=/runc;", "fd=-3 path=/crun;"];

fn is_of_the_moment(error: &runtime::Error) -> bool {
    let runtime::Error::Refused { complaint, .. } = error else { return false };
    OF_THE_MOMENT.iter().any(|words| complaint.contains(words))
}

/// A folder that a client names: an absolute path without detours, and nowhere in what the container itself can change.
pub(super) fn folder(what: &str, given: &str, bundle: &Path) -> Result<PathBuf, Error> {
    let path = PathBuf::from(given);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) || odd(given) {
        return Err(Error::Invalid(format!("{what} {given:?} is no absolute path without \"..\"")));
    }
    // As far as it is there: links in it may lead into the container.
    let real = path.ancestors().find_map(|part| part.canonicalize().ok()).unwrap_or_default();
    let rootfs = bundle.join("rootfs");
    let rootfs = rootfs.canonicalize().unwrap_or(rootfs);
    if real.starts_with(rootfs) {
        return Err(Error::Invalid(format!("{what} {given:?} is in the container")));
    }
    if path.exists() && !path.is_dir() {
        return Err(Error::Invalid(format!("{what} {given:?} is no folder")));
    }
    Ok(path)
}

/// Whether a path has what criu's configuration, which has a line for each thing, could not name.
fn odd(path: &str) -> bool {
    path.chars().any(char::is_control)
}

/// The folder for criu's log and statistics: the given one, or one in the bundle.
pub(super) fn criu_work(bundle: &Path, given: &Path) -> Result<PathBuf, Error> {
    if given.as_os_str().is_empty() {
        return make("work path", &bundle.join("criu-work"));
    }
    make("work path", &folder("work path", &given.to_string_lossy(), bundle)?)
}

/// Makes a folder that only root reads: a checkpoint has the memory of processes.
fn make(what: &str, folder: &Path) -> Result<PathBuf, Error> {
    match DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Ok(()) => Ok(folder.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::Invalid(format!("{what} {}: {error}", folder.display())))
        }
        Err(error) => Err(Error::at("make", folder)(error)),
    }
}

fn parent(given: &str) -> Result<Option<PathBuf>, Error> {
    let path = Path::new(given);
    if path.is_absolute() || given.starts_with('-') || odd(given) {
        return Err(Error::Invalid(format!("parent path {given:?} is not relative to the images")));
    }
    Ok(Some(path.to_owned()).filter(|_| !given.is_empty()))
}

fn mode(given: String) -> Result<Option<String>, Error> {
    if given.is_empty() {
        return Ok(None);
    }
    if CGROUP_MODES.contains(&&*given) {
        return Ok(Some(given));
    }
    Err(Error::Invalid(format!("cgroups mode {given:?} is none of {}", CGROUP_MODES.join(", "))))
}

fn kept(kept: Kept) -> Result<Kept, Error> {
    let odd = |kind: &&String| Id::new(kind.as_str()).is_err();
    match kept.empty_namespaces.iter().find(odd) {
        Some(kind) => Err(Error::Invalid(format!("{kind:?} is no namespace"))),
        None => Ok(kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_clients_are_absolute_and_outside_the_container() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        let inside = bundle.path().join("rootfs/images").display().to_string();
        let link = bundle.path().join("link");
        std::os::unix::fs::symlink(bundle.path().join("rootfs"), &link).unwrap();
        let linked = link.join("images").display().to_string();
        let file = bundle.path().join("file");
        fs::write(&file, "").unwrap();
        let file = file.display().to_string();
        for bad in ["", "images", "/a/../b", "/a\naction-script /bin/sh", &inside, &linked, &file] {
            let error = folder("image path", bad, bundle.path()).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{bad}: {error}");
        }
        let good = bundle.path().join("new/images");
        let found = folder("image path", &good.display().to_string(), bundle.path()).unwrap();
        assert_eq!(found, good);
    }

    #[test]
    fn a_process_that_starts_another_just_then_is_no_reason_to_give_up() {
        let refused = |complaint: &str| runtime::Error::Refused {
            verb: "checkpoint",
            complaint: complaint.into(),
        };
        let complaint = "criu failed: type DUMP errno 0: Timeout reached. Try to interrupt: 0; Unseizable non-zombie 7 found, state D, err -1/4";
        assert!(is_of_the_moment(&refused(complaint)));
        let init =
            "criu failed: Can't lookup mount=45 for fd=-3 path=/runc; Collect mappings failed";
        assert!(is_of_the_moment(&refused(init)));
        assert!(!is_of_the_moment(&refused("criu failed: Can't lookup mount=27")));
    }

    #[test]
    fn what_is_no_word_of_crius_is_refused() {
        assert!(mode("hard".into()).is_err() && parent("/absolute").is_err());
        assert!(parent("--leave-running").is_err());
        assert_eq!(mode("soft".into()).unwrap().as_deref(), Some("soft"));
        assert_eq!(parent("../first").unwrap(), Some("../first".into()));
        let odd = Kept { empty_namespaces: vec!["net work\n".into()], ..Kept::default() };
        assert!(kept(odd).is_err());
    }
}
