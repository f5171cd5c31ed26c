"""How a model scales its own loss, which Trainer has to know under gradient accumulation."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel


def ignores_num_items(model: nn.Module) -> bool:
    """Whether it is certain that the loss of a Transformers model does not divide by `num_items_in_batch`.

    Read off the code of `forward`, which names that argument itself, leaves the loss to a `loss_function` (whose
    signature tells), or makes a loss of its own. Where none of these is found, Trainer's assumption stands.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    for cls in type(model).__mro__:
        code = getattr(inspect.unwrap(vars(cls).get("forward", None)), "__code__", None)
        if code is None:
            continue
        names = {*code.co_names, *code.co_varnames}
        if "num_items_in_batch" in names | {constant for constant in code.co_consts if isinstance(constant, str)}:
            return False
        if "loss_function" in names:
            return "num_items_in_batch" not in inspect.signature(model.loss_function).parameters
        if any(name.endswith(("Loss", "loss_fct", "cross_entropy")) for name in names):
            return True
        if "super" not in names:
            return False
    return False
