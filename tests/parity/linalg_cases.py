"""Cases for `torch.linalg`; tests/src/linalg.rs has the other side.

Matrices are drawn so that they are far from singular. What LAPACK leaves open, the signs of eigenvectors and singular vectors, is taken
out by absolute values.
"""

import torch

from draw import Case, registry

CASES, case = registry()


def square(d):
    """Square matrices, some in batches; `eye` is added by those who need them well-conditioned."""
    n = d.int(1, 5)
    return d.shape(0, 2, size=3, empty=0) if not d.plain else [], n


def matrices(d, rows, columns):
    d.wide()
    batch, _ = square(d)
    # Rows or columns that are one and the same would leave factors and their gradients to chance.
    return d.tensor([*batch, rows, columns], expand=False)


def shifted(x):
    return x + 4 * torch.eye(x.shape[-1], dtype=x.dtype)


def positive(x):
    return x @ x.mT + 2 * torch.eye(x.shape[-1], dtype=x.dtype)


@case("solve")
def _(d):
    d.wide()
    n = d.int(1, 5)
    batch = [] if d.plain else d.shape(0, 1, size=3, empty=0)
    a = d.tensor([*batch, n, n])
    if d.plain or d.flag(0.4):
        b = d.tensor([n])
    else:
        b = d.tensor([*batch, n, d.int(1, 3)] if d.flag() else [n, d.int(1, 3)])
    return Case([a, b], lambda a, b: torch.linalg.solve(shifted(a), b))


def of_square(name, run):
    @case(name)
    def _(d):
        n = d.int(1, 5)
        x = matrices(d, n, n)
        # PyTorch gives singular matrices a gradient of 0 instead of the cofactors.
        singular = name == "det" and bool((torch.linalg.det(x.value.double()).abs() < 1e-9).any())
        return Case([x], run, backward=not singular)


of_square("inverse", lambda x: torch.linalg.inv(shifted(x)))
of_square("det", torch.linalg.det)
of_square("slogdet", lambda x: [t.detach() if i == 0 else t for i, t in enumerate(torch.linalg.slogdet(-shifted(x)))])
of_square("logdet", lambda x: torch.logdet(positive(x)))
of_square("cholesky", lambda x: torch.linalg.cholesky(positive(x)))
of_square("mT", lambda x: x.mT)


@case("eigh")
def _(d):
    def run(x):
        values, vectors = torch.linalg.eigh(x + x.mT)
        return [values, vectors.abs()]

    n = d.int(1, 4)
    return Case([matrices(d, n, n)], run)


@case("qr")
def _(d):
    return Case([matrices(d, d.int(1, 5), d.int(1, 5))], lambda x: list(torch.linalg.qr(x)))


@case("svd")
def _(d):
    def run(x):
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        return [u.abs(), s, vh.abs()]

    return Case([matrices(d, d.int(1, 4), d.int(1, 4))], run)


@case("pinverse")
def _(d):
    return Case([matrices(d, d.int(1, 4), d.int(1, 4))], torch.linalg.pinv)


@case("as_strided")
def _(d):
    rows, columns = d.int(1, 4), d.int(1, 3)
    stride = [d.int(0, 3), d.int(0, 2)]
    offset = d.int(0, 2)
    x = d.tensor([offset + (rows - 1) * stride[0] + (columns - 1) * stride[1] + 1 + d.int(0, 2)])
    args = {"shape": [rows, columns], "stride": stride, "offset": offset}
    return Case([x], lambda x: x.clone(memory_format=torch.contiguous_format).as_strided([rows, columns], stride, offset), args)
