//! Which columns name a row in the stream, by Postgres's rules.
//!
//! For one relation: DEFAULT takes the primary key unless it is deferrable; USING INDEX takes that index if it is still
//! there and valid; FULL takes the whole row; NOTHING nothing.
//!
//! For a partitioned table published as its root, the old tuple is what the *partition* logged, sent under the *root's*
//! relation. So the root's identity is what we read by, and every partition must log at least that much:
//!
//! ```text
//!   root   partition                  published with updates
//!   key    the same columns, or FULL  yes, by the key
//!   key    anything else              no: old keys would be missing, or the application's UPDATE fails
//!   FULL   FULL                       yes
//!   FULL   anything else              no: columns that were never logged would read as null
//! ```

use super::{Rows, SkipReason, SourceColumn};
use tokio_postgres::Row;

/// By what the stream names a row that goes or changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// By the columns with these attribute numbers, in index order.
    Key(Vec<i16>),
    /// By the whole old row.
    Full,
    /// By nothing: only inserts and truncates can be published, and updates of it must never be.
    None(Unusable),
}

/// Why a table's rows cannot be named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no primary key, and no index was chosen.
    #[error("it has no primary key")]
    NoKey,
    /// The primary key is DEFERRABLE, which Postgres does not take as identity.
    #[error("its primary key is deferrable")]
    DeferrableKey,
    /// REPLICA IDENTITY NOTHING.
    #[error("its replica identity is NOTHING")]
    Nothing,
    /// The index of REPLICA IDENTITY USING INDEX was dropped.
    #[error("the index of its replica identity is gone or invalid")]
    IndexGone,
    /// A key column is computed and this server does not publish it.
    #[error("key column `{column}` is generated, and this server does not publish it")]
    UnpublishedColumn {
        /// The column.
        column: String,
    },
    /// A partition logs less than the root's identity.
    #[error("partition {partition} has another replica identity than its root")]
    Partition {
        /// The partition, schema-qualified where necessary.
        partition: String,
    },
}

/// One relation of a partition tree, or an ordinary table.
pub(super) struct Relation {
    oid: u32,
    /// As SQL names it.
    shown: String,
    kind: String,
    persistence: String,
    identity_setting: String,
    /// None before the first ANALYZE.
    pub rows: Option<u64>,
    pub pages: u64,
    indexes: Vec<KeyIndex>,
}

struct KeyIndex {
    is_primary: bool,
    is_identity: bool,
    is_valid: bool,
    is_immediate: bool,
    /// Unique for all rows.
    is_total: bool,
    attnums: Vec<i16>,
    names: Vec<String>,
}

/// One relation's own identity, in names: partitions number their columns as they like.
enum Own<'a> {
    Key(&'a KeyIndex),
    Full,
    None(Unusable),
}

impl Relation {
    /// Adds a row of the query, one per relation and index, to the tree.
    pub(super) fn read_into(tree: &mut Vec<Relation>, row: &Row) -> Rows<()> {
        let oid: u32 = row.try_get(1)?;
        if tree.last().is_none_or(|relation| relation.oid != oid) {
            let kind: String = row.try_get(3)?;
            // A partitioned table holds no rows; its statistics repeat its partitions'.
            let own = |at| -> Rows<i64> { if kind == "p" { Ok(0) } else { row.try_get(at) } };
            // Postgres writes -1 for what was never looked at.
            let (rows, pages) = (u64::try_from(own(6)?).ok(), own(7)?.unsigned_abs());
            tree.push(Relation {
                oid,
                shown: row.try_get(2)?,
                kind,
                persistence: row.try_get(4)?,
                identity_setting: row.try_get(5)?,
                rows,
                pages,
                indexes: Vec::new(),
            });
        }
        let Some(is_primary) = row.try_get::<_, Option<bool>>(8)? else { return Ok(()) };
        let index = KeyIndex {
            is_primary,
            is_identity: row.try_get(9)?,
            is_valid: row.try_get(10)?,
            is_immediate: row.try_get(11)?,
            is_total: row.try_get(12)?,
            attnums: row.try_get(13)?,
            names: row.try_get(14)?,
        };
        if let Some(relation) = tree.last_mut() {
            relation.indexes.push(index);
        }
        Ok(())
    }

    /// A partition whose rows or changes cannot be read makes its root one that cannot be synced.
    pub(super) fn reason_to_skip(&self, root: u32) -> Option<SkipReason> {
        let partition = self.shown.clone();
        match (self.kind.as_str(), self.persistence.as_str()) {
            _ if self.oid == root => None,
            ("f", _) => Some(SkipReason::ForeignPartition { partition }),
            (_, "u") => Some(SkipReason::UnloggedPartition { partition }),
            _ => None,
        }
    }

    fn primary_key(&self) -> Option<&KeyIndex> {
        self.indexes.iter().find(|index| index.is_primary && index.is_valid)
    }

    fn own_identity(&self) -> Own<'_> {
        match self.identity_setting.as_str() {
            "f" => Own::Full,
            "n" => Own::None(Unusable::Nothing),
            "i" => {
                let usable = |i: &&KeyIndex| i.is_identity && i.is_valid && i.is_immediate && i.is_total;
                self.indexes.iter().find(usable).map_or(Own::None(Unusable::IndexGone), Own::Key)
            }
            _ => match self.primary_key() {
                Some(index) if index.is_immediate => Own::Key(index),
                Some(_) => Own::None(Unusable::DeferrableKey),
                None => Own::None(Unusable::NoKey),
            },
        }
    }
}

/// The identity by which a table's rows are published, and its primary key.
pub(super) fn tree_identity(
    root: u32,
    tree: &[Relation],
    columns: &[SourceColumn],
) -> (ReplicaIdentity, Vec<i16>) {
    let Some(root) = tree.iter().find(|relation| relation.oid == root) else {
        return (ReplicaIdentity::None(Unusable::NoKey), Vec::new());
    };
    let primary_key = root.primary_key().map(|index| index.attnums.clone()).unwrap_or_default();
    let identity = match root.own_identity() {
        Own::None(reason) => ReplicaIdentity::None(reason),
        Own::Full => match unlike_root(root, tree, None) {
            Some(partition) => ReplicaIdentity::None(partition),
            None => ReplicaIdentity::Full,
        },
        Own::Key(key) => match unpublished(key, columns).or_else(|| unlike_root(root, tree, Some(key))) {
            Some(reason) => ReplicaIdentity::None(reason),
            None => ReplicaIdentity::Key(key.attnums.clone()),
        },
    };
    (identity, primary_key)
}

fn unpublished(key: &KeyIndex, columns: &[SourceColumn]) -> Option<Unusable> {
    let hidden = columns.iter().find(|column| !column.published && key.attnums.contains(&column.attnum))?;
    Some(Unusable::UnpublishedColumn { column: hidden.name.clone() })
}

/// A partition that logs less than the root's identity: its `key`, or everything.
fn unlike_root(root: &Relation, tree: &[Relation], key: Option<&KeyIndex>) -> Option<Unusable> {
    let logs_enough = |relation: &Relation| match (relation.own_identity(), key) {
        (Own::Full, _) => true,
        (Own::Key(own), Some(key)) => {
            let sorted = |names: &[String]| {
                let mut names = names.to_vec();
                names.sort();
                names
            };
            sorted(&own.names) == sorted(&key.names)
        }
        (Own::Key(_), None) | (Own::None(_), _) => false,
    };
    tree.iter()
        // Inner nodes of the tree hold no rows, so nothing is ever logged under their identity.
        .filter(|relation| relation.oid != root.oid && relation.kind != "p")
        .find(|relation| !logs_enough(relation))
        .map(|relation| Unusable::Partition { partition: relation.shown.clone() })
}
