"""Every combination of the table, spelled out by hand beside the code that decides."""

import itertools
from typing import Final

import pytest

from gitsmart.access.identity import Actor
from gitsmart.access.rules import GETANYFILE, RECEIVE_PACK, UPLOAD_ARCHIVE, UPLOAD_PACK, Anonymous, decide
from gitsmart.errors import AuthenticationRequired, Forbidden, GitsmartError, ServiceDisabled

ALICE: Final = Actor("alice", "192.0.2.1")
NOBODY: Final = Actor(None, "192.0.2.1")
EMPTY: Final = Actor("", "192.0.2.1")

YES, SIGN_IN, OFF = "yes", "sign in", "off"

# (service, named?, anonymous, the config of that service) -> answer
TABLE: Final[dict[tuple[str, bool, Anonymous, bool | None], str]] = {
    (UPLOAD_PACK, True, "none", None): YES,
    (UPLOAD_PACK, True, "none", True): YES,
    (UPLOAD_PACK, True, "none", False): OFF,
    (UPLOAD_PACK, True, "read", None): YES,
    (UPLOAD_PACK, True, "read", True): YES,
    (UPLOAD_PACK, True, "read", False): OFF,
    (UPLOAD_PACK, True, "write", None): YES,
    (UPLOAD_PACK, True, "write", True): YES,
    (UPLOAD_PACK, True, "write", False): OFF,
    (UPLOAD_PACK, False, "none", None): SIGN_IN,
    (UPLOAD_PACK, False, "none", True): SIGN_IN,
    (UPLOAD_PACK, False, "none", False): SIGN_IN,
    (UPLOAD_PACK, False, "read", None): YES,
    (UPLOAD_PACK, False, "read", True): YES,
    (UPLOAD_PACK, False, "read", False): OFF,
    (UPLOAD_PACK, False, "write", None): YES,
    (UPLOAD_PACK, False, "write", True): YES,
    (UPLOAD_PACK, False, "write", False): OFF,
    (RECEIVE_PACK, True, "none", None): YES,
    (RECEIVE_PACK, True, "none", True): YES,
    (RECEIVE_PACK, True, "none", False): OFF,
    (RECEIVE_PACK, True, "read", None): YES,
    (RECEIVE_PACK, True, "read", True): YES,
    (RECEIVE_PACK, True, "read", False): OFF,
    (RECEIVE_PACK, True, "write", None): YES,
    (RECEIVE_PACK, True, "write", True): YES,
    (RECEIVE_PACK, True, "write", False): OFF,
    (RECEIVE_PACK, False, "none", None): SIGN_IN,
    (RECEIVE_PACK, False, "none", True): SIGN_IN,
    (RECEIVE_PACK, False, "none", False): SIGN_IN,
    (RECEIVE_PACK, False, "read", None): SIGN_IN,
    (RECEIVE_PACK, False, "read", True): SIGN_IN,
    (RECEIVE_PACK, False, "read", False): OFF,
    (RECEIVE_PACK, False, "write", None): YES,
    (RECEIVE_PACK, False, "write", True): YES,
    (RECEIVE_PACK, False, "write", False): OFF,
}
LEVELS: Final[tuple[Anonymous, ...]] = ("none", "read", "write")
for _named, _anonymous in itertools.product((True, False), LEVELS):
    for _setting in (None, True, False):
        # reading files is like fetching; archives are for users with a name, unless the config says more
        _answer = TABLE[UPLOAD_PACK, _named, _anonymous, _setting]
        TABLE[GETANYFILE, _named, _anonymous, _setting] = _answer
        is_shut = not _named and _anonymous == "read" and _setting is None
        TABLE[UPLOAD_ARCHIVE, _named, _anonymous, _setting] = SIGN_IN if is_shut else _answer


def ask(
    actor: Actor,
    service: str,
    anonymous: Anonymous,
    *,
    uploadpack: bool | None = None,
    receivepack: bool | None = None,
    getanyfile: bool | None = None,
    uploadarchive: bool | None = None,
    can_authenticate: bool = True,
) -> type[GitsmartError] | None:
    try:
        decide(
            actor,
            service,
            uploadpack=uploadpack,
            receivepack=receivepack,
            getanyfile=getanyfile,
            uploadarchive=uploadarchive,
            anonymous=anonymous,
            can_authenticate=can_authenticate,
        )
    except GitsmartError as error:
        return type(error)
    return None


def test_the_table_is_complete() -> None:
    anonymous: tuple[Anonymous, ...] = ("none", "read", "write")
    assert set(TABLE) == set(
        itertools.product(
            (UPLOAD_PACK, RECEIVE_PACK, GETANYFILE, UPLOAD_ARCHIVE),
            (True, False),
            anonymous,
            (None, True, False),
        )
    )


@pytest.mark.parametrize("can_authenticate", [True, False], ids=["htpasswd", "no-way-to-sign-in"])
@pytest.mark.parametrize("other", [None, True, False], ids=["other-unset", "other-true", "other-false"])
@pytest.mark.parametrize(("service", "named", "anonymous", "setting"), TABLE)
def test_the_table(
    service: str,
    named: bool,
    anonymous: Anonymous,
    setting: bool | None,
    other: bool | None,
    can_authenticate: bool,
) -> None:
    wanted = {
        YES: None,
        OFF: ServiceDisabled,
        SIGN_IN: AuthenticationRequired if can_authenticate else Forbidden,
    }[TABLE[service, named, anonymous, setting]]
    names = {
        UPLOAD_PACK: "uploadpack",
        RECEIVE_PACK: "receivepack",
        GETANYFILE: "getanyfile",
        UPLOAD_ARCHIVE: "uploadarchive",
    }
    settings = {name: setting if key == service else other for key, name in names.items()}
    for actor in (ALICE,) if named else (NOBODY, EMPTY):
        got = ask(
            actor,
            service,
            anonymous,
            **settings,
            can_authenticate=can_authenticate,
        )
        assert got is wanted


@pytest.mark.parametrize(
    "service", ["upload-archive", "upload-pack", "receive-pack", "", "git-", "GIT-UPLOAD-PACK"]
)
def test_other_services_are_off(service: str) -> None:
    assert ask(ALICE, service, "write") is ServiceDisabled
    assert ask(NOBODY, service, "write") is ServiceDisabled
    assert ask(NOBODY, service, "none") is AuthenticationRequired


def test_messages_quote_what_was_asked_for() -> None:
    with pytest.raises(ServiceDisabled, match=r"^unsupported service: 'x\\n'$"):
        decide(ALICE, "x\n", uploadpack=None, receivepack=None, anonymous="read", can_authenticate=False)
    with pytest.raises(ServiceDisabled, match=r"^service not enabled: 'receive-pack'$"):
        decide(
            ALICE, RECEIVE_PACK, uploadpack=None, receivepack=False, anonymous="read", can_authenticate=False
        )


def test_actor_is_a_value() -> None:
    assert Actor("a", "b") == Actor("a", "b")
    assert hash(Actor("a", "b")) == hash(Actor("a", "b"))
    assert not ALICE.is_anonymous
    assert NOBODY.is_anonymous
    assert EMPTY.is_anonymous
    with pytest.raises(AttributeError):
        ALICE.user = "bob"  # type: ignore[misc]
