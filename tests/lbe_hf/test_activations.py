from typing import Any

import pytest
import torch
from tiny import batch, bert, llama, token_rows
from torch import Tensor, nn
from transformers import BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from lbe_hf import LBETrainer
from lbe_hf.activations import Recording
from lbe_hf.hidden_states import HiddenStates
from lbe_hf.target_modules import TargetModules


def names(model: nn.Module, targets: Any) -> list[str]:
    with TargetModules(model, targets).listen() as recording:
        model(**batch(token_rows(4)))
    (activations,) = recording.passes
    return [activation.name for activation in activations]


def test_hidden_states_are_those_the_model_returns() -> None:
    model, inputs = bert(), batch(token_rows(4))
    source = HiddenStates(model)
    with source.listen() as recording:
        outputs = model(**inputs)
    (activations,) = recording.passes
    expected = model(**inputs, output_hidden_states=True).hidden_states
    assert source.expected == len(activations) == len(expected) == 4
    for activation, state in zip(activations, expected, strict=True):
        assert torch.equal(activation.value, state)
        assert torch.equal(activation.mask, inputs["attention_mask"] == 1)  # type: ignore[arg-type]
        assert activation.fitting_mask is not None
    assert list(outputs) == ["loss", "logits"]


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({}, {}),
        ({"return_dict": False}, {}),
        ({"output_hidden_states": True}, {}),
        ({}, {"output_hidden_states": True}),
        ({"output_hidden_states": True}, {"output_hidden_states": False, "return_dict": False}),
    ],
)
def test_outputs_are_what_the_caller_asked_for(config: dict[str, Any], asked: dict[str, Any]) -> None:
    model, inputs = bert(**config), batch(token_rows(4))
    plain = model(**inputs, **asked)
    with HiddenStates(model).listen() as recording:
        ours = model(**inputs, **asked)
    assert type(ours) is type(plain)
    assert len(ours) == len(plain)
    assert len(recording.passes[0]) == 4


def test_the_forward_of_the_model_is_left_as_it_was() -> None:
    model = bert()
    replaced = model.forward
    with pytest.raises(KeyboardInterrupt), HiddenStates(model).listen():
        raise KeyboardInterrupt
    assert "forward" not in vars(model)
    model.forward = replaced  # as a library does it
    with TargetModules(model, ["pooler"]).listen():
        model(**batch(token_rows(4)))
    assert vars(model)["forward"] is replaced


def test_passes_without_gradient_are_not_counted() -> None:
    model, inputs = bert(), batch(token_rows(4))
    for source in (HiddenStates(model), TargetModules(model, ["pooler"])):
        with source.listen() as recording:
            model(**inputs)
            with torch.no_grad():
                model(**inputs)
            model(**inputs)
        assert (len(recording.passes), recording.without_gradient) == (2, 1)
        assert len({len(activations) for activations in recording.passes}) == 1
        with pytest.raises(ValueError, match="only with gradients disabled"), source.listen(), torch.no_grad():
            model(**inputs)
        with source.listen(with_gradient=False) as recording, torch.no_grad():
            model(**inputs)
        assert len(recording.passes) == 1


def test_forward_that_is_called_without_hooks() -> None:
    """As PEFT's LoRA and sentence-transformers call it."""
    model, inputs = bert(), batch(token_rows(4))
    for source in (HiddenStates(model), TargetModules(model, ["pooler"])):
        with source.listen() as recording:
            model.forward(**inputs)
        assert len(recording.passes) == 1


def test_several_models_in_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = bert().bert, bert().bert

        def forward(self, left: Any, right: Any) -> Tensor:
            result: Tensor = self.left(**left).pooler_output + self.right(**right).pooler_output
            return result

    rows = batch(token_rows(4))
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    source = HiddenStates(Two())
    model = Two()
    source = HiddenStates(model)
    with source.listen() as recording:
        model(inputs, inputs)
    assert source.expected == 8
    assert [activations[-1].name for activations in recording.passes] == [
        "left.hidden_states[3]",
        "right.hidden_states[3]",
    ]


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
    model = bert()
    source = TargetModules(model, ["output.dense"])

    def interrupted() -> None:
        with source.listen():
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
    with TargetModules(model, ["layer"]).listen() as recording:
        model(torch.randn(4, 3))
    ((first, second),) = recording.passes
    assert (first.name, second.name) == ("layer", "layer (call 2)")
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
    with pytest.raises(ValueError, match="does not return a floating point tensor"), source.listen():
        model[0]()


@pytest.mark.parametrize("value", [0.5, torch.distributions.Normal(0.0, 1.0)])
def test_module_with_an_output_of_another_type(value: Any) -> None:
    model = nn.Sequential(nn.Identity())
    with (
        pytest.raises(ValueError, match="does not return a floating point tensor"),
        TargetModules(model, ["0"]).listen(),
    ):
        model[0](value)


def test_a_loss_that_calls_parts_of_the_model() -> None:
    """Their mask is that of the batch, and one round of calls is one pass."""
    model, inputs = bert(), batch(token_rows(4, length=8))
    ids, real = inputs["input_ids"], inputs["attention_mask"] == 1
    source = TargetModules(model, ["layer.0.output", "layer.1.output"])
    with source.listen(inputs) as recording:
        for _ in range(2):
            model.bert(input_ids=ids)
        model(input_ids=ids)
    assert [[activation.name[-14:] for activation in each] for each in recording.passes] == [
        ["layer.0.output", "layer.1.output"]
    ] * 3
    assert all(torch.equal(activation.mask, real) for each in recording.passes for activation in each)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was not called as a whole: name"), HiddenStates(model).listen():
        model.bert(input_ids=ids)


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
    with source.listen() as recording:
        model(**inputs)
    (activations,) = recording.passes
    assert source.expected == len(activations) == 4 + 3
    real = inputs["attention_mask"] == 1
    assert all(torch.equal(activation.mask, real) for activation in activations[:4])  # type: ignore[arg-type]
    assert all(torch.equal(activation.mask, labels != -100) for activation in activations[4:])  # type: ignore[arg-type]
    assert all(activation.fitting_mask is not None for activation in activations)
    with TargetModules(model, ["encoder.block.0", "decoder.block.0"]).listen() as recording:
        model(**inputs)
    ((encoder, decoder),) = recording.passes
    assert torch.equal(encoder.mask, real)  # type: ignore[arg-type]
    assert torch.equal(decoder.mask, labels != -100)  # type: ignore[arg-type]
    # The label smoother keeps the labels from the model.
    unlabelled = {**inputs, "decoder_input_ids": labels.clamp(min=0)}
    del unlabelled["labels"]
    for source in (HiddenStates(model), TargetModules(model, ["decoder.block.0"])):
        with source.listen({"labels": labels}) as recording:
            model(**unlabelled)
        assert torch.equal(recording.passes[0][-1].mask, labels != -100)  # type: ignore[arg-type]


def test_decoder_mask_is_taken_before_the_labels() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    recording = Recording()
    assert recording.padding_masks({"decoder_attention_mask": mask, "labels": torch.zeros(2, 3)}.get)[1].all()  # type: ignore[union-attr]
    assert recording.padding_masks({"labels": torch.zeros(2)}.get) == (None, None)
    assert recording.unreadable_mask is None
    assert recording.padding_masks({"attention_mask": {"full": mask}}.get) == (None, None)
    assert recording.unreadable_mask == "dict"


def test_output_that_is_changed_in_place_is_refused(make_trainer: Any) -> None:
    class Residual(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.layer, self.activation = nn.Linear(3, 3), nn.ReLU(inplace=inplace)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
            return ((self.activation(self.layer(x)) - labels.unsqueeze(1)).square().mean(),)

    rows = [{"x": torch.randn(3), "labels": torch.rand(())} for _ in range(8)]
    with pytest.raises(ValueError, match=r"output of layer was modified in place .* ReLU\(inplace=True\)"):
        make_trainer(LBETrainer, Residual(inplace=True), rows, lbe_target_modules=["layer"]).train()
    make_trainer(LBETrainer, Residual(inplace=True), rows, lbe_target_modules=["activation"]).train()
    make_trainer(LBETrainer, Residual(inplace=False), rows, lbe_target_modules=["layer"]).train()


def test_a_pooled_output_is_not_masked() -> None:
    model = bert(hidden_size=8)  # as wide as the rows are long
    inputs = batch(token_rows(4, length=8))
    with TargetModules(model, ["pooler"]).listen() as recording:
        model(**inputs)
    ((pooled,),) = recording.passes
    assert pooled.value.shape == inputs["attention_mask"].shape
    assert pooled.fitting_mask is None


def test_layers_are_selected_by_index() -> None:
    model, inputs = bert(), batch(token_rows(4))
    with HiddenStates(model).listen() as recording:
        model(**inputs)
    kept = Recording([*recording.passes])
    selected = recording.take([0, -1])
    assert [activation.name for activation in selected] == ["hidden_states[0]", "hidden_states[3]"]
    assert not recording.passes
    with pytest.raises(ValueError, match="names layer 4, but there are 4 activations: use -4 to 3"):
        kept.take([4])


def test_models_without_hidden_states() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Silent(BertForSequenceClassification):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "output_hidden_states": False})

    with pytest.raises(ValueError, match=r"does not take output_hidden_states: .* lbe_target_modules"):
        HiddenStates(Plain())
    model, inputs = Silent(bert().config), batch(token_rows(4))
    source = HiddenStates(model)
    with pytest.raises(ValueError, match=r"Silent returned no hidden states: .* lbe_target_modules"), source.listen():
        model(**inputs)


def test_expected_count_of_a_decoder() -> None:
    assert HiddenStates(llama()).expected == 4
