"""Samplers and pruners by name, and the seed that each trial is sampled with."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.config import Pruner, Sampler
from search.errors import ConfigError
from search.rungs import RungPruner, Rungs
from search.seeding import derive_seed
from spaces.space import Space, suggest_recipe
from spaces.task import Task

N_STARTUP_TRIALS = 10
MAX_GRID_POINTS = 20_000
POINTS_PER_RANGE = 3

# Where TPE, CMA-ES and NSGA-II keep it; under any other name it would be worked out anew.
_SHARED_PARAMETERS = "_search_space"

type_of_grid = dict[str, list[str | int | float | bool]]


class SeededSampler(BaseSampler):
    """A sampler that is made anew for each trial, seeded by the study's seed and the number.

    Workers that share a seed would otherwise sample identical trials, and a study that is
    interrupted would go on with other numbers than an unbroken one. None of the samplers keeps
    anything between trials that is not in the storage; but which parameters all finished trials
    share takes half of the time to ask for the 5,000th trial if it is worked out from all of them
    anew, so that is handed on.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        sampler = self._make(derive_seed(self._seed, "sampler", trial.number))
        known = getattr(self._sampler, _SHARED_PARAMETERS, None)
        # Hyperband shows a sampler a part of the trials, another one each time.
        if isinstance(known, IntersectionSearchSpace) and type(study) is Study:
            setattr(sampler, _SHARED_PARAMETERS, known)
        self._sampler = sampler
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Ask the sampler which parameters it samples together."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        """Let the sampler choose parameters together."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> object:
        """Let the sampler choose one parameter."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the sampler; a grid, which would stop the study here, is bounded beforehand."""
        if isinstance(self._sampler, GridSampler):
            return
        with warnings.catch_warnings():
            # CMA-ES says so after every trial that did not fit into the memory.
            warnings.filterwarnings("ignore", "Constraints have been set")
            self._sampler.after_trial(study, trial, state, values)


class LatePruner(BasePruner):
    """A pruner that is not asked before it could answer.

    Median and percentile read all trials of the study (17 ms) before they look whether their
    warm-up is over.
    """

    def __init__(self, pruner: BasePruner, *, n_warmup_steps: int) -> None:
        self._pruner = pruner
        self._n_warmup_steps = n_warmup_steps

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Ask the pruner if the warm-up of the trial is over."""
        if (trial.last_step or 0) < self._n_warmup_steps:
            return False
        return bool(self._pruner.prune(study, trial))


def make_sampler(name: Sampler, *, seed: int, space: Space, task: Task) -> BaseSampler:
    """Return the sampler of a study.

    Args:
        name: Which one.
        seed: The study's seed.
        space: What is searched; only a grid looks at it.
        task: What the images are; only a grid looks at it.

    Returns:
        A sampler that any number of workers may use at once.

    Raises:
        ConfigError: A grid would have too many points.
    """
    grid = grid_of(space, task) if name == "grid" else {}
    makers: Mapping[Sampler, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS),
        "random": lambda seed: RandomSampler(seed=seed),
        "grid": lambda _: GridSampler(grid, seed=seed),  # its seed orders the points it counts
        "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS),
        "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    }
    return SeededSampler(makers[name], seed)


def make_pruner(name: Pruner, *, n_rounds: int, rungs: Rungs | None = None) -> BasePruner:
    """Return the pruner of a study whose trials report `n_rounds` times.

    A schedule that anneals says less before its middle, and with small early images least. So no
    pruner looks earlier than that, but the halving ones, which begin at a quarter, and rungs, each
    of which ends a schedule of its own.

    Args:
        name: Which one.
        n_rounds: Reports of a trial.
        rungs: Where the schedules of a trial end, if it has several.
    """
    half, quarter = -(-n_rounds // 2), max(1, n_rounds // 4)
    makers: Mapping[Pruner, Callable[[], BasePruner]] = {
        "none": NopPruner,
        "median": lambda: LatePruner(MedianPruner(N_STARTUP_TRIALS), n_warmup_steps=half),
        "percentile": lambda: LatePruner(
            PercentilePruner(25.0, N_STARTUP_TRIALS), n_warmup_steps=half
        ),
        "sha": lambda: SuccessiveHalvingPruner(min_resource=quarter, reduction_factor=2),
        "hyperband": lambda: HyperbandPruner(
            min_resource=quarter, max_resource=max(n_rounds, quarter + 1), reduction_factor=2
        ),
        "rungs": lambda: (
            RungPruner(rungs, n_rounds=n_rounds, n_startup_trials=N_STARTUP_TRIALS)
            if rungs
            else NopPruner()  # trials of one round
        ),
    }
    return makers[name]()


def grid_of(space: Space, task: Task) -> type_of_grid:
    """Return every parameter's values for a grid search.

    Choices are taken as they are; a range gives up to three values, both ends included.

    Args:
        space: What is searched.
        task: What the images are.

    Returns:
        Values by parameter name. Parameters that only some points ask for are in it too.

    Raises:
        ConfigError: The grid has more than 20,000 points.
    """
    grid = {name: _values(dist) for name, dist in _distributions(space, task).items()}
    n_points = math.prod(len(values) for values in grid.values())
    if n_points > MAX_GRID_POINTS:
        widest = sorted(grid, key=lambda name: -len(grid[name]))[:3]
        raise ConfigError(
            f"sampler: a grid over this space has {n_points:.1e} points, at most "
            f"{MAX_GRID_POINTS} can be searched; narrow it with --vary (the widest parameters: "
            f"{', '.join(widest)}), or use --sampler tpe or random."
        )
    return grid or {"nothing": [0]}


def _distributions(space: Space, task: Task) -> dict[str, BaseDistribution]:
    """Collect the parameters by asking for many random points, in memory."""
    found: dict[str, BaseDistribution] = {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    optuna.logging.set_verbosity(verbosity)
    for _ in range(200):
        trial = study.ask()
        suggest_recipe(trial, space, task)
        found.update(trial.distributions)
    return found


def _values(distribution: BaseDistribution) -> list[str | int | float | bool]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # type: ignore[arg-type]
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        raise ConfigError(f"sampler: a grid cannot be made over {distribution}.")
    low, high, step = distribution.low, distribution.high, distribution.step
    if low == high:
        return [low]
    if step:
        n_steps = round((high - low) / step)
        chosen = {
            round(n_steps * index / (POINTS_PER_RANGE - 1)) for index in range(POINTS_PER_RANGE)
        }
        return [low + step * index for index in sorted(chosen)]
    shares = [index / (POINTS_PER_RANGE - 1) for index in range(POINTS_PER_RANGE)]
    if distribution.log:
        return [low * (high / low) ** share for share in shares]
    return [low + (high - low) * share for share in shares]
