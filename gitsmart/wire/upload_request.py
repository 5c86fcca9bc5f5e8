r"""What a client asks of upload-pack: the lines of v0 and v1, and the arguments of v2's commands.

    upload-request   =  want-list *shallow-line [depth-request] [filter-request] flush-pkt    ; v0, v1
    first-want       =  pkt-line("want" SP oid SP capability-list)
    additional-want  =  pkt-line("want" SP oid)
    shallow-line     =  pkt-line("shallow" SP oid)
    depth-request    =  pkt-line("deepen" SP depth)
                     /  pkt-line("deepen-since" SP seconds)  /  pkt-line("deepen-not" SP refname)
    filter-request   =  pkt-line("filter" SP filter-spec)
    have-line        =  pkt-line("have" SP oid)
    fetch argument   =  want / have / shallow / deepen / "done" / "thin-pack" / ...  ; v2, a pkt-line each
                     /  "want-ref" SP refname / "packfile-uris" SP protocol *("," protocol)

    payloads --parse_upload_request | parse_fetch_arguments--> FetchRequest
    payloads --parse_ls_refs_arguments--> LsRefsRequest
    payloads --parse_object_info_arguments--> ObjectInfoRequest

gitprotocol-pack, "Packfile Negotiation"; gitprotocol-v2, "fetch", "ls-refs", "object-info"; git:
upload-pack.c receive_needs(), process_args(), ls-refs.c ls_refs(), protocol-caps.c cap_object_info(), whose
error texts are used. The flush-pkt behind the lines is the caller's, and so are the bounds: these functions
hold one entry per line and take linear time. Whether an object or a ref exists isn't known here.
"""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from enum import Enum

from gitsmart.errors import ProtocolError
from gitsmart.wire.capabilities import parse_capability_list
from gitsmart.wire.filter_spec import FilterSpec, parse_filter_spec
from gitsmart.wire.pktline import chomp, printable
from gitsmart.wire.sideband import SIDE_BAND_64K_LIMIT, SIDE_BAND_LIMIT

__all__ = [
    "INFINITE_DEPTH",
    "FetchRequest",
    "LsRefsRequest",
    "MultiAck",
    "ObjectInfoRequest",
    "SideBandAllError",
    "oid_pattern",
    "parse_fetch_arguments",
    "parse_have",
    "parse_ls_refs_arguments",
    "parse_object_info_arguments",
    "parse_upload_request",
]

INFINITE_DEPTH = 0x7FFFFFFF
"""The depth by which `git fetch --unshallow` asks for all of the history (git: shallow.h)."""

_LATEST = (1 << 63) - 1
_TOO_MANY_PREFIXES = 65536  # git: ls-refs.c; at that many, none of them counts
# As C's strtol() reads it, with base 0
_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]{1,64}|0[0-7]{0,64}|[1-9][0-9]{0,18})")
_OIDS = {40: re.compile(rb"[0-9a-f]{40}", re.IGNORECASE), 64: re.compile(rb"[0-9a-f]{64}", re.IGNORECASE)}


class SideBandAllError(ProtocolError):
    """What the client is told on band 3, since it has asked for side-band packets already."""


class MultiAck(Enum):
    """How much the server says about each have, as the client chose (gitprotocol-capabilities,
    "multi_ack").
    """

    NONE = 0
    CONTINUE = 1
    DETAILED = 2


@dataclass(slots=True, kw_only=True)
class FetchRequest:
    """What a client asks to be sent. Oids are lower-case hex, each once, in the client's order."""

    wants: dict[bytes, None] = field(default_factory=dict)
    haves: dict[bytes, None] = field(default_factory=dict)
    """v2 only: in v0 and v1 they come in rounds, behind this request."""
    shallow: dict[bytes, None] = field(default_factory=dict)
    """The commits whose parents the client does not have."""
    depth: int = 0
    """Commits of history wanted, counted from each want; 0: as the client's shallow commits have it."""
    deepen_relative: bool = False
    """Count `depth` from the client's shallow commits."""
    deepen_since: int | None = None
    """Only history from this time on, in seconds since 1970."""
    deepen_not: list[bytes] = field(default_factory=list)
    """Only history that these refs, named as a user would, don't reach."""
    filter: FilterSpec | None = None
    """What is to be left out."""
    done: bool = False
    """v2 only, as are the next four."""
    want_refs: dict[bytes, None] = field(default_factory=dict)
    """Refs that are wanted by name, whatever they are at now."""
    wait_for_done: bool = False
    """Never say `ready`; haves may come without wants."""
    sideband_all: bool = False
    """The whole answer goes in side-band packets."""
    uri_protocols: tuple[bytes, ...] = ()
    """Protocols by which the client would get objects from elsewhere; none: it would not."""
    thin_pack: bool = False
    ofs_delta: bool = False
    include_tag: bool = False
    no_progress: bool = False
    side_band_limit: int = 0
    """Longest pkt-line with a band in bytes, 0 without side-band."""
    multi_ack: MultiAck = MultiAck.NONE
    """v0 and v1 only, as is `no_done`."""
    no_done: bool = False
    agent: bytes = b""
    """v0 and v1 only, as is `session_id`: in v2 the request's head has them."""
    session_id: bytes = b""

    @property
    def is_deepening(self) -> bool:
        """True when the client says where history has to end."""
        return bool(self.depth or self.deepen_not) or self.deepen_since is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LsRefsRequest:
    """What a v2 client wants to be told of the refs."""

    peel: bool = False
    symrefs: bool = False
    unborn: bool = False
    prefixes: tuple[bytes, ...] = ()
    """Refs that begin with any of these are wanted; all of them, when there are none here."""


@dataclass(slots=True, kw_only=True)
class ObjectInfoRequest:
    """What a v2 client wants to know of which objects. Oids are as the client wrote them, in its order."""

    size: bool = False
    oids: list[bytes] = field(default_factory=list)


def oid_pattern(hex_len: int) -> re.Pattern[bytes]:
    """Return the pattern that a hex oid of `hex_len` digits fully matches."""
    return _OIDS[hex_len]


def parse_upload_request(lines: Iterable[bytes], *, hex_len: int, filters: bool = False) -> FetchRequest:
    """Read the payloads of a v0 or v1 upload-request, up to its flush-pkt. All capabilities are optional.

    Args:
        filters: whether `filter` was advertised; a client that uses one has to choose it as well.

    Raises:
        ProtocolError: a line is none that belongs here. Whatever `lines` raises goes through.
    """
    request = FetchRequest()
    may_filter = False
    for line in lines:
        text = chomp(line)
        if _receive_shallow(request, text, hex_len):
            continue
        if text.startswith(b"filter "):
            if not may_filter:
                raise ProtocolError("git upload-pack: filtering capability not negotiated")
            _receive_filter(request, text)
            continue
        name, _, rest = text.partition(b" ")
        oid, space, capabilities = rest.partition(b" ")
        if name != b"want" or not _OIDS[hex_len].fullmatch(oid):
            raise ProtocolError(
                f"git upload-pack: protocol error, expected to get object ID, not '{printable(text)}'"
            )
        request.wants[oid.lower()] = None
        if space:
            chosen = parse_capability_list(capabilities)
            may_filter = may_filter or (filters and b"filter" in chosen)
            _choose(request, chosen)
    return request


def parse_have(line: bytes, *, hex_len: int) -> bytes | None:
    """Read a payload of a v0 or v1 negotiation: the oid of a have, or None for done.

    Raises:
        ProtocolError: it is neither.
    """
    text = chomp(line)
    if text.startswith(b"have "):
        return _oid(text, hex_len, "git upload-pack: expected SHA1 object, got '{}'", shown=text[5:])
    if text == b"done":
        return None
    raise ProtocolError(f"git upload-pack: expected SHA1 list, got '{printable(text)}'")


def parse_fetch_arguments(
    lines: Iterable[bytes], *, hex_len: int, features: Container[bytes] = ()
) -> FetchRequest:
    """Read the argument payloads of a v2 fetch, up to the flush-pkt.

    Args:
        features: what was advertised of `filter`, `ref-in-want`, `sideband-all` and `packfile-uris`.

    Raises:
        ProtocolError: an argument is malformed, or belongs to a feature that isn't advertised. Whatever
            `lines` raises goes through.
        SideBandAllError: sideband-all stands before it.
    """
    request = FetchRequest(side_band_limit=SIDE_BAND_64K_LIMIT)
    for line in lines:
        text = chomp(line)
        if text.startswith(b"have "):
            oid = _oid(text, hex_len, "git upload-pack: expected SHA1 object, got '{}'", shown=text[5:])
            request.haves[oid] = None
        elif text.startswith(b"want "):
            oid = _oid(text, hex_len, "git upload-pack: protocol error, expected to get oid, not '{}'")
            request.wants[oid] = None
        elif text.startswith(b"want-ref ") and b"ref-in-want" in features:
            ref = text[9:]
            if ref in request.want_refs:
                raise _told_on_band(request, f"duplicate want-ref {printable(ref)}")
            request.want_refs[ref] = None
        elif _receive_shallow(request, text, hex_len):
            continue
        elif text == b"done":
            request.done = True
        elif text == b"thin-pack":
            request.thin_pack = True
        elif text == b"ofs-delta":
            request.ofs_delta = True
        elif text == b"include-tag":
            request.include_tag = True
        elif text == b"no-progress":
            request.no_progress = True
        elif text == b"deepen-relative":
            request.deepen_relative = True
        elif text == b"wait-for-done":
            request.wait_for_done = True
        elif text.startswith(b"filter ") and b"filter" in features:
            _receive_filter(request, text)
        elif text == b"sideband-all" and b"sideband-all" in features:
            request.sideband_all = True
        elif text.startswith(b"packfile-uris ") and b"packfile-uris" in features:
            if request.uri_protocols:
                raise _told_on_band(request, "multiple packfile-uris lines forbidden")
            request.uri_protocols = tuple(text[14:].split(b","))
        else:
            raise ProtocolError(f"unexpected line: '{printable(text)}'")
    if not request.sideband_all:
        # Its section comes in side-band packets only (git: upload-pack.c process_args())
        request.uri_protocols = ()
    return request


def _told_on_band(request: FetchRequest, text: str) -> ProtocolError:
    """git: upload-pack.c send_err_and_die()"""
    return SideBandAllError(text) if request.sideband_all else ProtocolError(text)


def parse_ls_refs_arguments(lines: Iterable[bytes]) -> LsRefsRequest:
    """Read the argument payloads of a v2 ls-refs, up to the flush-pkt.

    Raises:
        ProtocolError: an argument is unknown. Whatever `lines` raises goes through.
    """
    flags: set[bytes] = set()
    prefixes: list[bytes] = []
    for line in lines:
        text = chomp(line)
        if text.startswith(b"ref-prefix "):
            if len(prefixes) < _TOO_MANY_PREFIXES:
                prefixes.append(text[11:])
        elif text in (b"peel", b"symrefs", b"unborn"):
            flags.add(text)
        else:
            raise ProtocolError(f"unexpected line: '{printable(text)}'")
    return LsRefsRequest(
        peel=b"peel" in flags,
        symrefs=b"symrefs" in flags,
        unborn=b"unborn" in flags,
        prefixes=tuple(prefixes) if len(prefixes) < _TOO_MANY_PREFIXES else (),
    )


def parse_object_info_arguments(lines: Iterable[bytes], *, hex_len: int) -> ObjectInfoRequest:
    """Read the argument payloads of a v2 object-info, up to the flush-pkt.

    Raises:
        ProtocolError: an argument is unknown, or no oid of that length. Whatever `lines` raises goes through.
    """
    request = ObjectInfoRequest()
    for line in lines:
        text = chomp(line)
        if text == b"size":
            request.size = True
        elif text.startswith(b"oid "):
            oid = text[4:]
            if not _OIDS[hex_len].fullmatch(oid):
                raise ProtocolError(
                    f"object-info: protocol error, expected to get oid, not '{printable(oid)}'"
                )
            request.oids.append(oid)
        else:
            raise ProtocolError(f"object-info: unexpected line: '{printable(text)}'")
    return request


def _oid(text: bytes, hex_len: int, message: str, *, shown: bytes | None = None) -> bytes:
    """Take the oid behind the five bytes of `want ` or `have `."""
    oid = text[5:]
    if not _OIDS[hex_len].fullmatch(oid):
        raise ProtocolError(message.format(printable(text if shown is None else shown)))
    return oid.lower()


def _receive_filter(request: FetchRequest, text: bytes) -> None:
    if request.filter is not None:
        raise ProtocolError("multiple filter-specs cannot be combined")
    request.filter = parse_filter_spec(text[7:])


def _receive_shallow(request: FetchRequest, text: bytes, hex_len: int) -> bool:
    """Take a shallow or deepen line; say whether it was one."""
    if text.startswith(b"shallow "):
        oid = text[8:]
        if not _OIDS[hex_len].fullmatch(oid):
            raise ProtocolError(f"invalid shallow line: {printable(text)}")
        request.shallow[oid.lower()] = None
        return True
    if text.startswith(b"deepen "):
        depth = _read_number(text[7:])
        if depth is None or depth <= 0:
            raise ProtocolError(f"Invalid deepen: {printable(text)}")
        request.depth = min(depth, INFINITE_DEPTH)
        return True
    if text.startswith(b"deepen-since "):
        seconds = _read_number(text[13:])
        if seconds is None or seconds < 0:
            raise ProtocolError(f"Invalid deepen-since: {printable(text)}")
        request.deepen_since = min(seconds, _LATEST)
        return True
    if text.startswith(b"deepen-not "):
        request.deepen_not.append(text[11:])
        return True
    return False


def _read_number(text: bytes) -> int | None:
    """Read an integer, decimal, octal behind 0 or hexadecimal behind 0x; None: it is none."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    digits = match[2].lower()
    base = 16 if digits.startswith(b"0x") else 8 if digits.startswith(b"0") else 10
    return -int(digits, base) if match[1] == b"-" else int(digits, base)


def _choose(request: FetchRequest, capabilities: dict[bytes, bytes]) -> None:
    """Note the capabilities of a want line; unknown ones are ignored, as git does (git: receive_needs())."""
    if b"multi_ack_detailed" in capabilities:
        request.multi_ack = MultiAck.DETAILED
    elif b"multi_ack" in capabilities:
        request.multi_ack = MultiAck.CONTINUE
    if b"side-band-64k" in capabilities:
        request.side_band_limit = SIDE_BAND_64K_LIMIT
    elif b"side-band" in capabilities:
        request.side_band_limit = SIDE_BAND_LIMIT
    request.no_done |= b"no-done" in capabilities
    request.thin_pack |= b"thin-pack" in capabilities
    request.ofs_delta |= b"ofs-delta" in capabilities
    request.include_tag |= b"include-tag" in capabilities
    request.no_progress |= b"no-progress" in capabilities
    request.deepen_relative |= b"deepen-relative" in capabilities
    request.agent = capabilities.get(b"agent", request.agent)
    request.session_id = capabilities.get(b"session-id", request.session_id)
