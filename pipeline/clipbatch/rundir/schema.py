"""The columns of a part: which there are, of which type, in which order. Knows nothing of how they are filled.

A label set without groups has `label`, `score`, `margin` and, as the layout says, `scores`, `top` or a `score_...` for
each label; `labels` too if an image may have several. In a group, the name of each of these starts with the group's
name and `_`. A run that was planned before there was a `margin` has none. A head has a column for each of its outputs,
or, if these are classes, `NAME_label`, `NAME_score` and `NAME_scores`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from clipbatch.config import OutputSettings
from clipbatch.errors import InputError

if TYPE_CHECKING:
    from clipbatch.config.heads import Head
    from clipbatch.config.label_set import LabelSet


WORDS = pa.dictionary(pa.int32(), pa.string())
# Columns of the manifest that parts do not have: how the input was listed.
LISTING = ("root", "span")
# What an increment records of a file beside its name; `stamps` fills them. Every reader takes these types. In datasets
# of older versions `file_modified` is in nanoseconds and states no time zone.
STAMPS = (
    pa.field("file_bytes", pa.int64()),
    pa.field("file_modified", pa.timestamp("us", "UTC")),
    pa.field("file_sha256", pa.string()),
)
# Labels that the layout wide allows. Readers plan for each column of each file, so thousands of columns are slow.
MAX_WIDE = 2_000

_FIRST = (pa.field("row_id", pa.int64(), nullable=False), pa.field("uri", pa.string(), nullable=False))
_FACTS = (
    pa.field("status", WORDS, nullable=False),
    pa.field("error", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("decoder", WORDS),
)
# The cosine of image and caption, how many tokens the caption has before it is cut, and its embedding.
SIMILARITY, TOKENS, CAPTION_EMBEDDING = "caption_similarity", "caption_tokens", "caption_embedding"
CAPTIONS = (pa.field(SIMILARITY, pa.float32()), pa.field(TOKENS, pa.int32()))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupColumns:
    """The columns of one label group."""

    label: str
    score: str
    # The scores beside the best one: one column, or in the layout wide one for each label.
    scores: tuple[str, ...]
    # All labels of an image; None if an image has one at most.
    labels: str | None
    # The best score minus the second best; None in a run that was planned before there was one.
    margin: str | None
    # All of them, in order.
    fields: tuple[pa.Field, ...]


def layout_of(output: OutputSettings) -> str:
    """list, wide or top-k, as `output` says."""
    return "top-k" if output.best else output.layout


def group_columns(labels: LabelSet, output: OutputSettings) -> list[GroupColumns]:
    """The columns of each label group.

    Raises: InputError for more labels than the layout takes.
    """
    layout = layout_of(output)
    if layout == "wide" and sum(labels.sizes) > MAX_WIDE:
        raise InputError(
            f"layout wide makes a column of each of {sum(labels.sizes)} labels, and readers are slow with more than "
            f"{MAX_WIDE}: use --layout list or --top-k K"
        )
    dtype = pa.float16() if output.scores_dtype == "float16" else pa.float32()
    prefixes = [f"{group.name}_" if group.name else "" for group in labels.groups]
    taken = {field.name for field in (*_FIRST, *_FACTS)} | {"embedding"}
    own = ("label", "score") if labels.scoring is None else ("label", "score", "labels", "margin")
    taken |= {f"{prefix}{name}" for prefix in prefixes for name in own}
    columns = []
    for group, prefix in zip(labels.groups, prefixes, strict=True):
        label, score = f"{prefix}label", f"{prefix}score"
        all_labels = f"{prefix}labels" if group.multiple else None
        margin = None if labels.scoring is None else f"{prefix}margin"
        if layout == "wide":
            fields = [pa.field(name, dtype) for name in _safe_names(f"{prefix}score_", group.names, taken)]
        elif layout == "top-k":
            entry = pa.struct([("label", pa.string()), ("score", dtype)])
            fields = [pa.field(f"{prefix}top", pa.list_(entry))]
        else:
            fields = [pa.field(f"{prefix}scores", pa.list_(dtype, len(group.names)))]
        best = [pa.field(label, WORDS), pa.field(score, pa.float32())]
        best += [pa.field(all_labels, pa.list_(pa.string()))] if all_labels else []
        best += [pa.field(margin, pa.float32())] if margin else []
        columns.append(
            GroupColumns(
                label=label,
                score=score,
                scores=tuple(field.name for field in fields),
                labels=all_labels,
                margin=margin,
                fields=(*best, *fields),
            )
        )
    return columns


def _safe_names(prefix: str, labels: list[str], taken: set[str]) -> Iterator[str]:
    """A column name for each of `labels`: in lower case, with _ in place of all but a to z, 0 to 9 and _, and a number
    from 2 on if the name is in `taken`. Adds each name to `taken`."""
    for label in labels:
        plain = name = prefix + re.sub(r"[^a-z0-9_]", "_", label.lower())
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name)
        yield name


def head_fields(head: Head) -> list[pa.Field]:
    """The columns of a head: one for each output; or, if these are classes, the best one, its score, and all scores."""
    if head.result == "classes":
        scores = pa.list_(pa.float32(), len(head.outputs))
        types = {"label": WORDS, "score": pa.float32(), "scores": scores}
        return [pa.field(f"{head.name}_{name}", kind) for name, kind in types.items()]
    names = [head.name] if len(head.outputs) == 1 else _safe_names(f"{head.name}_", list(head.outputs), set())
    return [pa.field(name, pa.float32()) for name in names]


def check_head_columns(heads: Sequence[Head], others: Sequence[str]) -> None:
    """Whether the columns of a new run's heads have names of their own. others: the names of its other columns.

    Raises: InputError naming the head and the column.
    """
    taken = {name.lower() for name in (*others, *LISTING, *(f.name for f in (*_FIRST, *_FACTS, *STAMPS)), "embedding")}
    for head in heads:
        for field in head_fields(head):
            if field.name.lower() in taken:
                raise InputError(
                    f"--head {head.name}=...: it makes a column {field.name!r}, and there is one of that name already: "
                    "give the head another name"
                )
            taken.add(field.name.lower())


def result_fields(
    groups: list[GroupColumns],
    output: OutputSettings,
    embedding: int,
    heads: Sequence[Head] = (),
    *,
    captions: bool = False,
) -> list[pa.Field]:
    """The columns beside those of the manifest. embedding: its length, if it is written. captions: whether images are
    compared with captions."""
    fields = [*_FACTS, *(field for group in groups for field in group.fields)]
    fields += [field for head in heads for field in head_fields(head)]
    if captions:
        fields += CAPTIONS
    if output.embeddings:
        fields.append(pa.field("embedding", pa.list_(pa.float16(), embedding)))
    if output.embeddings and captions:
        fields.append(pa.field(CAPTION_EMBEDDING, pa.list_(pa.float16(), embedding)))
    return fields


def part_schema(results: list[pa.Field], carried: pa.Schema) -> pa.Schema:
    """The schema of a part. carried: the manifest's schema; the columns of the user's input come last."""
    own = ("row_id", "uri", *LISTING)
    return pa.schema([*_FIRST, *results, *(field for field in carried if field.name not in own)])


def carried_name(name: str, columns: Iterable[str]) -> str | None:
    """The name that the column `name` of the user's input has among `columns`; None if it is not there.

    The listing puts `input_` before a name that the output needs, again and again until the input has no column of that
    name. So of several such names the longest is the one that was given a prefix; the user chose the others.
    """
    columns = list(columns)
    if name in columns:
        return name
    with_prefix = re.compile(f"(?:input_)+{re.escape(name)}")
    return max(filter(with_prefix.fullmatch, columns), key=len, default=None)
