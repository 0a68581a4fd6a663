//! What monitoring and scripts see over TCP, and what they may not do.

use std::time::{Duration, Instant};

use serde_json::Value;
use tidewater_e2e::{Postgres, Site, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_millis(100);
const TOKEN: &str = "0123456789abcdef";

/// One request over TCP, with the headers it is given and no others.
pub async fn ask(port: u16, line: &str, headers: &[&str]) -> (u16, String) {
    ask_with(port, line, headers, "").await
}

async fn ask_with(port: u16, line: &str, headers: &[&str], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "{line} HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n\r\n{body}",
        body.len(),
        headers.join("\r\n")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn over_tcp_everybody_may_look_and_only_the_token_changes_something() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)")
        .await
        .unwrap();
    let port = free_port();
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{port}\", token: {TOKEN}}}\n\
         databases:\n  shop: {{url: \"{}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"public.*\"], flush: 200ms}}\n",
        postgres.url("shop")
    ));
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    daemon.wait_status(SOON, |status| status["tables"][0]["lag_seconds"].is_number()).await;
    let host = format!("Host: 127.0.0.1:{port}");
    let host = host.as_str();
    let (right, wrong) = (format!("Authorization: Bearer {TOKEN}"), "Authorization: Bearer wrong");

    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(port, &format!("GET {path}"), &[host]).await.0, 200, "{path}");
    }
    let (code, metrics) = ask(port, "GET /metrics", &[host]).await;
    assert_eq!(code, 200);
    for name in
        ["tidewater_sync_lag_bytes", "tidewater_sync_lag_seconds", "tidewater_sync_slot_retained_wal_bytes"]
    {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    let (code, status) = ask(port, "GET /api/v1/status", &[host]).await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((code, &status["tables"][0]["table"]), (200, &Value::from("public.orders")));
    assert_eq!(ask(port, "GET /api/v1/nothing", &[host]).await.0, 404);

    let pause = "POST /api/v1/tables/public.orders/pause";
    let elsewhere = "Host: evil.example";
    assert_eq!(ask(port, pause, &[host]).await.0, 401);
    assert_eq!(ask(port, pause, &[host, wrong]).await.0, 401);
    assert_eq!(ask(port, pause, &[elsewhere, &right]).await.0, 403);
    assert_eq!(ask(port, "POST /api/v1/reload", &[host]).await.0, 401);
    let unknown = "POST /api/v1/tables/public.none/pause";
    assert_eq!(ask(port, unknown, &[host, &right]).await.0, 404);
    let (code, answer) = ask(port, pause, &[host, &right]).await;
    assert_eq!(code, 202, "{answer}");
    daemon.wait_status(SOON, |status| status["tables"][0]["state"] == "paused").await;
    daemon.stop().await;
}

/// What a TLS client hears that trusts `ca.pem` of a folder.
async fn ask_encrypted(folder: &std::path::Path, port: u16, line: &str) -> String {
    let request = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let mut client = tokio::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-CAfile", "ca.pem", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .current_dir(folder)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(request.as_bytes()).await.unwrap();
    let heard = tokio::time::timeout(SOON, client.wait_with_output()).await.unwrap().unwrap();
    drop(stdin);
    assert!(heard.status.success(), "{}", String::from_utf8_lossy(&heard.stderr));
    String::from_utf8(heard.stdout).unwrap()
}

#[tokio::test]
async fn with_a_certificate_only_who_speaks_tls_is_answered() {
    let (port, gateway) = (free_port(), free_port());
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\n\
         listen: {{http: \"127.0.0.1:{port}\", tls: {{cert_file: server.crt, key_file: server.key}}}}\n\
         core: {{storage: ./core, listen: \"127.0.0.1:{gateway}\"}}\ndatabases:\n  shop: {{core: {{}}}}\n"
    ));
    let refused = site.command(&["run", "--until-caught-up"]).await;
    assert!(refused.stderr.contains("listen.tls"), "{}", refused.stderr);

    let certificate = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key -out server.csr -subj /CN=us
        echo 'subjectAltName=IP:127.0.0.1' > san
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san";
    let made = std::process::Command::new("sh").args(["-c", certificate]).current_dir(site.path()).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let daemon = site.start().await;
    let answer = ask_encrypted(site.path(), port, "GET /livez").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("alive"), "{answer}");

    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    // A reset is as good an answer as an end.
    let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut heard)).await.unwrap();
    assert!(!String::from_utf8_lossy(&heard).contains("alive"));
    daemon.stop().await;
}

/// Waits for a line of the metrics.
async fn shows(port: u16, line: &str) {
    let host = format!("Host: 127.0.0.1:{port}");
    let deadline = Instant::now() + SOON;
    loop {
        let (_, metrics) = ask(port, "GET /metrics", &[&host]).await;
        if metrics.lines().any(|found| found == line) {
            return;
        }
        assert!(Instant::now() < deadline, "{line} is not in\n{metrics}");
        tokio::time::sleep(RETRY).await;
    }
}

#[tokio::test]
async fn branches_are_made_listed_woken_and_put_to_sleep_over_http() {
    let (port, gateway) = (free_port(), free_port());
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{port}\", token: {TOKEN}}}\n\
         core: {{storage: ./core, listen: \"127.0.0.1:{gateway}\"}}\ndatabases:\n  shop: {{core: {{}}}}\n"
    ));
    let daemon = site.start().await;
    let (host, right) = (format!("Host: 127.0.0.1:{port}"), format!("Authorization: Bearer {TOKEN}"));
    let headers = [host.as_str(), right.as_str()];
    let json = |(code, answer): (u16, String)| -> Value {
        assert_eq!(code, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    };
    let states = async || {
        let listed = json(ask(port, "GET /api/v1/branches?database=shop", &headers[..1]).await);
        let branches = listed.as_array().unwrap().iter();
        branches.map(|found| format!("{} {}", found["branch"], found["state"])).collect::<Vec<_>>().join(", ")
    };

    // Nobody has needed it yet.
    assert_eq!(states().await, r#""main" "asleep""#);
    let wake = "POST /api/v1/computes/shop/wake";
    assert_eq!(ask(port, wake, &headers[..1]).await.0, 401);
    assert_eq!(json(ask(port, wake, &headers).await)["state"], "running");
    let wanted = r#"{"branch": "shop@try", "ttl": "1d"}"#;
    json(ask_with(port, "POST /api/v1/branches", &headers, wanted).await);
    assert_eq!(states().await, r#""main" "running", "try" "asleep""#);
    let listed = json(ask(port, "GET /api/v1/branches", &headers[..1]).await);
    assert_eq!((&listed[1]["parent"], listed[1]["expires_at"].is_string()), (&Value::from("main"), true));
    assert!(!listed.to_string().contains("postgres://"), "{listed}");

    shows(port, r#"tidewater_core_running{database="shop",branch="main"} 1"#).await;
    let suspend = "POST /api/v1/computes/shop/suspend";
    assert_eq!(json(ask(port, suspend, &headers).await)["slept"], false);
    assert_eq!(json(ask(port, suspend, &headers).await)["slept"], true);
    assert_eq!(states().await, r#""main" "asleep", "try" "asleep""#);
    assert_eq!(ask(port, "POST /api/v1/computes/shop@none/wake", &headers).await.0, 404);
    shows(port, r#"tidewater_core_running{database="shop",branch="main"} 0"#).await;
    daemon.stop().await;
}
