//! Which elements of an axis those of a longer or shorter one are made of, and how much of each.

/// An axis of another length.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Axis {
    /// The number of elements before.
    pub input: usize,
    /// The number of elements afterwards.
    pub output: usize,
    /// What they are made of.
    pub filter: Filter,
}

/// How an element follows from its neighbours on the old axis. A factor is the new length by the old one, if that was given instead of
/// a length; positions are PyTorch's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Filter {
    /// The one at `⌊(i + shift) / factor⌋`.
    Nearest {
        /// New by old length.
        factor: Option<f64>,
        /// 0, or a half for the element whose centre is nearest.
        shift: f64,
    },
    /// Between two.
    Linear {
        /// New by old length.
        factor: Option<f64>,
        /// The first and last centres stay.
        align_corners: bool,
    },
    /// A cubic through four (Keys's kernel with `a = -0.75`).
    Cubic {
        /// New by old length.
        factor: Option<f64>,
        /// The first and last centres stay.
        align_corners: bool,
    },
    /// The mean of elements `⌊i in / out⌋` to `⌈(i + 1) in / out⌉`.
    Mean,
}

/// Elements of one axis as weighted sums of those of another: element `i` is the sum over `starts[i]..starts[i + 1]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Taps {
    /// Where the terms of each element begin, and the number of all.
    pub starts: Vec<usize>,
    /// The elements that are added.
    pub places: Vec<usize>,
    /// What they are multiplied by first.
    pub weights: Vec<f64>,
}

impl Taps {
    /// The number of terms of every element, if that is the same.
    pub fn count(&self) -> Option<usize> {
        let count = *self.starts.get(1)?;
        self.starts.windows(2).all(|s| s[1] - s[0] == count).then_some(count)
    }

    /// What every one of the `input` elements has its part in: the transposed sums.
    pub fn adjoint(&self, input: usize) -> Taps {
        let mut starts = vec![0; input + 1];
        self.places.iter().for_each(|&place| starts[place + 1] += 1);
        (0..input).for_each(|i| starts[i + 1] += starts[i]);
        let mut next = starts.clone();
        let (mut places, mut weights) = (vec![0; self.places.len()], vec![0.0; self.places.len()]);
        for (i, range) in self.starts.windows(2).enumerate() {
            for term in range[0]..range[1] {
                let at = &mut next[self.places[term]];
                (places[*at], weights[*at]) = (i, self.weights[term]);
                *at += 1;
            }
        }
        Taps { starts, places, weights }
    }
}

impl Axis {
    /// The sums, for tensors of f64 or, where PyTorch computes positions in f32, of other floats.
    pub fn taps(&self, double: bool) -> Taps {
        let mut taps = Taps { starts: vec![0], places: Vec::new(), weights: Vec::new() };
        let positions = Positions { axis: self, double };
        for i in 0..self.output {
            positions.of(i, |place, weight| {
                taps.places.push(place);
                taps.weights.push(weight);
            });
            taps.starts.push(taps.places.len());
        }
        taps
    }
}

/// Positions as PyTorch computes them: in f32, unless the tensor is f64.
struct Positions<'a> {
    axis: &'a Axis,
    double: bool,
}

impl Positions<'_> {
    fn round(&self, x: f64) -> f64 {
        if self.double { x } else { x as f32 as f64 }
    }

    fn clamp(&self, place: f64) -> usize {
        place.clamp(0.0, (self.axis.input - 1) as f64) as usize
    }

    /// The distance of neighbours on the old axis.
    fn step(&self, factor: Option<f64>) -> f64 {
        factor.map_or(self.axis.input as f64 / self.axis.output as f64, |factor| 1.0 / factor)
    }

    /// Where element `i` lies on the old axis.
    fn source(&self, i: usize, factor: Option<f64>, align_corners: bool) -> f64 {
        if align_corners {
            let steps = self.axis.output - 1;
            let step = if steps == 0 { 0.0 } else { self.round((self.axis.input - 1) as f64 / steps as f64) };
            self.round(step * i as f64)
        } else {
            let step = self.round(self.step(factor));
            self.round(self.round(step * (i as f64 + 0.5)) - 0.5)
        }
    }

    /// The terms of element `i`.
    fn of(&self, i: usize, mut term: impl FnMut(usize, f64)) {
        match self.axis.filter {
            Filter::Nearest { factor, shift } => {
                let step = self.step(factor) as f32;
                term(self.clamp(((i as f32 + shift as f32) * step).floor() as f64), 1.0);
            }
            Filter::Linear { factor, align_corners } => {
                let at = self.source(i, factor, align_corners).max(0.0);
                let first = self.clamp(at.floor());
                let fraction = self.round(at - first as f64).clamp(0.0, 1.0);
                term(first, 1.0 - fraction);
                term(self.clamp(at.floor() + 1.0), fraction);
            }
            Filter::Cubic { factor, align_corners } => {
                const A: f64 = -0.75;
                let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
                let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
                let at = self.source(i, factor, align_corners);
                let (floor, t) = (at.floor(), at - at.floor());
                let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
                for (offset, weight) in weights.into_iter().enumerate() {
                    term(self.clamp(floor + offset as f64 - 1.0), weight);
                }
            }
            Filter::Mean => {
                let window = self.axis.window(i);
                let weight = 1.0 / window.len() as f64;
                window.for_each(|place| term(place, weight));
            }
        }
    }
}

impl Axis {
    /// What element `i` of [`Filter::Mean`] is the mean of.
    pub fn window(&self, i: usize) -> std::ops::Range<usize> {
        i * self.input / self.output..((i + 1) * self.input).div_ceil(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adjoint_holds_the_same_terms_the_other_way_round() {
        let axes = [
            (5, 7, Filter::Linear { factor: None, align_corners: false }),
            (7, 3, Filter::Cubic { factor: None, align_corners: true }),
            (7, 3, Filter::Mean),
            (9, 4, Filter::Nearest { factor: None, shift: 0.5 }),
        ];
        for (input, output, filter) in axes {
            let matrix = |taps: &Taps, columns: usize| {
                let mut matrix = vec![vec![0.0; columns]; taps.starts.len() - 1];
                for (row, range) in matrix.iter_mut().zip(taps.starts.windows(2)) {
                    (range[0]..range[1]).for_each(|term| row[taps.places[term]] += taps.weights[term]);
                }
                matrix
            };
            let taps = Axis { input, output, filter }.taps(true);
            let (there, back) = (matrix(&taps, input), matrix(&taps.adjoint(input), output));
            for i in 0..output {
                for j in 0..input {
                    assert!((there[i][j] - back[j][i]).abs() < 1e-15, "{filter:?}");
                }
                assert!((there[i].iter().sum::<f64>() - 1.0).abs() < 1e-12, "{filter:?}");
            }
        }
    }
}
