//! What a user sees after a mistake: the operation, the shapes, where the operands came from, and the user's own line.

use orkest::prelude::*;
use orkest_tests as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// The message of the panic that `f` ends in, and the file and line it names.
fn panic_of(f: impl FnOnce()) -> (String, String, u32) {
    static LOCK: Mutex<()> = Mutex::new(()); // the hook is one for all threads
    static PLACE: Mutex<Option<(String, u32)>> = Mutex::new(None);
    let _lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        *PLACE.lock().unwrap() = info.location().map(|l| (l.file().to_string(), l.line()));
    }));
    let caught = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(before);
    let payload = caught.expect_err("it should have panicked");
    let message = match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast::<&str>().expect("a text").to_string(),
    };
    let (file, line) = PLACE.lock().unwrap().take().expect("a place");
    (message, file, line)
}

/// Asserts that `$body` panics on its own line with a message that contains all of the given texts.
macro_rules! assert_panics {
    ($body:expr, $($text:expr),+ $(,)?) => {{
        let line = line!();
        let (message, file, at) = panic_of(|| { let _ = $body; });
        assert!(file.ends_with("errors.rs"), "the panic names {file}:{at}, not the user's file: {message}");
        assert!((line..line + 3).contains(&at), "the panic names line {at}, the mistake is on {line}: {message}");
        $(assert!(message.contains($text), "{:?} is not in: {message}", $text);)+
    }};
}

#[track_caller]
fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, &Device::cpu())
}

/// Asserts that each expression panics within the lines of the list, with the operation and what is wrong with it.
macro_rules! assert_all_panic {
    ($($body:expr;)+) => {$(
        let line = line!();
        let text = stringify!($body);
        let (message, file, at) = panic_of(|| { let _ = $body; });
        assert!(file.ends_with("errors.rs"), "{text}: the panic names {file}:{at}: {message}");
        assert!((line..line + 50).contains(&at), "{text}: the panic names line {at}: {message}");
        let says_what = message.split_once(": ").is_some_and(|(op, what)| !op.contains(' ') && what.len() > 20);
        assert!(says_what, "{text}: {message}");
    )+};
}

#[test]
fn matmul_names_both_operands_and_where_they_came_from() {
    let hidden = zeros(&[32, 128]).relu();
    let made = line!() - 1;
    let weight = zeros(&[64, 10]);
    assert_panics!(
        hidden.matmul(&weight),
        "matmul: inner dimensions differ: [32, 128] x [64, 10] (128 != 64)",
        &format!("left: f32 [32, 128], from relu at tests/tests/errors.rs:{made}"),
        "right: f32 [64, 10], from zeros",
    );
    assert_panics!(zeros(&[2, 3]).matmul(&zeros(&[4, 3])), ".transpose(-2, -1)");
}

#[test]
fn parameters_are_called_by_name() {
    #[derive(Module)]
    struct Net {
        fc1: Linear,
        fc2: Linear,
    }
    let net = Net { fc1: Linear::new(4, 8), fc2: Linear::new(9, 2) };
    let _ = net.parameters();
    let hidden = net.fc1.forward(&zeros(&[3, 4]));
    assert_panics!(
        net.fc2.forward(&hidden),
        "linear: the input has 8 features, the weight takes 9",
        "parameter fc2.weight",
        "from linear at tests/tests/errors.rs",
    );
}

#[test]
fn elementwise_operations_name_the_shapes() {
    let (a, b) = (zeros(&[2, 3]), zeros(&[4]));
    assert_panics!(&a + &b, "add: shapes [2, 3] and [4] do not broadcast", "left: f32 [2, 3], from zeros at");
    assert_panics!(a.masked_fill(&b.eq(0), 1), "masked_fill: shapes [2, 3] and [4] do not broadcast");
    assert_panics!(a.masked_fill(&a, 1), "masked_fill: the mask must be bool");
}

#[test]
fn views_name_what_does_not_fit() {
    let x = zeros(&[2, 3]);
    assert_panics!(x.reshape([4, -1]), "reshape: 6 elements do not fill [4, -1]", "f32 [2, 3]");
    let beside_zero = "reshape: beside a size of 0, the -1 in [0, -1] could be any number";
    assert_panics!(zeros(&[0, 3]).reshape([0, -1]), beside_zero, "f32 [0, 3]");
    assert_panics!(x.t().view(6), "view: strides [1, 3] do not allow shape [6]", "reshape");
    assert_panics!(x.transpose(0, 2), "transpose: dimension 2 is out of range for 2 dimensions");
    assert_panics!(x.i((0, 3)), "index: index 3 is out of range for a dimension of size 3");
    assert_panics!(x.narrow(1, 2, 2), "narrow: 2..2+2 is out of range for size 3");
    assert_panics!(Tensor::cat(&[&x, &zeros(&[2, 4])], 0), "cat", "[2, 3]", "[2, 4]");
}

#[test]
fn optimizers_name_the_line_that_called_them() {
    use optim::*;
    fn check<O: Optimizer>(name: &str, build: impl Fn(Param) -> O) {
        let param = Param::new(zeros(&[2, 2]));
        let mut optimizer = build(param.clone());
        param.set_grad(Some(zeros(&[3])));
        let (message, file, line) = panic_of(|| optimizer.step());
        assert!(file.ends_with("errors.rs") && line == line!() - 1, "{name}: {file}:{line}: {message}");
        assert!(message.contains("has shape [3]") && message.contains("zero_grad()"), "{message}");
        param.set_grad(Some(zeros(&[2, 2])));
        optimizer.step();
        param.set_value(&zeros(&[3]));
        param.set_grad(Some(zeros(&[3])));
        let (message, file, line) = panic_of(|| optimizer.step());
        assert!(file.ends_with("errors.rs") && line == line!() - 1, "{name}: {file}:{line}: {message}");
        assert!(message.contains("had shape [2, 2] in earlier steps and has [3] now"), "{message}");
    }
    check("SGD", |p| SGD::new([p], 0.1).momentum(0.9));
    check("Adam", |p| Adam::new([p], 0.1));
    check("AdamW", |p| AdamW::new([p], 0.1).amsgrad(true));
    check("RMSprop", |p| RMSprop::new([p], 0.1));
    check("Adagrad", |p| Adagrad::new([p], 0.1));
    check("Lion", |p| Lion::new([p], 0.1));

    let param = Param::new(zeros(&[2, 2]));
    param.set_grad(Some(zeros(&[3])));
    let mut chosen: Box<dyn Optimizer> = Box::new(SGD::new([param.clone()], 0.1));
    assert_panics!(chosen.step(), "step: the gradient of Param", "has shape [3]", "zero_grad()");
    assert_panics!(GradScaler::new().step(&mut chosen), "GradScaler::step: the gradient of Param");
    assert_panics!(
        GradScaler::new().enabled(false).step(&mut *chosen),
        "GradScaler::step: the gradient of Param"
    );
}

#[test]
fn layers_name_the_line_that_called_them() {
    let x = &zeros(&[5, 2, 3]);
    assert_all_panic! {
        LSTM::new(4, 8).forward(x, None);
        LSTM::new(3, 8).forward(x, Some((&zeros(&[1, 3, 8]), &zeros(&[1, 2, 8]))));
        GRU::new(3, 8).forward(x, Some(&zeros(&[1, 3, 8])));
        TransformerEncoderLayer::new(8, 2).forward(x);
        TransformerDecoderLayer::new(8, 2).forward(x, x);
        Conv2d::new(3, 8, 3).forward(x);
        CrossEntropyLoss::new().forward(x, &zeros(&[5, 3]));
        CTCLoss::new().forward(x, &tensor![[1, 2], [1, 7]], &[5, 5], &[2, 2]);
    }
    let weight = Linear::new(4, 2);
    assert_panics!(weight.forward(x), "weight: f32 [2, 4], from new at tests/tests/errors.rs");
}

#[test]
fn indices_out_of_range_panic_at_the_operation() {
    let table = Embedding::new(10, 4);
    assert_panics!(
        table.forward(&tensor![3, 10]),
        "embedding: index 10 is out of range for a dimension of size 10"
    );
    assert_panics!(
        zeros(&[3]).gather(0, &tensor![-1]),
        "gather: index -1 is out of range for a dimension of size 3"
    );
    assert_panics!(
        zeros(&[3]).gather(0, &tensor![1.0]),
        "gather: indices must be i64",
        ".to_dtype(DType::I64)"
    );
    let x = zeros(&[2, 3]);
    assert_panics!(
        x.index(&[Some(&tensor![0, 1]), Some(&tensor![0, -4])]),
        "index: index -4 is out of range for dimension 1 of size 3"
    );
    let loss = CrossEntropyLoss::new();
    assert_panics!(loss.forward(&zeros(&[2, 3]), &tensor![0, 3]), "target 3", "3 classes");
}

#[test]
fn devices_that_differ_are_named() {
    let (a, b) = (zeros(&[2]), Tensor::zeros([2], &Device::reference()));
    assert_panics!(
        &a + &b,
        "add: operands on different devices",
        "is on cpu",
        "is on reference",
        ".to(&device)"
    );
}

#[test]
fn backward_says_what_is_missing() {
    let x = zeros(&[2]).requires_grad_(true);
    assert_panics!((&x * 2.0).backward(), "backward: the tensor must have one element", ".sum(..)");
    assert_panics!(zeros(&[1]).backward(), "backward: nothing that requires a gradient leads to this tensor");
    let y = (&x * &x).sum(..);
    y.backward();
    assert_panics!(y.backward(), "retain_graph", "mul (at", "errors.rs");
    assert_panics!(
        zeros(&[2]).to_dtype(DType::I64).requires_grad_(true),
        "only float tensors have gradients"
    );
}

#[test]
fn memory_that_cannot_be_had_is_named() {
    assert_panics!(zeros(&[1 << 40, 1 << 10]), "zeros: out of memory", "f32 [1099511627776, 1024]");
    assert_panics!(zeros(&[1 << 40, 1 << 40]), "zeros", "[1099511627776, 1099511627776]");
    assert!(Tensor::try_zeros([1 << 40, 1 << 40], &Device::cpu()).is_err());
    assert!(Tensor::try_zeros([1 << 40, 1 << 10], &Device::cpu()).is_err());
}

#[test]
fn reading_the_wrong_thing_is_an_error_not_a_panic() {
    let message = zeros(&[2]).to_vec::<i64>().unwrap_err().to_string();
    assert!(message.contains("holds f32, not i64") && message.contains(".to_dtype(DType::I64)"), "{message}");
    let message = zeros(&[2]).item().unwrap_err().to_string();
    assert!(message.contains("one element was expected, got f32 [2]"), "{message}");
    let message = Device::parse("cuda").unwrap_err().to_string();
    assert!(message.contains("\"cuda\" is not available") && message.contains("cpu"), "{message}");
}

#[test]
fn the_cpu_backend_is_linked() {
    assert_eq!(Device::cpu().kind(), "cpu");
}

#[test]
fn every_operation_names_the_line_that_called_it() {
    let d = &Device::cpu();
    let (x, y, v, i) = (&zeros(&[2, 3]), &zeros(&[4, 5]), &zeros(&[3]), &tensor![0, 9]);
    let (long, mask) = (&Tensor::arange(0, 3, 1, d), &tensor![true, false]);
    #[rustfmt::skip]
    fn all(d: &Device, x: &Tensor, y: &Tensor, v: &Tensor, i: &Tensor, long: &Tensor, mask: &Tensor) {
        let mut m = x.clone();
        assert_all_panic! {
            x + y; x - y; x * y; x / y; x % y; x.pow(y); x.maximum(y); x.minimum(y); x.atan2(y);
            x.eq(y); x.lt(y); x.logical_and(y); x.where_(x, y); mask.where_(x, y); x.masked_fill(mask, 1);
            x.lerp(y, 0.5); x.isclose(y, 0.0, 0.0, false); x.allclose(y, 0.0, 0.0, false); x.hypot(y);
            x.floor_divide(y); long.floor_divide(0); x.fmod(y); x.logaddexp(y); x.xlogy(y); long.frac();
            x.addcmul(y, y, 1); x.addcdiv(y, y, 1); mask.neg(); mask - mask; long % 0;
            x.sum(2); x.sum([0, 0]); long.mean(..); x.prod(5); x.max(7); zeros(&[0]).max(..); x.any(3); x.all(3);
            x.argmax(2); x.argmax([0, 1]); zeros(&[0]).argmin(0); x.max_with_indices(4); x.var(3, 1.0); x.std(3, 1.0);
            long.var(.., 1.0); x.norm(2.0, 3); long.norm(2.0, ..); x.logsumexp(3); x.sum_to(y.shape());
            x.quantile(2.0, ..); x.quantile(0.5, 4); x.kthvalue(9, 0); x.median(3); x.sort(3, true); x.topk(9, 0, true);
            x.cumsum(3); x.cumprod(3); x.cummax(3); x.logcumsumexp(3); x.diff(3); x.searchsorted(y, true); x.bincount(0);
            x.reshape([7]); x.reshape([usize::MAX, 6]); x.view((-1, -1)); x.t().view([6]); x.transpose(0, 2); zeros(&[1, 1, 1]).t();
            x.permute([0, 0]); x.movedim(3, 0); x.squeeze(3); x.unsqueeze(4); x.expand((4, 4)); x.broadcast_to(y.shape());
            x.flatten(1, 0); x.unflatten(0, [5, 5]); zeros(&[2, 0]).unflatten(0, [5]); x.narrow(0, 1, 9); x.select(0, 5); x.split(0, 0); x.split_sizes(&[9], 0);
            x.chunk(0, 0); x.chunks::<2>(1); x.unbind(3); x.flip(&[3]); x.roll(1, 3); x.rot90(1, [0, 0]); x.repeat([2]);
            x.repeat_interleave(2, 3); v.tril(0); v.triu(0); x.diagonal(0, 0, 0); zeros(&[1, 1, 1]).diag(0); v.trace();
            x.pad(&[(0, 0), (0, 0), (0, 0)], 0); x.pad(&[(-9, 0)], 0); Tensor::new(1.0, d).diag_embed(0);
            x.i(5); x.i((0, 0, 0)); x.gather(0, v); x.gather(0, i); v.gather(0, i); v.scatter(0, i, v); v.scatter_add(0, i, v);
            long.scatter(0, &tensor![0], &tensor![0.5]); x.take_along_dim(i, 0); x.index_select(0, i); x.index_select(0, mask);
            v.index_add(0, i, v); v.index_copy(0, i, v); v.index_copy(0, i, &zeros(&[2])); v.index_fill(0, i, 1); x.rows(i);
            v.index(&[Some(i)]); v.index(&[None]); v.index_put(&[Some(i)], 1, true); v.index_put(&[Some(long)], y, true);
            v.masked_select(mask); v.masked_scatter(mask, v); v.take(i); i.one_hot(3); v.one_hot(3);
            m.copy_(y); m.add_(y); m.sub_(y); m.mul_(y); m.div_(y); m += y; m.slice_assign(9, 1); m.slice_assign(0, y);
            long.clone().add_(0.5); long.clone().div_(2); long.clone().fill_(f64::NAN); long.masked_fill(&long.eq(0), 0.5);
            x.matmul(y); x.matmul(&Tensor::new(1.0, d)); x.mm(v); x.bmm(y); x.mv(y); x.dot(v); x.outer(v); v.addmm(x, y, 1.0, 1.0);
            x.tensordot(y, &[0], &[0]); x.cross(y, 0); x.cdist(y, 2.0); zeros(&[1, 1, 1, 1, 1]).kron(v);
            x.softmax(3); long.softmax(0); x.log_softmax(3); x.layer_norm([4], None, None, 1e-5); x.rms_norm([4], None, None);
            x.linear(y, None); x.group_norm(2, None, None, 1e-5); x.dropout(2.0, true); x.cross_entropy_rows(i, -100, 0.0);
            x.conv2d(y, None, 1, 0, 1, 1); x.conv1d(y, None, 1, 0, 1, 1);
            Tensor::cat(&[x, y], 0); Tensor::cat(&[x], 5); Tensor::stack(&[x, y], 0); Tensor::arange(0, 5, -1, d);
            Tensor::full([2], 300, DType::U8); Tensor::rand([2], DType::I64); Tensor::randint(3, 3, [1], d); long.multinomial(1, true);
            Tensor::randn([1 << 40, 1 << 10], d); Tensor::zeros([1 << 40, 1 << 40], d); Tensor::from_slice(&[1.0], [2], d);
            x.solve(v); x.inverse(); v.qr(); long.eigh(); v.mT(); x.as_strided([9], &[1], 0); x & mask; !x; x.retain_grad();
            Tensor::randint(0, 3, [1 << 40, 1 << 40], d); Tensor::randperm(1 << 60, d); Tensor::linspace(0.0, 1.0, 1 << 60, d);
            Tensor::new(vec![vec![1.0], vec![]], d); grad(&[&x.clone().requires_grad_(true).sum(..)], &[x], Default::default());
            Tensor::stack(&[&zeros(&[1; 8]), &zeros(&[1; 8])], 0);
            (x + 2.0).bernoulli(); long.clone().requires_grad_(true); x.backward(); x.clone().requires_grad_(true).exp().backward();
        }
    }
    all(d, x, y, v, i, long, mask);
}
