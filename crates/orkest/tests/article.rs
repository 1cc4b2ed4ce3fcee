//! The code that the architecture page promises, as a user writes it.

use orkest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Module)]
struct SentimentClassifier {
    embedding: Embedding,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl SentimentClassifier {
    fn forward(&self, x: &Tensor) -> Tensor {
        let embedded = self.embedding.forward(x).mean(1);
        let hidden = self.dropout.forward(&self.fc1.forward(&embedded).relu());
        self.fc2.forward(&hidden)
    }
}

fn compute_attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let d_k = query.size(-1) as f32;
    let mut scores = query.matmul(&key.transpose(-2, -1)) / d_k.sqrt();
    if let Some(mask) = mask {
        scores = scores.masked_fill(&mask.eq(0), f32::NEG_INFINITY);
    }
    scores.softmax(-1).matmul(value)
}

fn model() -> SentimentClassifier {
    SentimentClassifier {
        embedding: Embedding::new(10_000, 128),
        fc1: Linear::new(128, 256),
        fc2: Linear::new(256, 2),
        dropout: Dropout::new(0.3),
    }
}

/// Models draw from one generator: a test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_classifier_is_the_articles() {
    let _turn = turn();
    let model = model();
    assert_eq!(model.num_parameters(), 1_313_538);
    let keys = ["embedding.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
    assert_eq!(model.state_dict().keys().collect::<Vec<_>>(), keys);
}

/// The losses of the loop below in PyTorch, after `torch.manual_seed(1)`.
const LOSSES: [f64; 10] = [
    0.6847566, 0.6593328, 0.6349130, 0.6111267, 0.5877211, 0.5644029, 0.5411369, 0.5177933, 0.4943568,
    0.4707148,
];

#[test]
fn the_loop_gives_pytorchs_losses() {
    let _turn = turn();
    manual_seed(1);
    let model = model();
    model.eval(); // PyTorch's dropout draws other numbers
    let inputs = (Tensor::arange(0, 320, 1, &Device::cpu()) * 31 % 10_000).reshape([16, 20]);
    let labels = Tensor::arange(0, 16, 1, &Device::cpu()) % 2;
    let train_loader = vec![(inputs, labels)];

    let criterion = CrossEntropyLoss::new();
    let mut optimizer = Adam::new(model.parameters(), 1e-3);
    for expected in LOSSES {
        for (inputs, labels) in &train_loader {
            optimizer.zero_grad();
            let loss = criterion.forward(&model.forward(inputs), labels);
            loss.backward();
            optimizer.step();
            let loss = loss.item().unwrap();
            assert!((loss - expected).abs() < 1e-5, "{loss} is not {expected}");
        }
    }
}

#[test]
fn attention_is_a_weighted_mean_of_the_values() {
    let (query, key) = (tensor![[[0.0, 0.0]]], tensor![[[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]]);
    let value = tensor![[[3.0], [9.0], [100.0]]];
    // A zero query weighs all keys that the mask leaves alike.
    let y = compute_attention(&query, &key, &value, Some(&tensor![[[1, 1, 0]]]));
    assert_eq!(y.to_vec::<f32>().unwrap(), [6.0]);
    let y = compute_attention(&query, &key, &value.narrow(1, 0, 3), None);
    assert!((y.item().unwrap() - 112.0 / 3.0).abs() < 1e-5);
}

#[test]
fn a_wrong_shape_names_the_parameter_and_this_file() {
    let _turn = turn();
    let model = model();
    model.parameters();
    let x = Tensor::zeros([2, 100], &Device::cpu());
    let panic = catch_unwind(AssertUnwindSafe(|| model.fc1.forward(&x))).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("parameter fc1.weight") && message.contains("article.rs"), "{message}");
}
