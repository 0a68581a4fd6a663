//! Runs one seed's script against the real daemon, and judges the lake.

use crate::application;
use crate::dice::Dice;
use crate::script::{Event, Mode, Round, Script, Store, weather};
use crate::tally::Tally;
use crate::verdict::{Judge, Remembered, source_tables};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tidewater_e2e::{Daemon, Postgres, Reader, S3Server, Site, free_port};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// Sessions of a round end within this, a restart of Postgres included; a million rows take longest.
const ROUND_LIMIT: Duration = Duration::from_secs(180);

/// How long the daemon gets to reach its crash point once the round's work is done.
const LAST_CHANCE: Duration = Duration::from_millis(1500);

/// From quiet sessions to a lake that has everything, with faults behind it and backing off.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(25);

/// Every request of the daemon's S3 client is given up after this: hung requests would hold a seed for minutes. On a
/// busy machine one that does not hang takes seconds too, when it puts a part of ten megabytes.
const S3_PATIENCE: &str = "5s";

/// What outlives a seed.
#[derive(Debug)]
pub struct Bench {
    postgres: Postgres,
    reader: Reader,
}

/// One seed under way.
struct Running<'a> {
    script: &'a Script,
    bench: &'a mut Bench,
    site: &'a Site,
    store: Option<S3Server>,
    url: String,
    client: Client,
    daemon: Option<Daemon>,
    /// Tables whose shape a session may have changed: `status` learns of it late.
    reshaped: BTreeSet<String>,
    remembered: Vec<Remembered>,
    /// How often the weather has changed: each has dice of its own.
    weathers: u64,
    /// The table that is paused in this round.
    paused: Option<String>,
    tally: Tally,
}

impl Bench {
    /// A cluster and readers for many seeds.
    pub async fn start() -> Bench {
        Bench { postgres: Postgres::start().await, reader: Reader::start() }
    }

    /// Runs a seed in a database of its own. `site` is where the daemon works; its configuration is written here.
    ///
    /// # Panics
    /// When the lake is not what the source is, or anything else does not go as promised.
    pub async fn run(&mut self, script: &Script, site: &Site) -> Tally {
        let database = format!("seed_{}", script.seed);
        let client = self.postgres.create_database(&database).await;
        let url = self.postgres.url(&database);
        let store = match script.store {
            Store::Disk => None,
            Store::S3 => Some(S3Server::start_in(site.path()).await),
        };
        site.configure(&configuration(script, &url, store.as_ref()));
        let mut running = Running {
            script,
            bench: self,
            site,
            store,
            url,
            client,
            daemon: None,
            reshaped: BTreeSet::new(),
            remembered: Vec::new(),
            weathers: 0,
            paused: None,
            tally: Tally::default(),
        };
        running.rounds().await;
        let tally = running.end().await;
        self.drop_database(&database).await;
        tally
    }

    /// A later seed should not pay for this one's slots and WAL.
    async fn drop_database(&self, database: &str) {
        let client = self.postgres.connect("postgres").await;
        let drop_slots = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{database}' AND NOT temporary"
        );
        client.batch_execute(&drop_slots).await.unwrap();
        client.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
    }
}

fn configuration(script: &Script, url: &str, store: Option<&S3Server>) -> String {
    let lake = match store {
        None => json!({"uri": "./lake"}),
        Some(store) => {
            let mut options = store.lake_options();
            options["timeout"] = json!(S3_PATIENCE);
            json!({"uri": "s3://lake/main", "options": options})
        }
    };
    let overrides: serde_json::Map<String, Value> = script
        .lake_partitioned
        .iter()
        // A history alone has nothing that could be partitioned, and the configuration says so.
        .filter(|_| script.mode != Mode::History)
        .map(|table| (table.clone(), json!({"partition_by": ["bucket"]})))
        .collect();
    let to_lake = json!([{
        "database": "shop",
        "tables": ["*.*"],
        "flush": format!("{}ms", script.flush.as_millis()),
        "deletion_vectors": if script.deletion_vectors { "on" } else { "off" },
        "mode": script.mode.name(),
        "overrides": overrides,
    }]);
    let listen = json!({"http": format!("127.0.0.1:{}", free_port())});
    let databases = json!({"shop": {"url": url, "tls": "disable"}});
    // YAML takes JSON as it is.
    json!({"version": 1, "lake": lake, "listen": listen, "databases": databases, "to_lake": to_lake})
        .to_string()
}

impl Running<'_> {
    async fn rounds(&mut self) {
        if self.script.starts_empty {
            self.daemon = Some(self.site.spawn());
        }
        application::set_up(&self.client, &self.script.setup).await;
        self.set_weather(0);
        for round in &self.script.rounds {
            self.round(round).await;
        }
    }

    async fn round(&mut self, round: &Round) {
        self.daemon_for(round.event).await;
        self.reshaped.extend(round.reshapes.iter().cloned());
        let mut sessions = JoinSet::new();
        for transactions in &round.sessions {
            sessions.spawn(application::run(self.url.clone(), transactions.clone(), round.pause));
        }
        tokio::time::sleep(round.after).await;
        self.happen(round.event).await;
        let working = async {
            while let Some(ended) = sessions.join_next().await {
                self.tally.committed +=
                    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            }
        };
        tokio::time::timeout(ROUND_LIMIT, working).await.expect("the application's sessions end");
        self.after(round.event).await;
        // Whatever was killed, the source is up again and quiet.
        self.client = application::connect(&self.url).await;
        application::decide_prepared(&self.client).await;
        self.resume().await;
        if round.settles {
            self.settle().await;
        }
        if round.verifies {
            self.verify().await;
        }
    }

    /// Sees to a daemon of the kind the event needs.
    async fn daemon_for(&mut self, event: Event) {
        let armed = match event {
            Event::DieAt(point, nth) => Some(format!("{point}={}*off->return(die)", nth - 1)),
            Event::FailAt(point, nth) => Some(format!("{point}={}*off->1*return", nth - 1)),
            _ => None,
        };
        match armed {
            Some(points) => {
                self.kill_daemon().await;
                self.daemon = Some(self.site.spawn_armed(&points.replace("0*off->", "")));
            }
            None if self.daemon.is_none() => self.daemon = Some(self.site.spawn()),
            None => {}
        }
    }

    /// The event itself, while the sessions work.
    async fn happen(&mut self, event: Event) {
        self.tally.event(event);
        match event {
            Event::Nothing | Event::DieAt(..) | Event::FailAt(..) => {}
            Event::StopDaemon => self.stop_daemon().await,
            Event::KillDaemon => self.kill_daemon().await,
            Event::KillDaemonAndLoseState => {
                self.kill_daemon().await;
                // It may not have come so far as to make one.
                let _ = std::fs::remove_dir_all(self.site.path().join(".tidewater"));
            }
            Event::KillPostgres => {
                self.bench.postgres.kill9().await;
                self.bench.postgres.restart().await;
            }
            Event::KillWalsender => self.kill_walsender().await,
            Event::KillBoth => {
                self.bench.postgres.kill9().await;
                self.kill_daemon().await;
                self.bench.postgres.restart().await;
            }
            Event::Weather(share) => self.set_weather(share),
            Event::StoreAway => self.store.as_mut().expect("the S3 server").stop().await,
            Event::Pause { nth, hold } => {
                let Some(table) = self.shown_table(nth).await else { return };
                let mut arguments = vec!["pause", table.as_str()];
                arguments.extend(hold.then_some("--hold"));
                self.site.command(&arguments).await;
                self.paused = Some(table);
            }
            Event::Resync(nth) => {
                let Some(table) = self.shown_table(nth).await else { return };
                self.site.command(&["resync", &table]).await;
            }
        }
    }

    /// The name of one of the tables that the daemon shows, if it does.
    async fn shown_table(&self, nth: u32) -> Option<String> {
        let status = self.daemon.as_ref()?.status().await?;
        let tables = status["tables"].as_array()?;
        let at = (nth as usize).checked_rem(tables.len())?;
        tables[at]["table"].as_str().map(str::to_owned)
    }

    /// Has the paused table go on.
    async fn resume(&mut self) {
        let Some(table) = self.paused.take() else { return };
        let deadline = Instant::now() + SETTLE_LIMIT;
        // An interrupted sync takes up what it was asked later, in this order.
        self.site.command(&["resume", &table]).await;
        loop {
            let daemon = self.daemon.as_ref().expect("nothing has ended it");
            let status = daemon.status().await.unwrap_or(Value::Null);
            let tables = status["tables"].as_array();
            let shown = tables.and_then(|tables| tables.iter().find(|shown| shown["table"] == *table));
            let state = shown.and_then(|shown| shown["state"].as_str());
            // It may have been dropped or renamed meanwhile.
            if status["sources"][0]["connected"] == true && !matches!(state, Some("paused" | "waiting")) {
                return;
            }
            assert!(Instant::now() < deadline, "{table} is not resumed; status: {status}");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What the event leaves to be done when the sessions have ended.
    async fn after(&mut self, event: Event) {
        match event {
            Event::DieAt(point, _) => {
                let deadline = Instant::now() + LAST_CHANCE;
                let mut daemon = self.daemon.take().expect("it was started for this");
                while daemon.end().is_none() && Instant::now() < deadline {
                    tokio::time::sleep(RETRY).await;
                }
                if let Some(end) = daemon.end() {
                    assert_eq!(end.code(), None, "the daemon ended before its crash point {point}");
                    *self.tally.deaths.entry(point).or_default() += 1;
                } else {
                    daemon.kill9().await;
                }
            }
            Event::Weather(_) => self.set_weather(0),
            Event::StoreAway => self.store.as_mut().expect("the S3 server").restart().await,
            _ => {}
        }
        if let Some(daemon) = &mut self.daemon {
            assert_eq!(daemon.end(), None, "the daemon ended by itself");
        }
    }

    /// So much worse than the seed's climate, from now on.
    fn set_weather(&mut self, worse: u32) {
        self.weathers += 1;
        if let Some(store) = &self.store {
            let seed = self.script.seed.wrapping_mul(1000) + self.weathers;
            store.faults().set_weather(seed, &weather(self.script.climate + worse));
        }
    }

    async fn stop_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Before it answers, it may not have come so far as to take a signal otherwise than by dying of it.
            daemon.wait_status(SETTLE_LIMIT, |_| true).await;
            daemon.stop().await;
        }
    }

    async fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill9().await;
        }
    }

    async fn kill_walsender(&mut self) {
        let sql = "SELECT pid FROM pg_stat_replication LIMIT 1";
        let Ok(Some(row)) = self.client.query_opt(sql, &[]).await else { return };
        tidewater_e2e::kill9(row.get::<_, i32>(0).unsigned_abs());
        // The postmaster ends every session, this one too, before it takes new ones.
        let deadline = Instant::now() + ROUND_LIMIT;
        while !self.client.is_closed() {
            assert!(Instant::now() < deadline, "Postgres goes on after a process of it was killed");
            tokio::time::sleep(RETRY).await;
        }
        self.client = application::connect(&self.url).await;
    }

    /// Waits until the lake has everything the source has, and remembers both.
    async fn settle(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        let position: String = self.client.query_one(POSITION, &[]).await.unwrap().get(0);
        let position = lsn(&position);
        let deadline = Instant::now() + SETTLE_LIMIT;
        let status = loop {
            // A commit behind the position, so that an idle source reports that it has come so far.
            self.client.batch_execute("SELECT pg_logical_emit_message(true, 'oracle', '')").await.unwrap();
            let status = daemon.status().await.unwrap_or(Value::Null);
            let tables = status["tables"].as_array();
            if tables.is_some_and(|tables| tables.iter().all(|table| has_reached(table, position))) {
                break status;
            }
            assert_eq!(daemon.end(), None, "the daemon ended by itself");
            assert!(
                Instant::now() < deadline,
                "the lake has not caught up with {position:X}; status: {status}"
            );
            tokio::time::sleep(RETRY).await;
        };
        if self.script.mode == Mode::History {
            // Where the history stood then, its rows tell themselves.
            return;
        }
        for table in source_tables(&self.client).await {
            let name = table.qualified();
            let tables = status["tables"].as_array().expect("just looked at");
            let shown = tables.iter().find(|shown| shown["table"] == *name);
            let Some(version) = shown.and_then(|shown| shown["version"].as_u64()) else { continue };
            if !self.reshaped.contains(&name) {
                let lake = lake_folder(self.site, self.store.as_ref());
                let mut judge = Judge { reader: &mut self.bench.reader, dsn: &self.url, lake: &lake };
                self.remembered.push(judge.remember(table, version).await);
            }
        }
    }

    /// Asks for a comparison of all tables. An interrupted sync may leave some out, but nothing may differ.
    async fn verify(&mut self) {
        let finished = self.site.command(&["verify"]).await;
        assert_ne!(finished.code, Some(3), "verify says:\n{}", finished.stdout);
        self.tally.verified += u64::from(finished.code == Some(0));
    }

    /// The ending, the last catching up, and the verdict.
    async fn end(mut self) -> Tally {
        if self.script.ends_by_kill {
            self.kill_daemon().await;
        } else {
            self.stop_daemon().await;
        }
        if let Some(store) = &self.store {
            store.faults().clear();
        }
        self.site.run_until_caught_up().await;
        let tables = source_tables(&self.client).await;
        let lake = lake_folder(self.site, self.store.as_ref());
        let mut dice = Dice::of(self.script.seed);
        if self.script.mode != Mode::History {
            let judge = Judge { reader: &mut self.bench.reader, dsn: &self.url, lake: &lake };
            self.tally.looked = judge.assert_right(&mut dice, &tables, &self.remembered).await;
        }
        if self.script.mode != Mode::Mirror {
            let judge = Judge { reader: &mut self.bench.reader, dsn: &self.url, lake: &lake };
            self.tally.looked.histories = judge.assert_histories(&tables).await;
        }
        if let Some(store) = &self.store {
            let faults = store.faults().happened();
            self.tally.faults = faults.into_iter().map(|(fault, count)| (fault.name(), count)).collect();
        }
        self.tally.passed = 1;
        self.tally
    }
}

/// The bucket is a folder, one file an object: readers find the tables there.
fn lake_folder(site: &Site, store: Option<&S3Server>) -> PathBuf {
    store.map_or_else(|| site.lake(), |store| store.folder().join("main")).join("shop")
}

/// Everything that is committed lies before it.
const POSITION: &str = "SELECT pg_current_wal_insert_lsn()::text";

/// Whether `status` says that the table's mirror has everything up to a position.
fn has_reached(table: &Value, position: u64) -> bool {
    let follows =
        table["state"].as_str().is_some_and(|state| state == "streaming" || state.starts_with("inserts"));
    follows && table["position"].as_str().is_some_and(|reached| lsn(reached) >= position)
}

/// The number behind Postgres's way to write a position.
fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}
