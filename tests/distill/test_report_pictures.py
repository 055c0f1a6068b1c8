"""What the report shows of what networks see: pictures, curves, confusion matrices, each class, and where files are."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from distill import report
from distill.report import confusion, quality_plots
from distill.report import pictures as pages
from distill.results.results import Results
from tests.distill.test_report import Page, example, unescaped

STEPS = 11


def curves(*confused: tuple[str | None, str | None, int], level: float = 0.9) -> dict[str, Any]:
    falling = [level] * (STEPS - 1) + [0.0]
    return {"precision": falling, "precision_of": {"cat": falling, "dog": falling}, "confusion": confused}


def picture(name: str, **alone: int) -> dict[str, Any]:
    small = {title: f"small/{name}-{title}.jpg" for title in ("labels", "teacher", "student")}
    counts = {"labels": 3, "teacher": 4, "student": 2}
    return {
        "image": f"{name} <b>.png",
        "file": f"{name}.jpg",
        "small": small,
        "boxes": counts,
        "alone": {"teacher": 0, "student": 0} | alone,
        "difference": 1.5,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    content = example()
    same = [("cat", "cat", 40), ("dog", "dog", 30), ("cat", None, 5)]
    content["models"]["teacher"]["curves"] = curves(*same, (None, "dog", 4), level=1.0)
    content["models"]["repaired"]["curves"] = curves(*same, level=0.8)
    content["models"]["student"]["curves"] = curves(*same, (None, "dog", 3), ("cat", "dog", 1))
    content["pictures"] = {
        "confidence": 0.25,
        "images": 8,
        "colours": {"cat": "#042aff", "dog <i>": "#0bdbeb"},
        "groups": [
            {
                "kind": "differ",
                "of": None,
                "pictures": [picture("differ-1", teacher=2), picture("differ-2", student=1)],
            },
            {"kind": "class", "of": "dog", "pictures": [picture("class-1")]},
        ],
    }
    return content


def write(folder: Path, results: dict[str, Any], size: int = 9) -> tuple[str, str]:
    """The Markdown and the HTML of a run folder with everything in it; pictures are `size` bytes long."""
    for name in ("student.pt", "metrics.csv", "recipe.yaml", "exports/student.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("epoch\n" if name == "metrics.csv" else "")
    for group in (results["pictures"] or {"groups": []})["groups"]:
        for each in group["pictures"]:
            for name in (each["file"], *each["small"].values()):
                (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "pictures" / name).write_bytes(name.encode().ljust(size, b"."))
    (folder / "results.json").write_text(json.dumps(results))
    report.write(folder)
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def typed(results: dict[str, Any]) -> Results:
    return Results.from_dict(json.loads(json.dumps(results)))


def test_pictures_are_inside_the_page_and_link_to_large_ones(tmp_path: Path, results: dict[str, Any]) -> None:
    markdown, html = write(tmp_path, results)
    page = Page(html)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    sources = [
        f"data:image/jpeg;base64,{b64encode((tmp_path / 'pictures' / name).read_bytes()).decode()}"
        for name in (
            f"small/{stem}-{title}.jpg"
            for stem in ("differ-1", "differ-2", "class-1")
            for title in ("labels", "teacher", "student")
        )
    ]
    assert page.loads == sources
    for stem in ("differ-1", "differ-2", "class-1"):
        assert f"pictures/{stem}.jpg" in page.links and f"](pictures/{stem}.jpg)" in markdown
    for said in (
        "Where teacher and student differ most",
        "The class that lost most: dog",
        "on some of the 8 val images",
    ):
        assert said in page.text and said in unescaped(markdown)
    assert "differ-1 <b>.png: 2 boxes of the teacher alone" in page.text
    assert "differ-2 <b>.png: 1 box of the student alone" in page.text
    assert "class-1 <b>.png: both see the same objects" in page.text
    assert "dog <i>" in page.text and "<b>.png" not in html  # names are text


def test_links_work_wherever_the_folder_is(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir()
    _, html = write(tmp_path / "run", results)
    moved = tmp_path / "a folder"
    shutil.move(tmp_path / "run", moved)
    links = Page(html).links
    assert {"student.pt", "exports/student.onnx", "metrics.csv", "recipe.yaml", "plots/", "pictures/"} <= set(links)
    assert all((moved / link).exists() for link in links)


def test_a_file_that_is_not_there_has_no_link(tmp_path: Path, results: dict[str, Any]) -> None:
    write(tmp_path, results)
    (tmp_path / "exports" / "student.onnx").unlink()
    shutil.rmtree(tmp_path / "pictures")
    report.write(tmp_path)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert "exports/student.onnx" not in page.links and "student.pt" in page.links
    assert page.loads == [] and "What they see" not in page.text


def test_a_page_stays_small(tmp_path: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much for the page is loaded from the folder."""
    monkeypatch.setattr(pages, "MOST", 2 * 500)
    loads = Page(write(tmp_path, results, size=500)[1]).loads
    assert [load.startswith("data:") for load in loads] == [True] * 2 + [False] * 7
    assert loads[2] == "pictures/small/differ-1-student.jpg" and all((tmp_path / load).is_file() for load in loads[2:])


def test_the_same_network_twice_is_said_to_be(results: dict[str, Any]) -> None:
    del results["pictures"]["groups"][0]
    results["pictures"]["groups"][0]["kind"] = "typical"
    assert "Teacher and student see the same on every image." in pages.explained(typed(results))
    results["pictures"]["groups"] = []
    assert pages.explained(typed(results)) == "" and pages.gallery(typed(results), Path("run")) == []


def test_every_figure_has_its_data_in_results_json(tmp_path: Path, results: dict[str, Any]) -> None:
    markdown, html = write(tmp_path, results)
    names = {"precision", "precision-classes", "classes", "confusion-teacher", "confusion-student"}
    assert names <= {file.stem for file in (tmp_path / "plots").iterdir()}
    assert all(f"](plots/{name}.png)" in markdown for name in names)
    assert "mean over classes; area below: teacher 0.909, repaired 0.727, student 0.818" in markdown
    assert "the student against the labels: 70 objects found, 3 missed, 5 boxes where there is no object" in unescaped(
        markdown
    )
    assert "<title>dog: 0.562 → 0.549 (−0.013)</title>" in html
    assert "<title>dog in the labels, cat by the student: 1 of 34</title>" in html
    results["models"]["repaired"]["curves"] = results["models"]["student"]["curves"] = None
    assert not {"precision", "precision-classes", "confusion-student"} & set(_drawn(results))


def _drawn(results: dict[str, Any]) -> list[str]:
    plots = quality_plots.quality_plots(typed(results)) | confusion.confusion_plots(typed(results))
    return [name for name, draw in plots.items() if draw() is not None]


def test_layers_say_their_names_below_a_mouse(tmp_path: Path, results: dict[str, Any]) -> None:
    results["plan"]["groups"][0] = {"name": 'a "<b>" & c', "before": 32, "after": 32}
    markdown, html = write(tmp_path, results)
    assert '<title>a "&lt;b&gt;" &amp; c: 32 → 32 channels</title>' in html
    assert "<title>model.1.conv: 32 → 24 channels</title>" in html and "hover:" not in html
    assert (
        r"| model.1.conv | 32 | 24 | −25% |" in markdown and " | 32 | 32 |  |" in markdown
    )  # those that lost nothing too


def test_of_many_classes_those_with_most_errors_have_a_row(results: dict[str, Any]) -> None:
    names = [f"class {number}" for number in range(80)]
    results["data"]["classes"] = names
    confused = [(name, name, 10) for name in names] + [(names[0], names[number], number) for number in range(60, 80)]
    for name in ("teacher", "student"):
        results["models"][name]["curves"] = curves(*confused, (None, names[3], 500))
    found = confusion.matrices(typed(results))
    assert list(found) == ["teacher", "student"] and found["teacher"].names == found["student"].names
    matrix = found["student"]
    assert len(matrix.names) == confusion.MOST + 1 and matrix.names[-2:] == (confusion.OTHERS, confusion.BACKGROUND)
    assert {"class 0", "class 3", "class 79"} <= set(matrix.names) and "class 5" not in matrix.names
    assert sum(matrix.boxes.values()) == sum(boxes for *_, boxes in confused) + 500 and matrix.found == 800
    assert matrix.count(matrix.background, matrix.names.index("class 3")) == 500


def test_of_many_classes_the_ends_have_a_bar(results: dict[str, Any]) -> None:
    for drop, name in ((0.0, "teacher"), (0.002, "student")):
        results["models"][name]["per_class"] = {f"class {number}": 0.5 - drop * (number - 40) for number in range(80)}
    draw = quality_plots.quality_plots(typed(results))["classes"]()
    assert draw is not None
    figure, alt = draw
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == quality_plots.BARS + 1 and labels[0] == "class 79" and labels[-1] == "class 0"
    assert "class 79 −0.078" in alt and "… 56 classes …" in labels


def test_without_labels_everything_is_against_the_teachers_boxes(tmp_path: Path, results: dict[str, Any]) -> None:
    results["data"] |= {"labelled": False, "classes": []}
    results |= {"accepted": None, "history": []}
    results["agreement"] = {"images": 8, "held_back": True, "confidence": 0.25, "teacher_boxes": {"cat": 45, "dog": 34}}
    for (name, model), share in zip(results["models"].items(), (1.0, 0.1, 0.85, 0.9), strict=True):
        model.update(map50_95=None, map50=None, per_class=None, agreement50_95=share, agreement50=share)
        model["agreement_per_class"] = {"cat": share, "dog": share if name == "teacher" else share - 0.02}
    markdown, html = write(tmp_path, results)
    assert "confusion-teacher" not in markdown and "against the teacher's boxes: 70 objects found" in unescaped(
        markdown
    )
    assert "<title>dog: 1.000 → 0.880 (−0.120)</title>" in html and "change of agreement 50-95" in html


def test_classes_that_did_not_change_have_no_bars(results: dict[str, Any]) -> None:
    assert "classes" in _drawn(results)
    results["models"]["student"]["per_class"] = {"cat": 0.7, "dog": 0.5621}
    assert "classes" not in _drawn(results)


def test_of_many_colours_some_are_explained(results: dict[str, Any]) -> None:
    results["pictures"]["colours"] = {f"class {number}": "#042aff" for number in range(30)}
    shown = pages.legend(typed(results))
    assert len(shown) == pages.LEGEND + 1 and shown[-1][1] == "and 6 more"


def test_the_headline_does_not_break_inside_a_name(tmp_path: Path, results: dict[str, Any]) -> None:
    html = write(tmp_path, results)[1]
    assert '<span class="word">mAP50-95</span> 0.631 → 0.624' in html and Page(html).open == []


def test_one_class_needs_no_plot_of_classes(results: dict[str, Any]) -> None:
    for model in results["models"].values():
        model["per_class"] = {"cat": 0.5}
        if model.get("curves"):
            model["curves"] |= {"precision_of": {"cat": [1.0] * STEPS}, "confusion": [("cat", "cat", 3)]}
    assert _drawn(results) == ["precision", "confusion-teacher", "confusion-student"]


def test_a_teacher_that_is_the_result_has_nothing_to_compare(results: dict[str, Any]) -> None:
    results["chosen"], results["models"] = "teacher", {"teacher": results["models"]["teacher"]}
    assert _drawn(results) == []


def test_results_of_before_have_no_pictures_and_no_curves() -> None:
    old = typed(example())
    assert old.pictures is None and old.teacher.curves is None
    assert re.fullmatch("", pages.explained(old)) and pages.files(old, Path("nowhere"), plots=False) == []
