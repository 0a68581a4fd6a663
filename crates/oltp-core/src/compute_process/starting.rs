//! From nothing to a Postgres that takes sessions.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres_connector::{Host, SourceConfig, TlsMode};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::branch_beginning::begin_branch;
use super::catalog_horizon::CatalogHorizon;
use super::control::{State, Status};
use super::cutting::{Cutter, Publisher};
use super::data_files::DataFiles;
use super::idleness::Idleness;
use super::rewinding::on_mount;
use super::server::{PORT, Purpose, SUPERUSER, Server};
use super::serving::Started;
use super::wal_floor::{read_control_file, wal_floor, write_control_file};
use super::{ComputeDirectory, ComputeSpec};
use super::{owner_extensions, sole_standby};
use crate::ids::Term;
use crate::page_fs::MountOptions;
use crate::page_store::{BranchState, Manifest, ManifestKind};
use crate::wal_keeper::{Durability, Elected, Election, LogName, StreamConfig, WalArchive, elect};
use crate::{CoreError, Result, initdb, provision, settings};

/// A socket on this machine is open at once, or the server is gone.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long each step of a start takes: whoever connects waits for all of them.
struct Steps {
    began: Instant,
    since: Instant,
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn begin() -> Steps {
        let now = Instant::now();
        Steps { began: now, since: now, taken: Vec::new() }
    }

    fn done(&mut self, step: &'static str) {
        self.taken.push((step, self.since.elapsed()));
        self.since = Instant::now();
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.began.elapsed().as_millis())?;
        for (at, (step, took)) in self.taken.iter().enumerate() {
            write!(f, "{}{step} {}", if at == 0 { ": " } else { ", " }, took.as_millis())?;
        }
        Ok(())
    }
}

/// Starts the branch: as often as it takes to be an ordinary one, which is twice for a new branch.
pub(super) async fn start(
    spec: &ComputeSpec,
    directory: &ComputeDirectory,
    board: &watch::Sender<Status>,
) -> Result<Started> {
    loop {
        let mut steps = Steps::begin();
        let log = LogName { project: spec.project.clone(), branch: spec.branch };
        let archive = WalArchive::new(spec.pages.storage().clone(), log.clone());
        let before = newest(spec).await?;
        steps.done("manifest");
        let election = Election {
            log,
            keepers: spec.keepers.clone(),
            archive: archive.clone(),
            above: before.head.term,
            system_identifier: before.body.system_identifier,
            durability: spec.durability,
        };
        let elected = elect(&election).await?;
        steps.done("election");
        // After the election, in its term: no older compute can add to the branch any more.
        let manifest = spec.pages.take_over(&spec.project, spec.branch, elected.term()).await?;
        steps.done("taking over");
        board.send_modify(|status| {
            status.name = Some(manifest.head.name.clone());
            status.term = elected.term();
            status.timeline = manifest.head.timeline;
            status.manifest = manifest.head.number;
        });
        if matches!(manifest.head.kind, ManifestKind::Branched { .. }) {
            board.send_modify(|status| status.state = State::Rewinding);
            begin_branch(spec, directory, &archive, elected.term(), manifest).await?;
            board.send_modify(|status| status.state = State::Starting);
            continue;
        }
        return start_ordinary(spec, directory, board, elected, before, manifest, steps).await;
    }
}

async fn newest(spec: &ComputeSpec) -> Result<Arc<Manifest>> {
    let manifest = spec.pages.latest(&spec.project, spec.branch).await?;
    manifest.filter(|manifest| manifest.head.state == BranchState::Live).ok_or_else(|| {
        CoreError::NoSuchBranch { project: spec.project.to_string(), branch: spec.branch.to_string() }
    })
}

async fn start_ordinary(
    spec: &ComputeSpec,
    directory: &ComputeDirectory,
    board: &watch::Sender<Status>,
    elected: Elected,
    before: Arc<Manifest>,
    manifest: Arc<Manifest>,
    mut steps: Steps,
) -> Result<Started> {
    let head = &manifest.head;
    let term = elected.term();
    let end = elected.end().map(|end| end.end).or(head.end_lsn).unwrap_or_default();
    if end < head.min_recovery_lsn {
        return Err(CoreError::PagesAheadOfWal {
            project: spec.project.to_string(),
            have: end,
            need: head.min_recovery_lsn,
        });
    }
    let mut publisher = Publisher::new(spec.pages.clone(), Arc::clone(&manifest), term);
    // The same state under the name that the local cache knows it by, unless somebody published in between.
    let known = if before.head.number.next() == head.number { before } else { Arc::clone(&manifest) };
    let files = open_data(spec, directory, known, term).await?;
    steps.done("mount");
    let from = on_mount(&directory.data(), wal_floor).await?;
    empty(&directory.wal())?;
    let placed = elected.place_wal(publisher.wal(), from, &directory.wal(), directory.user()).await?;
    let replays = head.end_lsn.is_none_or(|clean_end| placed > clean_end);
    steps.done("WAL");
    prepare(spec, directory, replays).await?;
    steps.done("settings");

    let server = Server::launch(
        directory,
        &spec.installation,
        spec.project.as_str(),
        &spec.superuser_password,
        &Purpose::Serving,
    )?;
    board.send_modify(|status| {
        status.postgres_pid = Some(server.pid());
        status.socket_directory = Some(server.socket_directory().to_owned());
    });
    publisher.continue_wal(head.timeline, placed);
    let (client, ()) = tokio::try_join!(server.wait_until_ready(), publisher.publish_in_service())?;
    let mut horizon = CatalogHorizon::default();
    horizon.hold(&client, spec.project.as_str()).await;
    horizon.published(&client, spec.project.as_str()).await?;
    steps.done("Postgres");
    let config = StreamConfig { postgres: superuser_source(spec, &server), origin: placed };
    // Side by side: what the owner's part changes waits in Postgres for the stream, which confirms commits.
    let (streaming, (), (), watching) = tokio::try_join!(
        elected.stream(config),
        settle_owner(spec, &server, &client),
        owner_extensions::offer(&client, directory, spec.project.as_str()),
        server.connect("postgres")
    )?;
    steps.done("stream and owner");
    let fetches = files.fetches();
    tracing::info!(project = %spec.project, branch = %spec.branch, fetches, "awake after {steps}");
    sole_standby::defend(&watching, spec.project.as_str()).await?;
    let idle =
        Idleness::new(spec.project.clone(), spec.suspend_after, watching, server.superuser("postgres"));
    let cutter = Cutter {
        majority: streaming.majority(),
        recoverable: streaming.recoverable(),
        archived: (spec.durability == Durability::Store).then(|| streaming.archived()),
        files: Arc::new(files),
        publisher,
        data: directory.data(),
        client,
        horizon,
        timeline: head.timeline,
        board: board.clone(),
        every: spec.cut_every,
    };
    let (project, branch, wal) = (spec.project.clone(), spec.branch, directory.wal());
    Ok(Started { project, branch, wal, server, streaming, cutter, idle })
}

/// The owner's role, database and password, as the configuration has them.
async fn settle_owner(spec: &ComputeSpec, server: &Server, client: &Client) -> Result<()> {
    let (project, owner, password) = (spec.project.as_str(), &spec.owner, &spec.owner_password);
    provision::provision(client, project, owner, password).await?;
    provision::settle_password(server, client, project, owner, password).await
}

/// Has the manifest's data directory where Postgres looks for it.
pub(super) async fn open_data(
    spec: &ComputeSpec,
    directory: &ComputeDirectory,
    manifest: Arc<Manifest>,
    term: Term,
) -> Result<DataFiles> {
    let options = MountOptions {
        mount_point: directory.data(),
        cache_directory: directory.cache(),
        cache_limit: spec.cache_limit,
        // Relative to the data directory: Postgres need not be able to walk the whole way there.
        wal_directory: "../pg_wal".into(),
        owner: directory.user().clone(),
        term,
    };
    DataFiles::open(spec.mount, options, spec.pages.clone(), manifest).await
}

/// What a predecessor left in `pg_wal` may be further than the keepers' majority ever was.
pub(super) fn empty(wal: &Path) -> Result<()> {
    for entry in std::fs::read_dir(wal).map_err(CoreError::io("list", wal))? {
        let entry = entry.map_err(CoreError::io("list", wal))?;
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
            _ => std::fs::remove_file(&path),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(CoreError::io("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether Postgres recovers is this start's to say: the log may go on behind what the pages call a clean stop.
async fn prepare(spec: &ComputeSpec, directory: &ComputeDirectory, replays: bool) -> Result<()> {
    write_configuration(spec, directory).await?;
    on_mount(&directory.data(), move |data| {
        let control = read_control_file(data)?;
        if replays && control.is_shut_down() {
            write_control_file(data, &control.after_a_crash())?;
        }
        Ok(())
    })
    .await
}

/// Writes the project's settings and the access rules into the data directory, where they are not there already.
pub(super) async fn write_configuration(spec: &ComputeSpec, directory: &ComputeDirectory) -> Result<()> {
    let configuration = settings::render(spec.project.as_str(), &spec.settings)?;
    let user = directory.user().clone();
    on_mount(&directory.data(), move |data| {
        let rules = initdb::branch_access_rules();
        for (name, wanted) in [(settings::FILE, &configuration), (initdb::ACCESS_RULES, &rules)] {
            let path = data.join(name);
            if !std::fs::read_to_string(&path).is_ok_and(|present| present == *wanted) {
                std::fs::write(&path, wanted).map_err(CoreError::io("write", &path))?;
                user.own(&path)?;
            }
        }
        Ok(())
    })
    .await
}

/// How the core's own role reaches the server.
fn superuser_source(spec: &ComputeSpec, server: &Server) -> SourceConfig {
    SourceConfig {
        hosts: vec![(Host::Unix(server.socket_directory().to_owned()), PORT)],
        user: SUPERUSER.to_owned(),
        dbname: "postgres".to_owned(),
        password: Some(spec.superuser_password.clone()),
        tls: TlsMode::Disable,
        ca_file: None,
        application_name: "tidewater".to_owned(),
        connect_timeout: CONNECT_LIMIT,
        options: None,
    }
}
