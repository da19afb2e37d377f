"""The model: Table 4-6 switches, checkpoints that fit or are refused, and a broken one below the bound."""

import json
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from stprompt.adapter import AdapterKind
from stprompt.losses import Branches, total_loss
from stprompt.model import CARD, ModelError, STPrompt, STPromptOptions, card_text
from stprompt.motion import spatial_names

CLASSES = {"Normal": "normal", "zebra": "a zebra", "Fire": "fire"}  # not in alphabetical order, on purpose


class ToyCLIP(nn.Module):
    "Words become vectors; a frozen tower mixes each with the context."
    token_width, dim = 12, 16
    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.tower = nn.Parameter(torch.randn(12, 16, generator=g), requires_grad=False)
        self.identity = {"name": "toy", "weights": "random", "sha256": f"{seed:064d}"}
    def prompts(self, context, texts):
        words = torch.stack(
            [torch.randn(12, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
        )
        return torch.tanh(words + context.sum(0)) @ self.tower

def make(seed=0, **changes):
    torch.manual_seed(seed)
    return STPrompt(STPromptOptions(**({"dim": 16, "token_width": 12, "classes": CLASSES} | changes)))

def batch(): return torch.randn(3, 70, 16), torch.randn(3, 70, 16), torch.tensor([70, 20, 1])


@pytest.mark.parametrize("adapter", get_args(AdapterKind))
@pytest.mark.parametrize("branches", get_args(Branches))
@pytest.mark.parametrize("spatial", ["none", "sa2"])
def test_every_switch_runs_and_learns(adapter, branches, spatial):
    model, clip = make(adapter=adapter, branches=branches, spatial=spatial, layers=2), ToyCLIP()
    frame, aggregate, lengths = batch()
    out = model(frame, None if spatial == "none" else aggregate, lengths, model.embed(clip))
    assert (
        out.anomaly.shape == (3, 70)
        and out.classes.shape == (3, 70, 3)
        and ((out.anomaly > 0) & (out.anomaly < 1)).all()
        and out.classes.abs().max() <= 1 + 1e-5
    )
    assert ((model.scores(out) >= 0) & (model.scores(out) <= 1)).all()
    total_loss(
        out, torch.tensor([[0, 1, 0], [1, 0, 0], [1, 0, 0]]), lengths, branches=branches
    ).total.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert ("prompts.context" in got) == (branches != "classification") and ("classifier.weight" in got) == (
        branches != "alignment"
    )
    assert any(name.startswith("adapter") for name in got) == (adapter != "none")
    assert clip.tower.grad is None and not any("tower" in name for name in model.state_dict())

@pytest.mark.parametrize("adapter", get_args(AdapterKind))
def test_padding_changes_nothing(adapter):
    model, clip = make(adapter=adapter), ToyCLIP()
    frame, spatial, lengths = batch()
    frame[1, 20:], spatial[1, 20:] = 1e3, -1e3
    model.store_text(clip)
    a, b = model(frame, spatial, lengths), model(frame[1:2, :20], spatial[1:2, :20])
    assert torch.allclose(model.scores(a)[1, :20], model.scores(b)[0], atol=1e-5) and torch.allclose(
        a.anomaly[1, :20], b.anomaly[0], atol=1e-5
    )


def test_normalised_features_do_not_feel_their_length():
    model = make(normalize=True).store_text(ToyCLIP())
    frame, spatial, _ = batch()
    assert torch.allclose(model(frame, spatial).classes, model(frame * 9, spatial * .1).classes, atol=1e-5)
    model = make().store_text(ToyCLIP())
    assert not torch.allclose(
        model(frame, spatial).classes, model(frame * 9, spatial * 0.1).classes, atol=1e-2
    )


def test_scores_are_one_minus_the_normal_class_and_the_normal_class_is_the_first():
    model = make().store_text(ToyCLIP())
    frame, spatial, _ = batch()
    out = model(frame, spatial)
    assert torch.allclose(model.scores(out), 1 - (out.classes / .07).softmax(-1)[..., 0])
    assert model.options.labels[0] == "Normal"
    assert torch.equal(
        (m := make(branches="classification").store_text(ToyCLIP())).scores(o := m(frame, spatial)),
        o.anomaly,
    )


def synthetic(n, T=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(9)) * 2
    label = torch.arange(n) % 2
    start = torch.randint(0, T - 10, (n, 1), generator=g)
    truth = (torch.arange(T) >= start) & (torch.arange(T) < start + 10) & (label > 0)[:, None]
    frame = torch.randn(n, T, 16, generator=g) + truth[..., None] * direction
    return frame, frame, F.one_hot(label, 3), truth

def train(model, clip, steps=60):
    frame, spatial, targets, _ = synthetic(32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        loss = total_loss(model(frame, spatial, text=model.embed(clip)), targets)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    frame, spatial, _, truth = synthetic(32, seed=1)
    return roc_auc_score(
        truth.flatten(), model.scores(model(frame, spatial, text=model.embed(clip))).detach().flatten()
    )


def test_it_learns_and_a_broken_model_does_not(monkeypatch):
    "AUC above 0.95 on unseen videos is a bound that three broken models do not reach."
    clip = ToyCLIP()
    assert train(make(), clip) > .95
    assert train(make(), clip, steps=0) < .9
    with monkeypatch.context() as m:
        m.setattr(
            "stprompt.adapter.distance_average", lambda x, *_, **__: x.mean(1, keepdim=True).expand_as(x)
        )
        m.setattr(F, "normalize", lambda x, dim: x.mean(1, keepdim=True).expand_as(x) if x.ndim == 3 else x)
        assert train(make(), clip, steps=20) < .9                           # time is averaged away
    with monkeypatch.context() as m:
        m.setattr(STPrompt, "scores", lambda self, out: self.probabilities(out)[..., 0])
        assert train(make(), clip) < 0.1  # the normal class taken for the anomaly


# ---- checkpoints --------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path):
    model = make(clip=ToyCLIP().identity, sigma=2., spatial="average").store_text(ToyCLIP()).eval()
    model.save_pretrained(tmp_path / "m", metrics={"frame AUC": .9})
    return model, tmp_path / "m"

def test_reloaded_is_identical(saved):
    model, path = saved
    frame, spatial, lengths = batch()
    again = STPrompt.from_pretrained(path)
    assert (
        not again.training and again.options == model.options and again.options.labels == tuple(CLASSES)
    ), "the order of classes is the order of columns"
    assert torch.equal(
        model(frame, spatial, lengths).classes, again(frame, spatial, lengths).classes
    ) and torch.equal(again.embed(ToyCLIP()), model.embed(ToyCLIP()))
    assert sorted(p.name for p in path.iterdir()) == ["README.md", "config.json", "model.safetensors"]

def test_the_size_is_that_of_the_trained_parts(saved):
    model, path = saved
    assert (path / "model.safetensors").stat().st_size < sum(
        v.numel() * 4 for v in model.state_dict().values()
    ) + 2000


def test_saving_prints_nothing_and_loading_prints_nothing(saved, capsys):
    saved[0].save_pretrained(saved[1])
    STPrompt.from_pretrained(str(saved[1]))
    assert capsys.readouterr().out == ""

def test_the_card(saved):
    model, path = saved
    assert (
        "frame AUC | 0.9" in (path / "README.md").read_text()
        and "2408.05905" in (path / "README.md").read_text()
    )
    model.save_pretrained(path, metrics={"frame AUC": 0.8})
    assert "0.8" in (path / "README.md").read_text()
    (path / "README.md").write_text("my own words")
    model.save_pretrained(path)
    assert (path / "README.md").read_text() == "my own words"
    assert "none yet" in card_text(CARD, make().options)

def test_another_clip_is_refused(saved):
    again = STPrompt.from_pretrained(saved[1])
    with pytest.raises(ModelError, match="belongs to toy/random"): again.store_text(ToyCLIP(seed=3))
    assert torch.equal(again.text, saved[0].text)
    fresh = make()
    assert fresh.options.clip is None
    fresh.embed(ToyCLIP())
    assert fresh.options.clip == ToyCLIP().identity
    with pytest.raises(ModelError, match="train anew"): fresh.embed(ToyCLIP(seed=3))

def edit(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config["options"].update(changes)
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(dim=32), "adapter.layers.0"),
        (dict(prompt_length=4), "prompts.context"),
        (dict(layers=2), "is missing"),
        (dict(adapter="none"), "is not part"),
        (dict(classes=[["Normal", "normal"], ["x", "x"]]), "text"),
        (dict(kernel=1), "config.json: kernel=1: there is no such parameter"),
        (dict(adapter="self_attention"), "is missing"),
    ],
)
def test_a_checkpoint_of_another_shape(saved, change, word):
    edit(saved[1], **change)
    with pytest.raises(ModelError, match=word): STPrompt.from_pretrained(saved[1])

@pytest.mark.parametrize(
    "harm, word",
    [
        (lambda p: (p / "config.json").unlink(), "has no config.json"),
        (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda p: (p / "config.json").write_text("{"), "holds no options"),
        (lambda p: (p / "config.json").write_text("[]"), "holds no options"),
        (
            lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-50]),
            "cut short",
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b""), "cut short"),
    ],
)
def test_a_damaged_checkpoint(saved, harm, word):
    harm(saved[1])
    with pytest.raises(ModelError, match=word): STPrompt.from_pretrained(saved[1])

@pytest.mark.parametrize("change, words", [
    (dict(normalize="no"), "normalize='no': expected True or False"),
    (dict(normalize=1), "normalize=1: expected True or False"),
    (dict(dim=10**9), "dim=1000000000: expected a whole number from 1 to 65536"),
    (dict(dim=16.), "dim=16.0: expected a whole number"),
    (dict(layers=10**6), "layers=1000000"),
    (dict(sigma="1"), "sigma='1'"),
    (dict(tau=float("inf")), "tau=inf"),
    (dict(adapter="distances"), "adapter='distances': choose one of"),
    (dict(classes=[["Normal", "normal"], ["Fire", 3]]), "classes: expected {label: text}"),
    (dict(classes=[["Normal", "normal"], 3]), "classes: expected"),
    (dict(classes=[["Normal", "normal"]]), "at least one other"),
    (dict(clip={"weights": "openai"}), "found no name"),
    (dict(clip="ViT-B-16"), "clip="),
    (dict(spatial="sa3"), "sa3"),
])
def test_a_configuration_is_of_its_types_and_within_its_bounds(saved, change, words):
    edit(saved[1], **change)
    with pytest.raises(ModelError) as error: STPrompt.from_pretrained(saved[1])
    assert "config.json" in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_shapes_are_compared_before_anything_is_allocated(saved, monkeypatch):
    "A configuration that asks for gigabytes: the file's header is enough to refuse it."
    import resource
    edit(saved[1], dim=65_536, token_width=65_536)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="has the shape .* config.json asks for"):
        STPrompt.from_pretrained(saved[1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000     # kilobytes


def test_no_checkpoint(tmp_path):
    for path in (tmp_path / "none", "./none", "a/b/c"):
        with pytest.raises(ModelError, match="no such folder"): STPrompt.from_pretrained(path)


@pytest.mark.parametrize("name, near", [
    ("results/ministreet-smal/train/model", "results has no 'ministreet-smal', but 'ministreet-small'"),
    ("results/ministreet-small/trian/model", "ministreet-small has no 'trian', but 'train'"),
    ("results/nothing", "results has no 'nothing'"),
    ("my_model", "there is no such folder"),
    ("./x", "there is no such folder"),
    ("../x", "there is no such folder"),
    ("~/x", "there is no such folder"),
    ("/nowhere/at/all", "there is no such folder"),
    ("a--b/c", "there is no such folder"),
    ("owner/two words", "there is no such folder"),
    (r"results\model", "there is no such folder"),
])
def test_a_mistyped_folder_is_named_and_no_hub_is_asked(tmp_path, monkeypatch, name, near):
    asked = []
    monkeypatch.setattr("stprompt.model.hf_hub_download", lambda *a, **k: asked.append(a))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "ministreet-small" / "train" / "model").mkdir(parents=True)
    with pytest.raises(ModelError) as error: STPrompt.from_pretrained(name)
    assert near in str(error.value) and not asked and "\n" not in str(error.value)


def test_a_repository_comes_from_the_hub(saved, tmp_path, monkeypatch):
    asked = []

    def download(repository, name, **how):
        asked.append((repository, name, how))
        return str(saved[1] / name)

    monkeypatch.setattr("stprompt.model.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    again = STPrompt.from_pretrained("owner/my-model_1.0", revision="main")
    assert again.options == saved[0].options
    assert asked == [("owner/my-model_1.0", name, {"revision": "main"}) for name in ("config.json",
                                                                                    "model.safetensors")]


def test_a_hub_without_such_a_repository_is_one_sentence(tmp_path, monkeypatch):
    def download(*_, **__): raise ConnectionError("no route to host\nand more")
    monkeypatch.setattr("stprompt.model.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as error: STPrompt.from_pretrained("owner/name")
    assert "owner/name: there is no such folder, and the hub gave no config.json" in str(error.value)
    assert "ConnectionError" in str(error.value) and "\n" not in str(error.value)

def test_a_failed_save_leaves_the_old_weights(saved, monkeypatch):
    model, path = saved
    before = (path / "model.safetensors").read_bytes()
    monkeypatch.setattr("stprompt.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError): make(seed=5).save_pretrained(path)
    assert (path / "model.safetensors").read_bytes() == before and not [
        p for p in path.iterdir() if p.name.startswith(".")
    ]


@pytest.mark.parametrize(
    "bad, error",
    [
        (dict(classes={"Normal": "n"}), ModelError),
        (dict(classes=(("a", "x"), ("a", "y"))), ModelError),
        (dict(classes="ab"), ModelError),
        (dict(spatial="x"), ModelError),
        (dict(branches="x"), ModelError),
        (dict(dim=0), ModelError),
        (dict(tau=0), ModelError),
        (dict(sigma=-1.0), ModelError),
        (dict(adapter="x"), ModelError),
    ],
)
def test_bad_options(bad, error):
    with pytest.raises(error): STPromptOptions(**({"dim": 16, "token_width": 12, "classes": CLASSES} | bad))
    assert "sa2" in spatial_names()
