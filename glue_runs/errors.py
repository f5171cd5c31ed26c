"""Errors of the user's input."""

from __future__ import annotations


class InputError(ValueError):
    """The arguments, a file or the data cannot be used; the message names the remedy."""
