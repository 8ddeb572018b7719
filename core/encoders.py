"""Encoders by name: the choices of --encoder. docs/encoders.md describes them, and how to use one of your own."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from core.config import STE_forward_params, lr_asd_weights
from core.lr_asd import LR_ASD, mouth_region
from core.models import short_term_encoder
from core.runtime.errors import InputError


@dataclass(frozen=True)
class Encoder:
    """An encoder, its input and its weights.

    `build(clip_length, pretrained=False)` returns the network, whose `feature_size` is the number of features per row.
    Its input is a "clip" of T crops or a whole "track", see `core.datasets`. For a clip it returns joint, audio and
    video logits and features, for a track logits and features.

    `weights` is the file of published weights, if they can be downloaded, and `item` what scripts/downloads.sh calls
    them. With a `region`, a function as in `core.media.crops`, the network sees another region of the frame than the
    box of the face.
    """

    build: Callable[..., nn.Module]
    input: str = "clip"
    weights: str | None = None
    item: str | None = None
    region: Callable | None = None

    @property
    def advice(self) -> str:
        """Where weights come from, for messages."""
        published = f"bash scripts/downloads.sh {self.item} downloads" if self.item else "docs/encoders.md lists"
        trained = ", STE_train.py writes <epoch>.pth" if self.input == "clip" else ""
        return f"weights; {published} the published ones{trained}"

    def find_weights(self, given: str, flag: str) -> str:
        """Return the given file of weights, or this encoder's published one instead of the flag's default.

        Raises InputError if there is neither.
        """
        path = self.weights if given == STE_forward_params["weights"] else given
        if path is None:
            raise InputError(f"pass {flag}, a file of {self.advice}")
        return path


def _build_lr_asd(clip_length: int, pretrained: bool = False) -> LR_ASD:
    return LR_ASD()


ENCODERS = {
    "resnet18": Encoder(short_term_encoder, weights=STE_forward_params["weights"], item="weights"),
    "resnet18-tsm": Encoder(partial(short_term_encoder, depth=18, temporal_shift=True)),
    "resnet50-tsm": Encoder(partial(short_term_encoder, depth=50, temporal_shift=True)),
    "lr-asd": Encoder(_build_lr_asd, "track", lr_asd_weights["lr-asd"], "lr-asd"),
    "lr-asd-wild": Encoder(_build_lr_asd, "track", lr_asd_weights["lr-asd-wild"], "lr-asd", mouth_region),
}


def add_encoder_argument(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    help_text = f"{', '.join(names)}, or <module>:<function> that builds one of your own (docs/encoders.md)"
    parser.add_argument("--encoder", default="resnet18", help=help_text)


def find_encoder(name: str, names: tuple[str, ...]) -> Encoder:
    """Return one of the named encoders, or the user's encoder that `module:function` builds from a clip length.

    Modules are also found in the working directory. Raises InputError.
    """
    if name in names:
        return ENCODERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"--encoder {name}: expected {', '.join(names)} or <module>:<function>")
    sys.path.append(os.getcwd())
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--encoder {name}: {error}") from None
    finally:
        sys.path.pop()

    def build_own(clip_length: int, pretrained: bool = False) -> nn.Module:
        network = build(clip_length)
        if not isinstance(getattr(network, "feature_size", None), int):
            raise InputError(f"--encoder {name}: the network has no feature_size, its number of features per row")
        return network

    return Encoder(build_own)


def has_halves(name: str | None) -> bool:
    """True if the first half of the features of an encoder is audio and the second half video."""
    return name not in ENCODERS or ENCODERS[name].input == "clip"
