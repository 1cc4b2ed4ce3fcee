//! Random numbers: PyTorch's CPU stream on the host, counter-based Philox for the devices.
//!
//! [`Generator`] draws the numbers `torch.manual_seed` leads to on the CPU (MT19937), so that a run can be compared with
//! PyTorch seed for seed. Random operations that run on a device ask it only for a seed and an offset and count from
//! there with [`philox`], so that a mask is the same on every backend and can be drawn again in the backward pass.
//!
//! This file knows nothing of tensors.

use std::cell::RefCell;
use std::f64::consts::TAU;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Words in the state of MT19937.
const WORDS: usize = 624;

/// Everything a [`Generator`] remembers, as plain data that can be saved and restored.
#[derive(Clone, PartialEq, Debug)]
pub struct GeneratorState {
    /// The seed the generator started from; also the key of its Philox stream.
    pub seed: u64,
    /// The state of MT19937.
    pub words: [u32; WORDS],
    /// How many of `words` have been handed out; all of them if 624 or more.
    pub position: u32,
    /// The second half of a normal pair, waiting for the next draw of fewer than 16 normal numbers.
    pub next_normal: Option<f64>,
    /// The next unused counter of the Philox stream.
    pub philox_offset: u64,
}

/// A source of random numbers: a value that can be copied, saved and restored.
///
/// ```
/// use orkest_core::random::Generator;
/// let mut generator = Generator::new(0);
/// assert_eq!(generator.uniform_f32(0.0, 1.0), 0.49625659); // torch.manual_seed(0); torch.rand(1)
/// assert_eq!(Generator::new(0).randperm(10), [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]);
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Generator {
    state: GeneratorState,
}

impl Default for Generator {
    /// Seeded as `torch.Generator()` is.
    fn default() -> Generator {
        Generator::new(67_280_421_310_721)
    }
}

impl Generator {
    /// The generator of `torch.manual_seed(seed)`. As there, only the low 32 bits of the seed reach the host stream.
    pub fn new(seed: u64) -> Generator {
        let mut words = [0; WORDS];
        words[0] = seed as u32;
        for i in 1..WORDS {
            let last = words[i - 1];
            words[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let state =
            GeneratorState { seed, words, position: WORDS as u32, next_normal: None, philox_offset: 0 };
        Generator { state }
    }

    /// The seed this generator started from.
    pub fn initial_seed(&self) -> u64 {
        self.state.seed
    }

    /// A copy of the whole state, host and device streams.
    pub fn state(&self) -> GeneratorState {
        self.state.clone()
    }

    /// Continues from a state taken earlier.
    pub fn set_state(&mut self, state: GeneratorState) {
        self.state = state;
    }

    /// The next 32 bits.
    #[inline]
    pub fn random_u32(&mut self) -> u32 {
        if self.state.position as usize >= WORDS {
            self.refill();
        }
        let word = self.state.words[self.state.position as usize];
        self.state.position += 1;
        temper(word)
    }

    /// The next 64 bits: the first word drawn is the high one.
    #[inline]
    pub fn random_u64(&mut self) -> u64 {
        let high = self.random_u32();
        let low = self.random_u32();
        u64::from(high) << 32 | u64::from(low)
    }

    /// The recurrence of MT19937 over the whole state. In three loops, whose bodies have no wrapping indices: they vectorise.
    #[inline(always)]
    fn refill(&mut self) {
        const MIDDLE: usize = 397;
        let words = &mut self.state.words;
        let twisted = |word: u32, next: u32| {
            let y = (word & 0x8000_0000) | (next & 0x7fff_ffff);
            (y >> 1) ^ (0x9908_b0df & (y & 1).wrapping_neg())
        };
        for i in 0..WORDS - MIDDLE {
            words[i] = words[i + MIDDLE] ^ twisted(words[i], words[i + 1]);
        }
        for i in WORDS - MIDDLE..WORDS - 1 {
            words[i] = words[i + MIDDLE - WORDS] ^ twisted(words[i], words[i + 1]);
        }
        words[WORDS - 1] = words[MIDDLE - 1] ^ twisted(words[WORDS - 1], words[0]);
        self.state.position = 0;
    }

    /// Fills `out` with what `number` makes of one random word each.
    #[inline(always)]
    fn fill<T>(&mut self, out: &mut [T], number: impl Fn(u32) -> T) {
        let mut rest = out;
        while !rest.is_empty() {
            if self.state.position as usize >= WORDS {
                self.refill();
            }
            let words = &self.state.words[self.state.position as usize..];
            let len = words.len().min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            for (to, word) in now.iter_mut().zip(words) {
                *to = number(temper(*word));
            }
            self.state.position += len as u32;
            rest = later;
        }
    }

    /// Even over `[from, to)`, with 24 random bits.
    #[inline]
    pub fn uniform_f32(&mut self, from: f32, to: f32) -> f32 {
        uniform(self.random_u32(), from, to)
    }

    /// Even over `[from, to)`, with 53 random bits.
    #[inline]
    pub fn uniform_f64(&mut self, from: f64, to: f64) -> f64 {
        let x = (self.random_u64() & ((1 << 53) - 1)) as f64 * (1.0 / (1_u64 << 53) as f64);
        x.mul_add(to - from, from)
    }

    /// `torch.Tensor.uniform_` on f32.
    pub fn fill_uniform_f32(&mut self, out: &mut [f32], from: f32, to: f32) {
        fill_uniform(self, out, from, to);
    }

    /// `torch.Tensor.uniform_` on f64.
    pub fn fill_uniform_f64(&mut self, out: &mut [f64], from: f64, to: f64) {
        out.fill_with(|| self.uniform_f64(from, to));
    }

    /// `torch.Tensor.normal_` on f32.
    pub fn fill_normal_f32(&mut self, out: &mut [f32], mean: f64, std: f64) {
        if out.len() < 16 {
            out.fill_with(|| self.normal(mean, std) as f32);
            return;
        }
        fill_normal(self, out, mean as f32, std as f32);
    }

    /// `torch.Tensor.normal_` on f64.
    pub fn fill_normal_f64(&mut self, out: &mut [f64], mean: f64, std: f64) {
        if out.len() < 16 {
            out.fill_with(|| self.normal(mean, std));
            return;
        }
        fill_blocks(
            out,
            |out| out.fill_with(|| self.uniform_f64(0.0, 1.0)),
            |a, b| {
                let radius = (-2.0 * (1.0 - a).ln()).sqrt();
                let (sin, cos) = (TAU * b).sin_cos();
                ((radius * cos).mul_add(std, mean), (radius * sin).mul_add(std, mean))
            },
        );
    }

    /// One normal number by Box and Muller's method in f64. Every second one comes from the pair computed before, even
    /// across calls and dtypes.
    pub fn normal(&mut self, mean: f64, std: f64) -> f64 {
        let standard = self.state.next_normal.take().unwrap_or_else(|| {
            let angle = TAU * self.uniform_f64(0.0, 1.0);
            let radius = (-2.0 * (-self.uniform_f64(0.0, 1.0)).ln_1p()).sqrt();
            self.state.next_normal = Some(radius * angle.sin());
            radius * angle.cos()
        });
        standard.mul_add(std, mean)
    }

    /// The numbers `0..n` in random order: `torch.randperm`.
    pub fn randperm(&mut self, n: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..n as i64).collect();
        if n < (u32::MAX / 20) as usize {
            for i in 0..n.saturating_sub(1) {
                order.swap(i, i + self.random_u32() as usize % (n - i));
            }
        } else {
            // So long that the modulus of 32 bits would show; PyTorch then also builds the order from the other end.
            for i in 0..n {
                let other = (self.random_u64() % (i as u64 + 1)) as usize;
                order[i] = order[other];
                order[other] = i as i64;
            }
        }
        order
    }

    /// `n` integers, each of `low..high` equally likely: `torch.randint`.
    ///
    /// # Panics
    /// If `low` is not below `high`.
    #[track_caller]
    pub fn randint(&mut self, low: i64, high: i64, n: usize) -> Vec<i64> {
        assert!(low < high, "randint: low must be less than high, got {low} and {high}");
        let range = high.wrapping_sub(low) as u64;
        // PyTorch's threshold for 64 random bits: the modulus of 32 would favour small numbers by up to 5 %.
        let long = range >= 1 << 28;
        let mut draw = || if long { self.random_u64() } else { u64::from(self.random_u32()) };
        (0..n).map(|_| low.wrapping_add((draw() % range) as i64)).collect()
    }

    /// True with probability `p`.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        self.uniform_f64(0.0, 1.0) < p
    }

    /// A waiting time with mean `1 / lambda`.
    pub fn exponential(&mut self, lambda: f64) -> f64 {
        -1.0 / lambda * (-self.uniform_f64(0.0, 1.0)).ln_1p()
    }

    /// Reserves the Philox counters of `numel` elements, four to a counter, and returns the key and the first counter.
    pub fn philox_offset(&mut self, numel: usize) -> (u64, u64) {
        let offset = self.state.philox_offset;
        self.state.philox_offset = offset.wrapping_add(numel.div_ceil(4) as u64);
        (self.state.seed, offset)
    }
}

/// What MT19937 makes of a word of its state before it hands it out.
#[inline(always)]
fn temper(word: u32) -> u32 {
    let mut y = word;
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    y ^ (y >> 18)
}

/// A random word as a number of `[from, to)`.
#[inline(always)]
fn uniform(word: u32, from: f32, to: f32) -> f32 {
    let x = (word & 0x00ff_ffff) as i32 as f32 * (1.0 / (1 << 24) as f32);
    // PyTorch's compiler fuses this product and sum; rounding twice differs in every other number.
    x.mul_add(to - from, from)
}

/// PyTorch's layout for 16 and more normal numbers: uniform ones everywhere, then in every block of 16 the pairs
/// `(j, j + 8)` transformed. What does not fill a block is covered by a last block drawn anew, which overwrites the
/// tail of the one before.
#[inline(always)]
fn fill_blocks<T: Copy>(
    out: &mut [T],
    mut uniform: impl FnMut(&mut [T]),
    transform: impl Fn(T, T) -> (T, T),
) {
    let transform_block = |block: &mut [T]| {
        let (first, second) = block.split_at_mut(8);
        for (a, b) in first.iter_mut().zip(second) {
            (*a, *b) = transform(*a, *b);
        }
    };
    // In pieces that the first-level cache holds until they are transformed.
    let whole = out.len() / 16 * 16;
    let (blocks, rest) = out.split_at_mut(whole);
    for piece in blocks.chunks_mut(2048) {
        uniform(piece);
        piece.chunks_exact_mut(16).for_each(transform_block);
    }
    if !rest.is_empty() {
        uniform(rest);
        let last = out.len() - 16;
        let last = &mut out[last..];
        uniform(last);
        transform_block(last);
    }
}

/// Defines functions that are compiled twice: also for vectors and fused multiply-adds, without which `mul_add` is a call. The machine
/// decides which of them runs; what they compute is the same.
macro_rules! vectorised {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $body:block)*) => {$(
        fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    body($($arg),*);
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: these instructions have just been found.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*);
        }
    )*};
}

vectorised! {
    fn fill_uniform(generator: &mut Generator, out: &mut [f32], from: f32, to: f32) {
        generator.fill(out, |word| uniform(word, from, to));
    }

    fn fill_normal(generator: &mut Generator, out: &mut [f32], mean: f32, std: f32) {
        fill_blocks(
            out,
            |out| generator.fill(out, |word| uniform(word, 0.0, 1.0)),
            |a, b| {
                let radius = (-2.0 * cephes::ln(1.0 - a)).sqrt();
                let (sin, cos) = cephes::sin_cos(TAU as f32 * b);
                ((radius * cos).mul_add(std, mean), (radius * sin).mul_add(std, mean))
            },
        );
    }
}

/// The process-wide generator. As in PyTorch it starts from a seed nobody chose: whoever wants the same numbers twice
/// calls [`manual_seed`].
static DEFAULT: LazyLock<Mutex<Generator>> =
    LazyLock::new(|| Mutex::new(Generator::new(RandomState::new().build_hasher().finish())));

thread_local! {
    /// What [`with_generator`] put in the place of the default generator, on this thread.
    static REPLACEMENT: RefCell<Option<Generator>> = const { RefCell::new(None) };
}

/// Restarts the default generator, host and device streams, from `seed`: `torch.manual_seed`.
///
/// ```
/// use orkest_core::random::{manual_seed, rng_state, set_rng_state, with_default_generator};
/// manual_seed(42);
/// assert_eq!(with_default_generator(|g| g.randint(-7, 1000, 3)), [350, 652, 555]); // as torch.randint
/// let state = rng_state();
/// assert_eq!(with_default_generator(|g| g.randint(-7, 1000, 3)), [824, 774, 45]);
/// set_rng_state(state);
/// assert_eq!(with_default_generator(|g| g.randint(-7, 1000, 3)), [824, 774, 45]);
/// ```
pub fn manual_seed(seed: u64) {
    with_default_generator(|g| *g = Generator::new(seed));
}

/// The state of the default generator, host and device streams.
pub fn rng_state() -> GeneratorState {
    with_default_generator(|g| g.state())
}

/// Lets the default generator continue from a state taken earlier with [`rng_state`].
pub fn set_rng_state(state: GeneratorState) {
    with_default_generator(|g| g.set_state(state));
}

/// Runs `draw` with the default generator, which is locked meanwhile: `draw` must not ask for it again.
pub fn with_default_generator<R>(draw: impl FnOnce(&mut Generator) -> R) -> R {
    REPLACEMENT.with_borrow_mut(|replacement| match replacement {
        Some(generator) => draw(generator),
        // A panic while drawing leaves numbers half used up, never a broken generator.
        None => draw(&mut DEFAULT.lock().unwrap_or_else(PoisonError::into_inner)),
    })
}

/// Runs `f` with `generator` in the place of the default generator on this thread: whatever `f` draws comes from there, and the
/// process-wide stream stays where it is.
///
/// ```
/// use orkest_core::random::{Generator, manual_seed, rng_state, with_default_generator, with_generator};
/// manual_seed(0);
/// let before = rng_state();
/// let mut mine = Generator::new(42);
/// let drawn = with_generator(&mut mine, || with_default_generator(|g| g.randint(-7, 1000, 3)));
/// assert_eq!(drawn, [350, 652, 555]); // torch.manual_seed(42); torch.randint(-7, 1000, (3,))
/// assert_eq!(rng_state(), before);
/// ```
pub fn with_generator<R>(generator: &mut Generator, f: impl FnOnce() -> R) -> R {
    /// Gives both generators back, also if `f` panics.
    struct Swapped<'a> {
        generator: &'a mut Generator,
        outer: Option<Generator>,
    }
    impl Drop for Swapped<'_> {
        fn drop(&mut self) {
            if let Some(used) = REPLACEMENT.replace(self.outer.take()) {
                *self.generator = used;
            }
        }
    }
    let outer = REPLACEMENT.replace(Some(generator.clone()));
    let _swapped = Swapped { generator, outer };
    f()
}

#[allow(clippy::excessive_precision)] // coefficients as published
mod cephes {
    //! Logarithm, sine and cosine as in S. Moshier's Cephes library in single precision. PyTorch's vector code for normal
    //! numbers uses these polynomials, and their errors show: the nearest f32 differs in every sixth number.

    #[inline(always)]
    fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
        coefficients.into_iter().reduce(|sum, c| sum.mul_add(x, c)).unwrap_or(0.0)
    }

    /// Natural logarithm of a normal positive number.
    #[inline(always)]
    pub fn ln(x: f32) -> f32 {
        // x = 2^exponent (1 + m) with 1 + m between √½ and √2
        let bits = x.to_bits();
        let mut exponent = (bits >> 23) as i32 as f32 - 126.0;
        let half = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
        let small = half < std::f32::consts::FRAC_1_SQRT_2;
        let m = if small { half + half - 1.0 } else { half - 1.0 };
        exponent -= if small { 1.0 } else { 0.0 };
        let square = m * m;
        let cubic = m * polynomial(
            m,
            [
                7.037_683_629_2e-2,
                -1.151_461_031_0e-1,
                1.167_699_874_0e-1,
                -1.242_014_084_6e-1,
                1.424_932_278_7e-1,
                -1.666_805_766_5e-1,
                2.000_071_476_5e-1,
                -2.499_999_399_3e-1,
                3.333_333_117_4e-1,
            ],
        );
        // ln 2 in two parts, the first with few enough bits for an exact product
        let tail = cubic.mul_add(square, exponent * -2.121_944_4e-4) - square * 0.5;
        exponent.mul_add(0.693_359_375, m + tail)
    }

    /// Sine and cosine of a number that is not negative.
    #[inline(always)]
    pub fn sin_cos(x: f32) -> (f32, f32) {
        // The nearest even multiple of π/4, subtracted in three parts.
        let octant = ((x * (4.0 / std::f64::consts::PI) as f32) as i32 + 1) & !1;
        let o = octant as f32;
        let x = o.mul_add(-0.785_156_25, x);
        let x = o.mul_add(-2.418_756_5e-4, x);
        let x = o.mul_add(-3.774_895e-8, x);
        let square = x * x;
        let cos = polynomial(square, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]) * square;
        let cos = cos.mul_add(square, -0.5 * square) + 1.0;
        let sin = polynomial(square, [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]) * square;
        let sin = sin.mul_add(x, x);
        // Selects instead of branches: the caller's loop vectorises.
        let (s, c) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
        let negated = |x: f32, four: i32| f32::from_bits(x.to_bits() ^ ((four & 4) as u32) << 29);
        (negated(s, octant), negated(c, octant + 2))
    }
}

pub mod philox {
    //! Philox 4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
    //! as 1, 2, 3" (2011): a number is a pure function of key and counter, so any thread can draw any of them.

    /// The four words of `counter` under the key `seed`.
    ///
    /// The 128-bit counter of the paper has `counter` in its low 64 bits and zero in its high ones; words are little-endian,
    /// the low 32 bits of counter and seed first.
    #[inline]
    pub fn philox(seed: u64, counter: u64) -> [u32; 4] {
        rounds([counter as u32, (counter >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32])
    }

    /// The random word of element `i` of an operation whose counters start at `offset`.
    #[inline]
    pub fn word(seed: u64, offset: u64, i: usize) -> u32 {
        philox(seed, offset.wrapping_add(i as u64 / 4))[i % 4]
    }

    /// A word as a number of `[0, 1)`: its top 24 bits times 2⁻²⁴.
    #[inline]
    pub fn uniform(word: u32) -> f32 {
        (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    fn rounds(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
        for _ in 0..10 {
            let a = u64::from(counter[0]) * 0xd251_1f53;
            let b = u64::from(counter[2]) * 0xcd9e_8d57;
            let high = [(b >> 32) as u32 ^ counter[1] ^ key[0], (a >> 32) as u32 ^ counter[3] ^ key[1]];
            counter = [high[0], b as u32, high[1], a as u32];
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        counter
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn known_answers_of_random123() {
            // philox4x32 10 in the kat_vectors file of the Random123 library: counter, key, result.
            let cases = [
                ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
                ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
                (
                    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                    [0xa4093822, 0x299f31d0],
                    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
                ),
            ];
            for (counter, key, expected) in cases {
                assert_eq!(rounds(counter, key), expected);
            }
        }

        #[test]
        fn seed_and_counter_fill_the_low_words_first() {
            assert_eq!(philox(0, 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
            let (seed, counter) = (0x299f31d0_a4093822, 0x85a308d3_243f6a88);
            assert_eq!(
                philox(seed, counter),
                rounds([0x243f6a88, 0x85a308d3, 0, 0], [0xa4093822, 0x299f31d0])
            );
            assert_eq!(word(seed, counter - 1, 6), philox(seed, counter)[2]);
        }

        #[test]
        fn uniform_numbers_stay_below_one() {
            assert_eq!(uniform(0), 0.0);
            assert_eq!(uniform(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
        }
    }
}

#[cfg(test)]
mod tests {
    //! All numbers are PyTorch's (2.15, CPU, x86-64), printed after `torch.manual_seed(seed)`.
    use super::*;

    fn randn_f32(seed: u64, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        Generator::new(seed).fill_normal_f32(&mut out, 0.0, 1.0);
        out
    }

    fn randn_f64(seed: u64, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n];
        Generator::new(seed).fill_normal_f64(&mut out, 0.0, 1.0);
        out
    }

    /// The logarithms and cosines of f64 come from the platform, whose last bit is its own.
    #[track_caller]
    fn assert_close(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        assert!(
            a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 4.0 * f64::EPSILON * b.abs()),
            "{a:?} is not {b:?}"
        );
    }

    #[test]
    fn uniform_numbers_are_pytorchs() {
        let mut x = [0.0; 4];
        for (seed, rand, uniform) in [
            (0, [0.4962566, 0.7682218, 0.08847743], [0.20121914, 0.475904, -0.21063781, -0.16664922]),
            (42, [0.88226926, 0.91500396, 0.38286376], [0.59109193, 0.624154, 0.086692385, 0.6688987]),
            (1234567, [0.6794674, 0.08481592, 0.9579842], [0.38626203, -0.21433593, 0.66756403, 0.53802866]),
        ] {
            Generator::new(seed).fill_uniform_f32(&mut x, 0.0, 1.0);
            assert_eq!(x[..3], rand);
            // torch.empty(4).uniform_(-0.3, 0.71)
            Generator::new(seed).fill_uniform_f32(&mut x, -0.3, 0.71);
            assert_eq!(x, uniform);
        }
        let mut x = [0.0; 3];
        for (seed, rand) in [
            (0, [0.9700530018065531, 0.707819864399788, 0.45938294312745087]),
            (42, [0.05815448596142969, 0.06291016742457756, 0.12358607277440903]),
            (1234567, [0.4357392621875106, 0.6638738453942004, 0.612460103632426]),
        ] {
            Generator::new(seed).fill_uniform_f64(&mut x, 0.0, 1.0);
            assert_eq!(x, rand);
        }
    }

    #[test]
    fn fewer_than_16_normal_numbers_are_pytorchs() {
        let expected = [
            1.5409961,
            -0.2934289,
            -2.1787894,
            0.56843126,
            -1.0845224,
            -1.3985955,
            0.40334684,
            0.83802634,
            -0.7192576,
            -0.40334353,
            -0.59663534,
            0.18203649,
            -0.8566746,
            1.1006042,
            -1.0711874,
        ];
        assert_eq!(randn_f32(0, 15), expected);
        let expected = [
            0.33669037,
            0.1288094,
            0.23446237,
            0.23033303,
            -1.1228564,
            -0.18632829,
            2.2082014,
            -0.63799703,
            0.46165723,
            0.26735088,
            0.53490466,
            0.8093572,
            1.1102903,
            -1.689799,
            -0.9889599,
        ];
        assert_eq!(randn_f32(42, 15), expected);
        assert_eq!(randn_f32(1234567, 3), [-1.3579249, 0.5801529, -0.52735204]);
        assert_close(&randn_f64(0, 3), &[1.5409961082440433, -0.2934289057609464, -2.1787893820745574]);
        assert_close(&randn_f64(42, 3), &[0.33669035438385886, 0.1288094051365897, 0.23446236336153173]);
        assert_close(&randn_f64(1234567, 3), &[-1.357924896941633, 0.5801529392895827, -0.527352056186524]);
    }

    #[test]
    fn sixteen_and_more_normal_numbers_are_pytorchs() {
        let expected = [
            -1.1258398,
            -1.1523602,
            -0.25057858,
            -0.4338788,
            0.84871036,
            0.69200915,
            -0.31601277,
            -2.1152194,
            0.32227492,
            -1.2633348,
            0.3499832,
            0.30813393,
            0.11984151,
            1.2376579,
            1.1167772,
            -0.24727815,
        ];
        assert_eq!(randn_f32(0, 16), expected);
        let expected = [
            -1.1258398,
            -1.6959312,
            0.5666506,
            0.79350835,
            0.59883946,
            -1.5550951,
            -0.3413604,
            1.8530061,
            0.4680964,
            -0.58549756,
            -0.17339675,
            0.18347794,
            1.3893661,
            1.5863342,
            0.94629836,
            -0.84367675,
            0.9318266,
        ];
        assert_eq!(randn_f32(0, 17), expected);
        let expected = [
            -0.75813115,
            1.0783176,
            0.80080056,
            1.6806206,
            0.034912344,
            0.321103,
            1.5736002,
            -0.84546745,
            1.3123076,
            0.6871596,
            -1.0891753,
            -0.35528663,
            -1.41806,
            0.8962683,
            0.049905386,
            2.266718,
            1.1789509,
            -0.4344544,
            -1.3863655,
            -1.2862155,
        ];
        assert_eq!(randn_f32(42, 40)[20..], expected);
        let expected = [
            -1.4620222,
            -0.28239587,
            2.4558632,
            1.6109241,
            0.36293277,
            -0.82167995,
            0.09903616,
            -0.09086472,
            0.37152886,
            -0.3122702,
            -0.5551173,
            0.9724604,
            0.1660518,
            -0.5907723,
            0.5650256,
            -1.6608856,
        ];
        assert_eq!(randn_f32(1234567, 16), expected);
        let expected = [
            -2.310411800234176,
            -0.6332746088675096,
            -1.2609246557194385,
            -0.726951062065411,
            -0.019964750907762653,
            0.2102998901016947,
            0.17718935139366584,
            -0.830510051008449,
            0.23871805816817063,
            -0.2426793824588577,
            -0.7730112772958181,
            -1.5951814880783068,
            -0.6870036940435463,
            1.4880743158106724,
            -0.4484158047114511,
            -0.8910030351707375,
            0.6748575435940039,
        ];
        assert_close(&randn_f64(0, 17), &expected);
    }

    #[test]
    fn the_second_of_a_normal_pair_waits_for_the_next_short_call() {
        // torch.manual_seed(42); torch.randn(3); torch.randn(16); torch.randn(2, dtype=torch.float64); torch.rand(1)
        let mut g = Generator::new(42);
        let (mut three, mut sixteen, mut two) = ([0.0; 3], [0.0; 16], [0.0; 2]);
        g.fill_normal_f32(&mut three, 0.0, 1.0);
        assert_eq!(three, [0.33669037, 0.1288094, 0.23446237]);
        g.fill_normal_f32(&mut sixteen, 0.0, 1.0);
        assert_eq!(sixteen[..2], [1.7877893, -0.47804525]);
        g.fill_normal_f64(&mut two, 0.0, 1.0);
        assert_close(&two, &[0.2303330279146119, 1.1102903104398025]);
        assert_eq!(g.uniform_f32(0.0, 1.0), 0.54719156);
    }

    #[test]
    fn permutations_are_pytorchs() {
        assert_eq!(Generator::new(0).randperm(10), [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]);
        assert_eq!(Generator::new(42).randperm(10), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
        assert_eq!(Generator::new(1234567).randperm(10), [1, 6, 0, 8, 7, 4, 2, 9, 3, 5]);
        let long = Generator::new(0).randperm(1000);
        assert_eq!(long[..5], [44, 37, 675, 775, 947]);
        assert_eq!(long[997..], [745, 263, 354]);
        assert_eq!(long.iter().zip(0..).map(|(p, i)| p * i).sum::<i64>(), 251_667_852);
        assert_eq!(Generator::new(0).randperm(0), []);
        assert_eq!(Generator::new(0).randperm(1), [0]);
    }

    #[test]
    fn integers_are_pytorchs() {
        assert_eq!(Generator::new(0).randint(-7, 1000, 6), [787, 396, 392, 544, 992, 741]);
        assert_eq!(Generator::new(42).randint(-7, 1000, 6), [350, 652, 555, 824, 774, 45]);
        assert_eq!(Generator::new(1234567).randint(-7, 1000, 6), [839, 511, 170, 261, 448, 676]);
        // From a range of 2^28 on, two words go into a number.
        let mut g = Generator::new(0);
        assert_eq!(g.randint(0, 1 << 28, 3), [130329135, 136432832, 195187451]);
        assert_eq!(g.randint(0, (1 << 28) - 1, 3), [192771787, 149257588, 208970767]);
        let mut g = Generator::new(1234567);
        assert_eq!(g.randint(-(1 << 40), 1 << 41, 3), [-466153523585, 1599285258566, -799159183390]);
    }

    #[test]
    fn exponential_and_bernoulli_numbers_are_pytorchs() {
        let mut g = Generator::new(0);
        let waits: Vec<f64> = (0..3).map(|_| g.exponential(1.5)).collect();
        assert_close(&waits, &[2.338884124471761, 0.8202565094531178, 0.41002939592934096]);
        // torch.bernoulli of f64 probabilities
        let mut g = Generator::new(42);
        let draws: Vec<i32> = (0..12).map(|_| i32::from(g.bernoulli(0.3))).collect();
        assert_eq!(draws, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0]);
    }

    #[test]
    fn a_restored_state_continues_both_streams() {
        let mut g = Generator::new(3);
        g.normal(0.0, 1.0);
        g.philox_offset(5);
        let state = g.state();
        let expected = (g.normal(0.0, 1.0), g.randperm(700), g.philox_offset(1));
        let mut other = Generator::default();
        other.set_state(state);
        assert_eq!((other.normal(0.0, 1.0), other.randperm(700), other.philox_offset(1)), expected);
        assert_eq!(expected.2, (3, 2), "five elements take two counters");
    }
}
