// y = a b for batches of integer matrices with any strides.
//
// Bindings: 0: a, 1: b, 2: y, row-major. One invocation per element. No workgroup memory.

// variant
alias elem = i32;
fn load_elem(x: elem) -> i32 { return x; }
fn store_elem(x: i32) -> elem { return x; }
// end variant

override WORKGROUP: u32 = 64u;

struct Params {
    // Of the outer and the inner batch dimension, of a row and along k.
    a_strides: vec4<i32>,
    // Of the outer and the inner batch dimension, of a column and along k.
    b_strides: vec4<i32>,
    // Elements of y.
    count: u32,
    m: u32,
    n: u32,
    k: u32,
    inner: u32,
    a_offset: u32,
    b_offset: u32,
}

@group(0) @binding(0) var<storage, read> a: array<elem>;
@group(0) @binding(1) var<storage, read> b: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
var<immediate> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (i >= params.count) {
        return;
    }
    let row = i / params.n;
    let batch = row / params.m;
    let outer = batch / params.inner;
    let at = vec4<i32>(vec4<u32>(outer, batch - outer * params.inner, row - batch * params.m, i - row * params.n));
    let a_steps = at.xyz * params.a_strides.xyz;
    let b_steps = at.xyw * params.b_strides.xyz;
    var a_at = i32(params.a_offset) + a_steps.x + a_steps.y + a_steps.z;
    var b_at = i32(params.b_offset) + b_steps.x + b_steps.y + b_steps.z;
    var sum = 0;
    for (var k = 0u; k < params.k; k += 1u) {
        sum += load_elem(a[u32(a_at)]) * load_elem(b[u32(b_at)]);
        a_at += params.a_strides.w;
        b_at += params.b_strides.w;
    }
    y[i] = store_elem(sum);
}
