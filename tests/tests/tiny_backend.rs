//! A complete backend, as small as it gets, through the conformance suite. docs/write-a-backend.md shows this file.

use Scalar::{Bool, Float};
use orkest_core::op::{ArgReduce, Binary, Cumulative, RandomKind, Reduce, Window};
use orkest_core::random::philox;
use orkest_core::{Backend, Buffer, DType, Element, Error, Layout, Op, Output, RawBuffer, Result, Scalar};
use orkest_core::{Shape, View, reference, register_backend, with_dtype};
use std::any::Any;
use std::cmp::Ordering;
use std::sync::{Arc, RwLock};

/// A device whose memory holds nothing but f64, whatever the dtype: what is written is rounded to what the dtype has.
struct Tiny;

register_backend!("tiny", open);

fn open(_index: usize) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Tiny))
}

orkest_tests::conformance!(orkest_core::Device::open("tiny", 0).unwrap());

struct Numbers(RwLock<Vec<f64>>);

impl RawBuffer for Numbers {
    fn size(&self) -> usize {
        8 * self.0.read().unwrap().len()
    }
}

fn numbers(buffer: &Buffer) -> &RwLock<Vec<f64>> {
    let any: &dyn Any = &**buffer;
    &any.downcast_ref::<Numbers>().expect("core hands a backend its own buffers only").0
}

/// The elements in row-major order.
fn read(buffer: &Buffer, layout: &Layout) -> Vec<f64> {
    let memory = numbers(buffer).read().unwrap();
    layout.positions().map(|at| memory[at]).collect()
}

/// The nearest number that the dtype has; integers wrap around. (`bf16` has a `from_f64` of its own, which rounds twice.)
fn rounded(value: f64, dtype: DType) -> f64 {
    with_dtype!(dtype, T => match dtype.is_float() || dtype == DType::Bool {
        true => <T as Element>::from_f64(value).to_f64(),
        false => <T as Element>::from_i64(value as i64).to_f64(),
    })
}

impl Backend for Tiny {
    fn name(&self) -> &str {
        "tiny"
    }

    fn upload(&self, bytes: &[u8], dtype: DType) -> Result<Buffer> {
        let mut values = Vec::new();
        for element in bytes.chunks_exact(dtype.size()) {
            with_dtype!(dtype, T => {
                let value = bytemuck::checked::pod_read_unaligned::<T>(element);
                if value.to_i64() != value.to_f64() as i64 {
                    return Err(Error::Data(format!("{value} does not fit: this device holds 53 bits")));
                }
                values.push(value.to_f64());
            });
        }
        Ok(Arc::new(Numbers(RwLock::new(values))))
    }

    fn allocate(&self, len: usize, _dtype: DType) -> Result<Buffer> {
        Ok(Arc::new(Numbers(RwLock::new(vec![0.0; len]))))
    }

    fn download(&self, view: View<'_>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for value in read(view.buffer, view.layout) {
            with_dtype!(view.dtype, T => {
                let integer = <T as Element>::from_i64(value as i64);
                let element = if view.dtype.is_float() { Element::from_f64(value) } else { integer };
                bytes.extend_from_slice(bytemuck::bytes_of(&element));
            });
        }
        Ok(bytes)
    }

    fn execute(&self, op: &Op, inputs: &[View<'_>], outputs: &mut [Output]) -> Result<()> {
        for output in outputs.iter_mut().filter(|o| o.buffer.is_none()) {
            output.buffer = Some(self.allocate(output.layout.numel(), output.dtype)?);
        }
        // Everything is read before anything is written: an output may be one of the inputs.
        let results = compute(op, inputs, outputs)?;
        for (output, values) in outputs.iter().zip(results) {
            let mut memory = numbers(output.buffer.as_ref().unwrap()).write().unwrap();
            for (at, value) in output.layout.positions().zip(values) {
                memory[at] = rounded(value, output.dtype);
            }
        }
        Ok(())
    }
}

/// The values of every output.
fn compute(op: &Op, inputs: &[View<'_>], outputs: &[Output]) -> Result<Vec<Vec<f64>>> {
    let x: Vec<Vec<f64>> = inputs.iter().map(|v| read(v.buffer, v.layout)).collect();
    let y = &outputs[0];
    let (shape, n) = (*y.layout.shape(), y.layout.numel());
    let in_shape = inputs.first().map_or(shape, |v| *v.layout.shape());
    let map = |f: &dyn Fn(Scalar) -> Scalar| x[0].iter().map(|&a| f(Float(a)).as_f64()).collect();
    let zip = |f: &dyn Fn(Scalar, Scalar) -> Scalar| {
        x[0].iter().zip(&x[1]).map(|(&a, &b)| f(Float(a), Float(b)).as_f64()).collect()
    };
    let binary = |f: Binary, a: Scalar, b: Scalar| reference::binary(f, a, b).expect("floats have no errors");
    let first = match op {
        Op::Copy => x[0].clone(),
        Op::Fill(value) => vec![value.as_f64(); n],
        Op::Arange { start, step } => (0..n).map(|i| start.as_f64() + i as f64 * step.as_f64()).collect(),
        Op::Random { kind, seed, offset } => (0..n)
            .map(|i| f64::from(philox::uniform(philox::word(*seed, *offset, i))))
            .map(|drawn| match kind {
                RandomKind::Uniform => drawn,
                RandomKind::Bernoulli(p) => f64::from(drawn < *p),
            })
            .collect(),
        Op::Unary(f) => map(&|a| reference::unary(*f, a)),
        Op::Binary(f) => zip(&|a, b| binary(*f, a, b)),
        Op::BinaryScalar { op, scalar, swapped: false } => map(&|a| binary(*op, a, Float(scalar.as_f64()))),
        Op::BinaryScalar { op, scalar, swapped: true } => map(&|a| binary(*op, Float(scalar.as_f64()), a)),
        Op::Compare(f) => zip(&|a, b| Bool(reference::compare(*f, a, b))),
        Op::CompareScalar(f, scalar) => map(&|a| Bool(reference::compare(*f, a, Float(scalar.as_f64())))),
        Op::Where => (0..x[0].len()).map(|i| if x[0][i] != 0.0 { x[1][i] } else { x[2][i] }).collect(),
        Op::Reduce(f, _) => {
            // Reduced dimensions have size 1 in the output: broadcast, they say where every element belongs.
            let target = Layout::contiguous(shape).broadcast_to(&in_shape).unwrap();
            let mut groups = vec![Vec::new(); n];
            target.positions().zip(&x[0]).for_each(|(group, &value)| groups[group].push(value));
            groups.iter().map(|group| reduce(*f, group)).collect()
        }
        Op::ArgReduce(f, dim) => along(&in_shape, *dim, 1, |line, put| {
            let order = |&i: &usize, &j: &usize| {
                let (a, b) = (x[0][line[i]], x[0][line[j]]);
                match f {
                    ArgReduce::Max => ascending(b, a),
                    ArgReduce::Min => a.partial_cmp(&b).unwrap_or(b.is_nan().cmp(&a.is_nan())),
                }
            };
            put(0, (0..line.len()).min_by(order).unwrap() as f64);
        }),
        Op::Cumulative(f, dim) => along(&in_shape, *dim, in_shape[*dim], |line, put| {
            let mut so_far = if *f == Cumulative::Sum { 0.0 } else { 1.0 };
            for (i, &at) in line.iter().enumerate() {
                so_far = if *f == Cumulative::Sum { so_far + x[0][at] } else { so_far * x[0][at] };
                put(i, so_far);
            }
        }),

        Op::Matmul => {
            let (columns, k) = (shape[shape.rank() - 1], in_shape[in_shape.rank() - 1]);
            let dot = |at: usize| {
                let (row, j) = (at / columns, at % columns);
                let batch = row / shape[shape.rank() - 2];
                (0..k).map(|l| x[0][row * k + l] * x[1][(batch * k + l) * columns + j]).sum()
            };
            (0..n).map(dot).collect()
        }

        Op::Gather { dim } | Op::IndexSelect { dim } => {
            let at = indexed(op, *dim, &in_shape, &inputs[1], &shape)?;
            at.into_iter().map(|at| x[0][at]).collect()
        }
        Op::Scatter { dim, .. } | Op::IndexAdd { dim } => {
            let mut values = read(y.buffer.as_ref().unwrap(), &y.layout);
            let at = indexed(op, *dim, &shape, &inputs[0], inputs[1].layout.shape())?;
            for (at, value) in at.into_iter().zip(&x[1]) {
                let before = if matches!(op, Op::Scatter { add: false, .. }) { 0.0 } else { values[at] };
                values[at] = before + value;
            }
            values
        }
        Op::Sort { dim, descending } | Op::TopK { dim, largest: descending, .. } => {
            let place = |values: bool| {
                along(&in_shape, *dim, shape[*dim], |line, put| {
                    let mut order: Vec<usize> = (0..line.len()).collect();
                    order.sort_by(|&i, &j| {
                        let (a, b) = (x[0][line[i]], x[0][line[j]]);
                        if *descending { ascending(b, a) } else { ascending(a, b) }
                    });
                    for (i, &from) in order[..shape[*dim]].iter().enumerate() {
                        put(i, if values { x[0][line[from]] } else { from as f64 });
                    }
                })
            };
            return Ok(vec![place(true), place(false)]);
        }
        Op::Unfold(w) | Op::Fold(w) => {
            let (mut out, unfold) = (vec![0.0; n], matches!(op, Op::Unfold(_)));
            taps(w, if unfold { n } else { x[0].len() }, |pixel, _, patch| match unfold {
                true => out[patch] = x[0][pixel],
                false => out[pixel] += x[0][patch],
            });
            out
        }
        Op::MaxPool(w) => {
            let plane = w.input[0] * w.input[1];
            let mut best: Vec<Option<usize>> = vec![None; n];
            taps(w, n * w.kernel[0] * w.kernel[1], |pixel, window, _| {
                if best[window].is_none_or(|at| x[0][pixel] > x[0][at] || x[0][pixel].is_nan()) {
                    best[window] = Some(pixel);
                }
            });
            let places = best.iter().map(|at| (at.unwrap() % plane) as f64).collect();
            return Ok(vec![best.iter().map(|at| x[0][at.unwrap()]).collect(), places]);
        }
        Op::AvgPool(w, padding) | Op::AvgPoolGrad(w, padding) => {
            let area = w.kernel[0] * w.kernel[1];
            let windows = if matches!(op, Op::AvgPool(..)) { n } else { x[0].len() };
            let mut counts = vec![if *padding { area as f64 } else { 0.0 }; windows];
            taps(w, windows * area, |_, window, _| counts[window] += f64::from(!padding));
            let mut out = vec![0.0; n];
            taps(w, windows * area, |pixel, window, _| match op {
                Op::AvgPool(..) => out[window] += x[0][pixel] / counts[window],
                _ => out[pixel] += x[0][window] / counts[window],
            });
            out
        }
        // Fused operations are not asked for: `supports` says no, and core takes their lowerings.
        _ => return Err(Error::Data(format!("{}: not on this device", op.name()))),
    };
    Ok(vec![first])
}

/// NaN is larger than everything.
fn ascending(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or(a.is_nan().cmp(&b.is_nan()))
}

fn reduce(f: Reduce, group: &[f64]) -> f64 {
    let largest = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    match f {
        Reduce::Sum => group.iter().sum(),
        Reduce::Mean => group.iter().sum::<f64>() / group.len() as f64,
        Reduce::Prod => group.iter().product(),
        Reduce::Max => group.iter().copied().reduce(largest).unwrap(),
        Reduce::Min => -group.iter().map(|x| -x).reduce(largest).unwrap(),
        Reduce::Any => f64::from(group.iter().any(|&x| x != 0.0)),
        Reduce::All => f64::from(group.iter().all(|&x| x != 0.0)),
    }
}

type Put<'a> = &'a mut dyn FnMut(usize, f64);

/// Calls `f` with every line along `dim`, as row-major positions, and with where to put the `count` results of that line.
fn along(shape: &Shape, dim: usize, count: usize, f: impl Fn(&[usize], Put<'_>)) -> Vec<f64> {
    let (len, inner) = (shape[dim], shape[dim + 1..].iter().product::<usize>());
    let mut out = vec![0.0; shape.numel() / len * count];
    for i in 0..shape.numel() / len {
        let (outer, inner_at) = (i / inner, i % inner);
        let line: Vec<usize> = (0..len).map(|k| (outer * len + k) * inner + inner_at).collect();
        f(&line, &mut |k, value| out[(outer * count + k) * inner + inner_at] = value);
    }
    out
}

/// Where the elements of a tensor of `shape` lie that an index names along `dim`, for an index of the shape `by`, or of one dimension
/// and then the same for all lines.
fn indexed(op: &Op, dim: usize, shape: &Shape, index: &View<'_>, by: &Shape) -> Result<Vec<usize>> {
    let mut first = Layout::contiguous(*shape).slice(dim, 0, 1, 1);
    for d in (0..shape.rank()).filter(|d| *d != dim) {
        first = first.slice(d, 0, by[d], 1);
    }
    let step: usize = shape[dim + 1..].iter().product();
    let index = match op {
        Op::IndexSelect { .. } | Op::IndexAdd { .. } => {
            let column =
                (dim + 1..by.rank()).fold(*index.layout, |layout, _| layout.unsqueeze(layout.rank()));
            read(index.buffer, &column.broadcast_to(by).unwrap())
        }
        _ => read(index.buffer, index.layout),
    };
    let starts = first.broadcast_to(by).unwrap();
    let position = |(start, i): (usize, f64)| match i >= 0.0 && i < shape[dim] as f64 {
        true => Ok(start + i as usize * step),
        false => Err(Error::IndexOutOfRange { op: "index", index: i as i64, size: shape[dim], at: None }),
    };
    starts.positions().zip(index).map(position).collect()
}

/// Calls `f` for every pixel under a point of a window, unless it is padding: with the row-major positions of the pixel in
/// `[n, c, h, w]`, of the window in `[n, c, oh, ow]` and of both in `[n, c, kh kw, oh ow]`, which has `patches` elements.
fn taps(w: &Window, patches: usize, mut f: impl FnMut(usize, usize, usize)) {
    let ([oh, ow], [kh, kw], [height, width]) = (w.output(), w.kernel, w.input);
    for patch in 0..patches {
        let (rest, window) = (patch / (oh * ow), patch % (oh * ow));
        let (plane, point) = (rest / (kh * kw), rest % (kh * kw));
        let row = (window / ow * w.stride[0] + point / kw * w.dilation[0]).wrapping_sub(w.padding[0]);
        let column = (window % ow * w.stride[1] + point % kw * w.dilation[1]).wrapping_sub(w.padding[1]);
        if row < height && column < width {
            f((plane * height + row) * width + column, plane * oh * ow + window, patch);
        }
    }
}
