r"""What a push says before its pack: ref update commands and push options.

    update-requests   =  *shallow ( command-list / push-cert ) flush-pkt [ *push-option flush-pkt ]
    shallow           =  pkt-line("shallow" SP oid)
    command-list      =  pkt-line(command NUL capability-list) *pkt-line(command)
    command           =  old-oid SP new-oid SP refname
    push-cert         =  pkt-line("push-cert" NUL capability-list LF)
                         *pkt-line(certificate-header LF) pkt-line(LF) *pkt-line(command LF)
                         *pkt-line(signature-line LF) pkt-line("push-cert-end" LF)
    push-option       =  pkt-line(text)            ; when the client chose the capability push-options

    PktLine --PushRequestParser.receive--> None ... None, PushRequest

gitprotocol-pack, "Reference Update Request and Packfile Transfer"; git: builtin/receive-pack.c
read_head_info(), queue_command(), read_push_options(), whose error texts are used and whose tolerance is kept
(capabilities on any line, oids in either case). Whether a refname is good, or an oid exists, isn't judged
here, nor what a certificate is worth.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire.capabilities import parse_capability_list
from gitsmart.wire.pktline import PktLine, Special, chomp, printable

__all__ = ["PushRequest", "PushRequestParser", "RefCommand"]


# git: gpg-interface.c parse_signed_buffer(): the last line that is one of these
_SIGNATURES = re.compile(
    rb"^-----BEGIN (?:PGP SIGNATURE|PGP MESSAGE|SIGNED MESSAGE|SSH SIGNATURE)-----", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class RefCommand:
    """One ref update command. Oids are lower-case hex of full length; all zeros: there is no such ref."""

    old: bytes
    new: bytes
    ref: bytes

    @property
    def is_create(self) -> bool:
        return not self.old.strip(b"0")

    @property
    def is_delete(self) -> bool:
        return not self.new.strip(b"0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """All that a client says before its pack. Without commands it wants nothing: a bare flush-pkt."""

    commands: tuple[RefCommand, ...] = ()
    capabilities: Mapping[bytes, bytes] = field(default_factory=dict)
    shallow: tuple[bytes, ...] = ()
    push_options: tuple[bytes, ...] = ()
    certificate: bytes = b""
    """The push certificate as it was signed, with its signature; the commands are those in it."""
    signature_start: int = 0
    """Where in `certificate` the signature begins; its length when there is none."""

    def certificate_header(self, name: bytes) -> tuple[bytes, ...]:
        """Give the values of a header of the certificate."""
        headers = self.certificate.partition(b"\n\n")[0].split(b"\n")
        return tuple(line[len(name) + 1 :] for line in headers if line.startswith(name + b" "))

    @property
    def wants_report(self) -> bool:
        """True when the client reads a report-status at all."""
        return b"report-status" in self.capabilities or self.wants_report_v2

    @property
    def wants_report_v2(self) -> bool:
        return b"report-status-v2" in self.capabilities

    @property
    def side_band(self) -> bool:
        """True when the answer goes in side-band-64k packets, with progress and errors beside the report."""
        return b"side-band-64k" in self.capabilities

    @property
    def atomic(self) -> bool:
        return b"atomic" in self.capabilities

    @property
    def quiet(self) -> bool:
        return b"quiet" in self.capabilities

    @property
    def has_pack(self) -> bool:
        """True when a pack follows: anything but deletes was asked for."""
        return any(not command.is_delete for command in self.commands)


class PushRequestParser:
    """Takes a push's pkt-lines one by one until the request is whole.

    Holds what it has read, at most `limit_bytes` of payload in `limit_lines` lines; time is linear.

    Args:
        hex_len: length of the repository's oids in hex digits.
        object_format: the repository's, as git names it (`b"sha1"`).
        limit_lines: commands, shallow lines, certificate lines and push options together.
        limit_bytes: their payload together.
    """

    def __init__(self, *, hex_len: int, object_format: bytes, limit_lines: int, limit_bytes: int) -> None:
        oid = rb"[0-9a-fA-F]{%d}" % hex_len
        self._command = re.compile(rb"(%b) (%b) ([^\0]*)" % (oid, oid), re.DOTALL)
        self._oid = re.compile(oid)
        self._object_format = object_format
        self._limit_lines = limit_lines
        self._limit_bytes = limit_bytes
        self._lines = 0
        self._bytes = 0
        self._commands: list[RefCommand] = []
        self._capabilities: dict[bytes, bytes] = {}
        self._shallow: list[bytes] = []
        self._options: list[bytes] = []
        self._in_certificate = False
        self._in_options = False
        self._certificate: list[bytes] = []
        self._signature_start = 0

    @property
    def side_band(self) -> bool:
        """True when a line so far chose side-band-64k: an error in the rest goes to band 3."""
        return b"side-band-64k" in self._capabilities

    def receive(self, line: PktLine) -> PushRequest | None:
        """Take the next pkt-line; return the request when this one ended it, else None.

        Raises:
            ProtocolError: the line fits no grammar, or its oids are of another object format.
            LimitExceeded: more lines or bytes than allowed.
        """
        if isinstance(line, bytes):
            self._lines += 1
            self._bytes += len(line)
            if self._lines > self._limit_lines:
                raise LimitExceeded(f"push has more than {self._limit_lines} commands and options")
            if self._bytes > self._limit_bytes:
                raise LimitExceeded(f"push has more than {self._limit_bytes} bytes of commands and options")
            if self._in_options:
                self._options.append(chomp(line))
            elif self._in_certificate:
                self._in_certificate = line != b"push-cert-end\n"
                if self._in_certificate:
                    self._certificate.append(line.partition(b"\0")[0])
            else:
                self._receive_command(line)
            return None
        if line is not Special.FLUSH:
            raise ProtocolError("protocol error: got an unexpected packet")
        self._in_certificate = False
        if self._certificate and not self._in_options:
            self._read_certificate()
        if self._in_options or not (self._commands and b"push-options" in self._capabilities):
            return PushRequest(
                commands=tuple(self._commands),
                capabilities=self._capabilities,
                shallow=tuple(self._shallow),
                push_options=tuple(self._options),
                certificate=b"".join(self._certificate),
                signature_start=self._signature_start,
            )
        self._in_options = True
        return None

    def _receive_command(self, line: bytes) -> None:
        text, nul, capabilities = chomp(line).partition(b"\0")
        if nul:
            self._choose(capabilities.partition(b"\0")[0])
        if text.startswith(b"shallow "):
            oid = text[8:]
            if not self._oid.fullmatch(oid):
                raise ProtocolError(f"protocol error: expected shallow sha, got '{printable(oid)}'")
            self._shallow.append(oid.lower())
            return
        if text == b"push-cert":
            self._in_certificate = True
            return
        self._queue(text)

    def _read_certificate(self) -> None:
        """git: builtin/receive-pack.c queue_commands_from_cert()."""
        if self._commands:
            raise ProtocolError("protocol error: got both push certificate and unsigned commands")
        certificate = b"".join(self._certificate)
        start = certificate.find(b"\n\n") + 2
        if start < 2:
            raise ProtocolError(f"malformed push certificate {printable(certificate, 100)}")
        end = len(certificate)
        for found in _SIGNATURES.finditer(certificate):
            end = found.start()
        self._signature_start = end
        body = certificate[start:end].removesuffix(b"\n")
        for line in body.split(b"\n") if body else ():
            self._queue(line)

    def _queue(self, text: bytes) -> None:
        match = self._command.fullmatch(text)
        if match is None:
            raise ProtocolError(f"protocol error: expected old/new/ref, got '{printable(text)}'")
        old, new, ref = match.groups()
        self._commands.append(RefCommand(old.lower(), new.lower(), ref))

    def _choose(self, text: bytes) -> None:
        chosen = parse_capability_list(text)
        object_format = chosen.get(b"object-format", b"sha1")
        if object_format != self._object_format:
            raise ProtocolError(f"error: unsupported object format '{printable(object_format)}'")
        self._capabilities.update(chosen)
