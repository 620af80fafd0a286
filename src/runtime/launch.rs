//! One call of the runtime.

use std::{
    env,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{Error, complaint};
use crate::{
    id::Id,
    process::{Failure, Group, Reaper, run},
    telemetry::trace::{Open, Span},
};

/// What a container's process gets as its input and output; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// One call: its command, what it does to which container in what time, and where its complaints go.
pub(super) struct Call<'a> {
    pub(super) verb: &'static str,
    pub(super) id: &'a Id,
    pub(super) limit: Duration,
    pub(super) command: Command,
    pub(super) log: Option<&'a Path>,
}

/// Where programs usually are, whatever PATH says.
pub(super) const USUAL: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The program's path: a name without a slash is looked for in PATH, and where runtimes usually are.
pub(super) fn find(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return binary.to_owned();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(USUAL.map(PathBuf::from))
        .map(|folder| folder.join(binary))
        .find(|file| file.is_file())
        .unwrap_or_else(|| binary.to_owned())
}

/// A command that runs the OCI runtime; the built-in one is this program itself, whatever its file has become since it was
/// started, or the shim where this is the operator's tool.
pub fn program(binary: &Path) -> Command {
    if binary != Path::new(super::BUILTIN) {
        return Command::new(find(binary));
    }
    let own = fs::read_link(EXE).unwrap_or_default();
    let is_shim = own.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SHIM));
    let mut command = Command::new(if is_shim { EXE.into() } else { find(Path::new(SHIM_FILE)) });
    command.arg("oci");
    command
}

const EXE: &str = "/proc/self/exe";
const SHIM: &str = "containerd-shim-mooring";
const SHIM_FILE: &str = "containerd-shim-mooring-v1";

impl Call<'_> {
    fn failed_to_run(&self, source: Failure) -> Error {
        match source {
            Failure::Start { program, source } if source.kind() == io::ErrorKind::NotFound => {
                Error::Missing { verb: self.verb, program }
            }
            Failure::Deadline { .. } => self.late(),
            source => Error::Run { verb: self.verb, source },
        }
    }

    fn late(&self) -> Error {
        Error::late(self.verb, self.id, self.limit)
    }

    fn refused(&self, mark: u64, stderr: &[u8], status: i32) -> Error {
        let said = String::from_utf8_lossy(stderr).trim().to_owned();
        let logged = self.log.and_then(|log| complaint::last(log, mark));
        let complaint = logged
            .or_else(|| Some(said).filter(|said| !said.is_empty()))
            .unwrap_or_else(|| format!("exit status {status} and no message"));
        Error::Refused { verb: self.verb, complaint }
    }

    /// Runs it, feeding it `input`.
    pub(super) async fn run(self, reaper: &Reaper, input: &[u8]) -> Result<(), Error> {
        let span = self.span();
        let ran = self.fed(reaper, input).await;
        ran.inspect_err(|error| span.fail(error))
    }

    /// The part of the work above that this call is.
    fn span(&self) -> Open {
        let span = Span::current().child("OCI runtime");
        span.set("mooring.runtime.verb", self.verb);
        span.set("container.id", self.id.as_str());
        span
    }

    async fn fed(mut self, reaper: &Reaper, input: &[u8]) -> Result<(), Error> {
        let mark = self.log.map_or(0, complaint::mark);
        let deadline = Instant::now().checked_add(self.limit);
        match run(reaper, &mut self.command, input, deadline).await {
            Ok(output) if output.exit.status == 0 => Ok(()),
            Ok(output) => Err(self.refused(mark, &output.stderr, output.exit.status)),
            Err(failure) => Err(self.failed_to_run(failure)),
        }
    }

    /// Runs it with the stdio that the container's process will keep.
    pub(super) async fn run_with(self, reaper: &Reaper, stdio: Stdio) -> Result<(), Error> {
        let span = self.span();
        let ran = self.with_stdio(reaper, stdio).await;
        ran.inspect_err(|error| span.fail(error))
    }

    async fn with_stdio(mut self, reaper: &Reaper, stdio: Stdio) -> Result<(), Error> {
        let mark = self.log.map_or(0, complaint::mark);
        let program = self.command.get_program().to_string_lossy().into_owned();
        let spawned = {
            let given = |end: Option<OwnedFd>| {
                end.map_or_else(std::process::Stdio::null, |fd| File::from(fd).into())
            };
            self.command
                .stdin(given(stdio.stdin))
                .stdout(given(stdio.stdout))
                .stderr(given(stdio.stderr));
            let spawned = Group::start(reaper, &mut self.command);
            // The command keeps the descriptors open: only the container may be a writer of its output.
            self.command.stdin(std::process::Stdio::null());
            self.command.stdout(std::process::Stdio::null());
            self.command.stderr(std::process::Stdio::null());
            spawned
        };
        let (mut group, _child) =
            spawned.map_err(|source| self.failed_to_run(Failure::Start { program, source }))?;
        // When the caller goes away, the group ends with this future: what it leaves half done is cleaned up by the
        // caller's own undoing.
        let Ok(exit) = timeout(self.limit, group.ended()).await else {
            group.kill().await;
            return Err(self.late());
        };
        if exit.status == 0 { Ok(()) } else { Err(self.refused(mark, b"", exit.status)) }
    }
}
