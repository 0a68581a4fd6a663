"""One text for one value, whichever engine read it.

Every reader hands us Arrow, and so does Spark. Here a cell becomes the same text for all of them, and
`source_sql.py` makes Postgres write that very text of the value it holds. So two cells are equal exactly
when their texts are, and a table's rows can be compared by a checksum that both sides compute.

    value                 text                                    null is None, never a text
    --------------------  --------------------------------------------------------------
    boolean               t, f
    integers              decimal digits
    float, double         sixteen (eight) hex digits of its IEEE 754 bits; NaN is "NaN"
    decimal(p,s)          plain digits with exactly s of them after the point
    date                  days since 1970-01-01, proleptic Gregorian
    timestamp, _ntz       microseconds since 1970-01-01 00:00 (UTC for timestamp)
    string                itself
    binary                \\x and hex digits
    array                 JSON array of its elements' texts and nulls, no spaces
    struct                JSON array of its fields' texts and nulls, in order
    map                   JSON array of [key, value] pairs, sorted by the key's text

Dates and times never pass through Python's `datetime`, which ends at the year 9999 and begins at 1.

Floats go by their bits because Postgres and Python disagree on the shortest digits of a few doubles
(1e23 is one). `readable` turns the bits into Python's `repr` for the people who read a difference.

The checksum of a set of rows: the md5 of each row's cells as one JSON array (UTF-8, no spaces, escapes as
in Postgres's `to_json`), its first eight bytes as an unsigned big-endian number, summed modulo 2**64. It does
not depend on the order of rows, and a row that is there twice counts twice.
"""

import hashlib
import json
import struct
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

# Compact and with the same escapes as Postgres: only quote, backslash and control characters.
encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class UnsupportedType(Exception):
    """An Arrow type that no column of a mirror has."""


def texts(array):
    """The canonical texts of an Arrow array or chunked array, as a list of str or None."""
    if isinstance(array, pa.ChunkedArray):
        return [text for chunk in array.chunks for text in texts(chunk)]
    kind = array.type
    if pt.is_dictionary(kind):
        return texts(array.dictionary_decode())
    if pt.is_null(kind):
        return [None] * len(array)
    if pt.is_boolean(kind):
        return [None if v is None else "t" if v else "f" for v in array.to_pylist()]
    if pt.is_integer(kind):
        return array.cast(pa.string()).to_pylist()
    if pt.is_floating(kind):
        return [_float_bits(v, kind) for v in array.to_pylist()]
    if pt.is_decimal(kind):
        return [_plain(v) for v in array.cast(pa.string()).to_pylist()]
    if pt.is_date32(kind):
        return array.view(pa.int32()).cast(pa.string()).to_pylist()
    if pt.is_timestamp(kind):
        return _microseconds(array).cast(pa.string()).to_pylist()
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return array.to_pylist()
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return [None if v is None else "\\x" + v.hex() for v in array.to_pylist()]
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return _list_texts(array)
    if pt.is_struct(kind):
        return _struct_texts(array)
    if pt.is_map(kind):
        return _map_texts(array)
    raise UnsupportedType(f"no canonical text is defined for the Arrow type {kind}")


def _float_bits(value, kind):
    if value is None:
        return None
    if value != value:
        return "NaN"
    return struct.pack(">f" if pt.is_float32(kind) else ">d", value).hex()


def _plain(text):
    # Arrow writes small decimals in scientific notation.
    return format(Decimal(text), "f") if text is not None and "E" in text else text


def _microseconds(array):
    if array.type.unit != "us":
        # Safe casts: an engine that rounds or overflows is an engine that misses, not a silent equal.
        array = array.cast(pa.timestamp("us", array.type.tz), safe=True)
    return array.view(pa.int64())


def _list_texts(array):
    rows, elements = [], texts(pc.list_flatten(array))
    lengths = pc.list_value_length(array).to_pylist()
    at = 0
    for length in lengths:
        if length is None:
            rows.append(None)
        else:
            rows.append(encode_json(elements[at : at + length]))
            at += length
    return rows


def _struct_texts(array):
    fields = zip(*(texts(field) for field in array.flatten())) if array.type.num_fields else [()] * len(array)
    return [encode_json(row) if valid else None for row, valid in zip(fields, array.is_valid().to_pylist())]


def _map_texts(array):
    # A slice of a map still has all keys and items; its offsets point into them.
    keys, items, offsets = texts(array.keys), texts(array.items), array.offsets.to_pylist()
    return [
        encode_json(sorted(zip(keys[start:end], items[start:end]), key=lambda pair: pair[0])) if valid else None
        for valid, start, end in zip(array.is_valid().to_pylist(), offsets, offsets[1:])
    ]


def readable(text, kind):
    """A canonical text for people. `kind` says what was read: float4, float8, their arrays, or anything else."""
    if text is None or not kind.startswith("float"):
        return text
    if kind.endswith("[]"):
        return encode_json([readable(element, kind[:-2]) for element in json.loads(text)])
    if text == "NaN":
        return "NaN"
    if kind == "float4":
        single = struct.unpack(">f", bytes.fromhex(text))
        # Arrow knows the shortest digits of a single; Python only those of a double.
        number = float(pa.array(single, pa.float32()).cast(pa.string())[0].as_py())
    else:
        (number,) = struct.unpack(">d", bytes.fromhex(text))
    return {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(number, repr(number))


def readable_kind(arrow_type):
    """The `kind` that `readable` wants, from an Arrow type."""
    if pt.is_list(arrow_type) or pt.is_large_list(arrow_type) or pt.is_fixed_size_list(arrow_type):
        return readable_kind(arrow_type.value_type) + "[]"
    if pt.is_float32(arrow_type):
        return "float4"
    return "float8" if pt.is_float64(arrow_type) else "other"


class Checksum:
    """Counts and sums rows; see the module's head for the definition."""

    def __init__(self):
        self.rows = 0
        self.sum = 0

    def add_batch(self, columns, row_count):
        """Adds rows given as one list of canonical texts per column."""
        total = 0
        rows = zip(*columns) if columns else [()] * row_count
        for row in rows:
            digest = hashlib.md5(encode_json(row).encode(), usedforsecurity=False).digest()
            total += int.from_bytes(digest[:8], "big")
        self.rows += row_count
        self.sum = (self.sum + total) % 2**64

    def answer(self):
        """The figures as they travel: the sum as text, because JSON numbers end at 2**53."""
        return {"count": self.rows, "checksum": str(self.sum)}
