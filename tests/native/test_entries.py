"""Entries of packs: brought in order, found by name, copied; whatever the bytes are."""

import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart import native
from gitsmart.native.entries import ASK, DONE, FULL, ORPHAN, RUN, Copier, Entries, Malformed, Part
from gitsmart.pack.packstream import entry_head, ofs_distance

pytestmark = pytest.mark.skipif(not native.available, reason=native.missing)


def fan_of(names: list[bytes]) -> list[int]:
    return [sum(name[0] < byte for name in names) for byte in range(257)]


def entries_of(
    data: bytes,
    offsets: list[int],
    names: list[bytes],
    *,
    reverse: list[int] | None = None,
    end: int | None = None,
    tables: bytes | None = None,
) -> Entries:
    """Make them from an index in words: `offsets[i]` is where the object `names[i]` starts; names rise."""
    large = [offset for offset in offsets if offset > 0x7FFFFFFF]
    table = [0x80000000 | large.index(offset) if offset in large else offset for offset in offsets]
    return Entries(
        data=memoryview(data),
        end=len(data) if end is None else end,
        names=memoryview(b"".join(names)),
        positions=memoryview(struct.pack(f">{len(table)}I", *table)),
        large=memoryview(struct.pack(f">{len(large)}Q", *large)),
        fan=fan_of(names),
        raw_len=20,
        is_v2=True,
        reverse=None if reverse is None else memoryview(struct.pack(f">{len(reverse)}I", *reverse)),
        tables=None if tables is None else memoryview(tables),
    )


def names_for(count: int) -> list[bytes]:
    return sorted(hashlib.sha1(b"%d" % number).digest() for number in range(count))


@given(
    st.lists(st.integers(0, 5000) | st.integers(0, 1 << 40), max_size=60),
    st.sampled_from((5000, 1 << 33, 1 << 40)),
    st.booleans(),
    st.data(),
)
def test_order_is_that_of_offsets(offsets: list[int], end: int, unique: bool, data: st.DataObject) -> None:
    if unique:
        offsets = list(dict.fromkeys(offsets))
    names = names_for(len(offsets))
    order = sorted(range(len(offsets)), key=offsets.__getitem__)
    good = all(12 <= offset < end for offset in offsets) and len(set(offsets)) == len(offsets)
    shuffled: list[int] = data.draw(st.permutations(order))
    for reverse in (None, order, shuffled, [number + 1 for number in order]):
        if good and reverse in (None, order):
            entries = entries_of(b"", offsets, names, reverse=reverse, end=end)
            assert list(entries.order) == order
            assert list(entries.offsets) == sorted(offsets)
            for offset in offsets:
                assert entries.offsets[entries.rank_of(offset)] == offset
            assert [entries.ranks[place] for place in order] == list(range(len(order)))
            # What was found once is taken for that, and nothing else is.
            tables = bytearray(entries.tables)
            assert entries_of(b"", offsets, names, end=end, tables=bytes(tables)).is_in_order()
            if tables:
                tables[data.draw(st.integers(0, len(tables) - 1))] ^= data.draw(st.integers(1, 255))
                assert not entries_of(b"", offsets, names, end=end, tables=bytes(tables)).is_in_order()
        elif offsets:
            with pytest.raises(Malformed, match="out of order"):
                entries_of(b"", offsets, names, reverse=reverse, end=end)


@given(st.integers(0, 300), st.integers(0, 255), st.lists(st.integers(0, 400), max_size=50))
def test_names_are_marked(count: int, crowd: int, wanted: list[int]) -> None:
    names = names_for(count)
    # Names that are unlike hashes: all begin alike.
    names += [bytes((crowd,)) * 19 + bytes((number,)) for number in range(crowd)]
    names.sort()
    offsets = [12 + 7 * (number * 31 % 997) for number in range(len(names))]
    entries = entries_of(b"", offsets, names, end=10000)
    oids = [names[number] if number < len(names) else bytes((number & 255,)) * 20 for number in wanted]
    bits = bytearray((len(names) + 7) // 8)
    missing = entries.mark(b"".join(oids), bits)
    assert [oids[at] for at in missing] == [oid for oid in oids if oid not in names]
    by_rank = [names[place] for place in entries.order]
    marked = [oid for rank, oid in enumerate(by_rank) if bits[rank >> 3] >> (rank & 7) & 1]
    assert set(marked) == set(oids) & set(names)
    assert entries.names(bytes(bits).rstrip(b"\0")) == b"".join(marked)


def a_pack(sizes: list[tuple[int, int]]) -> tuple[bytes, list[int]]:
    """Write entries, each said as (base, size). Base 0: none; a number: the entry so many before, as
    OFS_DELTA; a negative one: the entry of that number from the end, as REF_DELTA.
    """
    out = bytearray(struct.pack(">4sII", b"PACK", 2, len(sizes)))
    offsets: list[int] = []
    names = names_for(len(sizes))
    for number, (back, size) in enumerate(sizes):
        body = zlib.compress(bytes(size), 0)
        here = len(out)
        if back > 0 and number:
            out += entry_head(6, size) + ofs_distance(here - offsets[max(0, number - back)])
        elif back < 0:
            out += entry_head(7, size) + names[back % len(sizes)]
        else:
            out += entry_head(3, size)
        out += body
        offsets.append(here)
    return bytes(out), offsets


def run(parts: list[Part], *, ofs_delta: bool, least: int, piece: int = 128 << 10) -> int:
    """Copy all, let whatever can't be copied have ten bytes; return how many bytes that makes."""
    copier = Copier(parts, 12, ofs_delta=ofs_delta)
    total = 12
    for part in range(len(parts)):
        copier.begin(part)
        if least:
            large = copier.large_entries(least, 5)
            assert all(size >= least for size, _ in large)
            assert len({rank for _, rank in large}) == len(large) <= 5
            copier.ask(rank for _, rank in large)
        while True:
            why, data = copier.fill(piece)
            total += len(data)
            if why == RUN:
                start, stop = copier.run()
                assert stop - start >= 1 << 16
                total += stop - start
            elif why == ORPHAN or (why == ASK and copier.state.rank & 1):
                relatives = copier.relatives(2)
                assert all(map(copier.may_refer_to, relatives))
                copier.wrote(10)
                total += 10
            elif why == ASK:
                copier.keep()
            elif why == DONE:
                break
            else:
                assert why == FULL
            assert copier.state.here == total
    return total


sizes = st.lists(
    st.tuples(st.integers(-3, 4), st.integers(0, 60) | st.sampled_from((70_000, 150_000))), max_size=20
)


@given(sizes, st.booleans(), st.booleans(), st.sampled_from((0, 1, 100)), st.data())
def test_any_bytes_are_copied_or_refused(
    sizes: list[tuple[int, int]], hurt_head: bool, ofs_delta: bool, least: int, data: st.DataObject
) -> None:
    pack, offsets = a_pack(sizes)
    damaged = bytearray(pack)
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, max(0, len(pack) - 1)), st.integers(0, 255)), max_size=4)
    ):
        damaged[at] = byte
    if offsets and hurt_head:
        # Entries' heads are where it matters.
        at = data.draw(st.sampled_from(offsets))
        damaged[at : at + 30] = data.draw(st.binary(min_size=30, max_size=30))[: len(damaged) - at]
    cut = (
        bytes(damaged[: data.draw(st.integers(max(offsets, default=12) + 1, len(pack)))]) if offsets else pack
    )
    names = names_for(len(offsets))
    # The n-th entry is the n-th name's: any order would do.
    entries = entries_of(cut, offsets, names)
    # The tables may be a file that somebody changes.
    tables = bytearray(entries.tables)
    changes = st.lists(st.tuples(st.integers(0, max(0, len(tables) - 1)), st.integers(0, 255)), max_size=3)
    for at, byte in data.draw(changes) if tables else ():
        tables[at] = byte
    entries = entries_of(cut, offsets, names, tables=bytes(tables))
    count = (len(offsets) + 7) // 8
    bits = st.binary(min_size=count, max_size=count)
    number = data.draw(st.integers(1, 2))
    parts = [Part(entries, data.draw(bits), data.draw(bits)) for _ in range(number)]
    try:
        run(parts, ofs_delta=ofs_delta, least=least)
    except Malformed as error:
        assert "malformed" in str(error)  # noqa: PT017 - there need not be one


def test_moves_find_room() -> None:
    # Each second one is sent: more moves than there is room for at first.
    count = 20_000
    pack, offsets = a_pack([(number % 3, number % 5) for number in range(count)])
    entries = entries_of(pack, offsets, names_for(count))
    total = run([Part(entries, b"\x55" * (count // 8), b"\xaa" * (count // 8))], ofs_delta=True, least=0)
    assert total > sum(b - a for a, b in zip(offsets[::2], offsets[1::2], strict=False))
