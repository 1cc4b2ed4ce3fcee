// Gradients of the weight and bias of normalised rows: sums over the rows of g z and of g, z = (x - mean) rstd (mean 0 without MEAN).
// Only over chunks of rows: norm_finish.wgsl adds these up, so that the order of additions is fixed.
//
// Bindings: 0: x [rows, cols], 1: mean [rows], 2: rstd [rows], 3: g, 4: sums [chunks, 2, cols]. A workgroup has COLUMNS columns of
// one chunk, its WORKGROUP / COLUMNS strips of invocations take turns at the rows. Workgroup memory: 8 bytes per invocation.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const MEAN: bool = true;
// end variant

override COLUMNS: u32 = 32u;
override WORKGROUP: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    mean_offset: u32,
    rstd_offset: u32,
    g_offset: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<elem>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
var<immediate> params: Params;

var<workgroup> strips: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let blocks = (params.cols + COLUMNS - 1u) / COLUMNS;
    let chunk = number / blocks;
    let col = (number - chunk * blocks) * COLUMNS + local % COLUMNS;
    let first = chunk * params.chunk;
    let end = select(first, min(first + params.chunk, params.rows), chunk < params.chunks && col < params.cols);
    var sum = vec2<f32>(0.0, 0.0);
    for (var row = first + local / COLUMNS; row < end; row += WORKGROUP / COLUMNS) {
        let gradient = load_elem(g[params.g_offset + row * params.cols + col]);
        var z = load_elem(x[params.x_offset + row * params.cols + col]);
        if (MEAN) {
            z -= mean[params.mean_offset + row];
        }
        sum += vec2<f32>(gradient * (z * rstd[params.rstd_offset + row]), gradient);
    }
    strips[local] = sum;
    workgroupBarrier();
    if (local < COLUMNS && first < end) {
        for (var strip = local + COLUMNS; strip < WORKGROUP; strip += COLUMNS) {
            sum += strips[strip];
        }
        sums[(chunk * 2u) * params.cols + col] = sum.x;
        sums[(chunk * 2u + 1u) * params.cols + col] = sum.y;
    }
}
