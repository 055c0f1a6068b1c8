"""The report says what results.json says: honestly, completely, and with whatever happens to be missing."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import jinja2
import pytest
import yaml

from distill import report
from distill.errors import DistillError
from distill.machine.words import duration
from distill.report import advice, details, facts, pictures, training
from distill.report.format import percent, signed, speed
from distill.report.render import report_files
from distill.results.results import Results
from distill.yolo.families.yolov5.family import ANCHOR

VOID = {"meta", "br", "hr", "img", "link", "input"}


def stage(mean_ap: float | None, per_class: dict | None, gflops: float, params: int, latency: float) -> dict[str, Any]:
    return {
        "map50_95": mean_ap,
        "map50": None if mean_ap is None else mean_ap + 0.2,
        "per_class": per_class,
        "agreement50_95": None,
        "agreement50": None,
        "agreement_per_class": None,
        "params": params,
        "gflops": gflops,
        "size_mb": params * 2 / 1e6,
        "latency_ms": {"median": latency, "p10": latency * 0.9, "p90": latency * 1.2, "runs": 50},
        "file": "student.pt",
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return example()


def example() -> dict[str, Any]:
    """What a small run with labels has measured."""
    return {
        "format": 2,
        "recipe": {
            "model": "best.pt",
            "sparsify": None,
            "prune": {"flops": 0.5},
            "repair": {"images": 256},
            "distill": {"epochs": 2, "losses": {"box_iou": 1.0}, "labels": 1.0},
        },
        "recipe_name": "half",
        "model": "best.pt",
        "imgsz": 320,
        "seed": 0,
        "data": {"path": "data.yaml", "train_images": 20, "val_images": 8, "classes": ["cat", "dog"], "labelled": True},
        "device": "a CPU, 2 threads",
        "versions": {"distill": "0.1.0", "torch": "2.9"},
        "models": {
            "teacher": stage(0.631, {"cat": 0.7, "dog": 0.562}, 1.77, 2_500_000, 17.0),
            "pruned": stage(0.04, {"cat": 0.05, "dog": 0.03}, 0.88, 1_000_000, 10.0),
            "repaired": stage(0.615, {"cat": 0.69, "dog": 0.54}, 0.88, 1_000_000, 10.0),
            "student": stage(0.624, {"cat": 0.699, "dog": 0.549}, 0.88, 1_000_000, 10.0),
        },
        "agreement": None,
        "chosen": "student",
        "student_is": "trained",
        "native": None,
        "accept": {"map_drop": 0.005},
        "accepted": False,
        "trained": None,
        "average": None,
        "epoch_seconds": [100.0, 100.0],
        "tuning": None,
        "schedule": {"epochs": 2, "lr": 0.0003},
        "warnings": ["the budget was missed by 2%"],
        "seconds": {"score": 30.1, "train": 200.0},
        "plan": {
            "flops_before": 1.77e9,
            "flops_after": 0.88e9,
            "params_before": 2_500_000,
            "params_after": 1_000_000,
            "verify": 1e-14,
            "groups": [{"name": f"model.{i}.conv", "before": 32, "after": 16 + 8 * (i % 3)} for i in range(4)],
        },
        "repair": {
            "images": 96,
            "blocks": [],
            "layers": [
                {"name": f"model.{i}.conv", "error_before": 0.4, "error_after": 0.1, "changed": i > 0} for i in range(4)
            ],
        },
        "history": [
            {"epoch": 1, "map50_95": 0.61, "lr": 3e-4, "score_bce": 2.0},
            {"epoch": 2, "map50_95": 0.624, "lr": 1e-4, "score_bce": 1.0},
        ],
        "exports": [{"format": "onnx", "file": "exports/student.onnx", "size_mb": 4.0, "max_abs_diff": 2e-6}],
    }


def write(folder: Path, results: dict[str, Any]) -> tuple[str, str]:
    """The Markdown and the HTML that a run with these results gets."""
    (folder / "results.json").write_text(json.dumps(results))
    report.write(folder)
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def render(results: dict[str, Any]) -> tuple[str, str]:
    """The same without plots and without files."""
    run = typed(results)
    texts = report_files(
        "report",
        {},
        results=run,
        facts=facts,
        details=details,
        training=training,
        pictures=pictures,
        advice=advice.advice(run, Path("run")),
        run_dir=Path("run"),
    )
    return texts["report.md"].decode(), texts["report.html"].decode()


def typed(results: dict[str, Any]) -> Results:
    """As they are read from the file."""
    return Results.from_dict(json.loads(json.dumps(results)))


def verdict(results: dict[str, Any]) -> str:
    return facts.verdict(typed(results))


def comparison(results: dict[str, Any]) -> facts.Table:
    return facts.comparison(typed(results))


def findings(results: dict[str, Any]) -> list[str]:
    return facts.findings(typed(results))


def screen(results: dict[str, Any], folder: Path | None = None) -> str:
    return report.summary_table(typed(results), folder)


def unescaped(markdown: str) -> str:
    return re.sub(r"\\([*_\[\]|#`~])", r"\1", markdown)


class Page(HTMLParser):
    """What a browser would see: open tags, ids, text, where it links to, and everything the page would load."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                (self.links if tag == "a" else self.loads).append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_verdict_is_honest_about_a_result_that_lost_too_much(results: dict[str, Any]) -> None:
    assert verdict(results) == (
        "Half the FLOPs, 1.7× faster, mAP50-95 0.631 → 0.624 (−0.007): not accepted (limit −0.005)"
    )
    results["accepted"] = True
    assert verdict(results).endswith("(−0.007): accepted (limit −0.005)")


def test_verdict_says_slower_when_it_is_slower(results: dict[str, Any]) -> None:
    results["models"]["student"]["latency_ms"]["median"] = 34.0
    results["models"]["student"]["gflops"] = 1.5
    assert verdict(results).startswith("85% of the FLOPs, 2.0× slower, ")


def test_verdict_without_labels_judges_nothing(results: dict[str, Any]) -> None:
    results["data"]["labelled"], results["accepted"] = False, None
    for model in results["models"].values():
        model["map50_95"] = model["map50"] = model["per_class"] = None
    assert verdict(results) == "Half the FLOPs, 1.7× faster: not judged, there are no labels to measure mAP with"


def test_the_result_is_what_was_chosen(results: dict[str, Any]) -> None:
    results["chosen"] = "repaired"
    results["models"]["student"]["map50_95"] = 0.6
    assert "0.631 → 0.615 (−0.016)" in verdict(results)
    table = comparison(results)
    assert table.strong == "repaired" and table.rows[0][-1] == "−0.016"


@pytest.mark.parametrize(
    ("student", "says"), [(0.65, "was not trained to its end"), (0.632, "no more than two runs of one recipe differ")]
)
def test_a_student_that_beats_its_teacher_is_reported(results: dict[str, Any], student: float, says: str) -> None:
    assert not any("beats its teacher" in finding for finding in findings(results))
    results["models"]["student"]["map50_95"] = student
    assert any("beats its teacher" in finding and says in finding for finding in findings(results))


def test_every_network_is_called_what_it_is(tmp_path: Path, results: dict[str, Any]) -> None:
    results["recipe"] |= {"distill": {"epochs": 2, "losses": {}, "labels": 1.0}, "sparsify": {"epochs": 5}}
    results |= {"model": None, "student_is": "repaired"}
    markdown = unescaped(write(tmp_path, results)[0])
    assert "Teacher: trained by this run. Pruned: its channels cut, after sparsity training." in markdown
    assert "Student: the repaired network, for training on the labels alone ended below it." in markdown
    results["recipe"] |= {"distill": {"epochs": 2, "losses": {"box_iou": 1.0}, "labels": 0.0}, "prune": None}
    results |= {"model": "best.pt", "student_is": "trained"}
    markdown = unescaped(write(tmp_path, results)[0])
    assert "Teacher: the network that was given. Pruned: the same network, for nothing was to be cut." in markdown
    assert "Student: trained against the teacher." in markdown


def test_a_rate_that_did_not_get_back_is_not_praised(tmp_path: Path, results: dict[str, Any]) -> None:
    for loss, says in (
        (0.99, "of all trials:"),
        (1.06, "of all trials, none of which came back to the loss it began with:"),
        (None, "Training diverged in every short trial"),
    ):
        search = {"start": 1.0, "limit": 1.05, "tried": [[1e-2, None], [1e-4, loss]]}
        results["tuning"] = {"freeze_bn": False, "factors": {}, "lr": 1e-4, "search": search}
        assert says in " ".join(write(tmp_path, results)[0].split())


@pytest.mark.parametrize("taken", [True, False])
def test_a_mean_of_weights_is_called_one_where_it_is_the_student(
    tmp_path: Path, results: dict[str, Any], taken: bool
) -> None:
    results["average"] = {"judged_by": "mAP50-95", "trained": 0.612, "averaged": 0.624, "map50": 0.8, "taken": taken}
    markdown = unescaped(write(tmp_path, results)[0])
    mean = "Student: the mean of the weights before and after training"
    trained = "Student: trained against the teacher and on the labels."
    assert (mean in markdown, trained in markdown) == (taken, not taken)
    assert "mAP50-95 0.624, against 0.612 after training" in markdown
    assert ("It is not the student" in markdown) == (not taken)


def test_comparison_has_a_row_for_each_quantity_and_a_column_for_each_stage(results: dict[str, Any]) -> None:
    table = comparison(results)
    assert table.columns == ("", "teacher", "pruned", "repaired", "student", "change")
    assert [row[0] for row in table.rows] == [
        "mAP50-95",
        "mAP50",
        "params (M)",
        "GFLOPs at 320 px",
        "latency, PyTorch (ms)",
        "size (MB)",
    ]
    changes = {row[0]: row[-1] for row in table.rows}
    assert changes["params (M)"] == "−60%" and changes["latency, PyTorch (ms)"] == "1.7× faster"
    assert dict(zip(table.columns, table.rows[4], strict=True))["teacher"] == "17.0 [15.3–20.4]"


def test_what_is_deployed_is_timed_first_and_named_in_the_verdict(results: dict[str, Any]) -> None:
    for name, median in {"teacher": 20.0, "pruned": 8.0, "repaired": 8.0, "student": 8.0}.items():
        latency = {"median": median, "p10": median - 1, "p90": median + 1, "runs": 50}
        deployed = {"runtime": "ONNX Runtime", "device": "a CPU, 2 threads", "threads": 2, "latency_ms": latency}
        results["models"][name]["deployed"] = [deployed]
    assert verdict(results).startswith("Half the FLOPs, 2.5× faster in ONNX Runtime, mAP50-95 0.631 → 0.624")
    rows = comparison(results).rows
    assert [row[0] for row in rows[-3:]] == ["latency, ONNX Runtime (ms)", "latency, PyTorch (ms)", "size (MB)"]
    assert rows[-3][1:] == ("20.0 [19.0–21.0]", *["8.00 [7.00–9.00]"] * 3, "2.5× faster")
    note = facts.latency_note(Results.from_dict(results))
    assert "at batch 1 on a CPU, 2 threads, taking turns" in note
    results["device"] = "a GPU"
    note = facts.latency_note(Results.from_dict(results))
    assert "in ONNX Runtime on a CPU, 2 threads and in PyTorch on a GPU, taking turns" in note
    last_screen = report.summary_table(Results.from_dict(results))
    assert max(map(len, last_screen.splitlines()[: len(rows) + 1])) <= 80


@pytest.fixture
def unlabelled(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a run on images alone."""
    results["data"]["labelled"], results["accepted"], results["history"] = False, None, []
    boxes = {"cat": 41, "dog": 7}
    results["agreement"] = {"images": 8, "held_back": True, "confidence": 0.25, "teacher_boxes": boxes}
    for (name, model), share in zip(results["models"].items(), (1.0, 0.1, 0.85, 0.9), strict=True):
        model.update(map50_95=None, map50=None, per_class=None, agreement50_95=share, agreement50=share)
        model["agreement_per_class"] = {"cat": share, "dog": share if name == "teacher" else share - 0.02}
    return results


def test_agreement_stands_in_for_map(unlabelled: dict[str, Any], tmp_path: Path) -> None:
    table = comparison(unlabelled)
    assert table.rows[0] == ("agreement 50-95", "1.000", "0.100", "0.850", "0.900", "−0.100")
    assert [row[0] for row in table.rows[1:3]] == ["agreement 50", "params (M)"]
    assert verdict(unlabelled) == (
        "Half the FLOPs, 1.7× faster, agreement with the teacher 0.900: not judged, there are no labels to measure mAP with"
    )
    said = screen(unlabelled)
    assert "Agreement: AP against the teacher's own boxes on 8 held-back images." in said
    assert said.isascii() and all(len(line) <= 80 for line in said.partition("\n\n")[0].splitlines()[:-1])
    markdown, html = write(tmp_path, unlabelled)
    for text in (unescaped(markdown), Page(html).text):
        assert "sees 48 boxes with a score of 0.25 or more on 8 held-back images, which nothing was calibrated" in text
        assert "Agreement with the teacher" in text and "mAP50-95" not in text and "None" not in text
    assert "agreement 50-95 over FLOPs: teacher 1.000 at 1.77" in markdown
    assert "## Accuracy" not in markdown and (tmp_path / "plots" / "accuracy.png").is_file()


def test_agreement_of_each_class_stands_beside_its_boxes_the_lowest_first(unlabelled: dict[str, Any]) -> None:
    table = facts.per_class(typed(unlabelled))
    assert table is not None and table.columns == ("class", "teacher boxes", "agreement 50-95")
    assert table.rows == (("dog", "7", "0.880"), ("cat", "41", "0.900"))
    unlabelled["chosen"] = "teacher"
    assert facts.per_class(typed(unlabelled)) is None


def test_agreement_on_images_that_were_learned_from_is_said_to_be(unlabelled: dict[str, Any]) -> None:
    unlabelled["agreement"]["held_back"] = False
    assert "the same that were learned from, which makes it look too good" in facts.agreement_note(typed(unlabelled))
    assert "on 8 images it learned from" in facts.agreement_note(typed(unlabelled), brief=True)


def test_where_there_is_map_agreement_is_not_mentioned(results: dict[str, Any]) -> None:
    table = facts.per_class(typed(results))
    assert not facts.by_agreement(typed(results)) and facts.agreement_note(typed(results)) == ""
    assert table is not None and "agreement" not in " ".join(table.columns)


def test_classes_that_lost_most_come_first(results: dict[str, Any]) -> None:
    table = facts.per_class(typed(results))
    assert table is not None and table.rows == (
        ("dog", "0.562", "0.549", "−0.013"),
        ("cat", "0.700", "0.699", "−0.001"),
    )


def test_numbers_as_a_person_writes_them() -> None:
    assert [signed(x) for x in (0.0071, -0.0071, 0.0001, -0.0001)] == ["+0.007", "−0.007", "0.000", "0.000"]
    assert [percent(2, x) for x in (1, 3, 2)] == ["−50%", "+50%", "0%"]
    assert [speed(10, x) for x in (5, 20, 10.2)] == ["2.0× faster", "2.0× slower", "as fast"]
    assert [duration(x) for x in (4.23, 185, 4320)] == ["4.2 s", "3 min 05 s", "1 h 12 min"]


def test_summary_fits_a_terminal_of_any_encoding(results: dict[str, Any]) -> None:
    text = screen(results, Path("runs/half"))
    assert text.isascii()
    table, _, rest = text.partition("\n\n")
    assert all(len(line) <= 80 for line in table.splitlines()[:-1])
    assert "not accepted (limit -0.005)" in rest and "warning: the budget was missed by 2%" in rest
    assert "Use it:  yolo predict model=runs/half/student.pt source=" in rest


def test_the_last_screen_names_the_report_as_an_address(results: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    write(folder, results)
    (address,) = (line.removeprefix("Report:  ") for line in screen(results, folder).splitlines() if "Report" in line)
    with urlopen(address) as page:
        assert b"<html" in page.read()
    assert "Report:" not in screen(results)


def test_an_original_is_used_with_the_originals_scripts(tmp_path: Path, results: dict[str, Any]) -> None:
    native, folder = ANCHOR.native, Path("runs/my run")
    assert native is not None
    results["native"] = {"file": native.file, "about": native.about, "commands": list(native.commands)}
    model = f"--weights '{folder.absolute()}/student-yolov5.pt'"  # its scripts are run somewhere else
    data = Path(results["data"]["path"]).absolute()
    lines = screen(results, folder).splitlines()
    assert lines[-3:] == [
        f"Use it:  python detect.py {model} --source path/to/images --imgsz 320",
        f"         python val.py {model} --data {data} --imgsz 320",
        f"         python export.py {model} --include onnx --imgsz 320",
    ]
    markdown, html = write(tmp_path, results)
    for text in (unescaped(markdown), Page(html).text):
        assert "student-yolov5.pt has the format of the original YOLOv5, for that project's own scripts:" in text
        assert "yolo predict" not in text and "Needs ultralytics alone" not in text
        assert "distill run finetune" in text  # to go on with, from the other file
    results["data"]["labelled"] = False
    assert "val.py" not in screen(results, folder)
    results["native"] = None
    assert "yolo predict" in screen(results, folder)


def test_everything_is_in_both_reports(tmp_path: Path, results: dict[str, Any]) -> None:
    markdown, html = write(tmp_path, results)
    page = Page(html)
    for said in (
        "not accepted (limit −0.005)",
        "the budget was missed by 2%",
        "0.631",
        "student.pt source=",
        "distill run",
        "exports/student.onnx",
        "3 of 4 layers were mended",
        "49.7% of the FLOPs are left",
        "a CPU, 2 threads",
        "3 min 50 s",
    ):
        assert said in page.text, said
        assert said in unescaped(markdown), said
    figures = {path.name for path in (tmp_path / "plots").iterdir()}
    assert figures == {f"{name}.png" for name in ("accuracy", "training", "classes", "losses", "channels", "repair")}
    assert all(f"](plots/{name})" in markdown for name in figures)
    assert html.count("<svg") == len(figures)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_the_page_is_whole_and_loads_nothing_and_its_plots_follow_the_theme(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    _, html = write(tmp_path, results)
    page = Page(html)
    assert page.open == [] and page.loads == []
    assert "script" not in page.tags and "img" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    svg = html[html.index("<svg") : html.rindex("</svg>")]
    assert "var(--student)" in svg and not re.search("#[0-9a-f]{6}", svg)


def test_one_broken_layer_does_not_hide_the_others(tmp_path: Path, results: dict[str, Any]) -> None:
    results["repair"]["layers"][2]["error_before"] = 80.0
    results["repair"]["layers"][3]["error_before"] = None  # not a number when it was measured
    _, html = write(tmp_path, results)
    assert "mathdefault" not in html and "2 of 3 layers were mended" in html


def test_outside_text_stays_text(tmp_path: Path, results: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script> | $x$ [a](b) `c` *d*"
    results.update(model=evil, device=evil, recipe_name=evil, warnings=[evil])
    results["recipe"]["model"] = evil
    results["data"].update(path=evil, classes=[evil, "dog"])
    results["plan"]["groups"][0]["name"] = results["repair"]["layers"][0]["name"] = evil
    results["exports"][0]["file"] = evil
    for row in results["history"]:
        row[evil] = 1.0
    for model in results["models"].values():
        model["per_class"] = {evil: model["per_class"]["cat"]}
    markdown, html = write(tmp_path, results)
    page = Page(html)
    assert "script" not in page.tags and page.open == []
    assert "<script>alert(1)</script>" in page.text
    prose = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    assert "<script>" not in prose
    for line in prose.splitlines():
        if line.startswith("|") and "alert" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 6)  # the columns of a table, and no more


def test_what_steers_a_terminal_or_a_line_is_shown_and_does_nothing(tmp_path: Path, results: dict[str, Any]) -> None:
    evil = "a\x1b[31mb\x07\u202ec\udc80"
    results.update(model=evil, device=evil, recipe_name=evil, warnings=[evil])
    results["data"].update(path=evil, classes=[evil, "dog"])
    for model in results["models"].values():
        model["per_class"] = {evil: model["per_class"]["cat"]}
    for text in write(tmp_path, results):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
        assert "x1b" in text and "x07" in text and "u202e" in text


def test_names_in_other_scripts_are_drawn_without_a_word(
    tmp_path: Path, results: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    for model in results["models"].values():
        model["per_class"] = {"猫": model["per_class"]["cat"], "\x1b": model["per_class"]["dog"]}
    assert "猫" in write(tmp_path, results)[1]
    assert not recwarn.list


def test_backticks_are_code_in_prose_and_text_in_tables(results: dict[str, Any]) -> None:
    results["warnings"] = ["give `a|b <c>` *now*"]
    for network in results["models"].values():
        network["per_class"] = {"`x|y`": 0.5}
    markdown, html = render(results)
    assert r"> **Note:** give `a|b <c>` \*now\*" in markdown
    assert r"| \`x\|y\` | 0.500 |" in markdown
    assert "give <code>a|b &lt;c&gt;</code> *now*" in html
    assert '<th scope="row">`x|y`</th>' in html


def test_a_recipe_with_backticks_and_gaps_stays_a_file(results: dict[str, Any]) -> None:
    results["recipe"]["model"] = "a```b\n\n\n\nc"
    markdown, _ = render(results)
    fenced = re.search(r"(?ms)^(`{4,})yaml\n(.*?)^\1$", markdown)
    assert fenced is not None and yaml.safe_load(fenced[2]) == results["recipe"]


def test_what_is_missing_leaves_no_hole(tmp_path: Path, results: dict[str, Any]) -> None:
    """`distill.epochs=0` without labels, without export: the least a run gives."""
    models = {name: results["models"][name] for name in ("teacher", "pruned", "repaired")}
    for model in models.values():
        model.update(map50_95=None, map50=None, per_class=None)
    results.update(models=models, chosen="repaired", accepted=None, schedule=None, history=[], exports=[], warnings=[])
    results["data"]["labelled"] = False
    markdown, html = write(tmp_path, results)
    for title in ("Accuracy", "Training", "Exports"):
        assert f"## {title}" not in markdown and f"<h2>{title}</h2>" not in html
    assert "## What was cut" in markdown and "yolo val" not in markdown
    assert "None" not in markdown and "nan" not in markdown


@pytest.mark.parametrize(
    ("part", "empty"),
    [
        *(
            (part, None)
            for part in ("repair", "schedule", "tuning", "average", "agreement", "trained", "accepted", "model")
        ),
        *((part, []) for part in ("history", "epoch_seconds", "exports", "warnings")),
        *((part, {}) for part in ("seconds", "versions")),
        ("device", ""),
    ],
)
def test_any_part_may_be_empty(results: dict[str, Any], part: str, empty: Any) -> None:
    results[part] = empty
    markdown, html = render(results)
    assert verdict(results) in unescaped(markdown)
    assert Page(html).open == []
    assert screen(results) and "None" not in markdown


@pytest.mark.parametrize("missing", ["plan", "recipe", "data", "device", "accept"])
def test_a_missing_part_is_one_line(tmp_path: Path, results: dict[str, Any], missing: str) -> None:
    for absent in (None, "gone"):
        partial = copy.deepcopy(results)
        partial[missing] = None
        if absent == "gone":
            del partial[missing]
        with pytest.raises(DistillError, match=rf"results\.json: damaged: .*{missing}"):
            write(tmp_path, partial)
        assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_an_older_layout_is_one_line(tmp_path: Path, results: dict[str, Any]) -> None:
    with pytest.raises(DistillError, match=r"results\.json: has the layout 1 of another version") as refused:
        write(tmp_path, results | {"format": 1})
    assert "\n" not in str(refused.value)


def test_the_teacher_alone_is_no_comparison(tmp_path: Path, results: dict[str, Any]) -> None:
    results["models"] = {"teacher": results["models"]["teacher"]}
    results["chosen"] = "teacher"
    markdown, _ = write(tmp_path, results)
    assert markdown.startswith("# Nothing to compare yet") and "## Use it" not in markdown


def test_many_classes_are_folded(results: dict[str, Any]) -> None:
    for drop, model in enumerate(results["models"].values()):
        model["per_class"] = {f"class{number}": 0.5 - 0.001 * drop * number for number in range(80)}
    markdown, _ = render(results)
    shown = markdown[markdown.index("## Accuracy") : markdown.index("<details>")]
    assert shown.count("| class") < 10 and "| class79 |" in shown
    assert "All 80 classes" in markdown and "| class0 |" in markdown


def test_metrics_csv_goes_before_the_history(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "metrics.csv").write_text("epoch, map50_95,score_bce\n1,0.5,2\n2,,1\n3,0.6,nan\n")
    (tmp_path / "results.json").write_text(json.dumps(results))
    history = report.history(tmp_path, typed(results))
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[1]["map50_95"] is None and history[2]["map50_95"] == 0.6
    report.write(tmp_path)
    assert "best 0.600 in epoch 3" in (tmp_path / "report.md").read_text()


def test_the_same_results_give_the_same_files(tmp_path: Path, results: dict[str, Any]) -> None:
    first = write(tmp_path, results)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert write(tmp_path, results) == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()} == pictures


def test_a_damaged_metrics_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"epoch,lr\n1,\xff\n")
    with pytest.raises(DistillError, match=r"^.*metrics\.csv is damaged \(.*\): remove it"):
        report.history(tmp_path, SimpleNamespace(history=()))


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"results\.json: not there"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DistillError, match=r"results\.json: no JSON"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DistillError, match="no 'models'"):
        report.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_nothing_is_judged_if_nobody_asked(results: dict[str, Any]) -> None:
    results["accepted"] = None
    assert facts.judgement(typed(results)) == ""
    assert '<p class="judgement' not in render(results)[1]


def test_a_name_that_a_template_does_not_know_is_an_error() -> None:
    """StrictUndefined: a report never has a silent hole."""
    with pytest.raises(jinja2.UndefinedError):
        report_files("report", {}, facts=facts, details=details, pictures=pictures, run_dir=Path("run"))


def test_templates_are_package_data() -> None:
    setup = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text()
    assert re.search(r"(?m)^distill\.report = templates/\*$", setup)
