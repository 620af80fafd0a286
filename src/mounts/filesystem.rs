//! A new instance of a file system, made by the kernel's newer calls (one option per call, so a thousand layers are no
//! trouble) and, where the kernel or the file system does not know those, by mount(2).

use std::{ffi::CString, fs, os::fd::OwnedFd};

use composefs_ioctls::loop_device::{flags, loopify_with_flags};
use rustix::io::Errno;

use super::{
    Error, Mount, UserNamespace,
    context::{Settings, build, setting},
    idmap::proc_path,
    mount::{Place, Rollback, is_unknown, move_to},
    options::Options,
    overlay,
};

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
        assert!(lower.len() > super::super::context::LONGEST_DATA);
        let mount = Mount::new("overlay", "overlay", &[&lower]);
        let options = Options::of(&mount).unwrap();
        let place = Place { root: &root, within: None };
        assert!(old_way("overlay", &mount, &options, &place).is_ok());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 150);
        super::super::unmount_all(&root).unwrap();
    }
}
