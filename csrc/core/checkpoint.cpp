// See checkpoint.h. From the bottom up: a block at a given place in an arena and in a slab, all blocks of a heap, all
// heaps of a pool.
#include "core/checkpoint.h"

#include <algorithm>
#include <mutex>

#include "core/device_heap.h"
#include "core/heap.h"

namespace poolalloc {

// --- a block at a given place ------------------------------------------------------------------------------------

Status Arena::allocate_at(Bytes offset, Bytes size, Bytes requested) {
  Block* hole = nullptr;
  if (offset < top_) {
    hole = covering(offset);
    if (hole->live() || hole->end() < offset + size) return Status::failed;
  }
  const auto first = static_cast<PageIndex>(offset / kPageBytes);
  const auto last = static_cast<PageIndex>((offset + size - 1) / kPageBytes);
  if (!residency_.cost(first, last).possible) return Status::failed;
  const Status status = residency_.acquire(first, last);
  if (status != Status::ok) return status;
  carve(hole, offset, size)->requested = requested;
  ++live_blocks_;
  return Status::ok;
}

Status Slabs::allocate_at(const PlacedBlock& block) {
  Bin& bin = bins_[bin_of(block.size)];
  Slab* slab = slab_at(bin, block.slab);
  if (slab == nullptr) return Status::failed;
  const Bytes slot = (block.offset - block.slab) / block.size;
  if (((slab->free >> slot) & 1) == 0) return Status::failed;
  if (slab->free == bin.all_free) {
    const Status status = residency_.cost(slab->page, slab->page).possible ? keep_resident(slab) : Status::failed;
    if (status != Status::ok) {
      if (slab != bin.current) retire(slab);
      return status;
    }
  }
  slab->free &= ~(std::uint64_t{1} << slot);
  slab->slack[slot] = static_cast<std::uint32_t>(block.size - block.requested);
  ++bin.allocations;
  bin.requested += block.requested;
  const bool listed = slab != bin.current && slab->free != 0;
  if (listed && !slab->partial) {
    bin.partial.insert(slab);
    ++partial_slabs_;
  } else if (!listed && slab->partial) {
    bin.partial.remove(slab);
    --partial_slabs_;
  }
  slab->partial = listed;
  if (slab == bin.current && slab->free == 0) bin.current = nullptr;
  return Status::ok;
}

// The slab of a bin that starts there, cut anew if its chunks are free or only slept on. Null if blocks of another slab
// are in the way.
Slabs::Slab* Slabs::slab_at(Bin& bin, Bytes offset) {
  for (Bytes chunk = offset / kChunkBytes; chunk < offset / kChunkBytes + bin.shape.chunks; ++chunk) {
    Slab* slab = slab_of_[chunk];
    if (slab == nullptr) continue;
    Bin& other = bins_[slab->bin];
    if (slab->offset == offset && &other == &bin) return slab;
    if (slab->free != other.all_free) return nullptr;
    other.current = nullptr;
    retire(slab);
  }
  const auto page = static_cast<PageIndex>(offset / kPageBytes);
  SmallPage* small = residency_.owner<SmallPage>(page);
  if (small == nullptr) {
    for (; fresh_ <= page; ++fresh_) free_pages_.push_back(fresh_);
    free_pages_.erase(std::find(free_pages_.begin(), free_pages_.end(), page));
    small = cut(page);
  }
  return make_slab(bin, small, static_cast<int>(offset % kPageBytes / kChunkBytes));
}

// --- a heap ------------------------------------------------------------------------------------------------------

std::vector<PlacedBlock> Heap::placed() const {
  const Guard guard(*this);
  std::vector<PlacedBlock> blocks;
  const auto add = [&](Bytes offset, Bytes size, Bytes requested, Bytes slab) {
    if (!uses_.pending(offset)) blocks.push_back({offset, size, requested, slab});
  };
  slabs_.visit([&](Bytes offset, Bytes size, Bytes requested) {
    add(offset, size, requested, slabs_.find(offset).slab->offset);
  });
  arena_.visit([&](Bytes offset, Bytes size, Bytes requested) { add(offset, size, requested, offset); });
  return blocks;
}

bool Heap::settle() {
  while (has_pending() && poll_pending() != 0) {
  }
  if (has_pending()) wait_pending();
  return !has_pending();
}

Status Heap::place_again(const std::vector<PlacedBlock>& blocks) noexcept {
  const Guard guard(*this);
  pages_.permit(PageTable::Source::any, may_unmap());
  // First what needs no mapping: a frame that a block will find at its place must not be mapped elsewhere for another.
  const auto mapped = [&](const PlacedBlock& block) {
    const auto first = static_cast<PageIndex>(block.offset / kPageBytes);
    return pages_.cost(first, static_cast<PageIndex>((block.offset + block.size - 1) / kPageBytes)).maps == 0;
  };
  std::vector<const PlacedBlock*> left;
  const auto place_one = [&](const PlacedBlock& block) {
    const bool small = slabs_.serves(static_cast<PageIndex>(block.offset / kPageBytes));
    const Status status =
        small ? slabs_.allocate_at(block) : arena_.allocate_at(block.offset, block.size, block.requested);
    if (status != Status::ok) return status;
    if (!small) arena_bytes_.add(block.size);
    counts_.add(small ? kSmall : kLarge, block.requested, block.size);
    note_pages_if_changed();
    note_unused(small ? kSmall : kLarge);
    return status;
  };
  for (const PlacedBlock& block : blocks) {
    if (!mapped(block)) {
      left.push_back(&block);
    } else if (const Status status = place_one(block); status != Status::ok) {
      return status;
    }
  }
  for (const PlacedBlock* block : left)
    if (const Status status = place_one(*block); status != Status::ok) return status;
  if (attention_ != 0) attend();
  return Status::ok;
}

// --- a pool ------------------------------------------------------------------------------------------------------

namespace {

void settle(Heap& heap) {
  if (!heap.settle())
    throw UsageError(
        "a block of this pool was freed while another stream used it, and a CUDA graph is being captured, so there is "
        "no waiting for that stream; make and restore checkpoints outside of captures");
}

}  // namespace

PoolCheckpoint DeviceHeap::checkpoint(PoolId id) {
  PoolCheckpoint result{shared_.device, id, {}};
  const std::lock_guard<Lock> turn(gathering_);
  const Visit visit = heaps_of_pool_in_use(id);
  for (Heap* heap : visit.heaps) {
    settle(*heap);
    result.heaps.push_back({heap->stream(), heap->base(), heap->placed()});
  }
  return result;
}

CheckpointDelta DeviceHeap::restore(const PoolCheckpoint& checkpoint) {
  const std::lock_guard<Lock> turn(gathering_);
  const Visit visit = heaps_of_pool_in_use(checkpoint.pool);
  CheckpointDelta delta;
  for (Heap* heap : visit.heaps) {
    const auto then = std::find_if(checkpoint.heaps.begin(), checkpoint.heaps.end(), [&](const auto& each) {
      return each.stream == heap->stream() && each.base == heap->base();
    });
    const std::vector<PlacedBlock> before = heap->placed();
    const std::vector<PlacedBlock> wanted = then != checkpoint.heaps.end() ? then->blocks : std::vector<PlacedBlock>{};
    const auto by_offset = [](const PlacedBlock& a, const PlacedBlock& b) { return a.offset < b.offset; };
    const auto minus = [&](const std::vector<PlacedBlock>& from, const std::vector<PlacedBlock>& what) {
      std::vector<PlacedBlock> rest;
      for (const PlacedBlock& block : from) {
        const auto same = std::lower_bound(what.begin(), what.end(), block, by_offset);
        if (same == what.end() || !(*same == block)) rest.push_back(block);
      }
      return rest;
    };
    for (const PlacedBlock& block : before) delta.freed.push_back(heap->address_of(block.offset));
    for (const PlacedBlock& block : minus(before, wanted)) heap->free(heap->address_of(block.offset));
    settle(*heap);
    const Status status = heap->place_again(minus(wanted, before));
    if (status != Status::ok)
      throw DriverError("the blocks of a private pool cannot be put back where they were: " +
                        (status == Status::out_of_memory
                             ? std::string("their memory is missing")
                             : "something else lives there, or " + shared_.driver.last_error()));
    for (const PlacedBlock& block : wanted) delta.allocated.push_back(heap->address_of(block.offset));
  }
  return delta;
}

}  // namespace poolalloc
