"""Raw requests, most of them wrong, to both: status, content type, what kind of body, and what it says.

git ends many a bad request with an empty answer and says why on its own stderr only; ours then has an `ERR`.
The two texts are compared all the same: git's is what its http-backend wrote to stderr.
"""

import gzip
import re
import uuid

from tests.parity import differences as known
from tests.parity.stage import Client, Difference, session

V2 = {"Git_Protocol": "version=2"}
Case = tuple[str, list[bytes | str]]


def pkt(*lines: bytes | str) -> bytes:
    """Pkt-lines; what is bytes is sent as it is."""
    out = b""
    for line in lines:
        out += line if isinstance(line, bytes) else b"%04x%b" % (len(line.encode()) + 4, line.encode())
    return out


def kind(body: bytes) -> tuple[str, str]:
    """What kind of body it is, and the error that it tells."""
    if not body:
        return "empty", ""
    error = re.search(rb"[0-9a-f]{4}(?:\x01)?ERR ([^\n]*)", body) or re.search(
        rb"[0-9a-f]{4}\x03([^\n]*)", body
    )
    if error is not None:
        return "error", error[1].decode(errors="backslashreplace")
    status = re.search(rb"unpack ([^\n]*)\n", body)
    if status is not None:
        refs = b", ".join(re.findall(rb"[0-9a-f]{4}((?:ok|ng) [^\n]*)\n", body))
        return f"report {refs.decode(errors='backslashreplace')}", status[1].decode()
    if b"PACK\0\0\0\2" in body:
        return "pack", ""
    return ("pkt-lines" if re.match(rb"[0-9a-f]{4}", body) else "text"), ""


def ask(client: Client, label: str, service: str, body: bytes, **headers: str) -> None:
    """Send one request and record its answer."""
    fields = {"Content_Type": f"application/x-{service}-request", **headers}
    mark = uuid.uuid4().hex
    path = f"/{client.stage.name}/r.git/{service}"
    status, found, answer = client.http("POST", path, body, X_Request_Id=mark, **fields)
    what, said = kind(answer)
    if client.side == "git":
        client.server.wait_for_line(f"stderr {mark}: end")
        told = re.findall(rf"stderr {mark}: (?:fatal|error): (.*)\n", client.server.text())
        said = said or (told[-1] if told else "")
    type_ = found.get("Content-Type", "") if status < 400 else ""
    said = re.sub(r"^(git )?(upload-pack|receive-pack): ", "", said)
    client.tell(label, f"{status} {type_}\n{what}\nsays {said}")


EMPTY_200 = Difference(known.SAID_AS_ERR, gits="empty|pkt-lines", ours="error")
CUT_SHORT = Difference(
    known.CUT_SHORT,
    at="^half|^response-end|^delim|^nothing",
    gits=r"empty\nsays.*",
    ours=r"error\nsays (the remote end hung up unexpectedly|.*unexpected.*packet)",
)


def v2_cases(client: Client) -> list[Case]:
    tip = client.on_server("rev-parse", "main")
    none = "1" * client.oid_len
    form = f"object-format={client.stage.object_format}"
    other = "object-format=" + ("sha1" if client.stage.object_format == "sha256" else "sha256")
    fetch: list[bytes | str] = ["command=fetch", form, b"0001"]
    end = b"0000"
    return [
        ("nothing", []),
        ("flush", [end]),
        ("unknown command", ["command=nothing", form, end]),
        ("no command", [form, end]),
        ("two commands", ["command=ls-refs", "command=fetch", end]),
        ("unknown capability", ["command=ls-refs", form, "nonsense", end]),
        ("wrong object-format", ["command=ls-refs", other, end]),
        ("unknown object-format", ["command=ls-refs", "object-format=md5", end]),
        ("object-info that is off", ["command=object-info", form, b"0001", "size", end]),
        ("bundle-uri that is off", ["command=bundle-uri", form, end]),
        ("ls-refs with an unknown argument", ["command=ls-refs", form, b"0001", "nonsense", end]),
        ("ls-refs", ["command=ls-refs", form, b"0001", "peel", "symrefs", "ref-prefix refs/heads/", end]),
        ("fetch", [*fetch, f"want {tip}", "done", end]),
        ("fetch of nothing", [*fetch, "done", end]),
        ("fetch with an unknown argument", [*fetch, "nonsense", end]),
        ("want without an oid", [*fetch, "want ", "done", end]),
        ("want of a short oid", [*fetch, "want abc", "done", end]),
        ("want of what is missing", [*fetch, f"want {none}", "done", end]),
        ("have without an oid", [*fetch, f"want {tip}", "have x", "done", end]),
        ("deepen 0", [*fetch, f"want {tip}", "deepen 0", "done", end]),
        ("deepen -1", [*fetch, f"want {tip}", "deepen -1", "done", end]),
        ("deepen x", [*fetch, f"want {tip}", "deepen x", "done", end]),
        ("deepen-since x", [*fetch, f"want {tip}", "deepen-since x", "done", end]),
        ("deepen-not nothing", [*fetch, f"want {tip}", "deepen-not nothing", "done", end]),
        ("deepen twice", [*fetch, f"want {tip}", "deepen 1", "deepen-since 1600001000", "done", end]),
        ("shallow x", [*fetch, f"want {tip}", "shallow x", "done", end]),
        ("unknown filter", [*fetch, f"want {tip}", "filter nonsense", "done", end]),
        ("filter tree:x", [*fetch, f"want {tip}", "filter tree:x", "done", end]),
        ("sideband-all that is off", [*fetch, f"want {tip}", "sideband-all", "done", end]),
        ("packfile-uris that are off", [*fetch, f"want {tip}", "packfile-uris https", "done", end]),
        ("want-ref of nothing", [*fetch, "want-ref refs/heads/nothing", "done", end]),
        ("want-ref twice", [*fetch, "want-ref refs/heads/main", "want-ref refs/heads/main", "done", end]),
        ("no pkt-line", [b"zzzz"]),
        ("length 3", [b"0003"]),
        ("length too large", [b"fff5"]),
        ("half a length", [b"00"]),
        ("half a line", [b"0014comm"]),
        ("no flush", ["command=ls-refs", form]),
        ("response-end", ["command=ls-refs", form, b"0002"]),
    ]


@session(
    versions=(2,),
    expected=[
        EMPTY_200,
        CUT_SHORT,
        Difference(
            known.ONLY_WHAT_IS_OFFERED,
            at="^object-info that is off|^packfile-uris that are off",
            gits=r"(pkt-lines|pack)\nsays",
            ours=r"error\nsays (invalid command|unexpected line).*",
            until=(2, 55),
        ),
        Difference(
            known.DEEPEN_NOT,
            at="^deepen-not nothing",
            gits=r"empty\nsays ambiguous deepen-not: .*",
            ours=r"error\nsays deepen-not is not a ref: .*",
            until=(2, 45),
        ),
        Difference(
            known.WANT_REF_TWICE,
            at="^want-ref twice",
            gits=r"pack\nsays",
            ours=r"error\nsays duplicate want-ref .*",
            until=(2, 55),
        ),
    ],
)
def test_bad_requests_of_v2(client: Client) -> None:
    for label, lines in v2_cases(client):
        ask(client, label, "git-upload-pack", pkt(*lines), **V2)


@session(
    versions=(0,),
    expected=[
        EMPTY_200,
        CUT_SHORT,
        Difference(
            known.DEEPEN_NOT,
            at="^deepen-not nothing",
            gits=r"empty\nsays ambiguous deepen-not: .*",
            ours=r"error\nsays deepen-not is not a ref: .*",
            until=(2, 45),
        ),
    ],
)
def test_bad_requests_of_v0(client: Client) -> None:
    tip = client.on_server("rev-parse", "main")
    want, end, done = f"want {tip} multi_ack_detailed side-band-64k no-done", b"0000", "done\n"
    cases: list[Case] = [
        ("nothing", []),
        ("flush", [end]),
        ("nothing behind the wants", [want, end]),
        ("fetch", [want, end, done]),
        ("no want", [end, done]),
        ("no command", ["nonsense", end, done]),
        ("want without an oid", ["want ", end, done]),
        ("want of a short oid", ["want abc", end, done]),
        ("want of what is missing", ["want " + "1" * client.oid_len, end, done]),
        ("unknown capability", [f"want {tip} nonsense", end, done]),
        ("shallow x", [want, "shallow x", end, done]),
        ("deepen 0", [want, "deepen 0", end, done]),
        ("deepen x", [want, "deepen x", end, done]),
        ("deepen-since x", [want, "deepen-since x", end, done]),
        ("deepen-not nothing", [want, "deepen-not nothing", end, done]),
        ("unknown filter", [want + " filter", "filter nonsense", end, done]),
        ("have without an oid", [want, end, "have x\n", end]),
        ("nonsense for a have", [want, end, "nonsense\n", end]),
        ("no pkt-line", [b"zzzz"]),
        ("length 3", [b"0003"]),
        ("half a line", [b"0044want "]),
        ("delim", [want, b"0001"]),
    ]  # fmt: skip
    for label, lines in cases:
        ask(client, label, "git-upload-pack", pkt(*lines))


@session(
    versions=(0, 1),
    expected=[
        EMPTY_200,
        Difference(
            known.UNPACK_REASON,
            at="pack$",
            gits="says (eof before pack header was fully read|index-pack abnormal exit)",
            ours="says early EOF",
        ),
        Difference(
            known.REASONS,
            at="^twice",
            gits="report (ng .* failed to update refs?(, )?)+",
            ours="report ng .*(does not exist|not allowed)",
        ),
        Difference(
            known.REASONS,
            at="^deletion of nothing",
            gits="report ng .* failed to update ref",
            ours="report ng .* does not exist",
            until=(2, 50),
        ),
        Difference(
            known.CORRUPT_DELETION,
            at="^deletion of another value",
            gits="report ok refs/heads/topic",
            ours="report ng refs/heads/topic incorrect old value provided",
        ),
        Difference(known.CORRUPT_DELETION, at="^refs|ls-remote", gits="", ours=r"\w+\srefs/heads/topic"),
    ],
)
def test_bad_pushes(client: Client) -> None:
    tip, zero = client.on_server("rev-parse", "main"), "0" * client.oid_len
    caps, end = "\0report-status object-format=" + client.stage.object_format, b"0000"
    create = f"{zero} {tip} refs/heads/new"
    cases: list[Case] = [
        ("nothing", []),
        ("flush", [end]),
        ("no pack", [create + caps, end]),
        ("garbage for a pack", [create + caps, end, b"nonsense"]),
        ("half a pack", [create + caps, end, b"PACK\0\0\0\2\0\0\0\1"]),
        ("nonsense", ["nonsense", end]),
        ("short oids", ["0 1 refs/heads/x" + caps, end]),
        ("no ref", [f"{zero} {tip}" + caps, end]),
        ("funny ref", [f"{tip} {zero} refs/heads/../x" + caps, end]),
        ("not below refs", [f"{tip} {zero} main" + caps, end]),
        ("deletion of nothing", [f"{tip} {zero} refs/heads/nothing" + caps, end]),
        ("deletion of another value", [f"{'1' * client.oid_len} {zero} refs/heads/topic" + caps, end]),
        ("twice", [f"{tip} {zero} refs/heads/x" + caps, f"{tip} {zero} refs/heads/x", end]),
        ("shallow x", ["shallow x", create + caps, end]),
        ("no pkt-line", [b"zzzz"]),
        ("half a line", [b"0044abc"]),
        ("no flush", [create + caps]),
    ]
    for label, lines in cases:
        ask(client, label, "git-receive-pack", pkt(*lines))
    client.git("ls-remote", "URL")
    client.config("receive.hideRefs", "refs/heads/unrelated")
    line = f"{client.on_server('rev-parse', 'unrelated')} {zero} refs/heads/unrelated"
    ask(client, "deletion of a hidden ref", "git-receive-pack", pkt(line + caps, end))


@session(
    versions=(2,), expected=[Difference(known.ERRORS_HAVE_TEXT, at="git-|info", gits="empty", ours="text")]
)
def test_content_types_and_codings(client: Client) -> None:
    body = pkt("command=ls-refs", f"object-format={client.stage.object_format}", b"0000")
    ask(client, "plain", "git-upload-pack", body, **V2)
    ask(client, "gzip", "git-upload-pack", gzip.compress(body), Content_Encoding="gzip", **V2)
    ask(client, "x-gzip", "git-upload-pack", gzip.compress(body), Content_Encoding="x-gzip", **V2)
    for type_ in ("", "text/plain", "application/x-git-receive-pack-request"):
        ask(client, f"type {type_!r}", "git-upload-pack", body, Content_Type=type_, **V2)
    for service in ("git-nothing", "git-upload-pack/", "info/refs"):
        ask(client, service, service, body, Content_Type="application/x-git-upload-pack-request")


@session(versions=(2,))
def test_object_info(client: Client) -> None:
    client.config("transfer.advertiseObjectInfo", "true")
    head: list[bytes | str] = ["command=object-info", f"object-format={client.stage.object_format}", b"0001"]
    oids = client.on_server("rev-list", "--objects", "--no-object-names", "main~2..main").split()
    body = pkt(*head, "size", *(f"oid {oid}" for oid in oids), b"0000")
    _, _, answer = client.http(
        "POST",
        f"/{client.stage.name}/r.git/git-upload-pack",
        body,
        Content_Type="application/x-git-upload-pack-request",
        **V2,
    )
    assert answer.count(b" ") == len(oids)
    client.tell("sizes", answer.decode())


SERVICE_LINE = Difference(
    known.SERVICE_LINE, at="receive-pack", gits="", ours=r"# service=git-receive-pack(\n)*", versions=(2,)
)


@session(empty=True, expected=[SERVICE_LINE])
def test_advertisements_of_nothing(client: Client) -> None:
    client.on_server("symbolic-ref", "HEAD", "refs/heads/trunk")
    advertisements(client, "git-receive-pack")


@session(expected=[SERVICE_LINE])
def test_advertisements(client: Client) -> None:
    """Every line but what the capabilities are; v1's extra line."""
    client.config("transfer.advertiseObjectInfo", "true")
    advertisements(client, "git-upload-pack", "git-receive-pack")


def lines_of(body: bytes) -> list[str]:
    """The pkt-lines, without what stands behind NUL: capabilities have an agent, and an order."""
    found, place = [], 0
    while place < len(body):
        size = int(body[place : place + 4], 16)
        found.append(body[place + 4 : place + max(size, 4)].decode().partition("\0")[0].rstrip("\n"))
        place += max(size, 4)
    return found


def advertisements(client: Client, *services: str) -> None:
    for service in services:
        path = f"/{client.stage.name}/r.git/info/refs?service={service}"
        status, headers, answer = client.http("GET", path, Git_Protocol=f"version={client.protocol}")
        lines = lines_of(answer)
        if client.protocol == 2 and service == "git-upload-pack":
            lines = sorted(line.partition("=")[0] for line in lines)
        said = "\n".join(lines)
        client.tell(service, f"{status} {headers.get('Content-Type')}\n{said}")
