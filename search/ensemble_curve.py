"""The ensemble of what is finished, refitted while a study runs: is the search still gaining?

It is fitted on the ens role, so its score there would flatter. Hence two halves: an image is only
scored by the fit on the other half. The test role is not opened.

The supervisor does this between two looks at its workers, on one thread. The role is cut to at
most 20,000 probabilities a trial (2,000 images of 10 classes, always the same ones), where a
refit of 64 trials takes some 80 ms; after each one there is a rest, so that no more than a
twentieth of the time goes to it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna
from jaxtyping import Float32, Int64
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from ensembles.builder import Ensemble, build, choose_method
from ensembles.methods import Method
from ensembles.metrics import accuracy, log_loss
from ensembles.overtuning import Overtuning
from ensembles.pool import Pool, split_in_folds
from search.curve_points import CurvePoint, Score, add_point, read_curve, write_curve
from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.judging import measure_flattery
from search.predictions import read_predictions
from search.publication import publish_curve
from search.retention import kept_trials
from search.seeding import derive_seed
from search.storage import open_study
from search.study import Study
from search.trials import FINISHED

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 64
MAX_BYTES = 64 * 2**20
"""Of the predictions that stay in memory; a refit holds three copies besides for a moment."""
MAX_VALUES = 20_000
"""Probabilities of one trial: images times classes."""
MIN_IMAGES = 500
"""Even of many classes, if there are as many."""
FEWEST_IMAGES = 20
"""Of fewer nothing can be said, and there is no curve."""
SHARE_OF_TIME = 0.05
SECONDS_BETWEEN_FIGURES = 30.0
_READ: tuple[Role, ...] = ("stop", "ens")


@dataclass
class EnsembleCurve:
    """Follows the ensemble of one study while its trials end.

    Nothing that goes wrong here ends a search: the first failure is in the log with its traceback.
    """

    study: Study
    on_point: Callable[[CurvePoint], None]
    """Told the newest point: the one that the study has, then each new one."""
    _points: tuple[CurvePoint, ...] = field(default=(), init=False)
    _counted_from: float = field(default_factory=time.monotonic, init=False)
    """When the search would have begun, had all runs of the study been one."""
    _next_at: float = field(default=0.0, init=False)
    _next_figure_at: float = field(default=0.0, init=False)
    _is_drawn: bool = field(default=True, init=False)
    _best: "_Best | None" = field(default=None, init=False)
    _has_failed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Go on with the curve that the study has."""
        self._points = read_curve(self.study.paths)
        if self._points:
            self._counted_from -= self._points[-1].seconds
            self.on_point(self._points[-1])

    def update(self, trials: Sequence[FrozenTrial], *, at_the_end: bool = False) -> None:
        """Add a point if a trial has ended since the last one and the rest after it is over.

        Args:
            trials: All trials of the study.
            at_the_end: Do not wait any longer: nothing follows.
        """
        began, spent = time.monotonic(), time.thread_time()
        if began < self._next_at and not at_the_end:
            return
        is_first = self._best is None
        try:
            n_finished = sum(trial.state in FINISHED for trial in trials)
            if not self._points or n_finished > self._points[-1].n_finished:
                self._add_point(trials, n_finished)
            if not self._is_drawn and (began >= self._next_figure_at or at_the_end):
                publish_curve(self._opened, self._points)
                self._is_drawn = True
                self._next_figure_at = began + SECONDS_BETWEEN_FIGURES
        except Exception:
            if not self._has_failed:
                logger.exception("ensemble: its curve could not be carried on")
            self._has_failed = True
        # Waiting for a core or for the database takes nothing from the workers, and what the first
        # look loads and opens is paid once: without a rest, or a search of seconds had no curve.
        if not is_first or self._has_failed:
            self._next_at = began + (time.thread_time() - spent) / SHARE_OF_TIME

    @cached_property
    def _opened(self) -> optuna.Study:
        return open_study(self.study.paths)

    @cached_property
    def _candidates(self) -> "_Candidates":
        return _Candidates(self.study)

    def _add_point(self, trials: Sequence[FrozenTrial], n_finished: int) -> None:
        pool = self._candidates.gather(trials)
        if pool is None:
            return
        config = self.study.record.config
        seed = derive_seed(config.seed, "ensemble")
        with threadpool_limits(1):
            best = self._look_at_best(pool, seed)
            chosen = _cheap(choose_method(pool))
            fitted = cross_fit(pool, method=chosen, max_members=config.max_members, seed=seed)
        point = CurvePoint(
            n_finished=n_finished,
            seconds=round(time.monotonic() - self._counted_from, 1),
            n_images=pool.n_images,
            best_trial=best.trial_number,
            best=best.score,
            method=chosen,
            ensemble=fitted.score,
            n_members=max(len(each.names) for each in fitted.fits),
            members=fitted.members,
            overtuning=best.overtuning,
        )
        self._points = add_point(self._points, point)
        self._is_drawn = False
        self.on_point(point)
        write_curve(self.study.paths, self._points)

    def _look_at_best(self, pool: Pool, seed: int) -> "_Best":
        number = int(pool.names[0])
        if self._best is None or self._best.trial_number != number:
            single = cross_fit(pool.select([0]), method="single", max_members=1, seed=seed)
            self._best = _Best(
                trial_number=number,
                score=single.score,
                overtuning=_measure_overtuning(self.study, number),
            )
        return self._best


def _cheap(method: Method) -> Method:
    """Return a method that is fitted in tens of milliseconds, and is nearly as good."""
    return "llp" if method == "stack" else method


@dataclass(frozen=True, kw_only=True)
class _Best:
    """What stays the same while the same trial leads."""

    trial_number: int
    score: Score
    overtuning: Overtuning


def _measure_overtuning(study: Study, trial_number: int) -> Overtuning:
    roles, labels = read_roles(study.paths.roles), open_store(study.record.store).labels
    stop, ens = (
        (
            read_predictions(study.paths, role, [trial_number])[0],
            np.asarray(labels[roles.rows(role)]),
        )
        for role in _READ
    )
    return measure_flattery(stop=stop, ens=ens)


@dataclass(frozen=True, kw_only=True)
class CrossFit:
    """An ensemble fitted on either half of the images, and scored on the other."""

    fits: tuple[Ensemble, ...]
    score: Score

    @property
    def members(self) -> tuple[int, ...]:
        """Trials that any of the fits chose, by their mean share of the weights."""
        shares: dict[int, float] = {}
        for fit in self.fits:
            total = sum(fit.combination.weights)
            for name, weight in zip(fit.names, fit.combination.weights, strict=True):
                shares[int(name)] = shares.get(int(name), 0.0) + weight / total
        return tuple(sorted(shares, key=lambda number: (-shares[number], number)))


def cross_fit(pool: Pool, *, method: Method, max_members: int, seed: int) -> CrossFit:
    """Fit a method on each half of a pool's images and score it on the other half.

    The halves are stratified by class and do not depend on the models, so the points of a curve
    differ by their models alone.

    Args:
        pool: Predictions; the names of its models are trial numbers.
        method: What to fit.
        max_members: Most models that a prediction may need.
        seed: Of bagging and of the halves.

    Returns:
        Both fits, and the score over all images.

    Raises:
        EnsembleError: A half has too few images for the method.
    """
    folds = split_in_folds(pool.labels, n_folds=2, seed=seed)
    halves = [np.flatnonzero(folds == half) for half in range(2)]
    fits = [
        build(pool.select_images(half), method=method, max_members=max_members, seed=seed)
        for half in halves
    ]
    predicted = np.empty((pool.n_images, pool.n_classes))
    for fit, unseen in zip(fits, reversed(halves), strict=True):
        predicted[unseen] = fit.predict(pool.select_names(fit.names).select_images(unseen))
    score = Score(
        log_loss=round(log_loss(predicted, pool.labels), 5),
        accuracy=round(accuracy(predicted, pool.labels), 5),
    )
    return CrossFit(fits=tuple(fits), score=score)


@dataclass
class _Candidates:
    """The predictions of the trials that could matter, for part of the ens role, in memory."""

    study: Study
    _predicted: dict[int, Float32[np.ndarray, "images classes"]] = field(
        default_factory=dict, init=False
    )
    """By trial number."""

    def gather(self, trials: Sequence[FrozenTrial]) -> Pool | None:
        """Return a pool of the best trials, the best on the stop role first.

        None if there is no trial, or too few images.
        """
        chosen = self._choose(trials)
        if not chosen or len(self._rows) < FEWEST_IMAGES:
            return None
        numbers = [trial.number for trial in chosen]
        self._predicted = {
            number: self._predicted[number] if number in self._predicted else self._read(number)
            for number in numbers
        }
        return Pool(
            log_probabilities=np.stack(list(self._predicted.values())),
            labels=self._labels,
            names=tuple(str(number) for number in numbers),
            costs=np.array([float(trial.user_attrs["milliseconds"]) for trial in chosen]),
            class_names=self.study.record.class_names,
        )

    def _choose(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        config, paths = self.study.record.config, self.study.paths
        ranked = sorted(
            (
                trial
                for trial in kept_trials(trials, config.keep, config.metric)
                if paths.trial(trial.number).predictions("ens").is_file()
            ),
            key=lambda trial: (trial.user_attrs["log_loss"], trial.number),
        )
        n_bytes = 4 * len(self._rows) * len(self.study.record.class_names)
        return ranked[: max(2, min(MAX_CANDIDATES, MAX_BYTES // max(1, n_bytes)))]

    def _read(self, number: int) -> Float32[np.ndarray, "images classes"]:
        predicted = read_predictions(self.study.paths, "ens", [number])[:, self._rows]
        checked = Pool.from_arrays(log_probabilities=predicted, labels=self._labels)
        log_probabilities: np.ndarray = checked.log_probabilities[0]
        return log_probabilities

    @cached_property
    def _labels(self) -> Int64[np.ndarray, " images"]:
        record = self.study.record
        rows = read_roles(self.study.paths.roles).ens[self._rows]
        labels: np.ndarray = np.asarray(open_store(record.store).labels[rows], dtype=np.int64)
        return labels

    @cached_property
    def _rows(self) -> Int64[np.ndarray, " images"]:
        """The images that are used, of all of the role."""
        record = self.study.record
        n_all = len(read_roles(self.study.paths.roles).ens)
        n_used = min(n_all, max(MIN_IMAGES, MAX_VALUES // len(record.class_names)))
        generator = np.random.default_rng(derive_seed(record.config.seed, "curve"))
        return np.sort(generator.permutation(n_all)[:n_used])
