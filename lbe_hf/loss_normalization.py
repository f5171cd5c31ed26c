"""Normalization of the loss over the micro-batches of an optimizer step, and what `Trainer` assumes about it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel, Trainer

from .forward_pass import around_forward, is_replaced
from .models import base_model

_IGNORING = ("EncoderDecoderModel", "VisionEncoderDecoderModel", "SpeechEncoderDecoderModel")
"""Classes of Transformers that hand the number of items to a decoder which gets no labels; their loss is a mean."""

_judged: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def trainer_divides(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Whether `training_step` divides the result of `compute_loss` by the gradient accumulation steps."""
    scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)  # transformers >= 5.19
    if scaled is None:
        by_items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = by_items or trainer.compute_loss_func is not None
    return not scaled


def own_loss_corrected(trainer: Trainer, model: nn.Module, accumulation_steps: int) -> AbstractContextManager[None]:
    """Context in which the loss of a model that ignores `num_items_in_batch` is normalized as `Trainer` expects.

    `Trainer` passes that number to any `forward` with `**kwargs` and assumes that the loss is divided by it. It
    therefore does not divide by the accumulation steps, and multiplies by the number of processes (transformers issue
    47688). Only a loss computed by the model itself is corrected, and only if the model received the number.

    Args:
        model: the model of the trainer, without wrappers for distributed training.
        accumulation_steps: number of micro-batches of the optimizer step; 1 in evaluation.
    """
    processes = 1
    if trainer.args.average_tokens_across_devices:
        get_tp_size = getattr(trainer, "get_tp_size", lambda: 1)
        processes = trainer.accelerator.num_processes // get_tp_size()
    # With `loss_is_scaled_for_ga = False` (transformers >= 5.19), Trainer itself divides by the steps.
    divisor = processes * (1 if trainer_divides(trainer, num_items_in_batch=1) else accumulation_steps)
    inside = base_model(model)
    if divisor == 1 or hasattr(inside, "accepts_loss_kwargs"):
        return nullcontext()
    if inside not in _judged:  # cached, because parsing the source takes milliseconds
        _judged[inside] = ignores_num_items(inside)
    if not _judged[inside]:
        return nullcontext()
    return _loss_divided(model, divisor)


@contextmanager
def _loss_divided(model: nn.Module, divisor: int) -> Iterator[None]:
    def divide(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs = forward(*args, **kwargs)
        if "num_items_in_batch" not in kwargs or kwargs.get("labels") is None:
            return outputs
        if isinstance(outputs, Mapping):
            if outputs.get("loss") is not None:
                outputs["loss"] = outputs["loss"] / divisor  # type: ignore[index]
            return outputs
        return (outputs[0] / divisor, *outputs[1:])

    with around_forward(model, divide):
        yield


def ignores_num_items(model: nn.Module) -> bool:
    """Whether the loss of a Transformers model certainly does not depend on `num_items_in_batch`.

    Decided from the source of `forward`: no call receives both the keyword arguments, which include the number, and
    the labels or values derived from them; and none receives the keyword arguments as a dictionary. Calls that compute
    no loss are allowed, as is a `loss_function` that does not take the number. If the source leaves it open, for
    example because an inner model receives both, the result is False: the assumption of `Trainer` is kept.
    """
    if not isinstance(model, PreTrainedModel) or is_replaced(model):
        return False
    for cls in type(model).__mro__:
        if "forward" not in vars(cls):
            continue
        if cls.__name__ in _IGNORING and cls.__module__.startswith("transformers."):
            return True
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(vars(cls)["forward"]))))
        except (OSError, TypeError, SyntaxError):
            return False
        spreading = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and any(keyword.arg is None for keyword in node.keywords)
        ]
        words = {getattr(node, "id", getattr(node, "arg", getattr(node, "value", None))) for node in ast.walk(tree)}
        if "num_items_in_batch" in words or _passes_its_keywords_on(tree):
            return False
        inherited = [call for call in spreading if ast.unparse(call.func) == "super().forward"]
        if inherited == spreading and inherited:
            continue  # the next class decides
        of_labels = _names_made_of("labels", tree)
        both = [call for call in spreading if of_labels & _names_in(call) or "labels" not in words]
        both = [call for call in both if not _calls_backbone(model, call)]
        if any(ast.unparse(call.func) != "self.loss_function" for call in both):
            return False
        return not both or "num_items_in_batch" not in inspect.signature(model.loss_function).parameters
    return False


def _passes_its_keywords_on(tree: ast.AST) -> bool:
    """Whether a call receives the keyword arguments as a dictionary."""
    own = {node.kwarg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) and node.kwarg}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [value for call in calls for value in (*call.args, *(own.value for own in call.keywords if own.arg))]
    return any(isinstance(value, ast.Name) and value.id in own for value in given)


def _calls_backbone(model: nn.Module, call: ast.Call) -> bool:
    """Whether the call is to an inner model that computes no loss, such as a decoder given the shifted labels."""
    name = ast.unparse(call.func).removeprefix("self.")
    called = getattr(model, name, None) if name.isidentifier() else None
    return isinstance(called, PreTrainedModel) and "labels" not in inspect.signature(type(called).forward).parameters


def _names_made_of(name: str, tree: ast.AST) -> set[str]:
    """The name, and the names of all variables computed from it."""
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    names, before = {name}, 0
    while len(names) > before:
        before = len(names)
        for assignment in assignments:
            if names & _names_in(assignment.value):
                names |= set().union(*map(_names_in, assignment.targets))
    return names


def _names_in(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
