import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ensembles.combination import Combination, Space
from ensembles.errors import EnsembleError
from ensembles.inputs import ImageInput
from ensembles.predictor import Predictor, active_members, predict_log_probabilities

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


class ChannelMeans(nn.Module):
    """Logits are the means of the normalized channels: easy to work out by hand."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def make_network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    )
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    return network


def make_images(n_images: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n_images, 8, 8, 3), dtype=torch.uint8, generator=generator)


def test_the_result_is_the_log_softmax_of_the_logits() -> None:
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[..., 0] = 255

    result = predict_log_probabilities(ChannelMeans(), images, mean=MEAN, std=STD)

    # The normalized channels are 2, -2 and -2.
    torch.testing.assert_close(result, torch.tensor([[2.0, -2.0, -2.0]]).log_softmax(1))


def test_probabilities_of_every_image_sum_to_one() -> None:
    result = predict_log_probabilities(make_network(), make_images(), mean=MEAN, std=STD)

    assert result.dtype == torch.float32
    torch.testing.assert_close(result.exp().sum(1), torch.ones(7))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_size_of_the_batches_does_not_change_the_result(batch_size: int) -> None:
    network, images = make_network(), make_images()

    batched = predict_log_probabilities(network, images, mean=MEAN, std=STD, batch_size=batch_size)

    torch.testing.assert_close(
        batched, predict_log_probabilities(network, images, mean=MEAN, std=STD)
    )


def test_every_module_gets_its_own_mode_back() -> None:
    network = make_network().train()
    network[1].eval()

    predict_log_probabilities(network, make_images(), mean=MEAN, std=STD)

    assert network.training
    assert network[5].training
    assert not network[1].training


def test_running_statistics_stay_as_they_were() -> None:
    network = make_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    predict_log_probabilities(network, make_images(), mean=MEAN, std=STD)

    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_mode_comes_back_when_the_network_fails() -> None:
    network = make_network().train()
    grey = make_images()[..., :1]

    with pytest.raises(RuntimeError):
        predict_log_probabilities(network, grey, mean=(0.5,), std=(0.25,))

    assert network.training


def test_no_images_give_no_rows() -> None:
    result = predict_log_probabilities(make_network(), make_images(0), mean=MEAN, std=STD)

    assert result.shape == (0, 3)


def test_bfloat16_changes_the_probabilities_only_a_little() -> None:
    network, images = make_network(), make_images()

    exact = predict_log_probabilities(network, images, mean=MEAN, std=STD)
    rough = predict_log_probabilities(
        network, images, mean=MEAN, std=STD, autocast_dtype=torch.bfloat16
    )

    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.exp(), exact.exp(), atol=0.05, rtol=0)
    torch.testing.assert_close(rough.exp().sum(1), torch.ones(7))


class Forbidden(nn.Module):
    """A member that must not be asked."""

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError(f"asked for {len(images)} images")


def make_predictor(combination: Combination, *networks: nn.Module) -> Predictor:
    image_input = ImageInput(size=8, channels=3, mean=MEAN, std=STD)
    return Predictor(networks=networks, combination=combination, image_input=image_input)


def test_members_are_combined_as_the_combination_says() -> None:
    first, second, images = make_network(), ChannelMeans(), make_images()
    combination = Combination(
        method="llp", space="logarithm", weights=(0.5, 0.75), temperature=2.0
    )

    result = make_predictor(combination, first, second).predict_log_probabilities(images)

    rows = [
        predict_log_probabilities(network, images, mean=MEAN, std=STD).numpy()
        for network in (first, second)
    ]
    np.testing.assert_allclose(result, combination.combine(np.stack(rows)), atol=1e-6)


@pytest.mark.parametrize("space", ["probability", "vote"])
def test_members_without_weight_are_not_run(space: Space) -> None:
    combination = Combination(method="greedy", space=space, weights=(0.0, 1.0, 0.0))

    result = make_predictor(
        combination, Forbidden(), ChannelMeans(), Forbidden()
    ).predict_log_probabilities(make_images())

    alone = Combination(method="single", space=space, weights=(1.0,))
    np.testing.assert_allclose(
        result, make_predictor(alone, ChannelMeans()).predict_log_probabilities(make_images())
    )


def test_a_stack_runs_the_members_that_its_classes_need() -> None:
    combination = Combination(
        method="stack",
        space="stack",
        weights=(0.5, 0.5),
        class_weights=((0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        class_biases=(0.0, 0.0, 0.0),
    )

    assert active_members(combination) == (1,)
    result = make_predictor(combination, Forbidden(), ChannelMeans()).predict_log_probabilities(
        make_images()
    )
    np.testing.assert_allclose(np.exp(result).sum(axis=1), 1.0)


def test_a_stack_of_biases_alone_still_knows_how_many_images_there_are() -> None:
    combination = Combination(
        method="stack",
        space="stack",
        weights=(1.0,),
        class_weights=((0.0, 0.0, 0.0),),
        class_biases=(0.0, 0.0, float(np.log(2))),
    )

    result = make_predictor(combination, ChannelMeans()).predict_log_probabilities(make_images())

    np.testing.assert_allclose(np.exp(result), np.tile([0.25, 0.25, 0.5], (7, 1)))


def test_weights_without_networks_are_refused() -> None:
    combination = Combination(method="soft", space="probability", weights=(0.5, 0.5))

    with pytest.raises(EnsembleError, match="2 members, got 1 networks"):
        make_predictor(combination, ChannelMeans())
