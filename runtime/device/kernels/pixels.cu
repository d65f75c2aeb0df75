// Bytes of a picture to the network's pixels and back.
// Layouts and formulas are those of v2v.runtime.device.Device; cpu.py is the specification, resize.py the geometry.

#include "common.cuh"

// A byte as float without the conversion unit: 2^23 + byte is exact, and so is the difference.
__device__ __forceinline__ float byte_to_float(uint32 word, int k) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + k)) - 8388608.0f;
}

// Bilinear resize of bytes [source_height, source_width, 3] into [3, height, width], scaled to -1..1.
//
// A block makes ROWS rows of `tile` pixels. First it weighs the source rows into shared memory, all the bytes between
// the tile's first and last source pixel; then each pixel weighs its columns of those. Indices rise along an axis, so
// the span of a tile follows from its ends. `shared_row` floats hold a row of a span. TAPS is the number of source
// pixels behind a pixel along each axis where it is known (2: no antialiasing), else 0. All that a thread needs from
// memory is asked for before the first answer is used: with a dozen loads under way at once it is bandwidth that
// counts, not latency.
constexpr int ROWS = 4;

struct Axis {
    const int* index;     // [count, taps]
    const float* weight;  // [count, taps]
    int taps;
};

// Four bytes of a source row, those before `end`.
__device__ __forceinline__ uint32 four_bytes(const uint8* row, int at, int end, bool aligned) {
    if (aligned) return __ldg(reinterpret_cast<const uint32*>(row + at));
    uint32 word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at + i < end) word |= static_cast<uint32>(__ldg(row + at + i)) << (8 * i);
    return word;
}

__device__ __forceinline__ void add_bytes(float4& sum, float weight, uint32 word) {
    sum.x += weight * byte_to_float(word, 0);
    sum.y += weight * byte_to_float(word, 1);
    sum.z += weight * byte_to_float(word, 2);
    sum.w += weight * byte_to_float(word, 3);
}

template <int TAPS, typename T>
__device__ __forceinline__ void prepare_frame(
    const uint8* source, int source_width, T* out, int height, int width, const Axis& y, const Axis& x, int tile,
    int shared_row) {
    extern __shared__ float4 shared4[];
    float* shared = reinterpret_cast<float*>(shared4);
    constexpr int AT_ONCE = TAPS ? TAPS : 2;
    const int y_taps = TAPS ? TAPS : y.taps, x_taps = TAPS ? TAPS : x.taps;
    const int left = blockIdx.x * tile;
    const int columns = min(tile, width - left);
    const int top = blockIdx.y * ROWS;
    const uint64 pitch = static_cast<uint64>(source_width) * 3;

    // Whole words of four bytes where rows allow it, single bytes otherwise.
    const bool aligned = pitch % 4 == 0 && (reinterpret_cast<uint64>(source) & 3) == 0;
    const int first = x.index[left * x_taps] * 3 & ~3;
    const int end = x.index[(left + columns) * x_taps - 1] * 3 + 3;
    for (int at = first + static_cast<int>(threadIdx.x) * 4; at < end; at += blockDim.x * 4) {
        float4 sums[ROWS] = {};
        for (int k = 0; k < y_taps; k += AT_ONCE) {
            uint32 words[ROWS][AT_ONCE];
            float weights[ROWS][AT_ONCE];
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    const bool counts = TAPS || k + i < y_taps;
                    const int tap = min(top + r, height - 1) * y_taps + (counts ? k + i : k);
                    weights[r][i] = counts ? __ldg(y.weight + tap) : 0.0f;
                    words[r][i] = four_bytes(source + __ldg(y.index + tap) * pitch, at, end, aligned);
                }
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) add_bytes(sums[r], weights[r][i], words[r][i]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            *reinterpret_cast<float4*>(shared + r * shared_row + (at - first)) = sums[r];
    }
    __syncthreads();

    const uint64 plane = static_cast<uint64>(height) * width;
    T* to = out + static_cast<uint64>(top) * width + left;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        const int tap = (left + column) * x_taps;
        float sums[ROWS][3] = {};
#pragma unroll AT_ONCE
        for (int k = 0; k < x_taps; k++) {
            const float weight = __ldg(x.weight + tap + k);
            const float* at = shared + __ldg(x.index + tap + k) * 3 - first;
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int c = 0; c < 3; c++) sums[r][c] += weight * at[r * shared_row + c];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int c = 0; c < 3; c++)
                if (top + r < height)
                    from_float(sums[r][c] * (2.0f / 255.0f) - 1.0f, to[c * plane + r * width + column]);
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
    extern "C" __global__ void __launch_bounds__(256, 3) prepare_frame_##NAME(                                \
        const uint8* source, int source_width, T* out, int height, int width, const int* row_index,           \
        const float* row_weight, int row_taps, const int* column_index, const float* column_weight,           \
        int column_taps, int tile, int shared_row) {                                                          \
        const Axis y = {row_index, row_weight, row_taps}, x = {column_index, column_weight, column_taps};     \
        if (row_taps == 2 && column_taps == 2)                                                                \
            prepare_frame<2>(source, source_width, out, height, width, y, x, tile, shared_row);               \
        else                                                                                                  \
            prepare_frame<0>(source, source_width, out, height, width, y, x, tile, shared_row);               \
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
