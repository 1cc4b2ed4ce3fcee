//! GPT, to be held beside nanoGPT's model.py (<https://github.com/karpathy/nanoGPT>): the same parts, names and initial weights.

#![allow(clippy::upper_case_acronyms)] // the names of nanoGPT

use crate::sample::{Sampling, sample};
use orkest::nn::{KvCache, init};
use orkest::prelude::*;

#[derive(Module)]
pub struct CausalSelfAttention {
    c_attn: Linear, // key, query, value projections for all heads, but in a batch
    c_proj: Linear, // output projection
    resid_dropout: Dropout,
    n_head: usize,
    dropout: f64,
    mode: Mode,
}

impl CausalSelfAttention {
    fn new(config: &GPTConfig) -> Self {
        assert!(
            config.n_embd.is_multiple_of(config.n_head),
            "the width must be a multiple of the number of heads"
        );
        CausalSelfAttention {
            c_attn: linear(config.n_embd, 3 * config.n_embd, config.bias),
            c_proj: linear(config.n_embd, config.n_embd, config.bias),
            resid_dropout: Dropout::new(config.dropout),
            n_head: config.n_head,
            dropout: config.dropout,
            mode: Mode::new(),
        }
    }

    fn forward(&self, x: &Tensor, cache: Option<&mut KvCache>) -> Tensor {
        let [b, t, c] = x.dims(); // batch size, sequence length, embedding dimensionality (n_embd)
        let heads = |x: Tensor| x.view([b, t, self.n_head, c / self.n_head]).transpose(1, 2); // (b, nh, t, hs)
        let [q, k, v] = self.c_attn.forward(x).chunks(-1).map(heads);
        let y = match cache {
            Some(cache) => cache.attend(&q, &k, &v),
            None => {
                let dropout_p = if self.mode.is_training() { self.dropout } else { 0.0 };
                q.scaled_dot_product_attention(&k, &v, None, dropout_p, true, None)
            }
        };
        let y = y.transpose(1, 2).reshape([b, t, c]); // re-assemble all head outputs side by side
        self.resid_dropout.forward(&self.c_proj.forward(&y))
    }
}

#[derive(Module)]
pub struct MLP {
    c_fc: Linear,
    c_proj: Linear,
    dropout: Dropout,
}

impl MLP {
    fn new(config: &GPTConfig) -> Self {
        MLP {
            c_fc: linear(config.n_embd, 4 * config.n_embd, config.bias),
            c_proj: linear(4 * config.n_embd, config.n_embd, config.bias),
            dropout: Dropout::new(config.dropout),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.c_fc.forward(x).gelu();
        self.dropout.forward(&self.c_proj.forward(&x))
    }
}

#[derive(Module)]
pub struct Block {
    ln_1: LayerNorm,
    attn: CausalSelfAttention,
    ln_2: LayerNorm,
    mlp: MLP,
}

impl Block {
    fn new(config: &GPTConfig) -> Self {
        Block {
            ln_1: LayerNorm::new(config.n_embd).bias(config.bias),
            attn: CausalSelfAttention::new(config),
            ln_2: LayerNorm::new(config.n_embd).bias(config.bias),
            mlp: MLP::new(config),
        }
    }

    fn forward(&self, x: &Tensor, cache: Option<&mut KvCache>) -> Tensor {
        let x = x + self.attn.forward(&self.ln_1.forward(x), cache);
        &x + self.mlp.forward(&self.ln_2.forward(&x))
    }
}

/// The shape of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GPTConfig {
    pub block_size: usize,
    pub vocab_size: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_embd: usize,
    pub dropout: f64,
    /// Biases in linear layers and layer norms, like GPT-2; without, it is a bit better and faster.
    pub bias: bool,
}

#[derive(Module)]
pub struct Trunk {
    wte: Embedding,
    wpe: Embedding,
    drop: Dropout,
    h: Vec<Block>,
    ln_f: LayerNorm,
}

#[derive(Module)]
pub struct GPT {
    transformer: Trunk,
    lm_head: Linear,
    #[module(skip)]
    pub config: GPTConfig,
}

impl GPT {
    pub fn new(config: GPTConfig) -> Self {
        let mut transformer = Trunk {
            wte: Embedding::new(config.vocab_size, config.n_embd),
            wpe: Embedding::new(config.block_size, config.n_embd),
            drop: Dropout::new(config.dropout),
            h: (0..config.n_layer).map(|_| Block::new(&config)).collect(),
            ln_f: LayerNorm::new(config.n_embd).bias(config.bias),
        };
        let lm_head = Linear::without_bias(config.n_embd, config.vocab_size);
        transformer.wte.weight = lm_head.weight.clone(); // weight tying, https://arxiv.org/abs/1608.05859
        let model = GPT { transformer, lm_head, config };
        model.init_weights();
        model
    }

    fn init_weights(&self) {
        for (name, param) in self.named_parameters() {
            if param.shape().rank() >= 2 {
                init::normal_(&param, 0.0, 0.02);
            } else if name.ends_with("bias") {
                init::zeros_(&param);
            }
        }
        init::normal_(&self.lm_head.weight, 0.0, 0.02); // nanoGPT meets the tied weight twice
        // Scaled init for the residual projections, per GPT-2 paper.
        for (name, param) in self.named_parameters() {
            if name.ends_with("c_proj.weight") {
                init::normal_(&param, 0.0, 0.02 / (2.0 * self.config.n_layer as f64).sqrt());
            }
        }
    }

    /// The number of parameters without the position embeddings. The token embeddings count, because the last layer uses them.
    pub fn get_num_params(&self) -> usize {
        self.num_parameters() - self.transformer.wpe.weight.numel()
    }

    /// The logits of all positions and the loss with targets; of the last position only without.
    pub fn forward(&self, idx: &Tensor, targets: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
        let x = self.features(idx, None);
        match targets {
            Some(targets) => {
                let logits = self.lm_head.forward(&x);
                let criterion = CrossEntropyLoss::new().ignore_index(-1);
                let loss = criterion.forward(&logits.view((-1, logits.size(-1))), &targets.reshape(-1));
                (logits, Some(loss))
            }
            None => (self.lm_head.forward(&x.i((.., -1.., ..))), None),
        }
    }

    /// The logits of the last position, given only the tokens that follow those in the caches (one for each block).
    pub fn forward_cached(&self, idx: &Tensor, caches: &mut [KvCache]) -> Tensor {
        self.lm_head.forward(&self.features(idx, Some(caches)).i((.., -1.., ..)))
    }

    fn features(&self, idx: &Tensor, mut caches: Option<&mut [KvCache]>) -> Tensor {
        let [_, t] = idx.dims();
        let past = caches.as_ref().map_or(0, |caches| caches[0].len());
        assert!(
            past + t <= self.config.block_size,
            "cannot forward a sequence of length {}, the block size is only {}",
            past + t,
            self.config.block_size
        );
        let pos = Tensor::arange(past as i64, (past + t) as i64, 1, idx.device()); // (t)
        let tok_emb = self.transformer.wte.forward(idx); // (b, t, n_embd)
        let pos_emb = self.transformer.wpe.forward(&pos); // (t, n_embd)
        let mut x = self.transformer.drop.forward(&(tok_emb + pos_emb));
        for (i, block) in self.transformer.h.iter().enumerate() {
            x = block.forward(&x, caches.as_deref_mut().map(|caches| &mut caches[i]));
        }
        self.transformer.ln_f.forward(&x)
    }

    /// Model surgery: a smaller block size for a model that was trained with a larger one.
    pub fn crop_block_size(&mut self, block_size: usize) {
        assert!(
            block_size <= self.config.block_size,
            "the model knows {} positions only",
            self.config.block_size
        );
        self.config.block_size = block_size;
        let rows = self.transformer.wpe.weight.value().narrow(0, 0, block_size).copy();
        self.transformer.wpe = Embedding::from_param(Param::new(rows));
    }

    /// AdamW that decays all matrices (in products and embeddings) and neither biases nor layer norms.
    pub fn configure_optimizers(&self, weight_decay: f64, learning_rate: f64, betas: (f64, f64)) -> AdamW {
        let (decay, no_decay): (Vec<Param>, Vec<Param>) =
            self.parameters().into_iter().partition(|p| p.shape().rank() >= 2);
        let groups = vec![
            ParamGroup::new(decay).with("weight_decay", weight_decay),
            ParamGroup::new(no_decay).with("weight_decay", 0.0),
        ];
        AdamW::new(groups, learning_rate).betas(betas)
    }

    /// Continues each sequence of `idx` (b, t) by `max_new_tokens` tokens, fed back into the model one by one.
    pub fn generate(
        &self,
        idx: &Tensor,
        max_new_tokens: usize,
        sampling: &Sampling,
    ) -> orkest::Result<Tensor> {
        no_grad(|| {
            let block_size = self.config.block_size;
            let mut idx = idx.clone();
            let mut caches = vec![KvCache::new(); self.config.n_layer];
            for _ in 0..max_new_tokens {
                let t = idx.size(1);
                let logits = if t <= block_size {
                    let seen = caches[0].len();
                    self.forward_cached(&idx.narrow(1, seen, t - seen), &mut caches)
                } else {
                    // Every token has another position now, so what was computed for the last one is of no use.
                    self.forward(&idx.narrow(1, t - block_size, block_size), None).0
                };
                let idx_next = sample(&logits.select(1, -1), sampling)?; // (b, 1)
                idx = Tensor::cat(&[idx, idx_next], 1);
            }
            Ok(idx)
        })
    }
}

fn linear(in_features: usize, out_features: usize, bias: bool) -> Linear {
    if bias {
        Linear::new(in_features, out_features)
    } else {
        Linear::without_bias(in_features, out_features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(bias: bool) -> GPT {
        manual_seed(0);
        GPT::new(GPTConfig {
            block_size: 8,
            vocab_size: 11,
            n_layer: 2,
            n_head: 2,
            n_embd: 8,
            dropout: 0.0,
            bias,
        })
    }

    #[test]
    fn parameters_are_nanogpts() {
        // [name for name, _ in GPT(GPTConfig(n_layer=2, ..)).named_parameters()] has the tied weight once, under its first name.
        let names: Vec<String> = tiny(true).named_parameters().into_iter().map(|(name, _)| name).collect();
        let block =
            ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"]
                .into_iter()
                .chain(["attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"])
                .chain(["mlp.c_proj.weight", "mlp.c_proj.bias"]);
        let mut expected = vec!["transformer.wte.weight".to_string(), "transformer.wpe.weight".into()];
        expected.extend(block.clone().map(|name| format!("transformer.h.0.{name}")));
        expected.extend(block.map(|name| format!("transformer.h.1.{name}")));
        expected.extend(["transformer.ln_f.weight".into(), "transformer.ln_f.bias".into()]);
        assert_eq!(names, expected);
        let model = tiny(false);
        // 11 * 8 tokens, and per block 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8 and two norms of 8; one norm at the end
        assert_eq!(model.get_num_params(), 88 + 2 * (192 + 64 + 256 + 256 + 16) + 8);
        assert_eq!(model.num_parameters() - model.get_num_params(), 8 * 8);
        assert!(model.state_dict().contains("lm_head.weight"));
    }

    #[test]
    fn cached_logits_are_the_uncached_ones() {
        let model = tiny(true);
        let idx = Tensor::randint(0, 11, [3, 8], &Device::cpu());
        no_grad(|| {
            let mut caches = vec![KvCache::new(); 2];
            for (start, end) in [(0, 3), (3, 4), (4, 5), (5, 8)] {
                let cached = model.forward_cached(&idx.narrow(1, start, end - start), &mut caches);
                let (logits, _) = model.forward(&idx.narrow(1, 0, end), None);
                assert!(cached.allclose(&logits, 1e-5, 1e-6, false).unwrap(), "{cached}\nis not\n{logits}");
            }
        });
    }

    #[test]
    fn generation_goes_on_beyond_the_block_size() {
        let model = tiny(false);
        let greedy = Sampling { temperature: 0.0, top_k: None, top_p: None };
        let start = tensor![[1, 2, 3]];
        let tokens = model.generate(&start, 12, &greedy).unwrap();
        assert_eq!(tokens.shape(), &[1, 15]);
        // What each token is has to follow from the eight before it.
        for t in 3..15isize {
            let from = (t - 8).max(0);
            let (logits, _) = no_grad(|| model.forward(&tokens.i((.., from..t)), None));
            let expected = logits.select(1, -1).argmax(-1).item().unwrap();
            assert_eq!(tokens.i((0, t)).item().unwrap(), expected, "token {t}");
        }
    }

    #[test]
    fn a_cropped_model_knows_the_first_positions() {
        let mut model = tiny(false);
        let idx = tensor![[5, 6, 7, 8]];
        let before = no_grad(|| model.forward(&idx, None).0);
        model.crop_block_size(4);
        assert_eq!(
            before.to_vec::<f32>().unwrap(),
            no_grad(|| model.forward(&idx, None).0).to_vec::<f32>().unwrap()
        );
        assert_eq!(model.transformer.wpe.weight.shape(), [4, 8]);
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let optimizer = tiny(true).configure_optimizers(0.1, 1e-3, (0.9, 0.95));
        let groups = optimizer.param_groups();
        assert_eq!([groups[0].weight_decay(), groups[1].weight_decay()], [0.1, 0.0]);
        assert!(groups[0].params().iter().all(|p| p.shape().rank() == 2));
        assert!(groups[1].params().iter().all(|p| p.shape().rank() == 1));
        assert_eq!([groups[0].params().len(), groups[1].params().len()], [2 + 2 * 4, 2 * 8 + 2]);
    }
}
