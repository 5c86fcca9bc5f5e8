r"""A repository's git config file, parsed by git's own rules and read through typed getters.

    file      = *( line )                             ; a UTF-8 byte order mark at the start is skipped
    section   = "[" name [ SP DQUOTE subsection DQUOTE ] "]"  /  "[" name "." subsection "]"  (lower-cased)
    variable  = key [ "=" value ]                     ; no "=": the value is None, true for a boolean
    value     = parts, quoted or not; \\ \" \n \t \b and line continuation; # or ; outside quotes: a comment

Section and key are case-insensitive, a subsection is not; of several values the last one wins (`get_all`
gives every one). See git-config(1), "Syntax" and "Values"; git: config.c git_parse_source().

What it deliberately does not do: read the system's or a user's config (the server's own defaults come from
the server's config), write, or follow `include.path` (a later step: `parse` keeps the entries in order for
it).
"""

import os
import re
from pathlib import Path
from typing import overload

from gitsmart.errors import RepositoryUnusable

__all__ = ["ConfigFile", "GitConfig", "parse"]

# A real config is some hundred bytes; a few thousand remotes make 1 MB.
LIMIT_BYTES = 4 << 20

_KEY = re.compile(rb"[A-Za-z][A-Za-z0-9-]*")
_SECTION = re.compile(rb"[A-Za-z0-9.-]*")
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)([kKmMgG]?)")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_ESCAPES = {ord("t"): b"\t", ord("b"): b"\b", ord("n"): b"\n", ord("\\"): b"\\", ord('"'): b'"'}
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "": False}

Entry = tuple[str, str | None]


def parse(data: bytes) -> list[Entry]:
    r"""Return `(canonical name, value)` of every variable in order; a value without "=" is None.

    Linear in `len(data)`. Names are `section.key` or `section.subsection.key`, section and key in lower case;
    bytes that are no UTF-8 come out as surrogates (`os.fsencode` gives them back).

    >>> parse(b'[Core]\n\tBare\n[remote "A.b"] url = x ; comment\n')
    [('core.bare', None), ('remote.A.b.url', 'x')]

    Raises:
        RepositoryUnusable: a line that git would die of; the text names the line.
    """
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    if not data.endswith(b"\n"):
        data += b"\n"
    entries: list[Entry] = []
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
            entries.append((prefix + key.group().decode("ascii").lower(), value))
    return entries


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


def _bad_line(data: bytes, pos: int) -> RepositoryUnusable:
    line = data.count(b"\n", 0, pos) + 1
    return RepositoryUnusable(f"bad config line {line} in the repository's config")


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
        self._values: dict[str, list[str | None]] = {}
        for name, value in entries:
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return _canonical(name) in self._values

    def get_all(self, name: str) -> tuple[str | None, ...]:
        """Every value in the file's order; () when unset. None is a variable without "="."""
        return tuple(self._values.get(_canonical(name), ()))

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


class ConfigFile:
    """A config file that may change at any time: parsed when its (device, inode, mtime, ctime, size) is a new
    one.

    Two threads that find a change at once both parse it and store equal results; no lock is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cached: tuple[object, GitConfig] | None = None

    def identity(self) -> object:
        """A value that differs once the file was written, replaced, made or removed. Two stat calls."""
        return (_identity(self._directory / "config"), _identity(self._directory / "config.worktree"))

    def read(self) -> GitConfig:
        """The config as it is now; a missing file is an empty config, as for git.

        `config.worktree` is read after `config` when `extensions.worktreeConfig` is true (git-worktree(1)).

        Raises:
            RepositoryUnusable: malformed, unreadable or larger than 4 MiB.
        """
        identity = self.identity()
        cached = self._cached
        if cached is not None and cached[0] == identity:
            return cached[1]
        entries = parse(_read(self._directory / "config"))
        config = GitConfig(entries)
        if config.get_bool("extensions.worktreeConfig", False):
            config = GitConfig(entries + parse(_read(self._directory / "config.worktree")))
        self._cached = (identity, config)
        return config


def _identity(path: Path) -> object:
    try:
        st = os.stat(path)
    except OSError as error:
        return error.errno
    return (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_ctime_ns, st.st_size)


def _read(path: Path) -> bytes:
    try:
        # Opening a FIFO would wait for its writer: a thread of ours, for ever
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise RepositoryUnusable("the repository's config can't be read") from error
    if len(data) > LIMIT_BYTES:
        raise RepositoryUnusable(f"the repository's config is larger than {LIMIT_BYTES} bytes")
    return data
