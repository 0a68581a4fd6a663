//! What goes wrong in an object store, on demand.
//!
//! Two ways to ask for it: *weather*, a share of all requests drawn from a seed, for tests that run long; and
//! faults for the next requests of one kind, for tests of one promise.
//!
//! ```text
//!   request ──▶ refused · throttled ──▶ an error, nothing done
//!           ──▶ done ──▶ answer lost · error after the effect
//!           ──▶ slow ──▶ done ──▶ answered
//!           ──▶ hung: no answer ever, until the client gives up
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 500, and nothing was done.
    Refused,
    /// 503 `SlowDown`, and nothing was done.
    Throttled,
    /// Done, and answered with 500.
    ErrorAfterEffect,
    /// Done, and the connection closed instead of an answer.
    AnswerLost,
    /// Answered after a quarter of a second.
    Slow,
    /// Never answered.
    Hung,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 6] = [
        Fault::Refused,
        Fault::Throttled,
        Fault::ErrorAfterEffect,
        Fault::AnswerLost,
        Fault::Slow,
        Fault::Hung,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Refused => "refused",
            Fault::Throttled => "throttled",
            Fault::ErrorAfterEffect => "error after effect",
            Fault::AnswerLost => "answer lost",
            Fault::Slow => "slow",
            Fault::Hung => "hung",
        }
    }
}

/// The faults a server is asked for; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    asked: Arc<Mutex<Asked>>,
}

#[derive(Debug, Default)]
struct Asked {
    weather: Option<Weather>,
    next: Vec<Next>,
    happened: BTreeMap<Fault, u64>,
}

#[derive(Debug)]
struct Weather {
    random: StdRng,
    per_mille: Vec<(Fault, u32)>,
}

#[derive(Debug)]
struct Next {
    method: &'static str,
    part_of_path: String,
    fault: Fault,
    left: u32,
}

impl Faults {
    /// From now on, so many of a thousand requests meet each fault.
    pub fn set_weather(&self, seed: u64, per_mille: &[(Fault, u32)]) {
        let weather = Weather { random: StdRng::seed_from_u64(seed), per_mille: per_mille.to_vec() };
        self.asked.lock().unwrap().weather = Some(weather);
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        let mut asked = self.asked.lock().unwrap();
        asked.weather = None;
        asked.next.clear();
    }

    /// The next `count` requests of this method whose path contains `part_of_path` meet `fault`.
    pub fn fail_next(&self, method: &'static str, part_of_path: &str, fault: Fault, count: u32) {
        let next = Next { method, part_of_path: part_of_path.to_owned(), fault, left: count };
        self.asked.lock().unwrap().next.push(next);
    }

    /// How often each fault has happened.
    pub fn happened(&self) -> BTreeMap<Fault, u64> {
        self.asked.lock().unwrap().happened.clone()
    }

    /// What happens to this request.
    pub(crate) fn draw(&self, method: &str, path: &str) -> Option<Fault> {
        let mut asked = self.asked.lock().unwrap();
        let fault = asked.of_next(method, path).or_else(|| asked.weather.as_mut()?.draw());
        if let Some(fault) = fault {
            *asked.happened.entry(fault).or_default() += 1;
        }
        fault
    }
}

impl Asked {
    fn of_next(&mut self, method: &str, path: &str) -> Option<Fault> {
        let fits = |next: &Next| next.left > 0 && next.method == method && path.contains(&next.part_of_path);
        let next = self.next.iter_mut().find(|next| fits(next))?;
        next.left -= 1;
        Some(next.fault)
    }
}

impl Weather {
    fn draw(&mut self) -> Option<Fault> {
        let mut drawn = self.random.random_range(0..1000);
        for (fault, share) in &self.per_mille {
            if drawn < *share {
                return Some(*fault);
            }
            drawn -= share;
        }
        None
    }
}
