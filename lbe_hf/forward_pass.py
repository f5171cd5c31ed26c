"""Wraps the forward pass of a module, regardless of its caller."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.operations import ConvertOutputsToFp32
from torch import nn

Forward = Callable[..., Any]


@contextmanager
def around_forward(module: nn.Module, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Call `wrapper(forward, args, kwargs)` instead of `module.forward` inside the context.

    Several contexts of a module may end in any order. Forward hooks of PyTorch are not sufficient: they run only when
    the module itself is called, but PEFT's LoRA and sentence-transformers call `forward` of the inner model.
    """
    forward, before = module.forward, vars(module).get("forward")
    ended = False

    @functools.wraps(forward)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if ended else wrapper(forward, args, kwargs)

    if "torch._dynamo" in sys.modules:  # only the original `forward` is compiled, not this wrapper
        replaced = torch.compiler.disable(replaced, recursive=False)  # type: ignore[no-untyped-call]
    replaced._lbe_wraps, replaced._lbe_before, replaced._lbe_ended = forward, before, False  # type: ignore[attr-defined]
    module.forward = replaced
    try:
        yield
    finally:
        ended = replaced._lbe_ended = True  # type: ignore[attr-defined]
        outermost: Any = vars(module).get("forward")
        while getattr(outermost, "_lbe_ended", False):
            outermost = outermost._lbe_before
        vars(module).pop("forward", None)
        if outermost is not None:
            module.forward = outermost


def is_replaced(module: nn.Module) -> bool:
    """Whether a library replaced `forward` of the module.

    The wrappers of accelerate, for autocast and for a model on several devices, do not count.
    """
    forward: Any = vars(module).get("forward")
    while True:
        function = getattr(forward, "__func__", forward)
        if hasattr(function, "_lbe_wraps"):
            forward = function._lbe_wraps
        elif isinstance(getattr(function, "__wrapped__", None), ConvertOutputsToFp32):
            forward = function.__wrapped__.model_forward.__wrapped__  # without its autocast
        elif isinstance(function, functools.partial) and hasattr(module, "_hf_hook"):
            forward = module._old_forward
        else:
            return function is not None and function is not type(module).forward


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
