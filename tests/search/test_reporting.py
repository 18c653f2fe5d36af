import io
from dataclasses import replace

from explanations import EXPLANATION, FIRST, make_front, make_report
from rich.console import Console

from ensembles.report import Report
from search.reporting import print_explanation, print_soups
from search.soup_records import Soup


def explain(report: Report, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    print_explanation(console, report, front=make_front())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_explanation_is_printed_as_tables_and_sentences() -> None:
    lines = explain(make_report()).splitlines()

    assert " ".join(lines[1].split()) == (
        "trial 7 0.75 77.20 % +0.40 points, +0.0123 nats 2 images"
    )
    assert [line.split()[0] for line in lines if line] == [
        *("member", "trial", "trial", "2", "confidence", "40-60", "80-100", "calibration"),
        *("as", "The", "at", "1.0", "2.5"),
    ]


def test_five_members_are_explained_on_one_narrow_screen() -> None:
    members = tuple(replace(FIRST, name=f"10{place}") for place in range(5))
    report = replace(make_report(), explanation=replace(EXPLANATION, members=members))

    lines = explain(report, terminal=True).splitlines()

    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80


def test_long_titles_leave_room_for_the_numbers() -> None:
    members = (replace(FIRST, name="104@raw"), replace(FIRST, name="104@16"))
    report = replace(make_report(), explanation=replace(EXPLANATION, members=members))

    told = explain(report)

    assert max(map(len, told.splitlines()[:5])) <= 80
    assert told.count("0.75  77.20 %  +0.40 points, +0.0123 nats       2 images") == 2
    assert [word for word in told.split() if word in ("averaging", "16")] == ["averaging", "16"]


def test_a_single_member_is_not_explained() -> None:
    report = replace(make_report(), explanation=replace(EXPLANATION, members=(FIRST,)))

    assert "only it right" not in explain(report)


def test_what_is_not_known_is_not_told() -> None:
    report = replace(
        make_report(), explanation=None, reliability=None, cascade=None, overtuning=None
    )
    console = Console(file=io.StringIO(), width=80)

    print_explanation(console, report)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_each_soup_says_what_was_averaged_or_that_nothing_was() -> None:
    made = Soup(
        trial=7,
        offered=("7", "7@16", "7@24"),
        ingredients=("7@24", "7"),
        log_loss=0.41,
        best_log_loss=0.43,
    )
    alone = replace(made, trial=12, ingredients=("7@16",), log_loss=0.43)
    console = Console(file=io.StringIO(), width=80)

    print_soups(console, [made, alone])

    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines[1:3] == [
        "trial 7 0.4300 0.4100 2 of 3: 7@24, 7",
        "trial 12 0.4300 - 7@16 alone: no average with it is better",
    ]
