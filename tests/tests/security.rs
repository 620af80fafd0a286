//! What a hostile container, image or pod specification may try on the node, over CRI. See docs/security.md.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_cri::v1::{self as cri, NamespaceMode};
use mooring_e2e::cri::{Container, ContainerSpec, Pod, PodSpec};
use mooring_e2e::node::Settings;
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};

/// Whatever a debugger in a container may ask for short of being privileged.
const DEBUGGING: [&str; 6] =
    ["SYS_PTRACE", "SYS_ADMIN", "SYS_CHROOT", "DAC_READ_SEARCH", "DAC_OVERRIDE", "SETFCAP"];

/// A container with further capabilities.
fn with_rights(name: &str, rights: &[&str]) -> ContainerSpec {
    let mut spec = ContainerSpec::idle(name);
    let added = rights.iter().map(ToString::to_string).collect();
    spec.security().capabilities =
        Some(cri::Capability { add_capabilities: added, ..Default::default() });
    spec
}

/// What stands for the pod, seen from the node: the parent of nobody in the pod, known by the sandbox's status.
async fn keeper(pod: &Pod) -> Result<i32> {
    let (_, info) = pod.verbose_status().await?;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let pid = info.get("pid").and_then(serde_json::Value::as_i64).context("no pid")?;
    Ok(i32::try_from(pid)?)
}

/// A file of the node that no container was given.
fn secret(case: &Case) -> Result<String> {
    let folder = case.node.folder().join(case.unique("secret"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("file"), "a secret of the node")?;
    Ok(folder.display().to_string())
}

/// Tries to get at the node by way of the pod's first process; answers nothing, or it panics.
async fn nothing_of_the_node_through(
    case: &Case,
    container: &Container,
    secret: &str,
) -> Result<()> {
    for way in ["root", "cwd", "root/..", "cwd/..", "task/1/root", "task/1/cwd", "root/proc/1/root"]
    {
        let script = format!(
            "cat /proc/1/{way}{secret}/file; echo x > /proc/1/{way}{secret}/mine; \
             ls -d /proc/1/{way}/etc/passwd /proc/1/{way}/usr/* /proc/1/{way}/var; true"
        );
        let seen = container.shell(&script).await?;
        assert_eq!(seen, "", "by way of {way}");
        assert!(!Path::new(secret).join("mine").exists(), "written by way of {way}");
    }
    if case.handler == Handler::Runc {
        // The pause container's mounts say where on the node they come from, which is no way to get there.
        return Ok(());
    }
    // By a descriptor, a mapping, or words.
    let all = container
        .shell(
            "ls -lA /proc/1/fd /proc/1/task/1/fd /proc/1/map_files /proc/1/cwd /proc/1/root /proc/1/exe; \
             cat /proc/1/environ /proc/1/cmdline /proc/1/task/1/environ /proc/1/mountinfo /proc/1/mounts \
                 /proc/1/mountstats /proc/1/maps /proc/1/fdinfo/* 2>/dev/null; true",
        )
        .await?;
    let node = secret.rsplit_once('/').map_or(secret, |(node, _)| node);
    for word in [node, "TTRPC_ADDRESS", "containerd.sock", "c.sock", "socket:", "/etc/", "/usr/"] {
        assert!(!all.contains(word), "{word} in:\n{all}");
    }
    Ok(())
}

async fn a_debugger_in_a_shared_pid_namespace_sees_nothing_of_the_node(case: Case) -> Result<()> {
    let secret = secret(&case)?;
    let pod = PodSpec::new(&case).pid(NamespaceMode::Pod).run().await?;
    let debugger = pod.start(&with_rights("debugger", &DEBUGGING)).await?;
    nothing_of_the_node_through(&case, &debugger, &secret).await?;
    // Not by entering its mount namespace either: there is nothing to run in it.
    let ran = debugger.exec(&["/bin/nsenter", "-t", "1", "-m", "/bin/cat", "/etc/passwd"]).await?;
    assert_ne!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout, "");
    pod.end().await
}

async fn a_debugger_with_a_user_namespace_sees_nothing_of_the_node(case: Case) -> Result<()> {
    let secret = secret(&case)?;
    let pod = PodSpec::new(&case).users_from(400_000).pid(NamespaceMode::Pod).run().await?;
    let debugger = pod.start(&with_rights("debugger", &DEBUGGING)).await?;
    nothing_of_the_node_through(&case, &debugger, &secret).await?;
    pod.end().await
}

/// The holder itself, looked at from the node, where nothing is hidden.
async fn the_holder_has_nothing_and_may_do_nothing(case: Case) -> Result<()> {
    assert_eq!(case.handler, Handler::Mooring);
    for (users, pid) in [
        (0, NamespaceMode::Pod),
        (500_000, NamespaceMode::Container),
        (600_000, NamespaceMode::Pod),
    ] {
        let mut spec = PodSpec::new(&case).pid(pid);
        if users > 0 {
            spec = spec.users_from(users);
        }
        let pod = spec.run().await?;
        let holder = keeper(&pod).await?;
        let read = |file: &str| fs::read_to_string(format!("/proc/{holder}/{file}"));
        let status = read("status")?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
            line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("none").to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
        assert_eq!(field("Uid"), users.to_string());
        // Empty folders, as nobody may look into a process that is not dumpable except root.
        for folder in ["fd", "root", "cwd"] {
            let found = fs::read_dir(format!("/proc/{holder}/{folder}"))?.count();
            assert_eq!(found, 0, "{folder}");
        }
        assert_eq!(fs::read_link(format!("/proc/{holder}/root"))?, Path::new("/"));
        assert_eq!(fs::read_link(format!("/proc/{holder}/cwd"))?, Path::new("/"));
        assert_eq!(read("environ")?, "");
        assert_eq!(read("cmdline")?.trim_end_matches('\0'), "mooring-pod");
        assert_eq!(read("comm")?.trim(), "mooring-pod");
        // One mount, an empty one that cannot be written to, and nothing below or above it.
        let mounts = read("mountinfo")?;
        let mounts: Vec<&str> = mounts.lines().collect();
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        let words: Vec<&str> = mounts[0].split(' ').collect();
        assert_eq!(words[4], "/", "{words:?}");
        assert!(words[5].starts_with("ro,nosuid,nodev,noexec"), "{words:?}");
        assert!(words.contains(&"tmpfs"), "{words:?}");
        let written = fs::write(format!("/proc/{holder}/root/file"), "").unwrap_err();
        assert_eq!(written.raw_os_error(), Some(nix::errno::Errno::EROFS as i32));
        // What is above its root is its root.
        assert_eq!(fs::read_dir(format!("/proc/{holder}/root/../.."))?.count(), 0);
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt"));
        assert_ne!(namespace(&holder.to_string())?, namespace("self")?);
        // A process that is not dumpable is root's under /proc, whoever runs it.
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(format!("/proc/{holder}/fd"))?.uid(), 0);
        pod.end().await?;
    }
    Ok(())
}

suite!(Settings::default();
    both: a_debugger_in_a_shared_pid_namespace_sees_nothing_of_the_node,
        a_debugger_with_a_user_namespace_sees_nothing_of_the_node;
    mooring: the_holder_has_nothing_and_may_do_nothing);
