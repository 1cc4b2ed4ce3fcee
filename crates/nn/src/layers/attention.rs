//! Multi-head attention, and the keys and values that generation need not compute again.

use crate::{Layer, Linear, Mode, Module, init};
use orkest_core::{DType, Device, Param, Shape, Tensor};

/// Attention with several heads, each on its own projection of queries, keys and values (<https://arxiv.org/abs/1706.03762>):
/// PyTorch's [`MultiheadAttention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html).
///
/// Parameters have PyTorch's names, layout, and after the same `manual_seed` its numbers.
///
/// **Masks mean the opposite of those of [`Tensor::scaled_dot_product_attention`]**, as they do in PyTorch: here `true` leaves a
/// position *out*, there it takes part. Float masks are added to the scores in both.
///
/// # Shapes
/// - query: `[t, batch, embed_dim]`, key: `[s, batch, kdim]`, value: `[s, batch, vdim]`; with `batch_first` the batch comes first;
///   all three without the batch for one sequence
/// - output: as the query; weights: `[batch, t, s]`, or `[batch, heads, t, s]` if they are not averaged
/// - `in_proj_weight`: `[3 * embed_dim, embed_dim]`, `in_proj_bias`: `[3 * embed_dim]`
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_nn::{AttentionOptions, MultiheadAttention, MultiheadAttentionOptions};
///
/// let options = MultiheadAttentionOptions { batch_first: true, ..MultiheadAttentionOptions::new(8, 2) };
/// let attention = MultiheadAttention::with_options(options);
/// let x = Tensor::randn([3, 5, 8], &Device::cpu());
/// let (y, weights) = attention.forward(&x, &x, &x);
/// assert_eq!((y.shape()[..].to_vec(), weights.shape()[..].to_vec()), (vec![3, 5, 8], vec![3, 5, 5]));
///
/// // Faster, because the weights are never stored:
/// let causal = AttentionOptions { is_causal: true, need_weights: false, ..AttentionOptions::default() };
/// let (y, none) = attention.forward_with(&x, &x, &x, &causal);
/// assert!(none.is_none());
/// # assert_eq!(y.shape(), &[3, 5, 8]);
/// ```
#[derive(Module, Clone, Debug)]
pub struct MultiheadAttention {
    /// The projections of queries, keys and values below each other, where keys and values are as wide as queries.
    pub in_proj_weight: Option<Param>,
    /// `[embed_dim, embed_dim]`, where `in_proj_weight` is not there
    pub q_proj_weight: Option<Param>,
    /// `[embed_dim, kdim]`, where `in_proj_weight` is not there
    pub k_proj_weight: Option<Param>,
    /// `[embed_dim, vdim]`, where `in_proj_weight` is not there
    pub v_proj_weight: Option<Param>,
    /// `[3 * embed_dim]`
    pub in_proj_bias: Option<Param>,
    /// `[1, 1, embed_dim]`, with `add_bias_kv`: a key that every query sees
    pub bias_k: Option<Param>,
    /// `[1, 1, embed_dim]`, with `add_bias_kv`: its value
    pub bias_v: Option<Param>,
    /// From the heads' results to the output.
    pub out_proj: Linear,
    num_heads: usize,
    dropout: f64,
    add_zero_attn: bool,
    batch_first: bool,
    mode: Mode,
}

/// How a [`MultiheadAttention`] is built, with PyTorch's names and defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiheadAttentionOptions {
    /// The width of queries and of the output.
    pub embed_dim: usize,
    /// How many heads share the width.
    pub num_heads: usize,
    /// The part of the attention weights that is dropped in training; 0.
    pub dropout: f64,
    /// Whether the projections have biases; true.
    pub bias: bool,
    /// Adds a learned key and value that every query sees; false.
    pub add_bias_kv: bool,
    /// Adds a key and value of zeros that every query sees; false.
    pub add_zero_attn: bool,
    /// The width of keys; `embed_dim`.
    pub kdim: Option<usize>,
    /// The width of values; `embed_dim`.
    pub vdim: Option<usize>,
    /// Whether tensors are `[batch, seq, features]`; false: `[seq, batch, features]`.
    pub batch_first: bool,
}

impl MultiheadAttentionOptions {
    /// PyTorch's defaults.
    #[track_caller]
    pub fn new(embed_dim: usize, num_heads: usize) -> MultiheadAttentionOptions {
        MultiheadAttentionOptions {
            embed_dim,
            num_heads,
            dropout: 0.0,
            bias: true,
            add_bias_kv: false,
            add_zero_attn: false,
            kdim: None,
            vdim: None,
            batch_first: false,
        }
    }
}

/// What a call of [`MultiheadAttention`] may say, with PyTorch's names and defaults. `true` in a bool mask leaves a position out.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// `[batch, s]` (or `[s]`): keys that no query sees, usually padding; or floats to be added to their scores.
    pub key_padding_mask: Option<&'a Tensor>,
    /// Whether the attention weights are wanted; true. Without them the fused operation runs, which is faster.
    pub need_weights: bool,
    /// `[t, s]` or `[batch * heads, t, s]`: keys that a query does not see; or floats to be added to the scores.
    pub attn_mask: Option<&'a Tensor>,
    /// Whether the weights are averaged over the heads; true.
    pub average_attn_weights: bool,
    /// Position `i` sees positions `0..=i` only; false. PyTorch wants the mask beside this hint, here the hint is enough.
    pub is_causal: bool,
}

impl Default for AttentionOptions<'_> {
    fn default() -> Self {
        AttentionOptions {
            key_padding_mask: None,
            need_weights: true,
            attn_mask: None,
            average_attn_weights: true,
            is_causal: false,
        }
    }
}

impl MultiheadAttention {
    /// With PyTorch's defaults, on the CPU.
    ///
    /// # Panics
    /// If `embed_dim` is no multiple of `num_heads`.
    #[track_caller]
    pub fn new(embed_dim: usize, num_heads: usize) -> MultiheadAttention {
        MultiheadAttention::with_options(MultiheadAttentionOptions::new(embed_dim, num_heads))
    }

    /// With these options, on the CPU.
    ///
    /// # Panics
    /// If `embed_dim` is no multiple of `num_heads`, or `dropout` lies outside `[0, 1]`.
    #[track_caller]
    pub fn with_options(options: MultiheadAttentionOptions) -> MultiheadAttention {
        let MultiheadAttentionOptions { embed_dim, num_heads, dropout, bias, .. } = options;
        assert!(
            num_heads > 0 && embed_dim > 0 && embed_dim.is_multiple_of(num_heads),
            "MultiheadAttention: embed_dim {embed_dim} must be a multiple of num_heads {num_heads}"
        );
        assert!(
            (0.0..=1.0).contains(&dropout),
            "MultiheadAttention: dropout must lie between 0 and 1, not {dropout}"
        );
        let zeros = |n: usize| Param::new(Tensor::zeros(n, &Device::cpu()));
        // PyTorch draws in this order: the output's projection as a Linear, the input's, the biases of keys and values.
        let out_proj = if bias {
            let out_proj = Linear::new(embed_dim, embed_dim);
            Linear::from_params(out_proj.weight, Some(zeros(embed_dim)))
        } else {
            Linear::without_bias(embed_dim, embed_dim)
        };
        let drawn = |shape: &[usize], initialise: fn(&Param, f64)| {
            let param = Param::new(Tensor::zeros(shape, &Device::cpu()));
            initialise(&param, 1.0);
            param
        };
        let weight = |rows: usize, columns: usize| Some(drawn(&[rows, columns], init::xavier_uniform_));
        let (kdim, vdim) = (options.kdim.unwrap_or(embed_dim), options.vdim.unwrap_or(embed_dim));
        let (mut in_proj, mut q_proj, mut k_proj, mut v_proj) = (None, None, None, None);
        if kdim == embed_dim && vdim == embed_dim {
            in_proj = weight(3 * embed_dim, embed_dim);
        } else {
            q_proj = weight(embed_dim, embed_dim);
            k_proj = weight(embed_dim, kdim);
            v_proj = weight(embed_dim, vdim);
        }
        let bias_row = || options.add_bias_kv.then(|| drawn(&[1, 1, embed_dim], init::xavier_normal_));
        MultiheadAttention {
            in_proj_weight: in_proj,
            q_proj_weight: q_proj,
            k_proj_weight: k_proj,
            v_proj_weight: v_proj,
            in_proj_bias: bias.then(|| zeros(3 * embed_dim)),
            bias_k: bias_row(),
            bias_v: bias_row(),
            out_proj,
            num_heads,
            dropout,
            add_zero_attn: options.add_zero_attn,
            batch_first: options.batch_first,
            mode: Mode::new(),
        }
    }

    /// The output, and the attention weights averaged over the heads.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        let (y, weights) = self.attend(query, key, value, &AttentionOptions::default());
        (y, weights.unwrap_or_else(|| unreachable!("the defaults ask for weights")))
    }

    /// The output, and the attention weights if the options ask for them.
    ///
    /// A query that sees nothing gets zeros from the fused operation, and NaN where weights are asked for, as in PyTorch.
    ///
    /// # Panics
    /// If the shapes do not fit, or a mask is neither bool nor float.
    #[track_caller]
    pub fn forward_with(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        options: &AttentionOptions<'_>,
    ) -> (Tensor, Option<Tensor>) {
        self.attend(query, key, value, options)
    }

    /// Causal self-attention of the positions in `x`, which follow those that `cache` holds. The cache grows by them.
    ///
    /// One call with a whole sequence and calls with its parts, one after the other, give the same output.
    ///
    /// # Shapes
    /// - input and output: `[new, batch, embed_dim]`, or as `batch_first` says
    ///
    /// # Panics
    /// If the shapes do not fit, or the layer adds keys of its own (`add_bias_kv`, `add_zero_attn`).
    #[track_caller]
    pub fn forward_cached(&self, x: &Tensor, cache: &mut KvCache) -> Tensor {
        assert!(
            self.bias_k.is_none() && !self.add_zero_attn,
            "MultiheadAttention: a cache would repeat the keys of add_bias_kv and add_zero_attn"
        );
        self.check(x, x, x);
        let inner = self.batch_first_of(x);
        let [q, k, v] = self.project(&inner, &inner, &inner, true).map(|t| self.heads(&t));
        self.output(&cache.attend(&q, &k, &v), x.rank())
    }

    #[track_caller]
    fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        options: &AttentionOptions<'_>,
    ) -> (Tensor, Option<Tensor>) {
        self.check(query, key, value);
        let same = std::ptr::eq(query, key) && std::ptr::eq(key, value);
        let inner = self.batch_first_of(query);
        let [q, mut k, mut v] = match same {
            true => self.project(&inner, &inner, &inner, true),
            false => self.project(&inner, &self.batch_first_of(key), &self.batch_first_of(value), false),
        };
        let [batch, t, embed_dim] = q.dims();
        let s = k.size(1);
        if let (Some(bias_k), Some(bias_v)) = (&self.bias_k, &self.bias_v) {
            let row = |p: &Param| p.tensor().expand([batch, 1, embed_dim]);
            k = Tensor::cat(&[k, row(bias_k)], 1);
            v = Tensor::cat(&[v, row(bias_v)], 1);
        }
        if self.add_zero_attn {
            [k, v] = [k, v].map(|x| x.pad(&[(0, 0), (0, 1)], 0.0));
        }
        let added = k.size(1) - s;
        let [q, k, v] = [q, k, v].map(|x| self.heads(&x));

        let mask = self.mask(options, [batch, t, s], added, q.dtype(), q.device());
        let dropout = if self.mode.is_training() { self.dropout } else { 0.0 };
        if !options.need_weights {
            let causal = options.is_causal && mask.is_none();
            // True leaves out here and takes part there.
            let mask = mask.map(|m| if m.dtype() == DType::Bool { m.logical_not() } else { m });
            let y = q.scaled_dot_product_attention(&k, &v, mask.as_ref(), dropout, causal, None);
            return (self.output(&y, query.rank()), None);
        }
        let scale = 1.0 / (q.size(-1) as f64).sqrt();
        let scores = (q * scale).matmul(&k.transpose(-2, -1)); // [batch, heads, t, s]
        let scores = match &mask {
            None => scores,
            Some(mask) if mask.dtype() == DType::Bool => scores.masked_fill(mask, f64::NEG_INFINITY),
            Some(mask) => scores + mask,
        };
        let weights = scores.softmax(-1).dropout(dropout, true);
        let y = self.output(&weights.matmul(&v), query.rank());
        let weights = if options.average_attn_weights { weights.mean(1) } else { weights };
        (y, Some(if query.rank() == 2 { weights.squeeze(0) } else { weights }))
    }

    #[track_caller]
    fn check(&self, query: &Tensor, key: &Tensor, value: &Tensor) {
        let width = |name: &str| match (&self.in_proj_weight, name) {
            (None, "key") => self.k_proj_weight.as_ref().map_or(0, |w| w.shape()[1]),
            (None, "value") => self.v_proj_weight.as_ref().map_or(0, |w| w.shape()[1]),
            _ => self.out_proj.weight.shape()[0],
        };
        for (name, x) in [("query", query), ("key", key), ("value", value)] {
            assert!(
                matches!(x.rank(), 2 | 3) && x.rank() == query.rank(),
                "MultiheadAttention: query, key and value must all have 3 dimensions, or all 2 for one sequence. {name}: {}; query: {}",
                x.describe(),
                query.describe()
            );
            assert!(
                x.size(-1) == width(name),
                "MultiheadAttention: the {name} must have {} features. {name}: {}",
                width(name),
                x.describe()
            );
        }
        let (seq, batch) = if self.batch_first && query.rank() == 3 { (1, 0) } else { (0, 1) };
        let one = query.rank() == 2;
        assert!(
            key.size(seq) == value.size(seq),
            "MultiheadAttention: key and value must have the same number of positions. key: {}; value: {}",
            key.describe(),
            value.describe()
        );
        assert!(
            one || [key, value].iter().all(|x| x.size(batch) == query.size(batch)),
            "MultiheadAttention: the batches differ in size (batch_first is {}). query: {}; key: {}; value: {}",
            self.batch_first,
            query.describe(),
            key.describe(),
            value.describe()
        );
    }

    /// As `[batch, seq, features]`.
    #[track_caller]
    fn batch_first_of(&self, x: &Tensor) -> Tensor {
        match x.rank() {
            2 => x.unsqueeze(0),
            _ if self.batch_first => x.clone(),
            _ => x.transpose(0, 1),
        }
    }

    /// Queries, keys and values, all `[batch, seq, embed_dim]`; in one product where they come from the `same` tensor.
    #[track_caller]
    fn project(&self, query: &Tensor, key: &Tensor, value: &Tensor, same: bool) -> [Tensor; 3] {
        let bias = self.in_proj_bias.as_ref().map(Param::tensor);
        if let (Some(weight), true) = (&self.in_proj_weight, same) {
            return query.linear(&weight.tensor(), bias.as_ref()).chunks(-1);
        }
        let weights = match &self.in_proj_weight {
            Some(weight) => weight.tensor().chunks::<3>(0).map(Some),
            None => [&self.q_proj_weight, &self.k_proj_weight, &self.v_proj_weight]
                .map(|w| w.as_ref().map(Param::tensor)),
        };
        let biases = bias.map(|b| b.chunks::<3>(0));
        let project = |i: usize, x: &Tensor| match &weights[i] {
            Some(weight) => x.linear(weight, biases.as_ref().map(|b| &b[i])),
            None => unreachable!("without in_proj_weight there are three weights"),
        };
        [project(0, query), project(1, key), project(2, value)]
    }

    /// `[batch, heads, seq, head_dim]` of `[batch, seq, embed_dim]`
    #[track_caller]
    fn heads(&self, x: &Tensor) -> Tensor {
        x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
    }

    /// The heads side by side again, projected, in the layout of an input of this rank.
    #[track_caller]
    fn output(&self, y: &Tensor, rank: usize) -> Tensor {
        let y = self.out_proj.forward(&y.transpose(1, 2).flatten(-2, -1)); // [batch, t, embed_dim]
        match rank {
            2 => y.squeeze(0),
            _ if self.batch_first => y,
            _ => y.transpose(0, 1),
        }
    }

    /// All masks in one that broadcasts to `[batch, heads, t, s + added]`: bool (true leaves out) or float. None if there is no
    /// mask, or causality is the only one and the fused operation can see to it.
    #[track_caller]
    fn mask(
        &self,
        options: &AttentionOptions<'_>,
        [batch, t, s]: [usize; 3],
        added: usize,
        dtype: DType,
        device: &Device,
    ) -> Option<Tensor> {
        let check = |name: &str, mask: &Tensor, [usual, other]: [Shape; 2]| {
            assert!(
                *mask.shape() == usual || *mask.shape() == other,
                "MultiheadAttention: {name} must have shape {usual}{}. {name}: {}",
                if other == usual { String::new() } else { format!(" or {other}") },
                mask.describe()
            );
            assert!(
                mask.dtype() == DType::Bool || mask.dtype().is_float(),
                "MultiheadAttention: {name} must be bool (true leaves out) or float (added to the scores). {name}: {}",
                mask.describe()
            );
        };
        let mut masks: Vec<Tensor> = Vec::new();
        if let Some(mask) = options.attn_mask {
            check("attn_mask", mask, [Shape::from([t, s]), Shape::from([batch * self.num_heads, t, s])]);
            masks.push(mask.reshape(match mask.rank() {
                2 => [1, 1, t, s],
                _ => [batch, self.num_heads, t, s],
            }));
        }
        if let Some(mask) = options.key_padding_mask {
            let one = if batch == 1 { Shape::from([s]) } else { Shape::from([batch, s]) };
            check("key_padding_mask", mask, [Shape::from([batch, s]), one]);
            masks.push(mask.reshape([batch, 1, 1, s]));
        }
        if options.is_causal && (!masks.is_empty() || options.need_weights || added > 0) {
            masks.push(Tensor::ones([t, s], (DType::Bool, device)).triu(1));
        }
        let mask = masks.into_iter().reduce(|a, b| match (a.dtype(), b.dtype()) {
            (DType::Bool, DType::Bool) => a.logical_or(&b),
            _ => additive(&a, dtype) + additive(&b, dtype),
        })?;
        // Added keys are seen by everyone.
        Some(match (added, mask.dtype()) {
            (0, _) => mask,
            (_, DType::Bool) => mask.pad(&[(0, added as isize)], false),
            _ => mask.pad(&[(0, added as isize)], 0.0),
        })
    }
}

/// A mask as numbers to be added to scores.
#[track_caller]
fn additive(mask: &Tensor, dtype: DType) -> Tensor {
    if mask.dtype() != DType::Bool {
        return mask.to_dtype(dtype);
    }
    Tensor::zeros(*mask.shape(), (dtype, mask.device())).masked_fill(mask, f64::NEG_INFINITY)
}

/// Keys and values of the positions so far, so that generating one more token costs one token's work.
///
/// A clone is independent of the original (memory is shared until one of them grows).
///
/// ```
/// use orkest_core::{Device, Tensor, no_grad};
/// use orkest_nn::KvCache;
///
/// let qkv = |t: usize| [(); 3].map(|()| Tensor::randn([1, 2, t, 4], &Device::cpu())); // [batch, heads, seq, head_dim]
/// let mut cache = KvCache::new();
/// no_grad(|| {
///     let [q, k, v] = qkv(5);
///     assert_eq!(cache.attend(&q, &k, &v).shape(), &[1, 2, 5, 4]);
///     let [q, k, v] = qkv(1);
///     assert_eq!(cache.attend(&q, &k, &v).shape(), &[1, 2, 1, 4]);
/// });
/// assert_eq!(cache.len(), 6);
/// ```
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    /// `[.., capacity, features]`, of which the first `len` positions are used.
    buffers: Option<[Tensor; 2]>,
    len: usize,
}

impl KvCache {
    /// Without positions.
    #[track_caller]
    pub fn new() -> KvCache {
        KvCache::default()
    }

    /// The number of positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no positions.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions, to begin another sequence.
    pub fn clear(&mut self) {
        *self = KvCache::new();
    }

    /// Adds positions and gives back the keys and values of all.
    ///
    /// # Shapes
    /// - `key`: `[.., new, d]`, `value`: `[.., new, e]`, with the same leading sizes in all calls
    /// - outputs: `[.., len, d]` and `[.., len, e]`
    ///
    /// # Panics
    /// If a shape, dtype or device does not fit what is there.
    #[track_caller]
    pub fn append(&mut self, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        let new = key.size(-2);
        assert!(
            value.size(-2) == new,
            "KvCache: key and value must have the same number of positions. key: {}; value: {}",
            key.describe(),
            value.describe()
        );
        let end = self.len + new;
        if self.buffers.as_ref().is_none_or(|[keys, _]| keys.size(-2) < end) {
            // Doubling keeps the cost of copying below that of the positions themselves.
            let capacity = end.max(2 * self.len).next_multiple_of(16);
            let grown = |place: usize, x: &Tensor| {
                let tail = capacity - self.len;
                match &self.buffers {
                    None => x.detach().narrow(-2, 0, 0).pad(&[(0, 0), (0, tail as isize)], 0.0),
                    Some(buffers) => {
                        buffers[place].narrow(-2, 0, self.len).pad(&[(0, 0), (0, tail as isize)], 0.0)
                    }
                }
            };
            self.buffers = Some([grown(0, key), grown(1, value)]);
        }
        let start = self.len;
        let Some(buffers) = &mut self.buffers else { unreachable!("made above") };
        for (name, buffer, x) in [("key", 0, key), ("value", 1, value)] {
            let buffer = &mut buffers[buffer];
            let rank = buffer.rank();
            assert!(
                x.rank() == rank
                    && x.shape()[..rank - 2] == buffer.shape()[..rank - 2]
                    && x.size(-1) == buffer.size(-1),
                "KvCache: {name} does not continue what is there: {start} positions of {}. {name}: {}",
                buffer.describe(),
                x.describe()
            );
            buffer.slice_assign((orkest_core::Index::Ellipsis, start..end, ..), x);
        }
        self.len = end;
        (buffers[0].narrow(-2, 0, end), buffers[1].narrow(-2, 0, end))
    }

    /// Causal attention of new positions to all positions so far, themselves included: [`KvCache::append`], then
    /// [`Tensor::scaled_dot_product_attention`].
    ///
    /// # Shapes
    /// - `query`: `[.., new, d]`, `key`: `[.., new, d]`, `value`: `[.., new, e]`
    /// - output: `[.., new, e]`
    ///
    /// # Panics
    /// If a shape does not fit.
    #[track_caller]
    pub fn attend(&mut self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let (past, new) = (self.len, query.size(-2));
        let (keys, values) = self.append(key, value);
        // One new position sees everything. Several see what came before, and each other's past.
        let mask = (past > 0 && new > 1)
            .then(|| Tensor::ones([new, past + new], (DType::Bool, query.device())).tril(past as isize));
        let causal = past == 0 && new > 1;
        query.scaled_dot_product_attention(&keys, &values, mask.as_ref(), 0.0, causal, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::{gradcheck, manual_seed, no_grad};

    fn batch_first(embed_dim: usize, num_heads: usize) -> MultiheadAttention {
        let options = MultiheadAttentionOptions::new(embed_dim, num_heads);
        MultiheadAttention::with_options(MultiheadAttentionOptions { batch_first: true, ..options })
    }

    fn names(m: &dyn Module) -> Vec<String> {
        m.named_parameters().into_iter().map(|(name, _)| name).collect()
    }

    #[track_caller]
    fn assert_close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.shape(), b.shape());
        assert!(a.allclose(b, 1e-5, 1e-6, false).unwrap(), "{a}\nis not\n{b}");
    }

    #[test]
    fn parameters_have_pytorchs_names_and_order() {
        // list(dict(torch.nn.MultiheadAttention(8, 2, ..).named_parameters()))
        let options = MultiheadAttentionOptions::new(8, 2);
        let made = |options| names(&MultiheadAttention::with_options(options));
        assert_eq!(made(options), ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]);
        let other = MultiheadAttentionOptions { kdim: Some(3), bias: false, add_bias_kv: true, ..options };
        let expected =
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v", "out_proj.weight"];
        assert_eq!(made(other), expected);
    }

    #[test]
    fn a_sequence_in_pieces_is_the_whole_sequence() {
        manual_seed(1);
        let attention = batch_first(8, 2);
        let x = Tensor::randn([3, 40, 8], &Device::cpu());
        let causal = AttentionOptions { is_causal: true, need_weights: false, ..AttentionOptions::default() };
        let (whole, _) = attention.forward_with(&x, &x, &x, &causal);
        let mut cache = KvCache::new();
        let mut pieces = Vec::new();
        let mut start = 0;
        for length in [5, 1, 1, 20, 13] {
            pieces.push(no_grad(|| attention.forward_cached(&x.narrow(1, start, length), &mut cache)));
            start += length;
        }
        assert_eq!((cache.len(), start), (40, 40));
        assert_close(&Tensor::cat(&pieces, 1), &whole.detach());
    }

    #[test]
    fn a_clone_of_a_cache_goes_its_own_way() {
        let [a, b, c] = [1.0, 2.0, 3.0].map(|x| Tensor::full([1, 2, 3], x, &Device::cpu()));
        let mut cache = KvCache::new();
        cache.append(&a, &a);
        let mut other = cache.clone();
        let (first, _) = cache.append(&b, &b);
        let (second, _) = other.append(&c, &c);
        assert_close(&first, &Tensor::cat(&[&a, &b], 1));
        assert_close(&second, &Tensor::cat(&[&a, &c], 1));
    }

    #[test]
    fn gradients_flow_through_a_cache() {
        let [q, k, v] = [(); 3].map(|()| Tensor::randn([2, 4, 3], (DType::F64, &Device::cpu())));
        let attend = |t: &[Tensor]| {
            let mut cache = KvCache::new();
            let piece = |x: &Tensor, start, length| x.narrow(1, start, length);
            let first = cache.attend(&piece(&t[0], 0, 3), &piece(&t[1], 0, 3), &piece(&t[2], 0, 3));
            let second = cache.attend(&piece(&t[0], 3, 1), &piece(&t[1], 3, 1), &piece(&t[2], 3, 1));
            Tensor::cat(&[first, second], 1)
        };
        gradcheck(attend, &[q, k, v]).unwrap();
    }

    #[test]
    fn gradients_agree_with_differences() {
        manual_seed(3);
        let options = MultiheadAttentionOptions {
            kdim: Some(3),
            add_bias_kv: true,
            ..MultiheadAttentionOptions::new(4, 2)
        };
        let attention = MultiheadAttention::with_options(options).to_dtype(DType::F64);
        let random = |shape: [usize; 3]| Tensor::randn(shape, (DType::F64, &Device::cpu()));
        let inputs = [random([2, 2, 4]), random([3, 2, 3]), random([3, 2, 4])];
        let padding = Tensor::new([[false, false, true], [false, false, false]], &Device::cpu());
        for need_weights in [false, true] {
            let options = AttentionOptions {
                key_padding_mask: Some(&padding),
                need_weights,
                is_causal: true,
                ..AttentionOptions::default()
            };
            gradcheck(|t| attention.forward_with(&t[0], &t[1], &t[2], &options).0, &inputs).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "MultiheadAttention: attn_mask must have shape [2, 2] or [6, 2, 2]")]
    fn a_mask_of_another_shape_is_named() {
        let x = Tensor::zeros([3, 2, 4], &Device::cpu());
        let mask = Tensor::zeros([3, 2, 2], &Device::cpu());
        let options = AttentionOptions { attn_mask: Some(&mask), ..AttentionOptions::default() };
        batch_first(4, 2).forward_with(&x, &x, &x, &options);
    }

    #[test]
    #[should_panic(expected = "embed_dim 5 must be a multiple of num_heads 2")]
    fn heads_share_the_width_evenly() {
        let _ = MultiheadAttention::new(5, 2);
    }
}
