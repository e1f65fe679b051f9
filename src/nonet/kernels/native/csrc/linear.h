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
  int32_t scratch_bytes;  // of each thread
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

extern const Kernel kLinearDense, kEmbedDense;

// out = softcap * tanh(out / softcap) over a [rows, columns] corner.
void soft_cap(float* out, int64_t stride, int rows, int columns, float softcap);

// How the rows and columns of a product are cut into work items; the cut never changes a result. Columns come in groups
// of panels that a kernel takes at once. With one chunk of rows, each thread first takes one large share (long streams
// of weights), then smaller ones even out the end.
class Cut {
 public:
  struct Item {
    int first_row, rows;
    int first_panel, last_panel;
  };

  Cut(int rows, int panels, int panels_per_group, int threads, int max_rows);
  int count() const { return row_chunks_ * shares_; }
  int row_chunks() const { return row_chunks_; }
  Item item(int number) const;

 private:
  int rows_, panels_, panels_per_group_, threads_;
  int row_chunks_, rows_per_chunk_;
  int groups_;
  int shares_;  // of the columns
  int large_;   // groups in each of the first `threads_` shares; 0 when all shares are alike
};

}  // namespace nonet
