"""Further tries, shared pauses and time limits, against real clocks and no server; what errors of stores mean."""

import threading
import time

import pytest

from clipbatch.errors import InputError
from clipbatch.storage import retries
from clipbatch.storage.failures import RemoteError, of_code, of_text, passes, remote_error
from clipbatch.storage.retries import Clock, Host, host_of, keep_trying

SLOW_DOWN = of_code(503, "the server says 503")


@pytest.fixture(autouse=True)
def _no_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_hosts", {})
    return


def _failing(times: int, error: OSError, begun: list[float]) -> str:
    begun.append(time.monotonic())
    if len(begun) <= times:
        raise error
    return "done"


@pytest.mark.parametrize("host", [None, "s3://bucket/x"])
def test_what_may_pass_is_tried_so_many_times_and_no_more(host: str | None) -> None:
    clock = Clock(60.0, host_of(host) if host else None)
    error = OSError(5, "Input/output error") if host is None else of_code(500, "500")
    begun: list[float] = []
    assert keep_trying(lambda: _failing(2, error, begun), clock, 2) == "done"
    begun = []
    with pytest.raises(OSError, match=r"500|Input/output error"):
        keep_trying(lambda: _failing(9, error, begun), clock, 2)
    assert len(begun) == 3


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file"),
        PermissionError(13, "Permission denied"),
        of_code(403, "403"),
        InputError("x"),
    ],
)
def test_what_does_not_pass_is_tried_once(error: Exception) -> None:
    begun: list[float] = []
    with pytest.raises(type(error) if not isinstance(error, OSError) else OSError):
        keep_trying(lambda: _failing(9, error, begun), Clock(60.0, host_of("s3://b/x")), 5)  # type: ignore[arg-type]
    assert len(begun) == 1


def test_a_pause_that_a_host_asks_for_holds_for_all_and_takes_none_of_their_time() -> None:
    host = host_of("s3://bucket/a")
    other = Clock(2.0, host_of("s3://bucket/b"))
    host.failed(RemoteError("unreadable", "429", passes=True, slow_down=True, retry_after_s=1.0))
    begun = time.monotonic()
    assert keep_trying(time.monotonic, other, 0) - begun >= 1.0
    assert other.left_s() > 1.5
    elsewhere = time.monotonic()
    keep_trying(time.monotonic, Clock(2.0, host_of("s3://other/b")), 0)
    assert time.monotonic() - elsewhere < 0.5


def test_pauses_grow_until_the_host_answers_and_not_with_each_reader() -> None:
    host, lengths_s = Host("s3://bucket"), []
    for _ in range(4):
        before = host.paused_s()
        for _ in range(64):  # the readers whose requests were on their way
            host.failed(SLOW_DOWN)
        lengths_s.append(host._resume_at - time.monotonic())
        host.wait_for_pause()
        assert host.paused_s() > before
    assert lengths_s[0] <= 0.1
    assert lengths_s[-1] > 0.3
    host.answered()
    host.failed(SLOW_DOWN)
    assert host._resume_at - time.monotonic() <= 0.1


def test_a_host_that_is_down_for_the_time_limit_gets_one_try_until_it_answers() -> None:
    host = host_of("https://host/x")
    dead = RemoteError("unreadable", "no connection", passes=True, silent=True)
    begun: list[float] = []
    host.failed(dead)
    time.sleep(0.3)
    with pytest.raises(RemoteError):
        keep_trying(lambda: _failing(9, dead, begun), Clock(0.2, host), 30)
    assert len(begun) == 1
    host.answered()
    begun.clear()
    assert keep_trying(lambda: _failing(2, dead, begun), Clock(5.0, host), 30) == "done"


def test_waits_are_counted_by_host_and_passwords_are_not_shown() -> None:
    before = retries.waits()
    host = host_of("https://user:secret@images.example/x")
    begun: list[float] = []
    keep_trying(lambda: _failing(2, of_code(500, "500"), begun), Clock(60.0, host), 5)
    (name, of_host), *more = retries.waits_since(before).items()
    assert (name, more, of_host["tries_again"]) == ("https://images.example", [], 2)
    assert 0 <= of_host["waited_s"] <= begun[-1] - begun[0] + 0.1
    assert retries.waits_since(retries.waits()) == {}


def test_one_host_is_one_for_all_threads() -> None:
    found: set[int] = set()
    threads = [threading.Thread(target=lambda: found.add(id(host_of("s3://bucket/key")))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


HEAD = "When reading information for key 'x' in bucket 'b': AWS Error {} during HeadObject operation: No response body."
GET = "AWS Error {} during GetObject operation: {}"


@pytest.mark.parametrize(
    ("text", "cause", "again", "slow"),
    [
        (HEAD.format("UNKNOWN (HTTP status 400)"), "access", False, False),
        (HEAD.format("ACCESS_DENIED"), "access", False, False),
        (HEAD.format("UNKNOWN (HTTP status 503)"), "unreachable", True, True),
        (HEAD.format("UNKNOWN (HTTP status 429)"), "unreachable", True, True),
        (HEAD.format("UNKNOWN (HTTP status 520)"), "unreachable", True, False),
        (HEAD.format("UNKNOWN (HTTP status 301)"), "access", False, False),
        (HEAD.format("NETWORK_CONNECTION"), "unreachable", True, False),
        (
            GET.format(
                "UNKNOWN (HTTP status 400)", "Unable to parse ExceptionName: ExpiredToken Message: it has expired"
            ),
            "credentials",
            False,
            False,
        ),
        (GET.format("INVALID_ACCESS_KEY_ID", "no such key id"), "credentials", False, False),
        (GET.format("SIGNATURE_DOES_NOT_MATCH", "it differs"), "credentials", False, False),
        (GET.format("REQUEST_TIME_TOO_SKEWED", "the clock"), "credentials", False, False),
        (GET.format("SLOW_DOWN", "reduce your request rate"), "unreachable", True, True),
        (GET.format("NO_SUCH_KEY", "gone"), None, False, False),
        (GET.format("INTERNAL_FAILURE", "the token ExpiredToken.jpg"), "unreachable", True, False),
        ("google::cloud::Status(PERMISSION_DENIED: no)", "access", False, False),
        ("google::cloud::Status(UNAUTHENTICATED: no)", "credentials", False, False),
        ("something that nobody knows", "unreachable", True, False),
    ],
)
def test_what_a_store_s_client_says_is_understood(text: str, cause: str | None, again: bool, slow: bool) -> None:
    error = of_text(text)
    assert (error.cause, error.passes, error.slow_down) == (cause, again, slow)
    assert passes(OSError(text)) == again


def test_a_key_that_is_gone_by_the_time_of_the_second_request_is_missing() -> None:
    assert of_text(GET.format("NO_SUCH_KEY", "gone")).status == "missing"
    assert remote_error(FileNotFoundError(2, "No such file or directory")).status == "missing"
