//! Depthwise convolution of f32 with the usual kernels (3, 5 or 7 a side, a stride of 1 or 2), and its gradients: plane by plane, where
//! they lie. Others are [`super::alone`].
//!
//! What a plane costs is one pass over it and its result. The gradient of the input with a stride of 1 is such a convolution again.

mod kernel;

use super::planes::Lines;
use crate::gemm::{PARALLEL, workspace};
use crate::memory::Scratch;
use crate::parallel;
use crate::rows::{Dense, RowsMut};
use kernel::{Kernels, Plane, SIDES, kernels};
use orkest_core::op::Window;
use orkest_core::{Output, Result, View};

/// The largest kernel.
const POINTS: usize = 49;
/// Channels whose sums for the gradient of the weight stay in the first-level cache.
const CHANNELS: usize = 16;
/// Tasks into which the gradient of the weight is cut: their sums are added in order, so the cut depends on shapes alone.
const BLOCKS: usize = 32;

/// Which of the loops for kernels of this size, and for its stride.
fn chosen(window: &Window) -> Option<(usize, usize)> {
    let Window { kernel, stride, dilation, .. } = *window;
    let side = SIDES.iter().position(|&side| kernel == [side; 2])?;
    (dilation == [1, 1] && stride[0] == stride[1] && stride[0] <= 2).then_some((side, stride[0] - 1))
}

/// Channels of a group in the weight.
fn seen_channels(weight: &[usize]) -> usize {
    weight[1]
}

/// Does [`forward`] do it?
pub(super) fn runs_forward(window: &Window, groups: usize, weight: &[usize]) -> bool {
    groups > 1 && seen_channels(weight) == 1 && chosen(window).is_some()
}

/// Does [`input_grad`] do it?
pub(super) fn runs_input_grad(window: &Window, groups: usize, weight: &[usize]) -> bool {
    runs_forward(window, groups, weight) && weight[0] == groups
}

/// Does [`weight_grad`] do it?
pub(super) fn runs_weight_grad(window: &Window, weight: &[usize]) -> bool {
    seen_channels(weight) == 1 && chosen(window).is_some()
}

/// Multiply-adds of a plane in such loops take an eighth of the time that those of a product do not: they wait for memory.
fn grain(window: &Window) -> usize {
    let [height, width] = window.output();
    PARALLEL.div_ceil(8 * height * width * window.kernel[0] * window.kernel[1])
}

pub(super) fn forward(
    window: &Window,
    groups: usize,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let Some((side, stride)) = chosen(window) else { unreachable!("another convolution") };
    let [images, channels, height, width] = **outputs[0].layout.shape() else { unreachable!("[n, c, h, w]") };
    let (x, weight) = (Lines::<f32>::new(&inputs[0])?, Dense::<f32>::new(&inputs[1])?);
    let bias = if bias { Some(Dense::<f32>::new(&inputs[2])?) } else { None };
    let y = RowsMut::<f32>::new(&outputs[0]);
    let run = kernels(crate::simd::level()).forward[side][stride];
    let points = window.kernel[0] * window.kernel[1];
    parallel::ranges(images * channels, grain(window), |planes| {
        for plane in planes {
            let (image, channel) = (plane / channels, plane % channels);
            let weight = weight.row(channel, points);
            let bias = bias.as_ref().map_or(0.0, |bias| bias.all()[channel]);
            let seen = Plane {
                x: x.plane(image, channel * groups / channels),
                row: x.row(),
                size: window.input,
                padding: window.padding.map(|padding| padding as isize),
            };
            // SAFETY: a plane of the input, and one of the result that belongs to this range; the level is what this processor has.
            unsafe {
                let y = y.row(plane, height * width).as_mut_ptr();
                run(&seen, weight.as_ptr(), bias, y, [height, width]);
            }
        }
    });
    Ok(())
}

pub(super) fn input_grad(window: &Window, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
    let Some((side, stride)) = chosen(window) else { unreachable!("another convolution") };
    let [images, channels, height, width] = **outputs[0].layout.shape() else { unreachable!("[n, c, h, w]") };
    let (weight, grad) = (Dense::<f32>::new(&inputs[0])?, Lines::<f32>::new(&inputs[1])?);
    let dx = RowsMut::<f32>::new(&outputs[0]);
    let Kernels { forward, backward, .. } = kernels(crate::simd::level());
    let kernel = window.kernel[0] as isize;
    let padding = window.padding.map(|padding| padding as isize);
    let (run, run_by_two) = (forward[side][0], backward[side][window.padding[1] % 2]);
    let points = window.kernel[0] * window.kernel[1];
    parallel::ranges(images * channels, grain(window), |planes| {
        for plane in planes {
            let (image, channel) = (plane / channels, plane % channels);
            let weight = weight.row(channel, points);
            let seen = Plane {
                x: grad.plane(image, channel),
                row: grad.row(),
                size: window.output(),
                // Backwards, windows begin before the plane where forwards they ended inside.
                padding: if stride == 0 { padding.map(|padding| kernel - 1 - padding) } else { padding },
            };
            // SAFETY: as in `forward`.
            unsafe {
                let dx = dx.row(plane, height * width).as_mut_ptr();
                if stride == 0 {
                    let mut turned = [0.0; POINTS];
                    turned.iter_mut().zip(weight.iter().rev()).for_each(|(to, from)| *to = *from);
                    run(&seen, turned.as_ptr(), 0.0, dx, [height, width]);
                } else {
                    run_by_two(&seen, weight.as_ptr(), dx, [height, width]);
                }
            }
        }
    });
    Ok(())
}

pub(super) fn weight_grad(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let Some((side, stride)) = chosen(window) else { unreachable!("another convolution") };
    let size @ [height, width] = window.output();
    let [images, channels] = [0, 1].map(|d| inputs[1].layout.shape()[d]);
    let (x, grad) = (Lines::<f32>::new(&inputs[0])?, Dense::<f32>::new(&inputs[1])?);
    let Kernels { lanes, weight_grad, .. } = *kernels(crate::simd::level());
    let run = weight_grad[side][stride];
    let points = window.kernel[0] * window.kernel[1];
    let chunks = channels.div_ceil(CHANNELS);
    let blocks = BLOCKS.div_ceil(chunks).min(images).max(1);
    let partial = Scratch::<f32>::new(blocks * channels * points)?;
    let at = partial.sync_ptr();
    let grain = grain(window).div_ceil((CHANNELS * images).div_ceil(blocks).max(1));
    parallel::ranges(blocks * chunks, grain, |tasks| {
        let room = CHANNELS * points * lanes;
        workspace(room, |sums: *mut f32| {
            // SAFETY: the workspace is as large, and all bits are numbers.
            let sums = unsafe { std::slice::from_raw_parts_mut(sums, room) };
            for task in tasks {
                let (block, chunk) = (task / chunks, task % chunks);
                let mine = chunk * CHANNELS..channels.min((chunk + 1) * CHANNELS);
                sums.fill(0.0);
                for image in images * block / blocks..images * (block + 1) / blocks {
                    for (channel, sums) in mine.clone().zip(sums.chunks_exact_mut(points * lanes)) {
                        let seen = Plane {
                            x: x.plane(image, channel * groups / channels),
                            row: x.row(),
                            size: window.input,
                            padding: window.padding.map(|padding| padding as isize),
                        };
                        let g = grad.row(image * channels + channel, height * width);
                        // SAFETY: planes of the input and of the gradient; the level is what this processor has.
                        unsafe { run(&seen, g.as_ptr(), size, sums.as_mut_ptr()) };
                    }
                }
                let to = at.at(((block * channels + mine.start) * points) as isize);
                // SAFETY: this task's own part of the partial sums; all bits are numbers.
                let to = unsafe { std::slice::from_raw_parts_mut(to, mine.len() * points) };
                to.iter_mut().zip(sums.chunks_exact_mut(lanes)).for_each(|(to, lanes)| *to = join(lanes));
            }
        });
    });
    let dw = RowsMut::<f32>::new(&outputs[0]);
    // SAFETY: nobody else has the output, and all partial sums have been written.
    unsafe {
        let all = std::slice::from_raw_parts(partial.as_ptr(), blocks * channels * points);
        let dw = dw.row(0, channels * points);
        dw.fill(0.0);
        for block in all.chunks_exact(channels * points) {
            dw.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
        }
    }
    Ok(())
}

/// The sum of a power of two of numbers, pairwise.
fn join(lanes: &mut [f32]) -> f32 {
    let mut half = lanes.len() / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use crate::convolution::tests::check;
    use crate::simd::for_each_level;
    use crate::testing::{Draw, LAYS};
    use orkest_core::DType;
    use orkest_core::op::Window;

    /// Planes narrower and wider than a vector, no multiples of what is computed at once, and kernels that hang over all edges.
    #[test]
    fn every_level_convolves_each_channel() {
        for_each_level(|_| {
            let mut draw = Draw(5);
            for kernel in [3, 5, 7] {
                for (i, input) in
                    [[1, 1], [3, 2], [7, 7], [9, 14], [14, 17], [8, 33], [20, 50]].into_iter().enumerate()
                {
                    for stride in [1, 2] {
                        for padding in [0, 1, kernel / 2, kernel + 1] {
                            let fits = input.iter().all(|side| side + 2 * padding >= kernel);
                            let window = Window {
                                input,
                                kernel: [kernel; 2],
                                stride: [stride; 2],
                                padding: [padding; 2],
                                dilation: [1; 2],
                            };
                            let lay = LAYS[(i + kernel) % LAYS.len()];
                            if fits {
                                check(&mut draw, window, DType::F32, lay, (2, 3, 3, 3));
                                check(&mut draw, window, DType::F32, lay, (3, 2, 4, 2));
                                check(&mut draw, window, DType::F32, lay, (2, 1, 3, 1));
                            }
                        }
                    }
                }
            }
        });
    }
}
