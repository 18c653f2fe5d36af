"""What goes wrong for which class: the detail behind one number."""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ensembles.comparison import Interval, find_wilson_interval
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.metrics import measure_requested


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How well one class is found."""

    name: str
    n_images: int
    n_predicted: int
    precision: float
    """0 if the class was never predicted."""
    recall: float
    """0 if the class does not occur."""
    recall_interval: Interval | None
    """Wilson's, 95 %; None if the class does not occur."""
    f1: float


@dataclass(frozen=True, kw_only=True)
class ClassificationDetail:
    """The confusion matrix and what follows from it, and the ranking of each class."""

    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows: true class; columns: predicted class."""
    roc_auc: float | None
    """One class against the rest, mean over the classes that occur but are not all there is;
    None if there is no such class."""

    def to_json(self) -> dict[str, object]:
        """Return the detail as JSON values."""
        return asdict(self)


def describe_classes(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    class_names: tuple[str, ...],
    decision: Decision = MOST_PROBABLE,
) -> ClassificationDetail:
    """Count and rate predictions class by class.

    Args:
        log_probabilities: Predictions.
        labels: The true classes.
        class_names: One per class.
        decision: How the predictions become classes.

    Returns:
        One result per class, in their order, the confusion matrix and the area under the ROC.
    """
    predictions = decision.decide(log_probabilities)
    numbers = np.arange(len(class_names))
    confusion = confusion_matrix(labels, predictions, labels=numbers)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=numbers, zero_division=0
    )
    classes = tuple(
        ClassResult(
            name=name,
            n_images=int(support[number]),
            n_predicted=int(confusion[:, number].sum()),
            precision=float(precision[number]),
            recall=float(recall[number]),
            recall_interval=(
                find_wilson_interval(int(confusion[number, number]), int(support[number]))
                if support[number]
                else None
            ),
            f1=float(f1[number]),
        )
        for number, name in enumerate(class_names)
    )
    return ClassificationDetail(
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        roc_auc=measure_requested(["roc_auc"], log_probabilities, labels)["roc_auc"],
    )
