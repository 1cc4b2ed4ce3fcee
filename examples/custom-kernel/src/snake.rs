//! An operation of one's own.

use orkest::prelude::*;
use orkest::{Element, Function, Kernel};

/// `snake(x) = x + sin²(a x) / a`: an activation that grows like `x` and bends like a sine, so that networks learn what is periodic
/// (Ziyin, Hartwig and Ueda, 2020).
pub struct Snake {
    pub a: f32,
}

impl Function for Snake {
    fn name(&self) -> &'static str {
        "snake"
    }

    fn forward(&self, inputs: &[Tensor]) -> Tensor {
        let (x, a) = (&inputs[0], self.a);
        Kernel::new("snake")
            .cpu(move |inputs, y: &mut [f32]| snake(a, inputs[0].of(), y))
            .cpu(move |inputs, y: &mut [f64]| snake(a, inputs[0].of(), y))
            .wgsl(include_str!("snake.wgsl"))
            .param(a)
            .run(&[x], *x.shape(), x.dtype())
    }

    // snake'(x) = 1 + sin(2 a x)
    fn backward(&self, inputs: &[Tensor], _output: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(grad * ((&inputs[0] * (2.0 * self.a)).sin() + 1.0))]
    }
}

fn snake<T: Element>(a: f32, x: &[T], y: &mut [T]) {
    let a = f64::from(a);
    for (y, x) in y.iter_mut().zip(x) {
        let x = x.to_f64();
        *y = T::from_f64(x + (a * x).sin().powi(2) / a);
    }
}
