"""Hooks of a push: who runs, with what arguments, input and environment, and what comes of their answers."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git
from tests.parity import differences as known
from tests.parity.stage import Client, Difference, session

NAMES = ("pre-receive", "update", "reference-transaction", "post-receive", "post-update")
TELL = """
{ echo "== $(basename $0) $*"
  pwd
  test "$(basename $0)" = update -o "$(basename $0)" = post-update || cat
  env | grep -E '^GIT_(DIR|PUSH|QUARANTINE|OBJECT|ALTERNATE|NAMESPACE|COMMITTER_[NE])' | sort
  env | grep -E '^(GIT_PROTOCOL|REMOTE_)' | sort
} >>hooks.log
"""
USER = "http.extraHeader=X-Remote-User: alice"


def heard(client: Client, step: str) -> str:
    log = client.repo / "hooks.log"
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    client.tell(step, text)
    return text


UPDATES = r"(== update refs/heads/\S+ \w+ \w+\n?)*"
SAID = r"(remote: refs/heads/\S+ \w+ \w+\n?)*"


@session(expected=[Difference(known.TRANSACTION_STATES, at="^hooks", gits=".*", ours=".*")])
def test_all_of_them(client: Client) -> None:
    client.git("clone", "-q", "URL", "work")
    for name in NAMES:
        client.hook(name, TELL)
    client.commit("new.txt", "new\n")
    client.git("push", "origin", "main", "main:refs/heads/two", ":topic", settings=[USER])
    text = heard(client, "hooks")
    assert all(f"== {name}" in text for name in NAMES if name != "reference-transaction")
    assert "REMOTE_USER=alice" in text
    assert "GIT_COMMITTER_EMAIL=alice@http.127.0.0.1" in text


@session(
    expected=[
        Difference(
            known.DELETIONS_FIRST, at="^hooks of a push with", gits=UPDATES, ours=UPDATES, since=(2, 51)
        )
    ]
)
def test_environment_and_input(client: Client) -> None:
    client.git("clone", "-q", "URL", "work")
    for name in set(NAMES) - {"reference-transaction"}:
        client.hook(name, TELL)
    client.commit("new.txt", "new\n")
    client.git("push", "-o", "one", "-o", "two words", "origin", "main", "main:x", ":topic", settings=[USER])
    heard(client, "hooks of a push with options")
    client.git("push", "origin", "main~1:refs/heads/y")
    heard(client, "hooks of a push by nobody")
    client.git("push", "origin", ":y", "main~1:x", status=None)
    heard(client, "hooks of a push of which half is refused by the client")


@session(
    expected=[
        Difference(known.DELETIONS_FIRST, at="^git push.*:topic$", gits=SAID, ours=SAID, since=(2, 51)),
    ]
)
def test_refusals(client: Client) -> None:
    """What each hook says, and that it says no."""
    client.git("clone", "-q", "URL", "work")
    client.commit("new.txt", "new\n")
    client.hook("pre-receive", "cat >/dev/null; echo out; echo err >&2; exit 1\n")
    client.git("push", "origin", "main", "main:x", status=1)
    client.hook(
        "pre-receive", "cat >/dev/null; echo fine; git update-ref refs/heads/y $(git rev-parse main)\n"
    )
    client.git("push", "origin", "main:z", status=1)
    client.hook("pre-receive", "exit 0\n")
    client.hook("update", 'echo "$@"; test $1 != refs/heads/x\n')
    client.git("push", "origin", "main", "main:x", ":topic", status=1)
    client.hook("post-receive", "echo post; exit 3\n")
    client.hook("post-update", 'echo "posted $@"; exit 3\n')
    client.git("push", "origin", "main~1:refs/heads/later")


@session()
def test_where_hooks_are(client: Client) -> None:
    client.git("clone", "-q", "URL", "work")
    client.hook("pre-receive", "echo here\n")
    client.hook("pre-receive", "echo there\n", folder="other")
    client.git("push", "origin", "main:one")
    client.config("core.hooksPath", "other")
    client.git("push", "origin", "main:two")
    client.config("core.hooksPath", str(client.repo / "nowhere"))
    client.git("push", "origin", "main:three")
    client.config("core.hooksPath", "other")
    (client.repo / "other/pre-receive").chmod(0o644)
    client.git("push", "origin", "main:four")


@session(
    expected=[
        Difference(known.TRANSACTION_REFUSAL, at="^git push|^refs", gits=".*", ours=".*"),
    ]
)
def test_a_transaction_that_is_refused(client: Client) -> None:
    client.git("clone", "-q", "URL", "work")
    client.hook("reference-transaction", "test $1 != prepared\n")
    client.git("push", "origin", "main:one", status=1)


PROC_RECEIVE = r"""
read_pkt() {
    len=$(dd bs=1 count=4 2>/dev/null)
    [ -n "$len" ] && [ "$len" != 0000 ] || return 1
    line=$(dd bs=1 count=$((0x$len - 4)) 2>/dev/null | tr '\0' ' ')
}
send() { printf '%04x%s\n' $((${#1} + 5)) "$1"; }
while read_pkt; do echo "# greeting: $line" >&2; done
send version=1
printf 0000
while read_pkt; do
    echo "# command: ${line##* }" >&2
    set -- $line
    ANSWER
done
printf 0000
"""
ANSWERS = {
    "as a pull request": (
        'git update-ref refs/pull/1/head $2; send "ok $3"; send "option refname refs/pull/1/head";'
        ' send "option new-oid $2"',
        0,
    ),
    "twice": ('send "ok $3"; send "option refname refs/a"; send "option forced-update"; send "ok $3"', 0),
    "no": ('send "ng $3 not today"', 1),
    "no without a reason": ('send "ng $3"', 1),
    "left to the server": ('send "ok $3"; send "option fall-through"', 0),
    "nothing": (":", 1),
    "incomplete": ("send ok", 1),
    "bad status": ('send "well $3"', 1),
    "unknown ref": ('send "ok refs/none"', 1),
    "unexpected ref": ('send "ok refs/heads/beside"', 1),
    "lone option": ('send "option refname x"', 1),
    "exits": ("exit 0", 1),
}


@session(versions=(0, 1))
def test_proc_receive(client: Client) -> None:
    """report-status-v2 with option lines, as the client shows them."""
    client.git("clone", "-q", "URL", "work")
    client.config("receive.procReceiveRefs", "refs/for/")
    client.git("push", "origin", "main:refs/for/main", status=1, label="without a hook")
    client.hook("post-receive", TELL)
    for number, (name, (answer, status)) in enumerate(ANSWERS.items()):
        client.hook("proc-receive", PROC_RECEIVE.replace("ANSWER", answer))
        client.commit("new.txt", f"{number}\n")
        words = ("main:refs/for/main", "main:refs/heads/beside")
        client.git("push", "origin", *words, status=status, label=name)
        heard(client, f"post-receive after {name}")
    client.hook("proc-receive", PROC_RECEIVE.replace("ANSWER", ANSWERS["no"][0]))
    words = ("main:refs/for/main", "main:refs/heads/atomic")
    client.git("push", "--atomic", "origin", *words, status=1)
    client.config("receive.procReceiveRefs", "a!:refs/heads", "md:refs/tags")
    client.git(
        "push", "origin", "main:refs/heads/x", "main:refs/other", ":v1.0", "main:refs/tags/t", status=1
    )


@pytest.fixture(scope="module")
def key(git: Git) -> str:
    """A signing key in the home that client and servers have."""
    if shutil.which("gpg") is None:
        pytest.skip("no gpg to sign with")
    home = Path(git.environ["HOME"]) / ".gnupg"
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    user = "P Arity <parity@example.com>"
    known = [*gpg, "--list-secret-keys", "parity@example.com"]  # another peer's sessions may have made it
    if subprocess.run(known, env=git.environ, capture_output=True, check=False).returncode:
        subprocess.run(
            [*gpg, "--quick-generate-key", user, "ed25519", "sign", "never"], env=git.environ, check=True
        )
    return "parity@example.com"


@pytest.mark.usefixtures("key")
@session(versions=(0, 1))
def test_signed_pushes(client: Client) -> None:
    client.has_times = True
    client.git("clone", "-q", "URL", "work")
    client.local("config", "user.signingKey", "parity@example.com")
    client.git("push", "--signed", "origin", "main:one", status=1)
    client.git("push", "--signed=if-asked", "origin", "main:one")
    client.config("receive.certNonceSeed", "a secret")
    client.config("receive.certNonceSlop", "3600")
    tell = TELL + '\ntest -z "$GIT_PUSH_CERT" || git cat-file blob "$GIT_PUSH_CERT" | grep -v ^nonce >cert\n'
    for name in ("pre-receive", "update", "post-receive", "post-update"):
        client.hook(name, tell)
    client.commit("new.txt", "new\n")
    client.git("push", "--signed", "-o", "opt", "origin", "main", "main:two")
    text = heard(client, "hooks")
    assert "GIT_PUSH_CERT_STATUS=G" in text
    assert "GIT_PUSH_CERT_NONCE_STATUS=OK" in text
    client.tell("certificate", (client.repo / "cert").read_text().partition("-----BEGIN")[0])
    client.git("push", "origin", "main:three")
    heard(client, "hooks of an unsigned push")
