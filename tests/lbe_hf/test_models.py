from types import SimpleNamespace

from tiny import bert
from torch import nn

from lbe_hf.models import base_model, in_data_parallel, transformers_models


def test_only_the_outermost_models_are_found_and_shared_ones_once() -> None:
    model = bert()
    assert transformers_models(model) == {"": model}
    wrapped = nn.ModuleDict({"first": nn.Sequential(model), "again": model, "other": nn.Linear(2, 2)})
    assert transformers_models(wrapped) == {"first.0": model}


def test_base_model() -> None:
    class Peft(nn.Module):
        def get_base_model(self) -> nn.Module:
            return inner

    inner = nn.Linear(2, 2)
    assert base_model(Peft()) is inner
    assert base_model(inner) is inner


def test_several_gpus_copy_a_model_unless_it_is_quantized() -> None:
    one, two = SimpleNamespace(n_gpu=1), SimpleNamespace(n_gpu=2)
    assert [in_data_parallel(args, nn.Linear(2, 2)) for args in (one, two)] == [False, True]
    assert in_data_parallel(one, nn.DataParallel(nn.Linear(2, 2)))
    quantized = nn.Linear(2, 2)
    quantized.is_loaded_in_8bit = True
    assert not in_data_parallel(two, quantized)
