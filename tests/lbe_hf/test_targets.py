from pathlib import Path

import pytest
import torch

from lbe_hf.targets import TARGETS_NAME, LearnableTargets


def targets(num_layers: int = 2, alpha_min: float = 0.2) -> LearnableTargets:
    return LearnableTargets(num_layers, alpha=0.9, alpha_min=alpha_min, beta=0.5)


def test_the_first_call_decides_which_layers_there_are() -> None:
    own = targets()
    assert own.names == ["layer 0", "layer 1"]
    assert own.order(["a", "b", "c"]) == [0, 1, 2]  # one more than expected
    assert own.names == ["a", "b", "c"]
    assert own.regularizer.alpha.shape == (3,)
    assert own.order(["c", "a", "b"]) == [1, 2, 0]
    with pytest.raises(ValueError, match="missing: c; without a target: d"):
        own.order(["a", "b", "d"])


def test_steps_are_those_of_adam() -> None:
    own = targets()
    own.step(torch.tensor([1.0, -2.0]), learning_rate=0.1)
    torch.testing.assert_close(own.regularizer.alpha.data, torch.tensor([0.8, 1.0]))
    assert own.gradient.tolist() == [0, 0]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    targets().save(tmp_path)
    path = tmp_path / TARGETS_NAME
    for content in (b"", path.read_bytes()[:-4]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{path} is damaged .* or delete the file to resume with the initial"):
            LearnableTargets.read(tmp_path)


def test_saved_and_restored(tmp_path: Path) -> None:
    assert LearnableTargets.read(tmp_path) is None
    own, other = targets(), targets(num_layers=1)
    own.order(["a", "b"])
    own.step(torch.tensor([1.0, -2.0]), learning_rate=0.1)
    own.save(tmp_path)
    stored = LearnableTargets.read(tmp_path)
    assert stored is not None
    other.restore(stored)
    assert other.names == ["a", "b"]
    for one in (own, other):
        one.step(torch.tensor([0.5, 0.5]), learning_rate=0.1)
    assert torch.equal(own.regularizer.alpha, other.regularizer.alpha)
    with pytest.raises(ValueError, match=r"resume with lbe_alpha_min=0\.2"):
        targets(alpha_min=0.85).restore(stored)
    assert [path.name for path in tmp_path.iterdir()] == [TARGETS_NAME]


def test_targets_without_a_step_are_saved_too(tmp_path: Path) -> None:
    targets().save(tmp_path)
    stored = LearnableTargets.read(tmp_path)
    assert stored is not None
    own = targets()
    own.restore(stored)
    assert own.order(["a", "b"]) == [0, 1]
