/* Encoders of float32 to E4M3FN, saturating, to nearest, ties to even: one right, each other
 * with a fault that has been, or could be, in a kernel or a hardware description.
 *
 *     encoders FAULT < floats > codes            float32 numbers to bytes
 *     encoders FAULT vectors < file > results    a file of `golden vectors`, line by line
 *
 * FAULT is a name below, or "none". scripts/plant_faults.py compiles and runs it.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *fault;

static int is(const char *name) { return strcmp(fault, name) == 0; }

static uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }

static float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* To nearest even bfloat16, as a float. */
static float through_bfloat16(float x)
{
    uint32_t u = bits_of(x);
    if (x != x) return x;
    return float_of((u + 0x7FFF + (u >> 16 & 1)) & 0xFFFF0000u);
}

static float through_float16(float x) { return (float)(_Float16)x; }

static uint8_t encode(float x)
{
    if (is("through_bfloat16")) x = through_bfloat16(x);
    if (is("through_float16")) x = through_float16(x);
    if (is("nan_to_largest") && !(x < 448)) x = 448;
    if (is("nan_to_lowest") && !(x > -448)) x = -448;
    if (is("clamp_by_fminf")) x = fmaxf(fminf(x, 448), -448); /* a signalling NaN stays */
    if (is("clamp_240")) x = x > 240 ? 240 : x < -240 ? -240 : x;
    if (is("clamp_416")) x = x > 416 ? 416 : x < -416 ? -416 : x;
    if (is("largest_from_256") && fabsf(x) >= 256) x = copysignf(448, x);
    if (is("largest_from_384") && fabsf(x) >= 384) x = copysignf(448, x);
    if (is("flush_small_inputs") && fabsf(x) < 0.015625f) x = copysignf(0, x);
    if (is("underflow_too_early") && fabsf(x) < 0.001953125f) x = copysignf(0, x);

    uint32_t u = bits_of(x), magnitude = u & 0x7FFFFFFF;
    uint32_t sign = u >> 31 << 7;
    if (is("sign_by_comparison")) sign = x < 0 ? 0x80 : 0;
    if (magnitude > 0x7F800000) return is("fnuz") ? 0x80 : sign | 0x7F;
    if (magnitude == 0) return is("fnuz") || is("zero_unsigned") ? 0 : sign;
    if (is("infinity_is_nan") && magnitude == 0x7F800000) return sign | 0x7F;
    if (is("overflow_is_nan") && magnitude > 0x43E80000) return sign | 0x7F;

    int exponent = (int)(magnitude >> 23) - 127;
    uint32_t significand = (magnitude & 0x7FFFFF) | 0x800000;
    if (exponent > 8) return sign | (is("fnuz") ? 0x7F : 0x7E);
    int shift = 20;
    int subnormal = exponent < -6;
    if (subnormal) shift += -6 - exponent;
    if (is("shift_of_five_bits"))
        shift &= 31; /* as a barrel shifter does that has five wires for it */
    else if (shift > 30)
        shift = 30;
    uint32_t kept = significand >> shift, half = shift ? 1u << (shift - 1) : 0;
    uint32_t rest = significand & ((1u << shift) - 1);
    int up = rest > half || (rest == half && (kept & 1));
    if (is("ties_away")) up = rest >= half;
    if (is("ties_toward_zero")) up = rest > half;
    if (is("truncation")) up = 0;
    if (is("no_sticky_bit")) up = (rest & half) && (kept & 1);
    if (is("sticky_of_two_bits")) up = (rest & half) && ((rest & half >> 1) || (kept & 1));
    if (is("subnormals_truncated") && subnormal) up = 0;
    if (is("carry_lost")) /* the mantissa wraps, the exponent stays */
        kept = (kept & 8) | ((kept + up) & 7);
    else if (is("carry_clamped")) /* the mantissa stays at its largest */
        kept += up && (kept & 7) != 7;
    else if (is("subnormal_carry_lost") && subnormal)
        kept += up && kept != 7;
    else
        kept += up;
    int bias = is("bias_8") || is("fnuz") ? 8 : is("bias_6") ? 6 : 7;
    /* The hidden bit in `kept` adds one to the exponent, and so does a carry. */
    uint32_t code = subnormal ? kept : ((uint32_t)(exponent + bias - 1) << 3) + kept;
    if (is("fnuz")) { /* encode 2 x, whose E4M3FN code is x's with a bias of 8 */
        if (exponent > 7) return sign | 0x7F;
        if (exponent < -7) { /* subnormal with this bias */
            shift = 20 - 7 - exponent;
            if (shift > 30) shift = 30;
            kept = significand >> shift, half = 1u << (shift - 1);
            rest = significand & ((1u << shift) - 1);
            code = kept + (rest > half || (rest == half && (kept & 1)));
        } else {
            kept = significand >> 20, rest = significand & 0xFFFFF;
            kept += rest > 0x80000 || (rest == 0x80000 && (kept & 1));
            code = ((uint32_t)(exponent + 7) << 3) + kept;
        }
        if (code > 0x7F) code = 0x7F;
        return code ? sign | code : 0;
    }
    if (code > 0x7E) code = 0x7E;
    if (is("flush_subnormal_codes") && code < 8) code = 0;
    if (is("zero_unsigned") && code == 0) sign = 0;
    return sign | code;
}

/* E5M2 by the upper byte of float16, saturating: a popular short cut. */
static uint8_t upper_byte_of_float16(float x)
{
    if (x == x) x = x > 57344 ? 57344 : x < -57344 ? -57344 : x;
    _Float16 half = (_Float16)x;
    uint16_t u;
    memcpy(&u, &half, 2);
    return x == x ? u >> 8 : 0x7F;
}

static uint8_t to_code(float x) { return is("upper_byte") ? upper_byte_of_float16(x) : encode(x); }

int main(int count, char **words)
{
    fault = count > 1 ? words[1] : "none";
    if (count > 2) {
        char line[256];
        while (fgets(line, sizeof line, stdin)) {
            if (line[0] == '#') {
                char *flags = strstr(line, "expected flags");
                if (flags) strcpy(flags, "expected found\n");
                fputs(line, stdout);
                continue;
            }
            uint32_t input, expected;
            if (sscanf(line, "%x %x", &input, &expected) != 2) return 2;
            printf("%08X %02X %02X\n", input, expected, to_code(float_of(input)));
        }
        return 0;
    }
    float x;
    while (fread(&x, 4, 1, stdin) == 1) putchar(to_code(x));
    return 0;
}
