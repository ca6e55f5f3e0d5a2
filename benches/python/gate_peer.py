"""What the gate bench measures against, timed in a process and an environment of its own (requirements/bench-agt.txt).

Two peers. `govern`: AGT's `govern()` with its audit on, once with one term in each rule's condition and once with the
terms that our policies have (it has no path patterns). `stack`: what one would put together oneself: cedarpy's handles,
then one Lua script in Redis that takes from four counters or from none, then AGT's chained `AuditLog`.

Started with the port of a Redis and a folder of `N.json`. One JSON object per line: `{"run": KIND, "policies": N,
"count": C}` answers with the nanoseconds of each call, the reading of the clock taken off; `{"check": KIND, "policies":
N}` with what a peer has counted. Every call's answer is asserted. Nothing is decided about what it means.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cedarpy
import redis
from agentmesh.governance.audit import AuditLog
from agentmesh.governance.govern import govern

LEVELS = ("acme", "acme/research", "acme/research/team", "acme/research/team/a")
TOKENS = 100
FREE = 1 << 52
# All or nothing over the keys.
LUA_RESERVE = """
local n = tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or '0') < n then return 0 end
end
for _, key in ipairs(KEYS) do redis.call('DECRBY', key, n) end
return 1
"""
Call = Callable[[int], None]
Found = Callable[[], list[Any]]


def tool(**kwargs: object) -> str:
    """What is governed: nothing, so that only the governing is timed."""
    return "done" if kwargs else ""


def governed(given: dict[str, Any], *, terms: bool) -> tuple[Call, Found]:
    """`govern()` with as many rules as there are policies."""
    side, rules = given["side"], []
    for number in range(given["policies"]):
        condition = f"action.type == 'tool{number // side}' and team.value == 'team{number % side}'"
        condition += f" and input.amount < {10 + number % 100}" if number % 10 != 9 else " and input.amount < 0"
        rules.append(
            {
                "name": f"policy{number}",
                "condition": condition if terms else f"action.type == 'tool{number // side}-{number % side}'",
                "action": "deny" if number % 10 == 9 else "allow",
            }
        )
    document = {
        "apiVersion": "governance.toolkit/v1",
        "name": "bench",
        "agents": ["*"],
        "default_action": "deny",
        "rules": rules,
    }
    gate = govern(tool, policy=json.dumps(document), agent_id="agent0", audit=True)
    calls = []
    for one in given["requests"]:
        name = one["tool"] if terms else f"{one['tool']}-{one['policy'] % side}"
        calls.append({"action": name, "team": "team0", "input": one["arguments"]})
    size = len(calls)

    def call(number: int) -> None:
        # A denial raises.
        if gate(**calls[number % size]) != "done":
            raise AssertionError("govern() did not call the tool")

    def found() -> list[Any]:
        entries = gate.audit_log._chain._entries  # noqa: SLF001 - it has no public count
        by = {entry.data["rule"] for entry in entries} <= {f"policy{one['policy']}" for one in given["requests"]}
        return [len(entries), by and gate.audit_log.verify_integrity()[0]]

    return call, found


def stack(given: dict[str, Any], client: "redis.Redis[bytes]") -> tuple[Call, Found]:
    """cedarpy, Redis, AuditLog, one after another."""
    policies = cedarpy.PolicySet.from_str(given["cedar"])
    entities = cedarpy.Entities.from_json_str(given["entities"])
    log, keys = AuditLog(), [f"{given['policies']}:{path}" for path in LEVELS]
    client.mset(dict.fromkeys(keys, FREE))
    reserve, evalsha, asked = client.script_load(LUA_RESERVE), client.evalsha, given["requests"]
    size, authorize = len(asked), cedarpy.is_authorized

    def call(number: int) -> None:
        one = asked[number % size]
        request = {
            "principal": one["principal"],
            "action": one["action"],
            "resource": one["resource"],
            "context": {"input": one["arguments"]},
        }
        answer = authorize(request, policies, entities)
        if not answer.allowed or evalsha(reserve, 4, *keys, TOKENS) != 1:
            raise AssertionError("the stack denied what is allowed")
        log.log(
            "tool_invocation",
            one["principal"],
            one["action"],
            resource=one["resource"],
            data={"arguments": one["arguments"], "policies": answer.diagnostics.reasons},
            outcome="success",
            policy_decision="allow",
        )

    def found() -> list[Any]:
        spent = {FREE - int(value) for value in client.mget(keys)}
        return [len(log._chain._entries), log.verify_integrity()[0], sorted(spent)]  # noqa: SLF001 - as above

    return call, found


def timed(call: Call, count: int) -> list[int]:
    """Nanoseconds of each call; two readings of the clock, one after another, are taken off."""
    now, taken, empty = time.perf_counter_ns, [0] * count, [0] * count
    for number in range(count):
        start = now()
        empty[number] = now() - start
    for number in range(count):
        start = now()
        call(number)
        taken[number] = now() - start
    cost = sorted(empty)[count // 2]
    return [value - cost for value in taken]


def main() -> None:
    """Answers until the other side closes."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    client = redis.Redis(host="127.0.0.1", port=port)
    known: dict[tuple[str, int], tuple[Call, Found]] = {}
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        kind, policies = command.get("run") or command["check"], command["policies"]
        if (kind, policies) not in known:
            given = json.loads((folder / f"{policies}.json").read_text())
            made = stack(given, client) if kind == "stack" else governed(given, terms=kind == "govern-terms")
            known[kind, policies] = made
        call, found = known[kind, policies]
        answer = found() if "check" in command else timed(call, command["count"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
