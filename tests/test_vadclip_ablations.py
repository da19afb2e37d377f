"VadCLIP's ablations: an option does what it says, rows are the paper's, mAP@IoU is found with its cell."
import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
import torch.nn.functional as F
from test_experiments import publish
from test_vadclip import CLASSES, D, make, tiny_clip

from stprompt.ablations import GridJob
from stprompt.cells import Row, call_in_words
from stprompt.clip import mini_config
from stprompt.experiments import fit, prepare, score
from stprompt.grid import data_of, plan, sweep
from stprompt.metrics import compare, frame_ap, map_at_iou
from stprompt.model import ModelError
from stprompt.overlap import runs
from stprompt.paper_figures import FigureJob
from stprompt.tables import broken_seals
from stprompt.vadclip import VadCLIP, VadCLIPOptions, new_vadclip, official_options
from stprompt.vadclip_ablations import (
    ABLATIONS,
    LGT,
    chosen_frames,
    dual_branch,
    fine_grained,
    fine_of,
    iou_table,
    lgt_adapter,
    prompts_table,
    vadclip_claims,
    vadclip_table,
)

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT.parent/"shared"/"papers"/"vadclip_2308.11681.txt"


@pytest.fixture(scope="module")
def clip(): return tiny_clip()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published"), mini_config()["model_cfg"]["embed_dim"])


def toy_job(published, folder, **more):
    return GridJob(**{"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "crops": 1,
                      "seeds": "0,1", "batch": 8, "epochs": 2, "max_length": 32, "device": "cpu",
                      "smoke": True, "processes": 1, "cells": str(folder/"cells"), "out": str(folder/"out"),
                      **more})


@pytest.fixture(scope="module")
def prompts(published, tmp_path_factory):
    "Table 7 on toy features: the job, the ablation, its results."
    job = toy_job(published, tmp_path_factory.mktemp("prompts"))
    table = prompts_table(job)
    rows = [dataclasses.replace(row, learning={**row.learning, "batch": 8}) for row in table.rows]
    table = dataclasses.replace(table, rows=tuple(rows))
    return job, table, sweep(job, table.rows, job.numbers, job.cells, 1)


# ---- options ------------------------------------------------------------------------------------
def test_the_defaults_are_the_official_model():
    usual = official_options("ucf_crime")
    assert (usual.transformer, usual.graph, usual.prompt, usual.attention, usual.branches) == (
        "local", "both", "learned", "logits", "both")
    with torch.device("meta"): names = set(VadCLIP(usual).state_dict()) - {"text"}
    assert len(names) == 46 and {"gc1.residual.weight", "gc4.weight", "linear.bias",
                                 "temporal.resblocks.1.attn.in_proj_weight"} <= names


@pytest.mark.parametrize("changes, blocks, similarity, distance, width", [
    ({}, 2, True, True, D), ({"transformer": "none"}, 0, True, True, D),
    ({"transformer": "both"}, 4, True, True, D), ({"graph": "similarity"}, 2, True, False, D // 2),
    ({"graph": "distance"}, 2, False, True, D // 2), ({"graph": "none"}, 2, False, False, D)])
def test_parts_that_are_left_out_have_no_tensors(changes, blocks, similarity, distance, width):
    state = make(**changes).state_dict()
    assert len({name.split(".")[2] for name in state if name.startswith("temporal")}) == blocks
    assert ("gc1.weight" in state, "gc3.weight" in state) == (similarity, distance)
    assert list(state["linear.weight"].shape) == [D, width]


def test_the_global_transformer_hears_real_frames_only(clip):
    model = make(clip, transformer="global", graph="none", attention="average")
    frame = torch.randn(1, 6, D)
    short = model(frame)
    other = make(clip, transformer="global", graph="none", attention="average", length=20)
    state = {**model.state_dict(), "frame_position_embeddings.weight":
             model.frame_position_embeddings.weight[:20]}
    other.load_state_dict(state)
    assert torch.allclose(short.classes, other(frame).classes, atol=1e-5)     # no matter how much padding
    x = frame[0] + model.frame_position_embeddings.weight[:6]
    for block in model.temporal["resblocks"]:
        y = block.ln_1(x)
        qkv = (y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(D, -1)
        near = torch.stack([torch.softmax(torch.stack([qkv[0][i] @ qkv[1][j] for j in range(6)]) / D**.5, 0)
                            for i in range(6)])
        x = x + block.attn.out_proj(near @ qkv[2])
        x = x + block.mlp(block.ln_2(x))
    assert torch.allclose(model.compared(frame, None, model.stored())[0][0, :6], model.linear(x), atol=1e-4)


def test_without_any_module_a_frame_is_alone(clip):
    model, frame = make(clip, transformer="none", graph="none", attention="none"), torch.randn(1, 6, D)
    x = frame @ model.linear.weight.T + model.linear.bias
    expected = F.normalize(x, dim=-1) @ F.normalize(model.text, dim=-1).T
    assert torch.allclose(model(frame).classes, expected, atol=1e-5)
    assert torch.allclose(model(frame[:, 2:3]).classes, expected[:, 2:3], atol=1e-5)


def test_the_average_frame_speaks_instead_of_the_anomalous_ones(clip):
    model, frame = make(clip, attention="average"), torch.randn(1, 6, D)
    x, logits, about = model.compared(frame, None, model.stored())
    v = model.text + x[0, :6].mean(0) / x[0, :6].mean(0).norm()
    assert torch.allclose(about[0], v + model.mlp1(v), atol=1e-5) and len(logits[0]) == 32


def test_words_around_the_label(clip):
    said = {}
    for prompt in ("learned", "hand-made", "label"):
        model = make(clip, prompt=prompt)
        said[prompt] = model.text.clone()
        model.text_prompt_embeddings.weight.data[:, 0] += 3
        changed = not torch.allclose(model.embed(clip), said[prompt], atol=1e-4)
        assert changed == (prompt == "learned")
    assert torch.allclose(said["label"], clip.text(list(CLASSES.values())), atol=1e-5)
    sentences = clip.text([f"a video of {text}" for text in CLASSES.values()])
    assert torch.allclose(said["hand-made"], sentences, atol=1e-5)


def test_a_branch_that_is_left_out_has_no_loss(clip):
    targets, frame = torch.tensor([[1., 0, 0], [0, 1, 0]]), torch.randn(2, 6, D)
    for branches, attention in (("classification", "none"), ("alignment", "none"), ("both", "logits")):
        scored = "classification" if branches == "both" else branches
        model = make(clip, branches=branches, scored=scored, attention=attention)
        loss = model.loss(model(frame, text=model.embed(clip)), targets)
        parts = [loss.classification.item() > 0, loss.alignment.item() > 0, loss.contrastive.item() > 0]
        assert parts == [branches != "alignment"] + 2 * [branches != "classification"]
        loss.total.backward()
        reached = {name.split(".")[0] for name, p in model.named_parameters()
                   if p.grad is not None and p.grad.any()}
        assert ("classifier" in reached) == (branches != "alignment")
        assert ("text_prompt_embeddings" in reached) == (branches != "classification")


@pytest.mark.parametrize("changes, words", [
    ({"branches": "alignment"}, "take scored='alignment'"),
    ({"branches": "alignment", "scored": "alignment"}, "take attention='average' or 'none'"),
    ({"branches": "classification", "scored": "alignment"}, "take scored='classification'"),
    ({"transformer": "locl"}, "transformer='locl': choose one of local, global, both, none"),
    ({"prompt": "hand"}, "prompt='hand'.*hand-made")])
def test_options_that_contradict_each_other(changes, words):
    with pytest.raises(ModelError, match=words): VadCLIPOptions(classes=CLASSES, **changes)


# ---- rows ---------------------------------------------------------------------------------------
@pytest.mark.skipif(not PAPER.is_file(), reason="../shared/papers is not here")
def test_the_numbers_are_the_paper_s():
    lines = PAPER.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("Baseline (w/o temporal"))
    numbers = [[float(x) for x in re.findall(r"\d\d\.\d\d", line)] for line in lines[start:start + 7]]
    job = GridJob()
    assert [list(row.values()) for row in lgt_adapter(job).values.values()] == numbers
    start = next(n for n, line in enumerate(lines) if line.startswith("C-Branch | A-Branch"))
    ap = [float(re.findall(r"\d\d\.\d\d", line)[0]) for line in lines[start + 1:start + 7]]
    assert [row["XD-Violence AP"] for row in dual_branch(job).values.values()] == ap
    start = next(n for n, line in enumerate(lines) if line.startswith("Hand-crafted Prompt"))
    both = [[float(x) for x in re.findall(r"(?<!-)\d\d\.\d\d", line)] for line in lines[start:start + 4]]
    assert [list(row.values()) for row in prompts_table(job).values.values()] == both


def test_the_full_model_is_one_training_and_no_other_rows_are():
    job = GridJob(device="cpu")
    rows = [dataclasses.replace(row, name=f"{key} {row.name}") for key, table in ABLATIONS.items()
            for row in table(job).rows]
    cells = plan(job, rows, [0], "nowhere").cells
    assert len(rows) == 20 and len({cell.name for cell in cells.values()}) == 20 - 4
    full = (f"adapter {LGT}", "branches C + A + both prompts", "graphs both graphs",
            "prompts learnable prompt", "prompts anomaly-focus visual prompt")
    assert len({cells[name, 0].name for name in full}) == 1
    usual = cells["adapter graphs", 0]
    assert json.loads(usual.facts)["make"] == {"function": "stprompt.vadclip.new_vadclip", "in order": [],
                                               "by name": {"scored": "alignment", "transformer": "none"}}


def test_what_a_row_sets_or_measures_is_in_its_cell_s_name():
    def name(row): return next(iter(plan(GridJob(device="cpu"), [row], [0], "nowhere").cells.values())).name
    make = partial(new_vadclip, graph="none", prompt="label")
    turned = partial(new_vadclip, prompt="label", graph="none")
    assert name(Row("a", make=make)) == name(Row("b", make=turned))
    others = [Row("a", make=make, measure=fine_grained), Row("a", make=new_vadclip),
              Row("a", make=partial(new_vadclip, graph="none")), Row("a")]
    assert len({name(row) for row in (Row("a", make=make), *others)}) == 5
    assert call_in_words(partial(np.add, 1, b=2))["in order"] == [1]


# ---- numbers ------------------------------------------------------------------------------------
def test_fine_grained_numbers_are_those_of_the_chain_and_found_again(prompts):
    job, table, results = prompts
    stamps = {path.name: path.stat().st_mtime_ns for path in Path(job.cells).iterdir()}
    again = sweep(job, table.rows, job.numbers, job.cells, 1)
    assert {path.name: path.stat().st_mtime_ns for path in Path(job.cells).iterdir()} == stamps
    assert len([name for name in stamps if name.endswith(".safetensors")]) == 3 * 2      # two rows are one
    assert fine_of(again, "hand-crafted prompt") == fine_of(results, "hand-crafted prompt")
    row, data = table.rows[0], prepare(job)
    seeded = dataclasses.replace(job, seed=1)
    scored = score(fit(seeded, data, make=row.make, progress=False, **row.learning), data)
    assert fine_grained(scored, data) == fine_of(results, row.name)[1]
    events = {id: [(int(s), int(e), 1) for s, e in runs(truth.mask)] for id, truth in data.truths.items()}
    by_hand = map_at_iou(scored.classes, events, definition="code")
    assert {str(iou): value for iou, value in by_hand.items()} == fine_grained(scored, data)["code"]


def test_tables_hold_what_the_cells_hold(prompts):
    job, table, results = prompts
    shown, by_iou = vadclip_table(results, table), iou_table(results, table)
    expected = np.mean([one["paper"]["average"] for one in fine_of(results, "learnable prompt").values()])
    assert shown["AVG of mAP@IoU, paper's definition"][1] == round(expected, 2)
    assert {"frame AP", "Ano-AUC", "frame AUC", "paper, XD-Violence AP"} <= set(shown) and len(by_iou) == 8
    full = [results.trained["learnable prompt", seed].scores for seed in (0, 1)]
    ap = np.mean([frame_ap(one, results.truths) for one in full])
    assert shown["frame AP"][1] == round(ap, 2)
    held = vadclip_claims(results, table)
    other = [results.trained["hand-crafted prompt", seed].scores for seed in (0, 1)]
    assert held["AP here"][0] == compare(full, other, results.truths, "frame_ap").cell
    assert held["paper, XD-Violence AVG"].tolist() == ["+2.24", "+3.13"]


def test_a_row_without_the_a_branch_has_no_average(published, tmp_path):
    job = toy_job(published, tmp_path, seeds="0", epochs=1)
    table = dual_branch(job)
    rows = [dataclasses.replace(row, learning={**row.learning, "batch": 8}) for row in table.rows[:2]]
    table = dataclasses.replace(table, rows=tuple(rows), against="", steps=table.steps[:1],
                                values={row.name: table.values[row.name] for row in rows})
    results = sweep(job, rows, [0], job.cells, 1)
    shown = vadclip_table(results, table)
    assert shown["AVG of mAP@IoU, code's definition"][0] == "" and shown["frame AP"][0] > 0
    assert shown["AVG of mAP@IoU, code's definition"][1] >= 0
    assert vadclip_claims(results, table)["AVG here"].tolist() == [""]


def test_frames_are_chosen_evenly_and_from_the_right_places(published, tmp_path):
    data = prepare(toy_job(published, tmp_path))
    every, few = chosen_frames(data, 10_000), chosen_frames(data, 7)
    assert sum(map(len, every.values())) == sum(data.length(item.id) for item in data.benchmark.test)
    assert {kind: len(found) for kind, found in few.items()} == {0: 7, 1: 7}
    assert few[1][0] == every[1][0] and few[1][-1] == every[1][-1] and set(few[1]) <= set(every[1])
    assert all(data.truths[id].mask[data.features[id].frame_index[place]] for id, place in every[1])


# ---- notebooks ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name, kind", [("vadclip_tables", GridJob), ("vadclip_figures", FigureJob)])
def test_the_parameters_of_a_notebook_are_those_of_its_job(name, kind):
    from rules import cells, source

    from stprompt.options import parameters
    book = cells(ROOT/"nbs"/"reproduce"/f"{name}.ipynb")
    values = {}
    exec(source(next(c for c in book if "parameters" in c["metadata"].get("tags", ()))), {}, values)
    given, plain = kind(**parameters(values)), kind()
    assert {key: getattr(given, key) for key in values if getattr(given, key) != getattr(plain, key)} == {
        "size": "full"}


def test_the_tables_notebook_runs_in_a_smoke_size(published, tmp_path):
    given = {"dataset": "ucf_crime", "features": str(published), "backbone": "mini", "crops": 1, "batch": 8,
             "smoke": True, "processes": 1, "device": "cpu", "out": str(tmp_path), "only": "prompts",
             "cells": str(tmp_path/"cells")}
    papermill.execute_notebook(str(ROOT/"nbs"/"reproduce"/"vadclip_tables.ipynb"), None, given,
                               progress_bar=False)
    record = json.loads((tmp_path/"prompts"/"metrics.json").read_text())
    assert record["paper"] == "VadCLIP, Table 7" and len(record["rows"]) == 4 and not record["missing"]
    assert "AVG of mAP@IoU, code's definition" in record["rows"][0] and broken_seals(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir() if (path/"metrics.json").is_file()] == ["prompts"]


def test_the_figures_notebook_runs_in_a_smoke_size(tmp_path):
    from test_jobs import run
    record = run("reproduce/vadclip_figures", tmp_path, smoke=True, stride=32, device="cpu")
    assert (tmp_path/"features.png").stat().st_size > 5000 and (tmp_path/"curves.png").stat().st_size > 5000
    assert [row["row"] for row in record["rows"]] == ["CLIP", "VadCLIP"] and broken_seals(tmp_path) == []
    drawn = record["drawn"]
    assert len(drawn["planes"]["after"]["frames"]) == len(drawn["kinds"]) == record["rows"][0]["frames"]
    assert len(drawn["planes"]["before"]["texts"]) == len(drawn["classes"])
    data_of.cache_clear()
