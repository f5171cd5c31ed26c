"""Signatures of the methods of a mixin, which take the arguments of the methods they extend."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any


def show_own_parameters(cls: type, mixin: type, names: Iterable[str]) -> None:
    """Give the methods that `cls` inherits from `mixin` the signatures of the methods they extend.

    Call it from `__init_subclass__` of the mixin, whose methods take `*args` and `**kwargs`.
    """
    for name in names:
        extended = getattr(super(mixin, cls), name, None)
        if extended is not None and getattr(cls, name) is vars(mixin)[name]:
            setattr(cls, name, _showing(cls, name, extended))


def _showing(cls: type, name: str, extended: Any) -> Any:
    """A method of `cls` that calls the inherited one, with the signature of `extended`."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(cls, self), name)(*args, **kwargs)

    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    method.__doc__ = getattr(cls, name).__doc__
    method.__signature__ = inspect.signature(extended)  # type: ignore[attr-defined]
    return method
