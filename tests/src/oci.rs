//! An OCI runtime that does as it is told, and is runc otherwise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::node::Node;

const CONFIG: &str = "/etc/mooring/config.toml";

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing, for ever.
    Hangs,
    /// It is killed before it has done anything.
    Dies,
    /// It does what it is to do, and does not come back.
    HangsAfter,
    /// It does what it is to do, and is killed.
    DiesAfter,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hangs, Self::Dies, Self::HangsAfter, Self::DiesAfter];

    fn word(self) -> &'static str {
        match self {
            Self::Hangs => "hangs",
            Self::Dies => "dies",
            Self::HangsAfter => "hangs-after",
            Self::DiesAfter => "dies-after",
        }
    }
}

/// The runtime that shims started from now on use, until this is dropped.
pub struct Oci {
    folder: PathBuf,
    before: String,
}

impl Oci {
    /// Installs it. `options` are further lines for the node's configuration of Mooring.
    pub fn install(node: &Node, name: &str, options: &str) -> Result<Self> {
        let folder = node.folder().join("oci").join(name);
        fs::create_dir_all(&folder)?;
        let program = folder.join("runtime");
        let script = format!(
            r#"#!/bin/sh
# A file VERB.CONTAINER says what becomes of this call.
real='{real}'
for verb; do
  case $verb in create|start|exec|kill|delete) break ;; esac
done
for id; do
  fault='{dir}'/"$verb.$id"
  [ -e "$fault" ] || continue
  read -r word <"$fault"
  case $word in
    hangs) exec sleep 1000 ;;
    dies) kill -9 $$ ;;
    hangs-after) "$real" "$@"; exec sleep 1000 ;;
    dies-after) "$real" "$@"; kill -9 $$ ;;
  esac
done
exec "$real" "$@"
"#,
            real = node.folder().join("bin/runc").display(),
            dir = folder.display(),
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let before = fs::read_to_string(CONFIG).context("read Mooring's configuration")?;
        let usual: Vec<&str> =
            before.lines().filter(|line| !line.starts_with("BinaryName")).collect();
        let config =
            format!("{}\nBinaryName = '{}'\n{options}\n", usual.join("\n"), program.display());
        fs::write(CONFIG, config).context("configure Mooring")?;
        Ok(Self { folder, before })
    }

    fn file(&self, verb: &str, container: &str) -> PathBuf {
        self.folder.join(format!("{verb}.{container}"))
    }

    /// From now on the runtime's calls of `verb` for a container end so.
    pub fn fault(&self, verb: &str, container: &str, fault: Fault) -> Result<()> {
        fs::write(self.file(verb, container), format!("{}\n", fault.word()))?;
        Ok(())
    }

    /// It works again.
    pub fn mend(&self, verb: &str, container: &str) {
        let _ = fs::remove_file(self.file(verb, container));
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(CONFIG), &self.before);
        let _ = fs::remove_dir_all(&self.folder);
    }
}
