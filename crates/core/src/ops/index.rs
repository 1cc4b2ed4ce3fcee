//! Slicing with ranges, and everything that takes positions from a tensor.

use crate::autograd::{Save, is_grad_enabled, records};
use crate::device::Device;
use crate::dispatch::{run, run_into};
use crate::dtype::DType;
use crate::error::Result;
use crate::grads;
use crate::layout::Layout;
use crate::op::Op;
use crate::shape::{MAX_RANK, Shape};
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

/// A range of positions with optional ends and a step; see [`slice`](crate::slice()).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    start: Option<isize>,
    end: Option<isize>,
    step: usize,
}

/// One entry of an index: what to take along one dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Index {
    /// One position; the dimension disappears. Negative counts from the end.
    Select(isize),
    /// A range; ends beyond the size are cut, negative ones count from the end, as in Python.
    Slice(Slice),
    /// A new dimension of size 1.
    NewAxis,
    /// All dimensions that are not mentioned otherwise.
    Ellipsis,
}

/// A range with a step, for an index: `x.i((slice(.., 2), slice(1.., 3)))` is Python's `x[::2, 1::3]`.
///
/// # Panics
/// If `step` is 0.
#[track_caller]
pub fn slice(range: impl Into<Index>, step: usize) -> Index {
    assert!(step > 0, "slice: the step must be above 0");
    match range.into() {
        Index::Slice(s) => Index::Slice(Slice { step: s.step * step, ..s }),
        other => panic!("slice: a range is expected, not {other:?}"),
    }
}

fn range(start: Option<isize>, end: Option<isize>) -> Index {
    Index::Slice(Slice { start, end, step: 1 })
}

/// What [`Tensor::i`] takes: one index entry, or a tuple of them for the first dimensions.
pub trait IndexList {
    /// The entries in order.
    fn entries(self) -> smallvec::SmallVec<[Index; 8]>;

    /// The part of a tensor with this layout; or what does not fit.
    #[doc(hidden)]
    fn apply(self, layout: &Layout) -> Result<Layout, String>
    where
        Self: Sized,
    {
        let entries = self.entries();
        let used = entries.iter().filter(|e| matches!(e, Index::Select(_) | Index::Slice(_))).count();
        if used > layout.rank() {
            return Err(format!("{used} entries for {} dimensions", layout.rank()));
        }
        if entries.iter().filter(|e| **e == Index::Ellipsis).count() > 1 {
            return Err("more than one Ellipsis".into());
        }
        let new = entries.iter().filter(|e| **e == Index::NewAxis).count();
        let selected = entries.iter().filter(|e| matches!(e, Index::Select(_))).count();
        if layout.rank() - selected + new > MAX_RANK {
            return Err(format!("more than {MAX_RANK} dimensions, the most a tensor can have"));
        }
        let (rank, mut out, mut dim) = (layout.rank(), *layout, 0);
        for entry in entries {
            let size = |out: &Layout| out.shape()[dim] as isize;
            match entry {
                Index::Select(index) => {
                    let at = if index < 0 { index + size(&out) } else { index };
                    if at < 0 || at >= size(&out) {
                        return Err(format!(
                            "index {index} is out of range for a dimension of size {}",
                            size(&out)
                        ));
                    }
                    out = out.select(dim, at as usize);
                }
                Index::Slice(Slice { start, end, step }) => {
                    let n = size(&out);
                    let place = |i: isize| (if i < 0 { i + n } else { i }).clamp(0, n) as usize;
                    let (a, b) = (start.map_or(0, place), end.map_or(n as usize, place));
                    out = out.slice(dim, a, b.saturating_sub(a).div_ceil(step), step);
                    dim += 1;
                }
                Index::NewAxis => {
                    out = out.unsqueeze(dim);
                    dim += 1;
                }
                Index::Ellipsis => dim += rank - used,
            }
        }
        Ok(out)
    }
}

macro_rules! index_from {
    ($($t:ty => |$v:ident| $e:expr;)*) => {$(
        impl From<$t> for Index { fn from($v: $t) -> Index { $e } }
        impl IndexList for $t {
            fn entries(self) -> smallvec::SmallVec<[Index; 8]> { smallvec::smallvec![self.into()] }
        }
    )*};
}

macro_rules! index_from_integers {
    ($($t:ty)*) => {$(
        index_from! {
            $t => |v| Index::Select(v as isize);
            Range<$t> => |v| range(Some(v.start as isize), Some(v.end as isize));
            RangeFrom<$t> => |v| range(Some(v.start as isize), None);
            RangeTo<$t> => |v| range(None, Some(v.end as isize));
            RangeInclusive<$t> => |v| range(Some(*v.start() as isize), past(*v.end() as isize));
            RangeToInclusive<$t> => |v| range(None, past(v.end as isize));
        }
    )*};
}

/// The end after the included position `last`; after -1 there is no end.
fn past(last: isize) -> Option<isize> {
    (last != -1).then_some(last + 1)
}

index_from_integers!(i32 isize usize i64);
index_from! {
    RangeFull => |_v| range(None, None);
    Slice => |v| Index::Slice(v);
}

impl IndexList for Index {
    fn entries(self) -> smallvec::SmallVec<[Index; 8]> {
        smallvec::smallvec![self]
    }
}

impl IndexList for &[Index] {
    fn entries(self) -> smallvec::SmallVec<[Index; 8]> {
        self.iter().copied().collect()
    }
}

macro_rules! index_tuple {
    ($($t:ident $i:tt),*) => {
        impl<$($t: Into<Index>),*> IndexList for ($($t,)*) {
            fn entries(self) -> smallvec::SmallVec<[Index; 8]> { smallvec::smallvec![$(self.$i.into()),*] }
        }
    };
}
index_tuple!(A 0);
index_tuple!(A 0, B 1);
index_tuple!(A 0, B 1, C 2);
index_tuple!(A 0, B 1, C 2, D 3);
index_tuple!(A 0, B 1, C 2, D 3, E 4);
index_tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
index_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
index_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// The elements that index tensors address.
pub(crate) struct Addressed {
    /// How many dimensions are indexed.
    pub indexed: usize,
    /// All dimensions, the indexed ones first.
    pub order: Vec<isize>,
    /// The numbers of the elements in the joined indexed dimensions: i64 `[n]`.
    pub flat: Tensor,
    /// The shape of what is found: the common dimensions of the index tensors, then those that are not indexed.
    pub found: Shape,
    /// How its dimensions are then reordered; empty if they are not.
    pub back: Vec<isize>,
}

/// The common dimensions of the index tensors go back where the first one stood, unless they are no neighbours. As in PyTorch an
/// index without dimensions only selects: it neither separates neighbours nor says where they stand.
fn common_dims_back(indices: &[Option<&Tensor>], common: usize, rank: usize) -> Vec<isize> {
    let lists = |t: &Option<&Tensor>| t.is_some_and(|t| t.rank() > 0);
    let (Some(first), Some(last)) = (indices.iter().position(lists), indices.iter().rposition(lists)) else {
        return Vec::new();
    };
    let lead = indices[..first].iter().filter(|t| t.is_none()).count();
    if lead == 0 || indices[first..=last].iter().any(Option::is_none) {
        return Vec::new();
    }
    (common..common + lead).chain(0..common).chain(common + lead..rank).map(|d| d as isize).collect()
}

/// The permutation that undoes `order`.
pub(crate) fn inverse_order(order: &[isize]) -> Vec<isize> {
    let mut inverse = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        inverse[from as usize] = to as isize;
    }
    inverse
}

/// Truth values that are looked at before what is found is kept.
const BLOCK: usize = 1024;

/// Adds the positions of what is true, the first being `start`. Without branches: which way they go is anybody's guess.
fn push_true(bits: &[bool], start: i64, hits: &mut Vec<i64>) {
    let mut found = [0; BLOCK];
    for (i, bits) in bits.chunks(BLOCK).enumerate() {
        let mut count = 0;
        for (j, bit) in bits.iter().enumerate() {
            // Never beyond `j`, so always within the block.
            found[count & (BLOCK - 1)] = start + (i * BLOCK + j) as i64;
            count += *bit as usize;
        }
        hits.extend_from_slice(&found[..count]);
    }
}

impl Tensor {
    /// Part of the tensor, as Python's `x[...]` with integers, ranges, steps, new axes and an ellipsis. A view.
    ///
    /// ```
    /// # use orkest_core::{slice, Device, Index, Tensor};
    /// let x = Tensor::arange(0, 24, 1, &Device::cpu()).reshape([2, 3, 4]);
    /// assert_eq!(x.i((.., -1, 1..3)).shape(), &[2, 2]);
    /// assert_eq!(x.i((Index::Ellipsis, slice(.., 2))).shape(), &[2, 3, 2]);
    /// assert_eq!(x.i((0, Index::NewAxis)).shape(), &[1, 3, 4]);
    /// ```
    ///
    /// # Panics
    /// If a position is out of range or there are more entries than dimensions.
    #[track_caller]
    pub fn i(&self, index: impl IndexList) -> Tensor {
        let entries = index.entries();
        let out = self.with_layout(self.part_of(self.layout(), "index", &entries[..]), "index");
        if !records(&[self]) {
            return out;
        }
        let part = self.part_of(&Layout::contiguous(*self.shape()), "index", &entries[..]);
        out.recorded("index", &[self], &[], move |c| grads![c.grad().placed(c.input_shape(0), part)])
    }

    /// The part of a layout of this tensor that an index names.
    #[track_caller]
    pub(crate) fn part_of(&self, layout: &Layout, op: &str, index: impl IndexList) -> Layout {
        match index.apply(layout) {
            Ok(part) => part,
            Err(problem) => panic!("{op}: {problem}. tensor: {}", self.describe()),
        }
    }

    /// Elements by position: `y[i][j] = x[index[i][j]][j]` for `dim` 0, and so on. The result has the index's shape.
    ///
    /// # Panics
    /// If the index is not i64, has another number of dimensions, is larger than `x` elsewhere, or (on the CPU) out of range.
    #[track_caller]
    pub fn gather(&self, dim: isize, index: &Tensor) -> Tensor {
        index.require_index("gather");
        let d = self.check_index_shape("gather", dim, index);
        let y = run("gather", Op::Gather { dim: d }, &[self, index], *index.shape(), self.dtype());
        y.recorded("gather", &[self, index], &[Save::Input(1)], move |c| {
            let mut x_grad = Tensor::zeros(*c.input_shape(0), (c.grad().dtype(), c.grad().device()));
            x_grad.scatter_add_(d as isize, c.saved(0), c.grad());
            grads![x_grad, None]
        })
    }

    /// This tensor with `y[index[i][j]][j] = source[i][j]` for `dim` 0, and so on. Of colliding positions the last wins.
    ///
    /// # Panics
    /// As [`Tensor::gather`]; also if `source` is smaller than the index.
    #[track_caller]
    pub fn scatter(&self, dim: isize, index: &Tensor, source: &Tensor) -> Tensor {
        self.scattered("scatter", dim, index, source, false)
    }

    /// This tensor with `y[index[i][j]][j] += source[i][j]` for `dim` 0, and so on, collisions added in order.
    ///
    /// # Panics
    /// As [`Tensor::gather`]; also if `source` is smaller than the index.
    #[track_caller]
    pub fn scatter_add(&self, dim: isize, index: &Tensor, source: &Tensor) -> Tensor {
        self.scattered("scatter_add", dim, index, source, true)
    }

    /// As [`Tensor::scatter`], into this tensor: in place where nobody else sees its memory.
    ///
    /// # Panics
    /// As [`Tensor::scatter`].
    #[track_caller]
    pub fn scatter_(&mut self, dim: isize, index: &Tensor, source: &Tensor) {
        self.scatter_into("scatter_", dim, index, source, false);
    }

    /// As [`Tensor::scatter_add`], into this tensor: in place where nobody else sees its memory.
    ///
    /// # Panics
    /// As [`Tensor::scatter_add`].
    #[track_caller]
    pub fn scatter_add_(&mut self, dim: isize, index: &Tensor, source: &Tensor) {
        self.scatter_into("scatter_add_", dim, index, source, true);
    }

    #[track_caller]
    fn scattered(
        &self,
        name: &'static str,
        dim: isize,
        index: &Tensor,
        source: &Tensor,
        add: bool,
    ) -> Tensor {
        let d = self.check_scatter(name, dim, index, source);
        let source = self.accepts(name, source).corner(index.shape());
        let mut y = self.detach();
        y.overwrite_positions(name, d, index, &source, add);
        y.recorded(name, &[self, index, &source], &[Save::Input(1)], move |c| {
            let (index, g) = (c.saved(0), c.grad());
            let own = match add {
                true => c.needs(0).then(|| g.clone()),
                false => c.needs(0).then(|| {
                    g.scatter(d as isize, index, &Tensor::zeros(*index.shape(), (g.dtype(), g.device())))
                }),
            };
            grads![own, None, c.needs(2).then(|| g.gather(d as isize, index))]
        })
    }

    #[track_caller]
    fn scatter_into(&mut self, name: &'static str, dim: isize, index: &Tensor, source: &Tensor, add: bool) {
        if is_grad_enabled() && (self.requires_grad() || source.requires_grad()) {
            *self = self.scattered(name, dim, index, source, add);
            return;
        }
        let d = self.check_scatter(name, dim, index, source);
        let source = self.accepts(name, source).detach().corner(index.shape());
        self.overwrite_positions(name, d, index, &source, add);
    }

    #[track_caller]
    fn overwrite_positions(
        &mut self,
        name: &'static str,
        d: usize,
        index: &Tensor,
        source: &Tensor,
        add: bool,
    ) {
        self.make_unique();
        if index.numel() > 0 {
            run_into(name, Op::Scatter { dim: d, add }, &[index, source], self, *self.layout());
        }
    }

    #[track_caller]
    pub(crate) fn check_scatter(&self, name: &str, dim: isize, index: &Tensor, source: &Tensor) -> usize {
        index.require_index(name);
        let d = self.check_index_shape(name, dim, index);
        if source.rank() != index.rank()
            || source.shape().iter().zip(index.shape().iter()).any(|(s, i)| s < i)
        {
            panic!(
                "{name}: the source is smaller than the index. source: {}; index: {}",
                source.describe(),
                index.describe()
            );
        }
        d
    }

    /// `source` in this tensor's dtype.
    ///
    /// # Panics
    /// If that loses its kind: a float does not fit into integers.
    #[track_caller]
    pub(crate) fn accepts(&self, op: &str, source: &Tensor) -> Tensor {
        if source.dtype().category() > self.dtype().category() {
            panic!(
                "{op}: a {} source does not fit into {}; convert one with .to_dtype(..). tensor: {}; source: {}",
                source.dtype(),
                self.dtype(),
                self.describe(),
                source.describe()
            );
        }
        source.to_dtype(self.dtype())
    }

    /// The first positions along every dimension.
    #[track_caller]
    pub(crate) fn corner(&self, shape: &Shape) -> Tensor {
        shape.iter().enumerate().fold(self.clone(), |x, (i, &n)| x.narrow(i as isize, 0, n))
    }

    #[track_caller]
    fn check_index_shape(&self, op: &str, dim: isize, index: &Tensor) -> usize {
        let d = self.dim_index(op, dim);
        let larger = |(i, (&n, &size)): (usize, (&usize, &usize))| i != d && n > size;
        if index.rank() != self.rank()
            || index.shape().iter().zip(self.shape().iter()).enumerate().any(larger)
        {
            panic!(
                "{op}: index shape {} does not fit shape {} along dimension {d}. tensor: {}; index: {}",
                index.shape(),
                self.shape(),
                self.describe(),
                index.describe()
            );
        }
        d
    }

    /// As [`Tensor::gather`], with this tensor and the index broadcast to each other outside `dim`.
    #[track_caller]
    pub fn take_along_dim(&self, index: &Tensor, dim: isize) -> Tensor {
        let d = self.dim_index("take_along_dim", dim);
        if index.rank() != self.rank() {
            panic!(
                "take_along_dim: as many index dimensions as tensor dimensions are expected. tensor: {}; index: {}",
                self.describe(),
                index.describe()
            );
        }
        let (mut own, mut other) = (*self.shape(), *index.shape());
        (own[d], other[d]) = (1, 1);
        let Some(common) = own.broadcast(&other) else {
            panic!(
                "take_along_dim: the shapes do not broadcast. tensor: {}; index: {}",
                self.describe(),
                index.describe()
            );
        };
        let x = self.broadcast_to(&common.with(d, self.shape()[d]));
        x.gather(dim, &index.broadcast_to(&common.with(d, index.shape()[d])))
    }

    /// Whole slices along `dim` by number, in the order of the 1-D `index`.
    ///
    /// # Panics
    /// If the index is not 1-D i64 or (on the CPU) out of range.
    #[track_caller]
    pub fn index_select(&self, dim: isize, index: &Tensor) -> Tensor {
        self.select_slices("index_select", dim, index)
    }

    /// [`Tensor::index_select`] for the public operation `name`.
    #[track_caller]
    fn select_slices(&self, name: &'static str, dim: isize, index: &Tensor) -> Tensor {
        index.require_index(name);
        let d = self.dim_index(name, dim);
        if index.rank() > 1 {
            panic!("{name}: the index must have 1 dimension. index: {}", index.describe());
        }
        let index = &*index.as_list();
        let shape = self.shape().with(d, index.numel());
        let y = run(name, Op::IndexSelect { dim: d }, &[self, index], shape, self.dtype());
        y.recorded(name, &[self, index], &[Save::Input(1)], move |c| {
            let mut x_grad = Tensor::zeros(*c.input_shape(0), (c.grad().dtype(), c.grad().device()));
            x_grad.index_add_(d as isize, c.saved(0), c.grad());
            grads![x_grad, None]
        })
    }

    /// This tensor with slice `i` of `source` added to slice `index[i]` along `dim`, in order.
    ///
    /// # Panics
    /// If the index is not 1-D i64, `source` has other sizes, or (on the CPU) the index is out of range.
    #[track_caller]
    pub fn index_add(&self, dim: isize, index: &Tensor, source: &Tensor) -> Tensor {
        let d = self.check_index_add("index_add", dim, index, source);
        let source = self.accepts("index_add", source);
        let mut y = self.detach();
        y.add_slices("index_add", d, index, &source);
        y.recorded("index_add", &[self, index, &source], &[Save::Input(1)], move |c| {
            grads![c.grad().clone(), None, c.needs(2).then(|| c.grad().index_select(d as isize, c.saved(0)))]
        })
    }

    /// As [`Tensor::index_add`], into this tensor: in place where nobody else sees its memory.
    ///
    /// # Panics
    /// As [`Tensor::index_add`].
    #[track_caller]
    pub fn index_add_(&mut self, dim: isize, index: &Tensor, source: &Tensor) {
        let d = self.check_index_add("index_add_", dim, index, source);
        if is_grad_enabled() && (self.requires_grad() || source.requires_grad()) {
            *self = self.index_add(dim, index, source);
            return;
        }
        let source = self.accepts("index_add_", source).detach();
        self.add_slices("index_add_", d, index, &source);
    }

    #[track_caller]
    fn add_slices(&mut self, name: &'static str, d: usize, index: &Tensor, source: &Tensor) {
        self.make_unique();
        if source.numel() > 0 {
            let layout = *self.layout();
            run_into(name, Op::IndexAdd { dim: d }, &[index, source], self, layout);
        }
    }

    #[track_caller]
    fn check_index_add(&self, name: &str, dim: isize, index: &Tensor, source: &Tensor) -> usize {
        index.require_index(name);
        let d = self.dim_index(name, dim);
        let fits = index.rank() == 1
            && source.rank() == self.rank()
            && *source.shape() == self.shape().with(d, index.numel());
        if !fits {
            panic!(
                "{name}: the source must have this tensor's sizes and the index's along dimension {d}. tensor: {}; \
                 index: {}; source: {}",
                self.describe(),
                index.describe(),
                source.describe()
            );
        }
        d
    }

    /// Rows of a `[n, ..]` table by number: `y[i][j] = table[index[i][j]]`, for an index of any shape. An embedding lookup.
    ///
    /// # Shapes
    /// - `self` (the table): `[n, ...rest]`; index: any; output: index shape followed by `rest`
    ///
    /// # Panics
    /// If the table has no dimensions, or the index is not i64 or (on the CPU) out of range.
    #[track_caller]
    pub fn rows(&self, index: &Tensor) -> Tensor {
        assert!(
            self.rank() > 0,
            "rows: a tensor without dimensions has no rows. tensor: {}",
            self.describe()
        );
        let shape: Shape = index.shape().iter().chain(&self.shape()[1..]).copied().collect();
        self.select_slices("embedding", 0, &index.as_list()).with_shape(shape)
    }

    /// All elements as a 1-D tensor.
    #[track_caller]
    fn as_list(&self) -> Cow<'_, Tensor> {
        if self.rank() == 1 { Cow::Borrowed(self) } else { Cow::Owned(self.with_shape(self.numel().into())) }
    }

    /// Indexing by tensors, one per dimension from the first on, `None` for "all": `x[rows, :, columns]`.
    ///
    /// The index tensors (i64, negative ones count from the end) broadcast to each other. Their common dimensions stand where
    /// the first of them stood if they are neighbours, else in front; one without dimensions only selects, as in PyTorch. A bool
    /// tensor stands for its positions: use [`Tensor::masked_select`] for a mask over the whole tensor.
    ///
    /// # Panics
    /// If there are more entries than dimensions, the index tensors do not broadcast, or (on the CPU) a position is out of range.
    #[track_caller]
    pub fn index(&self, indices: &[Option<&Tensor>]) -> Tensor {
        let at = self.addressed("index", indices);
        // The indexed dimensions to the front and joined; one number then says where to look.
        let table = self.permute(&at.order[..]).flatten(0, at.indexed as isize - 1);
        let out = table.select_slices("index", 0, &at.flat).reshape(&at.found);
        if at.back.is_empty() { out } else { out.permute(&at.back[..]) }
    }

    /// What index tensors, one per dimension from the first on, address together.
    #[track_caller]
    pub(crate) fn addressed(&self, op: &str, indices: &[Option<&Tensor>]) -> Addressed {
        let dims: Vec<usize> = (0..indices.len()).filter(|&d| indices[d].is_some()).collect();
        if dims.is_empty() {
            panic!("{op}: at least one index tensor is needed. tensor: {}", self.describe());
        }
        if indices.len() > self.rank() {
            panic!(
                "{op}: {} index entries for {} dimensions. tensor: {}",
                indices.len(),
                self.rank(),
                self.describe()
            );
        }
        let mut common = Shape::new(&[]);
        for t in indices.iter().flatten() {
            t.require_index(op);
            common = common.broadcast(t.shape()).unwrap_or_else(|| {
                panic!("{op}: the index tensors do not broadcast: {common} and {}", t.describe())
            });
        }
        let mut order: Vec<isize> = dims.iter().map(|&d| d as isize).collect();
        order.extend((0..self.rank() as isize).filter(|d| !order.contains(d)).collect::<Vec<_>>());
        let lists: Vec<&Tensor> = indices.iter().flatten().copied().collect();
        let on_host = self.device() == &Device::cpu() && lists.iter().all(|t| t.device() == self.device());
        let flat = match on_host {
            true => self.flat_on_host(op, &dims, &lists, &common),
            false => self.flat_positions(&dims, &lists, &common),
        };
        let mut found = common.to_vec();
        found.extend(order[dims.len()..].iter().map(|&d| self.shape()[d as usize]));
        let back = common_dims_back(indices, common.rank(), found.len());
        Addressed { indexed: dims.len(), order, flat, found: Shape::new(&found), back }
    }

    /// The number of every addressed element in the joined `dims`. On the CPU one walk over the lists is faster than operations on
    /// them, and knows which list is wrong.
    #[track_caller]
    fn flat_on_host(&self, op: &str, dims: &[usize], lists: &[&Tensor], common: &Shape) -> Tensor {
        let mut flat = vec![0i64; common.numel()];
        for (&d, list) in dims.iter().zip(lists) {
            let size = self.shape()[d] as i64;
            let positions = match list.broadcast_view(common).to_vec::<i64>() {
                Ok(positions) => positions,
                Err(e) => panic!("{op}: {e}"),
            };
            for (flat, position) in flat.iter_mut().zip(positions) {
                if !(-size..size).contains(&position) {
                    panic!(
                        "{op}: index {position} is out of range for dimension {d} of size {size}. tensor: {}; index: {}",
                        self.describe(),
                        list.describe()
                    );
                }
                *flat = *flat * size + if position < 0 { position + size } else { position };
            }
        }
        Tensor::from_slice(&flat, flat.len(), self.device())
    }

    /// The same where the lists lie on a device that notices a bad position later: -1 stands for it.
    #[track_caller]
    fn flat_positions(&self, dims: &[usize], lists: &[&Tensor], common: &Shape) -> Tensor {
        let mut flat: Option<Tensor> = None;
        for (i, (&d, &index)) in dims.iter().zip(lists).enumerate() {
            let size = self.shape()[d] as i64;
            let wrapped = index.lt(0).where_(index + size, index);
            let next = match &flat {
                None => wrapped,
                Some(flat) => {
                    // One bad position among several must not turn into a good one in their sum.
                    let bad = wrapped.lt(0).logical_or(wrapped.ge(size)).logical_or(flat.lt(0));
                    (flat * size + wrapped).masked_fill(&bad, -1)
                }
            };
            flat = Some(if i + 1 < dims.len() {
                next.masked_fill(&next.ge(self.joined(&dims[..=i])), -1)
            } else {
                next
            });
        }
        flat.expect("there is at least one index").broadcast_to(common).reshape(-1isize)
    }

    fn joined(&self, dims: &[usize]) -> i64 {
        dims.iter().map(|&d| self.shape()[d] as i64).product()
    }

    /// Positions of the elements that are not zero, in row-major order: i64 `[count, rank]`. Reads the data.
    ///
    /// ```
    /// use orkest_core::{Device, Tensor};
    /// let x = Tensor::new([[0, 3, 0], [0, 0, 0], [5, 0, 7]], &Device::reference());
    /// assert_eq!(x.nonzero().unwrap().to_vec::<i64>().unwrap(), [0, 1, 2, 0, 2, 2]);
    /// ```
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    #[track_caller]
    pub fn nonzero(&self) -> Result<Tensor> {
        let bits = self.truth()?;
        let (rank, width) = (self.rank(), self.shape().last().copied().unwrap_or(1));
        let hits = bits.iter().filter(|b| **b).count();
        let mut out = Vec::with_capacity(hits * rank);
        let mut columns = Vec::new();
        for (row, bits) in bits.chunks(width.max(1)).enumerate().filter(|_| rank > 0) {
            columns.clear();
            push_true(bits, 0, &mut columns);
            if columns.is_empty() {
                continue;
            }
            let start = out.len();
            out.resize(start + columns.len() * rank, 0i64);
            let mut left = row;
            for d in (0..rank).rev() {
                let places = out[start + d..].iter_mut().step_by(rank);
                if d + 1 == rank {
                    places.zip(&columns).for_each(|(place, column)| *place = *column);
                } else {
                    let number = left % self.shape()[d];
                    places.for_each(|place| *place = number as i64);
                    left /= self.shape()[d];
                }
            }
        }
        Ok(Tensor::from_slice(&out, [hits, rank], self.device()))
    }

    /// The elements where the bool `mask` (broadcast with this tensor) holds, in row-major order: `[count]`. Reads the mask.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the mask is not bool or the shapes do not broadcast.
    #[track_caller]
    pub fn masked_select(&self, mask: &Tensor) -> Result<Tensor> {
        if mask.dtype() != DType::Bool {
            panic!("masked_select: the mask must be bool. mask: {}", mask.describe());
        }
        let shape = super::elementwise::broadcast_shape("masked_select", self, mask);
        let hits = mask.broadcast_view(&shape).true_positions()?;
        let index = Tensor::from_slice(&hits, hits.len(), self.device());
        Ok(self.broadcast_to(&shape).reshape(-1isize).index_select(0, &index))
    }

    /// The numbers of the elements that are not zero, in row-major order.
    #[track_caller]
    pub(crate) fn true_positions(&self) -> Result<Vec<i64>> {
        let bits = self.truth()?;
        let mut hits = Vec::with_capacity(bits.iter().filter(|b| **b).count());
        for (i, bits) in bits.chunks(BLOCK).enumerate() {
            push_true(bits, (i * BLOCK) as i64, &mut hits);
        }
        Ok(hits)
    }

    #[track_caller]
    fn truth(&self) -> Result<Vec<bool>> {
        self.detach().to_dtype(DType::Bool).to(&Device::cpu()).to_vec()
    }

    /// Ones at the positions this i64 tensor names, zeros elsewhere: i64 with a new last dimension of `num_classes`.
    ///
    /// # Panics
    /// If the dtype is not i64 or (on the CPU) a class is out of range.
    #[track_caller]
    pub fn one_hot(&self, num_classes: usize) -> Tensor {
        self.require_index("one_hot");
        let index = self.unsqueeze(-1);
        let shape = self.shape().inserted(self.rank(), num_classes);
        let mut out = Tensor::zeros(shape, (DType::I64, self.device()));
        out.scatter_into("one_hot", -1, &index, &index.ones_like(), false);
        out
    }
}
