// dx of softmax from its output: (g - sum(g y)) y, or of its logarithm if LOG: g - e^y sum(g).
//
// Bindings: 0: y, 1: g, 2: dx, all [rows, cols]. LANES invocations walk a row twice: the sum, then the result.
// Workgroup memory: 8 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const LOG: bool = false;
const SUBGROUP: u32 = 1u;
fn shuffled(x: vec2<f32>, step: u32) -> vec2<f32> { return x; }
// end variant

/// Lanes per row; the workgroup has WORKGROUP / LANES rows.
override LANES: u32 = 256u;
override WORKGROUP: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    y_offset: u32,
    g_offset: u32,
    dx_offset: u32,
}

@group(0) @binding(0) var<storage, read> y: array<elem>;
@group(0) @binding(1) var<storage, read> g: array<elem>;
@group(0) @binding(2) var<storage, read_write> dx: array<elem>;
var<immediate> params: Params;

// shared is_nan
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
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

// shared row_sum
var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

/// The sum of both values over the lanes of a row, for each of them. All invocations must call it. Neighbours first, then pairs of
/// neighbours, and so on: the same sum to the last bit, whoever makes which part of it.
fn row_sum(local: u32, value: vec2<f32>) -> vec2<f32> {
    var total = value;
    for (var step = 1u; step < min(SUBGROUP, LANES); step <<= 1u) {
        total += shuffled(total, step);
    }
    if (SUBGROUP >= LANES) {
        return total;
    }
    sums[local] = total;
    workgroupBarrier();
    let first = local - local % LANES;
    if (SUBGROUP * SUBGROUP >= LANES) {
        // Few enough for every lane to finish with its neighbours.
        total = sums[first + local % max(LANES / SUBGROUP, 1u) * SUBGROUP];
        for (var step = 1u; step < LANES / SUBGROUP; step <<= 1u) {
            total += shuffled(total, step);
        }
    } else {
        for (var step = SUBGROUP; step < LANES; step <<= 1u) {
            if (local % (2u * step) == 0u) {
                sums[local] += sums[local + step];
            }
            workgroupBarrier();
        }
        total = sums[first];
    }
    workgroupBarrier();
    return total;
}
// end shared

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (group.x + groups.x * (group.y + groups.y * group.z)) * (WORKGROUP / LANES) + local / LANES;
    let lane = local % LANES;
    // Rows past the end take part in the barriers, with nothing.
    let cols = select(0u, params.cols, row < params.rows);
    let y_start = params.y_offset + row * params.cols;
    let g_start = params.g_offset + row * params.cols;
    var sum = 0.0;
    for (var i = lane; i < cols; i += LANES) {
        let gradient = load_elem(g[g_start + i]);
        sum += select(gradient * load_elem(y[y_start + i]), gradient, LOG);
    }
    sum = row_sum(local, vec2<f32>(sum, 0.0)).x;
    let to = params.dx_offset + row * params.cols;
    for (var i = lane; i < cols; i += LANES) {
        let output = load_elem(y[y_start + i]);
        let gradient = load_elem(g[g_start + i]);
        if (LOG) {
            dx[to + i] = store_elem(gradient - exponential(output) * sum);
        } else {
            dx[to + i] = store_elem((gradient - sum) * output);
        }
    }
}
