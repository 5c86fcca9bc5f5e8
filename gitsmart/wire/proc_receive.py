r"""The conversation with the hook proc-receive, which carries out some of a push's commands itself.

    S: version=1 NUL atomic push-options, flush-pkt        what the push chose of the two
    H: version=1 NUL push-options, flush-pkt               what the hook wants to be told
    S: old-oid SP new-oid SP ref ..., flush-pkt
    S: push-option ..., flush-pkt                          when the hook asked for them
    H: *( "ok" SP ref *( "option" SP name [SP value] ) / "ng" SP ref SP reason ), flush-pkt

    bytes of the hook --ProcReceiveTalk.feed--> bytes for the hook ... finish() -> ProcReceiveResult

githooks(5), "proc-receive"; git: builtin/receive-pack.c run_proc_receive_hook(), read_proc_receive_report(),
whose error texts are used. Memory: an answer of at most `_ANSWER_BYTES`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gitsmart.errors import ProtocolError
from gitsmart.wire.pktline import FLUSH_PKT, PktLine, PktLineDecoder, Special, chomp, pkt, printable
from gitsmart.wire.push_request import RefCommand
from gitsmart.wire.report import RefResult

__all__ = ["ProcReceiveResult", "ProcReceiveTalk"]

_ANSWER_BYTES: Final = 64 << 20
_OID: Final = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NEGOTIATION: Final = "fail to negotiate version with proc-receive hook"


@dataclass(slots=True)
class ProcReceiveResult:
    """What the hook says became of its commands."""

    reports: dict[bytes, list[RefResult]] = field(default_factory=dict)
    """Ref -> what was done for it, [] when the hook has no more to say than `ok`."""
    refused: dict[bytes, str] = field(default_factory=dict)
    """Ref -> reason."""
    fall_through: set[bytes] = field(default_factory=set)
    """Refs whose commands are to be carried out as if there were no hook."""
    errors: list[str] = field(default_factory=list)
    """What is wrong with the conversation, for the client's eyes."""
    failed: bool = False
    """Commands that the hook said nothing of have failed."""


class ProcReceiveTalk:
    """One conversation. `start` gives the first bytes for the hook; it is over when `is_over`."""

    def __init__(
        self,
        commands: Sequence[RefCommand],
        *,
        all_refs: frozenset[bytes],
        atomic: bool,
        push_options: Sequence[bytes] | None,
    ) -> None:
        """`all_refs` are those of the whole push; `push_options` None when the client chose none."""
        self._commands = commands
        self._all_refs = all_refs
        self._features = [b"atomic"] if atomic else []
        if push_options is not None:
            self._features.append(b"push-options")
        self._push_options = push_options or ()
        self._decoder = PktLineDecoder()
        self._is_greeted = False
        self._heard_bytes = 0
        self._responses = 0
        self._wants_options = False
        self._version = 0
        self._hint: bytes | None = None  # the ref of the last `ok`
        self._is_new = False  # its options, if any follow, make a report of their own
        self._complained = False
        self._is_broken = False  # there was no report to read
        self._by_ref = {command.ref: command for command in commands}
        self._result = ProcReceiveResult()
        self.is_over = False

    def start(self) -> bytes:
        line = b"version=1"
        if self._features:
            line += b"\0" + b" ".join(self._features)
        return pkt(line + b"\n") + FLUSH_PKT

    def feed(self, data: bytes) -> bytes:
        """Take what the hook said; give what is to be told to it."""
        if self.is_over:
            return b""
        self._heard_bytes += len(data)
        answer = b""
        try:
            if self._heard_bytes > _ANSWER_BYTES:
                raise ProtocolError("proc-receive says too much")
            for event in self._decoder.feed(data):
                answer += self._receive(event)
        except ProtocolError as error:
            self._fail(str(error) if self._is_greeted else _NEGOTIATION)
        return answer

    def finish(self, *, succeeded: bool) -> ProcReceiveResult:
        """The hook has ended, with exit status 0 or not; give what is known."""
        result = self._result
        if not self.is_over:
            if not self._is_greeted:
                self._fail(_NEGOTIATION)
            elif not self._responses:
                self._fail("proc-receive exited abnormally")
        if not succeeded:
            result.failed = True
        if not self._is_broken:
            for command in self._commands:
                ref = command.ref
                if ref not in result.reports and ref not in result.refused and ref not in result.fall_through:
                    result.refused[ref] = "proc-receive failed to report status"
                    result.failed = True
        return result

    def _fail(self, error: str) -> None:
        self._result.errors.append(error)
        self._result.failed = True
        self._is_broken = True
        self.is_over = True

    def _receive(self, event: PktLine) -> bytes:
        if self.is_over:
            return b""
        if not self._is_greeted:
            return self._receive_greeting(event)
        if not isinstance(event, bytes):
            self.is_over = True
            return b""
        self._responses += 1
        self._receive_status(chomp(event))
        return b""

    def _receive_greeting(self, event: PktLine) -> bytes:
        if isinstance(event, bytes):
            text, _, features = chomp(event).partition(b"\0")
            if text.startswith(b"version="):
                digits = re.match(rb"[0-9]{1,9}", text[8:])
                self._version = int(digits[0]) if digits else 0
                self._wants_options = b"push-options" in features.split(b" ")
            return b""
        if event is not Special.FLUSH:
            raise ProtocolError(_NEGOTIATION)
        self._is_greeted = True
        if self._version > 1:
            self._fail(f"proc-receive version '{self._version}' is not supported")
            return b""
        lines = [pkt(b"%b %b %b" % (command.old, command.new, command.ref)) for command in self._commands]
        lines.append(FLUSH_PKT)
        if self._wants_options:
            lines += [pkt(option) for option in self._push_options]
            lines.append(FLUSH_PKT)
        return b"".join(lines)

    def _receive_status(self, line: bytes) -> None:
        word, space, rest = line.partition(b" ")
        if not space:
            self._complain(f"proc-receive reported incomplete status line: '{printable(line)}'")
            return
        if word == b"option":
            self._receive_option(rest)
            return
        self._hint = None
        self._is_new = False
        ref, space, reason = rest.partition(b" ")
        if word not in (b"ok", b"ng"):
            self._complain(f"proc-receive reported bad status '{printable(word)}' on ref '{printable(ref)}'")
        elif ref not in self._all_refs:
            self._complain(f"proc-receive reported status on unknown ref: {printable(ref)}")
        elif ref not in self._by_ref or ref in self._result.fall_through:
            self._complain(f"proc-receive reported status on unexpected ref: {printable(ref)}")
        elif word == b"ng":
            self._result.refused[ref] = printable(reason) if space else "failed"
            self._result.failed = True
        else:
            self._result.reports.setdefault(ref, [])
            self._hint = ref
            self._is_new = True

    def _receive_option(self, text: bytes) -> None:
        ref = self._hint
        if ref is None:
            if not self._complained:
                self._complained = True
                self._complain("proc-receive reported 'option' without a matching 'ok/ng' directive")
            self._result.failed = True
            return
        reports = self._result.reports.get(ref)
        key, _, value = text.partition(b" ")
        if key == b"fall-through":
            self._result.fall_through.add(ref)
            self._result.reports.pop(ref, None)
            return
        if reports is None:
            return
        if self._is_new:
            reports.append(RefResult(ref))
            self._is_new = False
        last = reports[-1]
        oid = value if _OID.fullmatch(value) else None
        reports[-1] = RefResult(
            ref,
            refname=value if key == b"refname" and value else last.refname,
            old=oid if key == b"old-oid" and oid else last.old,
            new=oid if key == b"new-oid" and oid else last.new,
            forced=last.forced or key == b"forced-update",
        )

    def _complain(self, error: str) -> None:
        if len(self._result.errors) < 100:
            self._result.errors.append(error)
        self._result.failed = True
