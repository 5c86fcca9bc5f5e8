"""The tree of errors. Subclasses with more to say live beside the code that raises them.

    GitsmartError
    ├── ProtocolError            the peer's bytes break a grammar (HTTP framing, pkt-line, a command)
    │   └── LimitExceeded        well formed, but more than is allowed
    ├── Disconnected             the peer has gone; nobody is listening any more
    │   └── TimedOut             the peer was silent, or did not read, for too long
    ├── PackError                a pack is malformed, or not what it claims to be
    ├── ObjectMissing            an object is not in the store
    ├── RepositoryError
    │   ├── RepositoryNotFound   no repository there, or none that this user may know of
    │   ├── RepositoryUnusable   there is one, but we can't serve it (unknown extension, unreadable)
    │   └── ServiceDisabled      the repository's config has switched the service off
    ├── AccessError
    │   ├── AuthenticationRequired
    │   └── Forbidden
    ├── Unavailable              we can't now (draining, queue full, disk full); later may be better
    └── ConfigError              our own configuration is wrong

`str(error)` is safe to send to the peer: facts in lower case, no server paths, peers' values quoted.
Only `httpd/errors.py` knows which HTTP status each becomes.
"""

__all__ = [
    "AccessError",
    "AuthenticationRequired",
    "ConfigError",
    "Disconnected",
    "Forbidden",
    "GitsmartError",
    "LimitExceeded",
    "ObjectMissing",
    "PackError",
    "ProtocolError",
    "RepositoryError",
    "RepositoryNotFound",
    "RepositoryUnusable",
    "ServiceDisabled",
    "TimedOut",
    "Unavailable",
]


class GitsmartError(Exception):
    """Root of every error that gitsmart raises on purpose."""


class ProtocolError(GitsmartError):
    """The peer's bytes break a grammar."""


class LimitExceeded(ProtocolError):
    """A request is well formed, but asks for more than is allowed."""


class Disconnected(GitsmartError):
    """The peer has gone: stop working, clean up, tell nobody."""


class TimedOut(Disconnected):
    """The peer was silent, or did not read, for too long."""


class PackError(GitsmartError):
    """A pack is malformed, or not what it claims to be."""


class ObjectMissing(GitsmartError):
    """An object is not in the store; `args[0]` is its raw oid's hex as str."""


class RepositoryError(GitsmartError):
    """Something about a repository as a whole."""


class RepositoryNotFound(RepositoryError):
    """No repository there, or none that this user may know of."""


class RepositoryUnusable(RepositoryError):
    """There is a repository, but it can't be served as it is."""


class ServiceDisabled(RepositoryError):
    """The repository's config has switched the service off."""


class AccessError(GitsmartError):
    """The request is not allowed as it is."""


class AuthenticationRequired(AccessError):
    """Credentials are missing or wrong: signing in may help."""


class Forbidden(AccessError):
    """Not allowed, whoever asks or for this user: signing in again won't help."""


class Unavailable(GitsmartError):
    """Can't be done now (draining, queue full, disk full); later may be better."""


class ConfigError(GitsmartError):
    """gitsmart's own configuration is wrong; names file, key and what is allowed."""
