//! Counter-based random numbers: Philox 4x32-10, the same on every backend.

use crate::chunks::{self, GRAIN_MATH, Stored};
use crate::math::Float;
use crate::simd::simd_fn;
use orkest_core::op::RandomKind;
use orkest_core::random::philox;
use orkest_core::{DType, Element, Error, Output, Result, View, bf16, f16, with_dtype};

/// Counters computed side by side: one per lane of the widest vector.
const LANES: usize = 16;
const WORDS: usize = 4 * LANES;

simd_fn! {
    /// The words of `LANES` counters from `counter` on: `orkest_core::random::philox::philox`, many at a time.
    fn block<S: Simd>(seed: u64, counter: u64, words: &mut [u32; WORDS]) {
        let mut x = [[0u32; LANES]; 4];
        for lane in 0..LANES {
            let counter = counter.wrapping_add(lane as u64);
            x[0][lane] = counter as u32;
            x[1][lane] = (counter >> 32) as u32;
        }
        let mut key = [seed as u32, (seed >> 32) as u32];
        for _ in 0..10 {
            for lane in 0..LANES {
                let a = x[0][lane] as u64 * 0xd251_1f53;
                let b = x[2][lane] as u64 * 0xcd9e_8d57;
                x[0][lane] = (b >> 32) as u32 ^ x[1][lane] ^ key[0];
                x[1][lane] = b as u32;
                x[2][lane] = (a >> 32) as u32 ^ x[3][lane] ^ key[1];
                x[3][lane] = a as u32;
            }
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        for lane in 0..LANES {
            for word in 0..4 {
                words[lane * 4 + word] = x[word][lane];
            }
        }
    }
}

/// Calls `f` with the words of elements `start..start + len`, some at a time, and where they begin in that range.
fn words(seed: u64, offset: u64, start: usize, len: usize, mut f: impl FnMut(usize, &[u32])) {
    let mut words = [0; WORDS];
    let mut done = 0;
    while done < len {
        let element = start + done;
        block(seed, offset.wrapping_add(element as u64 / 4), &mut words);
        let skip = element % 4;
        let count = (WORDS - skip).min(len - done);
        f(done, &words[skip..skip + count]);
        done += count;
    }
}

/// [`orkest_core::Op::Random`]
pub(crate) fn random(kind: RandomKind, seed: u64, offset: u64, outputs: &mut [Output]) -> Result<()> {
    with_dtype!(outputs[0].dtype, T => chunks::map0::<T>(&outputs[0], GRAIN_MATH, |start, y| {
        words(seed, offset, start, y.len(), |at, words| {
            for (y, word) in y[at..].iter_mut().zip(words) {
                let uniform = philox::uniform(*word) as f64;
                *y = match kind {
                    RandomKind::Uniform => Element::from_f64(uniform),
                    RandomKind::Bernoulli(p) => Element::from_i64((uniform < p) as i64),
                };
            }
        });
    }))
}

simd_fn! {
    fn drop_some<S: Simd, T: Float>(words: &[u32], keep: f64, scale: T, x: &[T], y: &mut [T]) {
        for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
            // A product, not a choice: what is not finite must not disappear.
            *y = *x * if (philox::uniform(*word) as f64) < keep { scale } else { T::ZERO };
        }
    }
}

/// [`orkest_core::Op::Dropout`]
pub(crate) fn dropout(
    p: f64,
    seed: u64,
    offset: u64,
    inputs: &[View<'_>],
    outputs: &mut [Output],
) -> Result<()> {
    match inputs[0].dtype {
        DType::F32 => dropout_of::<f32>(p, seed, offset, &inputs[0], outputs),
        DType::F64 => dropout_of::<f64>(p, seed, offset, &inputs[0], outputs),
        DType::F16 => dropout_of::<f16>(p, seed, offset, &inputs[0], outputs),
        DType::BF16 => dropout_of::<bf16>(p, seed, offset, &inputs[0], outputs),
        dtype => Err(Error::Unsupported { op: "dropout".into(), dtype, device: "cpu".into() }),
    }
}

fn dropout_of<T: Stored<Compute: Float>>(
    p: f64,
    seed: u64,
    offset: u64,
    x: &View<'_>,
    y: &[Output],
) -> Result<()> {
    let keep = 1.0 - p;
    let scale = T::Compute::from_f64(1.0 / keep);
    chunks::map1_at::<T, T>(x, y, GRAIN_MATH, |start, x, y| {
        words(seed, offset, start, y.len(), |at, words| {
            drop_some(words, keep, scale, &x[at..], &mut y[at..]);
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::for_each_level;

    #[test]
    fn blocks_are_the_generator_of_core() {
        for_each_level(|_| {
            for (seed, offset) in [(0, 0), (0x1234_5678_9abc_def0, u64::MAX - 3), (7, (1 << 32) - 2)] {
                for (start, len) in [(0, 300), (3, 1), (5, 70), (1024, 64)] {
                    words(seed, offset, start, len, |at, words| {
                        for (i, word) in words.iter().enumerate() {
                            assert_eq!(
                                *word,
                                philox::word(seed, offset, start + at + i),
                                "{seed} {offset} {start}"
                            );
                        }
                    });
                }
            }
        });
    }
}
