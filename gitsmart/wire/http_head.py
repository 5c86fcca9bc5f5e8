"""The head of an HTTP/1.x request: request line and header fields in, a `RequestHead` out.

    HTTP-message = request-line CRLF *( field-line CRLF ) CRLF [ message-body ]
    request-line = method SP request-target SP HTTP-version
    field-line   = field-name ":" OWS field-value OWS

It is strict wherever two readings of the same bytes would let one request hide in another (RFC 9112 sections
5, 6 and 11.2): no bare CR or LF, no folded lines, no blank before the colon, one Content-Length, never
Content-Length together with Transfer-Encoding, no coding but `chunked`, one Host. What is refused is an
exception; which status that becomes is the connection's choice.

It does not decode the body (chunked.py) and does not know any header of the application's.
Memory and time: linear in the head, which is bounded by `HeadLimits`.
"""

import enum
import re
from dataclasses import dataclass

from gitsmart.errors import LimitExceeded, ProtocolError

__all__ = [
    "BadHead",
    "Framing",
    "HeadDecoder",
    "HeadLimits",
    "HeadTooLarge",
    "RequestHead",
    "TargetTooLong",
    "UnmetExpectation",
    "UnsupportedCoding",
    "UnsupportedVersion",
]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++) ([!-~\x80-\xff]++) HTTP/([0-9])\.([0-9])")
_FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)")
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://([^/?]++)(.*+)")
# uri-host [ ":" port ], loosely: what is not in here can't be part of one (RFC 3986 section 3.2.2)
_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+;=%:\[\]]*+")
_DIGITS = re.compile(r"[0-9]{1,18}+")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
# RFC 9112 section 2.2: at least one empty line before the request line should be ignored. Some old clients
# end a body with one.
_EMPTY_LINES = 2


class BadHead(ProtocolError):
    """The head breaks the grammar, or could be read in two ways: 400."""


class UnsupportedVersion(ProtocolError):
    """This is HTTP, but not 1.x: 505."""


class UnsupportedCoding(ProtocolError):
    """A transfer coding other than chunked: 501 (RFC 9112 section 6.1)."""


class UnmetExpectation(ProtocolError):
    """An expectation other than 100-continue: 417 (RFC 9110 section 10.1.1)."""


class HeadTooLarge(LimitExceeded):
    """The header fields are too many or too long: 431."""


class TargetTooLong(LimitExceeded):
    """The request line is too long: 414."""


class Framing(enum.Enum):
    """How the end of the body is found."""

    NONE = "none"  # there is no body
    LENGTH = "length"  # after `content_length` bytes
    CHUNKED = "chunked"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Bounds of a request head."""

    head_bytes: int = 65536  # all of it
    line_bytes: int = 16384  # the request line
    fields: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A request's head, checked.

    `target` is in origin-form (or `*`): an absolute-form target is taken apart, and its authority replaces
    the value of Host (RFC 9112 section 3.2.2). Bytes beyond ASCII in it are percent-encoded. `version` is
    `HTTP/1.0`, or `HTTP/1.1` for any later 1.x. `headers` are in the order of their coming, names as sent,
    values without surrounding blanks, decoded as Latin-1.
    """

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    framing: Framing
    content_length: int  # 0 unless the framing is LENGTH
    keep_alive: bool  # what the client asks for, and its version's default
    expects_continue: bool  # it waits for 100 Continue; False for HTTP/1.0


class HeadDecoder:
    r"""Gather the head of one request.

    >>> decoder = HeadDecoder()
    >>> decoder.feed(b"GET /demo.git/info/refs HTTP/1.1\r\nHo")
    >>> head = decoder.feed(b"st: example.org\r\n\r\nGET")
    >>> head.method, head.target, head.headers, head.framing.value, decoder.leftover
    ('GET', '/demo.git/info/refs', (('Host', 'example.org'),), 'none', b'GET')
    """

    def __init__(self, limits: HeadLimits | None = None) -> None:
        self._limits = limits or HeadLimits()
        self._buffer = b""
        self._scanned = 0  # up to here there is no line feed that was not looked at
        self._line_start = 0
        self._empty_lines = 0
        self._lines: list[bytes] = []
        self._done = False

    @property
    def begun(self) -> bool:
        """True once something other than empty lines has come."""
        return bool(self._lines) or len(self._buffer) > self._line_start

    @property
    def leftover(self) -> bytes:
        """What was fed and does not belong to the head, once `feed` has returned it."""
        return self._buffer[self._line_start :]

    def feed(self, data: bytes) -> RequestHead | None:
        """Take `data`; return the head when it is complete, and then never again.

        Raises:
            BadHead, UnsupportedVersion, UnsupportedCoding, UnmetExpectation: see there.
            HeadTooLarge, TargetTooLong: a limit is passed, as soon as it is.
        """
        assert not self._done
        buffer = self._buffer = self._buffer + data if self._buffer else data
        limits = self._limits
        while True:
            line_feed = buffer.find(b"\n", self._scanned, limits.head_bytes)
            if line_feed < 0:
                self._scanned = len(buffer)
                self._check_partial()
                return None
            self._scanned = line_feed + 1
            if line_feed == self._line_start or buffer[line_feed - 1] != 0x0D:
                raise BadHead("line does not end in CRLF")
            line = buffer[self._line_start : line_feed - 1]
            self._line_start = line_feed + 1
            if line:
                if not self._lines:
                    _check_request_line(line, limits)
                self._lines.append(line)
                if len(self._lines) > limits.fields + 1:
                    raise HeadTooLarge(f"more than {limits.fields} header fields")
            elif self._lines:
                self._done = True
                return _parse(self._lines)
            else:
                self._empty_lines += 1
                if self._empty_lines > _EMPTY_LINES:
                    raise BadHead("empty lines instead of a request")

    def _check_partial(self) -> None:
        """Refuse early what can't become a head."""
        limits, size = self._limits, len(self._buffer)
        if not self._lines:
            line = self._buffer[self._line_start :].removesuffix(b"\r")
            if line:
                _check_request_line(line, limits)
        if size >= limits.head_bytes:
            raise HeadTooLarge(f"request head is longer than {limits.head_bytes} bytes")


def _check_request_line(begun: bytes, limits: HeadLimits) -> None:
    # A TLS client hello on a plain port ends here, instead of waiting for more.
    if _TOKEN.match(begun) is None:
        raise BadHead("no request line")
    if len(begun) > limits.line_bytes:
        raise TargetTooLong(f"request line is longer than {limits.line_bytes} bytes")


def _parse(lines: list[bytes]) -> RequestHead:
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise BadHead("bad request line")
    method, target, major, minor = request_line.groups()
    if major != b"1":
        raise UnsupportedVersion(f"HTTP/{major.decode()}.{minor.decode()} is not supported")
    is_1_0 = minor == b"0"

    headers: list[tuple[str, str]] = []
    named: dict[str, list[str]] = {}
    for line in lines[1:]:
        field = _FIELD_LINE.fullmatch(line)
        if field is None:
            raise BadHead("bad header field")
        name, value = field[1].decode("ascii"), field[2].rstrip(b" \t").decode("latin-1")
        headers.append((name, value))
        named.setdefault(name.lower(), []).append(value)

    target, authority = _origin_form(method, target)
    _check_host(named.get("host"), is_1_0=is_1_0)
    if authority is not None:
        headers = [(name, value) for name, value in headers if name.lower() != "host"]
        headers.insert(0, ("Host", authority))
    framing, content_length = _framing(named, is_1_0=is_1_0)
    options = _elements(named.get("connection", []))
    return RequestHead(
        method=method.decode("ascii"),
        target=target.decode("ascii"),
        version="HTTP/1.0" if is_1_0 else "HTTP/1.1",
        headers=tuple(headers),
        framing=framing,
        content_length=content_length,
        # RFC 9112 section 9.3
        keep_alive="close" not in options and (not is_1_0 or "keep-alive" in options),
        expects_continue=_expects_continue(named.get("expect", [])) and not is_1_0,
    )


def _elements(values: list[str]) -> list[str]:
    """Split list-valued fields into lower-case elements; empty ones don't count (RFC 9110 section 5.6.1)."""
    return [
        element for value in values for part in value.split(",") if (element := part.strip(" \t").lower())
    ]


def _origin_form(method: bytes, target: bytes) -> tuple[bytes, str | None]:
    """Return the target in origin-form, and the authority of an absolute-form one (RFC 9112 section 3.2)."""
    authority = None
    if not target.startswith(b"/") and target != b"*":
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        if absolute is None or _HOST.fullmatch(absolute[1]) is None:
            raise BadHead("bad request target")  # CONNECT's authority-form too: this is no proxy
        authority = absolute[1].decode("ascii")
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if (target == b"*" and method != b"OPTIONS") or b"#" in target:
        raise BadHead("bad request target")
    # libcurl sends the path of a URL as it was typed. Percent-encoded it is the same resource, and ASCII.
    return _NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], target), authority


def _check_host(hosts: list[str] | None, *, is_1_0: bool) -> None:
    """RFC 9112 section 3.2: exactly one valid Host, which only HTTP/1.0 may leave out."""
    if hosts is None:
        if not is_1_0:
            raise BadHead("no Host header field")
        return
    if len(hosts) > 1:
        raise BadHead("more than one Host header field")
    if _HOST.fullmatch(hosts[0].encode("latin-1")) is None:
        raise BadHead("bad Host header field")


def _framing(named: dict[str, list[str]], *, is_1_0: bool) -> tuple[Framing, int]:
    """Find how long the body is: RFC 9112 section 6.3, and its advice to refuse every doubtful case."""
    codings, lengths = named.get("transfer-encoding"), named.get("content-length")
    if codings is not None:
        if is_1_0:
            raise BadHead("Transfer-Encoding in HTTP/1.0")
        if lengths is not None:
            raise BadHead("both Transfer-Encoding and Content-Length")
        names = [coding.strip(" \t").lower() for coding in ",".join(codings).split(",")]
        if names == ["chunked"]:
            return Framing.CHUNKED, 0
        if "" in names or names.count("chunked") > 1 or "chunked" in names[:-1]:
            raise BadHead("bad Transfer-Encoding")
        raise UnsupportedCoding(f"transfer coding {names[0][:40]!r} is not supported")
    if lengths is None:
        return Framing.NONE, 0
    if len(lengths) > 1 or _DIGITS.fullmatch(lengths[0]) is None:
        raise BadHead("bad Content-Length")
    return Framing.LENGTH, int(lengths[0])


def _expects_continue(values: list[str]) -> bool:
    """RFC 9110 section 10.1.1; the only expectation there is has no regard to case."""
    expectations = _elements(values)
    if any(expectation != "100-continue" for expectation in expectations):
        raise UnmetExpectation("expectation is not supported")
    return bool(expectations)
