"""C git's own `git http-backend` behind a small HTTP/1.1 server: the peer that validates our tests.

    python tests/interop/http_backend.py ROOT [--port P] [--host H] [--anonymous none|read|write]
                                              [--htpasswd FILE] [--require-export-ok]

The flags are gitsmart's, so one fixture starts either. A thread a connection, a process a request: it is for
tests, it trusts its peers (their `X-Remote-User` and `X-Git-Namespace` too), and it knows only `{SHA}`
passwords. It does not check what http-backend checks. What http-backend writes to its stderr is logged as
`stderr <X-Request-Id>: <line>`.
"""

import argparse
import base64
import hashlib
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

_BLOCK = 65536


class Handler(BaseHTTPRequestHandler):
    """One connection; every request becomes one CGI process."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def _serve(self) -> None:
        target = urlsplit(self.path)
        user = self._user()
        wants_push = "service=git-receive-pack" in target.query or target.path.endswith("/git-receive-pack")
        needs_user = self.server.anonymous == "none" or (wants_push and self.server.anonymous == "read")
        if user is None or (user == "" and needs_user):
            self._drain()
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        environ = {
            **self.server.environ,
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_PROTOCOL": self.request_version,
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(target.path, errors="surrogateescape"),
            "QUERY_STRING": target.query,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "GIT_PROJECT_ROOT": str(self.server.root),
        }
        if self.server.export_all:
            environ["GIT_HTTP_EXPORT_ALL"] = "1"
        if self.headers.get("X-Git-Namespace"):
            environ["GIT_NAMESPACE"] = self.headers["X-Git-Namespace"]
        if user or self.server.anonymous == "write":
            environ["REMOTE_USER"] = user or "anonymous"
        for name, value in self.headers.items():
            environ.setdefault("HTTP_" + name.upper().replace("-", "_"), value)
        if "Content-Length" in self.headers:
            environ["CONTENT_LENGTH"] = self.headers["Content-Length"]
        if self.headers.get("Git-Protocol"):
            environ["GIT_PROTOCOL"] = self.headers["Git-Protocol"]
        process = subprocess.Popen(
            ["git", "http-backend"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=self._feed, args=(process,), daemon=True)
        feeder.start()
        listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
        listener.start()
        try:
            self._reply(process)
        finally:
            process.stdout.close()
            process.wait()
            feeder.join(timeout=30)
            listener.join(timeout=30)
            self.log_message("stderr %s: end", self.headers.get("X-Request-Id", "-"))

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                text = line.decode(errors="backslashreplace").rstrip("\n")
                self.log_message("stderr %s: %s", self.headers.get("X-Request-Id", "-"), text)

    def _feed(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        open_ = True
        try:
            for block in self._body():
                if open_:
                    try:
                        process.stdin.write(block)
                        process.stdin.flush()
                    except OSError:
                        open_ = (
                            False  # the process has left; read on, so that the client can finish and see why
                        )
        except (OSError, ValueError):
            self.close_connection = True
            process.kill()  # http-backend spins for ever on a body that ends early
        finally:
            try:
                process.stdin.close()
            except OSError:
                pass

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        return self._fixed(int(self.headers.get("Content-Length") or 0))

    def _fixed(self, left: int) -> Iterator[bytes]:
        while left:
            block = self.rfile.read1(min(left, _BLOCK))
            if not block:
                raise ValueError("body ends early")
            left -= len(block)
            yield block

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self.rfile.readline(1024)
            size = int(line.split(b";")[0], 16)
            if size == 0:
                while self.rfile.readline(1024).strip():
                    pass
                return
            yield from self._fixed(size)
            if self.rfile.read(2) != b"\r\n":
                raise ValueError("chunk without its end")

    def _drain(self) -> None:
        try:
            for _ in self._body():
                pass
        except (OSError, ValueError):
            self.close_connection = True

    def _reply(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        status, headers = 200, []
        while line := process.stdout.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            else:
                headers.append((name, value.strip()))
        self.send_response(status if headers else 500)
        length_known = any(name.lower() == "content-length" for name, _ in headers)
        chunked = not length_known and self.request_version == "HTTP/1.1" and self.command != "HEAD"
        for name, value in headers:
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not length_known:
            self.send_header("Connection", "close")
        self.end_headers()
        while block := process.stdout.read1(_BLOCK):  # type: ignore[attr-defined,unused-ignore]
            if self.command != "HEAD":
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _user(self) -> str | None:
        """The user's name; "" for an anonymous one; None for wrong credentials."""
        if self.headers.get("X-Remote-User"):
            return self.headers["X-Remote-User"]
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return ""
        name, _, password = base64.b64decode(token).decode().partition(":")
        digest = "{SHA}" + base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()
        return name if self.server.passwords.get(name) == digest else None

    def log_message(self, format: str, *args: object) -> None:
        sys.stdout.write(f"{format % args}\n")
        sys.stdout.flush()


class Server(socketserver.ThreadingTCPServer):
    """Listens; keeps what every request needs."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        self.root: Path = options.root.resolve()
        self.anonymous: str = options.anonymous
        self.export_all: bool = not options.require_export_ok
        self.passwords: dict[str, str] = {}
        if options.htpasswd:
            lines = options.htpasswd.read_text().splitlines()
            self.passwords = {name: digest for name, _, digest in (line.partition(":") for line in lines)}
        self.environ = dict(os.environ)
        super().__init__((options.host, options.port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that cuts the connection is what some tests are for


def main() -> int:
    parser = argparse.ArgumentParser(prog="http_backend.py")
    parser.add_argument("root", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--anonymous", choices=["none", "read", "write"], default=None)
    parser.add_argument("--htpasswd", type=Path)
    parser.add_argument("--require-export-ok", action="store_true")
    options = parser.parse_args()
    if options.anonymous is None:
        options.anonymous = "read" if options.htpasswd else "write"
    server = Server(options)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving {options.root} at http://{options.host}:{server.server_address[1]}/", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
