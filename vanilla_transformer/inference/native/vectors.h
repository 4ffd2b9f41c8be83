// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the machine's: SSE, AVX2, AVX-512 or NEON, by the types that GCC and clang have for them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(2 * LANES)));

static inline Lanes load(const float *from) {
    Lanes lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline Shorts load(const int8_t *from) {
#if defined(__AVX512BW__) // GCC would take four steps
    return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__AVX2__)
    return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#endif
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Shorts);
}

// sum + the products of each pair of 16 bits.
static inline Whole add_pairs(Whole sum, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (Whole)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (Whole)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (Whole)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    Whole x = (Whole)a, y = (Whole)b; // the lower half of each, and the upper one
    return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

static inline void store(float *to, Lanes lanes) { memcpy(to, &lanes, sizeof lanes); }

static inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

static inline float sum(Lanes lanes) {
    float total = 0;
    for (int i = 0; i < LANES; i++)
        total += lanes[i];
    return total;
}

static inline float largest(Lanes lanes) {
    float most = lanes[0];
    for (int i = 1; i < LANES; i++)
        most = lanes[i] > most ? lanes[i] : most;
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
