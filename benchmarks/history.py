"""A repository of realistic shape, always the same: what `git fast-import` makes of `history(commits)`.

Like git/git: some five objects a commit, folders two to four deep with up to some hundred entries, text files
of a few KiB with a long tail, a few files that change in every other commit and many that hardly do, small
edits, side branches that are merged, release tags, and now and then a file that doesn't compress. Deltas come
from git's own repack (depth 50).
"""

import hashlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["history", "incompressible", "make", "many_refs"]

_BORN = 1_600_000_000


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def _put(path: str, content: bytes) -> bytes:
    return b"M 100644 inline %b\n%b" % (path.encode(), _data(content))


class _Tree:
    """The files of the newest commit."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._words = [hashlib.sha1(b"%d" % n).hexdigest()[: 3 + n % 8] for n in range(4000)]
        folders = ["", *(f"{word}/" for word in self._words[:12])]
        folders += [f"{dice.choice(folders[1:])}{word}/" for word in self._words[12:60]]
        folders += [f"{dice.choice(folders[13:])}{word}/" for word in self._words[60:110]]
        self._folders = folders
        self.paths: list[str] = []
        self._lines: list[list[str]] = []

    def line(self) -> str:
        dice = self._dice
        return "\t" * dice.randrange(4) + " ".join(dice.choices(self._words, k=dice.randrange(2, 11)))

    def add(self) -> bytes:
        dice = self._dice
        number = min(int(dice.expovariate(0.04)), len(self._folders) - 1)
        folder = self._folders[number] if dice.random() < 0.7 else ""
        path = f"{folder}{dice.choice(self._words)}-{len(self.paths)}.c"
        size = min(int(dice.lognormvariate(4.4, 1.1)) + 3, 6000)
        self.paths.append(path)
        self._lines.append([self.line() for _ in range(size)])
        return _put(path, "\n".join(self._lines[-1]).encode())

    def edit(self) -> bytes:
        """Change a few lines of one file; the first files are the ones that change most."""
        dice = self._dice
        number = min(int(dice.paretovariate(0.4)) - 1, len(self.paths) - 1)
        lines = self._lines[number]
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(lines) + 1)
            lines[at : at + dice.randrange(4)] = [self.line() for _ in range(dice.randrange(1, 9))]
        if len(lines) > 3000:
            del lines[: len(lines) // 2]
        return _put(self.paths[number], "\n".join(lines).encode())


def history(commits: int) -> Iterator[bytes]:
    """The `git fast-import` stream of so many commits."""
    dice = random.Random(20261125)
    tree = _Tree(dice)
    yield b"feature done\n"
    mark = 0

    def commit(branch: str, changes: list[bytes], *, parent: int, merged: int = 0) -> bytes:
        nonlocal mark
        mark += 1
        who = b"%s <a%d@example.com> %d +0000" % (b"A U Thor", dice.randrange(300), _BORN + mark * 900)
        message = "\n".join(tree.line() for _ in range(dice.randrange(3, 16)))
        head = b"commit refs/heads/%b\nmark :%d\nauthor %b\ncommitter %b\n" % (
            branch.encode(),
            mark,
            who,
            who,
        )
        parents = (b"from :%d\n" % parent if parent else b"") + (b"merge :%d\n" % merged if merged else b"")
        return head + _data(message.encode()) + parents + b"".join(changes)

    tip = side = 0
    yield commit("main", [tree.add() for _ in range(min(2000, 100 + commits // 4))], parent=0)
    tip = mark
    while mark < commits:
        changes = [tree.edit() for _ in range(min(1 + int(dice.expovariate(0.9)), 8))]
        if dice.random() < 0.1:
            changes.append(tree.add())
        if mark % 199 == 0:
            changes.append(_put(f"assets/{mark % 5}.bin", dice.randbytes(30_000)))
        if side == 0 and dice.random() < 0.12:
            yield commit("topic", changes, parent=tip)
            side = mark
        elif side and dice.random() < 0.4:
            yield commit("main", changes, parent=tip, merged=side)
            tip, side = mark, 0
        else:
            yield commit("main", changes, parent=tip)
            tip = mark
        if mark % 300 == 0:
            yield b"tag v%d\nfrom :%d\ntagger T <t@example.com> %d +0000\n" % (mark, tip, _BORN + mark * 900)
            yield _data(b"release\n")
        if mark % 500 == 0:
            yield b"reset refs/heads/maint-%d\nfrom :%d\n\n" % (mark, tip)
    yield b"done\n"


def incompressible(size: int) -> Iterator[bytes]:
    """A `git fast-import` stream of one commit with 120 files that hold `size` bytes together."""
    dice = random.Random(12)
    yield b"feature done\ncommit refs/heads/main\ncommitter C <c@example.com> %d +0000\n" % _BORN
    yield _data(b"all\n")
    for number in range(120):
        yield _put(f"folder-{number % 7}/file-{number}", dice.randbytes(size // 120))
    yield b"done\n"


def many_refs(count: int) -> Iterator[bytes]:
    """A `git fast-import` stream of one commit and so many branches."""
    yield b"feature done\ncommit refs/heads/main\nmark :1\ncommitter C <c@example.com> %d +0000\n" % _BORN
    yield _data(b"all\n")
    for number in range(count - 1):
        yield b"reset refs/heads/group-%d/branch-%d\nfrom :1\n\n" % (number % 100, number)
    yield b"done\n"


def make(path: Path, stream: Iterator[bytes], env: dict[str, str]) -> None:
    """Make a bare repository of a stream. Raises: SystemExit."""
    subprocess.run(["git", "init", "-q", "--bare", str(path)], env=env, check=True)
    importer = subprocess.Popen(["git", "fast-import", "--quiet"], cwd=path, env=env, stdin=subprocess.PIPE)
    assert importer.stdin is not None
    for piece in stream:
        importer.stdin.write(piece)
    importer.stdin.close()
    if importer.wait():
        raise SystemExit("git fast-import failed")
