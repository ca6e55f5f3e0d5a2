"""
The native half of the package. Import from `tollkeeper`, not from here.
"""

from typing import final

__all__ = [
    "EntityUid",
    "_echo_arguments",
    "_echo_uid",
    "_fork_generation",
    "_measure_arguments",
    "_panic_on_purpose",
    "build_info",
]

@final
class EntityUid:
    """
    The name of a principal, an action or a resource: a type and an id.

    Prepared once and used many times, it saves reading the text on each call.

    Args:
        type: The type name, such as `User` or `Ns::User`.
        id: The id; any text, not escaped.

    Raises:
        EntityError: The type is not a type name.

    Example:
        >>> from tollkeeper import EntityUid
        >>> alice = EntityUid("User", "alice")
        >>> str(alice)
        'User::"alice"'
        >>> EntityUid.parse('User::"alice"') == alice
        True
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs__(self, /) -> tuple[str, str]: ...
    def __hash__(self, /) -> int: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, type: str, id: str) -> EntityUid: ...
    def __repr__(self, /) -> str: ...
    def __str__(self, /) -> str: ...
    @property
    def id(self, /) -> str:
        """
        The id, not escaped.
        """
    @staticmethod
    def parse(text: str, /) -> EntityUid:
        """
        Reads the text form, `Type::"id"`, exactly as Cedar prints it.

        Raises:
            EntityError: The text is not a uid in its printed form.
        """
    @property
    def type(self, /) -> str:
        """
        The type name.
        """

def _echo_arguments(arguments: object, /) -> object:
    """
    Takes the snapshot of `arguments` and gives it back as Python data; an integer beyond 64 bits becomes `...`.
    """

def _echo_uid(uid: EntityUid | str, /) -> str:
    """
    Reads a uid argument, a handle or its text, and returns the text.
    """

def _fork_generation() -> int:
    """
    The fork generation of this process, with the hook in place.
    """

def _measure_arguments(arguments: object, /) -> int:
    """
    Takes the snapshot of `arguments` and returns the bytes charged for it.
    """

def _panic_on_purpose() -> None:
    """
    Panics, to show what becomes of it.
    """

def build_info() -> dict[str, str]:
    """
    Tells how this module was built: `version`, `profile` (`release` or `debug`) and `abi` (`abi3` or `native`).
    """
