"""Layers of the fuzzer on tokens and vectors: MLPs of every packing, norms, mixers, recurrences, experts."""

from __future__ import annotations

from tests.fuzz.grammar import Emitter, Invalid, Value, layer
from tests.fuzz.layers_common import activation


def features_last(x: Value) -> None:
    """Linear layers act on the last dimension."""
    if x.kind == "image":
        raise Invalid("channels must be last")


# --- MLPs --------------------------------------------------------------------------------------------------------


@layer("any", features="linear")
def linear(e: Emitter, x: Value) -> Value:
    features_last(x)
    out = e.width()
    return x.now(e.let(f"{e.linear('fc', x.width, out, bias=e.flag('bias'))}({x.code})"), out)


@layer("any", features="mlp", weight=2)
def mlp(e: Emitter, x: Value) -> Value:
    features_last(x)
    hidden = e.width("hidden")
    up, down = e.linear("up", x.width, hidden, bias=e.flag("bias")), e.linear("down", hidden, x.width)
    inner = activation(e, e.let(f"{up}({x.code})"))
    value = e.let(f"{down}({inner})")
    return x.now(e.let(f"{x.code} + {value}") if e.flag("residual") else value)


@layer("any", features="gated-mlp", weight=2)
def gated_mlp(e: Emitter, x: Value) -> Value:
    features_last(x)
    hidden = e.width("hidden")
    how = e.pick("packing", ("separate", "chunk", "slice", "interleaved", "glu", "view", "flipped"))
    last = len(x.shape)
    if how == "separate":
        gate, up = (e.let(f"{e.linear(n, x.width, hidden)}({x.code})") for n in ("gate", "up"))
    else:
        both = e.let(f"{e.module('both', f'nn.Linear({x.width}, {2 * hidden})')}({x.code})")
        gate, up = _unpacked(e, how, both, hidden, last)
    inner = both_glu(e, both) if how == "glu" else e.let(f"{activation(e, gate)} * {up}")
    return x.now(e.let(f"{e.linear('down', hidden, x.width, bias=e.flag('bias'))}({inner})"))


def both_glu(e: Emitter, both: str) -> str:
    """The operator of that name."""
    return e.let(f"F.glu({both}, -1)")


def _unpacked(e: Emitter, how: str, both: str, hidden: int, last: int) -> tuple[str, str]:
    if how == "interleaved":
        return e.let(f"{both}[..., ::2]"), e.let(f"{both}[..., 1::2]")
    if how == "slice":
        return e.let(f"{both}[..., :{hidden}]"), e.let(f"{both}[..., {hidden}:]")
    if how == "view":
        split = e.let(f"{both}.unflatten(-1, (2, {hidden}))")
        return e.let(f"{split}.select({last}, 0)"), e.let(f"{split}.select({last}, 1)")
    a, b = e.let_many(2, f"{both}.chunk(2, -1)")
    return (b, a) if how == "flipped" else (a, b)


@layer("any", features="conv1d-style transposed-weight")
def transposed_linear(e: Emitter, x: Value) -> Value:
    features_last(x)
    hidden = e.width("hidden")
    w1, b1, w2 = e.parameter("w1", x.width, hidden), e.parameter("b1", hidden), e.parameter("w2", hidden, x.width)
    how = e.pick("how", ("matmul", "addmm", "mm", "linear", "einsum"))
    flat = e.let(f"{x.code}.reshape(-1, {x.width})")
    first = {
        "addmm": f"torch.addmm({b1}, {flat}, {w1})", "mm": f"{flat}.mm({w1}) + {b1}", "matmul": f"{flat} @ {w1} + {b1}",
        "linear": f"F.linear({flat}, {w1}.t(), {b1})", "einsum": f"torch.einsum('nk,kj->nj', {flat}, {w1}) + {b1}",
    }[how]  # fmt: skip
    value = e.let(f"{activation(e, e.let(first))} @ {w2}")
    return x.now(e.let(f"{value}.view({x.code}.shape)"))


@layer("any", features="low-rank")
def low_rank(e: Emitter, x: Value) -> Value:
    features_last(x)
    rank = e.width("rank")
    base = e.let(f"{e.linear('base', x.width, x.width)}({x.code})")
    low = e.let(f"{e.linear('b', rank, x.width, bias=False)}({e.linear('a', x.width, rank, bias=False)}({x.code}))")
    return x.now(e.let(f"{base} + {low} * 0.5"))


@layer("any", features="shared-weight")
def shared_linear(e: Emitter, x: Value) -> Value:
    features_last(x)
    how = e.pick("how", ("twice", "transposed", "scaled", "normed", "table"))
    if how == "twice":
        fc = e.module("fc", f"nn.Linear({x.width}, {x.width})")
        return x.now(e.let(f"{fc}({activation(e, e.let(f'{fc}({x.code})'))})"))
    hidden = e.width("hidden")
    w = e.parameter("w", hidden, x.width)
    inner = activation(e, e.let(f"F.linear({x.code}, {w})"))
    if how == "transposed":
        return x.now(e.let(f"F.linear({inner}, {w}.t())"))
    down = e.linear("down", hidden, x.width)
    extra = {"scaled": f"{w}.sum(1)", "normed": f"{w}.norm(dim=1)", "table": f"{w}[:, 0]"}[how]
    return x.now(e.let(f"{down}({inner} * {extra})"))


@layer("any", features="bilinear")
def outer_product(e: Emitter, x: Value) -> Value:
    features_last(x)
    a, b, out = e.pick("a", (2, 3, 4)), e.pick("b", (2, 3, 4)), e.width()
    left = e.let(f"{e.linear('left', x.width, a)}({x.code})")
    right = e.let(f"{e.linear('right', x.width, b)}({x.code})")
    product = e.let(f"({left}.unsqueeze(-1) * {right}.unsqueeze(-2)).flatten(-2)")
    return x.now(e.let(f"{e.module('out', f'nn.Linear({a * b}, {out})')}({product})"), out)


# --- norms -------------------------------------------------------------------------------------------------------


@layer("any", features="norm", weight=1.5)
def norm_last(e: Emitter, x: Value) -> Value:
    features_last(x)
    affine = e.pick("affine", (True, False))
    how = e.pick("how", ("LayerNorm", "RMSNorm"))
    name = "elementwise_affine"
    return x.now(e.let(f"{e.module('norm', f'nn.{how}({x.width}, {name}={affine})')}({x.code})"))


@layer("any", features="norm heads")
def norm_heads(e: Emitter, x: Value) -> Value:
    features_last(x)
    h, d = e.pick("heads", (2, 3)), e.pick("dim", (2, 4, 3))
    norm = e.module("norm", f"nn.{e.pick('how', ('LayerNorm', 'RMSNorm'))}({d})")
    value = e.let(f"{e.linear('to', x.width, h * d)}({x.code}).unflatten(-1, ({h}, {d}))")
    value = e.let(f"{norm}({value}).flatten(-2)")
    return x.now(e.let(f"{e.linear('out', h * d, x.width)}({value})"))


@layer("tokens", features="norm")
def norm_channels_first(e: Emitter, x: Value) -> Value:
    # PyTorch refuses to normalise single values, which groups of one channel are at one token and one row.
    groups = [g for g in (1, 2, 3) if x.width % g == 0 and x.width > g]
    hows = [f"BatchNorm1d({x.width})", *([f"GroupNorm({e.pick('groups', groups)}, {x.width})"] if groups else [])]
    how = e.pick("how", hows)
    return x.now(e.let(f"{e.module('norm', f'nn.{how}')}({x.code}.transpose(1, 2)).transpose(1, 2)"))


@layer("vector", features="norm")
def norm_vector(e: Emitter, x: Value) -> Value:
    return x.now(e.let(f"{e.module('norm', f'nn.BatchNorm1d({x.width})')}({x.code})"))


# --- along the tokens --------------------------------------------------------------------------------------------


@layer("tokens", features="mixer permute")
def token_mixer(e: Emitter, x: Value) -> Value:
    hidden = e.width("hidden")
    up, down = e.linear("up", x.length, hidden), e.linear("down", hidden, x.length)
    inner = activation(e, e.let(f"{up}({x.code}.transpose(1, 2))"))
    return x.now(e.let(f"{x.code} + {down}({inner}).transpose(1, 2)"))


@layer("tokens", features="conv1d")
def token_conv(e: Emitter, x: Value) -> Value:
    out = e.width()
    groups = e.pick("groups", [g for g in (1, 2, 3) if x.width % g == 0 and out % g == 0])
    dilation = e.pick("dilation", (1, 2))
    conv = e.module("conv", f"nn.Conv1d({x.width}, {out}, 3, padding={dilation}, dilation={dilation}, groups={groups})")
    return x.now(e.let(f"{conv}({x.code}.permute(0, 2, 1)).permute(0, 2, 1)"), out)


@layer("tokens", features="conv1d depthwise causal")
def causal_conv(e: Emitter, x: Value) -> Value:
    hidden, size = e.width("hidden"), e.pick("kernel", (2, 3))
    wide = e.let(f"{e.linear('to', x.width, hidden)}({x.code}).transpose(1, 2)")
    conv = e.module("conv", f"nn.Conv1d({hidden}, {hidden}, {size}, groups={hidden})")
    value = e.let(f"{conv}(F.pad({wide}, ({size - 1}, 0))).transpose(1, 2)")
    return x.now(e.let(f"{e.linear('out', hidden, x.width)}({activation(e, value)})"))


@layer("tokens", features="slice")
def shifted(e: Emitter, x: Value) -> Value:
    if not isinstance(x.shape[0], int):
        raise Invalid("a static length is needed")
    how = e.pick(
        "how", ("torch.cat([torch.zeros_like({0}[:, :1]), {0}[:, :-1]], 1)", "torch.roll({}, 1, 1)", "{}.flip(1)")
    )
    return x.now(e.let(f"{x.code} + {how.format(x.code)}"))


@layer("tokens", features="pooling")
def pooled(e: Emitter, x: Value) -> Value:
    how = e.pick("how", ("mean(1)", "sum(1)", "amax(1)", "select(1, 0)", "select(1, -1)"))
    return Value(e.let(f"{x.code}.{how}"), "vector", (x.width,), x.batch)


@layer("tokens", features="pooling")
def attention_pool(e: Emitter, x: Value) -> Value:
    weights = e.let(f"F.softmax({e.module('score', f'nn.Linear({x.width}, 1)')}({x.code}), 1)")
    return Value(e.let(f"({x.code} * {weights}).sum(1)"), "vector", (x.width,), x.batch)


@layer("tokens", features="flatten reshape", weight=1.5)
def flattened(e: Emitter, x: Value) -> Value:
    if x.length * x.width > 80:
        raise Invalid("too wide")
    how = e.pick("how", ("flatten(1)", "transpose(1, 2).flatten(1)", "permute(0, 2, 1).reshape({}.shape[0], -1)"))
    return Value(e.let(f"{x.code}.{how.format(x.code)}"), "vector", (x.length * x.width,), x.batch)


@layer("vector", features="reshape")
def vector_to_tokens(e: Emitter, x: Value) -> Value:
    length, width = e.pick("length", (2, 3, 4)), e.width()
    wide = e.let(f"{e.module('to', f'nn.Linear({x.width}, {length * width})')}({x.code})")
    how = e.pick("how", (f"view(-1, {length}, {width})", f"view(-1, {width}, {length}).transpose(1, 2)"))
    return Value(e.let(f"{wide}.{how}"), "tokens", (length, width), x.batch)


@layer("tokens", features="patch-merging reshape")
def merge_tokens(e: Emitter, x: Value) -> Value:
    if x.length % 2:
        raise Invalid("an even length is needed")
    how = e.pick("how", ("view", "cat"))
    if how == "view":
        merged = e.let(f"{x.code}.reshape(-1, {x.length // 2}, {2 * x.width})")
    else:
        merged = e.let(f"torch.cat([{x.code}[:, 0::2], {x.code}[:, 1::2]], -1)")
    return Value(
        e.let(f"{e.linear('fc', 2 * x.width, x.width)}({merged})"), "tokens", (x.length // 2, x.width), x.batch
    )


# --- recurrences and experts -------------------------------------------------------------------------------------


@layer("tokens", features="recurrence")
def gated_recurrence(e: Emitter, x: Value) -> Value:
    if x.length > 5:
        raise Invalid("unrolled for a few steps only")
    hidden = e.pick("hidden", (2, 3, 5, 8))
    packed = e.pick("packed", (False, True))
    w = e.module("w", f"nn.Linear({x.width}, {2 * hidden})") if packed else ""
    gate, cand = ("", "") if packed else (e.linear("gate", x.width, hidden), e.linear("cand", x.width, hidden))
    u = e.module("u", f"nn.Linear({hidden}, {hidden}, bias=False)")
    state, states = e.let(f"{x.code}.new_zeros({x.code}.shape[0], {hidden})"), []
    for step in range(x.length):
        now = e.let(f"{x.code}[:, {step}]")
        z, c = e.let_many(2, f"{w}({now}).chunk(2, -1)") if packed else (f"{gate}({now})", f"{cand}({now})")
        z = e.let(f"torch.sigmoid({z})")
        state = e.let(f"{z} * {state} + (1 - {z}) * torch.tanh({c} + {u}({state}))")
        states.append(state)
    return x.now(e.let(f"torch.stack([{', '.join(states)}], 1)"), hidden)


@layer("tokens", features="state-space")
def state_space(e: Emitter, x: Value) -> Value:
    if x.length > 5:
        raise Invalid("unrolled for a few steps only")
    inner, n = e.pick("inner", (2, 3, 6)), e.pick("state", (1, 2, 4))
    u = e.let(f"{e.linear('to', x.width, inner)}({x.code})")
    delta = e.let(f"F.softplus({e.linear('delta', inner, inner)}({u}))")
    b, c = e.let_many(2, f"{e.module('bc', f'nn.Linear({inner}, {2 * n})')}({u}).chunk(2, -1)")
    a = e.let(f"-torch.exp({e.parameter('a_log', inner, n)})")
    decay = e.let(f"torch.exp({delta}.unsqueeze(-1) * {a})")
    push = e.let(f"({delta} * {u}).unsqueeze(-1) * {b}.unsqueeze(2)")
    state, found = e.let(f"{push}[:, 0]"), []
    for step in range(x.length):
        if step:
            state = e.let(f"{decay}[:, {step}] * {state} + {push}[:, {step}]")
        found.append(e.let(f"({state} * {c}[:, {step}].unsqueeze(1)).sum(-1)"))
    y = e.let(f"torch.stack([{', '.join(found)}], 1) + {u} * {e.parameter('d', inner)}")
    y = e.let(f"{y} * F.silu({e.linear('gate', x.width, inner)}({x.code}))") if e.flag("gate") else y
    return x.now(e.let(f"{e.linear('out', inner, x.width)}({y})"))


@layer("any", features="moe")
def dense_experts(e: Emitter, x: Value) -> Value:
    features_last(x)
    n, hidden = e.pick("experts", (2, 3, 4)), e.width("hidden")
    gate = e.let(f"F.softmax({e.module('router', f'nn.Linear({x.width}, {n})')}({x.code}), -1)")
    up, down = e.parameter("up", n, x.width, hidden), e.parameter("down", n, hidden, x.width)
    t = "bs" if x.kind == "tokens" else "b"
    if e.pick("how", ("einsum", "bmm")) == "einsum":
        inner = activation(e, e.let(f"torch.einsum('{t}d,ndf->{t}nf', {x.code}, {up})"))
        return x.now(e.let(f"torch.einsum('{t}nf,nfd,{t}n->{t}d', {inner}, {down}, {gate})"))
    flat = e.let(f"{x.code}.reshape(-1, {x.width})")
    inner = activation(e, e.let(f"torch.bmm({flat}.unsqueeze(0).expand({n}, -1, -1), {up})"))
    each = e.let(f"torch.bmm({inner}, {down}).permute(1, 0, 2)")
    value = e.let(f"({each} * {gate}.reshape(-1, {n}, 1)).sum(1)")
    return x.now(e.let(f"{value}.view({x.code}.shape)"))


@layer("any", features="moe")
def listed_experts(e: Emitter, x: Value) -> Value:
    features_last(x)
    n, hidden = e.pick("experts", (2, 3)), e.width("hidden")
    gate = e.let(f"F.softmax({e.module('router', f'nn.Linear({x.width}, {n})')}({x.code}), -1)")
    terms = []
    for i in range(n):
        inner = activation(e, e.let(f"{e.linear(f'up{i}', x.width, hidden)}({x.code})"))
        terms.append(e.let(f"{e.linear(f'down{i}', hidden, x.width)}({inner}) * {gate}[..., {i}:{i + 1}]"))
    return x.now(e.let(" + ".join(terms)))


# --- heads -------------------------------------------------------------------------------------------------------


@layer("any", features="head", weight=0.5)
def head(e: Emitter, x: Value) -> Value:
    features_last(x)
    out = e.pick("out", (3, 1, 2, 7))
    e.uses(*(["single-output-channel"] if out == 1 else []))
    return x.now(e.let(f"{e.module('head', f'nn.Linear({x.width}, {out})')}({x.code})"), out)


@layer("any", features="tied-embedding", weight=0.5)
def tied_head(e: Emitter, x: Value) -> Value:
    features_last(x)
    tables = [line for line in e.init if "nn.Embedding(" in line and "_emb =" in line and f", {x.width})" in line]
    if not tables:
        raise Invalid("no embedding is as wide")
    name, rest = tables[0].split(" = nn.Embedding(")
    vocab = int(rest.split(",")[0])
    how = e.pick("how", ("F.linear({x}, {w})", "{x} @ {w}.t()", "torch.einsum('...d,vd->...v', {x}, {w})"))
    return x.now(e.let(how.format(x=x.code, w=f"{name}.weight")), vocab)
