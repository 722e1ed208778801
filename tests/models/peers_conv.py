"""Topologies of images: concatenations, reshapes, groups, norms, attention over channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.peers_case import Case, Keep, image

__all__ = ["CASES"]

Inputs = tuple[Tensor, ...]


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 7, 3), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat([self.a(x), self.b(x)], 1).relu())


def concat_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, b = keep["a.weight[0]"], keep["b.weight[0]"]
    both = torch.cat([F.conv2d(*inputs, m.a.weight[a], m.a.bias[a]), F.conv2d(*inputs, m.b.weight[b], m.b.bias[b])], 1)
    return F.conv2d(both.relu(), m.leave.weight[:, a + [5 + i for i in b]], m.leave.bias)


class CascadedConcat(nn.Module):
    """A concatenation whose result is concatenated again, with a batch norm over everything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(9, 6, 1)
        self.norm, self.leave = nn.BatchNorm2d(15), nn.Conv2d(15, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.cat([self.a(x), self.b(x)], 1)
        return self.leave(self.norm(torch.cat([first, self.c(first).relu()], 1)).relu())


def cascaded_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, b, c = keep["a.weight[0]"], keep["b.weight[0]"], keep["c.weight[0]"]
    x, ab = inputs[0], a + [4 + i for i in b]
    first = torch.cat([F.conv2d(x, m.a.weight[a], m.a.bias[a]), F.conv2d(x, m.b.weight[b], m.b.bias[b])], 1)
    whole = torch.cat([first, F.conv2d(first, m.c.weight[c][:, ab], m.c.bias[c]).relu()], 1)
    k, n = ab + [9 + i for i in c], m.norm
    whole = F.batch_norm(whole, n.running_mean[k], n.running_var[k], n.weight[k], n.bias[k])
    return F.conv2d(whole.relu(), m.leave.weight[:, k], m.leave.bias)


class ConcatSplit(nn.Module):
    """Concatenated, normalised, split again at the same places: every piece has a reader of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(15)
        self.x, self.y, self.z = nn.Conv2d(4, 2, 1), nn.Conv2d(5, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.norm(torch.cat([self.a(x), self.b(x), self.c(x)], 1)).relu().split([4, 5, 6], 1)
        return self.x(a) + self.y(b) + self.z(c)


class ConcatSplitElsewhere(nn.Module):
    """Split at other places than it was concatenated: 4 + 6 channels read as 3 + 7."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.x, self.y = nn.Conv2d(3, 2, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x), self.b(x)], 1).relu()
        return self.x(both[:, :3]) + self.y(both[:, 3:])


class NonFeatureConcat(nn.Module):
    """Two scales laid side by side in space, so that their channels are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1, stride=2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([self.a(x).flatten(2), self.b(x).flatten(2)], 2)
        return self.leave(points.relu().transpose(1, 2))


def non_feature_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["a.weight[0]"]
    a = F.conv2d(*inputs, m.a.weight[k], m.a.bias[k]).flatten(2)
    b = F.conv2d(*inputs, m.b.weight[k], m.b.bias[k], stride=2).flatten(2)
    return torch.cat([a, b], 2).relu().transpose(1, 2) @ m.leave.weight[:, k].T + m.leave.bias


class InputConcat(nn.Module):
    """The input itself joins the features, and one branch is upsampled by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 3, 2, 1), nn.ConvTranspose2d(6, 5, 2, 2)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat([x, self.up(self.down(x).relu())], 1).tanh())


def input_concat_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    d, u = keep["down.weight[0]"], keep["up.weight[1]"]
    y = F.conv2d(*inputs, m.down.weight[d], m.down.bias[d], 2, 1).relu()
    y = torch.cat([inputs[0], F.conv_transpose2d(y, m.up.weight[d][:, u], m.up.bias[u], 2)], 1)
    return F.conv2d(y.tanh(), m.leave.weight[:, [0, 1, 2] + [3 + i for i in u]], m.leave.bias)


class FlattenHead(nn.Module):
    """Channels and positions flattened into the features of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).flatten(1))


def flatten_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["conv.weight[0]"]
    weight = m.head.weight.view(3, 5, 16)[:, k].reshape(3, -1)
    return F.conv2d(*inputs, m.conv.weight[k], m.conv.bias[k]).relu().flatten(1) @ weight.T + m.head.bias


class LinearToImage(nn.Module):
    """A vector becomes an image of 6 channels, as generators do."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.leave = nn.Linear(5, 6 * 4 * 4), nn.Conv2d(6, 7, 3), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.conv(self.enter(x).view(-1, 6, 4, 4))))


def to_image_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k, c = keep["enter.weight[0]"], keep["conv.weight[0]"]
    y = inputs[0] @ m.enter.weight.view(6, 16, 5)[k].reshape(-1, 5).T + m.enter.bias.view(6, 16)[k].flatten()
    y = F.conv2d(y.view(-1, len(k), 4, 4), m.conv.weight[c][:, k], m.conv.bias[c]).relu()
    return F.conv2d(y, m.leave.weight[:, c], m.leave.bias)


class GroupConv(nn.Module):
    """Three groups of 2 channels in and 4 out; the groups and the channels of each group can all be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=3)
        self.leave = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.mid(F.relu(self.enter(x)))))


def group_conv_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    g, c, o = keep["enter.weight[0]:3"], keep["enter.weight[0]:2"], keep["mid.weight[0]"]
    out = [F.conv2d(F.conv2d(*inputs, m.enter.weight.view(3, 2, 3, 1, 1)[i, c], m.enter.bias.view(3, 2)[i, c]).relu(),
                    m.mid.weight.view(3, 4, 2, 3, 3)[i][o][:, c], m.mid.bias.view(3, 4)[i, o], padding=1).relu()
           for i in g]  # fmt: skip
    return F.conv2d(torch.cat(out, 1), m.leave.weight.view(2, 3, 4, 1, 1)[:, g][:, :, o].flatten(1, 2), m.leave.bias)


class Depthwise(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, with the residual around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depth = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 9, 1), nn.Conv2d(9, 9, 3, 1, 1, groups=9)
        self.n1, self.n2, self.n3 = nn.BatchNorm2d(9), nn.BatchNorm2d(9), nn.BatchNorm2d(5)
        self.project, self.leave = nn.Conv2d(9, 5, 1, bias=False), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.n2(self.depth(F.relu6(self.n1(self.expand(x))))))
        return self.leave(x + self.n3(self.project(y)))


class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes three channels of each one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.depth = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4)
        self.leave = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.depth(self.enter(x).relu()).relu())


class OneChannel(nn.Module):
    """A convolution with one output channel in the middle is not a depthwise one; its reader has one input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.b, self.leave = (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 5, 1),
                                                nn.Conv2d(5, 1, 1))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.b(torch.sigmoid(self.one(self.a(x).relu()))).relu())


def one_channel_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, b = keep["a.weight[0]"], keep["b.weight[0]"]
    y = F.conv2d(F.conv2d(*inputs, m.a.weight[a], m.a.bias[a]).relu(), m.one.weight[:, a], m.one.bias).sigmoid()
    return F.conv2d(F.conv2d(y, m.b.weight[b], m.b.bias[b]).relu(), m.leave.weight[:, b], m.leave.bias)


class Transposed(nn.Module):
    """Transposed convolutions, the second one in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.ConvTranspose2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 8, 3, groups=2)
        self.leave = nn.ConvTranspose2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.b(self.a(x).relu()).relu())


class PixelShuffled(nn.Module):
    """Super-resolution: channels become pixels; a residual branch is upsampled by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(self.b(x), scale_factor=2, mode="nearest")
        return self.leave(F.relu(F.pixel_shuffle(self.a(x), 2) + up))


def pixel_shuffle_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["a.weight[0]"]
    fine = F.conv2d(*inputs, m.a.weight.view(5, 4, 3, 3, 3)[k].flatten(0, 1), m.a.bias.view(5, 4)[k].flatten(),
                    padding=1)  # fmt: skip
    up = F.conv2d(*inputs, m.b.weight[k], m.b.bias[k]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.conv2d(F.relu(F.pixel_shuffle(fine, 2) + up), m.leave.weight[:, k], m.leave.bias)


class SpaceToDepth(nn.Module):
    """Pixels become channels, and a convolution reads c·2·2 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 5, 1), nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.pixel_unshuffle(self.enter(x).relu(), 2))


class ChannelShuffle(nn.Module):
    """Half of the channels passes by, the other half is convolved, then the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.branch, self.leave = nn.Conv2d(3, 10, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.enter(x).relu().chunk(2, 1)
        both = torch.stack([left, self.branch(right).relu()], 2).flatten(1, 2)
        return self.leave(both)


CASES = {
    "concat": Case(
        "Torch-Pruning: concatenation", Concat, (image(3),), {"a.weight[0]": 5, "b.weight[0]": 7}, concat_by_hand
    ),
    "cascaded concat": Case(
        "Torch-Pruning: cascaded concatenation; OTO: concatenation", CascadedConcat, (image(3),),
        {"a.weight[0]": 4, "b.weight[0]": 5, "c.weight[0]": 6}, cascaded_by_hand,
    ),
    "concat split": Case(
        "Torch-Pruning: concatenation and split", ConcatSplit, (image(3),),
        {"a.weight[0]": 4, "b.weight[0]": 5, "c.weight[0]": 6},
    ),
    "concat split elsewhere": Case(
        "Torch-Pruning: concatenation and split", ConcatSplitElsewhere, (image(3),),
        {"a.weight[0]": 3, "b.weight[0]": 6},
    ),
    "non-feature concat": Case(
        "Torch-Pruning: concatenation along another dimension", NonFeatureConcat, (image(3),), {"a.weight[0]": 6},
        non_feature_by_hand,
    ),
    "concat with the input": Case(
        "OTO: transposed convolution in a concatenation", InputConcat, (image(3),),
        {"down.weight[0]": 6, "up.weight[1]": 5}, input_concat_by_hand,
    ),
    "flatten to linear": Case(
        "Torch-Pruning: reshape; TinyNN: flatten", FlattenHead, (image(3),), {"conv.weight[0]": 5}, flatten_by_hand
    ),
    "linear to image": Case(
        "Torch-Pruning: reshape", LinearToImage, (lambda: torch.randn(2, 5),),
        {"enter.weight[0]": 6, "conv.weight[0]": 7}, to_image_by_hand,
    ),
    "group conv": Case(
        "OTO: grouped convolution", GroupConv, (image(3),), {"enter.weight[0]": (3, 2), "mid.weight[0]": 4},
        group_conv_by_hand,
    ),
    "depthwise": Case(
        "ModelOpt: inverted bottleneck; TinyNN: depthwise", Depthwise, (image(3),),
        {"stem.weight[0]": 5, "expand.weight[0]": 9},
    ),
    "depth multiplier": Case(
        "TinyNN: depthwise with a multiplier", DepthMultiplier, (image(3),),
        {"enter.weight[0]": 4, "depth.weight[0]": 3},
    ),
    "one channel": Case(
        "Torch-Pruning: a single output channel; NNI: not depthwise", OneChannel, (image(3),),
        {"a.weight[0]": 6, "b.weight[0]": 5}, one_channel_by_hand,
    ),
    "conv transpose": Case(
        "OTO: transposed convolution; TinyNN: in groups", Transposed, (image(3, 3),),
        {"a.weight[1]": (2, 3), "b.weight[1]": 4},
    ),
    "pixel shuffle": Case(
        "OTO: CARN; TinyNN: pixel shuffle", PixelShuffled, (image(3),), {"a.weight[0]": 5}, pixel_shuffle_by_hand
    ),
    "pixel unshuffle": Case("TinyNN: space to depth", SpaceToDepth, (image(3),), {"enter.weight[0]": 5}),
    "channel shuffle": Case(
        "OTO: ShuffleFaceNet; NNI: ShuffleNet", ChannelShuffle, (image(3),), {"enter.weight[0]": (5, 5)}
    ),
}  # fmt: skip
