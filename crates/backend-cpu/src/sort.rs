//! Sorting and the best `k`, lane by lane.
//!
//! Elements become unsigned keys in the wanted order, paired with their positions: sorting those needs no comparison function and is
//! stable because no two are equal.

use crate::indexing::position;
use crate::memory::{self, SyncPtr};
use crate::parallel;
use orkest_core::{DType, Layout, MAX_RANK, Output, Result, View, bf16, f16, with_dtype};

pub(crate) fn sort(dim: usize, descending: bool, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    with_dtype!(inputs[0].dtype, T => lanes::<T>(dim, descending, None, &inputs[0], outputs));
    Ok(())
}

pub(crate) fn top_k(
    k: usize,
    dim: usize,
    largest: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    with_dtype!(inputs[0].dtype, T => lanes::<T>(dim, largest, Some(k), &inputs[0], outputs));
    Ok(())
}

/// A number in the order of the elements: NaN is the largest and all NaNs are equal, as are the two zeros.
trait Key: Copy + Send + Sync {
    fn key(self) -> u64;
    /// Keys have no more than 32 bits.
    const SHORT: bool;
}

macro_rules! integer_key {
    ($($t:ty, $short:literal: $x:ident => $key:expr;)*) => {$(
        impl Key for $t {
            const SHORT: bool = $short;
            #[inline(always)]
            fn key(self) -> u64 {
                let $x = self;
                $key
            }
        }
    )*};
}
integer_key! {
    bool, true: x => x as u64;
    u8, true: x => x as u64;
    i32, true: x => (x as u32 ^ (1 << 31)) as u64;
    i64, false: x => x as u64 ^ (1 << 63);
    f16, true: x => x.to_f32().key();
    bf16, true: x => x.to_f32().key();
}

macro_rules! float_key {
    ($t:ty, $bits:ty, $short:literal) => {
        impl Key for $t {
            const SHORT: bool = $short;
            #[inline(always)]
            fn key(self) -> u64 {
                if self.is_nan() {
                    return <$bits>::MAX as u64;
                }
                // Adding zero makes the negative zero positive. Negative numbers sort backwards by their bits.
                let bits = (self + 0.0).to_bits();
                let sign = <$bits>::MAX / 2 + 1;
                (if bits & sign != 0 { !bits } else { bits | sign }) as u64
            }
        }
    };
}
float_key!(f32, u32, true);
float_key!(f64, u64, false);

/// A lane's keys with positions, sorted as far as wanted.
fn order<E: Ord + Copy>(entries: &mut [E], best: Option<usize>) {
    match best {
        Some(k) if k < entries.len() => {
            entries.select_nth_unstable(k - 1);
            entries[..k].sort_unstable();
        }
        _ => entries.sort_unstable(),
    }
}

/// Elements that are compared with the best so far at once.
const BLOCK: usize = 64;

/// A key with its position, which decides between equals.
fn entry(key: u32, position: usize) -> u64 {
    (key as u64) << 32 | position as u64
}

/// A few of the elements `0..length`, the `k` with the smallest keys among them: most are found at a glance to be no better than
/// what there is already.
#[inline(always)]
fn candidates(length: usize, k: usize, key: impl Fn(usize) -> u32, found: &mut Vec<u64>) {
    let enough = 2 * k + BLOCK;
    // A later element has to come before all of this key; at first everything does.
    let mut last_wanted = u32::MAX;
    for start in (0..length).step_by(BLOCK) {
        let count = BLOCK.min(length - start);
        let mut keys = [u32::MAX; BLOCK];
        keys[..count].iter_mut().enumerate().for_each(|(i, slot)| *slot = key(start + i));
        let keys = &keys[..count];
        if !keys.iter().fold(false, |any, key| any | (*key <= last_wanted)) {
            continue;
        }
        let wanted = keys.iter().enumerate().filter(|(_, key)| **key <= last_wanted);
        found.extend(wanted.map(|(i, key)| entry(*key, start + i)));
        if found.len() >= enough {
            let worst = *found.select_nth_unstable(k - 1).1 >> 32;
            found.truncate(k);
            // Of equals the earlier comes first, so what is wanted from here on is smaller.
            match (worst as u32).checked_sub(1) {
                Some(smaller) => last_wanted = smaller,
                None => return,
            }
        }
    }
}

fn lanes<T: Key>(dim: usize, descending: bool, best: Option<usize>, x: &View<'_>, outputs: &[Output]) {
    let (values, positions) = (&outputs[0], &outputs[1]);
    debug_assert_eq!(positions.dtype, DType::I64);
    let length = x.layout.shape()[dim];
    let kept = best.unwrap_or(length);
    let from = SyncPtr::new(memory::input_ptr::<T>(x).cast_mut());
    let to = SyncPtr::new(memory::output_ptr::<T>(values));
    let to_positions = SyncPtr::new(memory::output_ptr::<i64>(positions));
    let [x_lanes, y_lanes, p_lanes] = [x.layout, &values.layout, &positions.layout].map(|l| without(l, dim));
    let [x_step, y_step, p_step] = [x.layout, &values.layout, &positions.layout].map(|l| l.strides()[dim]);
    parallel::ranges(x_lanes.numel(), 2048usize.div_ceil(length), |range| {
        let mut short: Vec<u64> = Vec::new();
        let mut long: Vec<(u64, usize)> = Vec::new();
        for lane in range {
            let start = position(&x_lanes, lane);
            let (y_start, p_start) = (position(&y_lanes, lane), position(&p_lanes, lane));
            let element = |i: usize| start + i as isize * x_step;
            let put = |place: usize, i: usize| {
                let place = place as isize;
                // SAFETY: elements of this lane, which belongs to this task.
                unsafe {
                    *to.at(y_start + place * y_step) = *from.at(element(i));
                    *to_positions.at(p_start + place * p_step) = i as i64;
                }
            };
            // SAFETY: elements of the input.
            let keys = (0..length).map(|i| unsafe { *from.at(element(i)) }.key());
            if T::SHORT && length <= u32::MAX as usize {
                let flip = if descending { u32::MAX } else { 0 };
                short.clear();
                match best {
                    Some(k) if (1..=length / 16).contains(&k) => {
                        // SAFETY: an element of the input.
                        let key = |i: usize| unsafe { *from.at(element(i)) }.key() as u32 ^ flip;
                        candidates(length, k, key, &mut short);
                    }
                    _ => short.extend(keys.enumerate().map(|(i, key)| entry(key as u32 ^ flip, i))),
                }
                order(&mut short, best);
                short[..kept]
                    .iter()
                    .enumerate()
                    .for_each(|(place, entry)| put(place, *entry as u32 as usize));
            } else {
                let flip = if descending { u64::MAX } else { 0 };
                long.clear();
                long.extend(keys.enumerate().map(|(i, key)| (key ^ flip, i)));
                order(&mut long, best);
                long[..kept].iter().enumerate().for_each(|(place, entry)| put(place, entry.1));
            }
        }
    });
}

/// The layout of the first elements along `dim`.
fn without(layout: &Layout, dim: usize) -> Layout {
    let mut strides = [0; MAX_RANK];
    let rest = layout.strides().iter().enumerate().filter(|(d, _)| *d != dim);
    rest.zip(&mut strides).for_each(|((_, stride), s)| *s = *stride);
    Layout::new(layout.shape().without(dim), &strides[..layout.rank() - 1], layout.offset())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, run};
    use orkest_core::{DType, Op};
    use std::cmp::Ordering;

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    fn same(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
    }

    /// NaN above everything, equal to itself.
    fn compare(a: f64, b: f64) -> Ordering {
        a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    }

    #[test]
    fn special_values_sort_as_in_pytorch() {
        // torch.sort(torch.tensor([nan, 1., -inf, 0., -0., inf, nan, -2.]), stable=True)
        let x = [NAN, 1.0, -INF, 0.0, -0.0, INF, NAN, -2.0];
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let x = Data::new(dtype, &[8], &x);
            let outputs: [(&[usize], DType); 2] = [(&[8], dtype), (&[8], DType::I64)];
            let y = run(&Op::Sort { dim: 0, descending: false }, &[&x], &outputs).unwrap();
            assert!(same(&y[0].values(), &[-INF, -2.0, 0.0, -0.0, 1.0, INF, NAN, NAN]));
            assert_eq!(y[1].values(), [2.0, 7.0, 3.0, 4.0, 1.0, 5.0, 0.0, 6.0]);
            let y = run(&Op::Sort { dim: 0, descending: true }, &[&x], &outputs).unwrap();
            assert_eq!(y[1].values(), [0.0, 6.0, 5.0, 1.0, 3.0, 4.0, 7.0, 2.0]);
            let outputs: [(&[usize], DType); 2] = [(&[3], dtype), (&[3], DType::I64)];
            let y = run(&Op::TopK { k: 3, dim: 0, largest: true }, &[&x], &outputs).unwrap();
            assert!(same(&y[0].values(), &[NAN, NAN, INF]));
            let y = run(&Op::TopK { k: 3, dim: 0, largest: false }, &[&x], &outputs).unwrap();
            assert_eq!(y[0].values(), [-INF, -2.0, 0.0]);
            assert_eq!(y[1].values(), [2.0, 7.0, 3.0]);
        }
    }

    #[test]
    fn the_best_of_long_lanes_are_those_of_a_stable_sort() {
        let mut draw = Draw(2);
        let n = 3000;
        for (what, limit) in [("many equal", 5), ("few equal", 100_000)] {
            for order in ["drawn", "rising", "falling"] {
                let mut x: Vec<f64> = (0..n).map(|_| draw.below(limit) as f64).collect();
                match order {
                    "rising" => x.sort_by(|a, b| compare(*a, *b)),
                    "falling" => x.sort_by(|a, b| compare(*b, *a)),
                    _ => {}
                }
                for (largest, k) in [(true, 1), (false, 7), (true, 50), (false, n / 16), (true, n / 16 + 1)] {
                    let mut expected: Vec<usize> = (0..n).collect();
                    expected
                        .sort_by(|&a, &b| if largest { compare(x[b], x[a]) } else { compare(x[a], x[b]) });
                    let outputs: [(&[usize], DType); 2] = [(&[k], DType::F32), (&[k], DType::I64)];
                    let op = Op::TopK { k, dim: 0, largest };
                    let y = run(&op, &[&Data::new(DType::F32, &[n], &x)], &outputs).unwrap();
                    let expected: Vec<f64> = expected[..k].iter().map(|&i| i as f64).collect();
                    assert!(y[1].values() == expected, "{what}, {order}, largest {largest}, k {k}");
                }
            }
        }
    }

    #[test]
    fn lanes_of_every_dtype_and_layout_are_sorted_stably() {
        let mut draw = Draw(1);
        for dtype in DType::ALL {
            for lay in LAYS {
                for shape in [[1, 9, 1], [3, 40, 5], [2, 1, 7], [70, 60, 50]] {
                    if shape[0] == 70 && dtype != DType::F32 {
                        continue;
                    }
                    for dim in 0..3 {
                        let count = shape.iter().product();
                        // Few distinct values, so that many are equal.
                        let offset = if matches!(dtype, DType::U8 | DType::Bool) { 0.0 } else { 3.0 };
                        let limit = if dtype == DType::Bool { 2 } else { 7 };
                        let values: Vec<f64> =
                            (0..count).map(|_| draw.below(limit) as f64 - offset).collect();
                        let x = Data::laid(lay, dtype, &shape, &values);
                        let inner: usize = shape[dim + 1..].iter().product();
                        for descending in [false, true] {
                            for k in [shape[dim], shape[dim].div_ceil(3)] {
                                let mut y_shape = shape;
                                y_shape[dim] = k;
                                let mut expected = vec![0.0; y_shape.iter().product()];
                                let mut places = expected.clone();
                                for outer in 0..shape[..dim].iter().product() {
                                    for j in 0..inner {
                                        let element = |i: usize| values[(outer * shape[dim] + i) * inner + j];
                                        let mut order: Vec<usize> = (0..shape[dim]).collect();
                                        order.sort_by(|&a, &b| match descending {
                                            false => compare(element(a), element(b)),
                                            true => compare(element(b), element(a)),
                                        });
                                        for (place, &i) in order[..k].iter().enumerate() {
                                            expected[(outer * k + place) * inner + j] = element(i);
                                            places[(outer * k + place) * inner + j] = i as f64;
                                        }
                                    }
                                }
                                let op = if k == shape[dim] {
                                    Op::Sort { dim, descending }
                                } else {
                                    Op::TopK { k, dim, largest: descending }
                                };
                                let y =
                                    run(&op, &[&x], &[(&y_shape, dtype), (&y_shape, DType::I64)]).unwrap();
                                assert!(y[0].values() == expected, "{op:?} {dtype} {lay:?} {shape:?}");
                                assert!(y[1].values() == places, "{op:?} {dtype} {lay:?} {shape:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
