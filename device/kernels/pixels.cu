// Levels of a picture, 8 or 16 bits, to the network's pixels and back.
// Layouts and formulas are those of v2v.device.Device; cpu.py is the specification, resize.py the geometry.

#include "common.cuh"

// 2^23: a float of this size has no places behind the point, so a small integer's bits at its end are that integer.
constexpr float MAGIC = 8388608.0f;

// Four samples of a row as they lie in memory. They become floats without the conversion unit: MAGIC + a sample is
// put together from its bits, and the difference is exact.
template <typename S>
struct Raw;

template <>
struct Raw<uint8> {
    uint32 word;

    __device__ __forceinline__ float biased(int k) const {
        return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + k));
    }
};

template <>
struct alignas(8) Raw<uint16> {
    uint32 words[2];

    __device__ __forceinline__ float biased(int k) const {
        return __uint_as_float(__byte_perm(words[k / 2], 0x4b000000u, k % 2 ? 0x7432u : 0x7410u));
    }
};

// Rows of a frame: `last` is the last word of it, `aligned` the alignment that all of them share: 16, 4 or 1 bytes.
struct Rows {
    const uint8* source;
    const uint32* last;
    uint32 pitch;
    int aligned;

    __device__ __forceinline__ Rows(const void* source, int height, uint32 pitch)
        : source(static_cast<const uint8*>(source)), pitch(pitch) {
        const uint64 end = reinterpret_cast<uint64>(source) + static_cast<uint64>(height) * pitch;
        last = reinterpret_cast<const uint32*>((end - 1) & ~3ull);
        const uint64 both = reinterpret_cast<uint64>(source) | pitch;
        aligned = both % 16 == 0 ? 16 : both % 4 == 0 ? 4 : 1;
    }

    __device__ __forceinline__ const uint8* row(int y) const { return source + static_cast<uint64>(pitch) * y; }

    // Four bytes at any address: out of the one or two words that they lie in.
    __device__ __forceinline__ uint32 word(const uint8* at) const {
        if (aligned > 1) return __ldg(reinterpret_cast<const uint32*>(at));
        const uint32* low = reinterpret_cast<const uint32*>(reinterpret_cast<uint64>(at) & ~3ull);
        const uint32* high = low < last ? low + 1 : low;
        return __funnelshift_r(__ldg(low), __ldg(high), 8 * (reinterpret_cast<uint64>(at) & 3));
    }

    __device__ __forceinline__ Raw<uint8> samples(const uint8* at, uint8) const { return {word(at)}; }
    __device__ __forceinline__ Raw<uint16> samples(const uint8* at, uint16) const {
        return {{word(at), word(at + 4)}};
    }
};

// What the resized pixels of an axis are made of: an entry of `stride` float4 for each, which hold its first source
// pixel (an integer's bits), then the weights of that one and the next `taps` - 1.
struct Axis {
    const float4* entries;
    int stride, taps;

    __device__ __forceinline__ const float4* entry(int pixel) const { return entries + pixel * stride; }
    __device__ __forceinline__ int first(int pixel) const { return __float_as_int(__ldg(&entry(pixel)->x)); }
};

// A block makes GROUP rows of its columns at a time; a warp weighs source rows for one of them.
constexpr int GROUP = 4;

// Source rows of a group.
struct Span {
    int first, count;

    __device__ __forceinline__ Span(const Axis& rows, int top, int height)
        : first(rows.first(top)), count(rows.first(min(top + GROUP, height) - 1) + rows.taps - first) {}
};

// Send `bytes` of a group's source rows, from byte `begin` on, to `raw [count][pitch]` in shared memory; they are there
// after `arrived` and a barrier.
__device__ __forceinline__ void send(const Rows& from, const Span& span, int begin, int bytes, uint8* raw, int pitch) {
    const int lane = threadIdx.x % 32;
    for (int r = threadIdx.x / 32; r < span.count; r += GROUP) {
        const uint8* row = from.row(span.first + r) + begin;
        const uint32 to = static_cast<uint32>(__cvta_generic_to_shared(raw + r * pitch));
        if (from.aligned == 16)
#pragma unroll 1
            for (int at = lane * 16; at < bytes; at += 32 * 16)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + at), "l"(row + at) : "memory");
        else if (from.aligned == 4)
#pragma unroll 1
            for (int at = lane * 4; at < bytes; at += 32 * 4)
                asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to + at), "l"(row + at) : "memory");
        else
#pragma unroll 1
            for (int at = lane * 4; at < bytes; at += 32 * 4)
                *reinterpret_cast<uint32*>(raw + r * pitch + at) = from.word(row + at);
    }
}

__device__ __forceinline__ void arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Weigh source rows for output row `y` into `weighed`: TAPS of them out of `raw`, which begins with row `above`, or any
// number out of the frame; `count` samples from byte `begin` on.
template <int TAPS, typename S>
__device__ __forceinline__ void weigh_rows(
    const Rows& from, const Axis& rows, int y, int begin, int count, const uint8* raw, int above, int pitch,
    float* weighed) {
    const float4* entry = rows.entry(y);
    const float4 head = __ldg(entry);
    const float weights[3] = {head.y, head.z, head.w};
    const int row = __float_as_int(head.x), lane = threadIdx.x % 32;
    if (TAPS) {
        const float bias = -MAGIC * weights[0];  // exact, so the first product is rounded once, as the others are
        const uint8* samples = raw + (row - above) * pitch + lane * 4 * sizeof(S);
#pragma unroll 2
        for (int at = lane * 4; at < count; at += 32 * 4, samples += 32 * 4 * sizeof(S)) {
            Raw<S> taken[TAPS ? TAPS : 1];
            float sums[4];
#pragma unroll
            for (int k = 0; k < TAPS; k++) taken[k] = *reinterpret_cast<const Raw<S>*>(samples + k * pitch);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[i] = __fmaf_rn(weights[0], taken[0].biased(i), bias);
#pragma unroll
                for (int k = 1; k < TAPS; k++) sums[i] += weights[k] * (taken[k].biased(i) - MAGIC);
            }
            *reinterpret_cast<float4*>(weighed + at) = make_float4(sums[0], sums[1], sums[2], sums[3]);
        }
    } else {
        const float* more = reinterpret_cast<const float*>(entry) + 1;
        const uint8* samples = from.row(row) + begin;
        for (int at = lane * 4; at < count; at += 32 * 4) {
            float sums[4] = {};
#pragma unroll 2
            for (int k = 0; k < rows.taps; k++) {
                const Raw<S> taken = from.samples(samples + at * sizeof(S) + static_cast<uint64>(from.pitch) * k, S{});
                const float weight = __ldg(more + k);
#pragma unroll
                for (int i = 0; i < 4; i++) sums[i] += weight * (taken.biased(i) - MAGIC);
            }
            *reinterpret_cast<float4*>(weighed + at) = make_float4(sums[0], sums[1], sums[2], sums[3]);
        }
    }
}

// GROUP rows of one pixel out of the weighed source rows, whose weights take levels to -1..1; `head` begins its entry.
template <int TAPS>
__device__ __forceinline__ void weigh_columns(
    float (&sums)[GROUP][3], const float* weighed, int pitch, const float4& head, const float4* entry, int taps) {
    const float weights[3] = {head.y, head.z, head.w};
#pragma unroll
    for (int r = 0; r < GROUP; r++)
#pragma unroll
        for (int c = 0; c < 3; c++) sums[r][c] = -1.0f;
    const auto add = [&](int k, float weight) {
#pragma unroll
        for (int r = 0; r < GROUP; r++)
#pragma unroll
            for (int c = 0; c < 3; c++) sums[r][c] += weight * weighed[r * pitch + k * 3 + c];
    };
    if (TAPS) {
#pragma unroll
        for (int k = 0; k < TAPS; k++) add(k, weights[k]);
    } else {
        const float* more = reinterpret_cast<const float*>(entry) + 1;
        for (int k = 0; k < taps; k++) add(k, __ldg(more + k));
    }
}

// Bilinear resize of samples [source_height, source_width, 3] into [3, height, width], scaled to -1..1.
//
// A block makes `tile` columns, group by group. While it weighs a group's source rows in shared memory, where each
// sample is converted once for all columns, and then each pixel's neighbours there, the next group's source rows are
// already on their way to it. With TAPS 0 the number of weights is free and source rows are not sent ahead.
template <int TAPS, typename S, typename T>
__device__ __forceinline__ void prepare_frame(
    const S* source, int source_height, int source_width, T* out, int height, int width, const Axis& rows,
    const Axis& columns, int tile, int weighed_pitch, int raw_pitch, int raw_rows) {
    extern __shared__ float4 shared[];
    float* weighed = reinterpret_cast<float*>(shared);  // [GROUP][weighed_pitch]
    uint8* raw = reinterpret_cast<uint8*>(weighed + GROUP * weighed_pitch);  // two times [raw_rows][raw_pitch]
    const Rows from(source, source_height, static_cast<uint32>(source_width) * 3 * sizeof(S));
    const int groups = (height + GROUP - 1) / GROUP;
    int top = static_cast<int>(groups * blockIdx.y / gridDim.y) * GROUP;
    const int stop = static_cast<int>(groups * (blockIdx.y + 1) / gridDim.y) * GROUP;

    const int left = blockIdx.x * tile, right = min(left + tile, width);
    constexpr int whole = 16 / sizeof(S);
    const int first = columns.first(left) * 3 / whole * whole, begin = first * static_cast<int>(sizeof(S));
    const int count = (columns.first(right - 1) + columns.taps) * 3 - first;
    Span next(rows, top, height);
    if (TAPS) send(from, next, begin, count * static_cast<int>(sizeof(S)), raw, raw_pitch);

    // A thread makes two neighbouring pixels.
    const int x = left + static_cast<int>(threadIdx.x) * 2;
    const float4* entry_a = columns.entry(min(x, right - 1));
    const float4* entry_b = columns.entry(min(x + 1, right - 1));
    const float4 head_a = __ldg(entry_a), head_b = __ldg(entry_b);
    const float* weighed_a = weighed + __float_as_int(head_a.x) * 3 - first;
    const float* weighed_b = weighed + __float_as_int(head_b.x) * 3 - first;
    const uint64 plane = static_cast<uint64>(height) * width;
    T* to = out + static_cast<uint64>(top) * width + x;
    const bool pairs = width % 2 == 0 && reinterpret_cast<uint64>(out) % (2 * sizeof(T)) == 0;

    for (uint8* now = raw; top < stop; top += GROUP, to += GROUP * width) {
        const Span span = next;
        uint8* const other = now == raw ? raw + raw_rows * raw_pitch : raw;
        if (TAPS) arrived();
        __syncthreads();  // also: nobody reads `weighed` of the group before any more
        if (top + GROUP < stop) {
            next = Span(rows, top + GROUP, height);
            if (TAPS) send(from, next, begin, count * static_cast<int>(sizeof(S)), other, raw_pitch);
        }
        const int warp = threadIdx.x / 32;
        weigh_rows<TAPS, S>(from, rows, min(top + warp, height - 1), begin, count, now, span.first, raw_pitch,
                            weighed + warp * weighed_pitch);
        now = other;
        __syncthreads();
        if (x >= right) continue;

        float a[GROUP][3], b[GROUP][3];
        weigh_columns<TAPS>(a, weighed_a, weighed_pitch, head_a, entry_a, columns.taps);
        weigh_columns<TAPS>(b, weighed_b, weighed_pitch, head_b, entry_b, columns.taps);
#pragma unroll
        for (int c = 0; c < 3; c++) {
            T* pixel = to + c * plane;
#pragma unroll
            for (int r = 0; r < GROUP; r++, pixel += width) {
                if (top + r >= height) break;
                if (pairs) {
                    store_pair(pixel, a[r][c], b[r][c]);
                } else {
                    from_float(a[r][c], pixel[0]);
                    if (x + 1 < right) from_float(b[r][c], pixel[1]);
                }
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
    extern "C" __global__ void __launch_bounds__(32 * GROUP, 8) prepare_frame_##NAME##_##TAPS(                \
        const S* source, int source_height, int source_width, T* out, int height, int width,                  \
        const float4* row_entries, int row_stride, int row_taps, const float4* column_entries,                \
        int column_stride, int column_taps, int tile, int weighed_pitch, int raw_pitch, int raw_rows) {       \
        const Axis rows = {row_entries, row_stride, row_taps};                                                \
        const Axis columns = {column_entries, column_stride, column_taps};                                    \
        prepare_frame<TAPS>(source, source_height, source_width, out, height, width, rows, columns, tile,     \
                            weighed_pitch, raw_pitch, raw_rows);                                              \
    }
#define LEVELS(S, T, NAME)                                                                                    \
    PREPARE(S, T, NAME, 0)                                                                                    \
    PREPARE(S, T, NAME, 1)                                                                                    \
    PREPARE(S, T, NAME, 2)                                                                                    \
    PREPARE(S, T, NAME, 3)                                                                                    \
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
