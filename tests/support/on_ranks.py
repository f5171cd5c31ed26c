"""What the processes of `ranks` are asked to do; called in a test itself, the same with one process."""

from typing import Any

import tiny
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback

from lbe_hf.sync import measure_entropies_over_processes


def measure(
    layers: list[list[Tensor]], masks: list[list[Tensor | None]], weights: list[float], samples: Any
) -> tuple[Tensor, Tensor, list[Tensor], int]:
    """Entropies of this rank's part, whether they were measured, gradients of its loss, and the bytes it sent.

    Args:
        layers: activations of each layer, by rank.
        masks: attention masks of each layer, by rank.
        weights: the loss of a rank is its weight times the sum over layers of `(layer + 1) * entropy`.
    """
    rank, sent, send = dist.get_rank(), 0, dist.all_reduce

    def count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += tensor.numel() * tensor.element_size()
        return send(tensor, *args, **kwargs)

    own = [layer.clone().requires_grad_() for layer in layers[rank]]
    dist.all_reduce = count
    try:
        entropies, measured = measure_entropies_over_processes(own, masks[rank], samples)
        loss = sum(entropies[layer] * (layer + 1) for layer in range(len(own))) * weights[rank]
        loss.backward()
    finally:
        dist.all_reduce = send
    return entropies.detach(), measured, [layer.grad for layer in own], sent


class Watch(TrainerCallback):
    """Stops after a step, if told to."""

    def __init__(self, last_step: int | None) -> None:
        self.last_step = last_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.last_step


def train(
    rows: list[dict[str, Tensor]],
    model: str = "bert",
    resume: Any = None,
    last_step: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train on the rows in their order; what came of it, on this rank.

    Args:
        resume: checkpoint to go on from, or one for each rank.
        last_step: where to stop before the end.

    Returns:
        `weights` and `alpha` at the end, `gradients` of alpha as each step had them on this rank before the average,
        `sizes` of the micro-batches, `logs` of the steps, and which `warnings` were given.
    """
    sizes: list[int] = []

    def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return tiny.trimmed(batch)

    defaults = {"optim": "sgd", "learning_rate": 0.05, "lbe_beta": 0.7, "lbe_alpha": 0.3, "max_steps": 20}
    defaults |= {"lbe_alpha_learning_rate": 1e-3}
    trainer = tiny.InOrder(
        getattr(tiny, model)(),
        args=tiny.arguments(**{**defaults, **arguments}),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Watch(last_step)],
    )
    gradients: list[Tensor] = []
    step = trainer._lbe_step_targets

    def step_targets() -> None:
        gradient = trainer.lbe.alpha.grad
        gradients.append(torch.zeros(len(trainer.lbe.alpha)) if gradient is None else gradient.clone())
        step()

    trainer._lbe_step_targets = step_targets
    trainer.train(resume_from_checkpoint=resume[trainer.args.process_index] if isinstance(resume, list) else resume)
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()},
        "alpha": trainer.lbe.alpha.detach().clone(),
        "gradients": gradients,
        "sizes": sizes,
        "logs": [line for line in trainer.state.log_history if "loss" in line],
        "warnings": sorted(trainer._lbe_warned),
    }
