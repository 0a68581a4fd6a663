//! Row messages of one table to [`RowChanges`].
//!
//! A builder belongs to one table in one shape. [`ChangeBuilder::bind`] matches a Relation's columns with
//! the schema's by name; then rows go straight from the message into typed columns:
//!
//! ```text
//!   message    id='7'  note=unchanged  card='4111…'  price='9.50'
//!   slots      0       2               excluded      1
//!   columns    id=7    price=9.50      note=null, listed in `unchanged` unless the old row has it
//! ```
//!
//! The invariant: a row is appended whole or not at all. Whatever fails on the way, the builder is what
//! it was before that row, and the rows before it can still be committed.

use crate::column_set::{ColumnSet, DeadLetter, DeadLetters, value_row_error};
use crate::pgoutput::{OldRow, Relation, ReplicaIdentity, TupleData, Value};
use crate::value_display::excerpt;
use crate::{
    BindError, Op, RowChanges, RowError, TableSchema, TypeCatalog, TypeOptions, UnchangedValue,
    Unrepresentable, ValueError,
};
use std::sync::Arc;

/// How a builder treats its table.
#[derive(Debug, Clone, Default)]
pub struct BuilderOptions {
    /// what happens to values that Delta cannot hold
    pub unrepresentable: Unrepresentable,
    /// columns of the source that the lake leaves out, by their name in Postgres
    pub excluded_columns: Vec<String>,
    /// the source's types, with which a Relation's are compared
    pub catalog: Arc<TypeCatalog>,
    /// what the configuration says about types
    pub type_options: TypeOptions,
    /// The key is the whole row, as REPLICA IDENTITY FULL sends it, and rows may be equal. Then nothing depends
    /// on a value of the key being held exactly: what becomes null in a row becomes null in its old image too.
    pub key_is_whole_row: bool,
}

/// Collects the changes of one table.
pub struct ChangeBuilder {
    schema: Arc<TableSchema>,
    options: BuilderOptions,
    /// For each of the Relation's columns; empty until a Relation was bound.
    slots: Vec<Slot>,
    bound: bool,
    rows: ColumnSet,
    old_keys: ColumnSet,
    ops: Vec<Op>,
    unchanged: Vec<UnchangedValue>,
    dead_letters: DeadLetters,
}

/// Where a value of the Relation's column goes.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// position in the schema; `None`: excluded
    column: Option<usize>,
    /// position in the key
    key: Option<usize>,
    /// whether an old key tuple has it
    in_identity: bool,
}

/// What a row replaces.
#[derive(Clone, Copy)]
enum Image<'a> {
    New,
    Changed(OldRow<'a>),
}

impl ChangeBuilder {
    /// An empty builder.
    pub fn new(schema: Arc<TableSchema>, options: BuilderOptions) -> Self {
        let key = schema.key.iter().filter_map(|&at| schema.columns.get(at));
        ChangeBuilder {
            slots: Vec::new(),
            bound: false,
            rows: ColumnSet::new(schema.columns.iter(), schema.arrow_schema()),
            old_keys: ColumnSet::new(key, schema.key_schema()),
            ops: Vec::new(),
            unchanged: Vec::new(),
            dead_letters: DeadLetters::default(),
            options,
            schema,
        }
    }

    /// The shape that rows are built in.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// Takes the Relation that the following rows are in. An error says how the table's shape changed;
    /// the builder then keeps the Relation it had.
    pub fn bind(&mut self, relation: &Relation) -> Result<(), BindError> {
        let table = || format!("{}.{}", self.schema.source.0, self.schema.source.1);
        let mut slots = Vec::with_capacity(relation.columns.len());
        let mut found = vec![false; self.schema.columns.len()];
        for column in &relation.columns {
            let position = self.schema.columns.iter().position(|spec| spec.source_name == column.name);
            let Some((at, spec)) = position.and_then(|at| Some((at, self.schema.columns.get(at)?))) else {
                if !self.options.excluded_columns.contains(&column.name) {
                    return Err(BindError::UnknownColumn { table: table(), column: column.name.clone() });
                }
                slots.push(Slot { column: None, key: None, in_identity: column.is_key });
                continue;
            };
            let resolved =
                self.options.catalog.resolve(column.type_oid, column.typmod, &self.options.type_options);
            if resolved != spec.pg_type {
                return Err(BindError::TypeChanged {
                    table: table(),
                    column: column.name.clone(),
                    expected: spec.pg_type.clone(),
                    found: resolved,
                });
            }
            let key = self.schema.key.iter().position(|&key| key == at);
            slots.push(Slot { column: Some(at), key, in_identity: column.is_key });
            if let Some(found) = found.get_mut(at) {
                *found = true;
            }
        }
        if let Some((spec, _)) = self.schema.columns.iter().zip(&found).find(|(_, found)| !**found) {
            return Err(BindError::MissingColumn { table: table(), column: spec.source_name.clone() });
        }
        self.check_key(relation, &slots, table)?;
        self.slots = slots;
        self.bound = true;
        Ok(())
    }

    /// With REPLICA IDENTITY FULL old rows hold every column, so any of them may be the key.
    fn check_key(
        &self,
        relation: &Relation,
        slots: &[Slot],
        table: impl Fn() -> String,
    ) -> Result<(), BindError> {
        let same = match relation.replica_identity {
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Nothing => self.schema.key.is_empty(),
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                slots.iter().all(|slot| slot.in_identity == slot.key.is_some())
            }
        };
        if same {
            return Ok(());
        }
        let key = self.schema.key.iter().filter_map(|&at| self.schema.columns.get(at));
        let identity = relation.columns.iter().filter(|column| column.is_key);
        Err(BindError::KeyChanged {
            table: table(),
            expected: key.map(|spec| spec.source_name.clone()).collect(),
            found: identity.map(|column| column.name.clone()).collect(),
        })
    }

    /// A new row.
    pub fn insert(&mut self, new: &TupleData<'_>) -> Result<(), RowError> {
        self.whole(|builder| {
            builder.append_row(new, Image::New)?;
            Ok(Op::Insert)
        })
    }

    /// A changed row. With the old key or the old row at hand it is an [`Op::UpdateKey`] if the key differs.
    pub fn update(&mut self, old: &OldRow<'_>, new: &TupleData<'_>) -> Result<(), RowError> {
        self.whole(|builder| {
            builder.need_key()?;
            let op = match old {
                OldRow::Full(old) | OldRow::Key(old) if builder.key_differs(old, new) => {
                    builder.append_old_key(old)?;
                    Op::UpdateKey
                }
                _ => Op::Update,
            };
            builder.append_row(new, Image::Changed(*old))?;
            Ok(op)
        })
    }

    /// A row that went.
    pub fn delete(&mut self, old: &OldRow<'_>) -> Result<(), RowError> {
        self.whole(|builder| {
            builder.need_key()?;
            match old {
                OldRow::Full(old) | OldRow::Key(old) => builder.append_old_key(old)?,
                OldRow::Absent => return Err(RowError::NoOldRow),
            }
            Ok(Op::Delete)
        })
    }

    /// Every row went.
    pub fn truncate(&mut self) {
        self.ops.push(Op::Truncate);
    }

    /// How many operations there are.
    pub fn ops_len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes held: values, offsets, operations and dead letters. Costs a look at each column, not at each row.
    pub fn byte_size(&self) -> usize {
        self.rows.byte_size()
            + self.old_keys.byte_size()
            + size_of_val(self.ops.as_slice())
            + size_of_val(self.unchanged.as_slice())
            + self.dead_letters.byte_size()
    }

    /// Takes out what is there; the builder is empty afterwards and keeps its Relation.
    pub fn finish(&mut self) -> RowChanges {
        RowChanges {
            rows: self.rows.take(),
            old_keys: self.old_keys.take(),
            ops: std::mem::take(&mut self.ops),
            unchanged: std::mem::take(&mut self.unchanged),
        }
    }

    /// Takes out the values that were replaced by null since the last call.
    pub fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        self.dead_letters.take()
    }

    /// Runs one operation and undoes what it left behind if it fails.
    #[inline]
    fn whole(&mut self, append: impl FnOnce(&mut Self) -> Result<Op, RowError>) -> Result<(), RowError> {
        let (rows, keys, unchanged) = (self.rows.rows(), self.old_keys.rows(), self.unchanged.len());
        match append(self) {
            Ok(op) => {
                self.ops.push(op);
                Ok(())
            }
            Err(error) => {
                self.rows.truncate(rows);
                self.old_keys.truncate(keys);
                self.unchanged.truncate(unchanged);
                self.dead_letters.drop_row();
                Err(error)
            }
        }
    }

    fn need_key(&self) -> Result<(), RowError> {
        if self.schema.key.is_empty() { Err(RowError::NoKey) } else { Ok(()) }
    }

    fn check_count(&self, tuple: &TupleData<'_>) -> Result<(), RowError> {
        match (self.bound, self.slots.len(), tuple.len()) {
            (false, ..) => Err(RowError::NotBound),
            (true, expected, found) if expected != found => Err(RowError::ColumnCount { expected, found }),
            _ => Ok(()),
        }
    }

    /// A key value that was not sent did not change.
    fn key_differs(&self, old: &TupleData<'_>, new: &TupleData<'_>) -> bool {
        self.slots
            .iter()
            .zip(old.columns().zip(new.columns()))
            .any(|(slot, (old, new))| slot.key.is_some() && new != Value::Unchanged && old != new)
    }

    fn append_old_key(&mut self, old: &TupleData<'_>) -> Result<(), RowError> {
        self.check_count(old)?;
        for (slot, value) in self.slots.iter().zip(old.columns()) {
            let (Some(key), Some(at)) = (slot.key, slot.column) else { continue };
            let spec = self.schema.columns.get(at);
            let Some(column) = self.old_keys.column_mut(key) else { continue };
            let name = || spec.map(|spec| spec.source_name.clone()).unwrap_or_default();
            match value {
                Value::Text(text) => match column.append_text(text) {
                    Ok(()) => {}
                    // Recorded when the row came; here it only has to look the same.
                    Err(ValueError::Unrepresentable { .. })
                        if self.options.key_is_whole_row
                            && self.options.unrepresentable == Unrepresentable::Null =>
                    {
                        column.append_null();
                    }
                    Err(source) => return Err(value_row_error(spec, excerpt(text), source)),
                },
                Value::Null => column.append_null(),
                Value::Unchanged => return Err(RowError::UnchangedKey { column: name() }),
                Value::Binary(_) => return Err(RowError::BinaryFormat { column: name() }),
            }
        }
        self.old_keys.end_row();
        Ok(())
    }

    fn append_row(&mut self, new: &TupleData<'_>, image: Image<'_>) -> Result<(), RowError> {
        self.check_count(new)?;
        let (mut old, old_is_key) = match image {
            Image::Changed(OldRow::Full(old)) => (Some(old.columns()), false),
            Image::Changed(OldRow::Key(old)) => (Some(old.columns()), true),
            Image::Changed(OldRow::Absent) | Image::New => (None, false),
        };
        let first_unchanged = self.unchanged.len();
        for (slot, value) in self.slots.iter().zip(new.columns()) {
            let old = old.as_mut().and_then(Iterator::next);
            let Some(at) = slot.column else { continue };
            let Some(column) = self.rows.column_mut(at) else { continue };
            let value = match (value, old) {
                // A key tuple's other columns are null and mean nothing.
                (Value::Unchanged, Some(old)) if slot.in_identity || !old_is_key => old,
                (value, _) => value,
            };
            match value {
                Value::Text(text) => {
                    if let Err(failed) = column.append_text(text) {
                        let policy = self.options.unrepresentable;
                        let in_key = slot.key.is_some() && !self.options.key_is_whole_row;
                        self.dead_letters.settle(failed, policy, at, in_key, || excerpt(text)).map_err(
                            |source| value_row_error(self.schema.columns.get(at), excerpt(text), source),
                        )?;
                        column.append_null();
                    }
                }
                Value::Null => column.append_null(),
                Value::Unchanged if slot.key.is_none() && matches!(image, Image::Changed(_)) => {
                    column.append_null();
                    self.unchanged.push(UnchangedValue {
                        row: u32::try_from(self.rows.rows()).map_err(|_| self.batch_full(at))?,
                        column: u32::try_from(at).map_err(|_| self.batch_full(at))?,
                    });
                }
                other => return Err(self.refused(at, other, image)),
            }
        }
        if let Some(added) = self.unchanged.get_mut(first_unchanged..) {
            added.sort_unstable();
        }
        let row = self.rows.rows();
        self.rows.end_row();
        self.dead_letters.end_row(row, || self.rows.key_text(&self.schema.key, row));
        Ok(())
    }

    #[cold]
    fn batch_full(&self, at: usize) -> RowError {
        value_row_error(self.schema.columns.get(at), String::new(), ValueError::BatchFull)
    }

    #[cold]
    fn refused(&self, at: usize, value: Value<'_>, image: Image<'_>) -> RowError {
        let column = self.schema.columns.get(at).map(|spec| spec.source_name.clone()).unwrap_or_default();
        match (value, image) {
            (Value::Unchanged, Image::New) => RowError::UnchangedInsert { column },
            (Value::Unchanged, Image::Changed(_)) => RowError::UnchangedKey { column },
            _ => RowError::BinaryFormat { column },
        }
    }
}

#[cfg(test)]
mod tests;
