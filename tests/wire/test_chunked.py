"""wire/chunked.py: the grammar as tables, each input cut in every way, and nothing but ProtocolError for
garbage.

Fed byte by byte the decoder never sees a run of chunks, so that way of feeding is also the reference for the
fast path.
"""

import doctest
import random
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gitsmart.errors import ProtocolError
from gitsmart.wire import chunked
from gitsmart.wire.chunked import EXTENSION_BYTES, LINE_BYTES, TRAILER_BYTES, ChunkDecoder

LAST = b"0\r\n\r\n"


def frames(pieces: Sequence[bytes], extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)


def cuts(data: bytes, seed: int = 1) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for pieces in (2, 7, 40):
        rng = random.Random(seed * pieces)
        at = sorted(rng.randrange(len(data) + 1) for _ in range(pieces))
        yield [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def decode(pieces: Sequence[bytes]) -> tuple[bytes, str, bytes]:
    """Feed all pieces; return the body, the verdict, and what was left over."""
    decoder = ChunkDecoder()
    body = bytearray()
    try:
        for piece in pieces:
            body += decoder.feed(piece)
            while not decoder.needs_input:
                body += decoder.feed()
    except ProtocolError as error:
        with pytest.raises(ProtocolError):
            decoder.feed(b"0\r\n\r\n")  # a broken decoder stays broken
        return bytes(body), f"refused: {type(error).__name__}", b""
    return (
        bytes(body),
        "finished" if decoder.finished else "more",
        decoder.leftover if decoder.finished else b"",
    )


@pytest.mark.parametrize(
    ("data", "body"),
    [
        pytest.param(LAST, b"", id="empty"),
        pytest.param(b"000\r\n\r\n", b"", id="zeros"),
        pytest.param(b"0" * 16 + b"\r\n\r\n", b"", id="sixteen-zeros"),
        pytest.param(b"4\r\n0000\r\n" + LAST, b"0000", id="flush-pkt"),
        pytest.param(b"0000000000000004\r\n0000\r\n" + LAST, b"0000", id="sixteen-digits"),
        pytest.param(b"A\r\n0123456789\r\na\r\n0123456789\r\n" + LAST, b"0123456789" * 2, id="hex-case"),
        pytest.param(b"2\r\n\r\n\r\n2\r\n0\r\r\n" + LAST, b"\r\n0\r", id="data-like-framing"),
        pytest.param(b"1;a\r\nx\r\n" + LAST, b"x", id="ext-name"),
        pytest.param(b"1;a=b;c\r\nx\r\n" + LAST, b"x", id="ext-value"),
        pytest.param(b'1 ;\ta = "q\\"; 1\r"\r\nx\r\n'.replace(b"\r", b"", 1) + LAST, b"x", id="ext-quoted"),
        pytest.param(b'1;a=""\r\nx\r\n' + LAST, b"x", id="ext-empty-quoted"),
        pytest.param(b'1;a="\xff\t\\\xff"\r\nx\r\n' + LAST, b"x", id="ext-obs-text"),
        pytest.param(b"1;" + b"a" * 100 + b"\r\nx\r\n" + LAST, b"x", id="ext-longer-than-tornado-takes"),
        pytest.param(b"1;" + b"a" * (LINE_BYTES - 4) + b"\r\nx\r\n" + LAST, b"x", id="ext-longest"),
        pytest.param(b"1\r\nx\r\n0;last=yes\r\n\r\n", b"x", id="ext-on-last"),
        pytest.param(b"1\r\nx\r\n0\r\nA: b\r\n\r\n", b"x", id="trailer"),
        pytest.param(b"0\r\nA:\r\nB-2:\tx y\xe9 \r\n!#$%&'*+-.^_`|~:z\r\n\r\n", b"", id="trailers"),
        pytest.param(
            b"0\r\n" + b"Trailer: %b\r\n" % (b"v" * 1000) * 16 + b"\r\n",
            b"",
            id="16-KiB",
        ),
    ],
)
@pytest.mark.parametrize("next_request", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n0\r\n"])
def test_accepted(data: bytes, body: bytes, next_request: bytes) -> None:
    for pieces in cuts(data + next_request):
        assert decode(pieces) == (body, "finished", next_request)
    for stop in range(len(data)):
        assert decode([data[:stop]])[1] == "more"


@pytest.mark.parametrize(
    ("data", "body"),
    [
        pytest.param(b"\r\n", b"", id="no-size"),
        pytest.param(b"g\r\n", b"", id="no-hex"),
        pytest.param(b"1\nx\n0\n\n", b"", id="bare-lf"),
        pytest.param(b"1\rx", b"", id="bare-cr"),
        pytest.param(b"1\r\r\nx\r\n", b"", id="two-cr"),
        pytest.param(b" 1\r\nx\r\n", b"", id="blank-before"),
        pytest.param(b"1 \r\nx\r\n", b"", id="blank-after"),
        pytest.param(b"1\t\r\nx\r\n", b"", id="tab-after"),
        pytest.param(b"1 1\r\nx\r\n", b"", id="blank-inside"),
        pytest.param(b"+1\r\nx\r\n", b"", id="plus"),
        pytest.param(b"-1\r\nx\r\n", b"", id="minus"),
        pytest.param(b"0x1\r\nx\r\n", b"", id="0x"),
        pytest.param(b"1_0\r\nx\r\n", b"", id="underscore"),
        pytest.param(b"1h\r\nx\r\n", b"", id="suffix"),
        pytest.param("\N{ARABIC-INDIC DIGIT ONE}\r\nx\r\n".encode(), b"", id="unicode-digit"),
        pytest.param(b"0" * 16 + b"1\r\nx\r\n", b"", id="seventeen-digits"),
        pytest.param(b"0" * 17 + b"\r\n\r\n", b"", id="seventeen-zeros"),
        pytest.param(b"1\r\nxy\r\n", b"x", id="data-too-long"),
        pytest.param(b"2\r\nx\r\n" + LAST, b"x\r", id="data-too-short"),
        pytest.param(b"1\r\nx\n" + LAST, b"x", id="lf-after-data"),
        pytest.param(b"1\r\nx\r0\r\n\r\n", b"x", id="cr-after-data"),
        pytest.param(b"1\r\nx" + LAST, b"x", id="nothing-after-data"),
        pytest.param(b"1;\r\nx\r\n", b"", id="ext-no-name"),
        pytest.param(b"1;;a\r\nx\r\n", b"", id="ext-empty"),
        pytest.param(b"1;a=\r\nx\r\n", b"", id="ext-no-value"),
        pytest.param(b"1;a \r\nx\r\n", b"", id="ext-trailing-blank"),
        pytest.param(b'1;a="b\r\nx\r\n', b"", id="ext-open-quote"),
        pytest.param(b'1;a="b"c\r\nx\r\n', b"", id="ext-after-quote"),
        pytest.param(b"1;a\nb\r\nx\r\n", b"", id="ext-lf"),
        pytest.param(b"1;a\x00\r\nx\r\n", b"", id="ext-nul"),
        pytest.param(b'1;a="\n"\r\nx\r\n', b"", id="ext-quoted-lf"),
        pytest.param(b"0\r\n\n", b"", id="trailer-bare-lf"),
        pytest.param(b"0\r\nA: b\n\r\n", b"", id="trailer-field-lf"),
        pytest.param(b"0\r\nA : b\r\n\r\n", b"", id="trailer-blank-before-colon"),
        pytest.param(b"0\r\nA: b\r\n c\r\n\r\n", b"", id="trailer-fold"),
        pytest.param(b"0\r\nA\r\n\r\n", b"", id="trailer-no-colon"),
        pytest.param(b"0\r\n: b\r\n\r\n", b"", id="trailer-no-name"),
        pytest.param(b"0\r\nA: \x00\r\n\r\n", b"", id="trailer-nul"),
        pytest.param(b"0\r\nA: b\rc\r\n\r\n", b"", id="trailer-cr"),
        pytest.param(b"0\r\nGET / HTTP/1.1\r\n", b"", id="no-trailer-end"),
    ],
)
def test_refused(data: bytes, body: bytes) -> None:
    for before in (b"", frames([b"ab"] * 50), frames([b"abc", b"d" * 70])):
        kept = b"ab" * 50 if before.startswith(b"2") else b"abc" + b"d" * 70 if before else b""
        if data.startswith(b"\r\n") and before:
            continue
        for pieces in cuts(before + data):
            got, verdict, _ = decode(pieces)
            assert got == kept + body
            assert verdict == "refused: ProtocolError"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"1;" + b"a" * LINE_BYTES, id="line"),
        pytest.param(b"1;" + b"a" * LINE_BYTES + b"\r\nx\r\n", id="line-complete"),
        pytest.param(b"0\r\nA: " + b"a" * LINE_BYTES, id="trailer-line"),
        pytest.param(b"0\r\n" + b"A: b\r\n" * (TRAILER_BYTES // 6 + 1), id="trailers"),
        pytest.param(frames([b"x"] * 200, b";" + b"a" * 160), id="extensions"),
    ],
)
def test_limits(data: bytes) -> None:
    for pieces in cuts(data):
        assert decode(pieces)[1] == "refused: LimitExceeded"


def test_honest_extensions_never_run_out() -> None:
    signature = b";chunk-signature=" + b"0" * 64  # AWS signs every chunk like this
    assert decode([frames([b"x" * 4096] * 2000, signature) + LAST])[0] == b"x" * 4096 * 2000
    assert decode([frames([b"x"] * 20000, b";n=1234") + LAST])[0] == b"x" * 20000
    assert 2000 * len(signature) > EXTENSION_BYTES


CHUNK_LISTS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=20).map(lambda piece: [piece]),
        st.tuples(st.binary(min_size=1, max_size=40), st.integers(30, 300)).map(
            lambda run: [run[0]] * run[1]
        ),
        st.tuples(st.integers(1, 3), st.binary(min_size=150, max_size=300)).map(
            lambda run: [run[1][i : i + run[0]] for i in range(0, len(run[1]) // run[0] * run[0], run[0])]
        ),
        st.integers(500, 1500).map(lambda n: [b"\r\n" * n]),
    ),
    max_size=6,
).map(lambda lists: [piece for pieces in lists for piece in pieces])
EXTENSIONS = st.sampled_from([b"", b"", b";a", b';a="b\\"c"', b" ; a=b"])


@given(CHUNK_LISTS, EXTENSIONS, st.integers(0, 2**30))
def test_round_trip(chunks: list[bytes], extension: bytes, seed: int) -> None:
    data = frames(chunks, extension) + LAST + b"GET"
    for pieces in cuts(data, seed):
        assert decode(pieces) == (b"".join(chunks), "finished", b"GET")


@given(CHUNK_LISTS, EXTENSIONS, st.data())
def test_one_wrong_byte_gives_one_verdict_for_any_cut(
    chunks: list[bytes], extension: bytes, data: st.DataObject
) -> None:
    coded = bytearray(frames(chunks, extension) + LAST)
    at = data.draw(st.integers(0, len(coded) - 1))
    coded[at] = data.draw(st.sampled_from(b"\x00\r\n 019aF;=:g\xff"))
    first, *others = {decode(pieces) for pieces in cuts(bytes(coded), at)}
    assert not others, (first, others)


@given(
    st.lists(
        st.sampled_from([b"0", b"1", b"a", b"\r\n", b"\r\n", b"\n", b"\r", b";", b"=", b'"', b" ", b"x:"]),
        max_size=40,
    )
)
@example([b"1", b";", b"a", b"=", b'"', b"\r\n"])
def test_garbage_raises_protocol_error_only(words: list[bytes]) -> None:
    assert len({decode(pieces) for pieces in cuts(b"".join(words))}) == 1


@given(st.binary(max_size=200))
def test_binary_garbage(garbage: bytes) -> None:
    for pieces in cuts(garbage):
        decode(pieces)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 32, 33, 100, 511, 512, 513])
def test_runs(size: int) -> None:
    rng = random.Random(size)
    chunks = [rng.randbytes(size) for _ in range(3000 if size < 100 else 400)]
    whole = frames(chunks) + LAST
    assert decode([whole]) == (b"".join(chunks), "finished", b"")
    odd = [*chunks[:-40], b"odd", *chunks[-40:]]
    assert decode([frames(odd) + LAST]) == (b"".join(odd), "finished", b"")
    assert decode([whole[i : i + 1000] for i in range(0, len(whole), 1000)])[0] == b"".join(chunks)


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5])
def test_a_run_that_breaks(place: int) -> None:
    for broken in (1, 2, 30, 31, 32, 33, 34, 100, 160, 161, 162, 1000):
        data = bytearray(frames([b"x"] * 1200) + LAST)
        data[broken * 6 + place] = ord("?")
        body, verdict, _ = decode([bytes(data)])
        assert verdict.startswith("refused")
        assert len(body) == broken + (place > 2)


def test_work_per_feed_is_bounded() -> None:
    """Whatever comes, one call does a bounded amount of work, and the calls together do all of it."""
    for data in (
        frames([b"x", b"yy", b"zzz"] * 20000),
        frames([b"x"] * 100000),
        frames([b"x"] * 30000, b";a=1"),
        (frames([b"x"] * 34) + frames([b"xx"])) * 2000,
    ):
        decoder = ChunkDecoder()
        counts = [len(decoder.feed(data))]
        while not decoder.needs_input:
            counts.append(len(decoder.feed()))
        assert max(counts) <= chunked.WORK_PER_FEED * 8 * 3
        assert len(counts) > 1


def test_no_input_costs_more_than_linear_time() -> None:
    """Runs that break at once, wherever that is, and lines that almost match."""
    baits = [
        (frames([b"x"] * 2) + b"1\r\n?\r\n" + frames([b"x"])) * 100,
        (frames([b"x"] * 33) + b"1;a\r\nx\r\n") * 30,
        frames([b"x"], b';a="' + b"\\\\" * 1900 + b'"') * 4,
        frames([b"x"], b" ; a" * 1000) * 4,
    ]
    for bait in baits:
        seconds = []
        for repeat in (4, 16):
            data = bait * repeat
            best = 1.0
            for _ in range(3):
                start = time.process_time()
                decode([data])
                best = min(best, time.process_time() - start)
            seconds.append(best)
        assert seconds[1] < 12 * seconds[0] + 0.01, seconds


def test_memory_is_bounded_by_what_is_fed() -> None:
    decoder = ChunkDecoder()
    decoder.feed(b"ffffffffffffffff\r\n")
    for _ in range(100):
        assert len(decoder.feed(b"x" * 65536)) == 65536
        assert not decoder.leftover
    line = ChunkDecoder()
    for _ in range(LINE_BYTES - 1):
        line.feed(
            b"1"
            if not line.leftover
            else b";a"[len(line.leftover) == 1 :][:1]
            if len(line.leftover) < 3
            else b"a"
        )
        assert len(line.leftover) < LINE_BYTES


@pytest.mark.slow
def test_one_million_one_byte_chunks() -> None:
    body = random.Random(3).randbytes(1_000_000)
    whole = frames([body[i : i + 1] for i in range(len(body))]) + LAST
    assert decode([whole])[0] == body
    rng = random.Random(4)
    decoder, got, position = ChunkDecoder(), bytearray(), 0
    while position < len(whole):
        step = rng.choice((1, 2, 3, 7, 100, 1460, 65536))
        got += decoder.feed(whole[position : position + step])
        position += step
        while not decoder.needs_input:
            got += decoder.feed()
    assert decoder.finished
    assert got == body


def test_docstrings() -> None:
    failed, tried = doctest.testmod(chunked)
    assert tried
    assert not failed
