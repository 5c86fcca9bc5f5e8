"""upload-pack: what the client wants and has, then the pack that makes the difference.

    v2      command=ls-refs -> refs
            command=fetch   -> [acknowledgments] [shallow-info] [wanted-refs] [packfile-uris] packfile
            command=object-info -> sizes;  command=bundle-uri -> URIs
    v0, v1  wants [shallow, deepen] flush -> [shallow lines flush]
            (haves flush -> ACKs, NAK)* [haves] done -> ACK or NAK -> pack

Over HTTP each request stands alone: the client repeats what was agreed, and every one is answered from
nothing. With `stateless=False` the conversation goes on over one connection instead (git://).

Errors go where the client listens: `ERR` before the pack, band 3 inside it. A pack that can't be finished is
never made to look finished. gitprotocol-pack, "Packfile Negotiation", "Packfile Data"; gitprotocol-v2,
"fetch"; git: upload-pack.c, serve.c.

Which objects may be asked for is said in wants.py, what filters leave out in filtering.py.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from gitsmart.errors import (
    Disconnected,
    GitsmartError,
    LimitExceeded,
    ObjectMissing,
    PackError,
    ProtocolError,
)
from gitsmart.pack.cachefile import Base
from gitsmart.pack.filters import ObjectFilter
from gitsmart.pack.objects import BLOB, COMMIT, TAG, to_hex, to_raw
from gitsmart.pack.packcache import PackStream
from gitsmart.pack.select import Reached, Selection, reaches_common, select_objects
from gitsmart.pack.writer import PackStats
from gitsmart.repo.repository import Repository
from gitsmart.service.advertise import write_advertisement
from gitsmart.service.bundle_uri import bundle_uri
from gitsmart.service.channel import Channel
from gitsmart.service.features import Features, read_features
from gitsmart.service.filtering import build_filter, read_filter_policy
from gitsmart.service.ls_refs import ls_refs
from gitsmart.service.object_info import object_info
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.pack_plan import PackPlan, write_selection
from gitsmart.service.packets import PktLineReader
from gitsmart.service.shallow import ShallowPlan, known_shallow, plan_shallow
from gitsmart.service.wants import Wants, not_our_ref, read_want_policy
from gitsmart.wire.capabilities import CommandHeadParser
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, Special, error_pkt, pkt, printable
from gitsmart.wire.sideband import KEEPALIVE_PKT, SIDE_BAND_64K_LIMIT, SideBandFrames, SideBandWriter
from gitsmart.wire.upload_request import (
    FetchRequest,
    MultiAck,
    SideBandAllError,
    parse_fetch_arguments,
    parse_have,
    parse_ls_refs_arguments,
    parse_upload_request,
)

__all__ = ["upload_pack"]

_logger = logging.getLogger(__name__)

# git: upload-pack.c create_pack_file()
_REF_RULES = (
    b"%b",
    b"refs/%b",
    b"refs/tags/%b",
    b"refs/heads/%b",
    b"refs/remotes/%b",
    b"refs/remotes/%b/HEAD",
)

_KEEPALIVE_2_PKT = b"0005\x02"  # gitprotocol-v2, "sideband-all": before the pack, where band 1 has lines
_LOOK_S = 0.25
"""While a pack is made elsewhere: between two looks whether the client is still there."""
_STREAM_BYTES = 8 << 20
"""Most that is handed to the network at once. Pulled out of the air: some milliseconds of copying."""
_DIRECT_BYTES = 256 << 10
"""Smaller pieces are gathered into packets instead."""
_ABORT = "aborting due to possible repository corruption on the remote side."


def upload_pack(
    repo: Repository, channel: Channel, *, version: int, options: ServiceOptions, stateless: bool = True
) -> ServiceReport:
    """Serve one fetch request, or with `stateless=False` one whole connection, refs first.

    An error that the client was told of (as `ERR` or on band 3) is in the report and isn't raised.

    Args:
        version: 0, 1 or 2, as the Git-Protocol header asks.

    Raises:
        Disconnected: the peer has gone.
        GitsmartError, OSError: the answer can't be given, and the client doesn't know yet: nothing was
        written, or
            a pack without side-band broke off.
    """
    return _UploadPack(repo, channel, options, stateless=stateless).run(version)


class _UploadPack:
    """One conversation."""

    def __init__(
        self, repo: Repository, channel: Channel, options: ServiceOptions, *, stateless: bool
    ) -> None:
        self._repo = repo
        self._store = repo.objects
        self._hex_len = repo.format.hex_len
        self._channel = channel
        self._options = options
        self._stateless = stateless
        self._packets = PktLineReader(channel.read)
        self._report = ServiceReport()
        self._server_shallow: frozenset[bytes] = frozenset()
        self._features = Features()
        self._wants: Wants | None = None
        self._may_omit = False  # blobs that aren't here: the client has them from a promisor remote
        self._has_answered = False
        self._is_in_bare_pack = False  # a pack without side-band: no text can follow
        self._band: SideBandWriter | None = None  # of an answer that goes in side-band packets as a whole
        self._promised: int | None = None  # how many bytes are still to be written, where that was said
        self._lines_left = options.fetch_lines
        self._bytes_left = options.fetch_bytes

    def run(self, version: int) -> ServiceReport:
        self._server_shallow = self._repo.shallow()
        self._features = read_features(self._repo.config, self._repo.format)
        try:
            if not self._stateless:
                write_advertisement(
                    self._repo,
                    self._channel,
                    service="git-upload-pack",
                    version=version,
                    options=self._options,
                    stateless=False,
                )
                self._has_answered = True
                self._channel.flush()
            if version == 2:
                while self._serve_command() and not self._stateless:
                    self._channel.flush()
            else:
                self._serve_v0()
        except ProtocolError as error:
            if isinstance(error, SideBandAllError):
                self._band = SideBandWriter(self._channel.write, SIDE_BAND_64K_LIMIT)
            self._write_error(str(error))
            self._tell_report(str(error))
        except (PackError, ObjectMissing, OSError):
            if self._is_in_bare_pack or not self._has_answered:
                raise
            _logger.exception("fetch from %s broke off", self._repo.name)
            self._write_error(f"upload-pack: {_ABORT}")
            self._tell_report(_ABORT)
        self._channel.flush()
        return self._report

    def _write(self, data: bytes) -> None:
        self._has_answered = True
        self._channel.write(data)

    def _write_lines(self, lines: Iterable[bytes], *, then: bytes = b"") -> None:
        """Send text lines of a v2 fetch, plain or on band 1 (gitprotocol-v2, "sideband-all")."""
        band = b"" if self._band is None else b"\x01"
        self._write(b"".join([pkt(band + line) for line in lines]) + then)

    def _write_error(self, text: str) -> None:
        """Send the text that ends the conversation (git: pkt-line.c packet_writer_error())."""
        if self._band is None:
            self._write(error_pkt(text))
        else:
            self._channel.keepalive(b"", 0)
            self._band.error(text)

    def _tell_report(self, text: str) -> None:
        self._report.failed = True
        self._report.note = text

    def _section(self) -> Iterable[bytes]:
        return self._packets.iter_section(
            limit_lines=self._options.fetch_lines, limit_bytes=self._options.fetch_bytes
        )

    def _tick(self, _: int) -> None:
        self._channel.check()

    # ------------------------------------------------------------------------------------------------- v2

    def _serve_command(self) -> bool:
        """Serve one v2 command; False when the client has no more."""
        parser = CommandHeadParser(
            commands=self._features.commands,
            capabilities=self._features.capabilities,
            object_format=self._repo.format.name,
        )
        # A connection may end here; a request that is sent for its answer may not.
        line = self._packets.expect_line() if self._stateless else self._packets.read_line()
        if line is None:
            return False
        while (head := parser.receive(line)) is None:
            line = self._packets.expect_line()
        if not head.command:
            return False
        self._note_client(head.agent, head.session_id, head.server_options)
        self._may_omit |= not self._features.promisor_remotes.keys().isdisjoint(head.promisor_remotes)
        arguments = self._section() if head.has_arguments else ()
        if head.command == b"fetch":
            features = self._features.fetch_features
            self._fetch(parse_fetch_arguments(arguments, hex_len=self._hex_len, features=features))
            return True
        self._report.note = head.command.decode("ascii")
        if head.command == b"ls-refs":
            listing = parse_ls_refs_arguments(arguments)
            if not self._features.allows_unborn:
                listing = replace(listing, unborn=False)
            self._has_answered = True
            self._report.refs += ls_refs(self._repo, self._channel, listing)
        elif head.command == b"object-info":
            wants = Wants(self._repo, read_want_policy(self._repo.config), tips_only=False, tick=self._tick)
            self._report.objects += object_info(self._store, self._channel, arguments, wants)
        else:
            bundle_uri(self._repo.config, self._channel, arguments)
        return True

    def _note_client(self, agent: bytes, session_id: bytes, server_options: Iterable[bytes] = ()) -> None:
        self._report.agent = agent.decode("utf-8", "replace")
        self._report.session_id = session_id.decode("utf-8", "replace")
        self._report.server_options += tuple(text.decode("utf-8", "replace") for text in server_options)

    def _fetch(self, request: FetchRequest) -> None:
        if not request.sideband_all:
            self._answer_fetch(request)
            return
        self._band = SideBandWriter(self._channel.write, request.side_band_limit)
        self._has_answered = True
        self._keepalive(_KEEPALIVE_2_PKT)
        self._answer_fetch(request)
        self._channel.keepalive(b"", 0)
        self._band = None

    def _answer_fetch(self, request: FetchRequest) -> None:
        if self._stateless and request.filter is not None and self._features.promisor_remotes:
            # git's client says what it accepts with ls-refs alone, which nobody remembers over HTTP. One with
            # a filter knows what to do about objects that don't come.
            self._may_omit = True
        by_name = list(request.wants)
        wanted_refs = self._wanted_refs(request)
        wants, keep = self._judge(request, by_name)
        if not wants and not request.wait_for_done:
            # Nothing wanted, nothing said (git: upload_pack_v2()).
            return
        client_shallow = self._client_shallow(request)
        common = list(self._present(request.haves))
        if request.haves and not request.done:
            lines = [b"acknowledgments\n"]
            lines += [b"ACK %b\n" % to_hex(raw_oid) for raw_oid in common] or [b"NAK\n"]
            is_ready = not request.wait_for_done and self._is_ready(wants, common, client_shallow)
            if is_ready:
                lines.append(b"ready\n")
            self._write_lines(lines, then=DELIM_PKT if is_ready else FLUSH_PKT)
            if not is_ready:
                self._report.note = "negotiation"
                return
        plan = self._plan(request, wants, client_shallow, tell_server_shallow=True)
        if request.is_deepening or request.shallow or self._server_shallow:
            self._write_lines([b"shallow-info\n", *plan.lines], then=DELIM_PKT)
        if wanted_refs:
            # Behind shallow-info, as gitprotocol-v2 says and as git's client reads it (fetch-pack.c
            # do_fetch_pack_v2()). git's own server has it before, so that its shallow fetches by name fail
            self._write_lines([b"wanted-refs\n", *wanted_refs], then=DELIM_PKT)
        if not request.uri_protocols:
            self._write_lines([b"packfile\n"])
        self._send_pack(request, wants, keep, common, plan)

    def _wanted_refs(self, request: FetchRequest) -> list[bytes]:
        """Add what the want-refs are at now to the wants; return the lines that tell the client.

        One listing of the refs for all of them: a client may send one for every ref that there is.
        """
        if not request.want_refs:
            return []
        snapshot = self._repo.shown_refs("uploadpack", peel=False)
        oids = {ref.name: ref.oid for ref in snapshot.refs}
        if snapshot.head is not None:
            oids[b"HEAD"] = snapshot.head.oid
        lines = []
        for name in request.want_refs:
            oid = oids.get(name) or self._repo.gone_ref(name)
            if oid is None:
                raise ProtocolError(f"unknown ref {printable(name)}")
            request.wants[oid] = None
            lines.append(b"%b %b\n" % (oid, name))
        return lines

    def _leave_out(self, request: FetchRequest, selection: Selection) -> None:
        """Take from the selection what the client may get from elsewhere, and tell it where."""
        lines = []
        for raw_oid, (pack_hash, uri) in self._features.packfile_uris.items():
            if uri.partition(b":")[0] in request.uri_protocols and selection.discard(raw_oid):
                lines.append(b"%b %b\n" % (pack_hash, uri))
        if lines:
            self._write_lines([b"packfile-uris\n", *lines], then=DELIM_PKT)
        self._write_lines([b"packfile\n"])

    def _judge(
        self, request: FetchRequest, by_name: Iterable[bytes], *, tips_only: bool = False
    ) -> tuple[list[bytes], ObjectFilter | None]:
        """The wants as raw oids, and what the filter makes of them; refuses what may not be asked for.

        Args:
            by_name: the wants that came as oids, not as refs.
            tips_only: what refs lead to is not enough for these.
        """
        config = self._repo.config
        wants = [to_raw(oid) for oid in request.wants]
        present = self._store.present(wants)
        for raw_oid in wants:
            if raw_oid not in present:
                raise not_our_ref(raw_oid)
        self._report.refs += len(wants)
        self._wants = Wants(self._repo, read_want_policy(config), tips_only=tips_only, tick=self._tick)
        self._wants.check(map(to_raw, by_name))
        if request.filter is None:
            return wants, None
        read_filter_policy(config).check(request.filter)
        return wants, build_filter(self._repo, request.filter, self._wants)

    # --------------------------------------------------------------------------------------------- v0, v1

    def _serve_v0(self) -> None:
        if not self._stateless and self._packets.peek_line() is None:
            return  # a client that only looked at the refs hangs up
        request = parse_upload_request(self._section(), hex_len=self._hex_len, filters=self._features.filter)
        self._note_client(request.agent, request.session_id)
        if not request.wants:
            return
        says_reachable = read_want_policy(self._repo.config).says_reachable
        tips_only = not (self._stateless or says_reachable)
        wants, keep = self._judge(request, request.wants, tips_only=tips_only)
        client_shallow = self._client_shallow(request)
        plan = self._plan(request, wants, client_shallow, tell_server_shallow=False)
        if request.is_deepening:
            self._write(b"".join(map(pkt, plan.lines)) + FLUSH_PKT)
            self._flush_if_stateful()
        if self._stateless and request.is_deepening and self._packets.peek_line() is None:
            # The client only wanted the shallow lines, and asks again with its haves.
            self._report.note = "shallow lines"
            return
        common = self._negotiate(request, wants, client_shallow)
        if common is None:
            self._report.note = "negotiation"
            return
        self._send_pack(request, wants, keep, common, plan)

    def _flush_if_stateful(self) -> None:
        if not self._stateless:
            self._channel.flush()

    def _negotiate(
        self, request: FetchRequest, wants: list[bytes], client_shallow: frozenset[bytes]
    ) -> list[bytes] | None:
        """Agree on what the client has: the common objects, or None when the client is to ask again.

        Each round of haves is looked up and answered together. Whether they suffice is decided once a round,
        where git asks for each have that it doesn't know: that costs a walk through history for every one.
        """
        common: dict[bytes, None] = {}
        last = b""
        is_ready = False
        while True:
            haves, is_done = self._read_round()
            present = self._store.present(to_raw(oid) for oid in haves)
            known = [oid for oid in haves if to_raw(oid) in present]
            before = len(common)
            common.update((to_raw(oid), None) for oid in known)
            if request.multi_ack is not MultiAck.NONE and len(common) > before and not is_done:
                is_ready = self._is_ready(wants, list(common), client_shallow)
            lines: list[bytes] = []
            if request.multi_ack is MultiAck.DETAILED:
                lines += [b"ACK %b common\n" % oid for oid in known]
            elif request.multi_ack is MultiAck.CONTINUE:
                lines += [b"ACK %b continue\n" % oid for oid in haves if is_ready or to_raw(oid) in present]
            elif known and not before:
                lines.append(b"ACK %b\n" % known[0])
            last = known[-1] if known else last
            if is_done:
                if not common:
                    lines.append(b"NAK\n")
                elif request.multi_ack is not MultiAck.NONE:
                    lines.append(b"ACK %b\n" % last)
                self._write(b"".join(map(pkt, lines)))
                return list(common)
            if is_ready and request.multi_ack is MultiAck.DETAILED:
                lines.append(b"ACK %b ready\n" % last)
            if not common or request.multi_ack is not MultiAck.NONE:
                lines.append(b"NAK\n")
            if is_ready and request.multi_ack is MultiAck.DETAILED and request.no_done:
                lines.append(b"ACK %b\n" % last)
                self._write(b"".join(map(pkt, lines)))
                return list(common)
            self._write(b"".join(map(pkt, lines)))
            if self._stateless:
                return None
            self._channel.flush()

    def _read_round(self) -> tuple[list[bytes], bool]:
        """Read haves up to a flush-pkt, or to done: the oids, and whether it was done."""
        haves: dict[bytes, None] = {}
        while True:
            line = self._packets.expect_line()
            if line is Special.FLUSH:
                return list(haves), False
            if not isinstance(line, bytes):
                raise ProtocolError("protocol error: got an unexpected packet")
            self._lines_left -= 1
            self._bytes_left -= len(line)
            if self._lines_left < 0 or self._bytes_left < 0:
                raise LimitExceeded(f"request has more than {self._options.fetch_lines} haves")
            oid = parse_have(line, hex_len=self._hex_len)
            if oid is None:
                return list(haves), True
            haves[oid] = None

    # ------------------------------------------------------------------------------------------------ both

    def _keepalive(self, packet: bytes) -> None:
        interval_s: float | None = self._features.keepalive_s
        interval_s = self._options.keepalive_s if interval_s is None else interval_s
        if interval_s > 0:
            self._channel.flush()
            self._channel.keepalive(packet, interval_s)

    def _client_shallow(self, request: FetchRequest) -> frozenset[bytes]:
        return known_shallow(self._store, map(to_raw, request.shallow))

    def _present(self, oids: Iterable[bytes]) -> Iterable[bytes]:
        raw_oids = [to_raw(oid) for oid in oids]
        present = self._store.present(raw_oids)
        return (raw_oid for raw_oid in raw_oids if raw_oid in present)

    def _commits_of(self, raw_oids: Iterable[bytes]) -> list[bytes]:
        """The commits among `raw_oids`, tags peeled."""
        commits: dict[bytes, None] = {}
        for raw_oid in raw_oids:
            try:
                _, target, kind = self._store.peel(raw_oid)
            except ObjectMissing:
                continue
            if kind == COMMIT:
                commits[target] = None
        return list(commits)

    def _is_ready(self, wants: list[bytes], common: list[bytes], client_shallow: frozenset[bytes]) -> bool:
        if not common:
            return False
        commits = set(self._commits_of(common))
        return reaches_common(
            self._store, wants, commits, client_shallow | self._server_shallow, tick=self._tick
        )

    def _plan(
        self,
        request: FetchRequest,
        wants: list[bytes],
        client_shallow: frozenset[bytes],
        *,
        tell_server_shallow: bool,
    ) -> ShallowPlan:
        server_shallow = self._server_shallow
        if not (request.is_deepening or client_shallow or server_shallow):
            return ShallowPlan()
        return plan_shallow(
            self._store,
            heads=self._commits_of(wants),
            client_shallow=client_shallow,
            server_shallow=server_shallow,
            depth=request.depth,
            is_relative=request.deepen_relative,
            since=request.deepen_since,
            excluded=self._excluded(request.deepen_not) if request.deepen_not else None,
            tell_server_shallow=tell_server_shallow,
            tick=self._tick,
        )

    def _excluded(self, names: list[bytes]) -> list[bytes]:
        """The commits of the refs that deepen-not names (git: refs.c expand_ref(), ref_rev_parse_rules)."""
        snapshot = self._repo.shown_refs("uploadpack")
        commits = []
        for name in names:
            found = [ref for rule in _REF_RULES if (ref := snapshot.get(rule % name)) is not None]
            if len(found) != 1:
                problem = "ambiguous deepen-not" if found else "deepen-not is not a ref"
                raise ProtocolError(f"git upload-pack: {problem}: deepen-not {printable(name)}")
            commits.append(to_raw(found[0].peeled or found[0].oid))
        return self._commits_of(commits)

    def _send_pack(
        self,
        request: FetchRequest,
        wants: list[bytes],
        keep: ObjectFilter | None,
        common: list[bytes],
        shallow: ShallowPlan,
    ) -> None:
        """Send the pack, in side-band packets and their flush-pkt unless the client can't read those."""
        plan = self._plan_pack(request, wants, keep, common, shallow)
        if not request.side_band_limit:
            self._send_bare_pack(plan)
            return
        band = SideBandWriter(self._channel.write, request.side_band_limit)
        try:
            progress = _Progress(self._channel, band, self._options, is_shown=not request.no_progress)
            stream = self._open_stream(plan)
            if stream is not None:
                with stream:
                    begins = stream.wait_begun(self._look_s)
                    size = stream.total_bytes if begins and self._band is None else None
                    if size is not None:
                        self._send_whole(stream, size, request.side_band_limit, progress)
                    else:
                        self._keepalive(KEEPALIVE_PKT)
                        self._send_stream(stream, band, progress)
                    self._note_sent(plan, stream.count or 0, is_hit=stream.is_hit)
                if size is not None:
                    return
            else:
                self._keepalive(KEEPALIVE_PKT)
                selection = plan.select(common, progress.enumerating)
                if request.uri_protocols:
                    self._leave_out(request, selection)
                progress.enumerated(len(selection))
                stats = self._write_pack(plan, selection, band.data)
                band.flush()
                progress.total(stats)
        except Disconnected:
            raise
        except Exception as error:
            self._channel.keepalive(b"", 0)
            is_theirs = isinstance(error, ProtocolError)
            text = str(error) if is_theirs else f"upload-pack: {_ABORT}"
            if self._promised is None:
                band.error(text)
                self._channel.write(FLUSH_PKT)
            elif self._promised > SIDE_BAND_64K_LIMIT:
                band.error(text)  # and nothing more: it stays shorter than was said
            self._channel.flush()
            self._tell_report(text if is_theirs else _ABORT)
            if is_theirs:
                return
            if not isinstance(error, (GitsmartError, OSError)):
                raise
            _logger.exception("fetch from %s broke off", self._repo.name)
            return
        self._channel.keepalive(b"", 0)
        band.finish()

    def _plan_pack(
        self,
        request: FetchRequest,
        wants: list[bytes],
        keep: ObjectFilter | None,
        common: list[bytes],
        shallow: ShallowPlan,
    ) -> PackPlan:
        all_wants = (*wants, *shallow.extra_wants)
        tags: dict[bytes, bytes] = {}
        if request.include_tag:
            for ref in self._repo.shown_refs("uploadpack").refs:
                if ref.peeled is not None:
                    tags[to_raw(ref.oid)] = to_raw(ref.peeled)

        def select(
            haves: Collection[bytes], tick: Callable[[int], None], base: Base | None = None
        ) -> Selection:
            selection = select_objects(
                self._store,
                wants=all_wants,
                haves=haves,
                boundary=shallow.boundary,
                client_shallow=shallow.client_shallow,
                extra_uninteresting=shallow.extra_uninteresting,
                keep=keep,
                note=None if keep is None else self._note_reached(wants),
                tick=tick,
            )
            # Annotated tags of what is sent go along (gitprotocol-capabilities, "include-tag").
            sent = selection.among({*tags, *tags.values()})
            for tag, peeled in tags.items():
                if tag in sent:
                    continue
                if peeled in sent or (base is not None and base.contains(peeled)):
                    for raw_oid in self._store.peel(tag)[0]:
                        if raw_oid not in selection:
                            selection.objects[raw_oid] = TAG
            if self._may_omit and self._repo.has_promised_objects():
                # git: pack-objects --missing=allow-promisor, which also looks whether each is promised
                blobs = [raw_oid for raw_oid, kind in selection.objects.items() if kind == BLOB]
                for raw_oid in set(blobs).difference(self._store.present(blobs)):
                    del selection.objects[raw_oid]
            return selection

        return PackPlan(
            repo=self._repo,
            request=request,
            wants=all_wants,
            common=tuple(common),
            shallow=shallow,
            tags=frozenset(tags),
            select=select,
        )

    def _open_stream(self, plan: PackPlan) -> PackStream | None:
        """Have the pack from the cache, or through it; None where there is none, or it is no use."""
        cache = self._options.pack_cache
        if cache is None or self._may_omit or not plan.is_cacheable:
            return None
        return cache.open(plan.key(), plan.make, packs=self._store.packs, shared=plan.is_shared)

    def _send_bare_pack(self, plan: PackPlan) -> None:
        stream = self._open_stream(plan)
        if stream is None:
            selection = plan.select(plan.common, self._tick)
            self._is_in_bare_pack = True
            self._write_pack(plan, selection, self._channel.write)
            return
        with stream:
            while not stream.wait_begun(_LOOK_S):
                self._channel.check()
            self._is_in_bare_pack = True
            if stream.total_bytes is not None:
                self._channel.promise(stream.total_bytes)
            while (data := stream.read(_STREAM_BYTES, _LOOK_S)) is None or data:
                if data is None:
                    self._channel.check()
                else:
                    self._channel.write_all([data])
            self._note_sent(plan, stream.count or 0, is_hit=stream.is_hit)

    @property
    def _look_s(self) -> float:
        return min(_LOOK_S, self._options.progress_interval_s or _LOOK_S)

    def _send_whole(self, stream: PackStream, size: int, limit: int, progress: "_Progress") -> None:
        """Send a pack of known size, and say before how long the response is.

        So nothing may come between, neither keepalives, which nothing that lies ready needs, nor an error's
        text that would reach the end.
        """
        frames = SideBandFrames(limit, size)
        begin = progress.enumerated_packets(stream.count or 0)
        end = b"" if stream.stats is None else progress.total_packets(PackStats(*stream.stats))
        end += FLUSH_PKT
        self._promised = len(begin) + frames.wire_bytes + len(end)
        self._channel.promise(self._promised)
        self._channel.write(begin)
        self._promised -= len(begin)
        while self._promised:
            data = stream.read(_STREAM_BYTES, _LOOK_S)
            if data is None:
                self._channel.check()
                continue
            if not data:
                raise PackError("a pack is shorter than it was")
            parts = frames.frame(data)
            left = self._promised - sum(map(len, parts))
            if left == len(end):  # with the last of the pack, which spares a wake-up and a packet
                parts.append(end)
                left = 0
            self._promised = left
            self._channel.write_all(parts)

    def _send_stream(self, stream: PackStream, band: SideBandWriter, progress: "_Progress") -> None:
        """Send a pack as it comes from the cache."""
        while not stream.wait_begun(self._look_s):
            progress.enumerating(stream.found)
        count = stream.count or 0
        progress.enumerated(count)
        self._channel.flush()
        while True:
            data = stream.read(_STREAM_BYTES, 0)
            if data is None:
                band.flush()  # nobody knows how long it will take
                self._channel.flush()
                data = stream.read(_STREAM_BYTES, _LOOK_S)
            if data is None:
                self._channel.check()
            elif not data:
                break
            elif len(data) >= _DIRECT_BYTES:
                band.flush()
                self._channel.write_all(band.frame(data))
            else:
                band.data(data)
        band.flush()
        if stream.stats is not None:
            progress.total(PackStats(*stream.stats))

    def _write_pack(
        self,
        plan: PackPlan,
        selection: Selection,
        write: Callable[[bytes | bytearray | memoryview], None],
    ) -> PackStats:
        thin = plan.request.thin_pack
        stats = write_selection(self._store, selection, write, plan.request, self._tick, thin=thin)
        self._note_sent(plan, stats.objects)
        return stats

    def _note_sent(self, plan: PackPlan, objects: int, *, is_hit: bool = False) -> None:
        self._report.objects += objects
        self._report.note = "fetch" if plan.common else "clone"
        if plan.request.depth:
            self._report.note += f", depth {plan.request.depth}"
        if is_hit:
            self._report.note += ", cached"

    def _note_reached(self, wants: list[bytes]) -> Callable[[Reached], None]:
        """A client that leaves something out now comes for it later: spare it the proof that it may."""

        def note(objects: Reached) -> None:
            if self._wants is not None:
                self._wants.note(wants, objects)

        return note


class _Progress:
    """The lines that git shows behind `remote: `, in git's words, each at most every so often."""

    def __init__(
        self, channel: Channel, band: SideBandWriter, options: ServiceOptions, *, is_shown: bool
    ) -> None:
        self._channel = channel
        self._band = band
        self._interval_s = options.progress_interval_s
        self._is_shown = is_shown
        self._shown_at = time.monotonic()

    def enumerating(self, count: int) -> None:
        self._channel.check()
        now = time.monotonic()
        if self._is_shown and now - self._shown_at >= self._interval_s:
            self._shown_at = now
            self._show(b"Enumerating objects: %d\r" % count)

    def enumerated(self, count: int) -> None:
        if self._is_shown:
            self._show(_enumerated(count))

    def enumerated_packets(self, count: int) -> bytes:
        """What `enumerated` sends."""
        return b"".join(self._band.progress_packets(_enumerated(count))) if self._is_shown else b""

    def total(self, stats: PackStats) -> None:
        if self._is_shown:
            self._show(_total(stats))

    def total_packets(self, stats: PackStats) -> bytes:
        """What `total` sends."""
        return b"".join(self._band.progress_packets(_total(stats))) if self._is_shown else b""

    def _show(self, text: bytes) -> None:
        self._band.progress(text)
        self._channel.flush()


def _enumerated(count: int) -> bytes:
    return b"Enumerating objects: %d, done.\n" % count


def _total(stats: PackStats) -> bytes:
    # As git counts (builtin/pack-objects.c cmd_pack_objects()): what comes in whole packs is no "reused"
    return b"Total %d (delta %d), reused %d (delta %d), pack-reused %d (from %d)\n" % (
        stats.objects,
        stats.copied_deltas + stats.deflated_deltas,
        stats.copied - stats.in_whole_packs,
        stats.copied_deltas,
        stats.in_whole_packs,
        stats.whole_packs,
    )
