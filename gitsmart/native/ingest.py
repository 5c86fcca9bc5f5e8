"""ingest.c: a pack taken apart, and its index gathered. Driven by pack/indexer_native.py."""

import ctypes
import errno
import os
from array import array
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Final, Literal

from gitsmart import native
from gitsmart.native import Function, address_of, function, new_bytes

__all__ = [
    "ALL_READ",
    "BIG",
    "DONE",
    "DUPLICATE",
    "ERROR",
    "FULL",
    "IDLE",
    "MORE",
    "ODD",
    "REF_BASE",
    "REPEATED",
    "STOP",
    "THIN",
    "Config",
    "Engine",
    "Error",
    "Event",
    "Scan",
    "State",
    "Worker",
    "gather",
    "gather_big_endian",
    "hash_object",
    "order_by_name",
]

IDLE, DONE, STOP, ERROR, ODD, THIN, MORE, BIG, FULL = range(9)
"""What `Engine.scan` and `Worker.work` return; ingest.c says what each means."""
REPEATED, REF_BASE, DUPLICATE = 16, 32, 64
"""Bits of an object's type: others have its name too; REF_DELTAs name it; another of that name came first."""
ALL_READ: Final = 256
"""Bit of an event's kind: the references were read."""


class Config(Structure):
    """struct gs_config."""

    _fields_ = (
        ("raw_len", c_int32),
        ("fd", c_int32),
        ("array_fd", c_int32),
        ("has_fsck", c_int32),
        ("tolerates_0664", c_int32),
        ("hash_kind", c_int32),
        ("total", c_uint64),
        ("longest_name", c_uint64),
        ("object_bytes", c_uint64),
        ("delta_bytes", c_uint64),
        ("structure_bytes", c_uint64),
        ("delta_depth", c_uint64),
        ("cache_bytes", c_uint64),
        ("rebuilt_times", c_uint64),
        ("rebuilt_bytes", c_uint64),
        ("key", c_uint64 * 2),
        ("hash_functions", c_void_p * 3),
        ("directory", c_char_p),
        ("os_error", c_int32),
        ("reserved", c_int32),
    )


class Error(Structure):
    """struct gs_error."""

    _fields_ = (
        ("code", c_int32),
        ("os_error", c_int32),
        ("index", c_int64),
        ("offset", c_uint64),
        ("a", c_uint64),
        ("b", c_uint64),
        ("name", c_uint8 * 32),
    )


class Event(Structure):
    """struct gs_event."""

    _fields_ = (
        ("index", c_int64),
        ("data", c_void_p),
        ("size", c_uint64),
        ("kind", c_int32),
        ("reserved", c_int32),
        ("name", c_uint8 * 32),
    )


class Scan(Structure):
    """struct gs_scan."""

    _fields_ = (
        ("pos", c_uint64),
        ("want", c_uint64),
        ("size", c_uint64),
        ("header_bytes", c_uint64),
        ("kind", c_int32),
        ("reserved", c_int32),
    )


class State(Structure):
    """struct gs_state."""

    _fields_ = (
        ("offsets", c_void_p),
        ("names", c_void_p),
        ("types", c_void_p),
        ("crcs", c_void_p),
        ("parents", c_void_p),
        ("depths", c_void_p),
        ("special", c_void_p),
        ("special_count", c_uint64),
        ("scanned", c_uint64),
        ("done", c_uint64),
        ("resolved_bytes", c_uint64),
        ("rebuilt_entries", c_uint64),
        ("outside_count", c_uint64),
        ("outside", c_void_p),
        ("error", Error),
    )


_P = c_void_p
_new: Function = function("gs_ingest_new", _P, POINTER(Config))
_free: Function = function("gs_ingest_free", None, _P, long=True)
_worker: Function = function("gs_ingest_worker", _P, _P)
_event: Function = function("gs_ingest_event", POINTER(Event), _P)
_state: Function = function("gs_ingest_state", None, _P, POINTER(State), long=True)
_scan: Function = function(
    "gs_ingest_scan", c_int32, _P, c_char_p, c_uint64, c_uint64, c_int32, POINTER(Scan), long=True
)
_scan_done: Function = function("gs_ingest_scan_done", c_int32, _P, long=True)
_work: Function = function("gs_ingest_work", c_int32, _P, c_int32, c_uint64, c_int32, long=True)
_add_big: Function = function("gs_ingest_add_big", c_int32, _P, c_char_p, c_uint32, c_uint64, long=True)
_add_streamed: Function = function(
    "gs_ingest_add_streamed", c_int32, _P, c_char_p, c_uint32, c_uint64, POINTER(c_int32), long=True
)
_add_refs: Function = function("gs_ingest_add_refs", c_int32, _P, c_int32, c_char_p, c_uint64, long=True)
_put_thin: Function = function(
    "gs_ingest_put_thin", c_int32, _P, c_int32, c_int32, c_char_p, c_uint64, long=True
)
_found_thin: Function = function("gs_ingest_found_thin", c_int32, _P, c_int32, c_char_p, long=True)
_awaited: Function = function(
    "gs_ingest_awaited", c_uint64, _P, POINTER(c_uint32), c_char_p, c_char_p, c_uint64, long=True
)
_content: Function = function("gs_ingest_content", c_int32, _P, c_int32, long=True)
_find: Function = function("gs_ingest_find", c_int64, _P, c_char_p, long=True)
_append: Function = function(
    "gs_ingest_append", c_int32, _P, c_int32, c_char_p, c_uint32, c_uint64, c_uint64, long=True
)
_facts: Function = function("gs_ingest_facts", c_int32, _P, long=True)
_stop: Function = function("gs_ingest_stop", None, _P, long=True)
_clear: Function = function("gs_ingest_clear", None, _P, long=True)
_hash: Function = function("gs_ingest_hash", c_int32, POINTER(Config), c_int32, c_char_p, c_uint64, c_char_p)
_order: Function = function("gs_index_order", c_int32, _P, c_uint64, c_uint64, _P, long=True)
_gather: Function = function(
    "gs_index_gather", None, _P, c_uint64, _P, c_uint64, c_int32, c_char_p, long=True
)


def hash_object(config: Config, kind: int, data: bytes) -> bytes | None:
    """Hash with the functions of a config; None when these fail."""
    name = new_bytes(config.raw_len)
    return None if _hash(byref(config), kind, data, len(data), name) else name


class Worker:
    """What one thread needs to resolve objects; lives as long as its engine."""

    __slots__ = ("_handle", "event")

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.event: Event = _event(handle).contents

    def work(self, wait_ms: int, most_bytes: int, most_objects: int) -> int:
        return int(_work(self._handle, wait_ms, most_bytes, most_objects))

    def content(self, index: int) -> int:
        return int(_content(self._handle, index))

    def data(self) -> bytes:
        """Give the event's object."""
        return ctypes.string_at(self.event.data, self.event.size) if self.event.size else b""

    def add_refs(self, kind: int, names: bytes, count: int) -> int:
        return int(_add_refs(self._handle, kind, names, count))

    def put_thin(self, place: int, kind: int, data: bytes) -> int:
        return int(_put_thin(self._handle, place, kind, data, len(data)))


class Engine:
    """One pack. Methods return a status, see above, unless they say otherwise.

    Raises: MemoryError, OSError when there is no room.
    """

    def __init__(self, config: Config) -> None:
        self._handle: int | None = _new(byref(config))
        if not self._handle:
            if config.os_error == errno.ENOMEM:
                raise MemoryError
            raise OSError(config.os_error, os.strerror(config.os_error))
        self._raw_len = int(config.raw_len)
        self.capacity = 2 * int(config.total) + 2

    def free(self) -> None:
        """Let go of everything; no thread may be inside, and no view is valid any more."""
        if self._handle:
            _free(self._handle)
            self._handle = None

    def worker(self) -> Worker:
        handle = _worker(self._handle)
        if not handle:
            raise MemoryError
        return Worker(handle)

    def state(self) -> State:
        state = State()
        _state(self._handle, byref(state))
        return state

    def scan(self, buffer: bytes, start: int, is_all: bool, scan: Scan) -> int:
        return int(_scan(self._handle, buffer, len(buffer), start, is_all, byref(scan)))

    def scan_done(self) -> int:
        return int(_scan_done(self._handle))

    def add_big(self, data: bytes, crc: int, end: int) -> int:
        return int(_add_big(self._handle, data, crc, end))

    def add_streamed(self, raw_oid: bytes, crc: int, end: int) -> tuple[int, int]:
        """Give a status, and the index of the object that has this name already, or -1."""
        first = c_int32(-1)
        status = int(_add_streamed(self._handle, raw_oid, crc, end, byref(first)))
        return status, first.value

    def found_thin(self, place: int, raw_oid: bytes) -> int:
        return int(_found_thin(self._handle, place, raw_oid))

    def awaited(self) -> list[bytes]:
        """Give the raw oids that deltas wait for, in the order of these."""
        found: list[tuple[int, bytes]] = []
        place = c_uint32(0)
        room = 4096
        while True:
            names, indexes = new_bytes(room * self._raw_len), new_bytes(room * 4)
            count = int(_awaited(self._handle, byref(place), names, indexes, room))
            if not count:
                return [name for _, name in sorted(found)]
            numbers, width = memoryview(indexes).cast("i"), self._raw_len
            found += [(numbers[k], names[k * width : (k + 1) * width]) for k in range(count)]

    def find(self, raw_oid: bytes) -> int:
        """Give the index of a resolved object, or -1."""
        return int(_find(self._handle, raw_oid))

    def append(self, kind: int, raw_oid: bytes, crc: int, offset: int, end: int) -> int:
        return int(_append(self._handle, kind, raw_oid, crc, offset, end))

    def facts(self) -> int:
        return int(_facts(self._handle))

    def stop(self) -> None:
        if self._handle:
            _stop(self._handle)

    def clear(self) -> None:
        _clear(self._handle)

    def view(
        self, address: int, count: int, typecode: 'Literal["B", "H", "I", "i", "Q"]'
    ) -> "memoryview[int]":
        """Give a table of the engine's; valid until `free`."""
        if not count:
            return memoryview(b"").cast(typecode)
        size = array(typecode).itemsize
        return memoryview((c_uint8 * (count * size)).from_address(address)).cast("B").cast(typecode)


# -- the index


def order_by_name(names: "bytes | bytearray | memoryview", raw_len: int, order: "array[int]") -> None:
    """Fill `order` with the positions of the joined `names`, sorted by name.

    Raises: MemoryError.
    """
    if _order(address_of(names), len(order), raw_len, order.buffer_info()[0]) != native.OK:
        raise MemoryError


def gather(table: "bytes | bytearray | memoryview", width: int, order: "array[int]") -> bytes:
    """Join the elements, each of `width` bytes, that `order` numbers."""
    found = new_bytes(len(order) * width)
    _gather(address_of(table), width, order.buffer_info()[0], len(order), 0, found)
    return found


def gather_big_endian(table: Any, order: "array[int]") -> bytes:
    """Join 4-byte numbers that `order` numbers, big-endian."""
    found = new_bytes(len(order) * 4)
    _gather(address_of(table), 4, order.buffer_info()[0], len(order), 1, found)
    return found
