//! A file system being made by the kernel's newer calls: fsopen(2), fsconfig(2) one option at a time, fsmount(2).

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use super::{Error, Mount, idmap::proc_path, mount::handle, options::Options};

/// The longest value that fsconfig(2) takes as a string.
const LONGEST_VALUE: usize = 255;
/// The longest text of options that mount(2) takes.
pub(super) const LONGEST_DATA: usize = 4095;

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

    pub(super) fn of(&self, mount: &Mount, errno: Errno) -> Error {
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
}
