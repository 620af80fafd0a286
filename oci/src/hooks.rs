//! Hooks: programs that the specification wants run at certain moments, told of the container on their standard input.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::MemfdFlags,
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::Value;

use crate::{
    error::{Doing, Error, Result},
    spec::Hook,
};

/// Runs them one after another; the first that fails is the last. One that names no environment has `environment`.
pub fn run(moment: &str, hooks: &[Hook], state: &Value, environment: &[String]) -> Result<()> {
    for hook in hooks {
        run_one(moment, hook, state, environment)?;
    }
    Ok(())
}

/// A file in memory that holds `text`: who does not read it, or only later, keeps nobody waiting.
fn holding(text: &str) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// The end of what was written to `file`.
fn complaint(mut file: File) -> String {
    const MOST: u64 = 1024;
    let length = file.metadata().map_or(0, |about| about.len());
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(length.saturating_sub(MOST)))
        .and_then(|_| file.take(MOST).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match read {
        Ok(_) if !text.trim().is_empty() => format!(": {}", text.trim()),
        _ => String::new(),
    }
}

fn run_one(moment: &str, hook: &Hook, state: &Value, environment: &[String]) -> Result<()> {
    let what = format!("{moment} hook {}", hook.path.display());
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for one in if hook.env.is_empty() { environment } else { &hook.env } {
        let (name, value) = one.split_once('=').unwrap_or((one, ""));
        command.env(name, value);
    }
    let said = holding("").doing(&what)?;
    command.stdin(holding(&state.to_string()).doing(&what)?);
    command.stdout(Stdio::null()).stderr(said.try_clone().doing(&what)?);
    let mut child = command.spawn().doing(&what)?;
    if let Some(seconds) = hook.timeout.filter(|seconds| *seconds > 0) {
        let pid = i32::try_from(child.id()).unwrap_or_default();
        if !ends_in(pid, Duration::from_secs(seconds)).doing(&what)? {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::invalid(format!("{what} did not end within {seconds} s")));
        }
    }
    let status = child.wait().doing(&what)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::invalid(format!("{what}: {status}{}", complaint(said))))
    }
}

fn ends_in(pid: i32, limit: Duration) -> std::io::Result<bool> {
    let pid = Pid::from_raw(pid).ok_or(std::io::ErrorKind::InvalidInput)?;
    let held = pidfd_open(pid, PidfdFlags::empty())?;
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let time = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut watched = [rustix::event::PollFd::new(&held, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut watched, Some(&time)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hook(script: &str, timeout: Option<u64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=b".into()], timeout }
    }

    #[test]
    fn a_hook_is_told_of_the_container() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("told");
        let script = format!("/bin/cat > {}; test $A = b", file.display());
        run("poststart", &[hook(&script, Some(60))], &json!({"id": "x"}), &[]).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), r#"{"id":"x"}"#);
    }

    #[test]
    fn one_that_fails_or_does_not_end_is_named() {
        let failing = [hook("echo why >&2; exit 3", None)];
        let error = run("prestart", &failing, &json!({}), &[]).unwrap_err().to_string();
        assert_eq!(error, "prestart hook /bin/sh: exit status: 3: why");
        let slow = [hook("exec /bin/sleep 100", Some(1))];
        let error = run("prestart", &slow, &json!({}), &[]).unwrap_err().to_string();
        assert!(error.contains("did not end within 1 s"), "{error}");
    }
}
