// The `count` first elements of every line of x in sorted order, and their positions; stable; NaN last, or first if DESCENDING.
//
// Bindings: 0: x, 1: values, 2: positions, 3: keys, 4: places. A bitonic network over pairs (key, position), which makes it
// stable. `rows`: lines of at most TILE elements, filled up to `padded`, a power of two; a workgroup sorts TILE / padded of them
// in workgroup memory. Longer lines lie in keys and places [lines, padded]: `tiles` sorts pieces of TILE elements, up and down in
// turn; `exchange` is one step of the network, one invocation per pair, with a distance of TILE or more; `merge` does the steps
// of a stage with shorter distances; `write` writes the results, one invocation each. Workgroup memory: 8 bytes per element of
// the tile.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
alias num = f32;
const IS_FLOAT: bool = true;
const DESCENDING: bool = false;
// end variant

override WORKGROUP: u32 = 256u;
override TILE: u32 = 1024u;

struct Params {
    shape: vec4<u32>,
    strides: vec4<i32>,
    lines: u32,
    n: u32,
    padded: u32,
    count: u32,
    inner: u32,
    offset: u32,
    step: i32,
    stage: u32,
    distance: u32,
}

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read_write> values: array<elem>;
@group(0) @binding(2) var<storage, read_write> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> places: array<u32>;
var<immediate> params: Params;

var<workgroup> tile_keys: array<u32, TILE>;
var<workgroup> tile_places: array<u32, TILE>;

// shared coordinates
/// The coordinates of element i in row-major order.
fn coordinates(i: u32, shape: vec4<u32>) -> vec4<i32> {
    let r3 = i / shape.w;
    let r2 = r3 / shape.z;
    let r1 = r2 / shape.y;
    return vec4<i32>(vec4<u32>(r1, r2 - r1 * shape.y, r3 - r2 * shape.z, i - r3 * shape.w));
}

/// Where the element at these coordinates lies.
fn position(at: vec4<i32>, strides: vec4<i32>, offset: u32) -> u32 {
    let steps = at * strides;
    return u32(i32(offset) + steps.x + steps.y + steps.z + steps.w);
}
// end shared

// shared order_key
/// Orders values as unsigned integers: NaN above everything, both zeros equal.
fn order_key(x: num) -> u32 {
    let bits = bitcast<u32>(x);
    if (!IS_FLOAT) {
        return bits ^ 0x80000000u;
    }
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0xffffffffu;
    }
    if ((bits >> 31u) == 0u || bits == 0x80000000u) {
        return bits | 0x80000000u;
    }
    return ~bits;
}
// end shared

/// Where element i of a line of x lies.
fn source(line: u32, i: u32) -> u32 {
    return u32(i32(position(coordinates(line, params.shape), params.strides, params.offset)) + i32(i) * params.step);
}

fn key_of(at: u32) -> u32 {
    let key = order_key(load_elem(x[at]));
    return select(key, ~key, DESCENDING);
}

/// Fills the tile with elements `first`.. of all lines laid end to end, each filled up to `padded` with what sorts last.
fn fill_tile(first: u32, local: u32) {
    for (var t = local; t < TILE; t += WORKGROUP) {
        let line = (first + t) / params.padded;
        let i = (first + t) - line * params.padded;
        var key = 0xffffffffu;
        if (line < params.lines && i < params.n) {
            key = key_of(source(line, i));
        }
        tile_keys[t] = key;
        tile_places[t] = i;
    }
    workgroupBarrier();
}

/// One step of the network on the tile, which begins at `first`, within sorted stretches of `stage` elements.
fn step_tile(first: u32, stage: u32, distance: u32, local: u32) {
    for (var p = local; p < TILE / 2u; p += WORKGROUP) {
        let a = 2u * p - (p & (distance - 1u));
        let b = a + distance;
        let ascending = (((first + a) & (params.padded - 1u)) & stage) == 0u;
        let key_a = tile_keys[a];
        let key_b = tile_keys[b];
        let place_a = tile_places[a];
        let place_b = tile_places[b];
        let greater = key_a > key_b || (key_a == key_b && place_a > place_b);
        if (greater == ascending) {
            tile_keys[a] = key_b;
            tile_keys[b] = key_a;
            tile_places[a] = place_b;
            tile_places[b] = place_a;
        }
    }
    workgroupBarrier();
}

fn sort_tile(first: u32, largest: u32, local: u32) {
    for (var stage = 2u; stage <= largest; stage *= 2u) {
        for (var distance = stage / 2u; distance > 0u; distance /= 2u) {
            step_tile(first, stage, distance, local);
        }
    }
}

/// Result i of a line.
fn put(line: u32, i: u32, place: u32) {
    let outer = line / params.inner;
    let to = (outer * params.count + i) * params.inner + (line - outer * params.inner);
    values[to] = x[source(line, place)];
    positions[to] = place;
}

@compute @workgroup_size(WORKGROUP)
fn rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * TILE;
    fill_tile(first, local);
    sort_tile(first, params.padded, local);
    for (var t = local; t < TILE; t += WORKGROUP) {
        let line = (first + t) / params.padded;
        let i = (first + t) - line * params.padded;
        if (line < params.lines && i < params.count) {
            put(line, i, tile_places[t]);
        }
    }
}

fn store_tile(first: u32, local: u32) {
    for (var t = local; t < TILE; t += WORKGROUP) {
        keys[first + t] = tile_keys[t];
        places[first + t] = tile_places[t];
    }
}

@compute @workgroup_size(WORKGROUP)
fn tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * TILE;
    fill_tile(first, local);
    sort_tile(first, TILE, local);
    if (first < params.lines * params.padded) {
        store_tile(first, local);
    }
}

@compute @workgroup_size(WORKGROUP)
fn exchange(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let p = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (2u * p >= params.lines * params.padded) {
        return;
    }
    let a = 2u * p - (p & (params.distance - 1u));
    let b = a + params.distance;
    let ascending = ((a & (params.padded - 1u)) & params.stage) == 0u;
    let key_a = keys[a];
    let key_b = keys[b];
    let place_a = places[a];
    let place_b = places[b];
    let greater = key_a > key_b || (key_a == key_b && place_a > place_b);
    if (greater == ascending) {
        keys[a] = key_b;
        keys[b] = key_a;
        places[a] = place_b;
        places[b] = place_a;
    }
}

@compute @workgroup_size(WORKGROUP)
fn merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * TILE;
    let inside = first < params.lines * params.padded;
    for (var t = local; t < TILE && inside; t += WORKGROUP) {
        tile_keys[t] = keys[first + t];
        tile_places[t] = places[first + t];
    }
    workgroupBarrier();
    for (var distance = TILE / 2u; distance > 0u; distance /= 2u) {
        step_tile(first, params.stage, distance, local);
    }
    if (inside) {
        store_tile(first, local);
    }
}

@compute @workgroup_size(WORKGROUP)
fn write(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    let line = number / params.count;
    if (line >= params.lines) {
        return;
    }
    let i = number - line * params.count;
    put(line, i, places[line * params.padded + i]);
}
