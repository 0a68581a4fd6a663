//! Comparing a Postgres table with its Delta table, row for row.
//!
//! Checksums first, because they are cheap at any size; only when they differ are rows fetched, to say
//! *where*.

use crate::reader::{Engine, LakeTable, Reader};

/// A table in Postgres.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// A libpq connection string.
    pub dsn: &'a str,
    /// Its schema.
    pub schema: &'a str,
    /// Its name.
    pub table: &'a str,
}

/// The first row that is on one side only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Postgres has it, the lake has not.
    Missing(Vec<Option<String>>),
    /// The lake has it (or has it once more), Postgres has not.
    Extra(Vec<Option<String>>),
}

/// The first difference between two lists of rows that are sorted the same way.
pub fn first_difference(source: &[Vec<Option<String>>], lake: &[Vec<Option<String>>]) -> Option<Difference> {
    let (mut left, mut right) = (source.iter().peekable(), lake.iter().peekable());
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => return None,
            (Some(row), None) => return Some(Difference::Missing((*row).clone())),
            (None, Some(row)) => return Some(Difference::Extra((*row).clone())),
            (Some(one), Some(other)) if one < other => return Some(Difference::Missing((*one).clone())),
            (Some(one), Some(other)) if one > other => return Some(Difference::Extra((*other).clone())),
            (Some(_), Some(_)) => {
                left.next();
                right.next();
            }
        }
    }
}

/// Fails, naming the first differing row, unless `engine` reads exactly the source's rows. Gives how many they are.
pub async fn assert_equal(reader: &mut Reader, engine: Engine, source: &Source<'_>, lake: &LakeTable) -> u64 {
    let Source { dsn, schema, table } = *source;
    let expected = reader.source_checksum(dsn, schema, table).await;
    let found = reader.checksum(engine, lake).await;
    if expected == found {
        return expected.0;
    }
    let mut in_source = reader.source_rows(dsn, schema, table).await;
    let mut in_lake = reader.rows(engine, lake).await;
    in_source.sort();
    in_lake.sort();
    let difference = first_difference(&in_source, &in_lake);
    panic!(
        "{engine:?} reads {schema}.{table} differently: {} rows in Postgres, {} in the lake; first: {difference:?}",
        expected.0, found.0
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str]) -> Vec<Vec<Option<String>>> {
        texts.iter().map(|text| vec![Some((*text).to_owned())]).collect()
    }

    #[test]
    fn equal_tables_have_no_difference() {
        assert_eq!(first_difference(&rows(&["a", "b"]), &rows(&["a", "b"])), None);
    }

    #[test]
    fn a_missing_an_extra_and_a_doubled_row_are_each_found() {
        let row = |text: &str| rows(&[text]).remove(0);
        assert_eq!(first_difference(&rows(&["a", "b"]), &rows(&["a"])), Some(Difference::Missing(row("b"))));
        assert_eq!(first_difference(&rows(&["b"]), &rows(&["a", "b"])), Some(Difference::Extra(row("a"))));
        assert_eq!(first_difference(&rows(&["a"]), &rows(&["a", "a"])), Some(Difference::Extra(row("a"))));
    }

    #[test]
    fn null_and_empty_text_are_different() {
        let null = vec![vec![None]];
        assert_eq!(first_difference(&rows(&[""]), &null), Some(Difference::Extra(vec![None])));
    }
}
