//! The image that `make image` makes, as a pod: it installs Mooring on the node whose root it is given.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::node::{Node, Settings};
use mooring_e2e::suite::{Case, Suite};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of a node that has containerd, and a handler already.
const CONFIG: &str = "version = 3\n\n\
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
    runtime_type = 'io.containerd.runc.v2'\n";
/// Notes what it is asked, and whether it would believe that it is in a mere chroot.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$* $SYSTEMD_IGNORE_CHROOT\" >>/asked\n[ ! -e /fails ]\n";

/// A folder that stands for a node's root.
struct Host(tempfile::TempDir);

impl Host {
    fn new(node: &Node) -> Result<Self> {
        let host = Self(tempfile::tempdir_in(node.folder())?);
        for folder in ["bin", "usr/bin", "usr/local/bin", "etc/containerd", "run", "var/lib"] {
            fs::create_dir_all(host.at(folder))?;
        }
        fs::write(host.at("etc/containerd/config.toml"), CONFIG)?;
        fs::copy(node.deps().join("bin/busybox"), host.at("bin/busybox"))?;
        symlink("busybox", host.at("bin/sh"))?;
        let systemctl = host.at("usr/bin/systemctl");
        fs::write(&systemctl, SYSTEMCTL)?;
        fs::set_permissions(&systemctl, Permissions::from_mode(0o755))?;
        Ok(host)
    }

    /// As it is where systemd runs.
    fn with_systemd(self) -> Result<Self> {
        fs::create_dir_all(self.at("run/systemd/system"))?;
        Ok(self)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// What systemctl was asked.
    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("asked")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// The files, without what the test itself has there.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found.retain(|path| !path.ends_with("asked") && !path.ends_with("fails"));
        found.sort();
        Ok(found)
    }

    /// What containerd makes of its configuration there.
    fn dump(&self, node: &Node) -> Result<String> {
        let output = Command::new("containerd")
            .env("PATH", node.path())
            .arg("--config")
            .arg(self.at("etc/containerd/config.toml"))
            .args(["config", "dump"])
            .output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "containerd config dump: {words}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

async fn import(node: &Node) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pack");
    let archive = folder.join(format!("mooring-{VERSION}-image.tar"));
    ensure!(archive.exists(), "{} is missing: run make image", archive.display());
    let archive = archive.to_str().context("a path that is no text")?;
    let label = "io.cri-containerd.image=managed";
    node.ctr(&["-n", "k8s.io", "images", "import", "--label", label, archive]).await?;
    Ok(())
}

/// Runs the image with these arguments, or its own, as the `DaemonSet` does; its exit code and what it printed.
async fn run(case: &Case, host: &Host, arguments: &[&str]) -> Result<(i32, String)> {
    let mut pod = PodSpec::new(case);
    pod.security().privileged = true;
    let pod = pod.run().await?;
    let root = host.0.path().to_str().context("a path that is no text")?;
    let mut spec = ContainerSpec::new("mooring", &[]).mount(root, "/host", false);
    spec.config.image.get_or_insert_default().image = format!("localhost/mooring:{VERSION}");
    spec.config.args = arguments.iter().map(ToString::to_string).collect();
    spec.security().privileged = true;
    let container = pod.start(&spec).await?;
    let code = container.exited().await?.exit_code;
    let mut words = String::new();
    for stream in ["stdout", "stderr"] {
        words += &container
            .logged(stream, |text| code != 0 || stream == "stderr" || !text.is_empty())
            .await?;
    }
    pod.end().await?;
    Ok((code, words))
}

async fn the_image_installs_once_restarts_containerd_and_takes_itself_away(
    case: Case,
) -> Result<()> {
    let node = &case.node;
    import(node).await?;
    let host = Host::new(node)?.with_systemd()?;
    let before = host.files()?;
    let (code, words) = run(&case, &host, &[]).await?;
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("kind: RuntimeClass"), "{words}");
    assert_eq!(host.asked(), ["restart containerd.service 1"], "{words}");
    for (program, argument) in [("containerd-shim-mooring-v1", "-v"), ("mooring", "version")] {
        let output = Command::new(host.at("usr/local/bin").join(program)).arg(argument).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(VERSION), "{program}: {said}");
    }
    let dump = host.dump(node)?;
    assert!(dump.contains("io.containerd.mooring.v1"), "{dump}");
    assert!(dump.contains("io.containerd.runc.v2"), "{dump}");

    let (code, words) = run(&case, &host, &[]).await?;
    assert_eq!(code, 0, "{words}");
    assert_eq!(host.asked().len(), 1, "a second run restarted containerd: {words}");

    let (code, words) = run(&case, &host, &["uninstall", "--root", "/host", "--restart"]).await?;
    assert_eq!(code, 0, "{words}");
    assert_eq!(host.asked().len(), 2, "{words}");
    assert_eq!(host.files()?, before);
    assert_eq!(fs::read_to_string(host.at("etc/containerd/config.toml"))?, CONFIG);
    Ok(())
}

async fn a_restart_that_failed_is_made_by_the_next_run(case: Case) -> Result<()> {
    import(&case.node).await?;
    let host = Host::new(&case.node)?.with_systemd()?;
    fs::write(host.at("fails"), "")?;
    let (code, words) = run(&case, &host, &[]).await?;
    assert_eq!(code, 1, "{words}");
    fs::remove_file(host.at("fails"))?;
    let (code, words) = run(&case, &host, &[]).await?;
    assert_eq!(code, 0, "{words}");
    assert_eq!(host.asked().len(), 2, "{words}");
    let (code, words) = run(&case, &host, &[]).await?;
    assert_eq!((code, host.asked().len()), (0, 2), "{words}");
    Ok(())
}

async fn without_systemd_the_image_says_what_to_restart(case: Case) -> Result<()> {
    import(&case.node).await?;
    let host = Host::new(&case.node)?;
    let (code, words) = run(&case, &host, &[]).await?;
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("restart what runs containerd yourself"), "{words}");
    assert!(host.at("usr/local/bin/containerd-shim-mooring-v1").exists());
    assert!(host.asked().is_empty(), "{:?}", host.asked());
    Ok(())
}

fn main() {
    let mut suite = Suite::begin(Settings::default());
    suite.but_on_emulated(|suite| {
        suite.both(
            "the_image_installs_once_restarts_containerd_and_takes_itself_away",
            the_image_installs_once_restarts_containerd_and_takes_itself_away,
        );
        suite.both(
            "a_restart_that_failed_is_made_by_the_next_run",
            a_restart_that_failed_is_made_by_the_next_run,
        );
        suite.both(
            "without_systemd_the_image_says_what_to_restart",
            without_systemd_the_image_says_what_to_restart,
        );
    });
    suite.run()
}
