"""commit-graph files: tree, parents and date of commits without inflating any. Read, and written.

    info/commit-graph                             one file
    info/commit-graphs/commit-graph-chain         or a list of files, the oldest first, each built on those
    before

    OIDF, OIDL  names, sorted   CDAT  tree, two parents, level, date   EDGE  parents of octopuses
    GDA2, GDO2  corrected dates (generation numbers)                   BASE  names of the files below

A graph repeats what commit objects say, so it is a cache here and nothing more: who asks for a commit must
know that it is there (`ObjectStore.commit` does). What git makes of replaced, grafted and shallow commits
plays no part, since what is served is objects as they are. A file whose checksum is wrong, or with numbers
that point outside of it, counts for nothing. Bloom filters are passed over. Format: gitformat-commit-graph.
"""

import re
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.chunkfile import is_intact, read_chunks, write_chunks
from gitsmart.pack.mapping import map_checked
from gitsmart.pack.objects import Commit, ObjectFormat
from gitsmart.pack.writefile import write_file

__all__ = ["CommitGraph", "format_commit_graph", "read_commit_graph", "write_commit_graph"]

_NO_PARENT = 0x70000000
_MORE = 0x80000000
_LEVEL_MOST = 0x3FFFFFFF
_OFFSET_MOST = 0x7FFFFFFF
_CHAIN_MOST = 255


class _Layer:
    """One file; positions count from the first commit of the lowest one."""

    def __init__(self, data: memoryview, fmt: ObjectFormat, below: "tuple[_Layer, ...]") -> None:
        """Take in `data`, which ends in its own checksum.

        Raises:
            PackError: it is broken, or not built on `below`.
        """
        raw_len = fmt.raw_len
        if len(data) < 8 + raw_len or bytes(data[:4]) != b"CGPH":
            raise PackError("a file is no commit-graph")
        version, hash_id, chunks, bases = data[4:8]
        if version != 1 or hash_id != (1 if raw_len == 20 else 2) or bases != len(below):
            raise PackError("a commit-graph is of another kind")
        self.checksum = bytes(data[-raw_len:])
        found = read_chunks(data, 8, chunks, fmt)
        try:
            fan, self.names, self.rows = found[b"OIDF"], found[b"OIDL"], found[b"CDAT"]
        except KeyError:
            raise PackError("a commit-graph lacks a chunk") from None
        if len(fan) != 1024:
            raise PackError("a commit-graph is broken")
        self.fan = (0, *struct.unpack(">256I", fan))
        self.count = self.fan[256]
        if any(before > after for before, after in pairwise(self.fan)):
            raise PackError("a commit-graph's fan-out table is not sorted")
        if len(self.names) != self.count * raw_len or len(self.rows) != self.count * (raw_len + 16):
            raise PackError("a commit-graph is broken")
        self.edges = found.get(b"EDGE", memoryview(b""))
        dates = found.get(b"GDA2")
        self.dates = dates if dates is not None and len(dates) == 4 * self.count else None
        self.late = found.get(b"GDO2", memoryview(b""))
        if bytes(found.get(b"BASE", memoryview(b""))) != b"".join(layer.checksum for layer in below):
            raise PackError("a commit-graph is built on others")
        self.first = sum(layer.count for layer in below)
        self.raw_len = raw_len

    def place_of(self, raw_oid: bytes) -> int | None:
        """Return the place of a commit in this file."""
        low, high, raw_len = self.fan[raw_oid[0]], self.fan[raw_oid[0] + 1], self.raw_len
        names = self.names
        at = bisect_left(
            range(low, high), raw_oid, key=lambda at: bytes(names[at * raw_len : (at + 1) * raw_len])
        )
        at += low
        return at if at < high and names[at * raw_len : (at + 1) * raw_len] == raw_oid else None


class CommitGraph:
    """All files of one objects directory. Immutable; thread-safe."""

    def __init__(self, layers: "tuple[_Layer, ...]") -> None:
        """Take in files, the lowest first."""
        self._layers = layers
        self.count = sum(layer.count for layer in layers)

    def _find(self, raw_oid: bytes) -> tuple[_Layer, int] | None:
        for layer in reversed(self._layers):
            if len(raw_oid) != layer.raw_len:
                return None
            place = layer.place_of(raw_oid)
            if place is not None:
                return layer, place
        return None

    def _name(self, position: int) -> bytes | None:
        for layer in self._layers:
            at = position - layer.first
            if 0 <= at < layer.count:
                return bytes(layer.names[at * layer.raw_len : (at + 1) * layer.raw_len])
        return None

    def __contains__(self, raw_oid: bytes) -> bool:
        return self._find(raw_oid) is not None

    def commit(self, raw_oid: bytes) -> Commit | None:
        """Return a commit; None when it is not in the graph, or what is there makes no sense."""
        found = self._find(raw_oid)
        if found is None:
            return None
        layer, place = found
        at = place * (layer.raw_len + 16)
        tree = bytes(layer.rows[at : at + layer.raw_len])
        first, second, high, low = struct.unpack_from(">IIII", layer.rows, at + layer.raw_len)
        positions = [] if first == _NO_PARENT else [first]
        if second & _MORE:
            edge = second & ~_MORE
            while True:
                if 4 * edge + 4 > len(layer.edges):
                    return None
                (position,) = struct.unpack_from(">I", layer.edges, 4 * edge)
                positions.append(position & ~_MORE)
                if position & _MORE:
                    break
                edge += 1
        elif second != _NO_PARENT:
            positions.append(second)
        parents = []
        for position in positions:
            name = self._name(position)
            if name is None:
                return None
            parents.append(name)
        return Commit(tree, tuple(parents), (high & 3) << 32 | low)

    def generation(self, raw_oid: bytes) -> tuple[int, int | None] | None:
        """Return a commit's level (1 for those without parents), and its corrected date if that is there:
        both are greater than any ancestor's. None when it is not in the graph."""
        found = self._find(raw_oid)
        if found is None:
            return None
        layer, place = found
        at = place * (layer.raw_len + 16) + layer.raw_len + 8
        high, low = struct.unpack_from(">II", layer.rows, at)
        if layer.dates is None:
            return high >> 2, None
        (offset,) = struct.unpack_from(">I", layer.dates, 4 * place)
        if offset & _MORE:
            late = 8 * (offset & ~_MORE)
            if late + 8 > len(layer.late):
                return high >> 2, None
            (offset,) = struct.unpack_from(">Q", layer.late, late)
        return high >> 2, ((high & 3) << 32 | low) + int(offset)


def _open(path: Path, fmt: ObjectFormat) -> memoryview:
    data = map_checked(path, partial(is_intact, fmt=fmt), b"sum" + fmt.name)
    if data is None:
        raise PackError("a commit-graph has a wrong checksum")
    return data


def read_commit_graph(objects_dir: Path, fmt: ObjectFormat) -> CommitGraph:
    """Read the commit-graph of an objects directory.

    Raises:
        OSError: there is none (FileNotFoundError), or it can't be read.
        PackError: it is broken.
    """
    info = objects_dir / "info"
    try:
        return CommitGraph((_Layer(_open(info / "commit-graph", fmt), fmt, ()),))
    except FileNotFoundError:
        pass
    with open(info / "commit-graphs" / "commit-graph-chain", "rb") as file:
        names = file.read(_CHAIN_MOST * (fmt.hex_len + 1) + 1).split()
    if len(names) > _CHAIN_MOST:
        raise PackError("a chain of commit-graphs is too long")
    layers: tuple[_Layer, ...] = ()
    for name in names:
        if not re.fullmatch(rb"[0-9a-f]{%d}" % fmt.hex_len, name):
            raise PackError("a chain of commit-graphs is broken")
        layer = _Layer(_open(info / "commit-graphs" / f"graph-{name.decode()}.graph", fmt), fmt, layers)
        if layer.checksum.hex().encode() != name:
            raise PackError("a commit-graph is not what its name says")
        layers = (*layers, layer)
    return CommitGraph(layers)


# -- writing


def _no_tick(number: int) -> None:
    """Nobody waits."""


def write_commit_graph(
    objects_dir: Path,
    fmt: ObjectFormat,
    commit: Callable[[bytes], Commit],
    tips: Iterable[bytes],
    *,
    tick: Callable[[int], None] = _no_tick,
) -> Path | None:
    """Write info/commit-graph: all commits that `tips`, raw oids of commits, lead to.

    Durable, in place at once or not at all, and under git's lock. `commit` reads one (`ObjectStore.commit`).
    Returns None, and writes nothing, when history is not all there (a shallow repository), or there is none.
    Memory: some 500 bytes a commit.

    Raises:
        FileExistsError: somebody else is at it.
        OSError: it can't be written.
        PackError: a commit is broken.
    """
    commits: dict[bytes, Commit] = {}
    stack = list(tips)
    try:
        while stack:
            raw_oid = stack.pop()
            if raw_oid in commits:
                continue
            found = commits[raw_oid] = commit(raw_oid)
            stack.extend(parent for parent in found.parents if parent not in commits)
            if not len(commits) % 1024:
                tick(len(commits))
    except ObjectMissing:
        return None
    if not commits:
        return None
    data = format_commit_graph(commits, fmt)
    path = objects_dir / "info" / "commit-graph"
    path.parent.mkdir(exist_ok=True)
    lock = path.with_name("commit-graph.lock")
    write_file(path, data, temporary=lock)
    return path


def format_commit_graph(commits: dict[bytes, Commit], fmt: ObjectFormat) -> bytes:
    """Make a commit-graph of commits, among which are all their parents.

    Raises:
        KeyError: they are not.
    """
    names = sorted(commits)
    places = {name: place for place, name in enumerate(names)}
    levels, dates = _generations(commits)
    fan = [0] * 256
    rows: list[bytes] = []
    edges: list[int] = []
    offsets: list[int] = []
    late: list[int] = []
    for name in names:
        fan[name[0]] += 1
        found = commits[name]
        parents = [places[parent] for parent in found.parents]
        second = _NO_PARENT
        if len(parents) == 2:
            second = parents[1]
        elif len(parents) > 2:
            second = _MORE | len(edges)
            edges.extend(parents[1:-1])
            edges.append(_MORE | parents[-1])
        high = min(levels[name], _LEVEL_MOST) << 2 | (found.date >> 32) & 3
        first = parents[0] if parents else _NO_PARENT
        rows.append(found.tree + struct.pack(">IIII", first, second, high, found.date & 0xFFFFFFFF))
        offset = dates[name] - found.date
        if offset > _OFFSET_MOST:
            late.append(offset)
            offset = _MORE | (len(late) - 1)
        offsets.append(offset)
    for first in range(1, 256):
        fan[first] += fan[first - 1]
    chunks = [
        (b"OIDF", struct.pack(">256I", *fan)),
        (b"OIDL", b"".join(names)),
        (b"CDAT", b"".join(rows)),
        (b"GDA2", struct.pack(f">{len(offsets)}I", *offsets)),
    ]
    if late:
        chunks.append((b"GDO2", struct.pack(f">{len(late)}Q", *late)))
    if edges:
        chunks.append((b"EDGE", struct.pack(f">{len(edges)}I", *edges)))
    head = struct.pack(">4sBBBB", b"CGPH", 1, 1 if fmt.raw_len == 20 else 2, len(chunks), 0)
    return write_chunks(head, chunks, fmt)


def _generations(commits: dict[bytes, Commit]) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Return each commit's level, and its corrected date."""
    levels: dict[bytes, int] = {}
    dates: dict[bytes, int] = {}
    for tip in commits:
        stack = [tip]
        while stack:
            raw_oid = stack[-1]
            if raw_oid in levels:
                stack.pop()
                continue
            found = commits[raw_oid]
            waiting = [parent for parent in found.parents if parent not in levels]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            levels[raw_oid] = 1 + max((levels[parent] for parent in found.parents), default=0)
            # git: a date of 0 counts as 1, so that 0 can mean "not computed"
            latest = max((dates[parent] for parent in found.parents), default=0)
            dates[raw_oid] = max(found.date, latest + 1)
    return levels, dates
