"""receive-pack: a push, in git's order. The order is what makes it safe; each step says why it stands there.

     1  read the commands, shallow lines and push options
     2  judge them by name, config and the refs as they are: what can't go well is refused before the pack
     3  the pack streams into a quarantine, and its objects are fsck'ed (pack/fsck.py); or it is read and
        dropped, when no command is left that needs it
     4  connectivity: each new tip reaches only objects that are there
     5  judge again: fast-forward, commits on branches, and the refs as they are by now
     6  pre-receive, which sees the quarantine. Up to here a client that leaves ends the push, without a trace
     7  migrate: the objects, durably, into the repository
     8  proc-receive for its own commands (receive.procReceiveRefs); then for the others
        update hook for each ref, then one ref transaction (deletes first in a push that isn't atomic)
     9  post-receive, post-update: they can't fail the push any more
    10  report-status

The report says what happened, no more: a result is what the ref transaction returned. Nothing is sent before
the client has sent its pack (git clients listen only then, and some proxies too); from there on keepalives
fill the silence. An error goes where the client listens: `ng` in the report, `unpack` for the pack, band 3 or
`ERR` when there can be no report. Errors that are ours are logged, and told without detail.

Two things differ from git's receive-pack on purpose. Hooks see only commands that are still alive, and the
report comes after post-receive, so that its output isn't cut off by clients that stop listening once they
have the report.

gitprotocol-pack, "Pushing Data To a Server"; git: builtin/receive-pack.c.
"""

import dataclasses
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gitsmart.access.identity import Actor
from gitsmart.errors import Disconnected, GitsmartError, PackError, ProtocolError, RepositoryUnusable
from gitsmart.pack.fsck import FsckFailed
from gitsmart.pack.indexer import PackTooLargeError
from gitsmart.pack.objects import to_raw
from gitsmart.repo.quarantine import Push
from gitsmart.repo.ref_transaction import (
    ALREADY_EXISTS,
    ATOMIC_FAILED,
    DOES_NOT_EXIST,
    FAILED_DELETE,
    FAILED_UPDATE,
    INCORRECT_OLD,
    NAME_CONFLICT,
    ReflogIdentity,
    RefUpdate,
)
from gitsmart.repo.refs import RefState
from gitsmart.repo.repository import Repository
from gitsmart.service.channel import Channel
from gitsmart.service.fsck_config import fsck_of_push
from gitsmart.service.hooks import committer, push_environ, run_hook
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.packets import PktLineReader
from gitsmart.service.policy import INVALID_NEW, PushPolicy, Refusal, judge_names, show_ref
from gitsmart.service.proc_receive import ProcReceiveRefs
from gitsmart.service.push_certificate import CertificateCheck, NonceIssuer
from gitsmart.wire.pktline import error_pkt
from gitsmart.wire.proc_receive import ProcReceiveResult, ProcReceiveTalk
from gitsmart.wire.push_request import PushRequest, PushRequestParser, RefCommand
from gitsmart.wire.report import RefResult, format_report
from gitsmart.wire.sideband import SIDE_BAND_64K_LIMIT, SideBandWriter

__all__ = ["DRAIN_BYTES", "KEEPALIVE_PKT", "receive_pack"]

logger = logging.getLogger(__name__)

KEEPALIVE_PKT = b"0005\x02"
"""No progress on band 2: clients skip it (git: builtin/receive-pack.c copy_to_sideband())."""

DRAIN_BYTES = 4 << 30
"""A refused push is read to its end up to this, for git hears no answer before it has sent all. Pulled out of
the air; it costs the client more than us.
"""

_READ = 1 << 16
_NO_CUTS = "shallow update not allowed"

_FOUND_BY_TRANSACTION = frozenset(
    (
        ALREADY_EXISTS,
        ATOMIC_FAILED,
        DOES_NOT_EXIST,
        FAILED_DELETE,
        FAILED_UPDATE,
        INCORRECT_OLD,
        INVALID_NEW,
        NAME_CONFLICT,
    )
)
"""Reasons that git finds in its ref transaction; some of them we find before it as well."""


def receive_pack(
    repo: Repository, channel: Channel, *, version: int, actor: Actor, options: ServiceOptions
) -> ServiceReport:
    """Serve one push: the body of a `git-receive-pack` request. Blocking; one call per request.

    Whatever goes wrong is told to the client and is in the report that is returned. When refs have moved and
    the client has left before it could be told, that is no error either: the report says so.

    Args:
        version: 0 or 1; what the Git-Protocol header asks for, with 2 meaning 0. The exchange is the same in
        all of
            them, hooks find it in GIT_PROTOCOL.
        actor: who pushes, for the reflog and the hooks. That they may push at all was decided before.

    Raises:
        Disconnected: the peer has gone; no object and no ref has changed.
    """
    return _ReceivePack(repo, channel, version, actor, options).run()


@dataclass(slots=True, eq=False)
class _Update:
    """A command on its way: alive until it is refused (`reason`) or `done`."""

    command: RefCommand
    stored: bytes
    """The command's ref by the name under which it is stored: in its namespace."""
    target: bytes
    """The ref that is written: `stored`, symrefs followed."""
    reason: str | None = None
    error: str = ""
    """What is still to be said of the refusal on band 2."""
    done: bool = False
    existed: bool = True
    """False: a delete of what isn't there. Done all the same, but no news for post-receive."""
    forced: bool = False
    by_hook: bool = False
    """The hook proc-receive is to carry it out: nothing of ours judges it."""
    reports: list[RefResult] = field(default_factory=list)
    """What that hook says it did."""

    @property
    def alive(self) -> bool:
        return self.reason is None and not self.done


class _ReceivePack:
    """One push. Its methods are the steps, in order."""

    def __init__(
        self, repo: Repository, channel: Channel, version: int, actor: Actor, options: ServiceOptions
    ) -> None:
        self._repo = repo
        self._channel = channel
        self._version = version
        self._actor = actor
        self._options = options
        self._packets = PktLineReader(channel.read)
        self._request = PushRequest()
        self._updates: list[_Update] = []
        self._proc_refs = ProcReceiveRefs()
        self._nonces: NonceIssuer | None = None
        self._certificate_environ: dict[str, str] | None = None
        self._band: SideBandWriter | None = None
        self._input_ended = False
        self._held: list[str] = []  # texts for band 2 that wait for the end of the input
        self._unpack_error: str | None = None
        self._shallow_roots: dict[bytes, frozenset[bytes]] = {}  # new tip -> commits to be shallow for it
        self._report = ServiceReport()
        self._must_finish = False  # from `migrate` on, even when nobody listens any more
        self._client_left = False
        self._progress = _Progress(options.progress_interval_s)

    def run(self) -> ServiceReport:
        try:
            self._run()
        except Disconnected:
            if not self._must_finish:
                raise
            self._client_left = True
        except GitsmartError as error:
            self._fatal(str(error))
        except Exception:
            logger.exception("push to %s failed", self._repo.name)
            self._fatal("internal server error")
        return self._finish()

    def _run(self) -> None:
        # 1. Commands and options. Nothing is believed to be a push before they are whole.
        self._request = self._read_request()
        capabilities = self._request.capabilities
        self._report.agent = capabilities.get(b"agent", b"").decode("utf-8", "replace")
        self._report.session_id = capabilities.get(b"session-id", b"").decode("utf-8", "replace")
        if not self._request.commands:
            return  # git's probe before a big push, or a client with nothing to say
        if self._request.side_band:
            self._band = SideBandWriter(self._channel.write, SIDE_BAND_64K_LIMIT)
        self._nonces = NonceIssuer.of(self._repo.config, self._repo.name, self._repo.format)
        if self._request.certificate and self._nonces is None:
            raise ProtocolError("push certificates are not supported")
        policy = PushPolicy.from_config(self._repo.config)
        self._proc_refs = ProcReceiveRefs.from_config(self._repo.config)

        # 2. What can be known to fail now fails now, whatever the pack holds.
        self._make_updates()
        if self._request.certificate:
            signed = self._request.certificate_header(b"push-option")
            if signed != self._request.push_options:
                self._refuse_all("inconsistent push options")  # git: cmd_receive_pack()
        self._judge(policy, warn=lambda _: None)
        if self._may_be_told_too_early(policy):
            for update in self._updates:
                update.reason = None if update.error else update.reason
                update.error = ""
        self._spread_atomic()

        with self._repo.begin_push() as push:
            try:
                self._execute(policy, push)
            except Disconnected:
                raise
            except GitsmartError as error:
                self._refuse_all(str(error))
            except OSError as error:
                logger.exception("push to %s failed", self._repo.name)
                self._refuse_all(_os_reason(error))
            except Exception:
                logger.exception("push to %s failed", self._repo.name)
                self._refuse_all("internal server error")
        # The quarantine is gone, and so is what kept the new pack from a repack: the refs hold it now.

        # 9. The refs have moved. What these hooks say is passed on, what they return is not.
        self._post_receive()
        # 10. What became of each command.
        self._send_report()

    def _execute(self, policy: PushPolicy, push: Push) -> None:
        # 3. The pack, if one comes and anyone needs it.
        self._receive(push)
        if self._unpack_error is not None:
            return
        # 4. Before anybody, hooks included, relies on the objects.
        self._check_connectivity(push)
        # 5. With the objects at hand. A pack can take minutes: the refs are looked at again, too.
        self._judge(policy, warn=self._warn)
        self._judge_conflicts()
        self._judge_objects(policy, push)
        self._spread_atomic()
        # 6. The last one who may say no to all of it.
        self._pre_receive(push)
        if any(update.alive for update in self._updates):
            # 7, 8. From here on the push goes on without its client.
            self._apply(policy, push)

    # ------------------------------------------------------------------------------------------ request

    def _read_request(self) -> PushRequest:
        parser = PushRequestParser(
            hex_len=self._repo.format.hex_len,
            object_format=self._repo.format.name,
            limit_lines=self._options.push_lines,
            limit_bytes=self._options.push_bytes,
        )
        try:
            while (request := parser.receive(self._packets.expect_line())) is None:
                pass
        except ProtocolError:
            if parser.side_band:
                self._band = SideBandWriter(self._channel.write, SIDE_BAND_64K_LIMIT)
            raise
        return request

    def _make_updates(self) -> None:
        refusals = judge_names(self._request.commands)
        view = self._repo.view("receive")
        for index, command in enumerate(self._request.commands):
            stored = view.stored(command.ref)
            update = _Update(command, stored, stored)
            self._updates.append(update)
            if view.hides(command.ref):  # only in the report (git: reject_updates_to_hidden())
                update.reason = f"deny {'deleting' if command.is_delete else 'updating'} a hidden ref"
                continue
            update.by_hook = self._proc_refs.match(command)
            if update.by_hook:
                continue
            refusal = refusals.get(index)
            if refusal is not None:
                self._refuse(update, refusal)
                continue
            update.target, found = self._repo.ref_store.resolve(stored)
            if update.target != stored and found.state is RefState.BROKEN:
                name = show_ref(command.ref)
                self._refuse(update, Refusal("broken symref", f"refusing update to broken symref '{name}'"))

    # ------------------------------------------------------------------------------------------ judging

    def _judge(self, policy: PushPolicy, *, warn: Callable[[str], None]) -> None:
        """Refuse what config, HEAD and the refs' values of this moment forbid."""
        head, _ = self._repo.ref_store.resolve(b"HEAD")
        checked_out = self._repo.checked_out()
        for update in self._updates:
            if not update.alive or update.by_hook:
                continue
            refusal = policy.judge(
                update.command,
                stored=update.stored,
                target=update.target,
                head=head,
                checked_out=checked_out,
                warn=warn,
            ) or self._judge_old_value(update, warn)
            if refusal is not None:
                self._refuse(update, refusal)

    def _judge_old_value(self, update: _Update, warn: Callable[[str], None]) -> Refusal | None:
        """Refuse what has lost its race already, so that its objects needn't stay. What counts is the same
        look under the ref's lock, later.
        """
        command = update.command
        _, found = self._repo.ref_store.resolve(update.target)
        name = show_ref(command.ref)
        missing = found.state is RefState.MISSING
        if command.is_delete:
            # git: builtin/receive-pack.c update(): what names no object of ours may be deleted if it isn't
            # there
            update.existed = not missing
            names_nothing = command.is_create or to_raw(command.old) not in self._repo.objects
            if names_nothing and missing:
                warn("deleting a non-existent ref")
            if names_nothing or found.state is RefState.BROKEN:
                return None
        current = found.value if found.state is RefState.OID else self._repo.format.zero
        if current == command.old:
            return None
        if command.is_create:
            return Refusal(ALREADY_EXISTS, f"cannot lock ref '{name}': reference already exists")
        if missing:
            return Refusal(DOES_NOT_EXIST, f"cannot lock ref '{name}': unable to resolve reference '{name}'")
        expected = command.old.decode("ascii")
        return Refusal(
            INCORRECT_OLD,
            f"cannot lock ref '{name}': is at {current.decode('ascii')} but expected {expected}",
        )

    def _judge_conflicts(self) -> None:
        """Refuse new refs that can't be beside those that are there: `a` and `a/b`. The transaction looks
        again.
        """
        creates = [update for update in self._updates if update.alive and update.command.is_create]
        creates = [update for update in creates if not update.command.is_delete and not update.by_hook]
        if not creates:
            return
        gone = {update.target for update in self._updates if update.alive and update.command.is_delete}
        names = [ref.name for ref in self._repo.refs(peel=False).refs if ref.name not in gone]
        there = frozenset(names)
        for update in creates:
            parts = update.target.split(b"/")
            parents = (b"/".join(parts[:depth]) for depth in range(2, len(parts)))
            other = next((parent for parent in parents if parent in there), None)
            below = update.target + b"/"
            place = bisect_left(names, below)
            if other is None and place < len(names) and names[place].startswith(below):
                other = names[place]
            if other is not None:
                name = show_ref(update.command.ref)
                other = self._repo.view("receive").shown(other) or other
                error = f"'{show_ref(other)}' exists; cannot create '{name}'"
                if not self._repo.has_reftables:  # git: refs/files-backend.c lock_raw_ref()
                    error = f"cannot lock ref '{name}': {error}"
                self._refuse(update, Refusal(NAME_CONFLICT, error))

    def _judge_objects(self, policy: PushPolicy, push: Push) -> None:
        shallow = self._repo.shallow().union(*self._shallow_roots.values())
        for update in self._updates:
            if not update.alive or update.by_hook:
                continue
            refusal, update.forced = policy.judge_objects(
                update.command,
                push.objects,
                target=update.target,
                shallow=shallow,
                want_forced=self._request.wants_report_v2,
                tick=self._channel.check,
            )
            if refusal is not None:
                self._refuse(update, refusal)

    def _refuse(self, update: _Update, refusal: Refusal) -> None:
        update.reason = refusal.reason
        if self._request.atomic and refusal.reason not in _FOUND_BY_TRANSACTION:
            update.error = refusal.error  # of several only the first is told: _spread_atomic()
        else:
            self._say(f"error: {refusal.error}\n")

    def _may_be_told_too_early(self, policy: PushPolicy) -> bool:
        """Whether an atomic push may have a refusal before those known so far, that takes its objects."""
        if not (self._request.atomic and policy.deny_non_fast_forwards):
            return False
        first = next((place for place, update in enumerate(self._updates) if update.error), 0)
        before = [update.command for update in self._updates[:first]]
        return any(not (command.is_create or command.is_delete) for command in before)

    def _refuse_all(self, reason: str) -> None:
        for update in self._updates:
            if update.alive:
                update.reason = reason

    def _spread_atomic(self) -> None:
        """All or nothing: one that fails takes the others with it.

        Before anything is in place, unlike in git, where a tip with missing objects doesn't stop the rest
        of an atomic push. What the ref transaction would find is not told for each ref: it comes last, and
        is one for all, and of all others only the first refusal counts (git: builtin/receive-pack.c
        execute_commands_atomic()).
        """
        refused = [update for update in self._updates if update.reason is not None]
        if not self._request.atomic or not refused:
            return
        late = [update for update in refused if update.reason in _FOUND_BY_TRANSACTION]
        reason = ATOMIC_FAILED if len(late) == len(refused) else "atomic push failure"
        told = [update for update in refused if update.error]
        for update in told[:1]:
            self._say(f"error: {update.error}\n")
            update.error = ""
        for update in [*late, *told[1:]]:
            update.reason = reason
        self._refuse_all(reason)

    # --------------------------------------------------------------------------------------------- pack

    def _receive(self, push: Push) -> None:
        if not self._request.has_pack:
            self._end_of_input()  # none comes with deletes alone (gitprotocol-pack, "packfile")
            return
        if not any(update.alive and not update.command.is_delete for update in self._updates):
            self._drain()
            return
        limits = self._options.ingest
        configured = self._repo.config.get_int("receive.maxInputSize", 0)
        if configured > 0:
            limits = dataclasses.replace(limits, pack_bytes=min(configured, limits.pack_bytes or configured))
        fsck = fsck_of_push(self._repo, self._note_finding)
        try:
            pack = push.ingest(
                self._read_pack,
                limits=limits,
                detect_collisions=self._options.detect_collisions,
                tick=self._tick_pack,
                fsck=fsck,
            )
        except Disconnected:
            raise
        except (FsckFailed, PackTooLargeError) as error:
            self._report.note = self._report.note or str(error)
            self._say(f"fatal: {error}\n")
            self._unpack_error = "index-pack abnormal exit"  # git's, since clients know that one
        except (PackError, ProtocolError) as error:
            self._unpack_error = str(error)
        except OSError as error:
            logger.exception("push to %s: the pack can't be written", self._repo.name)
            self._unpack_error = _os_reason(error)
        except Exception:
            logger.exception("push to %s: the pack can't be taken", self._repo.name)
            self._unpack_error = "internal server error"
        else:
            self._report.objects = pack.objects
            self._say(self._progress.finish())
            return
        for update in self._updates:
            update.reason = "unpacker error"  # of every command (git: execute_commands())
        push.close()  # now: a full disk must not wait for a client that has much more to send
        self._drain()

    def _note_finding(self, line: str) -> None:
        """Pass on what fsck says of an object; the first error is the log's as well."""
        if line.startswith("error: ") and not self._report.note:
            self._report.note = line.removeprefix("error: ").rstrip()
        self._say(line)

    def _read_pack(self, n: int) -> bytes:
        data = self._packets.read(n)
        if not data:
            self._end_of_input()
        return data

    def _drain(self) -> None:
        """Read the rest of the request and drop it: git reads no answer before it has sent everything."""
        left = DRAIN_BYTES
        try:
            while left > 0 and not self._input_ended:
                data = self._channel.read(_READ)
                if not data:
                    break
                left -= len(data)
        except ProtocolError:
            pass  # the framing is broken; an answer is due all the same
        self._end_of_input()

    def _end_of_input(self) -> None:
        """The client listens from now on: send what waited for it, and don't be silent for long."""
        if self._input_ended:
            return
        self._input_ended = True
        held, self._held = self._held, []
        for text in held:
            self._say(text)
        if self._band is None:
            return
        interval_s: float | None = self._repo.config.get_int("receive.keepAlive")
        interval_s = self._options.keepalive_s if interval_s is None else interval_s
        if interval_s > 0:
            self._channel.keepalive(KEEPALIVE_PKT, interval_s)

    def _tick_pack(self, done: int, total: int) -> None:
        self._channel.check()
        # After the input what is left are deltas whose bases came late: most often nothing, now and then
        # seconds.
        if self._input_ended and not self._request.quiet:
            self._say(self._progress.update(done, total))

    # --------------------------------------------------------------- connectivity, hooks before the refs

    def _check_connectivity(self, push: Push) -> None:
        new = [update for update in self._updates if update.alive and not update.command.is_delete]
        if not new:
            return
        self._channel.flush()
        incomplete = push.unconnected(
            sorted({update.command.new for update in new}), tick=self._channel.check
        )
        if incomplete and self._request.shallow:
            incomplete = self._cut_history(push, incomplete)
        for update in new:
            why = incomplete.get(update.command.new)
            if why is not None:
                update.reason = why
                if why != _NO_CUTS:
                    self._say(f"error: {show_ref(update.command.ref)}: {why}\n")

    def _cut_history(self, push: Push, incomplete: Mapping[bytes, str]) -> dict[bytes, str]:
        """Judge tips that aren't whole by themselves and come out of a shallow clone; give those to refuse.

        With receive.shallowUpdate they may end where the client's history ends: `_shallow_roots` says where.
        git: builtin/receive-pack.c update_shallow_info(), shallow.c assign_shallow_commits_to_refs(). Unlike
        git's, our shallow file takes no commit whose history is here, whatever the client lacks of it.
        """
        tick = self._channel.check
        roots = push.shallow_roots([to_raw(oid) for oid in self._request.shallow], tick=tick)
        if not roots:
            return dict(incomplete)
        refused = push.unconnected(sorted(incomplete), shallow=roots, tick=tick)
        for tip in incomplete.keys() - refused.keys():
            if self._repo.config.get_bool("receive.shallowUpdate", False):
                self._shallow_roots[tip] = push.reached_roots(tip, roots, tick=tick)
            else:
                refused[tip] = _NO_CUTS
        return refused

    def _pre_receive(self, push: Push) -> None:
        live = [update for update in self._updates if update.alive]
        if not live:
            return
        if self._request.certificate and any(map(self._repo.hook, ("pre-receive", "post-receive"))):
            self._check_certificate(push)
        lines = _hook_lines(live)
        if not self._run_hook("pre-receive", stdin=lines, environ=push.environ, with_options=True):
            self._refuse_all("pre-receive hook declined")

    def _check_certificate(self, push: Push) -> None:
        """Find out for the hooks what the certificate is worth. git: prepare_push_cert_sha1()."""
        assert self._nonces is not None
        request = self._request
        start = request.signature_start
        found = CertificateCheck.of(
            request.certificate[:start],
            request.certificate[start:],
            self._repo,
            base=self._options.hook_environ,
            check=self._check_client,
        )
        nonces = request.certificate_header(b"nonce")
        self._certificate_environ = {
            "GIT_PUSH_CERT": push.write_blob(request.certificate).decode("ascii"),
            "GIT_PUSH_CERT_SIGNER": found.signer,
            "GIT_PUSH_CERT_KEY": found.key,
            "GIT_PUSH_CERT_STATUS": found.status,
            **self._nonces.check(nonces[0] if nonces else None, int(time.time())),
        }

    # ---------------------------------------------------------------------------------- objects and refs

    def _apply(self, policy: PushPolicy, push: Push) -> None:
        self._must_finish = True
        # Objects first: a ref never names what isn't there, whenever the power fails.
        try:
            push.migrate()
        except OSError:
            logger.exception("push to %s: the objects can't be moved into place", self._repo.name)
            self._refuse_all("unable to migrate objects to permanent storage")
            return
        if any(update.alive and update.by_hook for update in self._updates):
            self._proc_receive(policy, push)
        for update in self._updates:
            if not update.alive:
                continue
            command = update.command
            if not self._run_hook("update", args=[command.ref, command.old, command.new]):
                error = f"hook declined to update {show_ref(command.ref)}"
                self._refuse(update, Refusal("hook declined", error))
                self._spread_atomic()
        self._extend_shallow(push)
        live = [update for update in self._updates if update.alive]
        if not live:
            return
        knows = self._request.wants_report_v2  # else nobody has looked what is forced
        updates = [
            RefUpdate(
                update.stored,
                update.command.old,
                update.command.new,
                is_forward=knows and not update.forced and not update.command.is_delete,
            )
            for update in live
        ]
        identity = ReflogIdentity(*committer(self._actor))
        results: list[str | None]
        try:
            results = push.commit(
                updates, atomic=self._request.atomic, identity=identity, hook=self._transaction_hook()
            )
        except Exception:
            # It isn't known how far it came, so the refs are asked.
            logger.exception("push to %s: the ref transaction failed", self._repo.name)
            results = [None if self._is_at(update) else "failed to update ref" for update in live]
        for update, result in zip(live, results, strict=True):
            update.reason = result
            update.done = result is None
        self._spread_atomic()

    def _proc_receive(self, policy: PushPolicy, push: Push) -> None:
        """Have the hook proc-receive carry out its commands; what it leaves to us is judged now.

        git: builtin/receive-pack.c execute_commands(), run_proc_receive_hook().
        """
        mine = [update for update in self._updates if update.alive and update.by_hook]
        talk = ProcReceiveTalk(
            [update.command for update in mine],
            all_refs=frozenset(update.command.ref for update in self._updates),
            atomic=self._request.atomic,
            push_options=(
                self._request.push_options if b"push-options" in self._request.capabilities else None
            ),
        )
        if self._repo.hook("proc-receive") is None:
            result = ProcReceiveResult(failed=True, errors=["cannot find hook 'proc-receive'"])
        else:
            succeeded = self._run_hook("proc-receive", stdin=talk.start(), talk=talk)
            result = talk.finish(succeeded=succeeded)
        if result.errors:
            self._say("error: " + "\n".join(result.errors) + "\n")
        for update in mine:
            ref = update.command.ref
            if ref in result.refused:
                update.reason = result.refused[ref]
            elif ref in result.reports:
                update.done = True
                update.reports = result.reports[ref]
            elif ref in result.fall_through:
                update.by_hook = False
        if result.failed:
            for update in self._updates:
                if update.alive and (update.by_hook or self._request.atomic):
                    update.reason = "fail to run proc-receive hook"
        if result.fall_through:
            self._judge_fallen(policy, push, [update for update in mine if not update.by_hook])

    def _judge_fallen(self, policy: PushPolicy, push: Push, fallen: Sequence[_Update]) -> None:
        """Judge commands that come back from the hook, as all the others were before it."""
        refusals = judge_names([update.command for update in fallen])
        for index, update in enumerate(fallen):
            refusal = refusals.get(index)
            if refusal is not None and update.alive:
                self._refuse(update, refusal)
            update.target, _ = self._repo.ref_store.resolve(update.target)
        self._judge(policy, warn=self._warn)
        self._judge_conflicts()
        self._judge_objects(policy, push)
        self._spread_atomic()

    def _extend_shallow(self, push: Push) -> None:
        """Before the refs: a shallow commit that no ref reaches does no harm, a ref without history does."""
        needing = [update for update in self._updates if update.alive]
        needing = [update for update in needing if self._shallow_roots.get(update.command.new)]
        if not needing:
            return
        roots = frozenset[bytes]().union(*(self._shallow_roots[update.command.new] for update in needing))
        try:
            push.extend_shallow(roots)
        except (OSError, RepositoryUnusable):
            logger.exception("push to %s: the list of shallow commits can't be extended", self._repo.name)
            for update in needing:
                update.reason = "shallow error"  # git: builtin/receive-pack.c update()
            self._spread_atomic()

    def _transaction_hook(self) -> Callable[[str, bytes], bool] | None:
        name = "reference-transaction"
        if self._repo.hook(name) is None:
            return None
        return lambda state, lines: self._run_hook(name, args=[state.encode()], stdin=lines)

    def _is_at(self, update: _Update) -> bool:
        _, found = self._repo.ref_store.resolve(update.target)
        if update.command.is_delete:
            return found.state is RefState.MISSING
        return found.state is RefState.OID and found.value == update.command.new

    # -------------------------------------------------------------------------------- after the refs moved

    def _post_receive(self) -> None:
        moved = [update for update in self._updates if update.done and update.existed]
        if not moved:
            return
        try:
            self._run_hook("post-receive", stdin=_hook_lines(moved), with_options=True)
            self._run_hook("post-update", args=[update.command.ref for update in moved])
        except Exception:
            logger.exception("push to %s: a hook that comes after the push failed", self._repo.name)

    def _run_hook(
        self,
        name: str,
        *,
        args: Sequence[bytes] = (),
        stdin: bytes = b"",
        environ: Mapping[str, str] | None = None,
        with_options: bool = False,
        talk: ProcReceiveTalk | None = None,
    ) -> bool:
        """Run a hook if there is one; False when it says no, can't be run, or takes too long."""
        command = self._repo.hook(name)
        if command is None:
            return True
        if self._band is not None and not self._client_left:
            self._flush()
        result = run_hook(
            command,
            args,
            stdin,
            base=self._options.hook_environ,
            extra_environ={
                **push_environ(
                    self._actor,
                    version=self._version,
                    push_options=self._request.push_options if with_options else None,
                ),
                **(environ or {}),
                **((with_options and self._certificate_environ) or {}),
            },
            output=None if self._band is None else self._send_progress,
            timeout_s=self._options.hook_timeout_s,
            check=self._check_client,
            talk=talk,
        )
        trouble = ""
        if result.status is None:
            trouble = f"hook {name} can't be run: {result.failure}"
        elif result.timed_out:
            trouble = f"hook {name} took more than {self._options.hook_timeout_s:g} s and was stopped"
        if trouble:
            logger.warning("push to %s: %s", self._repo.name, trouble)
            self._say(f"error: {trouble}\n")
        return result.ok

    # -------------------------------------------------------------------------------- talking to the client

    def _check_client(self) -> None:
        if not self._must_finish:
            self._channel.check()

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except Disconnected:
            if not self._must_finish:
                raise
            self._client_left = True

    def _send_progress(self, data: bytes) -> None:
        """Send `data` on band 2 at once; once the push must be finished, a client that has left is no
        obstacle.
        """
        if self._band is None or self._client_left:
            return
        try:
            self._band.progress(data)
            self._channel.flush()
        except Disconnected:
            if not self._must_finish:
                raise
            self._client_left = True

    def _say(self, text: str) -> None:
        if not text or self._band is None:
            return
        if self._input_ended:
            self._send_progress(text.encode("utf-8", "replace"))
        else:
            self._held.append(text)

    def _warn(self, text: str) -> None:
        self._say(f"warning: {text}\n")

    def _send_report(self) -> None:
        self._drain()
        # Its last packet but the flush-pkt is the report: no keepalive may come between or after.
        self._channel.keepalive(b"", 0)
        if self._client_left:
            return
        if self._request.wants_report:
            results: list[RefResult] = []
            for update in self._updates:
                if update.done and update.reports and self._request.wants_report_v2:
                    results += update.reports
                else:
                    results.append(RefResult(update.command.ref, update.reason, forced=update.forced))
            data = format_report(self._unpack_error, results, v2=self._request.wants_report_v2)
            if self._band is None:
                self._channel.write(data)
            else:
                self._band.data(data)
        if self._band is not None:
            self._band.finish()
        self._channel.flush()

    def _fatal(self, message: str) -> None:
        """Tell what can't be put into a report: on band 3, or as `ERR`."""
        self._report.failed = True
        self._report.note = message
        self._drain()
        self._channel.keepalive(b"", 0)
        if self._band is None:
            self._channel.write(error_pkt(message))
        else:
            self._band.error(message)
        self._channel.flush()

    def _finish(self) -> ServiceReport:
        report = self._report
        report.refs = sum(update.done for update in self._updates)
        notes = [report.note] if report.note else []
        refused = [update.reason for update in self._updates if update.reason is not None]
        if self._unpack_error is not None:
            notes.append(f"unpack: {self._unpack_error}")
        elif refused:
            notes.append(f"{len(refused)} of {len(self._updates)} refs refused: {refused[0]}")
        report.failed = report.failed or bool(refused)
        if self._client_left:
            notes.append("the client left before the report")
        report.note = "; ".join(notes)
        return report


class _Progress:
    """The line `Unpacking objects: 42% (42/100)`: not in the first moments, and not too often."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next: float | None = None
        self._total = 0
        self._shown = False

    def update(self, done: int, total: int) -> str:
        """Return the line to show now; "" most of the time."""
        now = time.monotonic()
        if self._next is None:
            self._next = now + self._interval_s
        if now < self._next:
            return ""
        self._next = now + self._interval_s
        self._total = total
        self._shown = True
        return f"Unpacking objects: {done * 100 // max(total, 1):3}% ({done}/{total})\r"

    def finish(self) -> str:
        """Return the last line; "" when there was none before."""
        return f"Unpacking objects: 100% ({self._total}/{self._total}), done.\n" if self._shown else ""


def _hook_lines(updates: Iterable[_Update]) -> bytes:
    # Each line ends in a newline, the last one too: `while read` passes over one that doesn't.
    lines = []
    for update in updates:
        command = update.command
        for report in update.reports or [RefResult(command.ref)]:
            old, new = report.old or command.old, report.new or command.new
            lines.append(b"%b %b %b\n" % (old, new, report.refname or command.ref))
    return b"".join(lines)


def _os_reason(error: OSError) -> str:
    # not str(error): that names the path
    return (error.strerror or "input/output error").lower()
