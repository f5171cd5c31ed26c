"""Hidden states of Transformers models as activations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .activations import Activation, Recording, labelled, shifted_mask
from .forward_pass import Forward, argument, around_forward, is_replaced
from .models import transformers_models

_KEYS = ("encoder_hidden_states", "decoder_hidden_states", "hidden_states")


class HiddenStates:
    """Hidden states of the Transformers models in `model`, requested when their `forward` is called.

    They are removed from the output of `forward` unless its caller requested them. Encoder-decoder models yield the
    hidden states of the encoder, then those of the decoder. If a library has replaced the `forward` of a model, as TRL
    does, the hidden states are those of its backbone.

    Args:
        model: a Transformers model, or a module that contains Transformers models.
        every_layer: refuse models that drop layers at random in training (default True).

    Raises:
        ValueError: no `forward` takes `output_hidden_states`, or a model drops layers at random.
    """

    def __init__(self, model: nn.Module, *, every_layer: bool = True) -> None:
        self._models = models_with_hidden_states(model)
        if not self._models:
            raise ValueError(
                f"{type(model).__name__} does not take output_hidden_states: name the modules to regularize "
                "with lbe_target_modules."
            )
        for inside in self._models.values() if every_layer else ():
            for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
                if getattr(getattr(inside, "config", None), name, 0):
                    raise ValueError(
                        f"{name} drops layers of {type(inside).__name__} at random, but every layer has a target: "
                        f"set config.{name} to 0."
                    )

    @property
    def expected(self) -> int | None:
        counts = [_count_hidden_states(getattr(model, "config", None)) for model in self._models.values()]
        return sum(count for count in counts if count) if all(counts) else None

    @contextmanager
    def listen(
        self,
        batch: Mapping[str, Any] | None = None,
        *,
        with_gradient: bool = True,
        sink: Callable[[Activation], None] | None = None,
    ) -> Iterator[Recording]:
        recording, decoder_mask = Recording(sink=sink), labelled((batch or {}).get("labels"))
        with ExitStack() as stack:
            for name, model in self._models.items():
                # The `forward` that TRL puts on a model calls the backbone, and does not return its hidden states.
                called: nn.Module = getattr(model, "base_model", model) if is_replaced(model) else model
                prefix = f"{name}." if len(self._models) > 1 else ""
                request = _Request(recording, prefix, called, decoder_mask, with_gradient)
                stack.enter_context(around_forward(called, request))
            yield recording
        names = ", ".join(type(model).__name__ for model in self._models.values())
        what = "returned no hidden states" if recording.called else "was not called as a whole"
        recording.check(
            names, f"{names} {what}{self._sharded_away()} name the modules to regularize with lbe_target_modules."
        )

    def _sharded_away(self) -> str:
        """The cause if FSDP2 shards an inner model: it renames the class, so Transformers does not recognize it."""
        for model in self._models.values():
            for module in model.modules():
                name = type(module).__name__
                if isinstance(module, PreTrainedModel) and module is not model and name.startswith("FSDP"):
                    layers = ", ".join(sorted(module._no_split_modules or ())) or "its layers"
                    return f" because FSDP wraps {name.removeprefix('FSDP')}: wrap {layers} instead, or"
        return ":"


def models_with_hidden_states(model: nn.Module) -> dict[str, nn.Module]:
    """The models in `model` whose `forward` takes `output_hidden_states`, by name."""
    models: dict[str, nn.Module] = {**transformers_models(model)} or {"": model}
    return {name: inside for name, inside in models.items() if _request_for(inside)}


@dataclass(frozen=True)
class _Request:
    """Requests the hidden states in a call of `forward`, and records them."""

    recording: Recording
    prefix: str
    model: nn.Module
    decoder_mask: Tensor | None
    with_gradient: bool

    def __call__(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.recording.called = True
        if self.with_gradient and not torch.is_grad_enabled():
            self.recording.without_gradient += 1
            return forward(*args, **kwargs)
        outputs = forward(*args, **{**kwargs, **_request_for(self.model)})
        found = outputs if isinstance(outputs, Mapping) else {}
        states = {key: found[key] for key in _KEYS if isinstance(found.get(key), (tuple, list))}
        given = partial(argument, forward, args, kwargs)
        mask, decoder_mask = self.recording.padding_masks(given)
        if decoder_mask is None:
            decoder_mask = shifted_mask(given, mask) if self.decoder_mask is None else self.decoder_mask
        activations: list[Activation] = []
        for key, values in states.items():
            own_mask = decoder_mask if key.startswith("decoder") else mask
            for index, value in enumerate(values):
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"The hidden states of {type(self.model).__name__} are no tensors: name the modules to "
                        "regularize with lbe_target_modules."
                    )
                value = _examples_first(value, given("input_ids"))
                activation = Activation.of(f"{self.prefix}{key}[{index}]", value, own_mask)
                self.recording.record(activations, activation)
        if activations:
            self.recording.passes.append(activations)
        return self._as_asked(outputs, states, given)

    def _as_asked(self, outputs: Any, states: Mapping[str, Any], given: Callable[[str], Any]) -> Any:
        """The output that the caller of `forward` requested."""
        config = getattr(self.model, "config", None)
        asked, returns_dict = given("output_hidden_states"), given("return_dict")
        if not (getattr(config, "output_hidden_states", False) if asked is None else asked) and states:
            outputs = type(outputs)(**{key: value for key, value in outputs.items() if key not in states})
        if returns_dict is None:
            returns_dict = getattr(config, "return_dict", True)
        return outputs if returns_dict or not hasattr(outputs, "to_tuple") else outputs.to_tuple()


def _examples_first(value: Tensor, input_ids: Any) -> Tensor:
    """A hidden state as `(B, T, ...)`: Gemma 3n returns several streams `(streams, B, T, D)`."""
    if isinstance(input_ids, Tensor) and value.dim() == 4 and value.shape[1:3] == input_ids.shape != value.shape[:2]:
        return value.movedim(0, 2)
    return value


def _request_for(model: nn.Module) -> dict[str, bool]:
    """Arguments that make the model return its hidden states in a dictionary; empty if it does not support them."""
    parameters = inspect.signature(type(model).forward).parameters
    # Only in Transformers do `**kwargs` mean that the model has hidden states.
    takes_any = isinstance(model, PreTrainedModel) and any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    names = [name for name in ("output_hidden_states", "return_dict") if takes_any or name in parameters]
    return dict.fromkeys(names if "output_hidden_states" in names else [], True)


def _count_hidden_states(config: Any) -> int | None:
    """Number of hidden states of a Transformers model, or None if its configuration does not determine it."""
    # Funnel, with `block_sizes`, and Canine, with `downsampling_rate`, return the states of further layers.
    more = hasattr(config, "block_sizes") or hasattr(config, "downsampling_rate")
    if config is None or not hasattr(config, "get_text_config") or more:
        return None
    try:
        text = config.get_text_config()
    except ValueError:  # several text configurations
        return None
    layers: int | None = getattr(text, "num_hidden_layers", None)
    if not getattr(config, "is_encoder_decoder", False):
        # The decoder of an encoder-decoder model, by itself, has another number of layers.
        return None if layers is None or hasattr(config, "decoder_layers") else layers + 1
    encoder = getattr(config, "encoder_layers", layers)
    decoder = getattr(config, "decoder_layers", getattr(config, "num_decoder_layers", None))
    return None if encoder is None or decoder is None else encoder + 1 + decoder + 1
