"""Why a read failed: whether another try may succeed, whether all readers should slow down, whose fault it is.

Web servers say so with a status code. Stores are read through pyarrow and fsspec, whose errors are text: pyarrow's for
S3 names the error (`AWS Error SLOW_DOWN during GetObject operation`), or only the status code where the answer had no
body, as to a HEAD request (`AWS Error UNKNOWN (HTTP status 400)`).
"""

from __future__ import annotations

import errno
import os
import re
from typing import Literal

from clipbatch.types import Status

# What a failure says about the whole store or host, and not about one object.
#
# credentials: the key or token itself is refused, which is true for every object. access: this request is not allowed
# (401, 403); for one object, or for all of them. unreachable: no answer, or only answers that say "later" (5xx, 429).
Cause = Literal["credentials", "access", "unreachable"]

# HTTP status codes by which a server asks its clients to send less.
SLOW_DOWN_CODES = (429, 503, 509, 529)
MISSING_CODES = (404, 410)
_ACCESS_CODES = (401, 403, 407)
_PASSING_CODES = (408, 425, 429)
# Errors of the operating system that another try may not meet.
_PASSING_ERRORS = frozenset(
    (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR, errno.ENFILE, errno.EMFILE)
)
_MISSING_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)

_NAMED = re.compile(r"AWS Error (\w+)")
_CODE = re.compile(r"HTTP status (\d{3})")
_UNPARSED = re.compile(r"Unable to parse ExceptionName: (\S+)")
_CREDENTIALS = re.compile(
    r"expired_?token|ExpiredToken|TokenRefreshRequired|InvalidToken|InvalidAccessKeyId|INVALID_ACCESS_KEY_ID"
    r"|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch"
    r"|MISSING_AUTHENTICATION_TOKEN|REQUEST_TIME_TOO_SKEWED|RequestTimeTooSkewed|REQUEST_EXPIRED|Unauthenticated"
    r"|UNAUTHENTICATED|invalid_grant",
    re.IGNORECASE,
)
_ACCESS = re.compile(
    r"ACCESS_DENIED|AccessDenied|PermissionDenied|PERMISSION_DENIED|AllAccessDisabled|INVALID_OBJECT_STATE"
    r"|storage class|NO_SUCH_BUCKET|NoSuchBucket|INVALID_BUCKET_NAME"
)
_SLOW_DOWN = re.compile(
    r"SLOW_DOWN|SlowDown|THROTTLING|REQUEST_LIMIT_EXCEEDED|SERVICE_UNAVAILABLE|RESOURCE_EXHAUSTED|TooManyRequests"
    r"|Too Many Requests"
)
_MISSING = re.compile(r"NO_SUCH_KEY|NoSuchKey|NO_SUCH_UPLOAD")
_SERVER = re.compile(r"the server says (\d{3})")
_GCS_PASSING = re.compile(r"Status\((UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED)\b")
_PASSING_WORDS = ("no connection to ", "no answer", "no whole answer", *map(os.strerror, sorted(_PASSING_ERRORS)))
_SILENT = ("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "ENDPOINT_RESOLUTION_FAILURE")


class RemoteError(OSError):
    """Why a store or a web server gave no bytes."""

    def __init__(
        self,
        status: Status,
        text: str,
        *,
        passes: bool = False,
        slow_down: bool = False,
        retry_after_s: float = 0.0,
        cause: Cause | None = None,
        silent: bool = False,
    ) -> None:
        """passes: another try may succeed. slow_down: the server asks its clients to send less, and `retry_after_s` is
        how long it asks them to wait. cause: None where the failure concerns this object alone. silent: nothing came
        back, so nobody knows whether there is a server.
        """
        super().__init__(text)
        self.status, self.passes, self.slow_down = status, passes, slow_down
        self.retry_after_s, self.cause, self.silent = retry_after_s, cause, silent


def of_code(code: int, text: str, retry_after_s: float = 0.0) -> RemoteError:
    """The error for an answer with the HTTP status `code`."""
    if code in MISSING_CODES:
        return RemoteError("missing", text)
    passes = code in _PASSING_CODES or 500 <= code <= 599
    cause: Cause | None = "access" if code in _ACCESS_CODES else "unreachable" if passes else None
    slow_down = code in SLOW_DOWN_CODES
    return RemoteError("unreadable", text, passes=passes, slow_down=slow_down, retry_after_s=retry_after_s, cause=cause)


def of_text(text: str) -> RemoteError:
    """The error that a store's client describes in `text`; what is not known passes."""
    name, code, unparsed = _NAMED.search(text), _CODE.search(text), _UNPARSED.search(text)
    if _CREDENTIALS.search(unparsed[1] if unparsed else name[1] if name else text):
        return RemoteError("unreadable", text, cause="credentials")
    if _MISSING.search(text):
        return RemoteError("missing", text)
    if _ACCESS.search(text):
        return RemoteError("unreadable", text, cause="access")
    if _SLOW_DOWN.search(text):
        return RemoteError("unreadable", text, passes=True, slow_down=True, cause="unreachable")
    if code and code[1] in ("400", "301"):  # S3 refuses a token, or a region, for every object alike
        return RemoteError("unreadable", text, cause="access")
    if code:
        return of_code(int(code[1]), text)
    silent = any(word in text for word in _SILENT)
    return RemoteError("unreadable", text, passes=True, cause="unreachable", silent=silent)


def remote_error(error: Exception) -> RemoteError:
    """`error` of a store or the web as a `RemoteError`."""
    if isinstance(error, RemoteError):
        return error
    if isinstance(error, FileNotFoundError):
        return RemoteError(
            "missing", "there is no such object" if error.errno is None else error.strerror or str(error)
        )
    if isinstance(error, PermissionError):
        return RemoteError("unreadable", first_line(error), cause="access")
    text = first_line(error)
    return of_text(text if isinstance(error, OSError) else f"{type(error).__name__}: {text}")


def passes(error: OSError) -> bool:
    """Whether another try may not meet `error`, of a file system, a store or the web."""
    if isinstance(error, RemoteError):
        return error.passes
    if error.errno is not None:
        return error.errno in _PASSING_ERRORS
    return remote_error(error).passes


# The statuses of which some failures may pass.
MAY_PASS = ("unreadable", "timeout", "truncated")


def may_pass(status: str, error: str) -> bool:
    """Whether a row that was not ok may be ok by another night. status, error: as the row has them.

    The texts are those of this module, of `http` and of the read stage. A text that is not known does not count.
    """
    if status not in MAY_PASS:
        return False
    if status == "timeout":
        return not error.startswith("decoding ")
    if status == "truncated":
        return error.startswith("the connection ended early")
    if code := _SERVER.match(error):
        return of_code(int(code[1]), error).passes
    if "AWS Error" in error:
        return of_text(error).passes
    return error.startswith(_PASSING_WORDS) or _GCS_PASSING.search(error) is not None


def is_missing(error: OSError) -> bool:
    """Whether a file system says by `error` that there is no such file."""
    return isinstance(error, FileNotFoundError) or error.errno in _MISSING_ERRORS


def first_line(error: BaseException) -> str:
    """What `error` says, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__
