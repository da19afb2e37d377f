"What results/ holds is made again when what it rests on has changed, and not before."
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from stprompt import remake as room
from stprompt.experiments import files_in
from stprompt.files import project_root
from stprompt.remake import MADE, Experiment, experiments, made_of, plan_lines, remake, rests_on, why_again
from stprompt.results import ResultError, command_of

SMALL = Experiment("reproduce/table_6", "small/table_6", {"smoke": True})


def test_a_table_is_made_once_and_again_when_its_parameters_change(tmp_path):
    assert remake([SMALL], tmp_path) == ["small/table_6"]
    assert {"metrics.json", "table.md", "table_6.ipynb"} <= set(files_in(tmp_path/"small"/"table_6"))
    assert remake([SMALL], tmp_path) == []
    assert plan_lines([SMALL], tmp_path) == ["small/table_6  up to date"]
    assert "have changed" in why_again(replace(SMALL, parameters={}), tmp_path)
    (tmp_path/"small"/"table_6"/"metrics.json").unlink()
    assert why_again(SMALL, tmp_path) == "metrics.json is missing"


def test_the_command_of_a_reproduced_table_names_its_folder(tmp_path):
    cell = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": ["smoke = True"]}
    (tmp_path/"table_4.ipynb").write_text(json.dumps({"cells": [cell]}))
    again = "papermill nbs/reproduce/table_4.ipynb out/table_4.ipynb -p smoke True"
    assert command_of(tmp_path, {}) == again


def test_what_a_result_rests_on_is_code_and_not_words(tmp_path, monkeypatch):
    before, book = rests_on(SMALL), json.loads(SMALL.book.read_text())
    (tmp_path/"nbs").mkdir()
    monkeypatch.setattr(room, "project_root", lambda: tmp_path)
    here = replace(SMALL, notebook="copy")

    def with_first_line(line):
        cells = [{**one, "source": [line, *one["source"]]} if "import" in "".join(one["source"]) else one
                 for one in book["cells"]]
        (tmp_path/"nbs"/"copy.ipynb").write_text(json.dumps({"cells": cells}))
        return rests_on(here)

    assert with_first_line("# a remark\n") == before
    assert with_first_line("more = 1\n") != before


def test_features_that_share_their_windows_come_first_and_are_found(tmp_path, monkeypatch):
    from test_jobs import make_clips

    from stprompt.ablations import GridJob
    from stprompt.experiments import prepare
    monkeypatch.setenv("STPROMPT_CACHE", str(tmp_path/"cache"))
    job = GridJob(dataset="folder", root=str(make_clips(tmp_path/"clips")), backbone="mini", stride=8)
    group, = room.sharing_windows(job)
    known = {(store.settings.k, store.settings.keep_windows) for store in group}
    assert {(3, False), (49, False), (job.k, False), (job.k, True)} <= known
    summary, = room.extract_first(job)
    assert summary.done and not summary.skipped
    assert len(prepare(job).summary.skipped) == len(summary.done)     # found, none made


def test_the_plan_says_that_features_come_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, "extract_first", lambda job: pytest.fail("the plan makes nothing"))
    for lost, said in ((False, False), (True, True)):
        monkeypatch.setattr(room, "why_again", lambda one, results, lost=lost: "lost" * lost)
        assert room.run_remake(["--plan"]) == 0
        assert ("first, features of MiniStreet full" in capsys.readouterr().out) == said


def test_features_come_first_in_a_process_of_their_own(monkeypatch):
    "Its exit code ends all: no notebook begins without them."
    asked, sizes = [], []
    monkeypatch.setattr(room, "why_again", lambda one, results: "lost")
    monkeypatch.setattr(room, "remake", lambda asked, results: pytest.fail("features are not there"))
    monkeypatch.setattr(room.subprocess, "run", lambda words, cwd: (
        asked.append(words), subprocess.CompletedProcess(words, 3))[1])
    assert room.run_remake([]) == 3 and asked == [room.BEFORE_ALL]
    monkeypatch.setattr(room, "extract_first", lambda job: sizes.append(job.size))
    assert room.run_remake([*room.BEFORE_ALL[3:]]) == 0 and sizes == ["full"] and len(asked) == 1


def test_a_failed_notebook_is_named_and_not_taken_for_made(tmp_path):
    wrong = replace(SMALL, parameters={"seeds": "one"})
    with pytest.raises(ResultError, match="small/table_6: its notebook ended with exit code 1.*on here"):
        remake([wrong], tmp_path)
    assert made_of(tmp_path) == {} and why_again(wrong, tmp_path)


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    (tmp_path/MADE).write_text("{")
    with pytest.raises(ResultError, match="made.json: not JSON; remove it"): made_of(tmp_path)


def test_every_experiment_has_its_notebook_and_a_folder_of_its_own():
    asked = experiments("somewhere/clips", "ped2")
    assert all(one.book.is_file() for one in asked)
    assert len({one.folder for one in asked}) == len(asked) and asked[-1].folder == "bench"
    assert "clips/footage" in {one.folder for one in asked}


def test_the_command_names_a_folder_that_is_not_there():
    done = subprocess.run([sys.executable, "-m", "stprompt.remake", "--plan", "--clips", "nowhere"],
                          cwd=project_root(), capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere: there is no such folder" in done.stderr


def test_an_experiment_of_many_tables_is_there_when_they_are(tmp_path):
    asked = next(one for one in experiments() if one.folder.endswith("/parameters"))
    folder = tmp_path/asked.folder
    (folder/"tau").mkdir(parents=True)
    (folder/"parameters.ipynb").write_text("{}")
    (tmp_path/MADE).write_text(json.dumps({asked.folder: rests_on(asked)}))
    assert why_again(asked, tmp_path) == "*/metrics.json is missing"
    (folder/"tau"/"metrics.json").write_text("{}")
    assert why_again(asked, tmp_path) == ""
