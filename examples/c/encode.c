/* An encoder of float32 numbers to FP8 E4M3FN: to nearest, ties to even, saturating.
 *
 *     gcc -O2 -o encode encode.c && ./encode < vectors.txt > results.txt
 *
 * It reads a file of `bert-numpy golden vectors` and writes its own codes into the third column.
 * With -DTIES_AWAY it has a fault: ties are rounded away from zero.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

uint8_t encode(uint32_t bits)
{
    uint8_t sign = bits >> 31 << 7;
    uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return sign | 0x7F;  /* NaN */
    if (magnitude >= 0x43E00000) return sign | 0x7E; /* 448 and more, infinity too */

    int exponent = (int)(magnitude >> 23) - 127;
    uint32_t significand = (magnitude & 0x7FFFFF) | 0x800000;
    int subnormal = exponent < -6;
    int shift = subnormal ? 14 - exponent : 20; /* three bits stay behind the leading one */
    if (shift > 25) return sign;                /* less than half the smallest number */

    uint32_t kept = significand >> shift;
    uint32_t rest = significand & ((1u << shift) - 1), half = 1u << (shift - 1);
#ifdef TIES_AWAY
    if (rest >= half) kept++;
#else
    if (rest > half || (rest == half && kept & 1)) kept++;
#endif
    /* The leading one is in `kept`: it adds one to the exponent, as a carry does. */
    return sign | (subnormal ? kept : (exponent + 6) * 8 + kept);
}

int main(void)
{
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        unsigned input, expected;
        char *flags = strstr(line, "expected flags");
        if (line[0] == '#') {
            if (flags) strcpy(flags, "expected found\n");
            fputs(line, stdout);
        } else if (sscanf(line, "%x %x", &input, &expected) == 2) {
            printf("%08X %02X %02X\n", input, expected, encode(input));
        }
    }
    return 0;
}
