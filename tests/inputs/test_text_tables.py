"""CSV and JSON lines: all values decide the types, and errors name the line."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.storage.uris import path_of
from tests.support.listing import carried, list_inputs, refused, write


def test_a_csv_column_has_the_first_type_that_holds_all_of_its_values(tmp_path: Path) -> None:
    lines = 60_000  # more than a block
    last = {
        "whole": "-1", "real": "1e3", "nulls": "NA", "late": "x", "empty": "", "codes": "007", "long": "1" * 25,
        "hash": str(2**64 - 1), "flag": "false", "mixed": "true", "time": "2026-01-02 03:04:05.5", "zoned":
        "2026-01-02T03:04:05Z", "words": "null",
    }  # fmt: skip
    first = {
        "whole": "1", "real": "1", "nulls": "1", "late": "1", "empty": "", "codes": "8", "long": "1",
        "hash": "1", "flag": "TRUE", "mixed": "1.5", "time": "2026-01-02 03:04:05", "zoned": "2026-01-02T03:04:05Z",
        "words": "NA",
    }  # fmt: skip
    assert first.keys() == last.keys()
    body = ("x.jpg," + ",".join(first.values()) + "\n") * lines
    path = write(tmp_path / "m.csv", "path," + ",".join(first) + "\n" + body + "x.jpg," + ",".join(last.values()))
    found = list_inputs(path)
    types = {field.name: str(field.type) for field in found.schema if field.name in first}
    assert types == {
        "whole": "int64", "real": "double", "nulls": "int64", "late": "string", "empty": "string", "codes": "string",
        "long": "string", "hash": "uint64", "flag": "bool", "mixed": "string", "time": "timestamp[us]",
        "zoned": "timestamp[us, tz=UTC]", "words": "string",
    }  # fmt: skip
    assert found.num_rows == lines + 1
    assert found["nulls"].null_count == 1
    assert found["empty"].null_count == lines + 1
    assert found["late"][0].as_py() == "1"
    assert found["hash"][lines].as_py() == 2**64 - 1
    assert found["words"].null_count == 0


def test_jsonl_types_are_decided_by_all_lines_and_a_key_may_come_late(tmp_path: Path) -> None:
    def line(number: int) -> dict[str, Any]:
        last = number == 119_999
        late = {"late": {"deep": [1]}} if last else {"when": "2026-01-02T03:04:05"}
        return {"uri": f"{number}.jpg", "n": 0.5 if last else 1, "text": "x" if last else "2026-01-02", **late}

    path = write(tmp_path / "m.jsonl", "\n\n".join(json.dumps(line(n)) for n in range(120_000)))
    found = list_inputs(path)
    types = {field.name: str(field.type) for field in carried(found).schema}
    assert types == {
        "n": "double",
        "text": "string",
        "when": "timestamp[us]",
        "late": "struct<deep: list<item: int64>>",
    }
    assert found.num_rows == 120_000
    assert found["text"][0].as_py() == "2026-01-02"
    assert found["late"].null_count == 119_999


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9 50%.jpg"
    (tmp_path / os.fsdecode(name)).touch()
    path = write(tmp_path / "m.csv", b"path,n\nplain.jpg,1\n" + name + b",2\n")
    found = list_inputs(path)
    assert found["uri"].to_pylist() == ["plain.jpg", f"file://{tmp_path}/caf%E9%2050%25.jpg"]
    assert os.path.isfile(path_of(found["uri"][1].as_py(), found["root"][1].as_py()))
    data = pa.array([b"plain.jpg", name]).view(pa.string())
    pq.write_table(pa.table({"path": data, "n": [1, 2]}), tmp_path / "m.parquet")
    assert list_inputs(tmp_path / "m.parquet")["uri"].equals(found["uri"])


CSV_REFUSED = {
    "": "m.csv is empty",
    "\n\n": "m.csv is empty",
    "path,n\n": "names no images: it has columns, but no rows",
    "path,n\na.jpg,1\n\nb.jpg\nc.jpg,3\n": "line 4 of {} has 1 columns, its header 2",
    'path,n\n"a\n.jpg",1\nb.jpg,2,3\n': "line 4 of {} has 3 columns, its header 2",
    "path,path\na.jpg,1\n": "more than one column 'path'",
    "path;n\na.jpg;1\n": "separated by ';': separate them by commas",
    'path,n\na.jpg,"1\nb.jpg,2\nc.jpg,3\n': "a quotation mark in line 2 of {} is not closed: close it",
    'path,n\na.jpg,1\n"b.jpg,2\nc.jpg,3\n': "a quotation mark in line 3 of {} is not closed: close it",
    "a,b\nx,y\n": "which column of {} names the images? It has a (string), b (string): name it with --uri-column",
    "a,b\n1,2\n": "which column of {} names the images? It has a (int64), b (int64)",
    "uri,url\nx,y\n": "which column of {} names the images?",
    b"path,n\na.jpg,1\nb.jpg,\xe9\n": "column 'n' of {} is not UTF-8 in line 3",
    "path,n\na.jpg,1\n".encode("utf-16"): "column names of {} are not UTF-8",
}


@pytest.mark.parametrize("content", CSV_REFUSED)
def test_invalid_csv_is_refused_with_its_line(tmp_path: Path, content: str | bytes) -> None:
    path = write(tmp_path / "m.csv", content)
    assert CSV_REFUSED[content].format(path) in refused(path)


def test_a_ragged_row_far_down_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,n\n" + f"{'x' * 60}.jpg,1\n" * 150_000 + "b.jpg\n")
    assert f"line 150002 of {path} has 1 columns" in refused(path)


def test_a_column_that_is_not_utf8_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", b"path,n,m\na.jpg,\xe9,1\n")
    assert "--columns" in refused(path)
    assert carried(list_inputs(path, columns=("m",))).to_pylist() == [{"m": 1}]


JSONL_REFUSED = {
    "": "names no images: it is empty",
    '{"uri":"a"}\n{"uri":"b",\n': "line 2 of {} is not JSON",
    '{"uri":"a"}\n\n["b"]\n': "line 3 of {} is a list: write one object per line",
    '[{"uri":"a"}]': "line 1 of {} is a list",
    '{"uri":"a","n":1}\n{"uri":"b","n":"x"}\n': "'n' is text in line 2 of {} and a number before",
    '{"uri":"a","uri":"b"}\n': "line 1 of {} is not JSON: the same key appears twice",
    b'{"uri":"a"}\n{"uri":"\xe9"}\n': "line 2 of {} is not UTF-8",
    '{"uri":1}\n{"uri":2}\n': "which column of {} names the images? It has uri (int64)",
}


@pytest.mark.parametrize("content", JSONL_REFUSED)
def test_invalid_jsonl_is_refused_with_its_line(tmp_path: Path, content: str | bytes) -> None:
    path = write(tmp_path / "m.jsonl", content)
    assert JSONL_REFUSED[content].format(path) in refused(path)


@pytest.mark.parametrize(("bad", "what"), [('{"uri":"x","n":"y"}', "'n' is text"), ('{"uri":', "is not JSON")])
def test_a_bad_line_far_down_is_named(tmp_path: Path, bad: str, what: str) -> None:
    path = write(tmp_path / "m.jsonl", '{"uri":"a","n":1}\n' * 600_000 + bad + "\n")
    found = refused(path)
    assert what in found
    assert f"line 600001 of {path}" in found


def test_a_row_without_a_name_stays_a_row(tmp_path: Path) -> None:
    write(tmp_path / "m.csv", 'path,n\na.jpg,1\n,2\n"",3\n')
    write(tmp_path / "m.jsonl", '{"path":"a.jpg","n":1}\n{"path":null,"n":2}\n{"n":3}\n')
    for name in ("m.csv", "m.jsonl"):
        found = list_inputs(tmp_path / name)
        assert found.select(["uri", "n"]).to_pylist() == [
            {"uri": "a.jpg", "n": 1}, {"uri": "", "n": 2}, {"uri": "", "n": 3}
        ]  # fmt: skip


def test_names_of_digits_are_names_and_a_field_of_a_struct_may_be_one(tmp_path: Path) -> None:
    assert list_inputs(write(tmp_path / "m.csv", "file,n\n1,2\n"))["uri"].to_pylist() == ["1"]
    (struct := pa.array([{"bytes": None, "path": "a.jpg"}], pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    pq.write_table(pa.table({"image": struct, "n": [1]}), tmp_path / "m.parquet")
    found = list_inputs(tmp_path / "m.parquet", uri_column="image.path", columns=("n",))
    assert (found["uri"].to_pylist(), found["span"].null_count) == (["a.jpg"], 1)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([2**64 - 1, 0, 5], "uint64", [2**64 - 1, 0, 5]),
        ([2**63 - 1, -(2**63)], "int64", [2**63 - 1, -(2**63)]),
        ([2**63, None], "uint64", [2**63, None]),
        ([2**64, 5, None], "string", [str(2**64), "5", None]),
        ([-1, 2**63], "string", ["-1", str(2**63)]),
        ([-(2**63) - 1], "string", [str(-(2**63) - 1)]),
        ([10**200], "string", [str(10**200)]),
        ([2**53, 1.5], "double", [2.0**53, 1.5]),
        ([2**53 + 1, 1.5, 1e3], "string", [str(2**53 + 1), "1.5", "1000.0"]),
        ([2**63 + 1, 1.5], "string", [str(2**63 + 1), "1.5"]),
        ([1, 0.12345678901234567], "double", [1.0, 0.12345678901234567]),
    ],
)
@pytest.mark.parametrize("form", ["plain", "list", "object"])
def test_json_numbers_keep_their_digits_up_to_uint64_and_are_text_beyond(
    tmp_path: Path, values: list[Any], kind: str, expected: list[Any], form: str
) -> None:
    shape = {"plain": "{}", "list": "list<item: {}>", "object": "struct<deep: list<item: {}>, when: timestamp[us]>"}
    dressed: dict[str, Any] = {
        "plain": lambda v: v,
        "list": lambda v: [v],
        "object": lambda v: {"deep": [v, None], "when": "2026-01-02"},
    }
    filler = '{"path":"x","other":"%s"}\n' % ("12345678901234567890 " * 100)  # so that values lie in several chunks
    lines = [
        json.dumps({"path": f"{n}.jpg", "v": dressed[form](v)}) + "\n" + filler * 2500 for n, v in enumerate(values)
    ]
    found = list_inputs(write(tmp_path / "m.jsonl", "".join(lines)), columns=("v",))
    assert str(found.schema.field("v").type) == shape[form].format(kind)
    rows = [row["v"] for row in found.to_pylist()[::2501]]
    if form == "object":
        assert {str(row["when"]) for row in rows} == {"2026-01-02 00:00:00"}
        rows = [row["deep"] for row in rows]
    assert rows == (expected if form == "plain" else [[v, None][: 1 + (form == "object")] for v in expected])
