"""The page of the base-size encoder has what its runs have."""

from pages import table
from studies import BASELINE, FEED_FORWARD, RESULTS, exact_p_value, grid

TEXT = (RESULTS / "mpnet" / "README.md").read_text(encoding="utf-8")


def test_rte_with_and_without_the_penalty() -> None:
    runs = grid("mpnet")
    scores = runs.pivot(index="seed", columns="method", values="test")
    assert list(scores.index) == [41, 42, 43, 44, 45]
    assert (runs["learning_rate"] == 3e-5).all()
    for row, method in zip(table(TEXT, "accuracy on the test set"), (BASELINE, FEED_FORWARD), strict=True):
        own = scores[method]
        assert row[1:] == [f"{own.mean():.4f}", f"{own.min():.4f} to {own.max():.4f}"]
    differences = scores[FEED_FORWARD] - scores[BASELINE]
    half = 2.776445 * differences.std() / 5**0.5  # 97.5% of Student's t, 4 degrees of freedom
    mean = differences.mean()
    page = " ".join(TEXT.split())
    interval = f"{mean - half:+.4f} to {mean + half:+.4f}"
    assert f"difference is {mean:+.4f}, with a 95% Student's interval of {interval} " in page
    assert f"one comparison, p = {exact_p_value(differences):.2f}; with five seeds it cannot be below 0.06" in page
    penalty = runs[runs["method"] == FEED_FORWARD]["penalty"].mean()
    assert f"The penalty is {penalty:.1e} of the task loss".replace("e-0", "e-") in page
