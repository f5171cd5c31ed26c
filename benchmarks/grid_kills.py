"""Kill grids at random moments, and compare their results with those of an uninterrupted grid.

    python benchmarks/grid_kills.py
    python benchmarks/grid_kills.py --kills 6 --seed 1

Half of the kills hit grids that do one run at a time. The other half hit grids with four workers: alternately the
whole grid, or one of its workers. A killed grid is started again. When it is done, its records (except for times) and
weight files are compared, and the next grid begins. After the last kill, the grid is started once more.

Each run fine-tunes a tiny encoder on the generated pairs of `demo_rte`, with a checkpoint after each epoch. The exit
code is 0 if everything is equal, else 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import BertConfig, BertForSequenceClassification

from glue_runs.analysis.store import GridFolder
from glue_runs.finetune.encoder import load_tokenizer

GRID = "--tasks demo_rte --learning_rates 1e-3 --lbe_alphas 0.5 --lbe_betas 0.05 --num_train_epochs 4 --use_cpu"
KEPT = "--keep_models all --cpus_per_run 1 --max_retries 1000000"
TIMES = ("seconds", "examples_per_second", "peak_memory_mib")
LONGEST_WAIT = 5.0
"""Seconds from the first sign of work to a kill, at most."""


def save_encoder(folder: str) -> None:
    tokenizer = load_tokenizer("minilm")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)


def start(path: Path, encoder: str, seeds: int, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "glue_runs.grid", *GRID.split(), *KEPT.split(), "--models", encoder]
    command += ["--seeds", *map(str, range(seeds)), "--workers", str(workers), "--output_dir", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(path: Path) -> dict[str, Any]:
    """Of each run, the record without what differs between any two runs, and a digest of the weights."""
    folder, found = GridFolder(path), {}
    for result in path.glob("runs/*/result.json"):
        record = folder.result(result.parent.name)
        assert record is not None
        record["config"].pop("resume_from_checkpoint")
        kept = {key: value for key, value in record.items() if key not in TIMES}
        weights = (result.parent / "model.safetensors").read_bytes()
        found[result.parent.name] = (kept, hashlib.sha256(weights).hexdigest())
    return found


def workers_of(grid: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(grid.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def work_begins(path: Path, grid: subprocess.Popen[bytes], before: set[str]) -> bool:
    """Wait until a run writes a new file; False if the grid ends first."""
    while grid.poll() is None:
        if {str(file) for file in path.glob("runs/*/*")} - before:
            return True
        time.sleep(0.02)
    return False


def kill_one(grid: subprocess.Popen[bytes], moments: random.Random, whole: bool) -> str | None:
    """Kill the grid or a worker, and return which; None if it had already ended."""
    try:
        workers = [] if whole else workers_of(grid)
        if workers:
            moments.choice(workers).send_signal(signal.SIGKILL)
            return "worker"
    except psutil.NoSuchProcess:
        return None
    grid.send_signal(signal.SIGKILL)
    return "grid" if grid.wait() == -signal.SIGKILL else None


def killed_grid(
    path: Path, encoder: str, seeds: int, workers: int, moments: random.Random, wanted: int
) -> Counter[str]:
    """Kill a grid up to `wanted` times, starting it again until it is done; return the kills."""
    killed: Counter[str] = Counter()
    grid = start(path, encoder, seeds, workers)
    while killed.total() < wanted and work_begins(path, grid, {str(file) for file in path.glob("runs/*/*")}):
        time.sleep(moments.uniform(0, LONGEST_WAIT))
        if grid.poll() is not None:
            break
        what = kill_one(grid, moments, whole=workers == 1 or killed.total() % 2 == 0)
        killed.update([what] if what is not None else [])
        if grid.poll() is not None:
            grid = start(path, encoder, seeds, workers)
    if grid.wait() != 0 and start(path, encoder, seeds, workers).wait() != 0:
        print(f"{path} ended with an error")
    return killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="minimum number of kills over all grids")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each grid, with two runs each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    arguments = parser.parse_args()
    moments, total, different = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        encoder = f"{temporary}/encoder"
        save_encoder(encoder)
        alone = Path(temporary, "alone")
        if start(alone, encoder, arguments.seeds, 1).wait() != 0:
            raise SystemExit("the grid that was left alone failed")
        expected = outcome(alone)
        for workers in arguments.workers:
            wanted, number = -(-arguments.kills // len(arguments.workers)), 0
            while wanted > 0:
                number += 1
                path = Path(temporary, f"{workers}-{number}")
                killed = killed_grid(path, encoder, arguments.seeds, workers, moments, wanted)
                equal = outcome(path) == expected
                kills = ", ".join(f"{count} of the {what}" for what, count in killed.items()) or "none"
                verdict = "equal" if equal else "DIFFERENT"
                print(f"workers {workers}, grid {number}: kills {kills}; {verdict}", flush=True)
                wanted, total, different = wanted - killed.total(), total + killed.total(), different + (not equal)
    print(f"seed {arguments.seed}: {total} kills, {len(expected)} runs a grid; {different} grids differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
