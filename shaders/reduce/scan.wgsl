// Running sum or product (PROD) of x [outer, n, inner] along the middle dimension.
//
// Bindings: 0: x, 1: carries, 2: y. `lines`: one invocation per line, from its beginning to its end. `blocks`: one workgroup per
// line and block of WORKGROUP * 8 elements, 8 neighbours per invocation; with CARRY it starts from what carries
// [outer, inner, blocks] has for the block before. `totals`: y [outer, inner, blocks] = what all elements of a block give.
// Workgroup memory: 8 bytes per invocation.

// variant
alias src = f32;
fn load_src(x: src) -> f32 { return x; }
alias acc = f32;
alias dst = f32;
fn store_dst(x: f32) -> dst { return x; }
const PROD: bool = false;
const CARRY: bool = false;
// end variant

override WORKGROUP: u32 = 256u;

struct Params {
    lines: u32,
    n: u32,
    inner: u32,
    blocks: u32,
    offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<src>;
@group(0) @binding(1) var<storage, read> carries: array<acc>;
@group(0) @binding(2) var<storage, read_write> y: array<dst>;
var<immediate> params: Params;

var<workgroup> sums: array<acc, 2u * WORKGROUP>;

fn combine(a: acc, b: acc) -> acc {
    if (PROD) {
        return a * b;
    }
    return a + b;
}

fn neutral() -> acc {
    return acc(select(0, 1, PROD));
}

/// Where a line begins in row-major [outer, n, inner].
fn line_start(line: u32) -> u32 {
    let outer = line / params.inner;
    return outer * params.n * params.inner + (line - outer * params.inner);
}

@compute @workgroup_size(WORKGROUP)
fn lines(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let line = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (line >= params.lines) {
        return;
    }
    var at = line_start(line);
    var sum = load_src(x[params.offset + at]);
    y[at] = store_dst(sum);
    for (var i = 1u; i < params.n; i += 1u) {
        at += params.inner;
        sum = combine(sum, load_src(x[params.offset + at]));
        y[at] = store_dst(sum);
    }
}

/// What the 8 elements from `first` on give together.
fn eight(start: u32, first: u32) -> acc {
    var sum = neutral();
    for (var i = first; i < min(first + 8u, params.n); i += 1u) {
        sum = combine(sum, load_src(x[params.offset + start + i * params.inner]));
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn totals(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let line = number / params.blocks;
    let block = number - line * params.blocks;
    var sum = neutral();
    if (line < params.lines) {
        sum = eight(line_start(line), (block * WORKGROUP + local) * 8u);
    }
    sums[local] = sum;
    workgroupBarrier();
    // Neighbours first: a product must not meet factors from far away that overflow.
    for (var width = 1u; width < WORKGROUP; width *= 2u) {
        if (local % (2u * width) == 0u) {
            sums[local] = combine(sums[local], sums[local + width]);
        }
        workgroupBarrier();
    }
    if (local == 0u && line < params.lines) {
        y[number] = store_dst(sums[0]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn blocks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let line = number / params.blocks;
    let block = number - line * params.blocks;
    let start = line_start(line);
    let first = (block * WORKGROUP + local) * 8u;
    var sum = neutral();
    if (line < params.lines) {
        sum = eight(start, first);
    }
    var at_row = 0u;
    sums[local] = sum;
    workgroupBarrier();
    for (var width = 1u; width < WORKGROUP; width *= 2u) {
        var value = sums[at_row + local];
        if (local >= width) {
            value = combine(sums[at_row + local - width], value);
        }
        at_row = WORKGROUP - at_row;
        sums[at_row + local] = value;
        workgroupBarrier();
    }
    if (line >= params.lines) {
        return;
    }
    var running = neutral();
    if (CARRY && block > 0u) {
        running = carries[number - 1u];
    }
    if (local > 0u) {
        running = combine(running, sums[at_row + local - 1u]);
    }
    for (var i = first; i < min(first + 8u, params.n); i += 1u) {
        let at = start + i * params.inner;
        running = combine(running, load_src(x[params.offset + at]));
        y[at] = store_dst(running);
    }
}
