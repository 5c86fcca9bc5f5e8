"""Deltas applied: C, dulwich's Rust and Python say the same of good and bad ones. Deltas made."""

import hashlib
import random
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart import native
from gitsmart.errors import LimitExceeded, PackError
from gitsmart.native import delta as native_delta
from gitsmart.pack import delta as pack_delta
from gitsmart.pack.packstream import entry_head, ref_delta_head


def sized(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def copy(offset: int, size: int) -> bytes:
    code, rest = 0x80, b""
    for bit, byte in enumerate((*offset.to_bytes(4, "little"), *(size & 0xFFFFFF).to_bytes(3, "little"))):
        if byte:
            code |= 1 << bit
            rest += bytes([byte])
    return bytes([code]) + rest


def parts() -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.builds(copy, st.integers(0, 300), st.integers(1, 300)),
        st.binary(min_size=1, max_size=127).map(lambda data: bytes([len(data)]) + data),
        st.binary(max_size=4),
    )


@st.composite
def deltas(draw: st.DrawFn) -> tuple[bytes, bytes]:
    base = draw(st.binary(max_size=300))
    body = b"".join(draw(st.lists(parts(), max_size=8)))
    try:
        made = pack_delta._apply(base, sized(1) * 2 + body, 2, 1 << 20)
        size = draw(st.sampled_from((len(made), len(made), len(made), len(made) + 1, max(0, len(made) - 1))))
    except PackError:
        size = draw(st.integers(0, 600))
    return base, sized(len(base)) + sized(size) + body


def outcome(base: bytes, delta: bytes) -> bytes | None:
    try:
        return pack_delta.apply_delta(base, delta)
    except PackError:
        return None


@pytest.mark.skipif(not native.available, reason=native.missing)
@given(deltas())
def test_as_python_does(case: tuple[bytes, bytes]) -> None:
    base, delta = case
    expected: bytes | None
    _, size, pos = pack_delta.delta_sizes(delta)
    try:
        expected = pack_delta._apply(base, delta, pos, size)
        if len(expected) != size:
            expected = None
    except PackError:
        expected = None
    assert native_delta.apply(base, delta, pos, size) == expected
    try:
        total = sum(part for _, _, part in pack_delta.iter_instructions(delta, pos))
    except PackError:
        total = -1
    assert native_delta.total(delta, pos) == total
    if len(delta) >= 4:
        assert outcome(base, delta) == expected


def test_big_results_are_added_up_before_memory_is_taken(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bytes(1 << 16)
    body = copy(0, 1 << 16) * 40
    good = sized(1 << 16) + sized(40 << 16) + body
    claims = sized(1 << 16) + sized(1 << 50) + body
    for rust in (pack_delta._dulwich, None):
        monkeypatch.setattr(pack_delta, "_dulwich", rust)
        assert pack_delta.apply_delta(base, good) == bytes(40 << 16)
        with pytest.raises(PackError):
            pack_delta.apply_delta(base, claims)
        with pytest.raises(PackError):
            pack_delta.apply_delta(base[1:], good)
        with pytest.raises(LimitExceeded):
            pack_delta.apply_delta(base, good, limit_bytes=40 << 15)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\0", id="reserved"),
        pytest.param(b"\x05abc", id="insert-cut"),
        pytest.param(b"\xff\1\2\3", id="copy-cut"),
        pytest.param(copy(90, 11), id="beyond"),
        pytest.param(copy((1 << 32) - 1, 1), id="far-beyond"),
        pytest.param(copy(0, 100), id="too-long"),
        pytest.param(copy(0, 9), id="too-short"),
        pytest.param(copy(0, 10) + copy(0, 1), id="goes-on"),
        pytest.param(copy(0, 10) + copy(100, 1), id="goes-on-beyond"),
    ],
)
def test_bad_ones_are_refused(native: bool, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    for rust in (pack_delta._dulwich, None):
        monkeypatch.setattr(pack_delta, "_dulwich", rust)
        with pytest.raises(PackError):
            pack_delta.apply_delta(bytes(100), sized(100) + sized(10) + body)


# -- made


@st.composite
def versions(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two byte strings that have more or less in common, repetitions among it."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12))
    number = st.integers(0, len(pieces) - 1)
    times = st.sampled_from((1, 1, 1, 3, 50))

    def content() -> bytes:
        return b"".join(pieces[at] * draw(times) for at in draw(st.lists(number, max_size=20)))

    base, target = content(), content()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(base)))
        target = (
            base[:at] + draw(st.binary(max_size=30)) + base[min(len(base), at + draw(st.integers(0, 50))) :]
        )
    return base, target


@pytest.mark.skipif(not native.available, reason=native.missing)
@given(versions(), st.integers(0, 4000))
def test_what_is_made_gives_the_target(case: tuple[bytes, bytes], limit: int) -> None:
    base, target = case
    made = native_delta.make(base, target, 2 * len(target) + 30)
    assert made is not None
    base_size, size, pos = pack_delta.delta_sizes(made)
    assert (base_size, size) == (len(base), len(target))
    assert pack_delta._apply(base, made, pos, size) == target
    limited = native_delta.make(base, target, limit)
    assert limited == (made if len(made) <= limit else None)


@pytest.mark.skipif(not native.available, reason=native.missing)
def test_versions_make_short_deltas_that_git_takes(git: Any, tmp_path: Path) -> None:
    rng = random.Random(5)
    lines = [b"%d %s\n" % (number, rng.randbytes(20).hex().encode()) for number in range(3000)]
    base = b"".join(lines)
    moved = b"".join(lines[2000:] + lines[:1000] + [b"new\n"] + lines[1000:2000])
    edited = b"".join(line for number, line in enumerate(lines) if number % 300)
    targets = [
        base,
        moved,
        edited,
        b"\0" * 300_000,
        base + base,
        base[:-5],
        b"x" + base,
        b"none of it" * 3,
    ]
    out = struct.pack(">4sII", b"PACK", 2, len(targets))
    out += entry_head(3, len(base)) + zlib.compress(base)
    base_oid = hashlib.sha1(b"blob %d\0%b" % (len(base), base)).digest()
    for number, target in enumerate(targets):
        delta = native_delta.make(base, target, 2 * len(target) + 100)
        assert delta is not None
        assert pack_delta.apply_delta(base, delta) == target
        if number in (0, 1, 4, 5, 6):
            assert len(delta) < 60
        elif number == 2:
            assert len(delta) < 200
        if number:
            out += ref_delta_head(len(delta), base_oid) + zlib.compress(delta)
    out += hashlib.sha1(out).digest()
    repo = tmp_path / "r.git"
    git("init", "-q", "--bare", repo)
    subprocess.run(
        ["git", "index-pack", "--stdin", "--strict"], cwd=repo, input=out, check=True, env=git.environ
    )
    for target in targets:
        oid = hashlib.sha1(b"blob %d\0%b" % (len(target), target)).hexdigest()
        assert git("cat-file", "-s", oid, cwd=repo) == str(len(target))
