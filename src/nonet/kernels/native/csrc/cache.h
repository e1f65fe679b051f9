// Layout of one layer's KV cache, chosen so that attention is the same register tile as a linear layer.
//
// Keys of a block and a head: [dim units][block_size], so that one load holds the same unit of 16 keys and 16 scores
// grow side by side without horizontal sums. Values: [key units][dim], so that one load holds 16 output columns.
// A unit is one float32, or two bf16 that are neighbours along the summed dimension: head dim for keys, key for values.
#pragma once

#include <cstdint>

#include "simd.h"

namespace nonet {

struct CacheShape {
  Element element;
  int kv_heads;
  int dim;
  int block_size;

  int per_unit() const { return element == Element::kBfloat16 ? 2 : 1; }
  // Keys and values of one head of one block take the same space.
  int64_t head_units() const { return (int64_t)block_size * dim / per_unit(); }
  template <class U>
  U* key_block(U* keys, int64_t block, int head) const {
    return keys + (block * kv_heads + head) * head_units();
  }
  template <class U>
  U* value_block(U* values, int64_t block, int head) const {
    return values + (block * kv_heads + head) * head_units();
  }
};

}  // namespace nonet
