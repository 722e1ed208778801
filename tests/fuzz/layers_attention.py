"""Layers of the fuzzer: attention in every layout of its projections, heads, positions and scores."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.grammar import Emitter, Invalid, Value, layer


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values [b, heads, length, dim] by name, with their sizes."""

    q: str
    k: str
    v: str
    heads: int
    kv: int
    dim: int
    value_dim: int


def _split(e: Emitter, code: str, heads: int, dim: int) -> str:
    """[b, s, h·d] -> [b, h, s, d], as people write it."""
    how = e.pick("split", ("view", "unflatten", "reshape"))
    if how == "unflatten":
        return e.let(f"{code}.unflatten(-1, ({heads}, {dim})).transpose(1, 2)")
    return e.let(f"{code}.{how}({code}.shape[0], -1, {heads}, {dim}).permute(0, 2, 1, 3)")


def _merge(e: Emitter, code: str, width: int) -> str:
    how = e.pick("merge", ("flatten", "reshape", "view"))
    moved = e.let(f"{code}.transpose(1, 2)")
    if how == "flatten":
        return e.let(f"{moved}.flatten(2)")
    return e.let(
        f"{moved}{'.contiguous()' if how == 'view' else ''}.{how}({moved}.shape[0], {moved}.shape[1], {width})"
    )


def _rotary(e: Emitter, x: Value, p: Heads, how: str) -> Heads:
    """Rotary positions on queries and keys: half-split, interleaved, or on a part of the dimensions."""
    size = p.dim // 2 * 2 if how != "partial" else p.dim // 4 * 2
    if not size or x.kind != "tokens":
        raise Invalid("too few dimensions for rotary positions")
    angles = f"torch.arange(12).unsqueeze(1) * 10.0 ** (-torch.arange({size // 2}) / {size})"
    table = e.buffer("angles", angles)
    angle = e.let(f"{table}[: {x.code}.shape[1]]")

    def turn(code: str) -> str:
        part = e.let(f"{code}[..., :{size}]")
        if how == "interleaved":
            pairs = e.let(f"{part}.unflatten(-1, ({size // 2}, 2))")
            a, b = e.let_many(2, f"{pairs}.unbind(-1)")
            done = e.let(f"torch.stack([{a} * torch.cos({angle}) - {b} * torch.sin({angle}), "
                         f"{a} * torch.sin({angle}) + {b} * torch.cos({angle})], -1).flatten(-2)")  # fmt: skip
        else:
            cos, sin = (e.let(f"torch.cat([{f}({angle}), {f}({angle})], -1)") for f in ("torch.cos", "torch.sin"))
            a, b = e.let_many(2, f"{part}.chunk(2, -1)")
            done = e.let(f"{part} * {cos} + torch.cat([-{b}, {a}], -1) * {sin}")
        return done if size == p.dim else e.let(f"torch.cat([{done}, {code}[..., {size}:]], -1)")

    e.uses("rotary", f"rotary-{how}")
    return Heads(turn(p.q), turn(p.k), p.v, p.heads, p.kv, p.dim, p.value_dim)


def _shared_keys(e: Emitter, p: Heads) -> tuple[Heads, bool]:
    """Keys and values for every query head; or as they are, with True, where the operator is to share them."""
    if p.kv == p.heads:
        return p, False
    repeat = p.heads // p.kv
    e.uses("multi-query" if p.kv == 1 else "grouped-query")
    how = e.pick("share", ("expand", "repeat_interleave", "enable_gqa", *(["broadcast"] if p.kv == 1 else [])))
    e.uses(f"gqa-{how}")
    if how == "enable_gqa":
        return p, True
    if how == "broadcast":
        return p, False

    def wide(code: str) -> str:
        if how == "repeat_interleave":
            return e.let(f"{code}.repeat_interleave({repeat}, 1)")
        return e.let(f"{code}.unsqueeze(2).expand(-1, -1, {repeat}, -1, -1).flatten(1, 2)")

    return Heads(p.q, wide(p.k), wide(p.v), p.heads, p.heads, p.dim, p.value_dim), False


def attend(e: Emitter, x: Value, p: Heads, *, causal: bool = True, static: int | None = None) -> str:
    """The attended values [b, s, heads·value_dim]. `static` is the length where it is known and self-attended."""
    kind = e.pick("positions", ("none", "none", "half", "interleaved", "partial", "qk-norm", "cosine"))
    if kind in ("half", "interleaved", "partial") and p.dim >= (4 if kind == "partial" else 2) and p.dim % 2 == 0:
        p = _rotary(e, x, p, kind)
    elif kind == "qk-norm":
        norms = [e.module(n, f"nn.{e.pick('norm', ('LayerNorm', 'RMSNorm'))}({p.dim})") for n in ("qn", "kn")]
        p = Heads(e.let(f"{norms[0]}({p.q})"), e.let(f"{norms[1]}({p.k})"), p.v, p.heads, p.kv, p.dim, p.value_dim)
        e.uses("qk-norm")
    elif kind == "cosine":
        q, k = (e.let(f"F.normalize({c}, dim=-1)") for c in (p.q, p.k))
        p = Heads(q, k, p.v, p.heads, p.kv, p.dim, p.value_dim)
        e.uses("cosine-attention")
    p, gqa = _shared_keys(e, p)
    how = "sdpa" if gqa else e.pick("scores", ("sdpa", "matmul", "einsum", "baddbmm", "talking"))
    e.uses(f"attention-{how}")
    if how == "sdpa":
        return _merge(e, _sdpa(e, p, causal=causal, static=static, gqa=gqa), p.heads * p.value_dim)
    return _merge(e, _by_hand(e, p, how, static), p.heads * p.value_dim)


def _sdpa(e: Emitter, p: Heads, *, causal: bool, static: int | None, gqa: bool) -> str:
    mask = e.pick("mask", ("", ", scale=0.7", *([", is_causal=True"] if causal else []), *(["bias"] if static else [])))
    if mask == "bias":
        mask = f", attn_mask={_bias(e, p.heads, int(static or 0))}"
    return e.let(f"F.scaled_dot_product_attention({p.q}, {p.k}, {p.v}{mask}{', enable_gqa=True' if gqa else ''})")


def _bias(e: Emitter, heads: int, length: int) -> str:
    """A learned bias [1, heads, length, length]: whole, or looked up in a table by relative position."""
    e.uses("learned-bias")
    if e.pick("bias_kind", ("whole", "table")) == "whole":
        return e.let(f"{e.parameter('bias', heads, length, length)}.unsqueeze(0)")
    e.uses("relative-bias")
    table = e.parameter("relative", 2 * length - 1, heads)
    index = f"(torch.arange({length}).unsqueeze(1) - torch.arange({length}) + {length - 1})"
    where = e.buffer("where", index)
    looked = e.let(f"{table}[{where}.view(-1)].view({length}, {length}, {heads})")
    return e.let(f"{looked}.permute(2, 0, 1).contiguous().unsqueeze(0)")


def _by_hand(e: Emitter, p: Heads, how: str, static: int | None) -> str:
    if how == "einsum":
        scores = e.let(f"torch.einsum('bhqd,bhkd->bhqk', {p.q}, {p.k.replace(' ', '')}) * {p.dim**-0.5:.4f}")
        if p.kv != p.heads:
            raise Invalid("einsum needs equal heads")
    elif how == "baddbmm" and p.kv == p.heads:
        q, k = e.let(f"{p.q}.flatten(0, 1)"), e.let(f"{p.k}.flatten(0, 1)")
        scores = e.let(f"torch.bmm({q} * 0.5, {k}.transpose(1, 2)).unflatten(0, (-1, {p.heads}))")
    else:
        scores = e.let(f"({p.q} @ {p.k}.transpose(-2, -1)) / {p.dim**0.5:.4f}")
    if static and e.flag("biased"):
        scores = e.let(f"{scores} + {_bias(e, p.heads, static)}")
    weights = e.let(f"F.softmax({scores}, dim=-1)")
    if how == "talking":
        e.uses("talking-heads")
        mix = e.module("talk", f"nn.Linear({p.heads}, {p.heads})")
        weights = e.let(f"{mix}({weights}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")
    if how == "einsum":
        return e.let(f"torch.einsum('bhqk,bhkd->bhqd', {weights}, {p.v})")
    return e.let(f"{weights} @ {p.v}")


def _sizes(e: Emitter) -> tuple[int, int]:
    return int(e.pick("heads", (2, 3, 4, 1))), int(e.pick("dim", (2, 4, 3, 1, 8)))


def _out(e: Emitter, x: Value, merged: str, width: int) -> Value:
    value = e.let(f"{e.linear('out', width, x.width, bias=e.flag('out_bias'))}({merged})")
    return x.now(e.let(f"{x.code} + {value}") if e.flag("residual") else value)


def _static(x: Value) -> int | None:
    return x.shape[0] if isinstance(x.shape[0], int) and x.shape[0] <= 12 else None


def _short(x: Value) -> None:
    if x.kind == "tokens" and isinstance(x.shape[0], int) and x.shape[0] > 12:
        raise Invalid("too long")


@layer("tokens", features="attention attention-separate", weight=3)
def attention_separate(e: Emitter, x: Value) -> Value:
    _short(x)
    heads, dim = _sizes(e)
    kv = int(e.pick("kv", [k for k in (heads, 1, 2) if heads % k == 0]))
    value_dim = int(e.pick("value_dim", (dim, 2, 3)))
    bias = e.flag("bias")
    q, k, v = (
        _split(e, e.let(f"{e.linear(name, x.width, n * d, bias=bias)}({x.code})"), n, d)
        for name, n, d in (("q", heads, dim), ("k", kv, dim), ("v", kv, value_dim))
    )
    merged = attend(e, x, Heads(q, k, v, heads, kv, dim, value_dim), static=_static(x))
    return _out(e, x, merged, heads * value_dim)


@layer("tokens", features="attention fused-qkv", weight=3)
def attention_fused(e: Emitter, x: Value) -> Value:
    _short(x)
    heads, dim = _sizes(e)
    how = e.pick("layout", ("3hd", "h3d", "hd3", "split", "chunk", "per-head-split", "heads-last"))
    e.uses(f"fused-{how}")
    qkv = e.module("qkv", f"nn.Linear({x.width}, {3 * heads * dim}, bias={e.flag('bias')})")
    fused = e.let(f"{qkv}({x.code})")
    lead = f"{fused}.shape[0], -1"
    if how in ("split", "chunk"):
        parts = e.let_many(3, f"{fused}.split({heads * dim}, -1)" if how == "split" else f"{fused}.chunk(3, -1)")
        q, k, v = (_split(e, part, heads, dim) for part in parts)
    elif how == "3hd":
        q, k, v = e.let_many(3, f"{fused}.view({lead}, 3, {heads}, {dim}).permute(2, 0, 3, 1, 4).unbind(0)")
    elif how == "h3d":
        q, k, v = e.let_many(3, f"{fused}.view({lead}, {heads}, 3, {dim}).permute(3, 0, 2, 1, 4).unbind(0)")
    elif how == "hd3":
        q, k, v = e.let_many(3, f"{fused}.view({lead}, {heads}, {dim}, 3).permute(4, 0, 2, 1, 3)")
    elif how == "heads-last":
        split = e.let(f"{fused}.view({lead}, 3, {dim}, {heads}).permute(2, 0, 4, 1, 3)")
        q, k, v = (e.let(f"{split}[{i}]") for i in range(3))
    else:
        q, k, v = e.let_many(3, f"{fused}.view({lead}, {heads}, {3 * dim}).transpose(1, 2).chunk(3, -1)")
    return _out(e, x, attend(e, x, Heads(q, k, v, heads, heads, dim, dim), static=_static(x)), heads * dim)


@layer("tokens", features="attention fused-qkv grouped-query packed-gqa", weight=1.5)
def attention_packed_groups(e: Emitter, x: Value) -> Value:
    """Queries, keys and values of each group side by side (Falcon), or one after the other (Phi-3)."""
    _short(x)
    kv, repeat, dim = int(e.pick("kv", (2, 1, 3))), int(e.pick("repeat", (2, 3, 1))), int(e.pick("dim", (2, 4, 3)))
    heads = kv * repeat
    total = (heads + 2 * kv) * dim
    fused = e.let(f"{e.module('qkv', f'nn.Linear({x.width}, {total})')}({x.code})")
    if e.pick("packing", ("grouped", "sequence")) == "grouped":
        split = e.let(f"{fused}.view({fused}.shape[0], -1, {kv}, {repeat + 2}, {dim})")
        q = e.let(f"{split}[:, :, :, :-2].flatten(2, 3).transpose(1, 2)")
        k, v = (e.let(f"{split}[:, :, :, {i}].transpose(1, 2)") for i in (-2, -1))
    else:
        parts = e.let_many(3, f"{fused}.split([{heads * dim}, {kv * dim}, {kv * dim}], -1)")
        q, k, v = (_split(e, part, n, dim) for part, n in zip(parts, (heads, kv, kv), strict=True))
    return _out(e, x, attend(e, x, Heads(q, k, v, heads, kv, dim, dim), static=_static(x)), heads * dim)


@layer("tokens", "tokens", features="attention cross-attention", weight=2)
def attention_cross(e: Emitter, x: Value, y: Value) -> Value:
    _short(x)
    _short(y)
    if x.batch != y.batch or x.code == y.code:
        raise Invalid("one batch is needed")
    heads, dim = _sizes(e)
    q = _split(e, e.let(f"{e.linear('q', x.width, heads * dim)}({x.code})"), heads, dim)
    if e.pick("packed_kv", (False, True)):
        both = e.let(f"{e.module('kv', f'nn.Linear({y.width}, {2 * heads * dim})')}({y.code})")
        k, v = e.let_many(2, f"{both}.view({both}.shape[0], -1, 2, {heads}, {dim}).permute(2, 0, 3, 1, 4).unbind(0)")
    else:
        k, v = (
            _split(e, e.let(f"{e.linear(n, y.width, heads * dim)}({y.code})"), heads, dim) for n in ("k", "v")
        )  # fmt: skip
    how = e.pick("cross", ("sdpa", "matmul", "einsum"))
    parts = Heads(q, k, v, heads, heads, dim, dim)
    value = _sdpa(e, parts, causal=False, static=None, gqa=False) if how == "sdpa" else _by_hand(e, parts, how, None)
    return _out(e, x, _merge(e, value, heads * dim), heads * dim)


@layer("tokens", features="attention latents", weight=1.5)
def attention_latents(e: Emitter, x: Value) -> Value:
    """Learned queries look at the tokens: as many tokens as there are latents come out."""
    _short(x)
    if x.batch != "batch":
        raise Invalid("a batch is needed")
    heads, dim = _sizes(e)
    count = e.width("latents")
    latents = e.parameter("latents", count, heads * dim)
    q = e.let(f"{latents}.view(1, {count}, {heads}, {dim}).transpose(1, 2).expand({x.code}.shape[0], -1, -1, -1)")
    k, v = (_split(e, e.let(f"{e.linear(n, x.width, heads * dim)}({x.code})"), heads, dim) for n in ("k", "v"))
    merged = _merge(
        e, _sdpa(e, Heads(q, k, v, heads, heads, dim, dim), causal=False, static=None, gqa=False), heads * dim
    )
    value = e.let(f"{e.linear('out', heads * dim, x.width)}({merged})")
    return Value(value, "tokens", (count, x.width), x.batch)


@layer("image", features="attention windowed roll", weight=2)
def attention_windowed(e: Emitter, x: Value) -> Value:
    """Windows of 2 x 2, shifted by a roll, with a relative bias (Swin)."""
    (h, w), c = x.side, x.width
    if h % 2 or w % 2:
        raise Invalid("even sides are needed")
    heads, dim = int(e.pick("heads", (2, 1, 3))), int(e.pick("dim", (2, 3, 4)))
    last = e.let(f"{x.code}.permute(0, 2, 3, 1)")
    shift = e.flag("shift")
    last = e.let(f"torch.roll({last}, (-1, -1), (1, 2))") if shift else last
    grid = e.let(f"{last}.view(-1, {h // 2}, 2, {w // 2}, 2, {c}).permute(0, 1, 3, 2, 4, 5)")
    windows = e.let(f"{grid}.reshape(-1, 4, {c})")
    fused = e.let(f"{e.module('qkv', f'nn.Linear({c}, {3 * heads * dim})')}({windows})")
    q, k, v = e.let_many(3, f"{fused}.view(-1, 4, 3, {heads}, {dim}).permute(2, 0, 3, 1, 4).unbind(0)")
    value = e.pick("core", ("sdpa", "matmul"))
    parts = Heads(q, k, v, heads, heads, dim, dim)
    merged = _sdpa(e, parts, causal=False, static=4, gqa=False) if value == "sdpa" else _by_hand(e, parts, value, 4)
    merged = _merge(e, merged, heads * dim)
    out = e.let(f"{e.linear('out', heads * dim, c)}({merged})")
    back = e.let(f"{out}.view(-1, {h // 2}, {w // 2}, 2, 2, {c}).permute(0, 1, 3, 2, 4, 5).reshape(-1, {h}, {w}, {c})")
    back = e.let(f"torch.roll({back}, (1, 1), (1, 2))") if shift else back
    return x.now(e.let(f"{x.code} + {back}.permute(0, 3, 1, 2)"))
