"""The conversation with proc-receive: whatever the hook says, each command has a result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.wire.pktline import FLUSH_PKT, pkt
from gitsmart.wire.proc_receive import ProcReceiveResult, ProcReceiveTalk
from gitsmart.wire.push_request import RefCommand
from gitsmart.wire.report import RefResult

OLD, NEW = b"0" * 40, b"1" * 40
ONE = RefCommand(OLD, NEW, b"refs/for/one")
TWO = RefCommand(OLD, NEW, b"refs/for/two")
GREETING = pkt(b"version=1\n") + FLUSH_PKT


def talk(*, atomic: bool = False, push_options: list[bytes] | None = None) -> ProcReceiveTalk:
    refs = frozenset({ONE.ref, TWO.ref, b"refs/heads/beside"})
    return ProcReceiveTalk([ONE, TWO], all_refs=refs, atomic=atomic, push_options=push_options)


def hold(said: bytes, *, cut: int = 0, succeeded: bool = True) -> ProcReceiveResult:
    conversation = talk()
    conversation.start()
    for piece in (said[:cut], said[cut:]):
        conversation.feed(piece)
    return conversation.finish(succeeded=succeeded)


def test_what_is_told() -> None:
    conversation = talk(atomic=True, push_options=[b"a", b"b"])
    assert conversation.start() == pkt(b"version=1\0atomic push-options\n") + FLUSH_PKT
    told = conversation.feed(pkt(b"version=1\0push-options\n") + FLUSH_PKT)
    commands = b"".join(pkt(b"%b %b %b" % (OLD, NEW, command.ref)) for command in (ONE, TWO))
    assert told == commands + FLUSH_PKT + pkt(b"a") + pkt(b"b") + FLUSH_PKT
    assert not conversation.is_over
    assert talk().start() == pkt(b"version=1\n") + FLUSH_PKT
    assert talk(push_options=[b"a"]).feed(GREETING) == commands + FLUSH_PKT


def test_a_report_however_it_is_cut() -> None:
    said = GREETING + b"".join(
        pkt(line)
        for line in (
            b"ok refs/for/one\n",
            b"option refname refs/pull/1",
            b"option old-oid " + NEW,
            b"option new-oid " + OLD,
            b"option forced-update",
            b"option unknown x",
            b"ok refs/for/one",
            b"option new-oid 12",
            b"ng refs/for/two not  today",
        )
    )
    said += FLUSH_PKT
    for cut in range(len(said)):
        result = hold(said, cut=cut)
        assert result.reports == {
            ONE.ref: [
                RefResult(ONE.ref, refname=b"refs/pull/1", old=NEW, new=OLD, forced=True),
                RefResult(ONE.ref),
            ]
        }
        assert result.refused == {TWO.ref: "not  today"}
        assert result.failed, "git counts a refused command as the hook's failure"
        assert result.errors == []


def test_exit_status_without_a_report_for_all() -> None:
    result = hold(GREETING + pkt(b"ok refs/for/one") + FLUSH_PKT, succeeded=False)
    assert result.failed
    assert result.reports == {ONE.ref: []}
    assert result.refused == {TWO.ref: "proc-receive failed to report status"}


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", "fail to negotiate version with proc-receive hook"),
        (b"zzzz", "fail to negotiate version with proc-receive hook"),
        (b"0001", "fail to negotiate version with proc-receive hook"),
        (pkt(b"version=7") + FLUSH_PKT, "proc-receive version '7' is not supported"),
        (GREETING, "proc-receive exited abnormally"),
        (GREETING + b"zzzz", "proc-receive exited abnormally"),
    ],
)
def test_conversations_that_break(said: bytes, error: str) -> None:
    result = hold(said)
    assert result.errors == [error]
    assert result.failed
    assert not result.reports


def test_many_faults_are_bounded() -> None:
    result = hold(GREETING + pkt(b"x") * 10_000 + FLUSH_PKT)
    assert len(result.errors) == 100


@given(
    st.lists(
        st.sampled_from([b"ok", b"ng", b"option", b"refs/for/one", b"refs/for/two", b"fall-through", b" "])
    )
)
def test_each_command_has_a_result(words: list[bytes]) -> None:
    lines = b"".join(words).replace(b"ok", b"\nok ").replace(b"ng", b"\nng ").replace(b"option", b"\noption ")
    said = GREETING + b"".join(pkt(line) for line in lines.split(b"\n")) + FLUSH_PKT
    result = hold(said)
    for command in (ONE, TWO):
        places = (result.refused, result.fall_through, result.reports)
        assert any(command.ref in place for place in places)
