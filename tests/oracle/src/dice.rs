//! The one source of chance: everything a seed decides is drawn from here, in the order of the script.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A seed's dice.
#[derive(Debug)]
pub struct Dice(StdRng);

impl Dice {
    /// The dice of one seed.
    pub fn of(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    /// A number of `from..=to`.
    pub fn between(&mut self, from: u32, to: u32) -> u32 {
        self.0.random_range(from..=to)
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    /// One of several.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.0).expect("there is something to choose from")
    }

    /// One of several, by their weights.
    pub fn weighted<T: Copy>(&mut self, choices: &[(u32, T)]) -> T {
        choices.choose_weighted(&mut self.0, |(weight, _)| *weight).expect("weights are positive").1
    }
}
