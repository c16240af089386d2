"""The peer: TSM on a bottleneck ResNet in PyTorch, with the tensors of our network.

Written as a PyTorch user would: NCHW tensors, `nn` layers, the shift as slices. Our names and
kernels (HWIO) are turned into PyTorch's, so that both sides can be compared before they are timed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

F = nn.functional
STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


def shift_past_first(x: torch.Tensor, segments: int) -> torch.Tensor:
    """`past_first` by 1/8, as MIT's code writes it (with the other direction)."""
    images, channels, height, width = x.shape
    x = x.view(-1, segments, channels, height, width)
    fold = channels // 8
    out = torch.zeros_like(x)
    out[:, 1:, :fold] = x[:, :-1, :fold]
    out[:, :-1, fold : 2 * fold] = x[:, 1:, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return out.view(images, channels, height, width)


def conv_norm(tensors: Mapping[str, np.ndarray], name: str, stride: int = 1) -> nn.Sequential:
    kernel = np.asarray(tensors[f"{name}.conv.kernel"]).transpose(3, 2, 0, 1)
    features, channels, size, _ = kernel.shape
    conv = nn.Conv2d(channels, features, size, stride, (size - 1) // 2, bias=False)
    norm = nn.BatchNorm2d(features)
    conv.weight.data = torch.tensor(kernel.copy())
    norm.weight.data = torch.tensor(np.asarray(tensors[f"{name}.norm.scale"]))
    norm.bias.data = torch.tensor(np.asarray(tensors[f"{name}.norm.bias"]))
    norm.running_mean = torch.tensor(np.asarray(tensors[f"{name}.norm.mean"]))
    norm.running_var = torch.tensor(np.asarray(tensors[f"{name}.norm.var"]))
    return nn.Sequential(conv, norm)


class Bottleneck(nn.Module):
    def __init__(
        self, tensors: Mapping[str, np.ndarray], name: str, stride: int, segments: int, shift: bool
    ):
        super().__init__()
        self.segments = segments
        self.shift = shift
        self.conv1 = conv_norm(tensors, f"{name}.conv1")
        self.conv2 = conv_norm(tensors, f"{name}.conv2", stride)
        self.conv3 = conv_norm(tensors, f"{name}.conv3")
        has_shortcut = f"{name}.shortcut.conv.kernel" in tensors
        self.shortcut = conv_norm(tensors, f"{name}.shortcut", stride) if has_shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = shift_past_first(x, self.segments) if self.shift else x
        y = F.relu(self.conv1(shifted), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        y = self.conv3(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class TorchTSM(nn.Module):
    """Normalised clips `[N, T, 3, H, W]` to logits `[N, K]`.

    Args:
        tensors: parameters and running statistics under our names.
        backbone: resnet50, resnet101 or resnet152.
        segments: T.
        shift: False for a network without shift.
    """

    def __init__(
        self, tensors: Mapping[str, np.ndarray], *, backbone: str, segments: int, shift: bool = True
    ):
        super().__init__()
        self.stem = conv_norm(tensors, "backbone.stem", 2)
        blocks = [
            Bottleneck(
                tensors,
                f"backbone.stages.{stage}.{index}",
                2 if stage > 0 and index == 0 else 1,
                segments,
                shift,
            )
            for stage, count in enumerate(STAGES[backbone])
            for index in range(count)
        ]
        self.blocks = nn.Sequential(*blocks)
        kernel = np.asarray(tensors["head.fc.kernel"])
        self.fc = nn.Linear(*kernel.shape)
        self.fc.weight.data = torch.tensor(kernel.T.copy())
        self.fc.bias.data = torch.tensor(np.asarray(tensors["head.fc.bias"]))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(video.flatten(0, 1)), inplace=True)
        x = self.blocks(F.max_pool2d(x, 3, 2, 1)).mean((2, 3))
        return self.fc(x).view(len(video), -1, self.fc.out_features).mean(1)
