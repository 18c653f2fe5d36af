"""What is known of one ensemble, for tests of how it is told."""

from dataclasses import replace

import numpy as np
from curves import POINT

from ensembles.builder import Ensemble, build_all
from ensembles.combination import Combination
from ensembles.comparison import Interval
from ensembles.diagnostics import Explanation, MemberExplanation
from ensembles.pareto import Front, FrontPoint
from ensembles.pool import Pool
from ensembles.reliability import Reliability, ReliabilityBin
from ensembles.report import CascadeFigures, Report, evaluate_all

FIRST = MemberExplanation(
    name="7",
    weight=0.75,
    accuracy=0.772,
    log_loss=0.7,
    log_loss_added=0.0123,
    accuracy_added=0.004,
    only_right=(1, 5),
    n_corrected=20,
    n_spoiled=3,
)
EXPLANATION = Explanation(
    method="llp",
    n_images=1000,
    accuracy=0.79,
    log_loss=0.65,
    is_fresh=True,
    members=(
        FIRST,
        replace(FIRST, name="12", weight=0.25, only_right=(3,), accuracy_added=-0.001),
    ),
    share_any_right=0.853,
    shared_errors=((1.0, 0.5), (0.5, 1.0)),
    double_faults=((0.2, 0.1), (0.1, 0.2)),
    effective_by_weight=1.75,
    effective_by_errors=1.31,
)
CASCADE = CascadeFigures(accuracy=0.943, accuracy_lost=0.001, cost_share=0.41, mean_members=2.14)


def make_reliability(counts: dict[int, tuple[int, float]], error: float) -> Reliability:
    """Return a reliability of ten bins, of which some hold images of some accuracy."""
    return Reliability(
        n_images=sum(n_images for n_images, _ in counts.values()),
        bins=tuple(
            ReliabilityBin(
                low=number / 10,
                high=(number + 1) / 10,
                n_images=counts.get(number, (0, 0.0))[0],
                confidence=(number + 0.5) / 10 if number in counts else None,
                accuracy=counts[number][1] if number in counts else None,
                accuracy_interval=Interval(low=0.1, high=0.9) if number in counts else None,
            )
            for number in range(10)
        ),
        expected_calibration_error=error,
        interval=Interval(low=0.005, high=0.038),
        by_chance=Interval(low=0.01, high=0.029),
    )


BEFORE = make_reliability({4: (100, 0.2), 8: (100, 0.6), 9: (300, 1.0)}, error=0.06)
AFTER = make_reliability({4: (50, 0.4), 9: (450, 0.9)}, error=0.021)


def make_report() -> Report:
    """Return a report whose explanation is the one above, whatever its table says."""
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=60)
    pool = Pool.from_arrays(logits=generator.normal(size=(2, 60, 3)), labels=labels)
    ensembles = build_all(pool, max_members=2)
    return replace(
        evaluate_all(ensembles, choice="soft", fit_pool=pool, test_pool=pool),
        explanation=EXPLANATION,
        reliability_before=BEFORE,
        reliability=AFTER,
        cascade=CASCADE,
        overtuning=POINT.overtuning,
    )


def make_front() -> Front:
    """Return a front of one member and of two."""
    point = FrontPoint(
        ensemble=make_ensemble("4"),
        budget=1.0,
        cost=1.0,
        totals={"milliseconds": 1.25, "bytes": 400_000.0},
        accuracy=0.9,
        accuracy_interval=Interval(low=0.88, high=0.915),
        log_loss=0.35,
        fitted_log_loss=0.34,
    )
    dearer = replace(
        point,
        ensemble=make_ensemble("4", "9"),
        budget=3.0,
        cost=2.5,
        totals={"milliseconds": 3.125, "bytes": 1_250_000.0},
        accuracy=0.92,
        log_loss=0.3,
        fitted_log_loss=0.29,
    )
    return Front(
        resource="milliseconds",
        single="4",
        single_cost=1.25,
        n_images=1000,
        points=(point, dearer),
    )


def make_ensemble(*names: str) -> Ensemble:
    return Ensemble(
        method="soft",
        members=tuple(range(len(names))),
        names=names,
        combination=Combination(
            method="soft", space="probability", weights=(1 / len(names),) * len(names)
        ),
        n_images=500,
    )
