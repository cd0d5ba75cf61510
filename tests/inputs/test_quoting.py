"""Headers and quotation marks of CSV and TSV files: which line is a row, and where a cell ends."""

import csv
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing as listings
from clipbatch.inputs import quoting
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder
from tests.support.listing import carried, list_inputs, refused, write


def _noted(path: Path, **settings: Any) -> tuple[pa.Table, Counter[str]]:
    """The listing of `path`, and what is said of it."""
    listing = listings.Listing(listings.listers(SourceSettings(inputs=(str(path),), **settings)), None, ())
    return pa.Table.from_batches(listing.batches(), listing.schema), listing.passed_over()


ROWS = {
    "names and numbers": "img/0.jpg,3\nimg/1.jpg,5\nimg/2.jpg,6\n",
    "one line": "img/0.jpg,3\n",
    "one column": "0.jpg\n1.PNG\n2.jpeg\n",
    "names last": "cat,0.jpg\ncat,1.jpg\ndog,2.jpg\n",
    "a label like a header": "image,0.jpg\ndog,1.jpg\nimage,2.jpg\n",
    "urls": "https://h/0?x=1,3\nhttps://h/1?x=1,4\n",
    "quoted": '"0.jpg","a, b"\n"1.jpg","c"\n',
    "values that occur twice": "0.jpg,3,3\n1.jpg,4,4\n",
    "blank lines first": "\n\n0.jpg,1\n1.jpg,2\n",
    "carriage returns": "0.jpg,1\r\n1.jpg,2\r\n",
    "byte order mark": "\ufeff0.jpg,1\n1.jpg,2\n",
    "some without a suffix": "0.jpg,1\n1,2\n2.jpg,3\n",
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
@pytest.mark.parametrize("case", ROWS)
def test_a_first_line_that_looks_like_the_rows_below_is_a_row(tmp_path: Path, case: str, suffix: str) -> None:
    import gzip

    text = ROWS[case].replace(", ", ";").replace(",", "\t") if suffix == ".tsv" else ROWS[case]
    path = write(tmp_path / f"m{suffix}", gzip.compress(text.encode()) if suffix.endswith("gz") else text)
    expected = list(csv.reader(io.StringIO(text.removeprefix("\ufeff")), delimiter="\t" if suffix == ".tsv" else ","))
    expected = [row for row in expected if row]
    at = next(at for at, cell in enumerate(expected[0]) if "." in cell or "//" in cell)
    found, noted = _noted(path)
    assert found["uri"].to_pylist() == [row[at] for row in expected]
    others = [f"column_{number + 1}" for number in range(len(expected[0])) if number != at]
    assert carried(found).column_names == others
    assert [what for what in noted if "is no header, so its columns are column_1 and so on" in what]
    assert list_inputs(path, no_header=True).equals(found)
    assert _noted(path, no_header=True)[1] == {}
    chosen = list_inputs(path, uri_column=f"column_{at + 1}", columns=tuple(others[:1]))
    assert (chosen["uri"].equals(found["uri"]), carried(chosen).column_names) == (True, others[:1])


HEADERS = {
    "usual": "path,n\n0.jpg,1\n",
    "unusual": "photo,n\na,1\nb,2\n",
    "a column called like an image": "path,cover.jpg\n0.jpg,1\n1.jpg,2\n",
    "classes as numbers": "photo,0,1,2\nx1,0,1,0\nx2,1,0,0\n",
    "a name with digits": "photo_1,n\nabc,1\nabd,2\n",
    "no rows that match": "file\ncat-1.jpg\n",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_stays_a_header(tmp_path: Path, case: str) -> None:
    found, noted = _noted(write(tmp_path / "m.csv", HEADERS[case]))
    assert found.num_rows == HEADERS[case].count("\n") - 1
    assert noted == {}


UNSURE = {
    "ids": "0001,cat\n0002,dog\n",
    "folders": "p/a,5\np/b,6\n",
    "names with digits": "abc1,5\nabd2,6\n",
    "an image above others": "cover.jpg,n\n1,1\n2,3\n",
    "both": "path,cover.jpg\n0.jpg,1.jpg\n2.jpg,3.jpg\n",
}


@pytest.mark.parametrize("case", UNSURE)
def test_a_first_line_that_may_be_either_is_refused_and_options_decide(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "m.csv", UNSURE[case])
    assert f"the first line of {path} (" in (said := refused(path))
    assert "may be a header or a row: use --no-header if it is a row" in said
    count = UNSURE[case].count("\n")
    assert list_inputs(path, no_header=True, uri_column="column_1").num_rows == count
    name = UNSURE[case].split(",")[0]
    for settings in ({"uri_column": name}, {"no_header": False, "uri_column": name}):
        assert list_inputs(path, **settings).num_rows == count - 1


def test_files_of_one_table_have_all_a_header_or_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", "0.jpg,1\n")
    write(tmp_path / "in" / "b.csv", "1.jpg,2\n2.jpg,x\n")
    found = list_inputs(tmp_path / "in")
    assert found.select(["uri", "column_2"]).to_pylist() == [
        {"uri": "0.jpg", "column_2": "1"}, {"uri": "1.jpg", "column_2": "2"}, {"uri": "2.jpg", "column_2": "x"}
    ]  # fmt: skip
    write(tmp_path / "in" / "c.csv", "path,n\n3.jpg,1\n")
    assert "are one table, but only one of them has a header" in refused(tmp_path / "in")


def test_a_run_takes_no_header_and_goes_on_with_it(warm: Cli, tmp_path: Path) -> None:
    listed = make_folder(tmp_path / "in", 4, seed=1, bad_fraction=0)
    path = write(tmp_path / "in" / "m.csv", "".join(f"{one.name},{n}\n" for n, one in enumerate(listed)))
    command = ("run", path, *DEMO, "--no-header", "--out", tmp_path / "out")
    warm(*command)
    assert rows(tmp_path / "out").select(["uri", "column_2", "status"]).to_pylist() == [
        {"uri": one.name, "column_2": number, "status": "ok"} for number, one in enumerate(listed)
    ]
    assert "nothing was left to do" in warm(*command).stdout
    said = warm(*command[:-3], "--out", tmp_path / "out", code=3).stderr
    assert "no_header is null now and true there" in said
    assert '"no_header": true' in (tmp_path / "out" / "run.json").read_text()
    warm("plan", path, *DEMO, "--out", tmp_path / "other")
    assert '"no_header"' not in (tmp_path / "other" / "run.json").read_text()


# What a TSV says, and what it means: cells by row.
TSV = {
    "a lone mark swallows nothing": ('0.jpg\t"starts\n1.jpg\tplain\n', [["0.jpg", '"starts'], ["1.jpg", "plain"]]),
    "two lone marks swallow nothing": (
        '0.jpg\t"starts with\n1.jpg\tplain\n2.jpg\tends so"\n3.jpg\tok\n',
        [["0.jpg", '"starts with'], ["1.jpg", "plain"], ["2.jpg", 'ends so"'], ["3.jpg", "ok"]],
    ),
    "a mark in a name": ('"0.jpg\tx\n1".jpg\ty\n', [['"0.jpg', "x"], ['1".jpg', "y"]]),
    "quoted": ('0.jpg\t"plain"\n1.jpg\t""\n', [["0.jpg", "plain"], ["1.jpg", ""]]),
    "doubled": ('0.jpg\t"say ""hi"""\n1.jpg\t"""\n', [["0.jpg", 'say "hi"'], ["1.jpg", '"""']]),
    "text behind": ('0.jpg\t"5" wide\n1.jpg\t6" wide\n', [["0.jpg", '"5" wide'], ["1.jpg", '6" wide']]),
    "a mark alone": ('0.jpg\t"\n1.jpg\tx "quoted" y\n', [["0.jpg", '"'], ["1.jpg", 'x "quoted" y']]),
    "a tab inside": ('0.jpg\t"a\tb"\n1.jpg\tc\n', [["0.jpg", "a\tb"], ["1.jpg", "c"]]),
    "a line break inside": ('0.jpg\t"a\nb"\n1.jpg\tc\n', [["0.jpg", "a\nb"], ["1.jpg", "c"]]),
    "both inside": ('0.jpg\t"a\nb\tc\n"\n1.jpg\td\n', [["0.jpg", "a\nb\tc\n"], ["1.jpg", "d"]]),
    "at the very end": ('0.jpg\t"a"\n1.jpg\t"b', [["0.jpg", "a"], ["1.jpg", '"b']]),
    "carriage returns": ('0.jpg\t"a"\r\n1.jpg\t"b\r\n', [["0.jpg", "a"], ["1.jpg", '"b']]),
}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("case", TSV)
def test_a_tsv_cell_is_quoted_only_where_it_is_properly_quoted(tmp_path: Path, case: str, header: bool) -> None:
    text, expected = TSV[case]
    found = list_inputs(write(tmp_path / "m.tsv", "path\tcaption\n" * header + text))
    columns = found.select(["uri", carried(found).column_names[0]]).to_pydict().values()
    assert [list(row) for row in zip(*columns, strict=True)] == expected


def test_lines_of_a_tsv_that_may_be_one_cell_or_several_rows_are_refused_or_said(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tsv", 'path\tcaption\nk0\tx\nk1\t"a\nk2\tb"\n')
    assert f"lines 3 to 4 of {path} may be one row with a quoted value or several" in refused(path)
    found, noted = _noted(write(path, 'path\tcaption\n0.jpg\tx\n1.jpg\t"a\nb\tc"\n2.jpg\ty\n'))
    assert found["caption"].to_pylist() == ["x", "a\nb\tc", "y"]
    assert noted == {f"(quoted values of {path} that look like rows, the first in lines 3 to 4)": 1}


def test_a_csv_cell_that_holds_what_looks_like_rows_is_said_with_its_lines(tmp_path: Path) -> None:
    text = 'path,caption\n0.jpg,"starts\n1.jpg,plain\n2.jpg,ends"\n3.jpg,ok\n4.jpg,"two\nlines, with, commas"\n'
    path = write(tmp_path / "m.csv", text)
    found, noted = _noted(path)
    assert found["uri"].to_pylist() == ["0.jpg", "3.jpg", "4.jpg"]
    assert noted == {f"(quoted values of {path} that look like rows, the first in lines 2 to 4)": 1}
    said = f"(quoted values of {path} that look like rows, the first in lines 150005 to 150006)"
    lines = "".join(f"{number}.jpg,{number},x\n" for number in range(150_000))
    write(path, f'path,n,caption\n{lines}a.jpg,1,"x\n\n,"\nb.jpg,1,"x\nc.jpg,2,y"\nd.jpg,3,"x\ne.jpg,4,y"\n')
    assert _noted(path)[1] == {said: 2}


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("bad", ['"x"y', '"x" ', '"a\nb" c'])
def test_text_behind_a_closing_quotation_mark_is_refused_with_its_line(tmp_path: Path, place: str, bad: str) -> None:
    good = [f'{number}.jpg,"say ""{number}"", {"x" * 40}"' for number in range(120_000)]
    at = {"first": 0, "middle": 60_000, "last": len(good)}[place]
    path = write(tmp_path / "m.csv", "\n".join(["path,c", *good[:at], f"bad.jpg,{bad}", *good[at:]]))
    line = at + 2 + bad.count("\n")
    assert f"line {line} of {path} has text after a closing quotation mark" in refused(path)
    path = write(tmp_path / "m.csv", "\n".join(["path,c", *good[:at], 'bad.jpg,"x']))
    assert f"a quotation mark in line {at + 2} of {path} is not closed" in refused(path)


@pytest.mark.parametrize("chunk_bytes", [211, 1009])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rows_are_the_same_wherever_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, chunk_bytes: int
) -> None:
    dice, separator = random.Random(5), "\t" if suffix == ".tsv" else ","
    texts = ['x"', '"x" y', "a, b", "plain", "", '"', 'say "hi"', "two\nlines", "\r\n", "é" * 40, 'a\tb"\n', '""""']
    table = [[f"{number}.jpg", dice.choice(texts), dice.choice(texts)] for number in range(400)]
    with open(tmp_path / f"m{suffix}", "w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["path", "a", "b"], *table])
    plain = write(tmp_path / "plain.tsv", "path\ta\n" + "".join(f'{n}.jpg\t"{"x" * (n % 50)}\n' for n in range(300)))
    monkeypatch.setattr(quoting, "CHUNK_BYTES", chunk_bytes)
    found = list_inputs(tmp_path / f"m{suffix}")
    assert [list(row.values()) for row in found.select(["uri", "a", "b"]).to_pylist()] == [
        [cell if cell or at == 0 else None for at, cell in enumerate(row)] for row in table
    ]
    assert list_inputs(plain)["a"].to_pylist() == [f'"{"x" * (n % 50)}' for n in range(300)]


def test_blank_lines_of_a_single_column_are_counted_and_an_empty_name_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", 'path\n0.jpg\n\n""\n"1\n\n.jpg"\r\n\r\n2.jpg\n')
    found, noted = _noted(path)
    assert found["uri"].to_pylist() == ["0.jpg", "", "1\n\n.jpg", "2.jpg"]
    assert noted == {f"(blank lines of {path}, which are no rows)": 2}
    assert _noted(write(path, "path,n\n0.jpg,1\n\n1.jpg,2\n"))[1] == {}


def test_a_cell_may_be_larger_than_a_chunk(tmp_path: Path) -> None:
    large = "x," * 5_000_000
    path = write(tmp_path / "m.csv", f'path,c\n0.jpg,"{large}"\n1.jpg,y\n')
    found = list_inputs(path)
    assert [len(one) for one in found["c"].to_pylist()] == [len(large), 1]


def test_a_quotation_mark_that_is_never_closed_is_refused_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quoting, "MAX_LINE_BYTES", 2**20)
    path = write(tmp_path / "m.csv", 'path,c\n0.jpg,"' + "x\n" * 5_000_000)
    with pytest.raises(InputError, match=r"the row in line 2 of .* has more than 1048576 bytes: look for a quotation"):
        list_inputs(path)
