// Normalised rows: y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(mean of squares of (x - mean) + eps). Without MEAN the mean is
// taken to be 0 and not written: root mean square normalisation.
//
// Bindings: 0: x [rows, cols], 1: weight [cols], 2: bias [cols] (anything where WEIGHT or BIAS is false), 3: y, 4: mean [rows] (anything
// without MEAN), 5: rstd [rows]. LANES invocations walk a row: mean, then variance, then the result.
// Workgroup memory: 8 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const MEAN: bool = true;
const WEIGHT: bool = true;
const BIAS: bool = true;
const SUBGROUP: u32 = 1u;
fn shuffled(x: vec2<f32>, step: u32) -> vec2<f32> { return x; }
// end variant

/// Lanes per row; the workgroup has WORKGROUP / LANES rows.
override LANES: u32 = 256u;
override WORKGROUP: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    weight_offset: u32,
    bias_offset: u32,
    y_offset: u32,
    mean_offset: u32,
    rstd_offset: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> weight: array<elem>;
@group(0) @binding(2) var<storage, read> bias: array<elem>;
@group(0) @binding(3) var<storage, read_write> y: array<elem>;
@group(0) @binding(4) var<storage, read_write> mean: array<f32>;
@group(0) @binding(5) var<storage, read_write> rstd: array<f32>;
var<immediate> params: Params;

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
    let start = params.x_offset + row * params.cols;
    let count = f32(params.cols);
    var centre = 0.0;
    if (MEAN) {
        var sum = 0.0;
        for (var i = lane; i < cols; i += LANES) {
            sum += load_elem(x[start + i]);
        }
        centre = row_sum(local, vec2<f32>(sum, 0.0)).x / count;
    }
    var squares = 0.0;
    for (var i = lane; i < cols; i += LANES) {
        let distance = load_elem(x[start + i]) - centre;
        squares += distance * distance;
    }
    squares = row_sum(local, vec2<f32>(squares, 0.0)).x;
    let scale = 1.0 / sqrt(squares / count + params.eps);
    if (lane == 0u && row < params.rows) {
        if (MEAN) {
            mean[params.mean_offset + row] = centre;
        }
        rstd[params.rstd_offset + row] = scale;
    }
    let to = params.y_offset + row * params.cols;
    for (var i = lane; i < cols; i += LANES) {
        var result = (load_elem(x[start + i]) - centre) * scale;
        if (WEIGHT) {
            result *= load_elem(weight[params.weight_offset + i]);
        }
        if (BIAS) {
            result += load_elem(bias[params.bias_offset + i]);
        }
        y[to + i] = store_elem(result);
    }
}
