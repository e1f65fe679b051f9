#include "team.h"

#include <sched.h>

#include <chrono>
#include <cstdlib>
#include <new>

namespace nonet {

namespace {

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

size_t round_up(size_t bytes) { return (bytes + 4095) & ~size_t{4095}; }

}  // namespace

int Context::take(int total) {
  Cursor* queue = &team->cursors_[(phase % Team::kQueues) * threads];
  for (int i = 0; i < threads; ++i) {
    int owner = thread + i < threads ? thread + i : thread + i - threads;
    int first = (int)((int64_t)total * owner / threads);
    int last = (int)((int64_t)total * (owner + 1) / threads);
    if (first + queue[owner].next.load(std::memory_order_relaxed) >= last) continue;
    int item = first + queue[owner].next.fetch_add(1, std::memory_order_relaxed);
    if (item < last) return item;
  }
  return -1;
}

void Context::barrier() {
  team->wait_at_barrier();
  ++phase;
  // Everybody has left the phase before last, and nobody enters the one after next before this thread gets there.
  team->cursors_[((phase + 2) % Team::kQueues) * threads + thread].next.store(0, std::memory_order_relaxed);
}

Team::Team(int threads) : threads_(threads), cursors_(kQueues * threads) {
  contexts_.resize(threads);
  for (int i = 0; i < threads; ++i) {
    contexts_[i] = Context{};
    contexts_[i].team = this;
    contexts_[i].thread = i;
    contexts_[i].threads = threads;
  }
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

Team::~Team() {
  stopping_.store(true);
  generation_.fetch_add(1);
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    wake_.notify_all();
  }
  for (auto& worker : workers_) worker.join();
  std::free(scratch_);
}

void Team::run(const Op* ops, int count, const int32_t* dims, size_t scratch_bytes, size_t shared_bytes,
               double* seconds) {
  std::lock_guard<std::mutex> lock(running_);
  reserve(scratch_bytes, shared_bytes);
  ops_ = ops;
  count_ = count;
  seconds_ = seconds;
  for (auto& context : contexts_) context.dims = dims;
  if (threads_ > 1) {
    generation_.fetch_add(1);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> sleep_lock(sleep_mutex_);
      wake_.notify_all();
    }
  }
  execute(contexts_[0]);
}

void Team::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && spins < kSpins) {
      pause_cpu();
      ++spins;
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      sleepers_.fetch_sub(1);
    }
    ++seen;
    if (stopping_.load()) return;
    execute(contexts_[thread]);
  }
}

void Team::execute(Context& context) {
  const Op* ops = ops_;
  const int count = count_;
  double* seconds = context.thread == 0 ? seconds_ : nullptr;
  double before = seconds ? now_s() : 0.0;
  for (int i = 0; i < count; ++i) {
    ops[i].run(ops[i].args, context);
    context.barrier();
    if (seconds) {
      double after = now_s();
      seconds[i] = after - before;
      before = after;
    }
  }
}

void Team::reserve(size_t scratch_bytes, size_t shared_bytes) {
  if (scratch_bytes > scratch_bytes_ || shared_bytes > shared_bytes_ || !scratch_) {
    scratch_bytes_ = scratch_bytes > scratch_bytes_ ? round_up(scratch_bytes) : scratch_bytes_;
    shared_bytes_ = shared_bytes > shared_bytes_ ? round_up(shared_bytes) : shared_bytes_;
    std::free(scratch_);
    scratch_ = static_cast<char*>(std::aligned_alloc(4096, scratch_bytes_ * threads_ + shared_bytes_ + 4096));
    if (!scratch_) throw std::bad_alloc();
  }
  for (int i = 0; i < threads_; ++i) {
    contexts_[i].scratch = scratch_ + scratch_bytes_ * i;
    contexts_[i].shared_scratch = scratch_ + scratch_bytes_ * threads_;
    contexts_[i].shared_bytes = shared_bytes_;
  }
}

void Team::wait_at_barrier() {
  if (threads_ == 1) return;
  uint32_t phase = barrier_phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    barrier_phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  int spins = 0;
  while (barrier_phase_.load(std::memory_order_acquire) == phase) {
    pause_cpu();
    if (++spins > 4096) sched_yield();  // somebody else wants this core; the last thread may be waiting for it
  }
}

}  // namespace nonet
