"""Topologies of images: norms and activations in every place, gates, parameters outside of layers, shared layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.peers_case import Case, Keep, image, vector

__all__ = ["CASES"]

Inputs = tuple[Tensor, ...]


class NormFirst(nn.Module):
    """Batch norm before the convolution, where it cannot be folded backwards; max pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n1, self.b = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)
        self.n2, self.leave = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.n2(self.b(F.relu(self.n1(F.max_pool2d(self.a(x), 2))))))


def norm_first_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, b, n = keep["a.weight[0]"], keep["b.weight[0]"], m.n1
    y = F.max_pool2d(F.conv2d(*inputs, m.a.weight[a]), 2)
    y = F.relu(F.batch_norm(y, n.running_mean[a], n.running_var[a], n.weight[a], n.bias[a]))
    y = F.conv2d(y, m.b.weight[b][:, a], m.b.bias[b])
    return F.conv2d(F.batch_norm(y, m.n2.running_mean[b], m.n2.running_var[b]), m.leave.weight[:, b], m.leave.bias)


class SlopeEach(nn.Module):
    """PReLU with a slope for each channel, then one with a single slope."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.each, self.b = nn.Conv2d(3, 6, 1), nn.PReLU(6), nn.Conv2d(6, 7, 1)
        self.one, self.leave = nn.PReLU(), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.one(self.b(self.each(self.a(x)))))


def slope_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, b = keep["a.weight[0]"], keep["b.weight[0]"]
    y = F.conv2d(*inputs, m.a.weight[a], m.a.bias[a])
    y = F.conv2d(torch.where(y > 0, y, y * m.each.weight[a].view(-1, 1, 1)), m.b.weight[b][:, a], m.b.bias[b])
    return F.conv2d(torch.where(y > 0, y, y * m.one.weight), m.leave.weight[:, b], m.leave.bias)


class UnequalBranches(nn.Module):
    """A residual sum of three branches of unequal depth and kernel, one of them a projection with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a1, self.a2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.short, self.direct = nn.Conv2d(4, 8, 1, 2, bias=False), nn.Conv2d(3, 8, 3, 2, 1)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        return self.leave(F.relu(self.a2(self.a1(y).relu()) + self.short(y) + self.direct(x)))


class DenseBlock(nn.Module):
    """Every layer reads all that came before, through a norm of its own, then a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, widths = nn.Conv2d(3, 6, 3, padding=1), (6, 10, 14)
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, 4, 3, padding=1) for w in widths[:2])
        self.leave = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return F.avg_pool2d(self.leave(self.norms[2](x).relu()), 2)


class Excited(nn.Module):
    """Squeeze-excite with linear layers: the gate's features are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.leave = (nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(5, 8),
                                                     nn.Conv2d(8, 2, 1))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.up(self.down(F.adaptive_avg_pool2d(x, 1).flatten(1)).relu()).sigmoid()
        return self.leave(x * gate.view(-1, 8, 1, 1))


def excited_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    c, d = keep["conv.weight[0]"], keep["down.weight[0]"]
    y = F.conv2d(*inputs, m.conv.weight[c], m.conv.bias[c])
    hidden = (y.mean((2, 3)) @ m.down.weight[d][:, c].T + m.down.bias[d]).relu()
    gate = (hidden @ m.up.weight[c][:, d].T + m.up.bias[c]).sigmoid()
    return F.conv2d(y * gate[:, :, None, None], m.leave.weight[:, c], m.leave.bias)


class Halves(nn.Module):
    """One half of the channels gates the other; before that three uneven pieces are read by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid, self.leave = nn.Conv2d(3, 11, 1), nn.Conv2d(5, 12, 1), nn.Conv2d(6, 2, 1)
        self.side, self.narrow = nn.Conv2d(4, 6, 1), nn.Conv2d(2, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        a, b, c = x[:, :2], x[:, 2:6], x[:, 6:]
        value, gate = self.mid(c.relu()).chunk(2, 1)
        return self.leave(value * gate.sigmoid() + self.side(b).tanh() * self.narrow(a))


class UnevenSplit(nn.Module):
    """Pieces of 2, 3 and 6 channels by `split`, each with a reader of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 11, 1)
        self.readers = nn.ModuleList(nn.Conv2d(n, 4, 1) for n in (2, 3, 6))

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.enter(x).relu(), [2, 3, 6], 1)
        return torch.stack([reader(piece) for reader, piece in zip(self.readers, pieces, strict=True)]).sum(0)


def uneven_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    total = torch.zeros(())
    for reader, start, n in zip(m.readers, (0, 2, 5), (2, 3, 6), strict=True):
        k = keep[f"enter.weight[0]:{n}"]
        rows = [start + i for i in k]
        y = F.conv2d(*inputs, m.enter.weight[rows], m.enter.bias[rows]).relu()
        total = total + F.conv2d(y, reader.weight[:, k], reader.bias)
    return total


class InPlace(nn.Module):
    """Sums and activations that overwrite, and one channel slice that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(x))
        y += self.b(x)
        y.mul_(2).clamp_(min=-1)
        return self.leave(y)


def in_place_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["a.weight[0]"]
    y = F.conv2d(*inputs, m.a.weight[k], m.a.bias[k]).relu() + F.conv2d(*inputs, m.b.weight[k], m.b.bias[k])
    return F.conv2d((2 * y).clamp(min=-1), m.leave.weight[:, k], m.leave.bias)


class Scale(nn.Module):
    """A layer of the user's own, with parameters that no library knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.shift


class Customised(nn.Module):
    """Own layers between convolutions, and a bare parameter that takes part as a layer scale and as a table."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.b = nn.Conv2d(3, 6, 1), Scale(6), nn.Conv2d(6, 6, 3, padding=1)
        self.gamma, self.place = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.zeros(1, 6, 4, 4))
        self.unused, self.leave = nn.Parameter(torch.zeros(9)), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(self.a(x))
        return self.leave((y + self.gamma * self.b(y).relu() + self.place).tanh())


def customised_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["a.weight[0]"]
    y = F.conv2d(*inputs, m.a.weight[k], m.a.bias[k]) * m.scale.gain[:, k] + m.scale.shift[k]
    y = y + m.gamma[k] * F.conv2d(y, m.b.weight[k][:, k], m.b.bias[k], padding=1).relu() + m.place[:, k]
    return F.conv2d(y.tanh(), m.leave.weight[:, k], m.leave.bias)


class Normalised(nn.Module):
    """Instance norm passes channels; a layer norm over channels and positions sees all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inorm, self.b = nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 6, 1)
        self.lnorm, self.leave = nn.LayerNorm([6, 6, 6]), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.lnorm(self.b(self.inorm(self.a(x)).relu())).relu())


def normalised_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, b, n = keep["a.weight[0]"], keep["b.weight[0]"], m.lnorm
    y = F.conv2d(*inputs, m.a.weight[a], m.a.bias[a])
    y = (y - y.mean((2, 3), True)) / (y.var((2, 3), correction=0, keepdim=True) + m.inorm.eps).sqrt()
    y = (y * m.inorm.weight[a].view(-1, 1, 1) + m.inorm.bias[a].view(-1, 1, 1)).relu()
    y = F.conv2d(y, m.b.weight[b][:, a], m.b.bias[b])
    y = (y - y.mean((1, 2, 3), True)) / (y.var((1, 2, 3), correction=0, keepdim=True) + n.eps).sqrt()
    return F.conv2d((y * n.weight[b] + n.bias[b]).relu(), m.leave.weight[:, b], m.leave.bias)


class SharedConv(nn.Module):
    """One convolution on two branches and twice in a row: its inputs and outputs are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(3, 6, 1), nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.leave = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        once = self.shared(self.a(x)).relu()
        return self.leave(self.shared(once)), self.leave(self.shared(self.b(y)).relu())


def shared_by_hand(m: Any, keep: Keep, inputs: Inputs) -> tuple[Tensor, Tensor]:
    k = keep["a.weight[0]"]

    def shared(y: Tensor) -> Tensor:
        return F.conv2d(y, m.shared.weight[k][:, k], m.shared.bias[k], padding=1)

    once = shared(F.conv2d(inputs[0], m.a.weight[k], m.a.bias[k])).relu()
    other = shared(F.conv2d(inputs[1], m.b.weight[k], m.b.bias[k])).relu()
    ends = (F.conv2d(y, m.leave.weight[:, k], m.leave.bias) for y in (shared(once), other))
    return next(ends), next(ends)


class Inception(nn.Module):
    """Branches of convolutions and of pooling, concatenated, over an own 1d path at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.line, self.leave = nn.Conv1d(15, 7, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        wide = torch.cat([self.a(x), F.max_pool2d(x, 3, 1, 1), self.b(x).relu()], 1)
        return self.leave(self.line(wide.amax(2)).relu().mean(-1))


def inception_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    s, a, b, c = (keep[f"{name}.weight[0]"] for name in ("stem", "a", "b", "line"))
    x = F.conv2d(*inputs, m.stem.weight[s], m.stem.bias[s]).relu()
    wide = torch.cat([F.conv2d(x, m.a.weight[a][:, s], m.a.bias[a]), F.max_pool2d(x, 3, 1, 1),
                      F.conv2d(x, m.b.weight[b][:, s], m.b.bias[b], padding=1).relu()], 1)  # fmt: skip
    k = a + [4 + i for i in s] + [9 + i for i in b]
    line = F.conv1d(wide.amax(2), m.line.weight[c][:, k], m.line.bias[c]).relu()
    return line.mean(-1) @ m.leave.weight[:, c].T + m.leave.bias


class Volume(nn.Module):
    """Three dimensions of space, as video models have them, with a grouped transposed end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(2, 5, 2), nn.BatchNorm3d(5), nn.ConvTranspose3d(5, 6, 2)
        self.leave = nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.b(F.max_pool3d(self.norm(self.a(x)).relu(), 2)).relu())


class Standardised(nn.Module):
    """Weights are standardised over their inputs in the forward pass, so that only outputs of `b` are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.b.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self.leave(F.conv2d(self.a(x).relu(), w, self.b.bias).relu())


CASES = {
    "norm before conv": Case(
        "OTO: batch norm in other places; simplify: folding", NormFirst, (image(3),),
        {"a.weight[0]": 6, "b.weight[0]": 8}, norm_first_by_hand,
    ),
    "prelu": Case(
        "TinyNN: a slope for each channel; Torch-Pruning: PReLU", SlopeEach, (image(3),),
        {"a.weight[0]": 6, "b.weight[0]": 7}, slope_by_hand,
    ),
    "unequal branches": Case(
        "simplify: residual; NNI: projection shortcuts", UnequalBranches, (image(3),),
        {"stem.weight[0]": 4, "a1.weight[0]": 6, "a2.weight[0]": 8},
    ),
    "dense block": Case(
        "NNI: DenseNet; Torch-Pruning: densely connected", DenseBlock, (image(3),),
        {"stem.weight[0]": 6, "convs.0.weight[0]": 4, "convs.1.weight[0]": 4},
    ),
    "squeeze-excite": Case(
        "NNI: MnasNet; TinyNN: gate of linear layers", Excited, (image(3),),
        {"conv.weight[0]": 8, "down.weight[0]": 5}, excited_by_hand,
    ),
    "slices and halves": Case(
        "TinyNN: slices of channels, chunk", Halves, (image(3),),
        {"enter.weight[0]": (2, 4, 5), "mid.weight[0]": 6},
    ),
    "uneven split": Case(
        "Torch-Pruning: split; TinyNN: split with sizes", UnevenSplit, (image(3),), {"enter.weight[0]": (2, 3, 6)},
        uneven_by_hand,
    ),
    "in place": Case("NNI: in-place operators", InPlace, (image(3),), {"a.weight[0]": 6}, in_place_by_hand),
    "customised": Case(
        "Torch-Pruning: customised layers, unwrapped and unused parameters", Customised, (image(3, 4),),
        {"a.weight[0]": 6}, customised_by_hand,
    ),
    "other norms": Case(
        "OTO: instance norm; Torch-Pruning: layer norm", Normalised, (image(3),), {"a.weight[0]": 5, "b.weight[0]": 6},
        normalised_by_hand, inexact=frozenset({"b.weight[0]"}),
    ),
    "shared conv": Case(
        "OTO: weight sharing", SharedConv, (image(3), image(2)), {"a.weight[0]": 6}, shared_by_hand
    ),
    "inception": Case(
        "NNI: Inception; Torch-Pruning: GoogLeNet", Inception, (image(3),),
        {"stem.weight[0]": 5, "a.weight[0]": 4, "b.weight[0]": 6, "line.weight[0]": 7}, inception_by_hand,
    ),
    "volume": Case(
        "NNI: three dimensions", Volume, (vector(2, 2, 5, 5, 5),), {"a.weight[0]": 5, "b.weight[1]": 6}
    ),
    "weights standardised": Case(
        "ModelOpt: computed weights", Standardised, (image(3),), {"a.weight[0]": 5, "b.weight[0]": 6},
        inexact=frozenset({"a.weight[0]"}),
    ),
}  # fmt: skip
