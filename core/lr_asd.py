"""LR-ASD (Liao et al., IJCV 2025): an encoder that scores all frames of a face track at once. Forward pass only.

Parameter names and shapes must not change: the published weights load into this module with `strict=True`.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv2d

GREY_MEAN, GREY_STD = 0.4161, 0.1688  # of grey crops in [0, 1]
_FRAMES_AT_ONCE = 256  # limits the memory for long tracks
_VISUAL_REACH = 9  # frames before and after a frame that the visual encoder depends on


def mouth_region(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The square below the centre of a face that the weights for videos in the wild were trained with.

    Takes a box (4,) in fractions of a frame of this width and height. Returns the left, upper, right and lower edge in
    pixels; they may be outside the frame.
    """
    x1, y1, x2, y2 = box * (width, height, width, height)
    side = max(x2 - x1, y2 - y1)
    left = int((x1 + x2) / 2 - 0.35 * side)
    upper = int((y1 + y2) / 2 + 0.2 * side - 0.35 * side)
    size = int(0.7 * side)
    return left, upper, left + size, upper + size


class Convolution(nn.Module):
    """Weight of a convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int, *kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        nn.init.kaiming_normal_(self.weight)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)


def convolve(x: torch.Tensor, weight: torch.Tensor, norm: nn.BatchNorm2d, stride: int = 1) -> torch.Tensor:
    """Convolution that keeps the size of x (N, C, H, W) at stride 1, batch norm and ReLU."""
    padding = [size // 2 for size in weight.shape[2:]]
    weight = weight.contiguous(memory_format=torch.channels_last)
    return norm(conv2d(x, weight, stride=stride, padding=padding)).relu_()


class VisualBlock(nn.Module):
    """Two convolutions over space and two over time.

    The published network has 3D convolutions. With kernels of one frame or one pixel these are 2D convolutions over
    frames, or over an image of time x pixels, which are faster.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        self.s_1, self.s_norm_1 = Convolution(in_channels, half, 1, 5, 5), batch_norm(half)
        self.s_2, self.s_norm_2 = Convolution(half, out_channels, 1, 3, 3), batch_norm(out_channels)
        self.t_1, self.t_norm_1 = Convolution(out_channels, out_channels, 5, 1, 1), batch_norm(out_channels)
        self.t_2, self.t_norm_2 = Convolution(out_channels, out_channels, 3, 1, 1), batch_norm(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, C, H, W), consecutive frames in channels_last format -> (n, C', H', W')."""
        x = convolve(x, self.s_1.weight.squeeze(2), self.s_norm_1, self.stride)
        x = convolve(x, self.s_2.weight.squeeze(2), self.s_norm_2)
        frames, channels, height, width = x.shape
        x = x.permute(0, 2, 3, 1).reshape(1, frames, height * width, channels).permute(0, 3, 1, 2)  # (1, C, n, H*W)
        x = convolve(x, self.t_1.weight.squeeze(4), self.t_norm_1)
        x = convolve(x, self.t_2.weight.squeeze(4), self.t_norm_2)
        return x.permute(0, 2, 3, 1).view(frames, height, width, channels).permute(0, 3, 1, 2)


class AudioBlock(nn.Module):
    """Two convolutions over MFCC coefficients and two over time."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.m_1, self.m_norm_1 = Convolution(in_channels, half, 5, 1), batch_norm(half)
        self.m_2, self.m_norm_2 = Convolution(half, out_channels, 3, 1), batch_norm(out_channels)
        self.t_1, self.t_norm_1 = Convolution(out_channels, out_channels, 1, 5), batch_norm(out_channels)
        self.t_2, self.t_norm_2 = Convolution(out_channels, out_channels, 1, 3), batch_norm(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (1, C, 13, t) -> (1, C', 13, t)."""
        x = convolve(x, self.m_1.weight, self.m_norm_1)
        x = convolve(x, self.m_2.weight, self.m_norm_2)
        x = convolve(x, self.t_1.weight, self.t_norm_1)
        return convolve(x, self.t_2.weight, self.t_norm_2)


class VisualEncoder(nn.Module):
    """Features of every frame, from it and the nine frames before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = VisualBlock(1, 32, stride=2), VisualBlock(32, 64), VisualBlock(64, 128)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised grey frames (n, 112, 112) -> (n, 128)."""
        parts = []
        for start in range(0, len(x), _FRAMES_AT_ONCE):
            first = max(start - _VISUAL_REACH, 0)
            part = self._encode(x[first : start + _FRAMES_AT_ONCE + _VISUAL_REACH])
            parts.append(part[start - first :][:_FRAMES_AT_ONCE])
        return torch.cat(parts)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.block1(x[:, None].contiguous(memory_format=torch.channels_last)))
        return self.block3(self.pool(self.block2(x))).amax(dim=(2, 3))


class AudioEncoder(nn.Module):
    """Features of the audio of every frame, from four MFCCs per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = AudioBlock(1, 32), AudioBlock(32, 64), AudioBlock(64, 128)
        self.pool = nn.MaxPool2d((1, 3), stride=(1, 2), padding=(0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """MFCCs (4n, 13) -> (n, 128)."""
        x = self.pool(self.block1(x.T[None, None]))
        return self.block3(self.pool(self.block2(x)))[0].mean(dim=1).T


class Gate(nn.Module):
    """Scale each channel by a factor from 0 to 1, which depends on all channels of the frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.Conv1d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, C) -> the same shape."""
        return x * self.bn(x @ self.attention.weight[..., 0].T).sigmoid()


class Detector(nn.Module):
    """A GRU in each direction of time, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gru_forward, self.gru_backward = nn.GRU(256, 64), nn.GRU(256, 64)
        self.attention = Gate(128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, 256) -> features (n, 128)."""
        forward, backward = self.gru_forward(x)[0], self.gru_backward(x.flip(0))[0].flip(0)
        return self.attention(torch.cat((forward, backward), dim=1))


class LR_ASD(nn.Module):
    """Logits and features of every frame of a track, from all its frames and their audio."""

    feature_size = 128

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.visualEncoder, self.model.audioEncoder = VisualEncoder(), AudioEncoder()
        self.model.fusion, self.model.detector = Gate(256), Detector()
        self.lossAV, self.lossV = nn.Module(), nn.Module()
        self.lossAV.FC, self.lossV.FC = nn.Linear(128, 2), nn.Linear(128, 2)  # lossV serves training only

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """MFCCs (4n, 13) and grey frames (n, 112, 112), 0 to 255 -> logits (n, 2), features (n, 128)."""
        audio = self.model.audioEncoder(audio)
        video = self.model.visualEncoder((video / 255 - GREY_MEAN) / GREY_STD)
        with torch.amp.autocast(audio.device.type, enabled=False):  # float32 logits, as in the other encoders
            fused = self.model.fusion(torch.cat((audio, video), dim=1).float())
            features = self.model.detector(fused)
            return self.lossAV.FC(features), features
