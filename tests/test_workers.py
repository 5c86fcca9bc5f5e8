"""The seam: bounded pipes, an open status, and a worker that is freed when its client leaves."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest

from gitsmart.errors import Disconnected, ProtocolError, TimedOut, Unavailable
from gitsmart.httpd.loan import Loan
from gitsmart.jobs import JobQueue, relay, take_jobs
from gitsmart.workers import GATHER_BYTES, PIPE_BYTES, Exchange, Send, WorkerChannel, Workers

T = TypeVar("T")


class Client:
    """Collects what `run` sends; `gate` holds it back, as a client that does not read."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.last: list[bool] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, data: bytes, *, last: bool) -> None:
        await self.gate.wait()
        self.pieces.append(data)
        self.last.append(last)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class JobWorkers(Workers):
    """Workers whose services run on the other side of a job queue, here in threads of the same process."""

    def __init__(self, *, threads: int = 64, idle_timeout_s: float = 300.0) -> None:
        super().__init__(threads=threads, idle_timeout_s=idle_timeout_s)
        self.queue = JobQueue()
        self.services: list[Callable[[Any], Any]] = []
        self.pool = threading.Thread(
            target=take_jobs,
            args=(self.queue, lambda number, channel: self.services[number](channel)),
            kwargs={"stop_after_s": 5.0},
            daemon=True,
        )
        self.pool.start()

    async def run(self, service: Callable[[Any], T], exchange: Exchange, send: Send) -> T:
        self.services.append(service)
        job = len(self.services) - 1
        relayed = partial(relay, queue=self.queue, job=job, on_note=lambda name: None)
        return await super().run(relayed, exchange, send)

    def close(self) -> None:
        super().close()
        self.queue.close_giver()


MakeWorkers = Callable[..., Workers]


@pytest.fixture(params=[Workers, JobWorkers], ids=["thread", "job"])
def make_workers(request: pytest.FixtureRequest) -> Iterator[MakeWorkers]:
    """What runs a service is a thread, or the pool at the other end of a job queue."""
    made: list[Workers] = []

    def make(**arguments: Any) -> Workers:
        workers: Workers = request.param(**arguments)
        made.append(workers)
        return workers

    yield make
    for workers in made:
        workers.close()
        if isinstance(workers, JobWorkers):
            workers.pool.join(10)
            assert not workers.pool.is_alive()
            workers.queue.close_taker()


@pytest.fixture
def thread_workers() -> Iterator[Workers]:
    """For what only a service in a thread does."""
    made = Workers(threads=4, idle_timeout_s=20)
    yield made
    made.close()


@pytest.fixture
def workers(make_workers: MakeWorkers) -> Workers:
    return make_workers(threads=4, idle_timeout_s=20)


async def feed_all(exchange: Exchange, data: bytes, step: int = GATHER_BYTES) -> None:
    for at in range(0, len(data), step):
        room = exchange.feed(data[at : at + step])
        if room is not None:
            await room
    exchange.feed_end()


def echo(channel: WorkerChannel) -> int:
    total = 0
    while data := channel.read(10_000):
        total += len(data)
        channel.write(data)
    return total


async def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110  (the other side is a thread)
            await asyncio.sleep(0.002)


class BackgroundRun:
    """A `run` under way."""

    def __init__(self, workers: Workers, service: Callable[[WorkerChannel], object]) -> None:
        self.exchange = workers.exchange()
        self.client = Client()
        self.task = asyncio.create_task(workers.run(service, self.exchange, self.client))


@pytest.mark.parametrize("step", [1, 999, GATHER_BYTES, 3_000_000])
def test_bytes_go_through_in_order_whatever_the_cut(workers: Workers, step: int) -> None:
    size = 20_000 if step == 1 else 3_000_000
    data = bytes(range(251)) * (size // 251)

    async def main() -> None:
        run = BackgroundRun(workers, echo)
        await feed_all(run.exchange, data, step)
        assert await run.task == len(data)
        assert run.client.body == data
        assert run.exchange.bytes_in == run.exchange.bytes_out == len(data)
        assert run.exchange.broken is None

    asyncio.run(main())


def test_pipes_are_bounded_both_ways(workers: Workers) -> None:
    data = b"x" * (8 << 20)

    async def main() -> None:
        run = BackgroundRun(workers, echo)
        run.client.gate.clear()
        feeding = asyncio.create_task(feed_all(run.exchange, data))
        await until(lambda: run.exchange.request_high_bytes >= PIPE_BYTES)
        await asyncio.sleep(0.05)
        assert not feeding.done()
        run.client.gate.set()
        await feeding
        assert await run.task == len(data)
        assert run.client.body == data
        assert PIPE_BYTES <= run.exchange.request_high_bytes < PIPE_BYTES + GATHER_BYTES
        assert run.exchange.response_high_bytes <= PIPE_BYTES
        assert workers.high_bytes < (2 << 20)

    asyncio.run(main())


def test_tiny_writes_cost_no_more_memory_than_they_count(workers: Workers) -> None:
    def many(channel: WorkerChannel) -> None:
        for _ in range(100_000):
            channel.write(b"0004")

    async def main() -> None:
        run = BackgroundRun(workers, many)
        await run.task
        assert run.client.body == b"0004" * 100_000
        assert min(len(piece) for piece in run.client.pieces[:-1]) >= GATHER_BYTES // 2

    asyncio.run(main())


def test_small_response_arrives_as_one_last_piece(workers: Workers) -> None:
    def small(channel: WorkerChannel) -> str:
        channel.write(b"0008")
        channel.write(bytearray(b"NAK\n"))
        channel.write(memoryview(b"0000"))
        return "done"

    async def main() -> None:
        run = BackgroundRun(workers, small)
        assert await run.task == "done"
        assert run.client.pieces == [b"0008NAK\n0000"]
        assert run.client.last == [True]

    asyncio.run(main())


def test_empty_response_sends_nothing(workers: Workers) -> None:
    async def main() -> None:
        run = BackgroundRun(workers, lambda channel: None)
        await run.task
        assert run.client.pieces == []
        assert not run.exchange.started

    asyncio.run(main())


def test_buffer_may_be_reused_after_write(workers: Workers) -> None:
    def reuse(channel: WorkerChannel) -> None:
        buffer = bytearray(100_000)
        for i in range(8):
            buffer[:] = bytes([i]) * len(buffer)
            channel.write(memoryview(buffer))

    async def main() -> None:
        run = BackgroundRun(workers, reuse)
        await run.task
        assert run.client.body == b"".join(bytes([i]) * 100_000 for i in range(8))

    asyncio.run(main())


def test_failure_before_the_first_byte_leaves_the_status_open(workers: Workers) -> None:
    def fail(channel: WorkerChannel) -> None:
        channel.write(b"gathered, never flushed")
        raise ProtocolError("no such command")

    async def main() -> None:
        run = BackgroundRun(workers, fail)
        with pytest.raises(ProtocolError, match="no such command"):
            await run.task
        assert not run.exchange.started
        assert run.client.pieces == []

    asyncio.run(main())


@pytest.mark.parametrize(("error", "explained"), [(ProtocolError("bad"), True), (KeyError("bug"), False)])
def test_failure_after_the_first_byte_never_looks_complete(
    workers: Workers, error: Exception, *, explained: bool
) -> None:
    crossed = threading.Event()

    def fail(channel: WorkerChannel) -> None:
        channel.write(b"start")
        channel.flush()
        assert crossed.wait(5)
        channel.write(b"ERR why")
        raise error

    async def main() -> None:
        run = BackgroundRun(workers, fail)
        await until(lambda: run.client.pieces == [b"start"])
        crossed.set()
        with pytest.raises(type(error)):
            await run.task
        assert run.exchange.started
        assert run.client.body == (b"startERR why" if explained else b"start")
        assert True not in run.client.last

    asyncio.run(main())


def test_response_may_begin_while_the_request_still_comes(workers: Workers) -> None:
    def early(channel: WorkerChannel) -> None:
        channel.write(b"hello")
        channel.flush()
        while channel.read(100):
            pass

    async def main() -> None:
        run = BackgroundRun(workers, early)
        await until(lambda: run.client.body == b"hello")
        await feed_all(run.exchange, b"x" * 1000)
        await run.task

    asyncio.run(main())


def stuck_reader(channel: WorkerChannel) -> None:
    while True:
        channel.read(1)


def stuck_writer(channel: WorkerChannel) -> None:
    while True:
        channel.write(b"x" * 200_000)


def busy(channel: WorkerChannel) -> None:
    while True:
        channel.check()


@pytest.mark.parametrize("service", [stuck_reader, stuck_writer, busy])
def test_client_that_leaves_frees_the_worker_at_once(
    workers: Workers, service: Callable[[WorkerChannel], None]
) -> None:
    ended = threading.Event()

    def observed(channel: WorkerChannel) -> None:
        try:
            service(channel)
        finally:
            ended.set()

    async def main() -> None:
        run = BackgroundRun(workers, observed)
        run.client.gate.clear()
        run.exchange.feed(b"x" * 10)
        await asyncio.sleep(0.05)
        left_at = time.monotonic()
        run.exchange.abort()
        with pytest.raises(Disconnected):
            await run.task
        assert time.monotonic() - left_at < 1
        assert ended.is_set()
        assert workers.running == 0
        assert run.exchange._request.size == run.exchange._response.size == 0

    asyncio.run(main())


@pytest.mark.parametrize("service", [stuck_reader, stuck_writer, busy])
def test_cancelled_run_frees_the_worker(workers: Workers, service: Callable[[WorkerChannel], None]) -> None:
    ended = threading.Event()

    def observed(channel: WorkerChannel) -> None:
        try:
            service(channel)
        finally:
            ended.set()

    async def main() -> None:
        run = BackgroundRun(workers, observed)
        run.client.gate.clear()
        await asyncio.sleep(0.05)
        run.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run.task
        assert await asyncio.to_thread(ended.wait, 1)
        assert workers.running == 0

    asyncio.run(main())


def test_full_pipe_lets_go_of_its_feeder_when_the_service_ends(workers: Workers) -> None:
    go = threading.Event()

    async def main() -> None:
        run = BackgroundRun(workers, lambda channel: go.wait(5))
        feeding = asyncio.create_task(feed_all(run.exchange, b"x" * (2 << 20)))
        await until(lambda: run.exchange.request_high_bytes >= PIPE_BYTES)
        go.set()
        await run.task
        await asyncio.wait_for(feeding, 2)  # what nobody will read is dropped

    asyncio.run(main())


def test_work_done_is_told_though_the_client_left(workers: Workers) -> None:
    left = threading.Event()

    def push(channel: WorkerChannel) -> str:
        assert left.wait(5)
        return "refs moved"

    async def main() -> None:
        run = BackgroundRun(workers, push)
        await asyncio.sleep(0.02)
        run.exchange.abort()
        left.set()
        assert await run.task == "refs moved"
        assert run.exchange.broken is not None

    asyncio.run(main())


@pytest.mark.parametrize("error", [Disconnected("gone"), RuntimeError("bug in send")])
def test_send_that_fails_stops_the_service(workers: Workers, error: Exception) -> None:
    async def send(data: bytes, *, last: bool) -> None:
        raise error

    async def main() -> None:
        with pytest.raises(type(error)):
            await workers.run(stuck_writer, workers.exchange(), send)

    asyncio.run(main())


def test_client_leaves_while_the_rest_is_being_sent(workers: Workers) -> None:
    def big(channel: WorkerChannel) -> str:
        channel.write(b"x" * 300_000)
        return "done"

    async def main() -> None:
        run = BackgroundRun(workers, big)
        run.client.gate.clear()
        await until(lambda: run.exchange._response_ended)
        run.exchange.abort()
        assert await run.task == "done"
        assert run.exchange.broken is not None

    asyncio.run(main())


def test_silent_client_times_out(make_workers: MakeWorkers) -> None:
    async def main() -> None:
        workers = make_workers(threads=1, idle_timeout_s=0.05)
        run = BackgroundRun(workers, stuck_reader)
        with pytest.raises(TimedOut, match="nothing was received"):
            await run.task
        run = BackgroundRun(workers, stuck_writer)
        run.client.gate.clear()
        with pytest.raises(TimedOut, match="nothing was read"):
            await run.task
        workers.close()

    asyncio.run(main())


def test_slow_reader_does_not_time_out_while_it_reads(make_workers: MakeWorkers) -> None:
    def long(channel: WorkerChannel) -> None:
        channel.write(b"x" * (1 << 20))

    async def slow(data: bytes, *, last: bool) -> None:
        await asyncio.sleep(0.04)

    async def main() -> None:
        workers = make_workers(threads=1, idle_timeout_s=0.1)
        await workers.run(long, workers.exchange(), slow)
        workers.close()

    asyncio.run(main())


def test_keepalive_fills_silence_only(workers: Workers) -> None:
    go = threading.Event()

    def quiet(channel: WorkerChannel) -> None:
        channel.keepalive(b"0005\1", 0.02)
        assert go.wait(5)
        channel.keepalive(b"", 0)
        time.sleep(0.1)
        channel.write(b"end")

    async def main() -> None:
        run = BackgroundRun(workers, quiet)
        await until(lambda: len(run.client.pieces) >= 3)
        assert set(run.client.pieces) == {b"0005\1"}
        go.set()
        await run.task
        assert run.client.body.removesuffix(b"end").replace(b"0005\1", b"") == b""
        assert len(run.client.pieces) < 20

    asyncio.run(main())


def test_keepalive_sends_what_was_gathered_first(workers: Workers) -> None:
    go = threading.Event()

    def quiet(channel: WorkerChannel) -> None:
        channel.keepalive(b"0005\1", 0.02)
        channel.write(b"0009hello")
        assert go.wait(5)

    async def main() -> None:
        run = BackgroundRun(workers, quiet)
        await until(lambda: len(run.client.pieces) >= 2)
        go.set()
        await run.task
        assert run.client.body.startswith(b"0009hello0005\1")

    asyncio.run(main())


def test_keepalive_never_lands_inside_a_write(workers: Workers) -> None:
    writes = [bytes([65 + i]) * 700_000 for i in range(4)]

    def big(channel: WorkerChannel) -> None:
        channel.keepalive(b"!", 0.001)
        for data in writes:
            channel.write(data)
            time.sleep(0.01)

    async def main() -> None:
        exchange = workers.exchange()
        got = bytearray()

        async def slow(data: bytes, *, last: bool) -> None:
            await asyncio.sleep(0.003)
            got.extend(data)

        await workers.run(big, exchange, slow)
        assert bytes(got).replace(b"!", b"") == b"".join(writes)
        for data in writes:
            assert data in got

    asyncio.run(main())


def test_loop_runs_on_while_bytes_flow(workers: Workers) -> None:
    def flood(channel: WorkerChannel) -> None:
        piece = b"x" * GATHER_BYTES
        for _ in range(500):
            channel.write(piece)

    async def main() -> None:
        turns = 0
        seen: list[int] = []

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async def send(data: bytes, *, last: bool) -> None:
            seen.append(turns)

        counting = asyncio.create_task(count())
        await workers.run(flood, workers.exchange(), send)
        counting.cancel()
        stuck = max(seen.count(turn) for turn in set(seen))
        assert stuck <= 4  # 256 KiB of 64 KiB pieces

    asyncio.run(main())


def test_full_pool_serves_in_order_and_drops_who_left(make_workers: MakeWorkers) -> None:
    async def main() -> None:
        workers = make_workers(threads=1)
        go = threading.Event()
        order: list[int] = []

        def numbered(i: int) -> Callable[[WorkerChannel], None]:
            def service(channel: WorkerChannel) -> None:
                assert go.wait(5)
                order.append(i)

            return service

        runs = [BackgroundRun(workers, numbered(i)) for i in range(5)]
        await asyncio.sleep(0.02)
        runs[2].exchange.abort()
        with pytest.raises(Disconnected):
            await asyncio.wait_for(runs[2].task, 1)
        assert workers.running == 4
        go.set()
        await asyncio.gather(*(run.task for run in runs if run is not runs[2]))
        assert order == [0, 1, 3, 4]
        workers.close()

    asyncio.run(main())


def test_short_calls_do_not_wait_for_busy_services(make_workers: MakeWorkers) -> None:
    async def main() -> None:
        workers = make_workers(threads=1)
        go = threading.Event()
        run = BackgroundRun(workers, lambda channel: go.wait(5))
        await asyncio.sleep(0.01)
        name = await asyncio.wait_for(workers.call(lambda: threading.current_thread().name), 2)
        assert name.startswith("gitsmart-call")
        go.set()
        await run.task
        workers.close()

    asyncio.run(main())


def test_closed_workers_say_so(make_workers: MakeWorkers) -> None:
    async def main() -> None:
        workers = make_workers(threads=1)
        run = BackgroundRun(workers, stuck_reader)
        await asyncio.sleep(0.02)
        workers.close()
        with pytest.raises(Disconnected):
            await run.task

        def never(data: bytes, *, last: bool) -> Awaitable[None]:
            raise AssertionError

        with pytest.raises(Unavailable):
            await workers.run(stuck_reader, workers.exchange(), never)
        with pytest.raises(Unavailable):
            await workers.call(int)

    asyncio.run(main())


# -- the connection itself, lent to a worker


class Line:
    """A connection whose other end a thread reads, slowly if it is told to."""

    def __init__(self, *, is_lendable: bool = True) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.is_lendable = is_lendable
        self.loans = 0

    async def send(self, data: bytes, *, last: bool) -> None:
        await asyncio.get_running_loop().sock_sendall(self.ours, data)

    async def lend(self, size: int) -> Loan | None:
        self.loans += 1
        return Loan(self.ours, b"<", b">") if self.is_lendable else None

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()

    def read_all(self) -> bytes:
        data = bytearray()
        while piece := self.theirs.recv(1 << 20):
            data += piece
        return bytes(data)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


PARTS = [bytes([n % 251]) * (1 + n * 37 % 70_000) for n in range(200)]


@pytest.mark.parametrize("is_lendable", [True, False])
def test_what_is_written_directly_comes_in_order(
    thread_workers: Workers, line: Line, *, is_lendable: bool
) -> None:
    asyncio.run(_write_directly(thread_workers, line, is_lendable=is_lendable))


async def _write_directly(workers: Workers, line: Line, *, is_lendable: bool) -> None:
    line.is_lendable = is_lendable

    def service(channel: WorkerChannel) -> str:
        channel.keepalive(b"#", 0.001)
        channel.write(b"before;")
        channel.write_all(PARTS)
        channel.write(b";between;")
        channel.write_all(PARTS[:2])  # too little to be worth it
        channel.write_all(PARTS)
        channel.keepalive(b"", 0)
        return "done"

    exchange = workers.exchange()
    exchange.lend = line.lend
    reading = asyncio.create_task(asyncio.to_thread(line.read_all))
    assert await workers.run(service, exchange, line.send) == "done"
    line.ours.close()
    head, tail = (b"<", b">") if is_lendable else (b"", b"")
    whole = head + b"".join(PARTS) + tail
    got = await reading
    assert (
        got.count(b"<") - b"".join(PARTS).count(b"<") * 2 - b"".join(PARTS[:2]).count(b"<") == 2 * is_lendable
    )
    # a keepalive is between writes, never in one
    pieces = [b"before;", whole, b";between;" + b"".join(PARTS[:2]), whole]
    at = 0
    for piece in pieces:
        while got[at : at + len(piece)] != piece:
            assert got[at : at + 1] == b"#", at
            at += 1
        at += len(piece)
    assert got[at:].strip(b"#") == b""
    assert line.loans == 2
    assert exchange.bytes_out == len(got) - 4 * is_lendable


@pytest.mark.parametrize("way", ["abort", "reset", "never reads"])
def test_a_client_that_leaves_frees_the_worker_that_sends_to_it(
    thread_workers: Workers, line: Line, way: str
) -> None:
    asyncio.run(_leave(thread_workers, line, way))


async def _leave(workers: Workers, line: Line, way: str) -> None:
    left = threading.Event()

    def service(channel: WorkerChannel) -> None:
        channel.write(b"x" * GATHER_BYTES)
        try:
            channel.write_all([b"y" * 60_000] * 1000)
        finally:
            left.set()

    exchange = Exchange(idle_timeout_s=0.3 if way == "never reads" else 20)
    exchange.lend = line.lend
    running = asyncio.create_task(workers.run(service, exchange, line.send))
    await until(lambda: line.loans == 1)
    assert not left.wait(0.05)
    if way == "abort":
        exchange.abort()
    elif way == "reset":
        line.theirs.close()
    with pytest.raises(Disconnected):
        await running
    assert left.is_set()
