//! The image: one layer with what is installed, in an archive of the OCI image layout, which `ctr images import`, `kind
//! load image-archive` and registries' tools take.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::archive::tar;
use crate::tree::{self, Entry, Sources, What};
use crate::{digest, write};

/// What the image is called where it is loaded; it is in no registry.
pub const NAME: &str = "localhost/mooring";
/// Where the node's root is to be mounted.
const HOST: &str = "/host";

/// Makes the archive in the folder `out` and answers where.
pub fn make(from: &Sources, version: &str, out: &Path) -> Result<PathBuf> {
    let image = layout(&tree::installed(from)?, version, from.time)?;
    write(out, &format!("mooring-{version}-image.tar"), &tar(&image, "", from.time)?)
}

/// The image layout as files.
fn layout(installed: &[Entry], version: &str, time: u64) -> Result<Vec<Entry>> {
    let archive = tar(installed, "", time)?;
    let mut all = Vec::new();
    let mut blob = |kind: &str, content: Vec<u8>| {
        let digest = digest(&content);
        let about = json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        });
        all.push(file(format!("blobs/sha256/{digest}"), content));
        about
    };
    let layer = blob("layer.v1.tar+gzip", tree::gzip(&archive)?);
    let config = json!({
        "created": rfc3339(time)?,
        "architecture": architecture()?,
        "os": "linux",
        "config": {
            "User": "0:0",
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["/usr/bin/mooring"],
            "Cmd": ["install", "--root", HOST, "--restart"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "mooring",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&archive))] },
        "history": [{ "created": rfc3339(time)?, "created_by": "make image" }],
    });
    let config = blob("config.v1+json", bytes(&config)?);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob("manifest.v1+json", bytes(&manifest)?);
    manifest["platform"] = json!({ "architecture": architecture()?, "os": "linux" });
    manifest["annotations"] = json!({
        // containerd's name for it, and everybody else's.
        "io.containerd.image.name": format!("{NAME}:{version}"),
        "org.opencontainers.image.ref.name": version,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    all.push(file("index.json", bytes(&index)?));
    all.push(file("oci-layout", bytes(&json!({ "imageLayoutVersion": "1.0.0" }))?));
    all.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(all)
}

fn file(path: impl Into<String>, content: Vec<u8>) -> Entry {
    Entry { path: path.into(), what: What::File { mode: 0o644, content } }
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// As images name it, which is as Go does.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("no image is made for {other}"),
    }
}

fn rfc3339(time: u64) -> Result<String> {
    let at = format!("@{time}");
    let text = tree::run(std::process::Command::new("date").args(["-u", "-d", &at, "+%FT%TZ"]));
    Ok(text.context("the time of the image")?.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest, OciLayout};

    use super::*;

    fn content<'a>(all: &'a [Entry], path: &str) -> &'a [u8] {
        match &all.iter().find(|entry| entry.path == path).unwrap().what {
            What::File { content, .. } => content,
            What::Link(_) => panic!("{path} is a link"),
        }
    }

    #[test]
    fn the_specifications_types_read_it_and_every_digest_is_right() {
        let one = file("usr/bin/mooring", b"program".to_vec());
        let all = layout(&[one], "1.2.3", 86400).unwrap();
        let read = OciLayout::from_reader(content(&all, "oci-layout")).unwrap();
        assert_eq!(read.image_layout_version(), "1.0.0");
        let index = ImageIndex::from_reader(content(&all, "index.json")).unwrap();
        let blob = |about: &oci_spec::image::Descriptor| {
            let content = content(&all, &format!("blobs/sha256/{}", about.digest().digest()));
            assert_eq!(digest(content), about.digest().digest());
            assert_eq!(content.len() as u64, about.size());
            content
        };
        let manifest = ImageManifest::from_reader(blob(&index.manifests()[0])).unwrap();
        let config = ImageConfiguration::from_reader(blob(manifest.config())).unwrap();
        assert_eq!(config.created().as_deref(), Some("1970-01-02T00:00:00Z"));
        let mut layer = Vec::new();
        let mut unpacked = flate2::read::GzDecoder::new(blob(&manifest.layers()[0]));
        std::io::Read::read_to_end(&mut unpacked, &mut layer).unwrap();
        assert_eq!(config.rootfs().diff_ids()[..], [format!("sha256:{}", digest(&layer))]);
        let mut archive = ::tar::Archive::new(layer.as_slice());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned())
            .collect();
        assert!(names.contains(&PathBuf::from("usr/bin/mooring")), "{names:?}");
    }
}
