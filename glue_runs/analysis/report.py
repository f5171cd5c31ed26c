"""The report of a grid: `python -m glue_runs.report FOLDER` writes tables and figures into its folder."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..errors import InputError
from ..files import write_text
from ..redaction import report_error
from ..tasks.data import name_as_test
from ..tasks.glue import get_task
from .comparison import MIN_SEEDS, Difference, holm, mean_difference
from .contests import FIXED_IN_ADVANCE, Contest, find_contests
from .selection import BASELINE, METHOD_BY, choose_settings
from .shapes import COMPARE_BY, HYPERPARAMETERS, TRAINED_ON
from .store import GridFolder
from .table import tabulate

_FAINT = 1e-3

Records = Mapping[str, dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Print the report; return 0, or after one line on stderr 2 if a file cannot be used and 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        asked = arguments in (["-h"], ["--help"])
        print("usage: python -m glue_runs.report FOLDER", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may have characters that the terminal does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(write_report(GridFolder(arguments[0])))
    except InputError as error:
        return report_error(error, 2)
    except KeyboardInterrupt:
        print("Stopped; the same command makes the report again.", file=sys.stderr)
        return 130
    return 0


def write_report(folder: GridFolder) -> str:
    """Write `results.csv`, `report.md` and the figures of the finished runs; return the report.

    Raises:
        InputError: the folder holds no grid, a file in it is damaged or cannot be read, or it cannot be written.
    """
    try:
        with folder.lock("report"):
            # Read under the lock: of two runs that end at once, the later report has both.
            records = folder.records()
            results = tabulate(records)
            write_text(folder.path / "results.csv", results.to_csv(index=False, lineterminator="\n"))
            report = "\n\n".join(part for part in _parts(folder, records, results) if part) + "\n"
            write_text(folder.path / "report.md", report)
    except OSError as error:
        raise InputError(
            f"The report cannot be written to {folder.path} ({error.strerror or error}): make it writable, with room."
        ) from error
    return report


def _parts(folder: GridFolder, records: Records, results: pd.DataFrame) -> list[str]:
    states = {name: "done" if name in records else folder.state(name) for name in folder.runs}
    parts = [_status(states, records)]
    if not results.empty:
        chosen = choose_settings(results)
        if not chosen.empty:
            note = f"{_SCORES_NOTE} {_CHOICE_NOTE}" if results["diverged"].any() else _SCORES_NOTE
            parts.append(f"## Test scores\n\n{_markdown(_scores(chosen))}\n\n{note}")
        parts += [
            _not_chosen(results, chosen),
            f"## LBE against the baseline\n\n{_comparison(results)}",
            f"## Figures\n\n{_figures(folder, records, results)}",
        ]
    return [*parts, _provenance(folder, records), _open_runs(folder, states)]


_SCORES_NOTE = (
    "Each method is shown at the setting with the best mean validation score over seeds; test scores play no part in "
    "the choice. Mean, std (sample standard deviation), median, min and max are taken over the test scores of the "
    "seeds. The penalty is relative to the task loss and averaged over training."
)
_CHOICE_NOTE = "A setting with a run that diverged is chosen only if every setting of the method has one."
_DIFFERENCES_NOTE = (
    "Differences are LBE minus baseline, paired by seed, each method at the setting that validation chose."
)
_CONTEST_NOTE = (
    "Comparing the best of several LBE settings with the single setting of the baseline is an unequal contest: the "
    "search itself favours LBE."
)
_FIXED_NOTE = (
    "The contest fixed in advance is equal: alpha is {alpha:g}, beta is {beta:g}, and only the learning rate is "
    "chosen."
)
_SAME_RATES_NOTE = (
    "At the same learning rates, the rates that validation chose play no part: the difference is the mean over all "
    "pairs of learning rate and seed. The interval and p are computed over seeds, from each seed's mean over its "
    "rates."
)
_SEEDS_NOTE = f"With fewer than {MIN_SEEDS} seeds there is no interval and no p-value."
_FIGURES_NOTE = (
    "Test scores at the chosen settings, one point per seed, a line for the mean; test scores by learning rate, mean "
    "and range over seeds; batch entropy of each layer during training, mean over seeds, beside its final target."
)
_DIVERGED_NOTE = "Runs that diverged are left out of the entropy figures."
_STATISTICS_NOTE = (
    "Intervals are Student's t intervals of the mean difference at 95%: they assume that the differences of the seeds "
    "are independent and normally distributed, and are left out where all differences are equal. p is two-sided, from "
    "the exact paired permutation test over seeds (Wilcoxon's test for more than 12 seeds). With n seeds, p cannot be "
    "below 2 / 2^n: 0.25 for 3 seeds, 0.0625 for 5."
)
_HOLM_NOTE = (
    "p (Holm) is corrected for the {tests} comparisons that have a p: the chance that it is below 0.05 for any "
    "comparison without a true difference is at most 5%."
)


def _status(states: dict[str, str], records: Records) -> str:
    counts = Counter(states.values())
    diverged = sum(record["diverged"] for record in records.values())
    remark = f" {diverged} of the finished runs diverged; their scores are included unchanged." if diverged else ""
    if counts["done"] == len(states):
        return f"All {len(states)} runs are done.{remark}"
    rest = [f"{counts[state]} {state}" for state in ("failed", "running", "interrupted", "missing") if counts[state]]
    done = f"{counts['done']} of {len(states)} runs are done"
    return f"**Incomplete: {done}, {', '.join(rest)} (listed at the end).**{remark}"


def _scores(chosen: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for key, runs in chosen.groupby(METHOD_BY, sort=False):
        for split in _test_splits(key[0]):
            scores = runs[split]
            rows.append(
                {
                    **_labels(key, split),
                    "metric": get_task(key[0]).main_metric.replace("_", " "),
                    "method": key[-1],
                    **_hyperparameters(runs),
                    "seeds": len(runs),
                    **({"diverged": int(runs["diverged"].sum())} if chosen["diverged"].any() else {}),
                    "validation": f"{runs['validation'].mean():.4f}",
                    "mean": f"{scores.mean(skipna=False):.4f}",
                    "std": f"{scores.std(skipna=False):.4f}" if len(runs) > 1 else "",
                    "median": f"{scores.median(skipna=False):.4f}",
                    "min": f"{scores.min(skipna=False):.4f}",
                    "max": f"{scores.max(skipna=False):.4f}",
                    "penalty": "" if key[-1] == BASELINE else f"{runs['penalty'].mean():.1e}",
                }
            )
    return rows


def _not_chosen(results: pd.DataFrame, chosen: pd.DataFrame) -> str:
    """The methods without a chosen setting, because each of their settings has a validation score that is NaN."""
    is_chosen = results.set_index(METHOD_BY).index.isin(chosen.set_index(METHOD_BY).index)
    missing = results[~is_chosen].drop_duplicates(METHOD_BY)
    return "\n".join(
        f"- {run.task}, {run.method}: no setting is chosen, because each has a validation score that is not a number."
        for run in missing.itertuples()
    )


def _comparison(results: pd.DataFrame) -> str:
    contests = list(find_contests(results))
    compared = [(contest, split) for contest in contests for split in _test_splits(contest.runs["task"].iloc[0])]
    if not compared:
        return "Nothing can be compared yet."
    differences = [mean_difference(contest.differences(split)) for contest, split in compared]
    corrected = holm([difference.p_value for difference in differences])
    rows = [
        _compared(contest, split, difference, p_value)
        for (contest, split), difference, p_value in zip(compared, differences, corrected, strict=True)
    ]
    tests = sum(p_value is not None for p_value in corrected)
    notes = {
        _DIFFERENCES_NOTE: True,
        _CONTEST_NOTE: any(contest.setting.startswith("best of") for contest in contests),
        _FIXED_NOTE.format(**FIXED_IN_ADVANCE): any(contest.setting == "fixed in advance" for contest in contests),
        _SAME_RATES_NOTE: any(contest.same_rates for contest in contests),
        _SEEDS_NOTE: any(difference.seeds < MIN_SEEDS for difference in differences),
        _STATISTICS_NOTE: tests > 0,
        f"The number of comparisons is {len(rows)}.": True,
        _HOLM_NOTE.format(tests=tests): tests > 0,
    }
    remarks = [*_faint(contests), *_left_out(contests), *_across_devices(contests)]
    parts = [_markdown(rows), " ".join(note for note, wanted in notes.items() if wanted), "\n".join(remarks)]
    return "\n\n".join(part for part in parts if part)


def _compared(contest: Contest, split: str, difference: Difference, corrected: float | None) -> dict[str, object]:
    first = contest.runs.iloc[0]
    low, high = difference.interval or (None, None)
    return {
        **_labels([first[name] for name in COMPARE_BY], split),
        "method": first["method"],
        "contest": contest.name,
        **_hyperparameters(contest.pairs if contest.same_rates else contest.runs),
        "seeds": difference.seeds,
        "difference": f"{difference.mean:+.4f}" if difference.seeds else "",
        "95% interval": "" if low is None else f"{low:+.4f} to {high:+.4f}",
        "p": "" if difference.p_value is None else f"{difference.p_value:.4f}",
        "p (Holm)": "" if corrected is None else f"{corrected:.4f}",
    }


def _faint(contests: list[Contest]) -> list[str]:
    lines = []
    for contest in contests:
        first, penalty = contest.runs.iloc[0], contest.runs["penalty"].mean()
        if penalty < _FAINT and not contest.same_rates:
            lines.append(
                f"- {first['task']}, {first['method']}, {contest.name}: the penalty is {penalty:.1e} of the task "
                "loss, so it can hardly change what is learned: the entropies of the layers are already close to "
                "their targets."
            )
    return lines


def _left_out(contests: list[Contest]) -> list[str]:
    return [
        f"- {contest.runs['task'].iloc[0]}, {contest.runs['method'].iloc[0]}, {contest.name}: {contest.left_out} of "
        f"{contest.left_out + len(contest.pairs)} pairs of runs are left out, because not every seed was run at the "
        "same learning rates."
        for contest in contests
        if contest.left_out
    ]


def _across_devices(contests: list[Contest]) -> list[str]:
    lines = []
    for contest in contests:
        pairs = contest.pairs
        count = (pairs["device"] != pairs["device_baseline"]).sum()
        if count:
            lines.append(
                f"- {pairs['task'].iloc[0]}, {pairs['method'].iloc[0]}, {contest.name}: in {count} of {len(pairs)} "
                "pairs the two runs are of different devices, which may make a difference by itself."
            )
    return lines


def _labels(key: Sequence[str], split: str) -> dict[str, str]:
    """The columns that name a setup; MNLI's second test set is named with the task."""
    labels = dict(zip((name.replace("_", " ") for name in COMPARE_BY), key, strict=False))
    return {**labels, "task": " ".join([key[0], *split.split("_")[1:]])}


def _hyperparameters(runs: pd.DataFrame) -> dict[str, str]:
    """The distinct values of each hyperparameter among the runs."""
    return {
        name.replace("_", " "): ", ".join(f"{value:g}" for value in sorted(runs[name].dropna().unique()))
        for name in HYPERPARAMETERS
    }


def _test_splits(task: str) -> list[str]:
    return [name_as_test(split) for split in get_task(task).test_splits]


def _figures(folder: GridFolder, records: Records, results: pd.DataFrame) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "No figures without matplotlib: install it with `pip install matplotlib` and make the report again."
    from .figures import draw

    links = [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in draw(folder.path, results, records)]
    note = f"{_FIGURES_NOTE} {_DIVERGED_NOTE}" if results["diverged"].any() else _FIGURES_NOTE
    return "\n\n".join([note, *links])


def _provenance(folder: GridFolder, records: Records) -> str:
    environments = {
        ", ".join(f"{key} {value}" for key, value in record["environment"].items()) for record in records.values()
    }
    parts = ["## How this was made", "\n".join(["```bash", *folder.commands, "```"]), "\n".join(sorted(environments))]
    unchecked = sum(TRAINED_ON not in folder.runs[name] for name in records)
    if unchecked:
        parts.append(
            f"{unchecked} of the finished runs began before what they are trained on was recorded: that they share "
            "weights and examples is unchecked."
        )
    return "\n\n".join(part for part in parts if part)


def _open_runs(folder: GridFolder, states: dict[str, str]) -> str:
    lines = []
    for name, state in states.items():
        if state == "failed":
            lines.append(f"- failed: {name}: {folder.error(name)}")
        elif state != "done":
            lines.append(f"- {state}: {name}")
    return "## Runs that are not done\n\n" + "\n".join(lines) if lines else ""


def _markdown(rows: list[dict[str, object]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
