"""A hub in memory for each test."""

from collections.abc import AsyncIterator

import pytest
from mqtt_dialogue import Bench, Device


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = await Bench.open()
    yield bench
    bench.state.failing = False
    await bench.hub.close()


@pytest.fixture
async def device(bench: Bench) -> Device:
    return await bench.device("d1")
