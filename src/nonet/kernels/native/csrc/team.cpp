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

Team::Team(int threads) : threads_(threads), contexts_(threads) {
  for (auto& context : contexts_) context.threads = threads;
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

Team::~Team() {
  stopping_.store(true);
  wake();
  for (auto& worker : workers_) worker.join();
  std::free(scratch_);
}

void Team::run(const Op* ops, int count, const int32_t* dims, size_t scratch_bytes, size_t shared_bytes,
               double* seconds) {
  std::lock_guard<std::mutex> lock(running_);
  reserve(scratch_bytes, shared_bytes);
  for (auto& context : contexts_) context.dims = dims;
  busy_.store(true);
  wake();
  double before = seconds ? now_s() : 0.0;
  for (int i = 0; i < count; ++i) {
    lead(ops[i], contexts_[0]);
    if (seconds) {
      const double after = now_s();
      seconds[i] = after - before;
      before = after;
    }
  }
  busy_.store(false);
}

void Team::lead(const Op& op, Context& context) {
  for (int stage = 0; stage < op.kernel->stages; ++stage) {
    const uint64_t items = op.kernel->items(op.args, stage, context);
    if (items == 0) continue;
    ++stage_id_;
    if (items == 1 || threads_ == 1 || items > kItemMask / 2) {
      context.stage_id = stage_id_;
      for (uint64_t item = 0; item < items; ++item) op.kernel->run(op.args, stage, (int)item, context);
      continue;
    }
    done_.store(0, std::memory_order_relaxed);
    slots_[stage_id_ % kSlots] = Stage{op, stage, stage_id_};
    open_.store(stage_id_ << (2 * kItemBits) | items << kItemBits, std::memory_order_release);
    help(context);
    // What is left has been begun by others. After a while give them this core: they may be waiting for one.
    for (int spins = 0; done_.load(std::memory_order_acquire) != (int)items;) {
      pause_cpu();
      if (++spins > kSpins) sched_yield();
    }
  }
}

bool Team::help(Context& context) {
  bool any = false;
  for (;;) {
    uint64_t word = open_.load(std::memory_order_acquire);
    if ((word & kItemMask) >= (word >> kItemBits & kItemMask)) return any;
    word = open_.fetch_add(1, std::memory_order_acq_rel);
    const uint64_t item = word & kItemMask;
    if (item >= (word >> kItemBits & kItemMask)) return any;
    // This item is not done, so its stage stays open and its slot stays as it is.
    const Stage& stage = slots_[(word >> (2 * kItemBits)) % kSlots];
    context.stage_id = stage.id;
    stage.op.kernel->run(stage.op.args, stage.stage, (int)item, context);
    done_.fetch_add(1, std::memory_order_acq_rel);
    any = true;
  }
}

void Team::work(int thread) {
  Context& context = contexts_[thread];
  int idle = 0;
  for (;;) {
    const uint32_t seen = programs_.load();
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (help(context) || busy_.load(std::memory_order_relaxed)) {
      idle = 0;
      pause_cpu();
    } else if (++idle < kSpins) {
      pause_cpu();
    } else {
      sleep(seen);
      idle = 0;
    }
  }
}

void Team::sleep(uint32_t seen) {
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  sleepers_.fetch_add(1);
  wake_.wait(lock, [&] { return programs_.load() != seen || stopping_.load(); });
  sleepers_.fetch_sub(1);
}

void Team::wake() {
  programs_.fetch_add(1);
  if (sleepers_.load() == 0) return;
  std::lock_guard<std::mutex> lock(sleep_mutex_);
  wake_.notify_all();
}

void Team::reserve(size_t scratch_bytes, size_t shared_bytes) {
  if (scratch_ && scratch_bytes <= scratch_bytes_ && shared_bytes <= shared_bytes_) return;
  if (scratch_bytes > scratch_bytes_) scratch_bytes_ = round_up(scratch_bytes);
  if (shared_bytes > shared_bytes_) shared_bytes_ = round_up(shared_bytes);
  std::free(scratch_);
  scratch_ = static_cast<char*>(std::aligned_alloc(4096, scratch_bytes_ * threads_ + shared_bytes_ + 4096));
  if (!scratch_) throw std::bad_alloc();
  for (int i = 0; i < threads_; ++i) {
    contexts_[i].scratch = scratch_ + scratch_bytes_ * i;
    contexts_[i].scratch_end = scratch_ + scratch_bytes_ * (i + 1);
    contexts_[i].shared_scratch = scratch_ + scratch_bytes_ * threads_;
    contexts_[i].shared_bytes = shared_bytes_;
  }
}

}  // namespace nonet
