"""What the fault tests share: a history to push from, and one that the server already has."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, refs
from tests.faults import rawpush


@dataclass(frozen=True, slots=True)
class NewCommit:
    """One commit on top of the server's main, and the objects that it brings."""

    old: str
    oid: str
    objects: dict[str, tuple[str, bytes]]  # oid -> type, content

    @property
    def pack(self) -> bytes:
        return rawpush.pack_from(list(self.objects.values()))

    @property
    def command(self) -> tuple[str, str, str]:
        return self.old, self.oid, "refs/heads/main"


def new_commit(
    git: Git, repo: Path, marker: str, *, content: bytes = b"", parent: str | None = None
) -> NewCommit:
    """A commit with a new file, on `main` or on `parent`, made without touching the repository."""
    old = refs(repo)["refs/heads/main"]
    blob = f"{marker}\n".encode() + content
    entries = []
    for line in git("ls-tree", old, cwd=repo).splitlines():
        mode, _, rest = line.split(" ", 2)
        oid, name = rest.split("\t")
        entries.append((mode.lstrip("0"), name, oid))
    entries.append(("100644", f"zz-{marker}", rawpush.oid_of("blob", blob)))
    tree = rawpush.tree_object(entries)
    commit = rawpush.commit_object(rawpush.oid_of("tree", tree), [parent or old], marker)
    objects = {
        rawpush.oid_of(kind, data): (kind, data)
        for kind, data in [("commit", commit), ("tree", tree), ("blob", blob)]
    }
    return NewCommit(old, rawpush.oid_of("commit", commit), objects)


@pytest.fixture
def fresh(git: Git, hosted: Hosted) -> NewCommit:
    return new_commit(git, hosted.path, "fresh")
