"""Signed pushes: the nonce that a certificate must repeat, and what its signature is worth.

    receive.certNonceSeed    without it signed pushes aren't offered, and no program is ever called
    receive.certNonceSlop    seconds by which a nonce may be older than the one that we would issue now
    gpg.program, gpg.openpgp.program, gpg.x509.program, gpg.ssh.program
                             what checks a signature: gpg, gpgsm, ssh-keygen
    gpg.ssh.allowedSignersFile, gpg.ssh.revocationFile
                             keys of SSH, and whose they are; without the former these signatures are N

    nonce  =  seconds "-" hex(HMAC(seed, name ":" seconds))

The advertisement issues a nonce, the push repeats it in what its user has signed: so that a certificate can't
be used again for another push, another repository or much later. Nothing is remembered in between. Hooks
judge: they find all of it in their environment (git-receive-pack(1), "PRE-RECEIVE HOOK"). A bad signature is
told to them, and refuses nothing by itself.

git: builtin/receive-pack.c prepare_push_cert_nonce(), check_nonce(), prepare_push_cert_sha1();
gpg-interface.c parse_gpg_output(), verify_ssh_signed_buffer(), parse_ssh_output().
Where git puts the repository's path into the HMAC we put its name.
"""

import hmac
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from gitsmart.pack.objects import ObjectFormat
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.service.hooks import Command, run_hook

__all__ = ["CertificateCheck", "NonceIssuer"]

_OUTPUT_BYTES: Final = 1 << 20
_VERIFY_TIMEOUT_S: Final = 60.0  # pulled out of the air: gpg may ask a key server
_NONCE: Final = re.compile(rb"([1-9][0-9]{0,17})-[0-9a-f]+")
_STATUSES: Final = {
    b"GOODSIG": "G",
    b"BADSIG": "B",
    b"ERRSIG": "E",
    b"EXPSIG": "X",
    b"EXPKEYSIG": "Y",
    b"REVKEYSIG": "R",
}
_PROGRAMS: Final = (
    (b"-----BEGIN PGP SIGNATURE-----", "openpgp", "gpg", ("--keyid-format=long",)),
    (b"-----BEGIN PGP MESSAGE-----", "openpgp", "gpg", ("--keyid-format=long",)),
    (b"-----BEGIN SIGNED MESSAGE-----", "x509", "gpgsm", ()),
)
_SSH_SIGNATURE: Final = b"-----BEGIN SSH SIGNATURE-----"
_PRINCIPALS: Final = 100  # of one key; pulled out of the air


@dataclass(frozen=True, slots=True)
class NonceIssuer:
    """Makes and checks the nonces of one repository."""

    seed: bytes
    name: str
    format: ObjectFormat
    slop_s: int = 0

    @classmethod
    def of(cls, config: GitConfig, name: str, fmt: ObjectFormat) -> "NonceIssuer | None":
        """Read the config; None when it has no seed. Raises RepositoryUnusable."""
        seed = config.get_str("receive.certNonceSeed")
        if not seed:
            return None
        slop = config.get_int("receive.certNonceSlop", 0)
        return cls(os.fsencode(seed), name, fmt, max(slop, 0))

    def issue(self, now: int) -> bytes:
        """Make the nonce of a moment, in seconds since 1970."""
        digest = "sha1" if self.format.raw_len == 20 else "sha256"
        text = b"%b:%d" % (os.fsencode(self.name), now)
        return b"%d-%b" % (now, hmac.new(self.seed, text, digest).hexdigest().encode())

    def check(self, nonce: bytes | None, now: int) -> dict[str, str]:
        """Tell what hooks are to know of a certificate's nonce.

        git: builtin/receive-pack.c check_nonce(), for its stateless mode.
        """
        issued = self.issue(now)
        slop = 0
        match = None if nonce is None else _NONCE.fullmatch(nonce)
        if nonce is None:
            status = "MISSING"
        elif match is None or not hmac.compare_digest(self.issue(int(match[1])), nonce):
            status = "BAD"
        else:
            slop = now - int(match[1])
            status = "OK" if not slop or abs(slop) <= self.slop_s else "SLOP"
            if status == "OK":
                issued = nonce
        environ = {"GIT_PUSH_CERT_NONCE": issued.decode(), "GIT_PUSH_CERT_NONCE_STATUS": status}
        if status == "SLOP":
            environ["GIT_PUSH_CERT_NONCE_SLOP"] = str(slop)
        return environ


class Programs(Protocol):
    """Makes commands of what the repository's config names: `repo.repository.Repository`."""

    @property
    def config(self) -> GitConfig: ...
    def command(self, *argv: str) -> Command: ...
    def has_file(self, path: str) -> bool: ...


class _Output:
    """Hears a program's standard output, and has nothing to say."""

    is_over = True

    def __init__(self) -> None:
        self.said = bytearray()

    def feed(self, data: bytes) -> bytes:
        self.said.extend(data[: _OUTPUT_BYTES - len(self.said)])
        return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateCheck:
    """What a signature is worth."""

    status: str = "N"
    """git's letter: G good, B bad, E can't be checked, X and Y expired, R revoked, N none."""
    key: str = ""
    signer: str = ""

    @classmethod
    def of(
        cls,
        payload: bytes,
        signature: bytes,
        repo: Programs,
        *,
        base: Mapping[str, str],
        check: Callable[[], None],
    ) -> "CertificateCheck":
        """Have the configured program check a signature. Blocking, up to a minute for each run of it.

        Args:
            base: the environment that the operator chose for hooks: HOME or GNUPGHOME, PATH.
            check: see `run_hook`; what it raises ends the program and goes to the caller.
        """
        config = repo.config
        if signature.startswith(_SSH_SIGNATURE):
            with _signature_file(signature) as file:
                return cls._of_ssh(payload, file, repo, base=base, check=check)
        chosen = next((entry for entry in _PROGRAMS if signature.startswith(entry[0])), None)
        if chosen is None:
            return cls()
        _, name, program, options = chosen
        program = config.get_str(f"gpg.{name}.program", program)
        if name == "openpgp" and f"gpg.{name}.program" not in config:
            program = config.get_str("gpg.program", program)
        with _signature_file(signature) as file:
            argv = (_path(program), "--status-fd=1", *options, "--verify", file, "-")
            _, said = _run(repo.command(*argv), payload, base=base, check=check)
        return cls.parse(said)

    @classmethod
    def _of_ssh(
        cls,
        payload: bytes,
        file: str,
        repo: Programs,
        *,
        base: Mapping[str, str],
        check: Callable[[], None],
    ) -> "CertificateCheck":
        """See git: gpg-interface.c verify_ssh_signed_buffer()."""
        signers = repo.config.get_str("gpg.ssh.allowedSignersFile")
        if not signers:
            return cls()
        program = _path(repo.config.get_str("gpg.ssh.program", "ssh-keygen"))
        revoked = _path(repo.config.get_str("gpg.ssh.revocationFile", ""))

        def run(*options: str, data: bytes = payload) -> tuple[bool, bytes]:
            return _run(repo.command(program, "-Y", *options, "-s", file), data, base=base, check=check)

        found, principals = run("find-principals", "-f", _path(signers), data=b"")
        if not found or not principals:
            # nobody's that is allowed: whether the signature itself is right is still told
            return cls.parse_ssh(run("check-novalidate", "-n", "git")[1])
        revocation = ("-r", revoked) if revoked and repo.has_file(revoked) else ()
        said = b""
        for line in principals.splitlines()[:_PRINCIPALS]:
            if line:
                principal = os.fsdecode(line)
                is_good, said = run("verify", "-n", "git", "-f", _path(signers), "-I", principal, *revocation)
                if is_good and said.startswith(b"Good"):
                    break
        return cls.parse_ssh(said)

    @classmethod
    def parse_ssh(cls, said: bytes) -> "CertificateCheck":
        """Read what ssh-keygen says of a signature.

        >>> CertificateCheck.parse_ssh(b'Good "git" signature for a@b with ED25519 key SHA256:xyz\\n')
        CertificateCheck(status='G', key='SHA256:xyz', signer='a@b')
        """
        line = said.partition(b"\n")[0].decode("utf-8", "surrogateescape")
        match = re.match('Good "git" signature (?:for (.*) )?with ', line)
        if match is None:
            return cls(status="B")
        _, is_there, key = line[match.end() :].partition("key ")
        return cls(status="G" if is_there else "B", key=key, signer=match[1] or "")

    @classmethod
    def parse(cls, status_lines: bytes) -> "CertificateCheck":
        """Read gpg's status lines; what isn't one is passed over.

        >>> CertificateCheck.parse(b"[GNUPG:] GOODSIG 1234 A U Thor <a@b>\\n").signer
        'A U Thor <a@b>'
        """
        found = cls()
        seen = 0
        for line in status_lines.split(b"\n"):
            if not line.startswith(b"[GNUPG:] "):
                continue
            word, _, rest = line.removeprefix(b"[GNUPG:] ").partition(b" ")
            status = _STATUSES.get(word)
            if status is None:
                continue
            seen += 1
            if seen > 1:  # several signatures: git takes that for an attack
                return cls(status="E")
            key, _, signer = rest.partition(b" ")
            found = cls(
                status=status,
                key=key.decode("utf-8", "replace"),
                signer="" if word == b"ERRSIG" else signer.decode("utf-8", "surrogateescape"),
            )
        return found


@contextmanager
def _signature_file(signature: bytes) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gitsmart-cert-") as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        yield str(file)


def _path(text: str) -> str:
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _run(
    command: Command, data: bytes, *, base: Mapping[str, str], check: Callable[[], None]
) -> tuple[bool, bytes]:
    """Run a program; say whether it was content, and what it printed."""
    output = _Output()
    result = run_hook(
        command,
        (),
        data,
        base=base,
        extra_environ={"LC_ALL": "C"},
        output=None,
        timeout_s=_VERIFY_TIMEOUT_S,
        check=check,
        talk=output,
    )
    return result.ok, bytes(output.said)
