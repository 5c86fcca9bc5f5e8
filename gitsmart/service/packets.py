"""pkt-lines read from a `Channel`, and after them the plain bytes that follow, through one object."""

from collections import deque
from collections.abc import Callable

from gitsmart.errors import ProtocolError
from gitsmart.wire.pktline import PktLine, PktLineDecoder, Special

__all__ = ["PktLineReader"]

_CHUNK = 65536


class PktLineReader:
    """Blocking reader of pkt-lines, then of the bytes behind a flush-pkt.

    Never looks behind a flush-pkt before it is asked to, so the pack behind a push's commands comes out of
    `read` whole. Holds at most 64 KiB and one pkt-line more than it has given.

    Args:
        read: `Channel.read`: up to n bytes, b"" at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._decoder = PktLineDecoder()
        self._events: deque[PktLine] = deque()
        self._rest = b""

    def read_line(self) -> PktLine | None:
        """Return the next pkt-line; None when the request ended before its first byte.

        Raises:
            ProtocolError: it is malformed, or the request ends inside it.
            Disconnected: see `Channel.read`.
        """
        while not self._events:
            if self._rest:
                data, self._rest = self._rest, b""
            elif self._decoder.failed:
                data = b""  # raises what the decoder found behind the lines given so far
            else:
                data = self._read(_CHUNK)
                if not data:
                    if self._decoder.is_between_packets:
                        return None
                    raise ProtocolError("the remote end hung up unexpectedly")
            self._events.extend(self._decoder.feed(data, stop_at_flush=True))
            if self._events and self._events[-1] is Special.FLUSH:
                self._rest = self._decoder.leftover()
        return self._events.popleft()

    def expect_line(self) -> PktLine:
        """Return the next pkt-line where one has to come.

        Raises:
            ProtocolError: it is malformed, or the request ends before or inside it.
            Disconnected: see `Channel.read`.
        """
        line = self.read_line()
        if line is None:
            raise ProtocolError("the remote end hung up unexpectedly")
        return line

    def read(self, n: int) -> bytes:
        """Return 1 to `n` of the bytes behind the last flush-pkt, b"" at their end; see `Channel.read`."""
        assert not self._events, "pkt-lines are waiting to be read"
        if self._rest:
            data = self._rest[:n]
            self._rest = self._rest[n:]
            return data
        return self._read(n)
