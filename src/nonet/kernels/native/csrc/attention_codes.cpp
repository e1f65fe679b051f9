// Attention over a cache of one-byte codes.
#include "attention_arithmetic.h"

namespace nonet {

template class TileAttention<Element::kFloat32, Storage::kInt8>;
template class TileAttention<Element::kFloat32, Storage::kFloat8>;
template class TileAttention<Element::kBfloat16, Storage::kInt8>;
template class TileAttention<Element::kBfloat16, Storage::kFloat8>;

}  // namespace nonet
