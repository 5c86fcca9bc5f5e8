r"""Push exchanges, byte by byte: what a client (C) sends, what the server (S) has to answer.

    config N V      the repository's git config
    hook N: text    a hook, a shell script of one line; \000 is for printf
    repository N    `empty` instead of the one with history
    C: text         a pkt-line with that payload; \0 is a NUL, \n a LF; {next} and so on are oids of `History`
    C: RAW text     bytes that are no pkt-line
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
    def promise(self, size: int) -> None: ...
    def check(self) -> None: ...
    def keepalive(self, packet: bytes, interval_s: float) -> None: ...


class History:
    """A bare repository whose oids are always the same.

    main     its only branch                  next    a child of main, which isn't there yet
    other    a child of main's parent         tree    main's tree
    far      a child of next
    """

    def __init__(self, path: Path, object_format: str = "sha1") -> None:
        self.path = path
        self.work = path / "work"
        self.bare = path / "root" / "repo.git"
        self.format = object_format
        digits = 64 if object_format == "sha256" else 40
        self.oids: dict[str, str] = {"zero": "0" * digits, "none": "1" * digits}

    def make(self) -> None:
        (self.path / "root").mkdir()
        of = f"--object-format={self.format}"
        self.git("init", "-q", "--bare", of, str(self.bare))
        self.git("init", "-q", "--bare", of, str(self.path / "root" / "empty.git"))
        self.git("init", "-q", of, str(self.work))
        self.commit("one")
        self.commit("two")
        self.git("push", "-q", str(self.bare), "HEAD:refs/heads/main", cwd=self.work)
        self.git("branch", "main-was", cwd=self.work)
        self.commit("three")
        self.commit("far")
        self.git("checkout", "-q", "-b", "other", "main~3", cwd=self.work)
        self.commit("four")

    def resolve(self) -> None:
        names = {
            "far": "main",
            "next": "main~1",
            "main": "main~2",
            "first": "main~3",
            "other": "other",
            "tree": "main~2^{tree}",
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
        return text.format(**self.oids).replace("\\0", "\0").replace("\\n", "\n").encode()


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
        if side.split(" ", 1)[0] in ("config", "hook", "repository"):
            continue
        payload = history.bytes_of(text)
        if side == "C" and text.startswith("PACK "):
            revs = history.bytes_of(text[5:].replace(" ", "\n")) + b"\n"
            request += history.git("pack-objects", "--revs", "--stdout", "-q", cwd=history.work, data=revs)
        elif side == "C" and text.startswith("RAW "):
            request += payload[4:]
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
        S2: error: cannot lock ref 'refs/heads/main': is at {{main}} but expected {{first}}
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
        S1: |unpack eof before pack header was fully read|ng refs/heads/x unpacker error|0000|
        S: 0000
        """,
        True,
        id="no-pack",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{main}} refs/heads/new\\0 {CAPS} quiet
        C: 0000
        C: PACK {{main}} ^{{main}}
        S1: |unpack ok|ok refs/heads/new|0000|
        S: 0000
        """,
        True,
        id="quiet",
    ),
    pytest.param(
        f"""
        C: {{main}} {{zero}} refs/heads/main\\0 {CAPS}
        config receive.denyDeleteCurrent ignore
        C: 0000
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        True,
        id="delete",
    ),
    pytest.param(
        f"""
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS} atomic
        C: {{zero}} {{main}} refs/heads/z
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|ok refs/heads/z|0000|
        S: 0000
        """,
        True,
        id="atomic-all",
    ),
    pytest.param(
        f"""
        repository empty
        C: {{zero}} {{main}} refs/heads/main\\0 {V2} atomic
        C: {{zero}} {{first}} refs/tags/one
        C: 0000
        C: PACK {{main}}
        S1: |unpack ok|ok refs/heads/main|ok refs/tags/one|0000|
        S: 0000
        """,
        True,
        id="empty-repository",
    ),
    pytest.param(
        """
        C: {main} {zero} refs/heads/main\\0 report-status-v2
        C: {zero} {next} refs/heads/new
        C: 0000
        C: PACK {next} ^{main}
        S: unpack ok
        S: ng refs/heads/main deletion of the current branch prohibited
        S: ok refs/heads/new
        S: 0000
        """,
        True,
        id="v2-report-no-side-band",
    ),
    pytest.param(
        f"""
        config receive.procReceiveRefs refs/for
        hook proc-receive: printf '000eversion=1\\n00000017ok refs/for/main/x\\n0022option refname refs/changes/1\\n0000'; cat >/dev/null
        C: {{zero}} {{next}} refs/for/main/x\\0 {V2}
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/for/main/x|option refname refs/changes/1|0000|
        S: 0000
        """,  # noqa: E501
        True,
        id="proc-receive-options",
    ),
    pytest.param(
        f"""
        config receive.procReceiveRefs refs/for
        hook proc-receive: printf '000eversion=1\\n00000017ok refs/for/main/x\\n0022option refname refs/changes/1\\n0000'; cat >/dev/null
        C: {{zero}} {{next}} refs/for/main/x\\0 {CAPS}
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/for/main/x|0000|
        S: 0000
        """,  # noqa: E501
        True,
        id="proc-receive-v1-report",
    ),
    pytest.param(
        f"""
        hook pre-receive: echo no; exit 1
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS}
        C: {{zero}} {{main}} refs/heads/z
        C: 0000
        C: PACK {{next}} ^{{main}}
        S2: no
        S1: |unpack ok|ng refs/heads/main pre-receive hook declined|ng refs/heads/z pre-receive hook declined|0000|
        S: 0000
        """,  # noqa: E501
        True,
        id="pre-receive",
    ),
    pytest.param(
        f"""
        hook update: case $1 in */z) echo not $1; exit 1; esac
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS}
        C: {{zero}} {{main}} refs/heads/z
        C: 0000
        C: PACK {{next}} ^{{main}}
        S2: not refs/heads/z
        S2: error: hook declined to update refs/heads/z
        S1: |unpack ok|ok refs/heads/main|ng refs/heads/z hook declined|0000|
        S: 0000
        """,
        True,
        id="update-hook",
    ),
    pytest.param(
        f"""
        C: shallow {{main}}
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS}
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        True,
        id="shallow",
    ),
    pytest.param(
        f"""
        C: shallow {{far}}
        C: {{zero}} {{far}} refs/heads/x\\0 {CAPS}
        C: 0000
        C: PACK {{far}} ^{{next}}
        S1: |unpack ok|ng refs/heads/x shallow update not allowed|0000|
        S: 0000
        """,
        True,
        id="shallow-refused",
    ),
    pytest.param(
        f"""
        config receive.shallowUpdate true
        C: shallow {{far}}
        C: {{zero}} {{far}} refs/heads/x\\0 {CAPS}
        C: 0000
        C: PACK {{far}} ^{{next}}
        S1: |unpack ok|ok refs/heads/x|0000|
        S: 0000
        """,
        True,
        id="shallow-allowed",
    ),
    pytest.param(
        f"""
        config receive.certNonceSeed secret
        C: push-cert\\0 {CAPS}
        C: certificate version 0.1\\n
        C: pusher A <a@example.com> 1700000000 +0000\\n
        C: pushee http://git.example/repo.git\\n
        C: nonce 1700000000-{{none}}\\n
        C: \\n
        C: {{main}} {{next}} refs/heads/main\\n
        C: -----BEGIN PGP SIGNATURE-----\\n
        C: -----END PGP SIGNATURE-----\\n
        C: push-cert-end\\n
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        True,
        id="push-cert",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{next}} refs/heads/x\\0 {CAPS}
        C: 0000
        C: RAW this is no pack, but as long as the head of one
        S1: |unpack protocol error (pack signature mismatch detected)|ng refs/heads/x unpacker error|0000|
        S: 0000
        """,
        True,
        id="bad-pack",
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
    assert pushed(history, request, version) == want
    assert history.git("fsck", "--full", "--no-dangling", cwd=history.bare) == b""


def pushed(history: History, request: bytes, version: int = 0) -> bytes:
    channel = BytesChannel(request)
    receive_pack(
        RepositoryRoot(history.bare.parent).open(history.bare.name),
        channel,
        version=version,
        actor=Actor("alice", "192.0.2.1"),
        options=ServiceOptions(),
    )
    return bytes(channel.response)


@pytest.mark.parametrize(
    "transcript", [pytest.param(entry.values[0], id=entry.id) for entry in EXCHANGES if entry.values[1]]
)
def test_git_says_the_same(history: History, transcript: str) -> None:
    says_the_same(history, transcript)


def says_the_same(history: History, transcript: str) -> None:
    """Push to git's server, and to ours with a copy of the repository: the same answer, and the same refs."""
    configure(history, transcript)
    request, want = parse(transcript, history)
    copy = History(history.path, history.format)
    copy.bare = history.path / "root" / "copy.git"
    shutil.copytree(history.bare, copy.bare)
    response = history.git("receive-pack", "--stateless-rpc", str(history.bare), data=request)
    response = response.replace(b"refusing to create funny ref", b"refusing to update funny ref")  # git 2.39
    assert bands(response) == bands(want)
    assert bands(pushed(copy, request)) == bands(want)
    refs = history.git("for-each-ref", cwd=history.bare)
    assert history.git("for-each-ref", cwd=copy.bare) == refs
    assert history.git("fsck", "--full", "--no-dangling", cwd=copy.bare) == b""


SHA256 = [
    pytest.param(
        f"""
        C: {{main}} {{next}} refs/heads/main\\0 {CAPS} object-format=sha256
        C: 0000
        C: PACK {{next}} ^{{main}}
        S1: |unpack ok|ok refs/heads/main|0000|
        S: 0000
        """,
        id="sha256-update",
    ),
    pytest.param(
        f"""
        repository empty
        C: {{zero}} {{next}} refs/heads/main\\0 {V2} object-format=sha256
        C: {{zero}} {{main}} refs/tags/t
        C: 0000
        C: PACK {{next}}
        S1: |unpack ok|ok refs/heads/main|ok refs/tags/t|0000|
        S: 0000
        """,
        id="sha256-empty-repository",
    ),
    pytest.param(
        f"""
        C: {{zero}} {{first}} refs/heads/x\\0 {CAPS} object-format=sha256
        C: {{main}} {{zero}} refs/heads/main
        C: 0000
        C: PACK {{first}} ^{{main}}
        S2: error: refusing to delete the current branch: refs/heads/main
        S1: |unpack ok|ok refs/heads/x|ng refs/heads/main deletion of the current branch prohibited|0000|
        S: 0000
        """,
        id="sha256-delete-current",
    ),
]


@pytest.mark.parametrize("transcript", SHA256)
def test_sha256(tmp_path: Path, transcript: str) -> None:
    history = History(tmp_path, "sha256")
    history.make()
    history.resolve()
    says_the_same(history, transcript)


def configure(history: History, transcript: str) -> None:
    if "repository empty" in transcript:
        history.bare = history.bare.with_name("empty.git")
    deny = "true" if "non-fast-forward" in transcript else "false"
    history.git("config", "receive.denyNonFastForwards", deny, cwd=history.bare)
    history.git("config", "receive.denyDeleteCurrent", "refuse", cwd=history.bare)
    history.git("config", "receive.unpackLimit", "1", cwd=history.bare)
    for line in map(str.strip, transcript.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "config":
            history.git("config", *rest.split(" ", 1), cwd=history.bare)
        elif word == "hook":
            name, _, script = rest.partition(": ")
            hook = history.bare / "hooks" / name
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(f"#!/bin/sh\n{script.format(**history.oids)}\n")
            hook.chmod(0o755)


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
