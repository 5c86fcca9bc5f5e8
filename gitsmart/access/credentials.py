"""Passwords: Apache's htpasswd files, and the Basic credentials that carry one.

    file   = *( line LF )
    line   = "" / "#" comment / user ":" hash [ ":" comment ]
    hash   = "$2y$" / "$2a$" / "$2b$" ...     bcrypt          htpasswd -B
           / "$argon2id$" / "$argon2i$" ...   argon2          argon2-cffi, argon2(1)
           / "$apr1$" ...                     Apache's MD5    htpasswd -m, openssl passwd -apr1
           / "{SHA}" base64                   SHA-1, no salt  htpasswd -s

Plain text and crypt(3) are refused: a file with either does not load. `$apr1$` and `{SHA}` are weak, and
accepted because files have them. Nothing here throttles guessing; bcrypt and argon2 make each guess dear.

Whoever is wrong, user or password, waits equally long: each failure computes one hash of every cost class in
the file (a class is a scheme with its cost parameters), the user's own first, stand-ins for the rest.

CI jobs come in herds with one password, so verifications that succeeded lately are remembered, as an HMAC
under a key of this process, until the file changes or `REMEMBER_S` passes. Wrong passwords are never
remembered.
"""

import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import argon2
import bcrypt

from gitsmart.errors import ConfigError

__all__ = ["HtpasswdFile", "parse_basic"]

logger = logging.getLogger(__name__)

REMEMBER_S = 300.0
REMEMBER_MAX = 1024
MAX_FILE_BYTES = 16 << 20
MAX_PASSWORD_BYTES = 4096
"""Longer ones never match. Apache's htpasswd takes 255; this bounds `$apr1$`'s 1000 rounds over it."""

MIN_BCRYPT_COST, MAX_BCRYPT_COST = 4, 17
"""As htpasswd -C. Cost 17 is some 8 s a try: a higher one would tie up a worker for good."""

MAX_ARGON2_MEMORY_KIB = 1 << 20
MAX_ARGON2_TIME = 64


def parse_basic(header: str) -> tuple[str, str] | None:
    """Read user and password of an `Authorization` field value; None when it holds no Basic credentials.

    RFC 7617 section 2: everything after the first colon is the password; the user may not be empty here, and
    neither may hold control characters. Both are UTF-8 (git and curl send what the terminal gave them; there
    is no other charset that a server can announce). Another scheme, broken base64 and broken UTF-8 are all
    None.

    >>> parse_basic("Basic YWxpY2U6YTpi")
    ('alice', 'a:b')
    """
    scheme, _, token = header.strip(" \t").partition(" ")
    token = token.strip(" \t")
    if scheme.lower() != "basic" or not _BASE64.fullmatch(token):
        return None
    try:
        text = binascii.a2b_base64(token).decode("utf-8")
    except UnicodeDecodeError:
        return None
    user, colon, password = text.partition(":")
    if not colon or not user or _CONTROL.search(text):
        return None
    return user, password


# binascii has no mode that refuses all that RFC 4648 section 4 does
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Hash(Protocol):
    """One line's hash."""

    @property
    def cost_class(self) -> tuple[object, ...]:
        """Hashes of one class take equally long to compute."""
        ...

    def matches(self, password: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Bcrypt:
    encoded: bytes
    cost_class: tuple[object, ...]

    def matches(self, password: bytes) -> bool:
        # bcrypt proper looks at 72 bytes at most; bcrypt 5 raises on longer passwords where all older ones,
        # and Apache's htpasswd -B that wrote the file, cut them off.
        return bcrypt.checkpw(password[:72], self.encoded)


@dataclass(frozen=True, slots=True)
class _Argon2:
    encoded: str
    cost_class: tuple[object, ...]

    def matches(self, password: bytes) -> bool:
        try:
            return _ARGON2.verify(self.encoded, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


_ARGON2 = argon2.PasswordHasher()  # verifies with the parameters that the hash itself names


@dataclass(frozen=True, slots=True)
class _Apr1:
    salt: bytes
    digest: bytes
    cost_class: tuple[object, ...] = ("apr1",)

    def matches(self, password: bytes) -> bool:
        return hmac.compare_digest(apr1(password, self.salt), self.digest)


@dataclass(frozen=True, slots=True)
class _Sha:
    digest: bytes
    cost_class: tuple[object, ...] = ("sha",)

    def matches(self, password: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha1(password).digest(), self.digest)


def apr1(password: bytes, salt: bytes) -> bytes:
    """Compute the 22 characters of Apache's MD5 password hash; `salt` is up to 8 bytes of `./0-9A-Za-z`.

    The algorithm is that of FreeBSD's crypt with another magic string (APR's apr_md5.c, "$apr1$"): 1000
    rounds, each mixing password, salt and the digest so far by the round's divisibility by 2, 3 and 7.
    """
    inner = hashlib.md5(password + salt + password).digest()
    outer = hashlib.md5(password + b"$apr1$" + salt)
    whole, part = divmod(len(password), 16)
    outer.update(inner * whole + inner[:part])
    bits = len(password)
    while bits:
        outer.update(b"\0" if bits & 1 else password[:1])
        bits >>= 1
    digest = outer.digest()
    for i in range(1000):
        step = hashlib.md5(password if i & 1 else digest)
        if i % 3:
            step.update(salt)
        if i % 7:
            step.update(password)
        step.update(digest if i & 1 else password)
        digest = step.digest()
    encoded = bytearray()
    for a, b, c in ((0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)):
        _append_base64(encoded, digest[a] << 16 | digest[b] << 8 | digest[c], 4)
    _append_base64(encoded, digest[11], 2)
    return bytes(encoded)


_ITOA64 = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _append_base64(encoded: bytearray, value: int, characters: int) -> None:
    # crypt's own base64: six bits at a time, the lowest first
    for _ in range(characters):
        encoded.append(_ITOA64[value & 0x3F])
        value >>= 6


_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)
_APR1 = re.compile(r"\$apr1\$([./0-9A-Za-z]{1,8})\$([./0-9A-Za-z]{22})", re.ASCII)


def _parse_hash(text: str) -> _Hash | str:
    """Return the hash, or the reason why it can't be used."""
    if match := _BCRYPT.fullmatch(text):
        cost = int(match[1])
        if not MIN_BCRYPT_COST <= cost <= MAX_BCRYPT_COST:
            return f"bcrypt's cost is {cost}; {MIN_BCRYPT_COST} to {MAX_BCRYPT_COST} are allowed"
        return _Bcrypt(text.encode("ascii"), ("bcrypt", cost))
    if text.startswith("$argon2"):
        try:
            parameters = argon2.extract_parameters(text)
            argon2.low_level.Type(parameters.type)
        except (argon2.exceptions.InvalidHashError, ValueError):
            return "the argon2 hash is malformed"
        if not 1 <= parameters.memory_cost <= MAX_ARGON2_MEMORY_KIB:
            return f"argon2's m is {parameters.memory_cost} KiB; up to {MAX_ARGON2_MEMORY_KIB} are allowed"
        if not 1 <= parameters.time_cost <= MAX_ARGON2_TIME:
            return f"argon2's t is {parameters.time_cost}; 1 to {MAX_ARGON2_TIME} are allowed"
        cost_class = (
            "argon2",
            parameters.type.value,
            parameters.memory_cost,
            parameters.time_cost,
            parameters.parallelism,
        )
        return _Argon2(text, cost_class)
    if match := _APR1.fullmatch(text):
        return _Apr1(match[1].encode("ascii"), match[2].encode("ascii"))
    if text.startswith("{SHA}"):
        digest = binascii.a2b_base64(text[5:]) if _BASE64.fullmatch(text[5:]) else b""
        return _Sha(digest) if len(digest) == 20 else "the {SHA} hash is malformed"
    if text.startswith(("$2", "$apr1$")):
        return "the hash is malformed"
    return (
        "the password is plain text, crypt, or hashed in a way we don't know; "
        "bcrypt (htpasswd -B), argon2, $apr1$ and {SHA} are allowed"
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One state of the file. Replaced whole, and unchanged but for `remembered`: readers need no lock."""

    identity: tuple[int, ...]
    hashes: dict[str, _Hash]
    stand_ins: dict[tuple[object, ...], _Hash]
    """One hash of each cost class that the file has."""

    remembered: dict[bytes, float] = field(default_factory=dict)
    """HMAC of user and password -> when to forget it, on the monotonic clock."""


class HtpasswdFile:
    """The users of one htpasswd file. Each verification looks at it (one `stat`) and re-reads a changed one.

    Any number of threads may call `verify` at once.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Blocking.

        Raises:
            ConfigError: it can't be read, or a line in it can't be used; names the file and the line.
        """
        self._path = path
        self._key = secrets.token_bytes(32)
        self._loaded = _load(path)
        self._warned_about: tuple[int, ...] | None = None

    def verify(self, user: str, password: str) -> bool:
        """Whether `password` is `user`'s. Blocking, and slow by design (bcrypt, argon2): call it in a worker.

        When the file has changed for the worse (gone, unreadable, a bad line) the last good state stays in
        force, with one warning in the log for each such change.
        """
        loaded = self._current()
        secret = password.encode("utf-8", "surrogatepass")
        name = user.encode("utf-8", "surrogatepass")
        key = hmac.digest(self._key, len(name).to_bytes(8, "big") + name + secret, "sha256")
        now = time.monotonic()
        if loaded.remembered.get(key, 0.0) > now:
            return True
        # C libraries end a password at its first NUL: htpasswd can't have meant one that holds any
        usable = b"\0" not in secret and len(secret) <= MAX_PASSWORD_BYTES
        if not usable:
            secret = b""
        own = loaded.hashes.get(user)
        if own is not None and own.matches(secret) and usable:
            _remember(loaded.remembered, key, now)
            return True
        for cost_class, stand_in in loaded.stand_ins.items():
            if own is None or cost_class != own.cost_class:
                stand_in.matches(secret)  # for the time it takes
        return False

    def _current(self) -> _Loaded:
        loaded = self._loaded
        identity: tuple[int, ...] = ()
        try:
            identity = _identity(os.stat(self._path))
            if identity == loaded.identity:
                self._warned_about = None
                return loaded
            if identity == self._warned_about:
                return loaded
            # two threads may both read the new file: they read the same, and either result may stay
            self._loaded = loaded = _load(self._path)
            self._warned_about = None
        except (OSError, ConfigError) as error:
            if self._warned_about != identity:
                self._warned_about = identity
                reason = error if isinstance(error, ConfigError) else f"{self._path}: {error.strerror}"
                logger.warning("the changed htpasswd file is not used, the state before it stays: %s", reason)
        return loaded


def _remember(remembered: dict[bytes, float], key: bytes, now: float) -> None:
    # Each step is atomic under the interpreter's lock; threads that race here can only forget too much, or
    # overshoot the bound by their number.
    if len(remembered) >= REMEMBER_MAX:
        for old in list(remembered)[: REMEMBER_MAX // 4]:
            remembered.pop(old, None)
    remembered.pop(key, None)
    remembered[key] = now + REMEMBER_S


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _load(path: Path) -> _Loaded:
    try:
        with path.open("rb") as file:
            # taken before the content is read: a change while we read shows as another identity next time
            identity = _identity(os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    hashes: dict[str, _Hash] = {}
    for number, line_bytes in enumerate(content.split(b"\n"), 1):
        try:
            line = line_bytes.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}:{number}: not UTF-8") from None
        if not line or line.startswith("#"):
            continue
        user, colon, rest = line.partition(":")
        if not colon or not user:
            raise ConfigError(f"{path}:{number}: expected user:hash")
        if user in hashes:
            raise ConfigError(f"{path}:{number}: user {user!r} is there twice")
        parsed = _parse_hash(rest.partition(":")[0])
        if isinstance(parsed, str):
            raise ConfigError(f"{path}:{number}: user {user!r}: {parsed}")
        hashes[user] = parsed
    stand_ins: dict[tuple[object, ...], _Hash] = {}
    for parsed in hashes.values():
        stand_ins.setdefault(parsed.cost_class, parsed)
    return _Loaded(identity, hashes, stand_ins)
