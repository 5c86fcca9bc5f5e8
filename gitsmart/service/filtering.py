"""A client's filter, held against the repository's config, and made into what selections understand.

    [uploadpackfilter] allow        whether filters without a setting of their own are served; true unless set
    [uploadpackfilter "<kind>"] allow       for blob:none, blob:limit, tree, sparse:oid, object:type, combine
    [uploadpackfilter "tree"] maxDepth      allows tree:<n> up to that

    FilterSpec --check--> --resolve sparse:oid--> pack.filters.ObjectFilter

The patterns of sparse:oid come from an object that may be asked for by name, or from `<rev>:<path>`, where
the rev is a ref that the client may see, or the oid of what may be asked for; git takes any expression of
git-rev-parse(1). git-config(1), uploadpackfilter.*; git: upload-pack.c check_filter_recurse(),
list-objects-filter.c filter_sparse_oid__init().
"""

from dataclasses import dataclass
from functools import reduce

from gitsmart.errors import LimitExceeded, ObjectMissing, ProtocolError
from gitsmart.pack.filters import ALL_TYPES, ObjectFilter, SparsePatterns
from gitsmart.pack.objects import BLOB, COMMIT, TREE, TYPE_NUMBERS, iter_tree, to_hex, to_raw
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.repository import Repository
from gitsmart.service.wants import Wants
from gitsmart.wire.filter_spec import FilterSpec
from gitsmart.wire.pktline import printable
from gitsmart.wire.upload_request import oid_pattern

__all__ = ["FilterPolicy", "build_filter", "read_filter_policy"]

_KINDS = ("blob:none", "blob:limit", "tree", "sparse:oid", "object:type", "combine")
_PATTERNS_BYTES = 1 << 20  # git takes 100 MiB; real files have some dozens of lines
_PATH_BYTES = 4096
# git: refs.c ref_rev_parse_rules; the first that is there
_RULES = (b"%b", b"refs/%b", b"refs/tags/%b", b"refs/heads/%b", b"refs/remotes/%b", b"refs/remotes/%b/HEAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterPolicy:
    """Which filters a repository's config lets clients use."""

    refused: frozenset[str] = frozenset()
    tree_depth: int | None = None

    def check(self, spec: FilterSpec) -> None:
        """Refuse a filter that isn't allowed, or that is made of such.

        Raises:
            ProtocolError: it is refused, by its name.
        """
        if spec.kind in self.refused:
            raise ProtocolError(f"filter '{spec.kind}' not supported")
        if spec.kind == "tree" and self.tree_depth is not None and spec.number > self.tree_depth:
            raise ProtocolError(f"tree filter allows max depth {self.tree_depth}, but got {spec.number}")
        for part in spec.parts:
            self.check(part)


def read_filter_policy(config: GitConfig) -> FilterPolicy:
    """Read the settings.

    Raises:
        RepositoryUnusable: a value is no boolean, or no number.
    """
    by_default = config.get_bool("uploadpackfilter.allow", True)
    depth = config.get_int("uploadpackfilter.tree.maxDepth")
    refused = {kind for kind in _KINDS if not config.get_bool(f"uploadpackfilter.{kind}.allow", by_default)}
    of_trees = config.in_order("uploadpackfilter.tree.allow", "uploadpackfilter.tree.maxDepth")
    if of_trees and of_trees[-1][0].endswith(".maxdepth"):
        refused.discard("tree")  # git: upload-pack.c parse_object_filter_config(): the last of both counts
    return FilterPolicy(refused=frozenset(refused), tree_depth=depth)


def build_filter(repo: Repository, spec: FilterSpec, wants: Wants) -> ObjectFilter:
    """Make the filter; `wants` says which objects may hold patterns.

    Raises:
        ProtocolError: the patterns of a sparse filter can't be had.
        PackError: an object on the way to them is broken.
    """
    match spec.kind:
        case "blob:none":
            return ObjectFilter(blob_limit=0)
        case "blob:limit":
            return ObjectFilter(blob_limit=spec.number)
        case "tree":
            return ObjectFilter(tree_depth=spec.number)
        case "object:type":
            return ObjectFilter(types=ALL_TYPES & {TYPE_NUMBERS[spec.name]})
        case "sparse:oid":
            return ObjectFilter(sparse=(_read_patterns(repo, spec.name, wants),))
        case "combine":
            return reduce(ObjectFilter.also, (build_filter(repo, part, wants) for part in spec.parts))


def _read_patterns(repo: Repository, name: bytes, wants: Wants) -> SparsePatterns:
    try:
        raw_oid = _find(repo, name, wants)
    except ObjectMissing:
        raw_oid = None
    if raw_oid is None:
        raise ProtocolError(f"unable to access sparse blob in '{printable(name)}'")
    try:
        kind, data = repo.objects.read(raw_oid, limit_bytes=_PATTERNS_BYTES)
    except (ObjectMissing, LimitExceeded):
        kind, data = 0, b""
    if kind != BLOB:
        raise ProtocolError(f"unable to parse sparse filter data in {to_hex(raw_oid).decode('ascii')}")
    return SparsePatterns(data)


def _find(repo: Repository, name: bytes, wants: Wants) -> bytes | None:
    """Find the object that is called `name`: an oid, a ref, or either with a path behind a colon."""
    rev, colon, path = name.partition(b":")
    raw_oid = _find_rev(repo, rev, wants)
    if raw_oid is None or not colon:
        return raw_oid
    _, raw_oid, kind = repo.objects.peel(raw_oid)
    if kind == COMMIT:
        raw_oid, kind = repo.objects.commit(raw_oid).tree, TREE
    if len(path) > _PATH_BYTES:
        return None
    for step in path.split(b"/"):
        found_kind, data = repo.objects.read(raw_oid) if kind == TREE else (kind, b"")
        if found_kind != TREE:
            return None
        for mode, entry, child in iter_tree(data, repo.format.raw_len):
            if entry == step:
                raw_oid, kind = child, TREE if mode & 0o170000 == 0o040000 else BLOB
                break
        else:
            return None
    return raw_oid


def _find_rev(repo: Repository, rev: bytes, wants: Wants) -> bytes | None:
    if oid_pattern(repo.format.hex_len).fullmatch(rev):
        raw_oid = to_raw(rev.lower())
        is_ours = raw_oid in repo.objects and not wants.refused([raw_oid])
        return raw_oid if is_ours else None
    snapshot = repo.shown_refs("uploadpack", peel=False)
    for rule in _RULES:
        ref = snapshot.get(rule % (rev if rev != b"@" else b"HEAD"))
        if ref is not None:
            return to_raw(ref.oid)
    return None
