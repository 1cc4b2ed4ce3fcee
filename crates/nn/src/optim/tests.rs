//! Expected numbers are PyTorch's (2.15, CPU), printed with all digits.

use super::*;
use orkest_core::tensor;
use std::panic::{AssertUnwindSafe, catch_unwind};

type Make = fn(Vec<Param>) -> Box<dyn Optimizer>;

/// Four numbers after 20 steps with the gradients `sin(0.7 t + i) (i + 1)`.
fn after_20_steps(make: Make, dtype: DType) -> Vec<f64> {
    let param = Param::new(Tensor::new([1.0, -2.0, 0.5, 3.0], (dtype, &Device::cpu())));
    let mut optimizer = make(vec![param.clone()]);
    for t in 0..20 {
        param.set_grad(Some(wave(t, dtype)));
        optimizer.step();
    }
    assert_eq!(param.dtype(), dtype);
    values(&param)
}

fn wave(t: usize, dtype: DType) -> Tensor {
    let wave: Vec<f64> = (0..4).map(|i| (0.7 * t as f64 + i as f64).sin() * (i + 1) as f64).collect();
    Tensor::new(wave, (dtype, &Device::cpu()))
}

fn values(param: &Param) -> Vec<f64> {
    param.value().to_dtype(DType::F64).to_vec().unwrap()
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance * e.abs().max(1.0), "found {found:?}, expected {expected:?}");
    }
}

fn panic_text(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it should have panicked");
    payload
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| (*payload.downcast_ref::<&str>().unwrap()).to_owned())
}

fn two_params() -> [Param; 2] {
    [Param::new(tensor![1.0, -2.0, 0.5, 3.0]), Param::new(tensor![[0.25, 4.0]])]
}

#[test]
fn trajectories_equal_pytorchs() {
    let cases: [(&str, Make, [f64; 4], [f64; 4]); 11] = [
        (
            "SGD",
            |p| Box::new(SGD::new(p, 0.1)),
            [0.9312844234245369, -2.3752522155543274, 0.09789781768799474, 3.1711531343145554],
            [0.9312845468521118, -2.3752517700195312, 0.09789780527353287, 3.171152353286743],
        ),
        (
            "SGD weight decay, maximize",
            |p| Box::new(SGD::new(p, 0.05).weight_decay(0.1).maximize(true)),
            [0.9331027619070699, -1.6319086182271672, 0.6542351974864347, 2.650148680391951],
            [0.9331027269363403, -1.6319087743759155, 0.6542351841926575, 2.650148391723633],
        ),
        (
            "SGD momentum",
            |p| Box::new(SGD::new(p, 0.1).momentum(0.9)),
            [0.014449866458160246, -3.851267323409405, 0.4559183897762027, 6.639021591751344],
            [0.014450209215283394, -3.8512673377990723, 0.4559183418750763, 6.639022350311279],
        ),
        (
            "SGD dampening",
            |p| Box::new(SGD::new(p, 0.1).momentum(0.9).dampening(0.3).weight_decay(0.01)),
            [0.26263556640111324, -3.473770660801166, -0.2522395574020813, 5.0105652248310575],
            [0.262635737657547, -3.4737699031829834, -0.25223982334136963, 5.010564804077148],
        ),
        (
            "SGD nesterov",
            |p| Box::new(SGD::new(p, 0.1).nesterov(true).momentum(0.8).weight_decay(0.02)),
            [0.49344578307799397, -2.680387513225509, -0.15094022209452407, 3.6953711294108396],
            [0.4934457242488861, -2.680387496948242, -0.15094029903411865, 3.6953704357147217],
        ),
        (
            "Adam",
            |p| Box::new(Adam::new(p, 0.05)),
            [0.787302216532017, -2.2188580802128186, 0.428195844164177, 3.1483366407794033],
            [0.7873023748397827, -2.218858242034912, 0.42819589376449585, 3.14833664894104],
        ),
        (
            "Adam weight decay",
            |p| Box::new(Adam::new(p, 0.05).betas((0.85, 0.99)).eps(1e-6).weight_decay(0.1)),
            [0.6822695021521011, -2.0734541711104852, 0.4142977129509449, 3.0264140721830484],
            [0.6822695136070251, -2.0734541416168213, 0.4142976999282837, 3.026413917541504],
        ),
        (
            "Adam amsgrad",
            |p| Box::new(Adam::new(p, 0.05).amsgrad(true).betas((0.9, 0.95))),
            [0.7894859240720709, -2.21897105533747, 0.42696338349208207, 3.1458566987849648],
            [0.7894858717918396, -2.2189712524414062, 0.4269633889198303, 3.145857095718384],
        ),
        (
            "Adam maximize",
            |p| Box::new(Adam::new(p, 0.05).maximize(true).betas((0.3, 0.9))),
            [1.059061559406803, -1.8963085466028928, 0.5863357390830152, 2.9932992613285823],
            [1.0590615272521973, -1.8963086605072021, 0.5863356590270996, 2.9932994842529297],
        ),
        (
            "AdamW",
            |p| Box::new(AdamW::new(p, 0.05)),
            [0.7790315348271291, -2.197123879885601, 0.42392127479492303, 3.117391033214138],
            [0.7790314555168152, -2.1971237659454346, 0.423921138048172, 3.11738920211792],
        ),
        (
            "AdamW amsgrad",
            |p| Box::new(AdamW::new(p, 0.05).weight_decay(0.2).amsgrad(true).betas((0.9, 0.95)).eps(1e-3)),
            [0.6387479403575261, -1.8207631893466973, 0.3489325344111978, 2.579502618518505],
            [0.6387482285499573, -1.8207635879516602, 0.3489326238632202, 2.579502820968628],
        ),
    ];
    for (name, make, f64_values, f32_values) in cases {
        println!("{name}");
        close(&after_20_steps(make, DType::F64), &f64_values, 1e-10);
        close(&after_20_steps(make, DType::F32), &f32_values, 1e-6);
    }
}

#[test]
fn adamw_with_a_linear_schedule() {
    let param = Param::new(Tensor::new([1.0f64], &Device::cpu()));
    let mut optimizer = AdamW::new([param.clone()], 2e-5).weight_decay(0.01);
    for (t, expected) in [0.999979800002, 0.9999845480514118, 0.9999821931120126].into_iter().enumerate() {
        optimizer.set_lr(2e-5 * (3 - t) as f64 / 3.0);
        param.set_grad(Some(Tensor::new([[0.1, -0.2, 0.3][t]], &Device::cpu())));
        optimizer.step();
        close(&values(&param), &[expected], 1e-15);
    }
}

#[test]
fn parameters_without_gradient_keep_their_own_step_count() {
    let [a, b] = two_params();
    let mut optimizer = Adam::new([a.clone(), b.clone()], 0.1);
    let grad = tensor![[2.0, -3.0]];
    a.set_grad(Some(wave(1, DType::F32)));
    optimizer.step();
    assert_eq!(values(&b), [0.25, 4.0]);
    let state = optimizer.state_dict().state;
    assert_eq!(state.keys().collect::<Vec<_>>(), [&0]);

    // The first step of Adam is lr in the direction of the gradient, whatever others have done before.
    b.set_grad(Some(grad));
    optimizer.step();
    close(&values(&b), &[0.15, 4.1], 1e-6);
    let state = optimizer.state_dict().state;
    assert_eq!(state[&0]["step"].item().unwrap(), 2.0);
    assert_eq!(state[&1]["step"].item().unwrap(), 1.0);
}

#[test]
fn tied_parameters_are_stepped_once() {
    let [a, b] = two_params();
    let mut optimizer = SGD::new(vec![a.clone(), b.clone(), a.clone()], 1.0);
    assert_eq!(optimizer.param_groups()[0].params().len(), 2);
    a.set_grad(Some(tensor![1.0, 1.0, 1.0, 1.0]));
    optimizer.step();
    assert_eq!(values(&a), [0.0, -3.0, -0.5, 2.0]);
}

#[test]
fn groups_have_their_own_options() {
    let [a, b] = two_params();
    let groups = [
        ParamGroup::new([a.clone()]).with("lr", 0.5),
        ParamGroup::new([b.clone()]).with("weight_decay", 0.0),
    ];
    let mut optimizer = SGD::new(groups, 0.1).weight_decay(1.0);
    a.set_grad(Some(a.value().zeros_like()));
    b.set_grad(Some(b.value().ones_like()));
    optimizer.step();
    close(&values(&a), &[0.5, -1.0, 0.25, 1.5], 1e-6);
    close(&values(&b), &[0.15, 3.9], 1e-6);
    let late = Param::new(tensor![1.0]);
    optimizer.add_param_group(ParamGroup::new([late.clone()]));
    late.set_grad(Some(tensor![1.0]));
    optimizer.zero_grad();
    assert!(late.grad().is_none() && a.grad().is_none());
    late.set_grad(Some(tensor![1.0]));
    optimizer.step();
    close(&values(&late), &[0.8], 1e-6);
}

#[test]
fn parameters_are_updated_where_they_lie() {
    let makes: [Make; 2] = [
        |p| Box::new(AdamW::new(p, 0.1).amsgrad(true)),
        |p| Box::new(SGD::new(p, 0.1).momentum(0.9).nesterov(true)),
    ];
    for make in makes {
        let param = Param::new(tensor![1.0, -2.0]);
        let mut optimizer = make(vec![param.clone()]);
        // A tensor says where its memory was made: a copy would come from another line.
        let made_at = param.value().origin();
        let mut train = || {
            optimizer.zero_grad();
            let loss = param.tensor().square().sum(..);
            loss.backward();
            optimizer.step();
            loss
        };
        for _ in 0..3 {
            let loss = train();
            assert_eq!(param.value().origin(), made_at);
            assert!(loss.item().unwrap() > 0.0);
        }
        let reader = param.value();
        train();
        assert_ne!(param.value().origin(), made_at);
        assert!(!param.value().shares_memory(&reader));
    }
}

#[test]
fn a_value_read_earlier_does_not_change() {
    let param = Param::new(tensor![1.0, -2.0]);
    let mut optimizer = SGD::new([param.clone()], 1.0);
    let before = param.value();
    param.set_grad(Some(tensor![1.0, 1.0]));
    optimizer.step();
    assert_eq!(before.to_vec::<f32>().unwrap(), [1.0, -2.0]);
    assert_eq!(values(&param), [0.0, -3.0]);
}

#[test]
fn mixed_dtypes_views_and_empty_parameters() {
    let half = Param::new(Tensor::new([1.0f32, 2.0], DType::BF16));
    let double = Param::new(Tensor::new([[1.0f64, 2.0], [3.0, 4.0]], &Device::cpu()));
    let empty = Param::new(Tensor::zeros([0, 3], &Device::cpu()));
    let mut optimizer = Adam::new([half.clone(), double.clone(), empty.clone()], 0.5);
    half.set_grad(Some(tensor![1.0, -1.0]));
    double.set_grad(Some(Tensor::new([[1.0f64, 1.0], [-1.0, -1.0]], &Device::cpu()).t()));
    empty.set_grad(Some(empty.value()));
    optimizer.step();
    assert_eq!(half.dtype(), DType::BF16);
    close(&values(&half), &[0.5, 2.5], 1e-2);
    close(&values(&double), &[0.5, 2.5, 2.5, 4.5], 1e-6);
}

#[test]
fn invalid_options_are_refused() {
    let param = || [Param::new(tensor![1.0])];
    let text = panic_text(|| drop(Adam::new(param(), -1.0)));
    assert_eq!(text, "Adam: lr must be 0 or more, got -1");
    let text = panic_text(|| drop(SGD::new(param(), f64::NAN)));
    assert_eq!(text, "SGD: lr must be 0 or more, got NaN");
    let text = panic_text(|| drop(AdamW::new(param(), 0.1).betas((0.9, 1.0))));
    assert_eq!(text, "AdamW: betas must lie in [0, 1), got (0.9, 1)");
    let text = panic_text(|| drop(Adam::new(Vec::<Param>::new(), 0.1)));
    assert_eq!(text, "Adam: there are no parameters to train");
    let text = panic_text(|| drop(Adam::new(ParamGroup::new(param()).with("weight_decy", 0.1), 0.1)));
    assert!(text.starts_with("Adam: there is no option weight_decy, only amsgrad, betas, eps"), "{text}");
    let text = panic_text(|| drop(Adam::new(ParamGroup::new(param()).with("betas", 0.1), 0.1)));
    assert_eq!(text, "Adam: betas must be a pair of numbers, got 0.1");
    let text = panic_text(|| {
        let [p] = param();
        drop(SGD::new([ParamGroup::new([p.clone()]), ParamGroup::new([p])], 0.1));
    });
    assert!(text.contains("is in more than one parameter group"), "{text}");
    let text = panic_text(|| {
        let [p] = param();
        p.set_grad(Some(tensor![1.0]));
        SGD::new([p], 0.1).nesterov(true).step();
    });
    assert!(text.starts_with("SGD: nesterov needs a momentum"), "{text}");
}

fn five_steps(optimizer: &mut dyn Optimizer, start: usize) {
    for t in start..start + 5 {
        for (i, param) in optimizer.param_groups().iter().flat_map(ParamGroup::params).enumerate() {
            // The second parameter sits out every other step.
            let grad = wave(t + i, DType::F32).narrow(0, 0, param.numel()).reshape(param.shape().to_vec());
            param.set_grad((i == 0 || t % 2 == 0).then_some(grad));
        }
        optimizer.step();
    }
}

#[test]
fn a_resumed_run_continues_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let makes: [Make; 13] = [
        |p| Box::new(AdamW::new(p, 0.1 + 0.2).amsgrad(true).betas((1.0 / 3.0, 0.7))),
        |p| Box::new(Adam::new(p, 1.0 / 7.0)),
        |p| Box::new(SGD::new(p, 0.1).momentum(0.9).dampening(0.5)),
        |p| Box::new(RMSprop::new(p, 0.1).momentum(0.9).centered(true)),
        |p| Box::new(Adagrad::new(p, 0.1).lr_decay(0.3).initial_accumulator_value(0.1)),
        |p| Box::new(Adadelta::new(p, 1.0)),
        |p| Box::new(Adamax::new(p, 0.1)),
        |p| Box::new(NAdam::new(p, 0.1).decoupled_weight_decay(true).weight_decay(0.1)),
        |p| Box::new(RAdam::new(p, 0.1).betas((0.9, 0.9))),
        |p| Box::new(Rprop::new(p, 0.1)),
        |p| Box::new(ASGD::new(p, 0.1).t0(2.0).lambd(0.1)),
        |p| Box::new(Lion::new(p, 0.1)),
        |p| Box::new(Adafactor::new(p, 0.1)),
    ];
    for make in makes {
        let params = two_params();
        let mut through = make(params.to_vec());
        five_steps(&mut *through, 0);
        through.state_dict().save(&path).unwrap();
        let resumed_params = params.clone().map(|p| Param::new(p.value().copy()));
        five_steps(&mut *through, 5);

        let mut resumed = make(resumed_params.to_vec());
        // Everything comes from the file.
        resumed.set_lr(12.0);
        resumed.load_state_dict(&OptimizerState::load(&path).unwrap()).unwrap();
        assert_eq!(resumed.lr().to_bits(), through.lr().to_bits());
        five_steps(&mut *resumed, 5);
        for (a, b) in params.iter().zip(&resumed_params) {
            assert_eq!(a.value().to_bytes().unwrap(), b.value().to_bytes().unwrap());
        }
    }
}

#[test]
fn options_survive_a_file_exactly() {
    let param = Param::new(tensor![1.0]);
    let mut optimizer = SGD::new([param], 0.1);
    let mut x = 0.37;
    for _ in 0..1000 {
        x = (x * 3.99) * (1.0 - x);
        optimizer.set_lr(x * 1e-3);
        let again = OptimizerState::from_state_dict(&optimizer.state_dict().to_state_dict()).unwrap();
        assert_eq!(again.param_groups, optimizer.state_dict().param_groups);
    }
    optimizer.set_lr(f64::INFINITY);
    let again = OptimizerState::from_state_dict(&optimizer.state_dict().to_state_dict()).unwrap();
    assert_eq!(again.param_groups, optimizer.state_dict().param_groups);
}

#[test]
fn a_state_that_does_not_fit_is_refused_with_all_reasons() {
    let mut optimizer = Adam::new(two_params(), 0.1);
    five_steps(&mut optimizer, 0);
    let good = optimizer.state_dict();
    let before: Vec<_> = optimizer.state_dict().state[&0]["exp_avg"].to_vec::<f32>().unwrap();
    let mut refused = |state: &OptimizerState| match optimizer.load_state_dict(state) {
        Err(e) => e.to_string(),
        Ok(()) => panic!("the state should have been refused"),
    };

    let mut state = good.clone();
    state.param_groups[0].params.pop();
    state.param_groups.push(GroupState::default());
    let text = refused(&state);
    assert!(text.contains("it has 2 parameter groups, the optimizer 1"), "{text}");
    assert!(text.contains("group 0 has 1 parameters, the optimizer's 2"), "{text}");
    assert!(text.contains("state.1 belongs to no group's parameter"), "{text}");

    let mut state = good.clone();
    state.state.get_mut(&0).unwrap().insert("exp_avg".into(), tensor![1.0]);
    state.state.get_mut(&1).unwrap().remove("step");
    state.state.get_mut(&1).unwrap().insert("momentum_buffer".into(), tensor![1.0]);
    let text = refused(&state);
    assert!(text.contains("state.0.exp_avg is f32 [1], the parameter f32 [4]"), "{text}");
    assert!(text.contains("state.1.step is missing"), "{text}");
    assert!(text.contains("state.1.momentum_buffer means nothing to this optimizer"), "{text}");

    let mut state = good.clone();
    state.param_groups[0].options.insert("lr".into(), OptionValue::Number(-2.0));
    assert!(refused(&state).contains("group 0: lr must be 0 or more, got -2"));

    assert_eq!(optimizer.state_dict().state[&0]["exp_avg"].to_vec::<f32>().unwrap(), before);
    assert_eq!(optimizer.lr(), 0.1);
    let mut other = SGD::new(two_params(), 0.1);
    assert!(other.load_state_dict(&good).is_err());
}

#[test]
fn matrices_resume_bit_for_bit() {
    let makes: [Make; 3] = [
        |p| Box::new(Muon::new(p, 0.1).adjust_lr_fn(AdjustLr::MatchRmsAdamW).ns_steps(3)),
        |p| Box::new(Adafactor::new(p, 0.1).eps((Some(1e-8), 0.1))),
        |p| Box::new(Adafactor::new(p, 0.1)),
    ];
    for make in makes {
        let params = [[3, 2], [2, 4]].map(|[rows, columns]| {
            let values: Vec<f64> = (0..rows * columns).map(|i| (i as f64).cos()).collect();
            Param::new(Tensor::from_slice(&values, [rows, columns], DType::F32))
        });
        let steps = |optimizer: &mut dyn Optimizer, start: usize| {
            for t in start..start + 3 {
                for param in optimizer.param_groups().iter().flat_map(ParamGroup::params) {
                    param.set_grad(Some((param.value() * t as f64).sin()));
                }
                optimizer.step();
            }
        };
        let mut through = make(params.to_vec());
        steps(&mut *through, 1);
        let saved = OptimizerState::from_state_dict(&through.state_dict().to_state_dict()).unwrap();
        let resumed_params = params.clone().map(|p| Param::new(p.value().copy()));
        steps(&mut *through, 4);
        let mut resumed = make(resumed_params.to_vec());
        resumed.load_state_dict(&saved).unwrap();
        steps(&mut *resumed, 4);
        for (a, b) in params.iter().zip(&resumed_params) {
            assert_eq!(a.value().to_bytes().unwrap(), b.value().to_bytes().unwrap());
        }
    }
}

#[test]
fn adafactor_remembers_a_row_and_a_column() {
    let weight = Param::new(Tensor::ones([2, 5, 3], &Device::cpu()));
    let mut optimizer = Adafactor::new([weight.clone()], 0.1);
    weight.set_grad(Some(weight.value()));
    optimizer.step();
    let state = optimizer.state_dict().state.remove(&0).unwrap();
    assert_eq!((state["row_var"].shape(), state["col_var"].shape()), (&[2, 5, 1].into(), &[2, 1, 3].into()));
    let mut wrong = optimizer.state_dict();
    wrong.state.get_mut(&0).unwrap().insert("row_var".into(), tensor![1.0]);
    let text = optimizer.load_state_dict(&wrong).unwrap_err().to_string();
    assert!(text.contains("state.0.row_var is f32 [1], the parameter's rows are f32 [2, 5, 1]"), "{text}");
}

#[test]
fn muon_wants_matrices() {
    let [a, _] = two_params();
    a.set_grad(Some(a.value()));
    let text = panic_text(|| Muon::new([a], 0.1).step());
    assert!(
        text.starts_with("Muon: only matrices can be made orthogonal; give a parameter of shape [4]"),
        "{text}"
    );
}

/// Rosenbrock's function of a parameter of two numbers, with its gradient.
fn rosenbrock(xy: &Param) -> Tensor {
    xy.zero_grad();
    let (x, y) = (xy.tensor().select(0, 0), xy.tensor().select(0, 1));
    let loss = (1.0 - &x).square() + (y - x.square()).square() * 100.0;
    loss.backward();
    loss
}

#[test]
fn lbfgs_resumes_bit_for_bit() {
    let start = || Param::new(Tensor::new([-1.5f64, 2.0], &Device::cpu()));
    let make =
        |param: &Param| LBFGS::new([param.clone()], 1.0).max_iter(4).line_search_fn(LineSearch::StrongWolfe);
    let (through, resumed) = (start(), start());
    let mut optimizer = make(&through);
    for _ in 0..2 {
        optimizer.step(|| rosenbrock(&through)).unwrap();
    }
    let saved = OptimizerState::from_state_dict(&optimizer.state_dict().to_state_dict()).unwrap();
    let count = |name: &str| saved.state[&0][name].item().unwrap();
    assert_eq!((count("n_iter"), count("func_evals")), (7.0, 10.0));
    close(&values(&through), &[-1.3536960480482623, 1.797732747257609], 1e-10);
    resumed.set_value(&through.value().copy());
    optimizer.step(|| rosenbrock(&through)).unwrap();
    let mut optimizer = make(&resumed);
    optimizer.load_state_dict(&saved).unwrap();
    optimizer.step(|| rosenbrock(&resumed)).unwrap();
    assert_eq!(values(&through), values(&resumed));
}

#[test]
fn lbfgs_evaluates_no_more_than_it_may() {
    let param = Param::new(Tensor::new([-1.5f64, 2.0], &Device::cpu()));
    let mut optimizer =
        LBFGS::new([param.clone()], 1.0).max_eval(7).max_iter(50).line_search_fn(LineSearch::StrongWolfe);
    let mut count = 0;
    let before = optimizer
        .step(|| {
            count += 1;
            rosenbrock(&param)
        })
        .unwrap();
    assert_eq!(before.item().unwrap(), 2.5 * 2.5 + 100.0 * 0.25 * 0.25);
    assert_eq!(count, 7);
    close(&values(&param), &[-1.4142309487677067, 1.9949020404366438], 1e-10);
    let text = panic_text(|| Optimizer::step(&mut optimizer));
    assert!(text.contains("with a closure"), "{text}");
}
