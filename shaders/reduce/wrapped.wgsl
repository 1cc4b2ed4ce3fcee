// Compares integer results with the same results in f32: one that is far off has wrapped around, which is a fault of its own kind.
//
// Bindings: 0: y, 1: the same in f32, 2: fault. One invocation per element. No workgroup memory.

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

// shared report_overflow
/// Whether a result computed in 32 bits is not the one that was meant, of which this is an estimate in f32: wrapping around moves it
/// by 2^32, rounding by far less.
fn exceeds(result: f32, estimate: f32) -> bool {
    return abs(result - estimate) > 1073741824.0;
}

/// Notes a result that needs more than 32 bits, unless a fault is noted already.
fn report_overflow() {
    if (atomicOr(&fault.state, 1u) == 0u) {
        fault.op = params.code | 0x40000000u;
    }
}
// end shared

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
    if (exceeds(f32(y[params.offset + i]), rounded[i])) {
        report_overflow();
    }
}
