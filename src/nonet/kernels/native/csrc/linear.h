// Linear layers: weights, arguments, and the cut of a product into work items.
#pragma once

#include "simd.h"
#include "team.h"

namespace nonet {

// Weight [N, K] as panels of 16 rows, kTilePanels panels interleaved (the last group may hold fewer):
// [groups][steps][panels][16] units, a unit holding one float32 or two bf16 that are neighbours along K. Rows past N
// and a bf16 number past an odd K are zero. Every tile, whatever its number of rows, reads one stream front to back.
struct DenseWeight {
  const uint32_t* units;
  const float* bias;  // [panels * 16], zeros where the layer has none
  int64_t columns;    // N
  int64_t depth;      // K
  int64_t steps;      // units along K
};

// Weight [N, K] as codes with a scale, and perhaps a minimum, for each group along K (kernels/groupwise.py). Panels of
// 16 rows, kGroupwisePanels interleaved as above; for each group and panel one record of `record_bytes`: codes, 16
// scales, 16 minimums.
// Codes of 8 bits: [group / 4][16][4]. Codes of 4 bits: [group / 8][16][4], where the low half of byte (s, n, k) is the
// code of step s and the high half that of step s + group / 8; a step is four neighbours along K.
struct GroupwiseWeight {
  const uint8_t* records;
  const float* bias;
  int64_t columns;
  int64_t depth;
  int32_t group;
  int32_t bits;
  int32_t zero;         // without minimums: w = scale * (code - zero)
  int32_t has_minimum;  // w = scale * code + minimum
  int32_t is_half;      // scales and minimums are float16, not float32
  int32_t record_bytes;
  int32_t by_token;  // activations in int8 share one scale over all of K, not over a group
};

enum class Gate : int32_t { kNone = 0, kSilu = 1, kGeluTanh = 2 };

struct LinearArgs {
  const float* x;  // [rows, K]; with a gate [rows, 2 K]: activation(first half) * second half is multiplied
  float* out;      // [rows, N]
  const void* weight;
  Rows rows;
  float softcap;  // 0: none; else out = softcap * tanh(out / softcap)
  Gate gate;
};

struct EmbedArgs {
  const int32_t* token_ids;
  float* out;  // [rows, K]
  const void* weight;
  Rows rows;
  float scale;
};

extern const Kernel kLinearFloat32, kLinearBfloat16;
extern const Kernel kLinearInt8;
extern const Kernel kLinearGroupwiseFloat32, kLinearGroupwiseBfloat16;
extern const Kernel kEmbedFloat32, kEmbedBfloat16, kEmbedGroupwise;

// What each thread needs at the end of its scratch, whatever the weight.
constexpr int64_t kProductScratchBytes = 128 << 10;

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
