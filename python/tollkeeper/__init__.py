"""The admission controller for AI agents: may this principal do this action on this resource, now?"""

from tollkeeper._native import EntityUid, build_info
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
    "ArgumentsError",
    "ContextError",
    "EntityError",
    "EntityUid",
    "ErrorDetail",
    "HandleError",
    "InternalError",
    "PolicyError",
    "TollkeeperError",
    "build_info",
]
