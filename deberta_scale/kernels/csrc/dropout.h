// Random numbers of dropout, sixteen at a time: the twin of kernels/dropout.py, bit for bit.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace deberta_scale {

struct Dropout {
  double probability;  // 0: nothing is dropped
  uint64_t seed;

  bool drops() const { return probability > 0.0; }
  float scale_of_kept() const { return static_cast<float>(1.0 / (1.0 - probability)); }
};

// Which probabilities of one row stay: of a query at a place, in a head, in a row of the batch.
class KeptInRow {
 public:
  KeptInRow(const Dropout& dropout, uint64_t number_of_row) {
    uint64_t key = (number_of_row + 1) * 0x9E3779B97F4A7C15ull + dropout.seed;
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9ull;
    key = (key ^ (key >> 27)) * 0x94D049BB133111EBull;
    key ^= key >> 31;
    low_ = _mm512_set1_epi32(static_cast<int>(key));
    high_ = _mm512_set1_epi32(static_cast<int>(key >> 32));
    const double threshold = std::min(dropout.probability * 4294967296.0, 4294967295.0);
    threshold_ = _mm512_set1_epi32(static_cast<int>(static_cast<uint32_t>(threshold)));
  }

  // One bit for each of the keys from `first_key` on.
  __mmask16 from(int64_t first_key) const {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i place = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(first_key)));
    __m512i number = _mm512_add_epi32(low_, _mm512_mullo_epi32(place, constant(0x9E3779B9u)));
    number = _mm512_xor_si512(number, _mm512_srli_epi32(number, 16));
    number = _mm512_xor_si512(_mm512_mullo_epi32(number, constant(0x85EBCA6Bu)), high_);
    number = _mm512_xor_si512(number, _mm512_srli_epi32(number, 13));
    number = _mm512_mullo_epi32(number, constant(0xC2B2AE35u));
    number = _mm512_xor_si512(number, _mm512_srli_epi32(number, 16));
    return _mm512_cmpge_epu32_mask(number, threshold_);
  }

 private:
  static __m512i constant(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
  __m512i low_, high_, threshold_;
};

}  // namespace deberta_scale
