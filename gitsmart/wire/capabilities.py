r"""Capabilities: the list behind the first NUL in v0 and v1, and v2's capability lines.

    capability-list  =  capability *(SP capability)          ; v0, v1
    capability       =  name [ "=" value ]

    capability-line  =  pkt-line(name [ "=" value ] LF)      ; v2: advertisement, head of a request
    command-line     =  pkt-line("command=" name LF)

gitprotocol-capabilities; gitprotocol-v2, "Capability Advertisement", "Command Request"; git: connect.c
parse_feature_value(), serve.c process_request().
"""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire.pktline import PktLine, Special, chomp, printable

__all__ = ["CommandHead", "CommandHeadParser", "format_capabilities", "parse_capability_list"]

_REQUEST_LINES = 10_000  # pulled out of the air: git sends a handful, and one line per --server-option
_REQUEST_BYTES = 1 << 20


def parse_capability_list(text: bytes) -> dict[bytes, bytes]:
    r"""Split a v0 or v1 capability list; no value gives b"", and the first of equal names counts.

    >>> parse_capability_list(b" ofs-delta agent=git/2.55\n")
    {b'ofs-delta': b'', b'agent': b'git/2.55'}
    """
    found: dict[bytes, bytes] = {}
    for word in text.split():
        name, _, value = word.partition(b"=")
        found.setdefault(name, value)
    return found


def format_capabilities(capabilities: Iterable[tuple[bytes, bytes | None]]) -> list[bytes]:
    """Write each capability as `name` or, with a value, `name=value`."""
    return [name if value is None else name + b"=" + value for name, value in capabilities]


def _split_names(text: bytes) -> tuple[bytes, ...]:
    """Split the value of promisor-remote: names, percent-encoded, with ";" between them."""
    return tuple(unquote_to_bytes(name) for name in text.split(b";") if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandHead:
    """The head of a v2 request: what is asked for, and the capabilities chosen.

    `command` is b"" when the client asked for nothing and ends the conversation.
    """

    command: bytes = b""
    object_format: bytes = b"sha1"
    agent: bytes = b""
    session_id: bytes = b""
    server_options: tuple[bytes, ...] = ()
    promisor_remotes: tuple[bytes, ...] = ()
    """Names of promisor remotes that were advertised, and from which the client takes what is missing."""
    has_arguments: bool = False
    """A delim-pkt ended the head: argument lines and a flush-pkt follow."""


class CommandHeadParser:
    """Takes the pkt-lines of a v2 request up to the delim-pkt or flush-pkt that ends its head.

    A client may send only capabilities that were advertised (gitprotocol-v2, "Capabilities"): `commands` and
    `capabilities` are those. Bounded in lines and bytes; time is linear.
    """

    def __init__(
        self, *, commands: frozenset[bytes], capabilities: frozenset[bytes], object_format: bytes
    ) -> None:
        self._commands = commands
        self._capabilities = capabilities
        self._object_format = object_format
        self._command = b""
        self._values: dict[bytes, bytes] = {}
        self._server_options: list[bytes] = []
        self._lines = 0
        self._bytes = 0

    def receive(self, line: PktLine) -> CommandHead | None:
        """Take the next pkt-line; return the head when this one ended it, else None.

        Raises:
            ProtocolError: an unknown or second command, an unknown capability, no command, or another object
                format.
            LimitExceeded: the head is unreasonably long.
        """
        if isinstance(line, bytes):
            self._receive_line(chomp(line))
            return None
        if line is Special.RESPONSE_END:
            raise ProtocolError("unexpected response end packet")
        if line is Special.FLUSH and not self._lines:
            return CommandHead()
        if not self._command:
            raise ProtocolError("no command requested")
        client_format = self._values.get(b"object-format", b"sha1")
        if client_format != self._object_format:
            server, client = printable(self._object_format), printable(client_format)
            raise ProtocolError(f"mismatched object format: server {server}; client {client}")
        return CommandHead(
            command=self._command,
            object_format=client_format,
            agent=self._values.get(b"agent", b""),
            session_id=self._values.get(b"session-id", b""),
            server_options=tuple(self._server_options),
            promisor_remotes=_split_names(self._values.get(b"promisor-remote", b"")),
            has_arguments=line is Special.DELIM,
        )

    def _receive_line(self, text: bytes) -> None:
        self._lines += 1
        self._bytes += len(text)
        if self._lines > _REQUEST_LINES or self._bytes > _REQUEST_BYTES:
            raise LimitExceeded("request has too many capabilities")
        name, equals, value = text.partition(b"=")
        if name == b"command" and equals:
            if self._command:
                first = printable(self._command)
                raise ProtocolError(
                    f"command '{printable(value)}' requested after already requesting command '{first}'"
                )
            if value not in self._commands:
                raise ProtocolError(f"invalid command '{printable(value)}'")
            self._command = value
        elif name not in self._capabilities:
            raise ProtocolError(f"unknown capability '{printable(text)}'")
        elif name == b"server-option":
            self._server_options.append(value)
        elif name == b"object-format":
            if not equals:
                raise ProtocolError("object-format capability requires an argument")
            if value not in (b"sha1", b"sha256"):
                raise ProtocolError(f"unknown object format '{printable(value)}'")
            self._values[name] = value
        else:
            self._values[name] = value
