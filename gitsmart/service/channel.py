"""The only thing a service knows of the network.

    request body  -> Channel.read  -> service -> Channel.write -> response body

A service runs in a worker, blocks freely, and meets its peer only here. `workers.py` makes the channel of an
HTTP request; tests make one from two byte strings.
"""

from typing import Protocol

from gitsmart.wire.content import ContentDecoder

__all__ = ["Channel", "DecodedChannel"]


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

    def flush(self) -> None:
        """Hand all that was written to the network now: before a phase that may be silent for a while."""
        ...

    def check(self) -> None:
        """Raise `Disconnected` if the peer has gone. Cheap: for long loops that neither read nor write."""
        ...

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """From now on send `packet` whenever nothing was sent for `interval_s`; b"" switches it off."""
        ...


class DecodedChannel:
    """A channel whose request body has a content coding (gzip, x-gzip, deflate), inflated as it is read."""

    def __init__(self, inner: Channel, decoder: ContentDecoder) -> None:
        self._inner = inner
        self._decoder = decoder
        self._ready = b""
        self._ended = False
        self.write = inner.write
        self.flush = inner.flush
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
