"""Code around the forward pass of a module, whoever calls it."""

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
def around_forward(module: nn.Module, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let `stand_in(forward, args, kwargs)` be called in place of `module.forward` inside the context.

    The forward hooks of PyTorch do not suffice: they run where a module is called, and PEFT's LoRA as well as
    sentence-transformers call the `forward` of the model inside them.
    """
    forward, own = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return stand_in(forward, args, kwargs)

    if "torch._dynamo" in sys.modules:  # a compiled model is entered here, and compiled from `forward` on
        replaced = torch.compiler.disable(replaced, recursive=False)  # type: ignore[no-untyped-call]
    replaced._stands_in_for = forward  # type: ignore[attr-defined]
    module.forward = replaced
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def is_replaced(module: nn.Module) -> bool:
    """Whether a library has put another `forward` on the module; autocasting, as accelerate does it, is none."""
    forward: Any = vars(module).get("_original_forward", vars(module).get("forward"))
    while hasattr(forward, "_stands_in_for"):
        forward = forward._stands_in_for
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def argument(forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """Value of the argument `name` in a call, also where a dictionary of inputs is passed as one argument.

    None if it is not given.
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
