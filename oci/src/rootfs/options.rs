//! Mount options in fstab's words.

pub use libc::{
    MOUNT_ATTR__ATIME as ATIME, MOUNT_ATTR_IDMAP as IDMAP, MOUNT_ATTR_NOATIME as NOATIME,
    MOUNT_ATTR_NODEV as NODEV, MOUNT_ATTR_NODIRATIME as NODIRATIME, MOUNT_ATTR_NOEXEC as NOEXEC,
    MOUNT_ATTR_NOSUID as NOSUID, MOUNT_ATTR_NOSYMFOLLOW as NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY as RDONLY, MOUNT_ATTR_STRICTATIME as STRICTATIME, MS_PRIVATE as PRIVATE,
    MS_SHARED as SHARED, MS_SLAVE as SLAVE, MS_UNBINDABLE as UNBINDABLE,
};

use crate::{
    error::{Error, Result},
    spec::Mount,
    sys::MountAttr,
};

/// What the options of a mount ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `Some(recursive)` for a bind mount.
    pub bind: Option<bool>,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of it and all that is mounted below it.
    pub deep: MountAttr,
    /// Changes of propagation, each with whether it goes for what is below too.
    pub propagation: Vec<(u64, bool)>,
    /// `Some(recursive)`: under other owners.
    pub mapped: Option<bool>,
    /// What the file system understands.
    pub data: Vec<String>,
}

/// The attribute, and whether the word wants it or not.
fn attribute(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "ro" => (RDONLY, true),
        "rw" => (RDONLY, false),
        "nosuid" => (NOSUID, true),
        "suid" => (NOSUID, false),
        "nodev" => (NODEV, true),
        "dev" => (NODEV, false),
        "noexec" => (NOEXEC, true),
        "exec" => (NOEXEC, false),
        "nodiratime" => (NODIRATIME, true),
        "diratime" => (NODIRATIME, false),
        "nosymfollow" => (NOSYMFOLLOW, true),
        "symfollow" => (NOSYMFOLLOW, false),
        _ => return None,
    })
}

/// The kind of access times, which are one of three.
fn times(word: &str) -> Option<u64> {
    match word {
        "relatime" | "atime" | "nostrictatime" => Some(0),
        "noatime" => Some(NOATIME),
        "strictatime" | "norelatime" => Some(STRICTATIME),
        _ => None,
    }
}

/// A change of propagation, and whether it is recursive.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    let (kind, deep) = match word.strip_prefix('r') {
        Some(rest) if ["shared", "slave", "private", "unbindable"].contains(&rest) => (rest, true),
        _ => (word, false),
    };
    let kind = match kind {
        "shared" => SHARED,
        "slave" => SLAVE,
        "private" => PRIVATE,
        "unbindable" => UNBINDABLE,
        _ => return None,
    };
    Some((kind, deep))
}

fn put(attr: &mut MountAttr, flag: u64, wanted: bool) {
    let (to, from) =
        if wanted { (&mut attr.set, &mut attr.clear) } else { (&mut attr.clear, &mut attr.set) };
    *to |= flag;
    *from &= !flag;
}

fn put_times(attr: &mut MountAttr, kind: u64) {
    attr.set = attr.set & !ATIME | kind;
    attr.clear |= ATIME;
}

impl Options {
    pub fn of(mount: &Mount) -> Result<Self> {
        let mut all = Self {
            bind: match mount.kind.as_str() {
                "bind" => Some(false),
                "rbind" => Some(true),
                _ => None,
            },
            ..Self::default()
        };
        for word in &mount.options {
            all.take(word)?;
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            all.mapped.get_or_insert(false);
        }
        if all.mapped.is_some() && all.bind.is_none() {
            return Err(Error::unsupported("mapped ids of a mount that is no bind mount"));
        }
        if all.bind.is_some() && !all.data.is_empty() {
            return Err(Error::unsupported(format!("options {:?} of a bind mount", all.data)));
        }
        Ok(all)
    }

    fn take(&mut self, word: &str) -> Result<()> {
        if let Some((flag, wanted)) = attribute(word) {
            put(&mut self.attr, flag, wanted);
        } else if let Some(kind) = times(word) {
            put_times(&mut self.attr, kind);
        } else if let Some(change) = propagation(word) {
            self.propagation.push(change);
        } else if let Some(deep) = word.strip_prefix('r')
            && let Some((flag, wanted)) = attribute(deep)
        {
            put(&mut self.deep, flag, wanted);
        } else if let Some(kind) = word.strip_prefix('r').and_then(times) {
            put_times(&mut self.deep, kind);
        } else {
            match word {
                "bind" => self.bind = Some(self.bind.unwrap_or(false)),
                "rbind" => self.bind = Some(true),
                "idmap" => self.mapped = Some(false),
                "ridmap" => self.mapped = Some(true),
                "" | "defaults" | "async" | "nomand" | "silent" | "loud" => {}
                "remount" | "sync" | "dirsync" | "mand" | "iversion" | "noiversion"
                | "lazytime" | "nolazytime" | "tmpcopyup" => {
                    return Err(Error::unsupported(format!("mount option {word:?}")));
                }
                _ => self.data.push(word.to_owned()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, words: &[&str]) -> Result<Options> {
        let options = words.iter().map(ToString::to_string).collect();
        Options::of(&Mount { kind: kind.into(), options, ..Mount::default() })
    }

    #[test]
    fn words_are_sorted_by_who_understands_them() {
        let all = of("bind", &["rbind", "rro", "rprivate", "nosuid", "noatime"]).unwrap();
        assert_eq!(all.bind, Some(true));
        assert_eq!(all.deep.set, RDONLY);
        assert_eq!(all.attr.set, NOSUID | NOATIME);
        assert_eq!(all.attr.clear, ATIME);
        assert_eq!(all.propagation, [(PRIVATE, true)]);
        let all = of("tmpfs", &["ro", "rw", "size=1k", "mode=755"]).unwrap();
        assert_eq!((all.attr.set, all.attr.clear), (0, RDONLY));
        assert_eq!(all.data, ["size=1k", "mode=755"]);
    }

    #[test]
    fn the_word_rw_is_not_a_recursive_w() {
        assert_eq!(of("bind", &["rw"]).unwrap().attr.clear, RDONLY);
        assert_eq!(of("bind", &["rrw"]).unwrap().deep.clear, RDONLY);
        assert_eq!(of("bind", &["relatime"]).unwrap().attr.set, 0);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for word in [
            "remount",
            "sync",
            "dirsync",
            "mand",
            "iversion",
            "noiversion",
            "lazytime",
            "nolazytime",
            "tmpcopyup",
        ] {
            for kind in ["tmpfs", "bind"] {
                let error = of(kind, &[word]).unwrap_err().to_string();
                assert!(error.contains(&format!("mount option {word:?}")), "{error}");
            }
        }
        let error = of("bind", &["size=1k"]).unwrap_err().to_string();
        assert!(error.contains("size=1k"), "{error}");
        for word in ["idmap", "ridmap"] {
            let error = of("tmpfs", &[word]).unwrap_err().to_string();
            assert!(error.contains("mapped ids"), "{error}");
        }
    }
}
