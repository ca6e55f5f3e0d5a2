"""What the type checkers see of the public names. Checked by mypy and basedpyright, never run."""

from typing import assert_type

from tollkeeper import EntityUid, PolicyError, TollkeeperError, build_info
from tollkeeper.errors import ErrorDetail

uid = EntityUid("User", "alice")
assert_type(uid, EntityUid)
assert_type(uid.type, str)
assert_type(uid.id, str)
assert_type(EntityUid.parse('User::"alice"'), EntityUid)
assert_type(hash(uid), int)
assert_type(build_info(), dict[str, str])


def handle(error: PolicyError) -> str | None:
    """The fields of an error have types."""
    base: TollkeeperError = error
    value: ValueError = error
    assert_type(base.code, str)
    assert_type(error.errors, tuple[ErrorDetail, ...])
    assert_type(error.errors[0].line, int)
    return error.help or str(value)


EntityUid("User")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
EntityUid.parse(b"x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
