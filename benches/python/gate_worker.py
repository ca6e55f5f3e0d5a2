"""The other process of the gate bench: checks on a state directory that it shares, when it is told to.

`CONFIG POLICIES` on the command line; then lines `START COUNT`, with START on the monotonic clock, which all processes
of a host share. Each is answered by the microseconds of every check and the seconds they took together. `end` is
answered by how many checks it made and what its log says otherwise. Nothing here measures who was faster.
"""

import json
import sys
import time
from pathlib import Path

import gate_measure
import gate_shape


def main() -> None:
    """Answers until it is told to end."""
    policies = int(sys.argv[2])
    subject = gate_shape.opened(Path(sys.argv[1]), policies, fresh=False)
    log = subject.gate.log
    assert log is not None  # noqa: S101 - the configuration has one
    with subject.scope:
        gate_measure.checks(subject, 1_000)
        log.flush()
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "end":
                made = log.flush() - subject.entries_before
                print(json.dumps([subject.checks, made]), flush=True)
                break
            start, count = line.split()
            while time.monotonic() < float(start):
                pass
            before = time.monotonic()
            taken = gate_measure.checks(subject, int(count))
            seconds = time.monotonic() - before
            # The next burst finds an empty ring, whatever the disk does.
            log.flush()
            print(json.dumps([seconds, [round(value, 3) for value in taken]]), flush=True)
    subject.gate.close()


if __name__ == "__main__":
    main()
