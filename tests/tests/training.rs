//! The first training steps, from the seed alone: weights, batches, gradients and optimizer steps together give PyTorch's losses.
//!
//! `parity/training_runs.py` has the other side of each run.

use orkest::op::Unary;
use orkest::prelude::*;
use orkest_tests as _;
use serde_json::Value;

/// Makes the model and its optimizer; then every call is a step and gives its loss.
type Run = fn() -> Box<dyn FnMut() -> f64>;

const RUNS: &[(&str, Run)] = &[
    ("SentimentClassifier", || {
        let model = SentimentClassifier::new(10000, 128, 256, 2);
        let optimizer = Adam::new(model.parameters(), 1e-3);
        model.eval(); // dropout off
        steps(optimizer, move || {
            let (x, y) = (integers(0, 10000, [32, 100]), integers(0, 2, [32]));
            CrossEntropyLoss::new().forward(&model.forward(&x), &y)
        })
    }),
    ("TextClassifier", || text_classifier(false)),
    ("TextClassifier, literal", || text_classifier(true)),
    ("GPT", || {
        let model = Gpt::new(65, 64, 32);
        let optimizer = AdamW::new(model.parameters(), 1e-3);
        model.eval(); // dropout off
        steps(optimizer, move || {
            let tokens = integers(0, 65, [8, 33]);
            let logits = model.forward(&tokens.i((.., ..-1)));
            CrossEntropyLoss::new().forward(&logits.reshape((-1, 65)), &tokens.i((.., 1..)).reshape(-1))
        })
    }),
];

/// PyTorch's version of each run starts from the same seed and draws in the same order.
#[test]
fn losses_are_pytorchs_without_exchanging_weights() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/training_runs.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let expected = file["runs"].as_object().unwrap();
    assert_eq!(expected.len(), RUNS.len(), "runs in the file and here");
    for (name, run) in RUNS {
        let losses =
            expected.get(*name).unwrap_or_else(|| panic!("{name} is not in the file")).as_array().unwrap();
        manual_seed(0);
        let mut step = run();
        for (i, loss) in losses.iter().enumerate() {
            let (found, wanted) = (step(), loss.as_f64().unwrap());
            let close = (found - wanted).abs() <= 1e-4 * wanted.abs();
            assert!(close, "{name}, step {}: loss {found}, in PyTorch {wanted}", i + 1);
        }
        assert_eq!(losses.len(), 20);
    }
}

fn steps(
    mut optimizer: impl Optimizer + 'static,
    loss: impl Fn() -> Tensor + 'static,
) -> Box<dyn FnMut() -> f64> {
    Box::new(move || {
        optimizer.zero_grad();
        let loss = loss();
        loss.backward();
        optimizer.step();
        loss.item().unwrap()
    })
}

fn integers<const N: usize>(low: i64, high: i64, shape: [usize; N]) -> Tensor {
    Tensor::randint(low, high, shape, &Device::cpu())
}

#[derive(Module)]
struct SentimentClassifier {
    embedding: Embedding,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl SentimentClassifier {
    fn new(vocab_size: usize, embed_dim: usize, hidden_dim: usize, output_dim: usize) -> Self {
        Self {
            embedding: Embedding::new(vocab_size, embed_dim),
            fc1: Linear::new(embed_dim, hidden_dim),
            fc2: Linear::new(hidden_dim, output_dim),
            dropout: Dropout::new(0.3),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let embedded = self.embedding.forward(x).mean(1);
        self.fc2.forward(&self.dropout.forward(&self.fc1.forward(&embedded).relu()))
    }
}

#[derive(Module)]
struct TextClassifier {
    embedding: Embedding,
    lstm: LSTM,
    classifier: Linear,
}

impl TextClassifier {
    fn new(vocab_size: usize, embed_dim: usize, hidden_dim: usize) -> Self {
        Self {
            embedding: Embedding::new(vocab_size, embed_dim).padding_idx(0),
            lstm: LSTM::new(embed_dim, hidden_dim).batch_first(),
            classifier: Linear::new(hidden_dim, 2),
        }
    }

    fn forward(&self, x: &Tensor, literal: bool) -> Tensor {
        let hidden = if literal {
            let (_, (hidden, _)) = self.lstm.forward(&self.embedding.forward(x), None);
            hidden
        } else {
            let words = pack_padded_sequence(x, x.ne(0).sum(1), true, false);
            let embedded = words.with_data(self.embedding.forward(words.data()));
            let (_, (hidden, _)) = self.lstm.forward(&embedded, None);
            hidden
        };
        self.classifier.forward(&hidden.squeeze(0))
    }
}

fn text_classifier(literal: bool) -> Box<dyn FnMut() -> f64> {
    let model = TextClassifier::new(5002, 64, 128);
    let optimizer = Adam::new(model.parameters(), 1e-3);
    steps(optimizer, move || {
        let (x, y) = (integers(1, 5002, [32, 40]), integers(0, 2, [32]));
        let lengths = integers(1, 41, [32]).unsqueeze(1);
        let x = x * Tensor::arange(0, 40, 1, &Device::cpu()).lt(lengths).to_dtype(DType::I64);
        CrossEntropyLoss::new().forward(&model.forward(&x, literal), &y)
    })
}

#[derive(Module)]
struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    blocks: TransformerEncoder,
    head: Linear,
}

impl Gpt {
    fn new(vocab_size: usize, width: usize, block: usize) -> Self {
        let options = TransformerOptions {
            dim_feedforward: 4 * width,
            activation: Unary::Gelu,
            batch_first: true,
            norm_first: true,
            ..TransformerOptions::new(width, 4)
        };
        Self {
            tokens: Embedding::new(vocab_size, width),
            positions: Embedding::new(block, width),
            blocks: TransformerEncoder::new(
                &TransformerEncoderLayer::with_options(&options),
                2,
                Some(LayerNorm::new(width)),
            ),
            head: Linear::new(width, vocab_size),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let positions = Tensor::arange(0, x.size(1) as i64, 1, x.device());
        let x = self.tokens.forward(x) + self.positions.forward(&positions);
        let causal = TransformerMasks { src_is_causal: true, ..Default::default() };
        self.head.forward(&self.blocks.forward_with(&x, &causal))
    }
}
