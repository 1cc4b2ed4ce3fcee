//! Convolution, and the patches it multiplies.

use crate::autocast::low_precision;
use crate::autograd::{GradMode, Save, is_grad_enabled};
use crate::dispatch::{run, run_fused};
use crate::dtype::DType;
use crate::grads;
use crate::op::{Op, Window};
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::borrow::Cow;

/// Height and width, as `[3, 5]`, or `3` for both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size2(pub [usize; 2]);

impl From<usize> for Size2 {
    fn from(size: usize) -> Size2 {
        Size2([size, size])
    }
}

impl From<[usize; 2]> for Size2 {
    fn from(sizes: [usize; 2]) -> Size2 {
        Size2(sizes)
    }
}

impl Tensor {
    /// Convolution of planes (cross-correlation, as everywhere in deep learning), as PyTorch's
    /// [`conv2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html). Usual values: stride 1,
    /// padding 0, dilation 1, groups 1.
    ///
    /// # Shapes
    /// - input: `[batch, in_channels, height, width]`, the batch may be left out
    /// - `weight`: `[out_channels, in_channels / groups, kernel_height, kernel_width]`
    /// - `bias`: `[out_channels]`
    /// - output: `[batch, out_channels, out_height, out_width]` with
    ///   `out = (in + 2 padding - dilation (kernel - 1) - 1) / stride + 1`, rounded down
    ///
    /// # Panics
    /// If the shapes do not fit, the kernel does not fit into the padded input, or a dtype is not a float.
    #[track_caller]
    pub fn conv2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: impl Into<Size2>,
        padding: impl Into<Size2>,
        dilation: impl Into<Size2>,
        groups: usize,
    ) -> Tensor {
        check_operands("conv2d", self, weight, bias, groups, 2);
        let x = if self.rank() == 3 { self.unsqueeze(0) } else { self.clone() };
        let kernel = [weight.size(2), weight.size(3)];
        let window = window(
            "conv2d",
            self,
            [self.size(-2), self.size(-1)],
            kernel,
            stride.into(),
            padding.into(),
            dilation.into(),
        );
        let y = convolve("conv2d", &x, weight, bias, window, groups);
        if self.rank() == 3 { y.squeeze(0) } else { y }
    }

    /// Convolution of sequences, as PyTorch's
    /// [`conv1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv1d.html). Usual values: stride 1,
    /// padding 0, dilation 1, groups 1.
    ///
    /// # Shapes
    /// - input: `[batch, in_channels, length]`, the batch may be left out
    /// - `weight`: `[out_channels, in_channels / groups, kernel]`
    /// - `bias`: `[out_channels]`
    /// - output: `[batch, out_channels, out_length]`, sizes as in [`Tensor::conv2d`]
    ///
    /// # Panics
    /// As [`Tensor::conv2d`].
    #[track_caller]
    pub fn conv1d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: usize,
        dilation: usize,
        groups: usize,
    ) -> Tensor {
        check_operands("conv1d", self, weight, bias, groups, 1);
        let x = if self.rank() == 2 { self.unsqueeze(0) } else { self.clone() }.unsqueeze(2);
        let weight = weight.unsqueeze(2);
        let along = |size, flat| Size2([flat, size]);
        let kernel = [1, weight.size(3)];
        let window = window(
            "conv1d",
            self,
            [1, self.size(-1)],
            kernel,
            along(stride, 1),
            along(padding, 0),
            along(dilation, 1),
        );
        let y = convolve("conv1d", &x, &weight, bias, window, groups).squeeze(2);
        if self.rank() == 2 { y.squeeze(0) } else { y }
    }

    /// The patches that a sliding window sees, one per column, as PyTorch's
    /// [`unfold`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.unfold.html). Usual values: dilation 1,
    /// padding 0, stride 1.
    ///
    /// # Shapes
    /// - input: `[batch, channels, height, width]`, the batch may be left out
    /// - output: `[batch, channels * kernel_height * kernel_width, windows]`
    ///
    /// # Panics
    /// If the rank is wrong or the window does not fit into the padded input.
    #[track_caller]
    pub fn unfold(
        &self,
        kernel_size: impl Into<Size2>,
        dilation: impl Into<Size2>,
        padding: impl Into<Size2>,
        stride: impl Into<Size2>,
    ) -> Tensor {
        if !matches!(self.rank(), 3 | 4) {
            panic!(
                "unfold: an input of [batch, channels, height, width] is needed, batch optional. input: {}",
                self.describe()
            );
        }
        let x = if self.rank() == 3 { self.unsqueeze(0) } else { self.clone() };
        let window = window(
            "unfold",
            self,
            [self.size(-2), self.size(-1)],
            kernel_size.into().0,
            stride.into(),
            padding.into(),
            dilation.into(),
        );
        let y = unfold(&x, window);
        if self.rank() == 3 { y.squeeze(0) } else { y }
    }

    /// Patches summed back into planes, the adjoint of [`Tensor::unfold`], as PyTorch's
    /// [`fold`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.fold.html). Usual values: dilation 1,
    /// padding 0, stride 1.
    ///
    /// # Shapes
    /// - input: `[batch, channels * kernel_height * kernel_width, windows]`, the batch may be left out
    /// - output: `[batch, channels, output_height, output_width]`
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    #[track_caller]
    pub fn fold(
        &self,
        output_size: impl Into<Size2>,
        kernel_size: impl Into<Size2>,
        dilation: impl Into<Size2>,
        padding: impl Into<Size2>,
        stride: impl Into<Size2>,
    ) -> Tensor {
        let window = Window {
            input: output_size.into().0,
            kernel: kernel_size.into().0,
            stride: stride.into().0,
            padding: padding.into().0,
            dilation: dilation.into().0,
        };
        check_window("fold", self, window);
        let (area, windows) = (window.kernel[0] * window.kernel[1], window.output()[0] * window.output()[1]);
        let fits =
            matches!(self.rank(), 2 | 3) && self.size(-2).is_multiple_of(area) && self.size(-1) == windows;
        if !fits {
            panic!(
                "fold: an input of [batch, channels * {area}, {windows}] is needed for this window, batch optional. input: {}",
                self.describe()
            );
        }
        if self.rank() == 2 { fold(&self.unsqueeze(0), window).squeeze(0) } else { fold(self, window) }
    }
}

#[track_caller]
fn check_operands(
    op: &str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    groups: usize,
    spatial: usize,
) {
    let describe = || {
        let bias = bias.map_or(String::new(), |b| format!("; bias: {}", b.describe()));
        format!("input: {}; weight: {}{bias}", x.describe(), weight.describe())
    };
    for t in [Some(x), Some(weight), bias].into_iter().flatten() {
        t.require_float(op);
    }
    if weight.rank() != spatial + 2 || !matches!(x.rank().checked_sub(spatial), Some(1 | 2)) {
        let sizes = ["length", "height, width"][spatial - 1];
        let kernel = ["kernel", "kernel_height, kernel_width"][spatial - 1];
        panic!(
            "{op}: input [batch, in_channels, {sizes}] (batch optional) and weight [out_channels, in_channels / groups, {kernel}] \
             are needed. {}",
            describe()
        );
    }
    let (channels, out_channels, group_channels) =
        (x.shape()[x.rank() - spatial - 1], weight.size(0), weight.size(1));
    if groups == 0 || !out_channels.is_multiple_of(groups) {
        panic!("{op}: {out_channels} output channels cannot be divided into {groups} groups. {}", describe());
    }
    if channels != group_channels * groups {
        panic!(
            "{op}: the input has {channels} channels, the weight takes {group_channels} in each of {groups} groups. {}",
            describe()
        );
    }
    if bias.is_some_and(|b| *b.shape() != [out_channels]) {
        panic!("{op}: the bias must have shape [{out_channels}]. {}", describe());
    }
}

/// A window over planes of the sizes `input`. `x` is what the caller gave, for messages.
#[track_caller]
pub(super) fn window(
    op: &str,
    x: &Tensor,
    input: [usize; 2],
    kernel: [usize; 2],
    stride: Size2,
    padding: Size2,
    dilation: Size2,
) -> Window {
    let window = Window { input, kernel, stride: stride.0, padding: padding.0, dilation: dilation.0 };
    check_window(op, x, window);
    window
}

#[track_caller]
fn check_window(op: &str, x: &Tensor, window: Window) {
    let Window { input, kernel, stride, padding, dilation } = window;
    if [kernel, stride, dilation].iter().flatten().any(|&size| size == 0) {
        panic!(
            "{op}: kernel {kernel:?}, stride {stride:?} and dilation {dilation:?} must not be zero. input: {}",
            x.describe()
        );
    }
    if window.output().contains(&0) {
        panic!(
            "{op}: a kernel of {kernel:?} with dilation {dilation:?} does not fit into planes of {input:?} with padding \
             {padding:?}. input: {}",
            x.describe()
        );
    }
}

#[track_caller]
fn convolve(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
    groups: usize,
) -> Tensor {
    let operands = || [Some(x), Some(weight), bias].into_iter().flatten();
    let dtype = operands().map(|t| low_precision(t.dtype())).fold(low_precision(x.dtype()), DType::promote);
    let inputs: SmallVec<[Cow<'_, Tensor>; 3]> = operands().map(|t| t.as_dtype(dtype)).collect();
    let inputs: SmallVec<[&Tensor; 3]> = inputs.iter().map(|t| &**t).collect();
    let y = {
        let _off = GradMode::set(false);
        forward(op, &inputs, window, groups)
    };
    let has_bias = bias.is_some();
    y.recorded(op, &inputs, &[Save::Input(0), Save::Input(1)], move |c| {
        let (x, weight, g) = (c.saved(0), c.saved(1), c.grad());
        let dx = c.needs(0).then(|| convolve_back("conv2d_input_grad", g, weight, window, groups));
        let dw = c.needs(1).then(|| weight_grad(x, g, weight.shape(), window, groups));
        let mut gradients = grads![dx, dw];
        if has_bias {
            gradients.push(c.needs(2).then(|| g.sum([0, 2, 3])));
        }
        gradients
    })
}

/// The gradient of a convolution's input, which is also a transposed convolution: `grad [n, o, oh, ow]`, `weight [o, c / groups, kh, kw]`
/// → `[n, c, h, w]`.
#[track_caller]
pub(super) fn convolve_back(
    op: &'static str,
    grad: &Tensor,
    weight: &Tensor,
    window: Window,
    groups: usize,
) -> Tensor {
    let [height, width] = window.input;
    let shape = Shape::from([grad.size(0), weight.size(1) * groups, height, width]);
    let y = {
        let _off = GradMode::set(false);
        let fused = Op::Conv2dInputGrad { window, groups };
        match run_fused(op, fused, &[weight, grad], [(shape, grad.dtype())]) {
            Some([y]) => y,
            None => from_products(grad, weight, window, groups),
        }
    };
    y.recorded(op, &[grad, weight], &[Save::Input(0), Save::Input(1)], move |c| {
        let (grad, weight, g) = (c.saved(0), c.saved(1), c.grad());
        grads![
            c.needs(0).then(|| convolve("conv2d", g, weight, None, window, groups)),
            c.needs(1).then(|| weight_grad(g, grad, weight.shape(), window, groups)),
        ]
    })
}

/// For a stride of 1, the convolution of the gradient with the kernel turned by 180°, padded so that the input's size comes out; else
/// patches, summed back.
#[track_caller]
fn from_products(grad: &Tensor, weight: &Tensor, window: Window, groups: usize) -> Tensor {
    let Window { kernel, stride, padding, dilation, .. } = window;
    let [out, channels, height, width] = weight.dims();
    let reach = [0, 1].map(|i| (dilation[i] * (kernel[i] - 1)).checked_sub(padding[i]));
    // Few input channels would make a product of few rows from many patches.
    if let ([1, 1], [Some(above), Some(left)], true) = (stride, reach, 4 * channels * groups >= out) {
        let back = Window { input: window.output(), padding: [above, left], ..window };
        let turned = weight
            .reshape([groups, out / groups, channels, height, width])
            .transpose(1, 2)
            .flip(&[-2, -1])
            .reshape([groups * channels, out / groups, height, width]);
        return convolve("conv2d", grad, &turned, None, back, groups);
    }
    let columns = in_groups(&grad.flatten(2, 3), groups);
    let patches = grouped_weight(weight, groups).transpose(-2, -1).matmul(&columns);
    fold(&patches.flatten(1, 2), window)
}

#[track_caller]
fn weight_grad(x: &Tensor, grad: &Tensor, weight: &Shape, window: Window, groups: usize) -> Tensor {
    if !is_grad_enabled() {
        let op = Op::Conv2dWeightGrad { window, groups };
        if let Some([dw]) = run_fused("conv2d_weight_grad", op, &[x, grad], [(*weight, x.dtype())]) {
            return dw;
        }
    }
    let columns = in_groups(&grad.flatten(2, 3), groups);
    let patches = in_groups(&unfold(x, window), groups);
    columns.matmul(&patches.transpose(-2, -1)).sum(0).reshape(weight)
}

#[track_caller]
fn forward(op: &'static str, inputs: &[&Tensor], window: Window, groups: usize) -> Tensor {
    let (x, weight, bias) = (inputs[0], inputs[1], inputs.get(2));
    let [height, width] = window.output();
    let shape = Shape::from([x.size(0), weight.size(0), height, width]);
    let fused = Op::Conv2d { window, groups, bias: bias.is_some() };
    if let Some([y]) = run_fused(op, fused, inputs, [(shape, x.dtype())]) {
        return y;
    }
    let y = grouped_weight(weight, groups).matmul(&in_groups(&unfold(x, window), groups)).reshape(shape);
    bias.map_or(y.clone(), |b| y + b.reshape([b.numel(), 1, 1]))
}

/// `[n, groups * c, windows]` → `[n, groups, c, windows]`
fn in_groups(x: &Tensor, groups: usize) -> Tensor {
    let [n, channels, windows] = x.dims();
    x.reshape([n, groups, channels / groups, windows])
}

/// `[out, c, kh, kw]` → `[groups, out / groups, c * kh * kw]`
fn grouped_weight(weight: &Tensor, groups: usize) -> Tensor {
    let [out, channels, height, width] = weight.dims();
    weight.reshape([groups, out / groups, channels * height * width])
}

/// `[n, c, h, w]` → `[n, c * kh * kw, windows]`
#[track_caller]
fn unfold(x: &Tensor, window: Window) -> Tensor {
    let ([n, channels, ..], [height, width]) = (x.dims::<4>(), window.output());
    let shape = Shape::from([n, channels * window.kernel[0] * window.kernel[1], height * width]);
    let y = run("unfold", Op::Unfold(window), &[x], shape, x.dtype());
    y.recorded("unfold", &[x], &[], move |c| grads![fold(c.grad(), window)])
}

/// `[n, c * kh * kw, windows]` → `[n, c, h, w]`
#[track_caller]
fn fold(x: &Tensor, window: Window) -> Tensor {
    let ([n, rows, _], [height, width]) = (x.dims(), window.input);
    let shape = Shape::from([n, rows / (window.kernel[0] * window.kernel[1]), height, width]);
    let y = run("fold", Op::Fold(window), &[x], shape, x.dtype());
    y.recorded("fold", &[x], &[], move |c| grads![unfold(c.grad(), window)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_with_gradients, wave};
    use crate::{Tensor, gradcheck, gradgradcheck};

    #[test]
    fn conv2d_with_everything_uneven_is_pytorchs() {
        let (x, w, b) = (wave([1, 4, 3, 2], 0.0), wave([2, 2, 2, 2], 1.0), wave(2, 2.0));
        let y = x.conv2d(&w, Some(&b), [2, 1], 1, [1, 2], 2);
        assert_eq!(*y.shape(), [1, 2, 2, 2]);
        assert_with_gradients(
            &y,
            &[&x, &w, &b],
            &[0.526229, 1.594599, 0.28956, 2.023357, 0.14588, -1.04276, 0.609218, -1.6686],
            &[
                &[
                    -0.769367, -0.087333, -0.531193, -0.293937, 0.600715, 0.125285, -0.791662, 0.157,
                    -0.630347, 0.051686, 0.618122, -0.225226, -0.309496, 0.639166, -0.148181, 0.533852,
                    0.124367, -0.718981, -0.134612, 0.832882, -0.092294, 0.856368, 0.054092, -0.936888,
                ],
                &[
                    0.161315, 0.636744, -0.311917, -0.073743, -0.54236, -0.272865, 0.041052, -0.193874,
                    0.160934, -0.343488, 0.266422, 0.467853, -0.087618, 0.870219, -0.251372, -0.285193,
                ],
                &[-0.031111, 0.140316],
            ],
        );
    }

    #[test]
    fn conv1d_of_one_sequence_is_pytorchs() {
        let (x, w) = (wave([2, 5], 0.0), wave([3, 2, 3], 1.0));
        let y = x.conv1d(&w, None, 2, 1, 1, 1);
        assert_eq!(*y.shape(), [3, 3]);
        assert_with_gradients(
            &y,
            &[&x, &w],
            &[-0.09375, 1.051938, -0.328216, -0.238328, -0.382607, 0.290942, 0.434209, -0.505372, -0.087404],
            &[
                &[
                    0.854541, -0.9533, 0.772278, -0.379654, -1.053548, 0.881755, -0.339329, 0.156353,
                    1.617744, -0.922046,
                ],
                &[
                    1.438501, -0.546439, -0.273088, -1.156749, -0.389811, 0.359091, 0.461803, -0.013688,
                    -1.413352, -0.241123, -0.866241, 1.17247, -1.089399, 0.536091, -0.795343, 0.974471,
                    -0.265028, 0.527244,
                ],
            ],
        );
    }

    #[test]
    fn unfold_is_pytorchs() {
        let x = wave([2, 3, 3], 0.0);
        let y = x.unfold(2, 1, [1, 0], [2, 1]);
        assert_eq!(*y.shape(), [8, 4]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.0, 0.0, -0.925815, 0.494113, 0.0, 0.0, 0.494113, 0.798487, 0.0, 0.991665, -0.699875,
                -0.618137, 0.991665, -0.255541, -0.618137, 0.859162, 0.0, 0.0, 0.999793, -0.108637, 0.0, 0.0,
                -0.108637, -0.971798, 0.396741, -0.961397, 0.359058, 0.879273, -0.961397, -0.148999,
                0.879273, -0.585637,
            ],
            &[&[
                0.999309, 0.795251, -0.571926, -0.687766, -1.587902, -0.165604, -0.975626, -0.396464,
                0.762558, -0.443317, -1.660099, -0.448854, -0.310697, 1.182158, 0.946013, 0.657656, 1.606293,
                0.205598,
            ]],
        );
    }

    #[test]
    fn fold_is_pytorchs() {
        let x = wave([8, 4], 0.0);
        let y = x.fold(3, 2, 1, [1, 0], [2, 1]);
        assert_eq!(*y.shape(), [2, 3, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.859162, 1.396533, -0.108637, -0.255541, -1.625689, -0.618137, -0.961397, -1.120797,
                0.359058, 0.040693, -1.454412, -0.822324, -0.728361, 0.478656, 0.9856, 0.215987, 1.610658,
                0.649613,
            ],
            &[&[
                0.0, 0.0, -0.631267, 0.850437, 0.0, 0.0, 0.850437, 0.412118, 0.479426, 0.808496, -0.956635,
                -0.165604, 0.808496, -0.687766, -0.165604, 0.999309, 0.0, 0.0, 0.887158, -0.571926, 0.0, 0.0,
                -0.571926, -0.739779, -0.091907, -0.975626, 0.762558, 0.543276, -0.975626, 0.343315,
                0.543276, -0.902555,
            ]],
        );
    }

    #[test]
    fn an_empty_batch_is_a_batch() {
        let (x, w) = (wave([0, 2, 4, 4], 0.0), wave([3, 2, 3, 3], 1.0));
        let y = x.conv2d(&w, None, 1, 1, 1, 1);
        assert_eq!(*y.shape(), [0, 3, 4, 4]);
        y.sum(..).backward();
        assert_eq!(w.grad().unwrap().to_vec::<f64>().unwrap(), [0.0; 54]);
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let inputs = [wave([2, 4, 3, 2], 0.0), wave([2, 2, 2, 2], 1.0), wave(2, 2.0)];
        let conv2d = |t: &[Tensor]| t[0].conv2d(&t[1], Some(&t[2]), [2, 1], 1, [1, 2], 2);
        gradcheck(conv2d, &inputs).unwrap();
        gradgradcheck(conv2d, &inputs).unwrap();
        let inputs = [wave([2, 2, 5], 0.0), wave([3, 2, 3], 1.0)];
        let conv1d = |t: &[Tensor]| t[0].conv1d(&t[1], None, 2, 1, 1, 1);
        gradcheck(conv1d, &inputs).unwrap();
        gradgradcheck(conv1d, &inputs).unwrap();
    }

    #[test]
    #[should_panic(
        expected = "conv2d: the input has 3 channels, the weight takes 2 in each of 1 groups. input: f64 [1, 3, 4, 4]"
    )]
    fn channels_that_differ_are_named() {
        wave([1, 3, 4, 4], 0.0).conv2d(&wave([2, 2, 3, 3], 0.0), None, 1, 0, 1, 1);
    }

    #[test]
    #[should_panic(
        expected = "conv1d: a kernel of [1, 3] with dilation [1, 2] does not fit into planes of [1, 4] with padding [0, 0]"
    )]
    fn a_kernel_that_does_not_fit_is_named() {
        wave([1, 2, 4], 0.0).conv1d(&wave([2, 2, 3], 0.0), None, 1, 0, 2, 1);
    }
}
