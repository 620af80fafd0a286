//! What the runtime says of its failures.

use std::{fs, path::Path};

use serde::Deserialize;

/// The most of a log that is looked at, from its end.
const MOST: usize = 256 << 10;

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Line {
    level: String,
    msg: String,
}

/// How long the log is now; a call's own complaints come after.
pub(super) fn mark(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |known| known.len())
}

/// The last error in `log` after `mark`. runc writes an object per line, crun one over several lines.
pub(super) fn last(log: &Path, mark: u64) -> Option<String> {
    let text = fs::read(log).ok()?;
    let fresh = text.get(usize::try_from(mark).ok()?..)?;
    let tail = fresh.get(fresh.len().saturating_sub(MOST)..)?;
    find(tail)
}

fn find(log: &[u8]) -> Option<String> {
    serde_json::Deserializer::from_slice(log)
        .into_iter::<Line>()
        .map_while(Result::ok)
        .filter(|line| matches!(line.level.as_str(), "error" | "fatal"))
        .last()
        .map(|line| line.msg.trim().to_owned())
        .filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_cause() {
        let log = br#"{"level":"warning","msg":"w"}
{"level":"error","msg":"first"}
{"level":"error","msg":" second "}
{"level":"info","msg":"i"}
"#;
        assert_eq!(find(log).as_deref(), Some("second"));
    }

    #[test]
    fn an_object_over_several_lines_and_a_torn_end_are_read() {
        let log =
            b"{\n \"msg\": \"no\",\n \"level\": \"error\",\n \"time\": \"t\"\n}\n{\"level\":\"err";
        assert_eq!(find(log).as_deref(), Some("no"));
        assert_eq!(find(b"garbage"), None);
    }
}
