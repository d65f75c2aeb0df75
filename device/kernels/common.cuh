// What the kernels share: half precision without headers (so that NVRTC needs no include path), eight elements at
// a time, and sums over a block.
//
// Arrays are contiguous. A group is eight neighbouring elements: two 16-byte loads of float, one of half. Indices of
// groups and elements are 64 bit; a kernel that divides them does so once a group.

#pragma once

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

struct half {
    uint16 bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float to_float(half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

// Rounds to nearest, ties to even, as NumPy does; too large becomes infinite.
__device__ __forceinline__ void from_float(float value, float& result) { result = value; }

__device__ __forceinline__ void from_float(float value, half& result) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
}

__device__ __forceinline__ bool is_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Where NaN and Inf are reported. The flag is the host's memory, written only when there is something to tell; the host
// then waits and reads which one was the lowest.
struct Found {
    uint64* lowest;  // label in the upper half, frame in the lower
    int* flag;

    __device__ __forceinline__ void report(uint32 label, uint32 frame) const {
        atomicMin(lowest, (static_cast<uint64>(label) << 32) | frame);
        *reinterpret_cast<volatile int*>(flag) = 1;
    }
};

struct alignas(16) Group {
    float v[8];
};

__device__ __forceinline__ bool aligned16(const void* pointer) {
    return (reinterpret_cast<uint64>(pointer) & 15) == 0;
}

// `pointer` is 16-byte aligned.
__device__ __forceinline__ Group load(const float* pointer) {
    Group g;
    const float4 a = reinterpret_cast<const float4*>(pointer)[0];
    const float4 b = reinterpret_cast<const float4*>(pointer)[1];
    g.v[0] = a.x, g.v[1] = a.y, g.v[2] = a.z, g.v[3] = a.w;
    g.v[4] = b.x, g.v[5] = b.y, g.v[6] = b.z, g.v[7] = b.w;
    return g;
}

__device__ __forceinline__ Group load(const half* pointer) {
    const uint4 raw = *reinterpret_cast<const uint4*>(pointer);
    const uint32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    Group g;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        g.v[2 * i] = to_float(half{static_cast<uint16>(words[i] & 0xffffu)});
        g.v[2 * i + 1] = to_float(half{static_cast<uint16>(words[i] >> 16)});
    }
    return g;
}

__device__ __forceinline__ void store(float* pointer, const Group& g) {
    reinterpret_cast<float4*>(pointer)[0] = make_float4(g.v[0], g.v[1], g.v[2], g.v[3]);
    reinterpret_cast<float4*>(pointer)[1] = make_float4(g.v[4], g.v[5], g.v[6], g.v[7]);
}

__device__ __forceinline__ void store(half* pointer, const Group& g) {
    uint32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(g.v[2 * i + 1]), "f"(g.v[2 * i]));
    *reinterpret_cast<uint4*>(pointer) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The same for any alignment and for the last, shorter group: `count` elements, the rest 0.
template <typename T>
__device__ __forceinline__ Group load_some(const T* pointer, int count) {
    Group g;
#pragma unroll
    for (int i = 0; i < 8; i++) g.v[i] = i < count ? to_float(pointer[i]) : 0.0f;
    return g;
}

template <typename T>
__device__ __forceinline__ void store_some(T* pointer, const Group& g, int count) {
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < count) from_float(g.v[i], pointer[i]);
}

template <typename T>
__device__ __forceinline__ Group load_any(const T* pointer, int count, bool whole) {
    return whole ? load(pointer) : load_some(pointer, count);
}

template <typename T>
__device__ __forceinline__ void store_any(T* pointer, const Group& g, int count, bool whole) {
    if (whole)
        store(pointer, g);
    else
        store_some(pointer, g, count);
}

__device__ __forceinline__ uint64 thread_index() {
    return static_cast<uint64>(blockIdx.x) * blockDim.x + threadIdx.x;
}
