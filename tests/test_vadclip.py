"""VadCLIP: equal to a slow literal forward, official checkpoints, losses by hand, and every bad input."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from test_experiments import publish

from stprompt import vadclip
from stprompt.adapter import AdapterError
from stprompt.clip import BackboneError, FrozenCLIP, mini_config
from stprompt.experiments import TrainJob, evaluate, fit, locate, prepare, score
from stprompt.features import VideoFeatures
from stprompt.learner import (
    LearnerError,
    LearnerOptions,
    class_scores,
    fingerprint,
    score_video,
    score_videos,
    train_model,
)
from stprompt.model import FrameDetector, ModelError, Output, STPrompt
from stprompt.vadclip import VadCLIP, VadCLIPOptions, new_vadclip, official_options, vadclip_settings
from stprompt.vadclip_loops import LoopedVadCLIP

CLASSES = {"Normal": "normal", "RoadAccidents": "road accident", "Fire": "fire"}
D = 16


def tiny_clip(width=12, dim=D, seed=0):
    "A CLIP of one layer each, with the mini CLIP's tokenizer."
    config = mini_config()
    config["model_cfg"] |= {"embed_dim": dim}
    config["model_cfg"]["vision_cfg"] |= {"image_size": 32, "layers": 1, "width": 64}
    config["model_cfg"]["text_cfg"] |= {"layers": 2, "width": width, "heads": width // 4}
    return FrozenCLIP.from_config(config, seed)


@pytest.fixture(scope="module")
def clip(): return tiny_clip()


def make(clip=None, seed=0, **changes):
    "A small model whose every number is drawn, the biases too."
    torch.manual_seed(seed)
    shape = {"dim": D, "token_width": 12, "classes": CLASSES, "length": 32, "window": 8}
    model = VadCLIP(VadCLIPOptions(**{**shape, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn(p.shape) * (.3 if p.ndim > 1 else .1))
    return model if clip is None else model.store_text(clip)


def features(frame):
    T = len(frame)
    return VideoFeatures(frame, np.arange(T) * 4, np.arange(T) / 6, T * 4, 25.0, (24, 32))


# ---- the same, slowly, one frame after the other ---------------------------------------------------
def quick_gelu(x): return x / (1 + torch.exp(-1.702 * x))


def layer_norm(x, w, name):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def two_layers(x, w, name):
    hidden = quick_gelu(w[f"{name}.c_fc.weight"] @ x + w[f"{name}.c_fc.bias"])
    return w[f"{name}.c_proj.weight"] @ hidden + w[f"{name}.c_proj.bias"]


def windows_of(n, window):
    "The frames that attend to each other; the last window reaches the end."
    count = n // window
    return [list(range(i * window, n if i == count - 1 else (i + 1) * window)) for i in range(count)]


def local_layer(x, w, name, o):
    n, width = len(x), o.dim // o.heads
    normed = torch.stack([layer_norm(row, w, f"{name}.ln_1") for row in x])
    qkv = normed @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]
    q, k, v = qkv.split(o.dim, 1)
    heard = torch.zeros_like(x)
    for window in windows_of(n, o.window):
        for head in range(o.heads):
            part = slice(head * width, (head + 1) * width)
            for i in window:
                alike = torch.stack([q[i, part] @ k[j, part] for j in window]) / math.sqrt(width)
                weights = torch.exp(alike)
                heard[i, part] = sum(a * v[j, part] for a, j in zip(weights / weights.sum(), window))
    x = x + heard @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]
    return torch.stack([row + two_layers(layer_norm(row, w, f"{name}.ln_2"), w, f"{name}.mlp") for row in x])


def alike(x, length, o):
    "Rows and columns of real frames only; a softmax over the row's thresholded cosines."
    found, norms = torch.zeros(len(x), len(x), dtype=x.dtype), x.norm(dim=1)
    for i in range(length):
        cosines = x[:length] @ x[i] / (norms[:length] * norms[i])
        kept = torch.exp(torch.where(cosines > o.threshold, cosines, torch.zeros_like(cosines)))
        found[i, :length] = kept / kept.sum()
    return found


def near(n, length, o):
    found = torch.zeros(n, n, dtype=torch.float64)
    real = range(length) if o.distance == "softmax" else range(n)
    for i in real:
        for j in real: found[i, j] = math.exp(-abs(i - j) / o.sigma)
        if o.distance == "softmax": found[i] /= found[i].sum()
    return found


def graph(x, adjacency, w, name):
    kept = x
    if f"{name}.residual.weight" in w:
        kernel, n = w[f"{name}.residual.weight"], len(x)
        kept = torch.stack([w[f"{name}.residual.bias"] + sum(
            kernel[:, :, k] @ x[t + k - 2] for k in range(5) if 0 <= t + k - 2 < n) for t in range(n)])
    return adjacency @ x @ w[f"{name}.weight"] + kept


@torch.no_grad()
def literal_text(w, o, clip):
    "Sentence by sentence, all 77 places, as the paper and the issue say it."
    tokens, found = clip.tokenizer(list(o.texts), context_length=77), []
    for ids in tokens:
        words = clip.model.token_embedding(ids)
        end = int(ids.argmax())
        rows = w["text_prompt_embeddings.weight"].float().clone()
        rows[0] = words[0]
        for n in range(1, end): rows[o.prefix + n] = words[n]
        rows[o.prefix + end + o.postfix] = words[end]
        x = (rows + clip.model.positional_embedding)[None]
        x = clip.model.ln_final(clip.model.transformer(x, attn_mask=clip.model.attn_mask))
        found.append(x[0, o.prefix + end + o.postfix] @ clip.model.text_projection)
    return torch.stack(found).double()


@torch.no_grad()
def literal(model, clip, video):
    "(A [T], logits of the A-branch [T, 1+C], class features [1+C, D]) of one video [T, D], in float64."
    w, o = {name: value.double() for name, value in model.state_dict().items()}, model.options
    T, text = len(video), literal_text(w, o, clip)
    x = torch.zeros(o.length, o.dim, dtype=torch.float64)
    x[:T] = video.double()
    x = x + w["frame_position_embeddings.weight"]
    for n in range(o.layers): x = local_layer(x, w, f"temporal.resblocks.{n}", o)
    paths = []
    for adjacency, first, second in ((alike(x, T, o), "gc1", "gc2"), (near(o.length, T, o), "gc3", "gc4")):
        paths.append(quick_gelu(graph(quick_gelu(graph(x, adjacency, w, first)), adjacency, w, second)))
    x = torch.cat(paths, 1) @ w["linear.weight"].T + w["linear.bias"]
    bent = torch.stack([row + two_layers(row, w, "mlp2") for row in x])
    logits = torch.stack([w["classifier.weight"][0] @ row + w["classifier.bias"][0] for row in bent])
    frames = range(T) if o.attention == "confidence" else range(o.length)
    weight = torch.sigmoid(logits) if o.attention == "confidence" else logits
    seen = sum(weight[i] * x[i] for i in frames)
    about = [t + seen / seen.norm() for t in text]
    about = [t + two_layers(t, w, "mlp1") for t in about]
    aligned = [[row @ t / (row.norm() * t.norm()) / o.tau for t in about] for row in x[:T]]
    return torch.sigmoid(logits[:T]), torch.tensor(aligned), text


@pytest.mark.parametrize("changes", [
    {}, {"layers": 1, "heads": 2}, {"window": 5, "prefix": 3, "postfix": 0}, {"layers": 0, "prefix": 0},
    {"distance": "softmax", "sigma": 1.}, {"attention": "confidence"}, {"window": 32, "threshold": .2},
])
def test_the_forward_is_the_literal_one(clip, changes):
    "Several lengths in one padded batch, whatever lies in the padding."
    model, lengths = make(clip, **changes), torch.tensor([32, 7, 1, 20])
    frame = torch.randn(4, 32, D, generator=torch.Generator().manual_seed(3))
    padding = torch.arange(32) >= lengths[:, None]
    output = model(frame.masked_fill(padding[..., None], torch.nan), lengths=lengths)
    for n, T in enumerate(lengths.tolist()):
        anomaly, aligned, text = literal(model, clip, frame[n, :T])
        torch.testing.assert_close(output.anomaly[n, :T].double(), anomaly, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.classes[n, :T].double() / .07, aligned, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(output.text.double(), text, atol=1e-5, rtol=0)
        alone = model(frame[n:n + 1, :T])                     # and without a batch
        torch.testing.assert_close(alone.anomaly[0].double(), anomaly, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [8, 5])
def test_windows_of_padding_learn_as_in_the_loops(clip, window):
    "They are computed once for a batch, and the places' rows get the same gradients."
    ours, lengths = make(clip, window=window), torch.tensor([32, 7, 1, 20])
    looped = LoopedVadCLIP(ours.options)
    looped.load_state_dict(ours.state_dict())
    frame = torch.randn(4, 32, D, generator=torch.Generator().manual_seed(5))
    targets = torch.eye(len(ours.options.classes))[[1, 0, 1, 0]]
    for model in (ours, looped):
        text = torch.randn(targets.shape[1], D, generator=torch.Generator().manual_seed(6))
        model.loss(model(frame, lengths=lengths, text=text), targets, lengths).total.backward()
    other = dict(looped.named_parameters())
    for name, one in ours.named_parameters():
        if one.grad is not None: torch.testing.assert_close(one.grad, other[name].grad, atol=1e-5, rtol=1e-3)
    assert ours.frame_position_embeddings.weight.grad[30].abs().max() > 0


def test_the_comparison_can_fail(clip):
    "A model of the paper's form is not the code's: the literal forward sees each difference."
    model, frame = make(clip), torch.randn(1, 20, D)
    anomaly, aligned, _ = literal(model, clip, frame[0])
    for changes in ({"distance": "softmax", "sigma": 1.}, {"attention": "confidence"}, {"window": 16},
                    {"threshold": .1}):
        model.options = dataclasses.replace(model.options, **changes)
        output = model(frame)
        assert (output.classes[0].double() / .07 - aligned).abs().max() > 1e-3, changes
        model = make(clip)
    rows = model.text_prompt_embeddings.weight.data
    before = model.embed(clip).detach().clone()
    rows[60:] += 9                                            # behind every end token: never heard
    assert torch.equal(model.embed(clip), before)
    rows[5, 0] += 1
    assert not torch.allclose(model.embed(clip), before, atol=1e-3)


# ---- official checkpoints -------------------------------------------------------------------------
def official_shapes(layers):
    "Names and shapes of the authors' model_ucf.pth (2 layers) and model_xd.pth (1), without CLIP's."
    block = {"attn.in_proj_weight": [1536, 512], "attn.in_proj_bias": [1536], "attn.out_proj.bias": [512],
             "attn.out_proj.weight": [512, 512], "ln_1.weight": [512], "ln_1.bias": [512],
             "mlp.c_fc.weight": [2048, 512], "mlp.c_fc.bias": [2048], "mlp.c_proj.weight": [512, 2048],
             "mlp.c_proj.bias": [512], "ln_2.weight": [512], "ln_2.bias": [512]}
    ffn = {name.removeprefix("mlp."): shape for name, shape in block.items() if name.startswith("mlp.")}
    names = {f"temporal.resblocks.{n}.{name}": block[name] for n in range(layers) for name in block}
    for one, two in (("gc1", "gc2"), ("gc3", "gc4")):
        names |= {f"{one}.weight": [512, 256], f"{one}.residual.weight": [256, 512, 5],
                  f"{one}.residual.bias": [256], f"{two}.weight": [256, 256]}
    names |= {f"{mlp}.{name}": shape for mlp in ("mlp1", "mlp2") for name, shape in ffn.items()}
    return names | {"disAdj.sigma": [1], "linear.weight": [512, 512], "linear.bias": [512],
                    "classifier.weight": [1, 512], "classifier.bias": [1],
                    "frame_position_embeddings.weight": [256, 512],
                    "text_prompt_embeddings.weight": [77, 512]}


@pytest.fixture(scope="module")
def wide():
    "A CLIP with ViT-B/16's widths in common space and text, but one thin layer each."
    return tiny_clip(512, 512)


@pytest.fixture(scope="module")
def official(wide, tmp_path_factory):
    "A torch file of random official names and shapes; CLIP's tensors in float16, as saved on a GPU."
    g, path = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("official")/"model_ucf.pth"
    state = {name: torch.randn(shape, generator=g) * (shape[-1] ** -.5 if len(shape) == 2 else .02)
             for name, shape in official_shapes(2).items()}
    state |= {f"clipmodel.{name}": value.half() for name, value in wide.model.state_dict().items()}
    torch.save(state, path)
    return path, state


def test_an_official_checkpoint_gives_its_scores(official, wide):
    path, state = official
    model = VadCLIP.from_official(path, wide)
    assert model.options.labels[0] == "Normal" and model.options.texts[8] == "roadAccidents"
    assert (model.options.window, model.options.clip) == (8, wide.identity) and not model.training
    assert all(torch.equal(p, state[name]) for name, p in model.named_parameters())
    g = torch.Generator().manual_seed(1)
    long, video = torch.randn(300, 512, generator=g), torch.randn(40, 512, generator=g)
    anomaly, aligned, _ = literal(model, wide, video)
    assert np.abs(score_video(model, features(video)) - anomaly.numpy()).max() < 1e-5
    p = class_scores(model, features(video))
    assert np.abs(p - aligned.softmax(-1).numpy()).max() < 1e-5 and p.shape == (40, 14)
    parts = [score_video(model, features(part)) for part in long.split(256)]      # chunks, as its code does
    whole = score_videos(model, {"a": features(long)})["a"][::4]
    assert np.allclose(whole, np.concatenate(parts), atol=1e-6)


@pytest.mark.parametrize("layers, dataset", [(2, "ucf_crime"), (1, "xd_violence")])
def test_our_names_and_shapes_are_the_official_ones(layers, dataset):
    with torch.device("meta"): model = VadCLIP(official_options(dataset))
    ours = {name: list(value.shape) for name, value in model.state_dict().items() if name != "text"}
    assert ours | {"disAdj.sigma": [1]} == official_shapes(layers)


def small_state(clip, **more):
    "An official-like checkpoint of a small model."
    state = {name: value for name, value in make().state_dict().items() if name != "text"}
    frozen = {f"clipmodel.{name}": value.clone() for name, value in clip.model.state_dict().items()}
    return state | {"disAdj.sigma": torch.tensor([.1])} | frozen | more


SMALL = make().options


def test_the_ways_a_checkpoint_is_kept(clip, tmp_path):
    "A bare state, a checkpoint of training, safetensors, and one without CLIP: the same model."
    state, want = small_state(clip), make(clip).text
    bare = {name: value for name, value in state.items() if not name.startswith(("clipmodel", "disAdj"))}
    torch.save(state, tmp_path/"a.pth")
    training = {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}, "ap": .8}
    torch.save(training, tmp_path/"b.pth")
    save_file(state, tmp_path/"c.safetensors")
    torch.save(bare, tmp_path/"d.pth")
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(VadCLIP.from_official(path, clip, SMALL).text, want), path.name


def test_clip_is_taken_from_the_checkpoint(clip, tmp_path, monkeypatch):
    torch.save(small_state(clip), tmp_path/"a.pth")
    called = []
    monkeypatch.setattr(vadclip.FrozenCLIP, "load", lambda *a: called.append(a) or tiny_clip(seed=5))
    model = VadCLIP.from_official(tmp_path/"a.pth", options=SMALL)
    assert torch.equal(model.text, make(clip).text)
    assert called == [("ViT-B-16-quickgelu", "random", "cpu", "fp32")]
    assert model.options.clip["sha256"] == clip.identity["sha256"]
    assert model.options.clip["weights"] == "a.pth"
    model.check_clip(clip)                                    # the same tensors: the same CLIP
    bare = {name: value for name, value in small_state(clip).items() if not name.startswith("clipmodel")}
    torch.save(bare, tmp_path/"bare.pth")
    with pytest.raises(ModelError, match="clipmodel.positional_embedding is missing"):
        VadCLIP.from_official(tmp_path/"bare.pth", options=SMALL)


def test_another_clip_is_refused(clip, tmp_path):
    torch.save(small_state(clip), tmp_path/"a.pth")
    with pytest.raises(ModelError, match="tensors of its CLIP.*are not those of config / random, seed 7"):
        VadCLIP.from_official(tmp_path/"a.pth", tiny_clip(seed=7), SMALL)
    half = {name: value.half() if name.startswith("clipmodel") else value
            for name, value in small_state(clip).items()}
    torch.save(half, tmp_path/"half.pth")
    assert VadCLIP.from_official(tmp_path/"half.pth", clip, SMALL).options.clip == clip.identity


def test_every_tensor_that_does_not_fit_is_named(clip, tmp_path):
    extra = {"gc5.weight": torch.zeros(2), "temporal.resblocks.2.ln_1.bias": torch.zeros(D)}
    extra |= {"linear.weight": torch.zeros(D, 3), "disAdj.sigma": torch.zeros(2)}
    state = small_state(clip, **extra)
    state["classifier.bias"][0] = torch.nan
    for name in ("mlp2.c_fc.bias", "gc1.residual.bias", "clipmodel.text_projection"): del state[name]
    torch.save(state, tmp_path/"a.pth")
    with pytest.raises(ModelError) as error: VadCLIP.from_official(tmp_path/"a.pth", clip, SMALL)
    said = str(error.value)
    for words in ("mlp2.c_fc.bias is missing", "gc1.residual.bias is missing", "8 tensors do not fit",
                  "clipmodel.text_projection is missing", "gc5.weight is not part of it",
                  "temporal.resblocks.2.ln_1.bias is not part of it", "classifier.bias holds NaN",
                  "linear.weight has the shape [16, 3], not [16, 16]",
                  "disAdj.sigma has the shape [2], not [1]"):
        assert words in said
    assert "\n" not in said


class Bomb:
    "A pickle that would run code."
    def __reduce__(self): return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content, words", [
    ({"linear.weight": Bomb()}, "could run code"), (Bomb(), "could run code"),
    ({"linear.weight": 3, "b": "x"}, "other things than named tensors .'linear.weight', 'b'"),
    ([torch.zeros(2)], "other things than named tensors .'list'"),
    ({}, "other things than named tensors .nothing"),
    (torch.zeros(2), "other things than named tensors .'Tensor'"),
    ({"model_state_dict": 5}, "other things than named tensors .'int'"),
])
def test_a_pickle_of_anything_else_is_refused(clip, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "a.pth")
    with pytest.raises(ModelError, match=words) as error: VadCLIP.from_official("a.pth", clip, SMALL)
    assert not os.path.exists("exploded") and "\n" not in str(error.value)


@pytest.mark.parametrize("name, content", [
    ("a.pth", b""), ("a.pth", b"PK\x03\x04 cut"), ("a.safetensors", b"\x08"),
    ("a.pth", b"<html>not found</html>"),
])
def test_a_damaged_file(clip, tmp_path, name, content):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: is not read.*cut short.*expected VadCLIP's model_ucf"):
        VadCLIP.from_official(tmp_path/name, clip, SMALL)
    with pytest.raises(ModelError, match="there is no such file"):
        VadCLIP.from_official(tmp_path/"nowhere.pth", clip, SMALL)


# ---- losses ---------------------------------------------------------------------------------------
def test_losses_by_hand():
    "Two videos; the first has 17 frames, so k = 2, the second 2 of them, so k = 1."
    anomaly = torch.full((2, 17), .1)
    anomaly[0, 3], anomaly[0, 9], anomaly[1, 0], anomaly[1, 5] = .9, .5, .2, .99     # the last: padding
    classes = torch.zeros(2, 17, 3)
    classes[0, 3, 1], classes[0, 4, 1], classes[1, 0, 0], classes[1, 5, 2] = .14, .07, .07, 9.
    text = torch.tensor([[1., 0], [3, 4], [-2, 0]])
    targets, lengths = torch.tensor([[0., 1, 0], [1, 0, 0]]), torch.tensor([17, 2])
    loss = make(tau=.07).loss(Output(anomaly, classes, text), targets, lengths)
    bce = -(math.log(.7) + math.log(1 - .2)) / 2
    align = -(math.log(math.exp(1.5) / (math.exp(1.5) + 2)) + math.log(math.e / (math.e + 2))) / 2
    contrast = (.6 + 1) / 2
    assert loss.items() == pytest.approx({"total": bce + align + .1 * contrast, "classification": bce,
                                          "alignment": align, "contrastive": contrast}, abs=1e-6)
    other = make().loss(Output(anomaly, classes, text), targets, lengths, alpha=0., beta=1e-4)
    assert float(other.total) == pytest.approx(bce + 1e-4 * contrast, abs=1e-6)


def test_losses_video_by_video(clip):
    "As its code writes them: a loop over the batch, top-k of the real frames, one class after the other."
    model, lengths = make(clip), torch.tensor([32, 15, 16, 1])
    targets = torch.tensor([[1., 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0]])
    output = model(torch.randn(4, 32, D), lengths=lengths)
    bce = nce = 0
    for n, T in enumerate(lengths.tolist()):
        k, abnormal = int(T / 16 + 1), 1 - targets[n, 0]
        p = output.anomaly[n, :T].topk(k).values.mean()
        bce += F.binary_cross_entropy(p, abnormal) / 4
        values = torch.stack([output.classes[n, :T, c].topk(k).values.mean() / .07 for c in range(3)])
        nce -= (targets[n] / targets[n].sum() * values.log_softmax(0)).sum() / 4
    push = sum(abs(F.cosine_similarity(output.text[0], output.text[c], 0)) for c in (1, 2)) / 2 * 1e-1
    found = model.loss(output, targets, lengths).total
    torch.testing.assert_close(found, bce + nce + push, atol=1e-5, rtol=0)


def test_gradients_reach_what_is_trained_and_nothing_of_clip(clip):
    model, lengths = make(), torch.tensor([30, 9])
    output = model(torch.randn(2, 30, D), lengths=lengths, text=model.embed(clip))
    model.loss(output, torch.tensor([[1., 0, 0], [0, 1, 0]]), lengths).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any(p.requires_grad or p.grad is not None for p in clip.model.parameters())


# ---- training and scoring as every detector --------------------------------------------------------
def toy_videos(count, seed=0):
    g, drift = np.random.default_rng(seed), np.random.default_rng(9).normal(size=D)
    videos, truth = [], {}
    for n in range(count):
        T = int(g.integers(20, 40))                           # some are longer than the model's 32
        on = np.zeros(T, bool)
        start = int(g.integers(0, T - 10))
        on[start:start + 10] = n % 2
        x = torch.tensor(g.normal(size=(T, D)) + 1.5 * on[:, None] * drift, dtype=torch.float32)
        videos.append((f"v{n}", features(x), ("Fire" if n % 2 else "Normal",)))
        truth[f"v{n}"] = on
    return videos, truth


def auc(model, videos, truth):
    scores = {id: score_video(model, found) for id, found, _ in videos}
    return roc_auc_score(np.concatenate([truth[id] for id in scores]), np.concatenate(list(scores.values())))


def fresh(seed=0):
    torch.manual_seed(seed)
    return VadCLIP(SMALL)


@pytest.mark.parametrize("scored", ["classification", "alignment"])
def test_it_learns(clip, scored):
    model, test = fresh(), toy_videos(16, seed=1)
    model.options = dataclasses.replace(model.options, scored=scored)
    assert auc(model.eval().store_text(clip), *test) < .9
    options = LearnerOptions(epochs=6, lr=2e-3, batch=8, max_length=32, alpha=1., beta=.1)
    history = train_model(model, clip, toy_videos(24)[0], options)
    assert auc(model, *test) > .9
    assert history.losses[-1]["total"] < .7 * history.losses[0]["total"]


def test_milestones(clip, monkeypatch, tmp_path):
    "The rate falls after each, also in a resumed run; without them a run's identity is as it was."
    seen, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step",
                        lambda self: seen.append(self.param_groups[0]["lr"]) or step(self))
    options = LearnerOptions(epochs=4, lr=1e-3, batch=8, max_length=32, milestones=(1, 3))
    videos = toy_videos(8)[0]
    model = fresh()
    train_model(model, clip, videos, options)
    assert seen == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])
    again = fresh()
    train_model(again, clip, videos, dataclasses.replace(options, epochs=2), checkpoint=tmp_path/"run.pt")
    train_model(again, clip, videos, options, checkpoint=tmp_path/"run.pt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    plain = dataclasses.replace(options, milestones=())
    with pytest.raises(LearnerError, match="milestones"):
        train_model(fresh(), clip, videos, plain, checkpoint=tmp_path/"run.pt")
    assert "milestones" not in json.loads(fingerprint(model, [], plain))
    for bad in ((0, 4), (4, 4), (8, 4)):
        with pytest.raises(LearnerError, match="expected rising epochs"): LearnerOptions(milestones=bad)


def test_the_whole_job_on_published_features(tmp_path):
    "Through prepare, fit, score and evaluate of the experiments, with its own settings but a toy's rate."
    folder = publish(tmp_path, dim=192, crops=(0, 5), count=4, length=20)
    job = TrainJob(dataset="ucf_crime", features=str(folder), backbone="mini", crops=1, device="cpu",
                   max_length=32, validation=0.)
    data = prepare(job)
    learning = vadclip_settings("ucf_crime")[1] | {"epochs": 6, "lr": 1e-3, "batch": 8}
    fitted = fit(job, data, make=new_vadclip, **learning)
    assert fitted.epochs == 6 and len(fitted.history.losses) == 6
    assert fitted.model.options.length == 20 and fitted.model.options.texts[8] == "road accident"
    scored = score(fitted, data)
    assert all(np.isfinite(one).all() and one.shape[1] == 14 for one in scored.classes.values())
    untrained = new_vadclip(job, data).eval().store_text(data.clip)
    before = score_videos(untrained, {item.id: data.features[item.id] for item in data.benchmark.test})
    after, found = evaluate(scored, locate(job, data), data), locate(job, data)
    assert after["frame_auc"] > 80
    chance = evaluate(dataclasses.replace(scored, frames=before), found, data)
    assert after["frame_auc"] > chance["frame_auc"]


def test_settings():
    assert vadclip_settings("ucf_crime")[1] == {"epochs": 10, "lr": 2e-5, "batch": 128, "alpha": 1.,
                                                "beta": .1, "milestones": (4, 8)}
    xd = official_options("xd_violence")
    assert (xd.window, xd.layers, xd.heads, xd.prefix, xd.postfix) == (64, 1, 1, 10, 10)
    assert xd.scored == "alignment"
    assert issubclass(VadCLIP, FrameDetector) and issubclass(STPrompt, FrameDetector)
    for dataset in ("ucf_crime", "xd_violence", "ministreet"):
        LearnerOptions(**vadclip_settings(dataset)[1])


# ---- checkpoints of ours ---------------------------------------------------------------------------
def test_reloaded_is_identical(clip, tmp_path):
    model = make(clip, scored="alignment")
    model.save_pretrained(tmp_path/"m", metrics={"frame AUC": .9})
    again, frame = VadCLIP.from_pretrained(tmp_path/"m"), torch.randn(1, 9, D)
    assert again.options == model.options and again.chunk == 32 and not again.training
    assert torch.equal(again(frame).classes, model(frame).classes)
    card = (tmp_path/"m"/"README.md").read_text()
    assert "frame AUC | 0.9" in card and "2308.11681" in card and "alignment branch" in card
    with pytest.raises(ModelError, match="belongs to config/random"): again.store_text(tiny_clip(seed=3))


@pytest.mark.parametrize("change, words", [
    ({"dim": 32}, "has the shape"), ({"layers": 3}, "is missing"), ({"layers": 1}, "is not part"),
    ({"length": 64}, "frame_position_embeddings"), ({"kernel": 1}, "there is no such parameter"),
    ({"window": "8"}, "window='8': expected a whole number"), ({"spatial": "sa2"}, "spatial='sa2'"),
    ({"heads": 3}, "heads=3"), ({"dim": 65_536}, "has the shape .* config.json asks for"),
    ({"clip": {"weights": "x"}}, "found no name"),
])
def test_a_checkpoint_of_another_shape(clip, tmp_path, change, words):
    make(clip).save_pretrained(tmp_path)
    config = json.loads((tmp_path/"config.json").read_text())
    config["options"].update(change)
    (tmp_path/"config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words): VadCLIP.from_pretrained(tmp_path)


def test_a_checkpoint_of_the_other_detector(clip, tmp_path):
    make(clip).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="config.json: .*there is no such parameter"):
        STPrompt.from_pretrained(tmp_path)


# ---- bad input -------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", [[0], [33], [5, 5]])
def test_a_video_without_frames_reaches_no_softmax(clip, lengths):
    with pytest.raises(AdapterError, match="one length from 1 to T=9"):
        make(clip)(torch.zeros(1, 9, D), lengths=torch.tensor(lengths))


@pytest.mark.parametrize("shape", [(1, 0, D), (0, 9, D), (9, D), (1, 9, D + 1)])
def test_frames_of_another_shape(clip, shape):
    with pytest.raises(ModelError, match="at least one frame"): make(clip)(torch.zeros(shape))


def test_an_empty_video_is_refused_by_training_and_scoring(clip):
    model, empty = make(clip), features(torch.zeros(0, D))
    with pytest.raises(LearnerError, match="at least one feature"): score_video(model, empty)
    with pytest.raises(LearnerError, match="video 'v0': expected features"):
        train_model(model, clip, [("v0", empty, "Normal"), *toy_videos(4)[0]], LearnerOptions(epochs=1))
    with pytest.raises(LearnerError, match=r"video 'v1': expected features \[T, 16\]"):
        wrong = ("v1", features(torch.zeros(4, D + 1)), "Fire")
        train_model(model, clip, [toy_videos(1)[0][0], wrong], LearnerOptions(epochs=1))


def test_more_frames_than_places(clip):
    model = make(clip)
    with pytest.raises(ModelError, match="33 features, this model has places for 32"):
        model(torch.zeros(1, 33, D))
    with pytest.raises(ModelError, match="train with a shorter max_length"):
        train_model(model, clip, toy_videos(8)[0], LearnerOptions(epochs=1, batch=8))


@pytest.mark.parametrize("bad", [
    {"dim": 15}, {"heads": 3}, {"window": 33}, {"window": 0}, {"prefix": 40, "postfix": 40},
    {"threshold": 2.}, {"sigma": 0.}, {"distance": "none"}, {"attention": "mean"}, {"scored": "both"},
    {"spatial": "sa2"},
    {"precision": "fp8"}, {"classes": {"Normal": "normal"}}, {"tau": 0.}, {"length": 7},
])
def test_bad_options(bad):
    with pytest.raises(ModelError): dataclasses.replace(SMALL, **bad)


def test_texts_and_towers_that_do_not_fit(clip):
    long = make(classes={"Normal": "normal", "Fire": "fire " * 60})
    with pytest.raises(ModelError, match="60 tokens between 10 and 10 learned ones"): long.embed(clip)
    with pytest.raises(ModelError, match="12 wide"): make(token_width=8).embed(clip)
    with pytest.raises(ModelError, match="no label embeddings"): make()(torch.zeros(1, 4, D))
    with pytest.raises(BackboneError, match="fp16"): make(precision="fp16").embed(clip)
    near = make(precision="bf16").embed(clip)
    assert near.dtype == torch.float32 and (near - make().embed(clip)).abs().max() < .2
