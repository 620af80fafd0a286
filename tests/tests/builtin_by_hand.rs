//! The built-in OCI runtime by hand: what those who come from runc rely on.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use mooring_e2e::bundle::{Bundle, succeed, text};
use mooring_e2e::faults::until;
use mooring_e2e::node::{Settings, shim};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use serde_json::{Value, json};

suite!(
    Settings { builtin: true, ..Settings::default() };
    both:;
    mooring:
    a_strict_umask_keeps_no_user_out,
    a_link_to_a_file_that_is_not_there_yet_takes_a_mount,
    a_hook_need_not_read_what_it_is_told,
    hooks_in_the_container_are_under_its_filter,
    a_filter_may_deny_what_is_new,
    a_kill_takes_all_where_pids_are_shared,
    a_frozen_group_is_refused,
    without_pivot_root_the_nodes_proc_is_out_of_reach,
    masked_folders_cost_one_file_system,
    a_tmpfs_has_the_mode_of_the_folder_below,
    clocks_in_a_user_namespace,
    an_exec_is_as_the_container_and_as_its_flags_say,
    a_right_that_nobody_has_is_no_reason_not_to_run,
    containers_are_listed,
    hooks_are_told_the_process_and_limits_are_set_on_it,
);

fn exec(bundle: &Bundle, script: &str) -> Result<String> {
    let said = bundle.call(&["exec", &bundle.id, "sh", "-c", script])?;
    succeed(&said)?;
    Ok(text(&said).trim().to_owned())
}

/// Runs to its end, and answers what it has printed.
async fn printed(bundle: &Bundle) -> Result<String> {
    let log = bundle.folder.join("said");
    let file = fs::File::create(&log)?;
    let mut create = bundle.command(&["create", "--pid-file", "pid", &bundle.id])?;
    let status = create.stdout(file.try_clone()?).stderr(file).status()?;
    ensure!(status.success(), "{}", fs::read_to_string(&log)?);
    let _ = bundle.call(&["start", &bundle.id])?;
    let state = || {
        let said = bundle.call(&["state", &bundle.id]).map(|said| text(&said)).unwrap_or_default();
        said.contains("stopped")
    };
    until(Duration::from_secs(20), "it does not end", state).await?;
    Ok(fs::read_to_string(log)?)
}

async fn a_strict_umask_keeps_no_user_out(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, _| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    })?;
    let create = format!(
        "umask 077; exec {} oci --root {}/state create {}",
        shim()?.display(),
        bundle.folder.display(),
        bundle.id
    );
    let mut create_ = Command::new("sh");
    create_.args(["-c", &create]).current_dir(&bundle.folder).stdin(Stdio::null());
    ensure!(create_.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success());
    succeed(&bundle.call(&["start", &bundle.id])?)?;
    ensure!(exec(&bundle, "id -u")? == "1000");
    bundle.end()
}

/// Images with systemd have /etc/resolv.conf so.
async fn a_link_to_a_file_that_is_not_there_yet_takes_a_mount(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, root| {
        symlink("../run/resolve/stub.conf", root.join("etc/resolv.conf")).unwrap();
        let source = root.parent().unwrap().join("resolv.conf");
        fs::write(&source, "nameserver 192.0.2.1\n").unwrap();
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/etc/resolv.conf", "type": "bind", "source": source, "options": ["rbind", "ro"],
        }));
    })?;
    bundle.run()?;
    ensure!(exec(&bundle, "cat /etc/resolv.conf")? == "nameserver 192.0.2.1");
    bundle.end()
}

async fn a_hook_need_not_read_what_it_is_told(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, _| {
        spec["annotations"] = json!({"much": "x".repeat(200_000)});
        let ends = json!({"path": "/bin/true"});
        spec["hooks"] = json!({"createRuntime": [ends, ends], "poststop": [ends]});
    })?;
    bundle.run()?;
    bundle.end()
}

async fn hooks_in_the_container_are_under_its_filter(case: Case) -> Result<()> {
    for no_new_privileges in [false, true] {
        let bundle = Bundle::new(&case, |spec, _| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["process"]["args"] = json!(["sh", "-c", "echo ran"]);
            spec["process"]["env"] = json!(["PATH=/bin", "GIVEN=yes"]);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
            });
            // Its environment is the container's, since it names none.
            let script = "[ \"$GIVEN\" = yes ] || exit 0; mkdir /tmp/made";
            let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
            spec["hooks"] = json!({"startContainer": [hook]});
        })?;
        let said = printed(&bundle).await?;
        ensure!(said.contains("startContainer hook"), "{said:?}");
        ensure!(!said.contains("ran") && !bundle.folder.join("rootfs/tmp/made").exists());
        bundle.end()?;
    }
    Ok(())
}

/// A profile that was recorded with another runtime, or on an older kernel, knows nothing of what this one would call.
async fn a_filter_may_deny_what_is_new(case: Case) -> Result<()> {
    for no_new_privileges in [false, true] {
        let bundle = Bundle::new(&case, |spec, _| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            let new = [
                "close_range",
                "openat2",
                "faccessat2",
                "fsopen",
                "fsconfig",
                "fsmount",
                "move_mount",
                "open_tree",
                "mount_setattr",
                "sendto",
                "recvfrom",
                "setgroups",
                "setuid",
                "setresuid",
                "setresgid",
                "chdir",
                "fchdir",
                "getcwd",
                "statx",
                "seccomp",
            ];
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": new, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
            });
        })?;
        bundle.run()?;
        let said = bundle.call(&["exec", &bundle.id, "cat", "/proc/self/status"])?;
        succeed(&said)?;
        for line in ["Seccomp:\t2", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000020"] {
            ensure!(text(&said).contains(line), "{line:?} in {}", text(&said));
        }
        bundle.end()?;
    }
    Ok(())
}

async fn a_kill_takes_all_where_pids_are_shared(case: Case) -> Result<()> {
    for first_is_gone in [false, true] {
        let bundle = Bundle::new(&case, |spec, _| {
            let kinds = spec["linux"]["namespaces"].as_array_mut().unwrap();
            kinds.retain(|one| one["type"] != "pid");
            spec["process"]["args"] =
                json!(["sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000"]);
        })?;
        bundle.run()?;
        let count = || {
            let listed = bundle.call(&["ps", &bundle.id]).map(|said| text(&said));
            listed.unwrap_or_default().lines().count()
        };
        until(Duration::from_secs(10), "not all are there", || count() == 3).await?;
        if first_is_gone {
            let first = nix::unistd::Pid::from_raw(bundle.pid()?);
            nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL)?;
            until(Duration::from_secs(10), "it does not end", || count() == 2).await?;
        }
        succeed(&bundle.call(&["kill", &bundle.id, "KILL"])?)?;
        until(Duration::from_secs(10), "some are left", || count() == 0).await?;
        let asked = bundle.call(&["kill", &bundle.id, "0"])?;
        ensure!(!asked.status.success() && text(&asked).contains("container not running"));
        bundle.end()?;
    }
    Ok(())
}

/// In one the container's process would hang, and whoever waits for it.
async fn a_frozen_group_is_refused(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |_, _| {})?;
    let (old, new) = (Path::new("/sys/fs/cgroup/freezer/e2e"), Path::new("/sys/fs/cgroup/e2e"));
    let (place, file, word) = if old.parent().is_some_and(Path::exists) {
        (old.join(&bundle.id), "freezer.state", "FROZEN")
    } else {
        (new.join(&bundle.id), "cgroup.freeze", "1")
    };
    fs::create_dir_all(&place)?;
    fs::write(place.join(file), word)?;
    let created = bundle.create()?;
    ensure!(
        !created.status.success() && text(&created).contains("is frozen"),
        "{}",
        text(&created)
    );
    ensure!(!bundle.folder.join("state").join(&bundle.id).exists());
    fs::remove_dir(place)?;
    bundle.remove()
}

/// A moved root lies over the node's mounts; with a whole /proc below it a user namespace may mount one.
async fn without_pivot_root_the_nodes_proc_is_out_of_reach(case: Case) -> Result<()> {
    let mounts = || fs::read_to_string("/proc/self/mountinfo");
    for propagation in ["rslave", "rshared"] {
        let before = mounts()?;
        let bundle = Bundle::new(&case, |spec, _| {
            let rights = json!(["CAP_SETFCAP", "CAP_KILL"]);
            spec["process"]["capabilities"] =
                json!({"bounding": rights, "effective": rights, "permitted": rights});
            spec["linux"]["rootfsPropagation"] = json!(propagation);
            spec["process"]["args"] = json!([
                "unshare",
                "-mrpf",
                "sh",
                "-c",
                "mount -t proc none /proc && echo a bare proc; mount -t sysfs none /sys && echo a bare sys",
            ]);
        })?;
        let log = bundle.folder.join("said");
        let file = fs::File::create(&log)?;
        let mut create =
            bundle.command(&["create", "--no-pivot", "--pid-file", "pid", &bundle.id])?;
        let status = create.stdout(file.try_clone()?).stderr(file).status()?;
        ensure!(status.success(), "{}", fs::read_to_string(&log)?);
        succeed(&bundle.call(&["start", &bundle.id])?)?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        until(Duration::from_secs(20), "nothing is said", || said().lines().count() >= 2).await?;
        ensure!(!said().contains("bare"), "{}", said());
        bundle.end()?;
        // What was taken from the container is still the node's.
        ensure!(mounts()? == before, "the node's mounts have changed");
    }
    Ok(())
}

async fn masked_folders_cost_one_file_system(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, root| {
        for name in ["one", "two"] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "").unwrap();
        }
        spec["linux"]["maskedPaths"] = json!(["/one", "/two", "/one"]);
    })?;
    bundle.run()?;
    let said =
        exec(&bundle, "stat -c %d /one /two; ls /one /two | grep file; grep -c /one /proc/mounts")?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.len() == 3 && lines.first() == lines.get(1) && lines.last() == Some(&"1"),
        "{said}"
    );
    let made = bundle.call(&["exec", &bundle.id, "mkdir", "/two/made"])?;
    ensure!(text(&made).contains("Read-only file system"), "{}", text(&made));
    bundle.end()
}

async fn a_tmpfs_has_the_mode_of_the_folder_below(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, root| {
        fs::create_dir(root.join("mine")).unwrap();
        fs::set_permissions(root.join("mine"), fs::Permissions::from_mode(0o710)).unwrap();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        for (at, options) in
            [("/mine", json!([])), ("/new", json!([])), ("/said", json!(["mode=1500"]))]
        {
            mounts.push(
                json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options}),
            );
        }
        // As an image's author has wished, and with a terminal's file in it.
        mounts[1]["options"] = json!(["ro", "mode=755"]);
    })?;
    bundle.run()?;
    let said = exec(&bundle, "stat -c %a /mine /new /said; mkdir /dev/made 2>&1 || true")?;
    ensure!(said.starts_with("710\n1777\n1500\n") && said.contains("Read-only"), "{said}");
    bundle.end()
}

async fn clocks_in_a_user_namespace(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, root| {
        for path in [root.to_owned(), root.join("tmp")] {
            std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
        }
        let kinds = spec["linux"]["namespaces"].as_array_mut().unwrap();
        kinds.extend([json!({"type": "user"}), json!({"type": "time"})]);
        let all = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        spec["linux"]["uidMappings"] = all.clone();
        spec["linux"]["gidMappings"] = all;
        spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 7_000_000}});
    })?;
    bundle.run()?;
    let said = exec(&bundle, "cat /proc/uptime")?;
    let up: f64 = said.split(' ').next().unwrap_or_default().parse()?;
    ensure!(up > 7_000_000.0, "{said}");
    bundle.end()
}

async fn an_exec_is_as_the_container_and_as_its_flags_say(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, _| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
        spec["process"]["env"] = json!(["PATH=/bin", "A=1", "A=2", "HOME="]);
    })?;
    bundle.run()?;
    if cfg!(target_arch = "x86_64") {
        ensure!(exec(&bundle, "uname -m")? == "i686");
    }
    ensure!(exec(&bundle, "env | grep -c ^A=; echo $A$HOME")? == "1\n2/");
    let run = |flags: &[&str], words: &[&str]| {
        let all = [&["exec"], flags, &[bundle.id.as_str()], words].concat();
        bundle.call(&all)
    };
    let said = run(&["--user", "7:8", "-g", "9", "-g", "10"], &["id"])?;
    ensure!(
        text(&said).starts_with("uid=7 gid=8") && text(&said).contains("9,10"),
        "{}",
        text(&said)
    );
    let said = run(&["--cap", "CAP_AUDIT_WRITE", "--no-new-privs"], &["cat", "/proc/self/status"])?;
    for line in ["CapEff:\t0000000020000020", "NoNewPrivs:\t1"] {
        ensure!(text(&said).contains(line), "{}", text(&said));
    }
    // As a shell's <(…), which is a descriptor.
    let line = format!(
        "echo '{}' | {} oci --root {}/state exec --process /dev/fd/0 {}",
        json!({"args": ["id", "-u"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 5, "gid": 5}}),
        shim()?.display(),
        bundle.folder.display(),
        bundle.id
    );
    let said = Command::new("sh").args(["-c", &line]).output()?;
    ensure!(text(&said).trim() == "5", "{said:?}");
    ensure!(run(&["--user", "me"], &["id"])?.status.code() == Some(255));
    ensure!(run(&[], &["sh", "-c", "exit 3"])?.status.code() == Some(3));
    bundle.end()
}

async fn a_right_that_nobody_has_is_no_reason_not_to_run(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, _| {
        let rights = json!(["CAP_KILL", "CAP_FLY"]);
        spec["process"]["capabilities"] =
            json!({"bounding": rights, "effective": rights, "permitted": rights});
    })?;
    let created = bundle.create()?;
    succeed(&created)?;
    ensure!(text(&created).trim() == "warning: ignored capabilities: CAP_FLY", "{created:?}");
    succeed(&bundle.call(&["start", &bundle.id])?)?;
    ensure!(exec(&bundle, "cat /proc/self/status")?.contains("CapEff:\t0000000000000020"));
    bundle.end()
}

async fn containers_are_listed(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |_, _| {})?;
    ensure!(!bundle.call(&["list"])?.status.success(), "there is no such folder");
    bundle.run()?;
    ensure!(text(&bundle.call(&["list", "-q"])?).trim() == bundle.id);
    let all: Value = serde_json::from_str(&text(&bundle.call(&["list", "--format", "json"])?))?;
    let table = text(&bundle.call(&["list"])?);
    ensure!(table.starts_with("ID ") && table.lines().count() == 2, "{table}");
    if all.pointer("/0/status") != Some(&json!("running"))
        || all.pointer("/0/pid") != Some(&json!(bundle.pid()?))
    {
        bail!("{all}");
    }
    ensure!(text(&bundle.call(&["--version"])?).starts_with("mooring-oci version"));
    bundle.end()
}

/// Its number is told by the one that has made it, which is late where the processors are busy: a hook was told 0, and the
/// limits of an exec were set on another process.
async fn hooks_are_told_the_process_and_limits_are_set_on_it(case: Case) -> Result<()> {
    let busy = Arc::new(AtomicBool::new(true));
    let hogs: Vec<_> = (0..3)
        .map(|_| {
            let busy = Arc::clone(&busy);
            std::thread::spawn(move || while busy.load(Ordering::Relaxed) {})
        })
        .collect();
    let many: Vec<_> = (0..4)
        .map(|_| {
            let case = case.clone();
            tokio::task::spawn_blocking(move || told_and_limited(&case))
        })
        .collect();
    let mut all = Ok(());
    for one in many {
        all = all.and(one.await.map_err(Into::into).and_then(|one| one));
    }
    busy.store(false, Ordering::Relaxed);
    for one in hogs {
        one.join().expect("it only looks at a flag");
    }
    all
}

fn told_and_limited(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, |spec, root| {
        let told = root.parent().unwrap().join("told");
        let script = format!("cat >>{0}; echo >>{0}", told.display());
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        spec["hooks"] = json!({"prestart": hook, "createRuntime": hook, "createContainer": hook});
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}]);
    })?;
    for _ in 0..5 {
        bundle.run()?;
        let limits = exec(&bundle, "grep open /proc/1/limits; ulimit -n")?;
        let words: Vec<_> = limits.split_whitespace().collect();
        ensure!(words == ["Max", "open", "files", "77", "77", "files", "77"], "{limits}");
        let told = fs::read_to_string(bundle.folder.join("told"))?;
        let told: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let numbers: Vec<_> = told.iter().map(|one| one["pid"].as_i64()).collect();
        // The last one is of the container's own namespace of pids.
        let pid = bundle.pid()?.into();
        ensure!(numbers == [Some(pid), Some(pid), Some(1)], "{told:?}");
        succeed(&bundle.call(&["delete", "--force", &bundle.id])?)?;
        fs::remove_file(bundle.folder.join("told"))?;
    }
    bundle.remove()
}
