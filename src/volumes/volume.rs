//! Image volumes: an image's content, mounted read-only once per pod and shared by its containers.
//!
//! What a volume will be is known before anything is done ([`ImageVolumeRecord::plan`]), so the journal can have it
//! first: whatever an [`acquire`] that failed or was killed has left, [`release`] of the same record takes away.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{fs::OFlags, io::Errno};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Error;
use crate::{
    containerd::{Containerd, DEFAULT_SNAPSHOTTER, View},
    id::Id,
    mounts::{self, Mount, files::remove_if_empty, kernel::Kernel, open_within, proc_path},
    released::Released,
};

/// An image volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolumeRecord {
    /// The image's name, as containerd knows it.
    pub reference: String,
    /// Where its content is mounted.
    pub target: PathBuf,
    pub snapshotter: String,
    pub key: String,
    /// The lease that keeps the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

impl ImageVolumeRecord {
    /// The volume of image `reference` in `sandbox`, below the pod's volatile folder `dir`. The same arguments give the
    /// same volume.
    pub fn plan(
        dir: &Path,
        sandbox: &Id,
        reference: &str,
        snapshotter: Option<&str>,
        lease: Option<&str>,
    ) -> Self {
        let hash = crate::containerd::hex(&Sha256::digest(reference));
        Self {
            reference: reference.to_owned(),
            target: dir.join("images").join(&hash),
            snapshotter: snapshotter.unwrap_or(DEFAULT_SNAPSHOTTER).to_owned(),
            key: format!("mooring-{sandbox}-{hash}"),
            lease: lease.map(str::to_owned),
        }
    }
}

/// Mounts the volume, unless that is done already. One at a time for the same record: it is the pod that has the volume,
/// and its containers only use it.
pub async fn acquire(
    containerd: &dyn Containerd,
    kernel: &Arc<dyn Kernel>,
    record: &ImageVolumeRecord,
    deadline: Instant,
) -> Result<(), Error> {
    let target = record.target.clone();
    if blocking(kernel, move |kernel| kernel.is_mounted(&target)).await? {
        return Ok(());
    }
    let failed = |source| Error::Image { reference: record.reference.clone(), source };
    let image = containerd.image_chain(&record.reference, deadline).await.map_err(failed)?;
    let view = View {
        snapshotter: record.snapshotter.clone(),
        key: record.key.clone(),
        parent: image.chain,
        lease: record.lease.clone(),
    };
    let mut mounts = containerd.view_snapshot(&view, deadline).await.map_err(failed)?;
    mounts.iter_mut().for_each(make_read_only);
    let target = record.target.clone();
    blocking(kernel, move |kernel| {
        fs::create_dir_all(&target).map_err(|error| mounts::Error::at("make", &target, error))?;
        kernel.mount_all(&mounts, &target)
    })
    .await?;
    Ok(())
}

/// A view is read-only by its nature, and is mounted so whatever the snapshotter says.
fn make_read_only(mount: &mut Mount) {
    mount.options.retain(|option| option != "rw");
    if !mount.options.iter().any(|option| option == "ro") {
        mount.options.push("ro".to_owned());
    }
}

/// Unmounts every layer of the volume and removes its snapshot and folders. What is not there is no error.
pub async fn release(
    containerd: &dyn Containerd,
    kernel: &Arc<dyn Kernel>,
    record: &ImageVolumeRecord,
    deadline: Instant,
) -> Result<Released, Error> {
    let target = record.target.clone();
    let unmounted = blocking(kernel, move |kernel| kernel.unmount_all(&target)).await?;
    let removed = containerd
        .remove_snapshot(&record.snapshotter, &record.key, deadline)
        .await
        .map_err(|source| Error::Image { reference: record.reference.clone(), source })?;
    let target = record.target.clone();
    let folder = blocking(kernel, move |_| remove_folder(&target)).await?;
    Ok(unmounted.and(removed).and(folder))
}

/// Removes the volume's folder, and those above it with the last of the pod's volumes.
fn remove_folder(target: &Path) -> Result<Released, mounts::Error> {
    let folder = match fs::remove_dir(target) {
        Ok(()) => Released::Done,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Released::AlreadyGone,
        Err(error) => return Err(mounts::Error::at("remove", target, error)),
    };
    if let Some(images) = target.parent() {
        remove_if_empty(images)?;
        images.parent().map_or(Ok(()), remove_if_empty)?;
    }
    Ok(folder)
}

async fn blocking<T: Send + 'static>(
    kernel: &Arc<dyn Kernel>,
    call: impl FnOnce(&dyn Kernel) -> Result<T, mounts::Error> + Send + 'static,
) -> Result<T, mounts::Error> {
    let kernel = Arc::clone(kernel);
    tokio::task::spawn_blocking(move || call(&*kernel)).await.unwrap_or_else(|error| {
        // Only a panic in the call, or the end of the runtime.
        Err(mounts::Error::system("run a blocking call", io::Error::other(error)))
    })
}

/// The path on the node of `sub` within a mounted volume: without symlinks, within the volume whatever the image has in
/// it. Only files and folders will do. Blocking, for a moment.
pub fn resolve(record: &ImageVolumeRecord, sub: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(sub) = sub.filter(|sub| !sub.as_os_str().is_empty()) else {
        return Ok(record.target.clone());
    };
    let shown = sub.display();
    let invalid = |reason: &str| -> Error {
        let what = format!("image volume {:?}: sub path {shown}", record.reference);
        mounts::Error::invalid(what, reason).into()
    };
    if sub.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(invalid("it has to be relative and without \"..\""));
    }
    let root = rustix::fs::open(
        &record.target,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|errno| mounts::Error::at("open image volume", &record.target, errno))?;
    let found = open_within(&root, sub, OFlags::PATH).map_err(|error| match errno_of(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => {
            Error::NoSuchPath { reference: record.reference.clone(), path: shown.to_string() }
        }
        Some(Errno::LOOP | Errno::XDEV) => invalid("it leads in circles or out of the image"),
        _ => error.into(),
    })?;
    let kind = rustix::fs::fstat(&found)
        .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode))
        .map_err(|errno| mounts::Error::at("look at", sub, errno))?;
    if !kind.is_dir() && !kind.is_file() {
        return Err(invalid("it is neither a file nor a folder"));
    }
    let path = |fd| {
        fs::read_link(proc_path(fd))
            .map_err(|error| mounts::Error::at("find the path of", sub, error))
    };
    let (root, found) = (path(&root)?, path(&found)?);
    // By construction; a mount that was moved in between would break it.
    if !found.starts_with(&root) {
        return Err(invalid("it leads out of the image"));
    }
    Ok(found)
}

fn errno_of(error: &mounts::Error) -> Option<Errno> {
    match error {
        mounts::Error::System { source, .. } => Errno::from_io_error(source),
        _ => None,
    }
}
