"""Trainers that add layerwise batch-entropy regularization to the task loss."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .activations import Activation, ActivationSource, HiddenStates, TargetModules, base_model, check_layers, select
from .entropy import SILENT_ENTROPY, measure_entropies
from .loss_scale import ignores_num_items
from .model_card import LBESummary, add_lbe_section, keep_own_card, usage
from .monitor import EntropyMonitor, by_layer
from .pushing import nested_checkpoint, report_failed_pushes
from .regularizer import LBERegularizer
from .sync import measure_entropies_over_processes
from .training_args import LBEArguments

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.get_logger(__name__)

TARGETS_NAME = "lbe_targets.safetensors"
"""File of a checkpoint that holds the learnable targets and the state of their optimizer."""

_UNMEASURED = (
    "A training batch has one row, or no position with two real tokens: without a variance over rows "
    "it goes without the penalty. lbe_samples='token' measures single rows."
)


class LBETrainerMixin(_Base):
    """Layerwise batch-entropy regularization for any trainer: `class MyTrainer(LBETrainerMixin, SFTTrainer)`.

    In training, `loss = task_loss * (1 + penalty)` (Peer et al., TMLR 2022, arXiv 2208.01134), with the settings of
    `LBEArguments` in the trainer's arguments, or their defaults where the arguments have none. Evaluation and
    prediction are the trainer's own. `lbe` is the `LBERegularizer` with the learnable targets of the activations that
    `lbe_layer_names` lists; they have an optimizer of their own, so nothing of them is in the model, its optimizer or
    what is pushed to the Hub.

    Raises:
        ValueError: at construction, for settings that cannot work with the model or the batch size; at the first
            training batch, for what only shows there.
    """

    lbe: LBERegularizer
    lbe_layer_names: list[str]
    _lbe_measured: tuple[Tensor, Tensor, Tensor] | None = None  # penalty, entropies and validity of this micro-batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Trainer takes any forward with **kwargs for one that divides its loss by `num_items_in_batch`, and then
        # no longer divides by the accumulation steps. Most classification heads ignore that argument.
        model = base_model(getattr(self._lbe_model, "_orig_mod", self._lbe_model))
        if not hasattr(model, "accepts_loss_kwargs") and ignores_num_items(model):
            self.model_accepts_loss_kwargs = False
        self._lbe_warned: set[str] = set()
        self._lbe_silent: set[str] = set()
        self._lbe_setup()

    def _lbe_setup(self) -> None:
        """Start the regularization anew for the present model and arguments."""
        settings = self.args if isinstance(self.args, LBEArguments) else LBEArguments()
        settings.check_lbe()
        self._lbe_settings = settings
        self._lbe_source: ActivationSource | None = None
        expected = None
        if settings.lbe_beta > 0 or settings.lbe_log_entropy:
            self._lbe_check_batches()
            model, targets = self._lbe_model, settings.lbe_target_modules
            self._lbe_source = HiddenStates(model) if targets is None else TargetModules(model, targets)
            expected = self._lbe_source.expected
            if expected is not None:
                check_layers(settings.lbe_layers, expected)
        # A model that does not say how many layers it has shows it with its first batch.
        self._lbe_make_targets(len(settings.lbe_layers) if settings.lbe_layers is not None else expected or 1)

    @property
    def _lbe_model(self) -> nn.Module:
        return self.model  # type: ignore[return-value]  # None only while Trainer is being constructed

    def _lbe_check_batches(self) -> None:
        if self.args.n_gpu > 1 or isinstance(self._lbe_model, nn.DataParallel):
            raise ValueError(
                "LBETrainer does not run on several GPUs in one process (DataParallel): start it with "
                "`accelerate launch` or `torchrun`, or choose one GPU with CUDA_VISIBLE_DEVICES."
            )
        if self.is_deepspeed_enabled and self.accelerator.mixed_precision == "fp16":
            raise ValueError(
                "DeepSpeed scales the loss in fp16 by a factor that the learnable targets do not see: train in bf16, "
                "in fp32, or without DeepSpeed."
            )
        one_row = self.args.per_device_train_batch_size == 1 and not self._lbe_synced
        if one_row and self._lbe_settings.lbe_samples == "sequence":
            raise ValueError(
                "One row has no variance over rows: use lbe_samples='token' with per_device_train_batch_size=1, "
                "or a larger batch."
            )

    @property
    def _lbe_synced(self) -> bool:
        return self._lbe_settings.lbe_sync_batch and self.args.world_size > 1

    def _lbe_make_targets(self, num_layers: int) -> None:
        settings, args = self._lbe_settings, self.args
        self.lbe = LBERegularizer(num_layers, settings.lbe_alpha, settings.lbe_alpha_min, settings.lbe_beta)
        self.lbe.to(args.device)
        self.lbe_layer_names = [f"layer {index}" for index in range(num_layers)]
        self._lbe_monitor = EntropyMonitor()
        self._lbe_optimizer = torch.optim.Adam(
            self.lbe.parameters(), betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
        )

    # ---- One micro-batch -------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's loss; in training times `1 + penalty`. Arguments and result as in `Trainer.compute_loss`."""
        source = self._lbe_source if model.training else None
        if source is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        with source.listen(inputs) as requesting_inputs:
            task_loss, outputs = super().compute_loss(
                model, requesting_inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        entropies, measured = self._lbe_measure(source, outputs, inputs)
        if self.lbe.beta > 0:
            # Whether a padded batch has two samples anywhere is only known on the device.
            penalty = self.lbe(entropies) * measured
            loss = task_loss * (1 + penalty)
        else:
            penalty = torch.zeros_like(entropies[0])
            loss = task_loss
        self._lbe_measured = (penalty.detach(), entropies.detach(), measured)
        return (loss, source.restore(outputs)) if return_outputs else loss

    def _lbe_measure(self, source: ActivationSource, outputs: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        settings = self._lbe_settings
        activations = select(source.collect(outputs, inputs), settings.lbe_layers)
        self._lbe_check_activations(activations)
        if len(activations) != len(self.lbe.alpha):
            if self._lbe_optimizer.state:
                raise ValueError(
                    f"{len(self.lbe.alpha)} layers have targets, but this batch gave {len(activations)} activations: "
                    "every forward pass must call the same modules, and a resumed run must name the layers that its "
                    "checkpoint was made with (lbe_target_modules, lbe_layers)."
                )
            self._lbe_make_targets(len(activations))
        self.lbe_layer_names = [activation.name for activation in activations]
        masks = [a.mask if a.mask_fits and settings.lbe_ignore_padding else None for a in activations]
        measure = measure_entropies_over_processes if settings.lbe_sync_batch else measure_entropies
        with torch.set_grad_enabled(settings.lbe_beta > 0 and torch.is_grad_enabled()):
            entropies, measured = measure([a.value for a in activations], masks, settings.lbe_samples)
        return entropies.to(self.lbe.alpha.device), measured.all().to(self.lbe.alpha.device)

    def _lbe_check_activations(self, activations: list[Activation]) -> None:
        """Say what keeps the penalty from doing what the user expects of it."""
        settings = self._lbe_settings
        single = [a.name for a in activations if a.most_samples(settings.lbe_samples) < 2]
        if single:
            if len(single) < len(activations) and not self._lbe_optimizer.state:
                raise ValueError(
                    f"These modules have one sample in a batch of several: {', '.join(single)}. Leave them out of "
                    "lbe_target_modules, or choose layers with lbe_layers."
                )
            if not self._lbe_synced:
                self._lbe_warn_once("unmeasured", _UNMEASURED)
        misfits = [a.name for a in activations if a.mask is not None and a.value.dim() > 2 and not a.mask_fits]
        if misfits and settings.lbe_ignore_padding:
            self._lbe_warn_once(
                "misfits",
                "The padding mask does not have the length of these activations, whose padding is therefore "
                f"measured too: {', '.join(misfits)}.",
            )
        constant = [a.name for a in activations if not a.value.requires_grad]
        if constant and settings.lbe_beta > 0 and torch.is_grad_enabled():
            self._lbe_warn_once(
                "constant",
                "The penalty cannot train these layers, which have no gradient (frozen, or inside reentrant "
                f"checkpointing, which use_reentrant=False cures): {', '.join(constant)}.",
            )

    def _lbe_warn_once(self, key: str, message: str) -> None:
        if key not in self._lbe_warned and self.args.process_index == 0:
            logger.warning(message)
        self._lbe_warned.add(key)

    # ---- One optimizer step ----------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer.training_step`; steps the learnable targets where the gradients of the model are complete.

        Raises:
            ValueError: a subclass computes the loss without `LBETrainerMixin.compute_loss`.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if self._lbe_source is None:
            return loss
        if self._lbe_measured is None:
            raise ValueError(
                f"compute_loss of {type(self).__name__} does not call super().compute_loss: nothing is regularized. "
                "Write it in a Trainer subclass X, and train with `class Y(LBETrainerMixin, X)`."
            )
        self._lbe_monitor.add(loss, *self._lbe_measured)
        self._lbe_measured = None
        if self.accelerator.sync_gradients:
            self._lbe_monitor.end_step()
            if self.lbe.beta > 0:
                self._lbe_step_targets()
        return loss

    def _lbe_step_targets(self) -> None:
        alpha, optimizer = self.lbe.alpha, self._lbe_optimizer
        # A process whose batches all went without the penalty still takes part in the average.
        gradient = torch.zeros_like(alpha) if alpha.grad is None else alpha.grad
        alpha.grad = self.accelerator.reduce(gradient, reduction="mean")
        learning_rate = self._lbe_settings.lbe_alpha_learning_rate
        for group in optimizer.param_groups:
            group["lr"] = self._get_learning_rate() if learning_rate is None else learning_rate
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)  # takes the loss scale of float16 out, and stays where that overflowed
        optimizer.zero_grad()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.create_optimizer`, which every start of a training loop calls."""
        if self.optimizer is None and self.model_init is not None:
            self._lbe_setup()  # a new model, and perhaps the settings of a new trial
        # What a loop left behind that ran out of memory is not part of this one.
        self._lbe_optimizer.zero_grad()
        self._lbe_monitor = EntropyMonitor()
        return super().create_optimizer(*args, **kwargs)

    # ---- Logs ------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; a line with the training loss gains the losses and entropies since the last one.

        `task_loss` and `lbe_loss` add up to `loss`; `entropy_mean`, `entropy_min` and `entropy_last` (over layers) and
        `alpha_mean` are in nats.
        """
        if "loss" in logs and self._lbe_source is not None:
            logs.update(self._lbe_logs())
        super().log(logs, *args, **kwargs)

    def _lbe_logs(self) -> dict[str, float]:
        logs = self._lbe_monitor.means(lambda sums: self.accelerator.reduce(sums, reduction="mean"))
        if not logs:
            return {}
        if logs.pop("unmeasured") > 0:
            self._lbe_warn_once("unmeasured", _UNMEASURED)
        logs["alpha_mean"] = self.lbe.alpha.mean().item()
        entropies = self._lbe_monitor.entropies
        if self._lbe_settings.lbe_log_entropy:
            logs |= {f"entropy/layer_{index:02d}": entropy for index, entropy in enumerate(entropies)}
            if self.lbe.beta > 0:
                targets = self.lbe.target.tolist()
                logs |= {f"target/layer_{index:02d}": target for index, target in enumerate(targets)}
        silent = [
            name for name, entropy in zip(self.lbe_layer_names, entropies, strict=False) if entropy < SILENT_ENTROPY
        ]
        new = [name for name in silent if name not in self._lbe_silent]
        if new:
            self._lbe_silent.update(new)
            names = shorten(", ".join(new), width=200, placeholder=" ...")
            count = f"{len(silent)} of {len(entropies)} layers"
            logger.warning(f"{count} let nothing through, their batch entropy is zero; new among them: {names}")
        return logs

    # ---- Checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save and self.lbe.beta > 0:
            folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            os.makedirs(folder, exist_ok=True)
            state = {"alpha": self.lbe.alpha.detach(), **self._lbe_optimizer.state.get(self.lbe.alpha, {})}
            save_file({name: tensor.cpu() for name, tensor in state.items()}, os.path.join(folder, TARGETS_NAME))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._lbe_load_targets(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._lbe_load_targets(str(self.state.best_model_checkpoint))

    def _lbe_load_targets(self, checkpoint: str) -> None:
        if self.lbe.beta == 0:
            return
        # One process reads for all: the others may not see its files, and their targets must be the same.
        path = os.path.join(checkpoint, TARGETS_NAME)
        read = load_file(path) if self.is_world_process_zero() and os.path.isfile(path) else None
        (state,) = broadcast_object_list([read])
        if state is None:
            self._lbe_warn_once(
                "no targets", f"{checkpoint} has no {TARGETS_NAME}: the learnable targets stay as they are."
            )
            return
        alpha = state.pop("alpha")
        if alpha.shape != self.lbe.alpha.shape:
            self._lbe_make_targets(len(alpha))
        with torch.no_grad():
            self.lbe.alpha.copy_(alpha)
        groups = self._lbe_optimizer.state_dict()["param_groups"]
        self._lbe_optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})

    # ---- The Hub ---------------------------------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The trainer's card, and below it how the model was regularized; arguments are those of the trainer.

        A `README.md` in the output folder that somebody wrote or edited is kept beside it, as `README-own.md`.
        """
        path = Path(str(self.args.output_dir), "README.md")
        if self.is_world_process_zero():
            own = keep_own_card(path, self._lbe_model)
            if own is not None:
                logger.warning(f"{path} was not written by a trainer: its content is kept in {own.name}.")
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and path.is_file():
            add_lbe_section(path, self._lbe_summary())

    def _lbe_summary(self) -> LBESummary:
        name = self.hub_model_id or self.args.hub_model_id or Path(str(self.args.output_dir)).name
        first = next((line for line in self.state.log_history if by_layer(line, "entropy")), {})
        entropies = self._lbe_monitor.entropies
        known = self.state.global_step > 0 and (self.lbe.beta > 0 or bool(entropies))
        return LBESummary(
            settings=self._lbe_settings,
            layers=self.lbe_layer_names if known else [],
            alphas=self.lbe.alpha.tolist() if known else [],
            entropies=entropies,
            first_entropies=by_layer(first, "entropy"),
            usage=usage(self._lbe_model, self.processing_class, name),
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.push_to_hub`.

        Raises:
            ValueError: the output folder holds those of other runs, whose checkpoints would be pushed, too.
        """
        nested = nested_checkpoint(Path(str(self.args.output_dir)))
        if nested is not None:
            raise ValueError(f"{nested} would be pushed with the model: give each run an output_dir of its own.")
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception:
            folder, repo = self.args.output_dir, self.hub_model_id or "REPO"
            logger.error(
                f"The push to the Hub failed. The model is saved in {folder}: push it later with "
                f"trainer.push_to_hub() or `hf upload {repo} {folder} . --exclude '{PREFIX_CHECKPOINT_DIR}-*'`."
            )
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        report_failed_pushes(getattr(self, "push_in_progress", None))
        nested = nested_checkpoint(Path(str(self.args.output_dir)))
        if nested is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._lbe_warn_once(
                "nested", f"Nothing is pushed: {nested} would go with it. Give each run an output_dir of its own."
            )

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        report_failed_pushes(getattr(self, "push_in_progress", None))


class LBETrainer(LBETrainerMixin, Trainer):
    """`Trainer` with layerwise batch-entropy regularization; see `LBETrainerMixin`."""


class LBESeq2SeqTrainer(LBETrainerMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with layerwise batch-entropy regularization; see `LBETrainerMixin`."""
