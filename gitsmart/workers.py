"""The seam: the only module that knows both coroutines and threads.

    event loop                                            worker thread
    ----------                                            -------------
    Exchange.feed ----> request pipe, 512 KiB  ---------> Channel.read
    send(piece)  <----  response pipe, 512 KiB <--------- Channel.write, flush
    Exchange.abort ---> both break at once     ---------> Disconnected from read, write, check

`Workers.run(service, exchange, send)` owns both pipes on every path: end, error, disconnect, cancellation. A
handler feeds what it receives, and is told what to send; it never closes a pipe.

Rules that hold here:

1. A full pipe makes its writer wait. `feed` returns an awaitable when the request pipe is full; `write`
   blocks.
2. Nothing crosses before there is a reason: writes are gathered to 64 KiB, unless flushed. So the first call
   of `send` is the moment where the status is decided; a service that fails before it leaves the status open.
3. What the service wrote is cut where it suits the pipe, but a keepalive packet lands only where no write is
   half across, so never inside a pkt-line.
4. One lock per exchange, held for list operations only. Wake-ups of the loop are coalesced: one callback is
   under way at most, however many writes happened.
5. The loop yields at least every 256 KiB that it copies (measured: without, one fast clone held the loop for
   60 to 240 ms at a stretch; with it 5 to 9 ms).

What does not belong here: what the bytes mean. Queue limits per user or repository are for whoever calls
`run`.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar, cast

from gitsmart.errors import Disconnected, GitsmartError, TimedOut, Unavailable

__all__ = ["Exchange", "Send", "WorkerChannel", "Workers"]

T = TypeVar("T")

PIPE_BYTES: Final = 512 << 10
"""Bytes queued in one direction before its writer waits. Both directions, one piece on its way to the socket
and one in the connection's read buffer stay below 2 MiB together."""

GATHER_BYTES: Final = 64 << 10
"""Writes are gathered up to this before they cross; also the largest piece that crosses at once."""

SMALL_BYTES: Final = 8 << 10
"""Smaller pieces are copied together: a list of tiny objects would take many times the memory that the bound
says."""

YIELD_BYTES: Final = 256 << 10

DIRECT_BYTES: Final = 256 << 10
"""What is written at once of this size and more goes to the network from the worker's thread, where that is
possible: it takes two wake-ups of threads, some 100 us."""

WAIT_S: Final = 1.0
"""Between two looks whether anything moves."""

CALL_THREADS: Final = 8
"""Threads for short calls (passwords, lookups), apart from those of the services: a server whose services
are all busy still says who may come in. Pulled out of the air; such a call takes milliseconds, or one
bcrypt."""


class Send(Protocol):
    """How a piece of the response reaches the network: returns when it has been handed to the socket.

    `last` is True when the service ended well and this is all that was left; so a response of one piece can
    have a Content-Length. Raises `Disconnected` when the client has gone.
    """

    def __call__(self, data: bytes, *, last: bool) -> Awaitable[None]: ...


class Loan(Protocol):
    """The right to send so many bytes straight to the network, from the worker's thread."""

    def send(
        self, parts: Sequence[bytes | memoryview], *, timeout_s: float, check: Callable[[], None]
    ) -> None:
        """Send them all; blocking. Raises `Disconnected`, and what `check` does."""
        ...

    def cancel(self) -> None:
        """Make `send` end soon, in any thread."""
        ...


Lend = Callable[[int], Awaitable[Loan | None]]
"""Lends the connection for so many bytes, once all that was given to `Send` has gone; None: not this one."""


class _LoanRequest:
    """A worker waits to be lent the connection, then uses it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loan: Loan | None = None
        self.is_decided = False
        self.is_over = False


class _Pipe:
    """A queue of bytes; the lock is its owner's. `size` is what is queued, `high` the most that ever was."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self._at = 0  # bytes of the first piece that were taken already
        self.size = 0
        self.high = 0
        self.taken = 0  # bytes ever taken: how a waiting writer sees that the other side moves

    def put(self, data: bytes | bytearray | memoryview) -> None:
        n = len(data)
        if n == 0:
            return
        if n >= SMALL_BYTES:
            self._pieces.append(bytes(data))
        else:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, bytearray) and len(last) < GATHER_BYTES:
                last += data
            else:
                self._pieces.append(bytearray(data))
        self.size += n
        self.high = max(self.high, self.size)

    def take(self, n: int) -> bytes:
        """Return 1 to `n` bytes; b"" when there are none."""
        if not self._pieces:
            return b""
        first = self._pieces[0]
        if self._at == 0 and len(first) <= n:
            self._pieces.popleft()
            data = bytes(first)
        else:
            end = min(self._at + n, len(first))
            data = bytes(memoryview(first)[self._at : end])
            if end == len(first):
                self._pieces.popleft()
                self._at = 0
            else:
                self._at = end
        self.size -= len(data)
        self.taken += len(data)
        return data

    def clear(self) -> None:
        self._pieces.clear()
        self._at = 0
        self.size = 0


class Exchange:
    """The loop's side of one request: both pipes. Make it with `Workers.exchange`, in the event loop's
    thread.

    Attributes:
        started: a piece was given to `send`, so the status is decided.
        length: of the whole response, when the service promised it before any of it was given to `send`.
        broken: why the pipes broke before the service had ended; None while all is well.
        bytes_in, bytes_out: what was fed, and what was given to `send`.
    """

    def __init__(self, *, pipe_bytes: int = PIPE_BYTES, idle_timeout_s: float = 300.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe_bytes = pipe_bytes
        self._idle_timeout_s = idle_timeout_s
        self._lock = threading.Lock()
        self._can_read = threading.Condition(self._lock)
        self._can_write = threading.Condition(self._lock)
        # what follows is guarded by the lock
        self._request = _Pipe()
        self._request_ended = False
        self._response = _Pipe()
        self._response_ended = False
        self._failed = False
        self._outcome: tuple[bool, object] | None = None  # set before `_response_ended`
        self._flushed = False  # all that is queued may cross, however little it is
        self._splitting = False  # a write is half across
        self._keepalive: tuple[bytes, float] | None = None
        self._wake_scheduled = False
        self._loop_waits = False
        self._on_break: Callable[[], None] | None = None
        # and this is the loop's alone
        self._room: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._pump_task: asyncio.Task[None] | None = None
        self.lend: Lend | None = None
        """Where the connection can be lent to the worker; set it before `run`."""
        self._wanted: _LoanRequest | None = None  # guarded by the lock, as what is in it
        self.broken: Disconnected | None = None
        self.started = False
        self.length: int | None = None  # set before `started`
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def request_high_bytes(self) -> int:
        """The most bytes of the request body that were queued at once."""
        return self._request.high

    @property
    def response_high_bytes(self) -> int:
        """The most bytes of the response that were queued at once."""
        return self._response.high

    # -- the loop's face

    def feed(self, data: bytes) -> Awaitable[None] | None:
        """Queue `data` (best no more than 64 KiB) of the request body; None, or what to wait for before
        feeding more.

        Nothing is lost when the caller doesn't wait, but then nothing bounds the pipe either. When nobody
        will read it (the service has ended, or the pipes are broken) the data is dropped.
        """
        self.bytes_in += len(data)
        with self._lock:
            if self.broken is not None or self._response_ended:
                return None
            self._request.put(data)
            self._can_read.notify()
            if self._request.size < self._pipe_bytes:
                return None
            if self._room is None or self._room.done():
                self._room = self._loop.create_future()
            self._loop_waits = True
            return self._room

    def feed_end(self) -> None:
        """The request body is complete."""
        with self._lock:
            self._request_ended = True
            self._can_read.notify()

    def abort(self, reason: Disconnected | None = None) -> None:
        """Break both pipes: the worker's next read, write or check raises `reason`. The first
        reason stays.
        """
        with self._lock:
            if self.broken is None:
                self.broken = reason or Disconnected("the client has gone")
            self._request.clear()
            self._response.clear()
            self._can_read.notify_all()
            self._can_write.notify_all()
            if self._wanted is not None and self._wanted.loan is not None and not self._wanted.is_over:
                self._wanted.loan.cancel()
            if self._on_break is not None:
                self._on_break()
        self._wake_now()
        if self._pump_task is not None:
            self._pump_task.cancel()

    def _wake_now(self) -> None:
        """Let both waiters of the loop look again; in the loop's thread."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    def _on_wake(self) -> None:
        with self._lock:
            self._wake_scheduled = False
            broken, ended = self.broken is not None, self._response_ended
            roomy = self._request.size <= self._pipe_bytes // 2
        if roomy or broken or ended:
            self._wake_now()
        else:
            news, self._news = self._news, None
            if news is not None and not news.done():
                news.set_result(None)
        if broken and self._pump_task is not None:
            self._pump_task.cancel()  # it may hang in `send`, at a client that does not read

    def _wake(self) -> None:
        """Have the loop look at the pipes; in the worker's thread, under the lock."""
        if self._wake_scheduled or not self._loop_waits:
            return
        self._wake_scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._on_wake)
        except RuntimeError:
            pass  # the loop is closed: the process is on its way out, and nobody waits

    async def _pump(self, send: Send) -> None:
        """Carry the response to `send` until the service has ended or the pipes broke."""
        unyielded = 0
        sent_at = self._loop.time()
        while True:
            timeout: float | None = None
            with self._lock:
                self._loop_waits = False
                data = b""
                wanted = self._wanted
                if wanted is not None and wanted.is_over:
                    wanted = self._wanted = None
                    sent_at = self._loop.time()
                is_lent = wanted is not None and wanted.is_decided
                if is_lent:
                    pass  # the worker is writing, and has nothing in the pipe
                elif self._flushed or self._response_ended or self._response.size >= GATHER_BYTES:
                    data = self._response.take(GATHER_BYTES)
                if not data and not is_lent and self._keepalive is not None:
                    packet, interval_s = self._keepalive
                    timeout = sent_at + interval_s - self._loop.time()
                    if timeout <= 0 and self._splitting:
                        timeout = interval_s
                    elif timeout <= 0:
                        # what was gathered and not flushed yet is as good a sign of life as the packet
                        data = self._response.take(GATHER_BYTES) or packet
                if not self._response.size:
                    self._flushed = False
                if self._response.size <= self._pipe_bytes // 2:
                    self._can_write.notify()
                ended = self._response_ended
                last = ended and not self._failed and not self._response.size
                if data:
                    self.started = True  # under the lock: from here on a failure comes too late for a status
                elif ended or self.broken is not None:
                    return
                elif wanted is None or is_lent:
                    self._loop_waits = True
                    news = self._news = self._loop.create_future()
            if data:
                self.bytes_out += len(data)
                await send(data, last=last)
                sent_at = self._loop.time()
                unyielded += len(data)
                if unyielded >= YIELD_BYTES:
                    unyielded = 0
                    await asyncio.sleep(0)
                if last:
                    return
            elif wanted is not None and not is_lent:
                await self._lend_to(wanted)
            else:
                try:
                    async with asyncio.timeout(timeout):
                        await news
                except TimeoutError:
                    pass
                unyielded = 0

    async def _lend_to(self, wanted: _LoanRequest) -> None:
        assert self.lend is not None
        loan = await self.lend(wanted.size) if self.started else None
        with self._lock:
            wanted.loan, wanted.is_decided = loan, True
            if loan is None:
                wanted.is_over = True
            else:
                self.bytes_out += wanted.size
                if self.broken is not None:
                    loan.cancel()
            self._can_write.notify_all()

    # -- the worker's face is WorkerChannel

    def _work(self, service: "Callable[[WorkerChannel], T]") -> T:
        """Run the service; in the worker's thread."""
        try:
            if self.broken is not None:
                raise self.broken
            result = service(WorkerChannel(self))
        except BaseException as error:
            self._outcome = (False, error)
            self._end(error)
            raise
        self._outcome = (True, result)
        self._end(None)
        return result

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            self._failed = error is not None
            # A failure before the first byte has crossed leaves the status open, so what was gathered is
            # void. After it, what a service wrote to explain itself (ERR, band 3) still goes out; a crash
            # explains nothing.
            if error is not None and not (self.started and isinstance(error, GitsmartError)):
                self._response.clear()
            if isinstance(error, TimedOut) and self.broken is None:
                self.broken = error
            self._response_ended = True
            self._request.clear()
            self._loop_waits = True
            self._wake()

    def _close(self) -> None:
        """Leave nothing behind, whatever happened; in the loop's thread."""
        self._pump_task = None
        if not self._response_ended:
            self.abort()
        with self._lock:
            self._request.clear()
            self._response.clear()
        self._wake_now()


class WorkerChannel:
    """The worker's side of one request; see `gitsmart.service.channel.Channel`. Used by one thread at a
    time."""

    def __init__(self, exchange: Exchange) -> None:
        self._x = exchange

    def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes of the request body as soon as any are there; b"" at its end.

        Raises:
            Disconnected: the client has gone.
            TimedOut: it sent nothing for the idle time-out.
        """
        x = self._x
        with x._lock:
            while True:
                if x.broken is not None:
                    raise x.broken
                data = x._request.take(n)
                if data:
                    if x._room is not None and x._request.size <= x._pipe_bytes // 2:
                        x._loop_waits = True
                        x._wake()
                    return data
                if x._request_ended:
                    return b""
                if not x._can_read.wait(x._idle_timeout_s) and not (
                    x._request.size or x._request_ended or x.broken
                ):
                    raise TimedOut(f"nothing was received for {x._idle_timeout_s:g} seconds")

    def read_pieces(self, n: int) -> list[bytes]:
        """Return the pieces that are there, 1 to `n` bytes in all; none at the body's end. Else as `read`."""
        data = self.read(n)
        pieces = []
        while data:
            pieces.append(data)
            n -= len(data)
            with self._x._lock:
                data = self._x._request.take(n) if n else b""
        return pieces

    def write(self, data: bytes | bytearray | memoryview, *, more: bool = False) -> None:
        """Queue `data` for the client; wait while the pipe is full. `data` is copied unless it is immutable.

        Args:
            more: the next call goes on with the same write, so that no keepalive packet may come between.

        Raises:
            Disconnected: the client has gone.
            TimedOut: it read nothing for the idle time-out.
        """
        x = self._x
        if len(data) <= GATHER_BYTES:
            with x._lock:
                x._splitting = more
                self._put(data)
            return
        rest = memoryview(data).cast("B")
        try:
            while rest:
                with x._lock:
                    x._splitting = more or len(rest) > GATHER_BYTES
                    self._put(rest[:GATHER_BYTES])
                rest = rest[GATHER_BYTES:]
        finally:
            x._splitting = more

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        x = self._x
        pipe = x._response
        while x.broken is None and pipe.size and pipe.size + len(data) > x._pipe_bytes:
            taken = pipe.taken
            if not x._can_write.wait(x._idle_timeout_s) and pipe.taken == taken and x.broken is None:
                raise TimedOut(f"nothing was read for {x._idle_timeout_s:g} seconds")
        if x.broken is not None:
            raise x.broken
        pipe.put(data)
        if pipe.size >= GATHER_BYTES:
            x._wake()

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Queue `parts`, one behind the other, as `write` does; no keepalive lands between two of them."""
        x = self._x
        size = sum(map(len, parts))
        if x.lend is not None and size >= DIRECT_BYTES and self._send_direct(parts, size):
            return
        gathered: list[bytes | memoryview] = []
        size = 0
        try:
            for part in parts:
                if gathered and size + len(part) > GATHER_BYTES:
                    with x._lock:
                        x._splitting = True
                        self._put(b"".join(gathered))
                    gathered.clear()
                    size = 0
                gathered.append(part)
                size += len(part)
            self.write(b"".join(gathered))
        finally:
            x._splitting = False

    def _send_direct(self, parts: Sequence[bytes | memoryview], size: int) -> bool:
        """Send on the connection itself, behind all that was written; False when it is not to be had."""
        x = self._x
        wanted = _LoanRequest(size)
        with x._lock:
            if x.broken is not None:
                raise x.broken
            x._wanted = wanted
            x._flushed = x._response.size > 0
            x._wake()
            waited_s, taken = 0.0, x._response.taken
            while not wanted.is_decided and x.broken is None:
                if x._can_write.wait(WAIT_S) or x._response.taken != taken:
                    waited_s, taken = 0.0, x._response.taken
                    continue
                waited_s += WAIT_S
                if waited_s >= x._idle_timeout_s:
                    raise TimedOut(f"nothing was read for {x._idle_timeout_s:g} seconds")
            if x.broken is not None:
                raise x.broken
            loan = wanted.loan
        if loan is None:
            return False
        try:
            loan.send(parts, timeout_s=x._idle_timeout_s, check=self.check)
        finally:
            with x._lock:
                wanted.is_over = True
                x._loop_waits = True
                x._wake()
        return True

    def flush(self) -> None:
        """Let all that was written cross now, however little it is."""
        x = self._x
        with x._lock:
            if x.broken is not None:
                raise x.broken
            if x._response.size:
                x._flushed = True
                x._wake()

    def promise(self, size: int) -> None:
        """Say that exactly `size` more bytes will be written, and keepalive stays off."""
        x = self._x
        with x._lock:
            if not x.started and x._keepalive is None:
                x.length = x._response.size + size

    def check(self) -> None:
        """Raise `Disconnected` if the client has gone."""
        if self._x.broken is not None:
            raise self._x.broken

    def on_break(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when the client goes, or now if it has: for a worker that waits elsewhere.

        It is called in any thread, maybe more than once, and must neither block nor use this channel. None:
        no more, and none is under way when this returns.
        """
        with self._x._lock:
            self._x._on_break = callback
            if callback is not None and self._x.broken is not None:
                callback()

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        """From now on send `packet` whenever nothing was sent for `interval_s`; b"" switches it off."""
        x = self._x
        with x._lock:
            x._keepalive = (packet, interval_s) if packet else None
            x._wake()


class Workers:
    """The threads of one process: make it once, in any thread; use it from one event loop.

    Services wait their turn first come, first served; one whose client left while it waited is dropped.
    """

    def __init__(
        self, *, threads: int = 64, pipe_bytes: int = PIPE_BYTES, idle_timeout_s: float = 300.0
    ) -> None:
        """
        Args:
            threads: services that run at once; further ones wait.
            pipe_bytes: what one direction of one request may queue.
            idle_timeout_s: how long a worker waits for a client to send, or to read, anything.
        """
        self._pipe_bytes = pipe_bytes
        self._threads = threads
        self._idle_timeout_s = idle_timeout_s
        self._services = ThreadPoolExecutor(threads, thread_name_prefix="gitsmart-service")
        self._calls = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="gitsmart-call")
        self._running: set[Exchange] = set()
        self._closed = False
        self.high_bytes = 0
        """The most that any one request ever queued, both directions added."""

    @property
    def running(self) -> int:
        """How many `run` calls are under way, waiting ones included."""
        return len(self._running)

    @property
    def is_busy(self) -> bool:
        """Whether another service may have to wait its turn: then it's better to know first who asks."""
        return 2 * len(self._running) >= self._threads

    def exchange(self) -> Exchange:
        """Make the pipes of one request."""
        return Exchange(pipe_bytes=self._pipe_bytes, idle_timeout_s=self._idle_timeout_s)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a short blocking call in a thread and return its result.

        Raises:
            Unavailable: the workers are closed.
            Exception: whatever the function raised.
        """
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._calls, function, *args)

    async def run(self, service: Callable[[WorkerChannel], T], exchange: Exchange, send: Send) -> T:
        """Run `service` in a worker over `exchange`'s pipes, giving the response to `send` piece by piece.

        Returns what the service returned, once all it wrote was sent, or at once when the client left
        meanwhile (then `exchange.broken` is set, but the service has done its work). Before it returns or
        raises the worker is done with the pipes, and they are empty; only cancellation doesn't wait for the
        worker, which then meets `Disconnected`.

        Raises:
            Disconnected: the client left, or was silent for too long, and the service noticed.
            Unavailable: the workers are closed.
            Exception: whatever the service raised. While `exchange.started` is False nothing was sent, and
            the status
                is still open.
        """
        self._check_open()
        self._running.add(exchange)
        job: Future[T] = self._services.submit(exchange._work, service)
        pump = exchange._pump_task = asyncio.create_task(exchange._pump(send))
        failure: Exception | None = None
        try:
            try:
                await pump
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if exchange.broken is None or (task is not None and task.cancelling()):
                    raise
            except Disconnected as error:
                exchange.abort(error)
            except Exception as error:
                exchange.abort()
                failure = error
            if exchange.broken is not None and job.cancel():
                raise failure or exchange.broken
            try:
                result = await self._result_of(job, exchange)
            except Exception:
                if failure is not None:
                    raise failure from None
                raise
            if failure is not None:
                raise failure
            return result
        finally:
            job.cancel()
            exchange._close()
            self._running.discard(exchange)
            self.high_bytes = max(self.high_bytes, exchange.request_high_bytes + exchange.response_high_bytes)

    @staticmethod
    async def _result_of(job: "Future[T]", exchange: Exchange) -> T:
        """What the service returned or raised: it's there when the response has ended."""
        outcome = exchange._outcome
        if outcome is None:
            return await asyncio.wrap_future(job)
        is_well, value = outcome
        if not is_well:
            assert isinstance(value, BaseException)
            raise value
        return cast(T, value)

    def abort_all(self, reason: Disconnected | None = None) -> None:
        """Break the pipes of every request under way."""
        for exchange in tuple(self._running):
            exchange.abort(reason)

    def join(self, timeout_s: float) -> bool:
        """Wait until every worker has ended; blocking, for the end of the process. False: one still runs.

        A thread that runs on keeps the interpreter from exiting.
        """
        threads = [*self._services._threads, *self._calls._threads]
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the server is shutting down")

    def close(self) -> None:
        """Take no more work, drop what waits, break what runs; doesn't wait."""
        self._closed = True
        self.abort_all()
        self._services.shutdown(wait=False, cancel_futures=True)
        self._calls.shutdown(wait=False, cancel_futures=True)
