"""The chunked transfer coding of RFC 9112 section 7.1, from bytes as they come to the body they carry.

    chunked-body   = *chunk last-chunk trailer-section CRLF
    chunk          = chunk-size [ chunk-ext ] CRLF chunk-data CRLF
    chunk-size     = 1*HEXDIG                                           ; here: 1*16HEXDIG
    last-chunk     = 1*("0") [ chunk-ext ] CRLF
    chunk-ext      = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )
    trailer-section = *( field-line CRLF )

    bytes -> ChunkDecoder.feed -> body bytes ... until .finished, then .leftover is the next request's

Extensions and trailers are checked against the grammar, bounded and dropped. Everything else is refused: a
bare LF, blanks, signs, `0x` or `_` in a size, more than 16 digits, data that is not followed by CRLF. Two
parsers that differ on any of these are a way to smuggle a request past a proxy.

It does no I/O and never calls back: see docs/chunked.md for the loop that drives it, and why it is so.
Memory: what was fed and is not yet decoded, plus what one call returns. Work per call: `WORK_PER_FEED`.
Speed: benchmarks/chunked.py.
"""

import re

from gitsmart.errors import LimitExceeded, ProtocolError

__all__ = ["ChunkDecoder"]

# Bounds on what is dropped. RFC 9112 section 7.1.1 asks for one on extensions. Real ones are far below: AWS
# signs each chunk in 85 bytes, and git, curl and the proxies in use send none.
LINE_BYTES = 4096  # of one chunk-size line or trailer field
TRAILER_BYTES = 16384  # of the whole trailer section
# Extension bytes that no chunk has earned. Each chunk earns 64 and twice its data, so that neither long
# extensions on long chunks nor short ones on one-byte chunks ever end, but a body of extensions does.
# (net/http of Go does likewise.)
EXTENSION_BYTES, EXTENSION_BYTES_PER_CHUNK = 16384, 64

# One unit is about half a microsecond: a chunk in the plain loop, or eight in a run. 1024 are about half
# a millisecond.
WORK_PER_FEED = 1024

# A run of equal-size chunks is looked for in so many chunks first, then in four times as many each time that
# it goes on.
_RUN_FIRST = 32
# Up to this size a run's data is gathered by one strided slice for each byte of a chunk; beyond it, by one
# plain slice for each chunk. Measured: they cross between 16 and 64.
_STRIDED_BYTES = 32
# Beyond this size the plain loop is as quick: a chunk costs it half a microsecond, whatever its size.
_RUN_CHUNK_BYTES = 512

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
# Possessive where one character repeats, and groups that match in one way only: a hostile line costs a pass
# each way. (Groups are not possessive: before 3.11.5 Python matches those wrongly when they hold
# alternatives, and Debian 12 has 3.11.2.)
_DIGIT_LINES = {b"%c\r\n" % digit: int(chr(digit), 16) for digit in b"123456789abcdefABCDEF"}
_PLAIN_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)((?:%b)*)\r\n" % _EXTENSION)
_SIZE_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,16}+(?:[ \t;][\t\x20-\x7e\x80-\xff]*+)?\r?+")
_FIELD_LINE = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*+\r\n" % _TOKEN)
_FIELD_LINE_BEGUN = re.compile(rb"(?:%b(?::[\t\x20-\x7e\x80-\xff]*+)?)?\r?+" % _TOKEN)

_SIZE, _DATA, _DATA_END, _TRAILER, _FINISHED = range(5)


class ChunkDecoder:
    r"""Decode one chunked body. The body and the verdict are the same however the input is cut.

    >>> decoder = ChunkDecoder()
    >>> decoder.feed(b"4;name=value\r\n00")
    b'00'
    >>> decoder.feed(b"00\r\n0\r\nTrailer: x\r\n\r\nGET /next")
    b'00'
    >>> decoder.finished, decoder.leftover
    (True, b'GET /next')
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._position = 0
        self._state = _SIZE
        self._need = 0  # bytes of the present chunk's data still to come
        self._extension_excess = 0
        self._trailer_bytes = 0
        self._out_of_budget = False
        self._error: ProtocolError | None = None

    @property
    def finished(self) -> bool:
        """True once the body's very last CRLF was decoded."""
        return self._state == _FINISHED

    @property
    def needs_input(self) -> bool:
        """False while `feed()` would go on with what it has: it stopped only because its work was used up."""
        return not self._out_of_budget and self._error is None

    @property
    def leftover(self) -> bytes:
        """What was fed and not decoded: when `finished`, the bytes after the body."""
        return self._buffer[self._position :]

    def feed(self, data: bytes = b"") -> bytes:
        """Take `data` and return what is ready of the body, b"" if nothing is.

        It stops early when it has worked for about half a millisecond; then `needs_input` is False and
        `feed()` goes on. After `finished`, what is fed is added to `leftover`.

        Raises:
            ProtocolError: the framing is broken. The body before that place was returned by earlier calls,
                and every later call raises it again.
            LimitExceeded: extensions or trailers are too long.
        """
        if data:
            self._buffer = (
                self._buffer[self._position :] + data if self._position < len(self._buffer) else data
            )
            self._position = 0
        if self._error is not None:
            raise self._error
        if self._state == _FINISHED:
            return b""
        pieces: list[bytes] = []
        try:
            self._decode(pieces)
        except ProtocolError as error:
            self._error = error
            if not pieces:
                raise
        return b"".join(pieces)

    def _decode(self, pieces: list[bytes]) -> None:
        buffer, position, state, work = self._buffer, self._position, self._state, WORK_PER_FEED
        end = len(buffer)
        add, one_digit, match_plain = pieces.append, _DIGIT_LINES.get, _PLAIN_LINE.match
        last_size = 0
        while position < end and work > 0:
            if state == _SIZE:
                start = position
                size = one_digit(buffer[position : position + 3], 0)
                if size:
                    position += 3
                else:
                    line = match_plain(buffer, position)
                    if line is None:
                        line = self._size_line(position)
                        if line is None:
                            break
                        work -= len(line[2]) >> 5
                        last_size = 0  # no runs of these: each extension counts
                    position = line.end()
                    size = int(line[1], 16)
                work -= 1
                data_end = position + size
                if size == 0:
                    state = _TRAILER
                elif data_end + 2 <= end:
                    add(buffer[position:data_end])
                    if buffer[data_end : data_end + 2] != b"\r\n":
                        raise ProtocolError("chunk data is not followed by CRLF")
                    if size != last_size or size > _RUN_CHUNK_BYTES:
                        last_size = size
                        position = data_end + 2
                    else:
                        chunks, tried = _cut_run(buffer, start, position - start, size, work << 3, pieces)
                        position = data_end + 2 + chunks * (data_end + 2 - start)
                        work -= tried >> 3
                else:
                    if position < end:
                        piece = buffer[position:data_end]
                        add(piece)
                        position += len(piece)
                        size -= len(piece)
                    self._need = size
                    state = _DATA if size else _DATA_END
            elif state == _DATA:
                piece = buffer[position : position + self._need]
                add(piece)
                position += len(piece)
                self._need -= len(piece)
                if not self._need:
                    state = _DATA_END
            elif state == _DATA_END:
                after = buffer[position : position + 2]
                if after == b"\r":
                    break
                if after != b"\r\n":
                    raise ProtocolError("chunk data is not followed by CRLF")
                position += 2
                state = _SIZE
            else:  # _TRAILER
                line_end = self._field_line(position)
                if line_end is None:
                    break
                work -= 1 + (line_end - position >> 5)
                if line_end - position == 2:
                    state = _FINISHED
                position = line_end
                if state == _FINISHED:
                    break
        self._position, self._state = position, state
        self._out_of_budget = work <= 0 and position < end and state != _FINISHED

    def _size_line(self, position: int) -> re.Match[bytes] | None:
        """Match a chunk-size line that is not the plain kind; None when it is not all there."""
        buffer = self._buffer
        line_feed = buffer.find(b"\n", position, position + LINE_BYTES)
        if line_feed < 0:
            if _SIZE_LINE_BEGUN.fullmatch(buffer, position, position + LINE_BYTES) is None:
                raise ProtocolError(f"bad chunk size line {_shown(buffer, position)}")
            if len(buffer) - position >= LINE_BYTES:
                raise LimitExceeded(f"chunk size line is longer than {LINE_BYTES} bytes")
            return None
        line = _SIZE_LINE.match(buffer, position, line_feed + 1)
        if line is None:
            raise ProtocolError(f"bad chunk size line {_shown(buffer, position)}")
        earned = EXTENSION_BYTES_PER_CHUNK + 2 * int(line[1], 16)
        self._extension_excess = max(0, self._extension_excess + len(line[2]) - earned)
        if self._extension_excess > EXTENSION_BYTES:
            raise LimitExceeded("chunk extensions outweigh the body")
        return line

    def _field_line(self, position: int) -> int | None:
        """Check a line of the trailer section and return its end; None when it is not all there."""
        buffer = self._buffer
        line_feed = buffer.find(b"\n", position, position + LINE_BYTES)
        if line_feed < 0:
            if _FIELD_LINE_BEGUN.fullmatch(buffer, position, position + LINE_BYTES) is None:
                raise ProtocolError(f"bad trailer field {_shown(buffer, position)}")
            if len(buffer) - position >= LINE_BYTES:
                raise LimitExceeded(f"trailer field is longer than {LINE_BYTES} bytes")
            return None
        end = line_feed + 1
        is_blank = end - position == 2 and buffer[position] == 0x0D
        if not is_blank and _FIELD_LINE.fullmatch(buffer, position, end) is None:
            raise ProtocolError(f"bad trailer field {_shown(buffer, position)}")
        self._trailer_bytes += end - position
        if self._trailer_bytes > TRAILER_BYTES:
            raise LimitExceeded(f"trailer section is longer than {TRAILER_BYTES} bytes")
        return end


def _cut_run(
    buffer: bytes, start: int, header_len: int, size: int, most: int, pieces: list[bytes]
) -> tuple[int, int]:
    """Cut the chunks after the one at `start` that have its very header, many at a time.

    Byte j of every chunk of a run lies in one strided slice, so a run is checked and cut by a few slices,
    however many chunks it has. What is tried grows only as it succeeds: a run that breaks early costs little,
    wherever it breaks.

    Returns how many chunks were cut (they are in `pieces`), and how many were looked at.
    """
    stride = header_len + size + 2
    header = buffer[start : start + header_len]
    position = start + stride
    # Two cheap looks, so that bodies of mixed sizes don't pay for the search: the next one, and the last to
    # be tried.
    if not buffer.startswith(header, position) or not buffer.startswith(
        header, position + (_RUN_FIRST - 1) * stride
    ):
        return 0, 0
    framing = [*enumerate(header), (header_len + size, 0x0D), (header_len + size + 1, 0x0A)]
    cut = tried = 0
    batch = _RUN_FIRST
    while True:
        batch = min(batch, (len(buffer) - position) // stride, most - tried)
        if batch < _RUN_FIRST:
            return cut, tried
        tried += batch
        good = batch
        for offset, byte in framing:
            column = buffer[position + offset : position + good * stride : stride]
            expected = byte.to_bytes() * good
            if column != expected:
                good -= len(column.lstrip(expected[:1]))
                if not good:
                    return cut, tried
        stop = position + good * stride
        if size == 1:
            pieces.append(buffer[position + header_len : stop : stride])
        elif size <= _STRIDED_BYTES:
            data = bytearray(good * size)
            for offset in range(size):
                data[offset::size] = buffer[position + header_len + offset : stop : stride]
            pieces.append(bytes(data))
        else:
            starts = range(position + header_len, stop, stride)
            pieces.extend([buffer[at : at + size] for at in starts])
        cut += good
        position = stop
        if good < batch:
            return cut, tried
        batch *= 4


def _shown(buffer: bytes, position: int) -> str:
    """Quote the line at `position` for an error message."""
    return repr(buffer[position : position + 40].split(b"\n")[0])[1:]
