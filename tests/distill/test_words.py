"""The words of messages: durations, tables, the nearest name."""

from __future__ import annotations

from distill.machine.words import duration, nearest, text_table


def test_durations() -> None:
    seconds = (0.4, 9.94, 9.96, 59.4, 59.6, 125, 3725)
    assert [duration(value) for value in seconds] == [
        "0.4 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 02 min",
    ]


def test_a_table_has_words_to_the_left_and_numbers_to_the_right() -> None:
    rows = [("", "before", "after"), ("layer", "64", "8"), ("a", "128", "16")]
    assert text_table(rows) == ["       before  after", "layer  64      8", "a      128     16"]
    assert text_table(iter(rows), numbers=True) == [
        "       before  after",
        "layer      64      8",
        "a         128     16",
    ]


def test_the_nearest_name() -> None:
    assert nearest("sede", ["seed", "data"]) == ", did you mean 'seed'?"
    assert nearest("ratoi", ["ratio"], "prune.") == ", did you mean 'prune.ratio'?"
    assert nearest("xyz", ["seed"]) == ""
