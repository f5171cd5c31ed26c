"""Steps, padded tokens and tokens per example of one epoch of each task, for the table of `docs/scaling.md`.

python benchmarks/epoch_sizes.py --data_dir path/to/glue
"""

from __future__ import annotations

import argparse
import tempfile

from glue_runs.finetune.arguments import parse
from glue_runs.finetune.run import prepare


def sizes(task: str, data_dir: str, model: str) -> tuple[int, int, int]:
    """Sizes of the training data with the defaults of `glue_runs.finetune`: batches of 32, grouped by length.

    Returns:
        Batches, tokens with padding, and examples.
    """
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--task_name", task, "--model_name_or_path", model, "--data_dir", data_dir, "--output_dir", folder]
        trainer, _ = prepare(*parse(argv))
        shapes = [batch["input_ids"].shape for batch in trainer.get_train_dataloader()]
    return len(shapes), sum(examples * length for examples, length in shapes), sum(examples for examples, _ in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default="minilm", help="tokenizer; MiniLM's is that of bert-base-uncased")
    arguments = parser.parse_args()
    print("| task | steps an epoch | steps a run (5 epochs) | padded tokens an epoch | tokens an example |")
    print("|---|---|---|---|---|")
    for task, name in {"rte": "RTE", "mrpc": "MRPC", "cola": "CoLA"}.items():
        steps, tokens, examples = sizes(task, arguments.data_dir, arguments.model)
        print(f"| {name} | {steps:,} | {5 * steps:,} | {tokens:,} | {tokens / examples:.0f} |")


if __name__ == "__main__":
    main()
