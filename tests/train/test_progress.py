"""The line a person watches: live on a terminal, now and then in a log."""

import io

import rich.console

from chopjax.train.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def log(width: int = 40) -> tuple[io.StringIO, rich.console.Console]:
    out = io.StringIO()
    return out, rich.console.Console(file=out, force_terminal=False, width=width)


def test_a_log_gets_a_line_now_and_then_and_the_last() -> None:
    out, console = log()
    clock = Clock()
    with Progress(100, console=console, every=10, clock=clock) as progress:
        for step in range(1, 101):
            clock.now = 50 + step  # fifty seconds of compilation, then a second a step
            progress.update(step, {"loss": 100 / step, "tokens_per_second": 12345.6, "mfu": 0.4123})
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 100.0000  12.3k tokens/s  MFU 41.2 %"
    assert lines[1] == "step 11/100  loss 9.0909  12.3k tokens/s  MFU 41.2 %  1:29 left"
    assert lines[-1] == "step 100/100  loss 1.0000  12.3k tokens/s  MFU 41.2 %"
    assert len(lines) == 11


def test_what_is_not_known_is_left_out() -> None:
    out, console = log()
    with Progress(3, console=console) as progress:
        progress.update(3, {"loss": 2, "mfu": None})
    assert out.getvalue() == "step 3/3  loss 2.0000\n"


def test_the_teachers_part_is_shown_beside_the_students() -> None:
    parts = {"mfu": 0.4123, "mfu_student": 0.25, "mfu_teacher": 0.1623}
    rates = {"tflops": 0.0512, "tflops_student": 0.0312, "tflops_teacher": 0.02}
    out, console = log()
    with Progress(3, console=console) as progress:
        progress.update(3, rates | parts)
        progress.update(3, rates | dict.fromkeys(parts))
    first, second = out.getvalue().splitlines()
    assert first == "step 3/3  MFU 41.2 % (student 25.0, teacher 16.2)"
    assert second == "step 3/3  0.0512 TFLOP/s a device (student 0.0312, teacher 0.02)"


def test_long_times_and_big_numbers_stay_short() -> None:
    out, console = log()
    clock = Clock()
    with Progress(1000, done=100, console=console, every=0, clock=clock) as progress:
        progress.update(101, {})
        clock.now = 10.0
        progress.update(102, {"tokens_per_second": 2.5e6})
    assert out.getvalue().splitlines()[1] == "step 102/1000  2.5M tokens/s  2:29:40 left"


def test_a_terminal_gets_one_live_line() -> None:
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=True, width=100)
    with Progress(10, console=console) as progress:
        for step in range(1, 11):
            progress.update(step, {"loss": 1 / step})
        progress.say("saved [step 10]")
    assert "saved [step 10]" in out.getvalue()
    assert "step 10/10  loss 0.1000" in out.getvalue()


def test_a_silent_process_says_nothing() -> None:
    out = io.StringIO()
    with Progress(2, shown=False, console=rich.console.Console(file=out, force_terminal=True)) as progress:
        progress.update(2, {"loss": 1.0})
        progress.say("x")
    assert out.getvalue() == ""
