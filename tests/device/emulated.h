// Enough of CUDA's language to run kernels on a CPU: a block's threads are fibers, blocks come one after the other.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

using std::max;
using std::min;

struct Index {
    unsigned x, y;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename T> static T __ldg(const T* pointer) { return *pointer; }
template <typename T> static T __ldcg(const T* pointer) { return *pointer; }

extern "C" {
int failed = 0;  // something that would end a kernel on a GPU
}

template <typename To, typename From>
static To bits(From value) {
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}
static float __uint_as_float(unsigned value) { return bits<float>(value); }
static unsigned __float_as_uint(float value) { return bits<unsigned>(value); }
static float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static void __threadfence() {}
static unsigned atomicAdd(unsigned* at, unsigned value) { return (*at += value) - value; }
static unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
    const unsigned long long before = *at;
    *at = min(before, value);
    return before;
}

// Fibers ---------------------------------------------------------------------------------------------------------
enum class State { ready, at_block_barrier, at_warp_barrier, done };
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    double value;  // handed to another thread of the warp
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static void (*body)();
static unsigned current;

static void wait_at(State barrier) {
    const Index mine = threadIdx;
    fibers[current].state = barrier;
    swapcontext(&fibers[current].context, &scheduler);
    threadIdx = mine;
}
static void __syncthreads() { wait_at(State::at_block_barrier); }
static double __shfl_down_sync(unsigned, double value, int offset) {
    fibers[current].value = value;
    wait_at(State::at_warp_barrier);
    const unsigned lane = current % 32;
    const double taken = lane + offset < 32 ? fibers[current + offset].value : value;
    wait_at(State::at_warp_barrier);
    return taken;
}

static void fiber() {
    body();
    fibers[current].state = State::done;
    swapcontext(&fibers[current].context, &scheduler);
}

// Let everybody go on who waits at `barrier` with all others of first..last that are not done.
static void release(unsigned first, unsigned last, State barrier) {
    for (unsigned k = first; k < last; k++)
        if (fibers[k].state != barrier && fibers[k].state != State::done) return;
    for (unsigned k = first; k < last; k++)
        if (fibers[k].state == barrier) fibers[k].state = State::ready;
}

static void run_block(unsigned threads) {
    fibers.resize(max<size_t>(fibers.size(), threads));
    for (unsigned k = 0; k < threads; k++) {
        Fiber& f = fibers[k];
        if (!f.stack) f.stack.reset(new char[1 << 16]);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = 1 << 16;
        makecontext(&f.context, fiber, 0);
        f.state = State::ready;
    }
    for (bool moved = true; moved;) {
        moved = false;
        for (current = 0; current < threads; current++)
            if (fibers[current].state == State::ready) {
                moved = true;
                threadIdx = {current, 0};
                swapcontext(&scheduler, &fibers[current].context);
            }
        for (unsigned k = 0; k < threads; k += 32)
            release(k, min(k + 32, threads), State::at_warp_barrier);
        release(0, threads, State::at_block_barrier);
    }
    for (unsigned k = 0; k < threads; k++)
        failed |= fibers[k].state != State::done;  // some wait for others that do not come
}

template <auto F>
struct Launch;
template <typename... A, void (*F)(A...)>
struct Launch<F> {
    static void run(unsigned across, unsigned down, unsigned threads, A... arguments) {
        gridDim = {across, down};
        blockDim = {threads, 1};
        static thread_local const void* kept;
        auto call = [&] { F(arguments...); };
        kept = &call;
        body = [] { (*static_cast<decltype(call)*>(const_cast<void*>(kept)))(); };
        for (unsigned k = 0; k < across * down; k++) {
            blockIdx = {k % across, k / across};
            run_block(threads);
        }
    }
};
