r"""report-status: what became of a push, ref by ref.

    report-status    =  unpack-status 1*command-status flush-pkt
    unpack-status    =  pkt-line("unpack" SP ( "ok" / error-msg ))
    command-status   =  pkt-line("ok" SP refname) *option-line      ; option lines in report-status-v2 only
                     /  pkt-line("ng" SP refname SP error-msg)
    option-line      =  pkt-line("option" SP ( "refname" SP refname / "old-oid" SP oid / "new-oid" SP oid
                                             / "forced-update" ))

gitprotocol-pack, "Report Status"; git: builtin/receive-pack.c report(), report_v2().

>>> format_report(None, [RefResult(b"refs/heads/main"), RefResult(b"refs/heads/x", "stale info")], v2=False)
b'000eunpack ok\n0017ok refs/heads/main\n001fng refs/heads/x stale info\n0000'
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gitsmart.wire.pktline import FLUSH_PKT, MAX_PAYLOAD, pkt

__all__ = ["RefResult", "format_report"]


@dataclass(frozen=True, slots=True)
class RefResult:
    """What became of one command: `reason` None for done, else why not, in git's words.

    The other fields are what report-status-v2 can add to an `ok`: where the update really went, and what it
    was.
    """

    ref: bytes
    reason: str | None = None
    refname: bytes | None = None
    old: bytes | None = None
    new: bytes | None = None
    forced: bool = False


def format_report(unpack_error: str | None, results: Iterable[RefResult], *, v2: bool) -> bytes:
    """Write the report as pkt-lines ending in a flush-pkt. Send it on band 1, or bare without side-band.

    Args:
        unpack_error: None when the pack (if any) was taken.
        results: one per command, in the order of the commands.
        v2: the client chose report-status-v2.
    """
    lines = [b"unpack " + (b"ok" if unpack_error is None else _one_line(unpack_error))]
    for result in results:
        if result.reason is not None:
            lines.append(b"ng %b %b" % (result.ref, _one_line(result.reason)))
            continue
        lines.append(b"ok " + result.ref)
        if not v2:
            continue
        if result.refname is not None:
            lines.append(b"option refname " + result.refname)
        if result.old is not None:
            lines.append(b"option old-oid " + result.old)
        if result.new is not None:
            lines.append(b"option new-oid " + result.new)
        if result.forced:
            lines.append(b"option forced-update")
    # A refname may fill its command's pkt-line to the brim, and the reason has to give way.
    return b"".join([pkt(line[: MAX_PAYLOAD - 1] + b"\n") for line in lines]) + FLUSH_PKT


def _one_line(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\n", b" ").replace(b"\0", b" ")
