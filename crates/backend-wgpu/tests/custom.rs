//! Kernels of the user's own on the GPU: what their WGSL computes, and what is said when it cannot.

use orkest_core::{DType, Device, Kernel, Tensor};
use orkest_wgpu as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The first adapter, or `None` with a word about it.
fn gpu() -> Option<Device> {
    match Device::wgpu(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("ORKEST_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(_) => {
            println!("skipped: no adapter");
            None
        }
    }
}

const AXPY: &str = "@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
struct Params { a: f32, n: u32 }
var<immediate> params: Params;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&y)) {
        y[id.x] = params.a * x[id.x] + z[id.x] + f32(params.n - arrayLength(&x));
    }
}";

fn axpy(a: f32, x: &Tensor, z: &Tensor) -> Tensor {
    Kernel::new("axpy").wgsl(AXPY).param(a).param(x.numel()).run(&[x, z], *x.shape(), x.dtype())
}

/// The text of the panic of `f`.
fn refused(f: impl FnOnce() -> Tensor) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("it was not refused");
    panic.downcast_ref::<String>().expect("a message").clone()
}

#[test]
fn inputs_of_any_layout_arrive_row_major_with_their_length() {
    let Some(device) = gpu() else { return };
    let x = Tensor::arange(0.0, 1200.0, 1.0, &device).reshape([30, 40]);
    let z = Tensor::ones([40, 30], &device);
    let views: [(&str, Tensor); 4] = [
        ("row-major", x.reshape([40, 30])),
        ("transposed", x.transpose(0, 1)),
        ("a row of something larger", x.select(0, 7).unsqueeze(1).expand([40, 30])),
        (
            "a part that begins anywhere",
            Tensor::cat(&[&x, &x], 0).reshape([-1]).narrow(0, 3, 1200).reshape([40, 30]),
        ),
    ];
    for (what, view) in views {
        let expected: Vec<f32> = view.to_vec::<f32>().unwrap().iter().map(|x| 2.0 * x + 1.0).collect();
        assert_eq!(axpy(2.0, &view, &z).to_vec::<f32>().unwrap(), expected, "{what}");
    }
    assert_eq!(axpy(2.0, &z, &z).to_vec::<f32>().unwrap(), [3.0; 1200], "one tensor twice");
}

#[test]
fn integers_and_bools_are_words() {
    let Some(device) = gpu() else { return };
    let source = "@group(0) @binding(0) var<storage, read> x: array<i32>;
@group(0) @binding(1) var<storage, read> keep: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<i32>;
@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) at: vec3<u32>) { y[at.y] = select(-1, x[at.y], keep[at.y] == 1u); }";
    let x = Tensor::new([5i64, 6, 7], &device);
    let keep = x.ne(6);
    let y = Kernel::new("keep").wgsl(source).workgroups([1, 3, 1]).run(&[&x, &keep], [3], DType::I64);
    assert_eq!(y.to_vec::<i64>().unwrap(), [5, -1, 7]);
}

#[test]
fn long_results_are_folded_or_refused() {
    let Some(device) = gpu() else { return };
    let x = Tensor::zeros([65536], &device);
    let source = |arguments: &str, number: &str| {
        format!(
            "@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(1)
fn main({arguments}) {{ let i = {number}; if (i < arrayLength(&y)) {{ y[i] = f32(i); }} }}"
        )
    };
    let folded = source(
        "@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>",
        "group.x + groups.x * group.y",
    );
    let y = Kernel::new("count").wgsl(folded).run(&[&x], [65536], DType::F32);
    assert_eq!(y.to_vec::<f32>().unwrap(), (0..65536).map(|i| i as f32).collect::<Vec<_>>());
    let plain = source("@builtin(workgroup_id) group: vec3<u32>", "group.x");
    let message = refused(|| Kernel::new("count").wgsl(plain).run(&[&x], [65536], DType::F32));
    assert!(message.contains("65536 elements are 65536 workgroups of 1, and 65535 is the most"), "{message}");
}

#[test]
fn what_does_not_compile_is_told_with_its_line() {
    let Some(device) = gpu() else { return };
    let x = Tensor::zeros([3], &device);
    let run = |source: String| {
        refused(|| Kernel::new("axpy").wgsl(source).param(1.0).param(3usize).run(&[&x, &x], [3], DType::F32))
    };
    let message = run(AXPY.replace("params.a *", "parms.a *"));
    assert!(message.starts_with("axpy: its WGSL cannot be used on wgpu"), "{message}");
    assert!(message.contains("parms") && message.contains("axpy.wgsl:9:19"), "{message}");
    // Parses, but has no type.
    let message = run(AXPY.replace("params.a *", "(params.a + params.n) *"));
    assert!(message.contains("axpy") && message.contains("params.a + params.n"), "{message}");
    let message = run(AXPY.replace("array<f32>", "array<i32>"));
    assert!(message.contains("x has elements of type i32, but input 0 is f32"), "{message}");
    assert_eq!(axpy(1.0, &x, &x).to_vec::<f32>().unwrap(), [0.0; 3], "and the device works on");
}

#[test]
fn reads_past_the_end_stay_within_the_input() {
    let Some(device) = gpu() else { return };
    // What was in the recycled memory behind the input must not be seen.
    drop(Tensor::full([1024], 7.0, &device));
    let x = Tensor::ones([3], &device);
    let source = "@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) { y[id.x] = x[id.x + 3u]; }";
    let y = Kernel::new("past").wgsl(source).run(&[&x], [200], DType::F32).to_vec::<f32>().unwrap();
    assert!(y.iter().all(|&v| v == 1.0 || v == 0.0), "{y:?}");
}

#[test]
fn a_kernel_without_wgsl_runs_on_the_host() {
    let Some(device) = gpu() else { return };
    let negate = |inputs: &[orkest_core::Elements<'_>], y: &mut [i64]| {
        y.iter_mut().zip(inputs[0].of::<i64>()).for_each(|(y, x)| *y = -x);
    };
    let x = Tensor::new([[1i64, 2], [3, 4]], &device).transpose(0, 1);
    let y = Kernel::new("negate").cpu(negate).run(&[&x], [4], DType::I64);
    assert_eq!((y.device(), y.to_vec::<i64>().unwrap()), (&device, vec![-1, -3, -2, -4]));
    let message = refused(|| Kernel::new("nothing").run(&[&x], [4], DType::I64));
    assert!(message.contains("the kernel nothing has no Rust program for i64 results"), "{message}");
}
