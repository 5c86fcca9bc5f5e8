"""The ref advertisement: how every conversation begins.

    GET info/refs?service=git-upload-pack    Git-Protocol: version=2 -> capabilities; refs are asked for later
                                             version=1, or none      -> # service=, refs with capabilities
    GET info/refs?service=git-receive-pack   the same; there is no version 2 of it, and version 0 is spoken

gitprotocol-http, "Discovering References"; gitprotocol-pack, "Reference Discovery"; gitprotocol-v2,
"Capability Advertisement"; git: http-backend.c get_info_refs(), upload-pack.c write_v0_ref(), receive-pack.c
show_ref().
A capability stands here only when the service does what it promises.
"""

from collections.abc import Iterator
from typing import Literal

from gitsmart.pack.objects import to_hex
from gitsmart.repo.refs import Ref, RefSnapshot
from gitsmart.repo.repository import Repository
from gitsmart.service.channel import Channel
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.wire.pktline import FLUSH_PKT, pkt

__all__ = ["V2_CAPABILITIES", "V2_COMMANDS", "ServiceName", "advertise", "write_advertisement"]

ServiceName = Literal["git-upload-pack", "git-receive-pack"]

V2_COMMANDS = frozenset({b"ls-refs", b"fetch"})
V2_CAPABILITIES = frozenset({b"agent", b"server-option", b"object-format"})

_UPLOAD_PACK = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not deepen-relative"
    b" no-progress include-tag multi_ack_detailed"
)
_RECEIVE_PACK = b"report-status report-status-v2 delete-refs side-band-64k quiet"

_BATCH = 512
"""Lines joined into one write: some 32 KiB."""


def advertise(
    repo: Repository, channel: Channel, *, service: ServiceName, version: int, options: ServiceOptions
) -> ServiceReport:
    """Write the body of `info/refs?service=...`.

    Args:
        version: what the Git-Protocol header asks for: 0, 1 or 2.

    Raises:
        Disconnected: the peer has gone.
        RepositoryError, OSError: the refs can't be read.
    """
    if not (service == "git-upload-pack" and version == 2):
        channel.write(pkt(b"# service=%b\n" % service.encode("ascii")) + FLUSH_PKT)
    return write_advertisement(
        repo, channel, service=service, version=version, options=options, stateless=True
    )


def write_advertisement(
    repo: Repository,
    channel: Channel,
    *,
    service: ServiceName,
    version: int,
    options: ServiceOptions,
    stateless: bool,
) -> ServiceReport:
    """Write what the service itself says first, without HTTP's `# service=` line; see `advertise`."""
    if service == "git-upload-pack" and version == 2:
        for line in v2_capabilities(repo, options):
            channel.write(pkt(line + b"\n"))
        channel.write(FLUSH_PKT)
        return ServiceReport()
    report = ServiceReport()
    batch: list[bytes] = [pkt(b"version 1\n")] if version == 1 else []
    snapshot = repo.refs(peel=service == "git-upload-pack")
    capabilities = b"\0" + _v0_capabilities(repo, snapshot, service, options, stateless=stateless)
    for name, oid in _v0_refs(repo, snapshot, service):
        size = len(oid) + len(name) + len(capabilities) + 6
        batch.append(b"%04x%b %b%b\n" % (size, oid, name, capabilities))
        capabilities = b""
        report.refs += not name.endswith(b"^{}")
        if len(batch) >= _BATCH:
            channel.write(b"".join(batch))
            batch.clear()
    batch += [pkt(b"shallow %b\n" % to_hex(raw_oid)) for raw_oid in sorted(repo.shallow())]
    batch.append(FLUSH_PKT)
    channel.write(b"".join(batch))
    return report


def v2_capabilities(repo: Repository, options: ServiceOptions) -> list[bytes]:
    """Return the lines of a v2 capability advertisement, without their LF."""
    return [
        b"version 2",
        b"agent=" + options.agent,
        b"ls-refs=unborn",
        b"fetch=shallow",
        b"server-option",
        b"object-format=" + repo.format.name,
    ]


def _v0_capabilities(
    repo: Repository, snapshot: RefSnapshot, service: ServiceName, options: ServiceOptions, *, stateless: bool
) -> bytes:
    if service == "git-receive-pack":
        words = [_RECEIVE_PACK]
        if repo.config.get_bool("receive.advertiseAtomic", True):
            words.append(b"atomic")
        words.append(b"ofs-delta")
        # git's default is off; hooks that don't look at the options lose nothing by their being offered
        if repo.config.get_bool("receive.advertisePushOptions", True):
            words.append(b"push-options")
        return b"%b object-format=%b agent=%b" % (b" ".join(words), repo.format.name, options.agent)
    words = [_UPLOAD_PACK]
    if stateless:
        words.append(b"no-done")
    if snapshot.head is not None and snapshot.head_target is not None:
        words.append(b"symref=HEAD:" + snapshot.head_target)
    return b"%b object-format=%b agent=%b" % (b" ".join(words), repo.format.name, options.agent)


def _v0_refs(repo: Repository, snapshot: RefSnapshot, service: ServiceName) -> Iterator[tuple[bytes, bytes]]:
    """Name and oid of each line. An empty repository has one line too, for the capabilities."""
    is_fetch = service == "git-upload-pack"
    refs: tuple[Ref, ...] = snapshot.refs
    if is_fetch and snapshot.head is not None:
        refs = (snapshot.head, *refs)
    if not refs:
        yield b"capabilities^{}", repo.format.zero
    for ref in refs:
        yield ref.name, ref.oid
        if is_fetch and ref.peeled is not None:
            yield ref.name + b"^{}", ref.peeled
