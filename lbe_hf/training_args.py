"""Settings of layerwise batch-entropy regularization, and arguments classes that include them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .moments import Samples
from .regularizer import Form, check_settings
from .target_modules import parse_targets


@dataclass
class LBEArguments:
    """Settings of the regularization, a mixin for any arguments class: `class MyConfig(LBEArguments, SFTConfig)`.

    Args:
        lbe_beta: strength of the penalty, no unit (default 0.01; the paper tries 0.005, 0.01 and 0.05). With 0,
            training is identical to that of the trainer without LBE, except that the loss of some models is corrected
            under gradient accumulation (see `own_loss_corrected` in `loss_normalization.py`).
        lbe_alpha: initial value of the learnable target of every layer, in nats (default 0.5; the paper tries 0.2,
            0.3, 0.5 and 0.8).
        lbe_alpha_min: lower bound of every target, in nats (default 0.2, as in the paper).
        lbe_alpha_learning_rate: constant learning rate of the targets. None (default): the current learning rate of
            the model, as in the paper. A step changes a target by at most about this rate.
        lbe_form: `"product"` (default): `task_loss * (1 + penalty)`, as in the paper, without the penalty if the task
            loss is zero, negative or not finite. `"additive"`: `task_loss + penalty`, where the penalty is the mean
            over the micro-batches of an optimizer step and over processes.
        lbe_target_modules: modules whose outputs are regularized, with the rules of PEFT: a string is a regular
            expression matched against the whole module name, a list contains names or dotted suffixes of names. None
            (default): the hidden states that the model returns. On the command line, write a list as JSON:
            `'["output.dense", "pooler"]'`.
        lbe_layers: indices of the recorded activations to regularize; negative indices count from the end. None
            (default): all of them. Index 0 of the hidden states is the embedding output.
        lbe_samples: samples over which the variance is computed: `"sequence"` (default), the examples of the batch;
            `"token"`, all its real tokens, for batches of one or two long sequences.
        lbe_ignore_padding: exclude padding, using the attention mask (default True).
        lbe_sync_batch: measure over the examples of all processes, like SyncBatchNorm (default False: each process
            measures its own). Processes exchange 12 bytes for each unit of each layer, at most twice per micro-batch.
        lbe_log_entropy: log the entropy of each layer as `entropy/layer_00` and so on, and its target as
            `target/layer_00` (default False). With `lbe_beta=0` entropies are measured without affecting training.

    Raises:
        ValueError: a setting is out of range.
    """

    lbe_beta: float = field(
        default=0.01,
        metadata={"help": "Strength of the penalty, no unit; the paper tries 0.005, 0.01, 0.05. 0 turns LBE off."},
    )
    lbe_alpha: float = field(
        default=0.5,
        metadata={"help": "Initial learnable target of every layer, in nats; the paper tries 0.2, 0.3, 0.5, 0.8."},
    )
    lbe_alpha_min: float = field(
        default=0.2, metadata={"help": "Lower bound of every target, in nats; 0.2 in the paper."}
    )
    lbe_alpha_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Constant learning rate of the targets. Default: the current learning rate of the model."},
    )
    lbe_form: Form = field(
        default="product",
        metadata={"help": "'product': task_loss * (1 + penalty), as in the paper; 'additive': task_loss + penalty."},
    )
    # HfArgumentParser uses the first type after None.
    lbe_target_modules: None | str | list[str] = field(  # noqa: RUF036
        default=None,
        metadata={
            "help": "Modules whose outputs are regularized: a regular expression matched against the whole module "
            "name, or a list (on the command line as JSON) of names or dotted suffixes. Default: the hidden states."
        },
    )
    lbe_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Indices of the recorded activations to regularize; negative from the end. Default: all."},
    )
    lbe_samples: Samples = field(
        default="sequence",
        metadata={"help": "Samples of the variance: 'sequence', the examples; 'token', all real tokens of the batch."},
    )
    lbe_ignore_padding: bool = field(default=True, metadata={"help": "Exclude padding, using the attention mask."})
    lbe_sync_batch: bool = field(
        default=False,
        metadata={"help": "Measure over the examples of all processes instead of each process separately."},
    )
    lbe_log_entropy: bool = field(
        default=False,
        metadata={"help": "Log the entropy and target of each layer in nats; with lbe_beta=0 training is unaffected."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.lbe_target_modules, str):
            self.lbe_target_modules = parse_targets(self.lbe_target_modules)
        for name in ("lbe_beta", "lbe_alpha", "lbe_alpha_min"):
            # Hyperparameter search casts new values to the type of the current value.
            setattr(self, name, float(getattr(self, name)))
        if self.lbe_alpha_learning_rate is not None:
            self.lbe_alpha_learning_rate = float(self.lbe_alpha_learning_rate)
        self.check_lbe()
        other = getattr(super(), "__post_init__", None)  # of the arguments class with which this one is combined
        if other is not None:
            other()

    @staticmethod
    def of(args: Any) -> LBEArguments:
        """A copy of the settings in the arguments of a trainer; missing settings get their defaults.

        Raises:
            ValueError: a setting is out of range.
        """
        settings: dict[str, Any] = {each.name: getattr(args, each.name, each.default) for each in fields(LBEArguments)}
        return LBEArguments(**settings)

    def check_lbe(self) -> None:
        """Raise a ValueError that names the first setting out of range."""
        try:
            check_settings(beta=self.lbe_beta, alpha=self.lbe_alpha, alpha_min=self.lbe_alpha_min)
        except ValueError as error:
            raise ValueError(f"lbe_{error}") from None
        rate = self.lbe_alpha_learning_rate
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"lbe_alpha_learning_rate must be zero or positive, not {rate}.")
        for name, choices in {"lbe_samples": get_args(Samples), "lbe_form": get_args(Form)}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}.")
        layers = self.lbe_layers
        indices = isinstance(layers, (list, tuple)) and all(isinstance(layer, int) for layer in layers)
        if layers is not None and not (indices and layers):
            raise ValueError(f"lbe_layers must be a list of at least one index, not {layers!r}; omit it to use all.")
        if self.lbe_target_modules is not None and not self.lbe_target_modules:
            raise ValueError("lbe_target_modules is empty: name a module, or omit it to use the hidden states.")
        targets = self.lbe_target_modules
        if not isinstance(targets, str) and not all(isinstance(name, str) for name in targets or ()):
            raise ValueError(f"lbe_target_modules must be a regular expression or a list of names, not {targets!r}.")


@dataclass
class LBETrainingArguments(LBEArguments, TrainingArguments):
    """`TrainingArguments` with the settings of `LBEArguments`."""


@dataclass
class LBESeq2SeqTrainingArguments(LBEArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the settings of `LBEArguments`."""
