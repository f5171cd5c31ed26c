"""The estimates of `docs/scaling.md` follow from its measurements, and these from the official files."""

from pathlib import Path
from statistics import mean

import pandas as pd
from pages import table
from programs import ROOT, program

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
RUNS, OVERHEAD = 585, 20.0
SECONDS_A_STEP = {"bert-base": 0.04, "bert-large": 0.08}


def steps_a_run() -> list[int]:
    return [int(row[2].replace(",", "")) for row in table(PAGE, "task | steps an epoch")]


def test_the_time_of_a_run_is_its_steps_and_its_start() -> None:
    for name, *cells in table(PAGE, "estimate | RTE"):
        seconds = [steps * SECONDS_A_STEP[name.split(",")[0]] + OVERHEAD for steps in steps_a_run()]
        assert cells == [f"{value:.0f}" for value in (*seconds, mean(seconds))]


def test_the_time_of_a_grid_is_that_of_its_rounds() -> None:
    for name, *cells in table(PAGE, "585 runs, estimate"):
        a_run = mean(steps * SECONDS_A_STEP[name.split(",")[0]] + OVERHEAD for steps in steps_a_run())
        hours, *minutes = (-(-RUNS // devices) * a_run / 3600 for devices in (1, 8, 64))
        assert cells == [f"{hours:.1f} h", *(f"{60 * value:.0f} min" for value in minutes)]


def test_the_time_of_a_run_of_this_size_on_a_gpu() -> None:
    seconds = pd.read_csv(ROOT / "results" / "mpnet" / "results.csv")["seconds"]
    assert f"on RTE took {seconds.min():.0f} to {seconds.max():.0f} s" in " ".join(PAGE.split())


def test_results_are_as_large_as_the_page_has_it() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "results").glob("*/runs/*/result.json")]
    assert f"its result, {min(sizes) / 1000:.0f} to {max(sizes) / 1000:.0f} kB" in PAGE


def test_an_epoch_of_rte(glue_data_dir: Path) -> None:
    steps, tokens, examples = program("benchmarks/epoch_sizes.py").sizes("rte", str(glue_data_dir), "minilm")
    (row,) = [row for row in table(PAGE, "task | steps an epoch") if row[0] == "RTE"]
    assert row[1:] == [f"{steps:,}", f"{5 * steps:,}", f"{tokens:,}", f"{tokens / examples:.0f}"]
