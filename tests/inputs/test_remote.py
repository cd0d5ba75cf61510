"""Images, folders and manifests in object stores, against a real S3-protocol server."""

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from clipbatch.config import ReadSettings, SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import remote_folders
from clipbatch.inputs.folders import LEFTOVERS
from clipbatch.inputs.listing import listers
from clipbatch.inputs.remote_folders import ODD_KEYS
from clipbatch.stages.read import Read
from clipbatch.storage import stores
from clipbatch.types import Encoded, Item, ItemBatch
from tests.support.servers import Buckets, buckets

NAMES = [
    "a.jpg",
    "b-c.jpg",
    "b.jpg",
    "b/x.JPG",
    "b/y/z.png",
    "é ü#?%20&+.jpg",
    "photo.jpg/in.jpg",
    "s/note.md",
    "~.webp",
]
LEFT = ["._1.jpg", "1.jpg", "@eaDir/1.jpg/THUMB.jpg", "__MACOSX/._1.jpg", "a/.thumbnails/2.png", "a/2.jpg"]


@pytest.fixture(scope="module")
def store() -> Iterator[Buckets]:
    with buckets() as store:
        store.put("tree")
        for name in NAMES:
            store.put("tree/p/" + quoted(name), name.encode())
        store.put("tree/p/b/")  # a folder's marker, as consoles make them
        store.put("tree/p/b//odd.jpg", b"x")
        store.put("tree/empty.jpg")
        store.put("nothing")
        store.put("left")
        for name in LEFT:
            store.put(f"left/{name}", b"x")
        yield store


def quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def test_leftovers_in_a_store_are_left_out_and_counted(here: Buckets) -> None:
    assert _listed("s3://left") == (["s3://left/1.jpg", "s3://left/a/2.jpg"], {LEFTOVERS: 4})
    assert _listed("s3://left/**/*.jpg") == (["s3://left/1.jpg", "s3://left/a/2.jpg"], {LEFTOVERS: 1})
    assert len(_listed("s3://left", all_files=True)[0]) == len(LEFT)


def _listed(text: str, **settings: Any) -> tuple[list[str], dict[str, int]]:
    (lister,) = listers(SourceSettings(inputs=(text,), **settings))
    uris = [uri for batch in lister.batches() for uri in batch["uri"].to_pylist()]
    return uris, dict(lister.passed_over)


def _read(*urls: str, **settings: Any) -> list[Any]:
    items = tuple(Item(row_id=n, uri=url, path=url) for n, url in enumerate(urls))
    done = Read(ReadSettings(**settings))(ItemBatch(shard=0, start=0, items=items, rows=pa.table({}), last=True))
    return [bytes(slot.data) if isinstance(slot, Encoded) else slot for slot in done.slots]


def test_a_remote_folder_is_listed_like_the_same_tree_on_a_disk(here: Buckets, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photo.jpg").rename(tmp_path / "photo")  # on a disk, a folder with an image's name is a row of its own
    local, passed_over = _listed(str(tmp_path))
    expected = [uri.replace(str(tmp_path), "s3://tree/p").replace("/photo/", "/photo.jpg/") for uri in local]
    assert _listed("s3://tree/p/") == (expected, passed_over | {ODD_KEYS: 1})
    assert _listed("s3://tree/p") == _listed("s3://tree/p/")
    assert _read(*expected) == [uri.removeprefix("s3://tree/p/").encode() for uri in expected]
    assert len(_listed("s3://tree/p", all_files=True)[0]) == len(NAMES)
    assert _listed("s3://tree")[0] == ["s3://tree/empty.jpg", *expected]


def test_keys_that_the_client_would_take_for_others_are_said_and_never_read_as_these(here: Buckets) -> None:
    here.put("odd")
    for key in ("a.jpg", "c/a.jpg", "%2E/a.jpg", "%2E%2E/a.jpg", "c/%2E%2E/b.jpg", "c//d.jpg", "..a.jpg", "...a.jpg"):
        here.put(f"odd/{key}", key.encode())
    listed, passed_over = _listed("s3://odd")
    assert listed == [f"s3://odd/{name}" for name in ("...a.jpg", "..a.jpg", "a.jpg", "c/a.jpg")]
    assert passed_over == {ODD_KEYS: 4}
    assert "copy them to other keys" in ODD_KEYS
    odd = [f"s3://odd/{key}" for key in ("./a.jpg", "../a.jpg", "c/../a.jpg", "c/../b.jpg", "c//d.jpg")]
    for slot in _read(*odd):
        assert (slot.status, "copy the object to another key" in slot.error) == ("unreadable", True), slot


def test_an_object_is_read_without_its_content_encoding_as_on_the_web(here: Buckets) -> None:
    here.put("packed")
    data = bytes(range(256)) * 400
    whole, compressed = gzip.compress(data), pa.compress(data, "zstd", asbytes=True)
    packed = {
        "a.jpg": (whole, "gzip", data),
        "b.jpg": (whole, "aws-chunked,gzip", data),
        "c.jpg": (compressed, "zstd", data),
        "plain.jpg": (whole, "", whole),
        "lie.jpg": (data, "gzip", data),
        "cut.jpg": (whole[:-100], "gzip", None),
        "none.jpg": (gzip.compress(b""), "gzip", "empty"),
    }
    for name, (stored, encoding, _) in packed.items():
        here.put(f"packed/{name}", stored, **({"Content-Encoding": encoding} if encoding else {}))
    names = list(packed)
    for name, slot in zip(names, _read(*(f"s3://packed/{name}" for name in names), read_retries=0), strict=True):
        wanted = packed[name][2]
        if isinstance(wanted, bytes):
            assert slot == wanted, (name, slot)
        else:
            assert slot.status == (wanted or "truncated"), (name, slot)
    (large,) = _read("s3://packed/a.jpg", max_bytes=len(data) - 1)
    assert large.status == "too_large"
    here.put("packed/list.txt", gzip.compress(b"s3://packed/a.jpg\n"), **{"Content-Encoding": "gzip"})
    here.put("packed/list.txt.gz", gzip.compress(b"s3://packed/a.jpg\n"), **{"Content-Encoding": "gzip"})
    assert _listed("s3://packed/list.txt")[0] == _listed("s3://packed/list.txt.gz")[0] == ["s3://packed/a.jpg"]


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_is_said_to_be_one(here: Buckets, storage_class: str) -> None:
    here.put("cold")
    here.put(f"cold/{storage_class}.jpg", bytes(5000), **{"x-amz-storage-class": storage_class})
    (slot,) = _read(f"s3://cold/{storage_class}.jpg")
    assert (slot.status, "if it is archived (GLACIER, DEEP_ARCHIVE), restore it first" in slot.error) == (
        "unreadable",
        True,
    ), slot


def test_a_tree_of_many_folders_is_listed_in_order(here: Buckets) -> None:
    here.put("wide")
    for number in range(40):
        here.put(f"wide/{number:02d}/{number % 3}/x.jpg", b"x")
    assert _listed("s3://wide")[0] == [f"s3://wide/{number:02d}/{number % 3}/x.jpg" for number in range(40)]


def test_one_star_matches_names_two_match_folders_and_other_characters_are_literal(here: Buckets) -> None:
    assert _listed("s3://tree/p/b*.jpg")[0] == ["s3://tree/p/b-c.jpg", "s3://tree/p/b.jpg"]
    images = sorted((f"s3://tree/p/{name}" for name in NAMES if not name.endswith(".md")), key=str.encode)
    assert _listed("s3://tree/p/**") == (images, {".md": 1})
    assert _listed("s3://tree/**/x.JPG")[0] == ["s3://tree/p/b/x.JPG"]
    assert _listed("s3://tree/p/* ü#?%20&+.jpg")[0] == ["s3://tree/p/é ü#?%20&+.jpg"]
    assert _listed("s3://tree/p/b/*/")[0] == ["s3://tree/p/b/y/z.png"]
    for text in ("s3://tree/p/*x.gif", "s3://tree/none/*"):
        with pytest.raises(InputError, match="nothing matches the pattern"):
            _listed(text)
    with pytest.raises(InputError, match=r"has a \* in its bucket"):
        _listed("s3://tr*/x")


def test_a_folder_is_listed_once(here: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    list_one = remote_folders.entries
    monkeypatch.setattr(remote_folders, "entries", lambda url: (asked.append(url.rstrip("/")), list_one(url))[1])
    _listed("s3://tree/p/")
    assert len(asked) == len(set(asked)) == 5


def test_a_single_remote_image_is_an_input(here: Buckets) -> None:
    assert _listed("s3://tree/p/a.jpg")[0] == ["s3://tree/p/a.jpg"]
    assert _listed("s3://tree/p/s/note.md", all_files=True)[0] == ["s3://tree/p/s/note.md"]
    assert _listed("https://host/a.jpg?signature=x/y")[0] == ["https://host/a.jpg?signature=x/y"]
    with pytest.raises(InputError, match=r"there is nothing at s3://tree/p/s/note\.md"):
        _listed("s3://tree/p/s/note.md")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("s3://tree/none/", "there is nothing at s3://tree/none/"),
        ("s3://nothing/", "holds no images"),
        ("s3://tree/p/s", r"holds no images \(1 other files\)"),
        ("s3://no-such-bucket/p", "cannot list s3://no-such-bucket/p/: .*NO_SUCH_BUCKET"),
        ("s3://no-such-bucket/list.txt", "cannot read the manifest s3://no-such-bucket/list.txt"),
        ("s3://tree/none.txt", "cannot read the manifest s3://tree/none.txt"),
        ("s3://", "names no bucket: write s3://BUCKET/PATH"),
        ("gopher://host/x/", "in no store that clipbatch knows: use one of abfs"),
        ("abfs://c@host/x/", "pip install adlfs"),
        ("https://host/photos/", "web servers do not list folders"),
    ],
)
def test_an_input_that_does_not_exist_is_refused(here: Buckets, text: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        _listed(text)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl.gz", "list.parquet"])
def test_a_table_in_a_store_is_a_manifest(here: Buckets, name: str) -> None:
    table = pa.table({"uri": ["p/a.jpg", "p/none.jpg"], "year": [1999, 2001]})
    if name.endswith("parquet"):
        pq.write_table(table, sink := pa.BufferOutputStream())
        data = sink.getvalue().to_pybytes()
    elif name.endswith("csv"):
        data = b"uri,year\np/a.jpg,1999\np/none.jpg,2001\n"
    else:
        data = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist()))
    here.put(f"tree/{name}", data)
    (lister,) = listers(SourceSettings(inputs=(f"s3://tree/{name}",)))
    (again,) = listers(SourceSettings(inputs=(f"s3://tree/{name}",)))
    assert lister.identity() == again.identity()
    assert lister.identity().startswith(f"s3://tree/{name} sha256:")
    (batch,) = lister.batches()
    assert batch.select(["uri", "year"]).to_pydict() == table.to_pydict()
    assert batch["root"].to_pylist() == ["s3://tree"] * 2


def test_each_object_gets_its_own_status(here: Buckets) -> None:
    good, *bad = _read(
        "s3://tree/p/a.jpg",
        "s3://tree/empty.jpg",
        "s3://tree/none.jpg",
        "s3://tree/p",
        "s3://no-such-bucket/x.jpg",
        "s3://tree/p/b//odd.jpg",
        "s3://tree/p/b-c.jpg",
        max_bytes=5,
    )
    assert good == b"a.jpg"
    assert [slot.status for slot in bad] == ["empty", "missing", "missing", "missing", "unreadable", "too_large"]


def test_wrong_credentials_are_one_line_for_a_folder_and_a_status_for_an_image(here: Buckets) -> None:
    here.guard(True)
    try:
        with pytest.raises(InputError, match=r"cannot list s3://tree/p/: .*(ACCESS_DENIED|INVALID_ACCESS_KEY)"):
            _listed("s3://tree/p")
        (slot,) = _read("s3://tree/p/a.jpg")
    finally:
        here.guard(False)
    assert slot.status == "unreadable"
    assert "the store refuses the credentials: INVALID_ACCESS_KEY_ID: The AWS Access Key Id you provided" in slot.error


@pytest.fixture
def deaf() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_an_endpoint_that_never_answers_ends_a_listing(
    here: Buckets, deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", deaf)
    monkeypatch.setattr(stores, "ANSWER_S", 1.0)
    monkeypatch.setattr(stores, "ATTEMPTS", 1)
    with pytest.raises(InputError, match=r"cannot list s3://deaf/p/: .*NETWORK_CONNECTION"):
        _listed("s3://deaf/p")


def test_an_endpoint_that_never_answers_costs_an_image_its_time_limit(
    here: Buckets, deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", deaf)
    slots = _read(*["s3://mute/x.jpg"] * 3, __file__, read_timeout=2.0)
    assert [slot.status for slot in slots[:3]] == ["timeout"] * 3
    assert slots[3] == Path(__file__).read_bytes()


def test_an_unknown_region_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setattr(pafs, "resolve_s3_region", lambda bucket: over.wait())
    monkeypatch.setattr(stores, "_REGION_S", 0.1)
    try:
        store, path = stores.open_store("s3://far-away/p/")
    finally:
        over.set()
    assert (store.region, path) == ("eu-central-1", "far-away/p")


def test_parts_of_an_object_are_read(here: Buckets) -> None:
    with stores.open_input_file("s3://tree/p/a.jpg") as file:
        assert file.read_at(2, 2) == b"jp"
    with stores.open_input_file("s3://tree/p/a.jpg") as file:
        assert (file.size(), file.read_at(9, 1)) == (5, b".jpg")


def test_a_store_is_opened_once(here: Buckets) -> None:
    (first, path), (second, _) = stores.open_store("s3://tree/p/"), stores.open_store("s3://tree/q")
    assert first is second
    assert path == "tree/p"
