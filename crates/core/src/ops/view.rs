//! Other shapes of the same elements: views where the layout allows it, copies where not.

use crate::autograd::{Context, record};
use crate::dispatch::run_into;
use crate::dtype::Scalar;
use crate::grads;
use crate::layout::Layout;
use crate::op::Op;
use crate::shape::{IntoDims, Shape};
use crate::tensor::Tensor;
use std::sync::Arc;

impl Tensor {
    /// The same elements in row-major order under another shape; one size may be -1 and is inferred. A view where possible.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let x = Tensor::arange(0, 24, 1, &Device::cpu());
    /// let batch = 2;
    /// assert_eq!(x.reshape((batch, 3, -1)).shape(), &[2, 3, 4]);
    /// ```
    ///
    /// # Panics
    /// If the numbers of elements differ.
    #[track_caller]
    pub fn reshape(&self, shape: impl IntoDims) -> Tensor {
        self.with_shape(self.inferred_shape("reshape", &shape.into_dims(), self.numel()))
    }

    /// Any pattern of this tensor's elements in row-major order: the one at `[i, j, ..]` is number
    /// `offset + i * stride[0] + j * stride[1] + ..`. Elements may be left out or appear more than once. A view where the tensor is
    /// row-major.
    ///
    /// ```
    /// # use orkest_core::{Device, Tensor};
    /// let x = Tensor::arange(0, 6, 1, &Device::cpu());
    /// assert_eq!(x.as_strided([2, 3], &[1, 2], 0).to_vec::<i64>()?, [0, 2, 4, 1, 3, 5]); // torch.as_strided(x, (2, 3), (1, 2))
    /// # Ok::<(), orkest_core::Error>(())
    /// ```
    ///
    /// # Panics
    /// If there are not as many strides as sizes, or an element lies outside of this tensor.
    #[track_caller]
    pub fn as_strided(&self, shape: impl Into<Shape>, stride: &[usize], offset: usize) -> Tensor {
        let shape = shape.into();
        let last = shape
            .iter()
            .zip(stride)
            .try_fold(offset, |at, (&n, &s)| at.checked_add(n.saturating_sub(1).checked_mul(s)?));
        let fits = shape.contains(&0) || last.is_some_and(|last| last < self.numel());
        if shape.rank() != stride.len() || !fits {
            panic!(
                "as_strided: shape {shape} with strides {stride:?} from {offset} on does not lie within {} elements. tensor: {}",
                self.numel(),
                self.describe()
            );
        }
        if shape.contains(&0) {
            return self.reshape(-1isize).narrow(0, 0, 0).with_shape(shape);
        }
        let dense = self.detach().contiguous();
        let strides: Vec<isize> = stride.iter().map(|&s| s as isize).collect();
        let pattern = Layout::new(shape, &strides, offset);
        let at = Layout::new(shape, &strides, dense.layout().offset() + offset);
        dense.with_layout(at, "as_strided").recorded("as_strided", &[self], &[], move |c| {
            // An element that appears more than once collects all its gradients.
            let places: Vec<i64> = pattern.positions().map(|i| i as i64).collect();
            let index = Tensor::from_slice(&places, places.len(), c.grad().device());
            let zeros = Tensor::zeros(c.input_shape(0).numel(), (c.grad().dtype(), c.grad().device()));
            grads![zeros.index_add(0, &index, &c.grad().reshape(-1isize)).reshape(c.input_shape(0))]
        })
    }

    /// Gives a fresh row-major result, which nobody has seen, another shape of as many elements.
    pub(crate) fn relay(&mut self, shape: Shape) {
        let layout = Layout::contiguous(shape);
        match Arc::get_mut(&mut self.0) {
            Some(inner) => inner.layout = layout,
            None => unreachable!("a fresh result has one handle"),
        }
    }

    /// [`Tensor::reshape`] to a shape of as many elements.
    #[track_caller]
    pub(crate) fn with_shape(&self, shape: Shape) -> Tensor {
        if shape == *self.shape() {
            return self.clone();
        }
        match self.layout().view(&shape) {
            Some(layout) => self.viewed(layout),
            None => self.detach().copy().with_layout(Layout::contiguous(shape), "reshape").reshaped(self),
        }
    }

    /// This tensor under a layout of the same elements in the same row-major order.
    #[track_caller]
    fn viewed(&self, layout: Layout) -> Tensor {
        self.with_layout(layout, "reshape").reshaped(self)
    }

    /// Records that this is `source` under another shape.
    #[track_caller]
    fn reshaped(self, source: &Tensor) -> Tensor {
        self.recorded("reshape", &[source], &[], |c| grads![c.grad().with_shape(*c.input_shape(0))])
    }

    /// As [`Tensor::reshape`], but never a copy.
    ///
    /// # Panics
    /// If the numbers of elements differ, or the layout does not allow this shape without a copy.
    #[track_caller]
    pub fn view(&self, shape: impl IntoDims) -> Tensor {
        let shape = self.inferred_shape("view", &shape.into_dims(), self.numel());
        match self.layout().view(&shape) {
            _ if shape == *self.shape() => self.clone(),
            Some(layout) => self.viewed(layout),
            None => panic!(
                "view: strides {:?} do not allow shape {shape} without a copy; use reshape. tensor: {}",
                self.layout().strides(),
                self.describe()
            ),
        }
    }

    /// The sizes of `numel` elements, with the one that is -1 put in.
    #[track_caller]
    fn inferred_shape(&self, op: &str, dims: &[isize], numel: usize) -> Shape {
        let holes = dims.iter().filter(|&&d| d < 0).count();
        if holes > 1 || dims.iter().any(|&d| d < -1) {
            panic!(
                "{op}: sizes are numbers, at most one of them -1, not {dims:?}. tensor: {}",
                self.describe()
            );
        }
        let mut shape: Shape = dims.iter().map(|&d| d.max(0) as usize).collect();
        if let Some(hole) = dims.iter().position(|&d| d < 0) {
            if numel == 0 && shape.with(hole, 1).contains(&0) {
                panic!(
                    "{op}: beside a size of 0, the -1 in {dims:?} could be any number. tensor: {}",
                    self.describe()
                );
            }
            let known = shape.with(hole, 1).checked_numel().filter(|&n| n > 0 && numel.is_multiple_of(n));
            shape[hole] = known.map_or(0, |n| numel / n);
        }
        if shape.checked_numel() != Some(numel) {
            panic!("{op}: {numel} elements do not fill {dims:?}. tensor: {}", self.describe());
        }
        shape
    }

    /// Dimensions `a` and `b` exchanged.
    #[track_caller]
    pub fn transpose(&self, a: isize, b: isize) -> Tensor {
        let (i, j) = (self.dim_index("transpose", a), self.dim_index("transpose", b));
        if i == j {
            return self.clone();
        }
        let out = self.with_layout(self.layout().transpose(i, j), "transpose");
        out.recorded("transpose", &[self], &[], move |c| grads![c.grad().transpose(i as isize, j as isize)])
    }

    /// The transpose of a matrix; vectors and scalars stay as they are.
    ///
    /// # Panics
    /// If there are more than two dimensions.
    #[track_caller]
    pub fn t(&self) -> Tensor {
        match self.rank() {
            0 | 1 => self.clone(),
            2 => self.transpose(0, 1),
            _ => panic!(
                "t: at most 2 dimensions are expected; use transpose(-2, -1). tensor: {}",
                self.describe()
            ),
        }
    }

    /// Dimensions reordered: dimension `i` of the result is dimension `dims[i]` of this tensor.
    ///
    /// # Panics
    /// If `dims` does not name every dimension once.
    #[track_caller]
    pub fn permute(&self, dims: impl IntoDims) -> Tensor {
        let dims = dims.into_dims();
        let mut seen = crate::shape::DimSet::default();
        let mut order = [0usize; crate::shape::MAX_RANK];
        for (i, &d) in dims.iter().enumerate() {
            order[i.min(order.len() - 1)] = self.dim_index("permute", d);
            if !seen.insert(order[i.min(order.len() - 1)]) {
                panic!("permute: dimension {d} is named twice in {dims:?}. tensor: {}", self.describe());
            }
        }
        let rank = self.rank();
        if dims.len() != rank {
            panic!("permute: {dims:?} must name each of {rank} dimensions once. tensor: {}", self.describe());
        }
        let out = self.with_layout(self.layout().permute(&order[..rank]), "permute");
        out.recorded("permute", &[self], &[], move |c| {
            let mut inverse = [0isize; crate::shape::MAX_RANK];
            for (i, &d) in order[..rank].iter().enumerate() {
                inverse[d] = i as isize;
            }
            grads![c.grad().permute(&inverse[..rank])]
        })
    }

    /// Dimension `source` moved to position `destination`, the others in order.
    #[track_caller]
    pub fn movedim(&self, source: isize, destination: isize) -> Tensor {
        let (from, to) = (self.dim_index("movedim", source), self.dim_index("movedim", destination));
        let mut order: Vec<isize> = (0..self.rank() as isize).filter(|&d| d != from as isize).collect();
        order.insert(to, from as isize);
        self.permute(&order[..])
    }

    /// Without dimension `dim` if its size is 1; itself otherwise, as in PyTorch.
    #[track_caller]
    pub fn squeeze(&self, dim: isize) -> Tensor {
        if self.rank() == 0 && (dim == 0 || dim == -1) {
            return self.clone();
        }
        let d = self.dim_index("squeeze", dim);
        if self.shape()[d] != 1 {
            return self.clone();
        }
        let out = self.with_layout(self.layout().squeeze(d), "squeeze");
        out.recorded("squeeze", &[self], &[], move |c| grads![c.grad().unsqueeze(d as isize)])
    }

    /// Without any dimension of size 1.
    #[track_caller]
    pub fn squeeze_all(&self) -> Tensor {
        self.with_shape(self.shape().iter().copied().filter(|&d| d != 1).collect())
    }

    /// With a new dimension of size 1 at position `dim`, which may be the number of dimensions.
    #[track_caller]
    pub fn unsqueeze(&self, dim: isize) -> Tensor {
        let rank = self.rank() as isize;
        let d = if dim < 0 { dim + rank + 1 } else { dim };
        if d < 0 || d > rank {
            panic!(
                "unsqueeze: position {dim} is out of range for {rank} dimensions. tensor: {}",
                self.describe()
            );
        }
        let out = self.with_layout(self.layout().unsqueeze(d as usize), "unsqueeze");
        out.recorded("unsqueeze", &[self], &[], move |c| grads![c.grad().squeeze(d)])
    }

    /// Sizes of 1 repeated without a copy; -1 leaves a size as it is, new dimensions are added in front.
    ///
    /// # Panics
    /// If the shapes do not allow it.
    #[track_caller]
    pub fn expand(&self, shape: impl IntoDims) -> Tensor {
        let dims = shape.into_dims();
        let lead = dims.len().checked_sub(self.rank());
        let sizes: Option<Shape> = lead.and_then(|lead| {
            let own = |i: usize| i.checked_sub(lead).map(|j| self.shape()[j]);
            dims.iter()
                .enumerate()
                .map(|(i, &d)| if d == -1 { own(i) } else { usize::try_from(d).ok() })
                .collect()
        });
        match sizes {
            Some(sizes) => self.broadcast_to(&sizes),
            None => panic!(
                "expand: shape {} does not expand to {dims:?}. tensor: {}",
                self.shape(),
                self.describe()
            ),
        }
    }

    /// Broadcast to `shape` without a copy.
    ///
    /// # Panics
    /// If the shapes do not allow it.
    #[track_caller]
    pub fn broadcast_to(&self, shape: &Shape) -> Tensor {
        if self.shape() == shape {
            return self.clone();
        }
        // The engine sums the gradient back.
        self.broadcast_view(shape).into_owned().recorded("expand", &[self], &[], |c| grads![c.grad().clone()])
    }

    /// Dimensions `start` to `end` (included) joined into one.
    #[track_caller]
    pub fn flatten(&self, start: isize, end: isize) -> Tensor {
        if self.rank() == 0 {
            return self.reshape([1usize]);
        }
        let (a, b) = (self.dim_index("flatten", start), self.dim_index("flatten", end));
        if a > b {
            panic!("flatten: dimension {start} comes after {end}. tensor: {}", self.describe());
        }
        let s = self.shape();
        let joined = s[a..=b].iter().product();
        let sizes = s[..a].iter().copied().chain([joined]).chain(s[b + 1..].iter().copied());
        self.with_shape(sizes.collect())
    }

    /// Dimension `dim` cut into `sizes`; one may be -1.
    #[track_caller]
    pub fn unflatten(&self, dim: isize, sizes: impl IntoDims) -> Tensor {
        let d = self.dim_index("unflatten", dim);
        let s = self.shape();
        // From this dimension alone: another may be empty.
        let part = self.inferred_shape("unflatten", &sizes.into_dims(), s[d]);
        self.with_shape(s[..d].iter().chain(&part[..]).chain(&s[d + 1..]).copied().collect())
    }

    /// `len` positions along `dim` from `start`.
    ///
    /// # Panics
    /// If they are not all there.
    #[track_caller]
    pub fn narrow(&self, dim: isize, start: usize, len: usize) -> Tensor {
        let d = self.dim_index("narrow", dim);
        if start.checked_add(len).is_none_or(|end| end > self.shape()[d]) {
            panic!(
                "narrow: {start}..{start}+{len} is out of range for size {}. tensor: {}",
                self.shape()[d],
                self.describe()
            );
        }
        self.slice_dim(dim, start, len, 1)
    }

    /// `len` positions along `dim`: `start`, `start + step`, ..
    ///
    /// # Panics
    /// If they are not all there or `step` is 0.
    #[track_caller]
    pub fn slice_dim(&self, dim: isize, start: usize, len: usize, step: usize) -> Tensor {
        let d = self.dim_index("slice", dim);
        let size = self.shape()[d];
        if step == 0
            || len > 0
                && (len - 1)
                    .checked_mul(step)
                    .and_then(|n| n.checked_add(start))
                    .is_none_or(|last| last >= size)
        {
            panic!(
                "slice: {len} positions from {start} by {step} are out of range for size {size}. tensor: {}",
                self.describe()
            );
        }
        if start == 0 && len == size && step == 1 {
            return self.clone();
        }
        let out = self.with_layout(self.layout().slice(d, start, len, step), "slice");
        out.recorded("slice", &[self], &[], move |c| {
            let part = Layout::contiguous(*c.input_shape(0)).slice(d, start, len, step);
            grads![c.grad().placed(c.input_shape(0), part)]
        })
    }

    /// Position `index` along `dim`, whose dimension disappears; a negative index counts from the end.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn select(&self, dim: isize, index: isize) -> Tensor {
        let d = self.dim_index("select", dim);
        let size = self.shape()[d] as isize;
        let i = if index < 0 { index + size } else { index };
        if i < 0 || i >= size {
            panic!("select: index {index} is out of range for size {size}. tensor: {}", self.describe());
        }
        if size == 1 {
            return self.squeeze(dim);
        }
        let at = i as usize;
        self.with_layout(self.layout().select(d, at), "select").recorded("select", &[self], &[], move |c| {
            let part = Layout::contiguous(*c.input_shape(0)).select(d, at);
            grads![c.grad().placed(c.input_shape(0), part)]
        })
    }

    /// Pieces of `size` along `dim`; the last may be smaller.
    ///
    /// # Panics
    /// If `size` is 0.
    #[track_caller]
    pub fn split(&self, size: usize, dim: isize) -> Vec<Tensor> {
        if size == 0 {
            panic!("split: pieces need a size above 0. tensor: {}", self.describe());
        }
        let n = self.size(dim);
        let sizes: Vec<usize> = (0..n.max(1)).step_by(size).map(|start| size.min(n - start)).collect();
        self.split_sizes(&sizes, dim)
    }

    /// Pieces of the given sizes along `dim`.
    ///
    /// # Panics
    /// If the sizes do not add up.
    #[track_caller]
    pub fn split_sizes(&self, sizes: &[usize], dim: isize) -> Vec<Tensor> {
        let d = self.dim_index("split", dim);
        if sizes.iter().sum::<usize>() != self.shape()[d] {
            panic!(
                "split: sizes {sizes:?} do not add up to {}. tensor: {}",
                self.shape()[d],
                self.describe()
            );
        }
        let mut start = 0;
        let piece = |&n: &usize| {
            start += n;
            self.with_layout(self.layout().slice(d, start - n, n, 1), "split")
        };
        let mut pieces: Vec<Tensor> = sizes.iter().map(piece).collect();
        // One node for all pieces: their gradients are joined once instead of padded and added one by one.
        record(&mut pieces, "split", &[self], &[], move |c: &Context<'_>| {
            let parts: Vec<Tensor> = (0..c.output_count()).map(|i| c.grad_or_zeros(i)).collect();
            grads![Tensor::cat(&parts, d as isize)]
        });
        pieces
    }

    /// At most `n` pieces of equal size along `dim`; the last may be smaller.
    #[track_caller]
    pub fn chunk(&self, n: usize, dim: isize) -> Vec<Tensor> {
        assert!(n > 0, "chunk: the number of pieces must be above 0");
        if self.size(dim) == 0 {
            return self.split_sizes(&vec![0; n], dim);
        }
        self.split(self.size(dim).div_ceil(n).max(1), dim)
    }

    /// Exactly `N` equal pieces along `dim`, to take apart: `let [q, k, v] = qkv.chunks(-1);`
    ///
    /// # Panics
    /// If the size is no multiple of `N`.
    #[track_caller]
    pub fn chunks<const N: usize>(&self, dim: isize) -> [Tensor; N] {
        let size = self.size(dim);
        if N == 0 || !size.is_multiple_of(N) {
            panic!("chunks: size {size} is no multiple of {N}. tensor: {}", self.describe());
        }
        let pieces = self.split_sizes(&[size / N; N], dim);
        pieces.try_into().unwrap_or_else(|_| unreachable!("as many pieces as sizes"))
    }

    /// All positions along `dim`, each without that dimension.
    #[track_caller]
    pub fn unbind(&self, dim: isize) -> Vec<Tensor> {
        let d = self.dim_index("unbind", dim);
        let slice = |i| self.with_layout(self.layout().select(d, i), "unbind");
        let mut slices: Vec<Tensor> = (0..self.shape()[d]).map(slice).collect();
        if !slices.is_empty() {
            record(&mut slices, "unbind", &[self], &[], move |c: &Context<'_>| {
                let parts: Vec<Tensor> = (0..c.output_count()).map(|i| c.grad_or_zeros(i)).collect();
                grads![Tensor::stack(&parts, d as isize)]
            });
        }
        slices
    }

    /// The order along `dims` reversed; a view.
    #[track_caller]
    pub fn flip(&self, dims: &[isize]) -> Tensor {
        let mut set = crate::shape::DimSet::default();
        let mut layout = *self.layout();
        for &d in dims {
            let d = self.dim_index("flip", d);
            if !set.insert(d) {
                panic!("flip: dimension {d} is named twice. tensor: {}", self.describe());
            }
            layout = layout.flip(d);
        }
        let out = self.with_layout(layout, "flip");
        out.recorded("flip", &[self], &[], move |c| {
            let dims: Vec<isize> = set.iter().map(|d| d as isize).collect();
            grads![c.grad().flip(&dims)]
        })
    }

    /// Rotated by `shift` positions along `dim`: what leaves at one end comes in at the other.
    #[track_caller]
    pub fn roll(&self, shift: isize, dim: isize) -> Tensor {
        let n = self.size(dim);
        let shift = if n == 0 { 0 } else { shift.rem_euclid(n as isize) as usize };
        if shift == 0 {
            return self.clone();
        }
        let x = self.detach();
        let y = Tensor::cat(&[&x.narrow(dim, n - shift, shift), &x.narrow(dim, 0, n - shift)], dim);
        y.recorded("roll", &[self], &[], move |c| grads![c.grad().roll(-(shift as isize), dim)])
    }

    /// Turned by `k` quarters from `dims[0]` towards `dims[1]`. PyTorch's defaults are `1, [0, 1]`.
    ///
    /// # Panics
    /// If a dimension is out of range or both are the same.
    #[track_caller]
    pub fn rot90(&self, k: isize, dims: [isize; 2]) -> Tensor {
        let [a, b] = dims;
        if self.dim_index("rot90", a) == self.dim_index("rot90", b) {
            panic!("rot90: {a} and {b} are the same dimension. tensor: {}", self.describe());
        }
        match k.rem_euclid(4) {
            0 => self.clone(),
            1 => self.flip(&[b]).transpose(a, b),
            2 => self.flip(&[a, b]),
            _ => self.flip(&[a]).transpose(a, b),
        }
    }

    /// The whole tensor repeated: `repeats` along each dimension, new ones in front.
    ///
    /// # Panics
    /// If there are fewer repeats than dimensions.
    #[track_caller]
    pub fn repeat(&self, repeats: impl Into<Shape>) -> Tensor {
        let repeats = repeats.into();
        let Some(lead) = repeats.rank().checked_sub(self.rank()) else {
            panic!(
                "repeat: {} repeats for {} dimensions. tensor: {}",
                repeats.rank(),
                self.rank(),
                self.describe()
            );
        };
        // Rows of a repeated dimension are `repeat` copies of all of them: one more dimension that is expanded and joined.
        let mut out = self.clone();
        for _ in 0..lead {
            out = out.unsqueeze(0);
        }
        for (d, &times) in repeats.iter().enumerate() {
            if times != 1 {
                let (dim, size) = (d as isize, out.shape()[d]);
                let mut wide = *out.shape();
                wide[d] = times * size;
                out = out.unsqueeze(dim).broadcast_to(&out.shape().inserted(d, times)).reshape(wide);
            }
        }
        out
    }

    /// Every position along `dim` repeated `repeats` times in a row.
    #[track_caller]
    pub fn repeat_interleave(&self, repeats: usize, dim: isize) -> Tensor {
        let d = self.dim_index("repeat_interleave", dim);
        let wide = self.shape().with(d, self.shape()[d] * repeats);
        self.unsqueeze(d as isize + 1).broadcast_to(&self.shape().inserted(d + 1, repeats)).reshape(wide)
    }

    /// Wider by `(before, after)` filled with `value` in the last dimensions, the pair of the last dimension first, as
    /// PyTorch's `pad`; negative amounts cut.
    ///
    /// # Panics
    /// If there are more pairs than dimensions or a cut is larger than the size.
    #[track_caller]
    pub fn pad(&self, pairs: &[(isize, isize)], value: impl Into<Scalar>) -> Tensor {
        if pairs.len() > self.rank() {
            panic!("pad: {} pairs for {} dimensions. tensor: {}", pairs.len(), self.rank(), self.describe());
        }
        let mut source = self.clone();
        let mut shape = *self.shape();
        let mut starts = [0usize; crate::shape::MAX_RANK];
        for (i, &(before, after)) in pairs.iter().enumerate() {
            let d = self.rank() - 1 - i;
            let size = shape[d] as isize;
            let (cut_before, cut_after) = ((-before).max(0), (-after).max(0));
            if cut_before + cut_after > size || size + before + after < 0 {
                panic!("pad: ({before}, {after}) cuts more than size {size}. tensor: {}", self.describe());
            }
            source = source.narrow(d as isize, cut_before as usize, (size - cut_before - cut_after) as usize);
            starts[d] = before.max(0) as usize;
            shape[d] = (size + before + after) as usize;
        }
        if shape == *source.shape() {
            return source;
        }
        let out = Tensor::full(shape, value, (self.dtype(), self.device()));
        let place = |mut layout: Layout, sizes: &Shape| {
            for d in 0..sizes.rank() {
                layout = layout.slice(d, starts[d], sizes[d], 1);
            }
            layout
        };
        let layout = place(*out.layout(), source.shape());
        run_into("pad", Op::Copy, &[&source], &out, layout);
        out.recorded("pad", &[&source], &[], move |c| {
            let mut g = c.grad().clone();
            for (d, &size) in c.input_shape(0).iter().enumerate() {
                g = g.narrow(d as isize, starts[d], size);
            }
            grads![g]
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor};

    #[test]
    fn unflatten_infers_from_its_own_dimension() {
        let empty = |shape: &[usize]| Tensor::zeros(shape, &Device::reference());
        assert_eq!(empty(&[0, 6, 2]).unflatten(1, [3, -1]).shape(), &[0, 3, 2, 2]);
        assert_eq!(empty(&[6, 0]).unflatten(-2, [-1]).shape(), &[6, 0]);
        assert_eq!(empty(&[4, 0]).unflatten(1, [-1, 2]).shape(), &[4, 0, 2]);
    }

    #[test]
    #[should_panic(expected = "unflatten: 4 elements do not fill [5]")]
    fn unflatten_wants_sizes_that_fill_the_dimension() {
        Tensor::zeros([4, 0], &Device::reference()).unflatten(0, [5]);
    }
}
