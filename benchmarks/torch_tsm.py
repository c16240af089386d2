"""TSM on a bottleneck ResNet or MobileNetV2 in PyTorch, with the tensors of a tsm_jax network.

It is written as a PyTorch user would write it: NCHW tensors, `nn` layers, the shift as slices.
Names and kernels (HWIO) are converted to PyTorch's, so both sides can be compared before they are
timed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

F = nn.functional
STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


def shift_past_first(x: torch.Tensor, segments: int) -> torch.Tensor:
    """Shifts `past_first` by 1/8; written like MIT's code, which uses the other direction."""
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
    groups = features if channels == 1 else 1  # depthwise
    channels *= groups
    conv = nn.Conv2d(channels, features, size, stride, (size - 1) // 2, bias=False, groups=groups)
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


class InvertedResidual(nn.Module):
    def __init__(self, tensors: Mapping[str, np.ndarray], name: str, stride: int, segments: int):
        super().__init__()
        self.segments = segments
        has_expand = f"{name}.expand.conv.kernel" in tensors
        self.expand = conv_norm(tensors, f"{name}.expand") if has_expand else None
        self.depthwise = conv_norm(tensors, f"{name}.depthwise", stride)
        self.project = conv_norm(tensors, f"{name}.project")
        features = tensors[f"{name}.project.conv.kernel"].shape[-1]
        self.residual = (
            has_expand
            and stride == 1
            and tensors[f"{name}.expand.conv.kernel"].shape[2] == features
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = shift_past_first(x, self.segments) if self.residual else x
        if self.expand is not None:
            y = F.relu6(self.expand(y), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class TorchTSM(nn.Module):
    """Maps normalised clips `[N, T, 3, H, W]` to logits `[N, K]`.

    Args:
        tensors: parameters and running statistics under the names of tsm_jax.
        backbone: resnet50, resnet101, resnet152 or mobilenet_v2.
        segments: T.
        shift: False for a network without the shift (ResNets only).
    """

    def __init__(
        self, tensors: Mapping[str, np.ndarray], *, backbone: str, segments: int, shift: bool = True
    ):
        super().__init__()
        self.stem = conv_norm(tensors, "backbone.stem", 2)
        self.last = None
        if backbone == "mobilenet_v2":
            self.last = conv_norm(tensors, "backbone.last")
            names = [f"backbone.blocks.{index}" for index in range(17)]
            strided = (1, 3, 6, 13)
            blocks = [
                InvertedResidual(tensors, name, 2 if index in strided else 1, segments)
                for index, name in enumerate(names)
            ]
        else:
            blocks = self._bottlenecks(tensors, backbone, segments, shift)
        self.blocks = nn.Sequential(*blocks)
        kernel = np.asarray(tensors["head.fc.kernel"])
        self.fc = nn.Linear(*kernel.shape)
        self.fc.weight.data = torch.tensor(kernel.T.copy())
        self.fc.bias.data = torch.tensor(np.asarray(tensors["head.fc.bias"]))

    @staticmethod
    def _bottlenecks(
        tensors: Mapping[str, np.ndarray], backbone: str, segments: int, shift: bool
    ) -> list[nn.Module]:
        return [
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

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        x = self.stem(video.flatten(0, 1))
        if self.last is not None:
            x = self.blocks(F.relu6(x, inplace=True))
            x = F.relu6(self.last(x), inplace=True)
        else:
            x = self.blocks(F.max_pool2d(F.relu(x, inplace=True), 3, 2, 1))
        x = x.mean((2, 3))
        return self.fc(x).view(len(video), -1, self.fc.out_features).mean(1)
