"Stopped at any moment, a job publishes nothing, says what is kept, and goes on to the same result."
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_experiments import publish
from test_jobs import contents, make_clips

from stprompt.command import main
from stprompt.experiments import TrainJob, fit, locate, prepare, record, score, training_file
from stprompt.files import write_atomic
from stprompt.learner import Trainer
from stprompt.metrics import Report
from stprompt.sweeps import SeedJob, run_seeds, seed_table

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 30
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def published(tmp_path_factory): return publish(tmp_path_factory.mktemp("published"))


def asked(published, out, epochs):
    return {"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "out": str(out),
            "epochs": epochs, "crops": 1, "device": "cpu"}


def process_of(*words):
    "A process of its own; Ctrl-C reaches it (a shell's background job ignores it, and so would this)."
    return subprocess.Popen([sys.executable, "-m", *map(str, words)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def start(published, out, epochs=EPOCHS):
    "The training from the command line."
    pairs = asked(published, out, epochs).items()
    return process_of("stprompt", "train", *(word for name, value in pairs for word in (f"--{name}", value)))


def start_notebook(name, parameters):
    "A job through papermill."
    pairs = [word for name, value in parameters.items() for word in ("-p", name, value)]
    return process_of("papermill", ROOT/"nbs"/f"{name}.ipynb", os.devnull, *pairs)


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
    process.send_signal(number)
    _, said = process.communicate(timeout=60)     # it takes a second where nothing else runs
    assert process.returncode == code
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


# ---- two jobs, one folder ------------------------------------------------------------------------
def test_two_jobs_do_not_share_a_folder_and_a_killed_one_does_not_hold_it(published, undisturbed, tmp_path):
    "papermill first, the command second, SIGKILL to papermill's kernel, the command goes on."
    first = start_notebook("train", asked(published, tmp_path, EPOCHS))
    note = tmp_path/".stprompt.lock.json"
    until = time.monotonic() + 60
    while first.poll() is None and time.monotonic() < until and not note.exists(): time.sleep(.02)
    kernel = json.loads(note.read_text())["process"]
    assert kernel != first.pid
    second = start(published, tmp_path)              # refused before it does any work
    after_epochs(first, tmp_path, 2)
    os.kill(kernel, signal.SIGSTOP)                  # it lives still, and has the folder
    first.kill()
    first.wait()
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2 and "Traceback" not in said
    sentence = said.strip().splitlines()[-1]
    assert f"process {kernel} on " in sentence and "(train.ipynb)" in sentence and str(tmp_path) in sentence
    assert "wait until it has ended, stop it" in sentence and "name another out" in sentence
    os.kill(kernel, signal.SIGKILL)
    assert epochs_in(tmp_path) >= 2 and not (tmp_path/"metrics.json").exists()
    weights, record = finished(published, tmp_path)
    assert weights == undisturbed[0] and record["metrics"] == undisturbed[1]["metrics"]
    assert not list(tmp_path.glob(".*"))


HOLD = """
import sys
from stprompt.files import hold_folder
hold_folder(sys.argv[1], "a job")
print("here", flush=True)
sys.stdin.read()
"""


def test_every_job_asks_for_its_folder(published, tmp_path, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path/"out")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert holder.stdout.readline() == b"here\n"
    before = contents(tmp_path)
    words = f"--features {published} --dataset ucf_crime --backbone mini --out {tmp_path}/out".split()
    for job in (["train", *words], ["detect", "--out", f"{tmp_path}/out"]):
        assert main(job) == 2
        assert f"process {holder.pid} on " in capsys.readouterr().err
    for job in ("train", "seeds", "detect"):
        book = json.loads((ROOT/"nbs"/f"{job}.ipynb").read_text())
        code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
        place = next(n for n, text in enumerate(code) if f'own_out(job, "{job}.ipynb"' in text)
        assert not any(word in "".join(code[:place]) for word in ("prepare(job)", "open_detector(job)"))
    assert contents(tmp_path) == before
    holder.communicate(b"\n")
    assert not list((tmp_path/"out").iterdir())


# ---- two extractors, one store -------------------------------------------------------------------
def counted(process):
    "(extracted, found) of a finished extraction."
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    return tuple(map(int, re.search(r"(\d+) videos extracted, (\d+) found, 0 failed", said).groups()))


def stopped_at_work(process, store):
    "The claims of a process that is stopped while it has some."
    until, claims = time.monotonic() + 60, []
    while not claims and process.poll() is None and time.monotonic() < until:
        process.send_signal(signal.SIGCONT)
        time.sleep(.02)
        process.send_signal(signal.SIGSTOP)
        claims = list(store.glob(".*.claim"))
    return claims


def test_two_extractors_share_a_store_and_take_over_from_a_killed_one(tmp_path):
    "Each video is made once; the two wait for those of a third, which is killed. One decodes in a worker."
    root, store, until = make_clips(tmp_path/"clips", 4), tmp_path/"store", time.monotonic() + 100
    words = ["stprompt", "extract", "--dataset", "folder", "--root", root, "--device", "cpu", "--store"]
    killed = process_of(*words, store, "--workers", 1)
    claims, made = stopped_at_work(killed, store), len(list(store.rglob("*.safetensors")))
    two = [process_of(*words, store, "--workers", workers) for workers in (0, 1)]
    assert main([*map(str, words[1:]), str(tmp_path/"alone")]) == 0
    others = lambda: len(list(store.rglob("*.safetensors"))) >= 8 - len(claims)
    while time.monotonic() < until and not others(): time.sleep(.05)
    assert [process.poll() for process in two] == [None, None] and claims
    killed.kill()
    killed.communicate()
    counts = [counted(process) for process in two]
    assert sum(extracted for extracted, _ in counts) == 8 - made
    assert all(sum(pair) == 8 for pair in counts)
    assert contents(store) == contents(tmp_path/"alone") and len(contents(store)) == 9     # no claim is left


# ---- a disk that takes no more -------------------------------------------------------------------
def full_after(monkeypatch, n, number):
    "All writes fail but the first n."
    right, count = Path.write_bytes, []

    def write_bytes(path, data):
        count.append(path)
        if len(count) <= n: return right(path, data)
        right(path, data[:9])
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


def test_many_writers_of_one_file_do_not_trip_over_each_other(tmp_path, monkeypatch):
    "Each looks for what killed ones left, and another's half is in place before its age is asked."
    note, found = tmp_path / "settings.json", Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*found(self, pattern), self / "moved.part"])
    assert write_atomic(note, "one").read_text() == "one"
    monkeypatch.undo()
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda number: write_atomic(note, str(number)), range(400)))
    assert [one.name for one in tmp_path.iterdir()] == [note.name] and int(note.read_text()) in range(400)


@pytest.mark.parametrize("number, remedy", [
    (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "make it writable")])
def test_a_full_or_read_only_disk_ends_an_extraction_in_one_sentence(tmp_path, monkeypatch, capsys, number,
                                                                     remedy):
    root, store = make_clips(tmp_path/"clips", 2), tmp_path/"store"
    words = f"extract --dataset folder --root {root} --store {store} --device cpu".split()
    with monkeypatch.context() as disk:
        full_after(disk, 3, number)                  # settings and two videos
        assert main(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (f"{store}: {os.strerror(number)}: {remedy}, and run again to go on; "
                    "2 of 4 videos are stored")
    whole = contents(store)
    assert len(whole) == 3 and not [name for name in whole if Path(name).name.startswith(".")]
    assert main(words) == 0 and contents(store).items() > whole.items()
    assert "2 videos extracted, 2 found, 0 failed" in capsys.readouterr().out


def test_a_store_that_cannot_be_begun_and_an_out_that_is_full(published, tmp_path, monkeypatch, capsys):
    root = make_clips(tmp_path/"clips", 2)
    with monkeypatch.context() as disk:
        full_after(disk, 0, errno.EACCES)
        words = f"extract --dataset folder --root {root} --store {tmp_path}/s --device cpu"
        assert main(words.split()) == 2
    assert "no folder for features can be made here (Permission denied)" in capsys.readouterr().err
    pairs = asked(published, tmp_path/"out", 2).items()
    words = ["train", *(str(word) for name, value in pairs for word in (f"--{name}", value))]
    with monkeypatch.context() as disk:
        full_after(disk, 2, errno.ENOSPC)            # the lock's note, the first epoch
        assert main(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (f"{tmp_path}/out: No space left on device: free some space, "
                    "and run the same command again")
    assert epochs_in(tmp_path/"out") == 1 and list(contents(tmp_path/"out")) == ["training.pt"]


# ---- seeds ---------------------------------------------------------------------------------------
def test_a_stopped_seeds_job_goes_on_and_trains_no_seed_twice(published, tmp_path, monkeypatch):
    given = asked(published, tmp_path, 3) | {"seeds": "0,1"}
    job = SeedJob(**given)
    data = prepare(job)
    found = locate(job, data)
    whole, right, epochs = run_seeds(job, data, found), Trainer.epoch, []

    def epoch(trainer, number):
        epochs.append((trainer.options.seed, number))
        if len(epochs) == 5: raise KeyboardInterrupt
        return right(trainer, number)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    with pytest.raises(KeyboardInterrupt): run_seeds(job, data, found, tmp_path)
    again = run_seeds(job, data, found, tmp_path)
    assert epochs == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 2), (1, 3)]
    assert seed_table(again).equals(seed_table(whole))
    for seed, one in whole.items():
        assert {name: x.tolist() for name, x in one.fitted.model.state_dict().items()} == {
            name: x.tolist() for name, x in again[seed].fitted.model.state_dict().items()}
