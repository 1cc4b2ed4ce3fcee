//! Philox numbers and dropout.

use crate::element::Elem;
use crate::elementwise;
use crate::gpu::Gpu;
use crate::variant::{Value, Variant, variant};
use orkest_core::op::RandomKind;
use orkest_core::{Output, Result, View};

/// Seed and first counter as words, low ones first.
fn stream(seed: u64, offset: u64) -> [u32; 4] {
    [seed as u32, (seed >> 32) as u32, offset as u32, (offset >> 32) as u32]
}

/// `uniform < p` for a uniform number of 24 bits is `bits < ` this.
fn threshold(p: f64) -> u32 {
    (p * f64::from(1 << 24)).ceil().clamp(0.0, f64::from(1 << 24)) as u32
}

/// [`orkest_core::Op::Random`]
pub(crate) fn random(gpu: &Gpu, kind: RandomKind, seed: u64, offset: u64, y: &Output) -> Result<()> {
    let [a, b, c, d] = stream(seed, offset);
    let (uniform, threshold) = match kind {
        RandomKind::Uniform => (true, 0),
        RandomKind::Bernoulli(p) => (false, threshold(p)),
    };
    let variant = random_variant(gpu.elem(y.dtype), uniform);
    elementwise::run(gpu, "random", "elementwise/random.wgsl", variant, [], y, [a, b, c, d, threshold])
}

fn random_variant(elem: Elem, uniform: bool) -> Variant {
    variant![elem: elem, num: Value::Computed(elem), UNIFORM: uniform]
}

/// [`orkest_core::Op::Dropout`]
pub(crate) fn dropout(gpu: &Gpu, p: f64, seed: u64, offset: u64, x: &View<'_>, y: &Output) -> Result<()> {
    let [a, b, c, d] = stream(seed, offset);
    let keep = 1.0 - p;
    let words = [a, b, c, d, threshold(keep), ((1.0 / keep) as f32).to_bits()];
    let variant = variant![elem: gpu.elem(y.dtype)];
    elementwise::run(gpu, "dropout", "elementwise/dropout.wgsl", variant, [x], y, words)
}

/// The variants that tests check without a device.
#[cfg(test)]
pub(crate) fn variants() -> Vec<(&'static str, Variant)> {
    let mut all = Vec::new();
    for elem in Elem::ALL {
        for strided in [false, true] {
            for uniform in [false, true] {
                let mut v = random_variant(elem, uniform);
                v.push(("STRIDED", Value::Bool(strided)));
                all.push(("elementwise/random.wgsl", v));
            }
            if elem.is_float() {
                all.push(("elementwise/dropout.wgsl", variant![elem: elem, STRIDED: strided]));
            }
        }
    }
    all
}
