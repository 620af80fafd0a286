//! Who a span is, and how W3C's trace context writes it: `traceparent` and `tracestate`.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
};

/// The longest `tracestate` that is passed on, and the most members that it may have.
const STATE_LIMIT: usize = 512;
const MEMBERS: usize = 32;
/// The longest key and the longest value of a member.
const PART_LIMIT: usize = 256;
/// The length of `traceparent` in the version that this module knows.
const PARENT_LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// Sixteen bytes that all spans of a trace share; never all zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

/// Eight bytes that no other span of the trace has; never all zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpanId([u8; 8]);

impl TraceId {
    pub(super) fn random() -> Self {
        Self(random())
    }

    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    pub(super) fn random() -> Self {
        Self(random())
    }

    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Bytes that nobody else has. Where the kernel has none to give, those of the standard library's hasher, which are as
/// good for an id.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    if got.ok() != Some(N) || bytes == [0; N] {
        let keys = RandomState::new();
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = keys.hash_one(index).to_le_bytes()[0] | 1;
        }
    }
    bytes
}

/// What is passed on of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanContext {
    pub trace: TraceId,
    pub span: SpanId,
    /// Whether whoever is above records it.
    pub sampled: bool,
    /// What tracing systems say to themselves.
    pub state: Option<Box<str>>,
}

impl SpanContext {
    /// Reads both headers. A `traceparent` that is none counts as absent; so does a `tracestate`, by itself.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let bytes = traceparent.as_bytes();
        let (version, rest) = (part::<1>(bytes, 0)?, bytes.get(PARENT_LENGTH..)?);
        let whole = match version {
            [0] => rest.is_empty(),
            // Of no version.
            [0xff] => false,
            // Later ones may add fields.
            _ => rest.first().is_none_or(|next| *next == b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        let (trace, span) = (part::<16>(bytes, 3)?, part::<8>(bytes, 36)?);
        let [flags] = part::<1>(bytes, 53)?;
        if !whole || !dashes || trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let state = tracestate.filter(|state| is_state(state)).map(Into::into);
        Some(Self {
            trace: TraceId(trace),
            span: SpanId(span),
            sampled: flags & SAMPLED != 0,
            state,
        })
    }

    /// The `traceparent` of this span.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// `N` bytes in lower-case hexadecimal digits at `at`.
fn part<const N: usize>(text: &[u8], at: usize) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let digits = text.get(at..at + 2 * N)?.chunks_exact(2);
    for (byte, pair) in bytes.iter_mut().zip(digits) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn is_state(text: &str) -> bool {
    let mut members = text.split(',').map(|one| one.trim_matches([' ', '\t']));
    let is_member = |member: &str| {
        let Some((key, value)) = member.split_once('=') else { return false };
        let is_key = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte)
        };
        let is_value = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
        (1..=PART_LIMIT).contains(&key.len())
            && (1..=PART_LIMIT).contains(&value.len())
            && key.bytes().all(is_key)
            && value.bytes().all(is_value)
    };
    text.len() <= STATE_LIMIT
        && text.split(',').count() <= MEMBERS
        && members.all(|member| member.is_empty() || is_member(member))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_parent_is_read_with_its_state() {
        let context = SpanContext::parse(PARENT, Some("rojo=00f067aa0ba902b7, a@b=x y")).unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span.to_string(), "00f067aa0ba902b7");
        assert!(context.sampled);
        assert_eq!(context.state.as_deref(), Some("rojo=00f067aa0ba902b7, a@b=x y"));
        assert_eq!(context.traceparent(), PARENT);
        assert!(!SpanContext::parse(&PARENT.replace("-01", "-00"), None).unwrap().sampled);
        // Only the first flag is known.
        assert!(SpanContext::parse(&PARENT.replace("-01", "-ff"), None).unwrap().sampled);
    }

    #[test]
    fn what_is_no_parent_counts_as_absent() {
        for text in [
            "",
            "00",
            "garbage",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
        ] {
            assert_eq!(SpanContext::parse(text, None), None, "{text:?}");
        }
        // A later version may say more.
        let later = format!("{}-more", PARENT.replacen("00", "42", 1));
        assert!(SpanContext::parse(&later, None).is_some());
    }

    #[test]
    fn a_state_that_is_none_is_dropped_alone() {
        let many = vec!["a=b"; 33].join(",");
        let long = format!("a={}", "b".repeat(257));
        for text in ["a", "A=b", "=b", "a=", "a=b=c", "a=\u{e9}", "a=b,,c", &many, &long] {
            let context = SpanContext::parse(PARENT, Some(text)).unwrap();
            assert_eq!(context.state, None, "{text:?}");
        }
        assert!(SpanContext::parse(PARENT, Some("a=b,,c=d")).unwrap().state.is_some());
    }

    #[test]
    fn ids_are_not_zero_and_differ() {
        assert_ne!(TraceId::random(), TraceId::random());
        assert_ne!(SpanId::random().0, [0; 8]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled in any::<bool>(),
        ) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let context =
                SpanContext { trace: TraceId(trace), span: SpanId(span), sampled, state: None };
            prop_assert_eq!(SpanContext::parse(&context.traceparent(), None), Some(context));
        }

        #[test]
        fn no_text_makes_reading_panic(parent in ".{0,70}", state in ".{0,70}", cut in 0_usize..56) {
            let _ = SpanContext::parse(&parent, Some(&state));
            let _ = SpanContext::parse(PARENT.get(..cut).unwrap_or(PARENT), Some(&state));
        }

        #[test]
        fn a_state_that_is_passed_on_is_a_list_of_members(state in "[a-z=,@ A\u{e9}]{0,40}") {
            if let Some(kept) = SpanContext::parse(PARENT, Some(&state)).and_then(|c| c.state) {
                prop_assert!(kept.is_ascii());
                for member in kept.split(',').map(str::trim).filter(|one| !one.is_empty()) {
                    prop_assert_eq!(member.split('=').count(), 2);
                }
            }
        }
    }
}
