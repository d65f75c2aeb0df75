// Levels of a picture, 8 or 16 bits, to the network's pixels and back.
// Layouts and formulas are those of v2v.device.Device; cpu.py is the specification, resize.py the geometry.

#include "common.cuh"

// Which source pixels an axis' resized pixels are made of, and their weights: `taps` of both for each.
struct Axis {
    const int* index;
    const float* weight;
    int taps;
};

// Bilinear resize of samples [source_height, source_width, 3] into [3, height, width], `scale` times a level minus 1;
// a thread makes a pixel. Neighbours share nearly all of what they read: it comes from the first-level cache.
template <int TAPS, typename S, typename T>
__device__ __forceinline__ void prepare_frame(
    const S* source, int source_width, T* out, int height, int width, const Axis& rows, const Axis& columns,
    float scale) {
    const uint64 index = thread_index(), plane = static_cast<uint64>(height) * width;
    if (index >= plane) return;
    const int y = static_cast<int>(index / width), x = static_cast<int>(index - static_cast<uint64>(y) * width);
    const int row_taps = TAPS ? TAPS : rows.taps, column_taps = TAPS ? TAPS : columns.taps;
    float sums[3] = {};
#pragma unroll
    for (int j = 0; j < row_taps; j++) {
        const S* row = source + static_cast<uint64>(rows.index[y * row_taps + j]) * source_width * 3;
        float parts[3] = {};
#pragma unroll
        for (int k = 0; k < column_taps; k++) {
            const S* pixel = row + columns.index[x * column_taps + k] * 3;
            const float weight = columns.weight[x * column_taps + k];
#pragma unroll
            for (int c = 0; c < 3; c++) parts[c] += weight * static_cast<float>(pixel[c]);
        }
        const float weight = rows.weight[y * row_taps + j];
#pragma unroll
        for (int c = 0; c < 3; c++) sums[c] += weight * parts[c];
    }
#pragma unroll
    for (int c = 0; c < 3; c++) from_float(__fmaf_rn(sums[c], scale, -1.0f), out[c * plane + index]);
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

#define PREPARE(S, T, NAME, TAPS)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) prepare_frame_##NAME##_##TAPS(                          \
        const S* source, int source_width, T* out, int height, int width, const int* row_index,               \
        const float* row_weight, int row_taps, const int* column_index, const float* column_weight,           \
        int column_taps, float scale) {                                                                       \
        prepare_frame<TAPS>(source, source_width, out, height, width, Axis{row_index, row_weight, row_taps},  \
                            Axis{column_index, column_weight, column_taps}, scale);                           \
    }
#define LEVELS(S, T, NAME)                                                                                    \
    PREPARE(S, T, NAME, 0)                                                                                    \
    PREPARE(S, T, NAME, 1)                                                                                    \
    PREPARE(S, T, NAME, 2)                                                                                    \
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
