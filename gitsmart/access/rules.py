"""Who may do what: one function, one table.

A service is git's whole name for it, as in the URL: `git-upload-pack` serves fetches, `git-receive-pack`
pushes. Three things decide: the repository's own config (`http.uploadpack`, `http.receivepack`: true, false
or unset), what the server lets anonymous users do (`none`, `read`, `write`), and whether there is any way to
sign in. As git-http-backend does, apart from its reading of `http.receivepack = true`: there it lets everyone
push, here `--anonymous` still decides.

Rules per ref or per branch are no part of this: they are the repository's config (service/policy.py) and its
hooks.
"""

from typing import Final, Literal

from gitsmart.access.identity import Actor
from gitsmart.errors import AuthenticationRequired, Forbidden, ServiceDisabled

__all__ = ["GETANYFILE", "RECEIVE_PACK", "UPLOAD_ARCHIVE", "UPLOAD_PACK", "Anonymous", "decide"]

Anonymous = Literal["none", "read", "write"]

UPLOAD_PACK: Final = "git-upload-pack"
RECEIVE_PACK: Final = "git-receive-pack"
UPLOAD_ARCHIVE: Final = "git-upload-archive"
GETANYFILE: Final = "getanyfile"
"""Dumb HTTP: plain files. git-http-backend's word for it."""


def decide(
    actor: Actor,
    service: str,
    *,
    uploadpack: bool | None,
    receivepack: bool | None,
    getanyfile: bool | None = None,
    uploadarchive: bool | None = None,
    anonymous: Anonymous,
    can_authenticate: bool,
) -> None:
    """Return when `actor` may use `service`; raise the reason otherwise. The first row that fits counts:

        service           user       anonymous     config               answer
        ---------------   --------   -----------   ------------------   ------------------------
        any               anonymous  none          any                  sign in, or Forbidden (*)
        git-upload-pack   any        any           uploadpack = false   ServiceDisabled
        git-upload-pack   any        any           unset, true          yes
        git-receive-pack  any        any           receivepack = false  ServiceDisabled
        git-receive-pack  anonymous  read          unset, true          sign in, or Forbidden (*)
        git-receive-pack  anonymous  write         unset, true          yes
        git-receive-pack  named      any           unset, true          yes
        getanyfile        any        any           getanyfile = false   ServiceDisabled
        getanyfile        any        any           unset, true          yes
        git-upload-archive  any        any         uploadarchive = false  ServiceDisabled
        git-upload-archive  any        any         uploadarchive = true   yes
        git-upload-archive  anonymous  read        unset                  sign in, or Forbidden (*)
        git-upload-archive  anonymous  write       unset                  yes
        git-upload-archive  named      any         unset                  yes
        anything else     any        read, write   any                  ServiceDisabled

    (*) AuthenticationRequired where `can_authenticate`: the client is challenged, and git asks for a
    password. Where nobody can sign in a challenge would only puzzle, so that is Forbidden. `anonymous = none`
    comes before the config is looked at, so that a stranger learns nothing about a repository.

    Args:
        uploadpack: the repository's `http.uploadpack`; None when unset.
        receivepack: the repository's `http.receivepack`; None when unset.
        getanyfile, uploadarchive: likewise.

    Raises:
        AuthenticationRequired, Forbidden, ServiceDisabled
    """
    if actor.is_anonymous and anonymous == "none":
        raise _refusal(can_authenticate, "anonymous access is not allowed")
    name = service.removeprefix("git-")
    if service == UPLOAD_PACK:
        if uploadpack is False:
            raise ServiceDisabled(f"service not enabled: {name!r}")
    elif service == RECEIVE_PACK:
        if receivepack is False:
            raise ServiceDisabled(f"service not enabled: {name!r}")
        if actor.is_anonymous and anonymous != "write":
            raise _refusal(can_authenticate, "anonymous users may not push")
    elif service == GETANYFILE:
        if getanyfile is False:
            raise ServiceDisabled("Unsupported service: 'getanyfile'")
    elif service == UPLOAD_ARCHIVE:
        if uploadarchive is False:
            raise ServiceDisabled(f"service not enabled: {name!r}")
        if uploadarchive is None and actor.is_anonymous and anonymous != "write":
            raise _refusal(can_authenticate, "anonymous users may not fetch archives")
    else:
        raise ServiceDisabled(f"unsupported service: {service!r}")


def _refusal(can_authenticate: bool, message: str) -> AuthenticationRequired | Forbidden:
    return AuthenticationRequired(message) if can_authenticate else Forbidden(message)
