//! What `derive(Module)` makes of structs, and what the trait does with them.

use orkest_core::{DType, Device, Param, Tensor, tensor};
use orkest_nn::*;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

fn device() -> Device {
    Device::cpu()
}

fn param(values: &[f32]) -> Param {
    Param::new(Tensor::from_slice(values, values.len(), &device()))
}

fn names(module: &dyn Module) -> Vec<String> {
    module.state_dict().keys().map(str::to_string).collect()
}

/// A type that is no setting the crate knows.
#[derive(Clone, Debug, PartialEq)]
enum Side {
    Left,
}

#[derive(Module)]
struct Everything<A, T> {
    scale: Param,
    running: Buffer,
    table: Buffer,
    first: Linear,
    absent: Option<Linear>,
    present: Option<LayerNorm>,
    list: Vec<Linear>,
    pair: (Param, A),
    array: [Param; 2],
    by_name: BTreeMap<String, Linear>,
    boxed: Box<Linear>,
    shared: Arc<Linear>,
    any: Vec<AnyLayer>,
    #[module(rename = "LayerNorm")]
    layer_norm: LayerNorm,
    r#type: Linear,
    activation: A,
    heads: usize,
    name: String,
    sizes: Vec<usize>,
    function: fn(&Tensor) -> Tensor,
    marker: PhantomData<T>,
    #[module(skip)]
    side: Side,
}

struct NotAModule;

fn everything() -> Everything<ReLU, NotAModule> {
    let small = || Linear::without_bias(1, 1);
    Everything {
        scale: param(&[1.0]),
        running: Buffer::new(tensor![0.0]),
        table: Buffer::non_persistent(tensor![0.0]),
        first: Linear::new(2, 1),
        absent: None,
        present: Some(LayerNorm::new(1)),
        list: vec![small(), small()],
        pair: (param(&[1.0]), ReLU),
        array: [param(&[1.0]), param(&[1.0])],
        by_name: BTreeMap::from([("b".into(), small()), ("a".into(), small())]),
        boxed: Box::new(small()),
        shared: Arc::new(small()),
        any: vec![AnyLayer::new(ReLU), AnyLayer::new(small())],
        layer_norm: LayerNorm::new(1).bias(false),
        r#type: small(),
        activation: ReLU,
        heads: 3,
        name: "it".into(),
        sizes: vec![1, 2],
        function: Tensor::relu,
        marker: PhantomData,
        side: Side::Left,
    }
}

#[test]
fn every_kind_of_field_has_its_key_in_order() {
    let module = everything();
    let expected = [
        "scale",
        "running",
        "first.weight",
        "first.bias",
        "present.weight",
        "present.bias",
        "list.0.weight",
        "list.1.weight",
        "pair.0",
        "array.0",
        "array.1",
        "by_name.a.weight",
        "by_name.b.weight",
        "boxed.weight",
        "shared.weight",
        "any.1.weight",
        "LayerNorm.weight",
        "type.weight",
    ];
    assert_eq!(names(&module), expected);
    let buffers: Vec<String> = module.named_buffers().into_iter().map(|(name, _)| name).collect();
    assert_eq!(buffers, ["running", "table"]);
    assert!(module.activation.parameters().is_empty());

    let copy = module.deep_clone();
    assert_eq!(names(&copy), expected);
    assert_eq!(
        (copy.heads, copy.name.as_str(), &copy.sizes[..], &copy.side),
        (3, "it", &[1, 2][..], &Side::Left)
    );
    assert_eq!((copy.function)(&tensor![-1.0]).item().unwrap(), 0.0);
    assert!(copy.parameters().iter().zip(module.parameters()).all(|(a, b)| !a.is(&b)));
}

#[derive(Module)]
struct Pair(Linear, Linear);

#[derive(Module)]
struct Nothing;

#[test]
fn tuple_structs_count_and_unit_structs_are_empty() {
    assert_eq!(
        names(&Pair(Linear::without_bias(1, 1), Linear::new(1, 1))),
        ["0.weight", "1.weight", "1.bias"]
    );
    assert_eq!(Nothing.num_parameters(), 0);
    assert_eq!(Nothing.to_string(), "Nothing()");
}

#[derive(Module)]
struct Net {
    fc1: Linear,
    dropout: Dropout,
    fc2: Linear,
}

impl Net {
    fn new() -> Net {
        Net { fc1: Linear::new(3, 4), dropout: Dropout::new(0.5), fc2: Linear::new(4, 2) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.dropout.forward(&self.fc1.forward(x).relu()))
    }
}

fn values(param: &Param) -> Vec<f32> {
    param.value().to_vec().unwrap()
}

#[test]
fn parameters_learn_their_names() {
    let net = Net::new();
    net.parameters();
    assert_eq!(net.fc2.weight.name(), Some("fc2.weight"));
    assert!(net.fc2.weight.tensor().describe().contains("parameter fc2.weight"));
}

#[test]
fn training_mode_reaches_all_layers_and_gradients_can_be_forgotten() {
    let net = Net::new();
    assert!(net.is_training());
    net.eval();
    assert!(!net.is_training() && !net.dropout.is_training());
    let x = Tensor::ones([2, 3], &device());
    assert_eq!(net.forward(&x).to_vec::<f32>().unwrap(), net.forward(&x).to_vec::<f32>().unwrap());
    net.train();
    assert!(net.dropout.is_training());

    net.forward(&x).sum(..).backward();
    assert!(net.parameters().iter().all(|p| p.grad().is_some()));
    net.zero_grad();
    assert!(net.parameters().iter().all(|p| p.grad().is_none()));
    net.requires_grad_(false);
    assert!(!net.forward(&x).requires_grad());
}

#[test]
fn moving_and_converting_keep_the_parameters() {
    let net = Net::new().to(&device());
    let parameters = net.parameters();
    net.forward(&Tensor::ones([2, 3], &device())).sum(..).backward();
    net.to(&Device::reference());
    net.to_dtype(DType::F64);
    for (before, after) in parameters.iter().zip(net.parameters()) {
        assert!(before.is(&after));
        let (value, grad) = (after.value(), after.grad().unwrap());
        for t in [value, grad] {
            assert_eq!((t.device(), t.dtype()), (&Device::reference(), DType::F64));
        }
    }
}

/// The input embedding is the output projection.
#[derive(Module)]
struct Tied {
    embedding: Embedding,
    output: Linear,
}

impl Tied {
    fn new() -> Tied {
        let embedding = Embedding::new(3, 2);
        let output = Linear::from_params(embedding.weight.clone(), None);
        Tied { embedding, output }
    }
}

#[test]
fn a_shared_parameter_is_one_parameter_with_two_names() {
    let tied = Tied::new();
    assert_eq!(tied.num_parameters(), 6);
    assert_eq!(tied.named_parameters().len(), 1);
    assert_eq!(names(&tied), ["embedding.weight", "output.weight"]);
    let state = tied.state_dict();
    assert!(state["embedding.weight"].shares_memory(&state["output.weight"]));

    let copy = tied.deep_clone();
    assert!(
        copy.embedding.weight.is(&copy.output.weight) && !copy.embedding.weight.is(&tied.embedding.weight)
    );

    // Files written elsewhere often have a shared tensor under one of its names.
    let one: StateDict = [("output.weight", Tensor::ones([3, 2], &device()))].into_iter().collect();
    assert!(tied.load_state_dict(&one, true).unwrap().is_empty());
    assert_eq!(values(&tied.embedding.weight), [1.0; 6]);
}

#[test]
fn a_state_dict_is_a_snapshot() {
    let net = Net::new();
    let state = net.state_dict();
    let before = state["fc1.weight"].to_vec::<f32>().unwrap();
    net.fc1.weight.update(|w| w.fill_(9.0));
    assert_eq!(state["fc1.weight"].to_vec::<f32>().unwrap(), before);
    net.load_state_dict(&state, true).unwrap();
    assert_eq!(values(&net.fc1.weight), before);
}

#[test]
fn loading_converts_to_the_dtype_of_the_parameter() {
    let linear = Linear::without_bias(2, 1);
    let state: StateDict = [("weight", tensor![[1.5, -2.0]].to_dtype(DType::F16))].into_iter().collect();
    linear.load_state_dict(&state, true).unwrap();
    assert_eq!(values(&linear.weight), [1.5, -2.0]);
}

#[test]
fn everything_that_does_not_fit_is_reported_and_nothing_changes() {
    let net = Net::new();
    let before = net.state_dict();
    let mut state = Net::new().state_dict();
    state.remove("fc1.bias");
    state.remove("fc2.bias");
    state.insert("fc3.weight", tensor![1.0]);
    state.insert("fc1.weight", tensor![1.0, 2.0]);
    state.insert("fc2.weight", Tensor::zeros([2, 5], &device()));
    let message = net.load_state_dict(&state, true).unwrap_err().to_string();
    let expected = "load_state_dict: the state dict does not fit the model Net:\n  missing: fc1.bias, fc2.bias\n  unexpected: \
                    fc3.weight\n  wrong shape: fc1.weight is [4, 3] in the model, [2] in the state dict, fc2.weight is [2, 4] \
                    in the model, [2, 5] in the state dict";
    assert_eq!(message, expected);
    assert!(net.load_state_dict(&state, false).is_err(), "wrong shapes are errors without `strict` too");
    for (name, value) in net.state_dict().iter() {
        assert_eq!(value.to_vec::<f32>().unwrap(), before[name].to_vec::<f32>().unwrap(), "{name}");
    }

    state.remove("fc1.weight");
    state.remove("fc2.weight");
    let keys = net.load_state_dict(&state, false).unwrap();
    assert_eq!(keys.missing, ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
    assert_eq!(keys.unexpected, ["fc3.weight"]);
}

#[derive(Module)]
struct Block<L: Layer> {
    inner: L,
    norm: LayerNorm,
}

impl<L: Layer> Layer for Block<L> {
    fn forward(&self, input: &Tensor) -> Tensor {
        input + self.inner.forward(&self.norm.forward(input))
    }
}

#[test]
fn generic_modules_nest_and_print() {
    let net = sequential![Block {
        inner: Block { inner: Linear::new(2, 2), norm: LayerNorm::new(2) },
        norm: LayerNorm::new(2)
    }];
    assert_eq!(net.forward(&Tensor::ones([1, 2], &device())).shape(), &[1, 2]);
    assert_eq!(net.named_modules().len(), 5);
    let expected = "Sequential(\n  (0): Block(\n    (inner): Block(\n      (inner): Linear(in_features=2, out_features=2, \
                    bias=True)\n      (norm): LayerNorm([2], eps=1e-5, elementwise_affine=True)\n    )\n    (norm): \
                    LayerNorm([2], eps=1e-5, elementwise_affine=True)\n  )\n)\n14 parameters";
    assert_eq!(net.to_string(), expected);
}
