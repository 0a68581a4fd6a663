//! How fast it is. Run by hand, with nothing else running:
//! `cargo test -p oltp-core --test page_fs measurements -- --ignored --nocapture`

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::{CORE_SETTINGS, Cluster, Server};

const PAGES: u64 = 32_768; // 256 MiB

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Microseconds for one random 8 KiB read.
fn random_reads(path: &std::path::Path, count: u32) -> f64 {
    let file = std::fs::File::open(path).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    let mut page = [0; 8192];
    let begun = Instant::now();
    for _ in 0..count {
        file.read_exact_at(&mut page, random.random_range(0..PAGES) * 8192).unwrap();
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn drop_kernel_caches() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn reads_of_single_pages() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("one", &first, &wal).await;
    let mut bytes = vec![0; PAGES as usize * 8192];
    StdRng::seed_from_u64(3).fill(bytes.as_mut_slice());
    let (on_mount, plain) = (mounted.mount_point().join("pg_stat/pages"), cluster.path("pages"));
    std::fs::write(&on_mount, &bytes).unwrap();
    std::fs::write(&plain, &bytes).unwrap();
    let captured = mounted.capture(mounted.cut().unwrap()).await.unwrap();
    println!("ordinary file, in the kernel's cache: {:.1} us", random_reads(&plain, 100_000));
    random_reads(&on_mount, 200_000);
    println!("mount, in the kernel's cache:         {:.1} us", random_reads(&on_mount, 100_000));
    drop_kernel_caches();
    std::fs::read(cluster.path("one/cache/pages")).unwrap();
    println!("mount, through this process:          {:.1} us", random_reads(&on_mount, 20_000));
    let manifest = std::sync::Arc::new(oltp_core::page_store::Manifest {
        head: first.head.clone(),
        body: captured.body,
    });
    let other = cluster.mount("two", &manifest, &wal).await;
    let from_store = random_reads(&other.mount_point().join("pg_stat/pages"), 1_000);
    println!(
        "mount, from a local store:            {from_store:.1} us ({} fetches)",
        other.cache_use().fetches
    );
    for mounted in [mounted, other] {
        mounted.unmount().await.unwrap();
    }
}

async fn pgbench(server: &Server, arguments: &[&str]) -> f64 {
    let output =
        server.client("pgbench", &[&["-n", "-c", "4", "-j", "2", "-T", "6"], arguments].concat()).await;
    let line = output.lines().find(|line| line.starts_with("tps = ")).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn pgbench_beside_an_ordinary_directory() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("one", &first, &wal).await;
    let (plain, _) = cluster.initdb("stock", "stock-wal").await;
    let on_mount = Server::start(&cluster, mounted.mount_point(), CORE_SETTINGS).await;
    let stock = Server::start(&cluster, &plain, &[]).await;
    for server in [&on_mount, &stock] {
        server.client("pgbench", &["-i", "-s", "30", "-q"]).await;
        server.client("psql", &["-c", "CHECKPOINT"]).await;
    }
    for (name, arguments) in [("read/write", [].as_slice()), ("read only", &["-S"])] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            ours.push(with_cuts(&mounted, pgbench(&on_mount, arguments)).await);
            theirs.push(pgbench(&stock, arguments).await);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "{name}: mount {ours:.0} tps, ordinary directory {theirs:.0} tps, ratio {:.2}",
            ours / theirs
        );
    }
    on_mount.stop().await;
    stock.stop().await;
    mounted.unmount().await.unwrap();
}

/// Cuts and captures every two seconds while `load` runs.
async fn with_cuts<T>(mounted: &oltp_core::page_fs::Mounted, load: impl Future<Output = T>) -> T {
    let mut load = std::pin::pin!(load);
    loop {
        tokio::select! {
            done = &mut load => return done,
            () = tokio::time::sleep(Duration::from_secs(2)) => {
                let cut = mounted.cut().unwrap();
                let held = cut.held();
                let begun = Instant::now();
                let captured = mounted.capture(cut).await.unwrap();
                println!("  cut held {held:?}, {} pages captured in {:?}", captured.pages, begun.elapsed());
            }
        }
    }
}
