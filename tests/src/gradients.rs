//! A list of every differentiable operation with arguments and inputs, for the tests of gradients: against finite differences, and of
//! one device against another.

use orkest_core::{DType, Device, Tensor};
use serde_json::{Value, json};

/// Values between `low` and `high`, all different and nowhere near each other: multiples of the golden ratio, modulo 1.
fn even(shape: &[usize], low: f64, high: f64) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: usize| low + (high - low) * ((i as f64 + 1.3) * 0.618_033_988_75).fract();
    Tensor::from_slice(&(0..n).map(value).collect::<Vec<_>>(), shape, &Device::cpu())
}

/// Values between -2 and 2.
fn x(shape: &[usize]) -> Tensor {
    even(shape, -2.0, 2.0)
}

/// Other values than [`x`] has.
fn y(shape: &[usize]) -> Tensor {
    even(shape, -1.7, 1.9).flip(&(0..shape.len() as isize).collect::<Vec<_>>()).copy()
}

fn index(values: &[i64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::cpu())
}

fn mask(values: &[bool], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::cpu())
}

/// An operation of `orkest_tests::operations`, its arguments, and the inputs of which the float ones are checked.
pub type Entry = (&'static str, Value, Vec<Tensor>);

/// The list. All tensors lie on the CPU, floats in f64.
pub fn entries() -> Vec<Entry> {
    [
        elementwise(),
        reductions(),
        views(),
        positions(),
        products(),
        windows(),
        recurrent(),
        numerics(),
        matrices(),
    ]
    .concat()
}

fn elementwise() -> Vec<Entry> {
    let none = || json!({});
    let mut list: Vec<Entry> =
        ["neg", "abs", "sign", "exp", "expm1", "square", "sin", "cos", "atan", "tanh", "sigmoid"]
            .into_iter()
            .chain([
                "log_sigmoid",
                "erf",
                "relu",
                "gelu",
                "gelu_tanh",
                "silu",
                "floor",
                "ceil",
                "round",
                "trunc",
            ])
            .map(|name| (name, none(), vec![x(&[2, 3])]))
            .collect();
    list.extend(
        ["log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal"]
            .map(|name| (name, none(), vec![even(&[2, 3], 0.3, 3.0)])),
    );
    list.extend(
        ["add", "sub", "mul", "maximum", "minimum"].map(|name| (name, none(), vec![x(&[2, 3]), y(&[3])])),
    );
    list.extend(
        ["add", "sub", "mul"].map(|name| (name, json!({"scalar": 1.5, "swapped": true}), vec![x(&[3])])),
    );
    let positive = |n: &[usize]| even(n, 0.4, 2.5);
    list.extend(
        ["div", "pow", "atan2", "remainder"]
            .map(|name| (name, none(), vec![positive(&[2, 3]), even(&[3], 0.7, 1.9)])),
    );
    list.extend(
        ["div", "pow", "atan2", "remainder"]
            .map(|name| (name, json!({"scalar": 1.25, "swapped": true}), vec![positive(&[3])])),
    );
    list.extend(
        ["div", "pow", "atan2", "remainder", "maximum", "minimum"]
            .map(|name| (name, json!({"scalar": 1.25}), vec![positive(&[3])])),
    );
    let condition = || mask(&[true, false, true, true, false, false], &[2, 3]);
    list.extend([
        ("pow", json!({"scalar": 2}), vec![x(&[4])]),
        ("pow", json!({"scalar": 3}), vec![x(&[4])]),
        ("pow", json!({"scalar": 0.5}), vec![positive(&[4])]),
        ("tan", none(), vec![even(&[2, 3], -1.2, 1.2)]),
        ("softplus", json!({"beta": 1.5, "threshold": 2.0}), vec![x(&[2, 3])]),
        ("leaky_relu", json!({"negative_slope": 0.2}), vec![x(&[2, 3])]),
        ("elu", json!({"alpha": 1.3}), vec![x(&[2, 3])]),
        ("relu6", none(), vec![x(&[2, 3])]),
        ("hardsigmoid", none(), vec![x(&[2, 3])]),
        ("hardswish", none(), vec![x(&[2, 3])]),
        ("tanhshrink", none(), vec![x(&[2, 3])]),
        ("softsign", none(), vec![x(&[2, 3])]),
        ("mish", none(), vec![x(&[2, 3])]),
        ("selu", none(), vec![x(&[2, 3])]),
        ("celu", json!({"alpha": 1.3}), vec![x(&[2, 3])]),
        ("hardtanh", json!({"min_val": -1.3, "max_val": 1.0}), vec![x(&[2, 3])]),
        ("hardshrink", json!({"lambd": 0.5}), vec![x(&[2, 3])]),
        ("softshrink", json!({"lambd": 0.5}), vec![x(&[2, 3])]),
        ("threshold", json!({"threshold": 0.1, "value": 3.0}), vec![x(&[2, 3])]),
        ("softmin", json!({"dim": -1}), vec![even(&[2, 3], -1.0, 0.5)]),
        ("glu", json!({"dim": -1}), vec![x(&[2, 4])]),
        ("prelu", none(), vec![x(&[2, 3, 2]), y(&[3])]),
        ("clamp", json!({"min": -0.93, "max": 0.83}), vec![x(&[2, 3])]),
        ("clamp_min", json!({"min": -0.2}), vec![x(&[2, 3])]),
        ("clamp_max", json!({"max": 0.3}), vec![x(&[2, 3])]),
        ("where_", none(), vec![condition(), x(&[3]), y(&[2, 1])]),
        ("masked_fill", json!({"value": 2.0}), vec![x(&[3]), condition()]),
        ("lerp", json!({"weight": 0.3}), vec![x(&[2, 3]), y(&[3])]),
        ("lerp", none(), vec![x(&[2, 3]), y(&[3]), even(&[2, 1], 0.1, 0.9)]),
        ("to_dtype", json!({"dtype": "f64"}), vec![x(&[2, 3])]),
        ("copy", none(), vec![x(&[2, 3])]),
        ("contiguous", none(), vec![x(&[2, 3])]),
        ("dropout", json!({"p": 0.0, "training": true}), vec![x(&[2, 3])]),
        ("copy_", none(), vec![x(&[2, 3]), y(&[3])]),
        ("add_", none(), vec![x(&[2, 3]), y(&[3])]),
        ("sub_", none(), vec![x(&[2, 3]), y(&[3])]),
        ("mul_", none(), vec![x(&[2, 3]), y(&[3])]),
        ("slice_assign", json!({"index": [["slice", 0, 3, 2]]}), vec![x(&[3, 2]), y(&[2])]),
    ]);
    list
}

fn reductions() -> Vec<Entry> {
    let mut list = Vec::new();
    for name in ["sum", "mean", "prod", "max", "min", "logsumexp"] {
        list.push((name, json!({"dims": [0, 2]}), vec![x(&[2, 3, 2])]));
        list.push((name, json!({"dims": -1, "keepdim": true}), vec![x(&[2, 3])]));
        list.push((name, json!({}), vec![x(&[2, 3])]));
    }
    for name in ["var", "std"] {
        list.push((name, json!({"dims": [0, 2], "correction": 1.0}), vec![x(&[2, 3, 2])]));
        list.push((name, json!({"dims": 1, "correction": 0.0, "keepdim": true}), vec![x(&[2, 3])]));
    }
    for p in [json!(1), json!(2), json!(3), json!(0.5), json!("inf"), json!("-inf")] {
        list.push(("norm", json!({"p": p, "dims": 1}), vec![x(&[2, 3])]));
        list.push(("norm", json!({"p": p, "keepdim": true}), vec![even(&[2, 3], 0.5, 2.0)]));
    }
    for name in ["max_with_indices", "min_with_indices", "median"] {
        list.push((name, json!({"dim": 0}), vec![x(&[3, 2])]));
    }
    let zero = Tensor::new([[0.0, 1.5, -0.7], [0.0, 0.0, 2.0]], (DType::F64, &Device::cpu()));
    list.extend([
        // Zeros among the factors: dividing the product by the factor would not do.
        ("prod", json!({"dims": 1}), vec![zero.clone()]),
        ("cumprod", json!({"dim": 1}), vec![zero]),
        ("cumsum", json!({"dim": 0}), vec![x(&[3, 2])]),
        ("cumprod", json!({"dim": -1}), vec![x(&[2, 3])]),
        ("sum_to", json!({"shape": [3, 1]}), vec![x(&[2, 3, 2])]),
        ("softmax", json!({"dim": -1}), vec![x(&[2, 3])]),
        ("softmax", json!({"dim": 0}), vec![x(&[3, 2])]),
        ("log_softmax", json!({"dim": 1}), vec![x(&[2, 3])]),
        ("log_softmax", json!({"dim": 0}), vec![x(&[3, 2])]),
        ("sort", json!({"dim": 1, "descending": true}), vec![x(&[2, 4])]),
        ("topk", json!({"dim": 0, "k": 2, "largest": true}), vec![x(&[4, 2])]),
        (
            "layer_norm",
            json!({"shape": [3], "weight": true, "bias": true, "eps": 1e-5}),
            vec![x(&[2, 3]), y(&[3]), x(&[3])],
        ),
        ("layer_norm", json!({"shape": [2, 2], "eps": 1e-5}), vec![x(&[2, 2, 2])]),
        ("rms_norm", json!({"shape": [3], "eps": 1e-5}), vec![x(&[2, 3]), y(&[3])]),
        ("rms_norm", json!({"shape": [3], "eps": null}), vec![x(&[2, 3])]),
        (
            "cross_entropy_rows",
            json!({"ignore_index": 1, "label_smoothing": 0.2}),
            vec![x(&[3, 4]), index(&[3, 1, 0], &[3])],
        ),
    ]);
    list
}

fn views() -> Vec<Entry> {
    let none = || json!({});
    vec![
        ("reshape", json!({"shape": [3, -1]}), vec![x(&[2, 3])]),
        ("view", json!({"shape": [3, 2]}), vec![x(&[2, 3])]),
        ("transpose", json!({"a": 0, "b": -1}), vec![x(&[2, 1, 3])]),
        ("t", none(), vec![x(&[2, 3])]),
        ("permute", json!({"dims": [2, 0, 1]}), vec![x(&[2, 1, 3])]),
        ("movedim", json!({"a": 0, "b": 2}), vec![x(&[2, 1, 3])]),
        ("squeeze", json!({"dim": 1}), vec![x(&[2, 1, 3])]),
        ("squeeze_all", none(), vec![x(&[2, 1, 1])]),
        ("unsqueeze", json!({"dim": 1}), vec![x(&[2, 3])]),
        ("expand", json!({"shape": [2, 3, 2]}), vec![x(&[3, 1])]),
        ("broadcast_to", json!({"shape": [2, 3, 2]}), vec![x(&[3, 1])]),
        ("flatten", json!({"start": 0, "end": 1}), vec![x(&[2, 3, 1])]),
        ("unflatten", json!({"dim": 0, "sizes": [2, -1]}), vec![x(&[4, 2])]),
        ("narrow", json!({"dim": 1, "start": 1, "len": 2}), vec![x(&[2, 4])]),
        ("slice_dim", json!({"dim": 0, "start": 1, "len": 2, "step": 2}), vec![x(&[5, 2])]),
        ("select", json!({"dim": 0, "index": -1}), vec![x(&[3, 2])]),
        ("split", json!({"size": 2, "dim": 0}), vec![x(&[3, 2])]),
        ("split_sizes", json!({"sizes": [1, 2], "dim": 0}), vec![x(&[3, 2])]),
        ("chunk", json!({"n": 2, "dim": 1}), vec![x(&[2, 3])]),
        ("chunks", json!({"dim": 0}), vec![x(&[3, 2])]),
        ("unbind", json!({"dim": 1}), vec![x(&[2, 3])]),
        ("flip", json!({"dims": [0, 1]}), vec![x(&[2, 3])]),
        ("roll", json!({"shift": 2, "dim": 0}), vec![x(&[3, 2])]),
        ("repeat", json!({"repeats": [2, 1, 2]}), vec![x(&[2, 2])]),
        ("repeat_interleave", json!({"repeats": 2, "dim": 0}), vec![x(&[2, 2])]),
        ("tril", json!({"k": 0}), vec![x(&[3, 3])]),
        ("triu", json!({"k": 1}), vec![x(&[3, 3])]),
        ("diagonal", json!({"offset": 1, "a": 0, "b": 1}), vec![x(&[3, 4])]),
        ("pad", json!({"pairs": [[1, -1], [0, 2]], "value": 1.0}), vec![x(&[2, 3])]),
        ("pad_mode", json!({"pairs": [[1, 2], [1, 0]], "mode": "reflect"}), vec![x(&[2, 3])]),
        ("pad_mode", json!({"pairs": [[2, 4]], "mode": "replicate"}), vec![x(&[2, 3])]),
        ("pad_mode", json!({"pairs": [[3, 2]], "mode": "circular"}), vec![x(&[2, 3])]),
        ("i", json!({"index": [["slice", 1, null, 2], ["new"], ["select", -1]]}), vec![x(&[4, 2])]),
        ("cat", json!({"dim": 1}), vec![x(&[2, 1]), y(&[2, 2])]),
        ("stack", json!({"dim": 1}), vec![x(&[2]), y(&[2])]),
        ("meshgrid", none(), vec![x(&[2]), y(&[3])]),
    ]
}

fn positions() -> Vec<Entry> {
    let rows = || index(&[2, 0, 2], &[3]);
    vec![
        ("gather", json!({"dim": 0}), vec![x(&[3, 2]), index(&[2, 0, 0, 0], &[2, 2])]),
        ("take_along_dim", json!({"dim": 1}), vec![x(&[2, 3]), index(&[2, 2], &[1, 2])]),
        ("scatter", json!({"dim": 0}), vec![x(&[3, 2]), index(&[2, 0, 0, 1], &[2, 2]), y(&[2, 2])]),
        ("scatter_add", json!({"dim": 0}), vec![x(&[3, 2]), index(&[2, 0, 2, 1], &[2, 2]), y(&[2, 3])]),
        ("scatter_", json!({"dim": 0}), vec![x(&[3, 2]), index(&[2, 0, 0, 1], &[2, 2]), y(&[2, 2])]),
        ("scatter_add_", json!({"dim": 0}), vec![x(&[3, 2]), index(&[2, 0, 2, 1], &[2, 2]), y(&[2, 3])]),
        ("index_add_", json!({"dim": 0}), vec![x(&[3, 2]), rows(), y(&[3, 2])]),
        ("index_select", json!({"dim": 0}), vec![x(&[3, 2]), rows()]),
        ("index_add", json!({"dim": 0}), vec![x(&[3, 2]), rows(), y(&[3, 2])]),
        ("rows", json!({}), vec![x(&[3, 2]), index(&[2, 0, 2, 1], &[2, 2])]),
        ("index", json!({"at": [0, 1]}), vec![x(&[3, 2, 2]), rows(), index(&[1, 0, -1], &[3])]),
        ("masked_select", json!({}), vec![x(&[2, 2]), mask(&[true, false, true, true], &[2, 2])]),
    ]
}

fn products() -> Vec<Entry> {
    let none = || json!({});
    let attention = |causal: bool| json!({"causal": causal, "scale": null});
    let qkv = || vec![x(&[2, 3]), y(&[3, 3]), x(&[3, 2])];
    let with = |mut list: Vec<Tensor>, more: Tensor| {
        list.push(more);
        list
    };
    vec![
        ("matmul", none(), vec![x(&[2, 3]), y(&[3, 2])]),
        ("matmul", none(), vec![x(&[2, 2, 3]), y(&[3, 2])]),
        ("matmul", none(), vec![x(&[3]), y(&[2, 3, 2])]),
        ("matmul", none(), vec![x(&[3]), y(&[3])]),
        ("dot", none(), vec![x(&[4]), y(&[4])]),
        ("outer", none(), vec![x(&[2]), y(&[3])]),
        ("einsum", json!({"equation": "bij,bkj->bik"}), vec![x(&[2, 2, 2]), y(&[2, 2, 2])]),
        ("einsum", json!({"equation": "ii->i"}), vec![x(&[3, 3])]),
        ("linear", none(), vec![x(&[2, 3]), y(&[2, 3]), x(&[2])]),
        ("linear_act", json!({"activation": "gelu"}), vec![x(&[2, 3]), y(&[2, 3]), x(&[2])]),
        ("linear_act", json!({"activation": "tanh"}), vec![x(&[2, 3]), y(&[2, 3]), x(&[2])]),
        ("scaled_dot_product_attention", attention(false), qkv()),
        ("scaled_dot_product_attention", attention(true), qkv()),
        (
            "scaled_dot_product_attention",
            attention(false),
            with(qkv(), mask(&[true, false, true, false, false, false], &[2, 3])),
        ),
        ("scaled_dot_product_attention", attention(false), with(qkv(), x(&[2, 3]))),
    ]
}

fn windows() -> Vec<Entry> {
    let conv = json!({"stride": 1, "padding": 1, "dilation": 1, "groups": 1});
    let sampled =
        |mode: &str, padding: &str| json!({"mode": mode, "padding_mode": padding, "align_corners": false});
    let grouped = json!({"stride": [2, 1], "padding": 0, "dilation": [1, 2], "groups": 2});
    let window = json!({"kernel_size": 2, "dilation": 1, "padding": 1, "stride": 2});
    let pool = json!({"kernel_size": 2, "stride": 1, "padding": 1, "count_include_pad": false});
    let ceil = json!({"kernel_size": [3, 2], "stride": [2, 3], "padding": [1, 0], "dilation": [1, 2], "ceil_mode": true, "count_include_pad": true});
    let short =
        json!({"kernel_size": [3], "stride": [2], "padding": [0], "dilation": [1], "ceil_mode": true});
    let back = json!({"stride": 2, "padding": 1, "output_padding": 1, "groups": 1, "dilation": 1});
    let norm = json!({"weight": true, "bias": true, "training": true, "use_input_stats": true, "momentum": 0.1, "eps": 0.1});
    let evaluation = json!({"running": true, "training": false, "momentum": 0.1, "eps": 0.1});
    let groups = json!({"num_groups": 2, "weight": true, "bias": true, "eps": 0.1});
    let running = even(&[2], 0.5, 2.0);
    let output = json!({"output_size": [3, 3], "kernel_size": 2, "dilation": 1, "padding": 0, "stride": 1});
    vec![
        ("conv2d", conv.clone(), vec![x(&[1, 2, 3, 3]), y(&[2, 2, 2, 2]), x(&[2])]),
        ("conv2d", grouped, vec![x(&[1, 2, 3, 3]), y(&[2, 1, 2, 2])]),
        ("conv1d", conv, vec![x(&[1, 2, 4]), y(&[2, 2, 2]), x(&[2])]),
        ("unfold", window, vec![x(&[1, 1, 3, 3])]),
        ("fold", output, vec![x(&[1, 4, 4])]),
        ("max_pool2d", pool.clone(), vec![x(&[1, 1, 3, 3])]),
        ("max_pool2d_with_indices", pool.clone(), vec![x(&[1, 1, 3, 3])]),
        ("avg_pool2d", pool.clone(), vec![x(&[1, 1, 3, 3])]),
        ("max_pool1d", pool.clone(), vec![x(&[1, 2, 4])]),
        ("max_pool1d_with_indices", pool.clone(), vec![x(&[1, 2, 4])]),
        ("avg_pool1d", pool, vec![x(&[1, 2, 4])]),
        ("max_pool2d_with", ceil.clone(), vec![x(&[1, 1, 4, 4])]),
        ("max_pool1d_with", short.clone(), vec![x(&[1, 2, 4])]),
        ("avg_pool2d_with", ceil, vec![x(&[1, 1, 4, 4])]),
        ("avg_pool1d_with", short, vec![x(&[1, 2, 4])]),
        ("conv_transpose2d", back.clone(), vec![x(&[1, 2, 2, 3]), y(&[2, 2, 2, 2]), x(&[2])]),
        ("conv_transpose1d", back, vec![x(&[1, 2, 3]), y(&[2, 2, 2])]),
        ("adaptive_avg_pool1d", json!({"output_size": 3}), vec![x(&[1, 2, 4])]),
        ("adaptive_avg_pool2d", json!({"output_size": [2, 3]}), vec![x(&[1, 1, 3, 4])]),
        ("adaptive_max_pool1d", json!({"output_size": 3}), vec![x(&[1, 2, 4])]),
        ("adaptive_max_pool2d", json!({"output_size": [2, 3]}), vec![x(&[1, 1, 3, 4])]),
        ("interpolate", json!({"mode": "nearest", "scale_factor": 1.5}), vec![x(&[1, 1, 2, 3])]),
        ("interpolate", json!({"mode": "bicubic", "size": [3, 5]}), vec![x(&[1, 1, 2, 3])]),
        ("grid_sample", sampled("bilinear", "zeros"), vec![x(&[1, 2, 3, 4]), y(&[1, 2, 2, 2])]),
        ("grid_sample", sampled("bilinear", "reflection"), vec![x(&[1, 1, 2, 3, 2]), y(&[1, 1, 2, 1, 3])]),
        ("grid_sample", sampled("bicubic", "border"), vec![x(&[1, 1, 4, 3]), y(&[1, 1, 3, 2])]),
        ("affine_grid", json!({"size": [1, 1, 2, 3], "align_corners": false}), vec![x(&[1, 2, 3])]),
        ("pixel_shuffle", json!({"factor": 2}), vec![x(&[4, 1, 2])]),
        ("pixel_unshuffle", json!({"factor": 2}), vec![x(&[1, 2, 4])]),
        ("batch_norm", norm.clone(), vec![x(&[3, 2, 2]), y(&[2]), x(&[2])]),
        ("batch_norm", evaluation, vec![x(&[3, 2, 2]), running.clone(), running]),
        ("instance_norm", norm, vec![x(&[2, 2, 3]), y(&[2]), x(&[2])]),
        ("group_norm", groups, vec![x(&[2, 4, 2]), y(&[4]), x(&[4])]),
    ]
}

fn numerics() -> Vec<Entry> {
    let none = || json!({});
    let inside = || even(&[2, 3], -0.9, 0.8);
    let mut list: Vec<Entry> = ["asin", "acos", "sinh", "cosh", "asinh", "atanh", "frac", "exp2"]
        .map(|name| (name, none(), vec![inside()]))
        .into();
    list.extend([
        ("acosh", none(), vec![even(&[2, 3], 1.2, 3.0)]),
        ("lgamma", none(), vec![even(&[2, 3], 0.3, 4.0)]),
        ("lgamma", none(), vec![even(&[3], -1.9, -1.1)]),
        ("digamma", none(), vec![even(&[2, 3], 0.3, 4.0)]),
        ("polygamma", json!({"n": 1}), vec![even(&[2, 3], 0.4, 4.0)]),
        ("polygamma", json!({"n": 2}), vec![even(&[3], -0.8, -0.2)]),
        ("erfinv", none(), vec![inside()]),
        ("fmod", none(), vec![x(&[2, 3]), even(&[3], 0.7, 1.9)]),
        ("fmod", json!({"scalar": -0.7}), vec![x(&[2, 3])]),
        ("div_", none(), vec![x(&[2, 3]), even(&[3], 0.7, 1.9)]),
        ("div_", json!({"scalar": 3}), vec![x(&[2, 3])]),
        ("xlogy", none(), vec![x(&[2, 3]), even(&[3], 0.4, 2.0)]),
        ("hypot", none(), vec![x(&[2, 3]), y(&[3])]),
        ("logaddexp", none(), vec![x(&[2, 3]), y(&[3])]),
        ("addcmul", json!({"value": 0.5}), vec![x(&[2, 3]), y(&[3]), x(&[2, 1])]),
        ("addcdiv", json!({"value": 2}), vec![x(&[2, 3]), y(&[3]), even(&[2, 1], 0.5, 2.0)]),
        ("logit", none(), vec![even(&[4], 0.1, 0.9)]),
        ("logit", json!({"eps": 0.2}), vec![even(&[6], 0.01, 0.97)]),
        ("nan_to_num", json!({"nan": 0.0}), vec![x(&[2, 3])]),
        ("cummax", json!({"dim": 1}), vec![x(&[2, 5])]),
        ("cummin", json!({"dim": 0}), vec![x(&[4, 2])]),
        ("logcumsumexp", json!({"dim": 1}), vec![x(&[2, 5])]),
        ("diff", json!({"dim": 0}), vec![x(&[3, 2])]),
        ("quantile", json!({"q": 0.3, "dims": 1}), vec![x(&[2, 4])]),
        ("quantile", json!({"q": 0.7, "keepdim": true}), vec![x(&[2, 3])]),
        ("kthvalue", json!({"k": 2, "dim": 0}), vec![x(&[3, 2])]),
        ("var_mean", json!({"dims": [0, 1], "correction": 1.0}), vec![x(&[2, 3])]),
        ("std_mean", json!({"dims": 1, "correction": 0.0}), vec![x(&[2, 3])]),
        ("mm", none(), vec![x(&[2, 3]), y(&[3, 2])]),
        ("bmm", none(), vec![x(&[2, 2, 3]), y(&[2, 3, 1])]),
        ("mv", none(), vec![x(&[2, 3]), y(&[3])]),
        ("addmm", json!({"beta": 0.5, "alpha": 2.0}), vec![x(&[2]), x(&[3, 2]), y(&[2, 2])]),
        ("baddbmm", json!({"beta": 1.0, "alpha": -1.0}), vec![x(&[2, 1]), x(&[2, 2, 2]), y(&[2, 2, 2])]),
        ("tensordot", json!({"left": [0, -1], "right": [1, 0]}), vec![x(&[2, 1, 3]), y(&[3, 2, 2])]),
        ("kron", none(), vec![x(&[2, 2]), y(&[3])]),
        ("cross", json!({"dim": 0}), vec![x(&[3, 2]), y(&[3, 2])]),
        ("normalize", json!({"p": 3, "dim": 1, "eps": 1e-12}), vec![x(&[2, 3])]),
        ("cdist", json!({"p": 2}), vec![x(&[2, 3]), y(&[2, 3])]),
        ("cdist", json!({"p": 1.5}), vec![x(&[2, 3]), y(&[2, 3])]),
        ("diag", json!({"k": 1}), vec![x(&[3])]),
        ("diag", json!({"k": -1}), vec![x(&[3, 2])]),
        ("diag_embed", json!({"offset": -1}), vec![x(&[2, 2])]),
        ("trace", none(), vec![x(&[3, 2])]),
        ("rot90", json!({"k": 3, "a": 0, "b": -1}), vec![x(&[2, 1, 3])]),
        ("index_copy", json!({"dim": 0}), vec![x(&[3, 2]), index(&[2, 0], &[2]), y(&[2, 2])]),
        ("index_fill", json!({"dim": 1, "value": 0.5}), vec![x(&[2, 3]), index(&[2, 0], &[2])]),
        (
            "index_put",
            json!({"at": [1, 2], "accumulate": true}),
            vec![x(&[2, 3, 2]), y(&[2, 3]), index(&[2, 0, 2], &[3]), index(&[1, 0, 1], &[3])],
        ),
        (
            "index_put",
            json!({"at": [0], "accumulate": false}),
            vec![x(&[3, 2]), y(&[2]), index(&[2, 0], &[2])],
        ),
        ("masked_scatter", none(), vec![x(&[2, 2]), mask(&[true, false, true, true], &[2, 2]), y(&[2, 2])]),
        ("take", none(), vec![x(&[2, 3]), index(&[5, -6, 5], &[3])]),
        (
            "scatter_reduce",
            json!({"dim": 0, "reduce": "amax", "include_self": true}),
            vec![x(&[3, 2]), index(&[2, 0, 2, 1], &[2, 2]), y(&[2, 2])],
        ),
        (
            "scatter_reduce",
            json!({"dim": 1, "reduce": "mean", "include_self": false}),
            vec![x(&[2, 3]), index(&[2, 0, 2, 1, 1, 1], &[2, 3]), y(&[2, 3])],
        ),
        (
            "scatter_reduce",
            json!({"dim": 1, "reduce": "prod", "include_self": false}),
            vec![x(&[2, 3]), index(&[2, 0, 2, 1, 1, 1], &[2, 3]), y(&[2, 3])],
        ),
        (
            "scatter_reduce",
            json!({"dim": 0, "reduce": "prod", "include_self": true}),
            vec![x(&[3, 2]), index(&[2, 0, 2, 1], &[2, 2]), y(&[2, 2])],
        ),
    ]);
    list.extend(["nansum", "nanmean"].map(|name| (name, json!({"dims": 1}), vec![x(&[2, 3])])));
    list
}

fn matrices() -> Vec<Entry> {
    let none = || json!({});
    // Evenly spread numbers alone make singular matrices.
    let regular = || x(&[2, 3, 3]) + Tensor::eye(3, DType::F64) * 0.7;
    let mut list: Vec<Entry> = ["inverse", "det", "slogdet", "logdet", "cholesky", "mT", "eigh"]
        .into_iter()
        .map(|name| (name, none(), vec![regular()]))
        .collect();
    list.extend(
        ["qr", "svd", "pinverse"]
            .into_iter()
            .flat_map(|name| [(name, none(), vec![x(&[3, 2])]), (name, none(), vec![x(&[2, 3])])]),
    );
    list.extend([
        ("solve", none(), vec![x(&[2, 2, 2]), y(&[2, 1])]),
        ("solve", none(), vec![x(&[3, 3]), y(&[3])]),
        ("det", none(), vec![Tensor::new([[1.0f64, 2.0], [2.5, 4.0]], &Device::cpu())]),
        ("as_strided", json!({"shape": [2, 3], "stride": [2, 1], "offset": 1}), vec![x(&[3, 2])]),
    ]);
    list
}

fn recurrent() -> Vec<Entry> {
    let cells = [("rnn_tanh", 1, 1), ("rnn_relu", 1, 1), ("gru", 3, 1), ("lstm", 4, 2)];
    let entry = |((cell, gates, states), reverse): ((&'static str, usize, usize), bool)| {
        let args = json!({"cell": cell, "reverse": reverse, "batch_sizes": [3, 2, 2], "bias": true});
        let mut inputs = vec![
            even(&[7, 2], -1.0, 1.0),
            even(&[gates * 2, 2], -0.9, 1.0),
            even(&[gates * 2, 2], -1.0, 0.7),
            even(&[gates * 2], -0.5, 0.6),
            even(&[gates * 2], -0.4, 0.3),
        ];
        inputs.extend((0..states).map(|i| even(&[3, 2], -1.0, 0.5 + i as f64)));
        ("recurrent", args, inputs)
    };
    cells.into_iter().flat_map(|cell| [(cell, false), (cell, true)]).map(entry).collect()
}
