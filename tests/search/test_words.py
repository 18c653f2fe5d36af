from pathlib import Path

import pytest

from search.words import command, n_of, suggestion


def test_a_word_that_is_near_is_suggested_and_else_all_are_named() -> None:
    assert suggestion("trails", ["trials", "epochs"]) == "; did you mean 'trials'?"
    assert suggestion("zzz", ["trials", "epochs"]) == "; known are epochs, trials."


@pytest.mark.parametrize(
    ("n_finished", "n_asked", "told"), [(6, 20, "6 of 20"), (20, 20, "20 of 20"), (100, 20, "100")]
)
def test_a_study_may_have_more_trials_than_are_asked_of_it_now(
    n_finished: int, n_asked: int, told: str
) -> None:
    assert n_of(n_finished, n_asked) == told


def test_a_command_names_a_folder_of_studies_that_is_not_the_usual_one() -> None:
    assert command("resume x", Path("studies")) == "python -m search resume x"
    assert command("resume x", Path("my runs")) == "python -m search resume x --studies 'my runs'"
