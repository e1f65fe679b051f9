"""Two thousand seeded bodies: none may end in a 5xx, none may leave anything behind in the engine."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable

import httpx
import orjson

from tests.system.bodies import body
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, wait_until

NUM_BODIES = 2000
SEED = int(os.environ.get("NONET_FUZZ_SEED", "20261123"))


async def test_fuzzed_bodies_get_no_5xx(start_any: Callable[..., RunningServer]) -> None:
    server = start_any(FakeConfig(max_model_len=128))
    rng = random.Random(SEED)
    model = server.get("/v1/models").json()["data"][0]["id"]
    bodies = [body(rng, model) for _ in range(NUM_BODIES)]
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        gate = asyncio.Semaphore(16)

        async def post(number: int) -> None:
            path, content = bodies[number]
            async with gate:
                answer = await client.post(path, content=content)
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, (number, path, content[:300], answer.text)
            if answer.status_code >= 400:
                error = orjson.loads(answer.content)["error"]
                fields = {"message", "type"}
                if not path.startswith("/v1/messages"):
                    fields |= {"param", "code"}
                assert set(error) == fields
                assert error["message"]

        await asyncio.gather(*(post(number) for number in range(NUM_BODIES)))
    assert statuses[200] > NUM_BODIES / 5
    assert statuses[400] > NUM_BODIES / 5
    wait_until(server.is_empty)
    assert server.metric("nonet_engine_deaths_total") == 0
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
