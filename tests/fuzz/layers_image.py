"""Layers of the fuzzer on images: convolutions of every kind, norms, gates, pooling, changes of resolution."""

from __future__ import annotations

from tests.fuzz.grammar import Emitter, Invalid, Value, layer
from tests.fuzz.layers_common import activation


def sized(x: Value, code: str, channels: int, h: int, w: int) -> Value:
    """An image of another size."""
    if h < 1 or w < 1 or channels * h * w > 1200:
        raise Invalid("the image would vanish or be too large")
    return Value(code, "image", (channels, h, w), x.batch)


@layer("image", features="conv", weight=3)
def conv(e: Emitter, x: Value) -> Value:
    out = e.width()
    groups = e.pick("groups", [g for g in (1, 2, 3) if x.width % g == 0 and out % g == 0])
    size, stride, dilation = e.pick("kernel", (1, 3)), e.pick("stride", (1, 2)), e.pick("dilation", (1, 2))
    e.uses(*(f for f, on in (("grouped-conv", groups > 1), ("strided", stride > 1), ("dilated", dilation > 1)) if on))
    pad = dilation * (size // 2)
    text = f"nn.Conv2d({x.width}, {out}, {size}, {stride}, {pad}, {dilation}, {groups}, bias={e.flag('bias')})"
    h, w = ((n - 1) // stride + 1 for n in x.side)
    return sized(x, e.let(f"{e.module('conv', text)}({x.code})"), out, h, w)


@layer("image", features="conv conv-same")
def conv_same(e: Emitter, x: Value) -> Value:
    out = e.width()
    text = (
        f"nn.Conv2d({x.width}, {out}, (1, 3), padding='same', padding_mode={e.pick('mode', ('zeros', 'circular'))!r})"
    )
    return x.now(e.let(f"{e.module('conv', text)}({x.code})"), out)


@layer("image", features="conv depthwise", weight=1.5)
def separable(e: Emitter, x: Value) -> Value:
    hidden = e.width("hidden")
    times = e.pick("multiplier", (1, 2))
    wide = e.let(f"{e.module('expand', f'nn.Conv2d({x.width}, {hidden}, 1)')}({x.code})")
    deep = f"nn.Conv2d({hidden}, {hidden * times}, 3, padding=1, groups={hidden})"
    deep = activation(e, e.let(f"{e.module('deep', deep)}({wide})"))
    value = e.let(f"{e.module('project', f'nn.Conv2d({hidden * times}, {x.width}, 1)')}({deep})")
    return x.now(e.let(f"{x.code} + {value}") if e.flag("residual") else value)


@layer("image", features="conv-transpose")
def conv_transpose(e: Emitter, x: Value) -> Value:
    out = e.width()
    groups = e.pick("groups", [g for g in (1, 2) if x.width % g == 0 and out % g == 0])
    up = e.module("up", f"nn.ConvTranspose2d({x.width}, {out}, 2, stride=2, groups={groups}, bias={e.flag('bias')})")
    return sized(x, e.let(f"{up}({x.code})"), out, 2 * x.side[0], 2 * x.side[1])


@layer("image", features="norm", weight=2)
def norm_image(e: Emitter, x: Value) -> Value:
    c, (h, w) = x.width, x.side
    groups = e.pick("groups", [g for g in (1, 2, 3) if c % g == 0])
    texts = (f"BatchNorm2d({c})", f"GroupNorm({groups}, {c})", f"BatchNorm2d({c}, affine=False)",
             f"InstanceNorm2d({c}, affine=True)", f"InstanceNorm2d({c})")  # fmt: skip
    text = e.pick("how", [t for t in texts if "Instance" not in t or h * w > 1])
    return x.now(e.let(f"{e.module('norm', f'nn.{text}')}({x.code})"))


@layer("image", features="norm channels-last")
def norm_channels_last(e: Emitter, x: Value) -> Value:
    norm = e.module("norm", f"nn.LayerNorm({x.width})")
    return x.now(e.let(f"{norm}({x.code}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)"))


@layer("image", features="residual-block", weight=2)
def residual_block(e: Emitter, x: Value) -> Value:
    hidden = e.width("hidden")
    c1, b1 = e.module("c1", f"nn.Conv2d({x.width}, {hidden}, 3, padding=1, bias=False)"), f"nn.BatchNorm2d({hidden})"
    a = e.let(f"{e.module('b1', b1)}({c1}({x.code}))")
    c2, b2 = e.module("c2", f"nn.Conv2d({hidden}, {x.width}, 1)"), f"nn.BatchNorm2d({x.width})"
    b = e.let(f"{e.module('b2', b2)}({c2}({activation(e, a)}))")
    return x.now(activation(e, e.let(f"{x.code} + {b}"), "act2"))


@layer("image", features="squeeze-excite", weight=1.5)
def squeeze_excite(e: Emitter, x: Value) -> Value:
    hidden, how = e.pick("hidden", (2, 3, 1, 4)), e.pick("how", ("conv", "linear", "eca"))
    if how == "eca":
        seen = e.let(f"{x.code}.mean((2, 3)).unsqueeze(1)")
        gate = e.let(f"{e.module('eca', 'nn.Conv1d(1, 1, 3, padding=1)')}({seen}).squeeze(1)")
    elif how == "linear":
        up, down = e.linear("up", hidden, x.width), e.linear("down", x.width, hidden)
        gate = e.let(f"{up}(F.relu({down}({x.code}.mean((2, 3)))))")
    else:
        down, up = (
            e.module("down", f"nn.Conv2d({x.width}, {hidden}, 1)"),
            e.module("up", f"nn.Conv2d({hidden}, {x.width}, 1)"),
        )
        gate = e.let(f"{up}(F.relu({down}(F.adaptive_avg_pool2d({x.code}, 1))))")
    view = gate if how == "conv" else f"{gate}[:, :, None, None]"
    return x.now(e.let(f"{x.code} * {e.pick('gate', ('torch.sigmoid', 'F.hardsigmoid'))}({view})"))


@layer("image", features="split-attention")
def split_attention(e: Emitter, x: Value) -> Value:
    radix, out = e.pick("radix", (2, 3)), e.pick("out", (2, 3, 4))
    both = e.let(f"{e.module('conv', f'nn.Conv2d({x.width}, {radix * out}, 3, padding=1)')}({x.code})")
    parts = e.let(f"{both}.view(-1, {radix}, {out}, {x.side[0]}, {x.side[1]})")
    seen = e.let(f"{parts}.sum(1).mean((2, 3))")
    hidden = e.pick("hidden", (2, 4))
    down, up = e.linear("down", out, hidden), e.linear("up", hidden, radix * out)
    scores = e.let(f"{up}(F.relu({down}({seen})))")
    weights = e.let(f"F.softmax({scores}.view(-1, {radix}, {out}), 1)")
    return x.now(e.let(f"({parts} * {weights}[..., None, None]).sum(1)"), out)


@layer("image", features="res2net split")
def res2net(e: Emitter, x: Value) -> Value:
    scales, part = e.pick("scales", (2, 3, 4)), e.pick("part", (2, 3, 1))
    wide = e.let(f"{e.module('to', f'nn.Conv2d({x.width}, {scales * part}, 1)')}({x.code})")
    pieces = e.let_many(scales, f"{wide}.{e.pick('how', (f'chunk({scales}, 1)', f'split({part}, 1)'))}")
    done, last = [pieces[0]], ""
    for i, piece in enumerate(pieces[1:]):
        conv3 = e.module(f"c{i}", f"nn.Conv2d({part}, {part}, 3, padding=1)")
        last = activation(e, e.let(f"{conv3}({piece}{f' + {last}' if last else ''})"))
        done.append(last)
    joined = e.let(f"torch.cat([{', '.join(done)}], 1)")
    return x.now(e.let(f"{e.module('out', f'nn.Conv2d({scales * part}, {x.width}, 1)')}({joined}) + {x.code}"))


@layer("image", features="ghost concatenation")
def ghost(e: Emitter, x: Value) -> Value:
    primary = e.pick("primary", (2, 3, 4))
    a = e.let(f"{e.module('primary', f'nn.Conv2d({x.width}, {primary}, 1)')}({x.code})")
    b = e.let(f"{e.module('cheap', f'nn.Conv2d({primary}, {primary}, 3, padding=1, groups={primary})')}({a})")
    out = int(e.pick("out", (2 * primary, 2 * primary - 1)))
    return x.now(e.let(f"torch.cat([{a}, {b}], 1)[:, :{out}]"), out)


@layer("image", features="pooling")
def pool(e: Emitter, x: Value) -> Value:
    if min(x.side) < 2:
        raise Invalid("too small")
    how = e.pick("how", ("F.max_pool2d({}, 2)", "F.avg_pool2d({}, 2)", "F.max_pool2d({}, 3, 2, 1)",
                         "F.adaptive_avg_pool2d({}, (2, 1))", "F.adaptive_max_pool2d({}, 1)"))  # fmt: skip
    h, w = (n // 2 for n in x.side)
    if "3, 2" in how:
        h, w = ((n - 1) // 2 + 1 for n in x.side)
    elif "adaptive" in how:
        h, w = (2, 1) if "avg" in how else (1, 1)
    return sized(x, e.let(how.format(x.code)), x.width, h, w)


@layer("image", features="upsampling")
def upsample(e: Emitter, x: Value) -> Value:
    how = e.pick("how", ("nearest", "bilinear", "repeat"))
    h, w = (2 * n for n in x.side)
    if how == "repeat":
        text = f"{x.code}.repeat_interleave(2, 2).repeat_interleave(2, 3)"
    else:
        text = f"F.interpolate({x.code}, scale_factor=2, mode='{how}')"
    return sized(x, e.let(text), x.width, h, w)


@layer("image", "image", features="feature-pyramid upsampling")
def pyramid(e: Emitter, x: Value, y: Value) -> Value:
    """The smaller map upsampled onto the larger one."""
    if x.batch != y.batch or x.side[0] < y.side[0] or x.side[1] < y.side[1] or x.side == y.side:
        raise Invalid("a larger and a smaller map are needed")
    lateral = e.let(f"{e.module('lateral', f'nn.Conv2d({y.width}, {x.width}, 1)')}({y.code})")
    return x.now(e.let(f"{x.code} + F.interpolate({lateral}, size={x.side}, mode='nearest')"))


@layer("image", features="pixel-shuffle")
def pixel_shuffle(e: Emitter, x: Value) -> Value:
    out = e.pick("out", (2, 3, 1))
    wide = e.let(f"{e.module('to', f'nn.Conv2d({x.width}, {4 * out}, 1)')}({x.code})")
    return sized(x, e.let(f"F.pixel_shuffle({wide}, 2)"), out, 2 * x.side[0], 2 * x.side[1])


@layer("image", features="space-to-depth reshape")
def space_to_depth(e: Emitter, x: Value) -> Value:
    (h, w), c = x.side, x.width
    if h % 2 or w % 2 or c > 8:
        raise Invalid("even sides are needed")
    how = e.pick("how", ("unshuffle", "view", "slices"))
    if how == "unshuffle":
        text = f"F.pixel_unshuffle({x.code}, 2)"
    elif how == "view":
        grid = e.let(f"{x.code}.view(-1, {c}, {h // 2}, 2, {w // 2}, 2)")
        text = f"{grid}.permute(0, 3, 5, 1, 2, 4).reshape(-1, {4 * c}, {h // 2}, {w // 2})"
    else:
        parts = [f"{x.code}[:, :, {i}::2, {j}::2]" for j in (0, 1) for i in (0, 1)]
        text = f"torch.cat([{', '.join(parts)}], 1)"
    return sized(x, e.let(text), 4 * c, h // 2, w // 2)


@layer("image", features="weight-standardisation")
def standardised_conv(e: Emitter, x: Value) -> Value:
    out = e.width()
    w = e.parameter("weight", out, x.width, 3, 3)
    how = e.pick("how", ("({w} - {w}.mean((1, 2, 3), keepdim=True)) / ({w}.std((1, 2, 3), keepdim=True) + 0.1)",
                         "F.batch_norm({w}.view(1, {o}, -1), None, None, training=True).view_as({w})",
                         "{w} * {g}", "{w} / {w}.square().sum((1, 2, 3), keepdim=True).sqrt()"))  # fmt: skip
    gain = e.parameter("gain", out, 1, 1, 1)
    standard = e.let(how.format(w=w, o=out, g=gain))
    return x.now(e.let(f"F.conv2d({x.code}, {standard}, padding=1)"), out)


@layer("any", features="weight-norm parametrised")
def weight_normed(e: Emitter, x: Value) -> Value:
    out = e.width()
    text = f"nn.Conv2d({x.width}, {out}, 1)" if x.kind == "image" else f"nn.Linear({x.width}, {out})"
    dim = e.pick("dim", ("", ", dim=1"))
    return x.now(e.let(f"{e.module('normed', f'nn.utils.parametrizations.weight_norm({text}{dim})')}({x.code})"), out)


@layer("image", features="padding")
def padded_conv(e: Emitter, x: Value) -> Value:
    if min(x.side) < 2:
        raise Invalid("too small")
    mode = e.pick("mode", ("constant", "reflect", "replicate"))
    padded = e.let(f"F.pad({x.code}, (1, 1, 1, 1), mode='{mode}')")
    return x.now(e.let(f"{e.module('conv', f'nn.Conv2d({x.width}, {x.width}, 3)')}({padded})"))


@layer("any", features="padding")
def pad_channels(e: Emitter, x: Value) -> Value:
    """Zeros beside the channels (the shortcut of CIFAR's ResNets)."""
    before, after = e.pick("pads", ((0, 1), (1, 0), (1, 2)))
    return x.now(e.let(f"F.pad({x.code}, ({'0, 0, 0, 0, ' if x.kind == 'image' else ''}{before}, {after}))"),
                 x.width + before + after)  # fmt: skip


@layer("image", features="global-pooling", weight=2)
def global_pool(e: Emitter, x: Value) -> Value:
    how = e.pick("how", ("mean((2, 3))", "amax((2, 3))", "mean((-1, -2), keepdim=True).flatten(1)", "sum((2, 3))"))
    return Value(e.let(f"{x.code}.{how}"), "vector", (x.width,), x.batch)


@layer("image", features="flatten reshape", weight=2)
def flatten_image(e: Emitter, x: Value) -> Value:
    (h, w), c = x.side, x.width
    if c * h * w > 150:
        raise Invalid("too wide")
    how = e.pick("how", ("flatten(1)", "permute(0, 2, 3, 1).flatten(1)", "reshape({}.shape[0], -1)"))
    return Value(e.let(f"{x.code}.{how.format(x.code)}"), "vector", (c * h * w,), x.batch)


@layer("image", features="reshape", weight=1.5)
def to_tokens(e: Emitter, x: Value) -> Value:
    if x.side[0] * x.side[1] > 36:
        raise Invalid("too long")
    return Value(e.let(f"{x.code}.flatten(2).transpose(1, 2)"), "tokens", (x.side[0] * x.side[1], x.width), x.batch)


@layer("tokens", features="reshape")
def to_image(e: Emitter, x: Value) -> Value:
    sides = [(h, x.length // h) for h in (1, 2, 3, 4) if x.length % h == 0]
    h, w = e.pick("side", sides)
    how = e.pick(
        "how",
        (f"transpose(1, 2).reshape(-1, {x.width}, {h}, {w})", f"view(-1, {h}, {w}, {x.width}).permute(0, 3, 1, 2)"),
    )
    return Value(e.let(f"{x.code}.{how}"), "image", (x.width, h, w), x.batch)


@layer("image", features="reshape patches")
def patches(e: Emitter, x: Value) -> Value:
    (h, w), c, width = x.side, x.width, e.width()
    if h % 2 or w % 2:
        raise Invalid("even sides are needed")
    grid = e.let(f"{x.code}.reshape(-1, {c}, {h // 2}, 2, {w // 2}, 2).permute(0, 2, 4, 1, 3, 5)")
    flat = e.let(f"{grid}.reshape(-1, {h * w // 4}, {4 * c})")
    return Value(
        e.let(f"{e.module('embed', f'nn.Linear({4 * c}, {width})')}({flat})"), "tokens", (h * w // 4, width), x.batch
    )


@layer("image", "vector", features="conditioning")
def modulate(e: Emitter, x: Value, y: Value) -> Value:
    """Scale and shift of channels out of a vector (FiLM)."""
    if x.batch != y.batch:
        raise Invalid("one batch is needed")
    both = e.let(f"{e.module('film', f'nn.Linear({y.width}, {2 * x.width})')}({y.code})[:, :, None, None]")
    scale, shift = e.let_many(2, f"{both}.chunk(2, 1)")
    return x.now(e.let(f"{x.code} * (1 + {scale}) + {shift}"))


@layer("tokens", "vector", features="conditioning")
def modulate_tokens(e: Emitter, x: Value, y: Value) -> Value:
    if x.batch != y.batch:
        raise Invalid("one batch is needed")
    both = e.let(f"{e.module('film', f'nn.Linear({y.width}, {2 * x.width})')}({y.code}).unsqueeze(1)")
    scale, shift = e.let_many(2, f"{both}.chunk(2, -1)")
    return x.now(e.let(f"{x.code} * (1 + {scale}) + {shift}"))


@layer("any", features="ones-and-zeros")
def concat_constant(e: Emitter, x: Value) -> Value:
    """A constant channel beside the others (coordinates, a bias column)."""
    lead = f"{x.code}[:, :1]" if x.axis == 1 else f"{x.code}[..., :1]"
    return x.now(e.let(f"torch.cat([{x.code}, torch.ones_like({lead})], {x.axis})"), x.width + 1)
