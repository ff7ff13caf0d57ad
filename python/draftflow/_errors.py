# SPDX-License-Identifier: Apache-2.0
"""The errors draftflow raises: few, each a different thing for the caller to do.

Each is also the built-in error that Python code expects at that place, so that `except KeyError` works.
"""


class Error(Exception):
    """Any error of draftflow. Its text says which object, what was found, what is allowed and what to do next."""

    def __str__(self) -> str:  # KeyError's own shows the repr
        return str(self.args[0]) if self.args else ""


class InvalidArgument(Error, ValueError):
    """The call or the configuration is wrong: change it."""


class NotFound(Error, KeyError):
    """Freed, superseded or never written: go on without it."""


class PermissionDenied(Error, PermissionError):
    """A secret or a mode is missing."""


class Exhausted(Error, MemoryError):
    """A cap or the disk is full: slow down, then retry."""


class Conflict(Error, RuntimeError):
    """The lease or the timeline was lost: start again from the ledger."""


class Corrupt(Error, RuntimeError):
    """The bytes are not what was written: never use them."""


class Unavailable(Error, ConnectionError):
    """A passing failure: retry."""


class InDoubt(Error, RuntimeError):
    """The outcome is unknown: ask before retrying."""
