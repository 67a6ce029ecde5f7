from collections.abc import AsyncIterator

import pytest

from tests.support.fake_engine import FakeEngineOptions
from tests.support.grpc_server import Served, served_engine


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with served_engine(FakeEngineOptions(max_num_seqs=4)) as served:
        yield served
