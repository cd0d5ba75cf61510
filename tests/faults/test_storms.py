"""Whole runs over an S3 server and a web server behind a proxy that fails: no row is lost to what passes, and none is
published that was spoiled by what does not pass."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipbatch.storage import retries
from tests.conftest import DEMO, Cli, rows
from tests.support.proxy import Fault, FaultProxy, Proxied, at_random, fault_proxy, for_a_while, from_then_on
from tests.support.servers import Buckets, Web, body, buckets, web

COUNT = 240
SMALL = ("--batch-size", 16, "--shard-size", 48)


@pytest.fixture(scope="module")
def store() -> Iterator[Buckets]:
    with buckets() as store:
        yield store


@pytest.fixture(scope="module")
def images(photos: Path) -> dict[str, bytes]:
    """The images of every run here, by name."""
    files = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))[:8]]
    return {f"{number:04d}.jpg": files[number % len(files)] for number in range(COUNT)}


@pytest.fixture(scope="module")
def bucket(store: Buckets, images: dict[str, bytes]) -> str:
    store.put("storms")
    for name, data in images.items():
        store.put(f"storms/{name}", data)
    return "s3://storms"


@pytest.fixture(scope="module")
def server(images: dict[str, bytes]) -> Iterator[Web]:
    with web() as server:
        server.answers |= {f"/in/{name}": body(data) for name, data in images.items()}
        yield server


class Place:
    """Where a run finds its images: an S3 server or a web server, behind a proxy."""

    def __init__(self, proxy: FaultProxy, warm: Cli, out: Path, source: Any, env: dict[str, str], is_s3: bool) -> None:
        self.proxy, self.is_s3, self.out = proxy, is_s3, out
        self._warm, self._source, self._env = warm, source, env

    def run(self, *more: object, code: int = 0) -> Any:
        """Returns the report, or what is said where the run fails."""
        retries._hosts.clear()
        done = self._warm(
            *("run", self._source, *DEMO, *SMALL, *more, "--json", "--out", self.out), code=code, env=self._env
        )
        return done.stderr if code else json.loads(done.stdout)

    def refuse(self, code: int, error: str) -> Fault:
        return lambda request: request.refuse(code, error if self.is_s3 else "")


@pytest.fixture(params=["s3", "web"])
def place(
    request: pytest.FixtureRequest, warm: Cli, store: Buckets, bucket: str, server: Web, tmp_path: Path
) -> Iterator[Place]:
    is_s3 = request.param == "s3"
    with fault_proxy(store.endpoint if is_s3 else server.root) as proxy:
        source: Any = bucket + "/"
        env = store.env | {"AWS_ENDPOINT_URL": proxy.root}
        if not is_s3:
            source = tmp_path / "list.txt"
            source.write_text("".join(f"{proxy.root}/in/{number:04d}.jpg\n" for number in range(COUNT)))
        yield Place(proxy, warm, tmp_path / "out", source, env, is_s3)


def _parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


def _hang_up(request: Proxied) -> bool:
    return request.hang_up()


@pytest.mark.parametrize(
    "fault",
    [
        lambda place: at_random(0.3, 503, "SlowDown" if place.is_s3 else ""),
        lambda place: at_random(0.3, 520),
        lambda place: for_a_while(6, _hang_up, after=100),
        lambda place: for_a_while(6, _hang_up, after=1),
        lambda place: for_a_while(8, place.refuse(503, "SlowDown"), after=100),
        lambda place: for_a_while(8, place.refuse(429, "TooManyRequests"), after=1),
    ],
    ids=["30% 503", "30% 520", "6 s down", "6 s down at first", "8 s SlowDown", "8 s 429 at first"],
)
def test_no_row_is_lost_to_what_passes(place: Place, fault: Callable[[Place], Fault]) -> None:
    place.proxy.fault = fault(place)
    report = place.run("--read-timeout", 15)
    assert place.proxy.faults
    assert report["status"] == {"ok": COUNT}
    (waits,) = report["this_run"]["waits"].values()
    assert waits["tries_again"] >= 1
    assert waits["waited_s"] > 0


def test_a_storm_that_is_longer_than_the_time_limit_costs_no_row(place: Place) -> None:
    place.proxy.fault = for_a_while(8, place.refuse(503, "SlowDown"), after=100)
    assert place.run("--read-timeout", 3)["status"] == {"ok": COUNT}


def test_readers_slow_down_together(place: Place) -> None:
    """In a storm of 8 s, 64 readers that each wait by themselves would send some 600 requests."""
    place.proxy.fault = for_a_while(8, place.refuse(503, "SlowDown"), after=100)
    place.run("--batch-size", 48)
    assert place.proxy.faults < 8 * 64


def test_a_run_that_nothing_disturbs_says_nothing_of_waits(place: Place) -> None:
    assert "waits" not in place.run()["this_run"]


@pytest.mark.parametrize("good", [0, 30, 150, 235])
def test_a_token_that_expires_stops_the_run_before_its_rows_are_published(place: Place, good: int) -> None:
    listing = 1 if place.is_s3 else 0
    expired = place.refuse(400, "ExpiredToken") if place.is_s3 else place.refuse(403, "")
    place.proxy.fault = from_then_on(listing + good * (2 if place.is_s3 else 1), expired)
    said = place.run(code=75)
    assert ("ExpiredToken" if place.is_s3 else "403 Forbidden") in said
    assert "renew the credentials" in said
    assert "run the same command again" in said
    before = _parts(place.out)
    if before:
        assert [row for row in rows(place.out).to_pylist() if row["status"] != "ok"] == []
    place.proxy.fault = lambda request: False
    assert place.run()["status"] == {"ok": COUNT}
    assert before.items() <= _parts(place.out).items()


def test_a_store_that_goes_down_for_good_stops_the_run(place: Place) -> None:
    place.proxy.fault = from_then_on(300 if place.is_s3 else 150, _hang_up)
    said = place.run("--read-timeout", 2, code=75)
    assert "check the network" in said
    assert not _parts(place.out) or set(rows(place.out)["status"].to_pylist()) == {"ok"}
    place.proxy.fault = lambda request: False
    assert place.run("--read-timeout", 2)["status"] == {"ok": COUNT}


def _forbidden(first: int) -> Fault:
    """The images from number `first` on may not be read by anybody."""

    def fault(request: Proxied) -> bool:
        name = request.path.rpartition("/")[2].partition("?")[0]
        return name.endswith(".jpg") and int(name[:-4]) >= first and request.refuse(403)

    return fault


def test_images_that_nobody_may_read_are_rows_where_others_can_be_read(place: Place) -> None:
    """130 in a row are refused, and the store is asked for one that it gave before."""
    place.proxy.fault = _forbidden(COUNT - 130)
    assert place.run()["status"] == {"ok": COUNT - 130, "unreadable": 130}


def test_a_user_may_have_all_refused_images_as_rows(place: Place) -> None:
    place.proxy.fault = _forbidden(0)
    assert "--max-refused 0" in place.run(code=75)
    assert not _parts(place.out)
    assert place.run("--max-refused", 0, "--max-bad", "100%")["status"] == {"unreadable": COUNT}


def test_names_that_do_not_exist_stop_no_run(place: Place) -> None:
    def fault(request: Proxied) -> bool:
        return ".jpg" in request.path and request.refuse(404)

    place.proxy.fault = fault
    assert place.run("--max-bad", "100%")["status"] == {"missing": COUNT}
