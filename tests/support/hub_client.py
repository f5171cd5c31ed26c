"""Clients of the Hub in processes of their own: `huggingface_hub` reads its settings when it is imported."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hub_server import TOKEN, Hub

_MAINS = """
import importlib, json, sys
for module, argv in json.loads(sys.argv[1]):
    try:
        code = importlib.import_module(module).main(argv)
    except SystemExit as stop:
        code = stop.code
    for stream in (sys.stdout, sys.stderr):
        print(f"\\n<exit code {code}>", file=stream, flush=True)
"""

_PULL = """
import sys
sys.modules["lbe_hf"] = sys.modules["glue_runs"] = None  # as where they are not installed
import torch
from transformers import AutoModelForSequenceClassification
repo, output = sys.argv[1:]
model, loading = AutoModelForSequenceClassification.from_pretrained(repo, output_loading_info=True)
problems = [name for name, found in loading.items() if found]
torch.manual_seed(0)
ids = torch.randint(5, 30, (4, 8))
with torch.no_grad():
    logits = model.eval()(input_ids=ids).logits
torch.save({"problems": problems, "logits": logits, "class": type(model).__name__}, output)
"""


@dataclass
class Ended:
    code: int
    stdout: str
    stderr: str


def run_mains(hub: Hub, folder: Path, *commands: str, **environment: Any) -> list[Ended]:
    """Run `module argument argument ...`, one after the other, in one process in `folder`, as a user would."""
    arguments = json.dumps([(command.split()[0], command.split()[1:]) for command in commands])
    ended = run_script(hub, folder, _MAINS, arguments, **environment)
    printed, codes = [], []
    for stream in (ended.stdout, ended.stderr):
        first, *rest = stream.split("\n<exit code ")
        printed.append([first, *(part.partition(">\n")[2] for part in rest)])
        codes = [int(part.partition(">\n")[0]) for part in rest]
    assert len(codes) == len(commands), ended.stderr
    return [Ended(code, *texts) for code, *texts in zip(codes, *printed, strict=False)]


def run_script(hub: Hub, folder: Path, script: str, *arguments: str, **environment: Any) -> Ended:
    """Run Python code in a process in `folder`; `environment` is that of `Hub.environment`."""
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"OMP_NUM_THREADS": "1", **hub.environment(folder / "home", **environment)},
        **{"cwd": folder, "capture_output": True, "text": True, "check": False, "timeout": 120},
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def pull(hub: Hub, cache: Path, name: str, **environment: Any) -> dict[str, Any]:
    """What the stock class makes of a model, by name or folder, in a process without this package."""
    cache.mkdir()
    ended = run_script(hub, cache, _PULL, name, str(cache / "pulled.pt"), **environment)
    assert ended.code == 0, ended.stderr
    return torch.load(cache / "pulled.pt")


def token_leaks(hub: Hub, folder: Path, *texts: str) -> list[str]:
    """Where the token is found: in what the server got, outside the Authorization header, on disk, or in `texts`."""
    contents = {f"request {index}": sent for index, sent in enumerate(hub.received)}
    contents |= {f"pushed {repo}/{path}": c for repo, r in hub.repos.items() for path, c in r.files.items()}
    contents |= {f"text {index}": text.encode() for index, text in enumerate(texts)}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("token", "stored_tokens")]
    contents |= {f"file {path}": path.read_bytes() for path in files}
    return [where for where, content in contents.items() if TOKEN.encode() in content]
