"""Settings of layerwise batch-entropy regularization, and the arguments classes that carry them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .moments import Samples
from .regularizer import Form, check_settings

_TOKENS = {"hub_token", "push_to_hub_token"}
_without_tokens = ContextVar("_without_tokens", default=False)


@contextmanager
def tokens_left_out() -> Iterator[None]:
    """Context in which arguments are pickled without tokens of the Hub: `training_args.bin` is pushed with a model."""
    reset = _without_tokens.set(True)
    try:
        yield
    finally:
        _without_tokens.reset(reset)


@dataclass
class LBEArguments:
    """Settings of the regularization, to be mixed into any arguments class: `class MyConfig(LBEArguments, SFTConfig)`.

    Args:
        lbe_beta: strength of the penalty, no unit (default 0.01; the paper tries 0.005, 0.01 and 0.05). 0 trains
            exactly as the trainer does without LBE, except for the loss that a model computes itself under gradient
            accumulation (see `own_loss_corrected` in `loss_normalization.py`).
        lbe_alpha: start of every layer's learnable target, in nats (default 0.5; the paper tries 0.2, 0.3, 0.5 and
            0.8).
        lbe_alpha_min: floor under every target, in nats (default 0.2, as in the paper).
        lbe_alpha_learning_rate: constant learning rate of the targets. None (default): the learning rate that the
            model's schedule has at each step, as in the paper. At fine-tuning rates that moves a target by less than
            0.03 nats over a whole run.
        lbe_form: `"product"` (default), the paper's `task_loss * (1 + penalty)`, which leaves the penalty out where
            the task loss is zero or negative; `"additive"`, `task_loss + penalty`, the mean over the micro-batches of
            an optimizer step and over processes.
        lbe_target_modules: modules whose outputs are regularized, by the rules of PEFT: a string is a regular
            expression matched against the whole module name, a list holds names or dotted suffixes of names. None
            (default): the hidden states that the model returns. On the command line a list is written as JSON:
            `'["output.dense", "pooler"]'`.
        lbe_layers: which of the captured activations count, by index, negative ones from the end. None (default): all
            of them. Hidden states start with the embedding output at 0.
        lbe_samples: what the variance runs over: `"sequence"` (default), the examples of the batch; `"token"`, all its
            real tokens, for batches of one or two long sequences.
        lbe_ignore_padding: leave padding out of the statistics, by the attention mask (default True).
        lbe_sync_batch: measure over the examples of all processes, as SyncBatchNorm does (default False: each process
            measures its own). Processes exchange 12 bytes for each unit of each layer, twice a micro-batch at most.
        lbe_log_entropy: log the entropy of each layer as `entropy/layer_00` and so on, and its target as
            `target/layer_00` (default False); with `lbe_beta=0` it is measured and changes nothing.

    Raises:
        ValueError: a setting is outside its range.
    """

    lbe_beta: float = field(
        default=0.01,
        metadata={"help": "Strength of the penalty, no unit; the paper tries 0.005, 0.01, 0.05. 0 turns LBE off."},
    )
    lbe_alpha: float = field(
        default=0.5,
        metadata={"help": "Start of every layer's learnable target, in nats; the paper tries 0.2, 0.3, 0.5, 0.8."},
    )
    lbe_alpha_min: float = field(
        default=0.2, metadata={"help": "Floor under every layer's target, in nats; 0.2 in the paper."}
    )
    lbe_alpha_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Constant learning rate of the targets. Default: follow the model's schedule."},
    )
    lbe_form: Form = field(
        default="product",
        metadata={"help": "'product': task_loss * (1 + penalty), as in the paper; 'additive': task_loss + penalty."},
    )
    # HfArgumentParser reads the first type after None from the command line.
    lbe_target_modules: None | str | list[str] = field(  # noqa: RUF036
        default=None,
        metadata={
            "help": "Modules whose outputs are regularized: a regular expression matched against the whole module "
            "name, or a list (on the command line as JSON) of names or dotted suffixes. Default: the hidden states."
        },
    )
    lbe_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Indices of the captured activations that count; negative from the end. Default: all."},
    )
    lbe_samples: Samples = field(
        default="sequence",
        metadata={"help": "What the variance runs over: 'sequence', the rows; 'token', all real tokens of the batch."},
    )
    lbe_ignore_padding: bool = field(
        default=True, metadata={"help": "Leave padding out of the statistics, by the attention mask."}
    )
    lbe_sync_batch: bool = field(
        default=False, metadata={"help": "Measure over the rows of all processes, not those of each by itself."}
    )
    lbe_log_entropy: bool = field(
        default=False,
        metadata={"help": "Log each layer's entropy and target in nats; with lbe_beta=0 it only measures."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.lbe_target_modules, str) and self.lbe_target_modules.startswith('["'):
            try:
                self.lbe_target_modules = json.loads(self.lbe_target_modules)
            except json.JSONDecodeError as error:
                raise ValueError(f"lbe_target_modules is not valid JSON: {error}.") from None
        for name in ("lbe_beta", "lbe_alpha", "lbe_alpha_min"):
            # Hyper-parameter search casts what it tries to the type of what stands here.
            setattr(self, name, float(getattr(self, name)))
        if self.lbe_alpha_learning_rate is not None:
            self.lbe_alpha_learning_rate = float(self.lbe_alpha_learning_rate)
        self.check_lbe()
        other = getattr(super(), "__post_init__", None)  # of the arguments class this one is combined with
        if other is not None:
            other()

    @classmethod
    def of(cls, args: Any) -> LBEArguments:
        """A copy of the settings in the arguments of a trainer; the defaults where it has none.

        Raises:
            ValueError: a setting is outside its range.
        """
        settings: dict[str, Any] = {name.name: getattr(args, name.name, name.default) for name in fields(LBEArguments)}
        return LBEArguments(**settings)

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self)}
        return {**state, **dict.fromkeys(_TOKENS & state.keys())} if _without_tokens.get() else state

    def check_lbe(self) -> None:
        """Raise a ValueError that names the first setting outside its range."""
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
            raise ValueError(f"lbe_layers must be a list of at least one index, not {layers!r}; leave it out for all.")
        if self.lbe_target_modules is not None and not self.lbe_target_modules:
            raise ValueError("lbe_target_modules is empty: name a module, or leave it out to use the hidden states.")
        if isinstance(self.lbe_target_modules, str):
            try:
                re.compile(self.lbe_target_modules)
            except re.error as error:
                raise ValueError(
                    f"lbe_target_modules={self.lbe_target_modules!r} is not a regular expression ({error}): "
                    "mend it, or give a list of names."
                ) from None


@dataclass
class LBETrainingArguments(LBEArguments, TrainingArguments):
    """`TrainingArguments` with the settings of `LBEArguments`."""


@dataclass
class LBESeq2SeqTrainingArguments(LBEArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the settings of `LBEArguments`."""
