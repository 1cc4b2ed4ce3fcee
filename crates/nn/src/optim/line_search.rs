//! A line search for the strong Wolfe conditions (Nocedal & Wright, Numerical Optimization, section 3.5), as PyTorch's L-BFGS has it.
//!
//! It looks for a step that lowers the loss enough for its length (Armijo) and flattens the slope enough. First steps grow until two
//! of them have such a step between them, then that bracket shrinks.

use orkest_core::{Result, Tensor};

/// The share of the first slope that the loss must fall by, per unit of step.
const DECREASE: f64 = 1e-4;
/// The share of the first slope that may remain.
const FLATNESS: f64 = 0.9;
/// A bracket in which no coordinate differs by more is not worth searching.
const TOLERANCE: f64 = 1e-9;

/// What is known after a step of length `t` along the direction.
#[derive(Clone)]
pub(super) struct Point {
    pub t: f64,
    pub loss: f64,
    pub grad: Tensor,
    /// The derivative of the loss by `t`.
    pub slope: f64,
}

/// Searches from `start` (`t = 0`), first at `t`. `reach` is the largest coordinate of the direction. The point found, and how often
/// `evaluate` was called; at most `max_steps` times more after the first.
pub(super) fn strong_wolfe(
    mut evaluate: impl FnMut(f64) -> Result<Point>,
    start: &Point,
    t: f64,
    reach: f64,
    max_steps: usize,
) -> Result<(Point, usize)> {
    let too_high = |p: &Point| p.loss > start.loss + DECREASE * p.t * start.slope;
    let flat = |p: &Point| p.slope.abs() <= -FLATNESS * start.slope;

    let mut steps = 0;
    let mut previous = start.clone();
    let mut point = evaluate(t)?;
    let mut bracket = loop {
        if steps >= max_steps {
            break [start.clone(), point];
        }
        if too_high(&point) || steps > 1 && point.loss >= previous.loss {
            break [previous, point];
        }
        if flat(&point) {
            return Ok((point, steps + 1));
        }
        if point.slope >= 0.0 {
            break [previous, point];
        }
        let limits = (point.t + 0.01 * (point.t - previous.t), point.t * 10.0);
        let t = cubic_minimum(&previous, &point, limits);
        previous = point;
        point = evaluate(t)?;
        steps += 1;
    };

    // Which end of the bracket is the lower one.
    let lower = |ends: &[Point; 2]| if ends[0].loss <= ends[1].loss { (0, 1) } else { (1, 0) };
    let (mut low, mut high) = lower(&bracket);
    let mut stuck = false;
    while steps < max_steps {
        let (left, right) = (bracket[0].t.min(bracket[1].t), bracket[0].t.max(bracket[1].t));
        if (right - left) * reach < TOLERANCE {
            break;
        }
        let mut t = cubic_minimum(&bracket[0], &bracket[1], (left, right));
        // A minimum near an end, for the second time or right at it: move a tenth of the bracket away, lest it hardly shrinks.
        let margin = 0.1 * (right - left);
        let near = (right - t).min(t - left) < margin;
        let move_away = near && (stuck || t >= right || t <= left);
        if move_away {
            t = if (t - right).abs() < (t - left).abs() { right - margin } else { left + margin };
        }
        stuck = near && !move_away;

        let point = evaluate(t)?;
        steps += 1;
        if too_high(&point) || point.loss >= bracket[low].loss {
            bracket[high] = point;
            (low, high) = lower(&bracket);
            continue;
        }
        let done = flat(&point);
        if !done && point.slope * (bracket[high].t - bracket[low].t) >= 0.0 {
            bracket[high] = bracket[low].clone();
        }
        bracket[low] = point;
        if done {
            break;
        }
    }
    let [first, second] = bracket;
    Ok((if low == 0 { first } else { second }, steps + 1))
}

/// Where the cubic through two points with their slopes is lowest, within limits; their middle if it has no minimum.
fn cubic_minimum(a: &Point, b: &Point, (least, most): (f64, f64)) -> f64 {
    let d1 = a.slope + b.slope - 3.0 * (a.loss - b.loss) / (a.t - b.t);
    let d2_square = d1 * d1 - a.slope * b.slope;
    if d2_square.is_nan() || d2_square < 0.0 {
        return (least + most) / 2.0;
    }
    let d2 = d2_square.sqrt();
    let (left, right) = if a.t <= b.t { (a, b) } else { (b, a) };
    let share = (right.slope + d2 - d1) / (right.slope - left.slope + 2.0 * d2);
    (right.t - (right.t - left.t) * share).max(least).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest_core::tensor;

    fn search(f: impl Fn(f64) -> (f64, f64), t: f64) -> (Point, usize) {
        let at = |t: f64| {
            let (loss, slope) = f(t);
            Point { t, loss, slope, grad: tensor![0.0] }
        };
        strong_wolfe(|t| Ok(at(t)), &at(0.0), t, 1.0, 25).unwrap()
    }

    #[test]
    fn both_conditions_hold_where_it_stops() {
        // A valley at t = 3, a wiggly one, and a first step that is far too long.
        let cases: [(fn(f64) -> (f64, f64), f64); 3] = [
            (|t| ((t - 3.0).powi(2), 2.0 * (t - 3.0)), 0.01),
            (
                |t| {
                    (
                        -(t + (3.0 * t).sin()) / (1.0 + t * t),
                        slope(|t| -(t + (3.0 * t).sin()) / (1.0 + t * t), t),
                    )
                },
                1.0,
            ),
            (|t| ((t - 0.1).powi(4), 4.0 * (t - 0.1).powi(3)), 50.0),
        ];
        for (f, first) in cases {
            let (point, evaluations) = search(f, first);
            let ((loss, descent), (found, remaining)) = (f(0.0), f(point.t));
            assert!(found <= loss + DECREASE * point.t * descent, "t = {}", point.t);
            assert!(remaining.abs() <= -FLATNESS * descent, "t = {}", point.t);
            assert!(evaluations <= 26);
        }
    }

    fn slope(f: fn(f64) -> f64, t: f64) -> f64 {
        (f(t + 1e-6) - f(t - 1e-6)) / 2e-6
    }
}
