"""The committed results of the studies, and what their pages compute of them, written out a second time."""

from itertools import product

import numpy as np
import pandas as pd
from programs import ROOT

RESULTS = ROOT / "results"
BASELINE, FEED_FORWARD, HIDDEN_STATES = "baseline", "LBE on feed_forward", "LBE on hidden_states"


def deep_bert() -> pd.DataFrame:
    """Deep BERTs by step, those of the main comparison and of the border."""
    lines = pd.read_csv(RESULTS / "deep_bert" / "runs.csv")
    lines = lines.copy().assign(lowest=lines.filter(like="entropy/").min(axis="columns"))
    main = (lines["data"] == "sentences") & (lines["model_type"] == "bert") & (lines["activations"] == "hidden_states")
    return lines[main]


def settings_that_train(beta: float, *learning_rates: float) -> str:
    """Runs of the 30 settings of learning rate, warm-up and clipping that trained, and of how many."""
    lines = pd.read_csv(RESULTS / "tuned_rivals" / "runs.csv")
    same = (lines["initialization"] == "default") & (lines["alpha"] == 0.5) & lines["seed"].isin([0, 1, 2])
    lines = lines[same & (lines["beta"] == beta) & (lines["step"] > 300)]
    accuracy = lines[lines["learning_rate"].isin(learning_rates)].groupby("run")["accuracy"].mean()
    return f"{(accuracy > 0.95).sum()} of {len(accuracy)}"


def judged_rivals() -> tuple[dict[str, str], dict[str, int]]:
    """Of each rival on the fresh seeds: runs that trained, of how many; the median step to 0.95, which all reach."""
    lines = pd.read_csv(RESULTS / "tuned_rivals" / "runs.csv")
    lines = lines[lines["seed"] >= 100]
    lines = lines.assign(rival=lines["initialization"].replace("default", "none").mask(lines["beta"] > 0, "LBE"))
    trained = lines[lines["step"] > 300].groupby(["rival", "seed"])["accuracy"].mean() > 0.95
    steps = lines[lines["accuracy"] > 0.95].groupby(["rival", "seed"])["step"].min()
    assert steps.index.equals(trained.index)
    counts = trained.groupby("rival").agg(["sum", "size"])
    return (
        {str(rival): f"{own['sum']} of {own['size']}" for rival, own in counts.iterrows()},
        {str(rival): round(step) for rival, step in steps.groupby("rival").median().items()},
    )


def judged_networks() -> pd.DataFrame:
    """Test scores of the paper's other networks by seed (rows), contest and method (columns); 0 where one diverged."""
    lines = pd.read_csv(RESULTS / "paper_networks" / "runs.csv").fillna({"test": 0.0})
    return lines[lines["seed"] >= 100].pivot(index="seed", columns=["contest", "method"], values="test")


def variants_that_train() -> dict[str, str]:
    """Of LBE and each variant of the penalty the runs that trained, and of how many."""
    lines = pd.read_csv(RESULTS / "mechanism" / "runs.csv")
    accuracy = lines[lines["step"] > 300].groupby(["variant", "seed"])["accuracy"].mean()
    counts = (accuracy > 0.95).groupby("variant").agg(["sum", "size"])
    counts = {str(variant): f"{own['sum']} of {own['size']}" for variant, own in counts.iterrows()}
    return {"LBE": judged_rivals()[0]["LBE"], **counts}


def ends(steps: pd.DataFrame, **settings: object) -> pd.DataFrame:
    """What became of the runs with these settings, by seed."""
    for name, value in ({"decay": "none", "warmup_steps": 0, "depth": 48, "learning_rate": 1e-3} | settings).items():
        steps = steps[steps[name] == value]
    by_seed, last = steps.groupby("seed"), steps[steps["step"] > 300].groupby("seed")
    return pd.DataFrame(
        {
            "trained": last["accuracy"].mean() > 0.95,
            "for_a_while": by_seed["accuracy"].max() > 0.95,
            "collapsed": last["lowest"].median() < 1e-3,
            "steps": steps[steps["accuracy"] > 0.95].groupby("seed")["step"].min(),
        }
    )


def setting(beta: float, alpha: float = 0.7) -> dict[str, object]:
    return {"beta": beta, "alpha": alpha} if beta else {"beta": 0.0}


def mcnemar(left: pd.DataFrame, right: pd.DataFrame) -> float:
    """The two tails of a fair coin that is thrown for each seed at which the two differ."""
    differences = left["trained"].astype(int) - right["trained"].astype(int)
    heads, throws = int((differences > 0).sum()), int((differences != 0).sum())
    tosses = np.array([sum(sides) for sides in product((0, 1), repeat=throws)])
    return min(1.0, 2 * float(np.mean(tosses >= max(heads, throws - heads))))


def grid(name: str) -> pd.DataFrame:
    """The runs of `results/{name}`, a line each."""
    return pd.read_csv(RESULTS / name / "results.csv")


def at_chosen_rate(runs: pd.DataFrame, task: str, method: str) -> pd.DataFrame:
    """The runs, by seed, at the learning rate with the best mean validation score."""
    own = runs[(runs["task"] == task) & (runs["method"] == method)]
    rate = own.groupby("learning_rate")["validation"].mean().idxmax()
    return own[own["learning_rate"] == rate].set_index("seed")


def against_baseline(runs: pd.DataFrame, task: str, method: str) -> str:
    """Mean test score and difference by seed; from three seeds on its range and exact p-value."""
    own, baseline = (at_chosen_rate(runs, task, name)["test"] for name in (method, BASELINE))
    differences = (own - baseline).dropna()
    cell = f"{own.mean():.4f}, by seed {differences.mean():+.4f}"
    if len(differences) < 3:
        return cell
    return f"{cell} ({differences.min():+.4f} to {differences.max():+.4f}), p {exact_p_value(differences):.2f}"


def exact_p_value(differences: pd.Series) -> float:
    """Of the exact paired permutation test: the share of all signs with a mean as far from zero."""
    signs = np.array(list(product((1, -1), repeat=len(differences))))
    as_extreme = np.abs((signs * differences.to_numpy()).mean(axis=1)) >= abs(differences.mean()) - 1e-12
    return float(as_extreme.mean())


def over_seeds(runs: pd.DataFrame, learning_rate: float, beta: float) -> str:
    """Mean test score and its range."""
    own = runs[(runs["learning_rate"] == learning_rate) & (runs["beta"] == beta)]["test"]
    return f"{own.mean():.3f} ({own.min():.3f} to {own.max():.3f})"


def penalties_of_healthy_encoders() -> pd.Series:
    """Penalties on the hidden states, relative to the loss, at beta 0.05 where no run collapses."""
    both = pd.concat([grid("minilm"), grid("cola")])
    return both[(both["beta"] == 0.05) & (both["learning_rate"] <= 2e-4) & (both["method"] == HIDDEN_STATES)][
        "penalty"
    ]


def short(value: float) -> str:
    """One digit, as the pages write small numbers."""
    return f"{value:.0e}".replace("e-0", "e-")
