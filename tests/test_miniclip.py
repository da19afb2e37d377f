"Pre-training in a tiny size: the chain of pretrain_mini_clip.ipynb, interrupted and resumed."
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from stprompt import miniclip
from stprompt.clip import mini_config
from stprompt.exam import EXAM_KINDS, examine
from stprompt.files import project_root
from stprompt.likeness import compare_with_clip, publish
from stprompt.miniclip import (
    BatchPlan,
    PretrainError,
    PretrainJob,
    PretrainOptions,
    pretrain,
    read_checkpoint,
)


def small_config():
    config = mini_config()
    config["model_cfg"]["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 32}
    config["model_cfg"]["text_cfg"] |= {"layers": 1, "width": 32, "heads": 1}
    return config


@pytest.fixture
def tiny(monkeypatch):
    "A smaller model, smaller batches, a checkpoint every second step."
    monkeypatch.setattr(miniclip, "mini_config", small_config)
    few = BatchPlan(((2, 8), (5, 4)), 2, 2, 2, 3, 4, ((5, 2),), 2)
    train = miniclip.train_clip
    monkeypatch.setattr(miniclip, "train_clip", lambda *parts: train(*parts, plan=few, every=2))


def test_the_chain_interrupted_and_resumed_gives_the_same_weights(tiny, tmp_path, monkeypatch):
    jobs = [PretrainJob(steps=5, seed=3, workers=0, device="cpu", exam=20, out=str(tmp_path / name))
            for name in ("straight", "interrupted")]
    straight = pretrain(jobs[0])
    step = miniclip.Pretrainer.step

    def stopped(trainer, batch):
        if len(trainer.losses) == 3: raise KeyboardInterrupt     # one step after the checkpoint
        step(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(miniclip.Pretrainer, "step", stopped)
        pretrain(jobs[1])
    assert len(torch.load(jobs[1].folder / "checkpoint.pt", weights_only=True)["losses"]) == 2
    resumed = pretrain(jobs[1])
    assert resumed.losses == straight.losses and len(resumed.losses) == 5
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    fresh = miniclip.Pretrainer(small_config()["model_cfg"], straight.options).parts["model"]
    assert not torch.equal(fresh.visual.conv1.weight.half().float(), straight.model.visual.conv1.weight)
    exam = examine(jobs[1], resumed)
    size = sum(parameter.numel() for parameter in resumed.model.parameters())
    like = compare_with_clip(replace(jobs[1], size="small"), resumed)
    assert publish(jobs[1], resumed, exam, like)["parameters"] == size
    written = load_file(jobs[1].folder / "open_clip_model.safetensors")
    for name, value in resumed.model.state_dict().items(): assert torch.equal(written[name].float(), value)
    metrics = json.loads((jobs[1].folder / "metrics.json").read_text())
    assert list(metrics["metrics"]) == list(EXAM_KINDS) and metrics["steps"] == 5
    assert metrics["parameters"]["steps"] == metrics["options"]["steps"] == 5
    assert 0 < metrics["likeness"]["aucs"]["whole frame, paper normals"] < 100


def test_another_runs_checkpoint_is_refused(tiny, tmp_path):
    pretrain(PretrainJob(steps=1, workers=0, device="cpu", out=str(tmp_path)))
    with pytest.raises(PretrainError, match="seed 0, 1 steps, 0 taught pictures, not 0, 2, 0; go on"):
        pretrain(PretrainJob(steps=2, workers=0, device="cpu", out=str(tmp_path)))


@pytest.mark.parametrize("wrong, words", [
    ({"steps": 0}, "steps=0: expected a whole number of at least 1"),
    ({"exam": 19}, "exam=19: expected a whole number of at least 20"),
    ({"workers": 1.5}, "workers=1.5: expected a whole number of at least 0"),
    ({"device": "tpu"}, "device='tpu'.*cpu"),
    ({"sted": 1}, "sted=1: there is no such parameter; did you mean seed?"),
])
def test_a_wrong_parameter_ends_in_one_sentence(wrong, words):
    with pytest.raises(PretrainError, match=words): PretrainJob(**wrong)


def test_a_run_may_be_made_longer_before_its_end_and_not_after(tmp_path):
    path = tmp_path/"checkpoint.pt"
    for done, fits in ((10, True), (17, False), (20, False)):
        torch.save({"seed": 0, "steps": 20, "pictures": 0, "losses": [1.] * done}, path)
        for steps in (18, 40):
            options = PretrainOptions(steps=steps)
            if fits and done < .85 * steps: assert len(read_checkpoint(path, options)["losses"]) == done
            else:
                with pytest.raises(PretrainError, match="20 steps"): read_checkpoint(path, options)
        assert len(read_checkpoint(path, PretrainOptions(steps=20))["losses"]) == done


def test_a_broken_checkpoint_is_one_sentence(tmp_path):
    (tmp_path/"checkpoint.pt").write_bytes(b"PK\3\4 cut")
    with pytest.raises(PretrainError, match="checkpoint.pt: cut short or not a checkpoint"):
        read_checkpoint(tmp_path/"checkpoint.pt", PretrainOptions())


def test_the_notebook_runs_whole(tmp_path):
    command = [sys.executable, "-m", "papermill", "nbs/pretrain_mini_clip.ipynb", str(tmp_path/"done.ipynb")]
    asked = {"steps": 1, "workers": 0, "exam": 20, "size": "small", "out": tmp_path/"out"}
    for name, value in asked.items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(project_root())})
    assert done.returncode == 0, done.stderr[-2000:]
    card = (tmp_path/"out"/"README.md").read_text()
    assert "research use" in card and "rendered" in card
    assert json.loads((tmp_path/"out"/"metrics.json").read_text())["metrics"]["objects"]["n"] == 20
