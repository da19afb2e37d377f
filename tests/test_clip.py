"""The frozen CLIP: parity with open_clip's own forward, the guard against towers it would run wrongly,
options, weights files, and faults."""

import builtins
import copy
import json
import logging
import pickle
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stprompt import clip as module
from stprompt.clip import (
    Backbone,
    BackboneError,
    FrozenCLIP,
    build_clip,
    enlarge,
    load_backbone,
    mini_config,
    pick_device,
    pick_precision,
    squeeze,
    wants_quick_gelu,
)
from stprompt.files import asset
from stprompt.video import Frames, VideoError

torch.set_num_threads(1)
PICTURES = np.random.default_rng(0).integers(0, 255, (3, 90, 120, 3), np.uint8)

@pytest.fixture(scope="module")
def clip(): return FrozenCLIP.from_config(mini_config())

def ready(clip, pictures):
    "What open_clip's own encoder is given."
    x = torch.stack([torch.from_numpy(squeeze(p, clip.resolution)) for p in pictures]).permute(0, 3, 1, 2)
    return (x.float() / 255 - clip.mean) / clip.std

def tiny(**changes):
    "A small open_clip model; `vision_...` and `text_...` go to the towers."
    cfg = {
        "embed_dim": 16,
        "vision_cfg": dict(image_size=64, layers=2, width=64, head_width=32, patch_size=16),
        "text_cfg": dict(context_length=77, vocab_size=4014, width=32, heads=2, layers=2),
    }
    for key, value in changes.items():
        tower, _, name = key.partition("_")
        if tower in ("vision", "text"): cfg[tower + "_cfg"][name] = value
        else: cfg[key] = value
    return {"model_cfg": cfg, "preprocess_cfg": mini_config()["preprocess_cfg"]}


# ---- the same as open_clip ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        mini_config(),
        tiny(),
        tiny(quick_gelu=True),
        tiny(vision_no_ln_pre=True),
        tiny(vision_patch_size=8),
        tiny(vision_ls_init_value=0.1),
    ],
    ids=["mini", "tiny", "quick_gelu", "no_ln_pre", "patch8", "layer_scale"],
)
@torch.no_grad()
def test_frames_windows_text_are_open_clips(config):
    clip = FrozenCLIP.from_config(config)
    own, side = clip.model.encode_image(ready(clip, PICTURES)), clip.resolution
    assert torch.allclose(clip.frames(PICTURES), own, atol=1e-4)
    for mode in ("token", "crop"):
        alone = clip.windows(PICTURES, side, side, mode)[:, 0, 0]
        assert torch.allclose(alone, own, atol=1e-4)     # a window as large as the frame is the frame
    sentences = ["fire", "a picture of a long road beside a tree", "people, fighting!", "word " * 75]
    assert torch.allclose(clip.text(sentences), clip.model.encode_text(clip.tokenizer(sentences)), atol=1e-5)

def pil_resized(picture, side):
    "As OpenAI's preprocessing resizes a square."
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))

@torch.no_grad()
def test_a_crop_is_the_enlarged_window(clip):
    square = squeeze(PICTURES[0], 224)
    got = clip.windows(square[None], 80, 48, "crop")[0]
    for r, c in ((0, 0), (3, 1), (1, 2)):
        window = pil_resized(square[48 * r:48 * r + 80, 48 * c:48 * c + 80], 224)
        assert torch.allclose(got[r, c], clip.model.encode_image(ready(clip, [window]))[0], atol=1e-4)


def kinds_of_pictures(size):
    "Noise, noise of two colours, a ramp and a checkerboard, uint8 [8, size, size, 3]."
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (4, size, size, 3), np.uint8)
    hard = rng.integers(0, 2, (2, size, size, 3), np.uint8) * 255
    y, x = np.mgrid[:size, :size]
    drawn = np.stack([x * 255 // max(1, size - 1), (x + y) % 2 * 255]).astype(np.uint8)
    return np.concatenate([noise, hard, np.repeat(drawn[..., None], 3, -1)])

@pytest.mark.parametrize("size, side", [(32, 224), (80, 224), (112, 224), (17, 64), (1, 64), (32, 336),
                                        (224, 224), (300, 224), (97, 64), (640, 224)])
def test_enlarged_windows_are_pils_pixels(size, side):
    "What grows, what keeps its size and what shrinks: within 1/255, and in fact to the last bit."
    pictures = kinds_of_pictures(size)
    want = torch.from_numpy(np.stack([pil_resized(one, side) for one in pictures])).permute(0, 3, 1, 2)
    got = enlarge(torch.from_numpy(pictures).permute(0, 3, 1, 2), side)
    assert got.dtype == torch.float32 and got.min() >= 0 and got.max() <= 255
    assert torch.equal(got, want.float())

def test_openais_own_preprocessing(clip):
    "The same through torchvision, normalised: within 1/255 of each channel's deviation."
    from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor
    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    theirs = Compose([Resize(224, InterpolationMode.BICUBIC), ToTensor(), Normalize(mean, std)])
    pictures = kinds_of_pictures(48)
    want = torch.stack([theirs(Image.fromarray(one)) for one in pictures])
    got = enlarge(torch.from_numpy(pictures).permute(0, 3, 1, 2), 224)
    assert ((got / 255 - clip.mean) / clip.std - want).abs().max() < 1e-5

@torch.no_grad()
def test_every_window_is_cut_where_it_belongs(clip, monkeypatch):
    "The pixels that crop mode embeds, over two frames and three grids, against PIL on slices."
    seen, right = [], module.embed_patches
    monkeypatch.setattr(module, "embed_patches", lambda c, x: seen.append(x.float()) or right(c, x))
    squares = [squeeze(picture, 224) for picture in PICTURES[:2]]
    for size, stride in ((80, 48), (100, 124), (224, 7)):
        seen.clear()
        clip.windows(np.stack(squares), size, stride, "crop")
        starts = range(0, 224 - size + 1, stride)
        want = [pil_resized(one[y:y + size, x:x + size], 224) for one in squares for y in starts
                for x in starts]
        assert torch.equal(torch.cat(seen), torch.from_numpy(np.stack(want)).permute(0, 3, 1, 2).float())

def test_memory_of_crops_is_bounded(monkeypatch):
    "However many windows there are, few are enlarged at a time."
    clip, most, right = FrozenCLIP.from_config(tiny()), [], module.enlarge
    clip.batch = 17 * 5
    monkeypatch.setattr(module, "enlarge", lambda x, side: most.append(len(x)) or right(x, side))
    assert clip.windows(PICTURES, 16, 8, "crop").shape == (3, 7, 7, 16)
    assert max(most) == 5 and sum(most) == 3 * 49


@torch.no_grad()
def test_a_token_window_is_its_own_patches(clip):
    """The same tower, fed by hand with CLS and the window's patches at their places;
    and nothing outside the window counts."""
    visual, size, stride = clip.model.visual, 32, 48
    x = ready(clip, PICTURES[:1])
    patches = visual.conv1(x).flatten(2).transpose(1, 2)
    got = clip.windows(PICTURES[:1], size, stride)[0]
    for r, c in ((0, 0), (2, 3), (3, 0)):
        where = [(3 * r + i) * 14 + 3 * c + j for i in (0, 1) for j in (0, 1)]
        tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches[:, where]], 1)
        tokens = tokens + visual.positional_embedding[[0] + [1 + n for n in where]]
        want = visual.ln_post(visual.transformer(visual.ln_pre(tokens))[:, 0]) @ visual.proj
        assert torch.allclose(got[r, c], want[0], atol=1e-5)
    other = squeeze(PICTURES[0], 224).copy()
    other[40:] = 0
    changed = clip.windows(other[None], size, stride)[0]
    assert torch.allclose(changed[0], got[0], atol=1e-5)
    assert not torch.allclose(changed[1], got[1], atol=1e-2)


@torch.no_grad()
def test_a_broken_tower_fails_the_bound(clip, monkeypatch):
    "The bounds above are ones that forgotten positions, a forgotten norm and a lost mask all break."
    own, said = clip.model.encode_image(ready(clip, PICTURES)), clip.text(["people fighting"])
    right = module.vision
    monkeypatch.setattr(module, "vision", lambda v, t, p: right(v, t, p * 0))
    assert (clip.frames(PICTURES) - own).abs().max() > 1e-3
    monkeypatch.setattr(module, "vision", right)
    assert (clip.frames(PICTURES) - own).abs().max() < 1e-4
    broken = copy.deepcopy(clip.model)
    broken.attn_mask = torch.zeros_like(broken.attn_mask)
    tokens = clip.tokenizer(["people fighting"])
    wrong = module.text_tower(broken, broken.token_embedding(tokens), tokens.argmax(-1))
    assert (wrong - said).abs().max() > 1e-3


def test_batches_and_chunks_change_nothing(clip):
    scales = (32, 32), (80, 48)
    whole, windows = clip.encode(PICTURES, scales)
    small = FrozenCLIP(clip.model, clip.tokenizer, mini_config()["preprocess_cfg"],
                       {"name": "small", "weights": "same"}, batch=7)
    other, others = small.encode(PICTURES, scales)
    for a, b in zip((whole, *windows), (other, *others)): assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(clip.windows(PICTURES[1:2]), windows[0][1:2], atol=1e-5)
    crops, small_crops = (one.windows(PICTURES[:1], mode="crop") for one in (clip, small))
    assert torch.allclose(crops, small_crops, atol=1e-5)
    assert clip.frames(PICTURES[:0]).shape == (0, 192)
    assert clip.windows(PICTURES[:0]).shape == (0, 7, 7, 192)
    assert clip.windows(PICTURES[:0], mode="crop").shape == (0, 7, 7, 192)


def test_features_may_be_trained_on(clip):
    "No inference tensors: a head on top of `.frames` and `.text` can be trained."
    head = torch.nn.Linear(192, 1)
    parts = clip.frames(PICTURES), clip.text(["fire"]), clip.windows(PICTURES[:1])
    sum(head(part).sum() for part in parts).backward()
    assert head.weight.grad.abs().sum() > 0


# ---- precision ----------------------------------------------------------------------------------------
def test_half_the_bits_is_the_same_clip():
    """bf16 on the CPU: float32 out, near the same features in both modes, the same identity; and whoever
    asks for nothing gets fp32 there, bit for bit."""
    full, auto, half = (FrozenCLIP.load("mini", None, "cpu", p) for p in ("fp32", "auto", "bf16"))
    assert (full.precision, auto.precision, half.precision) == ("fp32", "fp32", "bf16")
    assert half.identity == full.identity and set(full.identity) == {"name", "weights", "sha256"}
    assert torch.equal(auto.frames(PICTURES), full.frames(PICTURES))
    assert half.model.visual.proj.dtype == torch.bfloat16
    for found in (lambda c: c.frames(PICTURES), lambda c: c.windows(PICTURES),
                  lambda c: c.windows(PICTURES[:1], 80, 48, "crop"), lambda c: c.text(["fire", "a tree"])):
        a, b = found(full), found(half)
        assert b.dtype == torch.float32 and a.shape == b.shape and not torch.equal(a, b)
        assert torch.cosine_similarity(a, b, dim=-1).min() > .999
    assert half.frames(PICTURES[:0]).dtype == torch.float32

def test_prompts_are_learned_in_single_precision():
    "float32 in, float32 out, the gradient that of fp32 to the last bit."
    def learn(precision):
        clip = FrozenCLIP.load("mini", None, "cpu", precision)
        context = torch.full((8, clip.token_width), .01, requires_grad=True)
        found = clip.prompts(context, ["fire", "people fighting"])
        found.square().sum().backward()
        return found.detach(), context.grad

    full, half = learn("fp32"), learn("bf16")
    assert half[0].dtype == half[1].dtype == torch.float32 and half[1].abs().sum() > 0
    assert torch.equal(full[0], half[0]) and torch.equal(full[1], half[1])

@pytest.mark.parametrize("values, says", [
    ({"precision": "fp16", "device": "cpu"}, "precision='fp16': a CPU does not compute in it; use auto, fp"),
    ({"precision": "float32"}, "precision='float32': choose one of auto, fp32, bf16, fp16"),
])
def test_precisions_that_cannot_be(values, says):
    with pytest.raises(BackboneError, match=says): Backbone(**values)
    with pytest.raises(BackboneError, match=says.replace("one of ", "")):
        FrozenCLIP.load(device="cpu", precision=values["precision"])

def test_a_gpu_has_its_precisions(monkeypatch):
    "bf16 on what has it, fp32 on older ones, where bf16 is one sentence; fp16 on both when asked for."
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    for generation, auto in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=generation: found)
        assert pick_precision("auto", "cuda:0") == auto
        assert [pick_precision(name, "cuda:0") for name in ("fp32", "fp16")] == ["fp32", "fp16"]
    with pytest.raises(BackboneError, match="precision='bf16': Old GPU does not have it; use auto, fp32 or"):
        pick_precision("bf16", "cuda:0")

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu():
    "The windows' pixels are the CPU's; fp32 features are near, bf16 and fp16 within a cosine of 0.999."
    for size in (32, 80, 112):
        cuts = torch.from_numpy(kinds_of_pictures(size)).permute(0, 3, 1, 2)
        assert torch.equal(enlarge(cuts.cuda(), 224).cpu(), enlarge(cuts, 224))
    want = FrozenCLIP.load("mini", device="cpu").windows(PICTURES, mode="crop")
    assert FrozenCLIP.load("mini", device="cuda").precision in ("bf16", "fp32")
    for precision in ("fp32", "bf16", "fp16"):
        clip = FrozenCLIP.load("mini", device="cuda", precision=precision)
        got = clip.windows(PICTURES, mode="crop").cpu()
        assert got.dtype == torch.float32 and torch.cosine_similarity(got, want, dim=-1).min() > .999
        context = torch.zeros(8, clip.token_width, device="cuda", requires_grad=True)
        clip.prompts(context, ["fire"]).square().sum().backward()
        assert context.grad.dtype == torch.float32 and context.grad.norm() > 0


# ---- prompts ------------------------------------------------------------------------------------------
def test_prompts_reach_the_context_only(clip):
    context = torch.randn(8, clip.token_width, generator=torch.Generator().manual_seed(0)) * .02
    context.requires_grad_()
    labels = ["fire", "a road accident beside a tree"]
    both = clip.prompts(context, labels)
    # the cut of the longer one changes nothing
    assert torch.allclose(both[:1], clip.prompts(context, labels[:1]), atol=1e-5)
    both[1].sum().backward()
    assert (context.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
    with torch.no_grad():
        changed = context.clone()
        changed[3, ::2] += 1  # a step along all channels would vanish in the LayerNorm
        assert (clip.prompts(changed, labels) - both).abs().amax(1).min() > 1e-3

def test_prompts_refuse_what_does_not_fit(clip):
    with pytest.raises(BackboneError, match="exceed the 77"):
        clip.prompts(torch.zeros(75, clip.token_width), ["fire"])
    just = clip.prompts(torch.zeros(74, clip.token_width), ["fire"])     # 74 + [start] fire [end] = 77
    assert just.shape == (1, 192)
    for context in (torch.zeros(8, 64), torch.zeros(clip.token_width)):
        with pytest.raises(BackboneError, match=r"expected \[L, 128\]"): clip.prompts(context, ["fire"])


# ---- faults -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "frames",
    [
        PICTURES.astype(np.float32),
        PICTURES[0],
        PICTURES[..., :1],
        np.zeros((2, 8, 8, 4), np.uint8),
        [PICTURES[0], PICTURES[1][:50]],
    ],
    ids=["float", "one", "grey", "rgba", "ragged"],
)
def test_pictures_of_the_wrong_kind(clip, frames):
    with pytest.raises(VideoError, match=r"uint8 \[N, H, W, 3\]"): clip.frames(frames)

def test_a_chunk_of_a_video_is_pictures(clip):
    chunk = Frames(PICTURES, np.arange(3), np.arange(3) / 25)
    assert torch.equal(clip.frames(chunk), clip.frames(PICTURES))

@pytest.mark.parametrize(
    "size, stride, mode, says",
    [
        (30, 30, "token", "mode='crop'"),
        (32, 24, "token", "multiples of 16"),
        (256, 32, "token", "do not fit"),
        (0, 32, "crop", "do not fit"),
        (32, 0, "crop", "stride"),
        (32, 32, "dense", "token or crop"),
    ],
)
def test_windows_that_cannot_be(clip, size, stride, mode, says):
    with pytest.raises(BackboneError, match=says): clip.windows(PICTURES, size, stride, mode)

@pytest.mark.parametrize("sentences", ["fire", [], [3]], ids=["str", "none", "number"])
def test_sentences_of_the_wrong_kind(clip, sentences):
    with pytest.raises(BackboneError, match="list of at least one text"): clip.text(sentences)


# ---- which towers it may run --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        dict(vision_pool_type="avg"),
        dict(vision_final_ln_after_pool=True),
        dict(text_pool_type="last"),
        dict(text_no_causal_mask=True),
        dict(vision_attentional_pool=True),
    ],
    ids=str,
)
def test_other_towers_are_refused(changes):
    "open_clip holds models that `vision` and `text_tower` would run without an error and wrongly."
    with pytest.raises(BackboneError, match="not a plain ViT"): FrozenCLIP.from_config(tiny(**changes))

def test_a_resnet_is_refused():
    with pytest.raises(BackboneError, match="take a ViT such as ViT-B-16"):
        FrozenCLIP.from_config(tiny(vision_layers=[1, 1, 1, 1], vision_width=32))


def test_quick_gelu_is_the_weights_own(monkeypatch, tmp_path):
    "ViT-B-16 with its tag openai must run with QuickGELU; open_clip itself only warns."
    asked = {}

    def create(name, pretrained=None, force_quick_gelu=False, **more):
        asked.update(pretrained=pretrained, quick=force_quick_gelu)
        return open_clip.CLIP(**tiny(quick_gelu=force_quick_gelu)["model_cfg"])

    monkeypatch.setattr(open_clip, "create_model", create)
    preprocess = mini_config()["preprocess_cfg"]
    monkeypatch.setattr(open_clip, "get_model_preprocess_cfg", lambda model: dict(preprocess))
    kinds = lambda clip: {type(m).__name__ for m in clip.model.modules()} & {"QuickGELU", "GELU"}
    assert kinds(FrozenCLIP.load("ViT-B-16", "openai")) == {"QuickGELU"}
    assert asked == {"pretrained": "openai", "quick": True}
    assert kinds(FrozenCLIP.load("ViT-B-16", "laion2b_s34b_b88k")) == {"GELU"}
    assert wants_quick_gelu("ViT-B-16-quickgelu", "some.pt") and not wants_quick_gelu("ViT-B-16", "some.pt")
    path = tmp_path / "open_clip_model.safetensors"
    save_file(open_clip.CLIP(**tiny()["model_cfg"]).state_dict(), path)
    assert kinds(FrozenCLIP.load("ViT-B-16", str(path))) == {"GELU"}
    config = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [.5] * 3, "std": [.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    configured = FrozenCLIP.load("ViT-B-16", str(path))
    assert kinds(configured) == {"QuickGELU"} and configured.mean.flatten().tolist() == [.5] * 3
    assert configured.identity["weights"] == path.name
    (tmp_path / "open_clip_config.json").write_text("{half")
    with pytest.raises(BackboneError, match="not an open_clip configuration"):
        FrozenCLIP.load("ViT-B-16", str(path))


# ---- weights ------------------------------------------------------------------------------------------
def written(tmp_path, suffix, seed=5, wrap=lambda s: s):
    path, state = tmp_path / f"weights{suffix}", build_clip(mini_config()["model_cfg"], seed).state_dict()
    if suffix == ".safetensors": save_file(state, path)
    else: torch.save(wrap(state), path)
    return path

@pytest.mark.parametrize(
    "suffix, wrap",
    [
        (".safetensors", None),
        (".pt", lambda s: s),
        (".pt", lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}, "epoch": 3}),
    ],
    ids=["safetensors", "plain", "training checkpoint"],
)
def test_a_local_file(tmp_path, suffix, wrap):
    loaded = FrozenCLIP.load("mini", str(written(tmp_path, suffix, wrap=wrap)), "cpu")
    want, other = (FrozenCLIP.from_config(mini_config(), seed) for seed in (5, 6))
    assert loaded.identity["sha256"] == want.identity["sha256"] != other.identity["sha256"]
    assert torch.equal(loaded.frames(PICTURES[:1]), want.frames(PICTURES[:1]))
    assert loaded.identity["weights"] == f"weights{suffix}"


class Bomb:
    def __reduce__(self): return builtins.exec, ("import builtins; builtins.went_off = True",)

@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_run_no_code(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Bomb()}, path)
    with pytest.raises(BackboneError, match="evil.pt"): FrozenCLIP.load("mini", str(path))
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BackboneError, match="evil.pt"): FrozenCLIP.load("mini", str(path))
    assert not hasattr(builtins, "went_off")
    pickle.loads(pickle.dumps(Bomb()))
    assert builtins.went_off
    del builtins.went_off  # the bomb itself is a real one


def test_weights_cut_short_or_of_another_model(tmp_path):
    for suffix in (".safetensors", ".pt"):
        path = written(tmp_path, suffix)
        data = path.read_bytes()
        for rest in (data[:len(data) // 2], b"", b"no weights at all"):
            path.write_bytes(rest)
            with pytest.raises(BackboneError, match=f"weights{suffix}.*not a readable file of tensors"):
                FrozenCLIP.load("mini", str(path))
    path = tmp_path / "other.pt"
    torch.save(open_clip.CLIP(**tiny()["model_cfg"]).state_dict(), path)
    with pytest.raises(BackboneError, match="should be .* found .* another model"):
        FrozenCLIP.load("mini", str(path))
    torch.save([1, 2], path)
    with pytest.raises(BackboneError, match="other.pt"): FrozenCLIP.load("mini", str(path))
    with pytest.raises(BackboneError, match="no such file"):
        FrozenCLIP.load("mini", str(tmp_path / "nowhere.pt"))


def test_no_weights_reachable_names_both_ways_out(monkeypatch):
    def offline(*a, **k): raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(BackboneError) as caught: FrozenCLIP.load("ViT-B-16", "openai")
    expected = "local file", "network", "mini", "ViT-B-16", "openai"
    assert all(words in str(caught.value) for words in expected)


def test_no_weights_named_says_the_same():
    with pytest.raises(BackboneError) as caught: FrozenCLIP.load("ViT-B-16")
    expected = "no weights named", "openai", "local file", "network", "mini"
    assert all(words in str(caught.value) for words in expected)


def test_the_packages_own_weights(monkeypatch, tmp_path):
    "'mini' is what the package carries, agrees with open_clip on it, and says what to do when it is gone."
    mini = FrozenCLIP.load(device="cpu")
    with torch.no_grad(): own = mini.model.encode_image(ready(mini, PICTURES))
    assert torch.allclose(mini.frames(PICTURES), own, atol=1e-4)
    assert mini.identity["name"] == "mini" and all(p.dtype == torch.float32 for p in mini.model.parameters())
    untrained = FrozenCLIP.from_config(mini_config())
    assert mini.identity["sha256"] != untrained.identity["sha256"]
    shutil.copy(asset("mini_clip", "open_clip_config.json"), tmp_path)
    monkeypatch.setattr(module, "asset", lambda folder, name: tmp_path / name)
    missing = "open_clip_model.safetensors are missing.*nbs/pretrain_mini_clip.ipynb"
    with pytest.raises(BackboneError, match=missing): FrozenCLIP.load()
    whole = asset("mini_clip", "open_clip_model.safetensors").read_bytes()
    (tmp_path/"sha256.txt").write_bytes(asset("mini_clip", "sha256.txt").read_bytes())
    (tmp_path/"open_clip_model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))     # one bit
    with pytest.raises(BackboneError, match="its checksum begins with .*damaged or replaced: reinstall"):
        FrozenCLIP.load()


def test_a_local_file_is_not_called_random(monkeypatch, tmp_path, caplog):
    "open_clip logs 'Model initialized randomly' before we fill it; its other warnings still come through."
    def create(name, pretrained=None, force_quick_gelu=False, **more):
        logging.warning("No pretrained weights loaded for model. Model initialized randomly.")
        logging.warning("something else")
        return open_clip.CLIP(**tiny()["model_cfg"])

    monkeypatch.setattr(open_clip, "create_model", create)
    preprocess = mini_config()["preprocess_cfg"]
    monkeypatch.setattr(open_clip, "get_model_preprocess_cfg", lambda model: dict(preprocess))
    path = tmp_path / "w.safetensors"
    save_file(open_clip.CLIP(**tiny()["model_cfg"]).state_dict(), path)
    FrozenCLIP.load("ViT-B-16", str(path))
    assert [r.getMessage() for r in caplog.records] == ["something else"]
    caplog.clear()
    logging.warning("Model initialized randomly")
    assert len(caplog.records) == 1  # the filter is gone again


@pytest.mark.parametrize(
    "name, weights, says",
    [
        ("ViT-B-61", "openai", "did you mean ViT-B-16"),
        ("ViT-B-16", None, "no weights named"),
        ("ViT-B-16", "opanai", "neither a tag .* nor a file"),
    ],
)
def test_names_that_do_not_exist(name, weights, says):
    with pytest.raises(BackboneError, match=says): FrozenCLIP.load(name, weights)
    with pytest.raises(BackboneError, match=says): Backbone(name, weights or "")


# ---- options ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values, says",
    [
        ({"weights": "openai"}, "weights='openai': the mini CLIP brings its own"),
        ({"device": "tpu"}, "device='tpu': choose auto, cpu, cuda or cuda:1"),
        ({"device": "cuda:"}, "device='cuda:': choose auto"),
        ({"device": "cuda:99"}, "device='cuda:99': this machine has .* CUDA device"),
        ({"device": 0}, "device=0: expected a text, found int"),
        ({"bakcbone": "mini"}, "did you mean backbone"),
    ],
)
def test_options_that_cannot_be(values, says):
    with pytest.raises(BackboneError, match=says): Backbone(**values)

def test_options_load_nothing_until_asked(monkeypatch):
    monkeypatch.setattr(FrozenCLIP, "load", classmethod(lambda cls, *asked: asked))
    assert load_backbone(Backbone("ViT-B-16", "openai", "cpu")) == ("ViT-B-16", "openai", "cpu", "auto")
    assert load_backbone(Backbone(precision="fp32")) == ("mini", None, "auto", "fp32")

def test_every_process_has_its_own_gpu(monkeypatch):
    "On a machine with two: by the number that the launcher gives to each process of a machine."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("LOCAL_RANK", "MPI_LOCALRANKID"):
        for rank, device in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
            with monkeypatch.context() as patch:
                patch.setenv(name, rank)
                assert pick_device() == pick_device("cuda") == device
                assert (pick_device("cpu"), pick_device("cuda:1")) == ("cpu", "cuda:1")
    with pytest.raises(BackboneError, match="has 2 CUDA devices; use auto or cpu"): pick_device("cuda:2")

def test_no_gpu_is_no_fault_of_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == "cpu"
    with pytest.raises(BackboneError, match="has no CUDA device; use auto or cpu"): pick_device("cuda")


# ---- what must not change -----------------------------------------------------------------------------
def test_the_global_seed_is_untouched():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    FrozenCLIP.from_config(tiny(), 1)
    assert torch.equal(torch.rand(2), want)

def test_the_vocabulary_is_open_clips_first_merges():
    "Every word the small vocabulary knows whole is one that open_clip's knows whole."
    small, full = module.mini_tokenizer(), open_clip.SimpleTokenizer()
    assert len(small.encoder) == mini_config()["model_cfg"]["text_cfg"]["vocab_size"]
    assert set(small.encoder) <= set(full.encoder)
    for text in ("people fighting", "a road accident", "Ünïcode, and 7!"):
        ids = [i for i in small([text])[0].tolist() if i]
        assert small.decode(ids[1:-1]).strip() == text.lower().replace(",", " ,").replace("!", " !")
