//! Planes of another size: weighted sums of rows and of columns, one axis after the other, the second on rows in the cache.

use crate::chunks::{GRAIN_MATH, GRAIN_MEMORY};
use crate::gemm::{Real, Tiles};
use crate::math::Float;
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use crate::simd::simd_fn;
use orkest_core::op::{Axis, Filter};
use orkest_core::{DType, Output, Result, View};

/// Elements of rows between the two passes, for all of which there is room in the cache.
const ROWS: usize = 32 << 10;
/// Pieces of work to aim at where there are few planes.
const PIECES: usize = 16;
/// What a term of a sum of single elements costs, in terms of sums of rows.
const GATHER: usize = 4;
/// Partial sums of a plane side by side, or small planes.
const LANES: usize = 16;
/// Elements of planes that are small.
const SMALL: usize = 1024;

/// [`orkest_core::Op::Resample`]
pub(crate) fn resample(
    axes: &[Axis; 2],
    adjoint: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => planes::<f64>(axes, adjoint, inputs, outputs),
        _ => planes::<f32>(axes, adjoint, inputs, outputs),
    }
}

/// Sums along one axis.
struct Sums<T> {
    input: usize,
    output: usize,
    starts: Vec<usize>,
    places: Vec<usize>,
    weights: Vec<T>,
    /// With the same number of terms for every element: the first terms of all, then the second ones, and so on.
    regular: Option<Regular<T>>,
    /// They are the elements themselves.
    identity: bool,
}

struct Regular<T> {
    count: usize,
    places: Vec<i32>,
    weights: Vec<T>,
}

impl<T: Float> Sums<T> {
    fn new(axis: &Axis, adjoint: bool) -> Sums<T> {
        let taps = axis.taps(T::DTYPE == DType::F64);
        let (taps, input, output) = match adjoint {
            false => (taps, axis.input, axis.output),
            true => (taps.adjoint(axis.input), axis.output, axis.input),
        };
        assert!(taps.starts.len() == output + 1 && taps.places.iter().all(|&place| place < input));
        let weights: Vec<T> = taps.weights.iter().map(|&w| T::from_f64(w)).collect();
        let regular = taps.count().filter(|count| matches!(count, 1 | 2 | 4)).map(|count| {
            let order = || (0..count).flat_map(|k| (0..output).map(move |i| i * count + k));
            Regular {
                count,
                places: order().map(|term| taps.places[term] as i32).collect(),
                weights: order().map(|term| weights[term]).collect(),
            }
        });
        let identity = input == output
            && taps.places.iter().copied().eq(0..input)
            && weights.iter().all(|&weight| weight == T::ONE);
        Sums { input, output, starts: taps.starts, places: taps.places, weights, regular, identity }
    }

    /// The terms of element `i`.
    fn terms(&self, i: usize) -> (&[usize], &[T]) {
        let range = self.starts[i]..self.starts[i + 1];
        (&self.places[range.clone()], &self.weights[range])
    }

    /// The average number of terms.
    fn density(&self) -> usize {
        if self.identity { 0 } else { self.places.len().div_ceil(self.output) }
    }

    /// `y[j]`, the sums of elements of `x`.
    fn of_elements(&self, x: &[T], y: &mut [T]) {
        assert!(x.len() == self.input && y.len() == self.output);
        match &self.regular {
            _ if self.identity => y.copy_from_slice(x),
            Some(regular) => pick(regular, x, y),
            None => gather_sums(&self.starts, &self.places, &self.weights, x, y),
        }
    }

    /// `y`, sum `i` of the rows of `x`, of which `first` is the number of the first.
    fn of_rows(&self, i: usize, first: usize, x: &[T], y: &mut [T]) {
        let (places, weights) = self.terms(i);
        let width = y.len();
        let row = |place: usize| &x[(place - first) * width..][..width];
        match *places {
            [] => y.fill(T::ZERO),
            [a] if weights[0] == T::ONE => y.copy_from_slice(row(a)),
            [a] => sum_of_rows::<T, 1>([row(a)], [weights[0]], false, y),
            [a, b] => {
                let rows = [row(a), row(b)];
                sum_of_rows::<T, 2>(rows, [weights[0], weights[1]], false, y);
            }
            _ => {
                let (fours, places) = places.as_chunks::<4>();
                let (fours_weights, weights) = weights.as_chunks::<4>();
                for (k, (places, weights)) in fours.iter().zip(fours_weights).enumerate() {
                    let [a, b, c, d] = *places;
                    let rows = [row(a), row(b), row(c), row(d)];
                    sum_of_rows::<T, 4>(rows, *weights, k > 0, y);
                }
                for (k, (&place, &weight)) in places.iter().zip(weights).enumerate() {
                    let add = k > 0 || !fours.is_empty();
                    sum_of_rows::<T, 1>([row(place)], [weight], add, y);
                }
            }
        }
    }
}

fn sum_of_rows<T: Float, const N: usize>(rows: [&[T]; N], weights: [T; N], add: bool, y: &mut [T]) {
    combine(&rows, &weights, add, y);
}

simd_fn! {
    /// `y (+)= Σ weights[k] rows[k]`
    fn combine<S: Simd, T: Float>(rows: &[&[T]], weights: &[T], add: bool, y: &mut [T]) {
        match (rows, weights) {
            (&[a], &[p]) => weigh::<S, T, 1>([a], [p], add, y),
            (&[a, b], &[p, q]) => weigh::<S, T, 2>([a, b], [p, q], add, y),
            (&[a, b, c, d], &[p, q, r, s]) => weigh::<S, T, 4>([a, b, c, d], [p, q, r, s], add, y),
            _ => unreachable!("1, 2 or 4 rows at a time"),
        }
    }

    fn pick<S: Simd, T: Float>(sums: &Regular<T>, x: &[T], y: &mut [T]) {
        match sums.count {
            1 => pick_of::<S, T, 1>(sums, x, y),
            2 => pick_of::<S, T, 2>(sums, x, y),
            _ => pick_of::<S, T, 4>(sums, x, y),
        }
    }

    fn gather_sums<S: Simd, T: Float>(starts: &[usize], places: &[usize], weights: &[T], x: &[T], y: &mut [T]) {
        for (y, range) in y.iter_mut().zip(starts.windows(2)) {
            let terms = places[range[0]..range[1]].iter().zip(&weights[range[0]..range[1]]);
            *y = terms.fold(T::ZERO, |sum, (&place, &weight)| x[place].mul_add::<S>(weight, sum));
        }
    }

    /// Sums along the middle one of three dimensions of `sizes`, each element of which is a vector of lanes.
    fn sums_of_lanes<S: Simd, T: Float>(
        starts: &[usize],
        places: &[usize],
        weights: &[T],
        sizes: [usize; 3],
        x: &[T],
        y: &mut [T]
    ) {
        let [blocks, input, width] = sizes;
        let output = starts.len() - 1;
        let (x, y) = (x.as_chunks::<LANES>().0, y.as_chunks_mut::<LANES>().0);
        for block in 0..blocks {
            for i in 0..output {
                let terms = starts[i]..starts[i + 1];
                let (places, weights) = (&places[terms.clone()], &weights[terms]);
                for j in 0..width {
                    let mut sums = [T::ZERO; LANES];
                    for (place, &weight) in places.iter().zip(weights) {
                        let from = &x[(block * input + place) * width + j];
                        for lane in 0..LANES {
                            sums[lane] = from[lane].mul_add::<S>(weight, sums[lane]);
                        }
                    }
                    y[(block * output + i) * width + j] = sums;
                }
            }
        }
    }

    /// The mean of each plane of `len` elements.
    fn means<S: Simd, T: Float>(len: usize, x: &[T], y: &mut [T]) {
        for (y, plane) in y.iter_mut().zip(x.chunks_exact(len)) {
            let mut total = 0.0;
            // Short sums of floats, and these in f64: as exact as one in f64.
            for part in plane.chunks(32 * LANES) {
                let mut lanes = [T::ZERO; LANES];
                let (blocks, rest) = part.as_chunks::<LANES>();
                for block in blocks {
                    for lane in 0..LANES {
                        lanes[lane] = lanes[lane] + block[lane];
                    }
                }
                let mut width = LANES;
                while width > 1 {
                    width /= 2;
                    for lane in 0..width {
                        lanes[lane] = lanes[lane] + lanes[lane + width];
                    }
                }
                // Not added to single lanes: these would have to leave their register for that.
                let rest = rest.iter().fold(T::ZERO, |sum, &v| sum + v);
                total += (lanes[0] + rest).to_f64();
            }
            *y = T::from_f64(total / len as f64);
        }
    }
}

#[inline(always)]
fn weigh<S: crate::simd::Simd, T: Float, const N: usize>(
    rows: [&[T]; N],
    weights: [T; N],
    add: bool,
    y: &mut [T],
) {
    let rows = rows.map(|row| &row[..y.len()]);
    for j in 0..y.len() {
        let mut sum = if add { y[j] } else { T::ZERO };
        for k in 0..N {
            sum = rows[k][j].mul_add::<S>(weights[k], sum);
        }
        y[j] = sum;
    }
}

#[inline(always)]
fn pick_of<S: crate::simd::Simd, T: Float, const N: usize>(sums: &Regular<T>, x: &[T], y: &mut [T]) {
    let len = y.len();
    let places: [&[i32]; N] = std::array::from_fn(|k| &sums.places[k * len..(k + 1) * len]);
    let weights: [&[T]; N] = std::array::from_fn(|k| &sums.weights[k * len..(k + 1) * len]);
    for j in 0..len {
        let mut sum = T::ZERO;
        for k in 0..N {
            // SAFETY: `Sums::new` has seen that every place lies within an input, and `of_elements` that `x` is as long.
            let value = unsafe { *x.get_unchecked(places[k][j] as usize) };
            sum = value.mul_add::<S>(weights[k][j], sum);
        }
        y[j] = sum;
    }
}

fn planes<T: Float + Real>(
    axes: &[Axis; 2],
    adjoint: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let count = inputs[0].layout.shape()[..2].iter().product();
    let (x, y) = (Dense::<T>::new(&inputs[0])?, RowsMut::<T>::new(&outputs[0]));
    if axes.iter().all(|axis| axis.filter == Filter::Mean && axis.output == 1) {
        whole_planes(axes[0].input * axes[1].input, adjoint, count, &x, &y);
        return Ok(());
    }
    let [rows, columns] = axes.each_ref().map(|axis| Sums::<T>::new(axis, adjoint));
    let (from, to) = (rows.input * columns.input, rows.output * columns.output);
    let irregular = rows.regular.is_none() || columns.regular.is_none();
    if irregular && count >= LANES && from.max(to) <= SMALL {
        side_by_side(&rows, &columns, count, &x, &y);
        return Ok(());
    }
    // What comes first works on what the other one has not made larger yet, or has made smaller.
    let columns_first = rows.input * columns.output * columns.density() * GATHER + to * rows.density();
    let rows_first = rows.output * columns.input * rows.density() + to * columns.density() * GATHER;
    let rows_first = rows_first < columns_first || columns.identity;
    // Blocks of rows: something for every thread, and never more between the passes than the cache holds.
    let most = (ROWS / columns.output).max(1);
    let block = rows.output.div_ceil(PIECES.div_ceil(count)).min(most).max(1);
    let blocks = rows.output.div_ceil(block);
    parallel::ranges(count * blocks, GRAIN_MATH.div_ceil(to / blocks + 1), |range| {
        let mut between = Vec::new();
        for task in range {
            let (plane, first) = (task / blocks, task % blocks * block);
            let x = x.row(plane, from);
            let wanted = first..rows.output.min(first + block);
            // SAFETY: these rows of the plane belong to this task.
            let y = unsafe { y.part(plane * to + first * columns.output, wanted.len() * columns.output) };
            let y = y.chunks_exact_mut(columns.output).zip(wanted.clone());
            if rows_first {
                between.resize(columns.input, T::ZERO);
                for (y, i) in y {
                    if columns.identity {
                        rows.of_rows(i, 0, x, y);
                    } else {
                        rows.of_rows(i, 0, x, &mut between);
                        columns.of_elements(&between, y);
                    }
                }
                continue;
            }
            let seen = &rows.places[rows.starts[wanted.start]..rows.starts[wanted.end]];
            let top = seen.iter().copied().min().unwrap_or(0);
            let bottom = seen.iter().copied().max().map_or(0, |last| last + 1);
            between.resize((bottom - top) * columns.output, T::ZERO);
            let x = x[top * columns.input..bottom * columns.input].chunks_exact(columns.input);
            for (x, between) in x.zip(between.chunks_exact_mut(columns.output)) {
                columns.of_elements(x, between);
            }
            y.for_each(|(y, i)| rows.of_rows(i, top, &between, y));
        }
    });
    Ok(())
}

/// At least [`LANES`] small planes, so many at a time: turned over such that each is a lane, all sums are those of vectors.
fn side_by_side<T: Float + Real>(
    rows: &Sums<T>,
    columns: &Sums<T>,
    count: usize,
    x: &Dense<T>,
    y: &RowsMut<T>,
) {
    /// Elements that turning planes over may write too much.
    const SLACK: usize = 8;
    let (from, to) = (rows.input * columns.input, rows.output * columns.output);
    let tiles = Tiles::<T>::new();
    let grain = GRAIN_MATH.div_ceil(from.max(to) * LANES);
    parallel::ranges(count.div_ceil(LANES), grain, |groups| {
        let mut turned = vec![T::ZERO; from.max(to) * LANES + SLACK];
        let mut between = vec![T::ZERO; rows.input * columns.output * LANES];
        let mut results = vec![T::ZERO; to * LANES + SLACK];
        for group in groups {
            // The last group overlaps the one before, whose planes are left to that.
            let first = (group * LANES).min(count - LANES);
            let skipped = group * LANES - first;
            let planes = &x.all()[first * from..][..LANES * from];
            // SAFETY: so many planes, and room for them.
            unsafe { tiles.transpose(from, LANES, planes.as_ptr(), from, turned.as_mut_ptr()) };
            sums_of_lanes(
                &columns.starts,
                &columns.places,
                &columns.weights,
                [rows.input, columns.input, 1],
                &turned,
                &mut between,
            );
            sums_of_lanes(
                &rows.starts,
                &rows.places,
                &rows.weights,
                [1, rows.input, columns.output],
                &between,
                &mut results,
            );
            // SAFETY: the results of all lanes, and room for them.
            unsafe { tiles.transpose(LANES, to, results.as_ptr(), LANES, turned.as_mut_ptr()) };
            // SAFETY: every plane belongs to one group.
            let y = unsafe { y.part((first + skipped) * to, (LANES - skipped) * to) };
            y.copy_from_slice(&turned[skipped * to..LANES * to]);
        }
    });
}

/// The mean of every plane, or its adjoint: an equal share for each of its elements.
fn whole_planes<T: Float>(len: usize, adjoint: bool, count: usize, x: &Dense<T>, y: &RowsMut<T>) {
    let share = T::from_f64(len as f64);
    parallel::ranges(count, GRAIN_MEMORY.div_ceil(len), |range| {
        if adjoint {
            // SAFETY: ranges of planes are disjoint.
            let y = unsafe { y.part(range.start * len, range.len() * len) };
            for (y, &x) in y.chunks_exact_mut(len).zip(&x.all()[range]) {
                y.fill(x / share);
            }
        } else {
            // SAFETY: ranges of planes are disjoint.
            let y = unsafe { y.part(range.start, range.len()) };
            means(len, &x.all()[range.start * len..range.end * len], y);
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::simd::for_each_level;
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::op::{Axis, Filter};
    use orkest_core::{DType, Op};

    fn filters() -> [Filter; 7] {
        let factor = None;
        [
            Filter::Nearest { factor, shift: 0.0 },
            Filter::Nearest { factor, shift: 0.5 },
            Filter::Linear { factor, align_corners: false },
            Filter::Linear { factor, align_corners: true },
            Filter::Cubic { factor, align_corners: false },
            Filter::Cubic { factor, align_corners: true },
            Filter::Mean,
        ]
    }

    /// The sums of both axes at once.
    fn definition(axes: &[Axis; 2], double: bool, x: &[f64], grad: &[f64]) -> [Vec<f64>; 2] {
        let [rows, columns] = axes.map(|axis| axis.taps(double));
        let [from, to] = [axes.map(|axis| axis.input), axes.map(|axis| axis.output)];
        let planes = x.len() / (from[0] * from[1]);
        let (mut y, mut dx) = (vec![0.0; planes * to[0] * to[1]], vec![0.0; x.len()]);
        for plane in 0..planes {
            for i in 0..to[0] {
                for j in 0..to[1] {
                    let at = (plane * to[0] + i) * to[1] + j;
                    for row in rows.starts[i]..rows.starts[i + 1] {
                        for column in columns.starts[j]..columns.starts[j + 1] {
                            let weight = rows.weights[row] * columns.weights[column];
                            let place =
                                (plane * from[0] + rows.places[row]) * from[1] + columns.places[column];
                            y[at] += weight * x[place];
                            dx[place] += weight * grad[at];
                        }
                    }
                }
            }
        }
        [y, dx]
    }

    fn check(draw: &mut Draw, [n, c]: [usize; 2], axes: [Axis; 2], lay: crate::testing::Lay) {
        let [from, to] = [axes.map(|axis| axis.input), axes.map(|axis| axis.output)];
        let (before, after) = ([n, c, from[0], from[1]], [n, c, to[0], to[1]]);
        let (x, grad) = (draw.values(before.iter().product()), draw.values(after.iter().product()));
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 3e-6)] {
            let [y, dx] = definition(&axes, dtype == DType::F64, &x, &grad);
            let what = format!("{dtype} {lay:?} {axes:?}");
            let [x, grad] = [Data::laid(lay, dtype, &before, &x), Data::laid(lay, dtype, &after, &grad)];
            let out = run(&Op::Resample { axes, adjoint: false }, &[&x], &[(&after, dtype)]).unwrap();
            assert_close(&out[0].values(), &y, tolerance, &what);
            let out = run(&Op::Resample { axes, adjoint: true }, &[&grad], &[(&before, dtype)]).unwrap();
            assert_close(&out[0].values(), &dx, tolerance, &format!("gradient, {what}"));
        }
    }

    #[test]
    fn planes_and_their_gradients_follow_their_definition() {
        let mut draw = Draw(3);
        let sizes = [
            ([1, 1], [1, 1]),
            ([3, 2], [4, 5]),
            ([7, 9], [3, 4]),
            ([1, 6], [1, 11]),
            ([6, 40], [9, 40]),
            ([5, 7], [1, 1]),
        ];
        for filter in filters() {
            for (from, to) in sizes {
                let axes = [0, 1].map(|d| Axis { input: from[d], output: to[d], filter });
                for lay in LAYS {
                    check(&mut draw, [2, 3], axes, lay);
                    // Enough planes to be computed side by side.
                    check(&mut draw, [2, 11], axes, lay);
                }
                for_each_level(|_| check(&mut draw, [1, 35], axes, LAYS[0]));
            }
        }
    }

    #[test]
    fn large_planes_are_cut_into_blocks_that_do_not_show() {
        let mut draw = Draw(4);
        for filter in filters() {
            for (from, to) in [([150, 130], [67, 300]), ([60, 70], [400, 120])] {
                let axes = [0, 1].map(|d| Axis { input: from[d], output: to[d], filter });
                for_each_level(|_| check(&mut draw, [1, 1], axes, LAYS[0]));
            }
        }
    }

    #[test]
    fn the_nearest_element_is_copied_whatever_it_is() {
        let filter = Filter::Nearest { factor: None, shift: 0.0 };
        let axes = [2, 3].map(|output| Axis { input: 1, output, filter });
        for value in [f64::INFINITY, f64::NAN, f64::MIN_POSITIVE] {
            let x = Data::new(DType::F64, &[1, 1, 1, 1], &[value]);
            let y =
                run(&Op::Resample { axes, adjoint: false }, &[&x], &[(&[1, 1, 2, 3], DType::F64)]).unwrap();
            assert!(y[0].values().iter().all(|y| y.to_bits() == value.to_bits()), "{value}");
        }
    }
}
