//! Every line of the README's cheat-sheet and of the tour compiles and does what it says.

use orkest::load_safetensors;
use orkest::prelude::*;
use orkest_tests as _;

#[test]
fn tensors() -> orkest::Result<()> {
    let d = Device::cpu();
    assert_eq!(Tensor::zeros([2, 3], &d).dtype(), DType::F32);
    assert_eq!(Tensor::zeros([2], (DType::I64, &d)).dtype(), DType::I64);
    assert_eq!(tensor![[1.0, 2.0]].shape(), &[1, 2]);
    let x = Tensor::randn([2, 3], &d);
    let y = tensor![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
    let z = (&x * 2.0 + &y).relu().mean(-1);
    let values: Vec<f32> = z.to_vec()?;
    assert_eq!(values.len(), 2);
    assert!(z.to_string().contains("shape=[2], dtype=f32, device=cpu"), "{z}");
    let [b, t] = x.dims();
    assert_eq!((b, t, x.size(-1), x.shape()[0]), (2, 3, 3, 2));
    assert_eq!(x.matmul(&y.t()).shape(), &[2, 2]);
    assert_eq!((&x * 2 + &y).shape(), &[2, 3]);
    assert_eq!((2.0 * &x - 1).exp().shape(), &[2, 3]);
    assert_eq!((x.sum(..).rank(), x.sum(1).rank(), x.unsqueeze(0).sum_keepdim([0, 2]).rank()), (0, 1, 3));
    assert_eq!(y.max(..).item()?, 6.0);
    assert_eq!(y.max(1).to_vec::<f32>()?, [3.0, 6.0]);
    assert_eq!(y.max_with_indices(1).1.to_vec::<i64>()?, [2, 2]);
    assert_eq!(y.view((b, 1, -1)).transpose(1, 2).shape(), &[2, 3, 1]);
    assert_eq!(y.gt(3).where_(&y, 0.0).to_vec::<f32>()?, [0.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
    assert_eq!(y.masked_fill(&y.eq(1), f32::NEG_INFINITY).min(..).item()?, f64::NEG_INFINITY);
    assert_eq!(tensor![1, 2].to_dtype(DType::F32).to(&d).dtype(), DType::F32);
    Ok(())
}

#[test]
fn indexing() -> orkest::Result<()> {
    let d = Device::cpu();
    let x = Tensor::arange(0, 12, 1, &d).reshape([3, 4]);
    assert_eq!(x.i(0).to_vec::<i64>()?, [0, 1, 2, 3]);
    assert_eq!(x.i((.., -1)).to_vec::<i64>()?, [3, 7, 11]);
    assert_eq!(x.i(1..3).shape(), &[2, 4]);
    assert_eq!(x.i((Index::Ellipsis, slice(.., 2))).shape(), &[3, 2]);
    assert_eq!(x.i((.., Index::NewAxis)).shape(), x.unsqueeze(1).shape());
    let (rows, cols) = (tensor![0, 2], tensor![1, -1]);
    assert_eq!(x.index(&[Some(&rows), Some(&cols)]).to_vec::<i64>()?, [1, 11]);
    assert_eq!(x.masked_select(&x.gt(9))?.to_vec::<i64>()?, [10, 11]);
    let mut y = x.clone();
    y.slice_assign((0, 1..), &tensor![7, 8, 9]);
    assert_eq!(y.i(0).to_vec::<i64>()?, [0, 7, 8, 9]);
    assert_eq!(x.i(0).to_vec::<i64>()?, [0, 1, 2, 3], "a tensor is a value");
    y.slice_assign(0, 7);
    assert_eq!(y.i(0).to_vec::<i64>()?, [7, 7, 7, 7]);
    let z = x.index_put(&[Some(&rows), Some(&cols)], 100, false);
    assert_eq!(z.index(&[Some(&rows), Some(&cols)]).to_vec::<i64>()?, [100, 100]);
    assert_eq!(x.masked_scatter(&x.gt(9), &tensor![-1, -2])?.i(2).to_vec::<i64>()?, [8, 9, -1, -2]);
    let [q, k, v] = Tensor::zeros([2, 6], &d).chunks(-1);
    assert_eq!(
        (q.shape(), k.shape(), v.shape()),
        (&Shape::from([2, 2]), &Shape::from([2, 2]), &Shape::from([2, 2]))
    );
    Ok(())
}

#[test]
fn names_that_differ() -> orkest::Result<()> {
    let x = tensor![[1.0, 4.0], [3.0, 2.0]];
    assert!(!x.copy().shares_memory(&x) && x.clone().shares_memory(&x));
    assert_eq!((x.argmax(..).item()?, x.argmax(1).to_vec::<i64>()?), (1.0, vec![1, 0]));
    assert_eq!((x.flatten(0, -1).median(0).0.item()?, x.quantile(0.5, ..).item()?), (2.0, 2.5));
    assert_eq!((x.norm(2.0, ..).item()? as f32, x.norm(2.0, 1).rank()), (30f32.sqrt(), 1));
    let n = tensor![3, 9, 9];
    assert_eq!(n.floor_divide(4).to_vec::<i64>()?, [0, 2, 2]);
    assert_eq!((&n % 4).to_vec::<i64>()?, [3, 1, 1]);
    assert_eq!(n.bincount(0)?.numel(), 10);
    assert_eq!(tensor![1.0, 2.0].searchsorted(&tensor![1.5], false).to_vec::<i64>()?, [1]);
    assert!(n.equal(&n)?);
    let between = x.gt(1) & !x.gt(3);
    assert_eq!((between | x.eq(4)).sum(..).item()?, 3.0);
    assert_eq!((&n & 1).to_vec::<i64>()?, [1, 1, 1]);
    assert_eq!(n.bitwise_left_shift(2).bitwise_or(1).to_vec::<i64>()?, [13, 37, 37]);
    assert_eq!(x.gumbel_softmax(1.0, true, -1).sum(1).to_vec::<f32>()?, [1.0, 1.0]);
    assert!(x.device().info().to_string().starts_with("cpu: "));
    let a = tensor![[2.0, 1.0], [1.0, 3.0]];
    assert_eq!(a.solve(&tensor![4.0, 7.0])?.to_vec::<f32>()?, [1.0, 2.0]);
    assert!(a.inverse()?.matmul(&a).allclose(&Tensor::eye(2, ()), 1e-5, 1e-6, false)?);
    let ((sign, log), l) = (a.slogdet()?, a.cholesky()?);
    assert_eq!((a.det()?.item()? as f32, sign.item()?, log.exp().item()? as f32), (5.0, 1.0, 5.0));
    assert!(l.matmul(&l.mT()).allclose(&a, 1e-5, 1e-6, false)?);
    let ((q, r), (values, vectors), (u, s, vh)) = (a.qr()?, a.eigh()?, a.svd()?);
    for product in [q.matmul(&r), (&vectors * values).matmul(&vectors.mT()), (u * s).matmul(&vh)] {
        assert!(product.allclose(&a, 1e-5, 1e-6, false)?);
    }
    assert_eq!(a.as_strided([3, 2], &[1, 1], 0).i((.., 1)).to_vec::<f32>()?, [1.0, 1.0, 3.0]);
    Ok(())
}

#[test]
fn gradients() -> orkest::Result<()> {
    let d = Device::cpu();
    let y = tensor![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
    let w = Tensor::ones([3], &d).requires_grad_(true);
    let loss = (&y * &w).sum(..);
    let dw = grad(&[&loss], &[&w], BackwardOptions { create_graph: true, ..Default::default() });
    assert_eq!(dw[0].as_ref().unwrap().to_vec::<f32>()?, [5.0, 7.0, 9.0]);
    loss.backward();
    assert_eq!(w.grad().unwrap().to_vec::<f32>()?, [5.0, 7.0, 9.0]);
    assert!(!no_grad(|| &w * 2.0).requires_grad());
    let mut w = Tensor::ones([3], &d).requires_grad_(true);
    (&w * &w).sum(..).backward();
    no_grad(|| w -= w.grad().unwrap() * 0.1);
    w.zero_grad();
    assert!(w.requires_grad() && w.sum(..).item()? < 2.5);
    let hidden = &w * 2.0;
    hidden.retain_grad();
    (&hidden * 3.0).sum(..).backward();
    assert_eq!(hidden.grad().unwrap().to_vec::<f32>()?, [3.0, 3.0, 3.0]);
    Ok(())
}

#[derive(Module)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl Mlp {
    fn new() -> Self {
        Self { fc1: Linear::new(784, 128), fc2: Linear::new(128, 10), dropout: Dropout::new(0.2) }
    }
    fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.dropout.forward(&self.fc1.forward(x).relu()))
    }
}

#[test]
fn models() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    let d = Device::cpu();
    let model = Mlp::new();
    model.train();
    let mut optimizer = AdamW::new(model.parameters(), 3e-4);
    model.to(&d);
    CrossEntropyLoss::new().forward(&model.forward(&Tensor::rand([2, 784], &d)), &tensor![3, 4]).backward();
    optimizer.step();
    model.eval();
    model.save_safetensors(&path)?;
    model.load_state_dict(&load_safetensors(&path)?, true)?;
    Ok(())
}

#[test]
fn convolutions() -> orkest::Result<()> {
    let x = Tensor::randn([1, 16, 8, 8], &Device::cpu());
    assert_eq!(Conv2d::new(16, 4, 3).stride(2).padding(1).forward(&x).shape(), &[1, 4, 4, 4]);
    assert_eq!(Conv2d::without_bias(16, 16, [3, 1]).padding("same").forward(&x).shape(), x.shape());
    assert_eq!(Conv2d::grouped(16, 16, 3, 16, true).forward(&x).shape(), &[1, 16, 6, 6]);
    assert_eq!(Conv2d::new(16, 16, 3).padding(1).padding_mode("reflect").forward(&x).shape(), x.shape());
    assert_eq!(BatchNorm2d::new(16).momentum(None).forward(&x).shape(), x.shape());
    assert_eq!(MaxPool2d::new(2).forward(&x).shape(), &[1, 16, 4, 4]);
    assert_eq!(AdaptiveAvgPool2d::new(1).forward(&x).shape(), &[1, 16, 1, 1]);
    let (y, indices) = MaxPool2d::new(3).stride(2).ceil_mode(true).forward_with_indices(&x);
    assert_eq!((y.shape(), indices.shape()), (&[1, 16, 4, 4].into(), y.shape()));
    let row = tensor![[1.0, 2.0]];
    assert_eq!(row.pad_mode(&[(1, 1), (2, 0)], "replicate").sum(-1).to_vec::<f32>()?, [6.0; 3]);
    Ok(())
}

#[test]
fn hooks() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(0));
    let lstm = Hooked::new(LSTM::new(6, 8));
    let count = seen.clone();
    let handle = lstm.register_forward_hook(move |inputs, outputs| {
        *count.lock().unwrap() += inputs.len() + outputs.len();
        None
    });
    lstm.forward(&Tensor::zeros([5, 3, 6], &Device::cpu()), None);
    handle.remove();
    lstm.forward(&Tensor::zeros([5, 3, 6], &Device::cpu()), None);
    assert_eq!(*seen.lock().unwrap(), 4);
    let model = Hooked::new(Bilinear::new(2, 3, 4));
    let _halved = model.register_full_backward_hook(|grads, _| {
        Some(grads.iter().map(|g| g.as_ref().map(|g| g / 2.0)).collect())
    });
    let (x, y) = (tensor![[1.0, 2.0]].requires_grad_(true), tensor![[1.0, 2.0, 3.0]]);
    let plain = model.module().forward(&x, &y).sum(..);
    plain.backward();
    let whole = x.grad().unwrap().norm(2.0, ..).item().unwrap();
    x.zero_grad();
    model.call([&x, &y], |m, [x, y]| m.forward(x, y)).sum(..).backward();
    let half = x.grad().unwrap().norm(2.0, ..).item().unwrap();
    assert!((whole / half - 2.0).abs() < 1e-5);
}

#[test]
fn recurrent_layers() {
    let (embedded, lengths) = (Tensor::randn([3, 5, 64], &Device::cpu()), [2, 5, 1]);
    let lstm = LSTM::new(64, 128).batch_first();
    let (output, (hidden, cell)) = lstm.forward(&embedded, None);
    assert_eq!((output.shape(), hidden.shape()), (&[3, 5, 128].into(), &[1, 3, 128].into()));
    assert_eq!(cell.shape(), hidden.shape());
    let packed = pack_padded_sequence(&embedded, &lengths, true, false);
    let (output, (hidden, _)) = lstm.forward(&packed, None);
    let (padded, read) = pad_packed_sequence(&output, true, 0.0, None);
    assert_eq!((padded.shape(), &read[..]), (&[3, 5, 128].into(), &lengths[..]));
    let last: Vec<f32> = padded.i((0, 1)).to_vec().unwrap();
    assert_eq!(hidden.i((0, 0)).to_vec::<f32>().unwrap(), last, "the state after a text's own last word");
    let options = RecurrentOptions { num_layers: 2, bidirectional: true, ..Default::default() };
    let (output, hidden) = GRU::with_options(64, 128, options).forward(&embedded, None);
    assert_eq!((output.shape(), hidden.shape()), (&[3, 5, 256].into(), &[4, 5, 128].into()));
}

#[test]
fn attention() {
    let device = Device::cpu();
    let [q, k, v] = [4, 2, 2].map(|heads| Tensor::randn([1, heads, 3, 8], &device));
    assert_eq!(q.scaled_dot_product_attention(&k, &v, None, 0.0, true, None).shape(), &[1, 4, 3, 8]);

    let options = MultiheadAttentionOptions { batch_first: true, ..MultiheadAttentionOptions::new(8, 2) };
    let attention = MultiheadAttention::with_options(options);
    let x = Tensor::randn([2, 3, 8], &device);
    let (y, weights) = attention.forward(&x, &x, &x);
    assert_eq!((y.shape(), weights.shape()), (&Shape::from([2, 3, 8]), &Shape::from([2, 3, 3])));
    let m = Transformer::generate_square_subsequent_mask(3, &device);
    let options = AttentionOptions { attn_mask: Some(&m), need_weights: false, ..Default::default() };
    let (masked, none) = attention.forward_with(&x, &x, &x, &options);
    assert!(none.is_none());
    let options = AttentionOptions { is_causal: true, need_weights: false, ..Default::default() };
    let (causal, _) = attention.forward_with(&x, &x, &x, &options);
    assert!(masked.allclose(&causal, 1e-5, 1e-6, false).unwrap());

    let m = tensor![[false, false, true], [false, false, false]]; // the last position of the first text is padding
    let options = TransformerOptions { batch_first: true, dropout: 0.0, ..TransformerOptions::new(8, 2) };
    let encoder = TransformerEncoder::new(&TransformerEncoderLayer::with_options(&options), 2, None);
    let masks = TransformerMasks { src_key_padding_mask: Some(&m), ..Default::default() };
    let whole = encoder.forward_with(&x, &masks);
    let short = encoder.forward(&x.i((..1, ..2)));
    assert!(whole.i((..1, ..2)).allclose(&short, 1e-4, 1e-5, false).unwrap());
}
