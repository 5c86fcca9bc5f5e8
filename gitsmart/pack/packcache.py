"""The clone cache: a pack is made once, and streamed to all who ask for it, now and later.

    request -> key -> complete file?          -> PackStream over it
                      being made, here?       -> PackStream joins it, from its first byte on
                      being made, elsewhere?  -> PackStream follows the file that another process writes
                      else                    -> a thread makes it; PackStream joins that

    make(sink): sink.begin(count, base) -> sink.write(pack stream) -> file (cachefile.py), or memory

The key is everything that decides which objects a pack holds and how they may be written, so an entry can't
be stale: what a commit reaches never changes. Who may ask for what is decided before anybody comes here.

A pack is made in a thread of its own, paced by no reader while there is room on the disk. Readers come and
go; when the last has left (in other processes too) the work stops. When the process that makes it dies, its
readers elsewhere make it anew, and compare what they have sent already. When the disk is full, read-only, or
the pack larger than allowed, the bytes pass through memory instead, at the pace of the slowest reader, and
nothing is kept.

Small packs that only this process is likely to be asked for again (`shared=False`) stay in memory.

Processes meet in the directory alone: flock(2) on a growing file says that somebody makes it, on `.wait`
beside it that somebody in another process reads it. So the directory has to be on a local file system.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from gitsmart.errors import Disconnected, GitsmartError, PackError
from gitsmart.pack.cachefile import (
    BASE_CACHED,
    BASE_NONE,
    BASE_PACK,
    PACK_HEAD_BYTES,
    Base,
    Body,
    CacheFile,
    Facts,
    PackBody,
    State,
)
from gitsmart.pack.objects import ObjectFormat
from gitsmart.pack.packfile import PackFile

__all__ = ["PackCache", "PackKey", "PackSink", "PackStream"]

_logger = logging.getLogger(__name__)

_SPOOL_BYTES: Final = 1 << 20
"""Packs that are not shared are kept in memory up to this size."""
_SMALL_BYTES: Final = 8 << 20
"""... and all of them together up to this one."""
_WINDOW_BYTES: Final = 2 << 20
"""What is held for slow readers when there is no file."""
_FOLLOW_S: Final = 0.01
"""Between two looks at a file that another process writes."""
_OUTSIDE_S: Final = 1.0
"""Between two looks whether other processes still read what is made here."""
_CANDIDATES: Final = 4
"""Packs that are looked at for one to build on: the latest."""
_RECHECKED: Final = 10_000
_ATTEMPTS: Final = 3

_FILE_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.(pack|part|wait|ok)")
_DIRECTORY_NAME = re.compile(r"[0-9a-f]{32}")


class _Abandoned(Disconnected):
    """Nobody reads what is being made."""


@dataclass(frozen=True)
class PackKey:
    """What decides a pack's bytes."""

    format: ObjectFormat
    repository: bytes
    """Which repository it is."""
    shape: bytes
    """All but the wants, as one string of bytes: haves, filter, boundaries, capabilities."""
    wants: frozenset[bytes]
    """Raw oids."""
    tags: frozenset[bytes] = frozenset()
    """Raw oids of the tags that go along if what they name is sent ("include-tag"), wants left out."""

    @cached_property
    def shape_digest(self) -> str:
        """A name for the shape."""
        return hashlib.sha256(self.format.name + b"\0" + self.shape).hexdigest()[:16]

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for all of it."""
        digest = hashlib.sha256()
        wants, tags = b"".join(sorted(self.wants)), b"".join(sorted(self.tags))
        for part in (self.format.name, self.repository, self.shape, wants, tags):
            digest.update(struct.pack(">Q", len(part)))
            digest.update(part)
        return digest.digest()

    @cached_property
    def directory(self) -> str:
        """The name of the repository's directory in the cache."""
        return hashlib.sha256(self.repository).hexdigest()[:32]


Make = Callable[["PackSink"], Facts]
"""Makes a pack: calls `begin` and `write`, and returns what it is. In a thread of its own."""


class _Pack:
    """One pack, complete or growing, as its readers see it. What changes is guarded by `changed`."""

    def __init__(self, key: PackKey) -> None:
        self.key = key
        self.changed = threading.Condition()
        self.found = 0
        """Objects found so far, before `head` is known."""
        self.head = b""
        """The pack's own head; b"" as long as nothing can be sent."""
        self.base: Base | None = None
        self.known_total: int | None = None
        """Bytes of the whole pack, when that is known before they are there."""
        self.size = 0
        """Bytes of data (see cachefile.py) there are."""
        self.is_complete = False
        self.error: BaseException | None = None
        self.stats: tuple[int, ...] | None = None
        self.file: CacheFile | None = None
        self.file_bytes = 0
        """The part of data that is in the file; what is behind it is in `pieces`."""
        self.pieces: deque[bytes] = deque()
        self.pieces_at = 0
        """Where in data `pieces` start; beyond `file_bytes` when some were dropped."""
        self.readers: set[PackStream] = set()
        self.is_gone = False
        """Nobody makes it any more, and it isn't complete: the process that did has died."""
        self.is_followed = False
        """Another process makes it."""
        self.waiting: _Descriptor | None = None
        self.next_look = 0.0

    @property
    def base_bytes(self) -> int:
        return 0 if self.base is None else self.base.body.size

    @property
    def total(self) -> int | None:
        """Bytes of the whole pack, once all of them are there."""
        return PACK_HEAD_BYTES + self.base_bytes + self.size if self.is_complete else None

    def has_start(self) -> bool:
        """Whether a reader can still begin."""
        return self.pieces_at <= self.file_bytes

    def view(self, at: int, n: int) -> memoryview | None:
        """Return 1 to `n` of the pack's bytes from `at` on; None when there are none yet, or no more."""
        if at < PACK_HEAD_BYTES:
            return memoryview(self.head)[at:] if self.head else None
        at -= PACK_HEAD_BYTES
        if self.base is not None:
            if at < self.base.body.size:
                return self.base.body.view(at, n)
            at -= self.base.body.size
        with self.changed:
            if at >= self.size:
                return None
            if at >= self.file_bytes:
                return self._piece(at, n)
            n = min(n, self.file_bytes - at)
            file = self.file
        assert file is not None
        return file.view(at, n)

    def _piece(self, at: int, n: int) -> memoryview:
        start = self.pieces_at
        for piece in self.pieces:
            if at < start + len(piece):
                return memoryview(piece)[at - start : at - start + n]
            start += len(piece)
        raise AssertionError("a reader is behind what is held")

    def let_go(self) -> None:
        """Close the file: there is no reader, and won't be. Errors hold on to what they came through."""
        self.file, self.base, self.waiting = None, None, None

    def slowest(self) -> int:
        """Where in data the reader is that has got the least; under the lock."""
        start = PACK_HEAD_BYTES + self.base_bytes
        return min((max(0, reader.at - start) for reader in self.readers), default=self.size)


class PackSink:
    """Where a pack goes while it is made."""

    def __init__(self, cache: "PackCache", pack: _Pack) -> None:
        self._cache = cache
        self._pack = pack
        self._key = pack.key
        self._shared = pack.file is not None
        self._spooling = not self._shared
        self._is_filing = self._shared
        """There is a file, and it takes what comes."""
        self._is_paced = False
        """Without: only as much is held as the slowest reader may lag behind."""
        self._skip = PACK_HEAD_BYTES
        self._held = b""
        self._digest = None if pack.base is None else self._key.format.new_hash()
        self._checksum = b""
        """Of a pack that goes out just as it is."""
        self._progress_at = 0.0
        self._outside_at = time.monotonic() + _OUTSIDE_S

    def bases(self) -> Iterator[Base]:
        """Give packs of the cache that one of this shape may be built on, the latest first."""
        yield from self._cache.bases(self._key)

    def tick(self, number: int) -> None:
        """Tell how many objects were found so far.

        Raises:
            Disconnected: nobody reads any more.
        """
        pack = self._pack
        now = time.monotonic()
        if not pack.head and now - self._progress_at > 0.1:
            self._progress_at = now
            with pack.changed:
                pack.found = number
                pack.changed.notify_all()
            if pack.file is not None:
                pack.file.note_progress(number)
        self.check()

    def check(self) -> None:
        """Raise `Disconnected` if nobody reads any more."""
        pack = self._pack
        if pack.readers:
            return
        now = time.monotonic()
        if now >= self._outside_at and self._cache.abandon(pack):
            raise _Abandoned("nobody reads the pack")
        self._outside_at = max(self._outside_at, now + _OUTSIDE_S / 10)

    def begin(
        self,
        count: int,
        base: Base | None = None,
        *,
        estimate_bytes: int = 0,
        stats: tuple[int, ...] | None = None,
    ) -> None:
        """Say how many objects the pack has; readers begin.

        Args:
            base: what it is built on: `write` gets a pack of the others, the objects of both are counted.
            estimate_bytes: about how large data will be.
            stats: see `Facts`; when there are no others, and nothing will be written.
        """
        pack = self._pack
        head = struct.pack(">4sII", b"PACK", 2, count)
        if pack.file is not None:
            try:
                if estimate_bytes > self._cache.entry_limit_bytes:
                    self._drop_file()
                else:
                    pack.file.begin(head, base)
            except OSError as error:
                self._drop_file(error)
        body = None if base is None or base.count != count else base.body
        if isinstance(body, PackBody) and body.head == head:
            self._checksum = body.pack.checksum
        with pack.changed:
            pack.head, pack.base = head, base
            if stats is not None and base is not None:
                pack.known_total = PACK_HEAD_BYTES + base.body.size + self._key.format.raw_len
                pack.stats = stats
            pack.changed.notify_all()
        if base is None or self._checksum:
            return
        # The others read the base while its part of the checksum is computed.
        digest = self._digest = self._key.format.new_hash()
        digest.update(head)
        at = 0
        while at < base.body.size:
            piece = base.body.view(at, 1 << 20)
            digest.update(piece)
            at += len(piece)
            self.check()

    def write(self, data: bytes | memoryview) -> None:
        """Add to the pack stream that was begun, which starts with a head of its own.

        Raises:
            Disconnected: nobody reads any more.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._checksum:
            return
        if self._digest is not None:  # the last bytes are a checksum that is replaced
            raw_len = self._key.format.raw_len
            joined = self._held + bytes(data)
            data, self._held = joined[:-raw_len], joined[-raw_len:]
            self._digest.update(data)
        if data:
            self._add(data)
        self.check()

    def end(self) -> None:
        """All was written."""
        if self._checksum:
            self._add(self._checksum)
        elif self._digest is not None:
            self._add(self._digest.digest())

    def _add(self, data: bytes | memoryview) -> None:
        pack = self._pack
        if self._spooling and pack.size + len(data) > _SPOOL_BYTES:
            self._spooling = False
            self._is_filing = self._cache.spill(pack)
        file = pack.file
        if file is not None and self._is_filing:
            try:
                if file.size + len(data) > self._cache.entry_limit_bytes:
                    raise OSError("the pack is larger than the cache allows")
                file.append(data)
            except OSError as error:
                self._drop_file(error)
            else:
                with pack.changed:
                    pack.size = pack.file_bytes = file.size
                    pack.pieces_at = pack.size
                    pack.changed.notify_all()
                return
        if not self._spooling and not self._is_paced:
            self._is_paced = True
            self._cache.unlist(pack)  # whoever comes now would wait for those who read slowly
        with pack.changed:
            pack.pieces.append(bytes(data))
            pack.size += len(data)
            pack.changed.notify_all()
        while not self._spooling:
            with pack.changed:
                slowest = pack.slowest()
                while pack.pieces and pack.pieces_at + len(pack.pieces[0]) <= slowest:
                    pack.pieces_at += len(pack.pieces.popleft())
                if pack.size - slowest <= _WINDOW_BYTES:
                    return
                pack.changed.wait(0.2)
            self.check()

    def _drop_file(self, error: OSError | None = None) -> None:
        """Go on without the file; what is in it stays readable for those who have it open."""
        pack = self._pack
        if error is not None:
            _logger.info("the clone cache keeps no copy of a pack: %s", error.strerror or error)
        file = pack.file
        assert file is not None
        file.give_up()
        self._is_filing = False
        with pack.changed:
            if not pack.file_bytes:
                pack.file = None
        self._cache.unlist(pack)


class PackStream:
    """One reader of a pack: use it as a context manager, in one thread."""

    def __init__(self, cache: "PackCache", pack: _Pack, make: Make, packs: Callable[[], Iterable[PackFile]]):
        self._cache = cache
        self._pack = pack
        self._make = make
        self._packs = packs
        self.at = 0
        """How many bytes were read."""
        self.is_hit = False
        """The pack was there already, or somebody else is making it."""
        self._old: _Pack | None = None  # what was read to `_resume_at`, before its maker died
        self._resume_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cache.leave(self, self._pack)
        if self._old is not None:
            self._cache.leave(self, self._old)

    @property
    def found(self) -> int:
        """Objects found so far."""
        return self._pack.found

    @property
    def count(self) -> int | None:
        """Objects in the pack; None as long as it isn't known."""
        head = self._pack.head
        return struct.unpack_from(">I", head, 8)[0] if head and self._old is None else None

    @property
    def total_bytes(self) -> int | None:
        """Size of the pack; None as long as it isn't known. With it, `stats` are known."""
        pack = self._pack
        total = pack.total if pack.known_total is None else pack.known_total
        return total if self._old is None and pack.stats is not None else None

    @property
    def stats(self) -> tuple[int, ...] | None:
        """Of the pack, once it was read to its end, as far as they are known; see `Facts`."""
        return self._pack.stats

    def wait_begun(self, timeout_s: float) -> bool:
        """Wait for the first byte, or for the time-out; whether there is one.

        Raises: as `read`.
        """
        return self._wait(lambda: bool(self._pack.head), timeout_s) and self._old is None

    def read(self, n: int, timeout_s: float) -> memoryview | None:
        """Return 1 to `n` bytes; b"" at the end, None when there were none in time.

        Raises:
            GitsmartError, OSError: whatever hindered the making.
        """
        if self._old is not None and not self._catch_up(timeout_s):
            return None
        view = self._pack.view(self.at, n)
        if view is None:
            if not self._wait(lambda: self._pack.total == self.at or self._has_more(), timeout_s):
                return None
            if self._pack.total == self.at:
                return memoryview(b"")
            view = self._pack.view(self.at, n)
        if view is not None:
            self._advance(len(view))
        return view

    def _has_more(self) -> bool:
        pack = self._pack
        return bool(pack.head) and self.at < PACK_HEAD_BYTES + pack.base_bytes + pack.size

    def _advance(self, n: int) -> None:
        self.at += n
        pack = self._pack
        if pack.pieces:
            with pack.changed:
                pack.changed.notify_all()

    def _wait(self, is_ready: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        pack = self._pack
        while True:
            if pack.is_followed:
                self._cache.follow(pack, self._packs)
                if pack.is_gone:
                    self._take_over()
                    return False
            with pack.changed:
                if is_ready():
                    return True
                if pack.error is not None:
                    raise pack.error
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                pack.changed.wait(min(left, _FOLLOW_S) if pack.is_followed else left)

    def _take_over(self) -> None:
        """Have the pack made anew; what was read must be its beginning."""
        old = self._pack
        if self._old is None and self.at:
            self._old, self._resume_at = old, self.at
        else:
            self._cache.leave(self, old)
        self.at = 0
        self._pack = self._cache.join(self, old.key, self._make, self._packs, shared=True)

    def _catch_up(self, timeout_s: float) -> bool:
        """Compare with what was read before; whether that is done."""
        while self._old is not None:
            before = self._old.view(self.at, min(1 << 20, self._resume_at - self.at))
            if before is None:
                raise PackError("a pack can't be gone on with")
            now = self._pack.view(self.at, len(before))
            if now is None:
                at = self.at
                if not self._wait(self._has_more, timeout_s) or self.at != at:
                    return False
                continue
            if now != before[: len(now)]:
                raise PackError("a pack that was begun can't be made again as it was")
            self._advance(len(now))
            if self.at == self._resume_at:
                self._cache.leave(self, self._old)
                self._old = None
        return True


class PackCache:
    """All packs that are kept, in one directory. Thread-safe; one for each directory in a process: `at`.

    Never raises because of its storage: what can't be kept is sent without.
    """

    _known: "dict[tuple[str, int, int], PackCache]" = {}  # noqa: RUF012  # one for the process, on purpose
    _known_lock = threading.Lock()

    def __init__(self, directory: Path | None, *, limit_bytes: int, repository_bytes: int) -> None:
        """
        Args:
            directory: made when it isn't there; None: share what is being made, but keep nothing on disk.
            limit_bytes: of all files together.
            repository_bytes: of the files of one repository.
        """
        self.directory = None if directory is None else os.path.abspath(directory)
        self.limit_bytes = limit_bytes
        self.repository_bytes = min(repository_bytes, limit_bytes)
        self.entry_limit_bytes = self.repository_bytes
        self._lock = threading.Lock()
        self._packs: dict[bytes, _Pack] = {}  # what is being made or followed, and what is being read
        self._small: OrderedDict[bytes, _Pack] = OrderedDict()
        self._small_bytes = 0
        self._checked: dict[bytes, tuple[int, int, int, int]] = {}

    @classmethod
    def at(cls, directory: Path | None, *, limit_bytes: int, repository_bytes: int) -> "PackCache":
        """Return this process's cache in `directory`, the same one each time."""
        key = ("" if directory is None else os.path.abspath(directory), limit_bytes, repository_bytes)
        with cls._known_lock:
            if key not in cls._known:
                cls._known[key] = cls(directory, limit_bytes=limit_bytes, repository_bytes=repository_bytes)
            return cls._known[key]

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.directory, self.limit_bytes, self.repository_bytes)

    # -- readers

    def open(
        self, key: PackKey, make: Make, *, packs: Callable[[], Iterable[PackFile]], shared: bool
    ) -> PackStream:
        """Join whoever makes the pack of `key`, or make it.

        Args:
            make: makes it; called in a thread of its own, if at all.
            packs: the repository's, on which cached ones may be built.
            shared: it is worth a file, and to be looked for in other processes.
        """
        pack = _Pack(key)
        stream = PackStream(self, pack, make, packs)
        stream._pack = self.join(stream, key, make, packs, shared=shared)
        return stream

    def has(self, key: PackKey) -> bool:
        """Whether the pack of `key` is there, or being made somewhere: to open it is little work."""
        digest = key.digest
        with self._lock:
            if digest in self._packs or digest in self._small:
                return True
        return self.directory is not None and any(
            os.path.exists(self._path(key, digest, suffix)) for suffix in ("pack", "part")
        )

    def join(
        self,
        stream: PackStream,
        key: PackKey,
        make: Make,
        packs: Callable[[], Iterable[PackFile]],
        *,
        shared: bool,
    ) -> _Pack:
        """Find the pack of `key`, or begin to make it, with `stream` as one of its readers."""
        digest = key.digest
        stream.is_hit = True
        with self._lock:
            pack = self._packs.get(digest) or self._small.get(digest)
            if pack is not None and pack.error is None and not pack.is_gone and pack.has_start():
                pack.readers.add(stream)
                if digest in self._small:
                    self._small.move_to_end(digest)
                return pack
        for attempt in range(_ATTEMPTS):
            # Looked for without the lock, since that reads from the disk: two may do so at once.
            found = self._open_complete(key, digest, packs) if self.directory is not None else None
            with self._lock:
                pack = self._packs.get(digest)
                if pack is not None and pack.error is None and not pack.is_gone and pack.has_start():
                    pack.readers.add(stream)
                    return pack
                if found is not None:
                    found.readers.add(stream)
                    self._packs[digest] = found
                    return found
                pack = _Pack(key)
                if shared and not self._open_growing(pack, digest) and attempt + 1 < _ATTEMPTS:
                    continue
                pack.readers.add(stream)
                self._packs[digest] = pack
                break
        assert pack is not None
        if not pack.is_followed:
            stream.is_hit = False
            threading.Thread(target=self._run, args=(pack, make), name="gitsmart-pack", daemon=True).start()
        return pack

    def leave(self, stream: PackStream, pack: _Pack) -> None:
        """Take a reader off a pack."""
        with self._lock:
            pack.readers.discard(stream)
            digest = pack.key.digest
            if not pack.readers and (pack.is_complete or pack.is_followed or pack.error is not None):
                self._unlist(digest, pack)
                if digest not in self._small:
                    pack.let_go()
        with pack.changed:
            pack.changed.notify_all()

    def _unlist(self, digest: bytes, pack: _Pack) -> None:
        if self._packs.get(digest) is pack:
            del self._packs[digest]

    def unlist(self, pack: _Pack) -> None:
        """Let nobody else join a pack."""
        with self._lock:
            self._unlist(pack.key.digest, pack)

    # -- making

    def _run(self, pack: _Pack, make: Make) -> None:
        sink = PackSink(self, pack)
        try:
            facts = make(sink)
            sink.end()
            self._completed(pack, facts)
        except BaseException as error:
            if pack.file is not None:
                pack.file.give_up()
            self.unlist(pack)
            with pack.changed:
                pack.error = error
                pack.changed.notify_all()
            with self._lock:
                if not pack.readers:
                    pack.let_go()
            if not isinstance(error, GitsmartError | OSError):
                _logger.exception("a pack can't be made")

    def _completed(self, pack: _Pack, facts: Facts) -> None:
        digest = pack.key.digest
        file = pack.file
        is_whole = file is not None and not pack.pieces and pack.file_bytes == pack.size
        with pack.changed:
            pack.stats = facts.stats
            pack.is_complete = True
            pack.changed.notify_all()
        if file is not None and is_whole:
            try:
                path = self._path(pack.key, digest, "pack")
                file.complete(facts, path)
                self._note_checked(digest, file)
                self._remove_wait(pack.key, digest)
            except OSError as error:
                _logger.info("the clone cache keeps no copy of a pack: %s", error.strerror or error)
                file.give_up()
            else:
                self.evict(pack.key)
        with self._lock:
            is_small = file is None and not pack.pieces_at and pack.size <= _SPOOL_BYTES
            if is_small and pack.base is None and digest not in self._small:
                self._small[digest] = pack
                self._small_bytes += pack.size
                while self._small_bytes > _SMALL_BYTES:
                    self._small_bytes -= self._small.popitem(last=False)[1].size
            if not pack.readers:
                self._unlist(digest, pack)
                if not is_small:
                    pack.let_go()

    def abandon(self, pack: _Pack) -> bool:
        """Stop making a pack that nobody reads; False when somebody does."""
        with self._lock:
            if pack.readers:
                return False
            digest = pack.key.digest
            if pack.file is not None and self._is_followed_outside(pack.key, digest):
                return False
            self._unlist(digest, pack)
            return True

    def spill(self, pack: _Pack) -> bool:
        """Move a pack that outgrew memory to a file, if that can be; whether it was."""
        digest = pack.key.digest
        if self.directory is None:
            return False
        with self._lock:
            file = self._create(pack.key, digest)
        if file is None:
            return False  # or another process makes the same one: this one goes on by itself
        pack.file = file
        try:
            file.begin(pack.head, pack.base)
            for piece in pack.pieces:
                file.append(piece)
        except OSError as error:
            _logger.info("the clone cache keeps no copy of a pack: %s", error.strerror or error)
            file.give_up()
            with pack.changed:
                pack.file = None
            return False
        with pack.changed:
            pack.pieces.clear()
            pack.pieces_at = pack.file_bytes = pack.size
        return True

    # -- files

    def _path(self, key: PackKey, digest: bytes, suffix: str) -> str:
        assert self.directory is not None
        name = f"{key.shape_digest}-{digest.hex()[:32]}.{suffix}"
        return os.path.join(self.directory, key.directory, name)

    def _open_complete(
        self, key: PackKey, digest: bytes, packs: Callable[[], Iterable[PackFile]]
    ) -> _Pack | None:
        path = self._path(key, digest, "pack")
        try:
            file = CacheFile.open_complete(path, digest, key.format)
        except OSError:
            return None  # not there, or not to be had
        except PackError as error:
            self._discard(path, error)
            return None
        base = self._base_of(key, file, packs)
        if base is None and file.base_kind != BASE_NONE:
            with contextlib.suppress(OSError):
                os.unlink(path)  # what it was built on is gone
            return None
        try:
            self._check(digest, file, None if base is None else base.body)
        except PackError as error:
            self._discard(path, error)
            return None
        file.touch()
        pack = _Pack(key)
        pack.head, pack.base, pack.file = file.pack_head, base, file
        pack.size = pack.file_bytes = pack.pieces_at = file.size
        pack.stats, pack.is_complete = file.stats, True
        return pack

    def _check(self, digest: bytes, file: CacheFile, base: Body | None) -> None:
        """Compute the checksum of a whole pack, unless some process has since the machine was started.

        Raises:
            PackError: it is wrong.
        """
        identity = file.identity()
        if self._checked.get(digest) == identity or file.is_all_of(base):
            return
        mark = _mark(identity)
        if mark is None or _read(_ok_path(file.path)) != mark:
            if not file.check_pack(base):
                raise PackError("a pack in the clone cache has the wrong checksum")
            self._note_checked(digest, file)
        self._checked[digest] = identity

    def _note_checked(self, digest: bytes, file: CacheFile) -> None:
        if len(self._checked) >= _RECHECKED:
            self._checked.clear()
        identity = self._checked[digest] = file.identity()
        mark = _mark(identity)
        if mark is not None:
            with contextlib.suppress(OSError), open(_ok_path(file.path), "wb") as ok:
                ok.write(mark)

    def _discard(self, path: str, error: Exception) -> None:
        _logger.warning("dropped a file from the clone cache: %s", error)
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _base_of(self, key: PackKey, file: CacheFile, packs: Callable[[], Iterable[PackFile]]) -> Base | None:
        """Find what a file is built on; None when that is nothing, or gone."""
        body: Body | None = None
        if file.base_kind == BASE_PACK:
            for pack in packs():
                if pack.checksum.ljust(32, b"\0") == file.base_id:
                    body = PackBody(pack)
                    break
        elif file.base_kind == BASE_CACHED:
            found = self._open_base(key, file.base_id)
            body = None if found is None else found.body
        if body is None or body.size != file.base_bytes:
            return None
        return Base(
            kind=file.base_kind,
            id=file.base_id,
            body=body,
            count=0,
            roots=frozenset(),
            contains=lambda _: False,
        )

    def _open_base(self, key: PackKey, digest: bytes) -> Base | None:
        path = self._path(key, digest, "pack")
        try:
            file = CacheFile.open_complete(path, digest, key.format)
            if file.base_kind != BASE_NONE:
                return None
            self._check(digest, file, None)
        except OSError:
            return None
        except PackError as error:
            self._discard(path, error)
            return None
        file.touch()
        return Base(
            kind=BASE_CACHED,
            id=digest,
            body=_DataBody(file),
            count=file.count,
            roots=file.roots,
            contains=file.contains,
        )

    def bases(self, key: PackKey) -> Iterator[Base]:
        """Give complete packs of the same repository and shape, the latest first."""
        if self.directory is None:
            return
        folder = os.path.join(self.directory, key.directory)
        prefix = key.shape_digest + "-"
        found: list[tuple[int, str]] = []
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(prefix) and entry.name.endswith(".pack"):
                    with contextlib.suppress(OSError):
                        found.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(found, reverse=True)[: 4 * _CANDIDATES]:
            try:
                with open(path, "rb") as file:
                    digest = file.read(64)[32:]
            except OSError:
                continue
            base = self._open_base(key, digest) if len(digest) == 32 else None
            if base is not None:
                yield base

    def _create(self, key: PackKey, digest: bytes) -> CacheFile | None:
        """Begin a file; None when another process has, or it can't be."""
        path = self._path(key, digest, "part")
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return CacheFile.create(path, digest, key.format)
        except OSError as error:
            _logger.info("the clone cache keeps no copy of a pack: %s", error.strerror or error)
            return None

    def _open_growing(self, pack: _Pack, digest: bytes) -> bool:
        """Begin a file for a pack, or follow the one that another process has begun; under the lock.

        Returns False when the pack was completed just now.
        """
        if self.directory is None:
            return True
        pack.file = self._create(pack.key, digest)
        if pack.file is not None:
            if not os.path.exists(self._path(pack.key, digest, "pack")):
                return True
            pack.file.give_up()
            pack.file = None
            return False
        path = self._path(pack.key, digest, "part")
        try:
            pack.file = CacheFile.follow(path, pack.key.format)
        except OSError:
            return not os.path.exists(self._path(pack.key, digest, "pack"))
        try:
            self._announce(pack.key, digest, pack)
        except OSError:
            pack.file = None
            return True
        pack.is_followed = True
        return True

    # -- following another process

    def _announce(self, key: PackKey, digest: bytes, pack: _Pack) -> None:
        """Tell the process that makes it that it is read here too, as long as the pack is held."""
        fd = os.open(self._path(key, digest, "wait"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        pack.waiting = _Descriptor(fd)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _is_followed_outside(self, key: PackKey, digest: bytes) -> bool:
        path = self._path(key, digest, "wait")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def _remove_wait(self, key: PackKey, digest: bytes) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(key, digest, "wait"))

    def follow(self, pack: _Pack, packs: Callable[[], Iterable[PackFile]]) -> None:
        """Look at what another process has written meanwhile."""
        file = pack.file
        assert file is not None
        with pack.changed:
            now = time.monotonic()
            if now < pack.next_look or pack.is_complete or pack.is_gone:
                return
            pack.next_look = now + _FOLLOW_S / 2
        state, found = State.GIVEN_UP, 0
        with contextlib.suppress(OSError, PackError):
            is_gone = file.is_abandoned()
            state, found = file.look()
            if is_gone and state != State.COMPLETE:
                state = State.GIVEN_UP
        base = pack.base
        if state in (State.SENDING, State.COMPLETE) and base is None and file.base_kind != BASE_NONE:
            base = self._base_of(pack.key, file, packs)
            if base is None:
                state = State.GIVEN_UP
        with pack.changed:
            if state == State.GIVEN_UP:
                pack.is_gone = True
            else:
                pack.found = max(pack.found, found)
                if state != State.SELECTING:
                    pack.base, pack.head = base, file.pack_head
                    pack.size = pack.file_bytes = pack.pieces_at = file.size
                if state == State.COMPLETE:
                    pack.is_complete = True
            pack.changed.notify_all()
        if state == State.GIVEN_UP:
            self.unlist(pack)

    # -- keeping within the limits

    def evict(self, key: PackKey | None = None) -> int:
        """Remove the files that were not used for the longest time, until the limits hold; bytes removed.

        One process at a time does so; another one's attempt comes to nothing meanwhile.
        """
        if self.directory is None:
            return 0
        removed = 0
        try:
            fd = os.open(os.path.join(self.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return 0
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folders = {}
            for folder in self._folders():
                folders[folder] = sorted(_files(folder))
                if key is None or os.path.basename(folder) == key.directory:
                    removed += _shrink(folders[folder], self.repository_bytes)
            everything = sorted(entry for entries in folders.values() for entry in entries)
            removed += _shrink(everything, self.limit_bytes)
        except OSError:
            pass
        finally:
            os.close(fd)
        return removed

    def _folders(self) -> list[str]:
        assert self.directory is not None
        found: list[str] = []
        with contextlib.suppress(OSError), os.scandir(self.directory) as entries:
            found += [
                entry.path
                for entry in entries
                if _DIRECTORY_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
        return found

    def sweep(self) -> int:
        """Remove what killed processes left, and what is above the limits; how many files went.

        Nothing but files of the cache's own names is ever touched.
        """
        count = 0
        for folder in self._folders() if self.directory is not None else ():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in list(entries):
                    if not _FILE_NAME.fullmatch(entry.name) or entry.name.endswith(".pack"):
                        continue
                    if entry.name.endswith(".ok") and os.path.exists(entry.path[:-2] + "pack"):
                        continue
                    count += _remove_unlocked(entry.path)
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # when it is empty
        self.evict()
        return count


class _DataBody:
    """What is in a complete file, without the checksum at its end."""

    def __init__(self, file: CacheFile) -> None:
        self._file = file
        self.size = file.data_bytes - file.format.raw_len

    def view(self, start: int, n: int) -> memoryview:
        return self._file.view(start, min(n, self.size - start))


class _Descriptor:
    """An open descriptor that is closed when nobody holds it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)


def _restore(directory: str | None, limit_bytes: int, repository_bytes: int) -> PackCache:
    path = None if directory is None else Path(directory)
    return PackCache.at(path, limit_bytes=limit_bytes, repository_bytes=repository_bytes)


def _ok_path(path: str) -> str:
    """Where it is noted that a file was checked."""
    return path.removesuffix("pack") + "ok"


def _mark(identity: tuple[int, ...]) -> bytes | None:
    """What is noted: which file it was, and since which start of the machine its bytes are in good hands."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    return None if boot is None else b"%b %b\n" % (boot.strip(), b" ".join(b"%d" % part for part in identity))


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return None


def _files(folder: str) -> Iterator[tuple[int, int, str]]:
    """Give each complete file's time of last use, its size on the disk and its path."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _FILE_NAME.fullmatch(entry.name) and entry.name.endswith(".pack"):
                with contextlib.suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    yield max(stat.st_atime_ns, stat.st_mtime_ns), stat.st_size, entry.path


def _shrink(entries: list[tuple[int, int, str]], limit_bytes: int) -> int:
    """Remove the first of `entries`, from the list too, until the others are within the limit."""
    total = sum(size for _, size, _ in entries)
    removed = 0
    while entries and total - removed > limit_bytes:
        _, size, path = entries.pop(0)
        for name in (path, _ok_path(path)):
            with contextlib.suppress(OSError):
                os.unlink(name)
        removed += size
    return removed


def _remove_unlocked(path: str) -> int:
    """Remove a file that nobody holds; 1 when it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return 0
    finally:
        os.close(fd)
    return 1
