"""The runner of the studies: it resumes with what is missing, and every study can be started."""

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from filelock import FileLock
from programs import ROOT
from worker_tasks import StudyRun, dies, fails_once, tells_and_stays

sys.path.append(str(ROOT / "results"))  # where its workers find it, too

import runner

STUDIES = [path for path in sorted((ROOT / "results").glob("*/study.py")) if path.parent.name != "verdicts"]


def plan(done: pd.DataFrame) -> Iterator[StudyRun]:
    """Two runs; when they are done, a third."""
    yield from (StudyRun("good"), StudyRun("bad"))
    if len(done) == 2:
        yield StudyRun("last")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the runner does
    monkeypatch.setattr(sys, "argv", ["study.py", "--workers", "1"])
    return tmp_path / "runs.csv"


def test_a_failed_run_is_tried_again_and_a_finished_one_is_not(path: Path) -> None:
    with pytest.raises(SystemExit, match="Failed: 1 of 2 runs"):
        runner.main("", plan, fails_once, path)
    assert pd.read_csv(path)["run"].to_list() == ["good"]
    runner.main("", plan, fails_once, path)
    assert pd.read_csv(path)["run"].to_list() == ["good", "bad", "last"]
    assert Path("good.txt").read_text() == "executed\n"
    assert Path("bad.txt").read_text() == "executed\nexecuted\n"


def test_a_run_whose_process_dies_has_failed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="Failed: 1 of 1 runs"):
        runner.main("", lambda done: [StudyRun("bad")], dies, path)
    assert "bad: its process died" in capsys.readouterr().out
    assert not path.exists()


def test_an_interrupt_ends_the_study_at_once(path: Path) -> None:
    """With its process and the run that waits."""

    def interrupt() -> None:
        while not Path("first.pid").is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit, match="the same command resumes"):
        runner.main("", lambda done: [StudyRun("first"), StudyRun("second")], tells_and_stays, path)
    thread.join()
    assert not psutil.pid_exists(int(Path("first.pid").read_text()))
    assert not Path("second.pid").exists()


def test_a_study_needs_a_worker(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "--workers", "0"])
    with pytest.raises(SystemExit, match="2"):
        runner.main("", plan, fails_once, path)
    assert "--workers must be at least 1, not 0" in capsys.readouterr().err


def test_only_one_process_writes_the_file(path: Path) -> None:
    with FileLock(path.with_suffix(".lock")), pytest.raises(SystemExit, match="another process writes"):
        runner.main("", plan, fails_once, path)
    assert not path.exists()


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.parent.name)
def test_a_study_counts_its_runs(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(study), "--dry_run"])
    monkeypatch.setattr(sys, "path", [str(study.parent), *sys.path])
    monkeypatch.setenv("GLUE_DATA_DIR", "unused")
    runpy.run_path(str(study), run_name="__main__")
    counted, missing = capsys.readouterr().out.split(" runs, ")
    assert int(counted) >= int(missing.split()[0])
    assert int(counted) > 30
