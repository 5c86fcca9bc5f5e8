"""Maintenance of one repository: packs joined, refs packed, bitmaps and commit-graph, old garbage dropped.

    sweep -> lock -> refs -> join, or all anew (full) -> check -> install -> commit-graph -> remove -> unlock

docs/maintenance.md has it in words. The order is meaning: what replaces something is durable and visible
before that goes, and what goes is only what was looked at in this run. A crash between any two steps leaves
every object in its old place, its new one, or both; `removing` names the packs of which half may be gone.

Objects are dropped by a full run alone, under the gate that pushes hold (gc_lock.py), after one more look at
the refs. Whatever is not as it should be (a ref whose object is missing, a broken object, an index that can't
be parsed) keeps everything.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gitsmart.errors import ObjectMissing, PackError, RepositoryUnusable
from gitsmart.pack.bitmap import write_bitmap
from gitsmart.pack.closure import pack_roots
from gitsmart.pack.commitgraph import write_commit_graph
from gitsmart.pack.midx import read_midx
from gitsmart.pack.objects import COMMIT, TAG, ObjectFormat
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.packjoin import (
    absent_from,
    format_mtimes,
    geometric_split,
    join_objects,
    read_mtimes,
    unique_parts,
)
from gitsmart.pack.packmap import PackMap
from gitsmart.pack.reach import BrokenError, Reach
from gitsmart.pack.select import PackedObjects, select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writefile import write_file
from gitsmart.repo.files_refs import FilesRefStore
from gitsmart.repo.gc_lock import ObjectsGate, locked_for_maintenance
from gitsmart.repo.gc_roots import GcRoots, find_roots
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.ownership import OwnedDirectory, sweep_repository
from gitsmart.repo.pack_refs import fsync, pack_refs
from gitsmart.repo.quarantine import install_pack
from gitsmart.repo.refs import RefStore
from gitsmart.repo.reftable_refs import ReftableRefStore
from gitsmart.repo.reftable_stack import WriteOptions
from gitsmart.repo.shallow_file import read_shallow

__all__ = ["MaintenanceReport", "is_due", "maintain", "parse_expiry"]

log = logging.getLogger(__name__)

SMALL_OBJECTS = 100  # git: builtin/receive-pack.c, receive.unpackLimit's default
FULL_LEAST, FULL_PART = 2_000, 10
"""A run becomes a full one when so many objects, and one in so many, are outside of the bitmap's pack."""

_GATE_S = 5.0
_UNFINISHED_S = 60  # closure.py writes its small files within milliseconds
_SIDE = ("info", "gitsmart")
_SUFFIXES = (".idx", ".rev", ".bitmap", ".mtimes", ".pack")  # in the order of removal
_STEM = re.compile(r"pack-[0-9A-Za-z_-]+")

Tick = Callable[[int], None]


def _no_tick(number: int) -> None:
    """Nobody waits."""


@dataclass(slots=True, kw_only=True)
class MaintenanceReport:
    """What a run did."""

    is_busy: bool = False
    """Another maintainer, or `git gc`, is at work: nothing was done."""
    is_full: bool = False
    packs_before: int = 0
    packs: int = 0
    joined: int = 0
    """Objects that were written into a new pack."""
    loose: int = 0
    """Loose objects that went into packs."""
    unreachable: int = 0
    """Objects in the cruft pack."""
    dropped: int = 0
    refs: int = 0
    """Loose refs that were packed."""
    has_bitmap: bool = False
    has_commit_graph: bool = False
    note: str = ""
    """What was not as it should be, or had to wait."""


def is_due(
    objects: ObjectStore, config: GitConfig, *, packs: int, interval_s: float, objects_dir: Path
) -> bool:
    """Say whether a repository should be maintained after a push: has many packs, and was not lately.

    `packs` of fewer objects than `receive.unpackLimit`, `transfer.unpackLimit`, or 100; or as many in all as
    `gc.autoPackLimit`. Never with `gc.auto = 0` or `receive.autogc = false`. Costs a stat or two.

    Raises:
        RepositoryUnusable: the config is malformed.
    """
    if config.get_int("gc.auto", 6700) <= 0 or config.get_bool("receive.autogc") is False:
        return False
    limit = config.get_int("receive.unpackLimit", -1)
    if limit < 0:
        limit = config.get_int("transfer.unpackLimit", -1)
    limit = SMALL_OBJECTS if limit < 0 else limit
    objects.refresh()
    counts = [pack.count for pack in objects.own_packs()]
    most = config.get_int("gc.autoPackLimit", 50)
    if sum(count < limit for count in counts) < packs and not 0 < most < len(counts):
        return False
    try:
        last_s = os.stat(objects_dir.joinpath(*_SIDE, "maintained")).st_mtime
    except OSError:
        return True
    return not 0 <= time.time() - last_s < interval_s


def parse_expiry(text: str, now_s: float) -> float | None:
    """Parse what gc.pruneExpire says: objects not written since that time may go; None: none ever.

    `now`, `all`, `never`, `false`; `2.weeks.ago` and the like; `yesterday`; seconds since 1970; ISO 8601.
    What else git may understand counts as never.
    """
    words = text.strip().lower()
    if words in ("now", "all"):
        return now_s + 1
    if words == "yesterday":
        return now_s - 86400
    found = re.fullmatch(r"(\d{1,9})[. ](second|minute|hour|day|week|month|year)s?(?:[. ]ago)?", words)
    if found is not None:
        unit = {
            "second": 1,
            "minute": 60,
            "hour": 3600,
            "day": 86400,
            "week": 7 * 86400,
            "month": 30 * 86400,
            "year": 365 * 86400,
        }[found[2]]
        return now_s - int(found[1]) * unit
    if re.fullmatch(r"@?\d{9,11}", words):
        return float(words.removeprefix("@"))
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(words.upper()).timestamp()
    return None


def maintain(
    git_dir: Path,
    refs: RefStore,
    config: GitConfig,
    *,
    is_bare: bool,
    full: bool | None = None,
    tick: Tick = _no_tick,
) -> MaintenanceReport:
    """Do what is worth doing; blocking, minutes for a large repository.

    Args:
        full: whether to write everything anew; None: when it pays.
        tick: called now and then, from another thread too; what it raises ends the run, and leaves nothing.

    Raises:
        OSError: the disk says no (full, read-only). Everything that was there still is.
        RepositoryUnusable: the config, or refs, are malformed.
        PackError: a pack is broken in a way that can't be worked around.
    """
    run = _Run(git_dir, refs, config, is_bare=is_bare, tick=tick)
    sweep_repository(git_dir)
    run.owned = OwnedDirectory(git_dir / "objects")
    try:
        with locked_for_maintenance(git_dir, run.owned.path) as is_ours:
            if not is_ours:
                run.report.is_busy = True
                return run.report
            run.run(full)
            return run.report
    finally:
        run.close()


class _Run:
    """One run, under the lock."""

    owned: OwnedDirectory

    def __init__(
        self, git_dir: Path, refs: RefStore, config: GitConfig, *, is_bare: bool, tick: Tick
    ) -> None:
        self.git_dir = git_dir
        self.objects_dir = git_dir / "objects"
        self.pack_dir = self.objects_dir / "pack"
        self.refs = refs
        self.format: ObjectFormat = refs.format
        self.config = config
        self.is_bare = is_bare
        self.tick = tick
        self.report = MaintenanceReport()
        self.store = ObjectStore(self.objects_dir, self.format)
        self._staged = 0
        self._kept: list[bytes] = []
        self._written: dict[Path, int] = {}

    def close(self) -> None:
        self.store.close()
        self.owned.close()

    def run(self, full: bool | None) -> None:
        report = self.report
        left = _finish_removal(self.objects_dir)
        self._pack_refs()
        self.store.refresh()
        report.packs_before = report.packs = len(self.store.own_packs())
        if self.config.get_bool("extensions.preciousObjects"):
            report.note = "extensions.preciousObjects: packs are left as they are"
        else:
            self._remove_repeated(left)
            packs = self._joinable()
            if full is None:
                full = self._pays_full(packs)
            if not (full and self._write_all_anew()):
                self._join()
            self.store.refresh()
            report.packs = len(self.store.own_packs())
        with contextlib.suppress(OSError):
            side = self.objects_dir.joinpath(*_SIDE)
            side.mkdir(parents=True, exist_ok=True)
            (side / "maintained").touch()

    # -- refs

    def _pack_refs(self) -> None:
        setting = self.config.get_str("gc.packRefs", "true")
        wanted = (
            not self.is_bare if setting.lower() == "notbare" else self.config.get_bool("gc.packRefs", True)
        )
        if not wanted:
            return
        owned = OwnedDirectory(self.git_dir)  # refs need not be on the objects' file system
        try:
            if isinstance(self.refs, FilesRefStore):
                self.report.refs = pack_refs(self.git_dir, self.refs, owned)
            elif isinstance(self.refs, ReftableRefStore):
                with contextlib.suppress(FileExistsError):
                    self.refs.stack.compact(owned, WriteOptions())
        finally:
            owned.close()

    # -- which packs

    def _is_special(self, pack: PackFile) -> bool:
        return any(pack.path.with_suffix(suffix).exists() for suffix in (".keep", ".promisor"))

    def _joinable(self) -> list[PackFile]:
        """Our own packs, without those that nobody may touch, and cruft packs."""
        return [
            pack
            for pack in self.store.own_packs()
            if not self._is_special(pack) and not pack.path.with_suffix(".mtimes").exists()
        ]

    def _pays_full(self, packs: Sequence[PackFile]) -> bool:
        if not self._wants_bitmap():
            return False
        total: int = sum(pack.count for pack in packs)
        mapped = max((p.count for p in packs if p.path.with_suffix(".bitmap").exists()), default=0)
        outside: int = total - mapped
        return outside > max(FULL_LEAST, total // FULL_PART)

    def _wants_bitmap(self) -> bool:
        return self.config.get_bool("repack.writeBitmaps", self.is_bare)

    def _remove_repeated(self, stems: Collection[str]) -> None:
        """Remove those of the packs, which a killed run meant to, that are in others indeed."""
        for pack in self.store.own_packs() if stems else ():
            others = [other for other in self.store.own_packs() if other is not pack]
            if pack.path.stem in stems and not absent_from(others, pack):
                self._remove([pack], ())
                self.store.refresh()

    # -- joining some

    def _join(self) -> None:
        packs = sorted(self._joinable(), key=lambda pack: pack.count)
        chosen = packs[: geometric_split([pack.count for pack in packs])]
        chosen.reverse()  # the largest first: what small ones repeat is taken from it
        loose = {} if self._has_promisor() else self.store.own_loose()
        if not chosen and not loose:
            self._write_graph(None)
            return
        # Not cruft packs: what git wrote anew though it is in one counts as young
        lasting = [p for p in self.store.own_packs() if not p.path.with_suffix(".mtimes").exists()]
        whole = PackMap(lasting, self.format.raw_len)
        names = list(loose)
        new_loose = [
            name for name, number in zip(names, whole.numbers_of(names), strict=True) if number is None
        ]
        staging = self._staging()
        new = join_objects(self.store, unique_parts(chosen, self.format), new_loose, staging, tick=self.tick)
        self.report.joined = 0 if new is None else new.count
        self.report.loose = len(loose)
        staying = [pack for pack in lasting if pack not in chosen]
        if new is not None:
            self._check_all([new], chosen, ())
            times = [pack.path.stat().st_mtime_ns for pack in chosen]
            times += [loose[name].stat().st_mtime_ns for name in new_loose if loose[name].exists()]
            staying.append(self._install(new, newest_ns=max(times, default=time.time_ns())))
        self._check_loose(staying, loose, ())
        self._write_graph(None)
        self._remove(chosen, loose.values())

    def _has_promisor(self) -> bool:
        return any(self.pack_dir.glob("pack-*.promisor"))

    # -- writing all anew

    def _write_all_anew(self) -> bool:
        """Do a full run; False when that can't be done here."""
        if self._has_promisor():
            self.report.note = "objects are promised by another repository: no full run"
            return False
        roots = find_roots(self.git_dir, self.refs, self.format)
        own = self.store.own_packs()
        normal = sorted(self._joinable(), key=lambda pack: pack.count, reverse=True)
        special = [pack for pack in own if self._is_special(pack)]
        cruft = [pack for pack in own if pack not in normal and pack not in special]
        lent = [pack for pack in self.store.packs() if pack not in own]
        whole = PackMap([*normal, *cruft, *special, *lent], self.format.raw_len)
        try:
            reach = self._reach(roots, whole)
        except (ObjectMissing, PackError, BrokenError) as error:
            self.report.note = f"not all that refs lead to is there: no full run ({error})"
            return False
        self.report.is_full = True
        self._write_graph(roots)  # before anything goes that an older one may name; and it speeds up the rest
        self.store.refresh()
        reached, loose = reach.bits(), self.store.own_loose()
        has_bitmap = self._wants_bitmap()
        sources = [*normal, *cruft]
        if self.config.get_bool("repack.packKeptObjects", has_bitmap):
            sources += special
        parts = [PackedObjects(pack, bits) for pack, bits in whole.parts(reached) if pack in sources]
        reached_loose = [name for name in reach.loose if name in loose]
        kept, dropped, times = self._unreachable(roots, whole, reach, [*normal, *cruft], loose)

        replaced = [*normal, *cruft]
        new: list[PackFile] = []
        is_same = len(parts) == 1 and not reached_loose and len(parts[0]) == parts[0].pack.count
        if is_same and parts[0].pack in normal:
            replaced.remove(parts[0].pack)
            self._bitmap_for(parts[0].pack, roots)
            new.append(parts[0].pack)
        else:
            main = join_objects(self.store, parts, reached_loose, self._staging(), tick=self.tick)
            if main is not None:
                self.report.joined += main.count
                if has_bitmap:
                    self.report.has_bitmap = (
                        write_bitmap(self.store, main, roots.refs, tick=self.tick) is not None
                    )
                new.append(self._install(main))
        if kept:
            new.append(self._cruft(kept, times, whole, cruft, loose))
            if new[-1] in replaced:
                replaced.remove(new[-1])
        self.report.unreachable = len(kept)
        self.report.loose = len(loose)
        staying = [*new, *special]
        self._check_all(staying, replaced, dropped)
        self._check_loose([*staying, *lent], loose, dropped)
        if dropped:
            self._drop(roots, replaced, loose, dropped)
        else:
            self._remove(replaced, loose.values())
        return True

    def _reach(self, roots: GcRoots, whole: PackMap) -> Reach:
        """Find all that is reached.

        Raises: ObjectMissing, PackError, BrokenError
        """
        reach = Reach(self.store, whole, tick=self.tick)
        shallow = read_shallow(self.git_dir, self.format)
        reach.add(_targets(self.store, roots.refs, missing_ok=False), ends=shallow)
        missing = set(reach.loose) - self.store.present(reach.loose)
        if missing:
            raise ObjectMissing(min(missing).hex())
        reach.add(_targets(self.store, roots.others, missing_ok=True), ends=shallow, missing_ok=True)
        return reach

    def _unreachable(
        self,
        roots: GcRoots,
        whole: PackMap,
        reach: Reach,
        packs: Sequence[PackFile],
        loose: dict[bytes, Path],
    ) -> tuple[set[bytes], set[bytes], dict[bytes, int]]:
        """Return what is not reached and stays, what goes, and since when nobody wrote each: in seconds."""
        bits = reach.bits()
        times: dict[bytes, int] = {}
        for pack in packs:
            written_s = self._written_s(pack.path)
            ages = read_mtimes(pack)
            for start in range(0, pack.count, 65536):
                positions = range(start, min(start + 65536, pack.count))
                names = [pack.name_at(position) for position in positions]
                for position, name, number in zip(positions, names, whole.numbers_of(names), strict=True):
                    if number is None or not bits[number >> 3] >> (number & 7) & 1:
                        age = written_s if ages is None else ages[position]
                        times[name] = max(times.get(name, 0), age)
        names = list(loose)
        for name, number in zip(names, whole.numbers_of(names), strict=True):
            is_reached = name in reach.loose if number is None else bits[number >> 3] >> (number & 7) & 1
            if not is_reached:
                with contextlib.suppress(FileNotFoundError):
                    times[name] = max(times.get(name, 0), self._written_s(loose[name]))
        everything = set(times)
        expiry = self._expiry()
        if not everything or expiry is None or not roots.is_known:
            if everything and not roots.is_known:
                self.report.note = "not all that may keep objects could be read: none are dropped"
            return everything, set(), times
        young = {name for name, time_s in times.items() if time_s > expiry}
        try:
            more = Reach(self.store, whole, tick=self.tick)
            more.take(bits)
            more.add(_targets(self.store, young, missing_ok=True), missing_ok=True)
            young_bits = more.bits()
        except (BrokenError, PackError, ObjectMissing):
            self.report.note = "an unreachable object is broken: none are dropped"
            return everything, set(), times
        old = list(everything - young - set(more.loose))
        dropped = {
            name
            for name, number in zip(old, whole.numbers_of(old), strict=True)
            if number is None or not young_bits[number >> 3] >> (number & 7) & 1
        }
        return everything - dropped, dropped, times

    def _written_s(self, path: Path) -> int:
        """When a pack or loose object was written, or came to be counted on: git touches it then.

        Raises: FileNotFoundError.
        """
        stat = path.stat()
        self._written[path] = stat.st_mtime_ns
        return int(stat.st_mtime)

    def _is_touched(self) -> bool:
        for path, time_ns in self._written.items():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns != time_ns:
                    return True
        return False

    def _expiry(self) -> float | None:
        text = self.config.get_str("gc.pruneExpire", "2.weeks.ago")
        expiry = parse_expiry(text, time.time())
        if expiry is None and text.strip().lower() not in ("never", "false"):
            self.report.note = f"gc.pruneExpire = {text!r} is not understood: nothing is dropped"
        return expiry

    def _cruft(
        self,
        kept: set[bytes],
        times: dict[bytes, int],
        whole: PackMap,
        cruft: Sequence[PackFile],
        loose: dict[bytes, Path],
    ) -> PackFile:
        """Have a cruft pack of these objects."""
        for pack in cruft:
            if pack.count == len(kept) and not any(pack.name_at(at) not in kept for at in range(pack.count)):
                ages = read_mtimes(pack)
                if ages is not None and all(ages[at] == times[pack.name_at(at)] for at in range(pack.count)):
                    return pack
        names = list(kept)
        found = dict(zip(names, whole.numbers_of(names), strict=True))
        parts = whole.parts(whole.bits_of(number for number in found.values() if number is not None))
        single = [name for name, number in found.items() if number is None and name in loose]
        pack_parts = [PackedObjects(pack, bits) for pack, bits in parts]
        new = join_objects(self.store, pack_parts, single, self._staging(), tick=self.tick)
        assert new is not None
        self.report.joined += new.count
        path = new.path.with_suffix(".mtimes")
        path.write_bytes(format_mtimes(new, times))
        path.chmod(0o444)
        return self._install(new)

    def _bitmap_for(self, pack: PackFile, roots: GcRoots) -> None:
        """Give a pack that stays as it is a bitmap, when it has none."""
        path = pack.path.with_suffix(".bitmap")
        if path.exists() or not self._wants_bitmap():
            self.report.has_bitmap = path.exists()
            return
        staging = self._staging()
        try:
            for suffix in (".pack", ".idx"):
                os.link(pack.path.with_suffix(suffix), staging / pack.path.with_suffix(suffix).name)
        except OSError:
            return  # no hard links here: the next pack gets one
        made = write_bitmap(
            self.store, PackFile(staging / pack.path.name, self.format), roots.refs, tick=self.tick
        )
        if made is not None:
            os.rename(made, path)
            fsync(self.pack_dir)
            self.report.has_bitmap = True

    # -- dropping

    def _drop(
        self,
        roots: GcRoots,
        replaced: Sequence[PackFile],
        loose: dict[bytes, Path],
        dropped: set[bytes],
    ) -> None:
        gate = ObjectsGate(self.objects_dir)
        if not gate.take(_GATE_S):
            self.report.note = "a push is under way: nothing is dropped this time"
            return self._remove_without(replaced, loose, dropped)
        try:
            if self._is_touched() or self._is_needed(roots, dropped):
                self.report.note = "a ref came to need what was to go: nothing is dropped this time"
                return self._remove_without(replaced, loose, dropped)
            self._remove(replaced, loose.values())
            self.report.dropped = len(dropped)
        finally:
            gate.release()
        return None

    def _is_needed(self, roots: GcRoots, dropped: set[bytes]) -> bool:
        """Whether what refs hold by now, or shortly before, leads to something that is to go."""
        now = find_roots(self.git_dir, self.refs, self.format)
        if not now.is_known:
            return True
        fresh = ObjectStore(self.objects_dir, self.format)
        try:
            new = fresh.present(now.all - roots.all)
            if not new:
                return False
            if new & dropped:
                return True
            shallow = read_shallow(self.git_dir, self.format)
            selection = select_objects(
                fresh, wants=new, haves=roots.refs, boundary=shallow, client_shallow=shallow
            )
            return bool(selection.among(dropped))
        except (ObjectMissing, PackError, BrokenError):
            return True
        finally:
            fresh.close()

    def _remove_without(
        self, replaced: Sequence[PackFile], loose: dict[bytes, Path], dropped: set[bytes]
    ) -> None:
        """Remove what is in other packs by now, but nothing that holds what was to be dropped."""
        free = [pack for pack in replaced if not any(pack.position_of(name) is not None for name in dropped)]
        self._remove(free, (path for name, path in loose.items() if name not in dropped))

    # -- files

    def _staging(self) -> Path:
        """Make a new directory, as objects/pack, in what goes with this run."""
        self._staged += 1
        path = self.owned.path / f"join-{self._staged}" / "pack"
        path.mkdir(parents=True)
        return path

    def _install(self, pack: PackFile, *, newest_ns: int | None = None) -> PackFile:
        """Put a pack in place, durably; kept until the run's end."""
        if newest_ns is not None:
            # What lies in it unreached is no younger than it was
            os.utime(pack.path, ns=(newest_ns, newest_ns))
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                fsync(pack.path.with_suffix(suffix))
        stem = install_pack(pack.path.with_suffix(""), self.pack_dir, pack.path.stem, self.owned, self.format)
        self._kept.append(os.fsencode(f"{stem}.keep"))
        fsync(self.pack_dir)
        placed = PackFile(stem.with_suffix(".pack"), self.format)
        pack_roots(placed, tick=self.tick)
        return placed

    def _check_all(
        self, staying: Sequence[PackFile], replaced: Iterable[PackFile], dropped: Collection[bytes]
    ) -> None:
        """See that every object of the packs that go is in one that stays, or is to be dropped."""
        for pack in replaced:
            if any(name not in dropped for name in absent_from(staying, pack)):
                raise PackError(f"{pack.path.name} has objects that the new packs lack")

    def _check_loose(
        self, staying: Sequence[PackFile], loose: dict[bytes, Path], dropped: Collection[bytes]
    ) -> None:
        whole = PackMap(staying, self.format.raw_len)
        names = list(loose)
        for name, number in zip(names, whole.numbers_of(names), strict=True):
            if number is None and name not in dropped:
                del loose[name]  # it came meanwhile, or is another's: it stays

    def _remove(self, packs: Sequence[PackFile], loose: Iterable[Path]) -> None:
        packs = [pack for pack in packs if not self._is_special(pack)]
        stems = [pack.path.stem for pack in packs]
        self._forget_midx(stems)
        if stems:
            side = self.objects_dir.joinpath(*_SIDE)
            side.mkdir(parents=True, exist_ok=True)
            journal = self.owned.path / "removing"
            write_file(journal, "".join(f"{stem}\n" for stem in stems).encode())
            os.rename(journal, side / "removing")
            fsync(side)
        for pack in packs:
            for suffix in _SUFFIXES:
                pack.path.with_suffix(suffix).unlink(missing_ok=True)
        for path in loose:
            path.unlink(missing_ok=True)
        if stems:
            fsync(self.pack_dir)
            (side / "removing").unlink(missing_ok=True)
        for keep in self._kept:
            self.owned.release(keep)
        self._kept = []

    def _forget_midx(self, stems: Sequence[str]) -> None:
        """Remove a multi-pack-index that names packs which go (git: builtin/repack.c does the same)."""
        path = self.pack_dir / "multi-pack-index"
        try:
            names = read_midx(self.pack_dir, self.format).pack_names
            if not any(f"{stem}.idx" in names for stem in stems):
                return
        except FileNotFoundError:
            return
        except PackError:
            if not stems:
                return
        path.unlink(missing_ok=True)
        for other in self.pack_dir.glob("multi-pack-index-*"):
            other.unlink(missing_ok=True)

    # -- commit-graph

    def _pays_graph(self) -> bool:
        """Whether a tenth of the objects came after the commit-graph: it is written anew as a whole."""
        made_ns = []
        for name in ("commit-graph", "commit-graphs/commit-graph-chain"):
            with contextlib.suppress(OSError):
                made_ns.append((self.objects_dir / "info" / name).stat().st_mtime_ns)
        if not made_ns:
            return True
        total = later = 0
        for pack in self.store.own_packs():
            total += pack.count
            with contextlib.suppress(OSError):
                later += pack.count if pack.path.stat().st_mtime_ns > max(made_ns) else 0
        return later * FULL_PART > total

    def _write_graph(self, roots: GcRoots | None) -> None:
        """Write the commit-graph of what refs reach, unless there is one that says all of it."""
        if not self.config.get_bool("core.commitGraph", True):
            return
        if roots is None and not self._pays_graph():
            return
        try:
            held = self.refs.held_oids()[0] if roots is None else roots.refs
            tips = [oid for oid, kind in _targets(self.store, held, missing_ok=True) if kind == COMMIT]
            made = write_commit_graph(
                self._staging().parent, self.format, self.store.commit, tips, tick=self.tick
            )
        except (PackError, RepositoryUnusable):
            return
        if made is None:
            return
        info = self.objects_dir / "info"
        info.mkdir(exist_ok=True)
        lock = os.fsencode(info / "commit-graph.lock")
        try:
            self.owned.claim(lock)
        except FileExistsError:
            return
        try:
            os.rename(made, info / "commit-graph")
            fsync(info)
            self.report.has_commit_graph = True
        finally:
            self.owned.release(lock)


def _targets(store: ObjectStore, oids: Iterable[bytes], *, missing_ok: bool) -> list[tuple[bytes, int]]:
    """Peel: return objects and types for `Reach.add`, tags that were passed among them."""
    found: dict[bytes, int] = {}
    for oid in oids:
        try:
            tags, raw_oid, kind = store.peel(oid)
        except (ObjectMissing, PackError):
            if not missing_ok:
                raise
            continue
        found.update(dict.fromkeys(tags, TAG))
        found[raw_oid] = kind
    return list(found.items())


def _finish_removal(objects_dir: Path) -> list[str]:
    """Remove the rest of packs that a run was removing when it was killed, and files that were being made.

    Returns the names of those packs that it had not begun with.
    """
    for unfinished in objects_dir.joinpath(*_SIDE).glob("tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > _UNFINISHED_S:
                unfinished.unlink()
    journal = objects_dir.joinpath(*_SIDE, "removing")
    try:
        stems = journal.read_text("ascii").split("\n")
    except (OSError, ValueError):
        return []
    left = []
    for stem in stems:
        path = objects_dir / "pack" / stem
        if not _STEM.fullmatch(stem):
            continue
        if os.path.lexists(f"{path}.idx") or os.path.lexists(f"{path}.keep"):
            left.append(stem)
            continue
        for suffix in _SUFFIXES:
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    journal.unlink(missing_ok=True)
    return left
