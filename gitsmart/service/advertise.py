"""The ref advertisement: how every conversation begins.

    GET info/refs?service=git-upload-pack    Git-Protocol: version=2 -> capabilities; refs are asked for later
                                             version=1, or none      -> # service=, refs with capabilities
    GET info/refs?service=git-receive-pack   the same; there is no version 2 of it, and version 0 is spoken

gitprotocol-http, "Discovering References"; gitprotocol-pack, "Reference Discovery"; gitprotocol-v2,
"Capability Advertisement"; git: http-backend.c get_info_refs(), upload-pack.c write_v0_ref(), receive-pack.c
show_ref().
A capability stands here only when the service does what it promises.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from gitsmart.pack.objects import to_hex
from gitsmart.repo.ref_view import ALTERNATE
from gitsmart.repo.refs import Ref, RefSnapshot
from gitsmart.repo.repository import Repository
from gitsmart.service.alternate_refs import alternate_tips
from gitsmart.service.channel import Channel, write_kept
from gitsmart.service.features import Features, read_features
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.push_certificate import NonceIssuer
from gitsmart.service.wants import read_want_policy
from gitsmart.wire.pktline import FLUSH_PKT, pkt

__all__ = ["ServiceName", "advertise", "write_advertisement"]

ServiceName = Literal["git-upload-pack", "git-receive-pack"]

_UPLOAD_PACK = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not deepen-relative"
    b" no-progress include-tag multi_ack_detailed"
)
_RECEIVE_PACK = b"report-status report-status-v2 delete-refs side-band-64k quiet"

_KEPT_BYTES = 16 << 20
"""Larger lists are made for each request."""


def advertise(
    repo: Repository, channel: Channel, *, service: ServiceName, version: int, options: ServiceOptions
) -> ServiceReport:
    """Write the body of `info/refs?service=...`.

    Args:
        version: what the Git-Protocol header asks for: 0, 1 or 2.

    Raises:
        Disconnected: the peer has gone.
        RepositoryError, OSError: the refs can't be read.
    """
    prefix = b""
    if not (service == "git-upload-pack" and version == 2):
        prefix = pkt(b"# service=%b\n" % service.encode("ascii")) + FLUSH_PKT
    return write_advertisement(
        repo, channel, service=service, version=version, options=options, stateless=True, prefix=prefix
    )


def write_advertisement(
    repo: Repository,
    channel: Channel,
    *,
    service: ServiceName,
    version: int,
    options: ServiceOptions,
    stateless: bool,
    prefix: bytes = b"",
) -> ServiceReport:
    """Write what the service itself says first, behind `prefix`; see `advertise`.

    What comes behind the capabilities is encoded once for each state of the refs.
    """
    if service == "git-upload-pack" and version == 2:
        channel.write(_v2_advertisement(repo, options))
        return ServiceReport()
    report = ServiceReport()
    begin = pkt(b"version 1\n") if version == 1 else b""
    is_fetch = service == "git-upload-pack"
    snapshot = repo.shown_refs("uploadpack") if is_fetch else repo.refs(peel=False)
    repo.require_known(len(snapshot.refs))
    capabilities = _v0_capabilities(repo, snapshot, service, options, stateless=stateless)
    tips: Sequence[bytes] = ()
    if not is_fetch:
        tips = alternate_tips(repo, options, check=channel.check)
    key: object = "v0", repo.view("receive") if not is_fetch else None, bool(tips)
    known = snapshot.memo.get(key)
    if isinstance(known, _Lines):
        encoded = known
    else:
        encoded = _encode(_v0_refs(repo, snapshot, service, tips))
        if not tips and len(encoded.rest) <= _KEPT_BYTES:
            snapshot.memo[key] = encoded
    oid, name = encoded.first
    first = pkt(b"%b %b\0%b\n" % (oid, name, capabilities))
    end = b"".join([pkt(b"shallow %b\n" % to_hex(raw_oid)) for raw_oid in sorted(repo.shallow())])
    report.refs += encoded.count
    if prefix and b" push-cert=" not in capabilities:
        write_kept(channel, *encoded.whole(prefix + begin + first, end + FLUSH_PKT))
    else:
        head, tail = prefix + begin + first, [encoded.rest, end, FLUSH_PKT]
        channel.promise(len(head) + sum(map(len, tail)))
        channel.write(head)
        channel.write_all(tail)
    return report


def _v2_advertisement(repo: Repository, options: ServiceOptions) -> bytes:
    """All of it, made once for each state of the config."""
    config = repo.config
    known = config.memo.get("v2")
    if isinstance(known, tuple) and known[0] is options:
        return bytes(known[1])
    lines = v2_capabilities(repo, read_features(config, repo.format), options)
    advertisement = b"".join([pkt(line + b"\n") for line in lines]) + FLUSH_PKT
    config.memo["v2"] = options, advertisement
    return advertisement


class _Lines:
    """All lines but the first, which has the capabilities."""

    def __init__(self, first: tuple[bytes, bytes], rest: bytes, count: int) -> None:
        self.first = first
        """Oid and name."""
        self.rest = rest
        self.count = count
        """Refs in all: no peeled ones, nor alternates'."""
        self._whole: tuple[bytes, bytes, bytes, dict[str, bytes]] | None = None

    def whole(self, begin: bytes, end: bytes) -> tuple[bytes, dict[str, bytes]]:
        """Return all of an advertisement, and what belongs to it; see `write_kept`."""
        known = self._whole
        if known is None or known[:2] != (begin, end):
            known = self._whole = (begin, end, b"".join((begin, self.rest, end)), {})
        return known[2:]


def _encode(refs: Iterator[tuple[bytes, bytes]]) -> _Lines:
    name, oid = next(refs)
    count = int(name != ALTERNATE and not name.endswith(b"^{}"))
    rest = []
    for other, other_oid in refs:
        rest.append(b"%04x%b %b\n" % (len(other_oid) + len(other) + 6, other_oid, other))
        count += other != ALTERNATE and not other.endswith(b"^{}")
    return _Lines((oid, name), b"".join(rest), count)


def v2_capabilities(repo: Repository, features: Features, options: ServiceOptions) -> list[bytes]:
    """Return the lines of a v2 capability advertisement, without their LF, in git's order."""
    lines = [
        b"version 2",
        b"agent=" + options.agent,
        b"ls-refs=unborn" if features.advertises_unborn else b"ls-refs",
        b"fetch=" + b" ".join(features.fetch_features),
        b"server-option",
        b"object-format=" + repo.format.name,
    ]
    if features.session_id:
        lines.append(b"session-id=" + options.session_id)
    if features.object_info:
        lines.append(b"object-info=size")
    if features.bundle_uri:
        lines.append(b"bundle-uri")
    if features.promisor_remotes:
        lines.append(b"promisor-remote=" + b";".join(features.promisor_remotes.values()))
    return lines


def _v0_capabilities(
    repo: Repository, snapshot: RefSnapshot, service: ServiceName, options: ServiceOptions, *, stateless: bool
) -> bytes:
    config = repo.config
    if service == "git-receive-pack":
        words = [_RECEIVE_PACK]
        if config.get_bool("receive.advertiseAtomic", True):
            words.append(b"atomic")
        words.append(b"ofs-delta")
        nonces = NonceIssuer.of(config, repo.name, repo.format)
        if nonces is not None:
            words.append(b"push-cert=" + nonces.issue(int(time.time())))
        # git's default is off; hooks that don't look at the options lose nothing by their being offered
        if config.get_bool("receive.advertisePushOptions", True):
            words.append(b"push-options")
        if config.get_bool("transfer.advertiseSID", False):
            words.append(b"session-id=" + options.session_id)
        return b"%b object-format=%b agent=%b" % (b" ".join(words), repo.format.name, options.agent)
    words = [_UPLOAD_PACK, *read_want_policy(config).v0_capabilities]
    if stateless:
        words.append(b"no-done")
    if snapshot.head is not None and snapshot.head_target is not None:
        words.append(b"symref=HEAD:" + snapshot.head_target)
    if config.get_bool("uploadpack.allowFilter", True):
        words.append(b"filter")
    if config.get_bool("transfer.advertiseSID", False):
        words.append(b"session-id=" + options.session_id)
    return b"%b object-format=%b agent=%b" % (b" ".join(words), repo.format.name, options.agent)


def _v0_refs(
    repo: Repository,
    snapshot: RefSnapshot,
    service: ServiceName,
    tips: Sequence[bytes],
) -> Iterator[tuple[bytes, bytes]]:
    """Name and oid of each line. An empty repository has one line too, for the capabilities."""
    empty = b"capabilities^{}", repo.format.zero
    if service == "git-receive-pack":
        lines = _with_alternates(tips, repo.view("receive").for_push(snapshot))
        yield next(lines, empty)
        yield from lines
        return
    refs: tuple[Ref, ...] = snapshot.refs
    if snapshot.head is not None:
        refs = (snapshot.head, *refs)
    if not refs:
        yield empty
    for ref in refs:
        yield ref.name, ref.oid
        if ref.peeled is not None:
            yield ref.name + b"^{}", ref.peeled


def _with_alternates(
    tips: Sequence[bytes], lines: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """Add `.have` lines of what alternates have (git: builtin/receive-pack.c show_one_alternate_ref())."""
    if not tips:
        yield from lines
        return
    seen = set()
    for name, oid in lines:
        seen.add(oid)
        yield name, oid
    for oid in tips:
        if oid not in seen:
            yield ALTERNATE, oid
