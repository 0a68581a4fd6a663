//! Rounds, one after the other, on one database.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::application::{Application, Ledgers, open_shop};
use crate::judge::judge;
use crate::machine::{Layout, Machine};
use crate::round::{Blow, Round, Victim};

/// Commits of every writer before a strike, so that there is something to lose, and after it, so that it is over.
const COMMITS: u64 = 3;

/// The whole storage is read, and the lake compared, this often and at the end.
const INSPECT_EVERY: u64 = 10;

/// What a soak came to.
#[derive(Debug, Default)]
pub struct Totals {
    /// Rounds that were judged.
    pub rounds: u64,
    /// Blows by kind.
    pub blows: BTreeMap<String, u64>,
    /// Processes that were killed.
    pub kills: u64,
    /// Commits that were answered.
    pub acknowledged: u64,
    /// Commits that were asked for and never answered.
    pub unknown: u64,
    /// The longest time from a strike until every writer had commits answered again.
    pub slowest_return: Duration,
}

/// A database that is struck again and again.
#[derive(Debug)]
pub struct Soak {
    machine: Machine,
    ledgers: Ledgers,
    totals: Totals,
}

impl Soak {
    /// An empty database.
    pub async fn start(layout: Layout) -> Soak {
        let machine = Machine::start(layout).await;
        open_shop(machine.url()).await;
        Soak { machine, ledgers: Ledgers::new(), totals: Totals::default() }
    }

    /// Works, strikes, and judges what is there afterwards.
    ///
    /// # Panics
    /// Something is wrong.
    pub async fn round(&mut self, round: &Round) {
        let mut application = Application::start(self.machine.url(), &self.ledgers, round.seed);
        application.wait_for(COMMITS).await;
        tokio::time::sleep(round.work).await;
        let before = application.noticed();
        assert_eq!(before, None, "before anything was struck");
        let struck = Instant::now();
        match &round.blow {
            Blow::Kill(victims) => self.machine.strike(victims).await,
            Blow::Lose => self.machine.lose().await,
            Blow::Sleep => self.machine.sleep().await,
        }
        *self.totals.blows.entry(kind(&round.blow)).or_default() += 1;
        if let Some((after, victims)) = &round.again {
            tokio::time::sleep(*after).await;
            self.machine.strike(victims).await;
        }
        self.machine.mend().await;
        application.wait_for(COMMITS).await;
        let away = struck.elapsed();
        println!("  every session has commits answered {:.1} s after the blow", away.as_secs_f64());
        self.totals.slowest_return = self.totals.slowest_return.max(away);
        if round.spares_the_sessions() {
            let noticed = application.noticed();
            assert_eq!(noticed, None, "a session noticed");
        }
        application.stop().await;
        self.totals.unknown += judge(&self.machine.superuser().await, &self.ledgers).await;
        self.totals.rounds += 1;
        if round.number.is_multiple_of(INSPECT_EVERY) {
            self.look_at_everything().await;
        }
    }

    async fn look_at_everything(&mut self) {
        self.machine.verify().await;
        self.machine.inspect().await;
    }

    /// Looks at everything once more, and stops.
    pub async fn finish(mut self) -> Totals {
        self.look_at_everything().await;
        self.totals.kills = self.machine.struck();
        self.totals.acknowledged = self.ledgers.total();
        self.machine.stop().await;
        self.totals
    }
}

fn kind(blow: &Blow) -> String {
    match blow {
        Blow::Kill(victims) if victims.len() > 1 => "several processes".to_owned(),
        Blow::Kill(victims) => victims.first().map_or("nothing", |victim| name(*victim)).to_owned(),
        Blow::Lose => "all but the storage".to_owned(),
        Blow::Sleep => "sleep".to_owned(),
    }
}

fn name(victim: Victim) -> &'static str {
    match victim {
        Victim::Postgres => "Postgres",
        Victim::Compute => "compute",
        Victim::Keeper => "keeper",
        Victim::Gateway => "gateway",
        Victim::Daemon => "daemon",
    }
}
