"""What the type checkers see of administration. Checked by mypy and basedpyright, never run."""

from pathlib import Path
from typing import Any, assert_type

from tollkeeper import EntityUid, GateAdmin
from tollkeeper.admin import Question, Receipt, Reloaded

admin = GateAdmin.open(Path("tollkeeper.toml"), key="admin.key")
assert_type(admin, GateAdmin)
assert_type(admin.revoke(principal=EntityUid("Agent", "a"), reason="why"), Receipt)
assert_type(admin.restore(everything=True), Receipt)
assert_type(admin.revocations(), list[dict[str, Any]])
assert_type(admin.approvals(), list[Question])
assert_type(admin.approve("0123456789abcdef", expires_s=60), Question)
assert_type(admin.reject("0123456789abcdef", "no"), Question)
assert_type(admin.set_limit("acme", "tokens", "1d", 5), int)
assert_type(admin.reload(timeout=1), Reloaded)
assert_type(admin.status(), dict[str, Any])

admin.revoke('Agent::"a"')  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
admin.approve(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
