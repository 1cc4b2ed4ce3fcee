// delta = sum(g y) for every row of attention's output: what the gradient of each probability of the row is lowered by.
//
// Bindings: 0: y [rows, e], 1: g [rows, e], 2: lse [rows], 3: statistics [rows]: lse and delta side by side. One invocation per row.
// No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
// end variant

override WORKGROUP: u32 = 64u;

struct Params {
    rows: u32,
    e: u32,
    y_offset: u32,
    g_offset: u32,
    lse_offset: u32,
}

@group(0) @binding(0) var<storage, read> y: array<elem>;
@group(0) @binding(1) var<storage, read> g: array<elem>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> statistics: array<vec2<f32>>;
var<immediate> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (row >= params.rows) {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.e; i += 1u) {
        sum += load_elem(y[params.y_offset + row * params.e + i]) * load_elem(g[params.g_offset + row * params.e + i]);
    }
    statistics[row] = vec2<f32>(lse[params.lse_offset + row], sum);
}
