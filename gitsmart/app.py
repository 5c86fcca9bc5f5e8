"""Where everything is put together from one Config, and how a server lives.

    bind -> start-up line -> serve ... SIGTERM or SIGINT -> drain -> stop
                                                            |
                             no new connections, /-/healthz says 503, running requests may end; after
                             `server.drain_s`, or on a second signal, what still runs is cut off

    run with server.workers = 1      one process, which does everything in threads
                            more     supervisor.py forks fronts, which `serve`, and a pool for what is long

`git_routes` gives the rules to mount in somebody else's application, `create_app` a whole application,
`serve` the process. What they share (threads, open repositories, passwords) is a Site; each call makes one
of its own, and of the Site that is made before a fork each process has its own copy.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from tornado.netutil import bind_sockets
from tornado.routing import URLSpec
from tornado.web import Application, RequestHandler

from gitsmart import config as configuration
from gitsmart import native
from gitsmart.access.credentials import HtpasswdFile
from gitsmart.access.rules import Anonymous
from gitsmart.config import Config
from gitsmart.errors import ConfigError, Disconnected, GitsmartError
from gitsmart.httpd.connection import HTTPServer
from gitsmart.httpd.handler import NotFound, Site
from gitsmart.httpd.routes import GIT_ROUTES, SERVER_ROUTES, rules
from gitsmart.httpd.smart import perform
from gitsmart.jobs import JobQueue, take_jobs
from gitsmart.pack.indexer import IngestLimits
from gitsmart.pack.objectid import require_collision_detection
from gitsmart.pack.packcache import PackCache
from gitsmart.repo.gitconfig import ServerConfig
from gitsmart.repo.ref_view import namespace_prefix
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.options import ServiceOptions
from gitsmart.supervisor import CUT, READY, Role, Supervisor, stop_signals
from gitsmart.telemetry import log
from gitsmart.upkeep import NICE, Upkeep, hold_root
from gitsmart.wire.http_head import HeadLimits
from gitsmart.workers import Workers

__all__ = ["CannotListen", "create_app", "git_routes", "maintain", "run", "serve"]

logger = logging.getLogger(__name__)

HOOK_ENVIRON = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""What hooks get of the server's own environment. Nothing else: it may hold secrets, or GIT_ variables."""

CACHE_DIRECTORY = ".gitsmart-cache"
"""Where the clone cache is, in the root, unless `cache.directory` says otherwise."""

STAYED = "a worker did not end in time; leaving without it"

POOL_NICE = 5
"""How far long work steps back for what is short (measured: benchmarks/latency.py, decision 0008)."""

CUT_OFF_S = 1.0
"""How long requests that were cut off have to clean up. A client that leaves frees everything within a
second."""


class CannotListen(GitsmartError):
    """The address and port can't be had."""


def git_routes(
    root: str | Path | Config,
    *,
    prefix: str = "",
    anonymous: Anonymous = "read",
    htpasswd: str | Path | None = None,
) -> list[URLSpec]:
    """Return the rules that serve git below `prefix`, to mount in a Tornado application.

    They work under `gitsmart.HTTPServer`, and under Tornado's own HTTPServer with that one's limits: it
    refuses chunk extensions and trailers, is slow on tiny chunks, and closes connections on clients that are
    still sending.

    Args:
        root: the directory of repositories; or a Config, and then the other arguments but `prefix` don't
        count. prefix: "" or a path such as "/git", without a slash at its end.
        anonymous: what users without a name may do: "none", "read" or "write".
        htpasswd: the file of those who can sign in.

    Raises:
        ConfigError: `root` is no directory, or an argument or the htpasswd file is not as it should be.
    """
    if prefix and not prefix.startswith("/"):
        raise ConfigError(f'prefix is {prefix!r}; allowed: "", or a path that begins with a slash')
    config = _config_of(root, anonymous, htpasswd)
    return rules(GIT_ROUTES, _make_site(config, loopback=False), prefix=prefix.rstrip("/"))


def create_app(
    root: str | Path | Config, *, anonymous: Anonymous = "read", htpasswd: str | Path | None = None
) -> Application:
    """Return an application that serves git at "/", and `/-/healthz`; for the arguments see `git_routes`."""
    return _application(_make_site(_config_of(root, anonymous, htpasswd), loopback=False))


def _config_of(root: str | Path | Config, anonymous: Anonymous, htpasswd: str | Path | None) -> Config:
    if isinstance(root, Config):
        return root
    return configuration.load(
        flags={
            "server.root": ("root", str(root)),
            "access.anonymous": ("anonymous", anonymous),
            "access.htpasswd": ("htpasswd", str(htpasswd or "")),
        }
    )


def _make_site(config: Config, *, loopback: bool, processes: int = 1, jobs: JobQueue | None = None) -> Site:
    limits = config.limits
    try:
        namespace_prefix(config.server.namespace)
    except ValueError as error:
        raise ConfigError(f'server.namespace: {error}; allowed: "", or a part of a ref\'s name') from None
    return Site(
        config=config,
        root=_make_root(config),
        workers=Workers(threads=-(-limits.workers // processes), idle_timeout_s=limits.idle_timeout_s),
        jobs=jobs,
        options=ServiceOptions(
            keepalive_s=limits.keepalive_s,
            fetch_lines=limits.request_lines,
            fetch_bytes=limits.request_bytes,
            push_lines=limits.request_lines,
            push_bytes=limits.request_bytes,
            ingest=IngestLimits(
                pack_bytes=config.push.pack_bytes or None,
                objects=config.push.pack_objects,
                object_bytes=config.push.object_bytes,
                structure_bytes=config.push.structure_bytes,
                delta_bytes=config.push.delta_bytes,
                delta_depth=config.push.delta_depth,
            ),
            detect_collisions=config.push.detect_collisions,
            hook_timeout_s=config.push.hook_timeout_s,
            hook_environ={name: os.environ[name] for name in HOOK_ENVIRON if name in os.environ},
            pack_cache=_pack_cache(config),
        ),
        anonymous=config.anonymous(loopback=loopback),
        htpasswd=HtpasswdFile(Path(config.access.htpasswd)) if config.access.htpasswd else None,
        trusted_proxies=config.networks(),
    )


def _make_root(config: Config) -> RepositoryRoot:
    return RepositoryRoot(
        Path(config.server.root),
        ServerConfig.from_settings(config.git_config, config.git.locked),
        export_all=config.server.export_all,
    )


def _pack_cache(config: Config) -> PackCache | None:
    cache = config.cache
    if not cache.bytes:
        return None
    directory = Path(cache.directory or os.path.join(config.server.root, CACHE_DIRECTORY))
    return PackCache.at(directory, limit_bytes=cache.bytes, repository_bytes=cache.repository_bytes)


def _application(site: Site) -> Application:
    return Application(
        [*rules(SERVER_ROUTES, site), *rules(GIT_ROUTES, site)],
        default_handler_class=NotFound,
        default_handler_args={"site": site},
        log_function=_log_nothing,
    )


def _log_nothing(handler: RequestHandler) -> None:
    """Tornado's access log: Handler.end() writes ours."""


# --- the process


async def serve(config: Config, *, announce: Callable[[str], None]) -> bool:
    """Serve in this process until a signal says to stop, then drain; `announce` gets the start-up lines once
    the socket listens.

    Returns whether every worker has ended: a process with one that has not must leave by `os._exit`.

    Raises:
        ConfigError: the root is no directory, the htpasswd file is bad.
        CannotListen: the address or port can't be had.
    """
    sockets = _bind(config.server.host, config.server.port)
    try:
        site = _make_site(config, loopback=all(map(_is_loopback, sockets)))
        swept, first = await site.workers.call(_prepare, site)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    _log_start(swept)
    stopping, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, on_signal)

    def on_ready() -> None:
        _announce(site, sockets, first, announce)

    return await _serve(site, sockets, on_ready, stopping, at_once, shares_sockets=False)


async def _serve(
    site: Site,
    sockets: list[socket.socket],
    on_ready: Callable[[], None],
    stopping: asyncio.Event,
    at_once: asyncio.Event,
    *,
    shares_sockets: bool,
) -> bool:
    """Accept connections until `stopping`, then drain, but no longer than until `at_once`; see `serve`."""
    limits = site.config.limits
    server = HTTPServer(
        _application(site),
        head_limits=HeadLimits(
            head_bytes=limits.head_bytes, line_bytes=limits.head_line_bytes, fields=limits.head_fields
        ),
        head_timeout_s=limits.head_s,
        idle_timeout_s=limits.connection_idle_s,
        body_timeout_s=limits.idle_timeout_s,
        write_timeout_s=limits.idle_timeout_s,
        shares_sockets=shares_sockets,
    )
    server.add_sockets(sockets)
    upkeep = Upkeep(site.config, site.workers)
    if site.config.maintenance.auto:
        site.on_pushed = upkeep.pushed
    on_ready()
    await stopping.wait()
    await _drain(site, server, at_once)
    await upkeep.stop(CUT_OFF_S)
    site.workers.close()
    return site.workers.join(CUT_OFF_S)


def _announce(
    site: Site, sockets: list[socket.socket], first: str | None, announce: Callable[[str], None]
) -> None:
    url = _url(sockets)
    announce(f"serving {site.root.path} at {url} ({_who_may(site, sockets)})")
    if first is None:
        announce("there is no repository yet: gitsmart init NAME makes one")
    else:
        announce(f"git clone {url}{quote(first)}")


def _log_start(swept: int) -> None:
    if native.missing:
        logger.info("without native module, slower: %s", native.missing)
    _log_swept(swept)


def _log_swept(things: int) -> None:
    if things:
        logger.info("removed what a killed server left", extra={"fields": {"things": things}})


def serve_in_processes(config: Config, processes: int, *, announce: Callable[[str], None]) -> bool:
    """Serve like `serve`, by forked processes; blocking, for the main thread of a process without others.

    Returns whether all processes have ended in time.

    Raises:
        ConfigError, CannotListen: as `serve`.
        StartFailed: one of them ended before it served.
    """
    sockets = _bind(config.server.host, config.server.port)
    jobs = JobQueue()

    def close_queue() -> None:
        jobs.close_giver()
        jobs.close_taker()

    try:
        site = _make_site(config, loopback=all(map(_is_loopback, sockets)), processes=processes, jobs=jobs)
        swept, first = _prepare(site)
        _log_start(swept)

        supervisor = Supervisor(
            [
                Role("pool", processes, lambda control: _pool_main(site, sockets, control), is_front=False),
                Role("front", processes, lambda control: _front_main(site, sockets, control), is_front=True),
            ],
            sweep=lambda: _sweep_main(site, sockets, jobs),
            on_last_front=close_queue,
            inherited=sockets,
        )
        return supervisor.run(lambda: _announce(site, sockets, first, announce))
    finally:
        close_queue()
        for bound in sockets:
            bound.close()


def _front_main(site: Site, sockets: list[socket.socket], control: socket.socket) -> int:
    """Serve connections, in a forked process, until the supervisor says to drain or has gone."""
    assert site.jobs is not None
    site.jobs.close_taker()

    async def main() -> bool:
        stopping, at_once = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_order() -> None:
            order = control.recv(1)
            if not order:
                loop.remove_reader(control)
            (at_once if order == CUT else stopping).set()

        loop.add_reader(control, on_order)
        return await _serve(
            site, sockets, lambda: control.sendall(READY), stopping, at_once, shares_sockets=True
        )

    if not asyncio.run(main()):
        logger.warning(STAYED)
    return 0


def _pool_main(site: Site, sockets: list[socket.socket], control: socket.socket) -> int:
    """Do jobs, in a forked process, until no front is left to give any."""
    assert site.jobs is not None
    for bound in sockets:
        bound.close()
    site.jobs.close_giver()
    os.nice(POOL_NICE)
    control.sendall(READY)
    if not take_jobs(site.jobs, partial(perform, site), stop_after_s=CUT_OFF_S):
        logger.warning(STAYED)
    return 0


def _sweep_main(site: Site, sockets: list[socket.socket], jobs: JobQueue) -> None:
    """Remove what a killed process left, in a forked process."""
    for bound in sockets:
        bound.close()
    jobs.close_giver()
    jobs.close_taker()
    _log_swept(site.root.sweep())


def _prepare(site: Site) -> tuple[int, str | None]:
    """Sweep the root, and find a repository to name; blocking."""
    if site.options.detect_collisions:
        require_collision_detection()
    if site.options.pack_cache is not None:
        site.options.pack_cache.sweep()
    return site.root.sweep(), next(site.root.names(), None)


async def _drain(site: Site, server: HTTPServer, at_once: asyncio.Event) -> None:
    """Let what runs end, within bounds."""
    site.draining = True
    server.stop()
    drain_s = site.config.server.drain_s
    if site.active:
        logger.info("draining", extra={"fields": {"requests": len(site.active), "seconds": drain_s}})
    draining = asyncio.create_task(server.drain(drain_s))
    hurry = asyncio.create_task(at_once.wait())
    await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, hurry):
        task.cancel()
    if draining.done() and draining.result():
        logger.warning("connections were cut off", extra={"fields": {"connections": draining.result()}})
    site.workers.abort_all(Disconnected("the server is stopping"))
    await server.close_all_connections()
    idle = asyncio.Event()
    site.on_idle = idle.set
    if site.active:
        try:
            await asyncio.wait_for(idle.wait(), CUT_OFF_S)
        except TimeoutError:
            pass


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        return bind_sockets(port, host)
    except UnicodeError:  # socket.getaddrinfo: no DNS label is empty, or longer than 63 bytes
        raise CannotListen(f"can't listen on {host}:{port}: not a host name") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotListen(f"can't listen on {host}:{port}: {reason.lower()}") from None


def _is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def _url(sockets: list[socket.socket]) -> str:
    host, port = sockets[0].getsockname()[:2]
    if _is_unspecified(sockets[0]):
        host = "localhost"
    elif sockets[0].family == socket.AF_INET6:
        host = f"[{host}]"
    return f"http://{host}:{port}/"


def _is_unspecified(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_unspecified


def _who_may(site: Site, sockets: list[socket.socket]) -> str:
    """Say in words who may do what."""
    access = site.config.access
    signed_in = [f"users in {access.htpasswd}"] if site.htpasswd is not None else []
    if site.trusted_proxies:
        signed_in.append(f"users named by {', '.join(access.trusted_proxies)}")
    words = {
        "none": "anonymous users may do nothing",
        "read": "anonymous users may read",
        "write": "anonymous users may read and write",
    }[site.anonymous]
    if site.anonymous != "write":
        words += f", {' and '.join(signed_in) or 'nobody'} may {'read and write' if signed_in else 'write'}"
    if all(_is_loopback(bound) for bound in sockets):
        words += "; loopback only"
    elif any(_is_unspecified(bound) for bound in sockets):
        words += "; on every address"
    return words


def maintain(
    config: Config, names: Sequence[str] | None, *, full: bool | None, announce: Callable[[str], None]
) -> bool:
    """Maintain repositories, one after the other; blocking. `names`: None for all; `full`: see
    `Repository.maintain`.

    SIGTERM and SIGINT end it, and nothing is left. Returns whether all could be maintained.

    Raises:
        ConfigError: the root is no directory.
    """
    log.configure(config.server.log_format)
    for number in stop_signals():
        signal.signal(number, lambda *_: sys.exit(1))
    root = _make_root(config)
    if not root.path.is_dir():
        raise ConfigError(f"{root.path} is no directory")
    fine = True
    for name in root.names() if names is None else names:
        began_s = time.monotonic()
        try:
            repo = root.open(name)
            report = repo.maintain(full=full)
        except (GitsmartError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("can't maintain %s: %s", name, reason)
            fine = False
            continue
        if report.is_busy:
            announce(f"{repo.name}: another maintainer, or git gc, is at work")
            continue
        fields = {
            "repo": repo.name,
            "packs_before": report.packs_before,
            "packs": report.packs,
            "joined": report.joined,
            "loose": report.loose,
            "unreachable": report.unreachable,
            "dropped": report.dropped,
            "refs": report.refs,
            "full": report.is_full,
            "note": report.note,
            "seconds": round(time.monotonic() - began_s, 3),
        }
        logger.info("maintained", extra={"fields": fields})
        words = (
            f"{repo.name}: {report.packs_before} packs, now {report.packs}; {report.dropped} objects dropped"
        )
        announce(words + (f"; {report.note}" if report.note else ""))
    return fine


def maintain_after_push(name: str) -> int:
    """Maintain one repository in the process that `Upkeep` started for it, and return its exit status."""
    config = configuration.restore(sys.stdin.buffer.read())
    os.nice(NICE)
    if not hold_root(config.server.root):
        return 0
    return 0 if maintain(config, [name], full=None, announce=lambda _: None) else 1


def run(config: Config, *, announce: Callable[[str], None]) -> None:
    """Configure the log and serve; blocking, for the main thread of a process of its own.

    It does not return when a worker runs on that takes no notice: then the process ends here, with status 0.

    Raises:
        ConfigError, CannotListen, StartFailed: see `serve` and `serve_in_processes`.
    """
    log.configure(config.server.log_format)
    processes = config.server.processes(len(os.sched_getaffinity(0)))
    if processes > 1:
        serve_in_processes(config, processes, announce=announce)
    elif not asyncio.run(serve(config, announce=announce)):
        logger.warning(STAYED)
        logging.shutdown()
        os._exit(0)
