"""The proxy for streamable HTTP: real sockets on both sides, a gate with policies, budgets and a log behind it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import tollkeeper
from tollkeeper import Gate
from tollkeeper._native import AuditReader

aiohttp = pytest.importorskip("aiohttp")
web = pytest.importorskip("aiohttp.web")

from tollkeeper.mcp.http import HttpLimits, Proxy, Settings, UsageError  # noqa: E402 - needs aiohttp
from tollkeeper.mcp.http_headers import HeaderCheck  # noqa: E402 - with the rest
from tollkeeper.mcp.pins import Pins  # noqa: E402 - as above
from tollkeeper.mcp.screen import Screen  # noqa: E402 - as above

PRINCIPAL = 'Agent::"tester"'
POLICY = """
@id("tools") permit(principal == Agent::"tester", action in Action::"call_tool", resource == Mcp::"web");
@id("models") permit(principal, action == Action::"call_model", resource) when { context.input.max_tokens <= 100 };
@id("never") @reason("Nobody wipes anything.") forbid(principal, action == Action::"wipe", resource);
@id("few") @reason("Not this text.") forbid(principal, action == Action::"echo", resource)
when { context.input has text && context.input.text == "secret" };
@id("sure") @durability("sync") permit(principal == Agent::"tester", action == Action::"sure", resource);
"""
BUDGETS = """[budget."acme"]
limits = [
    { unit = "requests", window = "total", limit = 1000 },
    { unit = "tokens", window = "total", limit = 100000 },
    { unit = "in_flight", window = "total", limit = 500 },
]
"""
HELD = "".join(
    f"[tools.{name}]\nresource = 'Mcp::\"web\"'\ncost = {{ requests = 1, in_flight = 1 }}\n"
    for name in ("echo", "slow", "sure")
)
CONFIG = f"""[policy]
files = ["p.cedar"]
[budget]
file = "budgets.toml"
[audit]
[state]
{HELD}"""
REGION = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
TOOLS = [
    {"name": name, "description": name, "inputSchema": REGION if name == "regional" else {"type": "object"}}
    for name in ("echo", "slow", "sure", "wipe", "regional")
]
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}

Answer = Callable[[Any, dict[str, Any]], Awaitable[Any]]


def modern(method: str, number: int | str = 1, **params: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """A request that stands alone: its headers and its body."""
    headers = {**JSON, "MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    name = params.get("name", params.get("uri"))
    if name is not None:
        headers["Mcp-Name"] = name
    return headers, {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": META}}


def call(name: str, number: int | str = 1, **arguments: Any) -> tuple[dict[str, str], dict[str, Any]]:
    return modern("tools/call", number, name=name, arguments=arguments)


def result(message: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": members}, indent=1).encode()


def event(raw: bytes, number: int | None = None) -> bytes:
    lines = b"" if number is None else f"id: {number}\n".encode()
    return lines + b"event: message\n" + b"".join(b"data: " + line + b"\n" for line in raw.splitlines()) + b"\n"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        # Of what another process or a thread does there is no event.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Upstream:
    """A server that answers as the test says, and notes what it received."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], dict[str, Any] | None]] = []
        self.connections: set[Any] = set()
        self.gone = asyncio.Event()
        """Set when somebody has closed a request that was being answered."""
        self.answer: Answer = self.plain
        self.get: Callable[[Any], Awaitable[Any]] | None = None
        self.runner: Any = None
        self.url = ""

    async def handle(self, request: Any) -> Any:
        # `request.read` has a limit of its own.
        body = await request.content.read()
        message = json.loads(body) if body else None
        self.connections.add(request.transport)
        self.seen.append((request.method, dict(request.headers), message))
        try:
            if request.method == "POST":
                return await self.answer(request, message)
            if request.method == "GET" and self.get is not None:
                return await self.get(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        return web.Response(status=200 if request.method == "DELETE" else 405)

    async def plain(self, _request: Any, message: dict[str, Any]) -> Any:
        method = message.get("method")
        if method == "tools/list":
            return web.Response(body=result(message, tools=TOOLS), content_type="application/json")
        if method == "tools/call":
            arguments = message["params"].get("arguments", {})
            said = {"content": [{"type": "text", "text": json.dumps(arguments)}], "isError": False}
            return web.Response(body=result(message, **said), content_type="application/json")
        if method == "initialize":
            headers = {"Mcp-Session-Id": f"s{len(self.seen)}"}
            return web.Response(body=result(message, serverInfo={}), content_type="application/json", headers=headers)
        return web.Response(status=202)

    def calls(self) -> list[dict[str, Any]]:
        return [message for _, _, message in self.seen if message and message.get("method") == "tools/call"]

    async def start(self, port: int = 0) -> None:
        self.runner = web.ServerRunner(web.Server(self.handle, handler_cancellation=True), shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/mcp"


class Rig:
    """An upstream, a proxy in front of it, and a client."""

    def __init__(self, upstream: Upstream, gate: Gate, client: Any, folder: Path) -> None:
        self.upstream, self.gate, self.client, self.folder = upstream, gate, client, folder
        self.said: list[str] = []
        self.proxy: Proxy
        self.url = ""

    async def post(self, request: tuple[dict[str, str], Any], **more: Any) -> tuple[int, dict[str, str], bytes]:
        headers, body = request
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url, data=io.BytesIO(raw), headers={**headers, **more}) as answer:
            return answer.status, dict(answer.headers), await answer.read()

    async def listed(self) -> None:
        """Lets the proxy know the tools, as a client does that lists them first."""
        status, _, _ = await self.post(modern("tools/list", "list"))
        assert status == 200

    def held(self) -> int:
        ledger = self.gate.ledger
        assert ledger is not None
        return ledger.usage("acme")["in_flight", "total"].held

    async def settled(self) -> None:
        """Waits until nothing is held."""
        await until(lambda: not self.held())

    def outcomes(self) -> list[tuple[str, str | None]]:
        assert self.gate.log is not None
        self.gate.log.flush()
        found = [json.loads(raw) for _, raw in AuditReader(self.gate.log.folder).entries()]
        return [(each["status"], each.get("error")) for each in found if each["kind"] == "outcome"]


@contextlib.asynccontextmanager
async def rig(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    (folder / "p.cedar").write_text(POLICY)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG)
    upstream = Upstream()
    await upstream.start()
    pins = Pins(None, server="web", reached="test")
    check = HeaderCheck(pins)
    with Gate.open(folder / "tollkeeper.toml") as gate:
        async with aiohttp.ClientSession(auto_decompress=False) as client:
            made = Rig(upstream, gate, client, folder)

            def screen(session: str | None) -> Screen:
                return Screen(
                    gate,
                    principal=PRINCIPAL,
                    server="web",
                    session=session,
                    budget="acme",
                    pins=pins,
                    check_headers=check,
                    waits=False,
                    say=made.said.append,
                )

            wanted = {"upstream": upstream.url, "listen": "127.0.0.1:0", **settings}
            made.proxy = Proxy(Settings(**wanted), screen, made.said.append)
            made.url = await made.proxy.start()
            try:
                yield made
            finally:
                await made.proxy.stop()
                await upstream.runner.cleanup()


def run(folder: Path, body: Callable[[Rig], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), rig(folder, **settings) as made:
            await body(made)

    asyncio.run(whole())


# --- what goes through ------------------------------------------------------------------------------------------------


def test_a_call_goes_through_and_is_recorded(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        status, headers, raw = await made.post(call("echo", 7, text="hi"))
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "application/json")
        sent = made.upstream.calls()[0]
        assert sent["params"]["arguments"] == {"text": "hi"}
        # As the upstream wrote it, byte for byte.
        assert raw == result(sent, content=[{"type": "text", "text": '{"text": "hi"}'}], isError=False)
        await made.settled()
        assert made.outcomes() == [("ok", None)]

    run(tmp_path, body)


def test_large_messages_go_through(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        text = "x" * (3 << 20)
        status, _, raw = await made.post(call("regional", text=text))
        assert status == 200
        assert json.loads(json.loads(raw)["result"]["content"][0]["text"]) == {"text": text}
        _, headers, message = made.upstream.seen[-1]
        assert message is not None
        assert message["params"]["arguments"] == {"text": text}
        assert int(headers["Content-Length"]) > len(text)

    run(tmp_path, body)


def test_the_proxy_asks_for_the_tools_once_before_the_first_calls(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        answers = await asyncio.gather(*(made.post(call("echo", number, text=str(number))) for number in range(20)))
        assert [status for status, _, _ in answers] == [200] * 20
        lists = [headers for _, headers, message in made.upstream.seen if message and message["method"] == "tools/list"]
        assert len(lists) == 1
        assert lists[0]["Mcp-Method"] == "tools/list"
        assert "Mcp-Name" not in lists[0]

    run(tmp_path, body)


def test_a_server_that_does_not_list_its_tools_is_not_waited_for(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        async def broken(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] == "tools/list":
                return web.Response(status=500, text="no")
            return await made.upstream.plain(request, message)

        made.upstream.answer = broken
        # The configuration names one of them.
        assert json.loads((await made.post(call("echo")))[2])["result"]["isError"] is False
        assert json.loads((await made.post(call("regional")))[2])["result"]["isError"] is True

    run(tmp_path, body)


def test_connections_to_the_upstream_are_reused(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        for number in range(20):
            await made.post(call("echo", number))
        assert len(made.upstream.connections) == 1

    run(tmp_path, body)


def test_exchanges_with_the_same_id_do_not_mix(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()

        async def late(request: Any, message: dict[str, Any]) -> Any:
            await asyncio.sleep(0.001 * (message["params"]["arguments"]["n"] * 7 % 11))
            return await made.upstream.plain(request, message)

        made.upstream.answer = late
        answers = await asyncio.gather(*(made.post(call("echo", 1, n=number)) for number in range(100)))
        for number, (status, _, raw) in enumerate(answers):
            assert status == 200
            assert json.loads(json.loads(raw)["result"]["content"][0]["text"]) == {"n": number}
        await made.settled()
        assert made.outcomes() == [("ok", None)] * 100

    run(tmp_path, body)


def test_a_record_that_has_to_be_on_the_disk_is_there_before_the_call(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()
        found: list[int] = []

        async def look(request: Any, message: dict[str, Any]) -> Any:
            assert made.gate.log is not None
            found.append(made.gate.log.durable_size)
            return await made.upstream.plain(request, message)

        made.upstream.answer = look
        assert made.gate.log is not None
        made.gate.log.flush()
        before = made.gate.log.durable_size
        assert (await made.post(call("sure")))[0] == 200
        assert found[0] > before

    run(tmp_path, body)


# --- what does not ----------------------------------------------------------------------------------------------------


def test_a_denial_is_a_result_that_the_model_can_read(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        status, headers, raw = await made.post(call("echo", "a", text="secret"))
        answer = json.loads(raw)
        assert (status, headers["Content-Type"].split(";")[0], answer["id"]) == (200, "application/json", "a")
        assert answer["result"]["isError"] is True
        assert answer["result"]["resultType"] == "complete"
        assert answer["result"]["content"] == [{"type": "text", "text": "Denied (policy.forbidden): Not this text."}]
        assert answer["result"]["_meta"]["tollkeeper/code"] == "policy.forbidden"
        assert made.upstream.calls() == []
        # A client that reads streams only gets one.
        headers_, message = call("echo", "b", text="secret")
        status, headers, raw = await made.post((headers_, message), Accept="text/event-stream")
        assert (status, headers["Content-Type"]) == (200, "text/event-stream")
        data = raw.removeprefix(b"event: message\ndata: ").removesuffix(b"\n\n")
        assert json.loads(data)["result"]["isError"] is True
        assert made.held() == 0

    run(tmp_path, body)


def test_tools_that_nobody_may_call_are_hidden_and_refused(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        _, _, raw = await made.post(modern("tools/list"))
        assert [tool["name"] for tool in json.loads(raw)["result"]["tools"]] == ["echo", "slow", "sure", "regional"]
        _, _, raw = await made.post(call("wipe"))
        assert json.loads(raw)["result"]["_meta"]["tollkeeper/code"] == "policy.forbidden"
        assert made.upstream.calls() == []

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"[%s]", -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"a":1,"A":2}}}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\ud800"}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1e999}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 99 + b"]" * 99 + b"}}", -32600),
        (b'{"jsonrpc":"2.0"', -32700),
        (b"\xff", -32700),
        (b"", -32700),
    ],
)
def test_what_is_ambiguous_is_refused_before_anything_else(tmp_path: Path, raw: bytes, code: int) -> None:
    async def body(made: Rig) -> None:
        one = json.dumps(call("echo")[1]).encode()
        status, _, answer = await made.post((JSON, raw.replace(b"%s", one)))
        assert (status, json.loads(answer)["error"]["code"]) == (400, code)
        assert made.upstream.seen == []

    run(tmp_path, body)


def test_methods_that_are_not_known_do_not_pass(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        status, _, raw = await made.post(modern("tools/evil"))
        assert (status, json.loads(raw)["error"]["code"]) == (404, -32601)
        status, _, raw = await made.post((JSON, {"jsonrpc": "2.0", "id": 1, "method": "tools/evil"}))
        assert (status, json.loads(raw)["error"]["code"]) == (200, -32601)
        status, _, raw = await made.post((JSON, {"jsonrpc": "2.0", "method": "notifications/evil"}))
        assert (status, raw) == (202, b"")
        assert made.upstream.seen == []

    run(tmp_path, body)


@pytest.mark.parametrize(
    "change",
    [
        {"Mcp-Name": "wipe"},
        {"Mcp-Name": None},
        {"Mcp-Name": "=?base64?ZWNobw?="},
        {"Mcp-Method": "tools/list"},
        {"Mcp-Method": None},
        {"MCP-Protocol-Version": "2025-11-25"},
        {"MCP-Protocol-Version": None},
    ],
)
def test_headers_that_contradict_the_body_are_refused_before_policy(
    tmp_path: Path, change: dict[str, str | None]
) -> None:
    async def body(made: Rig) -> None:
        # The call itself would be denied: that it is not is what shows the order.
        headers, message = call("echo", 5, text="secret")
        headers = {name: value for name, value in ({**headers, **change}).items() if value is not None}
        status, _, raw = await made.post((headers, message))
        assert (status, json.loads(raw)["error"]["code"], json.loads(raw)["id"]) == (400, -32020, 5)
        assert made.upstream.seen == []

    run(tmp_path, body)


def test_arguments_that_are_headers_too_have_to_agree(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        for value, status in (("eu", 200), ("=?base64?ZXU=?=", 200), ("us", 400), (None, 400)):
            headers, message = call("regional", region="eu")
            given = headers if value is None else {**headers, "Mcp-Param-Region": value}
            assert (await made.post((given, message)))[0] == status, value
        headers, message = call("regional")
        assert (await made.post(({**headers, "Mcp-Param-Region": "eu"}, message)))[0] == 400
        assert len(made.upstream.calls()) == 2

    run(tmp_path, body)


async def raw_request(url: str, head: bytes, body: bytes = b"") -> bytes:
    """What no HTTP library would send."""
    host, _, port = url.removeprefix("http://").split("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_a_header_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        headers, message = call("echo")
        head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n"
        head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        for extra in (b"mcp-name: wipe\r\n", b"Mcp-Method: tools/call\r\n", b"Mcp-Param-A: 1\r\nmcp-param-a: 1\r\n"):
            answer = await raw_request(made.url, head + extra, json.dumps(message).encode())
            assert answer.startswith(b"HTTP/1.1 400 "), extra
        assert (await raw_request(made.url, head, json.dumps(message).encode())).startswith(b"HTTP/1.1 200 ")
        assert len(made.upstream.calls()) == 1

    run(tmp_path, body)


def test_only_the_path_of_the_upstream_and_three_methods_are_served(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        for method, url, status in (
            ("POST", made.url + "/other", 404),
            ("POST", made.url + "?a=1", 404),
            ("POST", made.url.replace("/mcp", "/"), 404),
            ("PUT", made.url, 405),
            ("GET", made.url, 405),
        ):
            headers, message = call("echo")
            async with made.client.request(method, url, data=json.dumps(message), headers=headers) as answer:
                assert answer.status == status, (method, url)
        assert [method for method, _, _ in made.upstream.seen] == ["GET"]

    run(tmp_path, body)


def test_bodies_that_are_not_what_they_look_like_are_refused(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        for change in (
            {"Content-Encoding": "gzip"},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/json; charset=utf-16"},
        ):
            assert (await made.post(call("echo"), **change))[0] == 415, change
        assert made.upstream.seen == []
        fine = {"Content-Type": "application/json; charset=UTF-8", "Content-Encoding": "identity"}
        assert (await made.post(call("echo"), **fine))[0] == 200

    run(tmp_path, body)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_bodies_and_headers_have_a_limit(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        status, _, raw = await made.post(call("echo", 3, text="x" * 3000))
        assert (status, json.loads(raw)["error"]["code"]) == (413, -32600)
        # Without a length, too.
        headers, message = call("echo", 3, text="x" * 3000)

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(message).encode()

        async with made.client.post(made.url, data=chunks(), headers=headers) as answer:
            assert answer.status == 413
        status, _, _ = await made.post(call("echo"), **{f"X-{number}": "x" * 90 for number in range(20)})
        assert status == 431
        assert made.upstream.seen == []

    run(tmp_path, body, limits=HttpLimits(body_bytes=2000, header_bytes=1500))


def test_a_client_that_asks_before_it_sends_is_answered(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        headers, message = call("echo")
        raw = json.dumps(message).encode()
        host, _, port = made.url.removeprefix("http://").split("/")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        given = {**headers, "Host": "localhost", "Expect": "100-continue", "Content-Length": str(len(raw))}
        writer.write(b"POST /mcp HTTP/1.1\r\n")
        writer.write("".join(f"{name}: {value}\r\n" for name, value in given.items()).encode() + b"\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(raw)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()

    run(tmp_path, body)


def test_a_word_where_nothing_was_asked_is_not_passed_on(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        async def polite(_request: Any, _message: dict[str, Any]) -> Any:
            return web.Response(status=202, text="Accepted")

        made.upstream.answer = polite
        status, _, raw = await made.post((JSON, {"jsonrpc": "2.0", "method": "notifications/initialized"}))
        assert (status, raw) == (202, b"")

    run(tmp_path, body)


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        host, _, port = made.url.removeprefix("http://").split("/")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + b"Content-Length: 100\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()

    run(tmp_path, body, limits=HttpLimits(body_seconds=0.1))


def test_answers_and_events_have_a_limit(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()

        async def large(request: Any, message: dict[str, Any]) -> Any:
            raw = result(message, content=[{"type": "text", "text": "x" * 9000}])
            if message["id"] == 1:
                return web.Response(body=raw, content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(event(raw))
            return response

        made.upstream.answer = large
        status, _, raw = await made.post(call("echo", 1))
        assert status == 502
        assert "the limit" in json.loads(raw)["error"]["message"]
        status, _, raw = await made.post(call("echo", 2))
        # The head of the stream is gone out already, so the stream says it.
        assert (status, b"xxx" in raw) == (200, False)
        answer = json.loads(raw.removeprefix(b"event: message\ndata: "))
        assert (answer["id"], answer["error"]["code"]) == (2, -1)
        assert made.held() == 0
        assert made.outcomes() == [("cancelled", "ExchangeEnded")] * 2

    run(tmp_path, body, limits=HttpLimits(answer_bytes=8000))


def test_open_exchanges_have_a_limit(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()
        go = asyncio.Event()

        async def late(request: Any, message: dict[str, Any]) -> Any:
            await go.wait()
            return await made.upstream.plain(request, message)

        made.upstream.answer = late
        open_ = [asyncio.create_task(made.post(call("echo", number))) for number in range(3)]
        await until(lambda: len(made.upstream.calls()) == 3)
        status, headers, _ = await made.post(call("echo", 9))
        assert (status, headers["Retry-After"]) == (503, "1")
        go.set()
        assert [status for status, _, _ in await asyncio.gather(*open_)] == [200] * 3
        assert (await made.post(call("echo", 9)))[0] == 200

    run(tmp_path, body, limits=HttpLimits(exchanges=3))


def test_an_upstream_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        async def silent(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] == "tools/call":
                await asyncio.sleep(30)
            return await made.upstream.plain(request, message)

        made.upstream.answer = silent
        status, _, raw = await made.post(call("echo", "late"))
        assert (status, json.loads(raw)["id"]) == (504, "late")
        assert made.held() == 0
        await asyncio.wait_for(made.upstream.gone.wait(), 5)

    run(tmp_path, body, limits=HttpLimits(first_byte_seconds=0.3))


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_goes_through_byte_for_byte_and_at_once(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()
        step = asyncio.Event()
        progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}
        parts = [
            b": ping\r\n\r\n",
            b"id: 1\r\nretry: 100\r\ndata: \r\n\r\n",
            b"event: message\r\ndata: " + json.dumps(progress).encode() + b"\r\n\r\n",
            b"data:" + json.dumps(progress, indent=2).replace("\n", "\ndata:").encode() + b"\n\n",
            b"\n",
        ]

        async def stream(request: Any, message: dict[str, Any]) -> Any:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Kept": "yes"})
            await response.prepare(request)
            for part in parts:
                # In two halves, so that nothing depends on how they arrive.
                await response.write(part[: len(part) // 2])
                await response.write(part[len(part) // 2 :])
                await step.wait()
                step.clear()
            await response.write(event(result(message, content=[])))
            return response

        made.upstream.answer = stream
        headers, message = call("slow", 4)
        async with made.client.post(made.url, data=json.dumps(message), headers=headers) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
            assert answer.headers["X-Kept"] == "yes"
            for part in parts:
                # The upstream goes on only when this has arrived: nothing waits for more.
                assert await asyncio.wait_for(answer.content.readexactly(len(part)), 5) == part
                assert made.held() == 1
                step.set()
            assert await answer.content.read() == event(result(message, content=[]))
        await made.settled()
        assert made.outcomes() == [("ok", None)]

    run(tmp_path, body)


def test_what_an_event_says_is_decided(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        async def stream(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] != "tools/list":
                return await made.upstream.plain(request, message)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'id: 1\ndata: {"jsonrpc":"2.0","method":"notifications/evil"}\n\n')
            await response.write(b'Data: {"jsonrpc":"2.0","id":9,"result":{}}\n\n')
            await response.write(b"id: 2\ndata: not json\n\n")
            await response.write(event(result(message, tools=TOOLS), 3))
            await response.write(b'data: {"jsonrpc":"2.0","id":1,"result":{"unfinished')
            return response

        made.upstream.answer = stream
        _, _, raw = await made.post(modern("tools/list"))
        # Of what is refused only the place in the stream is left; what was filtered keeps its event.
        first, second, third, rest = raw.split(b"\n\n")
        assert (first, second, rest) == (b"id: 1", b"id: 2", b"")
        head, _, data = third.partition(b"\ndata: ")
        assert head == b"id: 3\nevent: message"
        assert [tool["name"] for tool in json.loads(data)["result"]["tools"]] == ["echo", "slow", "sure", "regional"]

    run(tmp_path, body)


def test_a_model_that_the_server_may_not_ask_is_not_asked(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()
        told: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        async def stream(request: Any, message: dict[str, Any]) -> Any:
            if message.get("method") != "tools/call":
                told.set_result(message)
                return web.Response(status=202)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            params = {"messages": [], "maxTokens": 5000}
            ask = {"jsonrpc": "2.0", "id": "ask", "method": "sampling/createMessage", "params": params}
            await response.write(event(json.dumps(ask).encode(), 1))
            await told
            await response.write(event(result(message, content=[]), 2))
            return response

        made.upstream.answer = stream
        _, _, raw = await made.post(call("slow", 4))
        assert (await told)["id"] == "ask"
        assert (await told)["error"]["data"]["code"] == "policy.no_permit"
        first, second, _ = raw.split(b"\n\n")
        assert first == b"id: 1"
        assert b"sampling" not in raw
        assert b'"id": 4' in second

    run(tmp_path, body)


def test_a_client_that_goes_away_ends_the_call(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()

        async def endless(request: Any, message: dict[str, Any]) -> Any:
            if message["params"]["name"] == "echo":
                await asyncio.sleep(60)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b": begun\n\n")
            await asyncio.sleep(60)
            return response

        made.upstream.answer = endless
        for name in ("slow", "echo"):
            headers, message = call(name)
            task = asyncio.create_task(made.post((headers, message)))
            await until(lambda: made.held() == 1 and len(made.upstream.calls()) == len(made.outcomes()) + 1)
            made.upstream.gone.clear()
            task.cancel()
            await asyncio.wait_for(made.upstream.gone.wait(), 5)
            await made.settled()
        assert made.outcomes() == [("cancelled", "ExchangeEnded")] * 2

    run(tmp_path, body)


def test_nothing_is_left_of_clients_that_come_and_go(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()
        chance = random.Random(7)  # noqa: S311 - the same on every run

        async def odd(request: Any, message: dict[str, Any]) -> Any:
            await asyncio.sleep(chance.random() / 50)
            if chance.random() < 0.1:
                request.transport.abort()
            if chance.random() < 0.5:
                return await made.upstream.plain(request, message)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for _ in range(3):
                await response.write(b": on its way\n\n")
                await asyncio.sleep(chance.random() / 100)
            await response.write(event(result(message, content=[])))
            return response

        async def comes_and_goes(number: int) -> None:
            with contextlib.suppress(TimeoutError):
                # Some stay, however slow the machine is.
                async with asyncio.timeout(None if number % 4 == 0 else chance.random() / 10):
                    await made.post(call(chance.choice(["echo", "slow", "wipe"]), number % 7))

        made.upstream.answer = odd
        for wave in range(6):
            await asyncio.gather(*(comes_and_goes(wave + number) for number in range(50)))
        await until(lambda: not made.proxy._exchanges and not made.held())
        screen = made.proxy._sessions.alone.screen
        assert not list(screen._client.pending.pop_all())
        assert made.proxy._sessions.alone.open == 0
        outcomes = {status for status, _ in made.outcomes()}
        assert outcomes == {"ok", "cancelled"}
        assert (await made.post(call("echo")))[0] in {200, 502}

    run(tmp_path, body)


def test_an_upstream_that_dies_in_a_stream_is_said_and_ends_the_call(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()

        async def dies(request: Any, message: dict[str, Any]) -> Any:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b": begun\n\n")
            await asyncio.sleep(0.05)
            if message["id"] == 2:
                return response
            request.transport.abort()
            return response

        made.upstream.answer = dies
        for number, words in ((1, "broke off"), (2, "ended its answer unfinished")):
            status, _, raw = await made.post(call("slow", number))
            assert status == 200
            answer = json.loads(raw.removeprefix(b": begun\n\nevent: message\ndata: "))
            assert (answer["id"], answer["error"]["code"]) == (number, -1)
            assert words in answer["error"]["message"]
            await made.settled()
        assert made.outcomes() == [("cancelled", "ExchangeEnded")] * 2

    run(tmp_path, body)


def test_an_upstream_that_is_dead_is_said(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()
        port = int(made.upstream.url.split(":")[2].split("/")[0])
        await made.upstream.runner.cleanup()
        status, _, raw = await made.post(call("slow", "x"))
        answer = json.loads(raw)
        assert (status, answer["id"], answer["error"]["code"]) == (502, "x", -1)
        assert "cannot be reached" in answer["error"]["message"]
        assert made.held() == 0
        assert any("upstream cannot be used" in line for line in made.said)
        # And once it is back, it is used.
        await made.upstream.start(port)
        assert (await made.post(call("slow", "y")))[0] == 200

    run(tmp_path, body)


# --- sessions ---------------------------------------------------------------------------------------------------------

INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}


async def initialized(made: Rig) -> dict[str, str]:
    """Headers of a new session."""
    status, headers, _ = await made.post((JSON, INITIALIZE))
    assert status == 200
    return {**JSON, "Mcp-Session-Id": headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}


def old_call(name: str, number: int | str = 1, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def test_sessions_begin_and_end(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        one, two = await initialized(made), await initialized(made)
        assert one["Mcp-Session-Id"] != two["Mcp-Session-Id"]
        answers = await asyncio.gather(*(made.post((each, old_call("echo", 1))) for each in (one, two) * 5))
        # The same id twice in a session is the client's mistake, and only there.
        assert {status for status, _, _ in answers} == {200}
        assert "resultType" not in json.loads((await made.post((one, old_call("wipe"))))[2])["result"]
        async with made.client.delete(made.url, headers=one) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        assert (await made.post((one, old_call("echo"))))[0] == 404
        assert (await made.post((two, old_call("echo", 2))))[0] == 200
        status, _, raw = await made.post(({**JSON, "Mcp-Session-Id": "made-up"}, old_call("echo")))
        assert (status, "not open" in json.loads(raw)["error"]["message"]) == (404, True)

    run(tmp_path, body)


def test_the_session_that_was_idle_for_longest_makes_room(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        one, two = await initialized(made), await initialized(made)
        assert (await made.post((one, old_call("echo"))))[0] == 200
        three = await initialized(made)
        statuses = [(await made.post((each, old_call("echo", 9))))[0] for each in (one, two, three)]
        assert statuses == [200, 404, 200]

        async def late(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] == "tools/call":
                await asyncio.sleep(60)
            return await made.upstream.plain(request, message)

        made.upstream.answer = late
        open_ = [asyncio.create_task(made.post((each, old_call("echo", "late")))) for each in (one, three)]
        await until(lambda: made.held() == 2)
        status, headers, _ = await made.post((JSON, INITIALIZE))
        assert (status, headers["Retry-After"]) == (503, "5")
        for task in open_:
            task.cancel()
        await made.settled()

    run(tmp_path, body, limits=HttpLimits(sessions=2))


def test_an_answer_may_come_on_a_later_stream_of_the_session(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        headers = await initialized(made)

        async def leaves(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] != "tools/call":
                return await made.upstream.plain(request, message)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"id: 1\nretry: 10\ndata:\n\n")
            return response

        async def rest(request: Any) -> Any:
            assert request.headers["Last-Event-ID"] == "1"
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(event(result(old_call("slow", 5), content=[]), 2))
            return response

        made.upstream.answer, made.upstream.get = leaves, rest
        status, _, raw = await made.post((headers, old_call("slow", 5)))
        # Nothing is made up: the client knows that it can come back.
        assert (status, raw, made.held()) == (200, b"id: 1\nretry: 10\ndata:\n\n", 1)
        async with made.client.get(made.url, headers={**headers, "Last-Event-ID": "1"}) as answer:
            assert await answer.read() == event(result(old_call("slow", 5), content=[]), 2)
        assert made.held() == 0
        assert made.outcomes() == [("ok", None)]

    run(tmp_path, body)


def test_what_a_server_asks_on_a_stream_of_its_own_may_be_answered_later(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        headers = await initialized(made)
        params = {"messages": [], "maxTokens": 50}
        ask = json.dumps({"jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage", "params": params}).encode()

        async def asks(request: Any) -> Any:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(event(ask, 1))
            return response

        made.upstream.get = asks
        async with made.client.get(made.url, headers={**headers, "Accept": "text/event-stream"}) as answer:
            raw = await answer.read()
        assert json.loads(raw.split(b"data: ")[1]) == json.loads(ask)
        tokens = made.gate.ledger
        assert tokens is not None
        assert tokens.usage("acme")["tokens", "total"].held > 0
        reply = {"jsonrpc": "2.0", "id": "q", "result": {"role": "assistant", "content": {"type": "text", "text": "x"}}}
        assert (await made.post((headers, reply)))[0] == 202
        assert made.upstream.seen[-1][2] == reply
        assert tokens.usage("acme")["tokens", "total"].held == 0

    run(tmp_path, body)


def test_a_session_that_ends_ends_what_is_held_in_it(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        headers = await initialized(made)

        async def leaves(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] != "tools/call":
                return await made.upstream.plain(request, message)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"id: 1\ndata:\n\n")
            return response

        made.upstream.answer = leaves
        for number in range(3):
            await made.post((headers, old_call("slow", number)))
        # One more than are remembered: the oldest has ended.
        assert made.held() == 2
        async with made.client.delete(made.url, headers=headers) as answer:
            assert answer.status == 200
        assert made.held() == 0
        assert made.outcomes() == [("cancelled", "ExchangeEnded"), *[("unknown", "ProxyClosed")] * 2]

    run(tmp_path, body, limits=HttpLimits(unanswered=2))


# --- who may come in, and what is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://app.example"}, 200),
        ({"Origin": "https://app.example:444"}, 403),
    ],
)
def test_pages_of_other_sites_are_kept_out(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async def body(made: Rig) -> None:
        assert (await made.post(call("echo"), **headers))[0] == status
        assert bool(made.upstream.seen) == (status == 200)
        assert all("Origin" not in seen for _, seen, _ in made.upstream.seen)

    run(tmp_path, body, allow_origins=("https://app.example/",))


def test_tokens_let_in_and_go_no_further(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# ours\n0123456789abcdef\n\nfedcba9876543210\n")

    async def body(made: Rig) -> None:
        status, headers, _ = await made.post(call("echo"))
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="tollkeeper"')
        for wrong in ("Bearer 0123456789abcdeg", "Basic 0123456789abcdef", "Bearer", "0123456789abcdef"):
            status, headers, _ = await made.post(call("echo"), Authorization=wrong)
            assert (status, "invalid_token" in headers["WWW-Authenticate"]) == (401, True)
        assert made.upstream.seen == []
        for right in ("Bearer 0123456789abcdef", "bearer fedcba9876543210"):
            assert (await made.post(call("echo"), Authorization=right))[0] == 200
        assert all("Authorization" not in headers for _, headers, _ in made.upstream.seen)

    run(tmp_path, body, token_file=file)


def test_credentials_go_on_only_where_that_is_meant(tmp_path: Path) -> None:
    async def wants(request: Any, message: dict[str, Any]) -> Any:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        body = result(message, content=[])
        return web.Response(body=body, content_type="application/json", headers={"Set-Cookie": "a=b"})

    async def dropped(made: Rig) -> None:
        made.upstream.answer = wants
        for _ in range(2):
            status, headers, raw = await made.post(modern("ping"), Authorization="Bearer upstream's", Cookie="c=d")
            assert (status, "WWW-Authenticate" in headers) == (502, False)
            assert "credentials" in json.loads(raw)["error"]["message"]
        assert not {"Authorization", "Cookie"} & set(made.upstream.seen[0][1])
        assert len([line for line in made.said if "--forward-authorization" in line]) == 2, "each once"

    async def forwarded(made: Rig) -> None:
        made.upstream.answer = wants
        status, headers, _ = await made.post(modern("ping"))
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        status, headers, _ = await made.post(modern("ping"), Authorization="Bearer upstream's", Cookie="c=d")
        assert (status, headers["Set-Cookie"]) == (200, "a=b")
        assert made.upstream.seen[1][1]["Authorization"] == "Bearer upstream's"

    for name, body, forward in (("a", dropped, False), ("b", forwarded, True)):
        folder = tmp_path / name
        folder.mkdir()
        run(folder, body, forward_authorization=forward)


def test_what_speaks_of_one_connection_stays_there(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        async def answer(_request: Any, message: dict[str, Any]) -> Any:
            headers = {"X-Kept": "1", "X-Hop": "2", "Connection": "X-Hop", "Keep-Alive": "timeout=9"}
            return web.Response(body=result(message), content_type="application/json", headers=headers)

        made.upstream.answer = answer
        hops = {"Connection": "X-Mine, keep-alive", "X-Mine": "1", "X-Theirs": "2", "TE": "trailers"}
        more = {"X-Forwarded-For": "1.2.3.4", "Accept-Encoding": "gzip, br"}
        status, headers, _ = await made.post(modern("ping"), **hops, **more)
        seen = made.upstream.seen[0][1]
        assert status == 200
        assert (headers["X-Kept"], seen["X-Theirs"], seen["Accept-Encoding"]) == ("1", "2", "identity")
        assert not {"X-Hop", "Keep-Alive"} & set(headers)
        assert not {"X-Mine", "TE", "X-Forwarded-For"} & set(seen)
        assert seen["Host"] in made.upstream.url

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("status", "headers", "answered", "words"),
    [
        (302, {"Location": "http://127.0.0.1:1/"}, 502, "redirects are not followed"),
        (200, {"Content-Encoding": "gzip", "Content-Type": "application/json"}, 502, "compressed"),
        (200, {"Content-Type": "text/html"}, 502, "text/html"),
        (200, {"Content-Type": "application/json"}, 200, "answered 200"),
        (429, {"Content-Type": "text/plain", "Retry-After": "7"}, 429, "answered 429: {"),
    ],
)
def test_answers_that_cannot_be_screened_do_not_pass(
    tmp_path: Path, status: int, headers: dict[str, str], answered: int, words: str
) -> None:
    async def body(made: Rig) -> None:
        await made.listed()

        async def odd(_request: Any, _message: dict[str, Any]) -> Any:
            # An answer to another request than this, whichever way it is dressed.
            raw = b'{"jsonrpc":"2.0","id":99,"result":{}}'
            return web.Response(status=status, body=raw, headers=headers)

        made.upstream.answer = odd
        found, given, raw = await made.post(call("slow", 1))
        assert found == answered
        answer = json.loads(raw)
        assert answer["id"] == 1
        assert words in answer["error"]["message"]
        assert given.get("Retry-After") == headers.get("Retry-After")
        assert made.held() == 0

    run(tmp_path, body)


def test_a_defect_of_the_proxy_lets_nothing_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(made: Rig) -> None:
        def broken(*_: object, **__: object) -> None:
            message = "a defect"
            raise RuntimeError(message)

        await made.listed()
        with monkeypatch.context() as patched:
            patched.setattr(Screen, "from_client", broken)
            status, _, raw = await made.post(call("echo"))
            assert (status, "internal.panic" in json.loads(raw)["error"]["message"]) == (500, True)
        with monkeypatch.context() as patched:
            patched.setattr(Screen, "from_server", broken)
            status, _, raw = await made.post(call("echo"))
            assert (status, b"content" in raw) == (500, False)
        assert len(made.upstream.calls()) == 1
        assert (await made.post(call("echo")))[0] == 200

    run(tmp_path, body)


# --- settings, and the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"listen": "0.0.0.0:0"}, "--allow-remote"),
        ({"listen": "10.0.0.1:80"}, "--allow-remote"),
        ({"listen": "localhost"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"upstream": "ftp://127.0.0.1/"}, "--upstream"),
        ({"upstream": "http:///mcp"}, "--upstream"),
        ({"upstream": "http://user:pass@127.0.0.1/mcp"}, "--upstream"),
        ({"token_file": Path("missing")}, "^--token-file missing: no such file or directory$"),
        ({"token_file": Path("tokens"), "forward_authorization": True}, "exclude each other"),
        ({"token_file": Path("tokens")}, "at least 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").write_text("short\n")
    wanted = {"upstream": "http://127.0.0.1:1/mcp", "listen": "127.0.0.1:0", **settings}
    with pytest.raises(UsageError, match=words):
        Proxy(Settings(**wanted), lambda _: pytest.fail("no screen is made"))


def test_an_address_that_others_reach_is_said_to_be_open(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "tokens"
    file.write_text("0123456789abcdef\n")
    for token_file, lines in ((None, 1), (file, 1)):
        wanted = Settings(upstream="http://127.0.0.1:1/", listen="0.0.0.0:0", allow_remote=True, token_file=token_file)
        Proxy(wanted, lambda _: pytest.fail("no screen is made"), said.append)
        assert len(said) == lines
    assert "--token-file" in said[0]


@contextlib.contextmanager
def command(folder: Path, upstream: str) -> Any:
    """`tollkeeper mcp --upstream` in a process of its own; the process and its URL."""
    (folder / "p.cedar").write_text(POLICY)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG)
    words = ["mcp", "--upstream", upstream, "--listen", "127.0.0.1:0", "--principal", PRINCIPAL]
    words += ["--server", "web", "--budget", "acme"]
    environment = {**os.environ, "PYTHONPATH": str(Path(tollkeeper.__file__).parent.parent)}
    log = folder / "stderr"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - the words are above
            [sys.executable, "-m", "tollkeeper", *words], cwd=folder, env=environment, stderr=stream
        )
    try:
        end = time.monotonic() + 30
        while "listening on " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        yield process, log.read_text().split("listening on ")[1].split(",")[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_the_command_stops_soon_and_settles(tmp_path: Path) -> None:
    async def body() -> None:
        upstream = Upstream()
        await upstream.start()

        async def endless(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] != "tools/call":
                return await upstream.plain(request, message)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b": begun\n\n")
            await asyncio.sleep(60)
            return response

        upstream.answer = endless
        with command(tmp_path, upstream.url) as (process, url):
            async with aiohttp.ClientSession() as client:
                headers, message = call("slow")
                async with client.post(url, data=json.dumps(message), headers=headers) as answer:
                    assert await answer.content.readexactly(9) == b": begun\n\n"
                    process.send_signal(signal.SIGTERM)
                    begun = time.monotonic()
                    while process.poll() is None:
                        await asyncio.sleep(0.02)
                        assert time.monotonic() < begun + 15
            await asyncio.wait_for(upstream.gone.wait(), 5)
            assert process.returncode == 0, (tmp_path / "stderr").read_text()
        await upstream.runner.cleanup()

    asyncio.run(body())
    found = [json.loads(raw) for _, raw in AuditReader(tmp_path / "audit" / "0").entries()]
    assert [each["status"] for each in found if each["kind"] == "outcome"] == ["cancelled"]
    assert [each["kind"] for each in found][-1] == "stop"


# --- the SDK's server -------------------------------------------------------------------------------------------------


@pytest.fixture
def sdk_server(tmp_path: Path) -> Any:
    """The fixture server of the conformance suite, on the official SDK; its URL."""
    python = os.environ.get("TOLLKEEPER_HOSTS_PYTHON") or ".venv-hosts/bin/python"
    if not Path(python).exists():
        pytest.skip("no environment with the MCP SDK: TOLLKEEPER_HOSTS_PYTHON names its interpreter")
    if subprocess.run([python, "-c", "import mcp.server.lowlevel"], check=False, capture_output=True).returncode:  # noqa: S603 - as above
        pytest.skip("the MCP SDK is not installed where TOLLKEEPER_HOSTS_PYTHON points to")
    ready = tmp_path / "ready"
    server = Path(__file__).with_name("conformance_server.py")
    process = subprocess.Popen([python, "-W", "ignore", str(server), "--ready", str(ready)])  # noqa: S603 - as above
    try:
        end = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"http://127.0.0.1:{ready.read_text().strip()}/mcp"
    finally:
        process.terminate()
        process.wait(10)


def test_the_sdks_server_behind_the_command(tmp_path: Path, sdk_server: str) -> None:
    async def post(client: Any, url: str, headers: dict[str, str], message: dict[str, Any]) -> tuple[Any, bytes]:
        async with client.post(url, data=json.dumps(message), headers=headers) as answer:
            return answer, await answer.read()

    async def body(url: str) -> None:
        async with aiohttp.ClientSession() as client:
            # 2026-07-28: a request that stands alone.
            answer, raw = await post(client, url, *call("test_simple_text", 1))
            assert (answer.status, json.loads(raw)["result"]["isError"]) == (200, False)
            # 2025-11-25: a session, and a call that outlives its stream.
            params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            answer, _ = await post(client, url, JSON, {**INITIALIZE, "params": params})
            session = {**JSON, "Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
            session["MCP-Protocol-Version"] = "2025-11-25"
            answer, _ = await post(client, url, session, {"jsonrpc": "2.0", "method": "notifications/initialized"})
            assert answer.status == 202
            _, raw = await post(client, url, session, old_call("test_reconnection", 8))
            assert b'"result"' not in raw
            place = [line for line in raw.splitlines() if line.startswith(b"id: ")][-1].removeprefix(b"id: ").decode()
            headers = {**session, "Accept": "text/event-stream", "Last-Event-ID": place}
            async with client.get(url, headers=headers) as stream:
                seen = b""
                while b"outlived" not in seen:
                    seen += await asyncio.wait_for(stream.content.readany(), 10)

    with command(tmp_path, sdk_server) as (process, url):
        asyncio.run(body(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    found = [json.loads(raw) for _, raw in AuditReader(tmp_path / "audit" / "0").entries()]
    assert [each["status"] for each in found if each["kind"] == "outcome"] == ["ok", "ok"]


def test_a_stream_is_what_was_screened_whatever_charset_it_claims(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        await made.listed()

        async def otherwise(request: Any, message: dict[str, Any]) -> Any:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-7"})
            await response.prepare(request)
            await response.write(event(result(message, content=[])))
            return response

        made.upstream.answer = otherwise
        status, headers, _ = await made.post(call("echo"))
        assert (status, headers["Content-Type"]) == (200, "text/event-stream")

    run(tmp_path, body)


def test_a_list_without_an_end_is_not_waited_for(tmp_path: Path) -> None:
    async def body(made: Rig) -> None:
        async def endless(request: Any, message: dict[str, Any]) -> Any:
            if message["method"] == "tools/list":
                await asyncio.sleep(0.05)
                more = result(message, tools=TOOLS, nextCursor="again")
                return web.Response(body=more, content_type="application/json")
            return await made.upstream.plain(request, message)

        made.upstream.answer = endless
        status, _, raw = await made.post(call("echo", text="a"))
        assert status == 200
        assert json.loads(raw)["result"]["isError"] is False
        assert any("did not list its tools" in line for line in made.said)

    run(tmp_path, body, limits=HttpLimits(list_seconds=0.5))
