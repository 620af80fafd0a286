//! One child from start to end: input, output, deadline.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    time::{Instant, timeout, timeout_at},
};

use super::{Exit, Exited, Reaper};

/// The most that is kept of a child's standard output and error, in bytes each.
const OUTPUT_LIMIT: u64 = 4 << 20;
/// How long the pipes of an ended child may stay open in the hands of its own children.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a child that was killed is waited for: one in the kernel's hands may take its time, or for ever.
const KILLED: Duration = Duration::from_secs(2);

/// What a child printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub exit: Exit,
    /// Its standard output, at most 4 MiB.
    pub stdout: Vec<u8>,
    /// Its standard error, at most 4 MiB.
    pub stderr: Vec<u8>,
}

/// A started child in a process group of its own. Dropping this before the child's end kills the whole group.
pub struct Group {
    exited: Exited,
}

impl Group {
    /// Starts `command`; the answered child is only good for its pipes.
    pub fn start(reaper: &Reaper, command: &mut Command) -> io::Result<(Self, Child)> {
        let (exited, child) = reaper.spawn(command.process_group(0))?;
        Ok((Self { exited }, child))
    }

    /// Waits for the child's end.
    pub async fn ended(&mut self) -> Exit {
        self.exited.wait().await
    }

    /// Kills the child and everything in its process group, and waits until the child is gone.
    pub async fn kill(mut self) {
        self.signal();
        let _ = timeout(KILLED, self.exited.wait()).await;
    }

    fn signal(&self) {
        // The group is gone when the child and all its children are: nothing is left to kill then.
        let _ = killpg(Pid::from_raw(self.exited.pid()), Signal::SIGKILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A reaped child's number may be another's already.
        if self.exited.now().is_none() {
            self.signal();
        }
    }
}

/// Why a child gave no output.
#[derive(Debug, Error)]
pub enum Failure {
    /// It could not be started.
    #[error("start {program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("talk to {program}: {source}")]
    Talk { program: String, source: io::Error },
    /// It did not end in time; it and its process group were killed.
    #[error("{program} did not end in time and was killed")]
    Deadline {
        program: String,
        /// What it had printed on standard error by then.
        stderr: Vec<u8>,
    },
}

/// Runs `command` in a process group of its own, feeds it `input`, and collects what it prints.
///
/// At `deadline` the whole group is killed. Dropping the future kills the group too.
pub async fn run(
    reaper: &Reaper,
    command: &mut Command,
    input: &[u8],
    deadline: Option<Instant>,
) -> Result<Output, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source| Failure::Start { program: program.clone(), source };
    let talk = |source| Failure::Talk { program: program.clone(), source };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let (mut group, mut child) = Group::start(reaper, command).map_err(start)?;

    let stdin = child.stdin.take().map(OwnedFd::from).map(pipe::Sender::from_owned_fd).transpose();
    let stdout =
        child.stdout.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd).transpose();
    let stderr =
        child.stderr.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd).transpose();
    let (stdin, stdout, stderr) =
        (stdin.map_err(talk)?, stdout.map_err(talk)?, stderr.map_err(talk)?);

    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let finished = {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A child that does not read its input has its reasons; its exit tells.
                let _ = stdin.write_all(input).await;
            }
        };
        let conversation = async {
            tokio::join!(feed, collect(stdout, &mut printed), collect(stderr, &mut complained));
        };
        let whole = async {
            tokio::pin!(conversation);
            tokio::select! {
                () = &mut conversation => group.ended().await,
                exit = group.ended() => {
                    // Grandchildren may keep the pipes open for ever; what the child wrote is there already.
                    let _ = timeout(DRAIN, conversation).await;
                    exit
                }
            }
        };
        match deadline {
            Some(deadline) => timeout_at(deadline, whole).await.ok(),
            None => Some(whole.await),
        }
    };
    let Some(exit) = finished else {
        group.kill().await;
        return Err(Failure::Deadline { program, stderr: complained });
    };
    Ok(Output { exit, stdout: printed, stderr: complained })
}

async fn collect(from: Option<pipe::Receiver>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    // What is beyond the limit is read and thrown away, so that the child is not blocked.
    let _ = (&mut from).take(OUTPUT_LIMIT).read_to_end(into).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    #[tokio::test]
    async fn input_output_and_status_come_through() {
        let reaper = Reaper::start().unwrap();
        let output =
            run(&reaper, &mut shell("cat; echo no >&2; exit 7"), b"hello", None).await.unwrap();
        assert_eq!(output.exit.status, 7);
        assert_eq!(output.stdout, b"hello");
        assert_eq!(output.stderr, b"no\n");
    }

    #[tokio::test]
    async fn a_signal_is_128_and_its_number() {
        let reaper = Reaper::start().unwrap();
        let output = run(&reaper, &mut shell("kill -9 $$"), b"", None).await.unwrap();
        assert_eq!(output.exit.status, 137);
        let output = run(&reaper, &mut shell("kill -41 $$"), b"", None).await.unwrap();
        assert_eq!(output.exit.status, 128 + 41, "a real-time signal");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let reaper = Reaper::start().unwrap();
        let error = run(&reaper, &mut Command::new("/nonexistent/x"), b"", None).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"), "{error}");
    }

    #[tokio::test]
    async fn the_deadline_kills_the_whole_group() {
        let reaper = Reaper::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pid");
        let script = format!("sleep 100 & echo $! > {}; echo late >&2; wait", pids.display());
        let deadline = Instant::now() + Duration::from_millis(300);
        let error = run(&reaper, &mut shell(&script), b"", Some(deadline)).await.unwrap_err();
        let Failure::Deadline { stderr, .. } = error else { panic!("{error}") };
        assert_eq!(stderr, b"late\n");
        let pid: i32 = std::fs::read_to_string(pids).unwrap().trim().parse().unwrap();
        let gone = async {
            // The orphan belongs to init, not to this process: look until the kill has been delivered.
            while std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|s| !s.contains(") Z "))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .expect("the grandchild was killed");
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_the_pipes_does_not_hold_the_answer() {
        let reaper = Reaper::start().unwrap();
        let output = run(&reaper, &mut shell("sleep 3 & echo done"), b"", None).await.unwrap();
        assert_eq!(output.stdout, b"done\n");
    }

    #[tokio::test]
    async fn an_exit_before_adoption_is_kept_while_expected() {
        let reaper = Reaper::start().unwrap();
        let expecting = reaper.expecting();
        let pid = i32::try_from(shell("exit 3").spawn().unwrap().id()).unwrap();
        let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
        while proc.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let exit = expecting.adopt(pid).wait().await;
        assert_eq!(exit.status, 3);
    }
}
