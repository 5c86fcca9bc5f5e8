"""v2's ls-refs: the refs, filtered by prefix.

    ref         =  pkt-line(oid-or-unborn SP refname *ref-attribute LF)
    attribute   =  SP "symref-target:" refname  /  SP "peeled:" oid

gitprotocol-v2, "ls-refs"; git: ls-refs.c. HEAD comes first, the others sorted by name.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from gitsmart.repo.refs import Ref
from gitsmart.repo.repository import Repository
from gitsmart.service.channel import Channel
from gitsmart.wire.pktline import FLUSH_PKT, pkt
from gitsmart.wire.upload_request import LsRefsRequest

__all__ = ["ls_refs"]

_BATCH = 512
"""Lines joined into one write: some 32 KiB."""


def ls_refs(repo: Repository, channel: Channel, request: LsRefsRequest) -> int:
    """Answer an ls-refs request and return how many refs were listed.

    Raises:
        Disconnected: the peer has gone.
        RepositoryError, OSError: the refs can't be read.
    """
    snapshot = repo.shown_refs("uploadpack", peel=request.peel)
    is_head_wanted = not request.prefixes or b"HEAD".startswith(request.prefixes)
    listed = 0
    if is_head_wanted and snapshot.head is not None:
        channel.write(_ref_line(snapshot.head, request))
        listed = 1
    elif is_head_wanted and request.unborn and request.symrefs and snapshot.head_target is not None:
        channel.write(pkt(b"unborn HEAD symref-target:%b\n" % snapshot.head_target))
    for part in _with_prefixes(snapshot.refs, request.prefixes):
        listed += len(part)
        for start in range(0, len(part), _BATCH):
            channel.write(b"".join([_ref_line(ref, request) for ref in part[start : start + _BATCH]]))
    channel.write(FLUSH_PKT)
    return listed


def _ref_line(ref: Ref, request: LsRefsRequest) -> bytes:
    line = b"%b %b" % (ref.oid, ref.name)
    if request.symrefs and ref.symref_target is not None:
        line += b" symref-target:" + ref.symref_target
    if request.peel and ref.peeled is not None:
        line += b" peeled:" + ref.peeled
    return b"%04x%b\n" % (len(line) + 5, line)


def _with_prefixes(refs: Sequence[Ref], prefixes: tuple[bytes, ...]) -> Iterator[Sequence[Ref]]:
    """Yield the runs of sorted `refs` that begin with any of `prefixes`, each ref once, in order.

    Bisects for each prefix: some clients send one for every ref.
    """
    if not prefixes:
        yield refs
        return
    start = 0
    previous: bytes | None = None
    for prefix in sorted(set(prefixes)):
        if previous is not None and prefix.startswith(previous):
            continue
        previous = prefix
        start = bisect_left(refs, prefix, lo=start, key=lambda ref: ref.name)
        end = bisect_right(refs, prefix, lo=start, key=lambda ref: ref.name[: len(prefix)])
        if end > start:
            yield refs[start:end]
        start = end
