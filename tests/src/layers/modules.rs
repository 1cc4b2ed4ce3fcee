//! Paddings and the rarer layers by name; `parity/module_cases.py` has the other side.

use super::{one, values};
use crate::operations::{Call, Operation, seeded};
use orkest_core::Tensor;
use orkest_nn::*;

pub(super) const MODULES: &[(&str, Operation)] = &[
    ("Softmax2d", |c| one(Softmax2d.forward(c.x(0)))),
    ("PReLU", |c| one(PReLU::from_param(c.param(1)).forward(c.x(0)))),
    ("RReLU", |c| {
        let layer = RReLU::new(c.float("lower"), c.float("upper"));
        layer.eval();
        one(layer.forward(c.x(0)))
    }),
    ("AlphaDropout", |c| {
        let layer = AlphaDropout::new(c.float("p"));
        layer.set_training(c.flag("training"));
        one(layer.forward(c.x(0)))
    }),
    ("ZeroPad1d", padding),
    ("ZeroPad2d", padding),
    ("ConstantPad1d", padding),
    ("ConstantPad2d", padding),
    ("ReflectionPad1d", padding),
    ("ReflectionPad2d", padding),
    ("ReplicationPad1d", padding),
    ("ReplicationPad2d", padding),
    ("CircularPad1d", padding),
    ("CircularPad2d", padding),
    ("MaxUnpool1d", |c| {
        let (kernel, stride, padding) = (c.size("kernel_size"), c.size("stride"), c.size("padding"));
        let pool = MaxPool1d::new(kernel).stride(stride).padding(padding);
        let (y, indices) = pool.forward_with_indices(c.x(0));
        let size = c.sizes("size")[0];
        if !c.flag("given") && (y.size(-1) - 1) * stride + kernel != size + 2 * padding {
            return vec![y, indices]; // positions may lie outside
        }
        let back = MaxUnpool1d::new(kernel).stride(stride).padding(padding);
        let back = back.forward(&y, &indices, c.flag("given").then_some(size));
        vec![y, indices, back]
    }),
    ("MaxUnpool2d", |c| {
        let (kernel, stride, padding) = (c.size2("kernel_size"), c.size2("stride"), c.size2("padding"));
        let pool = MaxPool2d::new(kernel).stride(stride).padding(padding);
        let (y, indices) = pool.forward_with_indices(c.x(0));
        let size = [c.sizes("size")[0], c.sizes("size")[1]];
        let same =
            |d: usize| (y.size(d as isize - 2) - 1) * stride.0[d] + kernel.0[d] == size[d] + 2 * padding.0[d];
        let inside = c.flag("given") || same(0) && same(1);
        if !inside {
            return vec![y, indices]; // positions may lie outside
        }
        let back = MaxUnpool2d::new(kernel).stride(stride).padding(padding);
        let back = back.forward(&y, &indices, c.flag("given").then_some(size));
        vec![y, indices, back]
    }),
    ("Unfold", |c| {
        let unfold = Unfold::new(c.size2("kernel_size")).dilation(c.size2("dilation"));
        one(unfold.padding(c.size2("padding")).stride(c.size2("stride")).forward(c.x(0)))
    }),
    ("Fold", |c| {
        let fold = Fold::new(c.size2("output_size"), c.size2("kernel_size")).dilation(c.size2("dilation"));
        one(fold.padding(c.size2("padding")).stride(c.size2("stride")).forward(c.x(0)))
    }),
    ("ChannelShuffle", |c| one(ChannelShuffle::new(c.size("groups")).forward(c.x(0)))),
    ("LocalResponseNorm", |c| {
        let norm = LocalResponseNorm::new(c.size("size")).alpha(c.float("alpha")).beta(c.float("beta"));
        one(norm.k(c.float("k")).forward(c.x(0)))
    }),
    ("Bilinear", |c| {
        let bias = (c.inputs.len() > 3).then(|| c.param(3));
        one(Bilinear::from_params(c.param(2), bias).forward(c.x(0), c.x(1)))
    }),
    ("EmbeddingBag", |c| {
        let mode = match c.text("mode") {
            "sum" => BagMode::Sum,
            "mean" => BagMode::Mean,
            _ => BagMode::Max,
        };
        let mut bag = EmbeddingBag::from_param(c.param(1))
            .mode(mode)
            .max_norm(c.args["max_norm"].as_f64())
            .include_last_offset(c.flag("include_last_offset"));
        if !c.args["padding_idx"].is_null() {
            bag = bag.padding_idx(c.int("padding_idx"));
        }
        let offsets = (!c.args["offsets"].is_null()).then(|| c.sizes("offsets"));
        one(bag.forward_weighted(c.x(0), offsets.as_deref(), c.maybe(2)))
    }),
    ("fresh_modules", |c| {
        let (in1, in2, out) = (c.size("in1"), c.size("in2"), c.size("out"));
        seeded(c, || {
            let bilinear = if c.flag("bias") { Bilinear::new } else { Bilinear::without_bias };
            let mut all = values(&bilinear(in1, in2, out));
            all.extend(values(&EmbeddingBag::new(in1, in2)));
            all.extend(values(&PReLU::new(out)));
            all
        })
    }),
];

fn padding(c: &Call<'_>) -> Vec<Tensor> {
    fn sides<const N: usize>(c: &Call<'_>) -> [isize; N] {
        c.ints("padding").try_into().expect("two or four sides")
    }
    let layer = match c.op {
        "ZeroPad1d" => AnyLayer::new(ZeroPad1d::new(sides(c))),
        "ZeroPad2d" => AnyLayer::new(ZeroPad2d::new(sides(c))),
        "ConstantPad1d" => AnyLayer::new(ConstantPad1d::new(sides(c), c.float("value"))),
        "ConstantPad2d" => AnyLayer::new(ConstantPad2d::new(sides(c), c.float("value"))),
        "ReflectionPad1d" => AnyLayer::new(ReflectionPad1d::new(sides(c))),
        "ReflectionPad2d" => AnyLayer::new(ReflectionPad2d::new(sides(c))),
        "ReplicationPad1d" => AnyLayer::new(ReplicationPad1d::new(sides(c))),
        "ReplicationPad2d" => AnyLayer::new(ReplicationPad2d::new(sides(c))),
        "CircularPad1d" => AnyLayer::new(CircularPad1d::new(sides(c))),
        "CircularPad2d" => AnyLayer::new(CircularPad2d::new(sides(c))),
        other => panic!("no padding {other}"),
    };
    one(layer.forward(c.x(0)))
}
