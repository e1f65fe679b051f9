// A team of threads that runs a list of operations, all threads inside each operation, a barrier between two.
//
// The threads persist. Between programs they spin for a short while, because the next step of a busy engine comes
// within microseconds, then sleep. The caller is thread 0.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace nonet {

class Team;

// How many rows an operation has: dims[kind] when kind >= 0 (live counts of the step), `count` itself otherwise.
struct Rows {
  int32_t kind;
  int32_t count;
};

// What one thread sees of a running operation.
struct alignas(64) Context {
  Team* team;
  const int32_t* dims;  // tokens, sequences, sampled rows
  int thread;
  int threads;
  char* scratch;          // this thread's own, 64-byte aligned
  char* shared_scratch;   // one for the team
  size_t shared_bytes;
  uint32_t phase;         // barriers passed; picks the work queue

  int rows(Rows r) const { return r.kind < 0 ? r.count : dims[r.kind]; }
  // The next of `total` work items, or -1. Each thread has its own contiguous share and then helps the others.
  // One call site per phase: the queue starts afresh after every barrier.
  int take(int total);
  void barrier();
};

struct Op {
  void (*run)(const void* args, Context& context);
  const void* args;
};

struct alignas(64) Cursor {
  std::atomic<int> next{0};
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
  friend struct Context;
  static constexpr int kQueues = 4;
  static constexpr int kSpins = 20000;  // about 100 microseconds of pause instructions

  void work(int thread);
  void execute(Context& context);
  void reserve(size_t scratch_bytes, size_t shared_bytes);
  void wait_at_barrier();

  const int threads_;
  std::vector<std::thread> workers_;
  std::vector<Context> contexts_;
  std::vector<Cursor> cursors_;  // [queue][thread]
  char* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  size_t shared_bytes_ = 0;

  std::mutex running_;  // one program at a time
  const Op* ops_ = nullptr;
  int count_ = 0;
  double* seconds_ = nullptr;

  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> barrier_phase_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace nonet
