"""What every request has: a site, an id, headers in git-http-backend's order, one answer to an error, one
log line.

    Site       everything that requests share: config, root, workers, passwords
    Handler    a Tornado handler that answers errors as `errors.answer_to` says and logs one line when it ends

A client never sees more headers than the ones named here, unless CORS is on: no Etag, no cookies. No Vary
either: what is gzip'd no cache may give out without asking here, so none gives it to the wrong client.
"""

import asyncio
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tornado.httputil import format_timestamp
from tornado.web import HTTPError, RequestHandler

from gitsmart._version import __version__
from gitsmart.access.credentials import HtpasswdFile, parse_basic
from gitsmart.access.identity import Actor
from gitsmart.config import Config, Network
from gitsmart.errors import AuthenticationRequired, Disconnected, ProtocolError
from gitsmart.httpd.errors import CLIENT_LEFT, MethodNotAllowed, answer_to
from gitsmart.jobs import JobQueue
from gitsmart.repo.ref_view import namespace_prefix
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.options import ServiceOptions
from gitsmart.workers import Workers

__all__ = ["SERVER_NAME", "Handler", "NotFound", "Site"]

logger = logging.getLogger("gitsmart.request")

SERVER_NAME: Final = f"gitsmart/{__version__}"

DEFAULT_HEADERS: Final = {
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
    "Content-Type": "text/plain; charset=utf-8",
}

MAX_LOGGED: Final = 200
"""Characters of a peer's text (a repository's name, a path) that the log line holds."""


@dataclass(slots=True, kw_only=True)
class Site:
    """What the requests of one mount share. Made once, in `app`; only `draining` and `active` change."""

    config: Config
    root: RepositoryRoot
    workers: Workers
    options: ServiceOptions
    anonymous: Literal["none", "read", "write"]
    htpasswd: HtpasswdFile | None
    trusted_proxies: tuple[Network, ...]
    jobs: JobQueue | None = None
    """Where long work goes, when there are processes for it."""
    draining: bool = False
    at_once_from: float = 0.0
    """By `time.monotonic`: until then nothing is answered on the event loop, since the disk was slow."""
    active: set["Handler"] = field(default_factory=set)
    """Requests that have begun and not ended."""
    on_pushed: Callable[[Repository], None] | None = None
    """Called when a push has ended, whatever became of it."""
    on_idle: Callable[[], None] | None = None
    """Called when the last of them has ended."""

    def ended(self, request: "Handler") -> None:
        """Take `request` off the active ones."""
        self.active.discard(request)
        if not self.active and self.on_idle is not None:
            self.on_idle()

    def is_trusted_proxy(self, address: str) -> bool:
        """Whether the peer at `address` may say who its user is."""
        if not self.trusted_proxies:
            return False
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False  # a Unix socket, say
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.trusted_proxies)

    def can_challenge(self, address: str) -> bool:
        """Whether asking this peer for a password can help: we know some, or the proxy before us may."""
        return self.htpasswd is not None or self.is_trusted_proxy(address)

    def authenticate(self, address: str, authorization: str | None, remote_user: str | None) -> Actor:
        """Find out who is asking. Blocking: passwords are slow on purpose.

        Raises:
            AuthenticationRequired: credentials came and are wrong; in one text for unknown users, wrong
            passwords
                and malformed ones.
        """
        if remote_user and self.is_trusted_proxy(address):
            return Actor(user=remote_user, address=address)
        if authorization is None or self.htpasswd is None:
            return Actor(user=None, address=address)
        credentials = parse_basic(authorization)
        if credentials is None or not self.htpasswd.verify(*credentials):
            raise AuthenticationRequired("wrong user or password")
        return Actor(user=credentials[0], address=address)


class Handler(RequestHandler):
    """A request. Subclasses set `allowed` and, for the log, `fields`."""

    allowed: str = "GET, HEAD"
    log_level = logging.INFO

    site: Site
    request_id: str
    error: BaseException | None

    def initialize(self, *, site: Site) -> None:
        self.site = site
        self.request_id = secrets.token_hex(8)
        self.error = None
        self.fields: dict[str, object] = {}
        self.user: str | None = None
        self.began = time.monotonic()
        self.bytes_in = 0
        self.bytes_out = 0
        self.gone = False
        self._logged = False
        self._began_response = False
        site.active.add(self)

    def set_default_headers(self) -> None:
        """Date and Server first, then git-http-backend's, in its order (http-backend.c hdr_nocache())."""
        for name in ("Server", "Content-Type", "Date"):
            self.clear_header(name)
        self.set_header("Date", format_timestamp(time.time()))
        self.set_header("Server", SERVER_NAME)
        for name, value in DEFAULT_HEADERS.items():
            self.set_header(name, value)

    def compute_etag(self) -> None:
        """No Etag: nothing here is cached."""
        return

    def check_xsrf_cookie(self) -> None:
        """Git clients have no cookies; an application that mounts the git routes may ask for them
        elsewhere."""

    def address(self) -> str:
        """The peer's IP address, or "-" where there is none."""
        return self.request.remote_ip or "-"

    def remote_user(self) -> str | None:
        """What `X-Remote-User` says, as text; believed only of trusted proxies, see `Site.authenticate`."""
        values = self.request.headers.get_list("X-Remote-User")
        if len(values) != 1:
            return None  # two of them: one may be the client's own
        try:
            name = values[0].encode("latin-1").decode("utf-8").strip()
        except UnicodeError:
            return None
        return name if name.isprintable() and name else None

    def namespace(self) -> str:
        """The namespace that is served: what a trusted proxy says by `X-Git-Namespace`, where it may, else
        the server's.

        Raises:
            ProtocolError: the proxy's is none, or there are two.
        """
        config = self.site.config
        values = self.request.headers.get_list("X-Git-Namespace")
        if not (values and config.access.proxy_namespace and self.site.is_trusted_proxy(self.address())):
            return config.server.namespace
        try:
            name = values[0].encode("latin-1").decode("utf-8").strip()
            namespace_prefix(name)
        except ValueError:
            raise ProtocolError(f"bad git namespace path {shorten(values[0])!r}") from None
        if len(values) != 1:
            raise ProtocolError("more than one namespace")  # one of them may be the client's own
        return name or config.server.namespace

    def check_method(self) -> None:
        """Raise `MethodNotAllowed` unless the route knows the request's method."""
        if self.request.method not in self.allowed.split(", "):
            raise MethodNotAllowed(self.allowed)

    # -- answers to errors

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer an error in plain text; Tornado calls it for whatever escapes a handler."""
        exc_info = kwargs.get("exc_info")
        error: BaseException = exc_info[1] if exc_info else HTTPError(status_code)
        if isinstance(error, HTTPError) and error.status_code == 405:
            error = MethodNotAllowed(self.allowed)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Answer `error`, which came before the response began; a later one cuts the connection."""
        if not self.gone:
            self.error = error
        answer = answer_to(error, realm=self.site.config.access.realm)
        if answer.unexpected:
            logger.error(
                "request failed",
                extra={"fields": {"id": self.request_id}},
                exc_info=(type(error), error, error.__traceback__),
            )
        if self.gone:
            self.end()
            return
        if self.response_began() or (isinstance(error, Disconnected) and answer.status == CLIENT_LEFT):
            self.cut()
            return
        self.clear()
        self.set_status(answer.status)
        for name, value in answer.headers:
            self.set_header(name, value)
        for name in DEFAULT_HEADERS:  # git-http-backend's order: Allow comes first
            self.set_header(name, self._headers.pop(name))
        body = answer.text.encode() + b"\n"
        self.note_sent(body)
        self.finish(body)

    def note_sent(self, data: bytes) -> None:
        """Count `data` as sent, for the log: HEAD has all of a response but this."""
        if self.request.method != "HEAD":
            self.bytes_out += len(data)

    def response_began(self) -> bool:
        """Whether the status line is on its way."""
        return self._began_response

    def flush(self, include_footers: bool = False) -> "asyncio.Future[None]":
        """See Tornado's."""
        self._began_response = True
        return super().flush(include_footers)

    def cut(self) -> None:
        """Close the connection without the response's end, so that it can't look complete."""
        self.end()
        if self.gone:
            return
        connection: Any = self.request.connection
        abort = getattr(connection, "abort", None) or connection.close
        abort()

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Nothing: `fail` logs what is worth a traceback."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Never called: `send_error` answers by itself."""

    # -- the end

    def on_finish(self) -> None:
        self.end()

    def on_connection_close(self) -> None:
        self.note_close()
        self.end()

    def note_close(self) -> None:
        """Note that the connection is lost, and why."""
        self.gone = True
        if self.error is None:
            # When it is not the client that ended the request, our own connection says why, and answers it
            # itself.
            body_error: BaseException | None = getattr(self.request.connection, "body_error", None)
            self.error = body_error or Disconnected("the client has gone")

    def end(self) -> None:
        """Log the request's one line; only the first call counts."""
        if self._logged:
            return
        self._logged = True
        self.site.ended(self)
        status = self.get_status()
        if self.error is not None and not self.response_began():
            status = answer_to(self.error).status  # it left, or the connection answered for us
        if "repo" not in self.fields:
            self.fields["path"] = shorten(self.request.path)
        fields: dict[str, object] = {
            "id": self.request_id,
            "address": self.address(),
            "user": self.user,
            "method": shorten(self.request.method or "-"),
            **self.fields,
            "status": status,
            "in": self.bytes_in,
            "out": self.bytes_out,
            **self.result_fields(),
            "seconds": round(time.monotonic() - self.began, 3),
        }
        if self.error is not None:
            fields["error"] = shorten(answer_to(self.error).text)
        level = logging.WARNING if status >= 500 else self.log_level
        logger.log(level, "", extra={"fields": fields})

    def result_fields(self) -> dict[str, object]:
        """Further fields of the log line, known only at the end."""
        return {}


class NotFound(Handler):
    """Whatever no route knows."""

    def prepare(self) -> None:
        raise HTTPError(404)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer 404, also to methods that Tornado itself turns down: there is nothing that knows any."""
        super().send_error(404)


def shorten(text: str) -> str:
    """Return a peer's text, bounded for the log."""
    return text if len(text) <= MAX_LOGGED else text[:MAX_LOGGED] + "..."
