//! A new instance of a file system, made by the kernel's newer calls (one option per call, so a thousand layers are no
//! trouble) and, where the kernel or the file system does not know those, by mount(2).

use std::{ffi::CString, fs, os::fd::OwnedFd};

use composefs_ioctls::loop_device::{flags, loopify_with_flags};
use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use super::{
    Error, Mount, UserNamespace,
    attach::{is_unknown, move_to},
    idmap::proc_path,
    mount::{Place, Rollback, handle},
    options::Options,
    overlay,
};

/// The longest value that fsconfig(2) takes as a string.
const LONGEST_VALUE: usize = 255;
/// The longest text of options that mount(2) takes.
pub(super) const LONGEST_DATA: usize = 4095;
/// How often another process may snatch the free loop device that was found.
const LOOP_TRIES: usize = 32;

/// Mounts a new file system at `place`.
pub(super) fn attach(
    mount: &Mount,
    options: &Options,
    place: &Place<'_>,
    mapped: Option<&UserNamespace>,
    rollback: &mut Rollback,
) -> Result<(), Error> {
    if !options.loop_device {
        return attach_source(&mount.source, mount, options, place, mapped, rollback);
    }
    // A kernel of these years mounts an erofs image without a loop device.
    if mount.kind == "erofs"
        && attach_source(&mount.source, mount, options, place, mapped, rollback).is_ok()
    {
        return Ok(());
    }
    // The device detaches itself with its last user, which after this function is the mount.
    let device = loop_device(mount, options)?;
    let path = fs::read_link(proc_path(&device))
        .map_err(|error| Error::system(format!("{mount}: find its loop device"), error))?;
    attach_source(&path.to_string_lossy(), mount, options, place, mapped, rollback)
}

fn loop_device(mount: &Mount, options: &Options) -> Result<OwnedFd, Error> {
    let action = || format!("{mount}: set up a loop device");
    let read_only = options.is_read_only();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(&mount.source)
        .map_err(|error| Error::system(format!("open {}", mount.source), error))?;
    let mode = if read_only { flags::LO_FLAGS_READ_ONLY } else { 0 } | flags::LO_FLAGS_AUTOCLEAR;
    let mut tries = 0;
    loop {
        match loopify_with_flags(&file, mode) {
            Err(error) if is_busy(&error) && tries < LOOP_TRIES => tries += 1,
            answer => return answer.map_err(|error| Error::system(action(), error)),
        }
    }
}

fn is_busy(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Errno>());
    inner == Some(&Errno::BUSY) || error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

fn attach_source(
    source: &str,
    mount: &Mount,
    options: &Options,
    place: &Place<'_>,
    mapped: Option<&UserNamespace>,
    rollback: &mut Rollback,
) -> Result<(), Error> {
    let built = match mapped {
        Some(namespace) if mount.kind == "overlay" => {
            overlay::build_mapped(source, mount, options, place, namespace)
        }
        _ => build(source, mount, options, settings(mount, options)?),
    };
    let failure = match built {
        Ok(tree) => {
            if let Some(namespace) = mapped.filter(|_| mount.kind != "overlay") {
                namespace
                    .apply(&tree)
                    .map_err(|error| Error::system(format!("{mount}: map ids"), error))?;
            }
            return move_to(tree, mount, place, rollback);
        }
        Err(failure) => failure,
    };
    if !is_unknown(failure.errno) || mapped.is_some() {
        return Err(failure.of(mount, failure.errno));
    }
    old_way(source, mount, options, place).map_err(|error| match error {
        OldWay::Refused(errno) => failure.of(mount, errno),
        OldWay::Other(error) => error,
    })?;
    rollback.0.push(place.open()?);
    Ok(())
}

/// What a file system is configured with, and what must stay open until it is.
#[derive(Default)]
pub(super) struct Settings {
    pub list: Vec<(String, Option<String>)>,
    pub handles: Vec<OwnedFd>,
}

impl Settings {
    /// Adds a path, by a handle's name when it is too long for the kernel's interface.
    pub(super) fn path(&mut self, mount: &Mount, key: &str, path: &str) -> Result<(), Error> {
        let mut value = path.to_owned();
        if path.len() > LONGEST_VALUE {
            let opened = handle(path)
                .map_err(|errno| Error::system(format!("{mount}: open {path}"), errno))?;
            value = proc_path(&opened);
            self.handles.push(opened);
        }
        self.list.push((key.to_owned(), Some(value)));
        Ok(())
    }
}

fn settings(mount: &Mount, options: &Options) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    for option in &options.data {
        if mount.kind == "overlay" && overlay::settings(mount, option, &mut settings)? {
            continue;
        }
        settings.list.push(setting(option));
    }
    Ok(settings)
}

/// One option as key and value. The quotes that protect the commas of a context are not part of it.
pub(super) fn setting(option: &str) -> (String, Option<String>) {
    match option.split_once('=') {
        Some((key, value)) if key.ends_with("context") => {
            (key.to_owned(), Some(value.trim_matches('"').to_owned()))
        }
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (option.to_owned(), None),
    }
}

/// Where the kernel's newer calls failed, and what the file system said about it.
pub(super) struct Failure {
    step: String,
    pub errno: Errno,
    messages: String,
}

impl Failure {
    pub(super) fn new(step: impl Into<String>, errno: Errno) -> Self {
        Self { step: step.into(), errno, messages: String::new() }
    }

    fn of(&self, mount: &Mount, errno: Errno) -> Error {
        let action = format!("{mount}: {}", self.step);
        if self.messages.is_empty() {
            return Error::system(action, errno);
        }
        Error::Explained { action, source: errno.into(), messages: self.messages.clone() }
    }
}

/// Makes the file system, attached nowhere.
pub(super) fn build(
    source: &str,
    mount: &Mount,
    options: &Options,
    mut settings: Settings,
) -> Result<OwnedFd, Failure> {
    let context = fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Failure::new("open the file system", errno))?;
    let explain =
        |step: &str, errno| Failure { step: step.into(), errno, messages: said(&context) };
    if !source.is_empty() {
        settings
            .path(mount, "source", source)
            .map_err(|_| Failure::new(format!("open {source}"), Errno::NOENT))?;
    }
    let flags = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::LAZYTIME, "lazytime"),
        (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, "mand"),
    ];
    let flags = flags.into_iter().filter(|(flag, _)| options.set.contains(*flag));
    settings.list.extend(flags.map(|(_, name)| (name.to_owned(), None)));
    for (key, value) in &settings.list {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        }
        .map_err(|errno| explain(&format!("set option {key:?}"), errno))?;
    }
    fsconfig_create(&context).map_err(|errno| explain("create the file system", errno))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(options.set))
        .map_err(|errno| explain("make a mount of the file system", errno))
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOSYMFOLLOW, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        // These two exclude each other; noatime says more.
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .filter(|(flag, _)| *flag != MountFlags::STRICTATIME || !flags.contains(MountFlags::NOATIME))
    .fold(MountAttrFlags::empty(), |attributes, (_, attribute)| attributes | attribute)
}

/// The messages that the file system left for whoever configures it.
fn said(context: &OwnedFd) -> String {
    let mut messages = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        // Each begins with its level: "e ", "w " or "i ".
        let text = text.trim();
        messages.push(text.get(2..).unwrap_or(text).to_owned());
    }
    messages.join("; ")
}

/// Why mount(2) did not mount it.
enum OldWay {
    Refused(Errno),
    Other(Error),
}

/// Mounts by mount(2), all options in one text of at most a page.
fn old_way(
    source: &str,
    mount: &Mount,
    options: &Options,
    place: &Place<'_>,
) -> Result<(), OldWay> {
    let target = place.open().map_err(OldWay::Other)?;
    let target = proc_path(&target);
    let (text, from) = overlay::one_text(mount, options).map_err(OldWay::Other)?;
    let text = CString::new(text).map_err(|_| OldWay::Refused(Errno::INVAL))?;
    let call =
        || rustix::mount::mount(source, target.as_str(), mount.kind.as_str(), options.set, &*text);
    match from {
        None => call(),
        Some(dir) => overlay::in_folder(&dir, call),
    }
    .map_err(OldWay::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_loses_its_quotes_and_nothing_else_does() {
        let text = |option| setting(option).1.unwrap_or_default();
        assert_eq!(text("context=\"u:r:t:s0:c1,c2\""), "u:r:t:s0:c1,c2");
        assert_eq!(text("rootcontext=\"a\""), "a");
        assert_eq!(text("other=\"a\""), "\"a\"");
        assert_eq!(setting("noswap"), ("noswap".to_owned(), None));
    }

    #[test]
    fn both_ways_mount_the_same_thing() {
        let folder = tempfile::tempdir().unwrap();
        let tmpfs = Mount::new("tmpfs", "tmpfs", &["size=1m", "nosuid", "nodev", "mode=750"]);
        let options = Options::of(&tmpfs).unwrap();
        let place = Place { root: folder.path(), within: None };
        let line = || {
            let entry = crate::sys::mountinfo::read()
                .unwrap()
                .into_iter()
                .rfind(|entry| entry.target == folder.path())
                .unwrap();
            (entry.kind, entry.options, entry.super_options)
        };
        assert!(old_way("tmpfs", &tmpfs, &options, &place).is_ok());
        let old = line();
        super::super::unmount_all(folder.path()).unwrap();
        super::super::mount_all(&[tmpfs], folder.path()).unwrap();
        let new = line();
        super::super::unmount_all(folder.path()).unwrap();
        assert_eq!(old, new);
    }

    #[test]
    fn the_old_way_takes_layers_of_more_than_a_page_by_relative_paths() {
        let folder = tempfile::tempdir().unwrap();
        let layers = folder.path().join("layers-of-an-image");
        let lower: Vec<_> = (0..150)
            .map(|n| {
                let layer = layers.join(n.to_string());
                fs::create_dir_all(layer.join(format!("in-{n}"))).unwrap();
                layer.to_str().unwrap().to_owned()
            })
            .collect();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let lower = format!("lowerdir={}", lower.join(":"));
        assert!(lower.len() > LONGEST_DATA);
        let mount = Mount::new("overlay", "overlay", &[&lower]);
        let options = Options::of(&mount).unwrap();
        let place = Place { root: &root, within: None };
        assert!(old_way("overlay", &mount, &options, &place).is_ok());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 150);
        super::super::unmount_all(&root).unwrap();
    }
}
