"""Clones with the real git client, over protocol v0, v1 and v2."""

from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, fsck, heads_and_tags, refs


def test_plain(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    fsck(work)
    assert client("rev-parse", "HEAD", cwd=work) == refs(hosted.path)["refs/heads/main"]
    assert client("symbolic-ref", "refs/remotes/origin/HEAD", cwd=work) == "refs/remotes/origin/main"
