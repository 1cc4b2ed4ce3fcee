//! Memory stays flat over long runs, long graphs neither overflow the stack nor leak, and parameters are updated where they lie.

use orkest::prelude::*;
use orkest_cpu::memory_stats;
use orkest_tests as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The counters are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` on a thread whose stack is too small for any recursion along a graph.
fn on_a_small_stack(f: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, f).unwrap();
        thread.join().unwrap();
    });
}

/// Asserts that `step` holds the live bytes where they were after a warm-up.
fn assert_flat(steps: usize, mut step: impl FnMut()) {
    (0..10).for_each(|_| step());
    let before = memory_stats().live_bytes;
    for i in 0..steps {
        step();
        let now = memory_stats().live_bytes;
        assert!(now <= before + 4096, "step {i}: {now} bytes live, {before} before");
    }
}

#[test]
fn saved_outputs_do_not_own_themselves() {
    let _alone = alone();
    let x = Tensor::randn([4, 8], &Device::cpu()).requires_grad_(true);
    assert_flat(10_000, || {
        x.softmax(-1).exp().sum(..).backward();
        x.zero_grad();
    });
    // Graphs that nobody walks go away too.
    assert_flat(1_000, || drop(x.softmax(-1).exp().tanh()));
}

#[derive(Module)]
struct Net {
    embedding: Embedding,
    fc1: Linear,
    dropout: Dropout,
    fc2: Linear,
}

impl Net {
    fn new() -> Net {
        Net {
            embedding: Embedding::new(30, 8),
            fc1: Linear::new(8, 16),
            dropout: Dropout::new(0.1),
            fc2: Linear::new(16, 2),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.fc1.forward(&self.embedding.forward(x).mean(1)).relu();
        self.fc2.forward(&self.dropout.forward(&hidden))
    }
}

#[test]
fn training_holds_memory_flat() {
    let _alone = alone();
    let (net, criterion) = (Net::new(), CrossEntropyLoss::new());
    let mut optimizer = Adam::new(net.parameters(), 1e-3);
    assert_flat(10_000, || {
        let inputs = Tensor::randint(0, 30, [4, 6], &Device::cpu());
        let labels = Tensor::randint(0, 2, [4], &Device::cpu());
        optimizer.zero_grad();
        criterion.forward(&net.forward(&inputs), &labels).backward();
        optimizer.step();
    });
}

#[test]
fn gradients_of_gradients_hold_memory_flat() {
    let _alone = alone();
    let x = Tensor::randn([4, 8], &Device::cpu()).requires_grad_(true);
    assert_flat(1_000, || {
        let y = x.softmax(-1).square().sum(..);
        let options = BackwardOptions { create_graph: true, ..Default::default() };
        let first = grad(&[&y], &[&x], options)[0].clone().unwrap();
        let second = grad(&[&first.square().sum(..)], &[&x], BackwardOptions::default());
        assert!(second[0].is_some());
    });
}

#[test]
fn a_chain_of_a_million_operations_goes_forwards_backwards_and_away() {
    let _alone = alone();
    let before = memory_stats().live_bytes;
    on_a_small_stack(|| {
        let x = Tensor::new([0.5f32, -0.5], &Device::cpu()).requires_grad_(true);
        let mut y = x.clone();
        for _ in 0..1_000_000 {
            y *= 1.0; // saves nothing, but the edge
        }
        y.sum(..).backward();
        assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap(), [1.0, 1.0]);
    });
    on_a_small_stack(|| {
        // Every node saves its output or input; dropped without a backward pass.
        let x = Tensor::new([0.5f32], &Device::cpu()).requires_grad_(true);
        let mut y = x.clone();
        for i in 0..1_000_000 {
            y = if i % 2 == 0 { y.tanh() } else { y.sin() };
        }
        drop(y);
    });
    on_a_small_stack(|| {
        // Only the saved tensors lead down the chain: each node's other input is the result before it.
        let x = Tensor::new([1.0f32], &Device::cpu()).requires_grad_(true);
        let mut y = x.clone();
        for _ in 0..200_000 {
            y = &x * &y;
        }
        y.backward();
        assert_eq!(x.grad().unwrap().item().unwrap(), 200_001.0);
    });
    assert!(memory_stats().live_bytes <= before + 4096);
}

#[test]
fn parameters_are_updated_where_they_lie_while_the_loss_is_alive() {
    let _alone = alone();
    let (net, criterion) = (Net::new(), CrossEntropyLoss::new());
    let mut optimizer = Adam::new(net.parameters(), 1e-2);
    let (inputs, labels) = (tensor![[1, 2, 3], [4, 5, 6]], tensor![0, 1]);
    // Who made a parameter's memory: an update in place leaves that as it is, a copy would not.
    let origins = || net.parameters().iter().map(|p| p.value().origin().0).collect::<Vec<_>>();
    let (before, mut last) = (origins(), f64::INFINITY);
    for _ in 0..20 {
        optimizer.zero_grad();
        let loss = criterion.forward(&net.forward(&inputs), &labels);
        loss.backward();
        optimizer.step();
        assert_eq!(origins(), before);
        last = loss.item().unwrap(); // the loss, and what is left of its graph, lives until here
    }
    assert!(last < 0.5, "{last}");

    // A graph that is still to be walked keeps the values it saw.
    let weight = &net.fc2.parameters()[0];
    let seen = weight.value();
    let bytes = seen.to_bytes().unwrap();
    criterion.forward(&net.forward(&inputs), &labels).backward();
    optimizer.step();
    assert_eq!(seen.to_bytes().unwrap(), bytes);
    assert_ne!(weight.value().to_bytes().unwrap(), bytes);
}

#[test]
fn a_checkpointed_stack_needs_less_memory() {
    let _alone = alone();
    let device = Device::cpu();
    let layers: Vec<Linear> = (0..16).map(|_| Linear::new(64, 64)).collect();
    let x = Tensor::randn([512, 64], &device);
    // What is alive between the passes: that is what the operations saved.
    let saved = |checkpointed: bool| {
        let before = memory_stats().live_bytes;
        let mut y = x.clone().requires_grad_(true);
        for pair in layers.chunks(4) {
            let pair = pair.to_vec();
            let run = move |x: &[Tensor]| pair.iter().fold(x[0].clone(), |y, layer| layer.forward(&y).gelu());
            y = if checkpointed { checkpoint(run, &[&y]) } else { run(&[y]) };
        }
        let loss = y.square().mean(..);
        let during = memory_stats().live_bytes - before;
        loss.backward();
        layers.iter().for_each(Module::zero_grad);
        drop((loss, y));
        let after = memory_stats().live_bytes - before;
        assert!(after <= 4096, "{after} bytes stay");
        during
    };
    let (plain, checkpointed) = (saved(false), saved(true));
    assert!(checkpointed * 3 < plain, "{checkpointed} bytes with checkpoints, {plain} without");
}
