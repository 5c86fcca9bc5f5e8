r"""pkt-lines: the frames of git's protocol, both ways.

    pkt-line   =  data-pkt / flush-pkt / delim-pkt / response-end-pkt
    data-pkt   =  pkt-len pkt-payload          ; pkt-len counts its own four digits
    pkt-len    =  4*4HEXDIG                    ; "0004" to "fff0"
    flush-pkt  =  "0000"
    delim-pkt  =  "0001"                       ; protocol v2
    response-end-pkt = "0002"                  ; protocol v2, stateless connections

    bytes --PktLineDecoder.feed--> list of PktLine: bytes (a payload) | Special

gitprotocol-common, "pkt-line Format"; gitprotocol-v2, "Packet-Line Framing"; git: pkt-line.c, whose error
texts are used. Payloads keep their final LF: `chomp` takes it off, as text lines want and binary payloads
don't.

>>> PktLineDecoder().feed(b"000ahello\n0001000bworld!\n0000")
[b'hello\n', <Special.DELIM: 1>, b'world!\n', <Special.FLUSH: 0>]
"""

import enum
from binascii import Error as HexError
from binascii import a2b_hex
from typing import TypeAlias

from gitsmart.errors import ProtocolError

__all__ = [
    "DELIM_PKT",
    "FLUSH_PKT",
    "MAX_PAYLOAD",
    "MAX_PKT_LEN",
    "RESPONSE_END_PKT",
    "PktLine",
    "PktLineDecoder",
    "Special",
    "chomp",
    "error_pkt",
    "pkt",
    "printable",
]

MAX_PKT_LEN = 65520
"""The longest pkt-line in bytes, its four digits included (git: pkt-line.h LARGE_PACKET_MAX)."""
MAX_PAYLOAD = MAX_PKT_LEN - 4

FLUSH_PKT = b"0000"
DELIM_PKT = b"0001"
RESPONSE_END_PKT = b"0002"


class Special(enum.Enum):
    """The pkt-lines that carry no payload, by the value of their pkt-len."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2


PktLine: TypeAlias = bytes | Special

_SPECIALS = (Special.FLUSH, Special.DELIM, Special.RESPONSE_END)


def pkt(payload: bytes) -> bytes:
    """Frame `payload`, of at most `MAX_PAYLOAD` bytes, as one data-pkt."""
    assert len(payload) <= MAX_PAYLOAD, "a pkt-line would be too long"
    return b"%04x%b" % (len(payload) + 4, payload)


def error_pkt(message: str) -> bytes:
    """Make the data-pkt that ends a conversation: `ERR message`; cut to what one pkt-line holds.

    gitprotocol-common, "error-line".
    """
    text = message.encode("utf-8", "replace").replace(b"\n", b" ").replace(b"\0", b" ")
    return pkt((b"ERR " + text)[: MAX_PAYLOAD - 1] + b"\n")


def chomp(payload: bytes) -> bytes:
    """Take off the one LF that a sender may put behind a text line."""
    return payload[:-1] if payload.endswith(b"\n") else payload


def printable(text: bytes, limit: int = 200) -> str:
    r"""Quote a peer's text for an error message: cut to `limit` bytes, whatever does not print escaped.

    >>> print(printable(b"caf\xc3\xa9 \x1b[2J\xff"))
    café \x1b[2J\xff
    """
    shown = text[:limit].decode("utf-8", "backslashreplace")
    if not shown.isprintable():
        shown = "".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown])
    return shown if len(text) <= limit else shown + "..."


class PktLineDecoder:
    """Cuts a byte stream into pkt-lines.

    Gives the same events however the input is cut. Holds at most one unfinished pkt-line, and what came
    behind a flush-pkt when told to stop there; time is linear in the input. After an error it gives no more
    events.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._need = 4
        self._error: ProtocolError | None = None

    @property
    def failed(self) -> bool:
        """True when the next `feed` raises whatever it is fed."""
        return self._error is not None

    @property
    def is_between_packets(self) -> bool:
        """True when the stream may end here: no byte of an unfinished pkt-line is held."""
        return not self._held

    def feed(self, data: bytes | bytearray | memoryview, *, stop_at_flush: bool = False) -> list[PktLine]:
        """Return the pkt-lines that `data` completes, in order.

        With `stop_at_flush` nothing behind a flush-pkt is looked at: it may be no pkt-line at all, as the
        pack behind a push's commands. It is held for the next `feed`, or for `leftover`.

        Raises:
            ProtocolError: a pkt-len is no number, or none that is allowed. pkt-lines before it are returned
                first, so the error may come from the next call.
        """
        if self._error is not None:
            raise self._error
        held = self._held
        if len(held) + len(data) < self._need:
            held += data
            return []
        if held:
            held += data
            data = bytes(held)
            self._held = bytearray()
        elif not isinstance(data, bytes):
            data = bytes(data)
        events: list[PktLine] = []
        pos, end = 0, len(data)
        self._need = 4
        while end - pos >= 4:
            digits = data[pos : pos + 4]
            try:
                length = int.from_bytes(a2b_hex(digits), "big")
            except HexError:
                self._error = ProtocolError(f"protocol error: bad line length character: {printable(digits)}")
                break
            if length >= 4:
                if length > MAX_PKT_LEN:
                    self._error = ProtocolError(f"protocol error: bad line length {length - 4}")
                    break
                if end - pos < length:
                    self._need = length
                    break
                events.append(data[pos + 4 : pos + length])
                pos += length
            elif length == 3:
                self._error = ProtocolError("protocol error: bad line length 3")
                break
            else:
                events.append(_SPECIALS[length])
                pos += 4
                if stop_at_flush and length == 0:
                    break
        if self._error is not None:
            if not events:
                raise self._error
            return events
        self._held += memoryview(data)[pos:]
        return events

    def leftover(self) -> bytes:
        """Take the bytes that are held, leaving the decoder empty: what follows the pkt-lines."""
        rest = bytes(self._held)
        self._held = bytearray()
        self._need = 4
        return rest
