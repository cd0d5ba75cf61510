"""What is asked of web servers and where it leads: redirects, credentials, connections, proxies, parts; whole runs."""

import io
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipbatch.storage import stores
from clipbatch.types import Encoded
from tests.conftest import DEMO, Cli, error_in, needs, rows
from tests.support.reading import slots, told
from tests.support.servers import Handler, Web, body, in_turn, status, web

DATA = bytes(range(256)) * 300
NO_ONE = "http://127.0.0.1:1"


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as server:
        yield server


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
    assert [told(slot) for slot in slots(*urls)] == [DATA, b"secret", b"secret", DATA, DATA]
    fenced = dict(zip(names, map(told, slots(*urls, fence=f"{server.root}/in")), strict=True))
    assert fenced["near"] == fenced["end"] == DATA
    assert all(fenced[name][0] == "unreadable" and "out of --root" in fenced[name][1] for name in ("far", "up", "else"))


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/é🐝 x.jpg".encode(), "/%C3%A9%F0%9F%90%9D%20x.jpg"),
        (b"/caf\xe9.jpg", "/caf%E9.jpg"),
        (b"/%C3%A9.jpg", "/%C3%A9.jpg"),
        ("//HOST/ü?q=ä".encode(), "/%C3%BC?q=%C3%A4"),
    ],
    ids=["UTF-8", "latin-1", "percent", "host"],
)
def test_a_redirect_may_name_any_bytes(server: Web, location: bytes, asked: str) -> None:
    def answer(handler: Handler) -> None:
        host = f"127.0.0.1:{server.server_port}".encode()
        handler.close_connection = True
        handler.send(b"HTTP/1.1 302 Found\r\nLocation: " + location.replace(b"HOST", host))
        handler.send(b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    server.answers |= {"/x": answer, asked.partition("?")[0]: body(DATA)}
    assert [told(slot) for slot in slots(f"{server.root}/x")] == [DATA]
    assert server.seen[-1][0] == asked


def test_a_name_in_a_url_is_never_sent_as_a_credential(server: Web) -> None:
    server.answers["/x"] = body(DATA)
    (slot,) = slots(f"http://user:secret@127.0.0.1:{server.server_port}/x")
    assert told(slot) == DATA
    assert "Authorization" not in server.seen[0][1]


def test_connections_are_used_again(server: Web) -> None:
    ports: set[int] = set()

    def answer(handler: Handler) -> None:
        ports.add(handler.client_address[1])
        body(DATA)(handler)

    server.answers["/x"] = answer
    assert all(isinstance(slot, Encoded) for slot in slots(*[f"{server.root}/x"] * 200, read_threads=4))
    assert len(ports) <= 4


def test_a_proxy_is_taken_from_the_environment(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["http://images.invalid/x"] = body(DATA)
    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.setenv("no_proxy", "direct.invalid")
    through, direct = map(told, slots("http://images.invalid/x", "http://direct.invalid/x"))
    assert through == DATA
    assert direct[0] == "unreadable"


def test_a_certificate_that_nobody_signed_is_refused(server: Web, tmp_path: Path) -> None:
    needs("openssl")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    (slot,) = map(told, slots(f"https://localhost:{server.server_port}/x"))
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
    with stores.open_input_file(f"{server.root}/x") as file:
        assert file.read_at(6, 5) == DATA[5:11]
    with pytest.raises(OSError, match="gives no parts"):
        stores.open_input_file(f"{server.root}/whole")


def _stall(handler: Handler) -> None:
    handler.close_connection = True
    handler.head(Content_Length=len(DATA))
    handler.send(DATA[:1000])
    handler.server.over.wait()


def _hang_up(handler: Handler) -> None:
    handler.close_connection = True


def test_a_run_over_the_web_gives_what_local_files_give(cli: Cli, server: Web, photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in photos.glob("*.jpg"))[:24]
    server.answers |= {f"/in/{name}": body((photos / name).read_bytes()) for name in names}
    server.answers |= {
        f"/in/{names[3]}": status(403),
        f"/in/{names[5]}": _stall,
        f"/in/{names[7]}": in_turn(_hang_up, status(503), body((photos / names[7]).read_bytes())),
        f"/in/{names[9]}": status(302, Location=f"{server.root}/elsewhere"),
        "/in/list.txt": in_turn(status(503), body("\n".join([*names, "none.jpg", "../up.jpg"]).encode())),
    }
    (tmp_path / "local.txt").write_text("\n".join(names))
    cli("run", tmp_path / "local.txt", "--root", photos, *DEMO, "--out", tmp_path / "local")
    cli(
        *("run", f"{server.root}/in/list.txt", "--root", f"{server.root}/in", *DEMO),
        *("--read-timeout", "15", "--out", tmp_path / "out"),
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
        ("/folder/", "web servers do not list folders: write the images' urls into a .txt manifest"),
    ],
)
def test_an_input_that_cannot_be_had_is_refused_in_one_line(
    warm: Cli, server: Web, tmp_path: Path, arg: str, error: str
) -> None:
    url = arg if arg.startswith("http") else server.root + arg
    refused = warm("run", url, *DEMO, "--out", tmp_path / "out", code=3).stderr
    assert error in refused
    assert error_in(refused)
    assert not (tmp_path / "out").exists()
