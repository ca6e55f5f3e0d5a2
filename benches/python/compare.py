"""Measures decisions against cedarpy, both in this process, taking turns; prints a table and writes a plot.

Every answer is compared before anything is timed. A figure is the median over samples; a sample is a run of calls, so
that the clock's own cost disappears. Ratios are formed between neighbouring samples: a machine that slows down slows
both. Figures of different runs of this program are not comparable, ratios are.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cedarpy
import shapes

from tollkeeper import Context, Entities, EntityUid, PolicySet, build_info

OUT = Path(__file__).resolve().parent.parent / "out"
SAMPLES = 15


def timed(call: Callable[[int], object], calls: int) -> float:
    """Seconds per call over one sample."""
    start = time.perf_counter()
    for number in range(calls):
        call(number)
    return (time.perf_counter() - start) / calls


def calls_for(call: Callable[[int], object], seconds: float) -> int:
    """How many calls make a sample of about this length."""
    call(0)
    once = timed(call, 3)
    return max(1, min(20_000, int(seconds / max(once, 1e-9))))


def turns(callables: dict[str, Callable[[int], object]], samples: int, seconds: float) -> dict[str, list[float]]:
    """Samples of each, one after another in turn."""
    counts = {name: calls_for(call, seconds) for name, call in callables.items()}
    taken: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(samples):
        for name, call in callables.items():
            taken[name].append(timed(call, counts[name]))
    return taken


def prepare(case: shapes.Case) -> dict[str, Callable[[int], object]]:
    """The callables to compare, after checking that they answer alike."""
    ours, store = PolicySet.from_cedar(case.texts()), Entities.from_json(case.entities)
    peer, peer_store = cedarpy.PolicySet.from_str(case.policies), cedarpy.Entities.from_json_str(case.entities)
    asked = case.requests
    handles = [(EntityUid.parse(p), EntityUid.parse(a), EntityUid.parse(r), Context(c)) for p, a, r, c in asked]
    peer_asked = [{"principal": p, "action": a, "resource": r, "context": c} for p, a, r, c in asked]
    some_allowed = False
    for (p, a, r, c), prepared, request in zip(asked, handles, peer_asked, strict=True):
        expected = cedarpy.is_authorized(request, peer, peer_store)
        for answer in (ours.decide(p, a, r, c, store), ours.decide(*prepared, store)):
            same_reasons = set(answer.reasons) == set(expected.diagnostics.reasons)
            if (answer.decision == "allow") != expected.allowed or not same_reasons:
                sys.exit(f"error: {case.name}: answers differ for {request}")
        some_allowed = some_allowed or expected.allowed
    if case.name != "every policy errs" and not some_allowed:
        sys.exit(f"error: {case.name}: no request is allowed, so the comparison would show little")
    count, decide, authorize = len(asked), ours.decide, cedarpy.is_authorized

    def prepared_call(number: int) -> object:
        p, a, r, c = handles[number % count]
        return decide(p, a, r, c, store)

    def strings_call(number: int) -> object:
        p, a, r, c = asked[number % count]
        return decide(p, a, r, c, store)

    def peer_call(number: int) -> object:
        return authorize(peer_asked[number % count], peer, peer_store)

    def empty(number: int) -> object:
        return handles[number % count]

    return {"prepared": prepared_call, "strings": strings_call, "cedarpy": peer_call, "loop": empty}


def measure(case: shapes.Case, samples: int) -> dict[str, Any]:
    """One row: medians in microseconds with the bare loop taken off, ratios pair by pair."""
    taken = turns(prepare(case), samples, 0.02)
    loop = statistics.median(taken["loop"])
    row: dict[str, Any] = {"shape": case.name, "policies": case.policies.count(";")}
    for name in ("prepared", "strings", "cedarpy"):
        row[name] = (statistics.median(taken[name]) - loop) * 1e6
    for name in ("prepared", "strings"):
        row[f"{name}_ratio"] = statistics.median(
            (theirs - loop) / max(own - loop, 1e-12) for own, theirs in zip(taken[name], taken["cedarpy"], strict=True)
        )
    return row


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Microseconds per decision over the number of policies, both axes logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is wanted

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4.2))
    shaped = [row for row in rows if row["shape"] == "agent-shaped"]
    labels = {"cedarpy": "cedarpy, handles", "strings": "Tollkeeper, text and dict", "prepared": "Tollkeeper, handles"}
    for name, label in labels.items():
        axes.plot([row["policies"] for row in shaped], [row[name] for row in shaped], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="policies", ylabel="microseconds per decision (median)")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description="decisions from Python, against cedarpy")
    parser.add_argument("--policies", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    if build_info()["profile"] != "release":
        sys.exit("error: this is a debug build; run `make build` first")
    rows = [measure(shapes.agent_shaped(count), arguments.samples) for count in arguments.policies]
    rows.append(measure(shapes.in_conditions(1_000), arguments.samples))
    rows.extend(measure(make(1_000), arguments.samples) for make in (shapes.index_proof, shapes.all_err))
    names = ("prepared us", "strings us", "cedarpy us", "prepared x", "strings x")
    print(f"{'shape':<22}{'policies':>9}" + "".join(f"{name:>13}" for name in names))
    for row in rows:
        print(
            f"{row['shape']:<22}{row['policies']:>9,}{row['prepared']:>13.3f}{row['strings']:>13.3f}{row['cedarpy']:>13.1f}"
            f"{row['prepared_ratio']:>13,.0f}{row['strings_ratio']:>13,.0f}"
        )
    shaped = {row["policies"]: row for row in rows if row["shape"] == "agent-shaped"}
    if 10 in shaped and 10_000 in shaped:
        print(f"prepared, 10,000 policies against 10: {shaped[10_000]['prepared'] / shaped[10]['prepared']:.2f}x")
    OUT.mkdir(exist_ok=True)
    (OUT / "decide.json").write_text(json.dumps(rows, indent=1))
    plot(rows, OUT / "decide.svg")
    print(f"plot: {(OUT / 'decide.svg').relative_to(OUT.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
