#include "core/slabs.h"

#include <algorithm>

#include "core/check.h"

namespace poolalloc {

Slabs::~Slabs() {
  for (PageIndex page = 0; page < fresh_; ++page) delete residency_.owner<Slab>(page);
}

// Makes bin.current a resident slab with a free slot.
Status Slabs::wake(Bin& bin, int index) {
  bin.block_bytes = bin_bytes(index);
  if (Slab* asleep = bin.current) {
    // Better a slab that is resident anyway than one more page.
    if (bin.partial.empty() && residency_.ready(asleep->page)) {
      ++bin.awake;
      return residency_.acquire(asleep->page, asleep->page);
    }
    bin.current = nullptr;
    retire(bin, asleep);
  }
  if (Slab* slab = bin.partial.first()) {
    bin.partial.remove(slab);
    slab->partial = false;
    bin.current = slab;
    return Status::ok;
  }
  return new_slab(bin, index);
}

Status Slabs::new_slab(Bin& bin, int index) {
  const PageIndex page = take_page();
  if (page == kNoPage) return Status::not_supported;
  const Status status = residency_.acquire(page, page);
  if (status != Status::ok) {
    free_pages_.push_back(page);
    return status;
  }
  std::unique_ptr<Slab> slab;
  if (unused_.empty()) {
    slab = std::make_unique<Slab>();
  } else {
    slab = std::move(unused_.back());
    unused_.pop_back();
  }
  const auto capacity = static_cast<std::uint16_t>(kPageBytes / bin.block_bytes);
  if (slab->capacity != capacity) {
    slack_bytes_ += capacity * sizeof(std::uint32_t);
    slack_bytes_ -= slab->capacity * sizeof(std::uint32_t);
    slab->slack = std::make_unique<std::uint32_t[]>(capacity);
    slab->capacity = capacity;
  }
  slab->page = page;
  slab->priority = tree_priority(page);
  slab->bin = static_cast<std::uint16_t>(index);
  slab->used = 0;
  slab->partial = false;
  fill(slab.get());
  ++slabs_;
  ++bin.slabs;
  ++bin.awake;
  bin.current = slab.get();
  residency_.set_owner(page, slab.release());
  return Status::ok;
}

// All slots free.
void Slabs::fill(Slab* slab) {
  slab->summary = 0;
  for (unsigned word = 0; word < 64; ++word) {
    const unsigned first = word * 64;
    const unsigned count = slab->capacity > first ? std::min(64u, slab->capacity - first) : 0;
    slab->free[word] = count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
    if (count != 0) slab->summary |= std::uint64_t{1} << word;
  }
}

// A page for a new slab: one that needs no driver call if there is one near, else any that is not blocked.
PageIndex Slabs::take_page() {
  constexpr std::size_t kLook = 32;
  std::size_t empty = free_pages_.size();
  const std::size_t count = free_pages_.size();
  const auto take = [&](std::size_t i) {
    const PageIndex page = free_pages_[i];
    free_pages_[i] = free_pages_.back();
    free_pages_.pop_back();
    return page;
  };
  const std::size_t look_from = count > kLook ? count - kLook : 0;
  for (std::size_t i = count; i-- > look_from;) {
    if (residency_.ready(free_pages_[i])) return take(i);
    if (empty == count && !residency_.blocked(free_pages_[i])) empty = i;
  }
  if (empty != count) return take(empty);
  if (fresh_ < pages_) return fresh_++;
  for (std::size_t i = count; i-- > 0;)
    if (!residency_.blocked(free_pages_[i])) return take(i);
  return kNoPage;
}

void Slabs::free(PageIndex page, Bytes offset) {
  Slab* slab = residency_.owner<Slab>(page);
  Bin& bin = bins_[slab->bin];
  const auto slot = static_cast<unsigned>((offset - page * kPageBytes) / bin.block_bytes);
  slab->free[slot / 64] |= std::uint64_t{1} << (slot % 64);
  const bool was_full = slab->summary == 0;
  slab->summary |= std::uint64_t{1} << (slot / 64);
  --slab->used;
  --bin.live_blocks;
  bin.requested -= bin.block_bytes - slab->slack[slot];
  if (slab->used == 0) {
    residency_.release(page, page);
    --bin.awake;
    if (slab == bin.current) return;
    if (slab->partial) bin.partial.remove(slab);
    slab->partial = false;
    if (bin.current == nullptr)
      bin.current = slab;  // asleep
    else
      retire(bin, slab);
  } else if (was_full) {
    slab->partial = true;
    bin.partial.insert(slab);
  }
}

// The slab's page holds no block any more and may serve another class.
void Slabs::retire(Bin& bin, Slab* slab) {
  residency_.set_owner(slab->page, nullptr);
  free_pages_.push_back(slab->page);
  --bin.slabs;
  --slabs_;
  unused_.emplace_back(slab);
}

Slabs::Freed Slabs::containing(Bytes offset, Bytes* start) const {
  const auto page = static_cast<PageIndex>(offset / kPageBytes);
  const Slab* slab = residency_.owner<Slab>(page);
  if (slab == nullptr) return {};
  const Bytes block_bytes = bins_[slab->bin].block_bytes;
  *start = page * kPageBytes + (offset - page * kPageBytes) / block_bytes * block_bytes;
  return find(page, *start);
}

std::vector<BinStats> Slabs::stats() const {
  std::vector<BinStats> result;
  for (const Bin& bin : bins_) {
    if (bin.block_bytes == 0) continue;
    BinStats stats;
    stats.block_bytes = bin.block_bytes;
    stats.live_blocks = bin.live_blocks;
    stats.allocations = bin.allocations;
    stats.requested = bin.requested;
    stats.rounded = bin.live_blocks * bin.block_bytes;
    stats.resident = bin.awake * kPageBytes;
    result.push_back(stats);
  }
  return result;
}

Bytes Slabs::metadata_bytes() const {
  return (slabs_ + unused_.size()) * sizeof(Slab) + slack_bytes_ + free_pages_.capacity() * sizeof(PageIndex) +
         sizeof(*this);
}

void Slabs::validate(std::vector<std::uint32_t>& blocks_of) const {
  std::array<std::uint64_t, kMaxBin + 1> live{}, requested{}, slabs{}, awake{}, partial{};
  std::size_t without_slab = 0;
  for (PageIndex page = 0; page < fresh_; ++page) {
    const Slab* slab = residency_.owner<Slab>(page);
    if (slab == nullptr) {
      ++without_slab;
      continue;
    }
    const Bin& bin = bins_[slab->bin];
    POOLALLOC_ENSURE(slab->page == page, "a slab knows its page");
    POOLALLOC_ENSURE(slab->capacity == kPageBytes / bin.block_bytes, "a slab fills its page");
    unsigned free_slots = 0;
    for (unsigned slot = 0; slot < 4096; ++slot) {
      const bool is_free = (slab->free[slot / 64] >> (slot % 64)) & 1;
      POOLALLOC_ENSURE(slot < slab->capacity || !is_free, "no slot lies beyond the capacity");
      free_slots += is_free;
      if (slot < slab->capacity && !is_free) {
        POOLALLOC_ENSURE(slab->slack[slot] < bin.block_bytes, "requested <= rounded");
        requested[slab->bin] += bin.block_bytes - slab->slack[slot];
      }
    }
    for (unsigned word = 0; word < 64; ++word)
      POOLALLOC_ENSURE(((slab->summary >> word) & 1) == (slab->free[word] != 0), "the summary matches the words");
    POOLALLOC_ENSURE(slab->used + free_slots == slab->capacity, "used + free slots = capacity");
    POOLALLOC_ENSURE(slab->used != 0 || slab == bin.current, "only the current slab sleeps");
    POOLALLOC_ENSURE(slab->partial == (slab != bin.current && slab->summary != 0),
                     "a slab with free slots is current or partial");
    live[slab->bin] += slab->used;
    ++slabs[slab->bin];
    partial[slab->bin] += slab->partial;
    if (slab->used != 0) {
      ++awake[slab->bin];
      ++blocks_of[page];
    }
  }
  POOLALLOC_ENSURE(without_slab == free_pages_.size(), "pages without a slab are listed");
  for (int index = 0; index <= kMaxBin; ++index) {
    const Bin& bin = bins_[index];
    std::uint64_t in_tree = 0;
    POOLALLOC_ENSURE(bin.partial.valid(&in_tree) && in_tree == partial[index], "partial slabs are in the tree");
    POOLALLOC_ENSURE(bin.live_blocks == live[index] && bin.requested == requested[index], "blocks are counted");
    POOLALLOC_ENSURE(bin.slabs == slabs[index] && bin.awake == awake[index], "slabs are counted");
  }
}

}  // namespace poolalloc
