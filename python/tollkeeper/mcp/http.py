"""Streamable HTTP in front of an MCP server: every message passes a `Screen`, every stream keeps flowing.

One process listens, and sends what its screens let through to one upstream URL, over connections that it keeps. Both
shapes of the transport go through it: sessions with their streams (2025-11-25) and requests that stand alone
(2026-07-28). An event is screened and sent on at once; nothing waits for a stream to end. A client that goes away
closes its request at the upstream, and what was held for it ends.

It refuses what it cannot read: compressed bodies, other charsets, events and bodies beyond the limits, answers of other
kinds. It follows no redirect, repeats no request, decides nothing itself, and hands no credential on unless it was told
to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import re
import secrets
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web

from tollkeeper.errors import TollkeeperError
from tollkeeper.mcp import events, http_headers
from tollkeeper.mcp.http_headers import METHOD, NAME, PARAM_PREFIX, SESSION, VERSION, Peers, Refused
from tollkeeper.mcp.screen import Forward, Reply, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable
    from pathlib import Path

    from tollkeeper._native import Decision
    from tollkeeper.mcp.screen import Screen, Verdict

__all__ = ["HttpLimits", "Proxy", "Settings", "UsageError", "serve"]

JSON: Final = "application/json"
SSE: Final = "text/event-stream"
# Of JSON-RPC errors that this file makes: outside what JSON-RPC and MCP keep for themselves.
FAILED: Final = -1
# What a server of the newer revision answers with where the error has such a number.
STATUS_OF: Final = {-32700: 400, -32600: 400, -32601: 404, -32602: 400, -32020: 400, -32021: 400, -32022: 400}
UNAUTHORIZED: Final = (401, 403, 407)
PIECE_BYTES: Final = 1 << 18
# A call waits for so many of the upstream's lists, of which each may be stale at once or cannot be read.
LISTS_MAX: Final = 3
TOKEN_CHARS_MIN: Final = 16
SHOWN_CHARS: Final = 200
_SESSION_ID: Final = re.compile(r"[\x21-\x7e]{1,256}")

MakeScreen = Callable[["str | None"], "Screen"]


class UsageError(ValueError):
    """Settings with which the proxy does not start; the message says which."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds of the transport. Those of messages are `tollkeeper.mcp.screen.Limits`."""

    header_bytes: int = 32 << 10
    """Of all headers of a request."""
    body_bytes: int = 4 << 20
    """Of a request."""
    answer_bytes: int = 16 << 20
    """Of an answer that is no stream, and of an event of a stream; streams have no end."""
    exchanges: int = 1024
    """Requests and streams that are open."""
    sessions: int = 1024
    """Of the revision that has them; the one that was idle for longest ends first."""
    unanswered: int = 256
    """Calls of a session whose stream is over and whose answer may come on another one."""
    body_seconds: float = 30.0
    """For a request's body to arrive."""
    connect_seconds: float = 10.0
    """For a connection to the upstream."""
    first_byte_seconds: float = 300.0
    """For the head of the upstream's answer: a tool may take its time."""
    list_seconds: float = 30.0
    """For a list of tools that the proxy itself has asked for."""
    stop_seconds: float = 3.0
    """For what is open to end by itself when the proxy stops."""
    record_seconds: float = 10.0
    """For the record of a decision to get to the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says.

    Args:
        upstream: URL of the server.
        listen: Address and port, as in `127.0.0.1:8700` or `[::1]:0`; port 0 takes any that is free.
        allow_remote: Whether the address may be one that other machines reach.
        allow_origins: Pages that may talk to the proxy, besides those of this machine.
        forward_authorization: Whether credentials of the client go on to the upstream, and its demands for them back.
        token_file: A file of bearer tokens, one in a line; whoever has none of them is not let in.
        limits: Bounds.
    """

    upstream: str
    listen: str
    allow_remote: bool = False
    allow_origins: tuple[str, ...] = ()
    forward_authorization: bool = False
    token_file: Path | None = None
    limits: HttpLimits = field(default_factory=HttpLimits)

    def address(self) -> tuple[str, int]:
        """Where to listen.

        Raises:
            UsageError: It is no address with a port, or one that others reach and that was not asked for.
        """
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) >= 1 << 16:
            message = f"--listen takes HOST:PORT, as in 127.0.0.1:8700, and not {self.listen}"
            raise UsageError(message)
        host = host.strip("[]")
        if not self.allow_remote and not http_headers.is_loopback(host):
            message = f"{host} can be reached from other machines; --allow-remote says that this is meant"
            raise UsageError(message)
        return host, int(port)

    def path(self) -> str:
        """Where the upstream serves, and so the proxy.

        Raises:
            UsageError: The upstream is no URL of HTTP.
        """
        try:
            parts = urlsplit(self.upstream)
            good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good, parts = False, urlsplit("")
        if not good or parts.fragment or parts.username is not None:
            message = f"--upstream takes the URL of a server, as in http://127.0.0.1:3000/mcp, and not {self.upstream}"
            raise UsageError(message)
        return parts.path or "/"

    def tokens(self) -> tuple[bytes, ...]:
        """Digests of the tokens that are let in.

        Raises:
            UsageError: The file cannot be used.
        """
        if self.token_file is None:
            return ()
        if self.forward_authorization:
            message = "--forward-authorization and --token-file exclude each other: there is one such header"
            raise UsageError(message)
        try:
            lines = [line.strip() for line in self.token_file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error.strerror or error).lower()
            message = f"--token-file {self.token_file}: {reason}"
            raise UsageError(message) from error
        tokens = [line for line in lines if line and not line.startswith("#")]
        if not tokens or min(map(len, tokens)) < TOKEN_CHARS_MIN:
            message = f"{self.token_file}: needs tokens of at least {TOKEN_CHARS_MIN} characters, one in a line"
            raise UsageError(message)
        return tuple(hashlib.sha256(token.encode()).digest() for token in tokens)


class _Error(msgspec.Struct):
    code: int | None = None


class _Envelope(msgspec.Struct):
    """What is around a message that a screen has let through."""

    id: int | str | None = None
    method: str | None = None
    error: _Error | None = None


_envelopes: Final = msgspec.json.Decoder(_Envelope)
_NOTHING: Final = _Envelope()


def _envelope(raw: bytes) -> _Envelope:
    try:
        return _envelopes.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _NOTHING


def _failure(id_: int | str | None, message: str) -> bytes:
    error = {"code": FAILED, "message": message}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": id_, "error": error})


class _Session:
    """A screen, and the exchanges whose messages it sees."""

    def __init__(self, screen: Screen, id_: str | None) -> None:
        self.screen, self.id = screen, id_
        self.open = 0
        self.unanswered: OrderedDict[object, object] = OrderedDict()
        """Keys of exchanges that may go on on another stream: by the id of the call, or by themselves."""
        self.listing: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Ends it, with what is held in it."""
        self.unanswered.clear()
        self.screen.close()


class _Sessions:
    """The sessions that the upstream has opened, by id; the one that was used last is the last."""

    def __init__(self, make: MakeScreen, sessions_max: int) -> None:
        self._make, self._max = make, sessions_max
        self._open: OrderedDict[str, _Session] = OrderedDict()
        self._alone: _Session | None = None

    @property
    def alone(self) -> _Session:
        """For requests that belong to no session."""
        if self._alone is None:
            self._alone = _Session(self._make(None), None)
        return self._alone

    def known(self, id_: str) -> _Session | None:
        session = self._open.get(id_)
        if session is not None:
            self._open.move_to_end(id_)
        return session

    def begin(self) -> _Session:
        """For a client that wants a session. It is none until the upstream has said its id."""
        if len(self._open) >= self._max and all(session.open for session in self._open.values()):
            raise Refused(503, f"{self._max} sessions are open, the most there may be", {"Retry-After": "5"})
        # The upstream's id is what a client proves itself by, so it is no name for the records.
        return _Session(self._make(f"mcp-{secrets.token_hex(8)}"), None)

    def opened(self, session: _Session, id_: str) -> None:
        """The upstream has given it this id."""
        # An upstream that was started anew may count from one again.
        self.ended(id_)
        while len(self._open) >= self._max:
            idle = next((name for name, each in self._open.items() if not each.open), None)
            if idle is None:
                raise Refused(503, f"{self._max} sessions are open, the most there may be", {"Retry-After": "5"})
            self.ended(idle)
        session.id = id_
        self._open[id_] = session

    def ended(self, id_: str) -> None:
        session = self._open.pop(id_, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        for id_ in list(self._open):
            self.ended(id_)
        if self._alone is not None:
            self._alone.close()


class _Exchange:
    """One request of a client, its answer, and the request to the upstream that it became."""

    def __init__(self, request: web.BaseRequest, session: _Session, task: asyncio.Task[object] | None) -> None:
        self.request, self.session, self.task = request, session, task
        self.key = object()
        """What the screen knows it by: it may outlive the connection."""
        self.modern = http_headers.is_modern(request.headers.get(VERSION))
        self.begun: _Session | None = None
        """Made for this exchange, and not opened by the upstream so far."""
        self.id: int | str | None = None
        """Of the request that the upstream has to answer."""
        self.answered = False
        self.resumable = False
        """Whether the client can ask for the rest of the answer on another stream of its session."""
        self.streaming = False
        self.upstream: aiohttp.ClientResponse | None = None
        session.open += 1

    def move(self, session: _Session) -> None:
        self.session.open -= 1
        self.session = session
        session.open += 1

    def end(self, unanswered_max: int) -> None:
        """The client has its answer, or is gone: the request to the upstream is closed, and what was held ends."""
        if self.upstream is not None:
            # With bytes left to come this closes the connection, by which the upstream sees it.
            self.upstream.close()
        session = self.session
        session.open -= 1
        if not self.answered and self.resumable:
            # In a session that is no cancellation: the call goes on, and its answer can be asked for. So do requests of
            # the server on a stream of its own.
            session.unanswered[self.key if self.id is None else self.id] = self.key
            while len(session.unanswered) > unanswered_max:
                _, oldest = session.unanswered.popitem(last=False)
                session.screen.ended(oldest)
        else:
            session.screen.ended(self.key)
        if self.begun is not None and self.begun.id is None:
            self.begun.close()


class Proxy:
    """The listener, its screens, and the connections to the upstream.

    Args:
        settings: Where to listen, and in front of what.
        make_screen: Makes the screen of a session. It is given a name for it, or None for what belongs to no session.
        say: Takes a line for the operator.

    Raises:
        UsageError: The settings cannot be.
    """

    def __init__(self, settings: Settings, make_screen: MakeScreen, say: Callable[[str], None] | None = None) -> None:
        self._settings, self._limits = settings, settings.limits
        self._host, self._port = settings.address()
        self._path = settings.path()
        tokens = settings.tokens()
        self._peers = Peers(self._host, settings.allow_origins, tokens)
        self._own_authorization = bool(tokens)
        self._say = say or _to_stderr
        self._said: set[str] = set()
        self._sessions = _Sessions(make_screen, settings.limits.sessions)
        self._exchanges: set[_Exchange] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: aiohttp.ClientSession | None = None
        self._runner: web.ServerRunner | None = None
        if not http_headers.is_loopback(self._host) and not tokens:
            self._say(
                f"warning: whoever reaches {self._host} can use this proxy, with its principal's rights;"
                " --token-file lets only those in who have a token"
            )

    # --- beginning and end ------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Listens.

        Returns:
            The URL.

        Raises:
            OSError: The address cannot be listened on.
        """
        limits = self._limits
        server = web.Server(
            self._handle,
            # A client that goes away cancels what is done for it.
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=min(limits.header_bytes, 8190),
            max_field_size=min(limits.header_bytes, 8190),
        )
        self._client = aiohttp.ClientSession(
            # Servers close connections that were idle for five seconds, uvicorn and Node among them; a request that
            # meets the closing is lost and cannot be repeated.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        # Made here: a principal that cannot be, or a budget, is an error of the start.
        _ = self._sessions.alone
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{self._path}"

    async def stop(self) -> None:
        """Lets what is open end, for a while, and ends the rest: holds are settled and outcomes are recorded."""
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
        ending = [each.task for each in self._exchanges if each.task is not None and not each.streaming]
        if ending:
            await asyncio.wait(ending, timeout=self._limits.stop_seconds)
        left = [each.task for each in self._exchanges if each.task is not None]
        for task in (*left, *self._tasks):
            task.cancel()
        if left or self._tasks:
            await asyncio.wait([*left, *self._tasks], timeout=self._limits.stop_seconds)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()
        self._sessions.close()

    # --- one request ------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange: _Exchange | None = None
        try:
            self._let_in(request)
            exchange = _Exchange(request, self._session_of(request), asyncio.current_task())
            self._exchanges.add(exchange)
            if request.method == "POST":
                return await self._post(exchange)
            return await self._forward(exchange, None)
        except Refused as refusal:
            id_ = None if exchange is None else exchange.id
            body = _failure(id_, refusal.message)
            return web.Response(status=refusal.status, body=body, content_type=JSON, headers=refusal.headers)
        except ConnectionError:
            # The client is gone: there is nobody to tell.
            return web.Response(status=500)
        except Exception as error:  # noqa: BLE001 - whatever fails here lets nothing through
            self._say(f"a request failed, so it is refused: {type(error).__name__}: {error}")
            id_ = None if exchange is None else exchange.id
            body = _failure(id_, "Denied (internal.panic): the proxy failed while it handled this request.")
            return web.Response(status=500, body=body, content_type=JSON)
        finally:
            if exchange is not None:
                self._exchanges.discard(exchange)
                exchange.end(self._limits.unanswered)

    def _let_in(self, request: web.BaseRequest) -> None:
        self._peers.check(request.headers)
        if request.rel_url.raw_path != self._path or request.rel_url.query_string:
            raise Refused(404, f"this proxy serves {self._path}")
        if request.method not in {"POST", "GET", "DELETE"}:
            raise Refused(405, "this method is not served", {"Allow": "GET, POST, DELETE"})
        header_bytes = sum(len(name) + len(value) for name, value in request.raw_headers)
        if header_bytes > self._limits.header_bytes:
            raise Refused(431, f"{header_bytes} bytes of headers, the limit is {self._limits.header_bytes}")
        twice = http_headers.repeated(name.lower().decode("latin-1") for name, _ in request.raw_headers)
        if twice is not None:
            raise Refused(400, f"the header {twice} is there twice")
        if len(self._exchanges) >= self._limits.exchanges:
            raise Refused(
                503, f"{self._limits.exchanges} requests are open, the most there may be", {"Retry-After": "1"}
            )

    def _session_of(self, request: web.BaseRequest) -> _Session:
        id_ = request.headers.get(SESSION)
        known = None if id_ is None else self._sessions.known(id_)
        if known is not None:
            return known
        if id_ is not None and not http_headers.is_modern(request.headers.get(VERSION)):
            # Of an earlier life of this proxy, or ended: by this answer a client knows that it has to begin again.
            raise Refused(404, "this session is not open; initialize begins another")
        return self._sessions.alone

    async def _post(self, exchange: _Exchange) -> web.StreamResponse:
        request = exchange.request
        _refuse_unreadable(request)
        raw = await self._body(request)
        if len(raw) > self._limits.body_bytes:
            verdict: Verdict = exchange.session.screen.oversized(raw[:4096], client=True, exchange=exchange.key)
            body = verdict.raw if isinstance(verdict, Reply) else _failure(None, "the body is too large")
            return web.Response(status=413, body=body, content_type=JSON)
        # The word first: most requests are none, and reading is slower than searching.
        if SESSION not in request.headers and b"initialize" in raw and _envelope(raw).method == "initialize":
            exchange.begun = self._sessions.begin()
            exchange.move(exchange.begun)
        verdict = await self._decided(exchange, raw)
        if isinstance(verdict, Forward):
            if verdict.record is not None and (reason := await self._unrecorded(verdict.record)) is not None:
                told = exchange.session.screen.unrecorded(exchange.key, reason)
                return await _replied(exchange, Reply(told[0] if told else _failure(None, reason)))
            # As it is decided, so its id is unambiguous.
            envelope = _envelope(verdict.raw)
            exchange.id = envelope.id if envelope.method is not None else None
            return await self._forward(exchange, verdict.raw)
        if isinstance(verdict, Reply):
            return await _replied(exchange, verdict)
        return web.Response(status=202)

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The body, or a little more than it may have."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        bytes_max = self._limits.body_bytes
        if request.content.is_eof():
            # It came with its headers.
            return request.content.read_nowait()
        kept, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while size <= bytes_max and (chunk := await request.content.readany()):
                    kept.append(chunk)
                    size += len(chunk)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self._limits.body_seconds:g} s") from None
        return b"".join(kept)

    async def _decided(self, exchange: _Exchange, raw: bytes) -> Verdict:
        session, headers = exchange.session, exchange.request.headers
        verdict = session.screen.from_client(raw, headers=headers, exchange=exchange.key)
        lists = 0
        while isinstance(verdict, Wait):
            if lists == LISTS_MAX:
                session.screen.asked_in_vain()
            elif lists > LISTS_MAX:
                raise Refused(502, "the server behind this proxy does not say which tools it has")
            lists += 1
            if session.listing is None or session.listing.done():
                session.listing = self._spawn(self._list(session, exchange))
            # A client that goes away must not take the list from the others that wait for it.
            await asyncio.shield(session.listing)
            verdict = session.screen.from_client(raw, headers=headers, exchange=exchange.key)
        return verdict

    async def _unrecorded(self, record: Decision) -> str | None:
        """Waits until the record of a decision is on the disk; why it is not, if it does not get there."""
        try:
            async with asyncio.timeout(self._limits.record_seconds):
                await record.durable(record.durability or "sync")
        except TimeoutError:
            return f"the record of the decision is not on the disk after {self._limits.record_seconds:g} s"
        except TollkeeperError as error:
            return str(error)
        return None

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- to the upstream and back -----------------------------------------------------------------------------------

    def _headers(self, request: web.BaseRequest) -> list[tuple[str, str]]:
        forward = self._settings.forward_authorization
        if not forward and not self._own_authorization and "Authorization" in request.headers:
            self._say_once("a client sends credentials; they do not go on without --forward-authorization")
        return http_headers.to_upstream(
            request.headers.items(), request.headers.get("Connection", ""), credentials=forward
        )

    async def _send(self, method: str, headers: Iterable[tuple[str, str]], raw: bytes | None) -> aiohttp.ClientResponse:
        assert self._client is not None, "started"  # noqa: S101 - for the type checker
        sent = [*headers, ("Content-Type", JSON)] if raw is not None else list(headers)
        try:
            async with asyncio.timeout(self._limits.first_byte_seconds):
                return await self._client.request(
                    method,
                    self._settings.upstream,
                    # A large one in pieces: written at once it would keep the other exchanges waiting.
                    data=io.BytesIO(raw) if raw is not None and len(raw) > PIECE_BYTES else raw,
                    headers=sent,
                    allow_redirects=False,
                    skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                )
        except TimeoutError:
            raise Refused(504, "the server behind this proxy did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            self._say(f"the upstream cannot be used: {type(error).__name__}: {error}")
            raise Refused(502, "the server behind this proxy cannot be reached, or broke the connection") from None

    async def _forward(self, exchange: _Exchange, raw: bytes | None) -> web.StreamResponse:
        request = exchange.request
        upstream = exchange.upstream = await self._send(request.method, self._headers(request), raw)
        self._refuse_answer(upstream)
        self._note_session(exchange, upstream)
        headers = http_headers.from_upstream(
            upstream.headers.items(),
            upstream.headers.get("Connection", ""),
            credentials=self._settings.forward_authorization,
        )
        if upstream.content_type == SSE:
            return await self._stream(exchange, upstream, headers)
        body = await self._read(upstream)
        headers = [(name, value) for name, value in headers if name.lower() != "content-type"]
        nothing_asked = request.method == "DELETE" or (exchange.id is None and request.method == "POST")
        if not body or (nothing_asked and upstream.status < 300):  # noqa: PLR2004 - what HTTP says of success
            # Some servers say a word where nothing is to be said; their status is the answer.
            return web.Response(status=upstream.status, headers=headers)
        answer = await self._answer(exchange, upstream, body)
        return web.Response(status=upstream.status, body=answer, headers=headers, content_type=JSON)

    def _refuse_answer(self, upstream: aiohttp.ClientResponse) -> None:
        status = upstream.status
        if 300 <= status < 400:  # noqa: PLR2004 - what HTTP says of redirects
            raise Refused(502, f"the server behind this proxy answered {status}: redirects are not followed")
        if upstream.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise Refused(502, "the server behind this proxy compressed its answer, which cannot be read here")
        if status in UNAUTHORIZED and not self._settings.forward_authorization:
            message = f"the server behind this proxy answered {status}: it wants credentials, or refuses this client"
            self._say_once(f"{message}; --forward-authorization hands the client's on")
            raise Refused(502, message)

    def _note_session(self, exchange: _Exchange, upstream: aiohttp.ClientResponse) -> None:
        """A session begins or ends by what the upstream answers."""
        id_ = upstream.headers.get(SESSION)
        ok = upstream.status < 300  # noqa: PLR2004 - what HTTP says of success
        if exchange.begun is not None and id_ is not None and ok:
            if _SESSION_ID.fullmatch(id_) is None:
                raise Refused(502, "the server behind this proxy gave a session an id that cannot be one")
            self._sessions.opened(exchange.begun, id_)
        gone = upstream.status == 404  # noqa: PLR2004 - what MCP says of sessions that are over
        if exchange.session.id is not None and (gone or (ok and exchange.request.method == "DELETE")):
            self._sessions.ended(exchange.session.id)

    async def _read(self, upstream: aiohttp.ClientResponse) -> bytes:
        kept, size = list[bytes](), 0
        try:
            while chunk := await upstream.content.readany():
                kept.append(chunk)
                size += len(chunk)
                if size > self._limits.answer_bytes:
                    raise Refused(502, f"the answer has more than {self._limits.answer_bytes} bytes, the limit")
        except (aiohttp.ClientError, OSError) as error:
            self._say(f"the upstream broke off its answer: {type(error).__name__}: {error}")
            raise Refused(502, "the server behind this proxy broke off its answer") from None
        return b"".join(kept)

    async def _answer(self, exchange: _Exchange, upstream: aiohttp.ClientResponse, body: bytes) -> bytes:
        """A body that is no stream, screened."""
        if upstream.content_type == JSON:
            screened = await self._screened(exchange, body)
            if screened is not None:
                return screened
        elif upstream.status < 400:  # noqa: PLR2004 - what HTTP says of success
            raise Refused(502, f"the server behind this proxy answered with {_shown(upstream.content_type)}")
        # Of an error in words, a client that takes it for JSON gets JSON of ours.
        said = "" if upstream.content_type == JSON else f": {_shown(body[:SHOWN_CHARS].decode(errors='replace'))}"
        return _failure(exchange.id, f"the server behind this proxy answered {upstream.status}{said}")

    async def _screened(self, exchange: _Exchange, raw: bytes) -> bytes | None:
        """What becomes of a message of the upstream; None if nothing goes to the client."""
        session, asked = exchange.session, exchange.key
        envelope = _envelope(raw)
        answers = envelope.method is None and envelope.id is not None
        if answers and envelope.id is not None and exchange.id != envelope.id:
            # On a stream that continues an earlier one, which was closed before it was answered.
            asked = session.unanswered.pop(envelope.id, asked)
        verdict = session.screen.from_server(raw, exchange=asked)
        if asked is not exchange.key:
            session.screen.ended(asked)
        elif answers:
            exchange.answered = True
        if isinstance(verdict, Forward):
            if verdict.record is None or (reason := await self._unrecorded(verdict.record)) is None:
                return verdict.raw
            # Of what the server asks of the client's model: what is held for it ends with the exchange.
            verdict = Reply(_failure(envelope.id, f"Denied (audit.unavailable): {reason}"))
        if isinstance(verdict, Reply) and len(self._tasks) < self._limits.exchanges:
            self._spawn(self._tell(exchange, verdict.raw))
        return None

    async def _tell(self, exchange: _Exchange, raw: bytes) -> None:
        """Sends the upstream an answer of the proxy's own, to something that it asked of the client."""
        try:
            headers = _own(self._headers(exchange.request))
            answer = await self._send("POST", [*headers, ("Accept", f"{JSON}, {SSE}")], raw)
            answer.close()
        except Refused as refusal:
            self._say(f"the upstream was not told that it was refused: {refusal.message}")

    # --- streams ----------------------------------------------------------------------------------------------------

    async def _stream(
        self, exchange: _Exchange, upstream: aiohttp.ClientResponse, headers: list[tuple[str, str]]
    ) -> web.StreamResponse:
        """Sends on what comes, event by event, each as soon as it is whole."""
        # A stream of events is UTF-8, whatever is said beside: it is screened as that, and some clients obey a charset.
        headers = [(name, value) for name, value in headers if name.lower() != "content-type"]
        response = web.StreamResponse(status=upstream.status, headers=[*headers, ("Content-Type", SSE)])
        await response.prepare(exchange.request)
        exchange.streaming = True
        failure = "the server behind this proxy ended its answer unfinished"
        try:
            async for pieces in self._events(upstream):
                sent = b"".join([await self._event(exchange, piece) for piece in pieces])
                if sent:
                    await response.write(sent)
        except Refused as refusal:
            failure = refusal.message
        if exchange.id is not None and not exchange.answered and not exchange.resumable:
            # Nobody else tells the client that nothing more will come.
            await response.write(b"event: message\ndata: " + _failure(exchange.id, failure) + b"\n\n")
        return response

    async def _events(self, upstream: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
        """The events of a stream as they come.

        Raises:
            Refused: The stream broke off, or cannot be cut into events.
        """
        splitter = events.Splitter(self._limits.answer_bytes)
        try:
            while chunk := await upstream.content.readany():
                yield splitter.feed(chunk)
        except events.TooLarge as error:
            raise Refused(502, f"the server behind this proxy sent {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            self._say(f"the upstream broke off a stream: {type(error).__name__}: {error}")
            raise Refused(502, "the server behind this proxy broke off its answer") from None

    async def _event(self, exchange: _Exchange, event: bytes) -> bytes:
        """What becomes of an event: the very bytes, unless its data was decided or refused."""
        if exchange.session.id is not None and not exchange.resumable:
            exchange.resumable = events.has_id(event)
        message = events.data(event)
        plain = events.plain(event)
        # Without data, or with an empty line of it, it says where the stream is and nothing else.
        if not message:
            return event if plain else events.with_data(event, None)
        screened = await self._screened(exchange, message)
        if screened is None:
            return events.with_data(event, None)
        return event if plain and screened == message else events.with_data(event, screened)

    # --- the proxy's own list ---------------------------------------------------------------------------------------

    async def _list(self, session: _Session, exchange: _Exchange) -> None:
        """Asks the upstream for its tools, because a call came before anybody has."""
        headers = _own(self._headers(exchange.request))
        headers += [("Accept", f"{JSON}, {SSE}"), (METHOD, "tools/list")]
        try:
            # For all pages together: a server may say for ever that there is another one.
            async with asyncio.timeout(self._limits.list_seconds):
                while (ask := session.screen.asks()) is not None:
                    await self._asked(session, headers, ask)
        except (Refused, TimeoutError) as error:
            self._say(f"the upstream did not list its tools: {type(error).__name__}: {error}")
            session.screen.asked_in_vain()

    async def _asked(self, session: _Session, headers: list[tuple[str, str]], ask: bytes) -> None:
        id_ = _envelope(ask).id
        answer = await self._send("POST", headers, ask)
        try:
            self._refuse_answer(answer)
            if answer.content_type != SSE:
                body = await self._read(answer)
                if answer.content_type != JSON or _envelope(body).id != id_:
                    raise Refused(502, f"it answered {answer.status}, with {_shown(answer.content_type)}")
                session.screen.from_server(body)
                return
            async for pieces in self._events(answer):
                for piece in pieces:
                    message = events.data(piece)
                    if message and _envelope(message).id == id_:
                        session.screen.from_server(message)
                        return
            raise Refused(502, "the stream ended without a list")
        finally:
            answer.close()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def _refuse_unreadable(request: web.BaseRequest) -> None:
    """Refuses a body that would not be what it looks like."""
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Refused(415, "the body is compressed; it has to be sent as it is", {"Accept-Encoding": "identity"})
    if request.content_type != JSON or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise Refused(415, f"the body has to be {JSON} in UTF-8")


def _own(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers of a client's request, for a request of the proxy's own in the same session."""
    dropped = {METHOD.lower(), NAME.lower(), "accept", "last-event-id"}
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in dropped and not name.lower().startswith(PARAM_PREFIX)
    ]


async def _replied(exchange: _Exchange, reply: Reply) -> web.StreamResponse:
    """A refusal, in the way that the client said it reads answers."""
    status = reply.status
    error = _envelope(reply.raw).error
    if exchange.modern and status == 200 and error is not None and error.code is not None:  # noqa: PLR2004 - HTTP's
        status = STATUS_OF.get(error.code, status)
    accepted = exchange.request.headers.get("Accept", "*/*")
    if status == 200 and SSE in accepted and JSON not in accepted and "*/*" not in accepted:  # noqa: PLR2004 - HTTP's
        response = web.StreamResponse(headers={"Content-Type": SSE, "Cache-Control": "no-cache"})
        await response.prepare(exchange.request)
        await response.write(b"event: message\ndata: " + reply.raw + b"\n\n")
        return response
    return web.Response(status=status, body=reply.raw, content_type=JSON)


def _shown(text: str) -> str:
    short = " ".join(text.split())
    return "".join(char if char.isprintable() else "?" for char in short[:SHOWN_CHARS])


def _to_stderr(text: str) -> None:
    # The upstream may have written some of it.
    sys.stderr.write(f"tollkeeper: {''.join(char if char.isprintable() else '?' for char in text)}\n")
    sys.stderr.flush()


def serve(settings: Settings, make_screen: MakeScreen, say: Callable[[str], None]) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: Where to listen, and in front of what.
        make_screen: As in `Proxy`.
        say: As in `Proxy`.

    Returns:
        The exit status.

    Raises:
        UsageError: The settings cannot be.
        OSError: The address cannot be listened on.
    """
    proxy = Proxy(settings, make_screen, say)

    async def served() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            # A query may hold a key.
            upstream = urlsplit(settings.upstream)._replace(query="").geturl()
            say(f"listening on {await proxy.start()}, in front of {upstream}")
            await stop.wait()
        finally:
            await proxy.stop()

    with asyncio.Runner(loop_factory=_new_loop()) as runner:
        runner.run(served())
    return 0


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop, where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - an extra

        return uvloop.new_event_loop
    return None
