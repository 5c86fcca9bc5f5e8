import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import ProtocolError
from gitsmart.wire.pktline import (
    DELIM_PKT,
    FLUSH_PKT,
    MAX_PAYLOAD,
    MAX_PKT_LEN,
    RESPONSE_END_PKT,
    PktLine,
    PktLineDecoder,
    Special,
    chomp,
    error_pkt,
    pkt,
)

SPECIAL_PKTS = {Special.FLUSH: FLUSH_PKT, Special.DELIM: DELIM_PKT, Special.RESPONSE_END: RESPONSE_END_PKT}


def encode(lines: list[PktLine]) -> bytes:
    return b"".join(pkt(line) if isinstance(line, bytes) else SPECIAL_PKTS[line] for line in lines)


def decode(pieces: list[bytes]) -> tuple[list[PktLine], str | None]:
    """All events of the pieces, and the error they end in."""
    decoder = PktLineDecoder()
    events: list[PktLine] = []
    try:
        for piece in pieces:
            events += decoder.feed(piece)
        events += decoder.feed(b"")
    except ProtocolError as error:
        return events, str(error)
    return events, None


def cuts(data: bytes) -> list[list[bytes]]:
    """The data whole, byte by byte, and cut at random."""
    rng = random.Random(7)
    ways = [[data], [data[i : i + 1] for i in range(len(data))]]
    for _ in range(5):
        marks = [0, *sorted(rng.randrange(len(data) + 1) for _ in range(4)), len(data)]
        ways.append([data[a:b] for a, b in pairwise(marks)])
    return ways


@pytest.mark.parametrize(
    ("data", "events"),
    [
        # gitprotocol-common, "pkt-line Format", its own examples
        pytest.param(b"0006a\n", [b"a\n"], id="a-lf"),
        pytest.param(b"0005a", [b"a"], id="a"),
        pytest.param(b"000bfoobar\n", [b"foobar\n"], id="foobar"),
        pytest.param(b"0004", [b""], id="empty-payload"),
        pytest.param(b"0000", [Special.FLUSH], id="flush"),
        pytest.param(b"0001", [Special.DELIM], id="delim-is-no-flush"),
        pytest.param(b"0002", [Special.RESPONSE_END], id="response-end"),
        pytest.param(b"000aX\x00Y\xff\n\n0000", [b"X\x00Y\xff\n\n", Special.FLUSH], id="binary"),
        pytest.param(b"000Bfoobar\n", [b"foobar\n"], id="upper-case-hex"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_decodes(data: bytes, events: list[PktLine]) -> None:
    for pieces in cuts(data):
        assert decode(pieces) == (events, None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"0003", "protocol error: bad line length 3", id="3"),
        pytest.param(b"ffff", "protocol error: bad line length 65531", id="ffff"),
        pytest.param(b"fff1", "protocol error: bad line length 65517", id="one-too-long"),
        pytest.param(b"PACK", "protocol error: bad line length character: PACK", id="pack"),
        pytest.param(b"0x1f", "protocol error: bad line length character: 0x1f", id="0x"),
        pytest.param(b"+00a", "protocol error: bad line length character: +00a", id="sign"),
        pytest.param(b" 00a", "protocol error: bad line length character:  00a", id="space"),
        pytest.param(b"0_0a", "protocol error: bad line length character: 0_0a", id="underscore"),
        pytest.param(
            b"\xff\x00ab", "protocol error: bad line length character: \\xff\\x00ab", id="not-ascii"
        ),
        pytest.param(
            "0\uff11".encode(),
            "protocol error: bad line length character: 0\uff11",
            id="other-digits",
        ),
    ],
)
def test_refuses(data: bytes, text: str) -> None:
    for pieces in cuts(data + b"0000"):
        assert decode(pieces) == ([], text)
    for pieces in cuts(b"0005a0000" + data + b"0000"):
        assert decode(pieces) == ([b"a", Special.FLUSH], text)


def test_error_is_final() -> None:
    decoder = PktLineDecoder()
    with pytest.raises(ProtocolError):
        decoder.feed(b"0003")
    assert decoder.failed
    with pytest.raises(ProtocolError):
        decoder.feed(b"0005a")


def test_longest_line_both_ways() -> None:
    line = pkt(b"x" * MAX_PAYLOAD)
    assert line.startswith(b"fff0")
    assert len(line) == MAX_PKT_LEN
    assert decode([line]) == ([b"x" * MAX_PAYLOAD], None)
    with pytest.raises(AssertionError):
        pkt(b"x" * (MAX_PAYLOAD + 1))


def test_stops_at_flush_and_hands_the_rest_on() -> None:
    pack = b"PACK\x00\x00\x00\x02 and so on"
    for pieces in cuts(b"0005a0000" + pack):
        decoder = PktLineDecoder()
        events: list[PktLine] = []
        rest = b""
        for piece in pieces:
            if events[-1:] == [Special.FLUSH]:
                rest += piece
                continue
            events += decoder.feed(piece, stop_at_flush=True)
            if events[-1:] == [Special.FLUSH]:
                rest = decoder.leftover()
        assert events == [b"a", Special.FLUSH]
        assert rest == pack


def test_stopping_at_flush_keeps_later_lines_for_the_next_feed() -> None:
    decoder = PktLineDecoder()
    assert decoder.feed(b"0005a00000005b00", stop_at_flush=True) == [b"a", Special.FLUSH]
    assert not decoder.is_between_packets
    assert decoder.feed(b"00", stop_at_flush=True) == [b"b", Special.FLUSH]
    assert decoder.is_between_packets


def test_a_long_line_fed_byte_by_byte_is_linear() -> None:
    line = pkt(b"x" * MAX_PAYLOAD)
    decoder = PktLineDecoder()
    for i in range(len(line) - 1):
        assert not decoder.feed(line[i : i + 1])
    assert decoder.feed(line[-1:]) == [b"x" * MAX_PAYLOAD]


@given(st.lists(st.binary(max_size=40) | st.sampled_from(Special)), st.lists(st.integers(0, 400), max_size=6))
def test_round_trip(lines: list[PktLine], marks: list[int]) -> None:
    data = encode(lines)
    edges = [0, *sorted(min(mark, len(data)) for mark in marks), len(data)]
    assert decode([data[a:b] for a, b in pairwise(edges)]) == (lines, None)


@given(st.binary(max_size=200))
def test_garbage_raises_protocol_error_only(data: bytes) -> None:
    whole = decode([data])
    assert decode([data[i : i + 1] for i in range(len(data))]) == whole


def test_chomp_takes_one_newline() -> None:
    assert [chomp(b"a\n\n"), chomp(b"a"), chomp(b"\n"), chomp(b"")] == [b"a\n", b"a", b"", b""]


def test_error_pkt_is_one_line_of_bounded_length() -> None:
    assert error_pkt("not our ref\nabc") == b"0018ERR not our ref abc\n"
    assert len(error_pkt("é" * 70000)) == MAX_PKT_LEN
