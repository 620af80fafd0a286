//! Programs are run here as the kernel would run them.
#![allow(
    clippy::cast_possible_truncation,
    clippy::decimal_bitwise_operands,
    reason = "parts of arguments, and numbers as tables have them"
)]

use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// The action for a call.
fn judge(filter: &Filter, arch: u32, number: u32, arguments: &[u64]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        _ => {
            let at = (offset - 16) / 8;
            let value = arguments.get(at as usize).copied().unwrap_or(0);
            if offset.is_multiple_of(8) { value as u32 } else { (value >> 32) as u32 }
        }
    };
    let (mut at, mut register) = (0, 0);
    loop {
        let one = filter.program[at];
        at += 1;
        let holds = match one.code {
            0x20 => {
                register = word(one.k);
                continue;
            }
            0x54 => {
                register &= one.k;
                continue;
            }
            0x05 => {
                at += one.k as usize;
                continue;
            }
            0x06 => return one.k,
            0x15 => register == one.k,
            0x25 => register > one.k,
            0x35 => register >= one.k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds { one.jt } else { one.jf });
    }
}

fn profile(text: &str) -> Result<Filter> {
    compile(&serde_json::from_str(text).unwrap())
}

const USUAL: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS"],
    "syscalls": [
        {"names": ["read", "write", "no_such_call", "mseal"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}]},
        {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn a_profile_like_containerds_does_what_it_says() {
    let filter = profile(USUAL).unwrap();
    let denied = ERRNO | EPERM;
    let native = |number, arguments: &[u64]| judge(&filter, X86_64, number, arguments);
    assert_eq!(native(0, &[]), ALLOW, "read");
    assert_eq!(native(1, &[]), ALLOW, "write");
    assert_eq!(native(2, &[]), denied, "open is not named");
    assert_eq!(native(56, &[17]), ALLOW, "clone of a process");
    assert_eq!(native(56, &[0x1000_0000]), denied, "clone of a user namespace");
    assert_eq!(native(435, &[]), ERRNO | 38, "clone3");
    assert_eq!(native(41, &[1]), ALLOW, "socket");
    assert_eq!(native(41, &[40]), denied, "vsock");
    assert_eq!(native(41, &[40 | 1 << 32]), ALLOW, "64 bits are compared");
    assert_eq!(native(135, &[0]), ALLOW);
    assert_eq!(native(135, &[0xffff_ffff]), ALLOW);
    assert_eq!(native(135, &[8]), denied);
    assert_eq!(native(62, &[]), KILL_PROCESS);
    assert_eq!(native(462, &[]), ALLOW, "mseal");
    assert_eq!(native(463, &[]), ERRNO | ENOSYS, "newer than the profile");
    assert_eq!(judge(&filter, X86, 3, &[]), ALLOW, "read of 32 bits");
    assert_eq!(judge(&filter, X86, 0, &[]), denied);
    assert_eq!(judge(&filter, X86_64, 0x4000_0000, &[]), ALLOW, "read of x32");
    assert_eq!(judge(&filter, X86_64, 0x4000_0000 | 520, &[]), ERRNO | ENOSYS, "execve of x32");
    assert_eq!(judge(&filter, 0x1234, 0, &[]), KILL_THREAD, "another architecture");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn architectures_that_are_not_named_are_not_allowed() {
    let filter = profile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_TRAP"}]}"#,
    )
    .unwrap();
    assert_eq!(judge(&filter, X86_64, 101, &[]), TRAP);
    assert_eq!(judge(&filter, X86_64, 9999, &[]), ALLOW);
    assert_eq!(judge(&filter, X86, 26, &[]), KILL_THREAD, "the same call by another way");
    assert_eq!(judge(&filter, X86_64, X32, &[]), KILL_THREAD);
}

const X32: u32 = numbers::X32_BIT | 521;

#[test]
#[cfg(target_arch = "x86_64")]
fn every_comparison_compares() {
    let big = 5 | 1 << 32;
    for (op, holds, fails) in [
        ("EQ", vec![big], vec![5, big + 1, 1 << 32]),
        ("NE", vec![5, big + 1], vec![big]),
        ("GT", vec![big + 1, 1 << 40], vec![big, 7]),
        ("GE", vec![big, big + 1, 1 << 40], vec![big - 1, 7]),
        ("LT", vec![big - 1, 0xffff_ffff], vec![big, 1 << 40]),
        ("LE", vec![big, 7], vec![big + 1, 1 << 40]),
    ] {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 2, "value": {big}, "op": "SCMP_CMP_{op}"}}]}}]}}"#
        );
        let filter = profile(&text).unwrap();
        for value in holds {
            assert_eq!(judge(&filter, X86_64, 0, &[0, 0, value]), ALLOW, "{value} {op} {big}");
        }
        for value in fails {
            assert_ne!(judge(&filter, X86_64, 0, &[0, 0, value]), ALLOW, "{value} {op} {big}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn all_arguments_of_a_rule_must_fit_and_one_rule_must() {
    let filter = profile(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]}]}"#,
    )
    .unwrap();
    assert_eq!(judge(&filter, X86_64, 0, &[1, 2]), ALLOW);
    assert_eq!(judge(&filter, X86_64, 0, &[1, 3]), ERRNO | EPERM);
    assert_eq!(judge(&filter, X86_64, 0, &[3, 3]), LOG);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (text, said) in [
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
        (r#"{"defaultAction": "SCMP_ACT_DREAM"}"#, "SCMP_ACT_DREAM"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#, "listenerPath"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#, "\"X\""),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
            "WAIT_KILLABLE",
        ),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["VAX"]}"#, "VAX"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["no_such"], "action": "SCMP_ACT_ERRNO"}]}"#,
            "no_such",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "X"}]}]}"#,
            "comparison",
        ),
    ] {
        let error = profile(text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_filter_is_the_same_after_it_was_kept() {
    let filter = profile(USUAL).unwrap();
    let again = Filter::from_bytes(&filter.to_bytes()).unwrap();
    assert_eq!((again.program, again.flags), (filter.program, filter.flags));
    assert!(Filter::from_bytes(b"torn").is_none_or(|filter| filter.program.is_empty()));
    assert!(Filter::from_bytes(&[0; 7]).is_none());
}

#[test]
fn the_kernel_takes_it() {
    let filter = profile(
        USUAL
            .replace("SCMP_ACT_ERRNO\",\n", "SCMP_ACT_ALLOW\",\n")
            .replace("\"no_such_call\", ", "")
            .as_str(),
    )
    .unwrap();
    // Of a thread that ends with it.
    let installed = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        crate::sys::seccomp(&filter.program, filter.flags)
    });
    installed.join().unwrap().unwrap();
}

#[test]
fn two_conditions_of_one_argument_are_alternatives() {
    let filter = profile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 55, "args": [
                {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
            {"names": ["tkill"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]}]}"#,
    )
    .unwrap();
    for (number, arguments, expected) in [
        (62, [7, 0], ERRNO | 55),
        (62, [9, 0], ERRNO | 55),
        (62, [8, 0], ALLOW),
        (200, [7, 0], ALLOW),
        (200, [7, 9], ERRNO | EPERM),
    ] {
        let said = judge(&filter, X86_64, number, &arguments);
        assert_eq!(said, expected, "{number} {arguments:?}");
    }
}
