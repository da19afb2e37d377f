"Stopped at any moment, a job publishes nothing, says what is kept, and goes on to the same result."
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_experiments import publish

from stprompt.experiments import TrainJob, fit, prepare, record, score, training_file
from stprompt.metrics import Report

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 30


@pytest.fixture(scope="module")
def published(tmp_path_factory): return publish(tmp_path_factory.mktemp("published"))


def start(published, out, epochs=EPOCHS):
    "The training as a process of its own."
    words = ["train", "--dataset", "ucf_crime", "--features", published, "--backbone", "mini", "--out", out,
             "--epochs", epochs, "--crops", 1, "--device", "cpu"]
    return subprocess.Popen([sys.executable, "-m", "stprompt", *map(str, words)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    # (a shell's background job ignores Ctrl-C, and so would what it starts)


def epochs_in(out):
    "Finished epochs in the file that a run goes on from."
    import torch
    if not (training_file(out)).is_file(): return 0
    return len(torch.load(training_file(out), weights_only=True)["history"]["losses"])


def after_epochs(process, out, n, limit=60):
    "Waits until so many epochs are finished."
    until = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < until and epochs_in(out) < n: time.sleep(.02)
    assert process.poll() is None and epochs_in(out) >= n, process.communicate()


def finished(published, out):
    process = start(published, out)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return (out/"model"/"model.safetensors").read_bytes(), json.loads((out/"metrics.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(published, tmp_path_factory): return finished(published, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.skipif(
    not os.environ.get("STPROMPT_SLOW"), reason="slow: STPROMPT_SLOW=1 kills twelve times"))])
def test_killed_and_started_again_it_ends_with_the_same_weights(published, undisturbed, tmp_path, kills):
    draw = random.Random(kills)
    for _ in range(kills):
        process, before = start(published, tmp_path), epochs_in(tmp_path)
        after_epochs(process, tmp_path, before + 1)
        time.sleep(draw.random() / 5)
        process.kill()
        process.communicate()
        assert not (tmp_path/"metrics.json").exists() and not (tmp_path/"model").exists()
        if epochs_in(tmp_path) > EPOCHS - 4: break
    weights, record = finished(published, tmp_path)
    assert weights == undisturbed[0] and record["metrics"] == undisturbed[1]["metrics"]
    assert not (training_file(tmp_path)).exists()               # done: nothing is left to go on from


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_in_one_line(published, tmp_path, number, code):
    process = start(published, tmp_path, epochs=5000)
    after_epochs(process, tmp_path, 2)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code and time.monotonic() - sent < 10     # 1 s where nothing else runs
    last = said.strip().splitlines()[-1]
    assert last.startswith("stopped: interrupted after ") and "the same command goes on" in last
    assert "Traceback" not in said and not (tmp_path/"metrics.json").exists()
    assert epochs_in(tmp_path) >= 2


def stopped_after(n):
    "An on_epoch that is Ctrl-C in the n-th epoch."
    def on_epoch(number, values):
        if number == n: raise KeyboardInterrupt
    return on_epoch


def test_an_interrupted_training_is_no_result_unless_it_is_asked_for(published, tmp_path):
    asked = {"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "epochs": 5,
             "crops": 1, "device": "cpu"}
    job = TrainJob(**asked)
    data = prepare(job)
    with pytest.raises(KeyboardInterrupt, match="after 3 of 5 epochs: they are kept in .*training.pt"):
        fit(job, data, stopped_after(3), training_file(tmp_path))
    with pytest.raises(KeyboardInterrupt, match="after 3 of 5 epochs: nothing is kept"):
        fit(job, data, stopped_after(3))
    going_on = fit(job, data, checkpoint=training_file(tmp_path))
    assert len(going_on.history.losses) == 5 and going_on.unfinished == ""

    wished = TrainJob(**asked, unfinished=True)
    fitted = fit(wished, data, stopped_after(3))
    assert fitted.unfinished == "interrupted at epoch 3 of 5"
    report = Report({"frame_auc": {"mean": 50., "ci95": None, "n": 12}})
    record(tmp_path/"out", wished, data, fitted, score(fitted, data), report)
    for name in ("metrics.json", "table.md", "model/README.md"):
        assert "interrupted at epoch 3 of 5" in (tmp_path/"out"/name).read_text(), name


def test_other_parameters_do_not_go_on_from_it(published, tmp_path):
    asked = {"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "epochs": 5, "crops": 1,
             "device": "cpu"}
    job = TrainJob(**asked)
    data = prepare(job)
    with pytest.raises(KeyboardInterrupt): fit(job, data, stopped_after(2), training_file(tmp_path))
    with pytest.raises(ValueError, match="training.pt: was written with lr=0.0001, this run has 0.01"):
        fit(TrainJob(**asked, lr=.01), data, checkpoint=training_file(tmp_path))
