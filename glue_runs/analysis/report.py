"""What the runs of a grid say: `python -m glue_runs.report FOLDER` writes tables and pictures into the folder."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from ..errors import InputError
from ..finetune.record import SETTING, SETUP
from ..tasks.glue import get_task
from .comparison import BASELINE, MIN_SEEDS, Difference, choose_settings, paired_difference
from .store import GridFolder
from .table import read_results

FIXED_IN_ADVANCE = {"alpha": 0.5, "beta": 0.01}
"""The middle of the paper's sweep: no choice, therefore no advantage over the baseline's single setting."""

_FAINT = 1e-3


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error if the folder cannot be read."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m glue_runs.report FOLDER", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        print(write_report(GridFolder(arguments[0])))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(folder: GridFolder) -> str:
    """Write `results.csv`, `report.md` and the pictures of what is done so far; returns the report.

    Raises:
        InputError: the folder is that of no grid, or a file in it is damaged.
    """
    results = read_results(folder)
    with folder.lock("report"):
        results.to_csv(folder.path / "results.csv", index=False, lineterminator="\n")
        report = "\n\n".join(part for part in _parts(folder, results) if part) + "\n"
        (folder.path / "report.md").write_text(report, encoding="utf-8")
    return report


def _parts(folder: GridFolder, results: pd.DataFrame) -> list[str]:
    states = {name: folder.state(name) for name in folder.runs}
    parts = [_status(states)]
    if not results.empty:
        chosen = choose_settings(results)
        parts += [
            f"## Test scores\n\n{_markdown(_scores(chosen))}\n\n{_SCORES_NOTE}",
            f"## LBE beside the baseline\n\n{_comparison(results, chosen)}",
            f"## Pictures\n\n{_pictures(folder, results)}",
        ]
    return [*parts, _provenance(folder, results), _open_runs(folder, states)]


_SCORES_NOTE = (
    "The setting of each method has the best mean validation score over seeds; test scores have no part in the "
    "choice. Mean, standard deviation (of a sample), median, min and max are those of the test score over seeds. The "
    "penalty is relative to the task loss, its mean over training."
)
_DIFFERENCES_NOTE = "Differences are LBE minus baseline, paired by seed, each at the setting that validation chose."
_CONTEST_NOTE = (
    "The best of several LBE settings against the baseline's single one is an unequal contest: the search itself "
    "favours LBE. The equal one is fixed in advance: alpha {alpha:g}, beta {beta:g}, and only the learning rate is "
    "chosen."
)
_SEEDS_NOTE = f"Fewer than {MIN_SEEDS} seeds give no interval and no p-value."
_PICTURES_NOTE = (
    "Test scores at the chosen settings, a point a seed and a line for their mean; test scores by learning rate, mean "
    "and range over seeds; batch entropy of each layer in training, mean over seeds, beside the targets at its end."
)
_STATISTICS_NOTE = (
    "Intervals are 95% bootstrap percentiles of the mean difference; p is two-sided, from the exact paired "
    "permutation test (Wilcoxon's for more than 12 seeds). With n seeds p cannot be below 2 / 2^n: 0.25 for 3, "
    "0.0625 for 5."
)


def _status(states: dict[str, str]) -> str:
    counts = Counter(states.values())
    if counts["done"] == len(states):
        return f"All {len(states)} runs are done."
    rest = [f"{counts[state]} {state}" for state in ("failed", "running", "interrupted", "missing") if counts[state]]
    return f"**Incomplete: {counts['done']} of {len(states)} runs are done, {', '.join(rest)} (listed at the end).**"


def _scores(chosen: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for key, runs in chosen.groupby([*SETUP, "method"], sort=False):
        for split in _test_splits(runs):
            rows.append(
                {
                    **_labels(key, split),
                    "metric": get_task(key[0]).scores[-1].replace("_", " "),
                    "method": key[-1],
                    **_setting(runs),
                    "seeds": len(runs),
                    "validation": f"{runs['validation'].mean():.4f}",
                    "mean": f"{runs[split].mean():.4f}",
                    "std": f"{runs[split].std():.4f}" if len(runs) > 1 else "",
                    "median": f"{runs[split].median():.4f}",
                    "min": f"{runs[split].min():.4f}",
                    "max": f"{runs[split].max():.4f}",
                    "penalty": "" if key[-1] == BASELINE else f"{runs['penalty'].mean():.1e}",
                }
            )
    return rows


def _comparison(results: pd.DataFrame, chosen: pd.DataFrame) -> str:
    rows, remarks, contests = [], [], set()
    for key, method, contest, runs in _contests(results, chosen):
        baseline = chosen[(chosen[SETUP] == list(key)).all(axis=1) & (chosen["method"] == BASELINE)]
        for split in _test_splits(runs):
            difference = paired_difference(runs.set_index("seed")[split], baseline.set_index("seed")[split])
            rows.append({**_labels(key, split), "method": method, "contest": contest, **_setting(runs)})
            rows[-1] |= _difference(difference)
        penalty = runs["penalty"].mean()
        if penalty < _FAINT:
            remarks.append(
                f"- {key[0]}, {method}, {contest}: the penalty is {penalty:.1e} of the task loss, so it can hardly "
                "change what is learned: the entropy of the layers is close to its targets already."
            )
        contests.add(contest)
    if not rows:
        return "Nothing can be compared yet."
    notes = [_DIFFERENCES_NOTE]
    if len(contests) > 1:
        notes.append(_CONTEST_NOTE.format(**FIXED_IN_ADVANCE))
    if any(row["seeds"] < MIN_SEEDS for row in rows):
        notes.append(_SEEDS_NOTE)
    if any(row["p"] for row in rows):
        notes.append(_STATISTICS_NOTE)
    return "\n\n".join([_markdown(rows), " ".join(notes), *(["\n".join(remarks)] if remarks else [])])


def _contests(results: pd.DataFrame, chosen: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], str, str, pd.DataFrame]]:
    """Setup, method, name of the contest, and the runs that the method enters it with."""
    fixed = choose_settings(results[(results[list(FIXED_IN_ADVANCE)] == list(FIXED_IN_ADVANCE.values())).all(axis=1)])
    for (*key, method), runs in chosen[chosen["method"] != BASELINE].groupby([*SETUP, "method"], sort=False):
        of_method = (results[[*SETUP, "method"]] == [*key, method]).all(axis=1)
        count = len(results.loc[of_method, ["alpha", "beta"]].drop_duplicates())
        yield tuple(key), method, f"best of {count} settings" if count > 1 else "one setting", runs
        middle = fixed[(fixed[[*SETUP, "method"]] == [*key, method]).all(axis=1)]
        if count > 1 and len(middle):
            yield tuple(key), method, "fixed in advance", middle


def _difference(difference: Difference) -> dict[str, object]:
    low, high = difference.interval or (None, None)
    return {
        "seeds": difference.seeds,
        "difference": f"{difference.mean:+.4f}" if difference.seeds else "",
        "95% interval": "" if low is None else f"{low:+.4f} to {high:+.4f}",
        "p": "" if difference.p_value is None else f"{difference.p_value:.4f}",
    }


def _labels(key: Sequence[str], split: str) -> dict[str, str]:
    """What names a setup in a table; MNLI's second test set is named with the task."""
    labels = dict(zip((name.replace("_", " ") for name in SETUP), key, strict=False))
    return {**labels, "task": " ".join([key[0], *split.split("_")[1:]])}


def _setting(runs: pd.DataFrame) -> dict[str, str]:
    first = runs.iloc[0]
    return {name.replace("_", " "): "" if pd.isna(first[name]) else f"{first[name]:g}" for name in SETTING}


def _test_splits(runs: pd.DataFrame) -> list[str]:
    return [split for split in ("test", "test_mismatched") if split in runs and runs[split].notna().any()]


def _pictures(folder: GridFolder, results: pd.DataFrame) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "There are none without matplotlib: `pip install 'lbe-hf[plot]'` and make the report again."
    from .figures import draw

    pictures = [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in draw(folder, results)]
    return "\n\n".join([_PICTURES_NOTE, *pictures])


def _provenance(folder: GridFolder, results: pd.DataFrame) -> str:
    records = [folder.result(name) or {} for name in results["name"]]
    environments = {", ".join(f"{key} {value}" for key, value in record["environment"].items()) for record in records}
    lines = ["## How this was made", "", "```bash", *folder.commands, "```", "", *sorted(environments)]
    return "\n".join(lines)


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
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
