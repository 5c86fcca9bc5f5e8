"""Where a fetch's history ends, when it is not to be whole.

    client's shallow commits + deepen N, -since, -not + our own shallow commits
        --plan_shallow--> lines to tell the client, and where the commit walk has to stop

gitprotocol-pack, "Packfile Negotiation"; gitprotocol-v2, "fetch", `shallow-info`; gitprotocol-shallow in
git's technical docs; git: upload-pack.c send_shallow_list(), deepen(), send_unshallow(). Raw oids throughout.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from gitsmart.errors import ProtocolError
from gitsmart.pack.objects import COMMIT, to_hex
from gitsmart.pack.select import depth_boundary, walk_commits
from gitsmart.pack.store import ObjectStore
from gitsmart.wire.upload_request import INFINITE_DEPTH

__all__ = ["ShallowPlan", "known_shallow", "plan_shallow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShallowPlan:
    """What a fetch does about shallow commits."""

    boundary: frozenset[bytes] = frozenset()
    """Commits whose parents are not to be sent."""
    client_shallow: frozenset[bytes] = frozenset()
    """Commits that the client may have without their parents: what they lead to is not known to be there."""
    extra_wants: tuple[bytes, ...] = ()
    """Parents of the commits that are shallow no longer."""
    extra_uninteresting: tuple[bytes, ...] = ()
    """Those commits, which the client has."""
    lines: tuple[bytes, ...] = ()
    """Payloads for the client: `shallow <oid>` and `unshallow <oid>`."""


def known_shallow(store: ObjectStore, shallow: Iterable[bytes]) -> frozenset[bytes]:
    """Keep the client's shallow commits that we know of; the others mean nothing here, as to git.

    Raises:
        ProtocolError: one is no commit.
    """
    known = store.present(shallow)
    for raw_oid in known:
        if store.type_of(raw_oid) != COMMIT:
            raise ProtocolError(f"invalid shallow object {to_hex(raw_oid).decode('ascii')}")
    return frozenset(known)


def plan_shallow(
    store: ObjectStore,
    *,
    heads: Iterable[bytes],
    client_shallow: frozenset[bytes],
    server_shallow: frozenset[bytes],
    depth: int,
    is_relative: bool,
    since: int | None,
    excluded: Collection[bytes] | None,
    tell_server_shallow: bool,
    tick: Callable[[int], None],
) -> ShallowPlan:
    """Decide where history ends for a client that wants `heads`.

    Args:
        heads: the commits wanted.
        client_shallow: the client's shallow commits, of those that we have (`known_shallow`).
        server_shallow: our own; their parents are not here.
        depth: see `FetchRequest.depth`.
        is_relative: count from the client's shallow commits.
        since: only commits of this time or later, in seconds; None: all.
        excluded: only commits that these commits don't reach; None: all.
        tell_server_shallow: name our own shallow commits without a depth asked for, too: v2 does, while a v0
            client knows them from the ref advertisement.
        tick: called with a count now and then.

    Raises:
        ProtocolError: what is asked for doesn't go together, or leaves no commit.
        PackError, ObjectMissing: the history is broken.
    """
    is_limited = since is not None or excluded is not None
    if depth and is_limited:
        raise ProtocolError(
            "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together"
        )
    cut: set[bytes]
    whole: set[bytes]
    if is_limited:
        cut, whole = _limited(store, heads, since or 0, excluded or (), server_shallow, tick)
    elif depth:
        if depth == INFINITE_DEPTH and not server_shallow:
            cut, whole = set(), set(client_shallow)
        elif is_relative:
            starts = _reached(store, heads, client_shallow, server_shallow, tick)
            cut, whole = depth_boundary(
                store, starts, min(depth + 1, INFINITE_DEPTH), server_shallow, tick=tick
            )
        else:
            cut, whole = depth_boundary(store, heads, depth, server_shallow, tick=tick)
    elif server_shallow and tell_server_shallow:
        ends = server_shallow | client_shallow
        met, _ = depth_boundary(store, heads, INFINITE_DEPTH, ends, tick=tick)
        cut, whole = met & server_shallow, set()
    else:
        cut, whole = set(), set()
    fresh = sorted(cut - client_shallow)
    deepened = sorted((client_shallow & whole) - cut)
    lines = [b"shallow " + to_hex(raw_oid) for raw_oid in fresh]
    lines += [b"unshallow " + to_hex(raw_oid) for raw_oid in deepened]
    parents = {parent: None for raw_oid in deepened for parent in store.commit(raw_oid).parents}
    return ShallowPlan(
        boundary=frozenset(cut | (client_shallow - set(deepened)) | server_shallow),
        client_shallow=client_shallow | server_shallow,
        extra_wants=tuple(parents),
        extra_uninteresting=tuple(deepened),
        lines=tuple(lines),
    )


def _limited(
    store: ObjectStore,
    heads: Iterable[bytes],
    since: int,
    excluded: Collection[bytes],
    server_shallow: frozenset[bytes],
    tick: Callable[[int], None],
) -> tuple[set[bytes], set[bytes]]:
    """As `depth_boundary`, for history limited by time and by other commits.

    git: shallow.c get_shallow_commits_by_rev_list().
    """
    heads = list(heads)
    new, _ = walk_commits(store, heads, excluded, boundary=server_shallow, tick=tick)
    allowed = set(new)
    chosen = {raw_oid for raw_oid in heads if raw_oid in allowed and store.commit(raw_oid).date >= since}
    if not chosen:
        raise ProtocolError("no commits selected for shallow requests")
    cut = set()
    stack = list(chosen)
    while stack:
        raw_oid = stack.pop()
        if raw_oid in server_shallow:
            cut.add(raw_oid)
            continue
        for parent in store.commit(raw_oid).parents:
            if parent in chosen:
                continue
            if parent in allowed and store.commit(parent).date >= since:
                chosen.add(parent)
                stack.append(parent)
                if not len(chosen) & 1023:
                    tick(len(chosen))
            else:
                cut.add(raw_oid)
    return cut, chosen - cut


def _reached(
    store: ObjectStore,
    heads: Iterable[bytes],
    client_shallow: frozenset[bytes],
    server_shallow: frozenset[bytes],
    tick: Callable[[int], None],
) -> list[bytes]:
    """Find those of the client's shallow commits to which `heads` lead."""
    seen = set(heads)
    stack = list(seen)
    reached = []
    while stack:
        raw_oid = stack.pop()
        if raw_oid in client_shallow:
            reached.append(raw_oid)
            continue
        if raw_oid in server_shallow:
            continue
        for parent in store.commit(raw_oid).parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
                if not len(seen) & 1023:
                    tick(len(seen))
    return reached
