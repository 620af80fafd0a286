//! Lengths of time as text: `1m30s`, `500ms`.

use std::time::Duration;

/// The longest that anything may be told to wait: no sum of it and a clock overflows.
pub(super) const LONGEST: Duration = Duration::from_hours(24);

/// The sum of the text's numbers with units, `None` where it is none.
pub fn parse(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()?;
        total = total.checked_add(part)?;
        if tail.is_empty() {
            return Some(total);
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_sums_of_numbers_with_units() {
        for (text, milliseconds) in
            [("5s", 5_000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "5 s", "1m30", "9d", "1..5s"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
