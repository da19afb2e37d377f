"The real-footage job in a small size, and its trivial rows."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stprompt.datasets import NORMAL, VideoItem
from stprompt.experiments import JobError
from stprompt.footage import divide, footage_table, linear_scores
from stprompt.video import write_video

ROOT = Path(__file__).parents[1]


def test_no_source_is_in_two_folds_and_every_clip_is_in_one():
    rng = np.random.default_rng(3)
    items = [VideoItem(f"{k}", "x.mp4", ("fight",) if rng.random() < .5 else (NORMAL,)) for k in range(120)]
    sources = {item.id: str(rng.integers(0, 17)) for item in items}
    folds = divide(items, sources, 5, seed=1)
    assert sorted(sum(folds, [])) == sorted(item.id for item in items)
    held = [{sources[id] for id in fold} for fold in folds]
    assert all(held[a].isdisjoint(held[b]) for a in range(5) for b in range(a))
    assert folds == divide(items, sources, 5, seed=1) != divide(items, sources, 5, seed=2)


def test_too_few_sources_are_refused():
    items = [VideoItem(f"{k}", "x.mp4", ("fight",) if k % 2 else (NORMAL,)) for k in range(20)]
    with pytest.raises(JobError, match="10 abnormal and 10 normal clips of 2 sources"):
        divide(items, {item.id: str(int(item.id) % 2) for item in items}, 5)


def test_a_source_that_gives_the_label_away_helps_in_random_folds_only():
    rng = np.random.default_rng(0)
    labels = {f"{k}": bool(k // 10 % 2) for k in range(200)}
    rows = {id: [float(int(id) // 10 * 37 % 23), rng.normal()] for id in labels}     # its source's number
    items = [VideoItem(id, "x.mp4", ("fight",) if label else (NORMAL,)) for id, label in labels.items()]
    both = [divide(items, groups, 5) for groups in ({id: str(int(id) // 10) for id in labels}, None)]
    table = footage_table({"motion": linear_scores(rows, labels, both[0])},
                          {"motion": linear_scores(rows, labels, both[1])}, labels)
    assert table["video AUC"][0] < 75 and table["n"][0] == 200


def test_the_job_writes_tables_and_a_detector(tmp_path):
    rng = np.random.default_rng(1)
    for k in range(12):
        folder = tmp_path/"clips"/("fight" if k % 2 else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        images = rng.integers(0, 255, (24, 48, 64 + 16 * (k // 4), 3), np.uint8)
        write_video(folder/f"{k}.mp4", images, fps=12.)
    asked = {"root": tmp_path/"clips", "street": "small", "folds": 2, "epochs": 1, "out": tmp_path/"out"}
    command = [sys.executable, "-m", "papermill", "nbs/footage.ipynb", str(tmp_path/"done.ipynb")]
    for name, value in asked.items(): command += ["-p", name, str(value)]
    known = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    saved = json.loads((tmp_path/"out"/"metrics.json").read_text())
    assert [row["row"] for row in saved["more"]["footage"]][:2] == ["metadata", "motion"]
    assert {row["trained"] for row in saved["more"]["alarms"]} == {
        f"STPrompt, {part}these clips{more}"
        for part in ("", "MiniStreet and ") for more in ("", ", with motion")}
    assert "sources kept apart: hits" in (tmp_path/"out"/"model"/"README.md").read_text()
    detector = json.loads((tmp_path/"out"/"model"/"detector.json").read_text())
    assert saved["more"]["threshold"] == detector["threshold"]
