import pytest

from search.candidate_names import (
    by_trial,
    candidate_title,
    candidate_titles,
    fold_name,
    seed_name,
    trial_of,
)


@pytest.mark.parametrize(
    ("name", "title", "trial"),
    [
        ("42", "trial 42", 42),
        ("42@8", "trial 42 after round 8", 42),
        ("42@raw", "trial 42 without averaging", 42),
        ("soup-42", "soup of trial 42", 42),
        ("42-seed-1", "trial 42 with seed 1", 42),
        ("42-fold-1of5", "trial 42 without fold 1 of 5", 42),
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


def test_networks_of_all_folds_are_told_once() -> None:
    names = [fold_name(trial, fold, 2) for trial in (7, 3) for fold in (1, 2)]

    assert candidate_titles(names) == ["trial 7 on 2 folds", "trial 3 on 2 folds"]
    assert candidate_titles(["7", seed_name(7, 1)]) == ["trial 7", "trial 7 with seed 1"]
