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
//! A one-part name that a WITH query in scope answers to is no table reference.

use crate::error::LakeSqlError;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart,
    Query, SetExpr, Statement, TableFactor, TableVersion, Value, VisitMut, VisitorMut,
};
use std::ops::ControlFlow;

/// Which state of a table a reference asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Version {
    /// The newest at the query's start.
    Newest,
    /// A Delta version.
    Number(u64),
    /// The newest version at or before a moment, given by an expression without columns.
    AtTime(Box<Expr>),
}

/// One table reference, in the order of the walk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reference {
    /// The name's parts, folded as Postgres folds.
    pub(crate) name: Vec<String>,
    /// The state asked for.
    pub(crate) version: Version,
}

/// Finds every table reference and takes its version clause out of the tree.
pub(crate) fn collect(statement: &mut Statement) -> Result<Vec<Reference>, LakeSqlError> {
    let mut references = Vec::new();
    walk(statement, |factor| {
        let version = take_version(factor)?;
        let TableFactor::Table { name, .. } = factor else { return Ok(()) };
        references.push(Reference { name: folded(name)?, version });
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
            return refuse_function(name, version.as_ref());
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

fn refuse_function(name: &ObjectName, version: Option<&TableVersion>) -> Result<(), LakeSqlError> {
    if let Some(version) = version {
        return Err(LakeSqlError::UnsupportedVersion {
            table: name.to_string(),
            clause: version.to_string(),
        });
    }
    match folded(name)?.as_slice() {
        [function] if function == "history" || function == "changes" => Err(LakeSqlError::NotAvailableYet {
            what: format!("{function}()"),
            instead: "read the table with VERSION AS OF, or its `_history` table where there is one",
        }),
        _ => Ok(()),
    }
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
                "lsn" => Err(LakeSqlError::NotAvailableYet {
                    what: format!("AT (LSN => …) on {table}"),
                    instead: "use AT (VERSION => n) or AT (TIMESTAMP => t)",
                }),
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
