"""Several processes that serve together: forked from one that only watches over them.

    supervisor ---fork---> front 1 .. N     accept connections from one shared socket
               ---fork---> pool 1 .. N      do what is too long for a thread of a front (jobs.py)
               ---fork---> sweep            once after a process has died, to clear away what it left

One thread, no event loop, no sockets of clients: so what it holds is as it was at the start, and a fork of it
at any later time is as good as the first. Each child has a socket to it:

    child -> supervisor    "r": I serve
    supervisor -> child    "d": drain;  "c": cut off what still runs;  its end: the supervisor has gone, drain

A child doesn't act on signals. A terminal's SIGINT and systemd's SIGTERM reach every process of the group,
and the supervisor alone may know whether that was the first or the second.

A child that dies is replaced, at once at first, and then the slower the more often it happens. The supervisor
has no other work: when it dies itself the fronts drain, and with the last of them the pool ends (jobs.py).
"""

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gitsmart.errors import GitsmartError

__all__ = ["CUT", "DRAIN", "READY", "Role", "StartFailed", "Supervisor", "stop_signals"]

logger = logging.getLogger(__name__)

READY: Final = b"r"
DRAIN: Final = b"d"
CUT: Final = b"c"

RESTART_WINDOW_S: Final = 10.0
RESTARTS_AT_ONCE: Final = 5
"""So many deaths within the window cost nothing; after them a replacement waits, twice as long each time."""

RESTART_DELAYS_S: Final = (1.0, 30.0)
POOL_ENDS_WITHIN_S: Final = 5.0
"""After the last front has ended, the pool has nobody to work for."""


class StartFailed(GitsmartError):
    """A process ended before it served."""


def stop_signals() -> list[signal.Signals]:
    """The signals that end a server; not SIGHUP where it is ignored, as under nohup."""
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


@dataclass(frozen=True, slots=True)
class Role:
    """Processes of one kind. `main` runs in the child, with the child's end of its socket, and returns its
    exit status."""

    name: str
    count: int
    main: Callable[[socket.socket], int]
    is_front: bool


@dataclass(slots=True, eq=False)
class _Child:
    role: Role
    pid: int
    control: socket.socket
    ready: bool = False


@dataclass(slots=True)
class _Restarts:
    """When the next replacement may start."""

    deaths: deque[float] = field(default_factory=deque)
    delay_s: float = RESTART_DELAYS_S[0]

    def wait_s(self, now: float) -> float:
        """Note a death; how long its replacement is to wait."""
        while self.deaths and now - self.deaths[0] > RESTART_WINDOW_S:
            self.deaths.popleft()
        self.deaths.append(now)
        if len(self.deaths) <= RESTARTS_AT_ONCE:
            self.delay_s = RESTART_DELAYS_S[0]
            return 0.0
        wait, self.delay_s = self.delay_s, min(self.delay_s * 2, RESTART_DELAYS_S[1])
        return wait


class Supervisor:
    """Starts, watches, replaces and ends processes; blocking, for the main thread of a process without
    others."""

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        sweep: Callable[[], None],
        on_last_front: Callable[[], None],
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        """
        Args:
            sweep: runs in a process of its own after another has died without being told to.
            on_last_front: called here when all fronts have ended, so that the pool does too.
            inherited: closed here when the server stops, and in no child: the listening sockets.
        """
        self._roles = roles
        self._sweep = sweep
        self._on_last_front = on_last_front
        self._inherited = inherited
        self._children: dict[int, _Child] = {}
        self._sweeper: int | None = None
        self._sweep_again = False
        self._due: list[tuple[float, Role]] = []
        self._restarts = _Restarts()
        self._orders = 0
        self._poll = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)

    def run(self, on_ready: Callable[[], None]) -> bool:
        """Serve until a signal says to stop. False: a process had to be killed for it.

        Raises:
            StartFailed: a process ended before all served; the others are ended, too.
        """
        gc.collect()
        gc.freeze()  # what is there now stays shared: no collection writes into it
        before = self._take_signals()
        self._poll.register(self._wake_read, selectors.EVENT_READ)
        try:
            for role in self._roles:
                for _ in range(role.count):
                    self._start(role)
            announced = False
            while self._fronts() or not self._orders:
                self._wait()
                if not announced and not self._orders:
                    if self._due:
                        raise StartFailed("a server process ended before it served")
                    if all(child.ready for child in self._children.values()):
                        announced = True
                        on_ready()
        finally:
            clean = self._end()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._poll.close()
            self._wake_read.close()
            self._wake_write.close()
        return clean

    # -- children

    def _start(self, role: Role) -> None:
        ours, theirs = socket.socketpair()
        pid = self._fork(lambda: role.main(theirs), keep=theirs, drop=ours)
        theirs.close()
        self._children[pid] = child = _Child(role, pid, ours)
        self._poll.register(ours, selectors.EVENT_READ, child)
        if self._orders:
            self._order(child, DRAIN)

    def _fork(
        self, main: Callable[[], int], *, keep: socket.socket | None = None, drop: socket.socket | None = None
    ) -> int:
        with contextlib.suppress(OSError):
            sys.stdout.flush()  # else the child would have it to write, too
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in stop_signals():
                # not SIG_IGN, which hooks would inherit
                signal.signal(number, lambda number, frame: None)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._poll.close()
            for sock in (
                self._wake_read,
                self._wake_write,
                drop,
                *(c.control for c in self._children.values()),
            ):
                if sock is not None and sock is not keep:
                    sock.close()
            status = main()
        except BaseException:
            logger.exception("a server process failed")
        finally:
            # At once, whatever threads there are: nothing that was inherited may run its end twice
            with contextlib.suppress(OSError):
                logging.shutdown()
            os._exit(status)

    def _fronts(self) -> list[_Child]:
        return [child for child in self._children.values() if child.role.is_front]

    def _order(self, child: _Child, order: bytes) -> None:
        with contextlib.suppress(OSError):  # it is about to end
            child.control.send(order, socket.MSG_DONTWAIT)

    # -- what happens

    def _take_signals(self) -> dict[int, Any]:
        before: dict[int, Any] = {}
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (*stop_signals(), signal.SIGCHLD):
            before[number] = signal.signal(number, lambda number, frame: None)
        return before

    def _wait(self, limit_s: float | None = None) -> None:
        now = time.monotonic()
        if self._due:
            due = max(0.0, min(at for at, _ in self._due) - now)
            limit_s = due if limit_s is None else min(due, limit_s)
        for key, _ in self._poll.select(limit_s):
            if key.data is None:
                self._on_signals()
            elif key.data.pid in self._children:  # not reaped a moment ago
                self._on_word(key.data)
        now = time.monotonic()
        for entry in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove(entry)
            self._start(entry[1])

    def _on_signals(self) -> None:
        try:
            numbers = self._wake_read.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number != signal.SIGCHLD:
                self._on_stop()
        self._reap()

    def _on_stop(self) -> None:
        self._orders += 1
        if self._orders == 1:
            for sock in self._inherited:
                sock.close()
            self._due = [(at, role) for at, role in self._due if not role.is_front]
        for child in self._fronts():
            self._order(child, DRAIN if self._orders == 1 else CUT)

    def _on_word(self, child: _Child) -> None:
        try:
            word = child.control.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            word = b""
        if word == READY:
            child.ready = True
        else:
            self._poll.unregister(child.control)  # it is about to end: that is told by its exit status

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._sweeper:
                self._sweeper = None
                if self._sweep_again:
                    self._start_sweep()
                continue
            child = self._children.pop(pid, None)
            if child is not None:
                self._on_end(child, os.waitstatus_to_exitcode(status))

    def _on_end(self, child: _Child, status: int) -> None:
        if child.control in self._poll.get_map():
            self._poll.unregister(child.control)
        child.control.close()
        wait_s = 0.0
        if status or (child.role.is_front and not self._orders):
            how = f"signal {-status}" if status < 0 else f"status {status}"
            fields = {"role": child.role.name, "process": child.pid, "ended": how}
            logger.warning("a server process has died", extra={"fields": fields})
            wait_s = self._restarts.wait_s(time.monotonic())
            self._start_sweep()
        if not self._orders or (not child.role.is_front and self._fronts()):
            # A process of the pool that ends with status 0 makes room for a fresh one
            self._due.append((time.monotonic() + wait_s, child.role))

    def _start_sweep(self) -> None:
        if self._sweeper is not None:
            self._sweep_again = True
            return
        self._sweep_again = False
        self._sweeper = self._fork(self._run_sweep)

    def _run_sweep(self) -> int:
        self._sweep()
        return 0

    # -- the end

    def _end(self) -> bool:
        """End everything that still runs."""
        self._orders = max(self._orders, 1)
        self._due = []
        for child in self._fronts():  # only when the start has failed
            self._order(child, DRAIN)
            self._order(child, CUT)
        self._on_last_front()
        deadline = time.monotonic() + POOL_ENDS_WITHIN_S
        while (self._children or self._sweeper) and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
        clean = not self._children
        for pid in [*self._children, *([self._sweeper] if self._sweeper else [])]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for child in self._children.values():
            child.control.close()
        self._children = {}
        return clean
