"""Layers of the fuzzer: where values come from, how they meet, and what is done to channels of any kind of value."""

from __future__ import annotations

from tests.fuzz.grammar import Emitter, Invalid, Value, layer

ACTIVATIONS = (
    "F.relu({})", "F.gelu({})", "F.silu({})", "torch.tanh({})", "torch.sigmoid({})", "F.softplus({})",
    "F.leaky_relu({}, 0.1)", "F.elu({})", "F.hardswish({})", "F.relu6({})", "F.mish({})", "{}.square()", "{}.abs()",
    "torch.sin({})", "torch.clamp({}, -1.0, 1.5)", "F.gelu({}, approximate='tanh')", "-{}", "{} * 0.5 + 1.0",
)  # fmt: skip


def activation(e: Emitter, code: str, name: str = "act") -> str:
    """A nonlinearity of a value."""
    return e.let(str(e.pick(name, ACTIVATIONS)).format(code))


# --- sources -----------------------------------------------------------------------------------------------------


@layer()
def source_tokens(e: Emitter) -> Value:
    width, other = e.width(), e.flag("other")
    name, symbol = ("t", "t") if other else ("s", "s")
    code = e.argument("tokens", f"torch.randn(batch, {name}, {width}, generator=g)", {0: "batch", 1: symbol})
    length = symbol if e.dynamic == "both" else e.static_length + other
    return Value(code, "tokens", (length, width))


@layer(features="embedding")
def source_ids(e: Emitter) -> Value:
    vocab, width = e.pick("vocab", (5, 7, 11)), e.width()
    code = e.argument("ids", f"torch.randint(0, {vocab}, (batch, s), generator=g)", {0: "batch", 1: "s"})
    table = e.module("emb", f"nn.Embedding({vocab}, {width})")
    value = e.let(f"{table}({code})")
    positions = e.pick("positions", ("none", "buffer", "arange"))
    if positions == "buffer" and e.dynamic != "both":
        value = e.let(f"{value} + {e.parameter('positions', e.static_length, width)}")
    elif positions == "arange":
        places = e.module("places", f"nn.Embedding(16, {width})")
        value = e.let(f"{value} + {places}(torch.arange({code}.shape[1]))")
    e.linears.setdefault((width, vocab), [])
    return Value(value, "tokens", ("s" if e.dynamic == "both" else e.static_length, width))


@layer()
def source_image(e: Emitter) -> Value:
    channels = e.pick("channels", (3, 1, 2, 4, 8))
    side = e.pick("side", ((4, 4), (4, 6), (8, 8), (6, 6)))
    h, w = side
    code = e.argument("image", f"torch.randn(batch, {channels}, {h}, {w}, generator=g)", {0: "batch"})
    return Value(code, "image", (channels, h, w))


@layer()
def source_vector(e: Emitter) -> Value:
    width = e.width()
    return Value(e.argument("vector", f"torch.randn(batch, {width}, generator=g)", {0: "batch"}), "vector", (width,))


@layer(features="table")
def source_table_tokens(e: Emitter) -> Value:
    length, width = e.width("length"), e.width()
    return Value(e.let(f"{e.parameter('table', length, width)}.unsqueeze(0)"), "tokens", (length, width), "one")


@layer(features="table")
def source_table_image(e: Emitter) -> Value:
    channels = e.width("channels")
    h, w = e.pick("side", ((4, 4), (4, 6), (6, 8), (1, 3)))
    return Value(e.parameter("table", 1, channels, h, w), "image", (channels, h, w), "one")


# --- two values --------------------------------------------------------------------------------------------------


def same(x: Value, y: Value) -> str:
    """The batch of what comes of two values of one shape."""
    if x.shape != y.shape or x.code == y.code:
        raise Invalid("two values of one shape are needed")
    return "batch" if "batch" in (x.batch, y.batch) else "one"


@layer("any", "any", features="residual", weight=2)
def join_sum(e: Emitter, x: Value, y: Value) -> Value:
    batch = same(x, y)
    text = e.pick(
        "how", ("{} + {}", "{} - {}", "{} + 0.5 * {}", "torch.lerp({}, {}, 0.3)", "torch.add({}, {}, alpha=2)")
    )
    value = x.now(e.let(text.format(x.code, y.code)))
    return Value(value.code, x.kind, x.shape, batch)


@layer("any", "any", features="product")
def join_product(e: Emitter, x: Value, y: Value) -> Value:
    batch = same(x, y)
    ways = ("{} * {}", "{} * torch.sigmoid({})", "torch.maximum({}, {})", "torch.where({0} > 0, {0}, {1})",
            "torch.addcmul({0}, {0}, {1})")  # fmt: skip
    text = e.pick("how", ways)
    return Value(e.let(text.format(x.code, y.code)), x.kind, x.shape, batch)


@layer("any", "any", features="concatenation", weight=2)
def join_concat(e: Emitter, x: Value, y: Value) -> Value:
    rest = [i for i, v in enumerate(zip(x.shape, y.shape, strict=True)) if v[0] != v[1]]
    channel = 0 if x.kind == "image" else len(x.shape) - 1
    if x.batch != y.batch or any(i != channel for i in rest):
        raise Invalid("concatenation needs equal shapes but for the channels")
    return x.now(e.let(f"torch.cat([{x.code}, {y.code}], {x.axis})"), x.width + y.width)


@layer("tokens", "tokens", features="concatenation non-feature-concat")
def join_lengths(e: Emitter, x: Value, y: Value) -> Value:
    if x.batch != y.batch or x.width != y.width:
        raise Invalid("equal widths are needed")
    return Value(e.let(f"torch.cat([{x.code}, {y.code}], 1)"), "tokens", (x.length + y.length, x.width), x.batch)


@layer("any", features="concatenation cascaded-concat")
def concat_cascade(e: Emitter, x: Value) -> Value:
    a = activation(e, x.code, "a")
    first = e.let(f"torch.cat([{x.code}, {a}], {x.axis})")
    order = e.pick("order", ("{0}, {1}", "{1}, {0}", "{0}, {1}, {0}"))
    value = e.let(f"torch.cat([{order.format(first, activation(e, x.code, 'b'))}], {x.axis})")
    return x.now(value, x.width * (5 if order.count(",") == 2 else 3))


@layer("any", features="concatenation concat-split split")
def concat_split(e: Emitter, x: Value) -> Value:
    joined = e.let(f"torch.cat([{x.code}, {activation(e, x.code)}, {x.code} * 2], {x.axis})")
    total = 3 * x.width
    cut = int(e.pick("cut", [c for c in (x.width, 2 * x.width, x.width // 2, 1) if 0 < c < total]))
    a, b = e.let_many(2, f"{joined}.split([{cut}, {total - cut}], {x.axis})")
    return x.now(e.let(f"torch.cat([{b}, torch.tanh({a})], {x.axis})"), total)


# --- channels of one value ---------------------------------------------------------------------------------------


@layer("any", features="activation")
def activate(e: Emitter, x: Value) -> Value:
    return x.now(activation(e, x.code))


@layer("any", features="split")
def chunk_apart(e: Emitter, x: Value) -> tuple[Value, ...]:
    count = e.pick("count", [n for n in (2, 3) if x.width % n == 0])
    how = e.pick("how", ("chunk", "split", "unflatten"))
    part = x.width // count
    if how == "unflatten":
        names = e.let_many(count, f"{x.code}.unflatten({x.axis}, ({count}, {part})).unbind({x.axis})")
    else:
        names = e.let_many(count, f"{x.code}.{how}({count if how == 'chunk' else part}, {x.axis})")
    return tuple(x.now(name, part) for name in names)


@layer("any", features="split select")
def unbind_minor(e: Emitter, x: Value) -> tuple[Value, ...]:
    count = e.pick("count", [n for n in (2, 3) if x.width % n == 0])
    part = x.width // count
    split = e.let(f"{x.code}.unflatten({x.axis}, ({part}, {count}))")
    how = e.pick("how", ("unbind", "select"))
    if how == "unbind":
        names = e.let_many(count, f"{split}.unbind({x.axis + 1})")
    else:
        names = [e.let(f"{split}.select({x.axis + 1}, {i})") for i in range(count)]
    return tuple(x.now(name, part) for name in names)


@layer("any", features="slice")
def slices(e: Emitter, x: Value) -> tuple[Value, ...]:
    if x.width < 2:
        raise Invalid("nothing to slice")
    cut = int(e.pick("cut", [c for c in (x.width // 2, 1, x.width - 1, 3) if 0 < c < x.width]))
    how = e.pick("how", ("narrow", "slice", "index"))
    lead = ":, " * x.axis
    if how == "narrow":
        a, b = f"{x.code}.narrow({x.axis}, 0, {cut})", f"{x.code}.narrow({x.axis}, {cut}, {x.width - cut})"
    elif how == "slice":
        a, b = f"{x.code}[{lead}:{cut}]", f"{x.code}[{lead}{cut}:]"
    else:
        a, b = f"{x.code}[{lead}:{cut}]", f"{x.code}[{lead}-{x.width - cut}:]"
    return x.now(e.let(a), cut), x.now(e.let(b), x.width - cut)


@layer("any", features="slice strided-slice")
def strided_slices(e: Emitter, x: Value) -> tuple[Value, ...]:
    if x.width % 2:
        raise Invalid("an even width is needed")
    lead = ":, " * x.axis
    names = [e.let(f"{x.code}[{lead}{i}::2]") for i in range(2)]
    return tuple(x.now(name, x.width // 2) for name in names)


@layer("any", features="channel-shuffle reshape")
def shuffle(e: Emitter, x: Value) -> Value:
    groups = e.pick("groups", [n for n in (2, 3, 4) if x.width % n == 0])
    a = x.axis
    value = e.let(f"{x.code}.unflatten({a}, ({groups}, {x.width // groups}))")
    return x.now(e.let(f"{value}.transpose({a}, {a + 1}).flatten({a}, {a + 1})"))


@layer("any", features="roll")
def reorder(e: Emitter, x: Value) -> Value:
    how = e.pick("how", ("{}.flip({})", "torch.roll({}, 1, {})", "{}.cumsum({})", "F.softmax({}, {})"))
    return x.now(e.let(how.format(x.code, x.axis)))


@layer("any", features="repeat")
def repeated(e: Emitter, x: Value) -> Value:
    times = e.pick("times", (2, 3))
    how = e.pick("how", ("cat", "interleave", "stack"))
    a = x.axis
    if how == "cat":
        value = e.let(f"torch.cat([{', '.join([x.code] * times)}], {a})")
    elif how == "interleave":
        value = e.let(f"{x.code}.repeat_interleave({times}, {a})")
    else:
        value = e.let(f"torch.stack([{x.code}, {', '.join([activation(e, x.code)] * (times - 1))}], {a + 1})")
        value = e.let(f"{value}.flatten({a}, {a + 1})")
    return x.now(value, x.width * times)


def broadcast(x: Value, count: int | None = None) -> tuple[int, ...]:
    """The shape of a parameter with one number per channel."""
    return (count or x.width, 1, 1) if x.kind == "image" else (count or x.width,)


@layer("any", features="unwrapped-parameter")
def scale_and_shift(e: Emitter, x: Value) -> Value:
    scale, shift = e.parameter("scale", *broadcast(x)), e.parameter("shift", *broadcast(x))
    how = e.pick("how", ("{x} * {s}", "{x} + {t}", "{x} * {s} + {t}", "{x} * (1 + {s}) - {t}", "torch.exp({s}) * {x}",
                         "{x} / (1 + {s}.abs())", "torch.maximum({x}, {t})", "{x} * {s}.clamp(min=0)"))  # fmt: skip
    return x.now(e.let(how.format(x=x.code, s=scale, t=shift)))


@layer("any", features="unwrapped-parameter")
def scalar_scale(e: Emitter, x: Value) -> Value:
    return x.now(e.let(f"{x.code} * {e.parameter('scale', 1)}"))


@layer("any", features="unused-parameter")
def unused(e: Emitter, x: Value) -> Value:
    spare = e.parameter("spare", x.width)
    e.module("idle", f"nn.Linear({x.width}, 3)")
    if e.flag("read"):
        e.let(f"{spare} * 2")
    return x.now(e.let(f"{x.code} * 1.5"))


@layer("any", features="normalize")
def l2_normalize(e: Emitter, x: Value) -> Value:
    how = e.pick("how", ("F.normalize({x}, dim={a})", "{x} / ({x}.norm(dim={a}, keepdim=True) + 0.1)",
                         "{x} * torch.rsqrt({x}.square().mean({a}, keepdim=True) + 0.1)"))  # fmt: skip
    return x.now(e.let(how.format(x=x.code, a=x.axis)))


@layer("any", features="statistics")
def centred(e: Emitter, x: Value) -> Value:
    how = e.pick("how", ("mean({}, keepdim=True)", "amax({}, keepdim=True)", "sum({}, keepdim=True) * 0.1"))
    return x.now(e.let(f"{x.code} - {x.code}.{how.format(x.axis)}"))
