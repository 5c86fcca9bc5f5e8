"""side-band: three streams in one, each pkt-line's first byte naming its band.

    pkt-line  =  pkt-len band *OCTET        ; at most 1000 bytes (side-band) or 65520 (side-band-64k) in all
    band      =  %x01  pack or report data
              /  %x02  progress, shown to the user as it is
              /  %x03  a fatal error, the last thing said

gitprotocol-pack, "Packfile Data"; gitprotocol-capabilities, "side-band, side-band-64k". Decoding is the
client's part.
"""

from collections.abc import Callable

from gitsmart.wire.pktline import FLUSH_PKT

__all__ = ["KEEPALIVE_PKT", "SIDE_BAND_64K_LIMIT", "SIDE_BAND_LIMIT", "SideBandFrames", "SideBandWriter"]

SIDE_BAND_LIMIT = 1000
"""Longest pkt-line of `side-band`, in bytes."""
SIDE_BAND_64K_LIMIT = 65520
"""Longest pkt-line of `side-band-64k` and of protocol v2, in bytes."""
KEEPALIVE_PKT = b"0005\x01"
"""No data on band 1: clients skip it (git: upload-pack.c create_pack_file())."""

_HEADER = 5


class SideBandFrames:
    """Data of known size on band 1: full pkt-lines, in parts that are not copied.

    Holds on to what of the data fills no packet yet.
    """

    def __init__(self, limit: int, size: int) -> None:
        """Frame `size` bytes in pkt-lines of at most `limit`."""
        assert _HEADER < limit <= SIDE_BAND_64K_LIMIT
        self._room = limit - _HEADER
        self._head = b"%04x\x01" % limit
        self._left = size  # what is in no packet that was given
        self._kept: list[bytes | memoryview] = []
        self._kept_bytes = 0
        self.wire_bytes = size + _HEADER * -(-size // self._room)
        """Of all pkt-lines together."""

    def frame(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return the pkt-lines that are complete with `data`: headers, and views of it.

        >>> frames = SideBandFrames(10, 7)
        >>> frames.frame(b"abc"), [bytes(part) for part in frames.frame(b"defg")]
        ([], [b'000a\\x01', b'abc', b'de', b'0007\\x01', b'fg'])
        """
        view = memoryview(data)
        parts: list[bytes | memoryview] = []
        at = 0
        while self._left:
            size = min(self._room, self._left)
            end = at + size - self._kept_bytes
            if end > len(view):
                break
            head = self._head if size == self._room else b"%04x\x01" % (size + _HEADER)
            if self._kept:
                parts += (head, *self._kept, view[at:end])
                self._kept, self._kept_bytes = [], 0
            else:
                parts += (head, view[at:end])
            self._left -= size
            at = end
        if at < len(view):
            assert self._left, "more data than was promised"
            self._kept.append(view[at:])
            self._kept_bytes += len(view) - at
        return parts


class SideBandWriter:
    """Packs data into full pkt-lines on band 1, and sends texts on bands 2 and 3.

    Every call of `write` gets whole pkt-lines; what it gets is reused after it returns. Holds one packet.
    Each byte of data is copied once, into its packet.
    """

    def __init__(self, write: Callable[[bytes | bytearray | memoryview], None], limit: int) -> None:
        assert _HEADER < limit <= SIDE_BAND_64K_LIMIT
        self._write = write
        self._limit = limit
        self._packet = memoryview(bytearray(limit))
        self._used = _HEADER

    def data(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` on band 1, as soon as it fills a packet, or with the next `flush`."""
        view = memoryview(data)
        pos, end = 0, len(view)
        while pos < end:
            size = min(end - pos, self._limit - self._used)
            self._packet[self._used : self._used + size] = view[pos : pos + size]
            self._used += size
            pos += size
            if self._used == self._limit:
                self.flush()

    def frame(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return `data` on band 1 as pkt-lines in parts, headers and views of it by turns: nothing is copied.

        It isn't sent, and what `data` got before is to be flushed before it is.
        """
        room = self._limit - _HEADER
        view = memoryview(data)
        whole = len(view) - len(view) % room
        head = b"%04x\x01" % self._limit
        parts: list[bytes | memoryview] = []
        for pos in range(0, whole, room):
            parts += (head, view[pos : pos + room])
        if whole < len(view):
            parts += (b"%04x\x01" % (len(view) - whole + _HEADER), view[whole:])
        return parts

    def flush(self) -> None:
        """Send the data that fills no packet yet."""
        if self._used == _HEADER:
            return
        self._packet[:_HEADER] = b"%04x\x01" % self._used
        size, self._used = self._used, _HEADER
        self._write(self._packet[:size])

    def progress(self, text: bytes) -> None:
        """Send `text` on band 2 now, in as many pkt-lines as it takes; data not yet flushed comes later."""
        for packet in self.progress_packets(text):
            self._write(packet)

    def progress_packets(self, text: bytes) -> list[bytes]:
        """Return what `progress` sends."""
        room = self._limit - _HEADER
        pieces = [text[pos : pos + room] for pos in range(0, len(text), room)]
        return [b"%04x\x02%b" % (len(piece) + _HEADER, piece) for piece in pieces]

    def error(self, message: str) -> None:
        """Send `message`, cut to one pkt-line, on band 3 behind all data. The client stops reading there."""
        self.flush()
        text = message.encode("utf-8", "replace")[: self._limit - _HEADER]  # the client ends the line
        self._write(b"%04x\x03%b" % (len(text) + _HEADER, text))

    def finish(self) -> None:
        """Send what is left and the flush-pkt that ends all bands."""
        self.flush()
        self._write(FLUSH_PKT)
