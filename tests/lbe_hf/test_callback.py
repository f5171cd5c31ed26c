"""`InformationFlowCallback` in many trainers: it measures what it says and changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_ranks
import pytest
import tiny
import torch
from others import CASES
from tiny import assert_same, token_rows
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from lbe_hf import InformationFlowCallback, LBETrainer
from lbe_hf.flow_history import FlowHistory

Make = Callable[..., Any]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # TRL's and sentence-transformers'
    pytest.mark.filterwarnings("ignore:.*processing_class:FutureWarning"),
]


@pytest.fixture
def page() -> None:
    """For tests that read the page, which takes a second to draw."""


@pytest.fixture(autouse=True)
def draw_only_if_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "page" not in request.fixturenames:
        monkeypatch.setattr("lbe_hf.callback.can_draw", lambda: False)


def is_flow(line: dict[str, Any]) -> bool:
    return "flow/dead_units" in line


def results(trainer: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights, and log lines but for the callback's own and for seconds."""
    lines = [line for line in trainer.state.log_history if not is_flow(line)]
    timeless = [
        {name: line[name] for name in line if "second" not in name and "runtime" not in name} for line in lines
    ]
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}, timeless


def assert_unchanged(without: Any, with_callback: Any) -> None:
    assert_same(results(without)[0], results(with_callback)[0])
    assert results(without)[1] == results(with_callback)[1]


class Spy(TrainerCallback):
    """What a tracker is given, and what is registered at the model while each step is made."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.replaced: list[bool] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.lines.append(dict(logs))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.replaced.append(
            any(getattr(vars(module).get("forward"), "_lbe_wraps", None) is not None for module in model.modules())
        )
        hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
        # A model that was once asked for its hidden states keeps the hooks by which Transformers takes them.
        assert all(hook.__module__ == "transformers.utils.output_capturing" for hook in hooks)


@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_in_every_trainer_it_changes_nothing(name: str, regularized: bool, tmp_path: Path) -> None:
    case, trainers = CASES[name], []
    for callback in (None, InformationFlowCallback(every_steps=2)):
        trainer = case.trainer(tmp_path, regularized, lbe_beta=1.0, max_steps=5)
        if callback is not None:
            trainer.add_callback(callback)
        trainer.train()
        trainers.append(trainer)
    assert callback is not None
    assert_unchanged(*trainers)
    assert callback.history.steps == [2, 4]
    lines = [line for line in trainers[1].state.log_history if is_flow(line)]
    assert [line["step"] for line in lines] == [2, 4]
    assert callback.history.verdict == ["Healthy: every layer lets the signal through."]


@pytest.mark.parametrize("name", CASES)
def test_it_measures_the_passes_of_the_micro_batch(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    callback = InformationFlowCallback(every_steps=1, log_layers=True)
    trainer = case.trainer(tmp_path, regularized=False, max_steps=1, learning_rate=0.1)
    first: dict[str, Any] = {}
    compute_loss = trainer.compute_loss

    def keep(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        first.update({key: value.clone() if isinstance(value, Tensor) else value for key, value in inputs.items()})
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = keep
    trainer.add_callback(callback)
    trainer.train()
    trainer.model.eval()  # the weights are those after the step, without dropout
    _, passes = case.by_hand(trainer, first)
    if name == "Seq2SeqTrainer":  # its two passes are two stacks of layers
        expected = [tiny.reference_entropy(state, mask) for states, mask in passes for state in states]
    else:
        by_pass = [[tiny.reference_entropy(state, mask) for state in states] for states, mask in passes]
        expected = [sum(entropies) / len(entropies) for entropies in zip(*by_pass, strict=True)]
    (layers,) = callback.history.layers
    assert [layer.batch_entropy for layer in layers] == pytest.approx([value.item() for value in expected], rel=1e-3)
    (line,) = (line for line in trainer.state.log_history if is_flow(line))
    assert line["flow/entropy_min"] == min(layer.batch_entropy for layer in layers)
    assert line["flow/variance_share_min"] == min(layer.variance_share for layer in layers)
    assert line["flow/effective_rank_last"] == layers[-1].effective_rank
    assert line[f"flow/entropy/layer_{len(layers) - 1:02d}"] == layers[-1].batch_entropy


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
        tiny.checkpointing(use_reentrant=True),
        tiny.checkpointing(use_reentrant=False),
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=["accumulation", "bf16", "reentrant", "not reentrant", "compiled"],
)
def test_under_settings_of_the_trainer_it_changes_nothing(arguments: dict[str, Any], make_trainer: Make) -> None:
    trainers, callback = [], InformationFlowCallback(every_steps=2)
    for callbacks in ([], [callback]):
        torch._dynamo.reset()
        trainer = make_trainer(
            Trainer, tiny.bert(dropout=True), token_rows(32), {"callbacks": callbacks}, cls=TrainingArguments,
            max_steps=4, **arguments,
        )  # fmt: skip
        trainer.train()
        trainers.append(trainer)
    assert_unchanged(*trainers)
    assert callback.history.steps == [2, 4]
    assert len(callback.history.layers[0]) == 4


def test_between_the_measured_steps_nothing_is_registered(make_trainer: Make) -> None:
    spy = Spy()
    callbacks = [spy, InformationFlowCallback(every_steps=3)]
    trainer = make_trainer(
        Trainer, tiny.bert(), token_rows(64), {"callbacks": callbacks}, cls=TrainingArguments, max_steps=7,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.train()
    assert spy.replaced == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_step_that_does_not_end_leaves_nothing_registered(error: type[BaseException], make_trainer: Make) -> None:
    model = tiny.bert()
    callback = InformationFlowCallback(every_steps=1)
    trainer = make_trainer(Trainer, model, token_rows(8), {"callbacks": [callback]}, cls=TrainingArguments)

    def interrupt(*_: Any) -> None:
        raise error

    handle = model.classifier.register_forward_hook(interrupt)
    with pytest.raises(error):
        trainer.train()
    handle.remove()
    assert "forward" not in vars(model)
    model(**tiny.batch(token_rows(2)))
    assert callback._calls == []


def test_trackers_get_the_lines_though_they_come_first(make_trainer: Make) -> None:
    spy = Spy()
    callbacks = [spy, InformationFlowCallback()]
    trainer = make_trainer(
        Trainer, tiny.bert(), token_rows(64), {"callbacks": callbacks}, cls=TrainingArguments, max_steps=6,
        logging_steps=2,
    )  # fmt: skip
    trainer.train()
    lines = [line for line in spy.lines if is_flow(line)]
    assert lines == [
        {name: value for name, value in line.items() if name != "step"}
        for line in trainer.state.log_history
        if is_flow(line)
    ]
    assert len(lines) == 3
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [2, 4, 6]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"logging_steps": 500}, []),
        ({"logging_steps": 4}, [4, 8]),
        ({"logging_steps": 0.25}, [3, 6, 9]),
        ({"logging_steps": 4, "logging_first_step": True}, [1, 4, 8]),
        ({"logging_strategy": "epoch"}, [4, 8]),
        ({"logging_strategy": "epoch", "gradient_accumulation_steps": 3}, [2, 4, 6, 8, 10]),
        ({"logging_strategy": "no"}, []),
    ],
)
def test_it_measures_at_each_log_line_and_says_if_there_was_none(
    arguments: dict[str, Any], steps: list[int], make_trainer: Make, warnings_of: Any
) -> None:
    callback = InformationFlowCallback()
    trainer = make_trainer(
        Trainer, tiny.bert(), token_rows(16), {"callbacks": [callback]}, cls=TrainingArguments,
        **{"max_steps": 10, **arguments},
    )  # fmt: skip
    trainer.train()
    assert callback.history.steps == steps
    warnings = [text for text in warnings_of() if "before the first measurement was due. Lower every_steps" in text]
    assert len(warnings) == (0 if steps else 1)


# ---- verdicts -------------------------------------------------------------------------------------------------------


class Collapsing(TrainerCallback):
    """Makes a layer of a BERT constant after a step."""

    def __init__(self, step: int, value: float = 0.0) -> None:
        self.step, self.value = step, value

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            model.bert.encoder.layer[1].output.LayerNorm.weight.fill_(self.value)


@pytest.mark.parametrize(("value", "kind"), [(0.0, "collapsed"), (math.nan, "nonfinite")])
@pytest.mark.parametrize("stop", [False, True])
def test_one_warning_when_the_verdict_gets_worse(
    value: float, kind: str, stop: bool, make_trainer: Make, warnings_of: Any
) -> None:
    callback = InformationFlowCallback(every_steps=2, stop_on_collapse=stop)
    trainer = make_trainer(
        Trainer, tiny.bert(), token_rows(64), {"callbacks": [Collapsing(4, value), callback]},
        cls=TrainingArguments, max_steps=10, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    assert callback.history.steps == ([2, 4] if stop else [2, 4, 6, 8, 10])
    assert trainer.state.global_step == callback.history.steps[-1]
    (event,) = callback.history.events
    assert (event.step, event.healthy_at, event.kind, event.layer) == (4, 2, kind, "hidden_states[2]")
    (text,) = (text for text in warnings_of() if text.startswith("Step 4"))
    assert text.startswith("Step 4 (not present at step 2): ")
    assert "hidden_states[2]" in text
    assert "lower the learning rate" in text.lower()
    assert json.loads(Path(trainer.args.output_dir, "information_flow.json").read_text())["events"][0]["step"] == 4


def test_the_page_shows_the_maps_and_the_event(page: None, make_trainer: Make) -> None:
    callbacks = [Collapsing(2, 0.0), InformationFlowCallback(every_steps=1)]
    trainer = make_trainer(Trainer, tiny.bert(), token_rows(16), {"callbacks": callbacks}, cls=TrainingArguments)
    trainer.train()
    text = Path(trainer.args.output_dir, "information_flow.html").read_text(encoding="utf-8")
    assert "<svg" in text
    assert "Collapsed from hidden_states[2] on" in text


def test_dropout_does_not_hide_a_collapsed_layer(make_trainer: Make) -> None:
    callback = InformationFlowCallback(every_steps=2)
    trainer = make_trainer(
        Trainer, tiny.bert(dropout=True), token_rows(64), {"callbacks": [Collapsing(1), callback]},
        cls=TrainingArguments, max_steps=2, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    assert [event.kind for event in callback.history.events] == ["collapsed"]


@pytest.mark.parametrize("kind", ["LoraConfig", "PrefixTuningConfig", "PromptTuningConfig"])
def test_adapters_of_peft(kind: str, make_trainer: Make) -> None:
    """Prefix tuning hands the model a cache, which a pass writes to: the model is called anew with a new one."""
    peft = pytest.importorskip("peft")
    own = {"r": 2, "target_modules": ["q_proj"]} if kind == "LoraConfig" else {"num_virtual_tokens": 3}
    trainers, callback = [], InformationFlowCallback(every_steps=1)
    for callbacks in ([], [callback]):
        model = peft.get_peft_model(tiny.llama(), getattr(peft, kind)(task_type="CAUSAL_LM", **own))
        rows = tiny.causal_rows(16)
        trainers.append(make_trainer(Trainer, model, rows, {"callbacks": callbacks}, cls=TrainingArguments))
        trainers[-1].train()
    assert_unchanged(*trainers)
    assert callback.history.steps == [1, 2, 3]
    assert len(callback.history.layers[0]) == 4


def test_trackio_gets_an_alert(make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported, here for the first time
    trackio = pytest.importorskip("trackio")
    callback = InformationFlowCallback(every_steps=2)
    trainer = make_trainer(
        Trainer, tiny.bert(), token_rows(64), {"callbacks": [Collapsing(2), callback]}, cls=TrainingArguments,
        max_steps=4, learning_rate=0.0, report_to=["trackio"], project=tmp_path.name, trackio_static_space_id=False,
    )  # fmt: skip
    trainer.train()
    (alert,) = trackio.Api().alerts(tmp_path.name)
    assert (alert["title"], alert["level"]) == ("collapsed", "warn")
    assert alert["text"].startswith("Step 2 ")


# ---- resuming, processes --------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_its_record(make_trainer: Make, tmp_path: Path) -> None:
    records = []
    for resume in (False, True):
        folder = tmp_path / "run"
        callback = InformationFlowCallback(every_steps=2)
        trainer = make_trainer(
            Trainer, tiny.bert(dropout=True), token_rows(64), {"callbacks": [callback]}, cls=TrainingArguments,
            max_steps=8, save_strategy="steps", save_steps=4,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
        records.append((results(trainer), callback.history.to_dict()))
    assert_same(records[0][0][0], records[1][0][0])
    assert records[0][1] == records[1][1]
    assert records[0][1]["steps"] == [2, 4, 6, 8]
    assert json.loads((tmp_path / "run" / "information_flow.json").read_text()) == records[0][1]
    assert FlowHistory.load(tmp_path / "run" / "information_flow.json").to_dict() == records[0][1]


def test_a_run_that_is_resumed_in_another_folder_says_that_it_starts_a_new_record(
    make_trainer: Make, tmp_path: Path, warnings_of: Any
) -> None:
    for name, checkpoint in (("old", None), ("new", str(tmp_path / "old" / "checkpoint-2"))):
        callback = InformationFlowCallback(every_steps=2)
        trainer = make_trainer(
            Trainer, tiny.bert(), token_rows(64), {"callbacks": [callback]}, cls=TrainingArguments,
            max_steps=4, save_strategy="steps", save_steps=2, output_dir=str(tmp_path / name),
        )  # fmt: skip
        assert not [text for text in warnings_of() if "starts a new record" in text]
        trainer.train(resume_from_checkpoint=checkpoint)
    assert callback.history.steps == [4]
    assert len([text for text in warnings_of() if "starts a new record: " in text]) == 1


def test_a_second_training_begins_a_new_record(make_trainer: Make) -> None:
    callback = InformationFlowCallback(every_steps=2)
    trainer = make_trainer(Trainer, tiny.bert(), token_rows(64), {"callbacks": [callback]}, cls=TrainingArguments,
                           max_steps=4)  # fmt: skip
    trainer.train()
    trainer.train()
    assert callback.history.steps == [2, 4]


def test_a_damaged_record_and_a_full_disk_do_not_end_a_training(
    make_trainer: Make, tmp_path: Path, warnings_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer() -> Any:
        return make_trainer(
            Trainer, tiny.bert(), token_rows(64), {"callbacks": [InformationFlowCallback(every_steps=2)]},
            cls=TrainingArguments, max_steps=4, save_strategy="steps", save_steps=2,
        )  # fmt: skip

    trainer().train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    (checkpoint / "information_flow.json").write_text('{"names"')
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert any("starts a new record" in text and "checkpoint-2" in text for text in warnings_of())
    assert json.loads((tmp_path / "run" / "information_flow.json").read_text())["steps"] == [4]

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FlowHistory, "save", full)
    trainer().train()
    assert any("cannot write to" in text and "No space left" in text for text in warnings_of())


def test_a_record_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    for text in ("[]", "{}", '{"names": 1}', "no JSON"):
        (tmp_path / "information_flow.json").write_text(text)
        with pytest.raises(ValueError, match="not a record of an InformationFlowCallback"):
            FlowHistory.load(tmp_path / "information_flow.json")


@pytest.mark.parametrize("cls", [Trainer, LBETrainer])
def test_two_processes(cls: type[Trainer], ranks: Any, tmp_path: Path) -> None:
    rows = token_rows(32)
    without = ranks(on_ranks.train_with_flow, rows, cls, str(tmp_path / "without"), None)
    with_flow = ranks(on_ranks.train_with_flow, rows, cls, str(tmp_path / "with"), 2)
    for rank in range(2):
        assert_same(without[rank][0], with_flow[rank][0])
        assert without[rank][1] == with_flow[rank][1]
        assert with_flow[rank][2] == [2, 4]
    assert json.loads((tmp_path / "with" / "information_flow.json").read_text())["steps"] == [2, 4]
    stopped = ranks(on_ranks.train_with_flow, rows, cls, str(tmp_path / "stopped"), 2, collapse_on=0)
    assert [steps for _, _, steps in stopped] == [[2], [2]]
