//! Checkpoints: a container's processes written into a folder by criu, and made again from it.
//!
//! criu has to be told of every file that a process holds and the container's mounts do not lead to. runc and crun tell it
//! of pipes. Mooring's containers hold the client's fifos themselves (`shim/src/task/stdio`), so it is Mooring that tells
//! criu of these, through the file that the environment names as `CRIU_CONFIG_FILE`: by what names they go when a
//! checkpoint is made, and which descriptor stands for which name when it is restored. The names, and what else a restore
//! has to be called with, lie beside criu's images as [`NOTE`].

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::Stdio;
use crate::sys::replace;

/// The file in a checkpoint's folder that criu and the runtime know nothing of.
pub const NOTE: &str = "mooring.json";
/// The form of the note. A newer shim reads older ones.
const VERSION: u32 = 1;
/// The most that a note may have, in bytes: it comes from a client.
const MOST: u64 = 16 << 10;
/// What fstatfs answers for anonymous pipes, which the runtime itself tells criu of.
const PIPEFS: i64 = 0x5049_5045;

/// A file as criu names one: by its mount and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileName {
    mount: u64,
    inode: u64,
}

impl FileName {
    /// The name of an open file. `None` for what the runtime sees to.
    fn of(file: &OwnedFd) -> io::Result<Option<Self>> {
        if i128::from(rustix::fs::fstatfs(file)?.f_type) == i128::from(PIPEFS) {
            return Ok(None);
        }
        let known =
            statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID | StatxFlags::INO)?;
        Ok(Some(Self { mount: known.stx_mnt_id, inode: known.stx_ino }))
    }

    fn for_criu(self) -> String {
        format!("file[{:x}:{:x}]", self.mount, self.inode)
    }
}

/// What a container's first process has of the client's: by descriptor, 0 to 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamFiles([Option<FileName>; 3]);

impl StreamFiles {
    /// Those of a process that is about to be started.
    pub fn of(stdio: &Stdio) -> io::Result<Self> {
        let name = |end: &Option<OwnedFd>| end.as_ref().map_or(Ok(None), FileName::of);
        Ok(Self([name(&stdio.stdin)?, name(&stdio.stdout)?, name(&stdio.stderr)?]))
    }

    /// criu's configuration for a checkpoint: these are not the container's.
    fn outside(&self) -> String {
        let line = |file: &FileName| format!("external {}\n", file.for_criu());
        self.0.iter().flatten().map(line).collect::<Vec<_>>().concat()
    }

    /// criu's configuration for a restore: what it has itself as its input and output takes their place.
    fn taken_over(&self) -> String {
        let line = |(number, file): (usize, &Option<FileName>)| {
            file.map(|file| format!("inherit-fd fd[{number}]:{}\n", file.for_criu()))
        };
        self.0.iter().enumerate().filter_map(line).collect::<Vec<_>>().concat()
    }
}

/// What is to be kept of a process that criu would refuse without being told to keep it. A restore needs the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "they are criu's switches")]
pub struct Kept {
    /// Established TCP connections.
    pub open_tcp: bool,
    /// Connections to Unix sockets outside the container.
    pub external_unix_sockets: bool,
    /// A terminal.
    pub terminal: bool,
    pub file_locks: bool,
    /// Namespaces (OCI names) that come back empty.
    pub empty_namespaces: Vec<String>,
}

impl Kept {
    /// The options of the runtime's `checkpoint` and `restore`.
    pub(super) fn arguments(&self) -> Vec<String> {
        let flags = [
            (self.open_tcp, "--tcp-established"),
            (self.external_unix_sockets, "--ext-unix-sk"),
            (self.terminal, "--shell-job"),
            (self.file_locks, "--file-locks"),
        ];
        let flags =
            flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag.to_owned());
        flags.chain(self.empty_namespaces.iter().map(|kind| format!("--empty-ns={kind}"))).collect()
    }
}

/// What a checkpoint is made with.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder that criu's images go into.
    pub images: PathBuf,
    /// The folder of criu's log and statistics.
    pub work: PathBuf,
    /// An earlier checkpoint, of whose memory only the changes are kept: a path relative to `images`.
    pub parent: Option<PathBuf>,
    /// Whether the container goes on afterwards.
    pub leave_running: bool,
    pub kept: Kept,
    /// What becomes of its cgroups: criu's word.
    pub cgroups_mode: Option<String>,
    /// What its processes have of the client's.
    pub streams: StreamFiles,
    /// Where criu's configuration lies during the call.
    pub config: PathBuf,
}

impl Checkpoint {
    pub(super) fn config_text(&self) -> String {
        self.streams.outside()
    }

    /// Writes down, beside criu's images, what a restore has to know.
    pub fn note(&self) -> io::Result<()> {
        let note = Note { version: VERSION, streams: self.streams, kept: self.kept.clone() };
        let text = serde_json::to_vec(&note)?;
        replace::file(&self.images.join(NOTE), &text, 0o600, replace::Sync::Nothing)
    }
}

/// What a container is restored with.
pub struct Restore {
    /// The folder that criu's images are in.
    pub images: PathBuf,
    /// The folder of criu's log and statistics.
    pub work: PathBuf,
    /// Its init's input and output.
    pub stdio: Stdio,
    /// Where the runtime sends the terminal's descriptor, for a process with a terminal.
    pub console: Option<PathBuf>,
    pub note: Note,
    /// Where criu's configuration lies during the call.
    pub config: PathBuf,
}

impl Restore {
    pub(super) fn config_text(&self) -> String {
        self.note.streams.taken_over()
    }
}

/// What Mooring writes beside criu's images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    version: u32,
    #[serde(default)]
    streams: StreamFiles,
    #[serde(default)]
    pub(super) kept: Kept,
}

impl Note {
    /// That of the checkpoint in folder `images`. One that another shim has made has none, and its processes have pipes.
    pub fn read(images: &Path) -> io::Result<Self> {
        // Whatever a client has put there under this name must neither block nor lead elsewhere.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = flags.bits().cast_signed();
        let file = match File::options().read(true).custom_flags(flags).open(images.join(NOTE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        if !file.metadata()?.is_file() || file.take(MOST + 1).read_to_end(&mut text)? as u64 > MOST
        {
            return Err(io::Error::other(format!("it is no file of at most {MOST} bytes")));
        }
        let note: Self = serde_json::from_slice(&text)?;
        if note.version > VERSION {
            let found = note.version;
            return Err(io::Error::other(format!("its version {found} is newer than {VERSION}")));
        }
        Ok(note)
    }
}

/// The errors in criu's log, the first of which is the cause; `None` where there are none.
pub(super) fn complaints(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let errors = text.lines().filter_map(|line| {
        let (_, error) = line.split_once(" Error (")?;
        Some(error.split_once("): ")?.1.trim())
    });
    // Every run says that it could not raise a limit, where it may not, and goes on.
    let errors = errors.filter(|error| !error.starts_with("rlimit: ")).take(3);
    let said: Vec<&str> = errors.collect();
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Checkpoint {
        let streams = StreamFiles([None, Some(FileName { mount: 27, inode: 0x0098_e7d5 }), None]);
        Checkpoint {
            images: "/images".into(),
            work: "/work".into(),
            parent: None,
            leave_running: true,
            kept: Kept {
                file_locks: true,
                empty_namespaces: vec!["network".into()],
                ..Kept::default()
            },
            cgroups_mode: None,
            streams,
            config: "/config".into(),
        }
    }

    #[test]
    fn the_note_of_a_checkpoint_is_what_its_restore_reads() {
        let folder = tempfile::tempdir().unwrap();
        let made = Checkpoint { images: folder.path().to_owned(), ..example() };
        assert_eq!(made.config_text(), "external file[1b:98e7d5]\n");
        made.note().unwrap();
        let note = Note::read(folder.path()).unwrap();
        assert_eq!(note.kept.arguments(), ["--file-locks", "--empty-ns=network"]);
        assert_eq!(note.streams.taken_over(), "inherit-fd fd[1]:file[1b:98e7d5]\n");
    }

    #[test]
    fn a_checkpoint_of_another_shim_has_no_note() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(folder.path()).unwrap(), Note::default());
    }

    #[test]
    fn a_note_that_is_none_is_refused_and_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join(NOTE);
        for text in [
            "{",
            "{\"version\":2}",
            "{\"version\":1,\"streams\":[\"file[1:1]\\naction-script /bin/sh\",null,null]}",
            &" ".repeat(20 << 10),
        ] {
            fs::write(&note, text).unwrap();
            assert!(Note::read(folder.path()).is_err(), "{text}");
        }
        fs::remove_file(&note).unwrap();
        std::os::unix::fs::symlink("/dev/null", &note).unwrap();
        assert!(Note::read(folder.path()).is_err());
        fs::remove_file(&note).unwrap();
        nix::unistd::mkfifo(&note, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Note::read(folder.path()).is_err());
    }

    #[test]
    fn a_fifo_has_a_name_for_criu_and_a_pipe_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = File::options().read(true).write(true).open(&path).unwrap();
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let stdio = Stdio { stdin: None, stdout: Some(fifo.into()), stderr: Some(write) };
        let [none, named, pipe] = StreamFiles::of(&stdio).unwrap().0;
        assert!(none.is_none() && pipe.is_none());
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        assert!(named.is_some_and(|name| name.inode == inode && name.mount > 0));
    }

    #[test]
    fn the_cause_is_the_first_error_of_criu_that_matters() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("dump.log");
        fs::write(
            &log,
            "(00.08) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE\n(00.19) pid 8: Error (criu/files-reg.c:1790): Can't lookup mount=27\n(00.20) Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
        )
        .unwrap();
        assert_eq!(complaints(&log).as_deref(), Some("Can't lookup mount=27; Dumping FAILED."));
        assert_eq!(complaints(&folder.path().join("none")), None);
    }
}
