//! Filters of system calls: from a specification's profile to the program that the kernel runs.
//!
//! The program looks at the architecture of the call, then finds the call's number in a tree of comparisons, so that a
//! profile of four hundred names costs nine of them.

mod assemble;
mod numbers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    spec::{Argument, Seccomp, SyscallRule},
    sys::Instruction,
};

use numbers::Arch;

/// A filter that is ready to be given to the kernel.
#[derive(Clone, Debug)]
pub struct Filter {
    pub program: Vec<Instruction>,
    pub flags: u32,
}

/// What the kernel does about a call: the value that a program returns.
type Action = u32;

const KILL_PROCESS: Action = 0x8000_0000;
const KILL_THREAD: Action = 0;
const TRAP: Action = 0x0003_0000;
const ERRNO: Action = 0x0005_0000;
const TRACE: Action = 0x7ff0_0000;
const LOG: Action = 0x7ffc_0000;
const ALLOW: Action = 0x7fff_0000;

const EPERM: u32 = libc::EPERM.unsigned_abs();
const ENOSYS: u32 = libc::ENOSYS.unsigned_abs();
/// The kernel's own limit of a program.
const MOST_INSTRUCTIONS: usize = 4096;

fn action(name: &str, errno: Option<u32>) -> Result<Action> {
    let value = errno.unwrap_or(EPERM);
    if value > 0xffff {
        return Err(Error::invalid(format!("seccomp: errno {value} is above 65535")));
    }
    match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(TRAP),
        "SCMP_ACT_ERRNO" => Ok(ERRNO | value),
        "SCMP_ACT_TRACE" => Ok(TRACE | value),
        "SCMP_ACT_LOG" => Ok(LOG),
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_NOTIFY" => Err(Error::unsupported("seccomp action SCMP_ACT_NOTIFY")),
        other => Err(Error::invalid(format!("seccomp: unknown action {other:?}"))),
    }
}

fn flags(names: Option<&[String]>) -> Result<u32> {
    // Mitigations that containers have paid for by default are turned on by the kernel for whoever asks for nothing.
    let Some(names) = names else { return Ok(SPEC_ALLOW) };
    names.iter().try_fold(0, |all, name| match name.as_str() {
        // There is one thread.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(all),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(all | 2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(all | SPEC_ALLOW),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
            Err(Error::unsupported("seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"))
        }
        other => Err(Error::invalid(format!("seccomp: unknown flag {other:?}"))),
    })
}

const SPEC_ALLOW: u32 = 4;

/// What is done about one call: the first condition that holds decides, else the last word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    conditions: Vec<(Vec<Argument>, Action)>,
    otherwise: Option<Action>,
}

impl Verdict {
    fn add(&mut self, arguments: &[Argument], action: Action) {
        if arguments.is_empty() {
            self.otherwise.get_or_insert(action);
        } else {
            self.conditions.push((arguments.to_vec(), action));
        }
    }
}

/// Compiles a profile.
pub fn compile(profile: &Seccomp) -> Result<Filter> {
    if !profile.listener_path.is_empty() || !profile.listener_metadata.is_empty() {
        return Err(Error::unsupported("linux.seccomp.listenerPath"));
    }
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut wanted: Vec<Arch> = vec![Arch::native()];
    for name in &profile.architectures {
        match Arch::of(name)? {
            Some(arch) if !wanted.contains(&arch) => wanted.push(arch),
            _ => {}
        }
    }
    for rule in &profile.syscalls {
        check(rule, default)?;
    }
    let sections = wanted.iter().map(|arch| section(*arch, profile, default));
    let sections = sections.collect::<Result<Vec<_>>>()?;
    let program = assemble::program(&sections);
    if program.len() > MOST_INSTRUCTIONS {
        let what = format!("a seccomp profile of {} instructions", program.len());
        return Err(Error::unsupported(what));
    }
    Ok(Filter { program, flags: flags(profile.flags.as_deref())? })
}

/// A name that no kernel has is denied with all that the profile does not name. Where the rest is allowed it would be
/// allowed too, whatever the profile says of it: that is refused.
fn check(rule: &SyscallRule, default: Action) -> Result<()> {
    action(&rule.action, rule.errno_ret)?;
    if matches!(default, ALLOW | LOG)
        && let Some(name) = rule.names.iter().find(|name| !numbers::is_known(name))
    {
        return Err(Error::unsupported(format!("a seccomp rule for the unknown call {name:?}")));
    }
    for argument in &rule.args {
        if argument.index > 5 {
            return Err(Error::invalid(format!("seccomp: no argument {}", argument.index)));
        }
        assemble::comparison(&argument.op)?;
    }
    Ok(())
}

/// What a program does about the calls of one architecture.
struct Section {
    arch: Arch,
    verdicts: BTreeMap<u32, Verdict>,
    /// For calls that are not named.
    default: Action,
    /// Calls above this number are newer than the profile.
    newest: Option<u32>,
}

fn section(arch: Arch, profile: &Seccomp, default: Action) -> Result<Section> {
    let table = numbers::Table::of(arch);
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    let mut newest = None;
    for rule in &profile.syscalls {
        let action = action(&rule.action, rule.errno_ret)?;
        for number in rule.names.iter().filter_map(|name| table.number(name)) {
            newest = newest.max(Some(number));
            if action != default {
                let verdict = verdicts.entry(number).or_default();
                if names_one_twice(&rule.args) {
                    rule.args.iter().for_each(|one| verdict.add(std::slice::from_ref(one), action));
                } else {
                    verdict.add(&rule.args, action);
                }
            }
        }
    }
    // A program that tries what the profile has never heard of falls back to something older if it is told that there is
    // no such call, and fails if it is told that it may not.
    let newest = newest.filter(|_| !matches!(default, ALLOW | LOG | TRACE));
    Ok(Section { arch, verdicts, default, newest })
}

/// Conditions of a rule hold together; but one argument cannot be equal to two values, and profiles that name it twice
/// mean either, as runc understands them too.
fn names_one_twice(arguments: &[Argument]) -> bool {
    let mut seen = BTreeSet::new();
    !arguments.iter().all(|one| seen.insert(one.index))
}

impl Filter {
    /// The filter as bytes, for the state folder.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_ne_bytes().to_vec();
        for one in &self.program {
            bytes.extend(one.code.to_ne_bytes());
            bytes.extend([one.jt, one.jf]);
            bytes.extend(one.k.to_ne_bytes());
        }
        bytes
    }

    /// The filter that such bytes are.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first_chunk::<4>()?;
        let (program, []) = rest.as_chunks::<8>() else { return None };
        let program = program.iter().map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        });
        Some(Self { program: program.collect(), flags: u32::from_ne_bytes(*flags) })
    }
}
