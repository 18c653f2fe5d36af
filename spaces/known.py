"""Good first configurations, so that no study starts from chance.

Most of them follow airbench (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a
single GPU", arXiv 2404.00498) with narrower networks for a CPU; the others are there for
variety, which ensembles need. They are written down as what each would answer to every question
of a space; a narrowed space asks fewer questions and gets the nearest legal answers.
"""

from collections.abc import Mapping, Sequence

from spaces.ranges import Space
from spaces.recipe import Recipe
from spaces.space import suggest_recipe
from spaces.task import Task
from spaces.trial import Value

Answers = Mapping[str, Value]


def known_parameters(space: Space, task: Task) -> list[dict[str, Value]]:
    """Return the good first configurations, the cheapest and safest first.

    Args:
        space: What may vary; the answers are fitted to it.
        task: Size and channels of the images.

    Returns:
        Values by parameter name, each a point of the space, as `study.enqueue_trial` takes
        them; no two make the same recipe.
    """
    return list(_found(space, task).values())


def known_recipes(space: Space, task: Task) -> list[Recipe]:
    """Return the recipes of `known_parameters`, in the same order."""
    return list(_found(space, task))


def _found(space: Space, task: Task) -> dict[Recipe, dict[str, Value]]:
    """Answer the questions of a space for each known configuration; each recipe once."""
    found: dict[Recipe, dict[str, Value]] = {}
    for answers in _KNOWN:
        trial = _Prompter(answers)
        found.setdefault(suggest_recipe(trial, space, task), trial.asked)
    return found


class _Prompter:
    """A trial that answers each question with the legal value nearest to a wanted one."""

    def __init__(self, answers: Answers) -> None:
        self.asked: dict[str, Value] = {}
        self._answers = answers

    def suggest_categorical(self, name: str, choices: Sequence[Value | None]) -> Value:
        """Choose the wanted value, else the nearest number, else the first choice."""
        wanted = self._answers.get(name)
        legal = [choice for choice in choices if choice is not None]
        chosen = legal[0]
        if wanted in legal:
            chosen = legal[legal.index(wanted)]
        elif isinstance(wanted, int | float):
            chosen = min(legal, key=lambda value: abs(float(value) - wanted))
        self.asked[name] = chosen
        return chosen

    def suggest_int(
        self,
        name: str,
        low: int,
        high: int,
        *,
        step: int = 1,
        log: bool = False,  # noqa: ARG002
    ) -> int:
        """Choose the nearest whole number of the grid."""
        chosen = round(self._nearest(name, low, high, step))
        self.asked[name] = chosen
        return chosen

    def suggest_float(
        self,
        name: str,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,  # noqa: ARG002
    ) -> float:
        """Choose the nearest number of the grid, or of all where there is no grid."""
        chosen = self._nearest(name, low, high, step)
        self.asked[name] = chosen
        return chosen

    def _nearest(self, name: str, low: float, high: float, step: float | None) -> float:
        wanted = min(max(float(self._answers.get(name, low)), low), high)
        # Rounded, since 0.8 + 0.05 is 0.8500000000000001 and the wish was 0.85.
        return round(low + round((wanted - low) / step) * step, 10) if step else wanted


def _stages(width: int, *growths: float, first: int = 2, others: int = 2) -> Answers:
    """Answer the questions about stages of kernel 3.

    Args:
        width: Of the first stage.
        growths: From each stage to the next.
        first: Convolutions of the first stage.
        others: Convolutions of each other stage.
    """
    numbers = range(1, len(growths) + 2)
    return {
        "architecture.depth": len(numbers),
        "architecture.width": width,
        **{f"architecture.growth_{n}": growth for n, growth in enumerate(growths, start=2)},
        **{f"architecture.kernel_size_{n}": 3 for n in numbers},
        **{f"architecture.n_convolutions_{n}": first if n == 1 else others for n in numbers},
    }


_LIGHT_AUGMENTATION: Answers = {
    "augmentation.policy": "none",
    "augmentation.mixing": "none",
    "augmentation.flip": "alternating",
    "augmentation.crop": 2 / 32,
    "augmentation.rotation": 0.0,
    "augmentation.scale": 0.0,
    "augmentation.shear": 0.0,
    "augmentation.jitter": 0.0,
    "augmentation.erasing": 0.0,
    "augmentation.early_size": 1.0,
}

_AIRBENCH: Answers = {
    **_LIGHT_AUGMENTATION,
    "augmentation.early_size": 0.75,
    "architecture.family": "plain",
    "architecture.stem": "whitening",
    "architecture.pooling": "max",
    "architecture.norm": "batch",
    "architecture.activation": "relu",
    "architecture.head": "max",
    "architecture.dropout": 0.0,
    "architecture.initialization": "identity",
    "architecture.logit_scale": 1 / 9,
    "optimizer.name": "sgd",
    "optimizer.batch_size": 512,
    "optimizer.momentum": 0.85,
    "optimizer.learning_rate_factor": 1.0,
    "optimizer.weight_decay_factor": 1.0,
    "optimizer.nesterov": True,
    "optimizer.norm_bias_factor": 64.0,
    "optimizer.schedule": "linear",
    "optimizer.warmup": 0.23,
    "optimizer.label_smoothing": 0.2,
    "optimizer.averaging": "lookahead",
}

# For few images: on 10,000 of CIFAR-10, whole ones, at equal time it is 4 points above batch 512
# and a last stage of 64 channels (75.6 to 71.9 % in 48 and 41 s of one core), since it takes more
# steps.
_FEW_IMAGES: Answers = {
    **_AIRBENCH,
    **_stages(16, 4.0, 2.0, first=1),
    "optimizer.batch_size": 256,
    "optimizer.learning_rate_factor": 1.45,
}

_RESIDUAL_ADAMW: Answers = {
    **_LIGHT_AUGMENTATION,
    "architecture.family": "residual",
    "architecture.stem": "convolution",
    "architecture.stem_width": 16,
    "architecture.pooling": "max",
    "architecture.norm": "batch",
    "architecture.activation": "gelu",
    "architecture.head": "average",
    "architecture.dropout": 0.0,
    "architecture.initialization": "he",
    "architecture.logit_scale": 1.0,
    "optimizer.name": "adamw",
    "optimizer.batch_size": 256,
    "optimizer.momentum": 0.9,
    "optimizer.learning_rate_factor": 1.0,
    "optimizer.weight_decay_factor": 1.0,
    "optimizer.schedule": "cosine",
    "optimizer.warmup": 0.1,
    "optimizer.label_smoothing": 0.1,
    "optimizer.averaging": "ema",
}

_TUTORIAL: Answers = {
    **_LIGHT_AUGMENTATION,
    "augmentation.flip": "random",
    "architecture.family": "plain",
    "architecture.stem": "convolution",
    "architecture.stem_width": 16,
    "architecture.pooling": "max",
    "architecture.norm": "batch",
    "architecture.activation": "relu",
    "architecture.head": "average",
    "architecture.dropout": 0.1,
    "architecture.initialization": "he",
    "architecture.logit_scale": 1.0,
    "optimizer.name": "sgd",
    "optimizer.batch_size": 256,
    "optimizer.momentum": 0.9,
    "optimizer.learning_rate_factor": 0.5,
    "optimizer.weight_decay_factor": 0.5,
    "optimizer.nesterov": True,
    "optimizer.norm_bias_factor": 1.0,
    "optimizer.schedule": "cosine",
    "optimizer.warmup": 0.1,
    "optimizer.label_smoothing": 0.1,
    "optimizer.averaging": "none",
}

_KNOWN: Sequence[Answers] = (
    _FEW_IMAGES,
    {**_FEW_IMAGES, "architecture.family": "residual"},
    {**_AIRBENCH, **_stages(16, 4.0, 1.0)},
    {**_AIRBENCH, **_stages(16, 4.0, 1.0), "architecture.family": "residual"},
    {**_RESIDUAL_ADAMW, **_stages(16, 2.0, 2.0)},
    {**_AIRBENCH, **_stages(32, 2.0, 2.0)},
    {**_TUTORIAL, **_stages(32, 2.0, 2.0, first=1, others=1)},
    # With 50,000 images of CIFAR-10 it gets furthest. The smallest early images fit it: on 10,000,
    # nine epochs of them are above eight from three quarters of the side, at equal time and with
    # each of three seeds (74.4 to 73.6 % in the mean).
    {**_AIRBENCH, **_stages(32, 4.0, 1.0), "augmentation.early_size": 0.5},
    {
        **_RESIDUAL_ADAMW,
        **_stages(32, 2.0, 2.0),
        "architecture.stem": "whitening",
        "architecture.activation": "silu",
        "augmentation.mixing": "cutmix",
        "augmentation.mixing_alpha": 1.0,
    },
    # On 10,000 images of CIFAR-10, whole in all steps, 10 epochs, one seed: 78.6 % in 33 s of one
    # core; the first configuration reaches 76.1 % in 31 s.
    {**_FEW_IMAGES, "optimizer.name": "muon", "optimizer.learning_rate_factor": 1.0},
)
