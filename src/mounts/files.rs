//! The files that a pod's containers share: `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::{interleave::point, released::Released};

const HOSTS: &str = "hosts";
const RESOLV_CONF: &str = "resolv.conf";
const HOSTNAME: &str = "hostname";

/// The pod's files, in a folder of the pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRecord {
    pub dir: PathBuf,
}

impl FilesRecord {
    /// The files that [`acquire`] will make in `dir`: written to the journal before they are made.
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// What containers see as `/etc/hosts`.
    pub fn hosts(&self) -> PathBuf {
        self.dir.join(HOSTS)
    }

    /// What containers see as `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.join(RESOLV_CONF)
    }

    /// What containers see as `/etc/hostname`.
    pub fn hostname(&self) -> PathBuf {
        self.dir.join(HOSTNAME)
    }
}

/// What the files are to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesRequest {
    /// The pod's name for itself; the node's when absent or empty.
    pub hostname: Option<String>,
    /// How the pod resolves names; as the node does when absent or empty.
    pub dns: Option<Dns>,
    /// Who owns the files, where that is not the node's root: the ids on the node of the pod's own root.
    pub owner: Option<(u32, u32)>,
}

/// How a pod resolves names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Dns {
    /// The text of resolv.conf; empty if there is nothing to say.
    fn text(&self) -> Result<String, Error> {
        for word in self.servers.iter().chain(&self.searches).chain(&self.options) {
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(Error::invalid("DNS configuration", format!("{word:?} is no word")));
            }
        }
        let mut text = String::new();
        let mut line = |key: &str, words: &[String]| {
            if !words.is_empty() {
                text.extend([key, " ", words.join(" ").as_str(), "\n"]);
            }
        };
        line("search", &self.searches);
        for server in &self.servers {
            line("nameserver", std::slice::from_ref(server));
        }
        line("options", &self.options);
        Ok(text)
    }
}

/// Writes the files into `dir`, which is made. Blocking, for a moment. May be repeated.
pub fn acquire(dir: &Path, request: &FilesRequest) -> Result<FilesRecord, Error> {
    acquire_from(dir, request, Path::new("/etc"))
}

fn acquire_from(dir: &Path, request: &FilesRequest, node: &Path) -> Result<FilesRecord, Error> {
    let record = FilesRecord::in_dir(dir);
    let hostname = match request.hostname.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if name.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            return Err(Error::invalid(format!("hostname {name:?}"), "it has white space"));
        }
        Some(name) => name.to_owned(),
        None => nix::unistd::gethostname()
            .map_err(|errno| Error::system("get the node's hostname", errno))?
            .to_string_lossy()
            .into_owned(),
    };
    let resolv_conf = match request.dns.as_ref().map(Dns::text).transpose()? {
        Some(text) if !text.is_empty() => text.into_bytes(),
        _ => nodes_own(node, RESOLV_CONF)?,
    };
    make_private(dir, request.owner.map(|(_, group)| group))?;
    write(&record.hosts(), &nodes_own(node, HOSTS)?)?;
    write(&record.resolv_conf(), &resolv_conf)?;
    write(&record.hostname(), format!("{hostname}\n").as_bytes())?;
    if let Some((user, group)) = request.owner {
        for path in [record.hosts(), record.resolv_conf(), record.hostname()] {
            std::os::unix::fs::chown(&path, Some(user), Some(group))
                .map_err(|error| Error::at("change the owner of", &path, error))?;
        }
    }
    Ok(record)
}

/// Makes the pod's folder, which only root may enter, and a pod's own root where it is another: an OCI runtime comes
/// through it from inside the user namespace. What is in it may be open to all users of the pod, and is for no other of
/// the node's.
fn make_private(dir: &Path, group: Option<u32>) -> Result<(), Error> {
    loop {
        if let Some(parent) = dir.parent() {
            point("make the namespace's folder");
            // For pods of many groups: may be passed through, not listed.
            let made = DirBuilder::new().recursive(true).mode(0o711).create(parent);
            made.map_err(|error| Error::at("make", parent, error))?;
        }
        point("make the pod's folder");
        match DirBuilder::new().mode(0o700).create(dir) {
            // The namespace's folder has just gone with another pod, its last.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::at("make", dir, error));
            }
            // One that was left behind may have had other rights.
            _ => break,
        }
    }
    point("own the pod's folder");
    let owned = std::os::unix::fs::lchown(dir, Some(0), Some(group.unwrap_or(0)));
    owned.map_err(|error| Error::at("change the owner of", dir, error))?;
    let mode = if group.is_some() { 0o710 } else { 0o700 };
    fs::set_permissions(dir, Permissions::from_mode(mode))
        .map_err(|error| Error::at("change the mode of", dir, error))
}

/// A node may do without these files: then a pod's are empty.
fn nodes_own(node: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = node.join(name);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        answer => answer.map_err(|error| Error::at("read", &path, error)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    point("write a file of the pod's");
    fs::write(path, bytes)
        // Whatever the umask: every user of a container reads them.
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
        .map_err(|error| Error::at("write", path, error))
}

/// Removes the files, and the folder when nothing else is in it. Blocking, for a moment.
pub fn release(record: &FilesRecord) -> Result<Released, Error> {
    let mut released = Released::AlreadyGone;
    for path in [record.hosts(), record.resolv_conf(), record.hostname()] {
        point("remove a file of the pod's");
        match fs::remove_file(&path) {
            Ok(()) => released = Released::Done,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::at("remove", &path, error)),
        }
    }
    remove_if_empty(&record.dir)?;
    Ok(released)
}

/// Removes a folder that others may still use; whoever is last removes it.
pub(crate) fn remove_if_empty(dir: &Path) -> Result<(), Error> {
    point("remove the pod's folder");
    match fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Error::at("remove", dir, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::error::{Code, Coded};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_pods_own_configuration_is_written_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        let request = FilesRequest {
            hostname: Some("web".to_owned()),
            dns: Some(Dns {
                servers: words(&["10.0.0.1", "fd00::1"]),
                searches: words(&["x.local", "local"]),
                options: words(&["ndots:5", "edns0"]),
            }),
            owner: Some((70_000, 70_001)),
        };
        let record = acquire(&dir, &request).unwrap();
        assert_eq!(acquire(&dir, &request).unwrap(), record);
        assert_eq!(read(record.hostname()), "web\n");
        assert_eq!(
            read(record.resolv_conf()),
            "search x.local local\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5 edns0\n"
        );
        let found = fs::metadata(&dir).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o710);
        assert_eq!((found.uid(), found.gid()), (0, 70_001));
        for path in [record.hosts(), record.resolv_conf(), record.hostname()] {
            let found = fs::metadata(path).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, 0o644);
            assert_eq!((found.uid(), found.gid()), (70_000, 70_001));
        }
        assert_eq!(release(&record).unwrap(), Released::Done);
        assert!(!dir.exists());
        assert_eq!(release(&record).unwrap(), Released::AlreadyGone);
    }

    #[test]
    fn what_the_pod_does_not_say_is_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("etc");
        fs::create_dir(&node).unwrap();
        fs::write(node.join(HOSTS), "127.0.0.1 node\n").unwrap();
        fs::write(node.join(RESOLV_CONF), "nameserver 10.9.9.9\n").unwrap();
        let request =
            FilesRequest { hostname: Some(String::new()), dns: Some(Dns::default()), owner: None };
        let record = acquire_from(&folder.path().join("pod"), &request, &node).unwrap();
        assert_eq!(read(record.hosts()), "127.0.0.1 node\n");
        assert_eq!(read(record.resolv_conf()), "nameserver 10.9.9.9\n");
        let own = nix::unistd::gethostname().unwrap();
        assert_eq!(read(record.hostname()), format!("{}\n", own.to_str().unwrap()));
    }

    #[test]
    fn a_node_without_such_files_gives_empty_ones() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        let record = acquire_from(folder.path(), &FilesRequest::default(), &absent).unwrap();
        assert_eq!(read(record.hosts()), "");
        assert_eq!(read(record.resolv_conf()), "");
    }

    #[test]
    fn words_that_would_be_lines_of_their_own_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dns = Dns { searches: words(&["a\nnameserver 6.6.6.6"]), ..Dns::default() };
        for request in [
            FilesRequest { dns: Some(dns), ..FilesRequest::default() },
            FilesRequest { hostname: Some("a\nb".to_owned()), ..FilesRequest::default() },
        ] {
            let error = acquire(&folder.path().join("pod"), &request).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        }
        assert!(!folder.path().join("pod").exists());
    }

    #[test]
    fn a_folder_that_others_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("pod");
        let record = acquire(&dir, &FilesRequest::default()).unwrap();
        fs::create_dir(dir.join("shm")).unwrap();
        assert_eq!(release(&record).unwrap(), Released::Done);
        assert!(dir.join("shm").exists());
    }
    #[test]
    fn only_root_gets_to_a_pods_files_also_where_the_folder_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("run/pod");
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let record = acquire(&dir, &FilesRequest::default()).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
        release(&record).unwrap();
    }
}
