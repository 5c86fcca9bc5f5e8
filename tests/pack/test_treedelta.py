"""Following a delta finds what a full parse finds, in honest trees and in those made to confuse it."""

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import PackError
from gitsmart.pack.delta import apply_delta
from gitsmart.pack.objects import iter_tree, tree_references
from gitsmart.pack.treedelta import delta_references, entry_ends


def number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def make_delta(base: bytes, parts: list[tuple[int, int] | bytes]) -> bytes:
    """Build a delta of copies (start, stop) and insertions."""
    body = b""
    size = 0
    for part in parts:
        if isinstance(part, bytes):
            for k in range(0, len(part), 127):
                body += bytes([len(part[k : k + 127])]) + part[k : k + 127]
            size += len(part)
        elif part[1] > part[0]:
            length = part[1] - part[0]
            body += b"\xbf" + part[0].to_bytes(4, "little") + length.to_bytes(2, "little")
            size += length
    return number(len(base)) + number(size) + body


def check(base: bytes, delta: bytes) -> None:
    """Compare with the full parse."""
    if len(delta) < 4:
        return
    result = apply_delta(base, delta)
    ends = entry_ends(base, 20)
    try:
        trees, blobs = tree_references(result, 20)
    except PackError:
        with pytest.raises(PackError):
            delta_references(ends, delta, result, 20)
        return
    base_trees, base_blobs = tree_references(base, 20)
    found_trees, found_blobs, found_ends = delta_references(ends, delta, result, 20)
    assert found_trees <= trees <= found_trees | base_trees
    assert found_blobs <= blobs <= found_blobs | base_blobs
    assert found_ends == entry_ends(result, 20)


def entry(mode: bytes, name: bytes, raw_oid: bytes) -> bytes:
    return mode + b" " + name + b"\0" + raw_oid


def usual_tree(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    modes = [b"100644", b"100644", b"100755", b"40000", b"160000"]
    return [entry(chance.choice(modes), b"name%d" % k, chance.randbytes(20)) for k in range(count)]


def test_ends() -> None:
    entries = usual_tree(30)
    ends = entry_ends(b"".join(entries), 20)
    assert ends == array("I", [sum(map(len, entries[: k + 1])) for k in range(30)])
    assert entry_ends(b"", 20) == array("I")


@pytest.mark.parametrize("bad", [b"x", b"100644 a\0" + bytes(19), b"9 a\0" + bytes(20)])
def test_ends_of_a_malformed_tree(bad: bytes) -> None:
    for data in (bad, b"".join(usual_tree(3)) + bad):
        with pytest.raises(PackError):
            entry_ends(data, 20)


@pytest.mark.parametrize("changed", [0, 1, 7, 18, 19])
@pytest.mark.parametrize("name", [b"name1", b"n", b"longer name than before"])
def test_one_entry_changed(changed: int, name: bytes) -> None:
    entries = usual_tree(20)
    base = b"".join(entries)
    start = len(b"".join(entries[:changed]))
    stop = start + len(entries[changed])
    new = entry(b"100644", name, b"\x99" * 20)
    delta = make_delta(base, [(0, start), new, (stop, len(base))])
    check(base, delta)
    _, blobs, _ = delta_references(entry_ends(base, 20), delta, apply_delta(base, delta), 20)
    assert blobs == {b"\x99" * 20}, "only what changed is parsed"


def test_only_part_of_an_oid_changed() -> None:
    """The delta's copies end and begin inside of the entry, as git's do."""
    base = b"".join(usual_tree(20))
    for place in range(0, len(base) - 5, 11):
        check(base, make_delta(base, [(0, place), b"\x99\x98\x97", (place + 3, len(base))]))


def test_entries_moved_repeated_and_dropped() -> None:
    entries = usual_tree(12)
    base = b"".join(entries)
    ends = [0, *entry_ends(base, 20)]
    check(base, make_delta(base, [(ends[6], ends[12]), (ends[0], ends[6])]))
    check(base, make_delta(base, [(ends[3], ends[5]), (ends[3], ends[5]), (ends[1], ends[2])]))
    check(base, make_delta(base, [(ends[2], ends[4] - 3), (ends[4] - 3, ends[7])]))


def test_hidden_entries() -> None:
    """Copies that begin inside of an entry, where its name or oid looks like an entry."""
    inner = entry(b"100644", b"inner", b"\0" * 20)
    disguised = entry(b"100644", b"a 100644 b", inner[:20]) + entry(
        b"40000", b"x", b"100644 y\0" + b"100644 z\0" + b"10"
    )
    base = disguised * 4
    for start in range(len(base)):
        check(base, make_delta(base, [(start, len(base))]))
        check(base, make_delta(base, [(0, start), (start // 2, len(base))]))


@given(st.data())
def test_any_delta(data: st.DataObject) -> None:
    # Bytes that look like modes and ends of names are everywhere.
    modes = st.sampled_from([b"100644", b"40000", b"160000", b"040000", b"4"])
    raw_oids = st.lists(st.sampled_from(list(b"\0 104\xff")), min_size=20, max_size=20).map(bytes)
    names = st.lists(st.sampled_from(list(b" 104\xff")), min_size=1, max_size=6).map(bytes)
    entries = st.builds(entry, modes, names, raw_oids)
    base = b"".join(data.draw(st.lists(entries, min_size=1, max_size=6)))
    ends = [0, *entry_ends(base, 20)]
    places = st.one_of(st.sampled_from(ends), st.integers(0, len(base)))
    copies = st.tuples(places, places).map(lambda pair: (min(pair), max(pair)))
    parts = data.draw(st.lists(st.one_of(copies, entries, st.binary(max_size=4)), max_size=6))
    check(base, make_delta(base, parts))


def test_every_reference_of_a_tree_is_seen_by_iter_tree() -> None:
    base = b"".join(usual_tree(50))
    assert len(list(iter_tree(base, 20))) == len(entry_ends(base, 20)) == 50
