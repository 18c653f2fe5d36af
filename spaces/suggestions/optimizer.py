"""From a trial to the optimizer, the schedule and the loss."""

from dataclasses import replace
from math import sqrt

from spaces.optimizer import Optimizer, OptimizerName
from spaces.ranges import Space
from spaces.suggestions.asking import ask_choice, ask_factor, ask_number
from spaces.trial import Trial


def suggest_optimizer(trial: Trial, space: Space) -> Optimizer:
    """Sample an optimizer; every name it asks for starts with `optimizer.`.

    Learning rate and weight decay are asked for once, as factors on the base of the optimizer,
    batch size and momentum, so that what a sampler learns of one optimizer serves the others.
    """
    name = ask_choice(trial, "optimizer.name", space.optimizers)
    batch_size = ask_choice(trial, "optimizer.batch_size", space.batch_sizes)
    momentum = ask_number(trial, "optimizer.momentum", space.momentum, step=0.05)
    rate = ask_factor(trial, "optimizer.learning_rate_factor", space.learning_rate_factor)
    decay = ask_number(
        trial, "optimizer.weight_decay_factor", space.weight_decay_factor, step=0.25
    )
    nesterov, norm_bias_factor = False, 1.0
    if name == "sgd":
        nesterov = ask_choice(trial, "optimizer.nesterov", space.nesterov)
    if name in ("sgd", "muon"):
        norm_bias_factor = ask_choice(trial, "optimizer.norm_bias_factor", space.norm_bias_factors)
    return Optimizer(
        name=name,
        learning_rate=rate * base_learning_rate(name, batch_size=batch_size, momentum=momentum),
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=decay * base_weight_decay(name),
        norm_bias_factor=norm_bias_factor,
        schedule=ask_choice(trial, "optimizer.schedule", space.schedules),
        warmup=ask_number(trial, "optimizer.warmup", space.warmup, step=0.01),
        batch_size=batch_size,
        label_smoothing=ask_number(
            trial, "optimizer.label_smoothing", space.label_smoothing, step=0.05
        ),
        averaging=ask_choice(trial, "optimizer.averaging", space.averagings),
    )


def base_learning_rate(name: OptimizerName, *, batch_size: int, momentum: float) -> float:
    """Return the learning rate, for the mean loss of a batch, that a factor of 1 means.

    SGD: 11.5 for 1024 images, shared out over the steps that momentum makes of one gradient
    (airbench, Jordan 2024): 0.75 at batch 512 and momentum 0.85. It grows with the batch, those
    of the adaptive optimizers with its square root (Malladi et al. 2022): 0.004 at batch 512
    for Adam, AdamW and, since its momentum sums where Adam's averages, 0.004 (1 - momentum) for
    RMSprop; 0.03 for Adagrad, whose steps shrink by themselves; 0.24 for Muon's convolutions,
    whose steps have the same size whatever the gradient.
    """
    if name == "sgd":
        return 11.5 * batch_size / 1024 / (1 + 1 / (1 - momentum))
    scale = sqrt(batch_size / 512)
    if name == "adagrad":
        return 0.03 * scale
    if name == "muon":
        return 0.24 * scale
    return 0.004 * scale * ((1 - momentum) if name == "rmsprop" else 1)


def base_weight_decay(name: OptimizerName) -> float:
    """Return the coefficient, as `torch.optim` takes it, that a factor of 1 means.

    SGD: airbench takes 0.0153 off every weight for each 1024 images at its learning rate of
    11.5, and torch multiplies the coefficient by the learning rate, so 0.0153 / 11.5 = 0.00133
    whatever the batch. AdamW's decay, which is decoupled too, meets a learning rate about 200
    times smaller: 0.1 with it is half as strong for each step. The others add the decay to the
    gradient before they normalize it, which makes it far stronger. With Muon only the linear layer
    decays, as with SGD.
    """
    return {"sgd": 0.0153 / 11.5, "muon": 0.0153 / 11.5, "adamw": 0.1}.get(name, 1e-4)


def clip_batch(optimizer: Optimizer, n_images: int) -> Optimizer:
    """Return the optimizer for a training set that may be smaller than its batch.

    The learning rate follows the batch as `base_learning_rate` says; with the rate of 512 images,
    a batch of 140 diverges.
    """
    if n_images >= optimizer.batch_size:
        return optimizer
    name, momentum = optimizer.name, optimizer.momentum
    asked = base_learning_rate(name, batch_size=optimizer.batch_size, momentum=momentum)
    clipped = base_learning_rate(name, batch_size=n_images, momentum=momentum)
    return replace(
        optimizer,
        batch_size=n_images,
        learning_rate=optimizer.learning_rate * clipped / asked,
    )
