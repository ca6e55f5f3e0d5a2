"""The part of ``tollkeeper doctor`` that looks at the machine: clocks, namespaces, and which agent hosts are installed.

Hosts are looked up by the metadata of their packages and never imported: importing one may take seconds and runs its
code.
"""

import ctypes
import importlib.metadata
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tollkeeper.adapters import _hosts
from tollkeeper.cli.doctor_line import Line

# Distribution -> what of this package works with it; None where nothing does yet.
HOSTS: Final[dict[str, str | None]] = {
    "claude-agent-sdk": None,
    "mcp": "any of its servers can stand behind `tollkeeper mcp`",
    "vllm": None,
    "sglang": None,
    "ray": None,
    "opentelemetry-api": "hooked: entries name the trace they belong to",
    "watchfiles": "hooked: [gate] watch = true reloads by itself",
}
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# What the kernel gives the namespaces it starts with, by include/uapi/linux/nsfs.h.
FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"
# When this was written: a clock before that has not been set.
WALL_SECONDS_MIN: Final = 1_767_225_600
SAMPLE_SECONDS: Final = 0.02
# Slewing changes a clock by half a thousandth.
DRIFT_SECONDS_MAX: Final = 0.005
# Of struct timex on 64-bit Linux: its size, and where the status stands.
_TIMEX_BYTES: Final = 208
_STATUS_AT: Final = 40
_UNSYNCHRONISED: Final = 0x40


def look() -> Iterator[Line]:
    """Everything about the machine."""
    yield from _clocks()
    yield _boot_id()
    yield _synchronised()
    yield from _namespace()
    yield from hosts()


def _clocks() -> Iterator[Line]:
    """Windows of budgets open by the boot clock and are named by the wall clock."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        yield Line("fail", "clocks", "there is no boot clock", "run on Linux")
        return
    wall, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    time.sleep(SAMPLE_SECONDS)
    drift = (time.time() - wall) - (time.clock_gettime(time.CLOCK_BOOTTIME) - boot)
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall))
    if wall < WALL_SECONDS_MIN:
        yield Line("fail", "clocks", f"the wall clock says {said}: it has not been set", "set the clock")
    elif abs(drift) > DRIFT_SECONDS_MAX:
        text = f"the wall clock moved by {drift * 1000:+.1f} ms against the boot clock within {SAMPLE_SECONDS} s"
        yield Line("warn", "clocks", text, "see who sets it; budgets follow a second at most")
    else:
        yield Line("ok", "clocks", f"{said}, {boot / 3600:,.1f} h after boot; both clocks run alike")
    offset = _clock_offset()
    if offset:
        text = f"a time namespace moves the boot clock by {offset} s: processes outside see another time"
        yield Line("warn", "clocks", text, "open the gates of one state inside one time namespace")


def _clock_offset() -> int:
    try:
        text = Path("/proc/self/timens_offsets").read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    found = re.search(r"^boottime\s+(-?\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _boot_id() -> Line:
    try:
        text = BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        return Line("ok", "boot id", "readable: a restart of the machine is noticed")
    return Line("fail", "boot id", f"{BOOT_ID} cannot be read, so no log and no ledger can be opened", "mount /proc")


def _synchronised() -> Line:
    """Whether the kernel's clock follows a time server: it says so itself, wherever the server runs."""
    answer = _adjtimex()
    if answer is None:
        return Line("ok", "time server", "the kernel does not say whether the clock is synchronised")
    if answer & _UNSYNCHRONISED:
        text = "the clock is not synchronised: windows of budgets and the times of entries are only as right as it is"
        return Line("warn", "time server", text, "run a time server's client, such as chrony")
    return Line("ok", "time server", "the clock is synchronised")


def _adjtimex() -> int | None:
    if ctypes.sizeof(ctypes.c_long) != 8:  # noqa: PLR2004 - bytes; the other layout is not known here
        return None
    # Zeroed modes ask and change nothing.
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        answer = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if answer < 0:
        return None
    return int.from_bytes(buffer.raw[_STATUS_AT : _STATUS_AT + 4], "little")


def _namespace() -> Iterator[Line]:
    """Who lives is told by locks of the kernel, which hold in every namespace; only numbers differ."""
    mine, first = _link("/proc/self/ns/pid"), _link("/proc/1/ns/pid")
    inside = [name for name in ("/.dockerenv", "/run/.containerenv") if Path(name).exists()]
    if mine is None:
        text = "/proc does not say: the numbers of processes in reports may be those of another namespace"
        yield Line("warn", "namespace", text, "mount /proc")
    elif first is not None and first != mine:
        text = "/proc is that of another PID namespace: the numbers of processes in reports mean others"
        yield Line("warn", "namespace", text, "mount /proc of this namespace")
    elif mine == FIRST_PID_NAMESPACE:
        where = f", in a container that shares them ({inside[0]})" if inside else ""
        yield Line("ok", "namespace", f"the machine's own process numbers{where}")
    else:
        text = "a PID namespace of its own: who lives is told by locks, which hold across containers of one machine"
        yield Line("ok", "namespace", text)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - the content is no path
    except OSError:
        return None


def hosts() -> Iterator[Line]:
    """What of the agent hosts is installed, and whether this version works with it."""
    missing: list[str] = []
    for host in _hosts.TABLE.values():
        found = version_of(host.distribution)
        if found is None:
            missing.append(host.distribution)
        elif host.is_too_old(found):
            text = f"{host.distribution} {found}: the adapter works from {host.oldest}"
            yield Line("warn", "hosts", text, f"pip install '{host.distribution}>={host.oldest}'")
        else:
            text = f"{host.distribution} {found}, tollkeeper.adapters.{host.name} is for it (`tollkeeper hosts`)"
            yield Line("ok", "hosts", text)
    for name, what in HOSTS.items():
        version = version_of(name)
        if version is None:
            missing.append(name)
        elif what is None:
            yield Line("ok", "hosts", f"{name} {version}: installed, adapter not yet in this version")
        else:
            yield Line("ok", "hosts", f"{name} {version}, {what}")
    if missing:
        yield Line("ok", "hosts", f"not installed: {', '.join(missing)}")


def version_of(name: str) -> str | None:
    """The version of an installed distribution, or ``None``."""
    try:
        version: str | None = importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError):
        return None
    # Metadata that a broken installation has left may have none.
    return version or "of unknown version"
