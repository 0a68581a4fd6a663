//! Table references in a query's syntax tree, with the version each asks for.
//!
//! DataFusion plans `FROM t VERSION AS OF 12` as `FROM t`: it drops the clause without a word. So no
//! statement reaches it before the walk here has visited every table reference there is (subqueries, CTE
//! bodies, joins, set operations) and either turned its version into a [`Version`] or refused it. The
//! same holds for every other clause on a table that DataFusion would drop.
//!
//! ```text
//! FROM orders VERSION AS OF 12 o   --collect-->  Reference { name: [orders], version: Number(12) }
//! FROM orders o                    <-rename---   FROM "shop@v12"."public"."orders" o
//! ```
//!
//! `history('t')` is a reference too, to the table that stands beside `t`:
//!
//! ```text
//! FROM history('orders') h         --collect-->  Reference { name: [orders_history], is_history: true }
//! ```
//!
//! And so is `changes('t', 3, 5)`, to the table itself:
//!
//! ```text
//! FROM changes('orders', 3, 5) c   --collect-->  Reference { name: [orders], version: Changes { 3, 5 } }
//! ```
//!
//! A one-part name that a WITH query in scope answers to is no table reference.

use crate::dialect::LakeDialect;
use crate::error::LakeSqlError;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart,
    Query, SetExpr, Statement, TableFactor, TableVersion, Value, VisitMut, VisitorMut,
};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;
use std::ops::ControlFlow;
use wal_decoder::Lsn;

/// Which state of a table a reference asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Version {
    /// The newest at the query's start.
    Newest,
    /// A Delta version.
    Number(u64),
    /// The newest version at or before a moment, given by an expression without columns.
    AtTime(Box<Expr>),
    /// The version at a position of the source's log.
    AtLsn(Lsn),
    /// No state, but what the versions from one to another did, both included.
    Changes {
        /// The first version.
        from: u64,
        /// The last version.
        to: u64,
    },
}

/// One table reference, in the order of the walk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reference {
    /// The name's parts, folded as Postgres folds.
    pub(crate) name: Vec<String>,
    /// The state asked for.
    pub(crate) version: Version,
    /// Whether it was written as `history('t')`.
    pub(crate) is_history: bool,
}

/// Finds every table reference and takes its version clause out of the tree.
pub(crate) fn collect(statement: &mut Statement) -> Result<Vec<Reference>, LakeSqlError> {
    let mut references = Vec::new();
    walk(statement, |factor| {
        if let Some(reference) = take_function(factor)? {
            references.push(reference);
            return Ok(());
        }
        let version = take_version(factor)?;
        let TableFactor::Table { name, .. } = factor else { return Ok(()) };
        references.push(Reference { name: folded(name)?, version, is_history: false });
        Ok(())
    })?;
    Ok(references)
}

/// Gives every table reference its new name, in the order in which [`collect`] returned them.
pub(crate) fn rename(statement: &mut Statement, names: &[[String; 3]]) -> Result<(), LakeSqlError> {
    let mut names = names.iter();
    walk(statement, |factor| {
        if let (TableFactor::Table { name, .. }, Some(parts)) = (factor, names.next()) {
            *name = ObjectName(
                parts.iter().map(|part| ObjectNamePart::Identifier(Ident::with_quote('"', part))).collect(),
            );
        }
        Ok(())
    })
}

fn walk(
    statement: &mut Statement,
    visit: impl FnMut(&mut TableFactor) -> Result<(), LakeSqlError>,
) -> Result<(), LakeSqlError> {
    match statement.visit(&mut TableWalk { scopes: Vec::new(), visit }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// The WITH names of one query, of which its body sees all and each CTE's body the ones before it.
struct Scope {
    names: Vec<String>,
    recursive: bool,
    /// How many CTE bodies the walk has left behind: they come before everything else in a query.
    finished: usize,
}

impl Scope {
    fn sees(&self, name: &str) -> bool {
        let visible = self.finished + usize::from(self.recursive);
        self.names.iter().take(visible).any(|cte| cte == name)
    }
}

struct TableWalk<F> {
    scopes: Vec<Scope>,
    visit: F,
}

impl<F: FnMut(&mut TableFactor) -> Result<(), LakeSqlError>> TableWalk<F> {
    fn table(&mut self, factor: &mut TableFactor) -> Result<(), LakeSqlError> {
        let written = factor_name(factor);
        let TableFactor::Table { name, args, version, .. } = &*factor else { return Ok(()) };
        if args.is_some() {
            refuse_version(name, version.as_ref())?;
            return if is_ours(name) { (self.visit)(factor) } else { Ok(()) };
        }
        refuse_dropped_clauses(factor, &written)?;
        let TableFactor::Table { name, version, .. } = &*factor else { return Ok(()) };
        if let [only] = folded(name)?.as_slice()
            && self.scopes.iter().any(|scope| scope.sees(only))
        {
            return match version {
                Some(_) => Err(LakeSqlError::VersionOfCte { table: written }),
                None => Ok(()),
            };
        }
        (self.visit)(factor)
    }
}

impl<F: FnMut(&mut TableFactor) -> Result<(), LakeSqlError>> VisitorMut for TableWalk<F> {
    type Break = LakeSqlError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<LakeSqlError> {
        if let Err(error) = refuse_unreadable(query) {
            return ControlFlow::Break(error);
        }
        let (names, recursive) = match &query.with {
            Some(with) => (with.cte_tables.iter().map(|cte| fold(&cte.alias.name)).collect(), with.recursive),
            None => (Vec::new(), false),
        };
        self.scopes.push(Scope { names, recursive, finished: 0 });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<LakeSqlError> {
        self.scopes.pop();
        if let Some(outer) = self.scopes.last_mut()
            && outer.finished < outer.names.len()
        {
            outer.finished += 1;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<LakeSqlError> {
        match self.table(factor) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// Postgres folds unquoted names to lower case and keeps quoted ones.
fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

fn folded(name: &ObjectName) -> Result<Vec<String>, LakeSqlError> {
    name.0
        .iter()
        .map(|part| part.as_ident().map(fold))
        .collect::<Option<_>>()
        .ok_or_else(|| LakeSqlError::NoSuchTable { name: name.to_string() })
}

fn factor_name(factor: &TableFactor) -> String {
    match factor {
        TableFactor::Table { name, .. } => name.to_string(),
        _ => String::new(),
    }
}

/// A query body that writes, or that names a table outside of FROM, where the walk would not see it.
fn refuse_unreadable(query: &Query) -> Result<(), LakeSqlError> {
    let mut bodies = vec![query.body.as_ref()];
    while let Some(body) = bodies.pop() {
        match body {
            SetExpr::SetOperation { left, right, .. } => bodies.extend([left.as_ref(), right.as_ref()]),
            SetExpr::Select(select) if select.into.is_some() => return Err(read_only("SELECT INTO")),
            SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => {}
            other => return Err(read_only(&other.to_string())),
        }
    }
    match query.locks.is_empty() {
        true => Ok(()),
        false => Err(read_only("SELECT FOR UPDATE or SHARE")),
    }
}

/// The beginning of a refused statement is enough to find it again, and does not flood a log.
const SHOWN_OF_STATEMENT: usize = 60;

pub(crate) fn read_only(statement: &str) -> LakeSqlError {
    LakeSqlError::ReadOnly { statement: statement.chars().take(SHOWN_OF_STATEMENT).collect() }
}

fn refuse_version(name: &ObjectName, version: Option<&TableVersion>) -> Result<(), LakeSqlError> {
    match version {
        Some(version) => {
            let (table, clause) = (name.to_string(), version.to_string());
            Err(LakeSqlError::UnsupportedVersion { table, clause })
        }
        None => Ok(()),
    }
}

const HISTORY: &str = "history";
const CHANGES: &str = "changes";

/// Which of this module's functions a name means, if one.
fn function_of(name: &ObjectName) -> Option<&'static str> {
    let [name] = folded(name).ok()?.try_into().ok()?;
    [HISTORY, CHANGES].into_iter().find(|function| *function == name)
}

fn is_ours(name: &ObjectName) -> bool {
    function_of(name).is_some()
}

/// Puts a plain table in the place of `history('t')` or `changes('t', 3, 5)`, and gives what it refers to.
fn take_function(factor: &mut TableFactor) -> Result<Option<Reference>, LakeSqlError> {
    let written = factor.to_string();
    let TableFactor::Table { name, args, .. } = factor else { return Ok(None) };
    let Some(arguments) = args else { return Ok(None) };
    let Some(function) = function_of(name) else { return Ok(None) };
    let values = match arguments.settings {
        None => arguments.args.iter().map(literal).collect::<Option<Vec<_>>>().unwrap_or_default(),
        Some(_) => Vec::new(),
    };
    let reference = match function {
        HISTORY => history_of(&values).ok_or(LakeSqlError::HistoryOfWhat { written })?,
        _ => changes_of(&values).ok_or(LakeSqlError::ChangesOfWhat { written })?,
    };
    *args = None;
    // Two parts: no WITH query answers to it until it gets its final name.
    let parts_of_none = ["", function].map(|part| ObjectNamePart::Identifier(Ident::with_quote('"', part)));
    *name = ObjectName(parts_of_none.into());
    Ok(Some(reference))
}

fn literal(argument: &FunctionArg) -> Option<&Value> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => Some(&value.value),
        _ => None,
    }
}

fn history_of(arguments: &[&Value]) -> Option<Reference> {
    let [Value::SingleQuotedString(table)] = arguments else { return None };
    let mut name = name_in_text(table)?;
    name.last_mut()?.push_str("_history");
    Some(Reference { name, version: Version::Newest, is_history: true })
}

fn changes_of(arguments: &[&Value]) -> Option<Reference> {
    let [Value::SingleQuotedString(table), Value::Number(from, _), Value::Number(to, _)] = arguments else {
        return None;
    };
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    let name = name_in_text(table)?;
    (from <= to).then_some(Reference { name, version: Version::Changes { from, to }, is_history: false })
}

/// A table's name as it stands in a text: `orders`, `shop.public."Orders"`.
fn name_in_text(text: &str) -> Option<Vec<String>> {
    let dialect = LakeDialect::default();
    let mut parser = Parser::new(&dialect).try_with_sql(text).ok()?;
    let name = parser.parse_object_name(false).ok()?;
    let is_all = parser.peek_token().token == Token::EOF;
    folded(&name).ok().filter(|_| is_all)
}

/// What the parser takes on a table and DataFusion's planner never looks at.
fn refuse_dropped_clauses(factor: &TableFactor, table: &str) -> Result<(), LakeSqlError> {
    let TableFactor::Table {
        with_hints, with_ordinality, partitions, json_path, sample, index_hints, ..
    } = factor
    else {
        return Ok(());
    };
    let clause = if let Some(hint) = with_hints.first() {
        format!("WITH ({hint})")
    } else if *with_ordinality {
        "WITH ORDINALITY".to_owned()
    } else if let Some(partition) = partitions.first() {
        format!("PARTITION ({partition})")
    } else if let Some(path) = json_path {
        path.to_string()
    } else if sample.is_some() {
        "TABLESAMPLE".to_owned()
    } else if !index_hints.is_empty() {
        "an index hint".to_owned()
    } else {
        return Ok(());
    };
    Err(LakeSqlError::UnsupportedTableClause { table: table.to_owned(), clause })
}

fn take_version(factor: &mut TableFactor) -> Result<Version, LakeSqlError> {
    let table = factor_name(factor);
    let TableFactor::Table { version, .. } = factor else { return Ok(Version::Newest) };
    let Some(clause) = version.take() else { return Ok(Version::Newest) };
    let unsupported =
        || LakeSqlError::UnsupportedVersion { table: table.clone(), clause: clause.to_string() };
    match &clause {
        TableVersion::VersionAsOf(number) => version_number(number).ok_or_else(unsupported),
        TableVersion::TimestampAsOf(moment) => Ok(Version::AtTime(Box::new(moment.clone()))),
        TableVersion::Function(Expr::Function(function)) => {
            let (key, value) = at_argument(function).ok_or_else(unsupported)?;
            match key.as_str() {
                "version" => version_number(value).ok_or_else(unsupported),
                "timestamp" => Ok(Version::AtTime(Box::new(value.clone()))),
                "lsn" => lsn(value).ok_or_else(unsupported),
                _ => Err(unsupported()),
            }
        }
        _ => Err(unsupported()),
    }
}

/// The one named argument of `AT (name => value)`.
fn at_argument(function: &Function) -> Option<(String, &Expr)> {
    let [name] = folded(&function.name).ok()?.try_into().ok()?;
    let FunctionArguments::List(list) = &function.args else { return None };
    let plain = list.clauses.is_empty()
        && list.duplicate_treatment.is_none()
        && function.filter.is_none()
        && function.over.is_none()
        && function.within_group.is_empty();
    let [argument] = list.args.as_slice() else { return None };
    if name != "at" || !plain {
        return None;
    }
    match argument {
        FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => Some((fold(name), value)),
        FunctionArg::ExprNamed {
            name: Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), ..
        } => Some((fold(name), value)),
        _ => None,
    }
}

fn version_number(expression: &Expr) -> Option<Version> {
    match expression {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.parse().ok().map(Version::Number),
            _ => None,
        },
        _ => None,
    }
}

/// A position as Postgres prints it, in quotes.
fn lsn(expression: &Expr) -> Option<Version> {
    match expression {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => text.parse().ok().map(Version::AtLsn),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sql: &str) -> Statement {
        let mut statements = Parser::parse_sql(&LakeDialect::default(), sql).unwrap();
        assert_eq!(statements.len(), 1, "{sql}");
        statements.remove(0)
    }

    fn references(sql: &str) -> Vec<(String, Version)> {
        collect(&mut parse(sql))
            .unwrap()
            .into_iter()
            .map(|found| (found.name.join("."), found.version))
            .collect()
    }

    /// A query that either does not parse or is refused by the walk.
    fn refused(sql: &str) -> bool {
        match Parser::parse_sql(&LakeDialect::default(), sql) {
            Err(_) => true,
            Ok(mut statements) => statements.iter_mut().any(|statement| collect(statement).is_err()),
        }
    }

    #[test]
    fn every_supported_version_syntax_is_understood() {
        for sql in [
            "SELECT * FROM t VERSION AS OF 12",
            "SELECT * FROM t VERSION AS OF 12 AS x",
            "SELECT * FROM t AT (VERSION => 12) x",
            "select * from t at (version => 12) where id = 1",
        ] {
            assert_eq!(references(sql), [("t".to_owned(), Version::Number(12))], "{sql}");
        }
        let at_lsn = references("SELECT * FROM t AT (LSN => '0/16B3748') x");
        assert_eq!(at_lsn, [("t".to_owned(), Version::AtLsn(Lsn(0x16B_3748)))]);
        for sql in [
            "SELECT * FROM t TIMESTAMP AS OF '2026-11-20 10:00'",
            "SELECT * FROM t TIMESTAMP AS OF now() - interval '1 hour' x",
            "SELECT * FROM t TIMESTAMP AS OF timestamp '2026-11-20 10:00' WHERE id = 1",
            "SELECT * FROM t AT (TIMESTAMP => '2026-11-20 10:00'::timestamptz)",
            "SELECT * FROM t AT (TIMESTAMP => now())",
        ] {
            assert!(matches!(references(sql).as_slice(), [(_, Version::AtTime(_))]), "{sql}");
        }
    }

    #[test]
    fn version_syntax_of_other_houses_is_refused_and_never_dropped() {
        for sql in [
            "SELECT * FROM t AT (LSN => '16B3748')",
            "SELECT * FROM t AT (LSN => 12)",
            "SELECT * FROM t AT (LSN => '0/16' || 'B')",
            "SELECT * FROM t AT (OFFSET => -60)",
            "SELECT * FROM t AT (VERSION => 1, TIMESTAMP => now())",
            "SELECT * FROM t AT (12)",
            "SELECT * FROM t AT ()",
            "SELECT * FROM t AT (VERSION => 1 + 1)",
            "SELECT * FROM t AT (VERSION => -1)",
            "SELECT * FROM t AT VERSION 12",
            "SELECT * FROM t BEFORE (VERSION => 12)",
            "SELECT * FROM t BEFORE (TIMESTAMP => now())",
            "SELECT * FROM t FOR SYSTEM_TIME AS OF now()",
            "SELECT * FROM t FOR SYSTEM_TIME BETWEEN now() AND now()",
            "SELECT * FROM t FOR SYSTEM_TIME ALL",
            "SELECT * FROM t FOR VERSION AS OF 12",
            "SELECT * FROM t FOR TIMESTAMP AS OF now()",
            "SELECT * FROM t SYSTEM_TIME AS OF now()",
            "SELECT * FROM t VERSION AS OF '12'",
            "SELECT * FROM t VERSION AS OF 1.5",
            "SELECT * FROM t VERSION AS OF -1",
            "SELECT * FROM t VERSION AS OF",
            "SELECT * FROM t VERSION 12",
            "SELECT * FROM t x VERSION AS OF 12",
            "SELECT * FROM t AS x VERSION AS OF 12",
            "SELECT * FROM t AS OF 12",
            "SELECT * FROM t AS OF SYSTEM TIME '-1h'",
            "SELECT * FROM t@v12",
            "SELECT * FROM t CHANGES (INFORMATION => DEFAULT) AT (TIMESTAMP => now())",
            "SELECT * FROM t WITH (versionAsOf = 12)",
            "SELECT * FROM t TABLESAMPLE BERNOULLI (10)",
            "SELECT * FROM (SELECT * FROM t) VERSION AS OF 12",
            "SELECT * FROM (t) VERSION AS OF 12",
            "SELECT * FROM history('t') VERSION AS OF 3",
            "SELECT * FROM history('t', 1)",
            "SELECT * FROM history(t)",
            "SELECT * FROM history('t; drop')",
            "SELECT * FROM history()",
            "SELECT * FROM changes('t', 1, 2) VERSION AS OF 3",
            "SELECT * FROM changes('t', 2, 1)",
            "SELECT * FROM changes('t', 1)",
            "SELECT * FROM changes('t', '1', 2)",
            "SELECT * FROM changes('t', -1, 2)",
            "SELECT * FROM changes(t, 1, 2)",
            "SELECT * FROM changes('t', 1, 2, 3)",
            "SELECT * FROM generate_series(1, 2) VERSION AS OF 12",
            "TABLE t VERSION AS OF 12",
            "TABLE t",
        ] {
            assert!(refused(sql), "{sql}");
        }
    }

    #[test]
    fn a_history_is_a_reference_to_the_table_beside_its_own() {
        let mut statement = parse(
            r#"WITH t_history AS (SELECT 1) SELECT * FROM history('shop.public."T"') h, History('t'), t_history"#,
        );
        let found = collect(&mut statement).unwrap();
        let names: Vec<_> = found.iter().map(|found| (found.name.join("."), found.is_history)).collect();
        assert_eq!(names, [("shop.public.T_history".to_owned(), true), ("t_history".to_owned(), true)]);
        let name = |table: &str| ["shop".to_owned(), "public".to_owned(), table.to_owned()];
        rename(&mut statement, &[name("T_history"), name("t_history")]).unwrap();
        assert!(
            statement
                .to_string()
                .ends_with(r#"FROM "shop"."public"."T_history" h, "shop"."public"."t_history", t_history"#),
            "{statement}"
        );
    }

    #[test]
    fn changes_are_a_reference_to_the_table_with_a_range() {
        let mut statement =
            parse("WITH t AS (SELECT 1) SELECT * FROM changes('t', 3, 5) c, Changes('s.t', 0, 0)");
        let found = collect(&mut statement).unwrap();
        let found: Vec<_> = found.into_iter().map(|found| (found.name.join("."), found.version)).collect();
        let range = |from, to| Version::Changes { from, to };
        assert_eq!(found, [("t".to_owned(), range(3, 5)), ("s.t".to_owned(), range(0, 0))]);
    }

    #[test]
    fn a_version_is_found_wherever_a_table_can_stand() {
        for sql in [
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM t VERSION AS OF 3)",
            "SELECT (SELECT max(id) FROM t VERSION AS OF 3)",
            "SELECT 1 WHERE 1 IN (SELECT id FROM t VERSION AS OF 3)",
            "WITH a AS (SELECT * FROM t VERSION AS OF 3) SELECT * FROM a",
            "SELECT * FROM (SELECT * FROM (SELECT * FROM t VERSION AS OF 3) x) y",
            "SELECT 1 UNION ALL (SELECT id FROM t VERSION AS OF 3)",
            "SELECT 1 ORDER BY (SELECT max(id) FROM t VERSION AS OF 3)",
            "SELECT 1 LIMIT (SELECT max(id) FROM t VERSION AS OF 3)",
            "SELECT * FROM (VALUES ((SELECT 1 FROM t VERSION AS OF 3))) v",
            "SELECT 1 FROM generate_series(1, (SELECT max(id) FROM t VERSION AS OF 3))",
            "SELECT sum(x) FILTER (WHERE x IN (SELECT id FROM t VERSION AS OF 3)) FROM (SELECT 1 x) z",
            "EXPLAIN SELECT * FROM t VERSION AS OF 3",
        ] {
            assert_eq!(references(sql), [("t".to_owned(), Version::Number(3))], "{sql}");
        }
        let joined = references(
            "SELECT * FROM a VERSION AS OF 1 JOIN b VERSION AS OF 2 USING (id), c, LATERAL (SELECT * FROM d VERSION AS OF 4) z",
        );
        let versions: Vec<_> = joined.into_iter().map(|(_, version)| version).collect();
        assert_eq!(versions, [Version::Number(1), Version::Number(2), Version::Newest, Version::Number(4)]);
    }

    #[test]
    fn a_with_query_hides_a_table_only_where_it_is_in_scope() {
        assert_eq!(
            references("WITH t AS (SELECT * FROM t VERSION AS OF 3) SELECT * FROM t"),
            [("t".to_owned(), Version::Number(3))]
        );
        assert_eq!(
            references("SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) x, t"),
            [("t".to_owned(), Version::Newest)]
        );
        assert_eq!(
            references("WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t) SELECT * FROM t"),
            []
        );
        assert_eq!(
            references("WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a, b"),
            [("b".to_owned(), Version::Newest)]
        );
        assert_eq!(
            references("WITH t AS (SELECT 1) SELECT * FROM public.t"),
            [("public.t".to_owned(), Version::Newest)]
        );
        assert!(refused("WITH t AS (SELECT 1) SELECT * FROM t VERSION AS OF 3"));
    }

    #[test]
    fn names_fold_as_in_postgres() {
        let names: Vec<_> = references(r#"SELECT * FROM Shop.PUBLIC."Orders", oRDers"#)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["shop.public.Orders", "orders"]);
    }

    #[test]
    fn renaming_leaves_no_version_behind() {
        let mut statement = parse("SELECT * FROM t VERSION AS OF 3 x JOIN t USING (id)");
        let references = collect(&mut statement).unwrap();
        assert_eq!(references.len(), 2);
        let name = |catalog: &str| [catalog.to_owned(), "public".to_owned(), "t".to_owned()];
        rename(&mut statement, &[name("shop@v3"), name("shop")]).unwrap();
        assert_eq!(
            statement.to_string(),
            r#"SELECT * FROM "shop@v3"."public"."t" x JOIN "shop"."public"."t" USING(id)"#
        );
    }

    #[test]
    fn statements_that_write_are_refused_inside_queries_too() {
        for sql in [
            "SELECT * INTO x FROM t",
            "SELECT * FROM t FOR UPDATE",
            "WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a",
            "WITH a AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM a",
        ] {
            assert!(refused(sql), "{sql}");
        }
    }
}
