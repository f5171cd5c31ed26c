"""What the pages state about the code is so: settings, versions, private names, modules, commands."""

import ast
import dataclasses
import re
import shlex
import sys
from pathlib import Path

import pytest
from pages import table
from programs import ROOT

from glue_runs.finetune import command as finetune
from glue_runs.grid import command as grid
from lbe_hf import LBEArguments

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_settings_have_the_defaults_of_the_code() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(LBEArguments)}
    cells = {row[0].strip("`"): row[1].strip('`"') for row in table(page("method"), "setting | default")}
    assert list(cells) == list(defaults)
    words = {"the model's": None, "hidden states": None, "all": None, "true": True, "false": False}
    for name, cell in cells.items():
        assert (words[cell] if cell in words else type(defaults[name])(cell)) == defaults[name], name


def test_versions_are_those_that_are_declared_and_pinned() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.replace("_", "-"): version for name, version in pinned.items()}
    project = (ROOT / "pyproject.toml").read_text()
    rows = {row[0].lower(): row[1:] for row in table(page("compatibility"), "package | lowest")}
    assert rows.pop("")[0] == ""  # further versions of Python
    assert rows.pop("python")[0] == re.findall(r'requires-python = ">=([\d.]+)"', project)[0]
    assert rows.pop("deepspeed")[0] == ""  # no dependency
    assert len(rows) == 9
    for name, (lowest, tested, _) in rows.items():
        assert re.findall(rf'"{name}>=([\d.]+)', project) == [lowest], name
        assert pinned[name] == tested, name


@pytest.mark.parametrize("package", ["lbe_hf", "glue_runs"])
def test_private_methods_are_listed(package: str) -> None:
    source = "\n".join(path.read_text() for path in (ROOT / package).rglob("*.py"))
    used = set(re.findall(r"super\(\)\.(_[a-z]\w+)|self\.(_get_\w+)\(", source))
    names = {name for pair in used for name in pair if name} - {"_format_action_invocation"}  # of argparse
    assert len(names) >= 4
    text = page("compatibility")
    assert {name for name in names if name not in text} == set()


def test_every_module_is_in_the_house() -> None:
    text = page("architecture")
    modules = {path.stem for path in (ROOT / "lbe_hf").glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text} == set()
    assert set(re.findall(r"`(\w+)`", text[text.index("## `glue_runs`") : text.index("## The other")])) >= {
        path.stem for path in (ROOT / "glue_runs").iterdir() if not path.name.startswith("__")
    }


def test_imports_follow_the_arrows() -> None:
    (line,) = re.findall(r"^    (grid .*errors)$", page("architecture"), re.MULTILINE)
    order = line.split("  ->  ")
    checked = 0
    for path in (ROOT / "glue_runs").rglob("*.py"):
        own = path.relative_to(ROOT / "glue_runs").parts[0].removesuffix(".py")
        if own not in order:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                target = node.module.partition(".")[0]
                if target in order:
                    assert order.index(target) > order.index(own), f"{path} imports {target}"
                    checked += 1
    assert checked > 20
    for path in (ROOT / "lbe_hf").glob("*.py"):
        assert "glue_runs" not in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE), path


def commands() -> list[list[str]]:
    """The words of all commands on the pages, in blocks and in text, without comments."""
    found = []
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        inline = [code for code in re.findall(r"`([^`\n]+)`", text) if " " in code]
        found += [
            shlex.split(line, comments=True) for line in lines + inline if line.startswith(("python ", "    python "))
        ]
    return found


def test_scripts_of_the_commands_exist() -> None:
    scripts = {words[1] for words in commands() if words[1].endswith(".py")}
    assert len(scripts) > 8
    assert {name for name in scripts if not (ROOT / name).is_file()} == {"run_glue.py"}  # of Transformers


@pytest.mark.parametrize(("module", "main"), [("glue_runs.grid", grid.main), ("glue_runs.finetune", finetune.main)])
def test_arguments_of_the_commands_are_known(
    module: str, main: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = set()
    for option in ("--help", "--help_training"):
        monkeypatch.setattr(sys, "argv", [module, option])
        with pytest.raises(SystemExit):
            main()  # type: ignore[operator]
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    used = {
        word.partition("=")[0]
        for words in commands()
        if words[1:3] == ["-m", module]
        for word in words
        if word.startswith("--")
    }
    assert used
    assert used <= known


def test_links_to_files_outside_docs_lead_somewhere() -> None:
    """They are read in the repository, too, where no build checks them."""
    for path in [*PAGES, *(ROOT / "results").glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert Path(path.parent, target).exists(), f"{path}: {target}"
