// Bytes of a picture to the network's pixels and back.
// Layouts and formulas are those of v2v.runtime.device.Device; cpu.py is the specification, resize.py the geometry.

#include "common.cuh"

// A byte as float without the conversion unit: 2^23 + byte is exact, and so is the difference.
__device__ __forceinline__ float byte_to_float(uint32 word, int k) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + k)) - 8388608.0f;
}

// Bilinear resize of bytes [source_height, source_width, 3] into [3, height, width], scaled to -1..1.
//
// A block makes ROWS rows of `tile` pixels. First it weighs `source_rows` rows of bytes into shared memory, all between
// the tile's first and last source pixel: each word is loaded and converted once for all ROWS. Then each pixel weighs
// its `taps` neighbours there. The geometry comes in tables:
//   row_first[block]                   the first source row of a block
//   row_weights[block][source_rows]    a row's weight in each of the block's ROWS rows
//   columns[pixel][stride]             the first source pixel as an integer, then weights, those times 2 / 255
// `shared_row` floats hold a row of a span. TAPS is `taps` where it is at most 3 (2: no antialiasing), else 0.
//
// Loads are asked for in batches before the first of them is used, and no branch stands between them: otherwise each
// would wait for the one before.
constexpr int ROWS = 4;

// Four bytes of a source row, those before `end`. Rows that start at any byte are read byte by byte.
template <bool ALIGNED>
__device__ __forceinline__ uint32 four_bytes(const uint8* row, int at, int end) {
    if (ALIGNED) return __ldg(reinterpret_cast<const uint32*>(row + at));
    uint32 word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        word |= static_cast<uint32>(__ldg(row + min(at + i, end - 1))) << (8 * i);
    return word;
}

// The bytes first..end of `source_rows` rows, weighed for each of ROWS rows.
template <bool ALIGNED>
__device__ __forceinline__ void weigh_rows(
    const uint8* rows, uint64 pitch, const float4* row_weights, int source_rows, int first, int end, float* shared,
    int shared_row) {
    constexpr int BATCH = ALIGNED ? 4 : 1;
    for (int at = first + static_cast<int>(threadIdx.x) * 4; at < end; at += blockDim.x * 4) {
        float4 sums[ROWS] = {};
        for (int k = 0; k < source_rows; k += BATCH) {
            uint32 words[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                words[i] = four_bytes<ALIGNED>(rows + min(k + i, source_rows - 1) * pitch, at, end);
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                // A small table that all blocks of a row read: it is near, unlike the picture.
                const float4 weight = k + i < source_rows ? __ldg(row_weights + k + i) : float4{};
                const float bytes[4] = {byte_to_float(words[i], 0), byte_to_float(words[i], 1),
                                        byte_to_float(words[i], 2), byte_to_float(words[i], 3)};
                const float weights[ROWS] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    sums[r].x += weights[r] * bytes[0];
                    sums[r].y += weights[r] * bytes[1];
                    sums[r].z += weights[r] * bytes[2];
                    sums[r].w += weights[r] * bytes[3];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            *reinterpret_cast<float4*>(shared + r * shared_row + (at - first)) = sums[r];
    }
}

// ROWS rows of one pixel from the weighed bytes; `head` is the start of the pixel's entry in `columns`.
template <int TAPS>
__device__ __forceinline__ void weigh_columns(
    float (&sums)[ROWS][3], const float* shared, int shared_row, int first, const float4& head, const float4* column,
    int taps) {
    const float* at = shared + __float_as_int(head.x) * 3 - first;
    const float weights[3] = {head.y, head.z, head.w};
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < 3; c++) sums[r][c] = -1.0f;
    const auto add = [&](int k, float weight) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int c = 0; c < 3; c++) sums[r][c] += weight * at[r * shared_row + k * 3 + c];
    };
    if (TAPS) {
#pragma unroll
        for (int k = 0; k < TAPS; k++) add(k, weights[k]);
    } else {
        const float* more = reinterpret_cast<const float*>(column) + 1;
        for (int k = 0; k < taps; k++) add(k, __ldg(more + k));
    }
}

template <int TAPS, typename T>
__device__ __forceinline__ void prepare_frame(
    const uint8* source, int source_width, T* out, int height, int width, const int* row_first,
    const float4* row_weights, int source_rows, const float4* columns, int stride, int taps, int tile,
    int shared_row) {
    extern __shared__ float4 shared4[];
    float* shared = reinterpret_cast<float*>(shared4);
    const int left = blockIdx.x * tile;
    const int right = min(left + tile, width);
    const int top = blockIdx.y * ROWS;
    // A thread makes two neighbouring pixels; what it needs to know of them is on its way from here on.
    const int x = left + static_cast<int>(threadIdx.x) * 2;
    const float4* column_a = columns + min(x, right - 1) * stride;
    const float4* column_b = columns + min(x + 1, right - 1) * stride;
    const float4 head_a = __ldg(column_a), head_b = __ldg(column_b);

    const uint64 pitch = static_cast<uint64>(source_width) * 3;
    const int first = __float_as_int(__ldg(columns + left * stride).x) * 3 & ~3;
    const int end = (__float_as_int(__ldg(columns + (right - 1) * stride).x) + (TAPS ? TAPS : taps)) * 3;
    const uint8* rows = source + __ldg(row_first + blockIdx.y) * pitch;
    row_weights += blockIdx.y * source_rows;
    if (pitch % 4 == 0 && (reinterpret_cast<uint64>(source) & 3) == 0)
        weigh_rows<true>(rows, pitch, row_weights, source_rows, first, end, shared, shared_row);
    else
        weigh_rows<false>(rows, pitch, row_weights, source_rows, first, end, shared, shared_row);
    __syncthreads();
    if (x >= right) return;

    float a[ROWS][3], b[ROWS][3];
    weigh_columns<TAPS>(a, shared, shared_row, first, head_a, column_a, taps);
    weigh_columns<TAPS>(b, shared, shared_row, first, head_b, column_b, taps);
    const uint64 plane = static_cast<uint64>(height) * width;
    const bool pairs = width % 2 == 0 && (reinterpret_cast<uint64>(out) % (2 * sizeof(T))) == 0;
    T* to = out + static_cast<uint64>(top) * width + x;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (top + r >= height) return;
#pragma unroll
        for (int c = 0; c < 3; c++) {
            T* pixel = to + c * plane + r * width;
            if (pairs) {
                store_pair(pixel, a[r][c], b[r][c]);
            } else {
                from_float(a[r][c], pixel[0]);
                if (x + 1 < right) from_float(b[r][c], pixel[1]);
            }
        }
    }
}

// Resize of planes [channels, source_height, source_width] to [channels, height, width]; a thread makes a pixel.
// Simple on purpose: it serves small pictures of low frequencies and their smooth enlargement.
template <typename T>
__device__ __forceinline__ void resize(
    const T* source, int source_height, int source_width, T* out, int height, int width, uint64 size,
    const int* row_index, const float* row_weight, int row_taps, const int* column_index,
    const float* column_weight, int column_taps) {
    const uint64 index = thread_index();
    if (index >= size) return;
    const int x = static_cast<int>(index % width);
    const int y = static_cast<int>(index / width % height);
    const T* plane = source + index / width / height * source_height * source_width;
    float sum = 0.0f;
    for (int j = 0; j < row_taps; j++) {
        const T* row = plane + static_cast<uint64>(row_index[y * row_taps + j]) * source_width;
        float part = 0.0f;
        for (int k = 0; k < column_taps; k++)
            part += column_weight[x * column_taps + k] *
                    to_float(row[column_index[x * column_taps + k]]);
        sum += row_weight[y * row_taps + j] * part;
    }
    from_float(sum, out[index]);
}

// [3, size] in -1..1 -> bytes [size, 3]. The order of roundings is the reference's, so that truncating agrees.
__device__ __forceinline__ uint32 to_byte(float value, bool truncate) {
    const float level = fminf(fmaxf(value * 0.5f + 0.5f, 0.0f), 1.0f) * 255.0f;  // a NaN becomes 0
    return static_cast<uint32>(truncate ? level : rintf(level));
}

template <typename T>
__device__ __forceinline__ void image_to_bytes(const T* image, uint8* out, uint64 size, int truncate) {
    const uint64 first = thread_index() * 8;
    if (first >= size) return;
    const int count = size - first < 8 ? static_cast<int>(size - first) : 8;
    const bool full = count == 8;
    Group channels[3];
#pragma unroll
    for (int c = 0; c < 3; c++) {
        const T* at = image + c * size + first;
        channels[c] = load_any(at, count, full && aligned16(at));
    }
    uint32 words[6] = {};
#pragma unroll
    for (int i = 0; i < 24; i++)
        words[i / 4] |= to_byte(channels[i % 3].v[i / 3], truncate) << (8 * (i % 4));
    uint8* bytes = out + first * 3;
    if (full && (reinterpret_cast<uint64>(bytes) & 7) == 0) {
#pragma unroll
        for (int i = 0; i < 3; i++)
            reinterpret_cast<uint2*>(bytes)[i] = make_uint2(words[2 * i], words[2 * i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < 24; i++)
            if (i < count * 3) bytes[i] = static_cast<uint8>(words[i / 4] >> (8 * (i % 4)));
    }
}

#define KERNELS(T, NAME)                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, 7) prepare_frame_##NAME(                                \
        const uint8* source, int source_width, T* out, int height, int width, const int* row_first,           \
        const float4* row_weights, int source_rows, const float4* columns, int stride, int taps, int tile,    \
        int shared_row) {                                                                                     \
        if (taps == 1)                                                                                        \
            prepare_frame<1>(source, source_width, out, height, width, row_first, row_weights, source_rows,   \
                             columns, stride, taps, tile, shared_row);                                        \
        else if (taps == 2)                                                                                   \
            prepare_frame<2>(source, source_width, out, height, width, row_first, row_weights, source_rows,   \
                             columns, stride, taps, tile, shared_row);                                        \
        else if (taps == 3)                                                                                   \
            prepare_frame<3>(source, source_width, out, height, width, row_first, row_weights, source_rows,   \
                             columns, stride, taps, tile, shared_row);                                        \
        else                                                                                                  \
            prepare_frame<0>(source, source_width, out, height, width, row_first, row_weights, source_rows,   \
                             columns, stride, taps, tile, shared_row);                                        \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) resize_##NAME(                                          \
        const T* source, int source_height, int source_width, T* out, int height, int width, uint64 size,     \
        const int* row_index, const float* row_weight, int row_taps, const int* column_index,                 \
        const float* column_weight, int column_taps) {                                                        \
        resize(source, source_height, source_width, out, height, width, size, row_index, row_weight,          \
               row_taps, column_index, column_weight, column_taps);                                           \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                         \
        image_to_bytes_##NAME(const T* image, uint8* out, uint64 size, int truncate) {                        \
        image_to_bytes(image, out, size, truncate);                                                           \
    }
KERNELS(float, float32)
KERNELS(half, float16)
