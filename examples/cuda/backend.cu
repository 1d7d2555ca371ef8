// FP8 E4M3FN on a GPU: conversion by hand and by the hardware's instruction, quantizing, and a
// product. It reads a kit's inputs and writes its results beside them, as text:
//
//     nvcc -arch=sm_89 -o backend backend.cu && ./backend kit
//
// Where there is no GPU, the same functions run on the CPU, except for the instruction, in whose
// place cuda_fp8.h has one in software. Faults are planted by -DFLOAT16_FIRST (numbers are
// rounded to float16 before), -DRECIPROCAL (quantizing multiplies by 1/scale) and -DFLOAT_SUM
// (products are added in float32).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#define BOTH __host__ __device__

BOTH inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

BOTH inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// To nearest, ties to even, saturating.
BOTH uint8_t encode_by_hand(float x)
{
#ifdef FLOAT16_FIRST
    x = __half2float(__float2half_rn(x));
#endif
    uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFF;
    uint8_t sign = bits >> 31 << 7;
    if (magnitude > 0x7F800000) return sign | 0x7F;
    if (magnitude >= 0x43E00000) return sign | 0x7E;
    if (magnitude < 0x3C800000) {  // below 2^-6: adding 2^14 rounds to a multiple of 2^-9
        float rounded = float_of(magnitude) + 16384.0f;
        return sign | (bits_of(rounded) - bits_of(16384.0f));
    }
    uint32_t odd = magnitude >> 20 & 1;
    return sign | ((magnitude + 0x7FFFF + odd - (120u << 23)) >> 20);
}

BOTH uint8_t encode_by_hardware(float x)
{
#ifdef __CUDA_ARCH__
    uint16_t both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(0.0f), "f"(x));
    return both & 0xFF;
#else
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
#endif
}

BOTH uint8_t quantize(float x, float scale)
{
#ifdef RECIPROCAL
    return encode_by_hardware(x * (1.0f / scale));
#else
    return encode_by_hardware(x / scale);
#endif
}

BOTH float value_of(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float x = exponent ? float_of((exponent + 120) << 23 | mantissa << 20)
                       : mantissa * 0.001953125f;
    if ((code & 0x7F) == 0x7F) x = float_of(0x7FC00000);
    return code & 0x80 ? -x : x;
}

// One element of the product of (m, k) and (k, n) codes.
BOTH float sum_of(const uint8_t *a, const uint8_t *b, int k, int n, int row, int column)
{
#ifdef FLOAT_SUM
    float total = 0;
    for (int i = 0; i < k; i++) total += value_of(a[row * k + i]) * value_of(b[i * n + column]);
    return total;
#else
    double total = 0;  // exact for operands like these
    for (int i = 0; i < k; i++)
        total += (double)value_of(a[row * k + i]) * value_of(b[i * n + column]);
    return (float)total;
#endif
}

// The work of one thread: element i of one of the jobs.
struct Job {
    char what;  // 'h' by hand, 'c' by the instruction, 'q' quantize, 's' sum
    const float *x;
    float scale;
    const uint8_t *a, *b;
    int k, n;
};

BOTH uint32_t element(const Job &job, int i)
{
    switch (job.what) {
    case 'h': return encode_by_hand(job.x[i]);
    case 'c': return encode_by_hardware(job.x[i]);
    case 'q': return quantize(job.x[i], job.scale);
    default: return bits_of(sum_of(job.a, job.b, job.k, job.n, i / job.n, i % job.n));
    }
}

__global__ void kernel(Job job, uint32_t *result, int size)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) result[i] = element(job, i);
}

static bool on_gpu;

template <typename T> T *shared_memory(size_t size)
{
    T *data = nullptr;
    if (!on_gpu) return (T *)malloc(size * sizeof(T));
    if (cudaMallocManaged(&data, size * sizeof(T)) != cudaSuccess) exit(3);
    return data;
}

// The words of a file, in hexadecimal; lines that begin with # are comments.
static std::vector<uint32_t> read_words(const std::string &path)
{
    std::vector<uint32_t> words;
    FILE *file = fopen(path.c_str(), "r");
    if (!file) {
        fprintf(stderr, "%s: cannot be read\n", path.c_str());
        exit(2);
    }
    char line[512];
    while (fgets(line, sizeof line, file))
        if (line[0] != '#') words.push_back(strtoul(line, nullptr, 16));
    fclose(file);
    return words;
}

static float *read_floats(const std::string &path, size_t *size, bool bfloat16)
{
    std::vector<uint32_t> words = read_words(path);
    float *x = shared_memory<float>(words.size());
    for (size_t i = 0; i < words.size(); i++) x[i] = float_of(bfloat16 ? words[i] << 16 : words[i]);
    *size = words.size();
    return x;
}

static uint8_t *read_codes(const std::string &path, size_t *size)
{
    std::vector<uint32_t> words = read_words(path);
    uint8_t *codes = shared_memory<uint8_t>(words.size());
    for (size_t i = 0; i < words.size(); i++) codes[i] = words[i];
    *size = words.size();
    return codes;
}

static void run(const Job &job, int size, const std::string &path, int digits)
{
    uint32_t *result = shared_memory<uint32_t>(size);
    if (on_gpu) {
        kernel<<<(size + 255) / 256, 256>>>(job, result, size);
        cudaError_t error = cudaDeviceSynchronize();
        if (error != cudaSuccess) {
            fprintf(stderr, "%s: %s\n", path.c_str(), cudaGetErrorString(error));
            exit(3);
        }
    } else {
        for (int i = 0; i < size; i++) result[i] = element(job, i);
    }
    FILE *file = fopen(path.c_str(), "w");
    if (!file) exit(2);
    for (int i = 0; i < size; i++) fprintf(file, "%0*x\n", digits, result[i]);
    fclose(file);
}

int main(int count, char **words)
{
    if (count != 2) return 2;
    std::string kit = words[1];
    int devices = 0;
    on_gpu = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    cudaDeviceProp device;
    if (on_gpu) on_gpu = cudaGetDeviceProperties(&device, 0) == cudaSuccess;
    printf("on %s\n", on_gpu ? device.name : "the CPU");

    size_t size, k, n;
    Job job = {};
    std::string codec = kit + "/codec/E4M3FN/";
    job.what = 'h';
    job.x = read_floats(codec + "x.input.txt", &size, false);
    run(job, size, codec + "nearest-saturating.txt", 2);

    std::string gemm = kit + "/operator/gemm-square/";  // (8, 32) times (32, 32)
    job.what = 's';
    job.a = read_codes(gemm + "a.input.txt", &k);
    job.b = read_codes(gemm + "b.input.txt", &n);
    job.k = job.n = 32;
    run(job, 8 * 32, gemm + "sum.txt", 8);

    for (const char *name : {"quantize-e4m3", "quantize-e4m3fn-ties"}) {
        std::string folder = kit + "/operator/" + name + "/";
        bool bfloat16 = !strcmp(name, "quantize-e4m3");
        job.what = 'q';
        job.x = read_floats(folder + "x.input.txt", &size, bfloat16);
        job.scale = float_of(read_words(folder + "scale.input.txt")[0]);
        run(job, size, folder + "codes.txt", 2);
    }

    // The instruction alone, on all inputs of the codec's case: compared with the conversion by hand.
    std::vector<uint32_t> inputs = read_words(codec + "x.input.txt");
    job.what = 'c';
    job.x = read_floats(codec + "x.input.txt", &size, false);
    run(job, size, codec + "instruction.words", 2);
    std::vector<uint32_t> by_hand = read_words(codec + "nearest-saturating.txt");
    std::vector<uint32_t> by_instruction = read_words(codec + "instruction.words");
    int different = 0;
    for (size_t i = 0; i < size; i++) {
        bool nan = (by_hand[i] & 0x7F) == 0x7F && (by_instruction[i] & 0x7F) == 0x7F;
        different += by_hand[i] != by_instruction[i] && !nan;
    }
    printf("%d of %zu codes by hand differ from the instruction's\n", different, size);
    return 0;
}
