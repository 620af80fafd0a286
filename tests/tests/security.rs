//! What a hostile container, image or pod specification may try on the node, over CRI. See docs/security.md.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
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
    // By a descriptor, a mapping, or words: every entry there is.
    let all = container
        .shell(
            "ls -lA /proc/1/fd /proc/1/task/1/fd /proc/1/map_files /proc/1/cwd /proc/1/root /proc/1/exe; \
             for file in /proc/1/* /proc/1/attr/* /proc/1/fdinfo/* /proc/1/task/1/*; do \
               [ -f $file ] && /bin/busybox head -c 65536 $file 2>/dev/null; \
             done; true",
        )
        .await?;
    assert!(all.contains("mooring-pod"), "nothing was read: {all}");
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
    assert!(case.handler.is_mooring());
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
        assert_eq!(fs::metadata(format!("/proc/{holder}/fd"))?.uid(), 0);
        pod.end().await?;
    }
    Ok(())
}

/// Every entry of the pod's first process that a mode allows to write, and some that name other ways.
async fn the_pods_first_process_cannot_be_written_to(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(NamespaceMode::Pod).run().await?;
    let debugger = pod.start(&with_rights("debugger", &DEBUGGING)).await?;
    for at in ["exe", "root/file", "cwd/file", "task/1/exe", "ns/mnt", "uid_map", "mem"] {
        let ran = debugger.exec(&["/bin/sh", "-c", &format!("echo attack > /proc/1/{at}")]).await?;
        assert_ne!(ran.code, 0, "{at}: {ran:?}");
    }
    // Nor ended: it is the first process of its namespace.
    debugger.shell("kill -KILL 1; kill -STOP 1; true").await?;
    assert!(pod.is_ready().await?);
    assert_eq!(debugger.shell("echo alive").await?, "alive");
    pod.end().await
}

/// A pod of the node's PID namespace sees the shims, as it sees all processes; without `SYS_PTRACE` it sees no more.
async fn a_container_among_the_nodes_processes_cannot_look_into_the_shim(case: Case) -> Result<()> {
    let secret = secret(&case)?;
    let pod = PodSpec::new(&case).pid(NamespaceMode::Node).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let all = mooring_e2e::audit::all_processes();
    let shims: Vec<i32> = all
        .iter()
        .filter(|one| one.command.contains("containerd-shim-"))
        .map(|one| one.pid)
        .collect();
    assert!(!shims.is_empty());
    for shim in shims {
        let script = format!(
            "cd /proc/{shim} && for at in task/*; do \
               cat $at/environ $at/maps $at/mem $at/root{secret}/file $at/cwd/../..{secret}/file; \
               ls $at/root/ $at/cwd/; readlink $at/exe $at/root $at/cwd $at/ns/* $at/fd/* $at/map_files/*; \
               echo x > $at/root{secret}/mine; done 2>/dev/null; kill -0 {shim} 2>/dev/null; true"
        );
        assert_eq!(container.shell(&script).await?, "");
        assert!(!Path::new(&secret).join("mine").exists());
    }
    pod.end().await
}

/// The value of a kernel parameter on the node.
fn on_the_node(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).unwrap_or_default()
}

/// `RunPodSandbox` must refuse; answers how.
async fn refused(spec: &PodSpec) -> Result<String> {
    match spec.run().await {
        Err(error) => Ok(format!("{error:#}")),
        Ok(pod) => {
            pod.end().await?;
            bail!("it runs: {:?}", spec.config.linux)
        }
    }
}

async fn sysctls_of_the_node_are_refused(case: Case) -> Result<()> {
    for (name, value) in [
        ("vm.swappiness", "13"),
        ("kernel.panic", "77"),
        ("kernel.core_pattern", "|/tmp/attack"),
        ("kernel/core_pattern", "|/tmp/attack"),
        ("fs.file-max", "4711"),
        ("kernel.hostname", "attacked"),
        ("kernel.shm_next_id", "7"),
        ("net.//.//.kernel.panic", "77"),
        ("net/../kernel/panic", "77"),
        ("fs.mqueue.//.file-max", "4711"),
    ] {
        let known = [
            "vm.swappiness",
            "kernel.panic",
            "kernel.core_pattern",
            "fs.file-max",
            "kernel.hostname",
        ];
        let before: Vec<String> = known.iter().map(|name| on_the_node(name)).collect();
        let error = refused(&PodSpec::new(&case).sysctl(name, value)).await.context(name)?;
        let after: Vec<String> = known.iter().map(|name| on_the_node(name)).collect();
        assert_eq!(before, after, "{name}");
        if case.handler.is_mooring() {
            assert!(error.contains("invalid argument"), "{error}");
            assert!(error.contains(name), "{error}");
        }
    }
    Ok(())
}

async fn sysctls_of_namespaces_that_the_pod_shares_with_the_node_are_refused(
    case: Case,
) -> Result<()> {
    let before = on_the_node("kernel.shm_rmid_forced");
    let mut spec = PodSpec::new(&case).sysctl("kernel.shm_rmid_forced", "1");
    spec.namespaces().ipc = NamespaceMode::Node as i32;
    let error = refused(&spec).await?;
    assert!(error.contains("kernel.shm_rmid_forced"), "{error}");
    assert_eq!(on_the_node("kernel.shm_rmid_forced"), before);
    Ok(())
}

async fn network_sysctls_of_a_pod_on_the_nodes_network_are_refused(case: Case) -> Result<()> {
    let name = "net.ipv4.ip_local_port_range";
    let before = on_the_node(name);
    for spelling in [name, "net/ipv4/ip_local_port_range"] {
        let error =
            refused(&PodSpec::new(&case).host_network().sysctl(spelling, "20000 30000")).await?;
        assert!(
            error.contains("net.ipv4.ip_local_port_range") || error.contains(spelling),
            "{error}"
        );
        assert_eq!(on_the_node(name), before);
    }
    Ok(())
}

async fn all_sysctls_that_a_pod_may_have_are_set_in_it_alone(case: Case) -> Result<()> {
    let sysctls = [
        ("net.ipv4.tcp_syncookies", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("kernel.msgmax", "9000"),
        ("kernel.msgmnb", "17000"),
        ("kernel.msgmni", "33"),
        ("kernel.sem", "251\t32001\t501\t129"),
        ("kernel.shmall", "1234567"),
        ("kernel.shmmax", "7654321"),
        ("kernel/shmmni", "99"),
        ("fs.mqueue.msg_max", "11"),
        ("kernel.domainname", "moored.example"),
    ];
    let file =
        |name: &str| if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{}", file(name)));
    for users in [0, 700_000] {
        let mut sysctls = sysctls.to_vec();
        let mut spec = PodSpec::new(&case);
        if users > 0 {
            spec = spec.users_from(users);
            if case.handler == Handler::Runc {
                // The kernel gives it to the node's root alone, and runc writes as the pod's.
                sysctls.retain(|(name, _)| *name != "kernel.domainname");
            }
        }
        for (name, value) in &sysctls {
            spec = spec.sysctl(name, value);
        }
        let before: Vec<_> = sysctls.iter().map(|(name, _)| read(name).ok()).collect();
        let pod = spec.run().await?;
        let container = pod.start(&ContainerSpec::idle("main")).await?;
        for (name, value) in &sysctls {
            let seen = container.shell(&format!("cat /proc/sys/{}", file(name))).await?;
            assert_eq!(seen, *value, "{name}");
        }
        let after: Vec<_> = sysctls.iter().map(|(name, _)| read(name).ok()).collect();
        assert_eq!(before, after);
        pod.end().await?;
    }
    Ok(())
}

fn own_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

async fn namespace(container: &Container, kind: &str) -> Result<String> {
    let at = format!("/proc/{}/ns/{kind}", container.pid().await?);
    Ok(fs::read_link(at)?.display().to_string())
}

/// A container that wants these namespaces, whatever its pod has.
fn wanting(name: &str, options: cri::NamespaceOption) -> ContainerSpec {
    let mut spec = ContainerSpec::idle(name);
    spec.security().namespace_options = Some(options);
    spec
}

/// The peer has a PID namespace for every pod; Mooring has none for a pod of mode CONTAINER, and says so.
async fn a_container_never_lands_in_the_nodes_pid_namespace_by_its_mode(case: Case) -> Result<()> {
    for users in [0, 800_000] {
        let mut spec = PodSpec::new(&case);
        if users > 0 {
            spec = spec.users_from(users);
        }
        let pod = spec.run().await?;
        let same_users = spec.namespaces().userns_options.clone();
        for mode in [NamespaceMode::Pod, NamespaceMode::Node] {
            let options = cri::NamespaceOption {
                pid: mode as i32,
                userns_options: same_users.clone(),
                ..Default::default()
            };
            let container =
                pod.create(&wanting(&format!("{mode:?}").to_lowercase(), options)).await?;
            match container.start().await {
                Ok(()) => assert_ne!(
                    namespace(&container, "pid").await?,
                    own_namespace("pid"),
                    "{mode:?}"
                ),
                Err(error) => {
                    assert!(case.handler.is_mooring());
                    let error = format!("{error:#}");
                    assert!(
                        error.contains("pid namespace") && error.contains("the node's"),
                        "{error}"
                    );
                }
            }
            container.remove().await?;
        }
        // The pod is none the worse for it.
        let container = pod.start(&ContainerSpec::idle("own")).await?;
        assert_ne!(namespace(&container, "pid").await?, own_namespace("pid"));
        pod.end().await?;
    }
    Ok(())
}

async fn a_pod_of_ipc_mode_container_has_an_ipc_namespace_and_shm(case: Case) -> Result<()> {
    let file = case.unique("e2e-ipc");
    fs::write(format!("/dev/shm/{file}"), "of the node")?;
    let mut spec = PodSpec::new(&case).sysctl("kernel.shm_rmid_forced", "1");
    spec.namespaces().ipc = NamespaceMode::Container as i32;
    let pod = spec.run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    assert_ne!(namespace(&one, "ipc").await?, own_namespace("ipc"));
    assert_eq!(namespace(&one, "ipc").await?, namespace(&two, "ipc").await?);
    one.shell("echo shared > /dev/shm/file").await?;
    assert_eq!(two.shell("cat /dev/shm/file").await?, "shared");
    assert_ne!(one.exec(&["/bin/cat", &format!("/dev/shm/{file}")]).await?.code, 0);
    assert!(one.shell("grep ' /dev/shm ' /proc/mounts").await?.contains("size=65536k"));
    fs::remove_file(format!("/dev/shm/{file}"))?;
    pod.end().await
}

async fn user_namespaces_that_are_none_are_refused(case: Case) -> Result<()> {
    let line = cri::IdMapping { host_id: 900_000, container_id: 0, length: 65_536 };
    let empty = cri::IdMapping { length: 0, ..line };
    for (mode, uids, gids) in [
        (NamespaceMode::Container, vec![], vec![]),
        (NamespaceMode::Container, vec![line], vec![line]),
        (NamespaceMode::Target, vec![], vec![]),
        (NamespaceMode::Target, vec![line], vec![line]),
        (NamespaceMode::Node, vec![line], vec![line]),
        (NamespaceMode::Node, vec![line], vec![]),
        (NamespaceMode::Node, vec![], vec![line]),
        (NamespaceMode::Pod, vec![], vec![]),
        (NamespaceMode::Pod, vec![line], vec![]),
        (NamespaceMode::Pod, vec![empty], vec![empty]),
    ] {
        let mut spec = PodSpec::new(&case);
        let options = cri::UserNamespace { mode: mode as i32, uids, gids };
        let said = format!("{options:?}");
        spec.namespaces().userns_options = Some(options);
        refused(&spec).await.context(said)?;
    }
    // The node's without mappings is what everybody has.
    let mut spec = PodSpec::new(&case);
    spec.namespaces().userns_options =
        Some(cri::UserNamespace { mode: NamespaceMode::Node as i32, ..Default::default() });
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(namespace(&container, "user").await?, own_namespace("user"));
    pod.end().await
}

async fn a_hostname_on_the_nodes_network_is_refused(case: Case) -> Result<()> {
    let before = on_the_node("kernel.hostname");
    let mut spec = PodSpec::new(&case).host_network();
    "attacked".clone_into(&mut spec.config.hostname);
    let error = refused(&spec).await?;
    assert!(error.contains("hostname"), "{error}");
    assert_eq!(on_the_node("kernel.hostname"), before);
    Ok(())
}

/// Everything of a pod that lies in a folder, with who may do what.
fn open_to_others(at: &Path, reached: bool, found: &mut Vec<String>) -> Result<()> {
    let stat = fs::symlink_metadata(at)?;
    if stat.is_symlink() {
        return Ok(());
    }
    let others = stat.mode() & 0o007;
    // Passing through a folder shows nothing of it.
    let harmless = stat.is_dir() && others == 0o001;
    if reached && others != 0 && !harmless {
        found.push(format!("{:o} {}", stat.mode(), at.display()));
    }
    if stat.is_dir() {
        let reached = reached && others & 0o001 != 0;
        for entry in fs::read_dir(at)? {
            open_to_others(&entry?.path(), reached, found)?;
        }
    }
    Ok(())
}

async fn nothing_of_a_pod_is_open_to_other_users_of_the_node(case: Case) -> Result<()> {
    assert!(case.handler.is_mooring());
    for users in [0, 1_000_000] {
        let mut spec = PodSpec::new(&case).pid(NamespaceMode::Pod);
        if users > 0 {
            spec = spec.users_from(users);
        }
        let pod = spec.run().await?;
        let container = pod.start(&ContainerSpec::idle("main")).await?;
        container.shell("echo secret > /dev/shm/file && chmod 666 /dev/shm/file").await?;
        let mut found = Vec::new();
        for root in ["/run/mooring", "/var/lib/mooring", "/run/containerd/s"] {
            // The roots themselves say who has pods here, which ps does as well.
            let mut pods = 0;
            for namespace in fs::read_dir(root)? {
                let namespace = namespace?.path();
                if !namespace.is_dir() {
                    open_to_others(&namespace, root != "/run/containerd/s", &mut found)?;
                    continue;
                }
                for pod in fs::read_dir(&namespace)? {
                    pods += 1;
                    open_to_others(&pod?.path(), true, &mut found)?;
                }
            }
            assert!(pods > 0 || root == "/run/containerd/s", "nothing in {root}");
        }
        assert_eq!(found, Vec::<String>::new());
        // Not only by the book: another user tries, by path.
        let shm = format!("/run/mooring/k8s.io/{}/shm/file", pod.id);
        assert!(Path::new(&shm).exists());
        for (file, user) in [("shm/file", "65534"), ("hosts", "65534"), ("shm", "12345")] {
            let path = format!("/run/mooring/k8s.io/{}/{file}", pod.id);
            let user: u32 = user.parse()?;
            let mut ls = std::process::Command::new("/bin/ls");
            let tried = std::os::unix::process::CommandExt::gid(
                std::os::unix::process::CommandExt::uid(ls.arg(&path), user),
                user,
            );
            let tried = tried.output()?;
            assert!(!tried.status.success(), "{path}: {tried:?}");
        }
        pod.end().await?;
    }
    Ok(())
}

suite!(Settings::default();
    too: builtin;
    both: a_debugger_in_a_shared_pid_namespace_sees_nothing_of_the_node,
        a_debugger_with_a_user_namespace_sees_nothing_of_the_node,
        the_pods_first_process_cannot_be_written_to,
        a_container_among_the_nodes_processes_cannot_look_into_the_shim,
        sysctls_of_the_node_are_refused,
        sysctls_of_namespaces_that_the_pod_shares_with_the_node_are_refused,
        all_sysctls_that_a_pod_may_have_are_set_in_it_alone,
        a_container_never_lands_in_the_nodes_pid_namespace_by_its_mode,
        a_pod_of_ipc_mode_container_has_an_ipc_namespace_and_shm,
        user_namespaces_that_are_none_are_refused;
    host_network: network_sysctls_of_a_pod_on_the_nodes_network_are_refused,
        a_hostname_on_the_nodes_network_is_refused;
    mooring: the_holder_has_nothing_and_may_do_nothing,
        nothing_of_a_pod_is_open_to_other_users_of_the_node);
