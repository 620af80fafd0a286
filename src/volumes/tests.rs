use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Error, volume::*};
use crate::{
    containerd::{
        Image,
        fake::{FakeContainerd, Fault},
    },
    error::{Code, Coded},
    id::Id,
    mounts::{
        Mount,
        kernel::{FakeKernel, Kernel, System},
        mount_all,
    },
    released::Released,
    sys::mountinfo,
};

const REFERENCE: &str = "registry.example/models:1";

struct Pod {
    folder: tempfile::TempDir,
    containerd: FakeContainerd,
    kernel: Arc<dyn Kernel>,
    record: ImageVolumeRecord,
}

impl Pod {
    fn with(kernel: Arc<dyn Kernel>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let content = folder.path().join("content");
        fs::create_dir_all(content.join("dir/deep")).unwrap();
        fs::write(content.join("dir/file"), "text").unwrap();
        let containerd = FakeContainerd::default();
        let image = Image { digest: "sha256:d".into(), chain: "sha256:c".into() };
        let mounts = vec![Mount::new("bind", content.to_str().unwrap(), &["rbind", "rw"])];
        containerd.add_image(REFERENCE, image, "overlayfs", mounts);
        let sandbox = Id::new("pod").unwrap();
        let dir = folder.path().join("run");
        let record = ImageVolumeRecord::plan(&dir, &sandbox, REFERENCE, None, Some("pod"));
        Self { folder, containerd, kernel, record }
    }

    fn content(&self) -> PathBuf {
        self.folder.path().join("content")
    }

    async fn acquire(&self) -> Result<(), Error> {
        acquire(&self.containerd, &self.kernel, &self.record, soon()).await
    }

    async fn release(&self) -> Result<Released, Error> {
        release(&self.containerd, &self.kernel, &self.record, soon()).await
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn system() -> Arc<dyn Kernel> {
    Arc::new(System)
}

#[tokio::test]
async fn a_volume_is_mounted_once_read_only_and_goes_without_a_trace() {
    let pod = Pod::with(system());
    pod.acquire().await.unwrap();
    pod.acquire().await.unwrap();
    let entries = mountinfo::read().unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.target == pod.record.target).count(), 1);
    assert_eq!(pod.containerd.calls().iter().filter(|call| call.starts_with("view")).count(), 1);
    assert!(fs::write(pod.record.target.join("dir/file"), "").is_err());
    assert_eq!(pod.containerd.snapshots().len(), 1);
    assert_eq!(pod.release().await.unwrap(), Released::Done);
    assert!(pod.containerd.snapshots().is_empty());
    assert!(!pod.folder.path().join("run").exists());
    assert_eq!(pod.release().await.unwrap(), Released::AlreadyGone);
}

#[tokio::test]
async fn every_layer_of_a_busy_volume_goes() {
    let pod = Pod::with(system());
    pod.acquire().await.unwrap();
    let tmpfs = Mount::new("tmpfs", "tmpfs", &[]);
    mount_all(&[tmpfs.clone(), tmpfs], &pod.record.target).unwrap();
    let held = fs::File::create(pod.record.target.join("held")).unwrap();
    assert_eq!(pod.release().await.unwrap(), Released::Done);
    assert!(!mountinfo::is_mounted(&pod.record.target).unwrap());
    drop(held);
}

#[tokio::test]
async fn a_release_that_failed_halfway_is_finished_by_the_next() {
    let fake = Arc::new(FakeKernel::default());
    let pod = Pod::with(fake.clone());
    pod.acquire().await.unwrap();
    fake.refuse("unmount_all", 1, 16);
    pod.release().await.unwrap_err();
    assert_eq!(pod.containerd.snapshots().len(), 1);
    pod.containerd.fault_once("remove_snapshot", Fault::CloseBefore);
    let error = pod.release().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.to_string().contains(REFERENCE), "{error}");
    assert!(fake.mounted().is_empty());
    assert_eq!(pod.release().await.unwrap(), Released::Done);
    assert!(!pod.record.target.exists());
}

#[tokio::test]
async fn what_a_failed_acquire_left_is_released_by_the_plan() {
    let fake = Arc::new(FakeKernel::default());
    let pod = Pod::with(fake.clone());
    fake.refuse("mount_all", 1, 12);
    pod.acquire().await.unwrap_err();
    assert_eq!(pod.release().await.unwrap(), Released::Done);
    assert!(pod.containerd.snapshots().is_empty());
    assert!(!pod.folder.path().join("run").exists());
}

#[tokio::test]
async fn an_unknown_image_is_not_found_and_named() {
    let mut pod = Pod::with(system());
    pod.record.reference = "registry.example/other:1".into();
    let error = pod.acquire().await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.to_string().contains("registry.example/other:1"), "{error}");
}

#[tokio::test]
async fn sub_paths_stay_within_the_image() {
    let pod = Pod::with(system());
    let content = pod.content();
    symlink("../../../../../../etc/passwd", content.join("up")).unwrap();
    symlink("/dir/file", content.join("absolute")).unwrap();
    symlink("circle", content.join("circle")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        content.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    pod.acquire().await.unwrap();
    let at = |sub: &str| resolve(&pod.record, Some(Path::new(sub)));
    assert_eq!(resolve(&pod.record, None).unwrap(), pod.record.target);
    assert_eq!(at("dir/deep").unwrap(), pod.record.target.join("dir/deep"));
    assert_eq!(at("./dir/./file").unwrap(), pod.record.target.join("dir/file"));
    // The image's root is the root for its links.
    assert_eq!(at("absolute").unwrap(), pod.record.target.join("dir/file"));
    for (sub, code) in [
        ("up", Code::NotFound),
        ("absent", Code::NotFound),
        ("dir/file/x", Code::NotFound),
        ("circle", Code::InvalidArgument),
        ("fifo", Code::InvalidArgument),
        ("../x", Code::InvalidArgument),
        ("dir/../../x", Code::InvalidArgument),
        ("/dir", Code::InvalidArgument),
    ] {
        let error = at(sub).unwrap_err();
        assert_eq!(error.code(), code, "{sub}: {error}");
        assert!(error.to_string().contains(sub), "{error}");
    }
    pod.release().await.unwrap();
}

#[test]
fn records_are_read_back_and_differ_by_image() {
    let sandbox = Id::new("pod").unwrap();
    let plan = |reference| {
        ImageVolumeRecord::plan(Path::new("/run/pod"), &sandbox, reference, Some("native"), None)
    };
    let record = plan("a");
    assert_eq!(record, plan("a"));
    assert_ne!(record.key, plan("b").key);
    assert_ne!(record.target, plan("b").target);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<ImageVolumeRecord>(&text).unwrap(), record);
}
