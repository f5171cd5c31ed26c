"""Where the activations of a forward pass come from: the hidden states of the model, or modules the user names."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from .entropy import Samples

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Activation:
    """Output of one layer for one batch."""

    name: str
    value: Tensor  # (B, ...)
    mask: Tensor | None  # (B, T), the padding mask that belongs to it, whether it fits or not

    @property
    def mask_fits(self) -> bool:
        """Whether the second dimension is that of the mask: a pooled `(B, D)` output has no positions to mask."""
        return self.mask is not None and self.value.dim() > 2 and self.value.shape[:2] == self.mask.shape

    def most_samples(self, samples: Samples) -> int:
        """How many samples a unit has where nothing is padding."""
        positions = self.value.shape[1] if samples == "token" and self.value.dim() > 2 else 1
        return self.value.shape[0] * positions


class ActivationSource(Protocol):
    """Takes activations from the forward passes made inside `listen`."""

    @property
    def expected(self) -> int | None:
        """How many activations a forward pass will give, where that is known before the first one."""

    def listen(self, inputs: Inputs) -> AbstractContextManager[dict[str, Any]]:
        """Context manager around one forward pass; gives the inputs to call the model with."""

    def collect(self, outputs: Any, inputs: Inputs) -> list[Activation]:
        """Activations of the forward pass just made, in the order of the layers."""

    def restore(self, outputs: Any) -> Any:
        """`outputs` as the model returns them when nobody listens."""


class HiddenStates:
    """The hidden states of a Transformers model, asked for with `output_hidden_states=True` in each call.

    Encoder-decoder models give the encoder's states, then the decoder's.

    Raises:
        ValueError: the model's `forward` takes no `output_hidden_states`.
    """

    _KEYS = ("encoder_hidden_states", "decoder_hidden_states", "hidden_states")

    def __init__(self, model: nn.Module) -> None:
        self._model = base_model(model)
        parameters = inspect.signature(self._model.forward).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        if not takes_any and "output_hidden_states" not in parameters:
            raise ValueError(
                f"{type(self._model).__name__} takes no output_hidden_states: name the modules to regularize "
                "with lbe_target_modules."
            )
        self._request = {"output_hidden_states": True}
        if takes_any or "return_dict" in parameters:
            self._request["return_dict"] = True
        config = getattr(self._model, "config", None)
        for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
            if getattr(config, name, 0):
                raise ValueError(
                    f"{name} drops layers of {type(self._model).__name__} at random, but every layer has a target: "
                    f"set config.{name} to 0."
                )

    @property
    def expected(self) -> int | None:
        config = getattr(self._model, "config", None)
        if config is None or not hasattr(config, "get_text_config"):
            return None
        try:
            text = config.get_text_config()
        except ValueError:  # several of them
            return None
        layers = getattr(text, "num_hidden_layers", None)
        if not getattr(config, "is_encoder_decoder", False):
            return None if layers is None else layers + 1
        encoder = getattr(config, "encoder_layers", layers)
        decoder = getattr(config, "decoder_layers", getattr(config, "num_decoder_layers", None))
        return None if encoder is None or decoder is None else encoder + 1 + decoder + 1

    @contextmanager
    def listen(self, inputs: Inputs) -> Iterator[dict[str, Any]]:
        yield {**inputs, **self._request}

    def collect(self, outputs: Any, inputs: Inputs) -> list[Activation]:
        states = {key: outputs.get(key) for key in self._KEYS} if isinstance(outputs, Mapping) else {}
        encoder_mask, decoder_mask = padding_masks(inputs)
        found = [
            Activation(f"{key}[{index}]", value, decoder_mask if key.startswith("decoder") else encoder_mask)
            for key, values in states.items()
            for index, value in enumerate(values or ())
        ]
        if not found:
            raise ValueError(
                f"{type(self._model).__name__} returned no hidden states{self._sharded_away() or ':'} "
                "name the modules to regularize with lbe_target_modules."
            )
        return found

    def _sharded_away(self) -> str:
        """What FSDP2 has to do with it: it renames the classes of what it shards, by which Transformers knows them."""
        for module in self._model.modules():
            name = type(module).__name__
            if isinstance(module, PreTrainedModel) and module is not self._model and name.startswith("FSDP"):
                layers = ", ".join(sorted(module._no_split_modules or ())) or "its layers"
                return f" because FSDP wraps {name.removeprefix('FSDP')}: wrap {layers} instead, or"
        return ""

    def restore(self, outputs: Any) -> Any:
        config = getattr(self._model, "config", None)
        if not getattr(config, "output_hidden_states", False):
            outputs = type(outputs)(**{key: value for key, value in outputs.items() if key not in self._KEYS})
        as_tuple = not getattr(config, "return_dict", True) and hasattr(outputs, "to_tuple")
        return outputs.to_tuple() if as_tuple else outputs


class TargetModules:
    """The outputs of named modules, taken by forward hooks that exist only while listening.

    A module called several times in a forward pass gives as many activations, in the order of the calls.

    Args:
        model: the model, not wrapped for distributed training; of a PEFT model the one inside.
        targets: a regular expression matched against whole module names, or a list of names or dotted suffixes
            (the rules of PEFT's `target_modules`).

    Raises:
        ValueError: no module matches.
    """

    def __init__(self, model: nn.Module, targets: str | Sequence[str]) -> None:
        model = base_model(model)
        modules = {name: module for name, module in model.named_modules() if name}
        self._modules = {name: module for name, module in modules.items() if _matches(name, targets)}
        if not self._modules:
            raise ValueError(
                f"lbe_target_modules={targets!r} matches no module of {type(model).__name__}; "
                f"the nearest names are {_nearest(targets, list(modules))}."
            )
        # In an encoder-decoder model the padding mask depends on the side that a module stands on.
        self._decoder: set[nn.Module] = set()
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            decoder = model.get_decoder()  # type: ignore[operator]
            self._decoder = set(decoder.modules())
        self._captured: list[tuple[str, Tensor]] = []

    @property
    def expected(self) -> int | None:
        return len(self._modules)

    @contextmanager
    def listen(self, inputs: Inputs) -> Iterator[dict[str, Any]]:
        self._captured.clear()
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield {**inputs}
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def capture(module: nn.Module, args: Any, output: Any) -> None:
            self._captured.append((name, _first_tensor(output, name)))

        return capture

    def collect(self, outputs: Any, inputs: Inputs) -> list[Activation]:
        captured, self._captured = self._captured, []
        if not captured:
            raise ValueError(
                f"The forward pass called none of the modules that lbe_target_modules matches: {list(self._modules)}."
            )
        encoder_mask, decoder_mask = padding_masks(inputs)
        return [
            Activation(name, value, decoder_mask if self._modules[name] in self._decoder else encoder_mask)
            for name, value in captured
        ]

    def restore(self, outputs: Any) -> Any:
        return outputs


def base_model(model: nn.Module) -> nn.Module:
    """The Transformers model inside a PEFT model; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def select(activations: Sequence[Activation], layers: Sequence[int] | None) -> list[Activation]:
    """The activations that `layers` names, all of them for None; ValueError for an index out of range."""
    check_layers(layers, len(activations))
    return list(activations) if layers is None else [activations[index] for index in layers]


def check_layers(layers: Sequence[int] | None, count: int) -> None:
    """Raise a ValueError for a layer index that `count` activations do not have."""
    for index in layers or ():
        if not -count <= index < count:
            raise ValueError(
                f"lbe_layers names layer {index}, but there are {count} activations: use {-count} to {count - 1}."
            )


def padding_masks(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """Padding masks `(B, T)` of the input and of an encoder-decoder model's decoder; None where unknown.

    Without a `decoder_attention_mask` the decoder's real positions are those whose label is not -100.
    """
    mask, decoder_mask, labels = (inputs.get(key) for key in ("attention_mask", "decoder_attention_mask", "labels"))
    if decoder_mask is None and isinstance(labels, Tensor) and labels.dim() == 2:
        decoder_mask = labels != -100
    return (
        mask if isinstance(mask, Tensor) and mask.dim() == 2 else None,
        decoder_mask if isinstance(decoder_mask, Tensor) and decoder_mask.dim() == 2 else None,
    )


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _nearest(targets: str | Sequence[str], names: list[str]) -> list[str]:
    wanted = [targets] if isinstance(targets, str) else targets
    by_suffix = {name.split(".", start)[-1]: name for name in names for start in range(name.count(".") + 1)}
    found = [by_suffix[match] for target in wanted for match in difflib.get_close_matches(target, by_suffix, n=5)]
    return list(dict.fromkeys(found)) or names[:5]


def _first_tensor(output: Any, name: str) -> Tensor:
    candidates = output.values() if isinstance(output, Mapping) else output
    for candidate in (output,) if isinstance(output, Tensor) else candidates if output is not None else ():
        if isinstance(candidate, Tensor):
            return candidate
    raise ValueError(f"Module {name} of lbe_target_modules returns no tensor: name one that does.")
