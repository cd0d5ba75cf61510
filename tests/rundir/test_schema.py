"""The columns of every layout: their names and types, and what is refused."""

from typing import Any

import pyarrow as pa
import pytest

from clipbatch.config import OutputSettings
from clipbatch.config.labels import LabelGroup, LabelSet
from clipbatch.errors import InputError
from clipbatch.rundir.schema import WORDS, carried_name, group_columns, part_schema, result_fields


def _labels(**groups: list[str]) -> LabelSet:
    """A label set with these groups; `_` is a group without a name."""
    return LabelSet(
        groups=tuple(
            LabelGroup(name=name.strip("_"), phrases={n: [n] for n in names}, templates=["{}"])
            for name, names in groups.items()
        )
    )


def _names(labels: LabelSet, **output: Any) -> list[str]:
    return [field.name for group in group_columns(labels, OutputSettings(**output)) for field in group.fields]


def test_without_groups_columns_have_plain_names() -> None:
    labels = _labels(_=["cat", "dog"])
    assert _names(labels) == ["label", "score", "scores"]
    assert _names(labels, layout="top-k") == _names(labels, top_k=1) == ["label", "score", "top"]
    assert _names(labels, layout="wide") == ["label", "score", "score_cat", "score_dog"]


def test_groups_columns_begin_with_their_name() -> None:
    labels = _labels(kind=["invoice", "letter"], safe=["safe", "unsafe"])
    assert _names(labels) == ["kind_label", "kind_score", "kind_scores", "safe_label", "safe_score", "safe_scores"]
    assert _names(labels, layout="wide")[2:4] == ["kind_score_invoice", "kind_score_letter"]
    assert _names(labels, top_k=2)[2] == "kind_top"


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["Red Fox", "a-b", "x_1"], ["score_red_fox", "score_a_b", "score_x_1"]),
        (["a b", "a-b", "A_B"], ["score_a_b", "score_a_b_2", "score_a_b_3"]),
        (["a b", "a b 2", "a-b"], ["score_a_b", "score_a_b_2", "score_a_b_3"]),
        (["猫", "犬", "é"], ["score__", "score___2", "score___3"]),
        (["İ", "ẞ"], ["score_i_", "score__"]),
    ],
)
def test_wide_columns_have_names_that_need_no_quotes(names: list[str], columns: list[str]) -> None:
    (group,) = group_columns(_labels(_=names), OutputSettings(layout="wide"))
    assert list(group.scores) == columns


def test_wide_columns_of_different_groups_never_share_a_name() -> None:
    labels = _labels(a=["score x", "label"], a_score=["x", "y"])
    names = _names(labels, layout="wide")
    assert len(set(names)) == len(names)
    assert names == [
        *("a_label", "a_score", "a_score_score_x", "a_score_label_2"),
        *("a_score_label", "a_score_score", "a_score_score_x_2", "a_score_score_y"),
    ]


def test_wide_with_too_many_labels_is_refused_with_the_remedy() -> None:
    labels = _labels(a=[f"a{n}" for n in range(1_000)], b=[f"b{n}" for n in range(1_000)])
    assert len(_names(labels, layout="wide")) == 2_004
    more = _labels(_=[f"a{n}" for n in range(2_001)])
    with pytest.raises(InputError, match=r"a column of each of 2001 labels.* more than 2000: use --layout list"):
        group_columns(more, OutputSettings(layout="wide"))
    assert _names(more) == ["label", "score", "scores"]


@pytest.mark.parametrize(("dtype", "kind"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_the_dtype_is_that_of_all_scores_but_the_best(dtype: Any, kind: pa.DataType) -> None:
    labels = _labels(_=["cat", "dog"])
    expected = {
        "list": pa.list_(kind, 2),
        "wide": kind,
        "top-k": pa.list_(pa.struct([("label", pa.string()), ("score", kind)])),
    }
    for layout, scores in expected.items():
        (group,) = group_columns(labels, OutputSettings(layout=layout, scores_dtype=dtype))  # type: ignore[arg-type]
        types = {field.name: field.type for field in group.fields}
        assert (types["label"], types["score"]) == (WORDS, pa.float32())
        assert {types[name] for name in group.scores} == {scores}


def test_a_part_has_the_rows_first_and_carried_columns_last() -> None:
    output = OutputSettings(embeddings=True)
    results = result_fields(group_columns(_labels(_=["cat", "dog"]), output), output, 4)
    listed = pa.schema([("row_id", pa.int64()), ("uri", pa.string()), ("root", WORDS), ("span", pa.int64())])
    schema = part_schema(results, pa.schema([*listed, pa.field("price", pa.decimal128(9, 2))]))
    assert schema.names == [
        *("row_id", "uri", "status", "error", "width", "height", "decoder", "label", "score", "scores", "embedding"),
        "price",
    ]
    assert schema.field("embedding").type == pa.list_(pa.float16(), 4)
    assert schema.field("price").type == pa.decimal128(9, 2)


@pytest.mark.parametrize(
    ("columns", "carried"),
    [
        (["label", "input_label"], "label"),
        (["input_label"], "input_label"),
        (["input_label", "input_input_label"], "input_input_label"),  # the user has a column input_label
        (["labels", "input_labels", "my_input_label", "input_Label", "xinput_label"], None),
    ],
)
def test_the_column_of_the_input_is_the_one_that_was_given_a_prefix(columns: list[str], carried: str | None) -> None:
    assert carried_name("label", columns) == carried
    assert carried_name("label", columns[::-1]) == carried
