"""Which objects may be asked for by name: those that the refs lead to which the user may see.

    uploadpack.allowAnySHA1InWant         any object that exists
    uploadpack.allowTipSHA1InWant         what hidden refs name, and lead to, as well
    uploadpack.allowReachableSHA1InWant   true: as well; false: over one connection only what is advertised

What a ref showed until a moment ago counts as well (repo/shown_tips.py, repo/gone_refs.py).

The same in every protocol version: C git serves any object that exists to v2 clients, and over HTTP any blob
or tree to v0 clients. Partial clones need no setting: v0 clients are told `allow-reachable-sha1-in-want`
unless it is set to false. git-config(1), uploadpack.allow*; gitprotocol-capabilities; git: upload-pack.c
check_non_tip(), is_our_ref().
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gitsmart.errors import ProtocolError
from gitsmart.pack.objects import to_hex
from gitsmart.pack.select import Reached
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.ref_view import HiddenRefs
from gitsmart.repo.repository import Repository

__all__ = ["WantPolicy", "Wants", "not_our_ref", "read_want_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantPolicy:
    """What a repository's config allows."""

    any_object: bool = False
    hidden_tips: bool = False
    """Hidden refs count as if they were shown."""
    says_tip: bool = False
    says_reachable: bool = True

    @property
    def v0_capabilities(self) -> list[bytes]:
        """What a v0 or v1 client is told, in git's order."""
        words = [b"allow-tip-sha1-in-want"] if self.says_tip else []
        return words + ([b"allow-reachable-sha1-in-want"] if self.says_reachable else [])


def read_want_policy(config: GitConfig) -> WantPolicy:
    """Read the settings.

    Raises:
        RepositoryUnusable: a value is no boolean.
    """
    is_any = config.get_bool("uploadpack.allowAnySHA1InWant", False)
    is_tip = config.get_bool("uploadpack.allowTipSHA1InWant", False)
    reachable = config.get_bool("uploadpack.allowReachableSHA1InWant")
    return WantPolicy(
        any_object=is_any,
        hidden_tips=is_tip or reachable is True,
        says_tip=is_tip or is_any,
        says_reachable=reachable is not False or is_any,
    )


def not_our_ref(raw_oid: bytes) -> ProtocolError:
    """Make the error for a want that isn't served: gone, never there, or not to be seen."""
    return ProtocolError(f"upload-pack: not our ref {to_hex(raw_oid).decode('ascii')}")


class Wants:
    """What one request may ask for, by the refs of its moment."""

    def __init__(
        self, repo: Repository, policy: WantPolicy, *, tips_only: bool, tick: Callable[[int], None]
    ) -> None:
        """Look at nothing yet. `tips_only`: what refs lead to is not enough."""
        self._repo = repo
        self._policy = policy
        self._tips_only = tips_only
        self._tick = tick
        self._tips: frozenset[bytes] | None = None
        self._head: bytes | None = None

    def _read_tips(self) -> frozenset[bytes]:
        if self._tips is None:
            repo = self._repo
            snapshot = repo.shown_refs("uploadpack", peel=False)
            if snapshot.head is not None:
                self._head = snapshot.head.oid
            tips = repo.recent_tips()
            if self._policy.hidden_tips:
                view = replace(repo.view("uploadpack"), hidden=HiddenRefs(()))
                tips |= {ref.oid for ref in view.refs(repo.refs(peel=False).refs)}
            self._tips = tips
        return self._tips

    def refused(self, raw_oids: Iterable[bytes]) -> set[bytes]:
        """Return those of `raw_oids`, objects that are here, which may not be asked for.

        Costs some microseconds when a ref names them or they were asked for before; see
        repo/reachability.py.

        Raises:
            ObjectMissing, PackError, RepositoryError
        """
        if self._policy.any_object:
            return set()
        tips = self._read_tips()
        others = {raw_oid for raw_oid in raw_oids if to_hex(raw_oid) not in tips}
        if others:
            tips = self._tips = self._repo.with_gone_tips(tips)  # for `note` as well
            others = {raw_oid for raw_oid in others if to_hex(raw_oid) not in tips}
        if not others or self._tips_only:
            return others
        return self._repo.reachability(hidden_too=self._policy.hidden_tips).unreached(
            tips, others, first=self._head, shallow=self._repo.shallow(), tick=self._tick
        )

    def check(self, raw_oids: Iterable[bytes]) -> None:
        """Refuse a request that asks for what it may not.

        Raises:
            ProtocolError: one of them is refused.
            ObjectMissing, PackError, RepositoryError
        """
        wanted = list(raw_oids)
        refused = self.refused(wanted)
        if refused:
            raise not_our_ref(next(raw_oid for raw_oid in wanted if raw_oid in refused))

    def note(self, raw_oids: Iterable[bytes], objects: Reached) -> None:
        """Remember what was found to be reached from wants that `check` has let pass."""
        if not self._policy.any_object and not self._tips_only:
            reachability = self._repo.reachability(hidden_too=self._policy.hidden_tips)
            reachability.note(self._read_tips(), set(raw_oids), objects)
