// Handles for streams, events, graphs and allocations: numbers that are checked, never dereferenced.
//
// A handle packs a kind, a slot and the slot's generation. A slot is used again only after many others were freed, with
// another generation, so that use after destroy is told from a live object and from a number that never was a handle.
// Not thread safe: the simulator's lock guards every table. Objects never move.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

namespace poolalloc::simgpu {

enum class HandleKind : std::uint64_t { kStream = 1, kEvent, kGraph, kNode, kExec, kUserObject, kPool, kAllocation };

enum class HandleState { kLive, kDestroyed, kNeverMade };

template <class T, HandleKind kKind>
class HandleTable {
 public:
  // Makes an object; its handle is even, non-zero and fits 47 bits (torch keeps flags in the lowest bit of a stream).
  template <class... Arguments>
  std::pair<std::uint64_t, T*> create(Arguments&&... arguments) {
    std::uint64_t index;
    if (freed_.size() > kQuarantine) {
      index = freed_.front();
      freed_.pop_front();
    } else {
      index = slots_.size();
      slots_.emplace_back();
    }
    Slot& slot = slots_[index];
    slot.value.emplace(std::forward<Arguments>(arguments)...);
    return {encode(index, slot.generation), &*slot.value};
  }

  // The live object behind a handle, or null.
  T* find(std::uint64_t handle) {
    Slot* slot = slot_of(handle);
    return slot && slot->value && generation_of(handle) == slot->generation ? &*slot->value : nullptr;
  }
  T* find(const void* handle) { return find(reinterpret_cast<std::uint64_t>(handle)); }

  HandleState state(std::uint64_t handle) {
    Slot* slot = slot_of(handle);
    if (!slot) return HandleState::kNeverMade;
    if (slot->value && generation_of(handle) == slot->generation) return HandleState::kLive;
    return HandleState::kDestroyed;
  }
  HandleState state(const void* handle) { return state(reinterpret_cast<std::uint64_t>(handle)); }

  // Destroys the live object behind a handle.
  void destroy(std::uint64_t handle) {
    Slot* slot = slot_of(handle);
    slot->value.reset();
    slot->generation = (slot->generation + 1) & kGenerationMask;
    freed_.push_back(index_of(handle));
  }
  void destroy(const void* handle) { destroy(reinterpret_cast<std::uint64_t>(handle)); }

  template <class F>
  void for_each(F&& f) {
    for (Slot& slot : slots_) {
      if (slot.value) f(*slot.value);
    }
  }

 private:
  struct Slot {
    std::optional<T> value;
    std::uint64_t generation = 0;
  };
  static constexpr std::uint64_t kTag = (0x5ull << 44) | (static_cast<std::uint64_t>(kKind) << 40);
  static constexpr std::uint64_t kTagMask = ~((1ull << 40) - 1);
  static constexpr std::uint64_t kGenerationMask = 0xff;
  static constexpr std::size_t kQuarantine = 1024;

  static std::uint64_t encode(std::uint64_t index, std::uint64_t generation) {
    return kTag | (index << 12) | (generation << 4);
  }
  static std::uint64_t index_of(std::uint64_t handle) { return (handle & ~kTagMask) >> 12; }
  static std::uint64_t generation_of(std::uint64_t handle) { return (handle >> 4) & kGenerationMask; }

  Slot* slot_of(std::uint64_t handle) {
    if ((handle & kTagMask) != kTag || (handle & 0xf) != 0 || index_of(handle) >= slots_.size()) return nullptr;
    return &slots_[index_of(handle)];
  }

  std::deque<Slot> slots_;
  std::deque<std::uint64_t> freed_;
};

}  // namespace poolalloc::simgpu
