r"""Which names a ref may have: the rules of git check-ref-format.

git-check-ref-format(1); git: refs.c check_refname_format(). Names are bytes: git knows no encoding here, so
anything above 0x7f goes. No look at what exists: that a name is free is the ref store's to say.
"""

import re

__all__ = ["is_updatable_refname", "is_valid_refname"]

_FORBIDDEN = re.compile(
    rb"[\x00-\x20\x7f~^:?*\[\\]"  # rules 4 and 5: control characters, DEL, space and these
    rb"|\.\."  # rule 3
    rb"|@\{"  # rule 8
    rb"|(?:\A|/)(?:[./]|\Z)"  # rules 1 and 6: an empty component, or one that begins with a dot
    rb"|\.lock(?:/|\Z)"  # rule 1
    rb"|\.\Z"  # rule 7
    rb"|\A@\Z"  # rule 9
)


def is_valid_refname(ref: bytes, *, allow_onelevel: bool = False) -> bool:
    r"""Say whether `ref` is well formed, as `git check-ref-format [--allow-onelevel]` does.

    >>> is_valid_refname(b"refs/heads/main"), is_valid_refname(b"main"), is_valid_refname(b"refs/heads/a..b")
    (True, False, False)
    """
    if _FORBIDDEN.search(ref):
        return False
    return allow_onelevel or b"/" in ref


def is_updatable_refname(ref: bytes, *, is_delete: bool) -> bool:
    """Say whether a push may name `ref` at all: below `refs/`, and well formed behind it.

    A delete may also name what only has one level, so that such a ref can be got rid of. What fails here is a
    "funny refname" to git (builtin/receive-pack.c update()).
    """
    return ref.startswith(b"refs/") and is_valid_refname(ref[5:], allow_onelevel=is_delete)
