"""gitattributes: lines of .gitattributes files, and which attributes they give a path.

    line       =  pattern 1*( SP attribute )  /  "[attr]" name 1*( SP attribute )  /  "#" comment
    attribute  =  name  /  "-" name  /  "!" name  /  name "=" value
    pattern    =  as in gitignore, without "!"; quoted like a C string if it begins with a quote

    root file < those of folders below it, the nearest last < $GIT_DIR/info/attributes; the last line that
    fits wins

gitattributes(5); git: attr.c.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gitsmart.wildmatch import wildmatch

__all__ = [
    "BINARY_MACRO",
    "MAX_FILE_BYTES",
    "AttributeFile",
    "Value",
    "attributes_of",
    "parse",
]

Value = bool | bytes | None
"""set, unset, a value; None: said to be unspecified."""

_MAX_LINE: Final = 2048  # git: attr.h ATTR_MAX_LINE_LENGTH
MAX_FILE_BYTES: Final = 100 << 20  # git: attr.h ATTR_MAX_FILE_SIZE

_NAME: Final = re.compile(rb"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_ESCAPES: Final = {
    b"a": b"\a", b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: bytes
    is_basename: bool  # no slash in it: looked for in the last component alone
    must_be_folder: bool
    attributes: tuple[tuple[bytes, Value], ...]


@dataclass(frozen=True, slots=True)
class AttributeFile:
    """One file's rules, first line first; `folder` is where it lies: b"", or with a slash at its end."""

    folder: bytes
    rules: tuple[_Rule, ...]
    macros: tuple[tuple[bytes, tuple[tuple[bytes, Value], ...]], ...]


def parse(data: bytes, folder: bytes = b"", *, macros: bool = True) -> AttributeFile:
    """Read a file. What is malformed is left out, as by git, which warns.

    Args:
        macros: whether `[attr]` may stand here: in the root folder's file and in info/attributes.
    """
    rules = []
    found = []
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        line = line.removesuffix(b"\r").lstrip(b" \t\r\n")
        if not line or line.startswith(b"#") or len(line) >= _MAX_LINE:
            continue
        if line.startswith(b'"') and (unquoted := _unquote(line)) is not None:
            pattern, rest = unquoted
        else:
            pattern, _, rest = (line.replace(b"\t", b" ") + b" ").partition(b" ")
        if pattern.startswith(b"[attr]") and len(pattern) > 6:
            name = pattern[6:]
            states = _states(rest)
            if macros and states is not None and _NAME.fullmatch(name):
                found.append((name, states))
            continue
        if pattern.startswith(b"!"):
            continue  # git: "Negative patterns are ignored in git attributes"
        states = _states(rest)
        if states is None:
            continue
        must_be_folder = pattern.endswith(b"/") and len(pattern) > 1
        if must_be_folder:
            pattern = pattern[:-1]
        is_basename = b"/" not in pattern
        rules.append(_Rule(pattern.removeprefix(b"/"), is_basename, must_be_folder, states))
    return AttributeFile(folder, tuple(rules), tuple(found))


BINARY_MACRO: Final = AttributeFile(
    b"", (), ((b"binary", ((b"diff", False), (b"merge", False), (b"text", False))),)
)
"""What git knows without any file."""


def _states(text: bytes) -> tuple[tuple[bytes, Value], ...] | None:
    """Read a line's attributes; None when one of them is malformed: git drops the whole line then."""
    found = []
    for word in text.split():
        value: Value = True
        name = word
        if word[:1] in (b"-", b"!"):
            value = False if word.startswith(b"-") else None
            name = word[1:]
        else:
            name, equals, given = word.partition(b"=")
            if equals:
                value = given
        if not _NAME.fullmatch(name) or name.startswith(b"builtin_"):
            return None
        found.append((name, value))
    return tuple(found)


def _unquote(line: bytes) -> tuple[bytes, bytes] | None:
    """Take a C string off the line's front (git: quote.c unquote_c_style())."""
    out = bytearray()
    at = 1
    while at < len(line):
        char = line[at : at + 1]
        at += 1
        if char == b'"':
            return bytes(out), line[at:]
        if char != b"\\":
            out += char
            continue
        octal = re.match(rb"[0-3][0-7]{2}", line[at : at + 3])
        if octal:
            out.append(int(octal[0], 8))
            at += 3
            continue
        char = line[at : at + 1]
        at += 1
        if char in (b'"', b"\\") and char:
            out += char
        elif char in _ESCAPES:
            out += _ESCAPES[char]
        else:
            return None
    return None


def attributes_of(
    path: bytes, files: Sequence[AttributeFile], wanted: frozenset[bytes]
) -> dict[bytes, Value]:
    """Return what `files`, the weightiest last, say of `path` (with a slash at its end for a folder).

    An attribute that is not in the result was not mentioned.
    """
    if not any(file.rules for file in files):
        return {}
    is_folder = path.endswith(b"/")
    name = path.removesuffix(b"/")
    found: dict[bytes, Value] = {}
    macros = {macro: states for file in files for macro, states in file.macros}
    for file in reversed(files):
        if not name.startswith(file.folder):
            continue
        relative = name[len(file.folder) :]
        basename = relative[relative.rfind(b"/") + 1 :]
        for rule in reversed(file.rules):
            if rule.must_be_folder and not is_folder:
                continue
            if wildmatch(rule.pattern, basename if rule.is_basename else relative):
                _fill(rule.attributes, macros, found)
    return {attribute: value for attribute, value in found.items() if attribute in wanted}


def _fill(
    states: Iterable[tuple[bytes, Value]],
    macros: dict[bytes, tuple[tuple[bytes, Value], ...]],
    found: dict[bytes, Value],
) -> None:
    """Add what is not decided yet, the last one first; a macro that is set brings what it stands for."""
    todo = list(states)
    while todo:
        name, value = todo.pop()
        if name not in found:
            found[name] = value
            if value is True and name in macros:
                todo += macros[name]
