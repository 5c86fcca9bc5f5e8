"""The hook proc-receive, written in shell, behind the real client; C git's server agrees (`--server git`)."""

import re
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, commit_file, refs

HOOK = r"""#!/bin/sh
# pkt-lines in shell
read_pkt() {
    len=$(dd bs=1 count=4 2>/dev/null)
    [ -n "$len" ] && [ "$len" != 0000 ] || return 1
    line=$(dd bs=1 count=$((0x$len - 4)) 2>/dev/null | tr '\0' ' ')
}
send() { printf '%04x%s\n' $((${#1} + 5)) "$1"; }
while read_pkt; do echo "# greeting: $line" >&2; done
VERSION
printf 0000
while read_pkt; do
    echo "# command: ${line##* }" >&2
    set -- $line
    ANSWER
done
OPTIONS
printf 0000
"""


def install(hosted: Hosted, *, answer: str, version: str = "send version=1", options: str = "") -> None:
    path = hosted.path / "hooks" / "proc-receive"
    path.parent.mkdir(exist_ok=True)
    text = HOOK.replace("ANSWER", answer).replace("VERSION", version).replace("OPTIONS", options)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def work(client: Git, hosted: Hosted, tmp_path: Path) -> Path:
    client("clone", "-q", hosted.url, "work", cwd=tmp_path)
    client("config", "receive.procReceiveRefs", "refs/for/", cwd=hosted.path)
    commit_file(client, tmp_path / "work", "new.txt", "new\n")
    return tmp_path / "work"


def push(client: Git, work: Path, *args: str) -> tuple[int, str]:
    done = client.run("push", *args, cwd=work)
    return done.returncode, re.sub(r" +$", "", done.stderr, flags=re.MULTILINE)


def test_a_pull_request(client: Git, hosted: Hosted, work: Path) -> None:
    install(
        hosted,
        answer="""
        git update-ref refs/pull/1/head $2
        send "ok $3"
        send "option refname refs/pull/1/head"
        send "option new-oid $2"
        """,
    )
    log = hosted.path / "moved"
    hook = hosted.path / "hooks" / "post-receive"
    hook.write_text("#!/bin/sh\ncat >moved\n")
    hook.chmod(0o755)
    before = refs(hosted.path)
    status, said = push(client, work, "origin", "main:refs/for/main/topic", "main:refs/heads/beside")
    assert status == 0, said
    tip = client("rev-parse", "main", cwd=work)
    assert refs(hosted.path) == {**before, "refs/pull/1/head": tip, "refs/heads/beside": tip}
    assert "remote: # greeting: version=1" in said
    assert "remote: # command: refs/for/main/topic" in said
    assert "* [new reference]" in said
    assert "main -> refs/pull/1/head" in said
    assert "main -> beside" in said
    lines = log.read_text().splitlines()
    assert sorted(lines) == [f"{'0' * 40} {tip} refs/heads/beside", f"{'0' * 40} {tip} refs/pull/1/head"]


def test_several_reports_for_one_command(client: Git, hosted: Hosted, work: Path) -> None:
    old = refs(hosted.path)["refs/heads/main"]
    install(
        hosted,
        answer=f"""
        git update-ref refs/pull/1 $2
        git update-ref refs/pull/2 $2
        send "ok $3"
        send "option refname refs/pull/1"
        send "option old-oid {old}"
        send "option forced-update"
        send "ok $3"
        send "option refname refs/pull/2"
        """,
    )
    status, said = push(client, work, "origin", "main:refs/for/main")
    assert status == 0, said
    assert "(forced update)" in said
    assert "main -> refs/pull/1" in said
    assert "main -> refs/pull/2" in said


def test_it_says_no(client: Git, hosted: Hosted, work: Path) -> None:
    install(hosted, answer='send "ng $3 not today"')
    before = refs(hosted.path)
    status, said = push(client, work, "origin", "main:refs/for/main", "main:refs/heads/beside")
    assert status == 1
    assert "! [remote rejected] main -> refs/for/main (not today)" in said
    assert refs(hosted.path) == {**before, "refs/heads/beside": client("rev-parse", "main", cwd=work)}


def test_it_leaves_it_to_us(client: Git, hosted: Hosted, work: Path) -> None:
    install(hosted, answer='send "ok $3"; send "option fall-through"')
    status, said = push(client, work, "origin", "main:refs/for/main")
    assert status == 0, said
    assert refs(hosted.path)["refs/for/main"] == client("rev-parse", "main", cwd=work)


def test_what_is_left_to_us_is_judged(client: Git, hosted: Hosted, work: Path) -> None:
    client("config", "receive.procReceiveRefs", "refs", cwd=hosted.path)
    client("config", "receive.denyDeletes", "true", cwd=hosted.path)
    install(hosted, answer='send "ok $3"; send "option fall-through"')
    before = refs(hosted.path)
    status, said = push(client, work, "origin", ":refs/heads/topic", "main")
    assert status == 1
    assert "! [remote rejected] topic (deletion prohibited)" in said
    assert refs(hosted.path) == {**before, "refs/heads/main": client("rev-parse", "main", cwd=work)}


def test_push_options_for_those_who_ask(client: Git, hosted: Hosted, work: Path) -> None:
    client("config", "receive.advertisePushOptions", "true", cwd=hosted.path)
    install(
        hosted,
        version=r"printf '001aversion=1\0push-options'",
        answer="ref=$3",
        options='while read_pkt; do echo "# option: $line" >&2; done; send "ok $ref"',
    )
    status, said = push(client, work, "-o", "one", "-o", "two", "origin", "main:refs/for/main")
    assert status == 0, said
    assert "remote: # greeting: version=1 push-options" in said
    assert "remote: # option: one" in said
    assert "remote: # option: two" in said


@pytest.mark.parametrize(
    ("hook", "text", "reason"),
    [
        pytest.param(None, "cannot find hook 'proc-receive'", "fail to run proc-receive hook", id="missing"),
        pytest.param(
            {"version": "exit 0", "answer": ":"},
            "fail to negotiate version with proc-receive hook",
            "fail to run proc-receive hook",
            id="silent",
        ),
        pytest.param(
            {"version": "send version=2", "answer": ":"},
            "proc-receive version '2' is not supported",
            "fail to run proc-receive hook",
            id="version",
        ),
        pytest.param(
            {"answer": "exit 0"},
            "proc-receive exited abnormally",
            "fail to run proc-receive hook",
            id="abnormal",
        ),
        pytest.param({"answer": ":"}, "", "proc-receive failed to report status", id="nothing"),
        pytest.param(
            {"answer": "send ok"},
            "proc-receive reported incomplete status line: 'ok'",
            "proc-receive failed to report status",
            id="incomplete",
        ),
        pytest.param(
            {"answer": 'send "well $3"'},
            "proc-receive reported bad status 'well' on ref 'refs/for/main'",
            "proc-receive failed to report status",
            id="bad status",
        ),
        pytest.param(
            {"answer": 'send "ok refs/none"'},
            "proc-receive reported status on unknown ref: refs/none",
            "proc-receive failed to report status",
            id="unknown ref",
        ),
        pytest.param(
            {"answer": 'send "ok refs/heads/beside"'},
            "proc-receive reported status on unexpected ref: refs/heads/beside",
            "proc-receive failed to report status",
            id="unexpected ref",
        ),
        pytest.param(
            {"answer": 'send "option refname x"'},
            "proc-receive reported 'option' without a matching 'ok/ng' directive",
            "proc-receive failed to report status",
            id="lone option",
        ),
        pytest.param({"answer": 'send "ng $3"'}, "", "failed", id="no reason"),
    ],
)
def test_what_goes_wrong(
    client: Git, hosted: Hosted, work: Path, hook: dict[str, str] | None, text: str, reason: str
) -> None:
    if hook is not None:
        install(hosted, **hook)
    before = refs(hosted.path)
    status, said = push(client, work, "origin", "main:refs/for/main", "main:refs/heads/beside")
    assert status == 1
    assert f"! [remote rejected] main -> refs/for/main ({reason})" in said
    assert not text or f"remote: error: {text}" in said
    assert refs(hosted.path) == {**before, "refs/heads/beside": client("rev-parse", "main", cwd=work)}


def test_in_an_atomic_push_all_fail(client: Git, hosted: Hosted, work: Path) -> None:
    install(hosted, answer='send "ng $3 no"')
    before = refs(hosted.path)
    status, said = push(client, work, "--atomic", "origin", "main:refs/for/main", "main:refs/heads/beside")
    assert status == 1
    assert "! [remote rejected] main -> refs/for/main (no)" in said
    assert "! [remote rejected] main -> beside (fail to run proc-receive hook)" in said
    assert refs(hosted.path) == before


@pytest.mark.parametrize(
    ("value", "ref", "is_the_hooks"),
    [
        ("refs/heads", "refs/heads/x", True),
        ("refs/hea", "refs/heads/x", False),
        ("a:refs/heads", "refs/heads/x", True),
        ("md:refs/heads", "refs/heads/x", False),
        ("a!:refs/heads", "refs/heads/x", False),
        ("a!:refs/heads", "refs/other/x", True),
        ("!:refs/heads", "refs/other/x", False),
    ],
)
def test_which_commands(
    client: Git, hosted: Hosted, work: Path, value: str, ref: str, is_the_hooks: bool
) -> None:
    client("config", "receive.procReceiveRefs", value, cwd=hosted.path)
    install(hosted, answer='send "ng $3 mine"')
    status, said = push(client, work, "origin", f"main:{ref}")
    assert ("(mine)" in said) is is_the_hooks
    assert status == int(is_the_hooks)
