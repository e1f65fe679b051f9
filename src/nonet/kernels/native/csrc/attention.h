// Paged attention over any mix of chunks and single tokens.
#pragma once

#include "team.h"

namespace nonet {

struct AttentionArgs {
  const float* q;  // [tokens, heads * dim]
  float* out;      // [tokens, heads * dim]
  const void* keys;
  const void* values;
  const void* key_scales;  // of codes, bf16 [blocks, kv_heads, block_size]
  const void* value_scales;
  const int32_t* query_start;  // [sequences + 1]
  const int32_t* kv_len;       // [sequences]
  const int32_t* block_table;  // [sequences, table_stride]
  int64_t table_stride;
  Rows sequences;
  int32_t heads, kv_heads, dim, block_size;
  int32_t element;  // of what is multiplied
  int32_t storage;  // of the cache
  int32_t window;   // 0: none
  float scale;
  float softcap;  // 0: none
};

extern const Kernel kAttention;

}  // namespace nonet
