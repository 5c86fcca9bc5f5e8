"""One open repository: its format, config, objects, refs, and the way in for a push.

A handle is shared by every request of its repository, and by all threads. It holds no state of its own but
caches that notice by themselves when the files change; `root.py` replaces it when the directory becomes
another one.

What counts as servable (git: setup.c verify_repository_format()):

    core.repositoryFormatVersion   0 or 1
    extensions.objectFormat        sha1, sha256
    extensions.refStorage          files, reftable
    extensions.noop, noop-v1, preciousObjects, worktreeConfig, relativeWorktrees, submodulePathConfig
                                   harmless to a server without work tree; preciousObjects: see maintenance.py
    extensions.partialClone        refused: objects that others are promised may be missing here
    extensions.compatObjectFormat  refused: a push would have to write the other format's ids as well
    any other                      refused when the version is 1, ignored when it is 0, as git does

Without core.repositoryFormatVersion no extension means anything, as for git.

The paths of hooks leave this package as data, for service/hooks.py alone.
"""

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import SHA1, SHA256, ObjectFormat
from gitsmart.pack.store import ObjectStore
from gitsmart.repo.gitconfig import NO_SERVER_CONFIG, ConfigFile, GitConfig, ServerConfig
from gitsmart.repo.gone_refs import GoneRef, GoneRefs
from gitsmart.repo.maintenance import MaintenanceReport, is_due, maintain
from gitsmart.repo.plainfile import FileKind, PlainFile, list_packs, open_plain_file
from gitsmart.repo.quarantine import Push
from gitsmart.repo.reachability import Reachability
from gitsmart.repo.ref_storage import REF_STORAGES, open_refs
from gitsmart.repo.ref_view import HiddenRefs, RefView, Section, namespace_prefix
from gitsmart.repo.refs import Ref, RefSnapshot, RefState
from gitsmart.repo.reftable_refs import ReftableRefStore, worktree_head
from gitsmart.repo.shallow_file import read_shallow
from gitsmart.repo.shown_tips import ShownTips
from gitsmart.repo.worktrees import checked_out
from gitsmart.wildmatch import is_literal, wildmatch

__all__ = ["HookCommand", "NotKnown", "Repository"]

_FORMATS = {"sha1": SHA1, "sha256": SHA256}
# Known in version 0 as well (git: setup.c handle_extension_v0()); the others only mean something in version 1
_V0_EXTENSIONS = {"noop", "preciousobjects", "worktreeconfig", "partialclone"}
_V1_EXTENSIONS = {
    "noop-v1",
    "objectformat",
    "compatobjectformat",
    "refstorage",
    "relativeworktrees",
    "submodulepathconfig",
}
_NAMED_LIMIT_BYTES = 64 << 20
_KNOWN_REFS = 1000  # a list as long as this is gone through in less than a millisecond
_VIEWS = 64  # of different namespaces; each holds a name for each ref that it shows


class NotKnown(Exception):
    """What was asked for would have to be found out first, and only what is known was wanted.

    No error that a client hears of: see `Repository.known_only`.
    """


@dataclass(frozen=True, slots=True)
class HookCommand:
    """How to start one of the hooks. `environ` is all of its environment: nothing of the server's."""

    argv: tuple[str, ...]
    cwd: str
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Gone:
    """What a view showed shortly before, of what pushes took away."""

    records: tuple[GoneRef, ...]
    view: RefView | None
    tips: frozenset[bytes]
    by_name: Mapping[bytes, bytes]  # of refs that were deleted


_NOTHING_GONE = _Gone((), None, frozenset(), {})


def object_format_of(config: GitConfig) -> ObjectFormat:
    """Judge a repository's format by its config.

    Raises:
        RepositoryUnusable: this server can't serve it safely; the text names the setting.
    """
    if "extensions.partialClone" in config:
        raise RepositoryUnusable("a partial clone can't be served: objects may be missing from it")
    version = config.get_int("core.repositoryFormatVersion")
    if version is None:
        return SHA1
    if version not in (0, 1):
        raise RepositoryUnusable(f"repository format version {version} is not supported")
    for name in config.names("extensions"):
        extension = name.partition(".")[2]
        if extension in _V0_EXTENSIONS:
            continue
        if extension in _V1_EXTENSIONS:
            if version == 0:
                raise RepositoryUnusable(f"extension {extension!r} needs repository format version 1")
        elif version == 1:
            raise RepositoryUnusable(f"unknown repository extension {extension!r}")
    for switch in ("preciousObjects", "relativeWorktrees", "submodulePathConfig"):
        config.get_bool(f"extensions.{switch}")
    if "extensions.compatObjectFormat" in config:
        raise RepositoryUnusable("repositories with extensions.compatObjectFormat are not supported")
    name = config.get_str("extensions.objectFormat", "sha1")
    try:
        return _FORMATS[name]
    except KeyError:
        raise RepositoryUnusable(f"object format {name!r} is not supported") from None


def ref_storage_of(config: GitConfig) -> str:
    """Tell how a repository of a servable format keeps its refs: one of REF_STORAGES.

    Raises:
        RepositoryUnusable: in a way that is not known here.
    """
    if config.get_int("core.repositoryFormatVersion") != 1:
        return "files"
    storage = config.get_str("extensions.refStorage", "files")
    if storage not in REF_STORAGES:
        raise RepositoryUnusable(f"ref storage {storage!r} is not supported")
    return storage


class Repository:
    """An open repository. Thread-safe; opening it was `RepositoryRoot.open`'s."""

    def __init__(self, name: str, git_dir: Path, server: ServerConfig = NO_SERVER_CONFIG) -> None:
        """Open `git_dir`, which is known to be a repository inside the root. `server`: config for all.

        Raises:
            RepositoryUnusable: see the module's table.
        """
        self.name = name
        self._git_dir = git_dir
        self._config_file = ConfigFile(git_dir, server=server, head_target=self._head_target)
        self._own_config = self._config_file.read_own()
        self.format = object_format_of(self._own_config)
        self.objects = ObjectStore(git_dir / "objects", self.format)
        stat = os.stat(git_dir / "objects")
        self._identity = b"%d:%d:%b" % (stat.st_dev, stat.st_ino, os.path.realpath(os.fsencode(git_dir)))
        self.ref_store = open_refs(ref_storage_of(self._own_config), git_dir, self.format, self.objects)
        self._lenders: dict[Path, Repository] = {}  # repositories whose objects are borrowed; a few
        self.namespace = ""
        self._prefix = b""
        self.is_known_only = False
        # these are shared with the same repository in other namespaces
        self._shown_tips: dict[bytes, ShownTips] = {}
        self._gone_refs = GoneRefs(git_dir, hex_len=self.format.hex_len)
        self._gone: dict[bytes, _Gone] = {}
        self._joined: dict[bytes, tuple[frozenset[bytes], frozenset[bytes], frozenset[bytes]]] = {}
        self._reachabilities: dict[tuple[bytes, bool], Reachability] = {}
        self._hidden: dict[Section, tuple[GitConfig, HiddenRefs]] = {}
        self._shown: dict[tuple[bytes, Section], tuple[RefSnapshot, RefView, RefSnapshot]] = {}

    @property
    def identity(self) -> bytes:
        """What tells this repository from others, in caches: where its objects are. No two have the same."""
        return self._identity

    def is_current(self) -> bool:
        """Whether what makes the repository what it is is what this handle was opened with.

        Raises:
            RepositoryUnusable: the config became unreadable or malformed.
        """
        return self._config_file.read_own() is self._own_config

    @property
    def config(self) -> GitConfig:
        """The config as it is now; take it once for each request.

        Raises:
            RepositoryUnusable: it became unreadable or malformed.
        """
        return self._config_file.read()

    @property
    def is_bare(self) -> bool:
        """Whether there is no work tree; includes count, as for git.

        git: environment.c git_default_core_config().

        Raises:
            RepositoryUnusable: see `config`.
        """
        for config in (self.config, self._own_config):  # a server that locks core.* means other settings
            bare = config.get_bool("core.bare")
            if bare is not None:
                return bare
        return self._git_dir.name != ".git"

    def in_namespace(self, name: str) -> "Repository":
        """Return the same repository, seen from a namespace (gitnamespaces(7)); "" is the whole of it.

        Raises:
            ValueError: no namespace can have that name.
        """
        other = copy.copy(self)
        other.namespace, other._prefix = name, namespace_prefix(name)
        return other

    def known_only(self) -> "Repository":
        """Return the same repository for a caller that can't wait: the event loop.

        What lists refs then raises `NotKnown` rather than read the disk; a few stats are all that it does.
        What it gives is what the repository itself would give. `NotKnown` comes, too, from `shallow` where
        there are any, from what looks for refs of alternates where there are any, and from `require_known`.
        """
        other = copy.copy(self)
        other.is_known_only = True
        return other

    def require_known(self, work: int) -> None:
        """Say that something is about to be made of `work` refs; nothing, for callers that can wait.

        Raises:
            NotKnown: it is `known_only`, and these are many.
        """
        if self.is_known_only and work > _KNOWN_REFS:
            raise NotKnown

    def _head_target(self) -> bytes | None:
        """The ref that HEAD comes down to, also when unborn; None when it is detached or broken."""
        target, found = self.ref_store.resolve(b"HEAD")
        return None if target == b"HEAD" or found.state is RefState.BROKEN else target

    def refs(self, *, peel: bool = True) -> RefSnapshot:
        """List all refs as they are stored now; see `RefStore.snapshot`. Clients see `shown_refs`."""
        if self.is_known_only:
            known = self.ref_store.known_snapshot(peel=peel)
            if known is None:
                raise NotKnown
            return known
        return self.ref_store.snapshot(peel=peel)

    def view(self, section: Section) -> RefView:
        """Tell which refs a service shows, by the config of this moment; take it once for each request.

        Raises:
            RepositoryUnusable: the config is malformed.
        """
        config = self.config
        known = self._hidden.get(section)
        if known is None or known[0] is not config:
            known = self._hidden[section] = (config, HiddenRefs.from_config(config, section))
        return RefView(self._prefix, known[1])

    def shown_refs(self, section: Section, *, peel: bool = True) -> RefSnapshot:
        """List the refs that a service may tell of, by the names that its clients use: no hidden ones, and
        those of the namespace only.

        Raises: see `RefStore.snapshot`, `view`.
        """
        view = self.view(section)
        shown = self._refs_of(view, section, peel=peel)
        if section == "uploadpack":
            recent = self._recent()
            if self.is_known_only and not recent.has_seen(view.hidden, shown):
                self.require_known(len(shown.refs))
            recent.see(view.hidden, shown)
        return shown

    def recent_tips(self) -> frozenset[bytes]:
        """The hex oids that `shown_refs("uploadpack")` gave last or shortly before; see shown_tips.py."""
        return self._recent().tips

    def with_gone_tips(self, tips: frozenset[bytes]) -> frozenset[bytes]:
        """Add to `tips` what pushes took from such refs shortly before, through whichever process: hex oids.

        For tips of refs that were listed before. What was added need not be there any more; see gone_refs.py.
        The same tips give the same object while nothing changes, since some compare it with what they know.

        Raises:
            RepositoryUnusable: the config is malformed.
        """
        gone = self._read_gone().tips
        known = self._joined.get(self._prefix)
        if known is not None and known[0] is tips and known[1] is gone:
            return known[2]
        if gone <= tips:
            return tips
        if len(self._joined) >= _VIEWS:
            self._joined.clear()
        joined = tips | gone
        self._joined[self._prefix] = (tips, gone, joined)
        return joined

    def gone_ref(self, name: bytes) -> bytes | None:
        """The hex oid that a ref had which was shown shortly before, and is no longer.

        Raises: see `shown_refs`.
        """
        oid = self._recent().gone_ref(name)
        if oid is None and name == b"HEAD":
            name = self.shown_refs("uploadpack", peel=False).head_target or name
        return oid or self._read_gone().by_name.get(name)

    def _read_gone(self) -> "_Gone":
        view = self.view("uploadpack")
        records = self._gone_refs.read(self._rules_of(view))
        if not records:
            return _NOTHING_GONE
        known = self._gone.get(self._prefix)
        if known is None or known.records is not records or known.view != view:
            tips: set[bytes] = set()
            by_name: dict[bytes, bytes] = {}
            for record in records:
                name = view.shown(record.name)
                if name is None or not name.startswith(b"refs/") or view.hides(name):
                    continue
                tips.add(record.oid)
                if record.is_delete:
                    by_name[name] = record.oid
            if len(self._gone) >= _VIEWS:
                self._gone.clear()
            known = self._gone[self._prefix] = _Gone(records, view, frozenset(tips), by_name)
        return known

    def _note_gone(self, refs: Sequence[GoneRef]) -> None:
        try:
            rules = self._rules_of(self.view("uploadpack"))
        except RepositoryUnusable:
            return  # nothing is shown
        self._gone_refs.note(rules, refs)

    def _rules_of(self, view: RefView) -> bytes:
        """What tells this repository with these rules from any other, as gone_refs.py wants it."""
        text = self._identity + b"\0" + view.hidden.text.encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()[:16].encode("ascii")

    def _recent(self) -> ShownTips:
        known = self._shown_tips.get(self._prefix)
        if known is None:
            if len(self._shown_tips) >= _VIEWS:
                self._shown_tips.clear()
            known = self._shown_tips.setdefault(self._prefix, ShownTips())
        return known

    def _refs_of(self, view: RefView, section: Section, *, peel: bool) -> RefSnapshot:
        snapshot = self.refs(peel=peel)
        if not (view.namespace or view.hidden):
            return snapshot
        key = (view.namespace, section)
        known = self._shown.get(key)
        if known is None or known[1] != view or known[0] is not snapshot:
            self.require_known(len(snapshot.refs))
            # most of two listings are the same objects: to compare 100,000 takes 0.3 ms, to rename them 0.2 s
            is_same = known is not None and known[1] == view and known[0].refs == snapshot.refs
            refs = known[2].refs if known is not None and is_same else view.refs(snapshot.refs)
            if len(self._shown) >= _VIEWS:
                self._shown.clear()
            shown = RefSnapshot(refs, *view.head(snapshot, self.ref_store))
            known = self._shown[key] = (snapshot, view, shown)
        return known[2]

    def reachability(self, *, hidden_too: bool = False) -> Reachability:
        """What is known of where this namespace's refs lead to, shared by all requests.

        Args:
            hidden_too: for callers that count what uploadpack.hideRefs hides.
        """
        key = (self._prefix, hidden_too)
        known = self._reachabilities.get(key)
        if known is None:
            if len(self._reachabilities) >= _VIEWS:
                self._reachabilities.clear()
            known = self._reachabilities.setdefault(key, Reachability(self.objects))
        return known

    def shallow(self) -> frozenset[bytes]:
        """The raw oids of the commits whose parents this repository does not have; empty for a whole one.

        Raises:
            RepositoryUnusable: the `shallow` file is malformed or larger than 64 MiB.
        """
        if self.is_known_only:
            if (self._git_dir / "shallow").exists():
                raise NotKnown
            return frozenset()
        return read_shallow(self._git_dir, self.format)

    def alternate_tips(self) -> list[bytes]:
        """Return the hex oids of the refs of the repositories that objects are borrowed from, each once.

        What they reach is here without being sent. With `core.alternateRefsPrefixes` only refs that one of
        these patterns matches count, as `git for-each-ref` has them: a whole name, or folders of it, or
        wildcards. Where `core.alternateRefsCommand` is set there are none: it says that the refs themselves
        are not to be used (git: odb.c read_alternate_refs()); see `alternate_refs_commands`.

        A repository that can't be read has none. One listing of its refs each; no more than a stat for each
        folder of refs where nothing changed.
        """
        directories = self.objects.alternates()
        if not directories or "core.alternateRefsCommand" in self.config:
            return []
        if self.is_known_only:
            raise NotKnown
        setting = self.config.get_str("core.alternateRefsPrefixes", "")
        patterns = [os.fsencode(pattern) for pattern in setting.split()]
        folders = tuple(pattern.removesuffix(b"/") + b"/" for pattern in patterns)
        wild = [pattern for pattern in patterns if not is_literal(pattern)]
        tips: dict[bytes, None] = {}
        for directory in directories:
            for ref in self._refs_beside(directory):
                name = ref.name
                if (
                    not patterns
                    or name in patterns
                    or name.startswith(folders)
                    or any(wildmatch(pattern, name) for pattern in wild)
                ):
                    tips[ref.oid] = None
        return list(tips)

    def alternate_refs_commands(self) -> tuple[HookCommand, ...]:
        """Return what `core.alternateRefsCommand` has run, one for each repository that lends objects.

        Each prints hex oids, one a line, that stand for the lender's refs; () when it isn't set.
        git: odb.c fill_alternate_refs_command(), run-command.c prepare_shell_cmd().
        """
        if "core.alternateRefsCommand" not in self.config:
            return ()
        if self.is_known_only:
            raise NotKnown
        text = self.config.get_str("core.alternateRefsCommand", "")
        return tuple(
            self.command("/bin/sh", "-c", f'{text} "$@"', text, str(directory.parent))
            for directory in self.objects.alternates()
            if directory.name == "objects" and (directory.parent / "refs").is_dir()
        )

    def command(self, *argv: str) -> HookCommand:
        """Return a program that the repository's config names as what can be run: in the repository."""
        return HookCommand(argv, str(self._git_dir), {})

    def has_file(self, path: str) -> bool:
        """Whether a file is there that the repository's config names, where `command` would look for it."""
        return (self._git_dir / path).exists()

    def _refs_beside(self, objects_dir: Path) -> tuple[Ref, ...]:
        """The refs of the repository whose objects directory this is; () when it belongs to none."""
        git_dir = objects_dir.parent
        if objects_dir.name != "objects" or not (git_dir / "refs").is_dir():
            return ()
        try:
            lender = self._lenders.get(git_dir)
            if lender is None or not lender.is_current():
                lender = self._lenders[git_dir] = Repository(git_dir.name, git_dir)
            if lender.format is not self.format or lender.shallow():
                return ()  # what lies behind a shallow commit is nowhere
            return lender.refs(peel=False).refs
        except (RepositoryUnusable, OSError):
            return ()

    @property
    def has_reftables(self) -> bool:
        return isinstance(self.ref_store, ReftableRefStore)

    def checked_out(self) -> frozenset[bytes]:
        """The refs that work trees have checked out, symrefs followed; see worktrees.py."""
        if self.has_reftables:
            heads = checked_out(
                self._git_dir, is_bare=self.is_bare, head_of=lambda home: worktree_head(home, self.format)
            )
        else:
            heads = checked_out(self._git_dir, is_bare=self.is_bare)
        return frozenset(self.ref_store.resolve(head)[0] for head in heads)

    def has_promised_objects(self) -> bool:
        """Whether a pack came from a promisor remote: what its objects refer to may be missing here."""
        return any((self._git_dir / "objects" / "pack").glob("pack-*.promisor"))

    def begin_push(self) -> Push:
        """Open a quarantine for one push, a context manager. Touches no disk before it is needed."""
        return Push(
            self._git_dir,
            self.objects,
            self.ref_store,
            self.config,
            is_bare=self.is_bare,
            shallow=self.shallow,
            alternate_tips=self.alternate_tips,
            note_gone=self._note_gone,
        )

    def maintain(self, *, full: bool | None = None) -> MaintenanceReport:
        """Join packs, pack loose objects and refs, write bitmap and commit-graph (maintenance.py). Blocking.

        Args:
            full: whether to write everything anew, and drop what is old; None: when it pays.

        Raises:
            OSError: the disk says no. Everything that was there still is.
            RepositoryUnusable, PackError: something is malformed.
        """
        return maintain(self._git_dir, self.ref_store, self.config, is_bare=self.is_bare, full=full)

    def is_maintenance_due(self, *, packs: int, interval_s: float) -> bool:
        """Whether to maintain it after a push; see `maintenance.is_due`.

        Raises:
            RepositoryUnusable: the config is malformed.
        """
        objects_dir = self._git_dir / "objects"
        return is_due(self.objects, self.config, packs=packs, interval_s=interval_s, objects_dir=objects_dir)

    def info_attributes(self) -> bytes:
        """What `info/attributes` holds, b"" when there is none (gitattributes(5)).

        Raises:
            RepositoryUnusable: it can't be read, or is larger than 100 MiB.
        """
        limit_bytes = 100 << 20  # git: attr.h ATTR_MAX_FILE_SIZE
        try:
            with open(self._git_dir / "info" / "attributes", "rb") as file:
                data = file.read(limit_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise RepositoryUnusable("info/attributes can't be read") from error
        if len(data) > limit_bytes:
            raise RepositoryUnusable("info/attributes is too large")
        return data

    def open_file(self, kind: FileKind, name: str) -> PlainFile:
        """Open a file as dumb HTTP serves it; see plainfile.py.

        Raises:
            RepositoryNotFound: there is no such file.
            OSError: the disk says no.
        """
        return open_plain_file(self._git_dir, self.format, kind, name)

    def pack_names(self) -> list[str]:
        """The file names of the packs in this repository itself, alternates left out, newest first."""
        return list_packs(self._git_dir, self.format)

    def read_files_of(self, name: str) -> list[bytes]:
        """Read the files that a config variable names, as git-config(1), "pathname", has it.

        Relative to the repository's directory, where git's services run; at most 64 MiB each.

        Raises:
            RepositoryUnusable: one can't be read.
        """
        found = []
        for value in self.config.get_all(name):
            if value is None:
                raise RepositoryUnusable(f"missing value for {name!r} in the repository's config")
            try:
                with open(self._git_dir / Path(value).expanduser(), "rb") as file:
                    data = file.read(_NAMED_LIMIT_BYTES + 1)
            except (OSError, RuntimeError) as error:
                raise RepositoryUnusable(f"the file that {name!r} names can't be read") from error
            if len(data) > _NAMED_LIMIT_BYTES:
                raise RepositoryUnusable(f"the file that {name!r} names is too large")
            found.append(data)
        return found

    def hook(self, name: str) -> HookCommand | None:
        """Tell how to start a hook; None when there is no executable file of that name.

        Looks in `core.hooksPath`, relative to the repository's directory, or in `hooks/` (githooks(5)).
        """
        assert "/" not in name
        folder = self.config.get_str("core.hooksPath")
        if folder is None:
            directory = self._git_dir / "hooks"
        else:
            directory = self._git_dir / Path(folder).expanduser()
        path = directory / name
        if not path.is_file() or not os.access(path, os.X_OK):
            return None
        environ = {"GIT_DIR": str(self._git_dir), "PATH": "/usr/local/bin:/usr/bin:/bin"}
        if self.namespace:
            environ["GIT_NAMESPACE"] = self.namespace
        return HookCommand((str(path),), str(self._git_dir), environ)
