"""HTTP/1.1 over Tornado's IOStream, under Tornado's application layer.

    IOStream.read_bytes -> wire/http_head -> start_request -> delegate.headers_received
                        -> wire/chunked   -> delegate.data_received ... delegate.finish
    handler -> RequestConnection.write_headers, write, finish -> IOStream.write

`HTTPServer` is Tornado's with its HTTP/1 reader and writer replaced, for any `tornado.web.Application`: each
connection is one coroutine (`_Connection.serve`) that reads at most 64 KiB at a time, goes on while it has
data, awaits only when that runs dry, and gives the loop a turn after a budget of work. docs/chunked.md tells
why; docs/decisions/0001 why here.

Three things about IOStream shape this module:

- It reads ahead while nobody asked, and at the peer's FIN it closes both ways. `_Valve` keeps it from reading
  unless a read is pending, so what is buffered is what we asked for, and a client that half-closes still gets
  its answer.
- While it does not read it can't tell that the peer has gone. `_Goodbyes` asks the kernel.
- It sends for as long as the socket takes more. `_Valve` makes it stop after a while, so that `await flush()`
  yields.

It does not do: websockets and other upgrades (`detach` raises), `decompress_request`, HTTP/2, and it knows
nothing of git.
"""

import asyncio
import copy
import enum
import errno
import fcntl
import http
import logging
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import tornado.httpserver
from tornado import httputil
from tornado.httpserver import _HTTPRequestContext
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import add_accept_handler

from gitsmart.errors import GitsmartError, LimitExceeded, ProtocolError, TimedOut
from gitsmart.httpd.loan import Loan
from gitsmart.wire.chunked import ChunkDecoder
from gitsmart.wire.http_head import (
    Framing,
    HeadDecoder,
    HeadLimits,
    HeadTooLarge,
    RequestHead,
    TargetTooLong,
    UnmetExpectation,
    UnsupportedCoding,
    UnsupportedVersion,
)

__all__ = ["HTTPServer", "RequestConnection"]

logger = logging.getLogger(__name__)

READ_BYTES = 65536  # of one read
YIELD_BYTES = 262144  # of copying, after which the loop gets a turn
YIELD_S = 0.002  # of work without one, when bytes say little about it
_WRITE_COST_BYTES = 2048  # what one write counts for beside its bytes: 15 us are the copying of about so many

# A final answer was given while the request's body is still coming. Up to this much of it is read for the
# sake of the connection (git's probe and small requests are below it); what is larger costs more than a new
# connection.
REST_BYTES = 65536
# Otherwise we half-close and keep reading for a while: closing a socket with unread data is a reset, and the
# client may lose the answer. Past LINGER_BYTES we read no more: the window closes, the client can't send, and
# is free to read. Two seconds are many round trips; a client that did not read its answer by then never will.
LINGER_BYTES = 1 << 20
LINGER_S = 2.0

# A handler that does not stream its request body keeps all of it in memory (and so Tornado has this default
# too).
UNPACED_BODY_BYTES = 100 << 20
# To learn whether a chunked body is complete behind a FIN while reading is paused, so much is looked at.
_PEEK_BYTES = 1 << 19

# How long we rest when no descriptor is left for a new connection, and how often the log says so.
ACCEPT_REST_S = 0.1
EXHAUSTED_WARNING_S = 60.0

# How long new connections are left to other processes for each that is here, and at most (decision 0008).
REST_EACH_S = 0.0002
REST_MOST_S = 0.005
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_STATUS_OF: dict[type[GitsmartError], int] = {
    UnsupportedCoding: 501,
    UnsupportedVersion: 505,
    UnmetExpectation: 417,
    HeadTooLarge: 431,
    TargetTooLong: 414,
    LimitExceeded: 413,
    ProtocolError: 400,
    TimedOut: 408,
}
_RDHUP: int = getattr(select, "EPOLLRDHUP", 0)


class _Gone(Exception):
    """The stream is closed: leave, there is nobody to answer."""


class _Phase(enum.Enum):
    IDLE = enum.auto()  # between requests
    HEAD = enum.auto()
    BODY = enum.auto()  # from headers_received until the body's end
    RESPONSE = enum.auto()  # the request was read, the handler is at work
    CLOSING = enum.auto()


class HTTPServer(tornado.httpserver.HTTPServer):
    """Tornado's HTTPServer with gitsmart's HTTP/1.1 underneath.

    Args:
        request_callback: a `tornado.web.Application`, or whatever else Tornado's server takes.
        xheaders, protocol, trusted_downstream, ssl_options, no_keep_alive: as for Tornado's server.
        max_body_size: bound on every request body, in bytes; None for none. Without it, bodies that the
            application
            takes without flow control (`data_received` returns None, as it does for handlers that don't
            stream) are bounded by 100 MiB. `request.connection.set_max_body_size` sets the bound of one
            request.
        head_limits: bounds of the request head.
        head_timeout_s: for the whole head, from its first byte, and for the first byte of a new connection.
        idle_timeout_s: between two requests.
        body_timeout_s: for each read of a body.
        write_timeout_s: without any progress while there is something to send.
        shares_sockets: other processes accept connections from the same listening sockets.
    """

    # Configurable's __init__ is a stand-in for this; its signature is what callers see.
    def initialize(  # type: ignore[override]
        self,
        request_callback: httputil.HTTPServerConnectionDelegate
        | Callable[[httputil.HTTPServerRequest], None],
        *,
        no_keep_alive: bool = False,
        xheaders: bool = False,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        protocol: str | None = None,
        trusted_downstream: list[str] | None = None,
        max_body_size: int | None = None,
        head_limits: HeadLimits | None = None,
        head_timeout_s: float = 60.0,
        idle_timeout_s: float = 75.0,
        body_timeout_s: float = 300.0,
        write_timeout_s: float = 300.0,
        shares_sockets: bool = False,
    ) -> None:
        super().initialize(
            request_callback,
            no_keep_alive=no_keep_alive,
            xheaders=xheaders,
            ssl_options=ssl_options,
            protocol=protocol,
            trusted_downstream=trusted_downstream,
            chunk_size=READ_BYTES,
            max_buffer_size=4 * READ_BYTES,  # of reading; _Valve keeps it at READ_BYTES
        )
        self.no_keep_alive = no_keep_alive
        self.max_body_size = max_body_size
        self.head_limits = head_limits or HeadLimits()
        self.head_timeout_s = head_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.body_timeout_s = body_timeout_s
        self.write_timeout_s = write_timeout_s
        self.body_high_water_bytes = 0  # the most that was ever buffered here for one request body
        self.draining = False
        self._shares_sockets = shares_sockets
        self._open: set[_Connection] = set()
        self.goodbyes: _Goodbyes | None = None

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on listening sockets, as Tornado's, but see `_Listener`."""
        for sock in sockets:
            self._sockets[sock.fileno()] = sock
            listener = cast(socket.socket, _Listener(sock, self.rest_s if self._shares_sockets else None))
            self._handlers[sock.fileno()] = add_accept_handler(listener, self._handle_connection)

    def rest_s(self) -> float:
        """How long to leave new connections to other processes: the longer the more there are here."""
        return min(REST_EACH_S * len(self._open), REST_MOST_S)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Serve one accepted connection. Tornado calls it."""
        connection = _Connection(self, stream, address)
        self._open.add(connection)
        if self.goodbyes is None:
            self.goodbyes = _Goodbyes()
        self.goodbyes.add(connection)
        connection.task = asyncio.ensure_future(connection.serve())

    def on_close(self, server_conn: object) -> None:
        """Forget a connection whose loop has ended."""
        connection = cast(_Connection, server_conn)
        self._open.discard(connection)
        if self.goodbyes is not None:
            self.goodbyes.remove(connection)
            if not self._open:
                self.goodbyes.close()
                self.goodbyes = None

    async def close_all_connections(self) -> None:
        """Cut every connection, and wait until their loops have ended."""
        while self._open:
            await next(iter(self._open)).close()

    async def drain(self, timeout_s: float) -> int:
        """Let the requests that are being served end, and no new ones begin; call `stop()` first.

        Idle connections are closed at once, the others after their response, and whatever is left after
        `timeout_s` is cut. Returns how many were cut.
        """
        self.draining = True
        for connection in list(self._open):
            connection.close_if_idle()
        tasks = [connection.task for connection in self._open if connection.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        left = len(self._open)
        await self.close_all_connections()
        return left


class _Listener:
    """A listening socket that rests when the process or the host has nothing left for another connection.

    Without, the error would come again at once, with a traceback each time: one core busy, and megabytes of
    log a second, for as long as somebody holds a thousand connections open. Who connects meanwhile waits.

    With `rest_s`, where other processes listen, too, it also rests after each connection, for that many
    seconds, so that a burst spreads over all of them. Tornado takes up to 128 at once.
    """

    def __init__(self, sock: socket.socket, rest_s: Callable[[], float] | None) -> None:
        self._sock = sock
        self._rest_s = rest_s
        self._had_one = False
        self._io_loop = IOLoop.current()
        self._warn_after = 0.0

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def accept(self) -> tuple[socket.socket, Any]:
        if self._had_one and self._rest_s is not None:
            self._had_one = False
            rest_s = self._rest_s()
            if rest_s:
                self._rest(rest_s)
            raise BlockingIOError
        try:
            accepted = self._sock.accept()
            self._had_one = self._rest_s is not None
            return accepted
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            now = self._io_loop.time()
            if now >= self._warn_after:
                self._warn_after = now + EXHAUSTED_WARNING_S
                logger.warning("can't accept connections: %s", error.strerror)
            self._rest(ACCEPT_REST_S)
            raise BlockingIOError from None

    def _rest(self, seconds: float) -> None:
        self._io_loop.update_handler(self._sock.fileno(), 0)
        self._io_loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:  # else the server was stopped
            self._io_loop.update_handler(self._sock.fileno(), IOLoop.READ)


class RequestConnection(httputil.HTTPConnection):
    """One request's connection as handlers see it: `self.request.connection`.

    Beyond Tornado's interface: `abort`, `body_error`, `body_high_water_bytes`.
    """

    def __init__(self, connection: "_Connection", head: RequestHead) -> None:
        self.context = connection.context
        self.stream = connection.stream
        self.body_error: ProtocolError | TimedOut | None = None
        """Why the body ended early, when `on_connection_close` comes although the client is still there."""
        self.body_high_water_bytes = 0
        """The most that was buffered here for this request's body, not counting what the handler keeps."""
        self.max_body_size = connection.server.max_body_size
        self.finished = False  # the response is complete, or was cut
        self.head_written = False
        self.keep_alive = False
        self._connection = connection
        self._head = head
        self._chunked = False
        self._remaining: int | None = None  # of a response with Content-Length
        self._ends_by_fin = False  # a response with neither Content-Length nor chunks
        self._probed = False
        self._is_lent = False  # a worker may be sending; it will learn of it if the client has gone
        self._close_callback: Callable[[], None] | None = None

    def whole_body(self) -> bytes | None:
        """Return the request's body, if all of it is here before anything of it was given to the application,
        which still gets it; b"" when there is none.
        """
        return self._connection.unread_body()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when the client leaves before the response is finished."""
        self._close_callback = callback

    def set_max_body_size(self, max_body_size: int) -> None:
        """Bound this request's body, in bytes: call it in `prepare`. Beyond it the client gets 413."""
        self.max_body_size = max_body_size

    def detach(self) -> IOStream:
        """Raise RuntimeError: upgrades, such as websockets, are not supported on this server."""
        raise RuntimeError("this server can't detach a connection: no websockets or other upgrades")

    def abort(self) -> None:
        """Cut the connection, so that what was sent of the response does not look complete."""
        self._close_callback = None
        self.finished = True
        self.stream.close()

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> "asyncio.Future[None]":
        """Send the response's head in the order of `headers`, and `chunk`.

        Adds Transfer-Encoding and Connection when they are needed, and nothing else.

        Raises:
            ValueError: CR, LF or NUL in a header, or Content-Length is not a number.
        """
        assert isinstance(start_line, httputil.ResponseStartLine)
        assert not self.head_written
        head, code = self._head, start_line.code
        fields = [
            (name, value)
            for name, value in headers.get_all()
            if name.lower() not in ("transfer-encoding", "connection")
        ]
        length = headers.get("Content-Length")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise ValueError(f"Content-Length is {length!r}")
        keep_alive = self._connection.can_keep_alive() and "close" not in _options(headers)
        remaining, chunked = None, False
        if head.method == "HEAD" or code < 200 or code in (204, 304):
            remaining = 0
        elif length is not None:
            remaining = int(length)
        elif head.version == "HTTP/1.1":
            chunked = True
            fields.append(("Transfer-Encoding", "chunked"))
        else:
            keep_alive = False  # the end of the connection is the end of the body
        if not keep_alive:
            fields.append(("Connection", "close"))
        elif head.version == "HTTP/1.0":
            fields.append(("Connection", "keep-alive"))
        data = _head_bytes(code, start_line.reason, fields)
        # only now: a caller may catch the ValueError and write another head
        self.head_written, self.keep_alive = True, keep_alive
        self._remaining, self._chunked = remaining, chunked
        if remaining is None and not chunked and not self.stream.closed():
            # Only the connection's end tells that this response is whole. Until it is, any other end of the
            # connection, our process's too, has to be a reset: to HTTP/1.0 (nginx's default towards us) a
            # FIN in the middle looks like success.
            self._ends_by_fin = True
            _reset_on_close(self.stream.socket, on=True)
        if chunk:
            data += self._framed(chunk)
        return self._send(data)

    def write(self, chunk: bytes) -> "asyncio.Future[None]":
        """Send a piece of the response's body. The future is done when the socket has taken it."""
        return self._send(self._framed(chunk))

    async def lend(self, size: int) -> Loan | None:
        """Let a worker send the next `size` bytes of the response's body, once what was written has gone.

        Nothing may be written until it has. None where that can't be: TLS, a response that the connection's
        end will end, one whose head isn't written, or one that ended.

        Raises:
            StreamClosedError: the client has gone.
        """
        stream = self.stream
        sock = stream.socket
        if self.finished or not self.head_written or self._ends_by_fin or isinstance(sock, ssl.SSLSocket):
            return None
        if not self._chunked and (self._remaining is None or self._remaining < size):
            return None
        if stream.writing():
            await stream.write(b"")
        if stream.closed():
            raise StreamClosedError
        if self._remaining is not None:
            self._remaining -= size
        if not self._is_lent:
            self._is_lent = True
            self._connection.watch_leaving(on=False)
        frame = (b"%x\r\n" % size, b"\r\n") if self._chunked else (b"", b"")
        return Loan(sock, *frame)

    def finish(self) -> None:
        """End the response.

        Raises:
            tornado.httputil.HTTPOutputError: less was written than Content-Length says; the connection is
                cut.
        """
        if self._remaining and not self.stream.closed():
            self.abort()
            raise httputil.HTTPOutputError(
                f"response is {self._remaining} bytes shorter than its Content-Length"
            )
        self._take_back()
        if self._chunked:
            self._send(b"0\r\n\r\n")
        self.finished = True
        self._connection.wake()

    def _framed(self, chunk: bytes) -> bytes:
        if self._remaining is not None and chunk:
            if len(chunk) > self._remaining:
                self.abort()
                raise httputil.HTTPOutputError("response is longer than its Content-Length")
            self._remaining -= len(chunk)
        if self._chunked and chunk:  # an empty chunk would be the last one
            return b"".join((b"%x\r\n" % len(chunk), chunk, b"\r\n"))
        return chunk

    def _take_back(self) -> None:
        """The worker that it was lent to has sent what it had."""
        if self._is_lent:
            self._is_lent = False
            self._connection.watch_leaving(on=True)

    def _send(self, data: bytes) -> "asyncio.Future[None]":
        self._take_back()
        if self.finished or self.stream.closed():
            future: asyncio.Future[None] = asyncio.Future()
            future.set_exception(StreamClosedError())
            future.exception()  # a handler need not look
            return future
        future = self.stream.write(data)
        if future.done():
            return future
        self._connection.watch_writing()
        # The caller may cancel what it gets (asyncio.wait_for does): IOStream would log that as an error.
        shield = asyncio.shield(future)
        shield.add_done_callback(_look_at)
        return shield

    async def sent(self) -> None:
        """Wait until everything that was written has gone to the socket: the response was finished."""
        if self.stream.writing():
            await self.stream.write(b"")
        if self._ends_by_fin:
            _reset_on_close(self.stream.socket, on=False)

    def probe(self) -> None:
        """Send something that changes nothing: a client that is wholly gone answers it with a reset.

        The client has half-closed its side, which looks the same as having closed both. It is 100 Continue
        before the response's head (RFC 9110 section 15.2: a client must be able to read it unasked), and
        after it a leading zero of the next chunk's size.
        """
        if self._probed or self.finished or self._head.version != "HTTP/1.1" or self._is_lent:
            return
        self._probed = True
        if not self.head_written:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._chunked:
            self._send(b"0")

    def client_left(self) -> None:
        """Tell the handler, once."""
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            try:
                callback()
            except Exception:
                logger.exception("close callback failed")


class _Connection:
    """One TCP connection and its requests, one after another."""

    def __init__(self, server: HTTPServer, stream: IOStream, address: tuple[Any, ...]) -> None:
        self.server = server
        self.stream = stream
        self.fd: int = stream.socket.fileno()
        self.context = _HTTPRequestContext(stream, address, server.protocol, server.trusted_downstream)
        self.task: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._valve = _Valve(stream)
        self._phase = _Phase.IDLE
        self._leftover = b""  # read from the stream, not yet looked at
        self._pending_read: asyncio.Future[bytes] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._lending = False  # awaiting something of the application's
        self._work = 0
        self._resumed = self._loop.time()
        self._served = False  # this is not the first request
        self._peer_finished = False  # it sent FIN
        self._fin_judge: asyncio.Future[None] | None = None
        # of the present request
        self._head: RequestHead | None = None
        self._exchange: RequestConnection | None = None
        self._delegate: httputil.HTTPMessageDelegate | None = None
        self._body: ChunkDecoder | _LengthDecoder | None = None
        self._body_begun = False  # the client was told, or has chosen, to send it

    # The loop

    async def serve(self) -> None:
        """Serve requests until either side closes."""
        try:
            self._set_up()
            while await self._serve_request():
                pass
        except (_Gone, StreamClosedError):
            pass
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("connection failed")
        finally:
            self._phase = _Phase.CLOSING
            self._end_delegate()
            if self._exchange is not None and not self._exchange.finished:
                self._exchange.client_left()
            if self._write_timer is not None:
                self._write_timer.cancel()
            self.stream.set_close_callback(None)
            self.stream.close()
            self.server.on_close(self)

    def _set_up(self) -> None:
        if self.stream.closed():
            raise _Gone  # it was reset before its turn came
        self.stream.set_close_callback(self._on_closed)
        try:
            self.stream.set_nodelay(True)  # every flush is meant to leave now
            _set_keepalive(self.stream.socket)
        except OSError:
            raise _Gone from None  # as good as reset

    async def _serve_request(self) -> bool:
        """Serve one request; return whether the connection may serve another."""
        self._head = self._exchange = self._delegate = self._body = None
        self._body_begun = False
        await self._pace(0)  # many small requests may be here already
        try:
            head = await self._read_head()
        except (ProtocolError, TimedOut) as error:
            await self._refuse(error)
            return False
        if head is None:
            return False
        exchange = await self._start(head)
        if exchange is None:
            return False
        await self._read_body(exchange)
        if self._phase is _Phase.CLOSING:
            return False
        while not exchange.finished:
            await self._wait(None, None)
        if self.stream.closed():
            return False
        await exchange.sent()
        if exchange.keep_alive and not self.server.draining and await self._discard_rest():
            return True
        await self._linger()
        return False

    async def _read_head(self) -> RequestHead | None:
        """Read a request's head; None when the connection ends or is idle for too long instead."""
        self._phase = _Phase.IDLE
        decoder = HeadDecoder(self.server.head_limits)
        deadline = 0.0
        is_first, self._served = not self._served, True
        first_timeout_s = self.server.head_timeout_s if is_first else self.server.idle_timeout_s
        data, self._leftover = self._leftover, b""
        while True:
            head = decoder.feed(data)
            if head is not None:
                self._leftover = decoder.leftover
                return head
            if not decoder.begun:
                timeout_s = first_timeout_s
            elif self._phase is _Phase.IDLE:
                self._phase = _Phase.HEAD
                timeout_s = self.server.head_timeout_s
                deadline = self._loop.time() + timeout_s
            else:
                timeout_s = deadline - self._loop.time()
            if self._phase is _Phase.IDLE and self.server.draining:
                return None
            try:
                data = await self._read(timeout_s)
            except TimedOut:
                if self._phase is _Phase.IDLE:
                    return None
                raise TimedOut("request head did not arrive in time") from None
            if not data:
                return None

    async def _start(self, head: RequestHead) -> RequestConnection | None:
        """Give the head to the application, and wait until it is ready for the body."""
        self._head, self._phase = head, _Phase.BODY
        if head.framing is Framing.CHUNKED:
            self._body = ChunkDecoder()
        else:
            self._body = _LengthDecoder(head.content_length)
        exchange = self._exchange = RequestConnection(self, head)
        try:
            headers = httputil.HTTPHeaders()
            for name, value in head.headers:
                headers.add(name, value)
            self._delegate = self.server.start_request(self, exchange)
            start_line = httputil.RequestStartLine(head.method, head.target, head.version)
            ready = self._delegate.headers_received(start_line, headers)
            if ready is not None:
                await self._lend(ready)
        except _Gone:
            raise
        except Exception as error:
            await self._fail(exchange, error)
            return None
        return exchange

    async def _read_body(self, exchange: RequestConnection) -> None:
        """Read the body and hand it on, until its end, the answer's, or the client's."""
        body, delegate, head = self._body, self._delegate, self._head
        assert body is not None
        assert delegate is not None
        assert head is not None
        data, self._leftover = self._leftover, b""
        self._body_begun = True
        try:
            if head.expects_continue and not data and not body.finished and not exchange.head_written:
                self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            total = unpaced = 0
            while not self._answered():
                piece = body.feed(data)
                if piece:
                    self._note_buffered(exchange, len(piece))
                    total += len(piece)
                    if exchange.max_body_size is not None and total > exchange.max_body_size:
                        raise LimitExceeded(f"request body is larger than {exchange.max_body_size} bytes")
                    taken = delegate.data_received(piece)
                    if taken is not None:
                        await self._lend(taken)
                    else:
                        unpaced += len(piece)
                        if exchange.max_body_size is None and unpaced > UNPACED_BODY_BYTES:
                            raise LimitExceeded(f"request body is larger than {UNPACED_BODY_BYTES} bytes")
                data = b""
                if body.finished:
                    break
                await self._pace(len(piece))
                if body.needs_input and not self._answered():
                    data = await self._read(self.server.body_timeout_s)
                    if not data and not self._answered():
                        raise _Gone
            if self._answered():
                # As Tornado does it: a delegate whose answer is complete gets no finish().
                self._leftover = data
                self._end_delegate()
                return
            self._leftover = body.leftover
            self._phase = _Phase.RESPONSE
            delegate.finish()
            self._delegate = None
        except _Gone:
            raise
        except Exception as error:
            await self._fail(exchange, error)
            return
        if self._peer_finished:
            exchange.probe()

    def _answered(self) -> bool:
        return self._exchange is not None and self._exchange.finished

    def _note_buffered(self, exchange: RequestConnection, piece_bytes: int) -> None:
        assert self._body is not None
        buffered = piece_bytes + len(self._body.leftover)
        if buffered > exchange.body_high_water_bytes:
            exchange.body_high_water_bytes = buffered
            self.server.body_high_water_bytes = max(self.server.body_high_water_bytes, buffered)

    # Ends

    async def _fail(self, exchange: RequestConnection, error: Exception) -> None:
        """End a request that can't go on: by an answer if none has begun, by a cut otherwise."""
        if self.stream.closed():
            raise _Gone from None
        if isinstance(error, httputil.HTTPInputError):
            error = ProtocolError(str(error))
        if isinstance(error, (ProtocolError, TimedOut)):
            exchange.body_error = error
        else:
            logger.error("request failed", exc_info=error)
        was_written = exchange.head_written
        exchange.finished = True  # the handler can't write any more
        self._end_delegate()
        if was_written:
            self._phase = _Phase.CLOSING
            self.stream.close()
            raise _Gone from None
        await self._refuse(error)

    async def _refuse(self, error: Exception) -> None:
        """Answer with an error of our own, and close."""
        self._phase = _Phase.CLOSING
        status = next((code for kind, code in _STATUS_OF.items() if isinstance(error, kind)), 500)
        text = str(error) if isinstance(error, GitsmartError) else "internal server error"
        if status != 500:
            logger.info("refused request from %s: %s", self.context.remote_ip, text)
        body = text.encode("utf-8", "backslashreplace") + b"\n"
        fields = [
            ("Date", httputil.format_timestamp(time.time())),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        written = self.stream.write(_head_bytes(status, http.HTTPStatus(status).phrase, fields) + body)
        self.watch_writing()
        await written
        await self._linger()

    def _end_delegate(self) -> None:
        """Tell the application that the body won't be complete, once."""
        delegate, self._delegate = self._delegate, None
        if delegate is None:
            return
        if self._exchange is not None:
            self._exchange.set_close_callback(None)  # it would say the same
        try:
            delegate.on_connection_close()
        except Exception:
            logger.exception("on_connection_close failed")

    async def _discard_rest(self) -> bool:
        """Read what is left of the body, if it is little and comes soon; return whether all of it is read."""
        body = self._body
        assert body is not None
        if self._phase is _Phase.RESPONSE:
            return True
        deadline = self._loop.time() + LINGER_S
        data, self._leftover = self._leftover, b""
        seen = 0
        try:
            while True:
                body.feed(data)
                if body.finished:
                    self._leftover = body.leftover
                    return True
                data = b""
                await self._pace(READ_BYTES)
                if body.needs_input:
                    timeout_s = deadline - self._loop.time()
                    if seen > REST_BYTES or timeout_s <= 0:
                        return False
                    data = await self._read(timeout_s)
                    seen += len(data)
                    if not data:
                        return False
        except (ProtocolError, TimedOut):
            return False

    async def _linger(self) -> None:
        """Half-close, and give the client time to read our last words before the socket is closed."""
        self._phase = _Phase.CLOSING
        if self.stream.closed():
            return
        try:
            self.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        deadline = self._loop.time() + LINGER_S
        seen = len(self._leftover)
        while (timeout_s := deadline - self._loop.time()) > 0 and not self.stream.closed():
            if seen > LINGER_BYTES:
                await self._wait(None, timeout_s)
                continue
            try:
                data = await self._read(timeout_s)
            except TimedOut:
                return
            if not data:
                return
            seen += len(data)
            await self._pace(len(data))

    # Waiting

    async def _read(self, timeout_s: float) -> bytes:
        """Read 1 to READ_BYTES bytes; b"" at the connection's end, or when `wake` was called.

        Raises:
            TimedOut: nothing came in time; the read goes on, and the next call waits for it.
        """
        future, self._pending_read = self._pending_read, None
        if future is None:
            try:
                future = self._valve.read()
            except StreamClosedError:
                return b""
        if not future.done():
            try:
                in_time = await self._wait(future, timeout_s)
            finally:
                if not future.done():
                    self._pending_read = future
            if not future.done():
                if in_time:
                    return b""
                raise TimedOut("request body did not arrive in time")
        try:
            return future.result()
        except StreamClosedError:
            return b""

    async def _wait(self, future: "asyncio.Future[bytes] | None", timeout_s: float | None) -> bool:
        """Wait until `future` is done, or `wake` or `timeout_s` comes; return False only for the last."""
        waiter = self._waiter = self._loop.create_future()
        in_time = True

        def done(_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        def too_late() -> None:
            nonlocal in_time
            in_time = waiter.done()
            done(None)

        timer = self._loop.call_later(timeout_s, too_late) if timeout_s is not None else None
        if future is not None:
            future.add_done_callback(done)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            if future is not None:
                future.remove_done_callback(done)
        self._rested()
        return in_time

    def wake(self) -> None:
        """Have the loop look around: the response is finished, or the stream closed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _lend(self, awaitable: Awaitable[Any]) -> None:
        """Await something of the application's; leave it there if the client goes.

        Raises:
            _Gone: the stream was closed meanwhile.
        """
        if isinstance(awaitable, asyncio.Future):
            if awaitable.done():
                awaitable.result()
                return
            awaitable = asyncio.shield(awaitable)  # it is the application's: not ours to cancel
        if self._peer_finished:
            self._judge_fin()
        self._lending = True
        try:
            await awaitable
        except asyncio.CancelledError:
            if not self.stream.closed():
                raise
            if self.task is not None and isinstance(self.task, asyncio.Task):
                self.task.uncancel()
            raise _Gone from None
        finally:
            self._lending = False
            self._rested()
        if self.stream.closed():
            raise _Gone

    async def _pace(self, copied_bytes: int) -> None:
        """Give the loop a turn when enough was done since the last one."""
        self._work += copied_bytes
        if self._work >= YIELD_BYTES or self._loop.time() - self._resumed >= YIELD_S:
            await asyncio.sleep(0)
            self._rested()

    def _rested(self) -> None:
        self._work = 0
        self._resumed = self._loop.time()

    # The client's comings and goings

    def can_keep_alive(self) -> bool:
        """Say, as the response's head is written, whether the connection will be good for another request."""
        head, body = self._head, self._body
        assert head is not None
        assert body is not None
        if not head.keep_alive or self.server.no_keep_alive or self.server.draining:
            return False
        if body.finished or self._phase is _Phase.RESPONSE:
            return True
        if head.expects_continue and not self._leftover and not self._body_begun:
            return False  # it may send the body or not, and we could not tell it from the next request
        if isinstance(body, _LengthDecoder):
            return body.remaining - len(self._leftover) <= REST_BYTES
        ahead = copy.copy(body)
        try:
            ahead.feed(self._leftover)
        except ProtocolError:
            return False
        return ahead.finished

    def unread_body(self) -> bytes | None:
        """See `RequestConnection.whole_body`."""
        body = self._body
        if not isinstance(body, _LengthDecoder) or self._body_begun or len(self._leftover) < body.remaining:
            return None
        return self._leftover[: body.remaining]

    def watch_leaving(self, *, on: bool) -> None:
        """Have the kernel tell of the client's leaving, or not: not while a worker sends.

        For that has a descriptor of its own, so that closing ours would not end the watch, and news of this
        connection would come under a number that is another one's by then.
        """
        if self.server.goodbyes is not None and not self.stream.closed():
            self.server.goodbyes.watch(self, on=on)

    def on_goodbye(self, is_reset: bool) -> None:
        """The kernel says that the client has closed its side, or both."""
        if is_reset:
            self.stream.close()
            return
        self._peer_finished = True
        if self._phase is _Phase.RESPONSE and self._exchange is not None:
            self._exchange.probe()
        elif self._phase is _Phase.BODY and self._lending:
            self._judge_fin()

    def _judge_fin(self) -> None:
        """While reading is paused: did the client leave in the middle of its body, or is all of it here?"""
        if self._fin_judge is None or self._fin_judge.done():
            self._fin_judge = asyncio.ensure_future(self._close_if_truncated())

    async def _close_if_truncated(self) -> None:
        body = self._body
        if body is None or self.stream.closed():
            return
        sock = self.stream.socket
        unread = struct.unpack("i", fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0"))[0]
        is_tls = isinstance(sock, ssl.SSLSocket)
        if isinstance(sock, ssl.SSLSocket):
            unread += sock.pending()  # the sum is no less than the plain text that can still come
        if isinstance(body, _LengthDecoder):
            truncated = body.remaining - len(self._leftover) > unread
        elif not unread:
            truncated = not await _completes(copy.copy(body), self._leftover)
        elif is_tls or unread > _PEEK_BYTES:
            return  # can't tell now; the next pause, or reading on, will
        else:
            try:
                ahead = sock.recv(unread, socket.MSG_PEEK)
            except OSError:
                return
            truncated = not await _completes(copy.copy(body), self._leftover + ahead)
        if truncated:
            self.stream.close()
        elif self._exchange is not None and self._phase is _Phase.BODY:
            self._exchange.probe()

    def _on_closed(self) -> None:
        """The stream is closed, by whomever: free what waits for it."""
        if self._phase is _Phase.BODY:
            self._end_delegate()
        elif self._phase is _Phase.RESPONSE and self._exchange is not None:
            self._exchange.client_left()
        if self._exchange is not None:
            self._exchange.finished = True
        self.wake()
        if self._lending and self.task is not None:
            self.task.cancel()

    def watch_writing(self) -> None:
        """See to it that a client that does not read is cut after a while."""
        if self._write_timer is None:
            timeout_s = self.server.write_timeout_s
            self._write_timer = self._loop.call_later(timeout_s, self._check_writing, self._valve.sent_bytes)

    def _check_writing(self, sent_bytes: int) -> None:
        self._write_timer = None
        if self.stream.closed() or not self.stream.writing():
            return
        if self._valve.sent_bytes == sent_bytes:
            logger.info("%s has not read for %g s", self.context.remote_ip, self.server.write_timeout_s)
            self.stream.close()
        else:
            self.watch_writing()

    def close_if_idle(self) -> None:
        """Close the connection if no request is being served."""
        if self._phase is _Phase.IDLE:
            self.stream.close()

    async def close(self) -> None:
        """Cut the connection and wait until its loop has ended."""
        self.stream.close()
        if self.task is not None:
            await asyncio.wait([self.task])


class _LengthDecoder:
    """A body with Content-Length, with ChunkDecoder's face."""

    needs_input = True

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.leftover = b""

    @property
    def finished(self) -> bool:
        return not self.remaining

    def feed(self, data: bytes = b"") -> bytes:
        piece = data[: self.remaining]
        self.remaining -= len(piece)
        if len(piece) < len(data):
            self.leftover += data[len(piece) :]
        return piece


class _Valve:
    """Stands between an IOStream and its socket.

    It is put in through `read_from_fd` and `write_to_fd`, the methods that IOStream documents for subclasses;
    the server gets its streams ready made, so ours go on the instance.
    """

    def __init__(self, stream: IOStream) -> None:
        self.sent_bytes = 0
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._io_loop = IOLoop.current()
        self._read_from_fd = stream.read_from_fd
        self._write_to_fd = stream.write_to_fd
        self._muted = False
        self._burst = 0
        setattr(stream, "read_from_fd", self._read)  # noqa: B010  # mypy forbids the assignment
        setattr(stream, "write_to_fd", self._write)  # noqa: B010

    def read(self) -> "asyncio.Future[bytes]":
        """Start to read 1 to READ_BYTES bytes. One at a time.

        Raises:
            StreamClosedError
        """
        future = cast("asyncio.Future[bytes]", self._stream.read_bytes(READ_BYTES, partial=True))
        if self._muted and not future.done() and not self._stream.closed():
            # IOStream believes that it listens.
            self._muted = False
            self._listen(IOLoop.READ)
        return future

    def _read(self, buffer: bytearray | memoryview) -> int | None:
        if self._stream.reading():
            return self._read_from_fd(buffer)
        # IOStream listens while it is idle, only to learn of the peer's leaving. Whatever there is can wait;
        # but the event would come again at once, so stop listening behind its back.
        self._muted = True
        self._listen(0)
        return None

    def _listen(self, events: int) -> None:
        if self._stream.writing():
            events |= IOLoop.WRITE
        self._io_loop.update_handler(self._stream.fileno(), IOLoop.ERROR | events)

    def _write(self, data: memoryview) -> int:
        if not self._burst:
            self._loop.call_soon(self._end_burst)
        elif self._burst >= YIELD_BYTES:
            return 0  # as if the socket were full; it goes on in the next turn
        sent = self._write_to_fd(data)
        self._burst += sent + _WRITE_COST_BYTES
        self.sent_bytes += sent
        return sent

    def _end_burst(self) -> None:
        self._burst = 0


class _Goodbyes:
    """Learns from the kernel that a peer has closed its side (FIN) or both (RST), also while nobody reads.

    An epoll inside the loop's selector, because that has no way to ask for EPOLLRDHUP. Edge-triggered: one
    word each. Where there is no epoll, leaving is noticed when we next read or write.
    """

    def __init__(self) -> None:
        self._connections: dict[int, _Connection] = {}
        self._io_loop = IOLoop.current()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            self._io_loop.add_handler(self._epoll.fileno(), self._on_events, IOLoop.READ)

    def add(self, connection: _Connection) -> None:
        self._connections[connection.fd] = connection
        if self._epoll is not None:
            self._epoll.register(connection.fd, _RDHUP | select.EPOLLET)

    def watch(self, connection: _Connection, *, on: bool) -> None:
        if self._epoll is not None and on:
            self._epoll.register(connection.fd, _RDHUP | select.EPOLLET)
        elif self._epoll is not None:
            self._epoll.unregister(connection.fd)

    def remove(self, connection: _Connection) -> None:
        # Closing the socket has unregistered it; its number may be another connection's by now.
        if self._connections.get(connection.fd) is connection:
            del self._connections[connection.fd]

    def close(self) -> None:
        if self._epoll is not None:
            self._io_loop.remove_handler(self._epoll.fileno())
            self._epoll.close()

    def _on_events(self, fd: object, events: int) -> None:
        assert self._epoll is not None
        for number, what in self._epoll.poll(0, 256):
            connection = self._connections.get(number)
            if connection is not None and not connection.stream.closed():
                connection.on_goodbye(bool(what & (select.EPOLLERR | select.EPOLLHUP)))


async def _completes(body: ChunkDecoder, data: bytes) -> bool:
    """Would `data` bring `body` to its end, in one way or another?"""
    try:
        body.feed(data)
        while not body.needs_input:
            await asyncio.sleep(0)
            body.feed()
    except ProtocolError:
        return True  # reading on will say so
    return body.finished


def _look_at(future: "asyncio.Future[None]") -> None:
    """Have asyncio think that somebody saw the future's error: a handler need not wait for its writes."""
    if not future.cancelled():
        future.exception()


def _set_keepalive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without a word (its host is off, its NAT forgot it).

    After a minute of silence it asks, four times in another minute, and then resets the connection.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reset_on_close(sock: socket.socket, *, on: bool) -> None:
    """Let closing the socket be a reset, or, as usual, a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))


def _options(headers: httputil.HTTPHeaders) -> list[str]:
    return [option.strip().lower() for option in headers.get("Connection", "").split(",")]


def _head_bytes(code: int, reason: str, fields: list[tuple[str, str]]) -> bytes:
    """Format a response's head.

    Raises:
        ValueError: a control character that would end a line, or split the response.
    """
    lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in fields)]
    for line in lines:
        if "\r" in line or "\n" in line or "\0" in line:
            raise ValueError(f"control character in header {line!r}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
