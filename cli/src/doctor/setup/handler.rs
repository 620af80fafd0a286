//! The handlers of Mooring's in containerd's configuration.

use std::path::{Path, PathBuf};

use toml_edit::{Item, TableLike};

use super::{Remark, Setup, is_program};
use crate::install::config::{SANDBOXER, disabled_cri};

const PART: &str = "handler";
/// CRI's plugin in configurations of version 3, and of version 2.
const CRI: [&str; 2] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"];
const TYPE: &str = "io.containerd.mooring";

pub fn remarks(setup: &Setup<'_>) -> Vec<Remark> {
    let mut all = Vec::new();
    if let Some(name) = disabled_cri(setup.config.item(&["disabled_plugins"])) {
        all.push(
            Remark::problem(PART, format!("containerd's CRI is disabled: {name:?}"))
                .remedy("take it out of disabled_plugins"),
        );
    }
    let mut handlers = 0;
    for runtimes in
        CRI.iter().flat_map(|cri| setup.config.items(&["plugins", cri, "containerd", "runtimes"]))
    {
        for (name, handler) in runtimes.as_table_like().into_iter().flat_map(TableLike::iter) {
            let text = |key: &str| handler.get(key).and_then(Item::as_str).unwrap_or_default();
            let ours =
                |text: &str| text.starts_with(TYPE) || text.contains("containerd-shim-mooring");
            if ours(text("runtime_type")) {
                handlers += 1;
                all.extend(judge(setup, name, text("runtime_type"), handler));
            } else if ours(text("runtime_path")) {
                handlers += 1;
                let what = format!(
                    "handler {name:?} names the shim by runtime_path alone, which containerd does not read for sandboxes"
                );
                all.push(Remark::problem(PART, what).remedy("name it by runtime_type"));
            }
        }
    }
    if handlers == 0 {
        let what = "containerd's configuration has no handler of Mooring's: Kubernetes' pods cannot use it";
        all.push(Remark::note(PART, what).remedy("mooring install"));
    }
    all
}

fn judge(setup: &Setup<'_>, name: &str, kind: &str, handler: &Item) -> Vec<Remark> {
    let mut all = Vec::new();
    if handler.get("sandboxer").and_then(Item::as_str) != Some(SANDBOXER) {
        let what = format!(
            "handler {name:?} has not sandboxer = '{SANDBOXER}': its pods get pause containers, and no sandbox of Mooring's"
        );
        all.push(Remark::problem(PART, what).remedy(format!("sandboxer = '{SANDBOXER}'")));
    }
    if handler.get("options").and_then(Item::as_table_like).is_some_and(|table| !table.is_empty()) {
        let version =
            setup.world.records().and_then(|records| super::limits::parse(&records.version));
        let what = format!("handler {name:?} has options");
        let remedy = "put them into /etc/mooring/config.toml";
        all.push(match version {
            Some(version) if version < (2, 3, 1) => Remark::problem(
                PART,
                format!("{what}: with this containerd no container of it starts"),
            )
            .remedy(remedy),
            _ => Remark::note(PART, format!("{what}: its pods cannot have user namespaces"))
                .remedy(remedy),
        });
    }
    if let Some(path) = shim(setup, kind) {
        all.push(Remark::good(PART, format!("{name:?}, {}", path.display())));
    } else {
        let what = format!(
            "the shim of handler {name:?} ({kind}) is found neither in containerd's PATH nor beside it"
        );
        all.push(Remark::problem(PART, what).remedy("mooring install"));
    }
    let profile =
        kind.strip_prefix("io.containerd.mooring-").and_then(|rest| rest.strip_suffix(".v1"));
    if let Some(profile) = profile
        && !setup.options.iter().any(|one| one.runtime_type() == kind)
    {
        let what = format!(
            "handler {name:?}: there is no table [profile.{profile}] in the node's configuration, so no pod of it starts"
        );
        all.push(Remark::problem(PART, what).remedy("docs/options.md, \"Profiles\""));
    }
    all
}

/// The program that containerd finds for a runtime type: `io.containerd.NAME.v1` is `containerd-shim-NAME-v1`.
fn shim(setup: &Setup<'_>, kind: &str) -> Option<PathBuf> {
    if kind.starts_with('/') {
        return is_program(Path::new(kind)).then(|| kind.into());
    }
    let mut parts = kind.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    let program = format!("containerd-shim-{name}-{version}");
    let beside = setup.containerd.and_then(|one| {
        let own = std::fs::read_link(format!("/proc/{}/exe", one.pid)).ok()?;
        Some(own.with_file_name(&program)).filter(|path| is_program(path))
    });
    setup.program(Path::new(&program)).or(beside)
}

#[cfg(test)]
mod tests {
    use mooring::options::Options;

    use super::*;
    use crate::{
        containerd_config::ContainerdConfig,
        doctor::{setup::Level, world::World},
    };

    /// What is said of a configuration, where the shim is found.
    fn said(text: &str) -> Vec<(Level, String)> {
        let folder = tempfile::tempdir().unwrap();
        let shim = folder.path().join("containerd-shim-mooring-v1");
        std::fs::write(&shim, "").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&shim, mode).unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let config = ContainerdConfig::read(&path);
        assert_eq!(config.complaint(), None);
        let world = World::empty();
        let setup = Setup {
            world: &world,
            config: &config,
            options: vec![Options::default()],
            containerd: None,
            path: vec![folder.path().to_owned()],
        };
        remarks(&setup).into_iter().map(|one| (one.level, one.what)).collect()
    }

    fn handler(more: &str) -> String {
        format!(
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.mooring]\n{more}"
        )
    }

    #[test]
    fn a_handler_as_it_should_be_is_good_in_both_versions() {
        let three = handler("runtime_type = 'io.containerd.mooring.v1'\nsandboxer = 'shim'\n");
        let two = three.replace("version = 3", "version = 2").replace(CRI[0], CRI[1]);
        for text in [three, two] {
            let said = said(&text);
            assert!(said.len() == 1 && said[0].0 == Level::Good, "{said:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_handler_is_named() {
        for (text, level, what) in [
            (String::new(), Level::Note, "no handler"),
            (handler("runtime_type = 'io.containerd.mooring.v1'\n"), Level::Problem, "sandboxer"),
            (
                handler(
                    "runtime_type = 'io.containerd.runc.v2'\nruntime_path = '/x/containerd-shim-mooring-v1'\n",
                ),
                Level::Problem,
                "runtime_path",
            ),
            (
                handler("runtime_type = 'io.containerd.mooring-none.v1'\nsandboxer = 'shim'\n"),
                Level::Problem,
                "neither in containerd's PATH",
            ),
            (
                handler("runtime_type = 'io.containerd.mooring-none.v1'\nsandboxer = 'shim'\n"),
                Level::Problem,
                "[profile.none]",
            ),
            (
                handler(
                    "runtime_type = 'io.containerd.mooring.v1'\nsandboxer = 'shim'\noptions = { BinaryName = 'x' }\n",
                ),
                Level::Note,
                "has options",
            ),
            ("disabled_plugins = ['cri']\n".to_owned(), Level::Problem, "CRI is disabled"),
        ] {
            let said = said(&text);
            let found = said.iter().any(|(one, words)| *one == level && words.contains(what));
            assert!(found, "{text}: {said:?}");
        }
    }
}
