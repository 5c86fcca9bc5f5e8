"""gitattributes: lines of .gitattributes files, and which attributes they give a path.

    line       =  pattern 1*( SP attribute )  /  "[attr]" name 1*( SP attribute )  /  "#" comment
    attribute  =  name  /  "-" name  /  "!" name  /  name "=" value
    pattern    =  as in gitignore, without "!"; quoted like a C string if it begins with a quote

    root file < those of folders below it, the nearest last < $GIT_DIR/info/attributes; the last line that
    fits wins

gitattributes(5); git: attr.c, wildmatch.c. Time: a match is linear in pattern times path, whatever stars the
pattern holds: each component's own pattern is compiled so that it never goes back, and `**` keeps one place
to go back to.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = [
    "BINARY_MACRO",
    "MAX_FILE_BYTES",
    "AttributeFile",
    "Value",
    "attributes_of",
    "compile_glob",
    "matches",
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
    components: tuple[bytes, ...]
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
        components = (pattern,) if is_basename else tuple(pattern.removeprefix(b"/").split(b"/"))
        rules.append(_Rule(components, is_basename, must_be_folder, states))
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
        for rule in reversed(file.rules):
            if rule.must_be_folder and not is_folder:
                continue
            parts = (relative.rpartition(b"/")[2],) if rule.is_basename else tuple(relative.split(b"/"))
            if matches(rule.components, parts, is_basename=rule.is_basename):
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


# Patterns


def matches(pattern: tuple[bytes, ...], path: tuple[bytes, ...], *, is_basename: bool = False) -> bool:
    """Tell whether the components of a path fit those of a pattern; `**` stands for any number of them.

    >>> matches((b"a", b"**", b"*.c"), (b"a", b"x", b"y", b"z.c"))
    True
    >>> matches((b"a", b"**"), (b"a",))
    False
    """
    if is_basename:
        return len(path) == 1 and compile_glob(pattern[0]).fullmatch(path[0]) is not None
    at = in_path = 0
    star: tuple[int, int] | None = None
    while in_path < len(path):
        if at < len(pattern) and pattern[at] == b"**":
            if at == len(pattern) - 1:
                return True  # one component or more
            star = (at + 1, in_path)
            at += 1
        elif at < len(pattern) and compile_glob(pattern[at]).fullmatch(path[in_path]):
            at += 1
            in_path += 1
        elif star is not None:
            star = (star[0], star[1] + 1)
            at, in_path = star
        else:
            return False
    return at == len(pattern)


@lru_cache(maxsize=4096)
def compile_glob(pattern: bytes) -> "re.Pattern[bytes]":
    """Compile one component: stars take as little as will do, and never more later (as fnmatch does)."""
    fixed: list[bytes] = [b""]
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            if fixed[-1] or len(fixed) == 1:
                fixed.append(b"")
        elif char == b"?":
            fixed[-1] += b"."
        elif char == b"[":
            bracket = _bracket(pattern, at)
            if bracket is None:
                return _NEVER
            text, at = bracket
            fixed[-1] += text
        elif char == b"\\":
            if at == len(pattern):
                return _NEVER
            fixed[-1] += re.escape(pattern[at : at + 1])
            at += 1
        else:
            fixed[-1] += re.escape(char)
    if len(fixed) == 1:
        return re.compile(fixed[0], re.DOTALL)
    *middle, last = fixed
    text = middle[0] + b"".join(b"(?>.*?" + part + b")" for part in middle[1:]) + b".*" + last
    return re.compile(text, re.DOTALL)


_NEVER: Final = re.compile(rb"(?!)")
_CLASSES: Final = {
    b"alnum": rb"A-Za-z0-9", b"alpha": rb"A-Za-z", b"blank": rb" \t", b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9", b"graph": rb"!-~", b"lower": rb"a-z", b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~", b"space": rb" \t-\r", b"upper": rb"A-Z", b"xdigit": rb"0-9A-Fa-f",
}  # fmt: skip


def _bracket(pattern: bytes, at: int) -> tuple[bytes, int] | None:
    """Translate what is behind a "["; None when it has no end or an unknown class (git: wildmatch.c)."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    out = b""
    first = True
    previous: int | None = None
    while True:
        char = pattern[at : at + 1]
        if not char:
            return None
        if char == b"]" and not first:
            break
        first = False
        if char == b"[" and pattern[at + 1 : at + 2] == b":":
            end = pattern.find(b":]", at + 2)
            if end < 0 or pattern[at + 2 : end] not in _CLASSES:
                return None
            out += _CLASSES[pattern[at + 2 : end]]
            at = end + 2
            previous = None
            continue
        if char == b"-" and previous is not None and pattern[at + 1 : at + 2] not in (b"", b"]"):
            at += 1
            if pattern[at : at + 1] == b"\\":
                at += 1
                if at == len(pattern):
                    return None
            high = pattern[at]
            if previous <= high:
                out += b"\\x%02x-\\x%02x" % (previous, high)
            previous = None
            at += 1
            continue
        if char == b"\\":
            at += 1
            char = pattern[at : at + 1]
            if not char:
                return None
        previous = char[0]
        out += b"\\x%02x" % previous
        at += 1
    if not out:
        return (b".", at + 1) if negated else (b"(?!)", at + 1)
    return (b"[^%b]" if negated else b"[%b]") % out, at + 1
