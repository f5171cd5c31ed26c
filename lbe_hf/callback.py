"""Information flow during training, with any trainer: `callbacks=[InformationFlowCallback()]`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, recursively_apply
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length
from transformers.utils import logging

from .diagnosis import FlowMeter, InformationFlow, prepared
from .flow_history import FlowHistory
from .flow_page import can_draw, history_page
from .forward_pass import Forward, around_forward
from .log_lines import layer_entries
from .models import in_data_parallel
from .moments import Samples, check_samples

logger = logging.get_logger(__name__)

RECORD_NAME = "information_flow.json"
PAGE_NAME = "information_flow.html"

_STOPS = ("nonfinite", "collapsed")


class InformationFlowCallback(TrainerCallback):
    """Measures the information flow through the layers during training, and warns when the model gets worse.

    On a measured step, the callback stores the arguments of the forward passes of the first micro-batch. After the
    step it repeats these passes without gradients and dropout, and restores the state of the model. Losses, weights
    and random numbers are identical to those of a run without the callback. Between the measured steps the model has
    no hooks.

    Each measurement adds one log line to the log history and the trackers of the trainer, with `flow/entropy_min`
    (nats), `flow/variance_share_min`, `flow/effective_rank_last` and `flow/dead_units` (the maximum over all layers
    and modules). At the end of training, `information_flow.json` and, with the extra `plot`, `information_flow.html`
    are written to the output folder. Checkpoints contain the record too, and a run that is resumed in the same output
    folder continues it. With several processes, each measures its own examples; the results of the first process are
    reported.

    Args:
        every_steps: optimizer steps between two measurements. None (default): `logging_steps`, or the end of each
            epoch with `logging_strategy="epoch"`.
        target_modules: modules whose outputs are the layers, as for `information_flow` (default: the hidden states).
        samples: what the variance runs over, as for `information_flow`; `"token"` suits batches of few examples.
        ignore_padding: exclude padding, using the attention mask (default True).
        log_layers: also log the entropy, variance share and effective rank of each layer, as `flow/entropy/layer_00`
            and so on (default False).
        stop_on_collapse: stop training when a layer has collapsed or has non-finite values (default False).

    Raises:
        ValueError: `every_steps` is not positive, or `samples` is unknown; at the start of training, if the trainer
            has a second one, because both would write the same record.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        *,
        target_modules: str | Sequence[str] | None = None,
        samples: Samples = "sequence",
        ignore_padding: bool = True,
        log_layers: bool = False,
        stop_on_collapse: bool = False,
    ) -> None:
        check_samples(samples)
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, not {every_steps}.")
        self._every_steps, self._log_layers, self._stop_on_collapse = every_steps, log_layers, stop_on_collapse
        self._meter_settings = (target_modules, samples, ignore_padding)
        self.history = FlowHistory()
        """The measurements so far."""
        self._due = False
        self._calls: list[_Call] = []
        self._listening = ExitStack()
        self._unmeasured = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if sum(isinstance(callback, InformationFlowCallback) for callback in _calling_handler().callbacks) > 1:
            raise ValueError("A trainer can have one InformationFlowCallback only: two would write the same record.")
        self._listening.close()
        self._unmeasured = False
        self.history = FlowHistory()
        if in_data_parallel(args, kwargs.get("model")):
            self._warn_unmeasured(
                "it does not support several GPUs in one process. Use `accelerate launch` or `torchrun`."
            )
        if state.global_step > 0 and state.is_world_process_zero:
            try:
                self.history = FlowHistory.load(_checkpoint(args, state) / RECORD_NAME)
            except (OSError, ValueError) as error:
                logger.warning(f"InformationFlowCallback starts a new record: {error}")

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        is_due = self._is_due(args, state, kwargs.get("train_dataloader"))
        self._due = is_due and not in_data_parallel(args, kwargs.get("model"))
        if self._due:
            self._calls = []
            self._listening.enter_context(around_forward(kwargs["model"], self._keep))

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._listening.close()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._listening.close()
        if not self._due:
            return
        calls, self._calls = self._calls, []
        flow = self._measure(kwargs["model"], calls)
        if flow is not None:
            self._report(flow, args, state, control)
        if self._stop_on_collapse and _first_process_stops(flow, args):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint(args, state)
        if state.is_world_process_zero and folder.is_dir():
            self._write(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._listening.close()
        if not state.is_world_process_zero:
            return
        if not self.history.steps:
            self._warn_unmeasured(
                f"training ended at step {state.global_step}, before the first measurement was due. "
                "Lower every_steps, or logging_steps, which it defaults to."
            )
        self._write(Path(args.output_dir or "."), page=f"Information flow over {state.global_step} steps")

    def _write(self, folder: Path, page: str | None = None) -> None:
        """Write the record and, given a title, the page. A write error is logged and does not stop training."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.history.save(folder / RECORD_NAME)
            if page is not None and can_draw():
                (folder / PAGE_NAME).write_text(history_page(page, self.history), encoding="utf-8")
        except OSError as error:
            logger.warning(f"InformationFlowCallback cannot write to {folder}: {error}")

    def _is_due(self, args: TrainingArguments, state: TrainerState, train_dataloader: Any) -> bool:
        """Whether to measure the step that begins."""
        step = state.global_step + 1
        if self._every_steps is not None:
            return step % self._every_steps == 0
        if args.logging_strategy == "epoch" and has_length(train_dataloader):
            return step % math.ceil(len(train_dataloader) / args.gradient_accumulation_steps) == 0
        if args.logging_strategy == "steps" and args.logging_first_step and step == 1:
            return True
        steps = state.logging_steps if args.logging_strategy == "steps" else 500
        return step % max(1, int(steps)) == 0

    def _keep(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Store the arguments of a forward pass made with gradients, which is one for the loss."""
        if torch.is_grad_enabled():
            self._calls.append(_Call(args, kwargs))
        try:
            return forward(*args, **kwargs)
        except BaseException:  # training ends without another event, as after Ctrl-C in a notebook
            self._listening.close()
            self._calls.clear()
            raise

    def _measure(self, model: nn.Module, calls: Sequence[_Call]) -> InformationFlow | None:
        """The measurement, or None and one warning if the passes cannot be measured: training continues."""
        try:
            if not calls:
                raise ValueError(f"the loss was computed without calling {type(model).__name__}, by a part of it.")
            meter = FlowMeter(model, *self._meter_settings)
            with prepared(model), torch.no_grad():
                for call in calls:
                    call.repeat(meter.measure)
            return meter.flow()
        except Exception as error:  # of the model, or out of memory
            self._warn_unmeasured(str(error) or type(error).__name__)
            return None

    def _warn_unmeasured(self, reason: str) -> None:
        if not self._unmeasured:
            logger.warning(f"InformationFlowCallback cannot measure: {reason}")
        self._unmeasured = True

    def _report(
        self, flow: InformationFlow, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        logs = self._log_line(flow)
        line = {**logs, "epoch": state.epoch} if state.epoch is not None else dict(logs)
        state.log_history.append({**line, "step": state.global_step})
        # The handler's on_log resets it, although the trainer's own line is still due.
        should_log = control.should_log
        _calling_handler().on_log(args, state, control, line)
        control.should_log = should_log
        for event in self.history.add(state.global_step, flow.layers, flow.findings, flow.verdict):
            if state.is_world_process_zero:
                logger.warning(str(event))
                _alert(args, event.kind, str(event))

    def _log_line(self, flow: InformationFlow) -> dict[str, float]:
        def measured(values: Iterable[float]) -> list[float]:
            return [value for value in values if not math.isnan(value)]

        layers = flow.layers
        dead_layers = [layer.dead_units for layer in layers]
        dead_modules = [module.dead_units for module in flow.modules]
        line = {
            "flow/entropy_min": min(measured(layer.batch_entropy for layer in layers), default=math.nan),
            "flow/variance_share_min": min(measured(layer.variance_share for layer in layers), default=math.nan),
            "flow/effective_rank_last": layers[-1].effective_rank,
            "flow/dead_units": max(measured([*dead_layers, *dead_modules]), default=math.nan),
        }
        if self._log_layers:
            line |= layer_entries("flow/entropy", (layer.batch_entropy for layer in layers))
            line |= layer_entries("flow/variance_share", (layer.variance_share for layer in layers))
            line |= layer_entries("flow/effective_rank", (layer.effective_rank for layer in layers))
        return {name: value for name, value in line.items() if not math.isnan(value)}


class _Call:
    """A forward pass to repeat: its arguments, detached from the graph, and its autocast state."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._args, self._kwargs = _detached(args), _detached(dict(kwargs))
        device = next((value.device.type for value in self._kwargs.values() if isinstance(value, Tensor)), "cpu")
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._autocast = partial(torch.autocast, device, enabled=enabled, dtype=dtype)

    def repeat(self, forward: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        with self._autocast():
            forward(self._args, self._kwargs)


def _detached(values: Any) -> Any:
    """Detached tensors in new containers, because a model may modify the containers."""
    return recursively_apply(lambda tensor: tensor.detach(), values)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Folder of the checkpoint of this step; it may not exist."""
    return Path(args.output_dir or ".", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _first_process_stops(flow: InformationFlow | None, args: TrainingArguments) -> bool:
    """Whether the first process found a reason to stop; broadcast, so that all processes stop at the same step."""
    stops = flow is not None and any(finding.kind in _STOPS for finding in flow.findings)
    return bool(broadcast(torch.tensor(int(stops), device=args.device)).item())


def _calling_handler() -> CallbackHandler:
    """The handler that is calling this callback. Callbacks receive neither the trainer nor its trackers."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler):
            return owner
        frame = frame.f_back
    raise RuntimeError("InformationFlowCallback must be used as a callback of a Trainer.")


def _alert(args: TrainingArguments, title: str, text: str) -> None:
    """Send an alert to Trackio if it is installed and tracks this run."""
    if "trackio" in (args.report_to or []) and importlib.util.find_spec("trackio") is not None:
        trackio = importlib.import_module("trackio")
        trackio.alert(title=title, text=text, level=trackio.AlertLevel.WARN)
