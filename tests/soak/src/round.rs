//! What a round does, all of it drawn from the seed before anything runs.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// What `kill -9` meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The postmaster.
    Postgres,
    /// The compute process, and with it the mount and the way to the keepers.
    Compute,
    /// A keeper.
    Keeper,
    /// The gateway.
    Gateway,
    /// The daemon.
    Daemon,
}

impl Victim {
    const ALL: [Victim; 5] =
        [Victim::Postgres, Victim::Compute, Victim::Keeper, Victim::Gateway, Victim::Daemon];

    /// Whether sessions live on without it.
    pub fn is_behind_the_scenes(self) -> bool {
        matches!(self, Victim::Keeper | Victim::Daemon)
    }
}

/// What happens to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blow {
    /// `kill -9` of these, within a millisecond or so.
    Kill(Vec<Victim>),
    /// The machine is lost: all processes at once, and every file but the storage.
    Lose,
    /// It is put to sleep in order; whoever comes next wakes it.
    Sleep,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Its number, from 1.
    pub number: u64,
    /// How long the application works first.
    pub work: Duration,
    /// What happens then.
    pub blow: Blow,
    /// How long after that, and whom, it strikes once more: recovery is work like any other.
    pub again: Option<(Duration, Vec<Victim>)>,
    /// For the application.
    pub seed: u64,
}

impl Round {
    /// The round of this number of a seed.
    pub fn of(seed: u64, number: u64) -> Round {
        let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number;
        let mut random = StdRng::seed_from_u64(mixed);
        // Beside, shortly before and shortly after the cut that is taken every three seconds.
        let work = Duration::from_millis(random.random_range(100..2500));
        let blow = match random.random_range(0..100) {
            0..15 => Blow::Kill(vec![Victim::Postgres]),
            15..33 => Blow::Kill(vec![Victim::Compute]),
            33..45 => Blow::Kill(vec![Victim::Keeper]),
            45..55 => Blow::Kill(vec![Victim::Daemon]),
            55..60 => Blow::Kill(vec![Victim::Gateway]),
            60..75 => Blow::Kill(several(&mut random)),
            75..92 => Blow::Lose,
            _ => Blow::Sleep,
        };
        let again = random.random_bool(0.3).then(|| {
            let after = Duration::from_millis(random.random_range(0..1500));
            (after, vec![*Victim::ALL.choose(&mut random).unwrap()])
        });
        Round { number, work, blow, again, seed: mixed.wrapping_add(1) }
    }

    /// Whether no session may notice anything but a wait.
    pub fn spares_the_sessions(&self) -> bool {
        let spared = |victims: &[Victim]| victims.iter().all(|victim| victim.is_behind_the_scenes());
        matches!(&self.blow, Blow::Kill(victims) if spared(victims))
            && self.again.as_ref().is_none_or(|(_, victims)| spared(victims))
    }
}

/// Two or three at once.
fn several(random: &mut StdRng) -> Vec<Victim> {
    let count = random.random_range(2..=3);
    Victim::ALL.choose_multiple(random, count).copied().collect()
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}: {} ms of work, ", self.number, self.work.as_millis())?;
        match &self.blow {
            Blow::Kill(victims) => write!(f, "kill {victims:?}")?,
            Blow::Lose => write!(f, "lose all but the storage")?,
            Blow::Sleep => write!(f, "put to sleep")?,
        }
        match &self.again {
            Some((after, victims)) => write!(f, ", {} ms later kill {victims:?}", after.as_millis()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_rounds_again_and_every_kind_of_blow() {
        let rounds: Vec<Round> = (1..=200).map(|number| Round::of(7, number)).collect();
        assert_eq!(rounds, (1..=200).map(|number| Round::of(7, number)).collect::<Vec<_>>());
        assert_ne!(rounds[..15], (1..=15).map(|number| Round::of(8, number)).collect::<Vec<_>>());
        for victim in Victim::ALL {
            assert!(rounds.iter().any(|round| round.blow == Blow::Kill(vec![victim])), "{victim:?}");
        }
        for blow in [Blow::Lose, Blow::Sleep] {
            assert!(rounds.iter().any(|round| round.blow == blow), "{blow:?}");
        }
        assert!(rounds.iter().any(Round::spares_the_sessions));
    }
}
