"""What web servers answer: some fail, stall, drip, lie and cut short, beside ones that do not."""

import gzip
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clipbatch import __version__
from tests.support.reading import slots, told
from tests.support.servers import Answer, Handler, Web, body, in_turn, status, web

DATA = bytes(range(256)) * 300
NO_ONE = "http://127.0.0.1:1"


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as server:
        yield server


def _one(server: Web, answer: Answer, **settings: Any) -> Any:
    """What becomes of /x when `answer` is given to it: bytes, or status and error."""
    server.answers["/x"] = answer
    (slot,) = slots(f"{server.root}/x", **settings)
    return told(slot)


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
    good, bad, again = map(told, slots(*(f"{server.root}/{name}" for name in ("good", "x", "good"))))
    assert good == again == DATA
    assert (bad[0], error in bad[1]) == (outcome, True), bad
    assert server.hits("/x") == tries


@pytest.mark.parametrize("code", [408, 425, 429, 500, 501, 502, 503, 504, 507, 509, 520, 521, 524, 529, 599])
def test_what_may_pass_is_tried_again(server: Web, code: int) -> None:
    assert _one(server, in_turn(status(code), body(DATA))) == DATA


def test_by_default_tries_go_on_for_the_time_limit(server: Web) -> None:
    """The three tries of old would have ended after two seconds."""
    assert _one(server, in_turn(*[status(500)] * 10, body(DATA)), read_retries=None) == DATA


def test_no_try_follows_when_the_time_limit_is_over(server: Web) -> None:
    begun = time.monotonic()
    assert _one(server, status(500), read_retries=None, read_timeout=2.0)[0] in ("unreadable", "timeout")
    assert time.monotonic() - begun < 20
    assert 2 < server.hits("/x") < 40


@pytest.mark.parametrize("code", [102, 103, 199])
def test_informational_answers_are_passed_over(server: Web, code: int) -> None:
    def answer(handler: Handler) -> None:
        hints = b"HTTP/1.1 %d Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" % code
        handler.send(hints + hints)
        body(DATA)(handler)

    server.answers["/x"] = answer
    assert [told(slot) for slot in slots(*[f"{server.root}/x"] * 3, read_threads=1)] == [DATA] * 3


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
    first, *stalled, last = map(told, slots(*(f"{server.root}/{name}" for name in names), read_timeout=3))
    assert first == last == DATA
    assert {outcome for outcome, _ in stalled} == {"timeout"}
    assert time.monotonic() - begun < 40 * 3


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
    bad, good = map(told, slots(url, f"{server.root}/good"))
    assert (bad[0], error in bad[1], good) == (outcome, True, DATA), bad
