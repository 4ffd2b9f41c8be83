// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b for few rows and large matrices, where reading the weights bounds the speed: the kernels read packed
// weights in memory order. MR, NR, KC and MC are the block sizes as BLIS names them.

#pragma once

#include <omp.h>

#include "vectors.h"

namespace vanilla_transformer {

constexpr int NR = 2 * kLanes;        // outputs of a panel
constexpr int MR = 6;                 // most rows of a tile: 12 sums and their operands fill 16 registers
constexpr int KC = 512;               // inputs of a panel that stay in a cache while several tiles of rows pass
constexpr int MC = 128;               // rows that stay in a cache while the weights pass
constexpr int kCacheLine = 64;        // bytes
constexpr int kMinRowsToPrefetch = 3; // fewer rows wait for the weights, and the hardware's prefetcher suffices
constexpr int kMaxReplicatedRows = 4; // each thread normalizes this few rows for itself: cheaper than a barrier

struct Linear {
    const void *weight; // float (panels, inputs, NR); with a scale int8 (panels, (inputs + 1) / 2, NR, 2)
    const float *scale; // of each output; nullptr: the weights are float
    const float *bias;  // of each output
    int32_t inputs, outputs;
};

// Memory of one call. Rows are padded to `stride`.
struct Scratch {
    float *states, *normed; // the residual stream, and its layer norm
    float *wide;            // queries, keys and values, or the hidden layer of the feed-forward network
    float *context;         // attention's weighted sum of the values
    float *update;          // a sub-layer's output
    float *scores;          // of attention, (threads, kMaxQueriesPerTile, max_positions)
    const float **entries;  // keys and values that a query attends to, (threads, max_positions)
    int16_t *quantized;     // the input of an int8 product
    float *row_scales;      // of `quantized`, one a row
    int32_t stride, max_positions;
};

// A tile's share of prefetching the next panel: one cache line from `next` on, then another after every `interval`
// inputs. All lines at once would delay each other and the loads of the current panel.
struct Prefetch {
    const char *next;
    int interval;
};

// The share of tile `tile` out of `tiles`, in a panel with `bytes` for each of `depth` inputs.
static inline Prefetch prefetch_share(const void *panel, int bytes, int depth, int tile, int tiles) {
    int interval = kCacheLine * tiles / bytes;
    return {static_cast<const char *>(panel) + int64_t(depth) * bytes * tile / tiles, interval > 0 ? interval : 1};
}

static inline void prefetch_line(Prefetch *prefetch) {
    __builtin_prefetch(prefetch->next, 0, 2);
    prefetch->next += kCacheLine;
}

// Rows of x by a panel: sums[rows][2] += x w. One or two rows keep separate sums for several inputs, because a sum
// waits for the one before it.
template <int rows> static inline void micro_kernel(int depth, const float *x, int64_t stride, const float *w,
                                                    VecF32 sums[][2], Prefetch prefetch) {
    constexpr int unroll = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    VecF32 partial[unroll][rows][2] = {};
    for (int k = 0; k < depth;) {
        int end = prefetch.next && k + prefetch.interval < depth ? k + prefetch.interval : depth;
        if (prefetch.next)
            prefetch_line(&prefetch);
        for (; k + unroll <= end; k += unroll)
            for (int i = 0; i < unroll; i++) {
                const float *from = w + int64_t(k + i) * NR;
                VecF32 left = load(from), right = load(from + kLanes);
                for (int r = 0; r < rows; r++) {
                    float value = x[r * stride + k + i];
                    partial[i][r][0] += left * value;
                    partial[i][r][1] += right * value;
                }
            }
        for (; k < end; k++)
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < 2; h++)
                    partial[0][r][h] += load(w + int64_t(k) * NR + h * kLanes) * x[r * stride + k];
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < unroll; i++)
                sums[r][h] += partial[i][r][h];
}

// sums[rows][2] = x w in integers; `depth` is even.
template <int rows>
static inline void micro_kernel(int depth, const int16_t *x, int64_t stride, const int8_t *w, VecI32 sums[][2]) {
    VecI32 partial[rows][2] = {};
    for (int k = 0; k < depth; k += 2) {
        const int8_t *from = w + int64_t(k) * NR;
        VecI16 left = load(from), right = load(from + 2 * kLanes);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * stride + k, sizeof pair);
            VecI16 pairs = (VecI16)(VecI32{} + pair);
            partial[r][0] = add_pair_products(partial[r][0], left, pairs);
            partial[r][1] = add_pair_products(partial[r][1], right, pairs);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            sums[r][h] = partial[r][h];
}

template <typename... Arguments> static inline void micro_kernel(int rows, Arguments... arguments) {
    switch (rows) {
    case 1: return micro_kernel<1>(arguments...);
    case 2: return micro_kernel<2>(arguments...);
    case 3: return micro_kernel<3>(arguments...);
    case 4: return micro_kernel<4>(arguments...);
    case 5: return micro_kernel<5>(arguments...);
    case 6: return micro_kernel<6>(arguments...);
    }
}

// int8 panels have a quarter of the bytes, so a tile prefetches its share of the next one all at once.
static inline void prefetch_at_once(const void *panel, int64_t bytes, int tile, int tiles) {
    const char *from = static_cast<const char *>(panel);
    for (int64_t i = bytes * tile / tiles / kCacheLine * kCacheLine; i < bytes * (tile + 1) / tiles; i += kCacheLine)
        __builtin_prefetch(from + i, 0, 2);
}

// The outputs of panels `first` to `end` - 1 for up to MC rows, KC inputs at a time if there are several tiles.
static void gemm(const Linear *map, int first, int end, const float *x, int64_t x_stride, int rows, float *y,
                 int64_t y_stride, bool relu) {
    int tiles = (rows + MR - 1) / MR, step = rows <= MR ? map->inputs : KC;
    for (int from = 0; from < map->inputs; from += step) {
        int depth = map->inputs - from < step ? map->inputs - from : step;
        bool is_last = from + depth == map->inputs;
        for (int panel = first; panel < end; panel++) {
            const float *w = static_cast<const float *>(map->weight) + (int64_t(panel) * map->inputs + from) * NR;
            for (int i = 0; i < tiles; i++) {
                int row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
                float *write = y + row * y_stride + panel * NR;
                VecF32 sums[MR][2] = {};
                if (from)
                    for (int r = 0; r < count; r++)
                        for (int h = 0; h < 2; h++)
                            sums[r][h] = load(write + r * y_stride + h * kLanes);
                Prefetch prefetch = {nullptr, 0};
                if (panel + 1 < end && rows >= kMinRowsToPrefetch)
                    prefetch = prefetch_share(w + int64_t(map->inputs) * NR, NR * sizeof(float), depth, i, tiles);
                micro_kernel(count, depth, x + row * x_stride + from, x_stride, w, sums, prefetch);
                for (int r = 0; r < count; r++)
                    for (int h = 0; h < 2; h++) {
                        VecF32 value = sums[r][h];
                        if (is_last)
                            value += load(map->bias + panel * NR + h * kLanes);
                        if (is_last && relu)
                            value = value < 0 ? VecF32{} : value; // NaN stays NaN
                        store(write + r * y_stride + h * kLanes, value);
                    }
            }
        }
    }
}

// The same for int8 weights; row r of x is row_scales[r] times integers.
static void gemm(const Linear *map, int first, int end, const int16_t *x, int64_t x_stride, const float *row_scales,
                 int rows, float *y, int64_t y_stride, bool relu) {
    constexpr int max_rows = MR - 1; // a product needs a register, too
    int tiles = (rows + max_rows - 1) / max_rows, depth = (map->inputs + 1) / 2 * 2;
    for (int panel = first; panel < end; panel++) {
        const int8_t *w = static_cast<const int8_t *>(map->weight) + int64_t(panel) * depth * NR;
        for (int i = 0; i < tiles; i++) {
            int row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
            VecI32 sums[MR][2] = {};
            if (tiles > 1 && panel + 1 < end)
                prefetch_at_once(w + depth * NR, depth * NR, i, tiles);
            micro_kernel(count, depth, x + row * x_stride, x_stride, w, sums);
            for (int r = 0; r < count; r++)
                for (int h = 0; h < 2; h++) {
                    int column = panel * NR + h * kLanes;
                    VecF32 value =
                        __builtin_convertvector(sums[r][h], VecF32) * (load(map->scale + column) * row_scales[row + r]);
                    value += load(map->bias + column);
                    if (relu)
                        value = value < 0 ? VecF32{} : value; // NaN stays NaN
                    store(y + (row + r) * y_stride + column, value);
                }
        }
    }
}

// Quantizes a row to integers that are as large as 32-bit sums of their products with int8 allow. An odd width gets a 0
// appended. Returns the row's scale, NaN if an element is NaN.
static float quantize_row(const float *x, int width, int16_t *quantized) {
    float levels = 16777216.0f / (width + 1); // a little less than 2^31 / 127 / width
    if (levels > 32767)
        levels = 32767;
    int vectorized = width / kLanes * kLanes;
    VecF32 peaks = {};
    VecI32 nan_lanes = {};
    for (int i = 0; i < vectorized; i += kLanes) {
        VecF32 now = load(x + i);
        peaks = max(max(now, -now), peaks);
        nan_lanes |= now != now;
    }
    float peak = reduce_max(peaks);
    bool has_nan = false;
    for (int i = 0; i < kLanes; i++)
        has_nan |= nan_lanes[i] != 0;
    for (int i = vectorized; i < width; i++) {
        peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
        has_nan |= x[i] != x[i];
    }
    float factor = peak > 0 ? levels / peak : 0;
    for (int i = 0; i < vectorized; i += kLanes) {
        VecF32 scaled = load(x + i) * factor;
        HalfVecI16 rounded = __builtin_convertvector(
            __builtin_convertvector(scaled + (scaled < 0 ? VecF32{} - 0.5f : VecF32{} + 0.5f), VecI32), HalfVecI16);
        memcpy(quantized + i, &rounded, sizeof rounded);
    }
    for (int i = vectorized; i < width; i++)
        quantized[i] = int16_t(lrintf(x[i] * factor));
    if (width % 2)
        quantized[width] = 0;
    return has_nan ? NAN : peak / levels;
}

// Every thread: this thread's panels of y = x W^T + b for all rows; with `relu` max(0, y).
static void linear(const Scratch *scratch, const Linear *map, const float *x, int64_t x_stride, int rows, float *y,
                   int64_t y_stride, bool relu) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int panels = (map->outputs + NR - 1) / NR;
    int first = panels * thread / threads, end = panels * (thread + 1) / threads;
    int16_t *quantized = scratch->quantized;
    float *row_scales = scratch->row_scales;
    if (map->scale) { // each thread quantizes few rows for itself, as in `ThreadRows`
        if (rows <= kMaxReplicatedRows) {
            quantized += int64_t(thread) * kMaxReplicatedRows * scratch->stride;
            row_scales += thread * kMaxReplicatedRows;
        }
        int from = rows <= kMaxReplicatedRows ? 0 : rows * thread / threads;
        int to = rows <= kMaxReplicatedRows ? rows : rows * (thread + 1) / threads;
        for (int64_t row = from; row < to; row++)
            row_scales[row] = quantize_row(x + row * x_stride, map->inputs, quantized + row * scratch->stride);
        if (rows > kMaxReplicatedRows) {
#pragma omp barrier
        }
    }
    int blocks = (rows + MC - 1) / MC;
    for (int block = 0; block < blocks; block++) {
        int64_t row = int64_t(rows) * block / blocks;
        int count = int(int64_t(rows) * (block + 1) / blocks - row);
        if (map->scale)
            gemm(map, first, end, quantized + row * scratch->stride, scratch->stride, row_scales + row, count,
                 y + row * y_stride, y_stride, relu);
        else
            gemm(map, first, end, x + row * x_stride, x_stride, count, y + row * y_stride, y_stride, relu);
    }
}

} // namespace vanilla_transformer
