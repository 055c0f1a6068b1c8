"""What a person sees of a run: on a terminal, in a pipe and in the log."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.machine import console as module
from distill.machine.console import Console


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that are left on a terminal after all that was written."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = line.rpartition("\r")[2].replace("\x1b[K", "")
            lines.append(shown)
        return lines


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setenv("TERM", "xterm")
    return clock


def test_a_terminal_gets_one_bar_that_ends_as_a_line(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    for item in console.track(range(4), "statistics"):
        assert item == clock.now
        clock.now += 1
    drawn = terminal.getvalue().split("\r")
    assert any(re.match(r"\[#+\.+\] statistics 1/4, 3\.0 s left", text) for text in drawn)
    assert terminal.screen() == ["statistics 4/4 in 4.0 s", ""]


def test_a_bar_is_redrawn_at_most_ten_times_a_second(clock: Clock) -> None:
    terminal = Terminal()
    for _ in Console(terminal).track(range(1000), "many"):
        clock.now += 0.001
    assert 5 <= terminal.getvalue().count("\r") <= 15


def test_a_bar_never_wraps(clock: Clock) -> None:
    terminal = Terminal()
    with Console(terminal).bar("a long label " * 20, 10) as bar:
        clock.now += 1
        bar.advance(note="a long note " * 20)
        drawn = [text.replace("\x1b[K", "") for text in terminal.getvalue().split("\r")]
    assert max(map(len, drawn)) <= 79


def test_lines_and_inner_bars_do_not_break_a_bar(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    with console.bar("epoch", 2) as outer:
        console.line("hello")
        list(console.track("ab", "inner"))
        assert terminal.screen()[:2] == ["hello", "inner 2/2 in 0.0 s"]
        assert terminal.screen()[2].endswith("epoch 0/2")
        outer.advance(2, note="loss 0.5")
    assert terminal.screen() == ["hello", "inner 2/2 in 0.0 s", "epoch 2/2 in 0.0 s  loss 0.5", ""]


def test_a_loop_that_breaks_off_leaves_no_bar(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    with pytest.raises(RuntimeError), console.bar("broken", 3):
        raise RuntimeError
    for _ in console.track(range(3), "left"):
        break
    console.line("after")
    assert terminal.screen() == ["after", ""]


def test_without_a_terminal_there_are_few_plain_lines(clock: Clock) -> None:
    stream = io.StringIO()
    for _ in Console(stream).track(range(100), "epochs"):
        clock.now += 3
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epochs 10/100, 4 min 30 s left" and lines[-1] == "epochs 100/100 in 5 min 00 s"
    assert len(lines) == 10 and "\r" not in stream.getvalue()
    stream.truncate(0)
    for _ in Console(stream).track(range(100), "quick"):
        clock.now += 0.01
    assert stream.getvalue().strip("\0") == "quick 100/100 in 1.0 s\n"


def test_an_iterable_of_unknown_length_counts(clock: Clock) -> None:
    stream = io.StringIO()
    assert list(Console(stream).track(iter("abc"), "items")) == ["a", "b", "c"]
    assert stream.getvalue() == "items 3 in 0.0 s\n"


def test_quiet_shows_warnings_only_and_the_log_gets_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Terminal()
    console = Console(stream, quiet=True)
    log = tmp_path / "run" / "log.txt"
    console.log_to(log)
    console.header("score", "96 images")
    console.warn("odd")
    assert not log.parent.exists()  # a run that cannot start leaves nothing
    log.parent.mkdir()
    list(console.track(range(2), "batches"))
    console.result("mAP 0.6")
    console.close()
    assert stream.getvalue() == "warning: odd\n" and console.warnings == ["odd"]
    assert capsys.readouterr().out == "mAP 0.6\n"
    lines = log.read_text().splitlines()
    assert lines == ["", "== score ==  96 images", "warning: odd", "batches 2/2 in 0.0 s", "mAP 0.6"]


def test_a_stream_that_cannot_show_a_character_gets_another() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(stream).line("≤ 50%")
    assert stream.buffer.getvalue() == b"? 50%\n"
