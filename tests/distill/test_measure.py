"""What a network costs, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distill.machine.measure import count_gflops, count_params, file_size_mb, measure_latency


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 5),
    )


class Recorder(nn.Module):
    """Notes its name at every forward pass."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls.append(self.name)
        return image * self.weight

    def __deepcopy__(self, memo: dict) -> Recorder:
        return Recorder(self.name, self.calls)


def test_parameters_by_hand() -> None:
    assert count_params(small_network()) == 3 * 8 * 9 + 2 * 8 + (8 * 9 + 8) + (512 * 5 + 5)


def test_frozen_parameters_count() -> None:
    model = small_network()
    total = count_params(model)
    model.requires_grad_(False)
    assert count_params(model) == total


def test_gflops_are_two_per_multiply_add() -> None:
    convolution = 3 * 8 * 9 * 16 * 16
    depthwise = 8 * 9 * 8 * 8
    linear = 512 * 5
    assert count_gflops(small_network(), 16) * 1e9 == pytest.approx(2 * (convolution + depthwise + linear))


def test_counting_leaves_the_model_alone() -> None:
    model = small_network().train()
    model[1].eval()  # a BatchNorm somebody froze
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_gflops(model, 16)
    assert model.training and not model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_latency_takes_turns_and_drops_the_warmup() -> None:
    calls: list[str] = []
    models = {"a": Recorder("a", calls), "b": Recorder("b", calls)}
    measured = measure_latency(models, 8, runs=4, warmup=2)
    assert "".join(calls) == "aaaabbbb" + "abba" + "abbaabba"  # two memory formats, warm-up, timed
    assert set(measured) == {"a", "b"}
    for median, p10, p90 in measured.values():
        assert 0 < p10 <= median <= p90


def test_latency_leaves_the_model_alone() -> None:
    model = small_network().train()
    measure_latency({"only": model}, 16, runs=1, warmup=0)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_latency_reports_progress_over_every_round() -> None:
    seen: list[tuple[str, int, str]] = []

    def progress(iterable, label, total, unit):
        seen.append((label, total, unit))
        return iterable

    measure_latency({"only": nn.Conv2d(3, 1, 1)}, 8, runs=3, warmup=2, progress=progress)
    assert seen == [("latency", 5, "rounds")]


def test_file_size_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 1_500_000)
    (tmp_path / "inner" / "b").write_bytes(b"x" * 500_000)
    assert file_size_mb(tmp_path / "a") == 1.5
    assert file_size_mb(tmp_path) == 2.0
    with pytest.raises(FileNotFoundError, match="missing"):
        file_size_mb(tmp_path / "missing")


def test_gflops_agree_with_ultralytics(shared: Path) -> None:
    # 7.1 is what `yolo` prints for this checkpoint, fused, at 640 pixels.
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO(shared / "weights" / "bccd-yolov5nu-320.pt").model
    assert round(count_gflops(model, 640), 1) == 7.1
    assert count_gflops(model, 320) == pytest.approx(count_gflops(model.fuse(verbose=False), 640) / 4, rel=1e-6)
