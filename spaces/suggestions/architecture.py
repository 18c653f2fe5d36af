"""From a trial to the shape of a network."""

from math import log2

from spaces.architecture import Architecture, Stage, Stem, n_whitening_filters, stem_stride
from spaces.ranges import Space
from spaces.suggestions.asking import ask_choice, ask_number, ask_whole
from spaces.task import Task
from spaces.trial import Trial


def suggest_architecture(trial: Trial, space: Space, task: Task) -> Architecture:
    """Sample the shape of a network; every name it asks for starts with `architecture.`.

    Only what exists is asked for: no stage beyond the depth, no growth of the first stage, no
    width of a stem that sets its own.
    """
    stem = ask_choice(trial, "architecture.stem", space.stems)
    stem_width = space.stem_widths[0]
    if stem == "convolution":
        stem_width = ask_choice(trial, "architecture.stem_width", space.stem_widths)
    return Architecture(
        family=ask_choice(trial, "architecture.family", space.families),
        stem=stem,
        stem_width=stem_width,
        stages=_suggest_stages(trial, space, task, _entering(stem, stem_width, task)),
        pooling=ask_choice(trial, "architecture.pooling", space.poolings),
        norm=ask_choice(trial, "architecture.norm", space.norms),
        activation=ask_choice(trial, "architecture.activation", space.activations),
        head=ask_choice(trial, "architecture.head", space.heads),
        dropout=ask_number(trial, "architecture.dropout", space.dropout, step=0.1),
        initialization=ask_choice(trial, "architecture.initialization", space.initializations),
        logit_scale=ask_choice(trial, "architecture.logit_scale", space.logit_scales),
    )


def limit_depth(depth: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Cut a range of depths to the stages that still have pixels to halve.

    An image of 8 px has 2 stages at the most (8, 4, 2), one of 32 px has 4.
    """
    most = max(1, round(log2(image_size / stem_stride(image_size))) - 1)
    return min(depth[0], most), min(depth[1], most)


def _entering(stem: Stem, stem_width: int, task: Task) -> int:
    """Return the channels that enter the first stage."""
    if stem == "convolution":
        return stem_width
    return n_whitening_filters(task.channels, stem_stride(task.image_size))


def _suggest_stages(trial: Trial, space: Space, task: Task, in_channels: int) -> tuple[Stage, ...]:
    """Sample the stages, each no wider than the limits of the space."""
    depth = ask_whole(trial, "architecture.depth", limit_depth(space.depth, task.image_size))
    wanted = float(ask_whole(trial, "architecture.width", space.width, step=8))
    stages: list[Stage] = []
    for number in range(1, depth + 1):
        if number > 1:
            growth = f"architecture.growth_{number}"
            wanted *= ask_number(trial, growth, space.growth, step=0.5)
        kernel_size = ask_choice(trial, f"architecture.kernel_size_{number}", space.kernel_sizes)
        n_convolutions = ask_whole(
            trial, f"architecture.n_convolutions_{number}", space.n_convolutions
        )
        wanted = min(wanted, space.max_width)
        width = int(wanted) if number == 1 else max(8, 8 * round(wanted / 8))
        stage = Stage(
            width=min(width, space.max_width),
            kernel_size=kernel_size,
            n_convolutions=n_convolutions,
        )
        stages.append(_narrowed(stage, in_channels, space.max_stage_weights))
        in_channels = stages[-1].width
    return tuple(stages)


def _narrowed(stage: Stage, in_channels: int, max_weights: int) -> Stage:
    """Return the stage at the largest width, in steps of 8, whose weights are few enough."""
    width = stage.width
    while width > 8 and _n_weights(stage, in_channels, width) > max_weights:
        width = (width - 1) // 8 * 8
    return Stage(width=width, kernel_size=stage.kernel_size, n_convolutions=stage.n_convolutions)


def _n_weights(stage: Stage, in_channels: int, width: int) -> int:
    """Count the weights of the convolutions of a stage."""
    return stage.kernel_size**2 * width * (in_channels + (stage.n_convolutions - 1) * width)
