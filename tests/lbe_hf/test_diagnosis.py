import json
import math
import random
import weakref
from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload
from tiny import batch, bert, reference_entropy, token_rows
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lbe_hf import LBETrainer, information_flow


class Narrowing(nn.Module):
    """Each layer scales what it is given by 0.01; batch normalization and dropout stand beside the way."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
        for layer in self.layers:
            layer.weight.data = 0.01 * torch.eye(4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(x)) + self.layers(x)


def rows(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"x": 3 + 2 * torch.randn(4, generator=generator)} for _ in range(count)]


def test_entropies_are_those_of_the_definition_without_dropout() -> None:
    model = bert(dropout=True)
    batches = [batch(token_rows(6, seed=seed)) for seed in range(3)]
    flow = information_flow(model, batches, num_batches=2)
    model.eval()
    expected = [
        [reference_entropy(state, inputs["attention_mask"]).item() for state in states]
        for inputs in batches[:2]
        for states in [model(**inputs, output_hidden_states=True).hidden_states]
    ]
    assert flow.names == [f"hidden_states[{index}]" for index in range(4)]
    assert flow.entropies == pytest.approx(np.mean(expected, axis=0), rel=1e-5)


def test_it_agrees_with_what_a_training_step_logs(make_trainer: Callable[..., Any]) -> None:
    data = token_rows(8)
    flow = information_flow(bert(), [batch(data)], target_modules=["output.dense"])
    trainer = make_trainer(
        LBETrainer, bert(), data, per_device_train_batch_size=8, max_steps=1, lbe_beta=0.0, lbe_log_entropy=True,
        lbe_target_modules=["output.dense"],
    )  # fmt: skip
    trainer.train()
    logged = trainer.state.log_history[0]
    assert flow.names == trainer.lbe_layer_names
    assert flow.entropies == pytest.approx([logged[f"entropy/layer_{index:02d}"] for index in range(6)], rel=1e-5)


def test_a_small_scale_is_no_fault() -> None:
    flow = information_flow(Narrowing(), [batch(rows(16))], target_modules=["layers.0", "layers.1", "layers.2"])
    assert flow.entropies[2] < 1e-3 < flow.entropies[0]
    assert flow.is_healthy


def test_a_layer_that_collapsed_is_named_with_the_module_that_did_it() -> None:
    model = bert()
    with torch.no_grad():
        norm = model.bert.encoder.layer[1].output.LayerNorm
        norm.weight.zero_()
        norm.bias.fill_(0.3)
    flow = information_flow(model, [batch(token_rows(16))])
    assert not flow.is_healthy
    (finding,) = flow.findings
    assert (finding.kind, finding.layer) == ("collapsed", "hidden_states[2]")
    assert "bert.encoder.layer.1.output.LayerNorm has a constant output" in finding.message
    lines = str(flow).splitlines()
    assert lines[1].split()[:2] == ["hidden_states[0]", f"{flow.entropies[0]:.4f}"]
    assert lines[-1] == flow.verdict[0] == str(finding)


def test_a_model_without_hidden_states_shows_its_modules() -> None:
    flow = information_flow(Narrowing(), [batch(rows(16))])
    assert flow.names == ["norm", "layers.0", "layers.1", "layers.2"]


def test_a_model_that_drops_layers_when_it_is_trained_is_measured() -> None:
    torch.manual_seed(0)
    config = transformers.BartConfig(**families.ENCODER_DECODER, encoder_layerdrop=0.5)
    model = transformers.BartForConditionalGeneration(config)
    assert len(information_flow(model, [batch(families.rows_for("Bart"))]).layers) == 4 + 3


def test_all_padding_is_a_finding_and_no_error() -> None:
    inputs = batch(token_rows(8))
    flow = information_flow(bert(), [{**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}])
    assert [finding.kind for finding in flow.findings] == ["data"]
    assert math.isnan(flow.entropies[0])
    json.loads(flow.to_json())  # which has no NaN


def test_nothing_is_held_of_a_model_that_shows_its_modules() -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
                alive.append(weakref.ref(x))
                assert sum(tensor() is not None for tensor in alive) <= 2
            return x

    assert len(information_flow(Chain(), [batch(rows(8))]).layers) == 6


def test_the_forms_say_the_same() -> None:
    flow = information_flow(bert(), [batch(token_rows(16))])
    record = json.loads(flow.to_json())
    assert record == flow.to_dict()
    assert record["healthy"] is True
    assert [layer["batch_entropy"] for layer in record["layers"]] == flow.entropies
    html = flow._repr_html_()
    assert html.count("<tr>") == 1 + len(flow.layers)
    assert all(line in html for line in flow.verdict)
    assert all(f"<td>{entropy:.4f}</td>" in html for entropy in flow.entropies)


def test_batch_normalization_normalizes_by_the_batch() -> None:
    flow = information_flow(Narrowing(), [batch(rows(64))], target_modules=["norm"])
    x = batch(rows(64))["x"].double()
    normalized = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    assert flow.entropies == pytest.approx([reference_entropy(normalized).item()], rel=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_numbers_are_left_as_found(fails: bool) -> None:
    model = Narrowing()
    model.train()
    model.layers.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())

    def collate(items: list[dict[str, Tensor]]) -> Any:
        random.random()
        np.random.rand()
        return "no dictionary" if fails else batch(items)

    loader = DataLoader(rows(16), batch_size=8, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    if fails:
        with pytest.raises(ValueError, match="Batches must be dictionaries"):
            information_flow(model, loader, target_modules=["norm"])
    else:
        information_flow(model, loader, target_modules=["norm"])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="data loader is empty"):
        information_flow(bert(), [])
    with pytest.raises(ValueError, match="two samples for any layer: use batches of two or more examples"):
        information_flow(bert(), [batch(token_rows(1))])
    single_rows = [batch(token_rows(1, seed=seed)) for seed in range(2)]
    assert min(information_flow(bert(), single_rows, samples="token").entropies) > 0


class Average(nn.Module):
    """Replaces a buffer in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
        return y - self.average


class Merging(nn.Linear):
    """As adapters that add to their weights on `eval`, and take it back on `train`."""

    def train(self, mode: bool = True) -> "Merging":
        if mode != self.training:
            self.weight.data += -1 if mode else 1
        return super().train(mode)


def test_buffers_that_are_replaced_and_weights_that_are_merged_are_left_as_found() -> None:
    model = nn.ModuleDict({"average": Average(), "merging": nn.Sequential(Merging(4, 4))}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffer = model["average"].average
    for name, module in model.items():
        information_flow(module, [{"x" if name == "average" else "input": batch(rows(8))["x"]}])
    assert model["average"].average is buffer
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_values_whose_squares_overflow_are_a_finding() -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    for layer in layers[:2]:
        layer.weight.data *= 1e12
    flow = information_flow(layers, [{"input": torch.randn(16, 8)}])
    assert [finding.kind for finding in flow.findings] == ["nonfinite"]
    assert flow.findings[0].layer == "1"
    json.loads(flow.to_json())


class TakesAnything(transformers.PreTrainedModel):
    """A model of one's own, without hidden states."""

    config_class = transformers.BertConfig

    def __init__(self, passes_on: bool) -> None:
        super().__init__(transformers.BertConfig())
        self.passes_on = passes_on
        self.layer = nn.Linear(4, 8)

    def forward(self, x: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"logits": nn.functional.gelu(self.layer(x), **kwargs if self.passes_on else {})}


@pytest.mark.parametrize("passes_on", [False, True])
def test_a_transformers_model_without_hidden_states_shows_its_modules(passes_on: bool) -> None:
    assert information_flow(TakesAnything(passes_on), [batch(rows(16))]).names == ["layer"]


def test_clip_shows_its_modules() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config={**text, "pad_token_id": 1}, vision_config={**size, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(3, 50, (4, 6)), "pixel_values": torch.randn(4, 3, 16, 16)}
    flow = information_flow(transformers.CLIPModel(config), [inputs])
    assert {"text_model.encoder.layers.1.mlp.fc2", "vision_model.encoder.layers.1.mlp.fc2"} <= set(flow.names)


def test_a_mask_that_fits_no_layer_is_a_warning(warnings_of: Callable[[], list[str]]) -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    mask = torch.ones(4, 400, dtype=torch.long)
    mask[1:, 200:] = 0
    inputs = {"input_values": torch.randn(4, 400), "attention_mask": mask}
    model = transformers.Wav2Vec2ForSequenceClassification(config)
    for batches, warnings in (([inputs], 1), ([{"input_values": inputs["input_values"]}], 1)):
        information_flow(model, batches)
        assert len([text for text in warnings_of() if "padding mask does not match the length" in text]) == warnings


def test_samples_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="samples must be one of"):
        information_flow(bert(), [batch(token_rows(8))], samples="tokens")  # type: ignore[arg-type]


class Encoder(nn.Module):
    """PyTorch's own layers, which pack a padded batch into a nested tensor where they may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embed, self.encoder = nn.Embedding(40, 16), nn.TransformerEncoder(layer, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_layers_of_pytorch_with_padding() -> None:
    model, inputs = Encoder(), batch(token_rows(8))
    del inputs["labels"]
    flow = information_flow(model, [inputs], target_modules=["layers.0", "layers.1"])
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        states = []
        for layer in model.eval().encoder.layers:
            layer.register_forward_hook(lambda _module, _args, output: states.append(output))
        model(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    expected = [reference_entropy(state, inputs["attention_mask"]).item() for state in states]
    assert flow.entropies == pytest.approx(expected, rel=1e-5)
    information_flow(model, [inputs])
    assert torch.backends.mha.get_fastpath_enabled()


def test_multiple_choice() -> None:
    """These models flatten (B, choices, T) to (B * choices, T)."""
    torch.manual_seed(0)
    model = transformers.BertForMultipleChoice(bert().config)
    rows = batch(token_rows(12))
    inputs = {name: rows[name].view(6, 2, 8) for name in ("input_ids", "attention_mask")}
    flow = information_flow(model, [inputs])
    states = model.eval()(**inputs, output_hidden_states=True).hidden_states
    expected = [reference_entropy(state, rows["attention_mask"]).item() for state in states]
    assert flow.entropies == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        model.bert.pooler.dense.weight.zero_()
    assert information_flow(model, [inputs]).verdict[0].startswith("Dead units in bert.pooler.dense: 100%")


def test_an_offloaded_model_gives_what_it_gives_in_memory() -> None:
    """accelerate holds its parameters elsewhere, and `meta` tensors in their place."""
    batches = [batch(token_rows(6))]
    expected = information_flow(bert(), batches).entropies
    offloaded = cpu_offload(bert(), execution_device=torch.device("cpu"))
    assert next(offloaded.parameters()).is_meta
    assert information_flow(offloaded, batches).entropies == expected


def test_the_collapse_of_a_tower_of_clip() -> None:
    """CLIP returns no hidden states; its vision tower runs first."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**sizes, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 3}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    inputs = {"input_ids": torch.randint(4, 40, (16, 8)), "pixel_values": torch.randn(16, 3, 16, 16)}
    towers = {name: rf"{name}_model\.encoder\..*" for name in ("vision", "text")}
    for targets in (None, *towers.values()):
        assert information_flow(model, [inputs], target_modules=targets).is_healthy
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight *= 1e-4
    flows = {name: information_flow(model, [inputs], target_modules=targets) for name, targets in towers.items()}
    assert flows["text"].is_healthy
    assert [finding.kind for finding in flows["vision"].findings] == ["collapsed"]
