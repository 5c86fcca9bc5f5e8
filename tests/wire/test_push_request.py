import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire.pktline import PktLine, Special
from gitsmart.wire.push_request import PushRequest, PushRequestParser, RefCommand

A, B, ZERO = b"a" * 40, b"b" * 40, b"0" * 40
CAPS = b"\0 report-status-v2 side-band-64k object-format=sha1 agent=git/2.39.5"
FLUSH = Special.FLUSH


def parse(
    *lines: PktLine, hex_len: int = 40, limit_lines: int = 100, limit_bytes: int = 10000
) -> PushRequest:
    """Feed all lines; the last one has to end the request, and none before it."""
    parser = PushRequestParser(
        hex_len=hex_len,
        object_format=b"sha1" if hex_len == 40 else b"sha256",
        limit_lines=limit_lines,
        limit_bytes=limit_bytes,
    )
    for line in lines[:-1]:
        assert parser.receive(line) is None
    request = parser.receive(lines[-1])
    assert request is not None
    return request


def test_commands_and_capabilities() -> None:
    request = parse(
        A + b" " + B + b" refs/heads/main" + CAPS,
        ZERO + b" " + B + b" refs/heads/new\n",
        A.upper() + b" " + ZERO + b" refs/heads/a b",
        FLUSH,
    )
    assert request.commands == (
        RefCommand(A, B, b"refs/heads/main"),
        RefCommand(ZERO, B, b"refs/heads/new"),
        RefCommand(A, ZERO, b"refs/heads/a b"),
    )
    assert [c.is_create for c in request.commands] == [False, True, False]
    assert [c.is_delete for c in request.commands] == [False, False, True]
    assert request.wants_report
    assert request.wants_report_v2
    assert request.side_band
    assert request.has_pack
    assert not request.atomic
    assert not request.quiet
    assert request.capabilities[b"agent"] == b"git/2.39.5"


def test_a_bare_flush_asks_for_nothing() -> None:
    request = parse(FLUSH)
    assert request.commands == ()
    assert not request.has_pack


def test_deletes_alone_have_no_pack() -> None:
    assert not parse(A + b" " + ZERO + b" refs/heads/x\0report-status", FLUSH).has_pack


def test_push_options_follow_when_chosen() -> None:
    command = A + b" " + B + b" refs/heads/main\0report-status push-options atomic"
    request = parse(command, FLUSH, b"ci.skip\n", b"", b"a=b c", FLUSH)
    assert request.push_options == (b"ci.skip", b"", b"a=b c")
    assert request.atomic
    assert request.wants_report
    assert not request.wants_report_v2
    assert parse(command, FLUSH, FLUSH).push_options == ()


def test_shallow_lines_may_carry_the_capabilities() -> None:
    request = parse(b"shallow " + A + b"\0report-status", A + b" " + B + b" refs/heads/main\n", FLUSH)
    assert request.shallow == (A,)
    assert request.wants_report
    assert len(request.commands) == 1


def test_a_certificate_holds_the_commands() -> None:
    head = [b"push-cert\0report-status push-options\n"]
    body = [b"certificate version 0.1\n", b"pusher x\n", b"nonce 1-a\n", b"push-option o\n", b"\n"]
    body += [A + b" " + B + b" refs/heads/main\n", B + b" " + A + b" refs/heads/x\n"]
    signature = [b"-----BEGIN PGP SIGNATURE-----\n", b"\n", b"abc\n", b"-----END PGP SIGNATURE-----\n"]
    request = parse(*head, *body, *signature, b"push-cert-end\n", FLUSH, b"o", FLUSH)
    assert request.commands == (RefCommand(A, B, b"refs/heads/main"), RefCommand(B, A, b"refs/heads/x"))
    assert request.certificate == b"".join(body + signature)
    assert request.certificate[request.signature_start :] == b"".join(signature)
    assert request.certificate_header(b"nonce") == (b"1-a",)
    assert request.certificate_header(b"push-option") == request.push_options == (b"o",)
    assert request.certificate_header(b"push") == ()
    # it may be cut off by a flush-pkt, and have no signature
    request = parse(b"push-cert\0report-status\n", *body, FLUSH)
    assert len(request.commands) == 2
    assert request.signature_start == len(request.certificate)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([b"push-cert", b"x\n"], "malformed push certificate"),
        ([b"push-cert", b"x\n", b"\n", b"y\n"], "expected old/new/ref, got 'y'"),
        (
            [A + b" " + B + b" refs/heads/main", b"push-cert", b"x\n", b"\n", b"push-cert-end\n"],
            "got both push certificate and unsigned commands",
        ),
    ],
)
def test_certificates_that_are_refused(lines: list[bytes], error: str) -> None:
    with pytest.raises(ProtocolError, match=error):
        parse(*lines, FLUSH)


def test_sha256() -> None:
    old, new = b"c" * 64, b"0" * 64
    request = parse(old + b" " + new + b" refs/heads/x\0object-format=sha256", FLUSH, hex_len=64)
    assert request.commands == (RefCommand(old, new, b"refs/heads/x"),)
    assert request.commands[0].is_delete


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        pytest.param([b"hello"], "protocol error: expected old/new/ref, got 'hello'", id="no-command"),
        pytest.param([b""], "protocol error: expected old/new/ref, got ''", id="empty"),
        pytest.param(
            [A + b" " + B], f"protocol error: expected old/new/ref, got '{'a' * 40} {'b' * 40}'", id="no-ref"
        ),
        pytest.param(
            [A + b"  " + B + b" r"],
            f"protocol error: expected old/new/ref, got '{'a' * 40}  {'b' * 40} r'",
            id="two-spaces",
        ),
        pytest.param(
            [b"c" * 64 + b" " + b"d" * 64 + b" refs/heads/x"],
            f"protocol error: expected old/new/ref, got '{'c' * 64} {'d' * 64} refs/heads/x'",
            id="oid-too-long",
        ),
        pytest.param([b"shallow abc"], "protocol error: expected shallow sha, got 'abc'", id="shallow"),
        pytest.param(
            [A + b" " + B + b" refs/heads/x\0object-format=sha256"],
            "error: unsupported object format 'sha256'",
            id="object-format",
        ),
        pytest.param([Special.DELIM], "protocol error: got an unexpected packet", id="delim"),
        pytest.param([Special.RESPONSE_END], "protocol error: got an unexpected packet", id="response-end"),
        pytest.param(
            [b"push-cert\n", Special.DELIM], "protocol error: got an unexpected packet", id="in-cert"
        ),
        pytest.param(
            [b"\xff" * 300], f"protocol error: expected old/new/ref, got '{chr(92)}xff", id="quoted-and-cut"
        ),
    ],
)
def test_refuses(lines: list[PktLine], text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(*lines, FLUSH)
    assert str(caught.value).startswith(text)
    assert len(str(caught.value)) < 1000


def test_sha256_repository_refuses_a_client_that_names_no_format() -> None:
    with pytest.raises(ProtocolError, match="unsupported object format 'sha1'"):
        parse(b"c" * 64 + b" " + b"d" * 64 + b" refs/heads/x\0report-status", FLUSH, hex_len=64)


def test_two_nuls_are_no_trouble() -> None:
    request = parse(A + b" " + B + b" refs/heads/x\0report-status\0atomic", FLUSH)
    assert request.wants_report
    assert not request.atomic


def test_limits() -> None:
    lines: list[PktLine] = [A + b" " + B + b" refs/heads/%d" % i for i in range(5)]
    assert len(parse(*lines, FLUSH, limit_lines=5).commands) == 5
    with pytest.raises(LimitExceeded, match="more than 4 commands"):
        parse(*lines, FLUSH, limit_lines=4)
    with pytest.raises(LimitExceeded, match="more than 400 bytes"):
        parse(*lines, FLUSH, limit_bytes=400)


@given(st.lists(st.binary(max_size=120) | st.sampled_from(Special), max_size=8))
def test_garbage_raises_protocol_error_only(lines: list[PktLine]) -> None:
    parser = PushRequestParser(hex_len=40, object_format=b"sha1", limit_lines=5, limit_bytes=300)
    try:
        for line in lines:
            if parser.receive(line) is not None:
                break
    except ProtocolError:
        pass
