"""Training one model in two processes: the same as in one, and the same targets in both."""

import shutil
from pathlib import Path
from typing import Any

import on_ranks
import pytest
import tiny
import torch
from ranks import Ranks
from tiny import assert_same, bert, causal_rows, token_rows

from lbe_hf.targets import TARGETS_NAME

Results = list[dict[str, Any]]


def check_targets(results: Results) -> None:
    """The same on both ranks, bit for bit, though the ranks' own gradients were not."""
    first, second = results
    assert first["gradients"]
    assert len(first["gradients"]) == len(second["gradients"])
    assert not any(torch.equal(*pair) for pair in zip(first["gradients"], second["gradients"], strict=True))
    assert torch.equal(first["alpha"], second["alpha"])


def compare(results: Results, alone: dict[str, Any]) -> None:
    """Losses, entropies, weights and targets of one process."""
    check_targets(results)
    for result in results:
        assert_same(result["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result["alpha"], alone["alpha"], rtol=1e-5, atol=0)
    lines, expected = results[0]["logs"], alone["logs"]
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        for key in ("loss", "task_loss", "lbe_loss", "entropy_mean", "entropy_last", "alpha_mean", "grad_norm"):
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("find_unused", [False, True])
def test_equals_one_process_that_accumulates(
    ranks: Ranks, tmp_path: Path, find_unused: bool, accumulation: int
) -> None:
    """Each process measures its own rows, as one process measures those of each micro-batch."""
    rows = token_rows(64)
    results = ranks(
        on_ranks.train, rows, output_dir=str(tmp_path), ddp_find_unused_parameters=find_unused,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    compare(results, on_ranks.train(rows, output_dir=str(tmp_path), gradient_accumulation_steps=2 * accumulation))


@pytest.mark.parametrize(
    "settings", [{}, {"lbe_samples": "token"}, {"lbe_target_modules": ["output.dense", "pooler"]}]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_synced_equals_one_process_with_the_whole_batch(
    ranks: Ranks, tmp_path: Path, settings: dict[str, Any], accumulation: int
) -> None:
    rows = token_rows(64)
    settings = {**settings, "output_dir": str(tmp_path), "gradient_accumulation_steps": accumulation}
    results = ranks(on_ranks.train, rows, lbe_sync_batch=True, **settings)
    compare(results, on_ranks.train(rows, per_device_train_batch_size=8, **settings))


@pytest.mark.parametrize("synced", [False, True])
def test_causal_language_model(ranks: Ranks, tmp_path: Path, synced: bool) -> None:
    """Its task loss is divided by the tokens of all processes, however they are spread."""
    rows = causal_rows(64)
    results = ranks(on_ranks.train, rows, "llama", lbe_sync_batch=synced, output_dir=str(tmp_path))
    alone = {"per_device_train_batch_size": 8} if synced else {"gradient_accumulation_steps": 2}
    compare(results, on_ranks.train(rows, "llama", output_dir=str(tmp_path), **alone))


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_additive_penalty_is_the_mean_over_processes(ranks: Ranks, tmp_path: Path, model: str) -> None:
    """Whether the task loss is a mean over rows or over the tokens of all processes."""
    rows = token_rows(64) if model == "bert" else causal_rows(64)
    settings = {"lbe_form": "additive", "lbe_beta": 3.0, "max_steps": 5, "output_dir": str(tmp_path)}
    results = ranks(on_ranks.train, rows, model, gradient_accumulation_steps=2, **settings)
    compare(results, on_ranks.train(rows, model, gradient_accumulation_steps=4, **settings))


# ---- Resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synced", [False, True])
def test_resumed_run_ends_bit_for_bit_as_one_left_alone(ranks: Ranks, tmp_path: Path, synced: bool) -> None:
    rows = token_rows(36)  # 4.5 batches of both
    settings = {"lbe_sync_batch": synced, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    settings |= {"gradient_accumulation_steps": 2, "output_dir": str(tmp_path / "run")}
    whole = ranks(on_ranks.train, rows, **settings)
    shutil.rmtree(tmp_path / "run")
    ranks(on_ranks.train, rows, last_step=5, **settings)
    checkpoint = tmp_path / "run" / "checkpoint-4"
    elsewhere = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "checkpoint-4")
    (elsewhere / TARGETS_NAME).unlink()  # the files of a second machine do not hold what only the first one writes
    resumed = ranks(on_ranks.train, rows, resume=[str(checkpoint), str(elsewhere)], **settings)
    check_targets(resumed)
    for left, right in zip(whole, resumed, strict=True):
        assert_same(left["weights"], right["weights"])
        assert torch.equal(left["alpha"], right["alpha"])
        assert set(right["warnings"]) <= {"negligible"}


# ---- Batches of different sizes ------------------------------------------------------------------------------------


def test_last_batches_of_different_sizes_equal_those_of_one_process(ranks: Ranks, tmp_path: Path) -> None:
    """In each epoch the last batch of the second rank has one row, which goes without the penalty."""
    rows = token_rows(13)
    results = ranks(
        on_ranks.train, rows, output_dir=str(tmp_path), accelerator_config={"even_batches": False},
    )  # fmt: skip
    assert results[0]["sizes"] == [4] * 20
    assert results[1]["sizes"] == [4, 1] * 10
    assert all(gradient.count_nonzero() == 0 for gradient in results[1]["gradients"][1::2])
    compare(results, on_ranks.train(rows, output_dir=str(tmp_path), gradient_accumulation_steps=2))
    assert all("unmeasured" in result["warnings"] for result in results)


@pytest.mark.parametrize("synced", [False, True])
def test_last_batches_that_are_filled_up(ranks: Ranks, tmp_path: Path, synced: bool) -> None:
    """What accelerate does by default: the last batches take rows from the beginning."""
    results = ranks(on_ranks.train, token_rows(13), output_dir=str(tmp_path), lbe_sync_batch=synced)
    assert results[0]["sizes"] == results[1]["sizes"] == [4] * 20
    check_targets(results)
    assert_same(results[0]["weights"], results[1]["weights"])


def test_synced_batches_of_four_rows_and_of_one(ranks: Ranks, tmp_path: Path) -> None:
    """The mean of the two task losses, times one penalty that all five rows have in common."""
    rows, model = token_rows(5), bert()
    inputs, parts = tiny.batch(rows), [tiny.batch(rows[:4]), tiny.batch(rows[4:])]
    alpha = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    states = model(**inputs, output_hidden_states=True).hidden_states
    entropies = [tiny.reference_entropy(state, inputs["attention_mask"]) for state in states]
    penalty = tiny.reference_penalty(entropies, alpha, alpha_min=0.2, beta=0.7)
    (sum(model(**part).loss for part in parts) / 2 * (1 + penalty)).backward()
    expected = {name: p.detach() - 0.05 * p.grad for name, p in model.named_parameters()}
    results = ranks(
        on_ranks.train, rows, output_dir=str(tmp_path), lbe_sync_batch=True, max_steps=1, max_grad_norm=0.0,
        accelerator_config={"even_batches": False},
    )  # fmt: skip
    for result, size in zip(results, (4, 1), strict=True):
        assert result["sizes"] == [size]
        assert_same({name: result["weights"][name] for name in expected}, expected, rtol=1e-5, atol=1e-7)
        assert not result["warnings"]
    averaged = (results[0]["gradients"][0] + results[1]["gradients"][0]) / 2
    torch.testing.assert_close(averaged.double(), alpha.grad, rtol=1e-5, atol=1e-8)
    assert torch.equal(results[0]["alpha"], results[1]["alpha"])


def test_one_row_on_each_device(ranks: Ranks, tmp_path: Path) -> None:
    rows = token_rows(16)
    settings = {"per_device_train_batch_size": 1, "output_dir": str(tmp_path)}
    results = ranks(on_ranks.train, rows, lbe_sync_batch=True, **settings)
    compare(results, on_ranks.train(rows, **{**settings, "per_device_train_batch_size": 2}))
    with pytest.raises(AssertionError, match="A single example has no variance"):
        ranks(on_ranks.train, rows, **settings)
    with pytest.raises(ValueError, match="A single example has no variance"):
        on_ranks.train(rows, lbe_sync_batch=True, **settings)


def test_a_log_line_of_one_rank_alone_hangs_nothing(ranks: Ranks, tmp_path: Path) -> None:
    first, second = ranks(on_ranks.log_on_the_first_rank, token_rows(32), str(tmp_path))
    assert [("entropy_mean" in line) for line in first] == [False, True, True, True, True]
    # Entropies are means over both ranks, whoever logs them: the first in four lines, the second in one.
    (whole,) = second
    assert whole["entropy_mean"] == pytest.approx(sum(line["entropy_mean"] for line in first[1:]) / 4, rel=1e-5)


# ---- Sharded models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("synced", "settings"),
    [(False, {}), (True, {}), (True, {"lbe_target_modules": ["output.dense"], "gradient_accumulation_steps": 2})],
)
def test_sharded_equals_one_process(ranks: Ranks, tmp_path: Path, synced: bool, settings: dict[str, Any]) -> None:
    rows = token_rows(64)
    settings = {"output_dir": str(tmp_path), "max_steps": 5, **settings}
    results = ranks(on_ranks.train, rows, shard=("BertLayer",), lbe_sync_batch=synced, **settings)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    batches: dict[str, Any] = {"per_device_train_batch_size": 8}
    if not synced:
        batches = {"gradient_accumulation_steps": 2 * accumulation}
    compare(results, on_ranks.train(rows, **{**settings, **batches}))


def test_sharded_run_resumes_bit_for_bit(ranks: Ranks, tmp_path: Path) -> None:
    rows = token_rows(36)
    settings = {"shard": ("BertLayer",), "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    settings |= {"output_dir": str(tmp_path)}
    whole = ranks(on_ranks.train, rows, **settings)
    resumed = ranks(on_ranks.train, rows, resume=str(tmp_path / "checkpoint-4"), **settings)
    assert len(resumed[0]["gradients"]) == 2
    check_targets(resumed)
    for left, right in zip(whole, resumed, strict=True):
        assert_same(left["weights"], right["weights"])
        assert torch.equal(left["alpha"], right["alpha"])


def test_wrapping_that_makes_hidden_states_disappear(ranks: Ranks) -> None:
    whole = bert()(**tiny.batch(token_rows(4)), output_hidden_states=True).hidden_states
    for states in ranks(on_ranks.hidden_states_of_sharded, "bert.encoder.layer.0", "bert.encoder.layer.2"):
        torch.testing.assert_close(states, list(whole))
    with pytest.raises(
        AssertionError, match="because FSDP wraps BertModel: wrap BertEmbeddings, BertLayer instead, or"
    ):
        ranks(on_ranks.hidden_states_of_sharded, "bert")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_equals_one_process(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: the tests of its ZeRO stages did not run")
    config = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"), "auto")
    config |= {"gradient_accumulation_steps": "auto", "zero_allow_untested_optimizer": True}
    config |= {"zero_optimization": {"stage": stage}, "zero_force_ds_cpu_optimizer": False}
    rows = token_rows(64)
    settings = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"output_dir": str(tmp_path / "run")}
    try:
        results = ranks(on_ranks.train, rows, deepspeed=config, lbe_sync_batch=True, **settings)
        resumed = ranks(
            on_ranks.train, rows, deepspeed=config, lbe_sync_batch=True,
            **{**settings, "resume": str(tmp_path / "run" / "checkpoint-4"), "save_strategy": "no"},
        )  # fmt: skip
    finally:
        ranks.stop()  # accelerate would take every later trainer for one of DeepSpeed's
    alone = on_ranks.train(
        rows, **{**settings, "output_dir": str(tmp_path / "alone"), "per_device_train_batch_size": 8}
    )
    check_targets(results)
    for result, again in zip(results, resumed, strict=True):
        torch.testing.assert_close(result["alpha"], alone["alpha"], rtol=1e-5, atol=0)
        assert torch.equal(result["alpha"], again["alpha"])
        assert len(again["gradients"]) == 1
        if stage < 3:  # in which a process holds its part of the weights
            assert_same(result["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
    losses = [[line["loss"] for line in one["logs"]] for one in (results[0], alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
