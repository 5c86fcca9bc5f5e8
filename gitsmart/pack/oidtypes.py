"""Very many raw oids and the types of these objects, a byte each beside the names.

The names are joined, sorted, and need not be in memory: a pack index's are mapped. Looking one up takes some
microseconds; going through all of them gives them sorted.
"""

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar, overload

__all__ = ["OidTypes"]

_NAMES_AT = 1032  # of an index of version 2: behind magic, version and fan-out
_Default = TypeVar("_Default")


class OidTypes(Mapping[bytes, int]):
    """Raw oid -> type, read only.

    Args:
        names: sorted raw oids, joined; what follows the last one is not looked at.
        types: the type of each. 0: this one is no member. Of equal names one may have a type.
    """

    __slots__ = ("_count", "_length", "_names", "_raw_len", "_types")

    def __init__(self, names: "bytes | memoryview | mmap.mmap", types: bytes, raw_len: int) -> None:
        self._names = names if isinstance(names, memoryview) else memoryview(names)
        self._types = types
        self._raw_len = raw_len
        self._count = len(types)
        self._length = len(types) - types.count(0)

    @classmethod
    def of(cls, members: Mapping[bytes, int], raw_len: int) -> "OidTypes":
        """Take over what is in a mapping."""
        names = sorted(members)
        return cls(b"".join(names), bytes(map(members.__getitem__, names)), raw_len)

    @classmethod
    def of_index(cls, path: Path, types: bytes, raw_len: int) -> "OidTypes":
        """Map the names of a pack index of version 2, which holds as many as `types`.

        Raises: OSError.
        """
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(memoryview(mapped)[_NAMES_AT:], types, raw_len)

    def __len__(self) -> int:
        return self._length

    def _name(self, place: int) -> bytes:
        raw_len = self._raw_len
        return self._names[place * raw_len : (place + 1) * raw_len].tobytes()

    @overload
    def get(self, raw_oid: bytes, default: None = None, /) -> int | None: ...
    @overload
    def get(self, raw_oid: bytes, default: "int | _Default", /) -> "int | _Default": ...
    def get(self, raw_oid: bytes, default: object = None, /) -> object:
        """Give the type of an object, `default` when it is no member."""
        place = bisect_left(range(self._count), raw_oid, key=self._name)
        while place < self._count and self._name(place) == raw_oid:
            if self._types[place]:
                return self._types[place]
            place += 1
        return default

    def __getitem__(self, raw_oid: bytes) -> int:
        kind = self.get(raw_oid)
        if kind is None:
            raise KeyError(raw_oid)
        return kind

    def __contains__(self, raw_oid: object) -> bool:
        return isinstance(raw_oid, bytes) and self.get(raw_oid) is not None

    def __iter__(self) -> Iterator[bytes]:
        for place, kind in enumerate(self._types):
            if kind:
                yield self._name(place)
