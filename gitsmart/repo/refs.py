"""What refs are to everybody else: values, and the store of one repository's refs as all backends have it.

    RefStore          read one ref, list them all: what a service may rely on
      FilesRefStore     loose files over packed-refs         files_refs.py
      ReftableRefStore  a stack of tables                    reftable_refs.py

Writing is ref_transaction.py's; which backend a repository has, ref_storage.py's.
"""

import abc
import enum
import re
from dataclasses import dataclass, field
from typing import Protocol

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.objects import ObjectFormat, to_hex, to_raw

__all__ = ["RawRef", "Ref", "RefObjects", "RefSnapshot", "RefState", "RefStore", "is_safe_ref"]

SYMREF_DEPTH = 5  # git: refs.h SYMREF_MAXDEPTH
_PEEL_CACHE = 200_000

# git check-ref-format's rules, for names that come from the disk and need no second opinion on style
BAD_NAME = re.compile(rb"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|\Z)|[./]\Z")


def is_safe_ref(ref: bytes) -> bool:
    """Say whether `ref` is a well-formed name below `refs/`: only such names become paths."""
    return ref.startswith(b"refs/") and not BAD_NAME.search(ref)


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref that resolves to an object that is there. Oids are hex."""

    name: bytes
    oid: bytes
    peeled: bytes | None  # what an annotated tag comes down to; None for anything but a tag
    symref_target: bytes | None  # the last ref of the chain, when this one is symbolic


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """All refs of about one moment: each was true at some moment during the call."""

    refs: tuple[Ref, ...]  # sorted by name; HEAD is not among them
    head: Ref | None  # HEAD, when it resolves
    head_target: bytes | None  # the ref that HEAD points at, also when unborn; None when detached
    _by_name: dict[bytes, Ref] = field(default_factory=dict, repr=False, compare=False)
    memo: dict[object, object] = field(default_factory=dict, repr=False, compare=False)
    """What others made of this list, dropped with it: the same one is given as long as nothing changes."""

    def get(self, name: bytes) -> Ref | None:
        """The ref of that name, HEAD too. The index is built at the first call."""
        if not self._by_name:
            self._by_name.update((ref.name, ref) for ref in self.refs)
            if self.head is not None:
                self._by_name[b"HEAD"] = self.head
        return self._by_name.get(name)


class RefState(enum.Enum):
    """What a look at one ref, following no symref, found."""

    OID = enum.auto()
    SYMREF = enum.auto()
    MISSING = enum.auto()
    BROKEN = enum.auto()


@dataclass(frozen=True, slots=True)
class RawRef:
    """One ref as stored. `value` is the oid, or the symref's target; b"" when missing or broken."""

    state: RefState
    value: bytes = b""
    is_loose: bool = False


class RefObjects(Protocol):
    """What refs need of an ObjectStore: is it there, and what does a tag come down to?"""

    def __contains__(self, raw_oid: bytes) -> bool: ...
    def peel(self, raw_oid: bytes) -> tuple[tuple[bytes, ...], bytes, int]: ...


class RefStore(abc.ABC):
    """The refs of one repository, read. Thread-safe: what is cached is replaced whole, never changed."""

    def __init__(self, git_dir: bytes, fmt: ObjectFormat, objects: RefObjects) -> None:
        self.git_dir = git_dir
        self.format = fmt
        self.objects = objects
        self._peels: dict[bytes, bytes | None] = {}  # hex oid of an object that is there -> what it peels to

    @abc.abstractmethod
    def read(self, name: bytes) -> RawRef:
        """Look at one ref (or HEAD) and follow no symref.

        Raises:
            RepositoryUnusable: the refs are malformed or can't be read.
        """

    @abc.abstractmethod
    def snapshot(self, *, peel: bool = True) -> RefSnapshot:
        """List every ref that resolves to an object that is there.

        As git's upload-pack does, leaves out: broken and dangling refs, all-zero ones, those whose object is
        missing, malformed names and lock files. With `peel` every tag's `peeled` is known; without, only
        where it costs nothing.

        Raises:
            RepositoryUnusable: the refs are malformed or can't be read.
        """

    @abc.abstractmethod
    def known_snapshot(self, *, peel: bool = True) -> RefSnapshot | None:
        """Give what `snapshot` would, if that is known and a few stats can tell that it still holds.

        Never long: None where a listing would have to be made, or dozens of things looked at.

        Raises:
            RepositoryUnusable: the refs are malformed or can't be read.
        """

    @abc.abstractmethod
    def held_oids(self) -> tuple[set[bytes], bool]:
        """The raw oids that refs and HEAD hold, whether they are there or not; and whether that is all: False
        when a ref is broken, so that nobody knows what it holds.

        Raises:
            RepositoryUnusable: the refs are malformed or can't be read.
        """

    def resolve(self, name: bytes) -> tuple[bytes, RawRef]:
        """Follow symrefs from `name`: the last name of the chain, and what it holds (never a symref).

        A chain that is too long, loops or leaves `refs/` is broken.
        """
        for _ in range(SYMREF_DEPTH + 1):
            raw = self.read(name)
            if raw.state is not RefState.SYMREF:
                return name, raw
            name = raw.value
            if not is_safe_ref(name):
                break
        return name, RawRef(RefState.BROKEN)

    def tips(self) -> set[bytes]:
        """The raw oids of all refs and HEAD that exist; what a connectivity check may stop at."""
        snapshot = self.snapshot(peel=False)
        tips = {ref.oid for ref in snapshot.refs}
        if snapshot.head is not None:
            tips.add(snapshot.head.oid)
        return {to_raw(oid) for oid in tips}

    def peel(self, oid: bytes) -> bytes | None:
        """What a (hex) tag comes down to; None for anything but a tag, and for a tag of what is not there."""
        try:
            return self._peels[oid]
        except KeyError:
            pass
        try:
            tags, raw_oid, _ = self.objects.peel(to_raw(oid))
            peeled = to_hex(raw_oid) if tags else None
        except (ObjectMissing, PackError):
            return None  # a tag of what is not there: git advertises it unpeeled
        if len(self._peels) >= _PEEL_CACHE:
            self._peels = {}
        self._peels[oid] = peeled
        return peeled
