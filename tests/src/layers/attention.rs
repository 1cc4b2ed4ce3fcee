//! Attention layers, transformers and position encodings; `parity/attention_cases.py` has the other side.

use super::{one, values};
use crate::operations::{Call, Operation, seeded};
use orkest_core::op::Unary;
use orkest_nn::*;

/// Gives the layer the case's parameters, which follow the other inputs, and has their gradients compared.
fn with_parameters<M: Module>(c: &Call<'_>, layer: M) -> M {
    for (i, param) in (c.size("parameters")..).zip(layer.parameters()) {
        assert_eq!(param.shape(), *c.x(i).shape(), "parameter {i}");
        param.set_value(c.x(i));
        c.params.borrow_mut().push((i, param));
    }
    layer
}

fn optional_size(c: &Call<'_>, name: &str) -> Option<usize> {
    (!c.args[name].is_null()).then(|| c.size(name))
}

fn transformer_options(c: &Call<'_>) -> TransformerOptions {
    TransformerOptions {
        dim_feedforward: c.size("dim_feedforward"),
        dropout: 0.0,
        activation: if c.text("activation") == "gelu" { Unary::Gelu } else { Unary::Relu },
        layer_norm_eps: c.float("layer_norm_eps"),
        batch_first: c.flag("batch_first"),
        norm_first: c.flag("norm_first"),
        bias: c.flag("bias"),
        ..TransformerOptions::new(c.size("d_model"), c.size("nhead"))
    }
}

fn source_masks<'a>(c: &'a Call<'_>) -> TransformerMasks<'a> {
    TransformerMasks {
        src_key_padding_mask: c.flag("padded").then(|| c.x(1)),
        src_is_causal: c.flag("is_causal"),
        ..TransformerMasks::default()
    }
}

fn target_masks<'a>(c: &'a Call<'_>) -> TransformerMasks<'a> {
    TransformerMasks {
        memory_key_padding_mask: c.flag("padded").then(|| c.x(2)),
        tgt_is_causal: c.flag("is_causal"),
        ..TransformerMasks::default()
    }
}

fn fresh_options(c: &Call<'_>) -> TransformerOptions {
    TransformerOptions {
        dim_feedforward: c.size("width"),
        bias: c.flag("bias"),
        ..TransformerOptions::new(8, 2)
    }
}

pub(super) const ATTENTION: &[(&str, Operation)] = &[
    ("MultiheadAttention", |c| {
        let options = MultiheadAttentionOptions {
            bias: c.flag("bias"),
            add_bias_kv: c.flag("add_bias_kv"),
            add_zero_attn: c.flag("add_zero_attn"),
            kdim: optional_size(c, "kdim"),
            vdim: optional_size(c, "vdim"),
            batch_first: c.flag("batch_first"),
            ..MultiheadAttentionOptions::new(c.size("embed_dim"), c.size("num_heads"))
        };
        let layer = with_parameters(c, MultiheadAttention::with_options(options));
        let n = if c.flag("self") { 1 } else { 3 };
        let mask = |name: &str| c.list("masks").iter().position(|m| m == name).map(|at| c.x(n + at));
        let options = AttentionOptions {
            key_padding_mask: mask("padding"),
            need_weights: c.flag("need_weights"),
            attn_mask: mask("attn"),
            average_attn_weights: c.flag("average_attn_weights"),
            is_causal: c.flag("is_causal"),
        };
        let (key, value) = if n == 1 { (c.x(0), c.x(0)) } else { (c.x(1), c.x(2)) };
        let (y, weights) = layer.forward_with(c.x(0), key, value, &options);
        [Some(y), weights].into_iter().flatten().collect()
    }),
    ("TransformerEncoderLayer", |c| {
        let layer = with_parameters(c, TransformerEncoderLayer::with_options(&transformer_options(c)));
        one(layer.forward_with(c.x(0), &source_masks(c)))
    }),
    ("TransformerEncoder", |c| {
        let options = transformer_options(c);
        let norm = c
            .flag("norm")
            .then(|| LayerNorm::new(options.d_model).eps(options.layer_norm_eps).bias(options.bias));
        let layer = TransformerEncoderLayer::with_options(&options);
        let encoder = with_parameters(c, TransformerEncoder::new(&layer, c.size("layers"), norm));
        one(encoder.forward_with(c.x(0), &source_masks(c)))
    }),
    ("TransformerDecoderLayer", |c| {
        let layer = with_parameters(c, TransformerDecoderLayer::with_options(&transformer_options(c)));
        one(layer.forward_with(c.x(0), c.x(1), &target_masks(c)))
    }),
    ("TransformerDecoder", |c| {
        let options = transformer_options(c);
        let norm = c
            .flag("norm")
            .then(|| LayerNorm::new(options.d_model).eps(options.layer_norm_eps).bias(options.bias));
        let layer = TransformerDecoderLayer::with_options(&options);
        let decoder = with_parameters(c, TransformerDecoder::new(&layer, c.size("layers"), norm));
        one(decoder.forward_with(c.x(0), c.x(1), &target_masks(c)))
    }),
    ("Transformer", |c| {
        let layers = c.sizes("layers");
        let transformer = Transformer::with_options(&transformer_options(c), layers[0], layers[1]);
        let transformer = with_parameters(c, transformer);
        let t = c.x(1).size(isize::from(c.flag("batch_first")));
        let mask = Transformer::generate_square_subsequent_mask(t, (c.x(1).dtype(), c.device));
        let masks = TransformerMasks { tgt_mask: Some(&mask), ..TransformerMasks::default() };
        one(transformer.forward_with(c.x(0), c.x(1), &masks))
    }),
    ("SwiGLU", |c| one(with_parameters(c, SwiGLU::new(c.size("dim"), c.size("hidden_dim"))).forward(c.x(0)))),
    ("RotaryEmbedding", |c| {
        let rope = RotaryEmbedding::new(c.size("dim"), c.size("max_seq_len"))
            .base(c.float("base"))
            .interleaved(c.flag("interleaved"));
        one(rope.to(c.device).forward(c.x(0), c.size("start")))
    }),
    ("PositionalEncoding", |c| {
        let encoding = PositionalEncoding::new(c.size("d_model"), c.size("max_len"));
        one(encoding.batch_first(c.flag("batch_first")).to(c.device).forward(c.x(0)))
    }),
    ("fresh_attention", |c| {
        let options = MultiheadAttentionOptions {
            bias: c.flag("bias"),
            add_bias_kv: c.flag("add_bias_kv"),
            kdim: optional_size(c, "kdim"),
            ..MultiheadAttentionOptions::new(c.size("embed_dim"), c.size("num_heads"))
        };
        seeded(c, || values(&MultiheadAttention::with_options(options)))
    }),
    ("fresh_encoder", |c| {
        let layer = || TransformerEncoderLayer::with_options(&fresh_options(c));
        seeded(c, || values(&TransformerEncoder::new(&layer(), 2, None)))
    }),
    ("fresh_transformer", |c| seeded(c, || values(&Transformer::with_options(&fresh_options(c), 1, 2)))),
];
