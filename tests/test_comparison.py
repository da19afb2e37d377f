"Every method as a row of one sweep: cells, the table, who is ahead, where they look, what they cost."
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from test_experiments import publish
from test_jobs import make_clips, run

import stprompt.source
from stprompt.ablations import GridJob
from stprompt.baselines import Hasan, OneClass, Sultani, fit_at_once, new_baseline
from stprompt.cells import GridError, Row
from stprompt.comparison import (
    KEPT_THRESHOLDS,
    LOOKING,
    asked_methods,
    comparison_table,
    comparison_tables,
    looking_table,
    method_rows,
    plan_methods,
    ranks_between,
    ranks_of,
    record_comparison,
    row_of,
    run_methods,
    video_shares,
)
from stprompt.costs import PAPER_COSTS, flops_of, paper_width, trainable, width_table
from stprompt.experiments import JobError, prepare, record, score
from stprompt.grid import data_of, plan, sweep
from stprompt.methods import METHODS, PAPER_ROWS, method_named
from stprompt.metrics import METRIC_NAMES, frame_auc
from stprompt.tables import broken_seals

ROOT = Path(__file__).resolve().parent.parent
TRAINED = [method.name for method in METHODS if method.make]
TIOU = METRIC_NAMES["tiou"]
AT_ONCE = [method.name for method in METHODS if method.fitting is fit_at_once]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published(tmp_path_factory): return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def job(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return GridJob(dataset="ucf_crime", features=str(published), backbone="mini", crops=1, device="cpu",
                   epochs=1, smoke=True, seeds="0", batch=8, max_length=32, processes=1,
                   cells=str(folder/"cells"), out=str(folder/"out"))


@pytest.fixture(scope="module")
def whole(job): return run_methods(job)


def names(job, *rows):
    return [cell.name for cell in plan(job, rows, [0], "nowhere").cells.values()]


# ---- a method as a row ---------------------------------------------------------------------------
def test_every_method_goes_through_one_sweep(whole):
    windows = "Sultani et al., patches"
    assert {row for row, _ in whole.trained} == set(TRAINED) - {windows} and not whole.missing
    assert whole.plan.left_out == {windows: "it needs all windows, and published features are of frames"}
    for (row, _), one in whole.trained.items(): assert bool(one.last) == (row not in AT_ONCE), row
    assert len({one.report["frame_auc"] for one in whole.trained.values()}) > 10


def test_a_cell_holds_what_the_method_s_own_chain_gives(whole, job):
    data = prepare(job)
    for name in ("OCSVM", "RTFM"):
        method = method_named(name)
        fitted = method.fit(dataclasses.replace(job, seed=0), data, progress=False)
        scores = score(fitted, data).frames
        there = whole.trained[name, 0].scores
        assert all(np.array_equal(scores[id], there[id]) for id in scores), name


@pytest.mark.parametrize("other", [
    Row("x", make=partial(new_baseline, Hasan)), Row("x", make=partial(new_baseline, Sultani, dropout=.5)),
    Row("x", make=partial(new_baseline, OneClass), fitting=fit_at_once), Row("x")])
def test_another_method_is_another_cell(job, other):
    row = Row("a", make=partial(new_baseline, Sultani))
    assert len(set(names(job, row, other))) == 2
    assert names(job, row) == names(job, Row("b", make=partial(new_baseline, Sultani)))


def test_a_cell_rests_on_the_code_of_a_partial_s_arguments_and_of_its_fitting(job, monkeypatch):
    right, row = stprompt.source.parts_of, row_of(method_named("OCSVM"), job)
    facts = json.loads(plan(job, [row], [0], "nowhere").cells["OCSVM", 0].facts)
    assert facts["make"] == {"function": "stprompt.baselines.new_baseline", "by name": {},
                             "in order": ["stprompt.baselines.OneClass"]}
    assert facts["fitting"] == "stprompt.baselines.fit_at_once" and facts["where"] is None

    def changed(name):
        def parts_of(asked):
            parts = right(asked)
            if asked != "stprompt.baselines": return parts
            assert name in parts.text
            return dataclasses.replace(parts, text={**parts.text, name: "pass"})

        monkeypatch.setattr(stprompt.source, "parts_of", parts_of)
        return names(job, row)

    before = names(job, row)
    assert changed("OneClass") != before and changed("fit_at_once") != before
    assert changed("Hasan") == before


def test_a_partial_of_a_function_without_a_file_is_refused(job):
    with pytest.raises(ValueError, match="put it into a module and import it from there"):
        plan(job, [Row("a", make=partial(lambda kind, job, data: None, Hasan))], [0])


def test_a_model_that_says_where_is_in_its_cell_s_name(job):
    free = row_of(method_named("VadCLIP"), job)
    assert free.where is not None
    assert names(job, free) != names(job, dataclasses.replace(free, where=None))


def test_the_settings_are_the_method_s_own_but_for_a_smoke_s_epochs(job):
    assert row_of(method_named("VadCLIP"), job).learning["batch"] == 128
    assert "epochs" not in row_of(method_named("VadCLIP"), job).learning
    assert row_of(method_named("VadCLIP"), dataclasses.replace(job, smoke=False)).learning["epochs"] == 10
    with pytest.raises(JobError, match="SSRL: the paper's value, as cited there: crops"):
        row_of(method_named("SSRL"), job)


def test_methods_are_asked_for_by_name():
    found = [method.name for method in asked_methods(" RTFM , Sultani et al.,Georgescu et al. + anomalies")]
    assert found == ["Sultani et al.", "RTFM", "Georgescu et al. + anomalies", "STPrompt"]
    for wrong in ("RTM", "Sultani", "RTFM;UMIL", "patches"):
        with pytest.raises(JobError, match="is none of Two Stream, TSN"): asked_methods(wrong)


def test_only_cited_methods_leave_stprompt_alone(job):
    assert [row.name for row in method_rows(dataclasses.replace(job, only="MSL"))] == ["STPrompt"]
    with pytest.raises(JobError, match="only='I3D'"): plan_methods(dataclasses.replace(job, only="I3D"))


# ---- the table -----------------------------------------------------------------------------------
def test_every_row_has_a_number_or_a_reason_and_the_paper_s_value(whole):
    found = comparison_table(whole, METHODS).set_index("row")
    assert list(found.index) == [method.name for method in METHODS]
    for name, row in found.iterrows():
        there = any(other == name for other, _ in whole.trained)
        assert (row["frame AUC"] != "") == there and (row["note"] == "") == there, name
        if name in PAPER_ROWS["UCF-Crime"]:
            assert row["paper, UCF-Crime AUC"] == PAPER_ROWS["UCF-Crime"][name][1]
        assert (row["frame AUC, last epoch"] != "") == (there and name not in AT_ONCE)
    assert found.loc["VadCLIP", "paper, UCF-Crime TIoU"] == 22.05 and found.loc["MSL", "seeds"] == ""
    assert not [name for name in found if name.startswith("paper, ") and "UCF-Crime" not in name]
    assert found.loc["STPrompt", "minus STPrompt"] == ""
    assert found.loc["RTFM", "minus STPrompt"].endswith("]")
    assert "needs all windows" in found.loc["Sultani et al., patches", "note"]
    assert whole.truths and comparison_tables(whole, METHODS)["Where"].empty     # no boxes
    assert looking_table(whole, METHODS).empty


def test_a_failed_method_says_why(job, tmp_path):
    rows = [dataclasses.replace(row_of(method_named("VadCLIP"), job), learning={"lr": 1e30}),
            row_of(method_named("STPrompt"), job)]
    results = sweep(job, rows, [0], tmp_path, processes=1)
    found = comparison_table(results, asked_methods("VadCLIP,UMIL")).set_index("row")
    assert "finite" in found.loc["VadCLIP", "note"] and found.loc["VadCLIP", "frame AUC"] == ""
    assert found.loc["UMIL", "note"] == "it was not asked for"


def test_written_down_twice_it_is_the_same_and_sealed(whole, tmp_path):
    record_comparison(tmp_path, whole, METHODS)
    files = [tmp_path/"metrics.json", tmp_path/"table.md"]
    first = [file.read_bytes() for file in files]
    record_comparison(tmp_path, whole, METHODS)
    assert [file.read_bytes() for file in files] == first and broken_seals(tmp_path) == []
    saved = json.loads(first[0])
    ran = {row for row, _ in whole.trained}     # the others have the paper's value alone, or a reason
    assert saved["paper"] == "Table 1" and saved["experiment"] == f"{len(ran)} methods on ucf_crime"
    assert 0 < len(ran) < len(METHODS)
    assert len(saved["rows"]) == len(METHODS) and len(saved["cells"]) == len(whole.trained)


# ---- who is ahead --------------------------------------------------------------------------------
def test_a_video_s_share_is_its_part_of_the_auc(whole):
    for row in ("RTFM", "OCSVM", "STPrompt"):
        shares = video_shares(whole, row)
        weights = [whole.truths[id].mask.sum() for id in shares]
        auc = frame_auc(whole.trained[row, 0].scores, whole.truths)
        assert 100 * np.average(list(shares.values()), weights=weights) == pytest.approx(auc)
    assert ranks_of(whole) is None and len(shares) == 6               # six videos are too few


def test_ranks_by_hand():
    draw = np.random.default_rng(1)
    values = draw.normal(size=(40, 5)) + np.arange(5) * .4
    ranks = ranks_between({name: dict(enumerate(values[:, n])) for n, name in enumerate("abcde")})
    by_hand = dict(zip("abcde", rankdata(-values, axis=1).mean(0)))
    assert list(ranks.average) == sorted(by_hand, key=by_hand.get)
    assert ranks.average == pytest.approx(by_hand)
    assert ranks.distance == pytest.approx(2.728 * (5 * 6 / (6 * 40))**.5, abs=2e-3)     # Demsar's q
    assert ranks.p < 1e-3 and ranks.videos == 40
    for best, worst in ranks.alike(): assert ranks.average[worst] - ranks.average[best] < ranks.distance
    inside = {(a, b) for best, worst in ranks.alike() for a in ranks.average for b in ranks.average
              if ranks.average[best] <= ranks.average[a] <= ranks.average[b] <= ranks.average[worst]}
    near = {(a, b) for a in ranks.average for b in ranks.average
            if 0 <= ranks.average[b] - ranks.average[a] < ranks.distance and a != b}
    assert near <= inside                                             # no pair is forgotten


def test_too_little_for_ranks_gives_none():
    assert ranks_between({}) is None and ranks_between({"a": {}, "b": {}, "c": {}}) is None
    assert ranks_between({name: dict.fromkeys(range(9), .5) for name in "abc"}) is None


# ---- one label a video, and windows --------------------------------------------------------------
def test_clips_with_one_label_have_the_videos_auc_and_windows_have_features_of_their_own(tmp_path):
    root = make_clips(tmp_path/"clips")
    job = GridJob(dataset="folder", root=str(root), epochs=1, device="cpu", seeds="0", processes=1,
                  only="Sultani et al., patches,SVM baseline", cells=str(tmp_path/"cells"),
                  out=str(tmp_path/"out"))
    before = plan_methods(job)
    assert "before: features of 24 videos are extracted" in str(before)     # 12, and 12 with windows
    results, methods = run_methods(job), asked_methods(job.only)
    found = comparison_table(results, methods).set_index("row")
    assert "frame AUC" not in found and all(0 <= x <= 100 for x in found["video AUC"])
    assert found.loc["SVM baseline", "video AUC, last epoch"] == "" and TIOU not in found
    assert looking_table(results, methods).empty
    shares = video_shares(results, "STPrompt")
    assert np.mean(list(shares.values())) * 100 == pytest.approx(found.loc["STPrompt", "video AUC"], abs=.01)
    data_of.cache_clear()


def test_a_record_is_named_by_its_method(job, tmp_path):
    data, method = prepare(job), method_named("VadCLIP")
    fitted = method.fit(job, data, progress=False, epochs=1)
    scored = score(fitted, data)
    from stprompt.experiments import Located, evaluate
    record(tmp_path, job, data, fitted, scored, evaluate(scored, Located({}, {}, {}, {}), data))
    saved = json.loads((tmp_path/"metrics.json").read_text())
    assert saved["experiment"] == "VadCLIP on ucf_crime" and saved["paper"] == "Table 1, row VadCLIP"
    assert "paper (UCF-Crime)" not in (tmp_path/"table.md").read_text()     # that column is STPrompt's


# ---- costs ---------------------------------------------------------------------------------------
def test_operations_are_counted_where_torch_has_a_shortcut():
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.ones(1, 6, 16)
    with torch.inference_mode(): counted = flops_of(lambda: layer(x))
    assert counted == 2 * (4 * 6 * 16 * 16 + 2 * 6 * 6 * 16 + 2 * 6 * 16 * 32)
    assert torch.backends.mha.get_fastpath_enabled()
    assert trainable(layer.requires_grad_(False)) == 0


def test_the_paper_s_number_of_parameters_is_not_one_layer_s():
    assert paper_width(1) < .1 * 1e6 * PAPER_COSTS["STPrompt"][1] < paper_width(3)
    assert width_table(3)["parameters, M"].tolist()[-1] == 31.5


# ---- the notebooks -------------------------------------------------------------------------------
@pytest.mark.parametrize("name, own", [("tables_1_3", {"size": "full"}),
                                       ("table_7", {"size": "full", "batch": 16})])
def test_the_parameters_of_a_notebook_are_those_of_its_job(name, own):
    from rules import cells, source

    from stprompt.options import parameters
    book = cells(ROOT/"nbs"/"reproduce"/f"{name}.ipynb")
    values = {}
    exec(source(next(c for c in book if "parameters" in c["metadata"].get("tags", ()))), {}, values)
    given, plain = GridJob(**parameters(values)), GridJob()
    assert {key: getattr(given, key) for key in values if getattr(given, key) != getattr(plain, key)} == own


def test_the_notebook_makes_its_table_in_a_smoke_size(tmp_path):
    saved = run("reproduce/tables_1_3", tmp_path, smoke=True, stride=32, processes=1, device="cpu",
                only="OCSVM,MSL,VadCLIP,RTFM", cells=str(tmp_path/"cells"))
    rows = {row["row"]: row for row in saved["rows"]}
    assert list(rows) == ["OCSVM", "RTFM", "MSL", "VadCLIP", "STPrompt"] and saved["missing"] == []
    assert saved["paper"] == "Tables 1 to 3" and rows["MSL"]["frame AUC"] == ""
    assert {f"paper, {name} {what}" for name in PAPER_ROWS for what in ("AUC", "TIoU")} <= set(rows["MSL"])
    looks = {row["row"]: row for row in saved["tables"]["Where"]}
    assert list(looks) == ["VadCLIP", "STPrompt"] and looks["VadCLIP"]["chosen on"] == "validation boxes"
    assert rows["VadCLIP"][TIOU] == looks["VadCLIP"][TIOU] and rows["RTFM"][TIOU] == ""
    assert broken_seals(tmp_path) == [] and saved["code"]["notebook_sha256"]
    ranked = saved["tables"]["Average ranks over abnormal videos"]
    assert bool(ranked) == (tmp_path/"ranks.png").is_file() and KEPT_THRESHOLDS.keys() <= LOOKING.keys()
    data_of.cache_clear()


def test_the_costs_notebook_counts_and_measures_in_a_smoke_size(tmp_path):
    saved = run("reproduce/table_7", tmp_path, smoke=True, device="cpu", only="SVM baseline,VadCLIP")
    rows = {row["row"]: row for row in saved["rows"]}
    assert rows["STPrompt"]["paper, parameters, M"] == 31.5 and rows["VadCLIP"]["GFLOP, a step"] > 0
    assert rows["SVM baseline"]["ms, a step"] == "" and rows["VadCLIP"]["ms, a video scored"] > 0
    assert saved["machine"]["cpu"] and saved["threads"] and "sealed" not in saved
    assert "unexplained" not in saved["paper"] and "31.5" in (tmp_path/"table.md").read_text()


def test_rows_of_one_sweep_have_names_of_their_own(job):
    with pytest.raises(GridError, match="two are called 'RTFM'"):
        plan(job, [row_of(method_named("RTFM"), job)] * 2, [0])
