// Operations on one row at a time: norms, gating, rotation, gathering.
#pragma once

#include "team.h"

namespace nonet {

struct NormArgs {
  const float* x;       // [rows, columns]
  float* residual;      // [rows, columns], gets x added first; null for a plain norm
  const float* weight;  // [columns]
  float* out;
  Rows rows;
  int32_t columns;
  float eps;
};

struct GatedArgs {
  const float* gate_up;  // [rows, 2 columns]
  float* out;            // [rows, columns]
  Rows rows;
  int32_t columns;
  int32_t gate;  // Gate
};

struct GatherArgs {
  const float* x;
  const int32_t* indices;  // [rows]
  float* out;              // [rows, columns]
  Rows rows;
  int32_t columns;
};

struct RopeArgs {
  float* qkv;              // [rows, (heads + 2 kv_heads) * dim]
  float* q;                // [rows, heads * dim]
  const float* cos_sin;    // [positions, dim]: dim / 2 cosines, then as many sines
  const float* q_norm;     // [dim] or null
  const float* k_norm;     // [dim] or null
  void* keys;
  void* values;
  void* key_scales;  // of codes, bf16 [blocks, kv_heads, block_size]
  void* value_scales;
  const int32_t* positions;
  const int32_t* slots;
  Rows rows;
  int32_t heads, kv_heads, dim, block_size;
  int32_t element;  // of what is multiplied
  int32_t storage;  // of the cache
  float eps;
};

extern const Kernel kNorm, kGated, kGatherRows, kRopeStore;

}  // namespace nonet
