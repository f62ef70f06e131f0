"""EfficientNet-Lite0: the vision encoder of the embedded default.

Source: Tan & Le, "EfficientNet" (arXiv 1905.11946), in the Lite variant (no squeeze-and-excitation, ReLU6, fixed stem
and head). Module names follow the tensor names of the packaged weights, so that they load strictly.
"""

import torch
from torch import nn
from torch.nn import functional

# expansion, kernel, stride, input channels, output channels, repeats
LITE0_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
HIDDEN_SIZE = 1280
CLASSES = 1000


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow's "SAME": an odd pixel of padding goes right and bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        padding = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Inverted residual: expand, depth-wise convolution, project."""

    def __init__(self, expansion: int, kernel: int, stride: int, inputs: int, outputs: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        if expansion != 1:
            self._expand_conv = SameConv2d(inputs, hidden, 1)
            self._bn0 = _norm(hidden)
        self.expands = expansion != 1
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the block: (B, C, H, W) to (B, C', H', W')."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The network up to its last feature map; the classifier is kept so that the weights load strictly."""

    def __init__(self):
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList(
            Block(expansion, kernel, stride if repeat == 0 else 1, inputs if repeat == 0 else outputs, outputs)
            for expansion, kernel, stride, inputs, outputs, repeats in LITE0_STAGES
            for repeat in range(repeats)
        )
        self._conv_head = SameConv2d(320, HIDDEN_SIZE, 1)
        self._bn1 = _norm(HIDDEN_SIZE)
        self._fc = nn.Linear(HIDDEN_SIZE, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, S, S), each (value - 127) / 128, as tokens (B, (S / 32)^2, 1280), row by row."""
        x = functional.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return x.flatten(2).transpose(1, 2)

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute ImageNet logits (B, 1000), to test that weights and preprocessing match."""
        return self._fc(self(pixels).mean(dim=1))
