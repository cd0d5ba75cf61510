"""Manifests that are tables: every format, the types of what they carry, and everything that is refused."""

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch.config import SourceSettings
from clipbatch.inputs import listing
from clipbatch.storage.uris import path_of
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder
from tests.support.listing import carried, list_inputs, refused, write

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


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_names_the_images_and_carries_the_other_columns_with_their_types(
    tmp_path: Path, suffix: str
) -> None:
    WRITERS[suffix](TABLE, tmp_path / f"m{suffix}")
    found = list_inputs(tmp_path / f"m{suffix}")
    assert found["uri"].to_pylist() == TABLE["path"].to_pylist()
    assert set(found["root"].to_pylist()) == {str(tmp_path)}
    assert found["span"].null_count == 3
    expected = TABLE.drop_columns(["path"])
    if suffix in (".jsonl", ".ndjson"):  # JSON has no dates: what is written like one becomes a timestamp
        expected = expected.set_column(3, "day", expected["day"].cast(pa.timestamp("us")))
    expected = expected.set_column(4, "at", expected["at"].cast(pa.timestamp("us")))
    assert carried(found).equals(expected)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".feather"])
def test_nested_columns_are_carried_as_they_are(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](NESTED, tmp_path / f"m{suffix}")
    found = list_inputs(tmp_path / f"m{suffix}", columns=("tags", "box"))
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
    assert list_inputs(pieces).equals(list_inputs(plain))
    pieces.write_bytes(packed(data)[:-9])
    assert f"cannot read {pieces}: Truncated compressed stream" in refused(pieces)


@pytest.mark.parametrize(
    ("header", "settings", "named"),
    [
        ("caption,File_Name", {}, "File_Name"),
        ("id,photo", {}, "photo"),  # the only column of text
        ("url,path", {"uri_column": "path"}, "path"),
        ("id,PATH", {}, "PATH"),
    ],
)
def test_the_uri_column_is_guessed_if_it_is_obvious(
    tmp_path: Path, header: str, settings: dict[str, str], named: str
) -> None:
    names = header.split(",")
    row = {name: "1" if name == "id" else f"{name}.jpg" for name in names}
    path = write(tmp_path / "m.csv", f"{header}\n{','.join(row.values())}\n")
    found = list_inputs(path, **settings)
    assert found["uri"].to_pylist() == [f"{named}.jpg"]
    assert [f"{name}" for name in carried(found).column_names] == [name for name in names if name != named]


def test_columns_are_selected_and_reserved_names_get_a_prefix(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,label,Score,row_id,input_label,n\na.jpg,cat,1,7,dog,2\n")
    assert (
        carried(list_inputs(path)).to_pylist()
        == [{"input_label": "cat", "input_Score": 1, "input_row_id": 7, "input_input_label": "dog", "n": 2}]
        or carried(list_inputs(path)).column_names.count("input_label") == 1
    )
    assert carried(list_inputs(path, columns=("n",))).to_pylist() == [{"n": 2}]
    assert carried(list_inputs(path, columns=())).column_names == []
    assert "m.csv has no column 'lable', which --columns names: it has path, label" in refused(path, columns=("lable",))
    assert "Did you mean label" in refused(path, columns=("lable",))


def test_paths_are_relative_to_the_folder_of_the_manifest_or_the_root(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path\na.jpg\n/abs/b.jpg\ns3://bucket/c.jpg\n")
    for settings, root in (({}, str(tmp_path)), ({"root": "/data"}, "/data"), ({"root": "s3://b/x"}, "s3://b/x")):
        found = list_inputs(path, **settings)
        opened = [path_of(*pair) for pair in zip(found["uri"].to_pylist(), found["root"].to_pylist(), strict=True)]
        assert opened == [f"{root}/a.jpg", "/abs/b.jpg", "s3://bucket/c.jpg"]


def test_a_folder_of_nothing_but_tables_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (("b.csv", "path,n\nb.jpg,x\n"), ("a.csv", "path,n,m\na.jpg,1,2\n")):
        write(folder / name, content)
    write(folder / "_SUCCESS", "")
    write(folder / ".hidden", "")
    found = list_inputs(folder)
    assert found.select(["uri", "n", "m"]).to_pylist() == [
        {"uri": "a.jpg", "n": "1", "m": 2}, {"uri": "b.jpg", "n": "x", "m": None}
    ]  # fmt: skip
    assert set(found["root"].to_pylist()) == {str(folder)}
    (folder / "c.csv").symlink_to(tmp_path / "gone.csv")
    assert f"holds no images, and {folder}/c.csv leads nowhere: put back what it leads to" in refused(folder)
    (folder / "c.csv").unlink()
    write(folder / "c.tsv", "path\n")
    assert "holds tables of several kinds (.csv, .tsv)" in refused(folder)


def test_a_list_among_photographs_is_never_taken_for_the_input(tmp_path: Path) -> None:
    for name in ("labels.csv", "a.jpg", "sub/b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "in" / name, "path,n\nzzz.jpg,1\n")
    assert list_inputs(tmp_path / "in")["uri"].to_pylist() == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/sub/b.jpg"]
    (tmp_path / "in" / "a.jpg").unlink()
    assert list_inputs(tmp_path / "in")["uri"].to_pylist() == [f"{tmp_path}/in/sub/b.jpg"]
    assert list_inputs(tmp_path / "in", all_files=True).num_rows == 2


def test_files_of_a_folder_get_common_types_and_incompatible_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"path": ["b.jpg"], "n": [2.5], "m": ["x"]}), tmp_path / "b.parquet")
    assert carried(list_inputs(tmp_path)).to_pylist() == [{"n": 1.0, "m": None}, {"n": 2.5, "m": "x"}]
    pq.write_table(pa.table({"path": ["c.jpg"], "n": ["x"]}), tmp_path / "c.parquet")
    assert f"the type of a column of {tmp_path}/c.parquet does not match the files before it" in refused(tmp_path)


def test_dictionary_columns_of_many_row_groups_and_files_keep_their_values(tmp_path: Path) -> None:
    for name in "ab":
        words = (
            pa.array([f"{name}{n % 100}" for n in range(300)])
            .dictionary_encode()
            .cast(pa.dictionary(pa.int8(), pa.string()))
        )
        feather.write_feather(pa.table({"path": ["x"] * 300, "word": words}), tmp_path / f"{name}.feather")
    found = list_inputs(tmp_path)
    assert pa.types.is_dictionary(found.schema.field("word").type)
    assert found["word"].cast(pa.string()).to_pylist() == [f"{name}{n % 100}" for name in "ab" for n in range(300)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("kept", [0, 1, 20, -1, -30])
def test_a_columnar_manifest_cut_short_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"m{suffix}"
    WRITERS[suffix](TABLE, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"cannot read {path}: " in refused(path)


def test_columnar_columns_that_cannot_be_carried_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    _stream(pa.table({"path": ["a.jpg"], "span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}), path)
    assert f"column 'span' of {path} is month_day_nano_interval, which Parquet cannot hold" in refused(path)
    assert list_inputs(path, columns=())["uri"].to_pylist() == ["a.jpg"]
    bad = pa.array([b"\xe9"]).view(pa.string())
    pq.write_table(pa.table({"path": ["a.jpg"], "caption": bad}), tmp_path / "m.parquet")
    assert "column 'caption'" in refused(tmp_path / "m.parquet")


def test_the_identity_covers_path_and_every_byte(tmp_path: Path) -> None:
    def identity(**settings: Any) -> str:
        (lister,) = listing.listers(SourceSettings(inputs=(str(tmp_path / "in"),), **settings))
        return lister.identity()

    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", "path\na.jpg\n")
    before = identity()
    assert identity() == before
    assert identity(root="/data") != before
    write(tmp_path / "in" / "b.csv", "path\nb.jpg\n")
    both = identity()
    write(tmp_path / "in" / "b.csv", "path\nc.jpg\n")
    assert len({before, both, identity()}) == 3


@pytest.fixture(scope="module")
def out(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run over a CSV manifest of some files, with columns of its own, and the manifest."""
    folder = tmp_path_factory.mktemp("manifest")
    listed = make_folder(folder / "in", 60, seed=3, bad_fraction=0.2)
    lines = [f'{one.name},{number},"say ""{one.kind}""",{number / 4},2026-01-02' for number, one in enumerate(listed)]
    manifest = write(
        folder / "in" / "list.csv",
        "path,number,label,share,day\n" + "\n".join([*lines, *lines[:5], ",65,nothing,1,2026-01-02"]) + "\n",
    )
    warm("run", manifest, *DEMO, "--shard-size", 32, "--out", folder / "out")
    return folder / "out", manifest


def test_the_copied_columns_are_in_the_parts_and_join_with_the_manifest(warm: Cli, out: tuple[Path, Path]) -> None:
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
    warm("verify", run)


def test_duplicates_are_counted_and_reported(warm: Cli, out: tuple[Path, Path]) -> None:
    run, _ = out
    assert json.loads((run / "report.json").read_text())["duplicates"] == 5
    assert json.loads((run / "run.json").read_text())["duplicates"] == 5
    assert "5 rows name an image that an earlier row names" in warm("run", "--out", run).stdout


def test_a_manifest_edited_after_the_plan_is_refused_on_resuming(warm: Cli, out: tuple[Path, Path]) -> None:
    run, manifest = out
    text = manifest.read_text()
    command = ("run", manifest, *DEMO, "--shard-size", 32, "--out", run)
    assert "nothing was left to do" in warm(*command).stdout
    try:
        manifest.write_text(text.replace("nothing", "something"))
        assert "belongs to a run with other settings: inputs is" in warm(*command, code=3).stderr
    finally:
        manifest.write_text(text)


def test_refusals_end_the_command_with_3_and_one_line(warm: Cli, tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,n\na.jpg\n")
    error = warm("plan", path, *DEMO, "--out", tmp_path / "out", code=3).stderr
    assert error.startswith(f"clipbatch: line 2 of {path} has 1 columns, its header 2: fix the line")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    error = warm("plan", path, *DEMO, "--uri-column", "pth", "--out", tmp_path / "out", code=3).stderr
    assert error.count("\n") == 1
