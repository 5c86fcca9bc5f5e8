"""What git does to a file's content on its way out of the repository, by attributes: ident, and line ends.

    text, crlf, eol      LF becomes CRLF where these, core.autocrlf and core.eol say so
    ident                $Id$ becomes $Id: <oid> $

working-tree-encoding and filter drivers are not applied: the content stays as it is stored.
gitattributes(5); git: convert.c convert_attrs(), crlf_to_worktree(), ident_to_worktree().
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gitsmart.repo.gitconfig import GitConfig
from gitsmart.wire.gitattributes import Value

__all__ = ["CHECKOUT_ATTRIBUTES", "LineEnds", "check_out"]

CHECKOUT_ATTRIBUTES: Final = frozenset({b"text", b"crlf", b"eol", b"ident"})

_IDENT: Final = re.compile(rb"\$Id(?::([^$\n]*))?\$")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_BARE_CR: Final = re.compile(rb"\r(?!\n)")
# what gather_stats() counts: DEL, and controls that are no BS, HT, ESC, FF, are not printable
_CONTROLS: Final = bytes([*range(8), 11, *range(14, 27), *range(28, 32), 127])


@dataclass(frozen=True, slots=True)
class LineEnds:
    """The repository's own wishes: core.autocrlf ("input" is None) and core.eol."""

    autocrlf: bool | None = False
    crlf: bool = False

    @classmethod
    def from_config(cls, config: GitConfig) -> "LineEnds":
        """Read them. Raises RepositoryUnusable where git would die."""
        value = config.get_all("core.autocrlf")[-1:]
        if value and value[0] is not None and value[0].lower() == "input":
            return cls(None, False)
        autocrlf = config.get_bool("core.autocrlf", False)
        return cls(autocrlf, autocrlf or config.get_str("core.eol", "").lower() == "crlf")


def check_out(content: bytes, oid: bytes, attributes: Mapping[bytes, Value], ends: LineEnds) -> bytes:
    """Return a file's content as it leaves the repository; `oid` (hex) is its blob."""
    if attributes.get(b"ident") is True:
        content = _IDENT.sub(lambda found: _ident(found, oid), content)
    guess = _to_crlf(attributes, ends)
    if guess is None or (guess and not _is_plain_text(content)):
        return content
    return _BARE_LF.sub(b"\r\n", content)


def _ident(found: "re.Match[bytes]", oid: bytes) -> bytes:
    inner = found[1]
    # somebody else's: spaces inside (git: ident_to_worktree(), "foreign")
    if inner is not None and b" " in inner[1:].rstrip(b" "):
        return found[0]
    return b"$Id: %b $" % oid


def _to_crlf(attributes: Mapping[bytes, Value], ends: LineEnds) -> bool | None:
    """None: leave line ends alone; otherwise whether that depends on what the content looks like."""
    text = _known(attributes.get(b"text"))
    if text is None:
        text = _known(attributes.get(b"crlf"))
    if text is False:
        return None
    eol = attributes.get(b"eol")
    if eol not in (b"lf", b"crlf"):
        eol = None
    if text == b"auto":
        crlf = eol == b"crlf" if eol else ends.crlf
        return True if crlf else None
    if text == b"input":
        return False if eol == b"crlf" else None
    if eol is not None:
        return False if eol == b"crlf" else None
    if text is True:
        return False if ends.crlf else None
    return True if ends.autocrlf is True else None


def _known(value: Value) -> Value:
    return value if isinstance(value, bool) or value in (b"auto", b"input") else None


def _is_plain_text(content: bytes) -> bool:
    """Whether git would convert what nobody has called text: LFs alone, and nothing binary."""
    if b"\r\n" in content or _BARE_CR.search(content) or b"\0" in content:
        return False
    # a control-Z at the end is DOS's end of file (git: convert.c gather_stats())
    body = content.removesuffix(b"\x1a")
    odd = len(body) - len(body.translate(None, _CONTROLS))
    printable = len(body) - odd - body.count(b"\n")
    return printable >> 7 >= odd
