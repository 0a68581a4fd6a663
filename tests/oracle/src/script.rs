//! Everything a seed decides, before anything runs.
//!
//! ```text
//!   set-up: tables, first rows
//!   round:  sessions at work ─────────────────┐
//!           the event, so long after the start ├─▶ all have ended ─▶ perhaps settle: the daemon catches up, and
//!           the daemon starts if it is not there ┘                    the source is remembered to be compared later
//!   ending: the daemon stops or is killed, catches up once more; then the verdict
//! ```
//!
//! Printed, a script is SQL with comments, a session after the other, to be replayed by hand. What it cannot
//! decide is the machine's timing: which statement is under way when a process dies.

use crate::dice::Dice;
use crate::ledger;
use crate::table_plan::TablePlan;
use crate::work::{Transaction, Work};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use tidewater_e2e::Fault;

/// Rows of the large transaction that every so many seeds have.
const LARGE_ROWS: u32 = 1_000_000;
const LARGE_EVERY: u64 = 25;

/// Of the seeds that keep histories, those that keep no mirrors.
const HISTORY_ALONE_EVERY: u64 = 3;

/// Its table.
const LARGE_TABLE: &str = "public.large";

/// Crash points that a daemon under load passes again and again, and whether arming them can also make the
/// step fail instead.
const FREQUENT_POINTS: &[(&str, bool)] = &[
    ("data-file-before-put", true),
    ("data-file-after-put", true),
    ("vectors-before-put", true),
    ("vectors-after-put", true),
    ("commit-before-put", true),
    ("commit-after-put", true),
    ("index-before-manifest", false),
    ("index-after-manifest", false),
    ("slot-before-confirm", false),
    ("slot-after-confirm", false),
];

/// Crash points that it passes once, or only when there is something to load, to create or to check.
const RARE_POINTS: &[&str] = &[
    "checkpoint-before-put",
    "checkpoint-before-hint",
    "checkpoint-after-hint",
    "sync-state-before-put",
    "sync-state-after-put",
    "slot-before-create",
    "slot-after-create",
    "publications-before-change",
    "publications-after-change",
    "snapshot-before-export",
    "snapshot-after-export",
];

/// Where the lake lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A folder.
    Disk,
    /// The S3 server, over a socket.
    S3,
}

/// What the lake keeps of each table: `mode` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What it holds.
    Mirror,
    /// Every change.
    History,
    /// Each in a table of its own.
    Both,
}

impl Mode {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Mirror => "mirror",
            Mode::History => "history",
            Mode::Both => "both",
        }
    }
}

/// What happens to the processes in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    Nothing,
    /// SIGTERM, and a clean end.
    StopDaemon,
    /// `kill -9` of the daemon.
    KillDaemon,
    /// As before, and its state folder is lost.
    KillDaemonAndLoseState,
    /// The daemon runs with a crash point armed, which ends it the `nth` time.
    DieAt(&'static str, u32),
    /// The daemon runs with a step that fails once, the `nth` time.
    FailAt(&'static str, u32),
    /// `kill -9` of the postmaster.
    KillPostgres,
    /// `kill -9` of the process at the source that sends the stream; Postgres starts all anew.
    KillWalsender,
    /// `kill -9` of the daemon and the postmaster.
    KillBoth,
    /// So many more of a thousand requests to the store go wrong in this round.
    Weather(u32),
    /// The store is away until the round ends.
    StoreAway,
    /// A table, the `nth` of those that `status` shows, is paused until the sessions have ended; `hold` keeps the slot for it.
    Pause {
        /// Which, counted round and round.
        nth: u32,
        /// As by `pause --hold`.
        hold: bool,
    },
    /// A table is compared with its source, and mended.
    Resync(u32),
}

/// One round.
#[derive(Debug, Clone)]
pub struct Round {
    /// What the sessions do, all at once.
    pub sessions: Vec<Vec<Transaction>>,
    /// After each transaction.
    pub pause: Duration,
    /// What happens meanwhile.
    pub event: Event,
    /// So long after the round's start.
    pub after: Duration,
    /// Tables whose shape the sessions change, or that they make.
    pub reshapes: Vec<String>,
    /// Afterwards the daemon catches up, and the lake's versions are remembered with what the source holds.
    pub settles: bool,
    /// Then `verify` is asked, too.
    pub verifies: bool,
}

/// A seed's script.
#[derive(Debug, Clone)]
pub struct Script {
    /// The seed.
    pub seed: u64,
    /// Where the lake lies.
    pub store: Store,
    /// So many of a thousand requests to the store go wrong, all the time.
    pub climate: u32,
    /// `flush` of the configuration.
    pub flush: Duration,
    /// `deletion_vectors` of the configuration.
    pub deletion_vectors: bool,
    /// The daemon runs before there are tables.
    pub starts_empty: bool,
    /// Tables that the lake partitions.
    pub lake_partitioned: Vec<String>,
    /// Makes the tables and their first rows.
    pub setup: Vec<String>,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// In the end the daemon is killed rather than stopped.
    pub ends_by_kill: bool,
    /// What the lake keeps.
    pub mode: Mode,
}

impl Script {
    /// The script of a seed.
    pub fn of(seed: u64) -> Script {
        let dice = &mut Dice::of(seed);
        let mut work = Work::of(seed);
        let is_large = seed.is_multiple_of(LARGE_EVERY);
        let mut tables: Vec<TablePlan> =
            (0..dice.between(1, 4)).map(|number| TablePlan::draw(dice, number)).collect();
        let mut script = Script {
            seed,
            store: dice.one_of(&[Store::Disk, Store::S3]),
            climate: dice.one_of(&[0, 20, 60, 150]),
            flush: Duration::from_millis(dice.one_of(&[20, 50, 200, 1000])),
            deletion_vectors: dice.chance(85),
            starts_empty: dice.chance(10),
            lake_partitioned: Vec::new(),
            setup: set_up(dice, &tables),
            rounds: Vec::new(),
            ends_by_kill: dice.chance(50),
            // A history of a million rows is too much to be replayed row for row.
            mode: match !is_large && dice.chance(40) {
                true if seed.is_multiple_of(HISTORY_ALONE_EVERY) => Mode::History,
                true => Mode::Both,
                false => Mode::Mirror,
            },
        };
        if is_large {
            script.setup.push(format!("CREATE TABLE {LARGE_TABLE} (id integer PRIMARY KEY, v text)"));
        }
        let rounds = dice.between(3, 6);
        let large_round = dice.between(0, rounds - 1);
        for number in 0..rounds {
            let mut round = draw_round(dice, &mut work, &mut tables, script.store);
            if is_large && number == large_round {
                round.sessions.push(vec![work.bulk(dice, LARGE_TABLE, LARGE_ROWS)]);
            }
            script.rounds.push(round);
        }
        // New tables of later rounds are configured from the start.
        let partitioned: BTreeSet<String> =
            tables.iter().filter(|table| table.lake_partitioned).map(TablePlan::qualified).collect();
        script.lake_partitioned = partitioned.into_iter().collect();
        script
    }
}

fn set_up(dice: &mut Dice, tables: &[TablePlan]) -> Vec<String> {
    let mut all = vec!["CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'très bien')".to_owned()];
    all.extend(ledger::create());
    for table in tables {
        all.extend(table.create());
        if dice.chance(80) {
            let (columns, values) = table.row(dice, "g");
            let rows = dice.weighted(&[(6, 300), (3, 2000), (1, 15_000)]);
            let name = table.sql_name();
            all.push(format!(
                "INSERT INTO {name} ({columns}) SELECT {values} FROM generate_series(1, {rows}) g"
            ));
        }
    }
    all
}

fn draw_round(dice: &mut Dice, work: &mut Work, tables: &mut Vec<TablePlan>, store: Store) -> Round {
    let (mut sessions, mut reshapes) = (Vec::new(), Vec::new());
    // The table whose shape changes belongs to one session for this round, so that order is not left to chance.
    let changing = (dice.chance(35) && !tables.is_empty()).then(|| {
        let last = u32::try_from(tables.len() - 1).expect("a handful of tables");
        tables.swap_remove(dice.between(0, last) as usize)
    });
    let count = dice.between(1, 3);
    for _ in 0..count {
        let transactions = dice.between(2, 14);
        let large = dice.chance(15);
        sessions.push((0..transactions).map(|_| work.draw(dice, tables, large)).collect::<Vec<_>>());
    }
    if let Some(table) = changing {
        reshapes.push(table.qualified());
        sessions.push(change_shape(dice, work, table, tables));
        reshapes.extend(tables.last().map(TablePlan::qualified));
    }
    let event = draw_event(dice, store);
    // Most events meet sessions at work, some a daemon that has had time to become idle.
    let longest = sessions.iter().map(Vec::len).max().and_then(|most| u32::try_from(most).ok()).unwrap_or(1);
    let lasts = Duration::from_millis(dice.between(100, 1000).into());
    let quiet = matches!(
        event,
        Event::Nothing
            | Event::Weather(_)
            | Event::FailAt(..)
            | Event::KillWalsender
            | Event::Pause { .. }
            | Event::Resync(_)
    );
    let settles = quiet && dice.chance(60);
    Round {
        sessions,
        pause: lasts / longest.max(1),
        event,
        after: match event {
            // Bad weather is there from the start, or a short round would not notice.
            Event::Weather(_) => Duration::ZERO,
            _ => lasts * dice.between(0, 110) / 100,
        },
        reshapes,
        settles,
        verifies: settles && dice.chance(40),
    }
}

/// A session that changes shapes: of this table, and sometimes by dropping it or making another.
fn change_shape(
    dice: &mut Dice,
    work: &mut Work,
    table: TablePlan,
    tables: &mut Vec<TablePlan>,
) -> Vec<Transaction> {
    let one = |statement: String| Transaction { statements: vec![statement] };
    let mut all = Vec::new();
    if dice.chance(15) {
        all.push(one(format!("DROP TABLE {}", table.sql_name())));
    } else {
        let mut table = table;
        for _ in 0..dice.between(1, 2) {
            let (transactions, after) = work.reshape(dice, &table);
            all.extend(transactions);
            table = after;
        }
        tables.push(table);
    }
    if dice.chance(30) {
        let number = dice.between(100, 1_000_000);
        let new = TablePlan::draw(dice, number);
        all.extend(new.create().into_iter().map(one));
        all.push(work.draw(dice, std::slice::from_ref(&new), true));
        tables.push(new);
    }
    all
}

fn draw_event(dice: &mut Dice, store: Store) -> Event {
    let event = dice.weighted(&[
        (3, Event::Nothing),
        (1, Event::StopDaemon),
        (4, Event::KillDaemon),
        (1, Event::KillDaemonAndLoseState),
        (7, Event::DieAt("", 1)),
        (2, Event::FailAt("", 1)),
        (2, Event::KillPostgres),
        (1, Event::KillWalsender),
        (1, Event::KillBoth),
        (6, Event::Weather(0)),
        (1, Event::StoreAway),
        (2, Event::Pause { nth: 0, hold: false }),
        (1, Event::Resync(0)),
    ]);
    let nth = dice.weighted(&[(4, 1), (3, 2), (2, 5), (1, 12)]);
    match event {
        Event::DieAt(..) if dice.chance(25) => Event::DieAt(dice.one_of(RARE_POINTS), 1),
        Event::DieAt(..) => Event::DieAt(dice.one_of(FREQUENT_POINTS).0, nth),
        Event::FailAt(..) => {
            let points: Vec<&str> =
                FREQUENT_POINTS.iter().filter(|(_, fails)| *fails).map(|(name, _)| *name).collect();
            Event::FailAt(dice.one_of(&points), nth)
        }
        Event::Weather(_) | Event::StoreAway if store == Store::Disk => Event::KillDaemon,
        Event::Weather(_) => Event::Weather(dice.one_of(&[30, 100, 250])),
        Event::Pause { .. } => Event::Pause { nth: dice.between(0, 9), hold: dice.chance(40) },
        Event::Resync(_) => Event::Resync(dice.between(0, 9)),
        other => other,
    }
}

/// How the faults of bad weather are mixed: `share` of a thousand requests meet one of them. A request that
/// hangs costs the client its whole patience, so those are few.
pub fn weather(share: u32) -> Vec<(Fault, u32)> {
    let part = |percent: u32| (share * percent).div_ceil(100);
    vec![
        (Fault::Refused, part(25)),
        (Fault::Throttled, part(20)),
        (Fault::ErrorAfterEffect, part(20)),
        (Fault::AnswerLost, part(20)),
        (Fault::Slow, part(13)),
        (Fault::Hung, part(2)),
    ]
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "-- seed {}: lake on {:?}, climate {}, flush {:?}",
            self.seed, self.store, self.climate, self.flush
        )?;
        writeln!(
            f,
            "-- deletion vectors {}, mode {}, partitioned in the lake {:?}",
            self.deletion_vectors,
            self.mode.name(),
            self.lake_partitioned
        )?;
        writeln!(
            f,
            "-- the daemon starts {}",
            if self.starts_empty { "before the set-up" } else { "after the set-up" }
        )?;
        for statement in &self.setup {
            writeln!(f, "{statement};")?;
        }
        for (number, round) in self.rounds.iter().enumerate() {
            let Round { event, after, pause, settles, verifies, .. } = round;
            writeln!(
                f,
                "-- round {number}: {event:?} after {after:?}, pauses of {pause:?}, settles: {settles}, verifies: {verifies}"
            )?;
            for (session, transactions) in round.sessions.iter().enumerate() {
                writeln!(f, "-- round {number}, session {session}")?;
                for statement in transactions.iter().flat_map(|transaction| &transaction.statements) {
                    writeln!(f, "{statement};")?;
                }
            }
        }
        writeln!(f, "-- the daemon is {}", if self.ends_by_kill { "killed" } else { "stopped" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_script_and_another_seed_another() {
        assert_eq!(Script::of(7).to_string(), Script::of(7).to_string());
        assert_ne!(Script::of(7).to_string(), Script::of(8).to_string());
    }

    #[test]
    fn in_a_few_hundred_seeds_every_event_occurs() {
        let mut seen = BTreeSet::new();
        for seed in 1..400 {
            for round in Script::of(seed).rounds {
                let text = format!("{:?}", round.event);
                seen.insert(text.split(['(', ' ']).next().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(seen.len(), 13, "{seen:?}");
    }
}
