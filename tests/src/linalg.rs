//! Calls of the operations on matrices: the other side of `parity/linalg_cases.py`.

use crate::operations::Operation;
use orkest_core::{Result, Tensor};

/// Their names and how they are called.
pub const OPERATIONS: &[(&str, Operation)] = &[
    ("solve", |c| one(shifted(c.x(0)).solve(c.x(1)))),
    ("inverse", |c| one(shifted(c.x(0)).inverse())),
    ("det", |c| one(c.x(0).det())),
    ("slogdet", |c| {
        let (sign, log) = known((-shifted(c.x(0))).slogdet());
        vec![sign, log]
    }),
    ("logdet", |c| one(positive(c.x(0)).logdet())),
    ("cholesky", |c| one(positive(c.x(0)).cholesky())),
    ("mT", |c| vec![c.x(0).mT()]),
    ("eigh", |c| {
        let (values, vectors) = known((c.x(0) + c.x(0).mT()).eigh());
        vec![values, vectors.abs()]
    }),
    ("qr", |c| {
        let (q, r) = known(c.x(0).qr());
        vec![q, r]
    }),
    ("svd", |c| {
        let (u, s, vh) = known(c.x(0).svd());
        vec![u.abs(), s, vh.abs()]
    }),
    ("pinverse", |c| one(c.x(0).pinverse())),
    ("as_strided", |c| vec![c.x(0).as_strided(c.sizes("shape"), &c.sizes("stride"), c.size("offset"))]),
];

fn known<T>(result: Result<T>) -> T {
    result.expect("the matrices are drawn so that there is a result")
}

fn one(result: Result<Tensor>) -> Vec<Tensor> {
    vec![known(result)]
}

fn eye(like: &Tensor) -> Tensor {
    Tensor::eye(like.size(-1), (like.dtype(), like.device()))
}

fn shifted(x: &Tensor) -> Tensor {
    x + eye(x) * 4.0
}

fn positive(x: &Tensor) -> Tensor {
    x.matmul(&x.mT()) + eye(x) * 2.0
}
