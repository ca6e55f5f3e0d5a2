"""What a gate costs inside agent frameworks, beside what their own turn costs. `make bench-hosts`.

Turns of the same agent take turns in one run: bare, with the framework's own hooks doing nothing, with the adapter on
tool calls alone, with the adapter on everything, and with its choke points installed as well. The gate decides by 100
policies, reserves at four levels and is in the audit log's ring. One further tool call is the slope from turns with one
call to turns with nine; differences are formed round by round and their median is printed. "Beyond the hooks" is
beyond what the framework takes for calling hooks that do nothing. Turns are in processor time of the event loop's
thread, the least of each sample, since other jobs of a machine take their part of so long a stretch; what the log's
writer takes beside it is in `make bench-audit`. Single calls are by the clock. At the end the tools, the ledger and the
log must say exactly what was done: the exit status is 1 if one does not. Targets are printed as met or missed and do
not change the status. A host or a peer that is not installed is left out with the reason.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import host_peers
from host_turns import COMPLETION_TOKENS, HOSTS, PROMPT_TOKENS, Variants

from tollkeeper import Gate, build_info
from tollkeeper._native import AuditReader, audit_logs

OUT = Path(__file__).resolve().parent.parent / "out"
POLICIES = 100
FEW, MANY = 1, 9
SAMPLES = 12
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/bench"
[budget]
file = "budgets.toml"
[tools.send_mail]
resource = 'Mcp::"crm"'
cost = { requests = 1 }
"""
PATHS = ("acme", "acme/team", "acme/team/research", "acme/team/research/ann")
Row = dict[str, Any]


def write_files(folder: Path) -> None:
    """A gate of 100 policies, of which three are about these agents, and four levels of budgets."""
    lines = [
        '@id("mail") permit(principal == Agent::"researcher", action == Action::"send_mail", resource == Mcp::"crm");',
        '@id("models") permit(principal, action == Action::"call_model", resource);',
        (
            '@id("known-people") forbid(principal, action == Action::"send_mail", resource)'
            ' unless { context.input has to && context.input.to like "*@example.com" };'
        ),
    ]
    lines += [
        f'@id("other-{n}") permit(principal == Agent::"a-{n}", action == Action::"send_mail", resource)'
        f' when {{ context.input has to && context.input.to == "{n}" }};'
        for n in range(POLICIES - len(lines))
    ]
    (folder / "p.cedar").write_text("\n".join(lines))
    limits = ", ".join(
        f'{{ unit = "{unit}", window = "1d", limit = 1000000000000 }}' for unit in ("requests", "tokens")
    )
    (folder / "budgets.toml").write_text("".join(f'[budget."{path}"]\nlimits = [{limits}]\n' for path in PATHS))
    (folder / "tollkeeper.toml").write_text(CONFIG)


class Counts:
    """What the gate is asked, counted beside it."""

    def __init__(self) -> None:
        self.tools = self.models = 0


async def sample(variants: Variants, name: str, calls: int, counts: Counts) -> float:
    """The least of some turns, in microseconds of processor; one before them warms caches."""
    variants.around(name)
    turn, taken = variants.turns[name], []
    for number in range(SAMPLES + 1):
        ran = variants.tool.ran
        began = time.thread_time_ns()
        await turn(calls)
        spent = time.thread_time_ns() - began
        if variants.tool.ran - ran != calls:
            message = f"{variants.host}, {name}: the tool ran {variants.tool.ran - ran} times, not {calls}"
            raise AssertionError(message)
        counts.tools += calls if name in variants.tools_decided else 0
        counts.models += 2 if name in variants.models_decided else 0
        if number:
            taken.append(spent / 1_000)
    return min(taken)


async def host(variants: Variants, rounds: int, counts: Counts) -> list[Row]:
    """One host's table."""
    found: dict[tuple[str, int], list[float]] = {(name, n): [] for name in variants.turns for n in (FEW, MANY)}
    try:
        for name, calls in found:
            await sample(variants, name, calls, counts)
        order = list(found)
        for _ in range(rounds):
            gc.collect()
            # Nobody is always the first after the collection.
            order.append(order.pop(0))
            for name, calls in order:
                found[name, calls].append(await sample(variants, name, calls, counts))
    finally:
        variants.around("bare")

    def median(figure: Callable[[int], float]) -> float:
        return statistics.median(figure(each) for each in range(rounds))

    def slope(name: str, each: int) -> float:
        return (found[name, MANY][each] - found[name, FEW][each]) / (MANY - FEW)

    return [
        {
            "host": f"{variants.host} {variants.version}",
            "variant": name,
            "turn_us": statistics.median(found[name, FEW]),
            "added_us": median(lambda e, n=name: found[n, FEW][e] - found["bare", FEW][e]),
            "beyond_us": median(lambda e, n=name: found[n, FEW][e] - found["no-op hooks", FEW][e]),
            "beyond_share": median(
                lambda e, n=name: (found[n, FEW][e] - found["no-op hooks", FEW][e]) / found["bare", FEW][e]
            ),
            "call_us": median(lambda e, n=name: slope(n, e)),
            "call_added_us": median(lambda e, n=name: slope(n, e) - slope("bare", e)),
            "call_beyond_us": median(lambda e, n=name: slope(n, e) - slope("no-op hooks", e)),
        }
        for name in variants.turns
    ]


async def peers(gate: Any, rounds: int, counts: Counts) -> list[Row]:
    """One call outside of any framework, all in turns."""
    call, acall = host_peers.crossing(gate)
    sync: dict[str, Any] = {"adapters' shared part": call}
    asynchronous: dict[str, Any] = {"adapters' shared part, async": acall}
    rows: list[Row] = []
    for name, distribution, make in (
        ("agent-hooks emitter", "agent-hooks-sdk", host_peers.agent_hooks),
        ("Tenuo @guard", "tenuo", host_peers.tenuo),
    ):
        try:
            name = f"{name} {metadata.version(distribution)}"  # noqa: PLW2901 - with its version
            made = make()
            if asyncio.iscoroutine(made):
                asynchronous[name] = await made
            else:
                sync[name] = made
        except (ImportError, metadata.PackageNotFoundError) as error:
            rows.append({"skipped": name, "reason": str(error)})
    found: dict[str, list[float]] = {name: [] for name in (*sync, *asynchronous)}
    for _ in range(rounds):
        for name, one in (*sync.items(), *asynchronous.items()):
            taken = []
            for _ in range(200):
                began = time.perf_counter_ns()
                if name in sync:
                    one()
                else:
                    await one()
                taken.append((time.perf_counter_ns() - began) / 1_000)
            found[name].append(statistics.median(taken))
            counts.tools += 200 if "shared part" in name else 0
    for name, values in found.items():
        ours = found["adapters' shared part" if name in sync else "adapters' shared part, async"]
        ratio = statistics.median(theirs / own for theirs, own in zip(values, ours, strict=True))
        rows.append({"peer": name, "call_us": statistics.median(values), "ratio": ratio})
    return rows


def verify(folder: Path, counts: Counts, used: dict[str, tuple[int, int]]) -> None:
    """Holds the log and the ledger against what was asked."""
    entries = [
        json.loads(raw) for log in audit_logs(folder / "audit") for _, raw in AuditReader(Path(log["path"])).entries()
    ]
    decisions = [entry for entry in entries if entry["kind"] == "decision"]
    models = sum(entry["action"] == 'Action::"call_model"' for entry in decisions)
    codes = {entry["code"] for entry in decisions}
    if (len(decisions) - models, models, codes) != (counts.tools, counts.models, {"allow"}):
        message = f"the log has {len(decisions) - models} tool calls and {models} model calls, {codes}; {vars(counts)}"
        raise AssertionError(message)
    outcomes = sum(entry["kind"] == "outcome" for entry in entries)
    if outcomes < counts.tools:
        message = f"the log has {outcomes} outcomes of {counts.tools} tool calls"
        raise AssertionError(message)
    tokens = counts.models * (PROMPT_TOKENS + COMPLETION_TOKENS)
    expected = dict.fromkeys(PATHS, (counts.tools + counts.models, tokens))
    if used != expected:
        message = f"the ledger has {used}, not {expected}"
        raise AssertionError(message)


def targets(rows: list[Row]) -> list[str]:
    """What was wanted, met or missed."""
    lines = []

    def tell(what: str, value: float, bound: float, unit: str, *, least: bool = False) -> None:
        met = value >= bound if least else value <= bound
        sign = "at least" if least else "at most"
        lines.append(f"{'met' if met else 'MISSED'}: {what}: {value:.3g} {unit}, {sign} {bound:g} wanted")

    calls = {(row["host"].split()[0], row["variant"]): row for row in rows if row.get("variant")}
    if maf := calls.get(("MAF", "tools only")):
        tell("MAF: adapter path per tool call, beyond the hook", maf["call_beyond_us"], 20, "us")
        if hooks := calls.get(("MAF", "agent-hooks")):
            ratio = hooks["call_added_us"] / maf["call_added_us"]
            tell("MAF: agent-hooks per tool call, both with the hook", ratio, 10, "times as long", least=True)
    for (name, variant), row in calls.items():
        if variant == "guarded":
            tell(
                f"{name}: a turn of two model calls and a tool call, beyond the hooks",
                100 * row["beyond_share"],
                5,
                "%",
            )
    for row in rows:
        if row.get("peer", "").startswith(("agent-hooks", "Tenuo")):
            tell(f"{row['peer']}", row["ratio"], 10 if "hooks" in row["peer"] else 20, "times as long", least=True)
    return lines


def show(rows: list[Row]) -> None:
    """The tables."""
    columns = f"{'+ bare':>9}{'+ no-op':>9}"
    print(f"{'':<40}{'one call: us':>14}{columns}{'%':>8}{'further call: us':>18}{columns}")
    for row in rows:
        if "variant" in row:
            print(
                f"{row['host'] + ', ' + row['variant']:<40.40}"
                f"{row['turn_us']:>14,.0f}{row['added_us']:>9,.1f}{row['beyond_us']:>9,.1f}{row['beyond_share']:>8.1%}"
                f"{row['call_us']:>18,.1f}{row['call_added_us']:>9,.1f}{row['call_beyond_us']:>9,.1f}"
            )
    print(f"\n{'one call outside of any framework':<44}{'us':>10}{'x':>10}")
    for row in rows:
        if "peer" in row:
            print(f"{row['peer']:<44.44}{row['call_us']:>10,.2f}{row['ratio']:>10,.1f}")
        elif "skipped" in row:
            print(f"{row['skipped']}: left out: {row['reason']}")
    print()


async def measured(folder: Path, rounds: int) -> list[Row]:
    """Everything, with a gate in this folder."""
    write_files(folder)
    counts, rows = Counts(), []
    async with Gate.open(folder / "tollkeeper.toml") as gate:
        with gate.run(principal='Agent::"researcher"', session="s-42", budget=PATHS[-1]):
            rows += await peers(gate, rounds, counts)
            for name, make in HOSTS.items():
                try:
                    variants = make(gate)
                except ImportError as error:
                    rows.append({"skipped": name, "reason": str(error)})
                    continue
                rows += await host(variants, rounds, counts)
        gc.collect()
        ledger = gate.ledger
        if ledger is None:
            message = "the bench's gate has a ledger"
            raise AssertionError(message)
        used = {path: tuple(ledger.usage(path)[unit, "1d"].used for unit in ("requests", "tokens")) for path in PATHS}
    verify(folder, counts, used)  # type: ignore[arg-type]  # two numbers each
    return rows


def main() -> int:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description="what a gate costs inside agent frameworks")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    if build_info()["profile"] != "release":
        sys.exit("error: this is a debug build; run `make build` first")
    OUT.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=OUT, ignore_cleanup_errors=True) as folder:
        try:
            rows = asyncio.run(measured(Path(folder), arguments.rounds))
        except AssertionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    show(rows)
    for line in targets(rows):
        print(line)
    machine = f"{len(os.sched_getaffinity(0))} cores, load before the run {load:.2f}"
    print(machine)
    (OUT / "hosts.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
