"""Images on the web: servers that fail, stall, drip, lie, cut short and send elsewhere, beside ones that do not."""

import gzip
import io
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipbatch import __version__, stores
from clipbatch.config import ReadSettings
from clipbatch.read import Read
from clipbatch.types import Encoded, Item, ItemBatch, Reject
from conftest import DEMO, Cli, rows
from servers import Answer, Handler, Web, body, in_turn, status, web

DATA = bytes(range(256)) * 300
NO_ONE = "http://127.0.0.1:1"


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as server:
        yield server


def _slots(*urls: str, fence: str | None = None, **settings: Any) -> list[Encoded | Reject]:
    items = tuple(Item(row_id=n, uri=url, path=url, fence=fence) for n, url in enumerate(urls))
    batch = ItemBatch(shard=0, start=0, items=items, rows=pa.table({}), last=True)
    read = Read(ReadSettings(**{"read_timeout": 20.0, "read_retries": 1, **settings}))
    return [slot for slot in read(batch).slots if slot is not None]


def _told(slot: Encoded | Reject) -> Any:
    return bytes(slot.data) if isinstance(slot, Encoded) else (slot.status, slot.error)


def _one(server: Web, answer: Answer, **settings: Any) -> Any:
    """What becomes of /x when `answer` is given to it: bytes, or status and error."""
    server.answers["/x"] = answer
    (slot,) = _slots(f"{server.root}/x", **settings)
    return _told(slot)


def _chunked(handler: Handler, data: bytes = DATA) -> None:
    handler.head(Transfer_Encoding="chunked")
    handler.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))


def _no_length(handler: Handler) -> None:
    handler.close_connection = True
    handler.head(Connection="close")
    handler.send(DATA)


def _cut(handler: Handler) -> None:
    handler.close_connection = True
    handler.head(Content_Length=len(DATA))
    handler.send(DATA[:1000])


def _cut_chunk(handler: Handler) -> None:
    handler.close_connection = True
    handler.head(Transfer_Encoding="chunked")
    handler.send(b"%x\r\n%b" % (len(DATA), DATA[:1000]))


def _hang_up(handler: Handler) -> None:
    handler.close_connection = True


def _gibberish(handler: Handler) -> None:
    handler.close_connection = True
    handler.send(b"\x00\xff no http\r\n\r\n")


def _silent(handler: Handler) -> None:
    handler.close_connection = True
    handler.server.over.wait()


def _stalling(handler: Handler) -> None:
    handler.head(Content_Length=len(DATA))
    handler.send(DATA[:1000])
    _silent(handler)


def _dripping(handler: Handler) -> None:
    handler.head(Content_Length=len(DATA))
    while not handler.server.over.wait(0.05):
        handler.send(b"x")


def _endless(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked")
    while not handler.server.over.is_set():
        handler.send(b"400\r\n" + bytes(1024) + b"\r\n")


def _gzipped(data: bytes) -> Answer:
    packed = gzip.compress(data)

    def answer(handler: Handler) -> None:
        handler.head(Content_Encoding="gzip", Content_Length=len(packed))
        handler.send(packed)

    return answer


@pytest.mark.parametrize("answer", [body(DATA), _chunked, _no_length, _gzipped(DATA)])
def test_an_image_is_read_however_it_is_sent(server: Web, answer: Answer) -> None:
    assert _one(server, answer) == DATA
    assert server.seen[0][1]["User-Agent"] == f"clipbatch/{__version__}"


@pytest.mark.parametrize(
    ("answer", "outcome", "error", "tries"),
    [
        (status(404), "missing", "404 Not Found", 1),
        (status(410), "missing", "410 Gone", 1),
        (status(401), "unreadable", "401 Unauthorized", 1),
        (status(403), "unreadable", "403 Forbidden", 1),
        (status(204), "unreadable", "204 No Content", 1),
        (status(304), "unreadable", "304 Not Modified", 1),
        (status(429), "unreadable", "429 Too Many Requests", 2),
        (status(500), "unreadable", "500 Internal Server Error", 2),
        (status(503), "unreadable", "503 Service Unavailable", 2),
        (status(200), "empty", "0 bytes", 1),
        (_cut, "truncated", "1000 bytes read", 2),
        (_cut_chunk, "truncated", "the connection ended early", 2),
        (_hang_up, "unreadable", "no whole answer", 2),
        (_gibberish, "unreadable", "no whole answer", 2),
        (status(301), "unreadable", "301 Moved Permanently", 1),
        (status(302, Location="/x"), "unreadable", "more than 5 redirects", 6),
        (status(302, Location="file:///etc/passwd"), "unreadable", "not on the web", 1),
        (status(302, Location="ftp://127.0.0.1/x"), "unreadable", "not on the web", 1),
    ],
)
def test_what_is_no_image_becomes_a_reject_with_the_reason(
    server: Web, answer: Answer, outcome: str, error: str, tries: int
) -> None:
    server.answers["/good"] = body(DATA)
    server.answers["/x"] = answer
    good, bad, again = map(_told, _slots(*(f"{server.root}/{name}" for name in ("good", "x", "good"))))
    assert good == again == DATA
    assert (bad[0], error in bad[1]) == (outcome, True), bad
    assert server.hits("/x") == tries


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: Web, code: int) -> None:
    assert _one(server, in_turn(status(code), body(DATA))) == DATA


@pytest.mark.parametrize("answer", [_cut, _cut_chunk, _hang_up, _gibberish])
def test_a_connection_that_breaks_is_tried_again(server: Web, answer: Answer) -> None:
    assert _one(server, in_turn(answer, body(DATA))) == DATA


def test_a_server_that_asks_for_patience_gets_it(server: Web) -> None:
    assert _one(server, in_turn(status(429, Retry_After=1), body(DATA))) == DATA
    (_, _, first), (_, _, second) = server.seen
    assert second - first >= 1


@pytest.mark.parametrize("patience", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_more_patience_than_there_is_time_is_not_waited_for(server: Web, patience: str) -> None:
    begun = time.monotonic()
    assert _one(server, status(503, Retry_After=patience))[0] == "unreadable"
    assert server.hits("/x") == 1
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("patience", ["soon", "-1", "", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_nonsense_for_patience_is_none(server: Web, patience: str) -> None:
    assert _one(server, in_turn(status(503, Retry_After=patience), body(DATA))) == DATA


@pytest.mark.parametrize("answer", [_silent, _stalling, _dripping])
def test_a_server_that_stalls_costs_its_own_time_limit_and_no_more(server: Web, answer: Answer) -> None:
    server.answers |= {"/x": answer, "/good": body(DATA)}
    names = ["good", *("x" for _ in range(40)), "good"]  # more than are read at once
    begun = time.monotonic()
    first, *stalled, last = map(_told, _slots(*(f"{server.root}/{name}" for name in names), read_timeout=0.5))
    assert first == last == DATA
    assert {outcome for outcome, _ in stalled} == {"timeout"}
    assert time.monotonic() - begun < 40 * 0.5


@pytest.mark.parametrize("answer", [body(DATA), _chunked, _no_length, _endless, _gzipped(bytes(10**8))])
def test_no_more_than_the_limit_is_read(server: Web, answer: Answer) -> None:
    assert _one(server, answer, max_bytes=len(DATA) - 1)[0] == "too_large"


def test_a_length_that_is_a_lie_is_not_believed(server: Web) -> None:
    def claims(length: int) -> Answer:
        def answer(handler: Handler) -> None:
            handler.head(Content_Length=length)
            handler.send(DATA)

        return answer

    assert _one(server, claims(10**15))[0] == "too_large"
    assert _one(server, claims(1000)) == DATA[:1000]
    assert _one(server, body(DATA)) == DATA  # what was too much is nobody's next answer


@pytest.mark.parametrize(
    ("url", "outcome", "error"),
    [
        (f"{NO_ONE}/x", "unreadable", "no connection to 127.0.0.1:1: [Errno 111] Connection refused"),
        ("http://nowhere.invalid/x", "unreadable", "no connection to nowhere.invalid"),
        ("http:///x", "unreadable", "not a url"),
        ("http://[::1/x", "unreadable", "not a url"),
        ("http://127.0.0.1:99999/x", "unreadable", "not a url"),
        ("http://a" + "b" * 70 + "/x", "unreadable", ""),
        ("http://\udcff/x", "unreadable", "'\\udcff' is not"),
        ("gopher://host/x", "unreadable", "no store that clipbatch knows"),
        ("abfs://c@host/x", "unreadable", "pip install adlfs"),
    ],
)
def test_a_url_that_leads_nowhere_harms_nobody_else(server: Web, url: str, outcome: str, error: str) -> None:
    server.answers["/good"] = body(DATA)
    bad, good = map(_told, _slots(url, f"{server.root}/good"))
    assert (bad[0], error in bad[1], good) == (outcome, True, DATA), bad


def test_redirects_are_followed_and_stay_within_the_root(server: Web) -> None:
    server.answers |= {
        "/in/near": status(302, Location="deeper/x"),
        "/in/deeper/x": status(307, Location=f"{server.root}/in/end"),
        "/in/far": status(302, Location="/out/secret"),
        "/in/up": status(302, Location="deeper/../../out/secret"),
        "/in/else": status(302, Location=f"http://localhost:{server.server_port}/in/end"),
        "/in/end": body(DATA),
        "/out/secret": body(b"secret"),
    }
    names = ("near", "far", "up", "else", "end")
    urls = [f"{server.root}/in/{name}" for name in names]
    assert [_told(slot) for slot in _slots(*urls)] == [DATA, b"secret", b"secret", DATA, DATA]
    fenced = dict(zip(names, map(_told, _slots(*urls, fence=f"{server.root}/in")), strict=True))
    assert fenced["near"] == fenced["end"] == DATA
    assert all(fenced[name][0] == "unreadable" and "out of --root" in fenced[name][1] for name in ("far", "up", "else"))


def test_a_name_in_a_url_is_never_sent_as_a_credential(server: Web) -> None:
    server.answers["/x"] = body(DATA)
    (slot,) = _slots(f"http://user:secret@127.0.0.1:{server.server_port}/x")
    assert _told(slot) == DATA
    assert "Authorization" not in server.seen[0][1]


def test_connections_are_used_again(server: Web) -> None:
    ports: set[int] = set()

    def answer(handler: Handler) -> None:
        ports.add(handler.client_address[1])
        body(DATA)(handler)

    server.answers["/x"] = answer
    assert all(isinstance(slot, Encoded) for slot in _slots(*[f"{server.root}/x"] * 200, read_threads=4))
    assert len(ports) <= 4


def test_a_proxy_is_taken_from_the_environment(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["http://images.invalid/x"] = body(DATA)
    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.setenv("no_proxy", "direct.invalid")
    through, direct = map(_told, _slots("http://images.invalid/x", "http://direct.invalid/x"))
    assert through == DATA
    assert direct[0] == "unreadable"


def test_a_certificate_that_nobody_signed_is_refused(server: Web, tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    (slot,) = map(_told, _slots(f"https://localhost:{server.server_port}/x"))
    assert slot[0] == "unreadable"
    assert "certificate" in slot[1]


def _ranged(handler: Handler) -> None:
    first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
    part = DATA[first : last + 1]
    handler.head(206, Content_Length=len(part), Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(DATA)}")
    handler.send(part)


def test_parts_of_a_file_on_the_web_are_read_where_the_server_gives_parts(server: Web) -> None:
    server.answers |= {"/x": _ranged, "/whole": body(DATA)}
    with stores.open_input_file(f"{server.root}/x") as file:
        assert (file.size(), file.read_at(10, 300), file.read_at(10, len(DATA) - 4)) == (
            len(DATA),
            DATA[300:310],
            DATA[-4:],
        )
        file.seek(-5, io.SEEK_END)
        assert file.read() == DATA[-5:]
    assert stores.read_range(f"{server.root}/x", 5, 6) == DATA[5:11]
    with pytest.raises(OSError, match="gives no parts"):
        stores.open_input_file(f"{server.root}/whole")


def test_a_run_over_the_web_gives_what_local_files_give(cli: Cli, server: Web, photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in photos.glob("*.jpg"))[:24]
    server.answers |= {f"/in/{name}": body((photos / name).read_bytes()) for name in names}
    server.answers |= {
        f"/in/{names[3]}": status(403),
        f"/in/{names[5]}": _stalling,
        f"/in/{names[7]}": in_turn(_hang_up, status(503), body((photos / names[7]).read_bytes())),
        f"/in/{names[9]}": status(302, Location=f"{server.root}/elsewhere"),
        "/in/list.txt": in_turn(status(503), body("\n".join([*names, "none.jpg", "../up.jpg"]).encode())),
    }
    (tmp_path / "local.txt").write_text("\n".join(names))
    cli("run", tmp_path / "local.txt", "--root", photos, *DEMO, "--out", tmp_path / "local")
    cli(
        *("run", f"{server.root}/in/list.txt", "--root", f"{server.root}/in", *DEMO),
        *("--read-timeout", "5", "--out", tmp_path / "out"),
    )
    found, local = rows(tmp_path / "out").to_pylist(), rows(tmp_path / "local").to_pylist()
    bad = {3: "unreadable", 5: "timeout", 9: "unreadable", 24: "missing", 25: "unreadable"}
    assert [row["status"] for row in found] == [bad.get(n, "ok") for n in range(26)]
    for n, row in enumerate(local):
        if n not in bad:
            assert (found[n]["label"], found[n]["scores"], found[n]["uri"]) == (row["label"], row["scores"], names[n])


@pytest.mark.parametrize(
    ("arg", "error"),
    [
        (f"{NO_ONE}/list.txt", "cannot read the manifest http://127.0.0.1:1/list.txt: no connection to 127.0.0.1:1"),
        ("/none.txt", "the server says 404 Not Found"),
        ("/folder/", "a web server lists no folders: write the images' urls into a .txt manifest"),
    ],
)
def test_an_input_that_cannot_be_had_is_refused_in_one_line(
    cli: Cli, server: Web, tmp_path: Path, arg: str, error: str
) -> None:
    url = arg if arg.startswith("http") else server.root + arg
    refused = cli("run", url, *DEMO, "--out", tmp_path / "out", code=3).stderr
    assert error in refused
    assert len(refused.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
