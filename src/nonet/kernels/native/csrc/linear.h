// A linear layer's weight and the operations on it, dense.
#pragma once

#include "team.h"

namespace nonet {

// Weight [N, K] as panels of 16 rows: [ceil(N / 16)][steps][16] units, a unit holding one float32 or two bf16 that are
// neighbours along K. Rows past N and a bf16 number past an odd K are zero. One row of activations streams it linearly.
struct DenseWeight {
  const uint32_t* units;
  const float* bias;  // [panels * 16], zeros where the layer has none
  int64_t columns;    // N
  int64_t depth;      // K
  int64_t steps;      // units along K
  int32_t element;    // Element
};

struct LinearArgs {
  const float* x;  // [rows, K]
  float* out;      // [rows, N]
  const void* weight;
  Rows rows;
  float softcap;  // 0: none; else out = softcap * tanh(out / softcap)
};

struct EmbedArgs {
  const int32_t* token_ids;
  float* out;  // [rows, K]
  const void* weight;
  Rows rows;
  float scale;
};

void linear_dense(const void* args, Context& context);
void embed_dense(const void* args, Context& context);

// out = softcap * tanh(out / softcap) over a [rows, columns] corner.
void soft_cap(float* out, int64_t stride, int rows, int columns, float softcap);

// How the rows and columns of a product are cut into work items. The cut never changes a result.
struct Cut {
  int row_chunks, rows_per_chunk;
  int column_chunks, panels_per_chunk;

  Cut(int rows, int panels, int panel_group, int threads, int max_rows);
};

}  // namespace nonet
