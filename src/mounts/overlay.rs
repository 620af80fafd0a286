//! Overlays: any number of layers, of paths of any length, with mapped ids where a pod has a user namespace.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::sched::CloneFlags;
use rustix::io::Errno;

use super::{
    Error, Mount, UserNamespace,
    context::{Failure, LONGEST_DATA, Settings, build, setting},
    idmap::proc_path,
    mount::{Place, Rollback, clone_tree, is_unknown, move_to_handle},
    options::Options,
};

/// The layers of a `lowerdir=`, topmost first; those after a `::` serve for data only.
struct Layers {
    lower: Vec<String>,
    data: Vec<String>,
}

/// Splits at colons that are not escaped by a backslash.
fn layers(mount: &Mount, text: &str) -> Result<Layers, Error> {
    let mut all = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match c {
            _ if escaped => escaped = push(&mut all, c),
            '\\' => escaped = true,
            ':' => all.push(String::new()),
            _ => escaped = push(&mut all, c),
        }
    }
    let mut layers = Layers { lower: Vec::new(), data: Vec::new() };
    let mut all = all.into_iter().peekable();
    let empty = || Error::invalid(mount.to_string(), "an empty path among its lower layers");
    while let Some(layer) = all.next() {
        if !layer.is_empty() {
            let list = if layers.data.is_empty() { &mut layers.lower } else { &mut layers.data };
            list.push(layer);
            continue;
        }
        // The empty part within "a::b".
        let next = all.next().filter(|next| !next.is_empty()).ok_or_else(empty)?;
        if layers.lower.is_empty() {
            return Err(empty());
        }
        layers.data.push(next);
    }
    Ok(layers)
}

/// Appends to the last text; always false, for "no longer escaped".
fn push(all: &mut [String], c: char) -> bool {
    if let Some(last) = all.last_mut() {
        last.push(c);
    }
    false
}

/// Adds an option that holds paths, one layer at a time; false for any other option.
pub(super) fn settings(
    mount: &Mount,
    option: &str,
    settings: &mut Settings,
) -> Result<bool, Error> {
    match option.split_once('=') {
        Some(("lowerdir", text)) => {
            let layers = layers(mount, text)?;
            for path in &layers.lower {
                settings.path(mount, "lowerdir+", path)?;
            }
            for path in &layers.data {
                settings.path(mount, "datadir+", path)?;
            }
            Ok(true)
        }
        Some((key @ ("upperdir" | "workdir" | "lowerdir+" | "datadir+"), path)) => {
            settings.path(mount, key, path)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Makes an overlay whose lower layers have their ids mapped; the upper one is the container's own already.
pub(super) fn build_mapped(
    source: &str,
    mount: &Mount,
    options: &Options,
    place: &Place<'_>,
    namespace: &UserNamespace,
) -> Result<OwnedFd, Failure> {
    // Kernels before 6.15 take layers only from mounts that are attached somewhere.
    match build_mapped_from(source, mount, options, None, namespace) {
        Err(failure) if is_unknown(failure.errno) => {
            build_mapped_from(source, mount, options, Some(place), namespace)
        }
        built => built,
    }
}

pub(super) fn build_mapped_from(
    source: &str,
    mount: &Mount,
    options: &Options,
    attached_to: Option<&Place<'_>>,
    namespace: &UserNamespace,
) -> Result<OwnedFd, Failure> {
    let refused = |_| Failure::new("read its options", Errno::INVAL);
    let mut configured = Settings::default();
    // The place itself serves as the place for layers: it is empty now, and is again when this is dropped. The overlay
    // has private copies of them then.
    let mut attached = Rollback(Vec::new());
    for option in &options.data {
        let Some(("lowerdir", text)) = option.split_once('=') else {
            if !settings(mount, option, &mut configured).map_err(refused)? {
                configured.list.push(setting(option));
            }
            continue;
        };
        let layers = layers(mount, text).map_err(refused)?;
        let lower = layers.lower.iter().map(|path| ("lowerdir+", path));
        for (key, path) in lower.chain(layers.data.iter().map(|path| ("datadir+", path))) {
            let tree = clone_tree(path, false)
                .map_err(|errno| Failure::new(format!("clone layer {path}"), errno))?;
            namespace.apply(&tree).map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
                Failure::new(format!("map ids of layer {path}"), errno)
            })?;
            configured.list.push((key.to_owned(), Some(proc_path(&tree))));
            match attached_to {
                None => configured.handles.push(tree),
                Some(place) => {
                    let target =
                        place.open().map_err(|_| Failure::new("open its target", Errno::NOENT))?;
                    move_to_handle(&tree, &target)
                        .map_err(|errno| Failure::new(format!("attach layer {path}"), errno))?;
                    attached.0.push(tree);
                }
            }
        }
    }
    build(source, mount, options, configured)
}

/// The options as one text for mount(2), if need be with lower layers relative to a folder that is to be the current
/// one, so that more of them fit into a page.
pub(super) fn one_text(
    mount: &Mount,
    options: &Options,
) -> Result<(String, Option<PathBuf>), Error> {
    let text = options.data.join(",");
    if text.len() <= LONGEST_DATA {
        return Ok((text, None));
    }
    let shortened = options.data.iter().find_map(|option| {
        let lower = option.strip_prefix("lowerdir=").filter(|_| mount.kind == "overlay")?;
        let (dir, relative) = relative_to_common(lower)?;
        let others = options.data.iter().filter(|other| *other != option).map(String::as_str);
        let first = format!("lowerdir={relative}");
        let text = std::iter::once(first.as_str()).chain(others).collect::<Vec<_>>().join(",");
        (text.len() <= LONGEST_DATA).then_some((text, Some(dir)))
    });
    shortened.ok_or_else(|| {
        let reason = format!(
            "its options have {} bytes and this kernel takes at most {LONGEST_DATA}",
            text.len()
        );
        Error::unimplemented(mount.to_string(), reason)
    })
}

fn relative_to_common(lower: &str) -> Option<(PathBuf, String)> {
    if lower.contains('\\') {
        return None;
    }
    let paths: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut common = paths.first()?.parent()?.to_path_buf();
    while !paths.iter().all(|path| path.parent().is_some_and(|dir| dir.starts_with(&common))) {
        common = common.parent()?.to_path_buf();
    }
    let relative: Option<Vec<&str>> =
        paths.iter().map(|path| path.strip_prefix(&common).ok()?.to_str()).collect();
    Some((common, relative?.join(":")))
}

/// Does `call` with `dir` as the current folder of nobody else: in a thread that shares none with the process.
pub(super) fn in_folder(
    dir: &Path,
    call: impl FnOnce() -> rustix::io::Result<()> + Send,
) -> rustix::io::Result<()> {
    let in_thread = || {
        nix::sched::unshare(CloneFlags::CLONE_FS)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
        rustix::process::chdir(dir)?;
        call()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, in_thread);
        thread.map_or(Err(Errno::AGAIN), |thread| thread.join().unwrap_or(Err(Errno::IO)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay() -> Mount {
        Mount::new("overlay", "overlay", &[])
    }

    #[test]
    fn layers_are_split_at_colons_that_are_not_escaped() {
        let layers = layers(&overlay(), "/a\\:b:/c::/d::/e").unwrap();
        assert_eq!(layers.lower, ["/a:b", "/c"]);
        assert_eq!(layers.data, ["/d", "/e"]);
    }

    #[test]
    fn an_empty_layer_is_refused() {
        for text in ["", ":/a", "/a:", "/a:::/b", "::/a"] {
            assert!(layers(&overlay(), text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn layers_become_relative_to_their_common_folder_when_the_page_is_too_small() {
        let lower: Vec<_> = (0..200).map(|n| format!("/var/lib/snapshots/{n}/fs")).collect();
        let lower = format!("lowerdir={}", lower.join(":"));
        let mount = Mount::new("overlay", "overlay", &["upperdir=/u", &lower, "workdir=/w"]);
        let options = Options::of(&mount).unwrap();
        let (text, dir) = one_text(&mount, &options).unwrap();
        assert_eq!(dir.unwrap(), Path::new("/var/lib/snapshots"));
        assert!(text.starts_with("lowerdir=0/fs:1/fs:"), "{text}");
        assert!(text.ends_with("199/fs,upperdir=/u,workdir=/w"), "{text}");
    }

    #[test]
    fn what_does_not_fit_into_a_page_is_refused_with_its_size() {
        let long = format!("lowerdir=/{}:/b", "x".repeat(5000));
        let mount = Mount::new("overlay", "overlay", &[&long]);
        let error = one_text(&mount, &Options::of(&mount).unwrap()).unwrap_err();
        assert!(error.to_string().contains("4095"), "{error}");
    }

    #[test]
    fn the_current_folder_of_the_process_stays() {
        let before = std::env::current_dir().unwrap();
        in_folder(Path::new("/proc"), || {
            let stat = rustix::fs::stat("self/mountinfo");
            stat.map(|_| ())
        })
        .unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
