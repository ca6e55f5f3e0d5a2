"""A server on the official SDK, for the tests: run with an interpreter that has the package `mcp`."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("sdk")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def wipe(path: str) -> str:
    """Deletes what is there."""
    return f"deleted {path}"


@server.resource("file:///open/readme")
def readme() -> str:
    """Says something."""
    return "read me"


@server.resource("file:///closed/keys")
def keys() -> str:
    """Says too much."""
    return "secret"


@server.prompt()
def greeting(who: str) -> str:
    """Greets."""
    return f"hello {who}"


server.run("stdio")
