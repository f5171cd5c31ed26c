from typing import Any

import pytest
import torch
from tiny import batch, bert, llama, token_rows
from torch import Tensor, nn
from transformers import BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from lbe_hf.activations import HiddenStates, TargetModules, padding_masks, select


def names(model: nn.Module, targets: Any) -> list[str]:
    source = TargetModules(model, targets)
    inputs = batch(token_rows(4))
    with source.listen(inputs) as requesting:
        outputs = model(**requesting)
    return [activation.name for activation in source.collect(outputs, inputs)]


def test_hidden_states_are_those_the_model_returns() -> None:
    model, inputs = bert(), batch(token_rows(4))
    source = HiddenStates(model)
    with source.listen(inputs) as requesting:
        outputs = model(**requesting)
    activations = source.collect(outputs, inputs)
    expected = model(**inputs, output_hidden_states=True).hidden_states
    assert source.expected == len(activations) == len(expected) == 4
    for activation, state in zip(activations, expected, strict=True):
        assert torch.equal(activation.value, state)
        assert activation.mask is inputs["attention_mask"]
        assert activation.mask_fits
    assert list(source.restore(outputs)) == ["loss", "logits"]


def test_outputs_are_given_back_as_the_model_returns_them() -> None:
    for config in ({"return_dict": False}, {"output_hidden_states": True}):
        model, inputs = bert(**config), batch(token_rows(4))
        plain = model(**inputs)
        source = HiddenStates(model)
        with source.listen(inputs) as requesting:
            restored = source.restore(model(**requesting))
        assert type(restored) is type(plain)
        assert len(restored) == len(plain)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["output.dense"], 6),  # the attention's and the feed-forward's, in each of 3 layers
        (["bert.pooler"], 1),
        (["dense"], 10),
        (["pooler", "classifier"], 2),
        (["put.dense"], 0),  # a suffix ends at a dot
        (r"bert\.encoder\.layer\.\d+\.output\.dense", 3),
        (r"encoder\.layer\.\d+\.output\.dense", 0),  # a pattern matches the whole name
        (r".*\.layer\.[01]", 2),
    ],
)
def test_target_modules_follow_the_rules_of_peft(targets: Any, expected: int) -> None:
    peft = pytest.importorskip("peft")
    model = bert()
    config = peft.LoraConfig(target_modules=targets)
    theirs = [
        name
        for name, _ in model.named_modules()
        if name and peft.tuners.tuners_utils.check_target_module_exists(config, name)
    ]
    if not expected:
        assert not theirs
        with pytest.raises(ValueError, match="matches no module"):
            TargetModules(model, targets)
        return
    assert sorted(names(model, targets)) == sorted(theirs)
    assert len(theirs) == expected


def test_no_match_names_the_nearest_modules() -> None:
    with pytest.raises(ValueError, match=r"nearest names are \[.*'bert.pooler'"):
        TargetModules(bert(), ["poooler"])


def test_hooks_exist_only_while_listening() -> None:
    model, inputs = bert(), batch(token_rows(4))
    source = TargetModules(model, ["output.dense"])

    def interrupted() -> None:
        with source.listen(inputs):
            assert sum(len(module._forward_hooks) for module in model.modules()) == 6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(self.layer(x))
            return result

    model = Twice()
    source = TargetModules(model, ["layer"])
    with source.listen({}):
        output = model(torch.randn(4, 3))
    first, second = source.collect(output, {})
    assert torch.equal(model.layer(first.value), second.value)


def test_modules_that_return_tuples_and_dictionaries() -> None:
    model = bert(output_attentions=True)
    assert names(model, ["layer.0", "encoder"]) == ["bert.encoder.layer.0", "bert.encoder"]


def test_module_that_is_never_called() -> None:
    model = bert()
    model.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="called none of the modules"):
        names(model, ["spare"])


def test_module_without_a_tensor() -> None:
    class Nothing(nn.Module):
        def forward(self) -> None:
            return None

    model = nn.Sequential(Nothing())
    source = TargetModules(model, ["0"])
    with pytest.raises(ValueError, match="returns no tensor"), source.listen({}):
        model[0]()


def test_encoder_and_decoder_have_their_own_masks() -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=2, num_heads=2, vocab_size=40,
                 decoder_start_token_id=0)
    )  # fmt: skip
    inputs = batch(token_rows(4, length=8))
    labels = torch.randint(4, 40, (4, 6))
    labels[2:, 4:] = -100
    inputs = {**inputs, "labels": labels}
    source = HiddenStates(model)
    with source.listen(inputs) as requesting:
        outputs = model(**requesting)
    activations = source.collect(outputs, inputs)
    assert source.expected == len(activations) == 4 + 3
    assert all(activation.mask is inputs["attention_mask"] for activation in activations[:4])
    assert all(torch.equal(activation.mask, labels != -100) for activation in activations[4:])  # type: ignore[arg-type]
    assert all(activation.mask_fits for activation in activations)
    modules = TargetModules(model, ["encoder.block.0", "decoder.block.0"])
    with modules.listen(inputs):
        model(**inputs)
    encoder, decoder = modules.collect(None, inputs)
    assert encoder.mask is inputs["attention_mask"]
    assert torch.equal(decoder.mask, labels != -100)  # type: ignore[arg-type]


def test_decoder_mask_is_taken_before_the_labels() -> None:
    mask = torch.ones(2, 3)
    inputs = {"decoder_attention_mask": mask, "labels": torch.zeros(2, 3)}
    assert padding_masks(inputs) == (None, mask)
    assert padding_masks({"attention_mask": torch.ones(2, 1, 3, 3), "labels": torch.zeros(2)}) == (None, None)


def test_a_pooled_output_is_not_masked() -> None:
    model = bert(hidden_size=8)  # as wide as the rows are long
    source, inputs = TargetModules(model, ["pooler"]), batch(token_rows(4, length=8))
    with source.listen(inputs):
        model(**inputs)
    (pooled,) = source.collect(None, inputs)
    assert pooled.value.shape == inputs["attention_mask"].shape
    assert not pooled.mask_fits


def test_layers_are_selected_by_index() -> None:
    model, inputs = bert(), batch(token_rows(4))
    source = HiddenStates(model)
    with source.listen(inputs) as requesting:
        activations = source.collect(model(**requesting), inputs)
    assert [a.name for a in select(activations, [0, -1])] == ["hidden_states[0]", "hidden_states[3]"]
    with pytest.raises(ValueError, match="names layer 4, but there are 4 activations: use -4 to 3"):
        select(activations, [4])


def test_models_without_hidden_states() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Silent(BertForSequenceClassification):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "output_hidden_states": False})

    with pytest.raises(ValueError, match=r"takes no output_hidden_states: .* lbe_target_modules"):
        HiddenStates(Plain())
    model, inputs = Silent(bert().config), batch(token_rows(4))
    source = HiddenStates(model)
    with source.listen(inputs) as requesting, pytest.raises(ValueError, match="Silent returned no hidden states"):
        source.collect(model(**requesting), inputs)


def test_expected_count_of_a_decoder() -> None:
    assert HiddenStates(llama()).expected == 4
