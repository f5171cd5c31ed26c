"""Bad input for every command: each must answer with one line on standard error and exit code 1 or 2.

    python benchmarks/fuzz_commands.py [--seed 0] [--count 400]

Each command runs in a fork of this process, on a tiny encoder and a few examples, for at most `--seconds`. A
traceback, a crash, a hang, success, another exit code, or more than one line on standard error is a finding. Findings
are listed; if there are any, the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import random
import shlex
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import datasets
import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from glue_runs.analysis import report
from glue_runs.finetune import command as finetune
from glue_runs.finetune import push
from glue_runs.grid import command as grid
from lbe_hf import flow

FORK = multiprocessing.get_context("fork")
"""A fork shares what is imported, and may crash or hang by itself."""

Main = Callable[[list[str]], Any]

MAINS: dict[str, Main] = {
    "finetune": finetune.main,
    "grid": grid.main,
    "report": report.main,
    "push": push.main,
    "lbe-flow": flow.main,
}

NUMBERS = [
    "",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e999",
    "much",
    "0x10",
    "1,5",
    "9" * 40,
    "9" * 400,
    "9" * 5000,
    "None",
    "[1]",
    "--",
    "\u0663x",
]
WORDS = ["", "none_of_these", "None", "[", "{", "0" * 5000, "../..", "\u2028", "-1"]

RTE = "index\tsentence1\tsentence2\tlabel\n"
LINE = "{}\ta b\tc d\t{}\n"
GOOD = RTE + "".join(LINE.format(index, ("entailment", "not_entailment")[index % 2]) for index in range(8))

TSV: dict[str, bytes] = {
    "empty": b"",
    "header": RTE.encode(),
    "nul": (GOOD + LINE.format(9, "entailment").replace("a b", "a\0b")).encode(),
    "latin1": GOOD.encode() + "9\tcaf\u00e9\tb\tentailment\n".encode("latin-1"),
    "utf16": GOOD.encode("utf-16"),
    "long": (GOOD + LINE.format(9, "entailment").replace("a b", "a" * 200_000)).encode(),
    "label": (GOOD + LINE.format(9, "perhaps")).encode(),
    "ragged": (GOOD + "9\ta\n").encode(),
    "binary": bytes(range(256)) * 20,
    "one": (RTE + LINE.format(0, "entailment")).encode(),
    "unknown": (RTE + "".join(LINE.format(i, "entailment").replace("a b", "1").replace("c d", "2") for i in range(8)))
    .encode(),
}  # fmt: skip

REFUSED_BY_LIBRARIES = [
    ("--dataloader_persistent_workers", "true"),
    ("--lr_scheduler_type", "cosine_with_min_lr"),
    ("--lr_scheduler_kwargs", '{"foo": 1}'),
    ("--optim", "galore_adamw"),
    ("--optim_args", "foo"),
    ("--use_liger_kernel", "true"),
    ("--report_to", "wandb"),
    ("--activation_checkpointing", "true", "--activation_checkpointing_kwargs", '{"x": 1}'),
    ("--neftune_noise_alpha", "nan"),
]
"""Arguments that transformers hands on, and that whoever gets them cannot use."""

ARGUMENT_FILES: dict[str, str] = {
    "empty": "",
    "list": "- 1\n",
    "text": "rte",
    "colon": "task_name: rte: mrpc\n",
    "tab": "task_name:\n\t- rte\n",
    "open": '{"task_name": "demo_rte"',
    "twice": "task_name: demo_rte\nseed: 1\nseed: 2\n",
    "spelled_twice": "task_name: demo_rte\nlbe_beta: 1\nlbe-beta: 2\n",
    "json_twice": '{"task_name": "demo_rte", "seed": 1, "seed": 2}',
    "unknown": "task_name: demo_rte\nlbe_betta: 1\n",
    "null": "task_name: demo_rte\nseed: null\n",
    "mapping": "task_name: demo_rte\nseed: {a: 1}\n",
    "nested": "task_name: demo_rte\nlbe_layers: [[1]]\n",
    "injected": "task_name: demo_rte\nreport_to: [none, --seed=4]\n",
    "number": "task_name: demo_rte\nlearning_rate: fast\n",
    "boolean": "task_name: demo_rte\nuse_cpu: perhaps\n",
    "negative": "task_name: demo_rte\nlearning_rate: -5e-5\n",
    "nan": "task_name: demo_rte\nlearning_rate: .nan\n",
    "object": "task_name: !!python/object/apply:os.getcwd []\n",
    "deep": "task_name: " + "[" * 3000 + "]" * 3000,
    "anchors": "task_name: &a [*a]\n",
    "many": "task_name: demo_rte\n---\ntask_name: rte\n",
    "help": "help: true\n",
    "binary": "task_name: \x00\n",
    "digits": f"task_name: demo_rte\nseed: {'9' * 400}\n",
    "surrogate": 'task_name: demo_rte\noutput_dir: "\\udcff"\n',
}


GRID = """{"commands": [], "runs": {"a": {
"task": "cola", "model": "m", "protocol": "default", "fixed_settings": "", "method": "baseline", "learning_rate": 1e-5,
"alpha": null, "beta": 0.0, "seed": 1, "settings": {}}}}"""
"""A `grid.json` that can be read."""


@dataclass(frozen=True)
class Case:
    """A command line that cannot succeed."""

    command: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        words = [word if len(word) < 80 else f"{word[:40]}... ({len(word)} characters)" for word in self.argv]
        return shlex.join([self.command, *words])


def make_files(root: Path) -> None:
    """Encoders, datasets, argument files, grids and outputs of runs; of each kind, only the first is intact."""
    tiny.save_encoder(root / "encoder")
    for name, content in {"good": GOOD.encode(), **TSV}.items():
        (root / "data" / name / "RTE").mkdir(parents=True)
        for split in ("train", "dev"):
            (root / "data" / name / "RTE" / f"{split}.tsv").write_bytes(content)
    for name in ("fifo", "folder", "device", "link"):
        train = root / "data" / name / "RTE" / "train.tsv"
        train.parent.mkdir(parents=True)
        make_odd(train, name)
        (train.parent / "dev.tsv").write_text(GOOD)
    for name, text in ARGUMENT_FILES.items():
        (root / f"{name}.yaml").write_text(text)
    (root / "latin1.yaml").write_bytes(b"task_name: caf\xe9\n")
    for name in ("fifo", "folder", "device", "link"):
        make_odd(root / f"odd_{name}", name)
    make_encoders(root)
    for name, text in {
        "list": "[]",
        "open": "{",
        "null": "null",
        "empty": "",
        "keys": "{}",
        "runs": '{"runs": 3}',
        "digits": GRID.replace("1e-5", "9" * 400),
        "surrogate": GRID.replace("cola", "\\ud800"),
        "trained_on": GRID.replace('"seed"', '"trained_on": "abc", "seed"'),
    }.items():
        (root / "grids" / name).mkdir(parents=True)
        (root / "grids" / name / "grid.json").write_text(text)
        (root / "outputs" / name).mkdir(parents=True)
        (root / "outputs" / name / "config.json").write_text("{}")
        (root / "outputs" / name / "result.json").write_text(text)
        (root / f"examples_{name}.json").write_text(text)
    (root / "grids" / "foreign").mkdir()
    (root / "grids" / "foreign" / "thesis.tex").write_text("")
    (root / "grids" / "fifo").mkdir()
    os.mkfifo(root / "grids" / "fifo" / "grid.json")


def make_odd(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)


def make_encoders(root: Path) -> None:
    """Encoders with a missing or damaged file."""
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=67, **tiny.SHAPE)).save_pretrained(root / "no_tokenizer")
    for name, file, content in (
        ("cut_weights", "model.safetensors", None),
        ("no_weights", "model.safetensors", b""),
        ("text_config", "config.json", b"hello"),
        ("list_config", "config.json", b"[]"),
        ("no_type", "config.json", b"{}"),
        ("odd_sizes", "config.json", b'{"model_type": "bert", "hidden_size": -1}'),
        ("odd_tokenizer", "tokenizer.json", b"{"),
    ):
        tiny.save_encoder(root / name)
        path = root / name / file
        path.write_bytes(path.read_bytes()[:1000] if content is None else content)


def good_command_lines(root: Path) -> dict[str, list[str]]:
    """Valid command lines, from which the bad ones are made."""
    common = ["--max_steps", "1", "--use_cpu", "--precision", "fp32"]
    swept = "--tasks demo_rte --learning_rates 1e-3 --seeds 1 --lbe_alphas 0.5 --lbe_betas 0.05".split()
    one = ["--task_name", "demo_rte", "--model_name_or_path", str(root / "encoder"), "--output_dir", str(root / "out")]
    many = [*swept, "--models", str(root / "encoder"), "--output_dir", str(root / "grid")]
    return {"finetune": [*one, *common], "grid": [*many, *common]}


def cases(root: Path, generator: random.Random) -> Iterator[Case]:
    """Hand-written cases first, then an endless stream of random ones."""
    good = good_command_lines(root)
    fine, whole = good["finetune"], good["grid"]
    real, whole_real = [*fine, "--task_name", "rte"], [*whole, "--tasks", "rte"]
    broken = ["no_tokenizer", "cut_weights", "no_weights", "text_config", "list_config", "no_type", "odd_sizes"]
    broken += ["odd_tokenizer", "data", "missing", "odd_fifo", "odd_device"]
    for name in (*TSV, "fifo", "folder", "device", "link", "missing"):
        data = ["--data_dir", str(root / "data" / name)]
        yield Case("finetune", (*real, *data))
        yield Case("grid", (*whole_real, *data))
        file = str(root / "data" / name / "RTE" / "train.tsv")
        yield Case("lbe-flow", (str(root / "encoder"), "--data", file, "--text_columns", "sentence9"))
    for name in (*ARGUMENT_FILES, "latin1", "missing"):
        yield Case("finetune", (str(root / f"{name}.yaml"),))
    for name in ("fifo", "folder", "device", "link"):
        for command in ("finetune", "report", "push"):
            yield Case(command, (str(root / f"odd_{name}"),))
    for name in broken:
        yield Case("finetune", (*fine, "--model_name_or_path", str(root / name)))
        yield Case("grid", (*whole, "--models", str(root / name)))
        yield Case("lbe-flow", (str(root / name), "--data", str(root / "data" / "good" / "RTE" / "train.tsv")))
    for name in ("list", "open", "null", "empty", "keys", "runs", "foreign", "fifo", "missing"):
        yield Case("report", (str(root / "grids" / name),))
        if name not in ("fifo", "missing"):  # which a grid may begin in
            yield Case("grid", (*whole, "--output_dir", str(root / "grids" / name)))
        yield Case("push", (str(root / "outputs" / name), "--hub_model_id", "a/b/c/d"))
        yield Case("lbe-flow", (str(root / "encoder"), "--data", str(root / f"examples_{name}.json")))
    for argv in REFUSED_BY_LIBRARIES:
        yield Case("finetune", (*fine, *argv))
        yield Case("grid", (*whole, *argv))
    for name in ("digits", "surrogate", "trained_on"):
        yield Case("report", (str(root / "grids" / name),))
    for command in ("finetune", "report", "push"):
        yield Case(command, ("a" * 5000,))
        yield Case(command, ("a\udcff",))
    for value in ("a" * 5000, "a\udcff", "a\0b"):
        yield Case("finetune", (*fine, "--output_dir", value))
        yield Case("grid", (*whole, "--output_dir", value))
    yield Case("grid", (*whole, "--load_best_model_at_end", "true", "--eval_strategy", "epoch"))
    for spelling in (
        "--learning-rate",
        "--lbe-beta",
        "--lbe_beta",
        "--seed",
        "--task-name",
        "--bf16",
        "--hub-model-id",
    ):
        yield Case("grid", (*whole, spelling, "1"))
        yield Case("grid", (*whole, f"{spelling}=1"))
    for argv in ((), ("a", "b"), ("--lbe_betta", "1"), ("--", "x"), ("-x",), ("",)):
        for command in MAINS:
            yield Case(command, argv)
    yield from random_cases(generator, good)


def random_cases(generator: random.Random, complete: dict[str, list[str]]) -> Iterator[Case]:
    """One bad value added to a valid command line."""
    numbers = {
        "finetune": (
            "learning_rate lbe_beta lbe_alpha lbe_alpha_min seed split_seed max_steps max_length weight_decay "
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps validation_fraction "
            "max_train_samples max_eval_samples warmup_steps max_grad_norm adam_beta1 adam_epsilon logging_steps "
            "save_steps dataloader_num_workers label_smoothing_factor lbe_layers"
        ),
        "grid": (
            "learning_rates lbe_betas lbe_alphas seeds cpus_per_run gpus_per_run max_retries max_length weight_decay "
            "per_device_train_batch_size validation_fraction max_grad_norm split_seed max_steps"
        ),
    }
    words = {
        "finetune": (
            "task_name model_name_or_path precision optim lr_scheduler_type train_sampling_strategy label_names "
            "metric_for_best_model lbe_form lbe_samples save_strategy eval_strategy validation_rounding "
            "resume_from_checkpoint lr_scheduler_kwargs"
        ),
        "grid": "tasks models protocol precision keep_models engine optim lr_scheduler_type label_names",
    }
    zero_is_good = (
        "lbe_beta lbe_betas lbe_alpha lbe_alphas lbe_alpha_min seed seeds split_seed weight_decay warmup_steps "
        "max_grad_norm adam_beta1 adam_epsilon dataloader_num_workers label_smoothing_factor lbe_layers gpus_per_run "
        "max_retries"
    )
    large_is_good = "lbe_beta lbe_betas lbe_alpha lbe_alphas learning_rate learning_rates weight_decay warmup_steps "
    large_is_good += "max_grad_norm adam_epsilon logging_steps save_steps max_retries"
    good = {
        *((name, "0") for name in zero_is_good.split()),
        *((name, "9" * 40) for name in large_is_good.split()),
        ("max_retries", "9" * 400),
        *((name, "-1") for name in ("max_steps", "lbe_layers")),
        *((name, "") for name in ("lr_scheduler_kwargs", "resume_from_checkpoint", "metric_for_best_model")),
    }
    while True:
        command = generator.choice(["finetune", "grid"])
        kind, values = generator.choice([(numbers, NUMBERS), (words, WORDS)])
        name, value = generator.choice(kind[command].split()), generator.choice(values)
        if (name, value) in good:
            continue
        spelled = generator.choice([name, name.replace("_", "-")])
        given = [f"--{spelled}={value}"] if generator.random() < 0.5 else [f"--{spelled}", value]
        yield Case(command, (*complete[command], *given))


def fault_of(case: Case, seconds: int) -> str | None:
    """Run the command in a fork of this process, and return what was wrong with its answer, or None."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: sender.send(answer_of(case)))
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else "hangs"
    except EOFError:
        child.join()
        return f"dies of signal {-(child.exitcode or 0)}"
    finally:
        child.kill()
        child.join()


def answer_of(case: Case) -> str | None:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: Any = MAINS[case.command](list(case.argv))
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:150]
        return f"traceback: {type(error).__name__}: {message} ({Path(place.filename).name}, line {place.lineno})"
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    if code not in (1, 2):
        return f"exit code {code}, standard error {lines[-1:]}"
    if len(lines) != 1:
        return f"{len(lines)} lines on standard error, the last of them {lines[-1:]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random cases")
    parser.add_argument("--count", type=int, default=400, help="number of cases")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of a case")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # what is logged is not what the commands print
    disable_progress_bar()
    datasets.disable_progress_bars()
    counts: Counter[str] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        os.chdir(folder)
        for command, argv in good_command_lines(Path(folder)).items():
            answer = fault_of(Case(command, tuple(argv)), 5 * args.seconds)
            if not (answer or "").startswith("exit code 0"):
                raise SystemExit(f"{command} does not work, so that its bad input tells nothing: {answer}")
        for _, case in zip(range(args.count), cases(Path(folder), random.Random(args.seed)), strict=False):
            fault = fault_of(case, args.seconds)
            counts[case.command] += 1
            if fault is not None:
                findings.append(fault)
                print(f"{str(case).replace(folder, '.')}\n    {fault.replace(folder, '.')}", flush=True)
        os.chdir("/")
    by_command = ", ".join(f"{command} {count}" for command, count in counts.items())
    print(f"{counts.total()} bad inputs ({by_command}), seed {args.seed}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
