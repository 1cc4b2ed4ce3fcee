//! The Transformer of "Attention Is All You Need" (<https://arxiv.org/abs/1706.03762>), as PyTorch builds it.

use crate::{
    AttentionOptions, Dropout, Layer, LayerNorm, Linear, Module, MultiheadAttention,
    MultiheadAttentionOptions, init,
};
use orkest_core::op::Unary;
use orkest_core::{Param, Tensor, TensorOptions};

/// How the layers of a transformer are built, with PyTorch's names and defaults.
///
/// ```
/// use orkest_core::op::Unary;
/// use orkest_nn::{TransformerEncoderLayer, TransformerOptions};
/// let options = TransformerOptions {
///     dim_feedforward: 64,
///     activation: Unary::Gelu,
///     batch_first: true,
///     norm_first: true,
///     ..TransformerOptions::new(16, 4)
/// };
/// let layer = TransformerEncoderLayer::with_options(&options);
/// # assert_eq!(layer.linear1.weight.shape(), [64, 16]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformerOptions {
    /// The width of inputs and outputs.
    pub d_model: usize,
    /// How many heads attention has.
    pub nhead: usize,
    /// The width between the two linear layers; 2048.
    pub dim_feedforward: usize,
    /// The part that is dropped in training: of attention weights, of each block's result and inside the feed-forward block; 0.1.
    pub dropout: f64,
    /// What stands between the two linear layers; [`Unary::Relu`].
    pub activation: Unary,
    /// Added to the variance in layer norms; 1e-5.
    pub layer_norm_eps: f64,
    /// Whether tensors are `[batch, seq, d_model]`; false: `[seq, batch, d_model]`.
    pub batch_first: bool,
    /// Whether a block's input is normalised, which trains more easily; false: its result is.
    pub norm_first: bool,
    /// Whether linear layers and layer norms have biases; true.
    pub bias: bool,
}

impl TransformerOptions {
    /// PyTorch's defaults.
    #[track_caller]
    pub fn new(d_model: usize, nhead: usize) -> TransformerOptions {
        TransformerOptions {
            d_model,
            nhead,
            dim_feedforward: 2048,
            dropout: 0.1,
            activation: Unary::Relu,
            layer_norm_eps: 1e-5,
            batch_first: false,
            norm_first: false,
            bias: true,
        }
    }

    #[track_caller]
    fn attention(&self) -> MultiheadAttention {
        MultiheadAttention::with_options(MultiheadAttentionOptions {
            dropout: self.dropout,
            bias: self.bias,
            batch_first: self.batch_first,
            ..MultiheadAttentionOptions::new(self.d_model, self.nhead)
        })
    }

    fn linear(&self, in_features: usize, out_features: usize) -> Linear {
        if self.bias {
            Linear::new(in_features, out_features)
        } else {
            Linear::without_bias(in_features, out_features)
        }
    }

    fn norm(&self) -> LayerNorm {
        LayerNorm::new(self.d_model).eps(self.layer_norm_eps).bias(self.bias)
    }
}

/// The masks of a transformer, under PyTorch's names; those that a layer has no use for are ignored.
///
/// `true` in a bool mask leaves a position out; floats are added to the scores. `*_mask` are `[queries, keys]` or
/// `[batch * heads, queries, keys]`, `*_key_padding_mask` `[batch, keys]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TransformerMasks<'a> {
    /// Which positions of the source a position of the source does not see.
    pub src_mask: Option<&'a Tensor>,
    /// Which positions of the target a position of the target does not see.
    pub tgt_mask: Option<&'a Tensor>,
    /// Which positions of the encoder's result a position of the target does not see.
    pub memory_mask: Option<&'a Tensor>,
    /// Padding of the source.
    pub src_key_padding_mask: Option<&'a Tensor>,
    /// Padding of the target.
    pub tgt_key_padding_mask: Option<&'a Tensor>,
    /// Padding of the encoder's result, usually the source's.
    pub memory_key_padding_mask: Option<&'a Tensor>,
    /// Positions of the source see themselves and what is before them only.
    pub src_is_causal: bool,
    /// Positions of the target see themselves and what is before them only.
    pub tgt_is_causal: bool,
    /// Position `i` of the target sees positions `0..=i` of the encoder's result only.
    pub memory_is_causal: bool,
}

impl<'a> TransformerMasks<'a> {
    fn of_source(&self) -> AttentionOptions<'a> {
        options(self.src_mask, self.src_key_padding_mask, self.src_is_causal)
    }

    fn of_target(&self) -> AttentionOptions<'a> {
        options(self.tgt_mask, self.tgt_key_padding_mask, self.tgt_is_causal)
    }

    fn of_memory(&self) -> AttentionOptions<'a> {
        options(self.memory_mask, self.memory_key_padding_mask, self.memory_is_causal)
    }
}

fn options<'a>(
    attn_mask: Option<&'a Tensor>,
    key_padding_mask: Option<&'a Tensor>,
    is_causal: bool,
) -> AttentionOptions<'a> {
    AttentionOptions {
        attn_mask,
        key_padding_mask,
        is_causal,
        need_weights: false,
        ..AttentionOptions::default()
    }
}

/// Self-attention and a feed-forward block, each with a residual connection and a layer norm: PyTorch's
/// [`TransformerEncoderLayer`](https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerEncoderLayer.html).
///
/// # Shapes
/// - input and output: `[seq, batch, d_model]`, with `batch_first` `[batch, seq, d_model]`, or `[seq, d_model]`
#[derive(Module, Clone, Debug)]
pub struct TransformerEncoderLayer {
    /// Attention among the positions.
    pub self_attn: MultiheadAttention,
    /// To the feed-forward width.
    pub linear1: Linear,
    dropout: Dropout,
    /// From the feed-forward width.
    pub linear2: Linear,
    /// Of the attention block.
    pub norm1: LayerNorm,
    /// Of the feed-forward block.
    pub norm2: LayerNorm,
    dropout1: Dropout,
    dropout2: Dropout,
    activation: Unary,
    norm_first: bool,
}

impl TransformerEncoderLayer {
    /// With PyTorch's defaults, on the CPU.
    ///
    /// # Panics
    /// If `d_model` is no multiple of `nhead`.
    #[track_caller]
    pub fn new(d_model: usize, nhead: usize) -> TransformerEncoderLayer {
        TransformerEncoderLayer::with_options(&TransformerOptions::new(d_model, nhead))
    }

    /// With these options, on the CPU.
    ///
    /// # Panics
    /// If `d_model` is no multiple of `nhead`, or `dropout` lies outside `[0, 1]`.
    #[track_caller]
    pub fn with_options(options: &TransformerOptions) -> TransformerEncoderLayer {
        TransformerEncoderLayer {
            self_attn: options.attention(),
            linear1: options.linear(options.d_model, options.dim_feedforward),
            dropout: Dropout::new(options.dropout),
            linear2: options.linear(options.dim_feedforward, options.d_model),
            norm1: options.norm(),
            norm2: options.norm(),
            dropout1: Dropout::new(options.dropout),
            dropout2: Dropout::new(options.dropout),
            activation: options.activation,
            norm_first: options.norm_first,
        }
    }

    /// The output with these masks, of which those of the source count.
    #[track_caller]
    pub fn forward_with(&self, src: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
        let options = masks.of_source();
        if self.norm_first {
            let x = src + self.attend(&self.norm1.forward(src), &options);
            &x + self.feed(&self.norm2.forward(&x))
        } else {
            let x = self.norm1.forward(&(src + self.attend(src, &options)));
            self.norm2.forward(&(&x + self.feed(&x)))
        }
    }

    #[track_caller]
    fn attend(&self, x: &Tensor, options: &AttentionOptions<'_>) -> Tensor {
        self.dropout1.forward_owned(self.self_attn.forward_with(x, x, x, options).0)
    }

    #[track_caller]
    fn feed(&self, x: &Tensor) -> Tensor {
        let hidden = activated(&self.linear1, x, self.activation);
        self.dropout2.forward_owned(self.linear2.forward(&self.dropout.forward_owned(hidden)))
    }
}

impl Layer for TransformerEncoderLayer {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.forward_with(input, &TransformerMasks::default())
    }
}

/// The linear layer with the activation behind it, in one pass where no gradient is wanted.
#[track_caller]
fn activated(linear: &Linear, x: &Tensor, activation: Unary) -> Tensor {
    x.linear_act(&linear.weight.tensor(), linear.bias.as_ref().map(Param::tensor).as_ref(), activation)
}

/// Self-attention, attention to an encoder's result, and a feed-forward block: PyTorch's
/// [`TransformerDecoderLayer`](https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerDecoderLayer.html).
///
/// # Shapes
/// - target and output: `[t, batch, d_model]`; memory: `[s, batch, d_model]`; with `batch_first` the batch comes first
#[derive(Module, Clone, Debug)]
pub struct TransformerDecoderLayer {
    /// Attention among the positions of the target.
    pub self_attn: MultiheadAttention,
    /// Attention to the encoder's result.
    pub multihead_attn: MultiheadAttention,
    /// To the feed-forward width.
    pub linear1: Linear,
    dropout: Dropout,
    /// From the feed-forward width.
    pub linear2: Linear,
    /// Of the self-attention block.
    pub norm1: LayerNorm,
    /// Of the block that attends to the encoder's result.
    pub norm2: LayerNorm,
    /// Of the feed-forward block.
    pub norm3: LayerNorm,
    dropout1: Dropout,
    dropout2: Dropout,
    dropout3: Dropout,
    activation: Unary,
    norm_first: bool,
}

impl TransformerDecoderLayer {
    /// With PyTorch's defaults, on the CPU.
    ///
    /// # Panics
    /// If `d_model` is no multiple of `nhead`.
    #[track_caller]
    pub fn new(d_model: usize, nhead: usize) -> TransformerDecoderLayer {
        TransformerDecoderLayer::with_options(&TransformerOptions::new(d_model, nhead))
    }

    /// With these options, on the CPU.
    ///
    /// # Panics
    /// If `d_model` is no multiple of `nhead`, or `dropout` lies outside `[0, 1]`.
    #[track_caller]
    pub fn with_options(options: &TransformerOptions) -> TransformerDecoderLayer {
        TransformerDecoderLayer {
            self_attn: options.attention(),
            multihead_attn: options.attention(),
            linear1: options.linear(options.d_model, options.dim_feedforward),
            dropout: Dropout::new(options.dropout),
            linear2: options.linear(options.dim_feedforward, options.d_model),
            norm1: options.norm(),
            norm2: options.norm(),
            norm3: options.norm(),
            dropout1: Dropout::new(options.dropout),
            dropout2: Dropout::new(options.dropout),
            dropout3: Dropout::new(options.dropout),
            activation: options.activation,
            norm_first: options.norm_first,
        }
    }

    /// The output without masks.
    #[track_caller]
    pub fn forward(&self, tgt: &Tensor, memory: &Tensor) -> Tensor {
        self.forward_with(tgt, memory, &TransformerMasks::default())
    }

    /// The output with these masks, of which those of target and memory count.
    #[track_caller]
    pub fn forward_with(&self, tgt: &Tensor, memory: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
        let (own, other) = (masks.of_target(), masks.of_memory());
        if self.norm_first {
            let x = tgt + self.attend(&self.norm1.forward(tgt), &own);
            let x = &x + self.look(&self.norm2.forward(&x), memory, &other);
            &x + self.feed(&self.norm3.forward(&x))
        } else {
            let x = self.norm1.forward(&(tgt + self.attend(tgt, &own)));
            let x = self.norm2.forward(&(&x + self.look(&x, memory, &other)));
            self.norm3.forward(&(&x + self.feed(&x)))
        }
    }

    #[track_caller]
    fn attend(&self, x: &Tensor, options: &AttentionOptions<'_>) -> Tensor {
        self.dropout1.forward_owned(self.self_attn.forward_with(x, x, x, options).0)
    }

    /// Attention to what the encoder gave.
    #[track_caller]
    fn look(&self, x: &Tensor, memory: &Tensor, options: &AttentionOptions<'_>) -> Tensor {
        self.dropout2.forward_owned(self.multihead_attn.forward_with(x, memory, memory, options).0)
    }

    #[track_caller]
    fn feed(&self, x: &Tensor) -> Tensor {
        let hidden = activated(&self.linear1, x, self.activation);
        self.dropout3.forward_owned(self.linear2.forward(&self.dropout.forward_owned(hidden)))
    }
}

/// Encoder layers one after the other: PyTorch's
/// [`TransformerEncoder`](https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerEncoder.html).
///
/// # Shapes
/// As [`TransformerEncoderLayer`].
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Layer, TransformerEncoder, TransformerEncoderLayer};
/// let encoder = TransformerEncoder::new(&TransformerEncoderLayer::new(16, 4), 2, None);
/// assert_eq!(encoder.forward(&Tensor::zeros([7, 3, 16], &Device::cpu())).shape(), &[7, 3, 16]);
/// ```
#[derive(Module, Clone, Debug)]
pub struct TransformerEncoder {
    /// In the order in which they run.
    pub layers: Vec<TransformerEncoderLayer>,
    /// Behind the last layer.
    pub norm: Option<LayerNorm>,
}

impl TransformerEncoder {
    /// `num_layers` copies of a layer, all with its weights to begin with, as in PyTorch; a norm behind the last is optional.
    #[track_caller]
    pub fn new(
        encoder_layer: &TransformerEncoderLayer,
        num_layers: usize,
        norm: Option<LayerNorm>,
    ) -> TransformerEncoder {
        TransformerEncoder { layers: (0..num_layers).map(|_| encoder_layer.deep_clone()).collect(), norm }
    }

    /// The output with these masks, of which those of the source count.
    #[track_caller]
    pub fn forward_with(&self, src: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
        let mut x = src.clone();
        for layer in &self.layers {
            x = layer.forward_with(&x, masks);
        }
        self.norm.as_ref().map_or(x.clone(), |norm| norm.forward(&x))
    }
}

impl Layer for TransformerEncoder {
    #[track_caller]
    fn forward(&self, input: &Tensor) -> Tensor {
        self.forward_with(input, &TransformerMasks::default())
    }
}

/// Decoder layers one after the other: PyTorch's
/// [`TransformerDecoder`](https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerDecoder.html).
///
/// # Shapes
/// As [`TransformerDecoderLayer`].
#[derive(Module, Clone, Debug)]
pub struct TransformerDecoder {
    /// In the order in which they run.
    pub layers: Vec<TransformerDecoderLayer>,
    /// Behind the last layer.
    pub norm: Option<LayerNorm>,
}

impl TransformerDecoder {
    /// `num_layers` copies of a layer, all with its weights to begin with, as in PyTorch; a norm behind the last is optional.
    #[track_caller]
    pub fn new(
        decoder_layer: &TransformerDecoderLayer,
        num_layers: usize,
        norm: Option<LayerNorm>,
    ) -> TransformerDecoder {
        TransformerDecoder { layers: (0..num_layers).map(|_| decoder_layer.deep_clone()).collect(), norm }
    }

    /// The output without masks.
    #[track_caller]
    pub fn forward(&self, tgt: &Tensor, memory: &Tensor) -> Tensor {
        self.forward_with(tgt, memory, &TransformerMasks::default())
    }

    /// The output with these masks, of which those of target and memory count.
    #[track_caller]
    pub fn forward_with(&self, tgt: &Tensor, memory: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
        let mut x = tgt.clone();
        for layer in &self.layers {
            x = layer.forward_with(&x, memory, masks);
        }
        self.norm.as_ref().map_or(x.clone(), |norm| norm.forward(&x))
    }
}

/// Encoder and decoder: PyTorch's
/// [`Transformer`](https://docs.pytorch.org/docs/stable/generated/torch.nn.Transformer.html).
///
/// All matrices start as [`init::xavier_uniform_`] makes them.
///
/// # Shapes
/// - source: `[s, batch, d_model]`; target and output: `[t, batch, d_model]`; with `batch_first` the batch comes first
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{Transformer, TransformerMasks, TransformerOptions};
/// let options = TransformerOptions { dim_feedforward: 32, ..TransformerOptions::new(16, 4) };
/// let transformer = Transformer::with_options(&options, 2, 2);
/// let (src, tgt) = (Tensor::zeros([9, 1, 16], &Device::cpu()), Tensor::zeros([5, 1, 16], &Device::cpu()));
/// let masks = TransformerMasks { tgt_is_causal: true, ..TransformerMasks::default() };
/// assert_eq!(transformer.forward_with(&src, &tgt, &masks).shape(), &[5, 1, 16]);
/// ```
#[derive(Module, Clone, Debug)]
pub struct Transformer {
    /// Reads the source.
    pub encoder: TransformerEncoder,
    /// Writes the target.
    pub decoder: TransformerDecoder,
}

impl Transformer {
    /// With 6 layers in encoder and decoder, and PyTorch's other defaults, on the CPU.
    ///
    /// # Panics
    /// If `d_model` is no multiple of `nhead`.
    #[track_caller]
    pub fn new(d_model: usize, nhead: usize) -> Transformer {
        Transformer::with_options(&TransformerOptions::new(d_model, nhead), 6, 6)
    }

    /// With these options, on the CPU.
    ///
    /// # Panics
    /// If `d_model` is no multiple of `nhead`, or `dropout` lies outside `[0, 1]`.
    #[track_caller]
    pub fn with_options(
        options: &TransformerOptions,
        num_encoder_layers: usize,
        num_decoder_layers: usize,
    ) -> Transformer {
        let layer = TransformerEncoderLayer::with_options(options);
        let encoder = TransformerEncoder::new(&layer, num_encoder_layers, Some(options.norm()));
        let layer = TransformerDecoderLayer::with_options(options);
        let decoder = TransformerDecoder::new(&layer, num_decoder_layers, Some(options.norm()));
        let transformer = Transformer { encoder, decoder };
        for param in transformer.parameters().iter().filter(|p| p.shape().rank() > 1) {
            init::xavier_uniform_(param, 1.0);
        }
        transformer
    }

    /// The output without masks.
    #[track_caller]
    pub fn forward(&self, src: &Tensor, tgt: &Tensor) -> Tensor {
        self.forward_with(src, tgt, &TransformerMasks::default())
    }

    /// The output with these masks.
    #[track_caller]
    pub fn forward_with(&self, src: &Tensor, tgt: &Tensor, masks: &TransformerMasks<'_>) -> Tensor {
        self.decoder.forward_with(tgt, &self.encoder.forward_with(src, masks), masks)
    }

    /// A causal mask for `attn_mask` and the like: `-inf` above the diagonal, zeros elsewhere.
    ///
    /// ```
    /// use orkest_core::Device;
    /// use orkest_nn::Transformer;
    /// let mask = Transformer::generate_square_subsequent_mask(2, &Device::cpu());
    /// assert_eq!(mask.to_vec::<f32>().unwrap(), [0.0, f32::NEG_INFINITY, 0.0, 0.0]);
    /// ```
    #[track_caller]
    pub fn generate_square_subsequent_mask(sz: usize, options: impl Into<TensorOptions>) -> Tensor {
        Tensor::full([sz, sz], f64::NEG_INFINITY, options).triu(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{DType, Device, gradcheck, manual_seed};

    fn small(norm_first: bool) -> TransformerOptions {
        TransformerOptions { dim_feedforward: 5, dropout: 0.0, norm_first, ..TransformerOptions::new(4, 2) }
    }

    fn random(shape: [usize; 3]) -> Tensor {
        Tensor::randn(shape, (DType::F64, &Device::cpu()))
    }

    #[test]
    fn copies_of_a_layer_start_equal_and_learn_apart() {
        let encoder = TransformerEncoder::new(&TransformerEncoderLayer::with_options(&small(false)), 2, None);
        let [first, second] = [0, 1].map(|i| encoder.layers[i].linear1.weight.clone());
        assert_eq!(first.value().to_vec::<f32>().unwrap(), second.value().to_vec::<f32>().unwrap());
        assert!(!first.is(&second));
    }

    #[test]
    fn names_are_pytorchs() {
        // torch.nn.Transformer(4, 2, 1, 1, 5)
        let transformer = Transformer::with_options(&small(false), 1, 1);
        let names: Vec<String> = transformer.named_parameters().into_iter().map(|(name, _)| name).collect();
        let of = |place: &str, parts: &[&str], names: &mut Vec<String>| {
            names.extend(parts.iter().map(|part| format!("{place}.{part}")));
        };
        let mut expected = Vec::new();
        let attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"];
        let pair = ["weight", "bias"];
        of("encoder.layers.0.self_attn", &attention, &mut expected);
        for part in ["linear1", "linear2", "norm1", "norm2"] {
            of(&format!("encoder.layers.0.{part}"), &pair, &mut expected);
        }
        of("encoder.norm", &pair, &mut expected);
        of("decoder.layers.0.self_attn", &attention, &mut expected);
        of("decoder.layers.0.multihead_attn", &attention, &mut expected);
        for part in ["linear1", "linear2", "norm1", "norm2", "norm3"] {
            of(&format!("decoder.layers.0.{part}"), &pair, &mut expected);
        }
        of("decoder.norm", &pair, &mut expected);
        assert_eq!(names, expected);
    }

    #[test]
    fn causality_as_a_flag_and_as_a_mask_is_the_same() {
        manual_seed(2);
        let transformer = Transformer::with_options(&small(true), 1, 2);
        let [src, tgt] = [5, 3].map(|seq| Tensor::randn([seq, 2, 4], &Device::cpu()));
        let mask = Transformer::generate_square_subsequent_mask(3, &Device::cpu());
        let flag = TransformerMasks { tgt_is_causal: true, ..TransformerMasks::default() };
        let masked = TransformerMasks { tgt_mask: Some(&mask), ..TransformerMasks::default() };
        let [a, b] = [flag, masked].map(|m| transformer.forward_with(&src, &tgt, &m).detach());
        assert!(a.allclose(&b, 1e-5, 1e-6, false).unwrap());
        assert!(!a.allclose(&transformer.forward(&src, &tgt).detach(), 1e-3, 1e-3, false).unwrap());
    }

    #[test]
    fn dropout_acts_in_training_only() {
        let options = TransformerOptions { dropout: 0.5, ..small(false) };
        let encoder = TransformerEncoder::new(&TransformerEncoderLayer::with_options(&options), 1, None);
        let x = Tensor::randn([5, 2, 4], &Device::cpu());
        let twice_equal = || {
            let [a, b] = [(); 2].map(|()| encoder.forward(&x).detach());
            a.allclose(&b, 0.0, 0.0, false).unwrap()
        };
        assert!(!twice_equal());
        encoder.eval();
        assert!(twice_equal());
    }

    #[test]
    fn gradients_agree_with_differences() {
        for norm_first in [false, true] {
            manual_seed(4);
            let transformer = Transformer::with_options(&small(norm_first), 1, 1).to_dtype(DType::F64);
            let masks = TransformerMasks { tgt_is_causal: true, ..TransformerMasks::default() };
            let inputs = [random([3, 1, 4]), random([2, 1, 4])];
            gradcheck(|t| transformer.forward_with(&t[0], &t[1], &masks), &inputs).unwrap();
        }
    }
}
