//! Decompositions of matrices, in f64 on the host. A matrix is a slice in row-major order.

/// `P A = L U` of a square matrix, by rows with partial pivoting.
pub(crate) struct Lu {
    n: usize,
    /// U and, below the diagonal, L without its ones.
    factors: Vec<f64>,
    /// Row `i` of the factors was row `order[i]` of the matrix.
    order: Vec<usize>,
    /// -1 if the rows were exchanged an odd number of times.
    sign: f64,
}

impl Lu {
    pub fn new(mut a: Vec<f64>, n: usize) -> Lu {
        let mut order: Vec<usize> = (0..n).collect();
        let mut sign = 1.0;
        for k in 0..n {
            let size = |i: usize| a[i * n + k].abs();
            // NaN compares as smaller, and spreads from wherever it is.
            let pivot = (k..n).fold(k, |best, i| if size(i) > size(best) { i } else { best });
            if pivot != k {
                for j in 0..n {
                    a.swap(k * n + j, pivot * n + j);
                }
                order.swap(k, pivot);
                sign = -sign;
            }
            let (above, below) = a.split_at_mut((k + 1) * n);
            let row = &above[k * n..];
            if row[k] == 0.0 {
                continue;
            }
            for other in below.chunks_exact_mut(n) {
                let factor = other[k] / row[k];
                other[k] = factor;
                subtract(&mut other[k + 1..], &row[k + 1..], factor);
            }
        }
        Lu { n, factors: a, order, sign }
    }

    pub fn diagonal(&self) -> impl Iterator<Item = f64> {
        (0..self.n).map(|i| self.factors[i * self.n + i])
    }

    /// The first column that depends on those before it.
    pub fn singular_at(&self) -> Option<usize> {
        self.diagonal().position(|d| d == 0.0)
    }

    pub fn det(&self) -> f64 {
        self.diagonal().fold(self.sign, |product, d| product * d)
    }

    /// The sign of the determinant and the logarithm of its size.
    pub fn slogdet(&self) -> (f64, f64) {
        self.diagonal().fold((self.sign, 0.0), |(sign, log), d| {
            (if d == 0.0 { 0.0 } else { sign * d.signum() }, log + d.abs().ln())
        })
    }

    /// `A⁻¹ b` for `columns` columns, if A is not singular.
    pub fn solve(&self, b: &[f64], columns: usize) -> Vec<f64> {
        let (n, lu) = (self.n, &self.factors);
        let mut x: Vec<f64> =
            self.order.iter().flat_map(|&row| &b[row * columns..][..columns]).copied().collect();
        for i in 0..n {
            let (above, row) = x.split_at_mut(i * columns);
            for j in 0..i {
                subtract(&mut row[..columns], &above[j * columns..][..columns], lu[i * n + j]);
            }
        }
        for i in (0..n).rev() {
            let (row, below) = x[i * columns..].split_at_mut(columns);
            for j in i + 1..n {
                subtract(row, &below[(j - i - 1) * columns..][..columns], lu[i * n + j]);
            }
            row.iter_mut().for_each(|v| *v /= lu[i * n + i]);
        }
        x
    }
}

/// `a -= factor * b`
fn subtract(a: &mut [f64], b: &[f64], factor: f64) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a -= factor * b);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The lower triangle L with `L Lᵀ = A`, from A's lower triangle; or the number of the first row at which A is not
/// positive-definite.
pub(crate) fn cholesky(a: &[f64], n: usize) -> Result<Vec<f64>, usize> {
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        let (above, rest) = l.split_at_mut(i * n);
        let row = &mut rest[..n];
        for j in 0..i {
            let other = &above[j * n..][..n];
            row[j] = (a[i * n + j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let square = a[i * n + i] - dot(&row[..i], &row[..i]);
        if square.is_nan() || square <= 0.0 {
            return Err(i);
        }
        row[i] = square.sqrt();
    }
    Ok(l)
}

/// Q `[m, n]` with orthonormal columns and the upper triangle R `[n, n]`, for `m >= n`, by Householder's reflections with LAPACK's
/// signs.
pub(crate) fn qr(a: &[f64], m: usize, n: usize) -> (Vec<f64>, Vec<f64>) {
    // Columns as rows: what is walked over lies in a row.
    let mut r = transposed(a, m, n);
    let mut reflections = Vec::with_capacity(n);
    for k in 0..n {
        let (column, rest) = r[k * m..].split_at_mut(m);
        let (reflection, scale) = householder(&mut column[k..]);
        for other in rest.chunks_exact_mut(m.max(1)) {
            reflect(&mut other[k..], &reflection, scale);
        }
        reflections.push((reflection, scale));
    }
    let mut q = vec![0.0; n * m];
    for (k, column) in q.chunks_exact_mut(m.max(1)).enumerate() {
        column[k] = 1.0;
        for (i, (reflection, scale)) in reflections.iter().enumerate().take(k + 1).rev() {
            reflect(&mut column[i..], reflection, *scale);
        }
    }
    let upper = (0..n * n).map(|at| (at / n, at % n)).map(|(i, j)| if i <= j { r[j * m + i] } else { 0.0 });
    (transposed(&q, n, m), upper.collect())
}

/// The reflection `1 - scale v vᵀ` that maps `x` to a multiple of the first axis, with `v[0] = 1`; `x` becomes that multiple.
fn householder(x: &mut [f64]) -> (Vec<f64>, f64) {
    let mut v = x.to_vec();
    let (head, tail) = (x[0], norm(&x[1..]));
    if tail == 0.0 {
        v.fill(0.0); // as LAPACK: nothing is reflected
        return (v, 0.0);
    }
    let beta = -head.hypot(tail).copysign(head);
    v[1..].iter_mut().for_each(|v| *v /= head - beta);
    v[0] = 1.0;
    x.fill(0.0);
    x[0] = beta;
    (v, (beta - head) / beta)
}

fn reflect(x: &mut [f64], v: &[f64], scale: f64) {
    let along = scale * dot(x, v);
    subtract(x, v, along);
}

fn norm(x: &[f64]) -> f64 {
    let largest = x.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    largest * x.iter().map(|v| (v / largest).powi(2)).sum::<f64>().sqrt()
}

fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| a[i * columns + j])).collect()
}

/// More rounds than any matrix of finite numbers needs: each squares the distance from the goal.
const SWEEPS: usize = 60;

/// Singular values, the largest first, and the vectors: `A = U diag(s) Vᵀ` with U `[m, n]` and Vᵀ `[n, n]`, for `m >= n`. One-sided
/// Jacobi: pairs of columns are turned until all are orthogonal. Small singular values are as exact as large ones.
pub(crate) fn svd(a: &[f64], m: usize, n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    // The squares of very large and small numbers would leave the range of f64.
    let largest = a.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let unit = if largest > 0.0 { largest.log2().clamp(-1000.0, 1000.0).round().exp2() } else { 1.0 };
    let mut u = transposed(a, m, n); // columns as rows
    u.iter_mut().for_each(|x| *x /= unit);
    let right_angle = f64::EPSILON * (m as f64).sqrt(); // as exact as a product of m numbers is
    let mut v = transposed(&identity(n), n, n);
    for _ in 0..SWEEPS {
        let mut turned = false;
        for (i, j) in (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))) {
            let (x, y) = pair(&mut u, i, j, m);
            let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
            if xy.abs() <= right_angle * (xx * yy).sqrt() || !xy.is_finite() {
                continue;
            }
            turned = true;
            let (c, s) = rotation((yy - xx) / (2.0 * xy));
            turn(x, y, c, s);
            let (x, y) = pair(&mut v, i, j, n);
            turn(x, y, c, s);
        }
        if !turned {
            break;
        }
    }
    let sizes: Vec<f64> = u.chunks_exact(m.max(1)).map(norm).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| sizes[j].total_cmp(&sizes[i]));
    let mut left: Vec<Vec<f64>> = Vec::with_capacity(n);
    for &i in &order {
        let column = &u[i * m..][..m];
        // A column without length has any direction that is left.
        let small = sizes[i] <= sizes[order[0]] * f64::EPSILON * m as f64;
        left.push(if small {
            orthogonal_to(&left, m)
        } else {
            column.iter().map(|x| x / sizes[i]).collect()
        });
    }
    let right: Vec<f64> = order.iter().flat_map(|&i| v[i * n..][..n].to_vec()).collect();
    (transposed(&left.concat(), n, m), order.iter().map(|&i| sizes[i] * unit).collect(), right)
}

/// A unit vector that is orthogonal to orthonormal ones, of which there are fewer than `m`.
fn orthogonal_to(others: &[Vec<f64>], m: usize) -> Vec<f64> {
    let rest = |axis: usize| {
        let mut x = vec![0.0; m];
        x[axis] = 1.0;
        for _ in 0..2 {
            // twice, because the first time leaves rounding errors
            for other in others {
                let along = dot(&x, other);
                subtract(&mut x, other, along);
            }
        }
        x
    };
    let longest = (0..m).map(rest).max_by(|a, b| norm(a).total_cmp(&norm(b))).unwrap_or_default();
    let length = norm(&longest);
    longest.into_iter().map(|x| x / length).collect()
}

/// Eigenvalues of a symmetric matrix, the smallest first, and the eigenvectors as columns, from its lower triangle: Jacobi's method.
pub(crate) fn eigh(a: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut a: Vec<f64> =
        (0..n * n).map(|at| (at / n, at % n)).map(|(i, j)| a[i.max(j) * n + i.min(j)]).collect();
    let mut v = identity(n); // eigenvectors as rows
    let small = 0.1 * f64::EPSILON * norm(&a) / n as f64;
    for _ in 0..SWEEPS {
        let mut turned = false;
        for (i, j) in (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))) {
            let (x, y, off) = (a[i * n + i], a[j * n + j], a[i * n + j]);
            if off.abs() <= small || !off.is_finite() {
                continue;
            }
            turned = true;
            let (c, s) = rotation((y - x) / (2.0 * off));
            for k in 0..n {
                let (x, y) = (a[k * n + i], a[k * n + j]);
                (a[k * n + i], a[k * n + j]) = (c * x - s * y, s * x + c * y);
            }
            let (x, y) = pair(&mut a, i, j, n);
            turn(x, y, c, s);
            (a[i * n + j], a[j * n + i]) = (0.0, 0.0);
            let (x, y) = pair(&mut v, i, j, n);
            turn(x, y, c, s);
        }
        if !turned {
            break;
        }
    }
    let values: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let rows: Vec<f64> = order.iter().flat_map(|&i| v[i * n..][..n].to_vec()).collect();
    (order.iter().map(|&i| values[i]).collect(), transposed(&rows, n, n))
}

/// Cosine and sine of the smaller angle whose doubled cotangent is `2 ratio`.
fn rotation(ratio: f64) -> (f64, f64) {
    let tangent = 1.0f64.copysign(ratio) / (ratio.abs() + 1.0f64.hypot(ratio));
    let cosine = 1.0 / 1.0f64.hypot(tangent);
    (cosine, cosine * tangent)
}

fn turn(x: &mut [f64], y: &mut [f64], c: f64, s: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// Rows `i < j`, of `n` numbers each.
fn pair(a: &mut [f64], i: usize, j: usize, n: usize) -> (&mut [f64], &mut [f64]) {
    let (before, from) = a.split_at_mut(j * n);
    (&mut before[i * n..][..n], &mut from[..n])
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect()
}
