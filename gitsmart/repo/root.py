"""The directory of repositories: from a name that a peer sent to an open Repository.

`_locate` is the only function that joins a peer's text and a path.

    name      = [ "/" ] segment *( "/" segment ) [ "/" ]    percent-decoded by httpd; "%" is literal
    segment   : UTF-8; no control character, backslash, "." or ".."; no leading "-"; at most 255 bytes

For the name `N` these are tried in order, and the first that is a repository is it: `N`, `N/.git`, `N.git`;
then, when N ends in `.git`, the name without it. A repository is a directory that git takes for one (HEAD,
`objects/`, `refs/`; git: setup.c is_git_directory()), whose real path, and that of its `objects` and `refs`,
lies inside the root. Not served, whatever they lead to: `.git` files (worktrees, submodules), directories
with a `commondir` file, anything inside a repository or a work tree (where a push could have planted a
repository with hooks of its own). All refusals have one text, so that nobody can learn what is there.

Handles are kept (the newest 256) while the directory is the same one: same inode of the directory and of
`objects`, same config file. Repositories may come, go and change while the server runs.

`sweep` removes what killed servers left; whose it is, and how that is known for certain, is ownership.py's.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from gitsmart.errors import ConfigError, RepositoryError, RepositoryNotFound, RepositoryUnusable
from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.repo.gitconfig import NO_SERVER_CONFIG, ServerConfig
from gitsmart.repo.ownership import sweep_repository
from gitsmart.repo.ref_storage import REF_STORAGES
from gitsmart.repo.reftable import RefRecord
from gitsmart.repo.reftable_stack import create_stack
from gitsmart.repo.repository import NotKnown, Repository

__all__ = ["InvalidRepositoryName", "RepositoryExists", "RepositoryRoot"]

HANDLES = 256  # each holds a few descriptors; pulled out of the air
NESTING = 32  # folders below the root that names() looks into
_CREATING = ".gitsmart-new-"  # no name may start so: a repository is made there and then renamed
_DETACHED = re.compile(rb"(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{40})(?:\s|\Z)")
_FORBIDDEN_CHARS = re.compile(r"[\x00-\x1f\x7f\\]")


class RepositoryExists(RepositoryError):
    """There is something of that name, or around it, already."""


class InvalidRepositoryName(RepositoryError):
    """No repository may have that name."""


class RepositoryRoot:
    """All repositories below one directory. Thread-safe; every method blocks on disk."""

    def __init__(
        self, path: Path, server: ServerConfig = NO_SERVER_CONFIG, *, export_all: bool = True
    ) -> None:
        """Serve the directory `path`, which must exist. `server`: git config for all repositories.

        Args:
            export_all: False: only repositories that hold a file git-daemon-export-ok.

        Raises:
            ConfigError: it is no directory, or can't be read.
        """
        try:
            os.scandir(path).close()
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"repository root {str(path)!r} is not a directory") from None
        except OSError as error:
            raise ConfigError(f"repository root {str(path)!r} can't be read: {error.strerror}") from None
        self.path = Path(os.path.realpath(path))
        self._server = server
        self._export_all = export_all
        self._base = str(self.path).rstrip("/")
        self._handles: OrderedDict[str, tuple[object, Repository]] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, name: str) -> Repository:
        """Find the repository that a peer named.

        Raises:
            RepositoryNotFound: there is none, or none that may be served; one text for all reasons.
            RepositoryUnusable: there is one, of a format that this server can't serve.
        """
        found = self._locate(name)
        if found is None or not self._is_exported(found[1]):
            raise RepositoryNotFound("repository not found")
        return self._handle(*found)

    def open_known(self, name: str) -> Repository:
        """Give what `open` would, if it was opened before: `Repository.known_only`, after a dozen of stats.

        Raises:
            NotKnown: it wasn't, or something is different now, or there is none.
            RepositoryUnusable: as `open`.
        """
        found = self._locate(name)
        if found is None or not self._is_exported(found[1]):
            raise NotKnown
        known = self._current_handle(found[1], _identity(found[1]))
        if known is None:
            raise NotKnown
        return known.known_only()

    def names(self) -> Iterator[str]:
        """Give the names of all repositories, sorted; never looks inside one, or deeper than 32 folders."""
        for name in self._all_names():
            found = self._locate(name)
            if found is not None and self._is_exported(found[1]):
                yield name

    def create(self, name: str, *, object_format: str = "sha1", ref_format: str = "files") -> Repository:
        """Make an empty bare repository that git accepts, whole or not at all; missing folders are made.

        The directory's name is `name`, with `.git` at its end.

        Raises:
            InvalidRepositoryName: the name is malformed.
            RepositoryExists: the name is taken, or lies inside a repository.
            ValueError: an object format that is not "sha1" or "sha256", a ref format that is not "files" or
                "reftable".
            RepositoryUnusable: the disk says no.
        """
        if object_format not in ("sha1", "sha256"):
            raise ValueError(f"unknown object format {object_format!r}")
        if ref_format not in REF_STORAGES:
            raise ValueError(f"unknown ref format {ref_format!r}")
        segments = _segments(name)
        if segments is None or segments[-1] == ".git":
            raise InvalidRepositoryName(f"not a repository name: {name!r}")
        stem = segments[-1].removesuffix(".git")
        if not stem or stem == ".":
            raise InvalidRepositoryName(f"not a repository name: {name!r}")
        if self._locate("/".join(segments)) is not None:
            raise RepositoryExists(f"repository {name!r} exists already")
        directory = Path(self.path, *segments[:-1], stem + ".git")
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            if self._relative_if_servable(f"{os.path.realpath(directory.parent)}/{directory.name}") is None:
                raise RepositoryExists(f"{name!r} lies inside a repository, or outside the root")
            if os.path.lexists(directory):
                raise RepositoryExists(f"{name!r} exists already")
            self._make_bare(directory, object_format, ref_format)
        except (FileExistsError, NotADirectoryError) as error:
            raise RepositoryExists(f"{name!r} exists already, or a part of it is a file") from error
        except OSError as error:
            raise RepositoryUnusable(f"repository {name!r} can't be made: {error.strerror}") from error
        return self.open("/".join([*segments[:-1], stem + ".git"]))

    def sweep(self) -> int:
        """Remove what killed servers left in any repository; see ownership.py. Returns how many things went.

        What belongs to a living server, this one included, or to git stays.
        """
        count = 0
        for name in self._all_names():
            found = self._locate(name)
            if found is not None:
                count += sweep_repository(Path(found[1]))
        for directory in self._folders(self.path, {_inode(self.path)}, NESTING):
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith(_CREATING) and entry.is_dir(follow_symlinks=False):
                        count += _discard_unfinished(directory / entry.name)
        return count

    # Names to paths

    def _locate(self, name: str) -> tuple[str, str] | None:
        """The repository's own name and its git directory: the only join of a peer's text and a path.

        Strings, since this is done for each request, and Path takes more time than the system calls.
        """
        segments = _segments(name)
        if segments is None:
            return None
        *folders, last = segments
        if last == ".git":
            if not folders:
                return None
            *folders, last = folders
        candidates = [last, last + "/.git", last + ".git"]
        if last.endswith(".git") and last != ".git":
            candidates += [last[:-4], last[:-4] + "/.git"]
        try:
            parent = "/".join([self._base, *folders])
            if not os.path.isdir(parent or "/"):
                return None
            for candidate in candidates:
                if not _is_git_dir(f"{parent}/{candidate}"):
                    continue
                real = self._real([*folders, *candidate.split("/")])
                relative = self._relative_if_servable(real)
                if relative is None or not self._keeps_inside(real):
                    return None
                return relative, real
        except (OSError, ValueError):  # a name that is too long, or that the file system can't encode
            return None
        return None

    def _is_exported(self, git_dir: str) -> bool:
        """See git: http-backend.c cmd_main(), GIT_HTTP_EXPORT_ALL."""
        return self._export_all or os.path.exists(git_dir + "/git-daemon-export-ok")

    def _relative_if_servable(self, real: str) -> str | None:
        """The name of a real path, when it is below the root and no folder above it is a repository."""
        if not real.startswith(self._base + "/"):
            return None
        parts = real[len(self._base) + 1 :].split("/")
        if parts[-1] == ".git":
            del parts[-1]
        if not parts or not parts[-1] or ".git" in parts:
            return None
        folder = self._base
        for part in parts[:-1]:
            folder = f"{folder}/{part}"
            if _is_git_dir(folder) or os.path.lexists(folder + "/.git"):
                return None
        return "/".join(parts)

    def _keeps_inside(self, git_dir: str) -> bool:
        """No link leads the repository's own parts out of the root."""
        if os.path.lexists(git_dir + "/commondir"):
            return False
        for part in ("objects", "refs", "reftable"):
            path = f"{git_dir}/{part}"
            if os.path.islink(path) and not os.path.realpath(path).startswith(self._base + "/"):
                return False
        return True

    def _real(self, parts: list[str]) -> str:
        """The real path of one below the root: itself, if no part of it is a link, which is quick to see."""
        at = self._base
        for part in parts:
            at = f"{at}/{part}"
            if os.path.islink(at):
                return os.path.realpath("/".join([self._base, *parts]))
        return at

    def _handle(self, name: str, git_dir: str) -> Repository:
        identity = _identity(git_dir)
        current = self._current_handle(git_dir, identity)
        if current is not None:
            return current
        with self._lock:
            known = self._handles.get(git_dir)
        repository = Repository(name, Path(git_dir), self._server)
        with self._lock:
            raced = self._handles.get(git_dir)
            if raced is not known and raced is not None and raced[0] == identity:
                return raced[1]
            # A handle that is replaced stays usable for those who hold it, and goes with the last of them
            self._handles[git_dir] = (identity, repository)
            self._handles.move_to_end(git_dir)
            while len(self._handles) > HANDLES:
                self._handles.popitem(last=False)
        return repository

    def _current_handle(self, git_dir: str, identity: object) -> Repository | None:
        with self._lock:
            known = self._handles.get(git_dir)
            if known is not None:
                self._handles.move_to_end(git_dir)
        return known[1] if known is not None and known[0] == identity and known[1].is_current() else None

    # Walks

    def _all_names(self) -> Iterator[str]:
        yield from self._names_below(self.path, "", {_inode(self.path)}, NESTING)

    def _names_below(
        self, folder: Path, prefix: str, above: set[tuple[int, int]], depth: int
    ) -> Iterator[str]:
        found = []
        for name, inode in self._children(folder, above):
            path = folder / name
            if _is_git_dir(f"{path}") or _is_git_dir(f"{path}/.git"):
                found.append((name, name, inode))
            elif depth > 1 and not os.path.lexists(path / ".git"):
                found.append((name + "/", name, inode))
        for full, name, inode in sorted(found):
            path = folder / name
            if full != name:
                yield from self._names_below(path, prefix + full, above | {inode}, depth - 1)
            elif self._locate(prefix + name) == (prefix + name, self._git_dir_of(path)):
                yield prefix + name

    @staticmethod
    def _git_dir_of(path: Path) -> str:
        return os.path.realpath(path if _is_git_dir(f"{path}") else path / ".git")

    def _folders(self, folder: Path, above: set[tuple[int, int]], depth: int) -> Iterator[Path]:
        """`folder` and the folders below it that are no repositories."""
        yield folder
        for name, inode in self._children(folder, above):
            path = folder / name
            if depth > 1 and not _is_git_dir(f"{path}") and not os.path.lexists(path / ".git"):
                yield from self._folders(path, above | {inode}, depth - 1)

    @staticmethod
    def _children(folder: Path, above: set[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
        """The folders in `folder` that a name can reach and that are not above it."""
        children = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _segments(entry.name) is None or entry.name == ".git":
                        continue
                    with contextlib.suppress(OSError):
                        if entry.is_dir():
                            inode = _inode(folder / entry.name)
                            if inode not in above:
                                children.append((entry.name, inode))
        except OSError:
            return []
        return children

    # Making one

    def _make_bare(self, directory: Path, object_format: str, ref_format: str) -> None:
        temporary = directory.parent / f"{_CREATING}{secrets.token_hex(8)}"
        temporary.mkdir()
        # Held open and locked while it is made, so that a sweep by another server leaves it alone
        fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folders = ["hooks", "info", "objects", "objects/info", "objects/pack", "refs"]
            if ref_format == "files":
                folders += ["refs/heads", "refs/tags"]
            for folder in folders:
                (temporary / folder).mkdir()
            extensions = ""
            if object_format != "sha1":
                extensions += f"\tobjectformat = {object_format}\n"
            if ref_format != "files":
                extensions += f"\trefstorage = {ref_format}\n"
            version = 1 if extensions else 0
            config = f"[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = true\n"
            if extensions:
                config += f"[extensions]\n{extensions}"
            _write(temporary / "config", config)
            _write(temporary / "description", "Unnamed repository; edit this file to name the repository.\n")
            _write(temporary / "info" / "exclude", "# Patterns of files to ignore; see gitignore(5)\n")
            if ref_format == "files":
                _write(temporary / "HEAD", "ref: refs/heads/main\n")
            else:
                # For programs that don't know of reftables, gitformat-reftable, "Backward compatibility"
                _write(temporary / "HEAD", "ref: refs/heads/.invalid\n")
                _write(temporary / "refs" / "heads", "this repository uses the reftable format\n")
                create_stack(
                    os.fsencode(temporary / "reftable"),
                    SHA1 if object_format == "sha1" else SHA256,
                    [RefRecord(b"HEAD", 1, target=b"refs/heads/main")],
                )
            for base, folders, _ in os.walk(temporary):
                for folder in folders:
                    _fsync_directory(Path(base, folder))
            _fsync_directory(temporary)
            # Fails when the name has come meanwhile, unless as an empty folder, which loses nothing
            os.rename(temporary, directory)
            _fsync_directory(directory.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(fd)


def _discard_unfinished(path: Path) -> int:
    """Remove what a killed `create` left, once it is a minute old and nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_mtime > time.time() - 60:
                return 0
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        finally:
            os.close(fd)
    except OSError:
        return 0
    return 1


def _segments(name: str) -> list[str] | None:
    """Split a name; None when it can't be one."""
    if _FORBIDDEN_CHARS.search(name) or len(name) > 4096:
        return None
    segments = name.removeprefix("/").removesuffix("/").split("/")
    for segment in segments:
        if segment in ("", ".", "..") or segment.startswith(("-", _CREATING)):
            return None
        try:
            # A directory whose name is not UTF-8 has surrogates here; no peer can send those
            if len(segment.encode("utf-8")) > 255:
                return None
        except UnicodeEncodeError:
            return None
    if ".git" in segments[:-1]:
        return None
    return segments


def _is_git_dir(path: str) -> bool:
    """git: setup.c is_git_directory() and path.c validate_headref(), without following `commondir`."""
    if not (os.path.isdir(path + "/objects") and os.path.isdir(path + "/refs")):
        return False
    head = path + "/HEAD"
    try:
        # Opening a FIFO would wait for its writer: a thread of ours, for ever
        fd = os.open(head, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (OSError, ValueError):
        try:
            return os.readlink(head).startswith("refs/")
        except (OSError, ValueError):
            return False
    try:
        data = os.read(fd, 256)
    except OSError:
        return False
    finally:
        os.close(fd)
    if data.startswith(b"ref:"):
        return data[4:].lstrip().startswith(b"refs/")
    return _DETACHED.match(data) is not None


def _identity(git_dir: str) -> object:
    """By which a handle is known to be of this very repository.

    Raises:
        RepositoryNotFound: it has gone.
    """
    try:
        return _inode(git_dir), _inode(git_dir + "/objects")
    except OSError:
        raise RepositoryNotFound("repository not found") from None


def _inode(path: Path | str) -> tuple[int, int]:
    st = os.stat(path)
    return st.st_dev, st.st_ino


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
