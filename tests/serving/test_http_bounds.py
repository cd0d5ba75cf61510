"""What strangers may take of the service over HTTP: each bound holds, and others are answered meanwhile."""

import contextlib
import dataclasses
import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import urllib3

from clipbatch import Classifier
from clipbatch.cli import app
from clipbatch.errors import InputError
from clipbatch.serving.connections import SLOW_AFTER_S
from clipbatch.serving.http import SMALL_PIXELS, Limits, Metrics
from clipbatch.serving.limits import reserve_descriptors
from clipbatch.serving.sharing import LARGE_PIXELS
from clipbatch.serving.spool import MAX_NAME_BYTES
from tests.conftest import DEMO, start
from tests.support.corpus import make_folder
from tests.support.serving import answering, ask, begin, connect, finished, flat_png, paths, serving

ROOT = Path(__file__).parents[2]
HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 8, seed=3, bad_fraction=0)
    return folder


@pytest.fixture(scope="module")
def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def classifier(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", root=folder) as classifier:
            yield classifier


def is_over(sock: socket.socket) -> bool:
    """Whether the service has ended the connection, after what it has said."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    sock.close()
    return True


def counted(url: str) -> dict[str, float]:
    """Answers by code, as the metrics have them."""
    lines = urllib3.request("GET", f"{url}/metrics").data.decode().splitlines()
    found = [line for line in lines if line.startswith("clipbatch_http_requests_total{")]
    return {line.split('"')[1]: float(line.split()[1]) for line in found}


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X: " + b"a" * 40_000,
        HEAD + b"".join(b"X%d: y\r\n" % number for number in range(5000)),
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"X: " + b"a" * 33_000 + b"\r\n\r\n",
    ],
    ids=["one", "many", "url", "whole"],
)
def test_headers_of_more_than_the_limit_are_refused_before_they_are_whole(
    classifier: Classifier, names: list[str], head: bytes
) -> None:
    with answering(classifier, Limits()) as url:
        sock = connect(url)
        code, body = finished(sock, head)
        assert (code, "32 KiB" in json.loads(body)["error"]) == (431, True)
        assert ask(url, paths(names[:1]), "application/json", x="a" * 30_000).status == 200
        assert counted(url)["431"] == 1


def test_ten_megabytes_of_headers_and_trailers_hold_nobody_up(classifier: Classifier, names: list[str]) -> None:
    chunked = HEAD + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: "
    with answering(classifier, Limits()) as url:
        for start_ in (HEAD + b"X: ", chunked):
            with connect(url) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(start_ + b"a" * 10_000_000)
                sock.recv(1000)
            assert ask(url, paths(names[:2]), "application/json").status == 200


def test_a_body_that_drips_ends_in_its_time_and_takes_no_place(classifier: Classifier, names: list[str]) -> None:
    with answering(classifier, Limits(requests=2, body_time=1.5, idle_time=1.5)) as url:
        body = paths(names)
        dripping = [begin(url, body, 5) for _ in range(8)]
        assert ask(url, body, "application/json").status == 200  # though eight requests have begun
        for sock in dripping:
            sock.sendall(b"h")
        code, answer = finished(dripping.pop())
        assert (code, "took longer than 1.5 s" in json.loads(answer)["error"]) == (408, True)
        assert all(is_over(sock) for sock in dripping)
        assert counted(url)["408"] == 8


def test_connections_that_are_idle_or_drip_headers_end(classifier: Classifier) -> None:
    with answering(classifier, Limits(idle_time=0.5)) as url:
        silent, partial, kept = connect(url), connect(url), connect(url)
        partial.sendall(HEAD)
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(20):
                partial.sendall(b"X: y\r\n")
                time.sleep(0.1)
        assert finished(partial)[0] == 408
        assert is_over(silent)
        assert is_over(kept)


def test_one_more_connection_takes_the_place_of_an_idle_one(classifier: Classifier, names: list[str]) -> None:
    with answering(classifier, Limits(connections=4, idle_time=60, body_time=60)) as url:
        idle = [connect(url) for _ in range(20)]
        for _ in range(5):
            assert ask(url, paths(names[:1]), "application/json").status == 200
        for sock in idle:
            sock.close()
        body = paths(names)
        uploads = [begin(url, body, 5) for _ in range(4)]
        time.sleep(0.2)
        late = connect(url)
        code, answer = finished(late)
        assert (code, "4 connections are open" in json.loads(answer)["error"]) == (503, True)
        time.sleep(2)  # by now the uploads are slow, and one makes room
        assert ask(url, body, "application/json").status == 200
        codes = [finished(sock, body[5:]) for sock in uploads]
        assert sorted(code for code, _ in codes) == [200, 200, 200, 408], codes


def test_a_form_that_is_cut_anywhere_is_refused(classifier: Classifier, folder: Path, names: list[str]) -> None:
    fields = [("image", (name, (folder / name).read_bytes(), "image/jpeg")) for name in names[:2]]
    body, kind = urllib3.encode_multipart_formdata(fields)
    with answering(classifier, Limits()) as url:
        assert len(ask(url, body, kind).json()["rows"]) == 2
        assert ask(url, body[:-2], kind).status == 200  # without the last line's end, which RFC 2046 allows
        for cut in (3, 5, 8, 30, 40, 60, len(body) // 2, len(body) - 30):
            answer = ask(url, body[:-cut], kind)
            assert (answer.status, "form" in answer.json()["error"]) == (400, True), cut
        text, text_kind = urllib3.encode_multipart_formdata([("name", "value")])
        assert "is no file" in ask(url, text, text_kind).json()["error"]


def test_json_deeper_than_the_limit_is_refused(classifier: Classifier) -> None:
    with answering(classifier, Limits()) as url:
        for depth in (17, 100, 100_000):
            deep = b'{"paths": ' + b"[" * depth + b"]" * depth + b"}"
            answer = ask(url, deep, "application/json")
            assert (answer.status, "16 levels" in answer.json()["error"]) == (400, True)
        assert counted(url) == {"400": 3.0}


def test_pixels_are_bounded_and_large_images_take_a_lane_of_their_own(classifier: Classifier, names: list[str]) -> None:
    large = flat_png(6000, 6000)  # 36 megapixels
    forms = [("image", (f"{number}.png", large, "image/png")) for number in range(3)]
    with answering(classifier, Limits(megapixels=100)) as url:
        body, kind = urllib3.encode_multipart_formdata(forms)
        answer = ask(url, body, kind)
        assert (answer.status, "108 megapixels, and 100" in answer.json()["error"]) == (413, True)
        mixed = [forms[0], ("image", ("small.png", flat_png(40, 30), "image/png")), forms[1]]
        body, kind = urllib3.encode_multipart_formdata(mixed)
        codes, rows = list[int](), list[list[tuple[str, int]]]()

        def send() -> None:
            answer = ask(url, body, kind)
            codes.append(answer.status)
            if answer.status == 200:
                rows.append([(row["uri"], row["width"]) for row in answer.json()["rows"]])

        clients = [threading.Thread(target=send) for _ in range(3)]
        for client in clients:
            client.start()
        assert ask(url, paths(names[:1]), "application/json").status == 200
        for client in clients:
            client.join()
        assert set(codes) == {200, 429}
        assert rows
        assert all(row == [("0.png", 6000), ("small.png", 40), ("1.png", 6000)] for row in rows)
        assert ask(url, flat_png(14000, 14000), "image/png").json()["rows"][0]["status"] == "too_large"


def test_running_out_of_descriptors_is_503_and_no_row(classifier: Classifier, names: list[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with answering(classifier, Limits()) as url, urllib3.PoolManager() as pool:
        headers = {"content-type": "application/json"}
        assert pool.request("POST", f"{url}/classify", body=paths(names), headers=headers).status == 200
        free = os.dup(0)  # the lowest number that no file has
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            answer = pool.request("POST", f"{url}/classify", body=paths(names), headers=headers, retries=False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (answer.status, "too many files" in answer.json()["error"]) == (503, True)
        assert pool.request("POST", f"{url}/classify", body=paths(names), headers=headers).status == 200
    with pytest.raises(InputError, match="--max-connections 10000000"):
        reserve_descriptors(10_000_000)


def test_a_failure_of_ours_is_json_and_is_counted(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics()
    with answering(classifier, Limits(), metrics=metrics) as url:
        with monkeypatch.context() as patch:
            patch.setattr(type(classifier.shared()), "label", None)
            answer = ask(url, b"x", "image/png")
        assert (answer.status, "TypeError" in answer.json()["error"]) == (500, True)
        assert urllib3.request("GET", f"{url}/nowhere").json()["error"].startswith("there is no '/nowhere'")
        with connect(url) as sock:
            assert finished(sock, b"rubbish\r\n\r\n")[0] == 400
        assert counted(url) == {"500": 1.0, "404": 1.0, "400": 1.0}
    assert "TypeError" in capfd.readouterr().err


def test_a_slow_client_does_not_keep_the_service_from_its_end(folder: Path, names: list[str]) -> None:
    with serving("--http", "0", "--root", folder, "--grace-time", "1.5") as service:
        slow = begin(service.url, paths(names), 5)
        unread = begin(service.url, paths(names * 30), len(paths(names * 30)))
        assert ask(service.url, paths(names[:1]), "application/json").status == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=120) == 0
        assert not [line for line in service.said if "Traceback" in line]
        assert finished(slow)[0] == 503
        unread.close()


def test_the_numbers_that_the_pages_state_are_the_defaults_of_options_and_code() -> None:
    options = {
        option: parameter.default
        for parameter in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    fields = {field.name: field.default for field in dataclasses.fields(Limits)}
    for page in ("SECURITY.md", "docs/guides/serving.md"):
        rows = re.findall(r"^\| `(--[a-z-]+)` \| (\d+) \|", (ROOT / page).read_text(), re.MULTILINE)
        assert {name.removeprefix("--").removeprefix("max-").replace("-", "_"): float(n) for name, n in rows} == fields
        assert {name: float(number) for name, number in rows}.items() <= options.items()
    text = (ROOT / "SECURITY.md").read_text()
    assert f"for {SLOW_AFTER_S:g} s" in text
    assert f"up to {SMALL_PIXELS / 1e6:.1f} is" in text
    assert f"more than {LARGE_PIXELS / 1e6:.1f} go" in text
    assert f"{LARGE_PIXELS / 1e6:.1f} megapixels" in (ROOT / "docs/guides/serving.md").read_text()
    assert f"more than {MAX_NAME_BYTES} bytes" in (ROOT / "docs/guides/serving.md").read_text()


def test_limits_that_make_no_sense_are_refused() -> None:
    process = start("serve", *DEMO, "--http", "0", "--body-time", "0")
    assert "body_time 0.0 is out of range" in process.communicate(timeout=300)[1]
    assert process.returncode == 3
