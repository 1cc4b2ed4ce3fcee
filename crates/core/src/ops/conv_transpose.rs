//! Transposed convolution: the adjoint of a convolution as an operation of its own, which makes planes larger.

use super::conv::{Size2, convolve_back};
use crate::op::Window;
use crate::tensor::Tensor;

impl Tensor {
    /// Transposed convolution of planes, as PyTorch's
    /// [`conv_transpose2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv_transpose2d.html): every element
    /// of the input adds the weight, times itself, to a window of the output. Usual values: stride 1, padding 0, output_padding 0,
    /// groups 1, dilation 1.
    ///
    /// # Shapes
    /// - input: `[batch, in_channels, height, width]`, the batch may be left out
    /// - `weight`: `[in_channels, out_channels / groups, kernel_height, kernel_width]`
    /// - `bias`: `[out_channels]`
    /// - output: `[batch, out_channels, out_height, out_width]` with
    ///   `out = (in - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1`
    ///
    /// # Panics
    /// If the shapes do not fit, nothing is left of the output, `output_padding` is neither less than the stride nor than the
    /// dilation, or a dtype is not a float.
    #[track_caller]
    pub fn conv_transpose2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: impl Into<Size2>,
        padding: impl Into<Size2>,
        output_padding: impl Into<Size2>,
        groups: usize,
        dilation: impl Into<Size2>,
    ) -> Tensor {
        let op = "conv_transpose2d";
        check_operands(op, self, weight, bias, groups, 2);
        let x = if self.rank() == 3 { self.unsqueeze(0) } else { self.clone() };
        let (stride, padding, dilation) = (stride.into().0, padding.into().0, dilation.into().0);
        let window =
            output_window(op, self, &x, weight, [stride, padding, output_padding.into().0, dilation]);
        let y = transposed(op, &x, weight, bias, window, groups);
        if self.rank() == 3 { y.squeeze(0) } else { y }
    }

    /// Transposed convolution of sequences, as PyTorch's
    /// [`conv_transpose1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv_transpose1d.html). Usual values:
    /// stride 1, padding 0, output_padding 0, groups 1, dilation 1.
    ///
    /// # Shapes
    /// - input: `[batch, in_channels, length]`, the batch may be left out
    /// - `weight`: `[in_channels, out_channels / groups, kernel]`
    /// - `bias`: `[out_channels]`
    /// - output: `[batch, out_channels, out_length]`, sizes as in [`Tensor::conv_transpose2d`]
    ///
    /// # Panics
    /// As [`Tensor::conv_transpose2d`].
    #[track_caller]
    pub fn conv_transpose1d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: usize,
        output_padding: usize,
        groups: usize,
        dilation: usize,
    ) -> Tensor {
        let op = "conv_transpose1d";
        check_operands(op, self, weight, bias, groups, 1);
        let x = if self.rank() == 2 { self.unsqueeze(0) } else { self.clone() }.unsqueeze(2);
        let weight = weight.unsqueeze(2);
        let settings = [[1, stride], [0, padding], [0, output_padding], [1, dilation]];
        let window = output_window(op, self, &x, &weight, settings);
        let y = transposed(op, &x, &weight, bias, window, groups).squeeze(2);
        if self.rank() == 2 { y.squeeze(0) } else { y }
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
            "{op}: input [batch, in_channels, {sizes}] (batch optional) and weight [in_channels, out_channels / groups, {kernel}] \
             are needed. {}",
            describe()
        );
    }
    let channels = x.shape()[x.rank() - spatial - 1];
    if channels != weight.size(0) {
        panic!(
            "{op}: the input has {channels} channels, the weight takes {}. {}",
            weight.size(0),
            describe()
        );
    }
    if groups == 0 || !channels.is_multiple_of(groups) {
        panic!("{op}: {channels} input channels cannot be divided into {groups} groups. {}", describe());
    }
    let out_channels = weight.size(1) * groups;
    if bias.is_some_and(|b| *b.shape() != [out_channels]) {
        panic!("{op}: the bias must have shape [{out_channels}]. {}", describe());
    }
}

/// The window that the forward convolution would slide over the output. `caller` is what the user gave, for messages.
#[track_caller]
fn output_window(
    op: &str,
    caller: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    [stride, padding, output_padding, dilation]: [[usize; 2]; 4],
) -> Window {
    let (input, kernel) = ([x.size(2), x.size(3)], [weight.size(2), weight.size(3)]);
    if [kernel, stride, dilation].iter().flatten().any(|&size| size == 0) {
        panic!(
            "{op}: kernel {kernel:?}, stride {stride:?} and dilation {dilation:?} must not be zero. input: {}",
            caller.describe()
        );
    }
    if (0..2).any(|d| output_padding[d] >= stride[d].max(dilation[d])) {
        panic!(
            "{op}: output_padding {output_padding:?} must be smaller than stride {stride:?} or dilation {dilation:?}. input: {}",
            caller.describe()
        );
    }
    let size = |d: usize| {
        let whole =
            input[d].checked_sub(1)? * stride[d] + dilation[d] * (kernel[d] - 1) + output_padding[d] + 1;
        whole.checked_sub(2 * padding[d]).filter(|&size| size > 0)
    };
    let (Some(height), Some(width)) = (size(0), size(1)) else {
        panic!(
            "{op}: padding {padding:?} leaves nothing of the output of planes of {input:?} and a kernel of {kernel:?}. input: {}",
            caller.describe()
        );
    };
    Window { input: [height, width], kernel, stride, padding, dilation }
}

/// Each input element times the weight gives a patch, and overlapping patches are summed: what the gradient of a convolution does.
#[track_caller]
fn transposed(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
    groups: usize,
) -> Tensor {
    let (x, weight) = (x.in_low_precision(), weight.in_low_precision());
    let bias = bias.map(Tensor::in_low_precision);
    let dtype =
        [Some(&weight), bias.as_ref()].into_iter().flatten().fold(x.dtype(), |d, t| d.promote(t.dtype()));
    // Where output_padding reaches the stride, more windows fit than there are elements; those see zeros.
    let [rows, columns] = window.output();
    let missing = [(0, (columns - x.size(3)) as isize), (0, (rows - x.size(2)) as isize)];
    let x = x.to_dtype(dtype).pad(&missing, 0.0);
    let y = convolve_back(op, &x, &weight.to_dtype(dtype), window, groups);
    bias.map_or(y.clone(), |b| y + b.to_dtype(dtype).reshape([b.numel(), 1, 1]))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_with_gradients, wave};
    use crate::{Tensor, gradcheck, gradgradcheck};
    #[test]
    fn conv_transpose2d_with_everything_uneven_is_pytorchs() {
        let (x, w, b) = (wave([1, 4, 2, 3], 0.0), wave([4, 1, 2, 2], 1.0), wave(2, 2.0));
        let y = x.conv_transpose2d(&w, Some(&b), [2, 1], [1, 0], [1, 0], 2, [1, 2]);
        assert_eq!(*y.shape(), [1, 2, 3, 5]);
        assert_with_gradients(
            &y,
            &[&x, &w, &b],
            &[
                1.594599, 0.570893, 0.082008, 0.526229, 1.237201, 0.526414, 0.365082, 1.006929, 1.192722,
                1.261752, 1.401825, 1.380477, 0.593923, 0.504455, 0.71505, -1.04276, -0.700847, 0.065247,
                0.14588, -0.742053, -0.715525, 0.092705, 0.109379, -0.75673, -1.085317, -0.502355, -1.093909,
                -1.032992, -0.157587, -0.00473,
            ],
            &[
                &[
                    -0.330937, -0.654374, 0.499562, 1.042811, -0.600412, -0.888091, -0.694669, -0.998385,
                    0.951942, 1.669796, -1.553798, -1.2694, -1.251008, -0.641505, 1.416316, 1.062508,
                    -2.536855, -0.408788, -1.133002, -0.481737, 1.25714, 0.773733, -2.428782, -0.147862,
                ],
                &[
                    -0.986464, 0.573704, 2.758779, -2.53797, 1.107885, -1.012741, -2.27552, 2.614268,
                    -0.973231, 1.163073, 1.472216, -2.051173, 0.438287, -0.897211, 0.602799, 0.136218,
                ],
                &[-0.04025, 0.048498],
            ],
        );
    }

    #[test]
    fn output_padding_may_reach_beyond_the_stride() {
        let (x, w) = (wave([2, 3], 0.0), wave([2, 2, 2], 1.0));
        let y = x.conv_transpose1d(&w, None, 1, 1, 2, 1, 3);
        assert_eq!(*y.shape(), [2, 6]);
        assert_with_gradients(
            &y,
            &[&x, &w],
            &[
                1.327851, 0.582294, 0.069576, 0.386684, -0.16922, 0.0, -1.427495, -0.538687, -0.303181,
                -0.018835, 0.308034, 0.0,
            ],
            &[
                &[-0.475974, 1.06071, 1.379098, 0.378935, 1.432786, 0.586071],
                &[0.268825, -0.843326, -0.906343, 0.158172, 0.882465, 1.003889, -0.604919, -1.749612],
            ],
        );
    }

    #[test]
    fn it_is_the_adjoint_of_convolution() {
        // <conv(x), y> = <x, conv_transpose(y)> for all x and y.
        let (x, w, y) = (wave([1, 2, 5, 6], 0.0), wave([3, 2, 3, 2], 1.0), wave([1, 3, 3, 4], 2.0));
        let forward = (x.conv2d(&w, None, 2, 1, 1, 1) * &y).sum(..).item().unwrap();
        let back = y.conv_transpose2d(&w, None, 2, 1, 0, 1, 1);
        let back = (&x * back).sum(..).item().unwrap();
        assert!((forward - back).abs() < 1e-12, "{forward} is not {back}");
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let inputs = [wave([1, 4, 2, 2], 0.0), wave([4, 1, 2, 2], 1.0), wave(2, 2.0)];
        let f = |t: &[Tensor]| t[0].conv_transpose2d(&t[1], Some(&t[2]), [2, 1], [1, 0], [1, 0], 2, [1, 2]);
        gradcheck(f, &inputs).unwrap();
        gradgradcheck(f, &inputs).unwrap();
    }

    #[test]
    #[should_panic(
        expected = "conv_transpose2d: the input has 3 channels, the weight takes 2. input: f64 [1, 3, 4, 4]"
    )]
    fn channels_that_differ_are_named() {
        wave([1, 3, 4, 4], 0.0).conv_transpose2d(&wave([2, 3, 3, 3], 0.0), None, 1, 0, 0, 1, 1);
    }

    #[test]
    #[should_panic(
        expected = "conv_transpose1d: output_padding [0, 2] must be smaller than stride [1, 2] or dilation [1, 1]"
    )]
    fn too_much_output_padding_is_named() {
        wave([2, 4], 0.0).conv_transpose1d(&wave([2, 3, 3], 0.0), None, 2, 0, 2, 1, 1);
    }

    #[test]
    #[should_panic(expected = "conv_transpose1d: padding [0, 2] leaves nothing of the output")]
    fn too_much_padding_is_named() {
        wave([2, 1], 0.0).conv_transpose1d(&wave([2, 3, 3], 0.0), None, 1, 2, 0, 1, 1);
    }
}
