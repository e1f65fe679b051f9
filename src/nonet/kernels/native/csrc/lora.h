// Additions of low rank to a linear layer, each row with the factors of its own slot (kernels/ops.py, LowRankFactors).
#pragma once

#include "simd.h"
#include "team.h"

namespace nonet {

constexpr int kMostParts = 4;

struct LoraArgs {
  const float* x;        // [rows, depth]
  float* out;            // [rows, columns], added to
  const void* first;     // [slots][parts * rank][depth]
  const void* second;    // [slots][rank][columns]
  const int32_t* slots;  // [rows]: index + 1, 0 for rows that stay as they are
  const int32_t* ranks;  // [slots][parts]: terms that are not filler; null where all may count
  Rows rows;
  int32_t depth;
  int32_t columns;
  int32_t rank;
  int32_t parts;
  int32_t ends[kMostParts];  // of the parts' columns
  int32_t element;           // of both factors
};

extern const Kernel kLora;

}  // namespace nonet
