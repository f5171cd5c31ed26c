"""Push a finished run to the Hub: `python -m glue_runs.push OUTPUT_DIR`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import CONFIG_NAME
from transformers.utils import logging

from lbe_hf.model_card import name_card

from ..errors import InputError
from ..redaction import redact, report_error
from .arguments import FinetuneArguments
from .card import CARD_NAME
from .output import check_holds_one_run, repository
from .parser import Parser
from .record import read_record

logger = logging.get_logger(__name__)

_LEFT_OUT = ["_*", "checkpoint-*", "*/checkpoint-*", "*.tmp"]
_HINTS = {
    401: "the token is missing or not accepted (401): log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there (403): give one that may, or another repository",
}


class NoModelError(InputError):
    """The folder holds no model."""


class PushError(Exception):
    """A push failed; the message gives the reason and how to push later."""


@dataclass
class PushArguments:
    """The repository, and the token to push with."""

    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository. Default: that of the run, else the name of the folder."}
    )
    hub_token: str | None = field(
        default=None, metadata={"help": "Token to push with. Default: HF_TOKEN, or the one of `hf auth login`."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private. Default: as for the run."}
    )
    hub_revision: str | None = field(default=None, metadata={"help": "Branch. Default: that of the run, else main."})


def main(argv: list[str] | None = None) -> int:
    """Push a run; return 0, or after one line on stderr 1 if the push failed and 2 for input that cannot be pushed."""
    parser = Parser(PushArguments, prog="python -m glue_runs.push")
    parser.add_argument("folder", help="Output folder of a run, with its model.")
    given = vars(parser.parse_args(argv))
    return push_and_report(Path(given.pop("folder")), PushArguments(**given))


def push_and_report(folder: Path, options: PushArguments) -> int:
    """`push`, and print the result in one line; the exit code is as for `main`."""
    try:
        print(f"pushed to {push(folder, options)}")
    except (InputError, OSError, PushError) as error:
        return report_error(error, 1 if isinstance(error, PushError) else 2, options.hub_token)
    return 0


def push(folder: Path, options: PushArguments) -> str:
    """Create the repository if necessary, upload the folder without its checkpoints, and return the URL.

    Raises:
        NoModelError: the folder holds no model.
        InputError: a file in it is a link, it contains checkpoints of another run, or its record is damaged.
        PushError: the Hub cannot be reached or refuses the push, or the run diverged.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise NoModelError(f"{folder} holds no model: give the output folder of a run that has kept its model.")
    link = _first_link(folder)
    if link is not None:
        raise InputError(f"{link} is a link, and links are not pushed: replace it by a copy.")
    check_holds_one_run(folder)
    record = read_record(folder) or {"config": {}, "diverged": False}
    if record["diverged"]:
        raise PushError(f"{folder} was not pushed: its run diverged, and its model is of no use.")
    config = record["config"]
    chosen = {name: _chosen(options, config, name) for name in ("hub_model_id", "hub_private_repo", "hub_revision")}
    repo = repository(chosen["hub_model_id"], folder)
    api = HfApi(token=options.hub_token, library_name="lbe_hf")
    try:
        url = api.create_repo(repo, private=chosen["hub_private_repo"], exist_ok=True)
        name_card(folder / CARD_NAME, url.repo_id)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message="End of training",
            ignore_patterns=list(_LEFT_OUT),
            revision=chosen["hub_revision"],
        )
    except HFValidationError as error:
        raise InputError(" ".join(str(error).split())) from error
    except Exception as error:  # of HTTP, of the network, of Xet: the folder can be pushed later
        given = {name: str(value) for name, value in (chosen | {"hub_model_id": repo}).items() if value is not None}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        later = shlex.join(["python", "-m", "glue_runs.push", str(folder), *words])
        raise PushError(
            f"{repo} was not pushed: {_reason(error, api.endpoint)}. The result is safe in {folder}; "
            f"push it later with `{later}`."
        ) from error
    return str(url)


def hub_is_ready(args: FinetuneArguments) -> bool:
    """Create the repository of a run; False, with a warning, if that fails: the run itself goes ahead."""
    repo = repository(args.hub_model_id, args.output_dir)
    try:
        HfApi(token=args.hub_token).create_repo(repo, private=args.hub_private_repo, exist_ok=True)
    except HFValidationError as error:
        raise InputError(" ".join(str(error).split())) from error
    except Exception as error:
        reason = redact(_reason(error, HfApi().endpoint), args.hub_token)
        logger.warning(f"Nothing is pushed during training: {reason}. The push is tried again at the end.")
        return False
    return True


def _first_link(folder: Path) -> Path | None:
    """The folder if it is a link, else the first link among the files to upload."""
    if folder.is_symlink():
        return folder
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink())
    uploaded = (name for name in names if not any(fnmatch(name, pattern) for pattern in _LEFT_OUT))
    return next((folder / name for name in uploaded), None)


def _chosen(options: PushArguments, config: dict[str, Any], name: str) -> Any:
    given = getattr(options, name)
    recorded = config.get(name)
    return recorded if given is None and recorded != "None" else given


def _reason(error: BaseException, endpoint: str) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    message = " ".join(str(error if cause is None else cause).split())
    return (
        f"{endpoint} answers: {_HINTS.get(status, message)}"
        if status
        else f"{endpoint}: {message or type(error).__name__}"
    )
