"""Nonces, and what gpg says of a signature."""

import hmac

import pytest

from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.repo.gitconfig import GitConfig, parse
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


def test_no_program_is_called_for_other_signatures() -> None:
    for signature in (b"", b"-----BEGIN SSH SIGNATURE-----\n", b"nonsense"):
        config = GitConfig(parse(b"[gpg]\nprogram = /nonexistent\n"))
        found = CertificateCheck.of(b"x", signature, config, base={}, check=lambda: None)
        assert found == CertificateCheck()


def test_a_program_that_is_not_there() -> None:
    config = GitConfig(parse(b"[gpg]\nprogram = /nonexistent\n"))
    signature = b"-----BEGIN PGP SIGNATURE-----\n"
    found = CertificateCheck.of(b"x", signature, config, base={}, check=lambda: None)
    assert found == CertificateCheck()
