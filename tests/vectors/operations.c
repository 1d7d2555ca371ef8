/* Products of E4M3FN, quantization and LayerNorm, checked with the headers of `golden text`.
 *
 *   cc -I VECTORS operations.c -lm; ./a.out RESULTS
 *
 * VECTORS is the folder that golden text --form c wrote; RESULTS gets a file of words for each
 * result. With -DTRUNCATE it has a bug: float32 is cut off to bfloat16. With -DRECIPROCAL it has
 * another: it multiplies by the reciprocal of the scale.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "operator/gemm-ties/case.h"
#include "operator/gemm-scale-vectors/case.h"
#include "operator/quantize-e4m3fn-quotients/case.h"
#include "operator/quantize-dynamic-e4m3-rows/case.h"
#include "operator/layer_norm-traps/case.h"

static float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static uint16_t bfloat16_of(float x) {
    uint32_t bits = bits_of(x);
    if (x != x) return 0x7FC0;
#ifdef TRUNCATE
    return bits >> 16;
#else
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
#endif
}

/* From double at once: by way of float32, rounded to odd, as rounding twice would be wrong. */
static uint16_t bfloat16_of_double(double x) {
    float y = (float)x;
    uint32_t bits = bits_of(y);
    if (x != x || isinf(y)) return bfloat16_of(y);
    if ((double)y != x) {
        if (fabs((double)y) > fabs(x)) bits--;  /* toward zero */
        bits |= 1;
    }
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

/* In units of 2^-9. */
static int64_t decode(uint8_t code) {
    int exponent = code >> 3 & 15, mantissa = code & 7;
    int64_t magnitude = exponent ? (int64_t)(8 + mantissa) << (exponent - 1) : mantissa;
    return code & 0x80 ? -magnitude : magnitude;
}

static uint8_t encode(float x) {
    uint8_t sign = signbit(x) ? 0x80 : 0, code;
    double magnitude = fabs((double)x);
    if (x != x) return sign | 0x7F;
    for (code = 0; code < 0x7E; code++) { /* the middle to the next code; a tie goes to the even */
        double middle = (double)(decode(code) + decode(code + 1)) / 2 / 512;
        if (magnitude < middle || (magnitude == middle && code % 2 == 0)) break;
    }
    return sign | code;
}

static FILE *result(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.txt", folder, name);
    FILE *file = fopen(path, "w");
    if (!file) { perror(path); exit(2); }
    return file;
}

static int wrong_sums = 0;

#define GEMM(name, path, A_SCALE, B_SCALE, BIAS) \
static void name(const char *folder) { \
    FILE *sums = result(folder, path "/sum"), *products = result(folder, path "/product"); \
    FILE *results = result(folder, path "/result"); \
    for (int m = 0; m < name##_a_rows; m++) \
        for (int n = 0; n < name##_b_columns; n++) { \
            int64_t total = 0; \
            for (int k = 0; k < name##_a_columns; k++) \
                total += decode(name##_a[m * name##_a_columns + k].code) \
                    * decode(name##_b[k * name##_b_columns + n].code); \
            wrong_sums += total != (int64_t)name##_sum_exact[m * name##_b_columns + n].exact; \
            float sum = (float)((double)total / 262144); /* below 2^53: rounded once */ \
            float scale = float_of(name##_a_scale[A_SCALE].bits) \
                * float_of(name##_b_scale[B_SCALE].bits); \
            float product = sum * scale; \
            BIAS \
            fprintf(sums, "%08x\n", (unsigned)bits_of(sum)); \
            fprintf(products, "%08x\n", (unsigned)bits_of(product)); \
            fprintf(results, "%04x\n", (unsigned)bfloat16_of(product)); \
        } \
    fclose(sums); fclose(products); fclose(results); \
}

GEMM(operator_gemm_ties, "operator/gemm-ties", 0, 0, )
GEMM(operator_gemm_scale_vectors, "operator/gemm-scale-vectors", m, n,
     product += float_of(operator_gemm_scale_vectors_bias[n].bits);)

static float quotient(float x, float scale) {
#ifdef RECIPROCAL
    return x * (1 / scale);
#else
    return x / scale;
#endif
}

static void quantize(const char *folder) {
    FILE *codes = result(folder, "operator/quantize-e4m3fn-quotients/codes");
    for (int i = 0; i < operator_quantize_e4m3fn_quotients_x_count; i++) {
        float x = float_of(operator_quantize_e4m3fn_quotients_x[i].bits);
        float scale = float_of(operator_quantize_e4m3fn_quotients_scale[0].bits);
        fprintf(codes, "%02x\n", encode(quotient(x, scale)));
    }
    fclose(codes);
    codes = result(folder, "operator/quantize-dynamic-e4m3-rows/codes");
    for (int i = 0; i < operator_quantize_dynamic_e4m3_rows_x_count; i++) {
        int row = i / operator_quantize_dynamic_e4m3_rows_x_columns;
        uint32_t bits = operator_quantize_dynamic_e4m3_rows_x[i].bits;
        float scale = float_of(operator_quantize_dynamic_e4m3_rows_scale[row].bits);
        fprintf(codes, "%02x\n", encode(quotient(float_of(bits << 16), scale)));
    }
    fclose(codes);
}

#define N operator_layer_norm_traps_x_columns
static void layer_norm(const char *folder) {
    FILE *results = result(folder, "operator/layer_norm-traps/result");
    for (int row = 0; row < operator_layer_norm_traps_x_rows; row++) {
        double x[N], mean = 0, variance = 0;
        for (int i = 0; i < N; i++) {
            uint32_t bits = operator_layer_norm_traps_x[row * N + i].bits;
            x[i] = float_of(bits << 16);
            mean += x[i];
        }
        mean /= N;
        for (int i = 0; i < N; i++) variance += (x[i] - mean) * (x[i] - mean);
        variance /= N;
        for (int i = 0; i < N; i++) {
            double weight = float_of(operator_layer_norm_traps_weight[i].bits);
            double bias = float_of(operator_layer_norm_traps_bias[i].bits);
            double y = (x[i] - mean) / sqrt(variance + 1e-12) * weight + bias;
            fprintf(results, "%04x\n", (unsigned)bfloat16_of_double(y));
        }
    }
    fclose(results);
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    operator_gemm_ties(arguments[1]);
    operator_gemm_scale_vectors(arguments[1]);
    quantize(arguments[1]);
    layer_norm(arguments[1]);
    printf("%d exact sums are wrong\n", wrong_sums);
    return wrong_sums != 0;
}
