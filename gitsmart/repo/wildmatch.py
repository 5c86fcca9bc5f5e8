r"""git's wildcard patterns for paths, as `includeIf` uses them: wildmatch with WM_PATHNAME.

    ?      any byte but "/"                   \x     x itself
    *      any bytes but "/"                  [...]  a class: ranges, [:alpha:], ! or ^ negates; never "/"
    **     between slashes or at an end: any bytes; "**/" may also be nothing; elsewhere the same as *

A pattern that is malformed matches nothing. Where git backtracks, which a few stars can make exponential, all
ways are followed at once here, as bits of one number: at most len(text) steps, each linear in the pattern.

git: wildmatch.c dowild().
"""

from typing import Final

__all__ = ["wildmatch"]

LIMIT_BYTES = 8192  # of a pattern, or a text: longer than any path (PATH_MAX is 4096)

_SLASH = 0x2F
_ANY: Final = frozenset(range(256))
_NO_SLASH: Final = _ANY - {_SLASH}
_NOTHING: Final[frozenset[int]] = frozenset()

_UPPER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER = frozenset(b"abcdefghijklmnopqrstuvwxyz")
_DIGIT = frozenset(b"0123456789")
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


def wildmatch(pattern: bytes, text: bytes, *, ignore_case: bool = False) -> bool:
    """Whether the whole of `text` matches; False when either is longer than 8 KiB.

    >>> wildmatch(b"/srv/**/work", b"/srv/a/b/work"), wildmatch(b"/srv/*/work", b"/srv/a/b/work")
    (True, False)
    """
    if max(len(pattern), len(text)) > LIMIT_BYTES:
        return False
    states = _Compiler(pattern, ignore_case=ignore_case)
    # bit i: what comes before state i has been matched
    current = states.close(1)
    for byte in text:
        step, stay = states.masks(byte)
        current = states.close((current & step) << 1 | current & stay)
        if not current:
            return False
    return bool(current >> len(states.step) & 1)


class _Compiler:
    """A pattern as states: what moves on from each, what stays in it, and which may be passed over."""

    def __init__(self, pattern: bytes, *, ignore_case: bool) -> None:
        self.step: list[frozenset[int]] = []
        self._stay: list[frozenset[int]] = []
        self._skip = 0  # states that may be left for the next without a byte
        self._skip_two = 0  # or for the one after the next
        self._pattern = pattern
        self._fold = ignore_case
        self._masks: dict[int, tuple[int, int]] = {}
        self._compile()

    def masks(self, byte: int) -> tuple[int, int]:
        """The states that `byte` moves on from, and those it may stay in."""
        found = self._masks.get(byte)
        if found is None:
            step = sum(1 << place for place, of in enumerate(self.step) if byte in of)
            stay = sum(1 << place for place, of in enumerate(self._stay) if byte in of)
            found = self._masks[byte] = (step, stay)
        return found

    def close(self, current: int) -> int:
        """Add the states that are reached without a byte."""
        while True:
            more = current | (current & self._skip) << 1 | (current & self._skip_two) << 2
            if more == current:
                return current
            current = more

    def _add(self, step: frozenset[int], stay: frozenset[int] = _NOTHING) -> None:
        self.step.append(step)
        self._stay.append(stay)

    def _compile(self) -> None:
        pattern, pos = self._pattern, 0
        while pos < len(pattern):
            char = pattern[pos : pos + 1]
            if char == b"\\":
                # not folded: git compares an escaped letter as it is with the text's lower-case one
                self._add(self._texts({pattern[pos + 1]}) if pos + 1 < len(pattern) else _NOTHING)
                pos += 2
            elif char == b"?":
                self._add(_NO_SLASH)
                pos += 1
            elif char == b"*":
                pos = self._stars(pos)
            elif char == b"[":
                pos = self._class(pos)
            else:
                self._add(self._texts({(char.lower() if self._fold else char)[0]}))
                pos += 1

    def _texts(self, chars: set[int]) -> frozenset[int]:
        """The bytes of a text that are one of `chars` once they are folded, if they are to be."""
        if not self._fold:
            return frozenset(chars)
        return frozenset(byte for byte in range(256) if _lower(byte) in chars)

    def _stars(self, start: int) -> int:
        pattern = self._pattern
        pos = start
        while pattern[pos : pos + 1] == b"*":
            pos += 1
        rest = pattern[pos : pos + 2]
        at_start = start == 0 or pattern[start - 1] == _SLASH
        if pos - start < 2 or not at_start or not (rest[:1] in (b"", b"/") or rest == b"\\/"):
            self._skip |= 1 << len(self.step)
            self._add(_NOTHING, _NO_SLASH)
            return pos
        if rest[:1] != b"/":
            self._skip |= 1 << len(self.step)
            self._add(_NOTHING, _ANY)
            return pos
        # "**/": nothing at all, or whatever ends in a slash
        self._skip |= 1 << len(self.step)
        self._skip_two |= 1 << len(self.step)
        self._add(_NOTHING)
        self._add(frozenset({_SLASH}), _ANY)
        return pos + 1

    def _class(self, start: int) -> int:
        """Add the class that begins at `start`; return where the pattern goes on."""
        pattern, pos = self._pattern, start + 1
        is_negated = pattern[pos : pos + 1] in (b"!", b"^")
        pos += is_negated
        first, previous = pos, 0
        matched: set[int] = set()
        while pos == first or pattern[pos : pos + 1] != b"]":
            char = pattern[pos] if pos < len(pattern) else 0
            if not char:
                return self._malformed()
            after = pattern[pos + 1 : pos + 2]
            if char == 0x5C:
                if not after:
                    return self._malformed()
                previous = after[0]
                matched |= self._texts({previous})
                pos += 2
            elif char == 0x2D and previous and after not in (b"", b"]"):
                pos += 1
                if after == b"\\":
                    pos += 1
                    if pos == len(pattern):
                        return self._malformed()
                matched |= self._range(previous, pattern[pos])
                previous = 0
                pos += 1
            elif char == 0x5B and after == b":":
                end = pattern.find(b"]", pos + 2)
                if end < 0:
                    return self._malformed()
                if end == pos + 2 or pattern[end - 1] != 0x3A:
                    previous = char
                    matched |= self._texts({char})
                    pos += 1
                    continue
                name = pattern[pos + 2 : end - 1]
                if name not in _CLASSES:
                    return self._malformed()
                chars = _CLASSES[name] | (_LOWER if self._fold and name == b"upper" else _NOTHING)
                matched |= self._texts(set(chars))
                previous = 0
                pos = end + 1
            else:
                previous = char
                matched |= self._texts({char})
                pos += 1
        self._add((_NO_SLASH - matched) if is_negated else frozenset(matched - {_SLASH}))
        return pos + 1

    def _range(self, first: int, last: int) -> set[int]:
        found = set()
        for byte in range(256):
            char = _lower(byte) if self._fold else byte
            upper = char - 32 if self._fold and char in _LOWER else char
            if first <= char <= last or first <= upper <= last:
                found.add(byte)
        return found

    def _malformed(self) -> int:
        self._add(_NOTHING)
        return len(self._pattern)


def _lower(byte: int) -> int:
    return byte + 32 if byte in _UPPER else byte
