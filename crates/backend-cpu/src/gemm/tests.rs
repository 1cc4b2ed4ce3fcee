use super::*;
use crate::simd::for_each_level;
use crate::testing::Draw;

trait Number: Real + PartialEq + std::fmt::Debug {
    const EPSILON: f64;
    fn from(value: f64) -> Self;
    fn f64(self) -> f64;
}
impl Number for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    fn from(value: f64) -> f32 {
        value as f32
    }
    fn f64(self) -> f64 {
        self as f64
    }
}
impl Number for f64 {
    const EPSILON: f64 = f64::EPSILON;
    fn from(value: f64) -> f64 {
        value
    }
    fn f64(self) -> f64 {
        self
    }
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug)]
enum Lay {
    Rows,
    Columns,
    PaddedRows,
    PaddedColumns,
    Reversed,
    Sparse,
    OneRow,
    OneColumn,
    Constant,
}
const LAYS: [Lay; 9] = [
    Lay::Rows,
    Lay::Columns,
    Lay::PaddedRows,
    Lay::PaddedColumns,
    Lay::Reversed,
    Lay::Sparse,
    Lay::OneRow,
    Lay::OneColumn,
    Lay::Constant,
];

/// Length of the buffer, position of the first element, distances between rows and columns.
fn lay_out(lay: Lay, rows: usize, cols: usize) -> (usize, usize, isize, isize) {
    let (r, c) = (rows as isize, cols as isize);
    match lay {
        Lay::Rows => (rows * cols, 0, c, 1),
        Lay::Columns => (rows * cols, 0, 1, r),
        Lay::PaddedRows => (rows * (cols + 3), 0, c + 3, 1),
        Lay::PaddedColumns => (cols * (rows + 5), 0, 1, r + 5),
        Lay::Reversed => (rows * cols, rows * cols - 1, -c, -1),
        Lay::Sparse => (rows * cols * 6, 0, c * 6, 2),
        Lay::OneRow => (cols, 0, 0, 1),
        Lay::OneColumn => (rows, 0, 1, 0),
        Lay::Constant => (1, 0, 0, 0),
    }
}

struct Case<T> {
    m: usize,
    n: usize,
    k: usize,
    a: (Vec<T>, Source<T>),
    b: (Vec<T>, Source<T>),
    lay_c: Lay,
    start: Vec<T>,
    accumulate: bool,
}

impl<T: Number> Case<T> {
    fn new(draw: &mut Draw, m: usize, n: usize, k: usize, lays: [Lay; 3], accumulate: bool) -> Case<T> {
        let mut matrix = |lay, rows, cols| {
            let (len, first, row, col) = lay_out(lay, rows, cols);
            let data: Vec<T> = (0..len).map(|_| T::from(draw.value())).collect();
            let at = data.as_ptr().wrapping_add(first);
            (data, Source { at, row, col })
        };
        let (a, b) = (matrix(lays[0], m, k), matrix(lays[1], k, n));
        let start = matrix(lays[2], m, n).0;
        Case { m, n, k, a, b, lay_c: lays[2], start, accumulate }
    }

    fn compute(&self, parallel: bool, finish: Option<Finish<'_, T>>) -> Vec<T> {
        let mut c = self.start.clone();
        let (_, first, row, col) = lay_out(self.lay_c, self.m, self.n);
        let at = c.as_mut_ptr().wrapping_add(first);
        let (m, n, k, accumulate) = (self.m, self.n, self.k, self.accumulate);
        let c_target = Target { at, row, col };
        let gemm = Gemm { m, n, k, a: self.a.1, b: self.b.1, c: c_target, accumulate, parallel, finish };
        // SAFETY: the vectors hold the matrices as laid out.
        unsafe { gemm.run() };
        c
    }

    /// Checks against the definition in f64; memory outside C must stay.
    fn check(&self, what: &str) {
        let c = self.compute(false, None);
        let (_, first, row, col) = lay_out(self.lay_c, self.m, self.n);
        let mut expected: Vec<(f64, f64)> = self.start.iter().map(|s| (s.f64(), 0.0)).collect();
        for i in 0..self.m {
            for j in 0..self.n {
                let at = (first as isize + i as isize * row + j as isize * col) as usize;
                let mut sum = if self.accumulate { expected[at].0 } else { 0.0 };
                let mut size = sum.abs();
                for p in 0..self.k {
                    // SAFETY: elements of the matrices.
                    let (x, y) = unsafe { (*self.a.1.from(i, p).at, *self.b.1.from(p, j).at) };
                    sum += x.f64() * y.f64();
                    size += (x.f64() * y.f64()).abs();
                }
                // The classical bound of a sum of k products.
                expected[at] = (sum, (self.k + 2) as f64 * T::EPSILON * size);
            }
        }
        for (at, (c, (value, bound))) in c.iter().zip(&expected).enumerate() {
            assert!(
                (c.f64() - value).abs() <= *bound,
                "{what} at {at}: {c:?}, expected {value} within {bound:e}"
            );
        }
    }
}

fn check_random<T: Number>(seed: u64, cases: usize, largest: usize) {
    for_each_level(|level| {
        let mut draw = Draw(seed);
        for _ in 0..cases {
            let mut size = || match draw.below(4) {
                0 => 1 + draw.below(4),
                _ => 1 + draw.below(largest),
            };
            let (m, n, k) = (size(), size(), size());
            let lays = [LAYS[draw.below(9)], LAYS[draw.below(9)], LAYS[draw.below(6)]];
            let accumulate = draw.below(3) == 0;
            let case = Case::<T>::new(&mut draw, m, n, k, lays, accumulate);
            case.check(&format!("{level:?} {m}x{n}x{k} {lays:?} accumulate {accumulate}"));
        }
    });
}

#[test]
fn small_products_of_any_layout_equal_the_definition() {
    check_random::<f32>(1, 1500, 70);
    check_random::<f64>(2, 1500, 70);
}

#[test]
fn larger_products_of_any_layout_equal_the_definition() {
    check_random::<f32>(3, 30, 600);
    check_random::<f64>(4, 30, 400);
}

#[test]
fn products_of_several_blocks_equal_the_definition() {
    for_each_level(|level| {
        let mut draw = Draw(5);
        for (m, n, k) in [
            (4200, 40, 33),
            (40, 4200, 33),
            (130, 70, 700),
            (30, 70, 1100),
            (1, 300, 700),
            (3, 100, 900),
            (13, 700, 520),
        ] {
            for lays in [
                [Lay::Rows, Lay::Rows, Lay::Rows],
                [Lay::Rows, Lay::Columns, Lay::Rows],
                [Lay::Columns, Lay::Rows, Lay::Columns],
            ] {
                Case::<f32>::new(&mut draw, m, n, k, lays, false)
                    .check(&format!("{level:?} {m}x{n}x{k} {lays:?}"));
            }
        }
    });
}

#[test]
fn an_empty_sum_is_zero() {
    let mut draw = Draw(6);
    Case::<f32>::new(&mut draw, 3, 4, 0, [Lay::Rows; 3], false).check("k = 0");
    Case::<f32>::new(&mut draw, 3, 4, 0, [Lay::Rows; 3], true).check("k = 0, accumulate");
}

#[test]
fn threads_do_not_change_a_bit_and_every_element_is_finished_once() {
    for_each_level(|_| check_threads(&mut Draw(7)));
}

fn check_threads(draw: &mut Draw) {
    let sizes = [
        (300, 200, 300),
        (1, 3000, 1000),
        (4000, 1, 700),
        (2, 2000, 900),
        (10, 600, 600),
        (5, 7, 9),
        (900, 3, 800),
        (80, 80, 80),
    ];
    for (m, n, k) in sizes {
        for lay_b in [Lay::Rows, Lay::Columns] {
            let case = Case::<f32>::new(draw, m, n, k, [Lay::Rows, lay_b, Lay::PaddedRows], false);
            let plain = case.compute(false, None);
            assert_eq!(plain, case.compute(true, None), "{m}x{n}x{k} {lay_b:?}");
            let finish = |i: usize, j: usize, values: &mut [f32]| {
                for (offset, v) in values.iter_mut().enumerate() {
                    *v = 2.0 * *v + (i * n + j + offset) as f32;
                }
            };
            for parallel in [false, true] {
                let finished = case.compute(parallel, Some(&finish));
                for i in 0..m {
                    for j in 0..n {
                        let at = i * (n + 3) + j;
                        assert_eq!(
                            finished[at],
                            2.0 * plain[at] + (i * n + j) as f32,
                            "{m}x{n}x{k} at {i}, {j}"
                        );
                    }
                }
            }
        }
    }
}
