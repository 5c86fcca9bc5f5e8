r"""Push exchanges, byte by byte: what a client (C) sends, what the server (S) has to answer.

    C: text         a pkt-line with that payload; \0 is a NUL; {next} and the like are oids of `History`
    C: 0000         a flush-pkt
    C: PACK revs    a pack with what the revs reach, as git makes it
    S: text         a pkt-line; S2: one on band 2; S1: one on band 1, holding the pkt-lines between bars
    S: 0000         a flush-pkt

Every exchange runs at protocol versions 0 and 1 (the bytes are the same: gitprotocol-pack, "version"), and
where the second value is True, against `git receive-pack --stateless-rpc` too, which has to say the same.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from gitsmart.access.identity import Actor
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.advertise import advertise
from gitsmart.service.options import ServiceOptions
from gitsmart.service.receive_pack import receive_pack
from gitsmart.wire.pktline import PktLineDecoder, pkt

CAPS = "report-status side-band-64k agent=test/1"
V2 = "report-status-v2 side-band-64k agent=test/1"


class BytesChannel:
    def __init__(self, request: bytes) -> None:
        self.request = request
        self.response = bytearray()

    def read(self, n: int) -> bytes:
        data, self.request = self.request[:n], self.request[n:]
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.response += data

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        self.write(b"".join(parts))

    def flush(self) -> None: ...
    def check(self) -> None: ...
    def keepalive(self, packet: bytes, interval_s: float) -> None: ...


class History:
    """A bare repository whose oids are always the same.

    main     its only branch                  next    a child of main, which isn't there yet
    other    a child of main's parent         tree    main's tree
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"
        self.bare = path / "root" / "repo.git"
        self.oids: dict[str, str] = {"zero": "0" * 40, "none": "1" * 40}

    def make(self) -> None:
        (self.path / "root").mkdir()
        self.git("init", "-q", "--bare", str(self.bare))
        self.git("init", "-q", str(self.work))
        self.commit("one")
        self.commit("two")
        self.git("push", "-q", str(self.bare), "HEAD:refs/heads/main", cwd=self.work)
        self.git("branch", "main-was", cwd=self.work)
        self.commit("three")
        self.git("checkout", "-q", "-b", "other", "main~2", cwd=self.work)
        self.commit("four")

    def resolve(self) -> None:
        names = {
            "next": "main",
            "main": "main~1",
            "first": "main~2",
            "other": "other",
            "tree": "main~1^{tree}",
        }
        for name, rev in names.items():
            self.oids[name] = self.git("rev-parse", rev, cwd=self.work).decode().strip()

    def git(self, *args: str, cwd: Path | None = None, data: bytes = b"") -> bytes:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.path),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_AUTHOR_DATE": "1700000000 +0000",
            "GIT_COMMITTER_NAME": "C",
            "GIT_COMMITTER_EMAIL": "c@example.com",
            "GIT_COMMITTER_DATE": "1700000000 +0000",
        }
        args = ("-c", "init.defaultBranch=main", "-c", "receive.advertisePushOptions=true", *args)
        done = subprocess.run(
            ["git", *args], cwd=cwd or self.path, env=environ, input=data, capture_output=True
        )
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    def commit(self, text: str) -> None:
        (self.work / "file").write_text(text)
        self.git("add", "file", cwd=self.work)
        self.git("commit", "-q", "-m", text, cwd=self.work)

    def bytes_of(self, text: str) -> bytes:
        return text.format(**self.oids).replace("\\0", "\0").encode()


@pytest.fixture(scope="module", name="template")
def fixture_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template")
    History(path).make()
    return path


@pytest.fixture(name="history")
def fixture_history(tmp_path: Path, template: Path) -> History:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    history = History(tmp_path)
    history.resolve()
    return history


def parse(transcript: str, history: History) -> tuple[bytes, bytes]:
    """The request, and the answer."""
    request, response = b"", b""
    for line in transcript.strip().splitlines():
        side, _, text = line.strip().partition(": ")
        payload = history.bytes_of(text)
        if side == "C" and text.startswith("PACK "):
            revs = history.bytes_of(text[5:].replace(" ", "\n")) + b"\n"
            request += history.git("pack-objects", "--revs", "--stdout", "-q", cwd=history.work, data=revs)
        elif side == "C":
            request += b"0000" if text == "0000" else pkt(payload)
        elif side == "S":
            response += b"0000" if text == "0000" else pkt(payload + b"\n")
        elif side == "S1":
            lines = payload.strip(b"|").split(b"|")
            response += pkt(b"\x01" + b"".join(b"0000" if x == b"0000" else pkt(x + b"\n") for x in lines))
        else:
            assert side == "S2"
            response += pkt(b"\x02" + payload + b"\n")
    return request, response


def bands(response: bytes) -> list[object]:
    """pkt-lines, with neighbours on band 2 joined: where those are cut is nobody's business."""
    joined: list[object] = []
    for event in PktLineDecoder().feed(response):
        last = joined[-1] if joined else None
        if (
            isinstance(event, bytes)
            and event[:1] == b"\x02"
            and isinstance(last, bytes)
            and last[:1] == b"\x02"
        ):
            joined[-1] = last + event[1:]
        else:
            joined.append(event)
    return joined


EXCHANGES = [
    pytest.param("C: 0000", True, id="probe"),
    pytest.param(
        f"""
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS}
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        True,
        id="update",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{next}} refs/heads/new\\0{CAPS}
        C: {{zero}} {{main}} refs/tags/v1
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/new|ok refs/tags/v1|0000|
        S: 0000
        """,
        True,
        id="create-two",
    ),
    pytest.param(
        """
        C: {zero} {main} refs/heads/new\\0 report-status
        C: 0000
        C: PACK {main} ^{main}
        S: unpack ok
        S: ok refs/heads/new
        S: 0000
        """,
        True,
        id="no-side-band",
    ),
    pytest.param(
        """
        C: {zero} {main} refs/heads/new\\0 side-band-64k
        C: 0000
        C: PACK {main} ^{main}
        S: 0000
        """,
        True,
        id="no-report",
    ),
    pytest.param(
        """
        C: {zero} {main} refs/heads/new
        C: 0000
        C: PACK {main} ^{main}
        """,
        True,
        id="no-capabilities",
    ),
    pytest.param(
        f"""
        C: {{main}} {{next}} refs/heads/main\\0 {V2}
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        True,
        id="v2-report",
    ),
    pytest.param(
        f"""
        C: {{main}} {{other}} refs/heads/main\\0 {V2}
        C: 0000
        C: PACK {{other}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|option forced-update|0000|
        S: 0000
        """,
        False,  # git's own receive-pack only says so for proc-receive
        id="v2-report-forced",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{main}} refs/heads/new\\0 {CAPS} push-options
        C: 0000
        C: ci.skip
        C: reviewer=alice
        C: 0000
        C: PACK {{main}} ^{{main}}
        S1: |unpack ok|ok refs/heads/new|0000|
        S: 0000
        """,
        True,
        id="push-options",
    ),
    pytest.param(
        f"""
        C: {{main}} {{zero}} refs/heads/main\\0 {CAPS}
        C: 0000
        S2: error: refusing to delete the current branch: refs/heads/main
        S1: |unpack ok|ng refs/heads/main deletion of the current branch prohibited|0000|
        S: 0000
        """,
        True,
        id="delete-current",
    ),
    pytest.param(
        f"""
        C: {{none}} {{zero}} refs/heads/gone\\0 {CAPS}
        C: 0000
        S2: warning: deleting a non-existent ref
        S1: |unpack ok|ok refs/heads/gone|0000|
        S: 0000
        """,
        True,
        id="delete-nothing",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{main}} refs/heads/a..b\\0 {CAPS}
        C: 0000
        C: PACK {{main}} ^{{main}}
        S2: error: refusing to update funny ref 'refs/heads/a..b' remotely
        S1: |unpack ok|ng refs/heads/a..b funny refname|0000|
        S: 0000
        """,
        True,
        id="funny",
    ),
    pytest.param(
        f"""
        C: {{main}} {{other}} refs/heads/main\\0 {CAPS}
        C: {{zero}} {{next}} refs/heads/x
        C: 0000
        C: PACK {{next}} {{other}} ^{{main}}
        S2: error: denying non-fast-forward refs/heads/main (you should pull first)
        S1: |unpack ok|ng refs/heads/main non-fast-forward|ok refs/heads/x|0000|
        S: 0000
        """,
        True,
        id="non-fast-forward",
    ),
    pytest.param(
        f"""
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS} atomic
        C: {{zero}} {{main}} refs/heads/a..b
        C: {{zero}} {{main}} refs/heads/z
        C: 0000
        C: PACK {{next}} ^{{main}}
        S2: error: refusing to update funny ref 'refs/heads/a..b' remotely
        S1: |unpack ok|ng refs/heads/main atomic push failure|ng refs/heads/a..b funny refname|ng refs/heads/z atomic push failure|0000|
        S: 0000
        """,  # noqa: E501
        True,
        id="atomic",
    ),
    pytest.param(
        f"""
        C: {{first}} {{next}} refs/heads/main\\0 {CAPS}
        C: 0000
        C: PACK {{next}} ^{{main}}
        S2: error: cannot update ref 'refs/heads/main': is at {{main}} but expected {{first}}
        S1: |unpack ok|ng refs/heads/main incorrect old value provided|0000|
        S: 0000
        """,
        False,  # git 2.39: cannot lock ref ...; failed to update ref
        id="stale",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{none}} refs/heads/x\\0 {CAPS}
        C: 0000
        C: PACK {{main}} ^{{main}}
        S2: error: refs/heads/x: missing necessary objects
        S1: |unpack ok|ng refs/heads/x missing necessary objects|0000|
        S: 0000
        """,
        False,  # git: the same report, but rev-list's "fatal: bad object" before it
        id="missing",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{next}} refs/heads/x\\0 {CAPS}
        C: 0000
        S1: |unpack early EOF|ng refs/heads/x unpacker error|0000|
        S: 0000
        """,
        False,  # git: eof before pack header was fully read
        id="no-pack",
    ),
    pytest.param(
        f"""
        C: hello\\0 {CAPS}
        S: ERR protocol error: expected old/new/ref, got 'hello'
        """.replace(CAPS, "report-status"),
        False,  # git says it to the web server's log, and nothing to the client
        id="malformed",
    ),
    pytest.param(
        """
        C: {main} {next} refs/heads/main\\0 report-status object-format=sha256
        C: 0000
        S: ERR error: unsupported object format 'sha256'
        """,
        False,
        id="other-object-format",
    ),
]


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("transcript", "as_git"), EXCHANGES)
def test_ours(history: History, transcript: str, as_git: bool, version: int) -> None:
    configure(history, transcript)
    request, want = parse(transcript, history)
    channel = BytesChannel(request)
    receive_pack(
        RepositoryRoot(history.path / "root").open("repo"),
        channel,
        version=version,
        actor=Actor("alice", "192.0.2.1"),
        options=ServiceOptions(),
    )
    assert bytes(channel.response) == want
    assert history.git("fsck", "--full", "--no-dangling", cwd=history.bare) == b""


@pytest.mark.parametrize(
    "transcript", [pytest.param(entry.values[0], id=entry.id) for entry in EXCHANGES if entry.values[1]]
)
def test_git_says_the_same(history: History, transcript: str) -> None:
    configure(history, transcript)
    request, want = parse(transcript, history)
    response = history.git("receive-pack", "--stateless-rpc", str(history.bare), data=request)
    response = response.replace(b"refusing to create funny ref", b"refusing to update funny ref")  # git 2.39
    assert bands(response) == bands(want)


def configure(history: History, transcript: str) -> None:
    deny = "true" if "non-fast-forward" in transcript else "false"
    history.git("config", "receive.denyNonFastForwards", deny, cwd=history.bare)
    history.git("config", "receive.denyDeleteCurrent", "refuse", cwd=history.bare)
    history.git("config", "receive.unpackLimit", "1", cwd=history.bare)


@pytest.mark.parametrize("version", [0, 1])
def test_a_whole_conversation(history: History, version: int) -> None:
    """info/refs, then the push, as the two requests of one `git push`."""
    repo = RepositoryRoot(history.path / "root").open("repo")
    first = BytesChannel(b"")
    advertise(repo, first, service="git-receive-pack", version=version, options=ServiceOptions())
    main = history.oids["main"].encode()
    capabilities = (
        b"report-status report-status-v2 delete-refs side-band-64k quiet atomic ofs-delta push-options"
        b" object-format=sha1 agent=" + ServiceOptions().agent
    )
    assert bytes(first.response) == (
        b"001f# service=git-receive-pack\n0000"
        + (b"000eversion 1\n" if version else b"")
        + pkt(main + b" refs/heads/main\0" + capabilities + b"\n")
        + b"0000"
    )
    request, want = parse(
        """
        C: {main} {next} refs/heads/main\\0 report-status-v2 side-band-64k object-format=sha1 agent=git/2.39.5
        C: 0000
        C: PACK {next} ^{main}
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        history,
    )
    second = BytesChannel(request)
    receive_pack(repo, second, version=version, actor=Actor(None, "::1"), options=ServiceOptions())
    assert bytes(second.response) == want
    assert (
        history.git("rev-parse", "refs/heads/main", cwd=history.bare).decode().strip() == history.oids["next"]
    )
