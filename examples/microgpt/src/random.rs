//! Python's `random` module, to the last bit: a run with some seed then is the run that the Python program does with it.
//!
//! The generator is the Mersenne twister MT19937 (Matsumoto & Nishimura 1998), seeded by its `init_by_array` with the 32-bit
//! digits of the seed; what is drawn from it follows CPython's `Lib/random.py`.

use std::f64::consts::TAU;
use std::str::FromStr;

/// An integer of any size for [`Random::new`]. Python takes its absolute value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed(Vec<u32>);

impl From<u64> for Seed {
    fn from(n: u64) -> Seed {
        Seed(if n >> 32 == 0 { vec![n as u32] } else { vec![n as u32, (n >> 32) as u32] })
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Seed, String> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err("an integer is expected".to_owned());
        }
        let mut words = vec![0u32]; // in base 2³², the lowest first
        for digit in digits.bytes() {
            let mut carry = u64::from(digit - b'0');
            for word in &mut words {
                carry += u64::from(*word) * 10;
                *word = carry as u32;
                carry >>= 32;
            }
            if carry > 0 {
                words.push(carry as u32);
            }
        }
        Ok(Seed(words))
    }
}

/// The state of the generator.
const N: usize = 624;
const M: usize = 397;

/// Python's `random.Random`.
pub struct Random {
    twister: [u32; N],
    index: usize,
    gauss_next: Option<f64>,
}

impl Random {
    /// `random.seed(seed)`
    pub fn new(seed: &Seed) -> Random {
        let mut twister = [0; N];
        twister[0] = 19_650_218u32;
        for i in 1..N {
            twister[i] = mix(twister[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        let key = &seed.0;
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            twister[i] =
                (twister[i] ^ mix(twister[i - 1], 1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            j = (j + 1) % key.len();
            i = following(&mut twister, i);
        }
        for _ in 0..N - 1 {
            twister[i] = (twister[i] ^ mix(twister[i - 1], 1_566_083_941)).wrapping_sub(i as u32);
            i = following(&mut twister, i);
        }
        twister[0] = 0x8000_0000;
        Random { twister, index: N, gauss_next: None }
    }

    /// 32 random bits.
    fn bits(&mut self) -> u32 {
        if self.index == N {
            self.twist();
        }
        let mut y = self.twister[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        let t = &mut self.twister;
        for i in 0..N {
            let y = (t[i] & 0x8000_0000) | (t[(i + 1) % N] & 0x7fff_ffff);
            t[i] = t[(i + M) % N] ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
        }
        self.index = 0;
    }

    /// `random.random()`: a multiple of 2⁻⁵³ in `[0, 1)`.
    pub fn random(&mut self) -> f64 {
        let (a, b) = (self.bits() >> 5, self.bits() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `random.gauss(mu, sigma)`: normally distributed numbers are made in pairs.
    pub fn gauss(&mut self, mu: f64, sigma: f64) -> f64 {
        let z = self.gauss_next.take().unwrap_or_else(|| {
            let angle = self.random() * TAU;
            let radius = (-2.0 * (1.0 - self.random()).ln()).sqrt();
            self.gauss_next = Some(angle.sin() * radius);
            angle.cos() * radius
        });
        mu + z * sigma
    }

    /// `random.randrange(n)`: as many bits as `n` has, until they are below `n`.
    ///
    /// # Panics
    /// If `n` is 0 or does not fit into 32 bits.
    pub fn below(&mut self, n: usize) -> usize {
        let width = usize::BITS - n.leading_zeros();
        assert!((1..=32).contains(&width), "below: {n} is not between 1 and 2^32 - 1");
        loop {
            let r = (self.bits() >> (32 - width)) as usize;
            if r < n {
                return r;
            }
        }
    }

    /// `random.shuffle(items)`
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `random.choices(range(len(weights)), weights)[0]`: a position, likely in proportion to its weight.
    ///
    /// # Panics
    /// If the weights do not add up to something positive and finite.
    pub fn choice(&mut self, weights: &[f64]) -> usize {
        let mut total = 0.0;
        let cumulative: Vec<f64> = weights
            .iter()
            .map(|w| {
                total += w;
                total
            })
            .collect();
        assert!(total > 0.0 && total.is_finite(), "choice: the weights add up to {total}");
        let x = self.random() * total;
        cumulative[..weights.len() - 1].partition_point(|c| *c <= x)
    }
}

fn mix(word: u32, factor: u32) -> u32 {
    (word ^ (word >> 30)).wrapping_mul(factor)
}

/// The position after `i` while seeding: after the last one comes the second, and the first takes the last one's value.
fn following(twister: &mut [u32; N], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    twister[0] = twister[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeded(seed: &str) -> Random {
        Random::new(&seed.parse().unwrap())
    }

    /// What CPython 3.11 prints after `random.seed(seed)` for, in this order, `random()` twice, `gauss(0, .08)` three times,
    /// `shuffle(list(range(10)))`, `choices(range(5), [.1, .2, .3, .2, .2], k=5)` and `randrange(1000)`.
    #[test]
    fn every_seed_is_pythons() {
        type Row = (&'static str, [f64; 2], [f64; 3], [usize; 10], [usize; 5], usize);
        let rows: [Row; 5] = [
            (
                "42",
                [0.6394267984578837, 0.025010755222666936],
                [-0.008905268925412997, 0.05615869800790905, -0.010207062702630967],
                [3, 2, 4, 9, 5, 7, 0, 6, 1, 8],
                [2, 3, 3, 2, 2],
                284,
            ),
            (
                "0",
                [0.8444218515250481, 0.7579544029403025],
                [-0.054377155846273686, 0.029640285396852786, -0.08130791153504567],
                [2, 0, 3, 8, 6, 1, 9, 5, 7, 4],
                [3, 3, 1, 4, 4],
                829,
            ),
            (
                "-7",
                [0.32383276483316237, 0.15084917392450192],
                [-0.018087693182648377, -0.025205473786494834, -0.0744014552258214],
                [1, 2, 5, 4, 7, 6, 9, 3, 8, 0],
                [0, 2, 4, 1, 1],
                642,
            ),
            (
                "1180591620717411315769",
                [0.9602803546023011, 0.944938405487643],
                [0.09253682301503924, 0.08445793215283896, -0.07039827301608069],
                [6, 3, 1, 2, 7, 0, 9, 8, 5, 4],
                [2, 1, 1, 3, 3],
                433,
            ),
            (
                "123456789012345678901234567890",
                [0.7275084571578186, 0.1595204831720859],
                [0.06319769965352895, 0.004699163023977836, 0.07510581916079144],
                [8, 6, 4, 9, 0, 7, 2, 5, 3, 1],
                [3, 2, 4, 2, 1],
                249,
            ),
        ];
        for (seed, uniform, normal, shuffled, choices, below) in rows {
            let mut random = seeded(seed);
            assert_eq!([random.random(), random.random()], uniform, "seed {seed}");
            for expected in normal {
                let x = random.gauss(0.0, 0.08);
                // The C libraries of the world differ in the last bit of cos, sin and log.
                assert!(
                    (x - expected).abs() <= 4.0 * f64::EPSILON * expected.abs(),
                    "seed {seed}: {x} {expected}"
                );
            }
            let mut list: Vec<usize> = (0..10).collect();
            random.shuffle(&mut list);
            assert_eq!(list, shuffled, "seed {seed}");
            assert_eq!([0; 5].map(|_| random.choice(&[0.1, 0.2, 0.3, 0.2, 0.2])), choices, "seed {seed}");
            assert_eq!(random.below(1000), below, "seed {seed}");
        }
    }

    #[test]
    fn the_state_is_renewed_after_624_words() {
        let mut random = seeded("5");
        let last = (0..2000).map(|_| random.random()).last();
        assert_eq!(last, Some(0.20243881971614341));
    }

    #[test]
    fn seeds_are_integers() {
        assert_eq!("4294967297".parse(), Ok(Seed(vec![1, 1])));
        assert_eq!("-5".parse(), Ok(Seed::from(5)));
        for wrong in ["", "-", "1.5", "--1", "x"] {
            assert!(wrong.parse::<Seed>().is_err(), "{wrong}");
        }
    }

    #[test]
    #[should_panic(expected = "the weights add up to 0")]
    fn something_must_be_likely() {
        seeded("1").choice(&[0.0, 0.0]);
    }
}
