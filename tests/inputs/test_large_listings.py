"""Names and tables of unusual sizes: long names are refused with their place; thousands of columns stay affordable."""

import csv
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch.inputs.lister import MAX_NAME_BYTES
from clipbatch.rundir.duplicates import Duplicates, hashes
from tests.conftest import DEMO, Cli, rows
from tests.support.listing import carried, list_inputs, refused, write

COLUMNS = 10_000


def write_text(path: Path, name: str) -> None:
    path.write_text(f"# {'comment ' * 20_000}\nx.jpg\r\n{name}\ny.jpg")


def write_csv(path: Path, name: str) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerows([["n", "uri"], ["1", "x.jpg"], ["2\n3", name]])


def write_json(path: Path, name: str) -> None:
    path.write_text("\n".join(["", json.dumps({"uri": "x.jpg"}), json.dumps({"uri": name})]))


def table(name: str) -> pa.Table:
    return pa.table({"uri": ["x.jpg", "y.jpg", name], "n": [1, 2, 3]})


WRITERS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "m.txt": (write_text, "line 3 of the manifest {}"),
    "m.csv": (write_csv, "line 3 of {}"),
    "m.tsv": (write_csv, "line 3 of {}"),
    "m.jsonl": (write_json, "line 3 of {}"),
    "m.parquet": (lambda path, name: pq.write_table(table(name), path), "row 2 (from 0) of {}"),
    "m.feather": (lambda path, name: feather.write_feather(table(name), path), "row 2 (from 0) of {}"),
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_name_of_64_kib_is_listed_and_a_longer_one_is_refused_with_its_place(tmp_path: Path, file: str) -> None:
    writer, place = WRITERS[file]
    path = tmp_path / file
    for name in ("a" * MAX_NAME_BYTES, "ü" * (MAX_NAME_BYTES // 2)):
        writer(path, name)
        assert name in list_inputs(path)["uri"].to_pylist()
        writer(path, name + "b")
        assert refused(path).startswith(f"{place.format(path)} has a name of 65537 bytes, and the limit is 65536: ")


def test_a_name_of_a_hundred_megabytes_is_refused(cli: Cli, tmp_path: Path) -> None:
    long = "a" * 100_000_000
    for file in ("m.txt", "m.csv", "m.jsonl"):
        writer, place = WRITERS[file]
        writer(tmp_path / file, long)
        said = cli("plan", tmp_path / file, *DEMO, "--out", tmp_path / "run", code=3).stderr
        assert said.startswith(f"clipbatch: {place.format(tmp_path / file)} has ")
        assert "100000000" in said or "100000003" in said
        assert said.count("\n") == 1
        (tmp_path / file).unlink()


def test_long_names_of_archives_tables_of_images_and_urls_are_refused(tmp_path: Path) -> None:
    long = "a" * MAX_NAME_BYTES + ".jpg"
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("x.txt"))
        tar.addfile(tarfile.TarInfo(long))
    assert refused(tmp_path / "t.tar").startswith(
        f"member 2 of {tmp_path}/t.tar has a name of 65540 bytes, and the limit is 65536"
    )
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("é" * 32_000 + ".jpg", b"")
    assert list_inputs(tmp_path / "z.zip").num_rows == 1
    images = pa.table({"image": [b"x", b"y"], "n": ["x", long]})
    pq.write_table(images, tmp_path / "i.parquet")
    said = refused(tmp_path / "i.parquet", image_column="image", uri_column="n")
    assert said.startswith(f"row 1 (from 0) of {tmp_path}/i.parquet has a name of 65540 bytes")
    assert refused(f"http://127.0.0.1:1/{long}").startswith("row 0 (from 0) of http://127.0.0.1:1/aaa")


def test_the_place_of_a_long_name_is_found_in_the_right_file_of_many(tmp_path: Path) -> None:
    for suffix, place in (("csv", "line 3 of"), ("jsonl", "line 3 of"), ("parquet", "row 2 (from 0) of")):
        folder = tmp_path / suffix
        folder.mkdir()
        for number in range(3):
            name = "a" * (MAX_NAME_BYTES + 1) if number == 1 else "z.jpg"
            WRITERS[f"m.{suffix}"][0](folder / f"{number}.{suffix}", name)
        assert refused(folder).startswith(f"{place} {folder}/1.{suffix} has a name of 65537 bytes")


def test_an_endless_line_is_refused_and_a_long_comment_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "m.txt", "x.jpg\n# " + "c" * 20_000_000 + "\n" + " " * 9_000_000 + "\ny.jpg")
    assert list_inputs(path)["uri"].to_pylist() == ["x.jpg", "y.jpg"]
    with open(path, "wb") as file:
        file.write(b"x.jpg\n")
        file.truncate(2**28 + 2**23)  # of zeros
    assert refused(path) == f"line 2 of {path} is longer than {2**28} bytes: shorten it"


def test_duplicates_are_counted_among_names_of_every_length() -> None:
    rng = np.random.default_rng(1)
    lengths = [*range(40), 1016, 1023, 1024, 1025, 1032, 2000, 65_536]
    names = ["".join(map(chr, rng.integers(97, 123, length))) for length in lengths for _ in range(3)]
    names += [name[:-1] + "A" for name in names if len(name) > 1000]
    shuffled = [names[at] for at in rng.permutation(len(names))]
    given = pa.array([*names, *shuffled])
    found = hashes(given)
    assert [int(h) for h in found] == [int(hashes(pa.array([name]))[0]) for name in given.to_pylist()]
    assert len(set(found.tolist())) == len(set(names))
    counter = Duplicates()
    counter.add(given.slice(5))
    assert counter.count() == len(given) - 5 - len(set(given.to_pylist()[5:]))


@pytest.fixture(scope="module")
def wide(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of one photograph and thousands of columns."""
    folder = tmp_path_factory.mktemp("wide")
    photo = sorted(photos.glob("*.jpg"))[0]
    row = {"uri": str(photo)} | {f"column_{number}": number for number in range(COLUMNS)}
    write(folder / "w.csv", f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    write(folder / "w.jsonl", json.dumps(row))
    whole = pa.table({name: [value] for name, value in row.items()})
    pq.write_table(whole, folder / "w.parquet")
    feather.write_feather(whole, folder / "w.feather")
    image = pa.array([photo.read_bytes()])
    pq.write_table(whole.drop_columns(["uri"]).append_column("image", image), folder / "images.parquet")
    return folder


@pytest.mark.parametrize("file", ["w.csv", "w.jsonl", "w.parquet", "w.feather", "images.parquet"])
def test_thousands_of_columns_are_listed_in_time(cli: Cli, wide: Path, tmp_path: Path, file: str) -> None:
    """Reading the schema anew for each column takes minutes; the command line's tests wait for five."""
    cli("plan", wide / file, *DEMO, "--out", tmp_path / "run")
    (manifest,) = (tmp_path / "run" / "manifest").iterdir()
    found = carried(pq.read_table(manifest).drop_columns(["row_id"]))
    assert found.column_names == [f"column_{number}" for number in range(COLUMNS)]
    assert list(found.to_pylist()[0].values()) == list(range(COLUMNS))


def test_thousands_of_columns_are_carried_through_a_run(warm: Cli, wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    warm("run", wide / "w.parquet", *DEMO, "--device", "cpu", "--out", out)
    assert list(rows(out).to_pylist()[0].values())[-COLUMNS:] == list(range(COLUMNS))
    warm("verify", out)
    warm("compact", out, "--out", tmp_path / "few")
    warm("report", out)
    (compacted,) = (tmp_path / "few" / "parts").iterdir()
    assert pq.read_table(compacted).to_pylist() == rows(out).to_pylist()
