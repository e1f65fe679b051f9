// A team of threads that runs a list of operations.
//
// An operation is one or more stages, a stage is a number of items that may run in any order on any thread. The caller
// leads: it opens a stage, takes items like everybody else and opens the next one when all items are done. It never
// waits for a thread, only for items that a thread has begun. So a worker that sleeps, or whose core somebody else is
// using, costs its help and nothing more, and a stage of one item costs no communication at all.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace nonet {

// How many rows an operation has: dims[kind] when kind >= 0 (live counts of the step), `count` itself otherwise.
struct Rows {
  int32_t kind;
  int32_t count;
};

// What one thread sees of a running stage.
struct alignas(64) Context {
  const int32_t* dims;  // tokens, sequences, sampled rows
  int threads;
  char* scratch;         // this thread's own, page aligned
  char* scratch_end;
  char* shared_scratch;  // one for the team
  size_t shared_bytes;
  uint64_t stage_id;  // unique; 0 is none

  int rows(Rows r) const { return r.kind < 0 ? r.count : dims[r.kind]; }

  // What this thread remembers from one item of a stage to the next; made by `make` at the thread's first item.
  template <class State, class Make>
  State& state(Make make) {
    static_assert(sizeof(State) <= sizeof(state_), "the state is too large");
    if (state_id_ != stage_id) {
      new (state_) State(make());
      state_id_ = stage_id;
    }
    return *reinterpret_cast<State*>(state_);
  }

 private:
  uint64_t state_id_ = 0;
  alignas(64) char state_[256];
};

struct Kernel {
  const char* name;
  int64_t args_bytes;
  int stages;
  // How many items a stage has, for any thread count; called by the leader when the stages before are done.
  int (*items)(const void* args, int stage, const Context& context);
  void (*run)(const void* args, int stage, int item, Context& context);
};

struct Op {
  const Kernel* kernel;
  const void* args;
};

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;

  // Runs the program on the caller and the workers. `seconds`, when given, gets the time of each operation.
  void run(const Op* ops, int count, const int32_t* dims, size_t scratch_bytes, size_t shared_bytes,
           double* seconds);

 private:
  static constexpr int kSpins = 3000;  // about 50 microseconds of pause instructions
  static constexpr int kSlots = 8;

  // The open stage as one word, so that taking an item and knowing what it belongs to is one atomic addition:
  // 24 bits of the stage's id, 20 bits items, 20 bits next item.
  static constexpr int kItemBits = 20;
  static constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;

  struct Stage {
    Op op;
    int stage;
    uint64_t id;
  };

  void lead(const Op& op, Context& context);
  void work(int thread);
  // Takes and runs items of the open stage until none is left; false when there was none.
  bool help(Context& context);
  void sleep(uint32_t seen);
  void wake();
  void reserve(size_t scratch_bytes, size_t shared_bytes);

  const int threads_;
  std::vector<std::thread> workers_;
  std::vector<Context> contexts_;
  char* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  size_t shared_bytes_ = 0;

  std::mutex running_;  // one program at a time
  uint64_t stage_id_ = 0;
  Stage slots_[kSlots];

  alignas(64) std::atomic<uint64_t> open_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<uint32_t> programs_{0};  // started; a sleeping worker waits for the next
  std::atomic<int> sleepers_{0};
  std::atomic<bool> busy_{false};  // a program is running: workers spin
  std::atomic<bool> stopping_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace nonet
