"MiniStreet: the truth is the same everywhere, splits share nothing, a damaged folder mends itself."
import numpy as np
import pytest

from stprompt import ministreet as module
from stprompt.datasets import DatasetError
from stprompt.metrics import runs
from stprompt.ministreet import (
    ANOMALIES,
    LOOKALIKES,
    NORMAL,
    SIZES,
    checksums,
    digest,
    frames,
    indices,
    make_id,
    make_plan,
    ministreet,
    truth_arrays,
    truth_masks,
    truth_sha256,
)
from stprompt.video import read_all


@pytest.fixture(scope="module")
def bench():
    return ministreet(size="small", progress=False)


def test_the_published_truth_is_made_again(bench):
    assert bench.sha256 == checksums()["small"]
    drawn = {make_id(s, i): digest(truth_arrays(make_plan(s, i, "small"))) for s, i, _ in indices("small")}
    assert truth_sha256(drawn) == checksums()["small"]
    some = next(iter(drawn))
    drawn[some] = "0" * 64
    assert truth_sha256(drawn) != checksums()["small"]


def test_full_is_as_large_as_promised():
    n = SIZES["full"]
    assert n["train"] >= 160 and n["test"] >= 80 and len(ANOMALIES) >= 6 and len(LOOKALIKES) >= 4
    plan = make_plan("test", 1, "full")
    assert 100 <= plan.n_frames <= 500 and .10 <= (plan.stop - plan.start) / plan.n_frames <= .40


def test_scenes_and_videos_are_not_shared(bench):
    scenes = {split: {make_plan(s, i, "small").scene for s, i, name in indices("small") if name == split}
              for split in ("train", "validation", "test")}
    assert not scenes["train"] & scenes["test"] and not scenes["validation"] & scenes["test"]
    ids = [i.id for i in bench.items()]
    assert len(ids) == len(set(ids)) == sum(SIZES["small"][k] for k in ("train", "validation", "test"))
    assert sum(i.is_abnormal for i in bench.test) == len(bench.test) // 2


def test_truth_is_one_interval_and_agrees_with_the_pixels(bench):
    item = next(i for i in bench.test if i.is_abnormal)
    truth = bench.ground_truth(item.id)
    (start, stop), = runs(truth.mask)
    plan = make_plan("test", int(item.id[-3:]), "small")
    assert (start, stop) == (plan.start, plan.stop) and truth.size == (240, 320)
    for frame, mask in zip(range(start, stop), truth_masks(plan)):
        if frame % 7: continue
        assert (truth.pixel_masks(frame) == mask).all()
        x1, y1, x2, y2 = truth.boxes[frame][0].astype(int)
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()
        assert .015 <= (x2 - x1) * (y2 - y1) / 76800 <= .45
    assert not truth.pixel_masks(0).any() or start == 0
    normal = next(i for i in bench.test if not i.is_abnormal)
    assert not bench.ground_truth(normal.id).mask.any() and not bench.ground_truth(normal.id).boxes


def test_a_video_decodes_to_what_was_drawn(bench):
    item = bench.test[1]
    plan = make_plan("test", 1, "small")
    images = read_all(item.source).images
    assert images.shape == (plan.n_frames, 240, 320, 3)
    middle = plan.n_frames // 2
    (drawn, _), = frames(plan, [middle])
    decoded = images[middle].astype(int)
    assert np.abs(decoded - drawn).mean() < 12 < np.abs(decoded - 255 + drawn).mean()


def test_an_interrupted_rendering_resumes_and_a_damaged_truth_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "indices", lambda size: [("test", 0, "test")])
    video, truth = module.files_of(tmp_path, make_id("test", 0))
    module.render_all(tmp_path, "small", progress=False)
    first, written = module.digests(tmp_path, "small"), video.stat().st_mtime_ns
    module.render_all(tmp_path, "small", progress=False)
    assert video.stat().st_mtime_ns == written  # what is there is not made again
    truth.unlink()  # as if it had been stopped before the truth was written
    module.render_all(tmp_path, "small", progress=False)
    assert module.digests(tmp_path, "small") == first
    truth.write_bytes(truth.read_bytes()[:100])
    with pytest.raises(DatasetError, match=f"{truth.name}.*delete it"): module.digests(tmp_path, "small")


def test_unknown_size_is_named():
    with pytest.raises(DatasetError, match="huge.*small, full"): ministreet(size="huge")


def test_plans_differ_and_repeat():
    plan = make_plan("train", 3, "small")
    assert make_plan("train", 3, "small") == plan != make_plan("train", 15, "small")
    assert make_plan("train", 2).label == NORMAL
