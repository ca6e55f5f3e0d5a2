"""The gate in front of an MCP server: a proxy that decides what goes through, on stdio and on streamable HTTP.

`screen` decides messages, `pins` keeps what tools were when somebody looked, `strict` reads JSON, `stdio` and `http`
carry bytes, `schema` writes a first policy. Importing this package imports none of them; `stdio` needs no HTTP library.
"""
