"""The proxy in front of the conformance server: a gate that allows everything, records it and makes it be paid.

A program: `python conformance_proxy.py --upstream URL --folder FOLDER --ready FILE` writes its URL to FILE. What is
allowed is everything, so whatever the suite finds different is the proxy's doing.
"""

import argparse
import asyncio
import signal
from pathlib import Path

from tollkeeper import Gate
from tollkeeper.mcp.http import Proxy, Settings
from tollkeeper.mcp.http_headers import HeaderCheck
from tollkeeper.mcp.pins import Pins
from tollkeeper.mcp.screen import Screen

PRINCIPAL = 'Agent::"conformance"'
POLICY = f"permit(principal == {PRINCIPAL}, action, resource);\n"
BUDGETS = """
[budget."suite"]
limits = [
    { unit = "tokens", window = "1d", limit = 1_000_000_000 },
    { unit = "requests", window = "1d", limit = 1_000_000 },
    { unit = "nano_usd", window = "total", limit = 1_000_000_000_000 },
    { unit = "in_flight", window = "total", limit = 1_000 },
]
[price."sampling"]
prompt = "1"
completion = "1"
"""
CONFIG = """
[policy]
files = ["allow.cedar"]
[budget]
file = "budgets.toml"
state = "ledger.bin"
[audit]
dir = "audit"
"""


def opened(folder: Path) -> Gate:
    """A gate that allows everything, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "allow.cedar").write_text(POLICY)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG)
    return Gate.open(folder / "tollkeeper.toml")


def proxy(gate: Gate, settings: Settings) -> Proxy:
    """The proxy with a screen for each session."""
    pins = Pins(None, server="suite", reached=settings.upstream)
    check = HeaderCheck(pins)

    def screen(session: str | None) -> Screen:
        return Screen(
            gate,
            principal=PRINCIPAL,
            server="suite",
            session=session,
            budget="suite",
            pins=pins,
            check_headers=check,
            waits=False,
        )

    return Proxy(settings, screen)


async def served(made: Proxy, ready: Path) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    url = await made.start()
    partial = ready.with_suffix(".partial")
    partial.write_text(url)
    partial.rename(ready)
    await stop.wait()
    await made.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    with opened(given.folder) as gate:
        settings = Settings(upstream=given.upstream, listen=f"127.0.0.1:{given.port}")
        asyncio.run(served(proxy(gate, settings), given.ready))


if __name__ == "__main__":
    main()
