"""Throughput of a grid that does one run or several at once, sharing the cores of this machine.

    python benchmarks/grid_scaling.py
    python benchmarks/grid_scaling.py --at_once 1 2 4 --engines local --runs 8 --steps 40

Each line is one grid, timed from the start of its process to its report: MiniLM on the generated pairs of `demo_rte`,
alternately without and with LBE. The time includes the start of the worker processes, and of Ray.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(at_once: int) -> int:
    """Threads of each run."""
    return max(1, CORES // at_once)


def seconds(engine: str, at_once: int, arguments: argparse.Namespace) -> float:
    """Duration of a grid, in seconds."""
    seeds = [str(seed) for seed in range(arguments.runs // 2)]
    grid = "--tasks demo_rte --learning_rates 5e-5 --lbe_alphas 0.5 --lbe_betas 0.05 --save_strategy no --use_cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "glue_runs.grid", *grid.split(), "--models", arguments.model]
        command += ["--max_steps", str(arguments.steps), "--seeds", *seeds, "--keep_models", "none"]
        command += ["--engine", engine, "--workers", str(at_once)]
        command += ["--cpus_per_run", str(threads(at_once)), "--output_dir", f"{folder}/grid"]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at_once", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--runs", type=int, default=8, help="runs of each grid; an even number, half without LBE")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a run")
    parser.add_argument("--model", default="minilm")
    arguments = parser.parse_args()
    print("| engine | runs at once | threads of each | seconds | runs a minute |", "|---|---|---|---|---|", sep="\n")
    for engine, at_once in tqdm(list(itertools.product(arguments.engines, arguments.at_once))):
        took = seconds(engine, at_once, arguments)
        rate = 60 * arguments.runs / took
        tqdm.write(f"| {engine} | {at_once} | {threads(at_once)} | {took:.0f} | {rate:.1f} |")


if __name__ == "__main__":
    main()
