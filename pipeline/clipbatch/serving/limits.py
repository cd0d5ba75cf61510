"""What the service takes from clients over HTTP: how much, for how long, and from whom."""

from __future__ import annotations

import hmac
import ipaddress
import resource
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from clipbatch.config.validation import SettingError, at_least
from clipbatch.errors import InputError, reading_failed

# Descriptors that are kept for images, the spool, and libraries.
_OTHER_FILES = 256
_COUNTS = ("requests", "images", "body_mib", "header_kib", "connections", "json_depth", "megapixels")
_TIMES = ("body_time", "idle_time", "grace_time")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is taken from clients. Each field is an option of `clipbatch serve`: `--max-requests`, `--body-time`."""

    # Answered at a time; more get 429. Times `body_mib` it is also what all bodies may hold of memory.
    requests: int = 64
    # In one request.
    images: int = 256
    # Of one request's body.
    body_mib: int = 32
    # Of one request's first line and headers.
    header_kib: int = 32
    # Open at a time. One more takes the place of an idle one; where none is idle, it gets 503.
    connections: int = 512
    # Objects and lists inside of one another in a JSON body.
    json_depth: int = 16
    # Of all images in hand, by their headers; a request with more gets 413, one more than that 429.
    megapixels: int = 512
    # Seconds for a request's body to arrive.
    body_time: float = 30.0
    # Seconds for a request's headers to arrive, from the opening of the connection or from the last answer on it; also
    # for a client to take an answer.
    idle_time: float = 10.0
    # Seconds for requests in hand to be answered when the service ends.
    grace_time: float = 30.0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            at_least(f"max_{name}", getattr(self, name), 1)
        for name in _TIMES:
            at_least(name, getattr(self, name), 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """From whom requests are taken. A page in a browser may send requests to this machine; it cannot choose their Host
    (so a name that somebody points at this address is not one of `hosts`) and it cannot hide its Origin."""

    # Names and addresses that a request may give as its Host, in lower case.
    hosts: frozenset[str] = _LOOPBACK
    # Any IP address is taken as a Host too: the service listens on all addresses of the machine.
    any_address: bool = False
    # Bearer token that `POST /classify` has to bring; None: none is asked for.
    token: bytes | None = None

    @classmethod
    def of(
        cls,
        address: str,
        listener: socket.socket,
        *,
        allow: Collection[str] = (),
        token_file: str | None = None,
        no_token: bool = False,
    ) -> Access:
        """address: as `--http` gave it. listener: bound to it. allow: further names. no_token: somebody else asks.

        Raises: InputError where `listener` can be reached from other machines and there is neither a token nor
        `no_token`, and for a token that cannot be used.
        """
        bound = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
        if token_file is None and not no_token and not bound.is_loopback:
            raise InputError(
                f"--http {address} can be reached from other machines: give --token-file FILE, or --no-token where a "
                "proxy before it asks for a password"
            )
        if token_file is not None and no_token:
            raise InputError(f"--no-token contradicts --token-file {token_file}: leave one of them out")
        given = address.rpartition(":")[0].strip("[]").lower()
        hosts = {*_LOOPBACK, str(bound), *(name.lower().strip("[]") for name in allow)} | ({given} if given else set())
        return cls(
            hosts=frozenset(hosts),
            any_address=bound.is_unspecified,
            token=None if token_file is None else _read_token(token_file),
        )

    def check_host(self, request: Request) -> None:
        """Raises: HTTPException for a Host that is not this service's, and for an Origin that is not that Host's."""
        given = request.headers.getlist("host")
        host = _name_of(given[0]) if len(given) == 1 else ""
        if not (host in self.hosts or (self.any_address and _is_address(host))):
            raise HTTPException(
                421,
                f"the Host {', '.join(given)[:100]!r} is not a name of this service: use its address, or start it with "
                "--allow-host",
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != given[0].lower():
            raise HTTPException(
                403, f"pages of {origin[:100]!r} may not use this service: send requests without an Origin"
            )

    def check_token(self, request: Request) -> None:
        """Raises: HTTPException where the token is missing or wrong."""
        if self.token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.token):
            raise HTTPException(
                401,
                "send the header Authorization: Bearer TOKEN with this service's token",
                {"WWW-Authenticate": "Bearer"},
            )


def _read_token(path: str) -> bytes:
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise reading_failed(f"--token-file {path}", error) from error
    if len(token) < 16 or not all(33 <= byte <= 126 for byte in token):
        raise SettingError(
            f"token_file {path} holds no token: write one line of 16 or more visible ASCII characters into it, such as "
            "that of: openssl rand -hex 32"
        )
    return token


def _name_of(host: str) -> str:
    """The name or address in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def reserve_descriptors(connections: int) -> None:
    """Raise this process's limit of open files as far as the connections need it, so that none takes the descriptor of
    an image. Raises: InputError where the limit cannot be raised so far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"--max-connections {connections} needs {needed} open files, and this process may have {hard}: give "
            f"--max-connections {max(1, hard - _OTHER_FILES)}, or raise the limit (ulimit -Hn, LimitNOFILE=)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
