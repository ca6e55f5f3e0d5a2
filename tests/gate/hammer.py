"""One process of the kill switch's test: checks as fast as it can and notes when the last allowed check began.

Arguments: the configuration, the principal, the file to write to. It waits for a line, and ends
a fifth of a second after it was revoked.
"""

import sys
import time

from tollkeeper import Gate


def main() -> None:
    """Checks until it is stopped."""
    config, principal, file = sys.argv[1:]
    last_allowed = first_denied = checks = 0
    codes: set[str] = set()
    end = time.monotonic_ns() + 30 * 10**9
    with Gate.open(config) as gate, gate.run(principal=principal, session="s"):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        while time.monotonic_ns() < end:
            begun = time.monotonic_ns()
            decision = gate.check("search", {"query": "weather"})
            checks += 1
            if decision.allowed:
                last_allowed = begun
            elif decision.code != "audit.unavailable":
                # Nine processes fill their rings faster than one disk takes it: that denies too, and is not the point.
                codes.add(decision.code)
                first_denied = first_denied or begun
                if begun - first_denied > 2 * 10**8:
                    break
    with open(file, "w", encoding="utf-8") as out:  # noqa: PTH123 - one line
        out.write(f"{last_allowed} {first_denied} {checks} {','.join(sorted(codes))}\n")


if __name__ == "__main__":
    main()
