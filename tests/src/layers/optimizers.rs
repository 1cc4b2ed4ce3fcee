//! The optimizers of `parity/optimizer_cases.py`.

use super::{one, steps};
use crate::operations::{Call, Operation};
use orkest_core::{Param, Tensor};
use orkest_nn::optim::*;

pub(super) const ALL: &[(&str, Operation)] = &[
    ("RMSprop", |c| steps(c, |groups, lr| Box::new(RMSprop::new(groups, lr)))),
    ("Adagrad", |c| steps(c, |groups, lr| Box::new(Adagrad::new(groups, lr)))),
    ("Adadelta", |c| steps(c, |groups, lr| Box::new(Adadelta::new(groups, lr)))),
    ("ASGD", |c| steps(c, |groups, lr| Box::new(ASGD::new(groups, lr)))),
    ("Adamax", |c| steps(c, |groups, lr| Box::new(Adamax::new(groups, lr)))),
    ("NAdam", |c| steps(c, |groups, lr| Box::new(NAdam::new(groups, lr)))),
    ("RAdam", |c| steps(c, |groups, lr| Box::new(RAdam::new(groups, lr)))),
    ("Rprop", |c| steps(c, |groups, lr| Box::new(Rprop::new(groups, lr)))),
    ("Lion", |c| steps(c, |groups, lr| Box::new(Lion::new(groups, lr)))),
    ("Adafactor", |c| steps(c, |groups, lr| Box::new(Adafactor::new(groups, lr)))),
    ("Muon", |c| steps(c, |groups, lr| Box::new(Muon::new(groups, lr)))),
    ("LBFGS", lbfgs),
];

/// Parameters and loss after each of four steps of a regression.
fn lbfgs(c: &Call<'_>) -> Vec<Tensor> {
    let (x, y) = (c.x(0), c.x(1));
    let (weight, bias) = (Param::new(c.x(2).copy()), Param::new(c.x(3).copy()));
    let maximize = c.flag("maximize");
    let mut optimizer = LBFGS::new([weight.clone(), bias.clone()], c.float("lr"))
        .max_iter(c.size("max_iter"))
        .history_size(c.size("history_size"))
        .maximize(maximize);
    if c.flag("strong_wolfe") {
        optimizer = optimizer.line_search_fn(LineSearch::StrongWolfe);
    }
    let mut row = || {
        let loss = optimizer.step(|| {
            weight.zero_grad();
            bias.zero_grad();
            let error = x.matmul(&weight.tensor()) + bias.tensor() - y;
            let loss = (error.square() + 1.0).sqrt().mean(..) + weight.tensor().square().sum(..) * 0.1;
            let loss = if maximize { -loss } else { loss };
            loss.backward();
            loss
        });
        Tensor::cat(&[weight.value().copy(), bias.value().copy(), loss.unwrap().detach().reshape(1)], 0)
    };
    one(Tensor::stack(&[row(), row(), row(), row()], 0))
}
