"""The two servers of a comparison: gitsmart, and nginx + fcgiwrap + git-http-backend.

    with Gitsmart(root, scratch) as server:   server.url, server.cpu_s()

Both log every request. CPU seconds are those of a control group that holds the server and every process
that it starts, ended ones included (fcgiwrap ignores SIGCHLD, so that `cutime` in /proc knows nothing
of its children). Memory is sampled over the process tree.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PACKAGES = "nginx-light fcgiwrap"

# what git's client and git's server see: no config but ours
ENVIRON = {
    "PATH": os.environ["PATH"],
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
}


def environ(home: Path) -> dict[str, str]:
    """The environment of every git process here."""
    home.mkdir(parents=True, exist_ok=True)
    config = home / "gitconfig"
    config.write_text(
        "[user]\n\tname = B\n\temail = b@example.com\n[init]\n\tdefaultBranch = main\n"
        "[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n"
    )
    return {**ENVIRON, "HOME": str(home), "GIT_CONFIG_GLOBAL": str(config)}


class Unavailable(Exception):
    """A server can't be started here; the text says what is missing."""


_numbers = itertools.count(1)


class ControlGroup:
    """A control group that counts the CPU time of what was started in it: cgroup v2, or v1's cpuacct."""

    def __init__(self, name: str) -> None:
        for base, file, unit in (
            (Path("/sys/fs/cgroup"), "cpu.stat", 1e6),
            (Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage", 1e9),
        ):
            path = base / f"gitsmart-bench-{os.getpid()}-{next(_numbers)}-{name}"
            try:
                path.mkdir()
            except OSError:
                continue
            if (path / file).exists():
                self.path, self._file, self._unit = path, file, unit
                return
            path.rmdir()
        raise Unavailable("CPU seconds can't be counted: no control group can be made (root is needed)")

    def seconds(self) -> float:
        text = (self.path / self._file).read_text()
        used = text if self._unit == 1e9 else text.splitlines()[0].removeprefix("usage_usec")
        return int(used) / self._unit

    def command(self, command: tuple[str, ...]) -> list[str]:
        """`command`, started inside the group."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *command]

    def remove(self) -> None:
        """End what is left of what was started here (fcgiwrap leaves its workers), and the group."""
        for pid in (self.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.02)  # a child is about to end


def tree(root: int) -> list[int]:
    """`root` and the processes that descend from it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(name))
    result, todo = [], [root]
    while todo:
        pid = todo.pop()
        result.append(pid)
        todo += children.get(pid, [])
    return result


def _memory_kib(pid: int) -> tuple[int, int]:
    """Resident memory, and the part of it that no file backs."""
    rss = anon = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                rss = int(line.split()[1])
            elif line.startswith("RssAnon:"):
                anon = int(line.split()[1])
    return rss, anon


class Sampler:
    """Watch the memory of some process trees, every 20 ms, and remember the most."""

    def __init__(self, roots: list[int]) -> None:
        self._roots = roots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rss_mib = 0.0
        self.anonymous_mib = 0.0

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            sums = [_memory_kib(pid) for root in self._roots for pid in tree(root)]
            self.rss_mib = max(self.rss_mib, sum(rss for rss, _ in sums) / 1024)
            self.anonymous_mib = max(self.anonymous_mib, sum(anon for _, anon in sums) / 1024)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


class Peer:
    """A server process tree. Subclasses start it and set `url`."""

    name = ""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self.scratch = scratch
        self.url = ""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.group: ControlGroup | None = None
        scratch.mkdir(parents=True, exist_ok=True)
        self.log = scratch / f"{self.name}.log"

    def start(self) -> None:
        raise NotImplementedError

    def run(self, *command: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
        if self.group is None:
            self.group = ControlGroup(self.name)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.group.command(command),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.scratch,
            )
        self.processes.append(process)
        return process

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def cpu_s(self) -> float:
        """CPU seconds of everything that was started here, ended processes included."""
        return self.group.seconds() if self.group else 0.0

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.group is not None:
            self.group.remove()
            self.group = None

    def wait_for_port(self, port: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            for process in self.processes:
                if process.poll() is not None:
                    raise Unavailable(f"{self.name} did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        raise Unavailable(f"{self.name} does not listen:\n{self.log.read_text()}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gitsmart(Peer):
    """gitsmart as its users start it."""

    name = "gitsmart"

    def __init__(self, root: Path, scratch: Path, *, flags: Sequence[str] = ()) -> None:
        super().__init__(root, scratch)
        self.flags = flags

    def start(self) -> None:
        port = free_port()
        flags = [str(self.root), "--port", str(port), "--anonymous", "write", *self.flags]
        env = {**environ(self.scratch / "home"), "PYTHONUNBUFFERED": "1"}
        self.run(sys.executable, "-m", "gitsmart", "serve", *flags, env=env)
        self.wait_for_port(port)
        while "serving " not in self.log.read_text():  # the port listens before all processes serve
            if self.processes[0].poll() is not None:
                raise Unavailable(f"{self.name} did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{port}"

    def high_water_mib(self) -> float:
        """The peaks of resident memory of its processes, as the kernel counts them (VmHWM), added up."""
        found = 0
        for pid in tree(self.pids()[0]):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    found += int(line.split()[1])
        return found / 1024

    def reset_high_water(self) -> None:
        for pid in tree(self.pids()[0]):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


NGINX = """
daemon off;
worker_processes 2;
pid {scratch}/nginx.pid;
error_log {scratch}/nginx-error.log;
{user}
events {{ worker_connections 512; }}
http {{
    access_log {scratch}/nginx-access.log;
    client_body_temp_path {scratch}/body;
    fastcgi_temp_path {scratch}/fastcgi;
    proxy_temp_path {scratch}/proxy;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 75;
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        location / {{
            fastcgi_pass unix:{scratch}/fcgiwrap.socket;
            fastcgi_request_buffering off;
            fastcgi_buffer_size 64k;
            fastcgi_buffers 32 64k;
            fastcgi_busy_buffers_size 128k;
            fastcgi_max_temp_file_size 0;
            fastcgi_read_timeout 600s;
            fastcgi_send_timeout 600s;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param SERVER_PROTOCOL $server_protocol;
            fastcgi_param REMOTE_ADDR $remote_addr;
            fastcgi_param REMOTE_USER bench;
            fastcgi_param GIT_PROTOCOL $http_git_protocol;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param SCRIPT_FILENAME {backend};
            fastcgi_param GIT_PROJECT_ROOT {root};
            fastcgi_param GIT_HTTP_EXPORT_ALL 1;
            {variables}
        }}
    }}
}}
"""


class HttpBackend(Peer):
    """nginx, fcgiwrap and git-http-backend as git's page advises, without buffering on disk."""

    name = "git-http-backend"

    def start(self) -> None:
        nginx, fcgiwrap = _program("nginx"), _program("fcgiwrap")
        exec_path = subprocess.run(
            ["git", "--exec-path"], capture_output=True, check=True, encoding="utf-8"
        ).stdout.strip()
        port = free_port()
        env = environ(self.scratch / "home")
        self.run(fcgiwrap, "-c", "4", "-s", f"unix:{self.scratch}/fcgiwrap.socket", env=env)
        config = self.scratch / "nginx.conf"
        config.write_text(
            NGINX.format(
                scratch=self.scratch,
                port=port,
                root=self.root,
                user="user root;" if os.getuid() == 0 else "",
                backend=Path(exec_path, "git-http-backend"),
                variables="\n".join(f'fastcgi_param {n} "{v}";' for n, v in env.items() if n[:4] != "GIT_A"),
            )
        )
        deadline = time.monotonic() + 20
        while not (self.scratch / "fcgiwrap.socket").exists():
            if time.monotonic() > deadline:
                raise Unavailable("fcgiwrap does not listen")
            time.sleep(0.02)
        self.run(nginx, "-c", str(config), "-p", str(self.scratch), env=env)
        self.wait_for_port(port)
        self.url = f"http://127.0.0.1:{port}"


def _program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/sbin:" + os.environ["PATH"])
    if path is None and os.getuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-qq", "-y", *PACKAGES.split()], stdout=subprocess.DEVNULL)
        path = shutil.which(name, path="/usr/sbin:/sbin:" + os.environ["PATH"])
    if path is None:
        raise Unavailable(f"{name} is missing: apt-get install {PACKAGES}")
    return path
