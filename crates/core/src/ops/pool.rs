//! Pooling: the largest or the mean of each window.

use super::conv::{Size2, window};
use crate::autograd::Save;
use crate::dispatch::{run, run_many};
use crate::dtype::DType;
use crate::grads;
use crate::op::{Op, Window};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// The stride of a pooling window: sizes, or `None` for that of the window itself.
pub trait PoolStride {
    /// The stride, given the window's sizes.
    fn or(self, kernel: Size2) -> Size2;
}

impl PoolStride for usize {
    fn or(self, _: Size2) -> Size2 {
        self.into()
    }
}

impl PoolStride for [usize; 2] {
    fn or(self, _: Size2) -> Size2 {
        self.into()
    }
}

impl PoolStride for Size2 {
    fn or(self, _: Size2) -> Size2 {
        self
    }
}

impl PoolStride for Option<Size2> {
    fn or(self, kernel: Size2) -> Size2 {
        self.unwrap_or(kernel)
    }
}

/// The options of [`Tensor::max_pool2d_with`], with PyTorch's defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaxPoolOptions {
    /// Steps between windows; that of the kernel if `None`.
    pub stride: Option<Size2>,
    /// Places around the planes that never win, at most half the kernel.
    pub padding: Size2,
    /// Distance between the points of a window.
    pub dilation: Size2,
    /// Also the windows that begin inside and end outside.
    pub ceil_mode: bool,
}

impl Default for MaxPoolOptions {
    fn default() -> MaxPoolOptions {
        MaxPoolOptions { stride: None, padding: Size2([0, 0]), dilation: Size2([1, 1]), ceil_mode: false }
    }
}

impl MaxPoolOptions {
    #[track_caller]
    fn window(&self, op: &str, x: &Tensor, input: [usize; 2], kernel: Size2) -> Window {
        check_padding(op, x, kernel, self.padding);
        window(op, x, input, kernel.0, self.stride.unwrap_or(kernel), self.padding, self.dilation)
    }
}

/// The options of [`Tensor::avg_pool2d_with`], with PyTorch's defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AvgPoolOptions {
    /// Steps between windows; that of the kernel if `None`.
    pub stride: Option<Size2>,
    /// Zeros around the planes, at most half the kernel.
    pub padding: Size2,
    /// Also the windows that begin inside and end outside.
    pub ceil_mode: bool,
    /// Whether the zeros count in the mean.
    pub count_include_pad: bool,
    /// What sums are divided by, instead of what counts.
    pub divisor_override: Option<usize>,
}

impl Default for AvgPoolOptions {
    fn default() -> AvgPoolOptions {
        AvgPoolOptions {
            stride: None,
            padding: Size2([0, 0]),
            ceil_mode: false,
            count_include_pad: true,
            divisor_override: None,
        }
    }
}

impl Tensor {
    /// The largest element of each window, as PyTorch's
    /// [`max_pool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.max_pool2d.html): a `stride` of `None` is
    /// that of the kernel; padding never wins, NaN always does.
    ///
    /// # Shapes
    /// - input: `[batch, channels, height, width]`, the batch may be left out
    /// - output: `[batch, channels, out_height, out_width]` with `out = (in + 2 padding - kernel) / stride + 1`, rounded down
    ///
    /// # Panics
    /// If the rank is wrong, the window does not fit, the padding exceeds half the kernel, or the dtype is not a float.
    #[track_caller]
    pub fn max_pool2d(
        &self,
        kernel_size: impl Into<Size2>,
        stride: impl PoolStride,
        padding: impl Into<Size2>,
    ) -> Tensor {
        self.max_pool2d_with_indices(kernel_size, stride, padding).0
    }

    /// As [`Tensor::max_pool2d`] with all of PyTorch's options, and the i64 positions of the maxima in their `height * width` planes.
    ///
    /// # Shapes
    /// - output and positions: as [`Tensor::max_pool2d`]; with dilation, the kernel is `dilation (kernel - 1) + 1` wide
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool2d_with(
        &self,
        kernel_size: impl Into<Size2>,
        options: &MaxPoolOptions,
    ) -> (Tensor, Tensor) {
        let kernel = kernel_size.into();
        let x = planes("max_pool2d", self);
        let window = options.window("max_pool2d", self, [self.size(-2), self.size(-1)], kernel);
        let (y, indices) = max_pool_ceil("max_pool2d", &x, window, options.ceil_mode);
        if self.rank() == 3 { (y.squeeze(0), indices.squeeze(0)) } else { (y, indices) }
    }

    /// As [`Tensor::max_pool1d`] with all of PyTorch's options, which count for the second of their dimensions, and the i64
    /// positions of the maxima.
    ///
    /// # Shapes
    /// - output and positions: as [`Tensor::max_pool1d`]
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool1d_with(&self, kernel_size: usize, options: &MaxPoolOptions) -> (Tensor, Tensor) {
        let x = sequences("max_pool1d", self);
        let flat = |size: Size2, first: usize| Size2([first, size.0[1]]);
        let options = MaxPoolOptions {
            stride: options.stride.map(|stride| flat(stride, 1)),
            padding: flat(options.padding, 0),
            dilation: flat(options.dilation, 1),
            ..*options
        };
        let window = options.window("max_pool1d", self, [1, self.size(-1)], Size2([1, kernel_size]));
        let (y, indices) = max_pool_ceil("max_pool1d", &x, window, options.ceil_mode);
        let (y, indices) = (y.squeeze(2), indices.squeeze(2));
        if self.rank() == 2 { (y.squeeze(0), indices.squeeze(0)) } else { (y, indices) }
    }

    /// As [`Tensor::max_pool2d`], and the i64 positions of the maxima in their `height * width` planes.
    ///
    /// # Shapes
    /// As [`Tensor::max_pool2d`], for both results.
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool2d_with_indices(
        &self,
        kernel_size: impl Into<Size2>,
        stride: impl PoolStride,
        padding: impl Into<Size2>,
    ) -> (Tensor, Tensor) {
        let kernel = kernel_size.into();
        let x = planes("max_pool2d", self);
        let window = pool_window(
            "max_pool2d",
            self,
            [self.size(-2), self.size(-1)],
            kernel,
            stride.or(kernel),
            padding.into(),
        );
        let (y, indices) = max_pool("max_pool2d", &x, window);
        if self.rank() == 3 { (y.squeeze(0), indices.squeeze(0)) } else { (y, indices) }
    }

    /// The largest element of each window of a sequence, as PyTorch's
    /// [`max_pool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.max_pool1d.html).
    ///
    /// # Shapes
    /// - input: `[batch, channels, length]`, the batch may be left out
    /// - output: `[batch, channels, out_length]`, sizes as in [`Tensor::max_pool2d`]
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool1d(&self, kernel_size: usize, stride: impl Into<Option<usize>>, padding: usize) -> Tensor {
        self.max_pool1d_with_indices(kernel_size, stride, padding).0
    }

    /// As [`Tensor::max_pool1d`], and the i64 positions of the maxima.
    ///
    /// # Shapes
    /// As [`Tensor::max_pool1d`], for both results.
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool1d_with_indices(
        &self,
        kernel_size: usize,
        stride: impl Into<Option<usize>>,
        padding: usize,
    ) -> (Tensor, Tensor) {
        let x = sequences("max_pool1d", self);
        let window = sequence_window("max_pool1d", self, kernel_size, stride.into(), padding);
        let (y, indices) = max_pool("max_pool1d", &x, window);
        let (y, indices) = (y.squeeze(2), indices.squeeze(2));
        if self.rank() == 2 { (y.squeeze(0), indices.squeeze(0)) } else { (y, indices) }
    }

    /// The mean of each window, as PyTorch's
    /// [`avg_pool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.avg_pool2d.html): a `stride` of `None` is
    /// that of the kernel; with `count_include_pad` (PyTorch's default) padding counts as zeros in the mean, else only what lies
    /// inside counts.
    ///
    /// # Shapes
    /// As [`Tensor::max_pool2d`].
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn avg_pool2d(
        &self,
        kernel_size: impl Into<Size2>,
        stride: impl PoolStride,
        padding: impl Into<Size2>,
        count_include_pad: bool,
    ) -> Tensor {
        let kernel = kernel_size.into();
        let x = planes("avg_pool2d", self);
        let window = pool_window(
            "avg_pool2d",
            self,
            [self.size(-2), self.size(-1)],
            kernel,
            stride.or(kernel),
            padding.into(),
        );
        let y = avg_pool("avg_pool2d", &x, window, count_include_pad);
        if self.rank() == 3 { y.squeeze(0) } else { y }
    }

    /// As [`Tensor::avg_pool2d`] with all of PyTorch's options.
    ///
    /// # Shapes
    /// As [`Tensor::avg_pool2d`]; with `ceil_mode`, the output's sizes are rounded up.
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`]; also if the divisor is 0.
    #[track_caller]
    pub fn avg_pool2d_with(&self, kernel_size: impl Into<Size2>, options: &AvgPoolOptions) -> Tensor {
        let kernel = kernel_size.into();
        let x = planes("avg_pool2d", self);
        let (input, stride) = ([self.size(-2), self.size(-1)], options.stride.unwrap_or(kernel));
        let window = pool_window("avg_pool2d", self, input, kernel, stride, options.padding);
        let y = avg_pool_with("avg_pool2d", &x, window, options);
        if self.rank() == 3 { y.squeeze(0) } else { y }
    }

    /// As [`Tensor::avg_pool1d`] with all of PyTorch's options, which count for the second of their dimensions.
    ///
    /// # Shapes
    /// As [`Tensor::avg_pool1d`]; with `ceil_mode`, the output's size is rounded up.
    ///
    /// # Panics
    /// As [`Tensor::avg_pool2d_with`].
    #[track_caller]
    pub fn avg_pool1d_with(&self, kernel_size: usize, options: &AvgPoolOptions) -> Tensor {
        let x = sequences("avg_pool1d", self);
        let stride = options.stride.map(|stride| stride.0[1]);
        let window = sequence_window("avg_pool1d", self, kernel_size, stride, options.padding.0[1]);
        let y = avg_pool_with("avg_pool1d", &x, window, options).squeeze(2);
        if self.rank() == 2 { y.squeeze(0) } else { y }
    }

    /// The mean of each window of a sequence, as PyTorch's
    /// [`avg_pool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.avg_pool1d.html).
    ///
    /// # Shapes
    /// As [`Tensor::max_pool1d`].
    ///
    /// # Panics
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn avg_pool1d(
        &self,
        kernel_size: usize,
        stride: impl Into<Option<usize>>,
        padding: usize,
        count_include_pad: bool,
    ) -> Tensor {
        let x = sequences("avg_pool1d", self);
        let window = sequence_window("avg_pool1d", self, kernel_size, stride.into(), padding);
        let y = avg_pool("avg_pool1d", &x, window, count_include_pad).squeeze(2);
        if self.rank() == 2 { y.squeeze(0) } else { y }
    }
}

/// As `[n, c, h, w]`.
#[track_caller]
fn planes(op: &str, x: &Tensor) -> Tensor {
    x.require_float(op);
    match x.rank() {
        4 => x.clone(),
        3 => x.unsqueeze(0),
        _ => panic!(
            "{op}: an input of [batch, channels, height, width] is needed, batch optional. input: {}",
            x.describe()
        ),
    }
}

/// As `[n, c, 1, length]`.
#[track_caller]
fn sequences(op: &str, x: &Tensor) -> Tensor {
    x.require_float(op);
    match x.rank() {
        3 => x.unsqueeze(2),
        2 => x.unsqueeze(0).unsqueeze(2),
        _ => panic!(
            "{op}: an input of [batch, channels, length] is needed, batch optional. input: {}",
            x.describe()
        ),
    }
}

#[track_caller]
fn pool_window(
    op: &str,
    x: &Tensor,
    input: [usize; 2],
    kernel: Size2,
    stride: Size2,
    padding: Size2,
) -> Window {
    check_padding(op, x, kernel, padding);
    window(op, x, input, kernel.0, stride, padding, Size2([1, 1]))
}

#[track_caller]
fn check_padding(op: &str, x: &Tensor, kernel: Size2, padding: Size2) {
    // A window that lies in the padding altogether has no largest element.
    if (0..2).any(|d| 2 * padding.0[d] > kernel.0[d]) {
        panic!(
            "{op}: padding {:?} must be at most half of the kernel {:?}. input: {}",
            padding.0,
            kernel.0,
            x.describe()
        );
    }
}

/// How much the planes must grow below and on the right for the windows that `ceil_mode` adds: those that begin inside, or in the
/// padding before it.
fn growth(window: &Window) -> [usize; 2] {
    std::array::from_fn(|d| {
        let Window { input, kernel, stride, padding, dilation } = *window;
        let reach = dilation[d] * (kernel[d] - 1) + 1;
        let padded = input[d] + 2 * padding[d];
        let mut out = padded.saturating_sub(reach).div_ceil(stride[d]) + 1;
        if (out - 1) * stride[d] >= input[d] + padding[d] {
            out -= 1;
        }
        ((out - 1) * stride[d] + reach).saturating_sub(padded)
    })
}

#[track_caller]
fn sequence_window(op: &str, x: &Tensor, kernel: usize, stride: Option<usize>, padding: usize) -> Window {
    pool_window(
        op,
        x,
        [1, x.size(-1)],
        Size2([1, kernel]),
        Size2([1, stride.unwrap_or(kernel)]),
        Size2([0, padding]),
    )
}

fn pooled_shape(x: &Tensor, window: Window) -> Shape {
    let ([n, channels, ..], [height, width]) = (x.dims::<4>(), window.output());
    Shape::from([n, channels, height, width])
}

#[track_caller]
fn max_pool(op: &'static str, x: &Tensor, window: Window) -> (Tensor, Tensor) {
    let shape = pooled_shape(x, window);
    let [y, indices] = run_many(op, Op::MaxPool(window), &[x], [(shape, x.dtype()), (shape, DType::I64)]);
    let y = y.recorded(op, &[x], &[Save::Other(&indices)], |c| {
        let (g, indices, shape) = (c.grad(), c.saved(0), *c.input_shape(0));
        let mut dx = Tensor::zeros([shape[0], shape[1], shape[2] * shape[3]], (g.dtype(), g.device()));
        dx.scatter_add_(2, &indices.flatten(2, 3), &g.flatten(2, 3));
        grads![dx.reshape(shape)]
    });
    (y, indices)
}

#[track_caller]
fn max_pool_ceil(op: &'static str, x: &Tensor, window: Window, ceil_mode: bool) -> (Tensor, Tensor) {
    let [below, right] = if ceil_mode { growth(&window) } else { [0, 0] };
    if (below, right) == (0, 0) {
        return max_pool(op, x, window);
    }
    let wider = x.pad(&[(0, right as isize), (0, below as isize)], f64::NEG_INFINITY);
    let [height, width] = window.input;
    let (y, indices) = max_pool(op, &wider, Window { input: [height + below, width + right], ..window });
    if right == 0 {
        return (y, indices);
    }
    // Positions in the planes as they are.
    let place = |at: usize| (at / (width + right) * width + (at % (width + right)).min(width - 1)) as i64;
    let places: Vec<i64> = (0..(height + below) * (width + right)).map(place).collect();
    (y, Tensor::from_slice(&places, places.len(), x.device()).rows(&indices))
}

/// Sums of windows, each divided by what counts in it.
#[track_caller]
fn avg_pool_with(op: &'static str, x: &Tensor, window: Window, options: &AvgPoolOptions) -> Tensor {
    let AvgPoolOptions { ceil_mode, count_include_pad, divisor_override, .. } = *options;
    assert!(divisor_override != Some(0), "{op}: divisor_override must not be 0");
    let [below, right] = if ceil_mode { growth(&window) } else { [0, 0] };
    if (below, right) == (0, 0) && divisor_override.is_none() {
        return avg_pool(op, x, window, count_include_pad);
    }
    let wider = x.pad(&[(0, right as isize), (0, below as isize)], 0);
    let [height, width] = window.input;
    let wide = Window { input: [height + below, width + right], ..window };
    let area = (window.kernel[0] * window.kernel[1]) as f64;
    let means = avg_pool(op, &wider, wide, true);
    if let Some(divisor) = divisor_override {
        return means * (area / divisor as f64);
    }
    // PyTorch counts the padding, but not what ceil_mode adds.
    let counts = |d: usize| -> Vec<usize> {
        let (padding, size) = (window.padding[d], window.input[d]);
        let counted = |start: usize| match count_include_pad {
            true => (start + window.kernel[d]).min(size + 2 * padding) - start,
            false => (start + window.kernel[d]).min(size + padding) - start.max(padding),
        };
        (0..wide.output()[d]).map(|i| counted(i * window.stride[d])).collect()
    };
    let (rows, columns) = (counts(0), counts(1));
    let factors: Vec<f64> =
        rows.iter().flat_map(|r| columns.iter().map(move |c| area / (r * c) as f64)).collect();
    means * Tensor::from_slice(&factors, [rows.len(), columns.len()], (x.dtype(), x.device()))
}

#[track_caller]
fn avg_pool(op: &'static str, x: &Tensor, window: Window, include_pad: bool) -> Tensor {
    let y = run(op, Op::AvgPool(window, include_pad), &[x], pooled_shape(x, window), x.dtype());
    y.recorded(op, &[x], &[], move |c| grads![avg_pool_grad(c.grad(), window, include_pad)])
}

/// The adjoint of `avg_pool`, and so the other way round.
#[track_caller]
fn avg_pool_grad(grad: &Tensor, window: Window, include_pad: bool) -> Tensor {
    let ([n, channels, ..], [height, width]) = (grad.dims::<4>(), window.input);
    let shape = Shape::from([n, channels, height, width]);
    let dx = run("avg_pool2d_grad", Op::AvgPoolGrad(window, include_pad), &[grad], shape, grad.dtype());
    dx.recorded("avg_pool2d_grad", &[grad], &[], move |c| {
        grads![avg_pool("avg_pool2d", c.grad(), window, include_pad)]
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_with_gradients, wave};
    use super::{AvgPoolOptions, MaxPoolOptions, Size2};
    use crate::{Device, Tensor, gradcheck, gradgradcheck};

    #[test]
    fn max_pool2d_is_pytorchs() {
        let x = wave([1, 4, 5], 0.0);
        let (y, indices) = x.max_pool2d_with_indices([3, 2], [2, 1], 1);
        assert_eq!(*y.shape(), [1, 2, 6]);
        assert_eq!(indices.to_vec::<i64>().unwrap(), [5, 1, 1, 8, 8, 4, 5, 16, 12, 12, 8, 19]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.798487, 0.991665, 0.991665, 0.859162, 0.859162, 0.494113, 0.798487, 0.879273, 0.999793,
                0.999793, 0.859162, 0.773328,
            ],
            &[&[
                0.0, 0.12073, 0.0, 0.0, 0.412118, -0.477209, 0.0, 0.0, -0.756456, 0.0, 0.0, 0.0, 0.907403,
                0.0, 0.0, 0.0, -0.165604, 0.0, 0.0, 0.343315,
            ]],
        );
    }

    #[test]
    fn max_pool1d_strides_by_its_kernel() {
        let x = wave([1, 2, 5], 0.0);
        let (y, indices) = x.max_pool1d_with_indices(2, None, 0);
        assert_eq!(*y.shape(), [1, 2, 2]);
        assert_eq!(indices.to_vec::<i64>().unwrap(), [1, 2, 0, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[0.991665, -0.255541, 0.798487, 0.859162],
            &[&[0.0, 0.479426, 0.808496, 0.0, 0.0, -0.687766, 0.0, 0.0, -0.631267, 0.0]],
        );
    }

    #[test]
    fn padding_never_wins_and_nan_always_does() {
        let x = Tensor::new([[[-3.0f32, -1.0], [f32::NAN, -2.0]]], Device::reference());
        let y = x.max_pool2d([1, 2], 1, [0, 1]).to_vec::<f32>().unwrap();
        assert_eq!((y[0], y[1], y[2], y[5]), (-3.0, -1.0, -1.0, -2.0));
        assert!(y[3].is_nan() && y[4].is_nan());
    }

    #[test]
    fn avg_pool2d_counts_padding_or_not() {
        let x = wave([1, 1, 4, 5], 0.0);
        assert_with_gradients(
            &x.avg_pool2d([3, 2], [2, 1], 1, true),
            &[&x],
            &[
                0.133081, 0.181713, -0.096981, -0.156722, 0.137367, 0.148476, 0.032691, 0.037758, -0.02893,
                -0.030303, 0.036739, 0.033045,
            ],
            &[&[
                0.214654, 0.020122, -0.219839, 0.036528, 0.210426, 0.027614, 0.159073, -0.068605, -0.141394,
                0.105041, -0.18704, 0.138951, 0.151234, -0.177922, -0.105385, -0.18704, 0.138951, 0.151234,
                -0.177922, -0.105385,
            ]],
        );
        assert_with_gradients(
            &x.avg_pool2d([3, 2], [2, 1], 1, false),
            &[&x],
            &[
                0.399244, 0.272569, -0.145472, -0.235083, 0.20605, 0.445427, 0.065383, 0.037758, -0.02893,
                -0.030303, 0.036739, 0.06609,
            ],
            &[&[
                0.441837, 0.030183, -0.329758, 0.054792, 0.418668, 0.095358, 0.169133, -0.178524, -0.12313,
                0.370502, -0.346479, 0.138951, 0.151234, -0.177922, -0.048166, -0.346479, 0.138951, 0.151234,
                -0.177922, -0.048166,
            ]],
        );
    }

    #[test]
    fn avg_pool1d_is_pytorchs() {
        let x = wave([1, 6], 0.0);
        assert_with_gradients(
            &x.avg_pool1d(3, 2, 1, true),
            &[&x],
            &[0.330555, -0.06323, 0.122262],
            &[&[0.159809, 0.429307, 0.269499, 0.040243, -0.229255, -0.229255]],
        );
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let x = [wave([2, 1, 4, 5], 0.0)];
        let ceil = MaxPoolOptions { stride: Some(Size2([2, 2])), ceil_mode: true, ..Default::default() };
        gradcheck(|t| t[0].max_pool2d_with([3, 2], &ceil).0.square(), &x).unwrap();
        let stride = Some(Size2([2, 2]));
        let ceil = AvgPoolOptions { stride, ceil_mode: true, count_include_pad: false, ..Default::default() };
        gradcheck(|t| t[0].avg_pool2d_with([3, 2], &ceil).square(), &x).unwrap();
        let max_pool = |t: &[Tensor]| t[0].max_pool2d([3, 2], [2, 1], 1).square();
        gradcheck(max_pool, &x).unwrap();
        gradgradcheck(max_pool, &x).unwrap();
        let avg_pool = |t: &[Tensor]| t[0].avg_pool2d([3, 2], [2, 1], 1, false).square();
        gradcheck(avg_pool, &x).unwrap();
        gradgradcheck(avg_pool, &x).unwrap();
    }

    #[test]
    #[should_panic(
        expected = "max_pool2d: padding [2, 2] must be at most half of the kernel [3, 3]. input: f64 [1, 4, 4]"
    )]
    fn too_much_padding_is_refused() {
        wave([1, 4, 4], 0.0).max_pool2d(3, None, 2);
    }
}
