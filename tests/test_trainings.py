"Trainings side by side: found by the job that asks for the models, and by the tables."
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_experiments import publish

from stprompt import trainings
from stprompt.ablations import TABLE_4, TABLE_5
from stprompt.beyond import BeyondJob, detector_rows
from stprompt.cells import GridError, Row
from stprompt.experiments import prepare
from stprompt.grid import CORES, plan, sweep
from stprompt.learner import LearnerError, Trainer
from stprompt.once import beyond_plan
from stprompt.sweeps import SeedJob, fit_seed, seed_file, trained_rows
from stprompt.trainings import seed_row, train_ahead

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT/'tests'}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def published(tmp_path_factory): return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def job(published, tmp_path):
    return SeedJob(dataset="ucf_crime", features=str(published), backbone="mini", epochs=2, crops=1,
                   device="cpu", seeds="0,1", out=str(tmp_path/"out"))


def two_rows(job): return {"own": job, "bare": dataclasses.replace(job, adapter="none")}

def in_this_process(monkeypatch): monkeypatch.setattr(trainings, "that_fit", lambda processes, data: 1)

def weights(fitted): return {name: x.tolist() for name, x in fitted.model.state_dict().items()}


def trains_nothing(trainer, number): raise AssertionError("an epoch was trained again")


def test_side_by_side_and_one_by_one_are_the_same_and_nothing_is_trained_twice(job, tmp_path, monkeypatch):
    beside, alone = (tmp_path/name for name in ("beside", "alone"))
    assert train_ahead(job, two_rows(job), beside, beside/"cells") == 4
    with monkeypatch.context() as here:
        in_this_process(here)
        assert train_ahead(job, two_rows(job), alone, alone/"cells") == 4
    monkeypatch.setattr(Trainer, "epoch", trains_nothing)
    data = prepare(job)
    for row in two_rows(job).values():
        for seed in (0, 1):
            found = [fit_seed(row, data, seed, out) for out in (beside, alone)]
            assert weights(found[0]) == weights(found[1]) and len(found[0].history.losses) == 2
    rows = [Row("of a table"), Row("another", {"adapter": "none"})]
    table = sweep(job, rows, [0, 1], beside/"cells", processes=1)
    assert len(table.trained) == 4 and not table.plan.todo
    assert {path.suffix for path in (beside/"cells").iterdir()} == {".safetensors"}
    assert train_ahead(job, two_rows(job), beside, beside/"cells") == 0


def test_a_cell_that_is_there_stays_and_the_model_is_trained_for_the_job(job, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    sweep(job, [Row("a table before")], [0, 1], tmp_path/"cells", processes=1)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path/"cells").iterdir()}
    assert train_ahead(job, {"own": job}, tmp_path, tmp_path/"cells") == 2
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path/"cells").iterdir()} == stamps
    assert all(seed_file(job, seed, tmp_path).is_file() for seed in (0, 1))


def test_stopped_it_says_what_is_kept_and_trains_no_epoch_twice(job, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    right, epochs = Trainer.epoch, []

    def epoch(trainer, number):
        epochs.append((trainer.model.options.adapter, trainer.options.seed, number))
        if len(epochs) == 4: raise KeyboardInterrupt
        return right(trainer, number)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    with pytest.raises(KeyboardInterrupt, match="interrupted: 1 of 4 trainings are kept in .*; the same"):
        train_ahead(job, two_rows(job), tmp_path, tmp_path/"cells")
    assert train_ahead(job, two_rows(job), tmp_path, tmp_path/"cells") == 3
    assert epochs[3] == epochs[4] and len(set(epochs)) == 8 and len(epochs) == 9


AHEAD = """
import sys
from test_trainings import two_rows
from stprompt.sweeps import SeedJob
from stprompt.trainings import train_ahead
job = SeedJob(dataset="ucf_crime", features=sys.argv[1], backbone="mini", epochs=2000, crops=1, device="cpu",
              seeds="0,1", out=sys.argv[2] + "/out")
train_ahead(job, two_rows(job), sys.argv[2], sys.argv[2] + "/cells")
"""


@pytest.mark.skipif(CORES < 2, reason="one core")
def test_ctrl_c_leaves_no_process(published, tmp_path):
    hear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)     # a background job ignores it
    process = subprocess.Popen([sys.executable, "-c", AHEAD, str(published), str(tmp_path)], env=ENVIRONMENT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
    until, at_work = time.monotonic() + 100, lambda: list((tmp_path/"trainings").glob("*.pt"))
    while process.poll() is None and time.monotonic() < until and len(at_work()) < 2: time.sleep(.05)
    assert len(at_work()) == 2                        # two trainings at the same time
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)         # ends only when every child has let go of the pipes
    assert "interrupted: 0 of 4 trainings are kept" in said and "the same command goes on" in said


def test_a_training_that_fails_says_why(job, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    def epoch(trainer, number): raise LearnerError("the loss is not finite")
    monkeypatch.setattr(Trainer, "epoch", epoch)
    with pytest.raises(LearnerError, match="not finite"):
        train_ahead(job, two_rows(job), tmp_path, tmp_path/"cells")


def killed(cell, file, asker=0): os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error_in_words(job, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "train_cell", killed)
    monkeypatch.setattr(trainings, "that_fit", lambda processes, data: 2)
    with pytest.raises(GridError, match="a process that trained was killed.*the same command goes on"):
        train_ahead(job, two_rows(job), tmp_path, tmp_path/"cells")
    assert not multiprocessing.active_children()


def test_a_training_that_is_ended_by_hand_is_left_to_the_job(job, tmp_path):
    asked = dataclasses.replace(job, unfinished=True)
    assert train_ahead(asked, two_rows(asked), tmp_path, tmp_path/"cells") == 0
    assert not (tmp_path/"cells").exists()


def test_rows_of_the_seeds_job_are_cells_of_tables_4_to_6():
    job = SeedJob(size="small", epochs=1)
    mine = [seed_row(job, name, row) for name, row in trained_rows(job).items()]
    names = lambda rows: {cell.name for cell in plan(job, rows, [0], "nowhere").cells.values()}
    assert names(TABLE_5.rows) < names(mine)
    assert names([row for row in TABLE_4.rows if row.name == "SA2 + C + A"]) < names(mine)


def test_every_detector_that_an_option_asks_for_is_trained_ahead(tmp_path):
    job = BeyondJob(size="small", epochs=1)
    assert list(detector_rows(job)) == ["sa2", "text", "text_one", "text_motion", "sharp", "sa2_motion"]
    asked = beyond_plan(job, tmp_path).set_index("stage")["in all"]
    assert asked["MiniStreet: trainings"] == 6 * len(job.numbers)
