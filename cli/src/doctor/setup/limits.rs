//! What containerd cannot do, by its version: the table of docs/comparison.md.

use super::{Remark, Setup};
use crate::doctor::world::Asked;

const PART: &str = "containerd";
const WHERE: &str = "docs/comparison.md, \"Limits of containerd\"";

type Version = (u32, u32, u32);

/// The oldest release with a sandbox controller that shims can be, as far as it was tried.
const OLDEST: Version = (2, 1, 0);
/// From here on nothing was tried.
const UNKNOWN: Version = (2, 5, 0);

/// A row of the table.
struct Limit {
    what: &'static str,
    /// What is so in 2.1, 2.2, 2.3 and 2.4.
    cells: [&'static str; 4],
    /// Whether a release has the limit.
    holds: fn(Version) -> bool,
}

const LIMITS: &[Limit] = &[
    Limit {
        what: "a pod on the node's network (`hostNetwork: true`)",
        cells: ["containerd crashes", "containerd crashes", "works", "works"],
        holds: |version| version < (2, 3, 0),
    },
    Limit {
        what: "an `options` table in the handler",
        cells: [
            "no container starts",
            "no container starts",
            "works from 2.3.1 on, but not for pods with a user namespace",
            "as 2.3.1",
        ],
        holds: |_| true,
    },
    Limit {
        what: "the kubelet accepts `hostUsers: false` on this handler",
        cells: ["no", "from 2.2.7 on", "from 2.3.4 on", "yes"],
        holds: |version| version < (2, 2, 7) || ((2, 3, 0)..(2, 3, 4)).contains(&version),
    },
    Limit {
        what: "the pause image is fetched though nobody needs it",
        cells: [
            "no",
            "no",
            "yes, for every pod, where the node has it not",
            "unless `disable_pause_image_pull`",
        ],
        holds: |version| version >= (2, 3, 0),
    },
    Limit {
        what: "`ctr sandboxes run`, `ctr sandboxes info`",
        cells: ["no", "yes", "yes", "yes"],
        holds: |version| version < (2, 2, 0),
    },
    Limit {
        what: "`runtime_path` finds the shim of a sandbox",
        cells: ["no", "no", "no", "no"],
        holds: |_| true,
    },
    Limit {
        what: "UpdatePodSandboxResources reaches the shim",
        cells: ["there is none", "no", "no", "no"],
        holds: |_| true,
    },
    Limit {
        what: "a stopped pod bears the end of its shim",
        cells: ["no", "no", "no", "no"],
        holds: |_| true,
    },
    Limit {
        what: "a sandbox has an SELinux label of its own",
        cells: ["no", "no", "no", "no"],
        holds: |_| true,
    },
];

pub fn remarks(setup: &Setup<'_>) -> Vec<Remark> {
    match &setup.world.containerd {
        Asked::Records(records) => of_version(&records.version),
        Asked::Not(_) if setup.world.quick => Vec::new(),
        Asked::Not(reason) => vec![Remark::note(PART, format!("it does not answer: {reason}"))],
    }
}

fn of_version(text: &str) -> Vec<Remark> {
    let Some(version) = parse(text) else {
        return vec![Remark::note(PART, format!("what version is {text:?}?"))];
    };
    if version < OLDEST {
        let remedy = "use containerd 2.1 or later";
        return vec![Remark::problem(PART, format!("version {text} is too old")).remedy(remedy)];
    }
    if version >= UNKNOWN {
        return vec![Remark::note(PART, format!("version {text} is later than what was tried"))];
    }
    let mut all = vec![Remark::good(PART, format!("version {text}"))];
    let column = usize::try_from(version.1.saturating_sub(1)).unwrap_or(0);
    let limits = LIMITS.iter().filter(|limit| (limit.holds)(version));
    all.extend(limits.filter_map(|limit| {
        let what = format!("limit of {text}: {}: {}", limit.what, limit.cells.get(column)?);
        Some(Remark::note(PART, what.replace('`', "")).remedy(WHERE))
    }));
    all
}

/// `v2.3.4`, `2.1.9+ds1`, `v2.4.0-beta.0`.
pub fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.trim_start_matches('v').splitn(3, '.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part.get(..end)?.parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::setup::Level;

    #[test]
    fn the_table_is_that_of_the_document() {
        let page = include_str!("../../../../docs/comparison.md");
        let (_, rest) = page.split_once("## Limits of containerd").unwrap();
        let lines = rest.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        let rows: Vec<Vec<&str>> = lines
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).take(5).collect())
            .collect();
        let ours: Vec<Vec<&str>> =
            LIMITS.iter().map(|limit| [&[limit.what][..], &limit.cells].concat()).collect();
        assert_eq!(rows, ours);
    }

    #[test]
    fn a_version_has_its_limits() {
        assert_eq!(parse("v2.3.4"), Some((2, 3, 4)));
        assert_eq!(parse("2.1.9+ds1"), Some((2, 1, 9)));
        assert_eq!(parse("v2.4.0-beta.0"), Some((2, 4, 0)));
        for nonsense in ["", "v2", "2.x.1", "unknown"] {
            assert_eq!(parse(nonsense), None, "{nonsense}");
        }
        let says = |version: &str, what: &str| {
            of_version(version).iter().any(|one| one.what.contains(what))
        };
        assert!(says("2.1.9", "hostNetwork: true): containerd crashes"));
        assert!(!says("2.3.4", "hostNetwork"));
        assert!(says("2.2.6", "hostUsers") && !says("2.2.7", "hostUsers"));
        assert!(says("2.3.3", "hostUsers") && !says("2.3.4", "hostUsers"));
        assert!(says("2.4.0-beta.0", "unless disable_pause_image_pull"));
        assert_eq!(of_version("1.7.20")[0].level, Level::Problem);
        assert_eq!(of_version("9.0.0")[0].level, Level::Note);
    }
}
