//! What counts as growth in a row of samples.
//!
//! The first sample is taken after a round that warms everything up, so that what is loaded or opened once is in all of
//! them. A thing that leaks never comes back, so its lowest count rises; memory breathes, so its trend is judged.

/// How a measure is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Shown only.
    None,
    /// The lowest of the last third is not above the lowest of the first third.
    Count,
    /// What the median slope of the second half (Theil and Sen's) makes of that half's length is at most so much.
    Trend(f64),
}

/// Fewer samples than this have no trend.
const TREND: usize = 6;

impl Rule {
    /// By how much the samples grow, and whether that is too much. Nothing when there are too few to say.
    pub fn judge(self, samples: &[f64]) -> Option<(f64, bool)> {
        match self {
            Self::None => None,
            Self::Count => {
                let third = samples.len().div_ceil(3);
                let first = lowest(samples.get(..third)?)?;
                let last = lowest(samples.get(samples.len() - third..)?)?;
                (samples.len() > 1).then_some((last - first, last > first))
            }
            Self::Trend(most) => {
                let half = samples.get(samples.len() / 2..)?;
                if samples.len() < TREND {
                    return None;
                }
                #[expect(clippy::cast_precision_loss)]
                let growth = slope(half)? * (half.len() - 1) as f64;
                Some((growth, growth > most))
            }
        }
    }

    /// In words.
    pub fn name(self) -> String {
        match self {
            Self::None => "shown".to_owned(),
            Self::Count => "no growth".to_owned(),
            Self::Trend(most) => format!("at most {most}"),
        }
    }
}

fn lowest(samples: &[f64]) -> Option<f64> {
    samples.iter().copied().min_by(f64::total_cmp)
}

/// The value in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) =
        (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// The median of the slopes between all pairs, per sample.
fn slope(samples: &[f64]) -> Option<f64> {
    let mut slopes = Vec::new();
    for (at, one) in samples.iter().enumerate() {
        for (distance, other) in samples.get(at + 1..)?.iter().enumerate() {
            #[expect(clippy::cast_precision_loss)]
            slopes.push((other - one) / (distance + 1) as f64);
        }
    }
    median(&slopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_descriptor_that_stays_open_is_growth() {
        let judged = Rule::Count.judge(&[20.0, 22.0, 20.0, 20.0, 23.0, 21.0, 21.0, 22.0, 21.0]);
        assert_eq!(judged, Some((1.0, true)));
    }

    #[test]
    fn one_that_comes_and_goes_is_none() {
        let judged = Rule::Count.judge(&[20.0, 20.0, 22.0, 20.0, 25.0, 20.0, 24.0, 20.0, 24.0]);
        assert_eq!(judged, Some((0.0, false)));
        assert_eq!(Rule::Count.judge(&[20.0, 19.0]), Some((-1.0, false)));
    }

    #[test]
    fn a_slow_leak_of_memory_is_growth_whatever_the_noise() {
        let leak: Vec<f64> =
            (0..20).map(|at| 400.0 + f64::from(at) * 8.0 + f64::from(at * 7 % 5)).collect();
        assert!(Rule::Trend(32.0).judge(&leak).is_some_and(|(_, too_much)| too_much));
    }

    #[test]
    fn a_single_peak_or_a_step_in_the_first_half_is_none() {
        let mut samples = vec![400.0; 20];
        samples[..4].fill(300.0);
        samples[15] = 900.0;
        assert_eq!(Rule::Trend(32.0).judge(&samples), Some((0.0, false)));
    }

    #[test]
    fn too_few_samples_are_not_judged() {
        assert_eq!(Rule::Trend(32.0).judge(&[1.0, 2.0, 3.0]), None);
        assert_eq!(Rule::Count.judge(&[1.0]), None);
        assert_eq!(Rule::Count.judge(&[]), None);
        assert_eq!(Rule::None.judge(&[1.0, 2.0]), None);
    }
}
