"""A machine without bubblewrap."""

import pytest

from rewards.execution import sandbox


@pytest.fixture
def no_bwrap(monkeypatch, tmp_path):
    """A PATH without bwrap, in a process that has not looked for it yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox._found.cache_clear()
    yield
    sandbox._found.cache_clear()
