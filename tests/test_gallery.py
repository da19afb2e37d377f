"What pre-training is told and shown: captions that are no queries, real pictures as they are listed."
import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stprompt.captions import bare, queries, write_real
from stprompt.clip import build_clip, mini_config, mini_tokenizer
from stprompt.encoders import encode_captions
from stprompt.gallery import COLUMNS, Gallery, GalleryError, open_gallery, read_gallery, soft_targets
from stprompt.miniclip import BatchPlan, make_batch
from stprompt.ministreet import ANOMALIES, Draw

REAL = Path(__file__).resolve().parents[2]/"shared"/"data"/"real_pictures"


def picture(seed: int = 0) -> bytes:
    image = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def written(folder: Path, rows: list[dict]) -> Path:
    with open(folder/"list.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return folder


def row(name: str, **more) -> dict:
    known = {"source": "mine", "label": "cat", "caption": "a photo of a cat", "split": "train"}
    return {"file": name} | known | more


def test_no_caption_of_many_batches_is_a_query(tmp_path):
    (tmp_path/"a.jpg").write_bytes(picture())
    rows = [row("a.jpg", label=label, caption=caption) for label, caption in (
        ("person standing", "a person standing"), ("fire", "a fire burning"), ("cat", "a photo of a cat"))]
    gallery = open_gallery(written(tmp_path, rows))
    few = BatchPlan(((2, 40), (5, 20)), 8, 8, 12, 8, 24, ((5, 8),), 4)
    captions = [one for step in range(12) for one in make_batch(7, step, gallery, few)["captions"]]
    asked = queries() | {bare(text) for text in ANOMALIES.values()}
    assert len(captions) > 1200 and not [one for one in captions if bare(one) in asked]


@pytest.mark.skipif(not REAL.is_dir(), reason="real pictures are not here (../shared/data)")
def test_no_caption_of_the_real_pictures_is_a_query():
    draw, pictures = Draw("captions"), read_gallery(REAL)
    said = {write_real(draw, one.label, one.caption) for one in pictures for _ in range(4)}
    assert len(pictures) > 10_000 and not [one for one in said if bare(one) in queries()]


@pytest.mark.parametrize("change, words", [
    (lambda folder: (folder/"b.jpg").unlink(), r"1 of 2 listed pictures cannot be read, first b.jpg \(No"),
    (lambda folder: (folder/"b.jpg").write_bytes(b"GIF89a"), r"first b.jpg \(no picture\); mend them or"),
    (lambda folder: (folder/"b.jpg").write_bytes(b""), r"first b.jpg \(no picture\)"),
    (lambda folder: written(folder, [row("a.jpg"), row("../b.jpg")]), r"first ../b.jpg lies outside"),
    (lambda folder: (folder/"list.csv").write_text("file,label\na.jpg,cat\n"), "source is missing"),
    (lambda folder: (folder/"list.csv").unlink(), "there is no such list; name a folder with list.csv"),
    (lambda folder: written(folder, [row("a.jpg", split="test")]), "no picture of split 'train'"),
])
def test_a_wrong_list_is_one_sentence_before_any_training(tmp_path, change, words):
    for name in "ab": (tmp_path/f"{name}.jpg").write_bytes(picture())
    change(written(tmp_path, [row("a.jpg"), row("b.jpg")]))
    with pytest.raises(GalleryError, match=words): open_gallery(tmp_path)


def test_without_pictures_there_is_a_gallery_of_none_and_a_teacher_has_to_be_there(tmp_path):
    assert open_gallery("") == Gallery()
    (tmp_path/"a.jpg").write_bytes(picture())
    pictures = read_gallery(written(tmp_path, [row("a.jpg")]))
    with pytest.raises(GalleryError, match="teacher"): soft_targets(pictures, tmp_path/"none.tflite")


def test_words_that_no_caption_had_are_bytes_to_the_tokenizer_and_no_error():
    config = mini_config()["model_cfg"]
    config["text_cfg"] |= {"layers": 1, "width": 32, "heads": 1}
    config["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 32}
    tokens = mini_tokenizer()(["eine Straße bei Nacht", "漢字 \U0001f525", "a picture of a zyzzyva", ""])
    with torch.no_grad(): features = encode_captions(build_clip(config).eval(), tokens)
    assert torch.isfinite(features).all() and len(features.unique(dim=0)) == 4
