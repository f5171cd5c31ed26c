"""Print the tables of `README.md` as Markdown, from the two files that `study.py` writes.

python results/verdicts/report.py
"""

from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def main() -> None:
    healthy, broken = (pd.read_csv(HERE / f"{name}.csv", keep_default_na=False) for name in ("healthy", "broken"))
    # Redundancy is an observation: it is no false alarm in a healthy model, and no fault found in a changed one.
    one_direction, broken = (broken[(broken["fault"] == "one direction") == wanted] for wanted in (True, False))
    groups = healthy.groupby("group", sort=False)
    print("| healthy models | number | false alarms | lowest variance share | most dead units |")
    print("| --- | --- | --- | --- | --- |")
    for group, own in [*groups, ("all", healthy)]:
        alarms, least = own["false_alarm"].sum(), own["lowest_variance_share"].min()
        print(f"| {group} | {len(own)} | {alarms} | {least:.2f} | {own['dead_units'].max():.0%} |")
    print()
    models = list(dict.fromkeys(broken["model"]))
    print(f"| fault | {' | '.join(models)} | all |")
    print("| --- |" + " --- |" * (len(models) + 1))
    for fault, own in broken.groupby("fault", sort=False):
        by_model = [own[own["model"] == model]["hit"] for model in models]
        cells = [f"{hits.sum()} of {len(hits)}" if len(hits) else "" for hits in by_model]
        print(f"| {fault} | {' | '.join(cells)} | {own['hit'].sum()} of {len(own)} |")
    print()
    redundant = healthy[healthy["found"].str.contains("redundant")]
    print(f"Reported as redundant, which is no fault: {len(redundant)} of the healthy models, and")
    print(f"{one_direction['hit'].sum()} of {len(one_direction)} models whose examples differ in one direction only.")
    print(f"Faults found: {broken['hit'].sum()} of {len(broken)}.")


if __name__ == "__main__":
    main()
