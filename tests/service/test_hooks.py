"""Hooks as processes: what they see, what is seen of them, and how they end."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gitsmart.access.identity import Actor
from gitsmart.errors import Disconnected
from gitsmart.service import hooks
from gitsmart.service.hooks import HookResult, committer, push_environ, run_hook

ALICE = Actor("alice", "192.0.2.1")


@dataclass(frozen=True)
class Script:
    argv: tuple[str, ...]
    cwd: str
    environ: Mapping[str, str] = field(default_factory=dict)


def script(tmp_path: Path, text: str, *, name: str = "hook") -> Script:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(0o755)
    return Script((str(path),), str(tmp_path))


def run(
    command: Script,
    *args: bytes,
    stdin: bytes = b"",
    base: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    output: Callable[[bytes], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[HookResult, bytes]:
    said: list[bytes] = []

    def listen(data: bytes) -> None:
        said.append(data)
        if output is not None:
            output(data)

    result = run_hook(
        command,
        args,
        stdin,
        base=base or {},
        extra_environ=extra or {},
        output=listen,
        timeout_s=timeout_s,
        check=check,
    )
    return result, b"".join(said)


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that nobody in this container reaps does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(claim: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if claim():
            return True
        time.sleep(0.01)
    return claim()


def test_both_outputs_come_in_order(tmp_path: Path) -> None:
    result, said = run(script(tmp_path, "#!/bin/sh\necho one\necho two >&2\necho three\n"))
    assert result.ok
    assert said == b"one\ntwo\nthree\n"


def test_the_exit_status_decides(tmp_path: Path) -> None:
    result, said = run(script(tmp_path, "#!/bin/sh\necho no\nexit 3\n"))
    assert (result, said) == (HookResult(status=3), b"no\n")
    assert not result.ok


def test_death_by_signal_is_no(tmp_path: Path) -> None:
    result, _ = run(script(tmp_path, "#!/bin/sh\nkill -9 $$\n"))
    assert result == HookResult(status=-signal.SIGKILL)


def test_a_read_loop_sees_every_line(tmp_path: Path) -> None:
    command = script(tmp_path, '#!/bin/sh\nwhile read old new ref; do echo "$ref"; done\n')
    assert run(command, stdin=b"a b refs/heads/x\n") == (HookResult(status=0), b"refs/heads/x\n")


def test_arguments_go_through_byte_for_byte(tmp_path: Path) -> None:
    command = script(tmp_path, "#!/bin/sh\nfor a; do printf '%s|' \"$a\"; done\n")
    _, said = run(command, b"refs/heads/\xff\xfe ' \"$(x)\n", b"", b"-n")
    assert said == b"refs/heads/\xff\xfe ' \"$(x)\n||-n|"


def test_big_input_and_big_output_at_once(tmp_path: Path) -> None:
    data = os.urandom(1 << 16).hex().encode() * 24
    result, said = run(script(tmp_path, "#!/bin/sh\ncat\n"), stdin=data)
    assert result.ok
    assert said == data


def test_input_need_not_be_read(tmp_path: Path) -> None:
    result, said = run(script(tmp_path, "#!/bin/sh\nexec <&-\necho fine\n"), stdin=b"x" * (1 << 20))
    assert result.ok
    assert said == b"fine\n"


def test_output_may_be_closed_before_the_end(tmp_path: Path) -> None:
    result, said = run(script(tmp_path, "#!/bin/sh\necho bye\nexec >&- 2>&-\nsleep 0.3\nexit 7\n"))
    assert (result, said) == (HookResult(status=7), b"bye\n")


def test_output_comes_while_the_hook_runs(tmp_path: Path) -> None:
    """The hook waits for a file that we make when we hear of its first line."""
    flag = tmp_path / "flag"
    command = script(
        tmp_path, f"#!/bin/sh\necho first\nwhile [ ! -e '{flag}' ]; do sleep 0.01; done\necho second\n"
    )
    result, said = run(command, output=lambda _: flag.touch())
    assert result.ok
    assert said == b"first\nsecond\n"


def test_without_an_ear_the_output_is_dropped(tmp_path: Path) -> None:
    command = script(tmp_path, "#!/bin/sh\nhead -c 1000000 /dev/zero\nexit 5\n")
    result = run_hook(
        command, (), b"", base={}, extra_environ={}, output=None, timeout_s=10, check=lambda: None
    )
    assert result.status == 5


def test_the_working_directory_and_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "x")
    monkeypatch.setenv("GIT_WORK_TREE", "/elsewhere")
    command = script(
        tmp_path, "#!/bin/sh\npwd\nenv | grep -v -e ^PWD= -e ^SHLVL= -e ^_= -e ^OLDPWD= | sort\n"
    )
    command = Script(command.argv, command.cwd, {"GIT_DIR": "/repository", "FROM": "repository"})
    _, said = run(command, base={"HOME": "/home/git", "FROM": "base"}, extra={"REMOTE_USER": "alice"})
    assert said.decode().splitlines() == [
        str(tmp_path.resolve()),
        "FROM=base",
        "GIT_DIR=/repository",
        "HOME=/home/git",
        f"PATH={hooks.DEFAULT_PATH}",
        "REMOTE_USER=alice",
    ]


def test_push_environ() -> None:
    assert push_environ(ALICE, version=0, push_options=None) == {
        "GIT_DIR": ".",
        "REMOTE_USER": "alice",
        "REMOTE_ADDR": "192.0.2.1",
        "GIT_COMMITTER_NAME": "alice",
        "GIT_COMMITTER_EMAIL": "alice@http.192.0.2.1",
    }
    assert push_environ(Actor(None, ""), version=1, push_options=()) == {
        "GIT_DIR": ".",
        "REMOTE_ADDR": "",
        "GIT_COMMITTER_NAME": "anonymous",
        "GIT_COMMITTER_EMAIL": "anonymous@http.(none)",
        "GIT_PROTOCOL": "version=1",
        "GIT_PUSH_OPTION_COUNT": "0",
    }
    assert committer(ALICE) == ("alice", "alice@http.192.0.2.1")


def test_push_options_go_through_byte_for_byte(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        '#!/bin/sh\nprintf \'%s|%s|%s\' $GIT_PUSH_OPTION_COUNT "$GIT_PUSH_OPTION_0" "$GIT_PUSH_OPTION_1"\n',
    )
    extra = push_environ(ALICE, version=0, push_options=(b"caf\xe9 = 'x'", b"two\0cut"))
    assert run(command, extra=extra)[1] == b"2|caf\xe9 = 'x'|two"


def test_a_hook_without_an_interpreter_line_is_a_shell_script(tmp_path: Path) -> None:
    result, said = run(script(tmp_path, 'read x; echo "got $x $1"; exit 4\n'), b"arg", stdin=b"line\n")
    assert (result.status, said) == (4, b"got line arg\n")


@pytest.mark.parametrize(
    ("text", "mode", "failure"),
    [
        pytest.param("#!/no/such/interpreter\n", 0o755, "No such file or directory", id="bad-interpreter"),
        pytest.param("#!/bin/sh\n", 0o000, "Permission denied", id="not-executable"),
    ],
)
def test_a_hook_that_cannot_start(tmp_path: Path, text: str, mode: int, failure: str) -> None:
    command = script(tmp_path, text)
    Path(command.argv[0]).chmod(mode)
    result, said = run(command, stdin=b"x" * 100000)
    assert (result, said) == (HookResult(status=None, failure=failure), b"")
    assert not result.ok
    assert str(tmp_path) not in result.failure


def test_an_environment_too_big_to_start_with(tmp_path: Path) -> None:
    result, _ = run(script(tmp_path, "#!/bin/sh\n"), extra={"GIT_PUSH_OPTION_0": "x" * (1 << 20)})
    assert result == HookResult(status=None, failure="Argument list too long")


def test_a_hook_being_written_is_waited_for(tmp_path: Path) -> None:
    command = script(tmp_path, "#!/bin/sh\nexit 0\n")
    binary = tmp_path / "true"
    binary.write_bytes(Path("/bin/true").read_bytes())
    binary.chmod(0o755)
    with binary.open("ab"):
        result, _ = run(Script((str(binary),), command.cwd))
    assert result == HookResult(status=None, failure="Text file busy")
    assert run(Script((str(binary),), command.cwd))[0].ok


def test_a_hanging_hook_is_stopped(tmp_path: Path) -> None:
    """Its children too: they are of its process group."""
    command = script(tmp_path, "#!/bin/sh\nsleep 60 &\necho $!\nsleep 60\n")
    start = time.monotonic()
    result, said = run(command, timeout_s=0.3)
    assert time.monotonic() - start < 2
    assert result.timed_out
    assert not result.ok
    assert result.status == -signal.SIGTERM
    assert wait_until(lambda: not is_alive(int(said)))


def test_a_hook_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "KILL_AFTER_S", 0.3)
    command = script(tmp_path, "#!/bin/sh\ntrap '' TERM\necho $$\nwhile :; do sleep 0.05; done\n")
    result, said = run(command, timeout_s=0.3)
    assert result == HookResult(status=-signal.SIGKILL, timed_out=True)
    assert not is_alive(int(said))


def test_a_hook_that_says_no_end_of_words_is_stopped(tmp_path: Path) -> None:
    result, said = run(script(tmp_path, "#!/bin/sh\nexec yes\n"), timeout_s=0.3)
    assert result.timed_out
    assert said.startswith(b"y\ny\n")


def test_a_hook_stopped_at_the_limit_with_status_0_is_not_ok(tmp_path: Path) -> None:
    command = script(tmp_path, "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.02; done\n")
    result, _ = run(command, timeout_s=0.2)
    assert result == HookResult(status=0, timed_out=True)
    assert not result.ok


def test_a_background_child_does_not_hang_the_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "LINGER_S", 0.3)
    command = script(tmp_path, "#!/bin/sh\nsleep 60 &\necho $!\nexit 0\n")
    start = time.monotonic()
    result, said = run(command, timeout_s=30)
    assert result.ok
    assert time.monotonic() - start < 3
    child = int(said)
    assert is_alive(child), "it is left alone"
    os.kill(child, signal.SIGKILL)


def test_a_background_child_that_talks_is_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "LINGER_S", 1.0)
    command = script(tmp_path, "#!/bin/sh\n(for i in 1 2 3 4; do sleep 0.2; echo $i; done) &\nexit 0\n")
    assert run(command) == (HookResult(status=0), b"1\n2\n3\n4\n")


def test_a_background_child_that_never_stops_talking_is_no_failure(tmp_path: Path) -> None:
    """The hook said yes; at the time limit we stop listening."""
    command = script(tmp_path, "#!/bin/sh\n(while :; do echo x; sleep 0.01; done) &\nexit 0\n")
    start = time.monotonic()
    result, _ = run(command, timeout_s=0.8)
    assert result.ok
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("silent", [True, False], ids=["in-silence", "while-it-talks"])
def test_a_client_that_leaves_stops_the_hook(tmp_path: Path, silent: bool) -> None:
    pid_file = tmp_path / "pid"
    talk = "" if silent else "echo x;"
    command = script(tmp_path, f"#!/bin/sh\necho $$ > '{pid_file}'\nwhile :; do {talk} sleep 0.02; done\n")

    def check() -> None:
        if silent and pid_file.exists() and pid_file.read_text().strip():
            raise Disconnected("the client has gone")

    def output(_: bytes) -> None:
        raise Disconnected("the client has gone")

    with pytest.raises(Disconnected):
        run(command, check=check, output=output)
    assert wait_until(lambda: not is_alive(int(pid_file.read_text())))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    command = script(tmp_path, "#!/bin/sh\necho x\nexit 1\n")
    bad = script(tmp_path, "#!/no/such/interpreter\n", name="bad")
    run(command)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        run(command, stdin=b"y" * 200000)
        run(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_signals_are_as_a_fresh_program_has_them(tmp_path: Path) -> None:
    """Python ignores SIGPIPE; a hook must not inherit that, or its pipelines never end."""
    command = script(
        tmp_path, f"#!{sys.executable}\nimport signal\nprint(signal.getsignal(signal.SIGPIPE))\n"
    )
    text = "#!/bin/sh\nyes | head -1\n"
    assert run(script(tmp_path, text, name="pipe"))[1] == b"y\n"
    assert run(command)[0].ok
