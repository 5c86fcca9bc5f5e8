"""wire/content.py: every coding, cut in every way, bounded, and nothing but our errors for garbage."""

import doctest
import gzip
import random
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire import content
from gitsmart.wire.content import RATIO_FLOOR_BYTES, ContentDecoder


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, 6, wbits=-15)


def two_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:])


ENCODERS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("X-GZip", gzip.compress, id="x-gzip"),
    pytest.param("gzip", two_members, id="gzip-members"),
    pytest.param("deflate", zlib.compress, id="deflate-zlib"),
    pytest.param("deflate", raw_deflate, id="deflate-raw"),
]
WANTS = (
    b"".join(b"0032want %040x\n" % (i * 0x9E3779B97F4A7C15F39CC0605CEDC835) for i in range(3000))
    + b"00000009done\n"
)


def cuts(data: bytes, seed: int = 1) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    rng = random.Random(seed)
    at = sorted(rng.randrange(len(data) + 1) for _ in range(20))
    yield [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def drain(decoder: ContentDecoder, pieces: list[bytes], n: int) -> bytes:
    out = bytearray()
    for piece in pieces:
        decoder.feed(piece)
        while data := decoder.inflate(n):
            assert len(data) <= n
            out += data
    decoder.finish()
    return bytes(out)


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
@pytest.mark.parametrize("body", [b"", b"x", b"0000", WANTS], ids=["empty", "one", "flush", "wants"])
def test_same_body_for_any_cut(coding: str, encode: Callable[[bytes], bytes], body: bytes) -> None:
    coded = encode(body)
    for pieces in cuts(coded):
        for n in (1, 100, 65536) if len(body) < 100 else (4099, 65536):
            decoder = ContentDecoder(coding, limit_bytes=1 << 20, ratio=50)
            assert drain(decoder, pieces, n) == body


@given(st.binary(max_size=2000), st.integers(1, 300), st.sampled_from(["gzip", "deflate"]))
def test_round_trip(body: bytes, n: int, coding: str) -> None:
    coded = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    for pieces in cuts(coded):
        assert drain(ContentDecoder(coding, limit_bytes=2000, ratio=2), pieces, n) == body


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
def test_truncation_is_noticed(coding: str, encode: Callable[[bytes], bytes]) -> None:
    coded = encode(b"want " * 40)
    ends = (
        {len(gzip.compress((b"want " * 40)[:100])), len(gzip.compress(b""))}
        if encode is two_members
        else set()
    )
    ends = (
        {len(gzip.compress(b"want " * 20)), len(gzip.compress(b"want " * 20) + gzip.compress(b""))}
        if ends
        else ends
    )
    for stop in range(len(coded)):
        decoder = ContentDecoder(coding, limit_bytes=1 << 20, ratio=50)
        if stop in ends:
            drain(decoder, [coded[:stop]], 64)  # a whole number of members is a whole body
            continue
        with pytest.raises(ProtocolError, match="truncated"):
            drain(decoder, [coded[:stop]], 64)


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        pytest.param("gzip", b"0032want 1234", id="plain"),
        pytest.param("gzip", zlib.compress(b"x"), id="zlib-as-gzip"),
        pytest.param("gzip", gzip.compress(b"x") + b"garbage", id="gzip-trailing"),
        pytest.param("gzip", gzip.compress(b"x")[:-5] + b"\0\0\0\0\0", id="gzip-crc"),
        pytest.param("gzip", gzip.compress(b"x")[:-4] + b"\xff\0\0\0", id="gzip-length"),
        pytest.param("deflate", zlib.compress(b"x") + b"\0", id="zlib-trailing"),
        pytest.param("deflate", zlib.compress(b"x")[:-1] + b"\0", id="zlib-adler"),
        pytest.param("deflate", raw_deflate(b"x") + b"\0", id="raw-trailing"),
        pytest.param("deflate", gzip.compress(b"x"), id="gzip-as-deflate"),
        pytest.param("deflate", zlib.compressobj(zdict=b"dict").flush(), id="zlib-dictionary"),
    ],
)
def test_refused(coding: str, coded: bytes) -> None:
    for pieces in cuts(coded):
        with pytest.raises(ProtocolError) as caught:
            drain(ContentDecoder(coding, limit_bytes=1 << 20, ratio=50), pieces, 7)
        assert not isinstance(caught.value, LimitExceeded)


@pytest.mark.parametrize("coding", ["br", "identity", "", "gzip, deflate", "gz\nip"])
def test_other_codings(coding: str) -> None:
    with pytest.raises(ProtocolError, match="not supported"):
        ContentDecoder(coding, limit_bytes=1, ratio=1)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]), st.booleans())
def test_garbage_raises_protocol_error_only(garbage: bytes, coding: str, with_head: bool) -> None:
    if with_head:
        garbage = (
            gzip.compress(b"x" * 50)[:14] if coding == "gzip" else zlib.compress(b"x" * 50)[:5]
        ) + garbage
    for pieces in cuts(garbage):
        try:
            drain(ContentDecoder(coding, limit_bytes=1000, ratio=2), pieces, 64)
        except ProtocolError:
            pass


def test_limit_is_exact() -> None:
    coded = gzip.compress(b"a" * 1000)
    assert len(drain(ContentDecoder("gzip", limit_bytes=1000, ratio=1), [coded], 64)) == 1000
    decoder = ContentDecoder("gzip", limit_bytes=999, ratio=1)
    with pytest.raises(LimitExceeded, match="999"):
        drain(decoder, [coded], 64)
    assert decoder._inflated_total == 1000  # the one byte that proves it, and no more
    with pytest.raises(LimitExceeded, match="999"):
        decoder.inflate(64)


def test_bomb_stops_at_the_ratio() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    decoder = ContentDecoder("gzip", limit_bytes=1 << 40, ratio=200)
    with pytest.raises(LimitExceeded, match="200 to 1"):
        drain(decoder, [bomb], 65536)
    assert decoder._inflated_total <= RATIO_FLOOR_BYTES + (4 << 20)


def test_big_feed_read_in_small_steps_is_linear() -> None:
    body = random.Random(2).randbytes(1 << 20)
    coded = gzip.compress(body)
    decoder = ContentDecoder("gzip", limit_bytes=1 << 21, ratio=2)
    decoder.feed(coded)
    got = bytearray()
    while data := decoder.inflate(512):
        assert len(decoder._tail) <= 16384
        got += data
    decoder.finish()
    assert got == body


def test_docstrings() -> None:
    failed, tried = doctest.testmod(content)
    assert tried
    assert not failed
