"""Trainers that add layerwise batch-entropy regularization to the task loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .activations import ActivationSource, check_layers
from .checks import check_training, missing_files
from .hidden_states import HiddenStates
from .log_lines import by_layer
from .loss_normalization import own_loss_corrected, trainer_divides
from .model_card import LBECard, LBESummary, usage
from .monitor import EntropyMonitor, Measurement
from .penalty import Penalty
from .regularizer import LBERegularizer
from .reporting import Reporter
from .signatures import show_own_parameters
from .target_modules import TargetModules
from .targets import LearnableTargets
from .tokens import tokens_left_out
from .training_args import LBEArguments

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.get_logger(__name__)

_EXTENDED = "__init__ _inner_training_loop compute_loss create_model_card get_batch_samples log training_step".split()


class LBETrainerMixin(_Base):
    """Layerwise batch-entropy regularization for any trainer: `class MyTrainer(LBETrainerMixin, SFTTrainer)`.

    In training, `loss = task_loss * (1 + penalty)` (Peer et al., TMLR 2022, arXiv 2208.01134), with the settings of
    `LBEArguments` in the trainer's arguments, or their defaults where the arguments have none. Activations are
    recorded in the forward passes that `compute_loss` of the trainer makes with gradients, without additional passes.
    Evaluation and prediction are unchanged. `lbe` is the `LBERegularizer` with the learnable targets of the
    activations listed in `lbe_layer_names`. The targets have their own optimizer; they are not part of the model, its
    optimizer or a push to the Hub.

    Raises:
        ValueError: the settings do not work with the model (at construction), with the trainer or its arguments (at
            the start of training), or with the batches (at the first training batch).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        show_own_parameters(cls, LBETrainerMixin, _EXTENDED)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lbe_setup()

    def _lbe_setup(self) -> None:
        """Set up the regularization for the current model and settings."""
        self._lbe_settings = settings = LBEArguments.of(self.args)
        self._lbe_of_model = self._lbe_model
        self._lbe_measures = settings.lbe_beta > 0 or settings.lbe_log_entropy
        self._lbe_source_of: tuple[nn.Module, ActivationSource] | None = None
        expected = self._lbe_source.expected if self._lbe_measures else None
        if expected is not None and settings.lbe_target_modules is None:
            # How often modules are called is known only after a forward pass.
            check_layers(settings.lbe_layers, expected)
        # If the number of layers is unknown, the first forward pass determines it.
        self._lbe_targets = LearnableTargets(
            len(settings.lbe_layers) if settings.lbe_layers is not None else expected or 1,
            alpha=settings.lbe_alpha,
            alpha_min=settings.lbe_alpha_min,
            beta=settings.lbe_beta,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            device=self.args.device,
        )
        if not hasattr(self, "current_gradient_accumulation_steps"):  # Trainer sets it in its training loop
            self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        self._lbe_in_training_step = False
        self._lbe_start()

    def _lbe_start(self) -> None:
        """Reset the state of an earlier training run, or of an attempt that ran out of memory."""
        self._lbe_monitor = EntropyMonitor(filters=self.args.logging_nan_inf_filter)
        self._lbe_reporter = Reporter(prints=self.args.process_index == 0)
        held_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        self._lbe_penalty = Penalty(
            self._lbe_settings,
            self._lbe_targets,
            self._lbe_reporter,
            batch_size=self.args.per_device_train_batch_size,
            synced=self._lbe_synced,
            held_dtype=held_dtype,
        )
        self._lbe_measured: Measurement | None = None
        self._lbe_has_batches = False
        self._lbe_targets.optimizer.zero_grad()

    @property
    def lbe(self) -> LBERegularizer:
        """The penalty and its targets."""
        return self._lbe_targets.regularizer

    @property
    def lbe_layer_names(self) -> list[str]:
        """Names of the layers, in the order of their targets."""
        return self._lbe_targets.names

    @property
    def _lbe_model(self) -> nn.Module:
        model: Any = self.model  # None only while Trainer is being constructed
        return getattr(model, "_orig_mod", model)  # type: ignore[no-any-return]

    @property
    def _lbe_source(self) -> ActivationSource:
        """Activation source of the current model; the model of a trainer may be replaced at any time."""
        model, targets = self._lbe_model, self._lbe_settings.lbe_target_modules
        if self._lbe_source_of is None or self._lbe_source_of[0] is not model:
            self._lbe_source_of = model, HiddenStates(model) if targets is None else TargetModules(model, targets)
        return self._lbe_source_of[1]

    @property
    def _lbe_synced(self) -> bool:
        return self._lbe_settings.lbe_sync_batch and self.args.world_size > 1

    # ---- One micro-batch -------------------------------------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As `compute_loss` of the trainer; in a training step the loss includes the penalty."""
        training = self._lbe_in_training_step and torch.is_grad_enabled()
        steps = self.current_gradient_accumulation_steps if training else 1
        if not (training and self._lbe_measures):
            with own_loss_corrected(self, self._lbe_model, steps):
                return super().compute_loss(model, inputs, *args, **kwargs)
        batch = inputs if isinstance(inputs, Mapping) else None
        with self._lbe_source.listen(batch) as recording, own_loss_corrected(self, self._lbe_model, steps):
            result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        num_items = kwargs.get("num_items_in_batch", args[1] if len(args) > 1 else None)
        loss, self._lbe_measured = self._lbe_penalty.add(
            loss, recording, steps=1 if trainer_divides(self, num_items) else steps
        )
        return (loss, *result[1:]) if isinstance(result, tuple) else loss

    # ---- One optimizer step ----------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `training_step` of the trainer; updates the learnable targets once gradients are synchronized.

        Raises:
            ValueError: a subclass computes the loss without `LBETrainerMixin.compute_loss`.
        """
        self._lbe_in_training_step = True
        try:
            loss: Tensor = super().training_step(*args, **kwargs)
        finally:
            self._lbe_in_training_step = False
        if not self._lbe_measures:
            return loss
        if self._lbe_measured is None:
            raise ValueError(
                f"compute_loss of {type(self).__name__} does not call super().compute_loss: nothing is regularized. "
                "Define it in a subclass X of Trainer, and train with `class Y(LBETrainerMixin, X)`."
            )
        measured, self._lbe_measured = self._lbe_measured, None
        lbe_loss = self._lbe_penalty.share(loss, measured, self.current_gradient_accumulation_steps)
        self._lbe_monitor.add(loss, lbe_loss, measured)
        if self.accelerator.sync_gradients:
            self._lbe_end_step()
        return loss

    def _lbe_end_step(self) -> None:
        # Exchanged here in one reduction, because `log` may be called by one process only.
        gradient, sums = self._lbe_targets.gradient, self._lbe_monitor.step
        assert sums is not None
        means = self.accelerator.reduce(torch.cat([gradient, sums]), reduction="mean")
        gradient, sums = means.split([len(gradient), len(sums)])
        self._lbe_monitor.end_step(sums)
        if self.lbe.beta > 0:
            self._lbe_targets.step(gradient, self._lbe_learning_rate, getattr(self.accelerator, "scaler", None))

    @property
    def _lbe_learning_rate(self) -> float:
        if self._lbe_settings.lbe_alpha_learning_rate is not None:
            return self._lbe_settings.lbe_alpha_learning_rate
        if self.lr_scheduler is not None:
            return float(self._get_learning_rate())
        return self.args.learning_rate if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])

    # ---- A training ------------------------------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if self._lbe_model is not self._lbe_of_model or LBEArguments.of(self.args) != self._lbe_settings:
            self._lbe_setup()  # for example in the trials of a hyperparameter search
        self._lbe_start()
        if self._lbe_measures:
            check_training(self)
        result = super()._inner_training_loop(*args, **kwargs)
        self._lbe_check_measured()
        self._lbe_reporter.end(self._lbe_monitor.over_run(), self.lbe)
        return result

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As `get_batch_samples` of the trainer, which begins every optimizer step.

        Raises:
            ValueError: a subclass trains without `LBETrainerMixin.training_step`.
        """
        self._lbe_check_measured()
        batches = super().get_batch_samples(*args, **kwargs)
        self._lbe_has_batches = self._lbe_has_batches or len(batches[0]) > 0
        return batches

    def _lbe_check_measured(self) -> None:
        if self._lbe_measures and self._lbe_has_batches and not self._lbe_monitor.has_steps:
            raise ValueError(
                f"training_step of {type(self).__name__} does not call super().training_step: nothing is regularized. "
                "Define it in a subclass X of Trainer, and train with `class Y(LBETrainerMixin, X)`."
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `log` of the trainer; adds mean losses and entropies since the last line to lines with a training loss.

        `task_loss` and `lbe_loss` sum to `loss`; `entropy_mean`, `entropy_min` and `entropy_last` (over layers) and
        `alpha_mean` are in nats.
        """
        means = self._lbe_monitor.since_last() if "loss" in logs else None
        if means is not None:
            each_layer = self._lbe_settings.lbe_log_entropy
            logs.update(self._lbe_reporter.log_line(means, self.lbe, self.lbe_layer_names, each_layer=each_layer))
        super().log(logs, *args, **kwargs)

    # ---- Checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save and self._lbe_measures:  # also without a penalty, for the layer names
            folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            self._lbe_targets.save(folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            reads_targets = self.lbe.beta > 0 and self.is_world_process_zero()
            for name in missing_files(self, Path(checkpoint), with_targets=reads_targets):
                logger.warning(
                    f"{checkpoint} has no {name}: the results will differ from those of an uninterrupted run."
                )
            self._lbe_load_targets(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._lbe_load_targets(str(self.state.best_model_checkpoint))

    def _lbe_load_targets(self, checkpoint: str) -> None:
        if not self._lbe_measures:
            return
        # Only the first process reads: others may not have access to its files, and all targets must be equal.
        read = LearnableTargets.read(Path(checkpoint)) if self.is_world_process_zero() else None
        (stored,) = broadcast_object_list([read])
        if stored is not None:
            self._lbe_targets.restore(stored)

    # ---- Saving and pushing ----------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        card = LBECard(Path(output_dir or str(self.args.output_dir)))
        with tokens_left_out(self.args):
            super()._save(output_dir, *args, **kwargs)
        # PEFT and sentence-transformers write a card whenever they save a model.
        card.complete_if_written(self._lbe_summary)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        card = LBECard(Path(str(self.args.output_dir))) if self.is_world_process_zero() else None
        with tokens_left_out(self.args):
            super()._push_from_checkpoint(checkpoint_folder)
        # Sentence-transformers copies the card of the checkpoint.
        if card is not None:
            card.keep_replaced()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As `create_model_card` of the trainer, with a section on the regularization.

        A `README.md` in the output folder that was written or edited by the user is kept as `README-own.md`.
        """
        card = LBECard(Path(str(self.args.output_dir))) if self.is_world_process_zero() else None
        if card is not None:
            card.keep_own(self._lbe_model)
        super().create_model_card(*args, **kwargs)
        if card is not None:
            card.complete(self._lbe_summary)

    def _lbe_summary(self) -> LBESummary:
        name = self.hub_model_id or self.args.hub_model_id or Path(str(self.args.output_dir)).name
        logged = [values for line in self.state.log_history if (values := by_layer(line, "entropy"))]
        # A run that is resumed after its last step has no measurements of its own.
        last = self._lbe_monitor.last.entropies if self._lbe_monitor.last else []
        entropies = last or (logged[-1] if logged else [])
        over_run = self._lbe_monitor.over_run()
        known = self.state.global_step > 0 and (self.lbe.beta > 0 or bool(entropies))
        return LBESummary(
            settings=self._lbe_settings,
            layers=self.lbe_layer_names if known else [],
            alphas=self.lbe.alpha.tolist() if known else [],
            targets=self.lbe.target.tolist() if known else [],
            entropies=entropies,
            first_entropies=logged[0] if logged else [],
            penalized=1.0 if over_run is None else 1 - over_run.unmeasured - over_run.skipped,
            usage=usage(self._lbe_model, self.processing_class, name),
        )


class LBETrainer(LBETrainerMixin, Trainer):
    """`Trainer` with layerwise batch-entropy regularization; see `LBETrainerMixin`."""


class LBESeq2SeqTrainer(LBETrainerMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with layerwise batch-entropy regularization; see `LBETrainerMixin`."""
