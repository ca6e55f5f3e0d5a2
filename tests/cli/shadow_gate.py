"""Drives a real gate over its log, in shadow mode or enforcing, for the tests of what is read out of such a log."""

import contextlib
from pathlib import Path

from tollkeeper import Denied, Gate

POLICIES = """\
@id("readers")
permit(principal in Team::"ops", action == Action::"search", resource);

@id("mail-inside")
permit(principal, action == Action::"send_email", resource)
when { context.input.to like "*@example.com" };

@id("never-delete")
@reason("Agents do not delete; ask a person <b>first</b>")
forbid(principal, action == Action::"delete_file", resource);

@id("no-drafts")
@mode("shadow")
forbid(principal, action == Action::"search", resource)
when { context.input has query && context.input.query like "*draft*" };

@id("models")
permit(principal, action == Action::"call_model", resource == Model::"gpt-5");
"""
ENTITIES = (
    """[{"uid": {"type": "Agent", "id": "researcher"}, "attrs": {}, "parents": [{"type": "Team", "id": "ops"}]}]"""
)
BUDGETS = """\
[budget."acme"]
limits = [{ unit = "nano_usd", window = "month", limit = 500_000_000_000 }]

[budget."acme/research"]
limits = [{ unit = "tokens", window = "1d", limit = 2_000_000 }]

[budget."acme/trial"]
limits = [{ unit = "requests", window = "total", limit = 1 }]

[price."gpt-5"]
prompt = "1.25"
cached = "0.125"
completion = "10"
"""
CONFIG = """\
[gate]
mode = "{mode}"
[policy]
files = ["policies.cedar"]
entities = "entities.json"
[budget]
file = "budgets.toml"
[audit]
dir = "audit"
origin = "example.com/gate"
ring_kib = 512
[tools.search]
resource = 'Mcp::"web"'
[tools.search.schema]
type = "object"
[tools.search.schema.properties]
query = {{ type = "string" }}
language = {{ type = "string" }}
[tools.send_email]
resource = 'Mcp::"gmail"'
[tools.delete_file]
resource = 'Mcp::"files"'
[tools.create_invoice]
resource = 'Mcp::"billing"'
"""
RESEARCHER = 'Agent::"researcher"'
GUEST = 'Agent::"guest"'


def write(folder: Path, mode: str, policies: str = POLICIES) -> Path:
    """Writes a configuration, and returns its file."""
    (folder / "policies.cedar").write_text(policies)
    (folder / "entities.json").write_text(ENTITIES)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG.format(mode=mode))
    return folder / "tollkeeper.toml"


def closed(gate: Gate) -> None:
    """Ends a gate with everything in its log."""
    assert gate.log is not None
    gate.log.close()


def clean(gate: Gate, calls: int) -> None:
    """Calls that policies allow."""
    with gate.run(principal=RESEARCHER, session="s-1"):
        for _ in range(calls):
            assert gate.check("search", {"query": "weather", "page": 1}).would_deny is None


def mixed(gate: Gate) -> None:
    """Calls of every kind: 3 searches, 2 deletions, 1 mail that may not go, an unknown tool, 2 models, 3 trials."""
    with gate.run(principal=RESEARCHER, session="s-1", budget="acme/research"):
        for query in ("weather", "a draft of it", "news"):
            gate.check("search", {"query": query})
        for path in ("a", "b"):
            gate.check("delete_file", {"path": path})
        gate.check("no_such_tool", {"secret": 1})
        with gate.model_call(model="gpt-5", prompt_tokens=1_200, max_tokens=400) as call:
            call.settle(prompt=1_200, cached=800, completion=311)
        with contextlib.suppress(Denied), gate.model_call(model="gpt-6", prompt_tokens=10, max_tokens=10):
            pass
    with gate.run(principal=GUEST, session="s-2"):
        gate.check("send_email", {"to": "eve@else.org"})
    with gate.run(principal=RESEARCHER, session="s-3", budget="acme/trial"):
        for _ in range(3):
            gate.check("search", {"query": "trial"})


def recorded(folder: Path, mode: str) -> Path:
    """A folder with the log of one gate that saw everything; returns the log's."""
    gate = Gate.open(write(folder, mode))
    mixed(gate)
    closed(gate)
    return folder / "audit"
