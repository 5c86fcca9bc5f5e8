"""htpasswd files and Basic credentials.

The hashes were made by others: openssl passwd -apr1, htpasswd -nbB, -nbs, argon2-cffi.
"""

import base64
import logging
import os
import subprocess
import time
from pathlib import Path

import argon2
import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.access import credentials
from gitsmart.access.credentials import HtpasswdFile, apr1, parse_basic
from gitsmart.errors import ConfigError

# bcrypt's own cheapest cost, argon2's smallest parameters: the suite is to be quick
BCRYPT = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
ARGON2 = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("secret")
SHA = "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="  # openssl dgst -sha1 -binary | base64, of "secret"
APR1 = "$apr1$abcdefgh$h9FWgUz3n9YxylKLlR5SQ/"  # openssl passwd -apr1 -salt abcdefgh secret


def htpasswd(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.mark.parametrize(
    ("header", "want"),
    [
        pytest.param(basic("alice:secret"), ("alice", "secret"), id="plain"),
        pytest.param(basic("alice:a:b::"), ("alice", "a:b::"), id="colons-in-password"),
        pytest.param(basic("alice:"), ("alice", ""), id="empty-password"),
        pytest.param(basic("jürgen:pässwörd ✓"), ("jürgen", "pässwörd ✓"), id="utf-8"),
        pytest.param("bAsIc   " + basic("a:b")[6:] + "  ", ("a", "b"), id="scheme-in-any-case-and-spaces"),
        pytest.param(basic(":secret"), None, id="no-user"),
        pytest.param(basic("alice"), None, id="no-colon"),
        pytest.param(basic("alice:se\0cret"), None, id="nul"),
        pytest.param(basic("al\nice:secret"), None, id="line-feed"),
        pytest.param(basic(b"alice:\xff\xfe"), None, id="not-utf-8"),
        pytest.param("Basic YWxpY2U6c2VjcmV0===", None, id="too-much-padding"),
        pytest.param("Basic YWxpY2U6c2VjcmV", None, id="too-little-padding"),
        pytest.param("Basic YWxp Y2U6c2VjcmV0", None, id="space-inside"),
        pytest.param("Basic !!!!", None, id="not-base64"),
        pytest.param("Basic ä", None, id="not-ascii"),
        pytest.param("Basic", None, id="scheme-alone"),
        pytest.param("", None, id="empty"),
        pytest.param("Bearer YWxpY2U6c2VjcmV0", None, id="bearer"),
        pytest.param("Negotiate YII=", None, id="negotiate"),
    ],
)
def test_parse_basic(header: str, want: tuple[str, str] | None) -> None:
    assert parse_basic(header) == want


TEXT = st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")))


@given(TEXT, TEXT)
def test_parse_basic_gives_back_what_was_sent(user: str, password: str) -> None:
    sent = parse_basic(basic(f"{user}:{password}"))
    name, _, rest = f"{user}:{password}".partition(":")
    assert sent == ((name, rest) if name else None)


@given(st.text())
def test_parse_basic_never_raises(header: str) -> None:
    parse_basic(header)
    parse_basic("Basic " + header)


@pytest.mark.parametrize("hashed", [BCRYPT, ARGON2, SHA, APR1], ids=["bcrypt", "argon2", "sha", "apr1"])
def test_right_and_wrong_passwords(tmp_path: Path, hashed: str) -> None:
    users = HtpasswdFile(htpasswd(tmp_path, f"alice:{hashed}"))
    assert users.verify("alice", "secret")
    assert users.verify("alice", "secret"), "and again, out of memory"
    for user, password in (
        ("alice", "Secret"),
        ("alice", ""),
        ("alice", "secret\0"),
        ("alice", "secret\0more"),
        ("alice", "secret" * 1000),
        ("alice", "\ud800"),
        ("bob", "secret"),
        ("", "secret"),
        ("alic", "esecret"),
    ):
        assert not users.verify(user, password), (user, password)


@pytest.mark.parametrize("prefix", ["$2y$", "$2a$", "$2b$"])
def test_bcrypt_prefixes(tmp_path: Path, prefix: str) -> None:
    users = HtpasswdFile(htpasswd(tmp_path, f"alice:{prefix}{BCRYPT[4:]}"))
    assert users.verify("alice", "secret")
    assert not users.verify("alice", "other")


def test_bcrypt_looks_at_72_bytes(tmp_path: Path) -> None:
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    users = HtpasswdFile(htpasswd(tmp_path, f"alice:{hashed}"))
    assert users.verify("alice", "x" * 72)
    assert users.verify("alice", "x" * 100), (
        "as htpasswd -B, which made the hash of a password this long, cut it"
    )
    assert not users.verify("alice", "x" * 71)


@pytest.mark.parametrize(
    "password", ["", "a", "secret", "fifteen letters", "sixteen letters.", "ünï" * 20, "x" * 200]
)
@pytest.mark.parametrize("salt", ["a", "abcdefgh", "./Zz09"])
def test_apr1_agrees_with_openssl(password: str, salt: str) -> None:
    openssl = subprocess.run(
        ["openssl", "passwd", "-apr1", "-salt", salt, password], capture_output=True, text=True, check=True
    )
    assert openssl.stdout == f"$apr1${salt}${apr1(password.encode(), salt.encode()).decode()}\n"


def test_apr1_known_values() -> None:
    assert apr1(b"", b"abcdefgh") == b"L.PT565ESX4Tp2bqNs7Ie."
    assert apr1(b"correct horse battery staple and more", b"abcdefgh") == b"jReirxLoLuS22e6UhRQo11"


def test_comments_blank_lines_extra_fields_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(f"# users\r\n\r\n  \nalice:{SHA}:Alice A.\r\njürgen:{SHA}".encode())
    users = HtpasswdFile(path)
    assert users.verify("alice", "secret")
    assert users.verify("jürgen", "secret")
    assert not users.verify("# users", "secret")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param("bob:secret", "plain text, crypt", id="plain-text"),
        pytest.param("bob:", "plain text, crypt", id="empty"),
        pytest.param("bob:rqXexS6ZhobKA", "plain text, crypt", id="crypt"),
        pytest.param("bob:$6$salt$abcdef", "plain text, crypt", id="sha512-crypt"),
        pytest.param("bob", "expected user:hash", id="no-colon"),
        pytest.param(":" + SHA, "expected user:hash", id="no-user"),
        pytest.param("alice:" + SHA, "is there twice", id="twice"),
        pytest.param("bob:{SHA}AAAA", "{SHA} hash is malformed", id="short-sha"),
        pytest.param("bob:{SHA}*", "{SHA} hash is malformed", id="sha-not-base64"),
        pytest.param("bob:$2y$10$short", "hash is malformed", id="short-bcrypt"),
        pytest.param("bob:$2y$31$" + BCRYPT[7:], "cost is 31; 4 to 17", id="bcrypt-for-days"),
        pytest.param("bob:$apr1$waytoolongsalt$" + "x" * 22, "hash is malformed", id="apr1-salt"),
        pytest.param("bob:$argon2id$nonsense", "argon2 hash is malformed", id="argon2"),
        pytest.param("bob:" + ARGON2.replace("m=64", "m=99999999"), "m is 99999999 KiB", id="argon2-memory"),
        pytest.param("bob:" + ARGON2.replace("t=1", "t=9999"), "t is 9999", id="argon2-time"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = htpasswd(tmp_path, "# users", f"alice:{SHA}", line)
    with pytest.raises(ConfigError) as info:
        HtpasswdFile(path)
    assert str(info.value).startswith(f"{path}:3: ")
    assert reason in str(info.value)
    assert "secret" not in str(info.value), "a password must not show in the log"


def test_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(b"ok:" + SHA.encode() + b"\nj\xfcrgen:" + SHA.encode() + b"\n")
    with pytest.raises(ConfigError, match="htpasswd:2: not UTF-8"):
        HtpasswdFile(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        HtpasswdFile(tmp_path / "none")


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = htpasswd(tmp_path, f"alice:{SHA}")
    users = HtpasswdFile(path)
    assert users.verify("alice", "secret")
    htpasswd(tmp_path, f"bob:{SHA}", "# and no more alice")
    assert not users.verify("alice", "secret"), "what was remembered goes with the old file"
    assert users.verify("bob", "secret")
    new = tmp_path / "new"
    new.write_text(f"carol:{APR1}\n")
    os.replace(new, path)
    assert users.verify("carol", "secret")


def test_a_broken_new_file_keeps_the_old_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = htpasswd(tmp_path, f"alice:{SHA}")
    users = HtpasswdFile(path)
    with caplog.at_level(logging.WARNING):
        htpasswd(tmp_path, f"alice:{SHA}", "bob:hunter2")
        for _ in range(3):
            assert users.verify("alice", "secret")
            assert not users.verify("bob", "hunter2")
    assert len(caplog.records) == 1, "one warning for one change"
    assert f"{path}:2: user 'bob'" in caplog.text
    assert "hunter2" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        path.unlink()
        for _ in range(3):
            assert users.verify("alice", "secret")
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text
    htpasswd(tmp_path, f"bob:{SHA}")
    assert users.verify("bob", "secret")
    assert not users.verify("alice", "secret")


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    for kind in (credentials._Bcrypt, credentials._Argon2, credentials._Apr1, credentials._Sha):
        original = kind.matches

        def counted(self: object, password: bytes, kind=kind, original=original) -> bool:  # type: ignore[no-untyped-def]
            calls.append(kind.__name__)
            return bool(original(self, password))

        monkeypatch.setattr(kind, "matches", counted)
    return calls


def test_all_failures_cost_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = HtpasswdFile(
        htpasswd(tmp_path, f"a:{SHA}", f"b:{BCRYPT}", f"c:{APR1}", f"d:{ARGON2}", f"b2:{BCRYPT}", f"a2:{SHA}")
    )
    calls = count_hashes(monkeypatch)
    for user in ("a", "b", "c", "d", "nobody", "b2"):
        for password in ("wrong", "", "nul\0", "x" * 5000):
            calls.clear()
            assert not users.verify(user, password)
            assert sorted(calls) == ["_Apr1", "_Argon2", "_Bcrypt", "_Sha"], (user, password)


def test_unknown_users_and_wrong_passwords_take_equally_long(tmp_path: Path) -> None:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(8)).decode()
    users = HtpasswdFile(htpasswd(tmp_path, f"alice:{hashed}"))

    def fastest(user: str) -> float:
        times = []
        for i in range(5):
            start = time.perf_counter()
            users.verify(user, f"wrong{i}")
            times.append(time.perf_counter() - start)
        return min(times)

    known, unknown = fastest("alice"), fastest("nobody")
    assert 0.5 < known / unknown < 2, (known, unknown)


def test_a_herd_pays_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = HtpasswdFile(htpasswd(tmp_path, f"alice:{BCRYPT}", f"bob:{BCRYPT}"))
    calls = count_hashes(monkeypatch)
    for _ in range(50):
        assert users.verify("alice", "secret")
    assert calls == ["_Bcrypt"]
    assert not users.verify("alice", "wrong")
    assert not users.verify("alice", "wrong")
    assert calls == ["_Bcrypt"] * 3, "failures are not remembered"
    assert users.verify("bob", "secret")
    assert calls == ["_Bcrypt"] * 4, "nor does one user's password let in another"


def test_what_is_remembered_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = HtpasswdFile(htpasswd(tmp_path, f"alice:{SHA}"))
    calls = count_hashes(monkeypatch)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert users.verify("alice", "secret")
    now[0] += credentials.REMEMBER_S - 1
    assert users.verify("alice", "secret")
    assert len(calls) == 1
    now[0] += 2
    assert users.verify("alice", "secret")
    assert len(calls) == 2


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "REMEMBER_MAX", 8)
    users = HtpasswdFile(htpasswd(tmp_path, *(f"u{i}:{SHA}" for i in range(40))))
    for i in range(40):
        assert users.verify(f"u{i}", "secret")
        assert len(users._loaded.remembered) <= 8
    assert b"secret" not in b"".join(users._loaded.remembered), "no password is kept"
