//! Limits of a process, and how likely the kernel kills it when memory runs out.

use std::fs;

use crate::{
    error::{Doing, Error, Result},
    spec::Rlimit,
    sys,
};

/// In the order of their numbers, which are the same on all architectures that this is built for.
const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

pub fn number(name: &str) -> Result<u32> {
    let found = NAMES.iter().position(|known| *known == name);
    found
        .and_then(|at| u32::try_from(at).ok())
        .ok_or_else(|| Error::invalid(format!("unknown limit {name:?}")))
}

/// Sets the limits of process `pid`: the caller may raise them, the container's process may not.
pub fn set(pid: i32, limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        sys::prlimit(pid, number(&limit.kind)?, limit.soft, limit.hard)
            .doing(&format!("set {}", limit.kind))?;
    }
    Ok(())
}

/// Says how likely process `pid` is killed. Answers a warning where the kernel lets nobody lower it.
pub fn oom_score(pid: i32, wanted: Option<i32>) -> Result<Option<String>> {
    let Some(wanted) = wanted else { return Ok(None) };
    let path = format!("/proc/{pid}/oom_score_adj");
    match fs::write(&path, wanted.to_string()) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Ok(Some(format!("process.oomScoreAdj {wanted} was refused: {error}")))
        }
        Err(error) => Err(error).doing_at("write", path),
    }
}
