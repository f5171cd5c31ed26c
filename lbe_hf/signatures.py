"""Methods that take the arguments of whatever method they extend, and show it to whoever inspects them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any


def show_own_parameters(cls: type, mixin: type, names: Iterable[str]) -> None:
    """Let the methods that `cls` has from `mixin` show the parameters of the methods that they extend.

    Called from `__init_subclass__` of the mixin, whose methods take `*args` and `**kwargs`.
    """
    for name in names:
        extended = getattr(super(mixin, cls), name, None)
        if extended is not None and getattr(cls, name) is vars(mixin)[name]:
            setattr(cls, name, _showing(cls, name, extended))


def _showing(cls: type, name: str, extended: Any) -> Any:
    """A method of `cls` that does what its next class does, with the signature of `extended`."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(cls, self), name)(*args, **kwargs)

    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    method.__doc__ = getattr(cls, name).__doc__
    method.__signature__ = inspect.signature(extended)  # type: ignore[attr-defined]
    return method
