//! Quantiles, and how sure a ratio of medians is.

use crate::random::Random;

/// How often a bootstrap draws anew.
const DRAWS: usize = 2000;

/// A ratio of two medians, and the middle 95 % of what it is when the samples are drawn anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Of the medians.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut all = values.to_vec();
    all.sort_by(f64::total_cmp);
    all
}

/// The smallest value that at least this part of the values does not exceed; none of no values.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let all = sorted(values);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (part.clamp(0.0, 1.0) * all.len() as f64).ceil() as usize;
    all.get(rank.max(1) - 1).copied()
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    middle(&sorted(values))
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(sorted.len() / 2 - 1)?, upper))
}

/// The ratio of the medians of `of` and `to`. Where both have as many samples these are of the same rounds, and rounds
/// are drawn, so that what both suffered together counts for both. The same seed gives the same interval.
pub fn ratio(of: &[f64], to: &[f64], seed: u64) -> Option<Ratio> {
    let quotient = |of: Option<f64>, to: Option<f64>| Some(of? / to?).filter(|one| one.is_finite());
    let value = quotient(median(of), median(to))?;
    let mut random = Random::new(seed);
    let mut draw = |count: usize| -> Vec<usize> {
        let limit = u64::try_from(count).unwrap_or(u64::MAX);
        (0..count).filter_map(|_| usize::try_from(random.below(limit)).ok()).collect()
    };
    let pick = |values: &[f64], at: &[usize]| {
        let mut drawn: Vec<f64> = at.iter().filter_map(|at| values.get(*at)).copied().collect();
        drawn.sort_by(f64::total_cmp);
        middle(&drawn)
    };
    let mut ratios = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let rounds = draw(of.len());
        let others = if of.len() == to.len() { rounds.clone() } else { draw(to.len()) };
        ratios.extend(quotient(pick(of, &rounds), pick(to, &others)));
    }
    Some(Ratio { value, low: quantile(&ratios, 0.025)?, high: quantile(&ratios, 0.975)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.5), Some(3.0));
        assert_eq!(quantile(&values, 0.9), Some(5.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.9), Some(90.0));
        assert_eq!(quantile(&hundred, 0.99), Some(99.0));
    }

    #[test]
    fn the_median_of_an_even_count_is_between() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_ratio_of_nothing_or_to_nothing_is_none() {
        assert_eq!(ratio(&[], &[1.0], 1), None);
        assert_eq!(ratio(&[1.0], &[], 1), None);
        assert_eq!(ratio(&[1.0], &[0.0], 1), None);
    }

    #[test]
    fn what_both_suffer_together_makes_a_ratio_no_less_sure() {
        // Every second round is ten times slower, for both: drawn apart, the interval would reach from 0.05 to 5.
        let noise = (0..40).map(|round| if round % 2 == 0 { 1.0 } else { 10.0 });
        let to: Vec<f64> = noise.collect();
        let of: Vec<f64> = to.iter().map(|one| one * 0.5).collect();
        let Some(found) = ratio(&of, &to, 7) else { panic!("no ratio") };
        assert_eq!(found, Ratio { value: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn more_samples_make_a_ratio_surer() {
        let values = |count: u32| -> Vec<f64> {
            (0..count).map(|one| 10.0 + f64::from(one * 7919 % 13)).collect()
        };
        let width = |count| {
            // One more on one side: they are drawn apart.
            let found = ratio(&values(count), &values(count + 1), 3);
            found.map(|one| one.high - one.low)
        };
        assert!(width(1000) < width(10), "{:?} and {:?}", width(1000), width(10));
    }

    fn samples() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(0.001..1000.0, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_quantile_is_one_of_the_values_and_grows_with_its_part(
            values in samples(), one in 0.0..1.0, other in 0.0..1.0,
        ) {
            let (low, high) = (f64::min(one, other), f64::max(one, other));
            let (low, high) = (quantile(&values, low).unwrap(), quantile(&values, high).unwrap());
            prop_assert!(values.contains(&low) && values.contains(&high));
            prop_assert!(low <= high);
        }

        #[test]
        fn order_does_not_matter(values in samples(), part in 0.0..1.0) {
            let backwards: Vec<f64> = values.iter().rev().copied().collect();
            prop_assert_eq!(quantile(&values, part), quantile(&backwards, part));
            prop_assert_eq!(median(&values), median(&backwards));
        }

        #[test]
        fn an_interval_is_within_what_the_samples_allow_and_comes_again(
            of in samples(), to in samples(), seed: u64,
        ) {
            let least = |all: &[f64]| all.iter().copied().fold(f64::MAX, f64::min);
            let most = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
            let found = ratio(&of, &to, seed).unwrap();
            prop_assert!(found.low <= found.high);
            let slack = 1.0 + 1e-9;
            prop_assert!(found.low * slack >= least(&of) / most(&to));
            prop_assert!(found.high <= most(&of) / least(&to) * slack);
            prop_assert_eq!(Some(found), ratio(&of, &to, seed));
        }

        #[test]
        fn a_thing_is_as_fast_as_itself(values in samples(), seed: u64) {
            let same = ratio(&values, &values, seed).unwrap();
            prop_assert_eq!(same, Ratio { value: 1.0, low: 1.0, high: 1.0 });
        }
    }
}
