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
typedef int16_t HalfVecI16 __attribute__((vector_size(2 * kLanes)));
typedef int8_t HalfVecI8 __attribute__((vector_size(2 * kLanes)));

static inline VecF32 load(const float *from) {
    VecF32 vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

// 2 * kLanes weights, widened to 16 bits.
static inline VecI16 load(const int8_t *from) {
#if defined(__AVX512BW__) // GCC would take four instructions
    return (VecI16)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__AVX2__)
    return (VecI16)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#endif
    HalfVecI8 bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, VecI16);
}

static inline void store(float *to, VecF32 vector) { memcpy(to, &vector, sizeof vector); }

// sum + a[2i] b[2i] + a[2i + 1] b[2i + 1] in each 32-bit lane i.
static inline VecI32 add_pair_products(VecI32 sum, VecI16 a, VecI16 b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (VecI32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (VecI32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (VecI32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    VecI32 x = (VecI32)a, y = (VecI32)b;
    return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

// The larger of each lane; b where one of them is NaN.
static inline VecF32 max(VecF32 a, VecF32 b) { return a > b ? a : b; }

static inline float reduce_sum(VecF32 vector) {
    float sum = 0;
    for (int i = 0; i < kLanes; i++)
        sum += vector[i];
    return sum;
}

static inline float reduce_max(VecF32 vector) {
    float peak = vector[0];
    for (int i = 1; i < kLanes; i++)
        peak = vector[i] > peak ? vector[i] : peak;
    return peak;
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

} // namespace vanilla_transformer
