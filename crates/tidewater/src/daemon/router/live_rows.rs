//! Rows of live tables: into their builders, and out of them in batches or at a cut.

use super::{PENDING_LIMIT, Router, Stage, Table};
use crate::daemon::batch::Batch;
use std::sync::Arc;
use wal_decoder::pgoutput::{OldRow, Relation, TupleData};
use wal_decoder::{BuilderOptions, ChangeBuilder, RowError, TableSchema};

impl Router {
    /// Takes the changes of builders that are full, or of all when together they hold too much.
    pub fn hand_over(&mut self) -> Vec<(u32, Batch)> {
        let mut full = std::mem::take(&mut self.full);
        if self.pending_bytes >= PENDING_LIMIT {
            full = self.tables.iter().filter(|(_, table)| table.dirty).map(|(id, _)| *id).collect();
        }
        let mut batches = std::mem::take(&mut self.ready);
        for relation in full {
            batches.extend(self.take(relation).map(|changes| (relation, changes)));
        }
        batches
    }

    /// How the stream described a relation last.
    pub fn relation(&self, relation: u32) -> Option<&Relation> {
        self.relations.get(&relation).map(|known| &known.relation)
    }

    /// Whether the rows that follow fit a shape.
    pub fn fits(&self, relation: u32, schema: &Arc<TableSchema>, options: &BuilderOptions) -> bool {
        self.relation(relation).is_none_or(|known| {
            in_order(known, schema) && ChangeBuilder::new(schema.clone(), options.clone()).bind(known).is_ok()
        })
    }

    /// Takes a live table's rows in another shape from now on. Those it holds have to be [taken](Self::take)
    /// before. The next cut counts it among the tables with changes.
    pub fn reshape(&mut self, relation: u32, schema: Arc<TableSchema>, options: BuilderOptions) {
        if let Some(Table { stage: Stage::Live { builder, bound, .. }, dirty, .. }) =
            self.tables.get_mut(&relation)
        {
            **builder = ChangeBuilder::new(schema, options);
            *bound = false;
            *dirty = true;
        }
    }

    /// Takes a table's changes out of its builder.
    pub fn take(&mut self, relation: u32) -> Option<Batch> {
        let Some(Table { stage: Stage::Live { builder, .. }, held, origins, .. }) =
            self.tables.get_mut(&relation)
        else {
            return None;
        };
        if builder.is_empty() {
            return None;
        }
        self.pending_bytes = self.pending_bytes.saturating_sub(std::mem::take(held));
        let origins = origins.as_mut().map(std::mem::take).unwrap_or_default();
        Some(Batch { changes: builder.finish(), origins })
    }

    /// Cuts here: every table with changes since the last cut, with those not handed over yet.
    /// Only between transactions, or a Delta version would show part of one.
    pub fn cut(&mut self) -> Vec<(u32, Option<Batch>)> {
        debug_assert!(self.between_transactions());
        self.full.clear();
        self.ops_since_cut = 0;
        self.bytes_since_cut = 0;
        let mut dirty: Vec<u32> = Vec::new();
        for (relation, table) in &mut self.tables {
            if std::mem::take(&mut table.dirty) {
                dirty.push(*relation);
            }
        }
        dirty.into_iter().map(|relation| (relation, self.take(relation))).collect()
    }

    /// Values that the lake could not hold and that became null, since the last call.
    pub fn take_dead_letters(&mut self, relation: u32) -> Vec<wal_decoder::DeadLetter> {
        match self.tables.get_mut(&relation) {
            Some(Table { stage: Stage::Live { builder, .. }, .. }) => builder.take_dead_letters(),
            _ => Vec::new(),
        }
    }
}

/// A row's change, as the message has it.
pub(super) enum Row<'a> {
    Insert(TupleData<'a>),
    Update(OldRow<'a>, TupleData<'a>),
    Delete(OldRow<'a>),
    Truncate,
}

impl Row<'_> {
    pub fn append_to(&self, builder: &mut ChangeBuilder) -> Result<(), RowError> {
        match self {
            Row::Insert(new) => builder.insert(new),
            Row::Update(old, new) => builder.update(old, new),
            Row::Delete(old) => builder.delete(old),
            Row::Truncate => {
                builder.truncate();
                Ok(())
            }
        }
    }
}

/// Whether the columns come in the lake's order, which is the source's. Two that swapped their names do not.
pub(super) fn in_order(relation: &Relation, schema: &TableSchema) -> bool {
    let position = |name: &String| schema.columns.iter().position(|column| column.source_name == *name);
    relation.columns.iter().filter_map(|column| position(&column.name)).is_sorted()
}
