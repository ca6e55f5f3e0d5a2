"""The headers of MCP over HTTP: who may come in, whether headers say what the body says, and which ones go on.

Headers are checked and never enforced on: what is decided is the body. A check here answers before any policy is asked,
so that a client that contradicts itself is told so. This module reads and writes no stream and decides no action.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["HeaderCheck", "Peers", "Refused", "from_upstream", "is_modern", "repeated", "to_upstream"]

SESSION: Final = "Mcp-Session-Id"
VERSION: Final = "MCP-Protocol-Version"
METHOD: Final = "Mcp-Method"
NAME: Final = "Mcp-Name"
PARAM_PREFIX: Final = "mcp-param-"
VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"
# The first revision without sessions, in which every request says in its headers what it is.
MODERN: Final = "2026-07-28"
_VERSION: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

# What speaks of one connection, by RFC 9110, section 7.6.1.
HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
CREDENTIALS: Final = frozenset({"authorization", "cookie"})
# Set anew, or about a path that the upstream does not see: a client could make them up.
NOT_TO_UPSTREAM: Final = HOP_BY_HOP | {
    "host", "content-length", "content-type", "content-encoding", "accept-encoding", "expect", "origin", "referer",
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
}  # fmt: skip
NOT_FROM_UPSTREAM: Final = HOP_BY_HOP | {
    "content-length", "content-encoding", "server", "date", "alt-svc", "strict-transport-security",
}  # fmt: skip
UPSTREAM_CREDENTIALS: Final = frozenset({"set-cookie", "www-authenticate"})
# One of these twice is one value to some readers and another to others.
ONCE: Final = frozenset({
    "authorization", "content-encoding", "content-length", "content-type", "host", "last-event-id", "mcp-method",
    "mcp-name", "mcp-protocol-version", "mcp-session-id", "origin",
})  # fmt: skip

# The same few names come again and again. What others make up takes no more room than this.
KEPT_MAX: Final = 64

_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=")
_DECIMAL: Final = re.compile(r"(-?[0-9]{1,400})(?:\.0{1,400})?")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SCALARS: Final = frozenset({"string", "integer", "boolean"})
_ABSENT: Final = object()


class Refused(Exception):  # noqa: N818 - it is the answer, not an error
    """A request that is not let in, or not let through.

    Args:
        status: Of HTTP.
        message: What is wrong, for the client.
        headers: What the answer says beside it.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@lru_cache(KEPT_MAX)
def is_modern(version: str | None) -> bool:
    """Whether a value of `MCP-Protocol-Version` names the revision without sessions, or a later one."""
    return version is not None and _VERSION.fullmatch(version) is not None and version >= MODERN


def repeated(names: Iterable[str]) -> str | None:
    """The name of a header that is there twice and may be there once.

    Args:
        names: Of all headers, as they came, in lower case.
    """
    seen: set[str] = set()
    # Behind gateways that hand headers on as variables, these two signs are one.
    for name in (each.replace("_", "-") for each in names):
        if name in ONCE or name.startswith(PARAM_PREFIX):
            if name in seen:
                return name
            seen.add(name)
    return None


# --- headers and body -------------------------------------------------------------------------------------------------


class _Definitions(Protocol):
    """What is known of the tools: `tollkeeper.mcp.pins.Pins`."""

    @property
    def current(self) -> Mapping[str, dict[str, Any]]:
        """Definitions by name, as the server lists them now."""
        ...


class HeaderCheck:
    """Says in which header a request contradicts its body; for `Screen`.

    Args:
        pins: Knows the tools, of which some say that an argument is a header as well.

    Example:
        >>> from types import SimpleNamespace
        >>> from tollkeeper.mcp.http_headers import HeaderCheck
        >>> check = HeaderCheck(SimpleNamespace(current={}))
        >>> check({"Mcp-Method": "tools/list"}, {"method": "tools/call", "params": {"name": "send"}})
        "the header Mcp-Method does not say the body's method"
    """

    def __init__(self, pins: _Definitions) -> None:
        self._pins = pins
        self._mirrored: dict[str, tuple[object, list[_Mirrored]]] = {}

    def __call__(self, headers: Mapping[str, str], message: dict[str, Any]) -> str | None:
        """What differs; `None` if nothing does.

        Args:
            headers: By name, in any case.
            message: The body of a request.
        """
        params = message.get("params")
        given = cast("dict[str, Any]", params) if type(params) is dict else {}
        meta: object = given.get("_meta")
        version: object = cast("dict[str, Any]", meta).get(VERSION_META) if type(meta) is dict else None
        stated = headers.get(VERSION)
        if version is not None and version != stated:
            return f"the header {VERSION} does not say the body's revision"
        # In older revisions these headers need not be there, but nobody should be told something else by them.
        needed = is_modern(stated)
        method = message.get("method")
        if (needed or METHOD in headers) and headers.get(METHOD) != method:
            return f"the header {METHOD} does not say the body's method"
        key = NAMED_BY.get(method) if type(method) is str else None
        if key is not None and (needed or NAME in headers):
            name = given.get(key)
            if name is not None and _decoded(headers.get(NAME)) != name:
                return f"the header {NAME} does not say the body's {key}"
        if method == "tools/call" and needed:
            return self._parameters(headers, given)
        return None

    def _parameters(self, headers: Mapping[str, str], params: dict[str, Any]) -> str | None:
        name, arguments = params.get("name"), params.get("arguments")
        if type(name) is not str:
            return None
        for mirrored in self._of(name):
            value: object = arguments
            for step in mirrored.path:
                value = cast("dict[str, Any]", value).get(step, _ABSENT) if type(value) is dict else _ABSENT
            text = headers.get(mirrored.header)
            absent = value is _ABSENT or value is None
            if absent and text is None:
                continue
            if absent or text is None or not _agree(mirrored.kind, value, _decoded(text)):
                return f"the header {mirrored.header} does not say the body's argument"
        return None

    def _of(self, name: str) -> list[_Mirrored]:
        definition = self._pins.current.get(name)
        if definition is None:
            self._mirrored.pop(name, None)
            return []
        known = self._mirrored.get(name)
        if known is None or known[0] is not definition:
            known = self._mirrored[name] = (definition, _mirrored(definition.get("inputSchema")))
        return known[1]


@dataclass(frozen=True, slots=True)
class _Mirrored:
    """An argument that is also a header."""

    path: tuple[str, ...]
    header: str
    kind: str


def _mirrored(schema: object) -> list[_Mirrored]:
    """Those of a tool. None if the schema says it in a way that is not allowed: then no client sends such headers."""
    found: list[_Mirrored] = []
    left: list[tuple[tuple[str, ...], object]] = [((), schema)]
    while left:
        path, node = left.pop()
        if type(node) is not dict:
            continue
        each = cast("dict[str, Any]", node)
        header, kind = each.get("x-mcp-header"), each.get("type")
        if header is not None:
            if not path or type(header) is not str or _TOKEN.fullmatch(header) is None or kind not in _SCALARS:
                return []
            found.append(_Mirrored(path, f"Mcp-Param-{header}", str(kind)))
        properties = each.get("properties")
        if type(properties) is dict:
            left += [((*path, name), inner) for name, inner in cast("dict[str, Any]", properties).items()]
    unique = {mirrored.header.lower() for mirrored in found}
    return found if len(unique) == len(found) else []


def _decoded(value: str | None) -> str | None:
    """A value as it was before it was made fit for a header; `None` if it is none that anybody would have made."""
    if value is None or (found := _SENTINEL.fullmatch(value)) is None:
        return value
    try:
        plain = base64.b64decode(found[1], validate=True)
        # Some bits of the last digit say nothing: written in another way it is not what a client sends.
        return plain.decode() if base64.b64encode(plain).decode() == found[1] else None
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def _agree(kind: str, value: object, text: str | None) -> bool:
    if text is None:
        return False
    if type(value) is bool:
        return text == ("true" if value else "false")
    if kind == "integer" and (type(value) is int or (type(value) is float and value.is_integer())):
        whole = _DECIMAL.fullmatch(text)
        return whole is not None and int(whole[1]) == int(value)
    return type(value) is str and text == value


# --- who may come in --------------------------------------------------------------------------------------------------


class Peers:
    """Whom a listener serves: pages of other sites are kept out, and, where tokens are given, everybody without one.

    A page may make its name point to this machine and then talk to the proxy as if it were its own server. So on a
    loopback address the name that the client has used must be one of this machine, and wherever the proxy listens, the
    page that a browser names as origin must be of this machine or allowed.

    Args:
        host: Where the proxy listens.
        origins: Pages that may come in, as in `https://app.example`.
        tokens: SHA-256 digests of the bearer tokens; with none of them everybody is let in.
    """

    def __init__(self, host: str, origins: Iterable[str], tokens: Iterable[bytes]) -> None:
        self._host = host.strip("[]").lower()
        self._loopback = is_loopback(self._host)
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._tokens = tuple(tokens)

    def check(self, headers: Mapping[str, str]) -> None:
        """Lets a request in.

        Raises:
            Refused: It is not let in.
        """
        host = hostname(f"http://{headers.get('Host', '')}")
        if self._loopback and (host is None or not (is_loopback(host) or host == self._host)):
            raise Refused(403, "this name is not of this machine, so it may be a page that is not of here either")
        origin = headers.get("Origin")
        if origin is not None and origin.lower() not in self._origins:
            page = hostname(origin)
            if page is None or not is_loopback(page):
                raise Refused(403, "pages of this origin are not let in; --allow-origin allows one")
        if self._tokens:
            self._authorize(headers.get("Authorization", ""))

    def _authorize(self, authorization: str) -> None:
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode(errors="surrogateescape")).digest()
        # All of them, so that the time says nothing of which.
        known = [hmac.compare_digest(digest, each) for each in self._tokens]
        if scheme.lower() != "bearer" or not any(known):
            challenge = 'Bearer realm="tollkeeper"' + (', error="invalid_token"' if authorization else "")
            raise Refused(401, "a bearer token is needed", {"WWW-Authenticate": challenge})


@lru_cache(KEPT_MAX)
def hostname(url: str) -> str | None:
    """The name in a URL, in lower case and without brackets; `None` if there is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


@lru_cache(KEPT_MAX)
def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's for itself.

    Example:
        >>> from tollkeeper.mcp.http_headers import is_loopback
        >>> [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "localhost.evil.example", "10.0.0.1")]
        [True, True, True, False, False]
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- what goes on -----------------------------------------------------------------------------------------------------


def to_upstream(headers: Iterable[tuple[str, str]], connection: str, *, credentials: bool) -> list[tuple[str, str]]:
    """The headers of a request that go on to the upstream.

    Args:
        headers: As they came.
        connection: The value of `Connection`, which names more that speak of one connection.
        credentials: Whether what proves who the client is goes on as well.
    """
    without = _without(NOT_TO_UPSTREAM if credentials else NOT_TO_UPSTREAM | CREDENTIALS, connection)
    kept = [(name, value) for name, value in headers if name.lower() not in without]
    # What is compressed cannot be screened.
    return [*kept, ("Accept-Encoding", "identity")]


def from_upstream(headers: Iterable[tuple[str, str]], connection: str, *, credentials: bool) -> list[tuple[str, str]]:
    """The headers of an answer that go on to the client; arguments as in `to_upstream`."""
    without = _without(NOT_FROM_UPSTREAM if credentials else NOT_FROM_UPSTREAM | UPSTREAM_CREDENTIALS, connection)
    return [(name, value) for name, value in headers if name.lower() not in without]


@lru_cache(KEPT_MAX)
def _without(names: frozenset[str], connection: str) -> frozenset[str]:
    return names | {name.strip().lower() for name in connection.split(",")}
