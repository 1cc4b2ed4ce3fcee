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

/// The most that `f` needs beyond what is there and what it returns, in buffers of a mebibyte.
fn buffers<R>(f: impl Fn() -> R) -> (R, f64) {
    drop(f());
    let before = memory_stats().live_bytes;
    Device::cpu().reset_peak_memory();
    let result = f();
    (result, (memory_stats().peak_bytes - before) as f64 / (1 << 20) as f64)
}

#[test]
fn results_take_the_place_of_operands_that_nobody_needs() {
    let _alone = alone();
    manual_seed(1);
    let device = Device::cpu();
    let [a, b, c] = [(); 3].map(|()| Tensor::randn([512, 512], &device));
    let row = Tensor::randn([512], &device);

    // What `gelu` borrows lives until the end of the statement.
    let (y, needed) = buffers(|| (&a * &b + &c).gelu() * 0.5 - &a);
    assert_eq!(needed, 2.0);
    let product = &a * &b;
    let (sum, half) = (&product + &c, 0.5f32);
    let (gelu, a_, y) =
        (sum.gelu().to_vec::<f32>().unwrap(), a.to_vec::<f32>().unwrap(), y.to_vec::<f32>().unwrap());
    assert!(y.iter().zip(gelu).zip(a_).all(|((y, gelu), a)| *y == gelu * half - a));

    // On either side, over what is broadcast, for numbers on the left.
    assert_eq!(buffers(|| &a - &b * &c).1, 1.0);
    assert_eq!(buffers(|| 1.0 - (&a + &row) * 2.0).1, 1.0);
    // Not over what somebody sees: another handle, a view, a saved tensor.
    assert_eq!(buffers(|| (&a + &b, a.clone() + &b)).1, 2.0);
    let (values, sum) = (a.to_vec::<f32>().unwrap(), a.clone() + &a.view([512, 512]));
    assert_eq!(a.to_vec::<f32>().unwrap(), values);
    assert!(sum.to_vec::<f32>().unwrap().iter().zip(&values).all(|(s, v)| *s == v + v));
    let smaller = Tensor::randn([512, 1], &device);
    assert_eq!((smaller.clone() + &a).shape(), &[512, 512]);
}

#[test]
fn gradients_see_what_was_there_before_a_result_took_its_place() {
    let _alone = alone();
    let device = Device::cpu();
    let run = |leaf: &Tensor, owned: bool| {
        let other = leaf * 0.5 + 1.0;
        // Products and exponentials save operands or results; sums save nothing.
        let y = if owned {
            ((leaf + 1.0) * &other).exp()
                - (leaf * 3.0).into_unary(orkest::op::Unary::Tanh) / (&other * 2.0 + 5.0)
        } else {
            let (left, right) = (leaf + 1.0, leaf * 3.0);
            let (product, tanh) = (&left * &other, right.tanh());
            let (exp, divisor) = (product.exp(), &(&other * 2.0) + 5.0);
            let quotient = &tanh / &divisor;
            &exp - &quotient
        };
        y.sum(..).backward();
        (y.to_vec::<f64>().unwrap(), leaf.grad().unwrap().to_vec::<f64>().unwrap())
    };
    let values: Vec<f64> = (0..5000).map(|i| (i as f64 * 0.37).sin()).collect();
    let leaf = || Tensor::new(&values[..], &device).requires_grad_(true);
    assert_eq!(run(&leaf(), true), run(&leaf(), false));
}

#[test]
fn bias_activation_residual_and_dropout_need_no_memory_of_their_own() {
    let _alone = alone();
    manual_seed(1);
    let x = Tensor::randn([1024, 256], &Device::cpu());
    let layer = || Linear::new(256, 256);
    // How many buffers each needs with its gradient, and in a residual connection, which adds to its result.
    let networks = [
        (sequential![layer()], 1.0, 1.0),
        (sequential![layer(), Dropout::new(0.5)], 1.0, 1.0),
        // The gradient of a relu needs what came out, that of a gelu what went in: what is behind has memory of its own.
        (sequential![layer(), ReLU], 1.0, 2.0),
        (sequential![layer(), Tanh], 1.0, 2.0),
        (sequential![layer(), ReLU, Dropout::new(0.5)], 2.0, 2.0),
        (sequential![layer(), GELU::new()], 2.0, 2.0),
    ];
    for (network, alone, residual) in &networks {
        assert_eq!(buffers(|| network.forward(&x)).1, *alone, "{network}");
        assert_eq!(buffers(|| &x + network.forward(&x)).1, *residual, "x + {network}");
        assert_eq!(buffers(|| no_grad(|| &x + network.forward(&x))).1, 1.0, "x + {network}, no gradient");
    }
    let fc = layer();
    let (weight, bias) = (fc.weight.tensor(), fc.bias.as_ref().unwrap().tensor());
    let relu = orkest::op::Unary::Relu;
    let (y, needed) = buffers(|| x.linear_act(&weight, Some(&bias), relu));
    assert_eq!(needed, 1.0);
    let plain = fc.forward(&x).relu();
    assert_eq!(y.to_vec::<f32>().unwrap(), plain.to_vec::<f32>().unwrap());
    let gradients = |y: &Tensor| {
        fc.zero_grad();
        y.square().sum(..).backward();
        fc.parameters().iter().map(|p| p.grad().unwrap().to_vec::<f32>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(gradients(&y), gradients(&plain));
}
