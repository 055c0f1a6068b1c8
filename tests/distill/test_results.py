"""Records go to plain data and come back; results.json is read strictly."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.results.figures import Deployed, Latency, ModelResult
from distill.results.networks import NETWORKS, network_of
from distill.results.records import RecordError, from_plain
from distill.results.results import Results
from distill.results.steps import Accept, Cut, DataFacts, Group, Search, Tuning


def model(map50_95: float | None, name: str) -> ModelResult:
    return ModelResult(
        map50_95, map50_95, {"a": 0.5}, None, None, None, 1000, 2.0, 1.5, Latency(3.0, 2.5, 3.5, 50), f"{name}.pt"
    )


RESULTS = Results(
    format=2,
    recipe={"name": "r", "distill": {"labels": 1.0}},
    recipe_name="r",
    model="best.pt",
    imgsz=320,
    seed=0,
    data=DataFacts("data.yaml", 10, 5, ("a", "b"), True),
    agreement=None,
    device="CPU",
    versions={"torch": "2"},
    models={"teacher": model(0.6, "teacher"), "student": model(0.5, "student")},
    chosen="student",
    student_is="trained",
    native=None,
    accept=Accept(0.005),
    accepted=False,
    trained=None,
    average=None,
    schedule=None,
    history=({"epoch": 1, "map50_95": 0.5},),
    epoch_seconds=(1.0,),
    plan=Cut(2e9, 1e9, 2000, 1000, 1e-12, (Group("model.0", 16, 8),)),
    repair=None,
    tuning=Tuning(True, {"score_bce": 2.0}, 1e-3, Search(1.0, 1.05, ((1e-3, 1.0), (1e-2, None)))),
    exports=(),
    warnings=("w",),
    seconds={"teacher": 1.5},
)


def test_results_survive_json() -> None:
    assert Results.from_dict(json.loads(json.dumps(RESULTS.to_dict()))) == RESULTS


def test_results_print_as_a_table_and_as_rows() -> None:
    lines = str(RESULTS).splitlines()
    assert lines[0].split() == ["teacher", "student"]
    assert lines[1].split() == ["mAP50-95", "0.600", "0.500"]
    assert not any("agreement" in line for line in lines)
    assert [row["network"] for row in RESULTS.rows()] == ["teacher", "student"]
    assert RESULTS.rows()[1]["latency_median_ms"] == 3.0


def test_latency_of_the_exports_comes_first() -> None:
    def timed(network: ModelResult, median: float) -> ModelResult:
        return replace(
            network, deployed=(Deployed("ONNX Runtime", "CPU, 2 threads", 2, Latency(median, 1.0, 9.0, 50)),)
        )

    models = {name: timed(network, 2.0) for name, network in RESULTS.models.items()}
    results = replace(RESULTS, models=models)
    assert Results.from_dict(json.loads(json.dumps(results.to_dict()))) == results
    assert list(results.student.latencies) == ["ONNX Runtime", "PyTorch"]
    assert results.rows()[1]["onnx_runtime_median_ms"] == 2.0 and results.rows()[1]["latency_median_ms"] == 3.0
    lines = [" ".join(line.split()) for line in str(results).splitlines()]
    assert lines[-3:-1] == ["latency, ONNX Runtime (ms) 2.000 2.000", "latency, PyTorch (ms) 3.000 3.000"]


def test_results_of_before_the_exports_were_timed_are_read() -> None:
    data = json.loads(json.dumps(RESULTS.to_dict()))
    for network in data["models"].values():
        del network["deployed"]
    assert Results.from_dict(data) == RESULTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=1), "layout 1 of another version"),
        (lambda data: data.pop("format"), "layout None of another version"),
        (lambda data: data.pop("models"), "is it the results.json of a run"),
        (lambda data: data["models"]["student"].pop("params"), r"models\.student: no 'params'"),
        (lambda data: data["models"]["student"].update(params="many"), r"models\.student\.params: expected int"),
        (lambda data: data["plan"].update(groups=3), r"plan\.groups: expected"),
    ],
)
def test_what_is_no_results_json_is_one_line(change, message: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(RESULTS.to_dict()))
    change(data)
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(DistillError, match=message) as error:
        Results.read(tmp_path)
    assert "\n" not in str(error.value)


def test_there_must_be_a_file_of_json(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="not there"):
        Results.read(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DistillError, match="no JSON"):
        Results.read(tmp_path)


def test_a_record_knows_its_types() -> None:
    assert from_plain(Latency, {"median": 1, "p10": 1.0, "p90": 2.0, "runs": 3, "more": 0}) == Latency(1.0, 1.0, 2.0, 3)
    with pytest.raises(RecordError, match="runs: expected int, got True"):
        from_plain(Latency, {**asdict(Latency(1.0, 1.0, 2.0, 3)), "runs": True})
    assert from_plain(Tuning, asdict(replace(RESULTS.tuning, search=None))).search is None


def test_networks_are_told_apart_by_name_and_file() -> None:
    assert len({network.name for network in NETWORKS}) == len(NETWORKS)
    assert all(network_of(network.name) is network and network.file == f"{network.name}.pt" for network in NETWORKS)
    with pytest.raises(KeyError):
        network_of("nobody")
