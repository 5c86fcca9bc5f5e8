"""Who is asking."""

from dataclasses import dataclass

__all__ = ["Actor"]


@dataclass(frozen=True, slots=True)
class Actor:
    """The one a request is made for.

    `user` is a name that the server itself has verified (a password, a trusted proxy's header), or None:
    anonymous. `address` is the peer's IP address as text, for the log, the reflog and hooks. It is never a
    proof of identity.
    """

    user: str | None
    address: str

    @property
    def is_anonymous(self) -> bool:
        """No name, or an empty one: git-http-backend.c select_service() asks `user && *user`."""
        return not self.user
