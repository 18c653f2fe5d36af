import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial
from pydantic import TypeAdapter, ValidationError

from spaces.errors import SpaceError
from spaces.networks.builders import build_network
from spaces.recipe import recipe_from_json
from spaces.space import SPACES, Space, suggest_recipe
from spaces.suggestions.architecture import limit_depth
from spaces.task import Task

TASKS = (
    Task(image_size=4, channels=1, n_classes=2),
    Task(image_size=8, channels=1, n_classes=10),
    Task(image_size=32, channels=3, n_classes=10),
    Task(image_size=224, channels=3, n_classes=100),
)


@pytest.fixture(autouse=True)
def _silence_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


OPEN = Space(nesterov=(True, False), stem_widths=(8, 16))
ASKED_FIELDS = [field.name for field in fields(Space) if not field.name.startswith("max_")]


def one_value(field: str) -> Any:
    """Fix a field at the first of its values."""
    value = getattr(OPEN, field)
    is_range = Ellipsis not in get_args(get_type_hints(Space)[field])
    return (value[0],) * (2 if is_range else 1)


def field_of(parameter: str) -> str:
    """Find the field that a parameter is asked from."""
    stem = parameter.partition(".")[2].rstrip("_0123456789")
    stem = "optimizers" if stem == "name" else stem
    (field,) = {stem, f"{stem}s", f"{stem}es", f"{stem[:-1]}ies"} & set(ASKED_FIELDS)
    return field


def points(
    space: Space, task: Task, n_points: int, sampler: BaseSampler | None = None
) -> list[optuna.Trial]:
    """Ask for points of a space, each with a score that no sampler can learn from."""
    study = optuna.create_study(sampler=sampler or RandomSampler(seed=0))
    trials = []
    for number in range(n_points):
        trials.append(study.ask())
        suggest_recipe(trials[-1], space, task)
        study.tell(trials[-1], float(number % 7))
    return trials


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task.image_size))
def test_every_random_point_is_a_recipe_that_comes_back_from_json(name: str, task: Task) -> None:
    for trial in points(SPACES[name], task, 50):
        recipe = suggest_recipe(trial, SPACES[name], task)

        assert recipe_from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("make_sampler", "n_points"),
    [
        (lambda: RandomSampler(seed=1), 200),
        (lambda: TPESampler(seed=1, n_startup_trials=180), 200),
        (lambda: TPESampler(seed=1, n_startup_trials=30, multivariate=True, group=True), 50),
    ],
    ids=["random", "tpe", "multivariate"],
)
def test_distributions_never_change_within_a_study(
    make_sampler: Callable[[], BaseSampler], n_points: int, cifar: Task
) -> None:
    seen: dict[str, BaseDistribution] = {}

    for trial in points(Space(), cifar, n_points, make_sampler()):
        for name, distribution in trial.distributions.items():
            assert seen.setdefault(name, distribution) == distribution

    assert {name.partition(".")[0] for name in seen} == {
        "architecture",
        "optimizer",
        "augmentation",
    }


def test_only_stages_that_exist_are_asked_for(cifar: Task) -> None:
    depths = set()
    for trial in points(Space(), cifar, 60):
        depth = trial.params["architecture.depth"]
        depths.add(depth)
        for part in ("kernel_size", "n_convolutions", "growth"):
            asked = {
                int(name[-1]) for name in trial.params if name.startswith(f"architecture.{part}_")
            }
            first = 2 if part == "growth" else 1
            assert asked == set(range(first, depth + 1))
        assert len(suggest_recipe(trial, Space(), cifar).architecture.stages) == depth
    assert depths == {2, 3, 4}


@pytest.mark.parametrize("field", ASKED_FIELDS)
def test_a_field_with_one_value_asks_nothing(field: str, cifar: Task) -> None:
    space = replace(OPEN, **{field: one_value(field)})

    asked = {name for trial in points(space, cifar, 15) for name in trial.params}

    assert not {name for name in asked if field_of(name) == field}


def test_every_field_with_several_values_is_asked_from(cifar: Task) -> None:
    asked = {name for trial in points(OPEN, cifar, 60) for name in trial.params}

    assert {field_of(name) for name in asked} == set(ASKED_FIELDS)


def test_a_space_without_choice_asks_nothing(cifar: Task) -> None:
    space = replace(Space(), **{field: one_value(field) for field in ASKED_FIELDS})

    recipe = suggest_recipe(FixedTrial({}), space, cifar)

    assert [stage.width for stage in recipe.architecture.stages] == [8, 8]
    assert recipe.augmentation.flip == "none"


def test_depth_is_limited_by_the_pixels() -> None:
    limits = {size: limit_depth((2, 4), size) for size in (4, 7, 8, 12, 16, 28, 32, 64, 224)}

    assert limits == {
        4: (1, 1),
        7: (2, 2),
        8: (2, 2),
        12: (2, 3),
        16: (2, 3),
        28: (2, 4),
        32: (2, 4),
        64: (2, 4),
        224: (2, 4),
    }


def test_networks_of_the_default_space_have_at_most_one_and_a_half_million_weights(
    cifar: Task,
) -> None:
    counts = []
    for trial in points(Space(), cifar, 100):
        network = build_network(suggest_recipe(trial, Space(), cifar).architecture, cifar)
        counts.append(sum(weight.numel() for weight in network.parameters()))

    assert max(counts) < 1_700_000
    assert sum(count > 20_000 for count in counts) > 90


def test_a_wide_kernel_pays_with_its_width(cifar: Task) -> None:
    space = Space(
        depth=(1, 1), width=(128, 128), kernel_sizes=(7,), n_convolutions=(2, 2),
        stems=("whitening",), max_stage_weights=100_000,
    )  # fmt: skip

    (trial,) = points(space, cifar, 1)
    (stage,) = suggest_recipe(trial, space, cifar).architecture.stages

    # 49 * 32 * (24 + 32) = 87,808 and 49 * 40 * (24 + 40) = 125,440 weights.
    assert stage.width == 32


def test_toml_lists_and_single_values_are_choices() -> None:
    adapter = TypeAdapter(Space)

    space = adapter.validate_python(
        {
            "flips": ["none"],
            "kernel_sizes": 3,
            "norms": "group",
            "width": [8, 16],
            "max_width": [64],
        }
    )

    assert space == Space(
        flips=("none",), kernel_sizes=(3,), norms=("group",), width=(8, 16), max_width=64
    )


@pytest.mark.parametrize("values", [{"flip": ["none"]}, {"flips": ["sideways"]}, {"width": [8]}])
def test_toml_with_unknown_keys_or_values_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Space).validate_python(values)


def test_a_space_comes_back_from_json() -> None:
    adapter = TypeAdapter(Space)
    for space in SPACES.values():
        assert adapter.validate_json(adapter.dump_json(space)) == space


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flips": ()}, r"space\.flips must hold different values"),
        ({"flips": ("none", "none")}, r"space\.flips must hold different values"),
        ({"kernel_sizes": (4,)}, r"space\.kernel_sizes must be among 1, 3, 5, 7, got 4"),
        ({"batch_sizes": (0,)}, r"space\.batch_sizes must hold numbers above 0, got 0"),
        ({"dropout": (0.5, 0.1)}, r"space\.dropout must be two numbers, the lower one first"),
        ({"dropout": (0.0, 1.5)}, r"space\.dropout .* from 0 to 0.9, got"),
        ({"learning_rate_factor": (0.0, 1.0)}, r"space\.learning_rate_factor .* from 1e-06"),
        ({"max_width": 0}, r"space\.max_width must be at least 1, got 0"),
    ],
)
def test_bad_values_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Space(**changes)  # type: ignore[arg-type]


def test_every_field_refuses_what_nothing_can_build() -> None:
    # In a process of its own, since in this one the shape checks would come first.
    code = f"""
from spaces.errors import SpaceError
from spaces.space import Space
for field in {ASKED_FIELDS}:
    try:
        Space(**{{field: (-1, -2)}})
    except SpaceError as error:
        print(str(error).partition(" ")[0])
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [f"space.{field}" for field in ASKED_FIELDS]


def test_fingerprints_differ_exactly_where_spaces_do() -> None:
    prints = {space.fingerprint() for space in SPACES.values()}

    assert len(prints) == len(SPACES)
    assert Space().fingerprint() == SPACES["default"].fingerprint()
    assert replace(Space(), crop=(0.0, 0.0)).fingerprint() not in prints


def test_digits_are_never_mirrored(digits: Task) -> None:
    space = SPACES["digits"]

    flips = {
        suggest_recipe(trial, space, digits).augmentation.flip
        for trial in points(space, digits, 20)
    }

    assert flips == {"none"}


def test_importing_the_space_loads_neither_torch_nor_optuna() -> None:
    code = "import sys, spaces.known, spaces.space; print({'torch', 'optuna'} & {*sys.modules})"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
