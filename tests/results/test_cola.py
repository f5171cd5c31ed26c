"""The page of CoLA at high learning rates has what its runs have."""

from itertools import product

from pages import table
from studies import RESULTS, exact_p_value, grid, over_seeds

PAGE = (RESULTS / "cola" / "README.md").read_text(encoding="utf-8")


def test_scores_by_learning_rate() -> None:
    runs = grid("cola")
    rows = table(PAGE, "learning rate")
    assert [row[0] for row in rows] == ["5e-5", "1e-4", "2e-4", "3e-4"]
    for rate, *cells in rows:
        assert cells == [over_seeds(runs, float(rate), beta) for beta in (0, 0.05, 0.5)]


def test_eight_other_seeds_at_the_highest_rate() -> None:
    runs = grid("cola/fresh_seeds")
    assert {tuple(row) for row in runs[["beta", "seed"]].to_numpy()} == set(product((0.0, 0.5), range(44, 52)))
    (cells,) = table(PAGE, "seeds 44 to 51")
    assert cells[1:] == [over_seeds(runs, 3e-4, beta) for beta in (0, 0.5)]
    scores = runs.pivot(index="seed", columns="beta", values="test")
    differences = scores[0.5] - scores[0.0]
    mean = differences.mean()
    half = 2.364624 * differences.std() / 8**0.5  # 97.5% of Student's t, 7 degrees of freedom
    claim = f"is {mean:+.3f}, with a Student's interval of {mean - half:+.3f} to {mean + half:+.3f} "
    assert f"{claim}(exact permutation test, the only one, p = {exact_p_value(differences):.2f})" in " ".join(
        PAGE.split()
    )
    assert mean - half < 0
    assert "**It is not shown.**" in PAGE
