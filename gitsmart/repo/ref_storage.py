"""Which backend keeps a repository's refs: `extensions.refStorage`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gitsmart.pack.objects import ObjectFormat
from gitsmart.repo.files_refs import FilesRefStore
from gitsmart.repo.files_transaction import FilesTransaction
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.ref_transaction import NoteGone, ReflogIdentity, RefTransaction
from gitsmart.repo.refs import RefObjects, RefStore
from gitsmart.repo.reftable_refs import ReftableRefStore
from gitsmart.repo.reftable_transaction import ReftableTransaction

__all__ = ["REF_STORAGES", "begin_transaction", "open_refs"]

REF_STORAGES: Final = ("files", "reftable")


def open_refs(storage: str, git_dir: Path, fmt: ObjectFormat, objects: RefObjects) -> RefStore:
    """Open the refs of a repository. Reads nothing yet."""
    backend = ReftableRefStore if storage == "reftable" else FilesRefStore
    return backend(os.fsencode(git_dir), fmt, objects)


def begin_transaction(
    refs: RefStore,
    owned: OwnedDirectory,
    config: GitConfig,
    *,
    is_bare: bool,
    identity: ReflogIdentity,
    has_object: Callable[[bytes], bool],
    hook: Callable[[str, bytes], bool] | None = None,
    note_gone: NoteGone | None = None,
) -> RefTransaction[Any]:
    """Make the transaction that belongs to a store; see RefTransaction."""
    transaction: RefTransaction[Any]
    if isinstance(refs, ReftableRefStore):
        transaction = ReftableTransaction(
            refs, owned, config, is_bare=is_bare, identity=identity, has_object=has_object, hook=hook
        )
    else:
        assert isinstance(refs, FilesRefStore)
        transaction = FilesTransaction(
            refs, owned, config, is_bare=is_bare, identity=identity, has_object=has_object, hook=hook
        )
    transaction.note_gone = note_gone
    return transaction
