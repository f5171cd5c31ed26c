"""The page of CoLA at high learning rates has what its runs have."""

from pages import table
from studies import RESULTS, grid, over_seeds


def test_scores_by_learning_rate() -> None:
    runs = grid("cola")
    rows = table((RESULTS / "cola" / "README.md").read_text(encoding="utf-8"), "learning rate")
    assert [row[0] for row in rows] == ["5e-5", "1e-4", "2e-4", "3e-4"]
    for rate, *cells in rows:
        assert cells == [over_seeds(runs, float(rate), beta) for beta in (0, 0.05, 0.5)]
