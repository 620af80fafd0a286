//! Which devices a group may use: lists of v1's controller, or a program that the kernel asks on v2.

use std::{fs, fs::File, os::fd::AsFd};

use mooring::cgroup::Cgroup;

use crate::{
    error::{Doing, Error, Result},
    spec::DeviceRule,
    sys,
};

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

/// A rule as both forms want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    /// `a` for all, `b` or `c`.
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// What every container may use, whatever its specification says.
const ALWAYS: [(char, Option<u32>, Option<u32>, u32); 11] = [
    ('c', None, None, MKNOD),
    ('b', None, None, MKNOD),
    ('c', Some(1), Some(3), MKNOD | READ | WRITE),
    ('c', Some(1), Some(8), MKNOD | READ | WRITE),
    ('c', Some(1), Some(7), MKNOD | READ | WRITE),
    ('c', Some(5), Some(0), MKNOD | READ | WRITE),
    ('c', Some(1), Some(5), MKNOD | READ | WRITE),
    ('c', Some(1), Some(9), MKNOD | READ | WRITE),
    // Its terminals.
    ('c', Some(136), None, MKNOD | READ | WRITE),
    ('c', Some(5), Some(2), MKNOD | READ | WRITE),
    ('c', Some(5), Some(1), MKNOD | READ | WRITE),
];

/// The rules in their order, with those that always hold at the end.
pub(super) fn rules(given: &[DeviceRule]) -> Result<Vec<Rule>> {
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| Error::invalid(format!("device number {number}"))),
    };
    let mut all = Vec::new();
    for rule in given {
        let kind = match rule.kind.as_deref() {
            None | Some("" | "a") => 'a',
            Some("b") => 'b',
            Some("c" | "u") => 'c',
            Some(other) => return Err(Error::invalid(format!("device rule of type {other:?}"))),
        };
        let mut access = 0;
        for one in rule.access.as_deref().unwrap_or("rwm").chars() {
            access |= match one {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => return Err(Error::invalid(format!("device access {other:?}"))),
            };
        }
        let (major, minor) = (number(rule.major)?, number(rule.minor)?);
        if kind == 'a' && (major.is_some() || minor.is_some()) {
            return Err(Error::unsupported("a device rule for a number of both types"));
        }
        all.push(Rule { allow: rule.allow, kind, major, minor, access });
    }
    all.extend(ALWAYS.map(|(kind, major, minor, access)| Rule {
        allow: true,
        kind,
        major,
        minor,
        access,
    }));
    Ok(all)
}

/// Has the group use devices as `given` says.
pub fn apply(group: &Cgroup, given: &[DeviceRule]) -> Result<()> {
    if given.is_empty() {
        return Ok(());
    }
    let rules = rules(given)?;
    if group.is_unified() {
        let Some(folder) = &group.v2 else { return Ok(()) };
        let opened = File::open(folder).doing_at("open", folder)?;
        return sys::attach_device_program(opened.as_fd(), &program(&rules))
            .doing("limit the use of devices by a program");
    }
    let Some(folder) = group.v1.get("devices") else {
        return Err(Error::unsupported("linux.resources.devices (no controller)"));
    };
    for rule in rules {
        let file = folder.join(if rule.allow { "devices.allow" } else { "devices.deny" });
        fs::write(&file, rule.line()).doing_at("write", &file)?;
    }
    Ok(())
}

impl Rule {
    /// As v1's files have it.
    fn line(&self) -> String {
        if self.kind == 'a' {
            return "a".into();
        }
        let number = |number: Option<u32>| number.map_or_else(|| "*".into(), |one| one.to_string());
        let access = [('r', READ), ('w', WRITE), ('m', MKNOD)];
        let access: String = access
            .iter()
            .filter(|(_, bit)| self.access & bit != 0)
            .map(|(name, _)| *name)
            .collect();
        format!("{} {}:{} {access}", self.kind, number(self.major), number(self.minor))
    }
}

/// One instruction of the kernel's newer virtual machine: code, registers, distance, value.
fn code(code: u8, to: u8, from: u8, distance: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(distance.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

/// A program that answers 1 for what may be used. The last rule that fits decides; so they are asked from the last on.
pub(super) fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const AND_32: u8 = 0x54;
    const SHIFT_RIGHT_32: u8 = 0x74;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER_32: u8 = 0xbc;
    const UNEQUAL_32: u8 = 0x56;
    const UNEQUAL: u8 = 0x55;
    const EQUAL: u8 = 0x15;
    const UNEQUAL_REGISTER: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    // The type to register 2, the access to 3, the numbers to 4 and 5.
    let mut all = vec![
        code(LOAD_WORD, 2, 1, 0, 0),
        code(AND_32, 2, 0, 0, 0xffff),
        code(LOAD_WORD, 3, 1, 0, 0),
        code(SHIFT_RIGHT_32, 3, 0, 0, 16),
        code(LOAD_WORD, 4, 1, 4, 0),
        code(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        // What skips the block's answer; how far is known when the block is whole.
        let mut tests = Vec::new();
        let kind = match rule.kind {
            'b' => Some(1),
            'c' => Some(2),
            _ => None,
        };
        if let Some(kind) = kind {
            tests.push(block.len());
            block.push(code(UNEQUAL, 2, 0, 0, kind));
        }
        if rule.access != MKNOD | READ | WRITE {
            block.push(code(MOVE_REGISTER_32, 1, 3, 0, 0));
            block.push(code(AND_32, 1, 0, 0, rule.access.cast_signed()));
            tests.push(block.len());
            // Allowed is what asks for nothing more; denied what asks for anything of it.
            block.push(if rule.allow {
                code(UNEQUAL_REGISTER, 1, 3, 0, 0)
            } else {
                code(EQUAL, 1, 0, 0, 0)
            });
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                tests.push(block.len());
                block.push(code(UNEQUAL_32, register, 0, 0, number.cast_signed()));
            }
        }
        block.push(code(MOVE, 0, 0, 0, i32::from(rule.allow)));
        block.push(code(EXIT, 0, 0, 0, 0));
        if tests.is_empty() {
            // It fits everything, and the kernel takes no program that has more than can be reached.
            all.append(&mut block);
            return all;
        }
        let length = block.len();
        for at in tests {
            if let Some(test) = block.get_mut(at) {
                let far = u16::try_from(length - at - 1).unwrap_or(u16::MAX);
                *test |= u64::from(far) << 16;
            }
        }
        all.append(&mut block);
    }
    all.push(code(MOVE, 0, 0, 0, 0));
    all.push(code(EXIT, 0, 0, 0, 0));
    all
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "parts of an instruction")]
mod tests {
    use super::*;

    /// Runs a program as the kernel would; it knows the instructions that are used.
    fn judge(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 6];
        let mut at = 0;
        loop {
            let one = program[at];
            at += 1;
            let (to, from) =
                (usize::from((one >> 8) as u8 & 15), usize::from((one >> 12) as u8 & 15));
            let far = usize::from((one >> 16) as u16);
            let value = (one >> 32) as u32;
            let low = registers[to] as u32;
            let holds = match one as u8 {
                0x61 => {
                    registers[to] = u64::from(context[far / 4]);
                    continue;
                }
                0x54 => {
                    registers[to] = u64::from(low & value);
                    continue;
                }
                0x74 => {
                    registers[to] = u64::from(low >> value);
                    continue;
                }
                0xb7 => {
                    registers[to] = u64::from(value);
                    continue;
                }
                0xbc => {
                    registers[to] = u64::from(registers[from] as u32);
                    continue;
                }
                0x55 => registers[to] != u64::from(value),
                0x56 => low != value,
                0x5d => registers[to] != registers[from],
                0x15 => registers[to] == u64::from(value),
                0x95 => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            };
            if holds {
                at += far;
            }
        }
    }

    fn given(text: &str) -> Vec<DeviceRule> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let all = given(
            r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 8, "access": "r"},
                {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "rwm"}]"#,
        );
        let program = program(&rules(&all).unwrap());
        assert!(judge(&program, 1, READ, 8, 0));
        assert!(!judge(&program, 1, READ | WRITE, 8, 0), "writing was not allowed");
        assert!(!judge(&program, 1, READ, 8, 1));
        assert!(judge(&program, 2, READ | WRITE, 1, 3), "/dev/null always");
        assert!(judge(&program, 2, MKNOD, 200, 200), "a node alone is no use");
        assert!(!judge(&program, 2, READ, 200, 200));
    }

    #[test]
    fn everything_may_be_allowed() {
        let program = program(&rules(&given(r#"[{"allow": true, "access": "rwm"}]"#)).unwrap());
        assert!(judge(&program, 1, READ | WRITE | MKNOD, 8, 0));
    }

    #[test]
    fn lines_of_v1() {
        let all = given(
            r#"[{"allow": false}, {"allow": true, "type": "c", "major": 5, "minor": -1, "access": "rm"}]"#,
        );
        let lines: Vec<String> = rules(&all).unwrap().iter().take(2).map(Rule::line).collect();
        assert_eq!(lines, ["a", "c 5:* rm"]);
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for (text, said) in [
            (r#"[{"allow": true, "type": "x"}]"#, "\"x\""),
            (r#"[{"allow": true, "access": "q"}]"#, "'q'"),
            (r#"[{"allow": true, "type": "c", "major": -7}]"#, "-7"),
            (r#"[{"allow": true, "type": "a", "major": 7}]"#, "both types"),
        ] {
            let error = rules(&given(text)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_kernel_takes_the_program() {
        // On a machine without cgroup v2, or without the right, there is nobody to ask.
        let Ok(group) = mooring::cgroup::Hierarchies::read()
            .unwrap()
            .group(&format!("/mooring-oci-{}", std::process::id()))
        else {
            return;
        };
        let Some(folder) = group.v2.clone() else { return };
        fs::create_dir(&folder).unwrap();
        let program = program(&rules(&given(r#"[{"allow": false, "access": "rwm"}, {"allow": false, "type": "c", "access": "w"}]"#)).unwrap());
        let opened = File::open(&folder).unwrap();
        let attached = sys::attach_device_program(opened.as_fd(), &program);
        drop(opened);
        fs::remove_dir(&folder).unwrap();
        if let Err(error) = attached {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        }
    }
}
