// y = x of the same element type for layouts of more than four dimensions, moved as bits.
//
// Bindings: 0: x, 1: dims, three words per dimension (size, stride of x, stride of y), 2: y. ITEMS elements per invocation. No
// workgroup memory.

// variant
alias elem = u32;
// end variant

override WORKGROUP: u32 = 256u;
/// Elements per invocation.
override ITEMS: u32 = 1u;

struct Params {
    n: u32,
    rank: u32,
    x_offset: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> dims: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
var<immediate> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP * ITEMS;
    let end = min(params.n, first + WORKGROUP * ITEMS);
    for (var i = first + local; i < end; i += WORKGROUP) {
        var rest = i;
        var x_at = params.x_offset;
        var y_at = params.y_offset;
        for (var d = params.rank; d > 0u; d -= 1u) {
            let size = dims[3u * d - 3u];
            let next = rest / size;
            let at = rest - next * size;
            // Negative strides wrap around, as they should.
            x_at += at * dims[3u * d - 2u];
            y_at += at * dims[3u * d - 1u];
            rest = next;
        }
        y[y_at] = x[x_at];
    }
}
