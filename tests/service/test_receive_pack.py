"""Pushes into real repositories, by a client that says exactly what a test wants said.

After every push `Site.push` compares what the report says with what the repository is: refs, `git fsck`,
nothing left behind; and when nothing was done, that its files are byte for byte what they were.
"""

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart.access.identity import Actor
from gitsmart.errors import Disconnected, ProtocolError
from gitsmart.pack.indexer import IngestLimits
from gitsmart.repo.quarantine import Push
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service import receive_pack as module
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.receive_pack import receive_pack
from gitsmart.wire.pktline import PktLineDecoder, Special, pkt

ALICE = Actor("alice", "192.0.2.1")
ZERO = b"0" * 40
EMPTY_PACK = bytes.fromhex("5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e")
USUAL = b"report-status-v2 side-band-64k object-format=sha1 agent=test/1"
_LEFTOVER = re.compile(r"^(tmp_.*|.*\.lock|.*\.keep|.*incoming.*)$")

Command = tuple[bytes, bytes, bytes]


class Channel:
    """A Channel over byte strings that knows whether an answer came before the request was read."""

    def __init__(self, request: bytes, *, piece: int = 4096) -> None:
        self.left = memoryview(request)
        self.piece = piece
        self.response = bytearray()
        self.early = False
        self.keepalives: list[tuple[bytes, float]] = []
        self.at_end: Exception | None = None
        self.on_write: Callable[[bytes], None] = lambda _: None
        self.on_check: Callable[[], None] = lambda: None

    def read(self, n: int) -> bytes:
        if not self.left and self.at_end is not None:
            raise self.at_end
        data = bytes(self.left[: min(n, self.piece)])
        self.left = self.left[len(data) :]
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.on_write(bytes(data))
        self.early = self.early or bool(self.left)
        self.response += data

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        self.write(b"".join(parts))

    def flush(self) -> None:
        pass

    def check(self) -> None:
        self.on_check()

    def promise(self, size: int) -> None:
        pass

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        assert not self.left or not packet, "nothing may be sent while the client sends"
        self.keepalives.append((packet, interval_s))


@dataclass
class Outcome:
    """What a client makes of an answer."""

    report: ServiceReport
    response: bytes
    lines: list[bytes] = field(default_factory=list)
    """The report-status, pkt-line by pkt-line."""
    progress: str = ""
    """Band 2."""
    error: str = ""
    """Band 3, or ERR."""
    keepalives: list[tuple[bytes, float]] = field(default_factory=list)

    @property
    def results(self) -> dict[str, str]:
        """Ref -> "ok" or the reason why not."""
        found: dict[str, str] = {}
        for line in self.lines[1:]:
            word, _, rest = os.fsdecode(line).rstrip("\n").partition(" ")
            ref, _, reason = rest.partition(" ")
            if word != "option":
                found[ref] = "ok" if word == "ok" else reason
        return found

    @property
    def unpack(self) -> str:
        return self.lines[0].decode().rstrip("\n").removeprefix("unpack ")


def read_response(response: bytes, *, band: bool, outcome: Outcome) -> None:
    decoder = PktLineDecoder()
    report = b""
    events = decoder.feed(response)
    assert decoder.is_between_packets
    if not band:
        if events and isinstance(events[0], bytes) and events[0].startswith(b"ERR "):
            outcome.error = events[0][4:].decode().rstrip("\n")
            return
        report = response
    else:
        for event in events[:-1]:
            assert isinstance(event, bytes)
            assert event[:1] in (b"\x01", b"\x02"), event
            if event[:1] == b"\x01":
                report += event[1:]
            else:
                outcome.progress += event[1:].decode("utf-8", "backslashreplace")
        last = events[-1]
        if isinstance(last, bytes):
            assert last[:1] == b"\x03"
            outcome.error = last[1:].decode().rstrip("\n")
        else:
            assert last is Special.FLUSH
    lines = PktLineDecoder().feed(report) if report else [Special.FLUSH]
    assert lines.pop() is Special.FLUSH
    for line in lines:
        assert isinstance(line, bytes)
        outcome.lines.append(line)


class Site:
    """A served repository and a work tree beside it."""

    def __init__(
        self, tmp_path: Path, *, object_format: str = "sha1", bare: bool = True, template: Path | None = None
    ) -> None:
        self.tmp_path = tmp_path
        self.work = tmp_path / "work"
        self.zero = b"0" * (40 if object_format == "sha1" else 64)
        self.format = object_format.encode()
        self._clock = 1_700_000_000
        root = tmp_path / "root"
        self.path = root / "repo.git" if bare else root / "repo" / ".git"
        if template is not None:
            shutil.copytree(template / "root", root)
            shutil.copytree(template / "work", self.work)
        else:
            root.mkdir()
            where = self.path if bare else self.path.parent
            bare_option = ["--bare"] if bare else []
            self.git("init", "-q", *bare_option, f"--object-format={object_format}", where, cwd=tmp_path)
            self.git("init", "-q", f"--object-format={object_format}", self.work, cwd=tmp_path)
        self.root = RepositoryRoot(root)

    def git(self, *args: str | Path | bytes, cwd: Path | None = None, data: bytes = b"") -> bytes:
        """Run git at a time of its own, and return its output without newlines at the end."""
        return self.git_bytes(*args, cwd=cwd, data=data).rstrip(b"\n")

    def git_bytes(self, *args: str | Path | bytes, cwd: Path | None = None, data: bytes = b"") -> bytes:
        self._clock += 60
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.tmp_path),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "init.defaultBranch",
            "GIT_CONFIG_VALUE_0": "main",
            "GIT_CONFIG_KEY_1": "gc.auto",
            "GIT_CONFIG_VALUE_1": "0",
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_COMMITTER_NAME": "C",
            "GIT_COMMITTER_EMAIL": "c@example.com",
            "GIT_AUTHOR_DATE": f"{self._clock} +0000",
            "GIT_COMMITTER_DATE": f"{self._clock} +0000",
            "LC_ALL": "C",
        }
        done = subprocess.run(
            ["git", *args], cwd=cwd or self.work, input=data, env=environ, capture_output=True, check=False
        )
        assert done.returncode == 0, f"git {args}: {done.stderr.decode()}"
        return done.stdout

    @property
    def repo(self) -> Repository:
        return self.root.open("repo")

    def commit(self, text: str, *, name: str = "file", parent: str | None = None) -> bytes:
        """Commit a file onto `parent` (a rev of the work tree, by default what is checked out)."""
        if parent is not None:
            self.git("checkout", "-q", "--detach", parent)
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.git("add", ".")
        self.git("commit", "-q", "-m", text)
        return self.git("rev-parse", "HEAD")

    def pack(self, *revs: bytes, thin: bool = False) -> bytes:
        """A pack with what the revs reach; `^rev` leaves out."""
        options = ["--thin"] if thin else []
        return self.git_bytes(
            "pack-objects", "--revs", "--stdout", "-q", *options, data=b"\n".join(revs) + b"\n"
        )

    def pack_of(self, *oids: bytes) -> bytes:
        """A pack of exactly these objects."""
        return self.git_bytes("pack-objects", "--stdout", "-q", data=b"\n".join(oids) + b"\n")

    def seed(self) -> bytes:
        """Give the repository a `main` of three commits, and return its tip."""
        for number in range(3):
            self.commit(f"{number}\n" + "line\n" * 50)
        self.git("push", "-q", self.path, "HEAD:refs/heads/main")
        self.git("repack", "-adq", cwd=self.path)
        return self.git("rev-parse", "HEAD")

    def config(self, name: str, value: str) -> None:
        self.git("config", name, value, cwd=self.path)

    def hook(self, name: str, text: str) -> None:
        path = self.path / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def refs(self) -> dict[bytes, bytes]:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=self.path).splitlines()
        return {name: oid for name, _, oid in (line.partition(b" ") for line in lines)}

    def files(self) -> dict[str, bytes | None]:
        """Every file with its content, and every folder, of the repository."""
        found: dict[str, bytes | None] = {}
        for folder, folders, names in os.walk(self.path):
            found |= {os.path.join(folder, name): None for name in folders}
            found |= {os.path.join(folder, name): Path(folder, name).read_bytes() for name in names}
        return found

    def request(
        self,
        commands: Sequence[Command],
        pack: bytes = b"",
        *,
        capabilities: bytes | None = None,
        options: Sequence[bytes] | None = None,
        shallow: Sequence[bytes] = (),
    ) -> bytes:
        if capabilities is None:
            capabilities = b"report-status-v2 side-band-64k object-format=%b agent=test/1" % self.format
        if options is not None:
            capabilities += b" push-options"
        lines = [pkt(b"shallow " + oid) for oid in shallow]
        for old, new, ref in commands:
            lines.append(pkt(b"%b %b %b%b" % (old, new, ref, b"\0 " + capabilities if capabilities else b"")))
            capabilities = b""
        body = b"".join(lines) + b"0000"
        if options is not None:
            body += b"".join(pkt(option) for option in options) + b"0000"
        return body + pack

    def push(
        self,
        commands: Sequence[Command],
        pack: bytes = b"",
        *,
        capabilities: bytes | None = None,
        push_options: Sequence[bytes] | None = None,
        shallow: Sequence[bytes] = (),
        options: ServiceOptions | None = None,
        actor: Actor = ALICE,
        version: int = 0,
        objects_may_stay: bool = False,
        moved_meanwhile: Mapping[bytes, bytes] | None = None,
        channel: Channel | None = None,
        shows_paths: bool = False,
    ) -> Outcome:
        """Push, and check the repository against what the report says."""
        request = self.request(
            commands, pack, capabilities=capabilities, options=push_options, shallow=shallow
        )
        if channel is None:
            channel = Channel(request)
        else:
            channel.left = memoryview(request)
        refs, files = self.refs(), self.files()
        report = receive_pack(
            self.repo, channel, version=version, actor=actor, options=options or ServiceOptions()
        )
        outcome = Outcome(report, bytes(channel.response), keepalives=channel.keepalives)
        band = capabilities is None or b"side-band-64k" in capabilities
        if channel.response:
            read_response(outcome.response, band=band, outcome=outcome)
        assert not channel.left, "the whole request is read"
        assert not channel.early, "git hears nothing before it has sent all"
        if channel.keepalives:
            assert channel.keepalives[-1][0] == b"", "keepalives end before the report"
        if not shows_paths:
            assert str(self.tmp_path).encode() not in outcome.response, "no server path in an answer"
        if outcome.lines:
            assert len(outcome.results) == len({command[2] for command in commands})
            done = {os.fsencode(ref) for ref, result in outcome.results.items() if result == "ok"}
            refs |= moved_meanwhile or {}
            for _, new, ref in commands:
                if ref in done:
                    refs[ref] = new
            self.check({ref: oid for ref, oid in refs.items() if oid != self.zero})
            assert report.refs == len(done)
            assert report.failed == (len(done) < len(outcome.results))
            if not done and not moved_meanwhile and not objects_may_stay:
                assert self.files() == files
        return outcome

    def check(self, refs: Mapping[bytes, bytes] | None = None) -> None:
        """fsck, refs as they should be, nothing left behind."""
        fsck = self.git("fsck", "--full", "--no-dangling", cwd=self.path)
        assert b"missing" not in fsck
        if refs is not None:
            assert self.refs() == refs
        left = [
            name
            for _, folders, names in os.walk(self.path)
            for name in (*folders, *names)
            if _LEFTOVER.match(name)
        ]
        assert left == []

    def has(self, oid: bytes) -> bool:
        done = subprocess.run(["git", "cat-file", "-e", oid], cwd=self.path, capture_output=True, check=False)
        return done.returncode == 0


@pytest.fixture(scope="session", name="template")
def fixture_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with three commits on main, to be copied."""
    path = tmp_path_factory.mktemp("template")
    Site(path).seed()
    return path


@pytest.fixture(name="site")
def fixture_site(tmp_path: Path, template: Path) -> Iterator[Site]:
    site = Site(tmp_path, template=template)
    yield site
    site.check()


@pytest.fixture(name="tip")
def fixture_tip(site: Site) -> bytes:
    return site.git("rev-parse", "HEAD")


def main(tip: bytes, new: bytes) -> Command:
    return (tip, new, b"refs/heads/main")


# --------------------------------------------------------------------------------------------- what goes well


def test_first_push_into_an_empty_repository(tmp_path: Path) -> None:
    site = Site(tmp_path)
    new = site.commit("one")
    outcome = site.push([(ZERO, new, b"refs/heads/main")], site.pack(new))
    assert outcome.lines == [b"unpack ok\n", b"ok refs/heads/main\n"]
    assert outcome.progress == ""
    assert outcome.report == ServiceReport(objects=3, refs=1, agent="test/1")
    assert outcome.keepalives == [(b"0005\x02", 5.0), (b"", 0)]


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("thin", [False, True], ids=["whole", "thin"])
def test_update(tmp_path: Path, object_format: str, thin: bool) -> None:
    site = Site(tmp_path, object_format=object_format)
    tip = site.seed()
    new = site.commit("3\n" + "line\n" * 50)
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip, thin=thin))
    assert outcome.results == {"refs/heads/main": "ok"}
    assert site.refs() == {b"refs/heads/main": new}


def test_sha256_creates_and_deletes(tmp_path: Path) -> None:
    """Where the zero oid's length matters."""
    site = Site(tmp_path, object_format="sha256")
    tip = site.seed()
    new = site.commit("topic")
    assert site.push([(site.zero, new, b"refs/heads/topic")], site.pack(new, b"^" + tip)).results == {
        "refs/heads/topic": "ok"
    }
    assert site.push([(new, site.zero, b"refs/heads/topic")]).results == {"refs/heads/topic": "ok"}
    assert site.refs() == {b"refs/heads/main": tip}


def test_the_object_format_has_to_match(site: Site, tip: bytes) -> None:
    outcome = site.push(
        [(ZERO, tip, b"refs/heads/x")], EMPTY_PACK, capabilities=b"report-status object-format=sha256"
    )
    assert outcome.error == "error: unsupported object format 'sha256'"


def test_a_branch_on_what_is_there_brings_an_empty_pack(site: Site, tip: bytes) -> None:
    before = set(site.files())
    outcome = site.push([(ZERO, tip, b"refs/heads/copy")], EMPTY_PACK)
    assert outcome.results == {"refs/heads/copy": "ok"}
    assert outcome.report == ServiceReport(objects=0, refs=1, agent="test/1")
    assert {Path(path).name for path in set(site.files()) - before} == {"copy"}


def test_many_refs_at_once(site: Site, tip: bytes) -> None:
    commands = [main(tip, site.commit("next"))]
    revs = [commands[0][1], b"^" + tip]
    for number in range(40):
        new = site.commit(f"b{number}", parent=tip.decode())
        commands.append((ZERO, new, b"refs/heads/b%d" % number))
        revs.insert(0, new)
    site.git("tag", "-a", "-m", "t", "v1", tip)
    commands.append((ZERO, site.git("rev-parse", "v1"), b"refs/tags/v1"))
    outcome = site.push(commands, site.pack(b"v1", *revs))
    assert set(outcome.results.values()) == {"ok"}
    assert len(site.refs()) == 42


def test_deletes_bring_no_pack(site: Site, tip: bytes) -> None:
    for ref in ("refs/heads/a", "refs/heads/b/c", "refs/tags/t"):
        site.git("update-ref", ref, tip, cwd=site.path)
    site.git("pack-refs", "--all", cwd=site.path)
    site.git("update-ref", "refs/heads/loose", tip, cwd=site.path)
    outcome = site.push(
        [
            (tip, ZERO, b"refs/heads/a"),
            (tip, ZERO, b"refs/heads/b/c"),
            (tip, ZERO, b"refs/tags/t"),
            (tip, ZERO, b"refs/heads/loose"),
        ]
    )
    assert set(outcome.results.values()) == {"ok"}
    assert site.refs() == {b"refs/heads/main": tip}


@pytest.mark.parametrize("old", [ZERO, b"1" * 40], ids=["zero", "no-object-of-ours"])
def test_a_delete_of_what_is_not_there_is_done(site: Site, tip: bytes, old: bytes) -> None:
    site.hook("post-receive", "cat\n")
    site.hook("post-update", 'echo "$@"\n')
    outcome = site.push([(old, ZERO, b"refs/heads/none")])
    assert outcome.results == {"refs/heads/none": "ok"}
    assert outcome.progress == "warning: deleting a non-existent ref\n", "and the hooks after it don't run"


def test_delete_and_create_in_one_push(site: Site, tip: bytes) -> None:
    """A name's folder takes its place, and the other way round."""
    site.git("update-ref", "refs/heads/d", tip, cwd=site.path)
    site.git("update-ref", "refs/heads/e/f", tip, cwd=site.path)
    outcome = site.push(
        [
            (ZERO, tip, b"refs/heads/d/x"),
            (tip, ZERO, b"refs/heads/d"),
            (tip, ZERO, b"refs/heads/e/f"),
            (ZERO, tip, b"refs/heads/e"),
        ],
        EMPTY_PACK,
    )
    assert set(outcome.results.values()) == {"ok"}
    assert site.refs() == {b"refs/heads/d/x": tip, b"refs/heads/e": tip, b"refs/heads/main": tip}


def test_a_forced_update_is_said_to_be_one(site: Site, tip: bytes) -> None:
    new = site.commit("other", parent=tip.decode() + "~1")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip))
    assert outcome.lines == [b"unpack ok\n", b"ok refs/heads/main\n", b"option forced-update\n"]


def test_v1_report_has_no_options(site: Site, tip: bytes) -> None:
    new = site.commit("other", parent=tip.decode() + "~1")
    capabilities = b"report-status side-band-64k"
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), capabilities=capabilities)
    assert outcome.lines == [b"unpack ok\n", b"ok refs/heads/main\n"]


def test_the_reflog_names_the_pusher(site: Site, tip: bytes) -> None:
    site.config("core.logAllRefUpdates", "true")
    new = site.commit("next")
    site.push([main(tip, new)], site.pack(new, b"^" + tip))
    last = (site.path / "logs/refs/heads/main").read_bytes().splitlines()[-1]
    assert last.startswith(b"%b %b alice <alice@http.192.0.2.1> " % (tip, new))
    assert last.endswith(b"\tpush")
    newer = site.commit("newer")
    site.push([main(new, newer)], site.pack(newer, b"^" + new), actor=Actor(None, "::1"))
    last = (site.path / "logs/refs/heads/main").read_bytes().splitlines()[-1]
    assert b" anonymous <anonymous@http.::1> " in last


# ------------------------------------------------------------------------------------ the shapes of an answer


def test_without_side_band_the_report_is_bare(site: Site, tip: bytes) -> None:
    new = site.commit("next")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), capabilities=b"report-status")
    assert outcome.response == b"000eunpack ok\n0017ok refs/heads/main\n0000"
    assert outcome.keepalives == [(b"", 0)]


@pytest.mark.parametrize(("capabilities", "response"), [(b"", b""), (b"side-band-64k", b"0000")])
def test_without_report_status_nothing_is_said(
    site: Site, tip: bytes, capabilities: bytes, response: bytes
) -> None:
    new = site.commit("next")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), capabilities=capabilities)
    assert outcome.response == response
    site.check({b"refs/heads/main": new})


def test_the_probe_has_no_answer(site: Site, tip: bytes) -> None:
    channel = Channel(b"0000")
    assert (
        receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions()) == ServiceReport()
    )
    assert channel.response == b""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param(b"", "the remote end hung up unexpectedly", id="nothing"),
        pytest.param(b"00", "the remote end hung up unexpectedly", id="half-a-length"),
        pytest.param(b"zzzz", "protocol error: bad line length character: zzzz", id="no-hex"),
        pytest.param(b"0003", "protocol error: bad line length 3", id="length-3"),
        pytest.param(b"0001", "protocol error: got an unexpected packet", id="delim"),
        pytest.param(pkt(b"hello"), "protocol error: expected old/new/ref, got 'hello'", id="no-command"),
        pytest.param(
            pkt(b"%b %b x\0 report-status" % (ZERO[:-1], ZERO)),
            f"protocol error: expected old/new/ref, got '{'0' * 39} {'0' * 40} x'",
            id="short-oid",
        ),
        pytest.param(
            pkt(b"%b %b refs/heads/x\0 report-status" % (b"0" * 64, b"1" * 64)),
            f"protocol error: expected old/new/ref, got '{'0' * 64} {'1' * 64} refs/heads/x'",
            id="sha256-oids",
        ),
        pytest.param(pkt(b"shallow x"), "protocol error: expected shallow sha, got 'x'", id="bad-shallow"),
        pytest.param(
            pkt(b"%b %b refs/heads/x\0 report-status" % (ZERO, b"1" * 40)),
            "the remote end hung up unexpectedly",
            id="no-flush",
        ),
    ],
)
@pytest.mark.parametrize("band", [False, True], ids=["bare", "band"])
def test_malformed_requests_are_told_so(site: Site, tip: bytes, body: bytes, error: str, band: bool) -> None:
    """As ERR, or on band 3 once a command has chosen side-band-64k."""
    files = site.files()
    if band:
        body = pkt(b"%b %b refs/heads/first\0 side-band-64k" % (ZERO, tip)) + body
    channel = Channel(body)
    report = receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    text = error.encode() + b"\n"
    assert channel.response == (pkt(b"\x03" + text.rstrip()) if band else pkt(b"ERR " + text))
    assert report == ServiceReport(note=error, failed=True)
    assert site.files() == files


def test_too_many_commands(site: Site, tip: bytes) -> None:
    commands = [(ZERO, tip, b"refs/heads/b%d" % number) for number in range(11)]
    outcome = site.push(commands, EMPTY_PACK, options=ServiceOptions(push_lines=10))
    assert outcome.error == "push has more than 10 commands and options"
    assert site.refs() == {b"refs/heads/main": tip}


# ----------------------------------------------------------------------------------------------- refused refs


@pytest.mark.parametrize(
    "ref",
    [
        b"HEAD",
        b"main",
        b"refs/main",
        b"refs/heads/a..b",
        b"refs/heads/.a",
        b"refs/heads/a.lock",
        b"refs/heads/a b",
        b"refs/heads/a~1",
        b"refs/heads/a/",
        b"refs/../../config",
        b"refs/heads/a\x1b[31m",
        b"/etc/passwd",
        b"objects/info/alternates",
        b"refs//heads/x",
    ],
)
def test_funny_refnames(site: Site, tip: bytes, ref: bytes) -> None:
    outcome = site.push([(ZERO, tip, ref), (ZERO, tip, b"refs/heads/good")], EMPTY_PACK)
    assert outcome.lines == [b"unpack ok\n", b"ng %b funny refname\n" % ref, b"ok refs/heads/good\n"]
    assert outcome.progress.startswith("error: refusing to update funny ref '")
    assert "\x1b" not in outcome.progress


@pytest.mark.parametrize(
    "ref", [b"refs/heads/caf\xc3\xa9", b"refs/heads/caf\xe9", b"refs/notes/x", b"refs/heads/" + b"x" * 200]
)
def test_unusual_but_good_refnames(site: Site, tip: bytes, ref: bytes) -> None:
    outcome = site.push([(ZERO, tip, ref)], EMPTY_PACK, objects_may_stay=True)
    assert outcome.lines == [b"unpack ok\n", b"ok %b\n" % ref]
    assert site.refs()[ref] == tip


def test_two_commands_for_one_ref(site: Site, tip: bytes) -> None:
    one, two = site.commit("one", parent=tip.decode()), site.commit("two", parent=tip.decode())
    reason = "multiple updates for ref 'refs/heads/main' not allowed"
    channel = Channel(
        site.request(
            [main(tip, one), main(tip, two), (ZERO, one, b"refs/heads/one")], site.pack(one, two, b"^" + tip)
        )
    )
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    outcome = Outcome(ServiceReport(), bytes(channel.response))
    read_response(outcome.response, band=True, outcome=outcome)
    ng = b"ng refs/heads/main %b\n" % reason.encode()
    assert outcome.lines == [b"unpack ok\n", ng, ng, b"ok refs/heads/one\n"]
    site.check({b"refs/heads/main": tip, b"refs/heads/one": one})


def stale(site: Site, tip: bytes) -> Command:
    return (site.git("rev-parse", tip + b"~1"), site.commit("x"), b"refs/heads/main")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        pytest.param(stale, "incorrect old value provided", id="stale-old"),
        pytest.param(
            lambda site, tip: (ZERO, site.commit("x"), b"refs/heads/main"),
            "reference already exists",
            id="create-existing",
        ),
        pytest.param(
            lambda site, tip: (tip, site.commit("x"), b"refs/heads/none"),
            "reference does not exist",
            id="update-missing",
        ),
        pytest.param(
            lambda site, tip: (b"1" * 40, site.commit("x"), b"refs/heads/none"),
            "reference does not exist",
            id="update-missing-from-nowhere",
        ),
        pytest.param(
            lambda site, tip: (tip, ZERO, b"refs/heads/none"), "reference does not exist", id="delete-missing"
        ),
        pytest.param(
            lambda site, tip: (ZERO, site.commit("x"), b"refs/heads/main/sub"),
            "refname conflict",
            id="below-a-ref",
        ),
        pytest.param(
            lambda site, tip: (ZERO, site.commit("x"), b"refs/heads"), "funny refname", id="above-all-refs"
        ),
        pytest.param(
            lambda site, tip: (ZERO, site.git("rev-parse", "HEAD^{tree}"), b"refs/heads/tree"),
            "invalid new value provided",
            id="branch-to-a-tree",
        ),
        pytest.param(
            lambda site, tip: (ZERO, site.git("rev-parse", "HEAD:file"), b"refs/heads/blob"),
            "invalid new value provided",
            id="branch-to-a-blob",
        ),
        pytest.param(
            lambda site, tip: (ZERO, b"1" * 40, b"refs/heads/none"),
            "missing necessary objects",
            id="no-such-object",
        ),
        pytest.param(
            lambda site, tip: (tip, ZERO, b"refs/heads/main"),
            "deletion of the current branch prohibited",
            id="delete-heads-branch",
        ),
    ],
)
def test_refused_commands(
    site: Site, tip: bytes, command: Callable[[Site, bytes], Command], reason: str
) -> None:
    """Each leaves the repository's files as they were."""
    old, new, ref = command(site, tip)
    pack = b"" if new == ZERO else site.pack(b"HEAD", b"^" + tip)
    outcome = site.push([(old, new, ref)], pack)
    assert outcome.results == {ref.decode(): reason}
    assert outcome.unpack == "ok"
    assert outcome.progress.startswith("error: ")


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
def test_a_name_that_would_hide_another(site: Site, tip: bytes, packed: bool) -> None:
    site.git("update-ref", "refs/heads/a/b/c", tip, cwd=site.path)
    if packed:
        site.git("pack-refs", "--all", "--prune", cwd=site.path)
    new = site.commit("x")
    outcome = site.push(
        [
            (ZERO, new, b"refs/heads/a"),
            (ZERO, new, b"refs/heads/a/b"),
            (ZERO, new, b"refs/heads/a/b/c/d"),
        ],
        site.pack(new, b"^" + tip),
    )
    assert set(outcome.results.values()) == {"refname conflict"}


def test_two_new_names_that_cannot_be_together(site: Site, tip: bytes) -> None:
    outcome = site.push(
        [(ZERO, tip, b"refs/heads/n"), (ZERO, tip, b"refs/heads/n/m")], EMPTY_PACK, objects_may_stay=True
    )
    assert set(outcome.results.values()) == {"refname conflict"}


def test_tags_and_other_refs_may_name_anything(site: Site, tip: bytes) -> None:
    blob = site.git("rev-parse", "HEAD:file")
    outcome = site.push([(ZERO, blob, b"refs/tags/blob"), (ZERO, blob, b"refs/x/y")], EMPTY_PACK)
    assert set(outcome.results.values()) == {"ok"}


def test_one_refused_ref_does_not_stop_the_others(site: Site, tip: bytes) -> None:
    new = site.commit("x")
    outcome = site.push(
        [(new, tip, b"refs/heads/main"), (ZERO, new, b"refs/heads/new"), (tip, ZERO, b"refs/heads/none")],
        site.pack(new, b"^" + tip),
    )
    assert outcome.results == {
        "refs/heads/main": "incorrect old value provided",
        "refs/heads/new": "ok",
        "refs/heads/none": "reference does not exist",
    }
    assert outcome.report.note == "2 of 3 refs refused: incorrect old value provided"


def test_symrefs_are_followed(site: Site, tip: bytes) -> None:
    site.git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=site.path)
    new = site.commit("x")
    channel = Channel(site.request([(tip, new, b"refs/heads/alias")], site.pack(new, b"^" + tip)))
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert site.refs() == {b"refs/heads/main": new, b"refs/heads/alias": new}
    assert (site.path / "refs/heads/alias").read_bytes() == b"ref: refs/heads/main\n"


def test_a_symref_and_its_target_at_odds(site: Site, tip: bytes) -> None:
    site.git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=site.path)
    new, other = site.commit("x", parent=tip.decode()), site.commit("y", parent=tip.decode())
    outcome = site.push(
        [(tip, new, b"refs/heads/main"), (tip, other, b"refs/heads/alias")],
        site.pack(new, other, b"^" + tip),
        objects_may_stay=True,
    )
    assert set(outcome.results.values()) == {"inconsistent aliased update"}


def test_heads_branch_is_safe_behind_a_symref(site: Site, tip: bytes) -> None:
    site.git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=site.path)
    outcome = site.push([(tip, ZERO, b"refs/heads/alias")])
    assert outcome.results == {"refs/heads/alias": "deletion of the current branch prohibited"}


def test_a_broken_symref(site: Site, tip: bytes) -> None:
    (site.path / "refs/heads/odd").write_bytes(b"ref: refs/heads/../../config\n")
    new = site.commit("x")
    channel = Channel(site.request([(ZERO, new, b"refs/heads/odd")], site.pack(new, b"^" + tip)))
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert b"ng refs/heads/odd broken symref\n" in channel.response
    (site.path / "refs/heads/odd").unlink()


# ----------------------------------------------------------------------------------------------------- policy


def test_non_fast_forwards(site: Site, tip: bytes) -> None:
    site.config("receive.denyNonFastForwards", "true")
    new = site.commit("other", parent=tip.decode() + "~1")
    outcome = site.push([main(tip, new), (ZERO, new, b"refs/heads/x")], site.pack(new, b"^" + tip))
    assert outcome.results == {"refs/heads/main": "non-fast-forward", "refs/heads/x": "ok"}
    assert "denying non-fast-forward refs/heads/main (you should pull first)" in outcome.progress
    newer = site.commit("newer", parent=tip.decode())
    assert site.push([main(tip, newer)], site.pack(newer, b"^" + tip)).results == {"refs/heads/main": "ok"}


def test_denied_deletes(site: Site, tip: bytes) -> None:
    site.config("receive.denyDeletes", "true")
    site.git("update-ref", "refs/heads/a", tip, cwd=site.path)
    site.git("update-ref", "refs/tags/t", tip, cwd=site.path)
    outcome = site.push([(tip, ZERO, b"refs/heads/a"), (tip, ZERO, b"refs/tags/t")])
    assert outcome.results == {"refs/heads/a": "deletion prohibited", "refs/tags/t": "ok"}


def test_the_current_branch_may_go_when_config_says_so(site: Site, tip: bytes) -> None:
    site.config("receive.denyDeleteCurrent", "warn")
    outcome = site.push([(tip, ZERO, b"refs/heads/main")])
    assert outcome.results == {"refs/heads/main": "ok"}
    assert outcome.progress == "warning: deleting the current branch\n"


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (
            None,
            "branch is currently checked out",
            "error: refusing to update checked out branch: refs/heads/main\n",
        ),
        (
            "refuse",
            "branch is currently checked out",
            "error: refusing to update checked out branch: refs/heads/main\n",
        ),
        (
            "updateInstead",
            "branch is currently checked out",
            "error: receive.denyCurrentBranch = updateInstead",
        ),
        ("warn", "ok", "warning: updating the current branch\n"),
        ("ignore", "ok", ""),
        ("false", "ok", ""),
    ],
)
def test_the_branch_of_a_work_tree(tmp_path: Path, value: str | None, reason: str, said: str) -> None:
    site = Site(tmp_path, bare=False)
    tip = site.commit("one")
    site.git("push", "-q", site.path, "HEAD:refs/heads/other")
    site.git("checkout", "-q", "-b", "main", "other", cwd=site.path.parent)
    if value is not None:
        site.config("receive.denyCurrentBranch", value)
    new = site.commit("two")
    outcome = site.push([main(tip, new), (tip, new, b"refs/heads/other")], site.pack(new, b"^" + tip))
    assert outcome.results == {"refs/heads/main": reason, "refs/heads/other": "ok"}
    assert outcome.progress.startswith(said)
    assert ("is not allowed by default" in outcome.progress.replace("\n", " ")) == (value is None)


def test_a_bad_setting_refuses_the_push(site: Site, tip: bytes) -> None:
    site.config("receive.denyDeletes", "perhaps")
    outcome = site.push([(ZERO, tip, b"refs/heads/x")], EMPTY_PACK)
    assert outcome.error == "bad boolean config value 'perhaps' for 'receive.denyDeletes'"
    site.check({b"refs/heads/main": tip})


# ---------------------------------------------------------------------------------------------------- objects


@pytest.mark.parametrize("what", ["HEAD^{tree}", "HEAD:file", "HEAD:dir", "HEAD:dir/deep", "HEAD~1"])
def test_a_push_without_all_its_objects(site: Site, tip: bytes, what: str) -> None:
    site.commit("one", name="dir/deep")
    site.commit("two", name="file")
    new = site.commit("three", name="dir/deep")
    objects = {line.split()[0] for line in site.git("rev-list", "--objects", "HEAD", b"^" + tip).splitlines()}
    missing = site.git("rev-parse", what)
    assert missing in objects
    outcome = site.push(
        [main(tip, new), (ZERO, tip, b"refs/heads/x")], site.pack_of(*sorted(objects - {missing}))
    )
    assert outcome.unpack == "ok"
    assert outcome.results == {"refs/heads/main": "missing necessary objects", "refs/heads/x": "ok"}


def test_a_push_without_all_its_objects_leaves_nothing(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    outcome = site.push([main(tip, new)], site.pack_of(new))
    assert outcome.results == {"refs/heads/main": "missing necessary objects"}


def bad_packs(site: Site, tip: bytes, new: bytes) -> dict[str, bytes]:
    whole = site.pack(new, b"^" + tip)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    return {
        "none": b"",
        "no-pack": b"hello, world, this is not a pack at all",
        "header-only": whole[:12],
        "cut": whole[:-30],
        "trailer-cut": whole[:-1],
        "junk": whole + b"x",
        "checksum": whole[:-1] + bytes([whole[-1] ^ 1]),
        "flipped": bytes(flipped),
        "version": whole[:7] + b"\x09" + whole[8:],
        "one-less": whole[:11] + bytes([whole[11] - 1]) + whole[12:],
        "one-more": whole[:11] + bytes([whole[11] + 1]) + whole[12:],
    }


@pytest.mark.parametrize(
    "kind",
    [
        "none",
        "no-pack",
        "header-only",
        "cut",
        "trailer-cut",
        "junk",
        "checksum",
        "flipped",
        "version",
        "one-less",
        "one-more",
    ],
)
def test_bad_packs(site: Site, tip: bytes, kind: str) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "echo hook ran\n")
    outcome = site.push(
        [main(tip, new), (ZERO, tip, b"refs/heads/x"), (ZERO, tip, b"funny")], bad_packs(site, tip, new)[kind]
    )
    assert outcome.unpack != "ok"
    assert set(outcome.results.values()) == {"unpacker error"}
    assert "hook ran" not in outcome.progress
    assert outcome.report.note == f"unpack: {outcome.unpack}"


def test_limits(site: Site, tip: bytes) -> None:
    (site.work / "big").write_bytes(os.urandom(300_000))
    new = site.commit("one")
    pack = site.pack(new, b"^" + tip)
    small = ServiceOptions(ingest=IngestLimits(object_bytes=100_000))
    outcome = site.push([main(tip, new)], pack, options=small)
    assert outcome.results == {"refs/heads/main": "unpacker error"}
    assert "limit of 100000" in outcome.unpack
    site.config("receive.maxInputSize", "200k")
    outcome = site.push([main(tip, new)], pack)
    assert outcome.unpack == "index-pack abnormal exit"
    assert outcome.progress == "fatal: pack exceeds maximum allowed size (200.00 KiB)\n"
    assert "exceeds maximum allowed size" in outcome.report.note
    site.config("receive.maxInputSize", "1m")
    assert site.push([main(tip, new)], pack).results == {"refs/heads/main": "ok"}


def test_a_hopeless_push_is_read_but_not_kept(
    site: Site, tip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Push, "ingest", None)
    new = site.commit("one")
    outcome = site.push([stale(site, tip)], site.pack(new, b"^" + tip))
    assert outcome.results == {"refs/heads/main": "incorrect old value provided"}


def test_reading_a_hopeless_push_has_an_end(site: Site, tip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_BYTES", 100_000)
    channel = Channel(site.request([(ZERO, tip, b"funny")], b"x" * 1_000_000))
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions(keepalive_s=0))
    assert 890_000 < len(channel.left) < 950_000
    assert b"ng funny funny refname\n" in channel.response


@pytest.mark.parametrize("step", ["ingest", "migrate"])
def test_a_full_disk(
    site: Site, tip: bytes, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(site.path / "objects/pack/x"))
    real = Push.ingest

    def ingest(self: Push, read: Callable[[int], bytes], **more: Any) -> object:
        calls = [0]

        def read_some(n: int) -> bytes:
            calls[0] += 1
            if calls[0] == 2:
                raise full
            return read(min(n, 100))

        return real(self, read_some, **more)

    def migrate(self: Push) -> None:
        raise full

    monkeypatch.setattr(Push, step, ingest if step == "ingest" else migrate)
    new = site.commit("one")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip))
    if step == "ingest":
        assert outcome.unpack == "no space left on device"
        assert outcome.results == {"refs/heads/main": "unpacker error"}
    else:
        assert outcome.results == {"refs/heads/main": "unable to migrate objects to permanent storage"}
    assert len(caplog.records) == 1
    monkeypatch.undo()
    assert site.push([main(tip, new)], site.pack(new, b"^" + tip)).results == {"refs/heads/main": "ok"}


def test_a_push_out_of_a_shallow_clone(site: Site, tip: bytes) -> None:
    """Its boundary is here with all of its history: nothing is wrong with it."""
    new = site.commit("one")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), shallow=[tip])
    assert outcome.results == {"refs/heads/main": "ok"}


def test_a_shallow_push_that_lacks_history(site: Site, tip: bytes) -> None:
    parent = site.commit("one")
    new = site.commit("two")
    objects = site.git("rev-list", "--objects", "--no-object-names", new, b"^" + parent).split()
    outcome = site.push([(ZERO, new, b"refs/heads/x")], site.pack_of(*objects), shallow=[new])
    assert outcome.results == {"refs/heads/x": "shallow update not allowed"}


def test_a_shallow_push_that_may_cut_history(site: Site, tip: bytes) -> None:
    site.git("config", "receive.shallowUpdate", "true", cwd=site.path)
    parent = site.commit("one")
    new = site.commit("two")
    objects = site.git("rev-list", "--objects", "--no-object-names", new, b"^" + parent).split()
    pack = site.pack_of(*objects)
    outcome = site.push([(ZERO, new, b"refs/heads/x")], pack, shallow=[new, tip])
    assert outcome.results == {"refs/heads/x": "ok"}
    assert (site.path / "shallow").read_bytes() == new + b"\n"
    # with its parent it is whole; what is shallow stays so
    outcome = site.push([(ZERO, parent, b"refs/heads/y")], site.pack(parent, b"^" + tip), shallow=[new])
    assert outcome.results == {"refs/heads/y": "ok"}
    assert (site.path / "shallow").read_bytes() == new + b"\n"


@pytest.mark.parametrize("capabilities", [None, USUAL + b" atomic"])
def test_a_shallow_file_that_can_not_be_written(
    site: Site,
    tip: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: bytes | None,
) -> None:
    def fail(*_: Any) -> None:
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr("gitsmart.repo.quarantine.extend_shallow", fail)
    site.git("config", "receive.shallowUpdate", "true", cwd=site.path)
    parent = site.commit("one")
    new = site.commit("two")
    objects = site.git("rev-list", "--objects", "--no-object-names", new, b"^" + parent).split()
    commands = [(ZERO, new, b"refs/heads/x"), (ZERO, tip, b"refs/heads/y")]
    outcome = site.push(
        commands, site.pack_of(*objects), shallow=[new], capabilities=capabilities, objects_may_stay=True
    )
    other = "ok" if capabilities is None else "atomic push failure"
    assert outcome.results == {"refs/heads/x": "shallow error", "refs/heads/y": other}
    assert len(caplog.records) == 1


def test_a_shallow_push_that_lies(site: Site, tip: bytes) -> None:
    """Shallow lines name nothing here, or what isn't where history breaks off."""
    site.git("config", "receive.shallowUpdate", "true", cwd=site.path)
    parent = site.commit("one")
    new = site.commit("two")
    objects = site.git("rev-list", "--objects", "--no-object-names", new, b"^" + parent).split()
    tree = site.git("rev-parse", tip + b"^{tree}")
    for lines in ([tip], [b"1" * 40], [tree]):
        outcome = site.push([(ZERO, new, b"refs/heads/x")], site.pack_of(*objects), shallow=lines)
        assert outcome.results == {"refs/heads/x": "missing necessary objects"}
    assert not (site.path / "shallow").exists()


def test_a_certificate_where_none_is_asked_for(site: Site, tip: bytes) -> None:
    channel = Channel(
        pkt(b"push-cert\0 report-status side-band-64k")
        + pkt(b"certificate version 0.1\n")
        + pkt(b"\n")
        + pkt(b"%b %b refs/heads/x\n" % (ZERO, tip))
        + pkt(b"push-cert-end\n")
        + b"0000"
        + EMPTY_PACK
    )
    report = receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert report.note == "push certificates are not supported"
    assert bytes(channel.response) == pkt(b"\x03push certificates are not supported")
    site.check({b"refs/heads/main": tip})


def test_push_options_that_were_not_signed(site: Site, tip: bytes) -> None:
    site.config("receive.certNonceSeed", "seed")
    channel = Channel(
        pkt(b"push-cert\0 report-status push-options")
        + pkt(b"certificate version 0.1\n")
        + pkt(b"push-option one\n")
        + pkt(b"\n")
        + pkt(b"%b %b refs/heads/x\n" % (ZERO, tip))
        + pkt(b"push-cert-end\n")
        + b"0000"
        + pkt(b"two")
        + b"0000"
        + EMPTY_PACK
    )
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert b"ng refs/heads/x inconsistent push options\n" in channel.response
    site.check({b"refs/heads/main": tip})


# ----------------------------------------------------------------------------------------------------- atomic

ATOMIC = USUAL + b" atomic"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(lambda tip: (ZERO, tip, b"refs/heads/main"), "atomic transaction failed", id="exists"),
        pytest.param(lambda tip: (ZERO, tip, b"funny"), "funny refname", id="funny"),
        pytest.param(
            lambda tip: (ZERO, b"1" * 40, b"refs/heads/x"), "missing necessary objects", id="no-object"
        ),
        pytest.param(
            lambda tip: (tip, ZERO, b"refs/heads/main"),
            "deletion of the current branch prohibited",
            id="delete",
        ),
        pytest.param(
            lambda tip: (ZERO, tip, b"refs/heads/main/x"), "atomic transaction failed", id="conflict"
        ),
    ],
)
def test_atomic_moves_none_if_one_is_bad(
    site: Site, tip: bytes, bad: Callable[[bytes], Command], reason: str
) -> None:
    new = site.commit("one")
    command = bad(tip)
    outcome = site.push(
        [(ZERO, new, b"refs/heads/a"), command, (ZERO, new, b"refs/heads/z")],
        site.pack(new, b"^" + tip),
        capabilities=ATOMIC,
    )
    others = reason if reason == "atomic transaction failed" else "atomic push failure"
    assert outcome.results == {"refs/heads/a": others, command[2].decode(): reason, "refs/heads/z": others}


def test_atomic_moves_all(site: Site, tip: bytes) -> None:
    site.git("update-ref", "refs/heads/old", tip, cwd=site.path)
    new = site.commit("one")
    outcome = site.push(
        [main(tip, new), (ZERO, new, b"refs/heads/a"), (tip, ZERO, b"refs/heads/old")],
        site.pack(new, b"^" + tip),
        capabilities=ATOMIC,
    )
    assert set(outcome.results.values()) == {"ok"}


def test_atomic_and_a_lost_race(site: Site, tip: bytes) -> None:
    """One ref moves after all checks: in the update hook of the other."""
    new = site.commit("one")
    site.hook(
        "update", f'test "$1" = refs/heads/a || exit 0\ngit update-ref refs/heads/main {tip.decode()}~1\n'
    )
    outcome = site.push(
        [main(tip, new), (ZERO, new, b"refs/heads/a")],
        site.pack(new, b"^" + tip),
        capabilities=ATOMIC,
        moved_meanwhile={b"refs/heads/main": site.git("rev-parse", tip + b"~1")},
    )
    assert outcome.results == {
        "refs/heads/a": "atomic transaction failed",
        "refs/heads/main": "atomic transaction failed",
    }


def test_atomic_and_an_update_hook_that_declines_one(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("update", 'test "$1" != refs/heads/a\n')
    outcome = site.push(
        [main(tip, new), (ZERO, new, b"refs/heads/a"), (ZERO, new, b"refs/heads/b")],
        site.pack(new, b"^" + tip),
        capabilities=ATOMIC,
        objects_may_stay=True,
    )
    assert outcome.results == {
        "refs/heads/main": "atomic push failure",
        "refs/heads/a": "hook declined",
        "refs/heads/b": "atomic push failure",
    }


# ------------------------------------------------------------------------------------------------------ hooks


def test_pre_receive_sees_the_objects_and_the_rest_of_the_world_does_not(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook(
        "pre-receive",
        "while read old new ref; do\n"
        '  git cat-file -p "$new:file" && git rev-list --count $old..$new\n'
        "  env -u GIT_QUARANTINE_PATH -u GIT_OBJECT_DIRECTORY git cat-file -e $new && echo visible\n"
        "  git update-ref refs/heads/sneaked $new && echo sneaked\n"
        "done\nexit 0\n",
    )
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip))
    assert outcome.results == {"refs/heads/main": "ok"}
    said = outcome.progress.splitlines()
    assert said[0] == "one1"
    assert "visible" not in said
    assert "sneaked" not in said
    assert any("quarantine" in line for line in said), "git says why it doesn't update refs now"


def test_a_read_loop_sees_a_push_of_one_ref(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("pre-receive", 'while read old new ref; do echo "no $ref"; exit 1; done\n')
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip))
    assert outcome.results == {"refs/heads/main": "pre-receive hook declined"}
    assert outcome.progress == "no refs/heads/main\n"


def test_hooks_see_each_live_command_and_no_other(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.git("update-ref", "refs/heads/old", tip, cwd=site.path)
    for name in ("pre-receive", "post-receive"):
        site.hook(name, f"sed 's/^/{name}: /'\n")
    site.hook("update", 'echo "update: $@"; test "$1" != refs/heads/declined\n')
    site.hook("post-update", 'echo "post-update: $@"\n')
    outcome = site.push(
        [
            main(tip, new),
            (ZERO, tip, b"funny"),
            (tip, ZERO, b"refs/heads/old"),
            (ZERO, new, b"refs/heads/declined"),
            (tip, new, b"refs/heads/stale"),
            (ZERO, ZERO, b"refs/heads/none"),
        ],
        site.pack(new, b"^" + tip),
    )
    t, n, z = tip.decode(), new.decode(), ZERO.decode()
    assert [line for line in outcome.progress.splitlines() if not line.startswith(("error", "warning"))] == [
        f"pre-receive: {t} {n} refs/heads/main",
        f"pre-receive: {t} {z} refs/heads/old",
        f"pre-receive: {z} {n} refs/heads/declined",
        f"pre-receive: {z} {z} refs/heads/none",
        f"update: refs/heads/main {t} {n}",
        f"update: refs/heads/old {t} {z}",
        f"update: refs/heads/declined {z} {n}",
        f"update: refs/heads/none {z} {z}",
        f"post-receive: {t} {n} refs/heads/main",
        f"post-receive: {t} {z} refs/heads/old",
        "post-update: refs/heads/main refs/heads/old",
    ]
    assert outcome.results["refs/heads/declined"] == "hook declined"
    assert "error: hook declined to update refs/heads/declined\n" in outcome.progress


def test_update_sees_the_own_bytes_of_a_ref(site: Site, tip: bytes) -> None:
    site.hook("update", 'printf "%s" "$1" > seen\n')
    channel = Channel(site.request([(ZERO, tip, b"refs/heads/caf\xe9")], EMPTY_PACK))
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert (site.path / "seen").read_bytes() == b"refs/heads/caf\xe9", (
        "and the working directory is the repository"
    )


def test_nothing_happens_when_pre_receive_declines(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "echo nope >&2; exit 1\n")
    for name in ("update", "post-receive", "post-update"):
        site.hook(name, "echo ran\n")
    outcome = site.push([main(tip, new), (ZERO, new, b"refs/heads/x")], site.pack(new, b"^" + tip))
    assert set(outcome.results.values()) == {"pre-receive hook declined"}
    assert outcome.progress == "nope\n"


def test_a_failing_post_receive_fails_nothing(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("post-receive", "echo broken >&2; exit 1\n")
    site.hook("post-update", "exec nothing-of-that-name\n")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), shows_paths=True)
    assert outcome.results == {"refs/heads/main": "ok"}
    assert outcome.progress.startswith("broken\n")
    assert outcome.error == ""


def test_a_hook_without_the_executable_bit_is_ignored(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "exit 1\n")
    (site.path / "hooks/pre-receive").chmod(0o644)
    assert site.push([main(tip, new)], site.pack(new, b"^" + tip)).results == {"refs/heads/main": "ok"}


def test_a_hook_that_cannot_run_declines(site: Site, tip: bytes, caplog: pytest.LogCaptureFixture) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "")
    (site.path / "hooks/pre-receive").write_text("#!/no/such/thing\n")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip))
    assert outcome.results == {"refs/heads/main": "pre-receive hook declined"}
    assert outcome.progress == "error: hook pre-receive can't be run: No such file or directory\n"
    assert "hook pre-receive can't be run" in caplog.text


def test_a_hanging_hook_is_stopped(site: Site, tip: bytes, caplog: pytest.LogCaptureFixture) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "echo waiting; sleep 60\n")
    outcome = site.push(
        [main(tip, new)], site.pack(new, b"^" + tip), options=ServiceOptions(hook_timeout_s=0.3)
    )
    assert outcome.results == {"refs/heads/main": "pre-receive hook declined"}
    assert outcome.progress == "waiting\nerror: hook pre-receive took more than 0.3 s and was stopped\n"
    assert "took more than 0.3 s" in caplog.text


def test_what_hooks_find_in_their_environment(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    shown = "env | grep -E '^(GIT_|REMOTE_|HOME|X_)' | sed 's/=.*incoming.*/=quarantine/' | sort"
    for name in ("pre-receive", "update", "post-receive", "post-update"):
        site.hook(name, f"echo {name}:; {shown}\n")
    outcome = site.push(
        [main(tip, new)],
        site.pack(new, b"^" + tip),
        version=1,
        push_options=[b"ci.skip", b"caf\xc3\xa9"],
        options=ServiceOptions(hook_environ={"HOME": "/home/git", "X_SITE": "ours"}),
        shows_paths=True,
    )
    always = [
        "GIT_COMMITTER_EMAIL=alice@http.192.0.2.1",
        "GIT_COMMITTER_NAME=alice",
        "GIT_DIR=.",
        "GIT_PROTOCOL=version=1",
    ]
    push_options = ["GIT_PUSH_OPTION_0=ci.skip", "GIT_PUSH_OPTION_1=café", "GIT_PUSH_OPTION_COUNT=2"]
    rest = ["HOME=/home/git", "REMOTE_ADDR=192.0.2.1", "REMOTE_USER=alice", "X_SITE=ours"]
    said = outcome.progress.replace(str(site.path), "<repo>").splitlines()
    assert said == [
        "pre-receive:",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES=<repo>/objects",
        *always[:3],
        "GIT_OBJECT_DIRECTORY=quarantine",
        *always[3:],
        *push_options,
        "GIT_QUARANTINE_PATH=quarantine",
        *rest,
        "update:",
        *always,
        *rest,
        "post-receive:",
        *always,
        *push_options,
        *rest,
        "post-update:",
        *always,
        *rest,
    ]


def test_push_options_without_any(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("pre-receive", 'echo "${GIT_PUSH_OPTION_COUNT-unset}"\n')
    assert site.push([main(tip, new)], site.pack(new, b"^" + tip), push_options=[]).progress == "0\n"
    newer = site.commit("two")
    assert site.push([main(new, newer)], site.pack(newer, b"^" + new)).progress == "0\n"


def test_hook_output_without_side_band_goes_nowhere(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "echo hello\n")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), capabilities=b"report-status")
    assert outcome.response == b"000eunpack ok\n0017ok refs/heads/main\n0000"


def test_a_lot_of_hook_output(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    site.hook("pre-receive", "yes | head -c 300000\n")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip))
    assert outcome.progress == "y\n" * 150_000


# ----------------------------------------------------------------------------------------- races and leavings


def test_a_lost_race(site: Site, tip: bytes) -> None:
    """The ref moves after our last look at it and before the lock."""
    new = site.commit("one")
    other = site.git("rev-parse", tip + b"~1")
    site.hook("update", f"git update-ref refs/heads/main {other.decode()}\n")
    outcome = site.push(
        [main(tip, new)], site.pack(new, b"^" + tip), moved_meanwhile={b"refs/heads/main": other}
    )
    assert outcome.results == {"refs/heads/main": "incorrect old value provided"}


def test_a_ref_that_moves_while_the_pack_comes(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    other = site.git("rev-parse", tip + b"~1")

    class Moving(Channel):
        def read(self, n: int) -> bytes:
            if len(self.left) < 100:
                site.git("update-ref", "refs/heads/main", other, cwd=site.path)
            return super().read(n)

    outcome = site.push(
        [main(tip, new)],
        site.pack(new, b"^" + tip),
        channel=Moving(b"", piece=64),
        moved_meanwhile={b"refs/heads/main": other},
    )
    assert outcome.results == {"refs/heads/main": "incorrect old value provided"}
    assert not site.has(new), "found out before the objects were moved into place"


def test_a_client_that_leaves_in_the_middle(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    request = site.request([main(tip, new)], site.pack(new, b"^" + tip))
    files = site.files()
    for cut in (0, 3, 50, len(request) - 60, len(request) - 1):
        channel = Channel(request[:cut])
        channel.at_end = Disconnected("the client has gone")
        with pytest.raises(Disconnected):
            receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
        assert channel.response == b""
        assert site.files() == files


def test_broken_framing_in_the_middle_of_the_pack(site: Site, tip: bytes) -> None:
    new = site.commit("one")
    request = site.request([main(tip, new)], site.pack(new, b"^" + tip))
    channel = Channel(request[:-40])
    channel.at_end = ProtocolError("chunk size is not a number")
    report = receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert b"unpack chunk size is not a number\n" in channel.response
    assert report.failed


def leave(*_: object) -> None:
    raise Disconnected("the client has gone")


@pytest.mark.parametrize("silent", [True, False], ids=["in-silence", "while-it-talks"])
def test_a_client_that_leaves_during_pre_receive(site: Site, tip: bytes, silent: bool) -> None:
    new = site.commit("one")
    running = site.path.parent / "running"
    site.hook("pre-receive", f"touch '{running}'\n{'' if silent else 'echo x'}\nsleep 60\n")
    channel = Channel(site.request([main(tip, new)], site.pack(new, b"^" + tip)))
    files = site.files()
    channel.on_write = leave
    channel.on_check = lambda: leave() if running.exists() else None
    with pytest.raises(Disconnected):
        receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert site.files() == files


@pytest.mark.parametrize("where", ["update", "post-receive", "report"])
def test_a_client_that_leaves_when_the_objects_are_in_place(site: Site, tip: bytes, where: str) -> None:
    """What has begun is finished: hooks run to their end, refs move."""
    new = site.commit("one")
    for name in ("update", "post-receive", "post-update"):
        site.hook(name, f"echo {name}\necho {name} >> hooks-ran\n")
    channel = Channel(site.request([main(tip, new)], site.pack(new, b"^" + tip)))

    def write(data: bytes) -> None:
        if where.encode() in data or b"unpack" in data:
            channel.on_check = leave
            leave()

    channel.on_write = write
    report = receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    assert report == ServiceReport(
        objects=3, refs=1, note="the client left before the report", agent="test/1"
    )
    site.check({b"refs/heads/main": new})
    assert (site.path / "hooks-ran").read_text() == "update\npost-receive\npost-update\n"


# --------------------------------------------------------------------------------------------- our own errors


@pytest.mark.parametrize("step", ["ingest", "unconnected", "commit"])
def test_an_error_of_ours_is_told_without_detail(
    site: Site, tip: bytes, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"secret detail in {site.path}")

    monkeypatch.setattr(Push, step, fail)
    new = site.commit("one")
    outcome = site.push([main(tip, new)], site.pack(new, b"^" + tip), objects_may_stay=step == "commit")
    assert outcome.results == {
        "refs/heads/main": {
            "ingest": "unpacker error",
            "unconnected": "internal server error",
            "commit": "failed to update ref",
        }[step]
    }
    assert "secret detail" not in outcome.response.decode()
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_the_report_is_true_even_when_the_transaction_breaks_halfway(
    site: Site, tip: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Push.commit

    def commit(self: Push, updates: Any, **more: Any) -> None:
        real(self, updates[:1], **more)
        raise MemoryError

    monkeypatch.setattr(Push, "commit", commit)
    new = site.commit("one")
    outcome = site.push(
        [(ZERO, new, b"refs/heads/a"), (ZERO, new, b"refs/heads/b")], site.pack(new, b"^" + tip)
    )
    assert outcome.results == {"refs/heads/a": "ok", "refs/heads/b": "failed to update ref"}
    assert "the ref transaction failed" in caplog.text


def test_an_error_before_the_pack(
    site: Site, tip: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Repository, "begin_push", fail)
    new = site.commit("one")
    assert site.push([main(tip, new)], site.pack(new, b"^" + tip)).error == "internal server error"
    bare = site.push([main(tip, new)], site.pack(new, b"^" + tip), capabilities=b"report-status")
    assert bare.response == b"001eERR internal server error\n"
    assert len(caplog.records) == 2


# ---------------------------------------------------------------------------------------- keepalive, progress


@pytest.mark.parametrize(
    ("option", "config", "want"),
    [(5.0, None, 5.0), (0.0, None, None), (5.0, "0", None), (5.0, "9", 9), (0.0, "3", 3)],
)
def test_keepalive(site: Site, tip: bytes, option: float, config: str | None, want: float | None) -> None:
    if config is not None:
        site.config("receive.keepAlive", config)
    new = site.commit("one")
    outcome = site.push(
        [main(tip, new)], site.pack(new, b"^" + tip), options=ServiceOptions(keepalive_s=option)
    )
    assert outcome.keepalives == [*([(b"0005\x02", want)] if want else []), (b"", 0)]


@pytest.mark.parametrize("quiet", [False, True], ids=["usual", "quiet"])
def test_progress_is_shown_when_the_deltas_take_their_time(
    site: Site, tip: bytes, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Push.ingest

    def ingest(
        self: Push, read: Callable[[int], bytes], *, tick: Callable[[int, int], None], **more: Any
    ) -> object:
        tick(0, 1)
        done = real(self, read, tick=tick, **more)
        for number in range(1, 5):
            now[0] += 0.3
            tick(number, 4)
        return done

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Push, "ingest", ingest)
    new = site.commit("one")
    outcome = site.push(
        [main(tip, new)], site.pack(new, b"^" + tip), capabilities=USUAL + (b" quiet" if quiet else b"")
    )
    shown = (
        "Unpacking objects:  50% (2/4)\rUnpacking objects: 100% (4/4)\rUnpacking objects: 100% (4/4), done.\n"
    )
    assert outcome.progress == ("" if quiet else shown)


# ---------------------------------------------------------------------------------------------------- garbage


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_is_answered(site: Site, data: st.DataObject) -> None:
    """No exception, no change of the repository, an answer that can be read."""
    tip = site.refs()[b"refs/heads/main"]
    oid = st.sampled_from([ZERO, tip, b"1" * 40, b"x" * 40, b""])
    ref = st.one_of(
        st.sampled_from([b"refs/heads/main", b"HEAD", b"refs/heads/main/x"]), st.binary(max_size=20)
    )
    command = st.builds(
        lambda old, new, name: pkt(b"%b %b %b\0 report-status" % (old, new, name)), oid, oid, ref
    )
    special = st.sampled_from([b"0000", b"0001", b"0002", b"0003", b"0004", b"ffff", pkt(b"shallow " + tip)])
    head = data.draw(st.lists(st.one_of(command, special, st.binary(max_size=30)), max_size=4))
    body = b"".join(head) + b"0000" + data.draw(st.one_of(st.just(EMPTY_PACK), st.binary(max_size=40)))
    before = site.refs()
    channel = Channel(body)
    receive_pack(site.repo, channel, version=0, actor=ALICE, options=ServiceOptions())
    decoder = PktLineDecoder()
    events = decoder.feed(bytes(channel.response))
    assert decoder.is_between_packets
    done = [event for event in events if isinstance(event, bytes) and event.startswith(b"ok ")]
    if not done:
        assert site.refs() == before


# ---------------------------------------------------------------------------------- reference-transaction

_LOGGING = 'while read line; do echo "$1 $line" >>"$GIT_DIR/states"; done\n'


def _states(site: Site) -> list[str]:
    text = (site.path / "states").read_text()
    (site.path / "states").unlink()
    return text.splitlines()


def _commands(site: Site, tip: bytes) -> list[Command]:
    return [(ZERO, tip, b"refs/heads/b"), (ZERO, tip, b"refs/heads/a")]


def test_reference_transaction_hears_of_each_update(site: Site, tip: bytes) -> None:
    site.hook("reference-transaction", _LOGGING)
    assert set(site.push(_commands(site, tip), EMPTY_PACK).results.values()) == {"ok"}
    lines = [f"{ZERO.decode()} {tip.decode()} refs/heads/{name}" for name in "ba"]
    assert _states(site) == [f"{state} {line}" for line in lines for state in ("prepared", "committed")]


def test_reference_transaction_of_an_atomic_push(site: Site, tip: bytes) -> None:
    site.hook("reference-transaction", _LOGGING)
    outcome = site.push(_commands(site, tip), EMPTY_PACK, capabilities=ATOMIC)
    assert set(outcome.results.values()) == {"ok"}
    lines = [f"{ZERO.decode()} {tip.decode()} refs/heads/{name}" for name in "ba"]
    assert _states(site) == [f"{state} {line}" for state in ("prepared", "committed") for line in lines]


@pytest.mark.parametrize("capabilities", [None, USUAL + b" atomic"])
def test_reference_transaction_says_no(site: Site, tip: bytes, capabilities: bytes | None) -> None:
    deny = '[ "$1" != prepared ] || ! grep -q refs/heads/b "$GIT_DIR/now"\n'
    site.hook("reference-transaction", 'cat >"$GIT_DIR/now"; echo "$1" >>"$GIT_DIR/states"\n' + deny)
    outcome = site.push(_commands(site, tip), EMPTY_PACK, capabilities=capabilities, objects_may_stay=True)
    no = "ref updates aborted by hook"
    if capabilities is None:
        assert outcome.results == {"refs/heads/b": no, "refs/heads/a": "ok"}
        assert _states(site) == ["prepared", "aborted", "prepared", "committed"]
    else:
        assert outcome.results == {"refs/heads/b": no, "refs/heads/a": no}
        assert _states(site) == ["prepared", "aborted"]


def test_reference_transaction_hears_nothing_of_lost_races(site: Site, tip: bytes) -> None:
    site.hook("reference-transaction", _LOGGING)
    site.hook("update", f'git update-ref "$1" {tip.decode()}\n')
    (site.path / "states").touch()
    new = site.commit("one")
    outcome = site.push(
        [(ZERO, new, b"refs/heads/x")],
        site.pack(new, b"^" + tip),
        objects_may_stay=True,
        moved_meanwhile={b"refs/heads/x": tip},
    )
    assert outcome.results["refs/heads/x"] != "ok"
    assert all(tip.decode() in line for line in _states(site)), "git's own transaction in the hook, not ours"
