"""What a model says on the Hub of the regularization it was trained with."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined
from torch import nn
from transformers import PreTrainedTokenizerBase

from .activations import base_model
from .training_args import LBEArguments

TAGS = ("lbe_hf", "layerwise-batch-entropy")
PICTURE_NAME = "lbe_entropy.png"

_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_SIGNATURE = re.compile(r"\n*<!-- written by lbe_hf, (\w+) -->\n*\Z")


@dataclass
class LBESummary:
    """How a model was regularized, for its card.

    Args:
        settings: what it was trained with.
        layers: names of the regularized activations; empty if it was not trained yet.
        alphas: learnable numbers behind the targets, as they are now, one a layer.
        entropies: batch entropy of each layer as logged last, in nats; empty if there is none.
        first_entropies: the same as logged first, where each line of the log has it.
        usage: code that loads the model.
    """

    settings: LBEArguments
    layers: Sequence[str] = ()
    alphas: Sequence[float] = ()
    entropies: Sequence[float] = ()
    first_entropies: Sequence[float] = ()
    usage: str = ""
    targets: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.targets = [max(abs(alpha), self.settings.lbe_alpha_min) for alpha in self.alphas]


def add_lbe_section(path: Path, summary: LBESummary) -> None:
    """Add to the card at `path` the section on the regularization, its tags and, with matplotlib, its picture."""
    card = ModelCard.load(path)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    picture = draw_entropy(path.with_name(PICTURE_NAME), summary)
    save_card(card, path, _section(summary, picture))


def render(template: Path, **values: Any) -> str:
    """Text of a section of a card; an error if the template names a value that is not given."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def save_card(card: ModelCard, path: Path, section: str = "") -> None:
    """Write the card, with one more section at its end.

    It ends with a signature, a comment by which `keep_own_card` knows it again.
    """
    card.text = f"{_SIGNATURE.sub('', card.text).rstrip()}\n\n{section}".rstrip()
    card.text += f"\n\n<!-- written by lbe_hf, {_digest(card)} -->\n"
    card.save(path)


def name_card(path: Path, name: str) -> None:
    """Let a generated card at `path` load the model by this name; one that somebody edited stays as it is."""
    if path.is_file() and _is_generated(path.read_text(encoding="utf-8")):
        card = ModelCard.load(path)
        card.text = re.sub(r'from_pretrained\("[^"]*"\)', f'from_pretrained("{name}")', card.text)
        save_card(card, path)


def keep_own_card(path: Path, model: nn.Module) -> Path | None:
    """Copy a card that somebody wrote or edited, before it is overwritten.

    Args:
        path: where the card is, if there is one.
        model: what was trained; a PEFT model writes a card of its own whenever it is saved, which is not copied.

    Returns:
        The copy, `README-own.md` beside it or the next free name; None if there is nothing to keep.
    """
    if not path.is_file():
        return None
    content = path.read_text(encoding="utf-8")
    if not content.strip() or _is_generated(content) or content == _card_of_peft(model):
        return None
    copies = [path.with_name(f"{path.stem}-own{number}{path.suffix}") for number in ("", *range(2, 1000))]
    for copy in copies:
        if not copy.exists():
            shutil.copy(path, copy)
            return copy
        if copy.read_text(encoding="utf-8") == content:
            return copy
    raise FileExistsError(f"{path.parent} holds {len(copies)} copies of README.md: delete some.")


def usage(model: nn.Module, processing_class: Any, name: str) -> str:
    """Code that loads a Transformers model, and its tokenizer if it has one, from the Hub by its name."""
    cls = type(base_model(model)).__name__
    auto_class = "AutoModel" + cls[cls.find("For") :]
    model_class = auto_class if "For" in cls and hasattr(transformers, auto_class) else cls
    classes, lines = [model_class], [f'model = {model_class}.from_pretrained("{name}")']
    if isinstance(processing_class, PreTrainedTokenizerBase):
        classes.append("AutoTokenizer")
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{name}")')
    return "\n".join([f"from transformers import {', '.join(classes)}", *lines])


def draw_entropy(path: Path, summary: LBESummary) -> str | None:
    """Picture of the entropy of each layer beside its target; its name, or None without matplotlib or entropies."""
    if not summary.entropies or importlib.util.find_spec("matplotlib") is None:
        return None
    from .figures import draw_targets

    targets = summary.targets if summary.settings.lbe_beta > 0 else []
    draw_targets(summary.layers, summary.entropies, targets, summary.first_entropies).savefig(path, dpi=150)
    return path.name


def _section(summary: LBESummary, picture: str | None) -> str:
    modules = summary.settings.lbe_target_modules
    names = [modules] if isinstance(modules, str) else modules or []
    # A vertical line ends a cell of a table, in code, too.
    activations = ", ".join(f"`{name}`".replace("|", r"\|") for name in names) or "hidden states"
    return render(_TEMPLATE, **vars(summary), activations=activations, picture=picture)


def _digest(card: ModelCard) -> str:
    # Without the tags, which PEFT replaces in every card it finds.
    data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    data.pop("tags", None)
    text = _SIGNATURE.sub("", card.text).strip()
    return hashlib.sha256(json.dumps([data, text], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _is_generated(content: str) -> bool:
    signature = _SIGNATURE.search(content)
    try:
        return signature is not None and signature[1] == _digest(ModelCard(content))
    except ValueError:  # somebody damaged the metadata
        return False


def _card_of_peft(model: nn.Module) -> str | None:
    if not hasattr(model, "create_or_update_model_card"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        model.create_or_update_model_card(folder)  # type: ignore[operator]
        return Path(folder, "README.md").read_text(encoding="utf-8")
