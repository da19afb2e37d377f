"""Pictures: written whole, drawn from values, and no notebook needed for it."""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from stprompt import figures
from stprompt.datasets import NORMAL, VideoItem
from stprompt.results import ResultError


@pytest.fixture(autouse=True)
def close_all():
    yield
    plt.close("all")


def test_import_needs_no_jupyter_and_prints_nothing():
    code = (
        "import sys\nclass No:\n  def find_spec(self, name, *a):\n    if name.split('.')[0] in ('IPython', "
        "'jupyter', 'ipykernel', 'nbdev', 'papermill', 'tabulate'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\nimport matplotlib; matplotlib.use('Agg')\n"
        "from stprompt.results import metric_table, markdown\nfrom stprompt.figures import LivePlot\n"
        "p = LivePlot(); p(1, {'loss': 1.0}); p(2, {'loss': .5, 'validation AUC': 60.}); "
        "assert len(p.draw().axes) == 2"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(figures.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_live_plot_updates_one_output(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure): shown.append("update")

    def display(figure, display_id):
        shown.append("new")
        return Handle()

    monkeypatch.setattr(figures, "kernel_display", lambda: display)
    live = figures.LivePlot()
    for epoch in range(3): live(epoch, {"loss": 1.})
    assert shown == ["new", "update", "update"] and not plt.get_fignums()


def test_a_heat_map_of_another_size_ends_with_one_sentence():
    with pytest.raises(ResultError, match="resize the map"):
        figures.draw_localization(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2)))


def test_figures_are_written_whole(tmp_path):
    ax = figures.draw_curve(np.random.default_rng(0).random(50), np.arange(50) > 30)
    path = figures.save_figure(ax.figure, tmp_path / "x" / "curve.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"]


def a_test_set(*labels):
    items = [VideoItem(str(n), Path(f"{n}.mp4"), (label,)) for n, label in enumerate(labels)]
    classes = {NORMAL: "normal", **{label: label for label in sorted({*labels} - {NORMAL})}}
    features = {item.id: SimpleNamespace(fps=25.) for item in items}
    benchmark = SimpleNamespace(test=items, classes=classes)
    return SimpleNamespace(benchmark=benchmark, features=features, truths={})


def test_one_video_a_class_the_normal_one_last():
    data = a_test_set(NORMAL, "fire", "fire", "fall", NORMAL)
    assert [item.id for item in figures.examples(data)] == ["3", "1", "0"]
    many = a_test_set(NORMAL, *(f"class {n}" for n in range(13)))
    assert len(figures.examples(many)) == 8 and figures.examples(many)[-1].id == "0"


def test_curves_need_no_truth_and_heats_say_so():
    data = a_test_set("fire", NORMAL)
    scored = SimpleNamespace(frames={"0": np.ones(9), "1": np.zeros(9)}, gate=.5)
    figure = figures.draw_curves(scored, data)
    assert [ax.get_title() for ax in figure.axes] == ["0 (fire)", f"1 ({NORMAL})"]
    assert not any(ax.patches for ax in figure.axes)


def test_without_boxes_one_sentence_instead_of_a_picture(capsys):
    assert figures.draw_heats(SimpleNamespace(heats={}, boxes={}), a_test_set("fire", NORMAL)) is None
    assert "labels per video only" in capsys.readouterr().out


def test_losses_left_and_validation_right():
    rows = [{"epoch": n, "total": 1. / n, "validation": known, "seconds": .1}
            for n, known in ((1, None), (2, None), (3, 60.))]
    left, right = figures.draw_losses(rows).axes
    assert [len(line.get_xdata()) for ax in (left, right) for line in ax.lines] == [3, 1]
    assert [line.get_label() for line in left.lines] == ["total"]
