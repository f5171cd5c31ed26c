"""The command `python -m glue_runs.finetune`: one run, its record, its card and its push."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lbe_hf.checks import FirstBatchError

from ..files import write_json
from ..redaction import report_error
from ..tasks.glue import get_task
from .arguments import DataArguments, FinetuneArguments, ModelArguments, defining_settings, parse
from .card import write_card
from .checkpoints import DamagedCheckpointError
from .checks import check_first_batch, check_processes
from .output import begin, check_holds_one_run, check_is_own
from .push import PushArguments, push_and_report
from .record import RESULT_NAME
from .run import prepare, run


def main(argv: list[str] | None = None) -> int:
    """Do a run, save its record and its card, and push it if that is asked for.

    Returns 0, or after one line on standard error 1 if a file could not be written or the push failed, 2 for input
    that cannot be used, and 130 after Ctrl-C.
    """
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("Stopped; --resume_from_checkpoint last resumes from the last checkpoint.", file=sys.stderr)
        return 130


def _main(argv: list[str]) -> int:
    hub_token = None
    try:
        model_args, data_args, args = parse(argv)
        check_processes(args)
        wants_push, hub_token = args.push_to_hub, args.hub_token
        settings = defining_settings(model_args, data_args, args)
        check_is_own(str(args.output_dir), args.resume_from_checkpoint, settings)
        if wants_push:
            check_holds_one_run(str(args.output_dir))
        trainer, splits = prepare(model_args, data_args, args)
        check_first_batch(trainer)
    except Exception as error:
        return report_error(error, 2, hub_token)
    try:
        if trainer.is_world_process_zero():
            begin(str(args.output_dir), settings)
        record = run(trainer, splits, get_task(data_args.task_name))
        if trainer.is_world_process_zero():
            write_json(Path(str(args.output_dir)) / RESULT_NAME, record)
            _print_record(record, model_args, data_args, args)
        write_card(trainer, model_args, data_args, args, record["metrics"])
    except DamagedCheckpointError as error:
        return report_error(f"{error}: give an older one, or start without --resume_from_checkpoint.", 2, hub_token)
    except FirstBatchError as error:
        return report_error(error, 2, hub_token)
    except (OSError, SafetensorError) as error:
        return report_error(error, 1, hub_token)
    if not (wants_push and trainer.is_world_process_zero()):
        return 0
    return push_and_report(Path(str(args.output_dir)), PushArguments(hub_token=hub_token))


def _print_record(
    record: dict[str, Any], model_args: ModelArguments, data_args: DataArguments, args: FinetuneArguments
) -> None:
    print(f"\n{data_args.task_name}, {model_args.model_name_or_path}, lbe_beta {args.lbe_beta}, seed {args.seed}")
    for name, metrics in record["metrics"].items():
        print(f"{name:>15}: {', '.join(f'{metric} {value:.4f}' for metric, value in metrics.items())}")
    if record["diverged"]:
        print("The run has diverged: a weight or a loss is not finite, and the scores are meaningless.")
    print(f"model and {RESULT_NAME} saved to {args.output_dir}")
