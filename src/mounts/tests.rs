//! Real mounts, so these need root.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::*;
use crate::{
    error::{Code, Coded},
    process::testing::TestChild,
    sys::mountinfo,
};

/// A folder that is rid of its mounts before it goes.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn mounts(&self) -> Vec<mountinfo::Entry> {
        let mut entries = mountinfo::read().unwrap();
        entries.retain(|entry| entry.target.starts_with(self.0.path()));
        entries
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let all = mountinfo::read().unwrap().into_iter().rev();
        for entry in all.filter(|entry| entry.target.starts_with(self.0.path())) {
            unmount_all(&entry.target).unwrap();
        }
    }
}

fn layer(folder: &Folder, name: &str) -> String {
    let path = folder.dir(name);
    fs::write(path.join(name.rsplit('/').next().unwrap()), name).unwrap();
    path.to_str().unwrap().to_owned()
}

fn overlay(folder: &Folder, lower: &[String]) -> Mount {
    let tmpfs = folder.dir("writable");
    mount_all(&[Mount::new("tmpfs", "tmpfs", &[])], &tmpfs).unwrap();
    let (upper, work) = (folder.dir("writable/upper"), folder.dir("writable/work"));
    Mount::new(
        "overlay",
        "overlay",
        &[
            "index=off",
            &format!("workdir={}", work.display()),
            &format!("upperdir={}", upper.display()),
            &format!("lowerdir={}", lower.join(":")),
        ],
    )
}

#[test]
fn an_overlay_may_have_hundreds_of_layers() {
    let folder = Folder::new();
    let lower: Vec<_> =
        (0..400).map(|n| layer(&folder, &format!("layers-of-an-image/{n}"))).collect();
    let root = folder.dir("root");
    mount_all(&[overlay(&folder, &lower)], &root).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 400);
    fs::write(root.join("new"), "").unwrap();
    assert!(folder.dir("writable/upper").join("new").exists());
}

#[test]
fn an_overlays_paths_may_be_longer_than_the_kernels_strings() {
    let folder = Folder::new();
    let long = format!("{}/{}", "x".repeat(200), "y".repeat(200));
    let lower = [layer(&folder, &long), layer(&folder, "short")];
    let root = folder.dir("root");
    mount_all(&[overlay(&folder, &lower)], &root).unwrap();
    assert!(root.join("short").exists());
    assert!(root.join("y".repeat(200)).exists());
}

#[test]
fn a_bind_mount_takes_its_flags_and_keeps_what_its_source_forbids() {
    let folder = Folder::new();
    let source = folder.dir("source");
    mount_all(&[Mount::new("tmpfs", "tmpfs", &["nosuid", "noexec"])], &source).unwrap();
    let root = folder.dir("root");
    let bind = Mount::new("bind", source.to_str().unwrap(), &["rbind", "ro", "exec", "rprivate"]);
    mount_all(&[bind], &root).unwrap();
    let entry = folder.mounts().into_iter().find(|entry| entry.target == root).unwrap();
    let has = |flag: &str| entry.options.split(',').any(|option| option == flag);
    assert!(has("ro") && has("nosuid") && !has("noexec"), "{entry:?}");
    fs::write(source.join("file"), "").unwrap();
    assert!(fs::write(root.join("file"), "").is_err());
}

#[test]
fn targets_are_resolved_within_the_root() {
    let folder = Folder::new();
    let root = folder.dir("root");
    fs::create_dir_all(folder.dir("root/etc")).unwrap();
    let outside = folder.dir("outside");
    symlink("../../../../../../../../etc", root.join("link")).unwrap();
    symlink(&outside, root.join("absolute")).unwrap();
    let mut mount = Mount::new("tmpfs", "tmpfs", &[]);
    mount.target = Some("link".into());
    mount_all(std::slice::from_ref(&mount), &root).unwrap();
    assert!(mountinfo::is_mounted(&root.join("etc")).unwrap());
    // The absolute link points to a folder that is not within the root.
    mount.target = Some("absolute".into());
    let error = mount_all(&[mount], &root).unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(!mountinfo::is_mounted(&outside).unwrap());
}

#[test]
fn a_failure_takes_back_what_was_mounted_before() {
    let folder = Folder::new();
    let root = folder.dir("root");
    let good = Mount::new("tmpfs", "tmpfs", &[]);
    for (bad, code) in [
        (Mount::new("ext4", "/nonexistent/disk", &[]), Code::NotFound),
        (Mount::new("bind", "/nonexistent/folder", &[]), Code::NotFound),
        (Mount::new("tmpfs", "tmpfs", &["size=nonsense"]), Code::InvalidArgument),
        (Mount::new("no-such-file-system", "x", &[]), Code::Unknown),
    ] {
        let error = mount_all(&[good.clone(), good.clone(), bad.clone()], &root).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(&bad.kind), "{error}");
        assert_eq!(folder.mounts(), []);
    }
}

#[test]
fn the_file_systems_own_words_are_in_the_error() {
    let folder = Folder::new();
    let bad = Mount::new("tmpfs", "tmpfs", &["nosuchoption=1"]);
    let error = mount_all(&[bad], &folder.dir("root")).unwrap_err();
    assert!(error.to_string().contains("nosuchoption"), "{error}");
}

#[test]
fn what_is_for_containerds_mount_manager_is_refused_before_anything_is_mounted() {
    let folder = Folder::new();
    let root = folder.dir("root");
    let good = Mount::new("tmpfs", "tmpfs", &[]);
    for bad in [
        Mount::new("format/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}"]),
        Mount::new("overlay", "overlay", &["X-containerd.mkdir.path=/x:0755"]),
        Mount::new("fuse3.anything", "x", &[]),
        Mount::new("bind", "/etc", &["uidmap=0:1000:1", "gidmap=0:1000:1"]),
        Mount::new("bind", "/etc", &["remount", "ro"]),
    ] {
        let error = mount_all(&[good.clone(), bad], &root).unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
        assert_eq!(folder.mounts(), []);
    }
}

#[test]
fn an_image_file_is_mounted_by_a_loop_device_that_goes_with_it() {
    let folder = Folder::new();
    let image = folder.0.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let mut made =
        TestChild::start(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).arg(&image));
    assert_eq!(made.status(), 0);
    let root = folder.dir("root");
    mount_all(&[Mount::new("ext4", image.to_str().unwrap(), &["loop", "ro"])], &root).unwrap();
    let entry = folder.mounts().pop().unwrap();
    assert!(entry.source.starts_with("/dev/loop"), "{entry:?}");
    assert!(root.join("lost+found").exists());
    unmount_all(&root).unwrap();
    let backing = format!("/sys/block/{}/loop/backing_file", &entry.source["/dev/".len()..]);
    let backing = fs::read_to_string(backing).unwrap_or_default();
    assert!(!backing.starts_with(image.to_str().unwrap()), "{backing}");
}

#[test]
fn an_erofs_image_is_mounted() {
    let folder = Folder::new();
    let (content, image) = (folder.dir("content"), folder.0.path().join("image"));
    fs::write(content.join("file"), "text").unwrap();
    let mut made = TestChild::start(Command::new("mkfs.erofs").args([&image, &content]));
    assert_eq!(made.status(), 0);
    let root = folder.dir("root");
    mount_all(&[Mount::new("erofs", image.to_str().unwrap(), &["loop", "ro"])], &root).unwrap();
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "text");
    assert_eq!(folder.mounts().len(), 1);
}

/// A process in a user namespace of its own; it ends when this is dropped.
struct Mapped(std::process::Child);

impl Mapped {
    fn new(outside: u32) -> Self {
        let mut child = Command::new("unshare")
            .args(["-U", "sh", "-c", "echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first byte says that the namespace is there.
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        for name in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{name}", child.id());
            fs::write(path, format!("0 {outside} 65536")).unwrap();
        }
        Self(child)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Another test's reaper may have been quicker.
        let _ = self.0.wait();
    }
}

#[test]
fn an_overlays_layers_are_shown_under_the_pods_ids() {
    let folder = Folder::new();
    let lower = [layer(&folder, "one"), layer(&folder, "two")];
    let mut mount = overlay(&folder, &lower);
    mount.options.extend(["uidmap=0:100000:65536".into(), "gidmap=0:100000:65536".into()]);
    let pod = Mapped::new(100_000);
    let namespace = UserNamespace::of_process(pod.0.id()).unwrap();
    let root = folder.dir("root");
    mount_all_mapped(std::slice::from_ref(&mount), &root, &namespace).unwrap();
    for name in ["one", "two"] {
        let file = fs::metadata(root.join(name)).unwrap();
        assert_eq!((file.uid(), file.gid()), (100_000, 100_000));
    }
    // One mount on the root, whatever served on the way.
    assert_eq!(folder.mounts().iter().filter(|entry| entry.target == root).count(), 1);

    mount.options.retain(|option| !option.starts_with("uidmap="));
    mount.options.push("uidmap=0:200000:65536".into());
    let error = mount_all_mapped(&[mount], &root, &namespace).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

#[test]
fn layers_are_taken_from_attached_mounts_where_the_kernel_wants_it() {
    let folder = Folder::new();
    let lower = [layer(&folder, "one"), layer(&folder, "two")];
    let mut mount = overlay(&folder, &lower);
    mount.options.extend(["uidmap=0:100000:65536".into(), "gidmap=0:100000:65536".into()]);
    let pod = Mapped::new(100_000);
    let namespace = UserNamespace::of_process(pod.0.id()).unwrap();
    let root = folder.dir("root");
    let options = options::Options::of(&mount).unwrap();
    let place = mount::Place { root: &root, within: None };
    let built = overlay::build_mapped_from("overlay", &mount, &options, Some(&place), &namespace);
    let Ok(tree) = built else { panic!("the overlay is refused") };
    assert!(!mountinfo::is_mounted(&root).unwrap());
    super::mount::move_to_handle(&tree, place.open().unwrap()).unwrap();
    assert_eq!(fs::metadata(root.join("two")).unwrap().uid(), 100_000);
}

#[test]
fn a_bind_mount_is_shown_under_the_pods_ids() {
    let folder = Folder::new();
    let source = layer(&folder, "source");
    let pod = Mapped::new(300_000);
    let namespace = UserNamespace::of_process(pod.0.id()).unwrap();
    let root = folder.dir("root");
    let options = ["bind", "uidmap=0:300000:65536", "gidmap=0:300000:65536"];
    mount_all_mapped(&[Mount::new("bind", &source, &options)], &root, &namespace).unwrap();
    assert_eq!(fs::metadata(root.join("source")).unwrap().uid(), 300_000);
    assert_eq!(fs::metadata(Path::new(&source).join("source")).unwrap().uid(), 0);
}
