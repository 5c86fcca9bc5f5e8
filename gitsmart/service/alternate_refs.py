"""What repositories that lend objects have: the `.have` lines of a push's advertisement.

    core.alternateRefsPrefixes    which of their refs count           (repo/repository.py)
    core.alternateRefsCommand     a shell command that prints oids instead: run once for each lender, with its
                                  path as argument, and with what hooks find in their environment

The command is the repository's, as its hooks are (docs/decisions/0004). It has a time limit. Oids that aren't
here are passed over: a client that counted on them would send a pack that can't be completed.

git-config(1), core.alternateRefsCommand; git: odb.c read_alternate_refs(), builtin/receive-pack.c
show_one_alternate_ref().
"""

import logging
import re
from collections.abc import Callable
from typing import Final

from gitsmart.pack.objects import to_hex, to_raw
from gitsmart.repo.repository import Repository
from gitsmart.service.hooks import run_hook
from gitsmart.service.options import ServiceOptions

__all__ = ["alternate_tips"]

_logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 60.0  # pulled out of the air; hooks.hook_timeout_s where that is less
_OUTPUT_BYTES: Final = 64 << 20  # a million oids


def alternate_tips(repo: Repository, options: ServiceOptions, *, check: Callable[[], None]) -> list[bytes]:
    """Return the hex oids, each once. Blocking.

    Args:
        check: asked while a command runs; what it raises ends it and goes to the caller.
    """
    commands = repo.alternate_refs_commands()
    if not commands:
        return repo.alternate_tips()
    found: dict[bytes, None] = {}
    for command in commands:
        said = bytearray()

        def hear(data: bytes, said: bytearray = said) -> None:
            said.extend(data[: _OUTPUT_BYTES - len(said)])

        result = run_hook(
            command,
            (),
            b"",
            base=options.hook_environ,
            extra_environ={},
            output=hear,
            timeout_s=min(_TIMEOUT_S, options.hook_timeout_s),
            check=check,
        )
        if not result.ok:
            _logger.warning("core.alternateRefsCommand of %s failed: %s", repo.name, result)
        for line in said.split(b"\n")[:-1]:
            if not re.fullmatch(rb"[0-9a-f]{%d}" % repo.format.hex_len, line):
                _logger.warning(
                    "core.alternateRefsCommand of %s: invalid line %r", repo.name, bytes(line[:80])
                )
                break
            found[to_raw(bytes(line))] = None
    present = repo.objects.present(list(found))
    return [to_hex(raw_oid) for raw_oid in found if raw_oid in present]
