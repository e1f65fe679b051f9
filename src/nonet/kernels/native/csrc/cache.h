// Layout of one layer's KV cache, chosen so that attention is the same register tile as a linear layer.
//
// Keys of a block and a head: [dim words][block_size], so that one load holds the same word of 16 keys and 16 scores
// grow side by side without horizontal sums. Values: [key words][dim], so that one load holds 16 output columns.
// A word is 32 bits: one float32, or two bf16 or four codes that are neighbours along the summed dimension: head dim
// for keys, key for values. Codes become units (simd.h) when they are loaded; their scales, bf16
// [blocks][heads][block_size], meet scores and softmax weights.
#pragma once

#include <cstdint>

#include "simd.h"

namespace nonet {

// How a number lies in the cache: as itself, or as a byte that is an 8-bit integer or an 8-bit float (codes.h).
enum class Storage : int32_t { kNumbers = 0, kInt8 = 1, kFloat8 = 2 };

constexpr int kCodesPerWord = 4;

struct CacheShape {
  Element element;  // of what is multiplied
  Storage storage;
  int kv_heads;
  int dim;
  int block_size;

  int per_word() const {
    if (storage != Storage::kNumbers) return kCodesPerWord;
    return element == Element::kBfloat16 ? 2 : 1;
  }
  // Keys and values of one head of one block take the same space.
  int64_t head_words() const { return (int64_t)block_size * dim / per_word(); }
  template <class U>
  U* key_block(U* keys, int64_t block, int head) const {
    return keys + (block * kv_heads + head) * head_words();
  }
  template <class U>
  U* value_block(U* values, int64_t block, int head) const {
    return values + (block * kv_heads + head) * head_words();
  }
  int64_t scale_index(int64_t block, int head, int offset) const {
    return (block * kv_heads + head) * block_size + offset;
  }
  // The byte, in a row of words, of one of the four codes of a column. For bf16 the words of 16 columns are mixed so
  // that widening every byte in its place makes units: [4 groups][2 pairs][4 columns][2 codes].
  int code_byte(int column, int part) const {
    if (element == Element::kFloat32) return column * kCodesPerWord + part;
    return column / 16 * 64 + column % 16 / 4 * 16 + part / 2 * 8 + column % 4 * 2 + part % 2;
  }
};

}  // namespace nonet
