"""AGT's `AuditLog`, timed in its own process for `audit.py`, which sends one JSON object per line.

`{"run": KIND, "count": N, ...}` answers with the seconds of the clock and of the processor, `{"check": KIND}` with the
number of entries and whether AGT itself finds its chain whole. Needs the environment of requirements/bench-agt.txt.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from agentmesh.governance.audit import AuditLog
from agentmesh.governance.audit_backends import FileAuditSink


def main() -> None:
    """Answers until the other side closes."""
    sink = FileAuditSink(Path(sys.argv[1]) / "agt.jsonl", b"a key of thirty-two bytes, no more")
    logs = {"memory": AuditLog(), "file": AuditLog(sink=sink)}
    made = dict.fromkeys(logs, 0)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        if "check" in command:
            log = logs[command["check"]]
            answer: list[Any] = [made[command["check"]], log.verify_integrity()[0]]
        else:
            log, record, count = logs[command["run"]], command["record"], command["count"]
            data = {**record, "private": command["private"]}
            processor, wall = time.process_time(), time.perf_counter()
            for _ in range(count):
                log.log(
                    "tool_invocation",
                    record["principal"],
                    record["action"],
                    resource=record["resource"],
                    data=data,
                    policy_decision=record["decision"],
                )
            answer = [time.perf_counter() - wall, time.process_time() - processor]
            made[command["run"]] += count
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
