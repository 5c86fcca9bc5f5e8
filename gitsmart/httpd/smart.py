"""Git's smart HTTP: the ref advertisement, and one request of a service.

    POST /<repo>/git-upload-archive                      -> application/x-git-upload-archive-result

    GET  /<repo>/info/refs?service=git-upload-pack       -> application/x-git-upload-pack-advertisement
    POST /<repo>/git-upload-pack                         -> application/x-git-upload-pack-result
    (and the same with git-receive-pack)                    gitprotocol-http

What happens when: `prepare` finds out who asks, for what, and whether they may, and starts the service in a
worker; all of it before `100 Continue` and before a byte of the body is read. Then the body flows into the
service while it runs (`data_received` gives the connection something to wait for while the pipe is full),
and whatever the service writes flows out. The status is 200 from the service's first byte on; an error
before that has its own status, also while the client is still sending; an error after it cuts the connection.

git sends `0000` alone before a push that it can't repeat (remote-curl.c probe_rpc()): the services answer it
with nothing, so it is a 200 with an empty body, after the same checks as the real request.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, cast

from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from gitsmart.access.identity import Actor
from gitsmart.access.rules import RECEIVE_PACK, UPLOAD_ARCHIVE, UPLOAD_PACK, decide
from gitsmart.errors import (
    Disconnected,
    GitsmartError,
    RepositoryNotFound,
    ServiceDisabled,
)
from gitsmart.httpd.connection import RequestConnection
from gitsmart.httpd.cors import cors_headers, preflight_headers
from gitsmart.httpd.errors import UnsupportedMediaType
from gitsmart.httpd.handler import Handler, Site, shorten
from gitsmart.httpd.loan import Loan
from gitsmart.jobs import HeldChannel, JobChannel, JobQueue, relay, run_held
from gitsmart.pack.packcache import Make, PackCache, PackKey, PackStream
from gitsmart.pack.packfile import PackFile
from gitsmart.repo.repository import NotKnown, Repository
from gitsmart.service.advertise import ServiceName, advertise
from gitsmart.service.channel import Channel, DecodedChannel, GzippedChannel, PeekedChannel, WholeChannel
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.receive_pack import receive_pack
from gitsmart.service.upload_archive import upload_archive
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.content import CODINGS, ContentDecoder, accepts_gzip
from gitsmart.workers import Exchange, WorkerChannel

__all__ = ["InfoRefs", "Job", "ServiceRpc", "perform", "requested_version"]

HIGHEST_VERSION: Final[dict[str, int]] = {UPLOAD_PACK: 2, RECEIVE_PACK: 1}
"""gitprotocol-v2 has no push: receive-pack answers a request for 2 with 0 (git: builtin/receive-pack.c)."""

LS_REFS: Final = b"0014command=ls-refs"
"""How a v2 request for refs begins; git sends the command first."""

REST_OF_BODY_S: Final = 1.0
"""How long a finished response waits for the request's end, so that the connection can be kept alive."""

LITTLE_BODY_BYTES: Final = 16 << 10
"""A request up to this size comes with its head, mostly."""

GZIP_FROM_BYTES: Final = 1024
"""Smaller responses fit into a packet of the network anyway."""

LIGHT_PUSH_BYTES: Final = 1 << 20
"""Pushes up to this size are done in a thread of the process that has the connection. git sends larger ones
chunked (http.postBuffer)."""

SHORT_OBJECTS: Final = 5000
"""A clone of a repository with no more objects than this is made in a thread as well: some 100 ms."""

GZIP_NOTE: Final = b"gzip"

AT_ONCE_S: Final = 0.05
"""When a few stats take longer than this, the disk is slow (or the machine): then the event loop leaves them
to workers ..."""

AT_ONCE_REST_S: Final = 10.0
"""... for so long."""

Service = Callable[[Channel], ServiceReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request of a service, as it crosses to another process."""

    service: str
    repo_name: str
    namespace: str
    version: int
    actor: Actor
    coding: str
    """The request's content coding; "" for none."""
    gzip: bool
    """The client accepts gzip, and may get it."""


def requested_version(fields: list[str], service: str) -> int:
    """Return the protocol version to speak, from the `Git-Protocol` fields: the highest that we know.

    Each field is a colon-separated list of keys and values (gitprotocol-http, "Git-Protocol"); all but
    `version=` are ignored, as are versions that we don't know (git: protocol.c
    determine_protocol_version_server()).

    >>> requested_version(["version=1:version=2:agent=x"], "git-upload-pack")
    2
    >>> requested_version(["version=2"], "git-receive-pack")
    0
    """
    asked = {
        item.removeprefix("version=")
        for value in fields
        for item in value.strip().split(":")
        if item[:8] == "version="
    }
    version = max((int(text) for text in asked if text in ("0", "1", "2")), default=0)
    return version if version <= HIGHEST_VERSION.get(service, 0) else 0


@stream_request_body
class SmartHandler(Handler):
    """One request of a service."""

    service: str
    repo_name = ""
    version = 0

    def initialize(self, *, site: Site) -> None:
        super().initialize(site=site)
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._body_ended = asyncio.Event()
        self._length: int | None = None
        self._report = ServiceReport()
        self._pushed_to: Repository | None = None
        self._buffered = 0  # bytes of what was answered at once
        self.add_cors_headers()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        if hasattr(self, "site"):  # not yet when Tornado's own __init__ asks for them
            self.add_cors_headers()

    def add_cors_headers(self) -> None:
        """Let in web pages of other origins, where the configuration says so."""
        allowed = self.site.config.http.cors_origins
        for name, value in cors_headers(allowed, self.request.headers.get("Origin")):
            self.set_header(name, value)

    def answer_preflight(self) -> bool:
        """Answer a browser that asks whether its page may send this; False: it is no such question."""
        headers = self.request.headers
        if self.request.method != "OPTIONS" or "Access-Control-Request-Method" not in headers:
            return False
        allowed = self.site.config.http.cors_origins
        answer = preflight_headers(allowed, headers.get("Origin"), self.allowed)
        if not answer:
            return False
        self.set_status(204)
        self.clear_header("Content-Type")
        for name, value in answer:
            self.set_header(name, value)
        self.finish()
        return True

    # -- gzip

    def may_gzip(self) -> bool:
        """Whether the client accepts gzip, and the configuration allows it."""
        fields = self.request.headers.get_list("Accept-Encoding")
        return self.site.config.http.gzip and accepts_gzip(fields)

    def note_gzip(self, name: bytes = GZIP_NOTE) -> None:
        """Note that the response is gzip'd: in the worker, before the first byte crosses to the loop."""
        assert name == GZIP_NOTE, name
        self.set_header("Content-Encoding", "gzip")

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode the repository's name, which Tornado has percent-decoded once. UTF-8, or there is no such
        thing.
        """
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise RepositoryNotFound("the repository's name is not UTF-8") from None

    # -- before the body

    async def prepare(self) -> None:
        if self.answer_preflight():
            return
        self.check_method()
        # Tornado's own server refuses bodies of more than 100 MB unless it is told otherwise; ours has no
        # such bound
        set_max_body_size = getattr(self.request.connection, "set_max_body_size", None)
        if set_max_body_size is not None:
            set_max_body_size(1 << 62)
        self.repo_name = self.path_kwargs["name"]
        self.fields["repo"] = shorten(self.repo_name)
        self.select_service()
        self.version = requested_version(self.request.headers.get_list("Git-Protocol"), self.service)
        if self.service in HIGHEST_VERSION:
            self.fields["version"] = self.version
        namespace = self.namespace()
        if namespace:
            self.fields["namespace"] = shorten(namespace)
        authorization, remote_user = self.request.headers.get("Authorization"), self.remote_user()
        if self._answer_at_once(authorization, remote_user, namespace):
            return
        admit = partial(self._admit, authorization, remote_user, namespace)
        service: Service
        if self._has_little_body() and not self.site.workers.is_busy:
            service = partial(_admitted, admit)
        else:
            service = await self.site.workers.call(admit)
        if self.gone:
            raise Disconnected("the client has gone")
        self._exchange = self.site.workers.exchange()
        if isinstance(self.request.connection, RequestConnection):
            self._exchange.lend = self._lend
        self._task = asyncio.create_task(self._run(service, self._exchange))

    def _has_little_body(self) -> bool:
        """Whether the client has sent all of its request, or as good as: refusing it early saves nothing.

        Then who may do what is decided where the service runs, which spares a change of threads.
        """
        headers = self.request.headers
        if self.request.method != "POST":
            return True
        length = headers.get("Content-Length", "")
        return length.isdigit() and int(length) <= LITTLE_BODY_BYTES and "Expect" not in headers

    def _answer_at_once(self, authorization: str | None, remote_user: str | None, namespace: str) -> bool:
        """Answer here, on the event loop, from what is known: a few stats say that it still holds.

        False, and nothing is decided: a worker has to do it. docs/decisions/0009.

        Raises: see `admit`, and what the service raises.
        """
        site = self.site
        began = time.monotonic()
        if began < site.at_once_from or (authorization is not None and site.htpasswd is not None):
            return False
        body = self.request_at_once()
        if body is None:
            return False
        channel = WholeChannel(body)
        try:
            service = self._admit(authorization, remote_user, namespace, known_only=True)
            self._report = service(channel)
        except NotKnown:
            self.clear_header("Content-Encoding")
            return False
        finally:
            if time.monotonic() - began > AT_ONCE_S:
                site.at_once_from = time.monotonic() + AT_ONCE_REST_S
        self.bytes_in += len(body)
        self._buffered = len(body) + len(channel.response)
        self.note_sent(channel.response)
        self.finish(channel.response)
        return True

    def _whole_body(self) -> bytes | None:
        connection = self.request.connection
        return connection.whole_body() if isinstance(connection, RequestConnection) else None

    def request_at_once(self) -> bytes | None:
        """Return the whole of a request that may be answered at once; None: this one may not."""
        return None

    def _admit(
        self,
        authorization: str | None,
        remote_user: str | None,
        namespace: str,
        *,
        known_only: bool = False,
    ) -> Service:
        """Decide, and bind; in a worker, or with `known_only` anywhere. Raises: see `admit`."""
        actor, repo = admit(
            self.site,
            self.address(),
            authorization,
            remote_user,
            self.repo_name,
            self.service,
            known_only=known_only,
        )
        self.user = actor.user
        return self.bind(actor, repo.in_namespace(namespace) if namespace else repo)

    def select_service(self) -> None:
        """Set `service` and check what of the request depends on it alone. Raises what is wrong with it."""
        raise NotImplementedError

    def bind(self, actor: Actor, repo: Repository) -> Service:
        """Return what to run, and set the response's content type."""
        raise NotImplementedError

    # -- the body

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self.bytes_in += len(chunk)
        return self._exchange.feed(chunk) if self._exchange is not None else None

    async def _body_complete(self) -> None:
        self._body_ended.set()
        if self._exchange is not None and self._task is not None:
            self._exchange.feed_end()
            await self._task

    def on_connection_close(self) -> None:
        if self._exchange is None:
            super().on_connection_close()
            return
        self.note_close()
        # `_run` ends the request when the worker is done with it
        self._exchange.abort(Disconnected(str(self.error)))

    # -- the service

    async def _run(self, service: Service, exchange: Exchange) -> None:
        try:
            self._report = await self.site.workers.run(service, exchange, self._send)
        except asyncio.CancelledError:
            self.error = Disconnected("the request was cancelled")
            self.cut()
            raise
        except Exception as error:
            self._service_failed(error)
            return
        if self._pushed_to is not None and self.site.on_pushed is not None:
            self.site.on_pushed(self._pushed_to)
        if exchange.broken is not None:
            self.error = self.error or exchange.broken
            self.cut()
            return
        if self._length is not None and exchange.bytes_out < self._length:
            # It broke off, and was logged. What it had to say is sent: the length says that this isn't all.
            self.cut()
            return
        if not self._body_ended.is_set():
            try:
                await asyncio.wait_for(self._body_ended.wait(), REST_OF_BODY_S)
            except TimeoutError:
                pass  # the connection deals with what still comes
        if self.gone:
            self.end()
        else:
            self.finish()

    def _service_failed(self, error: Exception) -> None:
        if self.gone and isinstance(error, GitsmartError):
            self.end()  # `on_connection_close` has said why
        else:
            self.fail(error)

    async def _send(self, data: bytes, *, last: bool) -> None:
        """Hand a piece of the response to the connection, and wait until the socket has it."""
        if not self.response_began():
            assert self._exchange is not None
            self._length = len(data) if last else self._exchange.length
            if self._length is not None:
                self.set_header("Content-Length", str(self._length))
        self.note_sent(data)
        self.write(data)
        try:
            await self.flush()
        except StreamClosedError:
            raise Disconnected("the client has gone") from None

    async def _lend(self, size: int) -> Loan | None:
        """Lend the connection to the worker for `size` bytes of the response."""
        try:
            loan = await cast(RequestConnection, self.request.connection).lend(size)
        except StreamClosedError:
            raise Disconnected("the client has gone") from None
        if loan is not None:
            self.bytes_out += size
        return loan

    def result_fields(self) -> dict[str, object]:
        fields: dict[str, object] = {"objects": self._report.objects, "refs": self._report.refs}
        if self._buffered:
            fields["buffered"] = self._buffered
        elif self._exchange is not None:
            fields["buffered"] = (
                self._exchange.request_high_bytes
                + self._exchange.response_high_bytes
                + getattr(self.request.connection, "body_high_water_bytes", 0)
            )
        if self._report.agent:
            fields["agent"] = shorten(self._report.agent)
        if self._report.session_id:
            fields["session"] = shorten(self._report.session_id)
        if self._report.server_options:
            fields["server_options"] = shorten(", ".join(self._report.server_options))
        if self._report.note:
            fields["note"] = shorten(self._report.note)
        return fields


class InfoRefs(SmartHandler):
    """GET /<repo>/info/refs?service=..."""

    allowed = "GET, HEAD"

    def select_service(self) -> None:
        # the first occurrence would do for any client; git takes the last (http-backend.c get_parameters())
        values = self.request.query_arguments.get("service", [])
        name = values[-1].decode("utf-8", "replace") if values else None
        if name == UPLOAD_PACK:
            self.service = UPLOAD_PACK
        elif name == RECEIVE_PACK:
            self.service = RECEIVE_PACK
        else:
            raise ServiceDisabled(f"Unsupported service: '{shorten(name or '')}'")
        self.fields["service"] = self.service

    def request_at_once(self) -> bytes | None:
        return b"" if self.service in HIGHEST_VERSION and self._whole_body() == b"" else None

    def bind(self, actor: Actor, repo: Repository) -> Service:
        self.set_header("Content-Type", f"application/x-{self.service}-advertisement")
        self.fields["phase"] = "advertise"
        name: ServiceName = UPLOAD_PACK if self.service == UPLOAD_PACK else RECEIVE_PACK
        service = partial(_advertise, repo, name, self.version, self.site)
        return partial(_gzipped, service, self.note_gzip) if self.may_gzip() else service

    async def get(self, name: str) -> None:
        await self._body_complete()

    async def head(self, name: str) -> None:
        await self._body_complete()


def _admitted(admit: Callable[[], Service], channel: Channel) -> ServiceReport:
    return admit()(channel)


def _advertise(
    repo: Repository, service: ServiceName, version: int, site: Site, channel: Channel
) -> ServiceReport:
    return advertise(repo, channel, service=service, version=version, options=site.options)


class ServiceRpc(SmartHandler):
    """POST /<repo>/git-upload-pack and /<repo>/git-receive-pack"""

    allowed = "POST"

    def select_service(self) -> None:
        self.service = self.path_kwargs["service"]
        self.fields["service"] = self.service
        expected = f"application/x-{self.service}-request"
        given = self.request.headers.get("Content-Type", "")
        if given != expected:
            raise UnsupportedMediaType(
                f"Expected POST with Content-Type '{expected}', but received '{shorten(given)}' instead."
            )
        self.coding = self.request.headers.get("Content-Encoding", "").strip().lower()
        if self.coding not in CODINGS and self.coding not in ("", "identity"):
            raise UnsupportedMediaType(f"content coding {shorten(self.coding)!r} is not supported")

    def request_at_once(self) -> bytes | None:
        if self.version != 2 or self.service != UPLOAD_PACK or self.coding in CODINGS:
            return None
        body = self._whole_body()
        is_listing = body is not None and body.startswith(LS_REFS[4:], 4) and len(body) <= LITTLE_BODY_BYTES
        return body if is_listing else None

    def bind(self, actor: Actor, repo: Repository) -> Service:
        self.set_header("Content-Type", f"application/x-{self.service}-result")
        job = Job(
            service=self.service,
            repo_name=repo.name,
            namespace=repo.namespace,
            version=self.version,
            actor=actor,
            coding=self.coding if self.coding in CODINGS else "",
            gzip=self.may_gzip(),
        )
        if self.service == RECEIVE_PACK:
            self._pushed_to = repo
        here = partial(_serve, repo, job, self.site, self.site.options, self.note_gzip)
        queue = self.site.jobs
        if queue is None or repo.is_known_only or (self.service == RECEIVE_PACK and self._is_light_push()):
            return here
        if self.service == RECEIVE_PACK:
            return partial(self._relay, queue, job, b"")
        return partial(self._run_held, repo, queue, job)

    def _is_light_push(self) -> bool:
        length = self.request.headers.get("Content-Length", "")
        return self.coding not in CODINGS and length.isdigit() and int(length) <= LIGHT_PUSH_BYTES

    def _relay(self, queue: JobQueue, job: Job, replay: bytes, channel: WorkerChannel) -> ServiceReport:
        """Have the job done by another process; in the worker."""
        self.clear_header("Content-Encoding")  # said when the work began here
        report = relay(channel, queue, job, on_note=self.note_gzip, replay=replay)
        assert isinstance(report, ServiceReport)
        return report

    def _run_held(self, repo: Repository, queue: JobQueue, job: Job, channel: WorkerChannel) -> ServiceReport:
        """Do the job here, unless it turns out to be long; in the worker."""

        def here(held: HeldChannel) -> ServiceReport:
            options = self.site.options
            if options.pack_cache is not None:
                options = replace(options, pack_cache=_HeldCache(options.pack_cache, held))
            return _serve(repo, job, self.site, options, self.note_gzip, held)

        return run_held(here, lambda channel, read: self._relay(queue, job, read, channel), channel)

    async def post(self, name: str, service: str) -> None:
        await self._body_complete()


def perform(site: Site, job: Job, channel: JobChannel) -> ServiceReport:
    """Do a job in a process of the pool. Whether the actor may was decided where it came from.

    Raises what `site.root.open` and the service raise.
    """
    repo = site.root.open(job.repo_name)
    if job.namespace:
        repo = repo.in_namespace(job.namespace)
    return _serve(repo, job, site, site.options, partial(channel.note, GZIP_NOTE), channel)


class _HeldCache(PackCache):
    """The clone cache for a service that may be moved: packs that are made in threads of their own are work,
    too."""

    def __init__(self, cache: PackCache, held: HeldChannel) -> None:
        self._cache = cache
        self._held = held

    def open(
        self, key: PackKey, make: Make, *, packs: Callable[[], Iterable[PackFile]], shared: bool
    ) -> PackStream:
        """See `PackCache.open`; raises `Moved` rather than make a pack of many objects."""
        if not shared:
            self._held.count_waiting()
        elif self._cache.has(key) or sum(pack.count for pack in packs()) <= SHORT_OBJECTS:
            self._held.settle()
        else:
            # Before anybody makes it here, whom the other process would find and follow
            self._held.move()
        return self._cache.open(key, make, packs=packs, shared=shared)


def _serve(
    repo: Repository,
    job: Job,
    site: Site,
    options: ServiceOptions,
    on_gzip: Callable[[], None],
    channel: Channel,
) -> ServiceReport:
    """Run the job's service, behind what its codings take."""
    if job.coding:
        limits = site.config.limits
        # a gzip'd push is bounded by receive-pack's own limits; what is inflated is never kept here
        limit_bytes = 1 << 62 if job.service == RECEIVE_PACK else limits.request_bytes
        decoder = ContentDecoder(job.coding, limit_bytes=limit_bytes, ratio=limits.inflate_ratio)
        channel = DecodedChannel(channel, decoder)
    if job.service == RECEIVE_PACK:
        return receive_pack(repo, channel, version=job.version, actor=job.actor, options=options)
    if job.service == UPLOAD_ARCHIVE:
        return upload_archive(repo, channel, options=options)
    fetch = partial(_upload_pack, repo, job.version, options)
    return _gzipped_ls_refs(fetch, on_gzip, channel) if job.gzip and job.version == 2 else fetch(channel)


def _upload_pack(repo: Repository, version: int, options: ServiceOptions, channel: Channel) -> ServiceReport:
    return upload_pack(repo, channel, version=version, options=options)


def _gzipped(service: Service, on_gzip: Callable[[], None], channel: Channel) -> ServiceReport:
    gzipped = GzippedChannel(channel, on_gzip=on_gzip, threshold_bytes=GZIP_FROM_BYTES)
    report = service(gzipped)
    gzipped.finish()
    return report


def _gzipped_ls_refs(service: Service, on_gzip: Callable[[], None], channel: Channel) -> ServiceReport:
    """Gzip a list of refs, but no pack: that is compressed already, and needs its keepalives."""
    peeked = PeekedChannel(channel, len(LS_REFS))
    if peeked.head[4:] == LS_REFS[4:]:
        return _gzipped(service, on_gzip, peeked)
    return service(peeked)


def admit(
    site: Site,
    address: str,
    authorization: str | None,
    remote_user: str | None,
    name: str,
    service: str,
    *,
    known_only: bool = False,
) -> tuple[Actor, Repository]:
    """Find out who is asking, find the repository, and decide. Blocking.

    A stranger who may do nothing learns nothing: not even which repositories there are.

    Args:
        known_only: give a repository that is known already, in the form of `Repository.known_only`.

    Raises:
        NotKnown: with `known_only` alone.
        AuthenticationRequired, Forbidden, ServiceDisabled, RepositoryNotFound, RepositoryUnusable
    """
    actor = site.authenticate(address, authorization, remote_user)
    can_authenticate = site.can_challenge(address)
    if actor.is_anonymous and site.anonymous == "none":
        decide(
            actor,
            service,
            uploadpack=None,
            receivepack=None,
            anonymous="none",
            can_authenticate=can_authenticate,
        )
    repo = site.root.open_known(name) if known_only else site.root.open(name)
    config = repo.config
    decide(
        actor,
        service,
        uploadpack=config.get_bool("http.uploadpack"),
        receivepack=config.get_bool("http.receivepack"),
        getanyfile=config.get_bool("http.getanyfile"),
        uploadarchive=config.get_bool("http.uploadarchive"),
        anonymous=site.anonymous,
        can_authenticate=can_authenticate,
    )
    return actor, repo
