//! Expected rates are PyTorch's (2.15), printed with all digits, for two groups that start at 0.1 and 0.01.

use super::*;
use crate::optim::{Adam, SGD};
use orkest_core::{Param, tensor};

fn params() -> [Param; 2] {
    [Param::new(tensor![1.0]), Param::new(tensor![2.0])]
}

fn sgd() -> SGD {
    let [a, b] = params();
    SGD::new([ParamGroup::new([a]), ParamGroup::new([b]).with("lr", 0.01)], 0.1).momentum(0.9)
}

fn lrs(optimizer: &dyn Optimizer) -> Vec<f64> {
    optimizer.param_groups().iter().map(ParamGroup::lr).collect()
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        // What the cosine leaves of 0.1 near zero is rounding.
        assert!((f - e).abs() <= 1e-12 * e.abs() + 1e-17, "found {found:?}, expected {expected:?}");
    }
}

/// Runs a schedule, and once more from its middle with a saved state.
#[track_caller]
fn rates_are<const N: usize>(
    make: impl Fn(&mut dyn Optimizer) -> Box<dyn LrScheduler>,
    expected: &[[f64; N]; 2],
) {
    let mut optimizer = sgd();
    let mut scheduler = make(&mut optimizer);
    let mut saved = None;
    for t in 0..N {
        if t == N / 2 {
            saved = Some((optimizer.state_dict(), scheduler.state_dict().to_string()));
        }
        close(&lrs(&optimizer), &[expected[0][t], expected[1][t]]);
        assert_eq!(scheduler.last_lr(), lrs(&optimizer));
        scheduler.step(&mut optimizer);
    }

    let (optimizer_state, scheduler_state) = saved.unwrap();
    let mut resumed = sgd();
    let mut scheduler = make(&mut resumed);
    resumed.load_state_dict(&optimizer_state).unwrap();
    scheduler.load_state_dict(&serde_json::from_str(&scheduler_state).unwrap()).unwrap();
    for t in N / 2..N {
        close(&scheduler.last_lr(), &[expected[0][t], expected[1][t]]);
        scheduler.step(&mut resumed);
    }
    assert_eq!(lrs(&resumed), lrs(&optimizer));
}

#[track_caller]
fn plateau_is<const N: usize>(
    mut scheduler: ReduceLROnPlateau,
    metrics: &[f64; N],
    expected: &[[f64; N]; 2],
) {
    let mut optimizer = sgd();
    for t in 0..N {
        let state = scheduler.state_dict().to_string();
        scheduler.load_state_dict(&serde_json::from_str(&state).unwrap()).unwrap();
        scheduler.step(metrics[t], &mut optimizer);
        close(&lrs(&optimizer), &[expected[0][t], expected[1][t]]);
    }
    assert_eq!(scheduler.last_lr(), lrs(&optimizer));
}

/// Two schedulers on one optimizer, stepped one after the other.
struct Both(LinearLR, ExponentialLR);

impl LrScheduler for Both {
    fn step(&mut self, optimizer: &mut dyn Optimizer) {
        self.0.step(optimizer);
        self.1.step(optimizer);
    }
    fn restart(&mut self, optimizer: &mut dyn Optimizer) {
        self.0.restart(optimizer);
        self.1.restart(optimizer);
    }
    fn last_lr(&self) -> Vec<f64> {
        self.1.last_lr()
    }
    fn state_dict(&self) -> Value {
        json!([self.0.state_dict(), self.1.state_dict()])
    }
    fn load_state_dict(&mut self, state: &Value) -> Result<()> {
        self.0.load_state_dict(&state[0])?;
        self.1.load_state_dict(&state[1])
    }
}

#[test]
fn step_lr() {
    rates_are(
        |o| Box::new(StepLR::new(o, 3, 0.3)),
        &[
            [0.1, 0.1, 0.1, 0.03, 0.03, 0.03, 0.009, 0.009, 0.009, 0.0026999999999999997],
            [0.01, 0.01, 0.01, 0.003, 0.003, 0.003, 0.0009, 0.0009, 0.0009, 0.00027],
        ],
    );
}

#[test]
fn multi_step_lr() {
    rates_are(
        |o| Box::new(MultiStepLR::new(o, &[2, 5, 5, 7], 0.3)),
        &[
            [
                0.1,
                0.1,
                0.03,
                0.03,
                0.03,
                0.0026999999999999997,
                0.0026999999999999997,
                0.0008099999999999998,
                0.0008099999999999998,
            ],
            [0.01, 0.01, 0.003, 0.003, 0.003, 0.00027, 0.00027, 8.1e-05, 8.1e-05],
        ],
    );
}

#[test]
fn constant_lr() {
    rates_are(
        |o| Box::new(ConstantLR::new(o, 0.4, 3)),
        &[
            [
                0.04000000000000001,
                0.04000000000000001,
                0.04000000000000001,
                0.10000000000000002,
                0.10000000000000002,
            ],
            [0.004, 0.004, 0.004, 0.01, 0.01],
        ],
    );
}

#[test]
fn linear_lr() {
    rates_are(
        |o| Box::new(LinearLR::new(o, 0.2, 0.9, 4)),
        &[
            [
                0.020000000000000004,
                0.037500000000000006,
                0.05500000000000001,
                0.07250000000000001,
                0.09000000000000001,
                0.09000000000000001,
                0.09000000000000001,
            ],
            [0.002, 0.00375, 0.0055, 0.0072499999999999995, 0.009, 0.009, 0.009],
        ],
    );
}

#[test]
fn exponential_lr() {
    rates_are(
        |o| Box::new(ExponentialLR::new(o, 0.9)),
        &[
            [
                0.1,
                0.09000000000000001,
                0.08100000000000002,
                0.07290000000000002,
                0.06561000000000002,
                0.05904900000000002,
            ],
            [
                0.01,
                0.009000000000000001,
                0.008100000000000001,
                0.007290000000000001,
                0.006561000000000002,
                0.005904900000000002,
            ],
        ],
    );
}

#[test]
fn polynomial_lr() {
    rates_are(
        |o| Box::new(PolynomialLR::new(o, 4, 1.7)),
        &[
            [0.1, 0.061320282613276, 0.030778610333622905, 0.009473228540689988, 0.0, 0.0],
            [0.01, 0.0061320282613276005, 0.0030778610333622907, 0.0009473228540689988, 0.0, 0.0],
        ],
    );
}

#[test]
fn cosine_annealing_lr() {
    rates_are(
        |o| Box::new(CosineAnnealingLR::new(o, 4, 0.003)),
        &[
            [
                0.1,
                0.08579467888754756,
                0.051500000000000004,
                0.01720532111245245,
                0.003,
                0.017205321112452442,
                0.05150000000000001,
                0.08579467888754759,
                0.10000000000000005,
                0.0857946788875476,
                0.05150000000000004,
                0.017205321112452494,
            ],
            [
                0.01,
                0.008974873734152917,
                0.006500000000000001,
                0.004025126265847084,
                0.003,
                0.0040251262658470835,
                0.006500000000000001,
                0.008974873734152919,
                0.010000000000000002,
                0.008974873734152919,
                0.006500000000000002,
                0.004025126265847087,
            ],
        ],
    );
}

#[test]
fn cosine_annealing_warm_restarts() {
    rates_are(
        |o| Box::new(CosineAnnealingWarmRestarts::new(o, 2, 2, 0.002)),
        &[
            [
                0.1,
                0.051000000000000004,
                0.1,
                0.08564823227814083,
                0.051000000000000004,
                0.016351767721859173,
                0.1,
                0.09627009709305305,
                0.08564823227814083,
                0.0697514881858894,
                0.051000000000000004,
                0.032248511814110606,
                0.016351767721859173,
                0.00572990290694695,
                0.1,
                0.0990584787397583,
            ],
            [
                0.01,
                0.006,
                0.01,
                0.008828427124746189,
                0.006,
                0.0031715728752538105,
                0.01,
                0.009695518130045148,
                0.008828427124746189,
                0.00753073372946036,
                0.006,
                0.0044692662705396406,
                0.0031715728752538105,
                0.002304481869954853,
                0.01,
                0.009923141121612923,
            ],
        ],
    );
}

#[test]
fn cosine_annealing_warm_restarts_of_equal_length() {
    rates_are(
        |o| Box::new(CosineAnnealingWarmRestarts::new(o, 3, 1, 0.002)),
        &[
            [
                0.1,
                0.07550000000000001,
                0.02650000000000001,
                0.1,
                0.07550000000000001,
                0.02650000000000001,
                0.1,
                0.07550000000000001,
            ],
            [0.01, 0.008, 0.004000000000000001, 0.01, 0.008, 0.004000000000000001, 0.01, 0.008],
        ],
    );
}

#[test]
fn lambda_lr() {
    rates_are(
        |o| {
            Box::new(LambdaLR::per_group(
                o,
                vec![Box::new(|e| 1.0 / (1.0 + e as f64)), Box::new(|e| 0.5f64.powi(e as i32))],
            ))
        },
        &[
            [0.1, 0.05, 0.03333333333333333, 0.025, 0.020000000000000004],
            [0.01, 0.005, 0.0025, 0.00125, 0.000625],
        ],
    );
}

#[test]
fn multiplicative_lr() {
    rates_are(
        |o| Box::new(MultiplicativeLR::new(o, |e| 1.0 / (1.0 + e as f64))),
        &[
            [0.1, 0.05, 0.016666666666666666, 0.004166666666666667, 0.0008333333333333334],
            [0.01, 0.005, 0.0016666666666666666, 0.00041666666666666664, 8.333333333333333e-05],
        ],
    );
}

#[test]
fn cyclic_lr() {
    rates_are(
        |o| {
            let options = CyclicOptions {
                max_lr: vec![0.1, 0.05],
                step_size_up: 2,
                step_size_down: Some(3),
                mode: CyclicMode::Triangular2,
                ..CyclicOptions::new(0.01, 0.1)
            };
            Box::new(CyclicLR::with_options(o, options))
        },
        &[
            [
                0.01,
                0.055,
                0.09999999999999999,
                0.06999999999999999,
                0.039999999999999994,
                0.01,
                0.03250000000000002,
                0.055,
            ],
            [
                0.01,
                0.03,
                0.049999999999999996,
                0.03666666666666666,
                0.02333333333333333,
                0.01,
                0.02000000000000001,
                0.03,
            ],
        ],
    );
}

#[test]
fn chained_scheduler() {
    let make = |o: &mut dyn Optimizer| {
        let (warmup, decay) = (ConstantLR::new(o, 0.5, 3), ExponentialLR::new(o, 0.9));
        ChainedScheduler::new(o, vec![Box::new(warmup), Box::new(decay)])
    };
    rates_are(
        |o| Box::new(make(o)),
        &[
            [0.05, 0.045000000000000005, 0.04050000000000001, 0.07290000000000002, 0.06561000000000002],
            [0.005, 0.0045000000000000005, 0.004050000000000001, 0.007290000000000001, 0.006561000000000002],
        ],
    );
    let mut optimizer = sgd();
    let mut scheduler = make(&mut optimizer);
    (0..4).for_each(|_| scheduler.step(&mut optimizer));
    scheduler.restart(&mut optimizer);
    close(&lrs(&optimizer), &[0.05, 0.005]);
}

#[test]
fn sequential_lr() {
    rates_are(
        |o| {
            Box::new({
                let warmup = LinearLR::new(o, 0.1, 1.0, 3);
                let cosine = CosineAnnealingLR::new(o, 5, 0.001);
                let decay = ExponentialLR::new(o, 0.5);
                SequentialLR::new(o, vec![Box::new(warmup), Box::new(cosine), Box::new(decay)], &[3, 7])
            })
        },
        &[
            [
                0.010000000000000002,
                0.04,
                0.07,
                0.1,
                0.0905463412215599,
                0.06579634122155989,
                0.035203658778440096,
                0.1,
                0.05,
                0.025,
                0.0125,
            ],
            [
                0.001,
                0.003999999999999999,
                0.006999999999999998,
                0.010000000000000002,
                0.009140576474687266,
                0.006890576474687264,
                0.004109423525312737,
                0.01,
                0.005,
                0.0025,
                0.00125,
            ],
        ],
    );
}

#[test]
fn two_schedulers_combine() {
    rates_are(
        |o| Box::new(Both(LinearLR::new(o, 0.25, 1.0, 3), ExponentialLR::new(o, 0.8))),
        &[
            [
                0.025,
                0.04000000000000001,
                0.048000000000000015,
                0.051200000000000016,
                0.04096000000000002,
                0.03276800000000001,
                0.026214400000000013,
            ],
            [
                0.0025,
                0.004,
                0.0048000000000000004,
                0.00512,
                0.004096000000000001,
                0.0032768000000000007,
                0.002621440000000001,
            ],
        ],
    );
}

#[test]
fn one_cycle_lr() {
    let mut optimizer = sgd();
    let options = OneCycleOptions { max_lr: vec![1.0, 0.2], ..OneCycleOptions::new(0.0, 10) };
    let mut scheduler = OneCycleLR::with_options(&mut optimizer, options);
    let rates: [[f64; 10]; 2] = [
        [
            0.040000000000000036,
            0.52,
            1.0,
            0.9504846320134737,
            0.8117456539497631,
            0.6112620219362893,
            0.38874197806371075,
            0.18825834605023697,
            0.049519367986526286,
            4e-06,
        ],
        [
            0.008000000000000007,
            0.10400000000000001,
            0.2,
            0.19009692640269477,
            0.1623491307899526,
            0.12225240438725786,
            0.07774839561274215,
            0.0376516692100474,
            0.009903873597305258,
            8e-07,
        ],
    ];
    let momenta = [
        0.95,
        0.8999999999999999,
        0.85,
        0.854951556604879,
        0.8688255099070633,
        0.8888739533021842,
        0.9111260466978157,
        0.9311744900929366,
        0.945048443395121,
        0.95,
    ];
    for t in 0..10 {
        close(&lrs(&optimizer), &[rates[0][t], rates[1][t]]);
        close(&[optimizer.param_groups()[0].number("momentum")], &[momenta[t]]);
        scheduler.step(&mut optimizer);
    }
}

#[test]
fn one_cycle_lr_in_three_phases_with_beta1() {
    let [a, b] = params();
    let mut optimizer = Adam::new([ParamGroup::new([a]), ParamGroup::new([b]).with("lr", 0.01)], 0.1);
    let options = OneCycleOptions {
        pct_start: 0.37,
        anneal_strategy: Anneal::Linear,
        base_momentum: vec![0.8],
        max_momentum: vec![0.9],
        div_factor: 10.0,
        final_div_factor: 100.0,
        three_phase: true,
        ..OneCycleOptions::new(1.0, 13)
    };
    let mut scheduler = OneCycleLR::with_options(&mut optimizer, options);
    let rates: [f64; 13] = [
        0.1,
        0.33622047244094494,
        0.5724409448818899,
        0.8086614173228347,
        0.9551181102362204,
        0.7188976377952754,
        0.4826771653543305,
        0.24645669291338568,
        0.09141095890410958,
        0.06880821917808218,
        0.04620547945205478,
        0.023602739726027402,
        0.0010000000000000009,
    ];
    let betas = [
        0.9,
        0.873753280839895,
        0.8475065616797901,
        0.8212598425196851,
        0.80498687664042,
        0.831233595800525,
        0.8574803149606299,
        0.8837270341207349,
        0.9,
        0.9,
        0.9,
        0.9,
        0.9,
    ];
    for t in 0..13 {
        close(&lrs(&optimizer), &[rates[t], rates[t]]);
        let (beta1, beta2) = optimizer.param_groups()[1].pair("betas");
        close(&[beta1, beta2], &[betas[t], 0.999]);
        scheduler.step(&mut optimizer);
    }
}

#[test]
fn reduce_lr_on_plateau() {
    let mut optimizer = sgd();
    let scheduler =
        ReduceLROnPlateau::new(&mut optimizer).factor(0.5).patience(2).cooldown(1).min_lr(&[0.02, 0.004]);
    plateau_is(
        scheduler,
        &[1.0, 0.9, 0.9, 0.91, 0.89995, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        &[
            [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.025, 0.02],
            [0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.005, 0.005, 0.004, 0.004, 0.004, 0.004, 0.004],
        ],
    );
}

#[test]
fn reduce_lr_on_plateau_of_a_rising_metric() {
    let mut optimizer = sgd();
    let scheduler = ReduceLROnPlateau::new(&mut optimizer).mode(PlateauMode::Max).patience(1);
    plateau_is(
        scheduler.clone().threshold(0.1, ThresholdMode::Abs),
        &[0.1, 0.2, 0.25, 0.29, 0.3, 0.3, 0.41, 0.4, 0.4, 0.4],
        &[
            [
                0.1,
                0.1,
                0.1,
                0.1,
                0.010000000000000002,
                0.010000000000000002,
                0.010000000000000002,
                0.010000000000000002,
                0.0010000000000000002,
                0.0010000000000000002,
            ],
            [0.01, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001, 0.0001, 0.0001],
        ],
    );
    plateau_is(
        scheduler.factor(0.3).threshold(0.05, ThresholdMode::Rel),
        &[0.5, 0.51, 0.52, 0.6, 0.6, 0.6, f64::NAN, 0.7],
        &[
            [0.1, 0.1, 0.03, 0.03, 0.03, 0.009, 0.009, 0.009],
            [0.01, 0.01, 0.003, 0.003, 0.003, 0.0009, 0.0009, 0.0009],
        ],
    );
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let mut optimizer = sgd();
    let mut scheduler = StepLR::new(&mut optimizer, 2, 0.5);
    scheduler.step(&mut optimizer);
    let before = scheduler.state_dict();
    for wrong in [
        json!({}),
        json!(7),
        json!({ "last_epoch": -1, "base_lrs": [0.1, 0.1], "_last_lr": [0.1, 0.1] }),
        json!({ "last_epoch": 1, "base_lrs": [0.1], "_last_lr": [0.1] }),
        json!({ "last_epoch": 1, "base_lrs": [0.1, 0.1], "_last_lr": [0.1, true] }),
    ] {
        assert!(scheduler.load_state_dict(&wrong).is_err(), "{wrong}");
        assert_eq!(scheduler.state_dict(), before);
    }
    let mut sequence = SequentialLR::new(&mut optimizer, vec![Box::new(scheduler)], &[]);
    let before = sequence.state_dict();
    let mut wrong = before.clone();
    wrong["_schedulers"][0]["base_lrs"] = json!([]);
    assert!(sequence.load_state_dict(&wrong).is_err());
    assert_eq!(sequence.state_dict(), before);
}

#[test]
#[should_panic(expected = "OneCycleLR: step 4 of a cycle of 3 steps")]
fn one_cycle_lr_ends() {
    let mut optimizer = sgd();
    let mut scheduler = OneCycleLR::new(&mut optimizer, 1.0, 3);
    for _ in 0..4 {
        scheduler.step(&mut optimizer);
    }
}
