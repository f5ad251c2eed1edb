"""The errors that users cause or can mend; the command line prints them as one line."""

from __future__ import annotations


class SapnetError(Exception):
    """Base of all errors whose text is written for the user: what is wrong, and what to do about it."""


class UsageError(SapnetError):
    """The command or call makes no sense as given (exit code 2)."""


class ImageError(SapnetError):
    """One image can't be read, processed or written; the rest of the batch goes on."""


class CheckpointError(SapnetError):
    """A file of weights is missing, damaged, foreign or not to be trusted."""


class OutOfMemoryError(SapnetError):
    """Not even the smallest tile, or not a single step of training, fits into memory."""
