"""Which commands of a push the hook proc-receive carries out, instead of us: receive.procReceiveRefs.

    value   =  [ modifiers ":" ] prefix         ; of several values any may match
    modifiers = *( "a" / "m" / "d" / "!" )      ; creates, changes, deletes; "!": what is not below the prefix

git-config(1), "receive.procReceiveRefs"; git: builtin/receive-pack.c proc_receive_ref_append(),
proc_receive_ref_matches(). The conversation with the hook is wire/proc_receive.py.
"""

import os
from dataclasses import dataclass

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.wire.push_request import RefCommand

__all__ = ["ProcReceiveRefs"]


@dataclass(frozen=True, slots=True)
class _Pattern:
    prefix: bytes
    kinds: str
    is_negative: bool

    def matches(self, command: RefCommand) -> bool:
        if command.is_create and "a" not in self.kinds:
            return False
        if command.is_delete and "d" not in self.kinds:
            return False
        if not command.is_create and not command.is_delete and "m" not in self.kinds:
            return False
        is_below = command.ref == self.prefix or command.ref.startswith(self.prefix + b"/")
        return is_below != self.is_negative


@dataclass(frozen=True, slots=True)
class ProcReceiveRefs:
    """The setting of one repository."""

    patterns: tuple[_Pattern, ...] = ()

    @classmethod
    def from_config(cls, config: GitConfig) -> "ProcReceiveRefs":
        """Read the setting. Raises RepositoryUnusable for one without a value."""
        patterns = []
        for value in config.get_all("receive.procReceiveRefs"):
            if value is None:
                raise RepositoryUnusable("missing value for 'receive.procreceiverefs'")
            modifiers, colon, prefix = value.partition(":")
            if not colon:
                modifiers, prefix = "amd", value
            patterns.append(_Pattern(os.fsencode(prefix).rstrip(b"/"), modifiers, "!" in modifiers))
        return cls(tuple(patterns))

    def match(self, command: RefCommand) -> bool:
        """Say whether the hook is to carry out this command."""
        return any(pattern.matches(command) for pattern in self.patterns)
