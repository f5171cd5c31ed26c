import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from glue_runs.finetune.arguments import parse
from glue_runs.finetune.checkpoints import last_checkpoint
from glue_runs.finetune.command import main
from glue_runs.finetune.run import prepare
from glue_runs.grid.arguments import PROTOCOLS
from glue_runs.tasks.glue import TASKS
from lbe_hf.targets import TARGETS_NAME

RUN = (
    "--task_name demo_rte --model_name_or_path minilm --max_steps 2 --per_device_train_batch_size 4 --use_cpu".split()
)


def test_paper_values_are_the_defaults() -> None:
    model_args, data_args, args = parse(["--task_name", "rte"])
    assert model_args.model_name_or_path == "google-bert/bert-base-uncased"
    assert (data_args.max_length, data_args.validation_fraction) == (128, 0.2)
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.learning_rate) == (32, 5, 3e-5)
    assert (args.train_sampling_strategy, data_args.pad_to_max_length) == ("group_by_length", False)
    assert (args.lr_scheduler_type, args.warmup_steps, args.weight_decay) == ("linear", 0, 0)
    assert (args.lbe_beta, args.lbe_alpha, args.lbe_alpha_min) == (0.01, 0.5, 0.2)


def test_run_trains_evaluates_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main([*RUN, "--output_dir", str(output), "--lbe_beta", "0.05", "--disable_tqdm", "true"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((output / "result.json").read_text())
    task = TASKS["demo_rte"]
    for split, rows in (("validation", task.train_examples // 5), ("test", task.test_splits["validation"])):
        accuracy = record["metrics"][split]["accuracy"]
        assert f"accuracy {accuracy:.4f}" in printed
        # Every example is counted: the accuracy is a whole number of rows.
        assert accuracy * rows == pytest.approx(round(accuracy * rows))
    model = AutoModelForSequenceClassification.from_pretrained(output)
    assert model.config.id2label[1] == "not_entailment"
    assert (output / "checkpoint-2" / TARGETS_NAME).is_file()


def test_record_of_a_run(tmp_path: Path, tiny_encoder: str) -> None:
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    arguments += [
        "--max_steps",
        "4",
        "--logging_steps",
        "3",
        "--lbe_log_entropy",
        "--seed",
        "7",
        "--hub_token",
        "hf_x",
    ]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    assert [line["step"] for line in record["history"]] == [3, 4]  # the last one ends with training
    assert record["layers"] == ["hidden_states[0]", "hidden_states[1]", "hidden_states[2]"]
    for line in record["history"]:
        assert len(line["entropies"]) == len(line["targets"]) == 3
        assert line["loss"] == pytest.approx(line["task_loss"] + line["lbe_loss"])
    assert record["seconds"] > 0
    assert record["examples_per_second"] == pytest.approx(4 * 32 / record["seconds"], rel=0.01)
    assert 100 < record["peak_memory_mib"] < 10_000
    assert record["environment"]["torch"] == torch.__version__
    assert (record["config"]["seed"], record["config"]["learning_rate"]) == (7, 3e-5)
    assert "hf_x" not in (tmp_path / "result.json").read_text()
    assert str(tmp_path) not in (tmp_path / "result.json").read_text()


def write_tsv(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_two_test_sets_and_a_regression(tmp_path: Path, tiny_encoder: str) -> None:
    pairs = [f"a{'b' * index}\tc" for index in range(20)]
    labels = ["entailment", "neutral", "contradiction"]
    for name in ("train", "dev_matched", "dev_mismatched"):
        rows = [f"{pair}\t{labels[index % 3]}" for index, pair in enumerate(pairs)]
        write_tsv(tmp_path / "MNLI" / f"{name}.tsv", "sentence1\tsentence2\tgold_label", *rows)
    for name in ("train", "dev"):
        rows = [f"{pair}\t{index / 4}" for index, pair in enumerate(pairs)]
        write_tsv(tmp_path / "STS-B" / f"{name}.tsv", "sentence1\tsentence2\tscore", *rows)
    scores = {"mnli": {"loss", "accuracy"}, "stsb": {"loss", "pearson", "spearmanr", "combined_score"}}
    splits = {"mnli": {"validation", "test", "test_mismatched"}, "stsb": {"validation", "test"}}
    for task in scores:
        output = tmp_path / f"out_{task}"
        arguments = ["--task_name", task, "--data_dir", str(tmp_path), "--model_name_or_path", tiny_encoder]
        assert main([*arguments, "--output_dir", str(output), "--num_train_epochs", "1"]) == 0
        metrics = json.loads((output / "result.json").read_text())["metrics"]
        assert set(metrics) == splits[task]
        assert all(set(values) == scores[task] for values in metrics.values())
    assert metrics["test"]["loss"] > 2.0  # squares of scores up to 4.75, by a model that knows nothing


def test_arguments_from_a_file(tmp_path: Path) -> None:
    content = {"task_name": "rte", "lbe_beta": 0.02, "lbe_layers": [1, -1]}
    (tmp_path / "run.json").write_text(json.dumps(content))
    (tmp_path / "run.yaml").write_text("task_name: rte\nlbe_beta: 0.02\nlbe_layers: [1, -1]\n")
    for name in ("run.json", "run.yaml"):
        _, data_args, args = parse([str(tmp_path / name)])
        assert (data_args.task_name, args.lbe_beta, args.lbe_layers) == ("rte", 0.02, [1, -1])


def test_resumed_from_the_last_complete_checkpoint(tmp_path: Path, tiny_encoder: str) -> None:
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    arguments += ["--num_train_epochs", "3", "--save_total_limit", "3", "--lbe_log_entropy", "--logging_steps", "7"]
    assert main(arguments) == 0
    whole = json.loads((tmp_path / "result.json").read_text())
    first, second, third = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = (second / "trainer_state.json").read_text()
    (second / "trainer_state.json").write_text(state[: len(state) // 2])  # as a kill while it is written leaves it
    shutil.rmtree(third)
    assert last_checkpoint(str(tmp_path), 0.01) == str(first)
    assert main([*arguments, "--resume_from_checkpoint", "last"]) == 0
    resumed = json.loads((tmp_path / "result.json").read_text())
    for key in ("metrics", "history", "layers"):
        assert resumed[key] == whole[key]
    assert resumed["seconds"] is None  # only the rest of it was timed


@pytest.mark.parametrize("beta", ["0", "0.05"])
@pytest.mark.parametrize("saving", ["--save_strategy epoch", "--save_strategy steps --save_steps 2"])
def test_killed_after_the_last_checkpoint(tmp_path: Path, tiny_encoder: str, beta: str, saving: str) -> None:
    """Within an epoch, and before the result is written: there is no step left to make."""
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    arguments += ["--max_steps", "3", "--logging_steps", "2", "--lbe_log_entropy", "--lbe_beta", beta, *saving.split()]
    assert main(arguments) == 0
    whole = json.loads((tmp_path / "result.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()
    card = (tmp_path / "README.md").read_text()
    assert "lbe_entropy.png" in card
    for path in tmp_path.iterdir():
        if path.is_file():
            path.unlink()
    assert main([*arguments, "--resume_from_checkpoint", "last"]) == 0
    resumed = json.loads((tmp_path / "result.json").read_text())
    assert [line["step"] for line in resumed["history"]] == [2, 3]
    for key in ("metrics", "history", "layers", "diverged"):
        assert resumed[key] == whole[key]
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "README.md").read_text() == card
    assert (tmp_path / "lbe_entropy.png").is_file()


def test_a_run_that_diverges_is_marked(tmp_path: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    arguments += ["--max_steps", "3", "--save_strategy", "no", "--lbe_beta", "0"]
    for learning_rate, diverged in (("1e-3", False), ("1e38", True)):
        assert main([*arguments, "--learning_rate", learning_rate]) == 0
        assert json.loads((tmp_path / "result.json").read_text())["diverged"] is diverged
        assert ("The run has diverged" in capsys.readouterr().out) is diverged


@pytest.mark.parametrize(
    ("task", "steps", "validated", "tested"),
    # Training steps of an epoch and examples that are evaluated, as the authors' code has them: both whole batches.
    [
        ("rte", 1992 // 32, 480, 256),
        ("mrpc", (3668 - 733) // 32, 704, 384),
        ("cola", (8551 - 1710) // 32, 1696, 1024),
    ],
)
def test_protocol_of_the_authors_drops_incomplete_batches(
    task: str, steps: int, validated: int, tested: int, glue_data_dir: Path, tiny_encoder: str, tmp_path: Path
) -> None:
    arguments = ["--task_name", task, "--data_dir", str(glue_data_dir), "--model_name_or_path", tiny_encoder]
    arguments += ["--output_dir", str(tmp_path), "--use_cpu", "--max_length", "16", "--report_to", "none"]
    trainer, splits = prepare(*parse([*arguments, *PROTOCOLS["authors"]]))
    assert len(trainer.get_train_dataloader()) == steps
    for split, count in (("validation", validated), ("test", tested)):
        assert len(trainer.predict(splits[split]).predictions) == count  # type: ignore[arg-type]
