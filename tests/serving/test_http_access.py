"""From whom the service takes requests: names of its own, pages of its own, and whoever knows the token."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from clipbatch import Classifier
from clipbatch.errors import InputError
from clipbatch.serving.http import Access, Limits, listen
from tests.conftest import DEMO, Cli
from tests.support.serving import answering, ask, connect, finished, flat_png, serving

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu") as classifier:
            yield classifier


@pytest.fixture(scope="module")
def url(classifier: Classifier) -> Iterator[str]:
    with answering(classifier, Limits(), Access(hosts=Access().hosts | {"labels.example"})) as url:
        yield url


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("labels.example", 200),
        ("labels.example.", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.7", 421),
        ("localhost@evil.example", 421),
        ("evil.example:8000", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_a_name_that_is_not_the_services_is_refused(url: str, host: str, code: int) -> None:
    for path in ("/health", "/metrics"):
        assert urllib3.request("GET", f"{url}{path}", headers={"host": host}).status == code
    answer = ask(url, flat_png(8, 8), "image/png", host=host)
    assert answer.status == code
    if code != 200:
        assert "--allow-host" in answer.json()["error"]


def test_two_hosts_and_none_are_refused(url: str) -> None:
    for head in (b"Host: localhost\r\nHost: evil.example\r\n", b""):
        assert finished(connect(url), b"GET /health HTTP/1.1\r\n" + head + b"\r\n")[0] == 421


def test_pages_of_others_are_refused(url: str) -> None:
    image, own = flat_png(8, 8), url.removeprefix("http://")
    assert ask(url, image, "image/png", origin=f"http://{own}", host=own).status == 200
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:1",
        f"http://{own}.evil.example",
        "file://",
        "http://[",
    ):
        answer = ask(url, image, "image/png", origin=origin, host=own)
        assert (answer.status, "Origin" in answer.json()["error"]) == (403, True), origin


def test_a_page_needs_no_leave_to_send_these_types_and_so_they_are_refused(url: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "text/html", "imagejpeg", "application/jsonp"):
        answer = ask(url, flat_png(8, 8), kind)
        assert (answer.status, "send application/json, multipart/form-data" in answer.json()["error"]) == (415, True)
    for kind in ("image/png", "image/anything", "application/octet-stream", "IMAGE/PNG; q=1"):
        assert ask(url, flat_png(8, 8), kind).status == 200


def test_only_the_token_opens_classify_and_health_and_metrics_stay_open(
    classifier: Classifier, token_file: Path
) -> None:
    with listen("0") as listener:
        access = Access.of("0", listener, token_file=str(token_file))
    with answering(classifier, Limits(), access) as url:
        image = flat_png(8, 8)
        for given in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer", "Bearer \xe9"):
            answer = ask(url, image, "image/png", authorization=given)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), given
        assert ask(url, image, "image/png").status == 401
        for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
            assert ask(url, image, "image/png", authorization=given).status == 200
        for path in ("/health", "/metrics"):
            assert urllib3.request("GET", f"{url}{path}").status == 200


def test_beyond_loopback_a_token_is_needed_or_given_up_in_words(token_file: Path, tmp_path: Path) -> None:
    file = str(token_file)
    with listen("0.0.0.0:0") as everywhere:
        with pytest.raises(InputError, match="--token-file FILE, or --no-token"):
            Access.of("0.0.0.0:0", everywhere)
        with pytest.raises(InputError, match="--no-token contradicts"):
            Access.of("0.0.0.0:0", everywhere, token_file=file, no_token=True)
        assert Access.of("0.0.0.0:0", everywhere, no_token=True).token is None
        access = Access.of("0.0.0.0:0", everywhere, token_file=file, allow=["Labels.Example"])
        assert (access.token, access.any_address, "labels.example" in access.hosts) == (TOKEN.encode(), True, True)
    with listen("127.0.0.1:0") as here:
        assert not Access.of("127.0.0.1:0", here).any_address
        for content in ("", "short", "two lines are not\na token", "smörgåsbord-smörgåsbord"):
            (tmp_path / "wrong").write_text(content)
            with pytest.raises(InputError, match=r"wrong holds no token.*openssl rand"):
                Access.of("127.0.0.1:0", here, token_file=str(tmp_path / "wrong"))
        with pytest.raises(InputError, match="nowhere"):
            Access.of("127.0.0.1:0", here, token_file=str(tmp_path / "nowhere"))


def test_the_command_takes_these_options(cli: Cli, tmp_path: Path, token_file: Path) -> None:
    assert "can be reached from other machines" in cli("serve", *DEMO, "--http", "0.0.0.0:0", code=3).stderr
    assert "are for --http" in cli("serve", tmp_path / "spool", *DEMO, "--no-token", code=3).stderr
    address = socket.gethostbyname(socket.gethostname())
    options = ("--token-file", token_file, "--allow-host", "labels.example", "--allow-host", "other.example")
    with serving("--http", "0.0.0.0:0", *options) as service:
        port = service.url.rpartition(":")[2]
        for host in ("other.example", "labels.example:80", address):
            url = f"http://{address}:{port}"
            assert ask(url, flat_png(8, 8), "image/png", host=host, authorization=f"Bearer {TOKEN}").status == 200
        assert ask(url, flat_png(8, 8), "image/png").status == 401
        assert ask(url, flat_png(8, 8), "image/png", host="evil.example").status == 421
