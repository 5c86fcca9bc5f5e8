"""Run git's hook scripts: the only module that starts processes.

    command, arguments, stdin, environment --run_hook--> output on the way, HookResult at the end

As githooks(5) has it for the hooks of a push: the working directory is the repository, standard output and
error both go to the client, standard input is written while the hook runs. What is stricter than git:

- The environment holds what is listed at `push_environ` and in the repository's `HookCommand`, and what the
  server's operator chose (`base`): nothing else leaks out of the server's process.
- A hook has a time limit. Past it, or when `check` or `output` raises (the client has gone), the hook's whole
  process group gets SIGTERM, and SIGKILL `KILL_AFTER_S` later.
- A hook's end is the end of its process. A child that it leaves behind with our pipe open (`deploy.sh &`) is
  listened to as long as it keeps talking, `LINGER_S` after its last word at most, and then left alone.

Standard output of a hook that is talked to (proc-receive) goes to the talk, not to the client.

A hook need not read its input. One without a first line `#!` is given to /bin/sh,
as git does (run-command.c start_command(), ENOEXEC).
"""

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gitsmart.access.identity import Actor

__all__ = ["Command", "HookResult", "committer", "push_environ", "run_hook"]

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KILL_AFTER_S: Final = 2.0
LINGER_S: Final = 2.0
CHECK_INTERVAL_S: Final = 0.25
"""How often `check` is asked while a hook is silent: a client that leaves is noticed within this time."""

READ_BYTES: Final = 16384
BUSY_TRIES: Final = 50
"""Tries, 20 ms apart, to start a file that someone still has open for writing (ETXTBSY)."""


class Command(Protocol):
    """What to run and where: `repo.repository.HookCommand`."""

    @property
    def argv(self) -> tuple[str, ...]: ...
    @property
    def cwd(self) -> str: ...
    @property
    def environ(self) -> Mapping[str, str]: ...


class Talk(Protocol):
    """A conversation with a hook over its standard input and output."""

    @property
    def is_over(self) -> bool: ...
    def feed(self, data: bytes) -> bytes:
        """Take what the hook says, give what is to be told to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookResult:
    """How a hook ended."""

    status: int | None
    """Exit status, or the negative number of the signal that ended it. None: it was never started."""
    timed_out: bool = False
    """It was stopped at the time limit."""
    failure: str = ""
    """Why it couldn't be started, without paths."""

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.timed_out


def committer(actor: Actor) -> tuple[str, str]:
    """Return the name and e-mail that stand for `actor` in reflogs and hooks.

    git: http-backend.c run_service(): `user` (or `anonymous`) and `user@http.address`.
    """
    user = actor.user or "anonymous"
    return user, f"{user}@http.{actor.address or '(none)'}"


def push_environ(actor: Actor, *, version: int, push_options: Sequence[bytes] | None) -> dict[str, str]:
    """Return what the hooks of one push find in their environment, beside the repository's and the operator's
    part.

        GIT_DIR                         ".", the working directory          (git: receive-pack.c)
        REMOTE_USER                     who pushes, when signed in          (CGI, RFC 3875)
        REMOTE_ADDR                     from where                          (CGI)
        GIT_COMMITTER_NAME, _EMAIL      the same as an identity             (git: http-backend.c)
        GIT_PROTOCOL                    version=N, when the client asked    (git: http-backend.c)
        GIT_PUSH_OPTION_COUNT, _0, ...  push options; 0 when the client chose none, all unset for the hooks
                                        update and post-update              (git: receive-pack.c)

    For pre-receive `Push.environ` brings GIT_QUARANTINE_PATH, GIT_OBJECT_DIRECTORY and
    GIT_ALTERNATE_OBJECT_DIRECTORIES.

    Args:
        push_options: None when the hook gets none.
    """
    name, email = committer(actor)
    environ = {
        "GIT_DIR": ".",
        "REMOTE_ADDR": actor.address,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": email,
    }
    if actor.user:
        environ["REMOTE_USER"] = actor.user
    if version:
        environ["GIT_PROTOCOL"] = f"version={version}"
    if push_options is not None:
        environ["GIT_PUSH_OPTION_COUNT"] = str(len(push_options))
        for number, option in enumerate(push_options):
            environ[f"GIT_PUSH_OPTION_{number}"] = os.fsdecode(option)
    return environ


def run_hook(
    command: Command,
    args: Sequence[bytes],
    stdin: bytes,
    *,
    base: Mapping[str, str],
    extra_environ: Mapping[str, str],
    output: Callable[[bytes], None] | None,
    timeout_s: float,
    check: Callable[[], None],
    talk: Talk | None = None,
) -> HookResult:
    """Run one hook to its end. Blocking.

    Memory: `stdin`, and 16 KiB of output at a time, handed to `output` as soon as it comes; `output` may
    block, and so slow the hook down. With `output` None it is read and dropped.

    Args:
        args: appended to `command.argv`; refnames go through byte for byte.
        base: what the operator gives to all hooks, such as HOME, LANG and PATH; no GIT_ variables.
        talk: hears the hook's standard output, and says what follows `stdin`, which ends when it is over.
        extra_environ: this request's part, see `push_environ`. Later ones win: `command.environ`, base, this.
        check: called at least every `CHECK_INTERVAL_S`; what it raises stops the hook and goes to the caller.

    Raises:
        Whatever `output` and `check` raise, once the hook is stopped. Nothing else.
    """
    environ = {"PATH": DEFAULT_PATH, **command.environ, **base, **extra_environ}
    # a variable ends at its first NUL, as it would in git
    environ = {key: value.partition("\0")[0] for key, value in environ.items()}
    try:
        argv = [*map(os.fsencode, command.argv), *args]
        process = _start(argv, command.cwd, environ, subprocess.STDOUT if talk is None else subprocess.PIPE)
    except OSError as error:
        return HookResult(status=None, failure=error.strerror or "unknown error")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        finished = _converse(process, stdin, output, time.monotonic() + timeout_s, check, talk)
        if not finished:
            _stop(process)
    except BaseException:
        _stop(process)
        raise
    finally:
        process.stdin.close()
        process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()
    return HookResult(status=process.wait(), timed_out=not finished)


def _start(argv: list[bytes], cwd: str, environ: dict[str, str], stderr: int) -> "subprocess.Popen[bytes]":
    tries = 0
    while True:
        try:
            return subprocess.Popen(
                argv,
                cwd=cwd,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,  # a process group of its own, to be stopped as a whole
            )
        except OSError as error:
            if error.errno == errno.ENOEXEC and argv[0] != b"/bin/sh":
                argv = [b"/bin/sh", *argv]
            elif error.errno == errno.ETXTBSY and tries < BUSY_TRIES:
                # Someone is still writing it, or a child that another thread is starting has inherited the
                # file and not yet come to its exec.
                tries += 1
                time.sleep(0.02)
            else:
                raise


def _converse(
    process: "subprocess.Popen[bytes]",
    stdin: bytes,
    output: Callable[[bytes], None] | None,
    deadline: float,
    check: Callable[[], None],
    talk: Talk | None,
) -> bool:
    """Feed the hook and pass on what it says until it has ended; False when the deadline came first."""
    assert process.stdin is not None
    assert process.stdout is not None
    sink, source = process.stdin.fileno(), process.stdout.fileno()
    sources = [source] if process.stderr is None else [source, process.stderr.fileno()]
    for fd in (sink, *sources):
        os.set_blocking(fd, False)
    to_write = memoryview(stdin)
    listening = len(sources)
    ended = False
    heard = asked = time.monotonic()
    pause = 0.001
    with selectors.DefaultSelector() as selector:
        for fd in sources:
            selector.register(fd, selectors.EVENT_READ)
        if to_write:
            selector.register(sink, selectors.EVENT_WRITE)
        elif talk is None:
            process.stdin.close()
        while True:
            now = time.monotonic()
            if ended and (not listening or now - heard > LINGER_S):
                return True
            if now > deadline:
                return ended
            check()
            ready = selector.select(min(pause, deadline - now))
            # silence makes the pauses longer; an end of output, and so most likely of the hook, shows at once
            pause = 0.001 if ready else min(pause * 2, CHECK_INTERVAL_S)
            for key, _ in ready:
                if key.fd == sink:
                    if process.stdin.closed:  # what the hook said in the same moment has ended the talk
                        continue
                    to_write = _feed(sink, to_write)
                    if not to_write:
                        selector.unregister(sink)
                        if talk is None or talk.is_over:
                            process.stdin.close()
                elif said := os.read(key.fd, READ_BYTES):
                    heard = now
                    if talk is not None and key.fd == source:
                        to_write = _answer(selector, process, to_write, talk, said)
                    elif output is not None:
                        output(said)
                else:
                    selector.unregister(key.fd)
                    listening -= 1
                    if talk is not None and key.fd == source and not process.stdin.closed:
                        to_write = to_write[:0]
                        _close_input(selector, process)
            if not ended and (not ready or not listening or now - asked > CHECK_INTERVAL_S):
                asked = now
                if ended := _has_ended(process):
                    heard = now


def _answer(
    selector: selectors.BaseSelector,
    process: "subprocess.Popen[bytes]",
    to_write: memoryview,
    talk: Talk,
    said: bytes,
) -> memoryview:
    """Have the talk hear what the hook said; return what is to be written now."""
    assert process.stdin is not None
    answer = talk.feed(said)
    if process.stdin.closed:
        return to_write
    if answer:
        if not to_write:
            selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        to_write = memoryview(bytes(to_write) + answer)
    if talk.is_over and not to_write:
        _close_input(selector, process)
    return to_write


def _close_input(selector: selectors.BaseSelector, process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    if process.stdin.fileno() in selector.get_map():
        selector.unregister(process.stdin.fileno())
    process.stdin.close()


def _feed(sink: int, to_write: memoryview) -> memoryview:
    """Write what fits into the hook's standard input; return the rest, nothing once it isn't wanted."""
    try:
        return to_write[os.write(sink, to_write) :]
    except BlockingIOError:
        return to_write
    except BrokenPipeError:
        return to_write[:0]


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    # WNOWAIT: the dead process stays, and with it its number, which is also its group's: nobody else gets it
    # before `_stop` is done with it.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the hook and all of its process group, politely at first."""
    assert process.stdout is not None
    _signal(process, signal.SIGTERM)
    until = time.monotonic() + KILL_AFTER_S
    while time.monotonic() < until and not _has_ended(process):
        # so that what it says on its way out doesn't hold it up
        try:
            os.read(process.stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            pass
        time.sleep(0.01)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # gone, or it has become another user's (a setuid hook)
