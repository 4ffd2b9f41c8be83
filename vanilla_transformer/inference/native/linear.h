// SPDX-License-Identifier: Apache-2.0
// Few rows by large matrices: reading the weights is what costs, so they lie as they are read.

#pragma once

#include <omp.h>

#include "vectors.h"

#define PANEL (2 * LANES) // outputs that are computed at once
#define ROWS 6            // at most, and rows: 12 sums and what is multiplied fill 16 registers
#define DEPTH 512         // inputs of a panel that stay in a cache while many rows pass
#define MANY 128          // rows that pass at once
#define CACHE_LINE 64     // bytes
#define FETCHES 3         // rows: fewer wait for the weights anyway, which the machine itself sees coming
#define FEW 4             // rows that each thread normalises for itself, which costs less than to wait for another

struct Linear {
    const void *weight; // (panels, inputs, PANEL) floats; with scales (panels, inputs / 2, PANEL, 2) int8
    const float *scale; // of each output, or nullptr
    const float *bias;  // of each output
    int32_t inputs, outputs;
};

struct Scratch { // all of them with padded rows, for the rows of one call
    float *states, *normed, *wide, *mixed, *projected, *scores;
    const float **entries;
    int16_t *quantized;      // what a linear map reads
    float *steps;            // of `quantized`, one for each row
    int32_t stride, longest; // of every row; of `scores` (threads, TOGETHER, longest) and `entries` (threads, longest)
};

// What a tile brings nearer of the panel that comes next: a cache line from `next` on, and again after `every` inputs.
// All of them at once would wait for each other, and the products for them.
struct Fetch {
    const char *next;
    int every;
};

// The share of tile `part` of so many, of a panel with `bytes` for each of `depth` inputs.
static inline Fetch share_of(const void *panel, int bytes, int depth, int part, int parts) {
    int every = CACHE_LINE * parts / bytes;
    return {static_cast<const char *>(panel) + int64_t(depth) * bytes * part / parts, every > 0 ? every : 1};
}

static inline void fetch_line(Fetch *fetch) {
    __builtin_prefetch(fetch->next, 0, 2);
    fetch->next += CACHE_LINE;
}

// `rows` by a panel: sums[rows][2] += x w. Few rows take several inputs at once, for a sum waits for the one before.
template <int rows>
static inline void tile(int depth, const float *x, int64_t stride, const float *w, Lanes sums[][2], Fetch fetch) {
    constexpr int at_once = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    Lanes part[at_once][rows][2] = {};
    for (int k = 0; k < depth;) {
        int end = fetch.next && k + fetch.every < depth ? k + fetch.every : depth;
        if (fetch.next)
            fetch_line(&fetch);
        for (; k + at_once <= end; k += at_once)
            for (int i = 0; i < at_once; i++) {
                const float *from = w + int64_t(k + i) * PANEL;
                Lanes left = load(from), right = load(from + LANES);
                for (int r = 0; r < rows; r++) {
                    float one = x[r * stride + k + i];
                    part[i][r][0] += left * one;
                    part[i][r][1] += right * one;
                }
            }
        for (; k < end; k++)
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < 2; h++)
                    part[0][r][h] += load(w + int64_t(k) * PANEL + h * LANES) * x[r * stride + k];
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < at_once; i++)
                sums[r][h] += part[i][r][h];
}

// The same in whole numbers, `depth` inputs being an even number.
template <int rows>
static inline void tile(int depth, const int16_t *x, int64_t stride, const int8_t *w, Whole sums[][2]) {
    Whole part[rows][2] = {};
    for (int k = 0; k < depth; k += 2) {
        const int8_t *from = w + int64_t(k) * PANEL;
        Shorts left = load(from), right = load(from + 2 * LANES);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * stride + k, sizeof pair);
            Shorts both = (Shorts)(Whole{} + pair);
            part[r][0] = add_pairs(part[r][0], left, both);
            part[r][1] = add_pairs(part[r][1], right, both);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            sums[r][h] = part[r][h];
}

template <typename... Arguments> static inline void tile(int rows, Arguments... arguments) {
    switch (rows) {
    case 1: return tile<1>(arguments...);
    case 2: return tile<2>(arguments...);
    case 3: return tile<3>(arguments...);
    case 4: return tile<4>(arguments...);
    case 5: return tile<5>(arguments...);
    case 6: return tile<6>(arguments...);
    }
}

// Whole numbers are a quarter of the bytes: each tile fetches its share of the next panel at once.
static inline void fetch_share(const void *panel, int64_t bytes, int part, int parts) {
    const char *from = static_cast<const char *>(panel);
    for (int64_t i = bytes * part / parts / CACHE_LINE * CACHE_LINE; i < bytes * (part + 1) / parts; i += CACHE_LINE)
        __builtin_prefetch(from + i, 0, 2);
}

// Outputs of the panels from `first` up to `end` for some rows, in as many inputs as a cache holds at a time.
static void multiply(const Linear *map, int first, int end, const float *x, int64_t x_stride, int rows, float *y,
                     int64_t y_stride, bool relu) {
    int tiles = (rows + ROWS - 1) / ROWS, step = rows <= ROWS ? map->inputs : DEPTH;
    for (int from = 0; from < map->inputs; from += step) {
        int depth = map->inputs - from < step ? map->inputs - from : step;
        bool is_last = from + depth == map->inputs;
        for (int panel = first; panel < end; panel++) {
            const float *w = static_cast<const float *>(map->weight) + (int64_t(panel) * map->inputs + from) * PANEL;
            for (int i = 0; i < tiles; i++) {
                int row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
                float *write = y + row * y_stride + panel * PANEL;
                Lanes sums[ROWS][2] = {};
                if (from)
                    for (int r = 0; r < count; r++)
                        for (int h = 0; h < 2; h++)
                            sums[r][h] = load(write + r * y_stride + h * LANES);
                Fetch fetch = {nullptr, 0};
                if (panel + 1 < end && rows >= FETCHES)
                    fetch = share_of(w + int64_t(map->inputs) * PANEL, PANEL * sizeof(float), depth, i, tiles);
                tile(count, depth, x + row * x_stride + from, x_stride, w, sums, fetch);
                for (int r = 0; r < count; r++)
                    for (int h = 0; h < 2; h++) {
                        Lanes value = sums[r][h];
                        if (is_last)
                            value += load(map->bias + panel * PANEL + h * LANES);
                        if (is_last && relu)
                            value = value < 0 ? Lanes{} : value; // and NaN stays
                        store(write + r * y_stride + h * LANES, value);
                    }
            }
        }
    }
}

// The same for int8 weights; row r of x is `steps[r]` times whole numbers.
static void multiply(const Linear *map, int first, int end, const int16_t *x, int64_t x_stride, const float *steps,
                     int rows, float *y, int64_t y_stride, bool relu) {
    int tiles = (rows + ROWS - 2) / (ROWS - 1), depth = (map->inputs + 1) / 2 * 2; // a product needs a register, too
    for (int panel = first; panel < end; panel++) {
        const int8_t *w = static_cast<const int8_t *>(map->weight) + int64_t(panel) * depth * PANEL;
        for (int i = 0; i < tiles; i++) {
            int row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
            Whole sums[ROWS][2] = {};
            if (tiles > 1 && panel + 1 < end)
                fetch_share(w + depth * PANEL, depth * PANEL, i, tiles);
            tile(count, depth, x + row * x_stride, x_stride, w, sums);
            for (int r = 0; r < count; r++)
                for (int h = 0; h < 2; h++) {
                    int column = panel * PANEL + h * LANES;
                    Lanes value =
                        __builtin_convertvector(sums[r][h], Lanes) * (load(map->scale + column) * steps[row + r]);
                    value += load(map->bias + column);
                    if (relu)
                        value = value < 0 ? Lanes{} : value; // and NaN stays
                    store(y + (row + r) * y_stride + column, value);
                }
        }
    }
}

// Whole numbers so large that no sum of products leaves 32 bits, and by what they are to be multiplied.
static float quantize(const float *x, int width, int16_t *quantized) {
    typedef int16_t Half __attribute__((vector_size(2 * LANES)));
    float levels = 16777216.0f / (width + 1); // 2^31 / 127 / width, and a little less
    if (levels > 32767)
        levels = 32767;
    int whole = width / LANES * LANES;
    Lanes sizes = {};
    Whole wrong = {};
    for (int i = 0; i < whole; i += LANES) {
        Lanes now = load(x + i);
        sizes = larger(larger(now, -now), sizes);
        wrong |= now != now;
    }
    float most = largest(sizes);
    bool is_wrong = false;
    for (int i = 0; i < LANES; i++)
        is_wrong |= wrong[i] != 0;
    for (int i = whole; i < width; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        is_wrong |= x[i] != x[i];
    }
    float factor = most > 0 ? levels / most : 0;
    for (int i = 0; i < whole; i += LANES) {
        Lanes scaled = load(x + i) * factor;
        Half half = __builtin_convertvector(
            __builtin_convertvector(scaled + (scaled < 0 ? Lanes{} - 0.5f : Lanes{} + 0.5f), Whole), Half);
        memcpy(quantized + i, &half, sizeof half);
    }
    for (int i = whole; i < width; i++)
        quantized[i] = int16_t(lrintf(x[i] * factor));
    if (width % 2)
        quantized[width] = 0;
    return is_wrong ? NAN : most / levels;
}

// This thread's share of y = x W^T + b, for all rows; with `relu` max(0, y).
static void linear(const Scratch *scratch, const Linear *map, const float *x, int64_t x_stride, int rows, float *y,
                   int64_t y_stride, bool relu) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int panels = (map->outputs + PANEL - 1) / PANEL;
    int first = panels * thread / threads, end = panels * (thread + 1) / threads;
    int16_t *quantized = scratch->quantized;
    float *steps = scratch->steps;
    if (map->scale) { // of few rows each thread has its own, as in `Own`
        if (rows <= FEW)
            quantized += int64_t(thread) * FEW * scratch->stride, steps += thread * FEW;
        int from = rows <= FEW ? 0 : rows * thread / threads, to = rows <= FEW ? rows : rows * (thread + 1) / threads;
        for (int64_t row = from; row < to; row++)
            steps[row] = quantize(x + row * x_stride, map->inputs, quantized + row * scratch->stride);
        if (rows > FEW) {
#pragma omp barrier
        }
    }
    int parts = (rows + MANY - 1) / MANY;
    for (int part = 0; part < parts; part++) { // each part of x stays in a cache while the weights pass
        int64_t row = int64_t(rows) * part / parts;
        int count = int(int64_t(rows) * (part + 1) / parts - row);
        if (map->scale)
            multiply(map, first, end, quantized + row * scratch->stride, scratch->stride, steps + row, count,
                     y + row * y_stride, y_stride, relu);
        else
            multiply(map, first, end, x + row * x_stride, x_stride, count, y + row * y_stride, y_stride, relu);
    }
}
