r"""A repository's git config, parsed by git's own rules and read through typed getters.

    the server's defaults  <  config, with what it includes  <  config.worktree, if extensions.worktreeConfig

    file      = *( line )                             ; a UTF-8 byte order mark at the start is skipped
    section   = "[" name [ SP DQUOTE subsection DQUOTE ] "]"  /  "[" name "." subsection "]"  (lower-cased)
    variable  = key [ "=" value ]                     ; no "=": the value is None, true for a boolean
    value     = parts, quoted or not; \\ \" \n \t \b and line continuation; # or ; outside quotes: a comment

Section and key are case-insensitive, a subsection is not; of several values the last one wins (`get_all`
gives every one). See git-config(1), "Syntax" and "Values"; git: config.c git_parse_source().

    include.path                            another file, in place of this line: at most 10 inside each other
    includeIf.gitdir:PATTERN.path           if the repository's directory matches; gitdir/i: ignores case
    includeIf.onbranch:PATTERN.path         if the branch that HEAD names does
    includeIf.hasconfig:remote.*.url:PATTERN.path   if one of the URLs in any of the files does

What is included may be anywhere that the server's user can read, as with git: whoever writes a repository's
config can also have hooks run (docs/decisions/0004). `worktree:` conditions are false: a server has no
work tree. Extensions and the format's version come from `config` alone, as in git (setup.c
read_repository_format()). See git-config(1), "Includes"; git: config.c git_config_include().

What it deliberately does not do: write, or read the system's or a user's config; the server's own defaults
come from the server's config.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from gitsmart.errors import RepositoryUnusable
from gitsmart.wildmatch import wildmatch

__all__ = ["NO_SERVER_CONFIG", "ConfigFile", "GitConfig", "ServerConfig", "iter_entries", "parse"]

# A real config is some hundred bytes; a few thousand remotes make 1 MB.
LIMIT_BYTES = 4 << 20
INCLUDE_DEPTH = 10  # git: config.c MAX_INCLUDE_DEPTH
INCLUDE_FILES = 1000  # of all includes together; pulled out of the air, against files that multiply

_KEY = re.compile(rb"[A-Za-z][A-Za-z0-9-]*")
_SECTION = re.compile(rb"[A-Za-z0-9.-]*")
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)([kKmMgG]?)")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_ESCAPES = {ord("t"): b"\t", ord("b"): b"\b", ord("n"): b"\n", ord("\\"): b"\\", ord('"'): b'"'}
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "": False}

Entry = tuple[str, str | None]


def parse(data: bytes, where: str = "the repository's config") -> list[Entry]:
    r"""Return `(canonical name, value)` of every variable in order; a value without "=" is None.

    Linear in `len(data)`. Names are `section.key` or `section.subsection.key`, section and key in lower case;
    bytes that are no UTF-8 come out as surrogates (`os.fsencode` gives them back).

    >>> parse(b'[Core]\n\tBare\n[remote "A.b"] url = x ; comment\n')
    [('core.bare', None), ('remote.A.b.url', 'x')]

    Raises:
        RepositoryUnusable: a line that git would die of; the text names the line, and the file as `where`
        says.
    """
    return list(iter_entries(data, where))


def iter_entries(data: bytes, where: str = "the repository's config") -> Iterator[Entry]:
    """Give what `parse` does, one by one: what stands before a bad line, too, before it raises."""
    try:
        yield from _parse(data)
    except _BadLineError as bad:
        raise RepositoryUnusable(f"bad config line {bad.args[0]} in {where}") from None


class _BadLineError(Exception):
    """`args[0]` is the line's number."""


def _parse(data: bytes) -> Iterator[Entry]:
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    if not data.endswith(b"\n"):
        data += b"\n"
    prefix = ""
    pos, end = 0, len(data)
    while pos < end:
        char = data[pos]
        if char in b" \t\n\r":
            pos += 1
        elif char in b"#;":
            pos = data.index(b"\n", pos) + 1
        elif char == 0x5B:
            prefix, pos = _parse_section(data, pos)
        else:
            key = _KEY.match(data, pos)
            if key is None:
                raise _bad_line(data, pos)
            pos = key.end()
            while data[pos] in b" \t":
                pos += 1
            value: str | None = None
            if data[pos] == 0x3D:
                raw_value, pos = _parse_value(data, pos + 1)
                value = raw_value.decode("utf-8", "surrogateescape")
            elif data[pos] != 0x0A:
                raise _bad_line(data, pos)
            yield prefix + key.group().decode("ascii").lower(), value


def _parse_section(data: bytes, pos: int) -> tuple[str, int]:
    match = _SECTION.match(data, pos + 1)
    assert match is not None  # it matches the empty string
    name = match.group().decode("ascii").lower()
    after = match.end()
    if not name:
        raise _bad_line(data, pos)
    if data[after] == 0x5D:
        return name + ".", after + 1
    start = after
    while data[after] in b" \t":
        after += 1
    if after == start or data[after] != 0x22:
        raise _bad_line(data, pos)
    after += 1
    subsection = bytearray()
    while data[after] != 0x22:
        if data[after] == 0x5C:
            after += 1
        if data[after] == 0x0A:
            raise _bad_line(data, pos)
        subsection.append(data[after])
        after += 1
    if data[after + 1] != 0x5D:
        raise _bad_line(data, pos)
    return f"{name}.{subsection.decode('utf-8', 'surrogateescape')}.", after + 2


def _parse_value(data: bytes, pos: int) -> tuple[bytes, int]:
    value = bytearray()
    quoted = False
    trim_at = -1  # length before a run of blanks that may turn out to be trailing
    while True:
        char = data[pos]
        pos += 1
        if char == 0x0A:
            if quoted:
                raise _bad_line(data, pos - 1)
            break
        if not quoted and char in b" \t\r":
            if value:
                if trim_at < 0:
                    trim_at = len(value)
                value.append(char)
            continue
        if not quoted and char in b"#;":
            pos = data.index(b"\n", pos) + 1
            break
        trim_at = -1
        if char == 0x5C:
            char = data[pos]
            pos += 1
            if char == 0x0A:
                if pos == len(data):  # a backslash is the last thing in the file
                    break
                continue
            escaped = _ESCAPES.get(char)
            if escaped is None:
                raise _bad_line(data, pos - 1)
            value += escaped
        elif char == 0x22:
            quoted = not quoted
        else:
            value.append(char)
    if trim_at >= 0:
        del value[trim_at:]
    return bytes(value), pos


def _bad_line(data: bytes, pos: int) -> _BadLineError:
    return _BadLineError(data.count(b"\n", 0, pos) + 1)


def _canonical(name: str) -> str:
    section, _, rest = name.partition(".")
    subsection, dot, key = rest.rpartition(".")
    return f"{section.lower()}.{subsection}{dot}{key.lower()}"


class GitConfig:
    """The values of one moment: immutable, so a request that took it once sees one config from start to end.

    Names are git's (`receive.denyDeletes`, `http.receivepack`, `remote.origin.url`). Each getter returns
    `default` when the variable is unset, and raises `RepositoryUnusable` where git would die of the value.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries
        self.memo: dict[str, object] = {}
        """What others made of these values, dropped with them: of what no other thing decides."""
        self._values: dict[str, list[str | None]] = {}
        for name, value in entries:
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return _canonical(name) in self._values

    def get_all(self, name: str) -> tuple[str | None, ...]:
        """Every value in the file's order; () when unset. None is a variable without "="."""
        return tuple(self._values.get(_canonical(name), ()))

    def in_order(self, *names: str) -> tuple[Entry, ...]:
        """All variables of these names with their canonical names, in the order in which they were set."""
        wanted = {_canonical(name) for name in names}
        if wanted.isdisjoint(self._values):
            return ()
        return tuple(entry for entry in self._entries if entry[0] in wanted)

    def names(self, section: str) -> tuple[str, ...]:
        """The canonical names set below `section`, each once, in order of appearance."""
        prefix = section.lower() + "."
        return tuple(name for name in self._values if name.startswith(prefix))

    @overload
    def get_str(self, name: str) -> str | None: ...
    @overload
    def get_str(self, name: str, default: str) -> str: ...
    def get_str(self, name: str, default: str | None = None) -> str | None:
        """The last value."""
        values = self._values.get(_canonical(name))
        if not values:
            return default
        if values[-1] is None:
            raise RepositoryUnusable(f"missing value for {name!r} in the repository's config")
        return values[-1]

    @overload
    def get_bool(self, name: str) -> bool | None: ...
    @overload
    def get_bool(self, name: str, default: bool) -> bool: ...
    def get_bool(self, name: str, default: bool | None = None) -> bool | None:
        """The last value as git's boolean: true yes on, false no off "", an integer, or no "=" (true)."""
        values = self._values.get(_canonical(name))
        if not values:
            return default
        value = values[-1]
        if value is None:
            return True
        word = _WORDS.get(value.lower())
        if word is not None:
            return word
        number = _parse_int(value)
        if number is None:
            raise RepositoryUnusable(f"bad boolean config value {value!r} for {name!r}")
        return number != 0

    @overload
    def get_int(self, name: str) -> int | None: ...
    @overload
    def get_int(self, name: str, default: int) -> int: ...
    def get_int(self, name: str, default: int | None = None) -> int | None:
        """The last value as git's 64-bit integer: decimal, 0x, or 0 octal; suffixes k, m, g of 1024."""
        values = self._values.get(_canonical(name))
        if not values:
            return default
        value = values[-1]
        number = None if value is None else _parse_int(value)
        if number is None:
            raise RepositoryUnusable(f"bad numeric config value {value!r} for {name!r}")
        return number


def _parse_int(text: str) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None or len(text) > 64:
        return None
    sign, digits, unit = match.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    number = int(digits, base) * _UNITS[unit.lower()]
    if number > (1 << 63) - 1:
        return None
    return -number if sign == "-" else number


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server's operator sets for all repositories.

    `entries` come before a repository's own, which win. What `locked` names a repository can't set: full
    names (`receive.denydeletes`, as `parse` writes them), or `section.*`.
    """

    entries: tuple[Entry, ...] = ()
    locked: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, entries: tuple[Entry, ...], locked: tuple[str, ...]) -> "ServerConfig":
        """Make one of names in any case."""
        return cls(
            tuple((_canonical(name), value) for name, value in entries),
            frozenset(_canonical(name) for name in locked),
        )

    def is_locked(self, name: str) -> bool:
        """Whether a repository's own value of `name` is ignored."""
        return name in self.locked or name.partition(".")[0] + ".*" in self.locked


NO_SERVER_CONFIG = ServerConfig()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A config as it was read, and all that it depends on."""

    config: GitConfig
    files: tuple[tuple[Path, object], ...]
    branch: tuple[bytes | None, ...] = ()  # (), or the ref HEAD named when a condition asked for it

    def is_current(self, head_target: Callable[[], bytes | None]) -> bool:
        if self.branch and self.branch[0] != head_target():
            return False
        return all(_identity(path) == identity for path, identity in self.files)


class ConfigFile:
    """A repository's config, which may change at any time: read again when one of its files, or of those that
    it includes, is another one by (device, inode, mtime, ctime, size), has come or has gone.

    Two threads that find a change at once both read it and store equal results; no lock is needed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        server: ServerConfig = NO_SERVER_CONFIG,
        head_target: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """`head_target` gives the ref that HEAD names, also when unborn; None when it is detached."""
        self._directory = directory
        self._server = server
        self._head_target = head_target
        self._cached: _Loaded | None = None
        self._own: _Loaded | None = None

    def read(self) -> GitConfig:
        """The config as it is now; a missing file is an empty config, as for git. A stat call for each file.

        Raises:
            RepositoryUnusable: malformed, unreadable, more than 4 MiB in all, or included too deeply.
        """
        cached = self._cached
        if cached is None or not cached.is_current(self._head_target):
            cached = self._cached = _Reading(self._directory, self._server, self._head_target).run()
        return cached.config

    def read_own(self) -> GitConfig:
        """What `config` itself says about the repository's format: nothing included, no defaults of the
        server's.

        Never asks for HEAD's target. Raises: see `read`.
        """
        own = self._own
        if own is None or not own.is_current(self._head_target):
            own = self._own = _Reading(self._directory, self._server, self._head_target).run_own()
        return own.config


class _Reading:
    """Reads a config and what it includes, once."""

    def __init__(
        self, directory: Path, server: ServerConfig, head_target: Callable[[], bytes | None]
    ) -> None:
        self._directory = directory
        self._server = server
        self._head_target = head_target
        self._branch: tuple[bytes | None, ...] = ()
        self._urls: list[bytes] | None = None
        self._is_gathering = False
        self._roots: list[Path] = []
        self._parsed: dict[Path, tuple[object, int, list[Entry]]] = {}
        self._files = 0
        self._bytes = 0

    def run(self) -> _Loaded:
        self._own_entries()
        self._files = self._bytes = 0
        entries = list(self._server.entries)
        for path in self._roots:
            entries += self._expand(path, self._file(path), 0, is_conditional=False)
        return _Loaded(GitConfig(entries), self._dependencies(), self._branch)

    def run_own(self) -> _Loaded:
        return _Loaded(GitConfig(self._own_entries()), self._dependencies())

    def _own_entries(self) -> list[Entry]:
        config, worktree = self._directory / "config", self._directory / "config.worktree"
        entries = self._file(config)
        self._roots = [config]
        own = GitConfig(entries)
        # without a version git takes no notice of extensions (setup.c read_repository_format())
        if "core.repositoryFormatVersion" in own and own.get_bool("extensions.worktreeConfig", False):
            self._roots.append(worktree)
        return entries

    def _dependencies(self) -> tuple[tuple[Path, object], ...]:
        return tuple((path, identity) for path, (identity, _, _) in self._parsed.items())

    def _file(self, path: Path, *, where: str = "the repository's config") -> list[Entry]:
        """The file's own entries; the same ones for a second look."""
        known = self._parsed.get(path)
        if known is None:
            identity, data = _read(path, where)
            known = self._parsed[path] = (identity, len(data), parse(data, where))
        self._files += 1
        self._bytes += known[1]
        if self._bytes > LIMIT_BYTES:
            raise RepositoryUnusable(f"the repository's config is larger than {LIMIT_BYTES} bytes")
        if self._files > INCLUDE_FILES:
            raise RepositoryUnusable(f"the repository's config includes more than {INCLUDE_FILES} files")
        return known[2]

    def _expand(self, path: Path, entries: list[Entry], depth: int, *, is_conditional: bool) -> list[Entry]:
        """`entries`, which `path` holds, with each include followed where it stands."""
        found: list[Entry] = []
        for name, value in entries:
            if self._server.is_locked(name):
                continue
            found.append((name, value))
            if self._is_gathering and _is_remote_url(name):
                if is_conditional:
                    raise RepositoryUnusable(
                        "remote URLs cannot be configured in file directly or indirectly included by"
                        " includeIf.hasconfig:remote.*.url"
                    )
            elif name == "include.path":
                found += self._include(path, name, value, depth, is_conditional=is_conditional)
            elif (
                name.startswith("includeif.")
                and name.endswith(".path")
                and self._holds(name[len("includeif.") : -len(".path")], path)
            ):
                found += self._include(path, name, value, depth, is_conditional=True)
        return found

    def _include(
        self, path: Path, name: str, value: str | None, depth: int, *, is_conditional: bool
    ) -> list[Entry]:
        if value is None:
            raise RepositoryUnusable(f"missing value for {name!r} in the repository's config")
        text = _expand_home(value)
        if text is None or text.startswith("%(prefix)/"):
            raise RepositoryUnusable(f"could not expand {name} {value!r} in the repository's config")
        included = path.parent / text.partition("\0")[0]
        entries = self._file(included, where=f"{included.name!r}, which the repository's config includes")
        if entries and depth == INCLUDE_DEPTH:
            raise RepositoryUnusable(
                f"the repository's config has more than {INCLUDE_DEPTH} includes inside each other"
            )
        return self._expand(included, entries, depth + 1, is_conditional=is_conditional)

    # Conditions

    def _holds(self, condition: str, path: Path) -> bool:
        """git: config.c include_condition_is_true(). An unknown condition is false."""
        kind, colon, rest = condition.partition(":")
        if not colon:
            return False
        if kind in ("gitdir", "gitdir/i"):
            return self._is_in_directory(rest, path, ignore_case=kind == "gitdir/i")
        if kind == "onbranch":
            return self._is_on_branch(_encode(rest))
        if kind == "hasconfig" and rest.startswith("remote.*.url:"):
            pattern = _encode(rest.removeprefix("remote.*.url:"))
            return self._is_gathering or any(wildmatch(pattern, url) for url in self._remote_urls())
        return False

    def _is_in_directory(self, condition: str, path: Path, *, ignore_case: bool) -> bool:
        """git: config.c include_by_path(), prepare_include_condition_pattern()"""
        if condition.startswith("~"):
            home, slash, rest = condition.partition("/")
            expanded = _expand_home(home)
            if expanded is not None:
                condition = os.path.realpath(expanded) + slash + rest
        pattern, literal = _encode(condition), b""
        if pattern.startswith(b"./"):
            literal, pattern = os.path.realpath(os.fsencode(path.parent)) + b"/", pattern[2:]
            literal = b"/" if literal == b"//" else literal
        elif not pattern.startswith(b"/"):
            pattern = b"**/" + pattern
        if pattern.endswith(b"/") or (literal and not pattern):
            pattern += b"**"
        real = os.path.realpath(os.fsencode(self._directory))
        # git's services are in the directory and call it ".": so it also tries the path that ends in that
        for text in (real, real + b"/."):
            start = text[: len(literal)]
            if start != literal and not (ignore_case and start.lower() == literal.lower()):
                return False
            if wildmatch(pattern, text[len(literal) :], ignore_case=ignore_case):
                return True
        return False

    def _is_on_branch(self, pattern: bytes) -> bool:
        """git: config.c include_by_branch()"""
        if not self._branch:
            self._branch = (self._head_target(),)
        target = self._branch[0]
        if target is None or not target.startswith(b"refs/heads/"):
            return False
        if pattern.endswith(b"/"):
            pattern += b"**"
        return wildmatch(pattern, target.removeprefix(b"refs/heads/"))

    def _remote_urls(self) -> list[bytes]:
        """Every remote's URL, wherever it is set; git: config.c populate_remote_urls()"""
        if self._urls is None:
            counts = self._files, self._bytes
            self._files = self._bytes = 0
            self._is_gathering = True
            entries = list(self._server.entries)
            for path in self._roots:
                entries += self._expand(path, self._file(path), 0, is_conditional=False)
            self._is_gathering = False
            self._files, self._bytes = counts
            self._urls = [_encode(url) for name, url in entries if url is not None and _is_remote_url(name)]
        return self._urls


def _expand_home(text: str) -> str | None:
    """Replace `~` or `~user` at the start; None when there is no such user. git: path.c interpolate_path()"""
    if not text.startswith("~"):
        return text
    home, slash, rest = text.partition("/")
    try:
        return str(Path(home).expanduser()) + slash + rest
    except RuntimeError:
        return None


def _is_remote_url(name: str) -> bool:
    return name.startswith("remote.") and name.endswith(".url") and len(name) > len("remote.url")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _identity(path: Path) -> object:
    try:
        return _identity_of(os.stat(path))
    except OSError as error:
        return error.errno


def _identity_of(st: os.stat_result) -> object:
    return (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_ctime_ns, st.st_size)


def _read(path: Path, where: str) -> tuple[object, bytes]:
    """The file's identity and contents; b"" when there is none."""
    try:
        # Opening a FIFO would wait for its writer: a thread of ours, for ever
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            # before the contents: a change that comes meanwhile is seen by the next look
            identity = _identity_of(os.fstat(file.fileno()))
            data = file.read(LIMIT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        return error.errno, b""
    except OSError as error:
        raise RepositoryUnusable(f"{where} can't be read") from error
    if len(data) > LIMIT_BYTES:
        raise RepositoryUnusable(f"{where} is larger than {LIMIT_BYTES} bytes")
    return identity, data
