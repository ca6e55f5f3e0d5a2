"""Drives a recorded trace of requests through a ledger, on the trace's own time.

A trace says when a request came, how long its prompt was and how much it generated. What it does not say is decided by
rules that are stated here and printed with every result, so that anybody can compute the same sums: when a request
ended (`end_ms`), whose it was (`tenant`), and how much it asked to have held for what it would generate. Files are read
row by row; a row that is not one is an error with file and line. Nothing is estimated, skipped or sorted.
"""

import datetime as dt
import heapq
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Final

from tollkeeper.budget import Hold, Ledger
from tollkeeper.errors import ConfigError

__all__ = ["COLUMNS", "Request", "Result", "Rules", "TraceError", "Window", "end_ms", "merged", "read", "run", "tenant"]

COLUMNS: Final = b"TIMESTAMP,ContextTokens,GeneratedTokens"
_ROW: Final = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d):([0-5]\d)(?:\.(\d{1,7}))?,(\d{1,9}),(\d{1,9})")
EXAMPLE: Final = "2023-11-16 18:17:03.9799600,4808,10"
# A row of the largest numbers has 50 bytes.
LINE_BYTES_MAX: Final = 200

# Windows are counted from here.
FIRST_YEAR: Final = 1970

# Per token, in microseconds: 5,000 tokens of prompt a second, 50 generated ones.
PROMPT_MICROSECONDS: Final = 200
GENERATED_MICROSECONDS: Final = 20_000
WINDOWS_MS: Final = {"1m": 60_000, "1h": 3_600_000, "1d": 86_400_000}
# A gap of two months in minutes: a wrong year, not a trace.
WINDOWS_MAX: Final = 100_000
_WORD: Final = (1 << 64) - 1


class TraceError(ConfigError):
    """A trace cannot be read; the message begins with file and line."""


@dataclass(frozen=True, slots=True)
class Request:
    """One row of a trace."""

    at_ms: int
    """When it came: milliseconds since 1970 in UTC, cut and not rounded, so that it stays in its window."""
    prompt: int
    generated: int


@dataclass(frozen=True)
class Rules:
    """What a trace does not say."""

    max_tokens: int = 2_048
    """What each request asks to have held for what it generates. No request of the published traces generates more."""
    tenants: int = 4
    seed: int = 0
    window: str = "1m"
    """What the result is split by."""


@dataclass
class Window:
    """What happened to the requests that came in one window."""

    start_ms: int
    admitted: int = 0
    denied: int = 0
    used_tokens: int = 0
    """What the admitted ones really used, whenever they ended: a settle goes to the window of its hold."""


@dataclass
class Result:
    """What became of a trace."""

    requests: int = 0
    admitted: int = 0
    denied: int = 0
    used_tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """Denials by code."""
    windows: dict[int, Window] = field(default_factory=dict)
    """By the number of the window since 1970, in order of time; one without requests between others is there too."""


def read(file: Path) -> Iterator[Request]:
    """The rows of a trace.

    Raises:
        TraceError: A row is not one, or is earlier than the one before it.
        OSError: The file cannot be read.
    """
    last_ms = 0
    minutes: dict[bytes, int] = {}
    with file.open("rb") as stream:
        if stream.readline(LINE_BYTES_MAX).rstrip(b"\r\n") != COLUMNS:
            raise TraceError(f"{file}:1: the columns are not {COLUMNS.decode()}", "config.invalid")
        for number in itertools.count(2):
            line = stream.readline(LINE_BYTES_MAX)
            if not line:
                return
            request = _row(line.removesuffix(b"\n").removesuffix(b"\r"), minutes)
            if request is None:
                text = line[:60].decode(errors="replace").rstrip("\r\n")
                raise TraceError(
                    f"{file}:{number}: not a row of a trace: `{text}`", "config.invalid", f"as in {EXAMPLE}"
                )
            if request.at_ms < last_ms:
                raise TraceError(f"{file}:{number}: earlier than the row before it", "config.invalid", "sort the file")
            last_ms = request.at_ms
            yield request


def _row(line: bytes, minutes: dict[bytes, int]) -> Request | None:
    found = _ROW.fullmatch(line)
    if found is None:
        return None
    minute, second, fraction, prompt, generated = found.groups()
    start_ms = minutes.get(minute)
    if start_ms is None:
        try:
            time = dt.datetime.strptime(minute.decode(), "%Y-%m-%d %H:%M").replace(tzinfo=dt.UTC)
        except ValueError:
            return None
        if time.year < FIRST_YEAR:
            return None
        start_ms = minutes[minute] = int(time.timestamp()) * 1000
    part_ms = int((fraction or b"").ljust(3, b"0")[:3])
    return Request(start_ms + int(second) * 1000 + part_ms, int(prompt), int(generated))


def merged(files: Iterable[Path]) -> Iterator[Request]:
    """The rows of several traces in order of time; at the same millisecond those of an earlier file come first."""
    return heapq.merge(*(read(file) for file in files), key=attrgetter("at_ms"))


def end_ms(request: Request) -> int:
    """When a request ended: a time for each token of the prompt and one for each generated, cut to milliseconds."""
    work = request.prompt * PROMPT_MICROSECONDS + request.generated * GENERATED_MICROSECONDS
    return request.at_ms + work // 1000


def tenant(number: int, seed: int, tenants: int) -> int:
    """Whose a request is: the splitmix64 finaliser of its number in the trace and the seed, modulo the tenants."""
    word = (number + 1 + seed) * 0x9E3779B97F4A7C15 & _WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return (word ^ word >> 31) % tenants


def run(
    requests: Iterable[Request],
    start: Callable[[int], tuple[Ledger, Callable[[int], None]]],
    paths: list[str],
    rules: Rules,
) -> Result:
    """Reserves at each request's time and settles at its end.

    Args:
        requests: In order of time.
        start: Given the time of the first request, makes a ledger and the function that lets its clock advance.
        paths: The budget of each tenant.
        rules: What the trace does not say.
    """
    result = Result()
    arrivals = iter(requests)
    first = next(arrivals, None)
    if first is None:
        return result
    now_ms = first.at_ms
    ledger, advance = start(now_ms)
    live: list[tuple[int, int, Hold, int, Window]] = []

    def settle_until(time_ms: int) -> None:
        nonlocal now_ms
        while live and live[0][0] <= time_ms:
            ends_ms, _, hold, tokens, window = heapq.heappop(live)
            advance(ends_ms - now_ms)
            now_ms = ends_ms
            hold.settle(tokens=tokens)
            window.used_tokens += tokens
            result.used_tokens += tokens

    for number, request in enumerate(itertools.chain([first], arrivals)):
        settle_until(request.at_ms)
        advance(request.at_ms - now_ms)
        now_ms = request.at_ms
        result.requests += 1
        window = _window(result.windows, request.at_ms, WINDOWS_MS[rules.window])
        path = paths[tenant(number, rules.seed, len(paths))]
        got = ledger.reserve(path, tokens=request.prompt + rules.max_tokens, requests=1, in_flight=1)
        if isinstance(got, Hold):
            result.admitted += 1
            window.admitted += 1
            heapq.heappush(live, (end_ms(request), number, got, request.prompt + request.generated, window))
        else:
            result.denied += 1
            window.denied += 1
            result.codes[got.code] += 1
    settle_until(max((entry[0] for entry in live), default=now_ms))
    return result


def _window(windows: dict[int, Window], at_ms: int, length_ms: int) -> Window:
    number = at_ms // length_ms
    next_number = next(reversed(windows)) + 1 if windows else number
    if number - next_number >= WINDOWS_MAX:
        raise TraceError(f"more than {WINDOWS_MAX} windows without a request", "config.invalid", "take longer windows")
    for missing in range(next_number, number + 1):
        windows[missing] = Window(missing * length_ms)
    return windows[number]
