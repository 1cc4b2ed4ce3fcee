//! One source, several instruction sets: loops are compiled for baseline, AVX2 and AVX-512 and chosen at run time.
//!
//! A kernel is an ordinary loop that the compiler can vectorise, written inside `simd_fn!`. Its first type parameter,
//! bounded by [`Simd`], stands for the instruction set; everything it calls must be `#[inline(always)]` and take that
//! parameter along, or it would be compiled for the baseline only. On other architectures than x86-64 the baseline (NEON on
//! 64-bit Arm) is all there is.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// What the target promises: SSE2 on x86-64, NEON on 64-bit Arm.
    Baseline = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512 = 3,
}

static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The best level this machine has, or less if `ORKEST_SIMD` (`baseline`, `avx2`, `avx512`) says so.
#[inline]
pub fn level() -> Level {
    match LEVEL.load(Relaxed) {
        1 => Level::Baseline,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Level {
    let wanted = match std::env::var("ORKEST_SIMD").as_deref() {
        Ok("baseline") => Level::Baseline,
        Ok("avx2") => Level::Avx2,
        Ok("avx512" | "") | Err(_) => Level::Avx512,
        Ok(other) => {
            eprintln!(
                "orkest: ORKEST_SIMD={other} is none of baseline, avx2, avx512; taking the best there is"
            );
            Level::Avx512
        }
    };
    let level = best().min(wanted);
    LEVEL.store(level as u8, Relaxed);
    level
}

fn best() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx2 && avx512 {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// Runs `f` once for every level this machine has, with that level in force. Other tests that run meanwhile see it too, which
/// does them no harm: results are within the same bounds at every level.
#[cfg(test)]
pub(crate) fn for_each_level(mut f: impl FnMut(Level)) {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _lock = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for level in [Level::Baseline, Level::Avx2, Level::Avx512].into_iter().filter(|l| *l <= best()) {
        LEVEL.store(level as u8, Relaxed);
        f(level);
    }
    LEVEL.store(0, Relaxed);
}

/// What kernels need to know about the instruction set they are compiled for.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Multiply-add is one instruction. Where it is not, `f32::mul_add` would be a slow call.
    const FMA: bool;

    /// `a * b + c`, rounded once where that is cheap.
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if Self::FMA { a.mul_add(b, c) } else { a * b + c }
    }

    /// `a * b + c`, rounded once where that is cheap.
    #[inline(always)]
    fn mul_add_f64(a: f64, b: f64, c: f64) -> f64 {
        if Self::FMA { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Type-level [`Level::Baseline`].
#[derive(Clone, Copy)]
pub struct Baseline;
/// Type-level [`Level::Avx2`].
#[derive(Clone, Copy)]
pub struct Avx2;
/// Type-level [`Level::Avx512`].
#[derive(Clone, Copy)]
pub struct Avx512;

impl Simd for Baseline {
    const FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
}
impl Simd for Avx2 {
    const FMA: bool = true;
}
impl Simd for Avx512 {
    const FMA: bool = true;
}

/// Asks for the cache line at `address`, which need not be valid; does nothing where there is no instruction for it.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and the instruction never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Defines a function whose body is compiled once per instruction set, and which calls the best one.
///
/// ```text
/// simd_fn! {
///     /// `y += a x`
///     pub fn axpy<S: Simd>(a: f32, x: &[f32], y: &mut [f32]) {
///         for (y, x) in y.iter_mut().zip(x) {
///             *y = S::mul_add(a, *x, *y);
///         }
///     }
/// }
/// axpy(2.0, &x, &mut y);
/// ```
///
/// The function can have further type parameters after the first, each with one bound (`T: Trait`); the caller never names
/// `S`. Distinct slices as parameters tell the compiler that they do not overlap, which a loop over raw pointers would have to
/// check.
macro_rules! simd_fn {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$S:ident: Simd $(, $T:ident: $bound:path)*>($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        $vis fn $name<$($T: $bound),*>($($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn body<$S: $crate::simd::Simd $(, $T: $bound)*>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($T: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::simd::Avx2 $(, $T)*>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<$($T: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::simd::Avx512 $(, $T)*>($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` has found these instructions on this machine.
                    $crate::simd::Level::Avx512 => return unsafe { avx512::<$($T),*>($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2::<$($T),*>($($arg),*) },
                    $crate::simd::Level::Baseline => {}
                }
            }
            body::<$crate::simd::Baseline $(, $T)*>($($arg),*)
        }
    )*};
}
pub(crate) use simd_fn;

#[cfg(test)]
mod tests {
    use super::*;

    simd_fn! {
        fn axpy<S: Simd>(a: f32, x: &[f32], y: &mut [f32]) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = S::mul_add(a, *x, *y);
            }
        }
    }

    #[test]
    fn every_level_computes_the_same_sum() {
        for_each_level(|level| {
            assert_eq!(super::level(), level);
            let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
            let mut y = vec![1.0f32; 1000];
            axpy(2.0, &x, &mut y);
            assert!(y.iter().enumerate().all(|(i, y)| *y == 1.0 + 2.0 * i as f32));
        });
    }
}
