"""The part of ``tollkeeper doctor`` that looks at folders: who can write what a gate trusts, and what the disk can do.

The file system is tried and not believed: a temporary file is mapped twice, locked, allocated and brought to the disk.
It is without a name as soon as it is open. Nothing else is made, and no mode is changed.
"""

import fcntl
import grp
import mmap
import os
import pwd
import stat
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tollkeeper.cli.doctor_line import Line, reason, watched

GROUP_OR_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# Names of a group that are printed.
MEMBERS_MAX: Final = 5
MOUNTS: Final = Path("/proc/self/mountinfo")
IN_MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs")
LAYERED: Final = ("overlay", "aufs")
# Mappings and locks of one host are not those of another there, or only at times.
REMOTE: Final = ("nfs", "9p", "cifs", "smb", "ceph", "afs", "lustre", "virtiofs", "gfs", "glusterfs", "fuse")

TRIAL_BYTES: Final = 1 << 20
SYNCS: Final = 5
SYNC_SLOW_MS: Final = 50.0
# Below it the next segment of a log does not fit; below the other it soon will not.
FREE_BYTES_MIN: Final = 128 << 20
FREE_BYTES_LOW: Final = 1 << 30
# struct flock: type, whence, start, length, process.
_FLOCK: Final = "hhqqi"

# As Linux stores an access list: a version, then tag, permissions and id of each entry.
ACL_NAMES: Final = ("system.posix_acl_access", "system.posix_acl_default")
ACL_VERSION: Final = 2
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP, _ACL_MASK = 0x02, 0x08, 0x10
_ACL_WRITE: Final = 2


class Place(NamedTuple):
    """A folder that a gate writes to."""

    subject: str
    path: Path
    files: tuple[str, ...] = ()
    """Patterns of the files in it that only the gate may write."""


class Folders:
    """Looks at folders one after the other, and at nothing twice."""

    def __init__(self) -> None:
        self._above: set[Path] = set()
        self._tried: set[Path] = set()
        self._devices: set[int] = set()

    def look(self, place: Place, *, again: bool = False) -> Iterator[Line]:
        """Everything about one folder.

        Args:
            place: The folder.
            again: It was looked at before, for something else; only its files are new.
        """
        yield from watched(place.subject, _files(place) if again else self._look(place))

    def parents(self, path: Path, subject: str) -> Iterator[Line]:
        """The folders above: whoever can write one of them can put something else in the place of what is below it."""
        for above in (*path.absolute().parents, *Path(os.path.realpath(path)).parents):
            if above not in self._above:
                self._above.add(above)
                yield from watched(subject, _parent(above, path, subject))

    def _look(self, place: Place) -> Iterator[Line]:
        path = place.path
        if path.is_symlink() and not path.exists():
            yield Line("fail", place.subject, f"{path}: a link to nowhere", "remove it, or make the folder it names")
            return
        above = path
        while not os.path.lexists(above) and above != above.parent:
            above = above.parent
        if not above.is_dir():
            yield Line("fail", place.subject, f"{above}: a file, where a folder is needed", "name another folder")
            return
        if above == path:
            yield from _writers(place)
            yield from _files(place)
        else:
            yield Line("ok", place.subject, f"{path}: made by the first gate that opens it, for its user alone")
        yield from self.parents(path, place.subject)
        yield from watched("file system", self._disk(above))

    def _disk(self, folder: Path) -> Iterator[Line]:
        if folder not in self._tried:
            self._tried.add(folder)
            yield from _trial(folder)
        device = folder.stat().st_dev
        if device not in self._devices:
            self._devices.add(device)
            yield _free(folder)


def _files(place: Place) -> Iterator[Line]:
    for pattern in place.files:
        for file in sorted(place.path.glob(pattern)):
            yield from _file(file)


def _writers(place: Place) -> Iterator[Line]:
    """Who owns a folder, and who else can write it."""
    path, state = place.path, place.path.stat()
    mode, owner, me = stat.S_IMODE(state.st_mode), state.st_uid, os.geteuid()
    said = f"{path}: of {user(owner)}, mode {mode:04o}"
    # What is written there tells every process of the host what is revoked, spent and recorded.
    if mode & stat.S_IWOTH:
        yield Line("fail", place.subject, f"{said}: everybody on this machine can write it", f"chmod 0700 {path}")
    elif mode & stat.S_IWGRP:
        yield Line("warn", place.subject, f"{said}: {group(state.st_gid, owner)} can write it", f"chmod 0700 {path}")
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        fix = f"run the gate as {user(owner)}, or chown {me} {path}"
        yield Line("fail", place.subject, f"{said}: {user(me)} cannot write it", fix)
    elif me not in {owner, 0}:
        yield Line("warn", place.subject, f"{said}: another user than {user(me)}", f"chown {me} {path}")
    elif mode & GROUP_OR_OTHERS:
        yield Line("warn", place.subject, f"{said}: others can look into it", f"chmod 0700 {path}")
    else:
        yield Line("ok", place.subject, f"{said}: nobody else can write it")
    yield from _listed(path, place.subject)


def _file(file: Path) -> Iterator[Line]:
    """A file that only the gate may write; if it is a key, only the gate may read it, too."""
    state = file.stat()
    mode = stat.S_IMODE(state.st_mode)
    if not stat.S_ISREG(state.st_mode):
        yield Line("fail", "permissions", f"{file}: not a regular file", "remove it")
    elif file.suffix == ".key":
        if mode & GROUP_OR_OTHERS:
            text = f"{file}: mode {mode:04o}: whoever reads it can sign a log of their own as this one"
            yield Line("fail", "signing key", text, f"chmod 0600 {file}, and tollkeeper audit rotate")
        else:
            yield Line("ok", "signing key", f"{file}: of {user(state.st_uid)}, mode {mode:04o}")
    elif mode & stat.S_IWOTH:
        yield Line("fail", "permissions", f"{file}: everybody on this machine can write it", f"chmod 0600 {file}")
    elif mode & stat.S_IWGRP:
        text = f"{file}: {group(state.st_gid, state.st_uid)} can write it"
        yield Line("warn", "permissions", text, f"chmod 0600 {file}")
    yield from _listed(file, "permissions")


def _parent(above: Path, path: Path, subject: str) -> Iterator[Line]:
    try:
        state = above.stat()
    except FileNotFoundError:
        # It is made together with the folder below it.
        return
    others = state.st_mode & stat.S_IWOTH
    if state.st_uid not in {0, os.geteuid(), _owner(path)}:
        text = f"{above}: of {user(state.st_uid)}, who can put something else in the place of {path}"
        yield Line("warn", subject, text, "keep it below folders of root and of the gate's user")
    elif state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not state.st_mode & stat.S_ISVTX:
        who = "everybody on this machine" if others else group(state.st_gid, state.st_uid)
        text = f"{above}: {who} can put something else in the place of {path}"
        yield Line("fail" if others else "warn", subject, text, f"chmod go-w {above}")


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _listed(path: Path, subject: str) -> Iterator[Line]:
    """Whom an access list lets write, which the mode does not show."""
    for name in ACL_NAMES:
        try:
            content = os.getxattr(path, name)
        except OSError:
            # There is none, or the file system has none.
            continue
        who = acl_writers(content)
        if who:
            text = f"{path}: its access list lets {', '.join(who)} write " + ("it" if name == ACL_NAMES[0] else "in it")
            yield Line("warn", subject, text, f"setfacl --remove-all --remove-default {path}")


def acl_writers(content: bytes) -> list[str]:
    """The users and groups that an access list names and lets write; empty if it is none that is known."""
    if int.from_bytes(content[:4], "little") != ACL_VERSION or (len(content) - 4) % _ACL_ENTRY.size:
        return []
    entries = list(_ACL_ENTRY.iter_unpack(content[4:]))
    mask = next((bits for tag, bits, _ in entries if tag == _ACL_MASK), _ACL_WRITE)
    return [
        f"user {user(number)}" if tag == _ACL_USER else group(number, None)
        for tag, bits, number in entries
        if tag in {_ACL_USER, _ACL_GROUP} and bits & mask & _ACL_WRITE
    ]


def user(number: int) -> str:
    """The name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group(number: int, owner: int | None) -> str:
    """A group with those of its members that are known here."""
    try:
        entry = grp.getgrgid(number)
    except KeyError:
        return f"group {number}"
    members = {*entry.gr_mem, *(one.pw_name for one in pwd.getpwall() if one.pw_gid == number)}
    others = sorted(members - ({user(owner)} if owner is not None else set()) - {"root"})
    more = f" and {len(others) - MEMBERS_MAX} more" if len(others) > MEMBERS_MAX else ""
    return f"group {entry.gr_name} ({', '.join(others[:MEMBERS_MAX])}{more})" if others else f"group {entry.gr_name}"


def filesystem(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that a path is on; ``None`` where the system does not say.

    Args:
        path: The path.
        mounts: What ``/proc/self/mountinfo`` says; read if it is not given.
    """
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(errors="replace")
        except OSError:
            return None
    real, best, kind = os.path.realpath(path), -1, None
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if len(fields) <= 4 or not rest:  # noqa: PLR2004 - the mount point is the fifth
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        # Of two at one point the later one is above.
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, kind = len(point), rest[0]
    return kind


def _trial(folder: Path) -> Iterator[Line]:
    """What the file system below a folder can do."""
    kind = filesystem(folder)
    named = f"{folder}: {kind or 'of unknown type'}"
    if kind in IN_MEMORY:
        text = f"{named} is in memory: what is kept there is lost when the machine stops"
        yield Line("warn", "file system", text, "name a folder on a disk")
    elif kind in LAYERED:
        text = f"{named} is the container's own layer: what is kept there is gone with the container"
        yield Line("warn", "file system", text, "mount a volume there")
    elif kind is not None and kind.startswith(REMOTE):
        text = f"{named}: mappings and locks need not hold between machines, nor a sync reach a disk"
        yield Line("warn", "file system", text, "name a folder on a disk of this machine")
    try:
        faults, sync_ms = trial(folder)
    except OSError as error:
        yield Line("fail", "file system", f"{folder}: cannot be written: {reason(error)}", _unwritable(folder))
        return
    for fault in faults:
        yield Line("fail", "file system", f"{named}: {fault}", "name a folder on a local disk")
    if not faults:
        slow = sync_ms > SYNC_SLOW_MS
        text = f"{named}: shared mappings, locks and allocation work; a sync takes {sync_ms:.2f} ms"
        fix = "a sync of every record will be slow: durability = 'group', or a faster disk" if slow else None
        yield Line("warn" if slow else "ok", "file system", text, fix)


def _unwritable(folder: Path) -> str:
    return f"run as {user(folder.stat().st_uid)}, or name a folder that {user(os.geteuid())} can write"


def trial(folder: Path) -> tuple[list[str], float]:
    """Tries what logs and ledgers need.

    Args:
        folder: A folder; the file that is made in it is gone afterwards.

    Returns:
        What does not work, and how many milliseconds a sync of 4 KiB takes, as the median of five.

    Raises:
        OSError: A file cannot be made or allocated.
    """
    faults: list[str] = []
    one, name = tempfile.mkstemp(prefix=".doctor-", dir=folder)
    try:
        two = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.unlink(name)  # noqa: PTH108 - mkstemp gives a name and no path
    try:
        # Before it is mapped: a page without a block would end this process with a signal.
        os.posix_fallocate(one, 0, TRIAL_BYTES)
        with mmap.mmap(one, TRIAL_BYTES) as first, mmap.mmap(two, TRIAL_BYTES) as second:
            first[:5] = b"first"
            second[-6:] = b"second"
            if (bytes(second[:5]), bytes(first[-6:]), os.pread(two, 5, 0)) != (b"first", b"second", b"first"):
                faults.append("two mappings of a file do not see each other's writes")
        if not _lock_is_seen(one, two):
            faults.append("a lock is not seen, so two processes could own one log")
        times: list[float] = []
        for number in range(SYNCS):
            os.pwrite(one, bytes([number]) * 4096, 4096 * number)
            begun = time.perf_counter()
            os.fdatasync(one)
            times.append((time.perf_counter() - begun) * 1000)
        return faults, statistics.median(times)
    finally:
        os.close(one)
        os.close(two)


def _lock_is_seen(one: int, two: int) -> bool:
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    try:
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, wanted)
        answer = fcntl.fcntl(two, fcntl.F_OFD_GETLK, wanted)
    except OSError:
        return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _free(folder: Path) -> Line:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    text = f"{folder}: {free / (1 << 30):,.1f} GiB free"
    if free < FREE_BYTES_MIN:
        what = f"{folder}: {free / (1 << 20):,.0f} MiB free: the log is full soon, and then everything is denied"
        return Line("fail", "disk", what, "make room")
    if found.f_files and not found.f_favail:
        return Line("fail", "disk", f"{text}, but no file can be made: there are no inodes left", "remove files")
    if free < FREE_BYTES_LOW:
        return Line("warn", "disk", text, "make room: a log that is full denies everything")
    return Line("ok", "disk", text)
