// Dense tiles for linear layers: the right operand is one stream, rows of the left one are kDenseRowUnits apart.
#pragma once

#include <algorithm>

#include "dense_matrix.h"
#include "tile.h"

namespace nonet {

// Most steps of a block, and units between two rows: an odd number of cache lines, so that the rows of a tile do not
// fall into the same sets of the cache.
constexpr int kDenseRowUnits = 304;

// A stretch of `total` steps in equal blocks of whole `granule`s, none longer than kDenseRowUnits.
struct Blocks {
  int count;
  int steps;  // of each block but the last

  Blocks(int64_t total, int granule) {
    const int64_t granules = (total + granule - 1) / granule, most = kDenseRowUnits / granule;
    const int64_t wanted = std::max<int64_t>(1, (granules + most - 1) / most);
    steps = (int)((granules + wanted - 1) / wanted) * granule;
    count = steps == 0 ? 0 : (int)((total + steps - 1) / steps);
  }
};

// One row of x, `depth` long, as units; its blocks lie `block_stride` units apart.
template <Element E>
void round_dense_row(const float* x, int64_t depth, const Blocks& blocks, int64_t block_stride, uint32_t* left) {
  constexpr int kPerUnit = E == Element::kBfloat16 ? 2 : 1;
  for (int b = 0; b < blocks.count; ++b) {
    uint32_t* to = left + b * block_stride;
    const int64_t first = (int64_t)b * blocks.steps * kPerUnit;
    const int64_t count = std::min<int64_t>((int64_t)blocks.steps * kPerUnit, depth - first);
    const float* from = x + first;
    if constexpr (E == Element::kFloat32) {
      std::memcpy(to, from, sizeof(float) * count);
    } else {
      uint16_t* half = reinterpret_cast<uint16_t*>(to);
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(half + i, to_bf16(load_f32(from + i)));
      if (i < count) {
        u16x16 last = to_bf16(load_partial(from + i, (int)(count - i)));
        std::memcpy(half + i, &last, sizeof(uint16_t) * (count - i));
        if (count & 1) half[count] = 0;
      }
    }
  }
}

template <Element E, int R>
StreamTile dense_tile_of(int panels) {
  if constexpr (kTilePanels == 1) {
    return stream_tile<E, R, 1, kDenseRowUnits>;
  } else {
    return panels == 1   ? stream_tile<E, R, 1, kDenseRowUnits>
           : panels == 2 ? stream_tile<E, R, 2, kDenseRowUnits>
                         : stream_tile<E, R, kTilePanels, kDenseRowUnits>;
  }
}

template <Element E>
StreamTile dense_tile(int rows, int panels) {
  switch (rows) {
    case 1: return dense_tile_of<E, 1>(panels);
    case 2: return dense_tile_of<E, 2>(panels);
    case 3: return dense_tile_of<E, 3>(panels);
    case 4: return dense_tile_of<E, std::min(4, kTileRows)>(panels);
    case 5: return dense_tile_of<E, std::min(5, kTileRows)>(panels);
    case 6: return dense_tile_of<E, std::min(6, kTileRows)>(panels);
    case 7: return dense_tile_of<E, std::min(7, kTileRows)>(panels);
    default: return dense_tile_of<E, kTileRows>(panels);
  }
}

#if !defined(NONET_MATRIX_UNIT)
struct MatrixUnit {};
#endif

// All rows of a chunk times one block of a group of panels, [steps][panels][16] units.
template <Element E>
void multiply_block([[maybe_unused]] MatrixUnit& unit, const uint32_t* left, int rows, const uint32_t* right, int panels,
                    int steps, const float* start, float* out, ptrdiff_t out_stride) {
#if defined(NONET_MATRIX_UNIT)
  const int whole = steps / kMatrixSteps * kMatrixSteps;
  if (E == Element::kBfloat16 && whole > 0 && has_matrix_unit()) {
    matrix_block(unit, left, kDenseRowUnits, rows, right, panels, whole, start, out, out_stride);
    if (whole == steps) return;
    left += whole;
    right += (ptrdiff_t)whole * panels * kLanes;
    steps -= whole;
    start = nullptr;
  }
#endif
  for (int r = 0; r < rows; r += kTileRows)
    dense_tile<E>(std::min(kTileRows, rows - r), panels)(left + r * kDenseRowUnits, right, steps, start,
                                                         out + r * out_stride, out_stride);
}

}  // namespace nonet
