//! Whose namespaces, files and rights containers have, over CRI.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use anyhow::Result;
use k8s_cri::v1::{self as cri, NamespaceMode};
use mooring_e2e::cri::{Container, ContainerSpec, PodSpec};
use mooring_e2e::faults::until;
use mooring_e2e::node::{DATA_IMAGE, Settings};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

/// A namespace of the container's first process, seen from the node.
async fn namespace(container: &Container, kind: &str) -> Result<String> {
    let at = format!("/proc/{}/ns/{kind}", container.pid().await?);
    Ok(fs::read_link(at)?.display().to_string())
}

/// The id that a command has, as the container sees it.
async fn process_of(container: &Container, command: &str) -> Result<String> {
    let list = container.shell("ps -o pid,args").await?;
    let line = list.lines().find(|line| line.trim_end().ends_with(command));
    Ok(line.and_then(|line| line.split_whitespace().next()).unwrap_or("none").to_owned())
}

fn own_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

async fn two_containers_share_network_ipc_and_hostname(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    for kind in ["net", "ipc", "uts"] {
        let shared = namespace(&one, kind).await?;
        assert_eq!(shared, namespace(&two, kind).await?, "{kind}");
        assert_ne!(shared, own_namespace(kind), "{kind}");
    }
    assert_ne!(namespace(&one, "pid").await?, namespace(&two, "pid").await?);
    assert_ne!(namespace(&one, "mnt").await?, namespace(&two, "mnt").await?);
    one.shell("echo shared > /dev/shm/file").await?;
    assert_eq!(two.shell("cat /dev/shm/file").await?, "shared");
    assert_eq!(one.shell("hostname").await?, pod.spec.config.hostname);
    assert_eq!(two.shell("cat /etc/hostname").await?, pod.spec.config.hostname);
    let address = pod.address().await?;
    let shown = two.shell("ip -4 -o addr show eth0").await?;
    assert!(shown.contains(&address), "{shown}");
    one.shell("nc -l -p 7000 -e /bin/hostname >/dev/null 2>&1 & until netstat -ltn | grep -q :7000; do usleep 10000; done").await?;
    assert_eq!(two.shell("nc 127.0.0.1 7000 < /dev/null").await?, pod.spec.config.hostname);
    pod.end().await
}

async fn a_container_that_starts_again_joins_the_same_pod(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let first = pod.start(&ContainerSpec::idle("first")).await?;
    let network = namespace(&first, "net").await?;
    first.stop(0).await?;
    first.remove().await?;
    let second = pod.start(&ContainerSpec::idle("second")).await?;
    assert_eq!(namespace(&second, "net").await?, network);
    pod.end().await
}

async fn a_shared_pid_namespace_shows_all_processes_of_the_pod(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(NamespaceMode::Pod).run().await?;
    let one = pod.start(&ContainerSpec::new("one", &["/bin/sleep", "11111"])).await?;
    let two = pod.start(&ContainerSpec::new("two", &["/bin/sleep", "22222"])).await?;
    assert_eq!(namespace(&one, "pid").await?, namespace(&two, "pid").await?);
    let seen = one.shell("ps -o pid,args").await?;
    assert!(seen.contains("11111") && seen.contains("22222"), "{seen}");
    assert_ne!(process_of(&one, "/bin/sleep 11111").await?, "1");
    // Orphans are reaped by whatever is process 1 there.
    one.shell("(sleep 0.1 &) ; sleep 0.4").await?;
    let zombies = one.shell("ps -o stat,args | grep -c '^Z' || true").await?;
    assert_eq!(zombies, "0");
    // The end of one container leaves the other alone.
    one.stop(0).await?;
    assert_eq!(two.status().await?.state(), cri::ContainerState::ContainerRunning);
    pod.end().await
}

async fn a_container_with_its_own_pid_namespace_is_process_1(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::new("main", &["/bin/sleep", "33333"])).await?;
    assert_eq!(process_of(&container, "/bin/sleep 33333").await?, "1");
    pod.end().await
}

async fn a_pod_in_the_nodes_pid_namespace_sees_the_nodes_processes(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(NamespaceMode::Node).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(namespace(&container, "pid").await?, own_namespace("pid"));
    let seen = container.shell("ps -o args").await?;
    assert!(seen.contains("containerd --config"), "{seen}");
    // Its children must not outlive it although no PID namespace ends with it.
    container.shell("sleep 44444 >/dev/null 2>&1 &").await?;
    container.stop(0).await?;
    let left = mooring_e2e::audit::all_processes();
    assert!(!left.iter().any(|one| one.command.contains("44444")), "a child lives on");
    pod.end().await
}

async fn a_target_container_lends_its_pid_namespace(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let target = pod.start(&ContainerSpec::new("target", &["/bin/sleep", "55555"])).await?;
    let mut spec = ContainerSpec::idle("debugger");
    spec.security().namespace_options = Some(cri::NamespaceOption {
        pid: NamespaceMode::Target as i32,
        target_id: target.id.clone(),
        ..Default::default()
    });
    let debugger = pod.start(&spec).await?;
    assert_eq!(namespace(&debugger, "pid").await?, namespace(&target, "pid").await?);
    let seen = debugger.shell("ps -o pid,args").await?;
    assert!(seen.contains("1 /bin/sleep 55555"), "{seen}");
    debugger.stop(0).await?;
    assert_eq!(target.status().await?.state(), cri::ContainerState::ContainerRunning);
    pod.end().await
}

async fn a_pod_on_the_nodes_network_has_its_links_and_hostname(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).host_network().run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(namespace(&container, "net").await?, own_namespace("net"));
    assert_eq!(namespace(&container, "uts").await?, own_namespace("uts"));
    let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
    assert_eq!(container.shell("hostname").await?, name.trim());
    assert_eq!(container.shell("cat /etc/hostname").await?, name.trim());
    pod.end().await
}

async fn a_pod_with_the_nodes_ipc_shares_its_shm(case: Case) -> Result<()> {
    let mut spec = PodSpec::new(&case);
    spec.namespaces().ipc = NamespaceMode::Node as i32;
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(namespace(&container, "ipc").await?, own_namespace("ipc"));
    let name = case.unique("e2e-shm");
    fs::write(format!("/dev/shm/{name}"), "from the node")?;
    let seen = container.shell(&format!("cat /dev/shm/{name}")).await;
    fs::remove_file(format!("/dev/shm/{name}"))?;
    assert_eq!(seen?, "from the node");
    pod.end().await
}

async fn all_host_namespaces_at_once_work(case: Case) -> Result<()> {
    let mut spec = PodSpec::new(&case).host_network().pid(NamespaceMode::Node);
    spec.namespaces().ipc = NamespaceMode::Node as i32;
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(&container, kind).await?, own_namespace(kind), "{kind}");
    }
    pod.end().await
}

async fn dns_options_become_resolv_conf(case: Case) -> Result<()> {
    let mut spec = PodSpec::new(&case);
    spec.config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.1.2.3".into(), "10.4.5.6".into()],
        searches: vec!["one.example".into(), "two.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(
        container.shell("cat /etc/resolv.conf").await?,
        "search one.example two.example\nnameserver 10.1.2.3\nnameserver 10.4.5.6\noptions ndots:5"
    );
    pod.end().await
}

async fn without_dns_options_the_nodes_files_are_copied(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let expected = fs::read_to_string("/etc/resolv.conf")?;
    assert_eq!(container.shell("cat /etc/resolv.conf").await?, expected.trim());
    let expected = fs::read_to_string("/etc/hosts")?;
    assert_eq!(container.shell("cat /etc/hosts").await?, expected.trim());
    pod.end().await
}

async fn the_pods_shm_is_a_small_tmpfs(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let line = container.shell("grep ' /dev/shm ' /proc/mounts").await?;
    for word in ["tmpfs", "size=65536k"] {
        assert!(line.contains(word), "{word} in {line}");
    }
    assert_eq!(container.shell("stat -c %a /dev/shm").await?, "1777");
    pod.end().await
}

async fn sandbox_files_are_read_only_with_a_read_only_root(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::idle("main");
    spec.security().readonly_rootfs = true;
    let container = pod.start(&spec).await?;
    for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/file"] {
        let ran = container.exec(&["/bin/sh", "-c", &format!("echo x >> {file}")]).await?;
        assert_ne!(ran.code, 0, "{file} can be written");
    }
    container.shell("echo x > /dev/shm/file").await?;
    pod.end().await
}

async fn given_sysctls_are_set_in_the_pod_alone(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case)
        .sysctl("net.ipv4.ip_local_port_range", "20000 30000")
        .sysctl("kernel.shm_rmid_forced", "1")
        .run()
        .await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(container.shell("sysctl -n net.ipv4.ip_local_port_range").await?, "20000\t30000");
    assert_eq!(container.shell("sysctl -n kernel.shm_rmid_forced").await?, "1");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?.trim(), "0");
    pod.end().await
}

async fn default_sysctls_let_users_ping_and_bind_low_ports(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(container.shell("sysctl -n net.ipv4.ip_unprivileged_port_start").await?, "0");
    assert_eq!(container.shell("sysctl -n net.ipv4.ping_group_range").await?, "0\t2147483647");
    pod.end().await
}

async fn a_given_sysctl_wins_over_the_default(case: Case) -> Result<()> {
    let pod =
        PodSpec::new(&case).sysctl("net.ipv4.ip_unprivileged_port_start", "1024").run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    assert_eq!(container.shell("sysctl -n net.ipv4.ip_unprivileged_port_start").await?, "1024");
    pod.end().await
}

async fn root_of_a_user_namespaced_pod_is_nobody_on_the_node(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).users_from(200_000).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    assert_eq!(one.shell("id -u").await?, "0");
    let status = fs::read_to_string(format!("/proc/{}/status", one.pid().await?))?;
    assert!(status.contains("\nUid:\t200000\t"), "{status}");
    let users = namespace(&one, "user").await?;
    assert_eq!(users, namespace(&two, "user").await?);
    assert_ne!(users, own_namespace("user"));
    assert_eq!(namespace(&one, "net").await?, namespace(&two, "net").await?);
    // The network namespace belongs to the pod's user namespace: its root may configure it.
    let mut spec = ContainerSpec::idle("admin");
    spec.security().capabilities =
        Some(cri::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
    let admin = pod.start(&spec).await?;
    admin.shell("ip link set eth0 mtu 1400").await?;
    assert_eq!(one.shell("cat /sys/class/net/eth0/mtu").await?, "1400");
    assert_eq!(one.shell("stat -c %u /etc/hosts /etc/resolv.conf /etc/passwd").await?, "0\n0\n0");
    one.shell("echo x > /dev/shm/file && echo y > /root/file").await?;
    assert_eq!(one.shell("hostname").await?, pod.spec.config.hostname);
    pod.end().await
}

async fn a_user_namespaced_pod_may_share_its_pid_namespace(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).users_from(300_000).pid(NamespaceMode::Pod).run().await?;
    let one = pod.start(&ContainerSpec::new("one", &["/bin/sleep", "66666"])).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    assert_eq!(namespace(&one, "pid").await?, namespace(&two, "pid").await?);
    let seen = two.shell("ps -o args").await?;
    assert!(seen.contains("66666"), "{seen}");
    pod.end().await
}

async fn a_privileged_container_may_mount_and_sees_devices(case: Case) -> Result<()> {
    let mut spec = PodSpec::new(&case);
    spec.security().privileged = true;
    let pod = spec.run().await?;
    let mut spec = ContainerSpec::idle("main");
    spec.security().privileged = true;
    let container = pod.start(&spec).await?;
    container.shell("mkdir /mnt && mount -t tmpfs none /mnt && echo x > /mnt/file").await?;
    container.shell("test -c /dev/loop-control || test -c /dev/kmsg").await?;
    container.shell("mount -o remount,rw /sys && echo 1 > /proc/sys/net/ipv4/ip_forward").await?;
    let plain = pod.start(&ContainerSpec::idle("plain")).await?;
    assert_ne!(plain.exec(&["/bin/mount", "-t", "tmpfs", "none", "/tmp"]).await?.code, 0);
    pod.end().await
}

async fn user_and_groups_of_a_container_are_as_asked_for(case: Case) -> Result<()> {
    let mut spec = PodSpec::new(&case);
    spec.security().supplemental_groups = vec![3000];
    let pod = spec.run().await?;
    let mut spec = ContainerSpec::idle("main");
    "app".clone_into(&mut spec.security().run_as_username);
    spec.security().supplemental_groups = vec![4000];
    let container = pod.start(&spec).await?;
    let groups = container.shell("id -u; id -G").await?;
    assert!(groups.starts_with("1000\n1000"), "{groups}");
    assert!(groups.contains("4000"), "{groups}");
    pod.end().await
}

async fn host_mounts_propagate_as_asked_for(case: Case) -> Result<()> {
    let folder = case.node.folder().join(case.unique("mount"));
    fs::create_dir_all(folder.join("inner"))?;
    fs::write(folder.join("file"), "from the node")?;
    let pod = PodSpec::new(&case).run().await?;
    let path = folder.display().to_string();
    let mut spec = ContainerSpec::idle("main").mount(&path, "/ro", true).mount(&path, "/rw", false);
    spec.config.mounts[1].propagation = cri::MountPropagation::PropagationHostToContainer as i32;
    let container = pod.start(&spec).await?;
    assert_eq!(container.shell("cat /ro/file").await?, "from the node");
    assert_ne!(container.exec(&["/bin/touch", "/ro/new"]).await?.code, 0);
    container.shell("touch /rw/new").await?;
    assert!(folder.join("new").exists());
    let none = None::<&str>;
    let inner = folder.join("inner");
    nix::mount::mount(Some("e2e"), &inner, Some("tmpfs"), nix::mount::MsFlags::empty(), none)?;
    fs::write(inner.join("late"), "")?;
    let late = container.shell("ls /rw/inner").await;
    nix::mount::umount2(&inner, nix::mount::MntFlags::MNT_DETACH)?;
    assert_eq!(late?, "late");
    pod.end().await
}

async fn an_image_volume_shows_the_images_files_read_only(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let spec = ContainerSpec::idle("main").image_volume(DATA_IMAGE, "/volume");
    let container = pod.start(&spec).await?;
    assert_eq!(container.shell("cat /volume/data/hello.txt").await?, "hello from an image volume");
    assert_ne!(container.exec(&["/bin/touch", "/volume/new"]).await?.code, 0);
    let second =
        pod.start(&ContainerSpec::idle("second").image_volume(DATA_IMAGE, "/data")).await?;
    assert_eq!(second.shell("cat /data/data/sub/deep.txt").await?, "deep");
    pod.end().await
}

async fn a_mooring_pod_has_no_pause_process(case: Case) -> Result<()> {
    assert!(case.handler.is_mooring());
    let old: Vec<i32> = mooring_e2e::audit::all_processes().iter().map(|one| one.pid).collect();
    let pod = PodSpec::new(&case).run().await?;
    let new = || -> Vec<_> {
        let all = mooring_e2e::audit::all_processes();
        all.into_iter().filter(|one| !old.contains(&one.pid)).collect()
    };
    // What containerd runs on its own meanwhile, such as `delete` of an earlier pod's shim, ends; a pause process stays.
    let settled = until(Duration::from_secs(5), "", || new().len() == 1).await;
    let new = new();
    assert!(settled.is_ok(), "{new:?}");
    assert!(new[0].command.contains("containerd-shim-mooring-"), "{new:?}");
    pod.end().await
}

async fn the_verbose_status_has_the_pods_specification(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).sysctl("net.ipv4.ip_forward", "1").run().await?;
    let (_, info) = pod.verbose_status().await?;
    let info: serde_json::Value = serde_json::from_str(&info["info"])?;
    let spec = &info["runtimeSpec"];
    let namespaces = spec["linux"]["namespaces"].as_array().expect("a list").clone();
    let network = namespaces.iter().find(|one| one["type"] == "network").expect("a network");
    let path = network["path"].as_str().expect("a path");
    assert!(std::path::Path::new(path).exists(), "{path}");
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], pod.id.as_str());
    assert_eq!(spec["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_forward"], "1");
    assert_eq!(spec["hostname"], pod.spec.config.hostname.as_str());
    let parent = pod.spec.config.linux.as_ref().expect("Linux").cgroup_parent.as_str();
    let group = spec["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    assert!(group.starts_with(parent), "{group}");
    pod.end().await
}

suite!(Settings::default();
    too: builtin;
    both: the_verbose_status_has_the_pods_specification,
        two_containers_share_network_ipc_and_hostname,
        a_container_that_starts_again_joins_the_same_pod,
        a_shared_pid_namespace_shows_all_processes_of_the_pod,
        a_container_with_its_own_pid_namespace_is_process_1,
        a_pod_in_the_nodes_pid_namespace_sees_the_nodes_processes,
        a_target_container_lends_its_pid_namespace,
        a_pod_with_the_nodes_ipc_shares_its_shm,
        dns_options_become_resolv_conf,
        without_dns_options_the_nodes_files_are_copied,
        the_pods_shm_is_a_small_tmpfs,
        sandbox_files_are_read_only_with_a_read_only_root,
        given_sysctls_are_set_in_the_pod_alone,
        default_sysctls_let_users_ping_and_bind_low_ports,
        a_given_sysctl_wins_over_the_default,
        root_of_a_user_namespaced_pod_is_nobody_on_the_node,
        a_user_namespaced_pod_may_share_its_pid_namespace,
        a_privileged_container_may_mount_and_sees_devices,
        user_and_groups_of_a_container_are_as_asked_for,
        host_mounts_propagate_as_asked_for,
        an_image_volume_shows_the_images_files_read_only;
    host_network: a_pod_on_the_nodes_network_has_its_links_and_hostname,
        all_host_namespaces_at_once_work;
    mooring: a_mooring_pod_has_no_pause_process);
