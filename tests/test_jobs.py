"The jobs through papermill and from the command line, in a smoke size: they run, repeat, refuse."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import papermill
import pytest

from stprompt.command import main
from stprompt.experiments import JobError, TrainJob
from stprompt.model import STPrompt
from stprompt.motion import AGGREGATES
from stprompt.other_jobs import DetectJob, ExtractJob
from stprompt.sweeps import SeedJob
from stprompt.video import write_video

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ROOT.parent/"shared"/"data"/"surv_fight"


def run(name, out, cwd=None, **parameters):
    "Executes a job notebook from any folder; the record of its results."
    papermill.execute_notebook(str(ROOT/"nbs"/f"{name}.ipynb"), str(out/"executed.ipynb"),
                               {**parameters, "out": str(out)}, progress_bar=False, cwd=str(cwd or out))
    return json.loads((out/"metrics.json").read_text())


def command(*words, **settings):
    "Runs `python -m stprompt` with these words."
    return subprocess.run([sys.executable, "-m", "stprompt", *map(str, words)], capture_output=True,
                          text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, **settings)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    return out, run("train", out, epochs=2, device="cpu")


# ---- train ---------------------------------------------------------------------------------------
def test_the_main_job_writes_everything(smoke):
    out, record = smoke
    for name in ("table.md", "losses.png", "curves.png", "metrics.png", "localization.png", "split.json",
                 "model/model.safetensors", "model/config.json", "model/detector.json", "model/README.md"):
        assert (out/name).stat().st_size > 100, name
    assert "2408.05905" in (out/"model"/"README.md").read_text()
    assert {"frame_auc", "ano_auc", "frame_ap", "tiou", "tiou_oracle", "mean_iou", "patch_auc",
            "patch_ap"} <= set(record["metrics"])
    assert record["parameters"]["epochs"] == 2 and record["code"]["commit"] and record["machine"]["cpu"]
    assert record["versions"]["torch"] and record["seconds"] > 0
    assert all(0 <= m["ci95"][0] <= m["mean"] <= m["ci95"][1] <= 100 for m in record["metrics"].values())
    assert record["clip"]["name"] and record["benchmark"]["sha256"]
    assert "frame_auc" in record["more"]["last_epoch"]


def test_an_executed_notebook_is_tidy_as_it_is(smoke):
    "No red lines; a bar leaves one line; nothing of this machine; the report is a small table."
    book = json.loads((smoke[0]/"executed.ipynb").read_text())
    outputs = [o for c in book["cells"] for o in c.get("outputs", ())]
    assert [o for o in outputs if o.get("name") == "stderr"] == []
    shown = ["".join(o.get("data", {}).get("text/plain", o.get("text", ""))) for o in outputs]
    assert sum("epochs" in text and "%|" in text for text in shown) == 1
    assert max(text.count("\n") for text in shown) < 40
    tables = [text for text in shown if "best trivial" in text]
    assert tables and all(text.count("\n") < 15 for text in tables)


def test_two_runs_are_identical(smoke, tmp_path):
    _, first = smoke
    again = run("train", tmp_path, cwd=tmp_path, epochs=2, device="cpu")
    assert again["metrics"] == first["metrics"]
    assert again["more"]["last_epoch"] == first["more"]["last_epoch"]


def test_the_checkpoint_loads(smoke):
    model = STPrompt.from_pretrained(smoke[0]/"model")
    assert sum(p.numel() for p in model.parameters()) > 1000 and not model.training


def test_a_typo_stops_the_run(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean epochs") as caught:
        run("train", tmp_path, epcohs=7)
    assert len(caught.value.traceback) < 12          # frames, as a person sees them
    assert not (tmp_path/"metrics.json").exists()


@pytest.mark.parametrize("wrong, words", [
    ({"dataset": "ucf"}, "dataset='ucf'.*ministreet"), ({"size": "huge"}, "size='huge'.*small"),
    ({"epochs": -1}, "epochs=-1"), ({"epochs": 1.5}, "epochs=1.5.*whole number"),
    ({"dataset": "folder", "root": "no such folder"}, "root='no such folder'"),
    ({"backbone": "ViT-B-16"}, "weights"), ({"weights": "openai"}, "mini CLIP"), ({"device": "tpu"},
                                                                                  "device='tpu'"),
    ({"spatial": "sa3"}, "spatial='sa3'.*sa2"), ({"adapter": "gcn"}, "adapter='gcn'.*distance"),
    ({"branches": "c"}, "branches='c'.*both"), ({"fusion": 2.0}, "fusion=2"), ({"sigma": 0.0}, "sigma=0"),
    ({"seed": True}, "seed=True"), ({"texts": "fight"}, "texts='fight'"),
    ({"texts": "a: b"}, "only one's own data"), ({"epcohs": 1}, "did you mean epochs")])
def test_every_wrong_parameter_is_named(wrong, words):
    with pytest.raises(JobError, match=words): TrainJob(**wrong)


@pytest.mark.parametrize("job, wrong, words", [
    (ExtractJob, {"crops": 5}, "crops=5"), (ExtractJob, {"shard": "3/2"}, "shard='3/2'"),
    (ExtractJob, {"k": -1}, "k=-1"), (ExtractJob, {"dataset": "csv", "root": "nowhere.csv"},
                                    "root='nowhere.csv'"),
    (DetectJob, {"video": "none.mp4"}, "video='none.mp4'"), (DetectJob, {"threshold": 1.5}, "threshold=1.5"),
    (SeedJob, {"seeds": "a,b"}, "seeds='a,b'"), (SeedJob, {"seeds": ""}, "seeds=''")])
def test_the_other_jobs_name_it_too(job, wrong, words):
    with pytest.raises(JobError, match=words): job(**wrong)


# ---- the others ----------------------------------------------------------------------------------
def test_the_seeds_job_runs_to_its_end(tmp_path):
    record = run("seeds", tmp_path, size="small", seeds="0,1", epochs=1, device="cpu")
    assert record["seeds"] == [0, 1] and "std" in record["metrics"]["frame_auc"]
    assert len(record["more"]["stages"]) == 20 and len(record["more"]["localizers"]) == 4
    assert {"localizer", "lambda", "best trivial"} <= set(record["more"]["choices"][0])
    assert (tmp_path/"table.md").read_text().count("\n## ") == 3 and (tmp_path/"localization.png").exists()
    assert not list(tmp_path.glob(".*")) and not (tmp_path/"trainings").exists()     # nothing to go on from
    assert {p.name for p in (tmp_path/"model").iterdir()} == {"README.md", "config.json",
                                                              "model.safetensors",
                                                              "detector.json"}


def test_the_seeds_job_on_published_features_leaves_out_what_needs_pictures(tmp_path):
    from test_experiments import publish
    published = publish(tmp_path/"published")
    record = run("seeds", tmp_path, dataset="ucf_crime", features=str(published), crops=1,
                 backbone="mini", seeds="0,1", epochs=1, device="cpu")
    assert [row["signal"] for row in record["more"]["stages"]] == [
        "trained, windows: none", "trained, windows: none, no adapter",
        "eq. 11 of the whole frame, no training, paper queries",
        "eq. 11 of the whole frame, no training, extended queries"]
    assert {"localizers", "choices"}.isdisjoint(record["more"]) and "mean_iou" in record["skipped"]


def make_clips(root, n=6):
    noise = np.random.default_rng(0)
    for label, shift in (("fight", 40), ("noFight", 0)):
        for i in range(n):
            images = (noise.integers(0, 120, (48, 64, 3), np.uint8) + np.uint8(shift) for _ in range(24))
            write_video(root/label/f"{label}{i}.mp4", images, 25)
    return root


def test_a_folder_of_clips(tmp_path):
    root = make_clips(tmp_path/"clips")
    record = run("train", tmp_path, dataset="folder", root=str(root), epochs=2, device="cpu")
    assert set(record["metrics"]) == {"video_auc", "video_ap"}
    assert "needs frame-level" in record["skipped"]["frame_auc"]
    assert (tmp_path/"curves.png").exists() and not (tmp_path/"localization.png").exists()


def test_a_bad_clip_is_named_and_the_rest_is_kept(tmp_path):
    root = make_clips(tmp_path/"clips")
    (root/"fight"/"fight9.mp4").write_bytes(b"not a film")
    with pytest.raises(papermill.PapermillExecutionError, match="fight9"):
        run("train", tmp_path, dataset="folder", root=str(root), epochs=1, device="cpu")
    (root/"fight"/"fight9.mp4").unlink()
    assert run("train", tmp_path, dataset="folder", root=str(root), epochs=1, device="cpu")["metrics"]


def test_a_reader_s_own_row_of_table_5_goes_through_a_whole_job(tmp_path):
    "One function in one list: the options know it, the store makes it, the model is trained with it."
    from stprompt.experiments import fit, prepare
    root = make_clips(tmp_path/"clips")
    job = TrainJob(dataset="folder", root=str(root), epochs=1, device="cpu")
    assert len(prepare(job).summary.done) == 12 and prepare(job).summary.done == []
    with pytest.raises(JobError, match="spatial='fastest'"): TrainJob(spatial="fastest")
    AGGREGATES["fastest"] = lambda windows, motion, k: windows.flatten(1, 2)[
        range(len(windows)), motion.flatten(1).argmax(1)]
    try:
        own = TrainJob(dataset="folder", root=str(root), epochs=1, device="cpu", spatial="fastest")
        data = prepare(own)
        assert len(data.summary.done) == 12 and "fastest" in data.features["fight/fight0"].aggregates
        assert fit(own, data).model.options.spatial == "fastest"
    finally: del AGGREGATES["fastest"]
    assert prepare(job).summary.done == []           # a row more does no harm


# ---- the command line ----------------------------------------------------------------------------
def test_train_from_the_command_line_equals_the_notebook(smoke, tmp_path):
    done = command("train", "--epochs", 2, "--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path/"metrics.json").read_text())
    assert record["metrics"] == smoke[1]["metrics"] and (tmp_path/"localization.png").exists()
    assert "frame AUC" in done.stdout and "model/model.safetensors" in done.stdout


def test_detect_from_the_command_line(smoke, tmp_path):
    video = write_video(tmp_path/"a.mp4", np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3),
                                                                            np.uint8), 25)
    done = command("detect", video, "--checkpoint", smoke[0]/"model", "--device", "cpu", "--out",
                   tmp_path/"found")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in (tmp_path/"found").iterdir()) == ["annotated.mp4", "detection.json",
                                                                    "report.html"]


def test_detect_from_words_on_the_command_line(tmp_path):
    "No checkpoint: classes in words, a threshold from a normal video."
    video, normal = (write_video(tmp_path/name, np.random.default_rng(seed).integers(
        0, 255, (30, 48, 64, 3), np.uint8), 25) for seed, name in enumerate(("a.mp4", "normal.mp4")))
    done = command("detect", video, "--classes", "fire: a building on fire; fight: two people fighting",
                   "--normal", normal, "--device", "cpu", "--no-film", "--out", tmp_path/"found")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in (tmp_path/"found").iterdir()) == ["detection.json", "report.html"]
    made = json.loads((tmp_path/"found"/"detection.json").read_text())["made_with"]
    assert made["threshold_from"] == "normal video normal.mp4" and made["model"] == "no training"
    assert made["settings"]["words"] == {"fire": "a building on fire", "fight": "two people fighting"}


FIRE = {"classes": "fire: a building on fire"}


@pytest.mark.parametrize("wrong, words", [
    ({"classes": "fire"}, "classes='fire': expected 'label: words; label: words'"),
    (FIRE, "an event needs one of the two"),
    (FIRE | {"threshold": .5, "normal": __file__}, "an event needs one of the two"),
    (FIRE | {"threshold": .5, "checkpoint": "x"}, "a checkpoint has its own classes; give one of the two"),
    (FIRE | {"normal": "nowhere.mp4"}, "there is no such file as nowhere.mp4"),
    (FIRE | {"normal": f"{__file__}; nowhere.mp4"}, "there is no such file as nowhere.mp4"),
    ({"normal": __file__}, "normal videos belong to classes")])
def test_words_and_a_checkpoint_are_not_mixed(wrong, words):
    with pytest.raises(JobError) as error: DetectJob(**wrong)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_mistyped_checkpoint_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", "--checkpoint", "results/ministreet-smal/train/model"]) == 2
    said = capsys.readouterr().err
    assert "results/ministreet-smal/train/model: there is no such folder" in said and said.count("\n") == 1


def test_extract_from_the_command_line(tmp_path):
    root, store = make_clips(tmp_path/"clips", 2), tmp_path/"store"
    words = ("extract", "--dataset", "folder", "--root", root, "--store", store, "--device", "cpu")
    assert command(*words).returncode == 0 and len(list(store.rglob("*.safetensors"))) == 4
    (root/"fight"/"fight9.mp4").write_bytes(b"not a film")
    done = command(*words)
    assert done.returncode == 1 and "fight9" in done.stdout
    done = command(*words, "--stride", 8)
    assert done.returncode == 2 and "made with stride=4, not 8" in done.stderr


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def odd_clips(root):
    "Names that are no UTF-8, too long, just short enough; a class folder called like a store's settings."
    make_clips(root, 2)
    for label in ("fight", "noFight"):
        first = root/label/f"{label}0.mp4"
        shutil.copy(first, first.with_name("x" * 250 + ".mp4"))
        shutil.copy(first, first.with_name("y" * 243 + ".mp4"))
        os.rename(first, os.fsencode(first.parent)+b"/\xff.mp4")
    shutil.copytree(root/"fight", root/"settings.json")
    return root


def test_names_that_a_disk_does_not_take_are_reported_and_the_rest_is_done(tmp_path, capsys):
    "The good ones are stored whole, each bad one is named with its remedy, the exit code is 1."
    root, store = odd_clips(tmp_path/"clips"), tmp_path/"store"
    words = f"extract --dataset folder --root {root} --store {store} --device cpu".split()
    assert main(words) == 1
    said = capsys.readouterr().out.encode().decode()                     # no half characters
    assert "6 videos extracted, 0 found, 6 failed" in said
    long = [line for line in said.splitlines() if "give the video a shorter name" in line]
    assert len(long) == 2 and all("x" * 250 + ".mp4: its features cannot be written (File name too long)"
                                  in line for line in long)
    assert said.count("settings.json/") == 2 * 4 and said.count("rename the video or its folder") == 4
    assert "settings.json/\ufffd: " in said
    assert sorted(Path(name).name[:2] for name in contents(store)) == sorted(
        ["se", *2 * ["yy", "\ufffd-"], "fi", "no"])        # safetensors opens no file whose name is no UTF-8
    assert main(words) == 1 and "0 videos extracted, 6 found, 6 failed" in capsys.readouterr().out


LAUNCH = ("accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
          "--dynamo_backend no -m").split()


def test_extract_in_two_processes_equals_one(tmp_path):
    "`accelerate launch -m stprompt extract`: each a share, one summary, the same bytes, exit code 1."
    root = make_clips(tmp_path/"clips", 3)
    (root/"fight"/"bad.mp4").write_bytes(b"not a film")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def call(store, *launcher):
        words = f"stprompt extract --dataset folder --root {root} --store {store} --device cpu".split()
        return subprocess.run([sys.executable, "-m", *launcher, *words], env=environment, cwd=tmp_path,
                              capture_output=True, text=True)

    one, two = call("one"), call("two", *LAUNCH)
    assert one.returncode == 1 and two.returncode == 1, two.stderr[-3000:]
    for done in (one, two):
        assert done.stdout.count("6 videos extracted, 0 found, 1 failed") == 1 and "fight/bad" in done.stdout
    assert "2 processes" in two.stdout
    assert contents(tmp_path/"one") == contents(tmp_path/"two") and len(contents(tmp_path/"one")) == 8


@pytest.mark.parametrize("words, sentence", [
    (("train", "--epcohs", "7"), "did you mean epochs"), (("train", "--size", "huge"),
                                                          "choose one of small, full"),
    (("train", "--epochs", "many"), "invalid int value"), (("detect", "none.mp4"), "there is no such file"),
    (("extract", "--dataset", "folder", "--root", "nowhere"), "root='nowhere'"), (("dance",),
                                                                                  "invalid choice"),
    (("train", "--seed"), "expected one argument"), ((), "required")])
def test_the_command_line_says_what_is_wrong(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try: code = main(words)
    except SystemExit as end: code = end.code
    assert code == 2 and sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_word_ends_the_process_without_a_traceback():
    done = command("train", "--epcohs", "7")
    assert done.returncode == 2 and "did you mean epochs" in done.stderr and "Traceback" not in done.stderr


def test_the_command_explains_itself(capsys):
    from stprompt.options import comments
    with pytest.raises(SystemExit): main(["train", "--help"])
    page = capsys.readouterr().out
    assert all(f"--{name}" in page for name in comments(TrainJob))
    assert all(comments(job)[name] for job in (TrainJob, ExtractJob, DetectJob, SeedJob) for name
               in comments(job))


def test_the_parameters_of_a_notebook_are_those_of_its_job():
    "Names and defaults of the parameters cell, against the class that checks them."
    from rules import cells, source

    from stprompt.options import parameters
    for name, job in (("train", TrainJob), ("seeds", SeedJob), ("extract", ExtractJob),
                      ("detect", DetectJob)):
        cell = next(c for c in cells(ROOT/"nbs"/f"{name}.ipynb") if "parameters"
                    in c["metadata"].get("tags", ()))
        values = {}
        exec(source(cell), {}, values)
        values = parameters(values)
        given, plain = job(**values), job()      # what is left open is filled in both alike
        changed = {key: getattr(given, key) for key in values if getattr(given, key) != getattr(plain, key)}
        assert changed == ({"size": "full"} if name == "seeds" else {})
        free = {"train": set(), "seeds": {"seed"}, "extract": {"seed", "features", "validation"}}
        assert set(vars(plain)) - set(values) <= free.get(name, set()) | {"texts"}


@pytest.mark.skipif(not CLIPS.is_dir(), reason="../shared/data/surv_fight is not here")
def test_real_clips_are_listed():
    from stprompt.datasets import folder_benchmark
    bench = folder_benchmark(CLIPS)
    assert len(bench.items()) == 200 and sum(i.is_abnormal for i in bench.items()) == 100


def test_the_console_script_is_installed():
    script = shutil.which("stprompt", path=str(Path(sys.executable).parent))
    assert script, "pip install makes it"
    assert subprocess.run([script, "--help"], capture_output=True,
                          text=True).stdout.startswith("usage: stprompt")
