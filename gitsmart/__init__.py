"""gitsmart: a smart-HTTP git server over a folder of bare repositories.

    gitsmart serve repos                           the command
    gitsmart.create_app("repos")                   a whole Tornado application
    gitsmart.git_routes("repos", prefix="/git")    rules to mount in an application of yours
    gitsmart.HTTPServer(application)               Tornado's HTTPServer with gitsmart's HTTP/1.1 under it

These names are the whole public API. They are loaded when first used, so that importing one part of the
package (`gitsmart.wire`, say) does not load Tornado.
"""

import importlib
from typing import TYPE_CHECKING

from gitsmart._version import __version__

if TYPE_CHECKING:
    from gitsmart.app import create_app, git_routes
    from gitsmart.config import Config
    from gitsmart.httpd.connection import HTTPServer

__all__ = ["Config", "HTTPServer", "__version__", "create_app", "git_routes"]

_HOMES = {
    "Config": "gitsmart.config",
    "HTTPServer": "gitsmart.httpd.connection",
    "create_app": "gitsmart.app",
    "git_routes": "gitsmart.app",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
