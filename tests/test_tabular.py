"""Manifests that are tables: every format, the types of what they carry, and everything that is refused."""

import datetime
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch import source
from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.source.rows import LISTED
from clipbatch.uris import path_of
from conftest import DEMO, Cli, rows
from corpus import make_folder

TABLE = pa.table(
    {
        "path": ["a.jpg", "sub/b c.jpg", "é.jpg"],
        "n": [1, None, 3],
        "weight": [0.5, 1.0, None],
        "flag": [True, False, None],
        "day": pa.array([datetime.date(2026, 1, 2)] * 3),
        "at": pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5)] * 3, pa.timestamp("s")),
        "caption": ['a "quoted", line\nbreak', "", None],
    }
)
NESTED = TABLE.append_column("tags", [[["x", "y"], None, []]]).append_column(
    "box", [[{"left": 1, "size": {"w": 2}}, None, {"left": 3, "size": None}]]
)


def _csv(table: pa.Table, path: Path, separator: str = ",") -> None:
    pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter=separator))


def _jsonl(table: pa.Table, path: Path) -> None:
    lines = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
    path.write_text(
        "".join(json.dumps(line, default=lambda d: d.isoformat(), ensure_ascii=False) + "\n" for line in lines)
    )


def _stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".csv": _csv,
    ".TSV": lambda table, path: _csv(table, path, "\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": lambda table, path: pq.write_table(table, path, row_group_size=2),
    ".arrow": _stream,
    ".feather": lambda table, path: feather.write_feather(table, path),
}


def _list(*inputs: object, **settings: Any) -> pa.Table:
    """The listing of `inputs`, with the columns that a run of the labels would have taken."""
    listers = source.listers(SourceSettings(inputs=tuple(map(str, inputs)), **settings))
    listing = source.Listing(listers, settings.get("limit"), ("row_id", "status", "label", "score"))
    return pa.Table.from_batches(listing.batches(), listing.schema)


def _carried(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if name not in LISTED.names])


def _refused(*inputs: object, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        _list(*inputs, **settings)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_names_the_images_and_carries_the_other_columns_with_their_types(
    tmp_path: Path, suffix: str
) -> None:
    WRITERS[suffix](TABLE, tmp_path / f"m{suffix}")
    found = _list(tmp_path / f"m{suffix}")
    assert found["uri"].to_pylist() == TABLE["path"].to_pylist()
    assert set(found["root"].to_pylist()) == {str(tmp_path)}
    assert found["span"].null_count == 3
    expected = TABLE.drop_columns(["path"])
    if suffix in (".jsonl", ".ndjson"):  # JSON has no dates: what is written like one becomes a timestamp
        expected = expected.set_column(3, "day", expected["day"].cast(pa.timestamp("s")))
    if suffix == ".parquet":  # which has no seconds
        expected = expected.set_column(4, "at", expected["at"].cast(pa.timestamp("ms")))
    assert _carried(found).equals(expected)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".feather"])
def test_nested_columns_are_carried_as_they_are(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](NESTED, tmp_path / f"m{suffix}")
    found = _list(tmp_path / f"m{suffix}", columns=("tags", "box"))
    assert found.select(["tags", "box"]).to_pylist() == NESTED.select(["tags", "box"]).to_pylist()
    assert pa.types.is_list(found.schema.field("tags").type)
    assert found.schema.field("box").type.field("size").type.field("w").type == pa.int64()


@pytest.mark.parametrize("codec", ["gz", "zst"])
@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".jsonl", ".txt"])
def test_a_compressed_manifest_is_listed_like_a_plain_one(tmp_path: Path, suffix: str, codec: str) -> None:
    plain = tmp_path / f"m{suffix}"
    if suffix == ".txt":
        plain.write_text("".join(f"{n}.jpg\r\n# {n}\n" for n in range(200_000)))
    else:
        WRITERS[suffix](TABLE, plain)
    data, pieces = plain.read_bytes(), tmp_path / f"m{suffix}.{codec}"
    half = len(data) // 2

    def packed(part: bytes) -> bytes:
        return gzip.compress(part) if codec == "gz" else pa.Codec("zstd").compress(part, asbytes=True)

    pieces.write_bytes(packed(data[:half]) + packed(data[half:]))  # two members, as parallel compressors write them
    assert _list(pieces).equals(_list(plain))
    pieces.write_bytes(packed(data)[:-9])
    assert f"cannot read {pieces}: Truncated compressed stream" in _refused(pieces)


def test_a_csv_column_has_the_first_type_that_holds_every_value_wherever_it_stands(tmp_path: Path) -> None:
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
    path = _write(tmp_path / "m.csv", "path," + ",".join(first) + "\n" + body + "x.jpg," + ",".join(last.values()))
    found = _list(path)
    types = {field.name: str(field.type) for field in found.schema if field.name in first}
    assert types == {
        "whole": "int64", "real": "double", "nulls": "int64", "late": "string", "empty": "string", "codes": "string",
        "long": "string", "hash": "uint64", "flag": "bool", "mixed": "string", "time": "timestamp[ns]",
        "zoned": "timestamp[s, tz=UTC]", "words": "string",
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

    path = _write(tmp_path / "m.jsonl", "\n\n".join(json.dumps(line(n)) for n in range(120_000)))
    found = _list(path)
    types = {field.name: str(field.type) for field in _carried(found).schema}
    assert types == {
        "n": "double",
        "text": "string",
        "when": "timestamp[s]",
        "late": "struct<deep: list<item: int64>>",
    }
    assert found.num_rows == 120_000
    assert found["text"][0].as_py() == "2026-01-02"
    assert found["late"].null_count == 119_999


@pytest.mark.parametrize(
    ("header", "settings", "named"),
    [
        ("caption,File_Name", {}, "File_Name"),
        ("id,photo", {}, "photo"),  # the only column of text
        ("url,path", {"uri_column": "path"}, "path"),
        ("id,PATH", {}, "PATH"),
    ],
)
def test_the_uri_column_is_guessed_where_it_is_obvious(
    tmp_path: Path, header: str, settings: dict[str, str], named: str
) -> None:
    names = header.split(",")
    row = {name: "1" if name == "id" else f"{name}.jpg" for name in names}
    path = _write(tmp_path / "m.csv", f"{header}\n{','.join(row.values())}\n")
    found = _list(path, **settings)
    assert found["uri"].to_pylist() == [f"{named}.jpg"]
    assert [f"{name}" for name in _carried(found).column_names] == [name for name in names if name != named]


def test_names_of_digits_are_names_and_a_field_of_a_struct_may_be_one(tmp_path: Path) -> None:
    assert _list(_write(tmp_path / "m.csv", "file,n\n1,2\n"))["uri"].to_pylist() == ["1"]
    (struct := pa.array([{"bytes": None, "path": "a.jpg"}], pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    pq.write_table(pa.table({"image": struct, "n": [1]}), tmp_path / "m.parquet")
    found = _list(tmp_path / "m.parquet", uri_column="image.path", columns=("n",))
    assert (found["uri"].to_pylist(), found["span"].null_count) == (["a.jpg"], 1)


def test_columns_are_chosen_and_those_of_our_names_renamed(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", "path,label,Score,row_id,input_label,n\na.jpg,cat,1,7,dog,2\n")
    assert (
        _carried(_list(path)).to_pylist()
        == [{"input_label": "cat", "input_Score": 1, "input_row_id": 7, "input_input_label": "dog", "n": 2}]
        or _carried(_list(path)).column_names.count("input_label") == 1
    )
    assert _carried(_list(path, columns=("n",))).to_pylist() == [{"n": 2}]
    assert _carried(_list(path, columns=())).column_names == []
    assert "m.csv has no column 'lable' as --columns names it: it has path, label" in _refused(path, columns=("lable",))
    assert "Did you mean label" in _refused(path, columns=("lable",))


def test_relative_paths_start_from_the_manifests_folder_or_the_root(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", "path\na.jpg\n/abs/b.jpg\ns3://bucket/c.jpg\n")
    for settings, root in (({}, str(tmp_path)), ({"root": "/data"}, "/data"), ({"root": "s3://b/x"}, "s3://b/x")):
        found = _list(path, **settings)
        opened = [path_of(*pair) for pair in zip(found["uri"].to_pylist(), found["root"].to_pylist(), strict=True)]
        assert opened == [f"{root}/a.jpg", "/abs/b.jpg", "s3://bucket/c.jpg"]


def test_a_row_without_a_name_stays_a_row(tmp_path: Path) -> None:
    _write(tmp_path / "m.csv", 'path,n\na.jpg,1\n,2\n"",3\n')
    _write(tmp_path / "m.jsonl", '{"path":"a.jpg","n":1}\n{"path":null,"n":2}\n{"n":3}\n')
    for name in ("m.csv", "m.jsonl"):
        found = _list(tmp_path / name)
        assert found.select(["uri", "n"]).to_pylist() == [
            {"uri": "a.jpg", "n": 1}, {"uri": "", "n": 2}, {"uri": "", "n": 3}
        ]  # fmt: skip


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9 50%.jpg"
    (tmp_path / os.fsdecode(name)).touch()
    path = _write(tmp_path / "m.csv", b"path,n\nplain.jpg,1\n" + name + b",2\n")
    found = _list(path)
    assert found["uri"].to_pylist() == ["plain.jpg", f"file://{tmp_path}/caf%E9%2050%25.jpg"]
    assert os.path.isfile(path_of(found["uri"][1].as_py(), found["root"][1].as_py()))
    data = pa.array([b"plain.jpg", name]).view(pa.string())
    pq.write_table(pa.table({"path": data, "n": [1, 2]}), tmp_path / "m.parquet")
    assert _list(tmp_path / "m.parquet")["uri"].equals(found["uri"])


def test_a_folder_of_nothing_but_tables_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (("b.csv", "path,n\nb.jpg,x\n"), ("a.csv", "path,n,m\na.jpg,1,2\n")):
        _write(folder / name, content)
    _write(folder / "_SUCCESS", "")
    _write(folder / ".hidden", "")
    found = _list(folder)
    assert found.select(["uri", "n", "m"]).to_pylist() == [
        {"uri": "a.jpg", "n": "1", "m": 2}, {"uri": "b.jpg", "n": "x", "m": None}
    ]  # fmt: skip
    assert set(found["root"].to_pylist()) == {str(folder)}
    _write(folder / "c.tsv", "path\n")
    assert "holds tables of several kinds (.csv, .tsv)" in _refused(folder)


def test_a_list_among_photographs_is_never_taken_for_the_input(tmp_path: Path) -> None:
    for name in ("labels.csv", "a.jpg", "sub/b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        _write(tmp_path / "in" / name, "path,n\nzzz.jpg,1\n")
    assert _list(tmp_path / "in")["uri"].to_pylist() == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/sub/b.jpg"]
    (tmp_path / "in" / "a.jpg").unlink()
    assert _list(tmp_path / "in")["uri"].to_pylist() == [f"{tmp_path}/in/sub/b.jpg"]
    assert _list(tmp_path / "in", all_files=True).num_rows == 2


def test_files_of_a_folder_widen_their_types_and_refuse_those_that_do_not_go_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"path": ["b.jpg"], "n": [2.5], "m": ["x"]}), tmp_path / "b.parquet")
    assert _carried(_list(tmp_path)).to_pylist() == [{"n": 1.0, "m": None}, {"n": 2.5, "m": "x"}]
    pq.write_table(pa.table({"path": ["c.jpg"], "n": ["x"]}), tmp_path / "c.parquet")
    assert f"a column of {tmp_path}/c.parquet does not go with the files before it" in _refused(tmp_path)


def test_words_of_many_row_groups_and_files_stay_words(tmp_path: Path) -> None:
    for name in "ab":
        words = (
            pa.array([f"{name}{n % 100}" for n in range(300)])
            .dictionary_encode()
            .cast(pa.dictionary(pa.int8(), pa.string()))
        )
        feather.write_feather(pa.table({"path": ["x"] * 300, "word": words}), tmp_path / f"{name}.feather")
    found = _list(tmp_path)
    assert pa.types.is_dictionary(found.schema.field("word").type)
    assert found["word"].cast(pa.string()).to_pylist() == [f"{name}{n % 100}" for name in "ab" for n in range(300)]


CSV_REFUSED = {
    "": "m.csv is empty",
    "\n\n": "m.csv is empty",
    "path,n\n": "names no images: it has columns, but no rows",
    "path,n\na.jpg,1\n\nb.jpg\nc.jpg,3\n": "line 4 of {} has 1 columns, its header 2",
    'path,n\n"a\n.jpg",1\nb.jpg,2,3\n': "line 4 of {} has 3 columns, its header 2",
    "path,path\na.jpg,1\n": "more than one column 'path'",
    "path;n\na.jpg;1\n": "separated by ';': separate them by commas",
    'path,n\na.jpg,"1\nb.jpg,2\nc.jpg,3\n': "a quote in the row after line 1 of {} is not closed",
    'path,n\na.jpg,1\n"b.jpg,2\nc.jpg,3\n': "look for a quote that is not closed",
    "a,b\nx,y\n": "which column of {} names the images? It has a (string), b (string): say it with --uri-column",
    "a,b\n1,2\n": "which column of {} names the images? It has a (int64), b (int64)",
    "uri,url\nx,y\n": "which column of {} names the images?",
    b"path,n\na.jpg,1\nb.jpg,\xe9\n": "column 'n' of {} is not UTF-8 in line 3",
    "path,n\na.jpg,1\n".encode("utf-16"): "column names of {} are not UTF-8",
}


@pytest.mark.parametrize("content", CSV_REFUSED)
def test_a_csv_that_is_none_is_refused_with_its_line(tmp_path: Path, content: str | bytes) -> None:
    path = _write(tmp_path / "m.csv", content)
    assert CSV_REFUSED[content].format(path) in _refused(path)


def test_a_ragged_row_far_down_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", "path,n\n" + f"{'x' * 60}.jpg,1\n" * 150_000 + "b.jpg\n")
    assert f"line 150002 of {path} has 1 columns" in _refused(path)


def test_a_column_that_is_not_utf8_may_be_left_out(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", b"path,n,m\na.jpg,\xe9,1\n")
    assert "--columns" in _refused(path)
    assert _carried(_list(path, columns=("m",))).to_pylist() == [{"m": 1}]


JSONL_REFUSED = {
    "": "names no images: it is empty",
    '{"uri":"a"}\n{"uri":"b",\n': "line 2 of {} is not JSON",
    '{"uri":"a"}\n\n["b"]\n': "line 3 of {} is a list: write one object a line",
    '[{"uri":"a"}]': "line 1 of {} is a list",
    '{"uri":"a","n":1}\n{"uri":"b","n":"x"}\n': "'n' is text in line 2 of {} and a number before",
    '{"uri":"a","uri":"b"}\n': "line 1 of {} is not JSON: the same key stands in it twice",
    b'{"uri":"a"}\n{"uri":"\xe9"}\n': "line 2 of {} is not UTF-8",
    '{"uri":1}\n{"uri":2}\n': "which column of {} names the images? It has uri (int64)",
}


@pytest.mark.parametrize("content", JSONL_REFUSED)
def test_jsonl_that_is_none_is_refused_with_its_line(tmp_path: Path, content: str | bytes) -> None:
    path = _write(tmp_path / "m.jsonl", content)
    assert JSONL_REFUSED[content].format(path) in _refused(path)


@pytest.mark.parametrize(("bad", "what"), [('{"uri":"x","n":"y"}', "'n' is text"), ('{"uri":', "is not JSON")])
def test_a_bad_line_far_down_is_named(tmp_path: Path, bad: str, what: str) -> None:
    path = _write(tmp_path / "m.jsonl", '{"uri":"a","n":1}\n' * 600_000 + bad + "\n")
    found = _refused(path)
    assert what in found
    assert f"line 600001 of {path}" in found


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("kept", [0, 1, 20, -1, -30])
def test_a_columnar_manifest_cut_short_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"m{suffix}"
    WRITERS[suffix](TABLE, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"cannot read {path}: " in _refused(path)


def test_columnar_columns_that_cannot_be_carried_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    _stream(pa.table({"path": ["a.jpg"], "span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}), path)
    assert f"column 'span' of {path} is month_day_nano_interval, which Parquet cannot hold" in _refused(path)
    assert _list(path, columns=())["uri"].to_pylist() == ["a.jpg"]
    bad = pa.array([b"\xe9"]).view(pa.string())
    pq.write_table(pa.table({"path": ["a.jpg"], "caption": bad}), tmp_path / "m.parquet")
    assert "column 'caption'" in _refused(tmp_path / "m.parquet")


def test_the_identity_is_the_place_and_every_byte(tmp_path: Path) -> None:
    def identity(**settings: Any) -> str:
        (lister,) = source.listers(SourceSettings(inputs=(str(tmp_path / "in"),), **settings))
        return lister.identity()

    (tmp_path / "in").mkdir()
    _write(tmp_path / "in" / "a.csv", "path\na.jpg\n")
    before = identity()
    assert identity() == before
    assert identity(root="/data") != before
    _write(tmp_path / "in" / "b.csv", "path\nb.jpg\n")
    both = identity()
    _write(tmp_path / "in" / "b.csv", "path\nc.jpg\n")
    assert len({before, both, identity()}) == 3


@pytest.fixture(scope="module")
def out(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run over a CSV manifest of some files, with columns of its own, and the manifest."""
    folder = tmp_path_factory.mktemp("manifest")
    listed = make_folder(folder / "in", 60, seed=3, bad_fraction=0.2)
    lines = [f'{one.name},{number},"say ""{one.kind}""",{number / 4},2026-01-02' for number, one in enumerate(listed)]
    manifest = _write(
        folder / "in" / "list.csv",
        "path,number,label,share,day\n" + "\n".join([*lines, *lines[:5], ",65,nothing,1,2026-01-02"]) + "\n",
    )
    cli("run", manifest, *DEMO, "--shard-size", 32, "--out", folder / "out")
    return folder / "out", manifest


def test_the_carried_columns_are_in_the_parts_and_join_back(cli: Cli, out: tuple[Path, Path]) -> None:
    run, manifest = out
    table = rows(run)
    assert table.num_rows == 66
    carried = {f.name: str(f.type) for f in table.schema if f.name in ("number", "input_label", "share", "day")}
    assert carried == {"number": "int64", "input_label": "string", "share": "double", "day": "date32[day]"}
    assert table["number"].to_pylist() == [*range(60), *range(5), 65]
    assert table["status"][65].as_py() == "missing"
    assert table["uri"][65].as_py() == ""
    read = f"read_csv('{manifest}', header=true)"
    numbered = f"(select *, row_number() over () - 1 as row_id from {read})"
    wrong = duckdb.sql(
        f"select count(*) from '{run}/parts/*.parquet' p join {numbered} m using (row_id) "
        "where p.number <> m.number or p.input_label <> m.label or p.day <> m.day"
    ).fetchall()
    assert wrong == [(0,)]
    joined = duckdb.sql(f"select count(*) from '{run}/parts/*.parquet' p join {read} m on p.uri = m.path").fetchall()
    assert joined == [(60 - 5 + 5 * 4,)]
    cli("verify", run)


def test_duplicates_are_counted_and_said(cli: Cli, out: tuple[Path, Path]) -> None:
    run, _ = out
    assert json.loads((run / "report.json").read_text())["duplicates"] == 5
    assert json.loads((run / "run.json").read_text())["duplicates"] == 5
    assert "5 rows name an image that an earlier row names" in cli("run", "--out", run).stdout


def test_a_manifest_edited_after_the_plan_is_refused_on_resuming(cli: Cli, out: tuple[Path, Path]) -> None:
    run, manifest = out
    text = manifest.read_text()
    command = ("run", manifest, *DEMO, "--shard-size", 32, "--out", run)
    assert "nothing was left to do" in cli(*command).stdout
    try:
        manifest.write_text(text.replace("nothing", "something"))
        assert "belongs to a run with other settings: inputs is" in cli(*command, code=3).stderr
    finally:
        manifest.write_text(text)


def test_refusals_end_the_command_with_3_and_one_line(cli: Cli, tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", "path,n\na.jpg\n")
    error = cli("plan", path, *DEMO, "--out", tmp_path / "out", code=3).stderr
    assert error.startswith(f"clipbatch: line 2 of {path} has 1 columns, its header 2: mend the line")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    error = cli("plan", path, *DEMO, "--uri-column", "pth", "--out", tmp_path / "out", code=3).stderr
    assert error.count("\n") == 1
