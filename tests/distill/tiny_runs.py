"""What tests of several runs have in common: a recipe of a tiny network on a few images, and the folder that it names."""

from __future__ import annotations

from pathlib import Path

from distill.yolo.checkpoint import detector as checkpoint
from tests.distill.yolo.test_trainer import tiny, write_images

HEAD = """
model: {root}/best.pt
data: {root}/data/data.yaml
imgsz: 64
batch: 4
device: cpu
prune: {flops: 0.7, images: 4, round_to: 1}
repair: {images: 4, steps: 0}
"""
UNTRAINED = HEAD + "distill: {epochs: 0}\nexport: []\nlatency: {runs: 1}\n"


def untrained_folder(root: Path) -> Path:
    """A folder with the recipe `UNTRAINED` as tiny.yaml, its images, and a network that was not trained. Returns it."""
    write_images(root / "data")
    checkpoint.save(tiny(), root / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    (root / "tiny.yaml").write_text(UNTRAINED.replace("{root}", str(root)))
    return root
