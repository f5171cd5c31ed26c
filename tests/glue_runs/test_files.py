import json
import os
from pathlib import Path

import pytest

from glue_runs.errors import InputError
from glue_runs.files import check_is_file, write_json, write_text


def test_only_regular_files_are_accepted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    check_is_file(tmp_path / "file")
    check_is_file(tmp_path / "missing")  # whoever opens it reports that
    with pytest.raises(InputError, match=f"{tmp_path} is a folder, not a file"):
        check_is_file(tmp_path)
    with pytest.raises(InputError, match="pipe is a named pipe or a device"):
        check_is_file(tmp_path / "pipe")


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_write_that_breaks_off_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "report.md", "old\n")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "report.md", "new\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.md": "old\n"}
