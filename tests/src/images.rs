//! The images of tests and demo, made by hand out of busybox, since no registry is reachable. The same input gives the
//! same bytes: an image's digest does not change between runs.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The image that containers run: every applet of busybox in /bin, users root, app (1000) and nobody (65534).
pub const IMAGE: &str = "docker.io/library/mooring-test:latest";
/// An image of files, for image volumes, among them a symlink that tries to leave the image.
pub const DATA_IMAGE: &str = "docker.io/library/mooring-data:latest";
/// One static program that waits for ever: what podsandbox keeps a pod with.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";

/// Like a real pause: reaps what it inherits as init, ends on the usual signals.
const PAUSE: &str = "
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int sig) { (void)sig; _exit(0); }
static void reap(int sig) { (void)sig; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
int main(void) {
	signal(SIGINT, leave);
	signal(SIGTERM, leave);
	signal(SIGCHLD, reap);
	for (;;) pause();
}
";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n\
    nobody:x:65534:65534:nobody:/home:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\nextra:x:2000:app\nnobody:x:65534:\n";

/// Makes those that are missing among the prerequisites; returns each one's reference and file.
pub fn ensure_all(deps: &Path) -> Result<[(&'static str, PathBuf); 3]> {
    let folder = deps.join("images");
    let at = |name: &str| folder.join(format!("{name}.tar"));
    let all = [(IMAGE, at("busybox")), (DATA_IMAGE, at("data")), (PAUSE_IMAGE, at("pause"))];
    for (reference, file) in &all {
        if !file.exists() {
            make(deps, reference, file).with_context(|| format!("make the image {reference}"))?;
        }
    }
    Ok(all)
}

fn make(deps: &Path, reference: &str, file: &Path) -> Result<()> {
    let (layer, process) = match reference {
        IMAGE => (
            system(deps)?,
            json!({ "Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" }),
        ),
        DATA_IMAGE => (data()?, json!({ "Env": [], "WorkingDir": "/" })),
        _ => (
            pause()?,
            json!({ "User": "65535:65535", "Env": ["PATH=/"], "Entrypoint": ["/pause"], "WorkingDir": "/" }),
        ),
    };
    let folder = file.parent().context("a file without folder")?;
    fs::create_dir_all(folder)?;
    // Several may make it at once; each of them makes the same.
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(&layout(reference, layer, &process)?)?;
    new.persist(file)?;
    Ok(())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An OCI layout with one layer, as a tar.
fn layout(reference: &str, layer: Vec<u8>, process: &Value) -> Result<Vec<u8>> {
    let mut blobs = Vec::new();
    let mut keep = |blob: Vec<u8>, kind: &str| {
        let kind = format!("application/vnd.oci.image.{kind}");
        let all = json!({ "mediaType": kind, "digest": format!("sha256:{}", digest(&blob)), "size": blob.len() });
        blobs.push(blob);
        all
    };
    let diff = format!("sha256:{}", digest(&layer));
    let layer = keep(layer, "layer.v1.tar");
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": process,
        "rootfs": { "type": "layers", "diff_ids": [diff] },
    });
    let config = keep(config.to_string().into_bytes(), "config.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = keep(manifest.to_string().into_bytes(), "manifest.v1+json");
    // containerd takes the image's name from this annotation.
    manifest["annotations"] = json!({ "io.containerd.image.name": reference });
    manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    let mut tar = Tree::default();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", 0o644, index.to_string().as_bytes())?;
    tar.folder("blobs", 0o755, 0)?;
    tar.folder("blobs/sha256", 0o755, 0)?;
    for blob in blobs {
        tar.file(&format!("blobs/sha256/{}", digest(&blob)), 0o644, &blob)?;
    }
    tar.end()
}

fn system(deps: &Path) -> Result<Vec<u8>> {
    let busybox = deps.join("bin/busybox");
    let list = Command::new(&busybox).arg("--list").output().context("run busybox")?;
    let mut tar = Tree::default();
    for folder in ["bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "var"] {
        tar.folder(folder, 0o755, 0)?;
    }
    tar.folder("home/app", 0o755, 1000)?;
    tar.folder("root", 0o700, 0)?;
    tar.folder("tmp", 0o1777, 0)?;
    tar.folder("var/tmp", 0o1777, 0)?;
    tar.file("bin/busybox", 0o755, &fs::read(&busybox)?)?;
    for applet in String::from_utf8(list.stdout)?.lines().filter(|name| *name != "busybox") {
        tar.link(&format!("bin/{applet}"), "busybox")?;
    }
    tar.link("usr/bin", "../bin")?;
    tar.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    tar.file("etc/group", 0o644, GROUP.as_bytes())?;
    tar.end()
}

fn data() -> Result<Vec<u8>> {
    let mut tar = Tree::default();
    tar.folder("data", 0o755, 0)?;
    tar.folder("data/sub", 0o755, 0)?;
    tar.file("data/hello.txt", 0o644, b"hello from an image volume\n")?;
    tar.file("data/sub/deep.txt", 0o644, b"deep\n")?;
    // A mount of this image must resolve such a link inside itself or refuse it, never follow it on the host.
    tar.link("data/escape", "/../../etc/passwd")?;
    tar.end()
}

fn pause() -> Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    let mut compiler = Command::new("gcc")
        .args(["-static", "-Os", "-s", "-Wl,--build-id=none", "-o", "pause", "-xc", "-"])
        // From inside the folder, so that no path of this machine gets into the program.
        .current_dir(work.path())
        .stdin(Stdio::piped())
        .spawn()
        .context("run gcc: run tools/deps.sh")?;
    compiler.stdin.take().context("no pipe")?.write_all(PAUSE.as_bytes())?;
    let status = compiler.wait()?;
    ensure!(status.success(), "gcc: {status}");
    let mut tar = Tree::default();
    tar.file("pause", 0o755, &fs::read(work.path().join("pause"))?)?;
    tar.end()
}

/// A tar without times, and without owners but those that matter.
struct Tree(Builder<Vec<u8>>);

impl Default for Tree {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Tree {
    fn header(kind: EntryType, mode: u32, owner: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(0);
        header.set_size(0);
        header
    }

    fn folder(&mut self, at: &str, mode: u32, owner: u64) -> Result<()> {
        let mut header = Self::header(EntryType::Directory, mode, owner);
        Ok(self.0.append_data(&mut header, format!("{at}/"), [].as_slice())?)
    }

    fn file(&mut self, at: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Self::header(EntryType::Regular, mode, 0);
        header.set_size(content.len() as u64);
        Ok(self.0.append_data(&mut header, at, content)?)
    }

    fn link(&mut self, at: &str, to: &str) -> Result<()> {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        Ok(self.0.append_link(&mut header, at, to)?)
    }

    fn end(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}
