//! The models that the benchmark trains and runs, written with the public API as a user would write them.

use orkest::prelude::*;

/// Embedding, mean over words, two linear layers.
#[derive(Module)]
pub struct Sentiment {
    embedding: Embedding,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl Sentiment {
    pub fn new() -> Self {
        Self {
            embedding: Embedding::new(10000, 128),
            fc1: Linear::new(128, 256),
            fc2: Linear::new(256, 2),
            dropout: Dropout::new(0.3),
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.fc1.forward(&self.embedding.forward(x).mean(1)).relu();
        self.fc2.forward(&self.dropout.forward(&hidden))
    }
}

/// The article's LSTM classifier.
#[derive(Module)]
pub struct LstmClassifier {
    embedding: Embedding,
    lstm: LSTM,
    classifier: Linear,
}

impl LstmClassifier {
    pub fn new() -> Self {
        Self {
            embedding: Embedding::new(5002, 64).padding_idx(0),
            lstm: LSTM::new(64, 128).batch_first(),
            classifier: Linear::new(128, 2),
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (_, (hidden, _)) = self.lstm.forward(&self.embedding.forward(x), None);
        self.classifier.forward(&hidden.squeeze(0))
    }
}

/// Keys and values of the positions seen so far, one pair per block.
pub type Past = Vec<Option<(Tensor, Tensor)>>;

/// Pre-norm transformer block.
#[derive(Module)]
struct Block {
    ln1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    ln2: LayerNorm,
    fc: Linear,
    out: Linear,
    heads: usize,
}

impl Block {
    fn new(d: usize, heads: usize) -> Self {
        Self {
            ln1: LayerNorm::new(d),
            qkv: Linear::new(d, 3 * d),
            proj: Linear::new(d, d),
            ln2: LayerNorm::new(d),
            fc: Linear::new(d, 4 * d),
            out: Linear::new(4 * d, d),
            heads,
        }
    }

    fn forward(&self, x: &Tensor, past: Option<&mut Option<(Tensor, Tensor)>>) -> Tensor {
        let [b, t, d] = x.dims();
        let [q, mut k, mut v] = self
            .qkv
            .forward(&self.ln1.forward(x))
            .chunks(2)
            .map(|t_| t_.view((b, t, self.heads, d / self.heads)).transpose(1, 2));
        if let Some(past) = past {
            if let Some((pk, pv)) = past.take() {
                k = Tensor::cat(&[&pk, &k], 2);
                v = Tensor::cat(&[&pv, &v], 2);
            }
            *past = Some((k.clone(), v.clone()));
        }
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, None, 0.0, t > 1, None);
        let x = x + self.proj.forward(&y.transpose(1, 2).reshape((b, t, d)));
        &x + self.out.forward(&self.fc.forward(&self.ln2.forward(&x)).gelu_tanh())
    }
}

/// A decoder-only transformer.
#[derive(Module)]
pub struct Gpt {
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln: LayerNorm,
    head: Linear,
}

impl Gpt {
    pub fn new(vocab: usize, block: usize, d: usize, heads: usize, layers: usize) -> Self {
        Self {
            wte: Embedding::new(vocab, d),
            wpe: Embedding::new(block, d),
            blocks: (0..layers).map(|_| Block::new(d, heads)).collect(),
            ln: LayerNorm::new(d),
            head: Linear::without_bias(d, vocab),
        }
    }

    pub fn empty_past(&self) -> Past {
        vec![None; self.blocks.len()]
    }

    pub fn forward(&self, ids: &Tensor, position: usize, mut past: Option<&mut Past>) -> Tensor {
        let positions = Tensor::arange(position, position + ids.size(1), 1, ids.device());
        let mut x = self.wte.forward(ids) + self.wpe.forward(&positions);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, past.as_deref_mut().map(|p| &mut p[i]));
        }
        self.head.forward(&self.ln.forward(&x))
    }
}

/// Post-norm transformer layer.
#[derive(Module)]
struct BertLayer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ln1: LayerNorm,
    f1: Linear,
    f2: Linear,
    ln2: LayerNorm,
}

/// DistilBERT-base's shape: 6 layers, 768 wide, 12 heads.
#[derive(Module)]
pub struct Bert {
    word: Embedding,
    pos: Embedding,
    ln: LayerNorm,
    layers: Vec<BertLayer>,
    pre: Linear,
    cls: Linear,
}

impl Bert {
    const D: usize = 768;
    const HEADS: usize = 12;

    pub fn new() -> Self {
        let d = Self::D;
        let norm = || LayerNorm::new(d).eps(1e-12);
        let layer = || BertLayer {
            q: Linear::new(d, d),
            k: Linear::new(d, d),
            v: Linear::new(d, d),
            o: Linear::new(d, d),
            ln1: norm(),
            f1: Linear::new(d, 4 * d),
            f2: Linear::new(4 * d, d),
            ln2: norm(),
        };
        Self {
            word: Embedding::new(30522, d),
            pos: Embedding::new(512, d),
            ln: norm(),
            layers: (0..6).map(|_| layer()).collect(),
            pre: Linear::new(d, d),
            cls: Linear::new(d, 2),
        }
    }

    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let [b, t] = ids.dims();
        let positions = Tensor::arange(0, t, 1, ids.device());
        let mut x = self.ln.forward(&(self.word.forward(ids) + self.pos.forward(&positions)));
        for l in &self.layers {
            let heads = |y: Tensor| y.view((b, t, Self::HEADS, -1)).transpose(1, 2);
            let (q, k, v) = (heads(l.q.forward(&x)), heads(l.k.forward(&x)), heads(l.v.forward(&x)));
            let a = Tensor::scaled_dot_product_attention(&q, &k, &v, None, 0.0, false, None);
            x = l.ln1.forward(&(&x + l.o.forward(&a.transpose(1, 2).reshape((b, t, Self::D)))));
            x = l.ln2.forward(&(&x + l.f2.forward(&l.f1.forward(&x).gelu())));
        }
        self.cls.forward(&self.pre.forward(&x.select(1, 0)).relu())
    }
}

/// Two convolutions beside a shortcut.
#[derive(Module)]
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    downsample: Option<Sequential>,
}

impl BasicBlock {
    fn new(from: usize, to: usize, stride: usize) -> Self {
        let shortcut = || {
            let conv = Conv2d::without_bias(from, to, 1).stride(stride);
            Sequential::new().push(conv).push(BatchNorm2d::new(to))
        };
        Self {
            conv1: Conv2d::without_bias(from, to, 3).stride(stride).padding(1),
            bn1: BatchNorm2d::new(to),
            conv2: Conv2d::without_bias(to, to, 3).padding(1),
            bn2: BatchNorm2d::new(to),
            downsample: (stride > 1).then(shortcut),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let out = self.bn1.forward(&self.conv1.forward(x)).relu();
        let out = self.bn2.forward(&self.conv2.forward(&out));
        let identity = self.downsample.as_ref().map_or(x.clone(), |downsample| downsample.forward(x));
        (out + identity).relu()
    }
}

/// ResNet-18.
#[derive(Module)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    blocks: Vec<BasicBlock>,
    fc: Linear,
}

impl ResNet {
    pub fn new() -> Self {
        let stages = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)];
        Self {
            conv1: Conv2d::without_bias(3, 64, 7).stride(2).padding(3),
            bn1: BatchNorm2d::new(64),
            blocks: stages
                .into_iter()
                .flat_map(|(from, to, stride)| {
                    [BasicBlock::new(from, to, stride), BasicBlock::new(to, to, 1)]
                })
                .collect(),
            fc: Linear::new(512, 1000),
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.bn1.forward(&self.conv1.forward(x)).relu().max_pool2d(3, 2, 1);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        self.fc.forward(&x.adaptive_avg_pool2d(1).flatten(1, -1))
    }
}
