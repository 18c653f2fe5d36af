import json
from collections.abc import Callable

import numpy as np
import pytest

from ensembles.classification import describe_classes
from ensembles.pool import Pool

# True classes 0, 0, 0, 1; predicted 0, 0, 1, 1; class "owl" does not occur.
LOGARITHMS = np.log(np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]]))
LABELS = np.array([0, 0, 0, 1])
NAMES = ("cat", "dog", "owl")


def test_counts_worked_out_by_hand() -> None:
    detail = describe_classes(LOGARITHMS, LABELS, NAMES)

    cat, dog, owl = detail.classes
    assert detail.confusion == ((2, 1, 0), (0, 1, 0), (0, 0, 0))
    assert (cat.n_images, cat.n_predicted) == (3, 2)
    assert (cat.precision, dog.precision) == (1, 0.5)
    assert cat.recall == pytest.approx(2 / 3)
    assert dog.f1 == pytest.approx(2 / 3)
    assert (owl.precision, owl.recall, owl.f1, owl.recall_interval) == (0, 0, 0, None)
    assert cat.recall_interval is not None
    assert cat.recall_interval.low < 2 / 3 < cat.recall_interval.high


def test_the_ranking_skips_classes_that_do_not_occur() -> None:
    # Both classes rank their images perfectly; the third has none.
    assert describe_classes(LOGARITHMS, LABELS, NAMES).roc_auc == pytest.approx(1)


def test_one_class_alone_has_no_ranking() -> None:
    assert describe_classes(LOGARITHMS[:3], LABELS[:3], NAMES).roc_auc is None


def test_chance_ranks_at_one_half(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=1, n_images=20_000, skill=0.0)

    detail = describe_classes(pool.log_probabilities[0], pool.labels, pool.class_names)

    assert detail.roc_auc == pytest.approx(0.5, abs=0.02)


def test_the_detail_is_json() -> None:
    detail = describe_classes(LOGARITHMS, LABELS, NAMES)

    read = json.loads(json.dumps(detail.to_json()))

    assert read["classes"][1]["name"] == "dog"
    assert read["confusion"][0] == [2, 1, 0]
