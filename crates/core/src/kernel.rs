//! Kernels of the user's own: Rust for the host, WGSL for a GPU, run as one operation.
//!
//! What a backend needs of them is at the end of [`Kernel`]'s methods; it must not know anything else about them.

use crate::autograd::{Context, Gradients, Rule, record};
use crate::dispatch::run;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::op::Op;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

/// A program of your own that computes one tensor from others: Rust for the CPU, WGSL for a GPU, or both.
///
/// ```
/// use orkest_core::{DType, Device, Kernel, Tensor};
///
/// let swish = |x: &Tensor| {
///     Kernel::new("swish")
///         .cpu(|inputs, y: &mut [f32]| {
///             for (y, x) in y.iter_mut().zip(inputs[0].of::<f32>()) {
///                 *y = x / (1.0 + (-x).exp());
///             }
///         })
///         .wgsl(
///             "@group(0) @binding(0) var<storage, read> x: array<f32>;
///              @group(0) @binding(1) var<storage, read_write> y: array<f32>;
///
///              @compute @workgroup_size(64)
///              fn main(@builtin(global_invocation_id) id: vec3<u32>) {
///                  let i = id.x;
///                  if (i < arrayLength(&y)) {
///                      y[i] = x[i] / (1.0 + exp(-x[i]));
///                  }
///              }",
///         )
///         .run(&[x], *x.shape(), DType::F32)
/// };
/// let x = Tensor::new([-1.0f32, 0.0, 2.0], &Device::cpu());
/// let apart = (swish(&x) - &x * x.sigmoid()).abs().max(..);
/// assert!(apart.item().unwrap() < 1e-6);
/// ```
///
/// It has no gradient; run it inside a [`Function`](crate::Function) to give it one. On a GPU a kernel without WGSL runs on the host,
/// between a read and an upload; on a CPU a kernel without Rust is an error.
///
/// # The WGSL
///
/// One `@compute` entry point with these bindings, each of which may be left out if it is not needed:
///
/// | | |
/// |---|---|
/// | input `i` | `@group(0) @binding(i) var<storage, read> x: array<f32>;` |
/// | the result | `@group(0) @binding(n) var<storage, read_write> y: array<f32>;`, `n` the number of inputs; contents unspecified at first |
/// | parameters | `var<immediate> params: Params;` on a line of its own: a struct of what [`Kernel::param`] gave, in order |
///
/// Inputs arrive row-major and `arrayLength` is their number of elements (rounded up to an even one where elements have 16 bits).
/// Elements are declared as they are stored, alone or in vectors:
///
/// | dtype | in the shader |
/// |---|---|
/// | f32 | `f32` |
/// | f16 | `f16`, with `enable f16;`; without that feature the low half of a `u32`: `unpack2x16float(x).x` |
/// | bf16 | `u16`, with `enable wgpu_int16;`; without that feature the low half of a `u32` |
/// | i32, i64 | `i32` |
/// | bool, u8 | `u32`; a bool is 0 or 1 |
///
/// Other declarations than these are refused, with the reason. The program is compiled once per text, with checks of bounds and
/// loops: what changes from call to call belongs into parameters, and a text with constants of its own is a program of its own.
#[derive(Clone)]
pub struct Kernel {
    name: &'static str,
    host: Vec<(DType, Arc<HostFn>)>,
    wgsl: Option<Cow<'static, str>>,
    params: Vec<u32>,
    workgroups: Option<[usize; 3]>,
}

type HostFn = dyn Fn(&[Elements<'_>], &mut [u8]) -> Result<()> + Send + Sync;

impl Kernel {
    /// A kernel that can do nothing yet; the name is that of messages, profiles and printed tensors.
    pub fn new(name: &'static str) -> Kernel {
        Kernel { name, host: Vec::new(), wgsl: None, params: Vec::new(), workgroups: None }
    }

    /// The program for the CPU: gets the inputs and fills the result, which is zero at first, all row-major.
    ///
    /// It serves results of dtype `T`. Give a program for each dtype that is needed; a generic function makes that one line each.
    ///
    /// # Panics
    /// If there is one for `T` already.
    #[track_caller]
    pub fn cpu<T: Element>(
        mut self,
        f: impl Fn(&[Elements<'_>], &mut [T]) + Send + Sync + 'static,
    ) -> Kernel {
        assert!(
            self.host.iter().all(|(dtype, _)| *dtype != T::DTYPE),
            "the kernel {} has two programs for {} results",
            self.name,
            T::DTYPE
        );
        let host = move |inputs: &[Elements<'_>], output: &mut [u8]| {
            f(inputs, T::from_bytes_mut(output)?);
            Ok(())
        };
        self.host.push((T::DTYPE, Arc::new(host)));
        self
    }

    /// The program for a GPU: see [Kernel](Kernel#the-wgsl).
    pub fn wgsl(mut self, source: impl Into<Cow<'static, str>>) -> Kernel {
        self.wgsl = Some(source.into());
        self
    }

    /// The next parameter of the WGSL: floats become `f32`, `i32` stays, `u32` and `usize` become `u32`. At most 32 of them.
    ///
    /// # Panics
    /// If there are too many, or a size does not fit in 32 bits.
    #[track_caller]
    pub fn param(mut self, value: impl Into<Word>) -> Kernel {
        assert!(
            self.params.len() < MAX_PARAMS,
            "the kernel {} has more than {MAX_PARAMS} parameters",
            self.name
        );
        self.params.push(value.into().0);
        self
    }

    /// How many workgroups the WGSL runs in, along each dimension.
    ///
    /// Without this there is one invocation per element of the result, along x. Should that be more than 65535 workgroups, a program
    /// that takes `@builtin(num_workgroups)` gets them folded, in which its number is
    /// `group.x + groups.x * (group.y + groups.y * group.z)` and may be past the end; for others it is an error.
    pub fn workgroups(mut self, count: [usize; 3]) -> Kernel {
        self.workgroups = Some(count);
        self
    }

    /// Runs on `inputs`. The result is row-major and new, with this shape and dtype.
    ///
    /// # Panics
    /// If there are no inputs, they are on different devices, the kernel has no program for the device or does not compile there (with
    /// the compiler's message), or the device fails. `backward` through the result panics with the kernel's name.
    #[track_caller]
    pub fn run(self, inputs: &[&Tensor], shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let name = self.name;
        assert!(!inputs.is_empty(), "the kernel {name} needs at least one input");
        let mut outputs = [run(name, Op::Custom(Arc::new(self)), inputs, shape.into(), dtype)];
        record(&mut outputs, name, inputs, &[], WithoutGradient(name));
        let [out] = outputs;
        out
    }

    // ---- for backends ----------------------------------------------------------------------------------------------------

    /// The name in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The program for a GPU, if there is one.
    pub fn shader(&self) -> Option<Shader<'_>> {
        let source = self.wgsl.as_deref()?;
        Some(Shader { source, params: &self.params, workgroups: self.workgroups })
    }

    /// Runs the Rust program on row-major bytes of these dtypes. `output` holds zeros; all are aligned for their dtype.
    ///
    /// # Errors
    /// If there is none for results of `dtype`.
    pub fn host(&self, inputs: &[(&[u8], DType)], output: &mut [u8], dtype: DType) -> Result<()> {
        let Some((_, f)) = self.host.iter().find(|(d, _)| *d == dtype) else {
            let has: Vec<&str> = self.host.iter().map(|(d, _)| d.name()).collect();
            let has = if has.is_empty() { "none".into() } else { has.join(", ") };
            return Err(Error::Device(format!(
                "the kernel {} has no Rust program for {dtype} results (it has: {has}); give it one with .cpu(..)",
                self.name
            )));
        };
        let inputs: Vec<Elements<'_>> = inputs
            .iter()
            .enumerate()
            .map(|(index, &(bytes, dtype))| Elements { bytes, dtype, kernel: self.name, index })
            .collect();
        f(&inputs, output)
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Most parameters: what every device passes along with a launch is 128 bytes.
const MAX_PARAMS: usize = 32;

/// The program of a [`Kernel`] for a GPU, as a backend gets it.
#[derive(Clone, Copy, Debug)]
pub struct Shader<'a> {
    /// WGSL.
    pub source: &'a str,
    /// The words of the parameter struct.
    pub params: &'a [u32],
    /// How many workgroups; `None` for one invocation per element of the result.
    pub workgroups: Option<[usize; 3]>,
}

/// An input of a [`Kernel`]'s Rust program.
#[derive(Clone, Copy)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    dtype: DType,
    kernel: &'static str,
    index: usize,
}

impl<'a> Elements<'a> {
    /// The elements, row-major.
    ///
    /// # Panics
    /// If they are of another dtype.
    #[track_caller]
    pub fn of<T: Element>(&self) -> &'a [T] {
        let Elements { dtype, kernel, index, .. } = self;
        assert!(*dtype == T::DTYPE, "{kernel}: input {index} is {dtype}, not {}", T::DTYPE);
        T::from_bytes(self.bytes).unwrap_or_else(|e| panic!("{kernel}: input {index}: {e}"))
    }

    /// Their type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

/// A parameter of a [`Kernel`]'s WGSL: see [`Kernel::param`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(u32);

impl From<f32> for Word {
    fn from(value: f32) -> Word {
        Word(value.to_bits())
    }
}

impl From<f64> for Word {
    fn from(value: f64) -> Word {
        Word((value as f32).to_bits())
    }
}

impl From<i32> for Word {
    fn from(value: i32) -> Word {
        Word(value as u32)
    }
}

impl From<u32> for Word {
    fn from(value: u32) -> Word {
        Word(value)
    }
}

impl From<usize> for Word {
    #[track_caller]
    fn from(value: usize) -> Word {
        let at = Location::caller();
        Word(
            u32::try_from(value)
                .unwrap_or_else(|_| panic!("the kernel parameter {value} at {at} does not fit in 32 bits")),
        )
    }
}

struct WithoutGradient(&'static str);

impl Rule for WithoutGradient {
    fn backward(&self, _: &Context<'_>) -> Gradients {
        panic!("the kernel {} has no gradient; run it inside a Function to give it one", self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Function, bf16, f16, gradcheck, gradgradcheck};

    fn reverse<T: Element>(inputs: &[Elements<'_>], y: &mut [T]) {
        let x = inputs[0].of::<T>();
        y.iter_mut().zip(x.iter().rev()).for_each(|(y, &x)| *y = x);
    }

    fn halve(x: &Tensor) -> Tensor {
        fn halved<T: Element>(inputs: &[Elements<'_>], y: &mut [T]) {
            y.iter_mut().zip(inputs[0].of::<T>()).for_each(|(y, x)| *y = T::from_f64(x.to_f64() / 2.0));
        }
        Kernel::new("halve").cpu(halved::<f32>).cpu(halved::<f64>).run(&[x], *x.shape(), x.dtype())
    }

    struct Halve;

    impl Function for Halve {
        fn name(&self) -> &'static str {
            "halve"
        }
        fn forward(&self, inputs: &[Tensor]) -> Tensor {
            halve(&inputs[0])
        }
        fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> Vec<Option<Tensor>> {
            vec![Some(grad * 0.5)]
        }
    }

    #[test]
    fn inputs_are_row_major_and_of_any_dtype() {
        let device = Device::reference();
        let x = Tensor::new([[1.0f32, 2.0], [3.0, 4.0]], &device).transpose(0, 1);
        assert_eq!(halve(&x).to_vec::<f32>().unwrap(), [0.5, 1.5, 1.0, 2.0]);
        let kernel = Kernel::new("reverse")
            .cpu(reverse::<f32>)
            .cpu(reverse::<f16>)
            .cpu(reverse::<bf16>)
            .cpu(reverse::<i64>)
            .cpu(reverse::<i32>)
            .cpu(reverse::<u8>)
            .cpu(reverse::<bool>);
        for dtype in DType::ALL.iter().copied().filter(|d| *d != DType::F64) {
            let x = Tensor::new([0i64, 1, 1], &device).to_dtype(dtype);
            let y = kernel.clone().run(&[&x], [3], dtype);
            assert_eq!(y.to_dtype(DType::I64).to_vec::<i64>().unwrap(), [1, 1, 0], "{dtype}");
        }
    }

    #[test]
    fn a_function_around_it_has_gradients() {
        let x = Tensor::new([[1.0f64, 2.0], [3.0, 4.0]], &Device::reference()).requires_grad_(true);
        gradcheck(|x| Tensor::apply(Halve, &[&x[0].transpose(0, 1)]), std::slice::from_ref(&x)).unwrap();
        gradgradcheck(|x| Tensor::apply(Halve, &[&x[0]]).square(), &[x]).unwrap();
    }

    #[test]
    fn results_know_the_kernel_and_the_line() {
        let y = Kernel::new("twice").cpu(reverse::<f32>).run(
            &[&Tensor::new([1.0f32], &Device::reference())],
            [1],
            DType::F32,
        );
        assert_eq!(y.origin().0, "twice");
        assert!(y.origin().1.file().ends_with("kernel.rs"));
    }

    #[test]
    fn parameters_are_words() {
        let kernel = Kernel::new("k").wgsl("").param(1.5).param(1.5f32).param(-1).param(7usize).param(8u32);
        let half = 1.5f32.to_bits();
        assert_eq!(kernel.shader().unwrap().params, [half, half, u32::MAX, 7, 8]);
    }

    #[test]
    #[should_panic(expected = "the kernel halve has no gradient")]
    fn alone_it_refuses_gradients() {
        halve(&Tensor::new([1.0f32], &Device::reference()).requires_grad_(true)).backward();
    }

    #[test]
    #[should_panic(expected = "the kernel halve has no Rust program for i32 results (it has: f32, f64)")]
    fn a_missing_program_is_told() {
        halve(&Tensor::new([1i32], &Device::reference()));
    }

    #[test]
    #[should_panic(expected = "reverse: input 0 is i32, not f32")]
    fn inputs_of_another_dtype_are_told() {
        let x = Tensor::new([1i32], &Device::reference());
        Kernel::new("reverse").cpu(reverse::<f32>).run(&[&x], [1], DType::F32);
    }

    #[test]
    #[should_panic(expected = "the kernel reverse has two programs for f32 results")]
    fn two_programs_for_one_dtype_are_refused() {
        let _ = Kernel::new("reverse").cpu(reverse::<f32>).cpu(reverse::<f32>);
    }
}
