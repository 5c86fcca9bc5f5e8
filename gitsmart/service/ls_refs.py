"""v2's ls-refs: the refs, filtered by prefix.

    ref         =  pkt-line(oid-or-unborn SP refname *ref-attribute LF)
    attribute   =  SP "symref-target:" refname  /  SP "peeled:" oid

gitprotocol-v2, "ls-refs"; git: ls-refs.c. HEAD comes first, the others sorted by name.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from gitsmart.repo.refs import Ref, RefSnapshot
from gitsmart.repo.repository import Repository
from gitsmart.service.channel import Channel, write_kept
from gitsmart.wire.pktline import FLUSH_PKT, pkt
from gitsmart.wire.upload_request import LsRefsRequest

__all__ = ["ls_refs"]

_KEPT_ANSWERS = 16
"""Answers to different questions that are kept for one state of the refs ..."""
_KEPT_BYTES = 32 << 20
"""... unless they are larger than this together. A list of 50,000 refs has 3.4 MB."""


def ls_refs(repo: Repository, channel: Channel, request: LsRefsRequest) -> int:
    """Answer an ls-refs request and return how many refs were listed.

    What clients ask again is kept as long as no ref changes: gzip'd, too, where that was asked for.

    Raises:
        Disconnected: the peer has gone.
        RepositoryError, OSError: the refs can't be read.
    """
    snapshot = repo.shown_refs("uploadpack", peel=request.peel)
    answers = _answers_of(snapshot)
    answer = answers.get(request)
    if answer is None:
        if ("lines", request.peel, request.symrefs) not in snapshot.memo:
            repo.require_known(len(snapshot.refs))
        answer = _answer(snapshot, request)
        answers.put(request, answer)
    repo.require_known(answer.listed)
    write_kept(channel, answer.body, answer.kept)
    return answer.listed


@dataclass(slots=True)
class _Answer:
    body: bytes
    listed: int
    kept: dict[str, bytes]


class _Answers:
    """What was answered lately, for one state of the refs."""

    def __init__(self) -> None:
        self._answers: dict[LsRefsRequest, _Answer] = {}
        self._bytes = 0

    def get(self, request: LsRefsRequest) -> _Answer | None:
        return self._answers.get(request)

    def put(self, request: LsRefsRequest, answer: _Answer) -> None:
        size = len(answer.body) + sum(map(len, request.prefixes))
        if size > _KEPT_BYTES:
            return
        if len(self._answers) >= _KEPT_ANSWERS or self._bytes + size > _KEPT_BYTES:
            self._answers, self._bytes = {}, 0
        self._answers[request] = answer
        self._bytes += size


def _answers_of(snapshot: RefSnapshot) -> _Answers:
    known = snapshot.memo.get("ls-refs")
    if not isinstance(known, _Answers):
        known = snapshot.memo["ls-refs"] = _Answers()
    return known


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of all refs but HEAD: the `i`-th is `body[ends[i - 1]:ends[i]]`."""

    body: bytes
    names: list[bytes]
    ends: "array[int]"


def _lines_of(snapshot: RefSnapshot, request: LsRefsRequest) -> _Lines:
    key = ("lines", request.peel, request.symrefs)
    known = snapshot.memo.get(key)
    if not isinstance(known, _Lines):
        lines = [_ref_line(ref, request) for ref in snapshot.refs]
        ends = array("Q", accumulate(map(len, lines)))
        known = _Lines(b"".join(lines), [ref.name for ref in snapshot.refs], ends)
        snapshot.memo[key] = known
    return known


def _answer(snapshot: RefSnapshot, request: LsRefsRequest) -> _Answer:
    is_head_wanted = not request.prefixes or b"HEAD".startswith(request.prefixes)
    parts: list[bytes | memoryview] = []
    listed = 0
    if is_head_wanted and snapshot.head is not None:
        parts.append(_ref_line(snapshot.head, request))
        listed = 1
    elif is_head_wanted and request.unborn and request.symrefs and snapshot.head_target is not None:
        parts.append(pkt(b"unborn HEAD symref-target:%b\n" % snapshot.head_target))
    lines = _lines_of(snapshot, request)
    body = memoryview(lines.body)
    for start, end in _with_prefixes(lines.names, request.prefixes):
        parts.append(body[lines.ends[start - 1] if start else 0 : lines.ends[end - 1]])
        listed += end - start
    parts.append(FLUSH_PKT)
    return _Answer(b"".join(parts), listed, {})


def _ref_line(ref: Ref, request: LsRefsRequest) -> bytes:
    line = b"%b %b" % (ref.oid, ref.name)
    if request.symrefs and ref.symref_target is not None:
        line += b" symref-target:" + ref.symref_target
    if request.peel and ref.peeled is not None:
        line += b" peeled:" + ref.peeled
    return b"%04x%b\n" % (len(line) + 5, line)


def _with_prefixes(names: list[bytes], prefixes: tuple[bytes, ...]) -> Iterator[tuple[int, int]]:
    """Yield start and end of the runs of sorted `names` that begin with any of `prefixes`, in order.

    Bisects for each prefix: some clients send one for every ref.
    """
    if not prefixes or b"" in prefixes:
        if names:
            yield 0, len(names)
        return
    start = 0
    previous: bytes | None = None
    for prefix in sorted(set(prefixes)):
        if previous is not None and prefix.startswith(previous):
            continue
        previous = prefix
        start = bisect_left(names, prefix, lo=start)
        stem = prefix.rstrip(b"\xff")
        end = bisect_left(names, stem[:-1] + bytes([stem[-1] + 1]), lo=start) if stem else len(names)
        if end > start:
            yield start, end
        start = end
