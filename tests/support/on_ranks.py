"""What the processes of `ranks` are asked to do; called in a test itself, the same with one process."""

import os
from typing import Any

import tiny
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from lbe_hf import InformationFlowCallback
from lbe_hf.distributed import measure_entropies_over_processes
from lbe_hf.hidden_states import HiddenStates


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


def die(rank: int | None) -> None:
    """End this rank as a fault in native code does: nothing is raised."""
    if dist.get_rank() == rank:
        os._exit(3)


class Watch(TrainerCallback):
    """Stops after a step, if told to."""

    def __init__(self, last_step: int | None) -> None:
        self.last_step = last_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.last_step


class Sharded(tiny.InOrder):
    """Shards the model with FSDP2, as accelerate does it on accelerators; asked for on a CPU it takes DDP."""

    wrapped: tuple[str, ...]

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=list(self.wrapped),
            state_dict_type="SHARDED_STATE_DICT",
        )
        self.is_fsdp_enabled = True
        assert self.accelerator.is_fsdp2


def train(
    rows: list[dict[str, Tensor]],
    model: str = "bert",
    resume: Any = None,
    last_step: int | None = None,
    shard: tuple[str, ...] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """Train on the rows in their order; what came of it, on this rank.

    Args:
        resume: checkpoint to go on from, or one for each rank.
        last_step: where to stop before the end.
        shard: classes of modules that FSDP2 shards by themselves; without them there is no sharding.

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
    Sharded.wrapped = shard
    trainer = (Sharded if shard else tiny.InOrder)(
        getattr(tiny, model)(),
        args=tiny.arguments(**{**defaults, **arguments}),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Watch(last_step)],
    )
    gradients: list[Tensor] = []
    end_step = trainer._lbe_end_step

    def record_gradient() -> None:
        gradients.append(trainer._lbe_targets.gradient.clone())
        end_step()

    trainer._lbe_end_step = record_gradient
    trainer.train(resume_from_checkpoint=resume[trainer.args.process_index] if isinstance(resume, list) else resume)
    state = trainer.model.state_dict()
    if shard:
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        assert (
            sum(parameter.to_local().numel() for parameter in trainer.model.parameters())
            < trainer.model.num_parameters()
        )
        state = {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in state.items()
        }
        trainer.accelerator.state.distributed_type = DistributedType.MULTI_CPU
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in state.items()},
        "alpha": trainer.lbe.alpha.detach().clone(),
        "gradients": gradients,
        "sizes": sizes,
        "logs": [line for line in trainer.state.log_history if "loss" in line],
        "warnings": sorted(trainer._lbe_reporter.warned),
    }


class LogOnFirst(TrainerCallback):
    """Logs a loss on the first rank alone, before each step, as a callback of a user may."""

    trainer: Any

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.trainer.log({"loss": 0.0})


def log_on_the_first_rank(rows: list[dict[str, Tensor]], output_dir: str) -> list[dict[str, float]]:
    """What was logged while the first rank logged a line more before each step."""
    callback = LogOnFirst()
    args = tiny.arguments(output_dir=output_dir, lbe_beta=0.7, max_steps=4, logging_steps=4)
    callback.trainer = tiny.InOrder(tiny.bert(), args=args, train_dataset=rows, callbacks=[callback])
    callback.trainer.train()
    return [line for line in callback.trainer.state.log_history if "loss" in line]


class CollapseOn(TrainerCallback):
    """Makes a layer constant on one rank, as nothing does it in truth, so that the ranks see different models."""

    def __init__(self, rank: int | None) -> None:
        self.rank = rank

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if args.process_index == self.rank:
            with torch.no_grad():
                model.bert.encoder.layer[1].output.LayerNorm.weight.zero_()


def train_with_flow(
    rows: list[dict[str, Tensor]],
    cls: type[Trainer],
    output_dir: str,
    every_steps: int | None,
    collapse_on: int | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]], list[int]]:
    """Weights, losses, and the steps at which an InformationFlowCallback measured, if there is one."""
    callback = InformationFlowCallback(every_steps or 1, stop_on_collapse=True)
    trainer = cls(
        tiny.bert(dropout=True),
        args=tiny.arguments(output_dir=output_dir, max_steps=4, lbe_beta=1.0),
        train_dataset=rows,
        callbacks=[CollapseOn(collapse_on), *([callback] if every_steps else [])],
    )
    trainer.train()
    weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    return weights, [line["loss"] for line in trainer.state.log_history if "loss" in line], callback.history.steps


def hidden_states_of_sharded(*wrapped: str) -> list[Tensor]:
    """Hidden states of a model of which FSDP2 shards these modules by themselves, and the whole."""
    model, inputs = tiny.bert(), tiny.batch(tiny.token_rows(4))
    for name in wrapped:
        fully_shard(model.get_submodule(name))
    source = HiddenStates(fully_shard(model))
    with source.listen() as recording:
        model(**inputs)
    return [activation.value.detach() for activation in recording.passes[0]]
