"""``tollkeeper report``: the page holds what the log does, nothing that a browser runs, and nothing from elsewhere.

Each number of a table is compared with a count over what ``audit show --json`` prints, made here without the code that
makes the page.
"""

import html.parser
import json
import os
import re
import resource
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import EntityUid, Gate, report
from tollkeeper.observed import OTHERS, Observed
from tollkeeper.report.style import STYLE

sys.path.insert(0, str(Path(__file__).resolve().parent))

import shadow_gate

Cli = Callable[..., Any]
VOID = {"meta", "br"}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section", "h1", "h2", "p"),
    *("ul", "li", "a", "dl", "div", "dt", "dd", "br", "strong", "figure", "figcaption", "details", "summary"),
    *("table", "thead", "tbody", "tfoot", "tr", "th", "td", "svg", "rect", "line", "text", "circle"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "id",
        "href",
        "role",
        "tabindex",
        "scope",
        "colspan",
    ),
    *("width", "height", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "text-anchor"),
    *("aria-label", "aria-labelledby", "aria-hidden"),
}
# What a page must not hold: controls but the line feed, and what turns text around or cannot be seen.
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=https://example.com/x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><svg onload=alert(1)>",
    "nul\x00esc\x1b[2Jc1\x9b",
    "bidi\u202egnp.exe\u2066\u200b\ufeff",
    "&lt;b&gt; {{7*7}} ${7*7} javascript:alert(1)",
    "l" * 450,
)


class Parsed(html.parser.HTMLParser):
    """The page taken apart: every element is closed, and known."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.named: list[str] = []
        self.meta: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        names = [name for name, _ in attrs]
        assert set(names) <= ATTRIBUTES
        assert len(names) == len(set(names))
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID and not (self.rawdata_is_closed()):
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        self.named += [one for one in given.get("aria-labelledby", "").split() if one]
        if tag == "meta":
            self.meta[given.get("http-equiv", given.get("name", "charset"))] = given.get("content", "")
        if tag == "table":
            self._table = given["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in {"th", "td"}:
            self.tables[self._table][-1].append("")
        if tag == "svg":
            assert given.get("aria-hidden") == "true" or given["aria-label"]

    def rawdata_is_closed(self) -> bool:
        return (self.get_starttag_text() or "").endswith("/>")

    def handle_endtag(self, tag: str) -> None:
        if not self.rawdata_is_closed() or (self.open and self.open[-1] == tag):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in {"th", "td"}:
            self.tables[self._table][-1][-1] += data

    def rows(self, id_: str, *columns: str) -> dict[str, tuple[int, ...]]:
        """Numbers of some columns, by the name of the row."""
        heads, *rows = self.tables[f"t-{id_}"]
        places = [heads.index(column) for column in columns]
        return {row[0]: tuple(int(row[place].replace(",", "")) for place in places) for row in rows if len(row) > 1}


def checked(text: str) -> Parsed:
    """Takes a page apart, and looks at what holds of every page."""
    assert text.startswith("<!DOCTYPE html>\n")
    assert not HIDDEN.search(text)
    parsed = Parsed(text)
    assert parsed.meta["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert all(link.startswith("#") for link in parsed.links)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links} | set(parsed.named) <= set(parsed.ids)
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style == [STYLE]
    assert not re.search(r"url\(|@import|expression", STYLE)
    return parsed


def entries(cli: Cli, *words: str) -> Iterator[dict[str, Any]]:
    done = cli("audit", "show", "--json", *words)
    assert done.code == 0
    for line in done.out.splitlines():
        yield json.loads(line)["entry"]


def written(cli: Cli, folder: Path, *words: str) -> Parsed:
    done = cli("report", *words, "-o", "page.html")
    assert (done.code, done.err) == (0, "")
    return checked((folder / "page.html").read_text(encoding="utf-8"))


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A log with the same calls in shadow mode and enforced."""
    shadow_gate.recorded(tmp_path, "shadow")
    return shadow_gate.recorded(tmp_path, "enforce")


def became(entry: dict[str, Any]) -> int:
    """Place of a decision's column: allowed, denied, would be denied."""
    return 1 if entry["decision"] == "deny" else 2 if "would_deny" in entry else 0


def count(found: list[dict[str, Any]], key: Callable[[dict[str, Any]], list[str]]) -> dict[str, tuple[int, int, int]]:
    counts = {name: [0, 0, 0] for entry in found for name in key(entry)}
    for entry in found:
        for name in key(entry):
            counts[name][became(entry)] += 1
    return {name: (row[0], row[1], row[2]) for name, row in counts.items()}


def tool_of(entry: dict[str, Any]) -> str:
    return entry.get("tool") or f"call_model {entry['model']['name']}"


def policies_of(entry: dict[str, Any]) -> list[str]:
    code = entry["code"] if became(entry) == 1 else entry.get("would_deny")
    if code == "policy.no_permit":
        return ["(no policy permits it)"]
    return (
        list(entry["policies" if became(entry) == 1 else "would_deny_policies"]) if code == "policy.forbidden" else []
    )


@pytest.mark.usefixtures("both")
def test_every_number_is_that_of_the_log(cli: Cli, tmp_path: Path) -> None:
    page = written(cli, tmp_path)
    found = list(entries(cli, "--kind", "decision"))
    assert len(found) == 24
    fates = ("allowed", "denied", "would be denied")
    assert page.rows("mode", *fates) == count(found, lambda entry: [entry["mode"]])
    assert page.rows("agent", *fates) == count(found, lambda entry: [entry["principal"]])
    assert page.rows("tool", *fates) == count(found, lambda entry: [tool_of(entry)])
    against = [entry for entry in found if became(entry)]
    codes = count(against, lambda entry: [entry["code"] if became(entry) == 1 else entry["would_deny"]])
    assert page.rows("code", *fates[1:]) == {code: row[1:] for code, row in codes.items()}
    policies = count(against, policies_of)
    assert page.rows("policy", *fates[1:]) == {policy: row[1:] for policy, row in policies.items()}
    over_time = [tuple(map(sum, zip(*page.rows("time", *fates).values(), strict=True)))]
    assert over_time == [tuple(Counter(map(became, found))[place] for place in range(3))]
    kinds = Counter(entry["kind"] for entry in entries(cli))
    events = {kind: (count,) for kind, count in kinds.items() if kind not in {"decision", "outcome", "run"}}
    assert page.rows("kind", "entries") == events
    assert {row[1] for row in page.tables["t-event"][1:]} == set(events)
    assert page.rows("log", "entries") == {"log 0": (kinds.total(),)}
    assert not re.search("https?:|//", (tmp_path / "page.html").read_text().lower())


@pytest.mark.usefixtures("both")
def test_what_budgets_paid(cli: Cli, tmp_path: Path) -> None:
    page = written(cli, tmp_path)
    expected: dict[str, Counter[str]] = {}
    paths: dict[str, str] = {}
    for entry in entries(cli, "--kind", "decision"):
        if budget := entry.get("budget"):
            counts = expected.setdefault(budget["path"], Counter())
            counts["refused"] += "refused" in budget
            if "reserved" in budget and entry["decision"] == "allow":
                counts["paid calls"] += 1
                counts.update(budget["reserved"])
                paths[entry["id"]] = budget["path"]
    for entry in entries(cli, "--kind", "outcome"):
        if "usage" in entry and entry["of"] in paths:
            usage = entry["usage"]
            expected[paths[entry["of"]]]["reported"] += usage.get("prompt", 0) + usage.get("completion", 0)
            expected[paths[entry["of"]]]["cached"] += usage.get("cached", 0)
    columns = ("paid calls", "refused", "requests reserved", "tokens reserved", "tokens reported", "of them cached")
    keys = ("paid calls", "refused", "requests", "tokens", "reported", "cached")
    assert page.rows("budget", *columns) == {path: tuple(row[key] for key in keys) for path, row in expected.items()}
    assert expected["acme/research"]["reported"] == 2 * (1_200 + 311)
    heads, *rows = page.tables["t-budget"]
    dollars = {row[0]: row[heads.index("USD reserved")] for row in rows}
    for path, row in expected.items():
        whole, _, part = dollars[path].removeprefix("$").replace(",", "").partition(".")
        assert int(whole) * 10**9 + int(part.ljust(9, "0")) == row["nano_usd"]
    assert page.rows("model-tokens-reported-by-outcomes", "all").popitem()[1] <= (2 * 1_511,)


@pytest.mark.usefixtures("both")
def test_a_part_of_the_log(cli: Cli, tmp_path: Path) -> None:
    moment = [entry["time"] for entry in entries(cli, "--kind", "policy_load")][-1]
    page = written(cli, tmp_path, "--since", moment, "--title", "Only <i>the</i> last")
    assert set(page.rows("mode", "all")) == {"enforce"}
    assert page.texts.count("Only <i>the</i> last") == 2
    early = written(cli, tmp_path, "--until", moment)
    assert set(early.rows("mode", "all")) == {"shadow"}


def test_integrity_is_what_verify_says(cli: Cli, tmp_path: Path, both: Path) -> None:
    key = (both / "0" / "verifier.pub").read_text().strip()
    page = written(cli, tmp_path, "--key", key)
    assert "verified" in page.texts
    ((_, *_), (_, size, signed, unsigned, source)) = page.tables["t-log"]
    assert (signed, unsigned, source) == (f"entries 0 to {int(size) - 1}", "0", "given")
    assert page.tables["t-log"][1] != written(cli, tmp_path).tables["t-log"][1], (
        "the key beside the log is not one given"
    )
    assert "not verified" in written(cli, tmp_path, "--no-verify").texts
    verified = cli("audit", "verify", str(both)).out
    lines = [line[14:].strip() for line in verified.splitlines()[2:]]
    assert set(lines) <= {text.strip() for text in written(cli, tmp_path).texts}


def test_a_broken_log_is_said_to_be(cli: Cli, tmp_path: Path, both: Path) -> None:
    (segment,) = (both / "0" / "wal").iterdir()
    data = segment.read_bytes()
    assert b"never-delete" in data
    segment.write_bytes(data.replace(b"never-delete", b"ever--delete", 1))
    done = cli("report", str(both))
    assert "the log is broken" in done.err
    page = checked((tmp_path / "report.html").read_text())
    assert "BROKEN" in page.texts


def test_hostile_names(cli: Cli, tmp_path: Path) -> None:
    gate = Gate.open(shadow_gate.write(tmp_path, "enforce"))
    for text in HOSTILE:
        with gate.run(principal=EntityUid("Agent", text), session="s-1"):
            gate.check(text[:60], {text: text})
            gate.check("search", {"query": text})
    shadow_gate.closed(gate)
    page = written(cli, tmp_path, "--title", "".join(HOSTILE[:4]))
    assert len(page.tables["t-agent"]) == 1 + len(HOSTILE)
    assert max(len(cell) for rows in page.tables.values() for row in rows for cell in row) <= 300
    assert (tmp_path / "page.html").stat().st_size < 100_000
    # As text, of which nothing became an element: the parser knows them all.
    cells = [cell for rows in page.tables.values() for row in rows for cell in row]
    for text in HOSTILE[:4]:
        assert any(text[:20] in cell for cell in cells)
    assert any(r"nul\u{0}esc\u{1b}[2Jc1\u{9b}" in cell for cell in cells)
    assert any(r"bidi\u{202e}gnp.exe\u{2066}\u{200b}\u{feff}" in cell for cell in cells)
    assert any("(459 characters, " in cell for cell in cells)


def entry(number: int, kind: str, **members: Any) -> bytes:
    envelope = {"v": 1, "kind": kind, "producer": "a", "seq": number, "time": f"2026-11-{1 + number % 28:02}T10:00:00Z"}
    return json.dumps({**envelope, **members}).encode()


def made(observed: Observed, **more: Any) -> Parsed:
    return checked(report.page(observed, report.Page(title="t", source="s", made="m", **more)))


def test_entries_of_any_form() -> None:
    observed = Observed()
    odd: list[Any] = [None, True, -1, 10**30, 1.5, "", "\ud800", [], [[1]], {"a": {}}, {"name": [1]}, {"path": 7}]
    members = [
        "time",
        "id",
        "principal",
        "tool",
        "model",
        "policies",
        "errors",
        "budget",
        "mode",
        "usage",
        "of",
        "code",
    ]
    members += ["would_deny", "status", "target", "oversize"]
    kinds = ("decision", "outcome", "revoke", "approve", "x")
    for kind in kinds:
        for name in members:
            for value in odd:
                given: dict[str, Any] = {"decision": "allow", "code": "allow", name: value}
                observed.take(json.dumps({"kind": kind, "time": "2026-11-21T10:00:00Z", **given}).encode())
    for raw in (b"", b"\xff", b"[1]", b'{"kind":"decision"}', b'{"a":' * 5_000):
        observed.take(raw)
    # A lone surrogate is no text.
    assert observed.calls.calls == len(members) * (len(odd) - 1)
    assert observed.unreadable == 5 + len(kinds) * len(members)
    page = made(observed)
    assert any("could not be read" in text for text in page.texts)


def test_tables_and_memory_have_a_bound() -> None:
    observed = Observed()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(60_000):
        budget = {"path": f"acme/{number}", "reserved": {"tokens": 1}}
        common = {"id": f"a-{number}", "principal": f'Agent::"{number}"', "mode": "enforce", "budget": budget}
        model = {"name": f"m{number}"}
        observed.take(entry(number, "decision", decision="allow", code="allow", model=model, **common))
        observed.take(entry(number, f"kind-{number}", text="x" * 100))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 100 << 10
    assert observed.by_principal.rows[OTHERS].calls == 50_000
    page = made(observed)
    assert page.rows("agent", "calls")[OTHERS] == (50_000,)
    assert page.tables["t-agent"][-1] == [f"and {10_001 - 50:,} more agents"]
    assert page.tables["t-event"][-1] == ["and 59,900 more entries"]
    budgets = page.rows("budget", "paid calls", "tokens reserved")
    assert budgets[OTHERS] == (59_000, 59_000)
    assert sum(row[0] for row in page.rows("time", "allowed").values()) == 60_000


@pytest.mark.parametrize("days", [0, 1, 40, 4_000, 2_000_000])
def test_any_stretch_of_time_fits(days: int) -> None:
    observed = Observed()
    for number in range(5_000):
        year, day = 2000 + days * number // 5_000 // 366, 1 + number % 28 * min(1, days)
        at = f"{year:04}-01-{day:02}T0{number % 9 * min(1, days)}:00:00Z"
        observed.take(json.dumps({"kind": "decision", "decision": "allow", "time": at}).encode())
    bars = made(observed).rows("time", "allowed")
    assert 1 <= len(bars) <= 48
    assert observed.over_time.keys.total() == 5_000


def test_latency_is_drawn_if_there_is_any() -> None:
    bins = [(0, 100, 0), (100, 200, 900), (200, 400, 0), (400, 800, 99), (800, 2_000_000, 1), (2_000_000, 3_000_000, 0)]
    page = made(Observed(), latency=bins)
    assert page.rows("latency", "checks") == {"100 ns": (900,), "200 ns": (0,), "400 ns": (99,), "800 ns": (1,)}
    said = " ".join(page.texts)
    assert "1,000 checks that were timed, one of sixteen. 50 % took less than 200 ns; " in said
    assert "99 % took less than 800 ns; 99.9 % took less than 800 ns." in said
    many = [(step, step + 1, step) for step in range(1, 500)]
    rows = made(Observed(), latency=many).rows("latency", "checks")
    assert len(rows) <= 48
    assert sum(count for (count,) in rows.values()) == sum(range(500))
    assert "t-latency" not in made(Observed()).tables
    assert "t-latency" not in made(Observed(), latency=[(0, 1, 0)]).tables


def test_calls_without_an_entry_are_said() -> None:
    observed = Observed()
    for number, (kind, count) in enumerate(
        (("denied_unlogged", 1_200), ("gap", 3), ("denied_unlogged", 34), ("gap", "x"))
    ):
        observed.take(entry(number, kind, count=count))
    said = " ".join(made(observed).texts)
    assert "Besides, 1,234 calls were denied and 3 let through without an entry, because the log had no room" in said
    assert "Besides" not in " ".join(made(Observed()).texts)


def test_events_in_words() -> None:
    observed = Observed()
    who = {"kind": "principal", "name": 'Agent::"eve"'}
    observed.take(entry(1, "revoke", target=who, restored=False, generation=3, reason="leaked", by="ops"))
    observed.take(entry(2, "revoke", target=who, restored=True, generation=4, observed=True))
    observed.take(entry(3, "approve", approval="ap-1", granted=True, by="finance"))
    observed.take(entry(4, "approve", approval="ap-2", granted=False, by="finance"))
    observed.take(entry(5, "limit_changed", path="acme", unit="tokens", before=1, after=2))
    assert [row[1:] for row in made(observed).tables["t-event"][1:]] == [
        ["limit_changed", "path=acme, unit=tokens, before=1, after=2"],
        ["approve", "rejected ap-2 by finance"],
        ["approve", "granted ap-1 by finance"],
        ["revoke", 'restored principal Agent::"eve", noticed by a process'],
        ["revoke", 'revoked principal Agent::"eve", by ops: leaked'],
    ]


def test_a_folder_that_is_not_there_is_named_as_given(cli: Cli, both: Path) -> None:
    done = cli("report", str(both), "-o", "missing/page.html")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: missing/page.html: missing is no folder\n")


def test_the_file_is_its_owners(cli: Cli, tmp_path: Path, both: Path) -> None:
    assert cli("report", str(both), "-o", "page.html").code == 0
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600
    assert cli("report", str(both), "-o", str(tmp_path)).code == 2
    assert cli("report", str(both), "-o", "none/page.html").code == 2
    assert cli("report", "none").code == 2
    assert not list(tmp_path.glob(".*.part"))


def test_a_page_takes_the_place_of_nothing_else(cli: Cli, tmp_path: Path, both: Path) -> None:
    fifo, link, real = tmp_path / "fifo", tmp_path / "link", tmp_path / "real.html"
    os.mkfifo(fifo)
    real.write_text("kept")
    link.symlink_to(real)
    for name, text in (("fifo", "no regular file"), ("link", "symbolic link"), ("/dev/null", "no regular file")):
        done = cli("report", str(both), "-o", name)
        assert (done.code, text in done.err) == (2, True), done.err
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert (link.is_symlink(), real.read_text()) == (True, "kept")
    assert cli("report", str(both), "-o", "real.html").code == 0
    assert real.read_text() != "kept"


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast(scheme: int) -> None:
    colours = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[scheme]))
    needed = {"text": 4.5, "soft": 4.5, "good": 4.5, "bad": 4.5, "warn": 4.5}
    needed |= dict.fromkeys(("allowed", "denied", "would", *(f"c{place}" for place in range(7))), 3.0)
    for name, least in needed.items():
        for ground in ("page", "panel"):
            low, high = sorted((luminance(colours[name]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


def test_latency_comes_from_the_gates_of_the_state_directory(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text("permit(principal, action, resource);")
    (tmp_path / "tollkeeper.toml").write_text(
        "[policy]\nfiles = ['p.cedar']\n[audit]\n[state]\ndir = 'state'\n[tools.search]\nresource = 'Mcp::\"web\"'\n"
    )
    with Gate.open(tmp_path / "tollkeeper.toml") as gate:
        with gate.run(principal='Agent::"a"'):
            for _ in range(160):
                gate.check("search")
        timed = gate.stats()["timed"]
    assert timed == 10
    page = written(cli, tmp_path)
    assert sum(count for (count,) in page.rows("latency", "checks").values()) == timed
