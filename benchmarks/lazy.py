"""What the lazy fetches of a partial clone cost the server, in CPU milliseconds, without HTTP.

    python -m benchmarks.lazy REPOSITORY

First with nothing proven, as after a start: a blob of HEAD, then 300 of them one by one, then what lies ever
further back. To refuse an object costs what the oldest tree costs, once. Then clones with filters.
"""

import argparse
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.options import ServiceOptions
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, pkt


class Sink:
    """A Channel that counts what it is sent."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.sent = 0

    def read(self, n: int) -> bytes:
        data, self._request = self._request[:n], self._request[n:]
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += len(data)

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        self.sent += sum(map(len, parts))

    def flush(self) -> None: ...
    def promise(self, size: int) -> None: ...
    def check(self) -> None: ...
    def keepalive(self, packet: bytes, interval_s: float) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    path = parser.parse_args().repository.resolve()
    repo = RepositoryRoot(path.parent).open(path.name)

    def git(*args: str) -> bytes:
        return subprocess.run(["git", "-C", path, *args], check=True, stdout=subprocess.PIPE).stdout

    def fetch(*arguments: bytes) -> float:
        head = [b"command=fetch", b"object-format=" + repo.format.name]
        body = b"".join(map(pkt, head)) + DELIM_PKT + b"".join(map(pkt, [*arguments, b"done"])) + FLUSH_PKT
        started = time.process_time()
        report = upload_pack(repo, Sink(body), version=2, options=ServiceOptions())
        assert not report.failed, report.note
        return (time.process_time() - started) * 1000

    def lazy(oid: bytes) -> float:
        return fetch(b"want " + oid, b"filter blob:none")

    def show(what: str, cpu_ms: float) -> None:
        anonymous = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        assert anonymous is not None
        print(f"{what:44}{cpu_ms:10.2f} ms{int(anonymous[1]) / 1024:8.0f} MiB")

    blobs = [row.split()[2] for row in git("ls-tree", "-r", "HEAD").splitlines() if b" blob " in row]
    show("a blob of HEAD, first of all", lazy(blobs[0]))
    times = sorted(lazy(blob) for blob in blobs[:300])
    show("300 others, the median", times[len(times) // 2])
    commits = git("rev-list", "--first-parent", "HEAD").split()
    for back in (10, 100, 1000, 5000):
        if back < len(commits):
            tree = git("rev-parse", commits[back].decode() + "^{tree}").strip()
            show(f"the tree {back} commits back", lazy(tree))
    show("the oldest tree", lazy(git("rev-parse", commits[-1].decode() + "^{tree}").strip()))
    show("again", lazy(git("rev-parse", commits[-1].decode() + "^{tree}").strip()))
    for spec in (b"blob:none", b"tree:0"):
        show(f"a clone with {spec.decode()}", fetch(b"want " + commits[0], b"filter " + spec))


if __name__ == "__main__":
    main()
