"""One reftable: bytes to records and back. No I/O but a function that reads; stacks are reftable_stack.py's.

    table   =  header *ref-block [ index ] *obj-block [ index ] *log-block [ index ] footer
    header  =  "REFT" version(1) block-size(3) min-update-index(8) max-update-index(8)
               [ hash-id(4) ]                                                    version 2
    footer  =  header ref-index(8) obj-position<<5|obj-id-len(8) obj-index(8) log(8) log-index(8) crc32(4)
    block   =  type(1) length(3) *record 1*restart(3) restart-count(2) [ padding ]
    record  =  prefix-length suffix-length<<3|kind suffix value         lengths: the varints of OFS_DELTA

In the first block, which shares its place with the header, all offsets count from the header's start. A log
block is deflated behind its length, which is that of what it inflates to, and is never padded. Version 1 is
SHA-1; version 2 names its hash. Records are sorted by key: a ref's name; a name, NUL and the update index
counted downwards for a log. Source: git's Documentation/technical/reftable.adoc; what that leaves open
(when a new block begins, when there is an index, how a reflog's zone is written) is as git's
reftable/writer.c has it, so that tables come out the same, byte for byte.

Whatever is malformed raises ReftableError. Memory: one block (16 MiB at the most) and what is returned.
Only the footer has a checksum; in blocks order, lengths, kinds and bounds are checked, oids can't be.

Not done: obj blocks are written, but not read; they would find the refs of an oid.
"""

import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import SHA1, ObjectFormat

__all__ = ["LogRecord", "RefRecord", "Reftable", "ReftableError", "ReftableWriter"]

BLOCK_SIZE: Final = 4096
LARGEST_BLOCK: Final = (1 << 24) - 1
RESTART_INTERVAL: Final = 16
_MAX_RESTARTS = (1 << 16) - 1
_MAGIC = b"REFT"
_HASH_IDS = {b"sha1": 20, b"s256": 32}
_INDEX_LEVELS = 16  # more than the largest table can have; ends a walk that goes in circles
_REF, _OBJ, _LOG, _INDEX = b"rogi"
_LAST_INDEX = (1 << 64) - 1


class ReftableError(RepositoryUnusable):
    """A table is malformed."""


class RefRecord(NamedTuple):
    """A ref as a table has it. Raw oids; without oid and target it is a deletion."""

    name: bytes
    update_index: int
    oid: bytes | None = None
    peeled: bytes | None = None  # for a tag, what it comes down to
    target: bytes | None = None  # of a symref

    @property
    def is_deletion(self) -> bool:
        """Whether it says that there is no such ref, whatever older tables have."""
        return self.oid is None and self.target is None


class LogRecord(NamedTuple):
    """One line of a reflog. Raw oids; without them it is a deletion of the line."""

    name: bytes
    update_index: int
    old: bytes | None = None
    new: bytes | None = None
    who: bytes = b""
    email: bytes = b""
    time_s: int = 0
    zone: int = 0  # as git writes it: +0130 is 130
    message: bytes = b""  # with its LF

    @property
    def is_deletion(self) -> bool:
        """Whether it takes back a line that older tables have."""
        return self.old is None

    @property
    def key(self) -> bytes:
        """What logs are sorted by: the newest line of a ref comes first."""
        return log_key(self.name, self.update_index)


def log_key(name: bytes, update_index: int = _LAST_INDEX) -> bytes:
    """The key of a line of a reflog; without an index, of the newest that there can be."""
    return name + b"\0" + (_LAST_INDEX - update_index).to_bytes(8, "big")


def split_log_key(key: bytes) -> tuple[bytes, int]:
    """The name and update index of a key. Raises: ReftableError."""
    if len(key) < 10 or key[-9]:
        raise ReftableError("reftable is malformed: key of a log")
    return key[:-9], _LAST_INDEX - int.from_bytes(key[-8:], "big")


def header_size(fmt: ObjectFormat) -> int:
    """24 or 28 bytes."""
    return 24 if fmt is SHA1 else 28


def footer_size(fmt: ObjectFormat) -> int:
    """68 or 72 bytes."""
    return header_size(fmt) + 44


# Reading


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """The number at `pos`, and where it ends. Raises: IndexError at the end of the data."""
    byte = data[pos]
    pos += 1
    value = byte & 0x7F
    while byte & 0x80:
        byte = data[pos]
        pos += 1
        value = ((value + 1) << 7) | (byte & 0x7F)
        if value > _LAST_INDEX:
            raise ReftableError("reftable is malformed: number too large")
    return value, pos


class _Block(NamedTuple):
    kind: int
    data: bytes
    start: int  # of the first record
    end: int  # of the last one
    next: int  # where the next block begins, in the table


class Reftable:
    """One table. Immutable, and thread-safe if `read_at` is."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, fmt: ObjectFormat) -> None:
        """Read header and footer.

        Args:
            read_at: offset and count to bytes; fewer than asked for, when the table ends before.
            size: of the whole table, in bytes.

        Raises:
            ReftableError: they are malformed, or the table has another hash.
        """
        self._read_at = read_at
        self.size = size
        self.format = fmt
        start = read_at(0, 29)
        if start[:4] != _MAGIC or len(start) < 24 + 1:
            raise ReftableError("reftable is malformed: no header")
        version = start[4]
        if version not in (1, 2):
            raise ReftableError(f"reftable version {version} is not supported")
        self._header_size = 24 if version == 1 else 28
        raw_len = 20 if version == 1 else _HASH_IDS.get(start[24:28])
        if raw_len != fmt.raw_len:
            raise ReftableError("reftable has another object format than its repository")
        footer_len = self._header_size + 44
        if size < self._header_size + footer_len:
            raise ReftableError("reftable is malformed: too short")
        footer = read_at(size - footer_len, footer_len)
        if len(footer) != footer_len or footer[: self._header_size] != start[: self._header_size]:
            raise ReftableError("reftable is malformed: header and footer differ")
        if zlib.crc32(footer[:-4]) != int.from_bytes(footer[-4:], "big"):
            raise ReftableError("reftable is malformed: checksum of the footer")
        self.block_size = int.from_bytes(start[5:8], "big")
        self.min_update_index = int.from_bytes(start[8:16], "big")
        self.max_update_index = int.from_bytes(start[16:24], "big")
        if self.min_update_index > self.max_update_index:
            raise ReftableError("reftable is malformed: update indexes")
        places = footer[self._header_size : -4]
        self._ref_index, obj, _, log, self._log_index = (
            int.from_bytes(places[at : at + 8], "big") for at in range(0, 40, 8)
        )
        self._end = size - footer_len
        first = start[self._header_size] if self._end > self._header_size else 0
        self._has_refs = first == _REF
        self._log: int | None = log or (0 if first == _LOG else None)
        if max(self._ref_index, obj >> 5, log, self._log_index) >= size:
            raise ReftableError("reftable is malformed: positions")

    @property
    def refs_end(self) -> int:
        """Where the logs begin: what is before it is all that refs need."""
        return self._end if self._log is None else self._log

    def refs(self, start: bytes = b"") -> Iterator[RefRecord]:
        """Every ref whose name is `start` or sorts after it, deletions too, in order.

        Raises:
            ReftableError: at the first malformed block.
        """
        if not self._has_refs:
            return
        last = b""
        for block in self._blocks(_REF, 0, self._ref_index, start):
            records: list[RefRecord] = []
            try:
                last = self._decode_refs(block, last, records)
            except IndexError:
                raise ReftableError("reftable is malformed: truncated record") from None
            if start and records and records[0].name < start:
                records = records[bisect_left(records, (start,)) :]
            yield from records

    def ref(self, name: bytes) -> RefRecord | None:
        """The record of one ref, be it a deletion. Reads one block, and one for each level of an index.

        Raises: ReftableError.
        """
        found = next(self.refs(name), None)
        return found if found is not None and found.name == name else None

    def logs(self, start: bytes = b"") -> Iterator[LogRecord]:
        """Every line of every reflog whose key (see `log_key`) is `start` or sorts after it, deletions too.

        Raises: ReftableError.
        """
        if self._log is None:
            return
        last = b""
        for block in self._blocks(_LOG, self._log, self._log_index, start):
            for key, value_at, kind in self._keys(block, last):
                last = key
                record = self._decode_log(block, key, value_at, kind)
                if key >= start:
                    yield record

    def log_keys(self, start: bytes = b"") -> Iterator[tuple[bytes, bool]]:
        """The same keys, without what the lines say: is it a deletion? Raises: ReftableError."""
        if self._log is None:
            return
        last = b""
        for block in self._blocks(_LOG, self._log, self._log_index, start):
            for key, _, kind in self._keys(block, last):
                last = key
                if key >= start:
                    yield key, kind == 0

    def _blocks(self, kind: int, position: int, index: int, start: bytes) -> Iterator[_Block]:
        """The blocks of a section, from the one on that `start` would be in."""
        if index and start:
            found = self._look_up(index, start, kind)
            if found is None:
                return
            position = found
        while position < self._end:
            block = self._block(position)
            if block.kind != kind:
                return
            yield block
            position = block.next

    def _look_up(self, position: int, key: bytes, kind: int) -> int | None:
        """Go down an index to the block that holds `key`, if any does."""
        for _ in range(_INDEX_LEVELS):
            block = self._block(position)
            if block.kind == kind:
                return position
            if block.kind != _INDEX:
                break
            while True:
                for found, value_at, _ in self._keys(block, b""):
                    if found >= key:
                        below, _ = self._number(block, value_at)
                        break
                else:
                    # the keys of one level may take several blocks
                    if block.next >= self._end:
                        return None
                    block = self._block(block.next)
                    if block.kind != _INDEX:
                        return None
                    continue
                break
            if below >= self._end or below == position:
                break
            position = below
        raise ReftableError("reftable is malformed: index")

    def _block(self, position: int) -> _Block:
        header = self._header_size if position == 0 else 0
        head = self._read_at(position, header + 4)
        if len(head) != header + 4:
            raise ReftableError("reftable is malformed: truncated block")
        kind = head[header]
        if kind not in (_REF, _OBJ, _LOG, _INDEX):
            if not any(head) and position:
                return _Block(0, b"", 0, 0, self._end)  # padding
            raise ReftableError("reftable is malformed: unknown kind of block")
        length = int.from_bytes(head[header + 1 : header + 4], "big")
        if length < header + 4 + 2:
            raise ReftableError("reftable is malformed: length of a block")
        if kind == _LOG:
            data, after = self._inflate(position, header + 4, length)
        else:
            if position + length > self._end:
                raise ReftableError("reftable is malformed: truncated block")
            data = self._read_at(position, length)
            after = position + length
            if length < self.block_size:
                # Padded, if what follows is no block: git: reftable/block.c reftable_block_init()
                padding = self._read_at(after, 1) if after < self._end else b""
                if padding == b"\0":
                    after = position + self.block_size
        if len(data) != length:
            raise ReftableError("reftable is malformed: truncated block")
        restarts = int.from_bytes(data[-2:], "big")
        end = length - 2 - 3 * restarts
        if not restarts or end < header + 4:
            raise ReftableError("reftable is malformed: restarts")
        return _Block(kind, data, header + 4, end, after)

    def _inflate(self, position: int, skip: int, length: int) -> tuple[bytes, int]:
        # zlib's bound for what does not compress: a thousandth more, and a few bytes
        there = min(skip + length + (length >> 9) + 64, self._end - position)
        raw = self._read_at(position, there)
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(raw[skip:], length - skip) + inflater.decompress(
                inflater.unconsumed_tail, 1
            )
        except zlib.error:
            raise ReftableError("reftable is malformed: log block does not inflate") from None
        if not inflater.eof or len(data) != length - skip:
            raise ReftableError("reftable is malformed: log block has another length")
        return raw[:skip] + data, position + len(raw) - len(inflater.unused_data)

    def _decode_refs(self, block: _Block, last: bytes, into: list[RefRecord]) -> bytes:
        """Append a ref block's records, whose names must sort after `last`; return the last name."""
        _, data, pos, end, _ = block
        raw_len = self.format.raw_len
        lowest, highest = self.min_update_index, self.max_update_index
        name = b""
        append = into.append
        new = RefRecord._make
        # measured: benchmarks/reftable.py
        while pos < end:
            prefix = data[pos]
            pos += 1
            if prefix & 0x80:
                prefix, pos = _varint(data, pos - 1)
            size = data[pos]
            pos += 1
            if size & 0x80:
                size, pos = _varint(data, pos - 1)
            kind = size & 7
            at = pos + (size >> 3)
            if at >= end or prefix > len(name):
                raise ReftableError("reftable is malformed: name of a ref")
            name = name[:prefix] + data[pos:at]
            if name <= last:
                raise ReftableError("reftable is malformed: refs are not in order")
            last = name
            index = data[at]
            pos = at + 1
            if index & 0x80:
                index, pos = _varint(data, at)
            index += lowest
            if index > highest:
                raise ReftableError("reftable is malformed: update index of a ref")
            if kind == 1:
                at = pos + raw_len
                append(new((name, index, data[pos:at], None, None)))
                pos = at
            elif kind == 2:
                at = pos + raw_len
                append(new((name, index, data[pos:at], data[at : at + raw_len], None)))
                pos = at + raw_len
            elif kind == 3:
                size, pos = _varint(data, pos)
                at = pos + size
                append(new((name, index, None, None, data[pos:at])))
                pos = at
            elif kind == 0:
                append(new((name, index, None, None, None)))
            else:
                raise ReftableError("reftable is malformed: kind of a ref")
        if pos != end:
            raise ReftableError("reftable is malformed: value of a ref")
        return last

    def _keys(self, block: _Block, last: bytes) -> Iterator[tuple[bytes, int, int]]:
        """The keys of a log or index block, in order: each with its kind and where its value begins.

        Whoever takes them has to find the values' ends: here it is only known how they begin.
        """
        _, data, pos, end, _ = block
        key = b""
        try:
            while pos < end:
                prefix, pos = _varint(data, pos)
                size, pos = _varint(data, pos)
                kind = size & 7
                at = pos + (size >> 3)
                if at > end or prefix > len(key):
                    raise ReftableError("reftable is malformed: key")
                key = key[:prefix] + data[pos:at]
                if key <= last:
                    raise ReftableError("reftable is malformed: keys are not in order")
                last = key
                yield key, at, kind
                pos = self._value_end(block, at, kind)
        except IndexError:
            raise ReftableError("reftable is malformed: truncated record") from None

    def _value_end(self, block: _Block, pos: int, kind: int) -> int:
        data = block.data
        if block.kind == _INDEX:
            if kind:
                raise ReftableError("reftable is malformed: kind of an index")
            _, pos = _varint(data, pos)
        elif kind == 1:
            pos += 2 * self.format.raw_len
            for _ in range(2):
                size, pos = _varint(data, pos)
                pos += size
            _, pos = _varint(data, pos)
            size, pos = _varint(data, pos + 2)
            pos += size
        elif kind:
            raise ReftableError("reftable is malformed: kind of a log")
        if pos > block.end:
            raise ReftableError("reftable is malformed: truncated record")
        return pos

    def _number(self, block: _Block, pos: int) -> tuple[int, int]:
        try:
            return _varint(block.data, pos)
        except IndexError:
            raise ReftableError("reftable is malformed: truncated record") from None

    def _decode_log(self, block: _Block, key: bytes, pos: int, kind: int) -> LogRecord:
        name, update_index = split_log_key(key)
        try:
            if self._value_end(block, pos, kind) == pos:
                return LogRecord(name, update_index)
            data, raw_len = block.data, self.format.raw_len
            old, new = data[pos : pos + raw_len], data[pos + raw_len : pos + 2 * raw_len]
            size, pos = _varint(data, pos + 2 * raw_len)
            who = data[pos : pos + size]
            size, pos = _varint(data, pos + size)
            email = data[pos : pos + size]
            time_s, pos = _varint(data, pos + size)
            zone = int.from_bytes(data[pos : pos + 2], "big", signed=True)
            size, pos = _varint(data, pos + 2)
            return LogRecord(name, update_index, old, new, who, email, time_s, zone, data[pos : pos + size])
        except IndexError:
            raise ReftableError("reftable is malformed: truncated record") from None


# Writing


def _encode(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = [value & 0x7F]
    value >>= 7
    while value:
        value -= 1
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    return bytes(reversed(out))


def _common(one: bytes, other: bytes) -> int:
    """How many leading bytes are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _RecordTooLarge(ReftableError):
    """A record does not fit into a block."""


class ReftableWriter:
    """Writes one table, in pieces: refs in the order of their names, then logs in that of their keys.

    >>> from gitsmart.pack.objects import SHA1
    >>> pieces = []
    >>> writer = ReftableWriter(pieces.append, SHA1, 1, 1)
    >>> writer.add_ref(RefRecord(b"HEAD", 1, target=b"refs/heads/main"))
    >>> writer.finish()
    True
    >>> data = b"".join(pieces)
    >>> list(Reftable(lambda at, count: data[at : at + count], len(data), SHA1).refs())[0].target
    b'refs/heads/main'

    Memory: one block, the last key of each block, and with `index_objects` each oid once.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        fmt: ObjectFormat,
        min_update_index: int,
        max_update_index: int,
        *,
        block_size: int = BLOCK_SIZE,
        restart_interval: int = RESTART_INTERVAL,
        index_objects: bool = True,
    ) -> None:
        self._write = write
        self._format = fmt
        self._min = min_update_index
        self._block_size = block_size
        self._interval = restart_interval
        self._index_objects = index_objects
        version = 1 if fmt is SHA1 else 2
        self._header = b"%b%c%b%b%b%b" % (
            _MAGIC,
            version,
            block_size.to_bytes(3, "big"),
            min_update_index.to_bytes(8, "big"),
            max_update_index.to_bytes(8, "big"),
            b"" if version == 1 else b"s256",
        )
        self._next = 0  # where the current block will be
        self._padding = 0  # owed before the next block
        self._kind = _REF
        self._last = b""
        self._oids: dict[bytes, list[int]] = {}
        self._index: list[tuple[bytes, int]] = []
        self._ref_index = self._obj_index = self._log_index = 0
        self._obj = self._obj_id_len = self._log = 0
        self._begin_block()

    def add_ref(self, record: RefRecord) -> None:
        """Add a ref.

        Raises:
            ReftableError: it is larger than a block.
            OSError: what `write` raises.
        """
        assert self._kind == _REF
        assert record.name > self._last
        if record.oid is not None:
            kind, value = 1, record.oid
            if record.peeled is not None:
                kind, value = 2, record.oid + record.peeled
        elif record.target is not None:
            kind, value = 3, _encode(len(record.target)) + record.target
        else:
            kind, value = 0, b""
        self._add(record.name, kind, _encode(record.update_index - self._min) + value)
        if self._index_objects:
            for oid in (record.oid, record.peeled):
                if oid is not None:
                    places = self._oids.setdefault(oid, [])
                    if not places or places[-1] != self._next:
                        places.append(self._next)

    def add_log(self, record: LogRecord) -> None:
        """Add a line of a reflog. Raises: see `add_ref`."""
        if self._kind == _REF:
            self._finish_refs()
            self._next -= self._padding  # logs are unaligned, from the first on
            self._padding = 0
            self._begin_section(_LOG)
        if record.old is None or record.new is None:
            self._add(record.key, 0, b"")
            return
        value = [record.old, record.new]
        for text in (record.who, record.email):
            value += [_encode(len(text)), text]
        value += [_encode(record.time_s), record.zone.to_bytes(2, "big", signed=True)]
        value += [_encode(len(record.message)), record.message]
        self._add(record.key, 1, b"".join(value))

    def finish(self) -> bool:
        """Write what is left. False when there was no record at all."""
        if self._kind == _REF:
            self._finish_refs()
        else:
            self._log_index = self._finish_section()
        is_empty = self._next == 0
        self._padding = 0
        if is_empty:
            self._write(self._header)
        places = (
            self._ref_index,
            self._obj << 5 | self._obj_id_len,
            self._obj_index,
            self._log,
            self._log_index,
        )
        footer = self._header + b"".join([place.to_bytes(8, "big") for place in places])
        self._write(footer + zlib.crc32(footer).to_bytes(4, "big"))
        return not is_empty

    # Sections

    def _begin_section(self, kind: int) -> None:
        self._kind = kind
        self._last = b""
        self._begin_block()
        if kind == _LOG:
            self._log = self._next

    def _finish_refs(self) -> None:
        self._ref_index = self._finish_section()
        if self._ref_index and self._index_objects:
            oids = sorted(self._oids)
            shared = max((_common(*pair) for pair in pairwise(oids)), default=0)
            self._obj_id_len = max(shared, 1) + 1
            self._begin_section(_OBJ)
            self._obj = self._next if oids else 0
            for oid in oids:
                self._add_object(oid[: self._obj_id_len], self._oids[oid])
            self._obj_index = self._finish_section()
        self._oids.clear()

    def _add_object(self, key: bytes, places: list[int]) -> None:
        deltas = [place - before for before, place in zip([0, *places], places, strict=False)]
        value = b"".join(map(_encode, deltas))
        if len(places) < 8:
            self._add(key, len(places), value)
            return
        try:
            self._add(key, 0, _encode(len(places)) + value)
        except _RecordTooLarge:
            self._add(key, 0, _encode(0))  # "look everywhere"

    def _finish_section(self) -> int:
        """Write the section's last block, and its index if it is worth one; the place of the index's root."""
        self._flush()
        root = 0
        # git: reftable/writer.c writer_finish_section()
        while len(self._index) > 3:
            root = self._next
            entries, self._index = self._index, []
            kind, self._kind = self._kind, _INDEX
            self._begin_block()
            for key, place in entries:
                self._add(key, 0, _encode(place))
            self._flush()
            self._kind = kind
        self._index.clear()
        return root

    # Blocks

    def _begin_block(self) -> None:
        header = self._header if self._next == 0 else b""
        self._skip = len(header)
        self._pieces = [header, bytes((self._kind, 0, 0, 0))]
        self._size = self._skip + 4
        self._restarts: list[int] = []
        self._entries = 0
        self._block_last = b""

    def _add(self, key: bytes, kind: int, value: bytes) -> None:
        if not self._append(key, kind, value):
            if self._entries:
                self._flush()
                self._begin_block()
            if not self._append(key, kind, value):
                raise _RecordTooLarge("a ref is larger than a block of a reftable")
        self._last = key

    def _append(self, key: bytes, kind: int, value: bytes) -> bool:
        """Add a record to the block; False when it doesn't fit."""
        prefix = _common(self._block_last, key) if self._entries % self._interval else 0
        record = b"%b%b%b%b" % (
            _encode(prefix),
            _encode((len(key) - prefix) << 3 | kind),
            key[prefix:],
            value,
        )
        is_restart = prefix == 0 and len(self._restarts) < _MAX_RESTARTS
        size = self._size + len(record)
        if size + 3 * (len(self._restarts) + is_restart) + 2 > self._block_size:
            return False
        if is_restart:
            self._restarts.append(self._size)
        self._pieces.append(record)
        self._size = size
        self._entries += 1
        self._block_last = key
        return True

    def _flush(self) -> None:
        if not self._entries:
            return
        self._pieces += [place.to_bytes(3, "big") for place in self._restarts]
        self._pieces.append(len(self._restarts).to_bytes(2, "big"))
        length = self._size + 3 * len(self._restarts) + 2
        self._pieces[1] = bytes((self._kind,)) + length.to_bytes(3, "big")
        data = b"".join(self._pieces)
        padding = 0
        if self._kind == _LOG:
            data = data[: self._skip + 4] + zlib.compress(data[self._skip + 4 :], 9)
        else:
            padding = self._block_size - len(data)
        self._write(bytes(self._padding) + data if self._padding else data)
        self._padding = padding
        self._index.append((self._block_last, self._next))
        self._next += len(data) + padding
        self._entries = 0
