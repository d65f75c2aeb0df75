"""Attention and products for Hopper: warps with roles, in Gluon, Triton's language for one kind of GPU at a time.

One warp copies tiles into a ring of buffers in shared memory; warpgroups (four warps, a consumer each) multiply them
as they arrive. So nothing waits for copies, consumers share what is copied, and while one computes its softmax or its
gate the tensor cores work for the others. Every kernel here has a twin of the same name and parameters in
``kernels.py``, which computes the same; there is the description of the parameters, and that form is what runs on other
GPUs and in tests, and what PyTorch's compiler reads. Where a twin is launched with ``TWIN``, this form takes its place.
"""

# mypy: ignore-errors
# Triton types its language at run time.

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Products ---------------------------------------------------------------------------------------------------


@gluon.jit
def _gelu(x):
    """See ``kernels.gelu``."""
    square = gl.minimum(x * x, 40.0)
    u = x * (0.797507877 + square * (0.0370056521 - square * 0.000351517734))
    half = 0.5 * x
    return half + half * gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=r,r", [u], gl.float32, True, 1
    )


@gluon.jit
def _halves(x, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Left and right half of a tile; each thread has its share of both."""
    return x.reshape([ROWS, 2, COLUMNS // 2]).permute([0, 2, 1]).split()


@gluon.jit
def _store(value, out, row, column, M, N, stride, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Whole lines of 128 bytes, where the multiplication leaves 4 bytes to a thread."""
    lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [4, 1], [1, 0])
    value = gl.convert_layout(value.to(out.dtype.element_ty), lines)
    row += gl.arange(0, ROWS, layout=gl.SliceLayout(1, lines))
    column += gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, lines))
    place = out + row.to(gl.int64)[:, None] * stride + (stride - N) + column[None, :]
    gl.store(place, value, mask=(row < M)[:, None] & (column < N)[None, :])


@gluon.jit
def _store_wide(value, out, row, column, M, N, stride, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """The same 64 columns at a time: that much shared memory is left."""
    if COLUMNS <= 64:
        _store(value, out, row, column, M, N, stride, ROWS, COLUMNS)
    else:
        left, right = _halves(value, ROWS, COLUMNS)
        _store_wide(left, out, row, column, M, N, stride, ROWS, COLUMNS // 2)
        _store_wide(right, out, row, column + COLUMNS // 2, M, N, stride, ROWS, COLUMNS // 2)


@gluon.jit
def _place(tile, M, N, ROWS: gl.constexpr, COLUMNS: gl.constexpr, GROUP: gl.constexpr):
    """Row and column of a tile; the order is that of ``kernels.product``."""
    per_group = GROUP * gl.cdiv(N, COLUMNS)
    group = (tile // per_group) * GROUP
    size = gl.minimum(gl.cdiv(M, ROWS) - group, GROUP)
    return (group + (tile % per_group) % size) * ROWS, ((tile % per_group) // size) * COLUMNS


@gluon.jit
def _multiply(
    CONSUMER: gl.constexpr,
    shared,
    ends,
    TAPS: gl.constexpr,
    GATED: gl.constexpr,
    BIAS: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    EXTRA_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A consumer makes BLOCK_M rows of every tile: the upper half or the lower."""
    a, b, c, filled, free, started = shared
    bias, out, M, N, K, stride = ends
    WIDTH: gl.constexpr = BLOCK_N * 2 if GATED else BLOCK_N
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    if EXTRA_N > 0:
        extra_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, EXTRA_N, 16])
    tiles = gl.cdiv(M, 2 * BLOCK_M) * gl.cdiv(N, BLOCK_N + EXTRA_N)
    steps = TAPS * gl.cdiv(K, BLOCK_K)
    step = 0
    if CONSUMER == 1:  # stays behind, so that one stores while the other multiplies
        mbarrier.wait(started, 0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        acc = gl.full([BLOCK_M, WIDTH], 0.0, gl.float32, layout=layout)
        if EXTRA_N > 0:
            extra = gl.full([BLOCK_M, EXTRA_N], 0.0, gl.float32, layout=extra_layout)
        for index in range(steps):
            stage = step % STAGES
            mbarrier.wait(filled.index(stage), (step // STAGES) & 1)
            rows = a.index(2 * stage + CONSUMER)
            acc = warpgroup_mma(rows, b.index(stage).permute((1, 0)), acc, is_async=True)
            if EXTRA_N > 0:
                extra = warpgroup_mma(rows, c.index(stage).permute((1, 0)), extra, is_async=True)
                acc, extra = warpgroup_mma_wait(2, deps=[acc, extra])
            else:
                acc = warpgroup_mma_wait(1, deps=[acc])
            # What was multiplied one step ago has been read.
            mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), pred=index > 0)
            if CONSUMER == 0:
                mbarrier.arrive(started, pred=step == STAGES - 2)
            step += 1
        if EXTRA_N > 0:
            acc, extra = warpgroup_mma_wait(0, deps=[acc, extra])
        else:
            acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(free.index((step + STAGES - 1) % STAGES))

        row, column = _place(tile, M, N, 2 * BLOCK_M, BLOCK_N + EXTRA_N, GROUP)
        row += CONSUMER * BLOCK_M
        if GATED:
            acc, gates = _halves(acc, BLOCK_M, WIDTH)
            if BIAS:
                place = column + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, acc.type.layout))
                acc += gl.load(bias + place, mask=place < N, other=0.0).to(gl.float32)[None, :]
                gates += gl.load(bias + N + place, mask=place < N, other=0.0).to(gl.float32)[None, :]
            acc *= _gelu(gates)
        elif BIAS:
            place = column + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
            acc += gl.load(bias + place, mask=place < N, other=0.0).to(gl.float32)[None, :]
        _store_wide(acc, out, row, column, M, N, stride, BLOCK_M, BLOCK_N)
        if EXTRA_N > 0:
            column += BLOCK_N
            if BIAS:
                place = column + gl.arange(0, EXTRA_N, layout=gl.SliceLayout(0, extra_layout))
                extra += gl.load(bias + place, mask=place < N, other=0.0).to(gl.float32)[None, :]
            _store_wide(extra, out, row, column, M, N, stride, BLOCK_M, EXTRA_N)
    if CONSUMER == 0:  # so little to do that the ring never filled
        mbarrier.arrive(started, pred=step < STAGES - 1)


@gluon.jit
def _copy_factors(
    shared,
    sources,
    TAPS: gl.constexpr,
    GATED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    EXTRA_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Fill the ring in the order in which it is read."""
    a, b, c, filled, free, _started = shared
    x, w, w_extra, M, N, K, step = sources
    WIDTH: gl.constexpr = BLOCK_N * 2 if GATED else BLOCK_N
    BYTES: gl.constexpr = (2 * BLOCK_M + WIDTH + EXTRA_N) * BLOCK_K * 2
    tiles = gl.cdiv(M, 2 * BLOCK_M) * gl.cdiv(N, BLOCK_N + EXTRA_N)
    blocks = gl.cdiv(K, BLOCK_K)
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = _place(tile, M, N, 2 * BLOCK_M, BLOCK_N + EXTRA_N, GROUP)
        for index in range(TAPS * blocks):
            stage = count % STAGES
            tap = index // blocks
            depth = (index % blocks) * BLOCK_K
            first = row + (tap - TAPS // 2) * step
            ready = filled.index(stage)
            mbarrier.wait(free.index(stage), ((count // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, BYTES)
            tma.async_copy_global_to_shared(x, [first, depth], ready, a.index(2 * stage))
            tma.async_copy_global_to_shared(x, [first + BLOCK_M, depth], ready, a.index(2 * stage + 1))
            depth += tap * K
            if GATED:
                tma.async_copy_global_to_shared(w, [column, depth], ready, b.index(stage).slice(0, BLOCK_N))
                lower = b.index(stage).slice(BLOCK_N, BLOCK_N)
                tma.async_copy_global_to_shared(w, [column + N, depth], ready, lower)
            else:
                tma.async_copy_global_to_shared(w, [column, depth], ready, b.index(stage))
            if EXTRA_N > 0:
                tma.async_copy_global_to_shared(w_extra, [column + BLOCK_N, depth], ready, c.index(stage))
            count += 1


@gluon.jit
def product(
    x,
    w,
    w_extra,
    scale,
    bias,
    out,
    M,
    N,
    K,
    stride,
    step,
    image_height,
    image_width,
    TAPS: gl.constexpr,
    GATED: gl.constexpr,
    SCALED: gl.constexpr,
    BIAS: gl.constexpr,
    PADDED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    EXTRA_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP: gl.constexpr,
    TWIN: gl.constexpr,  # buffers of the ring
):
    """See ``kernels.product``. A tile is 2 * BLOCK_M rows here; FP16 only, one tap or three, not scaled."""
    gl.static_assert(not SCALED and not PADDED and TAPS < 9)
    WIDTH: gl.constexpr = BLOCK_N * 2 if GATED else BLOCK_N
    a = gl.allocate_shared_memory(gl.float16, [2 * TWIN, BLOCK_M, BLOCK_K], x.layout)
    b = gl.allocate_shared_memory(gl.float16, [TWIN, WIDTH, BLOCK_K], w.layout)
    c = b
    if EXTRA_N > 0:
        c = gl.allocate_shared_memory(gl.float16, [TWIN, EXTRA_N, BLOCK_K], w_extra.layout)
    filled = gl.allocate_shared_memory(gl.int64, [TWIN, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [TWIN, 1], mbarrier.MBarrierLayout())
    started = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout()).index(0)
    for index in gl.static_range(TWIN):
        mbarrier.init(filled.index(index), count=1)
        mbarrier.init(free.index(index), count=2)
    mbarrier.init(started, count=1)
    fence_async_shared()
    shared = (a, b, c, filled, free, started)
    ends = (bias, out, M, N, K, stride)
    sources = (x, w, w_extra, M, N, K, step)
    gl.warp_specialize(
        [
            (
                _multiply,
                (0, shared, ends, TAPS, GATED, BIAS, BLOCK_M, BLOCK_N, EXTRA_N, BLOCK_K, GROUP, TWIN),
            ),
            (
                _multiply,
                (1, shared, ends, TAPS, GATED, BIAS, BLOCK_M, BLOCK_N, EXTRA_N, BLOCK_K, GROUP, TWIN),
            ),
            (_copy_factors, (shared, sources, TAPS, GATED, BLOCK_M, BLOCK_N, EXTRA_N, BLOCK_K, GROUP, TWIN)),
        ],
        [4, 1],
        [232, 24],
    )


# Attention --------------------------------------------------------------------------------------------------


@gluon.jit
def _softmax(
    scores,
    top,
    total,
    acc,
    first,
    rows,
    factor: gl.constexpr,
    MASK: gl.constexpr,
    BLOCK_N: gl.constexpr,
):
    """One step of online softmax, as in ``kernels._attend_block``: weights in FP16 and what came before, scaled."""
    layout: gl.constexpr = scores.type.layout
    acc_layout: gl.constexpr = acc.type.layout
    if MASK:
        key = first + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
        scores = gl.where((key < rows)[None, :], scores, float("-inf"))
    new = gl.maximum(top, gl.max(scores, 1) * factor)
    weights = gl.exp2(scores * factor - new[:, None])
    shrink = gl.exp2(top - new)
    total = total * shrink + gl.sum(weights, 1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc_layout))[:, None]
    weights = gl.convert_layout(weights.to(gl.float16), gl.DotOperandLayout(0, acc_layout, 2))
    return weights, new, total, acc


@gluon.jit
def _attend(
    CONSUMER: gl.constexpr,
    shared,
    out,
    place,
    factor: gl.constexpr,
    SIZE: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A consumer attends with its own BLOCK_M queries."""
    q, k, v, queried, k_filled, v_filled, k_free, v_free = shared
    rows, heads, first, frame, head = place
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SIZE, 16])
    per_row: gl.constexpr = gl.SliceLayout(1, layout)
    top = gl.full([BLOCK_M], float("-inf"), gl.float32, layout=per_row)
    total = gl.full([BLOCK_M], 0.0, gl.float32, layout=per_row)
    nothing = gl.full([BLOCK_M, BLOCK_N], 0.0, gl.float32, layout=layout)
    acc = gl.full([BLOCK_M, SIZE], 0.0, gl.float32, layout=acc_layout)
    # A step adds the values of the block before it and multiplies its own keys: for the first, nothing times block 0.
    weights = gl.full([BLOCK_M, BLOCK_N], 0.0, gl.float16, layout=gl.DotOperandLayout(0, acc_layout, 2))
    blocks = gl.cdiv(rows, BLOCK_N)
    mbarrier.wait(queried, 0)
    mbarrier.wait(v_filled.index(0), 0)
    for block in range(0, blocks - 1):
        stage = block % STAGES
        before = gl.maximum(block - 1, 0) % STAGES
        mbarrier.wait(k_filled.index(stage), (block // STAGES) & 1)
        adding = warpgroup_mma(weights, v.index(before), acc, is_async=True)
        keys = k.index(stage).permute((1, 0))
        scoring = warpgroup_mma(q.index(CONSUMER), keys, nothing, use_acc=False, is_async=True)
        scores, acc = warpgroup_mma_wait(0, deps=[scoring, adding])
        mbarrier.arrive(k_free.index(stage))
        mbarrier.arrive(v_free.index(before), pred=block > 0)
        weights, top, total, acc = _softmax(scores, top, total, acc, 0, rows, factor, False, BLOCK_N)
        mbarrier.wait(v_filled.index(stage), (block // STAGES) & 1)
    block = blocks - 1
    stage = block % STAGES
    mbarrier.wait(k_filled.index(stage), (block // STAGES) & 1)
    adding = warpgroup_mma(weights, v.index(gl.maximum(block - 1, 0) % STAGES), acc, is_async=True)
    keys = k.index(stage).permute((1, 0))
    scoring = warpgroup_mma(q.index(CONSUMER), keys, nothing, use_acc=False, is_async=True)
    scores, acc = warpgroup_mma_wait(0, deps=[scoring, adding])
    weights, top, total, acc = _softmax(scores, top, total, acc, block * BLOCK_N, rows, factor, True, BLOCK_N)
    mbarrier.wait(v_filled.index(stage), (block // STAGES) & 1)
    adding = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[adding])

    acc = acc / gl.convert_layout(total, gl.SliceLayout(1, acc_layout))[:, None]
    lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // SIZE, SIZE // 8], [4, 1], [1, 0])
    mixed = gl.convert_layout(acc.to(gl.float16), lines)
    row = first + CONSUMER * BLOCK_M + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, lines))
    column = head * SIZE + gl.arange(0, SIZE, layout=gl.SliceLayout(0, lines))
    place = out + (frame.to(gl.int64) * rows + row)[:, None] * (heads * SIZE) + column[None, :]
    gl.store(place, mixed, mask=(row < rows)[:, None])


@gluon.jit
def _copy_tokens(
    queries,
    kv,
    shared,
    place,
    SIZE: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    TWIN: gl.constexpr,
):
    """Queries of all consumers, then the ring of keys and values that they share."""
    q, k, v, queried, k_filled, v_filled, k_free, v_free = shared
    rows, heads, first, frame, head = place
    base = frame * rows
    column = head * SIZE
    width = heads * SIZE
    BYTES: gl.constexpr = BLOCK_N * SIZE * 2
    mbarrier.expect(queried, TWIN * BLOCK_M * SIZE * 2)
    for consumer in gl.static_range(TWIN):
        at = base + first + consumer * BLOCK_M
        tma.async_copy_global_to_shared(queries, [at, column], queried, q.index(consumer))
    for block in range(0, gl.cdiv(rows, BLOCK_N)):
        stage = block % STAGES
        parity = ((block // STAGES) & 1) ^ 1
        at = base + block * BLOCK_N
        mbarrier.wait(k_free.index(stage), parity)
        mbarrier.expect(k_filled.index(stage), BYTES)
        tma.async_copy_global_to_shared(kv, [at, width + column], k_filled.index(stage), k.index(stage))
        mbarrier.wait(v_free.index(stage), parity)
        mbarrier.expect(v_filled.index(stage), BYTES)
        tma.async_copy_global_to_shared(kv, [at, 2 * width + column], v_filled.index(stage), v.index(stage))


@gluon.jit
def spatial_attention(
    queries,
    kv,
    out,
    rows,
    heads,
    factor: gl.constexpr,
    SIZE: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    TWIN: gl.constexpr,  # consumers: 3
):
    """See ``kernels.spatial_attention``. Each program attends with TWIN * BLOCK_M queries; FP16 only."""
    gl.static_assert(TWIN == 3)
    q = gl.allocate_shared_memory(gl.float16, [TWIN, BLOCK_M, SIZE], queries.layout)
    k = gl.allocate_shared_memory(gl.float16, [STAGES, BLOCK_N, SIZE], kv.layout)
    v = gl.allocate_shared_memory(gl.float16, [STAGES, BLOCK_N, SIZE], kv.layout)
    queried = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout()).index(0)
    k_filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(queried, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_filled.index(stage), count=1)
        mbarrier.init(v_filled.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=TWIN)
        mbarrier.init(v_free.index(stage), count=TWIN)
    fence_async_shared()
    first = gl.program_id(0) * (TWIN * BLOCK_M)
    frame = gl.program_id(1) // heads
    head = gl.program_id(1) % heads
    shared = (q, k, v, queried, k_filled, v_filled, k_free, v_free)
    place = (rows, heads, first, frame, head)
    gl.warp_specialize(
        [
            (_attend, (0, shared, out, place, factor, SIZE, BLOCK_M, BLOCK_N, STAGES)),
            (_attend, (1, shared, out, place, factor, SIZE, BLOCK_M, BLOCK_N, STAGES)),
            (_attend, (2, shared, out, place, factor, SIZE, BLOCK_M, BLOCK_N, STAGES)),
            (_copy_tokens, (queries, kv, shared, place, SIZE, BLOCK_M, BLOCK_N, STAGES, TWIN)),
        ],
        [4, 4, 1],
        [160, 160, 24],
    )
