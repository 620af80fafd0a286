//! Which plugin has set what of a container: two may not set the same.

use std::collections::BTreeMap;

use thiserror::Error;

use super::api::{CompoundFieldOwners, FieldOwners};

/// What of a container a plugin can set, with NRI's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Annotation = 1,
    Mount = 2,
    Hooks = 3,
    Device = 4,
    Env = 6,
    Args = 7,
    MemLimit = 8,
    MemReservation = 9,
    MemSwapLimit = 10,
    MemKernelLimit = 11,
    MemTcpLimit = 12,
    MemSwappiness = 13,
    MemDisableOomKiller = 14,
    MemUseHierarchy = 15,
    CpuShares = 16,
    CpuQuota = 17,
    CpuPeriod = 18,
    CpuRealtimeRuntime = 19,
    CpuRealtimePeriod = 20,
    CpusetCpus = 21,
    CpusetMems = 22,
    PidsLimit = 23,
    HugepageLimit = 24,
    Unified = 27,
    CgroupsPath = 28,
    OomScoreAdj = 29,
    Rlimit = 30,
    Sysctl = 34,
}

/// A plugin wants to set what another has set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what} is set by NRI plugin {first:?} already")]
pub struct Taken {
    what: String,
    first: String,
}

/// Who has set what. The key is empty for what there is one of.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<(Field, String), String>);

impl Claims {
    pub(super) fn claim(&mut self, field: Field, key: &str, plugin: &str) -> Result<(), Taken> {
        let place = (field, key.to_owned());
        match self.0.get(&place) {
            Some(first) if first != plugin => {
                let what = if key.is_empty() {
                    format!("{field:?}")
                } else {
                    format!("{field:?} {key:?}")
                };
                Err(Taken { what, first: first.clone() })
            }
            _ => {
                self.0.insert(place, plugin.to_owned());
                Ok(())
            }
        }
    }

    /// Notes what several plugins may add to; the last is named.
    pub(super) fn note(&mut self, field: Field, plugin: &str) {
        self.0.insert((field, String::new()), plugin.to_owned());
    }

    /// What is removed may be set again by anybody.
    pub(super) fn clear(&mut self, field: Field, key: &str) {
        self.0.remove(&(field, key.to_owned()));
    }

    /// As plugins that judge the others' adjustments are shown them.
    pub(super) fn owners(&self) -> FieldOwners {
        let mut owners = FieldOwners::default();
        for ((field, key), plugin) in &self.0 {
            let number = *field as i32;
            if key.is_empty() {
                owners.simple.insert(number, plugin.clone());
            } else {
                let compound: &mut CompoundFieldOwners = owners.compound.entry(number).or_default();
                compound.owners.insert(key.clone(), plugin.clone());
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_has_set_another_may_not_until_it_is_removed() {
        let mut claims = Claims::default();
        claims.claim(Field::Env, "A", "10-x").unwrap();
        claims.claim(Field::Env, "A", "10-x").unwrap();
        claims.claim(Field::Env, "B", "20-y").unwrap();
        let taken = claims.claim(Field::Env, "A", "20-y").unwrap_err();
        assert_eq!(taken.to_string(), "Env \"A\" is set by NRI plugin \"10-x\" already");
        claims.clear(Field::Env, "A");
        claims.claim(Field::Env, "A", "20-y").unwrap();
        claims.claim(Field::Args, "", "20-y").unwrap();
        let owners = claims.owners();
        assert_eq!(owners.compound[&6].owners["A"], "20-y");
        assert_eq!(owners.simple[&7], "20-y");
    }
}
