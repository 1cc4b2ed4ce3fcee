//! Pooling to a given size: the windows follow from the sizes of input and output.

use super::conv::Size2;
use super::lowering::wide;
use super::resample::resample_planes;
use crate::autograd::Save;
use crate::dispatch::run_fused;
use crate::dtype::{DType, Scalar};
use crate::grads;
use crate::op::{Axis, Filter, Op};
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// The means of `output_size` windows that together cover the plane, as PyTorch's
    /// [`adaptive_avg_pool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.adaptive_avg_pool2d.html).
    /// Window `i` of `out` reaches from `⌊i in / out⌋` to `⌈(i + 1) in / out⌉`.
    ///
    /// # Shapes
    /// - input: `[batch, channels, height, width]`, the batch may be left out
    /// - output: `[batch, channels, output_height, output_width]`
    ///
    /// # Panics
    /// If the rank is wrong, a size is zero, or the dtype is not a float.
    #[track_caller]
    pub fn adaptive_avg_pool2d(&self, output_size: impl Into<Size2>) -> Tensor {
        adaptive("adaptive_avg_pool2d", self, output_size.into().0, 2, mean_of_windows)
    }

    /// The means of `output_size` windows that together cover the sequence, as PyTorch's
    /// [`adaptive_avg_pool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.adaptive_avg_pool1d.html).
    ///
    /// # Shapes
    /// - input: `[batch, channels, length]`, the batch may be left out
    /// - output: `[batch, channels, output_size]`
    ///
    /// # Panics
    /// As [`Tensor::adaptive_avg_pool2d`].
    #[track_caller]
    pub fn adaptive_avg_pool1d(&self, output_size: usize) -> Tensor {
        adaptive("adaptive_avg_pool1d", self, [1, output_size], 1, mean_of_windows)
    }

    /// The largest elements of `output_size` windows that together cover the plane, as PyTorch's
    /// [`adaptive_max_pool2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.adaptive_max_pool2d.html).
    ///
    /// # Shapes
    /// As [`Tensor::adaptive_avg_pool2d`].
    ///
    /// # Panics
    /// As [`Tensor::adaptive_avg_pool2d`].
    #[track_caller]
    pub fn adaptive_max_pool2d(&self, output_size: impl Into<Size2>) -> Tensor {
        adaptive("adaptive_max_pool2d", self, output_size.into().0, 2, largest_of_windows)
    }

    /// The largest elements of `output_size` windows that together cover the sequence, as PyTorch's
    /// [`adaptive_max_pool1d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.adaptive_max_pool1d.html).
    ///
    /// # Shapes
    /// As [`Tensor::adaptive_avg_pool1d`].
    ///
    /// # Panics
    /// As [`Tensor::adaptive_avg_pool2d`].
    #[track_caller]
    pub fn adaptive_max_pool1d(&self, output_size: usize) -> Tensor {
        adaptive("adaptive_max_pool1d", self, [1, output_size], 1, largest_of_windows)
    }
}

/// Checks the operand and gives it to `pool` as `[n, c, h, w]`.
#[track_caller]
fn adaptive(
    op: &str,
    x: &Tensor,
    output: [usize; 2],
    spatial: usize,
    pool: fn(&Tensor, [usize; 2]) -> Tensor,
) -> Tensor {
    x.require_float(op);
    let batched = match x.rank().checked_sub(spatial) {
        Some(1) => x.unsqueeze(0),
        Some(2) => x.clone(),
        _ => panic!(
            "{op}: an input of [batch, channels, {}] is needed, batch optional. input: {}",
            ["length", "height, width"][spatial - 1],
            x.describe()
        ),
    };
    if output.contains(&0) || x.shape()[x.rank() - spatial..].contains(&0) {
        panic!("{op}: no size may be 0. output size: {:?}; input: {}", &output[2 - spatial..], x.describe());
    }
    let planes = if spatial == 1 { batched.unsqueeze(2) } else { batched };
    let y = pool(&planes, output);
    let y = if spatial == 1 { y.squeeze(2) } else { y };
    if x.rank() == spatial + 1 { y.squeeze(0) } else { y }
}

#[track_caller]
fn mean_of_windows(x: &Tensor, output: [usize; 2]) -> Tensor {
    let [_, _, height, width] = x.dims();
    let even = even_windows(x, output);
    if even.is_none() || output == [1, 1] {
        let axis = |input, output| Axis { input, output, filter: Filter::Mean };
        let axes = [axis(height, output[0]), axis(width, output[1])];
        if let Some(y) = resample_planes("adaptive_avg_pool2d", x, axes) {
            return y;
        }
    }
    if let Some(kernel) = even {
        return x.avg_pool2d(kernel, None::<Size2>, 0, true);
    }
    let lengths = |size, count| windows_of(size, count).map(|(start, end)| (end - start) as f64);
    let columns: Vec<f64> = lengths(width, output[1]).collect();
    let areas: Vec<f64> = lengths(height, output[0])
        .flat_map(|rows| columns.iter().map(move |columns| rows * columns))
        .collect();
    let wide = wide(x.dtype());
    let areas = Tensor::from_slice(&areas, output, (wide, x.device()));
    (windows(&x.to_dtype(wide), output, 0.0).sum([3, 5]) / areas).to_dtype(x.dtype())
}

#[track_caller]
fn largest_of_windows(x: &Tensor, output: [usize; 2]) -> Tensor {
    let even = even_windows(x, output);
    // Small windows side by side are the ordinary pool's strength.
    if let Some(kernel @ [height, width]) = even
        && height * width <= 9
    {
        return x.max_pool2d(kernel, None::<Size2>, 0);
    }
    let shape = Shape::from([x.size(0), x.size(1), output[0], output[1]]);
    let (op, outputs) = (Op::AdaptiveMaxPool { output }, [(shape, x.dtype()), (shape, DType::I64)]);
    if let Some([y, positions]) = run_fused("adaptive_max_pool2d", op, &[x], outputs) {
        return y.recorded("adaptive_max_pool2d", &[x], &[Save::Other(&positions)], |c| {
            let (g, positions, shape) = (c.grad(), c.saved(0), *c.input_shape(0));
            let dx = Tensor::zeros([shape[0], shape[1], shape[2] * shape[3]], (g.dtype(), g.device()));
            grads![dx.scatter_add(2, &positions.flatten(2, 3), &g.flatten(2, 3)).reshape(shape)]
        });
    }
    match even {
        Some(kernel) => x.max_pool2d(kernel, None::<Size2>, 0),
        None => {
            let windows = windows(x, output, f64::NEG_INFINITY).permute([0, 1, 2, 4, 3, 5]);
            windows.flatten(-2, -1).max_with_indices(-1).0
        }
    }
}

/// The kernel of an ordinary pool that sees the same windows, where they divide the plane.
fn even_windows(x: &Tensor, output: [usize; 2]) -> Option<[usize; 2]> {
    let [_, _, height, width] = x.dims();
    let divides = height.is_multiple_of(output[0]) && width.is_multiple_of(output[1]);
    divides.then(|| [height / output[0], width / output[1]])
}

/// Where windows start and end along an axis.
fn windows_of(size: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let axis = Axis { input: size, output: count, filter: Filter::Mean };
    (0..count).map(move |i| axis.window(i)).map(|window| (window.start, window.end))
}

/// `[n, c, h, w]` → `[n, c, oh, kh, ow, kw]`: what each window sees, short windows filled up with `fill`.
#[track_caller]
fn windows(x: &Tensor, output: [usize; 2], fill: impl Into<Scalar>) -> Tensor {
    let [n, channels, height, width] = x.dims();
    let mut seen = x.pad(&[(0, 1), (0, 1)], fill);
    let mut longest = [0; 2];
    for (axis, size) in [height, width].into_iter().enumerate() {
        let length = windows_of(size, output[axis]).map(|(start, end)| end - start).max().unwrap_or(0);
        let places: Vec<i64> = windows_of(size, output[axis])
            .flat_map(|(start, end)| (start..start + length).map(move |i| if i < end { i } else { size }))
            .map(|place| place as i64)
            .collect();
        seen = seen.index_select(2 + axis as isize, &Tensor::from_slice(&places, places.len(), x.device()));
        longest[axis] = length;
    }
    seen.reshape([n, channels, output[0], longest[0], output[1], longest[1]])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_with_gradients, device, wave};
    use crate::{Tensor, gradcheck, gradgradcheck};
    #[test]
    fn uneven_windows_overlap_as_pytorchs() {
        let x = wave([2, 5, 4], 0.0);
        let y = x.adaptive_avg_pool2d([3, 2]);
        assert_eq!(*y.shape(), [2, 3, 2]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.571066, -0.624842, 0.573277, -0.506858, 0.296198, -0.141943, -0.333994, 0.461836,
                -0.584573, 0.602463, -0.550359, 0.449582,
            ],
            &[&[
                0.119856, 0.119856, 0.202124, 0.202124, 0.005229, 0.005229, 0.096913, 0.096913, -0.114628,
                -0.114628, -0.105211, -0.105211, 0.097981, 0.097981, -0.002181, -0.002181, 0.212609,
                0.212609, 0.10303, 0.10303, -0.239159, -0.239159, -0.041401, -0.041401, -0.072607, -0.072607,
                -0.056719, -0.056719, 0.166552, 0.166552, -0.015318, -0.015318, -0.077355, -0.077355,
                0.070511, 0.070511, -0.243907, -0.243907, 0.085829, 0.085829,
            ]],
        );
        let y = x.adaptive_max_pool2d([2, 3]);
        assert_eq!(*y.shape(), [2, 2, 3]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.991665, 0.991665, -0.148999, 0.999793, 0.396741, 0.773328, 0.529083, 0.670229, 0.9856,
                0.068094, 0.980589, 0.980589,
            ],
            &[&[
                0.0, 1.287922, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.850437, 0.0, -0.687766, -0.631267, 0.0,
                0.0, 0.0, 0.0, 0.0, 0.0, 0.412118, -0.956635, 0.0, 0.0, 0.999309, 0.0, 0.0, 0.0, 0.0, 0.0,
                0.0, -0.165604, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.091907, -0.632311, 0.0,
            ]],
        );
        let x = wave([1, 2, 5], 0.0);
        let y = x.adaptive_avg_pool1d(7);
        assert_eq!(*y.shape(), [1, 2, 7]);
        assert_with_gradients(
            &y,
            &[&x],
            &[
                0.0, 0.495832, 0.368062, -0.255541, -0.590678, -0.215851, 0.494113, 0.798487, 0.049306,
                -0.659006, -0.618137, 0.120512, 0.627951, 0.396741,
            ],
            &[&[
                0.883674, 0.060365, -0.549931, 0.631278, -0.750576, 0.334051, 0.453701, -0.849922, 0.615236,
                -0.128347,
            ]],
        );
    }

    #[test]
    fn windows_that_divide_the_plane_are_those_of_an_ordinary_pool() {
        let x = wave([2, 4, 6], 0.0);
        let same = |a: Tensor, b: Tensor| assert_eq!(a.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap());
        same(x.adaptive_avg_pool2d([2, 3]), x.avg_pool2d(2, 2, 0, true));
        same(x.adaptive_max_pool2d([2, 3]), x.max_pool2d(2, 2, 0));
    }

    #[test]
    fn infinities_stay_in_their_windows() {
        let x = Tensor::new([[1.0f64, f64::INFINITY, 3.0]], device());
        assert_eq!(x.adaptive_avg_pool1d(2).to_vec::<f64>().unwrap(), [f64::INFINITY; 2]);
        let x = Tensor::new([[f64::NEG_INFINITY, 2.0, 3.0, 4.0, 5.0]], device());
        assert_eq!(x.adaptive_avg_pool1d(2).to_vec::<f64>().unwrap(), [f64::NEG_INFINITY, 4.0]);
        assert_eq!(x.adaptive_max_pool1d(4).to_vec::<f64>().unwrap(), [2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let inputs = [wave([1, 2, 5, 4], 0.0)];
        for f in
            [|t: &[Tensor]| t[0].adaptive_avg_pool2d([3, 2]), |t: &[Tensor]| t[0].adaptive_max_pool2d([2, 3])]
        {
            gradcheck(f, &inputs).unwrap();
            gradgradcheck(f, &inputs).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "adaptive_max_pool1d: no size may be 0. output size: [0]; input: f64 [2, 4]")]
    fn an_empty_output_is_refused() {
        wave([2, 4], 0.0).adaptive_max_pool1d(0);
    }
}
