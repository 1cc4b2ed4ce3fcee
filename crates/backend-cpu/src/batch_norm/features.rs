//! Batch norm of `[n, c]`: the channels of a row lie side by side and are computed together, as vectors.
//!
//! Blocks of a fixed number of rows have statistics of their own, which are put together in order, so that results do not depend on
//! the number of threads. All of them are in f64.

use super::next_of;
use crate::chunks::GRAIN_MATH;
use crate::math::Float;
use crate::memory::{Scratch, SyncPtr};
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use crate::simd::simd_fn;
use orkest_core::{Output, Result, View};
use std::ops::Range;

/// Fewer channels than this fill no vector: they are better copied one by one.
pub(super) const FEWEST: usize = 8;

/// Elements of a block: they stay in a first-level cache.
const BLOCK: usize = 8 << 10;
const FEWEST_ROWS: usize = 16;
const MOST_ROWS: usize = 256;

/// Rows that are added up before the sums are written back.
const TOGETHER: usize = 8;

/// Two numbers for each channel of each block of rows.
struct Blocks {
    rows: usize,
    channels: usize,
    /// Rows of all blocks but the last.
    height: usize,
    count: usize,
    parts: Scratch<f64>,
}

impl Blocks {
    fn new(rows: usize, channels: usize) -> Result<Blocks> {
        let height = (BLOCK / channels).clamp(FEWEST_ROWS, MOST_ROWS);
        let count = rows.div_ceil(height);
        Ok(Blocks { rows, channels, height, count, parts: Scratch::new(2 * count * channels)? })
    }

    /// Lets `f` write the two numbers of every channel, for every block of elements.
    fn fill(&self, f: impl Fn(Range<usize>, &mut [f64], &mut [f64]) + Sync) {
        let (height, channels, parts) = (self.height, self.channels, self.parts.sync_ptr());
        parallel::ranges(self.count, GRAIN_MATH.div_ceil(height * channels), |blocks| {
            for block in blocks {
                let elements = block * height * channels..self.rows.min((block + 1) * height) * channels;
                let first = parts.at((2 * block * channels) as isize);
                // SAFETY: the block's own part of the scratch; `f` writes it before anything reads it.
                let [first, second] = [0, channels]
                    .map(|at| unsafe { std::slice::from_raw_parts_mut(first.add(at), channels) });
                f(elements, first, second);
            }
        });
    }

    /// Calls `f(rows, first numbers, second numbers)` for the channels in a range of each block, in order.
    fn for_each(&self, channels: &Range<usize>, mut f: impl FnMut(usize, &[f64], &[f64])) {
        for block in 0..self.count {
            let [first, second] = [0, 1].map(|half| {
                let at = (2 * block + half) * self.channels + channels.start;
                // SAFETY: `fill` has written all numbers of the block.
                unsafe { std::slice::from_raw_parts(self.parts.sync_ptr().at(at as isize), channels.len()) }
            });
            f(self.height.min(self.rows - block * self.height), first, second);
        }
    }
}

/// Factors and summands, one of each for every channel.
struct Channels<T> {
    start: SyncPtr<T>,
    count: usize,
    _memory: Scratch<T>,
}

impl<T: Float> Channels<T> {
    fn new(count: usize) -> Result<Channels<T>> {
        let memory = Scratch::<T>::new(count)?;
        Ok(Channels { start: memory.sync_ptr(), count, _memory: memory })
    }

    /// # Safety
    /// Nobody else has a part of the range at the same time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, range: &Range<usize>) -> &mut [T] {
        assert!(range.end <= self.count);
        // SAFETY: within the memory, written before it is read, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(range.start as isize), range.len()) }
    }

    /// After all have been written.
    fn all(&self) -> &[T] {
        // SAFETY: the caller has written them, and nobody does any more.
        unsafe { std::slice::from_raw_parts(self.start.get(), self.count) }
    }
}

/// A parameter of some channels; `None` is as many times the default.
fn parameter<'a, T: Float>(values: Option<&'a Dense<T>>, range: &Range<usize>) -> Option<&'a [T]> {
    values.map(|values| &values.all()[range.clone()])
}

pub(super) fn batch_norm<T: Float>(
    [n, c]: [usize; 2],
    eps: f64,
    weight: bool,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let x = Dense::<T>::new(&inputs[0])?;
    let mut rest = inputs[1..].iter();
    let (weight, bias) = (next_of::<T>(&mut rest, weight)?, next_of::<T>(&mut rest, bias)?);
    let [y, means, variances] = [0, 1, 2].map(|i| RowsMut::<T>::new(&outputs[i]));
    let (scales, shifts) = (Channels::<T>::new(c)?, Channels::<T>::new(c)?);
    let blocks = Blocks::new(n, c)?;
    blocks.fill(|elements, mean, squares| moments(&x.all()[elements], mean, squares));
    parallel::ranges(c, GRAIN_MATH.div_ceil(blocks.count), |range| {
        let (mut mean, mut squares) = (vec![0.0; range.len()], vec![0.0; range.len()]);
        let mut seen = 0;
        blocks.for_each(&range, |rows, block_mean, block_squares| {
            let share = rows as f64 / (seen + rows) as f64;
            join_moments(&mut mean, &mut squares, block_mean, block_squares, share, seen as f64 * share);
            seen += rows;
        });
        // SAFETY: every channel belongs to one range.
        unsafe {
            let (scale, shift) = (scales.part(&range), shifts.part(&range));
            let [of_mean, of_variance] = [&means, &variances].map(|out| out.part(range.start, range.len()));
            forward_factors(&mean, &squares, n as f64, eps, [of_mean, of_variance, &mut *scale]);
            if let Some(weight) = parameter(weight.as_ref(), &range) {
                multiply(scale, weight);
            }
            match parameter(bias.as_ref(), &range) {
                Some(bias) => shift.copy_from_slice(bias),
                None => shift.fill(T::ZERO),
            }
        }
    });
    // SAFETY: written above, and only read from here on.
    let mean: &[T] = unsafe { means.part(0, c) };
    parallel::ranges(n, GRAIN_MATH.div_ceil(c), |rows| {
        let elements = rows.start * c..rows.end * c;
        // SAFETY: every row belongs to one range.
        let y = unsafe { y.part(elements.start, elements.len()) };
        scale_and_shift_rows(&x.all()[elements], mean, scales.all(), shifts.all(), y);
    });
    Ok(())
}

pub(super) fn batch_norm_grad<T: Float>(
    [n, c]: [usize; 2],
    eps: f64,
    weight: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let [x, mean, variance] = [0, 1, 2].map(|i| Dense::<T>::new(&inputs[i]));
    let (x, mean, variance) = (x?, mean?, variance?);
    let weight = next_of::<T>(&mut inputs[3..].iter(), weight)?;
    let g = Dense::<T>::new(&inputs[inputs.len() - 1])?;
    let [dx, dw, db] = [0, 1, 2].map(|i| RowsMut::<T>::new(&outputs[i]));
    let [averages, slopes, scales] = [0; 3].map(|_| Channels::<T>::new(c));
    let (averages, slopes, scales) = (averages?, slopes?, scales?);
    let blocks = Blocks::new(n, c)?;
    blocks.fill(|elements, total, along| {
        products(&x.all()[elements.clone()], mean.all(), &g.all()[elements], total, along);
    });
    parallel::ranges(c, GRAIN_MATH.div_ceil(blocks.count), |range| {
        let (mut total, mut along) = (vec![0.0; range.len()], vec![0.0; range.len()]);
        blocks.for_each(&range, |_, block_total, block_along| {
            add(&mut total, block_total);
            add(&mut along, block_along);
        });
        // SAFETY: every channel belongs to one range.
        unsafe {
            let (average, slope, scale) = (averages.part(&range), slopes.part(&range), scales.part(&range));
            let [dw, db] = [&dw, &db].map(|out| out.part(range.start, range.len()));
            let variance = &variance.all()[range.clone()];
            let outputs = [dw, db, average, slope, &mut *scale];
            backward_factors(&total, &along, n as f64, eps, variance, outputs);
            if let Some(weight) = parameter(weight.as_ref(), &range) {
                multiply(scale, weight);
            }
        }
    });
    parallel::ranges(n, GRAIN_MATH.div_ceil(c), |rows| {
        let elements = rows.start * c..rows.end * c;
        // SAFETY: every row belongs to one range.
        let dx = unsafe { dx.part(elements.start, elements.len()) };
        let (x, g) = (&x.all()[elements.clone()], &g.all()[elements]);
        gradient_rows(x, mean.all(), slopes.all(), g, averages.all(), scales.all(), dx);
    });
    Ok(())
}

/// `sum[j] = step(sum[j], j, [x[0][i][j], ..])` for rows `i` as long as `sum`, in order.
#[inline(always)]
fn fold_rows<T: Float, const N: usize>(
    sum: &mut [f64],
    x: [&[T]; N],
    step: impl Fn(f64, usize, [f64; N]) -> f64,
) {
    let width = sum.len();
    let rows = x[0].len() / width;
    let row = |i: usize| x.map(|x| &x[i * width..][..width]);
    let whole = rows - rows % TOGETHER;
    for first in (0..whole).step_by(TOGETHER) {
        let rows: [[&[T]; N]; TOGETHER] = std::array::from_fn(|i| row(first + i));
        for j in 0..width {
            sum[j] = rows.iter().fold(sum[j], |sum, row| step(sum, j, row.map(|x| x[j].to_f64())));
        }
    }
    for i in whole..rows {
        let row = row(i);
        for j in 0..width {
            sum[j] = step(sum[j], j, row.map(|x| x[j].to_f64()));
        }
    }
}

simd_fn! {
    /// The mean of each column and `Σ (x - mean)²`.
    fn moments<S: Simd, T: Float>(x: &[T], mean: &mut [f64], squares: &mut [f64]) {
        mean.fill(0.0);
        fold_rows(mean, [x], |sum, _, [x]| sum + x);
        let rows = (x.len() / mean.len()) as f64;
        mean.iter_mut().for_each(|mean| *mean /= rows);
        squares.fill(0.0);
        let mean = &mean[..squares.len()];
        fold_rows(squares, [x], |sum, j, [x]| S::mul_add_f64(x - mean[j], x - mean[j], sum));
    }

    /// More rows for mean and squares: `share` is the part of all rows that the new ones are, `weight` how much the distance of the
    /// means adds to the squares (Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983).
    fn join_moments<S: Simd>(
        mean: &mut [f64], squares: &mut [f64], new_mean: &[f64], new_squares: &[f64], share: f64, weight: f64,
    ) {
        let pairs = mean.iter_mut().zip(squares);
        for ((mean, squares), (new_mean, new_squares)) in pairs.zip(new_mean.iter().zip(new_squares)) {
            let distance = new_mean - *mean;
            *mean += distance * share;
            *squares += new_squares + distance * distance * weight;
        }
    }

    /// `Σ g` and `Σ g (x - mean)` of each column.
    fn products<S: Simd, T: Float>(x: &[T], mean: &[T], g: &[T], total: &mut [f64], along: &mut [f64]) {
        total.fill(0.0);
        fold_rows(total, [g], |sum, _, [g]| sum + g);
        along.fill(0.0);
        let mean = &mean[..along.len()];
        fold_rows(along, [x, g], |sum, j, [x, g]| S::mul_add_f64(g, x - mean[j].to_f64(), sum));
    }

    fn add<S: Simd>(to: &mut [f64], from: &[f64]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }

    fn multiply<S: Simd, T: Float>(to: &mut [T], by: &[T]) {
        for (to, &by) in to.iter_mut().zip(by) {
            *to = *to * by;
        }
    }

    /// Mean, variance and `1 / sqrt(variance + eps)`.
    fn forward_factors<S: Simd, T: Float>(
        mean: &[f64], squares: &[f64], count: f64, eps: f64, outputs: [&mut [T]; 3],
    ) {
        let [of_mean, of_variance, scale] = outputs;
        let outputs = of_mean.iter_mut().zip(of_variance).zip(scale);
        for (((of_mean, of_variance), scale), (mean, squares)) in outputs.zip(mean.iter().zip(squares)) {
            let variance = squares / count;
            *of_mean = T::from_f64(*mean);
            *of_variance = T::from_f64(variance);
            *scale = T::from_f64(1.0 / (variance + eps).sqrt());
        }
    }

    /// The gradients of weight and bias, and what [`gradient_rows`] takes.
    fn backward_factors<S: Simd, T: Float>(
        total: &[f64], along: &[f64], count: f64, eps: f64, variance: &[T], outputs: [&mut [T]; 5],
    ) {
        let [dw, db, average, slope, scale] = outputs;
        let inputs = total.iter().zip(along).zip(variance);
        let outputs = dw.iter_mut().zip(db).zip(average).zip(slope).zip(scale);
        for (((total, along), variance), ((((dw, db), average), slope), scale)) in inputs.zip(outputs) {
            let rstd = 1.0 / (variance.to_f64() + eps).sqrt();
            *dw = T::from_f64(rstd * along);
            *db = T::from_f64(*total);
            *average = T::from_f64(total / count);
            *slope = T::from_f64(rstd * rstd * along / count);
            *scale = T::from_f64(rstd);
        }
    }

    /// `y = (x - mean) scale + shift`
    fn scale_and_shift_rows<S: Simd, T: Float>(x: &[T], mean: &[T], scale: &[T], shift: &[T], y: &mut [T]) {
        let width = mean.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let factors = mean.iter().zip(scale).zip(shift);
            for ((y, &x), ((&mean, &scale), &shift)) in y.iter_mut().zip(x).zip(factors) {
                *y = (x - mean).mul_add::<S>(scale, shift);
            }
        }
    }

    /// `dx = (g - average - (x - mean) slope) scale`
    fn gradient_rows<S: Simd, T: Float>(
        x: &[T], mean: &[T], slope: &[T], g: &[T], average: &[T], scale: &[T], dx: &mut [T],
    ) {
        let width = mean.len();
        for ((dx, x), g) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
            let factors = mean.iter().zip(slope).zip(average).zip(scale);
            for (((dx, &x), &g), (((&mean, &slope), &average), &scale)) in dx.iter_mut().zip(x).zip(g).zip(factors) {
                *dx = (g - average - (x - mean) * slope) * scale;
            }
        }
    }
}
