"""``tollkeeper hosts``: what the adapter of each agent runtime guarantees, as the contract suite has found it.

It runs nothing: the results are those of the tests, which fail while what is printed here is not what they find.
"""

import argparse
from importlib import metadata

from tollkeeper.adapters import _hosts
from tollkeeper.cli.terminal import EXIT_OK, coloured, out, out_json, table, wrapped

BY = {
    "hooks": ("yes", "by the guard's hooks in the agent"),
    "install": ("install", "only after `guard.install()`, which gates the runtime's tools in the whole process"),
    "open": ("no", "not by the adapter; see the reasons"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object per host and case")


def run(arguments: argparse.Namespace) -> int:
    """Prints the matrix."""
    found = _hosts.guarantees()
    if arguments.json:
        for name, cases in found.items():
            for case, row in cases.items():
                out_json({"host": name, "case": case, "what": _hosts.CASES[case], **row})
        return EXIT_OK
    heads = ("", *(_hosts.TABLE[name].name for name in found), "")
    rows = [
        (case, *(BY[found[name][case]["by"]][0] if case in found[name] else "-" for name in found), what)
        for case, what in _hosts.CASES.items()
    ]
    for line in table(heads, rows):
        out(line)
    out()
    for word, meaning in BY.values():
        out(f"{word:<8} {meaning}")
    out()
    for name, cases in found.items():
        host = _hosts.TABLE[name]
        tested = f"tested with {host.distribution} {host.oldest} to {host.newest}; {installed(host)}"
        out(coloured(f"{host.title}: {tested}", "bold"))
        for case, row in cases.items():
            if "reason" in row:
                head = f"  {case}: "
                out(head + f"\n{' ' * len(head)}".join(wrapped(row["reason"], len(head))))
    out()
    out("Every other client of MCP servers can be guarded without its code: tollkeeper mcp --help")
    return EXIT_OK


def installed(host: _hosts.Host) -> str:
    """Which version is here."""
    try:
        version = metadata.version(host.distribution)
    except metadata.PackageNotFoundError:
        return "not installed here"
    return f"{version} is installed, which is too old" if host.is_too_old(version) else f"{version} is installed"
