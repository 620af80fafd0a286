//! Processes that SIGKILL does not end, and what each of them waits in: for errors and logs that name them.
//!
//! A signal, SIGKILL too, is taken when a process returns from the kernel or sleeps interruptibly. One that sleeps
//! uninterruptibly (state D: a mount whose server is silent, a disk that does not answer) goes on sleeping. Nobody can
//! end it; whoever mends what it waits for can, and has to be told which process that is.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// How many are named; the rest are counted.
const NAMED: usize = 4;
/// How much of a stack is told, from its innermost call on.
const FRAMES: usize = 6;
/// How many threads of a process are looked at.
const THREADS: usize = 256;
/// How long the kernel may take to say what it knows. Some of its files wait for locks that the process itself may hold.
const LOOK: Duration = Duration::from_secs(1);

/// A process that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    pub pid: i32,
    /// The kernel's name of it, at most 15 bytes.
    pub name: String,
    /// As in `/proc/PID/stat`: `D` is an uninterruptible sleep. Of several threads, one that sleeps so.
    pub state: char,
    /// The kernel's function that it sleeps in.
    pub waits_in: Option<String>,
    /// The number of the system call that it is in.
    pub system_call: Option<String>,
    /// The kernel's functions that it is in, the innermost first.
    pub stack: Vec<String>,
}

/// Those of a container, or of whatever else was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survivors(pub Vec<Survivor>);

impl Survivor {
    /// Looks at process `pid`. `None`: it has ended. What cannot be found out of it is left out.
    pub fn look(pid: i32) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let (name, thread, state) = slowest_thread(&process)?;
        let known = |file: &str| fs::read_to_string(thread.join(file)).ok();
        let waits_in = known("wchan").filter(|name| !matches!(name.trim(), "" | "0"));
        let system_call = known("syscall").and_then(|text| {
            let number = text.split_whitespace().next()?.to_owned();
            number.parse::<u32>().is_ok().then_some(number)
        });
        let stack = known("stack").map(|text| frames(&text)).unwrap_or_default();
        Some(Self { pid, name, state, waits_in, system_call, stack })
    }
}

/// The name of a process, and the thread that keeps it: one in state D, else any that has not ended.
fn slowest_thread(process: &Path) -> Option<(String, PathBuf, char)> {
    let mut found: Option<(String, PathBuf, char)> = None;
    for thread in fs::read_dir(process.join("task")).ok()?.flatten().take(THREADS) {
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { continue };
        let Some((name, state)) = parse(&stat) else { continue };
        if matches!(state, 'Z' | 'X') || (found.is_some() && state != 'D') {
            continue;
        }
        found = Some((name.to_owned(), thread.path(), state));
        if state == 'D' {
            break;
        }
    }
    found
}

fn parse(stat: &str) -> Option<(&str, char)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let state = stat.get(close + 1..)?.trim_start().chars().next()?;
    Some((stat.get(open + 1..close)?, state))
}

/// The functions of a stack as the kernel prints it: `[<0>] name+0x1f/0x80`, a line each.
fn frames(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let frame = line.split_once("] ").map_or(line, |(_, frame)| frame);
        frame.split('+').next().unwrap_or(frame).trim().to_owned()
    };
    text.lines().map(name).filter(|name| !name.is_empty()).take(FRAMES).collect()
}

impl Survivors {
    /// Those of `pids` that have not ended, in state D first: what they wait for is what the others wait for.
    pub fn among(pids: impl IntoIterator<Item = i32>) -> Self {
        let mut all: Vec<Survivor> = pids.into_iter().filter_map(Survivor::look).collect();
        all.sort_by_key(|one| (one.state != 'D', one.pid));
        Self(all)
    }

    /// Those in the PID namespace that process `pid` is in. Without its first process a namespace has none for long, and
    /// that one ends last.
    pub fn in_namespace_of(pid: i32) -> Self {
        let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(wanted) = space(pid).filter(|wanted| Some(wanted) != space_of_self().as_ref())
        else {
            return Self::among([pid]);
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        Self::among(pids.filter(|pid| space(*pid).as_ref() == Some(&wanted)))
    }

    /// Has `look` look from a thread that may wait, for a second at most: then nothing is known.
    pub async fn seen(look: impl FnOnce() -> Self + Send + 'static) -> Self {
        let looked = tokio::time::timeout(LOOK, tokio::task::spawn_blocking(look)).await;
        looked.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Whether there is none, or none that is known of.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn space_of_self() -> Option<PathBuf> {
    fs::read_link("/proc/self/ns/pid").ok()
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) in state {}", self.pid, self.name.escape_default(), self.state)?;
        if let Some(function) = &self.waits_in {
            write!(f, ", waiting in {function}")?;
        }
        if let Some(number) = &self.system_call {
            write!(f, ", system call {number}")?;
        }
        if !self.stack.is_empty() {
            write!(f, ", stack {}", self.stack.join(" < "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Survivors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(all) = self;
        if all.is_empty() {
            return f.write_str("no process of it is to be seen any more");
        }
        for (index, one) in all.iter().take(NAMED).enumerate() {
            write!(f, "{}{one}", if index == 0 { "" } else { "; " })?;
        }
        match all.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::testing::TestChild;

    fn survivor(pid: i32, state: char) -> Survivor {
        Survivor {
            pid,
            name: "cat".into(),
            state,
            waits_in: Some("request_wait_answer".into()),
            system_call: Some("257".into()),
            stack: vec!["request_wait_answer".into(), "fuse_lookup".into()],
        }
    }

    #[test]
    fn a_process_is_named_with_what_it_waits_in() {
        let mut child = TestChild::start(Command::new("sleep").arg("60"));
        let seen = Survivor::look(child.pid).unwrap();
        assert_eq!((seen.pid, seen.name.as_str()), (child.pid, "sleep"));
        assert!("SRD".contains(seen.state), "{seen:?}");
        assert_eq!(Survivors::among([child.pid, child.pid]).0.len(), 2);
        assert_eq!(Survivors::in_namespace_of(child.pid).0.len(), 1, "not all of the node's");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(child.pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        child.status();
        assert_eq!(Survivor::look(child.pid), None);
    }

    #[test]
    fn those_that_sleep_come_first_and_the_list_has_an_end() {
        let all = Survivors((1..=6).map(|pid| survivor(pid, 'D')).collect());
        let text = all.to_string();
        assert!(text.starts_with(
            "process 1 (cat) in state D, waiting in request_wait_answer, system call 257, \
             stack request_wait_answer < fuse_lookup; process 2 (cat)"
        ));
        assert!(text.ends_with("; and 2 more"), "{text}");
        assert!(!text.contains("process 5"), "{text}");
    }

    #[test]
    fn a_name_cannot_forge_a_line() {
        let named = Survivor { name: "a\nb) D".into(), ..survivor(7, 'D') };
        assert!(named.to_string().starts_with("process 7 (a\\nb) D) in state D"), "{named}");
        assert_eq!(parse("7 (a) b) S 1 2"), Some(("a) b", 'S')));
        assert_eq!(frames("[<0>] one+0x1/0x2\n[<0>] two\n"), ["one", "two"]);
    }
}
