//! How a process is scheduled, on processors and on disks.

use crate::{
    error::{Doing, Error, Result},
    spec::{IoPriority, Process, Scheduler},
    sys::{self, Scheduling},
};

/// Whether words are the kernel's.
pub fn check(process: &Process) -> Result<()> {
    process.scheduler.as_ref().map(attributes).transpose()?;
    process.io_priority.as_ref().map(priority).transpose()?;
    Ok(())
}

pub(super) fn set(process: &Process) -> Result<()> {
    if let Some(wanted) = &process.scheduler {
        sys::sched_setattr(attributes(wanted)?).doing("set process.scheduler")?;
    }
    if let Some(wanted) = &process.io_priority {
        sys::ioprio_set(priority(wanted)?).doing("set process.ioPriority")?;
    }
    Ok(())
}

fn attributes(wanted: &Scheduler) -> Result<Scheduling> {
    let policy = match wanted.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(Error::invalid(format!("process.scheduler policy {other:?}"))),
    };
    let mut flags = 0;
    for flag in &wanted.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(Error::invalid(format!("process.scheduler flag {other:?}"))),
        };
    }
    Ok(Scheduling {
        policy,
        flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
        ..Scheduling::default()
    })
}

fn priority(wanted: &IoPriority) -> Result<i32> {
    let class = match wanted.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(Error::invalid(format!("process.ioPriority class {other:?}"))),
    };
    if (0..8).contains(&wanted.priority) {
        Ok(class << 13 | wanted.priority)
    } else {
        Err(Error::invalid(format!("process.ioPriority priority {}", wanted.priority)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_numbers_and_others_are_refused() {
        let wanted = IoPriority { class: "IOPRIO_CLASS_BE".into(), priority: 4 };
        assert_eq!(priority(&wanted).unwrap(), 2 << 13 | 4);
        assert!(priority(&IoPriority { class: "X".into(), priority: 0 }).is_err());
        assert!(priority(&IoPriority { priority: 8, ..wanted }).is_err());
        let wanted = Scheduler { policy: "SCHED_BATCH".into(), nice: 5, ..Scheduler::default() };
        assert_eq!(
            (attributes(&wanted).unwrap().policy, attributes(&wanted).unwrap().nice),
            (3, 5)
        );
        assert!(
            attributes(&Scheduler { policy: "SCHED_X".into(), ..Scheduler::default() }).is_err()
        );
    }
}
