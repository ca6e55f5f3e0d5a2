"""A client on the official SDK, for the tests: runs what it is told through the server that its arguments start.

Prints one JSON object. Run with an interpreter that has the package `mcp`.
"""

import asyncio
import json
import os
import sys
from typing import Any

from mcp.client.stdio import stdio_client

from mcp import ClientSession, StdioServerParameters


async def tried(call: Any) -> Any:
    try:
        return (await call).model_dump(mode="json", by_alias=True, exclude_none=True)
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises is what the test looks at
        return {"raised": str(error)}


async def main() -> None:
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:], env=dict(os.environ))
    async with stdio_client(server) as (reader, writer), ClientSession(reader, writer) as session:
        found = {
            "initialize": await tried(session.initialize()),
            "tools": await tried(session.list_tools()),
            "add": await tried(session.call_tool("add", {"a": 1, "b": 2})),
            "wipe": await tried(session.call_tool("wipe", {"path": "/"})),
            "many": await asyncio.gather(*(tried(session.call_tool("add", {"a": n, "b": n})) for n in range(50))),
            "readme": await tried(session.read_resource("file:///open/readme")),
            "keys": await tried(session.read_resource("file:///closed/keys")),
            "prompt": await tried(session.get_prompt("greeting", {"who": "you"})),
            "ping": await tried(session.send_ping()),
        }
    sys.stdout.write(json.dumps(found))


asyncio.run(main())
