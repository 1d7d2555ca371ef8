/* Time look-ups by the shuffle instruction beside multiplications of 8-bit integers, one thread.

       gcc -O3 -march=native scripts/benchmark_lookup.c -o benchmark_lookup && ./benchmark_lookup

   One row of activations times K x N weights. Each way's results are compared with plain C first.
   The clock is the processor time; a number is the median of many rounds that take turns.
   AVX2 is needed, and AVX-512 VNNI for the second way, which is left out without. */

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { K = 768, N = 3072, ROUNDS = 201 };

static int8_t weights[N][K];          /* -2 to 1 */
static int8_t x8[K];                  /* 8-bit activations */
static uint8_t x2[K];                 /* 2-bit activations, 0 to 3 */
static int16_t x16[K];                /* x8 again, for the widening product */
static uint8_t xu[K];                 /* x8 + 128, for VNNI */
static int32_t row_sum[N];            /* of the weights, for the 128 and for the table's offset */
static uint8_t w_packed[N][K / 4];    /* 2-bit codes of weights, four to a byte */
static uint8_t x_packed[K / 4];
static uint8_t planes[2][K / 4][N / 2]; /* bits of 4 weights along K; columns n and n + 16 share */
static int32_t found[N], expected8[N], expected2[N];

static int32_t sum32(__m256i v)
{
    int32_t part[8], total = 0;
    _mm256_storeu_si256((__m256i *)part, v);
    for (int i = 0; i < 8; i++) total += part[i];
    return total;
}

/* 16 products per step: 8-bit weights widened to 16 bits, pmaddwd, as libraries for SSE2 and AVX2. */
static void widening(void)
{
    for (int n = 0; n < N; n++) {
        __m256i sum = _mm256_setzero_si256();
        for (int k = 0; k < K; k += 16) {
            __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((__m128i *)&weights[n][k]));
            __m256i x = _mm256_loadu_si256((__m256i *)&x16[k]);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
        }
        found[n] = sum32(sum);
    }
}

/* 32 products per instruction; x + 128 is unsigned, and 128 times the weights is subtracted. */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
static void vnni(void)
{
    for (int n = 0; n < N; n++) {
        __m256i sum = _mm256_setzero_si256();
        for (int k = 0; k < K; k += 32) {
            __m256i w = _mm256_loadu_si256((__m256i *)&weights[n][k]);
            sum = _mm256_dpbusd_epi32(sum, _mm256_loadu_si256((__m256i *)&xu[k]), w);
        }
        found[n] = sum32(sum) - 128 * row_sum[n];
    }
}
#endif

/* DeepGEMM: 2-bit activations. Both codes are the place of their product in a table of 16 bytes.
   The table has the product plus 6, so that bytes are unsigned; 4 look-ups stay below 256. */
static void products(void)
{
    uint8_t entries[16];
    for (int a = 0; a < 4; a++)
        for (int w = 0; w < 4; w++) entries[4 * a + w] = (uint8_t)(a * (w < 2 ? w : w - 4) + 6);
    __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((__m128i *)entries));
    __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12), zero = _mm256_setzero_si256();
    for (int n = 0; n < N; n++) {
        __m256i sum = zero;
        for (int k = 0; k < K / 4; k += 32) {
            __m256i w = _mm256_loadu_si256((__m256i *)&w_packed[n][k]);
            __m256i a = _mm256_loadu_si256((__m256i *)&x_packed[k]);
            /* Pairs of fields: w's 0 and a's 0 (moved up), and so on. */
            __m256i up = _mm256_slli_epi16(a, 2), down = _mm256_srli_epi16(a, 2);
            __m256i w2 = _mm256_srli_epi16(w, 2), w4 = _mm256_srli_epi16(w, 4);
            __m256i w6 = _mm256_srli_epi16(w, 6), a4 = _mm256_srli_epi16(a, 4);
            __m256i i0 = _mm256_or_si256(_mm256_and_si256(w, low), _mm256_and_si256(up, high));
            __m256i i1 = _mm256_or_si256(_mm256_and_si256(w2, low), _mm256_and_si256(a, high));
            __m256i i2 = _mm256_or_si256(_mm256_and_si256(w4, low), _mm256_and_si256(down, high));
            __m256i i3 = _mm256_or_si256(_mm256_and_si256(w6, low), _mm256_and_si256(a4, high));
            __m256i p = _mm256_add_epi8(
                _mm256_add_epi8(_mm256_shuffle_epi8(table, i0), _mm256_shuffle_epi8(table, i1)),
                _mm256_add_epi8(_mm256_shuffle_epi8(table, i2), _mm256_shuffle_epi8(table, i3)));
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(p, zero));
        }
        found[n] = sum32(sum) - 6 * K; /* sums of 64 bits that are small */
    }
}

/* T-MAC, exactly: for 4 activations of 8 bits the 16 sums, 16 bits each, as two tables of bytes.
   One look-up for 32 columns and one bit of the weights. */
static void bit_planes(void)
{
    static uint8_t lows[K / 4][16], highs[K / 4][16];
    for (int g = 0; g < K / 4; g++)
        for (int i = 0; i < 16; i++) {
            int sum = 0;
            for (int j = 0; j < 4; j++) sum += (i >> j & 1) * x8[4 * g + j];
            lows[g][i] = (uint8_t)sum;
            highs[g][i] = (uint8_t)(sum >> 8);
        }
    __m256i nibble = _mm256_set1_epi8(15);
    for (int n = 0; n < N; n += 32) {
        int32_t total[32] = {0};
        for (int start = 0; start < K / 4; start += 32) { /* 32 groups: within 16 bits */
            __m256i sums[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                                  {_mm256_setzero_si256(), _mm256_setzero_si256()}};
            for (int g = start; g < start + 32; g++) {
                __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((__m128i *)lows[g]));
                __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((__m128i *)highs[g]));
                for (int bit = 0; bit < 2; bit++) {
                    __m128i both = _mm_loadu_si128((__m128i *)&planes[bit][g][n / 2]);
                    __m256i i = _mm256_set_m128i(_mm_srli_epi16(both, 4), both);
                    i = _mm256_and_si256(i, nibble);
                    __m256i l = _mm256_shuffle_epi8(low, i), h = _mm256_shuffle_epi8(high, i);
                    sums[bit][0] = _mm256_add_epi16(sums[bit][0], _mm256_unpacklo_epi8(l, h));
                    sums[bit][1] = _mm256_add_epi16(sums[bit][1], _mm256_unpackhi_epi8(l, h));
                }
            }
            for (int bit = 0; bit < 2; bit++)
                for (int part = 0; part < 2; part++) {
                    int16_t some[16];
                    _mm256_storeu_si256((__m256i *)some, sums[bit][part]);
                    for (int j = 0; j < 16; j++) /* the order of unpack in two lanes */
                        total[(j / 8) * 16 + part * 8 + j % 8] += some[j] * (bit ? -2 : 1);
                }
        }
        memcpy(&found[n], total, sizeof total);
    }
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void)
{
    for (int k = 0; k < K; k++) {
        x8[k] = (int8_t)(rand() % 256 - 128);
        x2[k] = (uint8_t)(rand() % 4);
        x16[k] = x8[k];
        xu[k] = (uint8_t)(x8[k] + 128);
        x_packed[k % (K / 4)] |= (uint8_t)(x2[k] << 2 * (k / (K / 4)));
    }
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            int w = rand() % 4 - 2, code = w & 3;
            weights[n][k] = (int8_t)w;
            row_sum[n] += w;
            expected8[n] += w * x8[k];
            expected2[n] += w * x2[k];
            w_packed[n][k % (K / 4)] |= (uint8_t)(code << 2 * (k / (K / 4)));
            for (int bit = 0; bit < 2; bit++)
                planes[bit][k / 4][n / 32 * 16 + n % 16] |=
                    (uint8_t)((code >> bit & 1) << (k % 4) << (n % 32 >= 16 ? 4 : 0));
        }
    struct {
        const char *name;
        void (*run)(void);
        const int32_t *expected;
        double times[ROUNDS];
    } static ways[] = {
        {"8-bit weights, widened (pmaddwd)", widening, expected8, {0}},
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
        {"8-bit weights, VNNI (vpdpbusd)", vnni, expected8, {0}},
#endif
        {"2-bit products by shuffle (DeepGEMM)", products, expected2, {0}},
        {"2-bit weights, 8-bit activations by shuffle (T-MAC)", bit_planes, expected8, {0}},
    };
    int count = sizeof ways / sizeof *ways;
    for (int i = 0; i < count; i++) {
        memset(found, 0, sizeof found);
        ways[i].run();
        if (memcmp(found, ways[i].expected, sizeof found)) {
            printf("wrong: %s\n", ways[i].name);
            return 1;
        }
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < count; i++) {
            double begin = seconds();
            ways[i].run();
            ways[i].times[round] = seconds() - begin;
        }
    printf("| one row, K = %d, N = %d, in C | us | ps per product | speed |\n", K, N);
    printf("| --- | ---: | ---: | ---: |\n");
    double first = 0;
    for (int i = 0; i < count; i++) {
        qsort(ways[i].times, ROUNDS, sizeof(double), by_size);
        double median = ways[i].times[ROUNDS / 2];
        first = i ? first : median;
        printf("| %s | %.0f | %.1f | %.2f |\n", ways[i].name, 1e6 * median,
               1e12 * median / K / N, first / median);
    }
    return 0;
}
