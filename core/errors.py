"""The errors that a person can put right."""

from __future__ import annotations


class V2VError(Exception):
    """Something a person can put right: the message says what, where, why and what to do. Exit code 2."""


class BuildError(V2VError):
    """A graph could not be exported or compiled."""


class EngineError(V2VError):
    """An engine set cannot be used here."""


class MachineError(EngineError):
    """An engine set is as it should be, but this machine cannot run it now: a driver, a GPU or memory is missing."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, for a message of ours; the error's class if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UsageError(V2VError):
    """An option or argument is invalid, or contradicts another."""
