"""Find the columns of a Parquet or Arrow file that hold images, by type, by name and by their first values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.inputs.header import looks_like_image
from clipbatch.inputs.lister import is_binary_type, is_text_type
from clipbatch.inputs.parquet import input_errors, schema_of
from clipbatch.storage.tables import arrow_batches, open_parquet

_FORMATS = ("jpg", "jpeg", "png", "webp", "gif")
_NAMES = ("image", "images", "img", "bytes", "image_bytes", "img_bytes", "image_data", "content", "data", *_FORMATS)
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x0a")
# How many values of a column we look at.
_SAMPLE_VALUES = 8
# How many rows we read at a time, and at most, to find values that are not null.
_BATCH_ROWS, _MAX_ROWS = 16, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageColumns:
    """The columns of a file that hold or name images, judged by its first rows."""

    # Columns with one image per cell.
    images: tuple[str, ...]
    # Columns with several images per cell.
    lists: tuple[str, ...]
    # Columns with names of image files.
    names: tuple[str, ...]
    # The first values of every text column.
    first_values: dict[str, tuple[str, ...]]


def likely_image_columns(schema: pa.Schema) -> list[pa.Field]:
    """The columns that probably hold images, judged by type and name alone."""
    return [f for f in schema if is_image_struct(f.type) or (is_binary_type(f.type) and f.name.lower() in _NAMES)]


def may_hold_images(kind: pa.DataType) -> bool:
    """Whether cells of type `kind` may be images or lists of them."""
    inside = _value_type(kind)
    return is_binary_type(kind) or is_image_struct(kind) or (inside is not None and may_hold_images(inside))


def is_image_struct(kind: pa.DataType) -> bool:
    """Whether `kind` is Hugging Face's struct of bytes and path. The path may be missing; other fields may follow."""
    return bool(
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_binary_type(kind.field("bytes").type)
    )


@functools.lru_cache(maxsize=1000)
def find_image_columns(path: str, suffix: str) -> ImageColumns:
    """The image columns of a file, judged by its first rows. Cached until the next listing begins.

    Raises: InputError if the file is damaged.
    """
    schema = schema_of(path, suffix)
    wanted = [f.name for f in schema if may_hold_images(f.type) or is_text_type(f.type)]
    with input_errors(path):
        values = _first_values(path, suffix, schema, wanted)
    kinds = {name: schema.field(name).type for name in wanted}
    texts = {name: tuple(map(str, sample)) for name, sample in values.items() if is_text_type(kinds[name])}
    images = {name: sample for name, sample in values.items() if name not in texts}
    return ImageColumns(
        images=_with_images(images, lambda name: not _is_list(kinds[name])),
        lists=_with_images(images, lambda name: _is_list(kinds[name])),
        names=tuple(name for name, sample in texts.items() if 2 * sum(map(looks_like_image, sample)) > len(sample)),
        first_values=texts,
    )


def _with_images(values: dict[str, list[Any]], wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """The columns in which most values are images."""
    counts = {name: sum(map(_is_image, sample)) for name, sample in values.items() if wanted(name)}
    return tuple(name for name, count in counts.items() if 2 * count > len(values[name]))


def _first_values(path: str, suffix: str, schema: pa.Schema, columns: list[str]) -> dict[str, list[Any]]:
    """The first values of each column that are neither null nor empty: bytes or text, including those in lists."""
    values: dict[str, list[Any]] = {name: [] for name in columns}
    if not columns:
        return values
    read = _parquet_batches if suffix == ".parquet" else _arrow_batches
    for batch in islice(read(path, columns), _MAX_ROWS // _BATCH_ROWS):
        for name in columns:
            cells = _innermost(batch.column(name))
            room = _SAMPLE_VALUES - len(values[name])
            values[name] += [value for value in cells.slice(0, 8 * _SAMPLE_VALUES).to_pylist() if value][:room]
        if all(values.values()):
            break
    return values


def _parquet_batches(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        yield from file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)


def _arrow_batches(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in arrow_batches(path, columns):
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


def _innermost(values: pa.Array) -> pa.Array:
    """The values inside nested lists; of a struct, its field `bytes`."""
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    if pa.types.is_struct(values.type):
        return _innermost(pc.struct_field(values, "bytes"))
    return _innermost(pc.list_flatten(values)) if _is_list(values.type) else values


def _is_list(kind: pa.DataType) -> bool:
    return _value_type(kind) is not None


def _value_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of a list's values; None if `kind` is not a list."""
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return kind.value_type if any(is_list(kind) for is_list in lists) else None


def _is_image(value: object) -> bool:
    """Whether `value` begins like an image file."""
    if not isinstance(value, bytes):
        return False
    return value.startswith(_STARTS) or value[4:8] == b"ftyp" or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
