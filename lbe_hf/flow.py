"""The command `lbe-flow`: finds collapsed layers of a model on real examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn, get_args

import datasets
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from .diagnosis import InformationFlow, information_flow
from .flow_data import batches, collate_for, load_examples
from .moments import Samples
from .target_modules import parse_targets

_EXAMPLES = """examples:
  lbe-flow google-bert/bert-base-uncased --data RTE/train.tsv --text_columns sentence1 sentence2
  lbe-flow runs/model --data stanfordnlp/imdb --text_columns text --html flow.html
  lbe-flow google/vit-base-patch16-224 --data folder/of/images --json flow.json

exit code: 0 the model is healthy, 1 a fault was found, 2 unusable input
"""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 for a healthy model, 1 for a fault, 2 with one line on standard error for unusable input."""
    args = _parser().parse_args(argv)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        flow = _measure(args)
        for path, text in ((args.json, flow.to_json), (args.html, flow.to_html)):
            if path is not None:
                path.write_text(text(), encoding="utf-8")
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        return _unusable(str(error) or type(error).__name__)
    except Exception as error:  # of a model that these examples do not fit, or a library that they confuse
        return _unusable(f"{args.model} cannot be measured on {args.data}: {type(error).__name__}: {error}")
    print(flow)
    return 0 if flow.is_healthy else 1


def _unusable(reason: str) -> int:
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage."""
        self.exit(2, f"error: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lbe-flow",
        description="Measures the information flow through the layers of a model on examples, and prints a verdict.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="Folder, or name of a model on the Hub.")
    parser.add_argument(
        "--data",
        required=True,
        help="File (.tsv, .csv, .json, .jsonl, .parquet), folder of images or audio files, or dataset on the Hub.",
    )
    parser.add_argument(
        "--split",
        default="train",
        help="Split of a dataset on the Hub or of a folder with several (default: train).",
    )
    parser.add_argument("--config_name", help="Configuration of a dataset on the Hub.")
    parser.add_argument("--text_columns", nargs="+", metavar="COLUMN", help="One or two text columns.")
    parser.add_argument(
        "--target_modules", help="Regular expression, or JSON list of module names (default: the hidden states)."
    )
    parser.add_argument(
        "--samples",
        choices=get_args(Samples),
        default="sequence",
        help="What the variance runs over: examples (default) or tokens.",
    )
    parser.add_argument("--batch_size", type=_positive, default=32, help="Examples per batch (default: 32).")
    parser.add_argument("--num_batches", type=_positive, default=4, help="Batches to average over (default: 4).")
    parser.add_argument("--max_length", type=_positive, default=128, help="Maximum tokens per text (default: 128).")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="Write the measurement and the verdict to this file."
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="Write a page to this file; its figure needs matplotlib."
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text}")
    return int(text)


def _measure(args: argparse.Namespace) -> InformationFlow:
    for path in (args.json, args.html):
        if path is not None and not path.resolve().parent.is_dir():
            raise ValueError(f"The folder of {path} does not exist: create it first.")
    targets = None if args.target_modules is None else parse_targets(args.target_modules)
    examples = load_examples(args.data, args.batch_size * args.num_batches, split=args.split, name=args.config_name)
    config = AutoConfig.from_pretrained(args.model)
    collate = collate_for(args.model, config, examples, args.text_columns, args.max_length)
    model = _load(args.model, config)
    return information_flow(
        model,
        (_in_dtype(batch, model.dtype) for batch in batches(examples, args.batch_size, collate)),
        target_modules=targets,
        num_batches=args.num_batches,
        samples=args.samples,
    )


def _in_dtype(batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch with sounds and images in the precision in which the model was saved."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def _load(name: str, config: PretrainedConfig) -> Any:
    """The model, including the head it was saved with. Warns of weights that its files do not have.

    Raises:
        ValueError: the files are damaged, or have none of its weights.
    """
    saved_as = getattr(transformers, (config.architectures or [""])[0], AutoModel)
    try:
        model, loaded = saved_as.from_pretrained(name, config=config, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"The weights of {name} are damaged: {error}") from error
    missing, own = sorted(loaded["missing_keys"]), {key for key, _ in model.named_parameters()}
    if own and own <= set(missing):
        raise ValueError(
            f"The files of {name} have none of the weights of {saved_as.__name__}: their names, as "
            f"{next(iter(sorted(loaded['unexpected_keys'])), 'none')}, should be as {missing[0]}."
        )
    if missing:
        listed = shorten(", ".join(missing), width=200, placeholder=" ...")
        print(f"warning: {name} does not have these weights, which are random now: {listed}", file=sys.stderr)
    return model


if __name__ == "__main__":
    sys.exit(main())
