"""LiteLLM's in-memory token limiter, timed in its own process for `budget.py`, which sends one command per line.

`empty N` answers with the median nanoseconds of an awaited empty coroutine, `reserve N` and `both N` with a list of
them, `left KIND` with the counters. Needs the environment of requirements/bench-litellm.txt. No network: the price
list that LiteLLM would fetch on import is the one in its package.
"""

import asyncio
import json
import os
import statistics
import sys
import time

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from litellm.caching.caching import DualCache
from litellm.proxy.hooks.parallel_request_limiter_v3 import _PROXY_MaxParallelRequestsHandler_v3 as Handler
from litellm.proxy.utils import InternalUsageCache

LEVELS = ("organization", "team", "user", "api_key")
LIMIT = 1 << 60
TOKENS = 100
DAY_S = 86_400

handler = Handler(InternalUsageCache(DualCache()))


def descriptors(kind: str) -> list[dict[str, object]]:
    """Four levels, each with one limit in tokens."""
    limit = {"tokens_per_unit": LIMIT, "window_size": DAY_S}
    return [{"key": level, "value": kind, "rate_limit": limit} for level in LEVELS]


async def empty(_: str) -> None:
    """What is taken off."""


async def reserve(kind: str) -> None:
    """All or nothing over the four levels."""
    answer = await handler.reserve_tpm_tokens(descriptors(kind), TOKENS)
    if answer["overall_code"] != "OK":
        raise AssertionError(f"denied what fits: {answer}")


async def both(kind: str) -> None:
    """Reserve, then give it all back."""
    await reserve(kind)
    await handler._refund_reserved_tokens([(level, kind) for level in LEVELS], TOKENS)  # noqa: SLF001 - its own undo


async def left(kind: str) -> list[int]:
    """What the four counters say."""
    counters = []
    for level in LEVELS:
        key = handler.create_rate_limit_keys(level, kind, "tokens")
        value = await handler.internal_usage_cache.async_get_cache(
            key=key, litellm_parent_otel_span=None, local_only=True
        )
        counters.append(int(value or 0))
    return counters


async def timed(kind: str, count: int) -> list[int]:
    """Nanoseconds of each."""
    call = {"empty": empty, "reserve": reserve, "both": both}[kind]
    now, taken = time.perf_counter_ns, []
    for _ in range(count):
        start = now()
        await call(kind)
        taken.append(now() - start)
    return taken


async def main() -> None:
    """Answers until the other side closes."""
    for line in sys.stdin:
        command, argument = line.split()
        if command == "left":
            answer: object = await left(argument)
        else:
            answer = await timed(command, int(argument))
            answer = statistics.median(answer) if command == "empty" else answer
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
