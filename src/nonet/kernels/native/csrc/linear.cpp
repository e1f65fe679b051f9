// What dense and groupwise products share: the cut into work items, the soft cap.
#include "linear.h"

#include <algorithm>

#include "simd.h"

namespace nonet {

Cut::Cut(int rows, int panels, int panels_per_group, int threads, int max_rows)
    : rows_(rows), panels_(panels), panels_per_group_(panels_per_group), threads_(threads) {
  row_chunks_ = (rows + max_rows - 1) / max_rows;
  rows_per_chunk_ = std::min(max_rows, ((rows + row_chunks_ - 1) / row_chunks_ + 7) / 8 * 8);
  row_chunks_ = (rows + rows_per_chunk_ - 1) / rows_per_chunk_;
  groups_ = (panels + panels_per_group - 1) / panels_per_group;
  large_ = row_chunks_ == 1 ? groups_ * 3 / (4 * threads) : 0;
  if (threads == 1) {
    large_ = 0;
    shares_ = 1;
  } else if (large_ > 0) {
    shares_ = threads + std::min(groups_ - threads * large_, 4 * threads);
  } else {
    shares_ = std::min(groups_, (16 * threads + row_chunks_ - 1) / row_chunks_);
  }
}

Cut::Item Cut::item(int number) const {
  const int chunk = number % row_chunks_;
  int share = number / row_chunks_, shares = shares_;
  int first = 0, last = groups_;
  if (large_ > 0 && share < threads_) {
    first = share * large_;
    last = first + large_;
  } else {
    if (large_ > 0) {
      share -= threads_;
      shares -= threads_;
      first = threads_ * large_;
    }
    const int64_t total = groups_ - first;
    last = first + (int)(total * (share + 1) / shares);
    first += (int)(total * share / shares);
  }
  const int first_row = chunk * rows_per_chunk_;
  return {first_row, std::min(rows_per_chunk_, rows_ - first_row), first * panels_per_group_,
          std::min(panels_, last * panels_per_group_)};
}

void soft_cap(float* out, int64_t stride, int rows, int columns, float softcap) {
  const float inverse = 1.0f / softcap;
  for (int r = 0; r < rows; ++r) {
    float* row = out + r * stride;
    for (int i = 0; i < columns; i += kLanes) {
      const int count = std::min(kLanes, columns - i);
      store_partial(row + i, tanh(load_partial(row + i, count) * inverse) * softcap, count);
    }
  }
}

}  // namespace nonet
