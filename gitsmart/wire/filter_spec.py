r"""Filter specs: what a partial clone asks to be left out.

    spec     =  "blob:none" / "blob:limit=" number / "tree:" number / "sparse:oid=" blob-name
             /  "object:type=" ( "commit" / "tree" / "blob" / "tag" ) / "combine:" parts
    parts    =  *"+" part *( 1*"+" [ part ] )          ; each a spec, percent-encoded
    number   =  decimal, "0x" hex or "0" octal, below 2^64, with an optional k, m or g

git-rev-list(1), "--filter"; gitprotocol-v2, "filter"; git: list-objects-filter-options.c
gently_parse_list_objects_filter(), parse.c git_parse_unsigned(), whose rules and texts these are. Names of
blobs are passed on as they came. Memory and time are linear in the spec; parts in parts are limited.

Where this is stricter than git: parts nest `_DEPTH` deep and are `_PARTS` at most, and there has to be one.
"""

import re
from dataclasses import dataclass
from typing import Literal

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire.pktline import printable

__all__ = ["FilterSpec", "parse_filter_spec"]

_PARTS = 64  # pulled out of the air: git's own clients combine as many as the user gave --filter options
_DEPTH = 8

_ENDLESS = (1 << 64) - 1
_NUMBER = re.compile(rb"[ \t\n\v\f\r]*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)([kKmMgG]?)")
_UNITS = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}
_TYPES = (b"commit", b"tree", b"blob", b"tag")
_RESERVED = re.compile(rb"[\x00- ~`!@#$^&*()\[\]{}\\;'\",<>?]")
_ENCODED = re.compile(rb"%([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSpec:
    """One filter; of a combined one, what all of the `parts` leave is sent."""

    kind: Literal["blob:none", "blob:limit", "tree", "sparse:oid", "object:type", "combine"]
    """As in `uploadpackfilter.<kind>.allow`."""
    number: int = 0
    """blob:limit: blobs of so many bytes and more are left out; tree: as deep and deeper."""
    name: bytes = b""
    """sparse:oid: the blob that holds the patterns, as an oid or `rev:path`; object:type: the type."""
    parts: tuple["FilterSpec", ...] = ()


def parse_filter_spec(text: bytes) -> FilterSpec:
    """Read what stands behind `filter `.

    >>> parse_filter_spec(b"blob:limit=1k").number
    1024

    Raises:
        ProtocolError: it is no filter.
        LimitExceeded: too many parts, or parts in parts.
    """
    return _parse(text, [_PARTS], 0)


def _parse(text: bytes, left: list[int], depth: int) -> FilterSpec:
    if text == b"auto":
        raise ProtocolError("'auto' filter not supported by this command")
    if text == b"blob:none":
        return FilterSpec(kind="blob:none")
    name, _, value = text.partition(b":")
    if name == b"blob" and value.startswith(b"limit="):
        number = _number(value[6:])
        if number is not None:
            return FilterSpec(kind="blob:limit", number=number)
    elif name == b"tree":
        number = _number(value)
        if number is None:
            raise ProtocolError("expected 'tree:<depth>'")
        return FilterSpec(kind="tree", number=number)
    elif name == b"sparse" and value.startswith(b"oid="):
        return FilterSpec(kind="sparse:oid", name=value[4:])
    elif name == b"sparse" and value.startswith(b"path="):
        raise ProtocolError("sparse:path filters support has been dropped")
    elif name == b"object" and value.startswith(b"type="):
        if value[5:] not in _TYPES:
            raise ProtocolError(
                f"'{printable(value[5:])}' for 'object:type=<type>' is not a valid object type"
            )
        return FilterSpec(kind="object:type", name=value[5:])
    elif name == b"combine":
        return FilterSpec(kind="combine", parts=_parse_parts(value, left, depth))
    raise ProtocolError(f"invalid filter-spec '{printable(text)}'")


def _parse_parts(text: bytes, left: list[int], depth: int) -> tuple[FilterSpec, ...]:
    parts = []
    for part in filter(None, text.split(b"+")):
        reserved = _RESERVED.search(part)
        if reserved is not None:
            raise ProtocolError(f"must escape char in sub-filter-spec: '{printable(reserved[0])}'")
        left[0] -= 1
        if left[0] < 0 or depth >= _DEPTH:
            raise LimitExceeded(f"a filter has more than {_PARTS} parts, or parts nested {_DEPTH} deep")
        parts.append(_parse(_ENCODED.sub(_decode, part), left, depth + 1))
    if not parts:
        raise ProtocolError("expected something after combine:")
    return tuple(parts)


def _decode(match: "re.Match[bytes]") -> bytes:
    # git leaves %00 as it is (url.c url_decode_internal())
    return bytes.fromhex(match[1].decode("ascii")) if match[1] != b"00" else match[0]


def _number(text: bytes) -> int | None:
    match = _NUMBER.fullmatch(text)
    if match is None or len(match[1]) > 100:
        return None
    digits, unit = match.groups()
    base = 16 if digits[:2] in (b"0x", b"0X") else 8 if digits[:1] == b"0" else 10
    number = int(digits, base) * _UNITS[unit.lower()]
    return number if number <= _ENDLESS else None
