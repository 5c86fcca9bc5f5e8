"""Our services behind dulwich's front ends: its git:// server and its WSGI application.

    dulwich.server.TCPGitServer(RootBackend(root), "127.0.0.1", 9418, handlers=HANDLERS)
    dulwich.web.make_wsgi_chain(RootBackend(root), handlers=HANDLERS)

    Handler.handle -> Protocol as a Channel -> upload_pack / receive_pack

dulwich's own handlers are replaced, all three of them: its front ends merge the mapping they get into their
defaults, so what is left out would be served by dulwich itself. There is no access control here: whoever
reaches the front end may fetch, and with `HANDLERS` push; use `READ_ONLY_HANDLERS` where they may not. A
repository's config still decides what a push may do.

The only module that knows dulwich.server (tests/architecture). git-daemon(1); gitprotocol-pack, "Git
Transport".
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dulwich.errors import NotGitRepository
from dulwich.protocol import Protocol, ReceivableProtocol
from dulwich.repo import Repo
from dulwich.server import Backend, PackHandler

from gitsmart.access.identity import Actor
from gitsmart.errors import Disconnected, GitsmartError, ProtocolError, RepositoryError
from gitsmart.pack.inflate import InflateError, Inflater, decompressobj
from gitsmart.pack.packfile import OFS_DELTA, REF_DELTA
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.advertise import ServiceName, write_advertisement
from gitsmart.service.channel import Channel
from gitsmart.service.options import ServiceOptions
from gitsmart.service.receive_pack import receive_pack
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import PktLineDecoder, Special, error_pkt
from gitsmart.wire.push_request import PushRequestParser

__all__ = ["HANDLERS", "READ_ONLY_HANDLERS", "ProtocolChannel", "ReceivePack", "RootBackend", "UploadPack"]

_logger = logging.getLogger(__name__)

_ARGUMENT_BYTES = 1 << 20  # of a request that is refused anyway
_GATHER_BYTES = 65536
_WINDOW = 1024
_MALFORMED: tuple[type[Exception], ...] = (ProtocolError, *InflateError)


class RootBackend(Backend):
    """The repositories below a root, found as our own HTTP server finds them."""

    def __init__(self, root: RepositoryRoot) -> None:
        self._root = root

    def open_repository(self, path: str | bytes) -> Repository:  # type: ignore[override]
        """Open the repository that a front end names.

        Raises:
            NotGitRepository: there is none that can be served.
        """
        name = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
        try:
            return self._root.open(name.strip("/"))
        except RepositoryError as error:
            raise NotGitRepository(str(error)) from error


class ProtocolChannel:
    """A `Channel` over a dulwich Protocol. Keepalives go out when the service calls `check`: there is no
    thread.
    """

    def __init__(self, proto: Protocol) -> None:
        self._proto = proto
        self._receive: Callable[[int], bytes] = (
            proto.recv if isinstance(proto, ReceivableProtocol) else proto.read
        )
        self._gathered = bytearray()
        self._keepalive = b""
        self._interval_s = 0.0
        self._sent_at = time.monotonic()

    def read(self, n: int) -> bytes:
        """See `Channel.read`. What was written goes out first: over one connection the peer waits for it."""
        self.flush()
        try:
            return self._receive(n)
        except OSError as error:
            raise Disconnected("the client has gone") from error

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `Channel.write`."""
        self._gathered += data
        if len(self._gathered) >= _GATHER_BYTES:
            self.flush()

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """See `Channel.write_all`."""
        for part in parts:
            self.write(part)

    def flush(self) -> None:
        """See `Channel.flush`."""
        if not self._gathered:
            return
        data, self._gathered = bytes(self._gathered), bytearray()
        self._sent_at = time.monotonic()
        try:
            self._proto.write(data)
        except OSError as error:
            raise Disconnected("the client has gone") from error

    def promise(self, size: int) -> None:
        """Nothing: this transport has no lengths."""

    def check(self) -> None:
        """See `Channel.check`. A peer that has gone is noticed by writing to it."""
        if self._keepalive and time.monotonic() - self._sent_at >= self._interval_s:
            self.write(self._keepalive)
            self.flush()

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """See `Channel.keepalive`."""
        self._keepalive, self._interval_s = packet, interval_s


class _Handler(PackHandler):
    """What both services share: opening the repository, the version asked for, and where errors go."""

    service: ClassVar[ServiceName]
    options: ClassVar[ServiceOptions] = ServiceOptions()

    def __init__(
        self,
        backend: Backend,
        args: Sequence[bytes | str],
        proto: Protocol,
        stateless_rpc: bool = False,
        advertise_refs: bool = False,
    ) -> None:
        """Take what dulwich's front ends give.

        Args:
            args: the repository's path; behind it, from a git:// client, its extra parameters.
            stateless_rpc: one HTTP request, where the refs were advertised by another.
            advertise_refs: that other one.
        """
        super().__init__(backend, proto, stateless_rpc=stateless_rpc)
        self.advertise_refs = advertise_refs
        self._path = args[0]
        self._version = _version_of(args[1:])
        self._channel = ProtocolChannel(proto)

    def handle(self) -> None:
        """Serve one request, or one connection. Errors end in an `ERR` pkt-line, never in a traceback."""
        try:
            repo = _open(self.backend, self._path)
            if self.advertise_refs or (not self.stateless_rpc and self.service == "git-receive-pack"):
                write_advertisement(
                    repo,
                    self._channel,
                    service=self.service,
                    version=self._version,
                    options=self.options,
                    stateless=self.stateless_rpc,
                )
            if not self.advertise_refs:
                self.serve(repo)
            self._channel.flush()
        except Disconnected:
            _logger.info("%s: the client left", self.service)
        except (GitsmartError, NotGitRepository) as error:
            _logger.info("%s refused: %s", self.service, error)
            self._channel.write(error_pkt(str(error)))
            self._channel.flush()

    def serve(self, repo: Repository) -> None:
        """Run the service itself."""
        raise NotImplementedError


class UploadPack(_Handler):
    """git-upload-pack by `service.upload_pack`."""

    service = "git-upload-pack"

    def serve(self, repo: Repository) -> None:
        """See `upload_pack`."""
        upload_pack(
            repo, self._channel, version=self._version, options=self.options, stateless=self.stateless_rpc
        )


class ReceivePack(_Handler):
    """git-receive-pack by `service.receive_pack`, for an anonymous actor."""

    service = "git-receive-pack"

    def serve(self, repo: Repository) -> None:
        """See `receive_pack`."""
        channel: Channel = self._channel
        if not self.stateless_rpc:
            channel = _OnePush(self._channel, repo, self.options)
        actor = Actor(None, "unknown")
        receive_pack(repo, channel, version=self._version, actor=actor, options=self.options)


class Refused(_Handler):
    """In place of a service that is off."""

    service = "git-receive-pack"

    def handle(self) -> None:
        """Say so, as git-daemon(1) does."""
        self._channel.write(error_pkt("access denied: service not enabled"))
        self._channel.flush()


class RefusedArchive(Refused):
    """In place of upload-archive, whose client sends all its arguments before it listens."""

    def handle(self) -> None:
        """Read them first: closing a connection with unread data resets it, and the answer may be lost."""
        decoder = PktLineDecoder()
        left = _ARGUMENT_BYTES
        try:
            while left > 0:
                data = self._channel.read(4096)
                if not data or Special.FLUSH in decoder.feed(data, stop_at_flush=True):
                    break
                left -= len(data)
        except (Disconnected, ProtocolError):
            pass  # there may still be somebody to read the answer
        super().handle()


HANDLERS: Mapping[bytes, type[PackHandler]] = {
    b"git-upload-pack": UploadPack,
    b"git-receive-pack": ReceivePack,
    b"git-upload-archive": RefusedArchive,
}
"""Fetches and pushes, for whoever reaches the front end."""

READ_ONLY_HANDLERS: Mapping[bytes, type[PackHandler]] = {**HANDLERS, b"git-receive-pack": Refused}
"""Fetches only."""


def _open(backend: Backend, path: bytes | str) -> Repository:
    """Open through our backend, or through a stock one that gives a repository on disk.

    Raises:
        NotGitRepository, RepositoryError
    """
    name = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    found: object = backend.open_repository(name)
    if isinstance(found, Repository):
        return found
    if isinstance(found, Repo):
        git_dir = found.controldir()
        found.close()
        return Repository(name, Path(git_dir))
    raise NotGitRepository("not a repository on disk")


def _version_of(extra: Sequence[bytes | str]) -> int:
    """The protocol version among a git:// client's extra parameters (gitprotocol-pack, "Extra
    Parameters").
    """
    for value in extra:
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if text in ("version=1", "version=2"):
            return int(text[-1])
    return 0


class _OnePush:
    """A channel that ends where a push does.

    Over one connection the client sends nothing behind its pack, and doesn't end its stream either: it waits
    for the report. So the end has to be found in what passes: commands and options, then the pack, entry by
    entry. That inflates the pack once more than HTTP needs. What is malformed ends the stream, and the
    service says why.
    """

    def __init__(self, inner: ProtocolChannel, repo: Repository, options: ServiceOptions) -> None:
        self._inner = inner
        self._decoder = PktLineDecoder()
        self._parser: PushRequestParser | None = PushRequestParser(
            hex_len=repo.format.hex_len,
            object_format=repo.format.name,
            limit_lines=options.push_lines,
            limit_bytes=options.push_bytes,
        )
        self._pack = _PackEnd(repo.format.raw_len)
        self._is_ended = False
        self.write = inner.write
        self.write_all = inner.write_all
        self.flush = inner.flush
        self.promise = inner.promise
        self.check = inner.check
        self.keepalive = inner.keepalive

    def read(self, n: int) -> bytes:
        """See `Channel.read`."""
        if self._is_ended:
            return b""
        data = self._inner.read(n)
        try:
            self._is_ended = not data or self._ends_with(data)
        except _MALFORMED:
            self._is_ended = True
        return data

    def _ends_with(self, data: bytes) -> bool:
        """Take `data` in; say whether the push is whole with it."""
        while self._parser is not None:
            events = self._decoder.feed(data, stop_at_flush=True)
            request = None
            for event in events:
                request = self._parser.receive(event)
            if not events or events[-1] is not Special.FLUSH:
                return False
            data = self._decoder.leftover()
            if request is not None:
                self._parser = None
                if not request.has_pack:
                    return True
        return self._pack.feed(data)


class _PackEnd:
    """Finds where a pack ends. Holds one entry header, and 64 KiB of inflated data at a time; linear in time.

    gitformat-pack, "pack-*.pack files have the following format".
    """

    def __init__(self, raw_len: int) -> None:
        self._raw_len = raw_len
        self._held = b""
        self._entries_left: int | None = None
        self._inflater: Inflater | None = None

    def feed(self, data: bytes) -> bool:
        """Take the pack's next bytes; say whether its trailer is there in full.

        Raises:
            InflateError: an entry's zlib stream is broken.
        """
        data, self._held = self._held + data, b""
        pos = 0
        if self._entries_left is None:
            if len(data) < 12:
                self._held = data
                return False
            self._entries_left = int.from_bytes(data[8:12], "big")
            pos = 12
        while True:
            if self._inflater is not None:
                pos = _inflate(self._inflater, data, pos)
                if not self._inflater.eof:
                    return False
                self._inflater = None
            end = self._end_of_header(data, pos) if self._entries_left else pos + self._raw_len
            if end is None or end > len(data):
                self._held = data[pos:]
                return False
            if not self._entries_left:
                return True
            self._entries_left -= 1
            self._inflater = decompressobj()
            pos = end

    def _end_of_header(self, data: bytes, pos: int) -> int | None:
        """Where the entry header at `pos` ends; None when that is not known yet."""
        end = _end_of_number(data, pos)
        if end is None:
            return None
        kind = data[pos] >> 4 & 7
        if kind == OFS_DELTA:
            return _end_of_number(data, end)
        return end + self._raw_len if kind == REF_DELTA else end


def _end_of_number(data: bytes, pos: int) -> int | None:
    """Where the variable-length number at `pos` ends; None when that is not in `data`."""
    while pos < len(data):
        pos += 1
        if not data[pos - 1] & 0x80:
            return pos
    return None


def _inflate(inflater: Inflater, data: bytes, pos: int) -> int:
    """Feed a zlib stream from `data[pos:]`; return where it ended, or the end of `data`.

    In small windows: what an inflater doesn't use it copies.
    """
    while pos < len(data) and not inflater.eof:
        window = data[pos : pos + _WINDOW]
        inflater.decompress(window, 65536)
        pos += len(window) - len(inflater.unused_data if inflater.eof else inflater.unconsumed_tail)
    return pos
