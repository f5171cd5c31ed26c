"""How losses are normalized over the micro-batches of an optimizer step, and what `Trainer` assumes of models."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer

from .forward_pass import around_forward
from .models import base_model


def trainer_divides(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Whether `training_step` divides what `compute_loss` returns by the gradient accumulation steps."""
    scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)  # of transformers 5.19 and newer
    if scaled is None:
        by_items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = by_items or trainer.compute_loss_func is not None
    return not scaled


def own_loss_corrected(trainer: Trainer, model: nn.Module, accumulation_steps: int) -> AbstractContextManager[None]:
    """Context in which a model that ignores `num_items_in_batch` returns the loss that `Trainer` takes it to return.

    `Trainer` passes that number to any `forward` with `**kwargs`, and then neither divides the loss by the
    accumulation steps nor leaves out the factor for the number of processes (transformers issue 47688). Only the loss
    that the model computes itself is corrected, and only where it was given the number.

    Args:
        model: the model of the trainer, not wrapped for distributed training.
        accumulation_steps: micro-batches of the optimizer step; 1 in evaluation.
    """
    processes = 1
    if trainer.args.average_tokens_across_devices:
        get_tp_size = getattr(trainer, "get_tp_size", lambda: 1)
        processes = trainer.accelerator.num_processes // get_tp_size()
    divisor = accumulation_steps * processes
    inside = base_model(model)
    if divisor == 1 or hasattr(inside, "accepts_loss_kwargs") or not ignores_num_items(inside):
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
    """Whether it is certain that the loss of a Transformers model does not depend on `num_items_in_batch`.

    Read off the source of `forward`: the labels and the keyword arguments, of which the number is one, never enter
    the same call, or only a `loss_function` that does not take the number. Where that cannot be seen, as where an
    inner model gets both, the assumption of `Trainer` stands.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    for cls in type(model).__mro__:
        if "forward" not in vars(cls):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(vars(cls)["forward"]))))
        except (OSError, TypeError, SyntaxError):
            return False
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(_called(call) == "super().forward" and _spreads(call) for call in calls):
            continue  # the next class decides
        if any(isinstance(node, ast.Name | ast.Constant) and _is_num_items(node) for node in ast.walk(tree)):
            return False
        both = [call for call in calls if _spreads(call) and _gets_labels(call)]
        if any(_called(call) != "self.loss_function" for call in both):
            return False
        return not both or "num_items_in_batch" not in inspect.signature(model.loss_function).parameters
    return False


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _spreads(call: ast.Call) -> bool:
    return any(keyword.arg is None for keyword in call.keywords)


def _gets_labels(call: ast.Call) -> bool:
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg is not None)]
    names = {node.id for argument in arguments for node in ast.walk(argument) if isinstance(node, ast.Name)}
    return "labels" in names or any(isinstance(argument, ast.Starred) for argument in call.args)


def _is_num_items(node: ast.Name | ast.Constant) -> bool:
    return "num_items_in_batch" in (getattr(node, "id", None), getattr(node, "value", None))
