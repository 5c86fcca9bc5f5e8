"""What killed servers leave is swept; what lives, or is not ours, stays."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gitsmart.repo.ownership import MAGIC, PREFIX, OwnedDirectory
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.root import RepositoryRoot

Listing = Callable[[Path], dict[str, bytes]]

# A server that is killed when it makes the call which `sys.argv[4]` names, for the n-th time
VICTIM = """
import os, signal, sys
from pathlib import Path
from gitsmart.pack.indexer import IngestLimits
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.root import RepositoryRoot

root, pack, tip, call, nth = sys.argv[1:6]
real, seen = getattr(os, call), 0

def killing(*args, **options):
    global seen
    seen += 1
    if seen == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)

with RepositoryRoot(Path(root)).open("app").begin_push() as push:
    if call != "none":
        setattr(os, call, killing)
    with open(pack, "rb") as file:
        push.ingest(file.read, limits=IngestLimits())
    push.migrate()
    zero = b"0" * 40
    updates = [RefUpdate(b"refs/heads/%d" % n, zero, tip.encode()) for n in range(3)]
    updates.append(RefUpdate(b"refs/heads/packed", tip.encode(), zero))
    results = push.commit(updates, atomic=False, identity=ReflogIdentity("a", "b"))
    print(results)
"""


@pytest.fixture
def victim(root: RepositoryRoot, git: Any, tmp_path: Path) -> tuple[Path, Callable[[str, int], int], bytes]:
    git(tmp_path, "init", "-q", "--bare", "client")
    tip = git.commit(tmp_path / "client", {"a": b"1"}, "one")
    (tmp_path / "pack").write_bytes(git.pack(tmp_path / "client", tip.decode() + "\n"))
    root.create("app")
    path = root.path / "app.git"
    git(tmp_path / "client", "push", "-q", str(path), f"{tip.decode()}:refs/heads/packed")
    git(path, "pack-refs", "--all")

    def run(call: str, nth: int) -> int:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                VICTIM,
                str(root.path),
                str(tmp_path / "pack"),
                tip.decode(),
                call,
                str(nth),
            ],
            capture_output=True,
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    return path, run, tip


def ours(path: Path) -> list[str]:
    return [
        str(found.relative_to(path))
        for found in path.rglob("*")
        if found.suffix in (".lock", ".keep") or found.name.startswith(("tmp_", PREFIX))
    ]


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("rename", 2),  # in migrate: .pack is there, .idx not
        ("rename", 4),  # in commit: locked, nothing written
        ("rename", 6),  # in commit: some written
        ("fsync", 1),
        ("fsync", 7),
        ("link", 3),
        ("unlink", 1),
        ("rmdir", 1),
    ],
)
def test_a_killed_server_s_leftovers_go(
    root: RepositoryRoot, git: Any, victim: tuple[Path, Callable[[str, int], int], bytes], call: str, nth: int
) -> None:
    path, run, tip = victim
    assert run(call, nth) == -signal.SIGKILL
    assert ours(path)
    assert root.sweep() > 0
    assert ours(path) == []
    assert root.sweep() == 0
    git(path, "fsck", "--full", "--strict")
    packs = path / "objects" / "pack"
    assert {p.stem for p in packs.glob("*.pack")} == {p.stem for p in packs.glob("*.idx")}
    with root.open("app").begin_push() as push:
        updates = [
            RefUpdate(b"refs/heads/new", b"0" * 40, tip),
            RefUpdate(b"refs/heads/packed", b"0" * 40, b"0" * 40),
        ]
        assert push.commit(updates, atomic=False, identity=ReflogIdentity("a", "b"))[0] is None


def test_a_living_push_is_left_alone(
    root: RepositoryRoot, listing: Listing, victim: tuple[Path, Callable[[str, int], int], bytes]
) -> None:
    path, run, _ = victim
    with root.open("app").begin_push() as push:
        owned = push._directory()
        owned.claim(os.fsencode(path / "refs" / "heads" / "x.lock"))
        owned.claim(os.fsencode(path / "objects" / "pack" / "pack-x.keep"))
        before = listing(path)
        # here, and for another process
        assert root.sweep() == 0
        script = (
            "import sys; from pathlib import Path; from gitsmart.repo.root import RepositoryRoot;"
            "print(RepositoryRoot(Path(sys.argv[1])).sweep())"
        )
        done = subprocess.run([sys.executable, "-c", script, str(root.path)], capture_output=True, check=True)
        assert done.stdout == b"0\n"
        assert run("rename", 3) == -signal.SIGKILL
        assert root.sweep() > 0
        after = listing(path)
        assert before.items() <= after.items()
        assert set(ours(path)) == {
            "refs/heads/x.lock",
            "objects/pack/pack-x.keep",
            str(owned.path.relative_to(path)),
        }
    assert ours(path) == []


def test_what_is_not_ours_stays(root: RepositoryRoot, listing: Listing) -> None:
    root.create("app")
    path = root.path / "app.git"
    (path / "refs" / "heads" / "git.lock").write_bytes(b"0" * 40 + b"\n")
    (path / "packed-refs.lock").write_bytes(b"")
    (path / "objects" / "pack" / "pack-1.keep").write_bytes(b"receive-pack 17 on host\n")
    (path / "objects" / "pack" / "tmp_pack_x").write_bytes(b"PACK")
    (path / "objects" / "tmp_objdir-incoming-Ab12Cd").mkdir()
    (path / "objects" / f"{PREFIX}0123").mkdir()
    (path / "objects" / f"{PREFIX}0123" / "owner").write_bytes(b"something else\n")
    before = listing(path)
    assert root.sweep() == 0
    assert listing(path) == before


def test_a_directory_killed_before_it_had_an_owner(root: RepositoryRoot) -> None:
    root.create("app")
    empty = root.path / "app.git" / "objects" / f"{PREFIX}0123"
    empty.mkdir()
    root.sweep()
    assert not empty.exists()


def test_a_directory_killed_before_its_owner_was_written(root: RepositoryRoot) -> None:
    root.create("app")
    for parent in (root.path / "app.git", root.path / "app.git" / "objects"):
        (parent / f"{PREFIX}0123").mkdir()
        (parent / f"{PREFIX}0123" / "owner").touch()
        (parent / f"{PREFIX}4567").mkdir()
        (parent / f"{PREFIX}4567" / "owner").write_bytes(MAGIC[:20])
    assert root.sweep() == 4
    assert ours(root.path) == []


@pytest.mark.parametrize("call", ["flock", "open"])
def test_a_sweep_that_is_faster_than_the_owner(
    root: RepositoryRoot, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Swept before, or just after, the owner file was made: the owner begins anew, in another directory."""
    root.create("app")
    path = root.path / "app.git"
    module = os if call == "open" else fcntl
    real = getattr(module, call)
    swept = 0

    def slow(*args: Any, **options: Any) -> Any:
        nonlocal swept
        if not swept and (call == "flock" or os.fspath(args[0]).endswith("owner")):
            swept = 1
            swept += root.sweep()
        return real(*args, **options)

    monkeypatch.setattr(module, call, slow)
    owned = OwnedDirectory(path)
    assert swept
    assert ours(path) == [owned.path.name]
    assert root.sweep() == 0
    owned.close()
    assert ours(path) == []


def test_claims_on_two_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Any, target: bytes, **options: Any) -> None:
        if b"/far/" in target:
            raise OSError(18, "Invalid cross-device link")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "far").mkdir()
    owned = OwnedDirectory(tmp_path)
    for name in ("1.lock", "far/2.lock", "3.lock"):
        owned.claim(os.fsencode(tmp_path / name))
    owned.close()
    assert [found.name for found in tmp_path.rglob("*")] == ["far"]


def test_a_keep_whose_directory_git_pruned(root: RepositoryRoot) -> None:
    root.create("app")
    keep = root.path / "app.git" / "objects" / "pack" / "pack-1.keep"
    keep.write_bytes(MAGIC)
    keep.with_suffix(".idx").write_bytes(b"")
    assert root.sweep() == 1
    assert not keep.exists()


def test_a_half_made_repository_goes_after_a_minute(root: RepositoryRoot) -> None:
    young, old = root.path / ".gitsmart-new-1", root.path / "team" / ".gitsmart-new-2"
    young.mkdir()
    (old / "objects").mkdir(parents=True)
    os.utime(old, (time.time() - 100, time.time() - 100))
    assert root.sweep() == 1
    assert young.exists()
    assert not old.exists()
    assert list(root.names()) == []


def test_a_lock_that_others_replaced_is_not_removed(tmp_path: Path) -> None:
    target = tmp_path / "x.lock"
    owned = OwnedDirectory(tmp_path)
    owned.claim(os.fsencode(target))
    with pytest.raises(FileExistsError):
        owned.claim(os.fsencode(target))
    target.unlink()
    target.write_bytes(b"git's")
    owned.release(os.fsencode(target))
    owned.close()
    assert target.read_bytes() == b"git's"
    assert [found.name for found in tmp_path.iterdir()] == ["x.lock"]


def test_more_claims_than_an_inode_has_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = os.link, 0

    def link(*args: Any, **options: Any) -> None:
        nonlocal made
        if os.stat(args[0]).st_nlink > 3:
            raise OSError(31, "Too many links")
        made += 1
        real(*args, **options)

    monkeypatch.setattr(os, "link", link)
    owned = OwnedDirectory(tmp_path)
    for number in range(10):
        owned.claim(os.fsencode(tmp_path / f"{number}.lock"))
    assert made == 10
    owned.close()
    assert list(tmp_path.iterdir()) == []
