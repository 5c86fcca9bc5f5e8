"""Error class -> status, headers and text. Nothing else in the project knows which HTTP status an error is.

    ProtocolError            400      RepositoryNotFound    404      Unavailable            503, Retry-After
      LimitExceeded          413      RepositoryUnusable    500      disk full, no handles  503, Retry-After
    PackError                400      ServiceDisabled       403      anything else          500, and a
    traceback AuthenticationRequired   401      ObjectMissing         500
    Forbidden                403      TimedOut              408

A peer's mistake is never a 5xx, and no text of an unknown exception leaves the server. The body is plain
text, which git shows to its user as "remote: ...". The text of a 404 is always the same, so that a hidden
repository looks like one that is not there.
"""

import errno
from dataclasses import dataclass
from http import HTTPStatus

from tornado.web import HTTPError

from gitsmart.errors import (
    AuthenticationRequired,
    Disconnected,
    Forbidden,
    GitsmartError,
    LimitExceeded,
    ObjectMissing,
    PackError,
    ProtocolError,
    RepositoryNotFound,
    RepositoryUnusable,
    ServiceDisabled,
    TimedOut,
    Unavailable,
)

__all__ = [
    "CLIENT_LEFT",
    "Answer",
    "MethodNotAllowed",
    "RangeNotSatisfiable",
    "UnsupportedMediaType",
    "answer_to",
]

CLIENT_LEFT = 499
"""What the log line says of a client that left before its answer; nginx's number, never sent."""

RETRY_AFTER_S = 10

_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class MethodNotAllowed(ProtocolError):
    """The route knows other methods; `args[0]` is the value of `Allow`."""


class RangeNotSatisfiable(ProtocolError):
    """The range begins behind the file's end; `args[0]` is the value of `Content-Range`."""


class UnsupportedMediaType(ProtocolError):
    """The request's content type or coding is not one that the route takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told. `unexpected`: it is our bug or our disk, so the log gets its traceback."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()
    unexpected: bool = False


_STATUS: tuple[tuple[type[GitsmartError], int], ...] = (
    # the first that fits counts: subclasses before their parents
    (UnsupportedMediaType, 415),
    (LimitExceeded, 413),
    (ProtocolError, 400),
    (TimedOut, 408),
    (Disconnected, CLIENT_LEFT),
    (PackError, 400),
    (Forbidden, 403),
    (ServiceDisabled, 403),
)


def answer_to(error: BaseException, *, realm: str = "git") -> Answer:
    """Return what to answer to a request that failed with `error` before its response began."""
    if isinstance(error, AuthenticationRequired):
        challenge = f'Basic realm="{realm}", charset="UTF-8"'  # RFC 7617 section 2.1
        return Answer(401, str(error), (("WWW-Authenticate", challenge),))
    if isinstance(error, MethodNotAllowed):
        return Answer(405, "method not allowed", (("Allow", str(error)),))
    if isinstance(error, RangeNotSatisfiable):
        return Answer(416, "range not satisfiable", (("Content-Range", str(error)),))
    if isinstance(error, RepositoryNotFound):
        return Answer(404, "repository not found")
    if isinstance(error, Unavailable):
        return Answer(503, str(error), (("Retry-After", str(RETRY_AFTER_S)),))
    if isinstance(error, RepositoryUnusable):
        return Answer(500, str(error))
    if isinstance(error, ObjectMissing):
        return Answer(500, f"the repository lacks object {error}")
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return Answer(status, str(error))
    if isinstance(error, HTTPError):
        return Answer(error.status_code, _phrase(error.status_code))
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        text = "the server is out of disk space or other resources"
        return Answer(503, text, (("Retry-After", str(RETRY_AFTER_S)),), unexpected=True)
    return Answer(500, "internal server error", unexpected=True)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.lower()
    except ValueError:
        return f"status {status}"
