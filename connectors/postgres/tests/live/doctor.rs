//! Preflight with a role that may little, and again after every statement it prints was carried out.

use crate::server::{database, globs};
use postgres_connector::{Finding, RequestedTables, Severity, preflight};

fn found<'a>(findings: &'a [Finding], code: &str) -> Option<&'a Finding> {
    findings.iter().find(|finding| finding.code == code && finding.severity != Severity::Ok)
}

#[tokio::test]
async fn each_statement_that_preflight_prints_mends_its_finding() {
    let (config, admin) = database("doctor").await;
    admin
        .batch_execute(
            "CREATE ROLE doctor_sync LOGIN PASSWORD 'pw'; CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, v text);
             CREATE TABLE shop.log (line text); CREATE TABLE shop.tenants (id int PRIMARY KEY); ALTER TABLE shop.tenants ENABLE ROW LEVEL SECURITY",
        )
        .await
        .unwrap();
    let mut config = config.clone();
    config.user = "doctor_sync".into();
    config.password = Some("pw".to_owned().into());
    let tables = RequestedTables { include: globs(&["shop.*"]), ..RequestedTables::default() };
    let before = preflight(&config, "t", "doctor", &tables).await.unwrap();
    for code in [
        "replication",
        "schema-usage",
        "select",
        "row-security",
        "publication",
        "inserts-only",
        "wal-keep-size",
    ] {
        assert!(
            found(&before, code).is_some_and(|finding| finding.remedy_sql.is_some()),
            "{code}: {before:#?}"
        );
    }
    for statement in
        before.iter().filter(|f| f.severity == Severity::Error).filter_map(|f| f.remedy_sql.as_ref())
    {
        admin.batch_execute(statement).await.unwrap_or_else(|err| panic!("{statement}: {err:?}"));
    }
    let after = preflight(&config, "t", "doctor", &tables).await.unwrap();
    let errors: Vec<_> = after.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(found(&after, "inserts-only").is_some_and(|finding| finding.subject == "shop.log"));
}

#[tokio::test]
async fn a_server_that_refuses_the_role_is_one_finding() {
    let (mut config, _admin) = database("doctor_refused").await;
    config.password = Some("wrong".to_owned().into());
    let findings = preflight(&config, "t", "doctor_refused", &RequestedTables::default()).await.unwrap();
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].severity, findings[0].code), (Severity::Error, "connect"));
    assert!(findings[0].problem.contains("28P01"), "{}", findings[0].problem);
}
