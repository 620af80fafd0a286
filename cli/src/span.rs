//! Lengths of time, as people write and read them.

use std::time::{Duration, SystemTime};

/// What an argument like `90s`, `1h30m` or `2d` means.
pub fn parse(text: &str) -> Result<Duration, String> {
    const DAY: u64 = 24 * 60 * 60;
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) => (days.parse::<u64>().ok(), rest),
        None => (Some(0), text),
    };
    let days = days.and_then(|days| days.checked_mul(DAY)).map(Duration::from_secs);
    let rest = if rest.is_empty() && text.contains('d') {
        Some(Duration::ZERO)
    } else {
        mooring::options::time::parse(rest)
    };
    let sum = days.zip(rest).and_then(|(days, rest)| days.checked_add(rest));
    sum.ok_or_else(|| "a length of time is wanted, such as 90s, 10m, 1h30m or 2d".to_owned())
}

/// How long ago `then` was, which is nothing where the clock was set back since.
#[expect(clippy::disallowed_methods, reason = "what is on disk is dated by the machine's clock")]
pub fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// A length of time in its largest unit.
pub fn rough(length: Duration) -> String {
    let seconds = length.as_secs();
    for (unit, size) in [("d", 24 * 60 * 60), ("h", 60 * 60), ("m", 60)] {
        if seconds >= 2 * size {
            return format!("{}{unit}", seconds / size);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_sums_and_nothing_else() {
        for (text, seconds) in [("90s", 90), ("1h30m", 5400), ("2d", 172_800), ("1d1h", 90_000)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "d", "1.5d", "-1s", "99999999999999999999d", "d1h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_length_is_shown_in_its_largest_unit() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d")]
        {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
        let now = SystemTime::now();
        let later = now + Duration::from_secs(5);
        assert_eq!(since(later, now), Duration::ZERO, "a clock that was set back");
    }
}
