"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest

from .served import FREE, Served


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One hub on free ports for tests that leave it running and use names of their own."""
    with Served(tmp_path_factory.mktemp("served"), "--amqp-plain-port", "0", ports=FREE) as running:
        yield running
