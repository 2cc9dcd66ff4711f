"""A training run on disk: weights, optimiser state and the step reached, in one safetensors file."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hemomil.errors import ModelError
from hemomil.files import written_whole


def write_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write it whole, over an earlier one."""
    tensors = {f"net/{name}": tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    for row, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{row}/{name}": tensor.detach().cpu() for name, tensor in state.items()}
    tensors["step"] = torch.tensor(step)
    with written_whole(path) as part:
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Fill network and optimiser; the step reached (0 if there is no file).

    Raises ModelError if the file is damaged or of another network.
    """
    if not path.is_file():
        return 0
    try:
        tensors = load_file(path)
        net.load_state_dict(_under("net/", tensors))
        step = int(tensors["step"])
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{path} is not a checkpoint of this training: {error}", hint="remove it to start afresh"
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        row, key = name.split("/")
        state.setdefault(int(row), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
