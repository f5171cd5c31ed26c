"""Errors of the user's input."""

from __future__ import annotations


class InputError(ValueError):
    """Something in the arguments, the files or the data cannot be used; the message names the remedy."""
