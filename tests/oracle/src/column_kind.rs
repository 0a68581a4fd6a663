//! Column types and the values that are hard for each.
//!
//! Values are SQL expressions. `{n}` in them stands for the row's number, so that one expression fills many
//! rows with different values.

use crate::dice::Dice;

/// A column's type: each branch of the contract's type map, and those that Delta takes as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnKind {
    /// As `CREATE TABLE` spells it.
    pub sql: &'static str,
    /// Extremes and other values that something once got wrong; unquoted SQL.
    odd: &'static [&'static str],
    /// A value that differs from row to row.
    usual: &'static str,
}

const fn kind(sql: &'static str, usual: &'static str, odd: &'static [&'static str]) -> ColumnKind {
    ColumnKind { sql, odd, usual }
}

/// Stored out of line and uncompressed: an update that leaves it alone sends no value.
pub const LARGE_TEXT: ColumnKind = kind(
    "text",
    "(SELECT string_agg(md5(x::text || ({n})), '') FROM generate_series(1, 90 + ({n}) % 200) x)",
    &["''", "'short'", "(SELECT string_agg(md5(x::text), '') FROM generate_series(1, 2500) x)"],
);

/// Every type that a random column may have.
pub const KINDS: &[ColumnKind] = &[
    kind("boolean", "({n}) % 2 = 0", &["true", "false"]),
    kind("smallint", "({n}) % 30000", &["32767", "-32768", "0"]),
    kind("integer", "({n}) * 7", &["2147483647", "-2147483648"]),
    kind("bigint", "({n}) * 1000000007::bigint", &["9223372036854775807", "-9223372036854775808"]),
    kind(
        "real",
        "({n}) / 3.0::real",
        &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1e-45", "3.4028235e38"],
    ),
    kind(
        "double precision",
        "({n}) / 7.0::float8",
        &["'NaN'", "'-Infinity'", "'-0'", "5e-324", "1.7976931348623157e308", "1e23"],
    ),
    kind("numeric(12,2)", "({n}) / 8.0", &["9999999999.99", "-9999999999.99", "0", "'NaN'"]),
    kind(
        "numeric(38,9)",
        "({n}) * 1.000000001",
        &["99999999999999999999999999999.999999999", "-0.000000001"],
    ),
    kind("numeric(5,-2)", "({n}) * 100", &["-9999900", "49"]),
    kind(
        "numeric",
        "({n}) / 3.0",
        &["1e400", "-0.000", "'Infinity'", "'NaN'", "12345678901234567890123456789012345678901234567890.5"],
    ),
    kind(
        "text",
        "md5(({n})::text)",
        &[
            "''",
            "'null'",
            "E'\\\\N'",
            "E'tab\\tnew\\nline\\\\ ''quote\" '",
            "'ü € 漢字 😀'",
            "repeat('x', 3000)",
        ],
    ),
    LARGE_TEXT,
    kind("varchar(20)", "'v' || ({n})", &["''", "'zwanzig Zeichen lang'"]),
    kind("char(5)", "'c' || ({n}) % 1000", &["''", "'     '"]),
    kind("uuid", "md5(({n})::text)::uuid", &["'00000000-0000-0000-0000-000000000000'"]),
    kind("json", "json_build_object('n', ({n}))", &["'null'", "'{\"b\":1, \"a\" : [ ] , \"b\":2}'"]),
    kind("jsonb", "jsonb_build_object('n', ({n}))", &["'null'", "'{\"b\":1, \"a\" : [1e400]}'"]),
    kind("bytea", "decode(md5(({n})::text), 'hex')", &["''", "'\\x00ff'"]),
    kind(
        "date",
        "date '2000-01-01' + ({n})",
        &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'0001-01-01'"],
    ),
    kind(
        "timestamp",
        "timestamp '2001-02-03 04:05:06.789' + ({n}) * interval '1 s'",
        &[
            "'infinity'",
            "'294276-12-31 23:59:59.999999'",
            "'4713-01-01 00:00:00 BC'",
            "'1969-12-31 23:59:59.999999'",
        ],
    ),
    kind(
        "timestamptz",
        "timestamptz '2001-02-03 04:05:06.789+02' + ({n}) * interval '1 h'",
        &["'-infinity'", "'1969-12-31 23:59:59.999999+00'", "'0044-03-15 12:00:00+00 BC'"],
    ),
    kind("time", "time '00:00' + ({n}) * interval '1 s'", &["'24:00'", "'00:00:00.000001'"]),
    kind("timetz", "timetz '00:00+02' + ({n}) * interval '1 s'", &["'24:00-15:59'"]),
    kind("interval", "({n}) * interval '1 day 2 hours'", &["'-178000000 years'", "'1 mon -1 day'", "'0'"]),
    kind(
        "integer[]",
        "ARRAY[({n}), NULL, -({n})]",
        &["'{}'", "'{NULL}'", "'{{1,2},{3,4}}'", "'[0:1]={7,8}'"],
    ),
    kind("text[]", "ARRAY['a', ({n})::text]", &["'{}'", "'{\"\",\"null\",NULL,\"a,b\",\"\\\\\\\"\"}'"]),
    kind("numeric(8,3)[]", "ARRAY[({n}) / 7.0]", &["'{}'", "'{99999.999,-0.001}'"]),
    kind("inet", "inet '10.0.0.0' + ({n})", &["'::1'", "'10.1.2.3/8'"]),
    kind("int4range", "int4range(({n}) / 2, ({n}) + 500)", &["'empty'", "'(,)'"]),
    kind("mood", "(ARRAY['sad', 'ok', 'très bien'])[1 + ({n}) % 3]::mood", &["'sad'"]),
];

/// Types that Postgres changes into others by itself, and what they become.
pub const WIDENED: &[(&str, &str)] = &[
    ("smallint", "integer"),
    ("integer", "bigint"),
    ("real", "double precision"),
    ("numeric(12,2)", "numeric(14,4)"),
    ("varchar(20)", "text"),
    ("date", "text"),
    ("uuid", "text"),
    ("boolean", "text"),
    ("mood", "text"),
];

/// Types of which the lake holds every value.
const EXACT: [&str; 9] =
    ["boolean", "smallint", "integer", "bigint", "text", "varchar(20)", "uuid", "bytea", "inet"];

impl ColumnKind {
    /// Text of any kind.
    pub const TEXT: ColumnKind = kind("text", "md5(({n})::text)", &["''"]);

    /// Any type of which the lake holds every value.
    pub fn any_exact(dice: &mut Dice) -> ColumnKind {
        let exact: Vec<ColumnKind> = KINDS.iter().filter(|kind| EXACT.contains(&kind.sql)).copied().collect();
        dice.one_of(&exact)
    }

    /// Any type.
    pub fn any(dice: &mut Dice) -> ColumnKind {
        dice.one_of(KINDS)
    }

    /// What `ALTER COLUMN TYPE` can make of it without `USING`.
    pub fn widened(self) -> Option<ColumnKind> {
        let (_, wider) = WIDENED.iter().find(|(narrow, _)| *narrow == self.sql)?;
        Some(match KINDS.iter().find(|kind| kind.sql == *wider) {
            Some(kind) => *kind,
            None => ColumnKind { sql: wider, odd: &[], ..self },
        })
    }

    /// A value for the row with the number `{n}`: null, odd or usual.
    pub fn value(self, dice: &mut Dice) -> String {
        match dice.between(0, 9) {
            0 | 1 => "NULL".to_owned(),
            2 | 3 if !self.odd.is_empty() => format!("CAST({} AS {})", dice.one_of(self.odd), self.sql),
            _ => {
                // Another salt gives the same row another value.
                let salted = format!("({{n}} + {})", dice.between(0, 90));
                format!("CAST({} AS {})", self.usual.replace("{n}", &salted), self.sql)
            }
        }
    }
}
