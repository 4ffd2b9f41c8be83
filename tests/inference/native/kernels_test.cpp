// SPDX-License-Identifier: Apache-2.0
// Tests of the kernels against plain loops in double precision. test_kernels.py compiles them, with and without
// sanitizers, and runs each by its name. Every array has exactly the size that the callers guarantee, so that
// AddressSanitizer sees a read or write beyond it.

#include <algorithm>
#include <cfloat>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "transformer.cpp"

using namespace vanilla_transformer;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                  \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static void check_close(double found, double expected, double tolerance) {
    if (!(std::abs(found - expected) <= tolerance)) {
        fprintf(stderr, "%.9g is not within %.3g of %.9g\n", found, tolerance, expected);
        exit(1);
    }
}

static std::mt19937 generator(1);

static std::vector<float> random_floats(int64_t size, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(size);
    for (float &value : values)
        value = normal(generator);
    return values;
}

static int round_up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// Where an int8 panel has the weight of an input and an output.
static int place(int input, int output) { return (input / kGroup * NR + output) * kGroup + input % kGroup; }

enum Precision { kFloat32, kBFloat16, kInt8 };

// The nearest number with 8 bits, of two as near the even one.
static float nearest_bfloat16(float value) {
    int exponent;
    float fraction = std::frexp(value, &exponent);
    return std::isfinite(value) ? std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8) : value;
}

// A linear map, packed as `PackedStack.pack` does it, beside its plain weights (outputs, inputs).
struct TestLinear {
    int inputs, outputs;
    Precision precision;
    std::vector<float> weight, packed, scale, bias;
    std::vector<int8_t> packed_int8;
    std::vector<BFloat16> packed_bfloat16;
    std::vector<int32_t> sums;
    Linear map;

    TestLinear(int inputs, int outputs, Precision precision, float weight_scale = 0.5)
        : inputs(inputs), outputs(outputs), precision(precision),
          weight(random_floats(int64_t(inputs) * outputs, weight_scale)), bias(random_floats(round_up(outputs, NR))) {
        pack();
    }

    void pack() {
        int padded = round_up(outputs, NR), depth = round_up(inputs, kGroup), pairs = round_up(inputs, 2) / 2;
        scale.assign(padded, 1e-12f);
        packed.assign(precision == kFloat32 ? int64_t(padded) * inputs : 0, 0);
        packed_bfloat16.assign(precision == kBFloat16 ? int64_t(padded) * pairs * 2 : 0, {0});
        packed_int8.assign(precision == kInt8 ? int64_t(padded) * depth : 0, 0);
        sums.assign(padded, 0);
        for (int j = 0; j < outputs; j++) {
            float *row = &weight[int64_t(j) * inputs], peak = 0;
            for (int k = 0; k < inputs; k++)
                peak = std::max(peak, std::abs(row[k]));
            scale[j] = std::max(peak / 127, 1e-12f);
            for (int k = 0; k < inputs; k++)
                if (precision == kInt8) {
                    int level = int(std::nearbyint(row[k] / scale[j]));
                    packed_int8[int64_t(j / NR) * depth * NR + place(k, j % NR)] = int8_t(level);
                    sums[j] += level;
                    row[k] = level * scale[j];
                } else if (precision == kBFloat16) {
                    row[k] = nearest_bfloat16(row[k]);
                    uint32_t bits;
                    memcpy(&bits, row + k, sizeof bits);
                    packed_bfloat16[((int64_t(j / NR) * pairs + k / 2) * NR + j % NR) * 2 + k % 2] = {
                        uint16_t(bits >> 16)};
                } else
                    packed[(int64_t(j / NR) * inputs + k) * NR + j % NR] = row[k];
        }
        const void *data[] = {packed.data(), packed_bfloat16.data(), packed_int8.data()};
        map = {data[precision], precision == kInt8 ? scale.data() : nullptr, sums.data(), bias.data(), inputs, outputs,
               precision == kBFloat16};
    }
};

// Memory of a call, as `ScratchMemory` has it.
struct TestScratch {
    std::vector<float> floats[5], scores;
    std::vector<const float *> entries;
    std::vector<int16_t> quantized;
    std::vector<RowScale> row_scales;
    Scratch scratch;

    TestScratch(int rows, int width, int positions, int threads) {
        int stride = round_up(width, NR) + NR, room = std::max(rows, threads * kMaxReplicatedRows);
        positions = round_up(positions, NR);
        for (std::vector<float> &one : floats)
            one.assign(int64_t(room) * stride, NAN);
        scores.assign(int64_t(threads) * kMaxQueriesPerTile * positions, NAN);
        entries.assign(int64_t(threads) * positions, nullptr);
        quantized.assign(int64_t(room) * stride, 0x7ead);
        row_scales.assign(room, {NAN, 0x7ead});
        scratch = {floats[0].data(),  floats[1].data(), floats[2].data(), floats[3].data(),
                   floats[4].data(),  scores.data(),    entries.data(),   quantized.data(),
                   row_scales.data(), stride,           positions};
    }
};

static std::vector<float> run_linear(const TestLinear &test, const std::vector<float> &x, int rows, bool relu,
                                     int threads) {
    TestScratch memory(rows, test.inputs, 1, threads);
    int stride = round_up(test.outputs, NR);
    std::vector<float> y(int64_t(rows) * stride, NAN);
#pragma omp parallel num_threads(threads)
    linear(&memory.scratch, &test.map, x.data(), test.inputs, rows, y.data(), stride, relu);
    return y;
}

// The largest integer of a quantized row.
static double levels(int inputs) { return std::min(255.0, std::floor(16777216.0 / (inputs + 1))); }

static void check_linear(const TestLinear &test, int rows, bool relu, int threads) {
    std::vector<float> x = random_floats(int64_t(rows) * test.inputs);
    std::vector<float> y = run_linear(test, x, rows, relu, threads);
    for (int r = 0; r < rows; r++) {
        float low = 0, high = 0;
        for (int k = 0; k < test.inputs; k++) {
            low = std::min(low, x[int64_t(r) * test.inputs + k]);
            high = std::max(high, x[int64_t(r) * test.inputs + k]);
        }
        double step = (double(high) - low) / levels(test.inputs); // of the quantized row
        for (int j = 0; j < test.outputs; j++) {
            double expected = test.bias[j], size = std::abs(expected), weights = 0;
            for (int k = 0; k < test.inputs; k++) {
                double weight = test.weight[int64_t(j) * test.inputs + k];
                float input = x[int64_t(r) * test.inputs + k];
                double product = weight * (test.precision == kBFloat16 ? nearest_bfloat16(input) : input);
                expected += product, size += std::abs(product), weights += std::abs(weight);
            }
            double tolerance = test.precision == kInt8 ? 2e-6 * size + 0.505 * step * weights : 1e-6 * size;
            check_close(y[int64_t(r) * round_up(test.outputs, NR) + j], relu ? std::max(expected, 0.0) : expected,
                        tolerance);
        }
    }
}

static void float_tiles() {
    for (int rows = 1; rows <= MR; rows++)
        for (int depth : {1, 2, 3, 4, 5, 7, 16, 33, 100})
            for (int interval : {0, 1, 3, 1000}) { // 0: without prefetching
                std::vector<float> x = random_floats(rows * (depth + 3)), w = random_floats(depth * NR);
                std::vector<float> before = random_floats(rows * NR);
                VecF32 sums[MR][2];
                for (int r = 0; r < rows; r++)
                    for (int h = 0; h < 2; h++)
                        sums[r][h] = load(&before[r * NR + h * kLanes]);
                Prefetch prefetch = {interval ? reinterpret_cast<const char *>(w.data()) : nullptr, interval};
                micro_kernel(rows, depth, static_cast<const float *>(x.data()), int64_t(depth + 3),
                             static_cast<const float *>(w.data()), sums, prefetch);
                for (int r = 0; r < rows; r++)
                    for (int j = 0; j < NR; j++) {
                        double expected = before[r * NR + j];
                        for (int k = 0; k < depth; k++)
                            expected += double(x[r * (depth + 3) + k]) * w[k * NR + j];
                        check_close(sums[r][j / kLanes][j % kLanes], expected, 1e-5 * (depth + 1));
                    }
            }
}

// At random, and at the largest integers.
static void int8_tiles() {
    std::uniform_int_distribution<int> weights(-127, 127), inputs(0, 255);
    for (int rows = 1; rows <= MR; rows++)
        for (int groups : {1, 2, 3, 4, 5, 17, 255})
            for (int interval : {0, 1, 3, 1000}) // 0: without prefetching
                for (int largest : {0, 1, -1}) {
                    int depth = groups * kGroup, stride = depth + kGroup;
                    std::vector<Quantized> x((rows - 1) * stride + depth);
                    std::vector<int8_t> w(depth * NR);
                    for (Quantized &value : x)
                        value = Quantized(largest ? 255 : inputs(generator));
                    for (int8_t &value : w)
                        value = int8_t(largest ? 127 * largest : weights(generator));
                    VecI32 sums[MR][2] = {};
                    Prefetch prefetch = {interval ? reinterpret_cast<const char *>(w.data()) : nullptr, interval};
                    micro_kernel(rows, groups, static_cast<const Quantized *>(x.data()), int64_t(stride),
                                 static_cast<const int8_t *>(w.data()), sums, prefetch);
                    for (int r = 0; r < rows; r++)
                        for (int j = 0; j < NR; j++) {
                            int64_t expected = 0;
                            for (int k = 0; k < depth; k++)
                                expected += int64_t(x[r * stride + k]) * w[place(k, j)];
                            CHECK(sums[r][j / kLanes][j % kLanes] == expected);
                        }
                }
}

static void linear_shapes(Precision precision) {
    for (int inputs : {1, 2, 3, kLanes - 1, kLanes + 1, 37, 128})
        for (int outputs : {1, kLanes, NR - 1, NR, NR + 1, 3 * NR + 5}) {
            TestLinear test(inputs, outputs, precision);
            for (int rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13})
                for (int threads : {1, 3})
                    check_linear(test, rows, rows % 2, threads);
        }
    for (int inputs : {KC - 1, KC, KC + 1, 2 * KC + 3}) { // blocks of inputs, and of rows
        TestLinear test(inputs, NR + 3, precision);
        for (int rows : {1, MR, MR + 1, MC - 1, MC, MC + 1, 2 * MC + 5})
            check_linear(test, rows, rows % 2, 2);
    }
}

static void float_linear() { linear_shapes(kFloat32); }
static void bfloat16_linear() { linear_shapes(kBFloat16); }
static void int8_linear() { linear_shapes(kInt8); }

// The smallest and largest values, values between two neighbours, and NaN; an odd width gets a 0 appended.
static void rounded_rows() {
    for (int width : {1, 2, kLanes, 2 * kLanes + 3}) {
        std::vector<float> x = random_floats(width);
        for (float value : {0.0f, -0.0f, 1.00390625f, 1.01171875f, -1.00390625f, 3e38f, -1e-30f, INFINITY, -INFINITY, NAN}) {
            x[width / 2] = value;
            std::vector<BFloat16> rounded(round_up(width, 2), {0x7ead});
            round_row(x.data(), width, rounded.data());
            for (int k = 0; k < round_up(width, 2); k++) {
                uint32_t bits = uint32_t(rounded[k].bits) << 16;
                float found, expected = k < width ? nearest_bfloat16(x[k]) : 0;
                memcpy(&found, &bits, sizeof found);
                CHECK(found == expected || (std::isnan(found) && std::isnan(expected)));
            }
        }
    }
}

// Without a bias an output is rounded once, whatever the compiler fuses: the integer formula to the last bit.
static void int8_formula() {
    for (int inputs : {1, 3, kLanes + 1, 100, KC + 1}) {
        TestLinear test(inputs, NR + 3, kInt8);
        std::fill(test.bias.begin(), test.bias.end(), 0.0f);
        int rows = MR + 1, depth = round_up(inputs, kGroup);
        std::vector<float> x = random_floats(int64_t(rows) * inputs), y = run_linear(test, x, rows, false, 1);
        for (int r = 0; r < rows; r++) {
            std::vector<Quantized> quantized(depth);
            RowScale row = quantize_row(&x[int64_t(r) * inputs], inputs, quantized.data());
            for (int j = 0; j < test.outputs; j++) {
                int64_t sum = 0;
                for (int k = 0; k < inputs; k++)
                    sum += int64_t(quantized[k] - row.zero_point) *
                           test.packed_int8[int64_t(j / NR) * depth * NR + place(k, j % NR)];
                CHECK(y[int64_t(r) * round_up(test.outputs, NR) + j] == float(sum) * (test.scale[j] * row.scale));
            }
        }
    }
}

// A row's integers do not depend on the other rows, and integer sums do not depend on their order.
static void int8_batch_invariance() {
    for (int inputs : {7, 64, 2 * KC + 1}) {
        TestLinear test(inputs, 2 * NR + 3, kInt8);
        int rows = MC + 9, stride = round_up(test.outputs, NR);
        std::vector<float> x = random_floats(int64_t(rows) * inputs), all = run_linear(test, x, rows, true, 2);
        for (int r = 0; r < rows; r++) {
            std::vector<float> row(x.begin() + int64_t(r) * inputs, x.begin() + int64_t(r + 1) * inputs);
            std::vector<float> alone = run_linear(test, row, 1, true, 1);
            CHECK(std::equal(alone.begin(), alone.begin() + test.outputs, all.begin() + int64_t(r) * stride));
        }
    }
}

static void nan_and_infinity_pass_through_linear() {
    for (Precision precision : {kFloat32, kBFloat16, kInt8})
        for (float value : {NAN, INFINITY, -INFINITY})
            for (int place : {0, 36}) { // within a vector, and in the rest
                TestLinear test(37, NR + 1, precision);
                std::vector<float> x = random_floats(2 * 37);
                x[place] = value;
                std::vector<float> y = run_linear(test, x, 2, false, 1);
                for (int j = 0; j < test.outputs; j++) {
                    CHECK(!std::isfinite(y[j]));
                    CHECK(std::isfinite(y[round_up(test.outputs, NR) + j]));
                }
                if (std::isnan(value))
                    for (float output : run_linear(test, x, 1, true, 1))
                        CHECK(std::isnan(output));
            }
}

static void quantized_rows() {
    for (int width : {1, 2, 3, kLanes - 1, kLanes, kLanes + 1, 509, 510, 511, 512, 513, 4096, 4097})
        for (float size : {1e-30f, 1e-3f, 1.0f, 1e4f, 1e38f}) {
            std::vector<float> x = random_floats(width, size / 4);
            for (float &value : x)
                value = std::min(std::max(value, -size), size);
            x[generator() % width] = -size;
            std::vector<Quantized> quantized(round_up(width, kGroup), Quantized(0x7ead));
            RowScale row = quantize_row(x.data(), width, quantized.data());
            int64_t largest_sum = 0;
            for (int k = 0; k < width; k++) {
                check_close((quantized[k] - row.zero_point) * double(row.scale), x[k], 0.505 * row.scale);
                CHECK(quantized[k] <= levels(width));
                largest_sum += 127 * int64_t(quantized[k]);
            }
            CHECK(largest_sum <= INT32_MAX);
            for (int k = width; k < round_up(width, kGroup); k++)
                CHECK(quantized[k] == 0);
        }
}

static void quantized_rows_have_zero_exactly() {
    for (int width : {1, 3, kLanes, kLanes + 5, 2000})
        for (int sign : {0, 1, -1}) { // both signs; as after ReLU; none is positive
            std::vector<float> x = random_floats(width);
            for (float &value : x)
                value = sign ? sign * std::abs(value) : value;
            x[width / 2] = 0;
            std::vector<Quantized> quantized(round_up(width, kGroup));
            RowScale row = quantize_row(x.data(), width, quantized.data());
            CHECK(quantized[width / 2] == row.zero_point);
            CHECK(sign == 0 || row.zero_point == (sign > 0 ? 0 : width == 1 ? 0 : levels(width)));
        }
}

static void quantized_rows_without_a_scale() {
    for (int width : {1, 5, kLanes, 2 * kLanes + 3})
        for (float value : {0.0f, -0.0f, NAN, INFINITY, -INFINITY, 1e-40f}) { // 1e-40: its reciprocal is infinite
            std::vector<float> x(width, value);
            std::vector<Quantized> quantized(round_up(width, kGroup));
            float scale = quantize_row(x.data(), width, quantized.data()).scale;
            if (value == 0)
                CHECK(scale == 0);
            else if (std::isfinite(value))
                CHECK(scale < 1e-40f);
            else
                CHECK(std::isnan(value) ? std::isnan(scale) : std::isinf(scale));
        }
}

// All weights at ±127 and all inputs at their largest: a sum that left 32 bits would change its sign.
static void int8_largest_sums() {
    for (int inputs : {1, 2, 510, 511, 512, 513, 2048, 65536, 100001})
        for (float sign : {1.0f, -1.0f}) {
            TestLinear test(inputs, NR, kInt8);
            std::fill(test.weight.begin(), test.weight.end(), 127 * sign);
            test.pack();
            std::vector<float> y = run_linear(test, std::vector<float>(inputs, 3.0f), 1, false, 1);
            for (int j = 0; j < NR; j++)
                check_close(y[j], 381.0 * sign * inputs + test.bias[j],
                            381e-6 * inputs + 0.505 * 3 / levels(inputs) * 127 * inputs);
        }
}

static void int8_extreme_scales() {
    for (float size : {0.0f, 1e-30f, 1e-9f, 1e30f}) { // of the weights; 0 and 1e-30: below the smallest scale
        TestLinear test(33, NR + 1, kInt8, size);
        std::vector<float> y = run_linear(test, random_floats(33), 1, false, 1);
        for (int j = 0; j < test.outputs; j++)
            CHECK(std::isfinite(y[j]));
        if (size < 1e-20f)
            CHECK(std::equal(y.begin(), y.begin() + test.outputs, test.bias.begin()));
    }
}

static void exponential() {
    for (float x = 0; x > -87; x -= 0.00731f) {
        VecF32 found = exp_nonpositive(VecF32{} + x);
        for (int i = 0; i < kLanes; i++)
            check_close(found[i], std::exp(double(x)), 3e-7 * std::exp(double(x)));
    }
    for (float x : {-100.0f, -1e30f, -INFINITY})
        CHECK(exp_nonpositive(VecF32{} + x)[0] < 2e-38f);
    CHECK(exp_nonpositive(VecF32{})[0] == 1);
    CHECK(std::isnan(exp_nonpositive(VecF32{} + NAN)[kLanes - 1]));
}

static std::vector<double> softmax(const std::vector<double> &scores) {
    double peak = *std::max_element(scores.begin(), scores.end()), sum = 0;
    std::vector<double> weights;
    for (double score : scores)
        weights.push_back(std::exp(score - peak)), sum += weights.back();
    for (double &weight : weights)
        weight /= sum;
    return weights;
}

// Weights and their sum of values, for keys(t, k) and values(t, i).
template <typename Keys, typename Values> static void check_attention(const float *query, int length, int d_k, int d_v,
                                                                      const float *mask, const float *found_weights,
                                                                      const float *context, Keys keys, Values values) {
    std::vector<double> scores(length);
    for (int t = 0; t < length; t++) {
        for (int k = 0; k < d_k; k++)
            scores[t] += double(query[k]) * keys(t, k);
        if (mask)
            scores[t] = float(scores[t]) + mask[t]; // in float, where the lowest number absorbs any score
    }
    std::vector<double> weights = softmax(scores);
    for (int t = 0; t < length; t++)
        check_close(found_weights[t], weights[t], 1e-5);
    for (int i = 0; i < d_v; i++) {
        double expected = 0;
        for (int t = 0; t < length; t++)
            expected += weights[t] * values(t, i);
        check_close(context[i], expected, 1e-5 * (length + 1));
    }
}

static std::vector<float> source_mask(int length, bool is_all_padding) {
    std::vector<float> mask(length, is_all_padding ? -FLT_MAX : 0);
    for (int t = length / 2 + 1; t < length; t++)
        mask[t] = -FLT_MAX;
    return mask;
}

static void attention_by_entries() {
    for (int entries : {1, 2, 3, kLanes - 1, kLanes, kLanes + 1, 70, 300})
        for (int d_k : {1, 3, 2 * kLanes, 2 * kLanes + 5})
            for (int d_v : {1, kLanes, 2 * kLanes + 3, 7 * kLanes + 1})
                for (int masked : {0, 1, 2}) {
                    std::vector<std::vector<float>> cache;
                    std::vector<const float *> entry;
                    for (int t = 0; t < entries; t++)
                        cache.push_back(random_floats(d_k + d_v)), entry.push_back(cache[t].data());
                    std::vector<float> query = random_floats(d_k, 0.5), context(d_v, NAN),
                                       mask = source_mask(entries, masked == 2);
                    std::vector<float> scores(round_up(entries, kLanes), NAN);
                    const float *added = masked ? mask.data() : nullptr;
                    attend(query.data(), entry.data(), entries, 0, d_k, d_k, d_v, added, 0, scores.data(),
                           context.data());
                    check_attention(
                        query.data(), entries, d_k, d_v, added, scores.data(), context.data(),
                        [&](int t, int k) { return cache[t][k]; }, [&](int t, int i) { return cache[t][d_k + i]; });
                }
}

static void attention_in_tiles() {
    for (int queries = 1; queries <= kMaxQueriesPerTile; queries++)
        for (int length : {1, kLanes - 1, kLanes, kLanes + 1, 2 * kLanes, 3 * kLanes + 2, 300})
            for (int d_k : {1, 3, 64})
                for (int d_v : {1, kLanes, 2 * kLanes, 3 * kLanes + 3})
                    for (int masked : {0, 1, 2}) {
                        int width = padded_length(length), stride = std::max(d_k, d_v) + 5;
                        std::vector<float> source = random_floats(int64_t(width) * d_k + int64_t(length) * d_v);
                        std::vector<float> query = random_floats((queries - 1) * stride + d_k, 0.5),
                                           mask = source_mask(length, masked == 2);
                        std::vector<float> scores(queries * width, NAN), context((queries - 1) * stride + d_v, NAN);
                        const float *added = masked ? mask.data() : nullptr;
                        attend_tile(queries, query.data(), stride, source.data(), length, d_k, d_v, added,
                                    scores.data(), context.data());
                        for (int q = 0; q < queries; q++)
                            check_attention(
                                &query[q * stride], length, d_k, d_v, added, &scores[q * width], &context[q * stride],
                                [&](int t, int k) { return source[int64_t(k) * width + t]; },
                                [&](int t, int i) { return source[int64_t(width) * d_k + int64_t(t) * d_v + i]; });
                    }
}

static void nan_passes_through_attention() {
    int d = 8, entries = kLanes + 3;
    for (int place = 0; place < entries; place++) {
        std::vector<std::vector<float>> cache;
        std::vector<const float *> entry;
        for (int t = 0; t < entries; t++)
            cache.push_back(random_floats(2 * d)), entry.push_back(cache[t].data());
        cache[place][0] = NAN;
        std::vector<float> query = random_floats(d), context(d), scores(round_up(entries, kLanes));
        attend(query.data(), entry.data(), entries, 0, d, d, d, nullptr, 0, scores.data(), context.data());
        CHECK(std::all_of(context.begin(), context.end(), [](float value) { return std::isnan(value); }));
    }
}

static void layer_norms() {
    for (int width : {1, 2, 3, kLanes - 1, kLanes, kLanes + 1, 100, 512, 513})
        for (float size : {0.0f, 1.0f, 1e3f}) // 0: a constant row
            for (bool in_place : {false, true}) {
                std::vector<float> x = random_floats(width, size), weight = random_floats(width),
                                   bias = random_floats(width), y(width);
                for (float &value : x)
                    value += 2;
                double mean = std::accumulate(x.begin(), x.end(), 0.0) / width, variance = 0;
                for (float value : x)
                    variance += (value - mean) * (value - mean) / width;
                std::vector<double> expected;
                for (int i = 0; i < width; i++)
                    expected.push_back((x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i]);
                Norm norm = {weight.data(), bias.data()};
                float *to = in_place ? x.data() : y.data();
                layer_norm(&norm, x.data(), to, width, 1e-5f);
                for (int i = 0; i < width; i++)
                    check_close(to[i], expected[i], 1e-4 * (1 + std::abs(weight[i])));
            }
}

// The k largest values, of equal ones the earlier, are those of a stable sort.
static void check_topk(const std::vector<float> &values, int k, bool normalize) {
    int width = int(values.size());
    std::vector<float> scores(k, NAN);
    std::vector<int64_t> indices(k, -1), order(width);
    blockwise_topk(values.data(), width, k, normalize, scores.data(), indices.data());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
    double log_sum = 0;
    for (float value : values)
        log_sum += std::exp(double(value) - values[order[0]]);
    log_sum = normalize ? values[order[0]] + std::log(log_sum) : 0;
    for (int i = 0; i < k; i++) {
        CHECK(indices[i] == order[i]);
        if (std::isinf(values[order[i]]))
            CHECK(scores[i] == values[order[i]]);
        else
            check_close(scores[i], values[order[i]] - log_sum, 1e-5 * (1 + std::abs(values[order[i]])));
    }
}

static void topk() {
    for (int width : {1, 2, 3, kLanes, 31, 127, 128, 129, 700, 5000, 40001})
        for (int k : {1, 2, 5, 12, 200})
            for (bool normalize : {false, true}) {
                std::vector<float> values = random_floats(width, 3);
                check_topk(values, std::min(k, width), normalize);
                std::sort(values.begin(), values.end()); // every value is larger than those before
                check_topk(values, std::min(k, width), normalize);
                std::reverse(values.begin(), values.end());
                check_topk(values, std::min(k, width), normalize);
            }
}

static void topk_of_equal_values() {
    for (int width : {3, 31, 700, 5000})
        for (int k : {1, 2, 5, 40})
            for (bool normalize : {false, true}) {
                check_topk(std::vector<float>(width, -1.5f), std::min(k, width), normalize);
                std::vector<float> values = random_floats(width);
                for (float &value : values)
                    value = std::round(value); // many are equal
                check_topk(values, std::min(k, width), normalize);
            }
}

static void topk_with_infinities() {
    for (int width : {3, 31, 700, 5000})
        for (int k : {1, 2, 3}) {
            check_topk(std::vector<float>(width, -INFINITY), k, false);
            std::vector<float> values(width, -INFINITY);
            for (int place : {0, width / 2, width - 1}) {
                values[place] = float(place % 7);
                check_topk(values, k, false);
                check_topk(values, k, true);
            }
        }
    for (float value : {INFINITY, -INFINITY}) { // the sum of all probabilities is undefined
        std::vector<float> values(31, value), scores(2);
        std::vector<int64_t> indices(2);
        blockwise_topk(values.data(), 31, 2, true, scores.data(), indices.data());
        CHECK(std::isnan(scores[0]));
    }
}

static void topk_with_nan() {
    for (int width : {1, 3, kLanes, 31, 700, 5000})
        for (bool normalize : {false, true})
            for (int place : {0, width / 2, width - 1}) {
                std::vector<float> values = random_floats(width), scores(1);
                std::vector<int64_t> indices(1);
                values[place] = NAN;
                blockwise_topk(values.data(), width, 1, normalize, scores.data(), indices.data());
                CHECK(std::isnan(scores[0]));
            }
}

// Hypotheses with k_per_beam tokens each, and what `merge_beams` makes of them.
struct TestTopK {
    int alive, per_beam, k;
    std::vector<float> beam_scores, scores_per_beam, scores;
    std::vector<int64_t> tokens_per_beam, beam_indices, tokens, eos = {5, 9};
    Steps steps = {};
    TopK structure;

    TestTopK(int sentences, int alive, int per_beam, int k, int num_beams)
        : alive(alive), per_beam(per_beam), k(k), beam_scores(random_floats(sentences * alive)),
          scores_per_beam(random_floats(sentences * alive * per_beam)), scores(sentences * k, NAN),
          beam_indices(sentences * k, -1), tokens(sentences * k, -1) {
        for (int beam = 0; beam < sentences * alive; beam++) {
            std::sort(&scores_per_beam[beam * per_beam], &scores_per_beam[beam * per_beam] + per_beam,
                      std::greater<float>());
            for (int i = 0; i < per_beam; i++)
                tokens_per_beam.push_back((i * 7 + beam) % 31);
        }
        structure = {k,
                     per_beam,
                     num_beams,
                     int32_t(eos.size()),
                     eos.data(),
                     beam_scores.data(),
                     scores_per_beam.data(),
                     tokens_per_beam.data(),
                     scores.data(),
                     beam_indices.data(),
                     tokens.data(),
                     &steps};
    }

    bool is_eos(int64_t token) const { return std::find(eos.begin(), eos.end(), token) != eos.end(); }
};

static void merging_beams() {
    for (int alive : {1, 2, 5})
        for (int per_beam : {1, 3, 12})
            for (int k = 1; k <= alive * per_beam; k++) {
                TestTopK test(2, alive, per_beam, k, k);
                for (int sentence = 0; sentence < 2; sentence++) {
                    std::vector<std::pair<float, int64_t>> all; // scores, and beam * 31 + token
                    for (int beam = 0; beam < alive; beam++)
                        for (int i = 0; i < per_beam; i++) {
                            int at = (sentence * alive + beam) * per_beam + i;
                            all.push_back({test.scores_per_beam[at] + test.beam_scores[sentence * alive + beam],
                                           beam * 31 + test.tokens_per_beam[at]});
                        }
                    std::stable_sort(all.begin(), all.end(), [](auto &a, auto &b) { return a.first > b.first; });
                    merge_beams(&test.structure, sentence, alive);
                    for (int i = sentence * k; i < (sentence + 1) * k; i++) {
                        CHECK(test.scores[i] == all[i - sentence * k].first);
                        CHECK(test.beam_indices[i] * 31 + test.tokens[i] == all[i - sentence * k].second);
                    }
                }
                test.scores_per_beam[(2 * alive - 1) * per_beam] = NAN;
                merge_beams(&test.structure, 1, alive);
                CHECK(std::all_of(&test.scores[k], &test.scores[k] + k, [](float score) { return std::isnan(score); }));
            }
}

static void thresholds_of_deferred_hypotheses() {
    for (int alive : {1, 2, 5})
        for (int beams = 1; beams < 8; beams++) {
            TestTopK test(1, alive, 12, std::max(beams, 2), beams);
            std::vector<float> scores;
            for (int beam = 0; beam < alive; beam++)
                for (int i = 0; i < 12; i++)
                    if (!test.is_eos(test.tokens_per_beam[beam * 12 + i]))
                        scores.push_back(test.scores_per_beam[beam * 12 + i] + test.beam_scores[beam]);
            std::sort(scores.begin(), scores.end(), std::greater<float>());
            CHECK(deferred_threshold(&test.structure, 0, alive) == scores[beams - 1]);
        }
}

// A stack with random weights, for the functions that Python calls.
struct TestStack {
    int d_model, heads, d_k, d_v, d_ff, layers;
    std::vector<TestLinear> linears;
    std::vector<std::vector<float>> norms;
    std::vector<Layer> structures;
    Stack stack;

    TestStack(int d_model, int heads, int d_k, int d_v, int d_ff, int layers, bool is_pre, bool is_decoder,
              Precision precision)
        : d_model(d_model), heads(heads), d_k(d_k), d_v(d_v), d_ff(d_ff), layers(layers) {
        linears.reserve(7 * layers); // Linear points into them
        for (int i = 0; i < layers; i++) {
            auto map = [&](int inputs, int outputs) {
                linears.emplace_back(inputs, outputs, precision, 0.2f);
                return linears.back().map;
            };
            Layer layer = {map(d_model, heads * (2 * d_k + d_v)),
                           map(heads * d_v, d_model),
                           map(d_model, heads * d_k),
                           map(d_model, heads * (d_k + d_v)),
                           map(heads * d_v, d_model),
                           map(d_model, d_ff),
                           map(d_ff, d_model),
                           {norm(), norm(), norm()}};
            structures.push_back(layer);
        }
        stack = {structures.data(),       layers, d_model, d_ff, heads, d_k, d_v, is_pre, is_decoder, 1e-5f,
                 is_pre ? norm() : Norm{}, precision == kInt8 ? Norm{} : norm()};
    }

    Norm norm() {
        norms.push_back(random_floats(d_model));
        norms.push_back(random_floats(d_model));
        return {norms[norms.size() - 2].data(), norms.back().data()};
    }

    int width() const { return std::max({heads * (2 * d_k + d_v), d_ff, d_model}); }
};

struct Shape {
    int d_model, heads, d_k, d_v, d_ff;
};

static const Shape kShapes[] = {{16, 2, 8, 8, 32}, {10, 2, 3, 7, 37}, {2 * kLanes, 1, 2 * kLanes, 4 * kLanes, 600}};

static std::vector<float> run_encoder(const TestStack &test, std::vector<float> states, int sentences, int length,
                                      const float *mask, int threads) {
    TestScratch memory(sentences * length, test.width(), length, threads);
    encode(&test.stack, &memory.scratch, sentences, length, mask, states.data(), states.data(), threads);
    return states;
}

// A sentence is encoded alike alone, in a batch, after other numbers of threads and with padding behind it.
static void encoding() {
    for (const Shape &shape : kShapes)
        for (bool is_pre : {false, true})
            for (Precision precision : {kFloat32, kBFloat16, kInt8}) {
                TestStack test(shape.d_model, shape.heads, shape.d_k, shape.d_v, shape.d_ff, 2, is_pre, false, precision);
                int length = kLanes + 3, sentences = kRowsPerPass / length + 2, size = length * shape.d_model;
                std::vector<float> states = random_floats(sentences * size), mask(sentences * length);
                for (int t = length - 2; t < length; t++)
                    mask[t] = -FLT_MAX; // of the first sentence
                std::vector<float> all = run_encoder(test, states, sentences, length, mask.data(), 3);
                for (int threads : {1, 2}) {
                    std::vector<float> first(states.begin(), states.begin() + size - 2 * shape.d_model);
                    first = run_encoder(test, first, 1, length - 2, nullptr, threads);
                    std::vector<float> last(states.end() - size, states.end());
                    last = run_encoder(test, last, 1, length, nullptr, threads);
                    for (size_t i = 0; i < first.size(); i++)
                        check_close(all[i], first[i], precision == kFloat32 ? 1e-3 : 2e-2);
                    for (int i = 0; i < size; i++)
                        check_close(all[(sentences - 1) * int64_t(size) + i], last[i], precision == kFloat32 ? 1e-3 : 2e-2);
                }
            }
}

// A batch in the midst of being decoded, as `NativeDecoderState` holds it.
struct TestDecoder {
    const TestStack &test;
    int sentences, beams, max_length, vocab_size = 31;
    std::vector<float> source, mask, attention, embedding, positions, logits;
    std::vector<int64_t> slots;
    std::vector<int32_t> ancestors, row_buffer, reorder_buffer;
    std::vector<std::vector<float>> blocks;
    std::vector<float *> block_addresses;
    TestScratch memory;
    DecoderState state;
    DecodeStep step;

    TestDecoder(const TestStack &test, const TestLinear &projection, const std::vector<float> &embedding,
                const std::vector<float> &encoded, int sentences, int length, int beams, int max_length, int threads)
        : test(test), sentences(sentences), beams(beams), max_length(max_length),
          source(int64_t(test.layers) * sentences * test.heads * (padded_length(length) * test.d_k + length * test.d_v),
                 NAN),
          mask(sentences * length), attention(sentences * beams * test.heads * length, NAN), embedding(embedding),
          positions(max_length * test.d_model), logits(int64_t(sentences) * beams * round_up(vocab_size, NR), NAN),
          slots(sentences), ancestors(sentences * beams * max_length, -1), row_buffer(2 * sentences * beams + 1),
          reorder_buffer(beams * max_length), block_addresses((max_length + kCacheBlock - 1) / kCacheBlock),
          memory(std::max(beams, length) * sentences, test.width(), std::max(max_length, length) + 1, threads) {
        std::iota(slots.begin(), slots.end(), 0);
        for (size_t i = 0; i < positions.size(); i++)
            positions[i] = 0.25f * cosf(i); // the same in every decoder, and another at each position
        for (float *&address : block_addresses) {
            blocks.emplace_back(
                int64_t(test.layers) * sentences * test.heads * kCacheBlock * beams * (test.d_k + test.d_v), NAN);
            address = blocks.back().data();
        }
        project_source(&test.stack, &memory.scratch, encoded.data(), sentences, length, source.data(), threads);
        state = {sentences,
                 beams,
                 0,
                 length,
                 sentences,
                 max_length,
                 slots.data(),
                 block_addresses.data(),
                 ancestors.data(),
                 source.data(),
                 mask.data(),
                 attention.data()};
        step = {&test.stack,
                &memory.scratch,
                &state,
                &projection.map,
                this->embedding.data(),
                positions.data(),
                nullptr,
                row_buffer.data(),
                reorder_buffer.data(),
                logits.data(),
                nullptr,
                nullptr,
                4.0f,
                vocab_size,
                round_up(vocab_size, NR),
                0,
                threads};
    }

    int read(const std::vector<int64_t> &tokens, int alive, TopK *topk) {
        step.tokens = tokens.data(), step.alive = alive, step.topk = topk;
        step.position = positions.data() + int64_t(state.length) * test.d_model;
        return decode_step(&step);
    }
};

// Checks the ranking of one sentence against all continuations, and appends the `beams` best that do not end.
static void check_ranking(const TestTopK &topk, int sentence, int beams, const std::vector<double> &all, int vocab_size,
                          std::vector<int64_t> *parents, std::vector<int64_t> *tokens, std::vector<float> *totals) {
    std::vector<double> sorted = all;
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    int continuing = 0;
    for (int i = 0; i < topk.k && continuing < beams; i++) {
        int at = sentence * topk.k + i;
        check_close(topk.scores[at], sorted[i], 1e-3);
        check_close(all[topk.beam_indices[at] * vocab_size + topk.tokens[at]], sorted[i], 1e-3);
        if (topk.is_eos(topk.tokens[at]))
            continue;
        continuing++;
        parents->push_back(topk.beam_indices[at]);
        tokens->push_back(topk.tokens[at]);
        totals->push_back(topk.scores[at]);
    }
    CHECK(continuing == beams);
}

// One call that reads several tokens of each hypothesis chooses as a call for each of them does.
template <typename Decoder, typename Reorder>
static void check_steps(Decoder &together, Decoder &singly, int sentences, int beams, Reorder reorder_singly) {
    int max_steps = 5, completed = max_steps - 1, hypotheses = sentences * beams;
    std::vector<int64_t> first(sentences, 3), tokens = first, parents(completed * hypotheses), chosen(parents),
        prefixes(hypotheses * max_steps);
    std::vector<float> zeros(sentences, 0), totals = zeros, beam_scores(hypotheses);
    TestTopK topk(sentences, beams, beams, beams, beams);
    topk.structure.beam_scores = zeros.data(), topk.structure.num_eos_tokens = 0;
    topk.steps = {max_steps, 0, parents.data(), chosen.data(), beam_scores.data(), prefixes.data()};
    CHECK(together.read(first, 1, &topk.structure) == -1);
    CHECK(topk.steps.completed == completed);
    std::vector<std::vector<int64_t>> sequences(hypotheses);
    for (int t = 0, alive = 1; t < max_steps; t++, alive = beams) {
        TestTopK single(sentences, alive, beams, beams, beams);
        single.structure.beam_scores = totals.data(), single.structure.num_eos_tokens = 0;
        CHECK(singly.read(tokens, alive, &single.structure) == -1);
        if (t == completed) {
            for (int i = 0; i < hypotheses; i++)
                check_close(topk.scores[i], single.scores[i], 1e-4);
            CHECK(topk.tokens == single.tokens && topk.beam_indices == single.beam_indices);
            break;
        }
        std::vector<std::vector<int64_t>> before = sequences;
        for (int i = 0; i < hypotheses; i++) {
            sequences[i] = t ? before[i / beams * beams + single.beam_indices[i]] : std::vector<int64_t>{0};
            sequences[i].push_back(single.tokens[i]);
        }
        tokens = single.tokens, totals = single.scores;
        reorder_singly(single.beam_indices.data(), alive);
    }
    for (int i = 0; i < hypotheses; i++)
        CHECK(sequences[i] == std::vector<int64_t>(&prefixes[i * max_steps], &prefixes[i * max_steps] + max_steps));
}

// No next step begins if a candidate among the first is EOS, or a sentence has no finite score.
static void next_steps() {
    std::vector<int64_t> parents(12), tokens(12), prefixes(12);
    std::vector<float> beam_scores(4);
    auto begins = [&](int64_t token, float score, int max_steps) {
        TestTopK topk(2, 2, 3, 3, 2);
        topk.steps = {max_steps, 0, parents.data(), tokens.data(), beam_scores.data(), prefixes.data()};
        topk.tokens = {3, 4, 5, 3, 4, 5}, topk.scores = {-1, -2, -3, -1, -2, -3};
        topk.tokens[4] = token, topk.scores[3] = score;
        return begin_next_step(&topk.structure, 2);
    };
    CHECK(begins(4, -1, 3)); // 5 is EOS, but the third
    CHECK(!begins(9, -1, 3));
    CHECK(!begins(4, NAN, 3) && !begins(4, -INFINITY, 3));
    CHECK(!begins(4, -1, 1));
}

// A search over more tokens than a cache block holds. The top k are those of all logits, also where hypotheses are
// deferred, and a sentence alone has the logits that it has in a batch.
static void check_search(const Shape &shape, bool is_pre, Precision precision, int threads) {
    int length = 5, beams = 4, sentences = kRowsPerPass / beams + 8, steps = kCacheBlock + 3, vocab_size = 31;
    int stride = round_up(vocab_size, NR), size = length * shape.d_model;
    TestStack test(shape.d_model, shape.heads, shape.d_k, shape.d_v, shape.d_ff, 2, is_pre, true, precision);
    TestLinear projection(shape.d_model, vocab_size, precision);
    std::vector<float> embedding = random_floats(vocab_size * shape.d_model, 0.25);
    std::vector<float> encoded = random_floats(sentences * size), last(encoded.end() - size, encoded.end());
    TestDecoder batch(test, projection, embedding, encoded, sentences, length, beams, steps, threads);
    TestDecoder ranked(test, projection, embedding, encoded, sentences, length, beams, steps, threads);
    TestDecoder alone(test, projection, embedding, last, 1, length, beams, steps, threads);
    std::vector<int64_t> tokens(sentences, 3);
    std::vector<float> totals(sentences, 0);
    for (int t = 0, alive = 1; t < steps; t++, alive = beams) {
        int k = std::min(3 * beams, alive * vocab_size);
        TestTopK topk(sentences, alive, std::min(k, vocab_size), k, beams);
        topk.structure.beam_scores = totals.data();
        CHECK(batch.read(tokens, alive, nullptr) == -1);
        CHECK(ranked.read(tokens, alive, &topk.structure) == -1);
        CHECK(alone.read(std::vector<int64_t>(tokens.end() - alive, tokens.end()), alive, nullptr) == -1);
        const float *in_batch = &batch.logits[int64_t(sentences - 1) * alive * stride];
        for (int i = 0; i < alive * stride; i++)
            if (i % stride < vocab_size)
                check_close(alone.logits[i], in_batch[i], precision == kFloat32 ? 1e-3 : 5e-2);
        std::vector<int64_t> parents, next;
        std::vector<float> next_totals;
        for (int sentence = 0; sentence < sentences; sentence++) {
            std::vector<double> all;
            for (int row = sentence * alive; row < (sentence + 1) * alive; row++) {
                const float *logits = &batch.logits[int64_t(row) * stride];
                double sum = 0;
                for (int j = 0; j < vocab_size; j++)
                    sum += std::exp(double(logits[j]));
                for (int j = 0; j < vocab_size; j++)
                    all.push_back(totals[row] + logits[j] - std::log(sum));
            }
            check_ranking(topk, sentence, beams, all, vocab_size, &parents, &next, &next_totals);
        }
        tokens = next, totals = next_totals;
        for (TestDecoder *decoder : {&batch, &ranked})
            reorder(&decoder->state, parents.data(), beams, decoder->reorder_buffer.data());
        reorder(&alone.state, parents.data() + parents.size() - beams, beams, alone.reorder_buffer.data());
        if (t == 5) { // half of the sentences leave, and the last one moves
            int left = sentences / 2;
            for (TestDecoder *decoder : {&batch, &ranked}) {
                decoder->slots[left - 1] = sentences - 1;
                decoder->state.batch_size = left;
            }
            std::copy(tokens.end() - beams, tokens.end(), tokens.begin() + (left - 1) * beams);
            std::copy(totals.end() - beams, totals.end(), totals.begin() + (left - 1) * beams);
            tokens.resize(left * beams);
            totals.resize(left * beams);
            sentences = left;
        }
    }
}

static void decoding() {
    for (const Shape &shape : kShapes)
        for (bool is_pre : {false, true})
            for (Precision precision : {kFloat32, kBFloat16, kInt8})
                check_search(shape, is_pre, precision, (precision != kFloat32) == is_pre ? 3 : 1);
}

static void several_steps() {
    TestStack test(16, 2, 8, 8, 32, 2, false, true, kFloat32);
    TestLinear projection(16, 31, kFloat32);
    std::vector<float> embedding = random_floats(31 * 16), encoded = random_floats(20 * 5 * 16);
    for (int beams : {1, 4}) {
        TestDecoder together(test, projection, embedding, encoded, 20, 5, beams, 7, 2);
        TestDecoder singly(test, projection, embedding, encoded, 20, 5, beams, 7, 2);
        check_steps(together, singly, 20, beams, [&](const int64_t *beam_indices, int) {
            reorder(&singly.state, beam_indices, beams, singly.reorder_buffer.data());
        });
    }
}

static void unknown_tokens() {
    TestStack test(16, 2, 8, 8, 32, 1, false, true, kFloat32);
    TestLinear projection(16, 31, kFloat32);
    TestDecoder decoder(test, projection, random_floats(31 * 16), random_floats(3 * 16), 1, 3, 2, 5, 1);
    CHECK(decoder.read({3, 31}, 2, nullptr) == 1);
    CHECK(decoder.read({-1, 3}, 2, nullptr) == 0);
}

static void selected_outputs() {
    std::vector<int64_t> outputs = {0, NR - 1, NR, 2 * NR + 3, 3 * NR + 4};
    for (int inputs : {kGroup * 4, kGroup * 4 + 1})
        for (Precision precision : {kFloat32, kBFloat16, kInt8}) {
            TestLinear whole(inputs, 3 * NR + 5, precision), selected(inputs, int(outputs.size()), precision);
            select_outputs(&whole.map, outputs.data(), &selected.map);
            std::vector<float> x = random_floats(3 * inputs), all = run_linear(whole, x, 3, false, 1);
            std::vector<float> found = run_linear(selected, x, 3, false, 1);
            int stride = int(all.size() / 3), own = int(found.size() / 3);
            for (int row = 0; row < 3; row++)
                for (size_t i = 0; i < outputs.size(); i++)
                    check_close(found[row * own + i], all[row * stride + outputs[i]], 1e-4);
        }
}

#include "rnn_kernels_test.h"

static const struct {
    const char *name;
    void (*run)();
} kTests[] = {
    {"float_tiles", float_tiles},
    {"int8_tiles", int8_tiles},
    {"float_linear", float_linear},
    {"bfloat16_linear", bfloat16_linear},
    {"int8_linear", int8_linear},
    {"rounded_rows", rounded_rows},
    {"int8_formula", int8_formula},
    {"int8_batch_invariance", int8_batch_invariance},
    {"nan_and_infinity_pass_through_linear", nan_and_infinity_pass_through_linear},
    {"quantized_rows", quantized_rows},
    {"quantized_rows_have_zero_exactly", quantized_rows_have_zero_exactly},
    {"quantized_rows_without_a_scale", quantized_rows_without_a_scale},
    {"int8_largest_sums", int8_largest_sums},
    {"int8_extreme_scales", int8_extreme_scales},
    {"exponential", exponential},
    {"attention_by_entries", attention_by_entries},
    {"attention_in_tiles", attention_in_tiles},
    {"nan_passes_through_attention", nan_passes_through_attention},
    {"layer_norms", layer_norms},
    {"topk", topk},
    {"topk_of_equal_values", topk_of_equal_values},
    {"topk_with_infinities", topk_with_infinities},
    {"topk_with_nan", topk_with_nan},
    {"merging_beams", merging_beams},
    {"thresholds_of_deferred_hypotheses", thresholds_of_deferred_hypotheses},
    {"encoding", encoding},
    {"decoding", decoding},
    {"several_steps", several_steps},
    {"next_steps", next_steps},
    {"unknown_tokens", unknown_tokens},
    {"selected_outputs", selected_outputs},
    {"hyperbolic_tangent", hyperbolic_tangent},
    {"cells", cells},
    {"additive_attention", additive_attention},
    {"recurrent_encoding", recurrent_encoding},
    {"recurrent_decoding", recurrent_decoding},
    {"recurrent_several_steps", recurrent_several_steps},
};

// Without an argument: the names of all tests. With one: runs that test.
int main(int count, char **arguments) {
    for (const auto &test : kTests)
        if (count < 2)
            puts(test.name);
        else if (!strcmp(test.name, arguments[1])) {
            test.run();
            return 0;
        }
    return count < 2 ? 0 : 2;
}
