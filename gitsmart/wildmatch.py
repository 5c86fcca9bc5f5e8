r"""git's wildcard patterns: of sparse-checkout files, gitattributes, `includeIf` and pathspecs.

    ?      any byte but "/"                   \x     x itself
    *      any bytes but "/"                  [...]  a class: ranges, [:alpha:], ! or ^ negates; never "/"
    **     between slashes or at an end: any bytes; "**/" may also be nothing; elsewhere the same as *

A pattern that is malformed matches nothing. gitignore(5), "PATTERN FORMAT"; git: wildmatch.c dowild() with
WM_PATHNAME; without it, as pathspecs have it, "/" is a byte like others, and ** the same as *.

git before 2.52 takes the literal start off an ignore or attribute pattern first, so that `**` behind a name
is as at the start, and a**/b is also ab; newer git is as the manual says, and so are we.

Where git backtracks, which a few stars can make exponential, nothing is tried twice here: a pattern becomes a
regular expression in which only the last star of a segment, and the last "**/", may take more than they first
did. Time: at most quadratic in the text, which is 8 KiB at most, as the pattern is.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

__all__ = ["LIMIT_BYTES", "compile_pattern", "is_literal", "wildmatch"]

LIMIT_BYTES: Final = 8192
"""Of a pattern, or a text: longer than any path (PATH_MAX is 4096). What is longer matches nothing."""

_SPECIAL: Final = re.compile(rb"[*?\[\\]")
_NEVER: Final = re.compile(rb"(?!)")

_SLASH_CODE = 0x2F
_ANY: Final = frozenset(range(256))
_NO_SLASH: Final = _ANY - {_SLASH_CODE}
_UPPER: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz")
_DIGIT: Final = frozenset(b"0123456789")
_CLASSES: Final = {
    b"alnum": _UPPER | _LOWER | _DIGIT,
    b"alpha": _UPPER | _LOWER,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset(range(32)) | {127},
    b"digit": _DIGIT,
    b"graph": frozenset(range(33, 127)),
    b"lower": _LOWER,
    b"print": frozenset(range(32, 127)),
    b"punct": frozenset(range(33, 127)) - _UPPER - _LOWER - _DIGIT,
    b"space": frozenset(b" \t\n\v\f\r"),
    b"upper": _UPPER,
    b"xdigit": _DIGIT | frozenset(b"abcdefABCDEF"),
}

_STAR, _SLASH, _DIRS, _REST = "*", "/", "**/", "**"
_Token = frozenset[int] | str
"""The bytes that one byte may be, or one of the four above."""


def is_literal(pattern: bytes) -> bool:
    """Whether the pattern matches itself alone.

    >>> is_literal(b"a/b"), is_literal(b"a/*"), is_literal(b"a\\\\b")
    (True, False, False)
    """
    return _SPECIAL.search(pattern) is None


def wildmatch(pattern: bytes, text: bytes, *, ignore_case: bool = False) -> bool:
    """Whether the whole of `text` matches; False when either is longer than 8 KiB.

    >>> wildmatch(b"/srv/**/work", b"/srv/a/b/work"), wildmatch(b"/srv/*/work", b"/srv/a/b/work")
    (True, False)
    """
    if len(text) > LIMIT_BYTES:
        return False
    return compile_pattern(pattern, ignore_case=ignore_case).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def compile_pattern(
    pattern: bytes, *, ignore_case: bool = False, pathname: bool = True
) -> "re.Pattern[bytes]":
    """Return what is to match the whole (`fullmatch`) of a text of at most `LIMIT_BYTES`.

    Args:
        pathname: False where a wildcard may also stand for "/".
    """
    if len(pattern) > LIMIT_BYTES:
        return _NEVER
    groups: list[list[_Token]] = [[]]
    for token in _Tokens(pattern, ignore_case=ignore_case, pathname=pathname):
        if token == _DIRS:
            groups.append([])
        elif token:
            groups[-1].append(token)
        else:
            return _NEVER
    # Folders are taken as few as do, and never more once the rest of the group matched: what is left over,
    # the next "**/" takes.
    if not pathname:
        return re.compile(_segments(groups[0], any_byte=b"."), re.DOTALL)
    out = [_segments(groups[0])]
    out += [b"(?>(?:[^/]*/)*?" + _segments(group) + b")" for group in groups[1:-1]]
    if len(groups) > 1:
        out.append(b"(?:[^/]*/)*" + _segments(groups[-1]))
    return re.compile(b"".join(out), re.DOTALL)


def _segments(tokens: list[_Token], *, any_byte: bytes = b"[^/]") -> bytes:
    """Write what has no "**/" in it; a star stands for `any_byte`."""
    out: list[bytes] = []
    pieces: list[bytes] = [b""]

    def end_segment() -> None:
        # As above, within one segment: only the last star may have to try again.
        out.append(pieces[0])
        out.extend(b"(?>" + any_byte + b"*?" + piece + b")" for piece in pieces[1:-1] if piece)
        if len(pieces) > 1:
            out.append(any_byte + b"*" + pieces[-1])
        pieces[:] = [b""]

    for token in tokens:
        if token == _STAR:
            pieces.append(b"")
        elif token == _SLASH:
            end_segment()
            out.append(b"/")
        elif token == _REST:
            end_segment()
            out.append(b".*")
        else:
            assert isinstance(token, frozenset)
            pieces[-1] += _one_of(token)
    end_segment()
    return b"".join(out)


def _one_of(codes: frozenset[int]) -> bytes:
    if len(codes) == 1:
        return re.escape(bytes(codes))
    if codes in (_NO_SLASH, _ANY):
        return b"[^/]" if codes == _NO_SLASH else b"."
    if len(codes) > 128:
        return b"[^%b]" % b"".join(b"\\x%02x" % code for code in range(256) if code not in codes)
    return b"[%b]" % b"".join(b"\\x%02x" % code for code in sorted(codes))


class _Tokens:
    """A pattern's tokens, one after the other; an empty set, which nothing matches, where it is malformed."""

    def __init__(self, pattern: bytes, *, ignore_case: bool, pathname: bool) -> None:
        self._pattern = pattern
        self._fold = ignore_case
        self._pathname = pathname
        self._any = _NO_SLASH if pathname else _ANY
        self._at = 0

    def __iter__(self) -> Iterator[_Token]:
        pattern = self._pattern
        while self._at < len(pattern):
            char = pattern[self._at]
            self._at += 1
            if char == 0x2A:
                yield from self._stars()
            elif char == 0x3F:
                yield self._any
            elif char == 0x5B:
                yield self._class()
            elif char == 0x5C:
                char = pattern[self._at] if self._at < len(pattern) else 0
                self._at += 1
                # not folded: git compares an escaped letter as it is with the text's lower-case one
                yield self._literal(char) if char else frozenset()
            else:
                yield self._literal(_lower(char) if self._fold else char)

    def _literal(self, char: int) -> _Token:
        return _SLASH if self._pathname and char == _SLASH_CODE else self._texts({char})

    def _texts(self, chars: "set[int] | frozenset[int]") -> frozenset[int]:
        """The bytes of a text that are one of `chars` once they are folded, if they are to be."""
        if not self._fold:
            return frozenset(chars)
        return frozenset(byte for byte in range(256) if _lower(byte) in chars)

    def _stars(self) -> tuple[_Token, ...]:
        pattern, start = self._pattern, self._at - 1
        while pattern[self._at : self._at + 1] == b"*":
            self._at += 1
        begins = start == 0 or pattern[start - 1] == _SLASH_CODE
        following = pattern[self._at : self._at + 2]
        if self._at - start > 1 and begins and self._pathname:
            if not following:
                return (_REST,)
            if following.startswith(b"/"):
                self._at += 1
                return (_DIRS,)
            if following == b"\\/":
                self._at += 2
                return (_STAR, _SLASH, _DIRS)
        return (_STAR,)

    def _class(self) -> frozenset[int]:
        """Read what stands behind a "["."""
        pattern, pos = self._pattern, self._at
        is_negated = pattern[pos : pos + 1] in (b"!", b"^")
        pos += is_negated
        first, previous = pos, 0
        matched: set[int] = set()
        while pos == first or pattern[pos : pos + 1] != b"]":
            char = pattern[pos] if pos < len(pattern) else 0
            if not char:
                return frozenset()
            after = pattern[pos + 1 : pos + 2]
            if char == 0x5C:
                if not after:
                    return frozenset()
                previous = after[0]
                matched |= self._texts({previous})
                pos += 2
            elif char == 0x2D and previous and after not in (b"", b"]"):
                pos += 1
                if after == b"\\":
                    pos += 1
                    if pos == len(pattern):
                        return frozenset()
                matched |= self._range(previous, pattern[pos])
                previous = 0
                pos += 1
            elif char == 0x5B and after == b":":
                end = pattern.find(b"]", pos + 2)
                if end < 0:
                    return frozenset()
                if end == pos + 2 or pattern[end - 1] != 0x3A:
                    previous = char
                    matched |= self._texts({char})
                    pos += 1
                    continue
                name = pattern[pos + 2 : end - 1]
                if name not in _CLASSES:
                    return frozenset()
                matched |= self._texts(
                    _CLASSES[name] | (_LOWER if self._fold and name == b"upper" else frozenset())
                )
                previous = 0
                pos = end + 1
            else:
                previous = char
                matched |= self._texts({char})
                pos += 1
        self._at = pos + 1
        return self._any - matched if is_negated else self._any & matched

    def _range(self, first: int, last: int) -> set[int]:
        found = set()
        for byte in range(256):
            char = _lower(byte) if self._fold else byte
            upper = char - 32 if self._fold and char in _LOWER else char
            if first <= char <= last or first <= upper <= last:
                found.add(byte)
        return found


def _lower(byte: int) -> int:
    return byte + 32 if byte in _UPPER else byte
