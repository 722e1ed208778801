"""Topologies of vectors and sequences: shared and tied weights, several inputs and outputs, recurrences, attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.models.peers_case import Case, Keep, ids, vector

__all__ = ["CASES"]

Inputs = tuple[Tensor, ...]


class Heads(nn.Module):
    """Several inputs that are summed and concatenated, several outputs in a dictionary that holds a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(6, 7)
        self.norm, self.p, self.q, self.r = nn.BatchNorm1d(15), nn.Linear(15, 2), nn.Linear(15, 3), nn.Linear(7, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> dict[str, Any]:
        c = self.c(c)
        both = self.norm(torch.cat([(self.a(a) + self.b(b)).relu(), c], -1))
        return {"main": self.p(both), "others": [self.q(both), self.r(c.tanh())]}


def heads_by_hand(m: Any, keep: Keep, inputs: Inputs) -> list[Tensor]:
    a, c, n = keep["a.weight[0]"], keep["c.weight[0]"], m.norm
    k, y = a + [8 + i for i in c], F.linear(inputs[2], m.c.weight[c], m.c.bias[c])
    x = F.linear(inputs[0], m.a.weight[a], m.a.bias[a]) + F.linear(inputs[1], m.b.weight[a], m.b.bias[a])
    both = F.batch_norm(torch.cat([x.relu(), y], -1), n.running_mean[k], n.running_var[k], n.weight[k], n.bias[k])
    return [F.linear(both, m.p.weight[:, k], m.p.bias), F.linear(both, m.q.weight[:, k], m.q.bias),
            F.linear(y.tanh(), m.r.weight[:, c], m.r.bias)]  # fmt: skip


class Autoencoder(nn.Module):
    """The decoder is the encoder's weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner, self.outer = nn.Parameter(torch.randn(7, 6)), nn.Linear(7, 7), nn.Parameter(
            torch.zeros(6))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(x @ self.weight.t())
        return self.inner(hidden) @ self.weight + self.outer


def autoencoder_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["weight[0]"]
    w = m.weight[k]
    return F.linear((inputs[0] @ w.T).relu(), m.inner.weight[k][:, k], m.inner.bias[k]) @ w + m.outer


class Bare(nn.Module):
    """Weights as bare parameters in matrix products, one of them stored transposed as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c, self.v = (nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8)),
                                  nn.Parameter(torch.randn(8, 3)))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.c, x, self.w).sigmoid() @ self.v


def bare_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["w[1]"]
    return (inputs[0] @ m.w[:, k] + m.c[k]).sigmoid() @ m.v[k]


class TiedHead(nn.Module):
    """Token, type and position tables are summed and normalised; the head is the token table."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.types, self.places = nn.Embedding(11, 8), nn.Embedding(2, 8), nn.Embedding(5, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 13), nn.Linear(13, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.types(types) + self.places(torch.arange(tokens.shape[1]))
        x = self.norm(x)
        return self.head(x + self.down(F.gelu(self.up(x))))


def tied_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k, u = keep["tokens.weight[1]"], keep["up.weight[0]"]
    x = m.tokens.weight[inputs[0]][..., k] + m.types.weight[inputs[1]][..., k] + m.places.weight[:, k]
    x = F.layer_norm(x, [len(k)], m.norm.weight[k], m.norm.bias[k])
    hidden = F.gelu(F.linear(x, m.up.weight[u][:, k], m.up.bias[u]))
    return (x + F.linear(hidden, m.down.weight[k][:, u], m.down.bias[k])) @ m.tokens.weight[:, k].T


class TwoTowers(nn.Module):
    """Two towers that meet in a matrix of scores: the width they meet at is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 6)), nn.Linear(5, 6)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.normalize(self.a(a), dim=-1) @ F.normalize(self.b(b), dim=-1).t()


def towers_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    h, k = keep["a.0.weight[0]"], keep["a.2.weight[0]"]
    x = F.linear(F.linear(inputs[0], m.a[0].weight[h], m.a[0].bias[h]).relu(), m.a[2].weight[k][:, h], m.a[2].bias[k])
    y = F.linear(inputs[1], m.b.weight[k], m.b.bias[k])
    return (x / x.norm(dim=-1, keepdim=True)) @ (y / y.norm(dim=-1, keepdim=True)).T


class Cell(nn.Module):
    """A recurrence by hand: one cell, applied at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.turn, self.leave = nn.Linear(4, 7), nn.Linear(7, 7, bias=False), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 7)
        for step in x.unbind(1):
            state = torch.tanh(self.read(step) + self.turn(state))
        return self.leave(state)


def cell_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k = keep["read.weight[0]"]
    state = torch.zeros(inputs[0].shape[0], len(k), dtype=torch.float64)
    for step in inputs[0].unbind(1):
        state = torch.tanh(F.linear(step, m.read.weight[k], m.read.bias[k]) + state @ m.turn.weight[k][:, k].T)
    return F.linear(state, m.leave.weight[:, k], m.leave.bias)


class Experts(nn.Module):
    """Stacked weights of three experts, mixed by a softmax gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 4, 8)), nn.Parameter(
            torch.randn(3, 8, 5))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,eij->ebj", x, self.up).relu()
        return torch.einsum("be,ebo->bo", self.gate(x).softmax(-1), torch.bmm(hidden, self.down))


def experts_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    x, e, k = inputs[0], keep["gate.weight[0]"], keep["up[2]"]
    gates = F.linear(x, m.gate.weight[e], m.gate.bias[e]).softmax(-1)
    return sum(gates[:, n : n + 1] * ((x @ m.up[i][:, k]).relu() @ m.down[i][k]) for n, i in enumerate(e))  # type: ignore[return-value]


class Multihead(nn.Module):
    """PyTorch's own attention between two sequences, then a feed-forward part with GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.up, self.down = nn.Linear(8, 14), nn.Linear(7, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.down(F.glu(self.up(self.attention(x, y, y, need_weights=False)[0])))


def multihead_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    a, h, u = m.attention, keep["attention.q_proj_weight[0]:2"], keep["up.weight[0]"]
    out, e, v = (
        keep["attention.out_proj.weight[0]"],
        keep["attention.q_proj_weight[0]:4"],
        keep["attention.v_proj_weight[0]"],
    )
    projected = [torch.einsum("bsi,hdi->bhsd", x, weight.view(2, 4, -1)[h][:, d]) + bias.view(2, 1, 4)[h][..., d]
                 for x, weight, bias, d in zip((inputs[0], inputs[1], inputs[1]), (a.q_proj_weight, a.k_proj_weight,
                 a.v_proj_weight), a.in_proj_bias.chunk(3), (e, e, v), strict=True)]  # fmt: skip
    mixed = (projected[0] @ projected[1].mT / 2).softmax(-1) @ projected[2]
    y = torch.einsum("bhsd,ohd->bso", mixed, a.out_proj.weight.view(8, 2, 4)[out][:, h][:, :, v]) + a.out_proj.bias[out]
    value, gate = (
        F.linear(y, w[u][:, out], b[u]) for w, b in zip(m.up.weight.chunk(2), m.up.bias.chunk(2), strict=True)
    )
    return F.linear(value * gate.sigmoid(), m.down.weight[:, u], m.down.bias)


class Encoder(nn.Module):
    """PyTorch's own transformer layer, both orders of its norms. Its q, k and v are packed as 3·h·d, so that the
    dimensions of heads are one group."""

    def __init__(self) -> None:
        super().__init__()
        options: Any = {"dropout": 0.1, "batch_first": True}
        self.first = nn.TransformerEncoderLayer(8, 2, 11, **options)
        self.second = nn.TransformerEncoderLayer(8, 2, 13, norm_first=True, activation="gelu", **options)
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.second(self.first(self.enter(x))))


class Reparametrised(nn.Module):
    """Weights that are computed from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight_norm(nn.Linear(4, 9)), weight_norm(nn.Linear(9, 6))
        self.up, self.leave = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.up(self.b(self.a(x).relu()).relu()).tanh())


class Recurrent(nn.Module):
    """PyTorch's own recurrent layers between linear ones."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.enter, self.steps = nn.Linear(4, 5), kind(5, 6, batch_first=True)
        self.up, self.leave = nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.up(self.steps(self.enter(x))[0]).tanh())


class Broadcast(nn.Module):
    """Rows and columns are summed by broadcasting, as relation networks do; the pair's features are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.column, self.mix, self.leave = (nn.Linear(4, 7), nn.Linear(4, 7), nn.Linear(7, 9),
                                                       nn.Linear(9, 2))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.row(x).unsqueeze(2) + self.column(x).unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        return self.leave(self.mix(pairs.relu()).relu().sum(2))


def broadcast_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    k, n = keep["row.weight[0]"], keep["mix.weight[0]"]
    rows, columns = (F.linear(*inputs, layer.weight[k], layer.bias[k]) for layer in (m.row, m.column))
    pairs = (rows[:, :, None] + columns[:, None]).relu()
    return F.linear(F.linear(pairs, m.mix.weight[n][:, k], m.mix.bias[n]).relu().sum(2), m.leave.weight[:, n],
                    m.leave.bias)  # fmt: skip


class Seen(nn.Module):
    """An intermediate feature is an output too: its width is the caller's, the next one's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.never = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 2), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = self.a(x).relu()
        return [seen, self.c(self.b(seen).relu())]


def seen_by_hand(m: Any, keep: Keep, inputs: Inputs) -> list[Tensor]:
    k, seen = keep["b.weight[0]"], m.a(*inputs).relu()
    return [seen, F.linear(F.linear(seen, m.b.weight[k], m.b.bias[k]).relu(), m.c.weight[:, k], m.c.bias)]


class Bilinear(nn.Module):
    """A product of two hidden vectors that differ in width, through a tensor of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.core = nn.Linear(4, 5), nn.Linear(4, 6), nn.Parameter(torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oij,bj->bo", self.a(x).tanh(), self.core, self.b(x).tanh())


def bilinear_by_hand(m: Any, keep: Keep, inputs: Inputs) -> Tensor:
    i, j = keep["a.weight[0]"], keep["b.weight[0]"]
    a = F.linear(*inputs, m.a.weight[i], m.a.bias[i]).tanh()
    b = F.linear(*inputs, m.b.weight[j], m.b.bias[j]).tanh()
    return torch.stack([((a @ core) * b).sum(-1) for core in m.core[:, i][:, :, j]], -1)


class MixedTokens(nn.Module):
    """A mixer: one linear over tokens and one over features; tokens are the caller's, hidden ones are not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.t1, self.t2 = nn.Linear(4, 6), nn.Linear(5, 9), nn.Linear(9, 5)
        self.norm, self.leave = nn.LayerNorm([5, 6]), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.t2(F.gelu(self.t1(self.norm(x).transpose(1, 2))))
        return self.leave(x + y.permute(0, 2, 1))


CASES = {
    "inputs and outputs": Case(
        "Torch-Pruning: several inputs and outputs", Heads, (vector(3, 4), vector(3, 5), vector(3, 6)),
        {"a.weight[0]": 8, "c.weight[0]": 7}, heads_by_hand,
    ),
    "transposed tie": Case(
        "OTO: weight sharing", Autoencoder, (vector(3, 6),), {"weight[0]": 7}, autoencoder_by_hand
    ),
    "bare parameters": Case("Torch-Pruning: unwrapped parameters", Bare, (vector(3, 5),), {"w[1]": 8}, bare_by_hand),
    "tied embedding": Case(
        "Torch-Pruning: embeddings; OTO: tied weights", TiedHead, (ids(11, 2, 5), ids(2, 2, 5)),
        {"tokens.weight[1]": 8, "up.weight[0]": 13}, tied_by_hand, inexact=frozenset({"tokens.weight[1]"}),
    ),
    "two towers": Case(
        "Torch-Pruning: fully connected, several inputs", TwoTowers, (vector(3, 4), vector(2, 5)),
        {"a.0.weight[0]": 9, "a.2.weight[0]": 6}, towers_by_hand,
    ),
    "cell": Case("OTO: weight sharing over steps", Cell, (vector(2, 3, 4),), {"read.weight[0]": 7}, cell_by_hand),
    "experts": Case(
        "ModelOpt: experts", Experts, (vector(3, 4),), {"gate.weight[0]": 3, "up[2]": 8}, experts_by_hand,
        inexact=frozenset({"gate.weight[0]"}),
    ),
    "broadcast": Case(
        "TinyNN: expand; NNI: broadcasting sums", Broadcast, (vector(2, 3, 4),),
        {"row.weight[0]": 7, "mix.weight[0]": 9}, broadcast_by_hand,
    ),
    "intermediate output": Case(
        "Torch-Pruning: unused parameters, several outputs", Seen, (vector(3, 4),), {"b.weight[0]": 7}, seen_by_hand
    ),
    "bilinear": Case(
        "TinyNN: products of two branches", Bilinear, (vector(3, 4),), {"a.weight[0]": 5, "b.weight[0]": 6},
        bilinear_by_hand,
    ),
    "mixer": Case(
        "ModelOpt: norm over two dimensions; TinyNN: transposes", MixedTokens, (vector(2, 5, 4),),
        {"enter.weight[0]": 6, "t1.weight[0]": 9}, inexact=frozenset({"enter.weight[0]"}),
    ),
    "parametrised": Case(
        "ModelOpt: parametrised weights", Reparametrised, (vector(3, 4),),
        {"a.parametrizations.weight.original1[0]": 9, "b.parametrizations.weight.original1[0]": 6,
         "up.weight[0]": 8},
        inexact=frozenset({"a.parametrizations.weight.original1[0]"}), refusal="aten._weight_norm.default",
    ),
    "multihead": Case(
        "Torch-Pruning: MultiheadAttention", Multihead, (vector(2, 4, 8), vector(2, 5, 6)),
        {"attention.q_proj_weight[0]": (2, 4), "attention.v_proj_weight[0]": 4, "attention.out_proj.weight[0]": 8,
         "up.weight[0]": 7}, multihead_by_hand,
    ),
    "encoder": Case(
        "Torch-Pruning: transformer layers", Encoder, (vector(2, 4, 5),),
        {"enter.weight[0]": 8, "first.linear1.weight[0]": 11, "second.linear1.weight[0]": 13,
         "first.self_attn.in_proj_weight[0]": (2, 4), "second.self_attn.in_proj_weight[0]": (2, 4)},
        inexact=frozenset({"enter.weight[0]"}),
    ),
    **{
        kind.__name__.lower(): Case(
            f"Torch-Pruning and TinyNN: {kind.__name__}", lambda kind=kind: Recurrent(kind), (vector(2, 3, 4),),
            {"enter.weight[0]": 5, "steps.weight_hh_l0[1]": 6, "up.weight[0]": 7}, refusal=operator,
        )
        for kind, operator in (
            (nn.LSTM, "aten.lstm.input"), (nn.GRU, "aten.gru.input"), (nn.RNN, "aten.rnn_tanh.input"),
        )
    },
}  # fmt: skip
