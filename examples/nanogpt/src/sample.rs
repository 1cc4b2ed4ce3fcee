//! Choosing the next token.

use orkest::prelude::*;

/// How the next token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 1 draws with the model's probabilities, less prefers likely tokens, 0 always takes the likeliest.
    pub temperature: f64,
    /// Draw from this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens whose probabilities add up to this much.
    pub top_p: Option<f64>,
}

/// One token (b, 1) for each row of logits (b, vocab_size).
pub fn sample(logits: &Tensor, sampling: &Sampling) -> orkest::Result<Tensor> {
    let device = logits.device();
    // The host's generator draws, so that every device gives the same tokens.
    let logits = logits.try_to(&Device::cpu())?;
    if sampling.temperature == 0.0 {
        return logits.argmax_keepdim(-1).try_to(device);
    }
    let mut logits = logits / sampling.temperature;
    if let Some(k) = sampling.top_k {
        let (largest, _) = logits.topk(k.min(logits.size(-1)), -1, true);
        logits = logits.masked_fill(&logits.lt(largest.i((.., -1..))), f64::NEG_INFINITY);
    }
    if let Some(p) = sampling.top_p {
        let (sorted, order) = logits.sort(-1, true);
        let probs = sorted.softmax(-1);
        let before = probs.cumsum(-1) - &probs; // of all tokens that are likelier
        let kept = sorted.masked_fill(&before.ge(p), f64::NEG_INFINITY);
        logits = logits.scatter(-1, &order, &kept);
    }
    logits.softmax(-1).multinomial(1, false)?.try_to(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The tokens that turn up in many draws from probabilities of 0.5, 0.2, 0.2 and 0.1.
    fn drawn(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> BTreeSet<i64> {
        manual_seed(1);
        let logits = tensor![[0.2, 0.5, 0.1, 0.2]].log().expand([500, 4]);
        let tokens = sample(&logits, &Sampling { temperature, top_k, top_p }).unwrap();
        assert_eq!(tokens.shape(), &[500, 1]);
        tokens.to_vec::<i64>().unwrap().into_iter().collect()
    }

    #[test]
    fn what_is_unlikely_can_be_left_out() {
        assert_eq!(drawn(1.0, None, None), [0, 1, 2, 3].into());
        assert_eq!(drawn(0.0, None, None), [1].into());
        assert_eq!(drawn(0.05, None, None), [1].into());
        assert_eq!(drawn(1.0, Some(1), None), [1].into());
        assert_eq!(drawn(1.0, Some(3), None), [0, 1, 3].into());
        assert_eq!(drawn(1.0, Some(9), None), [0, 1, 2, 3].into());
        assert_eq!(drawn(1.0, None, Some(0.45)), [1].into());
        assert_eq!(drawn(1.0, None, Some(0.85)), [0, 1, 3].into());
        assert_eq!(drawn(1.0, None, Some(1.0)), [0, 1, 2, 3].into());
        // Of the three that remain the likeliest has 0.5 / 0.9.
        assert_eq!(drawn(1.0, Some(3), Some(0.5)), [1].into());
    }
}
