"""The service over HTTP: right answers to the right clients, limits, and an end that loses nothing."""

import contextlib
import io
import json
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import urllib3

from clipbatch import Classifier
from clipbatch.errors import InputError
from clipbatch.serving.http import ARROW, Limits, listen
from tests.support.corpus import make_folder
from tests.support.serving import answering, ask, begin, finished, paths, serving

CLIENTS = 16
REQUESTS = 600
CLOSE = 1e-3
"""Between scores of batches of other sizes, in bf16 (docs/explanation/accuracy.md)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 120, seed=12, bad_fraction=0.15)
    return folder


@pytest.fixture(scope="module")
def files(folder: Path) -> list[str]:
    """Names below `folder`."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def classifier(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", root=folder) as made:
            yield made


@pytest.fixture(scope="module")
def url(classifier: Classifier) -> Iterator[str]:
    with answering(classifier, Limits()) as url:
        yield url


@pytest.fixture(scope="module")
def expected(classifier: Classifier, files: list[str]) -> dict[str, dict[str, Any]]:
    """The row of each file, by the engine itself."""
    return {row["uri"]: row for row in classifier.classify(files).to_pylist()}


def assert_same(row: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = ("status", "error", "width", "height", "decoder", "label")
    assert [row[name] for name in facts] == [expected[name] for name in facts]
    assert (row["scores"] is None) == (expected["scores"] is None)
    if row["scores"] is not None:
        assert row["scores"] == pytest.approx(expected["scores"], abs=CLOSE)


def test_images_come_as_paths_forms_and_bodies_and_leave_as_json_and_arrow(
    url: str, folder: Path, files: list[str], expected: dict[str, dict[str, Any]]
) -> None:
    names = [*files[:9], "nowhere.jpg", "../outside.jpg"]
    rows = ask(url, paths(names), "application/json").json()["rows"]
    assert [row["uri"] for row in rows] == names
    assert [row["row_id"] for row in rows] == list(range(11))
    for row in rows[:9]:
        assert_same(row, expected[row["uri"]])
    assert [row["status"] for row in rows[9:]] == ["missing", "unreadable"]
    form = [("image", (name, (folder / name).read_bytes(), "image/jpeg")) for name in files[:5]]
    rows = urllib3.request("POST", f"{url}/classify", fields=form).json()["rows"]
    assert [row["uri"] for row in rows] == [name.rpartition("/")[2] for name in files[:5]] or [
        row["uri"] for row in rows
    ] == files[:5]
    for row, name in zip(rows, files[:5], strict=True):
        assert_same(row, expected[name])
    (row,) = ask(url, (folder / files[3]).read_bytes(), "image/jpeg").json()["rows"]
    assert row["uri"] is None
    assert_same(row, expected[files[3]])
    answer = ask(url, paths(files[:4]), "application/json", accept=ARROW)
    table = pa.ipc.open_stream(io.BytesIO(answer.data)).read_all()
    assert table["uri"].to_pylist() == files[:4]
    assert ask(url, b"", "image/png").json()["rows"][0]["status"] == "empty"
    health = urllib3.request("GET", f"{url}/health").json()
    assert (health["status"], health["model"], len(health["labels"])) == ("ok", "clipbatch-demo", 10)
    metrics = urllib3.request("GET", f"{url}/metrics").data.decode()
    assert 'clipbatch_http_requests_total{code="200"}' in metrics
    assert 'clipbatch_images_total{status="missing"} 1.0' in metrics


def test_wrong_requests_are_refused_with_a_reason(
    classifier: Classifier, files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with answering(classifier, Limits(images=3, body_mib=1)) as url:
        for body, kind, code, said in (
            (paths(files[:4]), "application/json", 413, "4 paths, and 3"),
            (b"x" * 2**21, "image/jpeg", 413, "more than 1 MiB"),
            (b"[1]", "application/json", 400, "paths"),
            (b"{", "application/json", 400, "paths"),
            (b'{"paths": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "application/json", 400, "paths"),
            (b'{"paths": [1]}', "application/json", 400, "no list of texts"),
            (b'{"paths": ["\\ud800"]}', "application/json", 400, "no list of texts"),
            (b"a=b", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
            (b"rubbish", "multipart/form-data", 400, "boundary"),
        ):
            answer = ask(url, body, kind)
            assert (answer.status, said in answer.json()["error"]) == (code, True), answer.data
        form = [("image", (f"{number}.jpg", b"x", "image/jpeg")) for number in range(4)]
        assert urllib3.request("POST", f"{url}/classify", fields=form).status == 413
        assert len(urllib3.request("POST", f"{url}/classify", fields=form[:3]).json()["rows"]) == 3
        assert urllib3.request("POST", f"{url}/classify", body=b"x", retries=False).status == 415  # no content type
        assert urllib3.request("GET", f"{url}/classify").status == 405
        assert len(ask(url, paths(files[:3]), "application/json").json()["rows"]) == 3
    with (
        Classifier(model="clipbatch-demo", labels="cifar10", device="cpu") as anywhere,
        answering(anywhere, Limits()) as url,
    ):
        answer = ask(url, paths(["/etc/passwd"]), "application/json")
        assert (answer.status, "--root" in answer.json()["error"]) == (403, True)
    for wrong in ("host:http", "99999", "192.0.2.1:0"):
        with pytest.raises(InputError, match=wrong):
            listen(wrong)


def test_more_requests_than_are_taken_get_429_and_those_that_were_taken_their_answer(
    classifier: Classifier, files: list[str]
) -> None:
    body = paths(files[:60])
    with answering(classifier, Limits(requests=1)) as url, ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: ask(url, body, "application/json"), range(20)))
        assert {answer.status for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status == 200:
                assert [row["uri"] for row in answer.json()["rows"]] == files[:60]
            else:
                assert (answer.headers["retry-after"], "try again" in answer.json()["error"]) == ("1", True)
        assert ask(url, body, "application/json").status == 200


def test_no_answer_is_lost_or_mixed_up_while_clients_hang_up(
    url: str, folder: Path, files: list[str], expected: dict[str, dict[str, Any]]
) -> None:
    answered, wrong = list[int](), list[str]()

    def client(number: int) -> None:
        rng, pool = random.Random(number), urllib3.PoolManager()
        for turn in range(REQUESTS // CLIENTS):
            names = rng.sample(files, rng.randint(1, 5))
            try:
                if rng.random() < 0.2:  # hang up, in the middle of the body or before the answer
                    body = paths(names)
                    begin(url, body, rng.choice([len(body) // 2, len(body)])).close()
                    continue
                if rng.random() < 0.5:
                    request = {"body": paths(names), "headers": {"content-type": "application/json"}}
                else:
                    names = names[:1]
                    request = {"body": (folder / names[0]).read_bytes(), "headers": {"content-type": "image/jpeg"}}
                rows = pool.request("POST", f"{url}/classify", retries=False, **request).json()["rows"]
                assert len(rows) == len(names)
                for row, name in zip(rows, names, strict=True):
                    assert row["uri"] in (name, None)
                    assert_same(row, expected[name])
                answered.append(turn)
            except Exception as error:
                wrong.append(repr(error))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert wrong == []
    assert len(answered) > REQUESTS * 0.6


def test_a_signal_ends_it_when_what_was_asked_is_answered(folder: Path, files: list[str]) -> None:
    body = paths(files[:3])
    with serving("--http", "0", "--root", folder) as service:
        assert ask(service.url, body, "application/json").status == 200
        sock = begin(service.url, body, 9)
        ask(service.url, body, "application/json")  # by now the other one has arrived
        service.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while True:  # until no more is taken
                begin(service.url, body, 0).close()
        code, answer = finished(sock, body[9:])
        assert (code, len(json.loads(answer)["rows"])) == (200, 3)
        assert service.process.wait(timeout=120) == 0
        assert not [line for line in service.said if "Traceback" in line]
