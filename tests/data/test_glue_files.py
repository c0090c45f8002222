"""GLUE's TSV files: the columns of every task, with and without headers, and the rows that are known to be broken."""

import pytest

from tests.conftest import shared
from workflow.data.glue import TASKS, glue_task
from workflow.data.glue_files import LeftOut, find_split, folder_of_task, glue_rows, task_of_folder
from workflow.errors import ConfigError, DataError

PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
FILES = {  # as the benchmark distributes them: header, row -> texts, label, index
    "CoLA": ("", 'gj04\t1\t\tThey said "no".', ('They said "no".',), "1", 0),
    "SST-2": ("sentence\tlabel", "it 's fun \t1", ("it 's fun ",), "1", 0),
    "MRPC": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '0\t7\t8\t"A\tB', ('"A', "B"), "0", 0),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "5\tg\tf\t2012\t0001\tn\tn\tA plane.\tA plane!\t4.750",
        ("A plane.", "A plane!"),
        "4.750",
        "5",
    ),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "9\t1\t2\tHow?\tWhy?\t0", ("How?", "Why?"), "0", "9"),
    "MNLI": (
        f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2\tlabel1\tgold_label",
        "3\t1\t1n\tg\t(\t(\t(\t(\tOne.\tTwo.\tneutral\tneutral",
        ("One.", "Two."),
        "neutral",
        "3",
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tHe.\tnot_entailment",
        ("Who?", "He."),
        "not_entailment",
        "0",
    ),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tentailment", ("A.", "B."), "entailment", "0"),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", ("A.", "B."), "1", "0"),
}


def written(path, *lines, ending="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{ending}" for line in lines if line).encode())
    return path


def read(path, task, **more):
    left_out = LeftOut()
    return [row for _, row in glue_rows(path, TASKS[task], left_out, **more)], left_out


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("task", FILES)
def test_columns(tmp_path, task, ending):
    header, line, texts, label, index = FILES[task]
    folder = tmp_path / task
    for stem in TASKS[task].files[:2]:
        written(folder / f"{stem}.tsv", header, line, ending=ending)
    for split in ("train", "dev"):
        rows, left_out = read(find_split(folder, TASKS[task], split), task)
        assert rows == [dict(zip(TASKS[task].texts, texts, strict=True)) | {TASKS[task].label: label, "index": index}]
        assert left_out.count == 0


@pytest.mark.parametrize(
    ("task", "file", "header", "line"),
    [
        ("CoLA", "CoLA/test.tsv", "index\tsentence", "0\tBill whistled."),
        ("MRPC", "MRPC/test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tA\tB"),
        ("QQP", "QQP/test.tsv", "id\tquestion1\tquestion2", "0\tA\tB"),
        ("MNLI-mm", "MNLI/test_mismatched.tsv", "index\tsentence1\tsentence2", "0\tA\tB"),
        ("AX", "diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2", "0\tA\tB"),
    ],
)
def test_files_of_the_leaderboard(tmp_path, task, file, header, line):
    written(tmp_path / file, header, line)
    folder = folder_of_task(tmp_path, TASKS[task])
    rows, _ = read(find_split(folder, TASKS[task], "test"), task, labelled=False)
    assert [row["index"] for row in rows] == ["0"]
    with pytest.raises(DataError, match=f'no column "{TASKS[task].label}", so its rows have no labels'):
        read(find_split(folder, TASKS[task], "test"), task)


def test_corpora_without_headers(tmp_path):
    mrpc = written(tmp_path / "mrpc" / "msr_paraphrase_test.txt", "\ufeff1\t1\t2\tA\tB")
    assert find_split(tmp_path / "mrpc", TASKS["MRPC"], "dev") == mrpc
    assert read(mrpc, "MRPC")[0] == [{"#1 String": "A", "#2 String": "B", "Quality": "1", "index": 0}]
    sts = written(tmp_path / "sts-dev.csv", "g\tf\ty\t1\t5.000\tA, a\tB", "g\tf\ty\t2\t0\tC\tD\tsource\tsource")
    assert [row["score"] for row in read(sts, "STS-B")[0]] == ["5.000", "0"]


def test_cut_rows_of_qqp_are_counted_and_of_others_refused(tmp_path):
    header, line, *_ = FILES["QQP"]
    rows, left_out = read(written(tmp_path / "train.tsv", header, line, "9\t1\t2\tcut off", line), "QQP")
    assert (len(rows), left_out.count, left_out.first) == (2, 1, "line 3")
    header, line, *_ = FILES["RTE"]
    with pytest.raises(DataError, match=r"line 3: 2 columns, and RTE needs 4; is a line of the file broken in two\?"):
        read(written(tmp_path / "rte.tsv", header, line, "1\tcut off"), "RTE")
    with pytest.raises(DataError, match="line 3: 1 columns"):  # a leaderboard wants an answer for every row
        read(written(tmp_path / "test.tsv", "id\tquestion1\tquestion2", "0\tA\tB", "1"), "QQP", labelled=False)


def test_a_tab_in_a_text_and_a_doubled_column_are_told(tmp_path):
    header, line, *_ = FILES["RTE"]
    with pytest.raises(DataError, match=r"line 3: 5 columns, and the header has 4; is there a tab in a text\?"):
        read(written(tmp_path / "rte.tsv", header, line, "1\tA\tsplit.\tB.\tentailment"), "RTE")
    with pytest.raises(DataError, match="line 2: 5 columns, and the first line has 4"):
        read(written(tmp_path / "cola.tsv", FILES["CoLA"][1], "gj04\t1\t\tThey\tsaid."), "CoLA")
    with pytest.raises(DataError, match='line 1: the column "sentence1" stands twice'):
        read(written(tmp_path / "twice.tsv", f"{header}\tsentence1", f"{line}\tC."), "RTE")


def test_rows_without_a_gold_label_are_counted(tmp_path):
    header, line, *_ = FILES["MNLI"]
    rows, left_out = read(written(tmp_path / "a.tsv", header, line, line.removesuffix("neutral") + "-"), "MNLI")
    assert (len(rows), left_out.count) == (1, 1)


def test_a_carriage_return_or_line_separator_in_a_sentence_ends_no_row(tmp_path):
    path = written(tmp_path / "train.tsv", "sentence\tlabel", "one\rtwo\u2028three\t0")
    assert read(path, "SST-2")[0][0]["sentence"] == "one\rtwo\u2028three"


def test_other_layouts_and_missing_files_are_told(tmp_path):
    with pytest.raises(DataError, match=r"not CoLA's layout: the first line has 2 columns.*\(nor has it the 4 columns"):
        read(written(tmp_path / "train.tsv", "text\tlabel", "a\t1"), "CoLA")
    with pytest.raises(DataError, match=r"no 'dev' split of CoLA; it would be dev.tsv \(there are train.tsv\)"):
        find_split(tmp_path, TASKS["CoLA"], "dev")
    (tmp_path / "sets" / "mrpc").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no folder RTE for RTE \(there are mrpc\)"):
        folder_of_task(tmp_path / "sets", TASKS["RTE"])
    assert task_of_folder("/data/sts_b")[0] is glue_task("STS-B") is task_of_folder("stsb=/other")[0]
    with pytest.raises(ConfigError, match="a folder of another name is given as glue:TASK=DIR"):
        task_of_folder("/data/mine")


@pytest.mark.parametrize(
    ("task", "folder", "counts"),
    [("CoLA", "cola", (8551, 1043, 1063)), ("MRPC", "mrpc", (4076, 1725, 1725)), ("STS-B", "stsb", (5749, 1500, 1379))],
)
def test_the_real_files(task, folder, counts):
    folder = shared("data", folder)
    assert folder_of_task(folder.parent, TASKS[task]) == folder
    for split, count in zip(("train", "dev", "test"), counts, strict=True):
        rows, left_out = read(find_split(folder, TASKS[task], split), task, labelled=split != "test")
        assert (len(rows), left_out.count) == (count, 0)
    assert counts[2] == TASKS[task].num_test
