"""The gate from Python: scopes, guards, modes, codes, reload, fork. Denials are values; only ``require`` raises."""

import asyncio
import concurrent.futures
import copy
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import ConfigError, Denied, EntityError, Gate, PolicyError, Principal, decision_codes

POLICIES = """
@id("read")
permit (principal in Team::"ops", action == Action::"read_file", resource)
when { context.input.path like "/srv/*" };

@id("mail-known")
permit (principal, action == Action::"send_email", resource)
when { principal has contacts && principal.contacts.contains(context.input.to) };

@id("no-secrets") @reason("Secrets stay where they are; ask for a redacted copy.")
forbid (principal, action == Action::"read_file", resource)
when { context.input has path && context.input.path like "*/secrets/*" };

@id("wire") @approval("finance")
permit (principal, action == Action::"wire", resource);

@id("audit") @obligation("log-to-siem")
permit (principal, action == Action::"search", resource);
"""

CONFIG = """
[policy]
files = ["p.cedar"]
entities = "e.json"

[tools.read_file]
resource = 'Mcp::"files"'
paths = ["path"]
[tools.send_email]
resource = 'Mcp::"gmail"'
[tools.search]
resource = 'Mcp::"web"'
[tools.wire]
resource = 'Mcp::"bank"'
[tools.wire.schema]
type = "object"
properties = { amount = { type = "number" } }
required = ["amount"]
additionalProperties = false
"""

ENTITIES = """[
  {"uid": {"type": "Agent", "id": "a"}, "attrs": {"contacts": ["bob@x.org"]},
   "parents": [{"type": "Team", "id": "ops"}]}
]"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gate's files."""
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "e.json").write_text(ENTITIES)
    return tmp_path


def code(gate: Gate, tool: str, arguments: Any = None) -> str:
    """The code of one check by the agent that the entities know."""
    with gate.run(principal='Agent::"a"', session="s"):
        return gate.check(tool, arguments).code


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("read_file", {"path": "/srv/a"}, "allow"),
        ("read_file", {"path": "/etc/passwd"}, "policy.no_permit"),
        ("read_file", {"path": "/srv/secrets/key"}, "policy.forbidden"),
        ("read_file", {"path": "/srv/../etc/passwd"}, "input.unrepresentable"),
        ("read_file", {"path": ["/srv/secrets/key"]}, "policy.error"),
        ("read_file", {"path": b"/srv/a"}, "input.unrepresentable"),
        ("read_file", {"path": "/srv/" + "a" * 70_000}, "input.too_large"),
        ("send_email", {"to": "bob@x.org"}, "allow"),
        ("send_email", {"to": "eve@x.org"}, "policy.no_permit"),
        ("delete_everything", {}, "input.unknown_tool"),
        ("wire", {"amount": 5}, "approval.required"),
        ("wire", {"amount": "5"}, "input.unrepresentable"),
        ("wire", {"amount": 5, "memo": ""}, "input.unrepresentable"),
        ("wire", {}, "input.unrepresentable"),
        ("search", None, "allow"),
        ("search", [], "input.unrepresentable"),
    ],
)
def test_codes(gate: Gate, tool: str, arguments: Any, expected: str) -> None:
    assert code(gate, tool, arguments) == expected


def test_a_check_without_a_run_is_denied(gate: Gate) -> None:
    assert gate.check("search").code == "scope.missing"


def test_decision_tells_why(gate: Gate) -> None:
    with gate.run(principal='Agent::"a"', session="s"):
        denied = gate.check("read_file", {"path": "/srv/secrets/k"})
        allowed = gate.check("search")
        unknown = gate.check("sarch")
    assert denied.reason == "Secrets stay where they are; ask for a redacted copy."
    assert denied.policies == ["no-secrets"]
    assert allowed.policies == ["audit"]
    assert allowed.obligations == ["log-to-siem"]
    assert allowed.reason == ""
    assert "[tools.sarch]" in unknown.reason
    assert denied.id != allowed.id
    assert denied.id.split("-")[0] == allowed.id.split("-")[0]
    with pytest.raises(TypeError, match="truth value"):
        bool(denied)


def test_require_raises_denied_with_the_decision(gate: Gate) -> None:
    with gate.run(principal='Agent::"a"', session="s"):
        assert gate.check("search").require().allowed
        with pytest.raises(Denied) as caught:
            gate.check("read_file", {"path": "/etc"}).require()
    assert caught.value.code == "policy.no_permit"
    assert caught.value.decision.code == "policy.no_permit"  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made here
    assert (again.code, str(again), again.decision) == ("policy.no_permit", str(caught.value), None)


def test_principal_with_attributes_of_its_own(gate: Gate) -> None:
    principal = Principal('Agent::"new"', attrs={"contacts": ["eve@x.org"]}, parents=['Team::"ops"'])
    with gate.run(principal=principal, session="s"):
        assert gate.check("send_email", {"to": "eve@x.org"}).allowed
        assert gate.check("read_file", {"path": "/srv/a"}).allowed
    with pytest.raises(EntityError):
        gate.run(principal=Principal('Agent::"a"', attrs={"contacts": []}), session="s")


def test_nested_runs_only_narrow(gate: Gate) -> None:
    with gate.run(principal='Agent::"a"', session="s", tools=["search", "send_email"]) as outer:
        assert not gate.check("read_file", {"path": "/srv/a"}).allowed
        with gate.run(tools=["search", "read_file"]) as inner:
            assert gate.check("search").allowed
            assert not gate.check("read_file", {"path": "/srv/a"}).allowed
            assert not gate.check("send_email", {"to": "bob@x.org"}).allowed
            assert inner.principal == outer.principal
        assert gate.check("send_email", {"to": "bob@x.org"}).allowed
        for change in ({"principal": 'Agent::"b"'}, {"session": "t"}, {"on_behalf_of": 'User::"u"'}):
            with pytest.raises(ValueError, match="cannot change"):
                gate.run(**change)  # type: ignore[arg-type]
    assert gate.check("search").code == "scope.missing"


def test_scope_travels_to_tasks_and_bound_threads(gate: Gate) -> None:
    async def tasks() -> list[str]:
        async with gate.run(principal='Agent::"a"', session="s"):

            async def one() -> str:
                await asyncio.sleep(0)
                return gate.check("search").code

            in_thread = await asyncio.to_thread(lambda: gate.check("search").code)
            return [*await asyncio.gather(one(), one()), in_thread]

    assert asyncio.run(tasks()) == ["allow"] * 3
    with gate.run(principal='Agent::"a"', session="s") as scope, concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: gate.check("search").code).result() == "scope.missing"
        assert pool.submit(scope.bind(lambda: gate.check("search").code)).result() == "allow"
        assert pool.submit(lambda: gate.check("search", scope=scope).code).result() == "allow"


def test_guard_checks_by_parameter_name(gate: Gate) -> None:
    calls: list[Any] = []

    @gate.guard
    def send_email(to: str, subject: str = "hi") -> str:
        calls.append((to, subject))
        return "sent"

    @gate.guard(tool="search")
    async def look(query: str, **options: Any) -> str:
        calls.append((query, options))
        return "found"

    with gate.run(principal='Agent::"a"', session="s"):
        assert send_email("bob@x.org") == "sent"
        with pytest.raises(Denied):
            send_email(to="eve@x.org")
        assert asyncio.run(look("q", depth=1)) == "found"
    with pytest.raises(Denied) as caught:
        send_email("bob@x.org")
    assert caught.value.code == "scope.missing"
    assert calls == [("bob@x.org", "hi"), ("q", {"depth": 1})]
    with pytest.raises(TypeError, match="needs a name"):
        gate.guard(lambda *args: args)


def test_guarded_function_gets_what_was_decided_on(gate: Gate) -> None:
    """Nobody who keeps a reference to an argument can change it after the check."""
    seen: list[Any] = []

    @gate.guard
    def search(terms: list[Any]) -> None:
        seen.append(terms)

    terms = [["a"]]
    with gate.run(principal='Agent::"a"', session="s"):
        search(terms)
    assert seen == [terms]
    assert seen[0] is not terms
    assert seen[0][0] is not terms[0]


def test_shadow_flips_policies_and_nothing_else(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text("[gate]\nmode = 'shadow'\n" + CONFIG)
    gate = Gate.open(folder / "tollkeeper.toml")
    with gate.run(principal='Agent::"a"', session="s"):
        flipped = gate.check("read_file", {"path": "/etc/passwd"})
        approval = gate.check("wire", {"amount": 1})
        unknown = gate.check("nothing")
    assert (flipped.code, flipped.would_deny) == ("allow", "policy.no_permit")
    assert (approval.code, approval.would_deny) == ("allow", "approval.required")
    assert (unknown.code, unknown.would_deny) == ("input.unknown_tool", None)
    assert gate.check("search").code == "scope.missing"


def test_reload_swaps_or_keeps(folder: Path, gate: Gate) -> None:
    assert code(gate, "search") == "allow"
    (folder / "p.cedar").write_text("permit (principal action, resource);")
    with pytest.raises(PolicyError) as caught:
        gate.reload()
    assert (caught.value.errors[0].line, caught.value.errors[0].file) == (1, str(folder / "p.cedar"))
    assert code(gate, "search") == "allow"
    (folder / "p.cedar").write_text('@id("stop") forbid (principal, action, resource);')
    gate.reload()
    assert code(gate, "search") == "policy.forbidden"


def test_checks_go_on_during_reloads(folder: Path, gate: Gate) -> None:
    stop = threading.Event()
    codes: set[str] = set()

    def hammer() -> None:
        while not stop.is_set():
            codes.add(code(gate, "search"))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for text in (POLICIES, '@id("stop") forbid (principal, action, resource);') * 5:
        (folder / "p.cedar").write_text(text)
        gate.reload()
    stop.set()
    for thread in threads:
        thread.join()
    assert codes <= {"allow", "policy.forbidden"}


def test_unguarded_forbid_is_refused_with_the_guard_to_add(folder: Path) -> None:
    (folder / "p.cedar").write_text(
        "permit (principal, action, resource);\n"
        'forbid (principal, action, resource) when { context.input.path like "*.pem" };'
    )
    with pytest.raises(PolicyError) as caught:
        Gate.open(folder / "tollkeeper.toml")
    error = caught.value.errors[0]
    assert error.code == "policy.unguarded_forbid"
    assert error.line == 2
    assert "context.input has path" in (error.help or "")
    (folder / "tollkeeper.toml").write_text("[gate]\nunguarded_forbid = 'warn'\n" + CONFIG)
    gate = Gate.open(folder / "tollkeeper.toml")
    assert any("path" in warning for warning in gate.warnings)
    assert code(gate, "search", {}) == "policy.error"
    assert code(gate, "read_file", {"path": "/srv/a"}) == "allow"


def test_on_error_cedar_restores_the_language(folder: Path) -> None:
    (folder / "p.cedar").write_text(
        "permit (principal, action, resource);\n"
        'forbid (principal, action, resource) when { context.input.path like "*.pem" };'
    )
    (folder / "tollkeeper.toml").write_text("[gate]\nunguarded_forbid = 'warn'\non_error = 'cedar'\n" + CONFIG)
    assert code(Gate.open(folder / "tollkeeper.toml"), "search", {}) == "allow"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[gate]\nmoed = 'shadow'", "moed"),
        ("[gate]\nmode = 'audit'", "mode"),
        ("[policy]\nfiles = ['missing.cedar']", "missing.cedar"),
        ("[tools.x]\nresource = 'Mcp::\"a\"'\ncost = 1", "cost"),
        ("[tools.x", "at the end"),
        ("[gate]\nmode = shadow", "tollkeeper.toml:2"),
    ],
)
def test_configuration_errors_name_the_place(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "tollkeeper.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"tollkeeper\.toml") as caught:
        Gate.open(tmp_path / "tollkeeper.toml")
    assert part in str(caught.value)


def test_a_bad_tool_is_refused_at_open(folder: Path) -> None:
    for name in ("call_model", "a\u202eb", "Read_File"):
        (folder / "tollkeeper.toml").write_text(CONFIG + f'\n[tools."{name}"]\nresource = \'Mcp::"x"\'\n')
        with pytest.raises(PolicyError):
            Gate.open(folder / "tollkeeper.toml")


def test_closed_gate_denies(gate: Gate) -> None:
    gate.close()
    assert code(gate, "search") == "gate.closed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inherited_gate_denies_in_the_child(gate: Gate) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if code(gate, "search") == "gate.forked" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert code(gate, "search") == "allow"


def test_every_code_is_documented_and_raised_here_or_elsewhere() -> None:
    """A new code needs a test that raises it; list it here once it has one."""
    raised = {
        "allow", "policy.forbidden", "policy.no_permit", "policy.error", "input.unrepresentable", "input.too_large",
        "input.unknown_tool", "scope.missing", "approval.required", "gate.forked", "gate.closed", "internal.panic",
        # In test_budget.py, and an expired hold in the core's tests.
        "budget.exhausted", "budget.contended", "budget.too_large", "budget.expired", "budget.unpriced",
        "budget.unavailable",
        # In test_audit.py.
        "audit.unavailable",
        # In test_kill_switch.py, test_runs.py and test_approvals.py.
        "principal.revoked", "principal.expired", "approval.rejected", "approval.expired",
        # In test_tools.py.
        "tool.changed",
    }  # fmt: skip
    codes = dict(decision_codes())
    assert set(codes) == raised
    assert all(len(meaning) > 10 for meaning in codes.values())


def test_a_gate_cannot_be_copied(gate: Gate) -> None:
    with pytest.raises(TypeError):
        copy.copy(gate)


def opened(folder: Path, policies: str, tools: str = "[tools.t]\nresource = 'Mcp::\"m\"'\n", gate: str = "") -> Gate:
    """A gate over one policy text and some tools."""
    (folder / "q.cedar").write_text(policies)
    (folder / "q.toml").write_text(f"{gate}[policy]\nfiles = ['q.cedar']\n{tools}")
    return Gate.open(folder / "q.toml")


PERMIT = "permit (principal, action, resource);\n"


def test_bound_coroutines_run_in_their_scope_and_generators_are_refused(tmp_path: Path) -> None:
    gate = opened(tmp_path, PERMIT, "[tools.a]\nresource = 'Mcp::\"m\"'\n[tools.b]\nresource = 'Mcp::\"m\"'\n")

    async def call() -> str:
        await asyncio.sleep(0)
        return gate.check("b").code

    with gate.run(principal='Agent::"x"') as outer:
        inner = outer.narrowed(tools=["a"])
        assert inner.bind(lambda: gate.check("b").code)() == "policy.forbidden"
        assert asyncio.run(inner.bind(call)()) == "policy.forbidden"  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="generator"):
            inner.bind(lambda: (yield))


def test_a_scope_ends_with_its_run(tmp_path: Path) -> None:
    gate = opened(tmp_path, PERMIT)
    first, second = gate.run(principal='Agent::"admin"'), gate.run(principal='Agent::"x"')
    kept = first.__enter__()
    second.__enter__()
    # Ended in the wrong order: the variable then holds the first scope again, which is over.
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gate.check("t").code == "scope.missing"
    assert gate.check("t", scope=kept).code == "scope.missing"
    with pytest.raises(RuntimeError, match="over"):
        first.__enter__()


def test_a_scope_is_of_one_gate(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = opened(tmp_path, PERMIT), opened(tmp_path / "other", PERMIT)
    with one.run(principal='Agent::"x"') as scope:
        assert one.check("t").code == "allow"
        assert other.check("t").code == "scope.missing"
        assert other.check("t", scope=scope).code == "scope.missing"
        with other.run(principal='Agent::"y"'):
            assert other.check("t").code == "allow"


def test_names_are_lists_not_text(tmp_path: Path) -> None:
    gate = opened(tmp_path, PERMIT)
    for names in ({"labels": "untrusted"}, {"tools": "t"}):
        with pytest.raises(TypeError, match="not a str"):
            gate.run(principal='Agent::"x"', **names)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Approval", "APPROVAL", "approvals", "durabilty", "Mode", "reasn"])
def test_near_misses_of_annotations_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match="means nothing"):
        opened(tmp_path, f'@{name}("x") {PERMIT}')


@pytest.mark.parametrize(
    "schema",
    [
        '{ allOf = [{ type = "number" }, { type = "integer" }] }',
        '{ allOf = [{ type = "integer" }, { type = "number" }] }',
        "{ enum = [1000] }",
        "{ const = 1000.0 }",
    ],
)
def test_a_number_is_one_value_however_it_is_written(tmp_path: Path, schema: str) -> None:
    tools = f"[tools.t]\nresource = 'Mcp::\"m\"'\n[tools.t.schema.properties]\namount = {schema}\n"
    forbid = "forbid (principal, action, resource) when {{ context.input has amount && context.input.amount == {} }};"
    for literal in ("1000", 'decimal("1000.0")'):
        gate = opened(tmp_path, PERMIT + forbid.format(literal), tools)
        with gate.run(principal='Agent::"x"'):
            assert gate.check("t", {"amount": 1000}).code == gate.check("t", {"amount": 1000.0}).code


def test_guard_hides_nothing_from_policies(tmp_path: Path) -> None:
    import functools  # noqa: PLC0415 - only here

    import msgspec  # noqa: PLC0415

    class Order(msgspec.Struct):
        amount: int

    forbid = "forbid (principal, action, resource) when { context.input has amount && context.input.amount > 100 };"
    gate = opened(tmp_path, PERMIT + forbid)
    seen: list[Any] = []

    @gate.guard(tool="t")
    def transfer(amount: int, /, **extra: Any) -> None:
        seen.append((amount, extra))

    @gate.guard(tool="t")
    def order(order: Any) -> None:
        seen.append(order)

    cyclic: list[Any] = []
    cyclic += [cyclic, cyclic]
    mine = Order(1)
    with gate.run(principal='Agent::"x"'):
        with pytest.raises(TypeError, match="by position and by name"):
            transfer(10**6, amount=1)
        with pytest.raises(Denied) as caught:
            order(cyclic)
        assert caught.value.code == "input.too_large"
        order(mine)
        assert seen == [mine]
        assert seen[0] is not mine
        assert gate.check("x\ud800", {}).code == "input.unknown_tool"
    with pytest.raises(TypeError, match="partial"):
        gate.guard(functools.partial(transfer, 1))


def test_a_gate_stays_with_its_files_when_the_process_goes_elsewhere(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened by a relative path: log, state and reload are not looked for in the new folder."""
    with (folder / "tollkeeper.toml").open("a") as file:
        file.write("\n[audit]\nring_kib = 512\n[state]\n")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    with Gate.open("tollkeeper.toml") as gate:
        monkeypatch.chdir(elsewhere)
        assert code(gate, "search") == "allow"
        with gate.run(principal='Agent::"a"'):
            gate.approval(gate.check("wire", {"amount": 5}))
        gate.reload()
        assert code(gate, "search") == "allow"
    assert list(elsewhere.iterdir()) == []
    assert len(list((folder / "state/approvals").iterdir())) == 1
    size = int((folder / "audit/0/checkpoint").read_text().splitlines()[1])
    assert size == (folder / "audit/0/wal/00000000000000000000.seg").read_bytes().count(b'{"v":1,')
