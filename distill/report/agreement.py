"""Agreement with the teacher, in words and a table: what a report shows where there are no labels."""

from __future__ import annotations

from distill.report.facts import Results, Table, chosen, stages


def measured(results: Results) -> bool:
    """Whether the networks are compared by it: there is no mAP."""
    models = stages(results).values()
    by_labels, by_teacher = (any(m.get(key) is not None for m in models) for key in ("map50_95", "agreement50_95"))
    return by_teacher and not by_labels


def note(results: Results, *, brief: bool = False) -> str:
    """What the figure means and what it was measured on; empty where there is none. `brief`: in one line of a terminal."""
    how = results.get("agreement")
    if not how or not measured(results):
        return ""
    images, boxes = how["images"], sum(how["teacher_boxes"].values())
    if brief:
        kind = "held-back images" if how["held_back"] else "images it learned from"
        return f"Agreement: AP against the teacher's own boxes on {images} {kind}."
    kind = (
        "held-back images, which nothing was calibrated or trained on"
        if how["held_back"]
        else "images, the same that were learned from, which makes it look too good"
    )
    return (
        f"Agreement: average precision measured against what the teacher sees, as a share of the best there can be. The "
        f"teacher sees {boxes} boxes with a score of {how['confidence']:g} or more on {images} {kind}. 1 is the teacher "
        "itself. It says how alike two networks are and not how right: accept.map_drop, a limit on mAP, judges nothing here."
    )


def per_class(results: Results) -> Table | None:
    """Agreement of the result for each class that the teacher sees, the lowest first."""
    shares = stages(results).get(chosen(results), {}).get("agreement_per_class") or {}
    boxes = (results.get("agreement") or {}).get("teacher_boxes") or {}
    if not shares or chosen(results) == "teacher":
        return None
    rows = sorted(shares.items(), key=lambda row: row[1])
    return Table(
        ("class", "teacher boxes", "agreement 50-95"),
        tuple((str(name), str(boxes.get(name, "")), f"{share:.3f}") for name, share in rows),
    )
