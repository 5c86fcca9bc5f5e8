"""Content codings: gzip, x-gzip and deflate of request bodies, inflated in bounded steps; gzip of responses.

    coded bytes -> feed -> inflate(n) -> up to n bytes of the body

git gzips upload-pack requests of more than 1 KiB (remote-curl.c), so every fetch from a repository with many
refs comes through here. `gzip` is one or more RFC 1952 members; `deflate` is an RFC 1950 stream, or the bare
RFC 1951 one that several clients send under that name (RFC 9110 section 8.4.1.2 has a note on them). Lists of
codings (`gzip, deflate`) and other codings are not supported: refuse them with 415.

Memory: what was fed and is not yet inflated, zlib's 32 KiB window, and the piece that was asked for. Time:
linear in what goes in and comes out, however it is cut.
"""

import re
import zlib
from collections import deque
from collections.abc import Iterable

from gitsmart.errors import LimitExceeded, ProtocolError

__all__ = ["CODINGS", "RATIO_FLOOR_BYTES", "ContentDecoder", "GzipEncoder", "accepts_gzip"]

CODINGS = frozenset({"gzip", "x-gzip", "deflate"})

# A small body may have any ratio: a few hundred equal lines are honest and compress a hundredfold. Bombs are
# told apart only once they cost something. Pulled out of the air, but far below what one request may hold
# anyway.
RATIO_FLOOR_BYTES = 1 << 20

# zlib copies what it did not consume of one call (unconsumed_tail), so big inputs go in by windows: without
# them a large feed that is read in small steps would be copied once a step.
_WINDOW_BYTES = 16384

_GZIP_WBITS, _ZLIB_WBITS, _RAW_WBITS = 31, 15, -15

_WEIGHTED = re.compile(
    r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?)[ \t]*)?"
)


def accepts_gzip(fields: Iterable[str]) -> bool:
    """Whether `Accept-Encoding` fields name gzip (RFC 9110 section 12.5.3); "*" alone does not do.

    >>> accepts_gzip(["deflate, gzip"]), accepts_gzip(["gzip;q=0"]), accepts_gzip([])
    (True, False, False)
    """
    for field in fields:
        for item in field.split(","):
            match = _WEIGHTED.fullmatch(item)
            if match is not None and match[1].lower() in ("gzip", "x-gzip"):
                return float(match[2] or "1") > 0
    return False


class GzipEncoder:
    """Deflate one response. Fast rather than small: ids don't get much smaller by trying (level 1)."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(1, zlib.DEFLATED, _GZIP_WBITS)

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return what can be sent so far; often nothing."""
        return self._stream.compress(data)

    def finish(self) -> bytes:
        """Return the rest, once."""
        return self._stream.flush()


class ContentDecoder:
    """Inflate one body. Feed it pieces of any size; nothing is inflated until it is asked for.

    Args:
        coding: one of `CODINGS`, in any case.
        limit_bytes: how large the inflated body may become.
        ratio: how many inflated bytes may come from one coded byte, once `RATIO_FLOOR_BYTES` were inflated.

    Raises:
        ProtocolError: `coding` is not supported.

    >>> decoder = ContentDecoder("gzip", limit_bytes=1 << 20, ratio=100)
    >>> decoder.feed(zlib.compress(b"0014command=ls-refs", wbits=31))
    >>> decoder.inflate(4), decoder.inflate(100), decoder.inflate(100)
    (b'0014', b'command=ls-refs', b'')
    >>> decoder.finish()
    """

    def __init__(self, coding: str, *, limit_bytes: int, ratio: int) -> None:
        name = coding.lower()
        if name not in CODINGS:
            raise ProtocolError(f"content coding {coding[:40]!r} is not supported")
        self._gzip = name != "deflate"
        self._limit_bytes = limit_bytes
        self._ratio = ratio
        self._waiting: deque[memoryview] = deque()  # windows that zlib has not seen
        self._tail = b""  # of the window before them: what zlib did not consume
        self._sniffed = b""  # the first byte of a deflate body, when it came alone
        self._stream = zlib.decompressobj(_GZIP_WBITS) if self._gzip else None
        self._in_member = False  # something of the present member was consumed
        self._members = 0
        self._coded_total = 0
        self._inflated_total = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add coded bytes. They are kept, not copied: don't change the buffer until all of it is inflated."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _WINDOW_BYTES):
            self._waiting.append(view[start : start + _WINDOW_BYTES])

    def inflate(self, n: int) -> bytes:
        """Return 1 to `n` (at least 1) inflated bytes of what was fed; b"" when it needs more to be fed.

        Raises:
            ProtocolError: this is not the coding it claims to be, its checksum is wrong, or data follows its
                end.
            LimitExceeded: the body outgrows `limit_bytes` or `ratio`.
        """
        assert n > 0
        self._check_bounds()  # zlib takes a bound of 0 for none: never go on after a refusal
        # One more than allowed, so that a body of exactly the limit passes and no byte beyond that one is
        # inflated.
        n = min(n, self._limit_bytes - self._inflated_total + 1)
        while True:
            if self._tail:
                coded: bytes | memoryview = self._tail
            elif self._waiting:
                coded = self._waiting.popleft()
            else:
                coded = b""  # zlib may still hold output that the last call had no room for
            if self._stream is None:
                if not (coded := self._sniff(coded)):
                    return b""
                assert self._stream is not None
            if self._stream.eof:
                if not coded:
                    return b""
                if not self._gzip:
                    raise ProtocolError("data follows the end of the deflate body")
                # RFC 1952 section 2.2: members, one after another
                self._stream = zlib.decompressobj(_GZIP_WBITS)
            try:
                data = self._stream.decompress(coded, n)
            except zlib.error as error:
                raise ProtocolError(f"broken {'gzip' if self._gzip else 'deflate'} body: {error}") from None
            self._tail = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            self._coded_total += len(coded) - len(self._tail)
            self._in_member = not self._stream.eof and (self._in_member or bool(coded))
            self._members += self._stream.eof
            if data:
                self._inflated_total += len(data)
                self._check_bounds()
                return data
            if not self._tail and not self._waiting:
                return b""

    def finish(self) -> None:
        """Say that the body has ended. Call it when `inflate` has returned b"" and no more will be fed.

        Raises:
            ProtocolError: the coded body is not complete.
        """
        if self._in_member or self._tail or self._waiting or self._sniffed or not self._members:
            raise ProtocolError(f"truncated {'gzip' if self._gzip else 'deflate'} body")

    def _sniff(self, coded: bytes | memoryview) -> bytes:
        """Choose between RFC 1950 and bare RFC 1951 by the first two bytes; b"" while there are fewer.

        A zlib header's low nibble is 8. In a bare stream that would be a stored block with nonzero padding,
        which is allowed but which no encoder writes.
        """
        head = self._sniffed + bytes(coded)
        if len(head) < 2 and self._waiting:
            head += bytes(self._waiting.popleft())
        if len(head) < 2:
            self._sniffed = head
            return b""
        self._sniffed = b""
        is_zlib = head[0] & 0x0F == 8 and head[0] >> 4 <= 7 and (head[0] << 8 | head[1]) % 31 == 0
        self._stream = zlib.decompressobj(_ZLIB_WBITS if is_zlib else _RAW_WBITS)
        return head

    def _check_bounds(self) -> None:
        if self._inflated_total > self._limit_bytes:
            raise LimitExceeded(f"inflated body is larger than {self._limit_bytes} bytes")
        if self._inflated_total > max(RATIO_FLOOR_BYTES, self._ratio * self._coded_total):
            raise LimitExceeded(
                f"{self._coded_total} coded bytes inflate to {self._inflated_total}: "
                f"more than {self._ratio} to 1"
            )
