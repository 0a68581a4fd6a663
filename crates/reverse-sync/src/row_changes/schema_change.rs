//! Whether rows written under one schema have a form under a later one.
//!
//! They do when every column that both have kept a type that the later one can hold. A column that came later is
//! null in them, one that went is left out, and a renamed one is the same column, known by its physical name.

use crate::delta_source::Column;
use delta_kernel::schema::{DataType, PrimitiveType};

/// The first column that stands in the way, and why.
pub(crate) fn obstacle(before: &[Column], after: &[Column]) -> Option<(String, String)> {
    after.iter().find_map(|column| {
        let earlier = before.iter().find(|earlier| earlier.physical.name() == column.physical.name())?;
        let reason = match (earlier.is_partition, column.is_partition) {
            (true, false) => Some("it no longer partitions the table".to_owned()),
            (false, true) => Some("it partitions the table now".to_owned()),
            _ => type_obstacle(earlier.physical.data_type(), column.physical.data_type()),
        };
        reason.map(|reason| (column.logical.name().clone(), reason))
    })
}

fn type_obstacle(before: &DataType, after: &DataType) -> Option<String> {
    match (before, after) {
        (DataType::Primitive(before), DataType::Primitive(after)) if widens(before, after) => None,
        (DataType::Struct(before), DataType::Struct(after)) => after.fields().find_map(|field| {
            let earlier = before.field(field.name())?;
            type_obstacle(earlier.data_type(), field.data_type())
        }),
        (DataType::Array(before), DataType::Array(after)) => {
            type_obstacle(before.element_type(), after.element_type())
        }
        (DataType::Map(before), DataType::Map(after)) => type_obstacle(before.key_type(), after.key_type())
            .or_else(|| type_obstacle(before.value_type(), after.value_type())),
        (DataType::Variant(_), DataType::Variant(_)) => None,
        _ => Some(format!("its type was {before} and is {after}")),
    }
}

/// The protocol's "Type Widening", and the same type.
fn widens(before: &PrimitiveType, after: &PrimitiveType) -> bool {
    use PrimitiveType::{Byte, Date, Decimal, Double, Float, Integer, Long, Short, TimestampNtz};
    match (before, after) {
        (Byte, Short | Integer | Long | Double)
        | (Short, Integer | Long | Double)
        | (Integer, Long | Double)
        | (Float, Double)
        | (Date, TimestampNtz) => true,
        (Byte | Short | Integer, Decimal(to)) => to.precision() >= 10 + to.scale(),
        (Long, Decimal(to)) => to.precision() >= 20 + to.scale(),
        (Decimal(from), Decimal(to)) => {
            to.scale() >= from.scale()
                && to.precision().saturating_sub(to.scale()) >= from.precision().saturating_sub(from.scale())
        }
        _ => before == after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use delta_kernel::schema::{StructField, StructType};

    fn column(name: &str, data_type: impl Into<DataType>) -> Column {
        let field = StructField::nullable(name, data_type);
        Column { logical: field.clone(), physical: field, is_partition: false }
    }

    #[test]
    fn added_dropped_and_widened_columns_stand_in_nobodys_way() {
        let before = [column("a", DataType::INTEGER), column("gone", DataType::STRING)];
        let after = [column("a", DataType::LONG), column("new", DataType::STRING)];
        assert_eq!(obstacle(&before, &after), None);
    }

    #[test]
    fn a_type_that_cannot_hold_the_old_values_is_named() {
        let inner = |data_type| StructType::try_new([StructField::nullable("x", data_type)]).unwrap();
        for (before, after) in [
            (column("a", DataType::LONG), column("a", DataType::INTEGER)),
            (column("a", DataType::STRING), column("a", DataType::LONG)),
            (column("a", DataType::decimal(10, 2).unwrap()), column("a", DataType::decimal(10, 3).unwrap())),
            (column("a", inner(DataType::STRING)), column("a", inner(DataType::LONG))),
            (column("a", inner(DataType::STRING)), column("a", DataType::STRING)),
        ] {
            let (name, reason) = obstacle(&[before], &[after]).unwrap();
            assert_eq!(name, "a");
            assert!(reason.contains("its type was"), "{reason}");
        }
    }

    #[test]
    fn a_column_that_begins_to_partition_the_table_stands_in_the_way() {
        let before = column("a", DataType::LONG);
        let after = Column { is_partition: true, ..before.clone() };
        assert!(
            obstacle(std::slice::from_ref(&before), std::slice::from_ref(&after))
                .unwrap()
                .1
                .contains("partitions")
        );
        assert!(obstacle(&[after], &[before]).unwrap().1.contains("no longer"));
    }
}
