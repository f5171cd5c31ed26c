"""What the other examples show, at a size of seconds."""

from pathlib import Path

from programs import example


def test_only_with_the_penalty_convolutions_leave_chance(tmp_path: Path) -> None:
    arguments = "--depth 12 --filters 8 --num_train_epochs 12 --learning_rate 4e-3 --use_cpu".split()
    results = example("deep_cnn").main([*arguments, "--output_dir", str(tmp_path)])
    accuracy = results.set_index("trainer")["accuracy"]
    assert 0.05 < accuracy["Trainer"] < 0.15
    assert accuracy["LBETrainer"] > 0.3


def test_residual_network_trains_either_way_and_its_blocks_move_to_the_target(tmp_path: Path) -> None:
    arguments = "--blocks 1 --num_train_epochs 4 --lbe_beta 5 --use_cpu".split()
    results = example("resnet").main([*arguments, "--output_dir", str(tmp_path)]).set_index("trainer")
    assert (results["accuracy"] > 0.5).all()
    farthest = (results[["lowest", "highest"]] - 1).abs().max(axis=1)
    assert farthest["LBETrainer"] < farthest["Trainer"]
    hidden_states = example("resnet").main(
        [*arguments[:3], "1", "--use_cpu", "--activations", "hidden_states", "--output_dir", str(tmp_path)]
    )
    assert (hidden_states["highest"] > hidden_states["lowest"]).all()


def test_a_deep_autoencoder_gives_back_more_than_the_mean_image(tmp_path: Path) -> None:
    arguments = "--depths 12 --width 64 --num_train_epochs 25 --learning_rate 2e-3 --use_cpu".split()
    results = example("autoencoder").main([*arguments, "--output_dir", str(tmp_path)]).set_index("trainer")
    assert results["mse"]["Trainer"] > 0.073  # 0.0737: the mean training image
    assert results["mse"]["LBETrainer"] < 0.071
    assert results["ssim"]["LBETrainer"] > results["ssim"]["Trainer"]
    assert (tmp_path / "reconstructions.png").is_file()
