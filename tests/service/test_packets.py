import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import Disconnected, ProtocolError
from gitsmart.service.packets import PktLineReader
from gitsmart.wire.pktline import Special, pkt


def reader(*pieces: bytes, fail: Exception | None = None) -> PktLineReader:
    left = list(pieces)

    def read(n: int) -> bytes:
        if not left and fail is not None:
            raise fail
        if not left:
            return b""
        data, rest = left[0][:n], left[0][n:]
        left[:1] = [rest] if rest else []
        return data

    return PktLineReader(read)


def test_lines_then_the_pack_behind_them() -> None:
    packets = reader(b"0005a0005b0000PACK", b"more of it")
    assert [packets.read_line() for _ in range(3)] == [b"a", b"b", Special.FLUSH]
    assert packets.read(2) == b"PA"
    assert packets.read(100) == b"CK"
    assert packets.read(4) == b"more"
    assert packets.read(100) == b" of it"
    assert packets.read(100) == b""


def test_lines_go_on_behind_a_flush() -> None:
    packets = reader(b"0005a00000005b0000", b"0005c")
    assert [packets.read_line() for _ in range(6)] == [b"a", Special.FLUSH, b"b", Special.FLUSH, b"c", None]


def test_end_between_lines_is_none_and_inside_one_is_an_error() -> None:
    assert reader().read_line() is None
    with pytest.raises(ProtocolError, match="hung up"):
        reader().expect_line()
    with pytest.raises(ProtocolError, match="hung up"):
        reader(b"0009a").read_line()
    with pytest.raises(ProtocolError, match="hung up"):
        reader(b"00").read_line()


def test_good_lines_come_before_the_error_behind_them() -> None:
    packets = reader(b"0005aPACK", fail=AssertionError("no need to read on"))
    assert packets.read_line() == b"a"
    with pytest.raises(ProtocolError, match="bad line length character: PACK"):
        packets.read_line()


def test_a_peer_that_goes_away() -> None:
    packets = reader(b"0005a00", fail=Disconnected("gone"))
    assert packets.read_line() == b"a"
    with pytest.raises(Disconnected):
        packets.read_line()


@given(st.lists(st.binary(max_size=20)), st.binary(max_size=50), st.integers(1, 7))
def test_same_however_it_is_cut(lines: list[bytes], rest: bytes, size: int) -> None:
    data = b"".join(map(pkt, lines)) + b"0000" + rest
    packets = reader(*[data[i : i + size] for i in range(0, len(data), size)])
    assert [packets.read_line() for _ in lines] == lines
    assert packets.read_line() is Special.FLUSH
    got = b""
    while piece := packets.read(3):
        got += piece
    assert got == rest
