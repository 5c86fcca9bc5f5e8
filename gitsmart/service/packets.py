"""pkt-lines read from a `Channel`, and after them the plain bytes that follow, through one object."""

from collections import deque
from collections.abc import Callable, Iterator

from gitsmart.errors import LimitExceeded, ProtocolError
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

    def peek_line(self) -> PktLine | None:
        """Return what `read_line` will return, without taking it. Raises as `read_line`."""
        line = self.read_line()
        if line is not None:
            self._events.appendleft(line)
        return line

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

    def iter_section(self, *, limit_lines: int, limit_bytes: int) -> Iterator[bytes]:
        """Yield the payloads up to the next flush-pkt, which is taken too.

        Raises:
            ProtocolError: a pkt-line is malformed, or none of those that may come here, or the request ends.
            LimitExceeded: there are more than `limit_lines`, or more than `limit_bytes` in them.
            Disconnected: see `Channel.read`.
        """
        lines = size = 0
        while (line := self.expect_line()) is not Special.FLUSH:
            if not isinstance(line, bytes):
                raise ProtocolError("protocol error: got an unexpected packet")
            lines += 1
            size += len(line)
            if lines > limit_lines or size > limit_bytes:
                raise LimitExceeded(f"request has more than {limit_lines} lines or {limit_bytes} bytes")
            yield line
