import os
from pathlib import Path

import pytest

from glue_runs.errors import InputError
from glue_runs.tasks.files import check_is_file


def test_only_regular_files_are_accepted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    check_is_file(tmp_path / "file")
    check_is_file(tmp_path / "missing")  # whoever opens it reports that
    with pytest.raises(InputError, match=f"{tmp_path} is a folder, not a file"):
        check_is_file(tmp_path)
    with pytest.raises(InputError, match="pipe is a named pipe or a device"):
        check_is_file(tmp_path / "pipe")
