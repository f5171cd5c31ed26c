import pytest
import torch

from lbe_hf.activations import Activation, Recording
from lbe_hf.penalty import Penalty
from lbe_hf.reporting import Reporter
from lbe_hf.targets import LearnableTargets
from lbe_hf.training_args import LBEArguments


@pytest.mark.parametrize("form", ["product", "additive"])
def test_penalty_is_added_and_its_share_is_what_is_not_task_loss(form: str) -> None:
    torch.manual_seed(0)
    settings = LBEArguments(lbe_beta=2.0, lbe_form=form)
    targets = LearnableTargets(1, alpha=0.5, alpha_min=0.2, beta=2.0)
    weight = torch.nn.Parameter(torch.randn(8, 4))
    x = weight * 3
    recording = Recording(passes=[[Activation.of("layer", x, None)]])
    task_loss = torch.tensor(1.5)
    penalty = Penalty(settings, targets, Reporter(prints=False), batch_size=8)
    loss, measured = penalty.add(task_loss, recording, steps=2)
    entropy = (0.5 * torch.log1p(torch.pi * torch.e * x.var(0))).mean()
    value = 2.0 * (entropy - 0.5) ** 2
    expected = 1.5 * (1 + value) if form == "product" else 1.5 + value / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert measured.entropies.tolist() == pytest.approx([entropy.item()], rel=1e-5)
    assert penalty.share(loss, measured, steps=2).item() == pytest.approx(loss.item() - 1.5, rel=1e-4)
