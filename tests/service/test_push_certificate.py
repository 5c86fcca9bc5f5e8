"""Nonces, and what gpg says of a signature."""

import hmac
from pathlib import Path

import pytest

from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.repo.gitconfig import GitConfig, parse
from gitsmart.repo.repository import HookCommand
from gitsmart.service.push_certificate import CertificateCheck, NonceIssuer

NOW = 1_700_000_000


def issuer(slop_s: int = 0) -> NonceIssuer:
    return NonceIssuer(b"secret", "a/repo.git", SHA1, slop_s)


def test_config() -> None:
    def of(text: bytes) -> NonceIssuer | None:
        return NonceIssuer.of(GitConfig(parse(text)), "a/repo.git", SHA1)

    assert of(b"") is None
    assert of(b"[receive]\ncertNonceSeed = secret\ncertNonceSlop = 5\n") == issuer(5)


def test_a_nonce_is_time_and_hmac() -> None:
    digest = hmac.new(b"secret", b"a/repo.git:%d" % NOW, "sha1").hexdigest()
    assert issuer().issue(NOW) == f"{NOW}-{digest}".encode()
    assert len(NonceIssuer(b"secret", "r", SHA256).issue(NOW)) == 11 + 64


@pytest.mark.parametrize(
    ("nonce", "slop_s", "expected"),
    [
        (issuer().issue(NOW), 0, ("OK", NOW, None)),
        (None, 60, ("MISSING", NOW, None)),
        (b"", 60, ("BAD", NOW, None)),
        (b"0-" + b"0" * 40, 60, ("BAD", NOW, None)),
        (issuer().issue(NOW)[:-1] + b"z", 60, ("BAD", NOW, None)),
        (issuer().issue(NOW)[:-1], 60, ("BAD", NOW, None)),
        (NonceIssuer(b"secret", "b/repo.git", SHA1).issue(NOW), 60, ("BAD", NOW, None)),
        (issuer().issue(NOW - 60), 60, ("OK", NOW - 60, None)),
        (issuer().issue(NOW - 61), 60, ("SLOP", NOW, "61")),
        (issuer().issue(NOW + 7), 0, ("SLOP", NOW, "-7")),
        (issuer().issue(NOW + 7), 7, ("OK", NOW + 7, None)),
    ],
)
def test_nonces_are_judged(nonce: bytes | None, slop_s: int, expected: tuple[str, int, str | None]) -> None:
    status, stamp, slop = expected
    found = issuer(slop_s).check(nonce, NOW)
    assert found.pop("GIT_PUSH_CERT_NONCE_STATUS") == status
    assert found.pop("GIT_PUSH_CERT_NONCE") == issuer().issue(stamp).decode()
    assert found.pop("GIT_PUSH_CERT_NONCE_SLOP", None) == slop
    assert found == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", CertificateCheck()),
        (b"gpg: noise\n[GNUPG:] NEWSIG\n", CertificateCheck()),
        (
            b"[GNUPG:] GOODSIG 12 A <a>\n[GNUPG:] VALIDSIG 34\n[GNUPG:] TRUST_UNDEFINED 0 pgp\n",
            CertificateCheck(status="G", key="12", signer="A <a>"),
        ),
        (b"[GNUPG:] BADSIG 12 A <a>\n", CertificateCheck(status="B", key="12", signer="A <a>")),
        (b"[GNUPG:] ERRSIG 12 22 10 00 1 9 34\n", CertificateCheck(status="E", key="12")),
        (b"[GNUPG:] REVKEYSIG 12 A <a>\n", CertificateCheck(status="R", key="12", signer="A <a>")),
        (b"[GNUPG:] GOODSIG 12 A\n[GNUPG:] GOODSIG 34 B\n", CertificateCheck(status="E")),
        (b"x [GNUPG:] GOODSIG 12 A\n", CertificateCheck()),
    ],
)
def test_gpgs_words(said: bytes, expected: CertificateCheck) -> None:
    assert CertificateCheck.parse(said) == expected


class Programs:
    """A repository with that config."""

    def __init__(self, text: bytes) -> None:
        self.config = GitConfig(parse(text))

    def command(self, *argv: str) -> HookCommand:
        return HookCommand(argv, "/", {})

    def has_file(self, path: str) -> bool:
        return Path(path).exists()


def checked(signature: bytes, config: bytes) -> CertificateCheck:
    return CertificateCheck.of(b"x", signature, Programs(config), base={}, check=lambda: None)


def test_no_program_is_called_for_other_signatures() -> None:
    for signature in (b"", b"-----BEGIN SSH SIGNATURE-----\n", b"nonsense"):
        assert checked(signature, b"[gpg]\nprogram = /nonexistent\n") == CertificateCheck()


def test_a_program_that_is_not_there() -> None:
    signature = b"-----BEGIN PGP SIGNATURE-----\n"
    assert checked(signature, b"[gpg]\nprogram = /nonexistent\n") == CertificateCheck()
    ssh = b'[gpg "ssh"]\nprogram = /nonexistent\nallowedSignersFile = /x\n'
    assert checked(b"-----BEGIN SSH SIGNATURE-----\n", ssh) == CertificateCheck(status="B")


@pytest.mark.parametrize("name", ["openpgp", "x509"])
def test_the_program_of_the_format_is_called(tmp_path: Path, name: str) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $* >{tmp_path}/argv\necho '[GNUPG:] GOODSIG 12 A <a>'\n")
    program.chmod(0o755)
    start = {"openpgp": "PGP SIGNATURE", "x509": "SIGNED MESSAGE"}[name]
    config = f'[gpg]\nprogram = /nonexistent\n[gpg "{name}"]\nprogram = {program}\n'
    found = checked(f"-----BEGIN {start}-----\n".encode(), config.encode())
    assert found == CertificateCheck(status="G", key="12", signer="A <a>")
    words = (tmp_path / "argv").read_text().split()
    assert [words[0], *words[-3:-2], words[-1]] == ["--status-fd=1", "--verify", "-"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('Good "git" signature for a@b with RSA key SHA256:x', ("G", "SHA256:x", "a@b")),
        ('Good "git" signature for a with b with ED25519 key x\nmore', ("G", "x", "a with b")),
        ('Good "git" signature with ED25519 key x', ("G", "x", "")),
        ('Good "git" signature for a@b', ("B", "", "")),
        ('Good "git" signature with nothing', ("B", "", "")),
        ('Good "file" signature with RSA key x', ("B", "", "")),
        ("Could not verify signature.", ("B", "", "")),
        ("", ("B", "", "")),
    ],
)
def test_ssh_keygens_words(said: str, expected: tuple[str, str, str]) -> None:
    status, key, signer = expected
    assert CertificateCheck.parse_ssh(said.encode()) == CertificateCheck(
        status=status, key=key, signer=signer
    )
