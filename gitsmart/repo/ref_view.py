"""Which refs one service of a repository shows, and under which names: hidden refs and namespaces.

    stored name                            namespace    said to the client    rules look at
    refs/heads/main                        none         the same              the name, ^name
    refs/namespaces/a/refs/heads/main      a            refs/heads/main       refs/heads/main, ^stored name
    refs/namespaces/a/HEAD                 a            HEAD                  HEAD, ^stored name

    rule  =  [ "!" ] [ "^" ] prefix       transfer.hideRefs, and uploadpack.hideRefs or receive.hideRefs

Of all rules that are a whole leading part of a name (`refs/a` is one of `refs/a/b`, not of `refs/ab`) the
last counts: it hides, or with `!` shows. With `^` it is the stored name that is looked at. git-config(1),
transfer.hideRefs; gitnamespaces(7); git: refs.c ref_is_hidden(), environment.c get_git_namespace().

What is hidden can't be fetched by name, listed or pushed to. It still counts where a push is checked for
completeness, and where names could collide: hiding is no deleting.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.refs import Ref, RefSnapshot, RefState, RefStore, is_safe_ref

__all__ = ["ALTERNATE", "HiddenRefs", "RefView", "Section", "namespace_prefix"]

Section = Literal["uploadpack", "receive"]
"""Whose hideRefs count: those of fetches, or those of pushes."""

ALTERNATE: Final = b".have"
"""The name under which a push learns of an object that is here, but of no ref that it may see."""


def namespace_prefix(name: str) -> bytes:
    """Return where the refs of the namespace `name` are: "a/b" is `refs/namespaces/a/refs/namespaces/b/`.

    >>> namespace_prefix("a/b")
    b'refs/namespaces/a/refs/namespaces/b/'
    >>> namespace_prefix("")
    b''

    Raises:
        ValueError: no ref can have such a name.
    """
    if not name:
        return b""
    parts = name.encode("utf-8", "surrogateescape").split(b"/")
    prefix = b"/".join(b"refs/namespaces/" + part for part in parts if part)
    if not is_safe_ref(prefix):
        raise ValueError(f"bad git namespace path {name!r}")
    return prefix + b"/"


class HiddenRefs:
    """The rules of one service, in order. Looking one name up costs as many steps as it has slashes."""

    def __init__(self, rules: Sequence[str]) -> None:
        self.text = "\0".join(rules)
        # prefix -> the place of the last rule for it, and whether that hides
        self._plain: dict[bytes, tuple[int, bool]] = {}
        self._stored: dict[bytes, tuple[int, bool]] = {}
        for place, rule in enumerate(rules):
            text = rule.encode("utf-8", "surrogateescape").rstrip(b"/")
            hides = not text.startswith(b"!")
            text = text.removeprefix(b"!")
            of = self._stored if text.startswith(b"^") else self._plain
            of[text.removeprefix(b"^")] = (place, hides)

    @classmethod
    def from_config(cls, config: GitConfig, section: Section) -> "HiddenRefs":
        """Read the rules.

        Raises:
            RepositoryUnusable: one has no value.
        """
        rules = []
        for name, value in config.in_order("transfer.hideRefs", f"{section}.hideRefs"):
            if value is None:
                raise RepositoryUnusable(f"missing value for {name!r} in the repository's config")
            rules.append(value)
        return cls(rules)

    def __bool__(self) -> bool:
        return bool(self._plain or self._stored)

    def prefixes(self) -> Iterator[tuple[bytes, bool]]:
        """Every prefix that a rule names, and whether it is one of stored names."""
        yield from ((prefix, False) for prefix in self._plain)
        yield from ((prefix, True) for prefix in self._stored)

    def hide(self, shown: bytes | None, stored: bytes) -> bool:
        """Whether a ref is hidden; `shown` is its name without the namespace, None when it is outside."""
        place, hides = -1, False
        if shown is not None and self._plain:
            place, hides = _last(self._plain, shown)
        if self._stored:
            other, others = _last(self._stored, stored)
            if other > place:
                hides = others
        return hides


def _last(rules: dict[bytes, tuple[int, bool]], name: bytes) -> tuple[int, bool]:
    """The last of the rules that fit `name`."""
    best = (-1, False)
    end = len(name)
    while end > 0:
        found = rules.get(name[:end])
        if found is not None and found[0] > best[0]:
            best = found
        end = name.rfind(b"/", 0, end)
    return best


@dataclass(frozen=True, slots=True)
class RefView:
    """What one service shows. Immutable."""

    namespace: bytes  # b"", or where its refs are: b"refs/namespaces/.../"
    hidden: HiddenRefs

    def stored(self, name: bytes) -> bytes:
        """The name under which the ref is stored that a client calls `name`."""
        return self.namespace + name

    def shown(self, stored: bytes) -> bytes | None:
        """What a client calls the ref that is stored under this name; None when it is outside."""
        return stored[len(self.namespace) :] if stored.startswith(self.namespace) else None

    def hides(self, name: bytes) -> bool:
        """Whether the ref that a client calls `name` is hidden, be it there or not."""
        return self.hidden.hide(name, self.stored(name))

    def refs(self, refs: Sequence[Ref]) -> tuple[Ref, ...]:
        """Return those of `refs`, as stored and sorted, that are shown, by the names that clients know."""
        if not self.namespace:
            return tuple(self._unhidden(refs))
        start, end = _below(refs, self.namespace + b"refs/")
        return tuple(self._renamed(ref) for ref in self._unhidden(refs[start:end]))

    def head(self, snapshot: RefSnapshot, store: RefStore) -> tuple[Ref | None, bytes | None]:
        """Return HEAD, and the ref that it points at: nothing when it is hidden."""
        if self.hides(b"HEAD"):
            return None, None
        if not self.namespace:
            return snapshot.head, snapshot.head_target
        name = self.stored(b"HEAD")  # a namespace's own is stored among the refs
        place, end = _below(snapshot.refs, name)
        if place < end and snapshot.refs[place].name == name:
            head = self._renamed(snapshot.refs[place])
            return head, head.symref_target
        last, found = store.resolve(name)
        is_unborn = last != name and found.state is RefState.MISSING
        return None, self.shown(last) if is_unborn else None

    def for_push(self, snapshot: RefSnapshot) -> Iterator[tuple[bytes, bytes]]:
        """Name and oid of each ref that a push is shown, sorted by stored name, as git's receive-pack does.

        Refs outside the namespace are `.have`: their objects needn't be sent. Hidden ones are not even that.
        """
        if not self.namespace:
            yield from ((ref.name, ref.oid) for ref in self._unhidden(snapshot.refs))
            return
        seen: set[bytes] = set()
        for ref in self._unhidden(snapshot.refs):
            name = self.shown(ref.name)
            if name is not None:
                seen.add(ref.oid)
                yield name, ref.oid
            elif ref.oid not in seen:
                seen.add(ref.oid)
                yield ALTERNATE, ref.oid

    def _unhidden(self, refs: Sequence[Ref]) -> Iterator[Ref]:
        """Leave out what is hidden: rules are looked at once for each run of refs that they can't tell
        apart.
        """
        if not self.hidden:
            yield from refs
            return
        borders = {0, len(refs)}
        for prefix, is_stored in self.hidden.prefixes():
            # without "^" it is meant for the names behind the namespace
            name = prefix if is_stored else self.stored(prefix)
            start = bisect_left(refs, name, key=_name)
            borders.add(start)
            borders.add(start + (start < len(refs) and refs[start].name == name))
            borders.update(_below(refs, name + b"/"))
        marks = sorted(borders)
        for start, end in pairwise(marks):
            if not self.hidden.hide(self.shown(refs[start].name), refs[start].name):
                yield from refs[start:end]

    def _renamed(self, ref: Ref) -> Ref:
        target = None if ref.symref_target is None else self.shown(ref.symref_target)
        return Ref(ref.name[len(self.namespace) :], ref.oid, ref.peeled, target)


def _name(ref: Ref) -> bytes:
    return ref.name


def _below(refs: Sequence[Ref], prefix: bytes) -> tuple[int, int]:
    """Where in sorted `refs` the names are that begin with `prefix`."""
    start = bisect_left(refs, prefix, key=_name)
    end = bisect_left(refs, prefix[:-1] + bytes([prefix[-1] + 1]), lo=start, key=_name)
    return start, end
