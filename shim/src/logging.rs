//! The log, on its way into containerd's.
//!
//! containerd reads the named pipe `log` in the bundle and copies it to its own. When containerd is away nobody
//! reads: lines wait in the pipe as long as there is room, then they are dropped. Nothing here waits or fails.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::watchdog;

/// The most that a pipe takes in one piece.
const LINE_LIMIT: usize = 4096;

/// Logs to the pipe in `bundle` from now on, with `fields` (`key=value …`) at the end of each line.
pub fn start(bundle: &Path, level: LevelFilter, fields: String) {
    let pipe = Pipe { path: bundle.join("log"), fields, file: Mutex::default() };
    // Only fails when it was done before, and then there is a log.
    if log::set_boxed_logger(Box::new(pipe)).is_ok() {
        log::set_max_level(level);
    }
}

struct Pipe {
    path: PathBuf,
    fields: String,
    file: Mutex<Option<File>>,
}

impl Log for Pipe {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What libraries have to say about their insides is noise, unless everything is asked for.
        let ours = metadata.target().contains("mooring");
        ours || metadata.level() <= Level::Warn || log::max_level() == LevelFilter::Trace
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            let line = line(SystemTime::now(), record.level(), &message, &self.fields);
            self.write(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl Pipe {
    fn write(&self, line: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A pipe that was removed and made anew has no name any more.
        let gone = |file: &File| file.metadata().is_ok_and(|meta| meta.nlink() == 0);
        if file.as_ref().is_none_or(gone) {
            *file = open(&self.path).ok();
            watchdog::log_to(file.as_ref().map(AsRawFd::as_raw_fd));
        }
        if let Some(mut pipe) = file.as_ref()
            && let Err(error) = pipe.write(line)
            // Full: the line is lost, and the next may find room.
            && error.kind() != io::ErrorKind::WouldBlock
        {
            watchdog::log_to(None);
            *file = None;
        }
    }
}

/// Opened for reading too, so that the pipe has a reader while containerd is away, and is not emptied meanwhile.
fn open(path: &Path) -> io::Result<File> {
    let file =
        File::options().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        return Ok(file);
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// One line as containerd writes its own, never longer than a pipe takes in one piece.
fn line(at: SystemTime, level: Level, message: &str, fields: &str) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut line = format!("time=\"{}\" level={level} msg=", timestamp(at));
    let room = LINE_LIMIT - line.len() - fields.len().min(LINE_LIMIT / 2) - 8;
    let _ = write!(line, "\"");
    let full = line.len() + room;
    for character in message.chars() {
        if line.len() + 10 > full {
            line.push('…');
            break;
        }
        match character {
            '"' | '\\' => line.extend(['\\', character]),
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            other if other.is_control() => line.extend(other.escape_unicode()),
            other => line.push(other),
        }
    }
    line.push('"');
    if !fields.is_empty() {
        line.push(' ');
        line.push_str(fields);
    }
    line.push('\n');
    line
}

/// The time in UTC as RFC 3339 has it.
#[expect(clippy::disallowed_methods, reason = "a time to be shown, of no wait")]
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years start in March here, so that the day that not every year has is the last one; 400 years have a
    // whole number of days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        era * 400 + year,
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos(),
    )
}

#[cfg(test)]
mod tests {
    use std::{io::Read, time::Duration};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn pipe(folder: &Path) -> Pipe {
        Pipe { path: folder.join("log"), fields: "id=a".into(), file: Mutex::default() }
    }

    fn reader(path: &Path) -> File {
        File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap()
    }

    fn all(mut from: File) -> String {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn times_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_795_489_732, "2026-11-24T03:08:52.000000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_line_stays_one_line_and_within_what_a_pipe_takes() {
        let line_of = |message: &str| line(UNIX_EPOCH, Level::Warn, message, "id=a");
        assert_eq!(
            line_of("a \"b\"\n\0"),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warning msg=\"a \\\"b\\\"\\n\\u{0}\" id=a\n"
        );
        for long in ["x".repeat(10_000), "é\n".repeat(5_000), "\0".repeat(10_000)] {
            let line = line_of(&long);
            assert!(line.len() <= LINE_LIMIT && line.ends_with("…\" id=a\n"), "{}", line.len());
        }
    }

    #[test]
    fn a_line_written_while_nobody_reads_waits_in_the_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let pipe = pipe(folder.path());
        pipe.write(b"one\n");
        assert_eq!(all(reader(&path)), "one\n");
        pipe.write(b"two\n");
        assert_eq!(all(reader(&path)), "two\n");
    }

    #[test]
    fn a_full_pipe_loses_lines_and_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let pipe = pipe(folder.path());
        for _ in 0..100 {
            pipe.write(&[b'x'; 4096]);
        }
        assert!(all(reader(&path)).len() >= 4096);
        pipe.write(b"again\n");
        assert_eq!(all(reader(&path)), "again\n");
    }

    #[test]
    fn a_pipe_made_anew_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let pipe = pipe(folder.path());
        pipe.write(b"lost\n");
        for text in ["one\n", "two\n"] {
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            pipe.write(text.as_bytes());
            assert_eq!(all(reader(&path)), text);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_file_in_the_pipes_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "mine").unwrap();
        pipe(folder.path()).write(b"not here\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "mine");
    }
}
