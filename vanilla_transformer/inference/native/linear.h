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
    const void *weight; // float, BFloat16 or int8_t, (panels, count_steps(inputs), NR, kStepInputs)
    const float *scale;  // of each output's int8 weights; nullptr: they are no integers
    const int32_t *sums; // of each output's int8 weights
    const float *bias;   // of each output
    int32_t inputs, outputs, is_bfloat16;
};

// A row's inputs are scale * (quantized - zero_point).
struct RowScale {
    float scale;
    int32_t zero_point;
};

// Memory of one call. Rows are padded to `stride`.
struct Scratch {
    float *states, *normed; // the residual stream, and its layer norm
    float *wide;            // queries, keys and values, or the hidden layer of the feed-forward network
    float *context;         // attention's weighted sum of the values
    float *update;          // a sub-layer's output
    float *scores;          // of attention, (threads, kMaxQueriesPerTile, max_positions)
    const float **entries;  // keys and values that a query attends to, (threads, max_positions)
    void *quantized;        // the input of a product, as Quantized or BFloat16
    RowScale *row_scales;   // of `quantized`, one a row
    int32_t stride, max_positions;
};

// A tile's share of prefetching the next panel: one cache line from `next` on, then another after every `interval`
// steps. All lines at once would delay each other and the loads of the current panel.
struct Prefetch {
    const char *next;
    int interval;
};

// The share of tile `tile` out of `tiles`, in a panel with `bytes` for each of `steps` steps.
static inline Prefetch prefetch_share(const void *panel, int bytes, int steps, int tile, int tiles) {
    int interval = kCacheLine * tiles / bytes;
    return {static_cast<const char *>(panel) + int64_t(steps) * bytes * tile / tiles, interval > 0 ? interval : 1};
}

static inline void prefetch_line(Prefetch *prefetch) {
    __builtin_prefetch(prefetch->next, 0, 2);
    prefetch->next += kCacheLine;
}

// A step multiplies this many inputs, 32 bits, with their weights of a panel.
template <typename Weight> constexpr int kStepInputs = 1;
template <> constexpr int kStepInputs<BFloat16> = 2;
template <> constexpr int kStepInputs<int8_t> = kGroup;

template <typename Weight> static inline int count_steps(int inputs) {
    return (inputs + kStepInputs<Weight> - 1) / kStepInputs<Weight>;
}

static inline float step_inputs(const float *x) { return *x; }
template <typename Input> static inline int32_t step_inputs(const Input *x) {
    int32_t inputs;
    memcpy(&inputs, x, sizeof inputs);
    return inputs;
}

// Rows of x by a panel: sums[rows][2] += x w. Few rows keep separate sums for several steps, because a sum waits for the
// one before it.
template <int rows, typename Input, typename Weight, typename Sum>
static inline void micro_kernel(int steps, const Input *x, int64_t stride, const Weight *w, Sum sums[][2],
                                Prefetch prefetch) {
    constexpr int unroll = rows == 1 ? 4 : rows == 2 || (rows <= 4 && kLanes == 16) ? 2 : 1;
    constexpr int width = kStepInputs<Weight> * kLanes; // weights of a vector
    Sum partial[unroll][rows][2] = {};
    auto add = [&](int i, int step) {
        const Weight *from = w + int64_t(step) * 2 * width;
        auto left = load(from), right = load(from + width);
        keep_in_register(left), keep_in_register(right);
        for (int r = 0; r < rows; r++) {
            auto inputs = step_inputs(x + r * stride + step * kStepInputs<Weight>);
            partial[i][r][0] = add_products(partial[i][r][0], inputs, left);
            partial[i][r][1] = add_products(partial[i][r][1], inputs, right);
        }
    };
    for (int step = 0; step < steps;) {
        int end = prefetch.next && step + prefetch.interval < steps ? step + prefetch.interval : steps;
        if (prefetch.next)
            prefetch_line(&prefetch);
        for (; step + unroll <= end; step += unroll)
            for (int i = 0; i < unroll; i++)
                add(i, step + i);
        for (; step < end; step++)
            add(0, step);
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < unroll; i++)
                sums[r][h] += partial[i][r][h];
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

// The outputs of panels `first` to `end` - 1 for up to MC rows, KC inputs at a time if there are several tiles.
template <typename Weight> static void gemm(const Linear *map, int first, int end, const Weight *x, int64_t x_stride,
                                            int rows, float *y, int64_t y_stride, bool relu) {
    constexpr int per_step = kStepInputs<Weight>;
    int tiles = (rows + MR - 1) / MR, depth = count_steps<Weight>(map->inputs), most = rows <= MR ? depth : KC / per_step;
    for (int from = 0; from < depth; from += most) {
        int steps = depth - from < most ? depth - from : most;
        bool is_last = from + steps == depth;
        for (int panel = first; panel < end; panel++) {
            const Weight *w = static_cast<const Weight *>(map->weight) + (int64_t(panel) * depth + from) * per_step * NR;
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
                    prefetch = prefetch_share(w + int64_t(depth) * per_step * NR, NR * sizeof(float), steps, i, tiles);
                micro_kernel(count, steps, x + row * x_stride + from * per_step, x_stride, w, sums, prefetch);
                for (int h = 0; h < 2; h++) {
                    VecF32 bias = is_last ? load(map->bias + panel * NR + h * kLanes) : VecF32{};
                    for (int r = 0; r < count; r++) {
                        VecF32 value = sums[r][h] + bias;
                        if (is_last && relu)
                            value = value < 0 ? VecF32{} : value; // NaN stays NaN
                        store(write + r * y_stride + h * kLanes, value);
                    }
                }
            }
        }
    }
}

// The same for int8 weights.
static void gemm(const Linear *map, int first, int end, const Quantized *x, int64_t x_stride,
                 const RowScale *row_scales, int rows, float *y, int64_t y_stride, bool relu) {
    constexpr int max_rows = kGroup == 2 ? MR - 1 : MR; // of pairs, a product needs a register, too
    int tiles = (rows + max_rows - 1) / max_rows, groups = count_steps<int8_t>(map->inputs);
    int64_t bytes = int64_t(groups) * kGroup * NR;
    for (int panel = first; panel < end; panel++) {
        const int8_t *w = static_cast<const int8_t *>(map->weight) + panel * bytes;
        for (int i = 0; i < tiles; i++) {
            int row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
            VecI32 sums[MR][2] = {};
            Prefetch prefetch = {nullptr, 0};
            if (tiles > 1 && panel + 1 < end)
                prefetch = prefetch_share(w + bytes, kGroup * NR, groups, i, tiles);
            micro_kernel(count, groups, x + row * x_stride, x_stride, w, sums, prefetch);
            for (int h = 0; h < 2; h++) {
                int column = panel * NR + h * kLanes;
                VecF32 scale = load(map->scale + column), bias = load(map->bias + column);
                VecI32 weight_sums = load(map->sums + column);
                for (int r = 0; r < count; r++) {
                    RowScale row_scale = row_scales[row + r];
                    VecI32 sum = sums[r][h] - weight_sums * row_scale.zero_point;
                    VecF32 value = __builtin_convertvector(sum, VecF32) * (scale * row_scale.scale) + bias;
                    if (relu)
                        value = value < 0 ? VecF32{} : value; // NaN stays NaN
                    store(y + (row + r) * y_stride + column, value);
                }
            }
        }
    }
}

// Quantizes a row to integers from 0 to 255, or as many as 32-bit sums of their products with int8 allow; 0 is among
// them exactly. The last group is filled with 0. The scale is NaN if an element is.
static RowScale quantize_row(const float *x, int width, Quantized *quantized) {
    float levels = 16777216.0f / (width + 1); // a little less than 2^31 / 127 / width
    levels = levels > 255 ? 255 : floorf(levels);
    int vectorized = width / kLanes * kLanes;
    VecF32 lows = {}, highs = {};
    VecI32 nan_lanes = {};
    for (int i = 0; i < vectorized; i += kLanes) {
        VecF32 now = load(x + i);
        lows = min(now, lows), highs = max(now, highs);
        nan_lanes |= now != now;
    }
    float low = -reduce_max(-lows), high = reduce_max(highs);
    bool has_nan = false;
    for (int i = 0; i < kLanes; i++)
        has_nan |= nan_lanes[i] != 0;
    for (int i = vectorized; i < width; i++) {
        low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        has_nan |= x[i] != x[i];
    }
    float range = high - low, factor = range > 1e-36f ? levels / range : 0; // 0, too, if an element is infinite
    float zero_point = factor > 0 ? floorf(0.5f - low * factor) : 0, offset = zero_point + 0.5f; // to round
    for (int i = 0; i < vectorized; i += kLanes) {
        VecF32 scaled = min(load(x + i) * factor + offset, VecF32{} + levels);
        VecQuantized rounded = __builtin_convertvector(__builtin_convertvector(scaled, VecI32), VecQuantized);
        memcpy(quantized + i, &rounded, sizeof rounded);
    }
    for (int i = vectorized; i < width; i++) {
        float scaled = x[i] * factor + offset;
        quantized[i] = Quantized(scaled < levels ? scaled : levels);
    }
    for (int i = width; i % kGroup; i++)
        quantized[i] = 0; // times weights of 0
    return {has_nan ? NAN : range / levels, int32_t(zero_point)};
}

// Rounds a row to the nearest BFloat16, of two as near to the even one. An odd width gets a 0 appended.
static void round_row(const float *x, int width, BFloat16 *rounded) {
    for (int i = 0; i < width; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        rounded[i].bits = uint16_t(x[i] != x[i] ? bits >> 16 | 0x40 : nearest); // NaN stays NaN
    }
    if (width % 2)
        rounded[width].bits = 0;
}

// The weights of one output of a float map, (inputs).
static inline void unpack_row(const Linear *map, int64_t output, float *row) {
    const float *from = static_cast<const float *>(map->weight) + output / NR * map->inputs * NR + output % NR;
    for (int k = 0; k < map->inputs; k++)
        row[k] = from[int64_t(k) * NR];
}

// Every thread: this thread's panels of y = x W^T + b for all rows; with `relu` max(0, y).
static void linear(const Scratch *scratch, const Linear *map, const float *x, int64_t x_stride, int rows, float *y,
                   int64_t y_stride, bool relu) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int panels = (map->outputs + NR - 1) / NR;
    int first = panels * thread / threads, end = panels * (thread + 1) / threads;
    RowScale *row_scales = scratch->row_scales;
    int64_t stride = scratch->stride;
    auto *quantized = static_cast<Quantized *>(scratch->quantized);
    auto *rounded = static_cast<BFloat16 *>(scratch->quantized);
    if (map->scale || map->is_bfloat16) { // each thread converts few rows for itself, as in `ThreadRows`
        bool is_shared = rows > kMaxReplicatedRows;
        if (!is_shared) {
            quantized += int64_t(thread) * kMaxReplicatedRows * stride;
            rounded += int64_t(thread) * kMaxReplicatedRows * stride;
            row_scales += thread * kMaxReplicatedRows;
        }
        int from = is_shared ? rows * thread / threads : 0, to = is_shared ? rows * (thread + 1) / threads : rows;
        for (int64_t row = from; row < to; row++)
            if (map->scale)
                row_scales[row] = quantize_row(x + row * x_stride, map->inputs, quantized + row * stride);
            else
                round_row(x + row * x_stride, map->inputs, rounded + row * stride);
        if (is_shared) {
#pragma omp barrier
        }
    }
    int blocks = (rows + MC - 1) / MC;
    for (int block = 0; block < blocks; block++) {
        int64_t row = int64_t(rows) * block / blocks;
        int count = int(int64_t(rows) * (block + 1) / blocks - row);
        float *to = y + row * y_stride;
        if (map->scale)
            gemm(map, first, end, quantized + row * stride, stride, row_scales + row, count, to, y_stride, relu);
        else if (map->is_bfloat16)
            gemm<BFloat16>(map, first, end, rounded + row * stride, stride, count, to, y_stride, relu);
        else
            gemm<float>(map, first, end, x + row * x_stride, x_stride, count, to, y_stride, relu);
    }
}

} // namespace vanilla_transformer
