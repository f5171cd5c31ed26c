from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import checkpointing
from transformers import Trainer

from glue_runs.errors import InputError
from glue_runs.finetune.arguments import parse
from glue_runs.finetune.checks import check_batches, check_first_batch, check_lengths, check_trainer
from glue_runs.finetune.run import prepare
from glue_runs.finetune.trainer import GlueTrainer


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--per_device_train_batch_size 0", "per_device_train_batch_size must be at least 1, not 0"),
        ("--per_device_eval_batch_size -2", "per_device_eval_batch_size must be at least 1, not -2"),
        ("--validation_fraction 2", "validation_fraction must be between 0 and 1, not 2"),
        ("--learning_rate nan", "learning_rate must be positive, not nan"),
        ("--learning_rate inf", "learning_rate must be positive, not inf"),
        (f"--seed 1{400 * '0'}", "seed must be at least 0 and at most 4294967295, not 1000"),
        (f"--max_steps 1{400 * '0'}", "max_steps must be at least 1, or -1 to train by epochs, not 1000"),
        (f"--save_total_limit 1{400 * '0'}", r"save_total_limit must be below 2\^63, not 1000"),
        ("--dataloader_num_workers 1 --dataloader_prefetch_factor 0", "prefetch_factor must be at least 1, not 0"),
        ("--neftune_noise_alpha nan", "neftune_noise_alpha must be at least 0, not nan"),
        ("--max_length 0", "max_length must be at least 1, not 0"),
        ("--max_train_samples 0", "max_train_samples must be at least 1, not 0"),
        ("--num_train_epochs 0", "num_train_epochs must be positive, not 0"),
        ("--max_steps 0", "max_steps must be at least 1, or -1"),
        ("--adam_beta1 1", "adam_beta1 must be at least 0 and below 1, not 1"),
        ("--split_seed -1", "split_seed must be at least 0 and at most 4294967295, not -1"),
        ("--label_names gold", "label_names must be labels, not gold"),
        ("--prediction_loss_only true", "prediction_loss_only must be false"),
        ("--metric_for_best_model f1", "metric_for_best_model must be one of loss, accuracy, not f1"),
        ("--lr_scheduler_kwargs [", r"lr_scheduler_kwargs must be a JSON mapping, not \["),
        ("--precision fp32 --bf16", "--bf16 contradict the precision"),
        ("--bf16 --fp16", "--bf16 and --fp16 contradict the precision"),
    ],
)
def test_bad_values(argument: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(["--task_name", "rte", "--use_cpu", *argument.split()])


def test_epochs_do_not_matter_beside_steps() -> None:
    assert parse(["--task_name", "rte", "--use_cpu", "--num_train_epochs", "0", "--max_steps", "1"])[2].max_steps == 1


@pytest.mark.parametrize(
    "argument", ["--train_sampling_strategy shuffled", "--validation_rounding half", "--optim adamm", "--seed=--"]
)
def test_values_that_are_no_choice(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--task_name", "rte", *argument.split()])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: argument {argument.replace('=', ' ').split()[0]}")


def test_a_split_without_a_whole_batch() -> None:
    arguments = ["--task_name", "rte", "--use_cpu", "--per_device_eval_batch_size", "4"]
    splits = {"train": [0] * 40, "validation": [0] * 3}
    check_batches(splits, parse(arguments)[2])
    with pytest.raises(InputError, match="leaves out all 3 validation examples, which do not fill a batch of 4"):
        check_batches(splits, parse([*arguments, "--dataloader_drop_last", "true"])[2])


def trainer_of(folder: Path, *arguments: str) -> Trainer:
    args = parse(["--task_name", "rte", "--use_cpu", "--output_dir", str(folder), *arguments])[2]
    return Trainer(model=torch.nn.Linear(2, 2), args=args, train_dataset=[{"input_ids": [1]}])


CHECKPOINTING = next(iter(checkpointing(False)))
"""As this version of transformers names it."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim_args", "eps"], "optim adamw_torch.* with optim_args eps cannot be used: not enough values"),
        (["--optim", "adamw_bnb_8bit"], "optim adamw_bnb_8bit cannot be used: .*bitsandbytes"),
        (["--optim", "galore_adamw"], "optim galore_adamw cannot be used: .*galore_torch"),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "lr_scheduler_type cosine_with_min_lr cannot be used: .*min_lr",
        ),
        (
            ["--lr_scheduler_kwargs", '{"foo": 1}'],
            "lr_scheduler_type linear with lr_scheduler_kwargs .* cannot be used",
        ),
        (
            ["--dataloader_persistent_workers", "true"],
            "dataloader_persistent_workers cannot be used: persistent_workers",
        ),
        (["--use_liger_kernel", "true"], "use_liger_kernel cannot be used: No module named 'liger_kernel'"),
        ([f"--{CHECKPOINTING}_kwargs", '{"x": 1}'], f"{CHECKPOINTING}_kwargs .* cannot be used: .*keyword argument"),
    ],
)
def test_what_training_cannot_begin_with(arguments: list[str], message: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, *arguments)
    with pytest.raises(InputError, match=message):
        check_trainer(trainer)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_what_it_can_begin_with_is_made_anew_later(optimizer: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "--optim", optimizer, f"--{CHECKPOINTING}_kwargs", '{"use_reentrant": true}')
    state = torch.get_rng_state()
    check_trainer(trainer)
    assert (trainer.optimizer, trainer.lr_scheduler) == (None, None)
    assert torch.equal(torch.get_rng_state(), state)


def first_batch_of(encoder: str, folder: Path, *arguments: str) -> GlueTrainer:
    given = ["--task_name", "demo_rte", "--model_name_or_path", encoder, "--use_cpu", "--output_dir", str(folder)]
    trainer, _ = prepare(*parse([*given, *arguments]))
    check_first_batch(trainer)
    return trainer


def test_what_is_found_before_the_first_batch(tiny_encoder: str, tmp_path: Path) -> None:
    too_high = ["--lbe_target_modules", ".*pooler", "--lbe_layers", "1"]
    for measured in (["--lbe_beta", "0.1"], ["--lbe_beta", "0", "--lbe_log_entropy"]):
        with pytest.raises(ValueError, match="names layer 1, but there are 1 activations"):
            first_batch_of(tiny_encoder, tmp_path, *too_high, *measured)
    first_batch_of(tiny_encoder, tmp_path, *too_high, "--lbe_beta", "0")
    with pytest.raises(ValueError, match="A single example has no variance over examples"):
        first_batch_of(tiny_encoder, tmp_path, "--per_device_train_batch_size", "1")
    first_batch_of(tiny_encoder, tmp_path, "--per_device_train_batch_size", "1", "--lbe_samples", "token")


def test_the_search_leaves_no_trace(tiny_encoder: str, tmp_path: Path) -> None:
    trainer = first_batch_of(tiny_encoder, tmp_path)
    assert trainer.model is not None
    trainer.model.train()
    state = torch.get_rng_state()
    check_first_batch(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.lbe.alpha.tolist() == pytest.approx([0.5] * len(trainer.lbe.alpha))


def test_what_the_encoder_cannot_be_given() -> None:
    tokenizer, config = SimpleNamespace(pad_token="[PAD]"), SimpleNamespace(max_position_embeddings=64)
    check_lengths(tokenizer, config, 64)
    check_lengths(tokenizer, SimpleNamespace(), 512)
    with pytest.raises(InputError, match="max_length must be at most 64"):
        check_lengths(tokenizer, config, 65)
    with pytest.raises(InputError, match="has no padding token"):
        check_lengths(SimpleNamespace(pad_token=None), config, 64)
