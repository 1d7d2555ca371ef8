/* Products of E4M3FN or INT8 codes, one way right and each other with a fault.
 *
 *     gemm FAULT M K N < codes > sums        M*K codes, then K*N codes, one byte each;
 *                                            M*N float32 sums
 *
 * The right sum is exact and rounded once to float32: these operands are small enough for
 * double. scripts/plant_faults.py compiles and runs it.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *fault;

static int is(const char *name) { return strcmp(fault, name) == 0; }

static float value(uint8_t code)
{
    if (strncmp(fault, "int8", 4) == 0) return (int8_t)code;
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float x = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
    if (is("subnormal_operands_flushed") && exponent == 0) x = 0;
    if ((code & 0x7F) == 0x7F) x = is("nan_is_480") ? 480 : NAN;
    return code & 0x80 ? -x : x;
}

static float sum(const uint8_t *a, const uint8_t *b, int m, int k, int n, int row, int column)
{
#define A(i) value(a[row * k + (i)])
#define B(i) value(is("b_read_by_columns") ? b[column * k + (i)] : b[(i) * n + column])
    if (is("float_in_order")) {
        float total = 0;
        for (int i = 0; i < k; i++) total += A(i) * B(i);
        return total;
    }
    if (is("float_in_8_lanes")) { /* as a vectorized loop: 8 sums, added at the end */
        float lane[8] = {0};
        for (int i = 0; i < k; i++) lane[i % 8] += A(i) * B(i);
        for (int width = 4; width; width /= 2)
            for (int i = 0; i < width; i++) lane[i] += lane[i + width];
        return lane[0];
    }
    if (is("blocks_of_32")) { /* exact in a block; blocks are added in float */
        float total = 0;
        for (int start = 0; start < k; start += 32) {
            double block = 0;
            for (int i = start; i < k && i < start + 32; i++) block += (double)A(i) * B(i);
            total += (float)block;
        }
        return total;
    }
    if (is("int8_in_16_bits")) { /* an accumulator of 16 bits that saturates */
        int total = 0;
        for (int i = 0; i < k; i++) {
            total += (int)(A(i) * B(i));
            total = total > 32767 ? 32767 : total < -32768 ? -32768 : total;
        }
        return total;
    }
    double total = 0;
    int last = is("last_k_left_out") ? k - 1 : k;
    for (int i = 0; i < last; i++) total += (double)A(i) * B(i);
    (void)m;
    return (float)total;
}

int main(int count, char **words)
{
    if (count != 5) return 2;
    fault = words[1];
    int m = atoi(words[2]), k = atoi(words[3]), n = atoi(words[4]);
    uint8_t *a = malloc((size_t)m * k), *b = malloc((size_t)k * n);
    if (fread(a, 1, (size_t)m * k, stdin) != (size_t)m * k) return 2;
    if (fread(b, 1, (size_t)k * n, stdin) != (size_t)k * n) return 2;
    for (int row = 0; row < m; row++)
        for (int column = 0; column < n; column++) {
            float x = sum(a, b, m, k, n, row, column) + 0.0f;
            fwrite(&x, 4, 1, stdout);
        }
    return 0;
}
