"""wire/http_head.py: every way to hide a request in another is refused, and honest clients are read."""

import doctest
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire import http_head
from gitsmart.wire.http_head import (
    BadHead,
    Framing,
    HeadDecoder,
    HeadLimits,
    HeadTooLarge,
    RequestHead,
    TargetTooLong,
    UnmetExpectation,
    UnsupportedCoding,
    UnsupportedVersion,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    rng = random.Random(len(data))
    at = sorted(rng.randrange(len(data) + 1) for _ in range(5))
    yield [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def decode(pieces: Sequence[bytes], limits: HeadLimits | None = None) -> tuple[RequestHead | None, bytes]:
    decoder = HeadDecoder(limits)
    for index, piece in enumerate(pieces):
        head = decoder.feed(piece)
        if head is not None:
            return head, decoder.leftover + b"".join(pieces[index + 1 :])
    return None, b""


def parse(data: bytes) -> RequestHead:
    """Parse in every cut; they must agree, and what follows must be left."""
    heads = []
    for after in (b"", b"\r\nGET / HTTP/1.1\r\n"):
        for pieces in cuts(data + after):
            head, leftover = decode(pieces)
            assert head is not None
            assert leftover == after
            heads.append(head)
    assert all(head == heads[0] for head in heads)
    return heads[0]


def test_what_git_sends() -> None:
    head = parse(
        b"POST /a/demo.git/git-receive-pack HTTP/1.1\r\nHost: example.org:8080\r\nUser-Agent: git/2.39.5\r\n"
        b"Content-Type:application/x-git-receive-pack-request\r\nAccept-Encoding: deflate, gzip \t\r\n"
        b"Transfer-Encoding: chunked\r\nExpect: \r\n\r\n"
    )
    assert head == RequestHead(
        method="POST",
        target="/a/demo.git/git-receive-pack",
        version="HTTP/1.1",
        headers=(
            ("Host", "example.org:8080"),
            ("User-Agent", "git/2.39.5"),
            ("Content-Type", "application/x-git-receive-pack-request"),
            ("Accept-Encoding", "deflate, gzip"),
            ("Transfer-Encoding", "chunked"),
            ("Expect", ""),
        ),
        framing=Framing.CHUNKED,
        content_length=0,
        keep_alive=True,
        expects_continue=False,
    )


@pytest.mark.parametrize(
    ("fields", "framing", "length"),
    [
        pytest.param(b"", Framing.NONE, 0, id="none"),
        pytest.param(b"Content-Length: 0\r\n", Framing.LENGTH, 0, id="zero"),
        pytest.param(b"content-length:4\r\n", Framing.LENGTH, 4, id="probe"),
        pytest.param(b"Content-Length: 007 \r\n", Framing.LENGTH, 7, id="zeros"),
        pytest.param(b"Content-Length: " + b"9" * 18 + b"\r\n", Framing.LENGTH, 10**18 - 1, id="18-digits"),
        pytest.param(b"Transfer-Encoding: chunked\r\n", Framing.CHUNKED, 0, id="chunked"),
        pytest.param(b"transfer-encoding:\tChunked \r\n", Framing.CHUNKED, 0, id="chunked-case"),
    ],
)
def test_framing(fields: bytes, framing: Framing, length: int) -> None:
    head = parse(GET + fields + b"\r\n")
    assert (head.framing, head.content_length) == (framing, length)


@pytest.mark.parametrize(
    ("version", "fields", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: Keep-Alive, CLOSE\r\n", False),
        (b"1.1", b"Connection: te\r\nConnection: close\r\n", False),
        (b"1.1", b"Connection: closed\r\n", True),
        (b"1.1", b"Connection: , ,\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
        (b"1.0", b"Connection: TE, Keep-Alive\r\n", True),
        (b"1.0", b"Connection: keep-alive, close\r\n", False),
        (b"1.9", b"", True),
    ],
)
def test_connection_is_a_list(version: bytes, fields: bytes, keep_alive: bool) -> None:
    assert parse(b"GET / HTTP/%b\r\nHost: a\r\n%b\r\n" % (version, fields)).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("version", "value", "expects"),
    [
        (b"1.1", b"100-continue", True),
        (b"1.1", b"100-Continue", True),
        (b"1.1", b"100-CONTINUE, 100-continue", True),
        (b"1.1", b"", False),
        (b"1.0", b"100-continue", False),
    ],
)
def test_expect(version: bytes, value: bytes, expects: bool) -> None:
    data = b"POST / HTTP/%b\r\nHost: a\r\nExpect: %b\r\nContent-Length: 3\r\n\r\n" % (version, value)
    assert parse(data).expects_continue is expects


@pytest.mark.parametrize(
    ("target", "parsed", "host"),
    [
        (b"/a%20b?service=git-upload-pack", "/a%20b?service=git-upload-pack", "a"),
        (b"//x/..", "//x/..", "a"),
        (b"/\xc3\xa9.git", "/%C3%A9.git", "a"),
        (b"http://b:80/x?y", "/x?y", "b:80"),
        (b"HTTPS://b", "/", "b"),
        (b"http://b?y", "/?y", "b"),
        (b"http://[::1]:8080/", "/", "[::1]:8080"),
    ],
)
def test_targets(target: bytes, parsed: str, host: str) -> None:
    head = parse(b"GET %b HTTP/1.1\r\nX: y\r\nhost: a\r\n\r\n" % target)
    assert head.target == parsed
    assert [value for name, value in head.headers if name.lower() == "host"] == [host]


def test_options_asterisk() -> None:
    assert parse(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").target == "*"


def test_versions() -> None:
    assert parse(b"GET / HTTP/1.0\r\n\r\n").version == "HTTP/1.0"
    assert parse(b"GET / HTTP/1.7\r\nHost:\r\n\r\n").version == "HTTP/1.1"


def test_values_are_latin_1_and_names_as_sent() -> None:
    head = parse(GET + b'x-A_b: \t \xe9\xff, "q" \t \r\nX-a_B:\r\n\r\n')
    assert head.headers[1:] == (("x-A_b", '\xe9\xff, "q"'), ("X-a_B", ""))


def test_empty_lines_before_the_request() -> None:
    assert parse(b"\r\n" + GET + b"\r\n").method == "GET"
    assert parse(b"\r\n\r\n" + GET + b"\r\n").method == "GET"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"\r\n\r\n\r\n" + GET + b"\r\n", BadHead, id="three-empty-lines"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", BadHead, id="tls-hello"),
        pytest.param(b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="blank-first"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", BadHead, id="bare-lf"),
        pytest.param(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="lf-first"),
        pytest.param(GET + b"\n", BadHead, id="lf-at-end"),
        pytest.param(GET + b"A: b\nContent-Length: 3\r\n\r\n", BadHead, id="lf-in-field"),
        pytest.param(GET + b"A: b\rContent-Length: 3\r\n\r\n", BadHead, id="bare-cr"),
        pytest.param(b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="cr-in-request-line"),
        pytest.param(GET + b"A: b\r\r\n\r\n", BadHead, id="two-cr"),
        pytest.param(GET + b"A: b\r\n c\r\n\r\n", BadHead, id="fold"),
        pytest.param(GET + b"A: b\r\n\tc: d\r\n\r\n", BadHead, id="fold-tab"),
        pytest.param(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", BadHead, id="blank-before-first-field"),
        pytest.param(GET + b"Content-Length : 3\r\n\r\n", BadHead, id="blank-before-colon"),
        pytest.param(GET + b"Content-Length\t: 3\r\n\r\n", BadHead, id="tab-before-colon"),
        pytest.param(GET + b"A\r\n\r\n", BadHead, id="no-colon"),
        pytest.param(GET + b": b\r\n\r\n", BadHead, id="no-name"),
        pytest.param(GET + b"A(b): c\r\n\r\n", BadHead, id="name-not-token"),
        pytest.param(GET + b"\xe4: c\r\n\r\n", BadHead, id="name-not-ascii"),
        pytest.param(GET + b"A: \x00\r\n\r\n", BadHead, id="nul"),
        pytest.param(GET + b"A: \x7f\r\n\r\n", BadHead, id="del"),
        pytest.param(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="two-blanks"),
        pytest.param(b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="tab"),
        pytest.param(b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", BadHead, id="blank-after-version"),
        pytest.param(b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="blank-in-target"),
        pytest.param(b"GET /\r\n\r\n", BadHead, id="http-0.9"),
        pytest.param(b"GET / http/1.1\r\nHost: a\r\n\r\n", BadHead, id="version-case"),
        pytest.param(b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", BadHead, id="version-two-digits"),
        pytest.param(b"GET / HTTP/11\r\nHost: a\r\n\r\n", BadHead, id="version-no-dot"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", UnsupportedVersion, id="http-2-preface"),
        pytest.param(b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", UnsupportedVersion, id="version-0.9"),
        pytest.param(b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="asterisk"),
        pytest.param(b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="relative"),
        pytest.param(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="authority-form"),
        pytest.param(b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="scheme"),
        pytest.param(b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="no-authority"),
        pytest.param(b"GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="userinfo"),
        pytest.param(b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", BadHead, id="fragment"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", BadHead, id="no-host"),
        pytest.param(GET + b"Host: a\r\n\r\n", BadHead, id="two-hosts"),
        pytest.param(b"GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", BadHead, id="two-hosts-1.0"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", BadHead, id="host-list"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BadHead, id="host-path"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n", BadHead, id="host-not-ascii"),
        pytest.param(GET + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", BadHead, id="cl-differ"),
        pytest.param(GET + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n", BadHead, id="cl-twice"),
        pytest.param(GET + b"Content-Length: 3, 4\r\n\r\n", BadHead, id="cl-list"),
        pytest.param(GET + b"Content-Length:\r\n\r\n", BadHead, id="cl-empty"),
        pytest.param(GET + b"Content-Length: +3\r\n\r\n", BadHead, id="cl-plus"),
        pytest.param(GET + b"Content-Length: -3\r\n\r\n", BadHead, id="cl-minus"),
        pytest.param(GET + b"Content-Length: 3.0\r\n\r\n", BadHead, id="cl-point"),
        pytest.param(GET + b"Content-Length: 0x3\r\n\r\n", BadHead, id="cl-hex"),
        pytest.param(GET + b"Content-Length: 1_0\r\n\r\n", BadHead, id="cl-underscore"),
        pytest.param(GET + b"Content-Length: \xb2\r\n\r\n", BadHead, id="cl-superscript"),
        pytest.param(GET + b"Content-Length: " + b"1" * 19 + b"\r\n\r\n", BadHead, id="cl-19-digits"),
        pytest.param(GET + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", BadHead, id="cl-te"),
        pytest.param(GET + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", BadHead, id="te-cl"),
        pytest.param(GET + b"Transfer-Encoding: xchunked\r\n\r\n", UnsupportedCoding, id="te-xchunked"),
        pytest.param(GET + b"Transfer-Encoding: identity\r\n\r\n", UnsupportedCoding, id="te-identity"),
        pytest.param(GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n", UnsupportedCoding, id="te-gzip"),
        pytest.param(
            GET + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
            UnsupportedCoding,
            id="te-lines",
        ),
        pytest.param(GET + b"Transfer-Encoding: chunked;q=1\r\n\r\n", UnsupportedCoding, id="te-parameter"),
        pytest.param(GET + b"Transfer-Encoding: chunked, gzip\r\n\r\n", BadHead, id="te-chunked-first"),
        pytest.param(GET + b"Transfer-Encoding: chunked, chunked\r\n\r\n", BadHead, id="te-twice"),
        pytest.param(
            GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadHead,
            id="te-twice-lines",
        ),
        pytest.param(GET + b"Transfer-Encoding: chunked,\r\n\r\n", BadHead, id="te-comma"),
        pytest.param(GET + b"Transfer-Encoding:\r\n\r\n", BadHead, id="te-empty"),
        pytest.param(GET + b'Transfer-Encoding: "chunked"\r\n\r\n', UnsupportedCoding, id="te-quoted"),
        pytest.param(GET + b"Transfer-Encoding: \x0bchunked\r\n\r\n", BadHead, id="te-vertical-tab"),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", BadHead, id="te-1.0"),
        pytest.param(GET + b"Expect: 200-ok\r\n\r\n", UnmetExpectation, id="expect"),
        pytest.param(GET + b"Expect: 100-continue, x\r\n\r\n", UnmetExpectation, id="expect-list"),
        pytest.param(b"GET / HTTP/1.0\r\nExpect: x\r\n\r\n", UnmetExpectation, id="expect-1.0"),
    ],
)
def test_refused(data: bytes, kind: type[ProtocolError]) -> None:
    for pieces in cuts(data):
        with pytest.raises(ProtocolError) as caught:
            decode(pieces)
        assert type(caught.value) is kind
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"GET /" + b"a" * 300, TargetTooLong, id="target-unfinished"),
        pytest.param(b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n", TargetTooLong, id="target"),
        pytest.param(b"A" * 300, TargetTooLong, id="method"),
        pytest.param(GET + b"A: " + b"b" * 1000, HeadTooLarge, id="field-unfinished"),
        pytest.param(GET + b"A: " + b"b" * 1000 + b"\r\n\r\n", HeadTooLarge, id="field"),
        pytest.param(GET + b"A: b\r\n" * 10 + b"\r\n", HeadTooLarge, id="fields"),
    ],
)
def test_limits(data: bytes, kind: type[LimitExceeded]) -> None:
    for pieces in cuts(data):
        with pytest.raises(kind):
            decode(pieces, HeadLimits(head_bytes=1000, line_bytes=200, fields=10))


def test_limits_do_not_count_the_body() -> None:
    head, leftover = decode(
        [GET + b"\r\n" + b"x" * 5000], HeadLimits(head_bytes=100, line_bytes=50, fields=1)
    )
    assert head is not None
    assert len(leftover) == 5000


def test_begun() -> None:
    decoder = HeadDecoder()
    assert not decoder.begun
    decoder.feed(b"\r\n")
    assert not decoder.begun
    decoder.feed(b"G")
    assert decoder.begun


PARTS = st.sampled_from(
    [b"GET", b"POST", b" ", b"/", b" HTTP/1.1", b"\r\n", b"\r\n", b"\r\n\r\n", b"Host: a", b"\n", b"\xff",
     b"Content-Length: 1",
     b"Transfer-Encoding: chunked", b"\r", b":", b"\t", b"Expect: 100-continue", b"a", b",", b"\x00", b"\xff"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=14), st.booleans())
def test_garbage_raises_protocol_error_only(parts: list[bytes], with_head: bool) -> None:
    data = GET * with_head + b"".join(parts)
    outcomes = set()
    for pieces in cuts(data) if data else ():
        try:
            outcomes.add(decode(pieces))
        except ProtocolError as error:
            outcomes.add((None, type(error).__name__.encode()))
    assert len(outcomes) <= 1


@given(st.binary(max_size=300))
def test_binary_garbage(garbage: bytes) -> None:
    for data in (garbage, GET + garbage):
        for pieces in cuts(data):
            try:
                decode(pieces)
            except ProtocolError:
                pass


TOKENS = st.text("abcXYZ-_!0", min_size=1, max_size=10)
VALUES = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).filter(lambda text: not any(0x7F <= ord(c) < 0x80 for c in text))


@given(TOKENS, st.lists(st.tuples(TOKENS.map(lambda name: "X-" + name), VALUES), max_size=8))
def test_round_trip(method: str, fields: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}:  {value}\t\r\n" for name, value in [("Host", "a"), *fields])
    head = parse(f"{method} /x HTTP/1.1\r\n{text}\r\n".encode("latin-1"))
    assert (head.method, head.target) == (method, "/x")
    assert head.headers == (("Host", "a"), *fields)


def test_docstrings() -> None:
    failed, tried = doctest.testmod(http_head)
    assert tried
    assert not failed
