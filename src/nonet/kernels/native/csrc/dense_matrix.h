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

// The shapes of the registers, told to the unit when they change, and given back at the end: another user of the unit
// finds it as it likes.
class MatrixUnit {
 public:
  MatrixUnit() = default;
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;
  ~MatrixUnit() {
    if (key_ >= 0) asm volatile("tilerelease");
  }

  // R row tiles, of which the last has `last` rows, times P panels: R P sums first, then the left operands.
  template <int R, int P>
  void shape(int last) {
    const int key = last == kMatrixRows ? 0 : (R * 4 + P) * kMatrixRows + last;
    if (key == key_) return;
    key_ = key;
    TileShapes shapes;
    for (int t = 0; t < 8; ++t) {
      shapes.row_bytes[t] = 64;
      shapes.rows[t] = kMatrixRows;
    }
    for (int p = 0; p < P; ++p) shapes.rows[(R - 1) * P + p] = (uint8_t)last;
    constexpr int kLast = R * P + R - 1;
    shapes.rows[kLast] = (uint8_t)last;
    if (R == 2 && P == 1) shapes.rows[kLast + kSecondSet] = (uint8_t)last;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }

  static constexpr int kSecondSet = 3;  // from the operands of a step to those of the next, where both fit

 private:
  int key_ = -1;  // 0: all whole
};

// R tiles of rows (the last may be short) times P panels; sums in tiles 0 to R P - 1, then left and right operands.
//
// On the Xeon this was measured on, a load seems to wait until the product that reads its register is done. Where the
// operands of two steps fit, they take turns.
template <int R, int P>
class MatrixBlock {
 public:
  // `steps` is a multiple of kMatrixSteps; other arguments as those of a StreamTile, strides in units.
  static void run(MatrixUnit& unit, int rows, const uint32_t* left, ptrdiff_t left_stride, const uint32_t* right,
                  ptrdiff_t right_stride, int steps, const float* start, float* out, ptrdiff_t out_stride) {
    unit.shape<R, P>(rows - (R - 1) * kMatrixRows);
    sums<0>([&](auto number, int r, int p) {
      if (start)
        tile_load<number.value>(start + p * kLanes, 0);  // the same row for all
      else
        tile_load<number.value>(out + r * kMatrixRows * out_stride + p * kLanes, out_stride * 4);
    });
    int k = 0;
    const auto step = [&](auto first) {
      operands<first.value>(left + k, left_stride, right, right_stride);
      k += kMatrixSteps;
      right += kMatrixSteps * right_stride;
    };
    constexpr int kFirst = R * P;
    if constexpr (R == 2 && P == 1) {
      while (k + kMatrixSteps < steps) {
        step(Number<kFirst>{});
        step(Number<kFirst + MatrixUnit::kSecondSet>{});
      }
    }
    while (k < steps) step(Number<kFirst>{});
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

  // One step of products; its operands lie in the registers from `First` on.
  template <int First>
  static NONET_INLINE void operands(const uint32_t* left, ptrdiff_t left_stride, const uint32_t* right,
                                    ptrdiff_t right_stride) {
    tile_load<First + R>(right, right_stride * 4);
    tile_load<First>(left, left_stride * 4);
    load_right<First, 1>(right, right_stride);
    multiply<First, 0, 0>();
    if constexpr (R == 2) tile_load<First + 1>(left + kMatrixRows * left_stride, left_stride * 4);
    if constexpr (R == 2) multiply<First, 1, 0>();
  }

  template <int First, int Panel>
  static NONET_INLINE void load_right(const uint32_t* right, ptrdiff_t right_stride) {
    if constexpr (Panel < P) {
      tile_load<First + R + Panel>(right + Panel * kLanes, right_stride * 4);
      load_right<First, Panel + 1>(right, right_stride);
    }
  }

  template <int First, int Row, int Panel>
  static NONET_INLINE void multiply() {
    if constexpr (Panel < P) {
      tile_multiply<Row * P + Panel, First + Row, First + R + Panel>();
      multiply<First, Row, Panel + 1>();
    }
  }
};

// Rows times a group of panels, [steps][panels][16] units.
inline void matrix_block(MatrixUnit& unit, const uint32_t* left, ptrdiff_t left_stride, int rows, const uint32_t* right,
                         int panels, int steps, const float* start, float* out, ptrdiff_t out_stride) {
  const ptrdiff_t right_stride = panels * kLanes;
  for (int r = 0; r < rows; r += 2 * kMatrixRows) {
    const int count = std::min(2 * kMatrixRows, rows - r);
    const auto run = [&](auto block, int p) {
      decltype(block)::run(unit, count, left + r * left_stride, left_stride, right + p * kLanes, right_stride, steps,
                           start ? start + p * kLanes : nullptr, out + r * out_stride + p * kLanes, out_stride);
    };
    if (count <= kMatrixRows) {
      if (panels == 3) run(MatrixBlock<1, 3>(), 0);
      if (panels == 2) run(MatrixBlock<1, 2>(), 0);
      if (panels == 1) run(MatrixBlock<1, 1>(), 0);
    } else {
      if (panels >= 2) run(MatrixBlock<2, 2>(), 0);
      if (panels != 2) run(MatrixBlock<2, 1>(), panels - 1);
    }
  }
}

}  // namespace nonet
#endif
