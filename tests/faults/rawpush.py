"""A raw HTTP/1.1 client that builds receive-pack and upload-pack bodies by hand, right or wrong.

    commands + flush-pkt [+ push options + flush-pkt] + pack  ->  POST  ->  report-status in the side-band

It hides nothing: every byte can be left out, repeated or sent late. It shares no code with gitsmart.
"""

import hashlib
import re
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

ZERO = "0" * 40
CAPABILITIES = "report-status side-band-64k delete-refs ofs-delta agent=rawpush/1"
TYPES = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}


def pkt(line: bytes | str) -> bytes:
    data = line.encode() if isinstance(line, str) else line
    return b"%04x%b" % (len(data) + 4, data)


FLUSH, DELIM = b"0000", b"0001"


def read_pkts(data: bytes) -> Iterator[bytes | None]:
    """Every pkt-line's payload; None for flush-, delim- and response-end-pkts; ValueError on garbage."""
    at = 0
    while at < len(data):
        size = int(data[at : at + 4], 16)
        if size < 4:
            yield None
            at += 4
            continue
        if at + size > len(data):
            raise ValueError(f"pkt-line of {size} bytes, {len(data) - at} are left")
        yield data[at + 4 : at + size]
        at += size


def demultiplex(data: bytes) -> dict[int, bytes]:
    """Side-band packets -> {band: bytes}."""
    bands: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    for packet in read_pkts(data):
        if packet:
            bands[packet[0]] += packet[1:]
    return bands


# --- packs


def pack_of(repo: Path, oids: Iterable[str]) -> bytes:
    """A pack with exactly these objects of `repo`, made by C git; it may well be incomplete."""
    return subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"],
        cwd=repo,
        input="".join(f"{oid}\n" for oid in oids).encode(),
        capture_output=True,
        check=True,
    ).stdout


def pack_from(objects: Sequence[tuple[str, bytes]], *, count: int | None = None) -> bytes:
    """A pack of whole objects (type, content), by hand; `count`: what the header says, if not the truth."""
    out = [b"PACK" + struct.pack(">II", 2, len(objects) if count is None else count)]
    for kind, content in objects:
        size = len(content)
        byte = TYPES[kind] << 4 | size & 15
        size >>= 4
        head = bytearray()
        while size:
            head.append(byte | 0x80)
            byte, size = size & 0x7F, size >> 7
        head.append(byte)
        out.append(bytes(head) + zlib.compress(content))
    body = b"".join(out)
    return body + hashlib.sha1(body).digest()


def oid_of(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def commit_object(tree: str, parents: Sequence[str], message: str, when: int = 1_700_000_000) -> bytes:
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    who = f"A U Thor <author@example.com> {when} +0000"
    return "\n".join([*lines, f"author {who}", f"committer {who}", "", message, ""]).encode()


def tree_object(entries: Sequence[tuple[str, str, str]]) -> bytes:
    """A tree of (mode, name, hex oid), in git's order."""
    entries = sorted(entries, key=lambda entry: entry[1].encode() + (b"/" if entry[0] == "40000" else b""))
    return b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries)


# --- requests


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool  # the body's end was seen: Content-Length reached, or the last chunk

    def report(self) -> "Report":
        """The report-status in the body, with or without side-band."""
        bands = None
        try:
            bands = demultiplex(self.body)
        except (KeyError, ValueError):
            pass
        text = bands[1] if bands and bands[1] else self.body
        report = Report(fatal=bands[3].decode(errors="replace") if bands else "")
        for packet in read_pkts(text):
            if packet is None:
                continue
            line = packet.decode().rstrip("\n")
            if line.startswith("unpack "):
                report.unpack = line.removeprefix("unpack ")
            elif line.startswith("ok "):
                report.refs[line.removeprefix("ok ")] = "ok"
            elif line.startswith("ng "):
                name, _, reason = line.removeprefix("ng ").partition(" ")
                report.refs[name] = reason
            elif line.startswith("ERR "):
                report.fatal = line
        return report


@dataclass(slots=True)
class Report:
    unpack: str = ""
    refs: dict[str, str] = field(default_factory=dict)
    fatal: str = ""


class Connection:
    """One TCP connection to a server at http://host:port."""

    def __init__(self, url: str, *, timeout_s: float = 30, receive_buffer: int | None = None) -> None:
        match = re.fullmatch(r"http://([^:/]+):(\d+)", url)
        assert match is not None
        self.host = f"{match[1]}:{match[2]}"
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        try:
            self.socket.connect((match[1], int(match[2])))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def cut(self) -> None:
        """Close with a reset, as when the peer's host has died."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        fields = {"Host": self.host, "User-Agent": "git/2.39.5", "Accept": "*/*", **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        chunk: int | None = None,
    ) -> Response:
        """Send a whole request, in chunks of `chunk` bytes or with a Content-Length; return the response."""
        headers = dict(headers or {})
        if body is not None:
            headers |= {"Transfer-Encoding": "chunked"} if chunk else {"Content-Length": str(len(body))}
        try:
            self.socket.sendall(self.head(method, path, headers))
            if body is not None:
                for piece in chunked(body, chunk) if chunk else [body]:
                    self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered early and closed: read what it said
        return self.response(method)

    def response(self, method: str = "POST") -> Response:
        """Read one response; informational ones are skipped."""
        while True:
            head = self._until(b"\r\n\r\n").decode("latin-1")
            status_line, *lines = head.rstrip("\r\n").split("\r\n")
            status = int(status_line.split(" ")[1])
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            if status >= 200:
                break
        body, complete = b"", True
        if method == "HEAD" or status in {204, 304}:
            pass
        elif "chunked" in headers.get("transfer-encoding", ""):
            try:
                while size := int(self._until(b"\r\n").split(b";")[0], 16):
                    body += self._exactly(size)
                    assert self._exactly(2) == b"\r\n"
                while self._until(b"\r\n") != b"\r\n":
                    pass
            except ConnectionError:
                complete = False
        elif "content-length" in headers:
            try:
                body = self._exactly(int(headers["content-length"]))
            except ConnectionError:
                complete = False
        else:
            while data := self._more():
                body += data
        return Response(status, headers, body, complete)

    def _more(self) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return self.socket.recv(65536)

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._buffer += data

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._fill()
        at = self._buffer.index(end) + len(end)
        data, self._buffer = self._buffer[:at], self._buffer[at:]
        return data

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def chunked(body: bytes, size: int) -> Iterator[bytes]:
    """`body` in the chunked transfer coding."""
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def post_headers(service: str, version: int = 0) -> dict[str, str]:
    headers = {
        "Content-Type": f"application/x-{service}-request",
        "Accept": f"application/x-{service}-result",
    }
    return headers | ({"Git-Protocol": f"version={version}"} if version else {})


def push_body(
    commands: Sequence[tuple[str, str, str]],
    pack: bytes = b"",
    *,
    capabilities: str = CAPABILITIES,
    options: Sequence[str] | None = None,
) -> bytes:
    """Ref update commands (old oid, new oid, ref), then the pack."""
    lines = []
    for number, (old, new, ref) in enumerate(commands):
        tail = "\0 " + capabilities if number == 0 else ""
        lines.append(pkt(f"{old} {new} {ref}{tail}"))
    body = b"".join(lines) + FLUSH
    if options is not None:
        body += b"".join(pkt(option) for option in options) + FLUSH
    return body + pack


def push(
    url: str,
    name: str,
    commands: Sequence[tuple[str, str, str]],
    pack: bytes = b"",
    *,
    capabilities: str = CAPABILITIES,
    chunk: int | None = None,
) -> Response:
    """One push over one connection."""
    body = push_body(commands, pack, capabilities=capabilities)
    with Connection(url) as connection:
        return connection.request(
            "POST", f"/{name}/git-receive-pack", post_headers("git-receive-pack"), body, chunk=chunk
        )


def fetch_body(wants: Sequence[str], haves: Sequence[str] = (), *, version: int = 2) -> bytes:
    """A fetch of everything that `wants` reach, in one round."""
    if version == 2:
        lines = [pkt("command=fetch"), DELIM, pkt("ofs-delta"), pkt("no-progress")]
        lines += [pkt(f"want {oid}\n") for oid in wants] + [pkt(f"have {oid}\n") for oid in haves]
        return b"".join([*lines, pkt("done\n"), FLUSH])
    first, *rest = wants
    lines = [
        pkt(f"want {first} side-band-64k ofs-delta no-progress\n"),
        *(pkt(f"want {o}\n") for o in rest),
        FLUSH,
    ]
    return b"".join([*lines, *(pkt(f"have {oid}\n") for oid in haves), pkt("done\n")])
