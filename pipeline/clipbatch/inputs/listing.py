"""List all inputs of a run. For each kind of input there is a lister, which yields Arrow batches of rows.

Rows have the columns `uri` (as listed, unchanged), `root` (the absolute folder or url to which a relative uri refers),
`span` (where the image is in its container), and the columns copied from the input. To add a kind of input, write a
module with a class like `Lister` and add it to `LISTERS`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.archives import Archive, ArchiveFolder
from clipbatch.inputs.column_types import LossError, cast_whole, portable, to_portable
from clipbatch.inputs.folders import Directory, ImageFile
from clipbatch.inputs.holding import find_image_columns
from clipbatch.inputs.image_tables import ImageTable
from clipbatch.inputs.lister import LISTED, Lister, check_names, row_place
from clipbatch.inputs.parquet import remote_schema
from clipbatch.inputs.patterns import Pattern, is_pattern
from clipbatch.inputs.remote_folders import RemoteFolder, RemoteImage, root_entries
from clipbatch.inputs.sample import Sample
from clipbatch.inputs.sidecars import CaptionFiles, check
from clipbatch.inputs.table_manifest import TableManifest
from clipbatch.inputs.text_manifest import TextManifest
from clipbatch.storage.uris import is_url

# What `Lister.identity` returns: a place, and for a file of names a digest and maybe the root of the names.
_IDENTITY = re.compile(r"(.*?)(?: ((?:footers-)?sha256:[0-9a-f]{64})(?: root:(.*))?)?", re.DOTALL)
LISTERS: tuple[type[Lister], ...] = (
    ArchiveFolder,
    ImageTable,
    TableManifest,
    Directory,
    Archive,
    TextManifest,
    ImageFile,
    RemoteImage,
    RemoteFolder,
)
# Those whose images may have files with captions beside them.
_WITH_FILES = (Directory, ImageFile, RemoteImage, RemoteFolder)


def listers(settings: SourceSettings) -> list[Lister]:
    """A lister for each input.

    Raises: InputError if an input does not exist or is of an unknown kind.
    """
    root_entries.cache_clear()
    remote_schema.cache_clear()
    find_image_columns.cache_clear()
    return [_lister(text, settings) for text in settings.inputs]


def _lister(text: str, settings: SourceSettings) -> Lister:
    pattern = is_pattern(text)
    # A url with braces or `*` is always a pattern, and never the name of a key: `kind_of` would ask the store for it.
    kind = None if pattern and is_url(text) else kind_of(text, settings)
    if kind:
        return kind(text, settings)
    if pattern:
        return Pattern(text, settings, kind_of, lambda inputs, carried: Listing(inputs, None, (), carried=carried))
    raise InputError(
        f"input {text!r} does not exist, or is not a folder, image, manifest (.txt, .csv, .tsv, .jsonl, .parquet, "
        ".arrow), archive (.tar, .zip) or url: check the name, or use --all-files to take a file whatever its suffix"
    )


def identities(inputs: list[Lister], frozen: Sequence[str] = ()) -> list[str]:
    """The identity of each input.

    frozen: the identities in the plan of the run to resume. One that still holds is returned as it is there: the same
    place may be named by way of a link, and an earlier version may have taken an image table for a manifest.
    """
    identities = [lister.identity() for lister in inputs]
    for at, before in enumerate(frozen[: len(inputs)]):
        lister = inputs[at]
        if identities[at] != before and isinstance(lister, ImageTable) and " root:" in before:
            identities[at] = before if lister.former_identity() == before else identities[at]
        if _resolved(identities[at]) == _resolved(before):
            identities[at] = before
    return identities


def place_of(identity: str) -> str:
    """Where an input is, by its identity: a url, or a path without links."""
    return _resolved(identity)[0]


def _resolved(identity: str) -> tuple[str, str | None, str | None]:
    """The parts of an identity: its place, the digest, and the root. Links in paths are resolved."""
    match = _IDENTITY.fullmatch(identity)
    assert match
    place, digest, root = match.groups()
    return real_place(place), digest, root and real_place(root)


def real_place(place: str) -> str:
    """`place`, a url, a path or `-`, in a form that is equal for the same place, by whatever links it is named."""
    if place == "-" or is_url(place):
        return place.rstrip("/")
    return os.path.realpath(place)


def kind_of(text: str, settings: SourceSettings) -> type[Lister] | None:
    """The first of `LISTERS` that accepts `text`."""
    return next((kind for kind in LISTERS if kind.accepts(text, settings)), None)


class Listing:
    """All inputs of a run as one listing with one schema: the columns `LISTED`, then those copied from the input."""

    def __init__(
        self,
        inputs: list[Lister],
        limit: int | None,
        reserved: Collection[str],
        sample: Sample | None = None,
        carried: pa.Schema | None = None,
    ) -> None:
        """reserved: names that a copied column must not have, in upper or lower case. Such a column gets the prefix
        `input_`. sample: empty; draws from all rows. carried: the columns that a dataset copies already, whose types
        stay. Those that the inputs do not have become null.

        Raises: InputError if two inputs have columns of the same name with incompatible types.
        """
        self._inputs, self._limit, self._sample = inputs, limit, sample
        self._reserved = {name.lower() for name in (*reserved, *LISTED.names)}
        self._carried = carried or pa.schema([])
        self._cut: Counter[str] = Counter()
        for lister in inputs:
            self._expect(lister)
        schemas = [(lister.text, pa.schema(self._renamed(lister.fields()))) for lister in inputs]
        self.schema = LISTED
        for text, schema in schemas:
            try:
                self.schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
            except pa.ArrowException as error:
                raise InputError(
                    f"the type of a column of {text} does not match the column of that name in the other inputs: "
                    f"{error}; label them in separate runs, or leave it out with --columns"
                ) from error
        names = self.schema.names[len(LISTED) :]
        # Columns of `carried` that the inputs do not have, and columns that it does not have.
        self.absent = [name for name in self._carried.names if name not in names]
        # A column without any value so far gets its type from the first input with values.
        self._carried = pa.schema(
            [
                field.with_type(portable(self.schema.field(field.name).type))
                if pa.types.is_null(field.type) and field.name in names
                else field
                for field in self._carried
            ]
        )
        self.added = [name for name in names if name not in self._carried.names]
        own = [field.with_type(portable(field.type)) for field in self.schema if field.name in self.added]
        self.schema = pa.schema([*LISTED, *self._carried, *own])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of all inputs in turn, at most `limit`, or the sample.

        Raises: InputError if there are none, or no image has the file with its caption that is asked for.
        """
        if self._sample is None:
            yield from self.all_batches()
        else:
            for batch in self.all_batches():
                self._sample.add(batch)
        places = [lister.text for lister in self._inputs if isinstance(lister, (*_WITH_FILES, Pattern))]
        check(self.captions(), ", ".join(places[:9]), self._limit)
        if self._sample is not None:
            yield from self._sample.batches()

    def all_batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of all inputs in turn, at most `limit`, or as many as the listing's. Raises: InputError if there
        are none."""
        left, has_rows = self._limit if limit is None else limit, False
        for lister in self._inputs:
            rows = 0
            # Names are cut before the captions beside them are read, as each is a file of its own.
            batches = lister.batches(left) if isinstance(lister, (*_WITH_FILES, Pattern)) else lister.batches()
            for batch in batches:
                check_names(batch["uri"], partial(row_place, lister.text), rows)
                if left is not None:
                    batch = batch.slice(0, left)
                    left -= batch.num_rows
                has_rows = has_rows or batch.num_rows > 0
                yield self._aligned(batch, lister.text, rows)
                rows += batch.num_rows
                if left == 0:
                    return
        if not has_rows:
            others = sum(count for what, count in self.passed_over().items() if not what.startswith("("))
            raise InputError(
                f"no images in {', '.join(lister.text for lister in self._inputs[:9])} ({others} other files): "
                "--all-files takes every file, whatever its suffix"
            )

    def again(self) -> Iterator[pa.RecordBatch]:
        """As `batches`, once more. Nothing is counted twice."""
        before = [(lister, lister.passed_over.copy()) for lister in self._inputs]
        yield from self.all_batches()
        for lister, count in before:
            lister.passed_over = count

    def captions(self) -> list[CaptionFiles]:
        """What was read beside the images of all inputs."""
        beside = [lister.captions for lister in self._inputs if isinstance(lister, _WITH_FILES)]
        return beside + [each for lister in self._inputs if isinstance(lister, Pattern) for each in lister.captions()]

    def passed_over(self) -> Counter[str]:
        """As `Lister.passed_over`, for all inputs."""
        return sum((lister.passed_over for lister in self._inputs), self._cut)

    def incomplete(self) -> list[str]:
        """As `Lister.incomplete`, for all inputs."""
        return list(dict.fromkeys(place for lister in self._inputs for place in lister.incomplete))

    def _expect(self, lister: Lister) -> None:
        """Tell a lister that finds out types from text which types the dataset has."""
        if len(self._carried) and isinstance(lister, (TableManifest, Pattern)):
            fields = lister.fields()
            names = [(old.name, new.name) for old, new in zip(fields, self._renamed(fields), strict=True)]
            known = {field.name: field.type for field in self._carried if not pa.types.is_null(field.type)}
            lister.expect({old: known[new] for old, new in names if new in known})

    def _renamed(self, fields: list[pa.Field]) -> list[pa.Field]:
        """`fields` with the prefix `input_` where a name is reserved. The new names are unique."""
        names = {field.name.lower() for field in fields}

        def new_name(name: str) -> str:
            new = name
            while new.lower() in self._reserved or (new != name and new.lower() in names):
                new = f"input_{new}"
            return new

        return [field.with_name(new_name(field.name)) for field in fields]

    def _aligned(self, batch: pa.RecordBatch, text: str, first: int) -> pa.RecordBatch:
        """A batch of the input `text`, with the columns of `schema`. first: the number of its first row there."""
        own = len(LISTED)
        if len(self.schema) == own:
            return batch
        index = {field.name: at for at, field in enumerate(self._renamed(list(batch.schema)[own:]), own)}
        carried = []
        for field in list(self.schema)[own:]:
            if field.name in index:
                carried.append(self._typed(batch.column(index[field.name]), field, text, first))
            else:
                carried.append(pa.nulls(len(batch), field.type))
        return pa.record_batch([*batch.columns[:own], *carried], schema=self.schema)

    def _typed(self, values: pa.Array, field: pa.Field, text: str, first: int) -> pa.Array:
        """The column `field` of the input `text`, in its type. Raises: InputError if that loses something."""
        try:
            if values.type == field.type:
                return values
            if portable(values.type) == field.type:
                values, cut = to_portable(values)
                if cut:
                    self._cut[f"(values of column {field.name!r} of {text} whose nanoseconds are cut off)"] += cut
                return values
            return cast_whole(values, field.type)
        except LossError as error:
            where = row_place(text, first + error.row)
            if field.name in self._carried.names:
                raise InputError(
                    f"column {field.name!r} is {field.type} in this dataset, and {where} has {error}: correct the "
                    "value, or label this input into another dataset"
                ) from error
            if portable(values.type) == field.type:
                raise InputError(
                    f"column {field.name!r} is written as {field.type}, and {where} has {error}: leave it out with "
                    "--columns"
                ) from error
            raise InputError(
                f"column {field.name!r} of {text} has to be {field.type}, as in the other inputs, and {where} has "
                f"{error}; label them in separate runs, or leave it out with --columns"
            ) from error
