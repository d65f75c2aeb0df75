"""Triton kernels for feature maps in token layout, ``[frames, positions, channels]``, channels contiguous.

Every kernel computes in FP32 and stores in the type of its output. Shapes that a kernel is compiled for are passed as
``tl.constexpr`` in capitals; the functions that launch them, and choose block sizes, are in ``operations.py``. Numbers
that are not whole are constants too: as arguments Triton would take them in FP32, PyTorch's compiler in FP64.
"""

# mypy: ignore-errors
# Triton types its language at run time.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fitted(value, out):
    """FP32 in the type of what ``out`` points to; in e4m3 what is too large becomes the largest number."""
    if out.dtype.element_ty == tl.float8e4nv:
        value = tl.clamp(value, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return value.to(out.dtype.element_ty)


@triton.jit
def channel_moments(
    x,  # [frames, rows, channels]
    other,  # the same, added to x (ADD)
    third,  # the same, added to x (THREE)
    bias,  # [channels], added to x (ADD)
    total,  # [frames, rows, channels]: the sum (ADD)
    moments,  # [frames, chunks, channels, 2] float32
    rows,
    channels,
    chunk,  # rows of a frame that one program reads
    ADD: tl.constexpr,
    THREE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of each channel over a chunk of rows; optionally of a sum it also stores.

    Deviations are taken from the chunk's first row, so that a large mean costs no precision.
    """
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    piece = tl.program_id(1)
    chunks = tl.cdiv(rows, chunk)
    frame = (piece // chunks).to(tl.int64)
    first = (piece % chunks) * chunk
    last = tl.minimum(first + chunk, rows)
    inside = column < channels
    base = frame * rows * channels

    constant = tl.zeros([BLOCK_C], tl.float32)
    if ADD:
        constant = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    offset = base + first.to(tl.int64) * channels + column
    origin = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) + constant
    if ADD:
        origin += tl.load(other + offset, mask=inside, other=0.0).to(tl.float32)
    if THREE:
        origin += tl.load(third + offset, mask=inside, other=0.0).to(tl.float32)

    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        mask = (row < last)[:, None] & inside[None, :]
        place = base + row.to(tl.int64)[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + constant[None, :]
        if ADD:
            value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
        if THREE:
            value += tl.load(third + place, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            tl.store(total + place, value.to(total.dtype.element_ty), mask=mask)
        deviation = tl.where(mask, value - origin[None, :], 0.0)
        sums += deviation
        squares += deviation * deviation
    count = (last - first).to(tl.float32)
    drift = tl.sum(sums, 0) / count
    spread = tl.maximum(tl.sum(squares, 0) - drift * drift * count, 0.0)
    out = moments + (piece.to(tl.int64) * channels + column) * 2
    tl.store(out, origin + drift, mask=inside)
    tl.store(out + 1, spread, mask=inside)


@triton.jit
def _sum_means(
    moments, shift, pieces, chunks, chunk, rows, channels, column, inside, shifts, BLOCK_P: tl.constexpr
):
    """Sum over pieces and columns of count * (mean + shift)."""
    total = tl.zeros([BLOCK_P, column.shape[0]], tl.float32)
    for start in range(0, pieces, BLOCK_P):
        piece = start + tl.arange(0, BLOCK_P)
        mask = (piece < pieces)[:, None] & inside[None, :]
        count = tl.minimum(chunk, rows - (piece % chunks) * chunk).to(tl.float32)[:, None]
        place = (piece[:, None] * channels + column[None, :]) * 2
        mean = tl.load(moments + place, mask=mask, other=0.0) + shifts[None, :]
        total += tl.where(mask, count * mean, 0.0)
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def _sum_squares(
    moments, mean, pieces, chunks, chunk, rows, channels, column, inside, shifts, BLOCK_P: tl.constexpr
):
    """Sum over pieces and columns of squared deviations from ``mean``."""
    total = tl.zeros([BLOCK_P, column.shape[0]], tl.float32)
    for start in range(0, pieces, BLOCK_P):
        piece = start + tl.arange(0, BLOCK_P)
        mask = (piece < pieces)[:, None] & inside[None, :]
        count = tl.minimum(chunk, rows - (piece % chunks) * chunk).to(tl.float32)[:, None]
        place = (piece[:, None] * channels + column[None, :]) * 2
        deviation = tl.load(moments + place, mask=mask, other=0.0) + shifts[None, :] - mean
        spread = tl.load(moments + place + 1, mask=mask, other=0.0)
        total += tl.where(mask, spread + count * deviation * deviation, 0.0)
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def norm_coefficients(
    first,  # moments of the first part: [frames, chunks, first_channels, 2] float32
    second,  # of the second part, which follows it along the channels (TWO)
    shift,  # [channels]: added to the map before the norm (SHIFT)
    weight,
    bias,
    coefficients,  # [2, segments, channels] float32: the norm is x * [0] + [1]
    frames,  # per segment: 1, or all of them
    rows,
    first_channels,
    first_chunk,
    second_channels,
    second_chunk,
    group,  # channels per group
    eps: tl.constexpr,
    TWO: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Merge moments (Chan et al. 1979) into one scale and offset per channel; one program per segment and group."""
    segment = tl.program_id(0)
    channels = first_channels + second_channels
    lane = tl.arange(0, BLOCK_G)
    column = tl.program_id(1) * group + lane
    inside = lane < group
    shifts = tl.zeros([BLOCK_G], tl.float32)
    if SHIFT:
        shifts = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)

    chunks1 = tl.cdiv(rows, first_chunk)
    pieces1 = frames * chunks1
    moments1 = first + segment.to(tl.int64) * pieces1 * first_channels * 2
    inside1 = inside & (column < first_channels)
    total = _sum_means(
        moments1, shift, pieces1, chunks1, first_chunk, rows, first_channels, column, inside1, shifts, BLOCK_P
    )
    if TWO:
        chunks2 = tl.cdiv(rows, second_chunk)
        pieces2 = frames * chunks2
        moments2 = second + segment.to(tl.int64) * pieces2 * second_channels * 2
        column2 = column - first_channels
        inside2 = inside & (column2 >= 0)
        total += _sum_means(
            moments2,
            shift,
            pieces2,
            chunks2,
            second_chunk,
            rows,
            second_channels,
            column2,
            inside2,
            shifts,
            BLOCK_P,
        )
    count = 1.0 * frames * rows * group
    mean = total / count
    square = _sum_squares(
        moments1, mean, pieces1, chunks1, first_chunk, rows, first_channels, column, inside1, shifts, BLOCK_P
    )
    if TWO:
        square += _sum_squares(
            moments2,
            mean,
            pieces2,
            chunks2,
            second_chunk,
            rows,
            second_channels,
            column2,
            inside2,
            shifts,
            BLOCK_P,
        )
    deviation = 1.0 / tl.sqrt(square / count + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) * deviation
    offset = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32) + (shifts - mean) * scale
    out = coefficients + segment * channels + column
    tl.store(out, scale, mask=inside)
    tl.store(out + tl.num_programs(0) * channels, offset, mask=inside)


@triton.jit
def scale_offset(
    x,  # [frames, rows, channels]
    coefficients,  # [2, segments, all_channels] float32
    out,  # [frames, rows, all_channels]; x lands at channel start
    rows,
    channels,
    all_channels,
    start,
    segments,  # 1, or frames
    image_height,
    image_width,
    SILU: tl.constexpr,
    PADDED: tl.constexpr,  # out has image_height + 1 rows of image_width + 1 positions, zeros beside x
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``x * scale + offset``, then SiLU where asked."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    blocks = tl.cdiv(rows, BLOCK_R)
    frame = tl.program_id(1) // blocks
    row = (tl.program_id(1) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = column < channels
    mask = (row < rows)[:, None] & inside[None, :]
    line = (frame.to(tl.int64) * rows + row)[:, None]
    if PADDED:
        i, j = row // (image_width + 1), row % (image_width + 1)
        image = ((i < image_height) & (j < image_width))[:, None]
        source = (frame.to(tl.int64) * image_height * image_width + i * image_width + j)[:, None]
        value = tl.load(x + source * channels + column[None, :], mask=mask & image, other=0.0).to(tl.float32)
    else:
        value = tl.load(x + line * channels + column[None, :], mask=mask, other=0.0).to(tl.float32)
    place = coefficients + (frame % segments) * all_channels + start + column
    scale = tl.load(place, mask=inside, other=0.0)
    offset = tl.load(place + segments * all_channels, mask=inside, other=0.0)
    value = value * scale[None, :] + offset[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    if PADDED:
        value = tl.where(image, value, 0.0)
    tl.store(out + line * all_channels + start + column[None, :], fitted(value, out), mask=mask)


@triton.jit
def layer_norm(
    x,  # [tokens, channels]
    delta,  # the same, added (ADD)
    bias,  # [channels], added
    total,  # [tokens, stride]: the sum, in its first channels (ADD)
    weight,
    offset,
    out,
    tokens,
    channels,
    stride,
    eps: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Layer norm of ``x + bias``, or of the sum ``x + delta + bias``, which is stored too."""
    column = tl.arange(0, BLOCK_C)
    inside = column < channels
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask = (token < tokens)[:, None] & inside[None, :]
    place = token.to(tl.int64)[:, None] * channels + column[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if ADD:
        value += tl.load(delta + place, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + token.to(tl.int64)[:, None] * stride + column[None, :], rounded, mask=mask)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / channels
    away = tl.where(inside[None, :], value - mean[:, None], 0.0)
    deviation = 1.0 / tl.sqrt(tl.sum(away * away, 1) / channels + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(offset + column, mask=inside, other=0.0).to(tl.float32)
    normed = away * deviation[:, None] * scale[None, :] + shift[None, :]
    tl.store(out + place, fitted(normed, out), mask=mask)


@triton.jit
def tanh(x):
    """The special function unit's hyperbolic tangent: one instruction, relative error 2 ** -11."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)


@triton.jit
def gelu(x):
    """GELU, x times the normal distribution function, to the accuracy of half precision.

    Phi(x) is (1 + tanh(u)) / 2, and a fifth-degree u makes GELU good to 2.5e-5 (the cubic that is often used: 5e-4).
    erf would cost three times the instructions, and these are what the end of a matrix product waits for.
    """
    square = tl.minimum(x * x, 40.0)  # where tanh(u) is 1 and the polynomial still rises
    u = x * (0.797507877 + square * (0.0370056521 - square * 0.000351517734))
    half = 0.5 * x
    return half + half * tanh(u)


@triton.jit
def gate(
    h,  # [tokens, 2 * width]: values, then gates
    bias,  # [2 * width]
    out,  # [tokens, stride]; the result fills its last width columns
    tokens,
    width,
    stride,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``(value + bias) * gelu(gate + bias)``."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < width
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask = (token < tokens)[:, None] & inside[None, :]
    line = token.to(tl.int64)[:, None]
    place = h + line * (2 * width) + column[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    gates = tl.load(place + width, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    gates += tl.load(bias + width + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    result = value * gelu(gates)
    tl.store(
        out + line * stride + (stride - width) + column[None, :], result.to(out.dtype.element_ty), mask=mask
    )


@triton.jit
def temporal_attention(
    qkv,  # [frames, rows, 3 * heads * SIZE]: queries, keys, values
    out,  # [frames, rows, heads * SIZE]
    frames,
    rows,
    heads,
    factor: tl.constexpr,  # log2(e) / sqrt(SIZE)
    SIZE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    IEEE: tl.constexpr,
):
    """Attention among the frames of one position and head; reads the projections where the matrix product left them."""
    program = tl.program_id(0)
    row = (program // heads).to(tl.int64)
    head = program % heads
    width = heads * SIZE
    frame = tl.arange(0, BLOCK_F)
    column = tl.arange(0, SIZE)
    mask = (frame < frames)[:, None]
    line = frame.to(tl.int64)[:, None] * rows + row
    place = qkv + line * (3 * width) + head * SIZE + column[None, :]
    q = tl.load(place, mask=mask, other=0.0)
    k = tl.load(place + width, mask=mask, other=0.0)
    v = tl.load(place + 2 * width, mask=mask, other=0.0)
    if IEEE:  # noqa: SIM108
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
    else:
        scores = tl.dot(q, tl.trans(k)) * factor
    scores = tl.where((frame < frames)[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    if IEEE:  # noqa: SIM108
        mixed = tl.dot(weights, v, input_precision="ieee")
    else:
        mixed = tl.dot(weights.to(v.dtype), v)
    mixed = mixed / total[:, None]
    tl.store(out + line * width + head * SIZE + column[None, :], mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def product(
    x,  # tiles [BLOCK_M, BLOCK_K] of [M, K]
    w,  # tiles [BLOCK_N, BLOCK_K] of [N, TAPS * K]; gated: of [2 N, K], values then gates
    w_extra,  # tiles [EXTRA_N, BLOCK_K] of the same
    scale,  # [N] or [2 N] float32: what each column is multiplied by (SCALED)
    bias,  # [N] or [2 N] (BIAS)
    out,  # [M, stride]; the result fills its last N columns
    M,
    N,
    K,
    stride,
    step,  # rows from one tap to the next, or from one row of taps to the next
    image_height,
    image_width,
    TAPS: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    PADDED: tl.constexpr,  # M counts padded images as scale_offset writes them; out has no padding
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXTRA_N: tl.constexpr,  # columns beyond BLOCK_N that the same program makes, for widths like 320
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    TWIN: tl.constexpr,  # not zero: the kernel of this name in hopper.py takes this one's place on the GPU
):
    """``x @ w.T`` with a fused end (scale, bias, GELU gate); with taps a convolution without gathering anything.

    Of three taps number t reads row ``m + (t - 1) * step``, zero outside: with tokens ``[frames, positions]`` and
    ``step`` positions that is a convolution over frames. Of nine taps (a, b) reads ``m + (a - 1) * step + b - 1``: with
    padded images and ``step`` one row of these it is a 3x3 convolution. Each program makes tile after tile: as many
    programs as can be resident suffice. What a tile of x has beyond K is zero, so K need not be a multiple of BLOCK_K.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N + EXTRA_N)
    blocks = tl.cdiv(K, BLOCK_K)
    per_group = GROUP * tiles_n
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        group_m = (tile // per_group) * GROUP
        size = tl.minimum(tiles_m - group_m, GROUP)
        first_m = (group_m + (tile % per_group) % size) * BLOCK_M
        first_n = ((tile % per_group) // size) * (BLOCK_N + EXTRA_N)

        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if GATED:
            gates = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if EXTRA_N > 0:
            extra = tl.zeros([BLOCK_M, EXTRA_N], tl.float32)
        for index in range(TAPS * blocks):
            tap = index // blocks
            depth = (index % blocks) * BLOCK_K
            if TAPS == 9:  # noqa: SIM108
                shift = (tap // 3 - 1) * step + tap % 3 - 1
            else:
                shift = (tap - TAPS // 2) * step
            a = x.load([first_m + shift, depth])
            depth += tap * K
            acc = tl.dot(a, w.load([first_n, depth]).T, acc)
            if GATED:
                gates = tl.dot(a, w.load([first_n + N, depth]).T, gates)
            if EXTRA_N > 0:
                extra = tl.dot(a, w_extra.load([first_n + BLOCK_N, depth]).T, extra)

        row = first_m + tl.arange(0, BLOCK_M)
        column = first_n + tl.arange(0, BLOCK_N)
        inside = column < N
        valid = row < M
        if PADDED:
            j = row % (image_width + 1)
            i = row // (image_width + 1) % (image_height + 1)
            valid &= (i < image_height) & (j < image_width)
            row = (row // ((image_width + 1) * (image_height + 1)) * image_height + i) * image_width + j
        mask = valid[:, None]
        line = out + row.to(tl.int64)[:, None] * stride + (stride - N)
        if SCALED:
            acc *= tl.load(scale + column, mask=inside, other=0.0)[None, :]
        if BIAS:
            acc += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if GATED:
            if SCALED:
                gates *= tl.load(scale + N + column, mask=inside, other=0.0)[None, :]
            if BIAS:
                gates += tl.load(bias + N + column, mask=inside, other=0.0).to(tl.float32)[None, :]
            acc *= gelu(gates)
        tl.store(line + column[None, :], fitted(acc, out), mask=mask & inside[None, :])
        if EXTRA_N > 0:
            column = first_n + BLOCK_N + tl.arange(0, EXTRA_N)
            inside = column < N
            if SCALED:
                extra *= tl.load(scale + column, mask=inside, other=0.0)[None, :]
            if BIAS:
                extra += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
            tl.store(line + column[None, :], fitted(extra, out), mask=mask & inside[None, :])


@triton.jit
def _attend_block(
    q,
    kv,
    frame,
    first,
    head,
    width,
    rows,
    factor: tl.constexpr,
    top,
    total,
    acc,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
):
    """One step of online softmax (Milakov and Gimelshein 2018) over BLOCK_N keys."""
    k = kv.load([frame * rows + first, width + head * SIZE])
    scores = tl.dot(q, k.T)
    if MASK:
        key = first + tl.arange(0, BLOCK_N)
        scores = tl.where((key < rows)[None, :], scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - new[:, None])
    shrink = tl.exp2(top - new)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    v = kv.load([frame * rows + first, 2 * width + head * SIZE])
    acc = tl.dot(weights.to(v.dtype), v, acc)
    return new, total, acc


@triton.jit
def spatial_attention(
    queries,  # tiles [BLOCK_M, SIZE] of [frames * rows, 3 * heads * SIZE]
    kv,  # tiles [BLOCK_N, SIZE] of the same
    out,  # [frames, rows, heads * SIZE]
    rows,
    heads,
    factor: tl.constexpr,  # log2(e) / sqrt(SIZE)
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    TWIN: tl.constexpr,  # as in product
):
    """Attention among the positions of a frame; reads the projections where the matrix product left them.

    Programs beside each other share a frame's tiles of queries, however many there are.
    """
    frame = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    width = heads * SIZE
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.num_programs(0)):
        first = tile * BLOCK_M
        q = queries.load([frame * rows + first, head * SIZE])
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, SIZE], tl.float32)
        whole = rows // BLOCK_N
        for block in tl.range(0, whole, num_stages=STAGES):
            top, total, acc = _attend_block(
                q,
                kv,
                frame,
                block * BLOCK_N,
                head,
                width,
                rows,
                factor,
                top,
                total,
                acc,
                SIZE,
                BLOCK_N,
                False,
            )
        if whole * BLOCK_N < rows:
            top, total, acc = _attend_block(
                q, kv, frame, whole * BLOCK_N, head, width, rows, factor, top, total, acc, SIZE, BLOCK_N, True
            )
        acc = acc / total[:, None]
        row = first + tl.arange(0, BLOCK_M)
        place = (
            out
            + (frame.to(tl.int64) * rows + row)[:, None] * width
            + head * SIZE
            + tl.arange(0, SIZE)[None, :]
        )
        tl.store(place, acc.to(out.dtype.element_ty), mask=(row < rows)[:, None])


@triton.jit
def text_attention(
    q,  # [tokens, heads * SIZE]
    kv,  # [keys, pitch]: keys in the first heads * SIZE columns, values in the next
    out,  # [tokens, heads * SIZE]
    tokens,
    keys,
    pitch,
    heads,
    factor: tl.constexpr,  # log2(e) / sqrt(SIZE)
    SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IEEE: tl.constexpr,
):
    """Attention of many tokens to a few keys that all of them share."""
    head = tl.program_id(0)
    width = heads * SIZE
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = head * SIZE + tl.arange(0, SIZE)
    key = tl.arange(0, BLOCK_K)
    mask = (token < tokens)[:, None]
    place = token.to(tl.int64)[:, None] * width + column[None, :]
    source = kv + key[:, None] * pitch + column[None, :]
    queries = tl.load(q + place, mask=mask, other=0.0)
    k = tl.load(source, mask=(key < keys)[:, None], other=0.0)
    v = tl.load(source + width, mask=(key < keys)[:, None], other=0.0)
    if IEEE:
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * factor
    else:
        scores = tl.dot(queries, tl.trans(k)) * factor
    scores = tl.where((key < keys)[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    if IEEE:  # noqa: SIM108
        mixed = tl.dot(weights, v, input_precision="ieee")
    else:
        mixed = tl.dot(weights.to(v.dtype), v)
    tl.store(out + place, (mixed / total[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def interleave(
    phases,  # [frames, height + 1, width + 1, 4, channels]
    top,  # [frames, width + 1, 2, channels]
    bottom,  # the same
    bias,  # [channels], added
    out,  # [frames, 2 * height, 2 * width, channels], without its first and last row if CROPPED
    height,
    width,
    channels,
    CROPPED: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Put the four phases of a doubled map in their places, and the first and last row of a cropped one."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    blocks = tl.cdiv(2 * width, BLOCK_X)
    x = (tl.program_id(1) % blocks) * BLOCK_X + tl.arange(0, BLOCK_X)
    line = tl.program_id(1) // blocks  # frame and row of the output
    crop: tl.constexpr = 1 if CROPPED else 0
    rows = 2 * height - 2 * crop
    y = line % rows
    frame = (line // rows).to(tl.int64)
    mask = (x < 2 * width)[:, None] & (column < channels)[None, :]
    j = x // 2 + x % 2
    doubled = y + crop
    at = frame * (height + 1) + doubled // 2 + doubled % 2
    source = phases + ((at * (width + 1) + j) * 4 + (doubled % 2) * 2 + x % 2)[:, None] * channels
    if CROPPED:
        edge = ((frame * (width + 1) + j) * 2 + x % 2)[:, None] * channels
        if y == 0:
            source = top + edge
        if y == rows - 1:
            source = bottom + edge
    value = tl.load(source + column[None, :], mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    place = out + (line.to(tl.int64) * (2 * width) + x)[:, None] * channels + column[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=mask)
