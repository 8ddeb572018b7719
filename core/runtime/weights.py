"""Weights of a network: reading, in the forms in which others save them, and the settings they were trained with."""

import hashlib
import re
import warnings
from collections.abc import Container
from pathlib import Path

import torch
from torch import nn

from core.runtime.errors import InputError, first_line
from core.runtime.files import read_settings, require_file

# Keys of weights in a larger dictionary
_WRAPPERS = ("state_dict", "model", "model_state_dict", "weights", "net", "network")
_ADVICE = "weights; bash scripts/downloads.sh weights downloads the published ones, ASC_train.py writes <epoch>.pth"
_PREFIX = re.compile(r"(module\.|_orig_mod\.|model\.)+")  # of DataParallel, torch.compile and Lightning


def load_checkpoint(path: Path) -> dict:
    """Load a dictionary of tensors and plain values on the CPU. Code in the file is not run. Raises InputError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unsuitable files are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise InputError(f"{path}: reading this file needs a package: pip install safetensors") from None
    except Exception as error:  # parsing arbitrary bytes can raise anything
        reason = first_line(error)[:100]
        if "Weights only load failed" in reason or "PytorchStreamReader" in reason:
            reason = "damaged, or not written by torch.save"
        if "Unsupported global" in str(error):
            reason = "it holds Python objects; save model.state_dict() instead of the model"
        raise InputError(f"{path}: not a file of weights ({reason})") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: not a file of weights ({type(state).__name__}, expected a state_dict)")
    return state


def read_state_dict(path: Path, names: Container[str] = ()) -> dict[str, torch.Tensor]:
    """Read a state_dict, also from within a checkpoint and with prefixes of parameter names.

    `names` are the network's own. Raises InputError.
    """
    state = load_checkpoint(path)
    for key in _WRAPPERS:
        if isinstance(state.get(key), dict):
            state = state[key]
            print(f"note: {path}: the weights are its entry {key!r}")
            break
    first = str(next(iter(state), ""))
    prefix = _PREFIX.match(first)
    if prefix and first not in names and all(str(name).startswith(prefix[0]) for name in state):
        state = {str(name).removeprefix(prefix[0]): value for name, value in state.items()}
        print(f"note: {path}: the prefix {prefix[0]!r} of its parameter names is ignored")
    return state


def load_weights(model: nn.Module, path: str | Path, hint: str, advice: str = _ADVICE) -> str:
    """Load the weights of a network strictly and return the SHA-256 of the file.

    Counters of batch norm, which old files lack, may be missing. Raises InputError with the first parameter that does
    not fit; `hint` names the likely reason for another shape, and `advice` where the weights come from.
    """
    path = require_file(path, advice)
    own = model.state_dict()
    state = read_state_dict(path, own)
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    for name in {**own, **state}:
        found, expected = _shape(state.get(name)), _shape(own.get(name))
        if found != expected:
            reason = "these are weights of another network" if None in (found, expected) else hint
            raise InputError(f"{path}: {name} has shape {found}, expected {expected}: {reason}")
    model.load_state_dict(state)
    return sha256(path)


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def training_settings(weights: str | Path) -> dict:
    """Return the settings of the training run whose directory holds the weights, {} if there are none."""
    files = list(Path(weights).parent.glob("*_cfg.json"))
    return read_settings(files[0]) if len(files) == 1 else {}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
