//! `Matmul` and `Linear`: tensors to matrices, batches to threads.

use crate::chunks::Stored;
use crate::gemm::{Finish, Gemm, PARALLEL, Real, Source, Target};
use crate::indexing::position;
use crate::math::Float;
use crate::memory::{self, Scratch, SyncPtr};
use crate::rows::Dense;
use crate::{copy, elementwise, parallel, unary};
use orkest_core::op::{Binary, Unary};
use orkest_core::{DType, Layout, MAX_RANK, Output, Result, Shape, View, bf16, f16};

pub(crate) fn matmul(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let [a, b] = inputs else { unreachable!("matmul takes two inputs") };
    let shape = outputs[0].layout.shape();
    if a.dtype.is_float()
        && a.layout.shape().last() == Some(&1)
        && let (Some(a_layout), Some(b_layout)) = (a.layout.broadcast_to(shape), b.layout.broadcast_to(shape))
    {
        // Columns times rows: nothing is added up, and rounding twice is rounding once.
        let factors = [View { layout: &a_layout, ..*a }, View { layout: &b_layout, ..*b }];
        return elementwise::binary(Binary::Mul, &factors, outputs);
    }
    let product = Product::new(a.layout, b.layout, &outputs[0].layout);
    match a.dtype {
        DType::F32 => float::<f32>(&product, a, b, &outputs[0], None),
        DType::F64 => float::<f64>(&product, a, b, &outputs[0], None),
        DType::F16 => half::<f16>(&product, a, b, outputs)?,
        DType::BF16 => half::<bf16>(&product, a, b, outputs)?,
        DType::I64 => integer::<i64>(&product, a, b, &outputs[0]),
        DType::I32 => integer::<i32>(&product, a, b, &outputs[0]),
        DType::U8 => integer::<u8>(&product, a, b, &outputs[0]),
        DType::Bool => integer::<bool>(&product, a, b, &outputs[0]),
    }
    Ok(())
}

pub(crate) fn supports_linear(inputs: &[View<'_>]) -> bool {
    let dtype = inputs[0].dtype;
    matches!(dtype, DType::F32 | DType::F64) && inputs.iter().all(|v| v.dtype == dtype)
}

pub(crate) fn linear(
    bias: bool,
    activation: Option<Unary>,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 => linear_of::<f32>(bias, activation, inputs, outputs),
        _ => linear_of::<f64>(bias, activation, inputs, outputs),
    }
}

fn linear_of<T: Real + Float>(
    bias: bool,
    activation: Option<Unary>,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let (x, weight) = (&inputs[0], &inputs[1]);
    let (out_features, in_features) = (weight.layout.shape()[0], weight.layout.shape()[1]);
    // As a product of two matrices per leading position, the weight being the same (stride 0) for all.
    let flat = x.layout.rank() == 1;
    let x_layout = if flat { x.layout.unsqueeze(0) } else { *x.layout };
    let y_layout = if flat { outputs[0].layout.unsqueeze(0) } else { outputs[0].layout };
    let rank = x_layout.rank();
    let shape = x_layout.shape().with(rank - 2, in_features).with(rank - 1, out_features);
    let transposed = weight.layout.transpose(0, 1);
    let Some(w_layout) = transposed.broadcast_to(&shape) else { unreachable!("the weight is a matrix") };
    let product = Product::new(&x_layout, &w_layout, &y_layout);

    let bias = bias.then(|| Dense::<T>::new(&inputs[2])).transpose()?;
    let bias = bias.as_ref().map(Dense::all);
    let finish = |_row: usize, column: usize, values: &mut [T]| {
        if let Some(bias) = bias {
            for (y, b) in values.iter_mut().zip(&bias[column..]) {
                *y += *b;
            }
        }
        if let Some(activation) = activation {
            unary::apply(activation, values);
        }
    };
    let finish: Option<Finish<'_, T>> = (bias.is_some() || activation.is_some()).then_some(&finish);
    float(&product, x, weight, &outputs[0], finish);
    Ok(())
}

/// A batch of products `[m, k] x [k, n]`, all with the same strides.
#[derive(Clone)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    /// Row and column strides of A, B and C.
    rows: [isize; 3],
    cols: [isize; 3],
    /// Where the matrices of the batch start.
    batch: [Layout; 3],
}

impl Product {
    fn new(a: &Layout, b: &Layout, c: &Layout) -> Product {
        let layouts = [a, b, c];
        let lead = c.rank() - 2;
        let mut m = c.shape()[lead];
        let (n, k) = (c.shape()[lead + 1], a.shape()[lead + 1]);
        let mut rows = layouts.map(|l| l.strides()[lead]);
        let cols = layouts.map(|l| l.strides()[lead + 1]);
        // Leading dimensions that B does not have are more rows of A.
        let mut left = lead;
        while left > 0 {
            let size = c.shape()[left - 1];
            let strides = layouts.map(|l| l.strides()[left - 1]);
            let continues = |i: usize| strides[i] == rows[i] * m as isize;
            if size != 1 {
                if strides[1] != 0 || (m > 1 && !(continues(0) && continues(2))) {
                    break;
                }
                if m == 1 {
                    (rows[0], rows[2]) = (strides[0], strides[2]);
                }
                m *= size;
            }
            left -= 1;
        }
        let batch =
            layouts.map(|l| Layout::new(Shape::new(&c.shape()[..left]), &l.strides()[..left], l.offset()));
        let [x, y, z] = &batch;
        Product { m, n, k, rows, cols, batch: Layout::collapse_all([x, y, z]) }
    }

    /// Calls `run` with the first positions of A, B and C of every product, and whether it should use threads itself.
    fn for_each(&self, run: impl Fn([isize; 3], bool) + Sync) {
        let count = self.batch[2].numel();
        let size = self.m * self.n * self.k;
        let threads = parallel::num_threads();
        let starts = |i: usize| [0, 1, 2].map(|operand| position(&self.batch[operand], i));
        // Threads are best used far from the inner loops: one product each, if that keeps all of them busy.
        if count == 1 || (count < 2 * threads && size >= PARALLEL) {
            (0..count).for_each(|i| run(starts(i), true));
        } else {
            parallel::ranges(count, PARALLEL.div_ceil(size.max(1)), |range| {
                range.for_each(|i| run(starts(i), false));
            });
        }
    }
}

fn float<T: Real>(product: &Product, a: &View<'_>, b: &View<'_>, c: &Output, finish: Option<Finish<'_, T>>) {
    let (a, b) = (memory::input_ptr::<T>(a), memory::input_ptr::<T>(b));
    run_float(
        product,
        SyncPtr::new(a.cast_mut()),
        SyncPtr::new(b.cast_mut()),
        SyncPtr::new(memory::output_ptr(c)),
        finish,
    );
}

fn run_float<T: Real>(
    product: &Product,
    a: SyncPtr<T>,
    b: SyncPtr<T>,
    c: SyncPtr<T>,
    finish: Option<Finish<'_, T>>,
) {
    let &Product { m, n, k, rows, cols, .. } = product;
    product.for_each(|[at_a, at_b, at_c], parallel| {
        let gemm = Gemm {
            m,
            n,
            k,
            a: Source { at: a.at(at_a), row: rows[0], col: cols[0] },
            b: Source { at: b.at(at_b), row: rows[1], col: cols[1] },
            c: Target { at: c.at(at_c), row: rows[2], col: cols[2] },
            accumulate: false,
            parallel,
            finish,
        };
        // SAFETY: the layouts lie within their buffers; the products of a batch write disjoint parts of the output.
        unsafe { gemm.run() };
    });
}

/// Half precision: operands widened once, the product in f32, rounded at the end.
fn half<T: Stored<Compute = f32>>(
    product: &Product,
    a: &View<'_>,
    b: &View<'_>,
    outputs: &mut [Output],
) -> Result<()> {
    let (wide_a, a_layout) = widened(a)?;
    let (wide_b, b_layout) = widened(b)?;
    let len = outputs[0].layout.numel();
    let wide_c = Scratch::<f32>::new(len)?;
    let c_layout = Layout::contiguous(*outputs[0].layout.shape());
    let wide = Product::new(&a_layout, &b_layout, &c_layout);
    debug_assert_eq!(wide.n, product.n);
    let pointer = |output: &Output| SyncPtr::new(memory::output_ptr::<f32>(output));
    run_float(&wide, pointer(&wide_a), pointer(&wide_b), wide_c.sync_ptr(), None);
    let (from, to) = (wide_c.sync_ptr(), SyncPtr::new(memory::output_ptr::<T>(&outputs[0])));
    let start = outputs[0].layout.offset() as isize;
    parallel::ranges(len, crate::chunks::GRAIN_MEMORY, |range| {
        // SAFETY: new outputs are row-major; the ranges are disjoint.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from.at(range.start as isize), range.len()),
                std::slice::from_raw_parts_mut(to.at(start + range.start as isize), range.len()),
            )
        };
        T::narrow(from, to);
    });
    Ok(())
}

/// The elements of `view` as f32, each once, and the layout of the same tensor over them.
fn widened(view: &View<'_>) -> Result<(Output, Layout)> {
    let layout = view.layout;
    let rank = layout.rank();
    // Broadcast dimensions are stored once; a transposed matrix stays transposed, which reads and writes in memory order.
    let mut once = *layout;
    for d in 0..rank {
        if layout.strides()[d] == 0 {
            once = once.slice(d, 0, 1, 1);
        }
    }
    let transposed = layout.strides()[rank - 2] == 1;
    if transposed {
        once = once.transpose(rank - 2, rank - 1);
    }
    let mut out = [Output::new(*once.shape(), DType::F32)];
    memory::allocate_outputs(&mut out)?;
    copy::copy(&[View { layout: &once, ..*view }], &mut out)?;
    let mut wide = Layout::contiguous(*once.shape());
    if transposed {
        wide = wide.transpose(rank - 2, rank - 1);
    }
    let mut strides = [0; MAX_RANK];
    for d in 0..rank {
        strides[d] = if layout.strides()[d] == 0 { 0 } else { wide.strides()[d] };
    }
    let [out] = out;
    Ok((out, Layout::new(*layout.shape(), &strides[..rank], 0)))
}

/// Wrapping arithmetic; for bool, "and" and "or".
trait Ring: Copy + Default + Send + Sync {
    fn mul_add(self, a: Self, b: Self) -> Self;
}

macro_rules! ring {
    ($($t:ty),*) => {$(
        impl Ring for $t {
            #[inline(always)]
            fn mul_add(self, a: $t, b: $t) -> $t {
                self.wrapping_add(a.wrapping_mul(b))
            }
        }
    )*};
}
ring!(u8, i32, i64);

impl Ring for bool {
    #[inline(always)]
    fn mul_add(self, a: bool, b: bool) -> bool {
        self | (a & b)
    }
}

fn integer<T: Ring>(product: &Product, a: &View<'_>, b: &View<'_>, c: &Output) {
    let &Product { m, n, k, rows, cols, .. } = product;
    let a = SyncPtr::new(memory::input_ptr::<T>(a).cast_mut());
    let b = SyncPtr::new(memory::input_ptr::<T>(b).cast_mut());
    let c = SyncPtr::new(memory::output_ptr::<T>(c));
    product.for_each(|[at_a, at_b, at_c], parallel| {
        let row = |i: usize| {
            let mut sums = vec![T::default(); n];
            for p in 0..k {
                // SAFETY: elements of the product's matrices.
                unsafe {
                    let x = *a.at(at_a + i as isize * rows[0] + p as isize * cols[0]);
                    let y = b.at(at_b + p as isize * rows[1]);
                    if cols[1] == 1 {
                        let y = std::slice::from_raw_parts(y, n);
                        sums.iter_mut().zip(y).for_each(|(s, y)| *s = s.mul_add(x, *y));
                    } else {
                        for (j, s) in sums.iter_mut().enumerate() {
                            *s = s.mul_add(x, *y.wrapping_offset(j as isize * cols[1]));
                        }
                    }
                }
            }
            for (j, s) in sums.into_iter().enumerate() {
                // SAFETY: row `i` of C, which this call alone writes.
                unsafe { *c.at(at_c + i as isize * rows[2] + j as isize * cols[2]) = s };
            }
        };
        if parallel {
            parallel::ranges(m, PARALLEL.div_ceil(n * k), |range| range.for_each(row));
        } else {
            (0..m).for_each(row);
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::op::Unary;
    use orkest_core::{DType, Op};

    fn product(batch: usize, m: usize, k: usize, n: usize, a: &[f64], b: &[f64], shared_b: bool) -> Vec<f64> {
        let mut c = vec![0.0; batch * m * n];
        for g in 0..batch {
            let b = if shared_b { b } else { &b[g * k * n..] };
            for i in 0..m {
                for j in 0..n {
                    c[(g * m + i) * n + j] = (0..k).map(|p| a[(g * m + i) * k + p] * b[p * n + j]).sum();
                }
            }
        }
        c
    }

    #[test]
    fn every_dtype_and_layout_multiplies() {
        let mut draw = Draw(1);
        for dtype in DType::ALL {
            for lay in LAYS {
                for (batch, m, k, n) in [(1, 3, 4, 5), (6, 5, 7, 2), (4, 1, 9, 6), (2, 33, 17, 40)] {
                    let mut numbers = |count: usize| -> Vec<f64> {
                        let limit = if dtype == DType::Bool { 2 } else { 4 };
                        (0..count).map(|_| draw.below(limit) as f64).collect()
                    };
                    let (a, b) = (numbers(batch * m * k), numbers(batch * k * n));
                    let left = Data::laid(lay, dtype, &[batch / 2 + batch % 2, 2 - batch % 2, m, k], &a);
                    let right = Data::laid(lay, dtype, &[batch / 2 + batch % 2, 2 - batch % 2, k, n], &b);
                    let shape = [batch / 2 + batch % 2, 2 - batch % 2, m, n];
                    let c = run(&Op::Matmul, &[&left, &right], &[(&shape, dtype)]).unwrap();
                    let mut expected = product(batch, m, k, n, &a, &b, false);
                    if dtype == DType::Bool {
                        expected.iter_mut().for_each(|e| *e = e.min(1.0));
                    }
                    // Sums of small integers are exact everywhere but in bf16, whose f32 sum is rounded once.
                    let tolerance = if dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
                    assert_close(
                        &c[0].values(),
                        &expected,
                        tolerance,
                        &format!("{dtype} {lay:?} {batch}x{m}x{k}x{n}"),
                    );
                }
            }
        }
    }

    #[test]
    fn a_broadcast_matrix_multiplies_every_member_of_the_batch() {
        let mut draw = Draw(2);
        let (batch, m, k, n) = (6, 5, 8, 7);
        for dtype in [DType::F32, DType::F64, DType::I64] {
            for lay in LAYS {
                let a: Vec<f64> = (0..batch * m * k).map(|_| draw.below(9) as f64 - 4.0).collect();
                let b: Vec<f64> = (0..k * n).map(|_| draw.below(9) as f64 - 4.0).collect();
                let left = Data::laid(lay, dtype, &[2, 3, m, k], &a);
                let mut right = Data::laid(lay, dtype, &[k, n], &b);
                right.layout = right.layout.broadcast_to(&[2, 3, k, n].into()).unwrap();
                let c = run(&Op::Matmul, &[&left, &right], &[(&[2, 3, m, n], dtype)]).unwrap();
                assert_eq!(c[0].values(), product(batch, m, k, n, &a, &b, true), "{dtype} {lay:?}");
            }
        }
    }

    #[test]
    fn large_batches_in_half_precision_round_once() {
        let mut draw = Draw(3);
        let (batch, m, k, n) = (8, 64, 96, 64);
        let numbers: Vec<f64> =
            (0..batch * m * k + batch * k * n).map(|_| draw.below(17) as f64 / 8.0 - 1.0).collect();
        let (a, b) = numbers.split_at(batch * m * k);
        let expected = product(batch, m, k, n, a, b, false);
        for (dtype, unit) in [(DType::F16, 1.0 / 2048.0), (DType::BF16, 1.0 / 256.0)] {
            let (left, right) = (Data::new(dtype, &[batch, m, k], a), Data::new(dtype, &[batch, k, n], b));
            let c = run(&Op::Matmul, &[&left, &right], &[(&[batch, m, n], dtype)]).unwrap();
            assert_close(&c[0].values(), &expected, unit, dtype.name());
        }
    }

    #[test]
    fn linear_adds_the_bias_and_applies_the_activation() {
        let mut draw = Draw(4);
        for dtype in [DType::F32, DType::F64] {
            for lay in LAYS {
                for lead in [&[][..], &[1], &[7], &[3, 5], &[2, 3, 150]] {
                    for (k, n) in [(4, 6), (33, 1), (70, 90)] {
                        let rows: usize = lead.iter().product();
                        let (x, weight, bias) = (draw.values(rows * k), draw.values(n * k), draw.values(n));
                        let mut expected = vec![0.0; rows * n];
                        for i in 0..rows {
                            for j in 0..n {
                                let sum: f64 = (0..k).map(|p| x[i * k + p] * weight[j * k + p]).sum();
                                expected[i * n + j] = (sum + bias[j]).max(0.0);
                            }
                        }
                        let (x_shape, y_shape) = ([lead, &[k]].concat(), [lead, &[n]].concat());
                        let x = Data::laid(lay, dtype, &x_shape, &x);
                        let weight = Data::laid(lay, dtype, &[n, k], &weight);
                        let bias = Data::laid(lay, dtype, &[n], &bias);
                        let op = Op::Linear { bias: true, activation: Some(Unary::Relu) };
                        let y = run(&op, &[&x, &weight, &bias], &[(&y_shape, dtype)]).unwrap();
                        assert_close(
                            &y[0].values(),
                            &expected,
                            1e-5,
                            &format!("{dtype} {lay:?} {x_shape:?} -> {n}"),
                        );
                    }
                }
            }
        }
    }
}
