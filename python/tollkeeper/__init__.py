"""The admission controller for AI agents: may this principal do this action on this resource, now?"""

from tollkeeper._native import (
    Answer,
    Context,
    Entities,
    Entity,
    EntityUid,
    EvaluationError,
    PolicySet,
    build_info,
)
from tollkeeper.errors import (
    ArgumentsError,
    ContextError,
    EntityError,
    ErrorDetail,
    HandleError,
    InternalError,
    PolicyError,
    TollkeeperError,
)

__all__ = [
    "Answer",
    "ArgumentsError",
    "Context",
    "ContextError",
    "Entities",
    "Entity",
    "EntityError",
    "EntityUid",
    "ErrorDetail",
    "EvaluationError",
    "HandleError",
    "InternalError",
    "PolicyError",
    "PolicySet",
    "TollkeeperError",
    "build_info",
]
