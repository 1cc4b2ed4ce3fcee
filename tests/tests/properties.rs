//! Broadcasting and view algebra against a naive model that computes every position by hand.

use orkest::prelude::*;
use orkest_tests as _;
use proptest::prelude::*;

/// A tensor as the naive model sees it: sizes and elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    shape: Vec<usize>,
    values: Vec<i64>,
}

impl Model {
    fn new(shape: Vec<usize>) -> Model {
        let count = shape.iter().product::<usize>() as i64;
        Model { shape, values: (0..count).collect() }
    }

    /// The element at a multi-index.
    fn at(&self, index: &[usize]) -> i64 {
        let flat = index.iter().zip(&self.shape).fold(0, |flat, (i, size)| flat * size + i);
        self.values[flat]
    }

    /// Another shape, every element looked up by its multi-index.
    fn map(&self, shape: Vec<usize>, source: impl Fn(&[usize]) -> Vec<usize>) -> Model {
        let values = indices(&shape).map(|index| self.at(&source(&index))).collect();
        Model { shape, values }
    }

    fn tensor(&self) -> Tensor {
        Tensor::from_slice(&self.values, &self.shape[..], &Device::cpu())
    }
}

/// All multi-indices of a shape in row-major order.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
    let shape = shape.to_vec();
    (0..shape.iter().product()).map(move |flat: usize| {
        let (mut left, mut index) = (flat, vec![0; shape.len()]);
        for d in (0..shape.len()).rev() {
            (index[d], left) = (left % shape[d], left / shape[d]);
        }
        index
    })
}

/// A step of view algebra; the numbers are taken modulo what is possible.
#[derive(Clone, Debug)]
enum Step {
    Transpose(usize, usize),
    Narrow(usize, usize, usize),
    Stride(usize, usize),
    Flip(usize),
    Select(usize, usize),
    Unsqueeze(usize),
    Expand(usize),
    Join(usize),
    Flatten,
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0..100usize;
    prop_oneof![
        (n.clone(), n.clone()).prop_map(|(a, b)| Step::Transpose(a, b)),
        (n.clone(), n.clone(), n.clone()).prop_map(|(d, s, l)| Step::Narrow(d, s, l)),
        (n.clone(), 1..4usize).prop_map(|(d, s)| Step::Stride(d, s)),
        n.clone().prop_map(Step::Flip),
        (n.clone(), n.clone()).prop_map(|(d, i)| Step::Select(d, i)),
        n.clone().prop_map(Step::Unsqueeze),
        n.clone().prop_map(Step::Expand),
        n.prop_map(Step::Join),
        Just(Step::Flatten),
    ]
}

/// Applies a step to both; returns them unchanged if it makes no sense here.
fn apply(model: &Model, x: &Tensor, step: &Step) -> (Model, Tensor) {
    let rank = model.shape.len();
    let same = || (model.clone(), x.clone());
    match *step {
        Step::Unsqueeze(d) if rank < 6 => {
            let d = d % (rank + 1);
            let mut shape = model.shape.clone();
            shape.insert(d, 1);
            let source = move |i: &[usize]| [&i[..d], &i[d + 1..]].concat();
            (model.map(shape, source), x.unsqueeze(d as isize))
        }
        Step::Flatten => {
            let flat = Model { shape: vec![model.values.len()], values: model.values.clone() };
            (flat, x.reshape(-1isize))
        }
        _ if rank == 0 => same(),
        Step::Transpose(a, b) => {
            let (a, b) = (a % rank, b % rank);
            let mut shape = model.shape.clone();
            shape.swap(a, b);
            let source = move |i: &[usize]| {
                let mut i = i.to_vec();
                i.swap(a, b);
                i
            };
            (model.map(shape, source), x.transpose(a as isize, b as isize))
        }
        Step::Narrow(d, start, len) => {
            let d = d % rank;
            let start = start % (model.shape[d] + 1);
            let len = len % (model.shape[d] - start + 1);
            let mut shape = model.shape.clone();
            shape[d] = len;
            let source = move |i: &[usize]| {
                let mut i = i.to_vec();
                i[d] += start;
                i
            };
            (model.map(shape, source), x.narrow(d as isize, start, len))
        }
        Step::Stride(d, step) => {
            let d = d % rank;
            let mut shape = model.shape.clone();
            shape[d] = shape[d].div_ceil(step);
            let source = move |i: &[usize]| {
                let mut i = i.to_vec();
                i[d] *= step;
                i
            };
            let entries: Vec<Index> =
                (0..rank).map(|k| if k == d { slice(.., step) } else { Index::from(..) }).collect();
            (model.map(shape, source), x.i(&entries[..]))
        }
        Step::Flip(d) => {
            let d = d % rank;
            let size = model.shape[d];
            let source = move |i: &[usize]| {
                let mut i = i.to_vec();
                i[d] = size - 1 - i[d];
                i
            };
            (model.map(model.shape.clone(), source), x.flip(&[d as isize]))
        }
        Step::Select(d, index) if model.shape[d % rank] > 0 => {
            let d = d % rank;
            let index = index % model.shape[d];
            let mut shape = model.shape.clone();
            shape.remove(d);
            let source = move |i: &[usize]| [&i[..d], &[index], &i[d..]].concat();
            (model.map(shape, source), x.select(d as isize, index as isize))
        }
        Step::Expand(d) if model.shape[d % rank] == 1 => {
            let d = d % rank;
            let mut shape = model.shape.clone();
            shape[d] = 3;
            let wide: Vec<usize> = shape.clone();
            let source = move |i: &[usize]| {
                let mut i = i.to_vec();
                i[d] = 0;
                i
            };
            (model.map(shape, source), x.expand(wide))
        }
        Step::Join(d) if rank >= 2 => {
            let d = d % (rank - 1);
            let mut shape = model.shape.clone();
            shape[d] *= shape.remove(d + 1);
            let joined = Model { shape, values: model.values.clone() };
            (joined, x.flatten(d as isize, d as isize + 1))
        }
        _ => same(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chain_of_views_reads_the_right_elements(
        shape in prop::collection::vec(0..5usize, 0..4),
        steps in prop::collection::vec(step(), 0..8),
    ) {
        let mut model = Model::new(shape);
        let mut x = model.tensor();
        for step in &steps {
            (model, x) = apply(&model, &x, step);
            if model.values.len() > 2000 {
                break;
            }
        }
        prop_assert_eq!(&**x.shape(), &model.shape[..]);
        prop_assert_eq!(x.to_vec::<i64>().unwrap(), model.values.clone());
        // The gradient of a chain of views counts how often each element is seen.
        let total = x.sum(..).item().unwrap();
        prop_assert_eq!(total, model.values.iter().sum::<i64>() as f64);
    }

    #[test]
    fn gradients_go_back_through_any_chain_of_views(
        shape in prop::collection::vec(1..5usize, 1..4),
        steps in prop::collection::vec(step(), 0..8),
    ) {
        let mut model = Model::new(shape);
        let leaf = model.tensor().to_dtype(DType::F64).requires_grad_(true);
        let (count, mut x) = (model.values.len(), leaf.clone());
        for step in &steps {
            (model, x) = apply(&model, &x, step);
            if model.values.len() > 2000 {
                break;
            }
        }
        prop_assume!(x.requires_grad());
        // d (Σ w x) / d leaf: the weights of all places where an element is seen, added up.
        let weights: Vec<f64> = (0..model.values.len()).map(|i| (i % 7) as f64 + 1.0).collect();
        let w = Tensor::from_slice(&weights, *x.shape(), &Device::cpu());
        (&x * w).sum(..).backward();
        let mut expected = vec![0.0; count];
        model.values.iter().zip(&weights).for_each(|(&v, w)| expected[v as usize] += w);
        prop_assert_eq!(leaf.grad().unwrap().to_vec::<f64>().unwrap(), expected);
    }

    #[test]
    fn operands_broadcast_as_numpy_says(
        common in prop::collection::vec(0..4usize, 0..4),
        left_ones in prop::collection::vec(any::<bool>(), 4),
        right_ones in prop::collection::vec(any::<bool>(), 4),
        left_rank in 0..5usize,
        right_rank in 0..5usize,
    ) {
        let cut = |ones: &[bool], rank: usize| {
            let shape: Vec<usize> = common.iter().zip(ones).map(|(&n, &one)| if one { 1 } else { n }).collect();
            shape[shape.len().saturating_sub(rank)..].to_vec()
        };
        let (a, b) = (Model::new(cut(&left_ones, left_rank)), Model::new(cut(&right_ones, right_rank)));
        let rank = a.shape.len().max(b.shape.len());
        let size = |m: &Model, d: usize| (d + m.shape.len()).checked_sub(rank).map_or(1, |i| m.shape[i]);
        let shape: Vec<usize> = (0..rank).map(|d| if size(&a, d) == 1 { size(&b, d) } else { size(&a, d) }).collect();
        let of = |m: &Model, index: &[usize]| {
            let own = &index[rank - m.shape.len()..];
            m.at(&own.iter().zip(&m.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect::<Vec<_>>())
        };
        let expected: Vec<i64> = indices(&shape).map(|i| of(&a, &i) * 10 - of(&b, &i)).collect();
        let got = a.tensor() * 10 - b.tensor();
        prop_assert_eq!(&**got.shape(), &shape[..]);
        prop_assert_eq!(got.to_vec::<i64>().unwrap(), expected);
    }

    #[test]
    fn shapes_that_numpy_refuses_are_refused(a in 2..5usize, b in 2..5usize, lead in 1..3usize) {
        prop_assume!(a != b);
        let (x, y) = (Model::new(vec![lead, a]).tensor(), Model::new(vec![b]).tensor());
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let refused = std::panic::catch_unwind(|| &x + &y).is_err();
        std::panic::set_hook(before);
        prop_assert!(refused);
    }
}
