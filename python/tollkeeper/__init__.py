"""The admission controller for AI agents: may this principal do this action on this resource, now?"""

from tollkeeper._native import (
    Answer,
    Context,
    Decision,
    Entities,
    Entity,
    EntityUid,
    EvaluationError,
    PolicySet,
    build_info,
    decision_codes,
)
from tollkeeper.errors import (
    ArgumentsError,
    ConfigError,
    ContextError,
    Denied,
    EntityError,
    ErrorDetail,
    HandleError,
    InternalError,
    PolicyError,
    TollkeeperError,
)
from tollkeeper.gate import Gate, Principal, Run, Scope

__all__ = [
    "Answer",
    "ArgumentsError",
    "ConfigError",
    "Context",
    "ContextError",
    "Decision",
    "Denied",
    "Entities",
    "Entity",
    "EntityError",
    "EntityUid",
    "ErrorDetail",
    "EvaluationError",
    "Gate",
    "HandleError",
    "InternalError",
    "PolicyError",
    "PolicySet",
    "Principal",
    "Run",
    "Scope",
    "TollkeeperError",
    "build_info",
    "decision_codes",
]
