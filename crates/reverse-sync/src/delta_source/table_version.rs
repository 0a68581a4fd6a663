//! One version of a table: its identity, schema and properties, and the readers' view of its columns.
//!
//! A Delta column has two names: the logical one that people use and the physical one that data files and
//! partition values use. They differ under column mapping, which is what makes renaming a column free. The
//! [`Column`] here holds both, so that nobody has to ask for the mapping mode again.
//!
//! Every column is nullable here, whatever the table declares: files from before a column was added, and the
//! rows before a constraint came, hold nulls.

use arrow::datatypes::{Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use delta_kernel::engine::arrow_conversion::TryIntoArrow;
use delta_kernel::schema::{ArrayType, DataType, MapType, SchemaRef, StructField, StructType};
use delta_kernel::snapshot::SnapshotRef;
use delta_kernel::table_features::{ColumnMappingMode, Operation};
use std::collections::HashMap;
use std::sync::Arc;

/// One version of a table.
#[derive(Debug)]
pub struct TableVersion {
    /// The version.
    pub version: u64,
    /// The table's id, which a table made anew in the same folder does not share.
    pub id: String,
    /// The columns under their logical names, with Delta's types, nullability and metadata.
    pub schema: SchemaRef,
    /// The columns that the table is partitioned by, by logical name.
    pub partition_columns: Vec<String>,
    /// The table's properties.
    pub configuration: HashMap<String, String>,
    pub(crate) columns: Vec<Column>,
}

/// A column as readers need it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// Its logical name and type, everything nullable, without metadata.
    pub logical: StructField,
    /// Its name, type and ids in data files.
    pub physical: StructField,
    /// Whether its values stand in the log instead of the files.
    pub is_partition: bool,
}

impl TableVersion {
    pub(crate) fn new(snapshot: &SnapshotRef) -> Result<TableVersion, delta_kernel::Error> {
        let configuration = snapshot.table_configuration();
        // A scan would refuse a feature that it does not know; changes are read without one.
        configuration.ensure_operation_supported(Operation::Scan)?;
        let partition_columns = configuration.logical_partition_columns().to_vec();
        let schema = snapshot.schema();
        let columns = columns(&schema, configuration.column_mapping_mode(), &partition_columns)?;
        Ok(TableVersion {
            version: snapshot.version(),
            id: configuration.metadata().id().to_owned(),
            configuration: configuration.metadata().configuration().clone(),
            schema,
            partition_columns,
            columns,
        })
    }

    /// The Arrow columns of this version's rows.
    pub fn arrow_schema(&self) -> Result<ArrowSchemaRef, arrow::error::ArrowError> {
        arrow_schema(self.columns.iter().map(|column| column.logical.clone()))
    }
}

/// The readers' view of a schema.
pub(crate) fn columns(
    schema: &StructType,
    mode: ColumnMappingMode,
    partition_columns: &[String],
) -> Result<Vec<Column>, delta_kernel::Error> {
    let column = |field: &StructField| {
        Ok(Column {
            logical: relaxed(field, false),
            physical: relaxed(&field.make_physical(mode)?, true),
            is_partition: partition_columns.contains(field.name()),
        })
    };
    schema.fields().map(column).collect()
}

/// The Arrow schema of nullable Delta columns.
pub(crate) fn arrow_schema(
    fields: impl IntoIterator<Item = StructField>,
) -> Result<ArrowSchemaRef, arrow::error::ArrowError> {
    let schema: ArrowSchema = (&StructType::new_unchecked(fields)).try_into_arrow()?;
    Ok(Arc::new(schema))
}

/// The field with nulls allowed everywhere.
fn relaxed(field: &StructField, keep_metadata: bool) -> StructField {
    let relaxed = StructField::nullable(field.name(), relaxed_type(field.data_type(), keep_metadata));
    match keep_metadata {
        true => relaxed.with_metadata(field.metadata().clone()),
        false => relaxed,
    }
}

fn relaxed_type(data_type: &DataType, keep_metadata: bool) -> DataType {
    match data_type {
        DataType::Struct(fields) => {
            let fields = fields.fields().map(|field| relaxed(field, keep_metadata));
            StructType::new_unchecked(fields).into()
        }
        DataType::Array(array) => {
            ArrayType::new(relaxed_type(array.element_type(), keep_metadata), true).into()
        }
        DataType::Map(map) => MapType::new(
            relaxed_type(map.key_type(), keep_metadata),
            relaxed_type(map.value_type(), keep_metadata),
            true,
        )
        .into(),
        // A variant's two parts are never null: what is null is the variant.
        DataType::Primitive(_) | DataType::Variant(_) => data_type.clone(),
    }
}
