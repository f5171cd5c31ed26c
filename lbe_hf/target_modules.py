"""Outputs of named modules as activations."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .activations import Activation, Recording, shifted_mask
from .forward_pass import Forward, argument, around_forward
from .models import base_model, transformers_models
from .moments import fitting


class TargetModules:
    """Outputs of named modules, recorded by temporary forward hooks.

    A module that is called several times in one forward pass yields one layer per call, in the order of the calls.

    Args:
        model: the model whose forward passes are recorded, without wrappers for distributed training.
        targets: a regular expression matched against whole module names, or a list of names or dotted suffixes
            (the rules of PEFT's `target_modules`). For a PEFT model, names are those of the base model.

    Raises:
        ValueError: no module matches.
    """

    def __init__(self, model: nn.Module, targets: str | Sequence[str]) -> None:
        self._model = model
        inside = base_model(model)
        modules = {name: module for name, module in inside.named_modules() if name}
        self._modules = {name: module for name, module in modules.items() if _matches(name, targets)}
        if not self._modules:
            raise ValueError(
                f"target_modules={targets!r} matches no module of {type(inside).__name__}; "
                f"the nearest names are {_nearest(targets, list(modules))}."
            )
        self._inner_models = list(transformers_models(model).values())
        # In an encoder-decoder model, modules of the decoder need the decoder mask.
        self._decoder: set[nn.Module] = set()
        for inner in self._inner_models:
            if getattr(inner.config, "is_encoder_decoder", False):
                self._decoder.update(inner.get_decoder().modules())  # type: ignore[no-untyped-call]

    @property
    def expected(self) -> int | None:
        return len(self._modules)

    @contextmanager
    def listen(
        self,
        batch: Mapping[str, Any] | None = None,
        *,
        with_gradient: bool = True,
        sink: Callable[[Activation], None] | None = None,
    ) -> Iterator[Recording]:
        recording = Recording(sink=sink)
        masks = [recording.padding_masks((batch or {}).get)]
        batch_sizes: list[frozenset[int]] = [frozenset()]  # of the inputs of nested models, innermost last
        calls: dict[tuple[int, str], int] = {}  # number of calls by pass and module
        open_passes: list[list[Activation] | None] = []  # nested passes, innermost last; None: not recorded

        parts: list[Activation] | None = None

        def begin_pass() -> list[Activation] | None:
            if with_gradient and not torch.is_grad_enabled():
                recording.without_gradient += 1
                return None
            recording.passes.append([])
            return recording.passes[-1]

        def pass_of_parts(name: str) -> list[Activation] | None:
            """The pass of modules that the loss calls without the model; it ends when one of them is called again."""
            nonlocal parts
            last = recording.passes[-1] if recording.passes else None
            recorded = torch.is_grad_enabled() or not with_gradient
            if parts is None or parts is not last or not recorded or (len(recording.passes), name) in calls:
                parts = begin_pass()
            return parts

        def with_pass(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            open_passes.append(begin_pass())
            try:
                return with_masks(forward, args, kwargs)
            finally:
                open_passes.pop()

        def with_masks(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given, outer = partial(argument, forward, args, kwargs), masks[-1]
            mask, decoder_mask = recording.padding_masks(given)
            if len(masks) == 1 and outer[1] is None and decoder_mask is None:
                decoder_mask = shifted_mask(given, mask)
            masks.append((outer[0] if mask is None else mask, outer[1] if decoder_mask is None else decoder_mask))
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 1]
            batch_sizes.append(frozenset(value.shape[0] for value in tensors))
            try:
                return forward(*args, **kwargs)
            finally:
                masks.pop()
                batch_sizes.pop()

        def take(name: str, module: nn.Module, args: Any, output: Any) -> None:
            activations = open_passes[-1] if open_passes else pass_of_parts(name)
            if activations is not None:
                call = calls[len(recording.passes), name] = calls.get((len(recording.passes), name), 0) + 1
                label = name if call == 1 else f"{name} (call {call})"
                value = _first_tensor(output, name)
                mask, decoder_mask = masks[-1]
                if module in self._decoder and (mask is None or not _of_encoder(value, mask, decoder_mask)):
                    mask = decoder_mask
                if torch.compiler.is_compiling():  # in-place changes are not tracked there
                    value = value.clone()
                recording.record(activations, Activation.of(label, value, mask, batch_sizes[-1]))

        with ExitStack() as stack:
            stack.enter_context(around_forward(self._model, with_pass))
            for model in self._inner_models:
                if model is not self._model:  # PEFT prompts lengthen the mask of the inner model
                    stack.enter_context(around_forward(model, with_masks))
            for name, module in self._modules.items():
                stack.callback(module.register_forward_hook(partial(take, name)).remove)
            yield recording
        recording.passes = [activations for activations in recording.passes if activations]
        recording.check(
            type(self._model).__name__,
            f"The forward pass called none of the modules that target_modules matches: {', '.join(self._modules)}.",
        )


def parse_targets(text: str) -> str | list[str]:
    """Target modules from the command line: a regular expression, or a list of names in JSON, which starts with `["`.

    Raises:
        ValueError: the text is no regular expression, the list is not valid JSON, or has something else than names.
    """
    if not text.startswith('["'):
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(
                f"target_modules={text!r} is not a regular expression ({error}): correct it, or give a list of names."
            ) from None
        return text
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The target modules {text} are not a JSON list of names: {error}.") from None
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"The target modules {text} are not a JSON list of names.")
    return list(names)


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _nearest(targets: str | Sequence[str], names: list[str]) -> list[str]:
    wanted = [targets] if isinstance(targets, str) else targets
    by_suffix = {name.split(".", start)[-1]: name for name in names for start in range(name.count(".") + 1)}
    found = [by_suffix[match] for target in wanted for match in difflib.get_close_matches(target, by_suffix, n=5)]
    return list(dict.fromkeys(found)) or names[:5]


def _of_encoder(value: Tensor, mask: Tensor, decoder_mask: Tensor | None) -> bool:
    """Whether an output in the decoder has the positions of the encoder, as keys and values of cross-attention."""
    return decoder_mask is not None and fitting(decoder_mask, value) is None and fitting(mask, value) is not None


def _first_tensor(output: Any, name: str) -> Tensor:
    candidates = output.values() if isinstance(output, Mapping) else output
    for candidate in candidates if isinstance(output, (tuple, list, Mapping)) else (output,):
        if isinstance(candidate, Tensor) and candidate.is_floating_point():
            return candidate
    raise ValueError(
        f"Module {name} of target_modules does not return a floating point tensor: name a module that does."
    )
