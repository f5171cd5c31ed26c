"""What a model says on the Hub of the regularization it was trained with."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .models import base_model
from .training_args import LBEArguments

logger = logging.get_logger(__name__)

TAGS = ("lbe_hf", "layerwise-batch-entropy")
PICTURE_NAME = "lbe_entropy.png"

_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_SIGNATURE = re.compile(r"\n*<!-- written by lbe_hf, (\w+) -->\n*")
_SECTION = re.compile(r"\n*<!-- begin lbe_hf -->.*<!-- end lbe_hf -->\n*", re.DOTALL)


@dataclass
class LBESummary:
    """How a model was regularized, for its card.

    Args:
        settings: what it was trained with.
        layers: names of the regularized activations; empty if it was not trained yet.
        alphas: learnable numbers behind the targets, as they are now, one a layer.
        targets: entropies that the layers are steered to, as they are now, in nats.
        entropies: batch entropy of each layer as logged last, in nats; empty if there is none.
        first_entropies: the same as logged first, where each line of the log has it.
        penalized: share of the micro-batches to which the penalty was applied.
        usage: code that loads the model.
    """

    settings: LBEArguments
    layers: Sequence[str] = ()
    alphas: Sequence[float] = ()
    targets: Sequence[float] = ()
    entropies: Sequence[float] = ()
    first_entropies: Sequence[float] = ()
    penalized: float = 1.0
    usage: str = ""


class LBECard:
    """The model card in a folder that a trainer is about to write, which is to get a section on the regularization.

    Made before the trainer writes. Nothing here raises: a push does not fail for its card.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "README.md"
        self._before = self.path.read_bytes() if self.path.is_file() else None

    def keep_own(self, model: nn.Module) -> None:
        """Copy a card that somebody wrote or edited, before the trainer overwrites it."""
        try:
            copy = keep_own_card(self.path, model)
            if copy is not None:
                logger.warning(f"{self.path} was not written by a trainer: its content is kept in {copy.name}.")
        except (OSError, ValueError) as error:
            logger.warning(f"No copy of {self.path} was kept: {error}")

    def complete(self, summarize: Callable[[], LBESummary]) -> None:
        """Add to what the trainer wrote the section on the regularization, tags and, with matplotlib, a figure."""
        if not self.path.is_file():
            return
        try:
            card = ModelCard.load(self.path)
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
            card.text = _SECTION.sub("\n\n", card.text)
            summary = summarize()
            save_card(card, self.path, _section(summary, draw_entropy(self.path.with_name(PICTURE_NAME), summary)))
        except Exception as error:  # of whatever a card may hold
            logger.warning(f"{self.path} has no section on the regularization: {error}")

    def complete_if_written(self, summarize: Callable[[], LBESummary]) -> None:
        """The same, if the trainer wrote a card and none stood there that somebody wrote or edited."""
        written = self.path.is_file() and self.path.read_bytes() != self._before
        if written and (self._before is None or _is_generated(self._before.decode("utf-8", errors="replace"))):
            self.complete(summarize)


def render(template: Path, **values: Any) -> str:
    """Text of a section of a card; an error if the template names a value that is not given."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def save_card(card: ModelCard, path: Path, section: str = "") -> None:
    """Write the card, with one more section at its end.

    It ends with a signature, a comment by which `keep_own_card` knows it again.
    """
    body = _SIGNATURE.sub("\n\n", card.text).rstrip()
    card.text = f"{body}\n\n{section}".rstrip()
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
    """Code that loads a model from the Hub: one of Transformers with its tokenizer, or of sentence-transformers."""
    library = type(model).__module__.partition(".")[0]
    cls = type(base_model(model)).__name__
    if library == "sentence_transformers":
        return f'from {library} import {cls}\n\nmodel = {cls}("{name}")'
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
    section = render(_TEMPLATE, **vars(summary), activations=activations, picture=picture)
    return f"<!-- begin lbe_hf -->\n{section.strip()}\n<!-- end lbe_hf -->"


def _digest(card: ModelCard) -> str:
    # Without the tags, which PEFT replaces in every card it finds.
    data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    data.pop("tags", None)
    text = _SIGNATURE.sub("\n\n", card.text).strip()
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
