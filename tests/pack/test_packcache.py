"""The clone cache: made once, read by all, whoever comes, goes, dies, or runs out of space."""

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gitsmart.errors import PackError
from gitsmart.pack import packcache as module
from gitsmart.pack.cachefile import HEAD_BYTES, CacheFile, Facts
from gitsmart.pack.objects import SHA1
from gitsmart.pack.packcache import Make, PackCache, PackKey, PackSink, PackStream

STEP_S = 20.0
KEY = PackKey(format=SHA1, repository=b"repo", shape=b"plain", wants=frozenset({b"w" * 20}))
OIDS = [bytes([n]) * 20 for n in range(7)]


def pack_of(size: int) -> bytes:
    """A pack as far as the cache looks: a head, any bytes, their checksum."""
    head = b"PACK" + (2).to_bytes(4, "big") + len(OIDS).to_bytes(4, "big")
    body = head + (b"0123456789abcdef" * (size // 16 + 1))[:size]
    return body + hashlib.sha1(body).digest()


class Maker:
    """Makes a pack in pieces; `gate` is called before each, and may raise."""

    def __init__(self, size: int = 5_000_000, gate: Callable[[int], None] = lambda at: None) -> None:
        self.pack = pack_of(size)
        self.gate = gate
        self.calls = 0

    def __call__(self, sink: PackSink) -> Facts:
        self.calls += 1
        sink.tick(3)
        sink.begin(len(OIDS), estimate_bytes=len(self.pack))
        for at in range(0, len(self.pack), 100_000):
            self.gate(at)
            sink.write(memoryview(self.pack)[at : at + 100_000])
        return Facts(
            count=len(OIDS),
            new=len(OIDS),
            names=[b"".join(sorted(OIDS))],
            roots=KEY.wants,
            stats=(7, 1, 2, 3, 4, 5, 6, 7),
        )


def read(stream: PackStream, n: int | None = None) -> bytes:
    """Read to the end, or at least `n` bytes."""
    data = bytearray()
    deadline = time.monotonic() + STEP_S
    while n is None or len(data) < n:
        assert time.monotonic() < deadline, "nothing came"
        piece = stream.read(1 << 16, 0.05)
        if piece is not None:
            if not piece:
                break
            data += piece
    return bytes(data)


@pytest.fixture(name="cache")
def fixture_cache(tmp_path: Path) -> Iterator[PackCache]:
    cache = PackCache(tmp_path / "cache", limit_bytes=100 << 20, repository_bytes=50 << 20)
    yield cache
    settle()
    assert not cache._packs


def open_stream(cache: PackCache, make: Make, key: PackKey = KEY, *, shared: bool = True) -> PackStream:
    return cache.open(key, make, packs=tuple, shared=shared)


def files(cache: PackCache) -> list[str]:
    assert cache.directory is not None
    paths = Path(cache.directory).glob("*/*")
    return sorted(path.suffix for path in paths if path.suffix != ".ok")


def settle() -> None:
    """Wait until nothing is being made any more."""
    deadline = time.monotonic() + STEP_S
    while any(thread.name == "gitsmart-pack" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pack_is_made_once_and_kept(cache: PackCache) -> None:
    maker = Maker()
    for is_hit in (False, True):
        with open_stream(cache, maker) as stream:
            assert read(stream) == maker.pack
            assert (stream.is_hit, stream.count, stream.total_bytes) == (is_hit, 7, len(maker.pack))
            assert stream.stats == (7, 1, 2, 3, 4, 5, 6, 7)
        settle()
    assert maker.calls == 1
    assert files(cache) == [".pack"]
    again = pickle.loads(pickle.dumps(cache))
    assert (again.directory, again.limit_bytes) == (cache.directory, cache.limit_bytes)
    with open_stream(again, maker) as stream:
        assert read(stream) == maker.pack
    assert maker.calls == 1
    base = next(iter(again.bases(KEY)))
    assert base.roots == KEY.wants
    assert base.contains(OIDS[3])
    assert not base.contains(b"x" * 20)


@pytest.mark.parametrize("shared", [True, False], ids=["file", "memory, then file"])
def test_readers_join_late_and_never_wait_for_the_end(cache: PackCache, *, shared: bool) -> None:
    halfway, go_on = threading.Event(), threading.Event()

    def gate(at: int) -> None:
        if at == 2_000_000:
            halfway.set()
            assert go_on.wait(STEP_S)

    maker = Maker(gate=gate)
    got: dict[int, bytes] = {}

    def follow(number: int) -> None:
        with open_stream(cache, maker, shared=shared) as stream:
            first = read(stream, 1_500_000)
            joined.release()
            got[number] = first + read(stream)

    joined = threading.Semaphore(0)
    threads = [threading.Thread(target=follow, args=(number,)) for number in range(48)]
    threads[0].start()
    assert halfway.wait(STEP_S)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert joined.acquire(timeout=STEP_S)  # all have the first half, and none of them the second
    go_on.set()
    for thread in threads:
        thread.join(STEP_S)
    assert len(got) == 48
    assert set(got.values()) == {maker.pack}
    assert maker.calls == 1


def test_the_one_who_asked_first_may_leave(cache: PackCache) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def gate(at: int) -> None:
        if at == 1_000_000:
            begun.set()
            assert go_on.wait(STEP_S)

    maker = Maker(gate=gate)
    with open_stream(cache, maker) as first:
        read(first, 100)
        assert begun.wait(STEP_S)
        second = open_stream(cache, maker)
    go_on.set()
    with second:
        assert read(second) == maker.pack
    assert maker.calls == 1


def test_it_stops_when_nobody_reads(cache: PackCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OUTSIDE_S", 0.0)
    gone = threading.Event()
    maker = Maker(gate=lambda at: None if at < 1_000_000 else void(gone.wait(STEP_S)))
    with open_stream(cache, maker) as stream:
        read(stream, 100)
    gone.set()
    settle()
    assert files(cache) == []
    maker.gate = lambda at: None
    with open_stream(cache, maker) as stream:
        assert read(stream) == maker.pack
    assert maker.calls == 2


def void(_: object) -> None: ...


def test_what_hinders_the_making_hinders_all_readers(cache: PackCache) -> None:
    def gate(at: int) -> None:
        if at >= 1_000_000:
            raise PackError("an object is broken")

    maker = Maker(gate=gate)
    with open_stream(cache, maker) as stream, pytest.raises(PackError, match="broken"):
        read(stream)
    settle()
    assert files(cache) == []


def test_full_disk_ends_the_copy_and_not_the_readers(
    cache: PackCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = CacheFile.append

    def full(self: CacheFile, data: bytes | memoryview) -> None:
        if self.size > 2_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, data)

    monkeypatch.setattr(CacheFile, "append", full)
    joined = threading.Event()
    maker = Maker(20_000_000, gate=lambda at: void(joined.wait(STEP_S)))
    with open_stream(cache, maker) as first, open_stream(cache, maker) as second:
        joined.set()
        start = read(first, 10)
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(read(second)))
        thread.start()
        assert start + read(first) == maker.pack
        thread.join(STEP_S)
        assert got == [maker.pack]
    settle()
    assert files(cache) == []
    assert maker.calls == 1


def test_storage_that_takes_nothing_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = PackCache(tmp_path / "file" / "cache", limit_bytes=100 << 20, repository_bytes=50 << 20)
    for size in (1000, 9_000_000):
        maker = Maker(size)
        key = PackKey(format=SHA1, repository=b"repo", shape=b"%d" % size, wants=frozenset())
        with open_stream(cache, maker, key) as stream:
            assert read(stream) == maker.pack
    settle()
    assert cache.sweep() == 0


@pytest.mark.parametrize("shared", [True, False])
def test_who_stalls_holds_up_nobody_who_comes_later(*, shared: bool) -> None:
    """Without a file no more is held than the slowest reader may lag behind."""
    cache = PackCache(None, limit_bytes=1 << 30, repository_bytes=1 << 30)
    size = 8 << 20

    def make(sink: PackSink) -> Facts:
        sink.begin(1)
        for _ in range(size >> 16):
            sink.write(bytes(1 << 16))
        return Facts(count=1, new=0, names=[], roots=[], stats=(0,) * 8)

    with open_stream(cache, make, shared=shared) as stalled:
        assert stalled.read(1, 10)
        deadline = time.monotonic() + 10
        while cache._packs and time.monotonic() < deadline:
            time.sleep(0.01)
        with open_stream(cache, make, shared=shared) as stream:
            assert len(read(stream)) == size
    settle()


def test_packs_above_the_limit_are_not_kept(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, limit_bytes=3_000_000, repository_bytes=2_000_000)
    maker = Maker()
    with open_stream(cache, maker) as stream:
        assert read(stream) == maker.pack
    settle()
    assert files(cache) == []


def test_small_packs_stay_in_memory(cache: PackCache) -> None:
    maker = Maker(1000)
    for _ in range(2):
        with open_stream(cache, maker, shared=False) as stream:
            assert read(stream) == maker.pack
        settle()
    assert maker.calls == 1
    assert not os.path.exists(cache.directory or "")
    for number in range(20):
        key = PackKey(format=SHA1, repository=b"repo", shape=b"%d" % number, wants=frozenset())
        with open_stream(cache, Maker(900_000), key, shared=False) as stream:
            read(stream)
        settle()
    assert cache._small_bytes <= 8 << 20
    assert sum(pack.size for pack in cache._small.values()) == cache._small_bytes


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, limit_bytes=2_500_000, repository_bytes=2_500_000)
    keys = [PackKey(format=SHA1, repository=b"repo %d" % n, shape=b"", wants=frozenset()) for n in range(4)]
    makers = [Maker(800_000) for _ in keys]
    for number in (0, 1, 2, 0, 3, 0, 2, 3):
        with open_stream(cache, makers[number], keys[number]) as stream:
            assert read(stream) == makers[number].pack
        settle()
    assert [maker.calls for maker in makers] == [1, 1, 1, 1]
    assert len(files(cache)) == 3
    with open_stream(cache, makers[1], keys[1]) as stream:
        read(stream)
    settle()
    assert makers[1].calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:HEAD_BYTES] + b"X" + data[HEAD_BYTES + 1 :],
        lambda data: data[:70] + b"\xff" + data[71:],
        lambda data: data[:-40] + b"X" + data[-39:],
        lambda data: data[:1_000_000],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data + b"more",
    ],
    ids=["data", "head", "footer", "cut", "cut in the head", "empty", "longer"],
)
def test_a_damaged_file_is_never_served(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker()
    with open_stream(PackCache(tmp_path, limit_bytes=1 << 30, repository_bytes=1 << 30), maker) as stream:
        read(stream)
    settle()
    (path,) = tmp_path.glob("*/*.pack")
    before = path.stat()
    path.write_bytes(damage(path.read_bytes()))
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    later = PackCache(tmp_path, limit_bytes=1 << 30, repository_bytes=1 << 30)
    with open_stream(later, maker) as stream:
        assert read(stream) == maker.pack
        assert not stream.is_hit
    settle()
    assert maker.calls == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()


def test_a_file_is_checked_once_after_a_start_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[bool] = []
    check = CacheFile.check_pack

    def checking(self: CacheFile, base: object) -> bool:
        checks.append(True)
        return check(self, None)

    monkeypatch.setattr(CacheFile, "check_pack", checking)
    maker = Maker()

    def clone() -> int:
        with open_stream(PackCache(tmp_path, limit_bytes=1 << 30, repository_bytes=1 << 30), maker) as stream:
            assert read(stream) == maker.pack
        settle()
        return len(checks)

    assert [clone(), clone()] == [0, 0]
    (ok,) = tmp_path.glob("*/*.ok")
    ok.write_bytes(b"of another start" + ok.read_bytes())
    assert [clone(), clone()] == [1, 1]
    assert maker.calls == 1


OTHER = """
import sys, time
from pathlib import Path
from gitsmart.pack.packcache import PackCache
from tests.pack.test_packcache import KEY, Maker, open_stream, read, settle
def gate(at):
    if at == 3_000_000:
        print("halfway", flush=True)
        if sys.stdin.readline() == "":
            time.sleep(60)
cache = PackCache(Path(sys.argv[1]), limit_bytes=100 << 20, repository_bytes=50 << 20)
maker = Maker(gate=gate)
with open_stream(cache, maker) as stream:
    assert read(stream) == maker.pack
settle()  # the file is in place
print(maker.calls, flush=True)
"""


@pytest.fixture(name="other")
def fixture_other(cache: PackCache) -> Iterator[subprocess.Popen[str]]:
    """Another process that has made half of the pack, and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(cache.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        yield process
        process.kill()


def test_processes_share_what_is_being_made(cache: PackCache, other: subprocess.Popen[str]) -> None:
    maker = Maker()
    with open_stream(cache, maker) as stream:
        start = read(stream, 2_500_000)
        assert cache.sweep() == 0  # nothing that is in use
        out, _ = other.communicate("go on\n", STEP_S)
        assert start + read(stream) == maker.pack
    assert out == "1\n"
    assert maker.calls == 0
    with open_stream(cache, maker) as stream:
        assert read(stream) == maker.pack
        assert stream.is_hit
    assert maker.calls == 0


def test_a_process_that_dies_is_stood_in_for(cache: PackCache, other: subprocess.Popen[str]) -> None:
    maker = Maker()
    with open_stream(cache, maker) as stream, open_stream(cache, maker) as idle:
        start = read(stream, 2_500_000)
        other.kill()
        other.wait()
        assert start + read(stream) == maker.pack
        assert read(idle) == maker.pack
    assert maker.calls == 1
    settle()
    assert set(files(cache)) <= {".pack", ".wait"}


def test_what_cannot_be_gone_on_with_is_never_finished(
    cache: PackCache, other: subprocess.Popen[str]
) -> None:
    maker = Maker(size=4_999_999)
    maker.pack = maker.pack[:500_000] + b"X" + maker.pack[500_001:]
    with open_stream(cache, maker) as stream:
        read(stream, 2_500_000)
        other.kill()
        other.wait()
        with pytest.raises(PackError, match="as it was"):
            read(stream)


def test_sweep_removes_what_killed_processes_left(cache: PackCache, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert files(cache) == [".part"]
    stray = Path(cache.directory or "") / "notes.txt"
    stray.write_text("not ours")
    assert cache.sweep() == 1
    assert files(cache) == []
    assert stray.exists()
