//! Getting in: passwords, TLS, sockets, settings.

use crate::server::{database, server};
use crate::tls_front::tls_front;
use postgres_connector::{Error, Host, ReplicationSession, SourceConfig, TlsMode, connect};
use tokio_postgres::types::ToSql;

#[tokio::test]
async fn a_wrong_password_is_an_authentication_error_for_both_kinds_of_session() {
    let mut config = server().config("127.0.0.1", "postgres");
    config.password = Some("wrong".to_owned().into());
    let sql = connect(&config).await.err().unwrap();
    let replication = ReplicationSession::connect(&config).await.err().unwrap();
    for error in [sql, replication] {
        assert!(matches!(&error, Error::AuthFailed { .. }) && !error.is_transient(), "{error:?}");
    }
}

#[tokio::test]
async fn a_missing_password_is_said_so() {
    let mut config = server().config("127.0.0.1", "postgres");
    config.password = None;
    assert!(matches!(ReplicationSession::connect(&config).await, Err(Error::PasswordMissing { .. })));
    assert!(matches!(connect(&config).await, Err(Error::PasswordMissing { .. })));
}

#[tokio::test]
async fn both_kinds_of_session_go_through_a_unix_socket() {
    let mut config = server().config("127.0.0.1", "postgres");
    config.hosts = vec![(Host::Unix(server().dir.clone()), server().port)];
    connect(&config).await.unwrap();
    let mut session = ReplicationSession::connect(&config).await.unwrap();
    let identity = session.identify_system().await.unwrap();
    assert_eq!(identity.dbname.as_deref(), Some("postgres"));
    session.close().await.unwrap();
}

fn with_tls(host: &str, port: u16, tls: TlsMode, ca: Option<&str>) -> SourceConfig {
    let config = server().config(host, "postgres");
    SourceConfig {
        hosts: vec![(Host::Tcp(host.into()), port)],
        tls,
        ca_file: ca.map(|name| server().file(name)),
        ..config
    }
}

#[tokio::test]
async fn every_tls_mode_checks_what_it_promises() {
    let port = tls_front().await;
    let accepted = [
        ("127.0.0.1", TlsMode::Prefer, None),
        ("127.0.0.1", TlsMode::Require, None),
        ("127.0.0.1", TlsMode::VerifyCa, Some("ca.pem")),
        ("localhost", TlsMode::VerifyFull, Some("ca.pem")),
        // The server's own certificate, handed out as the CA.
        ("localhost", TlsMode::VerifyFull, Some("server.crt")),
    ];
    for (host, tls, ca) in accepted {
        let config = with_tls(host, port, tls, ca);
        connect(&config).await.unwrap_or_else(|err| panic!("{tls:?} {ca:?}: {err:?}"));
        ReplicationSession::connect(&config).await.unwrap().close().await.unwrap();
    }
    let refused = [
        ("127.0.0.1", TlsMode::VerifyFull, Some("ca.pem")),
        ("127.0.0.1", TlsMode::VerifyFull, Some("server.crt")),
        ("localhost", TlsMode::VerifyCa, Some("stranger.pem")),
        ("localhost", TlsMode::Require, Some("stranger.pem")),
    ];
    for (host, tls, ca) in refused {
        let config = with_tls(host, port, tls, ca);
        let error = connect(&config).await.err().unwrap();
        assert!(matches!(error, Error::TlsHandshake { .. }), "{tls:?} {ca:?}: {error:?}");
        assert!(matches!(ReplicationSession::connect(&config).await, Err(Error::TlsHandshake { .. })));
    }
    let missing = with_tls("localhost", port, TlsMode::VerifyFull, Some("nothing.pem"));
    assert!(matches!(connect(&missing).await, Err(Error::CaFile { .. })));
}

#[tokio::test]
async fn a_preference_for_tls_settles_for_none() {
    let config = SourceConfig { tls: TlsMode::Prefer, ..server().config("127.0.0.1", "postgres") };
    connect(&config).await.unwrap();
    ReplicationSession::connect(&config).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_second_host_is_tried_when_the_first_does_not_answer() {
    let mut config = server().config("127.0.0.1", "postgres");
    config.hosts.insert(0, (Host::Tcp("127.0.0.1".into()), 1));
    connect(&config).await.unwrap();
}

#[tokio::test]
async fn values_read_the_same_whatever_the_role_prefers() {
    let (config, admin) = database("house_settings").await;
    admin
        .batch_execute(
            "ALTER DATABASE house_settings SET DateStyle = 'German'; ALTER DATABASE house_settings SET TimeZone = 'Asia/Tokyo'; \
             ALTER DATABASE house_settings SET bytea_output = 'escape'; ALTER DATABASE house_settings SET IntervalStyle = 'sql_standard'",
        )
        .await
        .unwrap();
    let client = connect(&config).await.unwrap();
    let no_parameters: [&(dyn ToSql + Sync); 0] = [];
    let sql = "SELECT concat_ws(' ', timestamptz '2026-02-03 04:05:06+00', '\\x00ff'::bytea, interval '1 day 2 hours', 'pg_class'::regclass)";
    let text: String = client.query_one(sql, &no_parameters).await.unwrap().get(0);
    assert_eq!(text, "2026-02-03 04:05:06+00 \\x00ff P1DT2H pg_class");
}
