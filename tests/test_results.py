"""What a run writes down, what it refuses to, and what it never says."""
import json, os, platform, subprocess, sys
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import numpy as np
import pytest

from stprompt import results as R
from stprompt.metrics import Report


def a_report(value=80.):
    report = Report(floors={"frame_auc": 50., "iou best": 12.}, skipped={"patch_auc": "no localization was given"}, thresholds={"oracle": .5})
    report.add("frame_auc", value, [value - 5, value + 5]); report.add("tiou", 10.)
    return report


def test_the_record_has_every_field_of_the_schema(tmp_path):
    run = R.Run(tmp_path / "x", "Table 6, both", paper="Table 6, row 2", benchmark={"name": "ministreet", "version": 1, "sha256": "ab"},
                clip={"name": "mini", "weights": "assets", "sha256": "cd"}, parameters={"epochs": 3}, selected_on="validation frame AUC")
    run.finish({0: a_report(80), 1: a_report(82)})
    saved = json.loads((tmp_path / "x" / "metrics.json").read_text())
    for name in ("experiment", "paper", "benchmark", "clip", "parameters", "seeds", "metrics", "floors", "selected_on", "code", "machine", "seconds", "started"):
        assert name in saved, name
    assert set(saved["code"]) >= {"commit", "dirty", "notebook_sha256"} and set(saved["machine"]) >= {"cpu", "gpu", "torch", "threads"}
    assert saved["metrics"]["frame_auc"] == {"mean": 81, "ci95": [76, 86], "per_seed": {"0": 80, "1": 82}, "std": pytest.approx(2 ** .5)}
    page = (tmp_path / "x" / "table.md").read_text()
    assert "ours (ministreet)" in page and "paper (" not in page and "no localization was given" in page
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["metrics.json", "table.md"]


def test_paper_and_ours_never_share_a_column():
    for benchmark in R.PAPER:
        table = R.metric_table(a_report(), "ministreet", paper=benchmark)
        assert table[f"paper ({benchmark})"].tolist() == [f"{R.PAPER[benchmark]['frame_auc']:.2f}", f"{R.PAPER[benchmark]['tiou']:.2f}"]
        assert table["ours (ministreet)"].tolist() == ["80.00", "10.00"]
    assert R.PAPER["UCF-Crime"] == {"frame_auc": 88.08, "tiou": 23.90}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_number_that_is_not_finite_is_refused_and_leaves_the_old_result(tmp_path, value):
    R.Run(tmp_path, "good").finish(a_report())
    before = (tmp_path / "metrics.json").read_bytes(), (tmp_path / "table.md").read_bytes()
    with pytest.raises(R.ResultError, match="metrics.frame_auc.mean: expected a finite number"): R.Run(tmp_path, "bad").finish(a_report(value))
    assert before == ((tmp_path / "metrics.json").read_bytes(), (tmp_path / "table.md").read_bytes())
    assert len(list(tmp_path.iterdir())) == 2


def test_no_names_of_machine_user_or_folder(tmp_path):
    run = R.Run(tmp_path / "x", "x", parameters={"root": tmp_path / "secret-home" / "videos", "out": str(tmp_path / "there")})
    run.finish(a_report())
    for file in ("metrics.json", "table.md"):
        text = (tmp_path / "x" / file).read_text()
        assert "secret-home" not in text and str(tmp_path) not in text and str(Path(R.__file__).parent) not in text
        assert len(platform.node()) < 5 or platform.node() not in text
    assert json.loads((tmp_path / "x" / "metrics.json").read_text())["parameters"] == {"root": ".../videos", "out": ".../there"}


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_): raise OSError("disk full")
    monkeypatch.setattr(R.os, "replace", broken)
    with pytest.raises(OSError): R.write_atomic(tmp_path / "a.txt", "x")
    assert not list(tmp_path.iterdir())


def test_code_identity_of_a_checkout_and_of_an_installed_package(tmp_path):
    def git(*words): subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)
    (tmp_path / "stprompt").mkdir(); (tmp_path / "stprompt" / "a.py").write_text("1\n")
    assert R.code_identity(package=tmp_path / "stprompt")["commit"].startswith("none: stprompt ")
    git("init"); git("add", "."); git("commit", "-m", "x")
    clean = R.code_identity(package=tmp_path / "stprompt", notebook=tmp_path / "stprompt" / "a.py")
    assert len(clean["commit"]) == 40 and clean["dirty"] is False and len(clean["notebook_sha256"]) == 64
    (tmp_path / "results").mkdir(); (tmp_path / "results" / "x.json").write_text("{}")
    assert R.code_identity(package=tmp_path / "stprompt")["dirty"] is False          # a result does not make the code dirty
    (tmp_path / "stprompt" / "a.py").write_text("2\n")
    assert R.code_identity(package=tmp_path / "stprompt")["dirty"] is True
    inside = tmp_path / ".venv" / "site-packages" / "stprompt"; inside.mkdir(parents=True)
    assert R.code_identity(package=inside)["commit"].startswith("none: ")            # installed inside somebody's checkout is not that checkout


def test_without_git_the_version_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert R.code_identity()["commit"].startswith("none: stprompt ")


def test_import_needs_no_jupyter_and_prints_nothing():
    code = ("import sys\nclass No:\n  def find_spec(self, name, *a):\n    if name.split('.')[0] in ('IPython', 'jupyter', 'ipykernel', 'nbdev', 'papermill', 'tabulate'): raise ImportError(name)\n"
            "sys.meta_path.insert(0, No())\nimport matplotlib; matplotlib.use('Agg')\nfrom stprompt.results import LivePlot, metric_table, markdown\n"
            "p = LivePlot(); p(1, {'loss': 1.0}); p(2, {'loss': .5, 'validation AUC': 60.}); assert len(p.draw().axes) == 2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(R.__file__).parents[1])})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_live_plot_updates_one_output(monkeypatch):
    shown = []
    class Handle:
        def update(self, figure): shown.append("update")
    def display(figure, display_id): shown.append("new"); return Handle()
    monkeypatch.setattr(R, "_notebook_display", lambda: display)
    live = R.LivePlot()
    for epoch in range(3): live(epoch, {"loss": 1.})
    assert shown == ["new", "update", "update"] and not R.plt.get_fignums()


@pytest.mark.parametrize("make, words", [
    (lambda: R.Run("x", "x", epochs=1), "epochs: no such field"),
    (lambda: R.Run("x", "x", paper_table="MiniStreet"), "UCF-Crime"),
    (lambda: R.draw_localization(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2))), "resize the map"),
    (lambda: R.merge_seeds({0: a_report(), 1: Report()}), "different metrics"),
])
def test_mistakes_end_with_one_sentence(make, words):
    with pytest.raises(R.ResultError, match=words): make()


def test_figures_are_written_whole(tmp_path):
    run = R.Run(tmp_path / "x", "x")
    ax = R.draw_curve(np.random.default_rng(0).random(50), np.arange(50) > 30)
    path = run.figure(ax.figure, "curve")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in path.parent.iterdir()] == ["curve.png"]
    R.plt.close("all")
