//! The same seed gives the same bits, whatever the number of threads.

use orkest::prelude::*;
use orkest_tests as _;
use std::process::Command;

/// Set in the child processes; they print what they have trained.
const CHILD: &str = "ORKEST_TESTS_TRAIN";

#[derive(Module)]
struct Net {
    embedding: Embedding,
    norm: LayerNorm,
    lstm: LSTM,
    fc1: Linear,
    dropout: Dropout,
    fc2: Linear,
}

/// A few steps that go through reductions, products, normalisation, steps through time, scattered gradients and random masks, large enough that every
/// operation would be shared among threads.
fn train() -> Vec<u8> {
    manual_seed(3);
    let net = Net {
        embedding: Embedding::new(500, 96),
        norm: LayerNorm::new(96),
        lstm: LSTM::with_options(96, 48, RecurrentOptions { bidirectional: true, ..Default::default() })
            .batch_first(),
        fc1: Linear::new(96, 384),
        dropout: Dropout::new(0.2),
        fc2: Linear::new(384, 50),
    };
    let (criterion, mut optimizer) = (CrossEntropyLoss::new(), AdamW::new(net.parameters(), 1e-2));
    for _ in 0..4 {
        let ids = Tensor::randint(0, 500, [24, 64], &Device::cpu());
        let targets = Tensor::randint(0, 50, [24 * 64], &Device::cpu());
        optimizer.zero_grad();
        let x = net.norm.forward(&net.embedding.forward(&ids));
        let mixed = Tensor::scaled_dot_product_attention(&x, &x, &x, None, 0.0, true, None);
        let (mixed, _) = net.lstm.forward(&mixed, None);
        let hidden = net.dropout.forward(&net.fc1.forward(&(mixed + &x)).gelu());
        let loss = criterion.forward(&net.fc2.forward(&hidden).flatten(0, 1), &targets);
        (loss + x.square().mean(..) * 0.1).backward();
        orkest::nn::clip_grad_norm(&net.parameters(), 1.0);
        optimizer.step();
    }
    net.state_dict().to_safetensors().unwrap()
}

#[test]
fn any_number_of_threads_trains_the_same_bits() {
    if std::env::var_os(CHILD).is_some() {
        // FNV-1a over all bytes.
        let hash = train()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        println!("trained {hash:016x} with {} threads", orkest::num_threads());
        return;
    }
    let results: Vec<String> = ["1", "2", "3", "5"]
        .map(|threads| {
            let program = std::env::current_exe().unwrap();
            let out = Command::new(program)
                .args(["--exact", "any_number_of_threads_trains_the_same_bits", "--nocapture"])
                .env(CHILD, "1")
                .env("ORKEST_NUM_THREADS", threads)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let line = text.lines().find_map(|l| l.split_once("trained ")).map(|(_, rest)| rest.to_string());
            let line =
                line.unwrap_or_else(|| panic!("no result: {text}{}", String::from_utf8_lossy(&out.stderr)));
            assert!(line.ends_with(&format!("with {threads} threads")), "{line}");
            line
        })
        .into();
    let hashes: Vec<&str> = results.iter().map(|r| r.split(' ').next().unwrap()).collect();
    assert!(hashes.iter().all(|h| *h == hashes[0]), "{results:?}");
}
