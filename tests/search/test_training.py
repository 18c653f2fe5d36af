import gc
import io
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from padding import pad_images
from torch import Tensor

from search import training
from search.teaching import Teaching
from search.training import (
    Diverged,
    Interrupted,
    Round,
    TrainingImages,
    _Training,
    n_steps_per_epoch,
    train,
)
from spaces.architecture import Architecture, Stage
from spaces.augmentation import NO_AUGMENTATION, Mixing
from spaces.networks.blocks import WhiteningConvolution
from spaces.networks.convnet import ConvNet
from spaces.optimizer import Optimizer
from spaces.recipe import Recipe
from spaces.task import Task
from spaces.transforms import crop, normalize

TASK = Task(image_size=8, channels=1, n_classes=3)
PLAIN = Recipe(
    architecture=Architecture(
        family="plain",
        stem="whitening",
        stem_width=8,
        stages=(Stage(width=8, kernel_size=3, n_convolutions=1),) * 2,
        pooling="max",
        norm="batch",
        activation="relu",
        head="max",
        dropout=0.0,
        initialization="identity",
        logit_scale=0.25,
    ),
    optimizer=Optimizer(
        name="sgd",
        learning_rate=0.5,
        momentum=0.85,
        nesterov=True,
        weight_decay=0.001,
        norm_bias_factor=8.0,
        schedule="linear",
        warmup=0.2,
        batch_size=16,
        label_smoothing=0.1,
        averaging="none",
    ),
    augmentation=replace(NO_AUGMENTATION, crop=0.125),
)
AVERAGES: dict[str, Recipe] = {
    "sgd, lookahead, dropout, cutmix, alternating flips": Recipe(
        architecture=replace(PLAIN.architecture, dropout=0.3),
        optimizer=replace(PLAIN.optimizer, averaging="lookahead"),
        augmentation=replace(PLAIN.augmentation, flip="alternating", mixing="cutmix"),
    ),
    "muon, small at first": Recipe(
        architecture=PLAIN.architecture,
        optimizer=replace(PLAIN.optimizer, name="muon", learning_rate=0.1, nesterov=False),
        augmentation=replace(PLAIN.augmentation, early_size=0.75),
    ),
    "adamw, ema, cosine, trivial": Recipe(
        architecture=replace(PLAIN.architecture, stem="convolution", norm="group"),
        optimizer=replace(
            PLAIN.optimizer,
            name="adamw",
            learning_rate=0.01,
            averaging="ema",
            schedule="cosine",
        ),
        augmentation=replace(PLAIN.augmentation, flip="random", policy="trivial", jitter=0.2),
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def bars(n: int = 60) -> TrainingImages:
    """Noisy images of three classes: a bright bar at the top, in the middle or at the bottom."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = torch.randint(100, (n, 8, 8, 1), generator=generator)
    for label, top in enumerate((0, 3, 6)):
        images[labels == label, top : top + 2] += 120
    return TrainingImages(
        images=pad_images(images.to(torch.uint8), 2),
        labels=labels,
        rows=torch.arange(n),
        pad=2,
        mean=(0.3,),
        std=(0.25,),
    )


def run(recipe: Recipe, images: TrainingImages | None = None, **changes: Any) -> Iterator[Round]:
    settings: dict[str, Any] = {
        "n_steps": 20,
        "n_rounds": 4,
        "seed": 1,
        "autocast_dtype": None,
        **changes,
    }
    return train(recipe, TASK, bars() if images is None else images, **settings)


def weights_of(finished: Round) -> list[Tensor]:
    return [tensor.clone() for tensor in finished.network.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def through_a_file(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def accuracy(finished: Round, images: TrainingImages) -> float:
    with torch.no_grad():
        logits = finished.network(normalize(images.images[:, 2:-2, 2:-2], (0.3,), (0.25,)))
    return float((logits.argmax(1) == images.labels).float().mean())


@pytest.mark.parametrize("recipe", [PLAIN, *AVERAGES.values()], ids=["plain", *AVERAGES])
def test_an_easy_task_is_learnt(recipe: Recipe) -> None:
    images = bars()

    *_, last = run(recipe, images, n_steps=90)

    assert accuracy(last, images) > 0.9


def test_only_the_chosen_rows_are_trained_on() -> None:
    images = bars()
    wrong = images.labels.clone()
    wrong[30:] = 0

    *_, last = run(PLAIN, replace(images, labels=wrong, rows=torch.arange(30)))
    *_, expected = run(PLAIN, replace(images, rows=torch.arange(30)))

    assert same(weights_of(last), weights_of(expected))


def test_the_rows_of_the_next_step_are_announced_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced: list[tuple[int, list[int]]] = []
    trained: list[list[int]] = []

    def look(images: Tensor, rows: Tensor, *others: Any, **options: Any) -> Tensor:
        trained.append(rows.tolist())
        return crop(images, rows, *others, **options)

    monkeypatch.setattr(training, "crop", look)
    images = replace(bars(), announce=lambda rows: announced.append((len(trained), rows.tolist())))

    list(run(PLAIN, images, n_steps=8))

    # Three steps of 16 images in an epoch of 60: the first of the next is not known yet.
    whitening, *steps = announced
    assert len(whitening[1]) == 60
    # At the first step of an epoch its own rows too.
    assert [step for step, _ in steps] == [0, 0, 1, 3, 3, 4, 6, 6, 7]
    assert [rows for _, rows in steps[:-1]] == trained


def test_rounds_end_evenly_over_the_schedule_the_last_at_its_end() -> None:
    rounds = list(run(PLAIN, n_steps=10, n_rounds=4))

    # Ends at ceil(10 r / 4) steps of 16 images.
    assert [finished.number for finished in rounds] == [1, 2, 3, 4]
    assert [finished.images_seen for finished in rounds] == [48, 80, 128, 160]
    assert all(not finished.network.training for finished in rounds)
    assert len({id(finished.network) for finished in rounds}) == 1
    assert rounds[0].seconds < rounds[3].seconds


def test_there_are_no_more_rounds_than_steps() -> None:
    assert len(list(run(PLAIN, n_steps=3, n_rounds=10))) == 3


def test_a_batch_holds_at_most_all_images_and_partial_batches_are_dropped() -> None:
    huge = replace(PLAIN, optimizer=replace(PLAIN.optimizer, batch_size=1000))

    (only,) = run(huge, n_steps=2, n_rounds=1)

    assert only.images_seen == 2 * 60
    assert n_steps_per_epoch(60, 1000) == 1
    assert n_steps_per_epoch(60, 16) == 3


def without_batch_norm(name: str) -> Recipe:
    recipe = AVERAGES[name]
    return replace(recipe, architecture=replace(recipe.architecture, norm="group", dropout=0.0))


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("n_parts", [2, 3, 16])
def test_a_batch_in_parts_makes_the_same_step(name: str, n_parts: int) -> None:
    recipe = without_batch_norm(name)
    (whole,) = run(recipe, n_steps=1, n_rounds=1)
    expected = weights_of(whole)

    (parted,) = run(recipe, n_steps=1, n_rounds=1, n_parts=n_parts)

    assert parted.train_loss == pytest.approx(whole.train_loss, abs=1e-6)
    for one, two in zip(weights_of(parted), expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_batch_norm_sees_the_parts_and_an_easy_task_is_learnt_all_the_same() -> None:
    images = bars()
    *_, whole = run(PLAIN, images, n_steps=90)
    before = weights_of(whole)

    *_, last = run(PLAIN, images, n_steps=90, n_parts=4)

    assert not same(weights_of(last), before)
    assert accuracy(last, images) > 0.9


def test_a_training_in_parts_goes_on_bit_for_bit() -> None:
    name = "sgd, lookahead, dropout, cutmix, alternating flips"
    first, *_, last = (
        (each, through_a_file(each.state())) for each in run(AVERAGES[name], n_parts=3)
    )
    expected = weights_of(last[0])

    *_, resumed = run(AVERAGES[name], n_parts=3, resume=first[1])

    assert same(weights_of(resumed), expected)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(name: str) -> None:
    unbroken, states = [], []
    for finished in run(AVERAGES[name]):
        unbroken.append((weights_of(finished), finished.train_loss, finished.images_seen))
        states.append(through_a_file(finished.state()))

    for number, state in enumerate(states[:-1], start=1):
        torch.manual_seed(999)
        resumed = list(run(AVERAGES[name], resume=state))

        assert [finished.number for finished in resumed] == list(range(number + 1, 5))
        last_weights, last_loss, last_seen = unbroken[-1]
        assert same(weights_of(resumed[-1]), last_weights)
        assert resumed[-1].train_loss == last_loss
        assert resumed[-1].images_seen == last_seen
        assert resumed[-1].seconds > resumed[0].seconds or len(resumed) == 1


@pytest.mark.parametrize("name", AVERAGES)
def test_a_training_resumed_between_rungs_equals_an_unbroken_one(name: str) -> None:
    *_, unbroken = run(AVERAGES[name], n_rounds=8, rungs=(2, 4))

    for number in (1, 2, 3, 5):
        interrupted = islice(run(AVERAGES[name], n_rounds=8, rungs=(2, 4)), number)
        state = through_a_file([finished.state() for finished in interrupted][-1])
        *_, resumed = run(AVERAGES[name], n_rounds=8, rungs=(2, 4), resume=state)

        assert same(weights_of(resumed), weights_of(unbroken))


def test_a_rung_is_the_very_training_that_ends_there() -> None:
    # Only the bias of a whitening stem, which trains for a share of all steps, would differ.
    recipe = AVERAGES["adamw, ema, cosine, trivial"]

    *_, short = run(recipe, n_steps=10)
    at_the_rung, beyond = list(run(recipe, n_steps=20, n_rounds=4, rungs=(2,)))[1:3]
    first, second = (
        weights_of(list(islice(run(recipe, n_steps=20, n_rounds=4, rungs=(2,)), number))[-1])
        for number in (2, 3)
    )

    assert same(first, weights_of(short))
    assert not same(second, first)
    assert (at_the_rung.images_seen, beyond.images_seen) == (160, 240)


def test_the_learning_rate_rises_and_falls_anew_after_each_rung(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors: list[float] = []
    monkeypatch.setattr(training, "set_learning_rate", lambda _, factor: factors.append(factor))

    list(run(PLAIN, n_steps=20, n_rounds=4, rungs=(1, 2)))

    # Schedules of 5, 5 and 10 steps, a fifth of each is warm-up; then down to 0.07.
    short, long = [0.2, 1.0, 0.7675, 0.535, 0.3025], [0.2, 0.6, 1.0, 0.88375, 0.7675]
    assert factors[:15] == pytest.approx(short + short + long)


def test_a_rung_beyond_the_last_round_is_none() -> None:
    *_, expected = run(PLAIN, n_steps=3, n_rounds=3)
    *_, last = run(PLAIN, n_steps=3, n_rounds=10, rungs=(3, 5))

    assert same(weights_of(last), weights_of(expected))


def test_a_finished_training_has_nothing_to_resume() -> None:
    *_, last = run(PLAIN)

    assert list(run(PLAIN, resume=last.state())) == []


@pytest.mark.parametrize("name", AVERAGES)
def test_neither_rounds_nor_what_happens_between_them_change_the_training(name: str) -> None:
    *_, expected = run(AVERAGES[name], n_rounds=1)

    weights: list[Tensor] = []
    for finished in run(AVERAGES[name], n_rounds=5):
        torch.rand(17)
        weights = weights_of(finished)

    assert same(weights, weights_of(expected))


@pytest.mark.parametrize("name", AVERAGES)
def test_one_seed_gives_one_network_and_another_seed_another(name: str) -> None:
    first, again, other = (list(run(AVERAGES[name], seed=seed))[-1] for seed in (1, 1, 2))

    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(other))


def test_a_saved_state_does_not_change_when_the_training_goes_on() -> None:
    rounds = run(AVERAGES["adamw, ema, cosine, trivial"])
    state = next(rounds).state()
    before = through_a_file(state)
    next(rounds)

    network, network_before = state["network"], before["network"]
    assert isinstance(network, dict)
    assert isinstance(network_before, dict)
    assert same(list(network.values()), list(network_before.values()))


def test_whitening_filters_never_train_and_their_bias_only_at_first() -> None:
    filters, biases = [], []
    for finished in run(PLAIN, n_steps=20, n_rounds=20):
        stem = next(
            module
            for module in finished.network.modules()
            if isinstance(module, WhiteningConvolution)
        )
        assert stem.bias is not None
        filters.append(stem.weight.clone())
        biases.append(stem.bias.detach().clone())

    moved = [not torch.equal(one, two) for one, two in pairwise(biases)]
    assert same(filters[:1] * 20, filters)
    # Of 20 steps the first 6 train the bias.
    assert moved == [True] * 5 + [False] * 14


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    steep = replace(PLAIN, optimizer=replace(PLAIN.optimizer, learning_rate=1e30))

    with pytest.raises(Diverged, match="in steps 1 to 5"):
        list(run(steep))


def test_an_interruption_ends_the_training_before_the_next_step() -> None:
    answers = iter([False] * 7 + [True])
    rounds = run(PLAIN, interrupted=lambda: next(answers))

    next(rounds)
    with pytest.raises(Interrupted, match="after 7 of 20 steps"):
        next(rounds)


def test_bf16_learns_as_float32_does() -> None:
    images = bars()

    *_, last = run(PLAIN, images, n_steps=90, autocast_dtype=torch.bfloat16)

    assert accuracy(last, images) > 0.9


def test_mixed_images_are_trained_on_both_labels() -> None:
    # With shares around a half the loss cannot fall below the entropy of the mixed labels.
    mixup = replace(
        PLAIN,
        optimizer=replace(PLAIN.optimizer, label_smoothing=0.0),
        augmentation=replace(PLAIN.augmentation, mixing="mixup", mixing_alpha=100.0),
    )

    *_, last = run(mixup, n_steps=150)

    # Two thirds of the pairs have different labels: 2/3 log 2 = 0.46.
    assert 0.4 < last.train_loss < 0.9


def brightest_third(images: Tensor) -> Tensor:
    """Say which third of the rows is the brightest."""
    rows = images.mean(dim=(1, 3))
    thirds = [rows[:, first:last].mean(1) for first, last in ((0, 2), (3, 5), (6, 8))]
    return (4 * torch.stack(thirds, dim=1)).log_softmax(dim=1)


def taught(share: float, images: TrainingImages | None = None) -> TrainingImages:
    teaching = Teaching(teacher=brightest_third, temperature=2.0, share=share)
    return replace(bars() if images is None else images, teaching=teaching)


def test_a_teacher_is_believed_against_the_labels() -> None:
    images = bars()
    wrong = replace(images, labels=images.labels.roll(1))

    *_, last = run(PLAIN, taught(1.0, wrong), n_steps=90)
    *_, untaught = run(PLAIN, wrong, n_steps=90)

    assert accuracy(last, images) > 0.9
    assert accuracy(untaught, images) < 0.1


@pytest.mark.parametrize("name", AVERAGES)
def test_a_teacher_without_a_share_changes_nothing_bit_for_bit(name: str) -> None:
    whole = replace(AVERAGES[name].augmentation, early_size=1.0)  # a teacher sees no others
    *_, last = run(AVERAGES[name], taught(0.0))
    *_, expected = run(replace(AVERAGES[name], augmentation=whole))
    *_, other = run(AVERAGES[name], taught(0.1))

    assert same(weights_of(last), weights_of(expected))
    assert last.train_loss == expected.train_loss
    assert not same(weights_of(other), weights_of(expected))


@pytest.mark.parametrize("name", AVERAGES)
def test_a_resumed_lesson_equals_an_unbroken_one_bit_for_bit(name: str) -> None:
    unbroken = list(run(AVERAGES[name], taught(0.9), n_rounds=3, autocast_dtype=torch.bfloat16))
    rounds = run(AVERAGES[name], taught(0.9), n_rounds=3, autocast_dtype=torch.bfloat16)
    state = through_a_file(next(rounds).state())

    *_, resumed = run(
        AVERAGES[name], taught(0.9), n_rounds=3, autocast_dtype=torch.bfloat16, resume=state
    )

    assert same(weights_of(resumed), weights_of(unbroken[-1]))
    assert resumed.train_loss == unbroken[-1].train_loss


def sides_of(images: TrainingImages, **changes: Any) -> list[int]:
    """Train with small images at first; return the side of those of each step."""
    sides = []

    def note(_: object, inputs: tuple[Tensor]) -> None:
        sides.append(inputs[0].shape[-1])

    recipe = replace(PLAIN, augmentation=replace(PLAIN.augmentation, early_size=0.75))
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: note(module, inputs) if isinstance(module, ConvNet) else None
    )
    try:
        list(run(recipe, images, **changes))
    finally:
        hook.remove()
    return sides


def test_two_fifths_of_a_schedule_train_on_small_images() -> None:
    assert sides_of(bars(), n_steps=10) == [6] * 4 + [8] * 6


def test_the_only_step_of_a_schedule_has_whole_images() -> None:
    assert sides_of(bars(), n_steps=1) == [8]
    assert sides_of(bars(), n_steps=2) == [8, 8]


def test_after_a_rung_images_are_small_again() -> None:
    small_and_whole = [6] * 2 + [8] * 3

    assert sides_of(bars(), n_steps=10, n_rounds=2, rungs=(1,)) == small_and_whole * 2


def test_a_teacher_is_only_asked_about_whole_images() -> None:
    teaching = Teaching(teacher=brightest_third, temperature=3.0, share=0.5)

    assert sides_of(replace(bars(), teaching=teaching), n_steps=10) == [8] * 10


@pytest.mark.parametrize("mixing", get_args(Mixing))
def test_a_student_that_is_its_own_teacher_has_no_loss_so_both_see_the_same_images(
    mixing: Mixing,
) -> None:
    # Group norm and no dropout: the network says the same whether it trains or not.
    recipe = replace(
        PLAIN,
        architecture=replace(PLAIN.architecture, stem="convolution", norm="group"),
        augmentation=replace(PLAIN.augmentation, mixing=mixing, flip="random"),
    )
    own: list[torch.nn.Module] = []

    def itself(images: Tensor) -> Tensor:
        return (own[0] if own else brightest_third)(images).log_softmax(dim=1)

    teaching = Teaching(teacher=itself, temperature=3.0, share=1.0)
    losses = []
    for finished in run(recipe, replace(bars(), teaching=teaching)):
        own[:] = [finished.network]
        losses.append(finished.train_loss)

    assert losses[0] > 0.01
    assert losses[1:] == pytest.approx([0.0] * 3, abs=1e-6)


def test_nothing_is_left_of_a_training_that_is_over() -> None:
    left: list[weakref.ref[Any]] = []
    for recipe in AVERAGES.values():
        finished = next(run(recipe))
        left += [weakref.ref(finished.network), weakref.ref(finished)]
        del finished
    gc.collect()

    assert all(reference() is None for reference in left)


# In a process of its own, since what checks shapes in tests cannot be compiled.
COMPILED = """
import torch
from test_training import PLAIN, TASK, _Training, bars

torch.set_num_threads(1)
ends = []
for compiled in (False, True):
    training = _Training(PLAIN, TASK, bars(), (8,), 1, None)
    training.run_to(4, lambda: False)
    if compiled:
        training.compile(backend="eager")
        assert training._forward is not training._network
    training.run_to(8, lambda: False)
    ends.append(training.evaluated.state_dict())
assert ends[0].keys() == ends[1].keys()
assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
"""


@pytest.mark.slow
def test_a_network_that_is_compiled_on_the_way_trains_the_same_weights() -> None:
    root = Path(__file__).parents[2]
    paths = (root, root / "tests" / "support", root / "tests" / "search")

    ran = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


@pytest.mark.gpu
@needs_gpu
def test_images_that_are_sent_train_as_images_that_lie_on_the_device() -> None:
    here = bars()
    device = torch.device("cuda")
    sent = replace(here, labels=here.labels.to(device))
    there = replace(sent, images=here.images.to(device))

    ends = [list(run(PLAIN, images))[-1] for images in (sent, there)]

    assert sent.device == there.device
    assert same(*map(weights_of, ends))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("is_taught", [False, True])
@pytest.mark.parametrize("name", AVERAGES)
def test_a_step_never_waits_for_the_gpu(name: str, is_taught: bool) -> None:  # noqa: FBT001
    here = taught(0.5) if is_taught else bars()
    images = replace(here, labels=here.labels.cuda(), images=here.images.cuda())
    training = _Training(AVERAGES[name], TASK, images, (20,), 1, torch.bfloat16)
    training._step()  # what is set up once may wait

    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(11):  # beyond the frozen stem and the small images
            training._step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert training.n_steps_done == 12
