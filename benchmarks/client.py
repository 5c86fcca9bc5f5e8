"""A client that only counts: requests over connections of their own, as cheap for the machine as can be."""

import socket
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ZERO", "Address", "fetch_body", "get", "pkt", "post", "push_head", "push_pack"]

ZERO = "0" * 40
Address = tuple[str, int]


def pkt(line: str) -> bytes:
    return b"%04x%b" % (len(line.encode()) + 4, line.encode())


def get(address: Address, path: str, *, version: int = 0) -> int:
    """The bytes of the answer."""
    fields = f"Git-Protocol: version={version}\r\n" if version else ""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n"
    return _exchange(address, path, head.encode(), b"")


def post(address: Address, path: str, body: bytes, *, version: int = 2) -> int:
    """The bytes of the answer to one request of a service."""
    return _exchange(address, path, _post_head(path, len(body), version) + body, b"")


def _post_head(path: str, size: int, version: int) -> bytes:
    service = path.rpartition("/")[2]
    fields = f"Git-Protocol: version={version}\r\n" if version else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n"
        f"Content-Type: application/x-{service}-request\r\n{fields}\r\n".encode()
    )


def push_head(refs: Sequence[tuple[str, str]], old: str = ZERO) -> bytes:
    """The commands that give these names these values, up to the pack."""
    lines = [f"{old} {oid} {name}" for name, oid in refs]
    lines[0] += "\0 report-status ofs-delta"
    return b"".join(map(pkt, lines)) + b"0000"


def push_pack(address: Address, name: str, head: bytes, pack: Path) -> int:
    """Push a pack from a file; the bytes sent. Raises: SystemExit, when it isn't taken."""
    path = f"/{name}/git-receive-pack"
    size = len(head) + pack.stat().st_size
    _exchange(address, path, _post_head(path, size, 0) + head, b"unpack ok", pack)
    return size


def fetch_body(
    wants: Sequence[str], haves: Sequence[str] = (), *, arguments: Sequence[str] = ("thin-pack",)
) -> bytes:
    """A v2 fetch that takes what it gets."""
    lines = [pkt("command=fetch"), b"0001", pkt("ofs-delta"), pkt("no-progress")]
    lines += [pkt(f"{line}\n") for line in arguments]
    lines += [pkt(f"want {oid}\n") for oid in wants] + [pkt(f"have {oid}\n") for oid in haves]
    return b"".join([*lines, pkt("done\n"), b"0000"])


def _exchange(address: Address, path: str, request: bytes, expected: bytes, file: Path | None = None) -> int:
    buffer = bytearray(1 << 20)
    start = b""
    size = 0
    with socket.create_connection(address, timeout=600) as connection:
        connection.sendall(request)
        if file is not None:
            with file.open("rb") as content:
                connection.sendfile(content)
        while got := connection.recv_into(buffer):
            size += got
            if len(start) < 4096:
                start += buffer[: min(got, 4096)]
    if b" 200 OK" not in start[:30] or expected not in start or b"ERR " in start[:600]:
        raise SystemExit(f"{path}: {start[:1000]!r}")
    return size
