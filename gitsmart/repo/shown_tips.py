"""What refs showed until a moment ago: for clients that were told of it, and come for it now.

    listing of refs -> client -> fetch by oid or by name, seconds later, when a push has moved or deleted some

C git's fetches by oid work all the same in protocol v2, since it serves any object that exists. Here what a
ref showed stays good for `GRACE_S` after it is gone, if this process listed it while it was there; whoever
took it away. What pushes through us take away every process knows: gone_refs.py. A change of the config ends
that at once: what is hidden from now on is hidden.
"""

import threading
import time
from collections.abc import Callable

from gitsmart.repo.refs import RefSnapshot

__all__ = ["GRACE_S", "ShownTips"]

GRACE_S = 300.0  # pulled out of the air: longer than a client needs from its listing to its last request
_GONE = 10_000


class ShownTips:
    """The refs of one view, as they were shown last and shortly before. Thread-safe.

    Memory: a reference to each ref's name and oid, and the oids and names of what went within the grace.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._forget(None)

    def _forget(self, rules: object) -> None:
        self._rules = rules
        self._refs: object = None
        self._shown: dict[bytes, bytes] = {}
        self._gone_tips: dict[bytes, float] = {}
        self._gone_refs: dict[bytes, tuple[float, bytes]] = {}
        self._tips: frozenset[bytes] = frozenset()

    def see(self, rules: object, snapshot: RefSnapshot) -> None:
        """Note what is shown now. `rules`: by which refs are hidden; others than before end all grace.

        Costs nothing to speak of when the refs are the same as before, else one pass over them.
        """
        with self._lock:
            if rules is not self._rules:
                self._forget(rules)
            now = self._clock()
            refs = (snapshot.refs, snapshot.head)
            known = self._refs
            is_same = known == refs  # quick: unchanged refs are the same objects
            oldest = next(iter(self._gone_tips.values()), now)
            if is_same and now - oldest <= GRACE_S:
                return
            if not is_same:
                self._note(refs, snapshot, now)
            self._gone_tips = {oid: at for oid, at in self._gone_tips.items() if now - at <= GRACE_S}
            self._gone_refs = {name: ref for name, ref in self._gone_refs.items() if now - ref[0] <= GRACE_S}
            self._tips = frozenset({*self._shown.values(), *self._gone_tips})

    def has_seen(self, rules: object, snapshot: RefSnapshot) -> bool:
        """Whether these are the refs that were shown last, so that `see` costs nothing."""
        known = self._refs
        return rules is self._rules and isinstance(known, tuple) and known[0] is snapshot.refs

    def _note(self, refs: object, snapshot: RefSnapshot, now: float) -> None:
        shown = {ref.name: ref.oid for ref in snapshot.refs}
        if snapshot.head is not None:
            shown[b"HEAD"] = snapshot.head.oid
        tips = set(shown.values())
        for name in self._shown.keys() - shown.keys():
            self._gone_refs[name] = (now, self._shown[name])
        for oid in set(self._shown.values()) - tips:
            self._gone_tips.pop(oid, None)  # to come last: the oldest go first
            self._gone_tips[oid] = now
        for oid in self._gone_tips.keys() & tips:
            del self._gone_tips[oid]
        for name in self._gone_refs.keys() & shown.keys():
            del self._gone_refs[name]
        while len(self._gone_tips) > _GONE:
            del self._gone_tips[next(iter(self._gone_tips))]
        while len(self._gone_refs) > _GONE:
            del self._gone_refs[next(iter(self._gone_refs))]
        self._refs, self._shown = refs, shown

    @property
    def tips(self) -> frozenset[bytes]:
        """The hex oids that refs show, or showed within the grace."""
        return self._tips

    def gone_ref(self, name: bytes) -> bytes | None:
        """The hex oid that a ref had which went within the grace."""
        gone = self._gone_refs.get(name)
        return None if gone is None else gone[1]
