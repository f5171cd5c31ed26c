"""Training and diagnosis on a GPU give what they give on the CPU; skipped where there is none."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import InOrder, assert_same, batch, bert, checkpointing, token_rows
from torch import Tensor
from transformers import Trainer

from lbe_hf import InformationFlowCallback, LBETrainer, information_flow

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() != 1,
    reason="there is not one GPU (of several, select one with CUDA_VISIBLE_DEVICES=0): the tests on it did not run",
)

Make = Callable[..., Any]
LOGGED = ("loss", "task_loss", "lbe_loss", "entropy_mean", "entropy_min", "entropy_last", "alpha_mean")
STEPS = 10


@pytest.fixture(autouse=True)
def full_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def trained(make_trainer: Make, use_cpu: bool, **settings: Any) -> Any:
    defaults = {"lbe_beta": 0.7, "lbe_alpha": 0.3, "optim": "sgd", "learning_rate": 0.05, "max_steps": STEPS}
    defaults |= {"lbe_alpha_learning_rate": 1e-3, "use_cpu": use_cpu}
    trainer = make_trainer(InOrder, bert(), token_rows(40), **{**defaults, **settings})
    trainer.train()
    assert trainer.args.device.type == ("cpu" if use_cpu else "cuda")
    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in trainer.model.state_dict().items()}


def assert_logs_agree(left: Any, right: Any, **tolerance: float) -> None:
    for line, other in zip(left.state.log_history[:STEPS], right.state.log_history[:STEPS], strict=True):
        for key in LOGGED:
            assert line[key] == pytest.approx(other[key], **tolerance), key


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lbe_samples": "token"},
        {"lbe_target_modules": ["output.dense", "pooler"]},
        {"lbe_form": "additive", "gradient_accumulation_steps": 2},
        checkpointing(use_reentrant=True),
        checkpointing(use_reentrant=False),
    ],
    ids=str,
)
def test_training_is_that_on_the_cpu(make_trainer: Make, settings: dict[str, Any]) -> None:
    gpu, cpu = (trained(make_trainer, use_cpu, **settings) for use_cpu in (False, True))
    assert_same(weights(gpu), weights(cpu), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gpu.lbe.alpha.cpu(), cpu.lbe.alpha, rtol=1e-4, atol=0)
    assert_logs_agree(gpu, cpu, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near_float32(make_trainer: Make, precision: str) -> None:
    """In fp16 with the loss scale of a real `GradScaler`, whose first steps may overflow and be skipped."""
    mixed = trained(make_trainer, use_cpu=False, max_grad_norm=0.0, learning_rate=1e-4, **{precision: True})
    full = trained(make_trainer, use_cpu=True, max_grad_norm=0.0, learning_rate=1e-4)
    assert mixed.lbe.alpha.dtype == torch.float32
    assert not torch.equal(mixed.lbe.alpha.cpu(), torch.full((4,), 0.3))
    assert_logs_agree(mixed, full, rel=0.05, abs=2e-3)
    if precision == "fp16":
        assert mixed.accelerator.scaler.get_scale() > 1


def test_compiled_with_inductor(make_trainer: Make) -> None:
    torch._dynamo.reset()
    compiled = trained(make_trainer, use_cpu=False, torch_compile=True)
    plain = trained(make_trainer, use_cpu=False)
    assert_logs_agree(compiled, plain, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"lbe_target_modules": ["output.dense"]}, {"lbe_samples": "token"}])
def test_a_step_waits_for_the_gpu_no_more_often_than_with_trainer(
    make_trainer: Make, settings: dict[str, Any]
) -> None:
    """Every wait leaves the GPU without work."""

    def waits(cls: type[Trainer]) -> int:
        trainer = make_trainer(cls, bert(), token_rows(4), use_cpu=False, **settings)
        trainer.create_optimizer_and_scheduler(num_training_steps=10)
        inputs = {key: value.cuda() for key, value in batch(token_rows(4)).items()}
        model = trainer.accelerator.prepare(trainer.model)
        trainer.current_gradient_accumulation_steps = 1
        for _ in range(2):  # the first step may check what never changes
            trainer.training_step(model, dict(inputs))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer.training_step(model, dict(inputs))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    assert waits(LBETrainer) <= waits(Trainer)


def test_diagnosis_is_that_on_the_cpu() -> None:
    model = bert(dropout=True)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.zero_()
    batches = [batch(token_rows(16, seed=seed)) for seed in range(2)]
    cpu = information_flow(model, batches)
    gpu = information_flow(model.cuda(), batches)
    assert gpu.entropies == pytest.approx(cpu.entropies, rel=1e-4, abs=1e-6)
    assert gpu.verdict == cpu.verdict
    assert not gpu.is_healthy


def test_callback_measures_and_changes_nothing(make_trainer: Make) -> None:
    callback = InformationFlowCallback(every_steps=5)
    settings = {"use_cpu": False, "bf16": True, "max_steps": STEPS}
    watched = make_trainer(Trainer, bert(dropout=True), token_rows(40), {"callbacks": [callback]}, **settings)
    watched.train()
    alone = make_trainer(Trainer, bert(dropout=True), token_rows(40), **settings)
    alone.train()
    assert len(callback.history.steps) >= 2
    assert_same(weights(watched), weights(alone), rtol=1e-3, atol=1e-5)


def test_a_resumed_run_has_the_targets_of_one_left_alone(make_trainer: Make, tmp_path: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 5}
    whole = trained(make_trainer, use_cpu=False, **settings)
    resumed = make_trainer(
        InOrder, bert(), token_rows(40), use_cpu=False, lbe_beta=0.7, lbe_alpha=0.3, optim="sgd", learning_rate=0.05,
        lbe_alpha_learning_rate=1e-3, max_steps=STEPS, **settings,
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert resumed.lbe.alpha.device.type == "cuda"
    torch.testing.assert_close(resumed.lbe.alpha, whole.lbe.alpha, rtol=1e-5, atol=0)
    assert_same(weights(resumed), weights(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's and sentence-transformers'
@pytest.mark.filterwarnings("ignore:.*processing_class:FutureWarning")
@pytest.mark.parametrize("name", ["Seq2SeqTrainer", "SFTTrainer", "DPOTrainer", "SentenceTransformerTrainer"])
def test_trainers_of_other_libraries(name: str, tmp_path: Any) -> None:
    """In bfloat16, the default of TRL on a GPU."""
    pytest.importorskip("trl")
    import others

    trainer = others.CASES[name].trainer(tmp_path, use_cpu=False, bf16=True, lbe_beta=1.0)
    trainer.train()
    assert trainer.lbe.alpha.device.type == "cuda"
    assert trainer.state.log_history[0]["lbe_loss"] > 0
