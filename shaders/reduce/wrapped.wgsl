// Compares integer results with the same results in f32: one that is far off has wrapped around, which is a fault of its own kind.
//
// Bindings: 0: y, 1: the same in f32, 2: fault. One invocation per element. Wrapping moves a result by 2^32, rounding by far less.
// No workgroup memory.

override WORKGROUP: u32 = 256u;

struct Params {
    n: u32,
    offset: u32,
    code: u32,
}

// shared fault
struct Fault {
    state: atomic<u32>,
    op: u32,
    index: i32,
    size: u32,
}
// end shared

@group(0) @binding(0) var<storage, read> y: array<i32>;
@group(0) @binding(1) var<storage, read> rounded: array<f32>;
@group(0) @binding(2) var<storage, read_write> fault: Fault;
var<immediate> params: Params;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (i >= params.n) {
        return;
    }
    let off = abs(f32(y[params.offset + i]) - rounded[i]);
    if (off > 1073741824.0) {
        if (atomicCompareExchangeWeak(&fault.state, 0u, 2u).exchanged) {
            fault.op = params.code;
        }
    }
}
