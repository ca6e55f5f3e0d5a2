"""The exceptions: builtin bases, codes, pickling, and panics that become one of them."""

import copy
import pickle
import subprocess
import sys

import pytest

from tollkeeper import errors

DETAIL = errors.ErrorDetail("policy.syntax", "unexpected token `)`", "a.cedar", 3, 7, "permit (", "close it")


@pytest.mark.parametrize(
    "error",
    [
        errors.TollkeeperError("m"),
        errors.ArgumentsError("m", "input.too_large", "h"),
        errors.HandleError("m", "gate.forked"),
        errors.InternalError("m", "internal.panic", "h"),
        *(kind("m", "c", "h", [DETAIL]) for kind in (errors.PolicyError, errors.EntityError, errors.ContextError)),
    ],
)
def test_errors_survive_pickling(error: errors.TollkeeperError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(again) is type(error)
        assert str(again) == str(error) == "m"
        assert vars(again) == vars(error)
        assert again.args == ("m",)


def test_errors_are_the_builtin_kind_too() -> None:
    for kind in (errors.PolicyError, errors.EntityError, errors.ContextError, errors.ArgumentsError):
        assert issubclass(kind, ValueError)
    for kind in (errors.HandleError, errors.InternalError):
        assert issubclass(kind, RuntimeError)
    assert all(
        issubclass(getattr(errors, name), errors.TollkeeperError) for name in errors.__all__ if "Detail" not in name
    )


def test_a_panic_is_an_internal_error() -> None:
    # In a process of its own: where it happened goes to standard error, and its message does not.
    code = """
from tollkeeper import _native
try:
    _native._panic_on_purpose()
except Exception as error:
    print(type(error).__name__, error.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == ["InternalError", "internal.panic"]
    assert "probe.rs" in done.stderr
    assert "on purpose" not in done.stderr
