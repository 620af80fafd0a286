//! What the shims of a node have measured that are gone: their sums, in one small file of the run folder, for whoever counts
//! over the node's whole uptime.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Series;
use crate::sys::replace;

const FILE: &str = "totals.json";
const LOCK: &str = "totals.lock";
/// How long whoever adds waits for the others who do; after that its numbers are lost, and nothing else.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);
/// More series than any shim has: a file with more is none of ours.
const MOST: usize = 1000;

/// One series, and of which runtime type's shims.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Total {
    pub runtime: String,
    pub name: String,
    #[serde(default)]
    pub subject: String,
    #[serde(flatten)]
    pub series: Series,
}

/// What is written down below `run_root`; nothing where nothing is. Blocks.
pub fn read(run_root: &Path) -> io::Result<Vec<Total>> {
    match fs::read(run_root.join(FILE)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds what was measured by one of `runtime`'s. A file that is not understood is begun anew. Blocks, half a second at
/// most.
pub fn add(
    run_root: &Path,
    runtime: &str,
    measured: Vec<(String, String, Series)>,
) -> io::Result<()> {
    fs::create_dir_all(run_root)?;
    let _lock = lock(&run_root.join(LOCK))?;
    let mut sums: BTreeMap<(String, String, String), Series> = read(run_root)
        .unwrap_or_default()
        .into_iter()
        .take(MOST)
        .map(|one| ((one.runtime, one.name, one.subject), one.series))
        .collect();
    for (name, subject, series) in measured {
        let sum = sums.entry((runtime.to_owned(), name, subject)).or_default();
        *sum = sum.and(&series);
    }
    let all: Vec<Total> = sums
        .into_iter()
        .map(|((runtime, name, subject), series)| Total { runtime, name, subject, series })
        .collect();
    replace::file(&run_root.join(FILE), &serde_json::to_vec(&all)?, 0o600, replace::Sync::Nothing)
}

/// Counts something that happened once to what ran below `run_dir`, the folder of a pod's files, if the node's totals are
/// kept. A loss of numbers keeps nothing. Blocks.
pub fn count_where_kept(run_dir: &Path, name: &str, took: Duration) {
    let root = run_dir.parent().and_then(Path::parent);
    let Some(root) = root.filter(|root| root.join(FILE).exists()) else { return };
    let mut series = Series::default();
    series.add(took, false);
    if let Err(error) = add(root, "", vec![(name.to_owned(), String::new(), series)]) {
        log::warn!("add to the node's totals in {}: {error}", root.display());
    }
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, ms: u64) -> Vec<(String, String, Series)> {
        let mut series = Series::default();
        series.add(Duration::from_millis(ms), false);
        vec![(name.to_owned(), "x".to_owned(), series)]
    }

    #[test]
    fn sums_are_kept_by_runtime_name_and_subject() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        assert_eq!(read(&root).unwrap(), []);
        for (runtime, name, ms) in [("a", "stop", 3), ("a", "stop", 7), ("b", "stop", 1)] {
            add(&root, runtime, measured(name, ms)).unwrap();
        }
        let all = read(&root).unwrap();
        let [a, b] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((a.runtime.as_str(), a.subject.as_str(), a.series.count), ("a", "x", 2));
        assert_eq!(a.series.longest, Duration::from_millis(7));
        assert_eq!(a.series.total, Duration::from_millis(10));
        assert_eq!(a.series.within.iter().sum::<u32>(), 2);
        assert_eq!((b.runtime.as_str(), b.series.count), ("b", 1));
    }

    #[test]
    fn what_happens_once_is_counted_where_totals_are_kept_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("ns/id");
        count_where_kept(&run_dir, "resumed", Duration::ZERO);
        assert!(!folder.path().join(LOCK).exists());
        add(folder.path(), "a", measured("stop", 3)).unwrap();
        count_where_kept(&run_dir, "resumed", Duration::ZERO);
        let all = read(folder.path()).unwrap();
        assert!(all.iter().any(|one| one.name == "resumed" && one.series.count == 1), "{all:?}");
    }

    #[test]
    fn many_who_add_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| add(folder.path(), "a", measured("stop", 3)).unwrap());
            }
        });
        assert_eq!(read(folder.path()).unwrap().first().unwrap().series.count, 20);
    }

    #[test]
    fn what_is_not_understood_is_begun_anew_and_a_lock_that_is_held_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "torn").unwrap();
        assert!(read(folder.path()).is_err());
        add(folder.path(), "a", measured("stop", 3)).unwrap();
        assert_eq!(read(folder.path()).unwrap().len(), 1);
        let _held = lock(&folder.path().join(LOCK)).unwrap();
        let error = add(folder.path(), "a", measured("stop", 3)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(read(folder.path()).unwrap().first().unwrap().series.count, 1);
    }
}
