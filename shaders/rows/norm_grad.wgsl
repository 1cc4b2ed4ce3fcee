// dx of normalised rows: rstd (h - mean(h) - z mean(h z)) with z = (x - mean) rstd and h = g weight. Without MEAN the row's mean was
// taken to be 0, and mean(h) falls away: root mean square normalisation.
//
// Bindings: 0: x [rows, cols], 1: mean [rows], 2: rstd [rows], 3: weight [cols] (anything where WEIGHT is false), 4: g, 5: dx.
// LANES invocations walk a row twice: both sums, then the result. Workgroup memory: 8 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const MEAN: bool = true;
const WEIGHT: bool = true;
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
    mean_offset: u32,
    rstd_offset: u32,
    weight_offset: u32,
    g_offset: u32,
    dx_offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<elem>;
@group(0) @binding(4) var<storage, read> g: array<elem>;
@group(0) @binding(5) var<storage, read_write> dx: array<elem>;
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

fn weighted(i: u32, gradient: f32) -> f32 {
    if (WEIGHT) {
        return gradient * load_elem(weight[params.weight_offset + i]);
    }
    return gradient;
}

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
    let x_start = params.x_offset + row * params.cols;
    let g_start = params.g_offset + row * params.cols;
    var centre = 0.0;
    var scale = 0.0;
    if (row < params.rows) {
        if (MEAN) {
            centre = mean[params.mean_offset + row];
        }
        scale = rstd[params.rstd_offset + row];
    }
    var sums_of_row = vec2<f32>(0.0, 0.0);
    for (var i = lane; i < cols; i += LANES) {
        let h = weighted(i, load_elem(g[g_start + i]));
        let z = (load_elem(x[x_start + i]) - centre) * scale;
        sums_of_row += vec2<f32>(h, h * z);
    }
    let means = row_sum(local, sums_of_row) / f32(params.cols);
    let to = params.dx_offset + row * params.cols;
    for (var i = lane; i < cols; i += LANES) {
        var h = weighted(i, load_elem(g[g_start + i]));
        let z = (load_elem(x[x_start + i]) - centre) * scale;
        if (MEAN) {
            h -= means.x;
        }
        dx[to + i] = store_elem((h - z * means.y) * scale);
    }
}
