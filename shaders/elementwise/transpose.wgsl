// y = x of the same element type, moved as bits, where columns of x lie side by side: tile by tile.
//
// Bindings: 0: x, 1: y. The last two dimensions are the rows and columns of the result; its rows lie side by side in y, its columns in
// x. `tiles`: 32 x 32 elements per workgroup of 256, through workgroup memory, so that neighbours read and write neighbours; lines of
// 33 elements keep columns in different banks. `lines`: ROWS x BLOCKS WORKGROUP elements per workgroup and no workgroup memory, for
// adapters in software: what the first row of a tile has brought into the cache, the others read there.

// variant
alias elem = u32;
// end variant

override WORKGROUP: u32 = 256u;
/// Of the tiles of `lines`.
override ROWS: u32 = 32u;
override BLOCKS: u32 = 2u;
/// Of the tiles of `tiles`.
const SIDE: u32 = 32u;

struct Params {
    shape: vec4<u32>,
    y_strides: vec4<i32>,
    x_strides: vec4<i32>,
    y_offset: u32,
    x_offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
var<immediate> params: Params;

var<workgroup> tile: array<elem, SIDE * (SIDE + 1u)>;

/// The first row and column of a tile, and the numbers of its matrix in the outer dimensions.
fn tile_at(number: u32, rows: u32, columns: u32) -> vec4<u32> {
    let across = (params.shape.w + columns - 1u) / columns;
    let down = (params.shape.z + rows - 1u) / rows;
    let line = number / across;
    let matrix = line / down;
    let outer = matrix / params.shape.y;
    return vec4<u32>(outer, matrix - outer * params.shape.y, (line - matrix * down) * rows, (number - line * across) * columns);
}

/// Where the element at these coordinates lies.
fn position(at: vec4<u32>, strides: vec4<i32>, offset: u32) -> i32 {
    let steps = vec4<i32>(at) * strides;
    return i32(offset) + steps.x + steps.y + steps.z + steps.w;
}

@compute @workgroup_size(WORKGROUP)
fn tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = tile_at(group.x + groups.x * (group.y + groups.y * group.z), SIDE, SIDE);
    if (first.x >= params.shape.x) {
        return;
    }
    let beside = local % SIDE;
    let step = WORKGROUP / SIDE;
    let size = min(params.shape.zw - first.zw, vec2<u32>(SIDE));
    let x_first = position(first, params.x_strides, params.x_offset);
    for (var column = local / SIDE; column < size.y; column += step) {
        if (beside < size.x) {
            let at = x_first + i32(beside) * params.x_strides.z + i32(column) * params.x_strides.w;
            tile[column * (SIDE + 1u) + beside] = x[u32(at)];
        }
    }
    workgroupBarrier();
    let y_first = position(first, params.y_strides, params.y_offset);
    for (var row = local / SIDE; row < size.x; row += step) {
        if (beside < size.y) {
            let at = y_first + i32(row) * params.y_strides.z + i32(beside) * params.y_strides.w;
            y[u32(at)] = tile[beside * (SIDE + 1u) + row];
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn lines(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    let first = tile_at(number, ROWS, BLOCKS * WORKGROUP);
    if (first.x >= params.shape.x) {
        return;
    }
    let end = min(params.shape.z - first.z, ROWS);
    for (var block = 0u; block < BLOCKS; block += 1u) {
        let at = first + vec4<u32>(0u, 0u, 0u, block * WORKGROUP + local);
        if (at.w < params.shape.w) {
            var x_at = position(at, params.x_strides, params.x_offset);
            var y_at = position(at, params.y_strides, params.y_offset);
            for (var row = 0u; row < end; row += 1u) {
                y[u32(y_at)] = x[u32(x_at)];
                x_at += params.x_strides.z;
                y_at += params.y_strides.z;
            }
        }
    }
}
