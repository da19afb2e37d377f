"The paper's figures: sizes from boxes alone, videos and frames by a rule, numbers beside each picture."
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_experiments import publish
from test_jobs import run

from stprompt.clip import mini_config
from stprompt.datasets import NORMAL, UCF_CRIME, DatasetError, GroundTruth
from stprompt.experiments import JobError, Located
from stprompt.grid import data_of
from stprompt.metrics import size_terciles
from stprompt.options import comments, parameters
from stprompt.paper_figures import (
    WITH_BOXES,
    BoxedVideos,
    FigureJob,
    SizesJob,
    box_shares,
    boxed_videos,
    drawn_cell,
    rank_titles,
    ranked_frames,
    record_figure,
    share_table,
    tercile_bounds,
)
from stprompt.tables import broken_seals

ROOT = Path(__file__).resolve().parent.parent
OFFICIAL = ROOT.parent/"shared"/"annotations"/"ucf_crime"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published"), mini_config()["model_cfg"]["embed_dim"])


@pytest.fixture
def lists(tmp_path):
    "Official lists of three videos, one without boxes."
    names = ["Abuse/Abuse001_x264.mp4", "Arson/Arson002_x264.mp4",
             "Testing_Normal_Videos_Anomaly/Normal_Videos003_x264.mp4"]
    (tmp_path/"Anomaly_Test.txt").write_text("\n".join(names))
    boxes = {"Abuse001_x264": [["image_0001.jpg", 1, 1, 160, 240], ["image_0017.jpg", 1, 1, 320, 240]],
             "Arson002_x264": [["image_0033.jpg", 1, 1, 32, 24]],
             "Elsewhere": [["image_0001.jpg", 1, 1, 2, 2]]}
    (tmp_path/"Test_annotation.pkl").write_bytes(pickle.dumps(boxes, 2))
    return tmp_path


# ---- sizes --------------------------------------------------------------------------------------
def test_sizes_come_from_official_lists_without_any_video(lists):
    videos = boxed_videos(SizesJob(dataset="ucf_crime", annotations=str(lists)))
    assert videos.labels == {"Abuse001_x264": "Abuse", "Arson002_x264": "Arson"} and len(videos.sha256) == 64
    shares = box_shares(videos)
    assert shares.values.tolist() == [["Abuse", "Abuse001_x264", 0, .5], ["Abuse", "Abuse001_x264", 16, 1.],
                                      ["Arson", "Arson002_x264", 32, .01]]
    table = share_table(shares).set_index("row")
    assert table.loc["Abuse", ["videos", "frames", "50 %"]].tolist() == [1, 2, 75.0]
    assert table.loc["all", ["videos", "frames", "50 %"]].tolist() == [2, 3, 50.0]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="../shared/annotations is not here")
def test_the_official_boxes_are_all_counted():
    videos = boxed_videos(SizesJob(dataset="ucf_crime", annotations=str(OFFICIAL)))
    shares = box_shares(videos)
    assert (len(videos.truths), len(shares)) == (140, 3102)
    assert set(shares["class"]) == set(UCF_CRIME) - {NORMAL}
    assert 15 < 100 * shares["share"].median() < 25 and shares["share"].between(0, 1).all()


def test_the_bounds_cut_the_videos_into_thirds():
    areas = np.linspace(.1, .9, 9)
    truths = {f"v{n}": GroundTruth(1, (10, 100), np.ones(1, bool), {0: [[0, 0, 100 * area, 10]]})
              for n, area in enumerate(areas)}
    low, high = tercile_bounds(truths)
    assert np.allclose((low, high), (areas[2], areas[5]))
    thirds = {"small": areas <= low + 1e-9, "large": areas > high + 1e-9}
    for size, inside in thirds.items():
        assert size_terciles(truths)[size] == [f"v{n}" for n in np.flatnonzero(inside)]


@pytest.mark.parametrize("wrong, words", [
    ({"dataset": "ucf_crime", "annotations": "nowhere"}, "annotations='nowhere': no such folder"),
    ({"dataset": "ucf_crime"}, "root='': no such folder"),
    ({"dataset": "ucf"}, "dataset='ucf': choose one of"),
    ({"sise": "full"}, "did you mean size")])
def test_what_is_missing_is_named(wrong, words):
    with pytest.raises(JobError, match=words): SizesJob(**wrong)


def test_lists_that_are_no_lists_are_refused(lists):
    (lists/"Test_annotation.pkl").write_bytes(b"no pickle")
    with pytest.raises(DatasetError, match="not a plain pickle"):
        boxed_videos(SizesJob(dataset="ucf_crime", annotations=str(lists)))


def test_a_benchmark_without_boxes_has_no_sizes_and_no_figure_4(published, tmp_path):
    job = FigureJob(dataset="ucf_crime", features=str(published), backbone="mini", crops=1, epochs=1,
                    max_length=32, device="cpu", cells=str(tmp_path/"cells"), out=str(tmp_path/"out"))
    with pytest.raises(JobError, match="ucf_crime has no boxes.*Figure 4 needs boxes"):
        drawn_cell(job, WITH_BOXES)


# ---- rules --------------------------------------------------------------------------------------
def toy_places(n):
    "Videos whose boxes are right on 0, 1, ... n - 1 of n frames."
    mask, true = np.ones(n, bool), np.array([[0., 0, 4, 4]])
    truths = {f"v{k}": GroundTruth(n, (8, 8), mask, dict.fromkeys(range(n), true)) for k in range(n)}
    right, wrong = np.array([[0., 0, 4, 4, 1]]), np.array([[4., 4, 8, 8, 1]])
    boxes = {f"v{k}": {f: right if f < k else wrong for f in range(n)} for k in range(n)}
    frames = dict.fromkeys(truths, np.arange(n))
    return SimpleNamespace(truths=truths, places={"STPrompt": Located(boxes, {}, {}, frames)})


def test_figure_4_goes_from_the_best_to_the_worst():
    ranked = ranked_frames(toy_places(11), 6)
    assert ranked["row"].tolist() == ["v10", "v8", "v6", "v4", "v2", "v0"]
    assert ranked["rank"].tolist() == [f"{n} of 11" for n in (1, 3, 5, 7, 9, 11)]
    assert ranked["the video's mean IoU"].iloc[-1] == 0 and ranked["IoU"].iloc[-1] == 0
    assert ranked["frame"].tolist()[:2] == [0, 0]              # right on 10 of 11: a frame that is right
    assert len(ranked_frames(toy_places(3), 6)) == 3
    assert rank_titles(ranked)["v0"] == "11 of 11: v0, IoU 0 %"


def test_a_record_that_was_edited_is_named(tmp_path):
    shares = box_shares(BoxedVideos("toy", "0", toy_places(2).truths, {"v0": "a", "v1": "b"}))
    facts = {"benchmark": {"name": "toy", "sha256": "0" * 64}, "clip": {}, "missing": ["nothing | at all"]}
    record_figure(tmp_path, "Toy", "all", facts, {"By class": share_table(shares)}, {"x": np.arange(3)})
    assert broken_seals(tmp_path) == [] and "nothing \\| at all" in (tmp_path/"table.md").read_text()
    page = tmp_path/"metrics.json"
    page.write_text(page.read_text().replace('"videos": 2', '"videos": 3'))
    assert len(broken_seals(tmp_path)) == 1


# ---- notebooks ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name, kind, changed", [
    ("figure_1", SizesJob, {}), ("figure_3", FigureJob, {"size": "full"}),
    ("figure_4", FigureJob, {"size": "full"})])
def test_the_parameters_of_a_notebook_are_those_of_its_job(name, kind, changed):
    from rules import cells, source
    book, values = cells(ROOT/"nbs"/"reproduce"/f"{name}.ipynb"), {}
    exec(source(next(c for c in book if "parameters" in c["metadata"].get("tags", ()))), {}, values)
    given, plain = kind(**parameters(values)), kind()
    found = {key: getattr(given, key) for key in values if getattr(given, key) != getattr(plain, key)}
    assert found == changed
    assert all(comments(kind).values())


def picture(path): return path.stat().st_size > 5000 and path.read_bytes()[:4] == b"\x89PNG"


def test_figure_1_in_a_smoke_size(tmp_path):
    record = run("reproduce/figure_1", tmp_path, smoke=True)
    assert picture(tmp_path/"sizes.png") and broken_seals(tmp_path) == [] and record["paper"] == "Figure 1"
    assert record["benchmark"]["name"] == "ministreet-small" and record["code"]["notebook_sha256"]
    assert sum(map(len, record["drawn"]["frames"].values())) == record["rows"][-1]["frames"]


def test_figure_3_from_published_features(published, tmp_path):
    given = {"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "crops": 1, "batch": 8,
             "max_length": 32, "device": "cpu", "cells": str(tmp_path/"cells")}
    record = run("reproduce/figure_3", tmp_path, smoke=True, **given)
    assert picture(tmp_path/"curves.png") and broken_seals(tmp_path) == [] and len(record["cells"]) == 1
    assert [row["class"] for row in record["rows"]] == ["Abuse", "Normal"]
    first = record["rows"][0]["row"]
    assert first.endswith("Abuse007_x264__5") and list(record["drawn"]["curves"])[0] == first
    drawn = record["drawn"]["curves"][first]
    assert drawn["from"][0] == 0 and len(drawn["from"]) == len(drawn["score"]) <= 20     # features


def test_figure_4_in_a_smoke_size(tmp_path):
    record = run("reproduce/figure_4", tmp_path, smoke=True, stride=32, device="cpu",
                 cells=str(tmp_path/"cells"))
    assert picture(tmp_path/"localization.png") and broken_seals(tmp_path) == []
    means = [row["the video's mean IoU"] for row in record["rows"]]
    assert means == sorted(means, reverse=True) and len(means) == 6
    assert record["rows"][0]["rank"].startswith("1 of ") and list(record["drawn"]) == [
        row["row"] for row in record["rows"]]
    data_of.cache_clear()
