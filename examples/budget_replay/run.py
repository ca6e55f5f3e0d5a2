"""Replay production requests to two language models through budgets, and show what is admitted and what is denied.

For: `make run`, with the Python in which `tollkeeper` is installed. The traces are those of the Azure Public Dataset;
TOLLKEEPER_AZURE_TRACES names their folder. Further arguments go to `tollkeeper budget replay`, such as `--plot a.svg`.

Refuses to: pass made-up requests for real ones. Where the traces are absent it says so and generates some, from a seed,
with the shape that is published of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import generate

from tollkeeper import cli

HERE = Path(__file__).resolve().parent
DEFAULT_FOLDER = HERE.parents[2] / "shared" / "data" / "azure-llm-2023"


def main(arguments: list[str]) -> int:
    """Replays, and returns the exit code of the command."""
    folder = Path(os.environ.get("TOLLKEEPER_AZURE_TRACES") or DEFAULT_FOLDER)
    files = [folder / f"{name}.csv" for name in generate.SHAPES]
    if all(file.is_file() for file in files):
        print(f"budgets: {folder.name}, production requests to two language models (Azure Public Dataset, CC-BY 4.0)")
        return replay(files, arguments)
    print(f"no traces at {folder} (TOLLKEEPER_AZURE_TRACES names their folder): these requests are MADE UP,")
    print(f"from seed {generate.SEED}, with the published count, span, medians, 99th percentiles and largest values")
    with tempfile.TemporaryDirectory() as made:
        return replay(generate.write(Path(made)), arguments)


def replay(files: list[Path], arguments: list[str]) -> int:
    """Runs the command."""
    print("$ tollkeeper budget replay", *(file.name for file in files), *arguments, flush=True)
    return cli.main(["budget", "replay", *map(str, files), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
