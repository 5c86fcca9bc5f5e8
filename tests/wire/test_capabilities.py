import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire.capabilities import CommandHead, CommandHeadParser, parse_capability_list
from gitsmart.wire.pktline import PktLine, Special


def make_parser(object_format: bytes) -> CommandHeadParser:
    return CommandHeadParser(
        commands=frozenset({b"ls-refs", b"fetch"}),
        capabilities=frozenset({b"agent", b"server-option", b"object-format"}),
        object_format=object_format,
    )


def parse(*lines: PktLine, object_format: bytes = b"sha1") -> CommandHead:
    """Feed all lines; the last one has to end the head, and none before it."""
    parser = make_parser(object_format)
    for line in lines[:-1]:
        assert parser.receive(line) is None
    head = parser.receive(lines[-1])
    assert head is not None
    return head


def test_capability_list() -> None:
    text = b" multi_ack_detailed  side-band-64k agent=git/2.39.5 symref=HEAD:refs/heads/main agent=x\n"
    assert parse_capability_list(text) == {
        b"multi_ack_detailed": b"",
        b"side-band-64k": b"",
        b"agent": b"git/2.39.5",
        b"symref": b"HEAD:refs/heads/main",
    }
    assert parse_capability_list(b"") == {}


def test_command_head() -> None:
    head = parse(
        b"command=ls-refs\n",
        b"agent=git/2.39.5-Linux",
        b"object-format=sha1",
        b"server-option=a",
        b"server-option=b=c\n",
        Special.DELIM,
    )
    assert head == CommandHead(
        command=b"ls-refs",
        agent=b"git/2.39.5-Linux",
        server_options=(b"a", b"b=c"),
        has_arguments=True,
    )


def test_a_flush_ends_a_head_without_arguments() -> None:
    assert parse(b"command=fetch", Special.FLUSH) == CommandHead(command=b"fetch")


def test_a_bare_flush_asks_for_nothing() -> None:
    assert parse(Special.FLUSH).command == b""


def test_sha256_has_to_be_named() -> None:
    head = parse(b"command=fetch", b"object-format=sha256", Special.FLUSH, object_format=b"sha256")
    assert head.object_format == b"sha256"
    with pytest.raises(ProtocolError, match="mismatched object format: server sha256; client sha1"):
        parse(b"command=fetch", Special.FLUSH, object_format=b"sha256")


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        pytest.param([b"command=push"], "invalid command 'push'", id="unknown-command"),
        pytest.param([b"command=agent"], "invalid command 'agent'", id="no-command-but-a-capability"),
        pytest.param([b"command=fetch=1"], "invalid command 'fetch=1'", id="command-with-value"),
        pytest.param(
            [b"command=fetch", b"command=ls-refs"],
            "command 'ls-refs' requested after already requesting command 'fetch'",
            id="two-commands",
        ),
        pytest.param([b"command"], "unknown capability 'command'", id="command-without-value"),
        pytest.param([b"session-id=1"], "unknown capability 'session-id=1'", id="not-advertised"),
        pytest.param([b"fetch"], "unknown capability 'fetch'", id="command-as-capability"),
        pytest.param([b""], "unknown capability ''", id="empty"),
        pytest.param([b"agent=x"], "no command requested", id="no-command"),
        pytest.param([b"object-format"], "object-format capability requires an argument", id="format-bare"),
        pytest.param([b"object-format=md5"], "unknown object format 'md5'", id="format-unknown"),
        pytest.param(
            [b"command=fetch", b"object-format=sha256"],
            "mismatched object format: server sha1; client sha256",
            id="format-other",
        ),
        pytest.param([Special.RESPONSE_END], "unexpected response end packet", id="response-end"),
    ],
)
def test_refuses(lines: list[PktLine], text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(*lines, Special.FLUSH)
    assert str(caught.value) == text


def test_heads_are_bounded() -> None:
    with pytest.raises(LimitExceeded):
        parse(*[b"server-option=x"] * 20_000, Special.FLUSH)


@given(st.lists(st.binary(max_size=40) | st.sampled_from(Special), max_size=8))
def test_garbage_raises_protocol_error_only(lines: list[PktLine]) -> None:
    parser = make_parser(b"sha1")
    try:
        for line in lines:
            if parser.receive(line) is not None:
                break
    except ProtocolError:
        pass
