"""What a repository's config has us check in pushed objects.

    receive.fsckObjects     true: git's whole list; false: nothing; unset: transfer.fsckObjects, and when that
                            is unset too, what is dangerous (pack.fsck.DANGEROUS). git: unset means false
    receive.fsck.<msg-id>   error, warn or ignore instead of the message's own severity
    receive.fsck.skipList   files of object ids, one a line, whose faults are forgiven

git-config(1), fsck.<msg-id>, receive.fsck*; git: builtin/receive-pack.c receive_pack_config(), unpack();
oidset.c oidset_parse_file().
"""

import logging
from collections.abc import Callable, Iterable

from gitsmart.errors import PackError, RepositoryUnusable
from gitsmart.pack.fsck import BadSettingError, Fsck, FsckRules, severities
from gitsmart.pack.objects import ObjectFormat, to_raw
from gitsmart.repo.gitconfig import GitConfig, iter_entries
from gitsmart.repo.repository import Repository
from gitsmart.wire.refname import is_valid_refname

__all__ = ["fsck_of_push"]

logger = logging.getLogger(__name__)

_PREFIX = "receive.fsck."
_SKIP_LIST = "receive.fsck.skiplist"


def fsck_of_push(repo: Repository, say: Callable[[str], None]) -> Fsck | None:
    """Make the checks of one push; None when its objects aren't to be checked.

    Args:
        say: told each finding, see `Fsck`.

    Raises:
        RepositoryUnusable: the config holds what git would die of.
    """
    config = repo.config
    chosen = config.get_bool("receive.fsckObjects")
    if chosen is None:
        chosen = config.get_bool("transfer.fsckObjects")
    if chosen is False:
        return None
    try:
        found, longest = severities(_settings(config), strict=bool(chosen), warn=_warn)
    except BadSettingError as error:
        raise RepositoryUnusable(str(error)) from error
    rules = FsckRules(
        severities=found,
        parse_config=iter_entries,
        parse_error=RepositoryUnusable,
        is_refname=is_valid_refname,
        skip=_read_skip_lists(repo.read_files_of("receive.fsck.skipList"), repo.format),
        longest_name=longest,
        tolerate_0664=not chosen,
    )
    return Fsck(rules, repo.format, say)


def _settings(config: GitConfig) -> list[tuple[str, str]]:
    settings = []
    for name in config.names("receive"):
        if name.startswith(_PREFIX) and name != _SKIP_LIST:
            for value in config.get_all(name):
                if value is None:
                    raise RepositoryUnusable(f"missing value for {name!r} in the repository's config")
                settings.append((name.removeprefix(_PREFIX), value))
    return settings


def _read_skip_lists(files: Iterable[bytes], fmt: ObjectFormat) -> frozenset[bytes]:
    found = set()
    for data in files:
        for line in data.splitlines():
            oid = line.partition(b"#")[0].strip()
            if not oid:
                continue
            try:
                raw_oid = to_raw(oid)
            except PackError:
                raw_oid = b""
            if len(raw_oid) != fmt.raw_len:
                raise RepositoryUnusable(f"invalid object name in the skip list: {oid[:80]!r}")
            found.add(raw_oid)
    return frozenset(found)


def _warn(text: str) -> None:
    logger.warning("%s", text)
