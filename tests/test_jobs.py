"The jobs through papermill, in a smoke size: they run, repeat, refuse, and work on a folder of clips."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import papermill
import pytest

from stprompt.jobs import JobError, SeedJob, TrainJob
from stprompt.model import STPrompt
from stprompt.video import write_video

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ROOT.parent / "shared" / "data" / "surv_fight"


def run(name, out, cwd=None, **parameters):
    "Executes a job notebook from any folder; the folder of its results."
    papermill.execute_notebook(str(ROOT / "nbs" / f"{name}.ipynb"), str(out / "executed.ipynb"), {**parameters, "out": str(out)}, progress_bar=False, cwd=str(cwd or out))
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    return out, run("train", out, epochs=2, device="cpu")


def test_the_main_job_writes_everything(smoke):
    out, record = smoke
    for name in ("table.md", "losses.png", "curves.png", "metrics.png", "localization.png", "model/model.safetensors", "model/config.json", "model/README.md"):
        assert (out / name).stat().st_size > 100, name
    assert "2408.05905" in (out / "model" / "README.md").read_text()
    assert {"frame_auc", "ano_auc", "frame_ap", "tiou", "tiou_oracle", "mean_iou", "patch_auc", "patch_ap"} <= set(record["metrics"])
    assert record["parameters"]["epochs"] == 2 and record["code"]["commit"] and record["machine"]["cpu"] and record["versions"]["torch"] and record["seconds"] > 0
    assert all(0 <= m["ci95"][0] <= m["mean"] <= m["ci95"][1] <= 100 for m in record["metrics"].values())
    assert record["clip"]["name"] and record["benchmark"]["sha256"] and "frame_auc" in record["more"]["last_epoch"]


def test_two_runs_are_identical(smoke, tmp_path):
    _, first = smoke
    again = run("train", tmp_path, cwd=tmp_path, epochs=2, device="cpu")
    assert again["metrics"] == first["metrics"] and again["more"]["last_epoch"] == first["more"]["last_epoch"]


def test_the_checkpoint_loads(smoke):
    model = STPrompt.from_pretrained(smoke[0] / "model")
    assert sum(p.numel() for p in model.parameters()) > 1000 and not model.training


def test_a_typo_stops_the_run(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="epcohs"): run("train", tmp_path, epcohs=7)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("wrong, words", [
    ({"dataset": "ucf"}, "dataset='ucf'.*ministreet"), ({"size": "huge"}, "size='huge'.*small"), ({"epochs": -1}, "epochs=-1"), ({"epochs": 1.5}, "epochs=1.5.*int"),
    ({"dataset": "folder", "root": "no such folder"}, "root='no such folder'"), ({"backbone": "ViT-B-16"}, "weights"), ({"weights": "openai"}, "mini CLIP"), ({"device": "tpu"}, "device='tpu'"),
    ({"spatial": "sa3"}, "spatial='sa3'.*sa2"), ({"adapter": "gcn"}, "adapter"), ({"branches": "c"}, "branches"), ({"fusion": 2.0}, "fusion=2"), ({"sigma": 0.0}, "sigma=0"), ({"seed": True}, "seed=True")])
def test_every_wrong_parameter_is_named(wrong, words):
    with pytest.raises(JobError, match=words): TrainJob(**wrong)


def test_seeds_are_checked():
    assert SeedJob(seeds="3, 4").seeds == "3, 4"
    with pytest.raises(JobError, match="seeds='a,b'"): SeedJob(seeds="a,b")


def test_the_seeds_job_runs_to_its_end(tmp_path):
    record = run("seeds", tmp_path, size="small", seeds="0,1", epochs=1, device="cpu")
    assert record["seeds"] == [0, 1] and "std" in record["metrics"]["frame_auc"] and len(record["more"]["stages"]) == 8 and len(record["more"]["localizers"]) == 4
    assert {"queries", "lambda", "best trivial"} <= set(record["more"]["choices"][0]) and (tmp_path / "table.md").read_text().count("\n## ") == 3
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"README.md", "config.json", "model.safetensors", "detector.json"} and (tmp_path / "localization.png").exists()


def make_clips(root, n=6):
    rng = np.random.default_rng(0)
    for label, shift in (("fight", 40), ("noFight", 0)):
        (root / label).mkdir(parents=True)
        for i in range(n): write_video(root / label / f"{label}{i}.mp4", (rng.integers(0, 120, (48, 64, 3), np.uint8) + np.uint8(shift) for _ in range(24)), 25)
    return root


def test_a_folder_of_clips(tmp_path):
    root = make_clips(tmp_path / "clips")
    record = run("train", tmp_path, dataset="folder", root=str(root), epochs=2, device="cpu")
    assert set(record["metrics"]) == {"video_auc", "video_ap"} and "frame_auc" in record["skipped"]
    assert "needs frame-level" in record["skipped"]["frame_auc"] and (tmp_path / "curves.png").exists() and not (tmp_path / "localization.png").exists()


def test_a_bad_clip_is_named_and_the_rest_is_kept(tmp_path):
    root = make_clips(tmp_path / "clips")
    (root / "fight" / "fight9.mp4").write_bytes(b"not a film")
    with pytest.raises(papermill.PapermillExecutionError, match="fight9"): run("train", tmp_path, dataset="folder", root=str(root), epochs=1, device="cpu")
    (root / "fight" / "fight9.mp4").unlink()
    assert run("train", tmp_path, dataset="folder", root=str(root), epochs=1, device="cpu")["metrics"]


@pytest.mark.skipif(not CLIPS.is_dir(), reason="../shared/data/surv_fight is not here")
def test_real_clips_are_listed():
    from stprompt.datasets import folder_benchmark
    bench = folder_benchmark(CLIPS)
    assert len(bench.items()) == 200 and sum(i.is_abnormal for i in bench.items()) == 100
