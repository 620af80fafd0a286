//! Numbers that look random and come again with the same seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// With the seed that the environment names as `MOORING_SEED`, else with one of the clock, which is printed.
    #[expect(clippy::disallowed_methods, reason = "a number that is another each time")]
    pub fn from_environment() -> Self {
        let given = std::env::var("MOORING_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now.as_secs() ^ u64::from(now.subsec_nanos())
        });
        eprintln!("MOORING_SEED={seed}");
        Self::new(seed)
    }

    /// With this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number, smaller than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64, a public-domain mixer.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }

    /// Whether it happens, so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
