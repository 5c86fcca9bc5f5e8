"""The arguments of `git archive --remote`, as they come over the wire.

    request   =  *( pkt-line("argument " text LF) ) flush-pkt        ; at most 64 arguments
    response  =  pkt-line("ACK" LF) flush-pkt  band 1: the archive, band 2: messages  flush-pkt
              /  ... band 3: the archiver died

The texts are the command line of `git archive`, read as git's parse_options() does: values behind "=" or as
the next argument, unambiguous beginnings of long names, "--no-" for those that have it, "--" before what
begins with a dash.

git-upload-archive(1), git-archive(1); git: builtin/upload-archive.c, archive.c parse_archive_args().
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gitsmart.errors import ProtocolError
from gitsmart.wire.pktline import chomp

__all__ = ["FORMATS", "ArchiveRefused", "ArchiveRequest", "parse_arguments", "read_arguments"]

FORMATS: Final = ("tar", "tgz", "tar.gz", "zip")
"""What `git archive --remote --list` gives, in git's order."""

_MAX_ARGUMENTS: Final = 64
_WITH_VALUE: Final = ("format", "prefix", "add-file", "add-virtual-file", "output", "mtime", "remote", "exec")
_SWITCHES: Final = ("worktree-attributes", "verbose", "list")
_NO_NEGATION: Final = ("mtime",)


class ArchiveRefused(ProtocolError):
    """The archive can't be made as asked; the text is git's, without "fatal: "."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRequest:
    """What is asked for. `treeish` is b"" when only the list of formats is."""

    treeish: bytes
    paths: tuple[bytes, ...] = ()
    format: str = "tar"
    prefix: bytes = b""
    level: int = -1
    verbose: bool = False
    mtime: bytes | None = None
    list_formats: bool = False


def read_arguments(lines: Iterable[bytes]) -> list[bytes]:
    """Take the texts out of the request's pkt-lines.

    Raises:
        ArchiveRefused: a line is something else, or there are too many.
    """
    arguments: list[bytes] = []
    for line in lines:
        # git counts its own name in, and looks before it takes one: 64 pass
        if len(arguments) >= _MAX_ARGUMENTS:
            raise ArchiveRefused(f"Too many options (>{_MAX_ARGUMENTS - 1})")
        text = chomp(line)
        if not text.startswith(b"argument "):
            raise ArchiveRefused("'argument' token or flush expected")
        arguments.append(text[9:].partition(b"\0")[0])
    return arguments


def parse_arguments(arguments: Sequence[bytes]) -> ArchiveRequest:
    """Read the command line.

    Raises:
        ArchiveRefused: an option is not known, not for a remote archive, or lacks its value.
    """
    values: dict[str, bytes | None] = {}
    switches: dict[str, bool] = {}
    level: int | None = None
    rest: list[bytes] = []
    todo = list(reversed(arguments))
    while todo:
        argument = todo.pop()
        if argument == b"--":
            rest += reversed(todo)
            break
        if not argument.startswith(b"-") or argument == b"-":
            rest.append(argument)
        elif argument.startswith(b"--"):
            name, equals, given = argument[2:].partition(b"=")
            option, negated = _long_option(name)
            if option in _SWITCHES or negated:
                if equals:
                    raise ArchiveRefused(f"option `{'no-' * negated}{option}' takes no value")
                if option in _SWITCHES:
                    switches[option] = not negated
                else:
                    values[option] = None
            else:
                if not equals:
                    if not todo:
                        raise ArchiveRefused(f"option `{option}' requires a value")
                    given = todo.pop()
                values[option] = given
        elif argument[1:].isdigit():
            level = int(argument[1:4])
        else:
            short = argument[1:]
            while short:
                char, short = short[:1], short[1:]
                if char in (b"v", b"l"):
                    switches["verbose" if char == b"v" else "list"] = True
                elif char == b"o":
                    if not short and not todo:
                        raise ArchiveRefused("switch `o' requires a value")
                    values["output"] = short or todo.pop()
                    short = b""
                else:
                    raise ArchiveRefused(f"unknown switch `{char.decode('ascii', 'backslashreplace')}'")
    return _judge(values, switches, level, rest)


def _long_option(name: bytes) -> tuple[str, bool]:
    text = name.decode("utf-8", "backslashreplace")
    known = [(option, option, False) for option in (*_WITH_VALUE, *_SWITCHES)]
    known += [
        (f"no-{option}", option, True) for option in (*_WITH_VALUE, *_SWITCHES) if option not in _NO_NEGATION
    ]
    exact = [(option, negated) for word, option, negated in known if word == text]
    begun = exact or [(option, negated) for word, option, negated in known if text and word.startswith(text)]
    if not begun:
        raise ArchiveRefused(f"unknown option `{text}'")
    if len(begun) > 1:
        first, second = (f"--{'no-' * negated}{option}" for option, negated in begun[:2])
        raise ArchiveRefused(f"ambiguous option: {text} (could be {first} or {second})")
    return begun[0]


def _judge(
    values: dict[str, bytes | None], switches: dict[str, bool], level: int | None, rest: list[bytes]
) -> ArchiveRequest:
    """Make the request of what was found (git: archive.c parse_archive_args())."""
    if values.get("remote") is not None:
        raise ArchiveRefused("Unexpected option --remote")
    if values.get("exec") is not None:
        raise ArchiveRefused("the option '--exec' requires '--remote'")
    if values.get("output") is not None:
        raise ArchiveRefused("Unexpected option --output")
    if values.get("add-file") is not None or values.get("add-virtual-file") is not None:
        raise ArchiveRefused("options '--add-file' and '--remote' cannot be used together")
    if switches.get("list"):
        if rest:
            raise ArchiveRefused(f"extra command line parameter '{_shown(rest[0])}'")
        return ArchiveRequest(treeish=b"", list_formats=True)
    given = values.get("format")
    name = "tar" if given is None else given.decode("utf-8", "backslashreplace")
    if not rest:
        raise ArchiveRefused("a tree-ish is needed: git archive [<options>] <tree-ish> [<path>...]")
    if name not in FORMATS:
        raise ArchiveRefused(f"Unknown archive format '{name}'")
    # git: any level of a tar filter, 0 to 9 of zip
    if level is not None and (name == "tar" or level > 9):
        raise ArchiveRefused(f"Argument not supported for format '{name}': -{level}")
    return ArchiveRequest(
        treeish=rest[0],
        paths=tuple(rest[1:]),
        format=name,
        prefix=values.get("prefix") or b"",
        level=-1 if level is None else level,
        verbose=switches.get("verbose", False),
        mtime=values.get("mtime"),
    )


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")
