"Rows times seeds: each cell once, found again while nothing changed, and tables that hold what cells hold."
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_experiments import publish
from test_jobs import make_clips

import stprompt.source
from stprompt.ablations import SIGMA, TABLE_4, TABLE_5, TABLE_6, GridJob
from stprompt.cells import GridError, Row, read_cell
from stprompt.experiments import TrainJob, prepare
from stprompt.files import project_root
from stprompt.grid import collect, data_of, plan, seconds_left, sweep, that_fit
from stprompt.learner import Trainer
from stprompt.metrics import compare
from stprompt.source import code_hash
from stprompt.tables import Step, broken_seals, claims, record_tables, table, table_by_size, unexplained
from stprompt.vadclip import new_vadclip, vadclip_settings

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT.parent/"shared"/"papers"/"stprompt_2408.05905.md"
ROWS = [Row("distance"), Row("none", {"adapter": "none"})]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT/'tests'}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def published(tmp_path_factory): return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def job(published, tmp_path):
    return TrainJob(dataset="ucf_crime", features=str(published), backbone="mini", epochs=2, crops=1,
                    device="cpu", out=str(tmp_path/"out"))


@pytest.fixture(scope="module")
def whole(published, tmp_path_factory):
    "A sweep that nobody disturbed, and its folder."
    folder = tmp_path_factory.mktemp("whole")
    job = TrainJob(dataset="ucf_crime", features=str(published), backbone="mini", epochs=2, crops=1,
                   device="cpu", out=str(folder/"out"))
    return sweep(job, ROWS, [0, 1], folder/"cells", processes=1), folder/"cells"


def names(job, *rows, seeds=(0,)):
    return [cell.name for cell in plan(job, rows, seeds, "nowhere").cells.values()]


def stamps(folder): return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


def scores_of(results):
    return {place: {id: values.tolist() for id, values in one.scores.items()}
            for place, one in results.trained.items()}


# ---- found again, or not -------------------------------------------------------------------------
def test_cells_are_found_again_and_hold_what_the_chain_gives(whole, job):
    from stprompt.experiments import evaluate, fit, locate, score
    results, folder = whole
    before = stamps(folder)
    again = sweep(job, ROWS, [0, 1], folder)
    assert stamps(folder) == before and len(before) == 4 and again.plan.todo == {}
    assert scores_of(again) == scores_of(results)
    plain = dataclasses.replace(job, adapter="none", seed=1)
    data = prepare(job)
    scored = score(fit(plain, data, progress=False), data)
    assert {id: x.tolist() for id, x in scored.frames.items()} == scores_of(again)["none", 1]
    report = evaluate(scored, locate(job, data), data)
    assert again.trained["none", 1].report == report


def test_a_name_is_all_that_two_rows_may_differ_in(job):
    assert len(set(names(job, Row("a"), Row("b", {"adapter": "distance"}), Row("c", {"fusion": .3})))) == 1


@pytest.mark.parametrize("other", [
    Row("x", {"sigma": 5.}), Row("x", {"epochs": 3}), Row("x", {"mode": "token"}),
    Row("x", learning={"weight_decay": .1}), Row("x", make=new_vadclip)])
def test_what_changes_a_number_is_another_cell(job, other):
    assert len(set(names(job, Row("a"), other))) == 2


def test_another_split_other_videos_other_lengths_are_other_cells(job, published, tmp_path):
    (tmp_path/"lengths.csv").write_text("\n".join(f"Abuse{n:03d}_x264,320" for n in range(1, 13)))
    others = [dataclasses.replace(job, seed=7), dataclasses.replace(job, crops=10),
              dataclasses.replace(job, validation=0.)]
    assert len({names(one, Row("a"))[0] for one in (job, *others)}) == 4
    assert len(set(names(job, Row("a"), seeds=(0, 1, 2)))) == 3


def test_code_that_a_cell_rests_on_is_in_its_name_and_other_code_is_not(job, monkeypatch):
    right, before = stprompt.source.parts_of, names(job, Row("a"))

    def changed(place, text):
        module, name = place.split(":")

        def parts_of(asked):
            parts = right(asked)
            if asked != module: return parts
            assert name in parts.text
            return dataclasses.replace(parts, text={**parts.text, name: text})

        monkeypatch.setattr(stprompt.source, "parts_of", parts_of)
        return names(job, Row("a"))

    assert changed("stprompt.losses:mil_align_loss", "def mil_align_loss(): return 0") != before
    assert changed("stprompt.datasets:HYPER", "HYPER = {}") != before
    assert changed("stprompt.tables:table", "def table(): return 0") == before
    assert changed("stprompt.vadclip:GraphLayer", "class GraphLayer: pass") == before


def test_a_detector_of_one_s_own_is_hashed_and_one_without_a_file_is_refused(job, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    home = tmp_path/"own_rows.py"
    text = "from stprompt.experiments import new_model\n\n\ndef own(job, data):\n"
    home.write_text(text + "    return new_model(job, data)\n")
    import own_rows
    first = names(job, Row("a", make=own_rows.own))
    home.write_text(text + "    # in other words\n    return new_model(job, data)\n")
    stprompt.source.parts_of.cache_clear()
    assert names(job, Row("a", make=own_rows.own)) == first
    home.write_text(text + "    return new_model(job, data).eval()\n")
    stprompt.source.parts_of.cache_clear()
    assert names(job, Row("a", make=own_rows.own)) != first
    with pytest.raises(ValueError, match="put it into a module and import it from there"):
        plan(job, [Row("a", make=lambda job, data: None)], [0])


def test_code_is_the_same_wherever_it_lies_and_covers_what_is_called():
    reached = stprompt.source.reached("stprompt.cells:trained")
    assert {"stprompt.learner:Trainer", "stprompt.metrics:frame_report", "stprompt.bootstrap:draws",
            "stprompt.features:VideoFeatures", "stprompt.overlap:MetricError"} <= set(reached)
    assert not [place for place in reached if place.startswith(("stprompt.tables", "stprompt.figures"))]
    assert str(ROOT) not in "".join(reached.values()) and len(code_hash("stprompt.cells:trained")) == 64


# ---- refused, in one sentence --------------------------------------------------------------------
@pytest.mark.parametrize("rows, seeds, words", [
    ([Row("a"), Row("a")], [0], "rows: two are called 'a'"), ([], [0], "0 rows"), ([Row("a")], [], "seeds"),
    ([Row("a")], [1, 1], "each seed once"),
    ([Row("a", {"epcohs": 1})], [0], "row 'a': epcohs=1.*did you mean epochs"),
    ([Row("a", {"adapter": "gcn"})], [0], "row 'a': adapter='gcn'"),
    ([Row("a", {"crops": 1})], [0], "row 'a': crops is the same for all rows"),
    ([Row("a", {"seed": 1})], [0], "row 'a': seed is the same for all rows"),
    ([Row("a", {"spatial": "sa2"})], [0], "row 'a': spatial='sa2' needs videos")])
def test_rows_that_cannot_be_run_are_refused_before_any_work(job, rows, seeds, words, tmp_path):
    with pytest.raises(GridError, match=words) as caught: sweep(job, rows, seeds, tmp_path/"cells")
    assert "\n" not in str(caught.value) and not (tmp_path/"cells").exists()


def test_a_job_that_takes_unfinished_trainings_is_refused(job):
    with pytest.raises(GridError, match="unfinished=True: a cell is whole or not there"):
        plan(dataclasses.replace(job, unfinished=True), ROWS, [0])


def test_a_row_that_these_features_cannot_give_is_named_and_has_no_cell(job, tmp_path):
    rows = [Row("SA2", {"spatial": "sa2"}), Row("none", {"spatial": "none"})]
    results = sweep(job, rows, [0], tmp_path, processes=1)
    found = table(results, {"SA2": {"UCF-Crime": 88.08}}, against="none")
    assert list(results.trained) == [("none", 0)] and found.loc[0, ["row", "seeds"]].tolist() == [
        "SA2", "none; missing: 0"]
    assert found.loc[0, "frame AUC"] == "" and found.loc[0, "paper, UCF-Crime"] == 88.08
    assert "row 'SA2' is left out: spatial='sa2' needs videos" in results.notes[0]


# ---- edited, missing, failed ---------------------------------------------------------------------
def edited(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_an_edited_cell_is_named_not_used_and_made_again(job, tmp_path):
    first = sweep(job, ROWS[:1], [0, 1], tmp_path, processes=1)
    path = first.plan.cells["distance", 0].path
    mean = first.trained["distance", 0].report["frame_auc"]
    edited(path, f"{mean}".encode(), f"9{f'{mean}'[1:]}".encode())
    asked = plan(job, ROWS[:1], [0, 1], tmp_path)
    said = rf"row 'distance', seed 0: \.\.\./.*/{path.name}: was edited, .* not used, and .* made again"
    assert len(asked.todo) == 1 and re.search(said, str(asked))
    left = collect(asked)
    assert left.missing == {("distance", 0): "it was never made"} and list(left.trained) == [("distance", 1)]
    again = sweep(job, ROWS[:1], [0, 1], tmp_path, processes=1)
    assert scores_of(again) == scores_of(first) and again.notes == []
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(GridError, match="cut short or no cell"): read_cell(again.plan.cells["distance", 0])
    assert len(plan(job, ROWS[:1], [0, 1], tmp_path).todo) == 1


def test_a_missing_seed_is_named_and_a_row_without_a_run_is_empty(whole, job):
    _, folder = whole
    rows = [*ROWS, Row("sigma 5", {"sigma": 5.})]
    half = collect(plan(job, rows, [0, 1, 2], folder))
    found = table(half, against="distance")
    assert found["seeds"].tolist() == ["0, 1; missing: 2"] * 2 + ["none; missing: 0, 1, 2"]
    assert set(found.loc[2].drop(["row", "seeds"])) == {""}
    steps = claims(half, [Step("sigma 5", "none", "x"), Step("distance", "none", "y")])
    assert steps.loc[0, ["here", "verdict"]].tolist() == ["", "cannot tell: no run of 'sigma 5'"]
    assert "row 'none', seed 2: missing, it was never made" in half.notes


def test_a_cell_that_cannot_be_made_is_named_with_its_reason_and_the_others_are(job, tmp_path):
    rows = [ROWS[0], Row("broken", learning={"lr": 1e30})]
    results = sweep(job, rows, [0, 1], tmp_path, processes=1)
    assert sorted(results.trained) == [("distance", 0), ("distance", 1)]
    assert re.search("expected a? ?finite", results.missing["broken", 0])
    assert not list(tmp_path.glob("*.pt"))
    assert table(results)["seeds"].tolist() == ["0, 1", "none; missing: 0, 1"]


def test_no_boxes_and_no_frame_labels_say_what_is_done_instead(whole, job, tmp_path):
    _, folder = whole
    asked = plan(job, [dataclasses.replace(ROWS[0], located={})], [0, 1], folder)
    assert asked.notes == ["ucf_crime has no boxes: localization is left out"] and asked.todo == {}
    assert table_by_size(collect(asked)).empty
    root = make_clips(tmp_path/"clips")
    clips = TrainJob(dataset="folder", root=str(root), epochs=1, device="cpu", out=str(tmp_path/"out"))
    before = plan(clips, ROWS, [0], tmp_path/"cells")
    assert "before: features of 12 videos are extracted" in str(before)
    results = sweep(clips, ROWS, [0], tmp_path/"cells", processes=1)
    assert results.notes == ["clips has one label a video: video AUC, not frame AUC"]
    found, said = table(results, against="none"), claims(results, [Step("distance", "none", "x")])
    assert "frame AUC" not in found and 0 <= found["video AUC"][0] <= 100
    assert said["verdict"].tolist() == ["cannot tell"] and said["here"][0].endswith("[-]")


# ---- stopped, and side by side -------------------------------------------------------------------
def test_a_stopped_sweep_says_what_is_kept_and_trains_no_epoch_twice(whole, job, tmp_path, monkeypatch):
    (results, _), cells = whole, tmp_path/"cells"
    right, epochs = Trainer.epoch, []

    def epoch(trainer, number):
        epochs.append((trainer.model.options.adapter, trainer.options.seed, number))
        if len(epochs) == 4: raise KeyboardInterrupt
        return right(trainer, number)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    with pytest.raises(KeyboardInterrupt, match="interrupted: 1 of 4 cells are kept in .*; the same comm"):
        sweep(job, ROWS, [0, 1], cells, processes=1)
    half = plan(job, ROWS, [0, 1], cells, processes=1)
    assert len(half.todo) == 3 and seconds_left(half) > 0
    again = sweep(job, ROWS, [0, 1], cells, processes=1)
    assert epochs[3] == epochs[4] and len(set(epochs)) == 8 and len(epochs) == 9
    assert scores_of(again) == scores_of(results)
    assert {path.suffix for path in cells.iterdir()} == {".safetensors"}         # no claim, no checkpoint


SWEEP = """
import sys, test_grid
from stprompt.experiments import TrainJob
from stprompt.grid import sweep
job = TrainJob(dataset="ucf_crime", features=sys.argv[1], backbone="mini", epochs=int(sys.argv[3]), crops=1,
               device="cpu", out=sys.argv[2] + "/out")
print(sweep(job, test_grid.ROWS, [0, 1], sys.argv[2] + "/cells", processes=int(sys.argv[4])))
"""


def start(published, folder, epochs=2, processes=2):
    words = [sys.executable, "-c", SWEEP, str(published), str(folder), str(epochs), str(processes)]
    hear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)     # a background job ignores it
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ENVIRONMENT, preexec_fn=hear)


def test_side_by_side_gives_the_same_numbers_and_ctrl_c_leaves_no_process(whole, job, published, tmp_path):
    process, until = start(published, tmp_path, epochs=2000), time.monotonic() + 100
    at_work = lambda: list((tmp_path/"cells").glob("*.pt"))
    while process.poll() is None and time.monotonic() < until and len(at_work()) < 2: time.sleep(.05)
    assert len(at_work()) == 2                        # two trainings at the same time
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)         # ends only when every child has let go of the pipes
    assert "interrupted: 0 of 4 cells are kept" in said and "the same command goes on" in said
    process = start(published, tmp_path)
    done, said = process.communicate(timeout=200)
    assert process.returncode == 0 and "4 trainings" in done, said
    assert said.count("cells:") and "epochs" not in said               # one bar over all cells
    assert scores_of(collect(plan(job, ROWS, [0, 1], tmp_path/"cells"))) == scores_of(whole[0])


HOLD = """
import sys
from stprompt.files import Claims
claims = Claims(sys.argv[1])
assert claims.take(sys.argv[2])
print("here", flush=True)
sys.stdin.read()
"""


def test_a_cell_that_another_sweep_makes_is_waited_for_and_taken_over_when_that_ends(job, tmp_path):
    cell = plan(job, ROWS, [0, 1], tmp_path).cells["distance", 0]
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), cell.name], env=ENVIRONMENT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"here\n"
    found = []
    thread = threading.Thread(target=lambda: found.append(sweep(job, ROWS, [0, 1], tmp_path, processes=1)))
    thread.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(tmp_path.glob("*.safetensors"))) < 3: time.sleep(.05)
    time.sleep(1.5)
    assert thread.is_alive() and not cell.path.exists()             # the other one has it
    holder.kill()
    holder.communicate()
    thread.join(60)
    assert cell.path.exists() and len(found[0].trained) == 4


# ---- tables --------------------------------------------------------------------------------------
def test_two_sweeps_of_one_commit_write_the_same_table(whole, job, tmp_path):
    results, _ = whole
    steps, pages = [Step("distance", "none", "it helps")], []
    for found in (results, sweep(job, ROWS, [0, 1], tmp_path/"cells", processes=1)):
        parts = {"Rows": table(found, {"none": {"UCF-Crime": 1.5}}, "none"), "Steps": claims(found, steps)}
        out = record_tables(tmp_path/str(len(pages)), "Toy", found, parts, "Table 6")
        saved = json.loads((out/"metrics.json").read_text())
        pages.append(((out/"table.md").read_text(), saved["tables"], saved["cells"], saved["rows"]))
    assert pages[0] == pages[1] and "paper, UCF-Crime" in pages[0][0]
    assert len(saved["cells"]) == 4 and saved["code"]["commit"] and broken_seals(tmp_path) == []


@pytest.mark.parametrize("name, old, new", [("metrics.json", b'"1 of 2"', b'"2 of 2"'),
                                            ("table.md", b"| distance |", b"| DISTANCE |")])
def test_a_result_that_somebody_edited_is_named(whole, tmp_path, name, old, new):
    parts = {"Rows": table(whole[0]), "Steps": claims(whole[0], [Step("distance", "none", "x")])}
    record_tables(tmp_path, "Toy", whole[0], parts)
    file = tmp_path/name
    content = file.read_bytes()
    if old not in content: old, new = b'"n": 12', b'"n": 13'
    file.write_bytes(content.replace(old, new))
    assert file.read_bytes() != content
    assert broken_seals(tmp_path) and broken_seals(tmp_path)[0].startswith(f"{name}: was edited")


def test_the_results_of_this_checkout_are_as_they_were_written():
    assert broken_seals(project_root()/"results") == []


def versions(path, root):
    "What a file of results held in the last two commits that changed it, the older one first."
    git = lambda *words: subprocess.run(["git", "-C", root, *words], capture_output=True, text=True).stdout
    commits = git("log", "-2", "--format=%H", "--", path).split()
    return [json.loads(git("show", f"{commit}:{path}")) for commit in reversed(commits)]


def test_no_number_of_the_results_changed_without_a_reason():
    found = []
    for path in sorted((ROOT/"results").rglob("metrics.json")):
        now, place = json.loads(path.read_text()), path.relative_to(ROOT).as_posix()
        if "sealed" not in now: continue
        both = [one for one in versions(place, ROOT) if one != now and "sealed" in one]
        found += [f"{place}: {line}" for one in both for line in unexplained(one, now)]
    assert found == []


def test_a_number_that_changed_without_a_reason_is_found(whole, tmp_path):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b",
                                         *words], check=True, capture_output=True)
    git("init")
    record_tables(tmp_path, "Toy", whole[0], {"Rows": table(whole[0])})
    page = tmp_path/"metrics.json"
    values = json.loads(page.read_text())
    for mean in (values["tables"]["Rows"][0]["frame AUC"], 99.5):
        values["tables"]["Rows"][0]["frame AUC"] = mean
        page.write_text(json.dumps(values))
        git("add", "metrics.json")
        git("commit", "-m", "results")
    old, new = versions("metrics.json", tmp_path)
    assert new == values and len(unexplained(old, new)) == 1 and "and is 99.5" in unexplained(old, new)[0]


def test_differences_are_those_of_compare_for_every_metric(whole):
    results, _ = whole
    scores = {row.name: [results.trained[row.name, seed].scores for seed in (0, 1)] for row in ROWS}
    theirs = compare(scores["distance"], scores["none"], results.truths)
    said = claims(results, [Step("distance", "none", "x")])
    assert said["here"].tolist() == [theirs.cell]
    assert table(results, against="none")["minus none"][0] == theirs.cell
    ours = table(results)
    means = [one.report["frame_auc"] for (row, _), one in results.trained.items() if row == "distance"]
    assert ours.loc[0, ["frame AUC", "std", "n"]].tolist() == [
        round(np.mean(means), 2), round(np.std(means, ddof=1), 2), 12]


def test_vadclip_goes_through_the_same_sweep(job, tmp_path):
    learning = vadclip_settings("ucf_crime")[1] | {"epochs": 1, "batch": 8}
    rows = [ROWS[0], Row("VadCLIP", {"max_length": 32}, new_vadclip, learning)]
    results = sweep(job, rows, [0], tmp_path, processes=1)
    assert set(results.trained) == {("distance", 0), ("VadCLIP", 0)}
    assert scores_of(results)["VadCLIP", 0] != scores_of(results)["distance", 0]
    assert table(results, against="distance")["minus distance"][1]


# ---- the paper's rows ----------------------------------------------------------------------------
@pytest.mark.skipif(not PAPER.is_file(), reason="../shared/papers is not here")
@pytest.mark.parametrize("ablation", [TABLE_4, TABLE_5, TABLE_6], ids=lambda one: one.paper)
def test_the_paper_s_numbers_are_the_paper_s(ablation):
    text = PAPER.read_text()
    part = text[text.index(f"{ablation.paper}:"):].split("\n\n")
    lines = [line for line in "\n".join(part[:3]).splitlines() if re.search(r"\d\d\.\d\d", line)]
    numbers = [[float(x) for x in re.findall(r"\d\d\.\d\d", line)] for line in lines]
    assert [[*values.values()] for values in ablation.values.values()] == numbers
    assert list(ablation.values) == [row.name for row in ablation.rows]
    if ablation is TABLE_4:
        marks = [[bool(cell.strip()) for cell in line.split("|")[1:5]] for line in lines]
        ours = [[row.changes["spatial"] == "sa2", row.changes["adapter"] == "distance",
                 row.changes["branches"] != "alignment", row.changes["branches"] != "classification"]
                for row in ablation.rows]
        assert ours == marks


def test_tables_4_5_and_6_share_their_common_rows():
    job = TrainJob(device="cpu")
    every = plan(job, [dataclasses.replace(row, name=f"{one.paper} {row.name}") for one
                       in (TABLE_4, TABLE_5, TABLE_6, SIGMA) for row in one.rows], [0], "nowhere").cells
    assert len(every) == 20 and len({cell.name for cell in every.values()}) == 8 + 3 + 2 + 3
    assert every["Table 4 adapter + C + A", 0].name == every["Table 5 without SA2", 0].name
    assert every["Table 6 distance transformer", 0].name == every[" sigma 1", 0].name


@pytest.mark.parametrize("name", ["table_4", "table_5", "table_6", "parameters"])
def test_the_parameters_of_a_notebook_are_those_of_its_job(name):
    from rules import cells, source

    from stprompt.options import comments, parameters
    book = cells(ROOT/"nbs"/"reproduce"/f"{name}.ipynb")
    cell = next(c for c in book if "parameters" in c["metadata"].get("tags", ()))
    values = {}
    exec(source(cell), {}, values)
    values = parameters(values)
    given, plain = GridJob(**values), GridJob()
    changed = {key: getattr(given, key) for key in values if getattr(given, key) != getattr(plain, key)}
    assert changed == {"size": "full"} and all(comments(GridJob).values())


@pytest.mark.parametrize("held, beside", [(10**8, 2), (10**9, 1), (10**12, 1)])
def test_two_processes_stay_under_eight_gib(monkeypatch, held, beside):
    "However much is free: two of a gigabyte of windows would not."
    for name, value in {"virtual_memory": dict(available=2**40), "Process": dict(
            memory_info=lambda: SimpleNamespace(rss=3 * 2**29))}.items():
        monkeypatch.setattr(f"stprompt.grid.psutil.{name}", lambda value=value: SimpleNamespace(**value))
    monkeypatch.setattr("stprompt.grid.memory_of", lambda data: held)
    assert that_fit(2, None) == beside
    monkeypatch.setattr("stprompt.grid.psutil.virtual_memory", lambda: SimpleNamespace(available=2**30))
    assert that_fit(2, None) == 1


@pytest.mark.parametrize("name, rows", [("table_5", 5), ("table_6", 3)])
def test_a_notebook_makes_its_table_in_a_smoke_size(tmp_path, name, rows):
    from test_jobs import run
    notebook = f"reproduce/{name}"
    record = run(notebook, tmp_path, smoke=True, stride=32, processes=1, device="cpu",
                 cells=str(tmp_path/"cells"))
    assert len(record["rows"]) == rows and record["paper"] == f"Table {name[-1]}" and not record["missing"]
    assert all("frame AUC" in row and row["seeds"] == "0, 1" for row in record["rows"])
    assert [len(tables) for tables in record["tables"].values()][:2] == [rows, rows]
    assert broken_seals(tmp_path) == [] and record["code"]["notebook_sha256"]
    assert (tmp_path/"sigma"/"table.md").exists() == (name == "table_6")
    data_of.cache_clear()


def test_the_parameters_notebook_varies_what_it_is_asked_for(published, tmp_path):
    import papermill
    given = {"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "crops": 1, "batch": 8,
             "smoke": True, "processes": 1, "device": "cpu", "out": str(tmp_path),
             "cells": str(tmp_path/"cells")}
    book = ROOT/"nbs"/"reproduce"/"parameters.ipynb"
    papermill.execute_notebook(str(book), None, given | {"only": "alpha,max_length"}, progress_bar=False)
    for name, count in (("alpha", 5), ("max_length", 3)):
        record = json.loads((tmp_path/name/"metrics.json").read_text())
        own = [row for row in record["rows"] if not row[f"minus {name} {'0.9' if name == 'alpha' else 256}"]]
        assert len(record["rows"]) == count and len(own) == 1 and record["paper"] == ""
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"alpha", "max_length", "cells"}
