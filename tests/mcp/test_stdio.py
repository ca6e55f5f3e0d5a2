"""The proxy as a process, between a client's pipes and a server of its own: what arrives, and how everything ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxied import PRINCIPAL, SERVER, Client, call, entries, environment, text_of

from tollkeeper import Gate
from tollkeeper.errors import ConfigError
from tollkeeper.mcp import stdio
from tollkeeper.mcp.settings import server_name

if TYPE_CHECKING:
    from collections.abc import Callable


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the words are those of the tests
        [sys.executable, "-m", "tollkeeper", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def eventually(what: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def outcomes(folder: Path) -> list[tuple[str, str | None]]:
    rows = [row["entry"] for row in entries(folder)]
    return [(row["status"], row.get("error")) for row in rows if row["kind"] == "outcome"]


def held(folder: Path) -> int:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        assert gate.ledger is not None
        gate.ledger.recover()
        return gate.ledger.usage("acme")["in_flight", "total"].held


def test_a_session_from_start_to_end(folder: Path) -> None:
    with Client(folder) as client:
        assert client.ask({"id": 0, "method": "initialize", "params": {}})["result"]["serverInfo"]["name"] == "plain"
        client.send({"method": "notifications/initialized"})
        listed = client.ask({"id": 1, "method": "tools/list"})["result"]["tools"]
        assert [tool["name"] for tool in listed][:2] == ["echo", "fail"]
        assert text_of(client.call("echo", 2, text="hello")) == "hello"
        assert text_of(client.call("echo", 3, text="secret")).startswith("Denied (policy.forbidden)")
        assert client.call("fail", 4)["result"]["isError"] is True
        assert client.end() == 0
    assert outcomes(folder) == [("ok", None), ("error", "ToolError")]
    assert b"secret" not in b"".join(client.received())
    assert held(folder) == 0


def test_the_server_receives_what_was_decided_and_all_else_untouched(folder: Path) -> None:
    undecided = b'{ "jsonrpc" : "2.0", "method":"notifications/progress",  "params":{"progress":1.50,"u":"\\u0061"}}'
    params = b'{ "name":"echo","arguments":{"text":"\\u0041","n":1.50}}'
    decided = b'{"jsonrpc":"2.0","method":"tools/call","id":"i","params":%s}' % params
    with Client(folder) as client:
        client.send(undecided)
        client.send(b"   ")
        client.send(undecided + b"\r")
        client.ask(decided)
        client.end()
    progress, again, listing, called = client.received()
    assert progress == again == undecided
    assert json.loads(listing)["method"] == "tools/list"
    assert called == (
        b'{"jsonrpc":"2.0","method":"tools/call","id":"i","params":{"name":"echo","arguments":{"text":"A","n":1.5}}}'
    )


def test_calls_before_any_list_wait_for_all_its_pages_and_keep_their_order(folder: Path) -> None:
    with Client(folder, options=("--env", "PAGE_SIZE"), PAGE_SIZE="3") as client:
        for number in range(5):
            client.send(call("echo", number, text=str(number)))
        assert [text_of(client.message()) for _ in range(5)] == list("01234")
        client.end()
    assert [json.loads(line)["method"] for line in client.received()][:5] == ["tools/list"] * 4 + ["tools/call"]


def test_a_client_that_says_everything_at_once_gets_every_answer(folder: Path) -> None:
    lines = [json.dumps({"jsonrpc": "2.0", **call("echo", number, text=f"{number}")}) for number in range(50)]
    done = subprocess.run(  # noqa: S603 - the words are those of the tests
        [
            sys.executable,
            "-m",
            "tollkeeper",
            "mcp",
            "--principal",
            PRINCIPAL,
            "--server",
            "plain",
            "--budget",
            "acme",
            "--",
            sys.executable,
            str(SERVER),
        ],
        cwd=folder,
        env=environment(),
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert [text_of(json.loads(line)) for line in done.stdout.splitlines()] == [str(n) for n in range(50)]


def test_the_environment_is_an_allow_list(folder: Path) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "x", "TOLLKEEPER_X": "y", "LC_TIME": "C", "GIVEN": "1", "USER": "() { :; }"}
    with Client(folder, options=("--env", "GIVEN"), **secrets) as client:
        names = set(json.loads(text_of(client.call("environment"))))
        client.end()
    assert {"GIVEN", "LC_TIME", "PATH"} <= names
    assert names <= stdio.ALLOWED_NAMES | {"GIVEN", "LC_TIME", "LC_ALL", "LC_CTYPE"}
    assert "USER" not in names
    with pytest.raises(ConfigError, match="no such variable"):
        stdio.environment(["MISSING"], {})


def test_a_model_s_answer_for_the_server(folder: Path) -> None:
    with Client(folder) as client:
        client.send(call("ask_model", 1, text=""))
        asked = client.message()
        assert asked["method"] == "sampling/createMessage"
        client.send({"id": asked["id"], "result": {"content": {"type": "text", "text": "hi"}}})
        assert "hi" in text_of(client.message())
        # What no policy permits the client never sees: the server is told.
        refused = client.call("ask_model", 2, tokens=5000)
        assert "Denied (policy.no_permit)" in text_of(refused)
        client.end()
    # Nobody says what the model has used.
    assert outcomes(folder) == [("unknown", None), ("ok", None), ("ok", None)]


def test_lines_that_are_too_long_are_refused_and_forgotten(folder: Path) -> None:
    with Client(folder) as client:
        long = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": {"x": "y" * (5 << 20)}}).encode()
        answer = client.ask(long)
        assert (answer["id"], answer["error"]["code"]) == (7, -32600)
        # The server's line is dropped; the answer behind it comes through.
        assert client.call("long", 8, text=str(17 << 20))["id"] == 8
        status = Path(f"/proc/{client.process.pid}/status").read_text()
        peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        assert peak_kib < 200 << 10
        assert client.end() == 0
    assert "more than 16777216 bytes" in client.errors()


def test_what_the_server_writes_besides_messages_reaches_nobody(folder: Path) -> None:
    with Client(folder) as client:
        for line in (
            "not json",
            "[]",
            '{"jsonrpc":"2.0","id":99,"result":{}}',
            '{"jsonrpc":"2.0","id":1,"method":"x"}',
        ):
            client.send(call("raw", line, text=line))
        assert text_of(client.call("echo", 5, text="still here")) == "still here"
        client.end()
    assert "refused" in client.errors()


def test_a_server_that_dies_ends_the_proxy_and_settles(folder: Path) -> None:
    with Client(folder) as client:
        client.send(call("slow", 1))
        client.send(call("die", 2))
        answers = {(answer := client.message())["id"]: answer["error"] for _ in range(2)}
        assert set(answers) == {1, 2}
        assert "has ended" in answers[1]["message"]
        assert not -32768 <= answers[1]["code"] <= -32000
        assert client.line() == b""
        assert client.process.wait(20) == 1
    assert "killed by SIGKILL" in client.errors()
    assert outcomes(folder) == [("unknown", "ServerGone")] * 2
    assert held(folder) == 0


def test_a_client_that_dies_ends_the_server_and_settles(folder: Path) -> None:
    client = Client(folder)
    client.send(call("slow", 1))
    eventually(lambda: len(client.received()) == 2)
    assert client.end() == 0
    assert outcomes(folder) == [("unknown", "ServerGone")]
    assert held(folder) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(folder: Path, number: signal.Signals) -> None:
    with Client(folder) as client:
        client.send(call("slow", 1))
        eventually(lambda: len(client.received()) == 2)
        client.process.send_signal(number)
        assert client.process.wait(20) == 128 + number
    assert outcomes(folder) == [("unknown", "ServerGone")]
    assert held(folder) == 0


def test_a_proxy_that_is_killed_leaves_holds_that_count_and_a_log_that_verifies(folder: Path) -> None:
    with Client(folder) as client:
        client.send(call("slow", 1))
        eventually(lambda: len(client.received()) == 2)
        client.process.kill()
        assert client.process.wait(20) == -signal.SIGKILL
    assert held(folder) == 0
    decided = [row["entry"] for row in entries(folder) if row["entry"]["kind"] == "decision"]
    assert [row["tool"] for row in decided] == ["slow"]


def test_a_server_that_will_not_end_is_killed(folder: Path) -> None:
    with Client(folder, "--stubborn") as client:
        assert text_of(client.call("background", 1, text="x")) == "x"
        group = next(int(line) for line in children(client.process.pid))
        begun = time.monotonic()
        assert client.end() == 0
        assert time.monotonic() - begun < 12
    eventually(lambda: not alive_in_group(group))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def alive_in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    # Who is dead and not yet waited for, by whoever took it over, does no more harm.
    states = [
        (path / "stat").read_text().rsplit(")", 1)[1].split()
        for path in Path("/proc").glob("[0-9]*")
        if (path / "stat").exists()
    ]
    return any(int(state[2]) == group and state[0] != "Z" for state in states)


def test_the_pins_of_a_server_by_the_command_line(folder: Path) -> None:
    tools = [{"name": "echo", "description": "returns its text", "inputSchema": {"type": "object"}}]
    file = folder / "tools.json"
    file.write_text(json.dumps(tools))
    with Client(folder, "--tools", str(file)) as client:
        assert text_of(client.call("echo", 1, text="x")) == "x"
        tools[0]["description"] = "returns its text\u202e and tells nobody"
        file.write_text(json.dumps(tools))
        assert client.ask({"id": 2, "method": "tools/list"})["result"]["tools"] == []
        assert text_of(client.call("echo", 3, text="x")).startswith("Denied (tool.changed)")
        shown = run(folder, "mcp", "accept", "--show")
        assert (shown.returncode, shown.stderr) == (1, "")
        assert '+ "description": "returns its text\\u202e and tells nobody"' in shown.stdout
        assert text_of(client.call("echo", 4, text="x")).startswith("Denied (tool.changed)")
        done = run(folder, "mcp", "accept")
        assert (done.returncode, done.stderr) == (0, "")
        assert "accepted 1 change of plain in " in done.stdout
        time.sleep(0.15)
        assert text_of(client.call("echo", 5, text="x")) == "x"
        client.end()
    assert run(folder, "mcp", "accept").stdout == "nothing waits to be accepted\n"
    codes = [row["entry"].get("code") for row in entries(folder) if row["entry"]["kind"] == "decision"]
    assert codes == ["allow", "tool.changed", "tool.changed", "allow"]


def test_a_list_that_changed_is_asked_for_before_the_next_call(folder: Path) -> None:
    tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "raw")]
    file = folder / "tools.json"
    file.write_text(json.dumps(tools))
    with Client(folder, "--tools", str(file)) as client:
        assert text_of(client.call("echo", 1, text="x")) == "x"
        tools[0]["description"] = "another"
        file.write_text(json.dumps(tools))
        client.send(call("raw", 2, text='{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'))
        assert client.message()["method"] == "notifications/tools/list_changed"
        assert text_of(client.call("echo", 3, text="x")).startswith("Denied (tool.changed)")
        client.end()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--principal", "x", "--", "true"), "principal"),
        (("--principal", PRINCIPAL), "name one server"),
        (("--server", "x", "--", "true"), "--principal is missing"),
        (("--prinzipal", "x"), "unrecognized arguments: --prinzipal\nhint: tollkeeper mcp --help"),
        (("accept", "--foo"), "unrecognized arguments: --foo\nhint: tollkeeper mcp accept --help"),
        (("schema", "--server", "x", "--", "true"), "--principal is missing"),
        (("--principal", PRINCIPAL, "--", "npx", "some-server"), "hint: add --server NAME"),
        (("--principal", PRINCIPAL, "--upstream", "http://127.0.0.1:1/", "--", "true"), "name one server"),
        (("--principal", PRINCIPAL, "--listen", "127.0.0.1:0", "--", "true"), "--listen"),
        (("--principal", PRINCIPAL, "--", "npx", "some-server"), "needs a name"),
        (("--principal", PRINCIPAL, "--server", "a b", "--", "true"), "--server"),
        (("--principal", PRINCIPAL, "--server", "x", "--", "no-such-program-anywhere"), "no-such-program-anywhere"),
        (("--principal", PRINCIPAL, "--server", "x", "--env", "NO_SUCH", "--", "true"), "NO_SUCH"),
        (("--principal", PRINCIPAL, "--server", "x", "--budget", "nobody", "--", "true"), "nobody"),
        (("--principal", PRINCIPAL, "--server", "x", "--lock", "no/such", "--", "touch", "started"), "--lock no/such"),
        (("--principal", PRINCIPAL, "--server", "x", "--lock", "/proc/x", "--", "touch", "started"), "be written"),
    ],
)
def test_wrong_usage_starts_nothing(folder: Path, words: tuple[str, ...], what: str) -> None:
    done = run(folder, "mcp", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
    assert "defect" not in done.stderr
    assert not (folder / "started").exists()


def test_servers_are_named_by_what_they_are() -> None:
    assert server_name("mail", ["x"], None) == "mail"
    for command in (["python3.11", "x.py"], ["npx", "y"], ["/usr/bin/env", "z"]):
        with pytest.raises(ConfigError):
            server_name(None, command, None)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30), st.integers(1, 7))
def test_lines_are_cut_as_they_come_whatever_the_chunks(parts: list[bytes], bytes_max: int, size: int) -> None:
    data = b"\n".join(parts)
    chunks = iter([data[at : at + size] for at in range(0, len(data), size)])
    found = list(stdio.lines(lambda: next(chunks, b""), bytes_max))
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert [too_long for _, too_long in found] == [len(line) > bytes_max for line in expected]
    assert [line for line, _ in found] == expected


TIRED = """import json, os, subprocess, sys, time
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "tools/list":
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": []}}), flush=True)
        if sys.argv[1] == "deaf":
            os.close(0)
            time.sleep(60)
    elif message["method"] == "tools/call":
        subprocess.Popen(["sleep", "60"], start_new_session=True, stdin=subprocess.DEVNULL)
        os._exit(3)
"""


@pytest.mark.parametrize("how", ["deaf", "left a process with its output behind"])
def test_a_server_that_answers_no_more_is_not_waited_for(folder: Path, how: str) -> None:
    with Client(folder, command=(sys.executable, "-c", TIRED, how)) as client:
        client.ask({"id": 1, "method": "tools/list"})
        assert "has ended" in client.call("echo", 2, text="a")["error"]["message"]
        assert client.process.wait(20) == 1
    assert outcomes(folder) == [("unknown", "ServerGone")]


def test_a_signal_ends_it_though_the_client_does_not_read(folder: Path) -> None:
    with Client(folder) as client:
        client.ask({"id": 1, "method": "tools/list"})
        assert client.process.stdin is not None
        os.set_blocking(client.process.stdin.fileno(), False)
        line = json.dumps({"jsonrpc": "2.0", **call("nobody", 2)}).encode() + b"\n"
        with contextlib.suppress(BlockingIOError):
            while os.write(client.process.stdin.fileno(), line):
                pass
        client.process.send_signal(signal.SIGTERM)
        assert client.process.wait(20) == 128 + signal.SIGTERM
    run(folder, "audit", "verify", "audit")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_nothing_that_is_written_takes_the_place_of_a_stream_that_is_closed(folder: Path, closed: str) -> None:
    (folder / "calls").write_text(json.dumps({"jsonrpc": "2.0", **call("echo", 7, text="7!")}) + "\n")
    words = [sys.executable, "-m", "tollkeeper", "mcp", "--principal", PRINCIPAL, "--server", "plain", "--"]
    script = f'"$@" {"" if "<" in closed else "<calls"} {closed}'
    done = subprocess.run(  # noqa: S603 - the words are above
        ["/bin/sh", "-c", script, "sh", *words, sys.executable, str(SERVER)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    entries(folder)
    assert not [file for file in (folder / "audit").rglob("*") if file.is_file() and b"jsonrpc" in file.read_bytes()]


def test_an_operator_who_reads_no_more_changes_nothing(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ["mcp", "--principal", PRINCIPAL, "--server", "plain", "--", sys.executable, str(SERVER)]
    done = subprocess.run(  # noqa: S603 - the words are above
        [sys.executable, "-m", "tollkeeper", *words],
        cwd=folder,
        env=environment(),
        input=b'{"jsonrpc":"2.0","id":3,"method":"bogus"}\n{"jsonrpc":"2.0","id":4,"method":"ping"}\n',
        stdout=subprocess.PIPE,
        stderr=writer,
        check=False,
        timeout=30,
    )
    os.close(writer)
    assert done.returncode == 0
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [3, 4]


@pytest.mark.parametrize("url", ["http://[::1", "http://a:99999/", "http://a b/", "http://a/x y"])
@pytest.mark.parametrize("words", [("mcp", "--listen", "127.0.0.1:0"), ("mcp", "schema", "--server", "s")])
def test_a_url_that_is_none_is_said(folder: Path, url: str, words: tuple[str, ...]) -> None:
    done = run(folder, *words, "--principal", PRINCIPAL, "--upstream", url)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: --upstream: not a URL")


def test_a_lock_file_that_cannot_be_written_starts_nothing(folder: Path) -> None:
    for words in (
        ("mcp", "--principal", PRINCIPAL, "--server", "s", "--lock", "no/x.json", "--", "true"),
        ("mcp", "accept", "--lock", "."),
    ):
        done = run(folder, *words)
        assert done.returncode == 2
        assert "there is no such folder" in done.stderr


def test_a_client_that_does_not_read_standard_error_gets_its_answers(folder: Path) -> None:
    listed = folder / "tools.json"
    tools = [{"name": f"t{number}", "description": "x" * 3000, "inputSchema": {}} for number in range(60)]
    listed.write_text(json.dumps(tools))
    with Client(folder, "--tools", str(listed)) as client:
        client.ask({"id": 1, "method": "tools/list"})
    listed.write_text(json.dumps([{**tool, "description": "y" * 3000} for tool in tools]))
    server = [sys.executable, str(SERVER), "--tools", str(listed)]
    words = ["mcp", "--principal", PRINCIPAL, "--server", "plain", "--", *server]
    process = subprocess.Popen(  # noqa: S603 - the words are above
        [sys.executable, "-m", "tollkeeper", *words],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n')
    ready, _, _ = select.select([process.stdout], [], [], 20)
    process.kill()
    process.communicate()
    assert ready
