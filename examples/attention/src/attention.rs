//! Scaled dot-product attention, written out.

use orkest::prelude::*;

/// Scaled dot-product attention. Positions where the mask is 0 are left out.
///
/// A query that may see nothing gets NaN: the softmax of nothing but `-inf`.
pub fn compute_attention(
    query: &Tensor,        // Shape: (batch, seq_len, d_model)
    key: &Tensor,          // Shape: (batch, seq_len, d_model)
    value: &Tensor,        // Shape: (batch, seq_len, d_model)
    mask: Option<&Tensor>, // Shape: broadcasts to (batch, seq_len, seq_len)
) -> Tensor {
    let d_k = query.size(-1) as f64;
    let mut scores = query.matmul(&key.transpose(-2, -1)) / d_k.sqrt();
    if let Some(mask) = mask {
        scores = scores.masked_fill(&mask.eq(0), f64::NEG_INFINITY);
    }
    let weights = scores.softmax(-1);
    weights.matmul(value)
}

/// The weights alone: attention to values that are the rows of the identity.
pub fn attention_weights(query: &Tensor, key: &Tensor, mask: Option<&Tensor>) -> Tensor {
    compute_attention(query, key, &Tensor::eye(key.size(-2), key.device()), mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest::gradcheck;

    fn random(seed: u64, shape: [usize; 3]) -> Tensor {
        manual_seed(seed);
        Tensor::randn(shape, &Device::cpu())
    }

    fn fused(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
        q.scaled_dot_product_attention(k, v, mask, 0.0, false, None)
    }

    #[track_caller]
    fn assert_close(a: &Tensor, b: &Tensor) {
        let difference = (a - b).abs().max(..).item().unwrap();
        assert!(difference <= 1e-5, "differs by {difference}");
    }

    #[test]
    fn values_are_pytorchs() {
        // q = torch.tensor([[[1., 0.], [0., 2.]]]); k = q.flip(1); v = torch.tensor([[[1., 2.], [3., 4.]]])
        let q = tensor![[[1.0, 0.0], [0.0, 2.0]]];
        let (k, v) = (q.flip(&[1]), tensor![[[1.0, 2.0], [3.0, 4.0]]]);
        let expected = tensor![[[2.3395228, 3.339523], [1.1116145, 2.1116145]]];
        assert_close(&compute_attention(&q, &k, &v, None), &expected);
        let causal = Tensor::ones([2, 2], &Device::cpu()).tril(0);
        let expected = tensor![[[1.0, 2.0], [1.1116145, 2.1116145]]];
        assert_close(&compute_attention(&q, &k, &v, Some(&causal)), &expected);
    }

    #[test]
    fn the_fused_operation_computes_the_same() {
        let [q, k, v] = [0, 1, 2].map(|seed| random(seed, [3, 17, 8]));
        let causal = Tensor::ones([17, 17], (DType::Bool, &Device::cpu())).tril(0);
        let padding = Tensor::arange(0, 17, 1, &Device::cpu()).lt(tensor![[[9]], [[17]], [[3]]]); // [3, 1, 17]
        for mask in [None, Some(&causal), Some(&padding), Some(&causal.logical_and(&padding))] {
            assert_close(&compute_attention(&q, &k, &v, mask), &fused(&q, &k, &v, mask));
        }
    }

    #[test]
    fn a_query_that_sees_nothing_is_nan_here_and_zero_in_the_fused_operation() {
        let [q, k, v] = [0, 1, 2].map(|seed| random(seed, [1, 2, 4]));
        let mask = tensor![[1, 0], [0, 0]];
        let row = |y: &Tensor, i| y.select(1, i).to_vec::<f32>().unwrap();
        let y = compute_attention(&q, &k, &v, Some(&mask));
        assert!(row(&y, 0).iter().all(|x| x.is_finite()) && row(&y, 1).iter().all(|x| x.is_nan()));
        assert_eq!(row(&fused(&q, &k, &v, Some(&mask.ne(0))), 1), [0.0; 4]);
    }

    #[test]
    fn weights_of_a_row_add_up_to_one() {
        let weights = attention_weights(&random(3, [2, 5, 4]), &random(4, [2, 5, 4]), None);
        assert_eq!(weights.shape(), &[2, 5, 5]);
        assert_close(&weights.sum(-1), &Tensor::ones([2, 5], &Device::cpu()));
    }

    #[test]
    fn gradients_agree_with_differences() {
        let inputs = [0, 1, 2].map(|seed| random(seed, [2, 3, 2]).to_dtype(DType::F64));
        let causal = Tensor::ones([3, 3], &Device::cpu()).tril(0);
        gradcheck(|t| compute_attention(&t[0], &t[1], &t[2], Some(&causal)), &inputs).unwrap();
    }
}
