"""The optional features of protocol v2: by config, in bulk, over one connection, in sideband-all."""

import re
import time

import pytest

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.repo.gitconfig import GitConfig, parse
from gitsmart.service.features import Features, read_features
from gitsmart.service.options import ServiceOptions, ServiceReport, new_session_id
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, PktLine, PktLineDecoder, Special, pkt
from tests.service.conftest import BytesChannel, Git, Served, read_answer

FLUSH, DELIM = Special.FLUSH, Special.DELIM
A, B = b"a" * 40, b"b" * 40


def body(*arguments: bytes, command: bytes = b"fetch", head: tuple[bytes, ...] = ()) -> bytes:
    lines = [b"command=" + command, b"object-format=sha1", *head]
    return b"".join(map(pkt, lines)) + DELIM_PKT + b"".join(map(pkt, arguments)) + FLUSH_PKT


def serve(
    served: Served, request: bytes, *, stateless: bool = True, options: ServiceOptions | None = None
) -> tuple[BytesChannel, ServiceReport]:
    channel = BytesChannel(request)
    report = upload_pack(
        served.open(), channel, version=2, options=options or ServiceOptions(), stateless=stateless
    )
    return channel, report


def lines_of(channel: BytesChannel) -> list[PktLine]:
    return PktLineDecoder().feed(bytes(channel.response))


def set_config(served: Served, *settings: tuple[str, str]) -> None:
    for name, value in settings:
        served.git("config", "--add", name, value, cwd=served.path)


def features(text: str) -> Features:
    return read_features(GitConfig(parse(text.encode())), SHA1)


# -------------------------------------------------------------------------------------------------- config


def test_defaults() -> None:
    found = features("")
    assert found == Features()
    assert found.fetch_features == (b"shallow", b"wait-for-done", b"filter", b"ref-in-want")
    assert found.commands == {b"ls-refs", b"fetch"}
    assert found.capabilities == {b"agent", b"server-option", b"object-format"}


def test_packfile_uris_are_read() -> None:
    found = features(
        f"[uploadpack]\nblobPackfileUri = {'a' * 40} {'1' * 40} https://h/p\n"
        f'blobpackfileuri = "{"b" * 40} {"2" * 40} ftp://h/a  b"\n'
    )
    assert found.packfile_uris == {
        b"\xaa" * 20: (b"1" * 40, b"https://h/p"),
        b"\xbb" * 20: (b"2" * 40, b"ftp://h/a  b"),
    }
    assert b"packfile-uris" in found.fetch_features
    sha256 = f"[uploadpack]\nblobPackfileUri = {'a' * 64} {'1' * 64} https://h/p\n"
    assert read_features(GitConfig(parse(sha256.encode())), SHA256).packfile_uris == {
        b"\xaa" * 32: (b"1" * 64, b"https://h/p")
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[lsrefs]\nunborn = yes", "invalid value for 'lsrefs.unborn': 'yes'"),
        ("[uploadpack]\nallowRefInWant = perhaps", "bad boolean config value 'perhaps'"),
        (
            "[uploadpack]\nblobPackfileUri = https://h/p",
            "must be of the form '<object-hash> <pack-hash> <uri>'",
        ),
        ("[uploadpack]\nblobPackfileUri", "must be of the form '<object-hash> <pack-hash> <uri>'"),
        (
            f"[uploadpack]\nblobPackfileUri = {'a' * 40} {'1' * 40} https://h/p\n"
            f"blobPackfileUri = {'a' * 40} {'2' * 40} https://h/q",
            "object already configured in another uploadpack.blobpackfileuri",
        ),
    ],
)
def test_malformed_config_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(RepositoryUnusable, match=re.escape(problem)):
        features(text)


@pytest.mark.parametrize(("value", "told"), [("advertise", True), ("allow", True), ("ignore", False)])
def test_unborn(git: Git, served: Served, value: str, told: bool) -> None:
    git("symbolic-ref", "HEAD", "refs/heads/unborn", cwd=served.path)
    set_config(served, ("lsrefs.unborn", value))
    request = body(b"unborn", b"symrefs", b"ref-prefix HEAD", command=b"ls-refs")
    channel, _ = serve(served, request)
    assert lines_of(channel) == [b"unborn HEAD symref-target:refs/heads/unborn\n"] * told + [FLUSH]
    git.environ["GIT_PROTOCOL"] = "version=2"
    assert git.output("upload-pack", "--stateless-rpc", served.path, data=request) == bytes(channel.response)
    advertised = PktLineDecoder().feed(git.run("upload-pack", "--http-backend-info-refs", served.path))
    del git.environ["GIT_PROTOCOL"]
    ours = features(f"[lsrefs]\nunborn = {value}")
    assert (b"ls-refs=unborn\n" in advertised) == ours.advertises_unborn


@pytest.mark.parametrize(("value", "interval_s"), [("2", 2), ("0", None), ("-1", None), (None, 7.5)])
def test_keepalive_by_config(served: Served, value: str | None, interval_s: float | None) -> None:
    if value is not None:
        set_config(served, ("uploadpack.keepAlive", value))
    channel, _ = serve(
        served, body(b"want " + served.oid("main"), b"done"), options=ServiceOptions(keepalive_s=7.5)
    )
    expected = [(b"0005\x01", interval_s), (b"", 0)] if interval_s is not None else [(b"", 0)]
    assert channel.keepalives == expected


# --------------------------------------------------------------------------------------------- ref-in-want


def test_50000_want_refs_take_a_fraction_of_a_second(served: Served) -> None:
    served.add_packed_refs(50_000)
    repo = served.open()
    repo.refs()
    names = [b"refs/heads/many/%06d" % number for number in range(50_000)]
    request = body(b"no-progress", *(b"want-ref " + name for name in names), b"done")
    channel = BytesChannel(request)
    start = time.perf_counter()
    report = upload_pack(repo, channel, version=2, options=ServiceOptions())
    took = time.perf_counter() - start
    answer = read_answer(channel.response)
    main = served.oid("main")
    assert answer.lines == [b"wanted-refs", *(main + b" " + name for name in names), DELIM, b"packfile"]
    assert answer.is_finished
    assert report.objects == len(served.objects("main"))
    assert took < 2, f"{took:.2f} s"


def test_the_value_of_the_moment_is_sent(served: Served) -> None:
    """A want-ref that moves between ls-refs and fetch is no error, as its old value would be."""
    served.git("update-ref", "refs/heads/topic", "main~2", cwd=served.path)
    channel, _ = serve(served, body(b"want-ref refs/heads/topic", b"no-progress", b"done"))
    answer = read_answer(channel.response)
    assert answer.lines[1] == served.oid("main~2") + b" refs/heads/topic"


@pytest.mark.parametrize(
    "ref", [b"config", b"../x", b"refs/heads/../../config", b"", b"refs/heads/m\xff", b"x\0y"]
)
def test_names_that_are_no_refs_are_unknown(served: Served, ref: bytes) -> None:
    channel, report = serve(served, body(b"want-ref " + ref, b"done"))
    (line,) = lines_of(channel)
    assert isinstance(line, bytes)
    assert line.startswith(b"ERR unknown ref ")
    assert report.failed


# -------------------------------------------------------------------------------------------- sideband-all


def test_sideband_all_has_its_own_keepalive_before_the_pack(served: Served) -> None:
    set_config(served, ("uploadpack.allowSidebandAll", "true"))
    channel, _ = serve(served, body(b"sideband-all", b"want " + served.oid("main"), b"done"))
    assert channel.keepalives == [(b"0005\x02", 5.0), (b"0005\x01", 5.0), (b"", 0), (b"", 0)]
    channel, _ = serve(served, body(b"sideband-all", b"want " + served.oid("main"), b"have " + A))
    assert channel.keepalives == [(b"0005\x02", 5.0), (b"", 0)]
    assert lines_of(channel) == [b"\x01acknowledgments\n", b"\x01NAK\n", FLUSH]


def test_errors_in_sideband_all_end_the_keepalive(served: Served) -> None:
    set_config(served, ("uploadpack.allowSidebandAll", "true"))
    channel, report = serve(served, body(b"sideband-all", b"want " + A, b"done"))
    assert lines_of(channel) == [b"\x03upload-pack: not our ref " + A]
    assert report.failed
    assert channel.keepalives[-1] == (b"", 0)


# ------------------------------------------------------------------------------------------- packfile-uris


def test_a_packed_blob_is_left_out_too(served: Served) -> None:
    """git 2.39 leaves out loose blobs only (builtin/pack-objects.c want_object_in_pack())."""
    blob = served.oid("main:big.txt").decode()
    set_config(
        served,
        ("uploadpack.allowSidebandAll", "true"),
        ("uploadpack.blobPackfileUri", f"{blob} {'3' * 40} https://cdn.example/big.pack"),
        ("uploadpack.blobPackfileUri", f"{'4' * 40} {'5' * 40} https://cdn.example/other.pack"),
    )
    arguments = [b"sideband-all", b"packfile-uris https", b"no-progress", b"ofs-delta", b"thin-pack", b"done"]
    channel, report = serve(served, body(*arguments, b"want " + served.oid("main")))
    lines = lines_of(channel)
    assert lines[:4] == [
        b"\x01packfile-uris\n",
        b"\x01" + b"3" * 40 + b" https://cdn.example/big.pack\n",
        DELIM,
        b"\x01packfile\n",
    ]
    pack = b"".join(line[1:] for line in lines[4:] if isinstance(line, bytes) and line[:1] == b"\x01")
    into = served.path.parent / "new.git"
    served.git("init", "-q", "--bare", into)
    served.git(
        "index-pack", "--stdin", cwd=into, data=pack
    )  # not thin: no entry is a delta of what is left out
    have = set(
        served.git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=into).splitlines()
    )
    assert have == served.objects("main") - {blob}
    assert report.objects == len(have)


# ------------------------------------------------------------------------------------ object-info in bulk


def test_object_info_of_all_objects_as_git_has_them(served: Served) -> None:
    set_config(served, ("transfer.advertiseObjectInfo", "true"))
    rows = served.git(
        "cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objectsize)", cwd=served.path
    ).splitlines()
    oids = [row.split()[0].encode() for row in rows]
    channel, report = serve(
        served, body(b"size", *(b"oid " + oid for oid in oids * 20), command=b"object-info")
    )
    assert lines_of(channel) == [b"size", *(row.encode() for row in rows * 20), FLUSH]
    assert report.objects == len(oids) * 20
    assert report.note == "object-info"


def test_object_info_of_50000_unknown_objects_takes_a_fraction_of_a_second(served: Served) -> None:
    set_config(served, ("transfer.advertiseObjectInfo", "true"))
    oids = [b"%040x" % number for number in range(50_000)]
    start = time.perf_counter()
    channel, _ = serve(served, body(b"size", *(b"oid " + oid for oid in oids), command=b"object-info"))
    took = time.perf_counter() - start
    assert lines_of(channel) == [b"size", *(oid + b" " for oid in oids), FLUSH]
    assert took < 4, f"{took:.2f} s"


def test_object_info_gives_the_oid_as_it_was_asked_for(git: Git, served: Served) -> None:
    set_config(served, ("transfer.advertiseObjectInfo", "true"))
    request = body(b"size", b"oid " + served.oid("main").upper(), command=b"object-info")
    channel, _ = serve(served, request)
    git.environ["GIT_PROTOCOL"] = "version=2"
    assert git.output("upload-pack", "--stateless-rpc", served.path, data=request) == bytes(channel.response)


def test_object_info_of_what_may_not_be_fetched(served: Served) -> None:
    """git tells the size of any object; here one that no ref leads to is one that isn't here."""
    set_config(served, ("transfer.advertiseObjectInfo", "true"))
    blob = served.git("hash-object", "-w", "--stdin", cwd=served.path, data=b"secret").encode()
    request = body(b"size", b"oid " + blob, b"oid " + served.oid("main:big.txt"), command=b"object-info")
    channel, _ = serve(served, request)
    assert lines_of(channel)[1] == blob + b" "
    assert lines_of(channel)[2] != served.oid("main:big.txt") + b" "
    set_config(served, ("uploadpack.allowAnySHA1InWant", "true"))
    channel, _ = serve(served, request)
    assert lines_of(channel)[1] == blob + b" 6"


# ---------------------------------------------------------------------------------------------- bundle-uri


def test_bundle_uris_that_cannot_be_sent_are_left_out(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    set_config(served, ("uploadpack.advertiseBundleURIs", "true"), ("bundle.version", "1"))
    with (served.path / "config").open("a") as file:
        file.write(f'[bundle "x"]\n\turi\n\turi =\n\turi = "caf\u00e9"\n\tlong = {"x" * 65_500}{"y" * 20}\n')
    channel, _ = serve(served, body(command=b"bundle-uri"))
    assert lines_of(channel) == [b"bundle.version=1", "bundle.x.uri=caf\u00e9".encode(), FLUSH]
    assert [record.message for record in caplog.records] == [
        "config 'bundle.x.uri' has no value",
        "config 'bundle.x.uri' has no value",
        "config 'bundle.x.long' is too long",
    ]


# ---------------------------------------------------------------------------- one connection, and the log


def test_commands_over_one_connection(git: Git, served: Served) -> None:
    """git: serve.c protocol_v2_serve_loop(): one request after the other, until a flush-pkt or the end."""
    set_config(served, ("transfer.advertiseObjectInfo", "true"))
    main = served.oid("main")
    request = (
        body(b"ref-prefix refs/heads/", command=b"ls-refs")
        + body(b"size", b"oid " + main, command=b"object-info")
        + body(b"want " + main, b"have " + A, b"no-progress")
        + body(b"want " + main, b"have " + served.oid("main~1"), b"wait-for-done")
        + body(command=b"fetch")
        + body(b"ref-prefix refs/tags/", command=b"ls-refs")
        + FLUSH_PKT
        + body(b"ref-prefix refs/heads/", command=b"ls-refs")
    )
    channel, report = serve(served, request, stateless=False)
    git.environ["GIT_PROTOCOL"] = "version=2"
    gits = PktLineDecoder().feed(git.output("upload-pack", served.path, data=request))
    ours = lines_of(channel)
    assert ours[0] == gits[0] == b"version 2\n"
    assert ours[ours.index(FLUSH) :] == gits[gits.index(FLUSH) :]
    assert sum(line is FLUSH for line in ours) == 6
    assert not report.failed


def test_one_request_over_http(git: Git, served: Served) -> None:
    """Over HTTP a body is one request: git answers the first, and so do we."""
    request = body(b"ref-prefix refs/heads/t", command=b"ls-refs") * 2
    channel, _ = serve(served, request)
    git.environ["GIT_PROTOCOL"] = "version=2"
    assert git.output("upload-pack", "--stateless-rpc", served.path, data=request) == bytes(channel.response)


def test_what_the_client_says_of_itself_is_reported(served: Served) -> None:
    set_config(served, ("transfer.advertiseSID", "true"))
    head = (b"agent=git/2.39.5", b"session-id=abc", b"server-option=one", b"server-option=two=2\xff")
    _, report = serve(served, body(command=b"ls-refs", head=head))
    assert report.agent == "git/2.39.5"
    assert report.session_id == "abc"
    assert report.server_options == ("one", "two=2\ufffd")
    want = pkt(b"want " + served.oid("main") + b" agent=git/1.8 session-id=def\n") + FLUSH_PKT
    report = upload_pack(served.open(), BytesChannel(want), version=0, options=ServiceOptions())
    assert (report.agent, report.session_id) == ("git/1.8", "def")


def test_our_session_id_has_the_form_of_gits() -> None:
    assert re.fullmatch(rb"\d{8}T\d{6}\.\d{6}Z-H[0-9a-f]{8}-P[0-9a-f]{8}", new_session_id())
