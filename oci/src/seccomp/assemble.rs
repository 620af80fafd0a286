//! Instructions of classic BPF.

use super::{Action, ENOSYS, ERRNO, KILL_THREAD, Section, Verdict, numbers::X32_BIT};
use crate::{
    error::{Error, Result},
    spec::Argument,
    sys::Instruction,
};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where in the kernel's description of a call what lies.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

type Code = Vec<Instruction>;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn back(action: Action) -> Instruction {
    plain(RETURN, action)
}

fn distance(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

/// Goes on after this code when the comparison holds, and into `otherwise` when it does not.
fn choose(code: u16, k: u32, otherwise: Code, then: Code) -> Code {
    let first = match u8::try_from(otherwise.len()) {
        Ok(far) => vec![Instruction { code, jt: far, jf: 0, k }],
        Err(_) => {
            vec![Instruction { code, jt: 0, jf: 1, k }, plain(JUMP, distance(&otherwise))]
        }
    };
    [first, otherwise, then].concat()
}

/// The whole program.
pub(super) fn program(sections: &[Section]) -> Code {
    // A call of an architecture that the profile does not name.
    let mut code = vec![back(KILL_THREAD)];
    let mut done = Vec::new();
    for section in sections {
        let audit = section.arch.audit();
        if done.contains(&audit) {
            continue;
        }
        done.push(audit);
        let same: Vec<&Section> = sections.iter().filter(|one| one.arch.audit() == audit).collect();
        code = choose(EQUAL, audit, code, of_arch(&same));
    }
    [vec![plain(LOAD, ARCH)], code].concat()
}

/// The sections of what the kernel takes for one architecture: one, or `x86_64` and x32.
fn of_arch(sections: &[&Section]) -> Code {
    let is_x32 = |one: &&&Section| one.arch == super::Arch::X32;
    let low = sections.iter().find(|one| !is_x32(one)).map(|one| of_section(one));
    let high = sections.iter().find(is_x32).map(|one| of_section(one));
    let denied = || vec![back(KILL_THREAD)];
    let body = if sections.iter().any(|one| one.arch.audit() == 0xc000_003e) {
        // A number of x32 where that is not wanted is none of this architecture's.
        choose(AT_LEAST, X32_BIT, low.unwrap_or_else(denied), high.unwrap_or_else(denied))
    } else {
        low.unwrap_or_else(denied)
    };
    [vec![plain(LOAD, NUMBER)], body].concat()
}

fn of_section(section: &Section) -> Code {
    let mut ranges: Vec<(u32, Option<&Verdict>)> = vec![(0, None)];
    for (number, verdict) in &section.verdicts {
        // Starts where the last one ended, or leaves a gap to those without a rule.
        if let Some(last) = ranges.last_mut()
            && last.0 == *number
        {
            last.1 = Some(verdict);
        } else {
            ranges.push((*number, Some(verdict)));
        }
        ranges.push((number + 1, None));
    }
    ranges.dedup_by(|next, before| next.1 == before.1);
    let tree = tree(&ranges, section);
    match section.newest {
        Some(newest) => choose(GREATER, newest, tree, vec![back(ERRNO | ENOSYS)]),
        None => tree,
    }
}

/// Halves the ranges until one is left.
fn tree(ranges: &[(u32, Option<&Verdict>)], section: &Section) -> Code {
    match ranges {
        [] => vec![back(section.default)],
        [(_, verdict)] => judge(*verdict, section),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let start = high.first().map_or(0, |(start, _)| *start);
            choose(AT_LEAST, start, tree(low, section), tree(high, section))
        }
    }
}

fn judge(verdict: Option<&Verdict>, section: &Section) -> Code {
    let Some(verdict) = verdict else { return vec![back(section.default)] };
    let mut code = vec![back(verdict.otherwise.unwrap_or(section.default))];
    for (arguments, action) in verdict.conditions.iter().rev() {
        code = arguments
            .iter()
            .rev()
            .fold((vec![back(*action)], code), |(then, otherwise), argument| {
                (compare(argument, section.arch.is_wide(), then, otherwise.clone()), otherwise)
            })
            .0;
    }
    code
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Greater,
    AtLeast,
    Less,
    AtMost,
    MaskedEqual,
}

pub(super) fn comparison(name: &str) -> Result<Comparison> {
    Ok(match name {
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_GE" => Comparison::AtLeast,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::AtMost,
        "SCMP_CMP_MASKED_EQ" => Comparison::MaskedEqual,
        other => return Err(Error::invalid(format!("seccomp: unknown comparison {other:?}"))),
    })
}

fn halves(value: u64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let low = value as u32;
    (low, u32::try_from(value >> 32).unwrap_or_default())
}

/// Code that goes into `then` when the argument compares as wanted, else into `otherwise`.
fn compare(argument: &Argument, wide: bool, then: Code, otherwise: Code) -> Code {
    let Ok(comparison) = comparison(&argument.op) else { return otherwise };
    let (low, high) = halves(argument.value);
    let at = ARGUMENTS + 8 * argument.index;
    // Little endian: both architectures that this is built for.
    let load_low = plain(LOAD, at);
    let load_high = plain(LOAD, at + 4);
    if comparison == Comparison::MaskedEqual {
        let (want_low, want_high) = halves(argument.value_two);
        let (want_low, want_high) = (want_low & low, want_high & high);
        let mut lower = vec![load_low, plain(AND, low)];
        lower.extend(choose(EQUAL, want_low, otherwise.clone(), then));
        if !wide {
            return lower;
        }
        let mut code = vec![load_high, plain(AND, high)];
        code.extend(choose(EQUAL, want_high, otherwise, lower));
        return code;
    }
    // Each of the others is one of these three, or its opposite.
    let (kind, then, otherwise) = match comparison {
        Comparison::Equal | Comparison::MaskedEqual => (EQUAL, then, otherwise),
        Comparison::NotEqual => (EQUAL, otherwise, then),
        Comparison::Greater => (GREATER, then, otherwise),
        Comparison::AtMost => (GREATER, otherwise, then),
        Comparison::AtLeast => (AT_LEAST, then, otherwise),
        Comparison::Less => (AT_LEAST, otherwise, then),
    };
    let mut lower = vec![load_low];
    lower.extend(choose(kind, low, otherwise.clone(), then.clone()));
    if !wide {
        return lower;
    }
    // The upper half decides unless it is equal.
    let unequal = if kind == EQUAL { otherwise } else { choose(GREATER, high, otherwise, then) };
    let mut code = vec![load_high];
    code.extend(choose(EQUAL, high, unequal, lower));
    code
}
