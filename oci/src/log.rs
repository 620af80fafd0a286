//! What is told of failures: as JSON lines in the log, where the caller reads them, and on the error stream.

use std::{fs::OpenOptions, io::Write, path::PathBuf, time::SystemTime};

use crate::args::Global;

#[derive(Debug, Default)]
pub struct Log {
    path: Option<PathBuf>,
    is_json: bool,
}

impl Log {
    pub fn of(global: &Global) -> Self {
        Self { path: global.log.clone(), is_json: global.log_is_json }
    }

    /// Tells what was left out; who has named no log sees it.
    pub fn warn(&self, what: &str) {
        self.write("warning", what);
        if self.path.is_none() {
            let _ = writeln!(std::io::stderr(), "warning: {what}");
        }
    }

    /// Tells why the call has failed.
    pub fn fail(&self, why: &str) {
        self.write("error", why);
        // The caller may have closed it.
        let _ = writeln!(std::io::stderr(), "{why}");
    }

    fn write(&self, level: &str, what: &str) {
        let Some(path) = &self.path else { return };
        let line = if self.is_json {
            let time = timestamp(SystemTime::now());
            serde_json::json!({"level": level, "msg": what, "time": time}).to_string()
        } else {
            format!("level={level} msg={what:?}")
        };
        let opened = OpenOptions::new().append(true).create(true).open(path);
        // Whoever wants a log sees that there is none.
        let _ = opened.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    }
}

/// Seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "it is the calendar that is asked for, and nothing waits"
)]
pub fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// As RFC 3339 has it.
pub fn timestamp(at: SystemTime) -> String {
    let since = seconds(at);
    let (days, second) = (since / 86_400, since % 86_400);
    // Days are counted from the first of March of year 0, so that the odd day of a leap year is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_calendars_have_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
