"""One push's objects, from the first byte to the refs: kept apart until every check has said yes.

    ingest -> unconnected -> (pre-receive) -> migrate -> (update) -> commit -> close
      |                                         |                      |
      |  objects/incoming-gitsmart-...         |  objects/pack        |  refs
      |  a hook sees it through `environ`       |  pack held by .keep  |  .keep goes after them

Leaving the context (or `close`) removes all that was not migrated, whatever happened. A crash leaves the
repository with old refs, or with new refs whose objects are on the disk; `RepositoryRoot.sweep` removes the
rest at the next start.

The order in `migrate` is meaning (git: tmp-objdir.c pack_copy_priority()): contents fsynced; then `.keep`, so
that no `git repack -ad` that starts from now on takes the pack for unreachable and drops it; then `.pack`,
`.rev`; `.idx` last, since it makes the pack visible; then the directory is fsynced. If a pack of that name is
there already, it is left alone, and ours gets another name: a repack that is under way may be about to remove
the one that is there.

What the keep can't hold: objects outside the pack that the new tips refer to and no ref reaches. The
connectivity check found them, but a `git gc` that runs at the same time may prune them if they are older than
two weeks. git has the same window. `commit` looks once more, under the locks, that each new tip is there.
"""

import os
import secrets
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.fsck import Fsck
from gitsmart.pack.indexer import IngestedPack, IngestLimits, PackFacts, ingest_pack
from gitsmart.pack.objectid import ObjectHasher
from gitsmart.pack.objects import BLOB, COMMIT, ObjectFormat, object_header, to_hex, to_raw
from gitsmart.pack.select import walk_commits
from gitsmart.pack.store import ObjectStore
from gitsmart.repo.connectivity import find_unconnected
from gitsmart.repo.gc_lock import ObjectsGate
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.ref_storage import begin_transaction
from gitsmart.repo.ref_transaction import (
    FAILED_UPDATE,
    NoteGone,
    ReflogIdentity,
    RefUpdate,
    TransactionTerms,
)
from gitsmart.repo.refs import RefStore
from gitsmart.repo.shallow_file import extend_shallow

__all__ = ["Push", "install_pack"]

# Visible to readers as soon as the .idx is there, so it goes last
_ORDER = (".pack", ".rev", ".bitmap", ".mtimes", ".idx")


class Push:
    """The storage side of one push; a context manager, for one thread at a time."""

    def __init__(
        self,
        git_dir: Path,
        store: ObjectStore,
        refs: RefStore,
        config: GitConfig,
        *,
        is_bare: bool,
        shallow: Callable[[], Collection[bytes]] = frozenset,
        alternate_tips: Callable[[], Collection[bytes]] = frozenset,
        note_gone: NoteGone | None = None,
    ) -> None:
        self._git_dir = git_dir
        self._store = store
        self._refs = refs
        self._config = config
        self._is_bare = is_bare
        self._shallow = shallow
        self._alternate_tips = alternate_tips
        self._note_gone = note_gone
        self._owned: OwnedDirectory | None = None
        self._objects: ObjectStore | None = None
        self._packs: list[IngestedPack] = []
        self._facts: list[PackFacts] = []
        self._gate = ObjectsGate(git_dir / "objects")

    def __enter__(self) -> "Push":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def objects(self) -> ObjectStore:
        """The quarantine's objects over the repository's own: what the push would make of it."""
        return self._store if self._objects is None else self._objects

    @property
    def environ(self) -> Mapping[str, str]:
        """What lets git commands in a hook see the quarantine; {} before `ingest` and after `migrate`."""
        if self._objects is None or self._owned is None:
            return {}
        return {
            "GIT_QUARANTINE_PATH": str(self._owned.path),
            "GIT_OBJECT_DIRECTORY": str(self._owned.path),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self._git_dir / "objects"),
        }

    def ingest(
        self,
        read: Callable[[int], bytes],
        *,
        limits: IngestLimits,
        detect_collisions: bool = True,
        tick: Callable[[int, int], None] = lambda done, total: None,
        fsck: Fsck | None = None,
    ) -> IngestedPack:
        """Read a pack to its end into the quarantine; see `pack.indexer.ingest_pack`.

        Raises:
            PackError, LimitExceeded, Disconnected: as there.
            OSError: the disk says no (full, read-only).
        """
        path = self._directory().path
        pack_dir = path / "pack"
        pack_dir.mkdir(exist_ok=True)
        if self._objects is None:
            self._objects = ObjectStore(path, self._refs.format, over=self._store)
        pack = ingest_pack(
            read,
            pack_dir,
            self._refs.format,
            bases=self._store,
            detect_collisions=detect_collisions,
            limits=limits,
            tick=tick,
            fsck=fsck,
        )
        self._objects.refresh()
        if pack.objects:
            self._packs.append(pack)
        self._facts.append(pack.facts)
        return pack

    def unconnected(
        self,
        tips: Sequence[bytes],
        *,
        shallow: Collection[bytes] = frozenset(),
        tick: Callable[[], None] = lambda: None,
    ) -> dict[bytes, str]:
        """Say which of the (hex) tips reach an object that is not there, with git's words; {} when all are
        whole.

        `shallow` are commits whose parents need not be there, beside the repository's own.
        `tick` is called every few thousand objects and may raise to end the search. From here on until
        `close`, `gitsmart maintain` drops nothing (gc_lock.py).
        """
        self._hold_objects()
        return find_unconnected(
            self.objects,
            self._store,
            self._refs.tips().union(map(to_raw, self._alternate_tips())),
            tips,
            self._facts,
            shallow=frozenset(shallow).union(self._shallow()),
            tick=tick,
        )

    def shallow_roots(self, claimed: Collection[bytes], *, tick: Callable[[], None]) -> frozenset[bytes]:
        """Give those of the (raw) commits that are here without their history, but the repository's own.

        What a client says of its history proves nothing of ours: these are the commits that would have to be
        shallow here, if a ref came to reach them (git: shallow.c prepare_shallow_info()).
        """
        known = self._shallow()
        there = []
        for raw_oid in set(claimed).difference(known):
            try:
                if self.objects.type_of(raw_oid) == COMMIT:
                    there.append(raw_oid)
            except (ObjectMissing, PackError):
                continue
        lacking = self.unconnected(sorted(map(to_hex, there)), tick=tick)
        return frozenset(map(to_raw, lacking))

    def reached_roots(
        self, tip: bytes, roots: frozenset[bytes], *, tick: Callable[[], None]
    ) -> frozenset[bytes]:
        """Give those of the shallow roots that a (hex) tip reaches; with them, it is known to be whole."""
        _, target, kind = self.objects.peel(to_raw(tip))
        if kind != COMMIT:
            return frozenset()
        boundary = roots.union(self._shallow())
        new, _ = walk_commits(self.objects, [target], (), boundary=boundary, tick=lambda *_: tick())
        return roots.intersection(new)

    def extend_shallow(self, roots: Collection[bytes]) -> None:
        """Make these (raw) commits shallow in the repository; before the refs that reach them are written.

        Raises:
            OSError, RepositoryUnusable: see `extend_shallow` of shallow_file.py.
        """
        extend_shallow(self._git_dir, self._refs.format, roots)

    def migrate(self) -> None:
        """Move the quarantined pack into the repository, durably, and keep it from a concurrent repack.

        Raises:
            OSError: the disk says no; refs are not to be touched then. `close` takes back what was moved
            halfway.
        """
        if not self._packs or self._owned is None:
            return
        source = self._owned.path / "pack"
        target = self._git_dir / "objects" / "pack"
        target.mkdir(exist_ok=True)
        for name in os.listdir(source):
            _fsync(source / name)
        for pack in self._packs:
            old = f"pack-{pack.checksum.decode('ascii')}"
            install_pack(source / old, target, old, self._owned, self._refs.format)
        self._packs.clear()
        _fsync(target)
        _fsync(target.parent)
        if self._objects is not None:
            self._objects.close()
            self._objects = None
        self._store.refresh()

    def write_blob(self, data: bytes) -> bytes:
        """Write a blob into the repository itself, loose and durable, and give its hex oid.

        Raises: OSError.
        """
        raw_oid = ObjectHasher(self._refs.format, detect_collisions=False).object_id(BLOB, data)
        oid = to_hex(raw_oid)
        if raw_oid in self._store:
            return oid
        name = oid.decode("ascii")
        staged = self._directory().path / "blob"
        folder = self._git_dir / "objects" / name[:2]
        with open(staged, "wb") as file:
            file.write(zlib.compress(object_header(BLOB, len(data)) + data))
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o444)
        folder.mkdir(exist_ok=True)
        os.rename(staged, folder / name[2:])
        _fsync(folder)
        _fsync(folder.parent)
        self._store.refresh()
        return oid

    def commit(
        self,
        updates: Sequence[RefUpdate],
        *,
        atomic: bool,
        identity: ReflogIdentity,
        hook: Callable[[str, bytes], bool] | None = None,
    ) -> list[str | None]:
        """Update refs, each compared with its expected old value under its lock; a result for each, in their
        order.

        See `RefTransaction`. Never raises for what can go wrong with a ref: the result is None for done, or
        git's words.
        """
        self._hold_objects()
        self._store.refresh()
        try:
            # Not in the quarantine: `git prune --expire=now` would remove that, and with it what is being
            # written
            owned = OwnedDirectory(self._git_dir)
        except OSError:
            return [FAILED_UPDATE] * len(updates)
        try:
            terms = TransactionTerms(
                owned=owned,
                config=self._config,
                is_bare=self._is_bare,
                identity=identity,
                has_object=self._has_object,
                hook=hook,
                note_gone=self._note_gone,
            )
            return begin_transaction(self._refs, terms).run(updates, atomic=atomic)
        finally:
            owned.close()

    def close(self) -> None:
        """Let go: the keep, the quarantine and all that is in it. Idempotent; never raises."""
        if self._objects is not None:
            self._objects.close()
            self._objects = None
        if self._owned is not None:
            self._owned.close()
            self._owned = None
        self._gate.release()

    def _hold_objects(self) -> None:
        """Keep what is in the repository from being dropped, and forget what was."""
        if not self._gate.is_held:
            self._gate.share()
            self.objects.refresh()

    def _directory(self) -> OwnedDirectory:
        if self._owned is None:
            self._owned = OwnedDirectory(self._git_dir / "objects")
        return self._owned

    def _has_object(self, oid: bytes) -> bool:
        return to_raw(oid) in self._store


def install_pack(source: Path, target: Path, name: str, owned: OwnedDirectory, fmt: ObjectFormat) -> Path:
    """Move the files of one pack into a pack directory, held by a `.keep` of ours; gives their path, without
    suffix.

    Args:
        source: their path, without suffix; synced.
        name: what they are to be called, unless a pack of that name is there.

    Raises:
        OSError: the disk says no. Then nothing is there.
    """
    while True:
        keep = os.fsencode(target / f"{name}.keep")
        try:
            owned.claim(keep)
        except FileExistsError:
            pass
        else:
            if not any(os.path.lexists(target / (name + suffix)) for suffix in _ORDER):
                break
            owned.release(keep)
        name = f"pack-{secrets.token_hex(fmt.raw_len)}"
    moved: list[Path] = []
    try:
        for suffix in _ORDER:
            if not (source.parent / (source.name + suffix)).exists() and suffix not in (".pack", ".idx"):
                continue
            os.rename(source.parent / (source.name + suffix), target / (name + suffix))
            moved.append(target / (name + suffix))
    except BaseException:
        # .idx is the last, so nobody has seen the pack
        for path in moved:
            path.unlink(missing_ok=True)
        owned.release(keep)
        raise
    return target / name


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
