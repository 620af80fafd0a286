//! Mount options in fstab's words, sorted by who understands them.

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::{Error, Mount};

/// One range of a user namespace's mapping, as `container:host:length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

#[derive(Debug)]
pub(crate) struct Options {
    /// `Some(recursive)` for a bind mount.
    pub bind: Option<bool>,
    /// Flags that were asked for.
    pub set: MountFlags,
    /// Flags that were explicitly not wanted (`suid`, `dev`, `exec`, `rw`).
    pub clear: MountFlags,
    /// Changes of propagation, in order.
    pub propagation: Vec<MountPropagationFlags>,
    /// The source is a file to be put behind a loop device.
    pub loop_device: bool,
    pub uids: Vec<IdRange>,
    pub gids: Vec<IdRange>,
    /// What only the file system understands: `key` or `key=value`.
    pub data: Vec<String>,
}

impl Options {
    pub(crate) fn is_mapped(&self) -> bool {
        !self.uids.is_empty() || !self.gids.is_empty()
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.set.contains(MountFlags::RDONLY)
    }

    /// Sorts the options of `mount`; what needs containerd's mount manager is refused.
    pub(crate) fn of(mount: &Mount) -> Result<Self, Error> {
        let mut sorted = Self {
            bind: match mount.kind.as_str() {
                "bind" => Some(false),
                "rbind" => Some(true),
                _ => None,
            },
            set: MountFlags::empty(),
            clear: MountFlags::empty(),
            propagation: Vec::new(),
            loop_device: false,
            uids: Vec::new(),
            gids: Vec::new(),
            data: Vec::new(),
        };
        for item in &mount.options {
            // Paths of an overlay and id mappings may have commas; elsewhere an item may hold several options.
            if mount.kind == "overlay" && is_overlay_path(item) {
                sorted.data.push(item.clone());
                continue;
            }
            if item.starts_with("uidmap=") || item.starts_with("gidmap=") {
                sorted.take(mount, item)?;
                continue;
            }
            for option in split_outside_quotes(item) {
                sorted.take(mount, option)?;
            }
        }
        if sorted.loop_device && sorted.bind.is_some() {
            return Err(Error::invalid(mount.to_string(), "option \"loop\" on a bind mount"));
        }
        Ok(sorted)
    }

    fn take(&mut self, mount: &Mount, option: &str) -> Result<(), Error> {
        let (key, value) = option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v)));
        if let Some(change) = propagation(option) {
            self.propagation.push(change);
            return Ok(());
        }
        if let Some((flag, wanted)) = flag(option) {
            let (to, from) = if wanted {
                (&mut self.set, &mut self.clear)
            } else {
                (&mut self.clear, &mut self.set)
            };
            to.insert(flag);
            from.remove(flag);
            return Ok(());
        }
        match (key, value) {
            ("" | "defaults" | "nomand" | "auto" | "noauto" | "nofail" | "_netdev", None) => {}
            ("bind", None) => self.bind = Some(self.bind.unwrap_or(false)),
            ("rbind", None) => self.bind = Some(true),
            ("loop", None) => self.loop_device = true,
            ("uidmap", Some(text)) => self.uids = ranges(mount, text)?,
            ("gidmap", Some(text)) => self.gids = ranges(mount, text)?,
            ("remount", None) => {
                return Err(Error::unimplemented(
                    mount.to_string(),
                    "a root file system is mounted, not remounted",
                ));
            }
            _ if key.starts_with("X-containerd.") => {
                return Err(Error::unimplemented(
                    mount.to_string(),
                    format!(
                        "option {key:?} is for containerd's mount manager, which has to apply it before"
                    ),
                ));
            }
            // By util-linux's convention these are remarks for programs, not for the kernel.
            _ if key.starts_with("x-") || key.starts_with("X-") => {}
            _ if self.bind.is_some() => {
                return Err(Error::invalid(
                    mount.to_string(),
                    format!("a bind mount has no option {key:?}"),
                ));
            }
            _ => self.data.push(option.to_owned()),
        }
        Ok(())
    }
}

fn is_overlay_path(option: &str) -> bool {
    ["lowerdir=", "upperdir=", "workdir=", "lowerdir+=", "datadir+="]
        .iter()
        .any(|key| option.starts_with(key))
}

/// Splits at commas, except within double quotes (SELinux contexts have commas).
fn split_outside_quotes(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ',' && !quoted
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name @ ("private" | "shared" | "slave" | "unbindable")) => (name, true),
        _ => (option, false),
    };
    let kind = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if recursive { kind | MountPropagationFlags::REC } else { kind })
}

fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "mand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        _ => return None,
    })
}

fn ranges(mount: &Mount, text: &str) -> Result<Vec<IdRange>, Error> {
    let parsed: Option<Vec<IdRange>> = text
        .split(',')
        .map(|range| {
            let mut numbers = range.split(':').map(|number| number.parse::<u32>().ok());
            let range = IdRange {
                inside: numbers.next()??,
                outside: numbers.next()??,
                length: numbers.next()??,
            };
            numbers.next().is_none().then_some(range)
        })
        .collect();
    parsed.ok_or_else(|| {
        Error::invalid(
            mount.to_string(),
            format!("{text:?} is no id mapping (container:host:length)"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(kind: &str, options: &[&str]) -> Result<Options, Error> {
        Options::of(&Mount::new(kind, "source", options))
    }

    #[test]
    fn the_last_of_two_contrary_options_wins() {
        let options = sorted("tmpfs", &["ro", "nosuid", "rw", "suid", "nodev"]).unwrap();
        assert_eq!(options.set, MountFlags::NODEV);
        assert_eq!(options.clear, MountFlags::RDONLY | MountFlags::NOSUID);
    }

    #[test]
    fn what_nobody_knows_goes_to_the_file_system() {
        let options = sorted("tmpfs", &["size=64m,mode=1777", "noswap", "x-remark=1"]).unwrap();
        assert_eq!(options.data, ["size=64m", "mode=1777", "noswap"]);
    }

    #[test]
    fn commas_in_quotes_and_in_overlay_paths_do_not_split() {
        let context = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let options = sorted("overlay", &[context, "lowerdir=/a,b:/c", "index=off,nodev"]).unwrap();
        assert_eq!(options.data, [context, "lowerdir=/a,b:/c", "index=off"]);
        assert_eq!(options.set, MountFlags::NODEV);
    }

    #[test]
    fn propagation_is_kept_in_order_and_recursive_where_said() {
        let options = sorted("bind", &["rbind", "rslave", "shared"]).unwrap();
        assert_eq!(options.bind, Some(true));
        assert_eq!(
            options.propagation,
            [
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
                MountPropagationFlags::SHARED
            ]
        );
    }

    #[test]
    fn the_mount_managers_options_are_refused_and_named() {
        let error = sorted("overlay", &["X-containerd.mkdir.path=/x"]).unwrap_err();
        assert!(matches!(error, Error::Unimplemented { .. }));
        assert!(error.to_string().contains("X-containerd.mkdir.path"), "{error}");
    }

    #[test]
    fn mappings_are_read_and_nonsense_is_refused() {
        let options = sorted("overlay", &["uidmap=0:1000:65536", "gidmap=0:2000:65536"]).unwrap();
        assert_eq!(options.uids, [IdRange { inside: 0, outside: 1000, length: 65536 }]);
        assert_eq!(options.gids, [IdRange { inside: 0, outside: 2000, length: 65536 }]);
        for text in ["uidmap=", "uidmap=0:1", "uidmap=a:b:c", "uidmap=0:1:2:3", "uidmap=-1:0:1"] {
            assert!(matches!(sorted("overlay", &[text]), Err(Error::Invalid { .. })), "{text}");
        }
    }

    #[test]
    fn a_bind_mount_has_no_options_of_a_file_system() {
        assert!(matches!(sorted("bind", &["size=1"]), Err(Error::Invalid { .. })));
        assert!(matches!(sorted("bind", &["loop"]), Err(Error::Invalid { .. })));
    }
}
