"""Requests that break a grammar: a clear answer where the client listens; no 5xx, no server path in it.

The three honest answers are a 4xx with a text, a 200 with `ERR`, band 3 or `ng`/`unpack`, or, once the body
broke off, a closed connection. An empty 200 would look like success.
"""

import gzip
import zlib
from dataclasses import dataclass, field

import pytest

from tests.conftest import Hosted, refs, repository_files
from tests.faults import rawpush
from tests.faults.conftest import NewCommit
from tests.faults.rawpush import DELIM, FLUSH, ZERO, pkt

ONE = "1" * 40
CAPS = rawpush.CAPABILITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    body: bytes
    service: str = "git-receive-pack"
    version: int = 0
    headers: dict[str, str] = field(default_factory=dict)


def receive(name: str, body: bytes, **headers: str) -> object:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return pytest.param(Bad(body=body, headers=fields), id=f"receive-{name}")


def upload(name: str, body: bytes, version: int = 0, **headers: str) -> object:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return pytest.param(
        Bad(body=body, service="git-upload-pack", version=version, headers=fields),
        id=f"upload{version}-{name}",
    )


def command(line: str, caps: str = CAPS) -> bytes:
    return pkt(f"{line}\0 {caps}") + FLUSH


V2 = [pkt("command=fetch"), DELIM]

MALFORMED = [
    receive("garbage", b"garbage"),
    receive("length-not-hex", b"zzzz"),
    receive("length-with-sign", b"+00a12345\n"),
    receive("length-with-blank", b" 00a12345\n"),
    receive("length-1", b"0001"),
    receive("length-3", b"0003"),
    receive("length-4", b"0004" + FLUSH),
    receive("length-over-65520", b"fff1" + b"x" * 65517),
    receive("length-ffff", b"ffff" + b"x" * 65531),
    receive("truncated-length", b"00"),
    receive("truncated-line", b"0080" + ONE.encode()),
    receive("no-flush-after-commands", pkt(f"{ZERO} {ONE} refs/heads/x\0 {CAPS}")),
    receive("delim-for-flush", pkt(f"{ZERO} {ONE} refs/heads/x\0 {CAPS}") + DELIM),
    receive("one-word", command("push")),
    receive("two-words", command(f"{ZERO} {ONE}")),
    receive("short-oid", command(f"{'0' * 39} {ONE} refs/heads/x")),
    receive("long-oid", command(f"{'0' * 41} {ONE} refs/heads/x")),
    receive("sha256-oid-in-sha1", command(f"{'0' * 64} {'1' * 64} refs/heads/x")),
    receive("oid-not-hex", command(f"{ZERO} {'g' * 40} refs/heads/x")),
    receive("uppercase-oid", command(f"{ZERO} {'A' * 40} refs/heads/x")),
    receive("two-blanks", command(f"{ZERO}  {ONE} refs/heads/x")),
    receive("two-nuls", pkt(f"{ZERO} {ONE} refs/heads/x\0{CAPS}\0more") + FLUSH),
    receive("wrong-object-format", command(f"{ZERO} {ONE} refs/heads/x", CAPS + " object-format=sha256")),
    receive("unknown-object-format", command(f"{ZERO} {ONE} refs/heads/x", CAPS + " object-format=md5")),
    receive("ref-with-dots", command(f"{ZERO} {ONE} refs/heads/a..b")),
    receive("ref-climbs", command(f"{ZERO} {ONE} refs/heads/../../config")),
    receive("ref-absolute", command(f"{ZERO} {ONE} /etc/passwd")),
    receive("ref-is-HEAD", command(f"{ZERO} {ONE} HEAD")),
    receive("ref-one-level", command(f"{ZERO} {ONE} refs/foo")),
    receive("ref-lock", command(f"{ZERO} {ONE} refs/heads/x.lock")),
    receive("ref-control", command(f"{ZERO} {ONE} refs/heads/\x01")),
    receive("ref-empty", command(f"{ZERO} {ONE} ")),
    receive("ref-5000-bytes", command(f"{ZERO} {ONE} refs/heads/{'x' * 5000}")),
    receive("ref-deep", command(f"{ZERO} {ONE} refs/heads/{'x/' * 2000}x")),
    receive("no-pack", command(f"{ZERO} {ONE} refs/heads/x")),
    receive("pack-is-garbage", command(f"{ZERO} {ONE} refs/heads/x") + b"garbage" * 10),
    receive("pack-header-only", command(f"{ZERO} {ONE} refs/heads/x") + b"PACK\0\0\0\2\0\0\0\1"),
    receive("pack-version-9", command(f"{ZERO} {ONE} refs/heads/x") + b"PACK\0\0\0\x09" + bytes(24)),
    receive("pack-trailer-wrong", command(f"{ZERO} {ONE} refs/heads/x") + rawpush.pack_from([])[:-1] + b"x"),
    receive("gzip-that-is-none", command(f"{ZERO} {ONE} refs/heads/x"), Content_Encoding="gzip"),
    receive("gzip-cut-off", gzip.compress(command(f"{ZERO} {ONE} refs/x/y"))[:-9], Content_Encoding="gzip"),
    receive("unknown-coding", command(f"{ZERO} {ONE} refs/heads/x"), Content_Encoding="br"),
    receive("shallow-line-short", pkt("shallow 123") + pkt(f"{ZERO} {ONE} refs/heads/x\0 {CAPS}") + FLUSH),
    receive("push-cert", pkt(f"push-cert\0 {CAPS}") + pkt("certificate version 0.1\n") + FLUSH),
    upload("garbage", b"garbage"),
    upload("truncated-line", b"0032want 11"),
    upload("unknown-command", pkt(f"please {ONE}\n") + FLUSH + pkt("done\n")),
    upload("want-short", pkt("want 123\n") + FLUSH + pkt("done\n")),
    upload("want-not-hex", pkt(f"want {'g' * 40}\n") + FLUSH + pkt("done\n")),
    upload("want-sha256", pkt(f"want {'1' * 64}\n") + FLUSH + pkt("done\n")),
    upload("want-missing", pkt(f"want {ONE} side-band-64k\n") + FLUSH + pkt("done\n")),
    upload("have-short", pkt(f"want {ONE}\n") + FLUSH + pkt("have 123\n") + pkt("done\n")),
    upload("depth-not-a-number", pkt(f"want {ONE}\n") + pkt("deepen abc\n") + FLUSH + pkt("done\n")),
    upload("depth-negative", pkt(f"want {ONE}\n") + pkt("deepen -1\n") + FLUSH + pkt("done\n")),
    upload("shallow-short", pkt(f"want {ONE}\n") + pkt("shallow 12\n") + FLUSH + pkt("done\n")),
    upload("delim", pkt(f"want {ONE}\n") + DELIM + pkt("done\n")),
    upload("gzip-that-is-none", pkt(f"want {ONE}\n"), Content_Encoding="gzip"),
    upload("deflate-cut-off", zlib.compress(pkt(f"want {ONE}\n") + FLUSH)[:-5], Content_Encoding="deflate"),
    upload("garbage", b"garbage", 2),
    upload("no-command", pkt("agent=x") + FLUSH, 2),
    upload("unknown-command", pkt("command=destroy") + FLUSH, 2),
    upload("two-commands", pkt("command=fetch") + pkt("command=ls-refs") + FLUSH, 2),
    upload("unknown-capability", pkt("command=fetch") + pkt("frobnicate=1") + DELIM + FLUSH, 2),
    upload("object-format-unknown", pkt("command=fetch") + pkt("object-format=md5") + DELIM + FLUSH, 2),
    upload("object-format-other", pkt("command=ls-refs") + pkt("object-format=sha256") + DELIM + FLUSH, 2),
    upload("unknown-argument", b"".join([*V2, pkt("frobnicate"), FLUSH]), 2),
    upload("want-short", b"".join([*V2, pkt("want 123"), pkt("done"), FLUSH]), 2),
    upload("want-missing", b"".join([*V2, pkt(f"want {ONE}"), pkt("done"), FLUSH]), 2),
    upload("have-short", b"".join([*V2, pkt(f"want {ONE}"), pkt("have 1"), FLUSH]), 2),
    upload("depth-zero", b"".join([*V2, pkt(f"want {ONE}"), pkt("deepen 0"), pkt("done"), FLUSH]), 2),
    upload("depth-huge", b"".join([*V2, pkt(f"want {ONE}"), pkt("deepen " + "9" * 31), FLUSH]), 2),
    upload("no-flush", b"".join([*V2, pkt(f"want {ONE}"), pkt("done")]), 2),
    upload("truncated", b"".join(V2) + b"0032want 1", 2),
    upload("delim-twice", b"".join([*V2, DELIM, pkt(f"want {ONE}"), FLUSH]), 2),
    upload("response-end", b"".join([*V2, pkt(f"want {ONE}"), b"0002"]), 2),
    upload("ls-refs-unknown-argument", pkt("command=ls-refs") + DELIM + pkt("frobnicate") + FLUSH, 2),
]  # fmt: skip


def check_text(hosted: Hosted, response: rawpush.Response) -> None:
    text = response.body.decode(errors="replace")
    assert str(hosted.server.root) not in text
    assert "Traceback" not in text
    assert "gitsmart/" not in text


@pytest.mark.parametrize("chunk", [None, 3], ids=["length", "chunked"])
@pytest.mark.parametrize("bad", MALFORMED)
def test_malformed_body(hosted: Hosted, bad: Bad, chunk: int | None) -> None:
    before = repository_files(hosted.path)
    with rawpush.Connection(hosted.server.url) as connection:
        response = connection.request(
            "POST",
            f"/{hosted.name}/{bad.service}",
            rawpush.post_headers(bad.service, bad.version) | bad.headers,
            bad.body,
            chunk=chunk,
        )
    check_text(hosted, response)
    assert repository_files(hosted.path) == before
    if hosted.server.kind == "git":
        return  # which answers many of these with an empty 200, or a 500
    assert 200 <= response.status < 500, response
    assert response.body, "an empty answer says nothing"
    if response.status == 200:
        if bad.service == "git-receive-pack":
            report = response.report()
            assert "ok" not in report.refs.values()
            assert report.fatal or report.unpack not in {"", "ok"} or report.refs, response
        else:
            packets = [packet or b"" for packet in rawpush.read_pkts(response.body)]
            assert any(packet.startswith((b"ERR ", b"\x03")) for packet in packets), response


@pytest.mark.parametrize(
    ("method", "path", "headers", "statuses"),
    [
        pytest.param("GET", "/{}/info/refs?service=git-upload-archive", {}, {400, 403, 404}, id="service"),
        pytest.param("GET", "/{}/info/refs?service=", {}, {400, 403, 404}, id="service-empty"),
        pytest.param(
            "GET", "/{}/info/refs?service=git-upload-pack;x", {}, {400, 403, 404}, id="service-tail"
        ),
        pytest.param("PUT", "/{}/HEAD", {}, {405}, id="write-HEAD"),
        pytest.param("GET", "/{}/config", {}, {404}, id="config"),
        pytest.param("GET", "/{}/objects/info/../../config", {}, {404}, id="config-by-dots"),
        pytest.param("GET", "/{}/config", {}, {403, 404}, id="config"),
        pytest.param("GET", "/nosuch.git/info/refs?service=git-upload-pack", {}, {404}, id="no-repository"),
        pytest.param("GET", "/{}/../{}/info/refs?service=git-upload-pack", {}, {400, 403, 404}, id="dots"),
        pytest.param(
            "GET", "/%2e%2e/{}/info/refs?service=git-upload-pack", {}, {400, 403, 404}, id="dots-coded"
        ),
        pytest.param("GET", "/{}%00/info/refs?service=git-upload-pack", {}, {400, 403, 404}, id="nul"),
        pytest.param("GET", "/{}%ff/info/refs?service=git-upload-pack", {}, {400, 403, 404}, id="not-utf-8"),
        pytest.param(
            "GET", "/{}%5c..%5cx/info/refs?service=git-upload-pack", {}, {400, 403, 404}, id="backslash"
        ),
        pytest.param("GET", "/{}/git-upload-pack", {}, {405}, id="GET-of-a-POST"),
        pytest.param("POST", "/{}/info/refs?service=git-upload-pack", {}, {405}, id="POST-of-a-GET"),
        pytest.param("PUT", "/{}/git-receive-pack", {}, {405}, id="PUT"),
        pytest.param("DELETE", "/{}/git-receive-pack", {}, {405}, id="DELETE"),
        pytest.param("POST", "/{}/git-upload-pack", {}, {415}, id="no-content-type"),
        pytest.param(
            "POST",
            "/{}/git-upload-pack",
            {"Content-Type": "application/x-git-receive-pack-request"},
            {415},
            id="other-content-type",
        ),
        pytest.param("POST", "/{}/git-receive-pack", {"Content-Type": "text/plain"}, {415}, id="text"),
    ],
)
def test_wrong_request(
    hosted: Hosted, method: str, path: str, headers: dict[str, str], statuses: set[int]
) -> None:
    if hosted.server.kind == "git":
        pytest.skip("the table is ours")
    body = FLUSH if method in {"POST", "PUT"} else None
    with rawpush.Connection(hosted.server.url) as connection:
        response = connection.request(method, path.replace("{}", hosted.name), headers, body)
    assert response.status in statuses, response
    if response.status == 405:
        assert response.headers["allow"]
    check_text(hosted, response)


@pytest.mark.parametrize("service", ["git-receive-pack", "git-upload-pack"])
@pytest.mark.parametrize(
    ("framing", "stream"),
    [
        pytest.param({"Content-Length": "500"}, b"0000", id="content-length"),
        pytest.param({"Transfer-Encoding": "chunked"}, b"4\r\n0000\r\n", id="no-last-chunk"),
        pytest.param({"Transfer-Encoding": "chunked"}, b"400\r\n0000", id="chunk-cut-off"),
        pytest.param({"Transfer-Encoding": "chunked"}, b"4\r\n00", id="small-chunk-cut-off"),
        pytest.param({"Transfer-Encoding": "chunked"}, b"4", id="size-cut-off"),
        pytest.param({"Transfer-Encoding": "chunked"}, b"xyz\r\n", id="size-not-hex"),
        pytest.param({"Transfer-Encoding": "chunked"}, b"4\r\n0000xx", id="no-crlf-after-data"),
        pytest.param({"Transfer-Encoding": "chunked", "Content-Length": "4"}, b"0000", id="both"),
        pytest.param({"Transfer-Encoding": "gzip, chunked"}, b"0\r\n\r\n", id="unknown-transfer-coding"),
        pytest.param({"Content-Length": "-4"}, b"0000", id="negative"),
        pytest.param({"Content-Length": "4, 5"}, b"0000", id="two-lengths"),
    ],
)
def test_broken_framing(hosted: Hosted, service: str, framing: dict[str, str], stream: bytes) -> None:
    """A body that never ends, or is not what it says, gets a 4xx, 501 or no answer; never a whole 2xx."""
    if hosted.server.kind == "git":
        pytest.skip("http-backend never sees the framing")
    with rawpush.Connection(hosted.server.url, timeout_s=10) as connection:
        headers = rawpush.post_headers(service) | framing
        connection.socket.sendall(connection.head("POST", f"/{hosted.name}/{service}", headers) + stream)
        connection.socket.shutdown(1)
        try:
            response = connection.response()
        except (ConnectionError, ValueError):
            return
    assert response.status in {400, 408, 411, 413, 501} or not response.complete, response
    check_text(hosted, response)


def test_probe_is_answered(hosted: Hosted) -> None:
    """The one empty 200 that is right: git's 4-byte probe before a big push."""
    for service in ("git-receive-pack", "git-upload-pack"):
        with rawpush.Connection(hosted.server.url) as connection:
            response = connection.request(
                "POST", f"/{hosted.name}/{service}", rawpush.post_headers(service), FLUSH
            )
        assert (response.status, response.body) == (200, b"")
        assert response.headers["content-type"] == f"application/x-{service}-result"


def test_data_after_the_pack(hosted: Hosted, fresh: NewCommit) -> None:
    if hosted.server.kind == "git":
        pytest.skip("C git ignores it")
    before = repository_files(hosted.path)
    response = rawpush.push(hosted.server.url, hosted.name, [fresh.command], fresh.pack + b"more")
    assert "ok" not in response.report().refs.values()
    if hosted.server.kind != "git":
        assert repository_files(hosted.path) == before


@pytest.mark.parametrize("difference", [-1, 1, 1000])
def test_wrong_object_count(hosted: Hosted, fresh: NewCommit, difference: int) -> None:
    before = repository_files(hosted.path)
    pack = rawpush.pack_from(list(fresh.objects.values()), count=len(fresh.objects) + difference)
    response = rawpush.push(hosted.server.url, hosted.name, [fresh.command], pack)
    assert response.status == 200
    assert "ok" not in response.report().refs.values()
    assert repository_files(hosted.path) == before


def test_duplicate_commands(hosted: Hosted, fresh: NewCommit) -> None:
    if hosted.server.kind == "git":
        pytest.skip("C git says ng, and has moved the ref")
    commands = [fresh.command, fresh.command]
    report = rawpush.push(hosted.server.url, hosted.name, commands, fresh.pack).report()
    assert report.refs["refs/heads/main"] != "ok"
    assert refs(hosted.path)["refs/heads/main"] == fresh.old


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate"])
def test_content_codings(hosted: Hosted, fresh: NewCommit, coding: str) -> None:
    """The codings that are right, beside those that are wrong above."""
    if hosted.server.kind == "git" and coding == "deflate":
        pytest.skip("http-backend knows gzip only")
    body = rawpush.push_body([fresh.command], fresh.pack)
    coded = zlib.compress(body) if coding == "deflate" else gzip.compress(body)
    headers = rawpush.post_headers("git-receive-pack") | {"Content-Encoding": coding}
    with rawpush.Connection(hosted.server.url) as connection:
        response = connection.request("POST", f"/{hosted.name}/git-receive-pack", headers, coded, chunk=50)
    assert response.report().refs == {"refs/heads/main": "ok"}
