//! Random transactions over the planned tables.
//!
//! A transaction is a list of statements between `BEGIN` and its end. Rows are found by their number, so that a
//! statement hits or misses whatever others did; collisions of sessions end in a lock wait, a deadlock or a
//! duplicate key, as in any application, and roll the transaction back.

use crate::column_kind::ColumnKind;
use crate::dice::Dice;
use crate::ledger::{self, Entries};
use crate::table_plan::{TablePlan, quoted};

/// Row numbers of a table: few enough that rows meet several changes.
const ROWS: u32 = 400;

/// A transaction, statement by statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// `BEGIN` first, `COMMIT` or `ROLLBACK` last.
    pub statements: Vec<String>,
}

impl Transaction {
    fn around(mut body: Vec<String>, commits: bool) -> Transaction {
        body.insert(0, "BEGIN".to_owned());
        body.push(if commits { "COMMIT" } else { "ROLLBACK" }.to_owned());
        Transaction { statements: body }
    }

    /// Prepared, then committed: a killed server keeps it prepared until somebody decides.
    fn in_two_phases(mut body: Vec<String>, name: &str) -> Transaction {
        body.insert(0, "BEGIN".to_owned());
        body.push(format!("PREPARE TRANSACTION '{name}'"));
        body.push(format!("COMMIT PREPARED '{name}'"));
        Transaction { statements: body }
    }
}

/// Draws transactions with running numbers.
#[derive(Debug)]
pub struct Work {
    seed: u64,
    drawn: u64,
}

impl Work {
    /// The transactions of one seed.
    pub fn of(seed: u64) -> Work {
        Work { seed, drawn: 0 }
    }

    /// One transaction over some of `tables`; `large` ones change thousands of rows.
    pub fn draw(&mut self, dice: &mut Dice, tables: &[TablePlan], large: bool) -> Transaction {
        let mut body = Vec::new();
        for _ in 0..dice.weighted(&[(3, 1), (4, 3), (2, 8)]) {
            self.change(dice, tables, &mut body);
        }
        if large && let Some(table) = pick(dice, tables) {
            body.push(many(dice, table, 4_000));
        }
        self.finish(dice, body)
    }

    /// A transaction of `rows` new rows in one table.
    pub fn bulk(&mut self, dice: &mut Dice, table: &str, rows: u32) -> Transaction {
        let half = rows / 2;
        let body = vec![
            format!("INSERT INTO {table} SELECT n, md5(n::text) FROM generate_series(1, {half}) n"),
            "SAVEPOINT half".to_owned(),
            format!("UPDATE {table} SET v = 'rolled back' WHERE id % 10 = 0"),
            "ROLLBACK TO half".to_owned(),
            format!("INSERT INTO {table} SELECT n, md5(n::text) FROM generate_series({half} + 1, {rows}) n"),
            format!("DELETE FROM {table} WHERE id % 1000 = 7"),
        ];
        self.finish(dice, body)
    }

    /// Schema changes of a table, one to three, with changes of its rows around and between them, in one transaction or
    /// several; and the table afterwards.
    pub fn reshape(&mut self, dice: &mut Dice, table: &TablePlan) -> (Vec<Transaction>, TablePlan) {
        let changes = |dice: &mut Dice, table: &TablePlan| {
            (0..dice.between(0, 3)).map(|_| change_one(dice, table)).collect::<Vec<_>>()
        };
        let mut table = table.clone();
        let mut parts = vec![changes(dice, &table)];
        let together = dice.chance(50);
        if together && dice.chance(40) {
            // What a savepoint takes back must leave no shape behind either.
            let (other, reshaped) = schema_change(dice, &table);
            let lost = changes(dice, &reshaped);
            parts.extend([vec!["SAVEPOINT d".to_owned()], other, lost, vec!["ROLLBACK TO d".to_owned()]]);
        }
        for _ in 0..dice.weighted(&[(4, 1), (2, 2), (1, 3)]) {
            let (ddl, after) = schema_change(dice, &table);
            parts.push(ddl);
            parts.push(changes(dice, &after));
            table = after;
        }
        let transactions = match together {
            true => vec![self.finish(dice, parts.concat())],
            // A schema change that is rolled back would leave the script's author with the wrong table.
            false => parts.into_iter().map(|body| Transaction::around(body, true)).collect(),
        };
        (transactions, table)
    }

    /// Spreads the ledger's entries over the body and closes it.
    fn finish(&mut self, dice: &mut Dice, mut body: Vec<String>) -> Transaction {
        self.drawn += 1;
        let entries = Entries::draw(dice, self.drawn);
        if body.iter().any(|statement| statement.starts_with("ALTER") || statement.starts_with("CREATE")) {
            // Entries under a lock of the whole table would only wait for others.
            body.extend(entries.statements());
            return Transaction::around(body, true);
        }
        savepoints(dice, &mut body, &entries);
        for entry in entries.statements() {
            let at = outside_savepoints(dice, &body);
            body.insert(at, entry);
        }
        match dice.between(0, 29) {
            0..=2 => Transaction::around(body, false),
            3 => Transaction::in_two_phases(body, &format!("seed {} txn {}", self.seed, self.drawn)),
            _ => Transaction::around(body, true),
        }
    }

    fn change(&mut self, dice: &mut Dice, tables: &[TablePlan], body: &mut Vec<String>) {
        match dice.between(0, 19) {
            0..=2 if self.drawn > 1 => {
                let reach = u32::try_from(self.drawn.min(40)).expect("at most 40");
                let earlier = self.drawn - u64::from(dice.between(0, reach - 1));
                body.push(ledger::touch(dice, earlier));
            }
            3 => body.push(format!("SELECT pg_sleep(0.0{})", dice.between(0, 5))),
            4 if dice.chance(35) => {
                // Several tables at once; foreign keys there are none, so nothing cascades.
                let count = dice.between(1, 2);
                let mut names: Vec<_> =
                    (0..count).filter_map(|_| pick(dice, tables)).map(TablePlan::sql_name).collect();
                names.sort();
                names.dedup();
                if !names.is_empty() {
                    body.push(format!("TRUNCATE {}", names.join(", ")));
                }
            }
            _ => body.extend(pick(dice, tables).map(|table| change_one(dice, table))),
        }
    }
}

fn pick<'a>(dice: &mut Dice, tables: &'a [TablePlan]) -> Option<&'a TablePlan> {
    let last = u32::try_from(tables.len()).expect("a handful of tables").checked_sub(1)?;
    tables.get(dice.between(0, last) as usize)
}

fn change_one(dice: &mut Dice, table: &TablePlan) -> String {
    let name = table.sql_name();
    let n = dice.between(0, ROWS).to_string();
    if !table.follows_updates() {
        let (columns, values) = table.row(dice, &n);
        return format!("INSERT INTO {name} ({columns}) VALUES ({values})");
    }
    match dice.between(0, 12) {
        0..=2 => {
            let (columns, values) = table.row(dice, &n);
            format!("INSERT INTO {name} ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING")
        }
        3 | 4 if !table.key_names().is_empty() => {
            let (columns, values) = table.row(dice, &n);
            let key = table.key_names().join(", ");
            let items = table.changed(dice, &n);
            format!(
                "INSERT INTO {name} ({columns}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET {items}"
            )
        }
        5 | 6 => format!("UPDATE {name} SET {} WHERE n = {n}", table.changed(dice, "n")),
        7 => {
            let to = dice.between(0, ROWS).to_string();
            let free = format!("NOT EXISTS (SELECT FROM {name} WHERE n = {to})");
            format!("UPDATE {name} SET {} WHERE n = {n} AND {free}", table.moved(&to))
        }
        8 | 9 => format!("DELETE FROM {name} WHERE n = {n}"),
        // Leaves everything but one small column alone: large values are sent as unchanged.
        10 => format!("UPDATE {name} SET bucket = bucket WHERE n BETWEEN {n} AND {n} + 20"),
        _ => many(dice, table, 60),
    }
}

/// One statement over many rows.
fn many(dice: &mut Dice, table: &TablePlan, most: u32) -> String {
    let name = table.sql_name();
    let (from, count) = (dice.between(0, ROWS), dice.between(most / 4, most));
    let (every, rest) = (dice.between(2, 9), dice.between(0, 1));
    match dice.between(0, 3) {
        0 if table.follows_updates() => {
            format!("UPDATE {name} SET {} WHERE n % {every} = {rest}", table.changed(dice, "n"))
        }
        1 if table.follows_updates() => format!("DELETE FROM {name} WHERE n % {} = {rest}", every + 1),
        _ => {
            let (columns, values) = table.row(dice, "g");
            let series = format!("generate_series({from}, {from} + {count}) g");
            format!("INSERT INTO {name} ({columns}) SELECT {values} FROM {series} ON CONFLICT DO NOTHING")
        }
    }
}

/// Puts parts of a body under savepoints, some of which are rolled back, some nested.
fn savepoints(dice: &mut Dice, body: &mut Vec<String>, entries: &Entries) {
    for number in 0..dice.weighted(&[(4, 0_usize), (3, 1), (2, 2)]) {
        let from = outside_savepoints(dice, body);
        let longest = u32::try_from(body.len() - from).expect("short");
        let mut to = from + dice.between(0, longest.min(4)) as usize;
        // Savepoints nest: one may enclose another, but never end inside it.
        while depth_at(body, to) > 0 {
            to += 1;
        }
        let name = format!("s{number}");
        if dice.chance(60) {
            body.insert(to, format!("ROLLBACK TO {name}"));
            body.insert(to, entries.phantom(number));
        } else {
            body.insert(to, format!("RELEASE {name}"));
        }
        body.insert(from, format!("SAVEPOINT {name}"));
    }
}

fn depth_at(body: &[String], at: usize) -> usize {
    let count = |prefix: &str| body.iter().take(at).filter(|statement| statement.starts_with(prefix)).count();
    count("SAVEPOINT").saturating_sub(count("ROLLBACK TO") + count("RELEASE"))
}

/// A place in the body where nothing is rolled back later but with the whole transaction.
fn outside_savepoints(dice: &mut Dice, body: &[String]) -> usize {
    let places: Vec<usize> = (0..=body.len()).filter(|at| depth_at(body, *at) == 0).collect();
    dice.one_of(&places)
}

/// A schema change of a table: its statements, and the table afterwards.
fn schema_change(dice: &mut Dice, table: &TablePlan) -> (Vec<String>, TablePlan) {
    let (name, mut after) = (table.sql_name(), table.clone());
    let last = table.columns.len().saturating_sub(1);
    let at = dice.between(0, u32::try_from(last).expect("few columns")) as usize;
    let statement = match dice.between(0, 14) {
        0 | 1 if table.columns.len() > 1 => {
            let dropped = after.columns.remove(at);
            format!("ALTER TABLE {name} DROP COLUMN {}", quoted(&dropped.name))
        }
        2 | 3 if !table.columns.is_empty() => {
            let to = after.new_column_name();
            let from = std::mem::replace(&mut after.columns[at].name, to.clone());
            format!("ALTER TABLE {name} RENAME COLUMN {} TO {}", quoted(&from), quoted(&to))
        }
        4 | 5 if table.columns.get(at).is_some_and(|column| column.kind.widened().is_some()) => {
            let column = &mut after.columns[at];
            column.kind = column.kind.widened().expect("just asked");
            format!("ALTER TABLE {name} ALTER COLUMN {} TYPE {}", quoted(&column.name), column.kind.sql)
        }
        6 if table.columns.len() > 1 => {
            // Two columns that swap their names: whoever went by names would mix them up.
            let other = (at + 1) % table.columns.len();
            let (one, two) = (quoted(&table.columns[at].name), quoted(&table.columns[other].name));
            let aside = quoted(&after.new_column_name());
            let (first, second) = (table.columns[at].name.clone(), table.columns[other].name.clone());
            (after.columns[at].name, after.columns[other].name) = (second, first);
            let rename = |from: &str, to: &str| format!("ALTER TABLE {name} RENAME COLUMN {from} TO {to}");
            return (vec![rename(&one, &aside), rename(&two, &one), rename(&aside, &two)], after);
        }
        7 if !table.columns.is_empty() => {
            // Every row is another one, and no message says so.
            let column = &mut after.columns[at];
            column.kind = ColumnKind::TEXT;
            let name_of_it = quoted(&column.name);
            format!("ALTER TABLE {name} ALTER COLUMN {name_of_it} TYPE text USING md5({name_of_it}::text)")
        }
        // The configuration names tables that are partitioned in the lake, and would not name this one any more.
        8 | 9 if !table.lake_partitioned => {
            after.name = format!("moved {}", dice.between(100, 1_000_000));
            format!("ALTER TABLE {name} RENAME TO {}", quoted(&after.name))
        }
        10 if !table.lake_partitioned && table.schema != "public" => {
            after.schema = "public".to_owned();
            format!("ALTER TABLE {name} SET SCHEMA public")
        }
        _ => {
            let column = after.add_column(dice);
            // A constant is frozen in the catalog; what depends on the row makes Postgres rewrite the table.
            let row = dice.one_of(&["7", "(random() * 100)::integer"]);
            let value = column.kind.value(dice).replace("{n}", row);
            // Postgres takes no subquery there.
            let default = if dice.chance(70) && !value.contains("SELECT") {
                format!(" DEFAULT {value}")
            } else {
                String::new()
            };
            format!("ALTER TABLE {name} ADD COLUMN {} {}{default}", quoted(&column.name), column.kind.sql)
        }
    };
    (vec![statement], after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn savepoints_nest_and_entries_lie_outside_of_them() {
        let mut dice = Dice::of(5);
        let mut work = Work::of(5);
        for number in 0..300 {
            let tables = [TablePlan::draw(&mut dice, number)];
            let transaction = work.draw(&mut dice, &tables, false);
            let mut open = Vec::new();
            for statement in &transaction.statements {
                if let Some(name) = statement.strip_prefix("SAVEPOINT ") {
                    open.push(name);
                } else if let Some(name) =
                    statement.strip_prefix("ROLLBACK TO ").or(statement.strip_prefix("RELEASE "))
                {
                    assert_eq!(open.pop(), Some(name), "{transaction:#?}");
                } else if statement.contains("repeat('note") {
                    assert!(open.is_empty(), "{transaction:#?}");
                }
            }
            assert!(open.is_empty(), "{transaction:#?}");
        }
    }
}
