"""The one place the version is written; `pyproject.toml` and the `agent` capability read it."""

__version__ = "0.1.0"
