//! Draws digits with a shaky hand: strokes on a slanted, shifted, stretched sheet, with a pen of varying width and a little dirt.

use crate::data::{Pictures, SIZE};
use anyhow::Result;
use orkest::{DType, Device, Tensor};
use std::f32::consts::PI;

type Point = [f32; 2];

/// Random numbers that a picture takes before its dirt.
const NUMBERS: usize = 8;

/// `count` pictures of random digits.
pub fn draw(count: usize) -> Result<Pictures> {
    let cpu = Device::cpu();
    let labels = Tensor::randint(0, 10, count, &cpu);
    let numbers = Tensor::uniform([count, NUMBERS], -1.0, 1.0, &cpu).to_vec::<f32>()?;
    let dirt = Tensor::randn([count, SIZE, SIZE], &cpu) * 25.0;
    let digits = labels.to_vec::<i64>()?;
    let ink: Vec<f32> =
        digits.iter().zip(numbers.chunks(NUMBERS)).flat_map(|(&d, n)| picture(d, n)).collect();
    let ink = Tensor::from_slice(&ink, [count, SIZE, SIZE], &cpu) + dirt;
    Ok(Pictures { ink: ink.clamp(0.0, 255.0).to_dtype(DType::U8), labels })
}

/// The ink of a digit, written as these numbers between -1 and 1 say.
fn picture(digit: i64, numbers: &[f32]) -> Vec<f32> {
    let [turn, slant, wide, high, right, down, width, bend] = numbers.try_into().expect("as many as NUMBERS");
    let (sin, cos) = (0.3 * turn).sin_cos();
    let place = |[x, y]: Point| {
        let (x, y) = (x + 0.12 * bend * (4.0 * y).sin(), y + 0.1 * bend * (4.0 * x).cos());
        let (x, y) = (x * (1.0 + 0.35 * wide) + y * 0.4 * slant, y * (0.9 + 0.25 * high));
        let middle = SIZE as f32 / 2.0;
        [middle + 10.0 * (x * cos - y * sin) + 2.5 * right, middle + 10.0 * (x * sin + y * cos) + 2.5 * down]
    };
    let lines: Vec<[Point; 2]> = strokes(digit)
        .iter()
        .flat_map(|stroke| stroke.windows(2).map(|ends| [place(ends[0]), place(ends[1])]).collect::<Vec<_>>())
        .collect();
    let radius = 1.2 + 0.6 * width;
    let ink = |i: usize| {
        let at = [(i % SIZE) as f32 + 0.5, (i / SIZE) as f32 + 0.5];
        let nearest = lines.iter().map(|line| distance(at, *line)).fold(f32::INFINITY, f32::min);
        255.0 * (radius + 0.5 - nearest).clamp(0.0, 1.0)
    };
    (0..SIZE * SIZE).map(ink).collect()
}

/// From a point to a line between two.
fn distance(at: Point, [a, b]: [Point; 2]) -> f32 {
    let (along, to) = ([b[0] - a[0], b[1] - a[1]], [at[0] - a[0], at[1] - a[1]]);
    let length = along[0] * along[0] + along[1] * along[1];
    let t = ((to[0] * along[0] + to[1] * along[1]) / length.max(1e-6)).clamp(0.0, 1.0);
    (to[0] - t * along[0]).hypot(to[1] - t * along[1])
}

/// A digit in a box from -0.6 to 0.6 and, downwards, from -0.9 to 0.9.
fn strokes(digit: i64) -> Vec<Vec<Point>> {
    match digit {
        0 => vec![arc([0.0, 0.0], [0.5, 0.85], 0.0, 2.0)],
        1 => vec![vec![[-0.3, -0.5], [0.05, -0.85], [0.05, 0.85]]],
        2 => vec![[arc([0.0, -0.4], [0.48, 0.45], -1.0, 0.2), vec![[-0.5, 0.85], [0.55, 0.85]]].concat()],
        3 => vec![
            [arc([-0.05, -0.43], [0.45, 0.42], -0.9, 0.5), arc([-0.05, 0.42], [0.52, 0.43], -0.5, 0.9)]
                .concat(),
        ],
        4 => vec![vec![[0.1, -0.85], [-0.55, 0.25], [0.55, 0.25]], vec![[0.25, -0.2], [0.25, 0.85]]],
        5 => vec![
            [vec![[0.5, -0.85], [-0.35, -0.85], [-0.42, -0.1]], arc([-0.02, 0.3], [0.5, 0.52], -0.7, 0.85)]
                .concat(),
        ],
        6 => vec![[vec![[0.3, -0.85], [-0.2, -0.4]], arc([0.0, 0.35], [0.45, 0.48], -1.0, 1.05)].concat()],
        7 => vec![vec![[-0.5, -0.8], [0.5, -0.8], [-0.1, 0.85]]],
        8 => vec![arc([0.0, -0.43], [0.38, 0.4], 0.0, 2.0), arc([0.0, 0.42], [0.47, 0.44], 0.0, 2.0)],
        _ => vec![[arc([0.0, -0.35], [0.45, 0.46], 0.0, 2.0), vec![[0.4, 0.2], [0.2, 0.85]]].concat()],
    }
}

/// A part of an ellipse, clockwise, between two angles in units of π; 0 is on the right.
fn arc(centre: Point, radius: Point, from: f32, to: f32) -> Vec<Point> {
    let steps = 16;
    (0..=steps)
        .map(|i| {
            let (sin, cos) = (PI * (from + (to - from) * i as f32 / steps as f32)).sin_cos();
            [centre[0] + radius[0] * cos, centre[1] + radius[1] * sin]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest::manual_seed;

    #[test]
    fn the_same_seed_draws_the_same_pictures() {
        let pictures = |seed| {
            manual_seed(seed);
            let drawn = draw(3).unwrap();
            (drawn.ink.to_vec::<u8>().unwrap(), drawn.labels.to_vec::<i64>().unwrap())
        };
        assert_eq!(pictures(1), pictures(1));
        assert_ne!(pictures(1), pictures(2));
    }

    #[test]
    fn no_two_digits_look_alike() {
        let plain: Vec<Vec<f32>> = (0..10).map(|digit| picture(digit, &[0.0; NUMBERS])).collect();
        for (i, a) in plain.iter().enumerate() {
            for b in &plain[..i] {
                let different = a.iter().zip(b).filter(|(a, b)| (*a - *b).abs() > 128.0).count();
                assert!(different > 20, "{different} pixels tell two digits apart");
            }
        }
    }
}
