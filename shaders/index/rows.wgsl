// Whole rows by number, 16 bytes at a time: y [outer, count, row] = x [outer, index, row], both row-major. An embedding lookup.
//
// Bindings: 0: x, 1: index, 2: y, 3: fault. One invocation per 16 bytes of y. An index out of range gives 0 and is reported.
// If x is a window, the rows from `first` of `size`, only what points into it is written. No workgroup memory.

override WORKGROUP: u32 = 256u;

struct Params {
    n: u32,
    row: u32,
    count: u32,
    x_offset: u32,
    index_offset: u32,
    index_step: i32,
    size: u32,
    code: u32,
    first: u32,
    window: u32,
}

// shared fault
struct Fault {
    state: atomic<u32>,
    op: u32,
    index: i32,
    size: u32,
}
// end shared

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> indices: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> fault: Fault;
var<immediate> params: Params;

// shared report_fault
/// Notes an index out of range, unless a fault is noted already. A weak compare-and-exchange may fail for no reason; this does not.
fn report_fault(index: i32) {
    if (atomicOr(&fault.state, 1u) == 0u) {
        fault.op = params.code;
        fault.index = index;
        fault.size = params.size;
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
    let line = i / params.row;
    let outer = line / params.count;
    let index = indices[u32(i32(params.index_offset) + i32(line - outer * params.count) * params.index_step)];
    if (index < 0 || u32(index) >= params.size) {
        report_fault(index);
        y[i] = vec4<u32>();
        return;
    }
    let number = u32(index) - params.first;
    if (number < params.window) {
        y[i] = x[params.x_offset + (outer * params.window + number) * params.row + (i - line * params.row)];
    }
}
