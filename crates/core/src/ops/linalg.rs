//! Systems of equations and decompositions of matrices: `torch.linalg`.
//!
//! All are computed on the host in f64 and rounded to the tensor's dtype, so that devices agree; matrices of a GPU are read and the
//! results sent back. They are made for matrices of up to some hundreds of rows, and what they say about the numbers (a matrix is
//! singular) is a `Result`.

use super::elementwise::result_dtype;
use crate::autograd::{Context, Save, is_grad_enabled, record};
use crate::decompose::{self, Lu};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grads;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Matrices on the host.
struct Matrices {
    values: Vec<f64>,
    rows: usize,
    columns: usize,
    /// How many of each.
    batch: Shape,
}

impl Matrices {
    fn iter(&self) -> impl Iterator<Item = &[f64]> {
        let size = self.rows * self.columns;
        (0..self.batch.numel()).map(move |i| &self.values[i * size..][..size])
    }

    /// The shape of as many matrices of these sizes, or vectors of one.
    fn shape(&self, sizes: &[usize]) -> Shape {
        self.batch.iter().chain(sizes).copied().collect()
    }
}

impl Tensor {
    /// `x` with `self @ x = b`, for square matrices: `torch.linalg.solve(self, b)`.
    ///
    /// ```
    /// # use orkest_core::tensor;
    /// let a = tensor![[2.0, 1.0], [1.0, 3.0]];
    /// assert_eq!(a.solve(&tensor![4.0, 7.0])?.to_vec::<f32>()?, [1.0, 2.0]);
    /// # Ok::<(), orkest_core::Error>(())
    /// ```
    ///
    /// # Shapes
    /// - `self`: `[.., n, n]`; `b`: `[.., n, k]`, or `[.., n]` with all dimensions in front equal; the output as `b`, broadcast
    ///
    /// # Errors
    /// If a matrix is singular, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the matrices are not square, the shapes do not fit, or a dtype is not a float.
    #[track_caller]
    pub fn solve(&self, b: &Tensor) -> Result<Tensor> {
        self.require_square("solve");
        b.require_float("solve");
        let (rank, n) = (self.rank(), self.size(-1));
        let vectors = b.rank() == 1 || b.rank() + 1 == rank && b.shape()[..] == self.shape()[..rank - 1];
        let columns = if vectors { b.unsqueeze(-1) } else { b.clone() };
        let batch = |t: &Tensor| Shape::new(&t.shape()[..t.rank().saturating_sub(2)]);
        let common = batch(self).broadcast(&batch(&columns)).filter(|_| columns.size(-2) == n);
        let Some(common) = common else {
            panic!(
                "solve: the shapes do not fit. matrices: {}; right side: {}",
                self.describe(),
                b.describe()
            )
        };
        let dtype = result_dtype(self, b);
        let spread = |t: &Tensor| {
            let shape: Shape = common.iter().copied().chain([n, t.size(-1)]).collect();
            t.to_dtype(dtype).broadcast_to(&shape)
        };
        let x = spread(self).solved("solve", &spread(&columns))?;
        Ok(if vectors { x.squeeze(-1) } else { x })
    }

    /// The inverse of square matrices `[.., n, n]`. To solve a system, [`Tensor::solve`] is faster and more exact.
    ///
    /// # Errors
    /// If a matrix is singular, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the matrices are not square, or the dtype is not a float.
    #[track_caller]
    pub fn inverse(&self) -> Result<Tensor> {
        self.require_square("inverse");
        let eye = Tensor::eye(self.size(-1), (self.dtype(), self.device()));
        self.solved("inverse", &eye.broadcast_to(self.shape()))
    }

    /// As [`Tensor::solve`], of as many matrices as right sides.
    #[track_caller]
    fn solved(&self, name: &'static str, b: &Tensor) -> Result<Tensor> {
        let (a, right) = (self.matrices()?, b.matrices()?);
        let mut x = Vec::with_capacity(right.values.len());
        for (i, (a, b)) in a.iter().zip(right.iter()).enumerate() {
            let lu = Lu::new(a.to_vec(), right.rows);
            if let Some(column) = lu.singular_at() {
                return Err(Error::Data(format!(
                    "{name}: matrix {i} is singular: column {column} depends on those before it. matrices: {}",
                    self.describe()
                )));
            }
            x.extend(lu.solve(b, right.columns));
        }
        let x = b.from_host(&x, *b.shape());
        Ok(x.recorded(name, &[self, b], &[Save::Input(0), Save::Output(0)], |c| {
            let (a, x) = (c.saved(0), c.saved(1));
            let b_grad = known(a.mT().solved("solve_grad", c.grad()));
            grads![c.needs(0).then(|| -b_grad.matmul(&x.mT())), b_grad]
        }))
    }

    /// The determinants of square matrices: `[.., n, n]` to `[..]`. Of singular matrices there is a gradient, but no second one.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the matrices are not square, or the dtype is not a float.
    #[track_caller]
    pub fn det(&self) -> Result<Tensor> {
        self.require_square("det");
        let a = self.matrices()?;
        let values: Vec<f64> = a.iter().map(|m| Lu::new(m.to_vec(), a.rows).det()).collect();
        let det = self.from_host(&values, a.batch);
        Ok(det.recorded("det", &[self], &[Save::Input(0), Save::Output(0)], |c| {
            grads![over_matrices(c.grad()) * c.saved(0).cofactors(c.saved(1))]
        }))
    }

    /// The gradient of the determinant. Determinant times inverse would be exact only where a matrix is far from singular.
    #[track_caller]
    fn cofactors(&self, det: &Tensor) -> Tensor {
        let a = known(self.matrices());
        let n = a.rows;
        let mut values = Vec::with_capacity(a.values.len());
        for matrix in a.iter() {
            // det(U) det(V) U diag(the product of all other singular values) Vᵀ
            let (u, mut s, vt) = decompose::svd(matrix, n, n);
            // What is left of a singular value that is 0 is rounding.
            let smallest = s.first().map_or(0.0, |s| s * n as f64 * f64::EPSILON);
            s.iter_mut().filter(|s| **s <= smallest).for_each(|s| *s = 0.0);
            if is_grad_enabled() && s.contains(&0.0) {
                panic!("det: a singular matrix has no second gradient. matrices: {}", self.describe());
            }
            let sign = Lu::new(u.clone(), n).det().signum() * Lu::new(vt.clone(), n).det().signum();
            let others = |k: usize| (0..n).filter(|&i| i != k).fold(sign, |product, i| product * s[i]);
            let others: Vec<f64> = (0..n).map(others).collect();
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                values.push((0..n).map(|k| u[i * n + k] * others[k] * vt[k * n + j]).sum());
            }
        }
        if is_grad_enabled() {
            return over_matrices(det) * known(self.inverse()).mT();
        }
        self.from_host(&values, *self.shape())
    }

    /// The sign of the determinants (-1, 0 or 1) and the natural logarithm of their size, which neither overflows nor underflows:
    /// `[.., n, n]` to twice `[..]`.
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the matrices are not square, or the dtype is not a float; in `backward`, if a matrix is singular.
    #[track_caller]
    pub fn slogdet(&self) -> Result<(Tensor, Tensor)> {
        self.require_square("slogdet");
        let a = self.matrices()?;
        let (sign, log): (Vec<f64>, Vec<f64>) =
            a.iter().map(|m| Lu::new(m.to_vec(), a.rows).slogdet()).unzip();
        let (sign, log) = (self.from_host(&sign, a.batch), self.from_host(&log, a.batch));
        let log = log.recorded("slogdet", &[self], &[Save::Input(0)], |c| {
            grads![over_matrices(c.grad()) * known(c.saved(0).inverse()).mT()]
        });
        Ok((sign, log))
    }

    /// The natural logarithm of the determinants; NaN where one is negative. See [`Tensor::slogdet`].
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// As [`Tensor::slogdet`].
    #[track_caller]
    pub fn logdet(&self) -> Result<Tensor> {
        let (sign, log) = self.slogdet()?;
        Ok(log + sign.log().masked_fill(&sign.eq(0), 0))
    }

    /// The lower triangle `l` with `l @ l.mT() = self`, of symmetric positive-definite matrices `[.., n, n]`. Only their lower triangles
    /// are read.
    ///
    /// # Errors
    /// If a matrix is not positive-definite, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the matrices are not square, or the dtype is not a float.
    #[track_caller]
    pub fn cholesky(&self) -> Result<Tensor> {
        self.require_square("cholesky");
        let a = self.matrices()?;
        let mut values = Vec::with_capacity(a.values.len());
        for (i, matrix) in a.iter().enumerate() {
            let l = decompose::cholesky(matrix, a.rows).map_err(|row| {
                Error::Data(format!(
                    "cholesky: matrix {i} is not positive-definite: it fails at row {row}. matrices: {}",
                    self.describe()
                ))
            })?;
            values.extend(l);
        }
        let l = self.from_host(&values, *self.shape());
        Ok(l.recorded("cholesky", &[self], &[Save::Output(0)], |c| {
            // The symmetric part of L⁻ᵀ Φ(Lᵀ g) L⁻¹, where Φ takes the lower triangle and half of the diagonal.
            let upper = c.saved(0).mT();
            let product = upper.matmul(&c.grad().tril(0));
            let half = product.tril(-1) + (product.diagonal(0, -2, -1) * 0.5).diag_embed(0);
            let left = known(upper.solved("cholesky_grad", &half));
            let both = known(upper.solved("cholesky_grad", &left.mT())).mT();
            grads![(&both + both.mT()) * 0.5]
        }))
    }

    /// `(q, r)` with `q @ r = self`, orthonormal columns in `q` and an upper triangle `r`: the reduced form, with LAPACK's signs.
    ///
    /// # Shapes
    /// - `self`: `[.., m, n]`; `q`: `[.., m, k]`; `r`: `[.., k, n]`, where `k` is the smaller of `m` and `n`
    ///
    /// # Errors
    /// If the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If there are fewer than two dimensions, or the dtype is not a float; in `backward`, if the first `k` columns depend on each
    /// other.
    #[track_caller]
    pub fn qr(&self) -> Result<(Tensor, Tensor)> {
        self.require_matrices("qr");
        let (m, n) = (self.size(-2), self.size(-1));
        if m < n {
            let (q, r) = self.narrow(-1, 0, m).qr()?;
            let rest = q.mT().matmul(&self.narrow(-1, m, n - m));
            return Ok((q, Tensor::cat(&[r, rest], -1)));
        }
        let a = self.matrices()?;
        let (q, r): (Vec<_>, Vec<_>) = a.iter().map(|matrix| decompose::qr(matrix, m, n)).unzip();
        let mut outputs =
            [self.from_host(&q.concat(), *self.shape()), self.from_host(&r.concat(), a.shape(&[n, n]))];
        record(&mut outputs, "qr", &[self], &[Save::Output(0), Save::Output(1)], qr_grad);
        let [q, r] = outputs;
        Ok((q, r))
    }

    /// Eigenvalues, the smallest first, and eigenvectors (columns) of symmetric matrices: `(values, vectors)` with
    /// `self @ vectors = vectors * values`. Only their lower triangles are read. An eigenvector has either sign.
    ///
    /// # Shapes
    /// - `self`: `[.., n, n]`; values: `[.., n]`; vectors: `[.., n, n]`
    ///
    /// # Errors
    /// If a matrix has a NaN or an infinity in it, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If the matrices are not square, or the dtype is not a float.
    #[track_caller]
    pub fn eigh(&self) -> Result<(Tensor, Tensor)> {
        self.require_square("eigh");
        let a = self.finite_matrices("eigh", |row, column| column <= row)?;
        let (values, vectors): (Vec<_>, Vec<_>) =
            a.iter().map(|matrix| decompose::eigh(matrix, a.rows)).unzip();
        let mut outputs = [
            self.from_host(&values.concat(), a.shape(&[a.rows])),
            self.from_host(&vectors.concat(), *self.shape()),
        ];
        record(&mut outputs, "eigh", &[self], &[Save::Output(0), Save::Output(1)], eigh_grad);
        let [values, vectors] = outputs;
        Ok((values, vectors))
    }

    /// Singular values, the largest first, and singular vectors: `(u, s, vh)` with `(u * s) @ vh = self`, PyTorch's
    /// `torch.linalg.svd(self, full_matrices=False)`. A pair of vectors has either sign.
    ///
    /// ```
    /// # use orkest_core::Tensor;
    /// // The two directions in which points differ most (PCA).
    /// let points = Tensor::randn([50, 4], ());
    /// let (_, _, directions) = (&points - points.mean_keepdim(0)).svd()?;
    /// assert_eq!(points.matmul(&directions.i((..2, ..)).mT()).shape(), &[50, 2]);
    /// # Ok::<(), orkest_core::Error>(())
    /// ```
    ///
    /// # Shapes
    /// - `self`: `[.., m, n]`; `u`: `[.., m, k]`; `s`: `[.., k]`; `vh`: `[.., k, n]`, where `k` is the smaller of `m` and `n`
    ///
    /// # Errors
    /// If a matrix has a NaN or an infinity in it, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// If there are fewer than two dimensions, or the dtype is not a float.
    #[track_caller]
    pub fn svd(&self) -> Result<(Tensor, Tensor, Tensor)> {
        self.require_matrices("svd");
        let (m, n) = (self.size(-2), self.size(-1));
        if m < n {
            let (u, s, vh) = self.mT().svd()?;
            return Ok((vh.mT(), s, u.mT()));
        }
        let a = self.finite_matrices("svd", |_, _| true)?;
        let [mut u, mut s, mut vh] = [const { Vec::new() }; 3];
        for matrix in a.iter() {
            let parts = decompose::svd(matrix, m, n);
            u.extend(parts.0);
            s.extend(parts.1);
            vh.extend(parts.2);
        }
        let mut outputs = [
            self.from_host(&u, *self.shape()),
            self.from_host(&s, a.shape(&[n])),
            self.from_host(&vh, a.shape(&[n, n])),
        ];
        let save = [Save::Output(0), Save::Output(1), Save::Output(2)];
        record(&mut outputs, "svd", &[self], &save, svd_grad);
        let [u, s, vh] = outputs;
        Ok((u, s, vh))
    }

    /// The pseudo-inverse (Moore and Penrose's) of matrices `[.., m, n]`: `[.., n, m]`. Singular values below `max(m, n)` times the
    /// dtype's precision times the largest one count as 0.
    ///
    /// # Errors
    /// If a matrix has a NaN or an infinity in it, or the device reports what went wrong in an earlier operation.
    ///
    /// # Panics
    /// As [`Tensor::svd`].
    #[track_caller]
    pub fn pinverse(&self) -> Result<Tensor> {
        self.require_matrices("pinverse");
        let (m, n) = (self.size(-2), self.size(-1));
        let precision = if self.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let (u, s, vh) = self.detach().svd()?;
        let limit = match s.size(-1) {
            0 => s.clone(),
            _ => s.narrow(-1, 0, 1) * (m.max(n) as f64 * precision),
        };
        let none = s.le(&limit);
        let inverse = s.masked_fill(&none, 1).reciprocal().masked_fill(&none, 0);
        let y = (vh.mT() * inverse.unsqueeze(-2)).matmul(&u.mT());
        Ok(y.recorded("pinverse", &[self], &[Save::Input(0), Save::Output(0)], pinverse_grad))
    }

    /// Every matrix transposed: `[.., m, n]` to `[.., n, m]`. A view.
    ///
    /// # Panics
    /// If there are fewer than two dimensions.
    #[allow(non_snake_case)] // PyTorch's name
    #[track_caller]
    pub fn mT(&self) -> Tensor {
        if self.rank() < 2 {
            panic!("mT: matrices have two dimensions or more. tensor: {}", self.describe());
        }
        self.transpose(-2, -1)
    }

    #[track_caller]
    fn require_matrices(&self, op: &str) {
        self.require_float(op);
        if self.rank() < 2 {
            panic!("{op}: matrices have two dimensions or more. tensor: {}", self.describe());
        }
    }

    #[track_caller]
    fn require_square(&self, op: &str) {
        self.require_matrices(op);
        if self.size(-1) != self.size(-2) {
            panic!("{op}: square matrices are needed. tensor: {}", self.describe());
        }
    }

    /// The numbers of matrices on the host.
    #[track_caller]
    fn matrices(&self) -> Result<Matrices> {
        let values = self.detach().try_to(&Device::cpu())?.to_dtype(DType::F64).to_vec::<f64>()?;
        let batch = Shape::new(&self.shape()[..self.rank() - 2]);
        Ok(Matrices { values, rows: self.size(-2), columns: self.size(-1), batch })
    }

    /// The same for what finds its result by steps that a NaN or an infinity would end anywhere; `is_read` says at which places.
    #[track_caller]
    fn finite_matrices(&self, op: &str, is_read: impl Fn(usize, usize) -> bool) -> Result<Matrices> {
        let a = self.matrices()?;
        let is_odd = |(i, x): (usize, &f64)| !x.is_finite() && is_read(i / a.columns, i % a.columns);
        let odd = a.iter().position(|matrix| matrix.iter().enumerate().any(is_odd));
        match odd {
            Some(i) => Err(Error::Data(format!(
                "{op}: matrix {i} has a NaN or an infinity in it. matrices: {}",
                self.describe()
            ))),
            None => Ok(a),
        }
    }

    /// Numbers of the host in this tensor's dtype, on its device.
    #[track_caller]
    fn from_host(&self, values: &[f64], shape: Shape) -> Tensor {
        Tensor::from_slice(values, shape, (self.dtype(), self.device()))
    }
}

/// One number for each matrix, as it is multiplied with matrices.
#[track_caller]
fn over_matrices(numbers: &Tensor) -> Tensor {
    numbers.unsqueeze(-1).unsqueeze(-1)
}

/// A result within a gradient, where an error has nobody to go to.
#[track_caller]
fn known<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("backward: {e}"),
    }
}

/// `X - Xᵀ`
#[track_caller]
fn skew(x: &Tensor) -> Tensor {
    x - x.mT()
}

/// `numerator[i][j] / (of[j] - of[i])`, and 0 on the diagonal.
#[track_caller]
fn over_gaps(numerator: &Tensor, of: &Tensor) -> Tensor {
    let diagonal = Tensor::eye(of.size(-1), (DType::Bool, of.device()));
    let gaps = (of.unsqueeze(-2) - of.unsqueeze(-1)).masked_fill(&diagonal, 1);
    (numerator / gaps).masked_fill(&diagonal, 0)
}

/// Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems", 1973: from the pseudo-inverse
/// alone, so that equal singular values do no harm.
#[track_caller]
fn pinverse_grad(c: &Context<'_>) -> crate::Gradients {
    let (a, p) = (c.saved(0), c.saved(1));
    let g = c.grad().mT();
    let direct = p.mT().matmul(&g.mT()).matmul(&p.mT());
    let pp = p.mT().matmul(p); // `[m, m]`
    let rest_of_rows = &g - g.matmul(p).matmul(a);
    let qq = p.matmul(&p.mT()); // `[n, n]`
    let rest_of_columns = &g - a.matmul(&p.matmul(&g));
    grads![pp.matmul(&rest_of_rows) + rest_of_columns.matmul(&qq) - direct]
}

/// `(gQ + Q S) R⁻ᵀ` with `S` the symmetric matrix whose lower triangle is that of `R gRᵀ - gQᵀ Q`.
#[track_caller]
fn qr_grad(c: &Context<'_>) -> crate::Gradients {
    let (q, r) = (c.saved(0), c.saved(1));
    let (q_grad, r_grad) = (c.grad_or_zeros(0), c.grad_or_zeros(1));
    let lower = (r.matmul(&r_grad.mT()) - q_grad.mT().matmul(q)).tril(0);
    let symmetric = &lower + lower.tril(-1).mT();
    let sum = q_grad + q.matmul(&symmetric);
    grads![known(r.solved("qr_grad", &sum.mT())).mT()]
}

/// `V (diag(gλ) + Vᵀ gV / (λⱼ - λᵢ)) Vᵀ`
#[track_caller]
fn eigh_grad(c: &Context<'_>) -> crate::Gradients {
    let (values, vectors) = (c.saved(0), c.saved(1));
    let mut inner = c.grad_or_zeros(0).diag_embed(0);
    if let Some(g) = c.grad_of(1) {
        inner += over_gaps(&vectors.mT().matmul(g), values);
    }
    grads![vectors.matmul(&inner).matmul(&vectors.mT())]
}

/// `U (skew(Uᵀ gU) / E S + diag(gS) + S skew(Vᵀ gV) / E) Vᵀ + (1 - U Uᵀ) gU S⁻¹ Vᵀ` with `E[i][j] = S[j]² - S[i]²`; V is square.
#[track_caller]
fn svd_grad(c: &Context<'_>) -> crate::Gradients {
    let (u, s, vh) = (c.saved(0), c.saved(1), c.saved(2));
    let squares = s.square();
    let mut inner = c.grad_or_zeros(1).diag_embed(0);
    if let Some(g) = c.grad_of(0) {
        inner += over_gaps(&skew(&u.mT().matmul(g)), &squares) * s.unsqueeze(-2);
    }
    if let Some(g) = c.grad_of(2) {
        inner += over_gaps(&skew(&vh.matmul(&g.mT())), &squares) * s.unsqueeze(-1);
    }
    let mut a_grad = u.matmul(&inner).matmul(vh);
    if let Some(g) = c.grad_of(0).filter(|_| u.size(-2) > u.size(-1)) {
        let outside = g - u.matmul(&u.mT().matmul(g));
        a_grad += (outside / s.unsqueeze(-2)).matmul(vh);
    }
    grads![a_grad]
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, tensor};

    #[test]
    fn what_is_wrong_with_a_matrix_is_an_error() {
        let singular = tensor![[1.0, 2.0], [2.0, 4.0]];
        let message = singular.solve(&tensor![1.0, 2.0]).unwrap_err().to_string();
        assert!(
            message.starts_with("solve: matrix 0 is singular: column 1 depends on those before it."),
            "{message}"
        );
        let batch = Tensor::stack(&[&tensor![[1.0, 0.0], [0.0, 1.0]], &tensor![[1.0, 2.0], [2.0, 1.0]]], 0);
        let message = batch.cholesky().unwrap_err().to_string();
        assert!(
            message.starts_with("cholesky: matrix 1 is not positive-definite: it fails at row 1."),
            "{message}"
        );
        assert_eq!(singular.det().unwrap().item().unwrap(), 0.0);
        let (sign, log) = singular.slogdet().unwrap();
        assert_eq!((sign.item().unwrap(), log.item().unwrap()), (0.0, f64::NEG_INFINITY));
        assert_eq!(singular.logdet().unwrap().item().unwrap(), f64::NEG_INFINITY);
        assert!((-Tensor::eye(3, ())).logdet().unwrap().item().unwrap().is_nan());
    }

    #[test]
    fn numbers_of_any_size_are_decomposed() {
        // torch.linalg.svd and eigh in f64
        for unit in [1e160, 1e-160] {
            let a = tensor![[3.0, 1.0], [1.0, 2.0]].to_dtype(crate::DType::F64) * unit;
            let expected = Tensor::new([3.618033988749895, 1.381966011250105], ()) * unit;
            let (u, s, vh) = a.svd().unwrap();
            assert!(s.allclose(&expected, 1e-14, 0.0, false).unwrap(), "{s}");
            assert!((u * s.unsqueeze(-2)).matmul(&vh).allclose(&a, 1e-14, 0.0, false).unwrap());
            assert!(a.eigh().unwrap().0.flip(&[0]).allclose(&expected, 1e-14, 0.0, false).unwrap());
        }
        for odd in [f32::NAN, f32::INFINITY] {
            let a = tensor![[1.0, 2.0], [odd, 3.0]];
            for message in [a.svd().unwrap_err(), a.eigh().unwrap_err(), a.pinverse().unwrap_err()] {
                assert!(message.to_string().contains("matrix 0 has a NaN or an infinity in it"), "{message}");
            }
        }
    }

    #[test]
    fn a_singular_matrix_has_a_gradient_of_its_determinant() {
        // torch.det(a).backward() gives the cofactors: [[4, -2], [-2, 1]]
        let a = tensor![[1.0, 2.0], [2.0, 4.0]].requires_grad_(true);
        a.det().unwrap().backward();
        let expected = tensor![[4.0, -2.0], [-2.0, 1.0]];
        assert!(a.grad().unwrap().allclose(&expected, 1e-6, 0.0, false).unwrap());
    }

    #[test]
    fn decompositions_multiply_to_the_matrix() {
        let device = Device::cpu();
        for (m, n) in [(1, 1), (7, 3), (3, 7), (40, 40), (0, 3), (3, 0)] {
            let a = Tensor::randn([2, m, n], (crate::DType::F64, &device));
            let is_a =
                |product: Tensor| assert!(product.allclose(&a, 1e-12, 1e-12, false).unwrap(), "[{m}, {n}]");
            let (q, r) = a.qr().unwrap();
            is_a(q.matmul(&r));
            let (u, s, vh) = a.svd().unwrap();
            is_a((&u * s.unsqueeze(-2)).matmul(&vh));
            let one = Tensor::eye(m.min(n), (crate::DType::F64, &device));
            for orthonormal in [q.mT().matmul(&q), u.mT().matmul(&u), vh.matmul(&vh.mT())] {
                assert!((orthonormal - &one).abs().sum(..).item().unwrap() < 1e-10);
            }
        }
    }

    #[test]
    fn ranks_that_are_not_full_have_vectors_too() {
        // Rank 1, twice the same column, and nothing at all.
        for a in [
            tensor![[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]],
            tensor![[1.0, 1.0], [0.0, 0.0]],
            Tensor::zeros([3, 2], ()),
        ] {
            let (u, s, vh) = a.svd().unwrap();
            assert!((&u * s.unsqueeze(-2)).matmul(&vh).allclose(&a, 1e-5, 1e-6, false).unwrap());
            assert!(u.mT().matmul(&u).allclose(&Tensor::eye(2, ()), 1e-5, 1e-6, false).unwrap());
            assert!(a.matmul(&a.pinverse().unwrap()).matmul(&a).allclose(&a, 1e-5, 1e-6, false).unwrap());
            let (values, vectors) = a.mT().matmul(&a).eigh().unwrap();
            assert!(vectors.mT().matmul(&vectors).allclose(&Tensor::eye(2, ()), 1e-5, 1e-6, false).unwrap());
            assert!(values.to_vec::<f32>().unwrap()[0].abs() < 1e-4);
        }
    }

    #[test]
    #[should_panic(expected = "solve: the shapes do not fit")]
    fn right_sides_must_fit() {
        let _ = Tensor::eye(3, ()).solve(&tensor![1.0, 2.0]);
    }
}
