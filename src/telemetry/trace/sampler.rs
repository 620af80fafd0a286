//! What is recorded: OpenTelemetry's samplers.

use super::context::TraceId;

/// All that half a trace's id may say, 2^63: its lowest bit does not count.
const RANGE: f64 = 9_223_372_036_854_775_808.0;

/// Chooses traces.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampler {
    Always,
    Never,
    /// This part of all traces, the same ones wherever it is asked.
    Ratio(f64),
    /// As whoever is above has chosen; where nobody is, as the inner one.
    OfParent(Box<Sampler>),
}

impl Sampler {
    /// The sampler of that name in `OTEL_TRACES_SAMPLER`, with its argument. The error is why it is none.
    pub fn named(name: &str, argument: Option<&str>) -> Result<Self, String> {
        let ratio = || match argument.map(|text| text.trim().parse()) {
            None => Ok(Self::Ratio(1.0)),
            Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => Ok(Self::Ratio(ratio)),
            Some(_) => Err("is no number from 0 to 1".to_owned()),
        };
        let of_parent = |inner| Self::OfParent(Box::new(inner));
        match name {
            "always_on" => Ok(Self::Always),
            "always_off" => Ok(Self::Never),
            "traceidratio" => ratio(),
            "parentbased_always_on" => Ok(of_parent(Self::Always)),
            "parentbased_always_off" => Ok(of_parent(Self::Never)),
            "parentbased_traceidratio" => ratio().map(of_parent),
            _ => Err("is not supported".to_owned()),
        }
    }

    /// Whether spans of `trace` are recorded. `above` is whether the caller records it, if there is one.
    pub(super) fn chooses(&self, trace: TraceId, above: Option<bool>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Ratio(ratio) => is_within(*ratio, trace),
            Self::OfParent(inner) => above.unwrap_or_else(|| inner.chooses(trace, None)),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of all traces, from 0 to 1"
)]
fn is_within(ratio: f64, trace: TraceId) -> bool {
    let (_, low) = trace.bytes().split_at(8);
    let place = low.iter().fold(0, |place: u64, byte| place << 8 | u64::from(*byte)) >> 1;
    ratio >= 1.0 || place < (ratio * RANGE) as u64
}

impl Default for Sampler {
    fn default() -> Self {
        Self::OfParent(Box::new(Self::Always))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        for name in ["always_on", "always_off", "parentbased_always_on", "parentbased_always_off"] {
            assert!(Sampler::named(name, None).is_ok(), "{name}");
        }
        assert_eq!(Sampler::named("traceidratio", Some("0.25")), Ok(Sampler::Ratio(0.25)));
        assert_eq!(Sampler::named("parentbased_always_on", None), Ok(Sampler::default()));
        for argument in ["1.5", "-1", "NaN", "much"] {
            assert!(Sampler::named("parentbased_traceidratio", Some(argument)).is_err());
        }
        assert!(Sampler::named("jaeger_remote", None).is_err());
    }

    #[test]
    fn the_caller_decides_where_there_is_one() {
        let trace = TraceId::random();
        let of_never = Sampler::OfParent(Box::new(Sampler::Never));
        assert!(of_never.chooses(trace, Some(true)) && !of_never.chooses(trace, None));
        assert!(!Sampler::default().chooses(trace, Some(false)));
        assert!(Sampler::Always.chooses(trace, Some(false)));
    }

    #[test]
    fn a_ratio_chooses_about_so_many() {
        let all: Vec<TraceId> = (0..4000).map(|_| TraceId::random()).collect();
        let chosen = |ratio| all.iter().filter(|one| is_within(ratio, **one)).count();
        assert_eq!((chosen(0.0), chosen(1.0)), (0, 4000));
        assert!((700..1300).contains(&chosen(0.25)), "{}", chosen(0.25));
    }
}
