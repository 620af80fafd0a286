//! Numbers of system calls.

use crate::error::{Error, Result};

/// An architecture that programs on this machine may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    X86,
    /// 64-bit registers and 32-bit addresses: to the kernel the same architecture as `x86_64`, with a bit set in numbers.
    X32,
    Aarch64,
    Arm,
}

/// The bit.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The calls that x32 has of its own; the others have `x86_64`'s numbers.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

impl Arch {
    pub(super) fn native() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }

    /// The architecture of a profile's name. Those whose programs this machine cannot run are nothing to filter; their
    /// calls, if there were any, would be denied.
    pub(super) fn of(name: &str) -> Result<Option<Self>> {
        let found = match name {
            "SCMP_ARCH_X86_64" => Some(Self::X86_64),
            "SCMP_ARCH_X86" => Some(Self::X86),
            "SCMP_ARCH_X32" => Some(Self::X32),
            "SCMP_ARCH_AARCH64" => Some(Self::Aarch64),
            "SCMP_ARCH_ARM" => Some(Self::Arm),
            "SCMP_ARCH_NATIVE" => Some(Self::native()),
            other if other.starts_with("SCMP_ARCH_") => None,
            other => {
                return Err(Error::invalid(format!("seccomp: unknown architecture {other:?}")));
            }
        };
        let arm = cfg!(target_arch = "aarch64");
        Ok(found.filter(|arch| arm == matches!(arch, Self::Aarch64 | Self::Arm)))
    }

    /// The kernel's own mark of it.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits.
    pub(super) fn is_wide(self) -> bool {
        !matches!(self, Self::X86 | Self::Arm)
    }
}

/// The calls of an architecture, in the order of their names.
pub(super) struct Table(Vec<(&'static str, u32)>);

macro_rules! calls {
    ($arch:ident) => {
        syscalls::$arch::Sysno::iter().map(|one| (one.name(), one.id().unsigned_abs())).collect()
    };
}

impl Table {
    pub(super) fn of(arch: Arch) -> Self {
        let mut all: Vec<(&'static str, u32)> = match arch {
            Arch::X86_64 | Arch::X32 => calls!(x86_64),
            Arch::X86 => calls!(x86),
            Arch::Aarch64 => calls!(aarch64),
            Arch::Arm => calls!(arm),
        };
        if arch == Arch::X32 {
            all.retain(|(name, _)| !X32_OWN.iter().any(|(own, _)| own == name));
            all.extend(X32_OWN);
            for (_, number) in &mut all {
                *number |= X32_BIT;
            }
        }
        all.sort_unstable();
        Self(all)
    }

    pub(super) fn number(&self, name: &str) -> Option<u32> {
        let at = self.0.binary_search_by_key(&name, |(known, _)| known).ok()?;
        self.0.get(at).map(|(_, number)| *number)
    }
}

/// Whether any architecture here has such a call.
pub(super) fn is_known(name: &str) -> bool {
    let all: [Arch; 4] = if cfg!(target_arch = "aarch64") {
        [Arch::Aarch64, Arch::Arm, Arch::X86_64, Arch::X86]
    } else {
        [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm]
    };
    all.into_iter().any(|arch| Table::of(arch).number(name).is_some())
}
