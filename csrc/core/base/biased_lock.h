// A lock that belongs to the thread that takes it again and again: for that thread, taking it is two loads and a store
// and giving it back one store, with no atomic instruction, which would cost as much as the allocation under it.
//
// A thread that has taken the lock many times in a row becomes its owner. Another thread that wants it ends the
// ownership first: it clears `owner_`, makes every thread of the process pass a memory barrier (membarrier, a system
// call of some microseconds), and waits until the owner is out. Each of the two has then written its own word before it
// reads the other's, so one of them sees the other. From then on the lock is an ordinary one, until a thread has taken
// it many times in a row again.
//
// The end of an ownership costs as much as some thousand turns of an owner save. An ownership that had fewer makes the
// next one four times as hard to get; one that had more makes it as easy as the first. How many there were is asked of
// whoever has the lock, who counts its uses anyway: a count here would cost each turn. So a heap that one thread uses
// stays owned although statistics are read now and then, and threads that alternate, as the forward and the backward
// pass of training do, soon have a plain lock (benchmarks/lock_turns.cpp measures both).
//
// An owner says that it is inside in a word of its own, never in another thread's, since it may come late: a thread may
// sleep between the moment it sees that it is the owner and the moment it says so. So a lock has at most kOwners
// owners in its life. Where the kernel has no membarrier it has none.
//
// Source: asymmetric Dekker synchronization (Dice, Huang, Yang, 2001; Vasudevan, Namjoshi, Edwards, "Simple and fast
// biased locks", 2010). Not recursive, not fair.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "core/base/lock.h"

namespace poolalloc {

class BiasedLock {
 public:
  // How often what is guarded was used so far; called with the lock held.
  using Uses = std::function<std::uint64_t()>;

  // The first one of a process takes some milliseconds: the kernel is asked for barriers.
  explicit BiasedLock(Uses uses);
  BiasedLock(const BiasedLock&) = delete;
  BiasedLock& operator=(const BiasedLock&) = delete;

  // Holds the lock as long as it lives.
  class Guard {
   public:
    explicit Guard(BiasedLock& lock) : lock_(lock), inside_(lock.enter()) {}
    ~Guard() {
      if (inside_ != nullptr) [[likely]]
        inside_->store(false, std::memory_order_release);
      else
        lock_.shared_.unlock();
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    BiasedLock& lock_;
    std::atomic<bool>* const inside_;  // null: not as the owner
  };

  static constexpr std::uint64_t kFirstNeeded = 256;  // turns in a row for the first ownership
  static constexpr std::uint64_t kWorthIts = 2048;    // uses that make up for the end of an ownership

  static bool can_be_owned();  // the kernel has barriers

  // Whether a thread owns it now.
  bool is_owned() const { return owner_.load(std::memory_order_relaxed) != 0; }

 private:
  static constexpr std::uintptr_t kOwners = 4;  // no more than the alignment of a thread's address has room for

  // The word to clear on leaving, or null if the lock was taken as anyone's.
  std::atomic<bool>* enter() {
    const std::uintptr_t self = this_thread();
    const std::uintptr_t owner = owner_.load(std::memory_order_relaxed);
    if (const std::uintptr_t own = owner ^ self; own < kOwners) [[likely]] {
      std::atomic<bool>& inside = inside_[own];
      inside.store(true, std::memory_order_relaxed);
      std::atomic_signal_fence(std::memory_order_seq_cst);  // the processor's part is membarrier's
      if (owner_.load(std::memory_order_acquire) == owner) [[likely]]
        return &inside;
      inside.store(false, std::memory_order_release);
    }
    shared_.lock();
    if (self != last_ || is_owned() || ++in_a_row_ >= needed_) [[unlikely]]
      change_hands(self);
    return nullptr;
  }
  // With shared_ held: an ownership ends, or begins, or another thread than the last one came.
  [[gnu::noinline]] void change_hands(std::uintptr_t self);
  void begin_ownership(std::uintptr_t self);
  void end_ownership();

  // No two living threads have the same. One that gets a dead one's may go on as the owner that was.
  static std::uintptr_t this_thread() { return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()); }

  std::atomic<std::uintptr_t> owner_{0};    // thread | its index in inside_; 0: nobody. Written under shared_
  std::atomic<bool> inside_[kOwners] = {};  // each written by its own thread alone
  Lock shared_;                             // for everyone but the owner; guards what follows
  const Uses uses_;
  std::uint64_t in_a_row_ = 0;           // turns of the thread that had the last one
  std::uint64_t needed_;                 // of them, to become the owner
  std::uintptr_t last_ = 0;              // that thread
  std::uint64_t uses_before_ = 0;        // before the ownership
  std::uintptr_t owners_[kOwners] = {};  // threads that have words in inside_
};

}  // namespace poolalloc
