"""What a run writes down, what it refuses to, and what it never says."""
import json
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from stprompt import files
from stprompt import results as R
from stprompt.metrics import Report


def a_report(value=80.):
    return Report(
        {"frame_auc": {"mean": value, "ci95": [value - 5, value + 5]}, "tiou": {"mean": 10., "ci95": None}},
        floors={"frame_auc": 50., "iou best": 12.},
        skipped={"patch_auc": "no localization was given"},
        thresholds={"oracle": .5},
    )


def a_record(*values, experiment="x", **known):
    reports = {seed: a_report(value) for seed, value in enumerate(values or (80.,))}
    return R.make_record(experiment, reports, started=time.time(), **known)


def test_the_record_has_every_field_of_the_schema(tmp_path):
    record = a_record(
        80, 82, experiment="Table 6, both", paper="Table 6, row 2", parameters={"epochs": 3},
        benchmark={"name": "ministreet", "version": 1, "sha256": "ab"},
        clip={"name": "mini", "weights": "assets", "sha256": "cd"}, selected_on="validation frame AUC",
        more={"threshold": .5})
    R.write_record(tmp_path / "x", record)
    saved = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert list(saved) == [
        "experiment", "paper", "benchmark", "clip", "parameters", "seeds", "metrics", "floors", "by_size",
        "thresholds", "skipped", "counts", "selected_on", "more", "code", "machine", "versions", "seconds",
        "started"]
    assert set(saved["code"]) >= {"commit", "dirty", "notebook_sha256"}
    assert set(saved["machine"]) >= {"cpu", "gpu", "torch", "threads"}
    assert saved["metrics"]["frame_auc"] == {
        "mean": 81, "ci95": [76, 86], "per_seed": {"0": 80, "1": 82}, "std": pytest.approx(2**.5)}
    assert saved["thresholds"] == {"0": {"oracle": .5}, "1": {"oracle": .5}}
    assert saved["more"] == {"threshold": .5}
    page = (tmp_path / "x" / "table.md").read_text()
    assert "ours (ministreet)" in page and "paper (" not in page and "no localization was given" in page
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["metrics.json", "table.md"]


def test_the_page_of_a_committed_record_is_the_committed_page():
    "The format of table.md: what write_record makes of ministreet-small/train today is what lies there."
    folder = Path(__file__).resolve().parent.parent / "results" / "ministreet-small" / "train"
    record = R.RunRecord(**json.loads((folder / "metrics.json").read_text()))
    assert R.table_page(record) == (folder / "table.md").read_text()


def test_a_record_does_not_change():
    with pytest.raises(AttributeError): a_record().seconds = 0


def test_paper_and_ours_never_share_a_column():
    for benchmark in R.PAPER:
        table = R.metric_table(a_report(), "ministreet", paper=benchmark)
        paper = [f"{R.PAPER[benchmark][name]:.2f}" for name in ("frame_auc", "tiou")]
        assert table[f"paper ({benchmark})"].tolist() == paper
        assert table["ours (ministreet)"].tolist() == ["80.00", "10.00"]
    assert R.PAPER["UCF-Crime"] == {"frame_auc": 88.08, "tiou": 23.90}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_number_that_is_not_finite_is_refused_and_leaves_the_old_result(tmp_path, value):
    R.write_record(tmp_path, a_record())
    before = (tmp_path / "metrics.json").read_bytes(), (tmp_path / "table.md").read_bytes()
    with pytest.raises(R.ResultError, match="metrics.frame_auc.mean: expected a finite number"):
        R.write_record(tmp_path, a_record(value))
    assert before == ((tmp_path / "metrics.json").read_bytes(), (tmp_path / "table.md").read_bytes())
    assert len(list(tmp_path.iterdir())) == 2


def test_no_names_of_machine_user_or_folder(tmp_path):
    places = {"root": tmp_path / "secret-home" / "videos", "out": str(tmp_path / "there")}
    R.write_record(tmp_path / "x", a_record(parameters=places))
    for file in ("metrics.json", "table.md"):
        text = (tmp_path / "x" / file).read_text()
        assert "secret-home" not in text and str(tmp_path) not in text
        assert str(Path(R.__file__).parent) not in text
        assert len(platform.node()) < 5 or platform.node() not in text
    saved = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert saved["parameters"] == {"root": ".../videos", "out": ".../there"}


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_): raise OSError("disk full")
    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError): R.write_json(tmp_path / "a.json", "x")
    assert not list(tmp_path.iterdir())


def test_code_identity_of_a_checkout_and_of_an_installed_package(tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    package = tmp_path / "stprompt"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    assert R.code_identity(package=package)["commit"].startswith("none: stprompt ")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    clean = R.code_identity(package=package, notebook=package / "a.py")
    assert len(clean["commit"]) == 40 and clean["dirty"] is False and len(clean["notebook_sha256"]) == 64
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    assert R.code_identity(package=package)["dirty"] is False     # a result does not make the code dirty
    (package / "a.py").write_text("2\n")
    assert R.code_identity(package=package)["dirty"] is True
    inside = tmp_path / ".venv" / "site-packages" / "stprompt"
    inside.mkdir(parents=True)     # installed inside somebody's checkout is not that checkout
    assert R.code_identity(package=inside)["commit"].startswith("none: ")


def test_without_git_the_version_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert R.code_identity()["commit"].startswith("none: stprompt ")


@pytest.mark.parametrize("make, words", [
    (lambda: a_record(epochs=1), "epochs: no such field"),
    (lambda: R.write_record("x", a_record(), paper_table="MiniStreet"), "UCF-Crime"),
    (lambda: R.merge_seeds({0: a_report(), 1: Report()}), "different metrics"),
])
def test_mistakes_end_with_one_sentence(make, words):
    with pytest.raises(R.ResultError, match=words): make()


def test_the_index_holds_every_experiment_that_lies_there(tmp_path):
    R.write_record(tmp_path / "b" / "train", a_record(80, 82, experiment="STPrompt on b", paper="Table 1"))
    (tmp_path / "b" / "train" / "curves.png").write_bytes(b"")
    seen = R.provenance()
    speed = {"experiment": "speed", "rows": [{"ratio": "42.5"}], **seen}
    R.write_json(tmp_path / "bench" / "metrics.json", speed)
    exam = {"objects": {"auroc": .9589, "ci95": [.95, .967], "n": 2000}}
    clip = {"experiment": "exam", "metrics": exam, "training_seconds": 12., **seen}
    R.write_json(tmp_path / "mini_clip" / "metrics.json", clip)
    page = R.write_index(tmp_path).read_text()
    assert page.count("\n## ") == 3 and str(tmp_path) not in page
    for words in ("| frame AUC | 81.00 ± 1.41 | 76.00 to 86.00 | - | 50.00 |", "Paper: Table 1.", "| 42.5 |",
                  "| objects | 0.959 | 0.950 to 0.967 | 2000 |", "[curves.png](b/train/curves.png)"):
        assert words in page, words


def test_the_index_of_the_committed_results_can_be_made(tmp_path):
    results, n = Path(__file__).resolve().parent.parent / "results", 0
    for path in results.rglob("metrics.json"):
        assert R.index_section(path.parent, results).startswith("## ")
        n += 1
    assert n >= 6
    page = R.index_section(results / "surv_fight" / "footage", results)
    again = next(line for line in page.splitlines() if line.startswith("Again: "))
    assert again.startswith("Again: `papermill nbs/footage.ipynb out/footage.ipynb -r ")
    assert "-r root ../shared/data/surv_fight" in again
