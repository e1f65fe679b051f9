// Dense bf16 products on Intel's matrix unit (AMX): sixteen rows times sixteen columns at a time.
//
// Batch invariance holds as in tile.h: an output element is one accumulator that walks the summed dimension in order,
// and the unit computes a row alike whatever the others hold. So it serves one row as well as sixty-four.
#pragma once

#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define NONET_MATRIX_UNIT 1

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace nonet {

constexpr int kMatrixRows = 16, kMatrixSteps = 16;  // rows of a tile, units in one of its rows

// The kernel grants the unit's large registers to a process that asks; without, the vector code does.
inline bool has_matrix_unit() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

template <int T>
NONET_INLINE void tile_load(const void* from, ptrdiff_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(T) : "memory");
}

template <int T>
NONET_INLINE void tile_store(void* to, ptrdiff_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(T) : "memory");
}

template <int Sum, int Left, int Right>
NONET_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// R tiles of rows (the last may be short) times P panels; sums in tiles 0 to R P - 1, then left and right operands.
template <int R, int P>
class MatrixBlock {
 public:
  explicit MatrixBlock(int rows) {
    TileShapes shapes;
    for (int t = 0; t < R * P + R + P; ++t) {
      shapes.row_bytes[t] = 64;
      shapes.rows[t] = kMatrixRows;
    }
    const int last = rows - (R - 1) * kMatrixRows;
    for (int p = 0; p < P; ++p) shapes.rows[(R - 1) * P + p] = (uint8_t)last;
    shapes.rows[R * P + R - 1] = (uint8_t)last;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }

  // `steps` is a multiple of kMatrixSteps; other arguments as those of a StreamTile, strides in units.
  void run(const uint32_t* left, ptrdiff_t left_stride, const uint32_t* right, ptrdiff_t right_stride, int steps,
           const float* start, float* out, ptrdiff_t out_stride) const {
    sums<0>([&](auto number, int r, int p) {
      if (start)
        tile_load<number.value>(start + p * kLanes, 0);  // the same row for all
      else
        tile_load<number.value>(out + r * kMatrixRows * out_stride + p * kLanes, out_stride * 4);
    });
    for (int k = 0; k < steps; k += kMatrixSteps, right += kMatrixSteps * right_stride) {
      tile_load<R * P>(left + k, left_stride * 4);
      if constexpr (R == 2) tile_load<R * P + 1>(left + kMatrixRows * left_stride + k, left_stride * 4);
      multiply<0>(right, right_stride);
    }
    sums<0>([&](auto number, int r, int p) {
      tile_store<number.value>(out + r * kMatrixRows * out_stride + p * kLanes, out_stride * 4);
    });
  }

 private:
  template <int T>
  struct Number {
    static constexpr int value = T;
  };

  template <int T, class Act>
  static NONET_INLINE void sums(Act act) {
    if constexpr (T < R * P) {
      act(Number<T>{}, T / P, T % P);
      sums<T + 1>(act);
    }
  }

  template <int Panel>
  static NONET_INLINE void multiply(const uint32_t* right, ptrdiff_t right_stride) {
    if constexpr (Panel < P) {
      constexpr int kRight = R * P + R + Panel;
      tile_load<kRight>(right + Panel * kLanes, right_stride * 4);
      tile_multiply<Panel, R * P, kRight>();
      if constexpr (R == 2) tile_multiply<P + Panel, R * P + 1, kRight>();
      multiply<Panel + 1>(right, right_stride);
    }
  }
};

// Rows times a group of panels, [steps][panels][16] units.
inline void matrix_block(const uint32_t* left, ptrdiff_t left_stride, int rows, const uint32_t* right, int panels,
                         int steps, const float* start, float* out, ptrdiff_t out_stride) {
  const ptrdiff_t right_stride = panels * kLanes;
  for (int r = 0; r < rows; r += 2 * kMatrixRows) {
    const int count = std::min(2 * kMatrixRows, rows - r);
    const uint32_t* some = left + r * left_stride;
    float* to = out + r * out_stride;
    const auto run = [&](const auto& block, int p) {
      block.run(some, left_stride, right + p * kLanes, right_stride, steps, start ? start + p * kLanes : nullptr,
                to + p * kLanes, out_stride);
    };
    if (count <= kMatrixRows) {
      if (panels == 3) run(MatrixBlock<1, 3>(count), 0);
      if (panels == 2) run(MatrixBlock<1, 2>(count), 0);
      if (panels == 1) run(MatrixBlock<1, 1>(count), 0);
    } else {
      if (panels >= 2) run(MatrixBlock<2, 2>(count), 0);
      if (panels != 2) run(MatrixBlock<2, 1>(count), panels - 1);
    }
  }
  asm volatile("tilerelease");
}

}  // namespace nonet
#endif
