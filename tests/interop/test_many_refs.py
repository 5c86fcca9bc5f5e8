"""50,000 refs, each with a commit of its own: lists and requests of some megabytes, in bounded memory."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, HostFunction, fsck, refs

COUNT = 50_000


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 2])
def test_mirror_of_50000_refs(git: Git, host: HostFunction, tmp_path: Path, version: int) -> None:
    """v0 sends 50,000 wants in one gzip'd request; v2 sends that many want-refs."""
    hosted = host(empty=True)
    stream = "".join(
        f"commit refs/heads/user-{n % 97}/change-{n:05d}\n"
        f"committer A <a@b> {1_600_000_000 + n} +0000\ndata 6\nc{n:05d}\n"
        for n in range(COUNT)
    )
    git("fast-import", "--quiet", cwd=hosted.path, input=stream)
    git("pack-refs", "--all", cwd=hosted.path)
    start = len(hosted.server.log)
    mirror = tmp_path / "mirror.git"
    git("-c", f"protocol.version={version}", "clone", "-q", "--mirror", hosted.url, mirror)
    assert refs(mirror) == refs(hosted.path)
    assert len(refs(mirror)) == COUNT
    fsck(mirror)
    buffered = [int(found) for found in re.findall(r"\bbuffered=(\d+)", hosted.server.text(start))]
    assert buffered
    assert max(buffered) < 3 << 20
    # and nothing is left to fetch
    start = len(hosted.server.log)
    subprocess.run(git.argv("fetch", "-q"), cwd=mirror, env=git.environ, check=True)
    assert "note=clone" not in hosted.server.text(start)
