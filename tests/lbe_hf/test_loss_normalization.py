from typing import Any

import tiny
import torch
from tiny import bert, llama
from torch import Tensor, nn

from lbe_hf import LBETrainer
from lbe_hf.loss_scale import ignores_num_items


def test_which_losses_are_normalized_by_items(tmp_path: Any) -> None:
    class Sub(type(llama())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Own(nn.Module):
        def forward(self, x: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
            return x.sum() / num_items_in_batch

    for model in (llama(), Sub(llama().config), Own()):
        assert not ignores_num_items(model)
    assert ignores_num_items(bert())
    assert LBETrainer(torch.compile(llama()), args=tiny.arguments(output_dir=str(tmp_path))).model_accepts_loss_kwargs
