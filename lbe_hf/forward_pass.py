"""Wraps the forward pass of a module, regardless of its caller."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]


@contextmanager
def around_forward(module: nn.Module, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Call `wrapper(forward, args, kwargs)` instead of `module.forward` inside the context.

    Forward hooks of PyTorch are not sufficient: they run only when the module itself is called, but PEFT's LoRA and
    sentence-transformers call the `forward` method of the inner model.
    """
    forward, own = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return wrapper(forward, args, kwargs)

    if "torch._dynamo" in sys.modules:  # only the original `forward` is compiled, not this wrapper
        replaced = torch.compiler.disable(replaced, recursive=False)  # type: ignore[no-untyped-call]
    replaced._lbe_wraps = forward  # type: ignore[attr-defined]
    module.forward = replaced
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def is_replaced(module: nn.Module) -> bool:
    """Whether a library replaced `forward` of the module. The autocast wrapper of accelerate does not count."""
    forward: Any = vars(module).get("_original_forward", vars(module).get("forward"))
    while hasattr(forward, "_lbe_wraps"):
        forward = forward._lbe_wraps
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def argument(forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """Value of the argument `name` in a call, or None if it is not given.

    Also finds it in a dictionary of inputs that is passed as one argument.
    """
    if name in kwargs:
        return kwargs[name]
    for value in args:
        if isinstance(value, Mapping) and name in value:
            return value[name]
    try:
        return inspect.signature(forward).bind_partial(*args).arguments.get(name) if args else None
    except (TypeError, ValueError):
        return None
