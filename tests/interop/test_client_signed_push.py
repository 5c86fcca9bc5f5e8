"""Signed pushes with the real client and a real gpg; C git tells its hooks the same (`--server git`)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, commit_file, refs

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg to sign with")

HOOK = """#!/bin/sh
env | grep ^GIT_PUSH_CERT | sort >"$GIT_DIR/environ-$(basename $0)"
test -z "$GIT_PUSH_CERT" || git cat-file blob "$GIT_PUSH_CERT" >"$GIT_DIR/certificate"
"""


@pytest.fixture(scope="module")
def key(git: Git) -> str:
    """A signing key in the home that client and server have."""
    home = Path(git.environ["HOME"]) / ".gnupg"
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    user = "S Igner <signer@example.com>"
    subprocess.run(
        [*gpg, "--quick-generate-key", user, "ed25519", "sign", "never"], env=git.environ, check=True
    )
    listed = subprocess.run(
        ["gpg", "--list-keys", "--with-colons"], env=git.environ, check=True, capture_output=True, text=True
    )
    return next(line.split(":")[4] for line in listed.stdout.splitlines() if line.startswith("pub:"))


@pytest.fixture
def work(client: Git, hosted: Hosted, tmp_path: Path, key: str) -> Path:
    client("clone", "-q", hosted.url, "work", cwd=tmp_path)
    client("config", "user.signingKey", key, cwd=tmp_path / "work")
    client("config", "receive.certNonceSeed", "a secret", cwd=hosted.path)
    client("config", "receive.certNonceSlop", "3600", cwd=hosted.path)
    client("config", "receive.advertisePushOptions", "true", cwd=hosted.path)
    for name in ("pre-receive", "post-receive"):
        path = hosted.path / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(HOOK)
        path.chmod(0o755)
    commit_file(client, tmp_path / "work", "new.txt", "new\n")
    return tmp_path / "work"


def environ(hosted: Hosted, hook: str = "pre-receive") -> dict[str, str]:
    lines = (hosted.path / f"environ-{hook}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_a_signed_push(client: Git, hosted: Hosted, work: Path, key: str) -> None:
    client("push", "--signed", "-o", "one", "origin", "main", "main:refs/heads/two", cwd=work)
    tip = client("rev-parse", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == refs(hosted.path)["refs/heads/two"] == tip
    found = environ(hosted)
    assert found == environ(hosted, "post-receive")
    nonce = found.pop("GIT_PUSH_CERT_NONCE")
    blob = found.pop("GIT_PUSH_CERT")
    assert found == {
        "GIT_PUSH_CERT_KEY": key,
        "GIT_PUSH_CERT_NONCE_STATUS": "OK",
        "GIT_PUSH_CERT_SIGNER": "S Igner <signer@example.com>",
        "GIT_PUSH_CERT_STATUS": "G",
    }
    text = (hosted.path / "certificate").read_text()
    assert client("hash-object", hosted.path / "certificate") == blob
    assert f"\nnonce {nonce}\n" in text
    assert "\npush-option one\n" in text
    assert f"{tip} refs/heads/two\n" in text


def test_a_key_that_the_server_does_not_know(client: Git, hosted: Hosted, work: Path, tmp_path: Path) -> None:
    """What is signed by someone else is told to hooks, and refused by them if at all."""
    other = tmp_path / "g"
    other.mkdir(mode=0o700)
    home = {"GNUPGHOME": str(other)}
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run(
        [*gpg, "--quick-generate-key", "X <x@example.com>", "ed25519", "sign", "never"],
        env={**client.environ, **home},
        check=True,
    )
    client("config", "user.signingKey", "x@example.com", cwd=work)
    client("push", "--signed", "origin", "main", cwd=work, env=home)
    found = environ(hosted)
    assert found["GIT_PUSH_CERT_STATUS"] == "E"
    assert found["GIT_PUSH_CERT_SIGNER"] == ""
    assert found["GIT_PUSH_CERT_KEY"] != ""


def test_an_unsigned_push_has_no_certificate(client: Git, hosted: Hosted, work: Path) -> None:
    client("push", "origin", "main", cwd=work)
    assert environ(hosted) == {}


def test_signing_is_offered_with_a_seed_only(client: Git, hosted: Hosted, work: Path) -> None:
    client("config", "--unset", "receive.certNonceSeed", cwd=hosted.path)
    before = refs(hosted.path)
    said = client.fails("push", "--signed", "origin", "main", cwd=work)
    assert "the receiving end does not support --signed push" in said
    assert refs(hosted.path) == before
    client("push", "--signed=if-asked", "origin", "main", cwd=work)
    assert environ(hosted) == {}
