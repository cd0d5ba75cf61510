"""List the input: names, no bytes. One lister a kind of input, each yielding Arrow batches.

A further kind of input is one more module with a class like `Lister`, and its line in `LISTERS`. Rows have the columns
`uri` (verbatim as listed), `root` (the absolute folder or url that a relative uri starts from), `span` (where in a
container the image is), and whatever else the input carries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.archives import Archive, ArchiveFolder
from clipbatch.inputs.folders import Directory, ImageFile
from clipbatch.inputs.holding import holdings
from clipbatch.inputs.image_tables import ImageTable
from clipbatch.inputs.lister import LISTED, Lister, check_names, row_of
from clipbatch.inputs.parquet import far_schema
from clipbatch.inputs.patterns import Pattern, is_pattern
from clipbatch.inputs.remote_folders import RemoteFolder, RemoteImage, top
from clipbatch.inputs.sample import Sample
from clipbatch.inputs.table_manifest import TableManifest
from clipbatch.inputs.text_manifest import TextManifest
from clipbatch.storage.uris import is_url

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


def listers(settings: SourceSettings) -> list[Lister]:
    """A lister for each input.

    Raises: InputError for an input that is not there or of no known kind.
    """
    top.cache_clear()
    far_schema.cache_clear()
    holdings.cache_clear()
    return [_lister(text, settings) for text in settings.inputs]


def _lister(text: str, settings: SourceSettings) -> Lister:
    pattern = is_pattern(text)
    kind = None if pattern and is_url(text) else kind_of(text, settings)  # nobody asks a store for a key with braces
    if kind:
        return kind(text, settings)
    if pattern:
        return Pattern(text, settings, kind_of, lambda inputs: Listing(inputs, None, ()))
    raise InputError(
        f"input {text!r} is not there, or is no folder, image, manifest (.txt, .csv, .tsv, .jsonl, .parquet, .arrow), "
        "archive (.tar, .zip) or url: check the name, or use --all-files to take a file whatever its suffix"
    )


def identities(inputs: list[Lister], frozen: Sequence[str] = ()) -> list[str]:
    """What makes each input the same again. frozen: those of the run in hand, which stand for an input too that an
    earlier version took for one of another kind."""
    found = [lister.identity() for lister in inputs]
    for at, before in enumerate(frozen[: len(inputs)]):
        lister = inputs[at]
        if found[at] != before and isinstance(lister, ImageTable) and " root:" in before:
            found[at] = before if lister.former_identity() == before else found[at]
    return found


def kind_of(text: str, settings: SourceSettings) -> type[Lister] | None:
    """The first of `LISTERS` that accepts `text`."""
    return next((kind for kind in LISTERS if kind.accepts(text, settings)), None)


class Listing:
    """All inputs of a run as one listing, with one schema: the listing's own columns, then those that are carried."""

    def __init__(
        self, inputs: list[Lister], limit: int | None, taken: Collection[str], sample: Sample | None = None
    ) -> None:
        """taken: names that a carried column may not have, in any case; `input_` is put before one that has. sample:
        empty; draws from all rows.

        Raises: InputError where two inputs hold columns of the same name whose types do not go together.
        """
        self._inputs, self._limit, self._sample = inputs, limit, sample
        self._taken = {name.lower() for name in (*taken, *LISTED.names)}
        schemas = [(lister.text, pa.schema(self._renamed(lister.fields()))) for lister in inputs]
        self.schema = LISTED
        for text, schema in schemas:
            try:
                self.schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
            except pa.ArrowException as error:
                raise InputError(
                    f"a column of {text} does not go with the other inputs' column of that name: {error}; label them "
                    "in runs of their own, or leave it out with --columns"
                ) from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of all inputs in turn, `limit` at most, or the sample. Raises: InputError where there are none."""
        if self._sample is None:
            yield from self._all_batches()
            return
        for batch in self._all_batches():
            self._sample.add(batch)
        yield from self._sample.batches()

    def _all_batches(self) -> Iterator[pa.RecordBatch]:
        left, found = self._limit, False
        for lister in self._inputs:
            rows = 0
            for batch in lister.batches():
                check_names(batch["uri"], partial(row_of, lister.text), rows)
                rows += batch.num_rows
                if left is not None:
                    batch = batch.slice(0, left)
                    left -= batch.num_rows
                found = found or batch.num_rows > 0
                yield self._aligned(batch, lister.text)
                if left == 0:
                    return
        if not found:
            others = sum(count for what, count in self.passed_over().items() if not what.startswith("("))
            raise InputError(
                f"no images in {', '.join(lister.text for lister in self._inputs[:9])} ({others} other files): "
                "--all-files takes every file, whatever its suffix"
            )

    def passed_over(self) -> Counter[str]:
        """Files that were not taken, by suffix; complete when `batches` has ended."""
        return sum((lister.passed_over for lister in self._inputs), Counter[str]())

    def _renamed(self, fields: list[pa.Field]) -> list[pa.Field]:
        """The carried columns under names that neither ours nor another one of them has."""
        given = {field.name.lower() for field in fields}

        def free(name: str) -> str:
            new = name
            while new.lower() in self._taken or (new != name and new.lower() in given):
                new = f"input_{new}"
            return new

        return [field.with_name(free(field.name)) for field in fields]

    def _aligned(self, batch: pa.RecordBatch, text: str) -> pa.RecordBatch:
        own = len(LISTED)
        if len(self.schema) == own:
            return batch
        found = {field.name: at for at, field in enumerate(self._renamed(list(batch.schema)[own:]), own)}
        carried = []
        for field in list(self.schema)[own:]:
            try:
                column = batch.column(found[field.name]).cast(field.type) if field.name in found else None
            except pa.ArrowInvalid as error:
                raise InputError(
                    f"column {field.name!r} of {text} has to be {field.type}, as the other inputs have it: {error}; "
                    "label them in runs of their own, or leave it out with --columns"
                ) from error
            carried.append(pa.nulls(len(batch), field.type) if column is None else column)
        return pa.record_batch([*batch.columns[:own], *carried], schema=self.schema)
