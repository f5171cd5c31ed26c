import pytest

from glue_runs.finetune.arguments import parse
from glue_runs.grid.arguments import parse_grid
from glue_runs.grid.plan import Run, plan_runs

SMALL = "--tasks rte --seeds 1 --learning_rates 3e-5 --lbe_alphas 0.5 --lbe_betas 0.01 --precision fp32".split()


def runs_of(*argv: str) -> list[Run]:
    return plan_runs(*parse_grid([*argv, "--precision", "fp32"] if "--precision" not in argv else list(argv)))


def test_the_default_is_the_sweep_of_the_paper() -> None:
    runs = runs_of()
    assert len(runs) == 585  # 3 tasks x 3 learning rates x 5 seeds x (1 baseline + 4 alphas x 3 betas)
    assert len({run.name for run in runs}) == 585
    baselines = [run for run in runs if run.method == "baseline"]
    assert {(run.task, run.learning_rate, run.seed) for run in baselines} == {
        (task, rate, seed) for task in ("rte", "mrpc", "cola") for rate in (1e-5, 3e-5, 5e-5) for seed in range(41, 46)
    }
    assert len(baselines) == 45
    assert all(parse(run.argv())[2].lbe_beta == run.beta for run in runs[:13])


def test_a_run_is_its_settings_and_not_their_order() -> None:
    one, *_ = runs_of(*SMALL, "--max_length", "64", "--weight_decay", "0.1")
    other, *_ = runs_of(*SMALL, "--weight_decay", "0.1", "--max_length", "64")
    assert one.name == other.name
    assert one.name.startswith("rte-bert-base-uncased-lr3e-05-seed1-baseline-")


@pytest.mark.parametrize(
    "argument", ["--data_dir /data", "--logging_steps 3", "--report_to wandb", "--save_total_limit 2", "--use_cpu"]
)
def test_what_changes_no_result_changes_no_name(argument: str) -> None:
    plain, changed = runs_of(*SMALL), runs_of(*SMALL, *argument.split())
    assert [run.name for run in plain] == [run.name for run in changed]


@pytest.mark.parametrize("argument", ["--max_length 64", "--num_train_epochs 2", "--split_seed 1", "--weight_decay 1"])
def test_what_changes_results_changes_every_name(argument: str) -> None:
    plain, changed = runs_of(*SMALL), runs_of(*SMALL, *argument.split())
    assert not {run.name for run in plain} & {run.name for run in changed}


def test_every_spelling_makes_the_same_runs() -> None:
    plain = runs_of(*SMALL, "--max_length", "64", "--lbe_ignore_padding", "false")
    dashes = runs_of(*[word.replace("_", "-") for word in SMALL], "--max-length=64", "--no-lbe-ignore-padding")
    assert [run.name for run in plain] == [run.name for run in dashes]
    assert [run.settings for run in plain] == [run.settings for run in dashes]


def test_settings_of_lbe_are_not_those_of_the_baseline() -> None:
    plain, changed = runs_of(*SMALL), runs_of(*SMALL, "--lbe_alpha_min", "0.1")
    assert [left.name == right.name for left, right in zip(plain, changed, strict=True)] == [True, False]


def test_what_is_fixed_is_told_apart_from_what_is_swept() -> None:
    baseline, lbe = runs_of(*SMALL, "--max_length", "64", "--lbe_alpha_min", "0.1", "--data_dir", "/data")
    assert (baseline.fixed_settings, baseline.method) == ("max_length=64, precision=fp32", "baseline")
    assert (lbe.fixed_settings, lbe.method) == (baseline.fixed_settings, "LBE on hidden_states, lbe_alpha_min=0.1")


def test_what_a_protocol_sets_is_no_fixed_setting_and_what_overrides_it_is() -> None:
    authors = [*SMALL[:-2], "--protocol", "authors"]
    overridden = [*authors, "--pad_to_max_length", "false"]
    plain, changed = (plan_runs(*parse_grid(argv))[1] for argv in (authors, overridden))
    assert (plain.fixed_settings, plain.method) == ("", "LBE on feed_forward")
    assert changed.fixed_settings == "pad_to_max_length=default"


def test_activations() -> None:
    runs = runs_of(*SMALL, "--activations", "hidden_states", "feed_forward", "pooler")
    modules = [parse(run.argv())[2].lbe_target_modules for run in runs]
    feed_forward = r".*\.layer\.\d+\.output\.dense|.*\.pooler"
    assert modules == [None, None, feed_forward, "pooler"]
    assert [run.method for run in runs[1:]] == [
        f"LBE on {name}" for name in ("hidden_states", "feed_forward", "pooler")
    ]


def test_what_the_baseline_measures_does_not_change_it() -> None:
    one, other = (runs_of(*SMALL, "--activations", *names)[0] for names in (["feed_forward"], ["pooler"]))
    assert [parse(run.argv())[2].lbe_target_modules for run in (one, other)] == [
        r".*\.layer\.\d+\.output\.dense|.*\.pooler",
        "pooler",
    ]
    assert (one.name, one.description) == (other.name, other.description)


def test_protocol_of_the_authors() -> None:
    arguments = "--tasks rte --seeds 7 --learning_rates 3e-5 --lbe_alphas 0.5 --lbe_betas 0.01 --protocol authors"
    run = plan_runs(*parse_grid(arguments.split()))[1]
    _, data_args, args = parse(run.argv())
    assert (data_args.pad_to_max_length, data_args.max_length, data_args.split_seed) == (True, 128, 7)
    assert (args.lbe_ignore_padding, args.train_sampling_strategy, args.precision) == (False, "random", "fp32")
    assert (args.dataloader_drop_last, data_args.validation_rounding) == (True, "down")
    assert run.activations == "feed_forward"
    overriding = f"{arguments} --precision bf16 --activations hidden_states --split_seed 0 --pad_to_max_length false"
    run = plan_runs(*parse_grid(overriding.split()))[1]
    _, data_args, args = parse(run.argv())
    assert (data_args.pad_to_max_length, data_args.split_seed, args.precision) == (False, 0, "bf16")
    assert (run.activations, run.protocol) == ("hidden_states", "authors")


def test_beta_zero_is_the_baseline_and_repeated_values_count_once() -> None:
    runs = runs_of(*SMALL[:-4], "--lbe_betas", "0", "0.01", "0.01", "--seeds", "1", "1")
    assert [run.beta for run in runs] == [0.0, 0.01]
