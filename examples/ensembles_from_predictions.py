"""Build an ensemble from predictions of any models: here six of scikit-learn, on noisy digits.

Run it with `python examples/ensembles_from_predictions.py`. Only the first function knows
scikit-learn; all that an ensemble needs is, for each model, one row of numbers per image.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensembles.builder import METHODS, build, build_all, choose_method, explain_refusal
from ensembles.conformal import fit_conformal
from ensembles.cross_fitting import cross_fitted_predictions
from ensembles.diagnostics import explain_members
from ensembles.pool import Pool
from ensembles.report import Report, evaluate_all

MODELS = {
    "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)),
    "neighbors": KNeighborsClassifier(n_neighbors=10),
    "forest": RandomForestClassifier(n_estimators=50, random_state=0),
    "trees": ExtraTreesClassifier(n_estimators=50, random_state=0),
    "bayes": GaussianNB(),
    "perceptron": make_pipeline(
        StandardScaler(), MLPClassifier((64,), alpha=1.0, early_stopping=True, random_state=0)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the models say about images that none of them was trained on."""

    probabilities: dict[str, np.ndarray]
    """One (images, classes) array per model."""
    labels: np.ndarray


def predict_digits() -> tuple[Predictions, Predictions]:
    """Train six models; predict images to fit ensembles on, and others to judge them by."""
    images, labels = load_digits(return_X_y=True)
    images = images + np.random.default_rng(0).normal(scale=4.0, size=images.shape)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=0.66, stratify=labels, random_state=0
    )
    halves = train_test_split(
        held_out, held_out_labels, test_size=0.5, stratify=held_out_labels, random_state=0
    )
    trained = {name: model.fit(train, train_labels) for name, model in MODELS.items()}
    fit, test = (
        Predictions(
            probabilities={name: model.predict_proba(part) for name, model in trained.items()},
            labels=part_labels,
        )
        for part, part_labels in ((halves[0], halves[2]), (halves[1], halves[3]))
    )
    return fit, test


def compare_methods(fit_pool: Pool, test_pool: Pool) -> Report:
    """Fit every method on one pool, and measure all of them once on the other."""
    return evaluate_all(
        build_all(fit_pool),
        choice=choose_method(fit_pool),
        fit_pool=fit_pool,
        test_pool=test_pool,
        refused={
            method: reason
            for method in METHODS
            if (reason := explain_refusal(fit_pool, method)) is not None
        },
    )


def print_report(report: Report) -> None:
    """Print one line for each method, and the verdict."""
    print(f"{'method':<15}{'accuracy':>10}{'95 % interval':>17}{'log-loss':>10}  members")
    for row in report.rows:
        low, high = row.test.accuracy_interval.low, row.test.accuracy_interval.high
        mark = ">" if row.method == report.choice else " "
        print(
            f"{mark} {row.method:<13}{row.test.accuracy:>10.1%}{low:>9.1%} -{high:>6.1%}"
            f"{f'{row.test.log_loss:.3f}' if row.is_calibrated else '-':>10}"
            f"  {', '.join(f'{each.weight:.2f} {each.name}' for each in row.members)}"
        )
    print(f"\n{report.sentence}")


def main() -> None:
    """Show what can be done with predictions alone."""
    fit, test = predict_digits()

    # From arrays in memory, or from files: one .npy per model, an .npz, a CSV or parquet table.
    fit_pool = Pool.from_arrays(
        probabilities=list(fit.probabilities.values()),
        labels=fit.labels,
        names=list(fit.probabilities),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, probabilities in test.probabilities.items():
            np.save(Path(folder) / f"{name}.npy", probabilities)
        np.save(Path(folder) / "labels.npy", test.labels)
        test_pool = Pool.load(folder)

    # All methods; the choice is made before anybody looks at the test images.
    print_report(compare_methods(fit_pool, test_pool))

    # One ensemble, like an estimator: fitted on one pool, it predicts any other.
    ensemble = build(fit_pool, max_members=3)
    predictions = ensemble.predict(test_pool)

    print(f"\nWhy the members of {ensemble.method}, at most 3")
    for member in explain_members(ensemble, fit_pool, fresh=test_pool).members:
        print(
            f"  {member.name:<11} alone {member.accuracy:.1%}, adds {member.log_loss_added:+.3f} "
            f"nats, alone right on {len(member.only_right)} images"
        )

    conformal = fit_conformal(
        cross_fitted_predictions(fit_pool, max_members=3), fit_pool.labels, alpha=0.05
    )
    sets = conformal.sets(predictions)
    covered = sets[np.arange(test_pool.n_images), test_pool.labels].mean()
    print(f"\nSets of {sets.sum(axis=1).mean():.2f} classes hold the true one in {covered:.1%}")


if __name__ == "__main__":
    main()
