"""Which backend keeps a repository's refs: `extensions.refStorage`."""

import os
from pathlib import Path
from typing import Any, Final

from gitsmart.pack.objects import ObjectFormat
from gitsmart.repo.files_refs import FilesRefStore
from gitsmart.repo.files_transaction import FilesTransaction
from gitsmart.repo.ref_transaction import RefTransaction, TransactionTerms
from gitsmart.repo.refs import RefObjects, RefStore
from gitsmart.repo.reftable_refs import ReftableRefStore
from gitsmart.repo.reftable_transaction import ReftableTransaction

__all__ = ["REF_STORAGES", "begin_transaction", "open_refs"]

REF_STORAGES: Final = ("files", "reftable")


def open_refs(storage: str, git_dir: Path, fmt: ObjectFormat, objects: RefObjects) -> RefStore:
    """Open the refs of a repository. Reads nothing yet."""
    backend = ReftableRefStore if storage == "reftable" else FilesRefStore
    return backend(os.fsencode(git_dir), fmt, objects)


def begin_transaction(refs: RefStore, terms: TransactionTerms) -> RefTransaction[Any, Any]:
    """Make the transaction that belongs to a store."""
    if isinstance(refs, ReftableRefStore):
        return ReftableTransaction(refs, terms)
    assert isinstance(refs, FilesRefStore)
    return FilesTransaction(refs, terms)
