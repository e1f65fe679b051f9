// The C interface: teams, programs and the table of kernels.
#include <new>

#include "attention.h"
#include "attention_tile.h"
#include "linear.h"
#include "lora.h"
#include "rowwise.h"
#include "team.h"

using nonet::Kernel;
using nonet::Op;
using nonet::Team;

namespace {

const Kernel* const kKernels[] = {
    &nonet::kLinearFloat32,
    &nonet::kLinearBfloat16,
    &nonet::kLinearInt8,
    &nonet::kLinearGroupwiseFloat32,
    &nonet::kLinearGroupwiseBfloat16,
    &nonet::kEmbedFloat32,
    &nonet::kEmbedBfloat16,
    &nonet::kEmbedGroupwise,
    &nonet::kLora,
    &nonet::kNorm,
    &nonet::kGated,
    &nonet::kGatherRows,
    &nonet::kRopeStore,
    &nonet::kAttention,
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Kernel `index`, its name and the size of its arguments; null past the end.
const void* nonet_kernel(int index, const char** name, int64_t* args_bytes) {
  if (index < 0 || index >= (int)(sizeof(kKernels) / sizeof(kKernels[0]))) return nullptr;
  *name = kKernels[index]->name;
  *args_bytes = kKernels[index]->args_bytes;
  return kKernels[index];
}

void* nonet_team_create(int threads) {
  try {
    return new Team(threads);
  } catch (...) {
    return nullptr;  // no more threads or memory
  }
}

void nonet_team_destroy(void* team) { delete static_cast<Team*>(team); }

// Scratch that each thread needs for any attention, and for any product besides the rows it rounds.
int64_t nonet_attention_scratch_bytes() { return sizeof(nonet::Workspace); }
// Panels that the weights' layouts interleave.
int nonet_dense_panels() { return nonet::kTilePanels; }
int nonet_groupwise_panels() { return nonet::kGroupwisePanels; }

int64_t nonet_product_scratch_bytes() { return nonet::kProductScratchBytes; }

// 0, or -1 when memory for the scratch ran out.
int nonet_run(void* team, const Op* ops, int count, const int32_t* dims, int64_t scratch_bytes, int64_t shared_bytes,
              double* seconds) {
  try {
    static_cast<Team*>(team)->run(ops, count, dims, scratch_bytes, shared_bytes, seconds);
    return 0;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // extern "C"
#pragma GCC visibility pop
