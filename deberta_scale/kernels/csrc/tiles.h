// Tiles, and what is done with them: products, packing, turning. Everything is padded to whole strips with zeros.
//
// T is the type of the operands, float or BFloat16. Products are summed up in float.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace deberta_scale {

using c10::BFloat16;
using Vector = at::vec::Vectorized<float>;

constexpr int64_t kLanes = 16;             // floats in a vector
constexpr int64_t kStrip = 32;             // rows of one product: with its columns in fp32 it fits into L1
constexpr int64_t kTile = 128;             // queries, and keys, of a tile of scores
constexpr int64_t kPanel = kTile + kStrip;  // columns, and depth, of one product at most
constexpr int64_t kTileStride = kTile + kLanes;  // no power of two, so that the rows of a tile lie in different sets

static_assert(Vector::size() == kLanes, "the attention kernel is compiled for AVX-512");

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Zeroed memory on a boundary of a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const size_t bytes = round_up(std::max<int64_t>(size, 1) * sizeof(T), 64);
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  T* at(int64_t offset) { return data_.get() + offset; }
  const T* at(int64_t offset) const { return data_.get() + offset; }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T[], Free> data_;
};

// How many rows of the right factor of a product lie interleaved: the hardware multiplies pairs of BFloat16.
//
//   rows of the factor:    a b c        packed:    a A b B c C
//                          A B C
template <typename T>
constexpr int64_t kInterleaved = sizeof(T) == 2 ? 2 : 1;

// C [rows, columns] = A [rows, depth] B [depth, columns], or += when `add`. B is packed; its stride counts columns.
// Panels keep the number of different shapes small: for each one the library generates code once.
template <typename T>
void multiply(
    int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, float* c,
    int64_t c_stride, bool add) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int64_t width = std::min(kPanel, columns - column);
    for (int64_t k = 0; k < depth; k += kPanel) {
      at::native::cpublas::brgemm(
          rows, width, std::min(kPanel, depth - k), a_stride, b_stride, c_stride, add || k > 0, a + k,
          b + k * b_stride + column * kInterleaved<T>, c + column, kInterleaved<T> == 2);
    }
  }
}

// To be called by each thread after its last product: the hardware's tiles are handed back.
template <typename T>
void release_hardware() {
  at::native::cpublas::brgemm_release(kInterleaved<T> == 2);
}

// Sixteen floats as BFloat16, rounded to the nearest, and back.
inline __m256i to_bfloat16(__m512 value) {
#ifdef __AVX512BF16__
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
#else
  return at::vec::cvtfp32_bf16(value);
#endif
}

inline __m512 from_bfloat16(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void store(float* target, Vector value) { value.store(target); }

inline void store(BFloat16* target, Vector value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), to_bfloat16(value));
}

inline Vector load(const float* source) { return Vector::loadu(source); }

inline Vector load(const BFloat16* source) {
  return Vector(from_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
}

// Rows of a tensor → rows of `padded_width`, zeros behind each and in further rows up to `padded_rows`.
template <typename T>
void load_rows(
    const T* source, int64_t source_stride, int64_t rows, int64_t width, T* target, int64_t padded_rows,
    int64_t padded_width) {
  for (int64_t row = 0; row < padded_rows; ++row) {
    const int64_t filled = row < rows ? width : 0;
    T* out = target + row * padded_width;
    if (filled) std::memcpy(static_cast<void*>(out), source + row * source_stride, filled * sizeof(T));
    std::memset(static_cast<void*>(out + filled), 0, (padded_width - filled) * sizeof(T));
  }
}

// Rows [rows, width] → columns of a right factor [width, rows], packed with `stride` columns.
template <typename T>
void pack_columns(const T* source, int64_t rows, int64_t width, T* target, int64_t stride) {
  // two interleaved BFloat16 are moved as one float
  const int64_t floats = width / kInterleaved<T>;
  at::vec::transpose_mxn<float>(
      reinterpret_cast<const float*>(source), floats, reinterpret_cast<float*>(target), stride, static_cast<int>(rows),
      static_cast<int>(floats));
}

// Rows [rows, width] → rows of a right factor [rows, width], packed with the same stride. `rows` is even.
inline void pack_rows(const float* source, int64_t rows, int64_t width, int64_t stride, float* target) {
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(target + row * stride, source + row * stride, width * sizeof(float));
}

inline void pack_rows(const BFloat16* source, int64_t rows, int64_t width, int64_t stride, BFloat16* target) {
  for (int64_t row = 0; row < rows; row += 2) {
    const auto* upper = reinterpret_cast<const uint16_t*>(source + row * stride);
    const auto* lower = upper + stride;
    auto* pairs = reinterpret_cast<uint32_t*>(target + row * stride);
    for (int64_t k = 0; k < width; ++k) pairs[k] = upper[k] | static_cast<uint32_t>(lower[k]) << 16;
  }
}

// Rows [rows, columns] → [columns, rows]; both whole strips.
inline void transpose(
    const float* source, int64_t source_stride, float* target, int64_t target_stride, int64_t rows, int64_t columns) {
  at::vec::transpose_mxn<float>(
      source, source_stride, target, target_stride, static_cast<int>(rows), static_cast<int>(columns));
}

inline void transpose(
    const BFloat16* source, int64_t source_stride, BFloat16* target, int64_t target_stride, int64_t rows,
    int64_t columns) {
  for (int64_t row = 0; row < rows; row += kStrip)
    for (int64_t column = 0; column < columns; column += kStrip)
      at::vec::transpose_mxn<BFloat16, kStrip, kStrip>(
          source + row * source_stride + column, source_stride, target + column * target_stride + row, target_stride);
}

// Row `shift` places further on in a row of `total` elements, zeros around it.
template <typename T>
void spread_row(const T* source, int64_t width, int64_t shift, T* target, int64_t total) {
  std::memset(static_cast<void*>(target), 0, shift * sizeof(T));
  std::memcpy(static_cast<void*>(target + shift), source, width * sizeof(T));
  std::memset(static_cast<void*>(target + shift + width), 0, (total - shift - width) * sizeof(T));
}

}  // namespace deberta_scale
