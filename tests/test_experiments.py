"The paper's row by one name, published features without a video, and one store for extraction and training."
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stprompt.catalog import DATASETS
from stprompt.command import main
from stprompt.experiments import (
    JobError,
    TrainJob,
    departures,
    evaluate,
    feature_settings,
    fit,
    locate,
    prepare,
    record,
    score,
    settings_table,
)
from stprompt.features import store_folder
from stprompt.other_jobs import ExtractJob
from stprompt.sweeps import SeedJob

OFFICIAL = ("ucf_crime", "shanghaitech", "ubnormal", "xd_violence")


# ---- one command, the paper's values -------------------------------------------------------------
@pytest.mark.parametrize("dataset", OFFICIAL)
@pytest.mark.parametrize("kind", [TrainJob, ExtractJob, SeedJob])
def test_a_name_alone_is_the_paper_s_row(kind, dataset, tmp_path):
    job = kind(dataset=dataset, root=str(tmp_path))
    assert (job.backbone, job.weights, job.mode, job.k) == ("ViT-B-16", "openai", "crop", 12)
    assert job.stride == (16 if dataset in ("ucf_crime", "xd_violence") else 4)
    if kind is not ExtractJob:
        assert (job.max_length, job.lr, job.batch, job.beta) == (256, 1e-4, 64, 2)
        assert job.alpha == (1 if dataset == "ubnormal" else .9)
    assert departures(job) == []


@pytest.mark.parametrize("open_value", [{}, {"backbone": "", "weights": "", "mode": "", "k": 0, "stride": 0,
                                             "epochs": 0, "lr": 0., "batch": 0, "alpha": -1., "beta": -1.,
                                             "max_length": 0, "validation": -1.}])
def test_what_is_left_open_is_the_benchmark_s_own(open_value, tmp_path):
    official = TrainJob(dataset="shanghaitech", root=str(tmp_path), **open_value)
    assert (official.backbone, official.epochs, official.validation) == ("ViT-B-16", 50, .15)
    bundled = TrainJob(**open_value)
    assert (bundled.backbone, bundled.weights, bundled.mode, bundled.lr) == ("mini", "", "token", 1e-3)


def test_a_parameter_says_otherwise(tmp_path):
    here = {"dataset": "ucf_crime", "root": str(tmp_path)}
    assert TrainJob(**here, backbone="mini").weights == ""
    assert TrainJob(**here, weights="laion400m_e32").backbone == "ViT-B-16"
    job = TrainJob(**here, mode="token", alpha=0., k=3, spatial="average")
    assert departures(job) == ["mode: 'token'; the paper: 'crop'", "k: 3; the paper: 12",
                               "alpha: 0.0; the paper: 0.9", "spatial: 'average'; the paper: 'sa2'"]
    assert dataclasses.replace(job, seed=3).alpha == 0
    with pytest.raises(JobError, match="no weights named"): TrainJob(**here, backbone="ViT-L-14")


def test_the_table_of_settings_names_both(tmp_path):
    table = settings_table(TrainJob(dataset="ucf_crime", root=str(tmp_path), mode="token"))
    assert table.loc["mode"].tolist() == ["token", "crop"] and table.loc["lr"].tolist() == [1e-4, 1e-4]
    assert table.loc["epochs", "the paper"] == ""         # the paper does not say


@pytest.mark.parametrize("dataset", DATASETS)
def test_extraction_and_training_read_one_store(dataset, tmp_path):
    "The same parameters, the same folder: no features are made that the next command does not read."
    (tmp_path/"list.csv").write_text("path,label\n")
    root = tmp_path/"list.csv" if dataset == "csv" else "" if dataset == "ministreet" else tmp_path
    clip = SimpleNamespace(identity={"name": "a", "weights": "b", "sha256": "c"}, precision="fp32")
    for more in ({}, {"k": 7, "stride": 3}, {"backbone": "ViT-B-16", "weights": "random", "mode": "crop"}):
        jobs = [kind(dataset=dataset, root=str(root), **more) for kind in (TrainJob, ExtractJob, SeedJob)]
        assert len({(job.backbone, job.weights) for job in jobs}) == 1
        settings = [feature_settings(job, clip) for job in jobs]
        benchmark = SimpleNamespace(name=dataset, items=tuple, sha256="1" * 64)
        assert len({store_folder(benchmark, one, str(root)) for one in settings}) == 1


# ---- known before the work -----------------------------------------------------------------------
def clips(root, **counts):
    "Class folders of files that nobody may look into."
    for name, count in counts.items():
        for n in range(count):
            (root/name).mkdir(parents=True, exist_ok=True)
            (root/name/f"{n}.mp4").write_bytes(b"not looked at")
    return root


@pytest.mark.parametrize("counts, words", [
    (dict(fight=1, normal=9), "the test split has 3 normal and 0 abnormal videos; give at least four"),
    (dict(fight=1, normal=1), "the test split has 0 normal and 0 abnormal videos")])
def test_splits_without_both_kinds_are_refused_before_extraction(tmp_path, counts, words):
    job = TrainJob(dataset="folder", root=str(clips(tmp_path/"clips", **counts)), out=str(tmp_path/"out"))
    with pytest.raises(JobError, match=words): prepare(job)


def test_an_odd_batch_and_an_out_that_cannot_be_written(tmp_path):
    with pytest.raises(JobError, match="batch=63: half normal, half abnormal videos; take 64"):
        TrainJob(batch=63)
    (tmp_path/"file").write_text("")
    job = TrainJob(dataset="folder", root=str(clips(tmp_path/"clips", fight=4, normal=4)),
                   out=str(tmp_path/"file"/"out"))
    with pytest.raises(JobError, match="out='.*file/out': nothing can be written here"): prepare(job)


# ---- published features, no videos ---------------------------------------------------------------
def publish(folder, dim=192, crops=range(10), count=6, length=20):
    "Files and lists in the shape of VadCLIP's: abnormal ones drift away from the normal ones."
    draw = np.random.default_rng(0)
    kinds = [("Abuse", "Abuse", "Abuse{:03d}_x264"),
             ("Training_Normal_Videos_Anomaly", "Normal", "Normal_Videos{:03d}_x264")]
    lists, spans = {"": ["path,label"], "test": ["path,label"]}, []
    for place, label, name in kinds:
        for n in range(2 * count):
            part, video = ("test" if n >= count else ""), name.format(n + 1)
            place = place.replace("Training", "Testing") if part else place
            for crop in (5,) if part else crops:
                x = draw.normal(size=(length, dim)).astype(np.float32)
                if label == "Abuse": x[5:10, :8] += 3
                path = folder/place/f"{video}__{crop}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, x)
                lists[part].append(f"/home/authors/UCFClipFeatures/{place}/{path.name},{label}")
            if part: spans.append(f"{video}.mp4  {label}  " + ("81  160  -1  -1" if label == "Abuse"
                                                               else "-1  -1  -1  -1"))
    for part, lines in lists.items(): (folder/f"ucf_CLIP_rgb{part}.csv").write_text("\n".join(lines))
    (folder/"Temporal_Anomaly_Annotation.txt").write_text("\n".join(spans))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory): return publish(tmp_path_factory.mktemp("published"))


def quick(folder, **more):
    return TrainJob(**{"dataset": "ucf_crime", "features": str(folder), "backbone": "mini", "epochs": 2,
                       "device": "cpu", "lr": 1e-3, **more})


def test_published_features_go_through_the_whole_job(published, tmp_path):
    job = quick(published, epochs=10)
    data = prepare(job)
    assert job.spatial == "none" and "spatial: 'none'; the paper: 'sa2'" in departures(job)
    splits = [getattr(data.benchmark, name) for name in ("train", "validation", "test")]
    assert list(map(len, splits)) == [100, 2, 12]
    assert "100 samples" in repr(data) and data.truths["Abuse/Abuse007_x264__5"].mask.sum() == 80
    fitted = fit(job, data)
    scored, found = score(fitted, data), locate(job, data)
    report = evaluate(scored, found, data)
    assert report["frame_auc"] > 80 and "mean_iou" in report.skipped
    files = record(tmp_path, job, data, fitted, scored, report)
    assert "model/detector.json" in files
    table = (tmp_path/"table.md").read_text()
    assert "88.08" in table and "paper (UCF-Crime)" in table and "spatial: 'none'" in table
    assert "2 of 102 samples" in json.loads((tmp_path/"metrics.json").read_text())["selected_on"]


def test_the_command_trains_on_published_features(published, tmp_path, capsys):
    words = ["train", "--dataset", "ucf_crime", "--features", str(published), "--backbone", "mini",
             "--epochs", "2", "--crops", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    assert {"curves.png", "losses.png", "metrics.png", "table.md"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path/"localization.png").exists()         # there are no pictures
    assert "spatial: 'none'; the paper: 'sa2'" in capsys.readouterr().out


def test_one_crop_or_ten_and_everything_trained_on(published):
    count = {(crops, share): len(prepare(quick(published, crops=crops, validation=share)).benchmark.train)
             for crops in (1, 10) for share in (-1., 0.)}
    assert count == {(1, -1.): 10, (1, 0.): 12, (10, -1.): 100, (10, 0.): 120}
    job = quick(published, crops=1, validation=0.)
    data = prepare(job)
    fitted = fit(job, data)
    assert fitted.history.best_epoch == 2                   # nothing chooses: the last epoch stays
    last = fitted.history.last_state
    assert all(torch.equal(value, last[name]) for name, value in fitted.model.state_dict().items())


def test_published_features_are_refused_before_any_work(published, tmp_path):
    for wrong, words in (({"stride": 8}, "stride=8"), ({"features": str(tmp_path)}, "no ucf_CLIP|Temporal"),
                         ({"frame_counts": "nowhere.txt"}, "nowhere.txt"),
                         ({"dataset": "shanghaitech"}, "VadCLIP published those of ucf_crime")):
        with pytest.raises(ValueError, match=words): prepare(quick(published, **wrong))
    with pytest.raises(JobError, match="extracted already"):
        ExtractJob(dataset="ucf_crime", features=str(published))
