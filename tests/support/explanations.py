"""What is known of one ensemble, for tests of how it is told."""

from dataclasses import replace

from ensembles.comparison import Interval
from ensembles.diagnostics import Explanation, MemberExplanation
from ensembles.reliability import Reliability, ReliabilityBin
from ensembles.report import CascadeFigures

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
