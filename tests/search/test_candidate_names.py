import pytest

from search.candidate_names import by_trial, candidate_title, trial_of


@pytest.mark.parametrize(
    ("name", "title", "trial"),
    [
        ("42", "trial 42", 42),
        ("42@8", "trial 42 after round 8", 42),
        ("42@raw", "trial 42 without averaging", 42),
        ("soup-42", "soup of trial 42", 42),
        ("42@", "42@", None),
        ("resnet", "resnet", None),
    ],
)
def test_a_name_says_what_it_is(name: str, title: str, trial: int | None) -> None:
    assert candidate_title(name) == title
    assert trial_of(name) == trial


def test_names_are_sorted_by_their_trial() -> None:
    names = ["resnet", "10", "soup-9", "9@raw", "9@10", "9@9", "9"]

    assert sorted(names, key=by_trial) == ["9", "9@9", "9@10", "9@raw", "soup-9", "10", "resnet"]
