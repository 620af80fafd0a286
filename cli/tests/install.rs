//! `mooring install` and `uninstall` in roots of their own, checked by a real containerd where there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

const CONFIG: &str = "etc/containerd/config.toml";

struct Root {
    folder: tempfile::TempDir,
    /// What stands for the two programs: a few bytes suffice.
    programs: tempfile::TempDir,
}

impl Root {
    fn new(config: Option<&str>) -> Self {
        let root =
            Self { folder: tempfile::tempdir().unwrap(), programs: tempfile::tempdir().unwrap() };
        for name in ["containerd-shim-mooring-v1", "mooring"] {
            fs::write(root.programs.path().join(name), format!("program {name}\0\u{1}")).unwrap();
        }
        fs::create_dir_all(root.path("etc/containerd")).unwrap();
        if let Some(config) = config {
            fs::write(root.path(CONFIG), config).unwrap();
        }
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn run(&self, command: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_mooring"));
        tool.arg(command).arg("--root").arg(self.folder.path());
        if command == "install" {
            tool.arg("--from").arg(self.programs.path());
        }
        let output = tool.args(more).output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    /// Every file and folder, with what it holds.
    fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(folder: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    walk(&path, all);
                    all.insert(path, Vec::new());
                } else {
                    let text = fs::read(&path).unwrap_or_default();
                    all.insert(path, text);
                }
            }
        }
        let mut all = BTreeMap::new();
        walk(self.folder.path(), &mut all);
        all
    }

    /// The configuration as a real containerd reads it; nothing where there is none.
    fn dump(&self) -> Option<String> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let deps =
            std::env::var_os("MOORING_DEPS").map_or_else(|| project.join(".deps"), Into::into);
        let usual = deps.join("bin");
        let folder = std::env::var_os("MOORING_CONTAINERD").map_or(usual, Into::into);
        let containerd = folder.join("containerd");
        if !containerd.exists() {
            eprintln!("no containerd in {}: its reading is not looked at", folder.display());
            return None;
        }
        let version = Command::new(&containerd).arg("--version").output().unwrap();
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let older = ["v2.0", "v2.1", "v2.2", " 2.0", " 2.1", " 2.2"];
        if fs::read_to_string(self.path(CONFIG)).unwrap().contains("version = 4")
            && older.iter().any(|one| version.contains(one))
        {
            eprintln!("a configuration of version 4 is not for this containerd: {version}");
            return None;
        }
        let output = Command::new(containerd)
            .arg("-c")
            .arg(self.path(CONFIG))
            .args(["config", "dump"])
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        Some(text)
    }
}

/// The lines of a table in a dump that belong to it alone.
fn table<'a>(dump: &'a str, header: &str) -> Vec<&'a str> {
    let lines = dump.lines().map(str::trim).skip_while(|line| *line != header).skip(1);
    lines.take_while(|line| !line.starts_with('[')).collect()
}

const V2: &str = "# the node's\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = 'runc' # as ever\n  \
  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = 'io.containerd.runc.v2'\n    \
  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n      SystemdCgroup = true\n";
const V3: &str = "version = 3\nimports = ['conf.d/10-*.toml']\n\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  \
  runtime_type = 'io.containerd.runc.v2'\n  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n    SystemdCgroup = true\n";

#[test]
fn each_version_gets_the_handler_keeps_its_own_and_is_as_before_at_the_end() {
    let v4 = V3.replace("version = 3", "version = 4");
    for config in [Some(V2), Some(V3), Some(&*v4), Some("disabled_plugins = []\n"), None] {
        let root = Root::new(config);
        let before = root.everything();

        let (code, shown) = root.run("install", &["--dry-run"]);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("+imports = ["), "{shown}");
        assert!(shown.contains("+  sandboxer = 'shim'"), "{shown}");
        assert_eq!(root.everything(), before, "a dry run");

        let (code, shown) = root.run("install", &[]);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("systemctl restart containerd"), "{shown}");
        assert!(shown.contains("kind: RuntimeClass"), "{shown}");
        for name in ["containerd-shim-mooring-v1", "mooring"] {
            let installed = root.path("usr/local/bin").join(name);
            assert_eq!(
                fs::read(&installed).unwrap(),
                fs::read(root.programs.path().join(name)).unwrap()
            );
            assert_eq!(fs::metadata(installed).unwrap().permissions().mode() & 0o777, 0o755);
        }
        if let Some(dump) = root.dump() {
            let runtimes = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
            let ours = table(&dump, &format!("[{runtimes}.mooring]"));
            assert!(ours.contains(&"runtime_type = 'io.containerd.mooring.v1'"), "{dump}");
            assert!(ours.contains(&"sandboxer = 'shim'"), "{dump}");
            if config.is_some_and(|config| config.contains("SystemdCgroup")) {
                let runc = table(&dump, &format!("[{runtimes}.runc.options]"));
                assert!(runc.contains(&"SystemdCgroup = true"), "{dump}");
            }
        }

        let installed = root.everything();
        let (code, shown) = root.run("install", &[]);
        assert_eq!((code, shown.trim()), (Some(0), "everything is installed already"));
        assert_eq!(root.everything(), installed);

        let (code, shown) = root.run("uninstall", &[]);
        assert_eq!(code, Some(0), "{shown}");
        assert_eq!(root.everything(), before, "after uninstall: {shown}");
        let (code, shown) = root.run("uninstall", &[]);
        assert_eq!((code, shown.contains("nothing is installed")), (Some(0), true), "{shown}");
    }
}

#[test]
fn what_cannot_be_parsed_is_named_and_nothing_is_changed() {
    let import = "version = 3\nimports = ['conf.d/*.toml']\n";
    let kata = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.mooring]\n  runtime_type = 'x'\n";
    for (config, other, named) in [
        ("version = 3\nimports = [\n", None, "etc/containerd/config.toml, line "),
        ("version = 1\n", None, "line 1, column 11: its version is 1"),
        (import, Some("a = 1\nb = = 2\n"), "etc/containerd/conf.d/10-other.toml, line 2, column 5"),
        (import, Some(kata), "has a handler \"mooring\" already"),
        (kata, None, "has a handler \"mooring\" already"),
    ] {
        let root = Root::new(Some(config));
        if let Some(other) = other {
            fs::create_dir(root.path("etc/containerd/conf.d")).unwrap();
            fs::write(root.path("etc/containerd/conf.d/10-other.toml"), other).unwrap();
        }
        let before = root.everything();
        let (code, said) = root.run("install", &[]);
        assert_eq!(code, Some(2), "{config}: {said}");
        assert!(said.contains(named) && said.contains("nothing was changed"), "{config}: {said}");
        assert_eq!(root.everything(), before, "{config}");
    }
}

#[test]
fn what_is_somebody_elses_is_not_replaced_and_what_was_changed_since_is_kept() {
    let root = Root::new(Some("version = 3\nimports = ['conf.d/*.toml']\n"));
    let drop_in = root.path("etc/containerd/conf.d/mooring.toml");
    fs::create_dir(drop_in.parent().unwrap()).unwrap();
    fs::write(&drop_in, "version = 3\n").unwrap();
    let (code, said) = root.run("install", &[]);
    assert!(code == Some(2) && said.contains("move it away first"), "{said}");
    assert!(!root.path("usr").exists());
    fs::remove_file(&drop_in).unwrap();

    assert_eq!(root.run("install", &[]).0, Some(0));
    // An upgrade replaces what it has made.
    fs::write(root.programs.path().join("mooring"), "newer").unwrap();
    assert_eq!(root.run("install", &[]).0, Some(0));
    assert_eq!(fs::read_to_string(root.path("usr/local/bin/mooring")).unwrap(), "newer");

    // Pods whose shims would find their program gone.
    let pod = root.path("var/lib/mooring/k8s.io/pod");
    fs::create_dir_all(&pod).unwrap();
    let (code, said) = root.run("uninstall", &[]);
    assert!(code == Some(2) && said.contains("1 sandboxes still"), "{said}");
    fs::remove_dir_all(pod.parent().unwrap()).unwrap();

    let mine = fs::read_to_string(&drop_in).unwrap() + "# of the administrator\n";
    fs::write(&drop_in, &mine).unwrap();
    let config = root.path(CONFIG);
    fs::write(&config, fs::read_to_string(&config).unwrap() + "[debug]\n  level = 'debug'\n")
        .unwrap();
    let (code, said) = root.run("uninstall", &[]);
    assert!(code == Some(1) && said.contains("keep /etc/containerd/conf.d/mooring.toml"), "{said}");
    assert_eq!(fs::read_to_string(&drop_in).unwrap(), mine);
    assert!(!root.path("usr/local/bin/mooring").exists());
    assert!(fs::read_to_string(config).unwrap().ends_with("level = 'debug'\n"));
}

#[test]
fn a_root_whose_links_lead_out_of_it_changes_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("containerd")).unwrap();
    fs::write(outside.path().join("containerd/config.toml"), "version = 3\n").unwrap();
    let root = Root::new(None);
    fs::remove_dir(root.path("etc/containerd")).unwrap();
    symlink(outside.path().join("containerd"), root.path("etc/containerd")).unwrap();
    symlink(outside.path(), root.path("usr")).unwrap();
    let (code, said) = root.run("install", &[]);
    assert_ne!(code, Some(0), "{said}");
    let names: Vec<_> =
        fs::read_dir(outside.path()).unwrap().flatten().map(|it| it.file_name()).collect();
    assert_eq!(names, ["containerd"], "{said}");
    let config = fs::read_to_string(outside.path().join("containerd/config.toml")).unwrap();
    assert_eq!(config, "version = 3\n");
    assert_eq!(fs::read_dir(outside.path().join("containerd")).unwrap().count(), 1);

    // Links within it are followed, as they are on the system itself.
    let root = Root::new(None);
    fs::create_dir_all(root.path("opt/real")).unwrap();
    fs::write(root.path("opt/real/config.toml"), "version = 2\n").unwrap();
    symlink("/opt/real/config.toml", root.path(CONFIG)).unwrap();
    let (code, said) = root.run("install", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(root.path(CONFIG).is_symlink());
    assert!(fs::read_to_string(root.path("opt/real/config.toml")).unwrap().contains("conf.d"));
    assert!(
        fs::read_to_string(root.path("etc/containerd/conf.d/mooring.toml"))
            .unwrap()
            .contains("version = 2")
    );
}
