"""Refs in files: loose ones over packed-refs, and one consistent list of them.

    refs/heads/main      oid LF    /    "ref: " target LF        loose; hides the packed one
    packed-refs          "# pack-refs with:" *( SP trait ) LF
                         *( oid SP name LF [ "^" peeled-oid LF ] )
    HEAD                 like a loose ref

`git pack-refs` writes packed-refs first and then removes the loose files, and a delete leaves packed-refs
before the loose file goes. So a reader looks at the loose file first and at packed-refs after it: at no
moment is an existing ref in neither. A directory that changes while it is listed is listed again, since some
file systems let a rename hide an entry from a running listing.

Where this differs from git: symbolic links to directories below `refs/` are not followed, and a ref file is
read to 4 KiB only. Writing is
files_transaction.py's. See git: refs/files-backend.c, refs/packed-backend.c.
"""

import os
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Final

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat, to_raw
from gitsmart.repo.refs import (
    BAD_NAME,
    SYMREF_DEPTH,
    RawRef,
    Ref,
    RefObjects,
    RefSnapshot,
    RefState,
    RefStore,
    is_safe_ref,
)

__all__ = ["FilesRefStore", "PackedRefs"]

_READ_BYTES = 4096
_FEW = 64  # things to look at by stat: some 100 us in all
_SETTLED_NS = (
    20_000_000  # a directory's mtime moves in ticks of up to 10 ms: younger than two can't be trusted
)
_COARSE_NS = (
    2_020_000_000  # some file systems' times have whole seconds only: ext3, ext4 of small inodes, FAT (2)
)


def _is_past(time_ns: int, now_ns: int) -> bool:
    """Whether nothing that happens from `now_ns` on is given that time by the file system."""
    return time_ns < now_ns - (_SETTLED_NS if time_ns % 1_000_000_000 else _COARSE_NS)


class PackedRefs:
    """One version of packed-refs. Immutable; keeps the file open so that its inode is not used again."""

    def __init__(self, data: bytes, hex_len: int, identity: object, fd: int = -1) -> None:
        self.identity = identity
        self._fd = fd  # owned from now on
        traits: list[bytes] = []
        start = 0
        if data.startswith(b"#"):
            start = data.find(b"\n") + 1
            if not start:
                raise RepositoryUnusable("packed-refs is malformed: unterminated header")
            header = data[:start]
            if header.startswith(b"# pack-refs with:"):
                traits = header[17:].split()
        self.is_fully_peeled = b"fully-peeled" in traits
        self.has_peeled_tags = self.is_fully_peeled or b"peeled" in traits
        found: list[tuple[bytes, bytes, bytes]] = _PACKED_LINE[hex_len].findall(data, start)
        self.oids: Mapping[bytes, bytes] = {name: oid for oid, name, _ in found}
        self.peeled: Mapping[bytes, bytes] = {name: peeled for _, name, peeled in found if peeled}
        overhead = (hex_len + 2) * (len(found) + sum(1 for _, _, peeled in found if peeled))
        if start + overhead + sum(len(name) for _, name, _ in found) != len(data):
            raise RepositoryUnusable("packed-refs is malformed")
        self.names: list[bytes] = [name for _, name, _ in found]
        if b"sorted" not in traits or len(self.oids) != len(found):
            self.names = sorted(self.oids)
        self.has_odd_names = any(odd in data for odd in _ODD_IN_PACKED)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def below(self, prefix: bytes) -> Iterator[bytes]:
        """Names that start with `prefix`, sorted; found by bisection."""
        for index in range(bisect_left(self.names, prefix), len(self.names)):
            name = self.names[index]
            if not name.startswith(prefix):
                return
            yield name

    def without(self, gone: set[bytes]) -> bytes:
        """The file's text with these refs left out, sorted, traits kept (only those that stay true)."""
        traits = b" fully-peeled" if self.is_fully_peeled else b""
        traits = (b" peeled" if self.has_peeled_tags else b"") + traits
        lines = [b"# pack-refs with:%b sorted \n" % traits]
        for name in self.names:
            if name in gone:
                continue
            lines.append(b"%b %b\n" % (self.oids[name], name))
            peeled = self.peeled.get(name)
            if peeled:
                lines.append(b"^%b\n" % peeled)
        return b"".join(lines)


_PACKED_LINE: Final = {
    hex_len: re.compile(rb"([0-9a-f]{%d}) ([^\n]+)\n(?:\^([0-9a-f]{%d})\n)?" % (hex_len, hex_len))
    for hex_len in (40, 64)
}
_ODD_IN_PACKED: Final = (
    b"..",
    b"/.",
    b"//",
    b"@{",
    b".lock",
    b"/\n",
    b".\n",
    b"~",
    b":",
    b"?",
    b"*",
    b"[",
    b"\\",
    b"\t",
)


class _State:
    """What a listing was made of: the same listing would be made while none of it has changed."""

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        self.folders: dict[bytes, tuple[int, int]] = {}
        self.files: dict[bytes, tuple[int, int, int, int]] = {}
        self.packed: PackedRefs | None = None
        self.is_whole = True
        """All that it depends on is in here."""

    def is_settled(self) -> bool:
        """Whether a later change of anything would be seen: each has a time that no change gives any more."""
        began = self.began_ns
        return (
            self.is_whole
            and all(_is_past(mtime, began) for mtime, _ in self.folders.values())
            and all(
                _is_past(mtime, began) and _is_past(ctime, began)
                for mtime, ctime, _, _ in self.files.values()
            )
        )


class FilesRefStore(RefStore):
    """The refs of one repository in git's oldest format. Thread-safe."""

    def __init__(self, git_dir: bytes, fmt: ObjectFormat, objects: RefObjects) -> None:
        super().__init__(git_dir, fmt, objects)
        self._packed: PackedRefs | None = None
        self._packed_refs: tuple[PackedRefs, bool, tuple[Ref, ...], tuple[bytes, ...]] | None = None
        self._present: set[bytes] = set()
        self._whole: tuple[_State, bool, RefSnapshot] | None = None

    def path(self, name: bytes) -> bytes:
        """The loose file of a ref whose name is safe, or of HEAD."""
        assert name == b"HEAD" or is_safe_ref(name)
        return self.git_dir + b"/" + name

    def packed(self) -> PackedRefs:
        """The packed refs as they are now: one stat when nothing changed.

        Raises:
            RepositoryUnusable: the file is malformed or can't be read.
        """
        path = self.git_dir + b"/packed-refs"
        try:
            st = os.stat(path)
        except FileNotFoundError:
            st = None
        except OSError as error:
            raise RepositoryUnusable("packed-refs can't be read") from error
        cached = self._packed
        if cached is not None and cached.identity == _identity(st):
            return cached
        packed = self._load_packed(path)
        self._packed = packed
        return packed

    def _load_packed(self, path: bytes) -> PackedRefs:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return PackedRefs(b"", self.format.hex_len, None)
        except OSError as error:
            raise RepositoryUnusable("packed-refs can't be read") from error
        try:
            # The file is only ever replaced, so what is read belongs to this inode as it is
            with open(fd, "rb", buffering=0, closefd=False) as file:
                data = file.readall()
            identity = _identity(os.fstat(fd))
        except OSError as error:
            os.close(fd)
            raise RepositoryUnusable("packed-refs can't be read") from error
        return PackedRefs(data, self.format.hex_len, identity, fd)

    def read(self, name: bytes) -> RawRef:
        """Look at one ref (or HEAD) and follow no symref: the loose file, else packed-refs.

        Raises:
            RepositoryUnusable: packed-refs is malformed.
        """
        loose = self._read_loose(name)
        if loose.state is not RefState.MISSING or name == b"HEAD":
            return loose
        oid = self.packed().oids.get(name)
        return RawRef(RefState.OID, oid) if oid is not None else loose

    def snapshot(self, *, peel: bool = True) -> RefSnapshot:
        known = self._whole
        if known is not None and (known[1] or not peel) and self._is_unchanged(known[0]):
            return known[2]
        state = _State()
        snapshot = self._list(state, peel)
        if state.is_settled():
            self._whole = (state, peel, snapshot)
        return snapshot

    def known_snapshot(self, *, peel: bool = True) -> RefSnapshot | None:
        known = self._whole
        if known is None or (peel and not known[1]):
            return None
        state = known[0]
        is_quick = len(state.folders) + len(state.files) <= _FEW
        return known[2] if is_quick and self._is_unchanged(state) else None

    def _is_unchanged(self, state: "_State") -> bool:
        """Whether everything that was looked at is as it was: a stat for each folder and each loose ref."""
        git_dir, stat = self.git_dir + b"/", os.stat
        try:
            for name, folder in state.folders.items():
                found = stat(git_dir + name)
                if (found.st_mtime_ns, found.st_ino) != folder:
                    return False
            for name, file in state.files.items():
                found = stat(git_dir + name)
                if (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) != file:
                    return False
        except OSError:
            return False
        return self.packed() is state.packed

    def _list(self, state: "_State", peel: bool) -> RefSnapshot:
        loose = {name: self._read_loose(name, state) for name in self._loose_names(state)}
        head = self._read_loose(b"HEAD", state)
        packed = state.packed = self.packed()

        def look(name: bytes) -> RawRef:
            raw = loose.get(name)
            if raw is None or raw.state is RefState.MISSING:
                oid = packed.oids.get(name)
                return RawRef(RefState.MISSING) if oid is None else RawRef(RefState.OID, oid)
            return raw

        def chase(raw: RawRef) -> tuple[bytes, RawRef]:
            target = b""
            for _ in range(SYMREF_DEPTH):
                if raw.state is not RefState.SYMREF:
                    break
                target = raw.value
                raw = look(target)
            return target, raw

        overlay: dict[bytes, Ref | None] = {}
        for name, raw in loose.items():
            if raw.state is RefState.MISSING:
                continue  # packed meanwhile, or deleted
            target = b""
            if raw.state is RefState.SYMREF:
                target, raw = chase(raw)
            made = overlay[name] = self._make_ref(name, raw, target, packed, peel)
            if made is None:
                state.is_whole = False  # its object may come
        refs, absent = self._refs_of_packed(packed, peel)
        if absent:
            state.is_whole = False
        if overlay:
            merged = [ref for ref in refs if ref.name not in overlay]
            merged += [ref for ref in overlay.values() if ref is not None]
            merged.sort(key=attrgetter("name"))
            refs = tuple(merged)
        head_ref = head_target = None
        if head.state is RefState.SYMREF:
            head_target, raw = chase(head)
            if is_safe_ref(head_target):
                head_ref = self._make_ref(b"HEAD", raw, head_target, packed, peel)
        elif head.state is RefState.OID:
            head_ref = self._make_ref(b"HEAD", head, b"", packed, peel)
        return RefSnapshot(refs, head_ref, head_target)

    # Loose files

    def held_oids(self) -> tuple[set[bytes], bool]:
        # Loose ones first: a ref that is packed meanwhile is in the file that is read after them
        raws = [self._read_loose(name) for name in (*self.loose_names(), b"HEAD")]
        oids = {to_raw(raw.value) for raw in raws if raw.state is RefState.OID}
        oids.update(map(to_raw, self.packed().oids.values()))
        return oids, all(raw.state is not RefState.BROKEN for raw in raws)

    def loose_names(self) -> set[bytes]:
        """The names of all refs that have a file of their own.

        Raises:
            RepositoryUnusable: a directory can't be read.
        """
        return self._loose_names(_State())

    def is_there(self, oid: bytes) -> bool:
        """Whether the object of that hex oid is there."""
        return oid != self.format.zero and to_raw(oid) in self.objects

    def _loose_names(self, state: "_State") -> set[bytes]:
        names: set[bytes] = set()
        todo = [b"refs"]
        while todo:
            folder = todo.pop()
            todo += self._list_folder(folder, names, state)
        return names

    def _list_folder(self, folder: bytes, names: set[bytes], state: "_State") -> list[bytes]:
        """Add the refs directly in `folder` to `names`; return the folders in it."""
        path = self.git_dir + b"/" + folder
        folders: set[bytes] = set()
        for _ in range(3):
            try:
                seen = os.stat(path)
                before = seen.st_mtime_ns
                with os.scandir(path) as entries:
                    for entry in entries:
                        name = folder + b"/" + entry.name
                        if entry.is_dir(follow_symlinks=False):
                            folders.add(name)
                        elif not BAD_NAME.search(name):
                            names.add(name)
                after = os.stat(path).st_mtime_ns
            except (FileNotFoundError, NotADirectoryError):
                state.is_whole = False
                break  # a folder that went while we looked; what it held is packed or deleted
            except OSError as error:
                raise RepositoryUnusable("the repository's refs can't be read") from error
            if before == after and _is_past(after, time.time_ns()):
                state.folders[folder] = (before, seen.st_ino)
                break
        else:
            state.is_whole = False
        return [name for name in folders if not BAD_NAME.search(name)]

    def _read_loose(self, name: bytes, state: "_State | None" = None) -> RawRef:
        path = self.git_dir + b"/" + name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            if state is not None:
                state.is_whole = False
            return RawRef(RefState.MISSING)
        except OSError:
            if state is not None:
                state.is_whole = False
            return self._read_link(path)
        try:
            if state is not None:
                seen = os.fstat(fd)
                state.files[name] = (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_size)
            data = os.read(fd, _READ_BYTES)
        except IsADirectoryError:
            return RawRef(RefState.MISSING)
        except OSError:
            return RawRef(RefState.BROKEN, is_loose=True)
        finally:
            os.close(fd)
        return self._parse_loose(data)

    def _read_link(self, path: bytes) -> RawRef:
        # git: files-backend.c read_ref_internal(): an old way to write a symref
        try:
            target = os.readlink(path)
            if is_safe_ref(target):
                return RawRef(RefState.SYMREF, target, is_loose=True)
            with open(path, "rb", buffering=0) as file:
                return self._parse_loose(file.read(_READ_BYTES) or b"")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return RawRef(RefState.MISSING)
        except OSError:
            return RawRef(RefState.BROKEN, is_loose=True)

    def _parse_loose(self, data: bytes) -> RawRef:
        if data.startswith(b"ref:"):
            target = data[4:].strip()
            return RawRef(RefState.SYMREF, target, is_loose=True)
        hex_len = self.format.hex_len
        oid = data[:hex_len].lower()
        if len(oid) != hex_len or not _HEX.fullmatch(oid) or data[hex_len : hex_len + 1].strip():
            return RawRef(RefState.BROKEN, is_loose=True)
        return RawRef(RefState.OID, oid, is_loose=True)

    # Objects behind refs

    def _refs_of_packed(self, packed: PackedRefs, peel: bool) -> tuple[tuple[Ref, ...], tuple[bytes, ...]]:
        """Every packed ref whose object is there, and the names of the others.

        They are looked up once for each version of the file.
        """
        cached = self._packed_refs
        if cached is not None and cached[0] is packed and (cached[1] or not peel):
            refs, absent = cached[2], cached[3]
            if not any(to_raw(packed.oids[name]) in self.objects for name in absent):
                return refs, absent
        refs_list: list[Ref] = []
        absent_list: list[bytes] = []
        present = self._present
        now_present: set[bytes] = set()
        for name in packed.names:
            if not name.startswith(b"refs/") or (packed.has_odd_names and BAD_NAME.search(name)):
                continue
            oid = packed.oids[name]
            is_known = oid in present or oid in now_present
            if not is_known and (oid == self.format.zero or to_raw(oid) not in self.objects):
                absent_list.append(name)
                continue
            now_present.add(oid)
            peeled = packed.peeled.get(name)
            if peeled is None and peel and not self._is_known_unpeelable(packed, name):
                peeled = self.peel(oid)
            refs_list.append(Ref(name, oid, peeled, None))
        self._present = now_present
        self._packed_refs = (packed, peel, tuple(refs_list), tuple(absent_list))
        return self._packed_refs[2:]

    @staticmethod
    def _is_known_unpeelable(packed: PackedRefs, name: bytes) -> bool:
        # git: packed-backend.c: "peeled" speaks for refs/tags/ only, "fully-peeled" for all
        return packed.is_fully_peeled or (packed.has_peeled_tags and name.startswith(b"refs/tags/"))

    def _make_ref(
        self, name: bytes, raw: RawRef, target: bytes, packed: PackedRefs, peel: bool
    ) -> Ref | None:
        oid = raw.value
        if raw.state is not RefState.OID or oid == self.format.zero:
            return None
        if oid not in self._peels and oid not in self._present and to_raw(oid) not in self.objects:
            return None
        peeled = self._peels.get(oid)
        if peeled is None and peel:
            final = target or name
            if packed.oids.get(final) == oid and final in packed.peeled:
                peeled = packed.peeled[final]
            else:
                peeled = self.peel(oid)
        return Ref(name, oid, peeled, target or None)


_HEX = re.compile(rb"[0-9a-f]+")


def _identity(st: os.stat_result | None) -> object:
    return None if st is None else (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)
