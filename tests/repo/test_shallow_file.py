"""The file `shallow`: added to under git's lock."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.repo.ownership import sweep_repository
from gitsmart.repo.shallow_file import extend_shallow, read_shallow

ONE, TWO = b"\x11" * 20, b"\x22" * 20


def test_it_grows(tmp_path: Path) -> None:
    assert read_shallow(tmp_path, SHA1) == frozenset()
    extend_shallow(tmp_path, SHA1, [TWO])
    extend_shallow(tmp_path, SHA1, [ONE, TWO])
    assert (tmp_path / "shallow").read_text() == "11" * 20 + "\n" + "22" * 20 + "\n"
    before = (tmp_path / "shallow").stat()
    extend_shallow(tmp_path, SHA1, [ONE])
    assert (tmp_path / "shallow").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["shallow"]


def test_a_malformed_one_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "shallow").write_text("11" * 20 + "\n")
    with pytest.raises(RepositoryUnusable, match="malformed"):
        extend_shallow(tmp_path, SHA256, [b"\x33" * 32])
    assert (tmp_path / "shallow").read_text() == "11" * 20 + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["shallow"]


def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "shallow.lock"
    lock.touch()
    threading.Timer(0.1, lock.unlink).start()
    extend_shallow(tmp_path, SHA1, [ONE])
    assert read_shallow(tmp_path, SHA1) == {ONE}
    lock.touch()
    start = time.monotonic()
    with pytest.raises(FileExistsError):
        extend_shallow(tmp_path, SHA1, [TWO])
    assert time.monotonic() - start > 0.9
    assert lock.exists(), "somebody else's"
    assert read_shallow(tmp_path, SHA1) == {ONE}


def test_everybody_s_are_kept(tmp_path: Path) -> None:
    def add(number: int) -> None:
        for place in range(5):
            extend_shallow(tmp_path, SHA1, [bytes([number, place]) * 10])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_shallow(tmp_path, SHA1)) == 20


def test_a_killed_servers_lock_is_swept(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from gitsmart.repo.ownership import OwnedDirectory
OwnedDirectory(Path(sys.argv[1])).claim(os.fsencode(sys.argv[1]) + b"/shallow.lock")
os._exit(0)
"""
    (tmp_path / "objects" / "pack").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    assert (tmp_path / "shallow.lock").exists()
    sweep_repository(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objects"]
