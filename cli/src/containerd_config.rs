//! containerd's configuration with what it imports, for whoever asks what it says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml_edit::Item;

use crate::install::config::{Config, Unusable};

/// The configuration and its imports, the later over the earlier; none of them where there is no file.
#[derive(Debug, Default)]
pub struct ContainerdConfig {
    files: Vec<Config>,
    complaint: Option<String>,
}

impl ContainerdConfig {
    /// Reads it. What cannot be read or parsed is a complaint; the rest is there.
    pub fn read(path: &Path) -> Self {
        let mut all = Self::default();
        if let Err(error) = all.add(path) {
            all.complaint = Some(error.to_string());
            return all;
        }
        let imports = all.files.first().map(Config::imports).transpose();
        match imports {
            Ok(imports) => {
                for import in imports.unwrap_or_default() {
                    let beside = path.parent().unwrap_or(Path::new("/"));
                    for file in found(&beside.join(import)) {
                        if let Err(error) = all.add(&file) {
                            all.complaint = Some(error.to_string());
                        }
                    }
                }
            }
            Err(error) => all.complaint = Some(error.to_string()),
        }
        all
    }

    fn add(&mut self, path: &Path) -> Result<(), Unusable> {
        match fs::read(path) {
            Ok(text) => self.files.push(Config::parse(path, Some(text))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let reason = error.to_string();
                return Err(Unusable { file: path.to_owned(), at: None, reason });
            }
        }
        Ok(())
    }

    /// Why it is not known as a whole.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// What the last file says that says something.
    pub fn item(&self, path: &[&str]) -> Option<&Item> {
        self.files.iter().rev().find_map(|file| file.item(path))
    }

    /// What each file says, for what is merged key by key.
    pub fn items(&self, path: &[&str]) -> Vec<&Item> {
        self.files.iter().filter_map(|file| file.item(path)).collect()
    }

    pub fn text(&self, path: &[&str]) -> Option<String> {
        self.item(path)?.as_str().map(str::to_owned)
    }
}

/// The files that an import leads to.
fn found(pattern: &Path) -> Vec<PathBuf> {
    let paths = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok());
    paths.into_iter().flatten().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_over_the_file_that_imports_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        assert_eq!(ContainerdConfig::read(&path).text(&["state"]), None);
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        fs::write(&path, "version = 3\nimports = ['conf.d/*.toml']\nstate = '/a'\nroot = '/b'\n")
            .unwrap();
        fs::write(folder.path().join("conf.d/x.toml"), "state = '/c'\n[grpc]\naddress = '/d'\n")
            .unwrap();
        let config = ContainerdConfig::read(&path);
        assert_eq!(config.complaint(), None);
        let said = [&["state"][..], &["root"], &["grpc", "address"], &["grpc", "uid"]]
            .map(|path| config.text(path).unwrap_or_default());
        assert_eq!(said, ["/c", "/b", "/d", ""]);
        fs::write(folder.path().join("conf.d/y.toml"), "state =\n").unwrap();
        let config = ContainerdConfig::read(&path);
        assert!(config.complaint().unwrap().contains("y.toml, line 1"), "{config:?}");
        assert_eq!(config.text(&["root"]).as_deref(), Some("/b"));
    }
}
