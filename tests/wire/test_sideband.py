import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.wire.pktline import PktLineDecoder, Special
from gitsmart.wire.sideband import SIDE_BAND_64K_LIMIT, SIDE_BAND_LIMIT, SideBandFrames, SideBandWriter


def written(limit: int) -> tuple[list[bytes], SideBandWriter]:
    writes: list[bytes] = []
    return writes, SideBandWriter(lambda data: writes.append(bytes(data)), limit)


def bands(writes: list[bytes]) -> dict[int, bytes]:
    """What a client sees: each band's bytes. Every write has to hold whole pkt-lines."""
    seen: dict[int, bytes] = {}
    for write in writes:
        decoder = PktLineDecoder()
        for line in decoder.feed(write):
            if isinstance(line, bytes):
                seen[line[0]] = seen.get(line[0], b"") + line[1:]
        assert decoder.is_between_packets
    return seen


@pytest.mark.parametrize(("limit", "room"), [(SIDE_BAND_64K_LIMIT, 65515), (SIDE_BAND_LIMIT, 995)])
def test_data_fills_packets(limit: int, room: int) -> None:
    writes, band = written(limit)
    data = bytes(range(256)) * (room * 3 // 256 + 1)
    band.data(memoryview(data))
    band.data(b"tail")
    band.finish()
    assert [len(write) for write in writes[:3]] == [limit] * 3
    assert writes[0][:5] == b"%04x\x01" % limit
    assert writes[-1] == b"0000"
    assert bands(writes) == {1: data + b"tail"}


def test_small_data_waits_for_flush_and_the_packet_is_reused() -> None:
    writes, band = written(SIDE_BAND_64K_LIMIT)
    band.data(b"one")
    band.data(b"two")
    assert writes == []
    band.flush()
    band.flush()
    band.data(b"three")
    band.finish()
    assert writes == [b"000b\x01onetwo", b"000a\x01three", b"0000"]


def test_progress_goes_at_once_and_long_texts_are_cut() -> None:
    writes, band = written(SIDE_BAND_LIMIT)
    band.data(b"data")
    band.progress(b"Counting objects: 5\r")
    band.progress(b"x" * 2000)
    assert writes[0] == b"0019\x02Counting objects: 5\r"
    assert bands(writes) == {2: b"Counting objects: 5\r" + b"x" * 2000}
    assert max(map(len, writes)) == SIDE_BAND_LIMIT


def test_error_comes_behind_the_data_in_one_packet() -> None:
    writes, band = written(SIDE_BAND_LIMIT)
    band.data(b"data")
    band.error("no more" + "!" * 2000)
    assert writes[0] == b"0009\x01data"
    assert len(writes) == 2
    assert writes[1].startswith(b"03e8\x03no more!")
    assert writes[1].endswith(b"!")


@given(st.lists(st.binary(max_size=3000)), st.integers(6, 200))
def test_band_1_is_the_data(pieces: list[bytes], limit: int) -> None:
    writes, band = written(limit)
    for piece in pieces:
        band.data(piece)
    band.finish()
    assert bands(writes).get(1, b"") == b"".join(pieces)
    assert PktLineDecoder().feed(writes[-1]) == [Special.FLUSH]


@given(st.integers(6, 40), st.lists(st.binary(max_size=150), max_size=8))
def test_frames_of_known_size(limit: int, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    frames = SideBandFrames(limit, len(data))
    writes = [b"".join(frames.frame(piece)) for piece in pieces]  # whole pkt-lines each, says `bands`
    assert bands(writes) == ({1: data} if data else {})
    assert sum(map(len, writes)) == frames.wire_bytes
    writes, band = written(limit)
    band.data(data)
    band.flush()
    assert sum(map(len, writes)) == frames.wire_bytes
