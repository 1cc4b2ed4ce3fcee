// The gradient of cross-entropy: dx = (e^(x - lse) - spread - hit [class = target]) g, 0 where the target is the ignored one. A target
// that is no class is a fault.
//
// Bindings: 0: x [rows, cols], 1: target [rows], 2: lse [rows], 3: g [rows], 4: dx, 5: fault. One invocation per element.
// No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
// end variant

override WORKGROUP: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    target_offset: u32,
    lse_offset: u32,
    g_offset: u32,
    dx_offset: u32,
    ignored: i32,
    can_ignore: u32,
    hit: f32,
    spread: f32,
    op: u32,
}

struct Fault {
    state: atomic<u32>,
    op: u32,
    index: i32,
    size: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> target_class: array<i32>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<elem>;
@group(0) @binding(4) var<storage, read_write> dx: array<elem>;
@group(0) @binding(5) var<storage, read_write> fault: Fault;
var<immediate> params: Params;

// shared is_nan
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}
// end shared

// shared infinity
/// Built at run time: constants must be finite.
fn infinity() -> f32 {
    var bits = 0x7f800000u;
    return bitcast<f32>(bits);
}

fn not_a_number() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

/// Of either sign. By its bits: compilers may take it that no float is infinite, Metal's does.
fn is_infinite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
}
// end shared

// shared exponential
/// A whole number below 2^22 as an integer, read off its bits: drivers in software convert floats one by one.
fn whole(k: f32) -> i32 {
    return bitcast<i32>(k + 12582912.0) - 0x4b400000;
}

/// e to the power of x: 2^k e^r with |r| <= ln 2 / 2, so that the error does not grow with x.
fn exponential(x: f32) -> f32 {
    // Further on the result is infinity or 0 as it is here.
    let within = select(select(x, 104.0, x > 104.0), -104.0, x < -104.0);
    let k = round(within * 1.4426950409);
    let r = (within - k * 0.693145751953125) - k * 1.428606765e-6;
    let e = 1.0 + (r + r * r * (0.5 + r * (0.16666667 + r * (0.041666668 + r * (0.0083333333 + r * 0.0013888889)))));
    // Two factors, so that neither leaves the range of f32 before the product does.
    let half = whole(k) >> 1u;
    let rest = whole(k) - half;
    return select(e * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(rest + 127) << 23u), x, is_nan(x));
}
// end shared

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (i >= params.rows * params.cols) {
        return;
    }
    let row = i / params.cols;
    let class_number = i32(i - row * params.cols);
    let right = target_class[params.target_offset + row];
    var result = 0.0;
    if (params.can_ignore == 0u || right != params.ignored) {
        if (right < 0 || right >= i32(params.cols)) {
            if (class_number == 0 && atomicOr(&fault.state, 1u) == 0u) {
                fault.op = params.op;
                fault.index = right;
                fault.size = params.cols;
            }
            result = not_a_number();
        } else {
            let p = exponential(load_elem(x[params.x_offset + i]) - lse[params.lse_offset + row]);
            let share = params.spread + select(0.0, params.hit, class_number == right);
            result = (p - share) * load_elem(g[params.g_offset + row]);
        }
    }
    dx[params.dx_offset + i] = store_elem(result);
}
