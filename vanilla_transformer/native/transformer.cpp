// SPDX-License-Identifier: Apache-2.0
// Section 3.1 of the paper for inference on a CPU: a whole stack of layers within one team of threads.
//
// What PyTorch loses for a few rows is between its operations: dispatch, allocation, a fork and a join for each. Here
// a step of decoding is one call. transformer.py lays out the weights and owns all memory; compiler.py compiles.
// Matrices are row-major; `stride` is the distance of two rows. GCC's and clang's vector types become what the machine
// has: SSE, AVX2, AVX-512 or NEON.

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include <omp.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL (2 * LANES) // outputs that are computed at once
#define ROWS 6            // at most, and rows: 12 sums and what is multiplied fill 16 registers
#define DEPTH 512         // inputs of a panel that stay in a cache while many rows pass
#define MANY 128          // rows that pass at once
#define FEW 4             // rows that each thread normalises for itself, which costs less than to wait for another
#define BLOCK 32          // target tokens in a block of the cache

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

struct Linear {
    const void *weight; // (panels, inputs, PANEL), float or, with scales, int8
    const float *scale; // of each output, or nullptr
    const float *bias;  // of each output
    int32_t inputs, outputs;
};

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Linear query_key_value, output;                     // self-attention
    Linear cross_query, cross_key_value, cross_output;  // an encoder has none
    Linear linear_1, linear_2;
    Norm norms[3];
};

struct Stack {
    const Layer *layers;
    int32_t num_layers, d_model, d_ff, num_heads, d_k, d_v, is_pre_norm, is_decoder;
    float epsilon;
    Norm last; // weight nullptr: none
};

struct Scratch { // all of them with padded rows, for the rows of one call
    float *states, *normed, *wide, *mixed, *projected, *scores;
    const float **entries; // as `scores`
    int32_t stride, longest; // of every row; of `scores`, one row for each thread
};

struct Target {
    int32_t sentences, beams, length, source_length, slots, longest;
    const int64_t *slot;   // of each sentence, where its memory is
    float *const *cache;   // blocks (num_layers, slots, num_heads, BLOCK, beams, d_k + d_v)
    int32_t *ancestors;    // (slots, beams, longest): whose entry a hypothesis continues
    const float *source;   // (num_layers, slots, num_heads, source_length, d_k + d_v)
    const float *mask;     // added to scores, (slots, source_length), or nullptr
    float *attention;      // of the last layer, (rows, num_heads, source_length), or nullptr
};

static inline Lanes load(const float *from) {
    Lanes lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline Lanes load(const int8_t *from) {
#if defined(__AVX512F__) // compilers do not find these by themselves
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
#endif
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Whole), Lanes);
}

static inline void store(float *to, Lanes lanes) { memcpy(to, &lanes, sizeof lanes); }

static inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

static inline float sum(Lanes lanes) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += lanes[i];
    return total;
}

static inline float largest(Lanes lanes) {
    float most = lanes[0];
    for (int i = 1; i < LANES; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

// e^x for x <= 0, to the last bits of a float: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
static inline Lanes exponential(Lanes x) {
    const Lanes least = Lanes{} - 87.0f;
    x = x < least ? least : x;
    Whole n = __builtin_convertvector(x * 1.44269504f - 0.5f, Whole); // towards zero: the nearest, as x <= 0
    Lanes whole = __builtin_convertvector(n, Lanes);
    Lanes rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Lanes sum = rest * 1.9875691e-4f + 1.3981999e-3f;
    sum = sum * rest + 8.3334519e-3f;
    sum = sum * rest + 4.1665795e-2f;
    sum = sum * rest + 1.6666665e-1f;
    sum = sum * rest + 5.0000001e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    Whole power = (n + 127) << 23;
    Lanes factor;
    memcpy(&factor, &power, sizeof factor);
    return sum * factor;
}

// `rows` by a panel: sums[rows][2] += x w. Few rows take several inputs at once, for a sum waits for the one before.
template <int rows, typename Weight>
static inline void tile(int depth, const float *x, int64_t stride, const Weight *w, Lanes sums[][2]) {
    constexpr int at_once = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    Lanes part[at_once][rows][2] = {};
    int k = 0;
    for (; k + at_once <= depth; k += at_once)
        for (int i = 0; i < at_once; i++) {
            const Weight *from = w + int64_t(k + i) * PANEL;
            Lanes left = load(from), right = load(from + LANES);
            for (int r = 0; r < rows; r++) {
                float one = x[r * stride + k + i];
                part[i][r][0] += left * one;
                part[i][r][1] += right * one;
            }
        }
    for (; k < depth; k++)
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) part[0][r][h] += load(w + int64_t(k) * PANEL + h * LANES) * x[r * stride + k];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < at_once; i++) sums[r][h] += part[i][r][h];
}

template <typename Weight>
static inline void tile(int rows, int depth, const float *x, int64_t stride, const Weight *w, Lanes sums[][2]) {
    switch (rows) {
    case 1: return tile<1>(depth, x, stride, w, sums);
    case 2: return tile<2>(depth, x, stride, w, sums);
    case 3: return tile<3>(depth, x, stride, w, sums);
    case 4: return tile<4>(depth, x, stride, w, sums);
    case 5: return tile<5>(depth, x, stride, w, sums);
    case 6: return tile<6>(depth, x, stride, w, sums);
    }
}

// Each tile brings its share of the next panel nearer, `depth` inputs from `offset` on.
static inline void fetch_share(const Linear *map, int64_t offset, int depth, int part, int parts) {
    int64_t size = map->scale ? 1 : sizeof(float), bytes = int64_t(depth) * PANEL * size;
    const char *from = static_cast<const char *>(map->weight) + offset * size;
    for (int64_t i = bytes * part / parts / 64 * 64; i < bytes * (part + 1) / parts; i += 64)
        __builtin_prefetch(from + i, 0, 2);
}

// Outputs of the panels from `first` up to `end` for some rows, in as many inputs as a cache holds at a time.
static void multiply(const Linear *map, int first, int end, const float *x, int64_t x_stride, int rows, float *y,
                     int64_t y_stride, bool relu) {
    int tiles = (rows + ROWS - 1) / ROWS, step = rows <= ROWS ? map->inputs : DEPTH;
    for (int from = 0; from < map->inputs; from += step) {
        int depth = map->inputs - from < step ? map->inputs - from : step;
        bool is_last = from + depth == map->inputs;
        for (int panel = first; panel < end; panel++)
            for (int i = 0; i < tiles; i++) {
                int row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
                const float *read = x + row * x_stride + from;
                float *write = y + row * y_stride + panel * PANEL;
                Lanes sums[ROWS][2] = {};
                if (from)
                    for (int r = 0; r < count; r++)
                        for (int h = 0; h < 2; h++) sums[r][h] = load(write + r * y_stride + h * LANES);
                int64_t offset = (int64_t(panel) * map->inputs + from) * PANEL;
                if (tiles > 1 && panel + 1 < end) fetch_share(map, offset + int64_t(map->inputs) * PANEL, depth, i, tiles);
                if (map->scale)
                    tile(count, depth, read, x_stride, static_cast<const int8_t *>(map->weight) + offset, sums);
                else
                    tile(count, depth, read, x_stride, static_cast<const float *>(map->weight) + offset, sums);
                for (int r = 0; r < count; r++)
                    for (int h = 0; h < 2; h++) {
                        int column = panel * PANEL + h * LANES;
                        Lanes value = sums[r][h];
                        if (is_last) {
                            if (map->scale) value *= load(map->scale + column);
                            value += load(map->bias + column);
                            if (relu) value = larger(value, Lanes{});
                        }
                        store(write + r * y_stride + h * LANES, value);
                    }
            }
    }
}

// This thread's share of y = x W^T + b, for all rows; with `relu` max(0, y).
static void linear(const Linear *map, const float *x, int64_t x_stride, int rows, float *y, int64_t y_stride,
                   bool relu) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int panels = (map->outputs + PANEL - 1) / PANEL;
    for (int row = 0; row < rows; row += MANY) // each part of x stays in a cache while the weights pass
        multiply(map, panels * thread / threads, panels * (thread + 1) / threads, x + row * x_stride, x_stride,
                 rows - row < MANY ? rows - row : MANY, y + row * y_stride, y_stride, relu);
}

static inline float dot(const float *a, const float *b, int width) {
    Lanes sums[2] = {};
    int i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        sums[0] += load(a + i) * load(b + i);
        sums[1] += load(a + i + LANES) * load(b + i + LANES);
    }
    float total = sum(sums[0] + sums[1]);
    for (; i < width; i++) total += a[i] * b[i];
    return total;
}

// Equation 1 for one query and head: `entries` pointers to keys and values; `mask` is added to the scores, or nullptr.
static void attend(const float *query, const float *const *entry, int entries, int key, int value, int d_k, int d_v,
                   const float *mask, float *scores, float *mixed) {
    float most = -INFINITY, total = 0;
    for (int t = 0; t < entries; t++) {
        scores[t] = dot(query, entry[t] + key, d_k) + (mask ? mask[t] : 0.0f);
        most = scores[t] > most || scores[t] != scores[t] ? scores[t] : most;
    }
    for (int t = entries; t % LANES; t++) scores[t] = -INFINITY; // there is room for whole vectors
    Lanes sums = {};
    for (int t = 0; t < entries; t += LANES) {
        Lanes weights = exponential(load(scores + t) - most);
        if (t + LANES > entries)
            for (int i = entries - t; i < LANES; i++) weights[i] = 0;
        store(scores + t, weights);
        sums += weights;
    }
    total = sum(sums);
    for (int t = 0; t < entries; t++) scores[t] /= total;
    int i = 0;
    for (; i + 4 * LANES <= d_v; i += 4 * LANES) {
        Lanes parts[4] = {};
        for (int t = 0; t < entries; t++)
            for (int j = 0; j < 4; j++) parts[j] += load(entry[t] + value + i + j * LANES) * scores[t];
        for (int j = 0; j < 4; j++) store(mixed + i + j * LANES, parts[j]);
    }
    for (; i < d_v; i++) {
        float part = 0;
        for (int t = 0; t < entries; t++) part += entry[t][value + i] * scores[t];
        mixed[i] = part;
    }
}

static void normalise(const Norm *norm, const float *x, float *y, int width, float epsilon) {
    float mean = 0, variance = 0;
    int i, whole = width / LANES * LANES;
    Lanes sums = {};
    for (i = 0; i < whole; i += LANES) sums += load(x + i);
    for (mean = sum(sums); i < width; i++) mean += x[i];
    mean /= width;
    sums = Lanes{};
    for (i = 0; i < whole; i += LANES) sums += (load(x + i) - mean) * (load(x + i) - mean);
    for (variance = sum(sums); i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
    float factor = 1.0f / sqrtf(variance / width + epsilon);
    for (i = 0; i < whole; i += LANES)
        store(y + i, (load(x + i) - mean) * factor * load(norm->weight + i) + load(norm->bias + i));
    for (; i < width; i++) y[i] = (x[i] - mean) * factor * norm->weight[i] + norm->bias[i];
}

// The rows that this thread adds and normalises. Of few rows each thread has its own copy, and nobody waits.
struct Own {
    float *states, *normed;
    int first, end, is_shared;
};

static Own own_rows(const Scratch *scratch, int rows) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    if (rows > FEW) return {scratch->states, scratch->normed, rows * thread / threads, rows * (thread + 1) / threads, 1};
    int64_t copy = int64_t(thread) * FEW * scratch->stride;
    return {scratch->states + copy, scratch->normed + copy, 0, rows, 0};
}

static void wait_for(const Own *own) {
    if (own->is_shared) {
#pragma omp barrier
    }
}

// "Add & Norm" around `update`, which may be nullptr, and what the next sub-layer, before which `next` stands, reads.
static const float *add_and_norm(const Stack *stack, const Scratch *scratch, const Own *own, const float *update,
                                 const Norm *done, const Norm *next) {
    int64_t stride = scratch->stride;
    for (int row = own->first; row < own->end; row++) {
        float *states = own->states + row * stride;
        if (update)
            for (int i = 0; i < stack->d_model; i++) states[i] += update[row * stride + i];
        if (update && !stack->is_pre_norm) normalise(done, states, states, stack->d_model, stack->epsilon);
        const Norm *before = stack->is_pre_norm ? next : nullptr;
        if (before) normalise(before, states, own->normed + row * stride, stack->d_model, stack->epsilon);
    }
    wait_for(own);
    return stack->is_pre_norm ? own->normed : own->states;
}

// Where the keys and values of a head and a token of the target are.
static inline float *entry_of(const Stack *stack, const Target *target, int layer, int64_t slot, int head, int t,
                              int beam) {
    int64_t row = ((layer * int64_t(target->slots) + slot) * stack->num_heads + head) * BLOCK + t % BLOCK;
    return target->cache[t / BLOCK] + (row * target->beams + beam) * (stack->d_k + stack->d_v);
}

static void attend_to_target(const Stack *stack, const Scratch *scratch, const Target *target, int layer, int rows,
                             float *scores, const float **entry) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, live = rows / target->sentences, now = target->length;
    int64_t tasks = int64_t(rows) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int sentence = task / live / heads, head = task / live % heads, beam = task % live; // beams share ancestors
        int row = sentence * live + beam;
        int64_t slot = target->slot[sentence];
        const int32_t *ancestors = target->ancestors + (slot * target->beams + beam) * target->longest;
        for (int t = 0; t < now; t++) entry[t] = entry_of(stack, target, layer, slot, head, t, ancestors[t]);
        const float *projected = scratch->wide + row * int64_t(scratch->stride);
        float *own = entry_of(stack, target, layer, slot, head, now, beam);
        memcpy(own, projected + heads * d_k + head * d_k, d_k * sizeof(float));
        memcpy(own + d_k, projected + 2 * heads * d_k + head * d_v, d_v * sizeof(float));
        entry[now] = own;
        attend(projected + head * d_k, entry, now + 1, 0, d_k, d_k, d_v, nullptr, scores,
               scratch->mixed + row * int64_t(scratch->stride) + head * d_v);
    }
}

static void attend_to_source(const Stack *stack, const Scratch *scratch, const Target *target, int layer, int rows,
                             float *scores, const float **entry) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, live = rows / target->sentences, length = target->source_length;
    int64_t tasks = int64_t(rows) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int64_t sentence = task / live / heads;
        int head = task / live % heads, row = sentence * live + task % live;
        int64_t slot = target->slot[sentence];
        const float *first = target->source + ((layer * int64_t(target->slots) + slot) * heads + head) * length * (d_k + d_v);
        for (int t = 0; t < length; t++) entry[t] = first + t * (d_k + d_v);
        int64_t own = row * int64_t(scratch->stride);
        attend(scratch->wide + own + head * d_k, entry, length, 0, d_k, d_k, d_v,
               target->mask ? target->mask + slot * length : nullptr, scores, scratch->mixed + own + head * d_v);
        if (target->attention && layer == stack->num_layers - 1)
            memcpy(target->attention + (row * int64_t(heads) + head) * length, scores, length * sizeof(float));
    }
}

static void attend_within_source(const Stack *stack, const Scratch *scratch, int length, const float *mask, int rows,
                                 float *scores, const float **entry) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, keys = heads * d_k, last = -1;
    int64_t stride = scratch->stride, tasks = int64_t(rows) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int sentence = task / heads / length;
        int head = task / length % heads, row = sentence * length + task % length;
        if (sentence != last)
            for (int t = 0; t < length; t++) entry[t] = scratch->wide + (sentence * length + t) * stride + keys;
        last = sentence;
        attend(scratch->wide + row * stride + head * d_k, entry, length, head * d_k, keys + head * d_v, d_k, d_v,
               mask ? mask + int64_t(sentence) * length : nullptr, scores, scratch->mixed + row * stride + head * d_v);
    }
}

// All layers, for this thread; `target` for a decoder, `length` and `mask` of the source for an encoder.
static const float *run_layers(const Stack *stack, const Scratch *scratch, const Target *target, int length,
                               const float *mask, int rows) {
    int64_t stride = scratch->stride, thread = omp_get_thread_num();
    Own own = own_rows(scratch, rows);
    float *scores = scratch->scores + thread * scratch->longest;
    const float **entry = scratch->entries + thread * scratch->longest;
    const Norm *last = stack->last.weight ? &stack->last : nullptr;
    const float *read = add_and_norm(stack, scratch, &own, nullptr, nullptr, &stack->layers[0].norms[0]);
    for (int i = 0; i < stack->num_layers; i++) {
        const Layer *layer = stack->layers + i;
        linear(&layer->query_key_value, read, stride, rows, scratch->wide, stride, false);
#pragma omp barrier
        if (stack->is_decoder)
            attend_to_target(stack, scratch, target, i, rows, scores, entry);
        else
            attend_within_source(stack, scratch, length, mask, rows, scores, entry);
#pragma omp barrier
        linear(&layer->output, scratch->mixed, stride, rows, scratch->projected, stride, false);
#pragma omp barrier
        if (stack->is_decoder) {
            read = add_and_norm(stack, scratch, &own, scratch->projected, &layer->norms[0], &layer->norms[1]);
            linear(&layer->cross_query, read, stride, rows, scratch->wide, stride, false);
#pragma omp barrier
            attend_to_source(stack, scratch, target, i, rows, scores, entry);
#pragma omp barrier
            linear(&layer->cross_output, scratch->mixed, stride, rows, scratch->projected, stride, false);
#pragma omp barrier
        }
        const Norm *done = &layer->norms[stack->is_decoder];
        read = add_and_norm(stack, scratch, &own, scratch->projected, done, &layer->norms[2]);
        linear(&layer->linear_1, read, stride, rows, scratch->wide, stride, true);
#pragma omp barrier
        linear(&layer->linear_2, scratch->wide, stride, rows, scratch->projected, stride, false);
#pragma omp barrier
        const Norm *next = i + 1 < stack->num_layers ? &stack->layers[i + 1].norms[0] : last;
        read = add_and_norm(stack, scratch, &own, scratch->projected, &layer->norms[2], next);
    }
    if (!last) return own.states;
    if (!stack->is_pre_norm) {
        for (int row = own.first; row < own.end; row++)
            normalise(last, own.states + row * stride, own.normed + row * stride, stack->d_model, stack->epsilon);
        wait_for(&own);
    }
    return own.normed;
}

// The `count` largest of `values`, first the largest, as log-probabilities if `is_normalised`; NaN if there is a NaN.
static void best_of(const float *values, int width, int count, int is_normalised, float *best, int64_t *index) {
    int found = 0, whole = width / (8 * LANES) * (8 * LANES);
    Lanes sums = {};
    Whole wrong = {};
    for (int i = 0; i < whole; i += LANES) {
        Lanes now = load(values + i);
        wrong |= now != now;
    }
    for (int from = 0; from < width; from += 8 * LANES) {
        int end = from + 8 * LANES < width ? from + 8 * LANES : width;
        if (found == count && end - from == 8 * LANES) { // mostly nothing here is large enough
            Lanes peak = load(values + from);
            for (int j = 1; j < 8; j++) peak = larger(load(values + from + j * LANES), peak);
            if (!(largest(peak) > best[count - 1])) continue;
        }
        for (int i = from; i < end; i++) {
            if (found == count && !(values[i] > best[count - 1])) continue;
            int at = found < count ? found++ : count - 1;
            for (; at > 0 && values[i] > best[at - 1]; at--) {
                best[at] = best[at - 1];
                index[at] = index[at - 1];
            }
            best[at] = values[i];
            index[at] = i;
        }
    }
    bool is_wrong = false;
    for (int i = 0; i < LANES; i++) is_wrong |= wrong[i] != 0;
    for (int i = whole; i < width; i++) is_wrong |= values[i] != values[i];
    if (is_wrong) best[0] = NAN;
    if (!is_normalised) return;
    float total, peak = best[0];
    for (int i = 0; i < whole; i += LANES) sums += exponential(load(values + i) - peak);
    total = sum(sums);
    for (int i = whole; i < width; i++) total += expf(values[i] - peak);
    float log_of_sum = peak + logf(total);
    for (int i = 0; i < count; i++) best[i] -= log_of_sum;
}

// The `count` best of a sentence among the best `each` of its `live` hypotheses, whose log-probabilities are `totals`.
static void best_of_sentence(int live, int each, const float *totals, const float *best, const int64_t *index,
                             int count, float *scores, int64_t *beams, int64_t *found) {
    int kept = 0;
    for (int beam = 0; beam < live; beam++)
        for (int i = 0; i < each; i++) {
            float score = best[beam * each + i] + (totals ? totals[beam] : 0.0f);
            if (score != score) { // then nothing here is known
                for (int j = 0; j < count; j++) scores[j] = NAN, beams[j] = found[j] = 0;
                return;
            }
            if (kept == count && !(score > scores[count - 1])) break; // nor is what follows
            int at = kept < count ? kept++ : count - 1;
            for (; at > 0 && score > scores[at - 1]; at--) {
                scores[at] = scores[at - 1];
                beams[at] = beams[at - 1];
                found[at] = found[at - 1];
            }
            scores[at] = score;
            beams[at] = beam;
            found[at] = index[beam * each + i];
        }
}

extern "C" {

int32_t panel_width(void) { return PANEL; }

// Encode: `scratch->states` `(rows, stride)` holds embedded sources, and afterwards `encoded` their encodings.
void encode(const Stack *stack, const Scratch *scratch, int32_t sentences, int32_t length, const float *mask,
            float *encoded, int32_t threads) {
    int rows = sentences * length;
    int64_t stride = scratch->stride;
#pragma omp parallel num_threads(threads)
    {
        Own own = own_rows(scratch, rows);
        if (own.states != scratch->states) // this thread's own copy
            memcpy(own.states, scratch->states, rows * stride * sizeof(float));
#pragma omp barrier
        const float *states = run_layers(stack, scratch, nullptr, length, mask, rows);
        if (own.is_shared || omp_get_thread_num() == 0)
            for (int64_t row = own.first; row < own.end; row++)
                memcpy(encoded + row * stack->d_model, states + row * stride, stack->d_model * sizeof(float));
    }
}

// Keys and values of the sources: `encoded` `(sentences * length, d_model)` → `source`, as `Target` has it.
void project_source(const Stack *stack, const Scratch *scratch, const float *encoded, int32_t sentences, int32_t length,
                    float *source, int32_t threads) {
    int heads = stack->num_heads, d_k = stack->d_k, d_v = stack->d_v, rows = sentences * length;
#pragma omp parallel num_threads(threads)
    for (int layer = 0; layer < stack->num_layers; layer++) {
        linear(&stack->layers[layer].cross_key_value, encoded, stack->d_model, rows, scratch->wide, scratch->stride, false);
#pragma omp barrier
#pragma omp for
        for (int row = 0; row < rows; row++)
            for (int head = 0; head < heads; head++) {
                const float *from = scratch->wide + row * int64_t(scratch->stride);
                int64_t block = (layer * int64_t(sentences) + row / length) * heads + head;
                float *to = source + (block * length + row % length) * (d_k + d_v);
                memcpy(to, from + head * d_k, d_k * sizeof(float));
                memcpy(to + d_k, from + heads * d_k + head * d_v, d_v * sizeof(float));
            }
    }
}

// One token of each hypothesis: `tokens` `(rows)` → `logits` `(rows, logits_stride)`; and if `count`, as
// `generation.RanksTokens` has it, the best that may follow in each sentence; `best` and `index` are of each row.
void decode(const Stack *stack, const Scratch *scratch, const Target *target, const Linear *projection,
            const float *embedding, float scale, const float *position, const int64_t *tokens, int32_t rows,
            float *logits, int32_t logits_stride, int32_t count, const float *totals, float *best, int64_t *index,
            float *scores, int64_t *beams, int64_t *found, int32_t threads) {
    int live = rows / target->sentences;
    int each = count < projection->outputs ? count : projection->outputs;
#pragma omp parallel num_threads(threads)
    {
        Own own = own_rows(scratch, rows);
        for (int64_t row = own.first; row < own.end; row++)
            for (int i = 0; i < stack->d_model; i++)
                own.states[row * scratch->stride + i] = embedding[tokens[row] * stack->d_model + i] * scale + position[i];
        const float *states = run_layers(stack, scratch, target, 0, nullptr, rows);
        linear(projection, states, scratch->stride, rows, logits, logits_stride, false);
        if (count) {
#pragma omp barrier
            int thread = omp_get_thread_num(), team = omp_get_num_threads();
            for (int64_t row = rows * thread / team; row < rows * (thread + 1) / team; row++)
                best_of(logits + row * logits_stride, projection->outputs, each, totals != nullptr, best + row * each,
                        index + row * each);
        }
    }
    if (count)
        for (int64_t i = 0; i < target->sentences; i++)
            best_of_sentence(live, each, totals ? totals + i * live : nullptr, best + i * live * each,
                             index + i * live * each, count, scores + i * count, beams + i * count, found + i * count);
    for (int row = 0; row < rows; row++) {
        int64_t own = target->slot[row / live] * target->beams + row % live;
        target->ancestors[own * target->longest + target->length] = row % live;
    }
}

// From now on hypothesis i of a sentence continues what was its hypothesis `parents[sentence * live + i]`.
void follow(const Target *target, const int64_t *parents, int32_t live, int32_t *scratch) {
    int64_t length = target->length, longest = target->longest;
    for (int i = 0; i < target->sentences; i++) {
        int32_t *own = target->ancestors + target->slot[i] * target->beams * longest;
        for (int beam = 0; beam < target->beams; beam++)
            memcpy(scratch + beam * length, own + beam * longest, length * sizeof(int32_t));
        for (int beam = 0; beam < live; beam++)
            memcpy(own + beam * longest, scratch + parents[i * live + beam] * length, length * sizeof(int32_t));
    }
}

} // extern "C"
