"""The weights of one member: a safetensors file and the network that it fills."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ensembles.errors import BundleError
from ensembles.folders import read_recorded_file, write_file
from ensembles.latency import Cost
from ensembles.manifest import MemberRecord
from spaces.architecture import Architecture
from spaces.errors import SpaceError
from spaces.networks.builders import build_network
from spaces.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A trained network to export."""

    name: str
    """Unlike all others; see `ensembles.manifest.MemberName`."""
    architecture: Architecture
    weights: Mapping[str, Tensor]
    """Its `state_dict`, on any device."""
    cost: Cost | None = None
    """What it takes on this machine; None if nobody measured."""


def write_member(folder: Path, member: Member, task: Task, *, position: int) -> MemberRecord:
    """Write the weights of a member as float32 into `members/` of a folder.

    Args:
        folder: Where `members/` is.
        member: What to write.
        task: What its network was built for.
        position: Of the member in the ensemble. The file is named by it: a name that somebody
            chose never becomes a path.

    Returns:
        What the manifest says of it.

    Raises:
        BundleError: The weights do not fit the architecture or are not finite.
    """
    where = f"member {member.name}"
    network = _build_without_weights(member.architecture, task, where)
    tensors = {
        # Cloned, because safetensors refuses tensors that share memory, such as tied weights.
        name: tensor.detach().to("cpu", _kept_dtype(tensor), copy=True).contiguous()
        for name, tensor in member.weights.items()
    }
    compare_tensors(where, tensors, network.state_dict())
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BundleError(f"{where}: not all numbers in {name} are finite.")
    content = safetensors.torch.save(tensors)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    cost = member.cost
    file = f"members/{position:05d}.safetensors"
    return MemberRecord(
        name=member.name,
        file=file,
        sha256=write_file(folder / file, content),
        n_bytes=len(content),
        architecture=member.architecture,
        n_parameters=n_parameters,
        # Measured before, perhaps in half precision: the file is what counts.
        cost=cost and replace(cost, n_parameters=n_parameters, n_bytes=len(content)),
    )


def load_network(folder: Path, record: MemberRecord, task: Task) -> nn.Module:
    """Build the network of a member and fill it from its file.

    Args:
        folder: The bundle.
        record: What the manifest says of the member.
        task: What the network is built for.

    Returns:
        The network in `eval()` mode, on the CPU, in channels_last memory.

    Raises:
        BundleError: The file is missing or changed, or does not fit the architecture.
    """
    where = f"{folder}: {record.file}"
    content = read_recorded_file(folder, record.file, n_bytes=record.n_bytes, sha256=record.sha256)
    weights = parse_tensors(where, content)
    network = _build_without_weights(record.architecture, task, where)
    compare_tensors(where, weights, network.state_dict())
    network.load_state_dict(weights, strict=True, assign=True)
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if tensor.is_meta:  # a buffer that is not part of the state would stay without values
            raise BundleError(f"{where} does not fit its architecture: {name} has no values.")
    network.requires_grad_(requires_grad=False).eval()
    return network.to(memory_format=torch.channels_last)


def parse_tensors(where: str, content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file from its bytes.

    Raises:
        BundleError: It is no such file; the message begins with `where`.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch has not
        raise BundleError(f"{where} is not a safetensors file.") from error


def compare_tensors(
    where: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Compare names, types and shapes.

    Raises:
        BundleError: They differ; the message begins with `where`.
    """
    if tensors.keys() != expected.keys():
        different = sorted(tensors.keys() ^ expected.keys())
        raise BundleError(f"{where} does not fit its architecture: {', '.join(different[:3])}.")
    for name, tensor in expected.items():
        wanted, got = (tensor.dtype, tensor.shape), (tensors[name].dtype, tensors[name].shape)
        if wanted != got:
            raise BundleError(
                f"{where} does not fit its architecture: {name} must be "
                f"{wanted[0]} {tuple(wanted[1])}, got {got[0]} {tuple(got[1])}."
            )


def _build_without_weights(architecture: Architecture, task: Task, where: str) -> nn.Module:
    """Build on the `meta` device: no memory is taken before a file has shown that it fits."""
    try:
        with torch.device("meta"):
            return build_network(architecture, task)
    except SpaceError as error:
        raise BundleError(f"{where}: {error}") from error


def _kept_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype
