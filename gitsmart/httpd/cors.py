"""CORS: git clients that run in a web page of another origin (https://fetch.spec.whatwg.org/#http-cors-protocol).

    http.cors_origins    request's Origin    answer
    []                   any                 nothing: no header; OPTIONS is a 405, as with git-http-backend
    ["https://a"]        https://a           that origin, with credentials; Vary: Origin
    ["https://a"]        any other, none     Vary: Origin alone
    ["*"]                any                 "*", without credentials

A preflight is answered before anything is looked at: it says nothing about a repository, and comes without
credentials.
"""

from collections.abc import Sequence
from typing import Final

__all__ = ["cors_headers", "preflight_headers"]

REQUEST_HEADERS: Final = "Accept, Authorization, Content-Encoding, Content-Type, Git-Protocol, Range"
"""What git clients send and what browsers ask about first."""

EXPOSED_HEADERS: Final = "Content-Range, Retry-After, WWW-Authenticate"
"""What a page may see besides the headers that any page may."""

MAX_AGE_S: Final = 7200  # the most that Chromium takes


def cors_headers(allowed: Sequence[str], origin: str | None) -> list[tuple[str, str]]:
    """Return what to add to every response, errors too, to a request with that `Origin`."""
    headers = []
    if origin is not None and origin in allowed and origin != "*":
        headers.append(("Access-Control-Allow-Origin", origin))
        headers.append(("Access-Control-Allow-Credentials", "true"))
        headers.append(("Access-Control-Expose-Headers", EXPOSED_HEADERS))
    elif origin is not None and "*" in allowed:
        headers.append(("Access-Control-Allow-Origin", "*"))
        headers.append(("Access-Control-Expose-Headers", EXPOSED_HEADERS))
    if any(known != "*" for known in allowed):
        headers.append(("Vary", "Origin"))
    return headers


def preflight_headers(allowed: Sequence[str], origin: str | None, methods: str) -> list[tuple[str, str]]:
    """Return what to answer to a preflight besides `cors_headers`; nothing: it is to be refused.

    Args:
        methods: those of the route, as in `Allow`.
    """
    if origin is None or (origin not in allowed and "*" not in allowed):
        return []
    return [
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", REQUEST_HEADERS),
        ("Access-Control-Max-Age", str(MAX_AGE_S)),
    ]
