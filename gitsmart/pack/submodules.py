"""What a .gitmodules may say: names and URLs of submodules that harm nobody who clones them.

A name becomes a folder below .git/modules, a URL an argument and a line of a credential helper's input: hence
no `..` in the one, no leading dash and no newline, however it is encoded, in the other. CVE-2018-11235,
CVE-2018-17456, CVE-2020-5260, CVE-2020-11008. git: submodule-config.c check_submodule_name(),
check_submodule_url(); urlmatch.c url_normalize(). Everything is linear in its input.
"""

import re
from typing import Final

__all__ = ["is_submodule_name", "is_submodule_url", "normalize_url"]

_DOTDOT_PART: Final = re.compile(r"(?:^|[/\\])\.\.(?:[/\\]|$)")
_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})")
_CURL_PREFIX: Final = re.compile(rb"(?:https?|ftps?)::")
_CURL_SCHEME: Final = re.compile(rb"(?:https?|ftps?)://")
_DOTS: Final = re.compile(rb"(?:\.\.?[/\\])*")


def is_submodule_name(name: str) -> bool:
    """Tell whether a submodule may have this name; git: submodule-config.c check_submodule_name()."""
    name = name.partition("\0")[0]
    return bool(name) and _DOTDOT_PART.search(name) is None


def is_submodule_url(url: bytes) -> bool:
    """Tell whether a submodule may come from there; git: submodule-config.c check_submodule_url()."""
    if url.startswith(b"-"):
        return False
    is_relative = re.match(rb"\.\.?[/\\]", url) is not None
    if is_relative or url.startswith(b"git://"):
        if b"\n" in _decode(url):
            return False
        dots = _DOTS.match(url)
        assert dots is not None  # it matches the empty string
        climbs = re.search(rb"\.\.[/\\]", dots[0]) is not None
        return not (climbs and url[dots.end() : dots.end() + 1] in (b":", b"/"))
    prefix = _CURL_PREFIX.match(url)
    if prefix is not None:
        url = url[prefix.end() :]
    elif _CURL_SCHEME.match(url) is None:
        return True
    normal = normalize_url(url)
    return normal is not None and b"\n" not in _decode(normal)


def _decode(url: bytes) -> bytes:
    """Undo %XX once, but not %00 and not before the first colon; git: url.c url_decode()."""
    colon = max(url.find(b":"), 0)
    rest = _ESCAPE.sub(
        lambda found: bytes([int(found[1], 16)]) if found[1] != b"00" else found[0], url[colon:]
    )
    return url[:colon] + rest


_UNSAFE: Final = frozenset(b' <>"%{}|\\^`') | frozenset(range(0x20)) | frozenset(range(0x7F, 0x100))
_RESERVED: Final = frozenset(b":/?#[]@!$&'()*+,;=")
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST: Final = re.compile(rb"[A-Za-z0-9._:\[\]-]*")


def _normal_escapes(text: bytes) -> bytes | None:
    """git: urlmatch.c append_normalized_escapes()."""
    out = bytearray()
    pos = 0
    while pos < len(text):
        byte = text[pos]
        pos += 1
        escaped = byte == 0x25
        if escaped:
            match = _ESCAPE.match(text, pos - 1)
            if match is None:
                return None
            byte = int(match[1], 16)
            pos += 2
        if byte in _UNSAFE or (escaped and byte in _RESERVED):
            out += b"%%%02X" % byte
        else:
            out.append(byte)
    return bytes(out)


def normalize_url(url: bytes) -> bytes | None:
    """Give a URL's normal form, but for slashes at its end; None when it has none.

    git: urlmatch.c url_normalize().

    >>> normalize_url(b"HTTP://Host:080/a/./b/../c%41")
    b'http://host/a/cA'
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return None
    out = scheme[0].lower()
    rest = url[scheme.end() :]
    authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
    rest = rest[len(authority) :]
    user, at, host = authority.partition(b"@")
    if at:
        escaped = _normal_escapes(user)
        if escaped is None:
            return None
        out += escaped + b"@"
    else:
        host = authority
    has_port = host.rfind(b":") > host.rfind(b"]") and b":" in host[1:]
    if (not host or host[:1] == b":") and (scheme[0].lower() != b"file://" or host):
        return None
    name, colon, port = host.rpartition(b":") if has_port else (host, b"", b"")
    if _HOST.fullmatch(name) is None:
        return None
    out += name.lower()
    if colon:
        number = port.lstrip(b"0") or (b"0" if port else b"")
        default = {b"http": b"80", b"https": b"443"}.get(scheme[0][:-3].lower())
        if number and number != default:
            if not number.isdigit() or len(number) > 5 or not 0 < int(number) <= 65535:
                return None
            out += b":" + number
    path, tail = _split_path(rest)
    parts = _normal_path(path)
    ending = _normal_escapes(tail)
    if parts is None or ending is None:
        return None
    return out + parts + ending


def _split_path(rest: bytes) -> tuple[bytes, bytes]:
    end = next((place for place, byte in enumerate(rest) if byte in b"?#"), len(rest))
    return rest[:end], rest[end:]


def _normal_path(path: bytes) -> bytes | None:
    """Resolve `.` and `..`; None when `..` leads out of the path."""
    kept: list[bytes] = []
    for segment in path.removeprefix(b"/").split(b"/"):
        part = _normal_escapes(segment)
        if part is None or (part == b".." and not kept):
            return None
        if part == b"..":
            kept.pop()
        elif part != b".":
            kept.append(part)
    return b"/" + b"/".join(kept)
