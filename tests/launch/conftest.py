"""Fixtures of the launchers' tests."""

import pytest

from tests.launch.tools import Site


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)
