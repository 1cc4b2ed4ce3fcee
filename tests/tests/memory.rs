//! Memory that is not held: by graphs, by training, by long chains of operations.
//!
//! Every test reads the counters of the whole process, so they run one after another.

use orkest::prelude::*;
use orkest::{Backend, Buffer, Op, Output, View};
use orkest_cpu::memory_stats;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of this process in memory, where the system tells.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|s| s.split_whitespace().nth(1)?.parse::<usize>().ok());
    pages.map_or(0, |pages| pages * 4096)
}

/// Runs `step` often, and asserts that neither tensors nor the process have grown after the first tenth.
fn assert_flat(steps: usize, mut step: impl FnMut()) {
    let warm = steps / 10;
    (0..warm).for_each(|_| step());
    let (live, process) = (memory_stats().live_bytes, resident());
    (warm..steps).for_each(|_| step());
    let (live_after, process_after) = (memory_stats().live_bytes, resident());
    assert_eq!(live_after, live, "bytes in tensors after {warm} and after {steps} steps");
    let grown = process_after.saturating_sub(process);
    // A node that leaks per step would be far above this.
    assert!(grown < 2 << 20, "the process has grown by {grown} bytes in {} steps", steps - warm);
}

#[test]
fn a_softmax_that_saves_its_own_output_is_freed() {
    let _alone = alone();
    let x = Tensor::randn([16, 32], &Device::cpu()).requires_grad_(true);
    assert_flat(10_000, || {
        x.zero_grad();
        x.softmax(-1).exp().sum(..).backward();
    });
    // Without a backward pass the graph goes when its result goes.
    assert_flat(10_000, || drop(x.softmax(-1).exp()));
    // A recorded backward pass refers to the forward pass; both must go.
    assert_flat(2_000, || {
        let y = x.softmax(-1).exp().sum(..);
        let options = orkest::BackwardOptions { create_graph: true, ..Default::default() };
        drop(grad(&[&y], &[&x], options));
    });
}

#[derive(Module)]
struct Classifier {
    embedding: Embedding,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl Classifier {
    fn new() -> Classifier {
        Classifier {
            embedding: Embedding::new(50, 8).padding_idx(0),
            norm: LayerNorm::new(8),
            fc1: Linear::new(8, 16),
            fc2: Linear::new(16, 2),
            dropout: Dropout::new(0.3),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let embedded = self.norm.forward(&self.embedding.forward(x).mean(1));
        let hidden = self.dropout.forward(&self.fc1.forward(&embedded).relu());
        self.fc2.forward(&hidden)
    }
}

#[test]
fn ten_thousand_training_steps_hold_memory_flat() {
    let _alone = alone();
    manual_seed(1);
    let model = Classifier::new();
    let criterion = CrossEntropyLoss::new();
    let mut optimizer = Adam::new(model.parameters(), 1e-3);
    assert_flat(10_000, || {
        let inputs = Tensor::randint(0, 50, [4, 6], &Device::cpu());
        let labels = Tensor::randint(0, 2, [4], &Device::cpu());
        optimizer.zero_grad();
        let loss = criterion.forward(&model.forward(&inputs), &labels);
        loss.backward();
        clip_grad_norm(&model.parameters(), 1.0);
        optimizer.step();
    });
}

/// On a stack that a recursive walk over the graph would overflow after a few hundred nodes.
fn on_a_small_stack(f: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(f).expect("a thread can be started");
    thread.join().expect("the thread ends well");
}

const LONG: usize = 1_000_000;

#[test]
fn a_chain_of_a_million_operations_goes_forward_backward_and_away() {
    let _alone = alone();
    let before = memory_stats().live_bytes;
    on_a_small_stack(|| {
        let x = Tensor::new([0.5f32, -0.25], &Device::cpu()).requires_grad_(true);
        let mut y = x.clone();
        for i in 0..LONG {
            // Every node saves a tensor: its input, or its own output.
            y = if i % 2 == 0 { y.sin() } else { y.tanh() };
        }
        y.sum(..).backward();
        let gradient = x.grad().expect("x has a gradient").to_vec::<f32>().unwrap();
        assert!(gradient.iter().all(|g| (0.0..1.0).contains(g)), "{gradient:?}");
    });
    assert_eq!(memory_stats().live_bytes, before);
}

#[test]
fn a_chain_of_a_million_operations_is_dropped_without_a_backward_pass() {
    let _alone = alone();
    let before = memory_stats().live_bytes;
    on_a_small_stack(|| {
        let x = Tensor::new([0.5f32, -0.25], &Device::cpu()).requires_grad_(true);
        let mut y = x.clone();
        for _ in 0..LONG {
            y = &y * &y + &x; // a diamond in every step, and two saved tensors
            y = y.sigmoid();
        }
        drop(y);
    });
    assert_eq!(memory_stats().live_bytes, before);
}

/// The CPU backend, with a list of how many elements every copy had.
struct Counting(orkest_cpu::Cpu);

static COPIED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

orkest_core::register_backend!("counting", open_counting, |_| false);

fn open_counting(_: usize) -> orkest::Result<Box<dyn Backend>> {
    Ok(Box::new(Counting(orkest_cpu::Cpu)))
}

impl Backend for Counting {
    fn name(&self) -> &str {
        "counting"
    }
    fn upload(&self, bytes: &[u8], dtype: DType) -> orkest::Result<Buffer> {
        self.0.upload(bytes, dtype)
    }
    fn allocate(&self, len: usize, dtype: DType) -> orkest::Result<Buffer> {
        self.0.allocate(len, dtype)
    }
    fn download(&self, view: View<'_>) -> orkest::Result<Vec<u8>> {
        self.0.download(view)
    }
    fn supports(&self, op: &Op, inputs: &[View<'_>]) -> bool {
        self.0.supports(op, inputs)
    }
    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> orkest::Result<()> {
        if let Op::Copy = op {
            COPIED.lock().unwrap().push(outputs[0].layout.numel());
        }
        self.0.execute(op, inputs, outputs)
    }
}

#[test]
fn the_articles_loop_copies_no_parameter_while_the_loss_is_alive() {
    let _alone = alone();
    manual_seed(1);
    let device = Device::open("counting", 0).unwrap();
    let (rows, width) = (97, 32);
    let embedding = Embedding::new(rows, width).to(&device).unwrap();
    let fc1 = Linear::new(width, 65).to(&device).unwrap();
    let fc2 = Linear::new(65, 2).to(&device).unwrap();
    let params = [embedding.parameters(), fc1.parameters(), fc2.parameters()].concat();
    let mut optimizer = Adam::new(params, 1e-3);
    let inputs = Tensor::randint(0, rows as i64, [8, 10], &device);
    let labels = Tensor::randint(0, 2, [8], &device);
    let criterion = CrossEntropyLoss::new();
    let sizes = [rows * width, width * 65, 65 * 2];
    let mut copies_of_parameters = |held: Option<Tensor>| {
        COPIED.lock().unwrap().clear();
        optimizer.zero_grad();
        let hidden = fc1.forward(&embedding.forward(&inputs).mean(1)).relu();
        let loss = criterion.forward(&fc2.forward(&hidden), &labels);
        loss.backward();
        optimizer.step();
        drop((loss, hidden, held));
        COPIED.lock().unwrap().iter().filter(|n| sizes.contains(n)).count()
    };
    for step in 0..3 {
        assert_eq!(copies_of_parameters(None), 0, "step {step}");
    }
    // What somebody still looks at is not changed under their eyes: this is the copy that must not happen above.
    assert_eq!(copies_of_parameters(Some(embedding.weight.value())), 1);
}
