#include "core/heap/heap.h"

#include <algorithm>
#include <utility>

namespace poolalloc {

namespace {

PageIndex pages_in(Bytes bytes) { return static_cast<PageIndex>(bytes / kPageBytes); }

std::unique_ptr<PageTable> page_table(DeviceShared& shared, Heap& heap, Address base, PageIndex split, PageIndex pages,
                                      const Options& options, SegmentSupply* segments, PageJournal* journal) {
  if (segments != nullptr) return std::make_unique<Segments>(*segments, shared.addresses, heap, split, pages, journal);
  return std::make_unique<Residency>(shared.driver, shared.device, shared.page_supply, base, split, pages, options,
                                     journal);
}

// 0 if the plan is not used.
PageIndex pages_of(const StreamPlan* plan, const PoolTraits& traits, Bytes arena_bytes) {
  if (plan == nullptr || traits.segments != nullptr) return 0;
  const PageIndex pages = PlannedBlocks::pages_of(*plan);
  return pages < pages_in(arena_bytes) / 2 ? pages : 0;
}

}  // namespace

Heap::Heap(DeviceShared& shared, StreamId stream, PoolId pool, Address base, Bytes slab_bytes, Bytes arena_bytes,
           const Options& options, const PoolTraits& traits, const StreamPlan* plan, Bytes above)
    : base_(base),
      bin_limit_(pages_of(plan, traits, arena_bytes) != 0 ? std::min(above, options.bin_limit)
                 : traits.no_split                        ? 0
                                                          : options.bin_limit),
      slab_limit_(traits.no_split ? 0 : options.bin_limit),
      page_table_(page_table(shared, *this, base, pages_in(slab_bytes), pages_in(slab_bytes + arena_bytes), options,
                             traits.segments, &journal_)),
      pages_(*page_table_),
      segments_(traits.segments != nullptr ? static_cast<Segments*>(page_table_.get()) : nullptr),
      residency_(traits.segments == nullptr ? static_cast<Residency*>(page_table_.get()) : nullptr),
      own_supply_(traits.segments != &shared.segment_supply ? traits.segments : nullptr),
      whole_(traits.no_split),
      slabs_(pages_, pages_in(slab_bytes)),
      arena_(pages_, pages_in(slab_bytes) + pages_of(plan, traits, arena_bytes),
             static_cast<int>(options.placement_candidates)),
      journal_(shared.observer, {shared.device, stream, pool}),
      shared_(shared),
      stream_(stream),
      pool_(pool),
      ordinary_(pool == PoolId{}),
      planning_(pages_of(plan, traits, arena_bytes) != 0
                    ? std::make_unique<Planning>(pages_, pages_in(slab_bytes), *plan)
                    : nullptr),
      above_(above),
      exact_(pool == PoolId{} && !options.exact_bins.empty() ? std::make_unique<Exact>(arena_, options.exact_bins)
                                                             : nullptr) {
  if (segments_ != nullptr) arena_.wall_up();
  if (planning_ != nullptr) pages_.plan_until(pages_in(slab_bytes) + pages_of(plan, traits, arena_bytes));
  shared_.gate.know(home());
  try {
    if (lends()) shared_.page_supply.add_lender(this);
  } catch (...) {  // the destructor is not run
    shared_.gate.forget(home());
    throw;
  }
  set_attention();
}

Heap::~Heap() {
  if (lends()) shared_.page_supply.remove_lender(this);
  shared_.gate.forget(home());
  shared_.deferred.fetch_sub(static_cast<std::int64_t>(uses_.pending()), std::memory_order_relaxed);
  for (const Mark& mark : marks_) uses_.give_event(shared_.device, mark.event);
  for (const auto& [device, event] : uses_.release_events()) shared_.driver.destroy_event(device, event);
}

// --- placing -----------------------------------------------------------------------------------------------------

// Not from a slab at hand. Called with the lock held, as all that follows.
template <Heap::Way kWay>
Status Heap::allocate_elsewhere_as(Bytes bytes, Address* address, Source source) {
  Bytes offset = 0, rounded = 0;
  if (kWay != Way::plain && (segments_ != nullptr || (attention_ & kPublishes) == 0)) source = Source::any;
  const Source first = kWay != Way::plain && source == Source::any && has_surplus() ? Source::spare : source;
  pages_.permit(uses_.pending() == 0 ? first : Source::none, may_unmap());
  const std::uint64_t maps = pages_.maps_made();
  Status status = Status::ok;
  if (kWay == Way::planned)
    status = place_by_plan(bytes, &offset, &rounded);
  else if (kWay == Way::attentive && (attention_ & kSpecial) != 0) [[unlikely]]
    status = place_specially(bytes, &offset, &rounded);
  else
    status = place(bytes, &offset, &rounded);
  if (status != Status::ok) [[unlikely]] {
    status = allocate_missing(bytes, &offset, &rounded, source, status);
    if (status != Status::ok) return status;
  }
  if (pages_.maps_made() != maps) [[unlikely]]
    note_progress();
  counts_.add(kind_at(offset), bytes, rounded);
  note_pages_if_changed();
  note_unused(bytes > slab_limit_ ? kLarge : kSmall);  // of pages that became resident
  if (kWay == Way::planned) note_unused(kLarge);
  if (kWay != Way::plain) attend();
  *address = address_of(offset);
  return Status::ok;
}

Status Heap::allocate_elsewhere(Bytes bytes, Address* address, Source source) {
  if (attention_ != 0) [[unlikely]] {
    if (put_off_ != nullptr && take_put_off(bytes, address)) return Status::ok;
    if ((attention_ & (kKeeps | kPlans)) == kKeeps)
      if (ExactBins::Bin* bin = bin_for(bytes); bin != nullptr && !bin->blocks.empty())
        return allocate_kept(*bin, bytes, address);
    tidy();
    if (attention_ != 0) return allocate_attentively(bytes, address, source);
  }
  return allocate_elsewhere_as<Way::plain>(bytes, address, Source::any);
}

Status Heap::allocate_attentively(Bytes bytes, Address* address, Source source) {
  if (planned(bytes)) return allocate_elsewhere_as<Way::planned>(bytes, address, source);
  if (ExactBins::Bin* bin = bin_for(bytes)) return allocate_exact(*bin, bytes, address, source);
  return allocate_elsewhere_as<Way::attentive>(bytes, address, source);
}

// Of a size with an exact bin, which keeps no block now.
Status Heap::allocate_exact(ExactBins::Bin& bin, Bytes bytes, Address* address, Source source) {
  if (make_ahead(bin)) return allocate_kept(bin, bytes, address);
  const Status status = allocate_elsewhere_as<Way::attentive>(bytes, address, source);
  exact_->misses += status == Status::ok;
  return status;
}

Status Heap::allocate_kept(ExactBins::Bin& bin, Bytes bytes, Address* address) {
  const Arena::Block* block = take_kept(bin, bytes);
  counts_.add(kLarge, bytes, block->size);
  attend();
  *address = address_of(block->offset);
  return Status::ok;
}

// A plan that was followed from the first request on is trusted: its height is little more than what lives. Else a heap
// that has been as large before has the pages, and beyond that, planned blocks may leave the margin unused between
// them.
PlannedBlocks::Bounds Heap::plan_bounds() const {
  if (planning_->cursor.faithful()) return {~Bytes{0}, ~Bytes{0}};
  const auto resident = static_cast<Bytes>(pages_.resident().current);
  return {static_cast<Bytes>(pages_.resident().peak) - resident, plan_margin(resident)};
}

// Where the plan says, if that is free and costs little; else like any other.
Status Heap::place_by_plan(Bytes bytes, Bytes* offset, Bytes* rounded) {
  Planning& plan = *planning_;
  const Bytes size = round_up(bytes, kGranularity);
  const Bytes at = plan.cursor.next(size);
  if (at != PlannedRequest::kNowhere) {
    pages_.place_for(plan.cursor.faithful() ? PageTable::Whose::plan : PageTable::Whose::doubtful_plan);
    const Status status = plan.blocks.allocate(at, size, bytes, plan_bounds());
    pages_.place_for(PageTable::Whose::program);
    if (status == Status::ok) {
      arena_bytes_.add(size);
      *offset = plan.blocks.offset_of(at);
      *rounded = size;
      plan.cursor.accept(size);
      ++plan.hits;
      return status;
    }
    if (status == Status::out_of_memory && !pages_.wanted().empty()) return status;  // another stream has its memory
  }
  Status status = Status::ok;
  if (Slabs::Bin* bin = bytes <= slab_limit_ ? &slabs_.bin_for(bytes) : nullptr;
      bin != nullptr && slabs_.pop(*bin, bytes, offset)) {
    *rounded = bin->block_bytes;
  } else if (ExactBins::Bin* exact = bin_for(bytes); exact != nullptr && !exact->blocks.empty()) {
    const Arena::Block* block = take_kept(*exact, bytes);
    *offset = block->offset;
    *rounded = block->size;
  } else {
    status = place(bytes, offset, rounded);
  }
  if (status != Status::ok) return status;
  plan.cursor.accept(size);
  ++plan.misses;
  return status;
}

Status Heap::place(Bytes bytes, Bytes* offset, Bytes* rounded) {
  if (bytes <= slab_limit_) {
    Slabs::Bin& bin = slabs_.bin_for(bytes);
    *rounded = bin.block_bytes;
    const Status status = slabs_.pop_from_another(bin, bytes, offset);
    if (status != Status::not_supported) [[likely]]
      return status;  // else slabs have no addresses left: the arena may
  }
  Arena::Block* block = nullptr;
  Status status = arena_.allocate(bytes, &block);
  if (status == Status::not_supported && segments_ != nullptr) [[unlikely]] {
    status = open_segment(Segments::need_for(bytes));
    if (status == Status::ok) status = arena_.allocate(bytes, &block);
  }
  if (status == Status::ok) {
    arena_bytes_.add(block->size);
    *offset = block->offset;
    *rounded = block->size;
  }
  return status;
}

// Where blocks share nothing: in whole pages, or in a segment that no other block is in. In a heap that is asleep
// nothing is placed.
Status Heap::place_specially(Bytes bytes, Bytes* offset, Bytes* rounded) {
  if (asleep_) return Status::not_ready;
  if (bytes > kMaxBinnedBytes) return Status::out_of_memory;
  const Bytes pages = round_up(bytes, kPageBytes);
  Arena::Block* block = nullptr;
  Status status = segments_ != nullptr ? arena_.allocate_hole(pages, &block) : arena_.allocate(pages, &block);
  if (status == Status::not_supported && segments_ != nullptr) {
    status = open_segment(Segments::need_alone(pages));
    if (status == Status::ok) status = arena_.allocate_hole(pages, &block);
  }
  if (status != Status::ok) return status;
  block->requested = bytes;
  arena_bytes_.add(block->size);
  *offset = block->offset;
  *rounded = block->size;
  return status;
}

// From the arena, or with more to look to.
bool Heap::free_elsewhere(Bytes offset) {
  tidy();
  if ((attention_ & (kTracks | kTranslates | kPlans)) != 0) return free_attentively(base_ + offset);
  const Found found = find_unplanned(offset);
  if (found.size == 0 || (attention_ != 0 && found.requested == Arena::kKept)) return false;
  counts_.subtract(kind_at(offset), found.requested, found.size);
  if (found.block == nullptr) {
    free_slot(found.slot);
  } else if (attention_ == 0) {
    arena_bytes_.subtract(found.size);
    put_off(found.block);
  } else {
    done_with(found);
  }
  publish_if_due();
  return true;
}

// Only between blocks: there it would leave a hole of just its size, and best fit would choose that.
bool Heap::take_put_off(Bytes bytes, Address* address) {
  const auto hole = [](const Arena::Block* block) { return block != nullptr && !block->live(); };
  Arena::Block* block = put_off_;
  if (block->size != round_up(bytes, kGranularity) || hole(block->previous) || hole(block->next)) return false;
  put_off_ = nullptr;
  attention_ ^= kPutOff;
  block->requested = bytes;
  arena_bytes_.add(block->size);
  counts_.add(kLarge, bytes, block->size);
  *address = base_ + block->offset;
  return true;
}

void Heap::finish_free() noexcept {
  attention_ ^= kPutOff;
  if (put_off_ != nullptr) {
    arena_.free(std::exchange(put_off_, nullptr));
    note_unused(kLarge);
    note_pages_if_changed();
  } else if (slabs_.drowsy()) {
    put_slab_to_sleep();
  }
  publish_if_due();
}

void Heap::put_slab_to_sleep() {
  slabs_.put_to_sleep();
  note_unused(kSmall);
  note_pages_if_changed();
}

Heap::Found Heap::find_planned(Bytes offset) const {
  Found found;
  found.planned = planning_->blocks.at(offset);
  if (found.planned != nullptr) {
    found.size = found.planned->size;
    found.requested = found.planned->requested;
  }
  return found;
}

Heap::Found Heap::find_unplanned(Bytes offset) const {
  Found found;
  if (slabs_.serves(static_cast<PageIndex>(offset / kPageBytes))) {
    found.slot = slabs_.find(offset);
    found.size = found.slot.size;
    found.requested = found.slot.requested;
  } else if (Arena::Block* block = arena_.at(offset); block != nullptr && block->live()) {
    found.block = block;
    found.size = block->size;
    found.requested = block->requested;
  }
  return found;
}

void Heap::give_back(const Found& found) {
  if (found.block != nullptr) {
    arena_bytes_.subtract(found.size);
    arena_.free(found.block);
    note_unused(kLarge);
  } else if (found.planned != nullptr) {
    arena_bytes_.subtract(found.size);
    planning_->blocks.free(found.planned);
    note_unused(kLarge);
  } else {
    if (slabs_.free(found.slot)) slabs_.put_to_sleep();
    note_unused(kSmall);
  }
  note_pages_if_changed();
}

// --- pages -------------------------------------------------------------------------------------------------------

// Pages or addresses were missing: pending frees may have them by now, or other streams, or what is kept. Only then may
// the heap grow.
Status Heap::allocate_missing(Bytes bytes, Bytes* offset, Bytes* rounded, Source source, Status status) {
  if (!shared_.gate.captures()) pages_.return_left_behind();
  const auto place_now = [&] {
    if ((attention_ & kSpecial) != 0) return place_specially(bytes, offset, rounded);
    return planned(bytes) ? place_by_plan(bytes, offset, rounded) : place(bytes, offset, rounded);
  };
  bool asked = uses_.pending() == 0 && !has_surplus();
  // One look after the other, as long as what they find is not enough.
  for (bool again = !asked; again;) {
    const bool finished = poll_pending_locked() != 0;
    if (!finished && source == Source::any) break;
    pages_.permit(source == Source::any ? Source::none : source, may_unmap());
    status = place_now();
    if (status == Status::ok) return status;
    again = finished && status == Status::out_of_memory;
  }
  if (source != Source::any) {
    if (status == Status::out_of_memory && (!pages_.wanted().empty() || others_have_idle_pages()))
      return Status::not_ready;
    asked = false;
  }
  while (status == Status::out_of_memory &&
         release_kept_locked(pages_.missing() * kPageBytes + 1, ExactBins::Which::surplus) != 0) {
    pages_.permit(Source::spare, may_unmap());
    status = place_now();
    if (status == Status::ok) return status;
    asked = false;
  }
  if (asked) return status;
  pages_.permit(Source::any, may_unmap());
  status = place_now();
  if (status != Status::ok && !shared_.gate.captures()) pages_.return_left_behind();
  return status;
}

// As far as they have said; or pending frees, which may have completed since.
bool Heap::others_have_idle_pages() const {
  return shared_.idle_pages.load(std::memory_order_relaxed) > published_.idle_pages ||
         shared_.deferred.load(std::memory_order_relaxed) > static_cast<std::int64_t>(uses_.pending());
}

// No hole is large enough.
Status Heap::open_segment(const SegmentNeed& need) {
  PageIndex first = 0, end = 0;
  const Status status = segments_->add(need, &first, &end);
  if (status == Status::ok) arena_.open(first, end);
  return status;
}

void Heap::close_segments(const PageTable::Detached& gone) {
  for (const PageTable::Leaving& each : gone)
    if (!slabs_.serves(each.page)) arena_.close(each.page);
}

// Called when the driver has been at work anyway: gives back tables of pages from time to time, and learns how far the
// stream has come, so that mappings nothing uses any more can be replaced. One event is under way at a time.
void Heap::note_progress() {
  if (pages_.shed_due()) {
    pages_.shed_tables();
    slabs_.shed_tables();
  }
  if (!may_unmap() || segments_ != nullptr) return;
  ask_marks();
  if (marks_.empty()) leave_mark();
}

void Heap::ask_marks() {
  const auto token = shared_.gate.may_ask();
  while (token && !marks_.empty() &&
         shared_.driver.query_event(*token, shared_.device, marks_.front().event) == Status::ok)
    reached(marks_.front());
}

// Behind all work until now.
void Heap::leave_mark() {
  marked_ = released();
  if (marks_.size() == kMarks) ask_marks();
  Mark mark{uses_.take_event(shared_.device), pages_.tick()};
  if (mark.event == 0 && shared_.driver.create_event(shared_.device, &mark.event) != Status::ok) return;
  if (shared_.gate.record_behind(home(), mark.event) == Status::ok)
    add_mark(mark);
  else
    uses_.give_event(shared_.device, mark.event);
}

// Where there are too many, every second one goes: the older marks are, the farther apart they may be. The first stays,
// since another thread may be asking the driver about it.
void Heap::add_mark(const Mark& mark) {
  if (marks_.size() == kMarks) {
    for (std::size_t i = 1; i < marks_.size(); ++i) {
      uses_.give_event(shared_.device, marks_[i].event);
      marks_.erase(marks_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  marks_.push_back(mark);
}

Status Heap::ask() {
  SegmentNeed need;
  {
    const Guard guard(*this);
    need = segments_->need();
  }
  return own_supply_->ask(need, stream_);
}

Status Heap::allow_access_to_mapped() {
  const Guard guard(*this);
  return asleep_ ? Status::ok : pages_.allow_access_to_mapped();
}

void Heap::retire() noexcept {
  if (lends()) shared_.page_supply.remove_lender(this);
  const Guard guard(*this);
  pages_.return_all();
}

bool Heap::mapped() const {
  const Guard guard(*this);
  return !asleep_ && pages_.mappings() != 0;
}

BlockInfo Heap::describe(Bytes offset, Bytes size, Bytes requested) const {
  return {address_of(offset), size,           requested, uses_.pending(offset),
          uses_.used(offset), shared_.device, stream_,   pool_};
}

std::optional<BlockInfo> Heap::block(Address address) const {
  const Guard guard(*this);
  const Bytes offset = offset_of(address);
  if (slabs_.serves(static_cast<PageIndex>(offset / kPageBytes))) {
    const Slabs::Found found = slabs_.containing(offset);
    if (found.size == 0) return std::nullopt;
    return describe(found.slab->offset + found.slot * found.size, found.size, found.requested);
  }
  if ((attention_ & kPlans) != 0 && planning_->blocks.serves(offset)) {
    const PlannedBlocks::Block* block = planning_->blocks.containing(offset);
    if (block == nullptr) return std::nullopt;
    return describe(block->offset, block->size, block->requested);
  }
  const Arena::Block* block = arena_.containing(offset);
  if (block == nullptr) return std::nullopt;
  return describe(block->offset, block->size, block->requested);
}

std::optional<Segment> Heap::segment(Address address) const {
  const Guard guard(*this);
  const Segment* found = segments_ != nullptr ? segments_->containing(address) : nullptr;
  return found != nullptr ? std::optional(*found) : std::nullopt;
}

void Heap::append_blocks(std::vector<BlockInfo>& blocks) const {
  const Guard guard(*this);
  append_blocks_locked(blocks);
}

void Heap::append_blocks_locked(std::vector<BlockInfo>& blocks) const {
  const auto add = [&](Bytes offset, Bytes size, Bytes requested) {
    blocks.push_back(describe(offset, size, requested));
  };
  slabs_.visit(add);
  if (planning_ != nullptr) planning_->blocks.visit(add);
  arena_.visit(add);
}

HeapLayout Heap::layout() const {
  const Guard guard(*this);
  HeapLayout layout{{shared_.device, stream_, pool_}, segmented(), {}, {}};
  if (asleep_) return layout;  // nothing of it is on the device
  pages_.visit_counted([&](PageIndex first, PageIndex last, bool idle) {
    const bool small = slabs_.serves(first) && !idle;
    Address end = 0;
    for (PageIndex page = first; page <= last; ++page) {  // neighbours, but perhaps in segments far apart
      const Address address = address_of(page * kPageBytes);
      const bool apart = segmented() && segments_->starts(page);
      if (page == first || address != end || apart) layout.pages.push_back({address, 0, small, idle, apart});
      layout.pages.back().bytes += kPageBytes;
      end = address + kPageBytes;
    }
  });
  append_blocks_locked(layout.blocks);
  const auto by_address = [](const auto& a, const auto& b) { return a.address < b.address; };
  std::sort(layout.pages.begin(), layout.pages.end(), by_address);
  std::sort(layout.blocks.begin(), layout.blocks.end(), by_address);
  return layout;
}

}  // namespace poolalloc
