//! Random programs: some twenty operations on tensors that share memory, with views, changes in place, broadcasting, reductions and
//! indices, run on each backend and by the interpreter. Values and gradients must agree, no tensor may change behind the back of its
//! owner, and the gradients must be those of finite differences. `ORKEST_PROGRAMS=20 cargo test -p orkest-tests --test programs` runs
//! twenty times as many programs.

use orkest_core::{DType, Device, Index, Tensor, slice};
use orkest_tests::compare::{Allowed, compare};
use orkest_tests::conformance::Draw;

const STEPS: usize = 24;
const LEAVES: usize = 3;
/// More elements than this are averaged away.
const LARGEST: usize = 120;

/// A program in execution. What is drawn depends on shapes only, so a seed is the same program on every device.
struct Program {
    draw: Draw,
    device: Device,
    pool: Vec<Tensor>,
    story: Vec<&'static str>,
}

/// What a program leaves behind.
struct Outcome {
    values: Vec<Tensor>,
    grads: Vec<Tensor>,
    loss: f64,
    story: Vec<&'static str>,
}

/// Runs program `seed`. The leaves are moved by `nudge` along a direction; returned with the outcome is each leaf's direction.
fn run(seed: u64, device: &Device, dtype: DType, nudge: f64) -> (Outcome, Vec<Vec<f64>>) {
    let mut draw = Draw(seed);
    let (mut leaves, mut directions) = (Vec::new(), Vec::new());
    for _ in 0..LEAVES {
        let shape = draw.small_shape(0, 3);
        let values: Vec<f64> = (0..shape.numel()).map(|_| draw.float(-1.7, 1.7)).collect();
        let direction: Vec<f64> = values.iter().map(|_| draw.float(-1.0, 1.0)).collect();
        let moved: Vec<f64> = values.iter().zip(&direction).map(|(x, d)| x + nudge * d).collect();
        let leaf = Tensor::from_slice(&moved, shape, &Device::reference()).to_dtype(dtype).to(device);
        leaves.push(leaf.requires_grad_(true));
        directions.push(direction);
    }
    let mut program = Program { draw, device: device.clone(), pool: leaves.clone(), story: Vec::new() };
    for _ in 0..STEPS {
        program.step();
    }
    let Program { pool, story, .. } = program;
    let term = |(i, t): (usize, &Tensor)| {
        let weights = Tensor::arange(0, t.numel(), 1, (dtype, device));
        (t * (weights * 0.7 + i as f64).cos().reshape(t.shape())).sum(..)
    };
    let terms: Vec<Tensor> = pool.iter().enumerate().map(term).collect();
    let loss = Tensor::stack(&terms, 0).sum(..);
    loss.backward();
    let grads = leaves.iter().map(|leaf| leaf.grad().unwrap_or_else(|| leaf.detach().zeros_like())).collect();
    let loss = loss.item().expect("the loss can be read");
    (Outcome { values: pool.iter().map(Tensor::detach).collect(), grads, loss, story }, directions)
}

impl Program {
    /// A tensor of the pool, more often a late one.
    fn pick(&mut self) -> Tensor {
        let at = self.place();
        self.pool[at].clone()
    }

    fn place(&mut self) -> usize {
        let n = self.pool.len();
        if self.draw.flag(2) { self.draw.below(n) } else { n - 1 - self.draw.below(n.min(4)) }
    }

    /// One that broadcasts with `shape`, and not beyond it if it has to `fit`.
    fn partner(&mut self, x: &Tensor, fit: bool) -> Tensor {
        for _ in 0..3 {
            let y = self.pick();
            let Some(shape) = x.shape().broadcast(y.shape()) else { continue };
            if if fit { shape == *x.shape() } else { shape.numel() <= LARGEST } {
                return y;
            }
        }
        self.pick().mean(..)
    }

    fn dim(&mut self, x: &Tensor) -> isize {
        let d = self.draw.below(x.rank()) as isize;
        if self.draw.flag(2) { d - x.rank() as isize } else { d }
    }

    fn positions(&mut self, shape: &[usize], below: usize) -> Tensor {
        let values: Vec<i64> = (0..shape.iter().product()).map(|_| self.draw.below(below) as i64).collect();
        Tensor::from_slice(&values, shape, &self.device)
    }

    fn step(&mut self) {
        let x = self.pick();
        let (name, y) = match self.draw.below(12) {
            0 | 1 => self.function(&x),
            2 | 3 => self.two(&x),
            4..=6 => self.view(&x),
            7 => self.reduction(&x),
            8 => self.indexed(&x),
            9 => self.joined(&x),
            _ => self.changed(x),
        };
        self.story.push(name);
        let y = if y.rank() > 5 { y.flatten(0, -1) } else { y };
        let y = if y.numel() > LARGEST { y.mean(0) } else { y };
        self.pool.push(y);
    }

    fn function(&mut self, x: &Tensor) -> (&'static str, Tensor) {
        match self.draw.below(18) {
            0 => ("tanh", x.tanh()),
            1 => ("sin", x.sin()),
            2 => ("sigmoid", x.sigmoid()),
            3 => ("relu", x.relu()),
            4 => ("abs", x.abs()),
            5 => ("square", x.square() * 0.3),
            6 => ("exp", x.clamp(-2.0, 1.5).exp() * 0.3),
            7 => ("gelu", x.gelu()),
            8 => ("silu", x.silu()),
            9 => ("softplus", x.softplus(1.0, 20.0)),
            10 => ("neg", -x),
            11 => ("clamp", x.clamp(-0.8, 0.9)),
            12 => ("sqrt", (x.square() + 0.5).sqrt()),
            13 => ("log", (x.abs() + 0.7).log()),
            14 => ("elu", x.elu(1.0)),
            15 => ("hardswish", x.hardswish()),
            16 => ("softshrink", x.softshrink(0.3)),
            _ => ("reciprocal", 1.0 / (x.square() + 1.0)),
        }
    }

    fn two(&mut self, x: &Tensor) -> (&'static str, Tensor) {
        let y = self.partner(x, false);
        match self.draw.below(9) {
            0 => ("add", x + &y),
            1 => ("sub", x - &y),
            2 => ("mul", x * &y * 0.7),
            3 => ("div", x / (y.square() + 1.0)),
            4 => ("maximum", x.maximum(&y)),
            5 => ("minimum", x.minimum(&y)),
            6 => ("where", x.gt(0.1371).where_(x, &y)),
            7 => ("lerp", x.lerp(&y, 0.3)),
            _ => ("pow", (x.abs() + 0.5).pow(y.tanh())),
        }
    }

    fn view(&mut self, x: &Tensor) -> (&'static str, Tensor) {
        if x.rank() == 0 {
            return ("unsqueeze", x.unsqueeze(0).expand([self.draw.int(1, 4) as isize]));
        }
        let d = self.dim(x);
        let n = x.size(d);
        match self.draw.below(13) {
            0 => {
                let other = self.dim(x);
                ("transpose", x.transpose(d, other))
            }
            1 => {
                let mut order: Vec<isize> = (0..x.rank() as isize).collect();
                for i in (1..order.len()).rev() {
                    order.swap(i, self.draw.below(i + 1));
                }
                ("permute", x.permute(&order[..]))
            }
            2 => ("flip", x.flip(&[d])),
            3 => {
                let start = self.draw.below(n);
                ("narrow", x.narrow(d, start, 1 + self.draw.below(n - start)))
            }
            4 => ("slice", x.slice_dim(d, 0, n.div_ceil(2), 2)),
            5 => ("select", x.select(d, -1)),
            6 => ("unsqueeze", x.unsqueeze(d)),
            7 => {
                let mut sizes = vec![1 + self.draw.below(3) as isize];
                sizes.extend(x.shape().iter().map(|n| *n as isize));
                ("expand", x.expand(&sizes[..]))
            }
            8 => ("flatten", x.flatten(0, -1)),
            9 => ("roll", x.roll(1, d)),
            10 => ("pad", x.pad(&[(1, 0)], 0.25)),
            11 if x.rank() >= 2 => ("diagonal", x.diagonal(0, 0, 1)),
            _ => ("squeeze", x.squeeze_all()),
        }
    }

    fn reduction(&mut self, x: &Tensor) -> (&'static str, Tensor) {
        if x.rank() == 0 {
            return ("sum", x.sum(..));
        }
        let d = self.dim(x);
        let keep = self.draw.flag(2);
        match self.draw.below(11) {
            0 => ("sum", (if keep { x.sum_keepdim(d) } else { x.sum(d) } * 0.4).tanh()),
            1 => ("mean", if keep { x.mean_keepdim(..) } else { x.mean(d) }),
            2 => ("max", if keep { x.max_keepdim(d) } else { x.max(..) }),
            3 => ("min", if keep { x.min_keepdim(..) } else { x.min(d) }),
            4 => ("logsumexp", if keep { x.logsumexp_keepdim(d) } else { x.logsumexp(d) }),
            5 => ("var", if keep { x.var_keepdim(d, 0.0) } else { x.var(.., 0.0) }),
            6 => ("norm", if keep { x.norm_keepdim(2.0, d) } else { x.norm(1.0, d).tanh() }),
            7 => ("softmax", x.softmax(d)),
            8 => ("log_softmax", x.log_softmax(d)),
            9 => ("cumsum", (x.cumsum(d) * 0.5).tanh()),
            _ => ("sort", x.sort(d, keep).0),
        }
    }

    fn indexed(&mut self, x: &Tensor) -> (&'static str, Tensor) {
        if x.rank() == 0 {
            let mask = x.gt(0.1733);
            return ("masked_fill", x.masked_fill(&mask, 0.5));
        }
        let d = self.dim(x);
        let n = x.size(d);
        let mut sizes = x.shape().to_vec();
        let at = d.rem_euclid(x.rank() as isize) as usize;
        sizes[at] = 1 + self.draw.below(4);
        match self.draw.below(6) {
            0 => {
                let index = self.positions(&sizes[at..=at], n);
                ("index_select", x.index_select(d, &index))
            }
            1 => {
                let index = self.positions(&sizes, n);
                ("gather", x.gather(d, &index))
            }
            2 => {
                let index = self.positions(&sizes, n);
                let source = x.gather(d, &index).tanh();
                let back = self.positions(&sizes, n);
                ("scatter_add", x.scatter_add(d, &back, &source).tanh())
            }
            3 => {
                let mask = x.lt(0.2117);
                ("masked_fill", x.masked_fill(&mask, -0.3))
            }
            4 => ("topk", x.topk(1 + self.draw.below(n), d, true).0),
            _ => {
                let index = self.positions(&[3], x.size(0));
                ("rows", x.rows(&index))
            }
        }
    }

    fn joined(&mut self, x: &Tensor) -> (&'static str, Tensor) {
        if x.rank() == 0 {
            return ("stack", Tensor::stack(&[x, &x.tanh()], 0));
        }
        let d = self.dim(x);
        match self.draw.below(4) {
            0 => ("cat", Tensor::cat(&[x, &x.flip(&[d])], d)),
            1 => ("stack", Tensor::stack(&[x, &(x * 0.5)], d)),
            2 if x.rank() >= 2 => ("matmul", (x.matmul(&x.transpose(-1, -2)) * 0.4).tanh()),
            3 if x.size(-1) > 1 => ("layer_norm", x.layer_norm(x.size(-1), None, None, 0.1)),
            _ => ("matmul", (x.flatten(0, -1).dot(&x.sin().flatten(0, -1)) * 0.2).tanh()),
        }
    }

    /// Changes a tensor in place: one of the pool itself, a clone or a view of it, or a fresh one that nobody else sees.
    fn changed(&mut self, x: Tensor) -> (&'static str, Tensor) {
        let (name, mut x) = match self.draw.below(5) {
            0 => ("clone", x),
            1 => self.view(&x),
            2 => ("fresh", x * 0.9),
            3 => {
                let (name, view) = self.view(&(x + 0.1));
                (name, view)
            }
            // Leaves stay where they are.
            _ if self.pool.len() > LEAVES => {
                drop(x);
                let last = self.pool.len() - LEAVES;
                let at = LEAVES + self.draw.below(last);
                ("taken", self.pool.swap_remove(at))
            }
            _ => ("clone", x),
        };
        self.story.push(name);
        let y = self.partner(&x, true);
        let name = match self.draw.below(10) {
            0 => {
                x.add_(&y);
                "add_"
            }
            1 => {
                x.sub_(&y);
                "sub_"
            }
            2 => {
                x.mul_(&y.tanh());
                "mul_"
            }
            3 => {
                x.div_(&(y.square() + 1.0));
                "div_"
            }
            4 => {
                x.add_(0.25);
                "add_ number"
            }
            5 => {
                x.copy_(&y);
                "copy_"
            }
            6 => {
                x.fill_(0.4);
                "fill_"
            }
            7 if x.rank() > 0 => {
                let start = self.draw.below(x.size(0)) as isize;
                x.slice_assign(start.., y.mean(..));
                "slice_assign"
            }
            8 if x.rank() > 0 => {
                let every_second: Vec<Index> = vec![Index::Ellipsis, slice(.., 2)];
                x.slice_assign(&every_second[..], 0.6);
                "slice_assign step"
            }
            9 if x.rank() > 0 => {
                let index = self.positions(&[x.size(0)], x.size(0));
                let source = x.sin();
                x.index_add_(0, &index, &source);
                x *= 0.5;
                "index_add_"
            }
            _ => {
                x *= 0.5;
                "mul_ number"
            }
        };
        (name, x)
    }
}

fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let times: u64 = std::env::var("ORKEST_PROGRAMS").map_or(1, |n| n.parse().expect("a number"));
    first..first + count * times
}

/// Both outcomes of program `seed`, number by number.
fn agree(seed: u64, left: &Outcome, right: &Outcome, values: f64, grads: f64) {
    for (of, a, b, tolerance) in
        [("value", &left.values, &right.values, values), ("gradient", &left.grads, &right.grads, grads)]
    {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            if let Err(difference) = compare(a, &b.to(&Device::reference()), Allowed::Each(tolerance)) {
                panic!("program {seed}, {of} {i}: {difference}\n{:?}", left.story);
            }
        }
    }
}

#[test]
fn the_cpu_computes_what_the_interpreter_does() {
    for seed in seeds(0, 150) {
        let (expected, _) = run(seed, &Device::reference(), DType::F64, 0.0);
        let (found, _) = run(seed, &Device::cpu(), DType::F64, 0.0);
        agree(seed, &found, &expected, 1e-9, 1e-7);
        let (expected, _) = run(seed, &Device::reference(), DType::F32, 0.0);
        let (found, _) = run(seed, &Device::cpu(), DType::F32, 0.0);
        agree(seed, &found, &expected, 1e-4, 1e-3);
    }
}

#[test]
fn the_gpu_computes_what_the_cpu_does() {
    let gpu = match Device::wgpu(0) {
        Ok(gpu) => gpu,
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => return println!("skipped: no adapter"),
    };
    for seed in seeds(0, 30) {
        let (expected, _) = run(seed, &Device::cpu(), DType::F32, 0.0);
        let (found, _) = run(seed, &gpu, DType::F32, 0.0);
        agree(seed, &found, &expected, 2e-4, 2e-3);
    }
}

/// The derivative along a direction, which also says whether what was changed in place has the right history.
#[test]
fn gradients_are_those_of_finite_differences() {
    const H: f64 = 1e-6;
    let mut steps = 0;
    for seed in seeds(1_000_000, 150) {
        let (middle, directions) = run(seed, &Device::cpu(), DType::F64, 0.0);
        let (above, below) = (
            run(seed, &Device::cpu(), DType::F64, H).0.loss,
            run(seed, &Device::cpu(), DType::F64, -H).0.loss,
        );
        if (above - below).abs() > 1e-2 {
            steps += 1; // an element went over the edge of a `where` or a `masked_fill`
            continue;
        }
        let slope = (above - below) / (2.0 * H);
        let expected: f64 = middle
            .grads
            .iter()
            .zip(&directions)
            .map(|(g, d)| g.to_vec::<f64>().unwrap().iter().zip(d).map(|(g, d)| g * d).sum::<f64>())
            .sum();
        let error = (slope - expected).abs() / expected.abs().max(1.0);
        assert!(error < 1e-5, "program {seed}: slope {slope}, gradient {expected}\n{:?}", middle.story);
    }
    assert!(steps <= seeds(0, 1).end, "{steps} programs are steps");
}

/// What a tensor holds is its own: whatever is changed later, it keeps the values it had.
#[test]
fn no_tensor_changes_behind_its_owner() {
    for seed in seeds(2_000_000, 150) {
        let device = Device::cpu();
        let leaf = |draw: &mut Draw| {
            let shape = draw.small_shape(0, 3);
            let values: Vec<f64> = (0..shape.numel()).map(|_| draw.float(-1.7, 1.7)).collect();
            Tensor::from_slice(&values, shape, &device)
        };
        let mut draw = Draw(seed);
        let pool = (0..LEAVES).map(|_| leaf(&mut draw)).collect();
        let mut program = Program { draw, device: device.clone(), pool, story: Vec::new() };
        let mut held: Vec<(Tensor, Vec<f64>)> = Vec::new();
        for _ in 0..2 * STEPS {
            program.step();
            for (tensor, values) in &held {
                let now = tensor.to_vec::<f64>().unwrap();
                let same = now.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "program {seed}: {values:?} became {now:?} by {:?}", program.story);
            }
            // Not every one, so that some tensors are alone in their memory.
            if program.draw.flag(2) {
                let newest = program.pool.last().expect("a step leaves something").clone();
                let values = newest.to_vec().unwrap();
                held.push((newest, values));
            }
        }
    }
}
