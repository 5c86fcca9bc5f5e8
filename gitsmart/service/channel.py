"""The only thing a service knows of the network.

    request body  -> Channel.read  -> service -> Channel.write -> response body

A service runs in a worker, blocks freely, and meets its peer only here. `workers.py` makes the channel of an
HTTP request; tests make one from two byte strings.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from gitsmart.wire.content import ContentDecoder, GzipEncoder

__all__ = ["Channel", "DecodedChannel", "GzippedChannel", "PeekedChannel", "WholeChannel", "write_kept"]

_GZIP = "gzip"
_AT_ONCE_BYTES = 256 << 10


class Channel(Protocol):
    """One request's two byte streams. Used by one thread at a time."""

    def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes of the request body as soon as any are there; b"" at its end, and ever after.

        Raises:
            Disconnected: the peer has gone before the body's end, or was silent for too long.
            ProtocolError: the body's framing or coding is broken.
        """
        ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`; wait while the response pipe is full. `data`'s buffer may be reused on return.

        Small writes are gathered until `flush`, or until enough have come. While keepalive is on, every write
        holds whole pkt-lines, so that a keepalive never lands inside one.

        Raises:
            Disconnected: the peer has gone, or has not read for too long.
        """
        ...

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send much at once: whole pkt-lines in parts, or no pkt-lines at all. Best 1 MiB and more.

        The parts are not copied, where the transport can do without. Waits as `write`, and raises as it does.
        """
        ...

    def flush(self) -> None:
        """Hand all that was written to the network now: before a phase that may be silent for a while."""
        ...

    def promise(self, size: int) -> None:
        """Say that exactly `size` more bytes will be written, and no keepalives come between.

        A response that hasn't begun says how long it is, then, and one that ends earlier is cut off. Comes to
        nothing where it comes too late, or the network has no use for it.
        """
        ...

    def check(self) -> None:
        """Raise `Disconnected` if the peer has gone. Cheap: for long loops that neither read nor write."""
        ...

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """From now on send `packet` whenever nothing was sent for `interval_s`; b"" switches it off."""
        ...


class WholeChannel:
    """A channel of a request that is here as a whole, and of a response that is kept till its end: for short
    services that nobody else feeds or drains. `response` holds what was written.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.response = b""

    def read(self, n: int) -> bytes:
        """See `Channel.read`."""
        data, self._request = self._request[:n], self._request[n:]
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `Channel.write`."""
        self.response += data

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """See `Channel.write_all`."""
        self.response += b"".join(parts)

    def flush(self) -> None:
        """Nothing: the response goes out as a whole."""

    def promise(self, size: int) -> None:
        """Nothing: how long it is is known when it is sent."""

    def check(self) -> None:
        """Nothing: nobody can have gone meanwhile."""

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """Nothing: there is no silence."""


class DecodedChannel:
    """A channel whose request body has a content coding (gzip, x-gzip, deflate), inflated as it is read."""

    def __init__(self, inner: Channel, decoder: ContentDecoder) -> None:
        self._inner = inner
        self._decoder = decoder
        self._ready = b""
        self._ended = False
        self.write = inner.write
        self.write_all = inner.write_all
        self.flush = inner.flush
        self.promise = inner.promise
        self.check = inner.check
        self.keepalive = inner.keepalive

    def read(self, n: int) -> bytes:
        """See `Channel.read`; raises `LimitExceeded` too, when what is inflated outgrows its bounds."""
        while not self._ready and not self._ended:
            data = self._decoder.inflate(65536)
            if data:
                self._ready = data
                break
            coded = self._inner.read(65536)
            if coded:
                self._decoder.feed(coded)
            else:
                self._decoder.finish()
                self._ended = True
        data, self._ready = self._ready[:n], self._ready[n:]
        return data


class PeekedChannel:
    """A channel some of whose request was looked at, and is read again."""

    def __init__(self, inner: Channel, n: int) -> None:
        """Wait for `n` bytes of the request, or its end; `head` is what has come."""
        self._inner = inner
        self.head = b""
        while len(self.head) < n and (data := inner.read(n - len(self.head))):
            self.head += data
        self._waiting = self.head
        self.write = inner.write
        self.write_all = inner.write_all
        self.flush = inner.flush
        self.promise = inner.promise
        self.check = inner.check
        self.keepalive = inner.keepalive

    def read(self, n: int) -> bytes:
        """See `Channel.read`."""
        if not self._waiting:
            return self._inner.read(n)
        data, self._waiting = self._waiting[:n], self._waiting[n:]
        return data


class GzippedChannel:
    """A channel whose response is gzip'd, unless it stays small; for services that write it in one go.

    Call `finish` when the service has ended well. Flushes and keepalives come to nothing.

    Args:
        on_gzip: called before the first byte, when it is decided that they will be gzip'd.
        threshold_bytes: smaller responses go out as they are.
    """

    def __init__(self, inner: Channel, *, on_gzip: Callable[[], None], threshold_bytes: int) -> None:
        self._inner = inner
        self._on_gzip = on_gzip
        self._threshold = threshold_bytes
        self._small = bytearray()
        self._encoder: GzipEncoder | None = None
        self._is_whole = False
        self.read = inner.read
        self.check = inner.check

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `Channel.write`."""
        if self._encoder is None:
            self._small += data
            if len(self._small) < self._threshold:
                return
            self._on_gzip()
            self._encoder = GzipEncoder()
            data, self._small = self._small, bytearray()
        coded = self._encoder.encode(data)
        if coded:
            self._inner.write(coded)

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """See `Channel.write_all`."""
        for part in parts:
            self.write(part)

    def flush(self) -> None:
        """Nothing: what was written crosses when there is enough, or at the end."""

    def promise(self, size: int) -> None:
        """Nothing: how much it is when it is coded is known at the end."""

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """Nothing: a packet would land inside the coded bytes."""

    def write_kept(self, body: bytes, kept: dict[str, bytes]) -> None:
        """See the function `write_kept`: gzip'd once."""
        if self._small or self._encoder is not None or len(body) < self._threshold:
            self.write(body)
            return
        self._on_gzip()
        coded = kept.get(_GZIP)
        if coded is None:
            encoder = GzipEncoder()
            coded = kept[_GZIP] = encoder.encode(body) + encoder.finish()
        self._is_whole = True
        write_kept(self._inner, coded, {})

    def finish(self) -> None:
        """Write the rest."""
        if self._is_whole:
            return
        self._inner.write(self._small if self._encoder is None else self._encoder.finish())


def write_kept(channel: Channel, body: bytes, kept: dict[str, bytes]) -> None:
    """Write a response as a whole, one that others will get, too.

    Args:
        kept: belongs to `body`, and holds other codings of it once they were asked for.

    Raises: as `Channel.write`.
    """
    if isinstance(channel, GzippedChannel):
        channel.write_kept(body, kept)
        return
    channel.promise(len(body))
    if len(body) < _AT_ONCE_BYTES:
        channel.write(body)
    else:
        channel.write(body[:4096])  # the connection can be lent once the response has begun
        channel.write_all([memoryview(body)[4096:]])
