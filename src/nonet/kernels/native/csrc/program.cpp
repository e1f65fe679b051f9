// The C interface: teams, programs and the table of operations.
#include <new>

#include "attention.h"
#include "attention_tile.h"
#include "linear.h"
#include "rowwise.h"
#include "team.h"

using nonet::Op;
using nonet::Team;

namespace {

using Run = void (*)(const void*, nonet::Context&);

struct Entry {
  const char* name;
  Run run;
  int64_t args_bytes;
};

const Entry kOperations[] = {
    {"linear_dense", nonet::linear_dense, sizeof(nonet::LinearArgs)},
    {"embed_dense", nonet::embed_dense, sizeof(nonet::EmbedArgs)},
    {"norm", nonet::norm, sizeof(nonet::NormArgs)},
    {"gated", nonet::gated, sizeof(nonet::GatedArgs)},
    {"gather_rows", nonet::gather_rows, sizeof(nonet::GatherArgs)},
    {"rope_store", nonet::rope_store, sizeof(nonet::RopeArgs)},
    {"attention", nonet::attention, sizeof(nonet::AttentionArgs)},
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Operation `index`: its name, address and the size of its arguments; 0 past the end.
int nonet_operation(int index, const char** name, void** run, int64_t* args_bytes) {
  if (index < 0 || index >= (int)(sizeof(kOperations) / sizeof(kOperations[0]))) return 0;
  *name = kOperations[index].name;
  *run = reinterpret_cast<void*>(kOperations[index].run);
  *args_bytes = kOperations[index].args_bytes;
  return 1;
}

void* nonet_team_create(int threads) {
  try {
    return new Team(threads);
  } catch (...) {
    return nullptr;  // no more threads or memory
  }
}

void nonet_team_destroy(void* team) { delete static_cast<Team*>(team); }

int64_t nonet_attention_scratch_bytes() { return sizeof(nonet::Workspace); }

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
