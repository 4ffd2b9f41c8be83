// SPDX-License-Identifier: Apache-2.0
// SIMD vectors of the target's width (SSE, AVX2, AVX-512 or NEON), as the vector extensions of GCC and clang.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vanilla_transformer {

#if defined(__AVX512BW__)
constexpr int kLanes = 16; // 32-bit elements of a vector
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float VecF32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI32 __attribute__((vector_size(4 * kLanes)));
typedef int16_t VecI16 __attribute__((vector_size(4 * kLanes)));
typedef int8_t HalfVecI8 __attribute__((vector_size(2 * kLanes)));

// int8 products: one instruction multiplies kGroup inputs, together 32 bits, with the weights of each 32-bit lane.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512BW__))
constexpr int kGroup = 4;
typedef uint8_t Quantized;
typedef VecI32 GroupedWeights;
#else
constexpr int kGroup = 2;
typedef int16_t Quantized; // of 0 to 255, too: a CPU's instructions do not change the integers
typedef VecI16 GroupedWeights;
#endif
struct BFloat16 {
    uint16_t bits; // the upper half of a float's
};
typedef uint16_t PairedWeights __attribute__((vector_size(4 * kLanes))); // BFloat16
typedef Quantized VecQuantized __attribute__((vector_size(sizeof(Quantized) * kLanes)));

static inline VecF32 load(const float *from) {
    VecF32 vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

static inline VecI32 load(const int32_t *from) {
    VecI32 vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

// Two weights for each of kLanes outputs.
static inline PairedWeights load(const BFloat16 *from) {
    PairedWeights vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

// kGroup weights for each of kLanes outputs, widened to 16 bits if they are pairs.
static inline GroupedWeights load(const int8_t *from) {
    if constexpr (kGroup == 4) {
        GroupedWeights vector;
        memcpy(&vector, from, sizeof vector);
        return vector;
    }
#if defined(__AVX512BW__) // GCC would take four instructions
    return (GroupedWeights)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__AVX2__)
    return (GroupedWeights)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else
    HalfVecI8 bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, VecI16);
#endif
}

// 0, 1, … kLanes - 1.
static inline VecI32 lane_numbers() {
    VecI32 numbers = {};
    for (int i = 0; i < kLanes; i++)
        numbers[i] = i;
    return numbers;
}

// GCC would read a vector from memory again for each of its uses, and reading bounds the products of few rows.
template <typename Vector> static inline void keep_in_register(Vector &vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#elif defined(__AVX2__)
    asm("" : "+x"(vector));
#else
    (void)vector;
#endif
}

static inline void store(float *to, VecF32 vector) { memcpy(to, &vector, sizeof vector); }

static inline VecF32 add_products(VecF32 sum, float input, VecF32 weights) { return sum + weights * input; }

// In each 32-bit lane: sum + the products of a group of inputs and the weights there.
static inline VecI32 add_products(VecI32 sum, int32_t group, GroupedWeights weights) {
    VecI32 inputs = VecI32{} + group;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (VecI32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weights);
#elif defined(__AVX512VNNI__) // with AVX512VL, of narrower vectors
    return (VecI32)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)inputs, (__m256i)weights);
#elif defined(__AVXVNNI__) && !defined(__AVX512BW__)
    return (VecI32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)inputs, (__m256i)weights);
#elif defined(__AVX512BW__)
    return sum + (VecI32)_mm512_madd_epi16((__m512i)inputs, (__m512i)weights);
#elif defined(__AVX2__)
    return sum + (VecI32)_mm256_madd_epi16((__m256i)inputs, (__m256i)weights);
#else
    VecI32 pairs = (VecI32)weights;
    return sum + (inputs << 16 >> 16) * (pairs << 16 >> 16) + (inputs >> 16) * (pairs >> 16);
#endif
}

// The same for two BFloat16, whose products are added in float.
static inline VecF32 add_products(VecF32 sum, int32_t pair, PairedWeights weights) {
    VecI32 inputs = VecI32{} + pair;
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    return (VecF32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)inputs, (__m512bh)weights);
#else
    VecI32 pairs = (VecI32)weights, upper = VecI32{} + int32_t(0xffff0000);
    return sum + (VecF32)(inputs << 16) * (VecF32)(pairs << 16) + (VecF32)(inputs & upper) * (VecF32)(pairs & upper);
#endif
}

// The larger of each lane; b where one of them is NaN.
static inline VecF32 max(VecF32 a, VecF32 b) { return a > b ? a : b; }

static inline float reduce_sum(VecF32 vector) {
#if defined(__AVX512BW__) // GCC would add lane after lane
    return _mm512_reduce_add_ps((__m512)vector);
#elif defined(__AVX2__)
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128((__m256)vector), _mm256_extractf128_ps((__m256)vector, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
#else
    float sum = 0;
    for (int i = 0; i < kLanes; i++)
        sum += vector[i];
    return sum;
#endif
}

static inline VecF32 min(VecF32 a, VecF32 b) { return a < b ? a : b; }

// NaN or any of the others if a lane is NaN.
static inline float reduce_max(VecF32 vector) {
#if defined(__AVX512BW__)
    return _mm512_reduce_max_ps((__m512)vector);
#elif defined(__AVX2__)
    __m128 peaks = _mm_max_ps(_mm256_castps256_ps128((__m256)vector), _mm256_extractf128_ps((__m256)vector, 1));
    peaks = _mm_max_ps(peaks, _mm_movehl_ps(peaks, peaks));
    return _mm_cvtss_f32(_mm_max_ss(peaks, _mm_movehdup_ps(peaks)));
#else
    float peak = vector[0];
    for (int i = 1; i < kLanes; i++)
        peak = vector[i] > peak ? vector[i] : peak;
    return peak;
#endif
}

// e^x for x <= 0, to the last bits of a float: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
static inline VecF32 exp_nonpositive(VecF32 x) {
    const VecF32 lowest = VecF32{} - 87.0f;
    x = x < lowest ? lowest : x;
    VecI32 n = __builtin_convertvector(x * 1.44269504f - 0.5f, VecI32); // truncation is rounding here, for x <= 0
    VecF32 exponent = __builtin_convertvector(n, VecF32);
    VecF32 rest = x - exponent * 0.693359375f + exponent * 2.12194440e-4f;
    VecF32 sum = rest * 1.9875691e-4f + 1.3981999e-3f;
    sum = sum * rest + 8.3334519e-3f;
    sum = sum * rest + 4.1665795e-2f;
    sum = sum * rest + 1.6666665e-1f;
    sum = sum * rest + 5.0000001e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    VecI32 bits = (n + 127) << 23;
    VecF32 power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

// To the last bits of a float: a quotient of polynomials, as Eigen has it; beyond +-7.9 it is +-1. NaN stays NaN.
static inline VecF32 tanh(VecF32 x) {
    const VecF32 limit = VecF32{} + 7.90531110763549805f;
    x = x > limit ? limit : x;
    x = x < -limit ? -limit : x;
    VecF32 square = x * x;
    VecF32 above = square * -2.76076847742355e-16f + 2.00018790482477e-13f;
    above = above * square - 8.60467152213735e-11f;
    above = above * square + 5.12229709037114e-08f;
    above = above * square + 1.48572235717979e-05f;
    above = above * square + 6.37261928875436e-04f;
    above = above * square + 4.89352455891786e-03f;
    VecF32 below = square * 1.19825839466702e-06f + 1.18534705686654e-04f;
    below = below * square + 2.26843463243900e-03f;
    below = below * square + 4.89352518554385e-03f;
    return x * above / below;
}

static inline VecF32 sigmoid(VecF32 x) { return tanh(x * 0.5f) * 0.5f + 0.5f; }

} // namespace vanilla_transformer
