"""The git client, once for each protocol version."""

import pytest

from tests.conftest import Git


@pytest.fixture(params=[0, 1, 2], ids=["v0", "v1", "v2"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def client(git: Git, protocol: int) -> Git:
    """git, speaking one protocol version."""
    return git.with_config(f"protocol.version={protocol}")
