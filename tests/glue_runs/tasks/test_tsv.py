import os
from pathlib import Path
from typing import Any

import pytest

from glue_runs.errors import InputError
from glue_runs.tasks.glue import TASKS
from glue_runs.tasks.tsv import read_tsv, tsv_path

RTE = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
MNLI = "index\tpromptID\tpairID\tgenre\ts1_parse\ts2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "train.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_quotation_marks_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, RTE + '0\tHe said "no.\t"Yes" it is.\tnot_entailment\n')
    assert read_tsv(path, TASKS["rte"]) == [
        {"sentence1": 'He said "no.', "sentence2": '"Yes" it is.', "label": 1, "idx": 0}
    ]


def test_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA b\tC d\r\n".encode())
    assert read_tsv(path, TASKS["mrpc"]) == [{"sentence1": "A b", "sentence2": "C d", "label": 1, "idx": 0}]


def test_no_header_line(tmp_path: Path) -> None:
    path = write(tmp_path, "gj04\t1\t\tThe ropes stretched.\nbc01\t0\t*\tRopes the.\n")
    rows = [(row["sentence"], row["label"]) for row in read_tsv(path, TASKS["cola"])]
    assert rows == [("The ropes stretched.", 1), ("Ropes the.", 0)]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, MNLI + "0\t1\t1c\tfiction\t(a)\t(b)\tIt rained.\tIt was wet.\tneutral\tcontradiction\n")
    assert read_tsv(path, TASKS["mnli"]) == [
        {"premise": "It rained.", "hypothesis": "It was wet.", "label": 2, "idx": 0}
    ]


def test_scores_of_a_regression(tmp_path: Path) -> None:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    row = "0\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tA bird.\t"
    assert read_tsv(write(tmp_path, header + row + "3.750\n"), TASKS["stsb"])[0]["label"] == 3.75
    with pytest.raises(InputError, match=r"line 2: score 'high' is not a number"):
        read_tsv(write(tmp_path, header + row + "high\n"), TASKS["stsb"])


def test_known_broken_rows_are_left_out_and_said(tmp_path: Path, warnings_of: Any) -> None:
    path = write(tmp_path, QQP + "0\t1\t2\tWho?\tWhom?\t1\n1\t3\t4\tcut off\n2\t5\t6\tWhy?\tWhen?\t0\n")
    assert [row["label"] for row in read_tsv(path, TASKS["qqp"])] == [1, 0]
    assert f"{path}: 1 lines lack columns and are left out." in warnings_of()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RTE + "0\ta\tb\tentailment\n1\ta\tentailment\n", r"train.tsv, line 3: 3 columns, expected 4"),
        (RTE + "0\ta\tb\tmaybe\n", r"line 2: label 'maybe' is none of entailment, not_entailment"),
        (RTE, "has no examples"),
        ("", "has no column 'sentence1' in line 1: it is not an official file of rte"),
        (b"index\t\xff\xfe\n", "is not UTF-8 text"),
        (RTE + "0\ta\0\tb\tentailment\n", "line 2: it has NUL bytes"),
        (RTE + f"0\t{'a' * 131_073}\tb\tentailment\n", r"line 2: field larger than field limit \(131072\)"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tsv(write(tmp_path, content), TASKS["rte"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RTE/train.tsv cannot be read .*--data_dir is the folder above"):
        read_tsv(tsv_path(str(tmp_path), TASKS["rte"], "train"), TASKS["rte"])


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe or a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"{path} is {kind}, not a file"):
            read_tsv(path, TASKS["rte"])


def test_a_score_is_finite(tmp_path: Path) -> None:
    path = write(tmp_path, "sentence1\tsentence2\tscore\na\tb\tnan\n")
    with pytest.raises(InputError, match="line 2: score 'nan' is not a number"):
        read_tsv(path, TASKS["stsb"])


def test_names_of_the_official_files() -> None:
    names = [tsv_path("glue", TASKS["mnli"], split).name for split in ("train", *TASKS["mnli"].test_splits)]
    assert names == ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"]
