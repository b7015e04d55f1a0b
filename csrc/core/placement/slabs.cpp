#include "core/placement/slabs.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "core/base/check.h"

namespace poolalloc {

namespace {

constexpr std::uint64_t low_bits(unsigned count) {
  return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

// The lowest position of `run` set bits in a row, or -1.
int find_run(std::uint64_t bits, unsigned run) {
  unsigned have = 1;
  while (have < run) {  // after each round a set bit starts a run of `have`
    const unsigned step = std::min(have, run - have);
    bits &= bits >> step;
    have += step;
  }
  return bits == 0 ? -1 : std::countr_zero(bits);
}

}  // namespace

Slabs::Slabs(PageTable& residency, PageIndex pages)
    : residency_(residency), pages_(pages), slab_of_(pages * kPageChunks), part_used_(pages / kPartPages + 1) {
  for (int index = 0; index <= kMaxBin; ++index) {
    Bin& bin = bins_[index];
    bin.block_bytes = bin_bytes(index);
    bin.reciprocal = ((std::uint64_t{1} << kReciprocalBits) + bin.block_bytes - 1) / bin.block_bytes;
    bin.shape = slab_shape(bin.block_bytes);
    bin.all_free = low_bits(bin.shape.slots);
  }
}

Slabs::~Slabs() = default;

// --- slabs -------------------------------------------------------------------------------------------------------

Status Slabs::pop_from_another(Bin& bin, Bytes requested, Bytes* offset) {
  const Status status = find_current(bin);
  if (status == Status::ok) *offset = take_slot(bin, bin.current, requested);
  return status;
}

// Makes bin.current a resident slab with a free slot: there is none, or it sleeps.
Status Slabs::find_current(Bin& bin) {
  if (Slab* asleep = bin.current) {
    if (wake_current(bin)) return Status::ok;
    bin.current = nullptr;
    retire(asleep);
  }
  if (Slab* slab = bin.partial.first()) {
    remove_partial(bin, slab);
    bin.current = slab;
    return Status::ok;
  }
  return new_slab(bin);
}

Status Slabs::new_slab(Bin& bin) {
  int first_chunk = 0;
  SmallPage* small = page_with_room(bin.shape.chunks, &first_chunk);
  if (small == nullptr) return Status::not_supported;
  Slab* slab = make_slab(bin, small, first_chunk);
  const Status status = keep_resident(slab);
  if (status == Status::ok)
    bin.current = slab;
  else
    retire(slab);
  return status;
}

// Cuts free chunks of a page into a slab without blocks.
Slabs::Slab* Slabs::make_slab(Bin& bin, SmallPage* small, int first_chunk) {
  Slab* slab = records_.take();
  slab->free = bin.all_free;
  slab->page = small->page;
  slab->offset = small->page * kPageBytes + static_cast<Bytes>(first_chunk) * kChunkBytes;
  slab->priority = tree_priority(slab->offset);
  slab->bin = static_cast<std::uint8_t>(&bin - bins_.data());
  slab->first_chunk = static_cast<std::uint8_t>(first_chunk);
  slab->partial = false;
  small->free_chunks &= ~(low_bits(bin.shape.chunks) << first_chunk);
  std::fill_n(&slab_of_[slab->offset / kChunkBytes], bin.shape.chunks, slab);
  ++bin.slabs;
  return slab;
}

void Slabs::adopt(Bin& bin, Slab* slab) {
  if (slab->partial) remove_partial(bin, slab);
  bin.current = slab;
}

// The slab sleeps, and another is current.
void Slabs::drop(Bin& bin, Slab* slab) {
  if (slab->partial) remove_partial(bin, slab);
  retire(slab);
}

void Slabs::add_partial(Bin& bin, Slab* slab) {
  slab->partial = true;
  bin.partial.insert(slab);
  ++partial_slabs_;
}

void Slabs::remove_partial(Bin& bin, Slab* slab) {
  slab->partial = false;
  bin.partial.remove(slab);
  --partial_slabs_;
}

// The chunks of an empty slab go back to their page, and a page without slabs is free for any use.
void Slabs::retire(Slab* slab) {
  SmallPage* small = residency_.owner<SmallPage>(slab->page);
  Bin& bin = bins_[slab->bin];
  std::fill_n(&slab_of_[slab->offset / kChunkBytes], bin.shape.chunks, nullptr);
  small->free_chunks |= low_bits(bin.shape.chunks) << slab->first_chunk;
  --bin.slabs;
  records_.give(slab);
  if (small->free_chunks != ~std::uint64_t{0}) return;
  residency_.set_owner(small->page, nullptr);
  add_free_page(small->page);
  const auto place = std::lower_bound(cut_.begin(), cut_.end(), small->page,
                                      [](const auto& entry, PageIndex page) { return entry->page < page; });
  spare_pages_.push_back(std::move(*place));
  cut_.erase(place);
}

// --- pages -------------------------------------------------------------------------------------------------------

// The lowest page with so many free chunks in a row, resident ones first; else a new page. Null if no addresses are
// left.
Slabs::SmallPage* Slabs::page_with_room(std::uint8_t chunks, int* first_chunk) {
  SmallPage* asleep = nullptr;
  int asleep_chunk = 0;
  for (const auto& small : cut_) {
    if (static_cast<unsigned>(std::popcount(small->free_chunks)) < chunks) continue;
    const int chunk = find_run(small->free_chunks, chunks);
    if (chunk < 0) continue;
    if (residency_.blocks(small->page) != 0) {
      *first_chunk = chunk;
      return small.get();
    }
    if (asleep == nullptr && residency_.at_hand(small->page)) {
      asleep = small.get();
      asleep_chunk = chunk;
    }
  }
  *first_chunk = asleep_chunk;
  return asleep != nullptr ? asleep : new_page();
}

Slabs::SmallPage* Slabs::new_page() {
  const PageIndex page = take_page_index();
  return page != kNoPage ? cut(page) : nullptr;
}

Slabs::SmallPage* Slabs::cut(PageIndex page) {
  std::unique_ptr<SmallPage> small;
  if (spare_pages_.empty()) {
    small = std::make_unique<SmallPage>();
  } else {
    small = std::move(spare_pages_.back());
    spare_pages_.pop_back();
  }
  small->page = page;
  residency_.set_owner(page, small.get());
  const PageIndex part = page / kPartPages;
  used_parts_ += !part_used_[part];
  part_used_[part] = true;
  const auto place = std::lower_bound(cut_.begin(), cut_.end(), page,
                                      [](const auto& entry, PageIndex index) { return entry->page < index; });
  return cut_.insert(place, std::move(small))->get();
}

// The lowest stays last: pages at low addresses are used again first, so that the range does not creep up.
void Slabs::add_free_page(PageIndex page) {
  free_pages_.insert(std::lower_bound(free_pages_.begin(), free_pages_.end(), page, std::greater<>()), page);
}

// A page that needs no driver call if there is one among the lowest, else any that is not blocked.
PageIndex Slabs::take_page_index() {
  constexpr std::size_t kLook = 32;
  const std::size_t count = free_pages_.size();
  const auto take = [&](std::size_t i) {
    const PageIndex page = free_pages_[i];
    free_pages_.erase(free_pages_.begin() + static_cast<std::ptrdiff_t>(i));
    return page;
  };
  std::size_t usable = count;
  const std::size_t look_from = count > kLook ? count - kLook : 0;
  for (std::size_t i = count; i-- > look_from;) {
    if (residency_.at_hand(free_pages_[i])) return take(i);
    if (usable == count && !residency_.blocked(free_pages_[i])) usable = i;
  }
  // Memory may have come to fresh pages together with that of a page before.
  while (fresh_ < pages_ && (usable == count || residency_.at_hand(fresh_))) {
    const PageIndex page = fresh_++;
    if (!residency_.blocked(page)) return page;
    add_free_page(page);
  }
  if (usable != count) return take(usable);
  for (std::size_t i = look_from; i-- > 0;)
    if (!residency_.blocked(free_pages_[i])) return take(i);
  return kNoPage;
}

// --- statistics --------------------------------------------------------------------------------------------------

std::vector<BinStats> Slabs::stats() const {
  std::vector<BinStats> result;
  for (const Bin& bin : bins_) {
    if (bin.allocations == 0) continue;
    BinStats stats;
    stats.block_bytes = bin.block_bytes;
    stats.live_blocks = bin.allocations - bin.frees;
    stats.allocations = bin.allocations;
    stats.requested = bin.requested;
    stats.rounded = stats.live_blocks * bin.block_bytes;
    stats.resident = Bytes{bin.awake} * bin.shape.chunks * kChunkBytes;
    result.push_back(stats);
  }
  return result;
}

std::uint32_t Slabs::with_room() const {
  std::uint32_t slabs = partial_slabs_;
  for (const Bin& bin : bins_) slabs += bin.current != nullptr && bin.current->free != bin.all_free;
  return slabs;
}

Bytes Slabs::metadata_bytes() const {
  return records_.bytes() + (cut_.size() + spare_pages_.size()) * sizeof(SmallPage) +
         free_pages_.capacity() * sizeof(PageIndex) + Bytes{used_parts_} * kPartPages * kPageChunks * sizeof(Slab*) +
         part_used_.size() / 8 + sizeof(*this);
}

// Pages that are not cut have no slab.
void Slabs::shed_tables() {
  for (PageIndex first = 0; first < fresh_; first += kPartPages) {
    if (!part_used_[first / kPartPages]) continue;
    const PageIndex end = std::min(first + kPartPages, pages_);
    PageIndex page = first;
    while (page < end && residency_.owner<SmallPage>(page) == nullptr) ++page;
    if (page < end) continue;
    slab_of_.discard(first * kPageChunks, end * kPageChunks);
    part_used_[first / kPartPages] = false;
    --used_parts_;
  }
}

void Slabs::shed() {
  for (Bin& bin : bins_)
    if (bin.current != nullptr && bin.current->free == bin.all_free) retire(std::exchange(bin.current, nullptr));
  shed_tables();
  records_.shed();
  std::vector<std::unique_ptr<SmallPage>>().swap(spare_pages_);
}

void Slabs::validate(std::vector<std::uint32_t>& blocks_of) const {
  std::array<std::uint64_t, kMaxBin + 1> live{}, requested{}, slabs{}, awake{}, partial{};
  std::uint32_t resident = 0;
  const auto check_slab = [&](const SmallPage& small, const Slab* slab) {
    const Bin& bin = bins_[slab->bin];
    POOLALLOC_ENSURE(slab->page == small.page, "a slab knows its page");
    POOLALLOC_ENSURE(slab->offset == small.page * kPageBytes + slab->first_chunk * kChunkBytes,
                     "a slab starts at its first chunk");
    POOLALLOC_ENSURE((slab->free & ~bin.all_free) == 0, "no slot lies beyond the capacity");
    const bool in_use = slab->free != bin.all_free;
    for (unsigned slot = 0; slot < bin.shape.slots; ++slot) {
      if ((slab->free >> slot) & 1) continue;
      POOLALLOC_ENSURE(slab->slack[slot] < bin.block_bytes, "requested <= rounded");
      requested[slab->bin] += bin.block_bytes - slab->slack[slot];
    }
    POOLALLOC_ENSURE(in_use || slab == bin.current, "only the current slab sleeps");
    POOLALLOC_ENSURE(slab->partial == (slab != bin.current && slab->free != 0),
                     "a slab with free slots is current or partial");
    live[slab->bin] += static_cast<std::uint64_t>(bin.shape.slots - std::popcount(slab->free));
    ++slabs[slab->bin];
    partial[slab->bin] += slab->partial;
    awake[slab->bin] += in_use;
  };
  PageIndex previous = kNoPage;
  for (const auto& small : cut_) {
    POOLALLOC_ENSURE(previous == kNoPage || previous < small->page, "pages with slabs stand in address order");
    previous = small->page;
    POOLALLOC_ENSURE(residency_.owner<SmallPage>(small->page) == small.get(), "a page knows its slabs");
    std::uint32_t awake_here = 0;
    for (Bytes chunk = 0; chunk < kPageChunks; ++chunk) {
      const Slab* slab = slab_of_[small->page * kPageChunks + chunk];
      POOLALLOC_ENSURE(((small->free_chunks >> chunk) & 1) == (slab == nullptr), "a free chunk has no slab");
      if (slab == nullptr || slab->first_chunk != chunk) continue;
      check_slab(*small, slab);
      awake_here += slab->free != bins_[slab->bin].all_free;
    }
    blocks_of[small->page] += awake_here;
    resident += awake_here != 0;
  }
  POOLALLOC_ENSURE(resident == resident_pages_, "resident pages are counted");
  POOLALLOC_ENSURE(cut_.size() + free_pages_.size() == fresh_, "every page used is cut or free");
  std::uint64_t partial_slabs = 0;
  for (int index = 0; index <= kMaxBin; ++index) {
    const Bin& bin = bins_[index];
    std::uint64_t in_tree = 0;
    POOLALLOC_ENSURE(bin.partial.valid(&in_tree) && in_tree == partial[index], "partial slabs are in the tree");
    POOLALLOC_ENSURE(bin.allocations - bin.frees == live[index] && bin.requested == requested[index],
                     "blocks are counted");
    partial_slabs += partial[index];
    POOLALLOC_ENSURE(bin.slabs == slabs[index] && bin.awake == awake[index], "slabs are counted");
  }
  POOLALLOC_ENSURE(partial_slabs == partial_slabs_, "partial slabs are counted");
}

// --- at a given place: checkpoint.h --------------------------------------------------------------------------------

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

}  // namespace poolalloc
