"""The two networks: the short-term encoder (STE) and the active speakers context (ASC).

Parameter names and shapes must not change: the published weights load into these modules with `strict=True`.
"""

import os
import pickle
from urllib.error import URLError

import torch
from torch import nn
from torch.nn.functional import linear

from core.config import ASC_HIDDEN, STE_FEATURES
from core.runtime.errors import InputError


def _trunk(depth: int, in_channels: int) -> nn.Module:
    """A ResNet whose first convolution takes `in_channels`."""
    from torchvision.models import get_model  # imported for ResNets only, because it takes seconds

    trunk = get_model(f"resnet{depth}", weights=None)
    trunk.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    return trunk


class TemporalShift(nn.Module):
    """A convolution before which channels are shifted along time (temporal shift module, Lin et al., ICCV 2019).

    Within each clip, an eighth of the channels come from the next crop and an eighth from the previous one; they are
    zero at the ends of the clip.
    """

    def __init__(self, net: nn.Conv2d, clip_length: int):
        super().__init__()
        self.net, self.clip_length = net, clip_length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B*T, C, H, W) -> output of the convolution."""
        clips = x.unflatten(0, (-1, self.clip_length))  # (B, T, C, H, W)
        eighth = x.shape[1] // 8
        shifted = clips.clone()
        shifted[:, :-1, :eighth] = clips[:, 1:, :eighth]
        shifted[:, -1, :eighth] = 0
        shifted[:, 1:, eighth : 2 * eighth] = clips[:, :-1, eighth : 2 * eighth]
        shifted[:, 0, eighth : 2 * eighth] = 0
        return self.net(shifted.flatten(0, 1))


class TwoStreamResNet(nn.Module):
    """Short-term encoder (section 3.1): one ResNet over T stacked face crops, one over the MFCCs of their audio.

    The paper's is a ResNet-18. With `temporal_shift` the crops are not stacked: the video stream processes T images per
    clip, exchanges features between them by temporal shift, and averages its T outputs (SPELL, ECCV 2022).
    """

    def __init__(self, clip_length: int, depth: int = 18, temporal_shift: bool = False):
        super().__init__()
        self.clip_length, self.temporal_shift = clip_length, temporal_shift
        audio, video = _trunk(depth, 1), _trunk(depth, 3 if temporal_shift else 3 * clip_length)
        width = audio.fc.in_features  # 512 or 2048
        self.feature_size = 2 * width
        if temporal_shift:
            for block in (*video.layer1, *video.layer2, *video.layer3, *video.layer4):
                block.conv1 = TemporalShift(block.conv1, clip_length)
        # The order of these lines is the order of parameters in the optimiser state of checkpoints.
        self.audio_conv1, self.video_conv1 = audio.conv1, video.conv1
        self.a_bn1, self.v_bn1 = audio.bn1, video.bn1
        self.a_layer1, self.v_layer1 = audio.layer1, video.layer1
        self.a_layer2, self.v_layer2 = audio.layer2, video.layer2
        self.a_layer3, self.v_layer3 = audio.layer3, video.layer3
        self.a_layer4, self.v_layer4 = audio.layer4, video.layer4
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.fc_128_a = nn.Linear(width, 128)
        self.fc_128_v = nn.Linear(width, 128)
        self.fc_final = nn.Linear(256, 2)
        self.fc_aux_a = nn.Linear(128, 2)
        self.fc_aux_v = nn.Linear(128, 2)

    def forward(
        self, audio: torch.Tensor, video: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Audio (B, 1, 13, W) and video (B, 3T, 144, 144) -> joint, audio and video logits (B, 2), features (B, D).

        The first half of the features is that of the audio stream, the second half that of the video stream: 512 + 512
        for depth 18, 2048 + 2048 for depth 50.
        """
        if self.temporal_shift:
            video = video.unflatten(1, (-1, 3)).flatten(0, 1)  # (B*T, 3, 144, 144)
        a = self.maxpool(self.relu(self.a_bn1(self.audio_conv1(audio))))
        a = self.a_layer4(self.a_layer3(self.a_layer2(self.a_layer1(a))))
        v = self.maxpool(self.relu(self.v_bn1(self.video_conv1(video))))
        v = self.v_layer4(self.v_layer3(self.v_layer2(self.v_layer1(v))))
        # Under autocast the trunks may run in 16 bits. Means and heads stay in float32: 16-bit scores would tie.
        with torch.amp.autocast(audio.device.type, enabled=False):
            a, v = a.float().mean(dim=(2, 3)), v.float().mean(dim=(2, 3))
            if self.temporal_shift:
                v = v.unflatten(0, (-1, self.clip_length)).mean(dim=1)
            features = torch.cat((a, v), dim=1)
            a = self.relu(self.fc_128_a(a))
            v = self.relu(self.fc_128_v(v))
            return self.fc_final(torch.cat((a, v), dim=1)), self.fc_aux_a(a), self.fc_aux_v(v), features


class NonLocalBlock(nn.Module):
    """Pairwise refinement (section 3.3): every position of the context attends to every other position.

    As in the released code, the softmax runs over the whole map of position pairs, not over each row.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.theta, self.theta_bn = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.phi, self.phi_bn = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.gamma, self.gamma_bn = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.omega, self.omega_bn = nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, L, S) -> the same shape."""
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (B, L, S, C)
        _, length, speakers, _ = x.shape
        theta = _pointwise(self.theta, self.theta_bn, x).flatten(1, 2)  # (B, L*S, hidden)
        phi = _pointwise(self.phi, self.phi_bn, x).flatten(1, 2)
        gamma = _pointwise(self.gamma, self.gamma_bn, x).flatten(1, 2)
        pairs = theta @ phi.transpose(1, 2)  # (B, L*S, L*S)
        attention = pairs.flatten(1).softmax(dim=1).view_as(pairs)
        refined = (attention @ gamma).unflatten(1, (length, speakers))  # (B, L, S, hidden)
        refined = _pointwise(self.omega, self.omega_bn, refined)  # (B, L, S, C)
        return (x + _contiguous_gradient(refined)).permute(0, 3, 1, 2)


def _pointwise(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """1x1 convolution and batch norm over the last axis of x (B, L, S, C), computed as a matrix product."""
    x = linear(x, convolution.weight.flatten(1), convolution.bias)
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _contiguous_gradient(x: torch.Tensor) -> torch.Tensor:
    """Return x and make its gradient contiguous. The LSTM's is strided, which makes batch norm ten times slower."""
    if x.requires_grad:
        x.register_hook(torch.Tensor.contiguous)
    return x


class ASC_Net(nn.Module):
    """Context network (sections 3.2 and 3.3): predicts whether the first of the S speakers in a context speaks.

    The paper's network has both refinements. Without `pairwise` there is no non-local block; without `temporal` there
    is no LSTM, and the last layer takes the L*S features directly.
    """

    def __init__(
        self,
        context_length: int,
        num_speakers: int,
        pairwise: bool = True,
        temporal: bool = True,
        feature_size: int = STE_FEATURES,
    ):
        super().__init__()
        self.sat = NonLocalBlock(feature_size, ASC_HIDDEN) if pairwise else nn.Identity()
        self.lstm = nn.LSTM(feature_size, ASC_HIDDEN, batch_first=True) if temporal else None
        width = ASC_HIDDEN if temporal else feature_size
        self.fc_final = nn.Linear(width * context_length * num_speakers, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, D, L, S), with the reference speaker at s = 0 -> logits (B, 2). D is the feature size."""
        x = self.sat(x)
        sequence = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, L*S, D), time-major: the speaker varies fastest
        if self.lstm is not None:
            sequence = self._run_lstm(sequence)  # (B, L*S, hidden)
        with torch.amp.autocast(x.device.type, enabled=False):  # float32 logits, as in the STE
            return self.fc_final(sequence.float().flatten(1))

    def _run_lstm(self, sequence: torch.Tensor) -> torch.Tensor:
        """Run the LSTM; on CUDA in float32, because under autocast with bfloat16 torch would run it in float16."""
        if sequence.device.type == "cpu":
            return self.lstm(sequence)[0]
        with torch.amp.autocast(sequence.device.type, enabled=False):
            return self.lstm(sequence.float())[0]


def short_term_encoder(
    clip_length: int, pretrained: bool = False, depth: int = 18, temporal_shift: bool = False
) -> TwoStreamResNet:
    """Build a TwoStreamResNet for clips of T crops. `pretrained` starts both trunks from ImageNet's ResNet.

    The first video convolution repeats the RGB kernels T times without rescaling, or once with `temporal_shift`; the
    first audio convolution is their mean over RGB. Raises InputError if the ImageNet weights are neither cached nor
    downloadable.
    """
    model = TwoStreamResNet(clip_length, depth, temporal_shift)
    if not pretrained:
        return model
    weights = imagenet_weights(depth)
    del weights["fc.weight"], weights["fc.bias"]
    rgb = weights.pop("conv1.weight")  # (64, 3, 7, 7)
    state = {f"a_{name}": value for name, value in weights.items()}
    for name, value in weights.items():
        shifted = temporal_shift and name.startswith("layer")
        state["v_" + (name.replace(".conv1.", ".conv1.net.") if shifted else name)] = value
    state["video_conv1.weight"] = rgb if temporal_shift else rgb.repeat(1, clip_length, 1, 1)
    state["audio_conv1.weight"] = rgb.mean(dim=1, keepdim=True)
    model.load_state_dict(state, strict=False)  # the heads stay random
    return model


def imagenet_weights(depth: int) -> dict[str, torch.Tensor]:
    """Return torchvision's ImageNet weights of a ResNet, from its cache or downloaded. Raises InputError."""
    from torchvision.models import get_model, get_model_weights

    source = get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"]
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(source.url))
    advice = "put the file there, or train from random weights with --no-pretrained"
    try:
        network = get_model(f"resnet{depth}", weights=None)
        network.load_state_dict(source.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise InputError(
            f"{path}: no ImageNet weights, and {source.url} cannot be downloaded ({error}); {advice}"
        ) from None
    except (RuntimeError, EOFError, TypeError, AttributeError, pickle.UnpicklingError):
        raise InputError(f"{path}: not the ImageNet weights of {source.url}; {advice}") from None
    return network.state_dict()


def active_speakers_context(context_length: int, num_speakers: int, **options) -> ASC_Net:
    """Build an ASC_Net for L steps of S speakers, with its options.

    Convolutions get Kaiming normal weights (fan out) and zero biases.
    """
    model = ASC_Net(context_length, num_speakers, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model
