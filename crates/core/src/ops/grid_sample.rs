//! Values at given places of planes and volumes: spatial transformers, optical flow, cameras.

use super::lowering::wide;
use crate::dtype::DType;
use crate::tensor::Tensor;

/// How [`Tensor::grid_sample`] finds a value between elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GridMode {
    /// Between the neighbours: four in a plane, eight in a volume.
    Bilinear,
    /// The nearest element.
    Nearest,
    /// A cubic through 16 neighbours in a plane (Keys's kernel with `a = -0.75`).
    Bicubic,
}

impl From<&str> for GridMode {
    /// # Panics
    /// If the text is none of `"bilinear"`, `"nearest"` and `"bicubic"`.
    #[track_caller]
    fn from(name: &str) -> GridMode {
        match name {
            "bilinear" => GridMode::Bilinear,
            "nearest" => GridMode::Nearest,
            "bicubic" => GridMode::Bicubic,
            _ => panic!(
                "grid_sample: mode {name:?} is not known; it can be \"bilinear\", \"nearest\" or \"bicubic\""
            ),
        }
    }
}

/// What [`Tensor::grid_sample`] finds beyond the edges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GridPadding {
    /// Nothing: 0.
    Zeros,
    /// The element at the edge.
    Border,
    /// What lies as far within: at the centres of the outer elements with `align_corners`, else at their outer edges.
    Reflection,
}

impl From<&str> for GridPadding {
    /// # Panics
    /// If the text is none of `"zeros"`, `"border"` and `"reflection"`.
    #[track_caller]
    fn from(name: &str) -> GridPadding {
        match name {
            "zeros" => GridPadding::Zeros,
            "border" => GridPadding::Border,
            "reflection" => GridPadding::Reflection,
            _ => panic!(
                "grid_sample: padding mode {name:?} is not known; it can be \"zeros\", \"border\" or \"reflection\""
            ),
        }
    }
}

impl Tensor {
    /// The values at the places of a grid, as PyTorch's
    /// [`grid_sample`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.grid_sample.html). Places go from -1 to 1, the
    /// last axis first: `(-1, -1)` is the upper left corner, `(1, -1)` the upper right one. With `align_corners` these are the centres of
    /// the corner elements, else (PyTorch's default) their outer corners. NaN counts as -1.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let x = tensor![[[[1.0, 2.0], [3.0, 4.0]]]];
    /// let grid = tensor![[[[-1.0, -1.0], [0.0, 0.0], [3.0, 1.0]]]]; // a corner, the middle, and beyond the right edge
    /// let y = x.grid_sample(&grid, "bilinear", "border", true);
    /// assert_eq!(y.to_vec::<f32>().unwrap(), [1.0, 2.5, 4.0]);
    /// ```
    ///
    /// # Shapes
    /// - input: `[batch, channels, height, width]` or `[batch, channels, depth, height, width]`
    /// - grid: `[batch, .., 2]` or `[batch, .., 3]`, of the input's rank
    /// - output: `[batch, channels, ..]`
    ///
    /// # Panics
    /// If the shapes do not fit, the input has no elements to sample, a dtype is not a float, or `Bicubic` is asked for in a volume.
    #[track_caller]
    pub fn grid_sample(
        &self,
        grid: &Tensor,
        mode: impl Into<GridMode>,
        padding_mode: impl Into<GridPadding>,
        align_corners: bool,
    ) -> Tensor {
        let (mode, padding) = (mode.into(), padding_mode.into());
        check(self, grid, mode);
        let result = self.dtype().promote(grid.dtype());
        let dtype = wide(result);
        let (x, grid) = (self.to_dtype(dtype).flatten(2, -1), grid.to_dtype(dtype));
        let [batch, channels, _] = x.dims();
        let (sizes, axes) = (&self.shape()[2..], self.rank() - 2);
        let mut shape = vec![batch, channels];
        shape.extend(&grid.shape()[1..=axes]);
        let places = shape[2..].iter().product();

        let start = Tensor::zeros([batch, 1, places], (DType::I64, self.device()));
        let mut terms = vec![Term { index: start, within: None, weight: None }];
        for (axis, &size) in sizes.iter().enumerate() {
            let normalised = grid.select(-1, (axes - 1 - axis) as isize).reshape([batch, 1, places]);
            let line = Line { size, padding, align_corners };
            let neighbours = line.neighbours(&normalised, mode);
            let mut finer = Vec::with_capacity(terms.len() * neighbours.len());
            for term in &terms {
                for neighbour in &neighbours {
                    finer.push(term.and(neighbour, size));
                }
            }
            terms = finer;
        }
        let mut y: Option<Tensor> = None;
        for term in &terms {
            let value = term.of(&x);
            y = Some(match y {
                Some(y) => y + value,
                None => value,
            });
        }
        let y = y.expect("every axis has a neighbour");
        y.reshape(shape).to_dtype(result)
    }

    /// The grid of [`Tensor::grid_sample`] that moves, turns and scales: where each place of an output of `size` comes from, as PyTorch's
    /// [`affine_grid`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.affine_grid.html).
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let mirror = tensor![[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]];
    /// let x = tensor![[[[1.0, 2.0, 3.0]]]];
    /// let y = x.grid_sample(&mirror.affine_grid(&[1, 1, 1, 3], false), "nearest", "zeros", false);
    /// assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 2.0, 1.0]);
    /// ```
    ///
    /// # Shapes
    /// - input: `[batch, 2, 3]` for planes, `[batch, 3, 4]` for volumes
    /// - `size`: `[batch, channels, height, width]` or `[batch, channels, depth, height, width]`
    /// - output: `[batch, height, width, 2]` or `[batch, depth, height, width, 3]`
    ///
    /// # Panics
    /// If the shapes do not fit, or the dtype is not a float.
    #[track_caller]
    pub fn affine_grid(&self, size: &[usize], align_corners: bool) -> Tensor {
        self.require_float("affine_grid");
        let axes = size.len().saturating_sub(2);
        if !matches!(axes, 2 | 3) || *self.shape() != [size[0], axes, axes + 1] {
            panic!(
                "affine_grid: for size {size:?} a tensor of [batch, 2, 3] or [batch, 3, 4] is needed, with 4 or 5 sizes. tensor: {}",
                self.describe()
            );
        }
        let (batch, sizes) = (size[0], &size[2..]);
        let mut columns = Vec::with_capacity(axes + 1);
        for (axis, &n) in sizes.iter().enumerate().rev() {
            let mut along = vec![1; axes];
            along[axis] = n;
            // The centre of a single element is the middle.
            let shrink = if n == 1 {
                0.0
            } else if align_corners {
                1.0
            } else {
                (n as f64 - 1.0) / n as f64
            };
            let line = Tensor::linspace(-1.0, 1.0, n, (self.dtype(), self.device())) * shrink;
            columns.push(line.reshape(along).expand(sizes).flatten(0, -1));
        }
        columns.push(columns[0].ones_like());
        let places = Tensor::stack(&columns, -1); // [places, axes + 1]: x, y, (z,) 1
        let mut shape = vec![batch];
        shape.extend(sizes);
        shape.push(axes);
        places.matmul(&self.transpose(1, 2)).reshape(shape)
    }
}

#[track_caller]
fn check(x: &Tensor, grid: &Tensor, mode: GridMode) {
    x.require_float("grid_sample");
    grid.require_float("grid_sample");
    let rank = x.rank();
    let fits = matches!(rank, 4 | 5)
        && grid.rank() == rank
        && grid.size(0) == x.size(0)
        && grid.size(-1) == rank - 2
        && x.shape()[1..].iter().all(|&n| n > 0);
    if !fits {
        panic!(
            "grid_sample: an input of [batch, channels, height, width] needs a grid of [batch, .., .., 2], one of [batch, channels, \
             depth, height, width] a grid of [batch, .., .., .., 3]. input: {}; grid: {}",
            x.describe(),
            grid.describe()
        );
    }
    if mode == GridMode::Bicubic && rank == 5 {
        panic!("grid_sample: mode \"bicubic\" is for planes, not for volumes. input: {}", x.describe());
    }
}

/// One neighbour of each place along an axis.
struct Neighbour {
    /// Its number, 0 where there is none.
    index: Tensor,
    /// Whether there is one.
    within: Tensor,
    /// Its part in the value; all of it if there are no others.
    weight: Option<Tensor>,
}

/// One neighbour of each place along several axes: `[batch, 1, places]`.
struct Term {
    index: Tensor,
    within: Option<Tensor>,
    weight: Option<Tensor>,
}

impl Term {
    /// The same along one more axis.
    #[track_caller]
    fn and(&self, next: &Neighbour, size: usize) -> Term {
        Term {
            index: &self.index * size as i64 + &next.index,
            within: Some(match &self.within {
                Some(within) => within & &next.within,
                None => next.within.clone(),
            }),
            weight: match (&self.weight, &next.weight) {
                (Some(a), Some(b)) => Some(a * b),
                (a, b) => a.as_ref().or(b.as_ref()).cloned(),
            },
        }
    }

    /// What this neighbour adds to the value at each place, of `[batch, channels, elements]`.
    #[track_caller]
    fn of(&self, x: &Tensor) -> Tensor {
        let [batch, channels, _] = x.dims();
        let found = x.gather(2, &self.index.expand([batch, channels, self.index.size(2)]));
        let found = match &self.within {
            Some(within) => within.where_(&found, 0.0),
            None => found,
        };
        match &self.weight {
            Some(weight) => found * weight,
            None => found,
        }
    }
}

/// An axis of what is sampled.
struct Line {
    size: usize,
    padding: GridPadding,
    align_corners: bool,
}

impl Line {
    /// The neighbours of each place; places are given from -1 to 1.
    #[track_caller]
    fn neighbours(&self, normalised: &Tensor, mode: GridMode) -> Vec<Neighbour> {
        let at = self.position(normalised);
        match mode {
            GridMode::Nearest => vec![self.neighbour(&self.padded(&at).detach().round(), None)],
            GridMode::Bilinear => {
                let at = self.padded(&at);
                let first = at.detach().floor();
                let fraction = at - &first;
                vec![
                    self.neighbour(&first, Some(1.0 - &fraction)),
                    self.neighbour(&(&first + 1.0), Some(fraction)),
                ]
            }
            GridMode::Bicubic => {
                let first = at.detach().floor();
                let t = at - &first;
                let mut all = Vec::with_capacity(4);
                for (i, weight) in
                    [far(&(&t + 1.0)), near(&t), near(&(1.0 - &t)), far(&(2.0 - &t))].into_iter().enumerate()
                {
                    all.push(self.neighbour(&self.padded(&(&first + (i as f64 - 1.0))), Some(weight)));
                }
                all
            }
        }
    }

    /// Places as numbers of elements, finite ones.
    #[track_caller]
    fn position(&self, normalised: &Tensor) -> Tensor {
        let size = self.size as f64;
        let numbers = match self.padding {
            GridPadding::Reflection => normalised.isfinite(), // what is infinitely far away is reflected to nowhere
            _ => !normalised.isnan(),
        };
        let normalised = numbers.where_(normalised, -1.0);
        let at = match self.align_corners {
            true => (normalised + 1.0) / 2.0 * (size - 1.0),
            false => ((normalised + 1.0) * size - 1.0) / 2.0,
        };
        match self.padding {
            GridPadding::Reflection => at,
            _ => at.clamp(-3.0, size + 2.0), // three elements beyond the edge all is as it is everywhere beyond
        }
    }

    #[track_caller]
    fn padded(&self, at: &Tensor) -> Tensor {
        match self.padding {
            GridPadding::Zeros => at.clone(),
            GridPadding::Border => self.clipped(at),
            GridPadding::Reflection => self.clipped(&self.reflected(at)),
        }
    }

    /// At the edges, as beyond them, nothing depends on the place any more.
    #[track_caller]
    fn clipped(&self, at: &Tensor) -> Tensor {
        let last = self.size as f64 - 1.0;
        let inside = at.gt(0.0) & at.lt(last);
        inside.where_(at, &at.detach().clamp(0.0, last))
    }

    #[track_caller]
    fn reflected(&self, at: &Tensor) -> Tensor {
        let (low, span) = match self.align_corners {
            true => (0.0, self.size as f64 - 1.0),
            false => (-0.5, self.size as f64),
        };
        if span == 0.0 {
            return at.zeros_like();
        }
        let distance = (at - low).abs();
        let flips = (distance.detach() / span).floor();
        let rest = distance - &flips * span;
        (&flips % 2.0).eq(0.0).where_(&(&rest + low), &(span + low - &rest))
    }

    #[track_caller]
    fn neighbour(&self, at: &Tensor, weight: Option<Tensor>) -> Neighbour {
        let at = at.detach();
        let within = at.ge(0.0) & at.le(self.size as f64 - 1.0);
        let index = within.where_(&at, 0.0).to_dtype(DType::I64);
        Neighbour { index, within, weight }
    }
}

/// Keys's kernel within a distance of 1, with `a = -0.75`.
#[track_caller]
fn near(x: &Tensor) -> Tensor {
    (x * 1.25 - 2.25) * x * x + 1.0
}

/// The same between distances 1 and 2.
#[track_caller]
fn far(x: &Tensor) -> Tensor {
    ((x * -0.75 + 3.75) * x - 6.0) * x + 3.0
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, gradcheck, gradgradcheck};

    #[test]
    fn values_are_pytorchs() {
        // torch.nn.functional.grid_sample(torch.arange(6.).reshape(1, 1, 2, 3), grid, mode, padding, align_corners)
        let device = Device::reference();
        let x = Tensor::arange(0.0f32, 6.0, 1.0, &device).reshape([1, 1, 2, 3]);
        let grid = Tensor::new([[[[-0.4f32, 0.1], [0.9, -1.3], [2.7, 0.6]]]], &device);
        for (mode, padding, [edges, corners]) in [
            ("bilinear", "zeros", [[2.2, 0.26, 0.0], [2.25, 1.615, 0.0]]),
            ("bilinear", "border", [[2.2, 2.0, 5.0], [2.25, 1.9, 4.4]]),
            ("bilinear", "reflection", [[2.2, 2.0, 3.0], [2.25, 2.35, 2.7]]),
            ("nearest", "zeros", [[3.0, 0.0, 0.0], [4.0, 2.0, 0.0]]),
            ("nearest", "border", [[3.0, 2.0, 5.0], [4.0, 2.0, 5.0]]),
            ("nearest", "reflection", [[3.0, 2.0, 3.0], [4.0, 2.0, 3.0]]),
            ("bicubic", "zeros", [[2.76616, 0.2063, 0.0], [2.71459, 1.52631, -0.23625]]),
            ("bicubic", "border", [[2.152, 2.03891, 5.18225], [2.17256, 1.68091, 4.472]]),
            ("bicubic", "reflection", [[2.152, 1.81063, 3.16688], [2.15625, 2.16775, 2.8095]]),
        ] {
            for (align_corners, expected) in [(false, edges), (true, corners)] {
                let found: Vec<f32> = x.grid_sample(&grid, mode, padding, align_corners).to_vec().unwrap();
                let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5);
                assert!(close, "{mode}, {padding}, {align_corners}: {found:?} instead of {expected:?}");
            }
        }
    }

    #[test]
    fn places_far_away_or_nowhere_are_harmless() {
        let device = Device::reference();
        let x = Tensor::ones([1, 1, 2, 2], &device);
        let grid = Tensor::new([[[[f32::NAN, 0.0], [f32::INFINITY, 0.0], [-1e30, 0.0]]]], &device);
        for mode in ["bilinear", "nearest", "bicubic"] {
            for (padding, far) in [("zeros", 0.0), ("border", 1.0)] {
                let y: Vec<f32> = x.grid_sample(&grid, mode, padding, true).to_vec().unwrap();
                assert!((y[0] - 1.0).abs() < 0.2 && y[1..] == [far; 2], "{mode}, {padding}: {y:?}");
            }
            let y = x.grid_sample(&grid, mode, "reflection", true);
            assert_eq!(y.to_vec::<f32>().unwrap(), [1.0; 3], "{mode}");
        }
    }

    #[test]
    fn gradients_agree_with_differences_twice() {
        let device = Device::reference();
        let x = Tensor::arange(0.0f64, 12.0, 1.0, &device).sin().reshape([1, 1, 3, 4]).requires_grad_(true);
        let grid = Tensor::new([[[[-0.43f64, 0.1], [0.9, -1.23]], [[0.2, 0.63], [-0.7, -0.3]]]], &device);
        for (mode, padding) in [("bilinear", "reflection"), ("bicubic", "zeros"), ("nearest", "border")] {
            let grid = grid.clone().requires_grad_(mode != "nearest");
            let f = |t: &[Tensor]| t[0].grid_sample(&t[1], mode, padding, false);
            gradcheck(f, &[x.clone(), grid.clone()]).unwrap();
            gradgradcheck(f, &[x.clone(), grid]).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "needs a grid of [batch, .., .., 2]")]
    fn a_grid_of_another_rank_is_refused() {
        let device = Device::reference();
        let (x, grid) = (Tensor::ones([1, 1, 2, 2], &device), Tensor::zeros([1, 4, 2], &device));
        x.grid_sample(&grid, "bilinear", "zeros", false);
    }
}
