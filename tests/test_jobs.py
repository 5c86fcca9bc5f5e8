"""What is done in a thread and what elsewhere; errors that cross; a pool that nobody gives work to."""

import threading
import time
from typing import Any

import pytest

from gitsmart.errors import Disconnected, LimitExceeded, ProtocolError, Unavailable
from gitsmart.jobs import (
    HELD_BYTES,
    HELD_CPU_S,
    HELD_REQUEST_BYTES,
    HELD_WAIT_S,
    HELD_WORK_S,
    HeldChannel,
    JobChannel,
    JobLost,
    JobQueue,
    Moved,
    relay,
    run_held,
    take_jobs,
)


class Inner:
    """A channel that keeps what crosses."""

    def __init__(self, request: bytes = b"") -> None:
        self.request = request
        self.crossed: list[object] = []
        self.gone = False

    def read(self, n: int) -> bytes:
        data, self.request = self.request[:n], self.request[n:]
        return data

    def read_pieces(self, n: int) -> list[bytes]:
        data = self.read(n)
        return [data[:3], data[3:]] if data else []

    def write(self, data: bytes | bytearray | memoryview, *, more: bool = False) -> None:
        if self.gone:
            raise Disconnected("gone")
        self.crossed.append((bytes(data), True) if more else bytes(data))

    def write_all(self, parts: Any) -> None:
        self.crossed += [bytes(part) for part in parts]

    def flush(self) -> None:
        self.crossed.append("flush")

    def check(self) -> None:
        if self.gone:
            raise Disconnected("gone")

    def promise(self, size: int) -> None:
        self.crossed.append(size)

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        self.crossed.append((packet, interval_s))

    def on_break(self, callback: Any) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """CPU and wall time, to be set."""
    now = {"cpu": 1.0, "process": 5.0, "wall": 1000.0}
    monkeypatch.setattr("gitsmart.jobs.time.thread_time", lambda: now["cpu"])
    monkeypatch.setattr("gitsmart.jobs.time.process_time", lambda: now["process"])
    monkeypatch.setattr("gitsmart.jobs.time.monotonic", lambda: now["wall"])
    return now


def held_of(inner: Inner) -> HeldChannel:
    return HeldChannel(inner)  # type: ignore[arg-type]  # what it uses of a WorkerChannel


def test_short_service_crosses_when_it_has_ended(clock: dict[str, float]) -> None:
    inner = Inner(b"question")

    def service(held: HeldChannel) -> str:
        held.keepalive(b"0004", 5.0)
        held.write(held.read(100))
        held.flush()
        held.write_all([b"and", memoryview(b"more")])
        assert inner.crossed == []
        return "done"

    assert run_held(service, lambda channel, read: "elsewhere", inner) == "done"  # type: ignore[arg-type]
    assert inner.crossed == [b"questionandmore", "flush", (b"0004", 5.0)]


@pytest.mark.parametrize("call", ["read", "write", "write_all", "flush", "check"])
def test_long_service_begins_anew_elsewhere(clock: dict[str, float], call: str) -> None:
    inner = Inner(b"abcdef")

    def service(held: HeldChannel) -> str:
        assert held.read(4) == b"abcd"
        held.write(b"never seen")
        clock["cpu"] += HELD_CPU_S * 1.01
        arguments: dict[str, tuple[object, ...]] = {"read": (1,), "write": (b"",), "write_all": ([],)}
        getattr(held, call)(*arguments.get(call, ()))
        raise AssertionError("not reached")

    assert run_held(service, lambda channel, read: read.decode(), inner) == "abcd"  # type: ignore[arg-type]
    assert inner.crossed == []


def test_service_that_has_written_enough_stays(clock: dict[str, float]) -> None:
    inner = Inner()
    held = held_of(inner)
    held.write(b"x" * HELD_BYTES)
    assert inner.crossed == [b"x" * HELD_BYTES]
    clock["cpu"] += 100
    held.check()
    held.move()
    held.write_all([b"y"])
    assert inner.crossed[1:] == [b"y"]


def test_service_that_waits_for_others_stays(clock: dict[str, float]) -> None:
    inner = Inner()
    held = held_of(inner)
    held.keepalive(b"0005", 1.0)
    held.write(b"head")
    clock["wall"] += HELD_WAIT_S / 2
    held.check()
    assert inner.crossed == []
    clock["wall"] += HELD_WAIT_S
    held.check()
    assert inner.crossed == [b"head", (b"0005", 1.0)]


def test_waiting_for_a_thread_of_its_own_is_work(clock: dict[str, float]) -> None:
    held = held_of(Inner())
    held.count_waiting()
    clock["process"] += HELD_WORK_S * 0.51
    held.check()
    clock["process"] += HELD_WORK_S * 0.51
    with pytest.raises(Moved):
        held.check()


def test_large_request_moves_with_all_that_was_read() -> None:
    data = bytes(range(256)) * (HELD_REQUEST_BYTES // 256 + 1)
    inner = Inner(data)

    def service(held: HeldChannel) -> bytes:
        while held.read(100_000):
            pass
        return b""

    read = run_held(service, lambda channel, read: read, inner)  # type: ignore[arg-type]
    assert read + inner.request == data


def test_client_that_left_is_no_long_service() -> None:
    inner = Inner()
    inner.gone = True
    with pytest.raises(Disconnected, match="gone") as caught:
        run_held(lambda held: held.check(), lambda channel, read: None, inner)  # type: ignore[arg-type]
    assert not isinstance(caught.value, Moved)


class Pool:
    """`take_jobs` in a thread."""

    def __init__(self, perform: Any) -> None:
        self.queue = JobQueue()
        arguments = (self.queue, lambda job, channel: perform(channel))
        self.thread = threading.Thread(target=take_jobs, args=arguments, kwargs={"stop_after_s": 5})
        self.thread.start()

    def do(self, inner: Inner, **arguments: Any) -> Any:
        arguments.setdefault("on_note", lambda name: None)
        try:
            return relay(inner, self.queue, "a job", **arguments)  # type: ignore[arg-type]
        finally:
            self.queue.close_giver()
            self.thread.join(10)
            assert not self.thread.is_alive()
            self.queue.close_taker()


def test_what_was_read_before_is_read_again() -> None:
    def service(channel: JobChannel) -> bytes:
        read = b""
        while data := channel.read(4):
            assert len(data) <= 4
            read += data
        assert channel.read(1) == b""
        return read

    assert Pool(service).do(Inner(b"the rest"), replay=b"the beginning, ") == b"the beginning, the rest"


def test_parts_and_notes_cross_in_order() -> None:
    inner = Inner()

    def service(channel: JobChannel) -> None:
        channel.write(b"first")
        channel.note(b"a note")
        channel.write_all([b"x" * 400_000, memoryview(b"y" * 10), *[b"z"] * 1500])
        channel.write(b"w" * 600_000)
        channel.flush()

    Pool(service).do(inner, on_note=lambda name: inner.crossed.append(name.decode()))
    assert inner.crossed[:2] == [b"first", "a note"]
    assert inner.crossed[-1] == "flush"
    pieces = [piece[0] if isinstance(piece, tuple) else piece for piece in inner.crossed[2:-1]]
    assert b"".join(pieces) == b"x" * 400_000 + b"y" * 10 + b"z" * 1500 + b"w" * 600_000  # type: ignore[arg-type]
    ends = [piece for piece in inner.crossed[2:-1] if not isinstance(piece, tuple)]
    assert len(ends) == 2  # of the two writes: a keepalive may come behind each, but not inside


class Odd(Exception):
    """An error that can't be made from its arguments alone."""

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(a)
        self.b = b


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LimitExceeded("too much"), LimitExceeded),
        (ProtocolError("bad"), ProtocolError),
        (OSError(28, "No space left on device"), OSError),
        (KeyError("bug"), KeyError),
        (Odd(1, b=2), RuntimeError),
    ],
)
def test_errors_cross_with_their_traceback(error: Exception, kind: type[Exception]) -> None:
    def service(channel: JobChannel) -> None:
        raise error

    with pytest.raises(kind) as caught:
        Pool(service).do(Inner())
    assert "in service" in str(caught.value.__cause__)
    if isinstance(error, OSError):
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == 28


def test_job_whose_process_dies_is_lost() -> None:
    def service(channel: JobChannel) -> None:
        channel.write(b"a part")
        channel.flush()
        channel._sock.close()

    inner = Inner()
    with pytest.raises(JobLost):
        Pool(service).do(inner)
    assert inner.crossed == [b"a part", "flush"]
    assert issubclass(JobLost, Unavailable)


def test_work_that_was_done_for_a_client_that_left_is_told() -> None:
    inner = Inner()

    def service(channel: JobChannel) -> str:
        inner.gone = True
        channel.write(b"unpack ok")
        channel.flush()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                channel.check()
            except Disconnected:
                return "refs moved"
        raise AssertionError("not told")

    assert Pool(service).do(inner) == "refs moved"


def test_no_process_to_do_it() -> None:
    queue = JobQueue()
    queue.close_taker()
    with pytest.raises(Unavailable):
        relay(Inner(), queue, "a job", on_note=lambda name: None)  # type: ignore[arg-type]
    queue.close_giver()
