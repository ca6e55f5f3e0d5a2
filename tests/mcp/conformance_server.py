"""The server that the public conformance suite talks to: every fixture that it names, on the official SDK.

A program, run with the interpreter of an environment that has the package `mcp` 2.3:
`python conformance_server.py --port 0 --ready FILE` writes the port that it got to FILE. It serves both revisions of
streamable HTTP at `/mcp`. It is written on the SDK's low-level server, so that what goes over the wire is to be read
here. It guards nothing and knows nothing of Tollkeeper: it is what the proxy is put in front of.
"""

import argparse
import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageRequest,
    CreateMessageResult,
    JSONRPCMessage,
    RequestParams,
    SetLevelRequestParams,
)

Context = ServerRequestContext[Any, Any]
Wire = dict[str, Any]

NAME = "tollkeeper-conformance"
LISTS = ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
MISSING_CAPABILITY = -32021
INVALID_PARAMS = -32602
# A pixel, and a RIFF file without samples.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
# How long a client that was sent away waits before it comes back.
RETRY_MS = 100
STEP_SECONDS = 0.05

NAME_FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
COLOR_FORM = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}
CONFIRM_FORM = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
ANSWER_FORM = {"type": "object", "properties": {"response": {"type": "string"}}, "required": ["response"]}
DEFAULTS_FORM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}
ENUMS_FORM = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {
            "type": "string",
            "oneOf": [{"const": "value1", "title": "First"}, {"const": "value2", "title": "Second"}],
        },
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option 1", "Option 2"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
        "titledMulti": {
            "type": "array",
            "items": {"anyOf": [{"const": "value1", "title": "First"}, {"const": "value2", "title": "Second"}]},
        },
    },
}
# The keywords that the suite wants to see unchanged.
SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


class Events(EventStore):
    """What was sent on each stream, so that a client that comes back is told the rest."""

    def __init__(self) -> None:
        self._sent: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keeps it; its id is its place."""
        self._sent.append((stream_id, message))
        return str(len(self._sent) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Sends what came later on the same stream."""
        last = int(last_event_id) if last_event_id.isdecimal() else len(self._sent)
        if last >= len(self._sent):
            return None
        stream = self._sent[last][0]
        for place, (name, message) in enumerate(self._sent[last + 1 :], last + 1):
            if name == stream and message is not None:
                await send_callback(EventMessage(message, str(place)))
        return stream


# --- what tools return ------------------------------------------------------------------------------------------------


def text(value: str) -> Wire:
    return {"type": "text", "text": value}


def said(*content: Wire, error: bool = False) -> Wire:
    return {"content": list(content), "isError": error}


def image() -> Wire:
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def embedded(uri: str, kind: str, value: str) -> Wire:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": value}}


def asked(state: str | None = None, **requests: Wire) -> Wire:
    """Not finished: the client is to answer these and call again."""
    again: Wire = {"resultType": "input_required", "inputRequests": requests}
    return again if state is None else again | {"requestState": state}


def form(message: str, schema: Wire) -> Wire:
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    }


def sample(prompt: str, tokens: int) -> Wire:
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


ROOTS: Wire = {"method": "roots/list"}


class Tool(NamedTuple):
    """A tool as it is listed, and what it does with its context and its parameters as they came."""

    description: str
    run: Callable[[Context, Mapping[str, Any]], Awaitable[Wire]]
    schema: Wire


TOOLS: dict[str, Tool] = {}
BUS = InMemorySubscriptionBus()


def tool(
    description: str, schema: Wire | None = None, name: str | None = None
) -> Callable[[Callable[[Context, Mapping[str, Any]], Awaitable[Wire]]], None]:
    """Lists the function below as a tool of its name, with the suite's prefix."""

    def listed(run: Callable[[Context, Mapping[str, Any]], Awaitable[Wire]]) -> None:
        TOOLS[name or f"test_{run.__name__}"] = Tool(description, run, schema or {"type": "object", "properties": {}})

    return listed


def answers(params: Mapping[str, Any]) -> Mapping[str, Any]:
    found = params.get("inputResponses")
    return found if isinstance(found, Mapping) else {}


def filled(answer: object, field: str) -> str | None:
    """What a form's field was filled with; `None` if it was not."""
    content = answer.get("content") if isinstance(answer, Mapping) else None
    value = content.get(field) if isinstance(content, Mapping) else None
    return value if isinstance(value, str) else None


# --- plain results ----------------------------------------------------------------------------------------------------


@tool("Says one line of text")
async def simple_text(_context: Context, _params: Mapping[str, Any]) -> Wire:
    return said(text("This is a simple text response for testing."))


@tool("Shows a picture")
async def image_content(_context: Context, _params: Mapping[str, Any]) -> Wire:
    return said(image())


@tool("Plays nothing")
async def audio_content(_context: Context, _params: Mapping[str, Any]) -> Wire:
    return said({"type": "audio", "data": WAV, "mimeType": "audio/wav"})


@tool("Gives a resource inside its result")
async def embedded_resource(_context: Context, _params: Mapping[str, Any]) -> Wire:
    return said(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content."))


@tool("Gives text, a picture and a resource")
async def multiple_content_types(_context: Context, _params: Mapping[str, Any]) -> Wire:
    resource = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return said(text("Multiple content types test:"), image(), resource)


@tool("Fails")
async def error_handling(_context: Context, _params: Mapping[str, Any]) -> Wire:
    return said(text("This tool intentionally returns an error for testing"), error=True)


@tool("Has a schema with many keywords", SCHEMA_2020_12, name="json_schema_2020_12_tool")
async def json_schema_2020_12_tool(_context: Context, params: Mapping[str, Any]) -> Wire:
    return said(text(json.dumps(params.get("arguments") or {})))


@tool(
    "Has an argument that is also a header",
    {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
)
async def x_mcp_header(_context: Context, params: Mapping[str, Any]) -> Wire:
    return said(text(f"region={(params.get('arguments') or {}).get('region')}"))


@tool("Needs a client that can sample")
async def missing_capability(context: Context, _params: Mapping[str, Any]) -> Wire:
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        message = "the client cannot sample"
        raise MCPError(MISSING_CAPABILITY, message, {"requiredCapabilities": {"sampling": {}}})
    return said(text("The client can sample."))


# --- what is told on the way ------------------------------------------------------------------------------------------


async def log(context: Context, message: str) -> None:
    await context.session.send_log_message("info", message, related_request_id=context.request_id)


@tool("Writes three lines of log")
async def tool_with_logging(context: Context, _params: Mapping[str, Any]) -> Wire:
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await log(context, line)
        await asyncio.sleep(STEP_SECONDS)
    return said(text("Three lines were logged."))


@tool("Writes a line of log")
async def logging_tool(context: Context, _params: Mapping[str, Any]) -> Wire:
    # To a client of the newer revision only if it has asked for logs: the SDK sees to that.
    await log(context, "Tool execution started")
    return said(text("A line was logged."))


@tool("Reports progress")
async def tool_with_progress(context: Context, _params: Mapping[str, Any]) -> Wire:
    for step in (0, 50, 100):
        await context.session.report_progress(step, 100, f"Completed step {step} of 100")
        await asyncio.sleep(STEP_SECONDS)
    return said(text("Done."))


@tool("Closes the stream of its call and ends on the next one")
async def reconnection(context: Context, _params: Mapping[str, Any]) -> Wire:
    await log(context, "before the stream is closed")
    if context.close_sse_stream is not None:
        await context.close_sse_stream()
    await asyncio.sleep(2 * RETRY_MS / 1000)
    return said(text("The call outlived its stream."))


@tool("Changes the list of tools")
async def trigger_tool_change(_context: Context, _params: Mapping[str, Any]) -> Wire:
    await BUS.publish(ToolsListChanged())
    return said(text("Told everybody who listens."))


@tool("Changes the list of prompts")
async def trigger_prompt_change(_context: Context, _params: Mapping[str, Any]) -> Wire:
    await BUS.publish(PromptsListChanged())
    return said(text("Told everybody who listens."))


# --- what the server asks the client, in the revision with a way back -------------------------------------------------


@tool(
    "Asks the client's model",
    {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
)
async def sampling(context: Context, params: Mapping[str, Any]) -> Wire:
    request = CreateMessageRequest.model_validate(sample(params["arguments"]["prompt"], 100))
    related = ServerMessageMetadata(related_request_id=context.request_id)
    answer = await context.session.send_request(request, CreateMessageResult, metadata=related)
    return said(text(f"LLM response: {getattr(answer.content, 'text', '')}"))


async def elicited(context: Context, message: str, schema: Wire) -> Wire:
    answer = await context.session.elicit_form(message, schema, context.request_id)
    return said(text(f"action={answer.action}, content={json.dumps(answer.content)}"))


@tool(
    "Asks the user",
    {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]},
)
async def elicitation(context: Context, params: Mapping[str, Any]) -> Wire:
    return await elicited(context, params["arguments"]["message"], ANSWER_FORM)


@tool("Asks with defaults")
async def elicitation_sep1034_defaults(context: Context, _params: Mapping[str, Any]) -> Wire:
    return await elicited(context, "Please look over these", DEFAULTS_FORM)


@tool("Asks with choices")
async def elicitation_sep1330_enums(context: Context, _params: Mapping[str, Any]) -> Wire:
    return await elicited(context, "Please choose", ENUMS_FORM)


# --- the same in several rounds, in the revision without --------------------------------------------------------------


@tool("Asks for a name")
async def input_required_result_elicitation(_context: Context, params: Mapping[str, Any]) -> Wire:
    name = filled(answers(params).get("user_name"), "name")
    return said(text(f"Hello, {name}!")) if name else asked(user_name=form("What is your name?", NAME_FORM))


@tool("Reports progress and then asks for a name")
async def streaming_elicitation(context: Context, params: Mapping[str, Any]) -> Wire:
    await context.session.report_progress(0, 1, "about to ask")
    name = filled(answers(params).get("user_name"), "name")
    return said(text(f"Hello, {name}!")) if name else asked(user_name=form("What is your name?", NAME_FORM))


@tool("Asks the client's model")
async def input_required_result_sampling(_context: Context, params: Mapping[str, Any]) -> Wire:
    answer = answers(params).get("capital_question")
    if isinstance(answer, Mapping):
        return said(text(f"The model said: {answer.get('content')}"))
    return asked(capital_question=sample("What is the capital of France?", 100))


@tool("Asks for the client's roots")
async def input_required_result_list_roots(_context: Context, params: Mapping[str, Any]) -> Wire:
    answer = answers(params).get("client_roots")
    if isinstance(answer, Mapping):
        return said(text(f"{len(answer.get('roots', []))} roots"))
    return asked(client_roots=ROOTS)


@tool("Gives the client something to carry")
async def input_required_result_request_state(_context: Context, params: Mapping[str, Any]) -> Wire:
    if "confirm" in answers(params) and params.get("requestState") == "carried":
        return said(text("state-ok"))
    return asked("carried", confirm=form("Please confirm", CONFIRM_FORM))


@tool("Asks for three things at once")
async def input_required_result_multiple_inputs(_context: Context, params: Mapping[str, Any]) -> Wire:
    if {"user_name", "greeting", "client_roots"} <= answers(params).keys():
        return said(text("Everything has come."))
    return asked(
        "three",
        user_name=form("What is your name?", NAME_FORM),
        greeting=sample("Generate a greeting", 50),
        client_roots=ROOTS,
    )


@tool("Asks twice")
async def input_required_result_multi_round(_context: Context, params: Mapping[str, Any]) -> Wire:
    state = params.get("requestState")
    if state is not None:
        name = json.loads(state).get("name")
        first = filled(answers(params).get("step1"), "name")
        color = filled(answers(params).get("step2"), "color")
        if name and color:
            return said(text(f"{name} likes {color}."))
        if first:
            return asked(json.dumps({"name": first}), step2=form("What is your favorite color?", COLOR_FORM))
    return asked(json.dumps({"name": None}), step1=form("What is your name?", NAME_FORM))


@tool("Refuses state that it did not give")
async def input_required_result_tampered_state(_context: Context, params: Mapping[str, Any]) -> Wire:
    # What was tampered with never comes here: the middleware refuses it.
    if params.get("requestState") == "mine":
        return said(text("state-ok"))
    return asked("mine", confirm=form("Please confirm", CONFIRM_FORM))


@tool("Asks for what the client can do")
async def input_required_result_capabilities(context: Context, _params: Mapping[str, Any]) -> Wire:
    can = context.session.client_capabilities
    requests: dict[str, Wire] = {}
    if can is None or can.sampling is not None:
        requests["sample"] = sample("Say hello", 50)
    if can is None or can.elicitation is not None:
        requests["ask"] = form("What is your name?", NAME_FORM)
    return asked("gated", **requests)


# --- resources, prompts and the rest ----------------------------------------------------------------------------------

PROMPTS: dict[str, list[str]] = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}
TEMPLATE = ("test://template/", "/data")


async def list_tools(_context: Context, _params: object) -> Wire:
    return {
        "tools": [
            {"name": name, "description": each.description, "inputSchema": each.schema} for name, each in TOOLS.items()
        ]
    }


async def call_tool(context: Context, params: Any) -> Wire:
    found = TOOLS.get(params.name)
    if found is None:
        # As the SDK's own servers answer, and as a gate does that knows no such tool.
        return said(text(f"Unknown tool: {params.name}"), error=True)
    return await found.run(context, context.params or {})


async def list_resources(_context: Context, _params: object) -> Wire:
    names = {"static-text": "text/plain", "static-binary": "image/png", "watched-resource": "text/plain"}
    return {"resources": [{"uri": f"test://{name}", "name": name, "mimeType": kind} for name, kind in names.items()]}


async def list_templates(_context: Context, _params: object) -> Wire:
    template = {"uriTemplate": "test://template/{id}/data", "name": "template", "mimeType": "application/json"}
    return {"resourceTemplates": [template]}


async def read_resource(_context: Context, params: Any) -> Wire:
    uri = str(params.uri)
    if uri == "test://static-binary":
        return {"contents": [{"uri": uri, "mimeType": "image/png", "blob": PNG}]}
    if uri.startswith(TEMPLATE[0]) and uri.endswith(TEMPLATE[1]):
        name = uri.removeprefix(TEMPLATE[0]).removesuffix(TEMPLATE[1])
        value = json.dumps({"id": name, "templateTest": True, "data": f"Data for ID: {name}"})
        return {"contents": [{"uri": uri, "mimeType": "application/json", "text": value}]}
    if uri in {"test://static-text", "test://watched-resource"}:
        value = "This is the content of the static text resource."
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": value}]}
    message = f"Resource not found: {uri}"
    raise MCPError(INVALID_PARAMS, message, {"uri": uri})


async def list_prompts(_context: Context, _params: object) -> Wire:
    def listed(name: str, arguments: list[str]) -> Wire:
        given = [{"name": each, "required": True} for each in arguments]
        return {"name": name, "description": name.replace("_", " "), "arguments": given}

    return {"prompts": [listed(name, arguments) for name, arguments in PROMPTS.items()]}


async def get_prompt(context: Context, params: Any) -> Wire:
    given = params.arguments or {}
    if params.name not in PROMPTS or not set(PROMPTS[params.name]) <= given.keys():
        message = f"Unknown prompt or missing argument: {params.name}"
        raise MCPError(INVALID_PARAMS, message)
    content = [text("This is a simple prompt for testing.")]
    if params.name == "test_prompt_with_arguments":
        content = [text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
    elif params.name == "test_prompt_with_embedded_resource":
        content = [embedded(given["resourceUri"], "text/plain", "Embedded."), text("Please process it.")]
    elif params.name == "test_prompt_with_image":
        content = [image(), text("Please look at it.")]
    elif params.name == "test_input_required_result_prompt":
        answer = filled(answers(context.params or {}).get("user_context"), "context")
        if answer is None:
            schema = {"type": "object", "properties": {"context": {"type": "string"}}, "required": ["context"]}
            return asked(user_context=form("What context should the prompt use?", schema))
        content = [text(f"Use this: {answer}")]
    return {"messages": [{"role": "user", "content": each} for each in content]}


async def no_task(_context: Context, _params: object) -> Wire:
    """This server knows the methods of the extension and has no task."""
    message = "Unknown task"
    raise MCPError(INVALID_PARAMS, message)


async def nothing(_context: Context, _params: object) -> Wire:
    return {}


async def complete(_context: Context, _params: object) -> Wire:
    return {"completion": {"values": [], "total": 0, "hasMore": False}}


def whole(handler: Callable[[Context, Any], Awaitable[Wire]]) -> Callable[[Context, Any], Awaitable[Wire]]:
    """Says of its results that they are complete, unless they say otherwise: the newer revision wants it of all."""

    async def handled(context: Context, params: Any) -> Wire:
        return {"resultType": "complete", **await handler(context, params)}

    return handled


def server() -> Server[Any]:
    """The server with everything above."""
    made: Server[Any] = Server(
        NAME,
        version="1",
        cache_hints=dict.fromkeys((*LISTS, "server/discover"), CacheHint()),
        on_list_tools=whole(list_tools),
        on_call_tool=whole(call_tool),
        on_list_resources=whole(list_resources),
        on_list_resource_templates=whole(list_templates),
        on_read_resource=whole(read_resource),
        on_subscribe_resource=nothing,
        on_unsubscribe_resource=nothing,
        on_subscriptions_listen=ListenHandler(BUS),
        on_list_prompts=whole(list_prompts),
        on_get_prompt=whole(get_prompt),
        on_completion=whole(complete),
    )
    made.add_request_handler("logging/setLevel", SetLevelRequestParams, nothing)
    for method in ("tasks/get", "tasks/update", "tasks/cancel"):
        made.add_request_handler(method, RequestParams, no_task)
    made.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes any that is free")
    parser.add_argument("--ready", type=Path, help="a file that the port is written to once it is open")
    parser.add_argument("--json", action="store_true", help="answer requests with JSON and not with streams")
    given = parser.parse_args()
    # With its protocol named: for others asyncio leaves small packets waiting for acknowledgements, 40 ms each.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", given.port))
    listener.listen()
    app = server().streamable_http_app(event_store=Events(), retry_interval=RETRY_MS, json_response=given.json)
    if given.ready is not None:
        # Renamed, so that nobody reads half a number.
        partial = given.ready.with_suffix(".partial")
        partial.write_text(f"{listener.getsockname()[1]}\n")
        partial.rename(given.ready)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])


if __name__ == "__main__":
    main()
