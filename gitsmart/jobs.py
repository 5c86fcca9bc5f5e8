"""Work in another process: a service runs there, its channel is here.

    worker thread of a front process                     thread of a pool process
    --------------------------------                     ------------------------
    relay(channel, queue, job)   -- JobQueue: job, one end of a socket pair -->   perform(job, ...)
      channel.read     <-----------------------  READ n          JobChannel.read
                       ----------------------->  BODY
      channel.write    <-----------------------  DATA, MORE      JobChannel.write, flush
      channel.promise  <-----------------------  PROMISE         JobChannel.promise
      on_note          <-----------------------  NOTE            JobChannel.note
      returns, raises  <-----------------------  DONE, FAILED    what the service returned or raised

A frame is its kind (1 byte), a number (4 bytes: the payload's length; for READ, how many bytes are wanted),
and the payload. The pool process asks and the front does what it asks, one thing at a time: so time-outs,
keepalives, bounds and the open status are those of the front's pipes (workers.py), and the socket adds its
two kernel buffers to what is queued.

Who goes is noticed by the socket's end. The client: the front closes its sending half, and the service's
next `read`, `write` or `check` raises `Disconnected`; what the service still tells is listened to, as its
work may be done. The front: the same. The pool process: `JobLost`, so a client gets a 503, or a cut
connection.

The queue is one socket pair whose ends all processes inherit. The kernel gives each job to one taker; one
that has work already lets others go first. Nothing here has a name in the file system, and whoever can write
into the queue could as well be us: so pickle is as safe as the memory of the process.

`held` decides what work is too long for a thread: see there. What the work is, is none of this module's
business.
"""

import contextlib
import logging
import math
import os
import pickle
import select
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from gitsmart.errors import Disconnected, TimedOut, Unavailable
from gitsmart.workers import GATHER_BYTES, WorkerChannel

__all__ = ["HeldChannel", "JobChannel", "JobLost", "JobQueue", "Moved", "relay", "run_held", "take_jobs"]

T = TypeVar("T")
Perform = Callable[[Any, "JobChannel"], object]

logger = logging.getLogger(__name__)

_FRAME: Final = struct.Struct("!cI")
_READ, _BODY, _DATA, _MORE, _FLUSH, _KEEPALIVE, _PROMISE, _NOTE, _DONE, _FAILED = (
    b"R", b"B", b"D", b"M", b"F", b"K", b"P", b"N", b"X", b"E",
)  # fmt: skip
_KEEPALIVE_HEAD: Final = struct.Struct("!d")
_SIZE: Final = struct.Struct("!Q")

BLOCK_BYTES: Final = 256 << 10
"""The largest payload: what one READ asks for, and the largest piece of the response."""

MOST_PIECES: Final = 1000
"""In one frame; the system takes 1024 (IOV_MAX)."""

CHECK_INTERVAL_S: Final = 0.02
"""How often `JobChannel.check` looks at its socket; services call it for each object."""

GATHER_S: Final = 0.02
"""For how long small writes are gathered into one frame while keepalive is on: what there is goes first."""

QUEUE_RETRY_S: Final = 0.02

LET_OTHERS_GO_S: Final = 0.002
"""How long a pool process waits, for each job that it has, before it takes another: idle ones come first."""

RECYCLE_BYTES: Final = 256 << 20
"""A pool process that holds more memory of its own than this when it has nothing to do makes room for a new
one."""


class JobLost(Unavailable):
    """The process that did the work ended in the midst of it."""


class Moved(Disconnected):
    """The work goes on elsewhere, from its beginning: as for a client that left, end and clean up."""


class JobQueue:
    """How jobs come from front processes to pool processes. Made before any of them; each closes one end."""

    def __init__(self) -> None:
        self._taker, self._giver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def close_giver(self) -> None:
        """Give no more. When no process can, takers see the end."""
        self._giver.close()

    def close_taker(self) -> None:
        """Take no more."""
        self._taker.close()

    def give(self, payload: bytes, end: socket.socket, check: Callable[[], None]) -> None:
        """Queue a job; blocking while the queue is full.

        Raises:
            Unavailable: nobody will ever take it.
            Exception: what `check` raises while there is no room.
        """
        while True:
            try:
                socket.send_fds(self._giver, [payload], [end.fileno()], socket.MSG_DONTWAIT)
                return
            except BlockingIOError:
                check()
                time.sleep(QUEUE_RETRY_S)
            except OSError as error:
                raise Unavailable("there is no process to do this") from error

    def take(self) -> tuple[bytes, socket.socket] | None:
        """Return the next job and the socket that it is done over; None at the end.

        Raises:
            BlockingIOError: there is none now.
        """
        payload, fds, _, _ = socket.recv_fds(self._taker, 1 << 16, 1, socket.MSG_DONTWAIT)
        if not payload:
            return None
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(True)
        return payload, sock

    def fileno(self) -> int:
        """The taker's end, to poll."""
        return self._taker.fileno()


# --- frames


def _send(sock: socket.socket, kind: bytes, number: int, *pieces: bytes | bytearray | memoryview) -> None:
    parts: list[bytes | bytearray | memoryview] = [_FRAME.pack(kind, number), *pieces]
    total = sum(map(len, parts))
    sent = sock.sendmsg(parts)
    if sent < total:
        sock.sendall(memoryview(b"".join(parts))[sent:])


class _Receiver:
    """Frames from a socket, through one buffer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray(BLOCK_BYTES)
        self._head = bytearray(_FRAME.size)

    def head(self) -> tuple[bytes, int] | None:
        """The next frame's kind and number; None when the other side has gone."""
        return _FRAME.unpack(self._head) if self._fill(memoryview(self._head)) else None

    def payload(self, size: int) -> memoryview | None:
        """The frame's payload, good until the next is asked for; None when the other side has gone."""
        view = memoryview(self._buffer if size <= BLOCK_BYTES else bytearray(size))[:size]
        return view if self._fill(view) else None

    def _fill(self, view: memoryview) -> bool:
        at = 0
        try:
            while at < len(view):
                got = self._sock.recv_into(view[at:])
                if not got:
                    return False
                at += got
        except OSError:
            return False
        return True


# --- the pool's side


class JobChannel:
    """A service's channel whose other end is in a front process; see `gitsmart.service.channel.Channel`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._receiver = _Receiver(sock)
        self._body: bytes = b""
        self._at = 0
        self._body_ended = False
        self._gathered = bytearray()
        self._next_look = 0.0
        self._cross_at = math.inf
        self._gone: Disconnected | None = None

    def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes of the request body; b"" at its end. Raises: Disconnected."""
        if self._at == len(self._body):
            if self._body_ended:
                return b""
            self._frame(_READ, BLOCK_BYTES)
            head = self._receiver.head()
            payload = self._receiver.payload(head[1]) if head is not None else None
            if payload is None:
                raise self._leave()
            self._body, self._at = bytes(payload), 0
            self._body_ended = not self._body
        data = self._body[self._at : self._at + n]
        self._at += len(data)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` to the client; blocks while it is slow. Raises: Disconnected."""
        if len(self._gathered) + len(data) < GATHER_BYTES and time.monotonic() < self._cross_at:
            self._gathered += data
            return
        self.check()
        gathered, self._gathered = self._gathered, bytearray()
        view = memoryview(data).cast("B")
        while len(gathered) + len(view) > BLOCK_BYTES:
            room = BLOCK_BYTES - len(gathered)
            self._frame(_MORE, BLOCK_BYTES, gathered, view[:room])
            gathered, view = bytearray(), view[room:]
        self._frame(_DATA, len(gathered) + len(view), gathered, view)

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send `parts`, one behind the other, without a copy of them here. Raises: Disconnected."""
        self.check()
        self._cross()
        batch: list[bytes | memoryview] = []
        size = 0
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                piece = view[: BLOCK_BYTES - size]
                batch.append(piece)
                size += len(piece)
                view = view[len(piece) :]
                if size == BLOCK_BYTES or len(batch) == MOST_PIECES:
                    self._frame(_MORE, size, *batch)
                    batch, size = [], 0
        self._frame(_DATA, size, *batch)

    def flush(self) -> None:
        """Have all that was written cross now. Raises: Disconnected."""
        self._cross()
        self._frame(_FLUSH, 0)

    def check(self) -> None:
        """Raise `Disconnected` if the client has gone. Cheap enough to be called for each object."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + CHECK_INTERVAL_S
        if self._gone is not None:
            raise self._gone
        try:
            ended = not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        if ended:
            raise self._leave()
        if now >= self._cross_at:
            self._cross()

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """Have `packet` sent whenever nothing was sent for `interval_s`; b"" switches it off."""
        self._cross()  # a packet may not come before what was written before
        self._frame(_KEEPALIVE, _KEEPALIVE_HEAD.size + len(packet), _KEEPALIVE_HEAD.pack(interval_s), packet)
        self._cross_at = 0.0 if packet else math.inf

    def promise(self, size: int) -> None:
        """Say that exactly `size` more bytes will be written. Raises: Disconnected."""
        self._cross()
        self._frame(_PROMISE, _SIZE.size, _SIZE.pack(size))

    def note(self, name: bytes) -> None:
        """Tell the front `name`, before what is written next."""
        self._cross()
        self._frame(_NOTE, len(name), name)

    def end(self, result: object, error: BaseException | None) -> None:
        """Tell how it ended. Raises nothing: there may be nobody to tell."""
        with contextlib.suppress(Disconnected):
            self._cross()
            payload = pickle.dumps(result) if error is None else _pickled(error)
            self._frame(_DONE if error is None else _FAILED, len(payload), payload)

    def _cross(self) -> None:
        """Let the front have what is gathered, which decides when the client gets it."""
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._frame(_DATA, len(gathered), gathered)

    def _frame(self, kind: bytes, number: int, *pieces: bytes | bytearray | memoryview) -> None:
        if self._cross_at < math.inf:
            self._cross_at = time.monotonic() + GATHER_S
        try:
            _send(self._sock, kind, number, *pieces)
        except OSError:
            raise self._leave() from None

    def _leave(self) -> Disconnected:
        self._next_look = 0.0
        self._gone = self._gone or Disconnected("the client has gone")
        return self._gone


class _RemoteTraceback(Exception):
    """The cause of an error that came from another process: its traceback there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _pickled(error: BaseException) -> bytes:
    """The error and its traceback; what can't be pickled becomes a RuntimeError that says the same."""
    text = "".join(traceback.format_exception(error))
    try:
        payload = pickle.dumps((error.with_traceback(None), text))
        pickle.loads(payload)  # noqa: S301  (our own)
    except Exception:  # whatever the class of an error raises when it is taken apart, or made again
        payload = pickle.dumps((RuntimeError(repr(error)), text))
    return payload


def take_jobs(queue: JobQueue, perform: Perform, *, stop_after_s: float) -> bool:
    """Do jobs, each in a thread, until no process can give any; blocking. Returns whether all have ended.

    It returns early, when it has nothing to do, once this process has grown beyond `RECYCLE_BYTES`: let
    another take its place.
    """
    threads: set[threading.Thread] = set()
    poll = select.poll()
    poll.register(queue.fileno(), select.POLLIN)
    while True:
        threads = {thread for thread in threads if thread.is_alive()}
        if threading.active_count() == 1 and _own_bytes() > RECYCLE_BYTES:
            return True
        if not poll.poll(1000 if threading.active_count() > 1 else None):
            continue
        if threads:
            time.sleep(LET_OTHERS_GO_S * len(threads))
        try:
            taken = queue.take()
        except BlockingIOError:
            continue
        if taken is None:
            break
        thread = threading.Thread(target=_do, args=(perform, *taken), name="gitsmart-job", daemon=True)
        threads.add(thread)
        thread.start()
    deadline = time.monotonic() + stop_after_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _do(perform: Perform, payload: bytes, sock: socket.socket) -> None:
    with sock:
        channel = JobChannel(sock)
        try:
            result = perform(pickle.loads(payload), channel)  # noqa: S301  (from a process of ours)
        except BaseException as error:
            channel.end(None, error)
        else:
            channel.end(result, None)


def _own_bytes() -> int:
    """Resident memory that no file backs."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            fields = file.read().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")


# --- the front's side


def relay(
    channel: WorkerChannel,
    queue: JobQueue,
    job: object,
    *,
    on_note: Callable[[bytes], None],
    replay: bytes = b"",
) -> Any:
    """Have `job` done by a pool process over this channel; return what it returned. Blocking.

    Args:
        job: what can be pickled, in less than 64 KiB: bytes, paths and frozen dataclasses.
        on_note: hears what the job notes (`JobChannel.note`), before the bytes that follow it cross.
        replay: what of the request was read already.

    Raises:
        JobLost: the process died. Unavailable: there is none.
        Disconnected, TimedOut: as the channel's.
        Exception: what the job raised.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            queue.give(pickle.dumps(job), theirs, channel.check)
        channel.on_break(partial(_close_half, ours))
        try:
            return _Relay(channel, ours, on_note, replay).run()
        finally:
            channel.on_break(None)


def _close_half(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


class _Relay:
    """Does with a channel what a job asks for."""

    def __init__(
        self, channel: WorkerChannel, sock: socket.socket, on_note: Callable[[bytes], None], replay: bytes
    ) -> None:
        self._channel = channel
        self._sock = sock
        self._receiver = _Receiver(sock)
        self._on_note = on_note
        self._replay = replay
        self._gone: Disconnected | None = None

    def run(self) -> Any:
        while (head := self._receiver.head()) is not None:
            kind, number = head
            if kind == _READ:
                self._attempt(partial(self._read, number))
                continue
            payload = self._receiver.payload(number)
            if payload is None:
                break
            if kind == _DATA:
                self._attempt(partial(self._channel.write, payload))
            elif kind == _MORE:
                self._attempt(partial(self._channel.write, payload, more=True))
            elif kind == _FLUSH:
                self._attempt(self._channel.flush)
            elif kind == _KEEPALIVE:
                (interval_s,) = _KEEPALIVE_HEAD.unpack_from(payload)
                self._channel.keepalive(bytes(payload[_KEEPALIVE_HEAD.size :]), interval_s)
            elif kind == _PROMISE:
                self._channel.promise(*_SIZE.unpack(payload))
            elif kind == _NOTE:
                self._on_note(bytes(payload))
            elif kind == _DONE:
                if isinstance(self._gone, TimedOut):
                    raise self._gone
                return pickle.loads(payload)  # noqa: S301  (from a process of ours)
            else:
                assert kind == _FAILED, kind
                error, text = pickle.loads(payload)  # noqa: S301  (from a process of ours)
                if self._gone is not None and isinstance(error, Disconnected):
                    raise self._gone
                raise error from _RemoteTraceback(text)
        if self._gone is not None:
            raise self._gone
        self._channel.check()
        raise JobLost("the process that worked on this has ended unexpectedly")

    def _attempt(self, action: Callable[[], None]) -> None:
        """Act for a client that may have gone: then the job is told, and listened to till its end."""
        if self._gone is not None:
            return
        try:
            action()
        except Disconnected as error:
            self._gone = error
            _close_half(self._sock)

    def _read(self, n: int) -> None:
        if self._replay:
            pieces, self._replay = [self._replay[:n]], self._replay[n:]
        else:
            pieces = self._channel.read_pieces(n)
        with contextlib.suppress(OSError):  # the process that asked has died: noticed at the next frame
            _send(self._sock, _BODY, sum(map(len, pieces)), *pieces)


# --- here or there?

HELD_CPU_S: Final = 0.15
"""The CPU seconds that a service may use in a front process before its first bytes cross. Threads share one
interpreter lock, so this is about what others feel; and it is lost when the work moves."""

HELD_WORK_S: Final = 0.3
"""The CPU seconds that the process may use while it waits for a thread that works for it: that one's, and
those of others in its way. Not seconds of the clock: on a busy machine they say nothing."""

HELD_BYTES: Final = 256 << 10
"""A service that has written this much within its time stays: what streams that fast (a cached pack) takes
little of the lock."""

HELD_REQUEST_BYTES: Final = 1 << 20
"""A request that is larger moves: to parse it is work, and it has to be kept until it's clear who answers."""

HELD_WAIT_S: Final = 1.0
"""A service that mostly waited this long (for another that makes the same pack, say) stays, too, so that
keepalives can cross."""


class HeldChannel:
    """A channel that holds the response back until it's clear that its service is no long work.

    The first of these settles it, and from then on this is the inner channel:

        it has ended, or has written `HELD_BYTES`, or has waited for `HELD_WAIT_S`       it stays
        it has used `HELD_CPU_S`, or its request has `HELD_REQUEST_BYTES`                `Moved`: it begins
                                                                                         anew elsewhere

    So only for services that can begin anew: those that change nothing.
    """

    def __init__(self, inner: WorkerChannel) -> None:
        self._inner = inner
        self._settled = False
        self._flushed = False
        self._keepalive: tuple[bytes, float] | None = None
        self._length: int | None = None
        self._response = bytearray()
        self._began_cpu = time.thread_time()
        self._began = time.monotonic()
        self._began_work = 0.0
        self.request = bytearray()
        """What was read of the request."""

    def read(self, n: int) -> bytes:
        """See `Channel.read`; raises `Moved`, too, as do all methods here."""
        if self._settled:
            return self._inner.read(n)
        self._look()
        data = self._inner.read(n)
        self.request += data
        if len(self.request) > HELD_REQUEST_BYTES:
            self.move()
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `Channel.write`."""
        if self._settled:
            self._inner.write(data)
            return
        self._response += data
        if len(self._response) >= HELD_BYTES:
            self.settle()
        else:
            self._look()

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """See `Channel.write_all`."""
        if not self._settled and sum(map(len, parts)) + len(self._response) < HELD_BYTES:
            self._response += b"".join(parts)
            self._look()
            return
        self.settle()
        self._inner.write_all(parts)

    def flush(self) -> None:
        """See `Channel.flush`."""
        if self._settled:
            self._inner.flush()
            return
        self._flushed = True
        self._look()

    def promise(self, size: int) -> None:
        """See `Channel.promise`."""
        if self._settled:
            self._inner.promise(size)
        elif self._keepalive is None:
            self._length = len(self._response) + size

    def check(self) -> None:
        """See `Channel.check`."""
        self._inner.check()
        if not self._settled:
            self._look()

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """See `Channel.keepalive`."""
        if self._settled:
            self._inner.keepalive(packet, interval_s)
        else:
            self._keepalive = (packet, interval_s)

    def move(self) -> None:
        """Have the work done elsewhere, unless it is settled that it stays. Raises: Moved."""
        if not self._settled:
            raise Moved("the work is done elsewhere")

    def count_waiting(self) -> None:
        """From now on another thread works for this one: waiting for it counts as work."""
        self._began_work = self._began_work or time.process_time()

    def _look(self) -> None:
        now = time.monotonic()
        if self._began_work and time.process_time() - self._began_work >= HELD_WORK_S:
            self.move()
        cpu = time.thread_time() - self._began_cpu
        if cpu >= HELD_CPU_S:
            self.move()
        if (self._flushed or self._keepalive) and now - self._began - 3 * cpu >= HELD_WAIT_S:
            self.settle()

    def settle(self) -> None:
        """Stay: let what was written cross."""
        if self._settled:
            return
        self._settled = True
        response, self._response, self.request = self._response, bytearray(), bytearray()
        if self._length is not None:
            self._inner.promise(self._length)
        if response:
            self._inner.write(response)
        if self._flushed:
            self._inner.flush()
        if self._keepalive is not None:
            self._inner.keepalive(*self._keepalive)


def run_held(
    service: Callable[[HeldChannel], T],
    elsewhere: Callable[[WorkerChannel, bytes], T],
    channel: WorkerChannel,
) -> T:
    """Run `service` here if it is short, else `elsewhere`: that gets what was read of the request."""
    held = HeldChannel(channel)
    try:
        result = service(held)
    except Moved:
        return elsewhere(channel, bytes(held.request))
    held.settle()
    return result
