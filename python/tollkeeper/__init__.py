"""The admission controller for AI agents: may this principal do this action on this resource, now?"""

from tollkeeper import _native
from tollkeeper._native import (
    Action,
    Answer,
    BatchAnswer,
    Context,
    Decision,
    Decisions,
    Entities,
    Entity,
    EntityUid,
    EvaluationError,
    PolicySet,
    build_info,
    decision_codes,
)
from tollkeeper.audit import AuditLog
from tollkeeper.budget import Denial, Hold, Ledger, Meter, Usage
from tollkeeper.errors import (
    ArgumentsError,
    AuditError,
    BudgetError,
    ConfigError,
    ContextError,
    Denied,
    EntityError,
    ErrorDetail,
    HandleError,
    InternalError,
    PolicyError,
    StateError,
    TollkeeperError,
)
from tollkeeper.gate import Gate, ModelCall, Principal, Run, Scope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tollkeeper.admin import GateAdmin

# What is kept in the native module is of one interpreter of the process: another one is refused here.
_native._claim_interpreter()  # noqa: SLF001 - the other half of this package

__all__ = [
    "Action",
    "Answer",
    "ArgumentsError",
    "AuditError",
    "AuditLog",
    "BatchAnswer",
    "BudgetError",
    "ConfigError",
    "Context",
    "ContextError",
    "Decision",
    "Decisions",
    "Denial",
    "Denied",
    "Entities",
    "Entity",
    "EntityError",
    "EntityUid",
    "ErrorDetail",
    "EvaluationError",
    "Gate",
    "GateAdmin",
    "HandleError",
    "Hold",
    "InternalError",
    "Ledger",
    "Meter",
    "ModelCall",
    "PolicyError",
    "PolicySet",
    "Principal",
    "Run",
    "Scope",
    "StateError",
    "TollkeeperError",
    "Usage",
    "build_info",
    "decision_codes",
]


def __getattr__(name: str) -> object:
    """`GateAdmin` is loaded when it is asked for: agents' programs do not."""
    if name == "GateAdmin":
        from tollkeeper.admin import GateAdmin  # noqa: PLC0415 - see above

        return GateAdmin
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
