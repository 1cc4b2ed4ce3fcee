//! Matrix products: which kernel runs where, and how operands with any strides get there.

use crate::device::Capabilities;
use crate::element::Elem;
use crate::gpu::{Gpu, Temp, target};
use crate::memory::Memory;
use crate::stream::{Call, Grid, Params};
use crate::unary;
use crate::variant::{Value, Variant, shuffles, variant};
use orkest_core::op::Unary;
use orkest_core::{DType, Layout, Output, Result, Shape, View};
use smallvec::smallvec;

/// A kernel with its sizes. All of them compute any product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kernel {
    /// `gemv.wgsl`: one column. `lanes` of `workgroup` invocations share a sum.
    Gemv { lanes: u32, workgroup: u32 },
    /// `registers.wgsl`: `rows` x 32 elements of the result per workgroup of 8, no workgroup memory.
    Registers { rows: u32 },
    /// `tile.wgsl`: `4 side` x `4 side` elements per workgroup of `side * side`, twice that each way if `big`.
    Tile { side: u32, big: bool },
    /// `coop.wgsl`: cooperative matrices of `side` x `side`, by eight subgroups that have at most `lanes` invocations: `8 side` x
    /// `8 side` elements per workgroup if `big`, else half of that each way.
    Matrices { side: u32, big: bool, lanes: u32 },
}

/// A kernel, and into how many parts the sum over k is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Choice {
    kernel: Kernel,
    parts: usize,
}

/// Workgroups that keep a large GPU busy.
const BUSY: usize = 256;
/// Fewest elements of k that are worth a workgroup of their own.
const PART: usize = 256;

/// The table: the kernel for `batches` products of `[m, k]` and `[k, n]`, where `n` is not the one row of a row-times-matrix
/// (that has been transposed into a column).
///
/// | adapter | result | kernel |
/// |---|---|---|
/// | software | one column | a sum per invocation |
/// | software | rows that 4 or 8 hold with fewer to spare | registers of 4 or 8 rows |
/// | software | other rows | registers of 16 rows |
/// | GPU | one column, neighbours along k | 64 invocations per sum |
/// | GPU | one column, neighbours along rows | 16 invocations per sum |
/// | GPU with matrices for the dtype | their big tiles keep it half busy and are not half empty | those |
/// | GPU with matrices for the dtype | their small tiles are not half empty | those |
/// | GPU | 128 x 128 tiles keep it busy and are not half empty | those |
/// | GPU | 64 x 64 tiles keep it half busy and are not half empty | those |
/// | GPU | anything else | 32 x 32 tiles |
///
/// On a GPU, where the result alone does not keep it busy, the sum over k is cut into parts. In software it is where loops would be too
/// long.
fn choose_kernel(
    capabilities: &Capabilities,
    elem: Elem,
    batches: usize,
    [m, n, k]: [usize; 3],
    along_k: bool,
) -> Choice {
    let tiles = |side: usize| batches * m.div_ceil(side) * n.div_ceil(side);
    let narrow = m.min(n);
    let matrices = |big| {
        let busy = if big { BUSY / 2 } else { 0 };
        let found = Kernel::matrices(capabilities, elem, big);
        found.filter(|&(_, side)| narrow > side / 2 && tiles(side) >= busy).map(|(kernel, _)| kernel)
    };
    let matrices = if capabilities.software { None } else { matrices(true).or(matrices(false)) };
    let kernel = match (capabilities.software, n, matrices) {
        (true, 1, _) => Kernel::Gemv { lanes: 1, workgroup: 8 },
        (true, _, _) => Kernel::Registers {
            rows: match m {
                ..=4 => 4,
                ..=64 if m.div_ceil(8) % 2 == 1 => 8,
                _ => 16,
            },
        },
        (false, 1, _) if along_k => Kernel::Gemv { lanes: 64, workgroup: 256 },
        (false, 1, _) => Kernel::Gemv { lanes: 16, workgroup: 256 },
        (false, _, Some(kernel)) => kernel,
        (false, _, None) if narrow > 64 && tiles(128) >= BUSY => Kernel::Tile { side: 16, big: true },
        (false, _, None) if narrow > 32 && tiles(64) >= BUSY / 2 => Kernel::Tile { side: 16, big: false },
        (false, _, None) => Kernel::Tile { side: 8, big: false },
    };
    let groups = kernel.groups(batches, m, n);
    let parts = if capabilities.software { 1 } else { BUSY.div_ceil(groups).min(k / PART).max(1) };
    // Half as busy is not worth a second pass.
    let parts = if parts < 3 { 1 } else { parts };
    Choice { kernel, parts: parts.max(k.div_ceil(capabilities.rounds)) }
}

impl Kernel {
    /// The kernel for cooperative matrices of `elem`, with the side of its tiles, where the adapter has such matrices.
    fn matrices(capabilities: &Capabilities, elem: Elem, big: bool) -> Option<(Kernel, usize)> {
        let side = match elem {
            Elem::F16 => capabilities.matrix_f16,
            Elem::F32 => capabilities.matrix_f32,
            _ => 0,
        };
        let lanes = capabilities.subgroup_size[1];
        let kernel = Kernel::Matrices { side, big, lanes };
        // An invocation copies at most four times four elements per step of k.
        let fits = side > 0
            && side * side <= 8 * lanes
            && 8 * lanes <= capabilities.workgroup_size
            && kernel.workgroup_memory(elem) <= capabilities.workgroup_memory;
        fits.then_some((kernel, (if big { 8 } else { 4 } * side) as usize))
    }

    /// Invocations that add up by exchanging values.
    fn subgroup(self, capabilities: &Capabilities) -> u32 {
        match self {
            Kernel::Gemv { workgroup, .. } => capabilities.subgroup(workgroup as usize),
            _ => 1,
        }
    }

    /// Bytes of workgroup memory, at most.
    fn workgroup_memory(self, elem: Elem) -> u32 {
        match self {
            Kernel::Gemv { .. } | Kernel::Registers { .. } => 0,
            Kernel::Tile { .. } => 9 << 10,
            Kernel::Matrices { side, big, .. } => {
                let tile = if big { 8 } else { 4 } * side;
                // Lines along k need the most.
                2 * tile * (2 * side + 8) * elem.size() as u32 + 8 * side * side * 4
            }
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Kernel::Gemv { .. } => "matmul/gemv.wgsl",
            Kernel::Registers { .. } => "matmul/registers.wgsl",
            Kernel::Tile { .. } => "matmul/tile.wgsl",
            Kernel::Matrices { .. } => "matmul/coop.wgsl",
        }
    }

    /// Workgroups for all of the result.
    fn groups(self, batches: usize, m: usize, n: usize) -> usize {
        batches
            * match self {
                Kernel::Gemv { lanes, workgroup } => m.div_ceil((workgroup / lanes) as usize),
                Kernel::Registers { rows } => m.div_ceil(rows as usize) * n.div_ceil(32),
                Kernel::Tile { side, big } | Kernel::Matrices { side, big, .. } => {
                    let side = side as usize * if big { 8 } else { 4 };
                    m.div_ceil(side) * n.div_ceil(side)
                }
            }
    }

    /// What differs from the file's default.
    fn variant(
        self,
        a: Access,
        b: Access,
        bias: Elem,
        y: Elem,
        activation: Option<Unary>,
        k: usize,
    ) -> Variant {
        let (a_vec, b_vec) = match self {
            Kernel::Gemv { .. } => {
                // Both or neither, and along k.
                let both = a.vec && b.vec && a.along_k && b.along_k;
                (both, both)
            }
            // Lanes have neighbouring columns.
            Kernel::Registers { .. } => (a.vec, b.vec && b.along_k),
            _ => (a.vec, b.vec),
        };
        let elem = |access: Access, vec: bool| {
            if vec { Value::Wide(access.elem) } else { Value::Elem(access.elem) }
        };
        let mut v = variant![a_elem: elem(a, a_vec), b_elem: elem(b, b_vec), elem: bias, y_elem: y, A_ALONG_K: a.along_k];
        v.extend(finish(activation));
        match self {
            Kernel::Gemv { lanes, workgroup } => {
                v.extend(variant![VEC: a_vec, LANES_K: lanes, WORKGROUP: workgroup]);
            }
            Kernel::Registers { rows } => {
                v.extend(variant![A_VEC: a_vec, B_VEC: b_vec, ROWS: rows, TAIL: !k.is_multiple_of(4)]);
            }
            Kernel::Tile { side, big } => {
                v.extend(variant![A_VEC: a_vec, B_VEC: b_vec, B_ALONG_K: b.along_k, SIDE: side, BIG: big]);
            }
            Kernel::Matrices { side, big, lanes } => {
                v.extend(variant![
                    A_VEC: a_vec,
                    B_VEC: b_vec,
                    B_ALONG_K: b.along_k,
                    SIDE: side,
                    BIG: big,
                    WORKGROUP: 8 * lanes,
                    value: a.elem,
                    left: Value::Matrix(side, a.elem, 'A'),
                    right: Value::Matrix(side, a.elem, 'B'),
                    sums: Value::Matrix(side, Elem::F32, 'C'),
                ]);
            }
        }
        v
    }
}

/// How a kernel reads an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Access {
    elem: Elem,
    /// Neighbours in memory are neighbours along k (else along rows or columns).
    along_k: bool,
    /// Four of them can be loaded at once.
    vec: bool,
}

/// The activation of a variant, if any.
fn finish(activation: Option<Unary>) -> Variant {
    match activation {
        Some(f) => variant![activation: Value::Function(unary::code(f))],
        None => Variant::new(),
    }
}

/// One factor of a [`Product`]; lines are the rows of the left one and the columns of the right one.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) elem: Elem,
    pub(crate) offset: usize,
    /// Of the outer and inner batch dimension, of lines and along k.
    pub(crate) strides: [isize; 4],
}

impl Factor<'_> {
    /// `lines` and `k` are the sizes that the last two strides belong to.
    fn access(&self, batch: [usize; 2], lines: usize, k: usize) -> Access {
        let sizes = [batch[0], batch[1], lines, k];
        // The stride of a dimension of size 1 says nothing.
        let stride = |d: usize| if sizes[d] == 1 { 0 } else { self.strides[d] };
        let vec = |d: usize| {
            self.strides[d] == 1
                && sizes[d].is_multiple_of(4)
                && self.offset.is_multiple_of(4)
                && (0..4).all(|other| other == d || stride(other) % 4 == 0)
        };
        let along_k = match (vec(3), vec(2)) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => lines == 1 || (k > 1 && stride(3).abs() <= stride(2).abs()),
        };
        Access { elem: self.elem, along_k, vec: vec(if along_k { 3 } else { 2 }) }
    }
}

/// Added to a product before its activation.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) offset: usize,
    /// Of the inner batch dimension, of rows and of columns.
    pub(crate) strides: [isize; 3],
}

/// `y = activation(a b + bias)` for a batch of matrices. `y` is row-major `[batch, m, n]` from an offset.
pub(crate) struct Product<'a> {
    pub(crate) op: &'static str,
    pub(crate) batch: [usize; 2],
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Factor<'a>,
    pub(crate) b: Factor<'a>,
    /// Of the dtype of `y`.
    pub(crate) bias: Option<Bias<'a>>,
    pub(crate) activation: Option<Unary>,
    pub(crate) y: &'a Memory,
    pub(crate) y_elem: Elem,
    pub(crate) y_offset: usize,
}

/// The bits of a vector of strides.
fn vector(strides: [isize; 4]) -> [u32; 4] {
    strides.map(|s| s as i32 as u32)
}

impl<'a> Product<'a> {
    /// Runs it on the kernel that the table says.
    pub(crate) fn run(&self, gpu: &Gpu) -> Result<()> {
        let transposed = self.transposed(&gpu.capabilities);
        let [m, n] = if transposed { [self.n, self.m] } else { [self.m, self.n] };
        let left = if transposed { &self.b } else { &self.a };
        let along_k = left.access(self.batch, m, self.k).along_k;
        let batches = self.batch[0] * self.batch[1];
        let choice = choose_kernel(&gpu.capabilities, left.elem, batches, [m, n, self.k], along_k);
        self.launch(gpu, choice, transposed)
    }

    /// Whether the kernel is to compute `yᵀ = bᵀ aᵀ`: it takes one column, not one row, and without tiles of workgroup memory
    /// wide results suit it better than narrow ones.
    fn transposed(&self, capabilities: &Capabilities) -> bool {
        if self.n == 1 {
            return false;
        }
        self.m == 1 || (capabilities.software && self.n < 32 && self.m > self.n)
    }

    fn launch(&self, gpu: &Gpu, choice: Choice, transposed: bool) -> Result<()> {
        let Choice { kernel, parts } = choice;
        // Parts begin where tiles of k do, and so where four elements lie together.
        let k_part = self.k.div_ceil(parts).next_multiple_of(16);
        let parts = self.k.div_ceil(k_part);
        let batches = self.batch[0] * self.batch[1];
        let count = batches * self.m * self.n;
        let split = parts > 1;
        let sums = split.then(|| gpu.temp(Shape::new(&[parts, count]), DType::F32)).transpose()?;
        let (y, y_elem, y_offset) = match &sums {
            Some(sums) => (sums.memory(), Elem::F32, 0),
            None => (self.y, self.y_elem, self.y_offset),
        };
        let matrix = self.m * self.n;
        let mut y_strides = [(self.batch[1] * matrix) as isize, matrix as isize, self.n as isize, 1];
        let bias = self.bias.filter(|_| !split);
        let mut bias_strides = bias.map_or([0; 4], |Bias { strides: [i, r, c], .. }| [i, r, c, 1]);
        let (mut a, mut b, mut m, mut n) = (&self.a, &self.b, self.m, self.n);
        if transposed {
            (a, b, m, n) = (b, a, n, m);
            y_strides.swap(2, 3);
            bias_strides.swap(1, 2);
        }
        let activation = self.activation.filter(|_| !split);
        let [p, q] = activation.map_or([0.0; 2], unary::parameters);
        let (access_a, access_b) = (a.access(self.batch, m, self.k), b.access(self.batch, n, self.k));
        gpu.dispatch(Call {
            op: self.op,
            file: kernel.file(),
            entry: "main",
            variant: shuffles(
                kernel.variant(access_a, access_b, self.y_elem, y_elem, activation, self.k),
                kernel.subgroup(&gpu.capabilities),
            ),
            constants: smallvec![],
            reads: &[a.memory, b.memory, bias.map_or(a.memory, |b| b.memory)],
            writes: &[y],
            params: Params::new()
                .vec4(vector(a.strides))
                .vec4(vector(b.strides))
                .vec4(vector(y_strides))
                .vec4(vector(bias_strides))
                .usize(m)
                .usize(n)
                .usize(self.k)
                .usize(self.batch[1])
                .usize(a.offset)
                .usize(b.offset)
                .usize(y_offset)
                .usize(bias.map_or(0, |b| b.offset))
                .usize(batches)
                .usize(k_part)
                .usize(parts)
                .usize(if split { count } else { 0 })
                .f32(p)
                .f32(q),
            grid: Grid::linear(kernel.groups(batches * parts, m, n)),
        })?;
        match &sums {
            Some(sums) => self.add_parts(gpu, sums, parts, count),
            None => Ok(()),
        }
    }

    /// The second pass where the sum over k was cut into parts.
    fn add_parts(&self, gpu: &Gpu, sums: &Temp, parts: usize, count: usize) -> Result<()> {
        let [p, q] = self.activation.map_or([0.0; 2], unary::parameters);
        let bias_strides = self.bias.map_or([0; 4], |Bias { strides: [i, r, c], .. }| [i, r, c, 1]);
        gpu.dispatch(Call {
            op: self.op,
            file: "matmul/split.wgsl",
            entry: "main",
            variant: split_variant(self.y_elem, self.activation),
            constants: smallvec![("WORKGROUP", 256)],
            reads: &[sums.memory(), self.bias.map_or(sums.memory(), |b| b.memory)],
            writes: &[self.y],
            params: Params::new()
                .vec4(vector(bias_strides))
                .usize(count)
                .usize(parts)
                .usize(self.m)
                .usize(self.n)
                .usize(self.batch[1])
                .usize(self.y_offset)
                .usize(self.bias.map_or(0, |b| b.offset))
                .f32(p)
                .f32(q),
            grid: Grid::linear(count.div_ceil(256)),
        })
    }
}

fn split_variant(elem: Elem, activation: Option<Unary>) -> Variant {
    let mut v = variant![elem: elem, y_elem: elem];
    v.extend(finish(activation));
    v
}

/// [`orkest_core::Op::Matmul`]
pub(crate) fn matmul(gpu: &Gpu, a: &View<'_>, b: &View<'_>, y: &Output) -> Result<()> {
    let Some((batch, a_batch, b_batch)) = batches(a.layout, b.layout) else {
        // Batch dimensions that do not merge into two.
        let (a, b) = (gpu.contiguous(a)?, gpu.contiguous(b)?);
        return matmul(gpu, &a.view(), &b.view(), y);
    };
    let rank = a.layout.rank();
    let (m, k, n) = (a.layout.shape()[rank - 2], a.layout.shape()[rank - 1], b.layout.shape()[rank - 1]);
    let (a_steps, b_steps) = (&a.layout.strides()[rank - 2..], &b.layout.strides()[rank - 2..]);
    let elem = gpu.elem(y.dtype);
    let product = Product {
        op: "matmul",
        batch,
        m,
        n,
        k,
        a: Factor {
            memory: Memory::of(a.buffer),
            elem,
            offset: a.layout.offset(),
            strides: [a_batch[0], a_batch[1], a_steps[0], a_steps[1]],
        },
        b: Factor {
            memory: Memory::of(b.buffer),
            elem,
            offset: b.layout.offset(),
            strides: [b_batch[0], b_batch[1], b_steps[1], b_steps[0]],
        },
        bias: None,
        activation: None,
        y: target(y),
        y_elem: elem,
        y_offset: 0,
    };
    if elem.is_float() { product.run(gpu) } else { integer(gpu, &product) }
}

/// The leading dimensions as an outer and an inner one, with the strides of both operands; `None` if they are more.
fn batches(a: &Layout, b: &Layout) -> Option<([usize; 2], [isize; 2], [isize; 2])> {
    let leading = |l: &Layout| {
        let lead = l.rank() - 2;
        Layout::new(Shape::new(&l.shape()[..lead]), &l.strides()[..lead], 0)
    };
    let [a, b] = Layout::collapse_all([&leading(a), &leading(b)]);
    let pair = |l: &Layout| match *l.strides() {
        [] => [0, 0],
        [inner] => [0, inner],
        [outer, inner] => [outer, inner],
        _ => unreachable!("checked below"),
    };
    let sizes = match **a.shape() {
        [] => [1, 1],
        [inner] => [1, inner],
        [outer, inner] => [outer, inner],
        _ => return None,
    };
    Some((sizes, pair(&a), pair(&b)))
}

fn integer(gpu: &Gpu, product: &Product<'_>) -> Result<()> {
    let Product { batch, m, n, k, a, b, .. } = product;
    gpu.check_rounds("matmul of integers", *k)?;
    let count = batch[0] * batch[1] * m * n;
    gpu.dispatch(Call {
        op: product.op,
        file: "matmul/integer.wgsl",
        entry: "main",
        variant: variant![elem: product.y_elem],
        constants: smallvec![("WORKGROUP", 64)],
        reads: &[a.memory, b.memory],
        writes: &[product.y],
        params: Params::new()
            .vec4(vector(a.strides))
            .vec4(vector(b.strides))
            .usize(count)
            .usize(*m)
            .usize(*n)
            .usize(*k)
            .usize(batch[1])
            .usize(a.offset)
            .usize(b.offset),
        grid: Grid::linear(count.div_ceil(64)),
    })
}

/// [`orkest_core::Op::Linear`]
pub(crate) fn linear(
    gpu: &Gpu,
    activation: Option<Unary>,
    x: &View<'_>,
    weight: &View<'_>,
    bias: Option<&View<'_>>,
    y: &Output,
) -> Result<()> {
    let k = x.layout.shape()[x.layout.rank() - 1];
    let m = x.layout.numel() / k;
    let Some(rows) = x.layout.view(&Shape::new(&[m, k])) else {
        let x = gpu.contiguous(x)?;
        return linear(gpu, activation, &x.view(), weight, bias, y);
    };
    let elem = gpu.elem(y.dtype);
    let factor = |v: &View<'_>, layout: &Layout| {
        let [line, along_k] = [layout.strides()[0], layout.strides()[1]];
        (v.layout.offset(), [0, 0, line, along_k])
    };
    let (x_offset, x_strides) = factor(x, &rows);
    let (weight_offset, weight_strides) = factor(weight, weight.layout);
    Product {
        op: "linear",
        batch: [1, 1],
        m,
        n: weight.layout.shape()[0],
        k,
        a: Factor { memory: Memory::of(x.buffer), elem, offset: x_offset, strides: x_strides },
        b: Factor { memory: Memory::of(weight.buffer), elem, offset: weight_offset, strides: weight_strides },
        bias: bias.map(|b| Bias {
            memory: Memory::of(b.buffer),
            offset: b.layout.offset(),
            strides: [0, 0, b.layout.strides()[0]],
        }),
        activation,
        y: target(y),
        y_elem: elem,
        y_offset: 0,
    }
    .run(gpu)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    let kernels = [
        Kernel::Gemv { lanes: 1, workgroup: 8 },
        Kernel::Gemv { lanes: 16, workgroup: 256 },
        Kernel::Gemv { lanes: 64, workgroup: 256 },
        Kernel::Registers { rows: 4 },
        Kernel::Registers { rows: 8 },
        Kernel::Registers { rows: 16 },
        Kernel::Tile { side: 8, big: false },
        Kernel::Tile { side: 16, big: false },
        Kernel::Tile { side: 16, big: true },
        Kernel::Matrices { side: 8, big: false, lanes: 8 },
        Kernel::Matrices { side: 8, big: true, lanes: 32 },
        Kernel::Matrices { side: 16, big: false, lanes: 32 },
        Kernel::Matrices { side: 16, big: true, lanes: 64 },
    ];
    for elem in Elem::ALL {
        if !elem.is_float() {
            all.push(("matmul/integer.wgsl", variant![elem: elem]));
            continue;
        }
        for activation in [None, Some(Unary::GeluTanh)] {
            all.push(("matmul/split.wgsl", split_variant(elem, activation)));
        }
        for kernel in kernels {
            if matches!(kernel, Kernel::Matrices { .. }) && !matches!(elem, Elem::F16 | Elem::F32) {
                continue;
            }
            let ways = [(false, false), (false, true), (true, false), (true, true)];
            for (i, (along_k, vec)) in ways.into_iter().enumerate() {
                let a = Access { elem, along_k, vec };
                for (j, (along_k, vec)) in ways.into_iter().enumerate() {
                    // Reading a and reading b do not touch each other: one type shows all pairs.
                    if elem == Elem::F32 || i == j {
                        let b = Access { elem, along_k, vec };
                        let v = kernel.variant(a, b, elem, elem, None, if vec { 64 } else { 65 });
                        all.push((kernel.file(), v.clone()));
                        if matches!(kernel, Kernel::Gemv { .. }) {
                            all.push((kernel.file(), shuffles(v, 32)));
                        }
                    }
                }
                if !vec {
                    let v = kernel.variant(a, a, elem, Elem::F32, Some(Unary::Silu), 65);
                    all.push((kernel.file(), v));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    //! Every kernel, whatever the adapter, against the definition in f64.
    use super::*;
    use half::f16;
    use orkest_core::{Buffer, Generator};

    fn gpu() -> Option<Gpu> {
        match Gpu::open(0) {
            Ok(gpu) => Some(gpu),
            Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
            Err(_) => {
                println!("skipped: no adapter");
                None
            }
        }
    }

    /// How a matrix lies in memory.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Lie {
        RowMajor,
        ColumnMajor,
        /// Every third element of rows that are in reverse order.
        Scattered,
        /// From the fifth element on: four at once would cross.
        Shifted,
        /// One matrix for the inner batch dimension.
        Broadcast,
    }

    /// A batch of matrices with its values as the device has them.
    struct Matrices {
        values: Vec<f32>,
        buffer: Buffer,
        offset: usize,
        strides: [isize; 4],
    }

    fn matrices(
        gpu: &Gpu,
        elem: Elem,
        seed: u64,
        batch: [usize; 2],
        rows: usize,
        columns: usize,
        lie: Lie,
    ) -> Matrices {
        let (r, c) = (rows as isize, columns as isize);
        let (row, column, len, offset) = match lie {
            Lie::RowMajor | Lie::Broadcast => (c, 1, r * c, 0),
            Lie::ColumnMajor => (1, r, r * c, 0),
            Lie::Scattered => (-3 * c, 3, 3 * r * c, (r - 1) * 3 * c),
            Lie::Shifted => (c, 1, r * c, 5),
        };
        let inner = if lie == Lie::Broadcast { 0 } else { len };
        let strides = [batch[1] as isize * len, inner, row, column];
        let mut values = vec![0.0; (batch[0] * batch[1]) * len as usize + 8];
        Generator::new(seed).fill_normal_f32(&mut values, 0.0, 1.0);
        let buffer = if elem == Elem::F16 {
            let rounded: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
            values = rounded.iter().map(|x| x.to_f32()).collect();
            gpu.upload(bytemuck::cast_slice(&rounded), DType::F16).unwrap()
        } else {
            gpu.upload(bytemuck::cast_slice(&values), DType::F32).unwrap()
        };
        Matrices { values, buffer, offset: offset as usize, strides }
    }

    impl Matrices {
        fn at(&self, index: [usize; 4]) -> f64 {
            let steps: isize = index.iter().zip(self.strides).map(|(&i, s)| i as isize * s).sum();
            f64::from(self.values[(self.offset as isize + steps) as usize])
        }
    }

    struct Case {
        choice: Choice,
        /// Of the factors.
        elem: Elem,
        transposed: bool,
        batch: [usize; 2],
        sizes: [usize; 3],
        lies: [Lie; 2],
        epilogue: bool,
    }

    #[track_caller]
    fn check(gpu: &Gpu, case: &Case) {
        let &Case { choice, elem, transposed, batch, sizes: [m, n, k], lies, epilogue } = case;
        let a = matrices(gpu, elem, 1, batch, m, k, lies[0]);
        let b = matrices(gpu, elem, 2, batch, k, n, lies[1]);
        let bias = matrices(gpu, Elem::F32, 3, [1, batch[1]], m, n, Lie::ColumnMajor);
        let y = gpu.temp(Shape::new(&[batch[0] * batch[1] * m * n]), DType::F32).unwrap();
        let [outer, inner, row, column] = b.strides;
        Product {
            op: "matmul",
            batch,
            m,
            n,
            k,
            a: Factor { memory: Memory::of(&a.buffer), elem, offset: a.offset, strides: a.strides },
            b: Factor {
                memory: Memory::of(&b.buffer),
                elem,
                offset: b.offset,
                strides: [outer, inner, column, row],
            },
            bias: epilogue.then(|| Bias {
                memory: Memory::of(&bias.buffer),
                offset: bias.offset,
                strides: [bias.strides[1], bias.strides[2], bias.strides[3]],
            }),
            activation: epilogue.then_some(Unary::LeakyRelu(0.25)),
            y: y.memory(),
            y_elem: Elem::F32,
            y_offset: 0,
        }
        .launch(gpu, choice, transposed)
        .unwrap();
        let bytes = gpu.download(&y.view()).unwrap();
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let mut got = got.into_iter();
        let tolerance = 1e-6 * (k as f64).sqrt() * 4.0;
        for i in 0..batch[0] * batch[1] {
            let (o, i) = (i / batch[1], i % batch[1]);
            for r in 0..m {
                for c in 0..n {
                    let mut sum: f64 = (0..k).map(|p| a.at([o, i, r, p]) * b.at([o, i, p, c])).sum();
                    if epilogue {
                        sum += bias.at([0, i, r, c]);
                        sum = if sum > 0.0 { sum } else { 0.25 * sum };
                    }
                    let got = f64::from(got.next().unwrap());
                    assert!(
                        (got - sum).abs() <= tolerance,
                        "{choice:?} transposed {transposed}, {lies:?}, batch {batch:?} of [{m}, {k}] x [{k}, {n}]: \
                         element [{o}, {i}, {r}, {c}] is {got}, not {sum}"
                    );
                }
            }
        }
    }

    const LIES: [[Lie; 2]; 7] = [
        [Lie::RowMajor, Lie::RowMajor],
        [Lie::RowMajor, Lie::ColumnMajor],
        [Lie::ColumnMajor, Lie::RowMajor],
        [Lie::ColumnMajor, Lie::ColumnMajor],
        [Lie::Scattered, Lie::Broadcast],
        [Lie::Broadcast, Lie::Scattered],
        [Lie::Shifted, Lie::Shifted],
    ];

    /// Around the borders of tiles of `rows` x `columns`; the first can be loaded four at once, the others not.
    fn sizes(rows: usize, columns: usize) -> [[usize; 3]; 5] {
        [
            [rows + 4, columns + 8, 20],
            [rows - 1, columns + 1, 33],
            [rows + 1, columns - 1, 1],
            [2 * rows, columns, 16],
            [3, 2 * columns + 3, 7],
        ]
    }

    fn check_tiles(kernel: Kernel, rows: usize, columns: usize) {
        if let Some(gpu) = gpu() {
            check_tiles_of(&gpu, Elem::F32, kernel, rows, columns);
        }
    }

    fn check_tiles_of(gpu: &Gpu, elem: Elem, kernel: Kernel, rows: usize, columns: usize) {
        for (i, sizes) in sizes(rows, columns).into_iter().enumerate() {
            for (j, lies) in LIES.into_iter().enumerate() {
                let batch = if j >= 4 { [2, 3] } else { [1, 1] };
                let choice = Choice { kernel, parts: 1 };
                let transposed = (i + j) % 2 == 1;
                check(gpu, &Case { choice, elem, transposed, batch, sizes, lies, epilogue: false });
            }
        }
        for parts in [1, 3] {
            for transposed in [false, true] {
                check(
                    gpu,
                    &Case {
                        choice: Choice { kernel, parts },
                        elem,
                        transposed,
                        batch: [2, 2],
                        sizes: [rows + 2, columns + 3, 70],
                        lies: LIES[1],
                        epilogue: true,
                    },
                );
            }
        }
    }

    #[test]
    fn tiles_of_32() {
        check_tiles(Kernel::Tile { side: 8, big: false }, 32, 32);
    }

    #[test]
    fn tiles_of_64() {
        check_tiles(Kernel::Tile { side: 16, big: false }, 64, 64);
    }

    #[test]
    fn tiles_of_128() {
        check_tiles(Kernel::Tile { side: 16, big: true }, 128, 128);
    }

    #[test]
    fn cooperative_matrices() {
        let Some(gpu) = gpu() else { return };
        let mut tested = false;
        for (elem, big) in [(Elem::F16, false), (Elem::F16, true), (Elem::F32, false), (Elem::F32, true)] {
            if let Some((kernel, side)) = Kernel::matrices(&gpu.capabilities, elem, big) {
                check_tiles_of(&gpu, elem, kernel, side, side);
                tested = true;
            }
        }
        if !tested {
            println!("skipped: the adapter has no cooperative matrices");
        }
    }

    #[test]
    fn registers() {
        check_tiles(Kernel::Registers { rows: 16 }, 16, 32);
    }

    #[test]
    fn registers_of_few_rows() {
        check_tiles(Kernel::Registers { rows: 4 }, 4, 32);
        check_tiles(Kernel::Registers { rows: 8 }, 8, 32);
    }

    #[test]
    fn one_column_or_one_row() {
        let Some(gpu) = gpu() else { return };
        let elem = Elem::F32;
        for (lanes, workgroup) in [(1, 8), (16, 256), (64, 256)] {
            let kernel = Kernel::Gemv { lanes, workgroup };
            for (lines, k) in [(1, 1), (17, 1), (1, 300), (70, 256), (65, 1030), (8, 13)] {
                for (j, lies) in LIES.into_iter().enumerate() {
                    let batch = if j >= 4 { [2, 3] } else { [1, 1] };
                    for (transposed, sizes) in [(false, [lines, 1, k]), (true, [1, lines, k])] {
                        let choice = Choice { kernel, parts: 1 };
                        check(&gpu, &Case { choice, elem, transposed, batch, sizes, lies, epilogue: false });
                        let choice = Choice { kernel, parts: 4 };
                        check(&gpu, &Case { choice, elem, transposed, batch, sizes, lies, epilogue: true });
                    }
                }
            }
        }
    }

    #[test]
    fn large_results_fold_and_band() {
        let Some(gpu) = gpu() else { return };
        // More than one band of tiles, the last one narrow.
        let choice = Choice { kernel: Kernel::Tile { side: 8, big: false }, parts: 1 };
        let case = Case {
            choice,
            elem: Elem::F32,
            transposed: false,
            batch: [1, 2],
            sizes: [32 * 9 + 5, 70, 3],
            lies: LIES[0],
            epilogue: false,
        };
        check(&gpu, &case);
    }

    #[test]
    fn the_table_says_what_it_says() {
        let gpu = Capabilities {
            f16: true,
            i16: true,
            subgroups: true,
            subgroup_size: [32, 32],
            immediates: true,
            timestamps: true,
            software: false,
            checked: false,
            matrix_f16: 16,
            matrix_f32: 0,
            workgroup_memory: 48 << 10,
            workgroup_size: 256,
            storage_buffers: 8,
            rounds: usize::MAX,
        };
        let software = Capabilities { software: true, rounds: 60_000, ..gpu };
        let choose_for = |elem, batches, sizes| choose_kernel(&gpu, elem, batches, sizes, true);
        let choose =
            |capabilities, batches, sizes| choose_kernel(capabilities, Elem::F32, batches, sizes, true);
        let whole = |kernel| Choice { kernel, parts: 1 };
        assert_eq!(choose(&gpu, 1, [4096; 3]), whole(Kernel::Tile { side: 16, big: true }));
        assert_eq!(choose(&gpu, 1, [1024; 3]), whole(Kernel::Tile { side: 16, big: false }));
        assert_eq!(choose(&gpu, 512, [64; 3]), whole(Kernel::Tile { side: 16, big: false }));
        assert_eq!(choose(&gpu, 1, [64, 64, 128]), whole(Kernel::Tile { side: 8, big: false }));
        // Four tiles of a long sum: 32 parts of 256.
        let split = Choice { kernel: Kernel::Tile { side: 8, big: false }, parts: 32 };
        assert_eq!(choose(&gpu, 1, [64, 64, 8192]), split);
        assert_eq!(choose(&gpu, 1, [4096, 1, 4096]), whole(Kernel::Gemv { lanes: 64, workgroup: 256 }));
        assert_eq!(choose(&software, 1, [4096, 1, 4096]), whole(Kernel::Gemv { lanes: 1, workgroup: 8 }));
        for (m, rows) in [(2, 4), (6, 8), (20, 8), (32, 16), (64, 16), (70, 16)] {
            assert_eq!(choose(&software, 1, [m, 64, 8192]), whole(Kernel::Registers { rows }));
        }
        let long = Choice { kernel: Kernel::Gemv { lanes: 1, workgroup: 8 }, parts: 3 };
        assert_eq!(choose(&software, 1, [2, 1, 150_000]), long);
        let matrices = |big| Kernel::Matrices { side: 16, big, lanes: 32 };
        assert_eq!(choose_for(Elem::F16, 1, [4096; 3]), whole(matrices(true)));
        assert_eq!(choose_for(Elem::F16, 16, [256; 3]), whole(matrices(false)));
        assert_eq!(choose_for(Elem::F16, 1, [16, 4096, 128]), whole(Kernel::Tile { side: 8, big: false }));
        assert_eq!(choose_for(Elem::BF16, 1, [4096; 3]), whole(Kernel::Tile { side: 16, big: true }));
        assert_eq!(
            choose_for(Elem::F16, 1, [4096, 1, 4096]),
            whole(Kernel::Gemv { lanes: 64, workgroup: 256 })
        );
        // The big tile of 16 x 16 matrices needs 27.5 KiB; without them the small one has to do.
        let small = Capabilities { workgroup_memory: 20 << 10, ..gpu };
        assert_eq!(choose_kernel(&small, Elem::F16, 1, [4096; 3], true), whole(matrices(false)));
    }
}
