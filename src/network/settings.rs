//! Where CNI's files are and how its plugins are called.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// How this node does CNI. Stored in the attachment's record, so that a DEL uses what the ADD used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The folder of network configurations.
    pub conf_dir: PathBuf,
    /// Where plugin programs are looked for, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// How many networks of `conf_dir` a pod joins; 0 is all of them.
    pub max_conf_num: usize,
    /// Whether `lo` is brought up.
    pub loopback: bool,
    /// The pod's interface in the first network. The next ones count on from it: `eth0`, `eth1` and so on.
    pub ifname: String,
    /// The folder that holds `results/`, shared with other users of CNI.
    pub cache_dir: PathBuf,
    /// The longest that one plugin call may take; 0 leaves only the caller's deadline.
    #[serde(with = "whole_seconds")]
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            max_conf_num: 1,
            loopback: true,
            ifname: "eth0".to_owned(),
            cache_dir: "/var/lib/cni".into(),
            timeout: Duration::from_mins(1),
        }
    }
}

impl Settings {
    /// The time that one plugin call has, where it is limited.
    pub(super) fn call_timeout(&self) -> Option<Duration> {
        (!self.timeout.is_zero()).then_some(self.timeout)
    }

    /// The interface's name in the network with this index.
    pub(super) fn ifname_of(&self, index: usize) -> String {
        let stem = self.ifname.trim_end_matches(|c: char| c.is_ascii_digit());
        let first = self.ifname.get(stem.len()..).unwrap_or_default();
        if index == 0 {
            return self.ifname.clone();
        }
        let first: usize = first.parse().unwrap_or(0);
        format!("{stem}{}", first.saturating_add(index))
    }
}

/// The form that records have had from the first on.
mod whole_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        // A part of a second is more than none, and none would be no limit.
        let seconds = time.as_millis().div_ceil(1000);
        u64::try_from(seconds).unwrap_or(u64::MAX).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_gives_the_defaults() {
        let settings: Settings = toml::from_str("").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.ifname, "eth0");
        assert_eq!(settings.max_conf_num, 1);
    }

    #[test]
    fn a_table_changes_only_what_it_names() {
        let settings: Settings =
            toml::from_str("conf_dir = \"/elsewhere\"\ntimeout = 5\nloopback = false").unwrap();
        let expected = Settings {
            conf_dir: "/elsewhere".into(),
            timeout: Duration::from_secs(5),
            loopback: false,
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn a_record_has_a_limit_in_seconds_and_never_loses_it() {
        let settings = Settings { timeout: Duration::from_millis(1), ..Settings::default() };
        let text = serde_json::to_string(&settings).unwrap();
        assert!(text.contains("\"timeout\":1}"), "{text}");
        let read: Settings = serde_json::from_str(&text).unwrap();
        assert_eq!(read.timeout, Duration::from_secs(1));
    }

    #[test]
    fn interfaces_of_further_networks_count_on() {
        let mut settings = Settings::default();
        let names: Vec<_> = (0..3).map(|index| settings.ifname_of(index)).collect();
        assert_eq!(names, ["eth0", "eth1", "eth2"]);
        settings.ifname = "net9".to_owned();
        assert_eq!(settings.ifname_of(1), "net10");
        settings.ifname = "pod".to_owned();
        assert_eq!(settings.ifname_of(0), "pod");
        assert_eq!(settings.ifname_of(1), "pod1");
    }
}
