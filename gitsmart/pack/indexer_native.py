"""The indexer with its work in C, on several cores: the same refusals, facts and files as indexer.py's.

    main thread     read --> file --> scan (C) --> ready objects        helpers, in large packs: resolve (C)
                    what C hands out: large blobs, odd objects              |
                    bases in the repository  <-- odd objects are queued -----

The C code (native/ingest.c) takes commits and trees as git writes them, and leaves all others to the
functions that indexer.py uses: what is odd or hostile is judged in one place. Entries of 1 MiB and more are
inflated here, piece by piece; blobs among these are never whole in memory.

Memory: 32 MiB of cached bases, 12 MiB of objects and deltas in hand, references of 6 MiB for each thread, all
that half as much again for malloc, and the largest delta's base and result once: a second one waits. What
there is of each object (47 bytes, and 7 for finding it by name) is in a file of the quarantine when there are
many, as are references that find no room. Deltas whose base has not come, and that have no room in the 6 MiB
for these, are inflated again. While indexes are written: 9 bytes an object.
"""

import os
import secrets
import tempfile
import threading
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gitsmart import native
from gitsmart.errors import LimitExceeded, ObjectMissing, PackError
from gitsmart.native import ingest as engine
from gitsmart.pack import indexer
from gitsmart.pack.fsck import Fsck
from gitsmart.pack.indexer import Ingest, IngestLimits, bad_object, collision
from gitsmart.pack.inflate import crc32
from gitsmart.pack.objectid import ObjectHasher
from gitsmart.pack.objects import (
    BLOB,
    COMMIT,
    TREE,
    ObjectFormat,
    parse_commit,
    parse_tag,
    to_hex,
    tree_references,
)
from gitsmart.pack.oidtypes import OidTypes
from gitsmart.pack.packindex import Bytes, Numbers
from gitsmart.pack.store import ObjectStore

__all__ = ["NativeIngest", "is_possible"]

_HELPED_BYTES: Final = 8 << 20  # of objects before other threads join: below, starting them costs more
_HELPERS: Final = min(len(os.sched_getaffinity(0)), 8) - 1
_HELPED_OBJECTS: Final = 1000  # still to come
_FILED_OBJECTS: Final = 1 << 17  # from here on the arrays are in a file
_ODD_BYTES: Final = 4 << 20  # of objects that wait for the main thread
_STEP_OBJECTS: Final = 128
_HALF_READY: Final = 3 << 20
_NO_LIMIT: Final = (1 << 64) - 1
_LARGEST: Final = (1 << 32) - 1

_TEXTS: Final = {
    3: "size too large",
    4: "delta base offset is out of bound",
    5: "delta base offset is no object",
    11: "bad delta: too short",
    12: "bad delta: ends in its header",
    13: "bad delta: size too large",
    14: "failed to apply delta: base is of another size",
    15: "failed to apply delta: out of bounds",
    16: "failed to apply delta: result is of another size",
    17: "failed to apply delta: reserved instruction",
    18: "failed to apply delta: ends in an insertion",
    19: "failed to apply delta: ends in a copy instruction",
}


def is_possible(fmt: ObjectFormat, detect_collisions: bool, limits: IngestLimits) -> bool:
    """Tell whether packs can be taken apart in C here, within these limits.

    Raises: ConfigError when collisions are to be detected and can't be.
    """
    return (
        native.available
        and max(limits.delta_bytes, limits.structure_bytes) <= _LARGEST
        and limits.delta_depth < 1 << 16
        and limits.objects < 1 << 30
        and ObjectHasher(fmt, detect_collisions=detect_collisions).functions() is not None
    )


class _Known:
    """raw oid -> index of what is resolved, as `Ingest._indexes` has it."""

    def __init__(self, table: engine.Engine) -> None:
        self._table = table

    def get(self, raw_oid: bytes) -> int | None:
        index = self._table.find(raw_oid)
        return None if index < 0 else index

    def __getitem__(self, raw_oid: bytes) -> int:
        return self._table.find(raw_oid)


class NativeIngest(Ingest):
    """See the module."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        directory: Path,
        fmt: ObjectFormat,
        bases: ObjectStore,
        detect_collisions: bool,
        limits: IngestLimits,
        tick: Callable[[int, int], None],
        fsck: Fsck | None,
        cache_bytes: int,
    ) -> None:
        super().__init__(read, directory, fmt, bases, detect_collisions, limits, tick, fsck, cache_bytes)
        self._cache_bytes = cache_bytes
        self._engine: engine.Engine | None = None
        self._helpers: list[threading.Thread] = []
        self._helping = True
        self._failures: list[BaseException] = []
        self._odd: deque[tuple[int, bytes, bytes]] = deque()
        self._odd_bytes = 0
        self._odd_room = threading.Condition()
        self._seen_bytes = 0  # of resolved objects
        self._ticked = self._ticked_bytes = 0  # what the last tick told, and how far bytes were then

    # -- the engine

    def _start_engine(self) -> None:
        limits = self._limits
        functions = self._hasher.functions()
        assert functions is not None
        array_fd = -1
        if self._total >= _FILED_OBJECTS:
            array_fd, name = tempfile.mkstemp(prefix="tmp_arrays_", dir=self._directory)
            os.unlink(name)
        config = engine.Config(
            raw_len=self._raw_len,
            fd=self._fd,
            array_fd=array_fd,
            has_fsck=self._fsck is not None,
            tolerates_0664=self._fsck is not None and self._fsck.tolerates_0664,
            longest_name=_NO_LIMIT if self._fsck is None else self._fsck.longest_name,
            hash_kind=functions[0],
            total=self._total,
            object_bytes=limits.object_bytes,
            delta_bytes=limits.delta_bytes,
            structure_bytes=limits.structure_bytes,
            delta_depth=limits.delta_depth,
            cache_bytes=self._cache_bytes,
            rebuilt_times=indexer.REBUILT_TIMES,
            rebuilt_bytes=indexer.REBUILT_BYTES,
            directory=os.fsencode(self._directory),
        )
        config.key[:] = (secrets.randbits(64), secrets.randbits(64))
        config.hash_functions[:] = functions[1:]
        try:
            table = engine.Engine(config)
        finally:
            if array_fd >= 0:
                os.close(array_fd)  # the engine has its own
        self._engine = table
        self._main = table.worker()
        state = table.state()
        capacity = table.capacity
        self._views = {
            "offsets": table.view(state.offsets, capacity + 1, "Q"),
            "names": table.view(state.names, capacity * self._raw_len, "B"),
            "types": table.view(state.types, capacity, "B"),
            "crcs": table.view(state.crcs, capacity, "I"),
            "parents": table.view(state.parents, capacity, "i"),
            "depths": table.view(state.depths, capacity, "H"),
        }

    @property
    def _table(self) -> engine.Engine:
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        self._stop_helpers()
        if self._engine is not None:
            self._views.clear()
            self._engine.free()
            self._engine = None
        super().close()

    def _stop_helpers(self) -> None:
        if self._helpers:
            self._helping = False
            self._table.stop()
            with self._odd_room:
                self._odd_room.notify_all()
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def _start_helpers(self) -> None:
        for _ in range(_HELPERS):
            helper = threading.Thread(
                target=self._help, args=(self._table.worker(),), name="ingest", daemon=True
            )
            self._helpers.append(helper)
            helper.start()

    def _help(self, worker: engine.Worker) -> None:
        """Resolve objects until there are none, or the main thread says stop."""
        try:
            while True:
                status = worker.work(200, 0, 4096)
                if status == engine.ODD:
                    self._queue_odd(worker)
                elif status == engine.THIN:
                    self._give_thin(worker)
                elif status in (engine.DONE, engine.STOP):
                    return
                elif status == engine.ERROR:
                    raise self._error()
        except BaseException as error:
            self._failures.append(error)
            self._table.stop()

    def _queue_odd(self, worker: engine.Worker) -> None:
        """Leave an object to the main thread: what is said of it goes to the client."""
        kind, raw_oid, data = worker.event.kind, self._event_oid(worker), worker.data()
        with self._odd_room:
            while self._odd_bytes > _ODD_BYTES and self._helping:
                self._odd_room.wait(1.0)
            self._odd.append((kind, raw_oid, data))
            self._odd_bytes += len(data)

    def _event_oid(self, worker: engine.Worker) -> bytes:
        return bytes(worker.event.name[: self._raw_len])

    def _take_queued(self) -> None:
        while self._odd:
            with self._odd_room:
                item = self._odd.popleft()
                self._odd_bytes -= len(item[2])
                self._odd_room.notify_all()
            self._look_at(*item)

    def _look_at(self, event_kind: int, raw_oid: bytes, data: bytes) -> None:
        """Check an object that C did not find plain, and note its references if it could not."""
        kind = event_kind & ~engine.ALL_READ
        if self._fsck is not None:
            self._fsck.check(kind, raw_oid, data)
        if event_kind & engine.ALL_READ:
            return
        try:
            if kind == TREE:
                trees, blobs = tree_references(data, self._raw_len)
                self._add_refs(TREE, trees)
                self._add_refs(BLOB, blobs)
            elif kind == COMMIT:
                commit = parse_commit(data, self._format)
                self._add_refs(TREE, {commit.tree})
                self._add_refs(COMMIT, set(commit.parents))
            else:
                target, declared = parse_tag(data, self._format)
                self._add_refs(declared, {target})
        except PackError as error:
            raise bad_object(raw_oid, error) from error

    def _add_refs(self, kind: int, names: set[bytes]) -> None:
        if names:
            self._ok(self._main.add_refs(kind, b"".join(names), len(names)))

    def _give_thin(self, worker: engine.Worker) -> None:
        place = worker.event.index
        kind, data = self._bases.read(self._thin[place], limit_bytes=self._limits.delta_bytes)
        if worker.put_thin(place, kind, data) == engine.ERROR:
            raise self._error()

    def _ok(self, status: int) -> int:
        """Raise what has failed, here or in a helper."""
        if status == engine.ERROR:
            raise self._error()
        if status == engine.STOP:
            self._stop_helpers()
            raise self._failures[0]
        return status

    def _error(self) -> BaseException:
        error = self._table.state().error
        code = error.code
        name = bytes(error.name[: self._raw_len])
        if code == 1:
            return MemoryError()
        if code == 2:
            return PackError("early EOF")
        if code == 6:
            return PackError(f"object at offset {error.a}: unknown object type {error.b}")
        if code == 9:
            return LimitExceeded(f"object of {error.a} bytes exceeds the limit of {error.b}")
        if code == 10:
            return LimitExceeded(f"delta chain is deeper than {error.a}")
        if code == 20:
            return self._hasher.failure()
        if code == 21:
            return collision(name)
        if code == 22:
            return PackError("SHA1 COLLISION FOUND: two objects of the pack, of different types, with one id")
        if code == 23:
            return PackError("a stored entry can't be inflated any more")
        if code == 24:
            return LimitExceeded("the pack's delta chains take too long to follow")
        if code == 25:
            return OSError(error.os_error, os.strerror(error.os_error))
        return PackError(f"object at offset {error.offset if error.index >= 0 else error.a}: {_TEXTS[code]}")

    # -- the stream

    def _scan(self) -> None:
        self._start_engine()
        table, scan = self._table, engine.Scan()
        while True:
            scan.pos = self._pos
            status = table.scan(self._buffer, self._start, self._ended, scan)
            self._pos = scan.pos
            if status == engine.MORE:
                self._resolve_ready(is_pressing=False)
                self._need(scan.want)
                continue
            if self._ok(status) == engine.BIG:
                self._take_big(scan)
            self._resolve_ready(is_pressing=status == engine.FULL)
            if status == engine.DONE:
                return

    def _resolve_ready(self, *, is_pressing: bool) -> None:
        """Resolve what is ready: all of it while alone, else as much as makes room."""
        self._take_queued()
        if self._helpers:
            if is_pressing:
                while self._step(0, _HALF_READY) != engine.IDLE:
                    pass
        else:
            while self._step(0, 0) != engine.IDLE:
                pass
            if _HELPERS and self._total - self._done > _HELPED_OBJECTS and self._seen_bytes > _HELPED_BYTES:
                self._start_helpers()
        self._report()

    def _step(self, wait_ms: int, most_bytes: int) -> int:
        """Resolve some objects; IDLE or DONE when there are no more."""
        status = self._main.work(wait_ms, most_bytes, _STEP_OBJECTS)
        if status == engine.ODD:
            event = self._main.event
            self._look_at(event.kind, self._event_oid(self._main), self._main.data())
        elif status == engine.THIN:
            self._give_thin(self._main)
        else:
            self._ok(status)
        self._report()
        return status

    def _report(self) -> None:
        state = self._table.state()
        self._done = state.done
        self._seen_bytes = state.resolved_bytes
        if self._done - self._ticked >= _STEP_OBJECTS or self._seen_bytes - self._ticked_bytes >= 4 << 20:
            self._ticked, self._ticked_bytes = self._done, self._seen_bytes
            self._tick(self._done, self._total)

    def _take_big(self, scan: engine.Scan) -> None:
        """Inflate an entry piece by piece: a large one, or one that is broken, to say how."""
        index = self._table.state().scanned
        header = self._view[self._pos : self._pos + scan.header_bytes]
        self._offset = self._start + self._pos
        self._crc = crc32(header, 0)
        self._pos += scan.header_bytes
        if scan.kind == BLOB and scan.size >= indexer.HUGE:
            self._huge_blob(index, scan.size)
        else:
            data = b"".join(self._arriving_pieces(scan.size))
            self._ok(self._table.add_big(data, self._crc, self._start + self._pos))

    def _record(self, index: int, kind: int, raw_oid: bytes, parent: int, depth: int) -> None:
        """Take in a huge blob; see `_huge_blob`."""
        status, first = self._table.add_streamed(raw_oid, self._crc, self._start + self._pos)
        self._ok(status)
        if first >= 0 and not self._same(index, self._all_pieces(first)):
            raise collision(raw_oid)

    # -- the end

    def _resolve_deferred(self) -> None:
        table = self._table
        self._ok(table.scan_done())
        self._drain()
        while self._done < self._total:
            found = False
            for raw_oid in table.awaited():
                if table.find(raw_oid) >= 0:
                    continue
                try:
                    kind, data = self._bases.read(raw_oid, limit_bytes=self._limits.delta_bytes)
                except ObjectMissing:
                    continue
                found = True
                self._thin.append(raw_oid)
                place = len(self._thin) - 1
                self._ok(self._main.put_thin(place, kind, data))
                self._ok(table.found_thin(place, raw_oid))
                del data
                self._drain()
            if not found:
                missing = to_hex(table.awaited()[0]).decode()
                raise PackError(f"pack has {self._total - self._done} unresolved deltas: no base {missing}")
        self._take_special()

    def _drain(self) -> None:
        """Resolve all that can be."""
        while (status := self._step(50, 0)) != engine.DONE:
            self._take_queued()
            if status == engine.IDLE:
                self._tick(self._done, self._total)  # a helper has something large in hand
        for helper in self._helpers:
            while helper.is_alive():
                self._take_queued()  # it may be waiting for room
                helper.join(0.02)
        self._helpers.clear()
        self._take_queued()
        if self._failures:
            raise self._failures[0]
        self._report()

    def _take_special(self) -> None:
        if self._fsck is None:
            return
        state = self._table.state()
        stride = self._raw_len + 1
        records = self._table.view(state.special, state.special_count * stride, "B")
        for at in range(0, len(records), stride):
            self._fsck.expect(is_modules=records[at] == 1, raw_oid=bytes(records[at + 1 : at + stride]))

    def _check_known(self) -> None:
        if self._bases.is_empty():
            return
        names, raw_len = self._views["names"], self._raw_len
        for start in range(0, self._total, 1024):
            end = min(start + 1024, self._total)
            joined = bytes(names[start * raw_len : end * raw_len])
            self._batch = {joined[k * raw_len : (k + 1) * raw_len]: start + k for k in range(end - start)}
            super()._check_known()
            if start % 8192 == 0:
                self._tick(self._done, self._total)

    def _content(self, index: int) -> tuple[int, bytes]:
        while self._ok(self._main.content(index)) == engine.THIN:
            self._give_thin(self._main)
        return self._main.event.kind, self._main.data()

    def _extent(self, index: int) -> tuple[int, int]:
        offsets = self._views["offsets"]
        return offsets[index], offsets[index + 1]

    def _parent(self, index: int) -> int:
        return self._views["parents"][index]

    def _indexes(self) -> _Known:  # type: ignore[override]  # what the base class uses of a dict
        return _Known(self._table)

    def _kind_of(self, index: int) -> int:
        return self._views["types"][index] & 7

    def _has(self, raw_oid: bytes) -> bool:
        return self._table.find(raw_oid) >= 0

    def _outside(self) -> tuple[OidTypes, OidTypes]:
        if self._engine is None:
            return super()._outside()
        self._ok(self._table.facts())
        state = self._table.state()
        raw_len, stride = self._raw_len, self._raw_len + 1
        records = bytes(self._table.view(state.outside, state.outside_count * stride, "B"))
        names, types = bytearray(), bytearray()
        conflicting: dict[bytes, int] = {}
        before = b""
        for at in range(0, len(records), stride):
            name = records[at : at + raw_len]
            if name == before or self._has(name):
                conflicting[name] = records[at + raw_len]
            else:
                names += name
                types.append(records[at + raw_len])
            before = name
        return OidTypes(bytes(names), bytes(types), raw_len), OidTypes.of(conflicting, raw_len)

    def _repeated_base(self) -> bytes | None:
        both = engine.REPEATED | engine.REF_BASE
        table = bytes(kind & both == both for kind in range(256))
        place = bytes(self._views["types"][: self._total]).translate(table).find(1)
        if place >= 0:
            return bytes(self._views["names"][place * self._raw_len : (place + 1) * self._raw_len])
        for raw_oid in self._thin:
            index = self._table.find(raw_oid)
            if index >= 0 and self._views["types"][index] & engine.REPEATED:
                return raw_oid
        return None

    def _deepest(self) -> int:
        return max(self._views["depths"][: self._total])

    def _append(self, kind: int, raw_oid: bytes, crc: int, offset: int, end: int) -> None:
        self._ok(self._table.append(kind | engine.DUPLICATE, raw_oid, crc, offset, end))

    def _tables(self) -> tuple[Bytes, Numbers, Numbers]:
        self._table.clear()
        count = self._table.state().scanned
        views = self._views
        return views["names"][: count * self._raw_len], views["crcs"][:count], views["offsets"][:count]

    def _own_types(self, order: "array[int]") -> bytes:
        table = bytes(0 if kind & engine.DUPLICATE else kind & 7 for kind in range(256))
        return engine.gather(self._views["types"], 1, order).translate(table)
