"""Refs in reftables: CPU (user and system) of this server's code and of git's, for the same things.

    GITSMART_TEST_GITS=DIR python benchmarks/reftable.py [NUMBER OF REFS]

Needs a git that knows of reftables, in PATH or in DIR. git's figures are those of whole processes, with their
start (some 2 ms); ours are of one process that goes on, without Python's start: as a server meets them.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.root import RepositoryRoot

WHO = ReflogIdentity("A", "a@example.com")


def newer_git() -> dict[str, str]:
    """The environment in which `git` knows of reftables."""
    folders = os.environ.get("GITSMART_TEST_GITS", "").split(os.pathsep)
    for folder in ["", *filter(None, folders)]:
        environ = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
        environ["PATH"] = os.pathsep.join(filter(None, [folder, environ["PATH"]]))
        with tempfile.TemporaryDirectory() as probe:
            if not subprocess.run(
                ["git", "init", "-q", "--ref-format=reftable", probe], env=environ, capture_output=True
            ).returncode:
                return environ
    sys.exit("no git here knows of reftables")


def main() -> None:
    """Print a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    environ = newer_git()

    def cpu_of_git(path: Path, *args: str, stdin: str = "") -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            ["git", *args], cwd=path, env=environ, input=stdin.encode(), stdout=subprocess.DEVNULL, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    def cpu(call: Callable[[], object]) -> float:
        before = time.process_time()
        call()
        return time.process_time() - before

    with tempfile.TemporaryDirectory() as folder:
        root = RepositoryRoot(Path(folder))
        ours = root.create("ours", ref_format="reftable")
        path = root.path / "ours.git"
        stream = [
            f"commit refs/tmp\ncommitter A <a@b> {number} +0000\ndata 0\n\n" for number in range(1, 301)
        ]
        subprocess.run(
            ["git", "fast-import", "--quiet"],
            cwd=path,
            env=environ,
            input="".join(stream).encode(),
            check=True,
        )
        oids = subprocess.check_output(["git", "rev-list", "refs/tmp"], cwd=path, env=environ).split()
        zero = ours.format.zero
        subprocess.run(["cp", "-a", path, root.path / "theirs.git"], check=True)
        theirs = root.path / "theirs.git"
        names = [b"refs/pull/%d/head" % number for number in range(count)]

        def push(*updates: RefUpdate) -> None:
            with root.open("ours").begin_push() as begun:
                assert set(begun.commit(updates, atomic=True, identity=WHO)) == {None}

        created = [RefUpdate(name, zero, oids[at % 300]) for at, name in enumerate(names)]
        commands = "".join(f"create {u.name.decode()} {u.new.decode()}\n" for u in created)
        rows = [
            (
                f"create {count} refs at once",
                cpu(lambda: push(*created)),
                cpu_of_git(theirs, "update-ref", "--stdin", stdin=commands),
            )
        ]
        listing = ("for-each-ref", "--format=%(objectname) %(refname) %(*objectname)")
        cold = cpu(lambda: RepositoryRoot(root.path).open("ours").refs())
        git_list = cpu_of_git(theirs, *listing)
        rows.append(("list them, for the first time", cold, git_list))
        root.open("ours").refs()
        rows.append(("list them again", cpu(lambda: root.open("ours").refs()), git_list))

        def one_by_one() -> None:
            for number in range(20):
                push(RefUpdate(b"refs/heads/%d" % number, zero, oids[0]))
                root.open("ours").refs()

        pushes = cpu(one_by_one) / 20
        git_pushes = sum(
            cpu_of_git(theirs, "update-ref", f"refs/heads/{number}", oids[0].decode(), "")
            + cpu_of_git(theirs, *listing)
            for number in range(20)
        )
        rows.append(("create one ref and list all", pushes, git_pushes / 20))
        more = [RefUpdate(b"%b-more" % name, zero, oids[0]) for name in names]
        commands = "".join(f"create {u.name.decode()} {u.new.decode()}\n" for u in more)
        rows.append(
            (
                "as many again",
                cpu(lambda: push(*more)),
                cpu_of_git(theirs, "update-ref", "--stdin", stdin=commands),
            )
        )
        moved = [RefUpdate(name, oids[at % 300], oids[-1]) for at, name in enumerate(names)]
        commands = "".join(f"update {u.name.decode()} {u.new.decode()} {u.old.decode()}\n" for u in moved)
        rows.append(
            (
                "move all at once, and compact",
                cpu(lambda: push(*moved)),
                cpu_of_git(theirs, "update-ref", "--stdin", stdin=commands),
            )
        )
        assert subprocess.check_output(["git", "show-ref"], cwd=path, env=environ) == subprocess.check_output(
            ["git", "show-ref"], cwd=theirs, env=environ
        )
    for what, mine, gits in rows:
        print(f"{what:32} {mine * 1000:9.1f} ms   git {gits * 1000:9.1f} ms   {mine / gits:6.2f}")


if __name__ == "__main__":
    main()
