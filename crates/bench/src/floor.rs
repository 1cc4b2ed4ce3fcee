//! What the machine could do at best: the bandwidth of memory and the rate of its multiply-add units, measured; and what a case needs
//! at least, counted.

use std::hint::black_box;
use std::time::Instant;

/// What a case cannot do without: multiplications and additions of its matrix products, and bytes that must be read or written once
/// (inputs, outputs, weights; in training all that the optimizer touches).
#[derive(Clone, Copy)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
}

impl Work {
    /// Elementwise operations, reductions, copies: so many f32 numbers read or written.
    pub const fn moved(numbers: usize) -> Work {
        Work { flops: 0.0, bytes: 4.0 * numbers as f64 }
    }

    /// `batch` products `[m, k] x [k, n]`.
    pub const fn matmul(batch: usize, m: usize, k: usize, n: usize) -> Work {
        Work {
            flops: 2.0 * (batch * m * k * n) as f64,
            bytes: 4.0 * (batch * (m * k + k * n + m * n)) as f64,
        }
    }

    /// `softmax(Q Kᵀ) V` of `batch` heads over `length` positions of size `d`.
    pub const fn attention(batch: usize, length: usize, d: usize) -> Work {
        Work { flops: 4.0 * (batch * length * length * d) as f64, bytes: 16.0 * (batch * length * d) as f64 }
    }

    /// A transformer of `layers` blocks `d` wide with a matrix of `head` numbers at its end, forwards over `batch` texts.
    pub const fn transformer(layers: usize, d: usize, head: usize, batch: usize, length: usize) -> Work {
        let weights = layers * 12 * d * d + head;
        let scores = 4 * layers * batch * length * length * d;
        Work { flops: (2 * batch * length * weights + scores) as f64, bytes: 4.0 * weights as f64 }
    }

    /// A training step: forwards and twice as much backwards, then the optimizer, which reads each parameter with its gradient and two
    /// averages and writes all but the gradient; the gradient was written before.
    pub const fn training(self, parameters: usize) -> Work {
        Work { flops: 3.0 * self.flops, bytes: 8.0 * 4.0 * parameters as f64 }
    }

    /// The same, `n` times over.
    pub const fn times(self, n: usize) -> Work {
        Work { flops: self.flops * n as f64, bytes: self.bytes * n as f64 }
    }
}

/// What a machine can do at best.
pub struct Machine {
    /// Bytes read and written per second by a copy that no cache holds.
    pub bandwidth: f64,
    /// f32 multiplications and additions per second of all threads, in registers; none where it cannot be measured.
    pub flops: Option<f64>,
}

impl Machine {
    /// Takes about a second.
    pub fn measure(threads: usize) -> Machine {
        Machine { bandwidth: bandwidth(threads), flops: peak(threads) }
    }

    /// The time below which no program can do this work.
    pub fn floor(&self, work: Work) -> f64 {
        let arithmetic = self.flops.map_or(0.0, |rate| work.flops / rate);
        arithmetic.max(work.bytes / self.bandwidth)
    }
}

fn bandwidth(threads: usize) -> f64 {
    const LEN: usize = 64 << 20;
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..threads).map(|_| (vec![1; LEN], vec![2; LEN])).collect();
    let seconds = best_of(8, || {
        std::thread::scope(|scope| {
            for (from, to) in &mut pairs {
                scope.spawn(|| black_box(to).copy_from_slice(black_box(from)));
            }
        });
    });
    (2 * threads * LEN) as f64 / seconds
}

fn best_of(runs: usize, mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// Independent multiply-adds in registers: enough of them that neither the unit's latency nor memory shows.
#[cfg(target_arch = "x86_64")]
fn peak(threads: usize) -> Option<f64> {
    use std::arch::x86_64::*;
    const ROUNDS: usize = 2_000_000;
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    fn avx512() {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [a; CHAINS];
        for _ in 0..ROUNDS {
            for s in &mut sums {
                *s = _mm512_fmadd_ps(*s, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2() {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [a; CHAINS];
        for _ in 0..ROUNDS {
            for s in &mut sums {
                *s = _mm256_fmadd_ps(*s, a, b);
            }
        }
        black_box(sums);
    }

    let (lanes, work): (usize, fn()) = if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there.
        (16, || unsafe { avx512() })
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the instructions are there.
        (8, || unsafe { avx2() })
    } else {
        return None;
    };
    let seconds = best_of(8, || {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
    });
    Some((threads * ROUNDS * CHAINS * lanes * 2) as f64 / seconds)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_threads: usize) -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_arithmetic_and_memory_sets_the_floor() {
        let machine = Machine { bandwidth: 1e9, flops: Some(1e12) };
        assert_eq!(machine.floor(Work::moved(250_000_000)), 1.0);
        // 2 * 1000³ operations at 1e12 a second take 2 ms, 12 MB at 1e9 a second 12 ms.
        assert_eq!(machine.floor(Work::matmul(1, 1000, 1000, 1000)), 0.012);
        let faster = Machine { bandwidth: 1e11, flops: Some(1e12) };
        assert_eq!(faster.floor(Work::matmul(1, 1000, 1000, 1000)), 0.002);
    }

    #[test]
    fn a_training_step_is_three_passes_and_eight_numbers_per_parameter() {
        let step = Work::matmul(1, 10, 10, 10).training(100);
        assert_eq!((step.flops, step.bytes), (6000.0, 3200.0));
    }
}
