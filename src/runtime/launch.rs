//! One call of the runtime.

use std::{
    env,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Error, complaint};
use crate::process::{Failure, Output, Reaper, Spawned, run};

/// What a container's process gets as its input and output; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// One call: its command, what it does, and where its complaints go.
pub(super) struct Call<'a> {
    pub(super) verb: &'static str,
    pub(super) command: Command,
    pub(super) log: Option<&'a Path>,
}

/// The program's path: a name without a slash is looked for in PATH, and where runtimes usually are.
pub(super) fn find(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return binary.to_owned();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
                .map(PathBuf::from),
        )
        .map(|folder| folder.join(binary))
        .find(|file| file.is_file())
        .unwrap_or_else(|| binary.to_owned())
}

impl Call<'_> {
    fn failed_to_run(&self, source: Failure) -> Error {
        match source {
            Failure::Start { program, source } if source.kind() == io::ErrorKind::NotFound => {
                Error::Missing { verb: self.verb, program }
            }
            source => Error::Run { verb: self.verb, source },
        }
    }

    fn refused(&self, mark: u64, stderr: &[u8], status: i32) -> Error {
        let said = String::from_utf8_lossy(stderr).trim().to_owned();
        let logged = self.log.and_then(|log| complaint::last(log, mark));
        let complaint = logged
            .or_else(|| Some(said).filter(|said| !said.is_empty()))
            .unwrap_or_else(|| format!("exit status {status} and no message"));
        Error::Refused { verb: self.verb, complaint }
    }

    /// Runs it, feeding it `input`; answers what it printed.
    pub(super) async fn run(mut self, reaper: &Reaper, input: &[u8]) -> Result<Output, Error> {
        let mark = self.log.map_or(0, complaint::mark);
        match run(reaper, &mut self.command, input, None).await {
            Ok(output) if output.exit.status == 0 => Ok(output),
            Ok(output) => Err(self.refused(mark, &output.stderr, output.exit.status)),
            Err(failure) => Err(self.failed_to_run(failure)),
        }
    }

    /// Runs it with the stdio that the container's process will keep.
    pub(super) async fn run_with(mut self, reaper: &Reaper, stdio: Stdio) -> Result<(), Error> {
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
            let spawned = reaper.spawn(self.command.process_group(0));
            // The command keeps the descriptors open: only the container may be a writer of its output.
            self.command.stdin(std::process::Stdio::null());
            self.command.stdout(std::process::Stdio::null());
            self.command.stderr(std::process::Stdio::null());
            spawned
        };
        let (exited, _child) =
            spawned.map_err(|source| self.failed_to_run(Failure::Start { program, source }))?;
        let mut guard = KillOnDrop(Some(Spawned { exited: exited.clone() }));
        let mut waiting = exited;
        let exit = waiting.wait().await;
        guard.0 = None;
        if exit.status == 0 { Ok(()) } else { Err(self.refused(mark, b"", exit.status)) }
    }
}

/// A call whose caller went away is ended: what it leaves half done is cleaned up by the caller's own undoing.
struct KillOnDrop(Option<Spawned>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(spawned) = &self.0 {
            spawned.kill_group();
        }
    }
}
