"""What the lake should hold, asked of Postgres itself.

The contract's type map, written a second time and from the other end: not by decoding what Postgres sends, but
as one SQL expression per column that makes Postgres write the canonical text (see `canonical_text.py`) of the
value that a Delta reader has to see. It shares no code with the decoder, so neither repeats the other's mistakes.

    numeric(10,2)   CASE WHEN "price" NOT IN ('NaN', ...) THEN "price"::text END
    timestamptz     CASE WHEN isfinite("at") AND ... THEN (extract(epoch from "at") * 1000000)::bigint::text END
    anything else   format('%s', "tags")      its output function, not its cast to text: char(n) and inet differ

Names of columns in the lake are worked out here too.
"""

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass

# The settings of every session at the source: they decide how Postgres writes interval, money and the rest.
SESSION = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    # Nothing here may hang a test run.
    "statement_timeout": "300s",
    "lock_timeout": "30s",
}

# A Delta timestamp counts microseconds since 1970 in 64 bits: it ends here, Postgres's 30 years later.
LAST_TIMESTAMP = "294247-01-10 04:00:54.775807"

# Types whose cast to text is the canonical text.
_PLAIN = {"int2", "int4", "int8", "oid", "xid"}

# The contract's table, but for numeric, domains and arrays. What is not here is a string.
_DELTA_TYPES = {
    "bool": "boolean",
    "int2": "short",
    "int4": "integer",
    "int8": "long",
    "oid": "long",
    "xid": "long",
    "float4": "float",
    "float8": "double",
    "date": "date",
    "timestamp": "timestamp_ntz",
    "timestamptz": "timestamp",
    "bytea": "binary",
}


@dataclass(frozen=True)
class SourceColumn:
    name: str
    """As Postgres has it."""
    lake_name: str
    """As the lake has it."""
    kind: str
    """The type behind domains: `numeric`, `int4[]`; what `canonical_text.readable` wants."""
    delta_type: str
    """The type that the lake's column must have, as Delta's schema spells it."""
    expression: str
    """Its canonical text, in SQL over the table."""
    key: bool
    """Whether it belongs to the primary key."""


@contextmanager
def connect(dsn):
    """A session with the settings of the sync, inside one repeatable read transaction."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        for name, value in SESSION.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield connection


_COLUMNS = """
SELECT a.attname, a.atttypid::bigint, a.atttypmod,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey))
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_TYPES = """
SELECT t.oid::bigint, t.typname, t.typtype, t.typbasetype::bigint, t.typtypmod,
       CASE WHEN t.typcategory = 'A' AND t.typsubscript = 'array_subscript_handler'::regproc
            THEN t.typelem::bigint ELSE 0 END
FROM pg_type t
"""


def columns(connection, schema, table):
    """The columns of one table, in order."""
    found = connection.execute(_COLUMNS, (schema, table)).fetchall()
    if not found:
        raise LookupError(f"Postgres has no table {schema}.{table}, or it has no columns")
    types = {row[0]: row[1:] for row in connection.execute(_TYPES).fetchall()}
    lake_names = lake_column_names([row[0] for row in found])
    described = []
    for (name, oid, typmod, key), lake_name in zip(found, lake_names):
        kind, delta_type, expression = _typed(types, oid, typmod, quoted(name))
        described.append(SourceColumn(name, lake_name, kind, delta_type, expression, key))
    return described


def _typed(types, oid, typmod, value):
    """The type behind the domains, its Delta type, and the canonical text of `value`."""
    name, typtype, base, base_typmod, element = types[oid]
    while typtype == "d":
        # A domain's own modifier counts; a column over a domain can have none.
        oid, typmod = base, base_typmod
        name, typtype, base, base_typmod, element = types[oid]
    if name == "vector":
        return "float4[]", "array<float>", _array(value, f"{value}::real[]", _scalar("float4", -1, "element"))
    if element:
        kind, delta_type, expression = _typed(types, element, typmod, "element")
        if kind.endswith("[]"):
            # An array of a domain over an array: the one way to nest them. The contract has no such type.
            return "text", "string", _written(value)
        one_dimension = f"coalesce(array_ndims({value}), 1) = 1 AND coalesce(array_lower({value}, 1), 1) = 1"
        return f"{kind}[]", f"array<{delta_type}>", f"CASE WHEN {one_dimension} THEN {_array(value, value, expression)} END"
    return name, _delta_type(name, typmod), _scalar(name, typmod, value)


def _delta_type(name, typmod):
    if name == "numeric":
        precision, scale = _decimal(typmod) or (None, None)
        return "string" if precision is None else f"decimal({precision},{scale})"
    return _DELTA_TYPES.get(name, "string")


def _array(value, unnested, element_expression):
    # unnest in the select list, not in FROM: there an array of a composite type would fall into its fields.
    elements = f"SELECT unnest({unnested}) AS element, generate_subscripts({unnested}, 1) AS at"
    # One element without a place in Delta, and the array has none: a null among the others would be a lie.
    whole = "count(element) = count(written)"
    return (
        f"CASE WHEN {value} IS NOT NULL THEN (SELECT CASE WHEN {whole}"
        f" THEN coalesce(to_json(array_agg(written ORDER BY at))::text, '[]') END"
        f" FROM (SELECT at, element, {element_expression} AS written FROM ({elements}) AS elements) AS texts) END"
    )


def _scalar(name, typmod, value):
    if name == "bool":
        return f"CASE {value} WHEN true THEN 't' WHEN false THEN 'f' END"
    if name in _PLAIN:
        return f"{value}::text"
    if name in ("float4", "float8"):
        return f"CASE WHEN {value} = 'NaN' THEN 'NaN' ELSE encode({name}send({value}), 'hex') END"
    if name == "numeric":
        return _numeric(typmod, value)
    if name == "date":
        return f"CASE WHEN isfinite({value}) THEN ({value} - date '1970-01-01')::text END"
    if name in ("timestamp", "timestamptz"):
        representable = f"isfinite({value}) AND {value} <= {name} '{LAST_TIMESTAMP}'"
        return f"CASE WHEN {representable} THEN (extract(epoch FROM {value}) * 1000000)::bigint::text END"
    if name == "bytea":
        return f"'\\x' || encode({value}, 'hex')"
    return _written(value)


def _numeric(typmod, value):
    if _decimal(typmod):
        return f"CASE WHEN {value} NOT IN ('NaN', 'Infinity', '-Infinity') THEN {value}::text END"
    return _written(value)


def _decimal(typmod):
    """Precision and scale of the Delta decimal for a numeric's modifier; None where it has to be a string."""
    if typmod < 0:
        return None
    precision, scale = (typmod - 4) >> 16 & 0xFFFF, (typmod - 4) & 0x7FF
    scale -= 2048 if scale >= 1024 else 0
    digits, kept = (precision - scale, 0) if scale < 0 else (max(precision, scale), scale)
    return (digits, kept) if digits <= 38 else None


def _written(value):
    # format() calls the output function. It writes null as nothing, hence the CASE; and IS NOT NULL alone
    # would be false for a composite with a null field.
    return f"CASE WHEN NOT ({value} IS NOT DISTINCT FROM NULL) THEN format('%s', {value}) END"


def quoted(name):
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def lake_column_names(names):
    """The contract's column names: some characters become `_`, later ones equal ignoring case get a suffix."""
    taken, chosen = set(), []
    for name in names:
        clean = re.sub(r"[ ,;{}()\n\t=]", "_", name)
        if clean.lower() in taken:
            clean += name_suffix(name)
        taken.add(clean.lower())
        chosen.append(clean)
    return chosen


def name_suffix(name):
    """What tells the later of two equal names apart."""
    return "_" + hashlib.sha256(name.encode()).hexdigest()[:6]


def folder_name(name):
    """The contract's folder name of a database, schema or table, unless an earlier one has it already."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def rows_query(columns, schema, table):
    """The query whose columns are the canonical texts."""
    chosen = ", ".join(f"{column.expression} AS {quoted(column.lake_name)}" for column in columns)
    return f"SELECT {chosen} FROM {quoted(schema)}.{quoted(table)}"


def checksum_query(columns, schema, table):
    """The query whose one row is the table's count and checksum, the same figures as `Checksum` gives."""
    cells = ", ".join(column.expression for column in columns)
    row = f"to_json(ARRAY[{cells}]::text[])::text"
    # bit(64) to bigint is signed: the sum may be negative, and so may Postgres's remainder.
    number = f"('x' || substr(md5({row}), 1, 16))::bit(64)::bigint::numeric"
    modulus = 2**64
    return (
        f"SELECT count(*), mod(mod(coalesce(sum({number}), 0), {modulus}) + {modulus}, {modulus})::text"
        f" FROM {quoted(schema)}.{quoted(table)}"
    )
