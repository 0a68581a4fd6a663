//! What a source's `pg_type` says about its types, and their reduction to [`PgType`].
//!
//! Built-in scalar types are known by their fixed OIDs; arrays, domains and extensions' types are looked
//! up. The type modifier travels along: a domain brings its own, an array's belongs to its elements.

use crate::{MAX_DECIMAL_PRECISION, PgType};
use std::collections::HashMap;

/// A row of `pg_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeEntry {
    /// `oid`
    pub oid: u32,
    /// `typname`
    pub name: String,
    /// `typtype`: `b`ase, `c`omposite, `d`omain, `e`num, `r`ange, `m`ultirange, `p`seudo
    pub kind: char,
    /// `typcategory`
    pub category: char,
    /// `typelem` of a true array (`typcategory` A, `typsubscript` array_subscript_handler), else 0
    pub element: u32,
    /// `typbasetype` of a domain, else 0
    pub base: u32,
    /// `typtypmod` of a domain, else -1
    pub base_typmod: i32,
    /// `typdelim`
    pub delimiter: char,
}

/// How arrays are held (`arrays:` in the configuration).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ArrayForm {
    /// as lists
    #[default]
    Native,
    /// as JSON text
    Json,
}

/// What the configuration says about types.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TypeOptions {
    /// how arrays are held
    pub arrays: ArrayForm,
}

/// A source's types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeCatalog {
    entries: HashMap<u32, TypeEntry>,
}

/// Fixed OIDs of `pg_type.dat`.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT2_VECTOR: u32 = 22;
    pub(super) const INT4: u32 = 23;
    pub(super) const OID: u32 = 26;
    pub(super) const XID: u32 = 28;
    pub(super) const OID_VECTOR: u32 = 30;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const DATE: u32 = 1082;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const NUMERIC: u32 = 1700;
}

/// Domains over domains (over arrays, …) are followed this deep; what is deeper stays text. Postgres
/// allows no circle, but the entries come from outside.
const DEEPEST: usize = 16;

impl TypeCatalog {
    /// A catalog of these types.
    pub fn new(entries: impl IntoIterator<Item = TypeEntry>) -> Self {
        TypeCatalog { entries: entries.into_iter().map(|entry| (entry.oid, entry)).collect() }
    }

    /// Whether a type's row is here. One that is not resolves to text unless it is a built-in scalar.
    pub fn contains(&self, oid: u32) -> bool {
        self.entries.contains_key(&oid)
    }

    /// The type that a domain is made over, however many domains lie between; any other type itself.
    pub fn base_of(&self, oid: u32) -> u32 {
        let mut base = oid;
        for _ in 0..DEEPEST {
            match self.entries.get(&base) {
                Some(entry) if entry.kind == 'd' => base = entry.base,
                _ => break,
            }
        }
        base
    }

    /// What values of a column with this type and type modifier are.
    pub fn resolve(&self, oid: u32, typmod: i32, options: &TypeOptions) -> PgType {
        let resolved = self.native(oid, typmod, DEEPEST);
        match (&resolved, options.arrays) {
            (PgType::Array(_) | PgType::DelimitedArray { .. }, ArrayForm::Json) => {
                PgType::JsonArray(Box::new(resolved))
            }
            _ => resolved,
        }
    }

    fn native(&self, oid: u32, typmod: i32, depth: usize) -> PgType {
        match oid {
            oid::BOOL => return PgType::Bool,
            oid::BYTEA => return PgType::Bytea,
            oid::INT8 => return PgType::Int8,
            oid::INT2 => return PgType::Int2,
            oid::INT4 => return PgType::Int4,
            oid::OID | oid::XID => return PgType::Oid,
            oid::FLOAT4 => return PgType::Float4,
            oid::FLOAT8 => return PgType::Float8,
            oid::DATE => return PgType::Date,
            oid::TIMESTAMP => return PgType::Timestamp,
            oid::TIMESTAMPTZ => return PgType::Timestamptz,
            oid::NUMERIC => return numeric(typmod),
            // Written without braces, and counted from 0: arrays by category only.
            oid::INT2_VECTOR | oid::OID_VECTOR => return PgType::Text,
            _ => {}
        }
        let (Some(entry), Some(depth)) = (self.entries.get(&oid), depth.checked_sub(1)) else {
            return PgType::Text;
        };
        match entry.kind {
            'd' => self.native(entry.base, entry.base_typmod, depth),
            'b' if entry.element != 0 && entry.category == 'A' => self.array(entry, typmod, depth),
            'b' if entry.name == "vector" => PgType::Vector,
            _ => PgType::Text,
        }
    }

    /// `array_out` separates by the element type's delimiter.
    fn array(&self, entry: &TypeEntry, typmod: i32, depth: usize) -> PgType {
        let delimiter = self.entries.get(&entry.element).unwrap_or(entry).delimiter;
        match u8::try_from(delimiter) {
            Ok(b',') => PgType::Array(Box::new(self.native(entry.element, typmod, depth))),
            Ok(delimiter) => PgType::DelimitedArray { delimiter },
            Err(_) => PgType::Text,
        }
    }
}

/// `VARHDRSZ`, which a numeric's type modifier has added to it.
const TYPMOD_OFFSET: i32 = 4;

/// The modifier holds the precision in its upper half and the scale in its lower eleven bits, signed
/// (`numeric.c`, `make_numeric_typmod`).
fn numeric(typmod: i32) -> PgType {
    let Some(packed) = typmod.checked_sub(TYPMOD_OFFSET).filter(|packed| *packed >= 0) else {
        return PgType::Text;
    };
    let precision = packed >> 16 & 0xFFFF;
    let scale = ((packed & 0x7FF) ^ 1024) - 1024;
    let (precision, scale) = if scale < 0 {
        (precision - scale, 0)
    } else if scale > precision {
        (scale, scale)
    } else {
        (precision, scale)
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(precision), Ok(scale)) if precision > 0 && u16::from(precision) <= MAX_DECIMAL_PRECISION => {
            PgType::Decimal { precision, scale }
        }
        _ => PgType::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: TypeOptions = TypeOptions { arrays: ArrayForm::Native };

    fn entry(oid: u32, name: &str, kind: char) -> TypeEntry {
        TypeEntry {
            oid,
            name: name.to_owned(),
            kind,
            category: 'U',
            element: 0,
            base: 0,
            base_typmod: -1,
            delimiter: ',',
        }
    }

    fn array(oid: u32, element: u32) -> TypeEntry {
        TypeEntry { category: 'A', element, ..entry(oid, "_t", 'b') }
    }

    fn domain(oid: u32, base: u32, base_typmod: i32) -> TypeEntry {
        TypeEntry { base, base_typmod, ..entry(oid, "d", 'd') }
    }

    fn typmod(precision: i32, scale: i32) -> i32 {
        (precision << 16 | (scale & 0x7FF)) + 4
    }

    #[test]
    fn numeric_follows_the_contract() {
        let cases = [
            (typmod(10, 2), PgType::Decimal { precision: 10, scale: 2 }),
            (typmod(38, 38), PgType::Decimal { precision: 38, scale: 38 }),
            (typmod(39, 0), PgType::Text),
            (typmod(3, -2), PgType::Decimal { precision: 5, scale: 0 }),
            (typmod(30, -9), PgType::Text),
            (typmod(2, 5), PgType::Decimal { precision: 5, scale: 5 }),
            (typmod(2, 39), PgType::Text),
            (typmod(1000, 1000), PgType::Text),
            (typmod(1, -1000), PgType::Text),
            (-1, PgType::Text),
            (3, PgType::Text),
            (4, PgType::Text),
            (i32::MIN, PgType::Text),
        ];
        for (typmod, expected) in cases {
            assert_eq!(TypeCatalog::default().resolve(1700, typmod, &NATIVE), expected, "{typmod}");
        }
    }

    #[test]
    fn domains_and_arrays_are_followed_with_their_modifier() {
        let numeric = PgType::Decimal { precision: 10, scale: 2 };
        let list = |element| PgType::Array(Box::new(element));
        let catalog = TypeCatalog::new([
            array(1231, 1700),
            domain(100, 1700, typmod(10, 2)),
            domain(101, 100, -1),
            array(102, 101),
            domain(103, 1231, typmod(10, 2)),
            array(104, 103),
        ]);
        assert_eq!(catalog.resolve(101, -1, &NATIVE), numeric);
        assert_eq!((catalog.base_of(101), catalog.base_of(1231), catalog.base_of(7)), (1700, 1231, 7));
        assert_eq!(catalog.resolve(1231, typmod(10, 2), &NATIVE), list(numeric.clone()));
        assert_eq!(catalog.resolve(1231, -1, &NATIVE), list(PgType::Text));
        assert_eq!(catalog.resolve(102, -1, &NATIVE), list(numeric.clone()));
        assert_eq!(catalog.resolve(103, -1, &NATIVE), list(numeric.clone()));
        assert_eq!(catalog.resolve(104, -1, &NATIVE), list(list(numeric)));
    }

    #[test]
    fn a_circle_of_domains_ends_as_text() {
        let catalog = TypeCatalog::new([domain(100, 101, -1), domain(101, 100, -1)]);
        assert_eq!(catalog.resolve(100, -1, &NATIVE), PgType::Text);
    }

    #[test]
    fn everything_without_a_row_in_the_map_is_text() {
        let mut vector = entry(200, "vector", 'b');
        let catalog = TypeCatalog::new([
            vector.clone(),
            entry(201, "mood", 'e'),
            entry(202, "point3", 'c'),
            entry(203, "halfvec", 'b'),
            TypeEntry { element: 21, category: 'A', ..entry(22, "int2vector", 'b') },
        ]);
        assert_eq!(catalog.resolve(200, 384, &NATIVE), PgType::Vector);
        for oid in [22, 201, 202, 203, 25, 2950, 999_999] {
            assert_eq!(catalog.resolve(oid, -1, &NATIVE), PgType::Text, "{oid}");
        }
        vector.kind = 'e';
        assert_eq!(TypeCatalog::new([vector]).resolve(200, -1, &NATIVE), PgType::Text);
    }

    #[test]
    fn a_delimiter_of_its_own_and_json_are_kept_in_the_type() {
        let json = TypeOptions { arrays: ArrayForm::Json };
        let catalog = TypeCatalog::new([
            TypeEntry { delimiter: ';', ..entry(603, "box", 'b') },
            TypeEntry { delimiter: ';', ..array(1020, 603) },
            array(1007, 23),
        ]);
        let boxes = PgType::DelimitedArray { delimiter: b';' };
        assert_eq!(catalog.resolve(1020, -1, &NATIVE), boxes);
        assert_eq!(catalog.resolve(1020, -1, &json), PgType::JsonArray(Box::new(boxes)));
        let ints = PgType::Array(Box::new(PgType::Int4));
        assert_eq!(catalog.resolve(1007, -1, &json), PgType::JsonArray(Box::new(ints)));
        assert_eq!(catalog.resolve(23, -1, &json), PgType::Int4);
    }
}
