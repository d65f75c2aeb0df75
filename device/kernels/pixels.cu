// Levels of a picture, 8 or 16 bits, to the network's pixels and back.
// Layouts and formulas are those of v2v.device.Device; cpu.py is the specification, resize.py the geometry.

#include "common.cuh"

// An axis of a resize, by tiles of neighbouring pixels. Tile t comes from `span` neighbouring source pixels, `first[t]`
// and the next ones; `weights[t * span + k]` holds the weights of the k-th of them, one for each pixel of the tile.
template <typename W>
struct Axis {
    const int* first;
    const W* weights;
    int span;
};

__device__ __forceinline__ void store_pair(float* out, float a, float b) {
    *reinterpret_cast<float2*>(out) = make_float2(a, b);
}

__device__ __forceinline__ void store_pair(half* out, float a, float b) {
    uint32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    *reinterpret_cast<uint32*>(out) = word;
}

// Bilinear resize of samples [source_height, source_width, 3] into [3, height, width]; the rows' weights scale to 0..2.
// A thread makes a tile of four rows and two columns: what it reads and weighs serves several pixels. SPAN is that of the
// columns, 0 any. That of the rows is even, for a thread waits for two source rows at once; the last may lie behind the
// picture, with weights of 0.
template <int SPAN, typename S, typename T>
__device__ __forceinline__ void prepare_frame(
    const S* source, int source_height, int source_width, T* out, int height, int width, const Axis<float4>& rows,
    const Axis<float2>& columns) {
    const int row_tile = blockIdx.y, column_tile = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int y = row_tile * 4, x = column_tile * 2, span = SPAN ? SPAN : columns.span;
    if (x >= width) return;
    const float4* row_weights = rows.weights + row_tile * rows.span;
    const float2* column_weights = columns.weights + column_tile * span;
    const uint64 pitch = static_cast<uint64>(source_width) * 3;
    const int top = rows.first[row_tile];
    const S* left = source + columns.first[column_tile] * 3;
    float sums[3][4][2];
#pragma unroll
    for (int n = 0; n < 24; n++) sums[n / 8][n / 2 % 4][n % 2] = -1.0f;
#pragma unroll 1
    for (int pair = 0; pair < rows.span; pair += 2) {
#pragma unroll
        for (int j = pair; j < pair + 2; j++) {
            const S* row = left + min(top + j, source_height - 1) * pitch;
            float parts[3][2] = {};
#pragma unroll
            for (int k = 0; k < span; k++) {
                const float2 weight = column_weights[k];
#pragma unroll
                for (int c = 0; c < 3; c++) {
                    const float level = static_cast<float>(row[k * 3 + c]);
                    parts[c][0] += weight.x * level;
                    parts[c][1] += weight.y * level;
                }
            }
            const float4 weight = row_weights[j];
#pragma unroll
            for (int c = 0; c < 3; c++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    sums[c][0][i] += weight.x * parts[c][i];
                    sums[c][1][i] += weight.y * parts[c][i];
                    sums[c][2][i] += weight.z * parts[c][i];
                    sums[c][3][i] += weight.w * parts[c][i];
                }
        }
    }
    const uint64 plane = static_cast<uint64>(height) * width;
    T* to = out + static_cast<uint64>(y) * width + x;
    if (y + 4 <= height && width % 2 == 0 && reinterpret_cast<uint64>(out) % (2 * sizeof(T)) == 0) {
#pragma unroll
        for (int c = 0; c < 3; c++)
#pragma unroll
            for (int r = 0; r < 4; r++) store_pair(to + c * plane + r * width, sums[c][r][0], sums[c][r][1]);
    } else {
#pragma unroll
        for (int n = 0; n < 24; n++) {
            const int c = n / 8, r = n / 2 % 4, i = n % 2;
            if (y + r < height && x + i < width) from_float(sums[c][r][i], to[c * plane + r * width + i]);
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

// [3, size] in -1..1 -> levels [size, 3]. The order of roundings is the reference's, so that truncating agrees.
template <typename O>
__device__ __forceinline__ uint32 to_level(float value, bool truncate) {
    constexpr float white = sizeof(O) == 1 ? 255.0f : 65535.0f;
    const float level = fminf(fmaxf(value * 0.5f + 0.5f, 0.0f), 1.0f) * white;  // a NaN becomes 0
    return static_cast<uint32>(truncate ? level : rintf(level));
}

template <typename T, typename O>
__device__ __forceinline__ void image_to_bytes(const T* image, O* out, uint64 size, int truncate) {
    constexpr int per_word = 4 / sizeof(O), words = 24 / per_word, bits = 8 * sizeof(O);
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
    uint32 packed[words] = {};
#pragma unroll
    for (int i = 0; i < 24; i++)
        packed[i / per_word] |= to_level<O>(channels[i % 3].v[i / 3], truncate) << (bits * (i % per_word));
    O* levels = out + first * 3;
    // 24 or 48 bytes a thread, in the widest pieces that they are a multiple of: each is a store that the others of its
    // sector must be merged with.
    constexpr int piece = sizeof(O) == 1 ? 8 : 16;
    if (full && (reinterpret_cast<uint64>(levels) & (piece - 1)) == 0) {
        if constexpr (piece == 8) {
#pragma unroll
            for (int i = 0; i < words / 2; i++)
                reinterpret_cast<uint2*>(levels)[i] = make_uint2(packed[2 * i], packed[2 * i + 1]);
        } else {
#pragma unroll
            for (int i = 0; i < words / 4; i++)
                reinterpret_cast<uint4*>(levels)[i] =
                    make_uint4(packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 24; i++)
            if (i < count * 3) levels[i] = static_cast<O>(packed[i / per_word] >> (bits * (i % per_word)));
    }
}

// 720p are 900 blocks of prepare_frame: seven on each of an H200's multiprocessors let all of them run at once.
#define PREPARE(S, T, NAME, SPAN)                                                                             \
    extern "C" __global__ void __launch_bounds__(128, 7) prepare_frame_##NAME##_##SPAN(                       \
        const S* source, int source_height, int source_width, T* out, int height, int width,                  \
        const int* row_first, const float4* row_weights, int row_span, const int* column_first,               \
        const float2* column_weights, int column_span) {                                                      \
        prepare_frame<SPAN>(source, source_height, source_width, out, height, width,                          \
                            Axis<float4>{row_first, row_weights, row_span},                                   \
                            Axis<float2>{column_first, column_weights, column_span});                         \
    }
#define LEVELS(S, T, NAME)                                                                                    \
    PREPARE(S, T, NAME, 0)                                                                                    \
    PREPARE(S, T, NAME, 2)                                                                                    \
    PREPARE(S, T, NAME, 3)                                                                                    \
    PREPARE(S, T, NAME, 5)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                         \
        image_to_bytes_##NAME(const T* image, S* out, uint64 size, int truncate) {                            \
        image_to_bytes(image, out, size, truncate);                                                           \
    }
LEVELS(uint8, float, float32_uint8)
LEVELS(uint8, half, float16_uint8)
LEVELS(uint16, float, float32_uint16)
LEVELS(uint16, half, float16_uint16)

#define KERNELS(T, NAME)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) resize_##NAME(                                          \
        const T* source, int source_height, int source_width, T* out, int height, int width, uint64 size,     \
        const int* row_index, const float* row_weight, int row_taps, const int* column_index,                 \
        const float* column_weight, int column_taps) {                                                        \
        resize(source, source_height, source_width, out, height, width, size, row_index, row_weight,          \
               row_taps, column_index, column_weight, column_taps);                                           \
    }
KERNELS(float, float32)
KERNELS(half, float16)
