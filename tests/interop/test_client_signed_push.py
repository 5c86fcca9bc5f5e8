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


# ------------------------------------------------------------------------------------- signatures by SSH keys


@pytest.fixture
def ssh_work(client: Git, hosted: Hosted, work: Path, tmp_path: Path) -> Path:
    """`work` with keys `mine` and `other` beside it; hooks are told of pushes signed by `mine`."""
    for name in ("mine", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name], check=True
        )
    client("config", "gpg.format", "ssh", cwd=work)
    client("config", "user.signingKey", tmp_path / "mine", cwd=work)
    return work


def allow(client: Git, hosted: Hosted, tmp_path: Path, *lines: str) -> None:
    """Write the repository's file of allowed signers; {mine} and {other} are their public keys."""
    keys = {name: " ".join((tmp_path / f"{name}.pub").read_text().split()[:2]) for name in ("mine", "other")}
    (hosted.path / "signers").write_text("".join(f"{line.format(**keys)}\n" for line in lines))
    client("config", "gpg.ssh.allowedSignersFile", hosted.path / "signers", cwd=hosted.path)


def fingerprint(tmp_path: Path, name: str) -> str:
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / f"{name}.pub"], check=True, capture_output=True, text=True
    )
    return listed.stdout.split()[1]


def judged(hosted: Hosted) -> tuple[str, str, str]:
    found = environ(hosted)
    return tuple(found[f"GIT_PUSH_CERT_{name}"] for name in ("STATUS", "SIGNER", "KEY"))  # type: ignore[return-value]


def test_an_ssh_key_of_a_known_signer(client: Git, hosted: Hosted, ssh_work: Path, tmp_path: Path) -> None:
    allow(client, hosted, tmp_path, "x@example.com {other}", 'me@example.com namespaces="git" {mine}')
    client("push", "--signed", "origin", "main", cwd=ssh_work)
    assert judged(hosted) == ("G", "me@example.com", fingerprint(tmp_path, "mine"))
    assert refs(hosted.path)["refs/heads/main"] == client("rev-parse", "main", cwd=ssh_work)


def test_an_ssh_key_of_nobody(client: Git, hosted: Hosted, ssh_work: Path, tmp_path: Path) -> None:
    """A right signature, but no signer: hooks have to look at both, as with git."""
    allow(client, hosted, tmp_path, "x@example.com {other}")
    client("push", "--signed", "origin", "main", cwd=ssh_work)
    assert judged(hosted) == ("G", "", fingerprint(tmp_path, "mine"))


def test_an_ssh_key_for_something_else(client: Git, hosted: Hosted, ssh_work: Path, tmp_path: Path) -> None:
    allow(client, hosted, tmp_path, 'me@example.com namespaces="file" {mine}')
    client("push", "--signed", "origin", "main", cwd=ssh_work)
    assert judged(hosted) == ("B", "", "")


def test_a_revoked_ssh_key(client: Git, hosted: Hosted, ssh_work: Path, tmp_path: Path) -> None:
    allow(client, hosted, tmp_path, "me@example.com {mine}")
    client("config", "gpg.ssh.revocationFile", tmp_path / "not-there", cwd=hosted.path)
    client("push", "--signed", "origin", "main", cwd=ssh_work)
    assert judged(hosted)[0] == "G"
    if hosted.server.kind == "git":
        pytest.skip("git gives ssh-keygen an empty argument before -r, which it doesn't read then")
    client("config", "gpg.ssh.revocationFile", tmp_path / "mine.pub", cwd=hosted.path)
    client("push", "--signed", "origin", "main:refs/heads/two", cwd=ssh_work)
    assert judged(hosted) == ("B", "", "")


def test_ssh_keys_without_a_list_of_signers(client: Git, hosted: Hosted, ssh_work: Path) -> None:
    client("push", "--signed", "origin", "main", cwd=ssh_work)
    assert judged(hosted) == ("N", "", "")
