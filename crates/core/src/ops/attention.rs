//! Scaled dot-product attention.

use super::lowering::{by_lowering, wide};
use crate::autograd::{Gradients, Save, is_grad_enabled};
use crate::dispatch::run_fused;
use crate::dtype::DType;
use crate::grads;
use crate::op::Op;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;

impl Tensor {
    /// `softmax(query @ keyᵀ * scale + mask) @ value`, as PyTorch's
    /// [`scaled_dot_product_attention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html).
    ///
    /// A bool `mask` is true where a position takes part; a float one is added to the scores. With `is_causal` position `i` sees
    /// positions `0..=i` only. `scale` is `1 / sqrt(d)` by default. A query that sees nothing gets zeros. `dropout_p` drops
    /// attention weights, training or not: pass 0 to evaluate.
    ///
    /// With `h` query heads and a divisor of `h` of key and value heads (dimension -3), neighbouring query heads share a key and a
    /// value: grouped-query attention, PyTorch's `enable_gqa`. Keys and values are not copied for that.
    ///
    /// # Shapes
    /// - query: `[.., t, d]`, `key`: `[.., s, d]`, `value`: `[.., s, e]`; the leading sizes broadcast,
    ///   but the number of heads may also be `h` for the query and a divisor of `h` for key and value
    /// - `mask`: anything that broadcasts to `[.., t, s]`
    /// - output: `[.., t, e]`
    ///
    /// # Panics
    /// If the shapes do not fit, a dtype is not a float (or the mask neither float nor bool), both `mask` and `is_causal` are given,
    /// or `dropout_p` lies outside `[0, 1]`.
    #[track_caller]
    pub fn scaled_dot_product_attention(
        &self,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        dropout_p: f64,
        is_causal: bool,
        scale: Option<f64>,
    ) -> Tensor {
        if let Some([query, key, value]) = grouped(self, key, value) {
            let mask = mask.map(|m| grouped_mask(m, &query));
            let y =
                query.scaled_dot_product_attention(&key, &value, mask.as_ref(), dropout_p, is_causal, scale);
            return y.flatten(-4, -3);
        }
        let leading = check(self, key, value, mask, is_causal);
        let (t, d, s, e) = (self.size(-2), self.size(-1), key.size(-2), value.size(-1));
        let scale = scale.unwrap_or(1.0 / (d as f64).sqrt());
        let [query, key, value] = [self, key, value].map(Tensor::in_low_precision);
        let dtype = query.dtype().promote(key.dtype()).promote(value.dtype());
        let query = as_heads(&query, &leading, t, d).to_dtype(dtype);
        let key = as_heads(&key, &leading, s, d).to_dtype(dtype);
        let value = as_heads(&value, &leading, s, e).to_dtype(dtype);
        let mask = mask.map(|m| as_heads(m, &leading, t, s));
        let mask = mask.map(|m| if m.dtype() == DType::Bool { m } else { m.to_dtype(dtype) });

        let y = if dropout_p == 0.0 && !mask.as_ref().is_some_and(Tensor::requires_grad) {
            attention(&query, &key, &value, mask.as_ref(), scale, is_causal)
        } else {
            lowering(&query, &key, &value, mask.as_ref(), scale, is_causal, dropout_p)
        };
        let n = leading.rank();
        y.reshape(leading.inserted(n, t).inserted(n + 1, e))
    }
}

/// Where several query heads share a key and a value: the heads as `[.., heads of keys, heads that share one]`, over which keys and
/// values broadcast.
#[track_caller]
fn grouped(query: &Tensor, key: &Tensor, value: &Tensor) -> Option<[Tensor; 3]> {
    if [query, key, value].iter().any(|t| t.rank() < 3) {
        return None;
    }
    let (heads, shared) = (query.size(-3), key.size(-3));
    let groups = shared > 1 && heads > shared && heads.is_multiple_of(shared) && value.size(-3) == shared;
    groups.then(|| [query.unflatten(-3, [shared, heads / shared]), key.unsqueeze(-3), value.unsqueeze(-3)])
}

/// A mask for the query that [`grouped`] made.
#[track_caller]
fn grouped_mask(mask: &Tensor, query: &Tensor) -> Tensor {
    let (shared, group) = (query.size(-4), query.size(-3));
    match mask.rank() {
        0..3 => mask.clone(),
        _ if mask.size(-3) == shared * group => mask.unflatten(-3, [shared, group]),
        _ => mask.unsqueeze(-3),
    }
}

/// Checks the operands; the leading sizes they broadcast to.
#[track_caller]
fn check(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>, is_causal: bool) -> Shape {
    const OP: &str = "scaled_dot_product_attention";
    let describe = || {
        let mask = mask.map_or(String::new(), |m| format!("; mask: {}", m.describe()));
        format!("query: {}; key: {}; value: {}{mask}", query.describe(), key.describe(), value.describe())
    };
    [query, key, value].iter().for_each(|t| t.require_float(OP));
    if [query, key, value].iter().any(|t| t.rank() < 2) {
        panic!("{OP}: query [.., t, d], key [.., s, d] and value [.., s, e] are needed. {}", describe());
    }
    if query.size(-1) != key.size(-1) {
        panic!("{OP}: query and key must have the same last size. {}", describe());
    }
    if key.size(-2) != value.size(-2) {
        panic!("{OP}: key and value must have the same number of positions. {}", describe());
    }
    let leading = |t: &Tensor| Shape::new(&t.shape()[..t.rank() - 2]);
    let common = leading(query).broadcast(&leading(key)).and_then(|s| s.broadcast(&leading(value)));
    let Some(common) = common else { panic!("{OP}: the leading sizes do not broadcast. {}", describe()) };
    if let Some(mask) = mask {
        if is_causal {
            panic!("{OP}: give a mask or set is_causal, not both. {}", describe());
        }
        if mask.dtype() != DType::Bool {
            mask.require_float(OP);
        }
        let n = common.rank();
        let scores = common.inserted(n, query.size(-2)).inserted(n + 1, key.size(-2));
        if mask.layout().broadcast_to(&scores).is_none() {
            panic!("{OP}: the mask does not broadcast to {scores}. {}", describe());
        }
    }
    common
}

/// As `[b, h, rows, columns]`: expanded, the first of too many leading dimensions merged, missing ones added.
#[track_caller]
fn as_heads(x: &Tensor, leading: &Shape, rows: usize, columns: usize) -> Tensor {
    let n = leading.rank();
    let full = leading.inserted(n, rows).inserted(n + 1, columns);
    let x = if *x.shape() == full { x.clone() } else { x.broadcast_to(&full) };
    match n {
        0 => x.unsqueeze(0).unsqueeze(0),
        1 => x.unsqueeze(0),
        2 => x,
        _ => x.reshape([leading[..n - 1].iter().product(), leading[n - 1], rows, columns]),
    }
}

#[track_caller]
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, scale: f64, causal: bool) -> Tensor {
    let [b, h, t, _] = q.dims();
    let has_mask = mask.is_some();
    let inputs: SmallVec<[&Tensor; 4]> = [Some(q), Some(k), Some(v), mask].into_iter().flatten().collect();
    let outputs = [(Shape::from([b, h, t, v.size(3)]), q.dtype()), (Shape::from([b, h, t]), wide(q.dtype()))];
    let op = Op::Attention { scale, causal, mask: has_mask };
    let Some([y, lse]) = run_fused("scaled_dot_product_attention", op, &inputs, outputs) else {
        return lowering(q, k, v, mask, scale, causal, 0.0);
    };
    let mut save: SmallVec<[Save<'_>; 6]> = (0..3).map(Save::Input).collect();
    save.extend([Save::Output(0), Save::Other(&lse)]);
    save.extend(mask.map(Save::Other));
    y.recorded("scaled_dot_product_attention", &inputs[..3], &save, move |c| {
        let (q, k, v, y, lse) = (c.saved(0), c.saved(1), c.saved(2), c.saved(3), c.saved(4));
        let mask = has_mask.then(|| c.saved(5));
        if !is_grad_enabled() {
            let inputs: SmallVec<[&Tensor; 7]> =
                [Some(q), Some(k), Some(v), mask, Some(y), Some(lse), Some(c.grad())]
                    .into_iter()
                    .flatten()
                    .collect();
            let op = Op::AttentionGrad { scale, causal, mask: has_mask };
            let outputs = [q, k, v].map(|t| (*t.shape(), t.dtype()));
            if let Some([dq, dk, dv]) = run_fused("scaled_dot_product_attention_grad", op, &inputs, outputs) {
                return grads![dq, dk, dv];
            }
        }
        let lowering = |t: &[Tensor]| lowering(&t[0], &t[1], &t[2], mask, scale, causal, 0.0);
        Gradients::from_vec(by_lowering(&[q, k, v], lowering, c.grad()))
    })
}

#[track_caller]
fn lowering(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: f64,
    causal: bool,
    dropout_p: f64,
) -> Tensor {
    let (dtype, wide) = (q.dtype(), wide(q.dtype()));
    let [q, k, v] = [q, k, v].map(|t| t.to_dtype(wide));
    let mut scores = q.matmul(&k.transpose(-2, -1)) * scale; // [b, h, t, s]
    if causal {
        let row = Tensor::arange(0, q.size(-2), 1, q.device()).unsqueeze(1);
        let column = Tensor::arange(0, k.size(-2), 1, q.device());
        scores = scores.masked_fill(&column.gt(&row), f64::NEG_INFINITY);
    }
    let weights = match mask {
        None => scores.softmax(-1),
        Some(mask) => {
            scores = match mask.dtype() {
                DType::Bool => scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY),
                _ => scores + mask.to_dtype(wide),
            };
            // The softmax of a row of -inf is NaN, and so would be its gradient.
            let blind = scores.eq(f64::NEG_INFINITY).all_keepdim(-1);
            scores.masked_fill(&blind, 0.0).softmax(-1).masked_fill(&blind, 0.0)
        }
    };
    weights.into_dropout(dropout_p, true).matmul(&v).to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_with_gradients, device, everywhere, wave};
    use crate::{Tensor, gradcheck, gradgradcheck};

    fn qkv() -> [Tensor; 3] {
        [0.0, 1.0, 2.0].map(|phase| wave([3, 2], phase))
    }

    #[test]
    fn leading_sizes_broadcast() {
        everywhere(|| {
            let (q, k, v) = (wave([2, 1, 2, 2], 0.0), wave([2, 3, 2], 1.0), wave([1, 3, 2], 2.0));
            let y = q.scaled_dot_product_attention(&k, &v, None, 0.0, false, None);
            assert_eq!(*y.shape(), [2, 2, 2, 2]);
            assert_with_gradients(
                &y,
                &[&q, &k, &v],
                &[
                    0.346684, -0.285685, 0.024234, -0.048929, 0.444376, -0.458575, 0.117037, -0.080555,
                    0.497548, -0.438499, -0.162776, 0.144157, 0.229168, -0.250978, 0.384226, -0.326067,
                ],
                &[
                    &[-0.250556, 0.061085, 0.361763, -0.240029, -0.281076, 0.464381, -0.10504, -0.436321],
                    &[
                        0.19873, 0.28074, -0.323224, -0.305014, 0.124494, 0.024274, 0.232169, 0.461982,
                        -0.427733, -0.721971, 0.195564, 0.259989,
                    ],
                    &[0.232079, 0.47674, -0.73597, 0.126681, 0.360415, 0.262363],
                ],
            );
        });
    }

    #[test]
    fn five_dimensions_are_as_good_as_four() {
        everywhere(|| {
            let q = wave([2, 2, 1, 2, 2], 0.0);
            let y = q.scaled_dot_product_attention(&(&q * 0.5), &(&q * 2.0), None, 0.0, false, None);
            assert_eq!(*y.shape(), [2, 2, 1, 2, 2]);
            assert_close(
                &y,
                &[
                    -0.172739, 0.687166, -0.33587, -0.536906, 0.146705, 0.598539, -0.556336, -0.235595,
                    0.452635, 0.414072, -0.671932, 0.076967, 0.704168, 0.090022, -0.667152, 0.415322,
                ],
            );
        });
    }

    #[test]
    fn query_heads_can_share_keys() {
        everywhere(|| {
            let (q, k, v) = (wave([2, 4, 3, 2], 0.0), wave([2, 2, 3, 2], 1.0), wave([2, 2, 3, 2], 2.0));
            let [wide_k, wide_v] = [&k, &v].map(|t| t.repeat_interleave(2, 1)); // what sharing means
            let attend = |q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>| {
                q.scaled_dot_product_attention(k, v, mask, 0.0, mask.is_none(), None)
            };
            let per_head = wave([4, 3, 3], 3.0);
            for mask in [None, Some(&per_head), Some(&wave([2, 1, 1, 3], 3.0)), Some(&wave([3], 3.0))] {
                let expected = attend(&q, &wide_k, &wide_v, mask).to_vec::<f64>().unwrap();
                assert_close(&attend(&q, &k, &v, mask), &expected);
            }
            gradcheck(|t| attend(&t[0], &t[1], &t[2], None), &[q.clone(), k.clone(), v.clone()]).unwrap();
        });
    }

    #[test]
    fn causal_attention_is_pytorchs() {
        everywhere(|| {
            let [q, k, v] = qkv();
            let y = q.scaled_dot_product_attention(&k, &v, None, 0.0, true, Some(0.3));
            assert_with_gradients(
                &y,
                &[&q, &k, &v],
                &[0.909297, -0.529836, -0.059728, 0.195354, 0.361168, -0.328892],
                &[
                    &[0.0, 0.0, -0.047584, -0.016176, 0.072654, 0.02686],
                    &[0.028892, 0.0603, -0.026971, -0.057195, -0.001922, -0.003105],
                    &[0.518797, 0.701261, -0.177, -0.257436, 0.300299, 0.145524],
                ],
            );
        });
    }

    #[test]
    fn a_query_that_sees_nothing_gets_zeros() {
        everywhere(|| {
            let [q, k, v] = qkv();
            let mask = [[true, false, true], [false, false, false], [true, true, true]];
            let mask = Tensor::new(mask, device());
            let y = q.scaled_dot_product_attention(&k, &v, Some(&mask), 0.0, false, None);
            assert_with_gradients(
                &y,
                &[&q, &k, &v],
                &[0.775392, -0.67426, 0.0, 0.0, 0.497548, -0.438499],
                &[
                    &[-0.011802, 0.037759, 0.0, 0.0, 0.127999, 0.058976],
                    &[0.05022, 0.155668, -0.036476, -0.058946, -0.013744, -0.096722],
                    &[0.672651, 0.664287, 0.148177, 0.071806, 0.509034, 0.484521],
                ],
            );
        });
    }

    #[test]
    fn a_float_mask_is_added_and_has_a_gradient() {
        everywhere(|| {
            let [q, k, v] = qkv();
            let mask = wave([1, 3], 3.0);
            let y = q.scaled_dot_product_attention(&k, &v, Some(&mask), 0.0, false, None);
            assert_with_gradients(
                &y,
                &[&q, &k, &v, &mask],
                &[0.606818, -0.518061, 0.393582, -0.406302, 0.669282, -0.592656],
                &[
                    &[-0.060549, 0.02253, -0.015759, -0.034468, 0.046507, 0.046372],
                    &[0.059159, 0.179473, -0.018613, -0.010189, -0.040545, -0.169284],
                    &[0.470267, 0.431928, -0.045147, -0.024416, 0.216976, 0.181837],
                    &[0.099793, 0.013573, -0.113366],
                ],
            );
        });
    }

    #[test]
    fn dropping_every_weight_leaves_nothing() {
        everywhere(|| {
            let [q, k, v] = qkv();
            assert_close(&q.scaled_dot_product_attention(&k, &v, None, 1.0, false, None), &[0.0; 6]);
        });
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        everywhere(|| {
            let inputs =
                [wave([2, 1, 2, 2], 0.0), wave([2, 3, 2], 1.0), wave([1, 3, 2], 2.0), wave([1, 3], 3.0)];
            let causal =
                |t: &[Tensor]| t[0].scaled_dot_product_attention(&t[1], &t[2], None, 0.0, true, None);
            gradcheck(causal, &inputs[..3]).unwrap();
            gradgradcheck(causal, &inputs[..3]).unwrap();
            let masked =
                |t: &[Tensor]| t[0].scaled_dot_product_attention(&t[1], &t[2], Some(&t[3]), 0.0, false, None);
            gradcheck(masked, &inputs).unwrap();
            gradgradcheck(masked, &inputs).unwrap();
        });
    }

    #[test]
    #[should_panic(
        expected = "scaled_dot_product_attention: give a mask or set is_causal, not both. query: f64 [3, 2]"
    )]
    fn a_mask_and_causality_are_one_too_many() {
        let [q, k, v] = qkv();
        let mask = Tensor::new([true], device());
        q.scaled_dot_product_attention(&k, &v, Some(&mask), 0.0, true, None);
    }

    #[test]
    #[should_panic(
        expected = "scaled_dot_product_attention: query and key must have the same last size. query: f64 [3, 2]"
    )]
    fn keys_of_another_size_are_named() {
        let [q, _, v] = qkv();
        q.scaled_dot_product_attention(&wave([3, 4], 0.0), &v, None, 0.0, false, None);
    }
}
