//! Convolution, its gradients, and convolution backwards.
//!
//! | file | what it has |
//! |---|---|
//! | `planes` | the input with zeros around it, such that neighbouring windows see neighbouring elements |
//! | `product`, `columns` | the weight times what windows see, forwards and backwards |
//! | `depthwise` | depthwise convolution with the usual kernels, and its gradients |
//! | `alone` | depthwise convolution with other kernels |
//! | `weight_grad` | the gradient of the weight |

mod alone;
mod columns;
mod depthwise;
mod planes;
mod product;
mod weight_grad;

use crate::gemm::Real;
use crate::indexing::Plus;
use crate::math::Float;
use crate::memory::{self, SyncPtr};
use orkest_core::op::Window;
use orkest_core::{DType, Output, Result, View};
use planes::Planes;
use product::{Place, Product, backward_taps, distances, forward_taps};

pub(crate) fn supports(inputs: &[View<'_>]) -> bool {
    let dtype = inputs[0].dtype;
    matches!(dtype, DType::F32 | DType::F64) && inputs.iter().all(|v| v.dtype == dtype)
}

pub(crate) fn conv2d(
    window: &Window,
    groups: usize,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 if depthwise::runs_forward(window, groups, inputs[1].layout.shape()) => {
            depthwise::forward(window, groups, bias, inputs, outputs)
        }
        DType::F32 => conv2d_of::<f32>(window, groups, bias, inputs, outputs),
        _ => conv2d_of::<f64>(window, groups, bias, inputs, outputs),
    }
}

pub(crate) fn conv2d_input_grad(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 if depthwise::runs_input_grad(window, groups, inputs[0].layout.shape()) => {
            depthwise::input_grad(window, inputs, outputs)
        }
        DType::F32 => input_grad_of::<f32>(window, groups, inputs, outputs),
        _ => input_grad_of::<f64>(window, groups, inputs, outputs),
    }
}

pub(crate) fn conv2d_weight_grad(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 if depthwise::runs_weight_grad(window, outputs[0].layout.shape()) => {
            depthwise::weight_grad(window, groups, inputs, outputs)
        }
        DType::F32 => weight_grad::weight_grad_of::<f32>(window, groups, inputs, outputs),
        _ => weight_grad::weight_grad_of::<f64>(window, groups, inputs, outputs),
    }
}

fn conv2d_of<T: Real + Float + Plus>(
    window: &Window,
    groups: usize,
    bias: bool,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    let weight = &inputs[1];
    let [out, channels, ..] = **weight.layout.shape() else { unreachable!("the weight is [o, c, kh, kw]") };
    let strides: [isize; 4] = std::array::from_fn(|d| weight.layout.strides()[d]);
    let bias: Option<Vec<T>> = bias.then(|| {
        let start = memory::input_ptr::<T>(&inputs[2]);
        // SAFETY: positions of the layout lie within the buffer.
        inputs[2].layout.positions().map(|p| unsafe { *start.add(p) }).collect()
    });
    let phases = vec![forward_taps(window, [strides[2], strides[3]])];
    let first = window.padding.map(|padding| -(padding as isize));
    let [down, across] = distances(&phases);
    let out_channels = out / groups;
    let product = Product {
        planes: Planes::new(&inputs[0], first, window.stride, [&down, &across], window.output())?,
        groups,
        channels,
        out_channels,
        phases,
        weight: memory::input_ptr::<T>(weight).wrapping_add(weight.layout.offset()),
        strides: [out_channels as isize * strides[0], strides[0], strides[1]],
        bias: bias.as_deref(),
        place: Place {
            y: SyncPtr::new(memory::output_ptr(&outputs[0])),
            size: window.output(),
            step: [1, 1],
        },
    };
    product.run()
}

fn input_grad_of<T: Real + Float + Plus>(
    window: &Window,
    groups: usize,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    if outputs[0].layout.numel() == 0 {
        return Ok(());
    }
    let (weight, grad) = (&inputs[0], &inputs[1]);
    let [out, channels, ..] = **weight.layout.shape() else { unreachable!("the weight is [o, c, kh, kw]") };
    let strides: [isize; 4] = std::array::from_fn(|d| weight.layout.strides()[d]);
    let (phases, windows, first) = backward_taps(window, [strides[2], strides[3]]);
    let [down, across] = distances(&phases);
    let group_out = out / groups;
    let product = Product {
        planes: Planes::new(grad, first, [1, 1], [&down, &across], windows)?,
        groups,
        channels: group_out,
        out_channels: channels,
        phases,
        weight: memory::input_ptr::<T>(weight).wrapping_add(weight.layout.offset()),
        strides: [group_out as isize * strides[0], strides[1], strides[0]],
        bias: None,
        place: Place {
            y: SyncPtr::new(memory::output_ptr(&outputs[0])),
            size: window.input,
            step: window.stride,
        },
    };
    product.run()
}

#[cfg(test)]
mod tests {
    use crate::conv::tests::{seen, windows};
    use crate::simd::for_each_level;
    use crate::testing::{Data, Draw, LAYS, Lay, assert_close, run};
    use orkest_core::op::Window;
    use orkest_core::{DType, Op};

    /// Batch, channels, channels of the result, groups.
    type Channels = (usize, usize, usize, usize);

    /// All three operations against their definition.
    pub(super) fn check(draw: &mut Draw, w: Window, dtype: DType, lay: Lay, (n, c, o, groups): Channels) {
        let ([height, width], [h, wd]) = (w.output(), w.input);
        let (points, count) = (w.kernel[0] * w.kernel[1], height * width);
        let (group_in, group_out) = (c / groups, o / groups);
        let x = draw.values(n * c * h * wd);
        let weight = draw.values(o * group_in * points);
        let bias = draw.values(o);
        let grad = draw.values(n * o * count);
        let mut expected = vec![0.0; n * o * count];
        let mut expected_dx = vec![0.0; x.len()];
        let mut expected_dw = vec![0.0; weight.len()];
        for (image, out, at) in
            (0..n).flat_map(|i| (0..o).flat_map(move |o| (0..count).map(move |at| (i, o, at))))
        {
            let of_y = (image * o + out) * count + at;
            expected[of_y] = bias[out];
            for (channel, point) in (0..group_in).flat_map(|c| (0..points).map(move |p| (c, p))) {
                let Some(place) = seen(&w, at, point) else { continue };
                let of_x = (image * c + out / group_out * group_in + channel) * h * wd + place;
                let of_weight = (out * group_in + channel) * points + point;
                expected[of_y] += x[of_x] * weight[of_weight];
                expected_dx[of_x] += weight[of_weight] * grad[of_y];
                expected_dw[of_weight] += x[of_x] * grad[of_y];
            }
        }
        let what = format!("{w:?} {dtype} {lay:?} n {n} c {c} o {o} groups {groups}");
        let (x_shape, y_shape) = ([n, c, h, wd], [n, o, height, width]);
        let weight_shape = [o, group_in, w.kernel[0], w.kernel[1]];
        let x = Data::laid(lay, dtype, &x_shape, &x);
        let weight = Data::laid(lay, dtype, &weight_shape, &weight);
        let bias = Data::laid(lay, dtype, &[o], &bias);
        let grad = Data::laid(lay, dtype, &y_shape, &grad);
        let op = Op::Conv2d { window: w, groups, bias: true };
        let y = run(&op, &[&x, &weight, &bias], &[(&y_shape, dtype)]).unwrap();
        assert_close(&y[0].values(), &expected, 1e-5, &what);
        let op = Op::Conv2dInputGrad { window: w, groups };
        let dx = run(&op, &[&weight, &grad], &[(&x_shape, dtype)]).unwrap();
        assert_close(&dx[0].values(), &expected_dx, 1e-5, &format!("gradient of the input {what}"));
        let op = Op::Conv2dWeightGrad { window: w, groups };
        let dw = run(&op, &[&x, &grad], &[(&weight_shape, dtype)]).unwrap();
        // Sums of thousands of terms.
        assert_close(&dw[0].values(), &expected_dw, 1e-4, &format!("gradient of the weight {what}"));
    }

    #[test]
    fn convolution_and_its_gradients_follow_their_definitions() {
        let mut draw = Draw(2);
        for w in windows() {
            for dtype in [DType::F32, DType::F64] {
                for lay in LAYS {
                    for channels in [(1, 2, 3, 1), (3, 4, 6, 2), (2, 3, 3, 3), (2, 3, 6, 3), (40, 2, 5, 1)] {
                        check(&mut draw, w, dtype, lay, channels);
                    }
                }
                // Many channels of small planes are multiplied in panels.
                check(&mut draw, w, dtype, LAYS[0], (3, 20, 40, 1));
            }
        }
    }

    #[test]
    fn every_level_convolves() {
        for_each_level(|_| {
            let mut draw = Draw(4);
            for w in windows() {
                for dtype in [DType::F32, DType::F64] {
                    for channels in [(2, 5, 7, 1), (3, 4, 6, 2), (2, 3, 3, 3), (2, 3, 40, 1)] {
                        check(&mut draw, w, dtype, LAYS[0], channels);
                    }
                }
            }
        });
    }

    #[test]
    fn large_planes_are_convolved_in_blocks() {
        let mut draw = Draw(3);
        let (c, o, h, wd) = (8, 4, 70, 80);
        for (kernel, padding) in [(3, 1), (1, 0)] {
            let w = Window {
                input: [h, wd],
                kernel: [kernel; 2],
                stride: [1, 1],
                padding: [padding; 2],
                dilation: [1, 1],
            };
            let (x, weight) = (draw.values(c * h * wd), draw.values(o * c * kernel * kernel));
            let mut expected = vec![0.0; o * h * wd];
            for (i, e) in expected.iter_mut().enumerate() {
                let (out, at) = (i / (h * wd), i % (h * wd));
                for row in 0..c * kernel * kernel {
                    if let Some(place) = seen(&w, at, row % (kernel * kernel)) {
                        *e += x[row / (kernel * kernel) * h * wd + place]
                            * weight[out * c * kernel * kernel + row];
                    }
                }
            }
            let x = Data::new(DType::F32, &[1, c, h, wd], &x);
            let weight = Data::new(DType::F32, &[o, c, kernel, kernel], &weight);
            let op = Op::Conv2d { window: w, groups: 1, bias: false };
            let y = run(&op, &[&x, &weight], &[(&[1, o, h, wd], DType::F32)]).unwrap();
            assert_close(&y[0].values(), &expected, 1e-5, &format!("kernel {kernel}"));
        }
    }

    #[test]
    fn long_sequences_of_many_channels_are_convolved_in_blocks() {
        let mut draw = Draw(6);
        for stride in [1, 2] {
            let w = Window {
                input: [1, 2000],
                kernel: [1, 3],
                stride: [1, stride],
                padding: [0, 1],
                dilation: [1, 1],
            };
            check(&mut draw, w, DType::F32, LAYS[0], (2, 70, 20, 1));
        }
    }

    /// Neither what lies between rows nor the padding may turn an infinity elsewhere into NaN.
    #[test]
    fn infinities_stay_where_they_are_seen() {
        let w = Window { input: [5, 6], kernel: [3, 3], stride: [1, 1], padding: [1, 1], dilation: [1, 1] };
        for groups in [1, 2] {
            let mut x = vec![1.0; 2 * 30];
            x[5] = f64::INFINITY;
            let weight = vec![1.0; 2 * (2 / groups) * 9];
            let mut grad = vec![0.0; 2 * 30];
            grad[8] = 1.0;
            let x = Data::new(DType::F32, &[1, 2, 5, 6], &x);
            let weight = Data::new(DType::F32, &[2, 2 / groups, 3, 3], &weight);
            let op = Op::Conv2d { window: w, groups, bias: false };
            let y = run(&op, &[&x, &weight], &[(&[1, 2, 5, 6], DType::F32)]).unwrap();
            let seen: Vec<usize> = (0..30).filter(|i| y[0].values()[*i].is_infinite()).collect();
            assert_eq!(seen, [4, 5, 10, 11], "groups {groups}");
            assert!(y[0].values().iter().all(|y| !y.is_nan()));
            let grad = Data::new(DType::F32, &[1, 2, 5, 6], &grad);
            let op = Op::Conv2dWeightGrad { window: w, groups };
            let dw = run(&op, &[&x, &grad], &[(&[2, 2 / groups, 3, 3], DType::F32)]).unwrap();
            if groups == 2 {
                // Where the windows whose gradient is zero see the infinity, their product is NaN, and nowhere else.
                let values = dw[0].values();
                let nan: Vec<usize> = (0..18).filter(|&i| values[i].is_nan()).collect();
                assert_eq!(nan, [1, 2, 4, 5]);
                assert!((0..18).all(|i| nan.contains(&i) || values[i] == if i < 9 { 1.0 } else { 0.0 }));
            }
        }
    }
}
