// Classifier-free guidance with rescale.
// Formulas are those of v2v.device.Device (guide); cpu.py is the specification.

#include "common.cuh"

// Memory between the two kernels of one guided step. `done` is 0 between launches.
struct Scratch {
    float factor;  // rescale std(conditional) / (std(guided) + 1e-12) + 1 - rescale
    uint32 done;   // blocks of `statistics` that have written their sums
    double sums[4][1024];  // of each block: conditional, its square, guided, its square
};

// The guided velocity; rounded the same wherever it is computed, so that the statistics are those of what is used.
__device__ __forceinline__ float guided(float conditional, float unconditional, float guidance) {
    return __fmaf_rn(guidance, conditional - unconditional, unconditional);
}

// Sums of x and x^2 whose float32 part is taken about the thread's first element: a mean far from 0 costs no digits.
struct Moments {
    float shift, sum, square, count;

    __device__ __forceinline__ void add(float value) {
        const float d = value - shift;
        sum += d;
        square = __fmaf_rn(d, d, square);
    }

    // Raw moments in double: the sum of `count` values, and of their squares.
    __device__ __forceinline__ double first() const {
        return static_cast<double>(shift) * count + sum;
    }
    __device__ __forceinline__ double second() const {
        const double s = shift;
        return square + 2.0 * s * sum + s * s * count;
    }
};

__device__ __forceinline__ void add_over_warp(double (&sums)[4]) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
#pragma unroll
        for (int k = 0; k < 4; k++) sums[k] += __shfl_down_sync(0xffffffffu, sums[k], offset);
}

// The sum over the block, in thread 0. Always in the same order, so that the same input gives the same bits.
__device__ __forceinline__ void add_over_block(double (&sums)[4]) {
    __shared__ double shared[4][8];
    add_over_warp(sums);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0)
#pragma unroll
        for (int k = 0; k < 4; k++) shared[k][warp] = sums[k];
    __syncthreads();
    if (warp == 0) {
#pragma unroll
        for (int k = 0; k < 4; k++) sums[k] = lane < 8 ? shared[k][lane] : 0.0;
        add_over_warp(sums);
    }
    __syncthreads();
}

// Unbiased standard deviation from raw moments.
__device__ __forceinline__ double deviation(double sum, double square, double size) {
    const double variance = (square - sum * sum / size) / (size - 1.0);
    return variance < 0.0 ? 0.0 : sqrt(variance);  // a NaN stays one
}

// One pass over both velocities; at most 1024 blocks of 256 threads, of which the last to finish writes the factor.
template <typename T>
__device__ __forceinline__ void statistics(
    const T* conditional, const T* unconditional, uint64 size, float guidance, float rescale, Scratch* scratch) {
    const uint64 stride = static_cast<uint64>(gridDim.x) * blockDim.x * 8;
    const bool whole = aligned16(conditional) && aligned16(unconditional);
    Moments c = {}, v = {};
    const auto add = [&](const Group& a, const Group& b, int count) {
        if (c.count == 0.0f) c.shift = a.v[0], v.shift = guided(a.v[0], b.v[0], guidance);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < count) {
                c.add(a.v[i]);
                v.add(guided(a.v[i], b.v[i], guidance));
            }
        c.count += count;
    };
    uint64 first = thread_index() * 8;
    for (; whole && first + stride + 8 <= size; first += 2 * stride) {  // two groups under way at once
        const Group a = load(conditional + first), b = load(unconditional + first);
        const Group p = load(conditional + first + stride), q = load(unconditional + first + stride);
        add(a, b, 8);
        add(p, q, 8);
    }
    for (; first < size; first += stride) {
        const int count = size - first < 8 ? static_cast<int>(size - first) : 8;
        const Group a = load_any(conditional + first, count, whole && count == 8);
        const Group b = load_any(unconditional + first, count, whole && count == 8);
        add(a, b, count);
    }
    v.count = c.count;
    double sums[4] = {c.first(), c.second(), v.first(), v.second()};
    add_over_block(sums);

    __shared__ bool last;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int k = 0; k < 4; k++) scratch->sums[k][blockIdx.x] = sums[k];
        __threadfence();
        last = atomicAdd(&scratch->done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    double parts[4][4];  // of four blocks: 1024 at most, 256 threads
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (uint32 j = 0; j < 4; j++) {
            const uint32 i = threadIdx.x + j * blockDim.x;
            parts[k][j] = i < gridDim.x ? __ldcg(&scratch->sums[k][i]) : 0.0;
        }
#pragma unroll
    for (int k = 0; k < 4; k++) sums[k] = (parts[k][0] + parts[k][1]) + (parts[k][2] + parts[k][3]);
    add_over_block(sums);
    if (threadIdx.x == 0) {
        const double n = static_cast<double>(size);
        const double r = rescale;
        const double ratio = deviation(sums[0], sums[1], n) / (deviation(sums[2], sums[3], n) + 1e-12);
        scratch->factor = r == 0.0 ? 1.0f : static_cast<float>(r * ratio + (1.0 - r));
        scratch->done = 0;
    }
}

// The velocity after guidance and rescale. `unconditional` null: the conditional one; `scratch` null: no rescaling.
template <typename T>
__device__ __forceinline__ void guide(
    const T* conditional, const T* unconditional, float* out, uint64 size, float guidance, const Scratch* scratch) {
    const uint64 first = thread_index() * 8;
    if (first >= size) return;
    const int count = size - first < 8 ? static_cast<int>(size - first) : 8;
    const bool full = count == 8;
    Group v = load_any(conditional + first, count, full && aligned16(conditional + first));
    if (unconditional) {
        const float factor = scratch ? scratch->factor : 1.0f;
        const Group u = load_any(unconditional + first, count, full && aligned16(unconditional + first));
#pragma unroll
        for (int i = 0; i < 8; i++) v.v[i] = guided(v.v[i], u.v[i], guidance) * factor;
    }
    store_any(out + first, v, count, full && aligned16(out + first));
}

#define KERNELS(T, NAME)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) statistics_##NAME(                                      \
        const T* conditional, const T* unconditional, uint64 size, float guidance, float rescale,             \
        Scratch* scratch) {                                                                                   \
        statistics(conditional, unconditional, size, guidance, rescale, scratch);                             \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) guide_##NAME(                                           \
        const T* conditional, const T* unconditional, float* out, uint64 size, float guidance,                \
        const Scratch* scratch) {                                                                             \
        guide(conditional, unconditional, out, size, guidance, scratch);                                      \
    }
KERNELS(float, float32)
KERNELS(half, float16)
