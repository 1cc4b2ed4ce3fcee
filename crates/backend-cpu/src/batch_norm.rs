//! Batch norm: each channel is read twice for its statistics and once to be scaled, while it lies in the cache.
//!
//! A channel is computed by one thread, so that results do not depend on their number. Where a channel has one element in each
//! image, all channels are computed together: `features`.

use crate::chunks::GRAIN_MATH;
use crate::math::Float;
use crate::memory::Scratch;
use crate::norm::gradient_rows;
use crate::parallel;
use crate::rows::{Dense, RowsMut, sum_lanes, sum_of};
use crate::simd::simd_fn;
use orkest_core::{DType, Output, Result, View};

mod features;

pub(crate) fn batch_norm(
    eps: f64,
    weight: bool,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => batch_norm_as::<f64>(eps, weight, bias, inputs, outputs),
        _ => batch_norm_as::<f32>(eps, weight, bias, inputs, outputs),
    }
}

pub(crate) fn batch_norm_grad(
    eps: f64,
    weight: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => batch_norm_grad_as::<f64>(eps, weight, inputs, outputs),
        _ => batch_norm_grad_as::<f32>(eps, weight, inputs, outputs),
    }
}

/// [`orkest_core::Op::ScaleChannels`]
pub(crate) fn scale_channels(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => scale_channels_as::<f64>(inputs, outputs),
        _ => scale_channels_as::<f32>(inputs, outputs),
    }
}

fn scale_channels_as<T: Float>(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let planes = Planes::of(&inputs[0]);
    let [x, scale, shift] = [0, 1, 2].map(|i| Dense::<T>::new(&inputs[i]));
    let (x, scale, shift, y) = (x?, scale?, shift?, RowsMut::<T>::new(&outputs[0]));
    let (size, channels) = (planes.size, planes.channels);
    if size == 1 {
        parallel::ranges(planes.images, GRAIN_MATH.div_ceil(channels), |range| {
            for i in range {
                // SAFETY: every image belongs to one range.
                let y = unsafe { y.row(i, channels) };
                scale_elements(x.row(i, channels), scale.all(), shift.all(), y);
            }
        });
        return Ok(());
    }
    parallel::ranges(planes.images * channels, GRAIN_MATH.div_ceil(size), |range| {
        for i in range {
            let (scale, shift) = (scale.all()[i % channels], shift.all()[i % channels]);
            // SAFETY: every plane belongs to one range.
            scale_plane(x.row(i, size), scale, shift, unsafe { y.row(i, size) });
        }
    });
    Ok(())
}

simd_fn! {
    fn scale_plane<S: Simd, T: Float>(x: &[T], scale: T, shift: T, y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x.mul_add::<S>(scale, shift);
        }
    }

    fn scale_elements<S: Simd, T: Float>(x: &[T], scale: &[T], shift: &[T], y: &mut [T]) {
        for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
            *y = x.mul_add::<S>(scale, shift);
        }
    }
}

/// [`orkest_core::Op::ScaleChannelsGrad`]
pub(crate) fn scale_channels_grad(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    match inputs[0].dtype {
        DType::F64 => scale_channels_grad_as::<f64>(inputs, outputs),
        _ => scale_channels_grad_as::<f32>(inputs, outputs),
    }
}

fn scale_channels_grad_as<T: Float>(inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let Planes { images, channels, size } = Planes::of(&inputs[0]);
    let [x, scale, g] = [0, 1, 2].map(|i| Dense::<T>::new(&inputs[i]));
    let (x, scale, g) = (x?, scale?, g?);
    let dx = RowsMut::<T>::new(&outputs[0]);
    if size == 1 {
        return gradient_rows(images, channels, &outputs[1..], |i, sums| {
            let (x, g) = (x.row(i, channels), g.row(i, channels));
            let [dscale, dshift] = sums else { unreachable!("two sums") };
            // SAFETY: every image belongs to one task.
            scale_elements_grad(x, scale.all(), g, unsafe { dx.row(i, channels) }, dscale, dshift);
        });
    }
    let planes = images * channels;
    let sums = Scratch::<[f64; 2]>::new(planes)?;
    let at = sums.sync_ptr();
    parallel::ranges(planes, GRAIN_MATH.div_ceil(size), |range| {
        for i in range {
            let scale = scale.all()[i % channels];
            // SAFETY: every plane, and its place among the sums, belongs to one range.
            unsafe {
                *at.at(i as isize) = scale_plane_grad(x.row(i, size), scale, g.row(i, size), dx.row(i, size));
            }
        }
    });
    // SAFETY: all sums have been written.
    let sums = unsafe { std::slice::from_raw_parts(at.get(), planes) };
    for k in 0..2 {
        let total = |c: usize| sums[c..].iter().step_by(channels).map(|sums| sums[k]).sum::<f64>();
        let to = RowsMut::<T>::new(&outputs[1 + k]);
        // SAFETY: nobody else has these outputs.
        let to = unsafe { to.row(0, channels) };
        to.iter_mut().enumerate().for_each(|(c, to)| *to = T::from_f64(total(c)));
    }
    Ok(())
}

simd_fn! {
    /// `dx = g scale`; gives `Σ g x` and `Σ g`, each from sums of what stays in the first-level cache.
    fn scale_plane_grad<S: Simd, T: Float>(x: &[T], scale: T, g: &[T], dx: &mut [T]) -> [f64; 2] {
        const PIECE: usize = 1024;
        let mut sums = [0.0; 2];
        for ((x, g), dx) in x.chunks(PIECE).zip(g.chunks(PIECE)).zip(dx.chunks_mut(PIECE)) {
            dx.iter_mut().zip(g).for_each(|(dx, &g)| *dx = g * scale);
            sums[0] += sum_lanes([x, g], |sum, [x, g]| g.mul_add::<S>(x, sum)).to_f64();
            sums[1] += sum_of(g).to_f64();
        }
        sums
    }

    /// `dx = g scale`, `dscale += g x`, `dshift += g`
    fn scale_elements_grad<S: Simd, T: Float>(
        x: &[T],
        scale: &[T],
        g: &[T],
        dx: &mut [T],
        dscale: &mut [T],
        dshift: &mut [T]
    ) {
        let sums = dscale.iter_mut().zip(dshift);
        for ((((dx, &x), &scale), &g), (dscale, dshift)) in dx.iter_mut().zip(x).zip(scale).zip(g).zip(sums) {
            *dx = g * scale;
            *dscale = g.mul_add::<S>(x, *dscale);
            *dshift = *dshift + g;
        }
    }
}

/// Planes below this size are copied together, so that loops run over all images at once.
const SHORT: usize = 64;

/// `[n, c, s]`
#[derive(Clone, Copy)]
struct Planes {
    images: usize,
    channels: usize,
    size: usize,
}

/// The elements of a channel: `count` slices of `size`, `stride` apart.
#[derive(Clone, Copy)]
struct Channel {
    start: usize,
    stride: usize,
    size: usize,
    count: usize,
}

impl Planes {
    fn of(view: &View<'_>) -> Planes {
        let [images, channels, size] = **view.layout.shape() else { unreachable!("the input is [n, c, s]") };
        Planes { images, channels, size }
    }

    /// Elements of a channel.
    fn len(self) -> usize {
        self.images * self.size
    }

    fn channel(self, c: usize) -> Channel {
        Channel {
            start: c * self.size,
            stride: self.channels * self.size,
            size: self.size,
            count: self.images,
        }
    }

    fn are_short(self) -> bool {
        self.size < SHORT && self.images > 1
    }

    /// The channels of an image lie side by side.
    fn are_features(self) -> bool {
        self.size == 1 && self.channels >= features::FEWEST
    }

    /// Room for a copy of a channel, if there are to be copies.
    fn room<T: Float>(self) -> Vec<T> {
        vec![T::ZERO; if self.are_short() { self.len() } else { 0 }]
    }

    /// The channel in `x`, or in `copy` where its planes are short.
    fn read<'a, T: Float>(self, c: usize, x: &'a [T], copy: &'a mut [T]) -> (Channel, &'a [T]) {
        let channel = self.channel(c);
        if !self.are_short() {
            return (channel, x);
        }
        for (to, from) in copy.chunks_exact_mut(self.size).zip(channel.slices(x)) {
            to.copy_from_slice(from);
        }
        (Channel { start: 0, stride: self.len(), size: self.len(), count: 1 }, copy)
    }

    /// Calls `write` with the channel's slices in the output, by their number.
    ///
    /// # Safety
    /// Nobody else has this channel of the output at the same time.
    unsafe fn write<T: Float>(
        self,
        c: usize,
        y: &RowsMut<T>,
        copy: &mut [T],
        write: impl Fn(usize, &mut [T]),
    ) {
        let channel = self.channel(c);
        if self.are_short() {
            write(0, copy);
        }
        for i in 0..channel.count {
            // SAFETY: the caller's promise.
            let to = unsafe { y.part(channel.start + i * channel.stride, channel.size) };
            if self.are_short() {
                to.copy_from_slice(&copy[i * self.size..(i + 1) * self.size]);
            } else {
                write(i, to);
            }
        }
    }
}

impl Channel {
    fn slice<T>(self, i: usize, x: &[T]) -> &[T] {
        &x[self.start + i * self.stride..][..self.size]
    }

    fn slices<T>(self, x: &[T]) -> impl Iterator<Item = &[T]> {
        (0..self.count).map(move |i| self.slice(i, x))
    }
}

/// The weight or bias, if there is one: the next of `inputs`.
fn next_of<T: Float>(inputs: &mut std::slice::Iter<'_, View<'_>>, there: bool) -> Result<Option<Dense<T>>> {
    if there { inputs.next().map(Dense::new).transpose() } else { Ok(None) }
}

fn batch_norm_as<T: Float>(
    eps: f64,
    weight: bool,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let planes = Planes::of(&inputs[0]);
    if planes.are_features() {
        return features::batch_norm::<T>(
            [planes.images, planes.channels],
            eps,
            weight,
            bias,
            inputs,
            outputs,
        );
    }
    let x = Dense::<T>::new(&inputs[0])?;
    let mut rest = inputs[1..].iter();
    let (weight, bias) = (next_of::<T>(&mut rest, weight)?, next_of::<T>(&mut rest, bias)?);
    let [y, means, variances] = [0, 1, 2].map(|i| RowsMut::<T>::new(&outputs[i]));
    let count = planes.len() as f64;
    parallel::ranges(planes.channels, (GRAIN_MATH / planes.len()).max(1), |range| {
        let (mut from, mut to) = (planes.room::<T>(), planes.room::<T>());
        for c in range {
            let (channel, x) = planes.read(c, x.all(), &mut from);
            let total: f64 = channel.slices(x).map(|x| sum(x).to_f64()).sum();
            let mean = T::from_f64(total / count);
            let squares: f64 = channel.slices(x).map(|x| squares(x, mean).to_f64()).sum();
            let variance = squares / count;
            let parameter = |p: &Option<Dense<T>>, default| p.as_ref().map_or(default, |p| p.all()[c]);
            let scale = T::from_f64(1.0 / (variance + eps).sqrt()) * parameter(&weight, T::ONE);
            let shift = parameter(&bias, T::ZERO);
            // SAFETY: every channel belongs to one range.
            unsafe {
                (means.row(c, 1)[0], variances.row(c, 1)[0]) = (mean, T::from_f64(variance));
                planes.write(c, &y, &mut to, |i, y| {
                    scale_and_shift(channel.slice(i, x), mean, scale, shift, y);
                });
            }
        }
    });
    Ok(())
}

fn batch_norm_grad_as<T: Float>(
    eps: f64,
    weight: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let planes = Planes::of(&inputs[0]);
    if planes.are_features() {
        return features::batch_norm_grad::<T>(
            [planes.images, planes.channels],
            eps,
            weight,
            inputs,
            outputs,
        );
    }
    let [x, mean, variance] = [0, 1, 2].map(|i| Dense::<T>::new(&inputs[i]));
    let (x, mean, variance) = (x?, mean?, variance?);
    let weight = next_of::<T>(&mut inputs[3..].iter(), weight)?;
    let g = Dense::<T>::new(&inputs[inputs.len() - 1])?;
    let [dx, dw, db] = [0, 1, 2].map(|i| RowsMut::<T>::new(&outputs[i]));
    let count = planes.len() as f64;
    parallel::ranges(planes.channels, (GRAIN_MATH / planes.len()).max(1), |range| {
        let (mut from, mut above, mut to) = (planes.room::<T>(), planes.room::<T>(), planes.room::<T>());
        for c in range {
            let (channel, x) = planes.read(c, x.all(), &mut from);
            let (_, g) = planes.read(c, g.all(), &mut above);
            let mean = mean.all()[c];
            let rstd = 1.0 / (variance.all()[c].to_f64() + eps).sqrt();
            let total: f64 = channel.slices(g).map(|g| sum(g).to_f64()).sum();
            let along: f64 = (0..channel.count)
                .map(|i| products(channel.slice(i, x), mean, channel.slice(i, g)).to_f64())
                .sum();
            let scale = T::from_f64(rstd) * weight.as_ref().map_or(T::ONE, |w| w.all()[c]);
            let (average, slope) = (T::from_f64(total / count), T::from_f64(rstd * rstd * along / count));
            // SAFETY: every channel belongs to one range.
            unsafe {
                (dw.row(c, 1)[0], db.row(c, 1)[0]) = (T::from_f64(rstd * along), T::from_f64(total));
                planes.write(c, &dx, &mut to, |i, dx| {
                    gradient(channel.slice(i, x), mean, slope, channel.slice(i, g), average, scale, dx);
                });
            }
        }
    });
    Ok(())
}

simd_fn! {
    fn sum<S: Simd, T: Float>(x: &[T]) -> T {
        sum_of(x)
    }

    /// `Σ (x - mean)²`
    fn squares<S: Simd, T: Float>(x: &[T], mean: T) -> T {
        sum_lanes([x], |sum, [x]| (x - mean).mul_add::<S>(x - mean, sum))
    }

    /// `Σ g (x - mean)`
    fn products<S: Simd, T: Float>(x: &[T], mean: T, g: &[T]) -> T {
        sum_lanes([x, g], |sum, [x, g]| g.mul_add::<S>(x - mean, sum))
    }

    /// `y = (x - mean) scale + shift`
    fn scale_and_shift<S: Simd, T: Float>(x: &[T], mean: T, scale: T, shift: T, y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - mean).mul_add::<S>(scale, shift);
        }
    }

    /// `dx = (g - average - (x - mean) slope) scale`
    fn gradient<S: Simd, T: Float>(x: &[T], mean: T, slope: T, g: &[T], average: T, scale: T, dx: &mut [T]) {
        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
            *dx = (g - average - (x - mean) * slope) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Data, Draw, LAYS, assert_close, run};
    use orkest_core::{DType, Op};

    const EPS: f64 = 1e-3;

    /// `norm(x [n, c, s]) w + b` by its definition.
    fn definition([n, c, s]: [usize; 3], x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let of = |i: usize| i / s % c;
        let count = (n * s) as f64;
        let (mut mean, mut var) = (vec![0.0; c], vec![0.0; c]);
        x.iter().enumerate().for_each(|(i, x)| mean[of(i)] += x / count);
        x.iter().enumerate().for_each(|(i, x)| var[of(i)] += (x - mean[of(i)]).powi(2) / count);
        let scaled =
            |(i, x): (usize, &f64)| (x - mean[of(i)]) / (var[of(i)] + EPS).sqrt() * w[of(i)] + b[of(i)];
        x.iter().enumerate().map(scaled).collect()
    }

    /// The slopes of `Σ g f(values)`.
    fn differences(values: &[f64], g: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let objective = |i: usize, by: f64| {
            let mut moved = values.to_vec();
            moved[i] += by;
            f(&moved).iter().zip(g).map(|(y, g)| y * g).sum::<f64>()
        };
        (0..values.len()).map(|i| (objective(i, 1e-5) - objective(i, -1e-5)) / 2e-5).collect()
    }

    #[test]
    fn channels_are_scaled_and_shifted() {
        let mut draw = Draw(11);
        for shape in [[1, 1, 1], [5, 7, 1], [2, 3, 4], [3, 2, 130]] {
            let [n, c, size] = shape;
            let (x, scale, shift) = (draw.values(n * c * size), draw.values(c), draw.values(c));
            let channel = |i: usize| i / size % c;
            let expected: Vec<f64> =
                x.iter().enumerate().map(|(i, x)| x * scale[channel(i)] + shift[channel(i)]).collect();
            for (dtype, tolerance) in [(DType::F64, 1e-15), (DType::F32, 1e-6)] {
                for lay in LAYS {
                    let x = Data::laid(lay, dtype, &shape, &x);
                    let [scale, shift] = [&scale, &shift].map(|v| Data::laid(lay, dtype, &[c], v));
                    let y = run(&Op::ScaleChannels, &[&x, &scale, &shift], &[(&shape, dtype)]).unwrap();
                    assert_close(&y[0].values(), &expected, tolerance, &format!("{shape:?} {dtype} {lay:?}"));
                }
            }
        }
    }

    #[test]
    fn gradients_of_scaled_channels_follow_the_definition() {
        let mut draw = Draw(12);
        for shape in [[1, 1, 1], [200, 7, 1], [2, 3, 4], [3, 2, 1130]] {
            let [n, c, size] = shape;
            let (x, scale, g) = (draw.values(n * c * size), draw.values(c), draw.values(n * c * size));
            let channel = |i: usize| i / size % c;
            let dx: Vec<f64> = g.iter().enumerate().map(|(i, g)| g * scale[channel(i)]).collect();
            let (mut dscale, mut dshift) = (vec![0.0; c], vec![0.0; c]);
            for (i, (x, g)) in x.iter().zip(&g).enumerate() {
                dscale[channel(i)] += x * g;
                dshift[channel(i)] += g;
            }
            for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5)] {
                for lay in LAYS {
                    let [x, g] = [&x, &g].map(|v| Data::laid(lay, dtype, &shape, v));
                    let scale = Data::laid(lay, dtype, &[c], &scale);
                    let outputs: [(&[usize], DType); 3] = [(&shape, dtype), (&[c], dtype), (&[c], dtype)];
                    let got = run(&Op::ScaleChannelsGrad, &[&x, &scale, &g], &outputs).unwrap();
                    for (got, expected) in got.iter().zip([&dx, &dscale, &dshift]) {
                        assert_close(
                            &got.values(),
                            expected,
                            tolerance,
                            &format!("{shape:?} {dtype} {lay:?}"),
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn values_and_gradients_follow_the_definition() {
        let mut draw = Draw(6);
        // Single values of few and of many channels, short planes, long ones; one image and several.
        for (sizes @ [n, c, s], lay) in [[5, 3, 1], [5, 9, 1], [300, 9, 1], [3, 2, 7], [2, 3, 70], [1, 2, 9]]
            .into_iter()
            .flat_map(|d| LAYS.map(|lay| (d, lay)))
        {
            let (x, g) = (draw.values(n * c * s), draw.values(n * c * s));
            let (w, b) = (draw.values(c), draw.values(c));
            let full = (&[n, c, s][..], DType::F64);
            let channels = (&[c][..], DType::F64);
            let [xs, gs] = [&x, &g].map(|v| Data::laid(lay, DType::F64, &sizes, v));
            let [ws, bs] = [&w, &b].map(|v| Data::laid(lay, DType::F64, &[c], v));
            let op = Op::BatchNorm { eps: EPS, weight: true, bias: true };
            let out = run(&op, &[&xs, &ws, &bs], &[full, channels, channels]).unwrap();
            let what = format!("{sizes:?} {lay:?}");
            assert_close(&out[0].values(), &definition(sizes, &x, &w, &b), 1e-12, &what);
            let op = Op::BatchNormGrad { eps: EPS, weight: true };
            let grads = run(&op, &[&xs, &out[1], &out[2], &ws, &gs], &[full, channels, channels]).unwrap();
            let dx = differences(&x, &g, |x| definition(sizes, x, &w, &b));
            let dw = differences(&w, &g, |w| definition(sizes, &x, w, &b));
            let db = differences(&b, &g, |b| definition(sizes, &x, &w, b));
            for (got, expected) in grads.iter().zip([dx, dw, db]) {
                assert_close(&got.values(), &expected, 1e-6, &what);
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_hide_the_variance() {
        let (n, s) = (4, 1000);
        let x: Vec<f64> = Draw(7).values(n * s).iter().map(|v| 1000.0 + (v * 64.0).round() / 64.0).collect();
        let op = Op::BatchNorm { eps: 0.0, weight: false, bias: false };
        let channels = (&[1][..], DType::F32);
        let xs = Data::new(DType::F32, &[n, 1, s], &x);
        let out = run(&op, &[&xs], &[(&[n, 1, s][..], DType::F32), channels, channels]).unwrap();
        let mean = x.iter().sum::<f64>() / (n * s) as f64;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n * s) as f64;
        assert_close(&out[2].values(), &[var], 1e-5, "variance");
    }
}
