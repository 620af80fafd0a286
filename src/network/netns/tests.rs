use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};

use super::*;

fn inode(fd: BorrowedFd<'_>) -> u64 {
    nix::sys::stat::fstat(fd).unwrap().st_ino
}

fn own() -> u64 {
    inode(File::open("/proc/self/ns/net").unwrap().as_fd())
}

/// A folder whose namespaces are released whatever the test does.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("dir/pod")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = release(&NetnsRecord { path: self.path() });
    }
}

#[test]
fn a_namespace_is_made_pinned_and_released() {
    let folder = Folder::new();
    let record = acquire(&folder.path()).unwrap();
    assert!(is_open(&record.path));
    check(&record.path).unwrap();
    assert_ne!(inode(open(&record.path).unwrap().as_fd()), own());
    assert_eq!(release(&record).unwrap(), Released::Done);
    assert!(!is_open(&record.path) && !record.path.exists());
    assert_eq!(release(&record).unwrap(), Released::AlreadyGone);
}

#[test]
fn making_one_leaves_this_thread_where_it_is() {
    let folder = Folder::new();
    let before = own();
    acquire(&folder.path()).unwrap();
    let thread = inode(File::open("/proc/thread-self/ns/net").unwrap().as_fd());
    assert_eq!((own(), thread), (before, before));
}

#[test]
fn a_pinned_namespace_is_not_replaced() {
    let folder = Folder::new();
    let record = acquire(&folder.path()).unwrap();
    let before = inode(open(&record.path).unwrap().as_fd());
    let error = acquire(&folder.path()).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(inode(open(&record.path).unwrap().as_fd()), before);
}

#[test]
fn a_file_that_a_reboot_left_serves_again_and_is_released() {
    let folder = Folder::new();
    let path = folder.path();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    assert!(!is_open(&path));
    let record = NetnsRecord { path: path.clone() };
    assert_eq!(release(&record).unwrap(), Released::Done);
    fs::write(&path, "").unwrap();
    acquire(&path).unwrap();
    assert!(is_open(&path));
}

#[test]
fn a_link_in_the_files_place_is_not_followed() {
    let folder = Folder::new();
    let path = folder.path();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let elsewhere = folder.0.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(acquire(&path).is_err());
    assert!(!is_open(&elsewhere));
    release(&NetnsRecord { path }).unwrap();
    assert!(elsewhere.exists());
}

#[test]
fn a_busy_namespace_is_detached() {
    let folder = Folder::new();
    let record = acquire(&folder.path()).unwrap();
    // An open file of the mount keeps it busy.
    let holder = File::open(&record.path).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(release(&record).unwrap(), Released::Done);
    let patience = std::time::Duration::from_millis(31);
    assert!(started.elapsed() >= patience, "it was busy");
    assert!(!record.path.exists());
    drop(holder);
}

#[test]
fn mounts_on_top_of_each_other_all_go() {
    let folder = Folder::new();
    let record = acquire(&folder.path()).unwrap();
    let again = Some("/proc/self/ns/net");
    mount(again, &record.path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    assert_eq!(release(&record).unwrap(), Released::Done);
    assert!(!record.path.exists());
}

#[test]
fn a_namespace_of_somebody_else_can_be_pinned() {
    let folder = Folder::new();
    let netns = open(Path::new("/proc/self/ns/net")).unwrap();
    let record = pin(&folder.path(), netns.as_fd()).unwrap();
    assert_eq!(inode(open(&record.path).unwrap().as_fd()), own());
    release(&record).unwrap();
}

#[test]
fn what_is_no_network_namespace_is_an_invalid_argument() {
    let folder = Folder::new();
    let file = folder.0.path().join("file");
    fs::write(&file, "").unwrap();
    let pipe = folder.0.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [
        "/nonexistent".into(),
        "/".into(),
        "/dev/null".into(),
        "/proc/self/ns/mnt".into(),
        file,
        pipe,
    ] {
        let error = check(&path).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
    let uts = folder.0.path().join("uts");
    fs::write(&uts, "").unwrap();
    let source = Some("/proc/self/ns/uts");
    mount(source, &uts, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    assert_eq!(check(&uts).unwrap_err().code(), Code::InvalidArgument);
    release(&NetnsRecord { path: uts }).unwrap();
    let mnt = File::open("/proc/self/ns/mnt").unwrap();
    let error = pin(&folder.path(), mnt.as_fd()).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(!folder.path().exists());
    check(Path::new("/proc/self/ns/net")).unwrap();
}

#[test]
fn a_visit_is_in_the_namespace_and_gives_its_answer() {
    let folder = Folder::new();
    let record = acquire(&folder.path()).unwrap();
    let netns = open(&record.path).unwrap();
    let visit = || inode(File::open("/proc/thread-self/ns/net").unwrap().as_fd());
    assert_eq!(in_netns(netns.as_fd(), visit).unwrap(), inode(netns.as_fd()));
    assert!(matches!(in_netns(netns.as_fd(), || panic!("lost")), Err(Error::Lost)));
}

#[test]
fn lo_comes_up_and_stays_up() {
    let folder = Folder::new();
    let record = acquire(&folder.path()).unwrap();
    let netns = open(&record.path).unwrap();
    let reaches_itself = || {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::net::TcpStream::connect(server.local_addr().unwrap()).is_ok()
    };
    assert!(!in_netns(netns.as_fd(), reaches_itself).unwrap());
    loopback_up(&record.path).unwrap();
    loopback_up(&record.path).unwrap();
    assert!(in_netns(netns.as_fd(), reaches_itself).unwrap());
}

#[test]
fn two_sandboxes_never_share_a_file() {
    let id = |text: &str| Id::new(text).unwrap();
    let dir = Path::new(DEFAULT_DIR);
    assert_ne!(path_for(dir, &id("a-b"), &id("c")), path_for(dir, &id("a"), &id("b-c")));
    assert_eq!(path_for(dir, &id("k8s.io"), &id("p")), dir.join("mooring-k8s.io--p"));
}
