// Elementwise work on latents: linear combinations, windows of a canvas, sampling the posterior, the search for NaN.
// Layouts and formulas are those of v2v.device.Device; cpu.py is the specification.

#include "common.cuh"

// out = sum of coefficient[k] * array[k]. Bit k of `halves` says that array k is half, bit 7 that out is. `out` may be
// one of the arrays: every element is read before it is written, by the same thread.
template <int N>
__device__ __forceinline__ void combine(
    const void* const (&arrays)[N], const float (&coefficients)[N], void* out, uint32 halves, uint64 size) {
    const uint64 first = thread_index() * 8;
    if (first >= size) return;
    const int count = size - first < 8 ? static_cast<int>(size - first) : 8;
    bool whole = count == 8 && aligned16(out);
#pragma unroll
    for (int k = 0; k < N; k++) whole = whole && aligned16(arrays[k]);
    Group terms[N];  // all loads before the first use
#pragma unroll
    for (int k = 0; k < N; k++)
        terms[k] = (halves >> k) & 1 ? load_any(static_cast<const half*>(arrays[k]) + first, count, whole)
                                     : load_any(static_cast<const float*>(arrays[k]) + first, count, whole);
    Group sum;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sum.v[i] = coefficients[0] * terms[0].v[i];
#pragma unroll
        for (int k = 1; k < N; k++) sum.v[i] += coefficients[k] * terms[k].v[i];
    }
    if (halves >> 7)
        store_any(static_cast<half*>(out) + first, sum, count, whole);
    else
        store_any(static_cast<float*>(out) + first, sum, count, whole);
}

#define ARRAY(k) const void *a##k, float c##k
#define COMBINE(N, PARAMETERS, ARRAYS, COEFFICIENTS)                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                     \
        combine_##N(void* out, uint32 halves, uint64 size, PARAMETERS) {                                  \
        const void* const arrays[N] = {ARRAYS};                                                           \
        const float coefficients[N] = {COEFFICIENTS};                                                     \
        combine<N>(arrays, coefficients, out, halves, size);                                              \
    }
#define LIST(...) __VA_ARGS__
COMBINE(1, LIST(ARRAY(0)), a0, c0)
COMBINE(2, LIST(ARRAY(0), ARRAY(1)), LIST(a0, a1), LIST(c0, c1))
COMBINE(3, LIST(ARRAY(0), ARRAY(1), ARRAY(2)), LIST(a0, a1, a2), LIST(c0, c1, c2))
COMBINE(4, LIST(ARRAY(0), ARRAY(1), ARRAY(2), ARRAY(3)), LIST(a0, a1, a2, a3), LIST(c0, c1, c2, c3))
COMBINE(5, LIST(ARRAY(0), ARRAY(1), ARRAY(2), ARRAY(3), ARRAY(4)), LIST(a0, a1, a2, a3, a4),
        LIST(c0, c1, c2, c3, c4))

// Where a group of a window's row lies in the window and in the canvas. Rows hold `per_row` groups.
struct Place {
    uint64 window;  // element of [Z, F, h, w]
    uint64 canvas;  // element of [T, Z, H, W]
    uint64 weights; // element of [F, h, w]
    int count;      // elements of the group inside the row
};

__device__ __forceinline__ bool place(
    int Z, int F, int h, int w, int H, int W, int f, int y, int x, Place& p) {
    const uint32 per_row = (w + 7) / 8;
    const uint64 index = thread_index();
    const uint64 row = index / per_row;
    if (row >= static_cast<uint64>(Z) * F * h) return false;
    const int k = static_cast<int>(index - row * per_row) * 8;
    const uint32 plane = static_cast<uint32>(row / h);
    const int j = static_cast<int>(row - static_cast<uint64>(plane) * h);
    const int z = plane / F, i = plane - z * F;
    p.window = row * w + k;
    p.canvas = ((static_cast<uint64>(f + i) * Z + z) * H + (y + j)) * W + (x + k);
    p.weights = (static_cast<uint64>(i) * h + j) * w + k;
    p.count = w - k < 8 ? w - k : 8;
    return true;
}

template <typename T>
__device__ __forceinline__ void take_window(
    const float* canvas, T* out, float scale, int Z, int F, int h, int w, int H, int W, int f, int y, int x) {
    Place p;
    if (!place(Z, F, h, w, H, W, f, y, x, p)) return;
    Group g = load_any(canvas + p.canvas, p.count, p.count == 8 && aligned16(canvas + p.canvas));
#pragma unroll
    for (int i = 0; i < 8; i++) g.v[i] *= scale;
    store_any(out + p.window, g, p.count, p.count == 8 && aligned16(out + p.window));
}

template <typename T>
__device__ __forceinline__ void add_window(
    const T* velocity, const float* weights, float* total, int Z, int F, int h, int w, int H, int W, int f, int y,
    int x) {
    Place p;
    if (!place(Z, F, h, w, H, W, f, y, x, p)) return;
    const bool full = p.count == 8;
    const bool whole = full && aligned16(total + p.canvas);
    const Group v = load_any(velocity + p.window, p.count, full && aligned16(velocity + p.window));
    const Group b = load_any(weights + p.weights, p.count, full && aligned16(weights + p.weights));
    Group sum = load_any(total + p.canvas, p.count, whole);
#pragma unroll
    for (int i = 0; i < 8; i++) sum.v[i] += b.v[i] * v.v[i];
    store_any(total + p.canvas, sum, p.count, whole);
}

// moments [2Z, h, w]: `size` means, then `size` log variances.
template <typename T>
__device__ __forceinline__ void sample_posterior(
    const T* moments, const float* noise, float* out, float scale, uint64 size) {
    const uint64 first = thread_index() * 8;
    if (first >= size) return;
    const int count = size - first < 8 ? static_cast<int>(size - first) : 8;
    const bool full = count == 8;
    const T* spread = moments + size + first;
    Group mean = load_any(moments + first, count, full && aligned16(moments + first));
    const Group logvar = load_any(spread, count, full && aligned16(spread));
    const Group e = load_any(noise + first, count, full && aligned16(noise + first));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        // Comparisons rather than fminf and fmaxf, which would hide a NaN.
        float l = logvar.v[i];
        l = l < -30.0f ? -30.0f : l > 20.0f ? 20.0f : l;
        mean.v[i] = (mean.v[i] + expf(0.5f * l) * e.v[i]) * scale;
    }
    store_any(out + first, mean, count, full && aligned16(out + first));
}

// The lowest (label, frame) where something is not finite goes into `found`; frames hold `frame_size` elements.
template <typename T>
__device__ __forceinline__ void find_nonfinite(
    const T* array, uint64 size, uint64 frame_size, uint32 label, const Found& found) {
    const uint64 first = thread_index() * 8;
    if (first >= size) return;
    const int count = size - first < 8 ? static_cast<int>(size - first) : 8;
    const Group g = load_any(array + first, count, count == 8 && aligned16(array + first));
    bool fine = true;
#pragma unroll
    for (int i = 0; i < 8; i++) fine = fine && is_finite(g.v[i]);
    if (fine) return;
    for (int i = 0; i < count; i++)  // rare: load again rather than index registers
        if (!is_finite(to_float(array[first + i]))) {
            found.report(label, static_cast<uint32>((first + i) / frame_size));
            return;
        }
}

#define WINDOW int Z, int F, int h, int w, int H, int W, int f, int y, int x
#define KERNELS(T, NAME)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                      \
        take_window_##NAME(const float* canvas, T* out, float scale, WINDOW) {                             \
        take_window(canvas, out, scale, Z, F, h, w, H, W, f, y, x);                                        \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                      \
        add_window_##NAME(const T* velocity, const float* weights, float* total, WINDOW) {                 \
        add_window(velocity, weights, total, Z, F, h, w, H, W, f, y, x);                                   \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) sample_posterior_##NAME(                             \
        const T* moments, const float* noise, float* out, float scale, uint64 size) {                      \
        sample_posterior(moments, noise, out, scale, size);                                                \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) find_nonfinite_##NAME(                               \
        const T* array, uint64 size, uint64 frame_size, uint32 label, uint64* lowest, int* flag) {         \
        find_nonfinite(array, size, frame_size, label, Found{lowest, flag});                               \
    }
KERNELS(float, float32)
KERNELS(half, float16)
