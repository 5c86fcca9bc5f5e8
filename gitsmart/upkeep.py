"""Maintenance in the background: after a push, by a process of its own, at the lowest priority.

    push ended -> is it due? (in a worker) -> process: python -c ... NAME, the configuration on its stdin
                                              `- holds the root by flock(2): one at a time for each root

Each serving process starts one at most, and tries for a repository no more often than
`maintenance.interval_s`; the repository itself notes when it was done last, for all of them. A process that
finds another at work ends at once. What is going on when the server stops is ended, and cleans up
(repo/maintenance.py is safe against worse).
"""

import asyncio
import fcntl
import logging
import os
import subprocess
import sys
import time

from gitsmart import config as configuration
from gitsmart.config import Config
from gitsmart.errors import GitsmartError
from gitsmart.repo.repository import Repository
from gitsmart.workers import Workers

__all__ = ["Upkeep", "hold_root"]

logger = logging.getLogger(__name__)

NICE = 19
_COMMAND = (
    "import sys; from gitsmart.app import maintain_after_push; sys.exit(maintain_after_push(sys.argv[1]))"
)
_REMEMBERED = 10_000


class Upkeep:
    """What one serving process does for the repositories that are pushed to. In the loop's thread."""

    def __init__(self, config: Config, workers: Workers) -> None:
        self._config = config
        self._workers = workers
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tried_s: dict[str, float] = {}
        self._stopping = asyncio.Event()

    def pushed(self, repo: Repository) -> None:
        """See whether a repository that was pushed to wants to be maintained, and have it done."""
        now_s = time.monotonic()
        interval_s = self._config.maintenance.interval_s
        tried_s = self._tried_s.get(repo.name)
        if self._stopping.is_set() or self._task is not None:
            return
        if tried_s is not None and now_s - tried_s < interval_s:
            return
        self._task = asyncio.get_running_loop().create_task(self._tend(repo))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            logger.error("maintenance could not be started", exc_info=task.exception())

    async def _tend(self, repo: Repository) -> None:
        if not await self._workers.call(self._is_due, repo):
            return
        if len(self._tried_s) >= _REMEMBERED:
            self._tried_s.clear()
        self._tried_s[repo.name] = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _COMMAND,
            repo.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            if self._stopping.is_set():
                self._process.terminate()
            await self._process.communicate(configuration.dump(self._config))
        finally:
            self._process = None

    def _is_due(self, repo: Repository) -> bool:
        wanted = self._config.maintenance
        try:
            return repo.is_maintenance_due(packs=wanted.packs, interval_s=wanted.interval_s)
        except (GitsmartError, OSError):
            return False

    async def stop(self, timeout_s: float) -> None:
        """End what is going on; the process has so long to clean up."""
        self._stopping.set()
        task = self._task
        if task is None:
            return
        if self._process is not None:
            self._process.terminate()
        await asyncio.wait({task}, timeout=timeout_s)
        if self._process is not None:
            self._process.kill()


def hold_root(path: str) -> bool:
    """Be the only one to maintain repositories of this root after pushes, until the process ends.

    False when another is, or where directories can't be locked.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # closed by the process's end
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return False
    return True
