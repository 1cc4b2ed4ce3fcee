"""Cases for attention layers, transformers and position encodings; tests/src/layers/attention.rs has the other side."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from draw import Case, Input, registry

CASES, case = registry()

# What keeps PyTorch from its fast path for inference is no concern here.
warnings.filterwarnings("ignore", message="enable_nested_tensor")


def with_parameters(d, module, inputs, call, args):
    """A case whose inputs are followed by the parameters of `module`, in its order and with values of their own."""
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    parameters = [d.tensor(list(s), -0.6, 0.6, strided=False) for s in shapes]
    # Layer norms scale by something near 1.
    for name, p in zip(names, parameters):
        if "norm" in name and name.endswith("weight"):
            p.base.copy_(p.base * 0.5 + 1)
    n = len(inputs)

    def run(*all):
        return functional_call(
            Calling(module, call), {f"module.{k}": v for k, v in zip(names, all[n:])}, tuple(all[:n])
        )

    return Case([*inputs, *parameters], run, args | {"parameters": n})


class Calling(nn.Module):
    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs):
        return self.call(self.module, *inputs)


def hiding(d, sizes, p):
    """A mask that leaves the first key to everyone: of nothing but hidden keys the softmax is NaN."""
    mask = d.mask(sizes, p).value.clone()
    mask[..., 0] = False
    return Input(mask, mask, [], False)


@case("MultiheadAttention")
def _(d):
    d.wide()
    heads = d.int(1, 3)
    embed = heads * d.int(1, 3)
    t, s, batch = d.int(1, 4), d.int(2, 5), d.int(1, 3)
    kind = d.choice(["self", "cross", "cross", "one"])
    batch_first = d.flag()
    options = {
        "bias": d.flag(0.8),
        "add_bias_kv": d.flag(0.2),
        "add_zero_attn": d.flag(0.2),
        "kdim": d.choice([None, 3]) if kind == "cross" else None,
        "vdim": d.choice([None, 2]) if kind == "cross" else None,
    }
    module = nn.MultiheadAttention(embed, heads, batch_first=batch_first, **options)
    if kind == "self":
        s = t

    def shape(n, width):
        return [n, width] if kind == "one" else [batch, n, width] if batch_first else [n, batch, width]

    inputs = [d.tensor(shape(t, embed))]
    if kind != "self":
        inputs += [d.tensor(shape(s, options["kdim"] or embed)), d.tensor(shape(s, options["vdim"] or embed))]
    masks = {"attn": d.choice([None, None, "bool", "float", "heads"]), "padding": d.choice([None, None, "bool", "float"])}
    tensors = {}
    if masks["attn"]:
        sizes = [(1 if kind == "one" else batch) * heads, t, s] if masks["attn"] == "heads" else [t, s]
        tensors["attn"] = d.tensor(sizes, -2, 2, grad=False) if masks["attn"] == "float" else hiding(d, sizes, 0.4)
    if masks["padding"]:
        sizes = [s] if kind == "one" else [batch, s]
        tensors["padding"] = d.tensor(sizes, -2, 2, grad=False) if masks["padding"] == "float" else hiding(d, sizes, 0.3)
    causal = not masks["attn"] and d.flag(0.3)
    weights = d.flag()
    average = d.flag()
    order = [name for name in ("attn", "padding") if name in tensors]
    n = len(inputs)

    def call(module, *all):
        q, k, v = all[:3] if n == 3 else (all[0],) * 3
        given = dict(zip(order, all[n:]))
        attn = given.get("attn")
        if causal:
            attn = torch.triu(torch.ones(t, s, dtype=torch.bool), 1)
        padding = given.get("padding")
        if attn is not None and padding is not None and attn.dtype != padding.dtype:
            # PyTorch makes both floats, with a warning that this is deprecated.
            as_float = lambda m: torch.zeros(m.shape, dtype=q.dtype).masked_fill(m, -math.inf) if m.dtype == torch.bool else m
            attn, padding = as_float(attn), as_float(padding)
        y, w = module(q, k, v, key_padding_mask=padding, attn_mask=attn, need_weights=weights, average_attn_weights=average)
        return [y, w] if weights else [y]

    args = options | {
        "embed_dim": embed,
        "num_heads": heads,
        "batch_first": batch_first,
        "self": kind == "self",
        "masks": order,
        "is_causal": causal,
        "need_weights": weights,
        "average_attn_weights": average,
    }
    return with_parameters(d, module, inputs + [tensors[name] for name in order], call, args)


def drawn_options(d):
    heads = d.int(1, 2)
    return {
        "d_model": heads * d.int(3, 4),  # of two values a layer norm leaves nothing but the order
        "nhead": heads,
        "dim_feedforward": d.int(1, 5),
        "activation": d.choice(["relu", "gelu"]),
        "layer_norm_eps": d.choice([1e-5, 1e-2]),
        "batch_first": d.flag(),
        "norm_first": d.flag(),
        "bias": d.flag(0.8),
    }


def sequence(d, options, n, batch):
    sizes = [batch, n] if options["batch_first"] else [n, batch]
    # Of equal keys, or equal features before a norm, nothing but rounding is left of the gradient.
    return d.tensor([*sizes, options["d_model"]], expand=False)


def encoder(d, make, **args):
    d.wide()
    options = drawn_options(d)
    n, batch = d.int(2, 4), d.int(1, 3)  # of one key the weights are 1 and their gradients nothing but rounding
    padded, causal = d.flag(), d.flag(0.3)
    inputs = [sequence(d, options, n, batch)] + [hiding(d, [batch, n], 0.3)] * padded
    module = make(options)

    def call(module, x, pad=None):
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), 1) if causal else None
        name = "src_mask" if isinstance(module, nn.TransformerEncoderLayer) else "mask"
        return module(x, **{name: mask}, src_key_padding_mask=pad)

    return with_parameters(d, module, inputs, call, options | {"padded": padded, "is_causal": causal} | args)


@case("TransformerEncoderLayer")
def _(d):
    return encoder(d, lambda o: nn.TransformerEncoderLayer(dropout=0.0, **o))


@case("TransformerEncoder")
def _(d):
    layers, norm = d.int(1, 2), d.flag()

    def make(o):
        layer = nn.TransformerEncoderLayer(dropout=0.0, **o)
        end = nn.LayerNorm(o["d_model"], eps=o["layer_norm_eps"], bias=o["bias"]) if norm else None
        return nn.TransformerEncoder(layer, layers, norm=end, enable_nested_tensor=False)

    return encoder(d, make, layers=layers, norm=norm)


def decoder(d, make, **args):
    d.wide()
    options = drawn_options(d)
    t, s, batch = d.int(2, 4), d.int(2, 4), d.int(1, 3)
    padded, causal = d.flag(), d.flag()
    inputs = [sequence(d, options, t, batch), sequence(d, options, s, batch)] + [hiding(d, [batch, s], 0.3)] * padded

    def call(module, x, memory, pad=None):
        mask = torch.triu(torch.ones(t, t, dtype=torch.bool), 1) if causal else None
        return module(x, memory, tgt_mask=mask, memory_key_padding_mask=pad)

    return with_parameters(d, make(options), inputs, call, options | {"padded": padded, "is_causal": causal} | args)


@case("TransformerDecoderLayer")
def _(d):
    return decoder(d, lambda o: nn.TransformerDecoderLayer(dropout=0.0, **o))


@case("TransformerDecoder")
def _(d):
    layers, norm = d.int(1, 2), d.flag()

    def make(o):
        layer = nn.TransformerDecoderLayer(dropout=0.0, **o)
        end = nn.LayerNorm(o["d_model"], eps=o["layer_norm_eps"], bias=o["bias"]) if norm else None
        return nn.TransformerDecoder(layer, layers, norm=end)

    return decoder(d, make, layers=layers, norm=norm)


@case("Transformer")
def _(d):
    d.wide()
    options = drawn_options(d)
    t, s, batch = d.int(2, 3), d.int(2, 3), d.int(1, 2)
    layers = [d.int(1, 2), d.int(1, 2)]

    def call(module, src, tgt):
        mask = nn.Transformer.generate_square_subsequent_mask(t, dtype=src.dtype)
        return module(src, tgt, tgt_mask=mask)

    o = options | {"num_encoder_layers": layers[0], "num_decoder_layers": layers[1]}
    module = nn.Transformer(dropout=0.0, **o)
    inputs = [sequence(d, options, s, batch), sequence(d, options, t, batch)]
    return with_parameters(d, module, inputs, call, options | {"layers": layers})


@case("SwiGLU")
def _(d):
    d.wide()
    dim, hidden = d.int(1, 5), d.int(1, 6)
    inputs = [d.tensor([*d.shape(0, 2), dim])]
    inputs += [d.tensor(s, strided=False) for s in ([hidden, dim], [hidden, dim], [dim, hidden])]
    args = {"dim": dim, "hidden_dim": hidden, "parameters": 1}
    return Case(inputs, lambda x, gate, up, down: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down), args)


@case("RotaryEmbedding")
def _(d):
    """As Hugging Face's LLaMA (half-split) and GPT-J (interleaved) write it."""
    d.dtype = torch.float32
    dim, seq, start = 2 * d.int(1, 4), d.int(1, 4), d.int(0, 40)
    base, interleaved = d.choice([10_000.0, 500_000.0]), d.flag()
    rest = d.choice([0, 0, 3])
    x = d.tensor([*d.shape(0, 2), seq, dim + rest])
    inv_freq = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    angles = torch.outer(torch.arange(start, start + seq).float(), inv_freq)

    def run(x):
        turning, still = x[..., :dim], x[..., dim:]
        if interleaved:
            cos, sin = (f(angles).repeat_interleave(2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
            turned = torch.stack((-turning[..., 1::2], turning[..., ::2]), -1).flatten(-2)
        else:
            cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
            turned = torch.cat((-turning[..., dim // 2 :], turning[..., : dim // 2]), -1)
        return torch.cat((turning * cos + turned * sin, still), -1)

    args = {"dim": dim, "start": start, "base": base, "interleaved": interleaved, "max_seq_len": 64}
    return Case([x], run, args)


# A sine of an angle that was computed in another order.
ONE_ULP_OF_F32 = {"forward": 2e-7, "backward": 1e-10}


@case("PositionalEncoding")
def _(d):
    """The module of PyTorch's transformer tutorial."""
    d.wide()
    d_model, seq, batch, batch_first = 2 * d.int(1, 4), d.int(1, 6), d.int(1, 3), d.flag()
    x = d.tensor([batch, seq, d_model] if batch_first else [seq, batch, d_model])
    position = torch.arange(9, dtype=torch.float64).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model))
    pe = torch.zeros(9, d_model, dtype=torch.float64)
    pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
    pe = pe.float()  # the table is f32 whatever the input

    def run(x):
        rows = pe[:seq].to(x.dtype)
        return x + (rows if batch_first else rows.unsqueeze(1))

    return Case([x], run, {"d_model": d_model, "max_len": 9, "batch_first": batch_first}, tolerance=ONE_ULP_OF_F32)


# ---- what a seed makes of them -----------------------------------------------------------------------------------------------


def fresh(name, make):
    @case(name)
    def _(d):
        seed = d.int(0, 2**31)
        args = make(d)

        def run():
            torch.manual_seed(seed)
            return [p.detach() for p in BUILD[name](args).parameters()]

        return Case([], run, args | {"seed": seed}, backward=False, reference=False)


BUILD = {
    "fresh_attention": lambda a: nn.MultiheadAttention(
        a["embed_dim"], a["num_heads"], bias=a["bias"], add_bias_kv=a["add_bias_kv"], kdim=a["kdim"]
    ),
    "fresh_encoder": lambda a: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, a["width"], bias=a["bias"]), 2, enable_nested_tensor=False
    ),
    "fresh_transformer": lambda a: nn.Transformer(8, 2, 1, 2, a["width"], bias=a["bias"]),
}

fresh(
    "fresh_attention",
    lambda d: {
        "embed_dim": 8,
        "num_heads": d.choice([1, 2]),
        "bias": d.flag(),
        "add_bias_kv": d.flag(),
        "kdim": d.choice([None, 5]),
    },
)
fresh("fresh_encoder", lambda d: {"width": d.int(3, 9), "bias": d.flag()})
fresh("fresh_transformer", lambda d: {"width": d.int(3, 9), "bias": d.flag()})
