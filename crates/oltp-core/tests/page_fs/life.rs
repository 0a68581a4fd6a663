//! From `initdb` through the store and back, by way of crashes and clean stops.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command as StdCommand, Stdio};
use std::sync::Arc;
use std::time::Duration;

use oltp_core::CoreError;
use oltp_core::ids::{BranchId, Term};
use oltp_core::page_fs::{Captured, Mounted, detach_stale_mounts, import_cluster, materialise, stamp};
use oltp_core::page_store::{Manifest, ManifestKind};

use crate::cluster::{CORE_SETTINGS, Cluster, Server, assert_balances, assert_sound, flushed, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_the_store_runs_and_recovers_from_a_cut() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("one", &first, &wal).await;
    let server = Server::start(&cluster, mounted.mount_point(), CORE_SETTINGS).await;
    let client = server.connect().await;
    server.client("pgbench", &["-i", "-s", "2", "-q"]).await;
    client
        .batch_execute("CHECKPOINT; CREATE UNLOGGED TABLE passing AS SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    let mut load = server.client_program("pgbench");
    load.args(["-c", "4", "-T", "4", "-n"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut load = load.spawn().unwrap();
    while number(&client, "SELECT count(*) FROM pgbench_history").await < 200 {
        assert!(load.try_wait().unwrap().is_none(), "pgbench ended early");
    }
    let cut = mounted.cut().unwrap();
    let flush = flushed(&client).await;
    let captured = mounted.capture(cut).await.unwrap();
    let second = cluster.publish(&first, captured, ManifestKind::Running, flush).await;
    load.wait().await.unwrap();
    let rows = number(&client, "SELECT count(*) FROM pgbench_history").await;
    server.kill9().await;
    mounted.unmount().await.unwrap();

    // Another place, nothing but the store and the WAL.
    let mounted = cluster.mount("two", &second, &wal).await;
    let server = Server::start(&cluster, mounted.mount_point(), CORE_SETTINGS).await;
    let client = server.connect().await;
    assert_eq!(number(&client, "SELECT count(*) FROM pgbench_history").await, rows);
    assert_eq!(number(&client, "SELECT count(*) FROM passing").await, 0, "unlogged: reset by recovery");
    assert_balances(&client).await;
    assert_sound(&cluster, server, mounted.mount_point()).await;
    mounted.unmount().await.unwrap();
}

/// Stops the server, captures the clean stop and publishes it.
async fn clean_stop(
    cluster: &Cluster,
    mounted: &Mounted,
    server: Server,
    before: &Arc<Manifest>,
) -> Arc<Manifest> {
    let client = server.connect().await;
    let flush = flushed(&client).await;
    drop(client);
    server.stop().await;
    let captured = mounted.capture_clean(mounted.cut().unwrap()).await.unwrap();
    cluster.publish(before, captured, ManifestKind::CleanShutdown, flush).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_page_cache_is_thrown_away_after_an_unclean_end() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    // Autovacuum looks into other databases when it sees fit.
    let settings = [CORE_SETTINGS, &["autovacuum=off"]].concat();
    let mounted = cluster.mount("one", &first, &wal).await;
    let server = Server::start(&cluster, mounted.mount_point(), &settings).await;
    let client = server.connect().await;
    client.batch_execute("CREATE UNLOGGED TABLE kept AS SELECT generate_series(1, 1500) AS n").await.unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM kept").await, 1500);
    let cold = mounted.cache_use().fetches;
    let second = clean_stop(&cluster, &mounted, server, &first).await;
    mounted.unmount_clean(&second).await.unwrap();

    // After a clean stop the pages are here, and unlogged tables have their rows.
    let mounted = cluster.mount("one", &second, &wal).await;
    assert!(mounted.cache_use().cached_bytes > 1 << 20);
    let server = Server::start(&cluster, mounted.mount_point(), &settings).await;
    let client = server.connect().await;
    assert_eq!(number(&client, "SELECT count(*) FROM kept").await, 1500);
    let warm = mounted.cache_use().fetches;
    assert!(warm * 5 < cold, "{warm} range reads, and {cold} when the cache was cold");
    // A page that is newer here than in the store, and an end without a record.
    client.batch_execute("UPDATE kept SET n = -n; CHECKPOINT").await.unwrap();
    server.kill9().await;
    mounted.unmount().await.unwrap();
    let mounted = cluster.mount("one", &second, &wal).await;
    assert_eq!(mounted.cache_use().cached_bytes, 0);
    mounted.unmount().await.unwrap();

    // A record of another manifest than the one mounted is none.
    let mounted = cluster.mount("one", &second, &wal).await;
    std::fs::read(mounted.mount_point().join("PG_VERSION")).unwrap();
    mounted.unmount_clean(&second).await.unwrap();
    let mounted = cluster.mount("one", &first, &wal).await;
    assert_eq!(mounted.cache_use().cached_bytes, 0);
    mounted.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_verified_when_captured_and_when_fetched() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("one", &first, &wal).await;
    let relation = mounted.mount_point().join("base/1/1259");
    let page = std::fs::read(&relation).unwrap();
    let mut damaged = page.clone();
    damaged[5000] ^= 1;
    std::fs::write(&relation, &damaged).unwrap();
    let error = mounted.capture(mounted.cut().unwrap()).await.unwrap_err();
    assert!(
        matches!(&error, CoreError::PageDamaged { path, block: 0, .. } if path == "base/1/1259"),
        "{error}"
    );
    std::fs::write(&relation, &page).unwrap();
    mounted.capture(mounted.cut().unwrap()).await.unwrap();
    mounted.unmount().await.unwrap();

    // The same page, damaged where it lies in the store.
    let layers = cluster.path("store/projects/shop/layers").join(first.head.branch.to_string());
    for layer in std::fs::read_dir(layers).unwrap() {
        let layer = layer.unwrap().path();
        let mut bytes = std::fs::read(&layer).unwrap();
        let half = bytes.len() / 2;
        for byte in &mut bytes[..half] {
            *byte ^= 0x55;
        }
        std::fs::write(&layer, bytes).unwrap();
    }
    let mounted = cluster.mount("two", &first, &wal).await;
    let error = std::fs::read(mounted.mount_point().join("base/1/1259")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    mounted.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_are_refused_and_temporary_files_stay_outside() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("one", &first, &wal).await;
    let server = Server::start(&cluster, mounted.mount_point(), CORE_SETTINGS).await;
    let client = server.connect().await;
    let place = cluster.own_directory("tablespace");
    let create = format!("CREATE TABLESPACE far LOCATION '{}'", place.display());
    let error = client.batch_execute(&create).await.unwrap_err();
    let error = error.as_db_error().unwrap().message();
    assert!(
        error.contains("could not create symbolic link") && error.contains("Operation not permitted"),
        "{error}"
    );

    client.batch_execute("SET work_mem = '64kB'").await.unwrap();
    client
        .batch_execute(
            "BEGIN; DECLARE c CURSOR FOR SELECT n FROM generate_series(1, 300000) n ORDER BY md5(n::text); FETCH 1 FROM c",
        )
        .await
        .unwrap();
    let outside = cluster.path("one/cache/temporary_files");
    assert!(std::fs::read_dir(outside).unwrap().count() > 0);
    client.batch_execute("COMMIT").await.unwrap();
    server.stop().await;
    mounted.unmount().await.unwrap();
}

async fn bring_back(cluster: &Cluster, copy: &Path, base: &Arc<Manifest>) -> Result<Captured, CoreError> {
    import_cluster(&cluster.store, &cluster.project, base.head.branch, Term(1), copy, Some(base)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_comes_back_by_difference() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let copy = cluster.path("copy");
    materialise(&cluster.store, &first, &copy, &wal, &cluster.user).await.unwrap();
    let server = Server::start(&cluster, &copy, &["fsync=off"]).await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE numbers AS SELECT generate_series(1, 100000) AS n").await.unwrap();
    let error = bring_back(&cluster, &copy, &first).await.unwrap_err();
    assert!(error.to_string().contains("not shut down cleanly"), "{error}");
    let flush = flushed(&client).await;
    server.stop().await;
    let captured = bring_back(&cluster, &copy, &first).await.unwrap();
    let whole = captured.body.files.iter().map(|file| file.size.div_ceil(8192)).sum::<u64>();
    assert!(captured.pages < whole / 2, "{} of {whole} pages", captured.pages);
    let second = cluster.publish(&first, captured, ManifestKind::CleanShutdown, flush).await;
    stamp(&copy, &second).unwrap();
    let again = bring_back(&cluster, &copy, &second).await.unwrap();
    assert_eq!(again.pages, 0, "nothing was written since");

    let mounted = cluster.mount("one", &second, &wal).await;
    let server = Server::start(&cluster, mounted.mount_point(), CORE_SETTINGS).await;
    let client = server.connect().await;
    assert_eq!(number(&client, "SELECT count(*) FROM numbers").await, 100_000);
    client.batch_execute("TRUNCATE numbers; INSERT INTO numbers VALUES (7)").await.unwrap();
    let third = clean_stop(&cluster, &mounted, server, &second).await;
    mounted.unmount().await.unwrap();

    let back = cluster.path("back");
    materialise(&cluster.store, &third, &back, &wal, &cluster.user).await.unwrap();
    let server = Server::start(&cluster, &back, &["fsync=off"]).await;
    assert_eq!(number(&server.connect().await, "SELECT sum(n) FROM numbers").await, 7);
    assert_sound(&cluster, server, &back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_cannot_come_in_is_refused_with_the_reason() {
    let cluster = Cluster::new().await;
    let (data, _) = cluster.initdb("plain", "wal").await;
    let import =
        || import_cluster(&cluster.store, &cluster.project, BranchId::random(), Term(1), &data, None);
    symlink("/nowhere", data.join("pg_tblspc/16400")).unwrap();
    let error = import().await.unwrap_err().to_string();
    assert!(error.contains("tablespace") && error.contains("pg_tblspc/16400"), "{error}");
    std::fs::remove_file(data.join("pg_tblspc/16400")).unwrap();

    let mut off = cluster.program("pg_checksums");
    off.args(["--disable", "--no-sync"]).arg("-D").arg(&data);
    cluster.run(&mut off).await;
    let error = import().await.unwrap_err().to_string();
    assert!(error.contains("pg_checksums --enable"), "{error}");
}

/// Set for the process that the next test starts: this test binary again, to mount and be killed.
const MOUNTING_CHILD: &str = "TIDEWATER_TEST_MOUNT";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_mounted_is_detached() {
    if let Some(folder) = std::env::var_os(MOUNTING_CHILD) {
        return mount_and_wait(folder.into()).await;
    }
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mut child = StdCommand::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::what_a_killed_process_left_mounted_is_detached"])
        .env(MOUNTING_CHILD, &cluster.root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let probe = cluster.path("one/data/PG_VERSION");
    while !probe.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // While it lives, nobody else mounts there, and a sweep leaves it alone.
    let options = cluster.mount_options("one", &wal);
    let error = Mounted::mount(options, cluster.store.clone(), Arc::clone(&first)).await.unwrap_err();
    assert!(matches!(error, CoreError::MountPointInUse { .. }), "{error}");
    assert!(detach_stale_mounts(&cluster.root).unwrap().is_empty());

    child.kill().unwrap();
    child.wait().unwrap();
    let error = std::fs::read(&probe).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()), "{error}");
    let mounted = cluster.mount("one", &first, &wal).await;
    assert_eq!(std::fs::read_to_string(&probe).unwrap().trim(), "18");
    mounted.unmount().await.unwrap();
}

async fn mount_and_wait(root: std::path::PathBuf) {
    let cluster = Cluster::at(root).await;
    let _mounted = cluster.mount("one", &cluster.newest().await, &cluster.path("wal")).await;
    std::future::pending::<()>().await;
}
