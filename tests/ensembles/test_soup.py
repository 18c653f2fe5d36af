import math

from ensembles.soup import Ingredients, is_soup, select_ingredients


def test_a_network_goes_in_only_if_the_average_gains() -> None:
    asked = []

    def evaluate(chosen: tuple[int, ...]) -> float:
        asked.append(chosen)
        return {(2, 0): 0.45, (2, 0, 3): 0.47, (2, 0, 1): 0.41}[chosen]

    found = select_ingredients([0.6, 0.9, 0.5, 0.7], evaluate)

    assert asked == [(2, 0), (2, 0, 3), (2, 0, 1)]
    assert found == Ingredients(chosen=(2, 0, 1), log_loss=0.41)


def test_an_average_that_is_only_as_good_or_no_number_stays_out() -> None:
    losses: dict[tuple[int, ...], float] = {(0, 1): 0.5, (0, 2): math.nan, (0, 3): math.inf}

    found = select_ingredients([0.5, 0.6, 0.7, 0.8], losses.__getitem__)

    assert found == Ingredients(chosen=(0,), log_loss=0.5)


def test_a_soup_is_known_by_its_name() -> None:
    assert is_soup("soup-42")
    assert not is_soup("42@soup-1")
