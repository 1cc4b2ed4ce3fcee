// Gradients of the weight and bias of normalised rows from the sums over chunks of rows of norm_columns.wgsl.
//
// Bindings: 0: sums [chunks, 2, cols], 1: dweight [cols], 2: dbias [cols] (anything without BIAS). One invocation per column.
// No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const BIAS: bool = true;
// end variant

override WORKGROUP: u32 = 256u;

struct Params {
    cols: u32,
    chunks: u32,
    dweight_offset: u32,
    dbias_offset: u32,
}

@group(0) @binding(0) var<storage, read> sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> dweight: array<elem>;
@group(0) @binding(2) var<storage, read_write> dbias: array<elem>;
var<immediate> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let col = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (col >= params.cols) {
        return;
    }
    var sum = vec2<f32>(0.0, 0.0);
    for (var chunk = 0u; chunk < params.chunks; chunk += 1u) {
        let at = chunk * 2u * params.cols + col;
        sum += vec2<f32>(sums[at], sums[at + params.cols]);
    }
    dweight[params.dweight_offset + col] = store_elem(sum.x);
    if (BIAS) {
        dbias[params.dbias_offset + col] = store_elem(sum.y);
    }
}
